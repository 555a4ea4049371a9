//! One seeded history: a configuration, faults, traffic, checks and pushes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use zeugma_core::authorize::Evidence;
use zeugma_core::balance::key;
use zeugma_core::engine::{Arrival, Carry, Decision, Headers, Request, Wants, decide};
use zeugma_core::explain::{Beside, Question, explain};
use zeugma_core::fleet::{Evacuation, Fleet, FleetEvent, Observation, STALE_AFTER};
use zeugma_core::identity::SpiffeId;
use zeugma_core::names::HostPattern;
use zeugma_core::outlier::EjectCause;
use zeugma_core::plan::{Attempt, LEVEL_ATTEMPTS_MAX, Why, plan};
use zeugma_core::report::{Presence, Report, Standing};
use zeugma_core::retry::{Again, RequestLeft, ResponseSeen, RetryBudget, Sender, Tried, again};
use zeugma_core::shares::{ClusterShares, EndpointStatus, Shares};
use zeugma_core::simulate::{Deadlines, Truth};
use zeugma_core::slow::Took;
use zeugma_core::snapshot::{
    Balance, Cluster, EndpointIx, EndpointKey, Failure, ServiceIx, Snapshot, WhenStale,
};
use zeugma_core::time::Time;
use zeugma_core::verdict::Reason;

use crate::check::{Reports, Said, Seen, Since};
use crate::world::{Blueprint, GATEWAYS, Route, gateway};

const STEPS: u32 = 40;
/// Times that a fleet may ask to be woken within one step: twice for each check of two dozen endpoints
/// in 30 s, where each is made every half second.
const WAKES_MAX: u32 = 5000;
/// One of so many requests is explained.
const EXPLAINED_EVERY: u64 = 8;
/// One of so many scenarios is watched for the longest time that anything may take.
const WATCHED_TO_THE_END: u64 = 16;
/// How often a gateway says that its report still holds.
const BEAT: Duration = Duration::from_secs(2);

/// A gateway of the peer, as it reports.
#[derive(Debug, Default)]
struct Reporter {
    /// What it would say; nothing before its first report.
    says: Option<Arc<Report>>,
    /// Nothing of what it says arrives.
    is_mute: bool,
    /// When it speaks next.
    beat: Time,
    /// What arrives later than it was said.
    late: Vec<(Time, Arc<Report>)>,
    /// What arrived last, and when.
    heard: Option<(Time, Arc<Report>)>,
}

/// What happened, so that a run can tell that it tried everything.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Tally {
    requests: u64,
    answered: u64,
    tried_again: u64,
    refused: u64,
    refused_to_peers: u64,
    denied: u64,
    failed_over: u64,
    too_few: u64,
    ejected: u64,
    slow: u64,
    unhealthy: u64,
    alike: u64,
    reported: u64,
    reports_late: u64,
    reports_old: u64,
    reports_forgotten: u64,
    pushes: u64,
    rises: u64,
    settled: u64,
    evacuated: u64,
    released: u64,
    kept: u64,
    explained: u64,
    spilled: u64,
    over_capacity: u64,
}

impl Reporter {
    /// When something of it arrives next.
    fn next(&self) -> Option<Time> {
        let beat = self.says.as_ref().map(|_| self.beat);
        let late = self.late.iter().map(|(at, _)| *at).min();
        [beat, late].into_iter().flatten().min()
    }
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        for (to, from) in self
            .counts_mut()
            .into_iter()
            .zip(other.clone().counts_mut())
        {
            *to += *from;
        }
    }

    pub(crate) fn check_that_everything_happened(&mut self) {
        let tally = format!("{self:?}");
        assert!(
            self.counts_mut().into_iter().all(|count| *count > 0),
            "{tally}"
        );
    }

    fn counts_mut(&mut self) -> [&mut u64; 25] {
        [
            &mut self.requests,
            &mut self.answered,
            &mut self.tried_again,
            &mut self.refused,
            &mut self.refused_to_peers,
            &mut self.denied,
            &mut self.failed_over,
            &mut self.too_few,
            &mut self.ejected,
            &mut self.slow,
            &mut self.unhealthy,
            &mut self.alike,
            &mut self.reported,
            &mut self.reports_late,
            &mut self.reports_old,
            &mut self.reports_forgotten,
            &mut self.pushes,
            &mut self.rises,
            &mut self.settled,
            &mut self.evacuated,
            &mut self.released,
            &mut self.kept,
            &mut self.explained,
            &mut self.spilled,
            &mut self.over_capacity,
        ]
    }
}

