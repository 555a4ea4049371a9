//! What was put together of resources, and what changes of it with one cluster.

use std::sync::Arc;

use zeugma_core::identity::TrustDomain;
use zeugma_core::snapshot::{Cluster, PeerIx, Snapshot};

use super::foreign::{self, Template, Ways};
use super::packed::decoded;
use super::{Names, ReadCluster, ReadKind};
use crate::body::Body;
use crate::compile::ResourceList;
use crate::meta::AnyClusterMeta;
use crate::state::{self, Versions};

/// A snapshot, and what it was made from.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) snapshot: Snapshot,
    pub(crate) resources: ResourceList,
    pub(super) versions: Versions,
    pub(super) ways: Arc<Ways>,
}

/// A cluster that another one of its name takes the place of, or that has other endpoints.
#[derive(Debug)]
pub(crate) struct Changed<'a> {
    pub(crate) name: &'a str,
    pub(crate) before: &'a Body,
    pub(crate) now: &'a Body,
    /// Those that it names, where it has none in itself.
    pub(crate) endpoints: Option<&'a Body>,
    pub(crate) endpoints_before: Option<&'a Body>,
}

/// What is read of a cluster that changed.
enum Read {
    Ours(Box<Cluster>),
    Strange(Box<Template>),
}

impl Served {
    /// The same with these clusters: what all would be made to again, for the price of these alone.
    /// `None` where more than clusters changes by it, or something is wrong with one.
    pub(crate) fn with(&self, changed: &[Changed<'_>]) -> Option<Self> {
        let peers = self.snapshot.peers.iter().enumerate();
        let names = Names {
            peers: peers
                .map(|(at, peer)| (peer.name.to_string(), PeerIx(at)))
                .collect(),
            ..Names::default()
        };
        let mut next = self.clone();
        let mut clusters = self.snapshot.clusters.to_vec();
        for changed in changed {
            let built = match changed.read(&names, &self.snapshot.node.trust_domain)? {
                Read::Ours(built) => {
                    // They come in the order of their names.
                    let at = clusters.binary_search_by(|known| (*known.name).cmp(changed.name));
                    vec![(at.ok()?, *built)]
                }
                Read::Strange(template) => self.ways.made(changed.name, &template)?,
            };
            if changed.now.len() != changed.before.len() {
                (next.resources).change('c', changed.now.len(), changed.name);
            }
            for (at, built) in built {
                let known = clusters.get_mut(at)?;
                if **known != built {
                    next.versions.set_cluster(at, &built);
                    *known = Arc::new(share_policy(built, known));
                }
            }
        }
        next.snapshot.clusters = clusters.into();
        next.snapshot.version = next.versions.whole();
        Some(next)
    }

    /// Has it keep once what it has in common with what was made before, and take little memory where
    /// that is not much.
    pub(crate) fn share(&mut self, before: Option<&Self>) {
        let mut common = 0;
        if let Some(before) = before {
            self.snapshot.share(&before.snapshot);
            let both = self.snapshot.clusters.iter().zip(&before.snapshot.clusters);
            common = both.filter(|(one, other)| Arc::ptr_eq(one, other)).count();
        }
        if common * 2 < self.snapshot.clusters.len()
            && let Some(compact) = state::compact(&self.snapshot)
        {
            self.snapshot = compact;
        }
    }
}

impl Changed<'_> {
    /// `None` where it is of use for more than its endpoints.
    fn read(&self, names: &Names, own: &TrustDomain) -> Option<Read> {
        let (meta, cluster) = decoded(self.now, |_| self.endpoints).ok()?;
        if !std::ptr::eq(self.before, self.now) {
            let (before, _) = decoded(self.before, |_| None).ok()?;
            let is_alike = match (&before, &meta) {
                (Some(AnyClusterMeta::Traffic(before)), Some(AnyClusterMeta::Traffic(now))) => {
                    (&before.route, &before.service) == (&now.route, &now.service)
                }
                // A stranger's may be of use for whatever there is.
                (Some(AnyClusterMeta::Peer(_) | AnyClusterMeta::Traffic(_)) | None, _) => false,
            };
            if !is_alike {
                return None;
            }
        }
        let Some(meta) = meta else {
            let (_, before) = decoded(self.before, |_| self.endpoints_before).ok()?;
            let read = |cluster| foreign::read_cluster(cluster, own).ok();
            let (before, now) = (read(&before)?, read(&cluster)?);
            return (before.is_for_the_same(&now)).then(|| Read::Strange(now.into()));
        };
        match ReadCluster::read(&cluster, meta, names).kind {
            ReadKind::Traffic { built, .. } => built.ok().map(|built| Read::Ours(built.into())),
            ReadKind::Peer(_) => None,
        }
    }
}

fn share_policy(mut built: Cluster, known: &Cluster) -> Cluster {
    if built.policy == known.policy {
        built.policy = Arc::clone(&known.policy);
    }
    built
}
