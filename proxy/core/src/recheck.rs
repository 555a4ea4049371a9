//! Whether what is open may go on under another configuration than the one that let it in.
//!
//! Indices mean nothing across snapshots: what is open is known by names, and decided anew from
//! them. An endpoint that was only taken out of a cluster keeps its open connections, which drain.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::authorize::{
    Asking, Verdict, authorize, authorize_session, evidence, gateways_of, objection,
};
use crate::engine::{Headers, cluster_of};
use crate::identity::SpiffeId;
use crate::snapshot::{
    Address, ClusterIx, EndpointTls, Inbound, Listener, Protocol, Role, Service, ServiceIx,
    Snapshot,
};
use crate::verdict::Reason;

/// Something open, as the configuration knows it.
#[derive(Debug, Clone, Copy)]
pub struct Carried<'a> {
    /// The listener it came in on.
    pub listener: &'a str,
    /// The role that the listener had then; `None` if it is not known.
    pub role: Option<Role>,
    /// The address it came from.
    pub source: IpAddr,
    /// The load balancer that connected: who handed it on, or `source` itself.
    pub proxy: Option<IpAddr>,
    /// The verified ID of its caller; `None` where no TLS ended here.
    pub verified: Option<&'a SpiffeId>,
    /// The ID that a gateway handed on with it.
    pub claimed: Option<&'a SpiffeId>,
    /// The server name of its TLS, where that ended here or is relayed as it is.
    pub sni: Option<&'a str>,
    /// What it asked for.
    pub service: Asked,
    /// The other service that the split of its rule led it to; one that is gone drains.
    pub led: Option<ServiceIx>,
    /// What it is.
    pub kind: Kind<'a>,
}

/// What something open had asked for, in the snapshot it is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// Nothing yet, or each of its requests for itself.
    Nothing,
    /// This service.
    Service(ServiceIx),
    /// A service that is there no longer.
    Gone,
}

/// What something open is.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    /// The caller's own TLS, relayed as it is.
    Passthrough,
    /// The bytes of a TCP service.
    Bytes,
    /// A HTTP connection, whose requests are decided one by one.
    Session,
    /// A HTTP request or what it was upgraded to.
    Request {
        /// The method.
        method: &'a str,
        /// The path.
        path: &'a str,
        /// Its headers, where a rule asked for some when it was let in.
        headers: Option<Headers<'a>>,
    },
    /// Health reports to the gateway of a peer.
    Reports,
}

/// An endpoint with a verified certificate that something open is carried to.
#[derive(Debug, Clone, Copy)]
pub struct Answering<'a> {
    /// The name of its backend.
    pub backend: &'a str,
    /// Its address as it is configured.
    pub address: &'a Address,
    /// Who answered.
    pub id: &'a SpiffeId,
}

/// Why something open may not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// The reason in logs and metrics.
    pub reason: Reason,
    /// What decided: the position of a rule, or the id of a certificate rule.
    pub rule: Option<String>,
    /// What exactly, for people.
    pub detail: String,
}

impl Ending {
    fn not_served(detail: impl Into<String>) -> Self {
        Self {
            reason: Reason::NoLongerServed,
            rule: None,
            detail: detail.into(),
        }
    }
}

/// The services of a snapshot by name and port: for judging many.
#[derive(Debug)]
pub struct Directory(BTreeMap<(Arc<str>, u16), ServiceIx>);

impl Directory {
    /// Lists the services of `snapshot`.
    #[must_use]
    pub fn new(snapshot: &Snapshot) -> Self {
        let services = snapshot.services.iter().enumerate();
        let by_name = services
            .map(|(ix, service)| ((Arc::clone(&service.name), service.port), ServiceIx(ix)))
            .collect();
        Self(by_name)
    }

    /// Finds a service.
    #[must_use]
    pub fn find(&self, name: &Arc<str>, port: u16) -> Asked {
        match self.0.get(&(Arc::clone(name), port)) {
            Some(ix) => Asked::Service(*ix),
            None => Asked::Gone,
        }
    }
}

/// Finds one service without a [`Directory`].
#[must_use]
pub fn find(snapshot: &Snapshot, name: &str, port: u16) -> Asked {
    let found = (snapshot.services.iter())
        .position(|service| service.port == port && *service.name == *name);
    found.map_or(Asked::Gone, |ix| Asked::Service(ServiceIx(ix)))
}

