//! The control thread: files, health, probes, names, the admin interface, draining.
//!
//! It is the only writer of what is published; workers only read.

mod accepting;
mod alarms;
pub(crate) mod decided;
pub(crate) mod drill;
pub(crate) mod handover;
pub(crate) mod inherit;
mod last_good;
mod names;
mod reload;
pub(crate) mod rest;
mod succession;
mod systemd;

use std::collections::HashSet;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use tokio::runtime::LocalOptions;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use zeugma_core::fleet::{Fleet, FleetEvent, Said};
use zeugma_core::line::with_causes;
use zeugma_core::shares::Shares;
use zeugma_core::snapshot::{EndpointKey, Snapshot};
use zeugma_core::time::Time;
use zeugma_xds::{Findings, GatewaySettings, LastGood, NodeOptions, Refused, ResourceList};

use self::accepting::Accepting;
use self::decided::Decided;
use self::handover::{Arrival, Asked, HandoverError, Offered};
use self::inherit::InheritError;
pub(crate) use self::last_good::Keeper;
use self::last_good::{Beginning, Turn};
use self::names::Named;
pub(crate) use self::reload::{Binding, NotBound, Reloaded, svid_source};
use self::reload::{Configured, Files};
use self::succession::Sockets;
use crate::account::AccessLog;
use crate::admin::{BindError, Interfaces};
use crate::admission::{self, Admission, UnderWay};
use crate::control_plane::{self, Begun};
use crate::federation::{self, Federation};
use crate::identity::{self, Agent, AskedAgent};
use crate::listener::WorkerHandle;
use crate::logging::Logging;
use crate::metrics::Metrics;
use crate::peer::ask::{self, HEARD_MAX, Heard};
use crate::probe::{Finding, probe};
use crate::pulse::Pulses;
use crate::resolve::Names;
use crate::runtime::{
    AdminSide, OBSERVATIONS_MAX, Outcomes, Phase, Published, RECORDS_GRACE, SOCKETS_MAX, Shared,
    work,
};
use crate::state::{State, StateError};
use crate::tls::{Credentials, CredentialsError};

/// Batches of observations taken in one go.
const OBSERVATIONS_BATCH: usize = 16;
/// What the threads get beyond the drain deadline to end: the time for their records, and as much
/// again to stop.
const GRACE: Duration = RECORDS_GRACE.saturating_mul(2);

/// How long being ready waits for the first answers to all names.
const NAMES_WAIT: Duration = Duration::from_secs(5);

/// After how long without an SVID that is told: an agent that is there answers sooner.
const SVID_WAIT_TOLD: Duration = Duration::from_secs(1);
/// How often a service manager is told of it, which would end what does not get ready.
const SVID_WAIT_TOLD_AGAIN: Duration = Duration::from_secs(30);

/// How long the start waits for the event loops of its workers, so that being ready means it.
const WORKERS_WAIT: Duration = Duration::from_secs(5);

/// How a gateway is started.
#[derive(Debug, Clone)]
pub struct GatewayOptions {
    /// The file or folder of its configuration.
    pub config: PathBuf,
    /// Which `MeshGateway`, where several are loaded.
    pub name: Option<String>,
    /// Where this replica stands.
    pub locality: Option<String>,
    /// What it does where a gateway of its name runs.
    pub start: Start,
    /// Its log, which can be told to say more.
    pub logging: Logging,
}

/// What a process does where a gateway of its name runs already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// It does not start.
    Alone,
    /// It takes over its sockets, and the one before drains; where none runs it starts alone.
    TakeOver,
}

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The configuration has errors: the findings, ready to be shown.
    #[error("the configuration is refused, and none is kept that could serve\n{0}")]
    Config(String),
    /// Its own certificate or bundles cannot be used.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// It cannot have the folder for its state.
    #[error(transparent)]
    State(#[from] StateError),
    /// Sockets that systemd passed are not used.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// It does not take over from the gateway that runs.
    #[error(transparent)]
    Handover(#[from] HandoverError),
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
    /// A worker ended though nobody had asked it to; what the others carried was drained.
    #[error(
        "worker {0} ended by itself; its connections are lost, those of the others had their time to end"
    )]
    Worker(usize),
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

impl GatewayError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "ZG0128",
            Self::Credentials(error) => error.code(),
            Self::State(error) => error.code(),
            Self::Inherit(error) => error.code(),
            Self::Handover(error) => error.code(),
            Self::Interface(error) => error.code(),
            Self::Listener { .. } => "ZG0113",
            Self::Worker(_) => "ZG0906",
            Self::System { .. } => "ZG0908",
        }
    }
}

fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> GatewayError {
    move |source| GatewayError::System { what, source }
}

