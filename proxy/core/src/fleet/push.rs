//! A new snapshot: endpoints and levels are found again by what they are called, and keep what is
//! known of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::shares::{Shares, capacity, healthy_share};
use crate::snapshot::{Cluster, EndpointKey, Level, Snapshot};
use crate::time::Time;

use super::endpoint::{Home, by_key};
use super::known::Known;
use super::level::LevelState;
use super::reports::{Asked, asked_of};
use super::warming::is_new_and_slow;
use super::{ClusterState, Fleet};

impl Fleet {
    /// Takes over the endpoints and levels of `snapshot`, keeping what is known of those it knows.
    ///
    /// Where the same clusters stand in the same places, it costs what the routes that changed do.
    pub fn reconcile(&mut self, snapshot: &Snapshot, now: Time) {
        self.advance(now);
        let asked = (self.asked_as_before(snapshot)).unwrap_or_else(|| asked_of(snapshot));
        self.services = snapshot.services.clone();
        let same_peers = self.reports.are_of(snapshot);
        match (self.changed_routes(snapshot, &asked)).filter(|_| same_peers) {
            Some(routes) => {
                for route in routes {
                    self.reconcile_route(&route, snapshot, &asked, now);
                }
                self.check_invariants(now);
            }
            None => self.reconcile_all(snapshot, asked, now),
        }
    }

    /// The routes of which a cluster changed; `None` where clusters came, went or moved, or most
    /// changed.
    pub(super) fn changed_routes(
        &self,
        snapshot: &Snapshot,
        asked: &[Option<Asked>],
    ) -> Option<BTreeSet<Arc<str>>> {
        if self.clusters.len() != snapshot.clusters.len() {
            return None;
        }
        let mut changed = BTreeSet::new();
        for ((state, next), asked) in self.clusters.iter().zip(&snapshot.clusters).zip(asked) {
            let before = &state.cluster;
            if Arc::ptr_eq(before, next) && state.asked == *asked {
                continue;
            }
            if before.name != next.name || before.route != next.route {
                return None;
            }
            changed.insert(Arc::clone(&next.route));
        }
        (changed.len() <= self.routes.len() / 4).then_some(changed)
    }

    /// As [`reconcile_all`](Self::reconcile_all) for one route, whose clusters stand where they stood.
    /// Its endpoints are no other's: their keys begin with it.
    fn reconcile_route(
        &mut self,
        route: &str,
        snapshot: &Snapshot,
        asked: &[Option<Asked>],
        now: Time,
    ) {
        let members = self.routes.get(route).cloned().unwrap_or_default();
        let mut known = Vec::with_capacity(members.len());
        for ix in &members {
            let (Some(state), Some(next)) =
                (self.clusters.get_mut(*ix), snapshot.clusters.get(*ix))
            else {
                return;
            };
            if let Some(wake) = state.wake {
                self.moves.remove(&(wake, *ix));
            }
            known.push(std::mem::replace(state, ClusterState::blank(next)));
        }
        let joined = self.rehome_route(&members, &known, snapshot, now);
        self.mark_evacuated(members.iter().filter_map(|ix| snapshot.clusters.get(*ix)));
        let asked_at = |ix: usize| asked.get(ix).and_then(Option::as_ref);
        let clusters = members.iter().filter_map(|ix| {
            let cluster = snapshot.clusters.get(*ix)?;
            Some((cluster, asked_at(*ix)))
        });
        self.hear_of(clusters);
        let known = Known::new(&known);
        for ix in &members {
            if let Some(next) = snapshot.clusters.get(*ix) {
                let taken = self.take_over(next, asked_at(*ix).cloned(), &known);
                if let Some(state) = self.clusters.get_mut(*ix) {
                    *state = taken;
                }
            }
        }
        self.start_slowly(joined, now);
        self.step_route(route, now);
    }