/// Decides whether something open would be let in as it is by `snapshot`.
///
/// # Errors
/// Why it would not.
pub fn judge(snapshot: &Snapshot, carried: &Carried<'_>) -> Result<(), Ending> {
    let named = snapshot.listener(carried.listener);
    let Some(listener) = named.or_else(|| renamed(snapshot, carried)) else {
        let detail = format!("the listener `{}` is gone", carried.listener);
        return Err(Ending::not_served(detail));
    };
    let source = carried.source.to_canonical();
    if !listener.admits(source) {
        return Err(Ending {
            reason: Reason::NoLongerAllowed,
            rule: None,
            detail: format!(
                "the listener `{}` no longer accepts {source}",
                listener.name
            ),
        });
    }
    if let Some(proxy) = carried.proxy.filter(|proxy| !listener.trusts(*proxy)) {
        return Err(Ending {
            reason: Reason::NoLongerAllowed,
            rule: None,
            detail: format!(
                "the listener `{}` no longer takes the word of {proxy} for who calls",
                listener.name
            ),
        });
    }
    // What may come in, what it reaches and whose rules hold all follow from it.
    if carried.role.is_some_and(|role| role != listener.role) {
        let detail = format!("the listener `{}` has another role", listener.name);
        return Err(Ending::not_served(detail));
    }
    if matches!(carried.kind, Kind::Reports) {
        let peers = (carried.verified).map(|id| gateways_of(snapshot, carried.source, id));
        return if peers.is_some_and(|peers| !peers.is_empty()) {
            Ok(())
        } else {
            Err(Ending::not_served(
                "its caller is no peer's gateway any more",
            ))
        };
    }
    let ix = match carried.service {
        Asked::Nothing => return Ok(()),
        Asked::Gone => return Err(Ending::not_served("its service is gone")),
        Asked::Service(ix) => ix,
    };
    let service = snapshot.service(ix);
    check_served(listener, ix, service, &carried.kind)?;
    let asking = asking(snapshot, listener, carried);
    let verdict = match carried.kind {
        Kind::Session => authorize_session(snapshot, ix, &asking),
        Kind::Passthrough | Kind::Bytes | Kind::Request { .. } | Kind::Reports => {
            authorize(snapshot, ix, &asking)
        }
    };
    if let Verdict::Deny {
        reason,
        rule,
        nearest,
    } = verdict
    {
        return Err(denied(service, reason, rule, nearest));
    }
    carried
        .led
        .map_or(Ok(()), |led| judge_led(snapshot, led, &asking))
}

/// What policies are asked about it.
fn asking<'a>(snapshot: &Snapshot, listener: &'a Listener, carried: &Carried<'a>) -> Asking<'a> {
    let evidence = match carried.verified {
        None => crate::authorize::Evidence::Network,
        Some(id) => evidence(snapshot, carried.source, id, carried.claimed),
    };
    let (method, path, headers) = match carried.kind {
        Kind::Request {
            method,
            path,
            headers,
        } => (Some(method), Some(path), headers),
        Kind::Passthrough | Kind::Bytes | Kind::Session | Kind::Reports => (None, None, None),
    };
    Asking {
        listener,
        source: carried.source,
        evidence,
        sni: carried.sni,
        method,
        path,
        headers,
    }
}

/// Whether a service that the split of another one led it to has nothing against it.
fn judge_led(snapshot: &Snapshot, led: ServiceIx, asking: &Asking<'_>) -> Result<(), Ending> {
    let Some(Verdict::Deny { reason, rule, .. }) = objection(snapshot, led, asking) else {
        return Ok(());
    };
    let led = snapshot.service(led);
    let ending = denied(led, reason, rule, None);
    Err(Ending {
        detail: format!("the split leads to {}: {}", led.name, ending.detail),
        ..ending
    })
}

/// The one-route listener that carries the same plaintext under another name: a new name takes no
/// right away, and rules are asked by it.
fn renamed<'s>(snapshot: &'s Snapshot, carried: &Carried<'_>) -> Option<&'s Listener> {
    let Asked::Service(ix) = carried.service else {
        return None;
    };
    let is_plain = matches!(carried.kind, Kind::Bytes) && carried.verified.is_none();
    let mut listeners = snapshot.listeners.iter().filter(|_| is_plain);
    listeners.find(|listener| listener.only == Some(ix))
}

