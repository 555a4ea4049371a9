//! HTTP: one connection, many requests, each decided on its own.
//!
//! `mod` carries the connection; `exchange` the life of one request; `pool` the connections to
//! endpoints; `ruled` what a route's rules make of a request; `body` what is kept of it for another
//! try; `headers` what is added and removed; `upgrade` and `mirror` what their names say;
//! `compare` what a copy's answer is beside the caller's; `reply` our own answers. HTTP/2 has
//! `h2_server` and `h2_client`, `stream` for its bodies, `flow` for its windows and `keepalive`
//! for its PINGs; `expect` holds bodies back, `date` tells the time.

mod body;
mod compare;
pub(crate) mod date;
mod exchange;
mod expect;
pub(crate) mod flow;
mod h1;
mod h2_client;
mod h2_server;
pub(crate) mod headers;
mod keepalive;
mod mirror;
pub(crate) mod pool;
mod record;
mod reply;
pub(crate) mod ruled;
mod seldom;
mod stream;
mod turns;
mod unheard;
mod upgrade;

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll, ready};
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HeaderValue};
use http::{HeaderMap, StatusCode};
use hyper::rt::Executor;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Interval, MissedTickBehavior};
use zeugma_core::identity::SpiffeId;
use zeugma_core::snapshot::{Position, ServiceIx};
use zeugma_core::verdict::Reason;

use crate::account::{Origin, Stretch};
use crate::connection::{SniTarget, Visit};
use crate::listener::Open;
use crate::metrics::Latest;
use crate::recheck::{self, Entry, Leaving};
use crate::runtime::Worker;
use crate::transport::sent::Link;
use crate::transport::{Readable, Stream};

use self::headers::{Present, Trace};
use self::seldom::Seldom;
use self::stream::Incoming;

pub(crate) use self::exchange::Timers;

/// A connection without a request is asked to end after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(600);
/// What a connection that is asked to end gets to do so.
const LEAVE: Duration = Duration::from_secs(5);
/// What a connection that is not allowed any more gets to tell so.
const CUT_OFF: Duration = Duration::from_millis(200);
/// How often a connection is looked at.
const WATCH: Duration = Duration::from_secs(1);
/// How often at most, while the drain deadline is near.
const LOOK_MIN: Duration = Duration::from_millis(1);
/// Bytes one HTTP/2 stream may have waiting to be sent.
const STREAM_SEND_BYTES: usize = 64 * 1024;
/// What frames that hold next to nothing may cost a connection, while they wait to be read.
const DATA_FRAME_BUDGET: usize = 16 * 1024 * 1024;

/// The HTTP version a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    H1,
    H2,
}

impl Version {
    /// As the log writes it.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::H1 => "HTTP/1.1",
            Self::H2 => "HTTP/2",
        }
    }
}

/// Spawns on this worker, or the control thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnThisWorker;

impl<F: Future<Output = ()> + 'static> Executor<F> for OnThisWorker {
    fn execute(&self, future: F) {
        // Ends with its connection, which is tracked.
        drop(tokio::task::spawn_local(future));
    }
}

/// What every request of a connection shares.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) worker: Rc<Worker>,
    pub(crate) origin: Rc<Origin>,
    /// The service that the SNI named, where TLS ended here.
    pub(crate) sni_service: Option<SniService>,
    /// The verified caller, where TLS ended here.
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) version: Version,
    /// The connection's own entry: a change asks it to leave.
    pub(crate) entry: Rc<Entry>,
    /// Counts the connection as open, upgraded ones too.
    _open: Rc<Open>,
    in_flight: Cell<usize>,
    requests: Cell<u64>,
    /// The counters of the request before: mostly the next wants the same.
    pub(crate) latest: Latest,
    /// The rule that let the request before in.
    pub(crate) latest_rule: LatestRule,
    /// What the authority of the request before stood for.
    pub(crate) routed: RefCell<Option<Rc<Routed>>>,
    /// How long nothing may move while requests are open: the longest of their routes.
    idle: Cell<Duration>,
    pub(crate) timer: exchange::Timer,
}

