//! xDS resources to a [`Snapshot`]: decodes, resolves every reference, collects every error.

mod clusters;
mod fields;
mod foreign;
mod http_rules;
mod listeners;
mod packed;
mod rbac;
mod served;

use std::collections::BTreeMap;
use std::sync::Arc;

use zeugma_core::rules::Rules;
use zeugma_core::snapshot::{
    Cluster, ClusterIx, ClusterPolicy, Listener, Mirror, Node, Peer, PeerIx, Service, ServiceIx,
    Snapshot,
};

pub(crate) use self::listeners::{ReadChain, ReadHost};
pub(crate) use self::packed::{Packed, check, may_be_peer};
pub(crate) use self::served::{Changed, Served};
use crate::error::{Code, Finding, Findings};
use crate::meta::{AnyClusterMeta, ServiceMeta};
use crate::names::ByName;
use crate::pb::{cluster, listener};
use crate::session::Kind;
use crate::state::Versions;

/// How many of the clusters that were read last a policy is compared with.
const POLICIES_COMPARED: usize = 16;

/// Names of what was ingested so far.
#[derive(Debug, Default, Clone)]
pub(crate) struct Names {
    /// Every name is known: what is read is to be right by itself, and goes nowhere.
    is_any: bool,
    peers: ByName<PeerIx>,
    clusters: ByName<ClusterIx>,
    services: ByName<ServiceIx>,
}

impl Names {
    fn any() -> Self {
        Self {
            is_any: true,
            ..Self::default()
        }
    }

    fn peer(&self, name: &str) -> Result<PeerIx, String> {
        let known = self.peers.get(name).copied();
        (known.or_else(|| self.is_any.then_some(PeerIx(0))))
            .ok_or_else(|| format!("no peer `{name}`"))
    }

    fn cluster(&self, name: &str) -> Result<ClusterIx, String> {
        let known = self.clusters.get(name).copied();
        (known.or_else(|| self.is_any.then_some(ClusterIx(0))))
            .ok_or_else(|| format!("no cluster `{name}`"))
    }

    fn service(&self, id: &str) -> Result<ServiceIx, String> {
        let known = self.services.get(id).copied();
        (known.or_else(|| self.is_any.then_some(ServiceIx(0))))
            .ok_or_else(|| format!("no service `{id}`"))
    }
}

/// What several listeners say about one service, put together.
#[derive(Debug, Default)]
struct Gathered {
    rules: BTreeMap<ServiceIx, rbac::Numbered>,
    routed: BTreeMap<ServiceIx, (Vec<Mirror>, Option<Arc<Rules>>)>,
}

/// A cluster as it was read.
#[derive(Debug)]
pub(crate) struct ReadCluster {
    name: String,
    kind: ReadKind,
}

#[derive(Debug)]
enum ReadKind {
    Peer(Result<Peer, String>),
    Traffic {
        built: Box<Result<Cluster, String>>,
        route: String,
        service: Option<ServiceMeta>,
    },
}

impl ReadCluster {
    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What is wrong with it, whatever else there is.
    fn check(self) -> Result<(), String> {
        match self.kind {
            ReadKind::Peer(peer) => peer.map(drop),
            ReadKind::Traffic {
                built,
                route,
                service,
            } => {
                built.map(drop)?;
                let any = Names::any();
                let service = service.map(|meta| clusters::service("", &route, &meta, &any));
                service.transpose().map(drop)
            }
        }
    }

    /// Reads a cluster; one that carries traffic once every peer is known.
    pub(crate) fn read(cluster: &cluster::Cluster, meta: AnyClusterMeta, names: &Names) -> Self {
        let kind = match meta {
            AnyClusterMeta::Peer(meta) => ReadKind::Peer(clusters::peer(cluster, &meta)),
            AnyClusterMeta::Traffic(meta) => ReadKind::Traffic {
                built: Box::new(clusters::traffic(cluster, &meta, names)),
                route: meta.route,
                service: meta.service,
            },
        };
        Self {
            name: cluster.name.clone(),
            kind,
        }
    }
}

/// A snapshot that is made from resources one by one, in the order they depend on each other:
/// peers, other clusters, route configurations, listeners. What reads one of them says its text
/// once and drops it.
#[derive(Debug)]
pub(crate) struct Ingest {
    pub(crate) names: Names,
    node: Node,
    peers: Vec<Peer>,
    clusters: Vec<Arc<Cluster>>,
    services: Vec<Service>,
    listeners: Vec<Listener>,
    routes: ByName<Vec<ReadHost>>,
    gathered: Gathered,
    pub(crate) errors: Errors,
}

