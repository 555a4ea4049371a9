//! What share of a cluster's traffic each of its levels takes.
//!
//! The formula, with h the healthy share of a level's weight:
//!
//! ```text
//! c = 0                            if h <= full
//!     1                            if h >= start
//!     (h - full) / (start - full)  between
//! in order, each level takes min(what is left, c)
//! if something is left after the last, each takes c / sum of c
//! ```

use std::ops::Index;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::balance::key_of;
use crate::capacity::Metered;
use crate::snapshot::{Balance, Cluster, EndpointIx, Failover, Snapshot, TooFew};
use crate::time::Time;

/// What differs by less than this is the same share.
pub const SHARE_EPSILON: f64 = 1e-9;

/// The shares and endpoint health of every cluster of one snapshot.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Shares {
    /// In the order of [`Snapshot::clusters`].
    pub clusters: PerCluster,
}

/// Clusters that are kept together: so many are written anew when one of them changes.
const CHUNK: usize = 64;

/// The shares of each cluster, in chunks that several [`Shares`] have in common: what one endpoint
/// changes costs the same with ten thousand routes as with ten.
#[derive(Debug, Clone, Default)]
pub struct PerCluster {
    /// Each of [`CHUNK`] clusters but the last.
    chunks: Vec<Arc<Chunk>>,
}

/// Clusters that have the same shares as one shortly before them, as most do that are well, have them in
/// common.
type Chunk = Vec<Arc<ClusterShares>>;

/// How far before itself a cluster looks for its shares: those of one route stand together, and the
/// next route's are mostly alike.
const NEAR: usize = 4;

/// The shares and endpoint health of one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterShares {
    /// The share of each level, in their order; together 1, with what fits nowhere where capacities are
    /// known ([`Metered::refused`]); or all 0: everything is refused.
    pub levels: Vec<f64>,
    /// The health of each endpoint, in their order.
    pub endpoints: Vec<EndpointStatus>,
    /// What each endpoint is worth in its level, in their order; empty where all are worth what is
    /// configured.
    pub worths: Vec<Worth>,
    /// No level has enough healthy endpoints: ejected ones are used too.
    pub too_few: bool,
    /// How a level is spread over localities; `None` where none is.
    pub spread: Option<Arc<Spread>>,
    /// What each level is about, in their order; empty where all are settled.
    pub motions: Vec<LevelMotion>,
    /// What part of its weight each endpoint is given while some start slowly; empty: all of it.
    pub parts: Vec<f64>,
    /// What tells each endpoint from others by a key, where the policy is one of keys; else empty.
    pub seeds: Vec<u64>,
    /// The endpoints that one request may show to be good again; mostly there are none.
    pub trials: Vec<(EndpointIx, Trial)>,
    /// What backends take in a second; `None` where it is not known of any.
    pub metered: Option<Arc<Metered>>,
}

/// A request that is still to be sent to an endpoint whose ejection is over, by whoever is first.
#[derive(Debug, Clone)]
pub struct Trial(Arc<AtomicBool>);

