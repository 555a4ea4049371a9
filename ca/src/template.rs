//! What a certificate of ours says, before it is signed: the only way to rcgen's parameters.
//!
//! rcgen's own defaults are not used anywhere: its serial is a hash of the key, its notAfter the
//! year 4096, its leaf has no keyUsage.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;
use zeugma_core::identity::{SpiffeId, TrustDomain};

use crate::policy::BACKDATE;

/// pathLen of the root: 2, so that a future root can be bridged (XC9).
pub(crate) const ROOT_PATH_LEN: u8 = 2;
/// pathLen of an issuer (XC9).
pub(crate) const ISSUER_PATH_LEN: u8 = 0;

/// A certificate's serial number: positive, 127 random bits (R2), of which the first three are not all
/// zero, so that everybody prints the same 32 digits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Serial([u8; 16]);

impl Serial {
    /// Draws one from the operating system's generator.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0u8; 16];
        loop {
            getrandom::fill(&mut bytes)?;
            let [first, ..] = &mut bytes;
            // RFC 5280 §4.1.2.2: positive, so the sign bit is clear.
            *first &= 0x7f;
            // DER drops leading zeros, and so do those who print what it holds, or a number.
            if *first >= 0x10 {
                return Ok(Self(bytes));
            }
        }
    }

    /// The number in hexadecimal, big-endian, all 32 digits.
    pub(crate) fn hex(&self) -> String {
        crate::files::hex(&self.0)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// From when until when, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

impl Validity {
    /// Valid for `ttl` from `now`, backdated for slow clocks (C3).
    ///
    /// `None` when the end lies beyond what a date can say.
    pub(crate) fn starting(now: OffsetDateTime, ttl: std::time::Duration) -> Option<Self> {
        let now = now.replace_nanosecond(0).unwrap_or(now);
        Some(Self {
            not_before: now.checked_sub(BACKDATE.try_into().ok()?)?,
            not_after: now.checked_add(ttl.try_into().ok()?)?,
        })
    }
}

/// Which of the three certificates of ours this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Profile {
    /// The shared root.
    Root {
        /// Of the root's own key.
        key_id: String,
    },
    /// An issuer's certificate, cross-signed or self-signed: the two differ only in their signer.
    Issuer {
        /// Whose IDs it issues.
        domain: TrustDomain,
        /// Of the issuer's own key.
        key_id: String,
    },
    /// A workload's or gateway's SVID.
    Leaf {
        /// Whose it is.
        id: SpiffeId,
        /// DNS names beside it.
        dns_names: Vec<String>,
    },
}

/// A certificate to be signed.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    pub(crate) profile: Profile,
    pub(crate) serial: Serial,
    pub(crate) validity: Validity,
}

impl Template {
    /// Whether the certificate names its issuer's key: all but self-signed ones do (R5).
    pub(crate) fn params(&self, aki: AuthorityKeyId) -> Result<CertificateParams, rcgen::Error> {
        let mut params = CertificateParams::default();
        params.not_before = self.validity.not_before;
        params.not_after = self.validity.not_after;
        params.serial_number = Some(SerialNumber::from_slice(self.serial.bytes()));
        params.distinguished_name = self.profile.subject();
        params.subject_alt_names = self.profile.alt_names()?;
        params.use_authority_key_identifier_extension = aki == AuthorityKeyId::Present;
        params.key_identifier_method = KeyIdMethod::Sha256;
        match &self.profile {
            Profile::Root { .. } => {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(ROOT_PATH_LEN));
                params.key_usages = CA_KEY_USAGES.to_vec();
            }
            Profile::Issuer { .. } => {
                params.is_ca = IsCa::Ca(BasicConstraints::Constrained(ISSUER_PATH_LEN));
                params.key_usages = CA_KEY_USAGES.to_vec();
            }
            Profile::Leaf { .. } => {
                params.is_ca = IsCa::ExplicitNoCa;
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                params.extended_key_usages = vec![
                    ExtendedKeyUsagePurpose::ServerAuth,
                    ExtendedKeyUsagePurpose::ClientAuth,
                ];
            }
        }
        Ok(params)
    }
}

/// Whether a certificate carries an authority key identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthorityKeyId {
    /// Signed by another key.
    Present,
    /// Self-signed.
    Absent,
}

// X.509-SVID Appendix A (XC6): digitalSignature "if and only if leaf".
const CA_KEY_USAGES: [KeyUsagePurpose; 2] =
    [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];

impl Profile {
    /// XC7: a CA's subject is never empty and distinct per key; XL12: a leaf's says nothing.
    fn subject(&self) -> DistinguishedName {
        let common_name = match self {
            Self::Root { key_id } => format!("zeugma root {}", short(key_id)),
            Self::Issuer { domain, key_id } => {
                format!("{} issuer {}", shortened(domain.as_str()), short(key_id))
            }
            Self::Leaf { .. } => return DistinguishedName::new(),
        };
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, DnValue::Utf8String(common_name));
        subject
    }

    fn alt_names(&self) -> Result<Vec<SanType>, rcgen::Error> {
        match self {
            Self::Root { .. } => Ok(Vec::new()),
            Self::Issuer { domain, .. } => Ok(vec![SanType::URI(domain.id().as_str().try_into()?)]),
            Self::Leaf { id, dns_names } => {
                let mut names = vec![SanType::URI(id.as_str().try_into()?)];
                for name in dns_names {
                    names.push(SanType::DnsName(name.as_str().try_into()?));
                }
                Ok(names)
            }
        }
    }
}

/// The first 16 digits of a key id: 64 bits, enough to tell one authority's keys apart.
pub(crate) fn short(key_id: &str) -> &str {
    key_id.get(..16).unwrap_or(key_id)
}

/// RFC 5280 Appendix A.1 ends a common name at 64 characters: 40 + " issuer " + 16.
fn shortened(domain: &str) -> String {
    match domain.get(..37) {
        Some(head) if domain.len() > 40 => format!("{head}..."),
        _ => domain.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r2_serials_are_positive_and_do_not_repeat() {
        let drawn: std::collections::BTreeSet<String> = (0..10_000)
            .map(|_| {
                let serial = Serial::random().unwrap();
                assert!((0x10..0x80).contains(&serial.bytes()[0]), "{serial:?}");
                serial.hex()
            })
            .collect();
        assert_eq!(drawn.len(), 10_000);
    }

    #[test]
    fn xc7_a_subject_fits_64_characters_whatever_the_trust_domain() {
        for bytes in [1, 40, 41, 200] {
            let domain = TrustDomain::parse(&"a".repeat(bytes)).unwrap();
            let profile = Profile::Issuer {
                domain,
                key_id: "0".repeat(40),
            };
            let subject = profile.subject();
            let Some(DnValue::Utf8String(name)) = subject.get(&DnType::CommonName) else {
                panic!("no common name");
            };
            assert!(name.len() <= 64, "{name}");
        }
    }

    #[test]
    fn c3_a_validity_begins_120_seconds_ago() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let validity = Validity::starting(now, std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(validity.not_before.unix_timestamp(), 1_799_999_880);
        assert_eq!(validity.not_after.unix_timestamp(), 1_800_000_060);
    }
}