/// Runs a gateway on this thread until a signal has drained it.
///
/// # Errors
/// As [`GatewayError`]; all but [`GatewayError::Worker`] only before it serves.
pub fn run(options: &GatewayOptions) -> Result<(), GatewayError> {
    let open_files = raise_open_files();
    crate::transport::sent::try_to_ask();
    let node = NodeOptions {
        name: options.name.clone(),
        locality: options.locality.clone(),
    };
    let mut start = Beginning::load(&options.config, &node)?;
    let begun = control_plane::begin(&mut start.loaded);
    reload::warn(&start.loaded.warnings);
    let settings = &start.loaded.settings;
    let newest = last_good::crl_numbers(settings);
    let federation = Federation::kept(settings);
    let source = federation.beside(svid_source(settings));
    let credentials = Arc::new(Credentials::begin(&source, &newest)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build_local(LocalOptions::default())
        .map_err(system("no event loop"))?;
    runtime.block_on(async {
        let arrival = Box::pin(handover::arrive(options.start, &start)).await?;
        Box::pin(control(
            options,
            node,
            (start, begun),
            (credentials, federation),
            open_files,
            arrival,
        ))
        .await
    })
}

/// Raises the soft limit of open files to the hard one, since two for each connection are needed;
/// returns what holds.
fn raise_open_files() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(code = "ZG0923", %error, "the limit of open files cannot be raised");
    }
    // None: without a limit.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

async fn control(
    options: &GatewayOptions,
    node: NodeOptions,
    (start, begun): (Beginning, Option<Begun>),
    (credentials, federation): (Arc<Credentials>, Federation),
    open_files: u64,
    mut arrival: Arrival,
) -> Result<(), GatewayError> {
    let (phase, phase_read) = watch::channel(Phase::Serving);
    let (observations, observed) = mpsc::channel(OBSERVATIONS_MAX);
    let files = Files::new(options.config.clone(), node, &start, &credentials);
    let (loaded, findings) = (start.loaded, start.findings);
    let unkept = (!start.is_kept).then_some(loaded.last_good);
    let keeper = begin_keeping(&arrival, &federation, &loaded.settings, unkept);
    let snapshot = Arc::new(loaded.snapshot);
    let (mut fleet, decided) = Decided::begin(&arrival, &snapshot);
    let settings = loaded.settings;
    let interfaces = Interfaces::bind(&settings, &mut arrival.adopted)?;
    let passed = (interfaces.offered(&settings)).map_err(system("no sockets to pass on"))?;
    let (client, side) = Begun::parts(begun);
    let shared = Arc::new(Shared {
        published: ArcSwap::from_pointee(first_published(&snapshot, fleet.shares(Time::ZERO))),
        credentials: ArcSwap::new(credentials),
        changes: watch::channel(0).0,
        peers: Default::default(),
        names: ArcSwap::from_pointee(Names::default()),
        federation,
        agent: Agent::new(AskedAgent::of(&settings)),
        log: open_log(&settings)?,
        admission: Admission::new(settings.limits.connections, open_files),
        control_plane: side,
        settings,
        metrics: Metrics::new(),
        observations,
        phase: phase_read,
        ready: AtomicBool::new(false),
        resources: ArcSwap::from_pointee(loaded.resources),
        findings: ArcSwap::from_pointee(Value::Null),
        open: AtomicUsize::new(0),
        windows: Arc::default(),
        admin: AdminSide::of(&options.logging, decided.told()),
        pulses: Pulses::new(),
        started: Instant::now(),
        #[cfg(any(test, feature = "otlp"))]
        spans: std::sync::OnceLock::new(),
    });
    tell_beginning(&shared, findings.as_ref(), &loaded.refused);
    let (handles, threads, workers_ended) = start_workers(&shared, shared.settings.workers)?;
    let accepting = Accepting::new(Arc::clone(&shared), handles);
    let sockets = Sockets::bind(&accepting, &snapshot, &mut arrival)?;
    let (names, resolving, names_asked) = Named::begin(&snapshot, &shared);
    let (reloads, mut reloaded) = mpsc::channel(1);
    let (again, asking) = (files.again(), (client, reloads.clone(), keeper.clone()));
    let reloading = files.watch(Arc::clone(&shared), reloads, listen(SignalKind::hangup())?);
    let (mut beside, heard) = begin_beside(&shared, resolving, reloading, keeper.as_ref());
    beside.spawn_local(control_plane::run(Arc::clone(&shared), asking));
    let mut control = Control {
        has_configuration: !shared.control_plane.is_awaited(),
        shared,
        fleet,
        decided,
        probes: JoinSet::new(),
        accepting,
        names,
        phase,
        workers: threads,
        keeper,
        state: arrival.state,
        interfaces: Some(interfaces),
        passed,
        passed_on: CancellationToken::new(),
        handing: None,
        waiting: None,
        again,
        beside: JoinSet::new(),
        workers_ended,
    };
    control.tell_credentials();
    let starting = Stage::starting(asked_all(&control.shared, names_asked));
    let (stage, asked, begun) = control
        .begin(starting, sockets, arrival.taking, &mut reloaded)
        .await;
    control
        .serve(stage, (observed, heard), reloaded, asked)
        .await?;
    Ok(begun?)
}

/// Has what outlives the process be kept in its folder, if it has one.
fn begin_keeping(
    arrival: &Arrival,
    federation: &Federation,
    settings: &GatewaySettings,
    unkept: Option<LastGood>,
) -> Option<Keeper> {
    let folder = arrival.state.as_ref()?.path("");
    federation.keep_in(folder.clone());
    let turn = if arrival.taking.is_some() {
        federation.read_again(settings);
        Turn::Later
    } else {
        Turn::Now
    };
    Some(Keeper::begin(folder, unkept, turn))
}

