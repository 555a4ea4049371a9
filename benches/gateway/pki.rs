//! Certificates: a P-256 issuer for each of two trust domains, itself the anchor, and P-256 leaves
//! it signed, so that every proxy verifies a chain of one signature.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// How long certificates last; longer than any run.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// An issuer on files, from which any process of the run can issue.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Domain {
    name: String,
    key: PathBuf,
    /// The self-signed certificate, PEM.
    pub(crate) anchor: PathBuf,
}

/// A leaf on files.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Svid {
    /// Its SPIFFE ID.
    pub(crate) id: String,
    /// PEM.
    pub(crate) certificate: PathBuf,
    /// PKCS#8, PEM.
    pub(crate) key: PathBuf,
    /// Certificate and key in one file, as HAProxy wants them.
    pub(crate) both: PathBuf,
}

impl Domain {
    /// A new issuer, with its files in `folder`.
    pub(crate) fn new(folder: &Path, name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let this = Self {
            name: name.to_owned(),
            key: folder.join(format!("{name}.issuer.key")),
            anchor: folder.join(format!("{name}.pem")),
        };
        fs::write(&this.key, key.serialize_pem())?;
        fs::write(&this.anchor, this.issuer_params()?.self_signed(&key)?.pem())?;
        Ok(this)
    }

    fn issuer_params(&self) -> Result<CertificateParams> {
        let mut params = base()?;
        let name = format!("{} issuer", self.name);
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names =
            vec![SanType::URI(format!("spiffe://{}", self.name).try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>> {
        let key = KeyPair::from_pem(&fs::read_to_string(&self.key)?)?;
        Ok(Issuer::new(self.issuer_params()?, key))
    }

    /// Issues `count` leaves for one ID over one key: they differ in their serial numbers.
    pub(crate) fn leaves(
        &self,
        path: &str,
        key: &KeyPair,
        count: usize,
    ) -> Result<Vec<CertificateDer<'static>>> {
        let issuer = self.issuer()?;
        let mut params = self.leaf_params(path, None)?;
        (0..count)
            .map(|_| {
                params.serial_number = Some(serial());
                Ok(params.signed_by(key, &issuer)?.der().clone())
            })
            .collect()
    }

    fn leaf_params(&self, path: &str, dns: Option<&str>) -> Result<CertificateParams> {
        let mut params = base()?;
        let id = format!("spiffe://{}{path}", self.name);
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        if let Some(dns) = dns {
            params
                .subject_alt_names
                .push(SanType::DnsName(dns.try_into()?));
        }
        // X.509-SVID §4.3: keyUsage must be there.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    /// A leaf on files beside the issuer's; `dns` for proxies that know servers by DNS names only.
    pub(crate) fn svid(&self, path: &str, dns: Option<&str>) -> Result<Svid> {
        let key = KeyPair::generate()?;
        let mut params = self.leaf_params(path, dns)?;
        params.serial_number = Some(serial());
        let certificate = params.signed_by(&key, &self.issuer()?)?.pem();
        let folder = self.anchor.parent().context("the anchor's folder")?;
        let stem = format!("{}{}", self.name, path.replace('/', "-"));
        let svid = Svid {
            id: format!("spiffe://{}{path}", self.name),
            certificate: folder.join(format!("{stem}.crt")),
            key: folder.join(format!("{stem}.key")),
            both: folder.join(format!("{stem}.both")),
        };
        fs::write(&svid.certificate, &certificate)?;
        for (file, text) in [
            (&svid.key, key.serialize_pem()),
            (&svid.both, format!("{certificate}{}", key.serialize_pem())),
        ] {
            fs::write(file, text)?;
            // The gateway refuses a key that others can read.
            fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        }
        Ok(svid)
    }
}

fn serial() -> SerialNumber {
    // RFC 5280 §4.1.2.2: positive.
    let mut bytes = fastrand::u128(..).to_be_bytes();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn base() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(300);
    params.not_after = OffsetDateTime::now_utc() + LIFETIME;
    Ok(params)
}
