//! Resources as they travel: packed, by name. The gateway's own way leaves the packing out
//! ([`handover`](crate::handover)); here it is done, so that both ways can be held against each
//! other; Envoy reads them packed as well ([`envoy`](crate::envoy)).

use crate::compile::{Compiled, Context, Made};
use crate::error::Findings;
use crate::pb::{self, Any, route};
#[cfg(test)]
use {
    crate::body::Body,
    crate::ingest::Packed,
    std::collections::HashMap,
    zeugma_core::snapshot::{Node, Snapshot},
};

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
    compiled.clusters(pack, |packed| clusters.extend(packed));
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
    let packed = |all: &[(String, Any)]| -> Vec<(String, Body)> {
        let all = all.iter().cloned();
        all.map(|(name, any)| (name, any.into())).collect()
    };
    fn of(all: &[(String, Body)]) -> Vec<(&str, &Body)> {
        let all = all.iter();
        all.map(|(name, body)| (name.as_str(), body)).collect()
    }
    let [clusters, routes, listeners] =
        [&resources.clusters, &resources.routes, &resources.listeners].map(|all| packed(all));
    let packed = Packed {
        clusters: of(&clusters),
        endpoints: HashMap::new(),
        routes: of(&routes),
        empty_routes: Vec::new(),
        listeners: of(&listeners),
    };
    Ok(packed.ingest(node)?.snapshot)
}
