//! `allow` and `deny` as Envoy's RBAC.

use std::collections::HashMap;

use zeugma_core::identity::IdPattern;
use zeugma_core::names::{Host, HostPattern, SniTarget};
use zeugma_core::snapshot::{Node, PathPattern, ValuePattern};

use crate::meta::PositionMeta;
use crate::model::{Document, MeshGateway, MeshRoute, Model, ProtocolSpec, RuleSpec};
use crate::pb::{self, matcher, rbac};
use crate::yaml::Placed;

/// The name of a policy says the rule's place in its list, its listeners, and where it is written;
/// Envoy shows it in logs and counters.
pub(crate) fn policy_name(at: usize, listeners: &[String], position: &PositionMeta) -> String {
    let listeners = if listeners.is_empty() {
        "any listener".to_owned()
    } else {
        format!("listeners {}", listeners.join(","))
    };
    format!("{at:04} {listeners} at {}:{}", position.file, position.line)
}

/// The rules of `route` on one listener, `allow` and `deny`, for one of its ports.
///
/// Left out is what can never match there: another cluster's listeners alone, an identity that only
/// this gateway itself could have attested, and where no requests are read what asks for one, which
/// Envoy refuses of a connection.
pub(crate) fn rules(
    model: &Model,
    gateway: &Document<MeshGateway>,
    node: &Node,
    (route, protocol): (&Document<MeshRoute>, ProtocolSpec),
    listener: &str,
) -> (rbac::Rbac, rbac::Rbac) {
    let ports: Vec<u16> = route.ports().iter().map(|port| port.port).collect();
    let list = |specs: &[Placed<RuleSpec>], action: rbac::rbac::Action| {
        let mut policies = HashMap::new();
        for (at, rule) in specs.iter().enumerate() {
            let spec = &rule.value;
            let asks_request =
                spec.methods.is_some() || spec.paths.is_some() || spec.headers.is_some();
            if asks_request && protocol == ProtocolSpec::Tcp {
                continue;
            }
            let Some(here) = on_this_gateway(model, gateway, node, spec) else {
                continue;
            };
            if !here.listeners.is_empty() && !here.listeners.iter().any(|name| name == listener) {
                continue;
            }
            let position = route.position_of_rule(rule);
            let position = PositionMeta::from(position);
            policies.insert(
                policy_name(at, &here.listeners, &position),
                policy(spec, &here.via, &ports, action),
            );
        }
        rbac::Rbac {
            action: action.into(),
            policies,
            ..Default::default()
        }
    };
    (
        list(&route.spec.allow, rbac::rbac::Action::Allow),
        list(&route.spec.deny, rbac::rbac::Action::Deny),
    )
}

struct Here {
    listeners: Vec<String>,
    via: Vec<String>,
}

fn on_this_gateway(
    model: &Model,
    gateway: &Document<MeshGateway>,
    node: &Node,
    spec: &RuleSpec,
) -> Option<Here> {
    let listeners: Option<Vec<String>> = spec.listeners.as_ref().map(|names| {
        names
            .iter()
            .map(|name| name.0.0.clone())
            .filter(|name| gateway.spec.listeners.contains_key(name))
            .collect()
    });
    let via: Option<Vec<String>> = spec.via.as_ref().map(|names| {
        names
            .iter()
            .map(|name| name.0.0.clone())
            .filter(|name| {
                model
                    .peer(name)
                    .is_some_and(|peer| *peer.spec.cluster.0.0 != *node.cluster)
            })
            .collect()
    });
    let can_match = |list: &Option<Vec<String>>| list.as_ref().is_none_or(|list| !list.is_empty());
    (can_match(&listeners) && can_match(&via)).then(|| Here {
        listeners: listeners.unwrap_or_default(),
        via: via.unwrap_or_default(),
    })
}

fn policy(
    spec: &RuleSpec,
    via: &[String],
    ports: &[u16],
    action: rbac::rbac::Action,
) -> rbac::Policy {
    let from = any_id(spec.from.iter().flatten().map(|id| authenticated(&id.0)));
    let via = any_id(via.iter().map(|peer| attested_by(peer)));
    let sources = any_id(spec.sources.iter().flatten().map(|net| {
        identifier(rbac::principal::Identifier::DirectRemoteIp(pb::cidr(
            &net.0,
        )))
    }));
    let sni = any_rule((spec.sni.iter().flatten()).flat_map(|name| match action {
        rbac::rbac::Action::Deny => denied_names(&name.0.0),
        rbac::rbac::Action::Allow | rbac::rbac::Action::Log => allowed_names(&name.0.0, ports),
    }));
    let methods = any_rule(spec.methods.iter().flatten().map(|name| method(&name.0.0)));
    let paths = any_rule(spec.paths.iter().flatten().map(|pattern| path(&pattern.0)));
    let mut ids: Vec<_> = [from, via, sources].into_iter().flatten().collect();
    if ids.is_empty() {
        ids.push(identifier(rbac::principal::Identifier::Any(true)));
    }
    let headers = spec.headers.iter().flatten().filter_map(|(name, values)| {
        let name = name.to_ascii_lowercase();
        any_rule(values.iter().flat_map(|value| match action {
            rbac::rbac::Action::Deny => denied_header(&name, &value.0),
            rbac::rbac::Action::Allow | rbac::rbac::Action::Log => {
                vec![header(&name, allowed_value(&value.0))]
            }
        }))
    });
    let mut rules: Vec<_> = [sni, methods, paths]
        .into_iter()
        .flatten()
        .chain(headers)
        .collect();
    if rules.is_empty() {
        rules.push(rule(rbac::permission::Rule::Any(true)));
    }
    rbac::Policy {
        permissions: vec![rule(rbac::permission::Rule::AndRules(
            rbac::permission::Set { rules },
        ))],
        principals: vec![identifier(rbac::principal::Identifier::AndIds(
            rbac::principal::Set { ids },
        ))],
        ..Default::default()
    }
}

