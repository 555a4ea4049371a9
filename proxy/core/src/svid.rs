//! What an X.509-SVID and the CA certificates above it must look like, rule by rule.
//!
//! One certificate at a time and without cryptography: signatures and the search for a path belong
//! to the TLS library, and are done in the shell. The CA holds its own output to the same functions
//! before it releases it ([`Origin::Issued`]), the gateway what a peer presents
//! ([`Origin::Presented`]).

mod certificate;
mod crl;
mod key;
mod rule;

use std::fmt;

pub use certificate::Certificate;
pub use crl::{CrlError, CrlFacts, Signed};
pub use rule::Rule;

use crate::identity::{SpiffeId, TrustDomain};

/// The longest serial, in octets (RFC 5280 §4.1.2.2).
pub const SERIAL_OCTETS_MAX: usize = 20;
/// The most extensions of one certificate: finding a duplicate compares each with all before it.
pub const EXTENSIONS_MAX: usize = 64;
/// The largest pathLen of a root (XC9): so that a future root can be bridged.
pub const ROOT_PATH_LEN_MAX: u32 = 2;

/// One broken rule and what was found instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", rule.id())]
pub struct Violation {
    /// The rule.
    pub rule: Rule,
    /// What was found, for people.
    pub detail: String,
}

impl Violation {
    /// Says that `rule` is broken by `detail`.
    pub fn new(rule: Rule, detail: impl Into<String>) -> Self {
        Self {
            rule,
            detail: detail.into(),
        }
    }
}

/// Where a certificate comes from: what is tolerated of others is not tolerated of ourselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Our own CA made it: every rule holds, recommendations and our policy too.
    Issued,
    /// A peer or a bundle brought it: the rules that a verifier needs.
    Presented,
}

/// A serial number, as the octets of its DER integer.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// The big-endian octets.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What an accepted leaf says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafFacts {
    /// Who it is.
    pub id: SpiffeId,
    /// Its serial.
    pub serial: Serial,
    /// Start of validity, in Unix seconds.
    pub not_before: i64,
    /// End of validity, in Unix seconds.
    pub not_after: i64,
    /// Its subject key identifier.
    pub subject_key_id: Option<Box<[u8]>>,
    /// The key identifier of its issuer.
    pub authority_key_id: Option<Box<[u8]>>,
}

/// What an accepted CA certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerFacts {
    /// The trust domain it names; `None` where it names none.
    pub trust_domain: Option<TrustDomain>,
    /// Its serial.
    pub serial: Serial,
    /// Start of validity, in Unix seconds.
    pub not_before: i64,
    /// End of validity, in Unix seconds.
    pub not_after: i64,
    /// How many CA certificates may stand below it.
    pub path_len: Option<u32>,
    /// Its subject key identifier.
    pub subject_key_id: Option<Box<[u8]>>,
    /// The key identifier of its issuer.
    pub authority_key_id: Option<Box<[u8]>>,
}

/// Checks a leaf against every XL rule that concerns one certificate.
///
/// # Errors
/// The first broken rule.
pub fn check_leaf(der: &[u8], origin: Origin) -> Result<LeafFacts, Violation> {
    let leaf = Certificate::parse(der)?;
    let id = leaf.identity()?;
    leaf.check_leaf(origin)?;
    Ok(leaf.leaf_facts(id))
}

/// Checks a CA certificate that stands between a leaf of `domain` and its anchor.
///
/// # Errors
/// The first broken rule.
pub fn check_issuer(
    der: &[u8],
    domain: &TrustDomain,
    origin: Origin,
) -> Result<IssuerFacts, Violation> {
    Certificate::parse(der)?.check_issuer(domain, origin)
}

/// Checks an anchor of the bundle of `domain`.
///
/// # Errors
/// The first broken rule. A presented anchor may lack the URI SAN: the bundle says whose it is.
pub fn check_anchor(
    der: &[u8],
    domain: &TrustDomain,
    origin: Origin,
) -> Result<IssuerFacts, Violation> {
    Certificate::parse(der)?.check_anchor(domain, origin)
}

