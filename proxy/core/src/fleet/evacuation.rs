//! What an operator decides: traffic is taken off a place until a reset, and comes back by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::{ClusterState, Fleet, LevelState};
use crate::capacity::Placed;
use crate::locality::Locality;
use crate::shares::{EndpointStatus, capacity, healthy_share, spread};
use crate::snapshot::{Cluster, Endpoint, EndpointIx, EndpointKey, PeerIx};
use crate::time::Time;

/// The most evacuations at once.
pub const EVACUATIONS_MAX: usize = 256;

/// What all traffic is taken off.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evacuation {
    /// What stands there: a region with all its zones, a zone with all its subzones.
    Locality(Locality),
    /// What is reached through the gateways of this peer.
    Peer(Arc<str>),
    /// A backend of one route.
    Backend {
        /// `namespace/name` of the route.
        route: Arc<str>,
        /// The backend's name.
        backend: Arc<str>,
    },
}

impl Evacuation {
    /// Whether it concerns an endpoint of a cluster, which is reached through `peer`.
    pub(crate) fn covers(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        peer: Option<&str>,
    ) -> bool {
        match self {
            Self::Locality(place) => place.covers(&endpoint.locality),
            Self::Peer(name) => peer == Some(&**name),
            Self::Backend { route, backend } => {
                cluster.route == *route && endpoint.backend == *backend
            }
        }
    }
}

impl fmt::Display for Evacuation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Locality(place) => write!(f, "locality {place}"),
            Self::Peer(name) => write!(f, "peer {name}"),
            Self::Backend { route, backend } => write!(f, "backend {backend} of {route}"),
        }
    }
}

/// What an evacuation makes of one cluster, once nothing is damped.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// The cluster.
    pub cluster: Arc<str>,
    /// `namespace/name` of its route.
    pub route: Arc<str>,
    /// How many endpoints are evacuated.
    pub endpoints: usize,
    /// Each level's name, and its share by health before and after.
    pub levels: Vec<(Arc<str>, f64, f64)>,
    /// Where what is offered at the moment is placed before and after; `None` where backends take
    /// anything.
    pub placed: Option<(Placed, Placed)>,
    /// Whether nothing healthy is left, where something is without it.
    pub leaves_nothing: bool,
}

/// A level that comes back by a reset alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Kept {
    /// The cluster.
    pub cluster: Arc<str>,
    /// The level's name.
    pub level: Arc<str>,
    /// The share of all traffic that it takes at most.
    pub damped: f64,
}

impl Fleet {
    /// What `evacuation` would make of each cluster that it concerns.
    #[must_use]
    pub fn effect(&self, evacuation: &Evacuation) -> Vec<Effect> {
        let mut effects: Vec<(usize, Effect)> = (self.clusters.iter().enumerate())
            .filter_map(|(ix, state)| Some((ix, self.effect_on(state, evacuation)?)))
            .collect();
        let routes: BTreeSet<Arc<str>> = (effects.iter())
            .map(|(_, effect)| Arc::clone(&effect.route))
            .collect();
        let mut placed: BTreeMap<usize, _> = (routes.iter())
            .flat_map(|route| {
                self.placed_with(route, |state| self.statuses_after(state, evacuation).0)
            })
            .collect();
        for (ix, effect) in &mut effects {
            effect.placed = placed.remove(ix);
        }
        effects.into_iter().map(|(_, effect)| effect).collect()
    }

    /// The statuses of a cluster's endpoints with an evacuation, and how many it concerns.
    fn statuses_after(
        &self,
        state: &ClusterState,
        evacuation: &Evacuation,
    ) -> (Vec<EndpointStatus>, usize) {
        let cluster = &state.cluster;
        let mut after = self.statuses(cluster);
        let mut endpoints = 0;
        for (endpoint, status) in cluster.endpoints.iter().zip(&mut after) {
            if evacuation.covers(cluster, endpoint, self.peer_name(endpoint.peer)) {
                endpoints += 1;
                *status = EndpointStatus::Evacuated;
            }
        }
        (after, endpoints)
    }