/// What a backend takes in a second, and when something was sent to it.
type Sent = (f64, Vec<Time>);

pub(crate) struct Scenario {
    seed: u64,
    rng: Rng,
    blueprint: Blueprint,
    snapshot: Rc<Snapshot>,
    fleet: Fleet,
    shares: Rc<Shares>,
    now: Time,
    truth: BTreeMap<EndpointKey, Truth>,
    /// Answers of checks on their way.
    answers: Vec<(Time, EndpointKey)>,
    reporters: BTreeMap<u16, Reporter>,
    budget: RetryBudget,
    seen: Seen,
    /// What the fleet told since it was looked at, and whether a failure took something back.
    told: Vec<FleetEvent>,
    is_taken_back: bool,
    /// When each ejection is over by itself.
    out_until: BTreeMap<EndpointKey, Time>,
    /// When what was sent to each backend of each route whose capacity is known.
    sent: BTreeMap<(Arc<str>, Arc<str>), Sent>,
    tally: Tally,
}

impl Scenario {
    pub(crate) fn new(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let blueprint = Blueprint::random(&mut rng);
        let snapshot = Rc::new(blueprint.snapshot());
        let mut fleet = Fleet::new();
        fleet.reconcile(&snapshot, Time::ZERO);
        let shares = Rc::new(fleet.shares(Time::ZERO));
        assert_eq!(shares.clusters.len(), snapshot.clusters.len());
        Self {
            seed,
            rng,
            blueprint,
            snapshot,
            fleet,
            shares,
            now: Time::ZERO,
            truth: BTreeMap::new(),
            answers: Vec::new(),
            reporters: (GATEWAYS.iter())
                .map(|port| (*port, Reporter::default()))
                .collect(),
            budget: RetryBudget::default(),
            seen: Seen::default(),
            told: Vec::new(),
            is_taken_back: false,
            out_until: BTreeMap::new(),
            sent: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    pub(crate) fn run(mut self) -> Tally {
        self.look(Since::Events);
        for _ in 0..STEPS {
            let millis = *self.rng.choice(&[1, 10, 100, 1000, 5000]).unwrap();
            let passes = Duration::from_millis(self.rng.u64(0..=millis));
            self.pass(passes);
            match self.rng.u8(0..10) {
                0..=2 => self.fault(),
                3 => self.push(),
                4..=6 => self.report(),
                7 => self.pull(),
                _ => {}
            }
            for _ in 0..self.rng.u32(0..20) {
                self.request();
            }
            self.look(Since::Events);
        }
        self.recover();
        self.check_sent();
        self.tally.rises = self.seen.rises;
        self.tally.settled = self.seen.settled;
        self.tally
    }

    /// Lets time pass, waking the fleet whenever it asked to be.
    fn pass(&mut self, by: Duration) {
        let end = self.now + by;
        for wakes in 0.. {
            assert!(wakes < WAKES_MAX, "the fleet wakes without end");
            let answer = self.answers.iter().map(|(at, _)| *at).min();
            let spoken = self.reporters.values().filter_map(Reporter::next).min();
            let next = [self.fleet.next_wake(), answer, spoken];
            let next = next.into_iter().flatten().min();
            let Some(next) = next.filter(|next| *next <= end) else {
                break;
            };
            self.now = next.max(self.now);
            self.wake();
        }
        self.now = end;
    }

    fn wake(&mut self) {
        let (due, later) = std::mem::take(&mut self.answers)
            .into_iter()
            .partition(|(at, _)| *at <= self.now);
        self.answers = later;
        for (_, key) in due {
            let ok = self.attempt(&key).is_ok();
            self.fleet.probed(&key, ok, self.now);
        }
        self.speak();
        for probe in self.fleet.due_probes(self.now, self.rng.u64(..)) {
            // One in fifty is never heard of again.
            if self.rng.u8(..50) > 0 {
                let latency = Duration::from_millis(self.rng.u64(0..1000));
                self.answers.push((self.now + latency, probe.key));
            }
        }
        if self.fleet.has_changed() {
            self.look(Since::Events);
        }
    }

    fn look(&mut self, since: Since) {
        let told = self.fleet.has_changed() || self.fleet.is_moving();
        let shares = self.fleet.shares(self.now);
        assert!(
            told || shares == *self.shares,
            "shares changed and nobody was told"
        );
        self.shares = Rc::new(shares);
        let mut since = since;
        if std::mem::take(&mut self.is_taken_back) {
            since = Since::Alike;
        }
        let mut told = std::mem::take(&mut self.told);
        told.extend(self.fleet.drain_events());
        for event in told {
            match event {
                FleetEvent::Ejected { key, lasts, cause } => {
                    self.tally.ejected += 1;
                    self.tally.slow += u64::from(cause == EjectCause::Slow);
                    self.out_until.insert(key, self.now + lasts);
                }
                FleetEvent::Unhealthy { .. } => self.tally.unhealthy += 1,
                FleetEvent::Reported { .. } => self.tally.reported += 1,
                FleetEvent::ReportStale { .. } => self.tally.reports_old += 1,
                FleetEvent::FailsAlike { .. } => self.tally.alike += 1,
                FleetEvent::WaitsForReset { .. } => self.tally.kept += 1,
                // What is taken back early comes undamped.
                FleetEvent::Readmitted { key } if self.out_until.get(&key) > Some(&self.now) => {
                    since = Since::Alike;
                }
                _ => {}
            }
        }
        self.tally.too_few += u64::from(self.shares.clusters.iter().any(|of| of.too_few));
        let reports = self.reports();
        let asked = (&*self.snapshot, &reports);
        self.seen.check(asked, &self.shares, self.now, since);
    }

    /// One gateway of the peer says otherwise, falls silent, speaks again, or is another program.
    fn report(&mut self) {
        let port = *self.rng.choice(&GATEWAYS).unwrap();
        let mut report = Report::default();
        for service in &self.snapshot.services {
            // Some are exported to nobody here.
            if self.rng.u8(..8) > 0 {
                let total = self.rng.u32(0..=4);
                let healthy = if self.rng.bool() {
                    total
                } else {
                    self.rng.u32(0..=total)
                };
                let standing = Standing::new(healthy, total, healthy.into(), total.into());
                report.set(&service.hosts[0], service.port, standing.unwrap());
            }
        }
        report.presence = match self.rng.u8(..10) {
            0 => Presence::Leaving,
            1 => Presence::Gone,
            _ => Presence::Serving,
        };
        let now = self.now;
        let reporter = self.reporters.get_mut(&port).unwrap();
        match self.rng.u8(..10) {
            0 => reporter.is_mute = true,
            1 => {
                *reporter = Reporter::default();
                self.tally.reports_forgotten += 1;
                self.fleet.forget_report("west", &gateway(port), now);
            }
            2 if reporter.says.is_some() => {
                let late = now + Duration::from_millis(self.rng.u64(0..3000));
                reporter.late.push((late, Arc::new(report)));
                self.tally.reports_late += 1;
            }
            _ => {
                reporter.is_mute = false;
                reporter.says = Some(Arc::new(report));
                reporter.beat = now;
            }
        }
        self.speak();
    }

    /// Has arrive what gateways say by now.
    fn speak(&mut self) {
        for (port, reporter) in &mut self.reporters {
            let mut arrives = Vec::new();
            let (due, later) = std::mem::take(&mut reporter.late)
                .into_iter()
                .partition(|(at, _)| *at <= self.now);
            reporter.late = later;
            for (_, report) in due {
                reporter.says = Some(Arc::clone(&report));
                arrives.push(report);
            }
            if let Some(says) = reporter.says.as_ref().filter(|_| reporter.beat <= self.now) {
                arrives.push(Arc::clone(says));
                reporter.beat = self.now + BEAT;
            }
            for report in arrives.into_iter().filter(|_| !reporter.is_mute) {
                (self.fleet).report(&"west".into(), &gateway(*port), &report, self.now);
                reporter.heard = Some((self.now, report));
            }
        }
    }

    /// What is known of each endpoint behind the peer's gateways.
    fn reports(&self) -> Reports {
        let mut reports = Reports::new();
        for service in &self.snapshot.services {
            for endpoint in &self.snapshot.cluster(service.outbound).endpoints {
                let address = |(port, _): &(&u16, &Reporter)| gateway(**port) == endpoint.address;
                let (_, reporter) = match self.reporters.iter().find(address) {
                    Some(found) if endpoint.peer.is_some() => found,
                    _ => continue,
                };
                let said = self.said(reporter, &service.hosts[0], service.port);
                reports.extend(said.map(|said| (endpoint.key.clone(), said)));
            }
        }
        reports
    }

    fn said(&self, reporter: &Reporter, host: &HostPattern, port: u16) -> Option<Said> {
        let (at, report) = reporter.heard.as_ref()?;
        let is_old = self.now.since(*at) >= STALE_AFTER;
        if is_old && self.blueprint.when_stale == WhenStale::Drop {
            return None;
        }
        let found = report
            .entries()
            .find(|(of, at, _)| of == host && *at == port);
        let is_there = report.presence != Presence::Gone;
        let of = match found {
            None if report.presence != Presence::Serving => Standing::new(1, 1, 1.0, 1.0)?,
            None => return None,
            Some((_, _, standing)) => standing,
        };
        Some(Said {
            weight: of.weight(),
            healthy: if is_there { of.healthy_weight() } else { 0.0 },
            is_old,
        })
    }

    fn fault(&mut self) {
        let truth = match self.rng.u8(0..8) {
            0 | 1 => Truth::Up,
            2 | 3 => Truth::Down,
            4 => Truth::Errors(self.rng.f64()),
            5 => Truth::Errors(1.0),
            6 => Truth::Slow(Duration::MAX),
            _ => Truth::Flapping {
                turn: Duration::from_millis(self.rng.u64(100..10_000)),
                from: self.now,
            },
        };
        let cluster = self.rng.choice(&self.snapshot.clusters).unwrap();
        let (all, level) = (self.rng.u8(0..4), self.rng.usize(..cluster.levels.len()));
        let hit: Vec<_> = (cluster.levels.iter().enumerate())
            .flat_map(|(at, level)| level.members.iter().map(move |ix| (at, ix.0)))
            // Everything, a whole level, or one.
            .filter(|(at, ix)| all == 0 || (*at == level && (all == 1 || *ix % 2 == 0)))
            .map(|(_, ix)| cluster.endpoints[ix].key.clone())
            .collect();
        for key in hit {
            self.truth.insert(key, truth);
        }
    }

    /// An operator takes traffic off something, or lets it come back.
    fn pull(&mut self) {
        self.look(Since::Events);
        let cluster = Arc::clone(self.rng.choice(&self.snapshot.clusters).unwrap());
        let endpoint = self.rng.choice(&cluster.endpoints);
        let evacuated: Vec<_> = self.fleet.evacuations().cloned().collect();
        match (self.rng.u8(0..6), endpoint) {
            (0, Some(endpoint)) => {
                let of = match self.rng.u8(0..3) {
                    0 => Evacuation::Locality(endpoint.locality.clone()),
                    1 => Evacuation::Peer("west".into()),
                    _ => Evacuation::Backend {
                        route: Arc::clone(&cluster.route),
                        backend: Arc::clone(&endpoint.backend),
                    },
                };
                self.tally.evacuated += u64::from(self.fleet.evacuate(of, self.now));
            }
            (1..=3, _) => {
                for of in evacuated {
                    assert!(self.fleet.end_evacuation(&of, self.now));
                }
            }
            _ => {
                let released = self.fleet.reset(&cluster.route, self.now);
                self.tally.released += u64::from(released > 0);
            }
        }
        self.look(Since::Lever);
    }

    fn push(&mut self) {
        self.tally.pushes += 1;
        let before = self.statuses();
        let routes = self.blueprint.routes.clone();
        self.look(Since::Events);
        let shares: BTreeMap<_, _> = (self.snapshot.clusters.iter().zip(&self.shares.clusters))
            .map(|(cluster, of)| (cluster.name.clone(), of.levels.clone()))
            .collect();
        self.blueprint.push(&mut self.rng);
        self.snapshot = Rc::new(self.blueprint.snapshot());
        self.fleet.reconcile(&self.snapshot, self.now);
        self.look(Since::Push);
        // A push never loses health.
        for (key, status) in self.statuses() {
            if let Some(before) = before.get(&key) {
                assert_eq!(*before, status, "a push changed the health of {key}");
            }
        }
        for (cluster, of) in self.snapshot.clusters.iter().zip(&self.shares.clusters) {
            let untouched = (routes.iter()).any(|route| {
                *route.name == *cluster.route && self.blueprint.routes.contains(route)
            });
            if untouched {
                assert_eq!(shares[&cluster.name], of.levels, "{}", cluster.name);
            }
        }
    }

    fn statuses(&self) -> BTreeMap<EndpointKey, EndpointStatus> {
        let keys = self
            .snapshot
            .clusters
            .iter()
            .flat_map(|cluster| &cluster.endpoints);
        keys.map(|endpoint| {
            (
                endpoint.key.clone(),
                self.fleet.status(&endpoint.key).unwrap(),
            )
        })
        .collect()
    }

    /// One request through the whole engine, as a worker would carry it.
    #[expect(
        clippy::too_many_lines,
        reason = "one request, from its draw to its end"
    )]
    fn request(&mut self) {
        self.tally.requests += 1;
        let ix = self.rng.usize(..self.snapshot.services.len());
        let service = &self.snapshot.services[ix];
        let route = self
            .blueprint
            .routes
            .iter()
            .find(|route| *route.name == *service.name);
        let denied = self.rng.bool();
        let source: IpAddr = if denied {
            [10, 0, 0, 1].into()
        } else {
            [192, 0, 2, 1].into()
        };
        let authority = format!("{}.test:{}", service.name, service.port);
        let gateway = SpiffeId::parse("spiffe://west.test/gateway").unwrap();
        let mesh = self.rng.bool();
        let request = Request {
            authority: &authority,
            method: "GET",
            path: "/",
            headers: Headers::NONE,
        };
        let snapshot = Rc::clone(&self.snapshot);
        let shares = Rc::clone(&self.shares);
        let arrival = Arrival {
            listener: &snapshot.listeners[usize::from(mesh)],
            source,
            evidence: if mesh {
                Evidence::Verified(&gateway)
            } else {
                Evidence::Network
            },
            sni: None,
            wants: if mesh {
                Wants::Inside(ServiceIx(ix))
            } else {
                Wants::Request(request)
            },
        };
        let draw = self.rng.u64(..);
        // What this worker has under way does not matter to what must hold.
        let load = |at: EndpointIx| u32::try_from((draw >> (at.0 % 60)) & 7).unwrap();
        let own = service.own.unwrap();
        let has_own = (shares.clusters[own.0].endpoints.iter()).any(|status| status.is_healthy());
        let decided = decide(&snapshot, &shares, &arrival, &load, draw);
        self.offer(&shares, &decided);
        let decision = decided.within(&shares, self.now);
        if self.tally.requests.is_multiple_of(EXPLAINED_EVERY) {
            let beside = Beside {
                load: &load,
                draw,
                now: self.now,
                refuses: &|_, _| None,
            };
            self.explain(&arrival, &authority, beside, &decision);
            self.tally.explained += 1;
        }
        match decision {
            Decision::Carry(carry) => {
                // None healthy: refused at once, for the calling gateway tries elsewhere.
                assert!(
                    !mesh || (carry.cluster == own && has_own),
                    "no local endpoint"
                );
                let is_denied = denied && route.is_some_and(Route::denies);
                assert!(!is_denied, "deny did not win");
                self.carry(&snapshot, &shares, &carry);
            }
            Decision::Refuse(refusal) => match refusal.reason {
                Reason::Denied => self.tally.denied += 1,
                Reason::NoHealthyEndpoint if !mesh => self.tally.refused += 1,
                Reason::NoLocalEndpoint if mesh => self.tally.refused_to_peers += 1,
                Reason::OverCapacity => {
                    self.tally.over_capacity += 1;
                    let to = if mesh { own } else { service.outbound };
                    let of = &shares.clusters[to.0];
                    let metered = of.metered.as_ref().unwrap();
                    let has_room = (0..of.endpoints.len())
                        .map(EndpointIx)
                        .any(|ix| of.is_usable(ix) && metered.has_room(ix, self.now));
                    assert!(!has_room, "refused beside room");
                }
                other => assert_eq!(other, Reason::Denied, "refused for a reason that is none"),
            },
            other @ (Decision::Terminate(..) | Decision::ReadHttp | Decision::Report) => {
                assert!(matches!(other, Decision::Carry(_)), "{other:?}");
            }
        }
    }

