//! HTTP: one connection, many requests, each decided on its own.
//!
//! `mod` carries the connection; `exchange` the life of one request; `pool` the connections to
//! endpoints; `body` what is kept of a request for another try; `headers` what is added and
//! removed; `upgrade` and `mirror` what their names say; `reply` our own answers.

mod body;
mod exchange;
pub(crate) mod headers;
mod mirror;
pub(crate) mod pool;
mod record;
mod reply;
mod upgrade;

use std::cell::Cell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeugma_core::identity::SpiffeId;
use zeugma_core::snapshot::ServiceIx;
use zeugma_core::verdict::Reason;

use crate::account::{Caller, TlsFacts};
use crate::connection::{SniTarget, Visit};
use crate::listener::Open;
use crate::runtime::Worker;
use crate::transport::Stream;

use self::body::Outgoing;

/// A connection without a request is asked to end after this long.
const KEEP_ALIVE: Duration = Duration::from_secs(600);
/// What a connection that is asked to end gets to do so.
const LEAVE: Duration = Duration::from_secs(5);
/// How often a connection is looked at.
const WATCH: Duration = Duration::from_secs(1);
/// The HTTP/2 receive window of one stream.
pub(crate) const STREAM_WINDOW: u32 = 256 * 1024;
/// The largest window there is (RFC 9113 §6.9.1).
const WINDOW_MAX: u32 = (1 << 31) - 1;
/// Bytes one HTTP/2 stream may have waiting to be sent.
const STREAM_SEND_BYTES: usize = 64 * 1024;
/// The least that hyper takes as its buffer; the model takes no smaller limit of a head.
const HEAD_BYTES_MIN: usize = 8192;

/// The HTTP version a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    H1,
    H2,
}

/// The HTTP/2 receive window of a connection: room for the windows of all its streams, so that one
/// whose reader has stopped never holds up the others.
pub(crate) fn connection_window(streams: u32) -> u32 {
    STREAM_WINDOW
        .saturating_mul(streams)
        .clamp(STREAM_WINDOW, WINDOW_MAX)
}

/// What every request of a connection shares.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) worker: Rc<Worker>,
    pub(crate) listener: Arc<str>,
    pub(crate) source: SocketAddr,
    /// The service that the SNI named, where TLS ended here.
    pub(crate) sni_service: Option<SniService>,
    /// The verified caller, where TLS ended here.
    pub(crate) identity: Option<SpiffeId>,
    pub(crate) caller: Caller,
    pub(crate) tls: Option<TlsFacts>,
    pub(crate) version: Version,
    /// Counts the connection as open, upgraded ones too.
    _open: Rc<Open>,
    in_flight: Cell<usize>,
    requests: Cell<u64>,
    /// How long nothing may move while requests are open: the longest of their routes.
    idle: Cell<Duration>,
}

