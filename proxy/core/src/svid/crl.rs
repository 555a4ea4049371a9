//! Certificate revocation lists: parsed once, with what a signature check and lookups need.

use std::collections::BTreeSet;

use x509_parser::asn1_rs::Any;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::x509::X509Version;

use super::{SERIAL_OCTETS_MAX, Serial};

/// Why a CRL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// It is not DER of a CRL.
    #[error("not a CRL: {0}")]
    Malformed(String),
    /// R9: it is not version 2.
    #[error("not a version 2 CRL (R9)")]
    Version,
    /// R9: it has no crlNumber, or one over 20 octets (RFC 5280 §5.2.3).
    #[error("no crlNumber of 1 to {SERIAL_OCTETS_MAX} octets (R9)")]
    Number,
    /// R9: it has no nextUpdate.
    #[error("no nextUpdate (R9)")]
    NextUpdate,
    /// It has a critical extension: a delta, an indirect or a partial CRL, or one we do not know.
    #[error("the critical extension {0} is not supported; give a full and direct CRL")]
    Critical(String),
    /// It lists too many certificates.
    #[error("over {0} entries; let entries of expired certificates fall away")]
    TooMany(usize),
}

/// The signed part of a certificate or a CRL, which have the same form (RFC 5280 §4.1, §5.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<'a> {
    /// The bytes that are signed.
    pub bytes: &'a [u8],
    /// The content of the signature's algorithm identifier.
    pub algorithm: &'a [u8],
    /// The signature.
    pub signature: Box<[u8]>,
}

impl<'a> Signed<'a> {
    pub(super) fn split(der: &'a [u8], signed_bytes: usize, signature: &[u8]) -> Option<Self> {
        let (bytes, rest) = content(der)?.split_at_checked(signed_bytes)?;
        Some(Self {
            bytes,
            algorithm: content(rest)?,
            signature: signature.into(),
        })
    }
}

/// What a CRL says. Whether its signature is right is for the TLS library to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrlFacts<'a> {
    /// The issuer, as its DER bytes.
    pub issuer: Box<[u8]>,
    /// What its issuer signed, and how.
    pub signed: Signed<'a>,
    /// When it was issued, in Unix seconds.
    pub this_update: i64,
    /// When a newer one comes at the latest, in Unix seconds.
    pub next_update: i64,
    /// Its number, big-endian without leading zeros: a later CRL has a greater one.
    pub number: Box<[u8]>,
    /// The serials it lists.
    pub serials: BTreeSet<Serial>,
}

impl<'a> CrlFacts<'a> {
    /// Parses one CRL of at most `entries_max` entries, whole: trailing bytes are refused.
    ///
    /// # Errors
    /// As [`CrlError`].
    pub fn parse(der: &'a [u8], entries_max: usize) -> Result<Self, CrlError> {
        let malformed = |what: &str| CrlError::Malformed(what.to_owned());
        let (rest, crl) = CertificateRevocationList::from_der(der)
            .map_err(|error| CrlError::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow it"));
        }
        let tbs = &crl.tbs_cert_list;
        if tbs.version != Some(X509Version::V2) {
            return Err(CrlError::Version);
        }
        let mut number = None;
        for extension in tbs.extensions() {
            if extension.critical {
                return Err(CrlError::Critical(extension.oid.to_id_string()));
            }
            if let ParsedExtension::CRLNumber(n) = extension.parsed_extension() {
                number = Some(n.to_bytes_be().into_boxed_slice());
            }
        }
        let number = number
            .filter(|octets| octets.len() <= SERIAL_OCTETS_MAX)
            .ok_or(CrlError::Number)?;
        let next_update = tbs.next_update.ok_or(CrlError::NextUpdate)?;
        if tbs.revoked_certificates.len() > entries_max {
            return Err(CrlError::TooMany(entries_max));
        }
        for entry in &tbs.revoked_certificates {
            if let Some(critical) = entry.extensions().iter().find(|e| e.critical) {
                return Err(CrlError::Critical(critical.oid.to_id_string()));
            }
        }
        let serials = tbs.revoked_certificates.iter();
        let serials = serials.map(|entry| Serial(entry.raw_serial().into()));
        let signed = Signed::split(der, tbs.as_ref().len(), &crl.signature_value.data)
            .ok_or_else(|| malformed("no signature"))?;
        Ok(Self {
            issuer: tbs.issuer.as_raw().into(),
            signed,
            this_update: tbs.this_update.timestamp(),
            next_update: next_update.timestamp(),
            number,
            serials: serials.collect(),
        })
    }
}

/// The content of the first DER element.
pub(super) fn content(der: &[u8]) -> Option<&[u8]> {
    Some(Any::from_der(der).ok()?.1.data)
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
        KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
    };

    use super::*;
    use crate::svid::Certificate;

    fn crl(serials: &[u8]) -> Vec<u8> {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = Issuer::new(ca, KeyPair::generate().unwrap());
        let revoked = |serial: &u8| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[0x7f, *serial]),
            revocation_time: date_time_ymd(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2026, 1, 2),
            crl_number: SerialNumber::from(258),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&issuer).unwrap().der().to_vec()
    }

    #[test]
    fn a_crl_yields_what_it_lists_and_what_is_signed() {
        let der = crl(&[1, 2]);
        let facts = CrlFacts::parse(&der, 2).unwrap();
        // `date -u -d 2026-01-01 +%s`, and a day later.
        assert_eq!(
            (facts.this_update, facts.next_update),
            (1_767_225_600, 1_767_312_000)
        );
        assert_eq!(&*facts.number, &[1, 2]);
        let serials: Vec<String> = facts.serials.iter().map(ToString::to_string).collect();
        assert_eq!(serials, ["7f01", "7f02"]);
        // RFC 5758 §3.2: ecdsa-with-SHA256, 1.2.840.10045.4.3.2.
        assert_eq!(
            facts.signed.algorithm,
            [6, 8, 42, 134, 72, 206, 61, 4, 3, 2]
        );
        assert_eq!(facts.signed.bytes.first(), Some(&0x30));
        assert_eq!(CrlFacts::parse(&der, 1), Err(CrlError::TooMany(1)));
    }

    #[test]
    fn what_is_cut_or_changed_never_panics() {
        let der = crl(&[1, 2, 3]);
        for end in 0..der.len() {
            assert!(CrlFacts::parse(&der[..end], 9).is_err());
        }
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 0x55;
            drop(CrlFacts::parse(&changed, 9));
        }
        assert!(Certificate::parse(&der).is_err());
    }
}
