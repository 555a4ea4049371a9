//! Request paths as rules see them.
//!
//! Servers disagree about what `/a//b`, `/a/%2e%2e/b`, `/a%2Fb` or `/a;x/b` name (RFC 3986 §6.2.2
//! lets some of it be normalised, and not everybody does). A path is therefore read in two ways,
//! as sent and folded, and where even these do not cover what a server may make of it, it is
//! ambiguous. An allow rule must match every reading, a deny rule any.

use std::borrow::Cow;
use std::fmt::Write;

use crate::snapshot::PathPattern;

/// The readings of one request path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RequestPath<'a> {
    /// Every server reads it in one of these ways. Most paths are as they came.
    Clear {
        /// Escapes of unreserved characters undone (RFC 3986 §6.2.2.2), others in upper case.
        sent: Cow<'a, str>,
        /// That, with `//` read as `/`, without `;` parameters, and with the escapes undone of what a
        /// path holds as it is: many servers take `/a%3Ab` for `/a:b`, though the two differ (§2.2).
        folded: Cow<'a, str>,
    },
    /// It holds a dot segment, an escaped or backward slash, a control character, an escape of an
    /// escape, or is no path: no allow rule with `paths` matches, every deny rule with `paths` does.
    Ambiguous,
}

impl<'a> RequestPath<'a> {
    /// Reads a path as received; a query after `?` is left out.
    #[must_use]
    pub fn new(received: &'a str) -> Self {
        let path = received.split_once('?').map_or(received, |(path, _)| path);
        let path = match path {
            // RFC 9110 §4.2.3: an empty path is `/`.
            "" => "/",
            // RFC 9112 §3.2.4: the asterisk-form of OPTIONS.
            "*" => {
                return Self::Clear {
                    sent: "*".into(),
                    folded: "*".into(),
                };
            }
            path if path.starts_with('/') => path,
            _ => return Self::Ambiguous,
        };
        if is_plain(path) {
            return Self::Clear {
                sent: path.into(),
                folded: path.into(),
            };
        }
        let Some(sent) = unescape(path) else {
            return Self::Ambiguous;
        };
        match fold(&undone(&sent)) {
            Some(folded) => Self::Clear {
                sent: sent.into(),
                folded: folded.into(),
            },
            None => Self::Ambiguous,
        }
    }

    /// Whether the path is certainly what `pattern` names.
    #[must_use]
    pub fn surely_is(&self, pattern: &PathPattern) -> bool {
        match self {
            Self::Clear { sent, folded } => is(sent, pattern) && is(folded, &as_folded(pattern)),
            Self::Ambiguous => false,
        }
    }

    /// Whether a server may take the path for what `pattern` names. Many serve `/a/` and `/a` alike,
    /// so slashes at the end do not count here, and `/a/*` names `/a` too.
    #[must_use]
    pub fn may_be(&self, pattern: &PathPattern) -> bool {
        match self {
            Self::Clear { sent, folded } => {
                is_alike(sent, pattern) || is_alike(folded, &as_folded(pattern))
            }
            Self::Ambiguous => true,
        }
    }
}

/// Whether a path that begins with `/` has one reading, itself: nothing escaped, no empty or dot
/// segment, no parameter, nothing that no path holds.
fn is_plain(path: &str) -> bool {
    let is_own =
        |byte: u8| matches!(byte, b'!'..=b'~') && !matches!(byte, b'%' | b';' | b'#' | b'\\');
    let mut before = b' ';
    path.bytes().all(|byte| {
        // A segment that begins with a dot may be one of dots alone.
        let begins = before == b'/' && matches!(byte, b'/' | b'.');
        before = byte;
        is_own(byte) && !begins
    })
}

/// Whether a rule's path can match anything: it begins with `/` and is not ambiguous itself.
#[must_use]
pub fn is_usable(pattern: &str) -> bool {
    canonical(pattern).is_some()
}

/// A rule's path as requests are compared with it; `None` where it can match nothing.
#[must_use]
pub fn canonical(pattern: &str) -> Option<String> {
    match RequestPath::new(pattern) {
        RequestPath::Clear { sent, folded }
            if undone(&sent) == folded && pattern.starts_with('/') && !pattern.contains('?') =>
        {
            Some(sent.into_owned())
        }
        RequestPath::Clear { .. } | RequestPath::Ambiguous => None,
    }
}

/// A pattern as folded readings are compared with it.
fn as_folded(pattern: &PathPattern) -> Cow<'_, PathPattern> {
    let (PathPattern::Exact(named) | PathPattern::Below(named)) = pattern;
    if !named.contains('%') {
        return Cow::Borrowed(pattern);
    }
    let Some(sent) = unescape(named) else {
        return Cow::Borrowed(pattern);
    };
    let named = undone(&sent).into();
    Cow::Owned(match pattern {
        PathPattern::Exact(_) => PathPattern::Exact(named),
        PathPattern::Below(_) => PathPattern::Below(named),
    })
}

