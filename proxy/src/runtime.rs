//! Workers and the control thread, and what they share.
//!
//! A worker is a thread with a runtime of its own: its connections, pools and counters never leave
//! it. The control thread does everything else. They share one published pointer, the credentials,
//! atomics, and bounded channels.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderMap;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use zeugma_core::balance::{Latency as EndpointLatency, key, key_of};
use zeugma_core::fleet::Observation;
use zeugma_core::shares::{ClusterShares, Shares};
use zeugma_core::slow::Took;
use zeugma_core::snapshot::{
    Balance, Cluster, ClusterIx, Endpoint, EndpointIx, EndpointKey, Failure, Listener, Snapshot,
};
use zeugma_core::time::Time;
use zeugma_core::verdict::Reason;
use zeugma_xds::{GatewaySettings, ResourceList};

use crate::account::{AccessLog, Caller, Closed, Origin, Stretch};
use crate::admission::{Admission, NO_LOAD_BALANCER, UnderWay};
use crate::connection;
use crate::control::decided::Wishes;
use crate::control_plane;
use crate::copies::Copies;
use crate::explain;
use crate::federation::Federation;
use crate::hash::Configured;
use crate::http::Timers;
use crate::http::flow::WindowBudget;
use crate::http::pool::{Pool, SWEEPING};
use crate::identity::Agent;
use crate::journal::Journal;
use crate::listener::{Accepted, Handed};
use crate::listing::{self, Question};
use crate::logging::Logging;
use crate::metrics::{Latest, Metrics};
use crate::peer::PeerSide;
use crate::pulse::Pulses;
use crate::recheck::{self, Registry};
use crate::relay::Pipes;
use crate::resolve::Names;
use crate::tap::Taps;
use crate::tls::Credentials;
use crate::upstream::ConnectError;

/// Connections on their way to one worker.
pub(crate) const SOCKETS_MAX: usize = 1024;
/// Batches of observations on their way to the control thread; more are dropped and counted.
pub(crate) const OBSERVATIONS_MAX: usize = 4096;
/// How many good outcomes a worker gathers before it wakes the control thread.
const UNTOLD_MAX: usize = 512;
/// How long it gathers them: they only weigh against bad ones, which are told at once.
const UNTOLD_TIME: Duration = Duration::from_millis(100);

/// A configuration and the shares computed from it: the one pointer that decisions are made from.
#[derive(Debug)]
pub(crate) struct Published {
    /// Counts publications of another snapshot; shares alone do not raise it.
    pub(crate) generation: u64,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) shares: Arc<Shares>,
    /// What is under way of the route of each cluster.
    pub(crate) under_way: Arc<[Arc<UnderWay>]>,
    /// The names that listeners had before, each with the one that its address has now.
    pub(crate) renamed: Arc<[(Arc<str>, Arc<str>)]>,
}

/// The most names from before that are remembered; what came in under an older one ends.
pub(crate) const RENAMED_MAX: usize = 64;

/// Whether the gateway serves or is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Serving,
    /// No new work; what is open may end until the deadline.
    Draining {
        deadline: tokio::time::Instant,
    },
}

/// What the admin interface asks of the control thread, each as a signal would.
#[derive(Debug, Default)]
pub(crate) struct Levers {
    /// Drain, as SIGTERM does.
    pub(crate) drain: Notify,
    /// Drain without the delay, as SIGINT does.
    pub(crate) quit: Notify,
    /// What operators decide of failover.
    pub(crate) failover: Wishes,
}

/// What the admin interface shares with the others.
#[derive(Debug)]
pub(crate) struct AdminSide {
    /// What happened.
    pub(crate) journal: Journal,
    /// Who watches what ends.
    pub(crate) taps: Arc<Taps>,
    /// What the workers are asked.
    pub(crate) questions: broadcast::Sender<Question>,
    /// What the control thread is asked to explain.
    pub(crate) explains: broadcast::Sender<explain::Asked>,
    /// What the control thread is asked.
    pub(crate) levers: Levers,
    /// What traffic is taken off, for those who ask.
    pub(crate) evacuations: ArcSwap<serde_json::Value>,
    /// How much the log tells.
    pub(crate) logging: Logging,
}

impl AdminSide {
    /// Ends what is answered without an end of its own; nobody begins another.
    pub(crate) fn end_streams(&self) {
        self.journal.close();
        self.taps.close();
    }
}

