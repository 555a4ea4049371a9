//! Backends: where a route is served.

use std::collections::BTreeMap;
use std::fmt;

use super::Checker;
use crate::error::Code;
use crate::model::scalar::{Target, TargetHost, Text};
use crate::model::{BackendSpec, InboundSpec, MeshRoute, Model, ProtocolSpec, TlsSpec};

const WEIGHT_MAX: u32 = 10_000;

pub(super) fn check(model: &Model, check: &mut Checker<'_, MeshRoute>) {
    let route = check.document;
    let backends = &route.spec.backends;
    if backends.is_empty() {
        check.key(
            Code::MissingField,
            "spec.backends",
            "the route has no backends".to_owned(),
            "write at least one: `endpoints: [...]`, or `peer: NAME`",
        );
    }
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let mut peers: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, backend) in backends.iter().enumerate() {
        let path = format_args!("spec.backends[{at}]");
        if let Some(Text(peer)) = &backend.peer {
            if let Some(first) = peers.insert(peer.0.as_str(), at) {
                check.value(
                    Code::Duplicate,
                    &format!("{path}.peer"),
                    format!("peer `{}` is backend {} already", peer.0, first + 1),
                    "remove one of them",
                );
                continue;
            }
            peer_backend(model, check, backend, path);
        } else {
            own_backend(model, check, backend, path);
        }
        if let Some(first) = names.insert(backend.display_name(at), at) {
            check.value(
                Code::Duplicate,
                &path.to_string(),
                format!(
                    "backend {} is called `{}` already",
                    first + 1,
                    backend.display_name(at)
                ),
                "give each backend a `name` of its own",
            );
        }
    }
    exact_host(check);
}

/// What leaves by mTLS of ours needs one name to ask for.
fn exact_host(check: &mut Checker<'_, MeshRoute>) {
    let route = check.document;
    let is_asked_for = route.inbound() == InboundSpec::Terminate
        && route.spec.backends.iter().any(|backend| {
            backend.peer.is_some()
                || backend.cluster.is_some()
                || backend.tls == Some(TlsSpec::Mesh)
        });
    if is_asked_for && route.first_host().is_none() && !route.hosts().is_empty() {
        check.key(
            Code::Contradiction,
            "spec.hosts",
            "there are only wildcards, and a peer or `tls: mesh` is asked for one host".to_owned(),
            "add a host without `*`",
        );
    }
}

fn peer_backend(
    model: &Model,
    check: &mut Checker<'_, MeshRoute>,
    backend: &BackendSpec,
    path: fmt::Arguments<'_>,
) {
    let Some(Text(peer)) = &backend.peer else {
        return;
    };
    if model.peer(&peer.0).is_none() {
        check.unknown(
            &format!("{path}.peer"),
            format!("no MeshPeer `{}`", peer.0),
            &peer.0,
            model.peers.iter().map(|peer| peer.name.as_str()),
        );
    }
    for (is_written, field) in [
        (backend.endpoints.is_some(), "endpoints"),
        (backend.dns.is_some(), "dns"),
        (backend.cluster.is_some(), "cluster"),
        (backend.locality.is_some(), "locality"),
        (backend.tls.is_some(), "tls"),
        (backend.version.is_some(), "version"),
        (backend.proxy_protocol.is_some(), "proxyProtocol"),
    ] {
        if is_written {
            check.no_effect(
                &format!("{path}.{field}"),
                "a peer is reached as its MeshPeer says",
                "remove it, or remove `peer`",
            );
        }
    }
    let is_passthrough = check.document.inbound() == InboundSpec::Passthrough;
    match &backend.spiffe_ids {
        Some(_) if is_passthrough => check.no_effect(
            &format!("{path}.spiffeIDs"),
            "TLS is passed through, so the caller itself checks who answers",
            "remove it",
        ),
        Some(ids) if ids.is_empty() => empty(check, &format!("{path}.spiffeIDs")),
        Some(_) | None => {}
    }
}

/// A list without entries, where leaving it out would mean something else.
pub(super) fn empty(check: &mut Checker<'_, MeshRoute>, path: &str) {
    check.key(
        Code::MissingField,
        path,
        "the list is empty".to_owned(),
        "write at least one entry, or remove it",
    );
}

