//! A model for one gateway, as standard xDS v3 resources.

mod clusters;
mod http_rules;
pub(crate) mod levels;
mod listeners;
mod part;
pub(crate) mod rbac;
pub(crate) mod target;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use prost::Name as _;
use zeugma_core::snapshot::Node;

pub(crate) use self::clusters::{
    HTTP_OPTIONS, SOCKET, ads, by_place, cause, locality as locality_of, start_of,
};
pub(crate) use self::http_rules::{METHOD, matches_of};
pub(crate) use self::listeners::{ALLOW, DENY, HIDDEN, NOBODY, OF_PORT};
pub(crate) use self::part::Unmade;
use self::target::Target;
use crate::error::{Code, Finding, Findings};
use crate::meta::AnyClusterMeta;
use crate::model::scalar::Text;
use crate::model::{
    Document, ExportSpec, InboundSpec, MeshGateway, MeshRoute, Model, Port, ProtocolSpec,
};
use crate::parallel;
use crate::pb::{cluster, listener, route};
use crate::sum::Fnv;

/// The xDS resources a gateway was made from, by name and size: a line for each, for there are tens
/// of thousands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourceList {
    /// `<c, r or l> <bytes> <name>` each.
    pub(crate) lines: Arc<String>,
}

impl ResourceList {
    /// A line more: what kind of resource, what it takes packed, and its name.
    pub(crate) fn add(&mut self, kind: char, bytes: usize, name: &str) {
        use std::fmt::Write as _;

        // Writing into a String does not fail.
        let lines = Arc::make_mut(&mut self.lines);
        writeln!(lines, "{kind} {bytes} {name}").ok();
    }

    /// A resource that is listed takes as much from here on.
    pub(crate) fn change(&mut self, kind: char, bytes: usize, name: &str) {
        let is_it = |line: &&str| {
            let rest = line
                .strip_prefix(kind)
                .and_then(|rest| rest.strip_prefix(' '));
            rest.and_then(|rest| rest.split_once(' '))
                .is_some_and(|(_, of)| of == name)
        };
        let Some(line) = self.lines.lines().find(is_it) else {
            return;
        };
        let changed = format!("{kind} {bytes} {name}");
        if line != changed {
            let (from, to) = (format!("{line}\n"), format!("{changed}\n"));
            self.lines = Arc::new(self.lines.replacen(&from, &to, 1));
        }
    }

    /// Names and sizes by type, for people.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let list = |kind: &str, type_url: String| -> serde_json::Value {
            let of_kind = (self.lines.lines())
                .filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' ')?.split_once(' '));
            of_kind
                .map(|(bytes, name)| {
                    serde_json::json!({
                        "name": name,
                        "type": type_url,
                        "bytes": bytes.parse::<usize>().ok(),
                    })
                })
                .collect()
        };
        serde_json::json!({
            "clusters": list("c", cluster::Cluster::type_url()),
            "routes": list("r", route::RouteConfiguration::type_url()),
            "listeners": list("l", listener::Listener::type_url()),
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

/// Every service of this gateway.
#[derive(Debug, Default)]
pub(crate) struct Services<'m> {
    /// In the order of the routes, and of the ports in each.
    pub list: Vec<Service<'m>>,
    by_route: HashMap<String, Vec<usize>>,
}

impl<'m> Services<'m> {
    fn push(&mut self, service: Service<'m>) {
        let of_route = self.by_route.entry(service.route.id()).or_default();
        of_route.push(self.list.len());
        self.list.push(service);
    }

    /// Those of the route of this `namespace/name`.
    pub(crate) fn of_route(&self, id: &str) -> impl Iterator<Item = &Service<'m>> {
        let at = self.by_route.get(id).into_iter().flatten();
        at.filter_map(|at| self.list.get(*at))
    }
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
    [scope.as_str(), "|", service].concat()
}

/// What every part of the compilation reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'m> {
    pub model: &'m Model,
    pub gateway: &'m Document<MeshGateway>,
    pub node: &'m Node,
}

/// Services whose clusters are made before the next ones: enough for several threads, and a tenth of those
/// that a gateway is measured with.
const AT_A_TIME: usize = 1024;

/// A cluster, and its metadata apart: within one process nobody has to read it back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Made {
    pub cluster: cluster::Cluster,
    pub meta: AnyClusterMeta,
}