impl Default for AdminSide {
    fn default() -> Self {
        Self {
            journal: Journal::default(),
            taps: Arc::default(),
            questions: broadcast::channel(listing::QUESTIONS_MAX).0,
            explains: broadcast::channel(explain::ASKED_MAX).0,
            levers: Levers::default(),
            evacuations: ArcSwap::from_pointee(serde_json::json!([])),
            logging: Logging::default(),
        }
    }
}

impl AdminSide {
    /// With the log of the process, and what traffic is taken off.
    pub(crate) fn of(logging: &Logging, evacuations: serde_json::Value) -> Self {
        Self {
            logging: logging.clone(),
            evacuations: ArcSwap::from_pointee(evacuations),
            ..Self::default()
        }
    }
}

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) published: ArcSwap<Published>,
    pub(crate) credentials: ArcSwap<Credentials>,
    /// Counts publications that may take a right away; sent after what it tells of was stored.
    pub(crate) changes: watch::Sender<u64>,
    /// Health reports to peers, and theirs.
    pub(crate) peers: PeerSide,
    pub(crate) names: ArcSwap<Names>,
    /// Bundles that are fetched.
    pub(crate) federation: Federation,
    /// Where our SVID may come from.
    pub(crate) agent: Agent,
    /// Where the configuration may come from.
    pub(crate) control_plane: control_plane::Side,
    pub(crate) settings: GatewaySettings,
    pub(crate) metrics: Metrics,
    pub(crate) log: AccessLog,
    pub(crate) observations: mpsc::Sender<Vec<Outcomes>>,
    pub(crate) phase: watch::Receiver<Phase>,
    pub(crate) ready: AtomicBool,
    /// The xDS resources that serve, for `/config_dump`.
    pub(crate) resources: ArcSwap<ResourceList>,
    /// What is wrong with the files on disk, while their last good content serves.
    pub(crate) findings: ArcSwap<serde_json::Value>,
    pub(crate) open: AtomicUsize,
    /// What HTTP/2 windows may grow into.
    pub(crate) windows: Arc<WindowBudget>,
    pub(crate) admission: Admission,
    pub(crate) pulses: Pulses,
    pub(crate) admin: AdminSide,
    pub(crate) started: Instant,
    /// Where spans go; empty where no collector is named.
    #[cfg(any(test, feature = "otlp"))]
    pub(crate) spans: std::sync::OnceLock<crate::otlp::Spans>,
}

impl Shared {
    /// Now, as the core counts it.
    pub(crate) fn now(&self) -> Time {
        self.time_of(Instant::now())
    }

    /// An instant, as the core counts it.
    pub(crate) fn time_of(&self, at: Instant) -> Time {
        Time::from_origin(at.saturating_duration_since(self.started))
    }

    /// Tells of a connection that ended, or a request.
    pub(crate) fn account(&self, closed: &Closed) {
        self.metrics.closed(closed);
        self.log.write(closed, &self.admin.taps);
        self.tell_span(closed);
    }

    /// Tells of a request, the next of many alike.
    pub(crate) fn account_request(&self, closed: &Closed, latest: &Latest) {
        self.metrics.closed_request(closed, latest);
        self.log.write(closed, &self.admin.taps);
        self.tell_span(closed);
    }

    #[cfg(any(test, feature = "otlp"))]
    fn tell_span(&self, closed: &Closed) {
        if let Some(spans) = self.spans.get()
            && !spans.offer(closed)
        {
            self.metrics.dropped("spans", 1);
        }
    }

    #[cfg(not(any(test, feature = "otlp")))]
    const fn tell_span(&self, _: &Closed) {}

    /// Tells of a connection that no worker saw.
    pub(crate) fn refuse_unseen(&self, listener: &Arc<str>, source: SocketAddr, reason: Reason) {
        self.account(&Closed {
            origin: Rc::new(Origin {
                listener: Arc::clone(listener),
                source,
                caller: Caller::default(),
                tls: None,
                line: Stretch::new(),
            }),
            attested: None,
            generation: self.published.load().generation,
            service: None,
            destination: None,
            request: None,
            reason,
            // Of the others the reason says all; unseen, a source is refused for this alone.
            detail: (reason == Reason::SourceRefused).then(|| NO_LOAD_BALANCER.to_owned()),
            rule: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration: Duration::ZERO,
        });
    }

