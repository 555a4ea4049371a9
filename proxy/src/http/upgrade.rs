//! WebSocket: an upgrade of an HTTP/1.1 connection, or a stream of HTTP/2 by extended CONNECT (RFC
//! 8441). After the endpoint's `101` the request becomes a relay.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use aws_lc_rs::digest::{Context as Digesting, SHA1_FOR_LEGACY_USE_ONLY};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use h2::ext::Protocol;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE,
};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, DuplexStream, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::timeout;
use zeugma_core::plan::Attempt;
use zeugma_core::snapshot::Failure;
use zeugma_core::verdict::Reason;

use super::body::{Held, Outgoing, Source, Tunnel};
use super::exchange::{Exchange, TryError};
use super::h1::Rewound;
use super::headers::Present;
use super::record::Record;
use super::stream::Incoming;
use super::{Counted, Version};
use super::{headers, pool};
use crate::admission;
use crate::connection::describe;
use crate::relay::{Moved, RelayEnd, relay};
use crate::transport::Stream;
use crate::transport::mtls::ALPN_HTTP1;
use crate::upstream::{self, First, Pinned};

/// The one protocol that is changed to.
const WEBSOCKET: &str = "websocket";
/// What waits between a stream and an endpoint's connection.
const TUNNEL_BYTES: usize = 16 * 1024;

/// The caller's connection, once it was told that it changes.
type OnUpgrade = oneshot::Receiver<Rewound<Counted>>;

/// What a request asks to go on as WebSocket.
#[derive(Debug)]
pub(super) enum Upgrade {
    /// Its HTTP/1.1 connection.
    Connection(OnUpgrade),
    /// Its HTTP/2 stream.
    Stream,
}

/// The caller's end of what is relayed.
#[derive(Debug)]
pub(super) enum Caller {
    Connection(OnUpgrade),
    /// What the caller sends.
    Stream(Outgoing),
}

impl Upgrade {
    pub(super) fn into_caller(self, source: &Source) -> Caller {
        match self {
            Self::Connection(connection) => Caller::Connection(connection),
            Self::Stream => Caller::Stream(source.next_try()),
        }
    }
}

/// What the request asks to go on as WebSocket, if it does.
///
/// Any other `:protocol` is no request that is passed: rules say nothing of what it would carry.
pub(super) fn asked_for(
    version: Version,
    request: &Request<Incoming>,
    present: Present,
) -> Option<Upgrade> {
    match version {
        Version::H1 => {
            let asked = present.has(Present::UPGRADE)
                && request.method() == Method::GET
                && request.body().is_end_stream()
                && headers::upgrades_to_websocket(request.headers());
            match request.body() {
                Incoming::H1(body) if asked => Some(Upgrade::Connection(body.on_upgrade())),
                Incoming::H1(_) | Incoming::Answer(_) | Incoming::H2(_) | Incoming::Over { .. } => {
                    None
                }
            }
        }
        Version::H2 => {
            let protocol = request.extensions().get::<Protocol>();
            let asked = request.method() == Method::CONNECT
                && protocol.is_some_and(|protocol| protocol.as_str() == WEBSOCKET);
            asked.then_some(Upgrade::Stream)
        }
    }
}

/// Makes a request one for WebSocket on a stream.
pub(super) fn ask_on_stream(request: &mut Request<Outgoing>) {
    *request.method_mut() = Method::CONNECT;
    let protocol = Protocol::from_static(WEBSOCKET);
    request.extensions_mut().insert(protocol);
}

