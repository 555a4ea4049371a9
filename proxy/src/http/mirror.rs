//! Copies of requests: bounded, late or lost without the primary noticing.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Uri, header};
use tokio::time::timeout;
use zeugma_core::plan::plan;
use zeugma_core::snapshot::{Endpoint, Mirror, Service};

use super::body::{Outgoing, Source};
use super::exchange::Exchange;
use super::headers::ZEUGMA_MIRROR;
use super::pool::Wire;
use crate::runtime::{Published, Worker};
use crate::upstream::Pinned;

/// Starts the copy of a request if the mirror's share and limits allow it; never waits.
pub(super) fn start(
    exchange: &Exchange,
    published: &Arc<Published>,
    service: &Service,
    mirror: &Mirror,
    source: &Source,
) {
    let worker = Rc::clone(&exchange.context.worker);
    if !zeugma_core::mirror::takes(mirror.share, worker.draw()) {
        return;
    }
    let (name, route) = (Arc::clone(&service.name), Arc::clone(&mirror.route));
    let Some(place) = Place::take(&worker, &name, mirror) else {
        worker.shared.metrics.mirrored(&name, &route, "dropped-in-flight");
        return;
    };
    let to = Pinned { published: Arc::clone(published), cluster: mirror.to };
    let load = |endpoint| worker.load(to.cluster(), endpoint);
    let shares = published.shares_of(mirror.to);
    let Some(attempt) = plan(to.cluster(), shares, &load, worker.draw()).next() else {
        worker.shared.metrics.mirrored(&name, &route, "no-endpoint");
        return;
    };
    let endpoint = to.cluster().endpoint(attempt.endpoint).clone();
    let copy = Copy {
        heads: [false, true].map(|is_h2| copy_head(exchange, &endpoint, mirror, is_h2)),
        wire: if endpoint.peer.is_some() { Wire::Negotiated } else { exchange.wire(&endpoint) },
        to,
        endpoint,
    };
    let body = source.tee(mirror.body_bytes_max);
    let deadline = mirror.timeout;
    // Bounded by its timeout and counted in `Place`; the primary does not wait for it.
    drop(tokio::task::spawn_local(async move {
        let copying = async {
            match body.await {
                Ok(Some(body)) => copy.send(&worker, Outgoing::Bytes(body)).await,
                Ok(None) => "dropped-body",
                Err(_primary_ended_early) => "dropped-unread",
            }
        };
        let result = timeout(deadline, Box::pin(copying)).await.unwrap_or("timeout");
        worker.shared.metrics.mirrored(&name, &route, result);
        drop(place);
    }));
}

struct Copy {
    heads: [http::request::Builder; 2],
    wire: Wire,
    to: Pinned,
    endpoint: Endpoint,
}

impl Copy {
    async fn send(self, worker: &Worker, body: Outgoing) -> &'static str {
        let Ok(lease) = worker.pool.lease(worker, &self.to, &self.endpoint, self.wire).await else {
            return "failed";
        };
        let [h1, h2] = self.heads;
        let builder = if lease.is_h2() { h2 } else { h1 };
        let Ok(request) = builder.body(body) else { return "failed" };
        match lease.send(worker, request).await {
            // The response is thrown away unread; its connection or stream ends with it.
            Ok((response, _stream)) if !response.status().is_server_error() => "sent",
            Ok(_) | Err(_) => "failed",
        }
    }
}

/// The head of a copy: marked, and under the mirror's own host where a peer's gateway routes it.
fn copy_head(
    exchange: &Exchange,
    endpoint: &Endpoint,
    mirror: &Mirror,
    is_h2: bool,
) -> http::request::Builder {
    let mut builder = exchange.outgoing_head(endpoint, is_h2);
    let through_peer = endpoint.peer.is_some();
    if through_peer && is_h2 {
        let mut parts = builder.uri_ref().cloned().unwrap_or_default().into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Authority::try_from(&*mirror.host).ok();
        builder = builder.uri(Uri::from_parts(parts).unwrap_or_default());
    }
    if let Some(headers) = builder.headers_mut() {
        headers.insert(ZEUGMA_MIRROR, HeaderValue::from_static("1"));
        if through_peer && !is_h2 && let Ok(host) = HeaderValue::try_from(&*mirror.host) {
            headers.insert(header::HOST, host);
        }
    }
    builder
}

/// One copy under way.
#[derive(Debug)]
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(worker: &Worker, service: &Arc<str>, mirror: &Mirror) -> Option<Self> {
        let key = (Arc::clone(service), Arc::clone(&mirror.route));
        let count = Rc::clone(worker.mirrors.borrow_mut().entry(key).or_default());
        if count.get() >= mirror.in_flight_max {
            return None;
        }
        count.set(count.get() + 1);
        Some(Self(count))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
