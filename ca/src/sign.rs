//! Signing a template: the one place where a private key of the authority is used.

use rcgen::{Issuer, PublicKeyData};
use rustls_pki_types::CertificateDer;

use crate::keys::SigningKey;
use crate::template::{AuthorityKeyId, Template};

/// Who signs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Signer<'a> {
    /// The subject itself.
    Itself(&'a SigningKey),
    /// An authority above it.
    Above {
        key: &'a SigningKey,
        certificate: &'a CertificateDer<'static>,
    },
}

impl Signer<'_> {
    pub(crate) fn key_id(&self) -> String {
        match self {
            Self::Itself(key) | Self::Above { key, .. } => key.id(),
        }
    }
}

/// Signs; the result is not to be released before [`crate::check`] has seen it.
pub(crate) fn sign(
    template: &Template,
    subject: &impl PublicKeyData,
    signer: Signer<'_>,
) -> Result<CertificateDer<'static>, rcgen::Error> {
    let certificate = match signer {
        Signer::Itself(key) => template
            .params(AuthorityKeyId::Absent)?
            .self_signed(key.pair())?,
        Signer::Above { key, certificate } => {
            let issuer = Issuer::from_ca_cert_der(certificate, key.pair())?;
            template
                .params(AuthorityKeyId::Present)?
                .signed_by(subject, &issuer)?
        }
    };
    Ok(certificate.der().clone())
}
