//! A route as a whole: hosts, ports, what is done with TLS, export.

use std::collections::BTreeMap;

use super::{Checker, backends, gateways, http_rules, old_before_new, policy, rules};
use crate::error::{Code, Finding, Findings};
use crate::model::{
    BackendSpec, Document, InboundSpec, MeshGateway, MeshPeer, MeshRoute, Model, ProtocolSpec,
    RoleSpec, TlsSpec,
};

pub(super) fn check(model: &Model, route: &Document<MeshRoute>, findings: &mut Findings) {
    let mut check = Checker::new(route, findings);
    ports(&mut check);
    inbound(&mut check);
    http_rules::check(model, &mut check);
    check.beside(gateways(model), |check| {
        backends::check(model, check);
        policy::check(model, check);
    });
    export(model, &mut check);
    check.beside(gateways(model), |check| rules::check(model, check));
}

/// Two routes with the same host and port.
pub(super) fn hosts(model: &Model, findings: &mut Findings) {
    let mut seen = BTreeMap::new();
    for route in old_before_new(model.routes.iter().map(AsRef::as_ref)) {
        for (at, host) in route.hosts().into_iter().enumerate() {
            for port in route.ports() {
                let Some((first, first_at)) = seen.insert((host.clone(), port.port), (route, at))
                else {
                    continue;
                };
                // The same document or port twice is a finding of its own.
                let is_same = std::ptr::eq(first, route) && first_at == at;
                if is_same || (first.id() == route.id() && !std::ptr::eq(first, route)) {
                    continue;
                }
                let first_path = host_path(first, first_at);
                let finding = Finding::error(
                    Code::Duplicate,
                    format!(
                        "host `{host}` with port {} is of route `{}` already",
                        port.port,
                        first.id()
                    ),
                )
                .help(format!("the first is at {}", first.position(&first_path)))
                .at(route.at(&host_path(route, at)));
                findings.push(finding).also([first.nth()]);
            }
        }
    }
}

fn host_path(route: &Document<MeshRoute>, at: usize) -> String {
    if route.spec.hosts.is_some() {
        format!("spec.hosts[{at}]")
    } else {
        "metadata.name".to_owned()
    }
}

fn ports(check: &mut Checker<'_, MeshRoute>) {
    let route = check.document;
    let spec = &route.spec;
    if route.hosts().is_empty() {
        check.key(
            Code::MissingField,
            "spec.hosts",
            "the route has no host".to_owned(),
            "write one; a name that is no host name gives no default",
        );
    }
    if spec.ports.is_some() && spec.port.is_some() {
        check.key(
            Code::Contradiction,
            "spec.port",
            "`port` and `ports` are both written".to_owned(),
            "keep one of them",
        );
    }
    if spec.port == Some(0) {
        check.range("spec.port", spec.port, 1..=u16::MAX);
    }
    let Some(ports) = &spec.ports else {
        if spec.port.is_none() && route.ports().iter().any(|port| port.port == 0) {
            check.key(
                Code::MissingField,
                "spec",
                "`port` is missing".to_owned(),
                "write the port that callers name; only http has a default, 80",
            );
        }
        return;
    };
    if ports.is_empty() {
        check.key(
            Code::MissingField,
            "spec.ports",
            "there are no ports".to_owned(),
            "write at least one, such as `web: {port: 80, protocol: http}`",
        );
    }
    let mut numbers = BTreeMap::new();
    let has_open_endpoint = spec
        .backends
        .iter()
        .flat_map(|backend| backend.endpoints.iter().flatten())
        .map(|endpoint| &endpoint.address)
        .chain(
            spec.backends
                .iter()
                .flat_map(|backend| &backend.dns)
                .map(|dns| &dns.0),
        )
        .any(|address| address.port.is_none());
    for (name, port) in ports {
        let path = format!("spec.ports.{name}");
        check.map_key(&path, name);
        check.range(&format!("{path}.port"), Some(port.port), 1..=u16::MAX);
        check.range(
            &format!("{path}.targetPort"),
            port.target_port,
            1..=u16::MAX,
        );
        if let Some(other) = numbers.insert(port.port, name) {
            check.value(
                Code::Duplicate,
                &format!("{path}.port"),
                format!("port {} is `{other}` already", port.port),
                "give each port a number of its own",
            );
        }
        if port.target_port.is_some() && !has_open_endpoint {
            check.no_effect(
                &format!("{path}.targetPort"),
                "every endpoint names its port",
                "leave the port out of the endpoints, or remove this",
            );
        }
    }
}

