//! `rules`: how requests are told apart, and what is done with them.

use std::collections::{BTreeMap, BTreeSet};

use zeugma_core::rules::PARTS_MAX;

use super::backends::empty;
use super::{Checker, policy};
use crate::compile::matches_of;
use crate::error::{Code, Finding};
use crate::model::scalar::{FieldName, FieldValue, FromText as _, Text};
use crate::model::{
    Document, HeaderChangesSpec, HttpRuleSpec, MatchSpec, MeshRoute, Model, PartSpec, ProtocolSpec,
};

/// Rules of one route.
const RULES_MAX: usize = 64;
/// Matches of one rule.
const MATCHES_MAX: usize = 16;
/// Headers, and query parameters, of one match.
pub(super) const FIELDS_MAX: usize = 16;
/// What Envoy takes as the name of a query parameter.
const QUERY_NAME_BYTES_MAX: usize = 1024;
/// Headers that are set, added or removed.
const CHANGES_MAX: usize = 32;
/// The largest weight of a part.
const WEIGHT_MAX: u32 = 1_000_000;

pub(super) fn check(model: &Model, check: &mut Checker<'_, MeshRoute>) {
    let route = check.document;
    let rules = &route.spec.rules;
    if !rules.is_written() {
        return;
    }
    if !has_http(route) {
        check.no_effect(
            "spec.rules",
            "no port of the route is http",
            "write `protocol: http`, or remove it",
        );
        return;
    }
    at_most(check, "spec.rules", "rules", rules.len(), RULES_MAX);
    let mut names = BTreeMap::new();
    for (nth, rule) in rules.iter().enumerate() {
        let path = format!("spec.rules[{nth}]");
        let rule = &rule.value;
        name(check, &mut names, rule, &path);
        matches(check, rule, &path);
        split(model, check, rule, &path);
        deadlines_and_tries(check, rule, &path);
        for (way, changes, of) in [
            ("request", &rule.headers.request, Of::Request),
            ("response", &rule.headers.response, Of::Response),
        ] {
            header_changes(check, changes, &format!("{path}.headers.{way}"), of);
        }
    }
    shadowed(check);
}

fn has_http(route: &Document<MeshRoute>) -> bool {
    let ports = route.ports();
    ports.iter().any(|port| port.protocol == ProtocolSpec::Http)
}

/// A list that costs each request its length.
pub(super) fn at_most(
    check: &mut Checker<'_, MeshRoute>,
    path: &str,
    what: &str,
    count: usize,
    max: usize,
) {
    if count > max {
        check.key(
            Code::BadValue,
            path,
            format!("there are {count} {what}"),
            &format!("write at most {max}"),
        );
    }
}

fn name<'r>(
    check: &mut Checker<'_, MeshRoute>,
    names: &mut BTreeMap<&'r str, String>,
    rule: &'r HttpRuleSpec,
    path: &str,
) {
    let Some(Text(name)) = &rule.name else {
        return;
    };
    let at = format!("{path}.name");
    if name.0.bytes().all(|byte| byte.is_ascii_digit()) {
        check.value(
            Code::BadValue,
            &at,
            format!("`{}` could be the place of another rule", name.0),
            "write a name with a letter in it, or none",
        );
    }
    if let Some(first) = names.insert(&name.0, path.to_owned()) {
        check.value(
            Code::Duplicate,
            &at,
            format!("`{}` is the name of `{first}` already", name.0),
            "give each rule a name of its own, or none",
        );
    }
}

fn matches(check: &mut Checker<'_, MeshRoute>, rule: &HttpRuleSpec, path: &str) {
    let Some(all) = &rule.matches else {
        return;
    };
    let path = format!("{path}.matches");
    if all.is_empty() {
        empty(check, &path);
    }
    at_most(check, &path, "matches", all.len(), MATCHES_MAX);
    for (nth, one) in all.iter().enumerate() {
        one_match(check, one, &format!("{path}[{nth}]"));
    }
}

fn one_match(check: &mut Checker<'_, MeshRoute>, one: &MatchSpec, path: &str) {
    for (is_written, field) in [
        (one.path.is_some(), "path"),
        (one.method.is_some(), "method"),
    ] {
        if is_written && one.grpc.is_some() {
            check.key(
                Code::Contradiction,
                &format!("{path}.{field}"),
                format!("`{field}` and `grpc` are both written, and `grpc` says both"),
                "keep one of them",
            );
        }
    }
    if let Some(headers) = &one.headers {
        let path = format!("{path}.headers");
        at_most(check, &path, "headers", headers.len(), FIELDS_MAX);
        for name in headers.keys() {
            let path = format!("{path}.{name}");
            if let Some(name) = header_name(check, &path, name) {
                matched_header(check, &path, &name);
            }
        }
        one_spelling(check, &path, headers.keys());
    }
    if let Some(query) = &one.query {
        let path = format!("{path}.query");
        at_most(check, &path, "query parameters", query.len(), FIELDS_MAX);
        let is_name = |name: &String| (1..=QUERY_NAME_BYTES_MAX).contains(&name.len());
        if !query.keys().all(is_name) {
            check.key(
                Code::BadValue,
                &path,
                format!("a name has 1 to {QUERY_NAME_BYTES_MAX} characters"),
                "write the name as it is sent, its escapes undone",
            );
        }
    }
}

