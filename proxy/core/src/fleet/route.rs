//! The levels of a route's clusters, which fail over together: what share each could take by its
//! endpoints, and how it comes to that in time.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::shares::{SHARE_EPSILON, capacity, healthy_share};
use crate::snapshot::Failback;
use crate::time::Time;

use super::level::LevelState;
use super::{ClusterState, Fleet, FleetEvent};

impl Fleet {
    /// Steps every route that time alone moves and whose next move is `due`.
    pub(super) fn step_moving(&mut self, now: Time, due: impl Fn(Time) -> bool) {
        let routes: BTreeSet<Arc<str>> = (self.moves.iter())
            .take_while(|(at, _)| due(*at))
            .filter_map(|(_, ix)| self.clusters.get(*ix))
            .map(|state| state.cluster.route.clone())
            .collect();
        for route in routes {
            self.step_route(&route, now);
        }
    }

    /// Moves the levels of a route's clusters by the health of their endpoints.
    pub(super) fn step_route(&mut self, route: &str, now: Time) {
        let members = self.routes.get(route).cloned().unwrap_or_default();
        let least = self.least_healthy(&members);
        for (ix, least) in members.iter().zip(least) {
            let taken_off = self.taken_off(*ix);
            let Some(state) = self.clusters.get_mut(*ix) else {
                continue;
            };
            let (before, owed): (Vec<usize>, Vec<_>) =
                (state.waiting().collect(), state.owed().collect());
            for (nth, level) in state.levels.iter_mut().enumerate() {
                level.is_taken_off(taken_off.contains(&nth));
            }
            state.step(&least, now);
            self.kept_changed |= !state.owed().eq(owed);
            let mut told = Vec::new();
            if !state.waiting().eq(before.iter().copied()) {
                let names = (state.waiting().filter(|ix| !before.contains(ix)))
                    .filter_map(|ix| state.cluster.levels.get(ix));
                told.extend(names.map(|level| FleetEvent::WaitsForReset {
                    route: Arc::clone(&state.cluster.route),
                    cluster: Arc::clone(&state.cluster.name),
                    level: Arc::clone(&level.name),
                }));
            }
            if let Some(wake) = state.wake.take() {
                self.moves.remove(&(wake, *ix));
            }
            state.wake = state.next_move(now);
            if let Some(wake) = state.wake {
                self.moves.insert((wake, *ix));
            }
            told.into_iter().for_each(|event| self.tell(event));
        }
        self.changed.extend(members);
    }

    /// h of each level of the clusters of one route.
    pub(super) fn least_healthy(&self, members: &[usize]) -> Vec<Vec<f64>> {
        let healthy: Vec<Vec<f64>> = (members.iter())
            .filter_map(|ix| self.clusters.get(*ix))
            .map(|state| {
                let worths = self.worths(&state.cluster);
                (0..state.cluster.levels.len())
                    .map(|level| healthy_share(&state.cluster, &state.statuses, &worths, level))
                    .collect()
            })
            .collect();
        (members.iter())
            .map(|ix| least_of_ports(&self.clusters, members, &healthy, *ix))
            .collect()
    }
}

impl ClusterState {
    fn step(&mut self, healthy: &[f64], now: Time) {
        let failover = &self.cluster.policy.failover;
        for (level, healthy) in self.levels.iter_mut().zip(healthy) {
            level.step(capacity(*healthy, failover), *healthy > 0.0, failover, now);
        }
        let damped: f64 = self.levels.iter().map(LevelState::damped).sum();
        let mut missing = 1.0 - damped;
        if failover.failback == Failback::Manual {
            // Nobody decides that traffic is refused: no more than what is missing comes back.
            for (level, healthy) in self.levels.iter_mut().zip(healthy) {
                missing -= level.lend(capacity(*healthy, failover), missing.max(0.0));
            }
        }
        if missing > SHARE_EPSILON {
            for (level, healthy) in self.levels.iter_mut().zip(healthy) {
                level.undamp(capacity(*healthy, failover));
            }
        }
    }

    /// The levels that wait for a reset.
    pub(super) fn waiting(&self) -> impl Iterator<Item = usize> {
        let levels = self.levels.iter().enumerate();
        (levels.filter(|(_, level)| level.is_kept())).map(|(ix, _)| ix)
    }

    /// The levels that take no more than so much until a reset: they wait for it, or are bad and will.
    pub(super) fn owed(&self) -> impl Iterator<Item = (usize, f64)> {
        let is_manual = self.cluster.policy.failover.failback == Failback::Manual;
        let levels = self.levels.iter().enumerate().filter(move |_| is_manual);
        levels.filter_map(|(ix, level)| Some((ix, level.owes()?)))
    }

    fn next_move(&self, now: Time) -> Option<Time> {
        (self.levels.iter())
            .filter_map(|level| level.wake(&self.cluster.policy.failover, now))
            .min()
    }

    /// Whether each level is of the same backends, as another port's is, and the parts of a split are
    /// not; a level without endpoints may be of any.
    fn is_port_of(&self, other: &Self) -> bool {
        let mut levels = self.backends.iter().zip(&other.backends);
        levels.all(|(one, other)| one.is_empty() || other.is_empty() || one == other)
    }
}

/// h of each level of a cluster: over the ports of its route, which have the same levels of the same
/// backends, the least.
fn least_of_ports(
    clusters: &[ClusterState],
    members: &[usize],
    healthy: &[Vec<f64>],
    ix: usize,
) -> Vec<f64> {
    let names = |ix: usize| {
        let levels = clusters.get(ix).map(|state| &state.cluster.levels);
        levels.into_iter().flatten().map(|level| &level.name)
    };
    let mut least: Vec<f64> = Vec::new();
    for (other, healthy) in members.iter().zip(healthy) {
        let is_port = (clusters.get(*other).zip(clusters.get(ix)))
            .is_some_and(|(other, this)| other.is_port_of(this));
        if !is_port || !names(*other).eq(names(ix)) {
            continue;
        }
        if least.is_empty() {
            least.clone_from(healthy);
        }
        for (least, healthy) in least.iter_mut().zip(healthy) {
            *least = least.min(*healthy);
        }
    }
    least
}
