//! The world of a simulation: time, requests, the truth about endpoints, and a fleet that does not
//! know it.

mod hedge;

use std::borrow::Cow;
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{Latency, fraction, mix};
use crate::engine::{Headers, Request};
use crate::fleet::{Fleet, FleetEvent, Observation, Probe};
use crate::plan::{Attempt, Plan, plan};
use crate::retry::{Again, RequestLeft, ResponseSeen, RetryBudget, Sender, Tried, again};
use crate::rules::{HttpRule, Part, Tried as Parts, choose};
use crate::shares::{ClusterShares, Shares};
use crate::slow::Took;
use crate::snapshot::{
    ActiveKind, Balance, Cluster, ClusterIx, EndpointIx, EndpointKey, Failure, Protocol, Retries,
    Role, ServiceIx, Snapshot,
};
use crate::time::Time;

use super::fault::{Deadlines, FaultKind, Lever, Truth};
use super::measure::{Lane, Measure};
use super::{COARSE_PER_SECOND, Counts, EVENTS_MAX, FINE, FINE_MAX, Report, Scenario, TICKS};

/// The longest time between two requests that is counted with, in seconds.
const APART_MAX: f64 = 86_400.0;
/// How long a check takes where nothing is slow.
const CHECK: Duration = Duration::from_millis(1);
/// How long an endpoint that is well has a request, as far as it makes others look less busy.
const ANSWER: Duration = Duration::from_millis(5);
/// What a failure counts as having taken at the least, as a worker has it.
const FAILED: Duration = Duration::from_secs(1);
/// The most times that one planned request is tried; each counts as its part.
const RUNS_MAX: f64 = 32.0;
/// The most good outcomes that one planned request is counted as: as many as decide anything.
const OUTCOMES_MAX: u32 = 32;

pub(super) struct World<'a> {
    snapshot: &'a Snapshot,
    scenario: &'a Scenario,
    services: Vec<Called>,
    /// The clusters that are measured.
    lanes: Vec<ClusterIx>,
    fleet: Fleet,
    /// Where the fleet's clock stood at the beginning.
    origin: Time,
    /// What was bad at the beginning, and stays so.
    unwell: Vec<EndpointKey>,
    /// What operators do, the first last.
    levers: Vec<(Time, Lever)>,
    shares: Arc<Shares>,
    now: Time,
    truths: BTreeMap<EndpointKey, Truth>,
    /// Beginnings and ends of faults to come, the last first.
    edges: Vec<Time>,
    arriving: BinaryHeap<Reverse<Arriving>>,
    /// Attempts that wait for a slow endpoint.
    waiting: Rc<RefCell<BTreeMap<EndpointKey, u32>>>,
    /// Of endpoints that are balanced by it, as a worker sees them.
    latencies: Rc<RefCell<BTreeMap<EndpointKey, Latency>>>,
    draws: u64,
    /// Planned requests so far.
    turn: usize,
    fine_until: Time,
    fine_left: u64,
    measure: Measure,
    /// The clusters that are called.
    called: BTreeSet<Arc<str>>,
    /// Their endpoints.
    endpoints: BTreeSet<EndpointKey>,
    /// The backends that take less than they are known to, by route.
    lowered: BTreeMap<(Arc<str>, Arc<str>), f64>,
    /// What active checks have found bad.
    unhealthy: BTreeSet<EndpointKey>,
    events: Vec<(Time, FleetEvent)>,
    events_left_out: usize,
    weight_max: f64,
}

/// A service, and what a worker keeps of it.
struct Called {
    ix: ServiceIx,
    /// The rule that its requests are for, where it has rules.
    rule: Option<usize>,
    /// Where each part of the rule's split goes, or all.
    lanes: Vec<usize>,
    budget: RetryBudget,
    turn: u64,
}

/// A request on its way.
#[derive(Debug, Clone, Copy)]
struct Sent {
    /// The service that it is for.
    nth: usize,
    draw: u64,
    /// The part that it goes to first.
    part: Option<usize>,
}

/// What became of a request so far.
#[derive(Debug, Default)]
struct Tries {
    weight: f64,
    been: Parts,
    counted: u32,
    retried: f64,
    failed: Option<Failure>,
    /// Whether the try after that was allowed, and is still to be made.
    is_paid: bool,
    elapsed: Duration,
    give_up: Option<Duration>,
    is_answered: bool,
    is_over: bool,
    /// Whether something healthy had no capacity left.
    met_full: bool,
}

