//! `rules` as Envoy's routes: one for each match, in the order of precedence.
//!
//! Envoy asks them of everybody. That a peer's gateway has applied its own already is ours to know,
//! and so is what Envoy has no field for: the deadline of a response's head alone, the part of a split
//! that other clusters' requests may go to, the host that a peer knows another route by, and whose
//! `deny` and `export` that route has.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use zeugma_core::rules::{Field, Match, PathMatch};
use zeugma_core::snapshot::Node;

use super::listeners::{Common, retry_words};
use super::target::Target;
use super::{Scope, Service, Services, cluster_name, clusters};
use crate::error::{Code, Finding};
use crate::meta::{PartMeta, PositionMeta, RouteMeta, RuleMeta};
use crate::model::scalar::{FieldValue, Text};
use crate::model::{
    Document, HeaderChangesSpec, HttpRuleSpec, MatchSpec, MeshRoute, PartSpec, PathSpec,
    ProtocolSpec,
};
use crate::pb::{self, route};

/// A cluster that does not exist: Envoy answers 503 for it.
const NOTHING: &str = "split|nothing";

/// What a rule, the `nth` of its route, matches.
pub(crate) fn matches_of(rule: &HttpRuleSpec, nth: usize) -> Vec<Match> {
    match &rule.matches {
        Some(matches) => matches.iter().map(|one| one_match(one, nth)).collect(),
        None => vec![Match {
            rule: nth,
            ..Match::default()
        }],
    }
}

fn one_match(spec: &MatchSpec, rule: usize) -> Match {
    let (path, method) = match (&spec.grpc, &spec.path) {
        (Some(grpc), _) => {
            let service = &grpc.service.0.0;
            let path = match &grpc.method {
                Some(Text(method)) => PathMatch::Exact(format!("/{service}/{}", method.0).into()),
                None => PathMatch::Prefix(format!("/{service}").into()),
            };
            (path, Some(Arc::from("POST")))
        }
        (None, path) => {
            let path = match path {
                None => PathMatch::Any,
                Some(PathSpec::Exact(path)) => PathMatch::Exact(Arc::clone(&path.0.0)),
                // Gateway API: a slash at the end of a prefix says nothing.
                Some(PathSpec::Prefix(path)) => match path.0.0.trim_end_matches('/') {
                    "" => PathMatch::Any,
                    prefix => PathMatch::Prefix(prefix.into()),
                },
            };
            (
                path,
                spec.method.as_ref().map(|method| Arc::clone(&method.0.0)),
            )
        }
    };
    let headers = spec.headers.iter().flatten();
    let query = spec.query.iter().flatten();
    Match {
        rule,
        path,
        method,
        headers: headers
            .map(|(name, value)| field(&name.to_ascii_lowercase(), &value.0.0))
            .collect(),
        query: query.map(|(name, value)| field(name, value)).collect(),
    }
}

fn field(name: &str, value: &str) -> Field {
    Field {
        name: name.into(),
        value: value.into(),
    }
}

/// The routes of a service's virtual host.
pub(super) fn routes(
    services: &Services<'_>,
    service: &Service<'_>,
    scope: Scope,
    common: &Common,
) -> Vec<route::Route> {
    let rules = &service.route.spec.rules;
    let built: Vec<(RuleMeta, route::Route)> = (rules.iter().enumerate())
        .map(|(nth, rule)| {
            let position = service.route.position_of_rule(rule);
            let position = position.into();
            let meta = meta(services, service, &rule.value, (nth, position));
            let route = of_rule(&rule.value, &meta, scope, common);
            (meta, route)
        })
        .collect();
    let matches = rules.iter().enumerate();
    let mut matches: Vec<Match> = matches
        .flat_map(|(nth, rule)| matches_of(&rule.value, nth))
        .collect();
    matches.sort_by_key(|one| Reverse(one.precedence()));
    let each = |one: &Match| {
        let (meta, route) = built.get(one.rule)?;
        Some(route::Route {
            r#match: Some(envoy_match(one)),
            metadata: Some(pb::metadata(&RouteMeta {
                mirrors: common.mirrors.clone(),
                rule: Some(meta.clone()),
            })),
            ..route.clone()
        })
    };
    matches.iter().filter_map(each).collect()
}

fn meta(
    services: &Services<'_>,
    service: &Service<'_>,
    rule: &HttpRuleSpec,
    (nth, position): (usize, PositionMeta),
) -> RuleMeta {
    let millis =
        |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let timeouts = &rule.timeouts;
    let retries = &rule.retries;
    RuleMeta {
        nth,
        label: (rule.name.as_ref()).map_or_else(|| nth.to_string(), |name| name.0.0.clone()),
        parts: rule.split.as_ref().map(|split| {
            let parts = split
                .iter()
                .filter_map(|spec| part(services, service, spec));
            parts.map(|part| part.meta).collect()
        }),
        response_headers_millis: timeouts
            .response_headers
            .as_ref()
            .map(|limit| millis(limit.0)),
        per_try_millis: (timeouts.per_try.as_ref()).map(|limit| limit.0.0.map_or(0, millis)),
        attempts: retries.attempts,
        on: (retries.on.as_ref())
            .map(|on| on.iter().map(|cause| clusters::cause(cause.0.0)).collect()),
        any_method: retries.any,
        position,
    }
}

