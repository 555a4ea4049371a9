//! What is offered to the clusters whose backends take only so much, and what share of it each of
//! their levels has room for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::capacity::{Limits, Offered, Placed, Room, Taken, place};
use crate::shares::{ClusterShares, EndpointStatus, capacity, healthy_share};
use crate::snapshot::Cluster;
use crate::time::Time;

use super::{ClusterState, Fleet, LevelState};

/// How often what was offered is looked at.
const EVERY: Duration = Duration::from_secs(1);
/// After how long a change of the load has shown for 63 %.
const SMOOTHED: Duration = Duration::from_secs(3);
/// By what part the load must have changed for shares to be made anew.
const CHANGED: f64 = 0.02;
/// A route's ports and parts of splits share what a backend takes by what they want of it, which
/// hangs on what their levels before have room for: so often that is followed.
const ROUNDS: usize = 4;

/// What is kept of clusters whose backends take only so much.
#[derive(Debug, Clone, Default)]
pub(super) struct Loads {
    /// By route and backend: all clusters of a route send to one backend together.
    backends: BTreeMap<(Arc<str>, Arc<str>), Backend>,
    /// By the cluster's name.
    offered: BTreeMap<Arc<str>, Load>,
    /// These clusters, where they stand.
    metered: BTreeSet<usize>,
    /// What is less than is known, by route and backend.
    lowered: BTreeMap<(Arc<str>, Arc<str>), f64>,
    wake: Option<Time>,
}

/// What is taken of one backend.
#[derive(Debug, Clone, Default)]
struct Backend {
    taken: Arc<Taken>,
    /// What it took in a second when it was looked at last.
    most: f64,
}

/// What is offered to one cluster.
#[derive(Debug, Clone, Default)]
struct Load {
    offered: Arc<Offered>,
    /// How much of it was counted, and when.
    counted: u64,
    at: Time,
    /// Each second, smoothed; `None` before it was counted once.
    smoothed: Option<f64>,
    /// What the last shares were made with.
    used: f64,
}

impl Load {
    /// Counts what was offered since; whether that changes enough.
    fn count(&mut self, now: Time) -> bool {
        let passed = now.since(self.at);
        let total = self.offered.total();
        if passed.is_zero() {
            return false;
        }
        #[expect(clippy::cast_precision_loss, reason = "fewer than 2^53 in a second")]
        let latest = total.wrapping_sub(self.counted) as f64 / passed.as_secs_f64();
        (self.counted, self.at) = (total, now);
        let smoothed = self.smoothed.map_or(latest, |before| {
            let share = 1.0 - (-passed.as_secs_f64() / SMOOTHED.as_secs_f64()).exp();
            before + (latest - before) * share
        });
        // What is left of a load that ended would be halved for ever.
        let smoothed = if smoothed < LEAST { 0.0 } else { smoothed };
        self.smoothed = Some(smoothed);
        let is_other = (smoothed - self.used).abs() > self.used * CHANGED;
        if is_other {
            self.used = smoothed;
        }
        is_other
    }
}

/// Less than this is nothing: one in a hundred seconds.
const LEAST: f64 = 1e-2;

impl Loads {
    pub(super) const fn wake(&self) -> Option<Time> {
        self.wake
    }

    fn load(&self, cluster: &str) -> f64 {
        self.offered.get(cluster).map_or(0.0, |load| load.used)
    }

    fn lowered(&self, route: &str, backend: &str) -> Option<f64> {
        let mut all = self.lowered.iter();
        all.find_map(|((of, name), most)| (**of == *route && **name == *backend).then_some(*most))
    }

    fn offered(&mut self, cluster: &Arc<str>, now: Time) -> Arc<Offered> {
        let load = self
            .offered
            .entry(Arc::clone(cluster))
            .or_insert_with(|| Load {
                at: now,
                ..Load::default()
            });
        Arc::clone(&load.offered)
    }

    /// Clusters stand elsewhere. Which are metered no more is seen when their shares are made.
    pub(super) fn moved(&mut self, clusters: &[ClusterState]) {
        if self.metered.is_empty() {
            return;
        }
        let is_known = |state: &ClusterState| self.offered.contains_key(&state.cluster.name);
        self.metered = (clusters.iter().enumerate())
            .filter(|(_, state)| is_known(state))
            .map(|(ix, _)| ix)
            .collect();
    }
}

/// What each level of a cluster takes, by the cluster, of the routes that were looked at.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    routes: BTreeSet<Arc<str>>,
    placed: BTreeMap<usize, (Limits, Placed)>,
}

/// A cluster whose levels are to get their shares.
struct Wanting {
    ix: usize,
    load: f64,
    limits: Limits,
    rooms: Vec<Room>,
    /// What is left before each level, as a share.
    left: Vec<f64>,
}

