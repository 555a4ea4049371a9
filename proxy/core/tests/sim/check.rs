//! What must hold, said again in the plainest words, from outside.

use std::collections::BTreeMap;
use std::time::Duration;

use zeugma_core::shares::{ClusterShares, EndpointStatus, Shares};
use zeugma_core::snapshot::{Cluster, EndpointKey, Failback, Failover, Snapshot, TooFew};
use zeugma_core::time::Time;

const EPSILON: f64 = 1e-6;

/// What a peer's gateway said last of an endpoint, where that counts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Said {
    /// Of all that stands behind it.
    pub(crate) weight: f64,
    /// Of what is healthy of that; 0 where the gateway is gone.
    pub(crate) healthy: f64,
    /// So long ago that it may be otherwise.
    pub(crate) is_old: bool,
}

/// By endpoint.
pub(crate) type Reports = BTreeMap<EndpointKey, Said>;

/// What was seen of each cluster, by name.
#[derive(Default)]
pub(crate) struct Seen {
    clusters: BTreeMap<String, History>,
    /// How often a rise was held against its ramp, for a check that never bites proves nothing.
    pub(crate) rises: u64,
    /// How often shares were compared with the bare formula.
    pub(crate) settled: u64,
}

struct History {
    shares: ClusterShares,
    capacities: Vec<f64>,
    /// Since when the capacities are what they are.
    steady_since: Time,
    /// Since when the nearest level could take more than it gets, and what it got then.
    could: Option<(Time, f64)>,
    /// Whether that began before this was looked at, or while nothing was damped.
    blind: bool,
    /// Whether the nearest level has always had room for everything.
    always_room: bool,
}

/// How the nearest level's share moved.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rise {
    /// Not up, or since when is not known.
    Nothing,
    /// Up, within its bounds.
    AsItShould,
    /// Nothing bounds it: the others cannot carry everything.
    Undamped,
}

/// What may have changed since the last look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Since {
    /// Only traffic, checks and time.
    Events,
    /// The configuration: what is compared over time starts anew.
    Push,
    /// Levels that fail alike took everything back, undamped.
    Alike,
    /// An operator's word, which is not to be waited for.
    Lever,
}

impl Seen {
    pub(crate) fn check(
        &mut self,
        (snapshot, reports): (&Snapshot, &Reports),
        shares: &Shares,
        now: Time,
        since: Since,
    ) {
        assert_eq!(snapshot.clusters.len(), shares.clusters.len());
        let mut known = std::mem::take(&mut self.clusters);
        for (ix, (cluster, of)) in snapshot.clusters.iter().zip(&shares.clusters).enumerate() {
            check_metered(snapshot, shares, ix);
            // Capacity or not: what health makes of it is as it would be.
            let of = &by_health(of);
            check_now(cluster, of);
            check_reported(cluster, of, reports);
            let capacities = route_capacities(snapshot, shares, reports, ix);
            check_emptiness(cluster, of, &capacities);
            let earlier = known
                .remove(&*cluster.name)
                .filter(|_| since == Since::Events);
            let history = match earlier {
                Some(earlier) => {
                    let judged = earlier.judge_rise(cluster, of, &capacities, now);
                    self.rises += u64::from(judged == Rise::AsItShould);
                    earlier.next(of, capacities, now, judged)
                }
                None => History::new(of, capacities, now, since),
            };
            self.settled += history.check_settled(cluster, now);
            self.clusters.insert(cluster.name.to_string(), history);
        }
    }
}

impl History {
    fn new(shares: &ClusterShares, capacities: Vec<f64>, now: Time, since: Since) -> Self {
        Self {
            shares: shares.clone(),
            always_room: since == Since::Events && capacities[0] >= 1.0,
            capacities,
            steady_since: now,
            could: None,
            blind: true,
        }
    }

    fn next(self, shares: &ClusterShares, capacities: Vec<f64>, now: Time, judged: Rise) -> Self {
        let share = shares.levels[0];
        let could = capacities[0] > share + EPSILON;
        let always_room = self.always_room && capacities[0] >= 1.0;
        // Local while it has room.
        assert!(
            !always_room || share >= 1.0 - EPSILON,
            "traffic left a level that always had room for it"
        );
        Self {
            steady_since: if capacities == self.capacities {
                self.steady_since
            } else {
                now
            },
            could: self.could.or(Some((now, share))).filter(|_| could),
            blind: could && (self.blind || judged == Rise::Undamped),
            always_room,
            shares: shares.clone(),
            capacities,
        }
    }