/// Sends the request to one endpoint, on a connection of its own.
pub(super) async fn try_endpoint(
    exchange: &mut Exchange,
    to: &Pinned,
    attempt: &Attempt,
    nth: u32,
) -> Result<Response<Incoming>, TryError> {
    let worker = Rc::clone(&exchange.context.worker);
    let cluster = to.cluster();
    let endpoint = cluster.endpoint(attempt.endpoint);
    let deadline = cluster.connect_deadline(endpoint);
    let waiting = admission::pending(to).map_err(TryError::Shed)?;
    let (shared, alpn) = (&worker.shared, &[ALPN_HTTP1]);
    let connected = upstream::connect(shared, deadline, endpoint, alpn, First::We).await;
    drop(waiting);
    let upstream = match connected {
        Ok(upstream) => upstream,
        Err(error) => {
            worker.observe_connect(endpoint, &error);
            upstream::note_refusal(&worker.shared, &error);
            exchange.note_refused(upstream::refused_rule(&error));
            return Err(TryError::untold(Failure::Connect, error.to_string()));
        }
    };
    upstream::tune(upstream.stream.tcp());
    let (address, identity) = (upstream.address.to_string().into(), upstream.identity());
    exchange.goes_to(to, attempt, upstream.peer.as_ref(), None);
    let destination = describe(&to.published, to.cluster, attempt, address, identity, nth);
    exchange.arrived(destination, nth);
    let mut head = exchange.outgoing_head(endpoint, false);
    let out = &mut head.headers;
    out.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    out.insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
    let mut accepts = None;
    if matches!(exchange.upgrade, Some(Upgrade::Stream)) {
        // RFC 8441 §5: a stream has none; HTTP/1.1 must (RFC 6455 §4.1).
        let nonce = [worker.draw().to_be_bytes(), worker.draw().to_be_bytes()].concat();
        // What the stream says of its length is none of a request without a body.
        out.remove(CONTENT_LENGTH);
        if let Ok(key) = HeaderValue::try_from(STANDARD.encode(nonce)) {
            accepts = Some(Accepts::of(&key));
            out.insert(SEC_WEBSOCKET_KEY, key);
        }
    }
    let outgoing = Request::from_parts(head, Outgoing::Empty);
    let (patience, per_try) = exchange.timeouts(cluster);
    let patience = per_try.map_or(patience, |per_try| per_try.min(patience));
    let asking = pool::ask_upgrade(upstream.stream, outgoing);
    let (failure, detail) = match timeout(patience, Box::pin(asking)).await {
        Ok(Ok(mut response)) => {
            if let Some(accepts) = accepts {
                response.extensions_mut().insert(accepts);
            }
            return Ok(response);
        }
        Ok(Err(error)) => (Failure::Reset, error.detail),
        Err(_elapsed) => (
            Failure::Timeout,
            format!("no response from {} in time", endpoint.key),
        ),
    };
    worker.observe(&endpoint.key, Err(failure));
    Err(TryError::untold(failure, detail))
}

/// What an endpoint answers to a key of ours.
#[derive(Debug, Clone)]
struct Accepts(String);

impl Accepts {
    /// RFC 6455 §1.3.
    fn of(key: &HeaderValue) -> Self {
        let mut digesting = Digesting::new(&SHA1_FOR_LEGACY_USE_ONLY);
        digesting.update(key.as_bytes());
        digesting.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
        Self(STANDARD.encode(digesting.finish()))
    }
}

/// Whether an endpoint that changes to WebSocket has read our key, where it is ours: one that has
/// not, or a cache before it, does not speak WebSocket (RFC 6455 §4.1).
pub(super) fn has_read_our_key(response: &Response<Incoming>) -> bool {
    let Some(accepts) = response.extensions().get::<Accepts>() else {
        return true;
    };
    let mut said = response.headers().get_all(SEC_WEBSOCKET_ACCEPT).iter();
    let is_it = |said: &HeaderValue| said.as_bytes().trim_ascii() == accepts.0.as_bytes();
    said.next().is_some_and(is_it) && said.next().is_none()
}

