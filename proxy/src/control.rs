//! The control thread: files, health, probes, names, the admin interface, draining.
//!
//! It is the only writer of what is published; workers only read.

mod accepting;
mod last_good;
mod reload;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::Value;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use zeugma_core::fleet::{Fleet, FleetEvent, Observation};
use zeugma_core::names::Host;
use zeugma_core::shares::Shares;
use zeugma_core::snapshot::{EndpointKey, Snapshot};
use zeugma_core::time::Time;
use zeugma_xds::NodeOptions;

use self::accepting::Accepting;
use self::last_good::{Keeper, Start};
use self::reload::{Files, Reloaded};
use crate::account::AccessLog;
use crate::admin::{self, BindError, Interfaces};
use crate::listener::WorkerHandle;
use crate::metrics::Metrics;
use crate::probe::{Finding, probe};
use crate::resolve::{self, Names};
use crate::runtime::{
    OBSERVATIONS_MAX, Phase, Published, RECORDS_GRACE, SOCKETS_MAX, Shared, work,
};
use crate::state::{Folder, State, StateError};
use crate::tls::{Credentials, CredentialsError};

/// Observations taken in one go.
const OBSERVATIONS_BATCH: usize = 1024;
/// What the threads get beyond the drain deadline to end: the time for their records, and as much
/// again to stop.
const GRACE: Duration = RECORDS_GRACE.saturating_mul(2);

/// How long being ready waits for the first answers to all names.
const NAMES_WAIT: Duration = Duration::from_secs(5);