    /// Moving back to the nearest level is never before its time nor faster than the ramp, unless
    /// the others cannot carry what they have.
    fn judge_rise(
        &self,
        cluster: &Cluster,
        now: &ClusterShares,
        capacities: &[f64],
        at: Time,
    ) -> Rise {
        let others_fell = (capacities.iter().zip(&self.capacities).skip(1)).any(|(c, b)| c < b);
        let others_lack =
            |capacities: &[f64]| capacities.iter().skip(1).sum::<f64>() < 1.0 - EPSILON;
        // What a hold keeps on a level falls at once when the level dies.
        let others_held = (self.shares.levels.iter().zip(capacities).skip(1))
            .any(|(share, capacity)| *share > capacity + EPSILON);
        if others_fell
            || others_held
            || others_lack(capacities)
            || others_lack(&self.capacities)
            || self.shares.too_few
            || now.too_few
        {
            return Rise::Undamped;
        }
        if self.blind || now.levels[0] <= self.shares.levels[0] + EPSILON {
            return Rise::Nothing;
        }
        let (since, from) = self.could.unwrap_or((at, self.shares.levels[0]));
        let Failover {
            failback_after: after,
            failback_ramp: ramp,
            failback,
            ..
        } = cluster.policy.failover;
        assert!(
            failback == Failback::Auto,
            "{}: came back without a reset",
            cluster.name
        );
        let waited = at.since(since);
        assert!(
            waited >= after,
            "{}: came back after {waited:?}",
            cluster.name
        );
        if ramp > Duration::ZERO {
            let most = from + (waited - after).as_secs_f64() / ramp.as_secs_f64();
            let share = now.levels[0];
            assert!(
                share <= most + EPSILON,
                "{}: {share}, not {most}",
                cluster.name
            );
        }
        Rise::AsItShould
    }

    /// Once nothing changed for longer than hold, failback and ramp, the bare formula applies.
    fn check_settled(&self, cluster: &Cluster, now: Time) -> u64 {
        let Failover {
            hold,
            failback_after,
            failback_ramp,
            failback,
            ..
        } = cluster.policy.failover;
        if failback == Failback::Manual {
            return 0;
        }
        let longest = hold.max(failback_after + failback_ramp) + Duration::from_secs(3);
        if now.since(self.steady_since) < longest || self.shares.too_few {
            return 0;
        }
        let expected = formula(&self.capacities);
        for (share, expected) in self.shares.levels.iter().zip(&expected) {
            assert!(
                (share - expected).abs() < EPSILON,
                "{}: {:?}, not {expected:?}",
                cluster.name,
                self.shares.levels
            );
        }
        1
    }
}

fn check_now(cluster: &Cluster, of: &ClusterShares) {
    let sum: f64 = of.levels.iter().sum();
    let name = &cluster.name;
    assert_eq!(of.levels.len(), cluster.levels.len());
    assert!(
        of.levels
            .iter()
            .all(|share| (0.0..=1.0 + EPSILON).contains(share)),
        "{name}"
    );
    assert!(
        sum == 0.0 || (sum - 1.0).abs() < EPSILON,
        "{name}: {:?}",
        of.levels
    );
    for (level, share) in cluster.levels.iter().zip(&of.levels) {
        let healthy = level
            .members
            .iter()
            .any(|ix| of.endpoints[ix.0].is_healthy());
        assert!(
            *share == 0.0 || healthy || of.too_few,
            "{name}: {} is dead",
            level.name
        );
    }
}

/// The same shares as if every backend took anything.
fn by_health(of: &ClusterShares) -> ClusterShares {
    ClusterShares {
        levels: of.by_health().to_vec(),
        metered: None,
        ..of.clone()
    }
}

/// What fits nowhere is a share too; no level is meant to take more than it has room for, nor a
/// backend from all clusters of its route together; and what is refused found room nowhere.
fn check_metered(snapshot: &Snapshot, shares: &Shares, ix: usize) {
    let (cluster, of) = (&snapshot.clusters[ix], &shares.clusters[ix]);
    let has_capacity = cluster.endpoints.iter().any(|one| one.capacity.is_some());
    assert_eq!(of.metered.is_some(), has_capacity, "{}", cluster.name);
    let Some(metered) = &of.metered else {
        return;
    };
    let name = &cluster.name;
    let sum: f64 = of.levels.iter().sum::<f64>() + metered.refused;
    let healthy: f64 = metered.by_health.iter().sum();
    assert!((sum - healthy).abs() < EPSILON, "{name}: {metered:?}");
    assert!(metered.excess.iter().sum::<f64>() <= 1.0 + EPSILON);
    for (level, share) in of.levels.iter().enumerate() {
        let sent = share * metered.load;
        assert!(sent <= metered.most[level] + EPSILON, "{name}: {metered:?}");
        let is_full = metered.load > 0.0 || metered.refused == 0.0;
        assert!(
            is_full,
            "{name}: nothing is offered, and some of it refused"
        );
    }
    // One backend is one level here.
    for (level, of_level) in cluster.levels.iter().enumerate() {
        let all: f64 = (snapshot.clusters.iter().zip(&shares.clusters))
            .filter(|(other, _)| other.route == cluster.route)
            .filter_map(|(other, of)| {
                let metered = of.metered.as_ref()?;
                let mut levels = other.levels.iter();
                let at = levels.position(|one| one.name == of_level.name)?;
                let part = of.levels[at] * metered.load / metered.most[at];
                (metered.most[at] > 0.0).then_some(part)
            })
            .sum();
        assert!(
            all <= 1.0 + EPSILON,
            "{name}: level {level} is meant to take {all}"
        );
    }
}