/// Something that is known at a later time; in the order of time, then of its number.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arriving {
    at: Time,
    nth: u64,
    what: Arrives,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Arrives {
    Check(EndpointKey, bool),
    /// How long it took, and how many requests waited for it there.
    Outcome(EndpointKey, Result<(), Failure>, Duration, u32),
    /// How long one took that was given up, where that says something of the endpoint.
    GivenUp(EndpointKey, Option<Duration>),
}

impl<'a> World<'a> {
    pub(super) fn new(
        snapshot: &'a Snapshot,
        scenario: &'a Scenario,
        mut fleet: Fleet,
        origin: Time,
    ) -> Self {
        fleet.count_apart();
        let shares = Arc::new(fleet.shares(origin));
        // What came before is nobody's here.
        drop(fleet.drain_events());
        let all = (0..snapshot.services.len()).map(ServiceIx);
        let wanted: Vec<ServiceIx> = if scenario.services.is_empty() {
            all.collect()
        } else {
            scenario.services.clone()
        };
        let (services, lanes) = called(snapshot, scenario, wanted);
        let mut edges: Vec<Time> = (scenario.faults.iter())
            .flat_map(|fault| [Some(fault.from), fault.to].into_iter().flatten())
            .filter(|at| at.since_origin() < scenario.lasts)
            .collect();
        edges.sort_unstable_by(|a, b| b.cmp(a));
        edges.dedup();
        let clusters: Vec<ClusterIx> = lanes.iter().map(|lane| lane.cluster).collect();
        let measure = Measure::new(snapshot, scenario, &lanes, &shares);
        let mut world = Self {
            snapshot,
            scenario,
            services,
            lanes: Vec::new(),
            unwell: fleet.unwell().cloned().collect(),
            fleet,
            origin,
            levers: levers(scenario),
            shares,
            now: Time::ZERO,
            truths: BTreeMap::new(),
            edges,
            arriving: BinaryHeap::new(),
            waiting: Rc::default(),
            latencies: Rc::default(),
            draws: 0,
            turn: 0,
            fine_until: Time::ZERO,
            fine_left: FINE_MAX,
            measure,
            called: (clusters.iter())
                .map(|ix| Arc::clone(&snapshot.cluster(*ix).name))
                .collect(),
            endpoints: (clusters.iter())
                .flat_map(|ix| &snapshot.cluster(*ix).endpoints)
                .map(|endpoint| endpoint.key.clone())
                .collect(),
            lowered: BTreeMap::new(),
            unhealthy: BTreeSet::new(),
            events: Vec::new(),
            events_left_out: 0,
            weight_max: 1.0,
        };
        world.lanes = clusters;
        world.set_truths();
        world
    }

    pub(super) fn play(mut self) -> Report {
        let end = Time::from_origin(self.scenario.lasts);
        let mut request_at = Time::ZERO;
        loop {
            let edge = self.edges.last().copied();
            let arriving = self.arriving.peek().map(|Reverse(next)| next.at);
            let wake = (self.fleet.next_wake()).map(|at| Time::from_origin(at.since(self.origin)));
            let next = [edge, arriving, wake, Some(request_at)]
                .into_iter()
                .flatten()
                .min();
            let Some(next) = next.filter(|next| *next < end) else {
                break;
            };
            self.now = next.max(self.now);
            if edge.is_some_and(|at| at <= self.now) {
                self.edges.pop();
                self.measure.edge(self.now, &self.fleet);
                self.set_truths();
                self.pull_levers();
                self.disturbed();
            }
            while let Some(Reverse(next)) = self.arriving.peek()
                && next.at <= self.now
            {
                self.take_arrived();
            }
            if wake.is_some_and(|at| at <= self.now) {
                self.wake();
            }
            if request_at <= self.now {
                let weight = self.requests();
                let apart = weight / (self.scenario.rate * self.services.len().max(1) as f64);
                request_at = self.now + Duration::from_secs_f64(apart.clamp(1e-9, APART_MAX));
            }
        }
        self.now = end;
        let shares = self.fleet.shares(self.clock());
        self.publish(shares);
        self.measure.edge(end, &self.fleet);
        let (counts, services) = self.measure.report();
        Report {
            counts,
            services,
            events: self.events,
            events_left_out: self.events_left_out,
            weight_max: self.weight_max,
            tick: self.scenario.lasts / TICKS,
        }
    }

