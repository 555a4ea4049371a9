//! The server: streams of xDS over connections whose other end is known.
//!
//! It opens no socket and verifies nobody: who accepts connections says who calls. What it tells is made
//! of a [`Plane`] for each node, and the same for nodes that see the same.

mod fresh;
mod load;
mod node;
mod read;
mod seldom;
mod standing;
mod status;
mod stream;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use zeugma_core::identity::{IdPattern, SpiffeId};

use self::fresh::Fresh;
use self::load::Loads;
pub use self::seldom::Seldom;
use self::standing::{Place, Standings};
use self::wire::{Left, Requests, Telling, Told};
use crate::catalog::{Catalog, Store};
use crate::plane::{Plane, View};
use crate::session::Kind;
use crate::session::server::Protocol;

/// Streams of one connection.
const CONNECTION_STREAMS_MAX: u32 = 32;
/// How often a client is asked whether it is there, and how long its answer may take (P40).
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(5);
/// What a client may send of a stream, and of all of a connection, before it is read.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// What waits to be written of a stream.
const SEND_BYTES_MAX: usize = 64 * 1024;
/// The longest list of headers of a request.
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// What it gets to take the last words.
const LEAVE: Duration = Duration::from_secs(2);

/// What clients may take of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Streams at once. Default 20000.
    pub streams: usize,
    /// Streams at once of callers with one identity, or without any from one address. Default 1000.
    pub caller_streams: usize,
    /// Bytes of a request: a client that comes back says everything that it has. Default 32 MiB.
    pub request_bytes: usize,
    /// Bytes of all requests over 64 KiB that are read at once, and of one caller's half of them; those
    /// that come meanwhile wait with who sends them, for a minute. Default 64 MiB, at least one request.
    pub requests_bytes: usize,
    /// Names that one stream may ask for. Default 200000.
    pub names: usize,
    /// Views at once: gateways, and places where they stand. Default 256.
    pub views: usize,
    /// Of them those of one caller: each is compiled and kept for itself, and where a node stands it says
    /// itself. Twice as many are made for one caller in a minute. Default 8.
    pub caller_views: usize,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            streams: 20_000,
            caller_streams: 1000,
            request_bytes: 32 << 20,
            requests_bytes: 64 << 20,
            names: 200_000,
            views: 256,
            caller_views: 8,
        }
    }
}

impl ServerLimits {
    /// Of all requests that are read at once.
    fn requests_kib(&self) -> usize {
        self.requests_bytes.max(self.request_bytes).div_ceil(1024)
    }

    /// Of those of one caller.
    fn caller_requests_kib(&self) -> usize {
        (self.requests_bytes / 2)
            .max(self.request_bytes)
            .div_ceil(1024)
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Who holds the key of this identity.
    Verified(SpiffeId),
    /// Somebody on this machine.
    Local,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verified(id) => id.fmt(f),
            Self::Local => f.write_str("local"),
        }
    }
}

/// Who may subscribe as which node, beside the gateways' own identities.
#[derive(Debug, Clone, Default)]
pub struct Admission {
    /// Gateways, or all for `None`, and who may have their configuration.
    pub listed: Vec<(Option<String>, IdPattern)>,
    /// Callers on this machine may have every gateway's.
    pub local: bool,
}

/// A connection that was accepted.
#[derive(Debug, Clone)]
pub struct Visitor {
    /// Who calls.
    pub caller: Caller,
    /// From where.
    pub source: SocketAddr,
    /// Until when it may go on: what verified the caller ends.
    pub until: Instant,
}

/// A server of xDS.
#[derive(Debug, Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

/// What streams share.
#[derive(Debug)]
struct Shared {
    limits: ServerLimits,
    admission: Admission,
    identifier: Arc<str>,
    started: Instant,
    plane: Mutex<Current>,
    views: Mutex<BTreeMap<View, watch::Sender<Seen>>>,
    fresh: Fresh,
    /// Held while something is compiled, one after the other.
    store: Mutex<Store>,
    /// Of the store, as it was when something was compiled last: who asks does not wait for the store.
    known: AtomicUsize,
    encoded: AtomicU64,
    draining: watch::Sender<bool>,
    memory: Arc<Semaphore>,
    /// Answers about all nodes that were not taken yet.
    answers: Arc<Semaphore>,
    standings: Standings,
    loads: Mutex<Loads>,
    lines: Lines,
    make: Make,
}

/// What anybody may have the log say.
#[derive(Debug, Default)]
struct Lines {
    refused: Seldom,
    ended: Seldom,
}

/// How a view is made.
type Make = fn(&Plane, &View, &mut Store, Option<&Catalog>) -> Option<Catalog>;