impl Ingest {
    /// Nothing yet.
    pub(crate) fn new(node: Node) -> Self {
        Self {
            names: Names::default(),
            node,
            peers: Vec::new(),
            clusters: Vec::new(),
            services: Vec::new(),
            listeners: Vec::new(),
            routes: ByName::default(),
            gathered: Gathered::default(),
            errors: Errors::default(),
        }
    }

    /// Takes clusters, and after them the services they describe.
    pub(crate) fn clusters(&mut self, clusters: impl IntoIterator<Item = ReadCluster>) {
        let mut described = Vec::new();
        for ReadCluster { name, kind } in clusters {
            match kind {
                ReadKind::Peer(peer) => {
                    if let Some(peer) = self.errors.keep(Kind::Cluster, &name, peer) {
                        let ix = PeerIx(self.peers.len());
                        self.names.peers.insert(peer.name.to_string(), ix);
                        self.peers.push(peer);
                    }
                }
                ReadKind::Traffic {
                    built,
                    route,
                    service,
                } => {
                    described.extend(service.map(|service| (name.clone(), route, service)));
                    if let Some(mut built) = self.errors.keep(Kind::Cluster, &name, *built) {
                        let ix = ClusterIx(self.clusters.len());
                        self.names.clusters.insert(name, ix);
                        self.share_policy(&mut built.policy);
                        self.clusters.push(built.into());
                    }
                }
            }
        }
        for (name, route, service) in described {
            let built: Result<Service, String> =
                clusters::service(&name, &route, &service, &self.names);
            if let Some(built) = self.errors.keep(Kind::Cluster, &name, built) {
                let ix = ServiceIx(self.services.len());
                self.names.services.insert(service.id, ix);
                self.services.push(built);
            }
        }
    }

    /// What clusters shortly before say alike is kept once.
    fn share_policy(&self, policy: &mut Arc<ClusterPolicy>) {
        let mut near = self.clusters.iter().rev().take(POLICIES_COMPARED);
        if let Some(known) = near.find(|known| known.policy == *policy) {
            *policy = Arc::clone(&known.policy);
        }
    }

    /// Takes the virtual hosts of a route configuration.
    pub(crate) fn route(&mut self, name: String, hosts: Vec<ReadHost>) {
        for host in &hosts {
            if let Some(why) = host.error() {
                self.errors.add(Kind::Routes, &name, why);
            }
        }
        self.routes.insert(name, hosts);
    }

    /// Takes a listener of these chains.
    pub(crate) fn listener(
        &mut self,
        name: &str,
        listener: &listener::Listener,
        chains: Vec<ReadChain>,
    ) {
        let reader = listeners::Reader {
            routes: &self.routes,
            names: &self.names,
            services: &self.services,
        };
        let built = reader.listener(listener, chains, &mut self.gathered);
        if let Some(built) = self.errors.keep(Kind::Listener, name, built) {
            self.listeners.push(built);
        }
    }

    /// The snapshot.
    ///
    /// # Errors
    /// Each resource that something is wrong with.
    pub(crate) fn end(self) -> Result<Snapshot, Errors> {
        self.end_with_versions().map(|(snapshot, _)| snapshot)
    }

    /// The snapshot, and what its version is made of.
    ///
    /// # Errors
    /// As [`end`](Self::end).
    pub(crate) fn end_with_versions(self) -> Result<(Snapshot, Versions), Errors> {
        let Self {
            node,
            peers,
            clusters,
            mut services,
            listeners,
            mut gathered,
            errors,
            ..
        } = self;
        if !errors.0.is_empty() {
            return Err(errors);
        }
        for (at, service) in services.iter_mut().enumerate() {
            if let Some(rules) = gathered.rules.remove(&ServiceIx(at)) {
                service.policy = rules.into_policy(service.policy.mode);
            }
            if let Some((mirrors, rules)) = gathered.routed.remove(&ServiceIx(at)) {
                service.mirrors = mirrors;
                service.rules = rules;
            }
        }
        let mut snapshot = Snapshot {
            version: "".into(),
            node,
            listeners: listeners.into(),
            services: services.into(),
            clusters: clusters.into(),
            peers: peers.into(),
        };
        let versions = Versions::of(&snapshot);
        snapshot.version = versions.whole();
        Ok((snapshot, versions))
    }
}

/// What is wrong with one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blamed {
    pub(crate) kind: Kind,
    pub(crate) name: String,
    pub(crate) why: String,
}

