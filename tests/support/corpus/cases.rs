//! The list. Each entry changes one property of the accepted reference, or of its issuer.

use rcgen::KeyPair;
use rustls::AlertDescription;
use rustls_pki_types::CertificateDer;
use zeugma_core::svid::Rule;
use zeugma_proxy::tls::{CHAIN_BYTES_MAX, CHAIN_CERTIFICATES_MAX};

use super::der::{self, Extension, Spec};
use super::{Ca, Case, Outcome, REFERENCE_ID, Roles, World, authority_key_id, long_domain};

// RFC 8446 §6.2.
const BAD: AlertDescription = AlertDescription::BadCertificate;
const UNSUPPORTED: AlertDescription = AlertDescription::UnsupportedCertificate;
const EXPIRED: AlertDescription = AlertDescription::CertificateExpired;
const UNKNOWN: AlertDescription = AlertDescription::UnknownCA;

const POOLED_ID: &str = "spiffe://pooled.example/ns/shop/sa/cart";

/// Every case: the refused ones, then the accepted ones.
pub(crate) fn cases(world: &World) -> Vec<Case> {
    let mut list = List {
        world,
        cases: Vec::new(),
    };
    list.identities();
    list.sans();
    list.leaf_usage();
    list.leaf_form();
    list.leaf_keys();
    list.leaf_paths();
    list.issuers();
    list.issuer_form();
    list.long_paths();
    list.chains();
    list.accepted_leaves();
    list.accepted_paths();
    list.cases
}

struct List<'w> {
    world: &'w World,
    cases: Vec<Case>,
}