/// Tells the caller `101`, or `200` on a stream, and relays between it and the endpoint.
pub(super) fn switch(
    exchange: Exchange,
    to: &Pinned,
    response: Response<Incoming>,
    caller: Caller,
    held: Held,
) -> Response<Outgoing> {
    let (mut head, answer) = response.into_parts();
    let Some(upstream) = answer.into_upgraded() else {
        return exchange.refuse(Reason::Internal, None);
    };
    headers::remove_hop_by_hop(&mut head.headers);
    exchange.change_response(&mut head.headers);
    let idle = to.cluster().policy.timeouts.idle;
    let relaying = Relaying { idle, held };
    let tasks = exchange.context.worker.tasks.clone();
    // The relay holds its record and its place; draining waits for it until the deadline.
    match caller {
        Caller::Connection(connection) => {
            head.headers
                .insert(CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers
                .insert(UPGRADE, HeaderValue::from_static(WEBSOCKET));
            let mut record = exchange.into_record(head.status);
            drop(tasks.spawn_local(async move {
                let Ok(down) = connection.await else {
                    record.ended(Reason::DownstreamClosed, (0, 0));
                    return;
                };
                relaying.run(down, upstream, &mut record).await;
            }));
            Response::from_parts(head, Outgoing::Empty)
        }
        Caller::Stream(sent) => {
            head.status = StatusCode::OK;
            head.version = http::Version::HTTP_2;
            head.headers.remove(SEC_WEBSOCKET_ACCEPT);
            let mut record = exchange.into_record(head.status);
            let (near, far) = tokio::io::duplex(TUNNEL_BYTES);
            let (to_caller, from_caller) = tokio::io::split(near);
            drop(tasks.spawn_local(async move {
                let mut relayed = pin!(relaying.run(far, upstream, &mut record));
                // The relay is pinned outside: pouring ends with what the caller sends, and is given
                // up with the relay, which leaves nobody to read it.
                tokio::select! {
                    () = &mut relayed => {}
                    () = pour(sent, from_caller) => relayed.await,
                }
            }));
            Response::from_parts(head, Outgoing::Tunnel(Tunnel::new(to_caller, idle)))
        }
    }
}

/// Writes what the caller sends on its stream; a stream that breaks closes the tunnel.
async fn pour(sent: Outgoing, mut tunnel: WriteHalf<DuplexStream>) {
    let mut sent = pin!(sent);
    while let Some(Ok(frame)) = sent.frame().await {
        if let Ok(bytes) = frame.into_data()
            && tunnel.write_all(&bytes).await.is_err()
        {
            return;
        }
    }
    // The other half may be gone already.
    tunnel.shutdown().await.ok();
}

/// What a relay needs beside its two ends.
struct Relaying {
    idle: Duration,
    held: Held,
}

impl Relaying {
    async fn run<D>(self, down: D, up: Rewound<Stream>, record: &mut Record)
    where
        D: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let entry = Rc::clone(record.entry());
        let moved = Moved::default();
        let relaying = relay(down, up, self.idle, &moved, entry);
        let reason = reason_of(&Box::pin(relaying).await);
        record.ended(reason, (moved.down.get(), moved.up.get()));
        drop(self.held);
    }
}

const fn reason_of(end: &RelayEnd) -> Reason {
    match end {
        RelayEnd::Closed => Reason::Completed,
        // Where a change has told it, its record says why.
        RelayEnd::Told => Reason::Drained,
        RelayEnd::Idle => Reason::IdleTimeout,
        RelayEnd::Downstream(_) => Reason::DownstreamClosed,
        RelayEnd::Upstream(_) => Reason::UpstreamReset,
    }
}

impl Record {
    fn ended(&mut self, reason: Reason, (sent, received): (u64, u64)) {
        self.counts_no_body();
        if let Some(closed) = self.facts() {
            closed.reason = reason;
            closed.bytes_sent = sent;
            closed.bytes_received = received;
        }
        self.body_ended(Ok(()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_the_rfc_shows() {
        // RFC 6455 §1.3.
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(Accepts::of(&key).0, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
