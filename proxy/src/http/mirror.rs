//! Copies of requests: bounded, late or lost without the primary noticing.

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Uri, header};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::timeout;
use zeugma_core::mirror::{Answer, Copying, Dropped, Kind, Original, compared, copying};
use zeugma_core::plan::plan;
use zeugma_core::snapshot::{Endpoint, Mirror, Service};

use super::body::{Outgoing, Source};
use super::compare::{Hearing, Primary, Said};
use super::exchange::Exchange;
use super::headers::{self, Ids, ZEUGMA_MIRROR};
use super::pool::{Patience, Wanted, Wire};
use super::unheard::Care;
use crate::capacity;
use crate::copies::{Copies, Place};
use crate::recheck::{Listed, Open};
use crate::runtime::{Published, Worker};
use crate::upstream::Pinned;

/// Starts the copies that the service's mirrors want of a request; never waits. Returns what is to hear
/// the answer that the caller gets, where a copy's is compared with it.
pub(super) fn start_all(
    exchange: &Exchange,
    published: &Arc<Published>,
    service: &Service,
    source: &Source,
) -> Option<Box<Primary>> {
    if service.mirrors.is_empty() {
        return None;
    }
    let original = Original {
        sender: exchange.sender(),
        kind: if exchange.from_gateway && exchange.head.headers.contains_key(&ZEUGMA_MIRROR) {
            Kind::Mirrored
        } else if exchange.upgrade.is_some() {
            Kind::Upgraded
        } else {
            Kind::Primary
        },
        body_bytes: headers::content_length(&exchange.head.headers),
    };
    let worker = &exchange.context.worker;
    let draw = worker.draw();
    let mut primary = None;
    for (ix, mirror) in service.mirrors.iter().enumerate() {
        let copies = worker.copies(&service.name, &mirror.route);
        let mut about = About {
            worker: Rc::clone(worker),
            service: Arc::clone(&service.name),
            route: Arc::clone(&mirror.route),
            ids: Rc::clone(&exchange.ids),
            timeout: Duration::ZERO,
            comparing: None,
        };
        match copying(mirror, ix, &original, copies.under_way(), draw) {
            Copying::Skip(_) => {}
            Copying::Drop(why) => about.ended(why.label()),
            Copying::Copy(terms) => {
                let copy = match Copy::new(exchange, published, mirror) {
                    Ok(copy) => copy,
                    Err(why) => {
                        about.ended(why.label());
                        continue;
                    }
                };
                about.timeout = terms.within;
                about.comparing = terms.compared_bytes_max.map(|bytes_max| {
                    let primary: &mut Box<Primary> = primary.get_or_insert_default();
                    (primary.told_to_one(bytes_max), bytes_max)
                });
                let body = source.tee(mirror.body_bytes_max);
                let place = Place::new(copies);
                // Bounded by its timeout and counted in `Place`; the primary does not wait for it.
                let running = run(copy, about, body, place);
                drop(worker.tasks.clone().spawn_local(running));
            }
        }
    }
    primary
}

/// Sends a copy, and compares its answer where that is asked for.
async fn run(
    copy: Copy,
    mut about: About,
    body: oneshot::Receiver<Option<VecDeque<Bytes>>>,
    place: Place,
) {
    let limit = about.comparing.as_ref().map(|(_, limit)| *limit);
    let worker = Rc::clone(&about.worker);
    let listed = Rc::clone(&copy.listed.entry);
    let copying = async {
        match body.await {
            Ok(Some(body)) => copy.send(&worker, Outgoing::Bytes(body), limit).await,
            Ok(None) => (Dropped::Body.label(), None),
            // The endpoint answered the primary before all of it was read.
            Err(_primary_ended_early) => (Dropped::Slow.label(), None),
        }
    };
    // Dropped, it ends the copy under way.
    let (result, answer) = tokio::select! {
        biased;
        () = listed.cut() => (Dropped::Ended.label(), None),
        result = timeout(about.timeout, Box::pin(copying)) => {
            result.unwrap_or((Dropped::Timeout.label(), None))
        }
    };
    about.ended(result);
    if let Some((told, limit)) = about.comparing.take() {
        // The primary may take longer than its copy: as long as a copy may take, and no longer.
        let primary = match &answer {
            Some(_) => timeout(about.timeout, told).await.ok().and_then(Result::ok),
            None => None,
        };
        about.compared(primary.as_ref(), answer.as_ref(), limit, place.copies());
    }
    drop(place);
}

/// What is told of a copy.
struct About {
    worker: Rc<Worker>,
    service: Arc<str>,
    route: Arc<str>,
    ids: Rc<Ids>,
    timeout: Duration,
    /// What tells of the primary's answer, and how much of a body is looked at.
    comparing: Option<(oneshot::Receiver<Answer>, usize)>,
}