/// A model compiled for one gateway, whose resources are made one by one: of ten thousand routes
/// they take a hundred times what a snapshot of them does. What each is made into is said by who
/// asks, on the thread that made it.
#[derive(Debug)]
pub(crate) struct Compiled<'m> {
    context: Context<'m>,
    services: Services<'m>,
}

impl<'m> Compiled<'m> {
    /// Of a model that [`check`](crate::model::check) found no error in.
    pub(crate) fn new(context: Context<'m>, findings: &mut Findings) -> Self {
        let services = services(context, findings);
        Self { context, services }
    }

    /// The clusters of other clusters' gateways, which come before all others.
    pub(crate) fn peers(&self) -> Vec<Made> {
        let context = self.context;
        (context.model.other_peers(&context.node.cluster))
            .map(clusters::peer)
            .collect()
    }

    /// The clusters of services, [`AT_A_TIME`]: what they are made of need not be in memory of all of them.
    pub(crate) fn clusters<R: Send>(
        &self,
        of: impl Fn(Made) -> R + Sync,
        mut to: impl FnMut(Vec<R>),
    ) {
        for services in self.services.list.chunks(AT_A_TIME) {
            let made = self.clusters_of(services, |unmade| unmade.make().map(|made| made.map(&of)));
            to(made.into_iter().flatten().flatten().collect());
        }
    }