fn open_log(settings: &GatewaySettings) -> Result<AccessLog, GatewayError> {
    let out = Box::new(std::io::stdout());
    AccessLog::start(settings.access_log, out).map_err(system("no log thread"))
}

fn tell_beginning(shared: &Shared, refused: Option<&Findings>, in_part: &Refused) {
    let metrics = &shared.metrics;
    metrics.connections_max(shared.admission.connections_max());
    metrics.generation(1);
    shared.control_plane.tell_age(metrics);
    match refused {
        Some(findings) => {
            metrics.reloaded("config", false);
            shared.findings.store(Arc::new(findings.to_json()));
        }
        None => {
            reload::tell_refused(in_part, shared);
            if let Some(text) = reload::refused_in_part(in_part) {
                tracing::error!(code = "ZG0122", "{text}");
            }
        }
    }
}

fn first_published(snapshot: &Arc<Snapshot>, shares: Shares) -> Published {
    Published {
        generation: 1,
        under_way: UnderWay::of(snapshot, None),
        snapshot: Arc::clone(snapshot),
        shares: Arc::new(shares),
        renamed: Arc::default(),
    }
}

/// Waits until all that is asked at a start was answered or given up.
fn asked_all(
    shared: &Arc<Shared>,
    names_asked: oneshot::Receiver<()>,
) -> impl Future<Output = ()> + 'static {
    let shared = Arc::clone(shared);
    async move {
        // An error is names that nobody asks for.
        names_asked.await.ok();
        shared.control_plane.answered().await;
    }
}

/// Begins what goes on beside the control loop: neither a slow file system nor a slow name server
/// holds it up. What peers report comes from there.
fn begin_beside(
    shared: &Arc<Shared>,
    resolving: impl Future<Output = ()> + 'static,
    reloading: impl Future<Output = ()> + 'static,
    keeper: Option<&Keeper>,
) -> (JoinSet<()>, mpsc::Receiver<Heard>) {
    count_panics(shared);
    let mut beside = JoinSet::new();
    beside.spawn_local(admission::watch_memory(Arc::clone(shared)));
    beside.spawn_local(alarms::watch_expiry(Arc::clone(shared)));
    beside.spawn_local(systemd::watch(Arc::clone(shared)));
    beside.spawn_local(federation::run(Arc::clone(shared)));
    beside.spawn_local(identity::run(Arc::clone(shared)));
    beside.spawn_local(resolving);
    beside.spawn_local(reloading);
    #[cfg(any(test, feature = "otlp"))]
    if let Some(exporter) = crate::otlp::begin(shared) {
        beside.spawn_local(exporter.run(Arc::clone(shared)));
    }
    if let Some(keeper) = keeper {
        beside.spawn_local(keeper.run());
    }
    let (tell, heard) = mpsc::channel(HEARD_MAX);
    beside.spawn_local(ask::run(Arc::clone(shared), tell));
    (beside, heard)
}

/// Counts every panic of the process: what panics is a connection or a request, and ends alone.
pub(crate) fn count_panics(shared: &Arc<Shared>) {
    let counted = Arc::clone(shared);
    // In place of the default hook, which would tell the same a second time, in another form.
    std::panic::set_hook(Box::new(move |panic| {
        counted.metrics.panicked();
        let at = panic.location().map(ToString::to_string);
        let said = panic.payload_as_str().unwrap_or("(no text)");
        tracing::error!(
            code = "ZG0906",
            at,
            said,
            "a connection panicked and is ended: a defect of the gateway; please report this line"
        );
    }));
}

type Workers = (
    Vec<WorkerHandle>,
    Vec<std::thread::JoinHandle<()>>,
    mpsc::Receiver<usize>,
);

fn start_workers(shared: &Arc<Shared>, configured: Option<usize>) -> Result<Workers, GatewayError> {
    // It respects affinity and a cgroup's quota.
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = configured.unwrap_or(available).max(1);
    let (tell_ended, ended) = mpsc::channel(count);
    let (tell_running, running) = std::sync::mpsc::channel();
    let mut handles = Vec::new();
    let mut threads = Vec::new();
    for nth in 0..count {
        let (sockets, queue) = mpsc::channel(SOCKETS_MAX);
        let shared = Arc::clone(shared);
        let tell_running = tell_running.clone();
        let thread = start_worker(nth, tell_ended.clone(), move || {
            // Nobody waits any more if it took too long.
            let running = move || tell_running.send(()).unwrap_or_default();
            if let Err(error) = work(shared, queue, running) {
                tracing::error!(code = "ZG0908", %error, "a worker has no event loop");
            }
        });
        handles.push(WorkerHandle {
            nth,
            sockets,
            open: Arc::default(),
        });
        threads.push(thread.map_err(system("no worker thread"))?);
    }
    drop(tell_running);
    let until = Instant::now() + WORKERS_WAIT;
    for _ in 0..count {
        // A worker that cannot run tells its end.
        if running
            .recv_timeout(until.saturating_duration_since(Instant::now()))
            .is_err()
        {
            break;
        }
    }
    Ok((handles, threads, ended))
}

