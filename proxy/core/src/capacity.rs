//! What backends can take in a second, and what becomes of what is more.
//!
//! ```text
//! Taken (one for each backend, of the process) --full?--> plan: leaves out what is full
//!    ^                                                        |
//!    '----------------------- take, for each attempt <--------'
//! offered (one for each cluster) --each second--> load --place()--> shares, what fits nowhere
//! ```
//!
//! Two things hold a backend to its capacity. Each attempt there takes of it, and finds it full once
//! it is used up: that is exact, and the only bound that counts. And the load that is offered to a
//! cluster, before anything moves, tells what share of it each level has room for: by that what a
//! level has no room for is drawn among the others, and people see it. The measured load lags by
//! seconds; nothing is ever offered to what is full for that, nor moved off what has room.
//!
//! Of what workers write, [`Taken`] and [`Offered`] alone stand in shares: both are numbers that only
//! grow, and nothing is decided by two of them together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::admission::Rate;
use crate::shares::{ClusterShares, SHARE_EPSILON, Worth};
use crate::snapshot::{Cluster, Endpoint, EndpointIx};
use crate::time::Time;

/// What a backend has not been sent in the past it takes at once, up to what it takes in this time;
/// one at the least.
pub const BURST: Duration = Duration::from_secs(1);

/// What time is counted in: sixteenths of a nanosecond, so that a million a second is exact to a
/// ten-thousandth. They overflow after 36 years.
const UNITS: u64 = 16;
const SECOND: f64 = 1e9 * UNITS as f64;

fn units(time: Duration) -> u64 {
    u64::try_from(time.as_nanos())
        .unwrap_or(u64::MAX)
        .saturating_mul(UNITS)
}

/// What was taken of the capacity of one backend, by everybody in the process who sends there.
///
/// It is the time until which what was taken lasts (the "theoretical arrival time" of ITU-T I.371's
/// generic cell rate algorithm): one number, whatever the capacity is at the moment.
#[derive(Debug, Default)]
pub struct Taken {
    until: AtomicU64,
    /// How much came while it was full.
    met_full: AtomicU64,
}

impl Taken {
    /// Another one that has the same so far.
    pub(crate) fn apart(&self) -> Self {
        Self {
            until: AtomicU64::new(self.until.load(Ordering::Relaxed)),
            met_full: AtomicU64::new(self.met_full.load(Ordering::Relaxed)),
        }
    }

    /// The backend takes more than it did: what was taken lasts no longer than a burst does. Of one that
    /// takes less than one in a second, one alone lasted for longer.
    pub(crate) fn grew(&self, now: Time) {
        let now = units(now.since_origin());
        let latest = now.saturating_add(units(BURST));
        self.until.fetch_min(latest, Ordering::Relaxed);
    }
}

/// How much was offered to a cluster, before anything moved.
#[derive(Debug, Default)]
pub struct Offered(AtomicU64);

impl Offered {
    /// Counts so many more.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Another one that has the same so far.
    pub(crate) fn apart(&self) -> Self {
        Self(AtomicU64::new(self.total()))
    }