impl Context {
    /// Takes up the idle time of a request's route.
    pub(crate) fn note_idle(&self, idle: Duration) {
        self.idle.set(self.idle.get().max(idle));
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

/// Spawns on this worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnThisWorker;

impl<F: Future<Output = ()> + 'static> Executor<F> for OnThisWorker {
    fn execute(&self, future: F) {
        // Ends with its connection, which the worker's set tracks.
        drop(tokio::task::spawn_local(future));
    }
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
    let context = Rc::new(Context {
        worker: Rc::clone(&visit.worker),
        listener: Arc::clone(&visit.listener),
        source: visit.source,
        sni_service,
        identity,
        caller: visit.caller.clone(),
        tls: visit.tls.clone(),
        version,
        _open: Rc::clone(&visit.open),
        in_flight: Cell::new(0),
        requests: Cell::new(0),
        idle: Cell::default(),
    });
    let moved = Arc::new(Moved::default());
    let io = TokioIo::new(Counted {
        stream,
        moved: Arc::clone(&moved),
    });
    let ended = match version {
        Version::H1 => Box::pin(serve_h1(&context, &moved, io)).await,
        Version::H2 => Box::pin(serve_h2(&context, &moved, io)).await,
    };
    visit.moved.down.set(moved.written.load(Ordering::Relaxed));
    visit.moved.up.set(moved.read.load(Ordering::Relaxed));
    match ended {
        Ended::Ok => Reason::Completed,
        Ended::Idle => Reason::IdleTimeout,
        Ended::HeadTooSlow => Reason::HelloTimeout,
        Ended::Drained => Reason::Drained,
        Ended::Error(error) => {
            let malformed = error.is_parse();
            visit.detail = Some(error.to_string());
            if malformed {
                Reason::RequestMalformed
            } else {
                Reason::DownstreamClosed
            }
        }
    }
}

enum Ended {
    Ok,
    Idle,
    HeadTooSlow,
    Drained,
    Error(hyper::Error),
}

async fn serve_h1(context: &Rc<Context>, moved: &Arc<Moved>, io: TokioIo<Counted>) -> Ended {
    let limits = &context.worker.shared.settings.limits;
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(limits.header_bytes.max(HEAD_BYTES_MIN))
        // However the head is cut: the buffer may hold more than was asked for.
        .max_header_size(limits.header_bytes)
        .serve_connection(
            io,
            service_fn(|request| answer(Rc::clone(context), request)),
        )
        .with_upgrades();
    let mut connection = pin!(connection);
    let mut watch = Watch::new(context, moved);
    loop {
        // The connection is pinned outside of the loop; the other arms only wait.
        tokio::select! {
            ended = &mut connection => return ended.map_or_else(Ended::Error, |()| Ended::Ok),
            look = watch.next() => match look {
                Look::Fine => {}
                Look::Leave => connection.as_mut().graceful_shutdown(),
                Look::End(ended) => return ended,
            }
        }
    }
}

async fn serve_h2(context: &Rc<Context>, moved: &Arc<Moved>, io: TokioIo<Counted>) -> Ended {
    let limits = &context.worker.shared.settings.limits;
    // h2 refuses what is as long as its limit, too.
    let header_bytes = u32::try_from(limits.header_bytes.saturating_add(1)).unwrap_or(u32::MAX);
    let connection = hyper::server::conn::http2::Builder::new(OnThisWorker)
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(header_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(limits.streams))
        .max_send_buf_size(STREAM_SEND_BYTES)
        .serve_connection(
            io,
            service_fn(|request| answer(Rc::clone(context), request)),
        );
    let mut connection = pin!(connection);
    let mut watch = Watch::new(context, moved);
    loop {
        // The connection is pinned outside of the loop; the other arms only wait.
        tokio::select! {
            ended = &mut connection => return ended.map_or_else(Ended::Error, |()| Ended::Ok),
            look = watch.next() => match look {
                Look::Fine => {}
                Look::Leave => connection.as_mut().graceful_shutdown(),
                Look::End(ended) => return ended,
            }
        }
    }
}

async fn answer(
    context: Rc<Context>,
    request: Request<Incoming>,
) -> Result<Response<Outgoing>, Infallible> {
    let mut response = Box::pin(exchange::exchange(&context, request)).await;
    let is_switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
    if context.version == Version::H1 && !is_switching && context.worker.shared.is_draining() {
        // RFC 9112 §9.6: the caller sends nothing more on it, so nothing is lost when it closes.
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    Ok(response)
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
    drain: Option<Drain>,
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
        Self {
            context: Rc::clone(context),
            moved: Arc::clone(moved),
            requests: 0,
            read_then: 0,
            moved_then: 0,
            quiet_since: Instant::now(),
            // What is served began with bytes: the first head is under way.
            head_since: Some(Instant::now()),
            leaving: None,
            drain: None,
        }
    }

    /// Waits for the next moment worth a look.
    ///
    /// # Cancel safety
    /// Safe: it only waits, and looks again the next time.
    async fn next(&mut self) -> Look {
        let shared = Arc::clone(&self.context.worker.shared);
        let is_draining = self.drain.is_some();
        let (wait, deadline) = match self.drain {
            None => (WATCH, None),
            Some(drain) => (WATCH.min(drain.quiet), Some(drain.deadline)),
        };
        let wait = tokio::time::sleep(wait);
        if let Some((deadline, _)) = &self.leaving {
            tokio::time::sleep_until(*deadline).await;
            let why = self.leaving.take().map_or(Ended::Drained, |(_, why)| why);
            return Look::End(why);
        }
        tokio::select! {
            () = wait => self.look(),
            deadline = shared.draining(), if !is_draining => self.begin_drain(deadline),
            () = at(deadline) => Look::End(Ended::Drained),
        }
    }

    fn begin_drain(&mut self, deadline: tokio::time::Instant) -> Look {
        match self.context.version {
            Version::H2 => {
                self.leaving = Some((deadline, Ended::Drained));
                Look::Leave
            }
            Version::H1 => {
                self.drain = Some(Drain {
                    since: Instant::now(),
                    quiet: (deadline - tokio::time::Instant::now()) / 2,
                    deadline,
                });
                Look::Fine
            }
        }
    }

    fn look(&mut self) -> Look {
        let read = self.moved.read.load(Ordering::Relaxed);
        let moved = read + self.moved.written.load(Ordering::Relaxed);
        let requests = self.context.requests.get();
        let in_flight = self.context.in_flight.get() > 0;
        if moved != self.moved_then || requests != self.requests {
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

/// Waits until this moment, or for ever.
async fn at(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Bytes that a connection moved.
#[derive(Debug, Default)]
struct Moved {
    read: AtomicU64,
    written: AtomicU64,
}

/// A stream whose bytes are counted.
#[derive(Debug)]
struct Counted {
    stream: Stream,
    moved: Arc<Moved>,
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
        self.moved.read.fetch_add(n as u64, Ordering::Relaxed);
        polled
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
            self.moved.written.fetch_add(n as u64, Ordering::Relaxed);
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
            self.moved.written.fetch_add(n as u64, Ordering::Relaxed);
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
