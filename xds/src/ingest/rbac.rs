//! Envoy's RBAC, in the shape that rules compile to, back to rules.

use std::sync::Arc;

use zeugma_core::authorize::path::is_usable;
use zeugma_core::identity::IdPattern;
use zeugma_core::names::{Host, HostPattern, SniTarget};
use zeugma_core::snapshot::{
    HeaderRule, PathPattern, Policy, PolicyMode, Position, Rule, SniPattern, ValuePattern,
};

use super::Names;
use crate::compile::rbac::{ATTESTED_BY, FORMED, begin_of_each, in_a_list};
use crate::pb::{self, matcher, rbac};

/// The rules that one listener has of one list.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    is_allow: bool,
    /// In the order of the names of their policies.
    rules: Vec<(String, usize, Rule)>,
}

impl Listed {
    /// Reads rules.
    pub(super) fn read(rules: &rbac::Rbac, names: &Names) -> Result<Self, String> {
        let is_allow = match rbac::rbac::Action::try_from(rules.action) {
            Ok(rbac::rbac::Action::Allow) => true,
            Ok(rbac::rbac::Action::Deny) => false,
            Ok(rbac::rbac::Action::Log) | Err(_) => {
                return Err(format!("RBAC action {} is not supported", rules.action));
            }
        };
        let mut policies: Vec<_> = rules.policies.iter().collect();
        policies.sort_by_key(|(name, _)| name.as_str());
        let mut rules = Vec::with_capacity(policies.len());
        for (name, policy) in policies {
            let (at, rule) =
                rule(name, policy, names).map_err(|error| format!("policy `{name}`: {error}"))?;
            rules.push((name.clone(), at, rule));
        }
        Ok(Self { is_allow, rules })
    }
}

/// Rules by their place in the list they were written in.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Numbered {
    allow: Vec<(usize, Rule)>,
    deny: Vec<(usize, Rule)>,
}

impl Numbered {
    /// Adds the rules that one listener has.
    pub(super) fn add(&mut self, listed: Listed) -> Result<(), String> {
        let list = if listed.is_allow {
            &mut self.allow
        } else {
            &mut self.deny
        };
        if list.is_empty() {
            // Most services have one rule: room that grows is room for four.
            list.reserve_exact(listed.rules.len());
        }
        for (name, at, rule) in listed.rules {
            match list.binary_search_by_key(&at, |(known, _)| *known) {
                Ok(known) if list.get(known).is_some_and(|(_, known)| *known != rule) => {
                    return Err(format!("policy `{name}` differs between listeners"));
                }
                Ok(_) => {}
                Err(between) => list.insert(between, (at, rule)),
            }
        }
        Ok(())
    }

    /// The rules in the order written.
    pub(super) fn into_policy(self, mode: PolicyMode) -> Policy {
        Policy {
            mode,
            allow: self.allow.into_iter().map(|(_, rule)| rule).collect(),
            deny: self.deny.into_iter().map(|(_, rule)| rule).collect(),
        }
    }
}

/// The inverse of [`policy_name`](crate::compile::rbac::policy_name).
fn read_name(name: &str) -> Option<(usize, Vec<Arc<str>>, Position)> {
    let (at, rest) = name.split_once(' ')?;
    let (listeners, place) = rest.split_once(" at ")?;
    let listeners = match listeners.strip_prefix("listeners ") {
        Some(list) => list.split(',').map(Arc::from).collect(),
        None => Vec::new(),
    };
    let (file, line) = place.rsplit_once(':')?;
    Some((
        at.parse().ok()?,
        listeners,
        Position {
            file: file.into(),
            line: line.parse().ok()?,
        },
    ))
}

fn rule(name: &str, policy: &rbac::Policy, names: &Names) -> Result<(usize, Rule), String> {
    let (at, listeners, position) =
        read_name(name).ok_or("its name does not say where the rule was written")?;
    let mut rule = Rule {
        listeners,
        position: Some(position),
        ..Default::default()
    };
    for principal in &policy.principals {
        read_principal(principal, &mut rule, names)?;
    }
    for permission in &policy.permissions {
        read_permission(permission, &mut rule)?;
    }
    Ok((at, rule))
}

