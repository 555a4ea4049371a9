//! What an X.509-SVID and the CA certificates above it must look like, rule by rule.
//!
//! One certificate at a time and without cryptography: signatures and the search for a path belong
//! to the TLS library, and are done in the shell. The CA holds its own output to the same functions
//! before it releases it ([`Origin::Issued`]), the gateway what a peer presents
//! ([`Origin::Presented`]).

mod certificate;
mod key;
mod rule;

use std::fmt;

pub use certificate::Certificate;
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
mod tests;
