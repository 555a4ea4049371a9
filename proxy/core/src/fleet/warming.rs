//! Endpoints that start slowly: for a while they are given less than their weight.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::snapshot::{Cluster, Endpoint, EndpointKey, Snapshot};
use crate::time::Time;

use super::endpoint::Home;
use super::{Fleet, cluster_route};

/// What an endpoint is given of its weight at the least (Envoy's `min_weight_percent`).
pub(super) const LEAST: f64 = 0.1;

/// In so many steps an endpoint comes to its weight.
const STEPS: u32 = 32;
/// No step is shorter.
const STEP_MIN: Duration = Duration::from_millis(50);

/// The endpoints that start slowly, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Warming {
    since: BTreeMap<EndpointKey, Time>,
    /// When one of them is given more.
    wake: Option<Time>,
}

impl Warming {
    /// Has an endpoint start; it comes to its weight after `lasts`.
    pub(super) fn start(&mut self, key: EndpointKey, lasts: Duration, now: Time) {
        self.since.insert(key, now);
        self.wake_after(lasts, now);
    }

    /// Has an endpoint start no longer: it is out, or it is at its weight.
    pub(super) fn stop(&mut self, key: &EndpointKey) {
        self.since.remove(key);
        if self.since.is_empty() {
            self.wake = None;
        }
    }

    /// Forgets those that are not there any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&EndpointKey) -> bool) {
        self.since.retain(|key, _| is_there(key));
        if self.since.is_empty() {
            self.wake = None;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    pub(super) const fn wake(&self) -> Option<Time> {
        self.wake
    }

    /// Lets time pass; `lasts` is how long the start of an endpoint takes, `None` if it is gone.
    /// Returns those that are given more from here on.
    pub(super) fn step(
        &mut self,
        now: Time,
        lasts: impl Fn(&EndpointKey) -> Option<Duration>,
    ) -> Vec<EndpointKey> {
        if self.wake.is_none_or(|wake| wake > now) {
            return Vec::new();
        }
        self.wake = None;
        let moved = self.since.keys().cloned().collect();
        let mut next = None;
        self.since.retain(|key, since| {
            let left = lasts(key).filter(|lasts| now.since(*since) < *lasts);
            next = [next, left].into_iter().flatten().min();
            left.is_some()
        });
        if let Some(lasts) = next {
            self.wake_after(lasts, now);
        }
        moved
    }

    /// What part of its weight an endpoint is given, whose start takes `lasts`: Envoy's formula with
    /// `aggression` 1.
    pub(super) fn part(&self, key: &EndpointKey, lasts: Duration, now: Time) -> f64 {
        match self.since.get(key) {
            Some(since) if !lasts.is_zero() => {
                let part = now.since(*since).as_secs_f64() / lasts.as_secs_f64();
                part.clamp(LEAST, 1.0)
            }
            _ => 1.0,
        }
    }

    fn wake_after(&mut self, lasts: Duration, now: Time) {
        let next = now + (lasts / STEPS).max(STEP_MIN);
        self.wake = Some(self.wake.map_or(next, |wake| wake.min(next)));
    }
}

impl Fleet {
    /// Has these begin with a part of their weight, where their cluster has it so.
    pub(super) fn start_slowly(&mut self, keys: Vec<EndpointKey>, now: Time) {
        let endpoints = &self.endpoints;
        (self.warming).retain(|key| endpoints.get(key).is_some_and(|state| state.home.is_some()));
        for key in keys {
            let Some(home) = self.endpoints.get(&key).and_then(|state| state.home) else {
                continue;
            };
            let cluster = self.clusters.get(home.cluster());
            let lasts = cluster.map(|state| state.cluster.policy.slow_start);
            if let Some(lasts) = lasts.filter(|lasts| !lasts.is_zero()) {
                self.warming.start(key, lasts, now);
                let route = cluster_route(&self.clusters, home);
                let members = self.routes.get(&route).into_iter().flatten();
                self.changed.extend(members);
            }
        }
    }

    /// Gives more to those that started slowly.
    pub(super) fn step_warming(&mut self, now: Time) {
        let (endpoints, clusters) = (&self.endpoints, &self.clusters);
        let home = |key: &EndpointKey| endpoints.get(key)?.home;
        let moved = self.warming.step(now, |key| {
            let state = clusters.get(home(key)?.cluster())?;
            Some(state.cluster.policy.slow_start)
        });
        for home in moved.iter().filter_map(home) {
            let route = cluster_route(clusters, home);
            let members = self.routes.get(&route).into_iter().flatten();
            self.changed.extend(members);
        }
    }

    /// What part of its weight each endpoint of a cluster is given; empty: all of it.
    pub(super) fn parts(&self, cluster: &Cluster, now: Time) -> Vec<f64> {
        let lasts = cluster.policy.slow_start;
        if self.warming.is_empty() || lasts.is_zero() {
            return Vec::new();
        }
        let part = |endpoint: &Endpoint| self.warming.part(&endpoint.key, lasts, now);
        let parts: Vec<f64> = cluster.endpoints.iter().map(part).collect();
        if parts.iter().all(|part| *part >= 1.0) {
            return Vec::new();
        }
        parts
    }

    /// Of these that are new, those of a level that serves: another one in it was there before, and
    /// is healthy.
    pub(super) fn of_serving(
        &self,
        joined: Vec<(EndpointKey, Home)>,
        before: &BTreeMap<EndpointKey, Home>,
        snapshot: &Snapshot,
    ) -> Vec<EndpointKey> {
        let serves = |cluster: &Cluster, home: Home| {
            let members = cluster.levels.get(home.level()).map(|level| &level.members);
            members.into_iter().flatten().any(|ix| {
                let key = &cluster.endpoint(*ix).key;
                let state = self.endpoints.get(key);
                before.contains_key(key) && state.is_some_and(|state| state.status().is_healthy())
            })
        };
        (joined.into_iter())
            .filter(|(_, home)| {
                (snapshot.clusters.get(home.cluster()))
                    .is_some_and(|cluster| serves(cluster, *home))
            })
            .map(|(key, _)| key)
            .collect()
    }
}

/// Whether an endpoint was not there before, and its cluster has endpoints start slowly.
pub(super) fn is_new_and_slow(
    key: &EndpointKey,
    home: Home,
    before: &BTreeMap<EndpointKey, Home>,
    snapshot: &Snapshot,
) -> bool {
    let cluster = snapshot.clusters.get(home.cluster());
    cluster.is_some_and(|cluster| !cluster.policy.slow_start.is_zero()) && !before.contains_key(key)
}