/// Whom this names.
pub(crate) const fn identifier(identifier: rbac::principal::Identifier) -> rbac::Principal {
    rbac::Principal {
        identifier: Some(identifier),
    }
}

/// What this names.
pub(crate) const fn rule(rule: rbac::permission::Rule) -> rbac::Permission {
    rbac::Permission { rule: Some(rule) }
}

/// One of these; `None` of none.
pub(crate) fn any_id(ids: impl Iterator<Item = rbac::Principal>) -> Option<rbac::Principal> {
    let ids: Vec<_> = ids.collect();
    (!ids.is_empty()).then(|| {
        identifier(rbac::principal::Identifier::OrIds(rbac::principal::Set {
            ids,
        }))
    })
}

fn any_rule(rules: impl Iterator<Item = rbac::Permission>) -> Option<rbac::Permission> {
    let rules: Vec<_> = rules.collect();
    (!rules.is_empty()).then(|| {
        rule(rbac::permission::Rule::OrRules(rbac::permission::Set {
            rules,
        }))
    })
}

/// An ID, or by its prefix with the last `/` every ID below one.
pub(crate) fn id_matcher(id: &IdPattern) -> matcher::StringMatcher {
    match id {
        IdPattern::Exact(id) => pb::exactly(id.as_str()),
        IdPattern::Below(parent) => pb::beginning(&format!("{parent}/")),
    }
}

/// Who has this ID, or one below it.
pub(crate) fn authenticated(id: &IdPattern) -> rbac::Principal {
    identifier(rbac::principal::Identifier::Authenticated(
        rbac::principal::Authenticated {
            principal_name: Some(id_matcher(id)),
        },
    ))
}

/// The name of the dynamic metadata that holds the peer which attested an identity. Envoy never
/// sets it, so there such a rule matches nothing.
pub(crate) const ATTESTED_BY: &str = "attested-by";

fn attested_by(peer: &str) -> rbac::Principal {
    let matched = matcher::MetadataMatcher {
        filter: pb::METADATA.to_owned(),
        path: vec![matcher::metadata_matcher::PathSegment {
            segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(
                ATTESTED_BY.to_owned(),
            )),
        }],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(matcher::value_matcher::MatchPattern::StringMatch(
                pb::exactly(peer),
            )),
        }),
        invert: false,
    };
    identifier(rbac::principal::Identifier::SourcedMetadata(
        rbac::SourcedMetadata {
            metadata_matcher: Some(matched),
            metadata_source: rbac::MetadataSource::Dynamic.into(),
        },
    ))
}

/// What stands before a host that is asked for in any of Istio's forms.
pub(crate) const FORMED: &str = "_.";

/// Every server name of a host: bare, and with each port of the route.
fn allowed_names(pattern: &HostPattern, ports: &[u16]) -> Vec<rbac::Permission> {
    match pattern {
        HostPattern::Exact(host) => {
            let of_port = |port: &u16| SniTarget {
                host: host.clone(),
                port: Some(*port),
            };
            let with_ports = ports.iter().map(of_port).map(|name| name.to_string());
            let all = [host.to_string()].into_iter().chain(with_ports);
            all.map(|name| server_name(pb::exactly(&name))).collect()
        }
        HostPattern::Below(host) => vec![below(host)],
    }
}

/// Every server name by which somebody may mean a host. Where a wildcard takes them, there are more than
/// those with a port of the route.
fn denied_names(pattern: &HostPattern) -> Vec<rbac::Permission> {
    match pattern {
        HostPattern::Exact(host) => vec![
            server_name(pb::exactly(host.as_str())),
            server_name(pb::ending(&format!("{FORMED}{host}"))),
        ],
        HostPattern::Below(host) => vec![below(host)],
    }
}

/// With a port it ends so, too.
fn below(host: &Host) -> rbac::Permission {
    server_name(pb::ending(&format!(".{host}")))
}

const fn server_name(matched: matcher::StringMatcher) -> rbac::Permission {
    rule(rbac::permission::Rule::RequestedServerName(matched))
}

fn method(name: &str) -> rbac::Permission {
    rule(rbac::permission::Rule::Header(pb::route::HeaderMatcher {
        name: ":method".to_owned(),
        header_match_specifier: Some(
            pb::route::header_matcher::HeaderMatchSpecifier::StringMatch(pb::exactly(name)),
        ),
        ..Default::default()
    }))
}

