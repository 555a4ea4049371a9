//! `allow` and `deny`: each entry must have a path on which it could match.

mod names;

use std::collections::BTreeMap;

use zeugma_core::names::HostPattern;
use zeugma_core::snapshot::ValuePattern;

use super::Checker;
use super::backends::empty;
use super::http_rules::{FIELDS_MAX, at_most, header_name, matched_header, one_spelling};
use crate::error::{Code, Finding};
use crate::model::scalar::{Sni, Text};
use crate::model::{Document, InboundSpec, MeshRoute, Model, ProtocolSpec, RoleSpec, RuleSpec};
use crate::yaml::Placed;

/// One way a connection reaches a route, by the table "What each path does".
struct Way {
    listener: String,
    /// Whether peers' gateways come in on it.
    is_mesh: bool,
    /// Whether TLS comes in on it, which names a host.
    has_sni: bool,
    /// Whether the caller's identity is known.
    has_identity: bool,
    /// Whether requests are read.
    has_requests: bool,
}

impl Way {
    /// Whether `rule` may match what comes so, by everything but a server name.
    fn is_asked(&self, rule: &RuleSpec) -> bool {
        let needs_identity = rule.from.is_some() || rule.via.is_some();
        let needs_requests = asks_request(rule);
        self.is_named(rule)
            && (self.has_identity || !needs_identity)
            && (self.has_requests || !needs_requests)
    }

    fn is_named(&self, rule: &RuleSpec) -> bool {
        (rule.listeners.as_ref())
            .is_none_or(|names| names.iter().any(|name| name.0.0 == self.listener))
    }
}

const fn asks_request(rule: &RuleSpec) -> bool {
    rule.methods.is_some() || rule.paths.is_some() || rule.headers.is_some()
}

pub(super) fn check(model: &Model, check: &mut Checker<'_, MeshRoute>) {
    let ways = ways(model, check);
    let spec = &check.document.spec;
    for (list, rules) in [("allow", &spec.allow), ("deny", &spec.deny)] {
        for (at, Placed { value: rule, .. }) in rules.iter().enumerate() {
            let path = format!("spec.{list}[{at}]");
            let is_known = references(model, check, rule, &path);
            if is_known && !model.gateways.is_empty() {
                can_match(check, &ways, rule, &path);
                names::check(model, check, &ways, rule, &path);
            }
        }
    }
}

fn ways(model: &Model, check: &Checker<'_, MeshRoute>) -> Vec<Way> {
    let route = check.document;
    let is_terminated = route.inbound() == InboundSpec::Terminate;
    let is_http = route
        .ports()
        .iter()
        .any(|port| port.protocol == ProtocolSpec::Http);
    let mut ways = Vec::new();
    for gateway in &model.gateways {
        for (name, listener) in &gateway.spec.listeners {
            let mut way = |has_sni, has_identity, has_requests| {
                ways.push(Way {
                    listener: name.clone(),
                    is_mesh: listener.route.is_none() && listener.role == RoleSpec::Mesh,
                    has_sni,
                    has_identity,
                    has_requests,
                });
            };
            match (&listener.route, listener.role) {
                (Some(Text(reference)), _) => {
                    if reference.id(&gateway.namespace) == route.id() {
                        way(false, false, false);
                    }
                }
                (None, RoleSpec::Mesh) => {
                    if !route.spec.export.to.is_empty() {
                        way(true, is_terminated, is_terminated && is_http);
                    }
                }
                (None, RoleSpec::Workloads) => {
                    way(true, is_terminated, is_terminated && is_http);
                    if is_http {
                        way(false, false, true);
                    }
                }
            }
        }
    }
    ways
}

