//! SPIFFE IDs as matchers name them.

use zeugma_core::identity::{IdPattern, SpiffeId};

use super::at::At;
use crate::pb::matcher;
use matcher::string_matcher::MatchPattern;

/// The identities that a matcher names: one by its whole, or those below one.
pub(super) fn id_pattern(
    matcher: Option<&matcher::StringMatcher>,
    at: &At<'_>,
) -> Result<IdPattern, String> {
    let Some(matcher) = matcher else {
        return at.refuse("it is missing");
    };
    at.field("ignore_case")
        .must(!matcher.ignore_case, "a SPIFFE ID is told by its case")?;
    // A `*` is a character of a name here, and one that no name has.
    let (field, text, parsed) = match &matcher.match_pattern {
        Some(MatchPattern::Exact(id)) => {
            let pattern = SpiffeId::parse(id).map(IdPattern::Exact);
            ("exact", id, pattern)
        }
        Some(MatchPattern::Prefix(prefix)) => {
            let Some(parent) = prefix.strip_suffix('/') else {
                return (at.field("prefix"))
                    .refuse("it must end with `/`: identities are told apart by whole segments");
            };
            let pattern = SpiffeId::parse(parent).map(IdPattern::Below);
            ("prefix", prefix, pattern)
        }
        _ => return at.refuse("an identity is matched by `exact` or `prefix` alone"),
    };
    parsed.map_err(|error| at.field(field).why(format!("`{text}`: {error}")))
}

/// The identities that both lists name.
pub(super) fn meet(one: &[IdPattern], other: &[IdPattern]) -> Vec<IdPattern> {
    let mut both: Vec<IdPattern> = Vec::new();
    for a in one {
        for b in other {
            let narrower = narrower(a, b).filter(|pattern| !both.contains(pattern));
            both.extend(narrower.cloned());
        }
    }
    both
}

/// The one of two patterns that is within the other.
fn narrower<'p>(a: &'p IdPattern, b: &'p IdPattern) -> Option<&'p IdPattern> {
    if is_within(a, b) {
        Some(a)
    } else {
        is_within(b, a).then_some(b)
    }
}

fn is_within(inner: &IdPattern, outer: &IdPattern) -> bool {
    match (inner, outer) {
        (IdPattern::Exact(a), IdPattern::Exact(b)) => a == b,
        (IdPattern::Exact(a), IdPattern::Below(_)) => outer.matches(a),
        (IdPattern::Below(a), IdPattern::Below(b)) => a == b || outer.matches(a),
        (IdPattern::Below(_), IdPattern::Exact(_)) => false,
    }
}
