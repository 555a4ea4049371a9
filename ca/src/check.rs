//! The last look before a certificate leaves: our own DER, parsed again by another library, held to
//! every rule a certificate of its kind must meet.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, ParsedExtension, X509Certificate};
use zeugma_core::svid::{self, Origin, Violation};

use crate::template::{Profile, Template};

/// A certificate of ours that must not be released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Finding {
    /// It breaks a rule.
    #[error("the certificate just signed breaks a rule; it was not released, please report this")]
    Rule(#[from] Violation),
    /// It is not what was asked for.
    #[error(
        "the certificate just signed is not what was asked for: {0}; it was not released, please report this"
    )]
    Other(&'static str),
}

/// Holds a signed certificate to its template, its key, its signer and the rules.
///
/// `issuer` is the signer's certificate; none for a self-signed one.
pub(crate) fn check(
    der: &CertificateDer<'_>,
    template: &Template,
    subject_public_key: &[u8],
    issuer: Option<&CertificateDer<'_>>,
) -> Result<(), Finding> {
    match (&template.profile, issuer) {
        (Profile::Root { .. }, _) => {
            svid::check_root(der)?;
        }
        (Profile::Issuer { domain, .. }, None) => {
            svid::check_anchor(der, domain, Origin::Issued)?;
        }
        (Profile::Issuer { domain, .. }, Some(_)) => {
            svid::check_issuer(der, domain, Origin::Issued)?;
        }
        (Profile::Leaf { id, .. }, _) => {
            if svid::check_leaf(der, Origin::Issued)?.id != *id {
                return Err(Finding::Other("its SPIFFE ID is another"));
            }
        }
    }
    let certificate = parse(der)?;
    check_fields(&certificate, template, subject_public_key)?;
    let Some(issuer) = issuer else {
        return certificate
            .verify_signature(None)
            .map_err(|_| Finding::Other("its signature does not verify under its own key"));
    };
    svid::check_issued_by(der, issuer)?;
    check_key_id_alone(&certificate)?;
    certificate
        .verify_signature(Some(parse(issuer)?.public_key()))
        .map_err(|_| Finding::Other("its signature does not verify under the signer's key"))
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Finding> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Finding::Other("it does not parse")),
    }
}

/// What the rules cannot know: the fields are those of the template.
fn check_fields(
    certificate: &X509Certificate<'_>,
    template: &Template,
    subject_public_key: &[u8],
) -> Result<(), Finding> {
    let asked = template.serial.bytes();
    // DER has no leading zeros but the one that keeps the number positive.
    let strip =
        |bytes: &[u8]| -> Vec<u8> { bytes.iter().copied().skip_while(|b| *b == 0).collect() };
    if strip(certificate.raw_serial()) != strip(asked) {
        return Err(Finding::Other("its serial is another"));
    }
    let validity = certificate.validity();
    if validity.not_before.timestamp() != template.validity.not_before.unix_timestamp()
        || validity.not_after.timestamp() != template.validity.not_after.unix_timestamp()
    {
        return Err(Finding::Other("its validity is another"));
    }
    if certificate.public_key().raw != subject_public_key {
        return Err(Finding::Other("its public key is another"));
    }
    let asked: &[String] = match &template.profile {
        Profile::Leaf { dns_names, .. } => dns_names,
        Profile::Root { .. } | Profile::Issuer { .. } => &[],
    };
    if dns_names(certificate) != asked {
        return Err(Finding::Other("its DNS names are others (XL12)"));
    }
    Ok(())
}

/// The DNS names among the subject's alternative names, in order.
pub(crate) fn dns_names<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    certificate
        .subject_alternative_name()
        .ok()
        .flatten()
        .map(|san| &san.value.general_names)
        .into_iter()
        .flatten()
        .filter_map(|name| {
            if let GeneralName::DNSName(name) = name {
                Some(*name)
            } else {
                None
            }
        })
        .collect()
}

/// The key id alone, no issuer and serial: an issuer has two certificates and both must fit.
fn check_key_id_alone(certificate: &X509Certificate<'_>) -> Result<(), Finding> {
    let alone = certificate.iter_extensions().any(|extension| {
        matches!(extension.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(id)
            if id.authority_cert_issuer.is_none() && id.authority_cert_serial.is_none())
    });
    if alone {
        Ok(())
    } else {
        Err(Finding::Other(
            "its authority key identifier names more than a key",
        ))
    }
}