    /// What `of` makes of the clusters of each service: to workloads, and to other clusters where it has
    /// backends of its own.
    pub(crate) fn clusters_by<R: Send>(
        &self,
        of: impl Fn(Unmade<'_, [Option<Made>; 2]>) -> R + Sync,
    ) -> Vec<R> {
        self.clusters_of(&self.services.list, of)
    }

    fn clusters_of<R: Send>(
        &self,
        services: &[Service<'_>],
        of: impl Fn(Unmade<'_, [Option<Made>; 2]>) -> R + Sync,
    ) -> Vec<R> {
        let each = |service: &Service<'_>| {
            let made = |scope| clusters::service(self.context, service, scope);
            let input = || {
                let mut fnv = Fnv::default();
                part::add(&self.services, service, &mut fnv);
                fnv.end()
            };
            let make = || {
                let own = service.has_own.then(|| made(Scope::Own));
                [Some(made(Scope::Outbound)), own]
            };
            of(Unmade::new("", &input, &make))
        };
        parallel::map(services.iter().collect(), each)
    }

    /// The clusters of mirrors and of splits alone.
    pub(crate) fn others(&self) -> Vec<Made> {
        let mut others = BTreeMap::new();
        for service in &self.services.list {
            let mirrors = clusters::mirrors(self.context, service, &self.services);
            let splits = clusters::splits(self.context, service, &self.services);
            for made in mirrors.into_iter().chain(splits) {
                others.insert(made.cluster.name.clone(), made);
            }
        }
        others.into_values().collect()
    }

    /// The names of route configurations, with what each of its virtual hosts was made into.
    pub(crate) fn routes<R: Send>(
        &self,
        of: impl Fn(route::VirtualHost) -> R + Sync,
    ) -> Vec<(String, Vec<R>)> {
        self.routes_by(|unmade| of(unmade.make()))
    }

    /// The same of virtual hosts that are made by who asks.
    pub(crate) fn routes_by<R: Send>(
        &self,
        of: impl Fn(Unmade<'_, route::VirtualHost>) -> R + Sync,
    ) -> Vec<(String, Vec<R>)> {
        listeners::routes(self.context, &self.services, of)
    }

    /// What workloads that balance by themselves call services by.
    pub(crate) fn on_demand(&self) -> Vec<(Vec<String>, route::VirtualHost)> {
        listeners::on_demand(self.context, &self.services)
    }

    /// Listeners, with what each of their filter chains was made into.
    pub(crate) fn listeners<R: Send>(
        &self,
        findings: &mut Findings,
        of: impl Fn(listener::FilterChain) -> R + Sync,
    ) -> Vec<(listener::Listener, Vec<R>)> {
        self.listeners_by(findings, |unmade| of(unmade.make()))
    }

    /// The same of chains that are made by who asks.
    pub(crate) fn listeners_by<R: Send>(
        &self,
        findings: &mut Findings,
        of: impl Fn(Unmade<'_, listener::FilterChain>) -> R + Sync,
    ) -> Vec<(listener::Listener, Vec<R>)> {
        let mut all = Vec::new();
        for name in self.context.gateway.listeners_as_written() {
            match listeners::listener(self.context, &self.services, name, &of) {
                Some(built) => all.push(built),
                None => drop(findings.push(not_bound(self.context.gateway, name))),
            }
        }
        all
    }
}

fn services<'m>(context: Context<'m>, findings: &mut Findings) -> Services<'m> {
    let mut services = Services::default();
    let is_http = |port: &Port| port.protocol == ProtocolSpec::Http;
    for route in &context.model.routes {
        let ports = route.ports();
        let first_http = ports.iter().position(is_http);
        for (nth, port) in ports.into_iter().enumerate() {
            let targets = target::targets(context.model, route, &port, context.node);
            let levels = levels::levels(
                &targets.iter().collect::<Vec<_>>(),
                &context.node.locality,
                &route.spec.locality,
                &route.spec.failover,
            );
            if first_http == Some(nth) {
                for finding in http_rules::indistinct(route, &targets, context.node) {
                    findings.push(finding);
                }
            }
            let has_targets = !targets.is_empty();
            // Where nothing at all is left, one finding says why.
            let reported = if levels.is_empty() { 0 } else { targets.len() };
            for (at, target) in targets.iter().enumerate().take(reported) {
                let is_used = levels.iter().flatten().any(|used| *used == at);
                // What `never` names was written twice on purpose.
                if !is_used && !levels::is_never_used(&route.spec.failover, target) {
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
                findings.push(nothing(route, context.node, has_targets));
                continue;
            }
            services.push(Service {
                id: service_id(route, &port),
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
    .help("it is neither in the nearest level nor named in `failover.order`")
    .at(route.at(&format!("spec.backends[{at}]")))
}

/// A one-route listener without its route.
fn not_bound(gateway: &Document<MeshGateway>, name: &str) -> Finding {
    Finding::error(
        Code::Unused,
        format!("listener `{name}` is not opened: this gateway carries nothing for its route"),
    )
    .warning()
    .help("see what is said of that route, or remove the listener")
    .at(gateway.at(&format!("spec.listeners.{name}.route")))
}

/// `namespace/name:port`.
fn service_id(route: &Document<MeshRoute>, port: &Port) -> String {
    let mut number = itoa::Buffer::new();
    [&route.id(), ":", number.format(port.port)].concat()
}

fn nothing(route: &Document<MeshRoute>, node: &Node, has_targets: bool) -> Finding {
    let finding = Finding::error(
        Code::Unused,
        format!("gateway `{}` carries nothing for this route", node.name),
    )
    .warning();
    if has_targets {
        let (field, help) = if route.spec.failover.never.is_empty() {
            (
                "order",
                "`failover.order` names none of its backends; name one",
            )
        } else {
            (
                "never",
                "`failover.never` leaves none of its backends; remove an entry there",
            )
        };
        return finding
            .help(help)
            .at(route.at_key(&format!("spec.failover.{field}")));
    }
    finding.help(format!(
        "none of its backends can be reached from cluster `{}`; it needs one of its own, or another cluster's and that cluster's MeshPeer",
        node.cluster
    ))
    .at(route.at_key("spec.backends"))
}

/// Whom a route is exported to.
pub(crate) fn export(context: Context<'_>, spec: &ExportSpec) -> Export {
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

    /// How many addresses a cluster of it has, at least one.
    pub(crate) fn endpoints(&self, scope: Scope) -> u32 {
        let targets = self.targets.iter();
        let count = targets
            .filter(|target| scope == Scope::Outbound || target.peer.is_none())
            .map(|target| target.endpoints.len())
            .sum::<usize>();
        u32::try_from(count).unwrap_or(u32::MAX).max(1)
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
        services: &'s Services<'_>,
    ) -> Vec<(usize, &'s Service<'s>, Option<String>)> {
        let is_plain = |service: &Service<'_>| {
            service.port.protocol == ProtocolSpec::Http || service.inbound == InboundSpec::Terminate
        };
        let mut mirrors = Vec::new();
        for (at, mirror) in self.route.spec.mirror.iter().enumerate() {
            let mirror = &mirror.value;
            let id = mirror.route.0.id(&self.route.namespace);
            // What a route inherits need not suit it, or each of its ports.
            let suits = |to: &&Service<'_>| {
                to.port.protocol == self.port.protocol && is_plain(self) && is_plain(to)
            };
            let same_port =
                (services.of_route(&id).filter(suits)).find(|to| to.port.port == self.port.port);
            let Some(to) = same_port.or_else(|| services.of_route(&id).find(suits)) else {
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::NodeOptions;
    use crate::model::Model;
    use crate::packed::{Resources, compile};
    use crate::pb::{self, Any, core, hcm, tcp_proxy, tls};

    const MESH: &str = r#"
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    mesh: { address: "0.0.0.0:15443", role: mesh, sources: ["192.0.2.0/24"], proxyProtocol: { trusted: ["10.0.0.0/8"] } }
    apps: { address: "127.0.0.1:15001", role: workloads }
    pg: { address: "127.0.0.1:15432", role: workloads, route: shop/pg }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: west }
spec:
  cluster: west
  locality: us/us-1
  gateways: ["192.0.2.7:15443", "192.0.2.8:15443"]
  spiffeIDs: ["spiffe://west.example/zeugma/gateway"]
  sources: ["192.0.2.0/24"]
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: orders, namespace: shop }
spec:
  protocol: http
  hosts: [orders.example, "*.orders.example"]
  backends:
    - { name: a, locality: eu/eu-1, endpoints: [{ address: "10.0.1.10:80", weight: 3 }] }
    - { name: b, locality: eu/eu-2, endpoints: ["10.0.2.10:80"] }
    - { peer: west }
  allow:
    - { listeners: [apps] }
    - { from: ["spiffe://west.example/ns/shop/*"], methods: [GET] }
  export: { to: [west] }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: multi, namespace: shop }
spec:
  ports: { web: { port: 80, protocol: http }, raw: { port: 9000 } }
  backends: [{ endpoints: [10.0.3.1] }]
  allow: [{ listeners: [apps, mesh] }]
  export: { to: [west] }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: secure, namespace: shop }
spec:
  port: 443
  backends: [{ endpoints: ["10.0.4.1:8443"], tls: workload }]
  allow: [{ sources: ["10.0.0.0/8"] }]
  export: { to: [west] }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: pg, namespace: shop }
spec: { port: 5432, backends: [{ endpoints: ["10.0.5.1:5432"] }], allow: [{ listeners: [pg] }] }
"#;

    /// What broke: a start took half as long again.
    #[test]
    fn where_things_are_written_is_not_read_of_routes_that_are_right() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
        let sources = crate::Sources::read(folder.path()).unwrap();
        let (model, _) = crate::understand(sources.contents.documents);
        let gateway = model.gateways.first().unwrap();
        let made = crate::load_one(&model, gateway, &NodeOptions::default(), Findings::new());
        assert!(made.is_ok());
        for route in &model.routes {
            assert!(!route.is_looked_into(), "{}", route.id());
        }
    }

    fn resources() -> Resources {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        std::fs::write(&path, MESH).unwrap();
        compiled(&path)
    }

    fn compiled(path: &Path) -> Resources {
        with_context(path, compile)
    }

    fn with_context<R>(path: &Path, of: impl FnOnce(Context<'_>, &mut Findings) -> R) -> R {
        let sources = crate::files::read(path, crate::files::LIMITS)
            .unwrap()
            .documents;
        let (model, mut findings) = Model::read(sources);
        findings.extend(crate::model::check::check(&model));
        assert!(findings.is_empty(), "{findings}");
        let gateway = &model.gateways[0];
        let node = gateway.node(gateway.spec.locality.clone().unwrap().0);
        let context = Context {
            model: &model,
            gateway,
            node: &node,
        };
        let made = of(context, &mut findings);
        assert!(findings.is_empty(), "{findings}");
        made
    }

    /// `mirror`, a bare http host of several ports, health checks, DNS, a wildcard: what makes other
    /// resources than [`MESH`] has.
    const MORE: &str = r#"
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: north }
spec:
  cluster: north
  locality: eu/eu-3
  gateways: ["gw.north.example:15443"]
  spiffeIDs: ["spiffe://north.example/zeugma/gateway"]
  sources: ["198.51.100.0/24"]
  attests: [north.example]
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: more, namespace: shop }
spec:
  ports: { web: { port: 80, protocol: http }, admin: { port: 81, protocol: http }, raw: { port: 82 } }
  backends:
    - { endpoints: [more.internal, { address: 10.0.9.1, weight: 7 }], tls: mesh, spiffeIDs: ["spiffe://east.example/ns/shop/*"] }
    - { peer: west }
  health: { active: { http: /healthz, every: 2s }, passive: { errorRate: { over: 40% }, maxEjected: 50% } }
  failover: { start: 60%, full: 20%, hold: 3s, tooFew: fail }
  retries: { attempts: 3, on: [connect, 503], budget: 10% }
  limits: { connections: 10, requests: 20 }
  mirror: [{ route: orders, percent: 12.5% }, { route: orders, peer: west, bodyLimit: 1KiB }]
  rules:
    - { name: rest }
    - matches: [{ path: { prefix: /v1 }, method: GET, headers: { X-Beta: "1" } }, { query: { q: "a b" } }]
      split: [{ backends: [backend-1], weight: 9 }, { route: orders }, { backends: [west] }]
      timeouts: { responseHeaders: 3s, perTry: none }
      retries: { attempts: 1, on: [503, internal], any: true }
      headers: { request: { set: { X-Mesh: east }, add: { x-a: "" }, remove: [X-Debug] }, response: { add: { x-b: b } } }
    - { matches: [{ grpc: { service: a.B, method: C } }], split: [{ backends: [west] }], timeouts: { perTry: 1s } }
  allow:
    - { from: ["spiffe://east.example/ns/shop/sa/cart", "spiffe://west.example/*"], methods: [GET, POST], paths: [/a, "/b/*"] }
    - { from: ["spiffe://north.example/*"], via: [north] }
  deny: [{ sources: ["10.0.0.0/8"], listeners: [apps] }]
  export: { to: ["*"] }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: bytes, namespace: shop }
spec:
  port: 90
  backends: [{ endpoints: ["10.0.9.2:90"] }]
  mirror: [{ route: more, percent: 40%, inFlight: 3 }, { route: more, peer: west }]
  allow: [{ listeners: [apps, mesh] }]
  export: { to: ["*"] }
"#;

