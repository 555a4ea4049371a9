//! The health of every endpoint, and what follows from it for the traffic of every level.
//!
//! ```text
//!   observe (traffic) ----> Outlier: ejected, readmitted ---.
//!   probed (active) ------> Active: unhealthy, healthy -----+--> h, c of each level (shares.rs)
//!   report (a peer) ------> Behind: weight, healthy share --+         |
//!   evacuate (a person) --> is_evacuated -------------------+         |
//!   reconcile (a push) ---> endpoints and levels by key ----'         |
//!                                                                     v
//!   time (next_wake) ---------------------------------> d: hold, failback, ramp (level.rs)
//!                                                                     |
//!                                                       shares() <----' if sum of d >= 1, else c
//! ```
//!
//! State is kept by what an endpoint and a level are called, never by where they stand in a
//! snapshot: a push forgets no ejection, hold or ramp. One thread owns a fleet; time is given to
//! it, and it says in [`Fleet::next_wake`] when time alone will change something.
//!
//! What is learnt of an endpoint: `passive` and `slow` (traffic), `checks`, `reports`, `evacuation`;
//! `endpoint` is what that amounts to. `eject` puts one out, within limits and unless all fails
//! `alike`; `trial` lets it in again, and `warming` has it begin with less. `push` takes over a
//! snapshot, with the levels that are `known`; `route` moves levels, each as `level` has it; `load` is
//! what backends have room for. `event` tells of it, `view` shows it.

mod alike;
mod checks;
mod eject;
mod endpoint;
mod evacuation;
mod event;
mod known;
mod level;
mod load;
mod passive;
mod push;
mod reports;
mod route;
mod slow;
mod trial;
mod view;
mod warming;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use crate::shares::healthy_share;
use crate::snapshot::{Cluster, EndpointKey, Service, Table};
use crate::time::Time;

use endpoint::{EndpointState, Home};
use level::LevelState;
use load::Loads;
use reports::{Asked, Reports};
use trial::Trials;
use warming::Warming;

pub use self::checks::{PROBES_IN_FLIGHT_MAX, Probe};
pub use self::evacuation::{EVACUATIONS_MAX, Effect, Evacuation, Kept};
pub use self::event::{EVENTS_MAX, FleetEvent};
pub use self::passive::Observation;
pub use self::reports::{STALE_AFTER, Said};
pub use crate::shares::{ClusterShares, EndpointStatus, LevelMotion, Shares};
pub use view::{EndpointView, LevelView};

/// The health of every endpoint of one gateway.
#[derive(Debug, Clone, Default)]
pub struct Fleet {
    /// As in the snapshot last reconciled.
    clusters: Vec<ClusterState>,
    endpoints: BTreeMap<EndpointKey, EndpointState>,
    /// The clusters of each route, which share endpoints and fail over together.
    routes: BTreeMap<Arc<str>, Box<[usize]>>,
    services: Table<Service>,
    /// When ejections end, and trials.
    expiries: BTreeSet<(Time, EndpointKey)>,
    /// When active checks are due or lost.
    checks: BTreeSet<(Time, EndpointKey)>,
    checks_in_flight: usize,
    trials: Trials,
    /// When time alone moves a cluster's levels.
    moves: BTreeSet<(Time, usize)>,
    reports: Reports,
    /// What operators took traffic off.
    evacuations: BTreeSet<Evacuation>,
    /// Whether what [`Fleet::kept`] says has changed.
    kept_changed: bool,
    warming: Warming,
    loads: Loads,
    /// As of the last [`Fleet::shares`].
    shares: Shares,
    /// The clusters whose shares or statuses may have changed since.
    changed: BTreeSet<usize>,
    events: VecDeque<FleetEvent>,
    events_dropped: u64,
}

#[derive(Debug, Clone)]
struct ClusterState {
    cluster: Arc<Cluster>,
    /// Its endpoints in the order of their keys.
    by_key: Box<[u32]>,
    /// What each of its endpoints is at this moment; whatever changes one of them says so by
    /// [`Fleet::restate`], for to ask all is most of what an ejection costs where there are a thousand.
    statuses: Box<[EndpointStatus]>,
    /// The names of each level's backends, in their order, each once.
    backends: Box<[Box<[Arc<str>]>]>,
    /// `None` where no peer is asked.
    asked: Option<Asked>,
    levels: Box<[LevelState]>,
    /// The shares last told by an event.
    told: Option<Arc<ClusterShares>>,
    wake: Option<Time>,
    fails_alike: bool,
}

