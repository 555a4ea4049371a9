//! Connections to endpoints, kept by each worker for itself.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::watch;
use tokio::time::timeout;
use zeugma_core::balance::fraction;
use zeugma_core::plan::Attempt;
use zeugma_core::snapshot::{ClusterIx, Endpoint, EndpointKey, EndpointTls, Failure};
use zeugma_core::verdict::Reason;

use super::body::{BodyError, Outgoing};
use super::expect::{Ahead, Gate};
use super::h1::{Asked, Connection, Rewound};
use super::h2_client::{Multiplexed, Place, StreamCount};
use super::headers::Present;
use super::keepalive::{Pings, When};
use super::stream::Incoming;
use super::unheard::{Care, Hearing, Host, Standing, Unheard};
use crate::account::Destination;
use crate::admission;
use crate::connection::describe;
use crate::hash::Configured;
use crate::metrics::Metrics;
use crate::recheck::{Judge, Pooled};
use crate::runtime::{Shared, Worker};
use crate::tls::TlsPeer;
use crate::transport::Stream;
use crate::transport::mtls::{ALPN_H2, ALPN_HTTP1};
use crate::transport::sent::Link;
use crate::upstream::{self, ConnectError, First, Pinned, Upstream};

/// How often a pool lets go of idle connections that their endpoints have closed.
pub(crate) const SWEEPING: Duration = Duration::from_secs(1);
/// An idle connection is kept this long.
const IDLE: Duration = Duration::from_secs(60);
/// Idle HTTP/1.1 connections kept for one endpoint.
const IDLE_MAX: usize = 256;
/// How long the rest of a request is sent whose response is complete.
const REST_MAX: Duration = Duration::from_secs(60);
/// What the head of an HTTP/1.1 response may be long, at least.
const READ_BYTES: usize = 64 * 1024;
/// A request body that every kernel takes whole though nobody reads it: Linux gives a new connection
/// a window of 64 KiB (`tcp_rmem`), and heads are shorter than the rest of it.
const SHORT_BYTES: u64 = 32 * 1024;
/// An endpoint of ours that speaks HTTP/2 is asked whether it is there when a response is awaited
/// and nothing came for so long: silence is found within 5 s.
const ENDPOINT: Pings = Pings {
    interval: Duration::from_millis(1500),
    timeout: Duration::from_millis(1500),
    when: When::Awaiting,
};

/// How often is looked whether a host that was quiet speaks again.
const LOOKING: Duration = Duration::from_millis(20);
/// What waiting for somebody else's connection may last beyond the connect timeout.
const WAIT_MARGIN: Duration = Duration::from_millis(250);

/// What is spoken with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Wire {
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
    /// HTTP/2 if the endpoint's TLS agrees, else HTTP/1.1.
    Negotiated,
}

impl Wire {
    const fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::H1 => &[ALPN_HTTP1],
            Self::H2 => &[ALPN_H2],
            Self::Negotiated => &[ALPN_H2, ALPN_HTTP1],
        }
    }
}

/// Connections are shared only by requests for the same endpoint, TLS and credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    endpoint: EndpointKey,
    tls: EndpointTls,
    wire: Wire,
    credentials: u64,
}

impl Key {
    fn of(endpoint: &Endpoint, wire: Wire, credentials: u64) -> Self {
        Self {
            endpoint: endpoint.key.clone(),
            tls: endpoint.tls.clone(),
            wire,
            credentials,
        }
    }

    fn is_of(&self, endpoint: &Endpoint, wire: Wire, credentials: u64) -> bool {
        self.wire == wire
            && self.credentials == credentials
            && self.tls == endpoint.tls
            && self.endpoint == endpoint.key
    }
}

/// The connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    /// By endpoint; most have one entry.
    entries: RefCell<Configured<EndpointKey, Vec<Entry>>>,
    /// How often it was swept: a clock that costs nothing to read.
    sweeps: Cell<u64>,
    /// How often connections were judged: those that were leased meanwhile were not.
    rechecks: Cell<u64>,
}

#[derive(Debug)]
struct Entry {
    key: Rc<Key>,
    /// The last is when each was used, in sweeps.
    h1: Vec<(Facts, Alternating, u64)>,
    h2: Vec<Shareable>,
    connecting: Option<watch::Receiver<Option<String>>>,
    /// What was sent over connections of HTTP/1.1.
    unheard: Rc<Unheard>,
    /// When a connection ended for its endpoint answered no PING, until there is another.
    silent: Option<Instant>,
    /// The endpoint agreed on HTTP/1.1 before: nobody waits for a connection to share.
    speaks_h1: bool,
}