fn own_backend(
    model: &Model,
    check: &mut Checker<'_, MeshRoute>,
    backend: &BackendSpec,
    path: fmt::Arguments<'_>,
) {
    endpoints(check, backend, path);
    cluster(model, check, backend, path);
    let tls = backend.tls.unwrap_or(TlsSpec::None);
    if check.document.inbound() == InboundSpec::Passthrough && tls != TlsSpec::Workload {
        check.key(
            Code::Contradiction,
            &format!("{path}.tls"),
            "TLS is passed through, and this backend's endpoints do not speak it".to_owned(),
            "write `tls: workload`, or `inbound: terminate` for the route",
        );
    }
    match (&backend.spiffe_ids, tls) {
        (None, TlsSpec::Mesh) => check.value(
            Code::Unsafe,
            &format!("{path}.tls"),
            "nobody is expected to answer".to_owned(),
            "write `spiffeIDs`, who must answer there",
        ),
        (Some(ids), TlsSpec::Mesh) if ids.is_empty() => {
            empty(check, &format!("{path}.spiffeIDs"));
        }
        (Some(_), TlsSpec::None | TlsSpec::Workload) => check.no_effect(
            &format!("{path}.spiffeIDs"),
            "only `tls: mesh` checks who answers",
            "write `tls: mesh`, or remove it",
        ),
        (Some(_), TlsSpec::Mesh) | (None, TlsSpec::None | TlsSpec::Workload) => {}
    }
    let ports = check.document.ports();
    let has = |protocol| ports.iter().any(|port| port.protocol == protocol);
    if backend.version.is_some() && !has(ProtocolSpec::Http) {
        check.no_effect(
            &format!("{path}.version"),
            "the route is tcp",
            "write `protocol: http`, or remove it",
        );
    }
    if backend.proxy_protocol == Some(true) && !has(ProtocolSpec::Tcp) {
        check.no_effect(
            &format!("{path}.proxyProtocol"),
            "over http the caller's identity goes in `x-forwarded-client-cert`, per request",
            "remove it",
        );
    }
}

fn endpoints(check: &mut Checker<'_, MeshRoute>, backend: &BackendSpec, path: fmt::Arguments<'_>) {
    if let Some(Text(name)) = &backend.dns {
        return dns(check, backend, name, &format!("{path}.dns"));
    }
    let Some(endpoints) = &backend.endpoints else {
        check.key(
            Code::MissingField,
            &path.to_string(),
            "the backend has neither `endpoints`, `dns` nor `peer`".to_owned(),
            "write where it answers",
        );
        return;
    };
    if endpoints.is_empty() {
        check.key(
            Code::MissingField,
            &format!("{path}.endpoints"),
            "the backend has no endpoints".to_owned(),
            "write at least one address, or remove the backend",
        );
    }
    let is_multi = check.document.ports().len() > 1;
    for (at, endpoint) in endpoints.iter().enumerate() {
        let path = format_args!("{path}.endpoints[{at}]");
        if endpoint.weight == Some(0) {
            check.value(
                Code::BadValue,
                &format!("{path}.weight"),
                "weight 0 would keep an endpoint that is never used".to_owned(),
                "remove the endpoint, or write 1 to 10000",
            );
        } else if endpoint.weight.is_some() {
            check.range(&format!("{path}.weight"), endpoint.weight, 1..=WEIGHT_MAX);
        }
        if is_multi && endpoint.address.port.is_some() {
            check.value(
                Code::Contradiction,
                &path.to_string(),
                "the route has several ports, and all of them would go to this one".to_owned(),
                "leave the port out: `targetPort` of each port is used",
            );
        }
    }
}

fn dns(check: &mut Checker<'_, MeshRoute>, backend: &BackendSpec, name: &Target, path: &str) {
    if backend.endpoints.is_some() {
        check.key(
            Code::Contradiction,
            path,
            "the backend has `endpoints` already".to_owned(),
            "write either; two kinds of endpoints are two backends",
        );
    }
    if let TargetHost::Ip(ip) = name.host {
        check.value(
            Code::BadValue,
            path,
            format!("`{ip}` is an address, and there is nothing to resolve"),
            "write a name, or the address in `endpoints`",
        );
    }
    if check.document.ports().len() > 1 && name.port.is_some() {
        check.value(
            Code::Contradiction,
            path,
            "the route has several ports, and all of them would go to this one".to_owned(),
            "leave the port out: `targetPort` of each port is used",
        );
    }
}

fn cluster(
    model: &Model,
    check: &mut Checker<'_, MeshRoute>,
    backend: &BackendSpec,
    path: fmt::Arguments<'_>,
) {
    let Some(Text(cluster)) = &backend.cluster else {
        return;
    };
    let path = format!("{path}.cluster");
    let gateways = || {
        model
            .gateways
            .iter()
            .map(|gateway| gateway.spec.cluster.0.0.as_str())
    };
    if model.peer_of_cluster(&cluster.0).is_some() {
        return;
    }
    if gateways().any(|own| own == cluster.0) {
        if let Some(other) = gateways().find(|own| *own != cluster.0) {
            check.value(
                Code::UnknownReference,
                &path,
                format!("cluster `{other}` cannot reach cluster `{}`", cluster.0),
                &format!("add a MeshPeer with `cluster: {}`", cluster.0),
            );
        }
        return;
    }
    let peers = model
        .peers
        .iter()
        .map(|peer| peer.spec.cluster.0.0.as_str());
    check.unknown(
        &path,
        format!("no MeshGateway or MeshPeer is of cluster `{}`", cluster.0),
        &cluster.0,
        gateways().chain(peers),
    );
}
