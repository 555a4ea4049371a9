//! xDS resources to a [`Snapshot`]: decodes, resolves every reference, collects every error.

mod clusters;
mod listeners;
mod rbac;

use std::collections::BTreeMap;

use zeugma_core::snapshot::{
    Cluster, ClusterIx, Mirror, Node, PeerIx, Service, ServiceIx, Snapshot,
};

use crate::compile::Resources;
use crate::error::{Code, Finding, Findings};
use crate::meta::AnyClusterMeta;
use crate::parallel;
use crate::pb::{self, cluster, listener, route};
use crate::state;

/// Names of what was ingested so far.
#[derive(Debug, Default)]
struct Names {
    peers: BTreeMap<String, PeerIx>,
    clusters: BTreeMap<String, ClusterIx>,
    services: BTreeMap<String, ServiceIx>,
}

/// What several listeners say about one service, put together.
#[derive(Debug, Default)]
struct Gathered {
    rules: BTreeMap<ServiceIx, rbac::Numbered>,
    mirrors: BTreeMap<ServiceIx, Vec<Mirror>>,
}

/// Makes a snapshot from resources alone.
pub(crate) fn ingest(resources: &Resources, node: Node) -> Result<Snapshot, Findings> {
    let mut errors = Errors::default();
    let mut names = Names::default();
    let mut snapshot = Snapshot {
        version: "".into(),
        node,
        listeners: Vec::new(),
        services: Vec::new(),
        clusters: Vec::new(),
        peers: Vec::new(),
    };
    let mut traffic = Vec::new();
    let decoded = parallel::map(resources.clusters.iter().collect(), |(name, any)| {
        let decoded = pb::unpack::<cluster::Cluster>(any)
            .and_then(|cluster| Ok((pb::from_metadata(cluster.metadata.as_ref())?, cluster)));
        (name, decoded)
    });
    for (name, decoded) in decoded {
        match decoded {
            Ok((AnyClusterMeta::Peer(meta), cluster)) => {
                let peer = clusters::peer(&cluster, &meta);
                if let Some(peer) = errors.keep("cluster", name, peer) {
                    names
                        .peers
                        .insert(peer.name.to_string(), PeerIx(snapshot.peers.len()));
                    snapshot.peers.push(peer);
                }
            }
            Ok((AnyClusterMeta::Traffic(meta), cluster)) => traffic.push((cluster, *meta)),
            Err(error) => errors.add("cluster", name, &error),
        }
    }
    let built: Vec<Result<Cluster, String>> =
        parallel::map(traffic.iter().collect(), |(cluster, meta)| {
            clusters::traffic(cluster, meta, &names)
        });
    for ((cluster, _), built) in traffic.iter().zip(built) {
        if let Some(built) = errors.keep("cluster", &cluster.name, built) {
            names
                .clusters
                .insert(cluster.name.clone(), ClusterIx(snapshot.clusters.len()));
            snapshot.clusters.push(built.into());
        }
    }
    for (cluster, meta) in &traffic {
        let Some(described) = &meta.service else {
            continue;
        };
        let built: Result<Service, String> =
            clusters::service(&cluster.name, &meta.route, described, &names);
        if let Some(built) = errors.keep("cluster", &cluster.name, built) {
            names
                .services
                .insert(described.id.clone(), ServiceIx(snapshot.services.len()));
            snapshot.services.push(built);
        }
    }
    let mut routes = BTreeMap::new();
    let decoded = parallel::map(resources.routes.iter().collect(), |(name, any)| {
        (name, pb::unpack::<route::RouteConfiguration>(any))
    });
    for (name, decoded) in decoded {
        if let Some(config) = errors.keep("route configuration", name, decoded) {
            routes.insert(name.clone(), config);
        }
    }
    listeners(resources, &routes, &names, &mut snapshot, &mut errors);
    if !errors.0.is_empty() {
        return Err(errors.0);
    }
    snapshot.version = state::version(&snapshot);
    Ok(snapshot)
}

fn listeners(
    resources: &Resources,
    routes: &BTreeMap<String, route::RouteConfiguration>,
    names: &Names,
    snapshot: &mut Snapshot,
    errors: &mut Errors,
) {
    let mut gathered = Gathered::default();
    for (name, any) in &resources.listeners {
        let built = pb::unpack::<listener::Listener>(any).and_then(|listener| {
            let reader = listeners::Reader {
                routes,
                names,
                services: &snapshot.services,
            };
            reader.listener(&listener, &mut gathered)
        });
        if let Some(built) = errors.keep("listener", name, built) {
            snapshot.listeners.push(built);
        }
    }
    for (at, service) in snapshot.services.iter_mut().enumerate() {
        if let Some(rules) = gathered.rules.remove(&ServiceIx(at)) {
            service.policy = rules.into_policy();
        }
        if let Some(mirrors) = gathered.mirrors.remove(&ServiceIx(at)) {
            service.mirrors = mirrors;
        }
    }
}

#[derive(Debug, Default)]
struct Errors(Findings);

impl Errors {
    fn add(&mut self, kind: &str, name: &str, error: &str) {
        self.0.push(Finding::error(
            Code::BadResource,
            format!("{kind} `{name}`: {error}"),
        ));
    }

    fn keep<T>(&mut self, kind: &str, name: &str, result: Result<T, String>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(kind, name, &error);
                None
            }
        }
    }
}

/// The peer of this name.
fn peer_ix(names: &Names, name: &str) -> Result<PeerIx, String> {
    names
        .peers
        .get(name)
        .copied()
        .ok_or_else(|| format!("no peer `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::{core, tcp_proxy};
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
            "cluster `stranger`: it has no `dev.zeugma` metadata",
            "cluster `listener`: it is a `type.googleapis.com/envoy.config.listener.v3.Listener`",
            "cluster `garbage`: ",
            "cluster `odd`: its `dev.zeugma` metadata: missing field `kind`",
            "route configuration `r`: it is a",
            "listener `bare`: it has no `dev.zeugma` metadata",
            "listener `mesh`: filter chain `shop/orders:80`: no service `shop/orders:80`",
        ] {
            assert!(text.contains(expected), "{expected}: {text}");
        }
        assert_eq!(findings.iter().count(), 7, "{text}");
    }
}