    /// The time by the fleet's clock.
    fn clock(&self) -> Time {
        self.origin + self.now.since_origin()
    }

    fn pull_levers(&mut self) {
        let now = self.clock();
        while let Some((_, lever)) = self.levers.pop_if(|(at, _)| *at <= self.now) {
            match lever {
                Lever::Evacuate(of) => drop(self.fleet.evacuate(of, now)),
                Lever::End(of) => drop(self.fleet.end_evacuation(&of, now)),
                Lever::Reset(route) => drop(self.fleet.reset(&route, now)),
            }
        }
        self.refresh();
    }

    fn draw(&mut self) -> u64 {
        self.draws += 1;
        mix(self.scenario.seed, self.draws)
    }

    /// Each request counts from here on, for a while.
    fn disturbed(&mut self) {
        self.fine_until = self.now + FINE;
    }

    fn set_truths(&mut self) {
        self.truths.clear();
        let unwell = self.unwell.iter();
        self.truths
            .extend(unwell.map(|key| (key.clone(), Truth::Down)));
        for fault in &self.scenario.faults {
            if let Some(truth) = fault.truth(self.now) {
                self.truths
                    .extend(fault.hit.iter().map(|key| (key.clone(), truth)));
            }
        }
        self.lower_capacities();
    }

    /// Has the gateway know what backends take at this time.
    fn lower_capacities(&mut self) {
        let mut lowered: BTreeMap<(Arc<str>, Arc<str>), f64> = BTreeMap::new();
        for fault in &self.scenario.faults {
            let Some(most) = fault.capacity(self.now) else {
                continue;
            };
            let hit: BTreeSet<&EndpointKey> = fault.hit.iter().collect();
            for cluster in &self.snapshot.clusters {
                let endpoints = cluster.endpoints.iter();
                for endpoint in endpoints.filter(|endpoint| hit.contains(&endpoint.key)) {
                    let key = (Arc::clone(&cluster.route), Arc::clone(&endpoint.backend));
                    let known = lowered.entry(key).or_insert(most);
                    *known = known.min(most);
                }
            }
        }
        let before = std::mem::replace(&mut self.lowered, lowered);
        for (route, backend) in before.keys().chain(self.lowered.keys()) {
            let key = (Arc::clone(route), Arc::clone(backend));
            let now = self.lowered.get(&key).copied();
            if now != before.get(&key).copied() {
                let at = self.clock();
                (self.fleet).lower_capacity(route, backend, now, at);
            }
        }
        self.refresh();
    }

    fn truth(&self, key: &EndpointKey) -> Truth {
        if self.truths.is_empty() {
            return Truth::Up;
        }
        self.truths.get(key).copied().unwrap_or_default()
    }

    fn later(&mut self, after: Duration, what: Arrives) {
        let nth = self.draws;
        self.draws += 1;
        self.arriving.push(Reverse(Arriving {
            at: self.now + after,
            nth,
            what,
        }));
    }

    fn take_arrived(&mut self) {
        let Some(Reverse(arrived)) = self.arriving.pop() else {
            return;
        };
        match arrived.what {
            Arrives::Check(key, good) => {
                let now = self.clock();
                self.fleet.probed(&key, good, now);
                self.refresh();
            }
            Arrives::Outcome(key, result, took, waited) => {
                self.ended(&key, Some(took), waited);
                self.observe(&key, result, took);
            }
            Arrives::GivenUp(key, took) => {
                self.ended(&key, took, 1);
                if let Some(took) = took {
                    let now = self.clock();
                    (self.fleet).observe_successes(&key, 0, Took::one(took), now);
                    self.refresh();
                }
            }
        }
    }

    /// So many that waited at an endpoint wait no more.
    fn ended(&self, key: &EndpointKey, took: Option<Duration>, waited: u32) {
        if let Some(took) = took
            && let Some(latency) = self.latencies.borrow_mut().get_mut(key)
        {
            latency.observe(took, self.now);
        }
        let mut waiting = self.waiting.borrow_mut();
        if let Some(count) = waiting.get_mut(key) {
            *count = count.saturating_sub(waited);
            if *count == 0 {
                waiting.remove(key);
            }
        }
    }

