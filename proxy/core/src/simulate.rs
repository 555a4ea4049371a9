//! The gateway's own engine on a virtual clock: who gets what share when, and what is lost. It begins
//! with nothing known, or with what a gateway knows at this moment.
//!
//! ```text
//! Scenario: rate ----> requests --plan--> attempts --Truth--> outcomes --.
//!           faults --> Truth of each endpoint --> answers to checks -----+--> fleet --> shares
//!                                                                             (measured)
//! ```
//!
//! What decides is what decides in a gateway: [`plan()`](crate::plan::plan()),
//! [`again()`](crate::retry::again), [`Fleet`]. What is made up is the world: an endpoint answers
//! at once or fails as its [`Truth`] says, and a check is answered likewise.
//!
//! Each request is tried one by one while anything fails or moves, and for [`FINE`] after that.
//! Between, where every attempt succeeds, one request stands for many: at most [`COARSE_PER_SECOND`]
//! are planned in a second, and as many outcomes as they stand for are counted. A simulation in which
//! something fails all the time plans at most [`FINE_MAX`] requests one by one; from there on each
//! stands for many, which shares and sums bear and single failures do not.

mod expect;
mod fault;
mod measure;
mod text;
mod world;

use std::sync::Arc;
use std::time::Duration;

use crate::fleet::{Fleet, FleetEvent};
use crate::snapshot::{ClusterIx, ServiceIx, Snapshot};
use crate::time::Time;

pub use expect::{ExpectError, Expectation, Judgement};
pub use fault::{Deadlines, Fault, FaultError, FaultKind, Lever, Truth};
pub use text::{TextError, duration, rate, share};

/// How long after the last failure or move each request is looked at one by one.
pub const FINE: Duration = Duration::from_secs(2);
/// Requests that are planned in a second while nothing fails, of all services together.
pub const COARSE_PER_SECOND: f64 = 20.0;
/// Requests that are planned one by one in one simulation.
pub const FINE_MAX: u64 = 200_000;
/// The points of a series.
pub const TICKS: u32 = 240;
/// Events of the fleet that are kept; the rest is counted.
pub const EVENTS_MAX: usize = 500;

/// What is simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The services that are called, all alike; none: every one of the snapshot.
    pub services: Vec<ServiceIx>,
    /// Requests in a second to each service.
    pub rate: f64,
    /// The method of its requests, where it is HTTP.
    pub method: String,
    /// Their path, which rules look at; they have no headers.
    pub path: String,
    /// How long.
    pub lasts: Duration,
    /// What goes wrong; of several that hit one endpoint at a time the last counts.
    pub faults: Vec<Fault>,
    /// What chance is drawn from.
    pub seed: u64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// Of all services.
    pub counts: Counts,
    /// Each service.
    pub services: Vec<ServiceReport>,
    /// What the fleet told, at most [`EVENTS_MAX`].
    pub events: Vec<(Time, FleetEvent)>,
    /// How many events are not kept.
    pub events_left_out: usize,
    /// The most requests that one planned request stood for.
    pub weight_max: f64,
    /// How long one step of a series is.
    pub tick: Duration,
}

/// What became of requests.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Counts {
    /// How many there were.
    pub sent: f64,
    /// Those that were answered.
    pub answered: f64,
    /// Of those, the ones that waited for an endpoint that is slow or cut off.
    pub slow: f64,
    /// Attempts after the first.
    pub retried: f64,
    /// Those whose caller saw a failure: all attempts failed, or it may not be tried again.
    pub failed: f64,
    /// Those that were refused, for nothing was healthy or nothing healthy had capacity left.
    pub refused: f64,
    /// Of those, the ones that found no capacity left.
    pub over_capacity: f64,
}

impl Counts {
    /// Those whose caller got no answer.
    #[must_use]
    pub fn lost(&self) -> f64 {
        self.failed + self.refused
    }

    fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.answered += other.answered;
        self.slow += other.slow;
        self.retried += other.retried;
        self.failed += other.failed;
        self.refused += other.refused;
        self.over_capacity += other.over_capacity;
    }
}

/// One service, or one part of the split that its requests are for.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceReport {
    /// Which.
    pub service: ServiceIx,
    /// Where its requests go.
    pub cluster: ClusterIx,
    /// The part of the split; requests count where they are sent first.
    pub part: Option<Arc<str>>,
    /// What became of its requests.
    pub counts: Counts,
    /// Its levels, preferred first.
    pub levels: Vec<LevelReport>,
    /// Its shares and losses over time, in steps of the same length.
    pub series: Vec<Tick>,
    /// What followed each beginning and end of a fault, in order.
    pub phases: Vec<Phase>,
    /// The least room that its levels had together by health and capacity, as a share of the traffic, and
    /// when.
    pub room_min: Extreme,
}

/// One level of a service.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LevelReport {
    /// Its share at the beginning.
    pub start: f64,
    /// Its share at the end.
    pub end: f64,
    /// Its least share.
    pub min: Extreme,
    /// Its largest share.
    pub max: Extreme,
    /// The most requests in a second to one healthy endpoint of weight 1.
    pub endpoint_rate_max: f64,
}

/// A value and when it was first.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Extreme {
    /// The value.
    pub value: f64,
    /// When.
    pub at: Time,
}

/// One step of a series.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tick {
    /// The mean share of each level.
    pub shares: Vec<f64>,
    /// What became of requests.
    pub counts: Counts,
}

/// What followed a change of the world.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Phase {
    /// When it changed.
    pub at: Time,
    /// The fault, as an index into [`Scenario::faults`].
    pub fault: usize,
    /// Whether it began or ended.
    pub edge: Edge,
    /// How long until the shares were within a point of where they stayed; `None`: they still moved
    /// when the next change came, or at the end.
    pub settled_after: Option<Duration>,
}

/// A side of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Edge {
    /// It begins.
    Begins,
    /// It ends.
    Ends,
}

/// Plays a scenario.
#[must_use]
pub fn simulate(snapshot: &Snapshot, scenario: &Scenario) -> Report {
    let mut fleet = Fleet::new();
    fleet.reconcile(snapshot, Time::ZERO);
    world::World::new(snapshot, scenario, fleet, Time::ZERO).play()
}

/// Plays a scenario from how things stand: `fleet` reconciled `snapshot` last, and it is `now` by its
/// clock, which is where the simulation's begins. Endpoints that are bad now stay bad, and what peers
/// have reported holds.
#[must_use]
pub fn simulate_from(
    snapshot: &Snapshot,
    mut fleet: Fleet,
    now: Time,
    scenario: &Scenario,
) -> Report {
    fleet.hold_reports();
    world::World::new(snapshot, scenario, fleet, now).play()
}

#[cfg(test)]
#[path = "simulate/tests.rs"]
mod tests;