    /// Whether the drain deadline has passed: what is open is cut off.
    pub(crate) fn drain_is_over(&self) -> bool {
        match *self.phase.borrow() {
            Phase::Serving => false,
            Phase::Draining { deadline } => deadline <= tokio::time::Instant::now(),
        }
    }

    /// Whether no new work is wanted on what is open.
    pub(crate) fn is_draining(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Draining { .. })
    }

    /// Waits until draining begins; returns its deadline.
    ///
    /// # Cancel safety
    /// Safe: the phase is state, not a message.
    pub(crate) async fn draining(&self) -> tokio::time::Instant {
        let mut phase = self.phase.clone();
        loop {
            if let Phase::Draining { deadline } = *phase.borrow_and_update() {
                return deadline;
            }
            if phase.changed().await.is_err() {
                // The control thread is gone, and the process with it.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A service and the route that gets its copies.
type MirrorKey = (Arc<str>, Arc<str>);

/// What an attempt that failed counts as having taken at the least.
const FAILED_TOOK: Duration = Duration::from_secs(1);

/// One worker's own state.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pool: Pool,
    pub(crate) timers: Timers,
    /// What is open, for rechecks.
    pub(crate) registry: Rc<Registry>,
    /// What relays splice through.
    pub(crate) pipes: Rc<Pipes>,
    /// What outlives the connection that began it: upgraded connections, mirrored requests.
    pub(crate) tasks: TaskTracker,
    in_flight: RefCell<Configured<EndpointKey, Rc<Cell<u32>>>>,
    /// Of endpoints that are balanced by it.
    latencies: RefCell<Configured<EndpointKey, EndpointLatency>>,
    mirrors: RefCell<Configured<MirrorKey, Rc<Copies>>>,
    /// Outcomes the control thread is still to be told of.
    untold: RefCell<Vec<Outcomes>>,
    has_untold: Notify,
    draws: RefCell<fastrand::Rng>,
    /// The turn of each cluster that is balanced by turns.
    turns: RefCell<Configured<Arc<str>, u64>>,
    /// The generation whose clusters and routes are the only ones remembered.
    forgotten: Cell<u64>,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            pipes: Rc::new(Pipes::new(shared.metrics.pipes.clone())),
            shared,
            pool: Pool::default(),
            timers: Timers::default(),
            registry: Rc::default(),
            tasks: TaskTracker::new(),
            in_flight: RefCell::default(),
            latencies: RefCell::default(),
            mirrors: RefCell::default(),
            untold: RefCell::default(),
            has_untold: Notify::new(),
            draws: RefCell::new(fastrand::Rng::new()),
            turns: RefCell::default(),
            forgotten: Cell::default(),
        }
    }

    /// A random number for one decision.
    pub(crate) fn draw(&self) -> u64 {
        self.draws.borrow_mut().u64(..)
    }

    /// What a plan of this cluster draws for what came from `source`, with `headers` if it is a request:
    /// a random number, the next turn of a round robin, or a key.
    pub(crate) fn draw_for(
        &self,
        cluster: &Cluster,
        source: IpAddr,
        headers: Option<&HeaderMap>,
    ) -> u64 {
        match &cluster.policy.balance {
            Balance::LeastRequest | Balance::PeakEwma | Balance::Random => self.draw(),
            Balance::RingHash(on) | Balance::Maglev(on) => {
                let header = |name: &str| Some(key_of(headers?.get(name)?.as_bytes()));
                key(on, source, &header).unwrap_or_else(|| self.draw())
            }
            Balance::RoundRobin => {
                let mut turns = self.turns.borrow_mut();
                let turn = turns
                    .entry(Arc::clone(&cluster.name))
                    .or_insert_with(|| self.draw() >> 1);
                *turn = turn.wrapping_add(1);
                *turn
            }
        }
    }

    /// How many connections or requests of this worker are at an endpoint, or what one more costs there
    /// where the cluster is balanced by that.
    pub(crate) fn load(&self, cluster: &Cluster, endpoint: EndpointIx) -> u32 {
        let key = &cluster.endpoint(endpoint).key;
        let load = (self.in_flight.borrow().get(key)).map_or(0, |count| count.get());
        if cluster.policy.balance != Balance::PeakEwma {
            return load;
        }
        let latency = self.latencies.borrow().get(key).copied();
        latency.unwrap_or_default().cost(load, self.shared.now())
    }

    /// When an attempt begins, where its endpoints are balanced or judged by how long it takes.
    pub(crate) fn begins(&self, cluster: &Cluster) -> Option<Time> {
        let policy = &cluster.policy;
        let is_asked = policy.balance == Balance::PeakEwma || policy.passive.slow.is_some();
        is_asked.then(|| self.shared.now())
    }

    /// Notes that an endpoint has answered what [`begins`](Self::begins) told of. `asked` is when it was
    /// asked, connecting apart; `None` where this answer does not say how fast it is.
    pub(crate) fn answered(
        &self,
        cluster: &Cluster,
        key: &EndpointKey,
        began: Option<Time>,
        asked: Option<Time>,
    ) {
        let Some(began) = began else { return };
        self.took_at_least(cluster, key, began, Duration::ZERO);
        if let Some(asked) = asked.filter(|_| cluster.policy.passive.slow.is_some()) {
            let took = self.shared.now().since(asked);
            self.note(key, Ok(()), 0, Took::one(took));
        }
    }

    /// Notes that an attempt has failed: that it did so fast is nothing to its credit.
    pub(crate) fn failed(&self, cluster: &Cluster, key: &EndpointKey, began: Option<Time>) {
        if let Some(began) = began {
            self.took_at_least(cluster, key, began, FAILED_TOOK);
        }
    }

    fn took_at_least(&self, cluster: &Cluster, key: &EndpointKey, began: Time, least: Duration) {
        if cluster.policy.balance != Balance::PeakEwma {
            return;
        }
        let now = self.shared.now();
        let mut latencies = self.latencies.borrow_mut();
        let latency = latencies.entry(key.clone()).or_default();
        latency.observe(now.since(began).max(least), now);
    }

    /// Counts one more at an endpoint until the guard is dropped.
    pub(crate) fn enter(&self, key: &EndpointKey) -> InFlight {
        let mut map = self.in_flight.borrow_mut();
        let count = match map.get(key) {
            Some(count) => Rc::clone(count),
            None => Rc::clone(map.entry(key.clone()).or_default()),
        };
        count.set(count.get().saturating_add(1));
        InFlight(count)
    }

    /// Tells the control thread how an attempt went: of failures at once, of successes soon.
    pub(crate) fn observe(&self, key: &EndpointKey, result: Result<(), Failure>) {
        self.note(key, result, 1, Took::default());
    }

    /// The same of so many attempts, and of answers that took so long.
    fn note(&self, key: &EndpointKey, result: Result<(), Failure>, times: u32, took: Took) {
        let mut untold = self.untold.borrow_mut();
        if result.is_ok()
            && let Some(before) = latest_of(&mut untold, key)
            && before.observation.result.is_ok()
            && let Some(times) = before.times.checked_add(times)
        {
            before.times = times;
            before.took.add(took);
            return;
        }
        let is_urgent = result.is_err() || untold.len() + 1 >= UNTOLD_MAX;
        untold.push(Outcomes {
            observation: Observation {
                key: key.clone(),
                result,
            },
            times,
            took,
        });
        let is_first = untold.len() == 1;
        drop(untold);
        if is_urgent {
            self.tell_observations();
        } else if is_first {
            self.has_untold.notify_one();
        }
    }

    /// Tells the control thread what it has not been told, in order.
    fn tell_observations(&self) {
        let batch = self.untold.take();
        if batch.is_empty() {
            return;
        }
        let count = batch.iter().map(|one| u64::from(one.times)).sum();
        // In one message: each would wake the control thread, which is done before the next.
        if self.shared.observations.try_send(batch).is_err() {
            self.shared.metrics.dropped("observations", count);
        }
    }

    /// Tells it, some time after there is something to tell, for ever.
    async fn keep_telling(&self) {
        loop {
            self.has_untold.notified().await;
            tokio::time::sleep(UNTOLD_TIME).await;
            self.tell_observations();
        }
    }

    /// Tells the control thread that an endpoint was not connected.
    pub(crate) fn observe_connect(&self, endpoint: &Endpoint, error: &ConnectError) {
        tracing::debug!(endpoint = %endpoint.key, %error, "not connected");
        if !error.is_ours() {
            self.observe(&endpoint.key, Err(Failure::Connect));
        }
    }

    /// The copies from a service to a mirror.
    pub(crate) fn copies(&self, service: &Arc<str>, mirror: &Arc<str>) -> Rc<Copies> {
        let key = (Arc::clone(service), Arc::clone(mirror));
        Rc::clone(self.mirrors.borrow_mut().entry(key).or_default())
    }

    /// Forgets what belongs to endpoints and routes that are no longer configured.
    fn forget_unused(&self) {
        self.in_flight
            .borrow_mut()
            .retain(|_, count| Rc::strong_count(count) > 1);
        self.mirrors
            .borrow_mut()
            .retain(|_, copies| Rc::strong_count(copies) > 1 || !copies.is_forgettable());
        let published = self.shared.published.load();
        // To go through ten thousand routes for nothing would hold up connections.
        if self.forgotten.replace(published.generation) == published.generation {
            return;
        }
        if self.turns.borrow().is_empty() && self.latencies.borrow().is_empty() {
            return;
        }
        let clusters = &published.snapshot.clusters;
        let names: HashSet<&str> = clusters.iter().map(|cluster| &*cluster.name).collect();
        self.turns
            .borrow_mut()
            .retain(|name, _| names.contains(&**name));
        let by_latency = |cluster: &&Arc<Cluster>| cluster.policy.balance == Balance::PeakEwma;
        let keys: HashSet<&EndpointKey> = (clusters.iter().filter(by_latency))
            .flat_map(|cluster| cluster.endpoints.iter().map(|endpoint| &endpoint.key))
            .collect();
        (self.latencies.borrow_mut()).retain(|key, _| keys.contains(key));
    }
}

