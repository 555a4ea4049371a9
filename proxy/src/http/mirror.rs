//! Copies of requests: bounded, late or lost without the primary noticing.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri, header};
use http_body_util::BodyExt;
use tokio::time::timeout;
use zeugma_core::mirror::{Copying, Dropped, Kind, Original, copying};
use zeugma_core::plan::plan;
use zeugma_core::snapshot::{Endpoint, Mirror, Service};

use super::body::{Outgoing, Source};
use super::exchange::Exchange;
use super::headers::{self, ZEUGMA_MIRROR};
use super::pool::Wire;
use crate::capacity;
use crate::recheck::Entry;
use crate::runtime::{Published, Worker};
use crate::upstream::Pinned;

/// Starts the copies that the service's mirrors want of a request; never waits.
pub(super) fn start_all(
    exchange: &Exchange,
    published: &Arc<Published>,
    service: &Service,
    source: &Source,
) {
    if service.mirrors.is_empty() {
        return;
    }
    let original = Original {
        sender: exchange.sender(),
        kind: if exchange.from_gateway && exchange.head.headers.contains_key(&ZEUGMA_MIRROR) {
            Kind::Mirrored
        } else {
            Kind::Primary
        },
        body_bytes: headers::content_length(&exchange.head.headers),
    };
    let worker = &exchange.context.worker;
    let draw = worker.draw();
    for (ix, mirror) in service.mirrors.iter().enumerate() {
        let count = worker.mirror_count(&service.name, &mirror.route);
        match copying(mirror, ix, &original, count.get(), draw) {
            Copying::Skip => {}
            Copying::Drop(why) => {
                worker
                    .shared
                    .metrics
                    .mirrored(&service.name, &mirror.route, why.label());
            }
            Copying::Copy => start(
                exchange,
                published,
                service,
                mirror,
                (source, Place::new(count)),
            ),
        }
    }
}

fn start(
    exchange: &Exchange,
    published: &Arc<Published>,
    service: &Service,
    mirror: &Mirror,
    (source, place): (&Source, Place),
) {
    let worker = Rc::clone(&exchange.context.worker);
    let (name, route) = (Arc::clone(&service.name), Arc::clone(&mirror.route));
    let to = Pinned {
        published: Arc::clone(published),
        cluster: mirror.to,
    };
    let load = |endpoint| worker.load(to.cluster(), endpoint);
    let shares = published.shares_of(mirror.to);
    let draw = exchange.draw(to.cluster());
    let planned = plan(to.cluster(), shares, &load, draw);
    let mut planned = capacity::within(&worker.shared, shares, planned);
    // To whoever answers it, a copy is a request.
    let taken = planned.find(|one| capacity::take(&worker.shared, shares, one.endpoint));
    let Some(attempt) = taken else {
        let why = if shares.metered.is_some() && !shares.refuses() {
            Dropped::OverCapacity
        } else {
            Dropped::Unreachable
        };
        let metrics = &worker.shared.metrics;
        metrics.mirrored(&name, &route, why.label());
        return;
    };
    let endpoint = to.cluster().endpoint(attempt.endpoint).clone();
    let method = exchange.head.method.clone();
    let request = (method, exchange.head.uri.clone());
    let listed = (worker.registry).list_copy(exchange.entry(), request, &mirror.route);
    // Something may have been published since the request was let in.
    listed.settle(&worker.shared, published.generation, None);
    let copy = Copy {
        entry: Rc::clone(&listed.entry),
        heads: [false, true].map(|is_h2| copy_head(exchange, &endpoint, mirror, is_h2)),
        wire: if endpoint.peer.is_some() {
            Wire::Negotiated
        } else {
            exchange.wire(&endpoint)
        },
        to,
        endpoint,
    };
    let body = source.tee(mirror.body_bytes_max);
    let deadline = mirror.timeout;
    // Bounded by its timeout and counted in `Place`; the primary does not wait for it.
    let tasks = worker.tasks.clone();
    drop(tasks.spawn_local(async move {
        let copying = async {
            match body.await {
                Ok(Some(body)) => copy.send(&worker, Outgoing::Bytes(body)).await,
                Ok(None) => Dropped::Body.label(),
                // The endpoint answered the primary before all of it was read.
                Err(_primary_ended_early) => Dropped::Slow.label(),
            }
        };
        // Dropped, it ends the copy under way.
        let result = tokio::select! {
            biased;
            () = listed.cut() => Dropped::Ended.label(),
            result = timeout(deadline, Box::pin(copying)) => {
                result.unwrap_or(Dropped::Timeout.label())
            }
        };
        worker.shared.metrics.mirrored(&name, &route, result);
        drop(place);
    }));
}

struct Copy {
    /// Where a change finds it.
    entry: Rc<Entry>,
    heads: [http::request::Parts; 2],
    wire: Wire,
    to: Pinned,
    endpoint: Endpoint,
}

impl Copy {
    async fn send(self, worker: &Rc<Worker>, body: Outgoing) -> &'static str {
        let Ok(lease) = worker
            .pool
            .lease(worker, &self.to, &self.endpoint, self.wire)
            .await
        else {
            return Dropped::Unreachable.label();
        };
        if let Some(peer) = &lease.facts.peer {
            let endpoint = &self.endpoint;
            (self.entry).goes_to(&endpoint.backend, &endpoint.address, Some(peer));
            let generation = self.to.published.generation;
            (self.entry).settle(&worker.shared, generation, Some(lease.credentials()));
        }
        let [h1, h2] = self.heads;
        let head = if lease.is_h2() { h2 } else { h1 };
        match lease
            .send(worker, http::Request::from_parts(head, body))
            .await
        {
            Ok((response, _stream)) => {
                let good = !response.status().is_server_error();
                let mut body = response.into_body();
                // Read away, so that its connection can be used again.
                while let Some(Ok(_frame)) = body.frame().await {}
                if good { "sent" } else { "failed" }
            }
            Err(_unanswered) => "failed",
        }
    }
}

/// The head of a copy: marked, and under the mirror's own host where a peer's gateway routes it.
fn copy_head(
    exchange: &Exchange,
    endpoint: &Endpoint,
    mirror: &Mirror,
    is_h2: bool,
) -> http::request::Parts {
    let mut head = exchange.outgoing_head(endpoint, is_h2);
    let through_peer = endpoint.peer.is_some();
    if through_peer && is_h2 {
        let mut parts = head.uri.into_parts();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Authority::try_from(&*mirror.host).ok();
        head.uri = Uri::from_parts(parts).unwrap_or_default();
    }
    let mark = HeaderValue::from_static("1");
    head.headers.insert(ZEUGMA_MIRROR, mark);
    if through_peer
        && !is_h2
        && let Ok(host) = HeaderValue::try_from(&*mirror.host)
    {
        head.headers.insert(header::HOST, host);
    }
    head
}

/// One copy under way.
#[derive(Debug)]
struct Place(Rc<Cell<usize>>);

impl Place {
    fn new(count: Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
