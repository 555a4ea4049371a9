//! What is measured while a simulation runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::fleet::Fleet;
use crate::shares::{ClusterShares, Shares, capacity};
use crate::snapshot::{Cluster, ClusterIx, Failover, ServiceIx, Snapshot};
use crate::time::Time;

use super::{Counts, Edge, Extreme, LevelReport, Phase, Scenario, ServiceReport, TICKS, Tick};

/// What shares may still differ by once they have settled.
const SETTLED: f64 = 0.01;
/// How long they have stayed then, or a tenth of the time until the next change of the world.
const STAYS: Duration = Duration::from_secs(5);
/// Changes of one service's shares that are kept for a phase; of more, every second one goes.
const CHANGES_MAX: usize = 4096;

/// Where requests for a service go: its cluster, or that of one part of a split.
pub(super) struct Lane {
    pub(super) service: ServiceIx,
    pub(super) cluster: ClusterIx,
    /// The part's label.
    pub(super) part: Option<Arc<str>>,
    /// Requests in a second, as the weights of parts have it.
    pub(super) rate: f64,
}

pub(super) struct Measure {
    services: Vec<Service>,
    /// The services of each cluster.
    by_cluster: BTreeMap<usize, Vec<usize>>,
    tick: Duration,
    /// What begins or ends when.
    edges: Vec<(Time, usize, Edge)>,
    /// How many of these have been.
    past: usize,
}

struct Service {
    ix: ServiceIx,
    cluster: ClusterIx,
    part: Option<Arc<str>>,
    rate: f64,
    levels: Vec<LevelReport>,
    room_min: Extreme,
    shares: Vec<f64>,
    since: Time,
    series: Vec<Tick>,
    /// Since the last edge.
    changes: Vec<(Time, Vec<f64>)>,
    open: Vec<(Time, usize, Edge)>,
    phases: Vec<Phase>,
    failover: Failover,
    /// Each level's members and their weights.
    weights: Vec<Vec<(usize, f64)>>,
}

impl Measure {
    pub(super) fn new(
        snapshot: &Snapshot,
        scenario: &Scenario,
        lanes: &[Lane],
        shares: &Shares,
    ) -> Self {
        let tick = scenario.lasts / TICKS;
        let mut by_cluster: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (nth, lane) in lanes.iter().enumerate() {
            by_cluster.entry(lane.cluster.0).or_default().push(nth);
        }
        let mut edges: Vec<(Time, usize, Edge)> = (scenario.faults.iter().enumerate())
            .flat_map(|(nth, fault)| {
                let ends = fault.to.map(|to| (to, nth, Edge::Ends));
                [Some((fault.from, nth, Edge::Begins)), ends]
                    .into_iter()
                    .flatten()
            })
            .filter(|(at, ..)| at.since_origin() < scenario.lasts)
            .collect();
        edges.sort_unstable();
        let services = (lanes.iter())
            .filter_map(|lane| {
                Some(Service::new(
                    lane,
                    snapshot,
                    shares.clusters.get(lane.cluster.0)?,
                ))
            })
            .collect();
        Self {
            services,
            by_cluster,
            tick,
            edges,
            past: 0,
        }
    }

    /// Counts what became of requests to the `nth` service.
    pub(super) fn count(&mut self, nth: usize, now: Time, counts: &Counts) {
        let tick = self.tick;
        if let Some(service) = self.services.get_mut(nth) {
            service.tick(at_tick(now, tick)).counts.add(counts);
        }
    }

    /// Notes shares that are others than `before`.
    pub(super) fn shares(&mut self, now: Time, shares: &Shares, before: &Shares) {
        let tick = self.tick;
        for cluster in shares.clusters.changed_since(&before.clusters) {
            let Some(of) = shares.clusters.get(cluster) else {
                continue;
            };
            for nth in self.by_cluster.get(&cluster).into_iter().flatten() {
                if let Some(service) = self.services.get_mut(*nth) {
                    service.spend(now, tick);
                    service.moved(now, of);
                }
            }
        }
    }

    /// Ends the phases of all services: the world changes, or ends.
    pub(super) fn edge(&mut self, now: Time, fleet: &Fleet) {
        let mut begun = Vec::new();
        while let Some(edge) = self.edges.get(self.past).filter(|(at, ..)| *at <= now) {
            begun.push(*edge);
            self.past += 1;
        }
        for service in &mut self.services {
            service.spend(now, self.tick);
            let levels = fleet.levels(service.cluster);
            let is_moving = levels.iter().any(|level| level.until.is_some());
            service.end_phases(now, is_moving);
            service.open.clone_from(&begun);
            service.changes.clear();
            service.changes.push((now, service.shares.clone()));
        }
    }

    pub(super) fn report(self) -> (Counts, Vec<ServiceReport>) {
        let mut all = Counts::default();
        let services = (self.services.into_iter())
            .map(|service| {
                let report = service.report();
                all.add(&report.counts);
                report
            })
            .collect();
        (all, services)
    }
}

impl Service {
    fn new(lane: &Lane, snapshot: &Snapshot, of: &ClusterShares) -> Self {
        let at = snapshot.cluster(lane.cluster);
        let levels = of.levels.iter().map(|share| LevelReport {
            start: *share,
            end: *share,
            min: Extreme {
                value: *share,
                at: Time::ZERO,
            },
            max: Extreme {
                value: *share,
                at: Time::ZERO,
            },
            endpoint_rate_max: 0.0,
        });
        let mut this = Self {
            ix: lane.service,
            cluster: lane.cluster,
            part: lane.part.clone(),
            rate: lane.rate,
            levels: levels.collect(),
            room_min: Extreme {
                value: f64::INFINITY,
                at: Time::ZERO,
            },
            shares: of.levels.clone(),
            since: Time::ZERO,
            series: Vec::new(),
            changes: vec![(Time::ZERO, of.levels.clone())],
            open: Vec::new(),
            phases: Vec::new(),
            failover: at.policy.failover.clone(),
            weights: weights(at),
        };
        this.look(Time::ZERO, of);
        this
    }

