//! Resources as they travel: packed, by name.

use std::collections::HashMap;

use zeugma_core::snapshot::Node;

use super::foreign::{self, Foreign};
use super::{
    Errors, Ingest, Names, ReadChain, ReadCluster, ReadHost, Served, clusters, fields, listeners,
};
use crate::body::Body;
use crate::compile::ResourceList;
use crate::meta::AnyClusterMeta;
use crate::parallel;
use crate::pb::{self, Any, cluster, endpoint, listener, route};
use crate::session::Kind;

/// All resources of a gateway that are to serve together, in any order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Packed<'a> {
    pub(crate) clusters: Vec<(&'a str, &'a Body)>,
    /// The endpoints of the clusters that have none in themselves, by the names that these ask for. Where
    /// there are none, the cluster has none.
    pub(crate) endpoints: HashMap<&'a str, &'a Body>,
    pub(crate) routes: Vec<(&'a str, &'a Body)>,
    /// The names of route configurations of which it is known that there are none.
    pub(crate) empty_routes: Vec<&'a str>,
    pub(crate) listeners: Vec<(&'a str, &'a Body)>,
}

/// A cluster with what we say of it; `None`: it is a stranger's.
pub(super) type Decoded = (Option<AnyClusterMeta>, cluster::Cluster);

impl Packed<'_> {
    /// Makes a snapshot of them alone.
    ///
    /// # Errors
    /// Each that something is wrong with, by itself or beside the others.
    pub(crate) fn ingest(&self, node: Node) -> Result<Served, Errors> {
        let mut ingest = Ingest::new(node);
        let mut list = ResourceList::default();
        let mut strange = Foreign::default();
        for (name, body) in &self.clusters {
            list.add('c', body.len(), name);
        }
        for clusters in self.peers_and_others() {
            // Decoded they take many times what is made of them: each is dropped where it was read.
            let read = parallel::map(clusters, |(name, body)| {
                let decoded = decoded(body, |name| self.endpoints.get(name).copied());
                let read = |(meta, cluster): Decoded| match meta {
                    Some(meta) => Ok(ReadCluster::read(&cluster, meta, &ingest.names)),
                    None => Err(Box::new(cluster)),
                };
                (name, decoded.map(read))
            });
            let mut ours = Vec::new();
            for (name, read) in read {
                match ingest.errors.keep(Kind::Cluster, name, read) {
                    Some(Ok(read)) => ours.push(read),
                    Some(Err(cluster)) => strange.clusters.push((name, *cluster)),
                    None => {}
                }
            }
            ingest.clusters(ours);
        }
        for (name, body) in &self.routes {
            list.add('r', body.len(), name);
            let config = pb::unpack::<route::RouteConfiguration>(&body.to_any());
            if let Some(config) = ingest.errors.keep(Kind::Routes, name, config) {
                if foreign::is_foreign_routes(&config) {
                    strange.routes.push((*name, config));
                    continue;
                }
                if config.virtual_hosts.is_empty() {
                    // It is anybody's.
                    strange.routes.push((*name, config.clone()));
                }
                let hosts = parallel::map(config.virtual_hosts, |host| {
                    ReadHost::read(&host, &ingest.names)
                });
                ingest.route((*name).to_owned(), hosts);
            }
        }
        for name in &self.empty_routes {
            ingest.route((*name).to_owned(), Vec::new());
        }
        for (name, body) in &self.listeners {
            list.add('l', body.len(), name);
            let listener = pb::unpack::<listener::Listener>(&body.to_any());
            if let Some(mut listener) = ingest.errors.keep(Kind::Listener, name, listener) {
                if foreign::is_foreign(listener.metadata.as_ref()) {
                    strange.listeners.push((*name, listener));
                    continue;
                }
                let chains = std::mem::take(&mut listener.filter_chains);
                let chains = parallel::map(chains, |chain| ReadChain::read(&chain, &ingest.names));
                ingest.listener(name, &listener, chains);
            }
        }
        let ways = strange.ingest(&mut ingest);
        let (snapshot, versions) = ingest.end_with_versions()?;
        Ok(Served {
            snapshot,
            resources: list,
            versions,
            ways: ways.into(),
        })
    }
}