    fn observe(&mut self, key: &EndpointKey, result: Result<(), Failure>, took: Duration) {
        if result.is_err() {
            self.disturbed();
        }
        let now = self.clock();
        match result {
            Ok(()) => (self.fleet).observe_successes(key, 1, Took::one(took), now),
            Err(_) => {
                let key = key.clone();
                self.fleet.observe(&Observation { key, result }, now);
            }
        }
        self.refresh();
    }

    fn wake(&mut self) {
        let draw = self.draw();
        for probe in self.fleet.due_probes(self.clock(), draw) {
            self.check(probe);
        }
        self.refresh();
    }

    fn check(&mut self, probe: Probe) {
        let truth = match (self.truth(&probe.key), &probe.check.kind) {
            // Whoever takes connections takes a check's.
            (Truth::Errors(_), ActiveKind::Tcp) => Truth::Up,
            (truth, _) => truth,
        };
        let draw = self.draw();
        let error = Failure::Status(503);
        let deadlines = Deadlines {
            connect: probe.connect.min(probe.check.timeout),
            answer: probe.check.timeout,
        };
        let (result, took) = truth.attempt(self.now, deadlines, error, draw);
        self.later(took.max(CHECK), Arrives::Check(probe.key, result.is_ok()));
    }

    /// Publishes the shares, if they may have changed.
    fn refresh(&mut self) {
        if self.fleet.has_changed() {
            let shares = self.fleet.shares(self.clock());
            self.publish(shares);
        }
    }

    fn publish(&mut self, shares: Shares) {
        for event in self.fleet.drain_events() {
            if !self.is_news(&event) {
                continue;
            }
            self.disturbed();
            if self.events.len() < EVENTS_MAX {
                self.events.push((self.now, event));
            } else {
                self.events_left_out += 1;
            }
        }
        if shares != *self.shares {
            self.measure.shares(self.now, &shares, &self.shares);
            self.shares = Arc::new(shares);
        }
    }

    /// Whether an event is about what is called; the first good answer of an endpoint tells nothing.
    fn is_news(&mut self, event: &FleetEvent) -> bool {
        match event {
            FleetEvent::Unhealthy { key } => {
                self.endpoints.contains(key) && self.unhealthy.insert(key.clone())
            }
            FleetEvent::Healthy { key } => self.unhealthy.remove(key),
            FleetEvent::SharesMoved { cluster, .. } | FleetEvent::WaitsForReset { cluster, .. } => {
                self.called.contains(cluster)
            }
            FleetEvent::Ejected { key, .. }
            | FleetEvent::Readmitted { key }
            | FleetEvent::Reported { key, .. } => self.endpoints.contains(key),
            FleetEvent::ReportStale { .. } | FleetEvent::FailsAlike { .. } => true,
        }
    }

    /// Sends the next request, or as many as it stands for; returns how many.
    fn requests(&mut self) -> f64 {
        let all = self.scenario.rate * self.services.len() as f64;
        let coarse = (all / COARSE_PER_SECOND).floor().max(1.0);
        // Each service in its turn.
        self.turn += 1;
        let nth = self.turn % self.services.len().max(1);
        let draw = self.draw();
        let sent = Sent {
            nth,
            draw,
            part: self.part(nth, draw, Parts::default()),
        };
        let first = sent.part.and_then(|part| self.first(sent, part));
        let well = first.filter(|(_, key)| self.truth(key) == Truth::Up);
        let weight = self.weight(coarse, well.is_some());
        self.offer(sent, weight);
        match well {
            Some((ix, key)) => {
                self.take(sent, ix, weight);
                self.answered(sent, key, weight);
            }
            None => {
                let runs = weight.min(RUNS_MAX).ceil();
                let mut run = 0.0;
                while run < runs {
                    self.request(sent, weight / runs);
                    run += 1.0;
                }
            }
        }
        if let Some(called) = self.services.get_mut(nth) {
            called.turn += 1;
        }
        weight
    }

