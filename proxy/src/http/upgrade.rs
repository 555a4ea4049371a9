//! HTTP/1.1 upgrades (WebSocket): after `101` the request becomes a relay.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use zeugma_core::snapshot::Failure;
use zeugma_core::verdict::Reason;

use super::body::{Held, Outgoing};
use super::exchange::{Exchange, failure_in};
use super::headers;
use super::record::Record;
use crate::connection::describe;
use crate::relay::{Moved, RelayEnd, relay};
use crate::transport::mtls::ALPN_HTTP1;
use crate::upstream::{Pinned, Reached, Unreached, Upstream, connect_any};

/// Carries a request that asks for another protocol, on a connection of its own.
pub(super) async fn exchange(
    mut exchange: Exchange,
    to: &Pinned,
    mut request: Request<Incoming>,
) -> Response<Outgoing> {
    let worker = Rc::clone(&exchange.context.worker);
    let cluster = to.cluster();
    let Some(protocol) = headers::upgrade(request.headers()) else {
        return exchange.refuse(Reason::Internal, None);
    };
    let downstream = hyper::upgrade::on(&mut request);
    let reached = match connect_any(&worker, &to.published, to.cluster, &[ALPN_HTTP1]).await {
        Ok(reached) => reached,
        Err(Unreached { reason, last, rule }) => {
            if rule.is_some() {
                exchange.note(|closed, _| *closed.rule = rule);
            }
            return exchange.refuse(reason, last);
        }
    };
    let Reached {
        upstream,
        attempt,
        attempts,
        in_flight,
    } = reached;
    let endpoint = cluster.endpoint(attempt.endpoint);
    let (address, identity) = (upstream.address.to_string(), upstream.identity.clone());
    let destination = describe(
        &to.published,
        to.cluster,
        &attempt,
        address,
        identity,
        attempts,
    );
    exchange.arrived(destination, attempts);
    let mut builder = exchange.outgoing_head(endpoint, false);
    if let Some(out) = builder.headers_mut() {
        out.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        out.insert(UPGRADE, protocol.clone());
    }
    let Ok(outgoing) = builder.body(Outgoing::Empty) else {
        return exchange.refuse(Reason::RequestMalformed, None);
    };
    let held = Held {
        in_flight,
        stream: None,
    };
    match timeout(
        cluster.timeouts.response_headers,
        Box::pin(send(upstream, outgoing)),
    )
    .await
    {
        Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            switch(exchange, to, response, downstream, held, protocol)
        }
        Ok(Ok(response)) if failure_in(endpoint, &response) == Some(Failure::NoLocalEndpoint) => {
            worker.observe(&endpoint.key, Err(Failure::NoLocalEndpoint));
            exchange.refuse(Reason::NoHealthyEndpoint, None)
        }
        Ok(Ok(response)) => exchange.pass_on(response, held, endpoint.peer.is_some()),
        Ok(Err(error)) => {
            worker.observe(&endpoint.key, Err(Failure::Reset));
            exchange.refuse(Reason::UpstreamReset, Some(error.to_string()))
        }
        Err(_elapsed) => {
            worker.observe(&endpoint.key, Err(Failure::Timeout));
            exchange.refuse(Reason::UpstreamTimeout, None)
        }
    }
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
fn switch(
    exchange: Exchange,
    to: &Pinned,
    mut response: Response<Incoming>,
    downstream: hyper::upgrade::OnUpgrade,
    held: Held,
    protocol: HeaderValue,
) -> Response<Outgoing> {
    let upstream = hyper::upgrade::on(&mut response);
    let (mut head, _no_body) = response.into_parts();
    let protocol = head.headers.get(UPGRADE).cloned().unwrap_or(protocol);
    headers::remove_hop_by_hop(&mut head.headers);
    head.headers
        .insert(CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(UPGRADE, protocol);
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
        if let Some(closed) = self.facts() {
            closed.reason = reason;
            closed.bytes_sent = sent;
            closed.bytes_received = received;
        }
        self.body_ended(Ok(()));
    }
}