impl Context {
    /// The server name of the caller's TLS, where it ended here.
    pub(crate) fn sni(&self) -> Option<&str> {
        let tls = self.identity.as_ref().and(self.origin.tls.as_ref());
        tls.and_then(|tls| Some(tls.sni.as_ref()?.as_str()))
    }

    /// Takes up the idle time of a request's route.
    pub(crate) fn note_idle(&self, idle: Duration) {
        self.idle.set(self.idle.get().max(idle));
    }

    /// The trace of a request that came in.
    pub(crate) fn trace(&self, headers: &HeaderMap, present: Present) -> Trace {
        let draw = || self.worker.draw();
        let trace = headers::trace(headers, present, draw);
        #[cfg(any(test, feature = "otlp"))]
        if self.worker.shared.spans.get().is_some() {
            return trace.with_span(draw);
        }
        trace
    }
}

/// Where the rule stands that decided a request, as the log writes it: mostly that of the request
/// before on the same connection.
#[derive(Debug, Default)]
pub(crate) struct LatestRule(RefCell<Option<(u64, Position, Arc<str>)>>);

impl LatestRule {
    fn text(&self, generation: u64, at: &Position) -> Arc<str> {
        let mut latest = self.0.borrow_mut();
        if let Some((_, _, text)) = (latest.as_ref())
            .filter(|(before, position, _)| *before == generation && position == at)
        {
            return Arc::clone(text);
        }
        let text: Arc<str> = at.to_string().into();
        *latest = Some((generation, at.clone(), Arc::clone(&text)));
        text
    }
}

/// Where a request's authority led, for the requests behind it on the same connection too.
#[derive(Debug)]
pub(crate) struct Routed {
    pub(crate) generation: u64,
    pub(crate) authority: Box<str>,
    /// `None` where it led nowhere.
    pub(crate) service: Option<ServiceIx>,
    /// How it stands in the line of a request.
    pub(crate) line: Stretch,
}

impl Routed {
    /// One that led nowhere.
    pub(crate) const fn unknown(authority: Box<str>) -> Self {
        Self {
            generation: 0,
            authority,
            service: None,
            line: Stretch::new(),
        }
    }
}

/// A service by what stays the same when the configuration changes.
#[derive(Debug, Clone)]
pub(crate) struct SniService {
    pub(crate) generation: u64,
    pub(crate) ix: ServiceIx,
    pub(crate) any_port: bool,
    pub(crate) name: Arc<str>,
    pub(crate) port: u16,
}

/// Carries an HTTP connection until it ends.
pub(crate) async fn serve(
    visit: &mut Visit,
    sni_target: Option<SniTarget>,
    identity: Option<SpiffeId>,
    version: Version,
    stream: Stream,
) -> Reason {
    let sni_service = sni_target.map(
        |SniTarget {
             service: ix,
             any_port,
         }| {
            let service = visit.published.snapshot.service(ix);
            SniService {
                generation: visit.published.generation,
                ix,
                any_port,
                name: Arc::clone(&service.name),
                port: service.port,
            }
        },
    );
    if identity.is_none() {
        // In plaintext each request names its service.
        visit.listed.asks(recheck::Open::Session, None);
        (visit.listed).settle(&visit.worker.shared, visit.published.generation, None);
    }
    let context = Rc::new(Context {
        worker: Rc::clone(&visit.worker),
        origin: Rc::new(Origin {
            listener: Arc::clone(&visit.listed.listener),
            source: visit.listed.source(),
            caller: visit.caller.clone(),
            tls: visit.tls.clone(),
            line: Stretch::new(),
        }),
        sni_service,
        identity,
        version,
        entry: Rc::clone(&visit.listed),
        _open: Rc::clone(&visit.open),
        in_flight: Cell::new(0),
        requests: Cell::new(0),
        latest: Latest::default(),
        latest_rule: LatestRule::default(),
        routed: RefCell::default(),
        idle: Cell::default(),
        timer: exchange::Timer::default(),
    });
    let moved = Arc::new(Moved::default());
    let io = Counted::new(stream, &moved);
    let watch = Watch::new(&context, &moved);
    let ended = match version {
        Version::H1 => Box::pin(serve_h1(&context, watch, io)).await,
        Version::H2 => {
            let peer = exchange::asking_peer(&visit.published, &context);
            let link = Link::of(io.stream.tcp());
            Box::pin(h2_server::serve(&context, watch, (io, link), peer)).await
        }
    };
    let (read, written) = moved.both();
    visit.moved.down.set(written);
    visit.moved.up.set(read);
    if let Some(reason) = visit.told_to_end() {
        return reason;
    }
    let (reason, detail) = ended.told();
    if detail.is_some() {
        visit.detail = detail;
    }
    reason
}