fn read_principal(
    principal: &rbac::Principal,
    rule: &mut Rule,
    names: &Names,
) -> Result<(), String> {
    use rbac::principal::Identifier;

    match principal.identifier.as_ref() {
        Some(Identifier::Any(true)) => Ok(()),
        Some(Identifier::AndIds(set) | Identifier::OrIds(set)) => set
            .ids
            .iter()
            .try_for_each(|id| read_principal(id, rule, names)),
        Some(Identifier::Authenticated(authenticated)) => {
            rule.from
                .push(id_pattern(authenticated.principal_name.as_ref())?);
            Ok(())
        }
        Some(Identifier::DirectRemoteIp(range)) => {
            rule.sources.push(pb::from_cidr(range)?);
            Ok(())
        }
        Some(Identifier::SourcedMetadata(sourced))
            if sourced.metadata_source() == rbac::MetadataSource::Dynamic =>
        {
            let metadata = sourced.metadata_matcher.as_ref();
            let metadata = metadata.ok_or("metadata without a matcher is not supported")?;
            rule.via.push(names.peer(attested_by(metadata)?)?);
            Ok(())
        }
        _ => Err("a principal of this kind is not supported".to_owned()),
    }
}

fn attested_by(metadata: &matcher::MetadataMatcher) -> Result<&str, String> {
    use matcher::metadata_matcher::path_segment::Segment;
    use matcher::string_matcher::MatchPattern;

    let unsupported = || "metadata of this kind is not supported".to_owned();
    let key = metadata.path.first().and_then(|path| path.segment.as_ref());
    let Some(Segment::Key(key)) = key else {
        return Err(unsupported());
    };
    let value = metadata
        .value
        .as_ref()
        .and_then(|value| value.match_pattern.as_ref());
    let Some(matcher::value_matcher::MatchPattern::StringMatch(text)) = value else {
        return Err(unsupported());
    };
    match &text.match_pattern {
        Some(MatchPattern::Exact(peer))
            if metadata.filter == pb::METADATA && key == ATTESTED_BY && !metadata.invert =>
        {
            Ok(peer)
        }
        _ => Err(unsupported()),
    }
}

fn read_permission(permission: &rbac::Permission, rule: &mut Rule) -> Result<(), String> {
    use matcher::string_matcher::MatchPattern;
    use pb::route::header_matcher::HeaderMatchSpecifier;
    use rbac::permission::Rule as Kind;

    let unsupported = || "a permission of this kind is not supported".to_owned();
    match permission.rule.as_ref() {
        Some(Kind::Any(true)) => Ok(()),
        Some(Kind::AndRules(set) | Kind::OrRules(set)) => set
            .rules
            .iter()
            .try_for_each(|permission| read_permission(permission, rule)),
        Some(Kind::Header(header)) if header.name == ":method" && !header.invert_match => {
            let Some(HeaderMatchSpecifier::StringMatch(text)) = &header.header_match_specifier
            else {
                return Err(unsupported());
            };
            let Some(MatchPattern::Exact(method)) = &text.match_pattern else {
                return Err(unsupported());
            };
            rule.methods.push(method.as_str().into());
            Ok(())
        }
        Some(Kind::Header(header)) if !header.invert_match && !header.name.starts_with(':') => {
            read_header(header, rule).ok_or_else(unsupported)
        }
        Some(Kind::RequestedServerName(name)) => {
            read_server_name(name, rule).ok_or_else(unsupported)
        }
        Some(Kind::UrlPath(path)) => {
            let Some(matcher::path_matcher::Rule::Path(text)) = &path.rule else {
                return Err(unsupported());
            };
            let (path, pattern): (&str, fn(Arc<str>) -> PathPattern) = match &text.match_pattern {
                Some(MatchPattern::Exact(path)) => (path, PathPattern::Exact),
                Some(MatchPattern::Prefix(prefix)) if prefix.ends_with('/') => {
                    (prefix, PathPattern::Below)
                }
                _ => return Err(unsupported()),
            };
            // A deny rule that matches nothing would let through what it names.
            if !is_usable(path) {
                return Err(format!("no request is matched by the path `{path}`"));
            }
            rule.paths.push(pattern(path.into()));
            Ok(())
        }
        _ => Err(unsupported()),
    }
}

