//! The rules in their order: identity, bundle, path, and what the path builder does not check.

use std::cell::RefCell;

use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};
use zeugma_core::identity::{SpiffeId, TrustDomain};
use zeugma_core::svid::{Certificate, Origin, Rule, Serial, Violation};

use super::bundle::{Anchor, Bundle, Bundles};
use super::config::provider;
use super::crl::{Authority, Crls, authority};

/// The most certificates a peer may present, leaf included.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;
/// The most bytes of DER a peer may present, all certificates together.
pub const CHAIN_BYTES_MAX: usize = 32 * 1024;

/// In which role a peer presents its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// It called us.
    Client,
    /// We called it.
    Server,
}

/// A peer whose certificate is accepted, with what later checks need of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsPeer {
    /// Who it is.
    pub id: SpiffeId,
    /// The serials of the path: leaf first, without the anchor.
    pub serials: Vec<Serial>,
    /// Who issued each of them: the SHA-256 of the issuer's name and key.
    pub issuers: Vec<[u8; 32]>,
    /// The SHA-256 of the anchor's DER.
    pub anchor: [u8; 32],
    /// When the first certificate of the path expires, in Unix seconds.
    pub not_after: i64,
}

/// Why a peer is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{violation}")]
pub struct Refusal {
    /// The broken rule and what was found.
    pub violation: Violation,
    /// The TLS alert that tells the peer.
    pub alert: AlertDescription,
}

impl Refusal {
    /// The stable name in metrics and logs: the rule's id.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        self.violation.rule.id()
    }

    /// What rustls is told; it derives the same alert from it.
    pub(super) fn certificate_error(&self) -> CertificateError {
        certificate_error(self.violation.rule)
    }

    pub(super) fn new(rule: Rule, detail: impl Into<String>) -> Self {
        Violation::new(rule, detail).into()
    }
}

impl From<Violation> for Refusal {
    fn from(violation: Violation) -> Self {
        // rustls sends the alert for a missing certificate itself, and asks no verifier.
        let alert = if violation.rule == Rule::NoCertificate {
            AlertDescription::CertificateRequired
        } else {
            certificate_error(violation.rule).into()
        };
        Self { violation, alert }
    }
}

/// Verifies what a peer presented: leaf first, the rest in any order, extra ones allowed.
///
/// The order is: the leaf's identity (XL1-XL3), the bundle of its trust domain (XL4), a path to
/// that bundle's anchors alone whose every issuer is of that trust domain (XC4), then the leaf's
/// own rules. Proof that the peer holds the key is the handshake's.
///
/// # Errors
/// The first broken rule in this order.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    bundles: &Bundles,
    usage: Usage,
    now: UnixTime,
) -> Result<TlsPeer, Refusal> {
    match chain.split_first() {
        Some((leaf, intermediates)) => {
            let trusted = Trusted {
                bundles,
                crls: &Crls::default(),
            };
            verify(leaf, intermediates, &trusted, usage, now)
        }
        None => Err(Refusal::new(
            Rule::NoCertificate,
            "no certificate presented",
        )),
    }
}

/// What a chain is verified with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trusted<'a> {
    pub(super) bundles: &'a Bundles,
    pub(super) crls: &'a Crls,
}

pub(super) fn verify(
    leaf_der: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    trusted: &Trusted<'_>,
    usage: Usage,
    now: UnixTime,
) -> Result<TlsPeer, Refusal> {
    check_size(leaf_der, intermediates)?;

    let leaf = Certificate::parse(leaf_der)?;
    let id = leaf.identity()?;

    let domain = id.trust_domain();
    let judging = Judging {
        bundle: find_bundle(trusted.bundles, &domain)?,
        crls: trusted.crls,
        domain: &domain,
        leaf: leaf.serial(),
        now,
    };
    let path = find_path(leaf_der, intermediates, &judging, usage)?;

    leaf.check_leaf(Origin::Presented)?;

    let mut serials = vec![leaf.serial()];
    serials.extend(path.serials);
    Ok(TlsPeer {
        id,
        serials,
        issuers: path.issuers,
        anchor: path.anchor,
        not_after: path.not_after.min(leaf.not_after()),
    })
}

fn check_size(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), Refusal> {
    let certificates = intermediates.len().saturating_add(1);
    if certificates > CHAIN_CERTIFICATES_MAX {
        let detail = format!(
            "{certificates} certificates presented; at most {CHAIN_CERTIFICATES_MAX} are allowed"
        );
        return Err(Refusal::new(Rule::ChainTooLong, detail));
    }
    let bytes = intermediates
        .iter()
        .fold(leaf.len(), |sum, der| sum.saturating_add(der.len()));
    if bytes > CHAIN_BYTES_MAX {
        let detail = format!(
            "{bytes} bytes of certificates presented; at most {CHAIN_BYTES_MAX} are allowed"
        );
        return Err(Refusal::new(Rule::TooLarge, detail));
    }
    Ok(())
}