impl Trial {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }

    /// Another one that stands the same.
    pub(crate) fn apart(&self) -> Self {
        Self(Arc::new(AtomicBool::new(self.is_open())))
    }

    /// Whether nobody has begun it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Begins it; whether nobody else has.
    #[must_use]
    pub fn begin(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl PartialEq for Trial {
    /// Whether it is the same one.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// How the traffic of one level is spread over the localities in it.
///
/// As Envoy's locality weights: each is its weight times c of what is healthy in it, of their sum.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    /// The level.
    pub level: usize,
    /// The share of each, in the order of [`ClusterPolicy::spread`](crate::snapshot::ClusterPolicy);
    /// together 1, or all 0: nothing that weighs is healthy, and endpoints alone weigh.
    pub shares: Vec<f64>,
    /// Which of them each endpoint is of, in their order; none where it is as many as there are.
    of: Vec<usize>,
}

impl Spread {
    fn new(cluster: &Cluster, endpoints: &[EndpointStatus], worths: &[Worth]) -> Option<Self> {
        let parts = &cluster.policy.spread;
        if parts.is_empty() {
            return None;
        }
        let of: Vec<usize> = (cluster.endpoints.iter())
            .map(|endpoint| {
                let part = parts
                    .iter()
                    .position(|part| part.locality == endpoint.locality);
                part.unwrap_or(parts.len())
            })
            .collect();
        let is_of = |ix: &EndpointIx| of.get(ix.0).is_some_and(|part| *part < parts.len());
        let level = (cluster.levels.iter()).position(|level| level.members.iter().any(is_of))?;
        let members = &cluster.levels.get(level)?.members;
        let mut shares: Vec<f64> = (parts.iter().enumerate())
            .map(|(at, part)| {
                let members = members.iter().filter(|ix| of.get(ix.0) == Some(&at));
                let healthy = healthy_share_of(cluster, endpoints, worths, members);
                part.weight * capacity(healthy, &cluster.policy.failover)
            })
            .collect();
        let sum: f64 = shares.iter().sum();
        if sum > 0.0 {
            shares.iter_mut().for_each(|share| *share /= sum);
        }
        Some(Self { level, shares, of })
    }

    /// Whether an endpoint is of one of the localities.
    #[must_use]
    pub fn is_of(&self, ix: EndpointIx, part: usize) -> bool {
        self.of.get(ix.0) == Some(&part)
    }
}

/// What a level's share is about besides its health, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LevelMotion {
    /// It takes what its health allows.
    Settled,
    /// It is worse than what it takes, for `hold`.
    Holding {
        /// Since when.
        since: Time,
    },
    /// It is better than what it takes, for `failback.after`.
    Waiting {
        /// Since when.
        since: Time,
    },
    /// It is better than what it takes, until somebody resets the route: `failback.mode: manual`.
    Kept {
        /// Since when.
        since: Time,
    },
    /// It takes more and more, by `failback.ramp`.
    Ramping {
        /// Since when.
        since: Time,
    },
}

impl LevelMotion {
    /// The words in tables.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Holding { .. } => "holds",
            Self::Waiting { .. } => "waits",
            Self::Kept { .. } => "waits for reset",
            Self::Ramping { .. } => "comes back",
        }
    }

    /// Since when; `None` where it is settled.
    #[must_use]
    pub const fn since(self) -> Option<Time> {
        match self {
            Self::Settled => None,
            Self::Holding { since }
            | Self::Waiting { since }
            | Self::Kept { since }
            | Self::Ramping { since } => Some(since),
        }
    }
}

/// What an endpoint is worth in its level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Worth {
    /// Its weight.
    pub weight: f64,
    /// The part of it that is healthy, if the endpoint itself is.
    pub healthy: f64,
    /// What it is picked by among the others of its level that are of use.
    pub drawn: f64,
    /// What its peer reports of it.
    pub reported: Option<Counts>,
    /// What it takes in a second, as its peer reports.
    pub capacity: Option<f64>,
}

impl Worth {
    /// What is configured: nothing is reported.
    #[must_use]
    pub const fn configured(weight: f64) -> Self {
        Self {
            weight,
            healthy: weight,
            drawn: weight,
            reported: None,
            capacity: None,
        }
    }
}

/// The endpoints behind a peer's gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Counts {
    /// Those that are healthy.
    pub healthy: u32,
    /// All.
    pub total: u32,
}

/// Whether an endpoint may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointStatus {
    /// Nothing is known against it, and if it is checked actively, it was found good.
    Healthy,
    /// It is checked actively and no answer decided yet: it counts as healthy.
    Unknown,
    /// Its traffic failed: it is out for a while.
    Ejected,
    /// Its active checks fail.
    Unhealthy,
    /// It is a peer's gateway, and says that nothing healthy is behind it, or has left as it said.
    Empty,
    /// So it said, and has said nothing for long.
    EmptyOnce,
    /// An operator took all traffic off it.
    Evacuated,
}

impl EndpointStatus {
    /// Whether it counts as healthy.
    #[must_use]
    pub const fn is_healthy(self) -> bool {
        matches!(self, Self::Healthy | Self::Unknown)
    }

    /// Whether traffic may be sent to it.
    #[must_use]
    pub const fn is_usable(self, too_few: bool) -> bool {
        self.is_healthy() || (too_few && self.is_last_resort())
    }

    /// Whether traffic may be sent to it where nothing is healthy: what is known against it may be
    /// over.
    #[must_use]
    pub const fn is_last_resort(self) -> bool {
        matches!(self, Self::Ejected | Self::EmptyOnce)
    }