/// What is wrong with resources.
#[derive(Debug, Default)]
pub(crate) struct Errors(pub(crate) Vec<Blamed>);

impl Errors {
    pub(crate) fn add(&mut self, kind: Kind, name: &str, why: &str) {
        self.0.push(Blamed {
            kind,
            name: name.to_owned(),
            why: why.to_owned(),
        });
    }

    pub(crate) fn keep<T>(
        &mut self,
        kind: Kind,
        name: &str,
        result: Result<T, String>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(kind, name, &error);
                None
            }
        }
    }
}

impl From<Errors> for Findings {
    fn from(errors: Errors) -> Self {
        let mut findings = Self::new();
        for Blamed { kind, name, why } in errors.0 {
            let message = format!("{} `{name}`: {why}", kind.as_str());
            findings.push(Finding::error(Code::BadResource, message));
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packed::{Resources, ingest};
    use crate::pb::{self, core, tcp_proxy};
    use zeugma_core::identity::TrustDomain;
    use zeugma_core::locality::Locality;

    fn node() -> Node {
        Node {
            name: "east-gw".into(),
            cluster: "east".into(),
            locality: Locality::parse("eu").unwrap(),
            trust_domain: TrustDomain::parse("east.example").unwrap(),
        }
    }

    fn packed<M: prost::Message + prost::Name>(name: &str, message: &M) -> (String, pb::Any) {
        (name.to_owned(), pb::pack(message))
    }

    #[test]
    fn nothing_is_a_snapshot_too() {
        let snapshot = ingest(&Resources::default(), node()).unwrap();
        assert!(snapshot.listeners.is_empty() && snapshot.services.is_empty());
        assert_eq!(snapshot.version.len(), 32);
    }

    #[test]
    fn equal_snapshots_have_equal_versions_and_others_do_not() {
        let first = ingest(&Resources::default(), node()).unwrap();
        let again = ingest(&Resources::default(), node()).unwrap();
        assert_eq!(first.version, again.version);
        let other = Node {
            name: "east-gw-2".into(),
            ..node()
        };
        let other = ingest(&Resources::default(), other).unwrap();
        assert_ne!(first.version, other.version);
    }

    #[test]
    fn every_bad_resource_is_named_with_its_reason() {
        let chain = listener::FilterChain {
            name: "shop/orders:80".to_owned(),
            filters: vec![listener::Filter {
                name: "tcp".to_owned(),
                config_type: Some(listener::filter::ConfigType::TypedConfig(pb::pack(
                    &tcp_proxy::TcpProxy::default(),
                ))),
            }],
            ..Default::default()
        };
        let meta = crate::meta::ListenerMeta {
            mesh: true,
            only: None,
            sources: Vec::new(),
            handshakes_per_source: None,
            proxies: Vec::new(),
        };
        let resources = Resources {
            clusters: vec![
                packed("stranger", &cluster::Cluster::default()),
                packed("listener", &listener::Listener::default()),
                (
                    "garbage".to_owned(),
                    pb::Any {
                        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
                        value: vec![0xff; 7],
                    },
                ),
                packed(
                    "odd",
                    &cluster::Cluster {
                        metadata: Some(core::Metadata {
                            filter_metadata: [(pb::METADATA.to_owned(), pb::Struct::default())]
                                .into(),
                            ..Default::default()
                        }),
                        ..Default::default()
                    },
                ),
            ],
            routes: vec![packed("r", &cluster::Cluster::default())],
            listeners: vec![
                packed("bare", &listener::Listener::default()),
                packed(
                    "mesh",
                    &listener::Listener {
                        filter_chains: vec![chain],
                        metadata: Some(pb::metadata(&meta)),
                        ..Default::default()
                    },
                ),
            ],
        };
        let findings = ingest(&resources, node()).unwrap_err();
        let text = findings.to_string();
        for expected in [
            "cluster `stranger`: load_assignment: it has no endpoints",
            "cluster `listener`: it is a `type.googleapis.com/envoy.config.listener.v3.Listener`",
            "cluster `garbage`: ",
            "cluster `odd`: its `dev.zeugma` metadata: missing field `kind`",
            "route configuration `r`: it is a",
            "listener `bare`: address: it has no socket address",
            "listener `mesh`: filter chain `shop/orders:80`: no service `shop/orders:80`",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert_eq!(findings.iter().count(), 7, "{text}");
        assert_eq!(text.matches("(ZG0501)").count(), 7, "{text}");
    }
}
