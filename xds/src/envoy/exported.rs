//! Whom a route is exported to, in Envoy's words: who calls and from where, for of peers it knows nothing.

use std::collections::{BTreeSet, HashMap};

use zeugma_core::identity::TrustDomain;

use crate::compile::rbac::{any_id, authenticated, identifier, rule};
use crate::compile::{Context, DENY, Export, export};
use crate::model::{Document, InboundSpec, MeshPeer, RoleSpec};
use crate::pb::{self, http_rbac, listener, network_rbac, rbac, route};

/// What the policy is called that denies those whom nothing is exported to.
const NOT_EXPORTED: &str = "not exported";

/// What denies those whom a service is not exported to.
pub(crate) struct Exports {
    /// The listeners at which that is asked.
    listeners: BTreeSet<String>,
    /// By the ID of the service.
    denies: HashMap<String, rbac::Policy>,
}

impl Exports {
    pub(crate) fn new(context: Context<'_>) -> Self {
        let listeners = context.gateway.spec.listeners.iter();
        let mut denies = HashMap::new();
        for route in &context.model.routes {
            let to = export(context, &route.spec.export);
            let denied = denied(context, &to, route.inbound());
            for port in route.ports() {
                denies.insert(format!("{}:{}", route.id(), port.port), denied.clone());
            }
        }
        Self {
            listeners: listeners
                .filter(|(_, spec)| spec.role == RoleSpec::Mesh)
                .map(|(name, _)| name.clone())
                .collect(),
            denies,
        }
    }

    /// Adds it to a chain of a listener that carries bytes.
    pub(crate) fn guard_chain(
        &self,
        listener: &str,
        chain: &mut listener::FilterChain,
    ) -> Result<(), String> {
        let Some(denied) = self.of(listener, &chain.name) else {
            return Ok(());
        };
        let mut filters = chain.filters.iter_mut();
        let filter = filters.find(|filter| filter.name == DENY);
        if let Some(listener::filter::ConfigType::TypedConfig(any)) =
            filter.and_then(|filter| filter.config_type.as_mut())
        {
            let mut rbac: network_rbac::Rbac = pb::unpack(any)?;
            add(&mut rbac.rules, denied);
            *any = pb::pack(&rbac);
        }
        Ok(())
    }

    /// Adds it to the hosts of a listener's routes.
    pub(crate) fn guard_hosts(&self, routes: &mut route::RouteConfiguration) -> Result<(), String> {
        let (listener, _) = (routes.name.split_once('|')).ok_or("routes of no listener")?;
        let mut hosts = routes.virtual_hosts.iter_mut();
        hosts.try_for_each(|host| self.guard_host(listener, host))
    }

    /// Adds it to one of them.
    pub(crate) fn guard_host(
        &self,
        listener: &str,
        host: &mut route::VirtualHost,
    ) -> Result<(), String> {
        if let Some(denied) = self.of(listener, &host.name)
            && let Some(any) = host.typed_per_filter_config.get_mut(DENY)
        {
            let mut of_host: http_rbac::RbacPerRoute = pb::unpack(any)?;
            add(&mut of_host.rbac.get_or_insert_default().rules, denied);
            *any = pb::pack(&of_host);
        }
        Ok(())
    }

    fn of(&self, listener: &str, service: &str) -> Option<&rbac::Policy> {
        let is_asked = self.listeners.contains(listener);
        self.denies.get(service).filter(|_| is_asked)
    }
}

/// Adds it to what holds: `policy: audit` is not about it.
fn add(rules: &mut Option<rbac::Rbac>, denied: &rbac::Policy) {
    let rules = rules.get_or_insert_with(|| rbac::Rbac {
        action: rbac::rbac::Action::Deny.into(),
        ..Default::default()
    });
    (rules.policies).insert(NOT_EXPORTED.to_owned(), denied.clone());
}