fn find_bundle<'b>(bundles: &'b Bundles, domain: &TrustDomain) -> Result<&'b Bundle, Refusal> {
    let Some(bundle) = bundles.get(domain) else {
        let detail = format!("no bundle for trust domain {domain}; add its bundle to accept it");
        return Err(Refusal::new(Rule::XL4, detail));
    };
    if bundle.anchors().is_empty() {
        let detail = format!("the bundle of trust domain {domain} is empty: it revokes every SVID");
        return Err(Refusal::new(Rule::UnknownIssuer, detail));
    }
    Ok(bundle)
}

/// What is kept of an accepted path, without its leaf.
struct Path {
    serials: Vec<Serial>,
    /// Of the leaf and of each of `serials`.
    issuers: Vec<Authority>,
    anchor: [u8; 32],
    not_after: i64,
}

/// What the paths of one chain are judged by.
struct Judging<'a> {
    bundle: &'a Bundle,
    crls: &'a Crls,
    domain: &'a TrustDomain,
    leaf: Serial,
    now: UnixTime,
}

fn find_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    judging: &Judging<'_>,
    usage: Usage,
) -> Result<Path, Refusal> {
    let end_entity = EndEntityCert::try_from(leaf).map_err(|e| path_violation(&e))?;
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    // Signed paths are judged while the search runs, so that an expired or foreign one does not
    // hide a good one (RFC 4158 §2.4.2: a renewed anchor has the subject and key of the old).
    let accepted = RefCell::new(None);
    let refused = RefCell::new(None);
    let judge = |path: &VerifiedPath<'_>| match judge_path(path, judging) {
        Ok(path) => {
            accepted.replace(Some(path));
            Ok(())
        }
        Err(violation) => {
            refused.borrow_mut().get_or_insert(violation);
            Err(webpki::Error::UnknownIssuer)
        }
    };
    let found = end_entity.verify_for_usage(
        provider().signature_verification_algorithms.all,
        judging.bundle.trust_anchors(),
        intermediates,
        judging.now,
        usage,
        None,
        Some(&judge),
    );
    match (found, accepted.take(), refused.take()) {
        (Ok(_), Some(path), _) => Ok(path),
        (Err(_), _, Some(violation)) => Err(violation.into()),
        (Err(error), _, None) => Err(path_violation(&error).into()),
        // Not reached: every path that is found was judged. Fails closed.
        (Ok(_), None, _) => Err(Refusal::new(Rule::UnknownIssuer, "no judged path")),
    }
}

/// The rules of a signed path that webpki does not know.
fn judge_path(path: &VerifiedPath<'_>, judging: &Judging<'_>) -> Result<Path, Violation> {
    let anchor = judging
        .bundle
        .anchor_of(path.anchor())
        .ok_or_else(|| Violation::new(Rule::UnknownIssuer, "the anchor is not of the bundle"))?;
    let (mut serials, mut issuers) = (Vec::new(), Vec::new());
    let mut not_after = anchor.not_after;
    for issuer in path.intermediate_certificates() {
        let der = issuer.der();
        let certificate = Certificate::parse(&der)?;
        let facts = certificate.check_issuer(judging.domain, Origin::Presented)?;
        not_after = not_after.min(facts.not_after);
        serials.push(facts.serial);
        issuers.push(authority(&certificate));
    }
    issuers.push(anchor.authority);
    check_anchor(anchor, serials.len(), judging.now)?;
    let issued = std::iter::once(&judging.leaf).chain(&serials).zip(&issuers);
    (judging.crls).check(judging.domain, issued, seconds(judging.now))?;
    Ok(Path {
        serials,
        issuers,
        anchor: anchor.fingerprint,
        not_after,
    })
}

/// webpki takes an anchor as a name and a key: its validity and pathLen are checked here.
fn check_anchor(anchor: &Anchor, issuers_below: usize, now: UnixTime) -> Result<(), Violation> {
    anchor.check_time(seconds(now))?;
    match anchor.path_len {
        Some(max) if usize::try_from(max).is_ok_and(|max| issuers_below > max) => {
            let detail = format!("{issuers_below} issuers below an anchor whose pathLen is {max}");
            Err(Violation::new(Rule::PathLength, detail))
        }
        _ => Ok(()),
    }
}