pub(super) fn matched_header(check: &mut Checker<'_, MeshRoute>, path: &str, name: &str) {
    if name == "host" {
        check.key(
            Code::NoEffect,
            path,
            "`host` has no effect: HTTP/2 has none, and the route was found by it".to_owned(),
            "write `hosts` of the route",
        );
    } else if name == "x-forwarded-client-cert" || name.starts_with("x-zeugma-") {
        check.key(
            Code::Unsafe,
            path,
            format!("any caller can write `{name}`"),
            "say who may call in `allow`",
        );
    }
}

pub(super) fn header_name(
    check: &mut Checker<'_, MeshRoute>,
    path: &str,
    name: &str,
) -> Option<String> {
    match FieldName::from_text(name) {
        Ok(name) => Some(name.0),
        Err(why) => {
            check.key(
                Code::BadValue,
                path,
                format!("`{name}` is not {}: {why}", FieldName::FORM),
                "write the name as it is sent",
            );
            None
        }
    }
}

/// Names that differ by the case of letters alone are one header.
pub(super) fn one_spelling<'n>(
    check: &mut Checker<'_, MeshRoute>,
    path: &str,
    names: impl IntoIterator<Item = &'n String>,
) {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name.to_ascii_lowercase()) {
            check.key(
                Code::Duplicate,
                &format!("{path}.{name}"),
                format!("`{name}` is there already, otherwise written"),
                "header names do not differ by upper and lower case; keep one",
            );
        }
    }
}

/// Two matches of which the second is met by nothing that the first is not.
fn shadowed(check: &mut Checker<'_, MeshRoute>) {
    let route = check.document;
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (nth, rule) in route.spec.rules.iter().enumerate() {
        for (at, one) in matches_of(&rule.value, nth).into_iter().enumerate() {
            let path = match &rule.value.matches {
                Some(_) => format!("rules[{nth}].matches[{at}]"),
                None => format!("rules[{nth}]"),
            };
            let wanted = format!("{:?}", zeugma_core::rules::Match { rule: 0, ..one });
            let Some(first) = seen.get(&wanted) else {
                seen.insert(wanted, path);
                continue;
            };
            let finding = Finding::error(
                Code::NoEffect,
                format!("this match has no effect: `{first}` is the same and comes first"),
            )
            .warning()
            .help("remove it, or say what tells its requests apart")
            .at(route.at(&format!("spec.{path}")));
            check.push(finding);
        }
    }
}

fn split(model: &Model, check: &mut Checker<'_, MeshRoute>, rule: &HttpRuleSpec, path: &str) {
    let Some(split) = &rule.split else {
        return;
    };
    let path = format!("{path}.split");
    if split.is_empty() {
        empty(check, &path);
        return;
    }
    at_most(check, &path, "parts", split.len(), PARTS_MAX);
    if split.iter().all(|part| part.weight == Some(0)) {
        check.key(
            Code::Contradiction,
            &path,
            "every weight is 0, and no request would go anywhere".to_owned(),
            "give at least one part a weight over 0",
        );
    }
    for (nth, part) in split.iter().enumerate() {
        let path = format!("{path}[{nth}]");
        check.range(&format!("{path}.weight"), part.weight, 0..=WEIGHT_MAX);
        one_part(model, check, part, &path);
    }
}

fn one_part(model: &Model, check: &mut Checker<'_, MeshRoute>, part: &PartSpec, path: &str) {
    match (&part.backends, &part.route) {
        (Some(backends), None) => {
            part_backends(model, check, backends, &format!("{path}.backends"))
        }
        (None, Some(Text(reference))) => {
            let id = reference.id(&check.document.namespace);
            part_route(model, check, &id, &format!("{path}.route"));
        }
        (Some(_), Some(_)) | (None, None) => check.value(
            Code::Contradiction,
            path,
            "a part is of `backends` of this route, or another `route`".to_owned(),
            "write one of them",
        ),
    }
}