/// How a gateway is started.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// The file or folder of its configuration.
    pub config: PathBuf,
    /// Which `MeshGateway`, where several are loaded.
    pub name: Option<String>,
    /// Where this replica stands.
    pub locality: Option<String>,
}

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration has errors: the findings, ready to be shown.
    #[error("{0}")]
    Config(String),
    /// Its own certificate or bundles cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// It cannot have the folder for its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// An address of its own cannot be bound.
    #[error(transparent)]
    Interface(#[from] BindError),
    /// A listener cannot be bound.
    #[error(
        "spec.listeners.{name}.address `{address}` cannot be bound; choose another address or end what holds it"
    )]
    Listener {
        /// The listener.
        name: String,
        /// Its address.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The operating system refused something a gateway needs.
    #[error("the gateway cannot start: {what}")]
    System {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> GatewayError {
    move |source| GatewayError::System { what, source }
}

/// Runs a gateway on this thread until a signal has drained it.
///
/// # Errors
/// As [`GatewayError`]; only before it serves.
pub fn run(options: &GatewayOptions) -> Result<(), GatewayError> {
    raise_open_files();
    let node = NodeOptions {
        name: options.name.clone(),
        locality: options.locality.clone(),
    };
    let mut start = Start::load(&options.config, &node)?;
    reload::warn(&start.loaded);
    let credentials = Credentials::load(&reload::svid_files(&start.loaded.settings), 1)?;
    let state = Folder::claim_if_any(start.folder()?)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(system("no event loop"))?;
    let local = tokio::task::LocalSet::new();
    local.block_on(
        &runtime,
        control(options.config.clone(), node, start, credentials, state),
    )
}

/// Raises the soft limit of open files to the hard one: two for each connection are needed.
fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}

async fn control(
    config: PathBuf,
    node: NodeOptions,
    start: Start,
    credentials: Credentials,
    state: Option<State>,
) -> Result<(), GatewayError> {
    let (phase, phase_read) = watch::channel(Phase::Serving);
    let (observations, observed) = mpsc::channel(OBSERVATIONS_MAX);
    let mut fleet = Fleet::new();
    let Start {
        loaded,
        findings,
        is_kept,
        ..
    } = start;
    let keeper = state.map(Keeper::new);
    if !is_kept && let Some(keeper) = &keeper {
        keeper.keep(loaded.last_good);
    }
    let snapshot = Arc::new(loaded.snapshot);
    fleet.reconcile(&snapshot, Time::ZERO);
    let shares = Arc::new(fleet.shares(Time::ZERO));
    let settings = loaded.settings;
    let interfaces = Interfaces::bind(settings.probes, settings.metrics, &settings.admin).await?;
    let log = AccessLog::start(Box::new(std::io::stdout())).map_err(system("no log thread"))?;
    let files = Files::new(config, node, loaded.files, &settings);
    let workers = settings.workers;
    let shared = Arc::new(Shared {
        published: ArcSwap::from_pointee(Published {
            generation: 1,
            snapshot: Arc::clone(&snapshot),
            shares,
        }),
        credentials: ArcSwap::from_pointee(credentials),
        names: ArcSwap::from_pointee(Names::default()),
        settings,
        metrics: Metrics::new(),
        log,
        observations,
        phase: phase_read,
        ready: AtomicBool::new(false),
        resources: ArcSwap::from_pointee(loaded.resources),
        findings: ArcSwap::from_pointee(
            (findings.as_ref()).map_or(Value::Null, zeugma_xds::Findings::to_json),
        ),
        open: AtomicUsize::new(0),
        started: Instant::now(),
    });
    let (handles, threads) = start_workers(&shared, workers)?;
    let mut accepting = Accepting::new(Arc::clone(&shared), handles);
    let bound = accepting.bind_new(&snapshot)?;
    accepting.commit(bound);
    count_panics(&shared);
    let (names, names_wanted) = watch::channel(resolve::names_of(&snapshot));
    let (asked, names_asked) = oneshot::channel();
    let (reloads, reloaded) = mpsc::channel(1);
    // Beside the control loop: neither a slow file system nor a slow name server holds it up.
    let mut beside = JoinSet::new();
    beside.spawn_local(resolve::run(Arc::clone(&shared), names_wanted, asked));
    beside.spawn_local(files.watch(Arc::clone(&shared), reloads, listen(SignalKind::hangup())?));
    if let Some(keeper) = &keeper {
        beside.spawn_local(keeper.run());
    }
    if findings.is_some() {
        shared.metrics.reloaded("config", false);
    }
    let mut control = Control {
        shared,
        fleet,
        probes: JoinSet::new(),
        accepting,
        names,
        phase,
        workers: threads,
        keeper,
    };
    control.shared.metrics.generation(1);
    control.tell_credentials();
    let starting = Stage::Starting {
        names_asked,
        until: Instant::now() + NAMES_WAIT,
    };
    control
        .serve(starting, interfaces, observed, reloaded)
        .await
}

/// Counts every panic of the process: what panics is a connection or a request, and ends alone.
fn count_panics(shared: &Arc<Shared>) {
    let counted = Arc::clone(shared);
    // In place of the default hook, which would tell the same a second time, in another form.
    std::panic::set_hook(Box::new(move |panic| {
        counted.metrics.panicked();
        let at = panic.location().map(ToString::to_string);
        let said = panic.payload_as_str().unwrap_or("(no text)");
        tracing::error!(
            at,
            said,
            "a connection panicked and is ended: a defect of the gateway; please report this line"
        );
    }));
}

fn start_workers(
    shared: &Arc<Shared>,
    configured: Option<usize>,
) -> Result<(Vec<WorkerHandle>, Vec<std::thread::JoinHandle<()>>), GatewayError> {
    // It respects affinity and a cgroup's quota.
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut handles = Vec::new();
    let mut threads = Vec::new();
    for nth in 0..configured.unwrap_or(available).max(1) {
        let (sockets, queue) = mpsc::channel(SOCKETS_MAX);
        let shared = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{nth}"))
            .spawn(move || {
                if let Err(error) = work(shared, queue) {
                    tracing::error!(%error, "a worker has no event loop");
                }
            })
            .map_err(system("no worker thread"))?;
        handles.push(WorkerHandle {
            sockets,
            open: Arc::default(),
        });
        threads.push(thread);
    }
    Ok((handles, threads))
}

/// The control thread's state.
struct Control {
    shared: Arc<Shared>,
    fleet: Fleet,
    probes: JoinSet<(EndpointKey, Finding)>,
    accepting: Accepting,
    /// Told the names of every snapshot, for what resolves them beside the control loop.
    names: watch::Sender<BTreeSet<Host>>,
    phase: watch::Sender<Phase>,
    workers: Vec<std::thread::JoinHandle<()>>,
    /// Held until the end: the lock of the state directory is in it.
    keeper: Option<Keeper>,
}

/// How far a gateway is on its way in or out.
///
/// ```text
/// Starting --names asked, or 5 s--> Serving
/// Starting, Serving --signal--> Leaving --delay or signal--> Draining --all ended or deadline--> (end)
/// ```
enum Stage {
    /// Accepting, and not ready: an endpoint or peer given by a name could not be reached.
    Starting {
        names_asked: oneshot::Receiver<()>,
        until: Instant,
    },
    Serving,
    /// Not ready, still accepting.
    Leaving {
        until: Instant,
    },
    /// No new work.
    Draining {
        deadline: Instant,
        ended: tokio::task::JoinHandle<()>,
    },
}

impl Control {
    /// Serves until a signal asks it to stop and what is open has ended.
    async fn serve(
        &mut self,
        mut stage: Stage,
        interfaces: Interfaces,
        mut observed: mpsc::Receiver<Observation>,
        mut reloaded: mpsc::Receiver<Reloaded>,
    ) -> Result<(), GatewayError> {
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut batch = Vec::with_capacity(OBSERVATIONS_BATCH);
        let mut beside = JoinSet::new();
        beside.spawn_local(admin::serve(interfaces, Arc::clone(&self.shared)));
        loop {
            let is_starting = matches!(stage, Stage::Starting { .. });
            if !is_starting {
                self.start_probes();
            }
            let wake = self.wake();
            // Every arm is cancel-safe: channels, signals, and sleeps until a fixed moment.
            let signalled = tokio::select! {
                n = observed.recv_many(&mut batch, OBSERVATIONS_BATCH) => {
                    self.observe(&batch, n);
                    batch.clear();
                    None
                }
                Some(answer) = self.probes.join_next() => {
                    self.probed(answer);
                    None
                }
                () = wake, if !is_starting => {
                    self.publish_shares();
                    None
                }
                Some(reloaded) = reloaded.recv() => {
                    self.apply(reloaded, &stage);
                    None
                }
                () = stage.over() => match &stage {
                    Stage::Starting { .. } => {
                        stage = self.become_ready();
                        None
                    }
                    Stage::Serving => None,
                    Stage::Leaving { .. } => Some(Duration::ZERO),
                    Stage::Draining { .. } => break,
                },
                _ = terminate.recv() => Some(self.shared.settings.drain.delay),
                _ = interrupt.recv() => Some(Duration::ZERO),
            };
            if let Some(delay) = signalled {
                stage = self.leave(stage, delay);
            }
        }
        self.shared.log.flush();
        tracing::info!("drained");
        Ok(())
    }

    fn become_ready(&self) -> Stage {
        self.shared.ready.store(true, Ordering::Release);
        tracing::info!(
            name = %self.shared.settings.name,
            cluster = %self.shared.settings.cluster,
            listeners = %self.accepting,
            "gateway ready"
        );
        Stage::Serving
    }

    /// The next stage on the way out; a second signal shortens the delay.
    fn leave(&mut self, stage: Stage, delay: Duration) -> Stage {
        match stage {
            Stage::Starting { .. } | Stage::Serving if !delay.is_zero() => {
                self.shared.ready.store(false, Ordering::Release);
                tracing::info!(?delay, "draining: not ready, still accepting");
                Stage::Leaving {
                    until: Instant::now() + delay,
                }
            }
            Stage::Starting { .. } | Stage::Serving | Stage::Leaving { .. } => self.drain(),
            Stage::Draining { .. } => stage,
        }
    }

    /// Ends accepting; what is open has until the deadline.
    fn drain(&mut self) -> Stage {
        self.shared.ready.store(false, Ordering::Release);
        let timeout = self.shared.settings.drain.timeout;
        let deadline = Instant::now() + timeout;
        let open = self.shared.open.load(Ordering::Relaxed);
        tracing::info!(open, ?timeout, "draining: no new connections");
        self.accepting.stop();
        self.phase.send_replace(Phase::Draining {
            deadline: deadline.into(),
        });
        let workers = std::mem::take(&mut self.workers);
        let ended = tokio::task::spawn_blocking(move || {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!("a worker panicked");
                }
            }
        });
        Stage::Draining {
            deadline: deadline + GRACE,
            ended,
        }
    }

    fn probed(&mut self, answer: Result<(EndpointKey, Finding), tokio::task::JoinError>) {
        let Ok((key, finding)) = answer else {
            return;
        };
        let good = match finding {
            Finding::Good => true,
            Finding::Bad => false,
            // Neither: to the fleet it is a check that was lost, and made again after its deadline.
            Finding::Unasked => return,
        };
        self.fleet.probed(&key, good, self.shared.now());
        self.publish_shares();
    }

    async fn wait_until(shared: &Shared, at: Time) {
        tokio::time::sleep(at.since(shared.now())).await;
    }

    fn wake(&self) -> impl Future<Output = ()> + use<> {
        let shared = Arc::clone(&self.shared);
        let at = self.fleet.next_wake();
        async move {
            match at {
                Some(at) => Self::wait_until(&shared, at).await,
                None => std::future::pending().await,
            }
        }
    }

    fn start_probes(&mut self) {
        for due in self.fleet.due_probes(self.shared.now(), fastrand::u64(..)) {
            self.probes
                .spawn_local(probe(Arc::clone(&self.shared), due));
        }
    }

    fn observe(&mut self, batch: &[Observation], n: usize) {
        let now = self.shared.now();
        for observation in batch.iter().take(n) {
            self.fleet.observe(observation, now);
        }
        self.publish_shares();
    }

    /// Publishes the shares of the present snapshot, if they changed.
    fn publish_shares(&mut self) {
        let now = self.shared.now();
        let events = self.fleet.drain_events();
        let published = self.shared.published.load();
        let shares = self.fleet.shares(now);
        if shares != *published.shares {
            self.publish(
                published.generation,
                Arc::clone(&published.snapshot),
                shares,
            );
        }
        for event in events.into_iter().chain(self.fleet.drain_events()) {
            tell_event(&event);
        }
    }

    fn publish(&self, generation: u64, snapshot: Arc<Snapshot>, shares: Shares) {
        let published = Published {
            generation,
            snapshot,
            shares: Arc::new(shares),
        };
        self.shared.published.store(Arc::new(published));
    }

    fn apply(&mut self, reloaded: Reloaded, stage: &Stage) {
        if let Some(credentials) = reloaded.credentials {
            self.shared.credentials.store(Arc::new(credentials));
            self.tell_credentials();
        }
        let Some((snapshot, resources, last_good)) = reloaded.config else {
            return;
        };
        if matches!(stage, Stage::Draining { .. }) {
            return;
        }
        let bound = match self.accepting.bind_new(&snapshot) {
            Ok(bound) => bound,
            Err(error) => {
                tracing::error!(%error, "configuration refused; the last good one serves");
                self.shared.metrics.reloaded("config", false);
                self.shared
                    .findings
                    .store(Arc::new(Value::String(error.to_string())));
                return;
            }
        };
        let now = self.shared.now();
        let snapshot = Arc::new(snapshot);
        self.fleet.reconcile(&snapshot, now);
        self.names.send_replace(resolve::names_of(&snapshot));
        let shares = self.fleet.shares(now);
        let generation = self.shared.published.load().generation + 1;
        self.shared.resources.store(Arc::new(resources));
        self.publish(generation, Arc::clone(&snapshot), shares);
        self.shared.metrics.generation(generation);
        self.accepting.commit(bound);
        if let Some(keeper) = &self.keeper {
            keeper.keep(last_good);
        }
        tracing::info!(generation, version = %snapshot.version, "configuration applied");
    }

    fn tell_credentials(&self) {
        let credentials = self.shared.credentials.load();
        self.shared.metrics.svid_expiry(credentials.not_after());
        self.shared.metrics.reloaded("credentials", true);
    }
}

