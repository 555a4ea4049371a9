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

mod evacuation;
mod level;
mod load;
mod reports;
mod slow;
mod trial;
mod view;
mod warming;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::balance::mix;
use crate::health::{Active, ActiveVerdict};
use crate::outlier::{Counted, EjectCause, Ejection, Outlier, count};
use crate::slow::Took;
use crate::snapshot::{
    ActiveCheck, Address, Cluster, Endpoint, EndpointKey, ErrorRate, Failback, Failure, Level,
    Service, Snapshot, Table, WhenStale,
};
use crate::time::Time;

use level::LevelState;
use load::Loads;
use reports::{Asked, Behind, Reports, asked_of};
use trial::Trials;
use warming::Warming;

pub use self::evacuation::{EVACUATIONS_MAX, Effect, Evacuation, Kept};
pub use self::reports::{STALE_AFTER, Said};
pub use crate::shares::{ClusterShares, EndpointStatus, LevelMotion, Shares};
use crate::shares::{SHARE_EPSILON, capacity, healthy_share};
pub use view::{EndpointView, LevelView};

/// The most active checks under way at once.
pub const PROBES_IN_FLIGHT_MAX: usize = 512;
/// The most events kept until they are drained; older ones are dropped and counted.
pub const EVENTS_MAX: usize = 4096;
/// How long an endpoint is out at the least where another one would take its place: as long as a
/// process needs to start.
const EXCHANGED_AFTER: Duration = Duration::from_secs(1);

/// A change of shares below this is told with the next larger one.
const SHARE_TOLD_MIN: f64 = 0.1;

/// What judges whether levels fail alike where passive checks have no error rate of their own.
const ALIKE_RATE: ErrorRate = ErrorRate {
    over: 0.5,
    requests: 20,
};

/// The outcome of one attempt at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The endpoint.
    pub key: EndpointKey,
    /// How it went.
    pub result: Result<(), Failure>,
}

/// An active check to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What [`Fleet::probed`] wants to hear.
    pub key: EndpointKey,
    /// Where to.
    pub endpoint: Endpoint,
    /// What to ask.
    pub check: ActiveCheck,
    /// How long the connection may take, TLS included.
    pub connect: Duration,
}

/// What changed, for logs, metrics and narration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FleetEvent {
    /// Traffic showed an endpoint to be bad.
    Ejected {
        /// The endpoint.
        key: EndpointKey,
        /// Why.
        cause: EjectCause,
        /// For how long.
        lasts: Duration,
    },
    /// An ejection ended.
    Readmitted {
        /// The endpoint.
        key: EndpointKey,
    },
    /// Active checks found an endpoint bad.
    Unhealthy {
        /// The endpoint.
        key: EndpointKey,
    },
    /// Active checks found an endpoint good.
    Healthy {
        /// The endpoint.
        key: EndpointKey,
    },
    /// A peer's gateway reports otherwise of what is behind it.
    Reported {
        /// The endpoint that it is.
        key: EndpointKey,
        /// The peer.
        peer: Arc<str>,
        /// What it says.
        said: Said,
        /// Whether the endpoint is of use by it and was not, or the reverse.
        turned: bool,
    },
    /// A peer's gateway has not reported for [`STALE_AFTER`].
    ReportStale {
        /// The peer.
        peer: Arc<str>,
        /// The gateway's address.
        gateway: Address,
        /// What its last report is worth.
        when_stale: WhenStale,
    },
    /// Every level of a route fails alike: the requests are at fault, and nothing is ejected.
    FailsAlike {
        /// `namespace/name` of the route.
        route: Arc<str>,
    },
    /// A level is good again and waits for a reset: `failback.mode` of its route is manual.
    WaitsForReset {
        /// `namespace/name` of the route.
        route: Arc<str>,
        /// The cluster.
        cluster: Arc<str>,
        /// The level's name.
        level: Arc<str>,
    },
    /// The shares of a cluster's levels changed.
    SharesMoved {
        /// The cluster.
        cluster: Arc<str>,
        /// `namespace/name` of its route.
        route: Arc<str>,
        /// Each level's name, its share before and after.
        levels: Vec<(Arc<str>, f64, f64)>,
        /// Whether ejected endpoints are used, for there are too few others.
        too_few: bool,
        /// Whether more follows by time alone: a hold, a wait or a ramp is under way.
        moving: bool,
    },
}

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
    /// Its endpoints in the order of their keys, in which [`Fleet::endpoints`] has them too.
    by_key: Box<[u32]>,
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