fn header(
    name: &str,
    matched: pb::route::header_matcher::HeaderMatchSpecifier,
) -> rbac::Permission {
    rule(rbac::permission::Rule::Header(pb::route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(matched),
        ..Default::default()
    }))
}

fn value_matcher(value: &ValuePattern) -> pb::route::header_matcher::HeaderMatchSpecifier {
    use pb::route::header_matcher::HeaderMatchSpecifier;

    match value {
        ValuePattern::Exact(value) => HeaderMatchSpecifier::StringMatch(pb::exactly(value)),
        // Envoy takes no prefix of nothing.
        ValuePattern::Begins(prefix) if prefix.is_empty() => {
            HeaderMatchSpecifier::PresentMatch(true)
        }
        ValuePattern::Begins(prefix) => HeaderMatchSpecifier::StringMatch(pb::beginning(prefix)),
    }
}

/// As our engine has it for `allow`. Envoy joins the lines of a header by commas before it compares: what
/// comes after a begin must not go on with another value.
fn allowed_value(value: &ValuePattern) -> pb::route::header_matcher::HeaderMatchSpecifier {
    match value {
        ValuePattern::Begins(prefix) if !prefix.is_empty() => by_regex(each_begins(prefix)),
        ValuePattern::Exact(_) | ValuePattern::Begins(_) => value_matcher(value),
    }
}

fn by_regex(regex: String) -> pb::route::header_matcher::HeaderMatchSpecifier {
    let regex = matcher::RegexMatcher {
        regex,
        ..Default::default()
    };
    pb::route::header_matcher::HeaderMatchSpecifier::StringMatch(matcher::StringMatcher {
        match_pattern: Some(matcher::string_matcher::MatchPattern::SafeRegex(regex)),
        ignore_case: false,
    })
}

/// As our engine has it for `deny`: in any case of letters, and anywhere in a list. Envoy joins the lines
/// of a header by commas before it compares.
fn denied_header(name: &str, value: &ValuePattern) -> Vec<rbac::Permission> {
    use pb::route::header_matcher::HeaderMatchSpecifier;

    let mut plain = value_matcher(value);
    let HeaderMatchSpecifier::StringMatch(matched) = &mut plain else {
        return vec![header(name, plain)];
    };
    matched.ignore_case = true;
    let listed = by_regex(in_a_list(value));
    vec![header(name, plain), header(name, listed)]
}

/// A list with commas each of whose values begins so (RE2, which Envoy holds against the whole).
fn each_begins(prefix: &str) -> String {
    let one = format!("{}{REST}", literal(prefix));
    format!("{one}(,[ \\t]*{one})*")
}

/// What a value goes on with.
const REST: &str = "[^,]*";

/// What each value of a list begins with, by [`each_begins`].
pub(crate) fn begin_of_each(regex: &str) -> Option<String> {
    let mut begin = String::new();
    let mut chars = regex.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => begin.push(chars.next()?),
            '[' => break,
            _ => begin.push(c),
        }
    }
    (!begin.is_empty() && each_begins(&begin) == regex).then_some(begin)
}

/// A value in a list with commas (RE2, which Envoy holds against the whole). `\C` is any byte; `.` is none
/// of what is not UTF-8, with which a caller would hide the rest.
pub(crate) fn in_a_list(value: &ValuePattern) -> String {
    let (ValuePattern::Exact(text) | ValuePattern::Begins(text)) = value;
    let literal = literal(text);
    let end = match value {
        ValuePattern::Exact(_) => "[ \\t]*(,\\C*)?",
        ValuePattern::Begins(_) => "\\C*",
    };
    format!("(?i)(\\C*,)?[ \\t]*{literal}{end}")
}

fn literal(text: &str) -> String {
    let mut literal = String::new();
    for c in text.chars() {
        if c.is_ascii_punctuation() {
            literal.push('\\');
        }
        literal.push(c);
    }
    literal
}

fn path(pattern: &PathPattern) -> rbac::Permission {
    let matcher = match pattern {
        PathPattern::Exact(path) => pb::exactly(path),
        PathPattern::Below(prefix) => pb::beginning(prefix),
    };
    rule(rbac::permission::Rule::UrlPath(matcher::PathMatcher {
        rule: Some(matcher::path_matcher::Rule::Path(matcher)),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_begin_is_read_back_from_what_holds_it_against_each_value() {
        assert_eq!(each_begins("a.b-"), r"a\.b\-[^,]*(,[ \t]*a\.b\-[^,]*)*");
        for begin in ["beta-", "a.b+c", "[x]", r"\", "(?i)", "a b"] {
            assert_eq!(begin_of_each(&each_begins(begin)).as_deref(), Some(begin));
        }
        for other in [
            "",
            "beta.*",
            "beta[^,]*",
            "[^,]*(,[ \\t]*[^,]*)*",
            "\\",
            &in_a_list(&ValuePattern::Begins("beta".into())),
        ] {
            assert_eq!(begin_of_each(other), None, "{other}");
        }
    }
}
