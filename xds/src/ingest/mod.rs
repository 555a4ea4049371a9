//! xDS resources to a [`Snapshot`]: decodes, resolves every reference, collects every error.

mod clusters;
mod listeners;
mod rbac;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use zeugma_core::snapshot::{
    Cluster, ClusterIx, Mirror, Node, PeerIx, Service, ServiceIx, Snapshot,
};

use crate::compile::Resources;
use crate::error::{Code, Finding, Findings};
use crate::meta::AnyClusterMeta;
use crate::pb::{self, cluster, listener, route};

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
    for (name, any) in &resources.clusters {
        let decoded = pb::unpack::<cluster::Cluster>(any)
            .and_then(|cluster| Ok((pb::from_metadata(cluster.metadata.as_ref())?, cluster)));
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
    for (cluster, meta) in &traffic {
        let built: Result<Cluster, String> = clusters::traffic(cluster, meta, &names);
        if let Some(built) = errors.keep("cluster", &cluster.name, built) {
            names
                .clusters
                .insert(cluster.name.clone(), ClusterIx(snapshot.clusters.len()));
            snapshot.clusters.push(built);
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
    for (name, any) in &resources.routes {
        let decoded = pb::unpack::<route::RouteConfiguration>(any);
        if let Some(config) = errors.keep("route configuration", name, decoded) {
            routes.insert(name.clone(), config);
        }
    }
    listeners(resources, &routes, &names, &mut snapshot, &mut errors);
    if !errors.0.is_empty() {
        return Err(errors.0);
    }
    snapshot.version = version(&snapshot);
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

/// FNV-1a over everything the snapshot says. Its text is the same in every run: protobuf's maps,
/// whose order is not, are gone by now.
fn version(snapshot: &Snapshot) -> Arc<str> {
    struct Fnv(u128);

    impl std::fmt::Write for Fnv {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            // The 128-bit parameters of draft-eastlake-fnv §5.
            const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
            for byte in text.bytes() {
                self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(PRIME);
            }
            Ok(())
        }
    }

    let mut fnv = Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
    // Writing into the hash cannot fail.
    let _ = write!(fnv, "{snapshot:?}");
    format!("{:032x}", fnv.0).into()
}

/// The peer of this name.
fn peer_ix(names: &Names, name: &str) -> Result<PeerIx, String> {
    names
        .peers
        .get(name)
        .copied()
        .ok_or_else(|| format!("no peer `{name}`"))
}