impl Entry {
    fn new(key: Rc<Key>) -> Self {
        Self {
            key,
            h1: Vec::new(),
            h2: Vec::new(),
            connecting: None,
            unheard: Rc::default(),
            silent: None,
            speaks_h1: false,
        }
    }

    const fn is_needed(&self) -> bool {
        !self.h1.is_empty()
            || !self.h2.is_empty()
            || self.connecting.is_some()
            || self.silent.is_some()
    }

    /// Lets go of connections of HTTP/2 that are not to be kept.
    fn retain_h2(&mut self, keeps: impl Fn(&Shareable) -> bool) {
        let silent = &mut self.silent;
        self.h2.retain(|one| {
            let keeps = keeps(one);
            if !keeps && one.connection.is_silent() {
                *silent = Some(Instant::now());
            }
            keeps
        });
    }
}

/// A connection that many requests share.
#[derive(Debug)]
struct Shareable {
    facts: Facts,
    connection: Multiplexed,
    used: Instant,
}

/// An HTTP/1.1 connection, for one request after the other.
#[derive(Debug)]
struct Alternating {
    connection: Box<Connection<Stream>>,
    /// Whether the socket awaits a slow reader.
    is_told_slow: bool,
}

impl Alternating {
    fn new(stream: Stream, head_bytes_max: usize) -> Self {
        Self {
            connection: Box::new(Connection::new(stream, head_bytes_max)),
            is_told_slow: false,
        }
    }

    /// What is not taken of the body is given up on, unless its reader may be slow.
    fn mind(&mut self, body: &Outgoing) {
        let length = body.size_hint().upper();
        let may_be_slow = length.is_none_or(|length| length > SHORT_BYTES);
        if may_be_slow != self.is_told_slow {
            self.is_told_slow = may_be_slow;
            upstream::await_slow_reader(self.connection.stream().tcp(), may_be_slow);
        }
    }

    fn begin(&mut self, request: Request<Outgoing>) {
        self.mind(request.body());
        self.connection.begin(request);
    }

    /// Sends what was begun and waits for the head of its response.
    async fn response(&mut self) -> Result<Response<()>, SendError> {
        let sent = std::future::poll_fn(|cx| self.connection.poll_head(cx)).await;
        sent.map_err(|error| SendError {
            failure: if self.connection.has_sent_nothing() {
                Failure::RefusedStream
            } else {
                Failure::Reset
            },
            detail: error.to_string(),
        })
    }
}

/// What an endpoint answers, on a connection that goes back to the pool behind it.
#[derive(Debug)]
pub(crate) struct Answer {
    under_way: Option<UnderWay>,
    /// What the headers of the response have.
    present: Present,
}

#[derive(Debug)]
struct UnderWay {
    one: Alternating,
    home: Option<Home>,
}

/// Where a connection is kept.
#[derive(Debug)]
struct Home {
    worker: Rc<Worker>,
    key: Rc<Key>,
    facts: Facts,
    rechecks: u64,
}

impl Answer {
    fn new(one: Alternating, home: Option<Home>) -> Self {
        let mut this = Self {
            present: one.connection.present(),
            under_way: Some(UnderWay { one, home }),
        };
        this.finish_if_ended();
        this
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(under_way) = &mut self.under_way else {
            return Poll::Ready(None);
        };
        let polled = under_way.one.connection.poll_frame(cx);
        if polled.is_ready() {
            self.finish_if_ended();
        }
        polled
    }

    fn finish_if_ended(&mut self) {
        if let Some(under_way) = (self.under_way).take_if(|on| on.one.connection.has_ended()) {
            under_way.finish();
        }
    }

    /// The connection, which speaks another protocol from here on.
    pub(super) fn into_upgraded(self) -> Option<Rewound<Stream>> {
        let (stream, ahead) = self.under_way?.one.connection.into_parts();
        Some(Rewound::new(stream, ahead))
    }

    pub(super) const fn present(&self) -> Present {
        self.present
    }

    pub(super) fn has_ended(&self) -> bool {
        (self.under_way.as_ref()).is_none_or(|under_way| under_way.one.connection.has_ended())
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        (self.under_way.as_ref()).map_or_else(
            || SizeHint::with_exact(0),
            |under_way| under_way.one.connection.size_hint(),
        )
    }
}