/// An endpoint is worth what its peer said, and of no use where that was nothing.
fn check_reported(cluster: &Cluster, of: &ClusterShares, reports: &Reports) {
    for (ix, endpoint) in cluster.endpoints.iter().enumerate() {
        let (status, key) = (of.endpoints[ix], &endpoint.key);
        let worth = (of.worths.get(ix)).map_or((endpoint.weight, endpoint.weight), |worth| {
            (worth.weight, worth.healthy)
        });
        let said = reports.get(key);
        let expected = said.map_or((1.0, 1.0), |said| (said.weight, said.healthy));
        let close = |a: f64, b: f64| (a - b * endpoint.weight).abs() < EPSILON;
        assert!(
            close(worth.0, expected.0) && close(worth.1, expected.1),
            "{key}: {worth:?}, not {expected:?}"
        );
        let expected = match said.filter(|said| said.healthy == 0.0) {
            _ if status == EndpointStatus::Evacuated => EndpointStatus::Evacuated,
            _ if status == EndpointStatus::Unhealthy => EndpointStatus::Unhealthy,
            Some(said) if said.is_old => EndpointStatus::EmptyOnce,
            Some(_) => EndpointStatus::Empty,
            None => {
                let is_empty = [EndpointStatus::Empty, EndpointStatus::EmptyOnce].contains(&status);
                assert!(!is_empty, "{key}: nobody said so");
                status
            }
        };
        assert_eq!(status, expected, "{key}");
    }
}

/// Everything is refused, or ejected endpoints are used, only where the formula has no other way.
fn check_emptiness(cluster: &Cluster, of: &ClusterShares, capacities: &[f64]) {
    let nothing = capacities.iter().all(|capacity| *capacity == 0.0);
    let last_resort = cluster.policy.failover.too_few == TooFew::UseAll
        && (of.endpoints.iter()).any(|status| status.is_healthy() || status.is_last_resort());
    // A hold keeps what is healthy in use for a while, though it is too little.
    let held = cluster.policy.failover.hold > Duration::ZERO && !of.too_few && !of.refuses();
    let nothing = nothing && !held;
    assert_eq!(of.too_few, nothing && last_resort, "{}", cluster.name);
    assert_eq!(of.refuses(), nothing && !last_resort, "{}", cluster.name);
}

/// c of each level: over all clusters of the route that have the same levels, the least healthy
/// share counts.
fn route_capacities(
    snapshot: &Snapshot,
    shares: &Shares,
    reports: &Reports,
    ix: usize,
) -> Vec<f64> {
    let cluster = &snapshot.clusters[ix];
    let names = |other: &Cluster| {
        let names = other.levels.iter().map(|level| &level.name);
        names.eq(cluster.levels.iter().map(|level| &level.name))
    };
    let alike = (snapshot.clusters.iter().zip(&shares.clusters))
        .filter(|(other, _)| other.route == cluster.route && names(other));
    let mut least = vec![1.0f64; cluster.levels.len()];
    for (other, of) in alike {
        for (level, least) in other.levels.iter().zip(&mut least) {
            let weight = |healthy_only: bool| -> f64 {
                (level.members.iter())
                    .filter(|member| !healthy_only || of.endpoints[member.0].is_healthy())
                    .map(|member| {
                        let endpoint = &other.endpoints[member.0];
                        let said = reports.get(&endpoint.key);
                        let part = |said: &Said| {
                            if healthy_only {
                                said.healthy
                            } else {
                                said.weight
                            }
                        };
                        endpoint.weight * said.map_or(1.0, part)
                    })
                    .sum()
            };
            let all = weight(false);
            *least = least.min(if all > 0.0 { weight(true) / all } else { 0.0 });
        }
    }
    let Failover { start, full, .. } = cluster.policy.failover;
    (least.into_iter())
        .map(|h| match h {
            h if h <= full => 0.0,
            h if h >= start => 1.0,
            h => (h - full) / (start - full),
        })
        .collect()
}

fn formula(capacities: &[f64]) -> Vec<f64> {
    let mut shares = Vec::new();
    for capacity in capacities {
        let left = 1.0 - shares.iter().sum::<f64>();
        shares.push(f64::min(left, *capacity));
    }
    let sum: f64 = capacities.iter().sum();
    if sum > 0.0 && sum < 1.0 {
        shares = capacities.iter().map(|capacity| capacity / sum).collect();
    }
    shares
}
