//! In which order a request's endpoints are tried: preferred first, then failover.

use crate::balance::{Candidates, fraction, mix, pick};
use crate::capacity::Full;
use crate::shares::{ClusterShares, EndpointStatus, Trial};
use crate::snapshot::{Cluster, EndpointIx, TooFew};

/// The most attempts one plan yields.
pub const ATTEMPTS_MAX: usize = 32;
/// The most attempts in one level, so that a large dead level does not use up a plan before the
/// next one had a turn.
pub const LEVEL_ATTEMPTS_MAX: usize = 8;
/// The most attempts at endpoints that were found bad, where all that are healthy have failed: it is
/// not their turn, and each may take as long as a connection may.
pub const LAST_RESORT_MAX: usize = 2;

/// One endpoint to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attempt {
    /// The endpoint.
    pub endpoint: EndpointIx,
    /// The level it is of.
    pub level: usize,
    /// Why it was chosen.
    pub why: Why,
}

impl Attempt {
    /// Whether it is one that was found bad, of a cluster in which others are healthy: they have
    /// failed.
    #[must_use]
    pub fn is_last_resort(&self, shares: &ClusterShares) -> bool {
        self.why == Why::TooFew && !shares.too_few
    }

    /// Whether it is to be made: a trial is by the first who asks. To be asked once.
    #[must_use]
    pub fn begins(&self, shares: &ClusterShares) -> bool {
        let of_this = |(ix, _): &&(EndpointIx, Trial)| *ix == self.endpoint;
        self.why != Why::Trial
            || (shares.trials.iter().find(of_this)).is_some_and(|(_, trial)| trial.begin())
    }
}

/// Why an endpoint was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Why {
    /// It is of the nearest level.
    Local,
    /// It is of a farther level, which takes what the nearer ones have no room for.
    Spill,
    /// It is of a farther level, for the nearest one has nothing.
    Failover,
    /// It is not healthy, and nothing is.
    TooFew,
    /// Its ejection is over: whether it is good again is seen by this.
    Trial,
}

impl Why {
    /// The word in the access log.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Spill => "spill",
            Self::Failover => "failover",
            Self::TooFew => "too-few",
            Self::Trial => "trial",
        }
    }
}

/// The endpoints to try for one connection or request, in order; each at most once.
///
/// The first is of a level drawn by the shares, and of a locality of it where it is spread, picked by
/// the cluster's policy. Then come others of
/// that level, then the other levels that have a healthy endpoint, nearest first. Whoever has seen all
/// of them fail knows that nothing is healthy, before the shares say so: then come those that only
/// their traffic found bad, unless the cluster refuses in that case. Before all of them may come one
/// whose ejection is over ([`Attempt::begins`]).
#[must_use]
pub fn plan<'a>(
    cluster: &'a Cluster,
    shares: &'a ClusterShares,
    load: &'a dyn Fn(EndpointIx) -> u32,
    draw: u64,
) -> Plan<'a> {
    let drawn = draw_of(shares.by_health(), fraction(draw, LEVEL_PART));
    let spread = shares.spread.as_deref();
    let part = spread
        .filter(|spread| Some(spread.level) == drawn)
        .and_then(|spread| draw_of(&spread.shares, fraction(draw, SPREAD_PART)));
    Plan {
        cluster,
        shares,
        load,
        draw,
        drawn,
        part,
        next_level: 0,
        turn: drawn.map(Turn::new),
        is_last_resort: false,
        attempts: 0,
        attempts_max: ATTEMPTS_MAX,
        // Where everything is refused, so is this.
        trial: drawn.and_then(|_| trial_of(cluster, shares)),
        is_tried: false,
        full: Full::default(),
    }
}

/// One whose ejection is over, if nobody has tried it.
fn trial_of(cluster: &Cluster, shares: &ClusterShares) -> Option<Attempt> {
    // Where there are too few, what is out has traffic anyway.
    let trials = shares.trials.iter().filter(|_| !shares.too_few);
    let mut open = trials.filter(|(_, trial)| trial.is_open());
    open.find_map(|(endpoint, _)| {
        // What is bad for another reason, or gone, is not tried.
        if shares.endpoints.get(endpoint.0) != Some(&EndpointStatus::Ejected) {
            return None;
        }
        let level = (cluster.levels.iter()).position(|level| level.members.contains(endpoint))?;
        Some(Attempt {
            endpoint: *endpoint,
            level,
            why: Why::Trial,
        })
    })
}