impl UnderWay {
    /// The response has ended: keeps the connection, if it is to be kept.
    fn finish(mut self) {
        if self.one.connection.is_sending() {
            // The endpoint takes the rest, as far as it does; the caller has its answer.
            drop(tokio::task::spawn_local(async move {
                let connection = &mut self.one.connection;
                let rest = std::future::poll_fn(|cx| connection.poll_rest(cx));
                if let Ok(Ok(())) = timeout(REST_MAX, rest).await {
                    self.keep();
                }
            }));
        } else {
            self.keep();
        }
    }

    fn keep(self) {
        let Self { mut one, home } = self;
        if let Some(home) = home
            && one.connection.is_done()
        {
            one.connection.rest();
            let worker = Rc::clone(&home.worker);
            worker.pool.give_back(&worker, home, one);
        }
    }
}

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Its address, as the log writes it.
    pub(crate) address: Arc<str>,
    /// Who answered, where we originated TLS.
    pub(crate) peer: Option<Arc<TlsPeer>>,
    opened: Instant,
    /// Which part of the time around its age it is given, 0 to 1.
    jitter: f64,
    kept: Rc<Kept>,
}

/// What is kept with a connection.
#[derive(Debug)]
struct Kept {
    /// What was told last of a request that it carried.
    told: RefCell<Option<Told>>,
    link: Option<Link>,
    /// What was sent to its endpoint over connections of HTTP/1.1.
    unheard: RefCell<Rc<Unheard>>,
}

type Told = (Reached, Rc<Destination>);

/// What a request came to a connection by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Reached {
    generation: u64,
    cluster: ClusterIx,
    attempt: Attempt,
    is_first: bool,
}

impl Facts {
    /// Notes that a request is sent over it, of HTTP/1.1.
    fn sends(&self, now: Instant) {
        let kept = &self.kept;
        kept.unheard.borrow().sends(kept.link, now);
    }

    /// Notes that something came over it, of HTTP/1.1.
    fn heard(&self) {
        self.kept.unheard.borrow().heard();
    }

    /// Whether it takes no new requests where that is so after `age_max`, give or take a tenth: what
    /// was opened together is not opened anew together.
    fn is_old(&self, age_max: Duration) -> bool {
        !age_max.is_zero() && self.opened.elapsed() >= age_max.mul_f64(0.9 + 0.2 * self.jitter)
    }

    /// What is told of a request that is sent over it at the `nth` attempt: mostly what was told of
    /// the one before.
    pub(crate) fn destination(&self, to: &Pinned, attempt: &Attempt, nth: u32) -> Rc<Destination> {
        let reached = Reached {
            generation: to.published.generation,
            cluster: to.cluster,
            attempt: *attempt,
            is_first: nth == 1,
        };
        let mut told = self.kept.told.borrow_mut();
        if let Some((_, same)) = told.as_ref().filter(|(before, _)| *before == reached) {
            return Rc::clone(same);
        }
        let address = Arc::clone(&self.address);
        let identity = self.peer.as_ref().map(|peer| peer.id.to_string());
        let new = describe(&to.published, to.cluster, attempt, address, identity, nth);
        *told = Some((reached, Rc::clone(&new)));
        new
    }
}

/// A connection for one request.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) facts: Facts,
    /// Whether it has carried requests before.
    pub(crate) reused: bool,
    key: Rc<Key>,
    /// How often the pool was judged when it was leased.
    rechecks: u64,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    H1(Alternating),
    H2(Place),
}

/// The connection that a request wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) wire: Wire,
    pub(crate) care: Care,
    pub(crate) patience: Patience,
    /// When it is wanted, or not long before.
    pub(crate) now: Instant,
}

/// What a request does where its endpoint's host is quiet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patience {
    /// It is not sent: it may go elsewhere.
    Elsewhere,
    /// It waits until the host speaks, or takes another connection.
    Here,
}

/// What a pool has for a request.
enum Found {
    Lease(Lease),
    /// A connection whose host may be gone.
    Doubtful(Hearing),
    /// Nothing that its host is known to be behind.
    Quiet {
        /// Whether it has been asked.
        is_silent: bool,
    },
    Nothing,
}

/// Why a request got no response.
#[derive(Debug)]
pub(crate) struct SendError {
    pub(crate) failure: Failure,
    pub(crate) detail: String,
}

impl Lease {
    /// The generation of the credentials it was opened with.
    pub(crate) fn credentials(&self) -> u64 {
        self.key.credentials
    }

    /// Whether it takes WebSocket on a stream of HTTP/2.
    pub(crate) fn takes_extended_connect(&self) -> bool {
        matches!(&self.sender, Sender::H2(place) if place.takes_extended_connect())
    }