/// A part of a split as this gateway has it.
struct Part<'s> {
    meta: PartMeta,
    /// The backends that it is of, where it is of some of the route's own.
    targets: Vec<&'s Target>,
}

/// `None` where nothing of it is here.
fn part<'s>(
    services: &Services<'_>,
    service: &'s Service<'_>,
    spec: &PartSpec,
) -> Option<Part<'s>> {
    let weight = spec.weight.unwrap_or(1);
    if let Some(Text(reference)) = &spec.route {
        let id = reference.id(&service.route.namespace);
        let http = || (services.of_route(&id)).filter(|to| to.port.protocol == ProtocolSpec::Http);
        let same_port = http().find(|to| to.port.port == service.port.port);
        let to = same_port.or_else(|| http().next())?;
        return Some(Part {
            meta: PartMeta {
                label: id,
                weight,
                outbound: cluster_name(Scope::Outbound, &to.id),
                own: to.has_own.then(|| cluster_name(Scope::Own, &to.id)),
                host: to.route.first_host().map(|host| host.to_string()),
                service: Some(to.id.clone()),
            },
            targets: Vec::new(),
        });
    }
    let targets = named(spec, &service.targets);
    let is_own = |target: &&Target| target.peer.is_none();
    let count_own = |targets: &mut dyn Iterator<Item = &Target>| {
        targets.filter(|target| target.peer.is_none()).count()
    };
    let own = count_own(&mut targets.iter().copied());
    let all_own = count_own(&mut service.targets.iter());
    let names: Vec<&str> = targets.iter().map(|target| target.name()).collect();
    let own_names: Vec<&str> = (targets.iter().copied())
        .filter(is_own)
        .map(Target::name)
        .collect();
    let name = |scope: Scope, is_all: bool, names: &[&str]| {
        if is_all {
            return cluster_name(scope, &service.id);
        }
        format!(
            "split|{}|{}|{}",
            scope.as_str(),
            service.id,
            names.join(",")
        )
    };
    (!targets.is_empty()).then(|| Part {
        meta: PartMeta {
            label: names.join(","),
            weight,
            outbound: name(
                Scope::Outbound,
                targets.len() == service.targets.len(),
                &names,
            ),
            own: (own > 0).then(|| name(Scope::Own, own == all_own, &own_names)),
            host: None,
            service: None,
        },
        targets,
    })
}

/// What of a route's targets a part is of.
fn named<'t>(spec: &PartSpec, targets: &'t [Target]) -> Vec<&'t Target> {
    let is_named = |target: &&Target| names(spec, target).next().is_some();
    targets.iter().filter(is_named).collect()
}

/// What a part calls a target.
fn names<'s>(spec: &'s PartSpec, target: &'s Target) -> impl Iterator<Item = &'s str> {
    let names = spec.backends.iter().flatten().map(|name| &*name.0.0);
    names.filter(|name| target.names.iter().any(|own| own == name))
}

/// Parts of one split that reach backends through one peer, whose gateway is told of no part.
pub(super) fn indistinct(
    route: &Document<MeshRoute>,
    targets: &[Target],
    node: &Node,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (nth, rule) in route.spec.rules.iter().enumerate() {
        let split = rule.value.split.as_deref().unwrap_or_default();
        for (at, part) in split.iter().enumerate() {
            for target in named(part, targets) {
                let Some(peer) = &target.peer else {
                    continue;
                };
                // What both call by one name was meant to be in both.
                let is_other = |before: &&PartSpec| {
                    let mut of_both = names(before, target);
                    let own = |name| names(part, target).any(|own| own == name);
                    names(before, target).next().is_some() && !of_both.any(own)
                };
                let Some(before) = split.iter().take(at).position(|one| is_other(&one)) else {
                    continue;
                };
                let message = format!(
                    "this part and `split[{before}]` are one to gateway `{}`: both are behind peer \
                     `{peer}`, which spreads requests over all that it has",
                    node.name
                );
                let finding = Finding::error(Code::NoEffect, message)
                    .warning()
                    .help("make them one part, or name a route of their own for each as `route`")
                    .at(route.at(&format!("spec.rules[{nth}].split[{at}]")));
                findings.push(finding);
            }
        }
    }
    findings
}

/// The clusters of parts that are of some backends alone: their names, scopes and targets.
pub(super) fn clusters<'s>(
    services: &Services<'_>,
    service: &'s Service<'_>,
) -> BTreeMap<String, (Scope, Vec<&'s Target>)> {
    let mut all = BTreeMap::new();
    let splits = (service.route.spec.rules.iter()).filter_map(|rule| rule.value.split.as_ref());
    for spec in splits.flatten() {
        let Some(Part { meta, targets }) = part(services, service, spec) else {
            continue;
        };
        let own = targets
            .iter()
            .copied()
            .filter(|target| target.peer.is_none());
        let own: Vec<&Target> = own.collect();
        for (scope, name, targets) in [
            (Scope::Outbound, Some(meta.outbound), targets),
            (Scope::Own, meta.own, own),
        ] {
            if let Some(name) = name.filter(|name| name.starts_with("split|")) {
                all.insert(name, (scope, targets));
            }
        }
    }
    all
}

