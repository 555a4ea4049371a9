//! Which service a connection or request is for.

use crate::hello::ClientHello;
use crate::names::{Host, SniTarget, split_authority};
use crate::snapshot::{
    Export, HostTable, Inbound, Listener, Lookup, Protocol, Role, Service, ServiceIx, Snapshot,
};
use crate::verdict::Reason;

/// The server name under which gateways of peers ask each other for health reports.
pub const REPORTS_SNI: &str = "peer.zeugma.internal";
/// What they speak there (ALPN).
pub const REPORTS_ALPN: &[u8] = b"zeugma-peer/1";

/// What is to be done with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Routed {
    /// Relay the TLS as it is to this service.
    Passthrough(ServiceIx),
    /// End the TLS here; the connection is for this service.
    Terminate(ServiceIx),
    /// End the TLS here; it is for a port of this service's route that only each request's
    /// authority names ([`check_authority_port`]).
    TerminateAnyPort(ServiceIx),
    /// End the TLS here; the gateway of a peer asks for health reports.
    Reports,
    /// Relay the bytes as they are to the only service of the listener.
    Plain(ServiceIx),
    /// Read plaintext HTTP; each request's authority names its service ([`route_authority`]).
    PlainHttp,
    /// Refuse it.
    Refuse(Reason),
}

/// What can be said before the client sent a byte: the service of a one-route listener, whose
/// clients may be waiting for the server to speak first.
#[must_use]
pub fn route_unpeeked(listener: &Listener) -> Option<Routed> {
    match listener.role {
        Role::Workloads => listener.only.map(Routed::Plain),
        // Nothing but TLS is ever accepted from other clusters.
        Role::Mesh => None,
    }
}

/// Where a connection goes whose first byte is not TLS.
#[must_use]
pub fn route_plaintext(listener: &Listener) -> Routed {
    match (route_unpeeked(listener), listener.role) {
        (Some(routed), _) => routed,
        (None, Role::Workloads) => Routed::PlainHttp,
        (None, Role::Mesh) => Routed::Refuse(Reason::NotTls),
    }
}

/// Where a connection goes that began with this ClientHello.
#[must_use]
pub fn route_tls(snapshot: &Snapshot, listener: &Listener, hello: &ClientHello) -> Routed {
    if let Some(routed) = route_unpeeked(listener) {
        return routed;
    }
    let rest = |reason| match listener.hosts.rest {
        Some(ix) => route_service(snapshot, listener, ix),
        None => Routed::Refuse(reason),
    };
    let Some(sni) = hello.sni.as_deref() else {
        return rest(Reason::SniMissing);
    };
    let Ok(target) = SniTarget::parse(sni) else {
        return rest(Reason::SniMalformed);
    };
    let asks_reports = target.host.as_str() == REPORTS_SNI
        && listener.role == Role::Mesh
        && hello.alpn.iter().any(|offer| offer == REPORTS_ALPN);
    if asks_reports && !snapshot.peers.is_empty() {
        return Routed::Reports;
    }
    match listener.hosts.lookup_sni(&target) {
        Lookup::Found(ix) => route_service(snapshot, listener, ix),
        Lookup::PortNeeded => route_any_port(snapshot, listener, &target.host),
        Lookup::NoSuchPort | Lookup::Unknown => rest(Reason::SniUnknown),
    }
}

/// The service that a plaintext request is for.
///
/// # Errors
/// [`Reason::AuthorityMissing`], [`Reason::AuthorityUnknown`] (also for a host that is no name, or
/// a port the host does not have) or [`Reason::PortNeeded`].
pub fn route_authority(
    snapshot: &Snapshot,
    listener: &Listener,
    authority: &str,
) -> Result<ServiceIx, Reason> {
    match find(snapshot, listener, &listener.hosts, authority)? {
        Found::Service(ix) => Ok(ix),
        Found::AnyPort(_) => Err(Reason::PortNeeded),
        Found::Nothing => Err(Reason::AuthorityUnknown),
    }
}

/// The service of a request that came inside TLS ended for `sni_service`.
///
/// The authority must be a host of the same route, which on a mesh listener is exported; it may
/// name another port of that route, and without a port means the SNI's. Where the service has hosts of
/// its own [inside](Service::inside), it must be one of them, whatever its route.
///
/// # Errors
/// [`Reason::AuthorityMissing`], or [`Reason::Misdirected`] (421).
pub fn check_authority(
    snapshot: &Snapshot,
    listener: &Listener,
    sni_service: ServiceIx,
    authority: &str,
) -> Result<ServiceIx, Reason> {
    match check_authority_port(snapshot, listener, sni_service, authority) {
        Err(Reason::PortNeeded) if is_usable(snapshot, listener, sni_service) => Ok(sni_service),
        Err(Reason::PortNeeded) => Err(Reason::Misdirected),
        other => other,
    }
}

