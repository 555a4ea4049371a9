//! The negative corpus: certificates that differ in one property each from an accepted one, with
//! the rule and the TLS alert they are refused with, and variants that must pass.
//!
//! [`World`] holds the CAs and what a gateway needs on disk to trust them; [`cases`] yields what
//! peers present. [`call`] presents a case as a client to any address, [`answer`] as an upstream.

#[path = "corpus/der.rs"]
pub(crate) mod der;
#[path = "corpus/cases.rs"]
mod list;
#[path = "corpus/peer.rs"]
mod peer;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::KeyPair;
use rustls::AlertDescription;
use rustls_pki_types::CertificateDer;
use zeugma_core::svid::Rule;
use zeugma_proxy::tls::SvidFiles;

use der::{Extension, Spec};

pub(crate) use list::cases;
pub(crate) use peer::{answer, call};

/// Who the gateway under test is.
pub(crate) const GATEWAY_ID: &str = "spiffe://east.example/ns/mesh/sa/gateway";
/// Who the accepted reference is.
pub(crate) const REFERENCE_ID: &str = "spiffe://east.example/ns/shop/sa/cart";

const DAY: i64 = 86_400;

/// A key with a name and the certificates over it.
#[derive(Debug)]
pub(crate) struct Ca {
    pub(crate) key: KeyPair,
    /// Its name, as DER.
    pub(crate) subject: Vec<u8>,
    /// (b): self-signed, the anchor of its trust domain's bundle.
    pub(crate) anchor: CertificateDer<'static>,
    /// (a): signed by the shared root, sent in the chain.
    pub(crate) cross: CertificateDer<'static>,
}

/// A root, an issuer for each trust domain, and the time it all began.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: i64,
    pub(crate) root: Ca,
    pub(crate) east: Ca,
    pub(crate) west: Ca,
    /// An issuer whose trust domain's bundle holds the shared root itself (as Istio's do).
    pub(crate) pooled: Ca,
    /// The issuer of a trust domain with an IPv4 address for a name.
    pub(crate) numeric: Ca,
    /// The issuer of the trust domain with the longest name.
    pub(crate) long: Ca,
    /// An anchor without pathLen.
    pub(crate) deep: Ca,
    /// An issuer whose anchor has expired.
    pub(crate) stale: Ca,
    /// An issuer whose anchor has been renewed over the same key, the old one still in the bundle.
    pub(crate) renewed: Ca,
    pub(crate) renewed_old: CertificateDer<'static>,
    /// An issuer nobody trusts.
    pub(crate) stranger: Ca,
    /// The key of every leaf that has no reason for its own.
    pub(crate) leaf_key: KeyPair,
}

/// What becomes of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted,
    Refused(Rule, AlertDescription),
}

/// In which roles a case can be presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Roles {
    Both,
    /// A TLS server always has a certificate.
    ClientOnly,
}

/// What a peer presents, and what must become of it.
#[derive(Debug)]
pub(crate) struct Case {
    /// Unique, for messages.
    pub(crate) name: &'static str,
    /// Leaf first; empty: no certificate.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    /// The leaf's key (PKCS#8); `None`: the peer cannot sign with it, and signs with junk.
    pub(crate) key: Option<Vec<u8>>,
    /// The ID of an accepted one.
    pub(crate) id: Option<String>,
    pub(crate) roles: Roles,
    pub(crate) outcome: Outcome,
}

pub(crate) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// The longest trust domain whose bundle's file name, with `.pem`, is within 255 bytes.
pub(crate) fn long_domain() -> String {
    format!("{}.example", "a".repeat(251 - 8))
}

impl World {
    pub(crate) fn new() -> Self {
        let now = unix_now();
        let root_key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        let subject = der::name(Some("shared root"));
        let spec = ca_spec(now, &root_key, subject.clone(), None, Some(2));
        let root = Ca {
            anchor: spec.sign(&root_key),
            cross: spec.sign(&root_key),
            subject,
            key: root_key,
        };
        let issuer = |domain: &str| Ca::issuer(now, domain, &root);
        let mut stale = issuer("stale.example");
        let mut spec = stale.anchor_spec(now, "stale.example");
        spec.not_after = der::utc_time(now - 60);
        stale.anchor = spec.sign(&stale.key);
        let mut deep = issuer("deep.example");
        let mut spec = deep.anchor_spec(now, "deep.example");
        spec.extension(der::BASIC_CONSTRAINTS).value = der::ca(None);
        deep.anchor = spec.sign(&deep.key);
        let renewed = issuer("renewed.example");
        let mut spec = renewed.anchor_spec(now, "renewed.example");
        spec.not_after = der::utc_time(now - 60);
        let renewed_old = spec.sign(&renewed.key);
        Self {
            now,
            east: issuer("east.example"),
            west: issuer("west.example"),
            pooled: issuer("pooled.example"),
            numeric: issuer("10.0.0.1"),
            long: issuer(&long_domain()),
            stranger: issuer("east.example"),
            deep,
            stale,
            renewed,
            renewed_old,
            root,
            leaf_key: KeyPair::generate().unwrap(),
        }
    }

    /// The accepted leaf that every case starts from.
    pub(crate) fn leaf(&self) -> Spec {
        self.leaf_of(&self.east, REFERENCE_ID)
    }