    fn effect_on(&self, state: &ClusterState, evacuation: &Evacuation) -> Option<Effect> {
        let (cluster, levels) = (&state.cluster, &state.levels);
        let (after, endpoints) = self.statuses_after(state, evacuation);
        if endpoints == 0 {
            return None;
        }
        let before = self.statuses(cluster);
        let worths = self.worths(cluster);
        let c = |statuses: &[EndpointStatus], level: usize| {
            let healthy = healthy_share(cluster, statuses, &worths, level);
            capacity(healthy, &cluster.policy.failover)
        };
        let of = |statuses: &[EndpointStatus]| -> Vec<f64> {
            (0..levels.len()).map(|level| c(statuses, level)).collect()
        };
        let taken: Vec<f64> = levels.iter().map(LevelState::damped).collect();
        let names = cluster.levels.iter().map(|level| Arc::clone(&level.name));
        let is_left = |of: &[EndpointStatus]| of.iter().any(|status| status.is_healthy());
        // What carries traffic for want of something healthy is something, too.
        let is_tried = |of: &[EndpointStatus]| of.iter().any(|status| status.is_usable(true));
        Some(Effect {
            cluster: Arc::clone(&cluster.name),
            route: Arc::clone(&cluster.route),
            endpoints,
            levels: (names.zip(spread(&taken)).zip(spread(&of(&after))))
                .map(|((name, before), after)| (name, before, after))
                .collect(),
            placed: None,
            leaves_nothing: (is_left(&before) && !is_left(&after))
                || (is_tried(&before) && !is_tried(&after)),
        })
    }

    /// Takes all traffic off a place until a [reset](Self::reset); whether that is new and there is
    /// room for it ([`EVACUATIONS_MAX`]).
    pub fn evacuate(&mut self, evacuation: Evacuation, now: Time) -> bool {
        self.advance(now);
        if self.evacuations.len() >= EVACUATIONS_MAX || !self.evacuations.insert(evacuation) {
            return false;
        }
        self.apply_evacuations(now);
        self.check_invariants(now);
        true
    }

    /// What traffic is taken off.
    pub fn evacuations(&self) -> impl Iterator<Item = &Evacuation> {
        self.evacuations.iter()
    }

    /// Ends an evacuation, and lets traffic come back to what it concerned, by `failback.ramp`; whether
    /// there was one.
    pub fn end_evacuation(&mut self, evacuation: &Evacuation, now: Time) -> bool {
        self.advance(now);
        if !self.evacuations.remove(evacuation) {
            return false;
        }
        self.let_back(evacuation, now);
        self.apply_evacuations(now);
        self.check_invariants(now);
        true
    }

    /// Whether a cluster, of this route where one is named, has nothing healthy, and would have without
    /// this evacuation.
    #[must_use]
    pub fn is_missed(&self, evacuation: &Evacuation, route: Option<&str>) -> bool {
        let is_missed = |state: &ClusterState| {
            if state.statuses.iter().any(|status| status.is_healthy()) {
                return false;
            }
            (state.cluster.endpoints.iter()).any(|endpoint| {
                let peer = self.peer_name(endpoint.peer);
                let known = self.endpoints.get(&endpoint.key);
                evacuation.covers(&state.cluster, endpoint, peer)
                    && known.is_some_and(|known| known.status_otherwise().is_healthy())
            })
        };
        let Some(route) = route else {
            return self.clusters.iter().any(is_missed);
        };
        let mut members = self.routes.get(route).into_iter().flatten();
        members.any(|ix| self.clusters.get(*ix).is_some_and(is_missed))
    }

    /// The endpoints that are no good at this moment, but for those that operators took traffic off.
    pub fn unwell(&self) -> impl Iterator<Item = &EndpointKey> {
        let known = self
            .endpoints
            .iter()
            .filter(|(_, state)| state.home.is_some());
        let bad = known.filter(|(_, state)| {
            matches!(
                state.status_otherwise(),
                EndpointStatus::Ejected | EndpointStatus::Unhealthy
            )
        });
        bad.map(|(key, _)| key)
    }

    /// Takes what peers' gateways have reported for what they report from here on: for a fleet that
    /// nobody tells anything any more.
    pub fn hold_reports(&mut self) {
        self.reports.hold();
    }

    /// Lets traffic of a route come back to the levels that wait, for a reset or by the clock, and to
    /// its backends that were evacuated; how many waited or were.
    pub fn reset(&mut self, route: &str, now: Time) -> usize {
        self.advance(now);
        let of_route = |evacuation: &&Evacuation| match evacuation {
            Evacuation::Backend { route: of, .. } => **of == *route,
            Evacuation::Locality(_) | Evacuation::Peer(_) => false,
        };
        let ended: Vec<_> = self.evacuations.iter().filter(of_route).cloned().collect();
        let released = self.release(route, now);
        for evacuation in &ended {
            self.evacuations.remove(evacuation);
            self.let_back(evacuation, now);
        }
        if !ended.is_empty() {
            self.apply_evacuations(now);
        }
        self.check_invariants(now);
        ended.len() + released
    }

    /// The levels that come back by a reset alone: they wait for it, or are bad and will.
    pub fn kept(&self) -> impl Iterator<Item = Kept> {
        self.clusters.iter().flat_map(|state| {
            state.owed().filter_map(|(ix, damped)| {
                Some(Kept {
                    cluster: Arc::clone(&state.cluster.name),
                    level: Arc::clone(&state.cluster.levels.get(ix)?.name),
                    damped,
                })
            })
        })
    }