impl Wanting {
    /// `levels`: what each may take by its health as it is damped, and by its health alone.
    fn new(
        ix: usize,
        cluster: &Cluster,
        shares: &ClusterShares,
        levels: impl Iterator<Item = (f64, f64)>,
        loads: &Loads,
    ) -> Option<Self> {
        let load = loads.load(&cluster.name);
        let lowered = |backend: &str| loads.lowered(&cluster.route, backend);
        let limits = Limits::of(cluster, shares, &lowered)?;
        let room = |((damped, healthy), share): ((f64, f64), &f64)| {
            // What nothing healthy answers is tried where the shares say.
            let (damped, healthy) = if shares.too_few {
                (*share, *share)
            } else {
                (damped, healthy)
            };
            Room {
                damped,
                healthy,
                most: f64::INFINITY,
            }
        };
        let rooms: Vec<Room> = levels.zip(&shares.levels).map(room).collect();
        let mut left = vec![0.0; rooms.len()];
        if let Some(first) = left.first_mut() {
            *first = 1.0;
        }
        Some(Self {
            ix,
            load,
            limits,
            rooms,
            left,
        })
    }

    /// What it wants of a backend at the most, each second.
    fn wants(&self, backend: &str) -> f64 {
        let of = |level: usize| {
            let backends = self.limits.levels.get(level)?.as_ref()?;
            let mut names =
                (backends.iter()).filter_map(|nth| self.limits.backends.get(usize::from(*nth)));
            names.any(|(name, _)| **name == *backend).then_some(())
        };
        (0..self.rooms.len())
            .filter(|level| of(*level).is_some())
            .map(|level| self.load * self.left.get(level).copied().unwrap_or_default())
            .sum()
    }

    /// Gives its levels the room that they have beside the others, and places what is offered.
    fn place(&mut self, wanted: &BTreeMap<Arc<str>, f64>) -> Placed {
        let share_of = |nth: usize| {
            let Some((name, most)) = self.limits.backends.get(nth) else {
                return f64::INFINITY;
            };
            if self.load <= 0.0 {
                return f64::INFINITY;
            }
            let all = wanted.get(name).copied().unwrap_or_default();
            let own = self.wants(name);
            // Where nobody wants anything of it, all of it is to be had.
            let part = if all > 0.0 { own / all } else { 1.0 };
            most * part / self.load
        };
        let levels = 0..self.rooms.len();
        let most: Vec<f64> = levels
            .map(|level| self.limits.most(level, share_of))
            .collect();
        for (room, most) in self.rooms.iter_mut().zip(most) {
            room.most = most;
        }
        let placed = place(&self.rooms);
        let mut left = 1.0;
        for (before, share) in self.left.iter_mut().zip(&placed.shares) {
            *before = left;
            left = f64::max(left - share, 0.0);
        }
        placed
    }
}

impl Fleet {
    /// Has a fleet that was cloned count for itself: what is offered, taken and tried from here on is
    /// nothing to the one it was cloned from.
    pub fn count_apart(&mut self) {
        for backend in self.loads.backends.values_mut() {
            backend.taken = Arc::new(backend.taken.apart());
        }
        for load in self.loads.offered.values_mut() {
            load.offered = Arc::new(load.offered.apart());
        }
        self.changed.extend(&self.loads.metered);
        self.try_apart();
    }

    /// Has a backend take no more than `most` in a second from now on, above 0, whatever it is known to
    /// take; `None`: what it is known to.
    pub fn lower_capacity(&mut self, route: &str, backend: &str, most: Option<f64>, now: Time) {
        self.advance(now);
        let key = (Arc::from(route), Arc::from(backend));
        match most {
            Some(most) => self.loads.lowered.insert(key, most),
            None => self.loads.lowered.remove(&key),
        };
        self.changed
            .extend(self.routes.get(route).into_iter().flatten());
    }

    /// Counts what was offered, once it is time.
    pub(super) fn measure(&mut self, now: Time) {
        if self.loads.wake.is_none_or(|wake| wake > now) {
            return;
        }
        let is_any = !self.loads.metered.is_empty();
        self.loads.wake = is_any.then_some(now + EVERY);
        let mut routes = BTreeSet::new();
        let mut names = BTreeSet::new();
        for ix in &self.loads.metered {
            let Some(state) = self.clusters.get(*ix) else {
                continue;
            };
            names.insert(&*state.cluster.name);
            let load = self.loads.offered.get_mut(&state.cluster.name);
            if load.is_some_and(|load| load.count(now)) {
                routes.insert(Arc::clone(&state.cluster.route));
            }
        }
        self.loads.offered.retain(|name, _| names.contains(&**name));
        for route in routes {
            self.changed
                .extend(self.routes.get(&route).into_iter().flatten());
        }
        // What no shares have any more; nobody sends by older ones for long.
        self.loads
            .backends
            .retain(|_, backend| Arc::strong_count(&backend.taken) > 1);
    }