    /// The word in logs and tables.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unknown => "unknown",
            Self::Ejected => "ejected",
            Self::Unhealthy => "unhealthy",
            Self::Empty => "empty",
            Self::EmptyOnce => "empty-once",
            Self::Evacuated => "evacuated",
        }
    }
}

impl PerCluster {
    /// How many clusters there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let full = self.chunks.len().saturating_sub(1);
        full * CHUNK + self.chunks.last().map_or(0, |chunk| chunk.len())
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The shares of one cluster.
    #[must_use]
    pub fn get(&self, ix: usize) -> Option<&ClusterShares> {
        self.shared(ix).map(|shares| &**shares)
    }

    pub(crate) fn shared(&self, ix: usize) -> Option<&Arc<ClusterShares>> {
        self.chunks.get(ix / CHUNK)?.get(ix % CHUNK)
    }

    /// Every cluster's, in order.
    pub fn iter(&self) -> impl Iterator<Item = &ClusterShares> {
        let all = self.chunks.iter().flat_map(|chunk| chunk.iter());
        all.map(|shares| &**shares)
    }

    /// Every cluster's, in order, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut ClusterShares> {
        let all = (self.chunks.iter_mut()).flat_map(|chunk| Arc::make_mut(chunk).iter_mut());
        all.map(Arc::make_mut)
    }

    /// Sets the shares of a cluster, or adds those of the one after the last.
    pub(crate) fn set(&mut self, ix: usize, shares: ClusterShares) {
        if self.get(ix).is_some_and(|known| *known == shares) {
            return;
        }
        let mut near = (ix.saturating_sub(NEAR)..ix).filter_map(|before| self.shared(before));
        let shares = match near.find(|before| ***before == shares) {
            Some(before) => Arc::clone(before),
            None => Arc::new(shares),
        };
        match self.chunks.get_mut(ix / CHUNK).map(Arc::make_mut) {
            Some(chunk) => match chunk.get_mut(ix % CHUNK) {
                Some(known) => *known = shares,
                None => {
                    debug_assert_eq!(ix % CHUNK, chunk.len(), "clusters are added in their order");
                    chunk.push(shares);
                }
            },
            None => {
                debug_assert_eq!(ix, self.len(), "clusters are added in their order");
                let mut chunk = Chunk::with_capacity(CHUNK);
                chunk.push(shares);
                self.chunks.push(Arc::new(chunk));
            }
        }
    }

    /// The clusters whose shares are others than in `before`, in order. What both have in common is
    /// not looked at.
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> impl Iterator<Item = usize> + 'a {
        let is_same = move |at: usize, chunk: &Arc<Chunk>| {
            (before.chunks.get(at)).is_some_and(|known| Arc::ptr_eq(known, chunk))
        };
        (self.chunks.iter().enumerate())
            .filter(move |(at, chunk)| !is_same(*at, chunk))
            .flat_map(|(at, chunk)| at * CHUNK..at * CHUNK + chunk.len())
            .filter(|ix| self.get(*ix) != before.get(*ix))
    }
}

impl PartialEq for PerCluster {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.changed_since(other).next().is_none()
    }
}

impl Index<usize> for PerCluster {
    type Output = ClusterShares;

    #[expect(
        clippy::indexing_slicing,
        reason = "as of a slice: the index is of the snapshot that the shares are of"
    )]
    fn index(&self, ix: usize) -> &ClusterShares {
        &self.chunks[ix / CHUNK][ix % CHUNK]
    }
}

impl<'a> IntoIterator for &'a PerCluster {
    type Item = &'a ClusterShares;
    type IntoIter = Box<dyn Iterator<Item = &'a ClusterShares> + 'a>;

    fn into_iter(self) -> Self::IntoIter {
        Box::new(self.iter())
    }
}

impl FromIterator<ClusterShares> for PerCluster {
    fn from_iter<I: IntoIterator<Item = ClusterShares>>(shares: I) -> Self {
        let mut all = Self::default();
        for (ix, shares) in shares.into_iter().enumerate() {
            all.set(ix, shares);
        }
        all
    }
}

