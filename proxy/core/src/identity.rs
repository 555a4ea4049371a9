//! SPIFFE IDs and trust domains: parsed once, compared as parsed (SPIFFE-ID.md §2, rules ID1-ID10).

use std::fmt;
use std::sync::Arc;

/// The longest SPIFFE ID accepted, in bytes (SPIFFE-ID.md §2.3).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// The longest trust domain name accepted, in bytes (SPIFFE-ID.md §2.1).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;

/// Why a text is not a SPIFFE ID, a trust domain or a pattern of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// ID1: the text does not begin with `spiffe://` in lower case.
    #[error("a SPIFFE ID begins with `spiffe://` in lower case (ID1)")]
    Scheme,
    /// ID2: the trust domain is empty.
    #[error("the trust domain is empty (ID2)")]
    TrustDomainEmpty,
    /// ID2: the trust domain holds a character outside `[a-z0-9.-_]`.
    #[error(
        "the trust domain holds {0:?}; only a-z, 0-9, `.`, `-` and `_` may stand there (ID2, ID3)"
    )]
    TrustDomainChar(char),
    /// ID10: the trust domain is over 255 bytes.
    #[error("the trust domain is {0} bytes; at most {TRUST_DOMAIN_BYTES_MAX} are allowed (ID10)")]
    TrustDomainLength(usize),
    /// ID6: the path holds an empty segment.
    #[error("the path holds an empty segment (ID6)")]
    SegmentEmpty,
    /// ID6: the path holds `.` or `..`.
    #[error("the path holds the segment `{0}` (ID6)")]
    SegmentDots(&'static str),
    /// ID7: the path ends with `/`.
    #[error("the path ends with `/` (ID7)")]
    TrailingSlash,
    /// ID4, ID5, ID8: the path holds a character outside `[A-Za-z0-9.-_]`.
    #[error(
        "the path holds {0:?}; only letters, digits, `.`, `-` and `_` may stand in a segment (ID4, ID5, ID8)"
    )]
    PathChar(char),
    /// ID9: the ID is over 2048 bytes.
    #[error("the ID is {0} bytes; at most {SPIFFE_ID_BYTES_MAX} are allowed (ID9)")]
    Length(usize),
}

/// The name of a trust domain, in its only form: lower case, `[a-z0-9.-_]`, 1 to 255 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Parses a bare trust domain name such as `east.example`.
    ///
    /// # Errors
    /// Any text that is not already in canonical form is refused, never normalised (ID1, ID2).
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        check_trust_domain(text)?;
        Ok(Self(text.into()))
    }

    /// The name, without the scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE ID of the trust domain itself, `spiffe://<name>`.
    #[must_use]
    pub fn id(&self) -> SpiffeId {
        SpiffeId {
            text: format!("spiffe://{}", self.0).into(),
            path_start: SCHEME.len() + self.0.len(),
        }
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// A SPIFFE ID in its canonical form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpiffeId {
    text: Arc<str>,
    path_start: usize,
}

const SCHEME: &str = "spiffe://";

impl SpiffeId {
    /// Parses `spiffe://<trust domain>[/<segment>...]`.
    ///
    /// # Errors
    /// One of ID1-ID10; an ID that is not already canonical is refused, never normalised.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(IdentityError::Length(text.len()));
        }
        let rest = text.strip_prefix(SCHEME).ok_or(IdentityError::Scheme)?;
        let (domain, path) = match rest.find('/') {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        check_trust_domain(domain)?;
        check_path(path)?;
        Ok(Self {
            text: text.into(),
            path_start: SCHEME.len() + domain.len(),
        })
    }

    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The path with its leading `/`; empty for the ID of a trust domain itself.
    #[must_use]
    pub fn path(&self) -> &str {
        self.text.get(self.path_start..).unwrap_or_default()
    }

    /// The name of the trust domain.
    #[must_use]
    pub fn trust_domain_str(&self) -> &str {
        self.text
            .get(SCHEME.len()..self.path_start)
            .unwrap_or_default()
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.trust_domain_str().into())
    }

    /// Whether this ID is of `domain`, compared whole.
    #[must_use]
    pub fn is_of(&self, domain: &TrustDomain) -> bool {
        self.trust_domain_str() == domain.as_str()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.text, f)
    }
}

/// What a rule's `from` names: one ID, or every ID below a path on a segment border.
///
/// T7: matched as parsed (trust domain, path segments), never as a text prefix.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdPattern {
    /// `spiffe://east.example/ns/shop/sa/cart`: this ID alone.
    Exact(SpiffeId),
    /// `spiffe://east.example/ns/shop/*`: every ID at least one segment below it.
    Below(SpiffeId),
}

impl IdPattern {
    /// Parses an ID, or an ID followed by `/*`.
    ///
    /// # Errors
    /// As [`SpiffeId::parse`]; a `*` anywhere but as the whole last segment is refused.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        match text.strip_suffix("/*") {
            Some(parent) => Ok(Self::Below(SpiffeId::parse(parent)?)),
            None => Ok(Self::Exact(SpiffeId::parse(text)?)),
        }
    }

    /// Whether `id` is named by this pattern.
    #[must_use]
    pub fn matches(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(exact) => exact == id,
            Self::Below(parent) => {
                parent.trust_domain_str() == id.trust_domain_str()
                    && id
                        .path()
                        .strip_prefix(parent.path())
                        .is_some_and(|rest| rest.len() > 1 && rest.starts_with('/'))
            }
        }
    }

    /// The trust domain whose IDs this names.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        match self {
            Self::Exact(id) | Self::Below(id) => id.trust_domain(),
        }
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => write!(f, "{id}"),
            Self::Below(id) => write!(f, "{id}/*"),
        }
    }
}