    pub(super) fn reconcile_all(
        &mut self,
        snapshot: &Snapshot,
        asked: Vec<Option<Asked>>,
        now: Time,
    ) {
        let known = std::mem::take(&mut self.clusters);
        let mut routes: BTreeMap<Arc<str>, Vec<usize>> = BTreeMap::new();
        for (ix, cluster) in snapshot.clusters.iter().enumerate() {
            routes.entry(cluster.route.clone()).or_default().push(ix);
        }
        // Maps that are made of all at once have no gaps.
        self.routes = (routes.into_iter())
            .map(|(route, members)| (route, members.into()))
            .collect();
        let joined = self.rehome(snapshot, &known, now);
        self.mark_evacuated(snapshot.clusters.iter());
        let asked_in_order = asked.iter().map(Option::as_ref);
        self.hear_of(snapshot.clusters.iter().zip(asked_in_order));
        let known = Known::new(&known);
        self.clusters = (snapshot.clusters.iter().zip(asked))
            .map(|(cluster, asked)| self.take_over(cluster, asked, &known))
            .collect();
        self.moves.clear();
        self.loads.moved(&self.clusters);
        self.start_slowly(joined, now);
        let routes: Vec<_> = self.routes.keys().cloned().collect();
        for route in routes {
            self.step_route(&route, now);
        }
        self.shares = Shares::default();
        self.changed = (0..self.clusters.len()).collect();
        self.check_invariants(now);
    }

    /// As [`rehome`](Self::rehome) for the clusters of one route.
    fn rehome_route(
        &mut self,
        members: &[usize],
        known: &[ClusterState],
        snapshot: &Snapshot,
        now: Time,
    ) -> Vec<EndpointKey> {
        let clusters = members
            .iter()
            .filter_map(|ix| Some((*ix, snapshot.clusters.get(*ix)?)));
        let homes = homes(clusters);
        let of_before = known.iter().flat_map(|state| &state.cluster.endpoints);
        let keys: BTreeSet<EndpointKey> = (of_before.map(|endpoint| endpoint.key.clone()))
            .chain(homes.keys().cloned())
            .collect();
        let mut before = BTreeMap::new();
        for key in &keys {
            let Some(state) = self.endpoints.get_mut(key) else {
                continue;
            };
            if let Some(active) = &state.active {
                self.checks.remove(&(active.wake(), key.clone()));
                let lost = usize::from(active.is_in_flight());
                self.checks_in_flight = self.checks_in_flight.saturating_sub(lost);
            }
            if let Some(home) = state.home.take() {
                before.insert(key.clone(), home);
            }
        }
        let mut joined = Vec::new();
        for (key, home) in homes {
            if is_new_and_slow(&key, home, &before, snapshot) {
                joined.push((key.clone(), home));
            }
            let now_asked = (snapshot.clusters.get(home.cluster()))
                .and_then(|cluster| cluster.policy.active.clone());
            let was = before.get(&key).and_then(|home: &Home| {
                let at = members.iter().position(|ix| *ix == home.cluster())?;
                known.get(at)
            });
            let was_asked = was.and_then(|state| state.cluster.policy.active.clone());
            let state = self.endpoints.entry(key).or_default();
            state.settle(home, now_asked.as_ref(), was_asked.as_ref(), now);
            state.is_down = is_down(snapshot, home);
        }
        for key in keys {
            let Some(state) = self.endpoints.get_mut(&key) else {
                continue;
            };
            if state.home.is_none() {
                state.active = None;
                state.behind = None;
                if state.ejection().is_none() {
                    self.endpoints.remove(&key);
                    continue;
                }
            }
            if let Some(active) = &state.active {
                self.checks_in_flight += usize::from(active.is_in_flight());
                self.checks.insert((active.wake(), key));
            }
        }
        self.of_serving(joined, &before, snapshot)
    }

