//! From `compile` to `ingest` within one process: each resource is read where it was made, and
//! dropped. What is read are the messages themselves; that their bytes say the same is a test's
//! business.

use prost::Message as _;
use zeugma_core::snapshot::{Node, Snapshot};

use crate::compile::{Compiled, Context, Made, ResourceList};
use crate::error::Findings;
use crate::ingest::{Ingest, Names, ReadChain, ReadCluster, ReadHost};
use crate::pb::{self, route};

/// The snapshot of what `context` compiles to, and the list of its resources.
pub(crate) fn snapshot(
    context: Context<'_>,
    node: Node,
    findings: &mut Findings,
) -> (Result<Snapshot, Findings>, ResourceList) {
    let compiled = Compiled::new(context, findings);
    let mut list = ResourceList::default();
    let mut ingest = Ingest::new(node);
    let all = |made: Vec<Made>, ingest: &Ingest| -> Vec<(usize, ReadCluster)> {
        made.into_iter()
            .map(|made| read(made, &ingest.names))
            .collect()
    };
    let peers = all(compiled.peers(), &ingest);
    take(peers, &mut list, &mut ingest);
    // What clusters name are peers, all of which are known.
    let names = ingest.names.clone();
    compiled.clusters(
        |made| read(made, &names),
        |clusters| take(clusters, &mut list, &mut ingest),
    );
    let others = all(compiled.others(), &ingest);
    take(others, &mut list, &mut ingest);
    let routes = compiled.routes(|host| {
        let bytes = field(host.encoded_len());
        (bytes, ReadHost::read(&host, &ingest.names))
    });
    for (name, hosts) in routes {
        let empty = route::RouteConfiguration {
            name: name.clone(),
            ..Default::default()
        };
        let (bytes, hosts) = sum(hosts);
        list.add('r', empty.encoded_len() + bytes, &name);
        ingest.route(name, hosts);
    }
    let listeners = compiled.listeners(findings, |chain| {
        let bytes = field(chain.encoded_len());
        (bytes, ReadChain::read(&chain, &ingest.names))
    });
    for (listener, chains) in listeners {
        let (bytes, chains) = sum(chains);
        list.add('l', listener.encoded_len() + bytes, &listener.name);
        ingest.listener(&listener.name, &listener, chains);
    }
    (ingest.end().map_err(Findings::from), list)
}

fn read(made: Made, names: &Names) -> (usize, ReadCluster) {
    let Made { cluster, meta } = made;
    let bytes = cluster.encoded_len() + pb::metadata_len(&meta);
    (bytes, ReadCluster::read(&cluster, meta, names))
}

fn take(read: Vec<(usize, ReadCluster)>, list: &mut ResourceList, ingest: &mut Ingest) {
    let clusters = read.into_iter().map(|(bytes, cluster)| {
        list.add('c', bytes, cluster.name());
        cluster
    });
    ingest.clusters(clusters);
}

/// What a message of this length takes as a field, whose number is below 16.
fn field(len: usize) -> usize {
    1 + prost::length_delimiter_len(len) + len
}

fn sum<T>(parts: Vec<(usize, T)>) -> (usize, Vec<T>) {
    let bytes = parts.iter().map(|(bytes, _)| bytes).sum();
    (bytes, parts.into_iter().map(|(_, part)| part).collect())
}