fn inbound(check: &mut Checker<'_, MeshRoute>) {
    let route = check.document;
    let spec = &route.spec;
    let at = if spec.inbound.is_some() {
        "spec.inbound"
    } else {
        "spec"
    };
    let is_http = route
        .ports()
        .iter()
        .any(|port| port.protocol == ProtocolSpec::Http);
    if route.inbound() == InboundSpec::Passthrough {
        if is_http {
            check.key(
                Code::Contradiction,
                at,
                "what is passed through cannot be read as http".to_owned(),
                "write `protocol: tcp`, or `inbound: terminate`",
            );
        }
        return;
    }
    for (at, backend) in spec.backends.iter().enumerate() {
        if backend.tls == Some(TlsSpec::Workload) {
            check.value(
                Code::Contradiction,
                &format!("spec.backends[{at}].tls"),
                "TLS that was terminated here cannot go on to an endpoint that speaks TLS itself"
                    .to_owned(),
                "write `inbound: passthrough` (tcp, all backends `tls: workload`), or `tls: mesh` here",
            );
        }
    }
}

fn export(model: &Model, check: &mut Checker<'_, MeshRoute>) {
    let route = check.document;
    let to = &route.spec.export.to;
    for (at, name) in to.iter().enumerate() {
        if name == "*" {
            continue;
        }
        let path = format!("spec.export.to[{at}]");
        let Some(peer) = model.peer(name) else {
            check.unknown(
                &path,
                format!("no MeshPeer `{name}`"),
                name,
                model.peers.iter().map(|peer| peer.name.as_str()),
            );
            continue;
        };
        if route.inbound() == InboundSpec::Passthrough && peer.spec.sources.is_empty() {
            check.beside([peer.nth()], |check| check.value(
                Code::Unsafe,
                &path,
                format!("nothing would tell peer `{name}` from others: who calls is inside the TLS that is passed through"),
                &format!("write `sources`, where its gateways call from, in MeshPeer `{name}`"),
            ));
        }
    }
    if to.is_empty() {
        return;
    }
    let is_peer_of = |gateway: &Document<MeshGateway>, peer: &Document<MeshPeer>| {
        peer.spec.cluster != gateway.spec.cluster
    };
    let has_peer = (model.peers.iter()).any(|peer| {
        model
            .gateways
            .iter()
            .any(|gateway| is_peer_of(gateway, peer))
    });
    if !has_peer && !model.gateways.is_empty() && to.iter().any(|to| to == "*") {
        let finding = Finding::error(
            Code::NoEffect,
            "`export` has no effect: there is no MeshPeer to export to",
        )
        .warning()
        .help("write a MeshPeer for each cluster that may call")
        .at(route.at_key("spec.export"));
        check.push(finding);
    }
    let is_own = |backend: &BackendSpec| {
        backend.peer.is_none()
            && (model.gateways.iter()).any(|gateway| {
                (backend.cluster.as_ref()).is_none_or(|cluster| *cluster == gateway.spec.cluster)
            })
    };
    if !model.gateways.is_empty() && !route.spec.backends.iter().any(is_own) {
        // A warning: one text of a route may be kept in every cluster, also where it has no backends.
        let finding = Finding::error(
            Code::NoEffect,
            "`export` has no effect: peers reach own backends alone, and the route has none",
        )
        .warning()
        .help("add a backend with `endpoints`, or remove this: peers are told `no-local-endpoint`")
        .at(route.at_key("spec.export"));
        check.push(finding);
    }
    let has_mesh = model
        .gateways
        .iter()
        .flat_map(|gateway| gateway.spec.listeners.values())
        .any(|listener| listener.role == RoleSpec::Mesh);
    if !has_mesh && !model.gateways.is_empty() {
        check.beside(gateways(model), |check| {
            check.no_effect(
                "spec.export",
                "no gateway here has a mesh listener",
                "add a listener with `role: mesh`, or remove this",
            );
        });
    }
}