/// A host that TLS names; its names in Istio's forms are said again after the bare one.
fn read_server_name(name: &matcher::StringMatcher, rule: &mut Rule) -> Option<()> {
    use matcher::string_matcher::MatchPattern;

    let pattern = match name.match_pattern.as_ref()? {
        MatchPattern::Exact(name) => {
            let SniTarget { host, port } = SniTarget::parse(name).ok()?;
            let pattern = SniPattern::Host(HostPattern::Exact(host));
            if port.is_some() {
                return (rule.sni.last() == Some(&pattern)).then_some(());
            }
            pattern
        }
        MatchPattern::Suffix(suffix) if suffix.starts_with(FORMED) => {
            let host = Host::parse(suffix.strip_prefix(FORMED)?).ok()?;
            let pattern = SniPattern::Host(HostPattern::Exact(host));
            return (rule.sni.last() == Some(&pattern)).then_some(());
        }
        MatchPattern::Suffix(suffix) => {
            let below = Host::parse(suffix.strip_prefix('.')?).ok()?;
            SniPattern::Host(HostPattern::Below(below))
        }
        MatchPattern::Prefix(_)
        | MatchPattern::SafeRegex(_)
        | MatchPattern::Contains(_)
        | MatchPattern::Custom(_) => return None,
    };
    rule.sni.push(pattern);
    Some(())
}

/// A value of a header; that one may stand in a list is said again after the value itself.
fn read_header(header: &pb::route::HeaderMatcher, rule: &mut Rule) -> Option<()> {
    use matcher::string_matcher::MatchPattern;
    use pb::route::header_matcher::HeaderMatchSpecifier;

    let value = match header.header_match_specifier.as_ref() {
        Some(HeaderMatchSpecifier::PresentMatch(true)) => ValuePattern::Begins("".into()),
        Some(HeaderMatchSpecifier::StringMatch(text)) => match text.match_pattern.as_ref()? {
            MatchPattern::Exact(value) => ValuePattern::Exact(value.as_str().into()),
            MatchPattern::Prefix(prefix) => ValuePattern::Begins(prefix.as_str().into()),
            MatchPattern::SafeRegex(listed) => match begin_of_each(&listed.regex) {
                Some(begin) => ValuePattern::Begins(begin.into()),
                None => {
                    let last = rule.headers.last().filter(|of| *of.name == *header.name);
                    let last = last.and_then(|of| of.values.last())?;
                    return (listed.regex == in_a_list(last)).then_some(());
                }
            },
            MatchPattern::Suffix(_) | MatchPattern::Contains(_) | MatchPattern::Custom(_) => {
                return None;
            }
        },
        _ => return None,
    };
    match rule.headers.iter_mut().find(|of| *of.name == *header.name) {
        Some(known) => known.values.push(value),
        None => rule.headers.push(HeaderRule {
            name: header.name.as_str().into(),
            values: vec![value],
        }),
    }
    Some(())
}

/// The inverse of [`id_matcher`](crate::compile::rbac::id_matcher).
pub(super) fn id_pattern(matcher: Option<&matcher::StringMatcher>) -> Result<IdPattern, String> {
    use matcher::string_matcher::MatchPattern;

    let text = match matcher.and_then(|matcher| matcher.match_pattern.as_ref()) {
        Some(MatchPattern::Exact(id)) => id.clone(),
        Some(MatchPattern::Prefix(prefix)) if prefix.ends_with('/') => format!("{prefix}*"),
        _ => return Err("an identity is matched by its whole or its parent alone".to_owned()),
    };
    IdPattern::parse(&text).map_err(|error| format!("`{text}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_named_once_however_many_names_of_it_are_said_after_it() {
        let read = |names: &[matcher::StringMatcher]| {
            let mut rule = Rule::default();
            let all = (names.iter()).try_for_each(|name| read_server_name(name, &mut rule));
            all.map(|()| rule.sni)
        };
        let host = |pattern| SniPattern::Host(HostPattern::parse(pattern).unwrap());
        let (bare, port) = (pb::exactly("a.x"), pb::exactly("outbound_.80_._.a.x"));
        let formed = pb::ending("_.a.x");
        let names = [
            bare.clone(),
            port.clone(),
            formed.clone(),
            pb::ending(".b.x"),
        ];
        assert_eq!(read(&names), Some(vec![host("a.x"), host("*.b.x")]));
        // By themselves they would be wider than a rule of ours, or narrower.
        for wrong in [
            vec![port],
            vec![formed.clone()],
            vec![pb::exactly("b.x"), formed.clone()],
            vec![pb::ending(".a.x"), formed],
            vec![bare, pb::ending("_.b.x")],
            vec![pb::ending("a.x")],
        ] {
            assert_eq!(read(&wrong), None, "{wrong:?}");
        }
    }
}