    /// All so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A backend whose capacity is known.
#[derive(Debug, Clone)]
pub struct Held {
    /// Its name.
    pub backend: Arc<str>,
    /// What it takes in a second at this time, by the part of it that is of use; above 0.
    pub most: f64,
    /// What one takes, in [`UNITS`].
    interval: u64,
    /// How far ahead what was taken may last for one more to be taken.
    ahead: u64,
    taken: Arc<Taken>,
}

impl Held {
    /// One that takes `most` in a second, of which `taken` was taken.
    #[must_use]
    pub fn new(backend: Arc<str>, most: f64, taken: Arc<Taken>) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number, and one that is too large becomes the largest"
        )]
        let interval = (SECOND / most).ceil() as u64;
        // A sum with it does not overflow.
        let interval = interval.clamp(1, u64::MAX / 4);
        Self {
            backend,
            most,
            interval,
            ahead: units(BURST).saturating_sub(interval),
            taken,
        }
    }

    fn is_full(&self, now: u64) -> bool {
        self.taken.until.load(Ordering::Relaxed) > now.saturating_add(self.ahead)
    }

    /// Takes what so many take at once, if there is room for one.
    fn take(&self, taken: u64, now: u64) -> bool {
        let take = |until: u64| {
            let has_room = until <= now.saturating_add(self.ahead);
            has_room.then(|| until.max(now).saturating_add(taken))
        };
        let until = &self.taken.until;
        // One step, so that workers never take the last place twice.
        let has_taken = until
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_ok();
        if !has_taken {
            self.taken.met_full.fetch_add(1, Ordering::Relaxed);
        }
        has_taken
    }

    /// Gives back what was taken: it was not sent.
    fn give_back(&self, taken: u64) {
        let give = |until: u64| Some(until.saturating_sub(taken));
        let until = &self.taken.until;
        // It always gives something. Of a backend that grew meanwhile less is there than was taken.
        let _before = until.fetch_update(Ordering::Relaxed, Ordering::Relaxed, give);
    }

    /// What so many take.
    fn of_many(&self, count: f64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a positive number, and one that is too large becomes the largest"
        )]
        {
            (self.interval as f64 * count) as u64
        }
    }

    /// How much came while it was full.
    #[must_use]
    pub fn met_full(&self) -> u64 {
        self.taken.met_full.load(Ordering::Relaxed)
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.backend == other.backend
            && self.interval == other.interval
            && Arc::ptr_eq(&self.taken, &other.taken)
    }
}

/// Which backends of a cluster are full at a time, by their place in [`Metered::held`]; of more than
/// 64 only the first 64 are known, and the others are found full when something is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Full(u64);

impl Full {
    /// Whether none is.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    const fn has(self, nth: u16) -> bool {
        nth < 64 && self.0 & (1 << nth) != 0
    }
}

/// Stands for no place in [`Metered::held`].
const NOT_HELD: u16 = u16::MAX;

/// What a cluster has in its shares where the capacity of one of its backends is known.
#[derive(Debug, Clone)]
pub struct Metered {
    /// The share of each level by its health alone: what is tried first.
    pub by_health: Vec<f64>,
    /// Where that goes which the level that is tried first has no room for, as a share for each level;
    /// what is missing to 1 fits nowhere.
    pub excess: Vec<f64>,
    /// The share of what is offered that fits nowhere.
    pub refused: f64,
    /// What is offered in a second, smoothed, as it was when these shares were made.
    pub load: f64,
    /// What each level takes in a second; infinite where it is not known.
    pub most: Vec<f64>,
    /// What all backends that are of use take together; `None` where one of them takes anything.
    all: Option<f64>,
    /// Whether a level's room, and not its health, is what it takes no more for.
    fills: Vec<bool>,
    /// The backends whose capacity is known.
    pub held: Vec<Held>,
    /// Which of them each endpoint is of.
    of: Vec<u16>,
    offered: Arc<Offered>,
}

impl PartialEq for Metered {
    fn eq(&self, other: &Self) -> bool {
        // The rest follows from these and the shares themselves.
        self.load.to_bits() == other.load.to_bits()
            && self.held == other.held
            && self.by_health == other.by_health
            && self.excess == other.excess
            && self.most == other.most
            && self.all == other.all
            && self.fills == other.fills
            && self.of == other.of
            && Arc::ptr_eq(&self.offered, &other.offered)
    }
}

impl Metered {
    /// Those that are full.
    pub fn those(&self, full: Full) -> impl Iterator<Item = &Held> {
        let held = (0..).zip(&self.held);
        held.filter(move |(nth, _)| full.has(*nth))
            .map(|(_, held)| held)
    }

    /// What is offered to the cluster is counted here, once for each request or connection.
    #[must_use]
    pub fn offered(&self) -> &Offered {
        &self.offered
    }

    /// Which backends are full.
    #[must_use]
    pub fn full(&self, now: Time) -> Full {
        let now = units(now.since_origin());
        let full = (self.held.iter().take(64).enumerate())
            .filter(|(_, held)| held.is_full(now))
            .fold(0, |full, (nth, _)| full | 1 << nth);
        Full(full)
    }