    /// Has the shares of a cluster hold to what its backends take.
    pub(super) fn meter(
        &mut self,
        ix: usize,
        shares: &mut ClusterShares,
        known: &mut Rooms,
        now: Time,
    ) {
        let Some(cluster) = self
            .clusters
            .get(ix)
            .map(|state| Arc::clone(&state.cluster))
        else {
            return;
        };
        if !known.routes.contains(&cluster.route) {
            // Most routes have one cluster or two, and no capacity.
            let members = self
                .routes
                .get(&cluster.route)
                .map_or(&[][..], |members| members);
            let is_asked = |ix: &usize| self.may_be_metered(*ix);
            if members.iter().any(is_asked) {
                let members = members.to_vec();
                self.look_for_room(&members, known);
            }
            known.routes.insert(Arc::clone(&cluster.route));
        }
        let Some((limits, placed)) = known.placed.remove(&ix) else {
            self.loads.metered.remove(&ix);
            return;
        };
        self.loads.metered.insert(ix);
        self.loads.wake.get_or_insert(now + EVERY);
        let offered = self.loads.offered(&cluster.name, now);
        let load = self.loads.load(&cluster.name);
        let all = &mut self.loads.backends;
        let mut held = BTreeMap::new();
        for (name, most) in &limits.backends {
            let key = (Arc::clone(&cluster.route), Arc::clone(name));
            let backend = all.entry(key).or_default();
            if *most > backend.most {
                backend.taken.grew(now);
            }
            backend.most = *most;
            held.insert(Arc::clone(name), Arc::clone(&backend.taken));
        }
        limits.hold(shares, placed, load, offered, |backend| {
            held.get(backend).map(Arc::clone).unwrap_or_default()
        });
    }

    fn may_be_metered(&self, ix: usize) -> bool {
        self.clusters.get(ix).is_some_and(|state| {
            let is_lowered = |(route, _): &(Arc<str>, Arc<str>)| *route == state.cluster.route;
            let mut lowered = self.loads.lowered.keys();
            lowered.any(is_lowered)
                || state.cluster.endpoints.iter().any(|endpoint| {
                    endpoint.capacity.is_some()
                        || (endpoint.peer.is_some()
                            && (self.endpoints.get(&endpoint.key))
                                .is_some_and(|state| state.reports_capacity()))
                })
        })
    }

    /// What each level of a route's clusters has room for.
    fn look_for_room(&self, members: &[usize], known: &mut Rooms) {
        let wanting = members.iter().filter_map(|ix| {
            let state = self.clusters.get(*ix)?;
            let damped: Vec<f64> = state.levels.iter().map(LevelState::damped).collect();
            let statuses = state.statuses.to_vec();
            let worths = self.worths(&state.cluster);
            let shares = ClusterShares::new(&state.cluster, statuses, worths, &damped);
            let levels = state.levels.iter();
            let levels = levels.map(|level| (level.damped(), level.healthy()));
            Wanting::new(*ix, &state.cluster, &shares, levels, &self.loads)
        });
        known.placed.extend(place_all(wanting.collect()));
    }

    /// Where what is offered to the clusters of a route is placed, and where it were with other statuses
    /// of their endpoints, once nothing is damped; of those whose backends take only so much.
    pub(super) fn placed_with(
        &self,
        route: &str,
        otherwise: impl Fn(&ClusterState) -> Vec<EndpointStatus>,
    ) -> BTreeMap<usize, (Placed, Placed)> {
        let members = self.routes.get(route).into_iter().flatten();
        let members: Vec<usize> = members.copied().collect();
        if !members.iter().any(|ix| self.may_be_metered(*ix)) {
            return BTreeMap::new();
        }
        let mut before = Rooms::default();
        self.look_for_room(&members, &mut before);
        let wanting = members.iter().filter_map(|ix| {
            let state = self.clusters.get(*ix)?;
            let (cluster, statuses) = (&state.cluster, otherwise(state));
            let worths = self.worths(cluster);
            let capacities: Vec<f64> = (0..cluster.levels.len())
                .map(|level| healthy_share(cluster, &statuses, &worths, level))
                .map(|healthy| capacity(healthy, &cluster.policy.failover))
                .collect();
            let shares = ClusterShares::new(cluster, statuses, worths, &capacities);
            let levels = capacities.into_iter().map(|capacity| (capacity, capacity));
            Wanting::new(*ix, cluster, &shares, levels, &self.loads)
        });
        place_all(wanting.collect())
            .filter_map(|(ix, (_, after))| {
                let (_, before) = before.placed.remove(&ix)?;
                Some((ix, (before, after)))
            })
            .collect()
    }
}

/// Gives all that share backends their room.
fn place_all(mut wanting: Vec<Wanting>) -> impl Iterator<Item = (usize, (Limits, Placed))> {
    let names: BTreeSet<Arc<str>> = (wanting.iter())
        .flat_map(|one| one.limits.backends.iter().map(|(name, _)| Arc::clone(name)))
        .collect();
    let mut placed: Vec<Placed> = Vec::new();
    for _ in 0..ROUNDS {
        let wanted: BTreeMap<Arc<str>, f64> = (names.iter())
            .map(|name| {
                let all = wanting.iter().map(|one| one.wants(name)).sum();
                (Arc::clone(name), all)
            })
            .collect();
        placed = wanting.iter_mut().map(|one| one.place(&wanted)).collect();
    }
    let all = wanting.into_iter().zip(placed);
    all.map(|(one, placed)| (one.ix, (one.limits, placed)))
}
