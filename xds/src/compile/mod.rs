//! A model for one gateway, as standard xDS v3 resources.

mod clusters;
pub(crate) mod levels;
mod listeners;
pub(crate) mod rbac;
pub(crate) mod target;

use std::collections::BTreeMap;

use zeugma_core::snapshot::Node;

pub(crate) use self::clusters::{HTTP_OPTIONS, SOCKET, start_of};
pub(crate) use self::listeners::{ALLOW, DENY};
use self::target::Target;
use crate::error::{Code, Finding, Findings};
use crate::model::scalar::Text;
use crate::model::{Document, ExportSpec, InboundSpec, MeshGateway, MeshRoute, Model, Port};
use crate::pb::{self, Any, cluster, listener, route};

/// Packed xDS resources with their names, in the order they depend on each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resources {
    pub clusters: Vec<(String, Any)>,
    pub routes: Vec<(String, Any)>,
    pub listeners: Vec<(String, Any)>,
}

impl Resources {
    /// Names and sizes by type, for people.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        let list = |resources: &[(String, Any)]| -> serde_json::Value {
            resources
                .iter()
                .map(|(name, any)| {
                    serde_json::json!({
                        "name": name,
                        "type": any.type_url,
                        "bytes": any.value.len(),
                    })
                })
                .collect()
        };
        serde_json::json!({
            "clusters": list(&self.clusters),
            "routes": list(&self.routes),
            "listeners": list(&self.listeners),
        })
    }
}

/// One port of one route on this gateway.
#[derive(Debug)]
pub(crate) struct Service<'m> {
    /// `namespace/name:port`.
    pub id: String,
    pub route: &'m Document<MeshRoute>,
    pub port: Port,
    pub inbound: InboundSpec,
    pub targets: Vec<Target>,
    /// Whether a bare host names it.
    pub is_bare: bool,
    /// Whether this cluster has backends of its own.
    pub has_own: bool,
    pub export: Export,
}

/// Which peers see a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Export {
    Nobody,
    To(Vec<String>),
    AllPeers,
}

/// Whose traffic a cluster carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    /// Workloads': to every backend.
    Outbound,
    /// Other clusters': to own backends alone.
    Own,
}

impl Scope {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Own => "own",
        }
    }
}

/// The name of a service's cluster.
pub(crate) fn cluster_name(scope: Scope, service: &str) -> String {
    format!("{}|{service}", scope.as_str())
}

/// What every part of the compilation reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'m> {
    pub model: &'m Model,
    pub gateway: &'m Document<MeshGateway>,
    pub node: &'m Node,
}

/// Compiles a model that [`check`](crate::model::check) found no error in.
pub(crate) fn compile(context: Context<'_>, findings: &mut Findings) -> Resources {
    let services = services(context, findings);
    let mut resources = Resources::default();
    for peer in context.model.other_peers(&context.node.cluster) {
        let peer: cluster::Cluster = clusters::peer(peer);
        resources
            .clusters
            .push((peer.name.clone(), pb::pack(&peer)));
    }
    let mut mirrors = BTreeMap::new();
    for service in &services {
        let outbound = clusters::service(context, service, Scope::Outbound);
        let own = service
            .has_own
            .then(|| clusters::service(context, service, Scope::Own));
        for cluster in std::iter::once(outbound).chain(own) {
            resources
                .clusters
                .push((cluster.name.clone(), pb::pack(&cluster)));
        }
        for cluster in clusters::mirrors(context, service, &services) {
            mirrors.insert(cluster.name.clone(), cluster);
        }
    }
    for (name, cluster) in mirrors {
        resources.clusters.push((name, pb::pack(&cluster)));
    }
    let routes: Vec<route::RouteConfiguration> = listeners::routes(context, &services);
    for config in routes {
        resources
            .routes
            .push((config.name.clone(), pb::pack(&config)));
    }
    for name in context.gateway.listeners_as_written() {
        let built: Option<listener::Listener> = listeners::listener(context, &services, name);
        if let Some(built) = built {
            resources
                .listeners
                .push((built.name.clone(), pb::pack(&built)));
        }
    }
    resources
}