impl About {
    fn ended(&self, result: &str) {
        let metrics = &self.worker.shared.metrics;
        metrics.mirrored(&self.service, &self.route, result);
    }

    fn compared(
        &self,
        primary: Option<&Answer>,
        copy: Option<&Answer>,
        bytes_max: usize,
        copies: &Copies,
    ) {
        let compared = compared(primary, copy, bytes_max);
        let metrics = &self.worker.shared.metrics;
        metrics.mirror_compared(&self.service, &self.route, compared.label());
        if let (Some(primary), Some(copy)) = (primary, copy)
            && compared.is_difference()
            && let Some(untold) = copies.tells(Instant::now())
        {
            let (service, route, id) = (&self.service, &self.route, &self.ids.request);
            tracing::info!(
                code = "ZG0452",
                %service,
                mirror = %route,
                request.id = id.as_str(),
                differs = compared.label(),
                primary = %Said(primary),
                copy = %Said(copy),
                untold,
                "a copy was answered otherwise than its request"
            );
        }
    }
}

struct Copy {
    /// Where a change finds it.
    listed: Listed,
    heads: [http::request::Parts; 2],
    wire: Wire,
    to: Pinned,
    endpoint: Endpoint,
}

impl Copy {
    /// A copy of the request.
    ///
    /// # Errors
    /// Why no endpoint would get it.
    fn new(
        exchange: &Exchange,
        published: &Arc<Published>,
        mirror: &Mirror,
    ) -> Result<Self, Dropped> {
        let worker = &exchange.context.worker;
        let to = Pinned {
            published: Arc::clone(published),
            cluster: mirror.to,
        };
        let load = |endpoint| worker.load(to.cluster(), endpoint);
        let shares = published.shares_of(mirror.to);
        let draw = exchange.draw(to.cluster());
        let planned = plan(to.cluster(), shares, &load, draw);
        let attempt = capacity::first(&worker.shared, shares, planned)?;
        let endpoint = to.cluster().endpoint(attempt.endpoint).clone();
        let method = exchange.head.method.clone();
        let request = Open::Request(Rc::new((method, exchange.head.uri.clone())));
        let listed = (worker.registry).list_copy(exchange.entry(), request, &mirror.route);
        // Something may have been published since the request was let in.
        listed.settle(&worker.shared, published.generation, None);
        Ok(Self {
            listed,
            heads: [false, true].map(|is_h2| copy_head(exchange, &endpoint, mirror, is_h2)),
            wire: if endpoint.peer.is_some() {
                Wire::Negotiated
            } else {
                exchange.wire(&endpoint)
            },
            to,
            endpoint,
        })
    }

    /// Sends it and reads its answer away, so that its connection can be used again; says what was heard
    /// of that with `hashed` bytes of the body at most.
    async fn send(
        self,
        worker: &Rc<Worker>,
        body: Outgoing,
        hashed: Option<usize>,
    ) -> (&'static str, Option<Answer>) {
        let wanted = Wanted {
            wire: self.wire,
            care: Care::Copied,
            patience: Patience::Here,
            now: Instant::now(),
        };
        let leasing = (worker.pool).lease(worker, &self.to, &self.endpoint, wanted);
        let Ok(lease) = leasing.await else {
            return (Dropped::Unreachable.label(), None);
        };
        if let Some(peer) = &lease.facts.peer {
            let (endpoint, listed) = (&self.endpoint, &self.listed);
            listed.goes_to(&endpoint.backend, &endpoint.address, Some(peer));
            let generation = self.to.published.generation;
            listed.settle(&worker.shared, generation, Some(lease.credentials()));
        }
        let [h1, h2] = self.heads;
        let head = if lease.is_h2() { h2 } else { h1 };
        let request = http::Request::from_parts(head, body);
        let Ok((response, _stream)) = lease.send(worker, request).await else {
            return ("failed", None);
        };
        let (head, mut body) = response.into_parts();
        let mut hearing = hashed.map(|bytes_max| Hearing::new(&head, bytes_max));
        let mut ended = Ok(());
        while let Some(frame) = body.frame().await {
            match (frame, &mut hearing) {
                (Ok(frame), Some(hearing)) => {
                    if let Some(bytes) = frame.data_ref() {
                        hearing.data(bytes);
                    } else if let Some(trailers) = frame.trailers_ref() {
                        hearing.trailers(trailers);
                    }
                }
                (Ok(_), None) => {}
                (Err(error), _) => {
                    ended = Err(error);
                    break;
                }
            }
        }
        let answer = hearing.map(|hearing| match ended {
            Ok(()) => hearing.whole(),
            Err(_broken) => hearing.cut_short(),
        });
        let is_good = !head.status.is_server_error();
        (if is_good { "sent" } else { "failed" }, answer)
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