    fn tick(&mut self, nth: usize) -> &mut Tick {
        let levels = self.levels.len();
        while self.series.len() <= nth {
            self.series.push(Tick {
                shares: vec![0.0; levels],
                counts: Counts::default(),
            });
        }
        #[expect(clippy::indexing_slicing, reason = "it was just made as long")]
        &mut self.series[nth]
    }

    /// Adds the time until `now` to the steps that it lies in.
    fn spend(&mut self, now: Time, tick: Duration) {
        if tick.is_zero() {
            return;
        }
        let mut from = self.since;
        while from < now {
            let nth = at_tick(from, tick);
            let ends =
                Time::from_origin(tick.saturating_mul(u32::try_from(nth).unwrap_or(u32::MAX) + 1));
            let to = ends.min(now);
            let part = to.since(from).as_secs_f64() / tick.as_secs_f64();
            let shares = self.shares.clone();
            let step = self.tick(nth);
            for (mean, share) in step.shares.iter_mut().zip(&shares) {
                *mean += share * part;
            }
            if to <= from {
                break;
            }
            from = to;
        }
        self.since = now;
    }

    fn moved(&mut self, now: Time, of: &ClusterShares) {
        self.shares.clone_from(&of.levels);
        for (level, share) in self.levels.iter_mut().zip(&of.levels) {
            level.end = *share;
            if *share < level.min.value {
                level.min = Extreme {
                    value: *share,
                    at: now,
                };
            }
            if *share > level.max.value {
                level.max = Extreme {
                    value: *share,
                    at: now,
                };
            }
        }
        if self
            .changes
            .last()
            .is_none_or(|(_, before)| *before != of.levels)
        {
            if self.changes.len() >= CHANGES_MAX {
                let mut nth = 0;
                self.changes.retain(|_| {
                    nth += 1;
                    nth % 2 == 1
                });
            }
            self.changes.push((now, of.levels.clone()));
        }
        self.look(now, of);
    }

    /// Looks at the room of all levels, and at what one endpoint gets.
    fn look(&mut self, now: Time, of: &ClusterShares) {
        let is_healthy = |ix: &usize| of.endpoints.get(*ix).is_some_and(|one| one.is_healthy());
        let mut room = 0.0;
        let metered = of.metered.as_ref();
        let takes = |nth: usize| {
            let most = metered.and_then(|metered| metered.most.get(nth));
            most.map_or(f64::INFINITY, |most| most / self.rate)
        };
        let levels = self.weights.iter().zip(&mut self.levels);
        for (nth, ((weights, level), share)) in levels.zip(&of.levels).enumerate() {
            let all: f64 = weights.iter().map(|(_, weight)| weight).sum();
            let healthy: f64 = (weights.iter())
                .filter(|(ix, _)| is_healthy(ix))
                .map(|(_, weight)| weight)
                .sum();
            if all > 0.0 {
                room += capacity(healthy / all, &self.failover).min(takes(nth));
            }
            if healthy > 0.0 {
                let rate = self.rate * share / healthy;
                level.endpoint_rate_max = level.endpoint_rate_max.max(rate);
            }
        }
        if room < self.room_min.value {
            self.room_min = Extreme {
                value: room,
                at: now,
            };
        }
    }

    /// How long after the edge the shares came to where they were at the end.
    fn end_phases(&mut self, now: Time, is_moving: bool) {
        let Some((_, last)) = self.changes.last().cloned() else {
            return;
        };
        let is_off = |shares: &[f64]| {
            (shares.iter().zip(&last)).any(|(share, last)| (share - last).abs() > SETTLED)
        };
        // What came behind the last that was off.
        let arrived = self.changes.iter().rposition(|(_, shares)| is_off(shares));
        let arrived = arrived
            .and_then(|ix| self.changes.get(ix + 1))
            .map(|(at, _)| *at);
        for (at, fault, edge) in self.open.drain(..) {
            let arrived = arrived.unwrap_or(at);
            let stayed = now.since(arrived) >= STAYS.min(now.since(at) / 10);
            self.phases.push(Phase {
                at,
                fault,
                edge,
                settled_after: (stayed && !is_moving).then(|| arrived.since(at)),
            });
        }
    }

    fn report(self) -> ServiceReport {
        let mut counts = Counts::default();
        for tick in &self.series {
            counts.add(&tick.counts);
        }
        let mut series = self.series;
        series.truncate(usize::try_from(TICKS).unwrap_or(usize::MAX));
        ServiceReport {
            service: self.ix,
            cluster: self.cluster,
            part: self.part,
            counts,
            levels: self.levels,
            series,
            phases: self.phases,
            room_min: self.room_min,
        }
    }
}

fn at_tick(now: Time, tick: Duration) -> usize {
    let nth = now.since_origin().as_nanos() / tick.as_nanos().max(1);
    usize::try_from(nth)
        .unwrap_or(usize::MAX)
        .min(TICKS as usize - 1)
}

fn weights(cluster: &Cluster) -> Vec<Vec<(usize, f64)>> {
    (cluster.levels.iter())
        .map(|level| {
            let members = level.members.iter();
            members
                .map(|ix| (ix.0, cluster.endpoint(*ix).weight))
                .collect()
        })
        .collect()
}