    /// Whether this connection speaks HTTP/2.
    pub(crate) const fn is_h2(&self) -> bool {
        matches!(self.sender, Sender::H2(_))
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// The connection broke or refused the stream.
    ///
    /// # Cancel safety
    /// Dropping it resets the stream, or closes the HTTP/1.1 connection.
    pub(crate) async fn send(
        self,
        worker: &Rc<Worker>,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Option<StreamCount>), SendError> {
        match self.into_turn() {
            Ok(mut turn) => {
                turn.one.begin(request);
                turn.response(worker).await
            }
            Err(place) => {
                let (response, stream) = place.send(request, Ahead::default()).await?;
                Ok((response, Some(stream)))
            }
        }
    }

    /// The turn on the connection, if it speaks HTTP/1.1.
    pub(crate) fn into_turn(self) -> Result<Turn, Place> {
        match self.sender {
            Sender::H1(one) => Ok(Turn {
                one,
                key: self.key,
                facts: self.facts,
                rechecks: self.rechecks,
            }),
            Sender::H2(place) => Err(place),
        }
    }
}

/// A turn on an HTTP/1.1 connection: for one request.
#[derive(Debug)]
pub(crate) struct Turn {
    one: Alternating,
    key: Rc<Key>,
    facts: Facts,
    rechecks: u64,
}

impl Turn {
    /// Begins a request whose head is written by `write`.
    pub(crate) fn begin(
        &mut self,
        asked: Asked<'_>,
        body: Outgoing,
        gate: Option<Gate>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.one.mind(&body);
        self.one.connection.begin_written(asked, body, gate, write);
    }

    /// Sends what was begun and waits for the head of its response.
    ///
    /// # Errors
    /// The connection broke.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn response(
        mut self,
        worker: &Rc<Worker>,
    ) -> Result<(Response<Incoming>, Option<StreamCount>), SendError> {
        let response = self.one.response().await?;
        self.facts.heard();
        let home = Home {
            worker: Rc::clone(worker),
            key: self.key,
            facts: self.facts,
            rechecks: self.rechecks,
        };
        let answer = Answer::new(self.one, Some(home));
        Ok((response.map(|()| Incoming::Answer(answer)), None))
    }
}

/// Asks an endpoint for another protocol, on a connection of its own.
///
/// # Errors
/// The connection broke.
///
/// # Cancel safety
/// Dropping it closes the connection.
pub(super) async fn ask_upgrade(
    stream: Stream,
    request: Request<Outgoing>,
) -> Result<Response<Incoming>, SendError> {
    let mut one = Alternating::new(stream, READ_BYTES);
    one.begin(request);
    let response = one.response().await?;
    let answer = if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        Answer {
            present: one.connection.present(),
            under_way: Some(UnderWay { one, home: None }),
        }
    } else {
        Answer::new(one, None)
    };
    Ok(response.map(|()| Incoming::Answer(answer)))
}

impl Pool {
    /// A connection to `endpoint`, if one is free: nearly always.
    pub(crate) fn at_once(
        &self,
        worker: &Worker,
        to: &Pinned,
        endpoint: &Endpoint,
        wanted: Wanted,
    ) -> Option<Lease> {
        let credentials = trusted(worker, endpoint);
        let age_max = to.cluster().policy.connection_age_max;
        let is_key = |key: &Key| key.is_of(endpoint, wanted.wire, credentials);
        match self.free(is_key, endpoint, age_max, wanted) {
            Found::Lease(lease) => Some(lease),
            Found::Doubtful(_) | Found::Quiet { .. } | Found::Nothing => None,
        }
    }

    /// A connection to `endpoint`, opened if none is free.
    ///
    /// # Errors
    /// None could be opened, or had, within the cluster's connect timeout; or the endpoint's host is
    /// quiet, and the request wants to go elsewhere then.
    pub(crate) async fn lease(
        &self,
        worker: &Rc<Worker>,
        to: &Pinned,
        endpoint: &Endpoint,
        wanted: Wanted,
    ) -> Result<Lease, ConnectFailure> {
        let key = Rc::new(Key::of(endpoint, wanted.wire, trusted(worker, endpoint)));
        // Whoever connects meets the connect timeout itself and tells of it; this bounds waiting.
        let patience = to.cluster().connect_deadline(endpoint) + WAIT_MARGIN;
        let leasing = Box::pin(self.free_or_new(worker, to, endpoint, (key, wanted)));
        timeout(patience, leasing).await.unwrap_or_else(|_elapsed| {
            Err(ConnectFailure::untold(format!(
                "no connection within {patience:?}"
            )))
        })
    }