    /// Counts what came while these were full.
    pub fn note(&self, full: Full) {
        for (nth, held) in (0..).zip(&self.held) {
            if full.has(nth) {
                held.taken.met_full.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes one of the capacity of an endpoint's backend; whether there was room for it.
    #[must_use]
    pub fn take(&self, ix: EndpointIx, now: Time) -> bool {
        let held = self.held_of(ix);
        held.is_none_or(|held| held.take(held.interval, units(now.since_origin())))
    }

    /// The same for one that stands for so many: there is room where there is for one.
    #[must_use]
    pub fn take_many(&self, ix: EndpointIx, count: f64, now: Time) -> bool {
        let held = self.held_of(ix);
        held.is_none_or(|held| held.take(held.of_many(count), units(now.since_origin())))
    }

    /// Gives back what one took that was not sent.
    pub fn give_back(&self, ix: EndpointIx) {
        if let Some(held) = self.held_of(ix) {
            held.give_back(held.interval);
        }
    }

    /// Gives back what one took that stands for so many.
    pub fn give_back_many(&self, ix: EndpointIx, count: f64) {
        if let Some(held) = self.held_of(ix) {
            held.give_back(held.of_many(count));
        }
    }

    fn held_of(&self, ix: EndpointIx) -> Option<&Held> {
        let nth = self.of.get(ix.0)?;
        self.held.get(usize::from(*nth))
    }

    /// Whether a level takes whatever it has room for.
    pub(crate) fn takes_all(&self, level: usize) -> bool {
        self.fills.get(level).copied().unwrap_or_default()
    }

    /// What all backends that are of use take together in a second, a whole number and 1 at the least;
    /// `None` where it is not known of one of them.
    #[must_use]
    pub fn all(&self) -> Option<Rate> {
        let most = self.all.filter(|most| *most > 0.0)?;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a positive number, and one that is too large becomes the largest"
        )]
        Rate::per_second((most as u32).max(1))
    }

    /// Whether there is room for one more at an endpoint's backend.
    #[must_use]
    pub fn has_room(&self, ix: EndpointIx, now: Time) -> bool {
        let now = units(now.since_origin());
        self.held_of(ix).is_none_or(|held| !held.is_full(now))
    }

    /// Whether an endpoint's backend is one of those that are full.
    pub(crate) fn is_full(&self, ix: EndpointIx, full: Full) -> bool {
        self.of.get(ix.0).is_some_and(|nth| full.has(*nth))
    }
}

/// What the capacities of a cluster's backends amount to.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Limits {
    /// Each backend whose capacity is known, and what it takes in a second.
    pub(crate) backends: Vec<(Arc<str>, f64)>,
    /// Which of them each endpoint is of.
    of: Vec<u16>,
    /// The backends of each level that are of use; `None` where one of them takes anything.
    pub(crate) levels: Vec<Option<Vec<u16>>>,
}

/// A backend while it is added up.
#[derive(Default)]
struct Sum {
    written: Option<f64>,
    weight: f64,
    usable: f64,
    reported: Option<f64>,
    /// The same of those that are about to leave.
    leaving: Option<f64>,
    /// Whether one that is of use reports nothing.
    is_unknown: bool,
}

impl Sum {
    fn add(&mut self, endpoint: &Endpoint, worth: Option<&Worth>, is_usable: bool) {
        self.written = endpoint.capacity.map(|rate| f64::from(rate.get()));
        let weight = endpoint.weight;
        if endpoint.peer.is_none() {
            self.weight += weight;
            self.usable += if is_usable { weight } else { 0.0 };
            return;
        }
        if !is_usable {
            // One of a peer's gateways that is out takes nothing of what is behind the others.
            return;
        }
        self.weight += worth.map_or(weight, |worth| worth.weight);
        self.usable += worth.map_or(weight, |worth| worth.healthy);
        // Who is about to leave is picked last: what it takes is not to be had beside others.
        let is_last = worth.is_some_and(|worth| worth.drawn <= 0.0);
        match (worth.and_then(|worth| worth.capacity), is_last) {
            (Some(more), false) => *self.reported.get_or_insert(0.0) += more,
            (Some(more), true) => *self.leaving.get_or_insert(0.0) += more,
            (None, false) => self.is_unknown = true,
            (None, true) => {}
        }
    }