/// Checks a root of ours, which signs only issuers and is of no trust domain.
///
/// # Errors
/// The first broken rule.
pub fn check_root(der: &[u8]) -> Result<IssuerFacts, Violation> {
    Certificate::parse(der)?.check_root()
}

/// Checks that `child` names `issuer` as RFC 5280 asks (R5, R12) and does not outlive it (XC10).
///
/// # Errors
/// The first broken rule, or one of the certificates cannot be parsed.
pub fn check_issued_by(child: &[u8], issuer: &[u8]) -> Result<(), Violation> {
    let child = Certificate::parse(child)?;
    let issuer = Certificate::parse(issuer)?;
    if child.issuer() != issuer.subject() {
        let detail = "the issuer field is not the issuer's subject, byte by byte";
        return Err(Violation::new(Rule::R12, detail));
    }
    if child.authority_key_id().is_none() || child.authority_key_id() != issuer.subject_key_id() {
        let detail = "the authority key identifier is not the issuer's subject key identifier";
        return Err(Violation::new(Rule::R5, detail));
    }
    if child.not_after() > issuer.not_after() {
        let late = child.not_after().saturating_sub(issuer.not_after());
        let detail = format!("notAfter is {late} s after the issuer's");
        return Err(Violation::new(Rule::XC10, detail));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    // Rules that one certificate can break on its own; `tests/corpus` holds the whole list, at a port.

    use rcgen::{
        BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
        ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P521_SHA512,
        SanType, SerialNumber, date_time_ymd,
    };

    use super::certificate::check_serial;
    use super::*;

    const LEAF_ID: &str = "spiffe://east.example/ns/shop/sa/cart";

    fn east() -> TrustDomain {
        TrustDomain::parse("east.example").unwrap()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn leaf() -> CertificateParams {
        let mut leaf = CertificateParams::default();
        leaf.not_before = date_time_ymd(2026, 1, 1);
        leaf.not_after = date_time_ymd(2026, 1, 2);
        leaf.serial_number = Some(SerialNumber::from_slice(&[0x7f, 1, 2, 3]));
        leaf.distinguished_name = DistinguishedName::new();
        leaf.subject_alt_names = vec![uri(LEAF_ID)];
        leaf.is_ca = IsCa::ExplicitNoCa;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        leaf.use_authority_key_identifier_extension = true;
        leaf
    }

    fn ca(name: &str, path_len: u8) -> CertificateParams {
        let mut ca = CertificateParams::default();
        ca.not_before = date_time_ymd(2026, 1, 1);
        ca.not_after = date_time_ymd(2027, 1, 1);
        ca.serial_number = Some(SerialNumber::from_slice(&[0x11, 1]));
        ca.distinguished_name = DistinguishedName::new();
        ca.distinguished_name.push(DnType::CommonName, name);
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
        ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        ca
    }

    fn issuer() -> CertificateParams {
        let mut issuer = ca("east.example issuer", 0);
        issuer.subject_alt_names = vec![uri("spiffe://east.example")];
        issuer.use_authority_key_identifier_extension = true;
        issuer
    }

    /// Signs `params` with a fresh root called `root`.
    fn sign(params: &CertificateParams) -> Vec<u8> {
        let root_key = KeyPair::generate().unwrap();
        let root = Issuer::new(ca("root", 2), root_key);
        let key = KeyPair::generate().unwrap();
        params.signed_by(&key, &root).unwrap().der().to_vec()
    }

    fn self_sign(params: &CertificateParams) -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    fn rule<T: fmt::Debug>(result: Result<T, Violation>) -> Rule {
        result.unwrap_err().rule
    }

    fn extension(arc: u64, critical: bool, value: &[u8]) -> CustomExtension {
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, arc], value.to_vec());
        extension.set_criticality(critical);
        extension
    }

    #[test]
    fn a_fresh_leaf_of_ours_keeps_every_rule_and_yields_its_facts() {
        let facts = check_leaf(&sign(&leaf()), Origin::Issued).unwrap();
        assert_eq!(facts.id.as_str(), LEAF_ID);
        assert_eq!(facts.serial.to_string(), "7f010203");
        // `date -u -d 2026-01-01 +%s`, and a day later.
        assert_eq!(facts.not_before, 1_767_225_600);
        assert_eq!(facts.not_after, 1_767_312_000);
        assert!(facts.authority_key_id.is_some());
    }

    #[test]
    fn a_fresh_issuer_anchor_and_root_of_ours_keep_every_rule() {
        let cross = check_issuer(&sign(&issuer()), &east(), Origin::Issued).unwrap();
        assert_eq!(cross.trust_domain, Some(east()));
        assert_eq!(cross.path_len, Some(0));
        let anchor = check_anchor(&self_sign(&issuer()), &east(), Origin::Issued).unwrap();
        assert_eq!(anchor.trust_domain, Some(east()));
        let root = check_root(&self_sign(&ca("root", 2))).unwrap();
        assert_eq!(root.trust_domain, None);
    }

    #[test]
    fn each_leaf_rule_is_found_by_its_id() {
        type Change = fn(&mut CertificateParams);
        let changes: &[(Rule, Change)] = &[
            (Rule::XL1, |p| p.subject_alt_names.clear()),
            (Rule::XL1, |p| p.subject_alt_names.push(uri("spiffe://b/c"))),
            (Rule::XL1, |p| p.subject_alt_names.push(uri("https://b/c"))),
            (Rule::XL2, |p| {
                p.subject_alt_names = vec![uri("https://a/b")]
            }),
            (Rule::XL2, |p| {
                p.subject_alt_names = vec![uri("spiffe://A/b")];
            }),
            (Rule::XL2, |p| {
                p.subject_alt_names = vec![uri("spiffe://a/b/")];
            }),
            (Rule::XL3, |p| p.subject_alt_names = vec![uri("spiffe://a")]),
            (Rule::XL3, |p| {
                p.subject_alt_names = vec![uri("spiffe://a/")]
            }),
            (Rule::XL5, |p| {
                p.subject_alt_names.clear();
                p.custom_extensions = vec![extension(17, false, b"\x30\x0e\x86\x0cspiffe://a/b")];
            }),
            (Rule::XL6, |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            (Rule::XL7, |p| p.key_usages.clear()),
            (Rule::XL8, |p| {
                p.key_usages = vec![KeyUsagePurpose::KeyAgreement];
            }),
            (Rule::XL9, |p| {
                p.key_usages.push(KeyUsagePurpose::KeyCertSign);
            }),
            (Rule::XL9, |p| p.key_usages.push(KeyUsagePurpose::CrlSign)),
            (Rule::XL10, |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
            }),
            (Rule::XL10, |p| {
                p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            }),
            (Rule::XL11, |p| {
                p.extended_key_usages.push(ExtendedKeyUsagePurpose::Any);
            }),
            (Rule::XL13, |p| {
                p.key_usages.clear();
                p.custom_extensions = vec![extension(15, false, b"\x03\x02\x07\x80")];
            }),
            (Rule::R2, |p| {
                p.serial_number = Some(SerialNumber::from_slice(&[0x11; 21]));
            }),
            (Rule::R2, |p| {
                p.serial_number = Some(SerialNumber::from_slice(&[0]));
            }),
            (Rule::R3, |p| p.not_after = date_time_ymd(2025, 1, 1)),
            (Rule::R10, |p| {
                p.custom_extensions = vec![extension(36, true, b"\x30\x00")];
            }),
            (Rule::DuplicateExtension, |p| {
                p.custom_extensions = vec![extension(15, true, b"\x03\x02\x07\x80")];
            }),
            // A byte after the keyUsage, inside its extension.
            (Rule::Malformed, |p| {
                p.key_usages.clear();
                p.custom_extensions = vec![extension(15, true, b"\x03\x02\x07\x80\x00")];
            }),
        ];
        for (at, (expected, change)) in changes.iter().enumerate() {
            let mut params = leaf();
            change(&mut params);
            let result = check_leaf(&sign(&params), Origin::Presented);
            assert_eq!(rule(result), *expected, "change {at}");
        }
    }

    #[test]
    fn what_others_may_leave_out_our_own_leaf_may_not() {
        let mut no_usage = leaf();
        no_usage.extended_key_usages.clear();
        let der = sign(&no_usage);
        assert!(check_leaf(&der, Origin::Presented).is_ok());
        assert_eq!(rule(check_leaf(&der, Origin::Issued)), Rule::XL10);
        let mut no_issuer = leaf();
        no_issuer.use_authority_key_identifier_extension = false;
        let der = sign(&no_issuer);
        assert!(check_leaf(&der, Origin::Presented).is_ok());
        assert_eq!(rule(check_leaf(&der, Origin::Issued)), Rule::R5);
    }

    #[test]
    fn each_issuer_rule_is_found_by_its_id() {
        type Change = fn(&mut CertificateParams);
        let both = [Origin::Issued, Origin::Presented];
        let issued = [Origin::Issued];
        let changes: &[(Rule, &[Origin], Change)] = &[
            (Rule::XC1, &both, |p| p.is_ca = IsCa::ExplicitNoCa),
            (Rule::XC1, &both, |p| p.is_ca = IsCa::NoCa),
            (Rule::XC2, &both, |p| p.key_usages.clear()),
            (Rule::XC2, &both, |p| {
                p.key_usages = vec![KeyUsagePurpose::CrlSign];
            }),
            (Rule::XC3, &both, |p| p.subject_alt_names.clear()),
            (Rule::XC3, &both, |p| {
                p.subject_alt_names = vec![uri("spiffe://east.example/ca")];
            }),
            (Rule::XC3, &both, |p| {
                p.subject_alt_names.push(uri("spiffe://west.example"));
            }),
            (Rule::XC4, &both, |p| {
                p.subject_alt_names = vec![uri("spiffe://west.example")];
            }),
            (Rule::XC6, &issued, |p| {
                p.key_usages.push(KeyUsagePurpose::DigitalSignature);
            }),
            (Rule::XC7, &both, |p| {
                p.distinguished_name = DistinguishedName::new();
            }),
            (Rule::XC9, &issued, |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
            }),
            (Rule::XC9, &issued, |p| {
                p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            }),
            (Rule::R5, &issued, |p| {
                p.use_authority_key_identifier_extension = false;
            }),
        ];
        for (at, (expected, origins, change)) in changes.iter().enumerate() {
            let mut params = issuer();
            change(&mut params);
            let der = sign(&params);
            for origin in *origins {
                let result = check_issuer(&der, &east(), *origin);
                assert_eq!(rule(result), *expected, "change {at}, {origin:?}");
            }
        }
    }

    #[test]
    fn a_key_on_a_curve_outside_the_list_is_r4() {
        let root = Issuer::new(ca("root", 2), KeyPair::generate().unwrap());
        let key = KeyPair::generate_for(&PKCS_ECDSA_P521_SHA512).unwrap();
        let der = leaf().signed_by(&key, &root).unwrap().der().to_vec();
        assert_eq!(rule(check_leaf(&der, Origin::Presented)), Rule::R4);
        let der = leaf().self_signed(&key).unwrap().der().to_vec();
        assert_eq!(rule(check_leaf(&der, Origin::Presented)), Rule::R4);
    }

    #[test]
    fn a_root_with_a_long_path_or_a_trust_domain_is_refused() {
        assert_eq!(rule(check_root(&self_sign(&ca("root", 3)))), Rule::XC9);
        assert_eq!(rule(check_root(&self_sign(&issuer()))), Rule::XC3);
        assert_eq!(rule(check_root(&sign(&ca("other", 2)))), Rule::R12);
    }

    #[test]
    fn an_anchor_of_others_may_lack_the_trust_domain_but_not_name_another() {
        let mut anchor = issuer();
        anchor.subject_alt_names.clear();
        let der = self_sign(&anchor);
        assert!(check_anchor(&der, &east(), Origin::Presented).is_ok());
        assert_eq!(rule(check_anchor(&der, &east(), Origin::Issued)), Rule::XC3);
        let west = TrustDomain::parse("west.example").unwrap();
        let der = self_sign(&issuer());
        assert_eq!(
            rule(check_anchor(&der, &west, Origin::Presented)),
            Rule::XC4
        );
    }

    #[test]
    fn a_pair_is_held_to_its_issuer() {
        let root_key = KeyPair::generate().unwrap();
        let root_der = ca("root", 2).self_signed(&root_key).unwrap().der().to_vec();
        let root = Issuer::new(ca("root", 2), root_key);
        let key = KeyPair::generate().unwrap();
        let signed =
            |params: &CertificateParams| params.signed_by(&key, &root).unwrap().der().to_vec();
        check_issued_by(&signed(&issuer()), &root_der).unwrap();
        let mut late = issuer();
        late.not_after = date_time_ymd(2028, 1, 1);
        assert_eq!(rule(check_issued_by(&signed(&late), &root_der)), Rule::XC10);
        let namesake = self_sign(&ca("root", 2));
        assert_eq!(
            rule(check_issued_by(&signed(&issuer()), &namesake)),
            Rule::R5
        );
        let other = self_sign(&ca("other", 2));
        assert_eq!(rule(check_issued_by(&signed(&issuer()), &other)), Rule::R12);
    }

    #[test]
    fn validity_includes_both_its_ends() {
        let der = sign(&leaf());
        let leaf = Certificate::parse(&der).unwrap();
        let (first, last) = (leaf.not_before(), leaf.not_after());
        assert!(leaf.check_time(first).is_ok());
        assert!(leaf.check_time(last).is_ok());
        assert_eq!(rule(leaf.check_time(first - 1)), Rule::NotYetValid);
        let late = leaf.check_time(last + 90).unwrap_err();
        assert_eq!(late.to_string(), "expired: expired 90 s ago");
    }

    #[test]
    fn garbage_and_trailing_bytes_are_malformed() {
        assert_eq!(rule(check_leaf(b"", Origin::Presented)), Rule::Malformed);
        assert_eq!(
            rule(check_leaf(b"0\x03abc", Origin::Presented)),
            Rule::Malformed
        );
        let mut der = sign(&leaf());
        der.push(0);
        let error = check_leaf(&der, Origin::Presented).unwrap_err();
        assert_eq!(
            error.to_string(),
            "malformed: 1 bytes follow the certificate"
        );
    }

    #[test]
    fn a_certificate_has_at_most_64_extensions() {
        // Six of rcgen's own: both key identifiers, SAN, keyUsage, extended usage, basicConstraints.
        let with_custom = |count: u64| {
            let mut params = leaf();
            params.custom_extensions = (0..count)
                .map(|n| CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 5, n], vec![5, 0]))
                .collect();
            check_leaf(&sign(&params), Origin::Presented)
        };
        assert!(with_custom(58).is_ok());
        let error = with_custom(59).unwrap_err();
        assert_eq!(
            error.to_string(),
            "malformed: 65 extensions; at most 64 are allowed"
        );
    }

    #[test]
    fn a_violation_names_rule_and_finding() {
        let mut two = leaf();
        two.subject_alt_names.push(uri("spiffe://b/c"));
        let error = check_leaf(&sign(&two), Origin::Presented).unwrap_err();
        assert_eq!(error.to_string(), "XL1: 2 URI SANs; exactly one is allowed");
    }

    #[test]
    fn serials_are_positive_minimal_and_short() {
        assert!(check_serial(&[1]).is_ok());
        assert!(check_serial(&[0, 0x80]).is_ok());
        assert!(check_serial(&[0x7f; 20]).is_ok());
        for bad in [&[][..], &[0], &[0, 0], &[0x80], &[0, 1], &[0x7f; 21]] {
            assert_eq!(rule(check_serial(bad)), Rule::R2, "{bad:?}");
        }
    }
}