/// Outcomes of attempts at an endpoint on their way to the control thread; of those that went well, many
/// in one.
#[derive(Debug)]
pub(crate) struct Outcomes {
    pub(crate) observation: Observation,
    pub(crate) times: u32,
    /// Of answers, where their endpoints are judged by it: those of other attempts too, whose outcome is
    /// told when they end.
    pub(crate) took: Took,
}

/// How far back outcomes are looked for that one more can be added to.
const LATEST: usize = 8;

/// What was noted last of an endpoint, if that is not long ago.
fn latest_of<'a>(untold: &'a mut [Outcomes], key: &EndpointKey) -> Option<&'a mut Outcomes> {
    let mut latest = untold.iter_mut().rev().take(LATEST);
    latest.find(|one| Arc::ptr_eq(&one.observation.key.0, &key.0) || one.observation.key == *key)
}

/// One connection or request counted at an endpoint.
#[derive(Debug)]
pub(crate) struct InFlight(Rc<Cell<u32>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Published {
    /// The listener that something came in on, whatever its name is now.
    pub(crate) fn listener(&self, name: &str) -> Option<&Listener> {
        self.snapshot.listener(name).or_else(|| {
            let (_, now) = self.renamed.iter().find(|(before, _)| **before == *name)?;
            self.snapshot.listener(now)
        })
    }

    /// The names from before under `next`: a new name for the same address and role takes no right
    /// away.
    pub(crate) fn renamed_in(&self, next: &Snapshot) -> Arc<[(Arc<str>, Arc<str>)]> {
        let before = self.renamed.iter().map(|(name, _)| name);
        let names = before.chain(
            self.snapshot
                .listeners
                .iter()
                .map(|listener| &listener.name),
        );
        let mut renamed: Vec<_> = names
            .filter(|name| next.listener(name).is_none())
            .filter_map(|name| {
                let was = self.listener(name)?;
                // Port 0 is a port of everybody's own.
                let same = |is: &&Listener| {
                    is.address == was.address && is.role == was.role && is.address.port() != 0
                };
                let now = next.listeners.iter().find(same)?;
                Some((Arc::clone(name), Arc::clone(&now.name)))
            })
            .collect();
        let over = renamed.len().saturating_sub(RENAMED_MAX);
        renamed.drain(..over);
        renamed.into()
    }

    /// The shares of a cluster.
    ///
    /// # Panics
    /// Never: shares are computed for the snapshot they are published with.
    #[expect(
        clippy::indexing_slicing,
        reason = "shares have one entry for each cluster"
    )]
    pub(crate) fn shares_of(&self, cluster: ClusterIx) -> &ClusterShares {
        &self.shares.clusters[cluster.0]
    }

    /// What is under way of a cluster's route.
    ///
    /// # Panics
    /// Never: it is published with the snapshot.
    #[expect(
        clippy::indexing_slicing,
        reason = "there is one entry for each cluster"
    )]
    pub(crate) fn under_way_of(&self, cluster: ClusterIx) -> &Arc<UnderWay> {
        &self.under_way[cluster.0]
    }
}