/// What is the same for every match of a rule.
fn of_rule(rule: &HttpRuleSpec, meta: &RuleMeta, scope: Scope, common: &Common) -> route::Route {
    let mut action = common.action.clone();
    if let Some(parts) = &meta.parts {
        action.cluster_specifier = Some(to_parts(parts, scope));
    }
    let retries = &rule.retries;
    if let Some(policy) = &mut action.retry_policy {
        if let Some(on) = &retries.on {
            (policy.retry_on, policy.retriable_status_codes) =
                retry_words(on.iter().map(|cause| cause.0.0));
        }
        if let Some(attempts) = retries.attempts {
            policy.num_retries = pb::number(attempts);
        }
        if let Some(per_try) = &rule.timeouts.per_try {
            policy.per_try_timeout = per_try.0.0.and_then(pb::duration);
        }
    }
    let HeaderChangesSpec { set, add, remove } = &rule.headers.request;
    let response = &rule.headers.response;
    let names = |names: &Option<Vec<Text<crate::model::scalar::FieldName>>>| -> Vec<String> {
        names
            .iter()
            .flatten()
            .map(|name| name.0.0.clone())
            .collect()
    };
    route::Route {
        action: Some(route::route::Action::Route(action)),
        request_headers_to_add: header_options(set.as_ref(), add.as_ref()),
        request_headers_to_remove: names(remove),
        response_headers_to_add: header_options(response.set.as_ref(), response.add.as_ref()),
        response_headers_to_remove: names(&response.remove),
        ..Default::default()
    }
}

fn to_parts(parts: &[PartMeta], scope: Scope) -> route::route_action::ClusterSpecifier {
    use route::route_action::ClusterSpecifier;

    let clusters: Vec<_> = (parts.iter())
        .filter_map(|part| {
            let name = match scope {
                Scope::Outbound => Some(&part.outbound),
                Scope::Own => part.own.as_ref(),
            };
            Some(route::weighted_cluster::ClusterWeight {
                name: name?.clone(),
                weight: pb::number(part.weight),
                ..Default::default()
            })
        })
        .collect();
    // Envoy takes no weights that are 0 together.
    let has_weight = |one: &route::weighted_cluster::ClusterWeight| {
        one.weight.is_some_and(|weight| weight.value > 0)
    };
    if !clusters.iter().any(has_weight) {
        return ClusterSpecifier::Cluster(NOTHING.to_owned());
    }
    ClusterSpecifier::WeightedClusters(route::WeightedCluster {
        clusters,
        ..Default::default()
    })
}

type Fields = BTreeMap<String, Text<FieldValue>>;

fn header_options(set: Option<&Fields>, add: Option<&Fields>) -> Vec<pb::core::HeaderValueOption> {
    use pb::core::header_value_option::HeaderAppendAction;

    let option = |action: HeaderAppendAction| {
        move |(name, value): (&String, &Text<FieldValue>)| pb::core::HeaderValueOption {
            header: Some(pb::core::HeaderValue {
                key: name.to_ascii_lowercase(),
                value: value.0.0.clone(),
                ..Default::default()
            }),
            append_action: action.into(),
            // An empty one is one.
            keep_empty_value: true,
            ..Default::default()
        }
    };
    let set = (set.into_iter().flatten()).map(option(HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = (add.into_iter().flatten()).map(option(HeaderAppendAction::AppendIfExistsOrAdd));
    set.chain(add).collect()
}

fn envoy_match(one: &Match) -> route::RouteMatch {
    use route::route_match::PathSpecifier;

    let header = |name: &str, value: &str| route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            pb::exactly(value),
        )),
        ..Default::default()
    };
    let method = one.method.iter().map(|method| header(METHOD, method));
    let headers = (one.headers.iter()).map(|field| header(&field.name, &field.value));
    route::RouteMatch {
        path_specifier: Some(match &one.path {
            PathMatch::Any => PathSpecifier::Prefix("/".to_owned()),
            PathMatch::Exact(path) => PathSpecifier::Path(path.to_string()),
            PathMatch::Prefix(prefix) => PathSpecifier::PathSeparatedPrefix(prefix.to_string()),
            PathMatch::Begins(text) => PathSpecifier::Prefix(text.to_string()),
        }),
        headers: method.chain(headers).collect(),
        query_parameters: (one.query.iter())
            .map(|field| route::QueryParameterMatcher {
                name: field.name.to_string(),
                query_parameter_match_specifier: Some(
                    route::query_parameter_matcher::QueryParameterMatchSpecifier::StringMatch(
                        pb::exactly(&field.value),
                    ),
                ),
            })
            .collect(),
        ..Default::default()
    }
}

/// What Envoy calls the method among headers.
pub(crate) const METHOD: &str = ":method";