/// The plane that serves.
#[derive(Debug, Clone)]
struct Current {
    /// Counts publications from one.
    nth: u64,
    plane: Arc<Plane>,
}

/// What a view shows.
#[derive(Debug, Clone, Default)]
struct Seen {
    /// Of which plane it is made; of none yet where it is zero.
    nth: u64,
    /// `None` where its gateway is no more.
    catalog: Option<Arc<Catalog>>,
}

impl Server {
    /// A server of what `plane` says.
    #[must_use]
    pub fn new(plane: Plane, admission: Admission, limits: ServerLimits, identifier: &str) -> Self {
        Self::making((plane, Plane::catalog), admission, limits, identifier)
    }

    fn making(
        (plane, make): (Plane, Make),
        admission: Admission,
        limits: ServerLimits,
        identifier: &str,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                limits,
                admission,
                identifier: identifier.into(),
                started: Instant::now(),
                plane: Mutex::new(Current {
                    nth: 1,
                    plane: Arc::new(plane),
                }),
                views: Mutex::default(),
                fresh: Fresh::default(),
                store: Mutex::default(),
                known: AtomicUsize::new(0),
                encoded: AtomicU64::new(0),
                draining: watch::channel(false).0,
                memory: Arc::new(Semaphore::new(limits.requests_kib())),
                answers: Arc::new(Semaphore::new(status::ANSWERS_MAX)),
                standings: Standings::default(),
                loads: Mutex::default(),
                lines: Lines::default(),
                make,
            }),
        }
    }

    /// Has every stream tell what `plane` says now; returns how many resources that were not known
    /// before it took.
    ///
    /// # Cancel safety
    /// It is published all the same.
    pub async fn publish(&self, plane: Plane) -> u64 {
        let shared = Arc::clone(&self.shared);
        {
            let mut current = lock(&shared.plane);
            *current = Current {
                nth: current.nth + 1,
                plane: Arc::new(plane),
            };
        }
        let made = tokio::task::spawn_blocking(move || shared.make_all());
        made.await.unwrap_or_default()
    }

    /// What serves.
    #[must_use]
    pub fn plane(&self) -> Arc<Plane> {
        Arc::clone(&lock(&self.shared.plane).plane)
    }

    /// What nodes there are, and what they took.
    #[must_use]
    pub fn nodes(&self) -> serde_json::Value {
        let load = lock(&self.shared.loads).to_json();
        self.shared.standings.to_json(self.shared.now(), load)
    }

    /// The metrics, in Prometheus' text format.
    #[must_use]
    pub fn metrics(&self) -> String {
        let known = self.shared.known.load(Ordering::Relaxed);
        let encoded = self.shared.encoded.load(Ordering::Relaxed);
        let views = lock(&self.shared.views).len();
        let loads = lock(&self.shared.loads).to_values();
        (self.shared.standings).to_metrics(self.shared.now(), (known, encoded, views), loads)
    }

    /// How many streams there are.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.shared.standings.len()
    }

    /// Ends every stream and connection: clients go to another server.
    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
    }

    /// Whether [`drain`](Self::drain) was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.shared.draining.borrow()
    }

    /// Waits until [`drain`](Self::drain) is called.
    pub async fn drained(&self) {
        set(&mut self.shared.draining.subscribe()).await;
    }

    /// Carries a connection until it ends.
    pub async fn serve<S>(&self, stream: S, visitor: Visitor)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let shared = &self.shared;
        let (begin, mut begun) = mpsc::channel(CONNECTION_STREAMS_MAX as usize);
        let answer = |request| {
            let answered = open(shared, &visitor, &begin, request);
            std::future::ready(Ok::<_, std::convert::Infallible>(answered))
        };
        let mut connection = pin!(
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(CONNECTION_STREAMS_MAX)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BYTES_MAX)
                .max_header_list_size(HEADER_BYTES_MAX)
                .keep_alive_interval(PING)
                .keep_alive_timeout(PONG)
                .serve_connection(TokioIo::new(stream), service_fn(answer))
        );
        let mut draining = shared.draining.subscribe();
        let mut streams = JoinSet::new();
        let mut leaves_at = visitor.until;
        let mut is_leaving = false;
        loop {
            // Each arm keeps its state outside of its future.
            tokio::select! {
                // How it ended, its streams have told already.
                _ended = connection.as_mut() => return,
                // One that its client has given up is here until it notices.
                Some(stream) = begun.recv(), if streams.len() < CONNECTION_STREAMS_MAX as usize => {
                    drop(streams.spawn(stream));
                }
                Some(ended) = streams.join_next() => {
                    if let Ok(Left::Untaken) = ended {
                        shared.ends(&"what it was told is not taken", "", &visitor.caller);
                        if streams.is_empty() {
                            return;
                        }
                        // Its others may be told the rest of what is on its way.
                        if !is_leaving {
                            leaves_at = Instant::now();
                        }
                    }
                }
                () = sleep_until(leaves_at) => {
                    if is_leaving {
                        return;
                    }
                    is_leaving = true;
                    leaves_at = Instant::now() + LEAVE;
                    connection.as_mut().graceful_shutdown();
                }
                () = set(&mut draining), if !is_leaving => {
                    leaves_at = Instant::now();
                }
            }
        }
    }
}