/// How often a worker forgets what it no longer needs.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// How long after the drain deadline a worker still runs: connections wake at the deadline itself to
/// end and to write their records.
pub(crate) const RECORDS_GRACE: Duration = Duration::from_millis(500);

/// Runs one worker on this thread until its channel closes and its connections have ended, at the
/// latest [`RECORDS_GRACE`] after the drain deadline.
///
/// `running` is called once it has its event loop.
pub(crate) fn work(
    shared: Arc<Shared>,
    mut sockets: mpsc::Receiver<Handed>,
    running: impl FnOnce(),
) -> std::io::Result<()> {
    // Not a `LocalSet` on a runtime: that schedules every wake twice.
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build_local(LocalOptions::default())?;
    running();
    let worker = Rc::new(Worker::new(Arc::clone(&shared)));
    runtime.block_on(async move {
        let teller = Rc::clone(&worker);
        // Ends with this set, when everything else has.
        let mut telling = JoinSet::new();
        telling.spawn_local(async move { teller.keep_telling().await });
        let mut open = JoinSet::new();
        // They end with the runtime.
        drop(tokio::task::spawn_local(recheck::run(Rc::clone(&worker))));
        drop(tokio::task::spawn_local(listing::answer(Rc::clone(
            &worker,
        ))));
        let alive = Arc::clone(&shared);
        drop(tokio::task::spawn_local(async move {
            alive.pulses.give().await
        }));
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let mut sweeping = tokio::time::interval(SWEEPING);
        loop {
            // Every arm is cancel-safe by its own documentation.
            tokio::select! {
                handed = sockets.recv() => match handed {
                    Some(Handed::Connection(accepted)) => start(&worker, accepted, &mut open),
                    Some(Handed::Listener(listening)) => listening.start_here(),
                    None => break,
                },
                Some(_ended) = open.join_next() => {}
                _ = sweeping.tick() => worker.pool.evict_closed(),
                _ = housekeeping.tick() => {
                    worker.forget_unused();
                    worker.pool.evict_idle(shared.credentials.load().generation());
                    worker.pipes.close_unneeded();
                }
            }
        }
        let deadline = shared.draining().await;
        let finish = async {
            while open.join_next().await.is_some() {}
            worker.tasks.close();
            worker.tasks.wait().await;
        };
        if tokio::time::timeout_at(deadline + RECORDS_GRACE, finish)
            .await
            .is_err()
        {
            tracing::warn!(
                code = "ZG0904",
                open = open.len(),
                "connections did not end by the drain deadline; they are cut off"
            );
        }
        worker.tell_observations();
    });
    Ok(())
}

