//! What may be issued: lifetimes and names, decided before anything is signed.

use std::time::Duration;

use zeugma_core::identity::{SpiffeId, TrustDomain};

/// How far a certificate's notBefore lies in the past, for peers whose clock is behind (C3).
pub(crate) const BACKDATE: Duration = Duration::from_secs(120);

const DAY: Duration = Duration::from_secs(24 * 3600);

/// The lifetime of a leaf that names none.
pub const LEAF_TTL: Duration = DAY;

/// The longest trust domain a CA on files can keep, in bytes: its name becomes part of file names,
/// which end at 255 bytes.
pub const TRUST_DOMAIN_BYTES_MAX: usize = 200;

/// The most DNS names one leaf may carry.
pub const DNS_NAMES_MAX: usize = 16;

/// What this authority is willing to sign.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The longest lifetime of a leaf. Default 90 days.
    pub leaf_ttl_max: Duration,
    /// The shortest lifetime of a leaf. Default 1 second.
    pub leaf_ttl_min: Duration,
    /// The lifetime of an issuer's certificates. Default 5 years.
    pub issuer_ttl: Duration,
    /// The lifetime of the root. Default 10 years.
    pub root_ttl: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            leaf_ttl_max: 90 * DAY,
            leaf_ttl_min: Duration::from_secs(1),
            issuer_ttl: 5 * 365 * DAY,
            root_ttl: 10 * 365 * DAY,
        }
    }
}

/// A leaf somebody asks for.
#[derive(Debug, Clone)]
pub struct LeafRequest {
    /// Whose it is. Its trust domain chooses the issuer.
    pub id: SpiffeId,
    /// How long it is valid from now.
    pub ttl: Duration,
    /// DNS names beside the SPIFFE ID, for clients that verify host names; usually none (XL12).
    pub dns_names: Vec<String>,
}

impl LeafRequest {
    /// A leaf of the default lifetime without DNS names.
    #[must_use]
    pub fn new(id: SpiffeId) -> Self {
        Self {
            id,
            ttl: LEAF_TTL,
            dns_names: Vec::new(),
        }
    }

    /// The same with another lifetime.
    #[must_use]
    pub fn with_ttl(self, ttl: Duration) -> Self {
        Self { ttl, ..self }
    }

    /// The same with DNS names.
    #[must_use]
    pub fn with_dns_names(self, dns_names: Vec<String>) -> Self {
        Self { dns_names, ..self }
    }
}

/// Why a request was refused before anything was signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// XL3: a leaf's SPIFFE ID has a path.
    #[error(
        "`{0}` is the ID of a trust domain, not of a workload; add a path such as `/ns/shop/sa/cart` (XL3)"
    )]
    NoPath(SpiffeId),
    /// The lifetime is outside the policy's.
    #[error(
        "a lifetime of {} s is outside the policy's {} s to {} s; ask for one between", .asked.as_secs(), .min.as_secs(), .max.as_secs()
    )]
    Ttl {
        /// What was asked for.
        asked: Duration,
        /// The least allowed.
        min: Duration,
        /// The most allowed.
        max: Duration,
    },
    /// A DNS name is not one.
    #[error(
        "`{name}` is not a DNS name for a certificate: {why}; write one like `cart.shop.svc` in lower case"
    )]
    DnsName {
        /// What was asked for.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// More DNS names than one leaf may carry.
    #[error("{0} DNS names in one certificate; at most {DNS_NAMES_MAX} are allowed")]
    DnsNames(usize),
    /// The trust domain's name is too long for file names.
    #[error(
        "the trust domain is {0} bytes; a CA on files keeps at most {TRUST_DOMAIN_BYTES_MAX}; choose a shorter one"
    )]
    TrustDomainLength(usize),
}

impl PolicyError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Ttl { .. } => "ZG0216",
            Self::NoPath(_)
            | Self::DnsName { .. }
            | Self::DnsNames(_)
            | Self::TrustDomainLength(_) => "ZG0217",
        }
    }
}