impl Shares {
    /// The shares where nothing is known against any endpoint.
    #[must_use]
    pub fn all_healthy(snapshot: &Snapshot) -> Self {
        let of = |cluster: &Cluster| {
            let endpoints = vec![EndpointStatus::Healthy; cluster.endpoints.len()];
            let capacities: Vec<f64> = (0..cluster.levels.len())
                .map(|level| {
                    capacity(
                        healthy_share(cluster, &endpoints, &[], level),
                        &cluster.policy.failover,
                    )
                })
                .collect();
            ClusterShares::new(cluster, endpoints, Vec::new(), &capacities)
        };
        Self {
            clusters: (snapshot.clusters.iter())
                .map(|cluster| of(cluster))
                .collect(),
        }
    }
}

impl ClusterShares {
    /// The shares of a cluster whose levels can take `capacities` (c in the formula).
    #[must_use]
    pub fn new(
        cluster: &Cluster,
        endpoints: Vec<EndpointStatus>,
        worths: Vec<Worth>,
        capacities: &[f64],
    ) -> Self {
        let mut levels = spread(capacities);
        let mut too_few = false;
        if levels.iter().sum::<f64>() == 0.0 {
            match cluster.policy.failover.too_few {
                TooFew::UseAll => {
                    let nearest = (cluster.levels.iter()).position(|level| {
                        (level.members.iter()).any(|ix| status(&endpoints, *ix).is_usable(true))
                    });
                    if let Some(share) = nearest.and_then(|nearest| levels.get_mut(nearest)) {
                        *share = 1.0;
                        too_few = true;
                    }
                }
                TooFew::Fail => {}
            }
        }
        let spread = Spread::new(cluster, &endpoints, &worths).map(Arc::new);
        Self {
            levels,
            endpoints,
            spread,
            worths,
            too_few,
            motions: Vec::new(),
            parts: Vec::new(),
            seeds: seeds(cluster),
            trials: Vec::new(),
            metered: None,
        }
    }

    /// What an endpoint is picked by inside its level at this time.
    #[must_use]
    pub fn weight(&self, cluster: &Cluster, ix: EndpointIx) -> f64 {
        let drawn = self.worths.get(ix.0).map(|worth| worth.drawn);
        let weight = drawn.unwrap_or_else(|| cluster.endpoint(ix).weight);
        weight * self.parts.get(ix.0).copied().unwrap_or(1.0)
    }

    /// Whether nothing can be carried, for nothing is healthy.
    #[must_use]
    pub fn refuses(&self) -> bool {
        self.by_health().iter().all(|share| *share == 0.0)
    }

    /// The share of each level by its health alone, whatever it has room for.
    #[must_use]
    pub fn by_health(&self) -> &[f64] {
        (self.metered.as_ref()).map_or(&self.levels, |metered| &metered.by_health)
    }

    /// The share that fits nowhere.
    #[must_use]
    pub fn refused(&self) -> f64 {
        self.metered.as_ref().map_or(0.0, |metered| metered.refused)
    }

    /// Whether traffic may be sent to an endpoint.
    #[must_use]
    pub fn is_usable(&self, ix: EndpointIx) -> bool {
        status(&self.endpoints, ix).is_usable(self.too_few)
    }
}

/// What tells a cluster's endpoints from others by a key, where its policy is one of keys.
pub(crate) fn seeds(cluster: &Cluster) -> Vec<u64> {
    match cluster.policy.balance {
        Balance::RingHash(_) | Balance::Maglev(_) => (cluster.endpoints.iter())
            .map(|endpoint| key_of(endpoint.key.0.as_bytes()))
            .collect(),
        Balance::LeastRequest | Balance::PeakEwma | Balance::RoundRobin | Balance::Random => {
            Vec::new()
        }
    }
}

/// h: the healthy share of a level's weight; 0 for a level without endpoints.
#[must_use]
pub fn healthy_share(
    cluster: &Cluster,
    endpoints: &[EndpointStatus],
    worths: &[Worth],
    level: usize,
) -> f64 {
    let level = cluster.levels.get(level).into_iter();
    let members = level.flat_map(|level| &level.members);
    healthy_share_of(cluster, endpoints, worths, members)
}

fn healthy_share_of<'m>(
    cluster: &Cluster,
    endpoints: &[EndpointStatus],
    worths: &[Worth],
    members: impl Iterator<Item = &'m EndpointIx>,
) -> f64 {
    let mut healthy = 0.0;
    let mut total = 0.0;
    for ix in members {
        let configured = || Worth::configured(cluster.endpoint(*ix).weight);
        let worth = worths.get(ix.0).copied().unwrap_or_else(configured);
        total += worth.weight;
        if status(endpoints, *ix).is_healthy() {
            healthy += worth.healthy;
        }
    }
    if total > 0.0 { healthy / total } else { 0.0 }
}