/// Undoes the escapes of what stands in a path as it is; not of what would end or divide it, or begin an
/// escape.
pub(crate) fn undone(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return Cow::Borrowed(path);
    }
    let mut out = String::with_capacity(path.len());
    let mut rest = path;
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let byte = (after.as_bytes().first_chunk()).and_then(hex);
        match byte.filter(|byte| is_in_paths(*byte)) {
            Some(byte) => {
                out.push(char::from(byte));
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                out.push('%');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    Cow::Owned(out)
}

const fn is_in_paths(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~') && !matches!(byte, b'/' | b'\\' | b'%' | b';' | b'?' | b'#')
}

fn is(path: &str, pattern: &PathPattern) -> bool {
    match pattern {
        PathPattern::Exact(exact) if is_plain(exact) => path == &**exact,
        PathPattern::Exact(exact) => match unescape(exact) {
            Some(exact) => path == exact,
            None => false,
        },
        PathPattern::Below(prefix) if is_plain(prefix) => path.starts_with(&**prefix),
        PathPattern::Below(prefix) => match unescape(prefix) {
            Some(prefix) => path.starts_with(&prefix),
            None => false,
        },
    }
}

/// As [`is`], but for slashes at the end.
fn is_alike(path: &str, pattern: &PathPattern) -> bool {
    let (PathPattern::Exact(named) | PathPattern::Below(named)) = pattern;
    let ends_alike = unescape(named)
        .is_some_and(|named| path.trim_end_matches('/') == named.trim_end_matches('/'));
    ends_alike || is(path, pattern)
}

/// Undoes the escapes that mean nothing; `None` where one would hide something.
fn unescape(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        let (byte, escaped) = match byte {
            b'%' => {
                let (digits, after) = rest.split_first_chunk::<2>()?;
                rest = after;
                (hex(digits)?, true)
            }
            plain => (*plain, false),
        };
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(char::from(byte));
            }
            b'\\' | 0..=0x1f | 0x7f => return None,
            b'/' if escaped => return None,
            b'#' | b' ' if !escaped => return None,
            byte if escaped || !byte.is_ascii() => write!(out, "%{byte:02X}").ok()?,
            byte => out.push(char::from(byte)),
        }
    }
    // `%252f` is `%2f` to a server that unescapes twice.
    let twice = (out.as_bytes().array_windows())
        .any(|[a, b, c, d, e]| [*a, *b, *c] == *b"%25" && hex(&[*d, *e]).is_some());
    (!twice).then_some(out)
}

fn hex(digits: &[u8; 2]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let [high, low] = *digits;
    u8::try_from(digit(high)? << 4 | digit(low)?).ok()
}

