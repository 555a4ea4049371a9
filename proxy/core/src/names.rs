//! Host names and the SNI that gateways use between each other.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// The longest DNS name, in bytes without a trailing dot (RFC 1035 §2.3.4).
pub const HOST_BYTES_MAX: usize = 253;

/// Why a text is not a host name we route by.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// The name is empty.
    #[error("the host name is empty")]
    Empty,
    /// The name is over 253 bytes.
    #[error("the host name is {0} bytes; at most {HOST_BYTES_MAX} are allowed (RFC 1035 §2.3.4)")]
    Length(usize),
    /// One label is empty or over 63 bytes.
    #[error("label {0:?} of the host name is not 1 to 63 bytes (RFC 1035 §2.3.4)")]
    Label(String),
    /// A character outside letters, digits, `-` and `_`.
    #[error("the host name holds {0:?}; only letters, digits, `-`, `_` and `.` may stand there")]
    Char(char),
    /// An IP address, which no route is keyed by (RFC 6066 §3).
    #[error("an IP address is not a host name (RFC 6066 §3)")]
    IpAddress,
}

/// A host name in canonical form: lower case, without a trailing dot.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(Arc<str>);

impl Host {
    /// Parses a name, folding case and removing one trailing dot (T5).
    ///
    /// # Errors
    /// An empty, over-long or malformed name, or an IP address.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        canonical(text).map(|name| Self(name.into()))
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// What a route's `hosts` names: one host, or any depth below a suffix (`*.x`, which is not `x`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// This host alone.
    Exact(Host),
    /// `*.x`: every name at least one label below `x`.
    Below(Host),
}

impl HostPattern {
    /// Parses `name` or `*.name`.
    ///
    /// # Errors
    /// As [`Host::parse`].
    pub fn parse(text: &str) -> Result<Self, HostError> {
        match text.strip_prefix("*.") {
            Some(suffix) => Ok(Self::Below(Host::parse(suffix)?)),
            None => Ok(Self::Exact(Host::parse(text)?)),
        }
    }

    /// Whether `host` is named by this pattern.
    #[must_use]
    pub fn matches(&self, host: &Host) -> bool {
        self.matches_name(host.as_str())
    }

    /// As [`matches`](Self::matches), of a host's [canonical text](Host::as_str).
    #[must_use]
    pub fn matches_name(&self, host: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == host,
            Self::Below(suffix) => host
                .strip_suffix(suffix.as_str())
                .is_some_and(|head| head.len() > 1 && head.ends_with('.')),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => write!(f, "{host}"),
            Self::Below(host) => write!(f, "*.{host}"),
        }
    }
}

/// A destination as an SNI names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SniTarget {
    /// The host.
    pub host: Host,
    /// The port, where the SNI has Istio's form `outbound_.<port>_._.<host>`.
    pub port: Option<u16>,
}

impl SniTarget {
    /// Parses a bare host or `outbound_.<port>_.<subset>_.<host>` (the subset must be empty).
    ///
    /// # Errors
    /// As [`Host::parse`]; a text that only resembles the `outbound_` form is read as a host.
    pub fn parse(sni: &str) -> Result<Self, HostError> {
        let (host, port) = split_sni(sni)?;
        Ok(Self {
            host: Host(host.into()),
            port,
        })
    }
}

/// As [`SniTarget::parse`], with the host as its [canonical text](Host::as_str).
///
/// # Errors
/// As [`SniTarget::parse`].
pub fn split_sni(sni: &str) -> Result<(Cow<'_, str>, Option<u16>), HostError> {
    let of_port = strip_outbound(sni).and_then(|rest| rest.split_once("_._."));
    match of_port.and_then(|(port, host)| Some((host, parse_port(port)?))) {
        Some((host, port)) => Ok((canonical(host)?, Some(port))),
        None => Ok((canonical(sni)?, None)),
    }
}

/// What follows the label `outbound_`, in any case of letters (RFC 4343 §2), with which Istio's forms begin.
pub(crate) fn strip_outbound(sni: &str) -> Option<&str> {
    const OUTBOUND: &str = "outbound_.";

    let (label, rest) = sni.split_at_checked(OUTBOUND.len())?;
    label.eq_ignore_ascii_case(OUTBOUND).then_some(rest)
}

impl fmt::Display for SniTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port {
            Some(port) => write!(f, "outbound_.{port}_._.{}", self.host),
            None => write!(f, "{}", self.host),
        }
    }
}

/// The canonical text of a name, which mostly is the text itself.
fn canonical(text: &str) -> Result<Cow<'_, str>, HostError> {
    let name = text.strip_suffix('.').unwrap_or(text);
    Ok(if check_host(name)? {
        name.to_ascii_lowercase().into()
    } else {
        name.into()
    })
}

/// Splits an HTTP authority (`host`, `host:port`) into a host and its port.
///
/// # Errors
/// As [`Host::parse`]; a port that is not 1 to 65535 is a bad character of the host.
pub fn parse_authority(authority: &str) -> Result<(Host, Option<u16>), HostError> {
    let (host, port) = split_authority(authority)?;
    Ok((Host(host.into()), port))
}

