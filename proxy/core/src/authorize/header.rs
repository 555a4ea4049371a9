//! Headers of requests, as rules name them. A request may have a header several times, and one line may
//! hold several values: whoever reads it may take any of them.

use crate::engine::Headers;
use crate::snapshot::{HeaderRule, ValuePattern};

/// Whether a request has a header, and nothing in it but values that the rule names.
pub(super) fn surely(rule: &HeaderRule, headers: Headers<'_>) -> bool {
    let (mut is_there, mut all) = (false, true);
    headers.each(&rule.name, &mut |line| {
        is_there = true;
        all &= rule.values.iter().any(|of| of.is(line));
    });
    is_there && all
}

/// Whether one of a header's values may be one that the rule names: a whole line, or what stands between
/// commas, in upper or lower case.
pub(super) fn perhaps(rule: &HeaderRule, headers: Headers<'_>) -> bool {
    let mut may = false;
    headers.each(&rule.name, &mut |line| {
        may |= (rule.values.iter()).any(|of| {
            let mut parts = line.split(|byte| *byte == b',');
            of.may_be(line.trim_ascii()) || parts.any(|part| of.may_be(part.trim_ascii()))
        });
    });
    may
}

impl ValuePattern {
    fn is(&self, line: &[u8]) -> bool {
        match self {
            Self::Exact(value) => line == value.as_bytes(),
            Self::Begins(prefix) if prefix.is_empty() => true,
            // What comes after the begin may go on with another value.
            Self::Begins(prefix) => line
                .split(|byte| *byte == b',')
                .all(|part| part.trim_ascii().starts_with(prefix.as_bytes())),
        }
    }

    fn may_be(&self, part: &[u8]) -> bool {
        match self {
            Self::Exact(value) => part.eq_ignore_ascii_case(value.as_bytes()),
            Self::Begins(prefix) => {
                let begin = part.get(..prefix.len());
                begin.is_some_and(|begin| begin.eq_ignore_ascii_case(prefix.as_bytes()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(values: &[&str]) -> HeaderRule {
        let value = |text: &&str| match text.strip_suffix('*') {
            Some(prefix) => ValuePattern::Begins(prefix.into()),
            None => ValuePattern::Exact((*text).into()),
        };
        HeaderRule {
            name: "x-tenant".into(),
            values: values.iter().map(value).collect(),
        }
    }

    /// Whether it surely is, and whether it may be.
    fn ask(values: &[&str], lines: &[&str]) -> (bool, bool) {
        let each = |name: &str, tell: &mut dyn FnMut(&[u8])| {
            assert_eq!(name, "x-tenant");
            lines.iter().for_each(|line| tell(line.as_bytes()));
        };
        let (rule, headers) = (rule(values), Headers(&each));
        (surely(&rule, headers), perhaps(&rule, headers))
    }

    #[test]
    fn a_value_is_taken_at_its_word() {
        assert_eq!(ask(&["acme"], &["acme"]), (true, true));
        assert_eq!(ask(&["acme", "east-*"], &["east-1"]), (true, true));
        assert_eq!(ask(&["*"], &[""]), (true, true));
        assert_eq!(ask(&["east-*"], &["east"]), (false, false));
        assert_eq!(ask(&["acme"], &["acme2"]), (false, false));
        assert_eq!(ask(&["acme"], &[]), (false, false));
        assert_eq!(ask(&["*"], &[]), (false, false));
    }

    #[test]
    fn of_several_values_each_must_be_allowed_and_one_may_be_denied() {
        assert_eq!(ask(&["acme"], &["acme", "acme"]), (true, true));
        assert_eq!(ask(&["acme"], &["acme", "evil"]), (false, true));
        assert_eq!(ask(&["acme"], &["evil", "acme"]), (false, true));
        assert_eq!(ask(&["acme"], &["evil, acme"]), (false, true));
        assert_eq!(ask(&["acme"], &["acme,evil"]), (false, true));
        assert_eq!(ask(&["ac*"], &["evil,\tACME"]), (false, true));
        assert_eq!(ask(&["ac*"], &["acme, evil"]), (false, true));
        assert_eq!(ask(&["ac*"], &["acme,"]), (false, true));
        assert_eq!(ask(&["ac*"], &["acme,\tacid"]), (true, true));
        assert_eq!(ask(&["*"], &["acme, evil"]), (true, true));
        assert_eq!(ask(&["a, b"], &["a, b"]), (true, true));
        assert_eq!(ask(&["acme"], &["Acme"]), (false, true));
        assert_eq!(ask(&["acme"], &["evil acme"]), (false, false));
    }
}