    /// What is told of a decision is that decision.
    fn explain(
        &self,
        arrival: &Arrival<'_>,
        authority: &str,
        beside: Beside<'_>,
        decision: &Decision<'_>,
    ) {
        let from = match arrival.evidence {
            Evidence::Verified(id) => Some(id.clone()),
            _ => None,
        };
        let question = Question {
            host: authority.to_owned(),
            sni: None,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            headers: Vec::new(),
            from,
            via: None,
            source: Some(arrival.source),
            listener: Some(arrival.listener.name.to_string()),
        };
        let load = beside.load;
        let told = explain(&self.snapshot, &self.shares, &self.fleet, &question, beside).unwrap();
        let attempts = |carry: &Carry<'_>| -> Vec<Attempt> {
            let cluster = self.snapshot.cluster(carry.cluster);
            let of = &self.shares.clusters[carry.cluster.0];
            // A worker draws the key where there is one, and so does who explains.
            match &cluster.policy.balance {
                Balance::RingHash(on) | Balance::Maglev(on) => {
                    let key = key(on, arrival.source, &|_| None).unwrap();
                    let full = of.metered.as_ref().map(|metered| metered.full(self.now));
                    let planned = plan(cluster, of, load, key);
                    planned.within(full.unwrap_or_default()).collect()
                }
                _ => carry.plan.collect(),
            }
        };
        match decision {
            Decision::Carry(carry) => {
                let to = told.to.unwrap();
                assert_eq!(told.refused, None);
                assert_eq!((to.cluster, to.attempts), (carry.cluster, attempts(carry)));
                for level in to.levels {
                    let view = level.view.unwrap();
                    assert!((0.0..=1.0).contains(&view.capacity));
                }
            }
            Decision::Refuse(refusal) => assert_eq!(told.refused, Some(refusal.reason)),
            other => assert!(matches!(other, Decision::Carry(_)), "{other:?}"),
        }
    }

    fn carry(&mut self, snapshot: &Snapshot, shares: &Shares, carry: &Carry<'_>) {
        let cluster = snapshot.cluster(carry.cluster);
        let of = &shares.clusters[carry.cluster.0];
        self.budget.request(self.now);
        let mut tried = Vec::new();
        let mut counted = 0;
        for attempt in carry.plan {
            let metered = of.metered.as_ref();
            let has_room = |ix| metered.is_none_or(|of| of.has_room(ix, self.now));
            if !has_room(attempt.endpoint) {
                // What was tried before has taken the last of it.
                let is_first = tried.is_empty() && attempt.why != Why::Trial;
                assert!(!is_first, "a full backend was picked");
                continue;
            }
            if !attempt.begins(of) {
                continue;
            }
            let status = of.endpoints[attempt.endpoint.0];
            // Nothing goes to an ejected endpoint while a healthy one is to be had: to one that was
            // not tried, of a level that still has a turn.
            let is_left = |ix: usize| {
                of.endpoints[ix].is_healthy()
                    && !tried.contains(&EndpointIx(ix))
                    && has_room(EndpointIx(ix))
            };
            let left = (0..of.endpoints.len()).filter(|ix| is_left(*ix)).count();
            assert!(
                status.is_healthy()
                    || of.too_few
                    || left == 0
                    || tried.len() >= LEVEL_ATTEMPTS_MAX
                    || attempt.why == Why::Trial,
                "{status:?} was picked, {left} healthy ones were not"
            );
            assert!(
                status.is_healthy() || status.is_last_resort(),
                "a dead endpoint was picked"
            );
            assert!(!tried.contains(&attempt.endpoint), "tried twice");
            tried.push(attempt.endpoint);
            self.tally.failed_over += u64::from(attempt.level > 0);
            self.tally.spilled += u64::from(metered.is_some() && attempt.why == Why::Spill);
            self.take(cluster, of, attempt.endpoint);
            let key = cluster.endpoint(attempt.endpoint).key.clone();
            let result = self.attempt(&key);
            match result {
                Ok(()) => {
                    let took = Took::one(Duration::from_millis(self.rng.u64(1..100)));
                    self.fleet.observe_successes(&key, 1, took, self.now);
                }
                Err(_) => (self.fleet).observe(&Observation { key, result }, self.now),
            }
            let told = self.fleet.drain_events();
            // What is readmitted by a failure did not wait for its time: it comes undamped.
            let is_back = |event: &FleetEvent| matches!(event, FleetEvent::Readmitted { .. });
            self.is_taken_back |= result.is_err() && told.iter().any(is_back);
            self.told.extend(told);
            let Err(failure) = result else {
                self.tally.answered += 1;
                return;
            };
            let failed = Tried {
                failure,
                method: Some("GET"),
                counted,
                request: RequestLeft::Whole,
                response: ResponseSeen::Nothing,
                sender: Sender::Caller,
            };
            match again(&cluster.policy.retries, &self.budget, &failed, self.now) {
                Ok(kind) => counted += u32::from(kind == Again::Counted),
                Err(_) => return,
            }
            self.tally.tried_again += 1;
        }
    }

    /// Counts what is offered, as a worker does.
    fn offer(&self, shares: &Shares, decided: &Decision<'_>) {
        if let Decision::Carry(carry) = decided
            && let Some(metered) = &shares.clusters[carry.cluster.0].metered
        {
            metered.offered().add(1);
        }
    }

    /// Takes of what a backend takes, and notes it.
    fn take(&mut self, cluster: &Cluster, of: &ClusterShares, ix: EndpointIx) {
        let Some(metered) = &of.metered else { return };
        assert!(metered.take(ix, self.now), "there was room");
        let endpoint = cluster.endpoint(ix);
        if let Some(most) = endpoint.capacity {
            let key = (Arc::clone(&cluster.route), Arc::clone(&endpoint.backend));
            let (_, sent) = self
                .sent
                .entry(key)
                .or_insert_with(|| (most.get().into(), Vec::new()));
            sent.push(self.now);
        }
    }

    /// No backend was sent more than its capacity, from all clusters of its route together, over any
    /// window and the burst.
    fn check_sent(&self) {
        for ((route, backend), (most, sent)) in &self.sent {
            for (nth, from) in sent.iter().enumerate() {
                for (further, to) in sent.iter().enumerate().skip(nth) {
                    let count = u32::try_from(further - nth + 1).unwrap();
                    let window = to.since(*from).as_secs_f64();
                    assert!(
                        f64::from(count) <= most * window + most + 1e-6,
                        "{route}: {backend} was sent {count} within {window} s"
                    );
                }
            }
        }
    }

    fn attempt(&mut self, key: &EndpointKey) -> Result<(), Failure> {
        let truth = self.truth.get(key).copied().unwrap_or_default();
        let deadlines = Deadlines {
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(15),
        };
        let error = Failure::Status(503);
        truth
            .attempt(self.now, deadlines, error, self.rng.u64(..))
            .0
    }

    fn all_is_healthy(&self) -> bool {
        let endpoints = self.snapshot.clusters.iter().flat_map(|of| &of.endpoints);
        let mut statuses = endpoints.map(|endpoint| self.fleet.status(&endpoint.key).unwrap());
        statuses.all(EndpointStatus::is_healthy)
    }

    /// With every fault gone all traffic ends up at the nearest level that has endpoints.
    fn recover(&mut self) {
        self.truth.clear();
        for of in self.fleet.evacuations().cloned().collect::<Vec<_>>() {
            assert!(self.fleet.end_evacuation(&of, self.now));
        }
        self.look(Since::Lever);
        let mut well = Report::default();
        for service in &self.snapshot.services {
            let standing = Standing::new(2, 2, 2.0, 2.0).unwrap();
            well.set(&service.hosts[0], service.port, standing);
        }
        for reporter in self.reporters.values_mut() {
            reporter.late.clear();
            reporter.is_mute = false;
            reporter.says = Some(Arc::new(well.clone()));
            reporter.beat = self.now;
        }
        self.speak();
        // Longer than any ejection and its trial, check, hold, failback and ramp together; what is well
        // stays so, which most need not show for as long.
        let shows_all = self.seed.is_multiple_of(WATCHED_TO_THE_END);
        for _ in 0..20 {
            self.pass(Duration::from_secs(30));
            self.request();
            // It may have been a trial.
            self.look(Since::Events);
            if !shows_all && self.all_is_healthy() {
                break;
            }
        }
        // What waits for an operator.
        for cluster in &self.snapshot.clusters {
            self.fleet.reset(&cluster.route, self.now);
        }
        self.look(Since::Lever);
        for _ in 0..7 {
            self.pass(Duration::from_secs(10));
        }
        self.look(Since::Events);
        assert!(self.all_is_healthy());
        for (cluster, of) in self.snapshot.clusters.iter().zip(&self.shares.clusters) {
            // Ports fail over together: a level counts where each of them has endpoints.
            let nearest = cluster
                .levels
                .iter()
                .position(|level| !level.members.is_empty());
            match nearest {
                Some(nearest) => assert_eq!(of.levels[nearest], 1.0, "{}", cluster.name),
                None => assert!(of.refuses()),
            }
        }
    }
}