fn tell_event(event: &FleetEvent) {
    match event {
        FleetEvent::Ejected { key, cause, lasts } => {
            tracing::warn!(endpoint = %key, ?cause, ?lasts, "endpoint ejected");
        }
        FleetEvent::Readmitted { key } => tracing::info!(endpoint = %key, "endpoint readmitted"),
        FleetEvent::Unhealthy { key } => {
            tracing::warn!(endpoint = %key, "endpoint fails its active check");
        }
        FleetEvent::Healthy { key } => {
            tracing::info!(endpoint = %key, "endpoint passes its active check");
        }
        FleetEvent::FailsAlike { route } => {
            tracing::warn!(%route, "every level fails alike; nothing is ejected: look at the requests");
        }
        FleetEvent::SharesMoved {
            cluster,
            levels,
            too_few,
            ..
        } => {
            let shares: Vec<String> = levels
                .iter()
                .map(|(name, before, now)| {
                    format!("{name} {:.0} % -> {:.0} %", before * 100.0, now * 100.0)
                })
                .collect();
            tracing::info!(%cluster, shares = shares.join(", "), too_few, "traffic moved");
        }
        other => tracing::info!(event = ?other, "health"),
    }
}

impl Stage {
    /// Waits until this stage is over by time, or all that it waits for has ended.
    ///
    /// # Cancel safety
    /// Safe: a fixed moment, or a task that is not dropped.
    async fn over(&mut self) {
        match self {
            Self::Starting { names_asked, until } => {
                // Too late or never asked: it serves what it can.
                drop(tokio::time::timeout_at((*until).into(), names_asked).await);
            }
            Self::Serving => std::future::pending().await,
            Self::Leaving { until } => tokio::time::sleep_until((*until).into()).await,
            Self::Draining { deadline, ended } => {
                if tokio::time::timeout_at((*deadline).into(), ended)
                    .await
                    .is_err()
                {
                    tracing::warn!("workers did not end by the drain deadline");
                }
            }
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, GatewayError> {
    signal(kind).map_err(system("no signal handler"))
}