    async fn free_or_new(
        &self,
        worker: &Rc<Worker>,
        to: &Pinned,
        endpoint: &Endpoint,
        (key, mut wanted): (Rc<Key>, Wanted),
    ) -> Result<Lease, ConnectFailure> {
        let mut waiting = None;
        loop {
            let age_max = to.cluster().policy.connection_age_max;
            let found = self.free(|other| *other == *key, endpoint, age_max, wanted);
            if let Found::Quiet { is_silent } = found {
                self.open_aside(worker, to, endpoint, &key);
                if wanted.patience == Patience::Elsewhere {
                    return Err(ConnectFailure::quiet(is_silent));
                }
            }
            if let Found::Doubtful(hearing) = found {
                if hearing.settle().await.is_err() {
                    // To ask once more would tell as little.
                    wanted.care = Care::Repeatable;
                }
                wanted.now = Instant::now();
                continue;
            }
            let is_quiet = match found {
                Found::Lease(lease) => return Ok(lease),
                Found::Quiet { .. } => true,
                Found::Nothing | Found::Doubtful(_) => false,
            };
            if waiting.is_none() {
                waiting = Some(admission::pending(to).map_err(ConnectFailure::shed)?);
            }
            let is_shared = key.wire != Wire::H1 && !self.speaks_h1(&key);
            if !is_shared && !is_quiet {
                return self.open(worker, to, endpoint, key).await;
            }
            let Some(mut connecting) = self.connecting(&key) else {
                return self.open_shared(worker, to, endpoint, key).await;
            };
            // Dropped with whoever connects, and the whole is bounded by the connect timeout.
            let changed = if is_quiet {
                timeout(LOOKING, connecting.changed()).await.ok()
            } else {
                Some(connecting.changed().await)
            };
            wanted.now = Instant::now();
            if changed.is_some_and(|changed| changed.is_ok())
                && let Some(detail) = connecting.borrow().clone()
            {
                // One connection failed; that it was waited for by many is told once.
                return Err(ConnectFailure::untold(detail));
            }
        }
    }

    /// Opens a connection to an endpoint whose host is quiet, which nobody waits for.
    fn open_aside(&self, worker: &Rc<Worker>, to: &Pinned, endpoint: &Endpoint, key: &Rc<Key>) {
        if self.connecting(key).is_some() {
            return;
        }
        let done = self.begin_connecting(key);
        let (worker, to, endpoint) = (Rc::clone(worker), to.clone(), endpoint.clone());
        let key = Rc::clone(key);
        // Ends with the connect timeout.
        drop(tokio::task::spawn_local(async move {
            let pool = &worker.pool;
            let opening = Box::pin(pool.open(&worker, &to, &endpoint, Rc::clone(&key)));
            let opened = opening.await;
            let told = opened.as_ref().err().map(|failure| failure.detail.clone());
            match opened {
                Ok(lease) => pool.keep_new(&worker, lease),
                Err(failure) if failure.is_first_told => {
                    worker.observe(&endpoint.key, Err(Failure::Connect));
                }
                Err(_) => {}
            }
            entry(&mut pool.entries.borrow_mut(), &key).connecting = None;
            // Nobody may be waiting.
            drop(done.send(told));
        }));
    }

    /// Keeps a connection that was opened for nobody; one of HTTP/2 is kept already.
    fn keep_new(&self, worker: &Rc<Worker>, lease: Lease) {
        if let Sender::H1(one) = lease.sender {
            let home = Home {
                worker: Rc::clone(worker),
                key: lease.key,
                facts: lease.facts,
                rechecks: lease.rechecks,
            };
            self.give_back(worker, home, one);
        }
    }

    fn begin_connecting(&self, key: &Rc<Key>) -> watch::Sender<Option<String>> {
        let (done, connecting) = watch::channel(None);
        entry(&mut self.entries.borrow_mut(), key).connecting = Some(connecting);
        done
    }

    fn speaks_h1(&self, key: &Rc<Key>) -> bool {
        let mut entries = self.entries.borrow_mut();
        entry(&mut entries, key).speaks_h1
    }

    /// Forgets connections that are closed, were idle for long, or were opened with credentials
    /// other than those of `generation` and are idle.
    pub(crate) fn evict_idle(&self, generation: u64) {
        let sweeps = self.sweeps.get();
        self.retain(|entry| {
            let is_old = entry.key.credentials != 0 && entry.key.credentials != generation;
            let keep = if is_old { Duration::ZERO } else { IDLE };
            entry.h1.retain_mut(|(_, one, used)| {
                let unused = SWEEPING * u32::try_from(sweeps - *used).unwrap_or(u32::MAX);
                !is_old && unused < keep && one.connection.is_ready()
            });
            entry.retain_h2(|one| {
                let connection = &one.connection;
                !connection.is_closed() && (!connection.is_idle() || one.used.elapsed() < keep)
            });
            // Nobody asks for it any more.
            let is_over = |since: &mut Instant| since.elapsed() >= IDLE;
            entry.silent.take_if(is_over);
        });
    }