fn denied(context: Context<'_>, export: &Export, inbound: InboundSpec) -> rbac::Policy {
    let peers = context.model.other_peers(&context.node.cluster);
    let (to, others): (Vec<_>, Vec<_>) = peers.partition(|peer| match export {
        Export::Nobody => false,
        Export::To(names) => names.contains(&peer.name),
        Export::AllPeers => true,
    });
    let may = match inbound {
        InboundSpec::Terminate => verified(&to, &others),
        InboundSpec::Passthrough => any_id(to.iter().filter_map(|peer| match export {
            // Nothing but the source tells who relayed TLS is from.
            Export::AllPeers if peer.spec.sources.is_empty() => Some(everybody()),
            Export::AllPeers | Export::To(_) | Export::Nobody => calls_from(peer),
        })),
    };
    rbac::Policy {
        permissions: vec![rule(rbac::permission::Rule::Any(true))],
        principals: vec![may.map_or_else(everybody, not)],
        ..Default::default()
    }
}

/// Callers of whom one of `to` is the peer that fits best, or one of those.
///
/// It is as in the core's `authorize::peer_of`: whoever is listed by a peer is its rather than of those
/// with an ID of its trust domain, and whoever a peer has sources for rather than of one without. So a
/// peer's callers are those that fit it, without those that fit one of `others` better.
fn verified(to: &[&Document<MeshPeer>], others: &[&Document<MeshPeer>]) -> Option<rbac::Principal> {
    let has_sources = |peer: &Document<MeshPeer>| !peer.spec.sources.is_empty();
    any_id(to.iter().flat_map(|peer| {
        let sourced: Vec<_> = (others.iter())
            .filter(|other| has_sources(other) && !has_sources(peer))
            .collect();
        let better = any_id(sourced.iter().filter_map(|other| listed(other)));
        let listed_here = listed(peer).map(|ids| but(ids, better));
        let better = (others.iter().filter_map(|other| listed(other)))
            .chain(sourced.iter().filter_map(|other| of_domain(other)));
        let of_its_domain = of_domain(peer).map(|ids| but(ids, any_id(better)));
        listed_here.into_iter().chain(of_its_domain)
    }))
}

/// Who has an ID that the peer lists.
fn listed(peer: &Document<MeshPeer>) -> Option<rbac::Principal> {
    let ids = peer.spec.spiffe_ids.iter().map(|id| authenticated(&id.0));
    at_its_sources(peer, any_id(ids)?)
}

/// Who has an ID of a trust domain of the peer's.
fn of_domain(peer: &Document<MeshPeer>) -> Option<rbac::Principal> {
    let ids = peer.spec.spiffe_ids.iter();
    let domains: BTreeSet<TrustDomain> = ids.map(|id| id.0.trust_domain()).collect();
    let ids = domains.iter().map(|domain| {
        identifier(rbac::principal::Identifier::Authenticated(
            rbac::principal::Authenticated {
                principal_name: Some(pb::beginning(&format!("spiffe://{domain}/"))),
            },
        ))
    });
    at_its_sources(peer, any_id(ids)?)
}

fn at_its_sources(peer: &Document<MeshPeer>, ids: rbac::Principal) -> Option<rbac::Principal> {
    Some(match calls_from(peer) {
        Some(sources) => all(vec![ids, sources]),
        None => ids,
    })
}

/// Who calls from its sources, where it has any.
fn calls_from(peer: &Document<MeshPeer>) -> Option<rbac::Principal> {
    any_id(peer.spec.sources.iter().map(|net| {
        identifier(rbac::principal::Identifier::DirectRemoteIp(pb::cidr(
            &net.0,
        )))
    }))
}

fn everybody() -> rbac::Principal {
    identifier(rbac::principal::Identifier::Any(true))
}

fn not(principal: rbac::Principal) -> rbac::Principal {
    identifier(rbac::principal::Identifier::NotId(Box::new(principal)))
}

fn all(ids: Vec<rbac::Principal>) -> rbac::Principal {
    identifier(rbac::principal::Identifier::AndIds(rbac::principal::Set {
        ids,
    }))
}

fn but(ids: rbac::Principal, without: Option<rbac::Principal>) -> rbac::Principal {
    match without {
        Some(without) => all(vec![ids, not(without)]),
        None => ids,
    }
}