/// As [`check_authority`], where the SNI named no port of a route that has several
/// ([`Routed::TerminateAnyPort`]): the authority has to.
///
/// # Errors
/// As [`check_authority`], and [`Reason::PortNeeded`].
pub fn check_authority_port(
    snapshot: &Snapshot,
    listener: &Listener,
    sni_service: ServiceIx,
    authority: &str,
) -> Result<ServiceIx, Reason> {
    if let Some(inside) = &snapshot.service(sni_service).inside {
        return match find(snapshot, listener, inside, authority)? {
            Found::Service(ix) => Ok(ix),
            Found::AnyPort(_) | Found::Nothing => Err(Reason::Misdirected),
        };
    }
    match find(snapshot, listener, &listener.hosts, authority)? {
        Found::Service(ix) if same_route(snapshot, sni_service, ix) => Ok(ix),
        Found::AnyPort(ports)
            if ports
                .iter()
                .any(|(_, ix)| same_route(snapshot, sni_service, *ix)) =>
        {
            Err(Reason::PortNeeded)
        }
        Found::Service(_) | Found::AnyPort(_) | Found::Nothing => Err(Reason::Misdirected),
    }
}

/// Whether `service` can be seen through `listener` at all.
#[must_use]
pub fn is_visible(listener: &Listener, service: &Service) -> bool {
    match (listener.role, &service.export) {
        (Role::Workloads, _) | (Role::Mesh, Export::AllPeers) => true,
        (Role::Mesh, Export::To(peers)) => !peers.is_empty(),
        (Role::Mesh, Export::Nobody) => false,
    }
}

fn route_service(snapshot: &Snapshot, listener: &Listener, ix: ServiceIx) -> Routed {
    let service = snapshot.service(ix);
    if !is_visible(listener, service) {
        return Routed::Refuse(Reason::NotExported);
    }
    match service.inbound {
        Inbound::Passthrough => Routed::Passthrough(ix),
        Inbound::Terminate => Routed::Terminate(ix),
    }
}

/// A bare SNI for a host with several ports: the authority inside may still name one, if all of
/// them are one route's, so that it is known whose TLS this is.
fn route_any_port(snapshot: &Snapshot, listener: &Listener, host: &Host) -> Routed {
    let ports = listener.hosts.ports(host);
    let services = || ports.iter().map(|(_, ix)| (*ix, snapshot.service(*ix)));
    let Some((_, service)) = services().next() else {
        return Routed::Refuse(Reason::SniUnknown);
    };
    // First: that it has ports is nobody's business to whom none is exported.
    if !services().any(|(_, service)| is_visible(listener, service)) {
        return Routed::Refuse(Reason::NotExported);
    }
    if services().any(|(_, other)| other.name != service.name) {
        return Routed::Refuse(Reason::PortNeeded);
    }
    if services().any(|(_, service)| service.inbound == Inbound::Passthrough) {
        return Routed::Refuse(Reason::PortNeeded);
    }
    services()
        .find(|(ix, _)| is_usable(snapshot, listener, *ix))
        .map_or(Routed::Refuse(Reason::PortNeeded), |(ix, _)| {
            Routed::TerminateAnyPort(ix)
        })
}

/// What an authority stands for among the HTTP services that are visible on a listener.
enum Found<'a> {
    Service(ServiceIx),
    /// The host is known and has several ports.
    AnyPort(&'a [(u16, ServiceIx)]),
    Nothing,
}

fn find<'a>(
    snapshot: &Snapshot,
    listener: &Listener,
    hosts: &'a HostTable,
    authority: &str,
) -> Result<Found<'a>, Reason> {
    if authority.is_empty() {
        return Err(Reason::AuthorityMissing);
    }
    let usable = |ix: &ServiceIx| is_usable(snapshot, listener, *ix);
    let rest = hosts.rest.filter(usable).map(Found::Service);
    let Ok((host, mut port)) = split_authority(authority) else {
        return Ok(rest.unwrap_or(Found::Nothing));
    };
    // A client that was pointed at the listener itself writes the listener's port into the
    // authority (RFC 9110 §7.2): that names no port of the service. A literal table has the last word.
    if port == Some(listener.address.port()) && hosts.lookup_name(&host, port) == Lookup::NoSuchPort
    {
        port = None;
    }
    Ok(match hosts.lookup_name(&host, port) {
        Lookup::Found(ix) if usable(&ix) => Found::Service(ix),
        Lookup::PortNeeded => Found::AnyPort(hosts.ports_of_name(&host)),
        Lookup::Found(_) => Found::Nothing,
        Lookup::NoSuchPort | Lookup::Unknown => rest.unwrap_or(Found::Nothing),
    })
}

/// Whether requests may ask for the service here.
fn is_usable(snapshot: &Snapshot, listener: &Listener, ix: ServiceIx) -> bool {
    let service = snapshot.service(ix);
    service.protocol == Protocol::Http && is_visible(listener, service)
}

fn same_route(snapshot: &Snapshot, one: ServiceIx, other: ServiceIx) -> bool {
    snapshot.service(one).name == snapshot.service(other).name
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