    /// Forgets idle connections that their endpoints have closed: nobody else waits for it. Done every
    /// [`SWEEPING`].
    pub(crate) fn evict_closed(&self) {
        self.sweeps.set(self.sweeps.get() + 1);
        self.retain(|entry| entry.h1.retain_mut(|(_, one, _)| one.connection.is_ready()));
    }

    /// Takes out the connections that may not serve further requests; returns how many. Idle ones are
    /// closed by that; the requests on others have entries of their own.
    pub(crate) fn recheck(&self, judge: &Judge, metrics: &Metrics) -> usize {
        let mut ended = 0;
        self.rechecks.set(self.rechecks.get() + 1);
        self.retain(|Entry { key, h1, h2, .. }| {
            let mut keeps = |facts: &Facts| {
                let pooled = Pooled {
                    endpoint: &key.endpoint,
                    credentials: key.credentials,
                    peer: facts.peer.as_ref(),
                };
                let Err(ending) = judge.keeps(&pooled) else {
                    return true;
                };
                ended += 1;
                metrics.pooled_ended(ending.reason.label());
                tracing::debug!(endpoint = %key.endpoint, detail = ending.detail, "taken out of the pool");
                false
            };
            h1.retain(|(facts, _, _)| keeps(facts));
            h2.retain(|one| keeps(&one.facts));
        });
        ended
    }

    /// Looks at every entry, and forgets those that nothing is left in.
    fn retain(&self, mut look: impl FnMut(&mut Entry)) {
        self.entries.borrow_mut().retain(|_, of_endpoint| {
            of_endpoint.retain_mut(|entry| {
                look(entry);
                entry.is_needed()
            });
            !of_endpoint.is_empty()
        });
    }

    fn free(
        &self,
        is_key: impl Fn(&Key) -> bool,
        endpoint: &Endpoint,
        age_max: Duration,
        Wanted { care, now, .. }: Wanted,
    ) -> Found {
        let mut entries = self.entries.borrow_mut();
        let entry = (entries.get_mut(&endpoint.key))
            .and_then(|of_endpoint| of_endpoint.iter_mut().find(|entry| is_key(&entry.key)));
        let Some(entry) = entry else {
            return Found::Nothing;
        };
        // The streams on one that is let go of go on.
        entry.retain_h2(|one| !one.connection.is_closed() && !one.facts.is_old(age_max));
        let is_silent = entry.silent.is_some();
        let lease = |facts, sender| {
            Found::Lease(Lease {
                facts,
                reused: true,
                key: Rc::clone(&entry.key),
                rechecks: self.rechecks.get(),
                sender,
            })
        };
        let mut found = if is_silent {
            Found::Quiet { is_silent }
        } else {
            Found::Nothing
        };
        for one in &mut entry.h2 {
            let hearing = one.connection.hearing();
            match hearing.standing(care, now) {
                Standing::Sound => {
                    if let Some(place) = one.connection.place() {
                        one.used = now;
                        hearing.sends(now);
                        return lease(one.facts.clone(), Sender::H2(place));
                    }
                }
                Standing::Doubtful => {
                    if one.connection.has_place() && !matches!(found, Found::Doubtful(_)) {
                        found = Found::Doubtful(hearing.clone());
                    }
                }
                Standing::Quiet => {
                    if matches!(found, Found::Nothing) {
                        found = Found::Quiet { is_silent };
                    }
                }
            }
        }
        if entry.unheard.standing(Host::Other, care, now) == Standing::Quiet {
            return Found::Quiet { is_silent };
        }
        // The one used last is the least likely to be closed by the endpoint right now.
        while let Some((facts, mut one, _)) = entry.h1.pop() {
            if one.connection.is_ready() && !facts.is_old(age_max) {
                facts.sends(now);
                return lease(facts, Sender::H1(one));
            }
        }
        found
    }