/// Whether every listener the rule names exists.
fn references(
    model: &Model,
    check: &mut Checker<'_, MeshRoute>,
    rule: &RuleSpec,
    path: &str,
) -> bool {
    let mut is_known = true;
    let listeners: Vec<&str> = model
        .gateways
        .iter()
        .flat_map(|gateway| gateway.spec.listeners.keys())
        .map(String::as_str)
        .collect();
    for (at, Text(name)) in rule.listeners.iter().flatten().enumerate() {
        if !listeners.is_empty() && !listeners.contains(&name.0.as_str()) {
            is_known = false;
            check.unknown(
                &format!("{path}.listeners[{at}]"),
                format!("no listener `{}`", name.0),
                &name.0,
                listeners.iter().copied(),
            );
        }
    }
    for (at, Text(name)) in rule.via.iter().flatten().enumerate() {
        if model.peer(&name.0).is_none() {
            check.unknown(
                &format!("{path}.via[{at}]"),
                format!("no MeshPeer `{}`", name.0),
                &name.0,
                model.peers.iter().map(|peer| peer.name.as_str()),
            );
        }
    }
    let lists = [
        ("from", rule.from.as_ref().map(Vec::len)),
        ("via", rule.via.as_ref().map(Vec::len)),
        ("listeners", rule.listeners.as_ref().map(Vec::len)),
        ("sources", rule.sources.as_ref().map(Vec::len)),
        ("sni", rule.sni.as_ref().map(Vec::len)),
        ("methods", rule.methods.as_ref().map(Vec::len)),
        ("paths", rule.paths.as_ref().map(Vec::len)),
        ("headers", rule.headers.as_ref().map(BTreeMap::len)),
    ];
    for (field, len) in lists {
        if len == Some(0) {
            empty(check, &format!("{path}.{field}"));
        }
    }
    if lists.iter().all(|(_, len)| len.is_none()) {
        check.value(
            Code::Unsafe,
            path,
            "an entry without fields would match everyone".to_owned(),
            "say whom: `from`, `via`, `listeners`, `sources`, `sni`, `methods`, `paths` or `headers`",
        );
    }
    if let Some(headers) = &rule.headers {
        asked_headers(check, headers, &format!("{path}.headers"));
    }
    asked_for(model, check, rule, path);
    let via = rule.via.iter().flatten();
    let peers = via.filter_map(|name| model.peer(&name.0.0));
    check.beside(peers.map(Document::nth), |check| {
        attested(model, check, rule, path);
    });
    is_known
}

/// Whether each host of `sni` is one by which somebody comes here: of this route, or for `deny` of one
/// whose split leads here.
fn asked_for(model: &Model, check: &mut Checker<'_, MeshRoute>, rule: &RuleSpec, path: &str) {
    let route = check.document;
    if rule.sni.is_none() || check.is_inherited(path) {
        return;
    }
    let is_denial = path.starts_with("spec.deny");
    let id = route.id();
    let leads_here = |other: &Document<MeshRoute>| {
        let parts = (other.spec.rules.iter()).flat_map(|rule| rule.value.split.iter().flatten());
        let mut routes = parts.filter_map(|part| part.route.as_ref());
        routes.any(|Text(to)| to.id(&other.namespace) == id)
    };
    let mut hosts = route.hosts();
    let others = (model.routes.iter()).filter(|other| is_denial && leads_here(other));
    hosts.extend(others.flat_map(|other| other.hosts()));
    for (at, Text(Sni(named))) in rule.sni.iter().flatten().enumerate() {
        if hosts.iter().any(|host| meets(host, named)) {
            continue;
        }
        let finding = Finding::error(
            Code::NoEffect,
            format!("this name has no effect: nobody comes to this route by `{named}`"),
        )
        .help("write one of its `hosts`, or remove it")
        .at(route.at(&format!("{path}.sni[{at}]")));
        // What is not allowed stays out; what is not denied may come in.
        check.push(if is_denial {
            finding
        } else {
            finding.warning()
        });
    }
}

/// Whether there is a host that both name.
fn meets(one: &HostPattern, other: &HostPattern) -> bool {
    match (one, other) {
        (HostPattern::Exact(host), of) | (of, HostPattern::Exact(host)) => of.matches(host),
        (HostPattern::Below(a), HostPattern::Below(b)) => {
            a == b || one.matches(b) || other.matches(a)
        }
    }
}

fn asked_headers(
    check: &mut Checker<'_, MeshRoute>,
    headers: &BTreeMap<String, Vec<Text<ValuePattern>>>,
    path: &str,
) {
    at_most(check, path, "headers", headers.len(), FIELDS_MAX);
    for (name, values) in headers {
        let path = format!("{path}.{name}");
        if values.is_empty() {
            empty(check, &path);
        }
        if let Some(name) = header_name(check, &path, name) {
            matched_header(check, &path, &name);
            if name == "cookie" {
                // RFC 9113 §8.2.3: one field for each pair, or one for all.
                check.key(
                    Code::Unsafe,
                    &path,
                    "callers part `cookie` into values as they like".to_owned(),
                    "ask for a header that has one value",
                );
            }
        }
    }
    one_spelling(check, path, headers.keys());
}