impl ClusterState {
    /// One of which nothing is known.
    fn blank(cluster: &Arc<Cluster>) -> Self {
        Self {
            cluster: Arc::clone(cluster),
            by_key: Box::default(),
            backends: Box::default(),
            asked: None,
            levels: Box::default(),
            told: None,
            wake: None,
            fails_alike: false,
        }
    }
}

/// Small, for there are many; what most endpoints never need is made when it is.
#[derive(Debug, Clone, Default)]
struct EndpointState {
    /// `None` for an ejected endpoint that the last push removed: it may come back.
    home: Option<Home>,
    /// `None` until traffic taught something.
    outlier: Option<Box<Outlier>>,
    active: Option<Box<Active>>,
    /// `None` where it is no peer's gateway, or nothing is reported that counts.
    behind: Option<Box<Behind>>,
    is_evacuated: bool,
    /// [`Endpoint::is_down`].
    is_down: bool,
}

/// Where an endpoint is judged: the cluster of its route with the most levels that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Home {
    cluster: u32,
    level: u32,
    endpoint: u32,
}

impl Home {
    fn new(cluster: usize, level: usize, endpoint: usize) -> Self {
        // Four thousand million of anything do not fit into memory.
        let small = |ix: usize| u32::try_from(ix).unwrap_or(u32::MAX);
        Self {
            cluster: small(cluster),
            level: small(level),
            endpoint: small(endpoint),
        }
    }

    const fn cluster(self) -> usize {
        self.cluster as usize
    }

    const fn level(self) -> usize {
        self.level as usize
    }

    const fn endpoint(self) -> usize {
        self.endpoint as usize
    }
}