/// Tells the draw of the level from those of the endpoint.
const LEVEL_PART: u64 = 0x6c65_7665;
/// Tells the draw of the locality from both.
const SPREAD_PART: u64 = 0x7370_7265;
/// Tells the draw of the level for what the first has no room for from all of them.
const EXCESS_PART: u64 = 0x6578_6365;

/// See [`plan()`].
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    cluster: &'a Cluster,
    shares: &'a ClusterShares,
    load: &'a dyn Fn(EndpointIx) -> u32,
    draw: u64,
    /// The level drawn; `None`: everything is refused.
    drawn: Option<usize>,
    /// The locality drawn in it, where the level is spread.
    part: Option<usize>,
    /// The nearest level that has not had its turn, the drawn one apart.
    next_level: usize,
    turn: Option<Turn>,
    /// Whether all that are healthy had their turn.
    is_last_resort: bool,
    attempts: usize,
    attempts_max: usize,
    /// What comes before all, and not once more.
    trial: Option<Attempt>,
    is_tried: bool,
    /// What is left out.
    full: Full,
}

/// The attempts in one level.
#[derive(Debug, Clone, Copy)]
struct Turn {
    level: usize,
    /// The endpoint the policy picked; `None` before that.
    first: Option<EndpointIx>,
    /// How many members were looked at for the attempts after the first.
    looked: usize,
    attempts: usize,
}

impl Turn {
    const fn new(level: usize) -> Self {
        Self {
            level,
            first: None,
            looked: 0,
            attempts: 0,
        }
    }
}

impl std::fmt::Debug for Plan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("cluster", &self.cluster.name)
            .field("draw", &self.draw)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

impl Iterator for Plan<'_> {
    type Item = Attempt;

    fn next(&mut self) -> Option<Attempt> {
        if let Some(trial) = self.trial.filter(|_| !self.is_tried) {
            self.is_tried = true;
            return Some(trial);
        }
        while self.attempts < self.attempts_max {
            let mut turn = self.turn?;
            match self.next_in(&mut turn) {
                Some(endpoint) => {
                    turn.attempts += 1;
                    self.turn = Some(turn);
                    self.attempts += 1;
                    return Some(Attempt {
                        endpoint,
                        level: turn.level,
                        why: self.why(turn.level, endpoint),
                    });
                }
                None => self.turn = self.next_turn(),
            }
        }
        None
    }
}

