//! What a route's backends are for one gateway.

use std::net::SocketAddr;

use zeugma_core::admission::Rate;
use zeugma_core::identity::IdPattern;
use zeugma_core::locality::Locality;
use zeugma_core::names::SniTarget;
use zeugma_core::snapshot::{Address, EndpointTls, Node};

use crate::meta::VersionMeta;
use crate::model::scalar::{Target as Written, TargetHost, Text};
use crate::model::{
    BackendSpec, Document, InboundSpec, MeshPeer, MeshRoute, Model, Port, TlsSpec, VersionSpec,
};

/// Endpoints that stand or fall together in the order of levels: a backend of this cluster, or a
/// peer.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The name, and the names of what is reached through it.
    pub names: Vec<String>,
    /// The cluster it is in.
    pub cluster: String,
    /// Where it stands.
    pub locality: Locality,
    /// The peer, where it is one.
    pub peer: Option<String>,
    /// Addresses and weights; a peer's gateways share a weight of 1.
    pub endpoints: Vec<(Address, u32)>,
    /// What TLS is spoken with them.
    pub tls: EndpointTls,
    /// The HTTP version spoken with them.
    pub version: VersionMeta,
    /// Whether a PROXY protocol header precedes the bytes.
    pub proxy_protocol: bool,
    /// What all of it takes in a second; `None`: anything.
    pub capacity: Option<Rate>,
}

impl Target {
    /// The name it is shown by.
    pub(crate) fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }

    #[cfg(test)]
    pub(crate) fn for_test(name: &str, locality: Locality) -> Self {
        Self {
            names: vec![name.to_owned()],
            cluster: "east".to_owned(),
            locality,
            peer: None,
            endpoints: Vec::new(),
            tls: EndpointTls::None,
            version: VersionMeta::Same,
            proxy_protocol: false,
            capacity: None,
        }
    }
}

/// The targets of one port of `route` for `node`, in the order written.
///
/// The peer of the node's own cluster is left out, and several backends of one other cluster are
/// one target.
pub(crate) fn targets(
    model: &Model,
    route: &Document<MeshRoute>,
    port: &Port,
    node: &Node,
) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::with_capacity(route.spec.backends.len());
    for (at, backend) in route.spec.backends.iter().enumerate() {
        let name = backend.display_name(at);
        let peer = match (&backend.peer, &backend.cluster) {
            (Some(Text(peer)), _) => model.peer(&peer.0),
            (None, Some(Text(cluster))) if *cluster.0 != *node.cluster => {
                model.peer_of_cluster(&cluster.0)
            }
            (None, _) => {
                targets.push(own(model, route, port, backend, name, node));
                continue;
            }
        };
        let Some(peer) = peer.filter(|peer| *peer.spec.cluster.0.0 != *node.cluster) else {
            continue;
        };
        let ids = match backend.peer {
            Some(_) => backend.spiffe_ids.as_deref(),
            None => None,
        };
        match targets
            .iter_mut()
            .find(|target| target.peer.as_deref() == Some(&peer.name))
        {
            Some(target) => {
                target.names.push(name);
                target.capacity = both(target.capacity, capacity(backend));
                if ids.is_some() {
                    target.tls = peer_tls(model, route, port, peer, ids);
                }
            }
            None => {
                let mut target = peer_target(model, route, port, peer, ids);
                target.capacity = capacity(backend);
                if name != peer.name {
                    target.names.push(name);
                }
                targets.push(target);
            }
        }
    }
    targets
}

/// A peer as a target of `route`, whether or not the route has it as a backend.
pub(crate) fn peer_target(
    model: &Model,
    route: &Document<MeshRoute>,
    port: &Port,
    peer: &Document<MeshPeer>,
    ids: Option<&[Text<IdPattern>]>,
) -> Target {
    Target {
        names: vec![peer.name.clone()],
        cluster: peer.spec.cluster.0.0.clone(),
        locality: peer.spec.locality.0.clone(),
        peer: Some(peer.name.clone()),
        endpoints: peer
            .spec
            .gateways
            .iter()
            .map(|gateway| (address(&gateway.0, 0), 1))
            .collect(),
        tls: peer_tls(model, route, port, peer, ids),
        version: VersionMeta::Same,
        proxy_protocol: false,
        capacity: None,
    }
}