impl Fleet {
    /// A fleet of nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

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
    fn changed_routes(
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

    fn reconcile_all(&mut self, snapshot: &Snapshot, asked: Vec<Option<Asked>>, now: Time) {
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

    /// Learns from traffic. An endpoint that is not known is none of ours any more.
    pub fn observe(&mut self, observation: &Observation, now: Time) {
        self.advance(now);
        let Some(state) = self.endpoints.get_mut(&observation.key) else {
            return;
        };
        let Some(home) = state.home else { return };
        let Some(cluster) = self.clusters.get_mut(home.cluster()) else {
            return;
        };
        let passive = &cluster.cluster.policy.passive;
        let counted = count(passive, observation.result);
        if let Some(level) = cluster.levels.get_mut(home.level()) {
            match counted {
                Counted::Good => level.window.add(false, now),
                Counted::Bad => level.window.add(true, now),
                // No request can be at fault for it.
                Counted::Unreachable | Counted::Nothing => {}
            }
        }
        if counted == Counted::Nothing {
            return;
        }
        let outlier = state.outlier.get_or_insert_default();
        let cause = outlier.record(counted, passive, now);
        if self.judge_trial(&observation.key, counted, now) {
            self.check_invariants(now);
        } else if let Some(cause) = cause {
            self.try_eject(&observation.key, home, cause, now);
            self.check_invariants(now);
        }
    }

    /// Takes so many good outcomes of attempts at one endpoint, as [`observe`](Self::observe) would one
    /// after the other; `took` is how long answers took that were measured, be they of these attempts or
    /// of others whose outcome is still to come.
    pub fn observe_successes(&mut self, key: &EndpointKey, times: u32, took: Took, now: Time) {
        self.advance(now);
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        let Some(home) = state.home else { return };
        let Some(cluster) = self.clusters.get_mut(home.cluster()) else {
            return;
        };
        if let Some(level) = cluster.levels.get_mut(home.level()) {
            level.window.add_requests(times, now);
        }
        if times > 0 {
            (state.outlier.get_or_insert_default()).succeeded(times, now);
        }
        let slow = if took.is_empty() {
            None
        } else {
            self.slow_at(home)
        };
        let counted = slow.map_or(Counted::Good, |slow| {
            self.counted_on_trial(key, home, &slow, took, now)
        });
        let is_outcome = times > 0 || counted == Counted::Bad;
        let mut is_judged = is_outcome && self.judge_trial(key, counted, now);
        if !is_judged && let Some(slow) = slow {
            self.note_took(key, took, now);
            self.judge_slow(home, &slow, now);
            is_judged = true;
        }
        if is_judged {
            self.check_invariants(now);
        }
    }

    /// Takes the answer to a [`Probe`].
    pub fn probed(&mut self, key: &EndpointKey, ok: bool, now: Time) {
        self.advance(now);
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        let (Some(home), Some(active)) = (state.home, state.active.as_mut()) else {
            return;
        };
        let Some(cluster) = self.clusters.get(home.cluster()) else {
            return;
        };
        let Some(check) = &cluster.cluster.policy.active else {
            return;
        };
        let (before, was_in_flight) = (active.wake(), active.is_in_flight());
        let was_bad = active.verdict() == ActiveVerdict::Unhealthy;
        let change = active.finished(ok, check, now);
        if was_in_flight {
            self.checks_in_flight = self.checks_in_flight.saturating_sub(1);
            self.checks.remove(&(before, key.clone()));
            self.checks.insert((active.wake(), key.clone()));
        }
        let event = match change {
            None => return,
            Some(ActiveVerdict::Unhealthy) => FleetEvent::Unhealthy { key: key.clone() },
            Some(ActiveVerdict::Healthy | ActiveVerdict::Unknown) => {
                FleetEvent::Healthy { key: key.clone() }
            }
        };
        self.tell(event);
        if change == Some(ActiveVerdict::Unhealthy) {
            self.warming.stop(key);
        } else if was_bad {
            self.start_slowly(vec![key.clone()], now);
        }
        if change == Some(ActiveVerdict::Healthy) && self.trials.contains_key(key) {
            self.try_to_readmit(key, now);
        }
        let route = cluster_route(&self.clusters, home);
        self.step_route(&route, now);
        self.check_invariants(now);
    }

    /// The active checks that are due; each is under way from here on, one for an endpoint.
    pub fn due_probes(&mut self, now: Time, draw: u64) -> Vec<Probe> {
        self.advance(now);
        let mut probes = Vec::new();
        while let Some((at, key)) = self.checks.first().cloned() {
            if at > now {
                break;
            }
            let state = self.endpoints.get_mut(&key);
            let active = state.and_then(|state| Some((state.home?, state.active.as_mut()?)));
            let found = active.and_then(|(home, active)| {
                let cluster = &self.clusters.get(home.cluster())?.cluster;
                let check = cluster.policy.active.as_ref()?;
                Some((
                    active,
                    cluster,
                    check,
                    cluster.endpoints.get(home.endpoint())?,
                ))
            });
            let Some((active, cluster, check, endpoint)) = found else {
                self.checks.pop_first();
                continue;
            };
            if active.is_in_flight() {
                // Lost: its place is free, and the next takes it.
                self.checks_in_flight = self.checks_in_flight.saturating_sub(1);
            } else if self.checks_in_flight >= PROBES_IN_FLIGHT_MAX {
                break;
            }
            self.checks.pop_first();
            let connect = cluster.connect_deadline(endpoint);
            let part = u64::try_from(probes.len()).unwrap_or(u64::MAX);
            active.started(check, connect, now, mix(draw, part));
            self.checks_in_flight += 1;
            self.checks.insert((active.wake(), key.clone()));
            probes.push(Probe {
                key,
                endpoint: endpoint.clone(),
                check: check.clone(),
                connect,
            });
        }
        probes
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
            let statuses = self.statuses_of(state);
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

    /// The status of one endpoint; `None` if it is not in the snapshot.
    #[must_use]
    pub fn status(&self, key: &EndpointKey) -> Option<EndpointStatus> {
        let state = self.endpoints.get(key)?;
        state.home.map(|_| state.status())
    }

    /// Takes what changed since the last call, oldest first.
    pub fn drain_events(&mut self) -> Vec<FleetEvent> {
        self.events.drain(..).collect()
    }

    /// How many events were dropped because nobody drained them.
    #[must_use]
    pub const fn events_dropped(&self) -> u64 {
        self.events_dropped
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

    /// Has these begin with a part of their weight, where their cluster has it so.
    fn start_slowly(&mut self, keys: Vec<EndpointKey>, now: Time) {
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
    fn step_warming(&mut self, now: Time) {
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
    fn parts(&self, cluster: &Cluster, now: Time) -> Vec<f64> {
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
    fn of_serving(
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

    /// Steps every route that time alone moves and whose next move is `due`.
    fn step_moving(&mut self, now: Time, due: impl Fn(Time) -> bool) {
        let routes: BTreeSet<Arc<str>> = (self.moves.iter())
            .take_while(|(at, _)| due(*at))
            .filter_map(|(_, ix)| self.clusters.get(*ix))
            .map(|state| state.cluster.route.clone())
            .collect();
        for route in routes {
            self.step_route(&route, now);
        }
    }

    fn try_eject(&mut self, key: &EndpointKey, home: Home, cause: EjectCause, now: Time) {
        // Requests cannot be at fault where none arrived.
        if cause != EjectCause::Unreachable && self.notice_alike(home, now) {
            self.readmit_alike(home, now);
            return;
        }
        let Some(state) = self.clusters.get(home.cluster()) else {
            return;
        };
        let eject = state.cluster.policy.passive.eject;
        if !self.has_room_to_eject(state, home, None) {
            // What is kept fails, and what is out may be back: a restart takes a second, an ejection
            // its whole time.
            let out = self.longest_ejected(&state.cluster, now);
            let Some(out) = out.filter(|out| {
                cause == EjectCause::Unreachable && self.has_room_to_eject(state, home, Some(out))
            }) else {
                return;
            };
            self.readmit(&out, now);
        }
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        let outlier = endpoint.outlier.get_or_insert_default();
        let until = outlier.eject(cause, eject, now).until;
        self.expiries.insert((until, key.clone()));
        self.warming.stop(key);
        self.tell(FleetEvent::Ejected {
            key: key.clone(),
            cause,
            lasts: until.since(now),
        });
        let route = cluster_route(&self.clusters, home);
        self.step_route(&route, now);
    }

    /// The endpoint that is ejected longest, if it is for [`EXCHANGED_AFTER`].
    fn longest_ejected(&self, cluster: &Cluster, now: Time) -> Option<EndpointKey> {
        let ejected = cluster.endpoints.iter().filter_map(|endpoint| {
            let ejection = self.endpoints.get(&endpoint.key)?.ejection()?;
            Some((ejection.since, &endpoint.key))
        });
        let (since, key) = ejected.min()?;
        (now.since(since) >= EXCHANGED_AFTER).then(|| key.clone())
    }

    /// Whether one more ejection leaves enough, in its level and in all, if `again` is taken back.
    fn has_room_to_eject(
        &self,
        state: &ClusterState,
        home: Home,
        again: Option<&EndpointKey>,
    ) -> bool {
        let cluster = &state.cluster;
        let passive = &cluster.policy.passive;
        let is_again = |ix: usize| {
            again.is_some()
                && (cluster.endpoints.get(ix)).is_some_and(|endpoint| Some(&endpoint.key) == again)
        };
        let statuses = self.statuses_of(state);
        let kept = (statuses.iter().enumerate())
            .filter(|(ix, _)| *ix != home.endpoint())
            .filter(|(ix, status)| is_again(*ix) || status.is_healthy())
            .count();
        kept >= usize::try_from(passive.keep_at_least).unwrap_or(usize::MAX)
            && (passive.max_ejected >= 1.0 || self.has_share_to_eject(cluster, home, &is_again))
    }

    /// Whether one more ejection leaves its level the share that it keeps.
    fn has_share_to_eject(
        &self,
        cluster: &Cluster,
        home: Home,
        is_again: &dyn Fn(usize) -> bool,
    ) -> bool {
        let is_out = |ix: usize| {
            let endpoint = cluster.endpoints.get(ix);
            let state = endpoint.and_then(|endpoint| self.endpoints.get(&endpoint.key));
            state.is_some_and(|state| state.ejection().is_some())
        };
        let members = cluster.levels.get(home.level()).map(|level| &level.members);
        let (mut total, mut ejected) = (0u32, 1u32);
        for member in members.into_iter().flatten() {
            total += 1;
            ejected += u32::from(is_out(member.0) && !is_again(member.0));
        }
        let max = cluster.policy.passive.max_ejected;
        f64::from(ejected) <= f64::from(total) * max + SHARE_EPSILON
    }

    /// Whether every level fails alike, which is told when it begins.
    fn notice_alike(&mut self, home: Home, now: Time) -> bool {
        let Some(state) = self.clusters.get_mut(home.cluster()) else {
            return false;
        };
        let alike = fails_alike(state, now);
        let was = std::mem::replace(&mut state.fails_alike, alike);
        if alike && !was {
            let route = state.cluster.route.clone();
            self.tell(FleetEvent::FailsAlike { route });
        }
        alike
    }

    /// Takes back what failed like everything else.
    fn readmit_alike(&mut self, home: Home, now: Time) {
        let Some(state) = self.clusters.get(home.cluster()) else {
            return;
        };
        let keys: Vec<EndpointKey> = (state.cluster.endpoints.iter())
            .filter(|endpoint| {
                (self.endpoints.get(&endpoint.key))
                    .and_then(EndpointState::ejection)
                    .is_some_and(|ejection| ejection.cause != EjectCause::Unreachable)
            })
            .map(|endpoint| endpoint.key.clone())
            .collect();
        if keys.is_empty() {
            return;
        }
        for key in keys {
            self.readmit(&key, now);
            // It was never to blame.
            self.warming.stop(&key);
            let outlier = self.endpoints.get_mut(&key);
            let outlier = outlier.and_then(|state| state.outlier.as_mut());
            outlier.into_iter().for_each(|outlier| outlier.forgive());
        }
        // What moved away moved for nothing: it does not wait for failback.
        let route = cluster_route(&self.clusters, home);
        for ix in self.routes.get(&route).into_iter().flatten() {
            if let Some(state) = self.clusters.get_mut(*ix) {
                state.levels.iter_mut().for_each(LevelState::forget_damping);
            }
        }
        self.step_route(&route, now);
    }

    fn readmit(&mut self, key: &EndpointKey, now: Time) {
        self.trials.remove(key);
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        if let Some(ejection) = state.ejection() {
            self.expiries.remove(&(ejection.until, key.clone()));
        }
        if let Some(outlier) = state.outlier.as_mut().filter(|of| of.ejection().is_some()) {
            outlier.readmit(now);
        }
        let Some(home) = state.home else {
            self.endpoints.remove(key);
            return;
        };
        self.tell(FleetEvent::Readmitted { key: key.clone() });
        self.start_slowly(vec![key.clone()], now);
        let route = cluster_route(&self.clusters, home);
        self.step_route(&route, now);
    }

    /// Moves the levels of a route's clusters by the health of their endpoints.
    fn step_route(&mut self, route: &str, now: Time) {
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
    fn least_healthy(&self, members: &[usize]) -> Vec<Vec<f64>> {
        let healthy: Vec<Vec<f64>> = (members.iter())
            .filter_map(|ix| self.clusters.get(*ix))
            .map(|state| {
                let statuses = self.statuses_of(state);
                let worths = self.worths(&state.cluster);
                (0..state.cluster.levels.len())
                    .map(|level| healthy_share(&state.cluster, &statuses, &worths, level))
                    .collect()
            })
            .collect();
        (members.iter())
            .map(|ix| least_of_ports(&self.clusters, members, &healthy, *ix))
            .collect()
    }

    /// As [`statuses`](Self::statuses), in one walk over endpoints and keys side by side: to look each
    /// key up by itself is most of what an ejection costs where there are a thousand.
    fn statuses_of(&self, state: &ClusterState) -> Vec<EndpointStatus> {
        /// Endpoints of others that are passed over before the next key is looked up.
        const PASSED_MAX: usize = 16;
        let endpoints = &state.cluster.endpoints;
        let mut statuses = vec![EndpointStatus::Healthy; endpoints.len()];
        let at = |ix: u32| usize::try_from(ix).unwrap_or(usize::MAX);
        let mut known = self.endpoints.range::<EndpointKey, _>(..).peekable();
        let mut passed = PASSED_MAX;
        for ix in &state.by_key {
            let Some(key) = endpoints.get(at(*ix)).map(|endpoint| &endpoint.key) else {
                continue;
            };
            loop {
                if passed >= PASSED_MAX {
                    known = self.endpoints.range(key..).peekable();
                    passed = 0;
                }
                match known
                    .peek()
                    .map(|(next, of)| (compare(next, key), of.status()))
                {
                    Some((Ordering::Less, _)) => {
                        known.next();
                        passed += 1;
                    }
                    Some((Ordering::Equal, status)) => {
                        if let Some(place) = statuses.get_mut(at(*ix)) {
                            *place = status;
                        }
                        passed = 0;
                        break;
                    }
                    Some((Ordering::Greater, _)) | None => break,
                }
            }
        }
        statuses
    }

    fn statuses(&self, cluster: &Cluster) -> Vec<EndpointStatus> {
        let of = |endpoint: &Endpoint| {
            (self.endpoints.get(&endpoint.key))
                .map_or(EndpointStatus::Healthy, EndpointState::status)
        };
        cluster.endpoints.iter().map(of).collect()
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
            backends: backends(cluster),
            asked,
            levels,
            told: (itself.and_then(|state| state.told.clone()))
                .filter(|told| told.levels.len() == cluster.levels.len()),
            wake: None,
            fails_alike: itself.is_some_and(|state| state.fails_alike),
        }
    }

    fn tell(&mut self, event: FleetEvent) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            self.events_dropped += 1;
        }
        self.events.push_back(event);
    }

    fn tell_shares(&mut self, ix: usize) {
        let shares = self.shares.clusters.shared(ix).map(Arc::clone);
        let (Some(state), Some(shares)) = (self.clusters.get_mut(ix), shares) else {
            return;
        };
        // A load changes all the time.
        let by_load = shares.metered.is_some();
        let moving = state.levels.iter().any(LevelState::is_moving);
        let Some(told) = &state.told else {
            state.told = Some(shares);
            return;
        };
        let most = (told.levels.iter().zip(&shares.levels))
            .map(|(before, after)| {
                // The first to leave or come, and the last, are always told.
                let turned = !by_load && (*before > 0.0) != (*after > 0.0);
                if turned { 1.0 } else { (before - after).abs() }
            })
            .fold(0.0, f64::max);
        let least = if moving || by_load {
            SHARE_TOLD_MIN
        } else {
            SHARE_EPSILON
        };
        if most < least && told.too_few == shares.too_few {
            return;
        }
        let names = state.cluster.levels.iter().map(|level| level.name.clone());
        let levels = names
            .zip(told.levels.iter().zip(&shares.levels))
            .map(|(name, (before, after))| (name, *before, *after))
            .collect();
        let event = FleetEvent::SharesMoved {
            cluster: state.cluster.name.clone(),
            route: state.cluster.route.clone(),
            levels,
            too_few: shares.too_few,
            moving,
        };
        state.told = Some(shares);
        self.tell(event);
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
            debug_assert_eq!(statuses, self.statuses_of(state));
            let worths = self.worths(&state.cluster);
            for (ix, level) in state.levels.iter().enumerate() {
                let alive = healthy_share(&state.cluster, &statuses, &worths, ix) > 0.0;
                debug_assert!((0.0..=1.0).contains(&level.damped()));
                debug_assert!(alive || level.damped() == 0.0, "a dead level keeps traffic");
            }
        }
    }
}

fn backends(cluster: &Cluster) -> Box<[Box<[Arc<str>]>]> {
    let of_level = |level: &Level| {
        let members = level.members.iter();
        let names: BTreeSet<_> = (members.map(|ix| &cluster.endpoint(*ix).backend)).collect();
        names.into_iter().cloned().collect()
    };
    cluster.levels.iter().map(of_level).collect()
}

/// The places of a cluster's endpoints, in the order of their keys.
fn by_key(cluster: &Cluster) -> Box<[u32]> {
    let mut places: Box<[u32]> = (0..).take(cluster.endpoints.len()).collect();
    let key = |place: &u32| {
        let place = usize::try_from(*place).unwrap_or(usize::MAX);
        cluster.endpoints.get(place).map(|endpoint| &endpoint.key)
    };
    places.sort_by(|a, b| key(a).cmp(&key(b)));
    places
}

/// As `cmp`, at a glance where both are one text.
fn compare(one: &EndpointKey, other: &EndpointKey) -> Ordering {
    if Arc::ptr_eq(&one.0, &other.0) {
        Ordering::Equal
    } else {
        one.cmp(other)
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

/// Whether an endpoint was not there before, and its cluster has endpoints start slowly.
fn is_new_and_slow(
    key: &EndpointKey,
    home: Home,
    before: &BTreeMap<EndpointKey, Home>,
    snapshot: &Snapshot,
) -> bool {
    let cluster = snapshot.clusters.get(home.cluster());
    cluster.is_some_and(|cluster| !cluster.policy.slow_start.is_zero()) && !before.contains_key(key)
}

/// Whether the endpoint is down by its configuration.
fn is_down(snapshot: &Snapshot, home: Home) -> bool {
    let cluster = snapshot.clusters.get(home.cluster());
    let endpoint = cluster.and_then(|cluster| cluster.endpoints.get(home.endpoint()));
    endpoint.is_some_and(|endpoint| endpoint.is_down)
}

impl EndpointState {
    /// Gives it its place, and the check that is asked there.
    fn settle(
        &mut self,
        home: Home,
        now_asked: Option<&ActiveCheck>,
        was_asked: Option<&ActiveCheck>,
        now: Time,
    ) {
        self.home = Some(home);
        match &mut self.active {
            active if now_asked.is_none() => *active = None,
            None => self.active = Some(Box::new(Active::new(now))),
            Some(active) if now_asked != was_asked => active.asked_anew(now),
            Some(_) => {}
        }
    }

    fn ejection(&self) -> Option<Ejection> {
        self.outlier.as_ref()?.ejection()
    }

    fn reports_capacity(&self) -> bool {
        self.behind
            .as_ref()
            .is_some_and(|behind| behind.reports_capacity())
    }

    fn status(&self) -> EndpointStatus {
        if self.is_evacuated {
            EndpointStatus::Evacuated
        } else {
            self.status_otherwise()
        }
    }

    /// Its status, whatever operators have decided.
    fn status_otherwise(&self) -> EndpointStatus {
        let active =
            (self.active.as_ref()).map_or(EndpointStatus::Healthy, |active| active.status());
        let empty = self.behind.as_ref().filter(|behind| behind.is_empty());
        match (active, empty, self.ejection()) {
            _ if self.is_down => EndpointStatus::Unhealthy,
            (EndpointStatus::Unhealthy, _, _) => EndpointStatus::Unhealthy,
            (_, Some(behind), _) if behind.is_stale => EndpointStatus::EmptyOnce,
            (_, Some(_), _) => EndpointStatus::Empty,
            (_, None, Some(_)) => EndpointStatus::Ejected,
            (active, None, None) => active,
        }
    }
}

impl ClusterState {
    /// Whether each level is of the same backends, as another port's is, and the parts of a split are
    /// not; a level without endpoints may be of any.
    fn is_port_of(&self, other: &Self) -> bool {
        let mut levels = self.backends.iter().zip(&other.backends);
        levels.all(|(one, other)| one.is_empty() || other.is_empty() || one == other)
    }

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
    fn waiting(&self) -> impl Iterator<Item = usize> {
        let levels = self.levels.iter().enumerate();
        (levels.filter(|(_, level)| level.is_kept())).map(|(ix, _)| ix)
    }

    /// The levels that take no more than so much until a reset: they wait for it, or are bad and will.
    fn owed(&self) -> impl Iterator<Item = (usize, f64)> {
        let is_manual = self.cluster.policy.failover.failback == Failback::Manual;
        let levels = self.levels.iter().enumerate().filter(move |_| is_manual);
        levels.filter_map(|(ix, level)| Some((ix, level.owes()?)))
    }

    fn next_move(&self, now: Time) -> Option<Time> {
        (self.levels.iter())
            .filter_map(|level| level.wake(&self.cluster.policy.failover, now))
            .min()
    }

    /// For each level of `cluster`, this one's that is likest, and how like it is.
    ///
    /// What a level is called says only where its endpoints stand: it changes with every rack that
    /// comes and goes. Most of its endpoints stay.
    fn levels_like(&self, cluster: &Cluster) -> Vec<Option<(Likeness, LevelState)>> {
        let mut level_of: BTreeMap<&EndpointKey, usize> = BTreeMap::new();
        for (at, level) in self.cluster.levels.iter().enumerate() {
            let keys = (level.members.iter()).map(|ix| &self.cluster.endpoint(*ix).key);
            level_of.extend(keys.map(|key| (key, at)));
        }
        let nth_of_name = |levels: &[Level], at: usize| {
            let name = levels.get(at).map(|level| &level.name);
            let before = levels.iter().take(at);
            before.filter(|level| Some(&level.name) == name).count()
        };
        let likest = |(at, level): (usize, &Level)| {
            let mut shared: BTreeMap<usize, usize> = BTreeMap::new();
            for ix in &level.members {
                if let Some(at) = level_of.get(&cluster.endpoint(*ix).key) {
                    *shared.entry(*at).or_default() += 1;
                }
            }
            let nth = nth_of_name(&cluster.levels, at);
            (self.cluster.levels.iter().zip(&self.levels).enumerate())
                .map(|(ix, (known, state))| {
                    let likeness = Likeness {
                        shared: shared.get(&ix).copied().unwrap_or_default(),
                        named: known.name == level.name
                            && nth_of_name(&self.cluster.levels, ix) == nth,
                    };
                    (likeness, state.clone())
                })
                .filter(|(likeness, _)| *likeness > Likeness::default())
                // Of several that are as like, the first.
                .rev()
                .max_by_key(|(likeness, _)| *likeness)
        };
        cluster.levels.iter().enumerate().map(likest).collect()
    }
}

/// How like two levels are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Likeness {
    /// How many endpoints are in both.
    shared: usize,
    /// Whether they are called the same; of several with one name, the same in order.
    named: bool,
}

/// The clusters of the snapshot before, as they are looked for.
struct Known<'a> {
    by_name: BTreeMap<&'a str, &'a ClusterState>,
    by_route: BTreeMap<&'a str, Vec<&'a ClusterState>>,
}

impl<'a> Known<'a> {
    fn new(clusters: &'a [ClusterState]) -> Self {
        let mut known = Self {
            by_name: BTreeMap::new(),
            by_route: BTreeMap::new(),
        };
        for state in clusters {
            known.by_name.entry(&state.cluster.name).or_insert(state);
            let of_route = known.by_route.entry(&state.cluster.route).or_default();
            of_route.push(state);
        }
        known
    }

    /// The states that levels of `cluster` had, those of itself first.
    fn levels_like(&self, cluster: &Cluster) -> Vec<Option<LevelState>> {
        let itself = self.by_name.get(&*cluster.name);
        let mut found = itself.map_or_else(Vec::new, |state| state.levels_like(cluster));
        found.resize(cluster.levels.len(), None);
        if found.iter().any(Option::is_none) {
            let others: Vec<_> = (self.by_route.get(&*cluster.route).into_iter().flatten())
                .map(|state| state.levels_like(cluster))
                .collect();
            for (at, found) in found
                .iter_mut()
                .enumerate()
                .filter(|(_, found)| found.is_none())
            {
                *found = (others.iter().rev())
                    .filter_map(|levels| levels.get(at).cloned().flatten())
                    .max_by_key(|(likeness, _)| *likeness);
            }
        }
        (found.into_iter())
            .map(|found| found.map(|(_, state)| state))
            .collect()
    }
}

fn cluster_route(clusters: &[ClusterState], home: Home) -> Arc<str> {
    clusters
        .get(home.cluster())
        .map_or_else(|| "".into(), |state| state.cluster.route.clone())
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

/// Whether every level of a cluster fails alike: there are several, and each is over the error
/// rate. One without enough requests counts as good.
fn fails_alike(state: &ClusterState, now: Time) -> bool {
    let rate = state
        .cluster
        .policy
        .passive
        .error_rate
        .unwrap_or(ALIKE_RATE);
    let tried = || {
        (state.cluster.levels.iter().zip(&state.levels))
            .filter(|(level, _)| !level.members.is_empty())
    };
    tried().count() >= 2 && tried().all(|(_, level)| level.window.is_over(rate, now))
}

#[cfg(test)]
#[path = "fleet/tests.rs"]
mod tests;
