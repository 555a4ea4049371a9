//! HTTP/1.1 upgrades (WebSocket): after `101` the request becomes a relay.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use zeugma_core::plan::Attempt;
use zeugma_core::snapshot::Failure;
use zeugma_core::verdict::Reason;

use super::Version;
use super::body::{Held, Outgoing};
use super::exchange::{Exchange, TryError};
use super::headers;
use super::record::Record;
use crate::admission;
use crate::connection::describe;
use crate::relay::{Moved, RelayEnd, relay};
use crate::transport::mtls::ALPN_HTTP1;
use crate::upstream::{self, Pinned, Upstream};

/// The caller's connection, if the request asks to go on as WebSocket on it.
pub(super) fn asked_for(version: Version, request: &mut Request<Incoming>) -> Option<OnUpgrade> {
    let asked = version == Version::H1
        && request.method() == Method::GET
        && request.body().is_end_stream()
        && headers::upgrades_to_websocket(request.headers());
    asked.then(|| hyper::upgrade::on(request))
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
    let deadline = upstream::connect_deadline(cluster, endpoint);
    let waiting = admission::pending(to).map_err(TryError::Shed)?;
    let connected = upstream::connect(&worker.shared, deadline, endpoint, &[ALPN_HTTP1]).await;
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
    let (address, identity) = (upstream.address.to_string(), upstream.identity.clone());
    let destination = describe(&to.published, to.cluster, attempt, address, identity, nth);
    exchange.arrived(destination, nth);
    let mut builder = exchange.outgoing_head(endpoint, false);
    if let Some(out) = builder.headers_mut() {
        out.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        out.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    // Every part was valid in the request that came in.
    let outgoing = builder.body(Outgoing::Empty);
    let outgoing = outgoing.unwrap_or_else(|_invalid| Request::new(Outgoing::Empty));
    let patience = cluster.timeouts.response_headers;
    let patience = cluster
        .timeouts
        .per_try
        .map_or(patience, |per_try| per_try.min(patience));
    let (failure, detail) = match timeout(patience, Box::pin(send(upstream, outgoing))).await {
        Ok(Ok(response)) => return Ok(response),
        Ok(Err(error)) => (Failure::Reset, error.to_string()),
        Err(_elapsed) => (
            Failure::Timeout,
            format!("no response from {} in time", endpoint.key),
        ),
    };
    worker.observe(&endpoint.key, Err(failure));
    Err(TryError::untold(failure, detail))
}

async fn send(
    upstream: Upstream,
    request: Request<Outgoing>,
) -> Result<Response<Incoming>, hyper::Error> {
    let io = TokioIo::new(upstream.stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    // Ends with the exchange: when the sender and the upgraded halves are dropped.
    drop(tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "an upgraded connection to an endpoint ended");
        }
    }));
    sender.send_request(request).await
}

/// Tells the caller `101` and relays between the two upgraded connections.
pub(super) fn switch(
    exchange: Exchange,
    to: &Pinned,
    mut response: Response<Incoming>,
    downstream: OnUpgrade,
    held: Held,
) -> Response<Outgoing> {
    let upstream = hyper::upgrade::on(&mut response);
    let (mut head, _no_body) = response.into_parts();
    headers::remove_hop_by_hop(&mut head.headers);
    head.headers
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers
        .insert(UPGRADE, HeaderValue::from_static("websocket"));
    let idle = to.cluster().timeouts.idle;
    let shared = Arc::clone(&exchange.context.worker.shared);
    let tasks = exchange.context.worker.tasks.clone();
    let mut record = exchange.into_record(StatusCode::SWITCHING_PROTOCOLS);
    // It holds its record and its place; draining waits for it until the deadline.
    drop(tasks.spawn_local(async move {
        let (Ok(down), Ok(up)) = tokio::join!(downstream, upstream) else {
            record.ended(Reason::UpstreamReset, (0, 0));
            return;
        };
        let moved = Moved::default();
        let relaying = relay(TokioIo::new(down), TokioIo::new(up), idle, &moved);
        // Both arms may be dropped: what was moved is counted outside.
        let reason = tokio::select! {
            end = Box::pin(relaying) => reason_of(&end),
            () = async { tokio::time::sleep_until(shared.draining().await).await } => Reason::Drained,
        };
        record.ended(reason, (moved.down.get(), moved.up.get()));
        drop(held);
    }));
    Response::from_parts(head, Outgoing::Empty)
}

const fn reason_of(end: &RelayEnd) -> Reason {
    match end {
        RelayEnd::Closed => Reason::Completed,
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