impl Fleet {
    /// A fleet of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// When time alone changes something next; call [`Fleet::due_probes`] then, and
    /// [`Fleet::shares`] if [`Fleet::has_changed`].
    #[must_use]
    pub fn next_wake(&self) -> Option<Time> {
        let check = match self.checks.first() {
            // With every place taken the first that is due waits for an answer.
            Some((at, key)) if self.checks_in_flight >= PROBES_IN_FLIGHT_MAX => (self.endpoints)
                .get(key)
                .and_then(|state| state.active.as_ref())
                .filter(|active| active.is_in_flight())
                .map(|_| *at),
            first => first.map(|(at, _)| *at),
        };
        let expiry = self.expiries.first().map(|(at, _)| *at);
        let moved = self.moves.first().map(|(at, _)| *at);
        let stale = self.reports.next_stale();
        let warmer = self.warming.wake();
        let measured = self.loads.wake();
        [check, expiry, moved, stale, warmer, measured]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the shares or an endpoint's status may have changed since [`Fleet::shares`].
    #[must_use]
    pub fn has_changed(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether time alone is moving some cluster's shares: a hold, a wait or a ramp is under way.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        !self.moves.is_empty()
    }

    /// What every level takes and every endpoint is worth, for the snapshot last reconciled. Only
    /// what changed is computed; the rest is in common with the shares before.
    pub fn shares(&mut self, now: Time) -> Shares {
        self.advance(now);
        // A ramp is asked for where it is at this moment, not where its last step left it.
        self.step_moving(now, |_| true);
        let changed = std::mem::take(&mut self.changed);
        let mut known = load::Rooms::default();
        for ix in changed {
            let Some(state) = self.clusters.get(ix) else {
                continue;
            };
            let damped: Vec<f64> = state.levels.iter().map(LevelState::damped).collect();
            let statuses = state.statuses.to_vec();
            let worths = self.worths(&state.cluster);
            let mut shares = ClusterShares::new(&state.cluster, statuses, worths, &damped);
            shares.parts = self.parts(&state.cluster, now);
            shares.trials = self.trials_of(&state.cluster);
            let motions = state.levels.iter().map(LevelState::motion);
            if motions.clone().any(|motion| motion != LevelMotion::Settled) {
                shares.motions = motions.collect();
            }
            self.meter(ix, &mut shares, &mut known, now);
            self.shares.clusters.set(ix, shares);
            self.tell_shares(ix);
        }
        self.shares.clone()
    }

    /// Lets time pass: ejections end, holds run out, ramps go on.
    fn advance(&mut self, now: Time) {
        while let Some((at, key)) = self.expiries.first().cloned() {
            if at > now {
                break;
            }
            self.try_to_readmit(&key, now);
        }
        self.grow_stale(now);
        self.step_moving(now, |at| at <= now);
        self.step_warming(now);
        self.measure(now);
    }

    /// What is true between any two calls.
    fn check_invariants(&self, now: Time) {
        if !cfg!(debug_assertions) {
            return;
        }
        for (key, state) in &self.endpoints {
            let ejection = state.ejection();
            debug_assert!(
                state.home.is_some() || ejection.is_some(),
                "{key} is kept for nothing"
            );
            if let Some(ejection) = ejection {
                debug_assert!(ejection.until > now, "{key} is out for too long");
                debug_assert!(self.expiries.contains(&(ejection.until, key.clone())));
            }
            if let Some(active) = &state.active {
                debug_assert!(self.checks.contains(&(active.wake(), key.clone())));
            }
        }
        let out = (self.endpoints.values()).filter(|state| state.ejection().is_some());
        debug_assert_eq!(out.count(), self.expiries.len());
        for state in &self.clusters {
            debug_assert_eq!(state.levels.len(), state.cluster.levels.len());
            let statuses = self.statuses(&state.cluster);
            debug_assert_eq!(statuses, *state.statuses, "{}", state.cluster.name);
            let worths = self.worths(&state.cluster);
            for (ix, level) in state.levels.iter().enumerate() {
                let alive = healthy_share(&state.cluster, &statuses, &worths, ix) > 0.0;
                debug_assert!((0.0..=1.0).contains(&level.damped()));
                debug_assert!(alive || level.damped() == 0.0, "a dead level keeps traffic");
            }
        }
    }
}

fn cluster_route(clusters: &[ClusterState], home: Home) -> Arc<str> {
    clusters
        .get(home.cluster())
        .map_or_else(|| "".into(), |state| state.cluster.route.clone())
}

#[cfg(test)]
mod tests;