fn check_trust_domain(text: &str) -> Result<(), IdentityError> {
    if text.is_empty() {
        return Err(IdentityError::TrustDomainEmpty);
    }
    if text.len() > TRUST_DOMAIN_BYTES_MAX {
        return Err(IdentityError::TrustDomainLength(text.len()));
    }
    match text
        .chars()
        .find(|c| !matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_'))
    {
        Some(bad) => Err(IdentityError::TrustDomainChar(bad)),
        None => Ok(()),
    }
}

fn check_path(path: &str) -> Result<(), IdentityError> {
    if path.is_empty() {
        return Ok(());
    }
    if path.ends_with('/') {
        return Err(IdentityError::TrailingSlash);
    }
    for segment in path.split('/').skip(1) {
        match segment {
            "" => return Err(IdentityError::SegmentEmpty),
            "." => return Err(IdentityError::SegmentDots(".")),
            ".." => return Err(IdentityError::SegmentDots("..")),
            _ => {}
        }
        if let Some(bad) = segment
            .chars()
            .find(|c| !matches!(c, 'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' | '_'))
        {
            return Err(IdentityError::PathChar(bad));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_ids_parse_into_trust_domain_and_path() {
        let id = SpiffeId::parse("spiffe://east.example/ns/shop/sa/Cart").unwrap();
        assert_eq!(id.trust_domain_str(), "east.example");
        assert_eq!(id.path(), "/ns/shop/sa/Cart");
        assert_eq!(SpiffeId::parse("spiffe://10.0.0.1").unwrap().path(), "");
        assert_eq!(
            TrustDomain::parse("east.example").unwrap().id().as_str(),
            "spiffe://east.example"
        );
    }

    #[test]
    fn what_is_not_canonical_is_refused_by_rule() {
        use IdentityError as E;
        let long_domain = format!("spiffe://{}/a", "a".repeat(256));
        let long_id = format!("spiffe://a/{}", "b".repeat(2048));
        for (text, error) in [
            ("SPIFFE://a/b", E::Scheme),
            ("https://a/b", E::Scheme),
            ("spiffe:/a/b", E::Scheme),
            ("", E::Scheme),
            ("spiffe://", E::TrustDomainEmpty),
            ("spiffe:///a", E::TrustDomainEmpty),
            ("spiffe://East/a", E::TrustDomainChar('E')),
            ("spiffe://a%20b/c", E::TrustDomainChar('%')),
            ("spiffe://user@a/c", E::TrustDomainChar('@')),
            ("spiffe://a:8443/c", E::TrustDomainChar(':')),
            ("spiffe://[::1]/c", E::TrustDomainChar('[')),
            ("spiffe://a?x", E::TrustDomainChar('?')),
            ("spiffe://a/b?", E::PathChar('?')),
            ("spiffe://a/b#", E::PathChar('#')),
            ("spiffe://a/b%2Fc", E::PathChar('%')),
            ("spiffe://a//b", E::SegmentEmpty),
            ("spiffe://a/./b", E::SegmentDots(".")),
            ("spiffe://a/../b", E::SegmentDots("..")),
            ("spiffe://a/", E::TrailingSlash),
            ("spiffe://a/b/", E::TrailingSlash),
            ("spiffe://a/b c", E::PathChar(' ')),
            (&long_domain, E::TrustDomainLength(256)),
            (&long_id, E::Length(2059)),
        ] {
            assert_eq!(SpiffeId::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn an_id_of_exactly_2048_bytes_and_a_domain_of_255_are_accepted() {
        let id = format!(
            "spiffe://{}/{}",
            "a".repeat(255),
            "b".repeat(2048 - 9 - 256)
        );
        assert_eq!(id.len(), 2048);
        assert!(SpiffeId::parse(&id).is_ok());
    }

    #[test]
    fn a_pattern_matches_on_segment_borders_and_never_its_own_parent() {
        let pattern = IdPattern::parse("spiffe://a/ns/shop/*").unwrap();
        let matches = |id: &str| pattern.matches(&SpiffeId::parse(id).unwrap());
        assert!(matches("spiffe://a/ns/shop/sa/cart"));
        assert!(matches("spiffe://a/ns/shop/x"));
        assert!(!matches("spiffe://a/ns/shop"));
        assert!(!matches("spiffe://a/ns/shopping/x"));
        assert!(!matches("spiffe://ab/ns/shop/x"));
        let domain = IdPattern::parse("spiffe://a/*").unwrap();
        assert!(domain.matches(&SpiffeId::parse("spiffe://a/x").unwrap()));
        assert!(!domain.matches(&SpiffeId::parse("spiffe://a").unwrap()));
        assert!(!domain.matches(&SpiffeId::parse("spiffe://ab/x").unwrap()));
        assert!(IdPattern::parse("spiffe://a/n*").is_err());
        assert!(IdPattern::parse("spiffe://*/x").is_err());
    }
}
