//! Resources as they travel: packed, by name. The gateway's own way leaves the packing out
//! ([`handover`](crate::handover)); here it is done, so that both ways can be held against each
//! other; Envoy reads them packed as well ([`envoy`](crate::envoy)).

use crate::compile::{Compiled, Context, Made};
use crate::error::Findings;
use crate::pb::{self, Any, route};
#[cfg(test)]
use crate::{
    ingest::{Ingest, ReadChain, ReadCluster, ReadHost},
    meta::AnyClusterMeta,
    pb::{cluster, listener},
};
#[cfg(test)]
use zeugma_core::snapshot::{Node, Snapshot};

/// Packed xDS resources with their names, in the order they depend on each other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Resources {
    pub(crate) clusters: Vec<(String, Any)>,
    pub(crate) routes: Vec<(String, Any)>,
    pub(crate) listeners: Vec<(String, Any)>,
}

/// Every resource of a gateway.
pub(crate) fn compile(context: Context<'_>, findings: &mut Findings) -> Resources {
    let compiled = Compiled::new(context, findings);
    let pack = |made: Made| {
        let Made { mut cluster, meta } = made;
        cluster.metadata = Some(pb::metadata(&meta));
        (cluster.name.clone(), pb::pack(&cluster))
    };
    let mut clusters: Vec<_> = compiled.peers().into_iter().map(pack).collect();
    clusters.extend(compiled.clusters(pack));
    clusters.extend(compiled.others().into_iter().map(pack));
    let routes = compiled.routes(|host| host).into_iter();
    let listeners = compiled.listeners(findings, |chain| chain).into_iter();
    Resources {
        clusters,
        routes: routes
            .map(|(name, virtual_hosts)| {
                let config = route::RouteConfiguration {
                    name: name.clone(),
                    virtual_hosts,
                    ..Default::default()
                };
                (name, pb::pack(&config))
            })
            .collect(),
        listeners: listeners
            .map(|(mut listener, chains)| {
                listener.filter_chains = chains;
                (listener.name.clone(), pb::pack(&listener))
            })
            .collect(),
    }
}

/// Makes a snapshot from packed resources alone.
#[cfg(test)]
pub(crate) fn ingest(resources: &Resources, node: Node) -> Result<Snapshot, Findings> {
    let mut ingest = Ingest::new(node);
    let mut decoded = Vec::new();
    for (name, any) in &resources.clusters {
        let one = pb::unpack::<cluster::Cluster>(any)
            .and_then(|cluster| Ok((pb::from_metadata(cluster.metadata.as_ref())?, cluster)));
        decoded.extend(ingest.errors.keep("cluster", name, one));
    }
    let (peers, others): (Vec<_>, Vec<_>) =
        (decoded.into_iter()).partition(|(meta, _)| matches!(meta, AnyClusterMeta::Peer(_)));
    for decoded in [peers, others] {
        let read: Vec<ReadCluster> = (decoded.into_iter())
            .map(|(meta, cluster)| ReadCluster::read(&cluster, meta, &ingest.names))
            .collect();
        ingest.clusters(read);
    }
    for (name, any) in &resources.routes {
        let config = pb::unpack::<route::RouteConfiguration>(any);
        if let Some(config) = ingest.errors.keep("route configuration", name, config) {
            let hosts = (config.virtual_hosts.iter())
                .map(|host| ReadHost::read(host, &ingest.names))
                .collect();
            ingest.route(name.clone(), hosts);
        }
    }
    for (name, any) in &resources.listeners {
        let listener = pb::unpack::<listener::Listener>(any);
        if let Some(listener) = ingest.errors.keep("listener", name, listener) {
            let chains = (listener.filter_chains.iter())
                .map(|chain| ReadChain::read(chain, &ingest.names))
                .collect();
            ingest.listener(name, &listener, chains);
        }
    }
    ingest.end()
}