/// Starts the thread of a worker, which tells its end even if it panics.
fn start_worker(
    nth: usize,
    tell_ended: mpsc::Sender<usize>,
    work: impl FnOnce() + Send + 'static,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    struct Ended(usize, mpsc::Sender<usize>);

    impl Drop for Ended {
        fn drop(&mut self) {
            // There is room for every worker; nobody listens at the end of the process.
            self.1.try_send(self.0).ok();
        }
    }

    let thread = std::thread::Builder::new().name(format!("worker-{nth}"));
    thread.spawn(move || {
        let _ended = Ended(nth, tell_ended);
        work();
    })
}

/// The control thread's state.
struct Control {
    shared: Arc<Shared>,
    fleet: Fleet,
    decided: Decided,
    probes: JoinSet<(EndpointKey, Finding)>,
    accepting: Accepting,
    names: Named,
    phase: watch::Sender<Phase>,
    workers: Vec<std::thread::JoinHandle<()>>,
    /// Whether there is something to serve: a control plane may not have said it yet.
    has_configuration: bool,
    /// Held until the end, or until a successor has it: the lock is in it.
    state: Option<State>,
    /// Keeps every configuration that is applied.
    keeper: Option<Keeper>,
    /// Until they are served.
    interfaces: Option<Interfaces>,
    /// Their sockets, to be passed on.
    passed: Vec<Offered>,
    /// Cancelled when a successor has them.
    passed_on: CancellationToken,
    /// The successor that has been offered the sockets and has not taken over yet.
    handing: Option<i32>,
    /// A configuration that came since then.
    waiting: Option<Configured>,
    /// Has the files looked at again.
    again: Arc<Notify>,
    beside: JoinSet<()>,
    /// Told the number of each worker that ends, whatever the cause.
    workers_ended: mpsc::Receiver<usize>,
}

/// How far a gateway is on its way in or out.
///
/// ```text
/// Starting --names and control plane asked, or 5 s--> Serving, or Awaiting where there is no SVID or no
///     configuration yet
/// Awaiting --the first SVID, the first configuration--> Serving
/// Starting, Awaiting, Serving --signal--> Leaving --delay or signal--> Draining --all ended or deadline--> (end)
/// Starting, Awaiting, Serving, Leaving --a successor is ready--> Draining
/// ```
enum Stage {
    /// Accepting, and not ready: an endpoint or peer given by a name could not be reached, and what serves
    /// may be older than what the control plane says.
    Starting {
        asked: Pin<Box<dyn Future<Output = ()>>>,
        until: Instant,
    },
    /// Accepting, and not ready: an agent has given no SVID, or the control plane no configuration.
    Awaiting {
        /// When that is told next: once for people, and again and again for the service manager.
        told_at: Instant,
        is_told: bool,
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
        (mut observed, mut heard): (mpsc::Receiver<Vec<Outcomes>>, mpsc::Receiver<Heard>),
        mut reloaded: mpsc::Receiver<Reloaded>,
        mut asked: mpsc::Receiver<Asked>,
    ) -> Result<(), GatewayError> {
        let mut terminate = listen(SignalKind::terminate())?;
        let mut interrupt = listen(SignalKind::interrupt())?;
        let mut batch = Vec::with_capacity(OBSERVATIONS_BATCH);
        let mut failed = None;
        let shared = Arc::clone(&self.shared);
        let levers = &shared.admin.levers;
        let mut explains = shared.admin.explains.subscribe();
        loop {
            let is_starting = matches!(stage, Stage::Starting { .. } | Stage::Awaiting { .. });
            if !is_starting {
                self.start_probes();
            }
            let wake = self.wake();
            let drill_ends = self.write_decided();
            let renamed = self.names.changed();
            // Every arm is cancel-safe: channels, signals, levers, and sleeps until a fixed moment.
            let signalled = tokio::select! {
                _ = observed.recv_many(&mut batch, OBSERVATIONS_BATCH) => {
                    self.observe(batch.drain(..).flatten());
                    None
                }
                Some(answer) = self.probes.join_next() => {
                    self.probed(answer);
                    None
                }
                Some(heard) = heard.recv() => { self.hear(&heard); None }
                () = wake, if !is_starting => {
                    self.publish_shares();
                    None
                }
                () = renamed => {
                    self.publish_names();
                    None
                }
                Some(reloaded) = reloaded.recv() => {
                    stage = self.take(reloaded, stage);
                    None
                }
                Some(asked) = asked.recv() => {
                    stage = self.asked(asked, stage);
                    None
                }
                // What it missed has given up by its deadline.
                Ok(asked) = explains.recv() => {
                    asked.answer(&self.shared, &self.fleet);
                    None
                }
                Some(worker) = self.workers_ended.recv() => {
                    failed = failed.or_else(|| stage.lost(worker));
                    failed.is_some().then_some(Duration::ZERO)
                }
                () = stage.over() => match &stage {
                    Stage::Starting { .. } => {
                        stage = self.become_ready();
                        None
                    }
                    Stage::Awaiting { is_told, .. } => {
                        stage = self.await_svid(*is_told);
                        None
                    }
                    Stage::Serving => None,
                    Stage::Leaving { .. } => Some(Duration::ZERO),
                    Stage::Draining { .. } => break,
                },
                _ = terminate.recv() => Some(self.shared.settings.drain.delay),
                () = levers.failover.told.notified() => { self.grant_wishes(); None }
                next = self.decided.next(drill_ends) => { self.go_on_with(&next); None }
                () = levers.drain.notified() => Some(self.shared.settings.drain.delay),
                _ = interrupt.recv() => Some(Duration::ZERO),
                () = levers.quit.notified() => Some(Duration::ZERO),
            };
            if let Some(delay) = signalled {
                stage = self.leave(stage, delay);
            }
        }
        self.finish().await;
        failed.map_or(Ok(()), Err)
    }

