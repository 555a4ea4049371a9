//! Certificates for peers, made here with rcgen and not by our CA, so that what we say to a peer
//! is not judged by what we made ourselves: a shared root, and for each trust domain one issuer
//! key with a cross certificate and a self-signed anchor.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

/// A root that several trust domains share.
pub(crate) struct Root {
    folder: PathBuf,
    /// The file with its certificate.
    pub(crate) certificate: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// One trust domain, to issue for.
pub(crate) struct Domain {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    cross: String,
    /// The same, to verify by.
    pub(crate) trust: Trust,
}

/// One trust domain, to verify by.
#[derive(Debug, Clone)]
pub(crate) struct Trust {
    /// Its name.
    pub(crate) name: String,
    /// The file with its anchor, the self-signed certificate of its issuer.
    pub(crate) anchor: PathBuf,
}

/// A certificate on files.
#[derive(Debug, Clone)]
pub(crate) struct Svid {
    /// The SPIFFE ID it proves.
    pub(crate) id: String,
    /// The leaf and the cross certificate, PEM.
    pub(crate) certificate: PathBuf,
    /// PKCS#8, PEM.
    pub(crate) key: PathBuf,
}

impl Root {
    /// A new root, with its files in a folder `pki` of `folder`.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let folder = folder.join("pki");
        fs::create_dir_all(&folder)?;
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384)?;
        let params = authority("test root", 2)?;
        let certificate = folder.join("root.pem");
        fs::write(&certificate, params.self_signed(&key)?.pem())?;
        Ok(Self {
            folder,
            certificate,
            issuer: Issuer::new(params, key),
        })
    }

    /// A trust domain under this root.
    pub(crate) fn domain(&self, name: &str) -> Result<Domain> {
        let key = KeyPair::generate()?;
        let mut params = authority(&format!("{name} issuer"), 0)?;
        params
            .subject_alt_names
            .push(SanType::URI(format!("spiffe://{name}").try_into()?));
        let anchor = self.folder.join(format!("{name}.pem"));
        fs::write(&anchor, params.self_signed(&key)?.pem())?;
        Ok(Domain {
            folder: self.folder.clone(),
            cross: params.signed_by(&key, &self.issuer)?.pem(),
            issuer: Issuer::new(params, key),
            trust: Trust {
                name: name.to_owned(),
                anchor,
            },
        })
    }
}

impl Domain {
    /// An SVID for the workload at `path`, which begins with `/`.
    pub(crate) fn svid(&self, path: &str) -> Result<Svid> {
        let id = format!("spiffe://{}{path}", self.trust.name);
        let key = KeyPair::generate()?;
        let mut params = base()?;
        params
            .subject_alt_names
            .push(SanType::URI(id.clone().try_into()?));
        // X.509-SVID §4.3: Envoy's SPIFFE validator refuses a leaf without keyUsage.
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key, &self.issuer)?.pem();
        let stem = format!("{}{}", self.trust.name, path.replace('/', "-"));
        let svid = Svid {
            id,
            certificate: self.folder.join(format!("{stem}.crt")),
            key: self.folder.join(format!("{stem}.key")),
        };
        fs::write(&svid.certificate, format!("{leaf}{}", self.cross))?;
        fs::write(&svid.key, key.serialize_pem())?;
        // C5: a key that others can read is refused.
        fs::set_permissions(&svid.key, fs::Permissions::from_mode(0o600))?;
        Ok(svid)
    }
}

fn authority(name: &str, path_len: u8) -> Result<CertificateParams> {
    let mut params = base()?;
    params
        .distinguished_name
        .push(DnType::CommonName, name.to_owned());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn base() -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.not_before = OffsetDateTime::now_utc() - Duration::from_secs(120);
    params.not_after = OffsetDateTime::now_utc() + Duration::from_secs(3600);
    Ok(params)
}