    /// Has levels wait for a reset as they would have before the gateway started; those that are none
    /// any more, or may come back by the clock, do not.
    pub fn keep(&mut self, kept: &[Kept], now: Time) {
        self.advance(now);
        let mut routes = BTreeSet::new();
        for state in &mut self.clusters {
            for (level, of) in state.levels.iter_mut().zip(&state.cluster.levels) {
                let wanted = kept
                    .iter()
                    .find(|kept| kept.cluster == state.cluster.name && kept.level == of.name);
                if let Some(wanted) = wanted {
                    level.keep(wanted.damped.clamp(0.0, 1.0), now);
                    self.kept_changed = true;
                    routes.insert(Arc::clone(&state.cluster.route));
                }
            }
        }
        for route in routes {
            self.step_route(&route, now);
        }
        self.check_invariants(now);
    }

    /// Whether what [`kept`](Self::kept) says has changed since this was asked last.
    pub const fn take_kept_changed(&mut self) -> bool {
        std::mem::replace(&mut self.kept_changed, false)
    }

    fn release(&mut self, route: &str, now: Time) -> usize {
        let members = self.routes.get(route).cloned().unwrap_or_default();
        let mut released = 0;
        for ix in members {
            if let Some(state) = self.clusters.get_mut(ix) {
                let levels = state.levels.iter_mut();
                released += levels
                    .map(|level| usize::from(level.release(now)))
                    .sum::<usize>();
            }
        }
        self.kept_changed |= released > 0;
        self.step_route(route, now);
        released
    }

    /// Lets traffic come back to the levels that an evacuation concerns, as far as it was what took it.
    fn let_back(&mut self, evacuation: &Evacuation, now: Time) {
        let mut concerned = Vec::new();
        for (ix, state) in self.clusters.iter().enumerate() {
            for (nth, level) in state.cluster.levels.iter().enumerate() {
                let mut members = level.members.iter();
                let is_covered = |ix: &EndpointIx| {
                    let endpoint = state.cluster.endpoint(*ix);
                    let peer = self.peer_name(endpoint.peer);
                    evacuation.covers(&state.cluster, endpoint, peer)
                };
                if members.any(is_covered) {
                    concerned.push((ix, nth));
                }
            }
        }
        for (ix, nth) in concerned {
            if let Some(state) = self.clusters.get_mut(ix)
                && let Some(level) = state.levels.get_mut(nth)
            {
                level.let_back(&state.cluster.policy.failover, now);
                self.kept_changed = true;
            }
        }
    }

    /// The levels of a cluster that traffic is taken off, of whichever of their endpoints.
    pub(super) fn taken_off(&self, ix: usize) -> Vec<usize> {
        let Some(state) = self
            .clusters
            .get(ix)
            .filter(|_| !self.evacuations.is_empty())
        else {
            return Vec::new();
        };
        let levels = 0..state.cluster.levels.len();
        levels
            .filter(|level| self.is_taken_off(&state.cluster, *level))
            .collect()
    }

    /// Whether traffic is taken off any endpoint of a level.
    pub(super) fn is_taken_off(&self, cluster: &Cluster, level: usize) -> bool {
        let members = cluster.levels.get(level).map(|level| &level.members);
        let mut members = members.into_iter().flatten();
        !self.evacuations.is_empty()
            && members.any(|ix| {
                let known = self.endpoints.get(&cluster.endpoint(*ix).key);
                known.is_some_and(|known| known.is_evacuated)
            })
    }

    /// Marks what is evacuated, and moves the routes where that is something else.
    fn apply_evacuations(&mut self, now: Time) {
        let clusters: Vec<_> = self
            .clusters
            .iter()
            .map(|state| Arc::clone(&state.cluster))
            .collect();
        let changed = self.mark_evacuated(clusters.iter());
        for route in &changed {
            self.step_route(route, now);
        }
    }

    /// Marks what is evacuated of these clusters; the routes where that is something else.
    pub(super) fn mark_evacuated<'c>(
        &mut self,
        clusters: impl Iterator<Item = &'c Arc<Cluster>>,
    ) -> BTreeSet<Arc<str>> {
        let mut changed = BTreeSet::new();
        for cluster in clusters {
            for endpoint in &cluster.endpoints {
                let peer = self.peer_name(endpoint.peer);
                let mut evacuations = self.evacuations.iter();
                let is = evacuations.any(|one| one.covers(cluster, endpoint, peer));
                let Some(state) = self.endpoints.get_mut(&endpoint.key) else {
                    continue;
                };
                if state.is_evacuated != is {
                    state.is_evacuated = is;
                    self.restate(&endpoint.key);
                    changed.insert(Arc::clone(&cluster.route));
                }
            }
        }
        changed
    }

    fn peer_name(&self, peer: Option<PeerIx>) -> Option<&str> {
        let (name, _) = self.reports.peers.get(peer?.0)?;
        Some(name)
    }
}