    /// Keeps a connection whose response is complete, if it may still serve others.
    fn give_back(&self, worker: &Worker, home: Home, one: Alternating) {
        let trusted = || worker.shared.credentials.load().generation();
        // Nobody would get one that was opened with older credentials; and what was judged while it
        // was under way, it was not.
        let is_old = home.facts.peer.is_some() && home.key.credentials != trusted();
        if is_old || home.rechecks != self.rechecks.get() {
            return;
        }
        let mut entries = self.entries.borrow_mut();
        let entry = entry(&mut entries, &home.key);
        if entry.h1.len() < IDLE_MAX {
            (home.facts.kept.unheard).replace(Rc::clone(&entry.unheard));
            entry.h1.push((home.facts, one, self.sweeps.get()));
        }
    }

    fn connecting(&self, key: &Rc<Key>) -> Option<watch::Receiver<Option<String>>> {
        let mut entries = self.entries.borrow_mut();
        let entry = entry(&mut entries, key);
        let connecting = entry.connecting.as_ref()?;
        if connecting.has_changed().is_err() {
            entry.connecting = None;
            return None;
        }
        Some(connecting.clone())
    }

    /// Opens a connection that others who ask meanwhile wait for.
    async fn open_shared(
        &self,
        worker: &Worker,
        to: &Pinned,
        endpoint: &Endpoint,
        key: Rc<Key>,
    ) -> Result<Lease, ConnectFailure> {
        let done = self.begin_connecting(&key);
        let opened = self.open(worker, to, endpoint, Rc::clone(&key)).await;
        entry(&mut self.entries.borrow_mut(), &key).connecting = None;
        let told = opened.as_ref().err().map(|failure| failure.detail.clone());
        // Nobody may be waiting.
        drop(done.send(told));
        opened
    }

    async fn open(
        &self,
        worker: &Worker,
        to: &Pinned,
        endpoint: &Endpoint,
        key: Rc<Key>,
    ) -> Result<Lease, ConnectFailure> {
        let shared: &Arc<Shared> = &worker.shared;
        let deadline = to.cluster().connect_deadline(endpoint);
        let rechecks = self.rechecks.get();
        let (alpn, first) = (key.wire.alpn(), First::We);
        let connected = upstream::connect(shared, deadline, endpoint, alpn, first).await;
        let Upstream {
            stream,
            address,
            peer,
            alpn,
        } = connected.map_err(|error| {
            upstream::note_refusal(shared, &error);
            ConnectFailure::new(&error)
        })?;
        let link = Link::of(stream.tcp());
        let unheard = {
            let mut entries = self.entries.borrow_mut();
            let entry = entry(&mut entries, &key);
            entry.silent = None;
            Rc::clone(&entry.unheard)
        };
        let facts = Facts {
            address: address.to_string().into(),
            peer,
            opened: Instant::now(),
            jitter: fraction(worker.draw(), 0),
            kept: Rc::new(Kept {
                told: RefCell::default(),
                link,
                unheard: RefCell::new(unheard),
            }),
        };
        upstream::tune_requests(stream.tcp());
        let is_h2 = match key.wire {
            Wire::H1 => false,
            Wire::H2 => alpn.as_deref().is_none_or(|alpn| alpn == ALPN_H2),
            Wire::Negotiated => alpn.as_deref() == Some(ALPN_H2),
        };
        if !is_h2 {
            if key.wire == Wire::Negotiated {
                entry(&mut self.entries.borrow_mut(), &key).speaks_h1 = true;
            }
            let head_bytes_max = READ_BYTES.max(shared.settings.limits.header_bytes);
            // Its host is there, as of now.
            facts.heard();
            facts.sends(facts.opened);
            return Ok(Lease {
                facts,
                reused: false,
                key,
                rechecks,
                sender: Sender::H1(Alternating::new(stream, head_bytes_max)),
            });
        }
        let connection = Multiplexed::begin(shared, stream, link, asking(to, endpoint))
            .await
            .map_err(|error| ConnectFailure::of_h2(&error))?;
        let sender = Sender::H2(connection.first_place());
        connection.hearing().sends(Instant::now());
        let shareable = Shareable {
            facts: facts.clone(),
            connection,
            used: Instant::now(),
        };
        entry(&mut self.entries.borrow_mut(), &key)
            .h2
            .push(shareable);
        Ok(Lease {
            facts,
            reused: false,
            key,
            rechecks,
            sender,
        })
    }
}

/// The generation of the credentials that connections to an endpoint are opened with.
fn trusted(worker: &Worker, endpoint: &Endpoint) -> u64 {
    match endpoint.tls {
        EndpointTls::Mesh { .. } => worker.shared.credentials.load().generation(),
        EndpointTls::None | EndpointTls::Workload => 0,
    }
}