/// As [`parse_authority`], with the host as its [canonical text](Host::as_str): to look it up nothing
/// has to be kept.
///
/// # Errors
/// As [`parse_authority`].
pub fn split_authority(authority: &str) -> Result<(Cow<'_, str>, Option<u16>), HostError> {
    match authority.rsplit_once(':') {
        Some((host, port)) => match parse_port(port) {
            Some(port) => Ok((canonical(host)?, Some(port))),
            None => Err(HostError::Char(':')),
        },
        None => Ok((canonical(authority)?, None)),
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    if canonical { text.parse().ok() } else { None }
}

/// Whether a host has capitals. Every request names one.
fn check_host(name: &str) -> Result<bool, HostError> {
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    if name.len() > HOST_BYTES_MAX {
        return Err(HostError::Length(name.len()));
    }
    // An address ends with a digit, or has a colon.
    let may_be_address = name
        .bytes()
        .last()
        .is_some_and(|byte| byte.is_ascii_digit())
        || name.contains(':');
    if may_be_address && name.parse::<IpAddr>().is_ok() {
        return Err(HostError::IpAddress);
    }
    let mut has_capitals = false;
    let mut label_from = 0;
    for (at, byte) in name.bytes().chain([b'.']).enumerate() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'A'..=b'Z' => has_capitals = true,
            b'.' if (1..=63).contains(&(at - label_from)) => label_from = at + 1,
            b'.' => {
                let label = name.get(label_from..at).unwrap_or_default();
                return Err(HostError::Label(label.to_owned()));
            }
            _ => {
                let bad = name.get(at..).and_then(|rest| rest.chars().next());
                return Err(HostError::Char(bad.unwrap_or(char::REPLACEMENT_CHARACTER)));
            }
        }
    }
    Ok(has_capitals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_folded_and_lose_one_trailing_dot() {
        assert_eq!(
            Host::parse("Orders.SHOP.svc.").unwrap().as_str(),
            "orders.shop.svc"
        );
        assert!(Host::parse("orders..").is_err());
        assert_eq!(Host::parse("10.0.0.1"), Err(HostError::IpAddress));
        assert_eq!(Host::parse(""), Err(HostError::Empty));
        assert_eq!(Host::parse("a b"), Err(HostError::Char(' ')));
        assert_eq!(Host::parse("a.bé.c"), Err(HostError::Char('é')));
        let label = "a".repeat(63);
        assert_eq!(
            Host::parse(&format!("b.{label}")).unwrap().as_str().len(),
            65
        );
        for (host, bad) in [
            (format!("b.a{label}"), format!("a{label}")),
            (format!("a{label}.b"), format!("a{label}")),
            ("a..b".to_owned(), String::new()),
            (".a".to_owned(), String::new()),
            ("a..".to_owned(), String::new()),
        ] {
            assert_eq!(Host::parse(&host), Err(HostError::Label(bad)), "{host}");
        }
        assert_eq!(Host::parse(&"a".repeat(300)), Err(HostError::Length(300)));
    }

    #[test]
    fn a_wildcard_is_any_depth_below_and_not_the_suffix_itself() {
        let pattern = HostPattern::parse("*.example.com").unwrap();
        let matches = |host: &str| pattern.matches(&Host::parse(host).unwrap());
        assert!(matches("a.example.com"));
        assert!(matches("a.b.example.com"));
        assert!(!matches("example.com"));
        assert!(!matches("badexample.com"));
        assert!(HostPattern::parse("*w.example.com").is_err());
        assert!(HostPattern::parse("*").is_err());
    }

    #[test]
    fn sni_forms_parse_and_format_inversely() {
        for sni in [
            "orders.shop.svc.clusterset.local",
            "outbound_.8080_._.orders.shop.svc",
        ] {
            assert_eq!(SniTarget::parse(sni).unwrap().to_string(), sni);
        }
        let target = SniTarget::parse("outbound_.80_._.Orders.").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("orders", Some(80)));
        for prefix in ["OUTBOUND_.", "Outbound_.", "outbounD_."] {
            let sni = format!("{prefix}80_._.A.b");
            let target = SniTarget::parse(&sni).unwrap();
            assert_eq!((target.host.as_str(), target.port), ("a.b", Some(80)));
        }
        assert_eq!(SniTarget::parse("outbound_.0_._.a").unwrap().port, None);
        assert_eq!(SniTarget::parse("outbound_.70000_._.a").unwrap().port, None);
    }

    #[test]
    fn an_authority_keeps_its_port() {
        assert_eq!(
            parse_authority("A.b:8080").unwrap(),
            (Host::parse("a.b").unwrap(), Some(8080))
        );
        assert_eq!(parse_authority("a.b").unwrap().1, None);
        assert!(parse_authority("a.b:").is_err());
        assert!(parse_authority("user@a.b").is_err());
        assert!(parse_authority("[::1]:80").is_err());
    }
}
