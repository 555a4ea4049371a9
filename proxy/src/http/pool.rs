//! Connections to endpoints, kept by each worker for itself.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::time::timeout;
use zeugma_core::snapshot::{Endpoint, EndpointKey, EndpointTls, Failure};
use zeugma_core::verdict::Reason;

use super::body::Outgoing;
use super::{OnThisWorker, STREAM_WINDOW, connection_window};
use crate::admission;
use crate::runtime::{Shared, Worker};
use crate::transport::Stream;
use crate::transport::mtls::{ALPN_H2, ALPN_HTTP1};
use crate::upstream::{self, ConnectError, Pinned, Upstream};

/// An idle connection is kept this long.
const IDLE: Duration = Duration::from_secs(60);
/// Idle HTTP/1.1 connections kept for one endpoint.
const IDLE_MAX: usize = 256;
/// Streams on one HTTP/2 connection before another is opened.
const STREAMS_MAX: u32 = 100;
/// Bytes one HTTP/2 stream may have waiting to be sent.
const STREAM_SEND_BYTES: usize = 64 * 1024;

/// The streams that are used before an endpoint's SETTINGS say how many it takes.
const UNTOLD: usize = 1;
/// How long a new connection waits for them before it is shared.
const SETTINGS_WAIT: Duration = Duration::from_millis(250);
/// How often it looks whether they came.
const SETTINGS_LOOK: Duration = Duration::from_millis(1);

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
    entries: RefCell<HashMap<Key, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    h1: Vec<(Facts, http1::SendRequest<Outgoing>, Instant)>,
    h2: Vec<Multiplexed>,
    connecting: Option<watch::Receiver<Option<String>>>,
    /// The endpoint agreed on HTTP/1.1 before: nobody waits for a connection to share.
    speaks_h1: bool,
}

#[derive(Debug)]
struct Multiplexed {
    facts: Facts,
    sender: http2::SendRequest<Outgoing>,
    streams: Rc<Cell<usize>>,
    /// How many streams the endpoint takes at once.
    streams_max: Rc<Cell<usize>>,
    used: Instant,
}

/// What is known of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) identity: Option<String>,
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
    H1(http1::SendRequest<Outgoing>),
    H2 {
        sender: http2::SendRequest<Outgoing>,
        stream: StreamCount,
    },
}

/// One stream counted on its connection until dropped.
#[derive(Debug)]
pub(crate) struct StreamCount(Rc<Cell<usize>>);

impl StreamCount {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Why a request got no response.
#[derive(Debug)]
pub(crate) struct SendError {
    pub(crate) failure: Failure,
    pub(crate) detail: String,
}

impl Lease {
    /// Whether this connection speaks HTTP/2.
    pub(crate) const fn is_h2(&self) -> bool {
        matches!(self.sender, Sender::H2 { .. })
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
            Sender::H1(mut sender) => {
                let response = sender.try_send_request(request).await.map_err(explain)?;
                worker.pool.give_back(&self.key, self.facts, sender);
                Ok((response, None))
            }
            Sender::H2 { mut sender, stream } => {
                let response = sender.try_send_request(request).await.map_err(explain)?;
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

    /// Forgets connections that are closed or were idle for long.
    pub(crate) fn evict_idle(&self) {
        self.entries.borrow_mut().retain(|_, entry| {
            entry
                .h1
                .retain(|(_, sender, used)| !sender.is_closed() && used.elapsed() < IDLE);
            entry.h2.retain(|one| {
                !one.sender.is_closed() && (one.streams.get() > 0 || one.used.elapsed() < IDLE)
            });
            !entry.h1.is_empty() || !entry.h2.is_empty() || entry.connecting.is_some()
        });
    }

    fn free(&self, key: &Key) -> Option<Lease> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key)?;
        entry.h2.retain(|one| !one.sender.is_closed());
        if let Some(one) = entry
            .h2
            .iter_mut()
            .find(|one| one.streams.get() < one.streams_max.get())
        {
            one.used = Instant::now();
            let stream = StreamCount::new(&one.streams);
            let sender = Sender::H2 {
                sender: one.sender.clone(),
                stream,
            };
            return Some(Lease {
                facts: one.facts.clone(),
                reused: true,
                key: key.clone(),
                sender,
            });
        }
        entry.h1.retain(|(_, sender, _)| !sender.is_closed());
        // The one used last is the least likely to be closed by the endpoint right now.
        let ready = entry
            .h1
            .iter()
            .rposition(|(_, sender, _)| sender.is_ready())?;
        let (facts, sender, _) = entry.h1.swap_remove(ready);
        Some(Lease {
            facts,
            reused: true,
            key: key.clone(),
            sender: Sender::H1(sender),
        })
    }