impl Plan<'_> {
    /// Leaves out the backends that are full. What the drawn level has no room for goes to a level
    /// drawn anew among those that take it, and where that has none either, to the nearest that has.
    #[must_use]
    pub fn within(mut self, full: Full) -> Self {
        self.full = full;
        let Some(metered) = self.shares.metered.as_ref().filter(|_| !full.is_none()) else {
            return self;
        };
        let has_room = |level: usize| {
            let members = self.cluster.levels.get(level).map(|level| &level.members);
            members.into_iter().flatten().any(|ix| self.is_usable(*ix))
        };
        if self.drawn.is_some_and(|level| !has_room(level)) {
            let mut rest = fraction(self.draw, EXCESS_PART);
            // Before the one drawn come those that take whatever they have room for.
            let other = (0..metered.excess.len()).find(|level| {
                let share = metered.excess.get(*level).copied().unwrap_or_default();
                let is_drawn = rest >= 0.0 && rest < share;
                rest -= share;
                (is_drawn || metered.takes_all(*level)) && has_room(*level)
            });
            if let Some(level) = other {
                (self.drawn, self.part) = (Some(level), None);
                self.turn = Some(Turn::new(level));
            }
        }
        self
    }

    /// Whether nothing is to be tried.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        // Mostly the drawn level has something, and it is not picked for this.
        let level = self
            .turn
            .and_then(|turn| self.cluster.levels.get(turn.level));
        let has_some =
            level.is_some_and(|level| level.members.iter().any(|ix| self.is_usable(*ix)));
        !has_some && { *self }.next().is_none()
    }

    /// Whether it leaves out something that is healthy, for it is full.
    #[must_use]
    pub const fn leaves_out_full(&self) -> bool {
        !self.full.is_none()
    }

    fn next_in(&self, turn: &mut Turn) -> Option<EndpointIx> {
        if turn.attempts >= LEVEL_ATTEMPTS_MAX {
            return None;
        }
        let level = self.cluster.levels.get(turn.level)?;
        if turn.first.is_none() {
            let part = self.part.filter(|_| self.attempts == 0);
            let pick_of = |usable: &dyn Fn(EndpointIx) -> bool| {
                let candidates = Candidates {
                    cluster: self.cluster,
                    level,
                    worths: &self.shares.worths,
                    parts: &self.shares.parts,
                    seeds: &self.shares.seeds,
                    usable,
                };
                pick(candidates, self.load, self.draw)
            };
            let is_of = |ix: EndpointIx, part: usize| {
                let spread = self.shares.spread.as_deref();
                spread.is_some_and(|spread| spread.is_of(ix, part))
            };
            turn.first = part
                .and_then(|part| pick_of(&|ix| is_of(ix, part) && self.is_usable(ix)))
                .or_else(|| pick_of(&|ix| self.is_usable(ix)));
            return turn.first;
        }
        // The rest of the members, from a drawn place on, so that not all go to the same second.
        let count = level.members.len();
        let start = usize::try_from(mix(self.draw, 2) >> 32).unwrap_or_default();
        while turn.looked < count {
            let at = start.wrapping_add(turn.looked) % count;
            turn.looked += 1;
            let ix = level.members.get(at).copied();
            if let Some(ix) = ix
                && turn.first != Some(ix)
                && self.is_usable(ix)
            {
                return Some(ix);
            }
        }
        None
    }

    fn is_usable(&self, ix: EndpointIx) -> bool {
        let is_usable = if self.is_last_resort {
            let status = self.shares.endpoints.get(ix.0);
            status.is_some_and(|status| status.is_last_resort())
                && self.trial.is_none_or(|trial| trial.endpoint != ix)
        } else {
            self.shares.is_usable(ix)
        };
        is_usable && (self.full.is_none() || !self.is_full(ix))
    }

    #[cold]
    fn is_full(&self, ix: EndpointIx) -> bool {
        let metered = self.shares.metered.as_ref();
        metered.is_some_and(|metered| metered.is_full(ix, self.full))
    }

    fn next_turn(&mut self) -> Option<Turn> {
        loop {
            while self.next_level < self.cluster.levels.len() {
                let level = self.next_level;
                self.next_level += 1;
                if self.is_last_resort || Some(level) != self.drawn {
                    return Some(Turn::new(level));
                }
            }
            // What is full has not failed.
            let is_over = self.is_last_resort || self.shares.too_few || self.leaves_out_full();
            if is_over || self.cluster.policy.failover.too_few == TooFew::Fail {
                return None;
            }
            self.is_last_resort = true;
            self.attempts_max = ATTEMPTS_MAX.min(self.attempts + LAST_RESORT_MAX);
            self.next_level = 0;
        }
    }

    fn why(&self, level: usize, endpoint: EndpointIx) -> Why {
        let healthy = (self.shares.endpoints.get(endpoint.0)).is_some_and(|s| s.is_healthy());
        let nearest_takes_some = self.shares.levels.first().is_some_and(|share| *share > 0.0);
        // A later attempt at another level is no spill: the drawn level failed it, unless it was full.
        let is_first = Some(level) == self.drawn || (self.leaves_out_full() && self.attempts == 1);
        match level {
            _ if !healthy => Why::TooFew,
            0 => Why::Local,
            _ if is_first && nearest_takes_some => Why::Spill,
            _ => Why::Failover,
        }
    }
}

/// Where the point lies (0 to below 1) of these shares laid end to end; `None` if every share is 0.
fn draw_of(shares: &[f64], point: f64) -> Option<usize> {
    let mut rest = point;
    let mut last = None;
    for (level, share) in shares.iter().enumerate() {
        if *share > 0.0 {
            if rest < *share {
                return Some(level);
            }
            rest -= share;
            last = Some(level);
        }
    }
    // Rounding may leave the point just behind the last.
    last
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