    /// The part of its rule's split that a request goes to, of those that it has not been to; the only
    /// one where there is no split. `None`: there is none, or no rule is for it.
    fn part(&self, nth: usize, draw: u64, been: Parts) -> Option<usize> {
        let called = self.services.get(nth)?;
        match self.snapshot.split(called.ix, called.rule)? {
            Some(split) => choose(split, Role::Workloads, &self.shares, draw, been),
            None => (!been.has(0)).then_some(0),
        }
    }

    /// Where a part's requests go.
    fn cluster_of(&self, nth: usize, part: usize) -> Option<(usize, ClusterIx)> {
        let lane = *self.services.get(nth)?.lanes.get(part)?;
        Some((lane, *self.lanes.get(lane)?))
    }

    /// What a plan of this cluster draws.
    fn draw_for(&self, cluster: &Cluster, sent: Sent) -> u64 {
        match &cluster.policy.balance {
            Balance::RoundRobin => (self.services.get(sent.nth)).map_or(0, |called| called.turn),
            // Each has a key of its own.
            Balance::LeastRequest
            | Balance::PeakEwma
            | Balance::Random
            | Balance::RingHash(_)
            | Balance::Maglev(_) => sent.draw,
        }
    }

    /// How busy an endpoint looks.
    fn load_of(&self, cluster: &'a Cluster, draw: u64) -> impl Fn(EndpointIx) -> u32 + use<'a> {
        let (waiting, latencies) = (Rc::clone(&self.waiting), Rc::clone(&self.latencies));
        let usual = self.scenario.rate * ANSWER.as_secs_f64() / cluster.endpoints.len() as f64;
        let (is_timed, now) = (cluster.policy.balance == Balance::PeakEwma, self.now);
        move |ix: EndpointIx| -> u32 {
            let waiting = waiting.borrow();
            let key = &cluster.endpoint(ix).key;
            let load = if waiting.is_empty() {
                // Most of the time nobody waits, and all are as busy.
                0
            } else {
                let usual = usual + fraction(draw, ix.0 as u64);
                waiting.get(key).copied().unwrap_or_else(|| whole(usual))
            };
            if !is_timed {
                return load;
            }
            let latency = latencies.borrow().get(key).copied();
            latency.unwrap_or_default().cost(load, now)
        }
    }

    /// Notes how long an endpoint had a request, where its cluster is balanced by that.
    fn timed(&self, cluster: &Cluster, key: &EndpointKey, took: Option<Duration>) {
        if cluster.policy.balance != Balance::PeakEwma {
            return;
        }
        let mut latencies = self.latencies.borrow_mut();
        let latency = latencies.entry(key.clone()).or_default();
        if let Some(took) = took {
            latency.observe(took, self.now);
        }
    }

    /// The endpoint that is tried first.
    fn first(&self, sent: Sent, part: usize) -> Option<(EndpointIx, EndpointKey)> {
        let (_, ix) = self.cluster_of(sent.nth, part)?;
        let cluster = self.snapshot.cluster(ix);
        let draw = self.draw_for(cluster, sent);
        let load = self.load_of(cluster, draw);
        let of = self.shares.clusters.get(ix.0)?;
        let first = self.within(of, plan(cluster, of, &load, draw)).next()?;
        let key = cluster.endpoint(first.endpoint).key.clone();
        Some((first.endpoint, key))
    }

    /// Without what is full, as a worker does.
    fn within<'p>(&self, of: &ClusterShares, plan: Plan<'p>) -> Plan<'p> {
        match &of.metered {
            Some(metered) => plan.within(metered.full(self.clock())),
            None => plan,
        }
    }

    /// Counts what is offered where it goes first.
    fn offer(&self, sent: Sent, weight: f64) {
        let of = sent.part.and_then(|part| self.cluster_of(sent.nth, part));
        let of = of.and_then(|(_, ix)| self.shares.clusters.get(ix.0)?.metered.as_ref());
        if let Some(metered) = of {
            metered.offered().add(rounded(weight));
        }
    }

    /// Takes so much of what an endpoint's backend takes, that had room for one.
    fn take(&self, sent: Sent, ix: EndpointIx, weight: f64) {
        let of = sent.part.and_then(|part| self.cluster_of(sent.nth, part));
        let of = of.and_then(|(_, ix)| self.shares.clusters.get(ix.0)?.metered.as_ref());
        let has_taken = of.is_none_or(|of| of.take_many(ix, weight, self.clock()));
        debug_assert!(has_taken, "it was not full");
    }

    /// How many requests the next one stands for.
    fn weight(&mut self, coarse: f64, is_well: bool) -> f64 {
        if !is_well {
            // What fails is looked at one by one.
            self.disturbed();
        }
        let weight = if coarse > 1.0 && self.now < self.fine_until && self.fine_left > 0 {
            self.fine_left -= 1;
            1.0
        } else {
            coarse
        };
        self.weight_max = self.weight_max.max(weight);
        weight
    }

    /// So many requests were answered by an endpoint that is well.
    fn answered(&mut self, sent: Sent, key: EndpointKey, weight: f64) {
        let counts = Counts {
            sent: weight,
            answered: weight,
            ..Counts::default()
        };
        self.count(sent, &counts);
        let at = sent.part.and_then(|part| self.cluster_of(sent.nth, part));
        if let Some((_, ix)) = at {
            self.timed(self.snapshot.cluster(ix), &key, Some(ANSWER));
        }
        let mut outcomes = 0;
        while f64::from(outcomes) < weight && outcomes < OUTCOMES_MAX {
            outcomes += 1;
            if let Some(called) = self.services.get_mut(sent.nth) {
                called.budget.request(self.now);
            }
            let now = self.clock();
            (self.fleet).observe_successes(&key, 1, Took::one(ANSWER), now);
        }
        self.refresh();
    }

    /// Counts it where it was sent first.
    fn count(&mut self, sent: Sent, counts: &Counts) {
        let lane = self.cluster_of(sent.nth, sent.part.unwrap_or_default());
        if let Some((lane, _)) = lane {
            self.measure.count(lane, self.now, counts);
        }
    }

    /// One request, as a worker carries it; it counts as so many.
    fn request(&mut self, sent: Sent, weight: f64) {
        if let Some(called) = self.services.get_mut(sent.nth) {
            called.budget.request(self.now);
        }
        let mut tries = Tries {
            weight,
            ..Tries::default()
        };
        let mut next = sent.part;
        while let Some(part) = next.filter(|_| !tries.is_over) {
            tries.been = tries.been.and(part);
            next = self.part(sent.nth, sent.draw, tries.been);
            self.try_part(sent, part, next.is_some(), &mut tries);
        }
        let mut counts = Counts {
            sent: weight,
            retried: tries.retried,
            ..Counts::default()
        };
        if tries.is_answered {
            counts.answered = weight;
            counts.slow = if tries.elapsed.is_zero() { 0.0 } else { weight };
        } else if tries.failed.is_some() {
            counts.failed = weight;
        } else {
            counts.refused = weight;
            counts.over_capacity = if tries.met_full { weight } else { 0.0 };
        }
        self.count(sent, &counts);
    }

    /// Tries the endpoints of one part, one after the other.
    fn try_part(&mut self, sent: Sent, part: usize, has_other: bool, tries: &mut Tries) {
        let Some((_, ix)) = self.cluster_of(sent.nth, part) else {
            return;
        };
        let cluster = self.snapshot.cluster(ix);
        let shares = Arc::clone(&self.shares);
        let Some(of) = shares.clusters.get(ix.0) else {
            return;
        };
        let draw = self.draw_for(cluster, sent);
        let load = self.load_of(cluster, draw);
        let mut plan = self.within(of, plan(cluster, of, &load, draw));
        tries.met_full |= plan.leaves_out_full();
        while let Some(attempt) = plan.next() {
            let is_unseen = tries.failed.is_none_or(Failure::is_unseen);
            // Before those that were found bad come the other parts of a split.
            let is_bad = tries.failed.is_some() && attempt.is_last_resort(of);
            if is_bad && (!is_unseen || has_other) {
                return;
            }
            // Once for each failure: for want of room nothing may have been sent since.
            if let Some(failure) = tries.failed.filter(|_| !tries.is_paid) {
                // Nothing else limits attempts that cost an endpoint nothing.
                let elapsed = tries.elapsed;
                let give_up =
                    (tries.give_up).get_or_insert_with(|| elapsed + cluster.connect_budget());
                let is_late = is_unseen && elapsed >= *give_up;
                let again = self.may_try_again(sent.nth, cluster, failure, tries.counted);
                let Some(kind) = again.filter(|_| !is_late) else {
                    tries.is_over = true;
                    return;
                };
                tries.counted += u32::from(kind == Again::Counted);
                tries.retried += tries.weight;
                tries.is_paid = true;
            }
            if !self.begins(of, &attempt, tries.weight) {
                continue;
            }
            let first = self.outcome(sent.nth, cluster, attempt.endpoint, tries.elapsed);
            let (result, took) = self.hedge(
                sent.nth,
                (cluster, of),
                &mut plan,
                (&attempt, &first),
                tries,
            );
            tries.elapsed += took;
            if result.is_ok() {
                (tries.is_answered, tries.is_over) = (true, true);
                return;
            }
            tries.failed = result.err();
            tries.is_paid = false;
        }
    }

    /// Takes what so many take, if there is room and the attempt is to be made.
    fn begins(&self, of: &ClusterShares, attempt: &Attempt, weight: f64) -> bool {
        let Some(metered) = &of.metered else {
            return attempt.begins(of);
        };
        let has_taken = metered.take_many(attempt.endpoint, weight, self.clock());
        let begins = has_taken && attempt.begins(of);
        if has_taken && !begins {
            metered.give_back_many(attempt.endpoint, weight);
        }
        begins
    }

    fn may_try_again(
        &mut self,
        nth: usize,
        cluster: &Cluster,
        failure: Failure,
        counted: u32,
    ) -> Option<Again> {
        let (retries, is_http) = self.retries_of(nth, cluster)?;
        let called = self.services.get(nth)?;
        let tried = Tried {
            failure,
            method: is_http.then_some(&*self.scenario.method),
            counted,
            request: RequestLeft::Whole,
            response: ResponseSeen::Nothing,
            sender: Sender::Caller,
        };
        again(&retries, &called.budget, &tried, self.now).ok()
    }

    /// The extra tries of a service's requests, and whether it is of http.
    fn retries_of<'c>(&self, nth: usize, cluster: &'c Cluster) -> Option<(Cow<'c, Retries>, bool)> {
        let called = self.services.get(nth)?;
        let is_http = self.snapshot.service(called.ix).protocol == Protocol::Http;
        let rule = self.snapshot.http_rule(called.ix, called.rule);
        let retries = &cluster.policy.retries;
        let retries = rule.map_or(Cow::Borrowed(retries), |rule| rule.retries(retries));
        Some((retries, is_http))
    }

    /// One attempt, so long after its request came.
    fn outcome(
        &mut self,
        nth: usize,
        cluster: &Cluster,
        ix: EndpointIx,
        after: Duration,
    ) -> Played {
        let endpoint = cluster.endpoint(ix);
        let key = &endpoint.key;
        let timeouts = &cluster.policy.timeouts;
        let (service, rule) = (self.services.get(nth)).map_or((None, None), |called| {
            let rule = self.snapshot.http_rule(called.ix, called.rule);
            (Some(self.snapshot.service(called.ix)), rule)
        });
        let (answer, per_try) = rule
            .map_or((timeouts.response_headers, timeouts.per_try), |rule| {
                rule.timeouts(timeouts)
            });
        let is_http = service.is_some_and(|service| service.protocol == Protocol::Http);
        let deadlines = Deadlines {
            connect: cluster.connect_deadline(endpoint),
            // Bytes have no answer that is waited for.
            answer: if is_http {
                per_try.unwrap_or(answer)
            } else {
                Duration::MAX
            },
        };
        let error = if is_http {
            Failure::Status(503)
        } else {
            Failure::Reset
        };
        let draw = self.draw();
        let begins = self.now + after;
        let (result, took) = self.truth(key).attempt(begins, deadlines, error, draw);
        Played {
            endpoint: ix,
            after,
            result,
            took,
        }
    }

    /// An attempt comes to its end; the fleet learns of it then.
    fn settle(&mut self, cluster: &Cluster, played: &Played) {
        let Played {
            endpoint,
            after,
            result,
            took,
        } = *played;
        let key = &cluster.endpoint(endpoint).key;
        let counted = match result {
            Ok(()) => took.max(ANSWER),
            Err(_) => took.max(FAILED),
        };
        if (after + took).is_zero() {
            self.timed(cluster, key, Some(counted));
            self.observe(key, result, counted);
        } else {
            self.timed(cluster, key, None);
            let waits = if took.is_zero() { 0 } else { 1 };
            if waits > 0 {
                *self.waiting.borrow_mut().entry(key.clone()).or_default() += waits;
            }
            let outcome = Arrives::Outcome(key.clone(), result, counted, waits);
            self.later(after + took, outcome);
        }
    }

    /// An attempt is given up after so long; `told` says whether that says something of its endpoint.
    fn give_up(&mut self, cluster: &Cluster, played: &Played, lasted: Duration, told: bool) {
        let key = &cluster.endpoint(played.endpoint).key;
        self.timed(cluster, key, None);
        *self.waiting.borrow_mut().entry(key.clone()).or_default() += 1;
        let given_up = Arrives::GivenUp(key.clone(), told.then_some(lasted));
        self.later(played.after + lasted, given_up);
    }
}

