//! Entries that keep somebody out here, and not in Envoy, which does not know whom a gateway calls for, is
//! content with one line of a header that fits, and knows of no port in a server name.

use zeugma_core::identity::IdPattern;
use zeugma_core::names::HostPattern;
use zeugma_core::snapshot::ValuePattern;

use crate::compile::{Context, Export, export};
use crate::error::{Code, Finding, Findings};
use crate::model::scalar::{Name, Sni, Text};
use crate::model::{Document, InboundSpec, MeshPeer, MeshRoute, RoleSpec, RuleSpec};

/// The entries that Envoy would let somebody past.
pub(crate) fn undenied(context: Context<'_>) -> Findings {
    let mut findings = Findings::new();
    for route in &context.model.routes {
        for (at, rule) in route.spec.allow.iter().enumerate() {
            let is_any = |value: &ValuePattern| matches!(value, ValuePattern::Begins(begin) if begin.is_empty());
            let values = rule
                .value
                .headers
                .iter()
                .flatten()
                .flat_map(|(_, values)| values);
            if !values.into_iter().all(|value| is_any(&value.0)) {
                let finding = Finding::error(
                    Code::Unsafe,
                    "Envoy is content with one line of a header that fits: there a caller who sends another line beside it is let in",
                )
                .help("ask that the header is there (`'*'`), or leave the entry out of what Envoy is to read")
                .at(route.at_key(&format!("spec.allow[{at}].headers")));
                findings.push(finding);
            }
            for (nth, Text(Sni(named))) in rule.value.sni.iter().flatten().enumerate() {
                if let HostPattern::Below(host) = named
                    && route.hosts().iter().any(|of| of.matches(host))
                {
                    let finding = Finding::error(
                        Code::Unsafe,
                        format!("Envoy takes `{host}` with a port, as in `outbound_.80_._.{host}`, for a name below it: there who asks for it so is let in"),
                    )
                    .help("name hosts in full, or leave the entry out of what Envoy is to read")
                    .at(route.at(&format!("spec.allow[{at}].sni[{nth}]")));
                    findings.push(finding);
                }
            }
        }
        for (at, rule) in route.spec.deny.iter().enumerate() {
            if rule.value.via.is_some() {
                let finding = Finding::error(
                    Code::Unsafe,
                    "Envoy does not know who attested an identity: there this denies nobody",
                )
                .help("deny by `from` alone, or leave the entry out of what Envoy is to read")
                .at(route.at_key(&format!("spec.deny[{at}].via")));
                findings.push(finding);
            } else if let Some(peer) = let_past(context, route, &rule.value) {
                let finding = Finding::error(
                    Code::Unsafe,
                    format!(
                        "Envoy does not know whom peer `{}` attests: there its gateway is let in for whom this denies",
                        peer.name
                    ),
                )
                .help("deny that gateway's own IDs too, or let in by `allow` none of them")
                .at(route.at_key(&format!("spec.deny[{at}].from")));
                findings.push(finding);
            }
        }
    }
    findings
}

/// The peer whose gateway Envoy lets in for somebody whom `rule` denies.
fn let_past<'m>(
    context: Context<'m>,
    route: &'m Document<MeshRoute>,
    rule: &RuleSpec,
) -> Option<&'m Document<MeshPeer>> {
    if route.inbound() == InboundSpec::Passthrough || !is_at_mesh(context, rule) {
        return None;
    }
    let denied: Vec<&IdPattern> = rule.from.iter().flatten().map(|id| &id.0).collect();
    let to = export(context, &route.spec.export);
    let mut peers = context.model.other_peers(&context.node.cluster);
    peers.find(|peer| {
        let reaches = match &to {
            Export::Nobody => false,
            Export::To(names) => names.contains(&peer.name),
            Export::AllPeers => true,
        };
        let is_attested = |id: &&IdPattern| {
            (peer.spec.attests.iter()).any(|domain| domain.0 == id.trust_domain())
        };
        let is_denied = |id: &IdPattern| denied.iter().any(|of| covers(of, id));
        let is_let_in = |id: &IdPattern| {
            (route.spec.allow.iter()).any(|rule| {
                let from = rule.value.from.as_ref();
                rule.value.via.is_none()
                    && is_at_mesh(context, &rule.value)
                    && from.is_none_or(|from| {
                        (from.iter()).any(|of| covers(&of.0, id) || covers(id, &of.0))
                    })
            })
        };
        let mut own = peer.spec.spiffe_ids.iter().map(|id| &id.0);
        reaches && denied.iter().any(is_attested) && own.any(|id| is_let_in(id) && !is_denied(id))
    })
}

/// Whether a rule is about a listener for other clusters too.
fn is_at_mesh(context: Context<'_>, rule: &RuleSpec) -> bool {
    let listeners = &context.gateway.spec.listeners;
    let is_mesh = |name: &Text<Name>| {
        (listeners.get(&name.0.0)).is_some_and(|listener| listener.role == RoleSpec::Mesh)
    };
    (rule.listeners.as_ref()).is_none_or(|names| names.iter().any(is_mesh))
}

/// Whether every ID of `inner` is one of `outer`.
fn covers(outer: &IdPattern, inner: &IdPattern) -> bool {
    outer == inner
        || match inner {
            IdPattern::Exact(id) => outer.matches(id),
            IdPattern::Below(parent) => {
                matches!(outer, IdPattern::Below(_)) && outer.matches(parent)
            }
        }
}
