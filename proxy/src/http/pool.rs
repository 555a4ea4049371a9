//! Connections to endpoints, kept by each worker for itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::header::{CONTENT_LENGTH, HeaderValue, TRANSFER_ENCODING};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::timeout;
use zeugma_core::snapshot::{Endpoint, EndpointKey, EndpointTls, Failure};
use zeugma_core::verdict::Reason;

use super::body::Outgoing;
use super::expect::Gate;
use super::h2_client::{Multiplexed, Place, StreamCount};
use super::keepalive::{Pings, When};
use super::stream::Incoming;
use crate::admission;
use crate::hash::Configured;
use crate::metrics::Metrics;
use crate::recheck::{Judge, Pooled};
use crate::runtime::{Shared, Worker};
use crate::tls::TlsPeer;
use crate::transport::Stream;
use crate::transport::mtls::{ALPN_H2, ALPN_HTTP1};
use crate::transport::sent::Link;
use crate::upstream::{self, ConnectError, Pinned, Upstream};

/// An idle connection is kept this long.
const IDLE: Duration = Duration::from_secs(60);
/// Idle HTTP/1.1 connections kept for one endpoint.
const IDLE_MAX: usize = 256;
/// What is buffered of an HTTP/1.1 response, its head included.
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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    endpoint: EndpointKey,
    tls: EndpointTls,
    wire: Wire,
    credentials: u64,
}

/// The connections of one worker.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    entries: RefCell<Configured<Key, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    h1: Vec<(Facts, Alternating, Instant)>,
    h2: Vec<Shareable>,
    connecting: Option<watch::Receiver<Option<String>>>,
    /// The endpoint agreed on HTTP/1.1 before: nobody waits for a connection to share.
    speaks_h1: bool,
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
    sender: http1::SendRequest<Outgoing>,
    /// Whether the request under way is long enough to meet a slow reader.
    may_be_slow: Rc<Cell<bool>>,
}

impl Alternating {
    async fn send(
        &mut self,
        mut request: Request<Outgoing>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Outgoing>>> {
        let length = request.body().size_hint().upper();
        self.may_be_slow
            .set(length.is_none_or(|length| length > SHORT_BYTES));
        if !request.body().is_end_stream()
            && request.body().size_hint().exact().is_none()
            && !request.headers().contains_key(CONTENT_LENGTH)
        {
            // Not told, hyper takes GET and HEAD for requests that have no body.
            let chunked = HeaderValue::from_static("chunked");
            request.headers_mut().insert(TRANSFER_ENCODING, chunked);
        }
        if let Some(gate) = request.extensions_mut().remove::<Gate>() {
            hyper::ext::on_informational(&mut request, move |interim| {
                if interim.status() == StatusCode::CONTINUE {
                    gate.open();
                }
            });
        }
        let response = self.sender.try_send_request(request).await?;
        Ok(response.map(Incoming::H1))
    }
}

/// A stream whose bytes are given up on if nobody takes them, unless its reader may be slow.
#[derive(Debug)]
struct Minded {
    stream: Stream,
    may_be_slow: Rc<Cell<bool>>,
    is_told: bool,
}

impl Minded {
    fn tell(&mut self) {
        let may_be_slow = self.may_be_slow.get();
        if may_be_slow != self.is_told {
            self.is_told = may_be_slow;
            upstream::await_slow_reader(self.stream.tcp(), may_be_slow);
        }
    }
}

impl AsyncRead for Minded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Minded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.tell();
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.tell();
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// Its address, as the log writes it.
    pub(crate) address: Arc<str>,
    /// Who answered, where we originated TLS.
    pub(crate) peer: Option<Arc<TlsPeer>>,
}

/// A connection for one request.
#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) facts: Facts,
    /// Whether it has carried requests before.
    pub(crate) reused: bool,
    key: Key,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    H1(Alternating),
    H2(Place),
}

/// Why a request got no response.
#[derive(Debug)]
pub(crate) struct SendError {
    pub(crate) failure: Failure,
    pub(crate) detail: String,
}

impl Lease {
    /// The generation of the credentials it was opened with.
    pub(crate) const fn credentials(&self) -> u64 {
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
        worker: &Worker,
        request: Request<Outgoing>,
    ) -> Result<(Response<Incoming>, Option<StreamCount>), SendError> {
        match self.sender {
            Sender::H1(mut one) => {
                let response = one.send(request).await.map_err(explain)?;
                let trusted = worker.shared.credentials.load().generation();
                // Nobody would get one that was opened with older credentials.
                if self.facts.peer.is_none() || self.key.credentials == trusted {
                    worker.pool.give_back(&self.key, self.facts, one);
                }
                Ok((response, None))
            }
            Sender::H2(place) => {
                let (response, stream) = place.send(request).await?;
                Ok((response, Some(stream)))
            }
        }
    }
}