type StreamFuture = Pin<Box<dyn Future<Output = Left> + Send>>;

/// Answers a call with the body that its stream will fill.
fn open(
    shared: &Arc<Shared>,
    visitor: &Visitor,
    begin: &mpsc::Sender<StreamFuture>,
    request: Request<Incoming>,
) -> Response<Told> {
    let (tell, telling) = mpsc::channel(stream::WAITING_MAX);
    let call = Call::of(request.method(), request.uri().path());
    let protocol = match call {
        Some(Call::Discovery(protocol, _)) => protocol,
        Some(Call::Status(_) | Call::Load) | None => Protocol::Delta,
    };
    let (told, taking) = Told::new(protocol, Arc::clone(&shared.identifier), telling);
    let begun = match call {
        None => Err(Status::unimplemented("no such service")),
        Some(call) => Place::take(shared, visitor, protocol).and_then(|place| {
            let requests = Requests::new(
                request.into_body(),
                shared.limits.request_bytes,
                [place.memory(), &shared.memory].map(Arc::clone),
            );
            let opened = stream::Opened {
                shared: Arc::clone(shared),
                place,
                requests,
                tell: tell.clone(),
            };
            let begun = begin.try_send(match call {
                Call::Discovery(protocol, only) => {
                    Box::pin(stream::run(opened, taking, protocol, only))
                }
                Call::Status(asks) => Box::pin(status::run(opened, taking, asks)),
                Call::Load => Box::pin(load::run(opened, taking)),
            });
            begun.map_err(|_full| Status::resource_exhausted("too many streams at once"))
        }),
    };
    if let Err(status) = begun {
        // The channel is new, and has room.
        tell.try_send(Telling::End(status)).ok();
    }
    let mut response = Response::new(told);
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// What a client calls.
#[derive(Debug, Clone, Copy)]
enum Call {
    Discovery(Protocol, Option<Kind>),
    Status(status::Asks),
    Load,
}

impl Call {
    fn of(method: &Method, path: &str) -> Option<Self> {
        use self::status::Asks::{AsLongAsItIsOpen, Once};

        let call = path.strip_prefix("/envoy.service.")?;
        match call {
            _ if method != Method::POST => None,
            "status.v3.ClientStatusDiscoveryService/FetchClientStatus" => Some(Self::Status(Once)),
            "status.v3.ClientStatusDiscoveryService/StreamClientStatus" => {
                Some(Self::Status(AsLongAsItIsOpen))
            }
            "load_stats.v3.LoadReportingService/StreamLoadStats" => Some(Self::Load),
            _ => discovery(call).map(|(protocol, only)| Self::Discovery(protocol, only)),
        }
    }
}

/// P6: all types on one stream, or a service for each.
fn discovery(call: &str) -> Option<(Protocol, Option<Kind>)> {
    use Protocol::{Delta, Sotw};

    Some(match call {
        "discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources" => (Sotw, None),
        "discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources" => (Delta, None),
        "cluster.v3.ClusterDiscoveryService/StreamClusters" => (Sotw, Some(Kind::Cluster)),
        "cluster.v3.ClusterDiscoveryService/DeltaClusters" => (Delta, Some(Kind::Cluster)),
        "endpoint.v3.EndpointDiscoveryService/StreamEndpoints" => (Sotw, Some(Kind::Endpoints)),
        "endpoint.v3.EndpointDiscoveryService/DeltaEndpoints" => (Delta, Some(Kind::Endpoints)),
        "listener.v3.ListenerDiscoveryService/StreamListeners" => (Sotw, Some(Kind::Listener)),
        "listener.v3.ListenerDiscoveryService/DeltaListeners" => (Delta, Some(Kind::Listener)),
        "route.v3.RouteDiscoveryService/StreamRoutes" => (Sotw, Some(Kind::Routes)),
        "route.v3.RouteDiscoveryService/DeltaRoutes" => (Delta, Some(Kind::Routes)),
        _ => return None,
    })
}

/// Waits until it is so.
async fn set(flag: &mut watch::Receiver<bool>) {
    // Where its sender is gone, so is the server.
    flag.wait_for(|is_set| *is_set).await.ok();
}

/// Nobody fails while they hold one of these.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
