//! Server names of TLS (RFC 6066 §3), as rules name them.

use std::borrow::Cow;

use crate::names::{HostPattern, split_sni, strip_outbound};
use crate::snapshot::SniPattern;

/// A server name as rules are compared with it.
pub(super) struct ServerName<'a> {
    /// In lower case, and as it was sent otherwise.
    text: Cow<'a, str>,
    /// The host that it names; `None`: it names none.
    host: Option<Cow<'a, str>>,
}

impl<'a> ServerName<'a> {
    /// Reads what a ClientHello named.
    pub(super) fn new(sent: &'a str) -> Self {
        let is_lower = !sent.bytes().any(|byte| byte.is_ascii_uppercase());
        Self {
            text: if is_lower {
                sent.into()
            } else {
                sent.to_ascii_lowercase().into()
            },
            host: split_sni(sent).ok().map(|(host, _port)| host),
        }
    }

    /// Whether it is what an allow rule names.
    pub(super) fn surely_is(&self, pattern: &SniPattern) -> bool {
        match pattern {
            SniPattern::Host(of) => self.host.as_ref().is_some_and(|host| of.matches_name(host)),
            SniPattern::Text(of) => of.matches_name(&self.text),
        }
    }

    /// Whether it may be what a deny rule names: what names no host may be any.
    pub(super) fn may_be(&self, pattern: &SniPattern) -> bool {
        match pattern {
            SniPattern::Host(of) => {
                (self.host.as_ref()).is_none_or(|host| of.matches_name(host) || is_inside(host, of))
            }
            SniPattern::Text(of) => {
                is_text(&self.text, of)
                    || (self.text.strip_suffix('.')).is_some_and(|text| is_text(text, of))
            }
        }
    }
}

/// Whether a host that is none of Istio's forms to us ends in this one as those do: whoever knows more of
/// them, as that of a subset, `outbound_.80_.v1_.a.x`, takes it for that. What is below another host is so as
/// a whole too.
fn is_inside(host: &str, of: &HostPattern) -> bool {
    match of {
        HostPattern::Exact(exact) => {
            let head = host.strip_suffix(exact.as_str());
            strip_outbound(host).is_some() && head.is_some_and(|head| head.ends_with("_."))
        }
        HostPattern::Below(_) => false,
    }
}

/// As Envoy compares: a suffix may be the whole.
fn is_text(text: &str, of: &HostPattern) -> bool {
    match of {
        HostPattern::Exact(exact) => text == exact.as_str(),
        HostPattern::Below(above) => {
            (text.strip_suffix(above.as_str())).is_some_and(|head| head.ends_with('.'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it surely is, and whether it may be.
    fn ask(make: fn(HostPattern) -> SniPattern, pattern: &str, sent: &str) -> (bool, bool) {
        let pattern = make(HostPattern::parse(pattern).unwrap());
        let name = ServerName::new(sent);
        (name.surely_is(&pattern), name.may_be(&pattern))
    }

    #[test]
    fn a_host_is_named_in_any_case_with_a_dot_at_its_end_and_with_a_port() {
        let of = |pattern, sent| ask(SniPattern::Host, pattern, sent);
        for sent in [
            "a.x",
            "A.X",
            "a.x.",
            "outbound_.80_._.a.x",
            "outbound_.80_._.A.x.",
            "OUTBOUND_.80_._.a.x",
            "Outbound_.80_._.a.X.",
        ] {
            assert_eq!(of("a.x", sent), (true, true), "{sent}");
            assert_eq!(of("*.x", sent), (true, true), "{sent}");
            assert_eq!(of("b.x", sent), (false, false), "{sent}");
            assert_eq!(of("*.a.x", sent), (false, false), "{sent}");
        }
        for sent in ["x", "outbound_.80_._.x", "ax"] {
            assert_eq!(of("*.x", sent), (false, false), "{sent}");
        }
        assert_eq!(of("*.x", "b.a.x"), (true, true));
    }

    #[test]
    fn a_host_of_labels_like_istio_s_forms_is_no_other_host_and_may_be_taken_for_one() {
        let of = |pattern, sent| ask(SniPattern::Host, pattern, sent);
        for sent in [
            "outbound_.080_._.a.x",
            "outbound_.+80_._.a.x",
            "outbound_.80_.v1_.a.x",
            "OUTBOUND_.80_.V1_.A.x.",
            "outbound_.80_.v_._.a.x",
            "outbound_.80_._.outbound_.80_._.a.x",
            "outbound_.a.x",
        ] {
            let may = !sent.contains('+');
            assert_eq!(of("a.x", sent), (false, true), "{sent}");
            assert_eq!(of("*.x", sent), (may, true), "{sent}");
            // What names no host may be any.
            assert_eq!(of("b.x", sent), (false, !may), "{sent}");
            assert_eq!(of("x", sent), (false, !may), "{sent}");
        }
        let subset = "outbound_.80_.v1_.b_.a.x";
        assert_eq!(of("b_.a.x", subset), (false, true));
        assert_eq!(of("*.a.x", subset), (true, true));
        // Of no form of Istio's.
        assert_eq!(of("a.x", "inbound_.80_._.a.x"), (false, false));
        assert_eq!(of("a.x", "xoutbound_.80_._.a.x"), (false, false));
    }

    #[test]
    fn what_names_no_host_is_none_that_is_let_in_and_any_that_is_kept_out() {
        for sent in ["", "a..x", "10.0.0.1", "a x", "a.x.."] {
            assert_eq!(ask(SniPattern::Host, "a.x", sent), (false, true), "{sent}");
        }
    }

    #[test]
    fn a_text_is_taken_at_its_word_but_for_its_case() {
        let of = |pattern, sent| ask(SniPattern::Text, pattern, sent);
        assert_eq!(of("a.x", "A.x"), (true, true));
        assert_eq!(of("a.x", "a.x."), (false, true));
        assert_eq!(of("a.x", "outbound_.80_._.a.x"), (false, false));
        assert_eq!(of("*.x", "outbound_.80_._.x"), (true, true));
        assert_eq!(of("*.x", "a..x"), (true, true));
        assert_eq!(of("*.x", "x"), (false, false));
        // To Envoy it ends so.
        assert_eq!(of("*.x", ".x"), (false, true));
        assert_eq!(of("*.x", ".X."), (false, true));
    }
}