    async fn finish(&mut self) {
        self.finish_decided().await;
        self.shared.admin.end_streams();
        self.end_interfaces().await;
        self.shared.log.flush();
        tracing::info!(code = "ZG0903", "drained");
    }

    /// Takes what a reload brought; the first SVID makes the gateway ready.
    fn take(&mut self, mut reloaded: Reloaded, stage: Stage) -> Stage {
        let by_signal = reloaded.by_signal;
        if reloaded.is_published {
            self.waiting = None;
        }
        if self.handing.is_some()
            && let Some(config) = reloaded.config.take()
        {
            // A successor has the sockets of the configuration that was offered to it. Nobody waits
            // for the answer as long as that may take.
            self.waiting = Some(config);
        }
        self.apply(reloaded, &stage);
        let is_awaited = matches!(stage, Stage::Awaiting { .. }) && self.has_all();
        let next = if is_awaited {
            self.become_ready()
        } else {
            stage
        };
        // Before it is ready it says so when it is: the manager would send whoever waits for that here.
        if by_signal && !matches!(next, Stage::Starting { .. } | Stage::Awaiting { .. }) {
            systemd::ready();
        }
        next
    }

    fn has_svid(&self) -> bool {
        self.shared.credentials.load().id().is_some()
    }

    /// Whether there is what a gateway cannot do without.
    fn has_all(&self) -> bool {
        self.has_svid() && self.has_configuration
    }

    /// Tells what it waits for.
    fn await_svid(&self, is_told: bool) -> Stage {
        systemd::waiting(SVID_WAIT_TOLD_AGAIN * 2);
        let again = Stage::Awaiting {
            told_at: Instant::now() + SVID_WAIT_TOLD_AGAIN,
            is_told: true,
        };
        if is_told {
            return again;
        }
        if self.has_svid() {
            tracing::warn!(
                code = control_plane::AWAITED,
                "not ready: the control plane has given no configuration yet, and none was kept"
            );
            return again;
        }
        let (agent, said) = self.shared.agent.said();
        tracing::warn!(
            code = identity::AWAITED,
            agent = %said,
            "not ready: the gateway has no SVID yet and waits for its {agent}"
        );
        again
    }

    fn become_ready(&mut self) -> Stage {
        if !self.has_all() {
            return Stage::Awaiting {
                told_at: Instant::now() + SVID_WAIT_TOLD,
                is_told: false,
            };
        }
        // Whoever is told that it is ready may call at once.
        self.publish_names();
        self.shared.ready.store(true, Ordering::Release);
        let data = json!({ "name": self.shared.settings.name });
        self.shared.admin.journal.add("ready", data);
        tracing::info!(
            code = "ZG0901",
            name = %self.shared.settings.name,
            cluster = %self.shared.settings.cluster,
            listeners = %self.accepting,
            "gateway ready"
        );
        systemd::ready();
        Stage::Serving
    }

    /// The next stage on the way out; a second signal shortens the delay.
    fn leave(&mut self, stage: Stage, delay: Duration) -> Stage {
        match stage {
            Stage::Starting { .. } | Stage::Awaiting { .. } | Stage::Serving
                if !delay.is_zero() =>
            {
                self.shared.ready.store(false, Ordering::Release);
                self.tell_leaving();
                systemd::stopping();
                let data = json!({ "delay_seconds": delay.as_secs_f64() });
                self.shared.admin.journal.add("drain-begun", data);
                tracing::info!(
                    code = "ZG0902",
                    ?delay,
                    "draining: not ready, still accepting"
                );
                Stage::Leaving {
                    until: Instant::now() + delay,
                }
            }
            Stage::Starting { .. }
            | Stage::Awaiting { .. }
            | Stage::Serving
            | Stage::Leaving { .. } => self.drain(),
            Stage::Draining { .. } => stage,
        }
    }

    /// Ends accepting; what is open has until the deadline.
    fn drain(&mut self) -> Stage {
        self.shared.ready.store(false, Ordering::Release);
        self.tell_leaving();
        systemd::stopping();
        self.accepting.stop();
        self.end_open()
    }