fn services<'m>(context: Context<'m>, findings: &mut Findings) -> Vec<Service<'m>> {
    let mut services = Vec::new();
    for route in &context.model.routes {
        for port in route.ports() {
            let targets = target::targets(context.model, route, &port, context.node);
            let levels = levels::levels(
                &targets,
                &context.node.locality,
                &route.spec.locality,
                &route.spec.failover,
            );
            for (at, target) in targets.iter().enumerate() {
                if !levels.iter().flatten().any(|used| *used == at) {
                    findings.push(unused(route, target, context.node));
                }
            }
            let used: Vec<Target> = targets
                .into_iter()
                .enumerate()
                .filter(|(at, _)| levels.iter().flatten().any(|used| used == at))
                .map(|(_, target)| target)
                .collect();
            if used.is_empty() {
                findings.push(nothing(route, context.node));
                continue;
            }
            services.push(Service {
                id: format!("{}:{}", route.id(), port.port),
                route,
                inbound: route.inbound(),
                is_bare: context.model.is_bare_host_enough(route),
                has_own: used.iter().any(|target| target.peer.is_none()),
                targets: used,
                export: export(context, &route.spec.export),
                port,
            });
        }
    }
    services
}

fn unused(route: &Document<MeshRoute>, target: &Target, node: &Node) -> Finding {
    let at = route
        .spec
        .backends
        .iter()
        .enumerate()
        .position(|(at, backend)| target.names.contains(&backend.display_name(at)))
        .unwrap_or_default();
    Finding::error(
        Code::Unused,
        format!(
            "backend `{}` is not used by gateway `{}`",
            target.name(),
            node.name
        ),
    )
    .warning()
    .help("it is neither in the nearest level nor named in `failover.order`, or it is in `failover.never`")
    .at(route.at(&format!("spec.backends[{at}]")))
}

fn nothing(route: &Document<MeshRoute>, node: &Node) -> Finding {
    Finding::error(
        Code::Unused,
        format!("gateway `{}` carries nothing for this route", node.name),
    )
    .warning()
    .help(format!(
        "none of its backends can be reached from cluster `{}`; it needs one of its own, or another cluster's and that cluster's MeshPeer",
        node.cluster
    ))
    .at(route.at_key("spec.backends"))
}

fn export(context: Context<'_>, spec: &ExportSpec) -> Export {
    if spec.to.iter().any(|to| to == "*") {
        return Export::AllPeers;
    }
    let peers: Vec<String> = context
        .model
        .other_peers(&context.node.cluster)
        .map(|peer| peer.name.clone())
        .filter(|name| spec.to.contains(name))
        .collect();
    if peers.is_empty() {
        Export::Nobody
    } else {
        Export::To(peers)
    }
}

impl<'m> Service<'m> {
    /// The hosts as written.
    pub(crate) fn hosts(&self) -> Vec<String> {
        self.route.hosts().iter().map(ToString::to_string).collect()
    }

    /// The exact hosts.
    pub(crate) fn exact_hosts(&self) -> impl Iterator<Item = String> {
        self.route
            .hosts()
            .into_iter()
            .filter_map(|host| match host {
                zeugma_core::names::HostPattern::Exact(host) => Some(host.to_string()),
                zeugma_core::names::HostPattern::Below(_) => None,
            })
    }

    /// The mirrors that exist on this gateway, with the service that receives the copies.
    pub(crate) fn mirrors<'s>(
        &self,
        context: Context<'_>,
        services: &'s [Self],
    ) -> Vec<(usize, &'s Self, Option<String>)> {
        let mut mirrors = Vec::new();
        for (at, mirror) in self.route.spec.mirror.iter().enumerate() {
            let id = mirror.route.0.id(&self.route.namespace);
            let same_port = services
                .iter()
                .find(|to| to.route.id() == id && to.port.port == self.port.port);
            let Some(to) = same_port.or_else(|| services.iter().find(|to| to.route.id() == id))
            else {
                continue;
            };
            let peer = mirror.peer.as_ref().map(|Text(peer)| peer.0.clone());
            let is_oneself = peer.as_deref().is_some_and(|name| {
                context
                    .model
                    .peer(name)
                    .is_none_or(|peer| *peer.spec.cluster.0.0 == *context.node.cluster)
            });
            if !is_oneself {
                mirrors.push((at, to, peer));
            }
        }
        mirrors
    }
}

/// The cluster that copies go to.
pub(crate) fn mirror_cluster_name(to: &Service<'_>, peer: Option<&str>) -> String {
    match peer {
        Some(peer) => format!("mirror|{}|{peer}", to.id),
        None => cluster_name(Scope::Outbound, &to.id),
    }
}