enum Ended {
    Ok,
    Idle,
    HeadTooSlow,
    Drained,
    /// No PING was answered.
    Silent,
    /// More frames came that only cost than may (RFC 9113 §10.5).
    Calmed(String),
    /// What came was no HTTP.
    Malformed(String),
    /// The connection failed.
    Broken(String),
}

impl Ended {
    /// What is told of it.
    fn told(self) -> (Reason, Option<String>) {
        match self {
            Self::Ok => (Reason::Completed, None),
            Self::Idle => (Reason::IdleTimeout, None),
            Self::HeadTooSlow => (Reason::HelloTimeout, None),
            Self::Drained => (Reason::Drained, None),
            Self::Silent => {
                let detail = "the caller answered no PING".to_owned();
                (Reason::DownstreamClosed, Some(detail))
            }
            Self::Calmed(detail) => (Reason::FrameFlood, Some(detail)),
            Self::Malformed(detail) => (Reason::RequestMalformed, Some(detail)),
            Self::Broken(detail) => (Reason::DownstreamClosed, Some(detail)),
        }
    }

    fn of_h1(error: &h1::Error) -> Self {
        match error {
            h1::Error::Malformed(rule) => Self::Malformed(rule.to_string()),
            h1::Error::Incomplete
            | h1::Error::NotQuiet
            | h1::Error::Io(_)
            | h1::Error::Body(_)
            | h1::Error::Length => Self::Broken(error.to_string()),
        }
    }

    fn of_h2(error: &h2::Error) -> Self {
        if error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) {
            return Self::Calmed(error.to_string());
        }
        Self::Broken(error.to_string())
    }
}

async fn serve_h1(context: &Rc<Context>, mut watch: Watch, io: Counted) -> Ended {
    let limits = &context.worker.shared.settings.limits;
    let served = h1::Served::new(io, limits.header_bytes);
    let _cut = CutOff(&served);
    watch.h1 = Some(served.clone());
    let watching = Seldom::new(async {
        loop {
            match watch.next().await {
                Look::Fine => {}
                Look::Leave => served.leave(),
                Look::End(ended) => return ended,
            }
        }
    });
    // In its place, for a future of its own would have room for the request and the answer once more.
    let serving = served.serve(async |request| {
        let mut response = exchange::exchange(context, request.map(Incoming::H1)).await;
        let is_switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !is_switching && context.worker.shared.is_draining() {
            // RFC 9112 §9.6: the caller sends nothing more on it, so nothing is lost when it closes.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        response
    });
    let (mut watching, mut serving) = (pin!(watching), pin!(serving));
    // What is watched tells first: whoever serves looks at it.
    std::future::poll_fn(|cx| {
        if let Poll::Ready(ended) = watching.as_mut().poll(cx) {
            return Poll::Ready(ended);
        }
        let served = ready!(serving.as_mut().poll(cx));
        Poll::Ready(served.map_or_else(|error| Ended::of_h1(&error), |()| Ended::Ok))
    })
    .await
}

/// Has the connection be reset where it ends within an answer whose end it would tell: a caller by
/// HTTP/1.0 would take what was cut off for all of it.
struct CutOff<'a>(&'a h1::Served<Counted>);

impl Drop for CutOff<'_> {
    fn drop(&mut self) {
        if self.0.is_open_ended()
            && let Some(io) = self.0.stream()
        {
            io.stream.reset_when_dropped();
        }
    }
}