fn part_backends(
    model: &Model,
    check: &mut Checker<'_, MeshRoute>,
    backends: &[Text<crate::model::scalar::Name>],
    path: &str,
) {
    if backends.is_empty() {
        empty(check, path);
    }
    let spec = &check.document.spec;
    let mut known: Vec<String> = Vec::new();
    for (at, backend) in spec.backends.iter().enumerate() {
        known.push(backend.display_name(at));
        let peer = match (&backend.peer, &backend.cluster) {
            (Some(Text(peer)), _) => model.peer(&peer.0),
            (None, Some(Text(cluster))) => model.peer_of_cluster(&cluster.0),
            (None, None) => None,
        };
        known.extend(peer.map(|peer| peer.name.clone()));
    }
    for (at, Text(name)) in backends.iter().enumerate() {
        if !known.contains(&name.0) {
            check.unknown(
                &format!("{path}[{at}]"),
                format!("no backend of this route is called `{}`", name.0),
                &name.0,
                known.iter().map(String::as_str),
            );
        }
    }
}

fn part_route(model: &Model, check: &mut Checker<'_, MeshRoute>, id: &str, path: &str) {
    match model.route(id) {
        None => check.unknown(path, format!("no MeshRoute `{id}`"), id, model.route_ids()),
        Some(_) if id == check.document.id() => check.value(
            Code::Contradiction,
            path,
            "a split leads to its own route".to_owned(),
            "write `backends` for a part of this route",
        ),
        Some(to) => check.beside([to.nth()], |check| part_target(check, to, id, path)),
    }
}

fn part_target(check: &mut Checker<'_, MeshRoute>, to: &Document<MeshRoute>, id: &str, path: &str) {
    let own_ports = check.document.ports();
    let ports = to.ports();
    if !has_http(to) {
        check.value(
            Code::Contradiction,
            path,
            format!("`{id}` is tcp, and rules are for http requests"),
            "name an http route",
        );
    } else if to.first_host().is_none() {
        check.value(
            Code::Contradiction,
            path,
            format!("`{id}` has only wildcards, and a peer is asked for one host"),
            "add a host without `*` there",
        );
    } else if ports.len() > 1
        && let Some(port) = (own_ports.iter())
            .filter(|own| own.protocol == ProtocolSpec::Http)
            .find(|own| {
                let mut http = ports
                    .iter()
                    .filter(|port| port.protocol == ProtocolSpec::Http);
                !http.any(|port| port.port == own.port)
            })
    {
        check.value(
            Code::Contradiction,
            path,
            format!("`{id}` has several ports but no http port {}", port.port),
            "give it that port, or name a route with one port",
        );
    }
}

fn deadlines_and_tries(check: &mut Checker<'_, MeshRoute>, rule: &HttpRuleSpec, path: &str) {
    let timeouts = &rule.timeouts;
    check.at_least(
        &format!("{path}.timeouts.responseHeaders"),
        timeouts.response_headers.as_ref(),
        1,
    );
    let per_try = (timeouts.per_try.as_ref())
        .and_then(|limit| limit.0.0)
        .map(Text);
    check.at_least(&format!("{path}.timeouts.perTry"), per_try.as_ref(), 1);
    let retries = &rule.retries;
    check.range(
        &format!("{path}.retries.attempts"),
        retries.attempts,
        0..=policy::ATTEMPTS_MAX,
    );
}

/// What a gateway reads, writes or frames messages by.
pub(crate) fn is_reserved(name: &str) -> bool {
    const NAMES: [&str; 16] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
        "x-forwarded-client-cert",
        "x-request-id",
    ];
    NAMES.contains(&name) || name.starts_with("x-zeugma-")
}

/// What headers are changed of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Request,
    /// Its `grpc-` headers are how a call ended and how its messages are read, at either end.
    Response,
}

fn header_changes(
    check: &mut Checker<'_, MeshRoute>,
    changes: &HeaderChangesSpec,
    path: &str,
    of: Of,
) {
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    let names = |map: &Option<BTreeMap<String, Text<FieldValue>>>| -> Vec<String> {
        map.iter().flat_map(BTreeMap::keys).cloned().collect()
    };
    let removed = (changes.remove.iter().flatten()).map(|name| name.0.0.clone());
    for (kind, names) in [
        ("set", names(&changes.set)),
        ("add", names(&changes.add)),
        ("remove", removed.collect()),
    ] {
        let path = format!("{path}.{kind}");
        at_most(check, &path, "headers", names.len(), CHANGES_MAX);
        for (nth, name) in names.iter().enumerate() {
            let at = match kind {
                "remove" => format!("{path}[{nth}]"),
                _ => format!("{path}.{name}"),
            };
            let Some(name) = header_name(check, &at, name) else {
                continue;
            };
            if is_reserved(&name) || (of == Of::Response && name.starts_with("grpc-")) {
                check.key(
                    Code::Contradiction,
                    &at,
                    format!("`{name}` is the gateway's to write"),
                    "use a header of your own",
                );
            }
            if let Some(before) = seen.insert(name.clone(), kind) {
                check.key(
                    Code::Contradiction,
                    &at,
                    format!("`{name}` is in `{before}` already"),
                    "a header is set, added to or removed; keep one",
                );
            }
        }
    }
}