impl List<'_> {
    fn push(
        &mut self,
        name: &'static str,
        rule: Rule,
        alert: AlertDescription,
        chain: Vec<CertificateDer<'static>>,
    ) {
        self.cases.push(Case {
            name,
            chain,
            key: Some(self.world.leaf_key.serialize_der()),
            id: None,
            roles: Roles::Both,
            outcome: Outcome::Refused(rule, alert),
        });
    }

    fn good(&mut self, name: &'static str, id: &str, chain: Vec<CertificateDer<'static>>) {
        self.cases.push(Case {
            name,
            chain,
            key: Some(self.world.leaf_key.serialize_der()),
            id: Some(id.to_owned()),
            roles: Roles::Both,
            outcome: Outcome::Accepted,
        });
    }

    /// The reference with one change, signed by east's issuer.
    fn leaf(
        &mut self,
        name: &'static str,
        rule: Rule,
        alert: AlertDescription,
        change: impl FnOnce(&mut Spec),
    ) {
        let mut spec = self.world.leaf();
        change(&mut spec);
        let leaf = spec.sign(&self.world.east.key);
        let chain = vec![leaf, self.world.east.cross.clone()];
        self.push(name, rule, alert, chain);
    }

    fn good_leaf(&mut self, name: &'static str, id: &str, change: impl FnOnce(&mut Spec)) {
        let mut spec = self.world.leaf();
        change(&mut spec);
        let leaf = spec.sign(&self.world.east.key);
        let chain = vec![leaf, self.world.east.cross.clone()];
        self.good(name, id, chain);
    }

    /// The accepted path leaf, issuer, shared root with one change to the issuer.
    fn issuer(
        &mut self,
        name: &'static str,
        rule: Rule,
        alert: AlertDescription,
        change: impl FnOnce(&mut Spec),
    ) {
        let World {
            now, pooled, root, ..
        } = self.world;
        let mut spec = pooled.cross_spec(*now, "pooled.example", root);
        change(&mut spec);
        let mut leaf = self.world.leaf_of(pooled, POOLED_ID);
        leaf.issuer = spec.subject.clone();
        let chain = vec![leaf.sign(&pooled.key), spec.sign(&root.key)];
        self.push(name, rule, alert, chain);
    }

    fn uri(&mut self, name: &'static str, rule: Rule, uri: &str) {
        self.leaf(name, rule, BAD, |leaf| leaf.uri(uri));
    }

    /// ID1-ID10 (XL2), XL3, XL4.
    fn identities(&mut self) {
        let bad = Rule::XL2;
        self.uri("https URI", bad, "https://east.example/ns/shop/sa/cart");
        self.uri("upper-case scheme", bad, "SPIFFE://east.example/ns/a");
        self.uri("upper-case trust domain", bad, "spiffe://East.example/ns/a");
        self.uri("percent-encoded path", bad, "spiffe://east.example/ns%2Fa");
        self.uri("percent-encoded domain", bad, "spiffe://east%2eexample/a");
        self.uri("trailing slash", bad, "spiffe://east.example/ns/a/");
        self.uri("empty segment", bad, "spiffe://east.example/ns//a");
        self.uri("dot segment", bad, "spiffe://east.example/ns/./a");
        self.uri("two-dot segment", bad, "spiffe://east.example/ns/../a");
        self.uri("query", bad, "spiffe://east.example/ns/a?b=c");
        self.uri("empty query", bad, "spiffe://east.example/ns/a?");
        self.uri("fragment", bad, "spiffe://east.example/ns/a#b");
        self.uri("port", bad, "spiffe://east.example:8443/ns/a");
        self.uri("userinfo", bad, "spiffe://user@east.example/ns/a");
        self.uri("no trust domain", bad, "spiffe:///ns/a");
        self.uri("IPv6 trust domain", bad, "spiffe://[::1]/ns/a");
        self.uri("space in the path", bad, "spiffe://east.example/ns/a b");
        self.uri("NUL in the path", bad, "spiffe://east.example/ns/a\0");
        self.uri("letter beyond ASCII", bad, "spiffe://east.example/ns/ä");
        self.uri("over 2048 bytes", bad, &id_of_length(2049));
        let long_domain = format!("spiffe://{}/a", "a".repeat(256));
        self.uri("trust domain over 255 bytes", bad, &long_domain);
        self.uri("root path", Rule::XL3, "spiffe://east.example/");
        self.uri("no path", Rule::XL3, "spiffe://east.example");
        for (name, id) in [
            ("no bundle", "spiffe://north.example/ns/a"),
            (
                "trust domain with a known beginning",
                "spiffe://east.example.evil/ns/a",
            ),
            (
                "trust domain with a known end",
                "spiffe://evil.east.example/ns/a",
            ),
        ] {
            self.leaf(name, Rule::XL4, UNKNOWN, |leaf| leaf.uri(id));
        }
    }

    /// XL1, XL5.
    fn sans(&mut self) {
        let reference = der::san(6, REFERENCE_ID.as_bytes());
        let dns = der::san(2, b"cart.east.example");
        self.leaf("two URI SANs", Rule::XL1, BAD, |leaf| {
            let second = der::san(6, b"spiffe://east.example/ns/admin");
            leaf.names(&[reference.clone(), second]);
        });
        self.leaf("the same URI SAN twice", Rule::XL1, BAD, |leaf| {
            leaf.names(&[reference.clone(), reference.clone()]);
        });
        self.leaf("a second URI of another scheme", Rule::XL1, BAD, |leaf| {
            leaf.names(&[reference.clone(), der::san(6, b"https://east.example/")]);
        });
        self.leaf("DNS SAN only", Rule::XL1, BAD, |leaf| leaf.names(&[dns]));
        self.leaf("no SAN at all", Rule::XL1, BAD, |leaf| {
            leaf.without(der::SUBJECT_ALT_NAME);
        });
        self.leaf("ID in the common name only", Rule::XL1, BAD, |leaf| {
            leaf.without(der::SUBJECT_ALT_NAME);
            leaf.subject = der::name(Some(REFERENCE_ID));
        });
        self.leaf("empty subject, SAN not critical", Rule::XL5, BAD, |leaf| {
            leaf.extension(der::SUBJECT_ALT_NAME).critical = false;
        });
        self.leaf("URI SAN of invalid UTF-8", Rule::Malformed, BAD, |leaf| {
            leaf.names(&[der::san(6, b"spiffe://east.example/\xff")]);
        });
    }

    /// XL6-XL11, XL13.
    fn leaf_usage(&mut self) {
        self.leaf("CA certificate as leaf", Rule::XL6, UNSUPPORTED, |leaf| {
            leaf.extension(der::BASIC_CONSTRAINTS).value = der::ca(None);
        });
        self.leaf("no keyUsage", Rule::XL7, BAD, |leaf| {
            leaf.without(der::KEY_USAGE);
        });
        self.leaf("keyUsage not critical", Rule::XL13, BAD, |leaf| {
            leaf.extension(der::KEY_USAGE).critical = false;
        });
        for (name, rule, bits) in [
            ("no digitalSignature", Rule::XL8, &[4][..]),
            ("keyCertSign on the leaf", Rule::XL9, &[0, 5]),
            ("cRLSign on the leaf", Rule::XL9, &[0, 6]),
        ] {
            self.leaf(name, rule, UNSUPPORTED, |leaf| {
                leaf.extension(der::KEY_USAGE).value = der::key_usage(bits);
            });
        }
        let (server, client) = (der::SERVER_AUTH, der::CLIENT_AUTH);
        for (name, rule, usages) in [
            ("only serverAuth", Rule::XL10, &[server][..]),
            ("only clientAuth", Rule::XL10, &[client]),
            ("only codeSigning", Rule::XL10, &[der::CODE_SIGNING]),
            (
                "anyEKU beside both",
                Rule::XL11,
                &[server, client, der::ANY_USAGE],
            ),
        ] {
            self.leaf(name, rule, UNSUPPORTED, |leaf| leaf.usages(usages));
        }
    }

    /// R1-R3, R10, duplicates and DER.
    fn leaf_form(&mut self) {
        let now = self.world.now;
        self.leaf("version 1", Rule::R1, BAD, |leaf| leaf.version = None);
        self.leaf("version 2", Rule::R1, BAD, |leaf| leaf.version = Some(1));
        self.leaf("serial zero", Rule::R2, BAD, |leaf| leaf.serial = vec![0]);
        self.leaf("serial negative", Rule::R2, BAD, |leaf| {
            leaf.serial = vec![0x9a, 1, 2];
        });
        self.leaf("serial of 21 octets", Rule::R2, BAD, |leaf| {
            leaf.serial = vec![0x11; 21];
        });
        self.leaf("notAfter before notBefore", Rule::R3, BAD, |leaf| {
            (leaf.not_before, leaf.not_after) = (leaf.not_after.clone(), leaf.not_before.clone());
        });
        self.leaf("GeneralizedTime before 2050", Rule::R3, BAD, |leaf| {
            leaf.not_after = der::generalized_time(now + 3600);
        });
        self.leaf("expired", Rule::Expired, EXPIRED, |leaf| {
            leaf.not_after = der::utc_time(now - 60);
        });
        self.leaf("not yet valid", Rule::NotYetValid, EXPIRED, |leaf| {
            leaf.not_before = der::utc_time(now + 1800);
        });
        let strange =
            |critical| Extension::new(&[1, 3, 6, 1, 4, 1, 99_999, 1], critical, vec![5, 0]);
        self.leaf("unknown critical extension", Rule::R10, BAD, |leaf| {
            leaf.extensions.push(strange(true));
        });
        self.leaf("extension twice", Rule::DuplicateExtension, BAD, |leaf| {
            let usage = leaf.extension(der::KEY_USAGE).clone();
            leaf.extensions.push(usage);
        });
        self.leaf("bytes after a keyUsage", Rule::Malformed, BAD, |leaf| {
            leaf.extension(der::KEY_USAGE).value.push(0);
        });
        self.leaf("65 extensions", Rule::Malformed, BAD, |leaf| {
            let more = (0..60).map(|n| Extension::new(&[1, 3, 6, 1, 4, n], false, vec![5, 0]));
            leaf.extensions.extend(more);
        });
    }

    /// R4. The peer signs the handshake with junk: these keys cannot be held, or not be used.
    fn leaf_keys(&mut self) {
        self.leaf("RSA key of 1024 bits", Rule::R4, BAD, |leaf| {
            leaf.public_key = der::rsa_public_key(1024);
        });
        let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        self.leaf("P-521 key", Rule::R4, BAD, |leaf| {
            leaf.public_key = der::public_key(&p521);
        });
        for case in self.cases.iter_mut().rev().take(2) {
            case.key = None;
        }
        self.leaf("signed with SHA-1", Rule::R4, BAD, |leaf| {
            leaf.algorithm = Some(der::sequence(&[&der::oid(der::ECDSA_WITH_SHA1)]));
        });
        self.leaf(
            "key not held",
            Rule::NoPossession,
            AlertDescription::DecryptError,
            |_| {},
        );
        for case in self.cases.iter_mut().rev().take(1) {
            case.key = None;
        }
    }

    /// Who signed the leaf.
    fn leaf_paths(&mut self) {
        let world = self.world;
        let reference = world.leaf().sign(&world.east.key);
        // west's issuer mints an ID of east, both under one root (XC4's attack, stopped by the
        // bundle of east, which holds no root).
        let by_west = world
            .leaf_of(&world.west, REFERENCE_ID)
            .sign(&world.west.key);
        let chain = vec![by_west, world.west.cross.clone()];
        self.push(
            "issuer of another domain",
            Rule::UnknownIssuer,
            UNKNOWN,
            chain,
        );
        let by_stranger = world.leaf().sign(&world.stranger.key);
        let chain = vec![by_stranger, world.east.cross.clone()];
        self.push("issuer's name, another key", Rule::BadSignature, BAD, chain);
        let by_stranger = world.leaf().sign(&world.stranger.key);
        let chain = vec![by_stranger, world.stranger.anchor.clone()];
        self.push("brings its own anchor", Rule::BadSignature, BAD, chain);
        let mut alone = world.leaf();
        alone.subject = der::name(Some("cart"));
        alone.issuer = alone.subject.clone();
        let chain = vec![alone.sign(&world.leaf_key)];
        self.push("self-signed leaf", Rule::UnknownIssuer, UNKNOWN, chain);
        let mut tampered = reference.to_vec();
        *tampered.last_mut().unwrap() ^= 1;
        let chain = vec![tampered.into(), world.east.cross.clone()];
        self.push("signature off by a bit", Rule::BadSignature, BAD, chain);
        // A workload signs for another with its own SVID.
        let mut middle = world.leaf();
        middle.subject = der::name(Some("cart"));
        let mut below = world.leaf();
        below.issuer = middle.subject.clone();
        let chain = vec![
            below.sign(&world.leaf_key),
            middle.sign(&world.east.key),
            world.east.cross.clone(),
        ];
        self.push("leaf signed by a leaf", Rule::XC1, BAD, chain);
        let leaf = world.leaf_of(&world.stale, "spiffe://stale.example/a");
        let chain = vec![leaf.sign(&world.stale.key)];
        self.push("anchor expired", Rule::Expired, EXPIRED, chain);
        self.leaf("empty bundle", Rule::UnknownIssuer, UNKNOWN, |leaf| {
            leaf.uri("spiffe://empty.example/a");
        });
    }

    /// XC1-XC4, on an issuer under the shared root.
    fn issuers(&mut self) {
        self.issuer("issuer with cA false", Rule::XC1, BAD, |issuer| {
            issuer.extension(der::BASIC_CONSTRAINTS).value = der::sequence(&[]);
        });
        self.issuer(
            "issuer without basicConstraints",
            Rule::XC1,
            BAD,
            |issuer| {
                issuer.without(der::BASIC_CONSTRAINTS);
            },
        );
        self.issuer(
            "issuer's constraints not critical",
            Rule::XC1,
            BAD,
            |issuer| {
                issuer.extension(der::BASIC_CONSTRAINTS).critical = false;
            },
        );
        self.issuer("issuer without keyCertSign", Rule::XC2, BAD, |issuer| {
            issuer.extension(der::KEY_USAGE).value = der::key_usage(&[6]);
        });
        self.issuer("issuer without keyUsage", Rule::XC2, BAD, |issuer| {
            issuer.without(der::KEY_USAGE);
        });
        self.issuer("issuer's keyUsage not critical", Rule::XC2, BAD, |issuer| {
            issuer.extension(der::KEY_USAGE).critical = false;
        });
        self.issuer("issuer's ID with a path", Rule::XC3, UNKNOWN, |issuer| {
            issuer.uri("spiffe://pooled.example/ca");
        });
        self.issuer("issuer without an ID", Rule::XC3, UNKNOWN, |issuer| {
            issuer.without(der::SUBJECT_ALT_NAME);
        });
        self.issuer("issuer with two IDs", Rule::XC3, UNKNOWN, |issuer| {
            let ids = ["spiffe://west.example", "spiffe://pooled.example"];
            issuer.names(&ids.map(|id| der::san(6, id.as_bytes())));
        });
        self.issuer(
            "issuer of another domain, pooled",
            Rule::XC4,
            UNKNOWN,
            |issuer| {
                issuer.uri("spiffe://west.example");
            },
        );
        // The attack of XC4 as it happens: west's own issuer, in a pool with the shared root.
        let world = self.world;
        let leaf = world.leaf_of(&world.west, POOLED_ID).sign(&world.west.key);
        let chain = vec![leaf, world.west.cross.clone()];
        self.push("west mints for pooled", Rule::XC4, UNKNOWN, chain);
    }

    /// XC5, XC7, times and form, on an issuer under the shared root.
    fn issuer_form(&mut self) {
        let now = self.world.now;
        self.issuer("URI name constraint", Rule::XC5, BAD, |issuer| {
            let permitted = der::sequence(&[&der::san(6, b"pooled.example")]);
            let constraints = der::sequence(&[&der::tlv(0xa0, &permitted)]);
            let constraints = Extension::new(der::NAME_CONSTRAINTS, true, constraints);
            issuer.extensions.push(constraints);
        });
        self.issuer("issuer without a name", Rule::XC7, BAD, |issuer| {
            issuer.subject = der::name(None);
        });
        self.issuer("issuer expired", Rule::Expired, EXPIRED, |issuer| {
            issuer.not_after = der::utc_time(now - 60);
        });
        self.issuer(
            "issuer not yet valid",
            Rule::NotYetValid,
            EXPIRED,
            |issuer| {
                issuer.not_before = der::utc_time(now + 1800);
            },
        );
        self.issuer(
            "issuer's unknown critical extension",
            Rule::R10,
            BAD,
            |issuer| {
                let strange = Extension::new(&[1, 3, 6, 1, 4, 1, 99_999, 1], true, vec![5, 0]);
                issuer.extensions.push(strange);
            },
        );
        self.issuer("issuer's serial zero", Rule::R2, BAD, |issuer| {
            issuer.serial = vec![0];
        });
    }

    /// pathLen and depth.
    fn long_paths(&mut self) {
        let chain = self.path(&self.world.pooled, &[Some(0), Some(0)]);
        self.push("pathLen of an issuer", Rule::PathLength, BAD, chain);
        let chain = self.path(&self.world.pooled, &[None, None, None]);
        self.push("pathLen of the anchor", Rule::PathLength, BAD, chain);
        let chain = self.path(&self.world.deep, &[None; 7]);
        self.push("seven issuers", Rule::PathTooComplex, BAD, chain);
    }

    /// What surrounds the leaf.
    fn chains(&mut self) {
        let world = self.world;
        let leaf = world.leaf().sign(&world.east.key);
        self.push(
            "garbage",
            Rule::Malformed,
            BAD,
            vec![b"0\x03abc".to_vec().into()],
        );
        let short = leaf[..leaf.len() - 1].to_vec();
        self.push("truncated", Rule::Malformed, BAD, vec![short.into()]);
        let long = [&leaf[..], &[0]].concat();
        self.push(
            "bytes after the leaf",
            Rule::Malformed,
            BAD,
            vec![long.into()],
        );
        let mut chain = vec![leaf.clone()];
        chain.resize(CHAIN_CERTIFICATES_MAX + 1, world.east.cross.clone());
        self.push("chain too long", Rule::ChainTooLong, BAD, chain);
        let padding = vec![0x30; CHAIN_BYTES_MAX + 1 - leaf.len()];
        let chain = vec![leaf.clone(), padding.into()];
        self.push("chain too large", Rule::TooLarge, BAD, chain);
        let missing = AlertDescription::CertificateRequired;
        self.push("no certificate", Rule::NoCertificate, missing, Vec::new());
        for case in self.cases.iter_mut().rev().take(1) {
            case.roles = Roles::ClientOnly;
        }
        // The issuer's own certificate: it has no path in its ID before it is a CA (XC8).
        let chain = vec![world.east.cross.clone()];
        self.push("the issuer itself", Rule::XL3, BAD, chain);
    }

    fn accepted_leaves(&mut self) {
        self.good_leaf("reference", REFERENCE_ID, |_| {});
        self.good_leaf("no extended key usage", REFERENCE_ID, |leaf| {
            leaf.without(der::EXTENDED_KEY_USAGE);
        });
        self.good_leaf("a third usage", REFERENCE_ID, |leaf| {
            leaf.usages(&[der::CODE_SIGNING, der::CLIENT_AUTH, der::SERVER_AUTH]);
        });
        self.good_leaf("DNS, mail and IP SANs beside", REFERENCE_ID, |leaf| {
            leaf.names(&[
                der::san(2, b"cart.east.example"),
                der::san(1, b"cart@east.example"),
                der::san(7, &[10, 0, 0, 1]),
                der::san(6, REFERENCE_ID.as_bytes()),
            ]);
        });
        self.good_leaf("subject, SAN not critical", REFERENCE_ID, |leaf| {
            leaf.subject = der::name(Some("cart"));
            leaf.extension(der::SUBJECT_ALT_NAME).critical = false;
        });
        let longest = id_of_length(2048);
        self.good_leaf("ID of 2048 bytes", &longest, |leaf| leaf.uri(&longest));
        self.good_leaf("key agreement and encipherment", REFERENCE_ID, |leaf| {
            leaf.extension(der::KEY_USAGE).value = der::key_usage(&[0, 2, 4]);
        });
        self.good_leaf("unknown extension, not critical", REFERENCE_ID, |leaf| {
            let strange = Extension::new(&[1, 3, 6, 1, 4, 1, 99_999, 1], false, vec![5, 0]);
            leaf.extensions.push(strange);
        });
        self.good_leaf("serial of 20 octets", REFERENCE_ID, |leaf| {
            leaf.serial = vec![0x7f; 20];
        });
        self.good_leaf("no basicConstraints, no key id", REFERENCE_ID, |leaf| {
            leaf.without(der::BASIC_CONSTRAINTS);
            leaf.without(der::AUTHORITY_KEY_ID);
        });
        for (name, algorithm) in [
            ("P-384 key", &rcgen::PKCS_ECDSA_P384_SHA384),
            ("Ed25519 key", &rcgen::PKCS_ED25519),
            ("RSA key of 2048 bits", &rcgen::PKCS_RSA_SHA256),
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            self.good_leaf(name, REFERENCE_ID, |leaf| {
                leaf.public_key = der::public_key(&key);
            });
            if let Some(case) = self.cases.last_mut() {
                case.key = Some(key.serialize_der());
            }
        }
    }

    fn accepted_paths(&mut self) {
        let world = self.world;
        let leaf = world.leaf().sign(&world.east.key);
        self.good("leaf alone", REFERENCE_ID, vec![leaf.clone()]);
        let with_anchor = vec![leaf.clone(), world.east.anchor.clone()];
        self.good("leaf and anchor", REFERENCE_ID, with_anchor);
        let extra = vec![
            leaf.clone(),
            b"0\x03abc".to_vec().into(),
            world.west.cross.clone(),
            world.root.anchor.clone(),
            world.east.cross.clone(),
        ];
        self.good("extra and unordered certificates", REFERENCE_ID, extra);
        let mut most = vec![leaf.clone()];
        most.resize(CHAIN_CERTIFICATES_MAX, world.east.cross.clone());
        self.good("the most certificates", REFERENCE_ID, most);
        let padding = vec![0x30; CHAIN_BYTES_MAX - leaf.len()];
        self.good("the most bytes", REFERENCE_ID, vec![leaf, padding.into()]);
        for (name, issuer, id) in [
            (
                "another trust domain",
                &world.west,
                "spiffe://west.example/a",
            ),
            (
                "IPv4-looking trust domain",
                &world.numeric,
                "spiffe://10.0.0.1/a",
            ),
            (
                "long trust domain",
                &world.long,
                &format!("spiffe://{}/a", long_domain()),
            ),
            (
                "renewed anchor",
                &world.renewed,
                "spiffe://renewed.example/a",
            ),
            ("issuer under a pooled root", &world.pooled, POOLED_ID),
        ] {
            let leaf = world.leaf_of(issuer, id).sign(&issuer.key);
            self.good(name, id, vec![leaf, issuer.cross.clone()]);
        }
        let mut marked = world
            .pooled
            .cross_spec(world.now, "pooled.example", &world.root);
        marked.extension(der::KEY_USAGE).value = der::key_usage(&[0, 5, 6]);
        let leaf = world.leaf_of(&world.pooled, POOLED_ID);
        let chain = vec![leaf.sign(&world.pooled.key), marked.sign(&world.root.key)];
        self.good("issuer with digitalSignature", POOLED_ID, chain);
        let chain = self.path(&world.pooled, &[Some(1), Some(0)]);
        self.good("two issuers under pathLen 2", POOLED_ID, chain);
        let mut chain = self.path(&world.deep, &[None; 6]);
        self.good(
            "six issuers",
            "spiffe://deep.example/ns/shop/sa/cart",
            chain.clone(),
        );
        chain[1..].reverse();
        self.good(
            "six issuers, root first",
            "spiffe://deep.example/ns/shop/sa/cart",
            chain,
        );
    }

    /// A leaf under new issuers with these pathLens, from the anchor down; `top` is pooled (under
    /// the shared root) or deep (its own anchor).
    fn path(&self, top: &Ca, path_lens: &[Option<u8>]) -> Vec<CertificateDer<'static>> {
        let world = self.world;
        let (domain, anchor) = if top.subject == world.deep.subject {
            ("deep.example", &world.deep)
        } else {
            ("pooled.example", &world.root)
        };
        let mut chain = Vec::new();
        let mut last: Option<Ca> = None;
        for (depth, path_len) in path_lens.iter().enumerate() {
            let parent = last.as_ref().unwrap_or(anchor);
            let key = KeyPair::generate().unwrap();
            let subject = der::name(Some(&format!("{domain} issuer {depth}")));
            let mut spec =
                super::ca_spec(world.now, &key, subject.clone(), Some(domain), *path_len);
            spec.issuer = parent.subject.clone();
            spec.extensions.push(authority_key_id(parent));
            let der = spec.sign(&parent.key);
            chain.insert(0, der.clone());
            last = Some(Ca {
                key,
                subject,
                anchor: der.clone(),
                cross: der,
            });
        }
        let issuer = last.unwrap();
        let id = format!("spiffe://{domain}/ns/shop/sa/cart");
        chain.insert(0, world.leaf_of(&issuer, &id).sign(&issuer.key));
        chain
    }
}

/// An ID of east with exactly so many bytes.
fn id_of_length(bytes: usize) -> String {
    let head = "spiffe://east.example/";
    format!("{head}{}", "a".repeat(bytes - head.len()))
}