/// Whether a listener still carries a service in this way.
fn check_served(
    listener: &Listener,
    ix: ServiceIx,
    service: &Service,
    kind: &Kind<'_>,
) -> Result<(), Ending> {
    if listener.only.is_some_and(|only| only != ix) {
        let detail = format!("the listener `{}` is another route's", listener.name);
        return Err(Ending::not_served(detail));
    }
    let as_it_is = match kind {
        Kind::Passthrough => service.inbound == Inbound::Passthrough,
        Kind::Bytes => service.protocol == Protocol::Tcp,
        Kind::Session | Kind::Request { .. } => service.protocol == Protocol::Http,
        // They are of no service.
        Kind::Reports => false,
    };
    if !as_it_is {
        let detail = format!("{} is carried in another way", service.name);
        return Err(Ending::not_served(detail));
    }
    Ok(())
}

fn denied(
    service: &Service,
    reason: Reason,
    rule: Option<usize>,
    nearest: Option<usize>,
) -> Ending {
    let policy = &service.policy;
    let deny = rule.and_then(|nth| policy.deny.get(nth));
    let near = nearest.and_then(|nth| policy.allow.get(nth));
    let position = deny.or(near).and_then(|rule| rule.position.as_ref());
    Ending {
        reason: if reason == Reason::NotExported {
            Reason::NoLongerServed
        } else {
            Reason::NoLongerAllowed
        },
        rule: position
            .or(service.position.as_ref())
            .map(ToString::to_string),
        detail: format!("{reason}: {}", reason.text()),
    }
}

/// Decides whether the endpoint that something open is carried to may still answer for it.
///
/// # Errors
/// The endpoint is configured and another identity is expected of it. One that is not configured
/// any more is not asked for: what is open to it drains.
pub fn judge_answering(
    snapshot: &Snapshot,
    listener: &str,
    service: ServiceIx,
    answering: &Answering<'_>,
) -> Result<(), Ending> {
    let Some(listener) = snapshot.listener(listener) else {
        return Ok(());
    };
    let rules = snapshot.service(service).rules.as_deref();
    let splits =
        (rules.iter().flat_map(|rules| &rules.list)).filter_map(|rule| rule.split.as_ref());
    let parts = splits
        .flatten()
        .filter_map(|part| part.cluster(listener.role));
    let all = cluster_of(snapshot, listener, service)
        .into_iter()
        .chain(parts);
    judge_answering_in(snapshot, all, service, answering)
}

/// As [`judge_answering`], of a copy for the mirror to `route`.
///
/// # Errors
/// As there; or the service is not copied to that route any more.
pub fn judge_copy(
    snapshot: &Snapshot,
    service: ServiceIx,
    route: &str,
    answering: Option<&Answering<'_>>,
) -> Result<(), Ending> {
    let mut mirrors = snapshot.service(service).mirrors.iter();
    let Some(mirror) = mirrors.find(|mirror| *mirror.route == *route) else {
        let detail = format!("its service is not mirrored to {route} any more");
        return Err(Ending::not_served(detail));
    };
    answering.map_or(Ok(()), |answering| {
        judge_answering_in(snapshot, [mirror.to], service, answering)
    })
}

fn judge_answering_in(
    snapshot: &Snapshot,
    clusters: impl IntoIterator<Item = ClusterIx>,
    service: ServiceIx,
    answering: &Answering<'_>,
) -> Result<(), Ending> {
    let endpoints = (clusters.into_iter()).flat_map(|ix| &snapshot.cluster(ix).endpoints);
    let same = endpoints.filter(|endpoint| {
        *endpoint.backend == *answering.backend && endpoint.address == *answering.address
    });
    let mut unexpected = false;
    for endpoint in same {
        match &endpoint.tls {
            EndpointTls::Mesh { expected, .. } => {
                if expected.iter().any(|one| one.matches(answering.id)) {
                    return Ok(());
                }
                unexpected = true;
            }
            EndpointTls::None | EndpointTls::Workload => {}
        }
    }
    if !unexpected {
        return Ok(());
    }
    let service = snapshot.service(service);
    Err(Ending {
        reason: Reason::UpstreamRefused,
        rule: service.position.as_ref().map(ToString::to_string),
        detail: format!(
            "{} answers at {}, and is no longer expected there",
            answering.id, answering.address
        ),
    })
}

#[cfg(test)]
#[path = "recheck_tests.rs"]
mod tests;