/// Looks after a connection: slow heads, idleness, draining.
struct Watch {
    context: Rc<Context>,
    moved: Arc<Moved>,
    requests: u64,
    read_then: u64,
    moved_then: u64,
    quiet_since: Instant,
    head_since: Option<Instant>,
    leaving: Option<(tokio::time::Instant, Ended)>,
    told: Option<Leaving>,
    looks: Interval,
    draining: Pin<Box<dyn Future<Output = tokio::time::Instant>>>,
    drain: Option<Drain>,
    /// What is served by HTTP/1.1.
    h1: Option<h1::Served<Counted>>,
}

/// How an HTTP/1.1 connection drains: it may not be closed under a request that is on its way, so it
/// is closed behind an answer that says so, and without one only when nothing has come for long.
#[derive(Debug, Clone, Copy)]
struct Drain {
    since: Instant,
    /// How long nothing must have come before it is closed: half of the time to the deadline, so
    /// that what comes just before has the other half.
    quiet: Duration,
    deadline: tokio::time::Instant,
}

enum Look {
    Fine,
    Leave,
    End(Ended),
}

impl Watch {
    fn new(context: &Rc<Context>, moved: &Arc<Moved>) -> Self {
        let shared = Arc::clone(&context.worker.shared);
        Self {
            looks: looks(WATCH),
            draining: Box::pin(async move { shared.draining().await }),
            context: Rc::clone(context),
            moved: Arc::clone(moved),
            requests: 0,
            read_then: 0,
            moved_then: 0,
            quiet_since: Instant::now(),
            // What is served began with bytes: the first head is under way.
            head_since: Some(Instant::now()),
            leaving: None,
            told: None,
            drain: None,
            h1: None,
        }
    }

    /// Waits for the next moment worth a look.
    ///
    /// # Cancel safety
    /// Safe: it only waits, and looks again the next time.
    async fn next(&mut self) -> Look {
        let context = Rc::clone(&self.context);
        let asked = context.entry.asked_to_leave(self.told);
        let is_draining = self.drain.is_some();
        let deadline = self.drain.map(|drain| drain.deadline);
        if let Some((deadline, _)) = &self.leaving {
            tokio::select! {
                () = tokio::time::sleep_until(*deadline) => {}
                told = asked, if self.told != Some(Leaving::Soon) => return self.leave(told),
            }
            let why = self.leaving.take().map_or(Ended::Drained, |(_, why)| why);
            return Look::End(why);
        }
        tokio::select! {
            biased;
            _ = self.looks.tick() => self.look(),
            deadline = &mut self.draining, if !is_draining => self.begin_drain(deadline),
            () = at(deadline) => Look::End(Ended::Drained),
            told = asked => self.leave(told),
        }
    }

    fn begin_drain(&mut self, deadline: tokio::time::Instant) -> Look {
        match self.context.version {
            Version::H2 => {
                self.leaving = Some((deadline, Ended::Drained));
                Look::Leave
            }
            Version::H1 => {
                let quiet = (deadline - tokio::time::Instant::now()) / 2;
                self.looks = looks(WATCH.min(quiet).max(LOOK_MIN));
                self.drain = Some(Drain {
                    since: Instant::now(),
                    quiet,
                    deadline,
                });
                Look::Fine
            }
        }
    }

    /// Has the connection take no new requests; those under way are told to end by themselves.
    fn leave(&mut self, told: Leaving) -> Look {
        self.told = Some(told);
        if told == Leaving::Soon {
            // Its record says why it was told.
            let deadline = tokio::time::Instant::now() + CUT_OFF;
            self.leaving = Some((deadline, Ended::Ok));
        }
        Look::Leave
    }