/// c: the share of all traffic that a level can take when `healthy` of its weight is.
#[must_use]
pub fn capacity(healthy: f64, failover: &Failover) -> f64 {
    let Failover { start, full, .. } = *failover;
    if healthy <= full {
        0.0
    } else if healthy >= start {
        1.0
    } else {
        (healthy - full) / (start - full)
    }
}

/// Gives each level its share of the traffic, preferred first.
#[must_use]
pub fn spread(capacities: &[f64]) -> Vec<f64> {
    let mut left = 1.0;
    let mut shares: Vec<f64> = (capacities.iter())
        .map(|capacity| {
            let share = capacity.min(left);
            left -= share;
            share
        })
        .collect();
    let sum: f64 = shares.iter().sum();
    if left > 0.0 && sum > 0.0 {
        for share in &mut shares {
            *share /= sum;
        }
    }
    shares
}

fn status(endpoints: &[EndpointStatus], ix: EndpointIx) -> EndpointStatus {
    // A status that is missing is of another snapshot: better not used.
    endpoints
        .get(ix.0)
        .copied()
        .unwrap_or(EndpointStatus::Unhealthy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::cluster;
    use EndpointStatus::{Ejected as J, Healthy as H, Unhealthy as U, Unknown as N};

    fn of(levels: &[&[EndpointStatus]], change: impl FnOnce(&mut Cluster)) -> ClusterShares {
        let keys: Vec<Vec<String>> = (levels.iter().enumerate())
            .map(|(l, level)| (0..level.len()).map(|e| format!("{l}.{e}")).collect())
            .collect();
        let keys: Vec<Vec<&str>> = (keys.iter())
            .map(|level| level.iter().map(String::as_str).collect())
            .collect();
        let keys: Vec<&[&str]> = keys.iter().map(Vec::as_slice).collect();
        let mut cluster = cluster(&keys);
        change(&mut cluster);
        let endpoints = levels.concat();
        let capacities: Vec<f64> = (0..levels.len())
            .map(|level| {
                capacity(
                    healthy_share(&cluster, &endpoints, &[], level),
                    &cluster.policy.failover,
                )
            })
            .collect();
        ClusterShares::new(&cluster, endpoints, Vec::new(), &capacities)
    }

    fn close(shares: &ClusterShares, expected: &[f64]) {
        assert_eq!(shares.levels.len(), expected.len());
        for (share, expected) in shares.levels.iter().zip(expected) {
            assert!((share - expected).abs() < SHARE_EPSILON, "{shares:?}");
        }
    }

    fn shares(level: f64) -> ClusterShares {
        ClusterShares {
            levels: vec![level],
            endpoints: vec![H],
            worths: Vec::new(),
            too_few: false,
            spread: None,
            motions: Vec::new(),
            parts: Vec::new(),
            seeds: Vec::new(),
            trials: Vec::new(),
            metered: None,
        }
    }

    #[test]
    fn a_change_of_one_cluster_leaves_all_other_chunks_in_common() {
        // By hand: 2.5 chunks.
        let n = CHUNK * 5 / 2;
        let before: PerCluster = (0..n).map(|_| shares(1.0)).collect();
        assert_eq!((before.len(), before.chunks.len()), (n, 3));
        assert_eq!(before.iter().count(), n);
        let mut after = before.clone();
        after.set(CHUNK, shares(1.0));
        assert_eq!(after.changed_since(&before).count(), 0);
        after.set(CHUNK + 1, shares(0.5));
        assert_ne!(after, before);
        let changed: Vec<usize> = after.changed_since(&before).collect();
        assert_eq!(changed, [CHUNK + 1]);
        let common = |at: usize| Arc::ptr_eq(&before.chunks[at], &after.chunks[at]);
        assert_eq!([common(0), common(1), common(2)], [true, false, true]);
        assert_eq!(before[CHUNK + 1].levels, [1.0]);
        assert_eq!(after[CHUNK + 1].levels, [0.5]);
        assert_eq!(after.get(n), None);
    }

    #[test]
    fn clusters_that_are_alike_have_their_shares_in_common_and_change_alone() {
        // Two of a route, of which one has two levels, and so on.
        let of = |ix: usize| match ix % 2 {
            0 => ClusterShares {
                levels: vec![1.0, 0.0],
                ..shares(1.0)
            },
            _ => shares(1.0),
        };
        let before: PerCluster = (0..CHUNK * 2).map(of).collect();
        let common = |all: &PerCluster, a: usize, b: usize| {
            let [a, b] = [a, b].map(|ix| all.shared(ix).unwrap());
            Arc::ptr_eq(a, b)
        };
        assert!((2..CHUNK * 2).all(|ix| common(&before, ix % 2, ix)));
        let mut after = before.clone();
        after.set(4, shares(0.5));
        assert_eq!(after.changed_since(&before).collect::<Vec<_>>(), [4]);
        // Well again, it is as the others.
        after.set(4, of(4));
        assert!(common(&after, 4, 2) && after == before);
        after.iter_mut().nth(6).unwrap().too_few = true;
        assert_eq!(after.changed_since(&before).collect::<Vec<_>>(), [6]);
    }

    #[test]
    fn with_one_of_two_down_29_percent_leaves() {
        // By hand: c = 0.5 / 0.7 = 5/7; 2/7 is left for the next level.
        close(&of(&[&[H, J], &[H]], |_| {}), &[5.0 / 7.0, 2.0 / 7.0]);
        close(&of(&[&[H, N, N], &[H]], |_| {}), &[1.0, 0.0]);
        close(&of(&[&[H, H, U], &[H]], |_| {}), &[20.0 / 21.0, 1.0 / 21.0]);
    }

    #[test]
    fn what_is_left_after_the_last_level_is_shared_by_capacity() {
        // c = 0.25/0.7 and 0.125/0.7: left over, so 2 to 1.
        let shares = of(&[&[H, J, J, J], &[H, J, J, J, J, J, J, J]], |_| {});
        close(&shares, &[2.0 / 3.0, 1.0 / 3.0]);
        assert!(!shares.too_few);
    }

    #[test]
    fn full_and_start_bound_the_way_out() {
        let bounds = |start, full| {
            move |c: &mut Cluster| {
                Arc::make_mut(&mut c.policy).failover.start = start;
                Arc::make_mut(&mut c.policy).failover.full = full;
            }
        };
        close(&of(&[&[H, J], &[H]], bounds(0.0, 0.0)), &[1.0, 0.0]);
        close(&of(&[&[J, J], &[H]], bounds(0.0, 0.0)), &[0.0, 1.0]);
        close(&of(&[&[H, J], &[H]], bounds(0.9, 0.5)), &[0.0, 1.0]);
        close(&of(&[&[H, H, H, J], &[H]], bounds(1.0, 0.5)), &[0.5, 0.5]);
        close(&of(&[&[H, J], &[H]], bounds(0.5, 0.5)), &[0.0, 1.0]);
    }

    #[test]
    fn health_is_a_share_of_weight() {
        // 3 of 4 by weight is healthy: over `start`.
        close(
            &of(&[&[H, J], &[H]], |c| c.endpoints[0].weight = 3.0),
            &[1.0, 0.0],
        );
        // 1 of 4: 0.25 / 0.7.
        close(
            &of(&[&[H, J], &[H]], |c| c.endpoints[1].weight = 3.0),
            &[5.0 / 14.0, 9.0 / 14.0],
        );
    }

    #[test]
    fn too_few_uses_the_nearest_level_with_ejected_endpoints_or_refuses() {
        let shares = of(&[&[U, U], &[J, U], &[J]], |_| {});
        close(&shares, &[0.0, 1.0, 0.0]);
        assert!(shares.too_few);
        assert!(shares.is_usable(EndpointIx(2)) && !shares.is_usable(EndpointIx(3)));
        assert!(of(&[&[U], &[U]], |_| {}).refuses());
        assert!(
            of(&[&[J], &[J]], |c| Arc::make_mut(&mut c.policy)
                .failover
                .too_few = TooFew::Fail)
            .refuses()
        );
        assert!(of(&[&[], &[]], |_| {}).refuses());
    }

    #[test]
    fn a_level_without_endpoints_is_passed_over() {
        close(&of(&[&[], &[H]], |_| {}), &[0.0, 1.0]);
    }
}