/// What the metadata of every peer has in it: a value that is the text `peer`.
const PEER: &[u8] = b"\x1a\x04peer";

impl<'a> Packed<'a> {
    /// The clusters of peers, and all others, which may refer to these.
    fn peers_and_others(&self) -> [Vec<(&'a str, &'a Body)>; 2] {
        let clusters = parallel::map(self.clusters.clone(), |(name, body)| {
            let is_peer = may_be_peer(body)
                && matches!(
                    decoded(body, |_| None),
                    Ok((Some(AnyClusterMeta::Peer(_)), _))
                );
            (is_peer, (name, body))
        });
        let (peers, others): (Vec<_>, Vec<_>) =
            clusters.into_iter().partition(|(is_peer, _)| *is_peer);
        [peers, others].map(|all| all.into_iter().map(|(_, one)| one).collect())
    }
}

/// Whether a cluster may be a peer's: few others are said to be.
pub(crate) fn may_be_peer(body: &Body) -> bool {
    let bytes = body.to_any().value;
    bytes.windows(PEER.len()).any(|bytes| bytes == PEER)
}

/// A cluster with the endpoints in it that it names.
pub(super) fn decoded<'a>(
    body: &Body,
    endpoints: impl Fn(&str) -> Option<&'a Body>,
) -> Result<Decoded, String> {
    decoded_of(&body.to_any(), endpoints)
}

fn decoded_of<'a>(
    any: &Any,
    endpoints: impl Fn(&str) -> Option<&'a Body>,
) -> Result<Decoded, String> {
    let mut cluster: cluster::Cluster = pb::unpack(any)?;
    let metadata = cluster.metadata.as_ref();
    let meta = (!foreign::is_foreign(metadata)).then(|| pb::from_metadata(metadata));
    let meta = meta.transpose()?;
    if let Some((_, name)) = crate::session::client::endpoints_of(&cluster) {
        let assignment = match endpoints(&name).map(Body::to_any) {
            // Some that say they are ours were not looked at, and of a stranger's cluster they are not.
            Some(any) if meta.is_none() && fields::is_ours(Kind::Endpoints, &any) => {
                fields::check(&any)?;
                pb::unpack(&any)?
            }
            Some(any) => pb::unpack(&any)?,
            None => endpoint::ClusterLoadAssignment::default(),
        };
        cluster.load_assignment = Some(assignment);
    }
    Ok((meta, cluster))
}

/// What is wrong with a resource by itself, whatever it refers to.
pub(crate) fn check(kind: Kind, any: &Any, node: &Node) -> Result<(), String> {
    let own = &node.trust_domain;
    if !fields::is_ours(kind, any) {
        fields::check(any)?;
    }
    match kind {
        Kind::Cluster => {
            let (meta, mut cluster) = decoded_of(any, |_| None)?;
            if clusters::is_discovered(&cluster) {
                cluster.load_assignment = Some(endpoint::ClusterLoadAssignment::default());
            }
            match meta {
                Some(meta) => ReadCluster::read(&cluster, meta, &Names::any()).check(),
                None => foreign::check_cluster(&cluster, own),
            }
        }
        // Which they are depends on the cluster.
        Kind::Endpoints => pb::unpack::<endpoint::ClusterLoadAssignment>(any).map(drop),
        Kind::Routes => {
            let config: route::RouteConfiguration = pb::unpack(any)?;
            if foreign::is_foreign_routes(&config) {
                return foreign::check_routes(&config);
            }
            let any = Names::any();
            let mut hosts = config.virtual_hosts.iter();
            let wrong =
                hosts.find_map(|host| ReadHost::read(host, &any).error().map(str::to_owned));
            wrong.map_or(Ok(()), Err)
        }
        Kind::Listener => {
            let listener: listener::Listener = pb::unpack(any)?;
            if foreign::is_foreign(listener.metadata.as_ref()) {
                return foreign::check_listener(&listener, own);
            }
            listeners::check(&listener)
        }
    }
}