    fn look(&mut self) -> Look {
        let read = self.moved.read.load(Ordering::Relaxed);
        let moved = read + self.moved.written.load(Ordering::Relaxed);
        let requests = self.context.requests.get();
        // What comes of a request behind its answer is under way as well: an endpoint takes it, or it
        // is dropped, and either has a limit of its own.
        let in_flight = self.context.in_flight.get() > 0
            || self.h1.as_ref().is_some_and(h1::Served::is_amid_body);
        // By HTTP/2 PINGs move as well: it is busy with streams, each of which has its own deadlines.
        let is_busy = match self.context.version {
            Version::H1 => moved != self.moved_then,
            Version::H2 => in_flight,
        };
        if is_busy || requests != self.requests {
            self.moved_then = moved;
            self.quiet_since = Instant::now();
        }
        if in_flight || requests != self.requests {
            self.requests = requests;
            self.read_then = read;
            self.head_since = None;
            let idle = self.context.idle.get();
            if in_flight && !idle.is_zero() && self.quiet_since.elapsed() > idle {
                return Look::End(Ended::Idle);
            }
            return Look::Fine;
        }
        // The first request, of any version, and the head of every later one of HTTP/1.1.
        let awaits_head =
            requests == 0 || (self.context.version == Version::H1 && read != self.read_then);
        if awaits_head {
            let since = *self.head_since.get_or_insert_with(Instant::now);
            let limit = self.context.worker.shared.settings.limits.header_timeout;
            if since.elapsed() > limit {
                return Look::End(Ended::HeadTooSlow);
            }
            return Look::Fine;
        }
        if let Some(drain) = self.drain
            && drain.since.max(self.quiet_since).elapsed() >= drain.quiet
        {
            self.leaving = Some((drain.deadline, Ended::Drained));
            return Look::Leave;
        }
        if self.quiet_since.elapsed() > KEEP_ALIVE {
            self.leaving = Some((tokio::time::Instant::now() + LEAVE, Ended::Idle));
            return Look::Leave;
        }
        Look::Fine
    }
}

/// One look after the other, the first of them in a while.
fn looks(every: Duration) -> Interval {
    let mut looks = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    looks
}

/// Waits until this moment, or for ever.
async fn at(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Bytes that a connection moved.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    read: AtomicU64,
    written: AtomicU64,
}

impl Moved {
    /// Notes what its one stream has read.
    fn reads(&self, n: usize) {
        add(&self.read, n);
    }

    /// Notes what its one stream was written.
    fn writes(&self, n: usize) {
        add(&self.written, n);
    }

    /// Those that were read, and those that were written.
    pub(crate) fn both(&self) -> (u64, u64) {
        (
            self.read.load(Ordering::Relaxed),
            self.written.load(Ordering::Relaxed),
        )
    }
}

/// Adds where nobody else does at the same time: to be safe from that costs more than the rest of a read.
fn add(to: &AtomicU64, n: usize) {
    if n > 0 {
        to.store(to.load(Ordering::Relaxed) + n as u64, Ordering::Relaxed);
    }
}

/// A stream whose bytes are counted.
#[derive(Debug)]
pub(crate) struct Counted {
    stream: Stream,
    moved: Arc<Moved>,
}

impl Counted {
    pub(crate) fn new(stream: Stream, moved: &Arc<Moved>) -> Self {
        Self {
            stream,
            moved: Arc::clone(moved),
        }
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let n = buf.filled().len().saturating_sub(before);
        self.moved.reads(n);
        polled
    }
}