    /// What it takes in a second; `None` where that is not known.
    fn most(&self) -> Option<f64> {
        let part = match self.usable / self.weight {
            part if part > 0.0 => part,
            // Nothing better is known of what is used for want of anything healthy.
            _ => 1.0,
        };
        let written = self.written.map(|most| most * part);
        let reported = self.reported.or(self.leaving);
        let reported = reported.filter(|_| !self.is_unknown);
        [written, reported].into_iter().flatten().reduce(f64::min)
    }
}

impl Limits {
    /// What the backends of a cluster take whose endpoints stand like this; `None` where nothing is
    /// known of any.
    ///
    /// A backend takes as much of its capacity as of its weight is of use. A peer's takes at most what
    /// its gateways that are of use report together, each of itself.
    ///
    /// `lowered` is what a backend takes at the most whatever is known of it.
    pub(crate) fn of(
        cluster: &Cluster,
        shares: &ClusterShares,
        lowered: &dyn Fn(&str) -> Option<f64>,
    ) -> Option<Self> {
        let reported = |ix: usize| shares.worths.get(ix).and_then(|worth| worth.capacity);
        let mut endpoints = cluster.endpoints.iter().enumerate();
        let is_known = |ix: usize, endpoint: &Endpoint| {
            endpoint.capacity.is_some()
                || reported(ix).is_some()
                || lowered(&endpoint.backend).is_some()
        };
        if !endpoints.any(|(ix, endpoint)| is_known(ix, endpoint)) {
            return None;
        }
        let is_usable = |ix: usize| shares.is_usable(EndpointIx(ix));
        let mut sums: Vec<(Arc<str>, Sum)> = Vec::new();
        let mut of = Vec::with_capacity(cluster.endpoints.len());
        for (ix, endpoint) in cluster.endpoints.iter().enumerate() {
            let at = sums.iter().position(|(name, _)| *name == endpoint.backend);
            let at = at.unwrap_or_else(|| {
                sums.push((Arc::clone(&endpoint.backend), Sum::default()));
                sums.len() - 1
            });
            of.push(u16::try_from(at).unwrap_or(NOT_HELD));
            if let Some((_, sum)) = sums.get_mut(at) {
                sum.add(endpoint, shares.worths.get(ix), is_usable(ix));
            }
        }
        let mut backends = Vec::new();
        let places: Vec<u16> = sums
            .into_iter()
            .map(|(name, sum)| {
                let known = [sum.most(), lowered(&name)];
                let Some(most) = known.into_iter().flatten().reduce(f64::min) else {
                    return NOT_HELD;
                };
                backends.push((name, most.max(LEAST)));
                u16::try_from(backends.len() - 1).unwrap_or(NOT_HELD)
            })
            .collect();
        for nth in &mut of {
            let place = places.get(usize::from(*nth)).copied();
            *nth = place.unwrap_or(NOT_HELD);
        }
        let levels = (cluster.levels.iter())
            .map(|level| {
                let mut of_level: Vec<u16> = (level.members.iter())
                    .filter(|ix| is_usable(ix.0))
                    .filter_map(|ix| of.get(ix.0).copied())
                    .collect();
                of_level.sort_unstable();
                of_level.dedup();
                (!of_level.contains(&NOT_HELD)).then_some(of_level)
            })
            .collect();
        (!backends.is_empty()).then_some(Self {
            backends,
            of,
            levels,
        })
    }

    /// What a level takes in a second, of these amounts of each backend.
    pub(crate) fn most(&self, level: usize, of_backend: impl Fn(usize) -> f64) -> f64 {
        match self.levels.get(level) {
            Some(Some(backends)) => backends
                .iter()
                .map(|nth| of_backend(usize::from(*nth)))
                .sum(),
            Some(None) | None => f64::INFINITY,
        }
    }

    /// What all that are of use take in a second.
    fn all(&self) -> Option<f64> {
        let mut used = vec![false; self.backends.len()];
        for level in &self.levels {
            for nth in level.as_ref()? {
                if let Some(is_used) = used.get_mut(usize::from(*nth)) {
                    *is_used = true;
                }
            }
        }
        let backends = self.backends.iter().zip(used);
        let used = backends.filter(|(_, is_used)| *is_used);
        Some(used.map(|((_, most), _)| most).sum())
    }

    /// What a backend takes in a second.
    pub(crate) fn of_backend(&self, nth: usize) -> f64 {
        self.backends
            .get(nth)
            .map_or(f64::INFINITY, |(_, most)| *most)
    }