fn start(worker: &Rc<Worker>, accepted: Accepted, open: &mut JoinSet<()>) {
    let Accepted {
        tcp,
        source,
        listener,
        open: counted,
    } = accepted;
    match TcpStream::from_std(tcp) {
        Ok(tcp) => {
            open.spawn_local(connection::serve(
                Rc::clone(worker),
                tcp,
                source,
                listener,
                counted,
            ));
        }
        Err(error) => {
            tracing::error!(code = "ZG0908", %error, "an accepted connection cannot be registered")
        }
    }
}

/// Lets every other task that is ready have its turn; polled again after that.
///
/// What all of them have to send then leaves in one go, and the other end, which is woken by the first,
/// is awake for the rest: to wake a processor costs more than all that we do for a request.
pub(crate) fn others_first<T>(cx: &Context<'_>) -> Poll<T> {
    OTHERS_FIRST.set(true);
    cx.waker().wake_by_ref();
    Poll::Pending
}

thread_local! {
    /// Whether what was polled last has given its turn away.
    static OTHERS_FIRST: Cell<bool> = const { Cell::new(false) };
}

/// What came of a poll.
pub(crate) enum Polled<T> {
    Ready(T),
    Pending,
    /// It gave its turn away by [`others_first`], in this very poll: the task is polled again at once,
    /// and nothing else that it waits for needs to be looked at before.
    OthersFirst,
}