/// What becomes of an attempt, if nobody gives it up.
#[derive(Debug, Clone, Copy)]
struct Played {
    endpoint: EndpointIx,
    /// How long after its request came it begins.
    after: Duration,
    result: Result<(), Failure>,
    took: Duration,
}

/// How many requests a weight is.
fn rounded(weight: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a weight is a small number above 0"
    )]
    {
        weight.round().max(1.0) as u64
    }
}

/// A small number without its fraction.
fn whole(number: f64) -> u32 {
    (1..=100)
        .take_while(|whole| f64::from(*whole) <= number)
        .count()
        .try_into()
        .unwrap_or(0)
}

/// What operators do, the first last.
fn levers(scenario: &Scenario) -> Vec<(Time, Lever)> {
    let mut levers = Vec::new();
    for fault in &scenario.faults {
        if let FaultKind::Lever(lever) = &fault.kind {
            levers.push((fault.from, lever.clone()));
            if let (Lever::Evacuate(of), Some(to)) = (lever, fault.to) {
                levers.push((to, Lever::End(of.clone())));
            }
        }
    }
    levers.sort_by_key(|(at, _)| Reverse(*at));
    levers
}

/// The services that are called, and where their requests may go.
fn called(
    snapshot: &Snapshot,
    scenario: &Scenario,
    wanted: Vec<ServiceIx>,
) -> (Vec<Called>, Vec<Lane>) {
    let request = Request {
        authority: "",
        method: &scenario.method,
        path: &scenario.path,
        headers: Headers::NONE,
    };
    let mut lanes = Vec::new();
    let services = wanted.into_iter().map(|ix| {
        let service = snapshot.service(ix);
        let rule = service
            .rules
            .as_ref()
            .and_then(|rules| rules.find(&request));
        let first = lanes.len();
        match snapshot.split(ix, rule).flatten() {
            Some(split) => {
                let all: u32 = split.iter().map(|part| part.weight).sum();
                lanes.extend(split.iter().map(|part| Lane {
                    service: ix,
                    cluster: part.outbound,
                    part: Some(Arc::clone(&part.label)),
                    rate: scenario.rate * f64::from(part.weight) / f64::from(all.max(1)),
                }));
            }
            None => lanes.push(Lane {
                service: ix,
                cluster: service.outbound,
                part: None,
                rate: scenario.rate,
            }),
        }
        Called {
            ix,
            rule,
            lanes: (first..lanes.len()).collect(),
            budget: RetryBudget::default(),
            turn: 0,
        }
    });
    let services = services.collect();
    (services, lanes)
}

impl Snapshot {
    /// The rule at `rule` of a service.
    fn http_rule(&self, service: ServiceIx, rule: Option<usize>) -> Option<&HttpRule> {
        self.service(service).rules.as_ref()?.list.get(rule?)
    }

    /// The split that a request for a service goes by, if there is one; `None` where the service has
    /// rules, and none of them is for it.
    fn split(&self, service: ServiceIx, rule: Option<usize>) -> Option<Option<&[Part]>> {
        if self.service(service).rules.is_none() {
            return Some(None);
        }
        Some(self.http_rule(service, rule)?.split.as_deref())
    }
}