impl Policy {
    /// Decides whether a leaf may be issued, from what it asks for alone.
    ///
    /// # Errors
    /// The first limit it breaks.
    pub fn check_leaf(&self, request: &LeafRequest) -> Result<(), PolicyError> {
        if request.id.path().is_empty() {
            return Err(PolicyError::NoPath(request.id.clone()));
        }
        if request.ttl < self.leaf_ttl_min || request.ttl > self.leaf_ttl_max {
            return Err(PolicyError::Ttl {
                asked: request.ttl,
                min: self.leaf_ttl_min,
                max: self.leaf_ttl_max,
            });
        }
        if request.dns_names.len() > DNS_NAMES_MAX {
            return Err(PolicyError::DnsNames(request.dns_names.len()));
        }
        request.dns_names.iter().try_for_each(|n| check_dns_name(n))
    }

    /// Decides whether this authority may serve a trust domain.
    ///
    /// # Errors
    /// The name is too long to be part of a file name.
    pub fn check_trust_domain(&self, domain: &TrustDomain) -> Result<(), PolicyError> {
        let bytes = domain.as_str().len();
        if bytes > TRUST_DOMAIN_BYTES_MAX {
            return Err(PolicyError::TrustDomainLength(bytes));
        }
        Ok(())
    }
}

/// RFC 1035 §2.3.1 letters, digits and hyphens, as RFC 6125 §7.2 wants them: no wildcard.
fn check_dns_name(name: &str) -> Result<(), PolicyError> {
    let refuse = |why| {
        Err(PolicyError::DnsName {
            name: name.to_owned(),
            why,
        })
    };
    if name.is_empty() || name.len() > 253 {
        return refuse("it is empty or over 253 bytes");
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        return refuse("it is an IP address");
    }
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return refuse("a label is empty or over 63 bytes");
        }
        if label.starts_with('-') || label.ends_with('-') {
            return refuse("a label begins or ends with a hyphen");
        }
        if !label
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        {
            return refuse("only a-z, 0-9 and `-` may stand in a label");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str) -> LeafRequest {
        LeafRequest::new(SpiffeId::parse(id).unwrap())
    }

    #[test]
    fn xl3_a_leaf_without_a_path_is_refused() {
        let asked = request("spiffe://east.example");
        let error = Policy::default().check_leaf(&asked).unwrap_err();
        assert!(matches!(error, PolicyError::NoPath(_)), "{error}");
        assert!(
            Policy::default()
                .check_leaf(&request("spiffe://east.example/a"))
                .is_ok()
        );
    }

    #[test]
    fn lifetimes_end_at_the_policys_limits() {
        let policy = Policy::default();
        let with = |seconds| {
            policy.check_leaf(
                &request("spiffe://east.example/a").with_ttl(Duration::from_secs(seconds)),
            )
        };
        assert!(with(0).is_err());
        assert!(with(1).is_ok());
        assert!(with(90 * 24 * 3600).is_ok());
        let error = with(90 * 24 * 3600 + 1).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a lifetime of 7776001 s is outside the policy's 1 s to 7776000 s; ask for one between"
        );
    }

    #[test]
    fn xl12_dns_names_are_lower_case_host_names_and_few() {
        let policy = Policy::default();
        let with = |names: &[&str]| {
            let names = names.iter().map(ToString::to_string).collect();
            policy.check_leaf(&request("spiffe://east.example/a").with_dns_names(names))
        };
        assert!(with(&["cart.shop.svc", "a-1.example"]).is_ok());
        let long = "a".repeat(64);
        for bad in [
            "",
            "*.example",
            "a..b",
            "-a.b",
            "a-.b",
            "A.b",
            "a_b",
            "10.0.0.1",
            &long,
        ] {
            assert!(with(&[bad]).is_err(), "{bad}");
        }
        assert!(with(&["a"; 16]).is_ok());
        assert_eq!(with(&["a"; 17]), Err(PolicyError::DnsNames(17)));
    }

    #[test]
    fn a_trust_domain_of_201_bytes_is_too_long_for_files() {
        let policy = Policy::default();
        let domain = |bytes| TrustDomain::parse(&"a".repeat(bytes)).unwrap();
        assert!(policy.check_trust_domain(&domain(200)).is_ok());
        assert_eq!(
            policy.check_trust_domain(&domain(201)),
            Err(PolicyError::TrustDomainLength(201))
        );
    }
}