/// Polls, and tells why nothing came of it.
pub(crate) fn unless_others_first<T>(poll: impl FnOnce() -> Poll<T>) -> Polled<T> {
    OTHERS_FIRST.set(false);
    match poll() {
        Poll::Ready(ready) => Polled::Ready(ready),
        Poll::Pending if OTHERS_FIRST.get() => Polled::OthersFirst,
        Poll::Pending => Polled::Pending,
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, StatusCode};
    use hyper::client::conn;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::fixture::Alone;
    use crate::listener::{WorkerHandle, hand_over};
    use crate::{admission, control};

    const ORDERS: &str = "orders.shop.svc.clusterset.local";

    /// A gateway with one worker that really works, an HTTP route and a TCP one.
    struct Working {
        alone: Alone,
        worker: WorkerHandle,
        thread: std::thread::JoinHandle<std::io::Result<()>>,
    }

    impl Working {
        async fn new() -> Self {
            let endpoint = endpoint().await;
            let route = |name: &str, listener: &str, more: &str, version: &str| {
                format!(
                    "---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshRoute\nmetadata: {{ name: {name}, \
                     namespace: shop }}\nspec: {{ {more}, backends: [{{ endpoints: ['{endpoint}'] {version} }}], \
                     allow: [{{ listeners: [{listener}] }}] }}\n"
                )
            };
            let documents = [
                route("orders", "apps", "protocol: http", ", version: h1"),
                route("db", "db", "port: 5432", ""),
            ];
            let alone = Alone::new(
                "{ apps: { address: '127.0.0.1:0', role: workloads }, \
                 db: { address: '127.0.0.2:0', role: workloads, route: shop/db } }",
                &documents.concat(),
                OBSERVATIONS_MAX,
            );
            let (sockets, queue) = mpsc::channel(SOCKETS_MAX);
            let shared = Arc::clone(&alone.shared);
            let worker = WorkerHandle {
                nth: 0,
                sockets,
                open: Arc::default(),
            };
            let thread = std::thread::spawn(move || work(shared, queue, || {}));
            Self {
                alone,
                worker,
                thread,
            }
        }

        /// A connection that came in on a listener.
        async fn connect(&self, listener: &str) -> TcpStream {
            let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let near = TcpStream::connect(socket.local_addr().unwrap())
                .await
                .unwrap();
            let (far, source) = socket.accept().await.unwrap();
            let workers = std::slice::from_ref(&self.worker);
            let sources = admission::sources();
            let shared = &self.alone.shared;
            hand_over(
                far.into_std().unwrap(),
                source,
                &listener.into(),
                shared,
                workers,
                &sources,
            );
            near
        }

        fn open(&self) -> usize {
            self.alone
                .shared
                .open
                .load(std::sync::atomic::Ordering::Relaxed)
        }
    }

    /// Answers what looks like a request with 200, and sends back anything else.
    async fn endpoint() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(tokio::spawn(async move {
            while let Ok((mut tcp, _)) = listener.accept().await {
                drop(tokio::spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(n @ 1..) = tcp.read(&mut bytes).await {
                        let answer = if bytes.starts_with(b"GET") {
                            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                        } else {
                            &bytes[..n]
                        };
                        tcp.write_all(answer).await.unwrap();
                    }
                }));
            }
        }));
        address
    }

    async fn echoes(tcp: &mut TcpStream) {
        tcp.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        tcp.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
    }

    async fn ask(tcp: &mut TcpStream) -> Vec<u8> {
        let request = format!("GET / HTTP/1.1\r\nhost: {ORDERS}\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // Unread bytes make it a reset.
        tcp.read_to_end(&mut answer).await.ok();
        answer
    }

    /// What each of five records is of, and its verdict.
    fn verdicts(alone: &Alone) -> Option<Vec<String>> {
        let told = |line: &serde_json::Value| {
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            format!("{} {}", text("kind"), text("verdict"))
        };
        let mut verdicts: Vec<_> = alone.lines().iter().map(told).collect();
        verdicts.sort_unstable();
        (verdicts.len() == 5).then_some(verdicts)
    }

    /// The promise broken on purpose: shares that are not those of the snapshot, so that whoever
    /// makes a plan panics where the gateway's own code says that it never does.
    fn break_a_promise(working: &Working) {
        working.alone.publish_with(Shares::default());
    }

    #[tokio::test]
    async fn a_panic_ends_its_connection_or_stream_alone_and_is_counted_and_recorded() {
        let working = Working::new().await;
        let alone = &working.alone;
        let panics = || {
            let text = alone.shared.metrics.encode(None);
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("zeugma_panics_total "));
            line.unwrap().parse::<u32>().unwrap()
        };

        let mut relayed = working.connect("db").await;
        echoes(&mut relayed).await;
        let tcp = working.connect("apps").await;
        let io = TokioIo::new(tcp);
        let (mut h2, driver) = conn::http2::handshake(TokioExecutor::new(), io)
            .await
            .unwrap();
        let driver = tokio::spawn(driver);
        let get = || {
            let request = Request::get(format!("http://{ORDERS}/"));
            request
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .unwrap()
        };
        assert_eq!(
            h2.send_request(get()).await.unwrap().status(),
            StatusCode::OK
        );

        break_a_promise(&working);
        let hook = std::panic::take_hook();
        control::count_panics(&alone.shared);
        // A connection whose own task panics, over its request and without one.
        let mut http1 = working.connect("apps").await;
        let answer = ask(&mut http1).await;
        let mut tcp = working.connect("db").await;
        let read = tcp.read(&mut [0]).await.unwrap_or(0);
        // A task that a connection has spawned: its stream ends, and no other.
        let stream = h2.send_request(get()).await;
        std::panic::set_hook(hook);
        assert_eq!((answer, read, stream.is_err()), (Vec::new(), 0, true));
        assert_eq!(panics(), 3);

        let verdicts = alone.until("five records", verdicts).await;
        assert_eq!(Reason::Internal.code(), Some("ZG0906"));
        let internal = ["connection internal", "connection internal"];
        let requests = ["request completed", "request internal", "request internal"];
        assert_eq!(verdicts, [&internal[..], &requests[..]].concat());
        assert_eq!(working.open(), 2, "the relay and the HTTP/2 connection");

        // Those that had nothing to do with it go on, and so does the worker.
        alone.publish();
        echoes(&mut relayed).await;
        assert_eq!(
            h2.send_request(get()).await.unwrap().status(),
            StatusCode::OK
        );
        let mut http1 = working.connect("apps").await;
        assert!(ask(&mut http1).await.starts_with(b"HTTP/1.1 200"));
        drop((relayed, h2));
        driver.await.unwrap().ok();
        alone
            .until("an end of all", |_| (working.open() == 0).then_some(()))
            .await;

        let Working {
            alone,
            worker,
            thread,
        } = working;
        drop(worker);
        let deadline = tokio::time::Instant::now();
        alone.phase.send_replace(Phase::Draining { deadline });
        tokio::task::spawn_blocking(move || thread.join().unwrap().unwrap())
            .await
            .unwrap();
    }

    /// What went well is told by its number, in its place among what failed.
    #[test]
    fn successes_of_one_endpoint_are_told_as_one() {
        let listeners = "{ apps: { address: '127.0.0.1:0', role: workloads } }";
        let mut alone = Alone::new(listeners, "", 2);
        let worker = Worker::new(Arc::clone(&alone.shared));
        let [a, b] = ["a", "b"].map(|name| EndpointKey(name.into()));
        for (key, result) in [
            (&a, Ok(())),
            (&b, Ok(())),
            (&a, Ok(())),
            (&a, Err(Failure::Reset)),
            (&a, Ok(())),
            (&b, Ok(())),
        ] {
            worker.observe(key, result);
        }
        worker.tell_observations();
        let mut told = Vec::new();
        while let Ok(batch) = alone.observed.try_recv() {
            told.extend(batch.into_iter().map(|one| {
                let Observation { key, result } = one.observation;
                (key, result.is_ok(), one.times)
            }));
        }
        let all = [
            (&a, true, 2),
            (&b, true, 1),
            (&a, false, 1),
            (&a, true, 1),
            (&b, true, 1),
        ];
        assert_eq!(
            told,
            all.map(|(key, is_ok, times)| (key.clone(), is_ok, times))
        );
    }

    #[test]
    fn observations_that_find_no_room_are_dropped_and_counted() {
        let mut alone = Alone::new(
            "{ apps: { address: '127.0.0.1:0', role: workloads } }",
            "",
            2,
        );
        let worker = Worker::new(Arc::clone(&alone.shared));
        let key = EndpointKey("a".into());
        for _ in 0..5 {
            worker.observe(&key, Err(Failure::Reset));
        }
        let text = alone.shared.metrics.encode(None);
        assert!(
            text.contains(r#"zeugma_dropped_total{kind="observations"} 3"#),
            "{text}"
        );
        assert!(alone.observed.try_recv().is_ok());
        worker.observe(&key, Err(Failure::Reset));
        assert_eq!(
            alone.shared.metrics.encode(None),
            text,
            "there was room again"
        );
    }
}
