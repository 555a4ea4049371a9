//! A trust domain whose keys the test holds: what it issues, and what it revokes.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use zeugma_ca::files::{Access, write_atomically};
use zeugma_proxy::tls::SvidFiles;

use crate::mesh::{Cluster, Identity};

/// A trust domain with one anchor, and an intermediate below it.
pub(crate) struct Domain {
    name: &'static str,
    anchor: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
    /// A CA of no trust domain, and its certificate of the anchor's name and key.
    root: CertifiedIssuer<'static, KeyPair>,
    cross: String,
    folder: tempfile::TempDir,
    issued: std::cell::Cell<u8>,
}

/// The serial of every domain's intermediate.
pub(crate) const INTERMEDIATE: [u8; 2] = [0x11, 0x22];

/// What was issued, and its serial.
pub(crate) struct Issued {
    pub(crate) identity: Identity,
    pub(crate) serial: [u8; 2],
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn ca(name: &'static str, what: &str, path_len: u8) -> CertificateParams {
    let mut ca = CertificateParams::default();
    ca.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
    ca.not_after = ca.not_before + Duration::days(1);
    ca.serial_number = Some(SerialNumber::from_slice(&INTERMEDIATE));
    ca.distinguished_name = DistinguishedName::new();
    ca.distinguished_name
        .push(DnType::CommonName, format!("{name} {what}"));
    ca.subject_alt_names = vec![uri(&format!("spiffe://{name}"))];
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.use_authority_key_identifier_extension = true;
    ca
}

impl Domain {
    pub(crate) fn new(name: &'static str) -> Self {
        let key = KeyPair::generate().unwrap();
        let same_key = KeyPair::from_pem(&key.serialize_pem()).unwrap();
        let anchor = CertifiedIssuer::self_signed(ca(name, "anchor", 1), key).unwrap();
        let mut root = ca(name, "root", 2);
        root.subject_alt_names.clear();
        let root = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
        let mut cross = ca(name, "anchor", 1);
        cross.serial_number = Some(SerialNumber::from_slice(&[0x11, 0x33]));
        let cross = cross.signed_by(&same_key, &root).unwrap().pem();
        let key = KeyPair::generate().unwrap();
        let intermediate =
            CertifiedIssuer::signed_by(ca(name, "intermediate", 0), key, &anchor).unwrap();
        Self {
            name,
            anchor,
            intermediate,
            root,
            cross,
            folder: tempfile::tempdir().unwrap(),
            issued: std::cell::Cell::new(0),
        }
    }

    /// Makes its bundle one that a cluster's gateway trusts.
    pub(crate) fn write_bundle(&self, cluster: &Cluster) {
        let path = cluster.svid().bundles.join(format!("{}.pem", self.name));
        write_atomically(&path, self.anchor.pem().as_bytes(), Access::Public).unwrap();
    }

    /// Its bundle as an endpoint serves it.
    pub(crate) fn document(&self, sequence: u64) -> String {
        let pem = self.anchor.pem();
        let x5c: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let key = serde_json::json!({ "use": "x509-svid", "kty": "EC", "x5c": [x5c] });
        serde_json::json!({ "keys": [key], "spiffe_sequence": sequence }).to_string()
    }

    /// As [`write_bundle`](Self::write_bundle), and the root is trusted as well.
    pub(crate) fn write_bundle_with_root(&self, cluster: &Cluster) {
        let path = cluster.svid().bundles.join(format!("{}.pem", self.name));
        let both = [self.anchor.pem(), self.root.pem()].concat();
        write_atomically(&path, both.as_bytes(), Access::Public).unwrap();
    }

    /// Puts the bundle of another CA in its place.
    pub(crate) fn write_other_bundle(&self, cluster: &Cluster) {
        Self::new(self.name).write_bundle(cluster);
    }

    /// An identity below the anchor, that trusts what the cluster's gateway trusts now.
    pub(crate) fn issue(&self, cluster: &Cluster, path: &str) -> Issued {
        self.issue_below(&self.anchor, "", cluster, path)
    }

    /// As [`issue`](Self::issue), with a serial that another issuer has used.
    pub(crate) fn issue_again(&self, cluster: &Cluster, path: &str, serial: [u8; 2]) -> Issued {
        self.issued.set(serial[1] - 1);
        let issued = self.issue(cluster, path);
        assert_eq!(issued.serial, serial);
        issued
    }