/// Reads `//` as `/` and leaves out `;` parameters; `None` where a dot segment stands.
fn fold(path: &str) -> Option<String> {
    let mut out = String::with_capacity(path.len());
    for segment in path.split('/').skip(1) {
        let name = segment.split_once(';').map_or(segment, |(name, _)| name);
        if matches!(name, "." | "..") {
            return None;
        }
        if !out.ends_with('/') {
            out.push('/');
        }
        out.push_str(name);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clear(received: &str) -> (String, String) {
        match RequestPath::new(received) {
            RequestPath::Clear { sent, folded } => (sent.into_owned(), folded.into_owned()),
            RequestPath::Ambiguous => panic!("{received} is ambiguous"),
        }
    }

    #[test]
    fn a_plain_path_has_one_reading() {
        for (received, reading) in [
            ("/v1/orders", "/v1/orders"),
            ("/v1/orders?x=/../y", "/v1/orders"),
            ("/v1/", "/v1/"),
            ("/", "/"),
            ("", "/"),
            ("*", "*"),
            ("/%76%31/a%2dB", "/v1/a-B"),
            ("/a%20b%c3%A9", "/a%20b%C3%A9"),
            ("/a\u{e9}", "/a%C3%A9"),
            ("/a:b@c,d=e", "/a:b@c,d=e"),
            ("/...", "/..."),
            ("/100%25", "/100%25"),
        ] {
            assert_eq!(clear(received), (reading.to_owned(), reading.to_owned()));
        }
    }

    #[test]
    fn a_path_that_is_plain_has_the_reading_that_the_long_way_finds() {
        for received in [
            "/",
            "/a",
            "/a/",
            "/a/b",
            "/a.b",
            "/a/.b",
            "/a/...",
            "/a//b",
            "/a;b",
            "/a%20",
            "/a b",
            "/a\\b",
            "/é",
            "/a/..",
            "/.",
            "/a/./b",
            "/a#b",
            "/a\u{7f}",
            "/~a!$&'()*+,=:@-_",
        ] {
            let long = unescape(received).and_then(|sent| Some((sent.clone(), fold(&sent)?)));
            let itself = (received.to_owned(), received.to_owned());
            assert!(!is_plain(received) || long == Some(itself), "{received}");
        }
        assert!(is_plain("/v1/orders/7.json") && !is_plain("/v1/%6f") && !is_plain("/v1//a"));
    }

    #[test]
    fn slashes_in_a_row_and_parameters_have_two_readings() {
        assert_eq!(clear("/a//b"), ("/a//b".into(), "/a/b".into()));
        assert_eq!(clear("//a/"), ("//a/".into(), "/a/".into()));
        assert_eq!(clear("/a;x=1/b"), ("/a;x=1/b".into(), "/a/b".into()));
    }

    #[test]
    fn what_servers_read_differently_is_ambiguous() {
        for received in [
            "/a/../b",
            "/a/./b",
            "/..",
            "/.",
            "/a/%2e%2E/b",
            "/a/.%2e/b",
            "/a%2Fb",
            "/a%2fb",
            "/a\\b",
            "/a%5cb",
            "/a%00",
            "/a%0a",
            "/a\u{7f}",
            "/a b",
            "/a#b",
            "/a%",
            "/a%2",
            "/a%zz",
            "/a%252fb",
            "/a%25%32%66",
            "/..;/b",
            "/a/.;x/b",
            "v1",
            "http://h/v1",
        ] {
            assert_eq!(
                RequestPath::new(received),
                RequestPath::Ambiguous,
                "{received}"
            );
        }
    }

    #[test]
    fn an_allow_pattern_needs_every_reading_and_a_deny_pattern_one() {
        let below = PathPattern::Below("/v1/".into());
        let exact = PathPattern::Exact("/admin".into());
        let path = RequestPath::new;
        for (received, surely, may) in [
            ("/v1/x", true, true),
            ("/v1/", true, true),
            // `/v1/*` does not allow `/v1`, but a server may serve them alike.
            ("/v1", false, true),
            ("/v1;a", false, true),
            ("/v10", false, false),
            ("/v1//x", true, true),
            ("//v1/x", false, true),
            ("/v1;a/x", false, true),
            ("/V1/x", false, false),
            ("/v1/../admin", false, true),
        ] {
            assert_eq!(path(received).surely_is(&below), surely, "{received}");
            assert_eq!(path(received).may_be(&below), may, "{received}");
        }
        assert!(path("/%61dmin").surely_is(&exact));
        assert!(path("//admin").may_be(&exact) && !path("//admin").surely_is(&exact));
        for received in ["/admin/", "/admin//", "//admin/", "/admin/;x"] {
            assert!(path(received).may_be(&exact), "{received}");
            assert!(!path(received).surely_is(&exact), "{received}");
        }
        assert!(path("/admin").may_be(&PathPattern::Exact("/admin/".into())));
        assert!(!path("/admin").surely_is(&PathPattern::Exact("/admin/".into())));
        assert!(!path("/admin/x").may_be(&exact) && !path("/").may_be(&exact));
        let root = PathPattern::Exact("/".into());
        assert!(path("//").may_be(&root) && !path("/a").may_be(&root));
        assert!(path("/v1/é").surely_is(&PathPattern::Exact("/v1/%c3%a9".into())));
    }

    /// Go's `net/http`, for one, serves both alike; others do not.
    #[test]
    fn an_escape_of_what_a_path_may_hold_is_read_both_ways() {
        let path = RequestPath::new;
        let exact = |named: &str| PathPattern::Exact(named.into());
        let below = |named: &str| PathPattern::Below(named.into());
        assert_eq!(clear("/a%3ab"), ("/a%3Ab".into(), "/a:b".into()));
        for (received, pattern) in [
            ("/v1/orders%3Acancel", exact("/v1/orders:cancel")),
            ("/v1//orders%3Acancel", exact("/v1/orders:cancel")),
            ("/v1/orders:cancel", exact("/v1/orders%3Acancel")),
            ("/%40fs/x", below("/@fs/")),
            ("/@fs/x", below("/%40fs/")),
            ("/%7Ba%7D/x", below("/{a}/")),
        ] {
            assert!(path(received).may_be(&pattern), "{received}");
            assert!(!path(received).surely_is(&pattern), "{received}");
        }
        for (received, pattern) in [
            ("/a%3Ab", exact("/a%3ab")),
            ("/a:b", exact("/a:b")),
            ("/a%20b/%3A", below("/a%20b/")),
        ] {
            assert!(path(received).surely_is(&pattern), "{received}");
        }
        // What would divide it, or end it, is nobody's to undo.
        for received in ["/a%3Bb", "/a%3Fb", "/a%23b", "/100%25", "/a%20b"] {
            let (sent, folded) = clear(received);
            assert_eq!(sent, folded, "{received}");
        }
        assert!(is_usable("/a%3Ab") && canonical("/a%3ab").as_deref() == Some("/a%3Ab"));
    }

    #[test]
    fn a_pattern_that_could_never_match_is_not_usable() {
        assert!(is_usable("/v1/") && is_usable("/") && is_usable("/a%20b"));
        for pattern in ["", "v1", "/a?b", "/a/../b", "/a//b", "/a%2Fb", "/a;b"] {
            assert!(!is_usable(pattern), "{pattern}");
        }
    }
}