fn peer_tls(
    model: &Model,
    route: &Document<MeshRoute>,
    port: &Port,
    peer: &Document<MeshPeer>,
    ids: Option<&[Text<IdPattern>]>,
) -> EndpointTls {
    match route.inbound() {
        InboundSpec::Passthrough => EndpointTls::Workload,
        InboundSpec::Terminate => EndpointTls::Mesh {
            sni: sni(model, route, port).into(),
            expected: patterns(ids.unwrap_or(&peer.spec.spiffe_ids)),
        },
    }
}

fn own(
    model: &Model,
    route: &Document<MeshRoute>,
    port: &Port,
    backend: &BackendSpec,
    name: String,
    node: &Node,
) -> Target {
    Target {
        names: vec![name],
        cluster: node.cluster.to_string(),
        locality: backend
            .locality
            .as_ref()
            .map_or_else(|| node.locality.clone(), |locality| locality.0.clone()),
        peer: None,
        endpoints: own_endpoints(backend, port.target_port),
        tls: match backend.tls.unwrap_or(TlsSpec::None) {
            TlsSpec::None => EndpointTls::None,
            TlsSpec::Workload => EndpointTls::Workload,
            TlsSpec::Mesh => EndpointTls::Mesh {
                sni: sni(model, route, port).into(),
                expected: patterns(backend.spiffe_ids.as_deref().unwrap_or_default()),
            },
        },
        version: match backend.version.unwrap_or(VersionSpec::Same) {
            VersionSpec::Same => VersionMeta::Same,
            VersionSpec::H1 => VersionMeta::H1,
            VersionSpec::H2 => VersionMeta::H2,
        },
        proxy_protocol: backend.proxy_protocol.unwrap_or(false),
        capacity: capacity(backend),
    }
}

fn capacity(backend: &BackendSpec) -> Option<Rate> {
    backend.capacity.as_ref().map(|rate| rate.0)
}

/// What two backends take that are reached as one.
fn both(one: Option<Rate>, other: Option<Rate>) -> Option<Rate> {
    Rate::per_second(one?.get().saturating_add(other?.get()))
}

/// Where a backend of this cluster answers, with its weights.
fn own_endpoints(backend: &BackendSpec, target_port: u16) -> Vec<(Address, u32)> {
    if let Some(Text(name)) = &backend.dns {
        return match address(name, target_port) {
            Address::Name(host, port) => vec![(Address::Each(host, port), 1)],
            address @ (Address::Socket(_) | Address::Each(..)) => vec![(address, 1)],
        };
    }
    let endpoints = backend.endpoints.iter().flatten();
    endpoints
        .map(|endpoint| {
            (
                address(&endpoint.address, target_port),
                endpoint.weight.unwrap_or(1),
            )
        })
        .collect()
}

fn patterns(ids: &[Text<IdPattern>]) -> Vec<IdPattern> {
    ids.iter().map(|id| id.0.clone()).collect()
}

pub(crate) fn address(target: &Written, port_default: u16) -> Address {
    let port = target.port.unwrap_or(port_default);
    match &target.host {
        TargetHost::Ip(ip) => Address::Socket(SocketAddr::new(*ip, port)),
        TargetHost::Name(name) => Address::Name(name.clone(), port),
    }
}

/// The SNI that says this port of this route: the host where that alone is clear, else Istio's form.
pub(crate) fn sni(model: &Model, route: &Document<MeshRoute>, port: &Port) -> String {
    let Some(host) = route.first_host() else {
        return String::new();
    };
    SniTarget {
        port: (!model.is_bare_host_enough(route)).then_some(port.port),
        host,
    }
    .to_string()
}
