//! Peers: who their gateways are, whom they are believed about, and whether they can be told apart.

use std::collections::BTreeSet;

use ipnet::IpNet;
use zeugma_core::identity::IdPattern;

use super::{Checker, old_before_new};
use crate::error::{Code, Finding, Findings};
use crate::model::scalar::Text;
use crate::model::{Document, MeshPeer, Model};

/// What a peer is believed about, and by whom.
pub(super) fn attests(model: &Model, check: &mut Checker<'_, MeshPeer>) {
    let peer = check.document;
    let spec = &peer.spec;
    if spec.attests.is_empty() {
        return;
    }
    for (at, Text(id)) in spec.spiffe_ids.iter().enumerate() {
        if matches!(id, IdPattern::Below(_)) {
            check.value(
                Code::Unsafe,
                &format!("spec.spiffeIDs[{at}]"),
                format!("every workload with an ID like `{id}` could name anyone of `attests` as its caller"),
                "name the gateways alone, each ID in full, or remove `attests`",
            );
        }
    }
    for gateway in &model.gateways {
        if gateway.spec.cluster == spec.cluster {
            continue;
        }
        let own = &gateway.spec.trust_domain;
        if let Some(at) = spec.attests.iter().position(|domain| domain == own) {
            let finding = Finding::error(
                Code::Unsafe,
                format!(
                    "its gateways may name any caller of `{}`, the trust domain of this side too",
                    own.0
                ),
            )
            .warning()
            .help("leave it out, unless the workloads behind that gateway are of this trust domain")
            .at(peer.at(&format!("spec.attests[{at}]")));
            check.push(finding);
        }
    }
}

/// Two peers whose gateways may have the same ID, where it matters which one calls.
pub(super) fn told_apart(model: &Model, findings: &mut Findings) {
    let peers = old_before_new(&model.peers);
    for (at, peer) in peers.iter().enumerate() {
        for first in peers.iter().take(at) {
            let Some((ix, id)) = shared_id(first, peer) else {
                continue;
            };
            if !has_both(model, first, peer) || sources_tell(first, peer) {
                continue;
            }
            let Some(why) = relied_on(model, first, peer) else {
                continue;
            };
            let (why, because_of) = why;
            let finding = Finding::error(
                    Code::Unsafe,
                    format!(
                        "`{id}` may be a gateway of MeshPeer `{}` too, and {why}",
                        first.name
                    ),
                )
                .help("give the gateways of each peer IDs of their own, or write `sources` that do not overlap in both")
                .at(peer.at(&format!("spec.spiffeIDs[{ix}]")));
            findings.push(finding).also([first.nth()]).also(because_of);
        }
    }
}

/// Whether a gateway of these files has both as peers; the peer of its own cluster is ignored.
fn has_both(model: &Model, first: &Document<MeshPeer>, second: &Document<MeshPeer>) -> bool {
    model.gateways.iter().any(|gateway| {
        let own = &gateway.spec.cluster;
        first.spec.cluster != *own && second.spec.cluster != *own
    })
}

fn shared_id<'p>(
    first: &Document<MeshPeer>,
    second: &'p Document<MeshPeer>,
) -> Option<(usize, &'p IdPattern)> {
    let of_first = || first.spec.spiffe_ids.iter().map(|id| &id.0);
    (second.spec.spiffe_ids.iter().enumerate())
        .map(|(at, Text(id))| (at, id))
        .find(|(_, id)| of_first().any(|other| overlap(other, id)))
}

/// Whether one ID may be named by both.
fn overlap(one: &IdPattern, other: &IdPattern) -> bool {
    match (one, other) {
        (IdPattern::Exact(one), IdPattern::Exact(other)) => one == other,
        (IdPattern::Exact(id), pattern) | (pattern, IdPattern::Exact(id)) => pattern.matches(id),
        (IdPattern::Below(above), IdPattern::Below(below)) => {
            above == below || one.matches(below) || other.matches(above)
        }
    }
}

/// Whether where they call from tells them apart: one that says so comes before one that does not.
fn sources_tell(first: &Document<MeshPeer>, second: &Document<MeshPeer>) -> bool {
    let overlap = |a: &IpNet, b: &IpNet| a.contains(&b.network()) || b.contains(&a.network());
    let (first, second) = (&first.spec.sources, &second.spec.sources);
    match (first.is_empty(), second.is_empty()) {
        (true, true) => false,
        (true, false) | (false, true) => true,
        (false, false) => !(first.iter()).any(|a| second.iter().any(|b| overlap(&a.0, &b.0))),
    }
}

/// What makes a difference between the two, and the number of the route that does.
fn relied_on(
    model: &Model,
    first: &Document<MeshPeer>,
    second: &Document<MeshPeer>,
) -> Option<(String, Option<u32>)> {
    let domains = |peer: &Document<MeshPeer>| -> BTreeSet<String> {
        (peer.spec.attests.iter())
            .map(|domain| domain.0.to_string())
            .collect()
    };
    if let Some(domain) = domains(first).symmetric_difference(&domains(second)).next() {
        let why = format!("only one of them is believed about callers of `{domain}`");
        return Some((why, None));
    }
    let names_one = |names: &mut dyn Iterator<Item = &str>| {
        let (mut has_first, mut has_second) = (false, false);
        for name in names {
            has_first |= name == first.name;
            has_second |= name == second.name;
        }
        has_first != has_second
    };
    model.routes.iter().find_map(|route| {
        let to = &route.spec.export.to;
        let is_exported_to_one =
            !to.iter().any(|to| to == "*") && names_one(&mut to.iter().map(String::as_str));
        if is_exported_to_one {
            let why = format!("route `{}` is exported to one of them alone", route.id());
            return Some((why, Some(route.nth())));
        }
        let rules = route.spec.allow.iter().chain(&route.spec.deny);
        rules
            .filter_map(|rule| rule.value.via.as_ref())
            .any(|via| names_one(&mut via.iter().map(|name| name.0.0.as_str())))
            .then(|| {
                let why = format!(
                    "a rule of route `{}` is about one of them alone",
                    route.id()
                );
                (why, Some(route.nth()))
            })
    })
}
