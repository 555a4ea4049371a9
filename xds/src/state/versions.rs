//! A snapshot's content as one number: equal only for equal content, the same in every run.

use std::sync::Arc;

use zeugma_core::snapshot::{Cluster, Snapshot};

use super::codec::{Coded, Writer};
use crate::parallel;
use crate::sum::{self, joined};

/// What the version of a snapshot is made of: that of one cluster changes by itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Versions {
    clusters: Vec<u128>,
    /// Of all else: the node, peers, services, listeners.
    others: [u128; 4],
}

impl Versions {
    /// Those of a snapshot.
    pub(crate) fn of(snapshot: &Snapshot) -> Self {
        let Snapshot {
            version: _,
            node,
            listeners,
            services,
            clusters,
            peers,
        } = snapshot;
        let clusters: Vec<&Cluster> = clusters.iter().map(|cluster| &**cluster).collect();
        Self {
            clusters: parallel::map(clusters, of),
            others: [of(node), of(peers), of(services), of(listeners)],
        }
    }

    /// The cluster at `at` is another one.
    pub(crate) fn set_cluster(&mut self, at: usize, cluster: &Cluster) {
        if let Some(version) = self.clusters.get_mut(at) {
            *version = of(cluster);
        }
    }

    /// That of all of it.
    pub(crate) fn whole(&self) -> Arc<str> {
        let clusters = joined(self.clusters.iter().copied());
        let all = joined(self.others.into_iter().chain([clusters]));
        format!("{all:032x}").into()
    }
}

fn of(part: &impl Coded) -> u128 {
    let mut to = Writer::of_one();
    part.write(&mut to);
    sum::of(&to.into_bytes())
}