pub(super) fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn path_violation(error: &webpki::Error) -> Violation {
    use webpki::Error as E;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "webpki's list is open; what it adds is a malformed certificate until named here"
    )]
    let (rule, detail) = match error {
        E::UnknownIssuer | E::CertDistrusted => (
            Rule::UnknownIssuer,
            "no path to an anchor of the trust domain's bundle".to_owned(),
        ),
        E::CertExpired { time, not_after } => {
            let late = time.as_secs().saturating_sub(not_after.as_secs());
            let detail = format!("a certificate of the path expired {late} s ago");
            (Rule::Expired, detail)
        }
        E::CertNotValidYet { time, not_before } => {
            let early = not_before.as_secs().saturating_sub(time.as_secs());
            let detail = format!("a certificate of the path is valid only in {early} s");
            (Rule::NotYetValid, detail)
        }
        E::InvalidCertValidity => (Rule::R3, "notBefore is not before notAfter".to_owned()),
        E::InvalidSignatureForPublicKey => (
            Rule::BadSignature,
            "a signature of the path is wrong".to_owned(),
        ),
        E::CaUsedAsEndEntity => (Rule::XL6, "the leaf is a CA certificate".to_owned()),
        E::EndEntityUsedAsCa => (Rule::XC1, "an issuer is not a CA certificate".to_owned()),
        E::RequiredEkuNotFoundContext(_) => (
            Rule::XL10,
            "the extended key usage of the path lacks this role".to_owned(),
        ),
        E::PathLenConstraintViolated => (
            Rule::PathLength,
            "a pathLen constraint of the path is exceeded".to_owned(),
        ),
        E::NameConstraintViolation
        | E::MalformedNameConstraint
        | E::InvalidNetworkMaskConstraint
        | E::MaximumNameConstraintComparisonsExceeded => (
            Rule::XC5,
            "a name constraint refuses the leaf (rustls refuses every URI constraint)".to_owned(),
        ),
        E::UnsupportedCertVersion => (Rule::R1, "a certificate is not version 3".to_owned()),
        E::UnsupportedCriticalExtension => (
            Rule::R10,
            "a critical extension is not understood".to_owned(),
        ),
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => (
            Rule::R4,
            "a signature of the path uses an algorithm outside the list".to_owned(),
        ),
        E::MaximumPathDepthExceeded
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumSignatureChecksExceeded => {
            (Rule::PathTooComplex, format!("the search ended: {error}"))
        }
        other => (
            Rule::Malformed,
            format!("a certificate of the path is malformed: {other}"),
        ),
    };
    Violation::new(rule, detail)
}

/// The rustls error that rustls 0.23 turns into the alert we want (RFC 8446 §6.2).
fn certificate_error(rule: Rule) -> CertificateError {
    match rule {
        Rule::Expired => CertificateError::Expired,
        Rule::NotYetValid => CertificateError::NotValidYet,
        // unknown_ca: a path may be there, but not to a CA that may speak for this trust domain.
        Rule::UnknownIssuer | Rule::XL4 | Rule::XC3 | Rule::XC4 => CertificateError::UnknownIssuer,
        // unknown_ca as well: what its CA last said is too old to count.
        Rule::RevocationUnknown => CertificateError::UnknownRevocationStatus,
        // unsupported_certificate
        Rule::XL6 | Rule::XL8 | Rule::XL9 | Rule::XL10 | Rule::XL11 => {
            CertificateError::InvalidPurpose
        }
        Rule::Revoked => CertificateError::Revoked,
        // access_denied: valid, but not who is expected.
        Rule::UnexpectedId | Rule::DeniedId => CertificateError::ApplicationVerificationFailure,
        // decrypt_error: a signature of the handshake, not of a certificate.
        Rule::NoPossession => CertificateError::BadSignature,
        Rule::R10 => CertificateError::UnhandledCriticalExtension,
        // bad_certificate, also for signatures of the path that do not verify.
        Rule::XL1
        | Rule::XL2
        | Rule::XL3
        | Rule::XL5
        | Rule::XL7
        | Rule::XL13
        | Rule::XC1
        | Rule::XC2
        | Rule::XC5
        | Rule::XC6
        | Rule::XC7
        | Rule::XC9
        | Rule::XC10
        | Rule::R1
        | Rule::R2
        | Rule::R3
        | Rule::R4
        | Rule::R5
        | Rule::R6
        | Rule::R12
        | Rule::Malformed
        | Rule::DuplicateExtension
        | Rule::NoCertificate
        | Rule::TooLarge
        | Rule::ChainTooLong
        | Rule::BadSignature
        | Rule::PathLength
        | Rule::PathTooComplex => CertificateError::BadEncoding,
    }
}