impl Pool {
    /// A connection to `endpoint`, opened if none is free.
    ///
    /// # Errors
    /// None could be opened, or had, within the cluster's connect timeout.
    pub(crate) async fn lease(
        &self,
        worker: &Worker,
        to: &Pinned,
        endpoint: &Endpoint,
        wire: Wire,
    ) -> Result<Lease, ConnectFailure> {
        let credentials = match endpoint.tls {
            EndpointTls::Mesh { .. } => worker.shared.credentials.load().generation(),
            EndpointTls::None | EndpointTls::Workload => 0,
        };
        let key = Key {
            endpoint: endpoint.key.clone(),
            tls: endpoint.tls.clone(),
            wire,
            credentials,
        };
        // Nearly always: no timer is made for it.
        if let Some(lease) = self.free(&key) {
            return Ok(lease);
        }
        // Whoever connects meets the connect timeout itself and tells of it; this bounds waiting.
        let patience = upstream::connect_deadline(to.cluster(), endpoint) + WAIT_MARGIN;
        let leasing = Box::pin(self.free_or_new(worker, to, endpoint, key));
        timeout(patience, leasing).await.unwrap_or_else(|_elapsed| {
            let detail = format!("no connection within {patience:?}");
            Err(ConnectFailure {
                detail,
                refused_rule: None,
                is_first_told: false,
                shed: None,
            })
        })
    }

    async fn free_or_new(
        &self,
        worker: &Worker,
        to: &Pinned,
        endpoint: &Endpoint,
        key: Key,
    ) -> Result<Lease, ConnectFailure> {
        let mut waiting = None;
        loop {
            if let Some(lease) = self.free(&key) {
                return Ok(lease);
            }
            if waiting.is_none() {
                waiting = Some(admission::pending(to).map_err(ConnectFailure::shed)?);
            }
            if key.wire == Wire::H1 || self.speaks_h1(&key) {
                return self.open(worker, to, endpoint, key).await;
            }
            let Some(mut connecting) = self.connecting(&key) else {
                return self.open_shared(worker, to, endpoint, key).await;
            };
            // Dropped with whoever connects, and the whole is bounded by the connect timeout.
            if connecting.changed().await.is_ok()
                && let Some(detail) = connecting.borrow().clone()
            {
                // One connection failed; that it was waited for by many is told once.
                return Err(ConnectFailure {
                    detail,
                    refused_rule: None,
                    is_first_told: false,
                    shed: None,
                });
            }
        }
    }

    fn speaks_h1(&self, key: &Key) -> bool {
        self.entries
            .borrow()
            .get(key)
            .is_some_and(|entry| entry.speaks_h1)
    }

    /// Forgets connections that are closed, were idle for long, or were opened with credentials
    /// other than those of `generation` and are idle.
    pub(crate) fn evict_idle(&self, generation: u64) {
        self.entries.borrow_mut().retain(|key, entry| {
            let is_old = key.credentials != 0 && key.credentials != generation;
            let keep = if is_old { Duration::ZERO } else { IDLE };
            entry
                .h1
                .retain(|(_, one, used)| !one.sender.is_closed() && used.elapsed() < keep);
            entry.h2.retain(|one| {
                let connection = &one.connection;
                !connection.is_closed() && (!connection.is_idle() || one.used.elapsed() < keep)
            });
            !entry.h1.is_empty() || !entry.h2.is_empty() || entry.connecting.is_some()
        });
    }

    /// Takes out the connections that may not serve further requests; returns how many. Idle ones are
    /// closed by that; the requests on others have entries of their own.
    pub(crate) fn recheck(&self, judge: &Judge, metrics: &Metrics) -> usize {
        let mut ended = 0;
        self.entries.borrow_mut().retain(|key, entry| {
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
            entry.h1.retain(|(facts, _, _)| keeps(facts));
            entry.h2.retain(|one| keeps(&one.facts));
            !entry.h1.is_empty() || !entry.h2.is_empty() || entry.connecting.is_some()
        });
        ended
    }