    /// Has a cluster's shares hold to it, as [`place`] has them.
    pub(crate) fn hold(
        self,
        shares: &mut ClusterShares,
        placed: Placed,
        load: f64,
        offered: Arc<Offered>,
        taken: impl Fn(&Arc<str>) -> Arc<Taken>,
    ) {
        let by_health = std::mem::replace(&mut shares.levels, placed.shares);
        let mut excess: Vec<f64> = (shares.levels.iter().zip(&by_health))
            .map(|(placed, by_health)| (placed - by_health).max(0.0))
            .collect();
        let all = excess.iter().sum::<f64>() + placed.refused;
        if all > SHARE_EPSILON {
            excess.iter_mut().for_each(|share| *share /= all);
        }
        let most = (0..by_health.len())
            .map(|level| self.most(level, |nth| self.of_backend(nth)))
            .collect();
        shares.metered = Some(Arc::new(Metered {
            by_health,
            excess,
            refused: placed.refused,
            load,
            most,
            all: self.all(),
            fills: placed.fills,
            held: (self.backends.into_iter())
                .map(|(name, most)| {
                    let taken = taken(&name);
                    Held::new(name, most, taken)
                })
                .collect(),
            of: self.of,
            offered,
        }));
    }
}

/// No backend of which a part is of use takes less, so that it can be found to be of use: one in a
/// thousand seconds.
const LEAST: f64 = 1e-3;

/// What is known of a level that is to take a share.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Room {
    /// d: the share that it may take by its health as it is damped.
    pub damped: f64,
    /// c: the same by its health alone.
    pub healthy: f64,
    /// The share that it has capacity for; infinite where that is not known.
    pub most: f64,
}

/// What each level takes, and what fits nowhere; together 1, or nothing where nothing is healthy.
#[derive(Debug, Clone, PartialEq)]
pub struct Placed {
    /// The share of each level.
    pub shares: Vec<f64>,
    /// What fits nowhere.
    pub refused: f64,
    /// Whether a level takes all that it has room for.
    pub fills: Vec<bool>,
}

/// Gives each level its share, preferred first.
///
/// ```text
/// in order, each takes min(what is left, d, most)
/// of what is left, in order, each takes as much more as min(c, most) allows: nobody is refused what
///   only waits for `hold` or `failback`
/// of what is still left each takes more by its c, as far as `most` allows: nobody is refused what
///   is healthy anywhere
/// what is left then fits nowhere
/// ```
///
/// Without capacities the first and the last line are the formula of [`spread`](crate::shares::spread).
#[must_use]
pub fn place(rooms: &[Room]) -> Placed {
    let mut left = 1.0;
    let mut shares = vec![0.0; rooms.len()];
    for upto in [|room: &Room| room.damped, |room: &Room| room.healthy] {
        for (share, room) in shares.iter_mut().zip(rooms) {
            let more = (upto(room).min(room.most) - *share).clamp(0.0, left);
            *share += more;
            left -= more;
        }
    }
    if rooms
        .iter()
        .all(|room| room.healthy <= 0.0 && room.damped <= 0.0)
    {
        return Placed {
            fills: vec![false; shares.len()],
            shares,
            refused: 0.0,
        };
    }
    // Each round fills a level, or places all that is left.
    for _ in 0..=rooms.len() {
        let open = |(share, room): &(&f64, &Room)| **share < room.most && room.healthy > 0.0;
        let by: f64 = (shares.iter().zip(rooms).filter(open))
            .map(|(_, room)| room.healthy)
            .sum();
        if left <= 0.0 || by <= 0.0 {
            break;
        }
        let whole = left;
        for (share, room) in shares.iter_mut().zip(rooms) {
            if *share < room.most && room.healthy > 0.0 {
                let more = (whole * room.healthy / by).min(room.most - *share);
                *share += more;
                left -= more;
            }
        }
    }
    let fills = |(share, room): (&f64, &Room)| *share >= room.most - SHARE_EPSILON;
    Placed {
        fills: shares.iter().zip(rooms).map(fills).collect(),
        shares,
        refused: if left > SHARE_EPSILON { left } else { 0.0 },
    }
}

#[cfg(test)]
#[path = "capacity_tests.rs"]
mod tests;