    #[test]
    fn what_is_handed_over_is_what_the_bytes_of_the_resources_say() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        std::fs::write(&path, format!("{MESH}{MORE}")).unwrap();
        let (packed, read) = with_context(&path, |context, findings| {
            let packed = compile(context, findings);
            let read = crate::packed::ingest(&packed, context.node.clone()).unwrap();
            (packed, read)
        });
        let (snapshot, list) = with_context(&path, |context, findings| {
            crate::handover::snapshot(context, context.node.clone(), findings)
        });
        let snapshot = snapshot.unwrap();
        assert_eq!(snapshot, read);
        let mirrors = snapshot
            .services
            .iter()
            .filter(|service| service.mirrors.len() == 2);
        // The two http ports of one route, and the tcp port of another.
        assert_eq!(mirrors.count(), 3);
        let rules = snapshot
            .services
            .iter()
            .filter_map(|service| service.rules.as_ref());
        // Of two ports that are http.
        assert_eq!(
            rules.map(|rules| rules.matches.len()).collect::<Vec<_>>(),
            [4, 4]
        );
        let mut expected = ResourceList::default();
        for (kind, resources) in [
            ('c', &packed.clusters),
            ('r', &packed.routes),
            ('l', &packed.listeners),
        ] {
            for (name, any) in resources {
                expected.add(kind, any.value.len(), name);
            }
        }
        assert_eq!(list, expected);
    }

    #[test]
    fn more_services_than_are_made_at_a_time_are_all_made_in_their_order() {
        use std::fmt::Write as _;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        let mut text = MESH.to_owned();
        let names: Vec<_> = (0..AT_A_TIME + 9).map(|n| format!("n{n:04}")).collect();
        for name in &names {
            write!(
                text,
                "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: {name}, namespace: many }}
spec:
  port: 80
  backends: [{{ endpoints: ['10.9.0.1:80'] }}]
  allow: [{{ listeners: [apps] }}]
"
            )
            .unwrap();
        }
        std::fs::write(&path, text).unwrap();
        let (read, snapshot) = with_context(&path, |context, findings| {
            let packed = compile(context, findings);
            let node = || context.node.clone();
            let read = crate::packed::ingest(&packed, node()).unwrap();
            let (snapshot, _) = crate::handover::snapshot(context, node(), findings);
            (read, snapshot.unwrap())
        });
        assert_eq!(snapshot, read);
        let many = (snapshot.services.iter()).filter(|service| service.name.starts_with("many/"));
        let many: Vec<_> = many.collect();
        let found = many.iter().map(|service| &service.name["many/".len()..]);
        assert!(found.eq(names.iter().map(String::as_str)));
        for service in many {
            let outbound = &snapshot.clusters[service.outbound.0];
            assert_eq!(outbound.route, service.name);
        }
    }

    fn listeners() -> Vec<listener::Listener> {
        resources()
            .listeners
            .iter()
            .map(|(_, any)| pb::unpack(any).unwrap())
            .collect()
    }

    fn chain<'l>(listener: &'l listener::Listener, name: &str) -> &'l listener::FilterChain {
        listener
            .filter_chains
            .iter()
            .find(|chain| chain.name == name)
            .unwrap()
    }

    fn server_names(listener: &listener::Listener, chain_name: &str) -> Vec<String> {
        let matched = chain(listener, chain_name).filter_chain_match.as_ref();
        matched.unwrap().server_names.clone()
    }

    fn typed(filter: &listener::Filter) -> &Any {
        let Some(listener::filter::ConfigType::TypedConfig(any)) = &filter.config_type else {
            panic!("{filter:?}");
        };
        any
    }

    #[test]
    fn a_chain_takes_the_host_and_the_form_that_names_the_port() {
        let listeners = listeners();
        for listener in &listeners[..2] {
            assert_eq!(
                server_names(listener, "shop/orders:80"),
                [
                    "orders.example",
                    "*.orders.example",
                    "outbound_.80_._.orders.example"
                ]
            );
            // A bare host of several ports leads to http, where the authority names the port.
            assert_eq!(
                server_names(listener, "shop/multi:9000"),
                ["outbound_.9000_._.multi.shop.svc.clusterset.local"]
            );
            assert_eq!(
                server_names(listener, "shop/multi"),
                ["multi.shop.svc.clusterset.local"]
            );
        }
        assert!(server_names(&listeners[2], "shop/pg:5432").is_empty());
        assert!(listeners[2].listener_filters.is_empty(), "it never waits");
    }

    // sni-filter-chain-invalid-04: Envoy refuses two chains with one match.
    #[test]
    fn no_two_chains_of_a_listener_match_the_same() {
        for listener in listeners() {
            let mut seen = BTreeSet::new();
            for chain in &listener.filter_chains {
                let matched = chain.filter_chain_match.as_ref().unwrap();
                assert!(!chain.filters.is_empty());
                for name in &matched.server_names {
                    assert!(seen.insert(name.clone()), "{name} twice");
                    assert!(!name.contains('*') || name.starts_with("*."), "{name}");
                }
            }
        }
    }

    #[test]
    fn sources_of_a_listener_are_on_each_of_its_chains() {
        for chain in &listeners()[0].filter_chains {
            let ranges = &chain
                .filter_chain_match
                .as_ref()
                .unwrap()
                .source_prefix_ranges;
            assert_eq!(ranges.len(), 1);
            assert_eq!(ranges[0].address_prefix, "192.0.2.0");
        }
    }

    #[test]
    fn a_proxy_header_is_read_before_anything_else_and_from_load_balancers_alone() {
        let listeners = listeners();
        let filters = |listener: &listener::Listener| -> Vec<String> {
            let filters = listener.listener_filters.iter();
            filters.map(|filter| filter.name.clone()).collect()
        };
        let (header, inspector) = (
            "envoy.filters.listener.proxy_protocol",
            "envoy.filters.listener.tls_inspector",
        );
        assert_eq!(filters(&listeners[0]), [header, inspector]);
        assert_eq!(filters(&listeners[1]), [inspector]);
        for chain in &listeners[0].filter_chains {
            let matched = chain.filter_chain_match.as_ref().unwrap();
            let ranges = &matched.direct_source_prefix_ranges;
            assert_eq!(ranges.len(), 1);
            assert_eq!(ranges[0].address_prefix, "10.0.0.0");
        }
    }

    #[test]
    fn tls_is_ended_only_where_inbound_says_so_and_never_resumed() {
        let listeners = listeners();
        for listener in &listeners[..2] {
            assert_eq!(chain(listener, "shop/secure:443").transport_socket, None);
            let socket = chain(listener, "shop/orders:80").transport_socket.clone();
            let Some(core::transport_socket::ConfigType::TypedConfig(any)) =
                socket.unwrap().config_type
            else {
                panic!("no configuration");
            };
            let context: tls::DownstreamTlsContext = pb::unpack(&any).unwrap();
            assert!(context.require_client_certificate.unwrap().value);
            assert!(context.disable_stateful_session_resumption);
            let parameters = context.common_tls_context.unwrap().tls_params.unwrap();
            assert_eq!(
                parameters.tls_minimum_protocol_version(),
                tls::tls_parameters::TlsProtocol::TlSv13
            );
        }
    }

    #[test]
    fn a_mesh_listener_leads_to_own_backends_alone() {
        let listeners = listeners();
        for (listener, expected) in [(&listeners[0], "own|"), (&listeners[1], "outbound|")] {
            let last = chain(listener, "shop/secure:443").filters.last().unwrap();
            let proxy: tcp_proxy::TcpProxy = pb::unpack(typed(last)).unwrap();
            assert_eq!(
                proxy.cluster_specifier,
                Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(format!(
                    "{expected}shop/secure:443"
                )))
            );
            let last = chain(listener, "shop/orders:80").filters.last().unwrap();
            let manager: hcm::HttpConnectionManager = pb::unpack(typed(last)).unwrap();
            let Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) =
                manager.route_specifier
            else {
                panic!("no routes");
            };
            let resources = resources();
            let (_, any) = resources
                .routes
                .iter()
                .find(|(name, _)| *name == rds.route_config_name)
                .unwrap();
            let config: route::RouteConfiguration = pb::unpack(any).unwrap();
            let Some(route::route::Action::Route(action)) =
                &config.virtual_hosts[0].routes[0].action
            else {
                panic!("no action");
            };
            assert_eq!(
                action.cluster_specifier,
                Some(route::route_action::ClusterSpecifier::Cluster(format!(
                    "{expected}shop/orders:80"
                )))
            );
        }
    }

    #[test]
    fn levels_are_priorities_and_weights_keep_their_proportions() {
        let resources = resources();
        let (_, any) = resources
            .clusters
            .iter()
            .find(|(name, _)| name == "outbound|shop/orders:80")
            .unwrap();
        let cluster: cluster::Cluster = pb::unpack(any).unwrap();
        let assignment = cluster.load_assignment.unwrap();
        let seen: Vec<(String, u32, Vec<u32>)> = assignment
            .endpoints
            .iter()
            .map(|group| {
                let weights = group
                    .lb_endpoints
                    .iter()
                    .map(|lb| lb.load_balancing_weight.unwrap().value);
                let locality = group.locality.as_ref().unwrap();
                (locality.zone.clone(), group.priority, weights.collect())
            })
            .collect();
        // In halves, since the peer's two gateways weigh 1 together.
        assert_eq!(
            seen,
            [
                ("eu-1".to_owned(), 0, vec![6]),
                ("eu-2".to_owned(), 1, vec![2]),
                ("us-1".to_owned(), 2, vec![1, 1]),
            ]
        );
        // `start: 70%`: all is kept from 70 % healthy on, 100 / 0.7.
        assert_eq!(
            assignment
                .policy
                .unwrap()
                .overprovisioning_factor
                .unwrap()
                .value,
            143
        );
    }

    #[test]
    fn a_rule_stands_on_its_listeners_alone_and_says_where_it_was_written() {
        let resources = resources();
        let names = |config: &str| -> BTreeSet<String> {
            let (_, any) = resources
                .routes
                .iter()
                .find(|(name, _)| name == config)
                .unwrap();
            let config: route::RouteConfiguration = pb::unpack(any).unwrap();
            let any = &config.virtual_hosts[0].typed_per_filter_config[ALLOW];
            let rbac: pb::http_rbac::RbacPerRoute = pb::unpack(any).unwrap();
            let rules = rbac.rbac.unwrap().rules.unwrap();
            rules
                .policies
                .keys()
                .map(|name| name.rsplit('/').next().unwrap().to_owned())
                .collect()
        };
        let first = "mesh.yaml:36".to_owned();
        let second = "mesh.yaml:37".to_owned();
        assert_eq!(
            names("apps|shop/orders:80"),
            BTreeSet::from([first, second.clone()])
        );
        assert_eq!(names("mesh|shop/orders:80"), BTreeSet::from([second]));
    }

    #[test]
    fn names_are_unique_and_every_cluster_that_is_named_exists() {
        let resources = resources();
        for list in [&resources.clusters, &resources.routes, &resources.listeners] {
            let names: BTreeSet<&str> = list.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names.len(), list.len());
        }
        assert_eq!(resources.clusters.len(), 1 + 5 * 2);
    }
}