    fn give_back(&self, key: &Key, facts: Facts, sender: http1::SendRequest<Outgoing>) {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(key.clone()).or_default();
        if entry.h1.len() < IDLE_MAX {
            // It is ready again once the response body was read; until then nobody gets it.
            entry.h1.push((facts, sender, Instant::now()));
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
            identity,
            alpn,
        } = connected.map_err(|error| {
            upstream::note_refusal(shared, &error);
            ConnectFailure::new(&error)
        })?;
        let facts = Facts { address, identity };
        let is_h2 = match key.wire {
            Wire::H1 => false,
            Wire::H2 => alpn.as_deref().is_none_or(|alpn| alpn == ALPN_H2),
            Wire::Negotiated => alpn.as_deref() == Some(ALPN_H2),
        };
        let io = TokioIo::new(stream);
        if !is_h2 {
            if key.wire == Wire::Negotiated {
                let mut entries = self.entries.borrow_mut();
                entries.entry(key.clone()).or_default().speaks_h1 = true;
            }
            let (sender, connection) = http1::handshake(io)
                .await
                .map_err(|error| ConnectFailure::of_http(&error))?;
            drop(tokio::task::spawn_local(async move {
                note_end(connection.await)
            }));
            return Ok(Lease {
                facts,
                reused: false,
                key,
                sender: Sender::H1(sender),
            });
        }
        let multiplexed = begin_h2(io, to, endpoint, facts.clone()).await?;
        let (sender, stream) = (
            multiplexed.sender.clone(),
            StreamCount::new(&multiplexed.streams),
        );
        self.entries
            .borrow_mut()
            .entry(key.clone())
            .or_default()
            .h2
            .push(multiplexed);
        Ok(Lease {
            facts,
            reused: false,
            key,
            sender: Sender::H2 { sender, stream },
        })
    }
}

/// Begins HTTP/2 on a connection; its driving task ends with its last sender.
async fn begin_h2(
    io: TokioIo<Stream>,
    to: &Pinned,
    endpoint: &Endpoint,
    facts: Facts,
) -> Result<Multiplexed, ConnectFailure> {
    let mut builder = http2::Builder::new(OnThisWorker);
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(connection_window(STREAMS_MAX))
        .max_send_buf_size(STREAM_SEND_BYTES)
        // Until the endpoint has said how many it takes: more may be refused.
        .initial_max_send_streams(UNTOLD);
    if let Some(peer) = endpoint.peer {
        let peer = to.published.snapshot.peer(peer);
        builder
            .keep_alive_interval(peer.keepalive_ping)
            .keep_alive_timeout(peer.keepalive_timeout)
            .keep_alive_while_idle(true);
    }
    let (sender, connection) = builder
        .handshake(io)
        .await
        .map_err(|error| ConnectFailure::of_http(&error))?;
    let streams = Rc::new(Cell::new(0));
    // hyper reads the connection in a task of its own, which tells nobody that SETTINGS came.
    let settled = async {
        while connection.current_max_send_streams() == UNTOLD {
            tokio::time::sleep(SETTINGS_LOOK).await;
        }
    };
    // An endpoint that takes one stream, or is slow to say, is used as one that takes one.
    timeout(SETTINGS_WAIT, settled).await.ok();
    let streams_now = |max: usize| max.clamp(1, STREAMS_MAX as usize);
    let streams_max = Rc::new(Cell::new(streams_now(
        connection.current_max_send_streams(),
    )));
    let told = Rc::clone(&streams_max);
    let mut connection = Box::pin(connection);
    drop(tokio::task::spawn_local(async move {
        let driving = std::future::poll_fn(|cx| {
            let polled = connection.as_mut().poll(cx);
            told.set(streams_now(connection.current_max_send_streams()));
            polled
        });
        note_end(driving.await);
    }));
    Ok(Multiplexed {
        facts,
        sender,
        streams,
        streams_max,
        used: Instant::now(),
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

    fn of_http(error: &hyper::Error) -> Self {
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
    let unsent = error.message().is_some();
    let error = error.into_error();
    let failure = if unsent {
        Failure::RefusedStream
    } else {
        failure_of(&error)
    };
    let mut detail = error.to_string();
    if let Some(cause) = std::error::Error::source(&error) {
        detail = format!("{detail}: {cause}");
    }
    SendError { failure, detail }
}

/// What a broken exchange counts as.
fn failure_of(error: &hyper::Error) -> Failure {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            // RFC 9113 §8.7: neither was processed by the application.
            let refused = h2.reason() == Some(h2::Reason::REFUSED_STREAM)
                || (h2.is_go_away() && h2.reason() == Some(h2::Reason::NO_ERROR));
            return if refused {
                Failure::RefusedStream
            } else {
                Failure::Reset
            };
        }
        cause = inner.source();
    }
    Failure::Reset
}