    /// Gives what is open until the deadline.
    fn end_open(&mut self) -> Stage {
        let timeout = self.shared.settings.drain.timeout;
        let deadline = Instant::now() + timeout;
        let open = self.shared.open.load(Ordering::Relaxed);
        self.phase.send_replace(Phase::Draining {
            deadline: deadline.into(),
        });
        if let Some(keeper) = &self.keeper {
            // What comes is not bound any more: whether it can be nobody knows.
            keeper.keep_nothing_given();
        }
        let data = json!({ "open": open, "timeout_seconds": timeout.as_secs_f64() });
        self.shared.admin.journal.add("draining", data);
        tracing::info!(
            code = "ZG0902",
            open,
            ?timeout,
            "draining: no new connections"
        );
        let workers = std::mem::take(&mut self.workers);
        let ended = tokio::task::spawn_blocking(move || {
            for worker in workers {
                if worker.join().is_err() {
                    tracing::error!(code = "ZG0906", "a worker panicked");
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

    /// Takes what a peer's gateway reports.
    fn hear(&mut self, heard: &Heard) {
        let now = self.shared.now();
        let (peer, gateway) = (&heard.peer, &heard.gateway);
        match &heard.report {
            Some(report) => self.fleet.report(peer, gateway, report, now),
            None => self.fleet.forget_report(peer, gateway, now),
        }
        self.publish_shares();
    }

    /// Has peers be told that this gateway takes no new work soon.
    fn tell_leaving(&self) {
        (self.shared.peers.tidings).send_modify(|tidings| tidings.is_leaving = true);
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

    fn observe(&mut self, outcomes: impl Iterator<Item = Outcomes>) {
        let now = self.shared.now();
        for outcomes in outcomes {
            let Outcomes {
                observation,
                times,
                took,
            } = outcomes;
            if observation.result.is_ok() {
                self.fleet
                    .observe_successes(&observation.key, times, took, now);
            } else {
                self.fleet.observe(&observation, now);
            }
        }
        self.publish_shares();
    }

    /// Publishes the shares of the present snapshot, if they changed.
    fn publish_shares(&mut self) {
        self.publish_shares_because(None);
    }

    /// The same; `because` is why, where it is not something that happened to an endpoint.
    fn publish_shares_because(&mut self, because: Option<&str>) {
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
        self.tell_events(events, because);
    }

    /// Tells what the fleet has to tell, after `before`, in log and journal.
    fn tell_events(&mut self, before: Vec<FleetEvent>, because: Option<&str>) {
        let mut events = before;
        events.extend(self.fleet.drain_events());
        self.shared.admin.journal.add_fleet(&events, because);
        if self.fleet.take_kept_changed() {
            self.keep_decided();
        }
        for event in &events {
            tell_event(event);
        }
        self.end_drill_if_missed(&events);
    }

    fn publish(&self, generation: u64, snapshot: Arc<Snapshot>, shares: Shares) {
        let before = self.shared.published.load();
        let (under_way, renamed) = if Arc::ptr_eq(&before.snapshot, &snapshot) {
            (Arc::clone(&before.under_way), Arc::clone(&before.renamed))
        } else {
            (
                UnderWay::of(&snapshot, Some(&before)),
                before.renamed_in(&snapshot),
            )
        };
        let published = Published {
            generation,
            snapshot,
            shares: Arc::new(shares),
            under_way,
            renamed,
        };
        self.shared.published.store(Arc::new(published));
        (self.shared.peers.tidings).send_modify(|tidings| tidings.published += 1);
    }

    fn apply(&mut self, reloaded: Reloaded, stage: &Stage) {
        if let Some(credentials) = reloaded.credentials {
            self.shared.credentials.store(credentials);
            self.tell_credentials();
            self.recheck();
        }
        if let Some(wanted) = reloaded.wanted {
            self.shared.federation.want(wanted);
        }
        if let Some(config) = reloaded.config {
            let configured = self.configure(config, stage);
            if let Some(answer) = reloaded.answer {
                // An error is a reader that has ended with the process.
                answer.send(configured).ok();
            }
        }
        if let Some(answer) = reloaded.bind
            && let Some(unbound) = self.bind_missing(stage)
        {
            answer.send(unbound).ok();
        }
        if let (Some(last_good), Some(keeper)) = (reloaded.keep, &self.keeper) {
            keeper.keep(last_good);
        }
    }

    /// Has a configuration serve.
    ///
    /// # Errors
    /// The listeners that cannot be bound; nothing has changed then.
    fn configure(
        &mut self,
        (snapshot, resources, last_good, binding): Configured,
        stage: &Stage,
    ) -> Result<(), NotBound> {
        if matches!(stage, Stage::Draining { .. }) {
            // Nothing is accepted any more, and the files are the successor's to keep: but what is
            // open may be so for long, and has no right that the configuration took away.
            self.publish_next(Arc::new(snapshot), resources);
            return Ok(());
        }
        let mut adopted = inherit::Adopted::default();
        let (bound, unbound) = self.accepting.bind_what_can(&snapshot, &mut adopted);
        if binding == Binding::All && !unbound.is_empty() {
            return Err(unbound.iter().map(not_bound).collect());
        }
        self.publish_next(Arc::new(snapshot), resources);
        self.accepting.commit(bound);
        self.has_configuration = true;
        if let (Some(keeper), Some(last_good)) = (&self.keeper, last_good) {
            keeper.keep(last_good);
        }
        Ok(())
    }

    /// Has a configuration serve that had to wait: who loaded it does not wait for the answer any more.
    fn configure_late(&mut self, config: Configured, stage: &Stage) {
        if let Err(unbound) = self.configure(config, stage) {
            for (listener, error) in unbound {
                tracing::error!(
                    code = "ZG0113",
                    listener,
                    error,
                    "a configuration that had to wait is tried again"
                );
            }
            self.again.notify_one();
        }
    }

    /// Binds what the present snapshot listens on and could not be bound before; tells what still
    /// cannot. `None` where its sockets are not this process's to change.
    fn bind_missing(&mut self, stage: &Stage) -> Option<NotBound> {
        if matches!(stage, Stage::Draining { .. }) || self.handing.is_some() {
            return None;
        }
        let snapshot = Arc::clone(&self.shared.published.load().snapshot);
        let mut adopted = inherit::Adopted::default();
        let (bound, unbound) = self.accepting.bind_what_can(&snapshot, &mut adopted);
        self.accepting.commit(bound);
        Some(unbound.iter().map(not_bound).collect())
    }

    /// Publishes a configuration under the next generation, and has what is open judged by it.
    fn publish_next(&mut self, snapshot: Arc<Snapshot>, resources: ResourceList) {
        let now = self.shared.now();
        let before = self.shared.published.load_full();
        let snapshot = (self.names).next(snapshot, &before.snapshot, &self.shared);
        self.fleet.reconcile(&snapshot, now);
        let shares = self.fleet.shares(now);
        let generation = before.generation + 1;
        self.shared.resources.store(Arc::new(resources));
        self.publish(generation, Arc::clone(&snapshot), shares);
        // To take ten thousand routes apart takes its time.
        drop(tokio::task::spawn_blocking(move || drop(before)));
        self.recheck();
        self.shared.metrics.generation(generation);
        let journal = &self.shared.admin.journal;
        let data = json!({ "generation": generation, "version": &*snapshot.version });
        journal.add("configuration-applied", data);
        if journal.has_moves() {
            let names: HashSet<&str> = snapshot.clusters.iter().map(|one| &*one.name).collect();
            journal.keep_moves(|cluster| names.contains(cluster));
        }
        self.tell_events(Vec::new(), Some(&format!("configuration {generation}")));
        self.end_drill_if_missed_anywhere();
        tracing::info!(code = "ZG0120", generation, version = %snapshot.version, "configuration applied");
    }

    /// Has the workers judge what is open by what was just stored.
    fn recheck(&self) {
        self.shared.changes.send_modify(|n| *n += 1);
    }

    fn tell_credentials(&self) {
        let credentials = self.shared.credentials.load();
        // Zero where there is none: it is as good as expired.
        let not_after = credentials.not_after().unwrap_or_default();
        self.shared.metrics.svid_expiry(not_after);
        reload::tell_whole(&credentials, &self.shared);
        if let Some(keeper) = &self.keeper {
            keeper.keep_numbers(credentials.crl_numbers());
        }
    }
}

/// The listener and why it cannot be bound, in one line.
fn not_bound(error: &GatewayError) -> (String, String) {
    let why = with_causes(error);
    let name = if let GatewayError::Listener { name, .. } = error {
        name.clone()
    } else {
        String::new()
    };
    (name, why)
}

fn tell_event(event: &FleetEvent) {
    match event {
        FleetEvent::Ejected { key, cause, lasts } => {
            tracing::warn!(code = "ZG0421", endpoint = %key, ?cause, ?lasts, "endpoint ejected");
        }
        FleetEvent::Readmitted { key } => {
            tracing::info!(code = "ZG0422", endpoint = %key, "endpoint readmitted")
        }
        FleetEvent::Unhealthy { key } => {
            tracing::warn!(code = "ZG0423", endpoint = %key, "endpoint fails its active check");
        }
        FleetEvent::Healthy { key } => {
            tracing::info!(code = "ZG0424", endpoint = %key, "endpoint passes its active check");
        }
        FleetEvent::Reported {
            key,
            peer,
            said,
            turned: true,
        } => tell_reported(key, peer, *said),
        FleetEvent::ReportStale {
            peer,
            gateway,
            when_stale,
        } => {
            tracing::warn!(code = "ZG0430", %peer, %gateway, ?when_stale, "a peer's gateway has stopped reporting");
        }
        FleetEvent::FailsAlike { route } => {
            tracing::warn!(code = "ZG0425", %route, "every level fails alike; nothing is ejected: look at the requests");
        }
        FleetEvent::WaitsForReset { route, level, .. } => {
            tracing::warn!(code = "ZG0436", %route, %level, "a level is good again and waits for `zeugma failover reset`");
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
            tracing::info!(code = "ZG0426", %cluster, shares = shares.join(", "), too_few, "traffic moved");
        }
        other @ (FleetEvent::Reported { .. } | _) => {
            tracing::debug!(event = ?other, "health");
        }
    }
}

fn tell_reported(endpoint: &EndpointKey, peer: &str, said: Said) {
    match said {
        Said::Healthy(of) if of.healthy > 0 => {
            let (healthy, total) = (of.healthy, of.total);
            tracing::info!(code = "ZG0429", %endpoint, peer, healthy, total, "a peer's gateway is of use again");
        }
        Said::Leaving | Said::Nothing => {
            tracing::info!(code = "ZG0429", %endpoint, peer, "a peer's gateway is of use again: what it reported is forgotten");
        }
        Said::Healthy(of) => {
            let total = of.total;
            tracing::warn!(code = "ZG0428", %endpoint, peer, total, "a peer's gateway reports that nothing healthy is behind it");
        }
        Said::Gone => {
            tracing::warn!(code = "ZG0428", %endpoint, peer, "a peer's gateway is gone, as it reported it would be");
        }
    }
}

impl Stage {
    fn starting(asked: impl Future<Output = ()> + 'static) -> Self {
        let until = Instant::now() + NAMES_WAIT;
        let asked = Box::pin(asked);
        Self::Starting { asked, until }
    }

    /// Why the gateway fails where this worker ended; none ends by itself but while it drains.
    fn lost(&self, worker: usize) -> Option<GatewayError> {
        if matches!(self, Self::Draining { .. }) {
            return None;
        }
        tracing::error!(
            code = "ZG0906",
            worker,
            "a worker ended by itself: a defect of the gateway; the others drain, and the process ends"
        );
        Some(GatewayError::Worker(worker))
    }

    /// Waits until this stage is over by time, or all that it waits for has ended.
    ///
    /// # Cancel safety
    /// Safe: a fixed moment, or a task that is not dropped.
    async fn over(&mut self) {
        match self {
            Self::Starting { asked, until } => {
                // Too late or never asked: it serves what it can.
                drop(tokio::time::timeout_at((*until).into(), asked).await);
            }
            Self::Awaiting { told_at, .. } => tokio::time::sleep_until((*told_at).into()).await,
            Self::Serving => std::future::pending().await,
            Self::Leaving { until } => tokio::time::sleep_until((*until).into()).await,
            Self::Draining { deadline, ended } => {
                if tokio::time::timeout_at((*deadline).into(), ended)
                    .await
                    .is_err()
                {
                    tracing::warn!(code = "ZG0904", "workers did not end by the drain deadline");
                }
            }
        }
    }
}

fn listen(kind: SignalKind) -> Result<Signal, GatewayError> {
    signal(kind).map_err(system("no signal handler"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Alone;

    #[tokio::test(flavor = "current_thread")]
    async fn a_worker_that_ends_by_itself_ends_the_gateway_with_an_error() {
        let listeners = "{ apps: { address: '127.0.0.1:0', role: workloads } }";
        let alone = Alone::new(listeners, "", OBSERVATIONS_MAX);
        let (tell, workers_ended) = mpsc::channel(2);
        let (sockets, queue) = mpsc::channel(SOCKETS_MAX);
        let shared = Arc::clone(&alone.shared);
        let works = start_worker(0, tell.clone(), move || work(shared, queue, || {}).unwrap());
        let works_not = start_worker(1, tell, || panic!("as a defect would"));
        let handle = WorkerHandle {
            nth: 0,
            sockets,
            open: Arc::default(),
        };
        let mut control = Control {
            fleet: Fleet::new(),
            decided: Decided::default(),
            keeper: None,
            has_configuration: true,
            probes: JoinSet::new(),
            accepting: Accepting::new(Arc::clone(&alone.shared), vec![handle]),
            names: Named::of(&alone.snapshot).0,
            phase: alone.phase,
            workers: vec![works.unwrap(), works_not.unwrap()],
            state: None,
            interfaces: None,
            passed: Vec::new(),
            passed_on: CancellationToken::new(),
            handing: None,
            waiting: None,
            again: Arc::default(),
            beside: JoinSet::new(),
            workers_ended,
            shared: alone.shared,
        };
        let ((_reloads, reloaded), (_asking, asked)) = (mpsc::channel(1), mpsc::channel(1));
        let local = tokio::task::LocalSet::new();
        let (_peers, heard) = mpsc::channel(1);
        let told = (alone.observed, heard);
        let serving = control.serve(Stage::Serving, told, reloaded, asked);
        let serving = Box::pin(local.run_until(serving));
        let ended = tokio::time::timeout(Duration::from_secs(20), serving).await;
        let error = ended.unwrap().unwrap_err();
        assert!(matches!(error, GatewayError::Worker(1)), "{error}");
        assert!(!control.shared.ready.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn a_worker_that_panics_tells_its_end_as_one_that_returns_does() {
        let (tell, mut ended) = mpsc::channel(2);
        let panics = start_worker(3, tell.clone(), || panic!("as a defect would")).unwrap();
        assert_eq!(ended.recv().await, Some(3));
        assert!(panics.join().is_err());
        start_worker(4, tell, || {}).unwrap().join().unwrap();
        assert_eq!(ended.recv().await, Some(4));
        assert_eq!(ended.recv().await, None);
    }
}