impl Readable for Counted {
    fn poll_readable(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.stream.poll_readable(cx)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(n)) = polled {
            self.moved.writes(n);
        }
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(n)) = polled {
            self.moved.writes(n);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: Pin<&mut Self>,
        cx: &mut TaskContext<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use http::Response;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::sync::mpsc;

    use super::body::Outgoing;
    use super::*;
    use crate::admission;
    use crate::fixture::Alone;
    use crate::listener::{Accepted, Handed, WorkerHandle, hand_over};

    const APPS: &str = "{ apps: { address: '127.0.0.1:0', role: workloads } }";

    /// A connection that has just come in.
    async fn accepted(alone: &Alone) -> Accepted {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _near = TcpStream::connect(socket.local_addr().unwrap())
            .await
            .unwrap();
        let (far, source) = socket.accept().await.unwrap();
        let (sockets, mut queue) = mpsc::channel(1);
        let worker = WorkerHandle {
            nth: 0,
            sockets,
            open: Arc::default(),
        };
        let tcp = far.into_std().unwrap();
        let (workers, sources) = ([worker], admission::sources());
        hand_over(
            tcp,
            source,
            &"apps".into(),
            &alone.shared,
            &workers,
            &sources,
        );
        match queue.recv().await {
            Some(Handed::Connection(accepted)) => accepted,
            other => panic!("{other:?}"),
        }
    }

    /// A connection of a caller that has just come in, with so many requests under way.
    async fn context(
        alone: &Alone,
        worker: &Rc<Worker>,
        version: Version,
        in_flight: usize,
    ) -> Rc<Context> {
        let Accepted {
            source,
            listener,
            open,
            ..
        } = accepted(alone).await;
        let listed = (worker.registry).list(Arc::clone(&listener), source, recheck::Open::Session);
        Rc::new(Context {
            worker: Rc::clone(worker),
            origin: Rc::new(Origin {
                listener,
                source,
                caller: crate::account::Caller::default(),
                tls: None,
                line: Stretch::new(),
            }),
            sni_service: None,
            identity: None,
            version,
            entry: Rc::clone(&listed),
            _open: Rc::new(open),
            in_flight: Cell::new(in_flight),
            requests: Cell::new(1),
            idle: Cell::default(),
            timer: exchange::Timer::default(),
            latest: Latest::default(),
            latest_rule: LatestRule::default(),
            routed: RefCell::default(),
        })
    }

    #[tokio::test]
    async fn a_body_that_outlives_its_answer_is_no_slow_head() {
        let alone = Alone::new(APPS, "", 1);
        let worker = Rc::new(Worker::new(Arc::clone(&alone.shared)));
        let context = context(&alone, &worker, Version::H1, 0).await;
        let moved = Arc::new(Moved::default());
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(socket.local_addr().unwrap())
            .await
            .unwrap();
        let (far, _) = socket.accept().await.unwrap();
        let io = Counted {
            stream: Stream::plain(far),
            moved: Arc::clone(&moved),
        };
        let served = h1::Served::new(io, 4096);
        let held = RefCell::new(None);
        let serving = served.serve(async |request| {
            held.replace(Some(request.into_body()));
            Response::new(Outgoing::Empty)
        });
        let answered = async {
            let half = b"POST / HTTP/1.1\r\ncontent-length: 1000\r\n\r\nhalf";
            near.write_all(half).await.unwrap();
            let mut answer = [0; 12];
            near.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200");
        };
        let mut serving = Box::pin(serving);
        tokio::select! {
            biased;
            ended = &mut serving => panic!("{ended:?}"),
            () = answered => {}
        }
        let mut watch = Watch::new(&context, &moved);
        watch.h1 = Some(served.clone());
        assert!(matches!(watch.look(), Look::Fine));
        let long_ago = alone.shared.settings.limits.header_timeout * 2;
        let mut more = || {
            moved.read.fetch_add(1, Ordering::Relaxed);
            watch.head_since = Some(Instant::now() - long_ago);
            watch.look()
        };
        // The endpoint still takes it, and then nobody does.
        assert!(matches!(more(), Look::Fine));
        held.take();
        assert!(matches!(more(), Look::End(Ended::HeadTooSlow)));
    }

    #[tokio::test]
    async fn pings_keep_no_connection_open_that_has_no_streams() {
        let alone = Alone::new(APPS, "", 1);
        let worker = Rc::new(Worker::new(Arc::clone(&alone.shared)));
        for (version, in_flight, is_kept) in [
            (Version::H2, 0, false),
            (Version::H2, 1, true),
            (Version::H1, 1, true),
        ] {
            let context = context(&alone, &worker, version, in_flight).await;
            let moved = Arc::new(Moved::default());
            let mut watch = Watch::new(&context, &moved);
            assert!(matches!(watch.look(), Look::Fine));
            let quiet_since = watch.quiet_since;
            // A PING and its answer.
            moved.read.fetch_add(17, Ordering::Relaxed);
            moved.written.fetch_add(17, Ordering::Relaxed);
            assert!(matches!(watch.look(), Look::Fine));
            assert_eq!(watch.quiet_since > quiet_since, is_kept, "{version:?}");
        }
    }
}