/// `via` needs a peer that attests the trust domain of `from`.
fn attested(model: &Model, check: &mut Checker<'_, MeshRoute>, rule: &RuleSpec, path: &str) {
    let Some(via) = &rule.via else {
        return;
    };
    let peers: Vec<_> = via
        .iter()
        .filter_map(|name| model.peer(&name.0.0))
        .collect();
    if peers.len() < via.len() || peers.is_empty() {
        return;
    }
    let attests = |domain: Option<&str>| {
        peers.iter().any(|peer| {
            let mut attests = peer.spec.attests.iter();
            match domain {
                Some(domain) => attests.any(|attested| attested.0.as_str() == domain),
                None => attests.next().is_some(),
            }
        })
    };
    let domains: Vec<String> = rule
        .from
        .iter()
        .flatten()
        .map(|id| id.0.trust_domain().to_string())
        .collect();
    let can = if domains.is_empty() {
        attests(None)
    } else {
        domains.iter().any(|domain| attests(Some(domain)))
    };
    for (at, domain) in domains.iter().enumerate() {
        if can && !attests(Some(domain)) {
            let finding = Finding::error(
                Code::NoEffect,
                format!(
                    "this ID has no effect: none of the peers in `via` is believed about `{domain}`"
                ),
            )
            .help(format!(
                "write `{domain}` into `attests` of the MeshPeer, or remove the ID"
            ))
            .at(check.document.at(&format!("{path}.from[{at}]")));
            // What is not allowed stays out; what is not denied may come in.
            check.push(match path.starts_with("spec.deny") {
                true => finding,
                false => finding.warning(),
            });
        }
    }
    if !can {
        let whose = if domains.is_empty() {
            "any".to_owned()
        } else {
            domains.join(", ")
        };
        check.no_effect(
            &format!("{path}.via"),
            "we believe none of these peers about such callers",
            &format!("write the trust domain ({whose}) into `attests` of the MeshPeer"),
        );
    }
}

fn can_match(check: &mut Checker<'_, MeshRoute>, ways: &[Way], rule: &RuleSpec, path: &str) {
    let needs_identity = rule.from.is_some() || rule.via.is_some();
    let here: Vec<&Way> = ways.iter().filter(|way| way.is_named(rule)).collect();
    let is_possible =
        (here.iter()).any(|way| way.is_asked(rule) && (way.has_sni || rule.sni.is_none()));
    if is_possible {
        return;
    }
    let is_passthrough = check.document.inbound() == InboundSpec::Passthrough;
    if here.is_empty() {
        let (field, help) = if rule.listeners.is_some() {
            (
                ".listeners",
                "a mesh listener needs `export`, and a one-route listener serves its route alone",
            )
        } else {
            (
                "",
                "export it through a mesh listener, or add a workloads listener",
            )
        };
        check.key(
            Code::NoEffect,
            &format!("{path}{field}"),
            "this entry has no effect: no such listener leads to this route".to_owned(),
            help,
        );
    } else if needs_identity && !here.iter().any(|way| way.has_identity) {
        let field = if rule.from.is_some() { "from" } else { "via" };
        let (why, help) = if is_passthrough {
            (
                "TLS is passed through, and who calls is inside it",
                "write `sources`, `sni` or `listeners` here, or `inbound: terminate` for the route",
            )
        } else {
            (
                "nobody's identity is known on a one-route listener",
                "write `sources` or `listeners` here",
            )
        };
        check.no_effect(&format!("{path}.{field}"), why, help);
    } else if rule.sni.is_some() && !here.iter().any(|way| way.has_sni) {
        check.no_effect(
            &format!("{path}.sni"),
            "TLS is not looked into on a one-route listener, so that it names no host there",
            "write `sources` or `listeners` here",
        );
    } else {
        let field = if rule.methods.is_some() {
            "methods"
        } else if rule.paths.is_some() {
            "paths"
        } else {
            "headers"
        };
        check.no_effect(
            &format!("{path}.{field}"),
            "requests are not read on the way to this route",
            "write `protocol: http`, or remove it",
        );
    }
}