    /// As [`issue`](Self::issue), and shows the certificate that the root gave the anchor.
    pub(crate) fn issue_crossed(&self, cluster: &Cluster, path: &str) -> Issued {
        self.issue_below(&self.anchor, &self.cross, cluster, path)
    }

    /// An identity below the intermediate.
    pub(crate) fn issue_deep(&self, cluster: &Cluster, path: &str) -> Issued {
        let pem = self.intermediate.pem();
        self.issue_below(&self.intermediate, &pem, cluster, path)
    }

    fn issue_below(
        &self,
        issuer: &CertifiedIssuer<'static, KeyPair>,
        rest: &str,
        cluster: &Cluster,
        path: &str,
    ) -> Issued {
        let nth = self.issued.get() + 1;
        self.issued.set(nth);
        let serial = [0x4a, nth];
        let mut leaf = CertificateParams::default();
        leaf.not_before = OffsetDateTime::now_utc() - Duration::minutes(2);
        leaf.not_after = leaf.not_before + Duration::hours(1);
        leaf.serial_number = Some(SerialNumber::from_slice(&serial));
        leaf.distinguished_name = DistinguishedName::new();
        leaf.distinguished_name.push(DnType::CommonName, path);
        leaf.subject_alt_names = vec![uri(&format!("spiffe://{}/{path}", self.name))];
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = leaf.signed_by(&key, issuer).unwrap();
        let files = SvidFiles {
            certificate: self.folder.path().join(format!("{nth}.pem")),
            key: self.folder.path().join(format!("{nth}.key")),
            bundles: cluster.svid().bundles,
            crls: None,
            denied: None,
            domains: Vec::new(),
            own: None,
        };
        let chain = format!("{}{rest}", certificate.pem());
        write_atomically(&files.certificate, chain.as_bytes(), Access::Public).unwrap();
        write_atomically(&files.key, key.serialize_pem().as_bytes(), Access::Secret).unwrap();
        Issued {
            identity: Identity::load(&files),
            serial,
        }
    }

    /// Gives a cluster's gateway a certificate that began and ends so long from now, and this anchor
    /// alone in place of its trust domain's.
    pub(crate) fn certify(&self, cluster: &Cluster, began: Duration, ends: Duration) {
        let mut leaf = CertificateParams::default();
        leaf.not_before = OffsetDateTime::now_utc() + began;
        leaf.not_after = OffsetDateTime::now_utc() + ends;
        leaf.serial_number = Some(SerialNumber::from_slice(&[0x4b, 1]));
        leaf.distinguished_name = DistinguishedName::new();
        leaf.subject_alt_names = vec![uri(&cluster.gateway_id())];
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().unwrap();
        let certificate = leaf.signed_by(&key, &self.anchor).unwrap().pem();
        let files = cluster.svid();
        write_atomically(&files.certificate, certificate.as_bytes(), Access::Public).unwrap();
        write_atomically(&files.key, key.serialize_pem().as_bytes(), Access::Secret).unwrap();
        fs::remove_file(files.bundles.join(format!("{}.json", self.name))).unwrap();
        self.write_bundle(cluster);
    }

    /// The intermediate's certificate, as PEM.
    pub(crate) fn intermediate(&self) -> String {
        self.intermediate.pem()
    }

    /// A CRL of the anchor, as PEM; due in `due` from now.
    pub(crate) fn crl(&self, number: u64, serials: &[[u8; 2]], due: Duration) -> String {
        Self::crl_of(&self.anchor, number, serials, due)
    }

    /// A CRL of the intermediate.
    pub(crate) fn crl_deep(&self, number: u64, serials: &[[u8; 2]], due: Duration) -> String {
        Self::crl_of(&self.intermediate, number, serials, due)
    }

    fn crl_of(
        issuer: &CertifiedIssuer<'static, KeyPair>,
        number: u64,
        serials: &[[u8; 2]],
        due: Duration,
    ) -> String {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &[u8; 2]| RevokedCertParams {
            serial_number: SerialNumber::from_slice(serial),
            revocation_time: now - Duration::minutes(1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now + due.min(Duration::ZERO) - Duration::hours(1),
            next_update: now + due,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(issuer).unwrap().pem().unwrap()
    }

    /// Gives a cluster's gateway a CRL, at once.
    pub(crate) fn write_crl(&self, folder: &Path, pem: &str) {
        fs::create_dir_all(folder).unwrap();
        let path = folder.join(format!("{}.pem", self.name));
        write_atomically(&path, pem.as_bytes(), Access::Public).unwrap();
    }
}