    /// Gives every endpoint of the snapshot its place and check, and forgets those that left. Returns
    /// those that joined others that serve, and are to start slowly.
    fn rehome(
        &mut self,
        snapshot: &Snapshot,
        known: &[ClusterState],
        now: Time,
    ) -> Vec<EndpointKey> {
        let homes = homes(snapshot.clusters.iter().enumerate());
        let before: BTreeMap<EndpointKey, Home> = (self.endpoints.iter_mut())
            .filter_map(|(key, state)| Some((key.clone(), state.home.take()?)))
            .collect();
        let mut joined = Vec::new();
        for (key, home) in homes {
            if is_new_and_slow(&key, home, &before, snapshot) {
                joined.push((key.clone(), home));
            }
            let asked = |cluster: &Cluster| cluster.policy.active.clone();
            let now_asked =
                (snapshot.clusters.get(home.cluster())).and_then(|cluster| asked(cluster));
            let was_asked = (before.get(&key))
                .and_then(|home| known.get(home.cluster()))
                .and_then(|state| asked(&state.cluster));
            let state = self.endpoints.entry(key).or_default();
            state.settle(home, now_asked.as_ref(), was_asked.as_ref(), now);
            state.is_down = is_down(snapshot, home);
        }
        // As above: without gaps.
        self.endpoints = (std::mem::take(&mut self.endpoints).into_iter())
            .filter(|(_, state)| state.home.is_some() || state.ejection().is_some())
            .collect();
        self.checks.clear();
        self.checks_in_flight = 0;
        for (key, state) in &mut self.endpoints {
            if state.home.is_none() {
                state.active = None;
                state.behind = None;
            }
            if let Some(active) = &state.active {
                self.checks.insert((active.wake(), key.clone()));
                self.checks_in_flight += usize::from(active.is_in_flight());
            }
        }
        self.of_serving(joined, &before, snapshot)
    }

    /// A cluster with its levels as far as they are known: from itself, else from another cluster
    /// of its route that has a level like it, for they fail over together.
    fn take_over(
        &self,
        cluster: &Arc<Cluster>,
        asked: Option<Asked>,
        known: &Known<'_>,
    ) -> ClusterState {
        let itself = known.by_name.get(&*cluster.name);
        let statuses = self.statuses(cluster);
        let worths = self.worths(cluster);
        let levels = (known.levels_like(cluster).into_iter().enumerate())
            .map(|(level, known)| {
                known.unwrap_or_else(|| {
                    let healthy = healthy_share(cluster, &statuses, &worths, level);
                    let capacity = capacity(healthy, &cluster.policy.failover);
                    if self.is_taken_off(cluster, level) {
                        LevelState::new_taken_off(capacity)
                    } else {
                        LevelState::new(capacity)
                    }
                })
            })
            .collect();
        ClusterState {
            cluster: Arc::clone(cluster),
            by_key: by_key(cluster),
            statuses: statuses.into(),
            backends: backends(cluster),
            asked,
            levels,
            told: (itself.and_then(|state| state.told.clone()))
                .filter(|told| told.levels.len() == cluster.levels.len()),
            wake: None,
            fails_alike: itself.is_some_and(|state| state.fails_alike),
        }
    }
}

impl ClusterState {
    /// One of which nothing is known.
    fn blank(cluster: &Arc<Cluster>) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            by_key: Box::default(),
            statuses: Box::default(),
            backends: Box::default(),
            asked: None,
            levels: Box::default(),
            told: None,
            wake: None,
            fails_alike: false,
        }
    }
}

/// Where each endpoint of these clusters is judged.
fn homes<'c>(
    clusters: impl Iterator<Item = (usize, &'c Arc<Cluster>)>,
) -> BTreeMap<EndpointKey, Home> {
    let mut homes: BTreeMap<EndpointKey, (Home, usize)> = BTreeMap::new();
    for (ix, cluster) in clusters {
        let width = cluster.levels.len();
        for (level, members) in cluster.levels.iter().enumerate() {
            for member in &members.members {
                let home = Home::new(ix, level, member.0);
                let key = cluster.endpoint(*member).key.clone();
                let known = homes.entry(key).or_insert((home, width));
                if known.1 < width {
                    *known = (home, width);
                }
            }
        }
    }
    (homes.into_iter())
        .map(|(key, (home, _))| (key, home))
        .collect()
}

/// Whether the endpoint is down by its configuration.
fn is_down(snapshot: &Snapshot, home: Home) -> bool {
    let cluster = snapshot.clusters.get(home.cluster());
    let endpoint = cluster.and_then(|cluster| cluster.endpoints.get(home.endpoint()));
    endpoint.is_some_and(|endpoint| endpoint.is_down)
}

fn backends(cluster: &Cluster) -> Box<[Box<[Arc<str>]>]> {
    let of_level = |level: &Level| {
        let members = level.members.iter();
        let names: BTreeSet<_> = (members.map(|ix| &cluster.endpoint(*ix).backend)).collect();
        names.into_iter().cloned().collect()
    };
    cluster.levels.iter().map(of_level).collect()
}