/// The entry of a key, made if there is none.
#[expect(
    clippy::indexing_slicing,
    reason = "found, or pushed on the line before"
)]
fn entry<'a>(entries: &'a mut Configured<EndpointKey, Vec<Entry>>, key: &Rc<Key>) -> &'a mut Entry {
    let of_endpoint = entries.entry(key.endpoint.clone()).or_default();
    let nth = of_endpoint.iter().position(|entry| entry.key == *key);
    let nth = nth.unwrap_or_else(|| {
        of_endpoint.push(Entry::new(Rc::clone(key)));
        of_endpoint.len() - 1
    });
    &mut of_endpoint[nth]
}

/// When an endpoint that speaks HTTP/2 is asked whether it is there.
fn asking(to: &Pinned, endpoint: &Endpoint) -> Pings {
    endpoint.peer.map_or(ENDPOINT, |peer| {
        let peer = to.published.snapshot.peer(peer);
        Pings {
            interval: peer.keepalive_ping,
            timeout: peer.keepalive_timeout,
            when: When::Always,
        }
    })
}

/// Why no connection could be leased.
#[derive(Debug)]
pub(crate) struct ConnectFailure {
    pub(crate) detail: String,
    /// The rule that the endpoint's certificate breaks, if that is why.
    pub(crate) refused_rule: Option<String>,
    /// Whether health has not heard of it yet.
    pub(crate) is_first_told: bool,
    /// The limit of ours that is why; no endpoint was asked.
    pub(crate) shed: Option<Reason>,
    /// Whether one was there, to a host that is quiet.
    pub(crate) is_quiet: bool,
}

impl ConnectFailure {
    pub(crate) fn new(error: &ConnectError) -> Self {
        Self {
            refused_rule: upstream::refused_rule(error),
            is_first_told: !error.is_ours(),
            ..Self::untold(error.to_string())
        }
    }

    /// One that health has heard of, or need not.
    const fn untold(detail: String) -> Self {
        Self {
            detail,
            refused_rule: None,
            is_first_told: false,
            shed: None,
            is_quiet: false,
        }
    }

    fn shed(reason: Reason) -> Self {
        Self {
            shed: Some(reason),
            ..Self::untold(reason.text().to_owned())
        }
    }

    /// The endpoint's host is quiet. Only where it did not answer when asked, health is told: every
    /// packet that is lost makes it quiet for a moment.
    fn quiet(is_silent: bool) -> Self {
        Self {
            is_first_told: is_silent,
            is_quiet: true,
            ..Self::untold("the endpoint's host acknowledges nothing".to_owned())
        }
    }

    /// HTTP/2 did not begin.
    fn of_h2(error: &h2::Error) -> Self {
        // Of its first bytes, which were no HTTP/2: the answer to a preface that was not understood.
        if error.is_library() && error.is_go_away() {
            return Self::of_http(&format!(
                "the endpoint does not speak HTTP/2 ({error}); if it speaks HTTP/1.1 alone, write `version: h1` on its backend"
            ));
        }
        Self::of_http(error)
    }

    fn of_http(error: &impl std::fmt::Display) -> Self {
        Self {
            is_first_told: true,
            ..Self::untold(error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::oneshot;
    use tokio::task::LocalSet;
    use tokio::time::Instant;

    use super::*;

    /// Bytes that tell when nobody holds them any more.
    struct Told(
        Vec<u8>,
        #[expect(dead_code, reason = "held for its drop")] oneshot::Sender<()>,
    );

    impl AsRef<[u8]> for Told {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_request_that_is_answered_is_given_up_where_the_endpoint_does_not_read() {
        /// More than all buffers on the way.
        const BODY: usize = 64 << 20;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.1 413 x\r\ncontent-length: 0\r\n\r\n";
        far.write_all(answer).await.unwrap();
        let (held, mut dropped) = oneshot::channel();
        let body = Bytes::from_owner(Told(vec![0; BODY], held));
        let body = Outgoing::Bytes([body].into());
        let given_up = async {
            let mut one = Alternating::new(Stream::plain(near), READ_BYTES);
            one.begin(Request::post("/").body(body).unwrap());
            let head = one.response().await.unwrap();
            assert_eq!(head.status(), StatusCode::PAYLOAD_TOO_LARGE);
            let began = Instant::now();
            assert!(Answer::new(one, None).has_ended());
            assert!(dropped.try_recv() == Err(oneshot::error::TryRecvError::Empty));
            let given_up = timeout(REST_MAX * 2, dropped).await;
            given_up.expect("it was not given up").unwrap_err();
            began.elapsed()
        };
        let after = LocalSet::new().run_until(given_up).await;
        assert!(after >= REST_MAX, "{after:?}");
        drop(far);
    }
}