    /// A leaf of `issuer` that is accepted.
    pub(crate) fn leaf_of(&self, issuer: &Ca, id: &str) -> Spec {
        Spec {
            version: Some(2),
            serial: vec![0x4a, 1, 2, 3, 4, 5, 6, 7, 8, 9],
            algorithm: None,
            issuer: issuer.subject.clone(),
            not_before: der::utc_time(self.now - 120),
            not_after: der::utc_time(self.now + 3600),
            subject: der::name(None),
            public_key: der::public_key(&self.leaf_key),
            extensions: vec![
                authority_key_id(issuer),
                Extension::new(
                    der::SUBJECT_ALT_NAME,
                    true,
                    der::sequence(&[&der::san(6, id.as_bytes())]),
                ),
                Extension::new(der::KEY_USAGE, true, der::key_usage(&[0])),
                Extension::new(
                    der::EXTENDED_KEY_USAGE,
                    false,
                    der::sequence(&[&der::oid(der::SERVER_AUTH), &der::oid(der::CLIENT_AUTH)]),
                ),
                Extension::new(der::BASIC_CONSTRAINTS, true, der::sequence(&[])),
            ],
        }
    }

    /// Writes what a gateway of [`GATEWAY_ID`] needs to trust this world.
    pub(crate) fn write(&self, folder: &Path) -> SvidFiles {
        let files = SvidFiles {
            certificate: folder.join("gw.pem"),
            key: folder.join("gw.key"),
            bundles: folder.join("bundles"),
            crls: None,
            denied: None,
            domains: Vec::new(),
            own: None,
        };
        let leaf = self.leaf_of(&self.east, GATEWAY_ID).sign(&self.east.key);
        let chain = [leaf, self.east.cross.clone()];
        fs::write(&files.certificate, certificates_pem(&chain)).unwrap();
        fs::write(
            &files.key,
            pem("PRIVATE KEY", self.leaf_key.serialized_der()),
        )
        .unwrap();
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(&files.bundles).unwrap();
        let anchor = |ca: &Ca| ca.anchor.clone();
        for (domain, anchors) in [
            ("east.example", vec![anchor(&self.east)]),
            ("west.example", vec![anchor(&self.west)]),
            ("pooled.example", vec![anchor(&self.root)]),
            ("10.0.0.1", vec![anchor(&self.numeric)]),
            (&long_domain(), vec![anchor(&self.long)]),
            ("stale.example", vec![anchor(&self.stale)]),
            (
                "renewed.example",
                vec![self.renewed_old.clone(), anchor(&self.renewed)],
            ),
            ("deep.example", vec![anchor(&self.deep)]),
        ] {
            let path = files.bundles.join(format!("{domain}.pem"));
            fs::write(path, certificates_pem(&anchors)).unwrap();
        }
        let empty = files.bundles.join("empty.example.json");
        fs::write(empty, r#"{"keys":[],"spiffe_sequence":7}"#).unwrap();
        files
    }
}

impl Ca {
    fn issuer(now: i64, domain: &str, root: &Self) -> Self {
        let none = CertificateDer::from(Vec::new());
        let mut issuer = Self {
            key: KeyPair::generate().unwrap(),
            subject: der::name(Some(&format!("{domain:.40} issuer"))),
            anchor: none.clone(),
            cross: none,
        };
        issuer.anchor = issuer.anchor_spec(now, domain).sign(&issuer.key);
        issuer.cross = issuer.cross_spec(now, domain, root).sign(&root.key);
        issuer
    }

    /// (a), before `parent` signs it.
    pub(crate) fn cross_spec(&self, now: i64, domain: &str, parent: &Self) -> Spec {
        let mut spec = self.anchor_spec(now, domain);
        spec.issuer = parent.subject.clone();
        spec.extensions.push(authority_key_id(parent));
        spec
    }

    /// (b), before it is signed.
    pub(crate) fn anchor_spec(&self, now: i64, domain: &str) -> Spec {
        ca_spec(now, &self.key, self.subject.clone(), Some(domain), Some(0))
    }
}

/// A CA certificate named as its own issuer.
pub(crate) fn ca_spec(
    now: i64,
    key: &KeyPair,
    subject: Vec<u8>,
    domain: Option<&str>,
    path_len: Option<u8>,
) -> Spec {
    let mut extensions = vec![
        Extension::new(der::BASIC_CONSTRAINTS, true, der::ca(path_len)),
        Extension::new(der::KEY_USAGE, true, der::key_usage(&[5, 6])),
        Extension::new(
            der::SUBJECT_KEY_ID,
            false,
            der::tlv(der::OCTET_STRING, &key_id(key)),
        ),
    ];
    if let Some(domain) = domain {
        let uri = der::san(6, format!("spiffe://{domain}").as_bytes());
        extensions.push(Extension::new(
            der::SUBJECT_ALT_NAME,
            false,
            der::sequence(&[&uri]),
        ));
    }
    Spec {
        version: Some(2),
        serial: key_id(key),
        algorithm: None,
        issuer: subject.clone(),
        not_before: der::utc_time(now - DAY),
        not_after: der::utc_time(now + 30 * DAY),
        subject,
        public_key: der::public_key(key),
        extensions,
    }
}

pub(crate) fn authority_key_id(issuer: &Ca) -> Extension {
    let id = der::tlv(0x80, &key_id(&issuer.key));
    Extension::new(der::AUTHORITY_KEY_ID, false, der::sequence(&[&id]))
}

/// Eight octets of the public key, made positive: an identifier need only tell keys apart.
fn key_id(key: &KeyPair) -> Vec<u8> {
    let mut id = key.public_key_raw()[1..9].to_vec();
    id[0] = 0x40 | (id[0] & 0x3f);
    id
}

pub(crate) fn certificates_pem(chain: &[CertificateDer<'_>]) -> String {
    chain.iter().map(|der| pem("CERTIFICATE", der)).collect()
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
