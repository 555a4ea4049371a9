//! The last look before a certificate leaves: our own DER, parsed again by another library, held to
//! every rule a certificate of its kind must meet.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, ParsedExtension, X509Certificate, X509Version};

use crate::template::{Profile, Template};

/// A rule that a certificate of ours would break; it is not released.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the certificate just signed breaks rule {rule}: {what}; it was not released, please report this"
)]
pub struct Finding {
    /// The rule's id, such as `XL7` or `R5`.
    pub rule: String,
    /// What was found.
    pub what: String,
}

fn finding<T>(rule: &str, what: impl Into<String>) -> Result<T, Finding> {
    Err(Finding {
        rule: rule.to_owned(),
        what: what.into(),
    })
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
    let certificate = parse(der)?;
    check_fields(&certificate, template, subject_public_key)?;
    match issuer {
        Some(issuer) => check_against_issuer(&certificate, &parse(issuer)?)?,
        None => check_self_signed(&certificate)?,
    }
    match &template.profile {
        Profile::Leaf { .. } => Ok(()),
        Profile::Root { .. } | Profile::Issuer { .. } => check_authority(&certificate),
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Finding> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => finding("R1", "bytes follow the certificate"),
        Err(error) => finding("R1", format!("it does not parse: {error}")),
    }
}

fn check_fields(
    certificate: &X509Certificate<'_>,
    template: &Template,
    subject_public_key: &[u8],
) -> Result<(), Finding> {
    if certificate.version() != X509Version::V3 {
        return finding("R1", "it is not version 3");
    }
    let serial = certificate.raw_serial();
    let asked: Vec<u8> = {
        let bytes = template.serial.bytes();
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        bytes.get(zeros..).unwrap_or_default().to_vec()
    };
    let unsigned = match serial {
        [0, rest @ ..] => rest,
        all => all,
    };
    if serial.len() > 20 || serial.first().is_none_or(|b| b & 0x80 != 0) || unsigned != asked {
        return finding("R2", "its serial is not the positive one that was drawn");
    }
    let validity = certificate.validity();
    if validity.not_before.timestamp() != template.validity.not_before.unix_timestamp()
        || validity.not_after.timestamp() != template.validity.not_after.unix_timestamp()
        || validity.not_before >= validity.not_after
    {
        return finding("R3", "its validity is not the one that was asked for");
    }
    for time in [validity.not_before, validity.not_after] {
        if time.is_utctime() != (time.to_datetime().year() < 2050) {
            return finding(
                "R3",
                "a date before 2050 is UTCTime, a later one GeneralizedTime",
            );
        }
    }
    if certificate.public_key().raw != subject_public_key {
        return finding("R4", "its public key is not the one that was asked for");
    }
    Ok(())
}

fn check_against_issuer(
    certificate: &X509Certificate<'_>,
    issuer: &X509Certificate<'_>,
) -> Result<(), Finding> {
    if certificate.issuer().as_raw() != issuer.subject().as_raw() {
        return finding(
            "R12",
            "its issuer is not byte for byte the signer's subject",
        );
    }
    let key_id = subject_key_id(issuer);
    let named =
        certificate
            .iter_extensions()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(aki) => Some((extension.critical, aki)),
                _ => None,
            });
    match named {
        Some((false, aki))
            if aki.authority_cert_issuer.is_none()
                && aki.authority_cert_serial.is_none()
                && key_id.is_some()
                && aki.key_identifier.as_ref().map(|id| id.0) == key_id => {}
        _ => {
            return finding(
                "R5",
                "its authority key identifier is not the signer's key id alone",
            );
        }
    }
    if certificate.validity().not_after > issuer.validity().not_after {
        return finding("XC10", "it outlives its signer");
    }
    certificate
        .verify_signature(Some(issuer.public_key()))
        .or_else(|_| finding("R4", "its signature does not verify under the signer's key"))
}

fn check_self_signed(certificate: &X509Certificate<'_>) -> Result<(), Finding> {
    if certificate.issuer().as_raw() != certificate.subject().as_raw() {
        return finding("R12", "its issuer is not byte for byte its subject");
    }
    certificate
        .verify_signature(None)
        .or_else(|_| finding("R4", "its signature does not verify under its own key"))
}

fn check_authority(certificate: &X509Certificate<'_>) -> Result<(), Finding> {
    if certificate.subject().iter().next().is_none() {
        return finding("XC7", "its subject is empty");
    }
    if subject_key_id(certificate).is_none() {
        return finding("R6", "it has no subject key identifier");
    }
    Ok(())
}

fn subject_key_id<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate
        .iter_extensions()
        .find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) if !extension.critical => Some(id.0),
            _ => None,
        })
}