    fn free(&self, key: &Key) -> Option<Lease> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key)?;
        entry.h2.retain(|one| !one.connection.is_closed());
        let place = entry.h2.iter_mut().find_map(|one| {
            let place = one.connection.place()?;
            one.used = Instant::now();
            Some((one.facts.clone(), place))
        });
        if let Some((facts, place)) = place {
            return Some(Lease {
                facts,
                reused: true,
                key: key.clone(),
                sender: Sender::H2(place),
            });
        }
        entry.h1.retain(|(_, one, _)| !one.sender.is_closed());
        // The one used last is the least likely to be closed by the endpoint right now.
        let ready = entry
            .h1
            .iter()
            .rposition(|(_, one, _)| one.sender.is_ready())?;
        let (facts, one, _) = entry.h1.swap_remove(ready);
        Some(Lease {
            facts,
            reused: true,
            key: key.clone(),
            sender: Sender::H1(one),
        })
    }

    fn give_back(&self, key: &Key, facts: Facts, one: Alternating) {
        let mut entries = self.entries.borrow_mut();
        let entry = match entries.get_mut(key) {
            Some(entry) => entry,
            None => entries.entry(key.clone()).or_default(),
        };
        if entry.h1.len() < IDLE_MAX {
            // It is ready again once the response body was read; until then nobody gets it.
            entry.h1.push((facts, one, Instant::now()));
        }
    }

    fn connecting(&self, key: &Key) -> Option<watch::Receiver<Option<String>>> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key)?;
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
        key: Key,
    ) -> Result<Lease, ConnectFailure> {
        let (done, connecting) = watch::channel(None);
        self.entries
            .borrow_mut()
            .entry(key.clone())
            .or_default()
            .connecting = Some(connecting);
        let opened = self.open(worker, to, endpoint, key.clone()).await;
        if let Some(entry) = self.entries.borrow_mut().get_mut(&key) {
            entry.connecting = None;
        }
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
        key: Key,
    ) -> Result<Lease, ConnectFailure> {
        let shared: &Arc<Shared> = &worker.shared;
        let deadline = upstream::connect_deadline(to.cluster(), endpoint);
        let connected = upstream::connect(shared, deadline, endpoint, key.wire.alpn()).await;
        let Upstream {
            stream,
            address,
            peer,
            alpn,
        } = connected.map_err(|error| {
            upstream::note_refusal(shared, &error);
            ConnectFailure::new(&error)
        })?;
        let facts = Facts {
            address: address.to_string().into(),
            peer,
        };
        upstream::tune_requests(stream.tcp());
        let is_h2 = match key.wire {
            Wire::H1 => false,
            Wire::H2 => alpn.as_deref().is_none_or(|alpn| alpn == ALPN_H2),
            Wire::Negotiated => alpn.as_deref() == Some(ALPN_H2),
        };
        if !is_h2 {
            if key.wire == Wire::Negotiated {
                let mut entries = self.entries.borrow_mut();
                entries.entry(key.clone()).or_default().speaks_h1 = true;
            }
            let may_be_slow = Rc::<Cell<bool>>::default();
            let minded = Minded {
                stream,
                may_be_slow: Rc::clone(&may_be_slow),
                is_told: false,
            };
            let (sender, connection) = http1::Builder::new()
                .max_buf_size(READ_BYTES.max(shared.settings.limits.header_bytes))
                .handshake(TokioIo::new(minded))
                .await
                .map_err(|error| ConnectFailure::of_http(&error))?;
            drop(tokio::task::spawn_local(async move {
                note_end(connection.await)
            }));
            return Ok(Lease {
                facts,
                reused: false,
                key,
                sender: Sender::H1(Alternating {
                    sender,
                    may_be_slow,
                }),
            });
        }
        let link = Link::of(stream.tcp());
        let connection = Multiplexed::begin(shared, stream, link, asking(to, endpoint))
            .await
            .map_err(|error| ConnectFailure::of_http(&error))?;
        let sender = Sender::H2(connection.first_place());
        let shareable = Shareable {
            facts: facts.clone(),
            connection,
            used: Instant::now(),
        };
        let mut entries = self.entries.borrow_mut();
        entries.entry(key.clone()).or_default().h2.push(shareable);
        Ok(Lease {
            facts,
            reused: false,
            key,
            sender,
        })
    }
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
}

impl ConnectFailure {
    pub(crate) fn new(error: &ConnectError) -> Self {
        Self {
            detail: error.to_string(),
            refused_rule: upstream::refused_rule(error),
            is_first_told: !error.is_ours(),
            shed: None,
        }
    }

    fn shed(reason: Reason) -> Self {
        Self {
            detail: reason.text().to_owned(),
            refused_rule: None,
            is_first_told: false,
            shed: Some(reason),
        }
    }

    fn of_http(error: &impl std::fmt::Display) -> Self {
        Self {
            detail: error.to_string(),
            refused_rule: None,
            is_first_told: true,
            shed: None,
        }
    }
}

fn note_end(ended: Result<(), hyper::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to an endpoint ended");
    }
}

fn explain(error: TrySendError<Request<Outgoing>>) -> SendError {
    let failure = if error.message().is_some() {
        Failure::RefusedStream
    } else {
        Failure::Reset
    };
    let error = error.into_error();
    let mut detail = error.to_string();
    if let Some(cause) = std::error::Error::source(&error) {
        detail = format!("{detail}: {cause}");
    }
    SendError { failure, detail }
}
