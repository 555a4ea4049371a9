//! The life of a request: route -> authorize -> plan -> connect -> send -> answer -> account.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Method, Request, Response, Uri, Version as HttpVersion, header, request};
use hyper::body::{Body, Incoming};
use tokio::time::Instant;
use zeugma_core::authorize::{Asking, Evidence, Verdict, authorize, evidence};
use zeugma_core::identity::SpiffeId;
use zeugma_core::plan::{Attempt, plan};
use zeugma_core::retry::{Again, RequestLeft, ResponseSeen, Sender, Tried, again, is_idempotent};
use zeugma_core::route::{check_authority, check_authority_port, route_authority};
use zeugma_core::snapshot::{
    Cluster, Endpoint, EndpointIx, Failure, HttpVersion as EndpointVersion, ServiceIx,
};
use zeugma_core::verdict::Reason;

use super::body::{Held, Outgoing, Progress, Source};
use super::headers::{self, ZEUGMA_REASON};
use super::pool::{Lease, SendError, Wire};
use super::record::Record;
use super::{Context, Version, mirror, reply, upgrade};
use crate::account::{Closed, Destination, RequestFacts};
use crate::connection::{describe, destination, explain_denial};
use crate::runtime::Published;
use crate::upstream::{self, Pinned};

/// Times a request is sent anew because a pooled connection turned out to be closed.
const STALE_MAX: u32 = 3;

/// A request that is being answered.
pub(super) struct Exchange {
    pub(super) context: Rc<Context>,
    pub(super) head: request::Parts,
    pub(super) request_id: String,
    pub(super) is_grpc: bool,
    /// The identity handed on to whoever answers.
    pub(super) caller: Option<SpiffeId>,
    /// Whether a peer's gateway sent it: it has applied its own policy already.
    pub(super) from_gateway: bool,
    record: Record,
}

/// Answers one request, by an endpoint or by ourselves.
pub(super) async fn exchange(
    context: &Rc<Context>,
    request: Request<Incoming>,
) -> Response<Outgoing> {
    let published = context.worker.shared.published.load_full();
    let (head, incoming) = request.into_parts();
    let mut exchange = Exchange::begin(context, &published, head);
    let service = match exchange.route(&published) {
        Ok(service) => service,
        Err(reason) => return exchange.refuse(reason, None),
    };
    if let Err(reason) = exchange.authorize(&published, service) {
        return exchange.refuse(reason, None);
    }
    let target = published.snapshot.service(service);
    let Some(listener) = published.snapshot.listener(&context.listener) else {
        return exchange.refuse(Reason::Drained, None);
    };
    let Some(cluster) = destination(listener.role, target) else {
        return exchange.refuse(Reason::NoLocalEndpoint, None);
    };
    let to = Pinned {
        published: Arc::clone(&published),
        cluster,
    };
    // One with a body is answered as it is: the body would have to come before the other protocol.
    let may_upgrade = context.version == Version::H1 && incoming.is_end_stream();
    if may_upgrade && headers::upgrade(&exchange.head.headers).is_some() {
        let request = Request::from_parts(exchange.head.clone(), incoming);
        return upgrade::exchange(exchange, &to, request).await;
    }
    let source = Source::new(incoming, to.cluster().retries.buffer_bytes_max);
    exchange.record.counts(source.clone());
    mirror::start_all(&exchange, &published, target, &source);
    exchange.answer(&to, &source).await
}

impl Exchange {
    fn begin(context: &Rc<Context>, published: &Published, head: request::Parts) -> Self {
        let request_id = headers::request_id(&head.headers, || context.worker.draw());
        let is_grpc = headers::is_grpc(&head.headers) && context.version == Version::H2;
        let handed_on = headers::attested(&head.headers);
        let (caller, from_gateway) = match &context.identity {
            None => (None, false),
            Some(verified) => {
                match evidence(
                    &published.snapshot,
                    context.source.ip(),
                    verified,
                    handed_on.as_ref(),
                ) {
                    Evidence::Asserted { id, .. } => (Some(id.clone()), true),
                    Evidence::Verified(_) | Evidence::Network => (
                        Some(verified.clone()),
                        is_gateway(published, context, verified),
                    ),
                }
            }
        };
        let closed = Closed {
            listener: Arc::clone(&context.listener),
            source: context.source,
            generation: published.generation,
            caller: context.caller.clone(),
            tls: context.tls.clone(),
            service: None,
            destination: None,
            request: Some(RequestFacts {
                id: request_id.clone(),
                method: head.method.to_string(),
                authority: String::new(),
                path: head.uri.path().to_owned(),
                version: match context.version {
                    Version::H1 => "HTTP/1.1",
                    Version::H2 => "HTTP/2",
                },
                status: 0,
                attempts: 0,
            }),
            reason: Reason::Completed,
            detail: None,
            rule: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration: Duration::ZERO,
        };
        let record = Record::new(context, closed);
        let context = Rc::clone(context);
        Self {
            context,
            head,
            request_id,
            is_grpc,
            caller,
            from_gateway,
            record,
        }
    }

    /// Finds the service that the request's host names, within what the SNI allows.
    fn route(&mut self, published: &Published) -> Result<ServiceIx, Reason> {
        if self.head.method == Method::CONNECT {
            return Err(Reason::RequestMalformed);
        }
        let authority = headers::authority(&self.head).ok_or(Reason::AuthorityMissing)?;
        self.note(|_, request| request.authority.clone_from(&authority));
        let snapshot = &published.snapshot;
        let listener = snapshot
            .listener(&self.context.listener)
            .ok_or(Reason::Drained)?;
        let service = match (&self.context.sni_service, listener.only) {
            (Some(sni), None) => {
                let any_port = sni.any_port;
                let sni = if sni.generation == published.generation {
                    sni.ix
                } else {
                    let again = snapshot
                        .services
                        .iter()
                        .position(|service| service.name == sni.name && service.port == sni.port);
                    ServiceIx(again.ok_or(Reason::SniUnknown)?)
                };
                if any_port {
                    check_authority_port(snapshot, listener, sni, &authority)?
                } else {
                    check_authority(snapshot, listener, sni, &authority)?
                }
            }
            (_, Some(only)) => only,
            (None, None) => route_authority(snapshot, listener, &authority)?,
        };
        let name = Arc::clone(&snapshot.service(service).name);
        if let Some(closed) = self.record.facts() {
            closed.service = Some(name);
        }
        Ok(service)
    }

    fn authorize(&mut self, published: &Published, service: ServiceIx) -> Result<(), Reason> {
        let snapshot = &published.snapshot;
        let listener = snapshot
            .listener(&self.context.listener)
            .ok_or(Reason::Drained)?;
        let handed_on = headers::attested(&self.head.headers);
        let evidence = match &self.context.identity {
            None => Evidence::Network,
            Some(verified) => evidence(
                snapshot,
                self.context.source.ip(),
                verified,
                handed_on.as_ref(),
            ),
        };
        let asking = Asking {
            listener,
            source: self.context.source.ip(),
            evidence,
            method: Some(self.head.method.as_str()),
            path: Some(self.head.uri.path()),
        };
        let policy = &snapshot.service(service).policy;
        let mut denial = None;
        let (verdict, rule) = match authorize(snapshot, service, &asking) {
            Verdict::Allow { rule } => (Ok(()), policy.allow.get(rule)),
            Verdict::Deny {
                reason,
                rule,
                nearest,
            } => {
                denial = explain_denial(snapshot.service(service), nearest);
                (Err(reason), rule.and_then(|nth| policy.deny.get(nth)))
            }
        };
        let attested = match evidence {
            Evidence::Asserted { id, .. } => Some(id.to_string()),
            Evidence::Verified(_) | Evidence::Network => None,
        };
        let position = rule
            .and_then(|rule| rule.position.as_ref())
            .map(ToString::to_string);
        if let Some(closed) = self.record.facts() {
            closed.caller.attested = attested;
            closed.detail = denial;
            closed.rule = position;
        }
        verdict
    }

    /// Tries one endpoint after the other until one answers.
    async fn answer(mut self, to: &Pinned, source: &Source) -> Response<Outgoing> {
        let worker = Rc::clone(&self.context.worker);
        let cluster = to.cluster();
        worker.with_budget(cluster, |budget, now| budget.request(now));
        let load = |endpoint: EndpointIx| worker.load(cluster, endpoint);
        let (mut attempts, mut counted) = (0, 0);
        let mut failed: Option<Failed> = None;
        let shares = to.published.shares_of(to.cluster);
        for attempt in plan(cluster, shares, &load, worker.draw_for(cluster)) {
            if let Some(before) = &failed {
                match self.may_try_again(cluster, before.failure, source, counted) {
                    None => break,
                    Some(Again::Free) => {}
                    Some(Again::Counted) => counted += 1,
                }
                worker
                    .shared
                    .metrics
                    .retried(&cluster.route, before.failure.label());
            }
            attempts += 1;
            upstream::note_attempt(&worker, cluster, &attempt, attempts);
            let endpoint = cluster.endpoint(attempt.endpoint);
            let in_flight = worker.enter(&endpoint.key);
            match self.try_endpoint(to, &attempt, attempts, source).await {
                Ok((response, stream)) => {
                    let held = Held { in_flight, stream };
                    let Some(failure) = failure_in(endpoint, &response) else {
                        worker.observe(&endpoint.key, Ok(()));
                        return self.pass_on(response, held, endpoint.peer.is_some());
                    };
                    worker.observe(&endpoint.key, Err(failure));
                    let response = Some((response, held, attempt.endpoint));
                    failed = Some(Failed {
                        failure,
                        detail: String::new(),
                        response,
                    });
                }
                Err(TryError::Failed { failure, detail }) => {
                    worker.observe(&endpoint.key, Err(failure));
                    failed = Some(Failed {
                        failure,
                        detail,
                        response: None,
                    });
                }
                Err(TryError::Caller) => return self.refuse(Reason::DownstreamClosed, None),
            }
        }
        let Some(failed) = failed else {
            return self.refuse(upstream::nothing_healthy(&to.published, to.cluster), None);
        };
        if let Some((response, held, endpoint)) = failed.response
            && failed.failure != Failure::NoLocalEndpoint
        {
            let is_peer = cluster.endpoint(endpoint).peer.is_some();
            return self.pass_on(response, held, is_peer);
        }
        self.refuse(reason_of(failed.failure), Some(failed.detail))
    }

    /// Whether the request may be sent once more, and whether that counts against its attempts.
    fn may_try_again(
        &self,
        cluster: &Cluster,
        failure: Failure,
        source: &Source,
        counted: u32,
    ) -> Option<Again> {
        let tried = Tried {
            failure,
            method: Some(self.head.method.as_str()),
            counted,
            request: if source.can_repeat() {
                RequestLeft::Whole
            } else {
                RequestLeft::Gone
            },
            response: ResponseSeen::Nothing,
            sender: self.sender(),
        };
        self.context
            .worker
            .with_budget(cluster, |budget, now| {
                again(&cluster.retries, budget, &tried, now)
            })
            .ok()
    }

    pub(super) const fn sender(&self) -> Sender {
        if self.from_gateway {
            Sender::PeerGateway
        } else {
            Sender::Caller
        }
    }

    /// Sends the request to one endpoint, anew where a pooled connection had ended before.
    async fn try_endpoint(
        &mut self,
        to: &Pinned,
        attempt: &Attempt,
        nth: u32,
        source: &Source,
    ) -> Result<(Response<Incoming>, Option<super::pool::StreamCount>), TryError> {
        let worker = Rc::clone(&self.context.worker);
        let cluster = to.cluster();
        let endpoint = cluster.endpoint(attempt.endpoint);
        let began = Instant::now();
        let mut stale = 0;
        loop {
            let wire = self.wire(endpoint);
            let lease = match worker.pool.lease(&worker, to, endpoint, wire).await {
                Ok(lease) => lease,
                Err(error) => {
                    self.arrive(to, attempt, nth, None);
                    if let Some(rule) = error.refused_rule {
                        self.note(|closed, _| *closed.rule = Some(rule));
                    }
                    return Err(TryError::Failed {
                        failure: Failure::Connect,
                        detail: error.detail,
                    });
                }
            };
            self.arrive(to, attempt, nth, Some(&lease));
            let reused = lease.reused;
            let is_kept = reused && !lease.is_h2();
            let request = self.outgoing(endpoint, &lease, source.next_try());
            let sending = Box::pin(lease.send(&worker, request));
            let deadlines = Deadlines {
                began,
                response_headers: cluster.timeouts.response_headers,
                per_try: cluster.timeouts.per_try,
                idle: cluster.timeouts.idle,
            };
            match deadlines.hold(source, sending).await {
                Err(Late::Caller) => return Err(TryError::Caller),
                Err(Late::Endpoint) => {
                    return Err(TryError::Failed {
                        failure: Failure::Timeout,
                        detail: format!("no response from {} in time", endpoint.key),
                    });
                }
                Ok(Ok(sent)) => return Ok(sent),
                Ok(Err(_)) if source.has_failed() => return Err(TryError::Caller),
                Ok(Err(error)) if error.unsent && reused && stale < STALE_MAX => stale += 1,
                Ok(Err(error)) if self.met_a_close(&error, is_kept, source) && stale == 0 => {
                    stale += 1;
                }
                Ok(Err(error)) => {
                    return Err(TryError::Failed {
                        failure: error.failure,
                        detail: error.detail,
                    });
                }
            }
        }
    }

    /// Whether the endpoint may have closed a kept HTTP/1.1 connection before the request reached
    /// it, so that the request may go to it once more (RFC 9112 §9.3.1).
    fn met_a_close(&self, error: &SendError, is_kept: bool, source: &Source) -> bool {
        is_kept
            && error.failure == Failure::Reset
            && is_idempotent(self.head.method.as_str())
            && source.can_repeat()
    }

    /// What is spoken with an endpoint for this request.
    pub(super) fn wire(&self, endpoint: &Endpoint) -> Wire {
        if endpoint.peer.is_some() {
            return Wire::Negotiated;
        }
        let began_as_h2 = if self.from_gateway {
            headers::began_as_h2(&self.head.headers)
        } else {
            None
        };
        let h2 = match endpoint.version {
            EndpointVersion::H1 => false,
            EndpointVersion::H2 => true,
            EndpointVersion::Same => {
                self.is_grpc || began_as_h2.unwrap_or(self.context.version == Version::H2)
            }
        };
        if h2 { Wire::H2 } else { Wire::H1 }
    }

    /// The request as it leaves this hop.
    pub(super) fn outgoing_head(&self, endpoint: &Endpoint, is_h2: bool) -> request::Builder {
        let authority = headers::authority(&self.head).unwrap_or_default();
        let path = self.head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(path);
        if is_h2 {
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = Authority::try_from(authority.as_str()).ok();
        }
        let mut builder = Request::builder()
            .method(self.head.method.clone())
            .uri(Uri::from_parts(parts).unwrap_or_default())
            .version(if is_h2 {
                HttpVersion::HTTP_2
            } else {
                HttpVersion::HTTP_11
            });
        if let Some(out) = builder.headers_mut() {
            *out = self.head.headers.clone();
            headers::remove_hop_by_hop(out);
            out.remove(header::EXPECT);
            out.remove(header::HOST);
            out.remove(&ZEUGMA_REASON);
            if !is_h2 && let Ok(host) = HeaderValue::try_from(&authority) {
                out.insert(header::HOST, host);
            }
            if let Ok(id) = HeaderValue::try_from(&self.request_id) {
                out.insert(headers::REQUEST_ID, id);
            }
            let credentials = self.context.worker.shared.credentials.load();
            headers::hand_on(out, credentials.id(), self.caller.as_ref());
            if endpoint.peer.is_some() {
                // Our word on where the request began is the first one that the peer reads.
                out.remove(header::VIA);
                headers::add_via(out, self.head.version);
                for value in self.head.headers.get_all(header::VIA) {
                    out.append(header::VIA, value.clone());
                }
            }
        }
        builder
    }

    fn outgoing(&self, endpoint: &Endpoint, lease: &Lease, body: Outgoing) -> Request<Outgoing> {
        // Every part was valid in the request that came in.
        self.outgoing_head(endpoint, lease.is_h2())
            .body(body)
            .unwrap_or_else(|_invalid| Request::new(Outgoing::Empty))
    }

    /// Notes which endpoint is tried.
    pub(super) fn arrive(&mut self, to: &Pinned, attempt: &Attempt, nth: u32, at: Option<&Lease>) {
        let endpoint = to.cluster().endpoint(attempt.endpoint);
        let address = at.map_or_else(
            || endpoint.address.to_string(),
            |lease| lease.facts.address.to_string(),
        );
        let identity = at.and_then(|lease| lease.facts.identity.clone());
        let destination = describe(&to.published, to.cluster, attempt, address, identity, nth);
        self.arrived(destination, nth);
    }

    /// Notes the endpoint that was reached.
    pub(super) fn arrived(&mut self, destination: Destination, attempts: u32) {
        self.note(|closed, request| {
            *closed.destination = Some(destination);
            request.attempts = attempts;
        });
    }

    /// Adds to what is told of this request.
    pub(super) fn note(&mut self, tell: impl FnOnce(&mut NotedClosed<'_>, &mut RequestFacts)) {
        let Some(closed) = self.record.facts() else {
            return;
        };
        let Closed {
            destination,
            rule,
            detail,
            reason,
            request: Some(request),
            ..
        } = closed
        else {
            return;
        };
        tell(
            &mut NotedClosed {
                destination,
                rule,
                detail,
                reason,
            },
            request,
        );
    }

    /// Hands the endpoint's response to the caller.
    pub(super) fn pass_on(
        mut self,
        response: Response<Incoming>,
        held: Held,
        is_peer: bool,
    ) -> Response<Outgoing> {
        let (mut head, incoming) = response.into_parts();
        headers::remove_hop_by_hop(&mut head.headers);
        if !is_peer {
            head.headers.remove(&ZEUGMA_REASON);
        }
        head.version = self.head.version;
        let status = head.status.as_u16();
        self.note(|_, request| request.status = status);
        Response::from_parts(head, Outgoing::response(incoming, self.record, held))
    }

    /// Answers ourselves.
    pub(super) fn refuse(mut self, reason: Reason, detail: Option<String>) -> Response<Outgoing> {
        let response = reply::reply(reason, &self.request_id, self.is_grpc);
        let status = reply::status(reason).as_u16();
        self.note(|closed, request| {
            request.status = status;
            *closed.reason = reason;
            if detail.is_some() {
                *closed.detail = detail;
            }
        });
        self.record.body_ended(Ok(()));
        response
    }

    /// The record, for an answer that outlives the exchange.
    pub(super) fn into_record(mut self, status: http::StatusCode) -> Record {
        self.note(|_, request| request.status = status.as_u16());
        self.record
    }
}

/// What of a record an exchange adds to.
pub(super) struct NotedClosed<'a> {
    pub(super) destination: &'a mut Option<Destination>,
    pub(super) rule: &'a mut Option<String>,
    pub(super) detail: &'a mut Option<String>,
    pub(super) reason: &'a mut Reason,
}

enum TryError {
    Failed {
        failure: Failure,
        detail: String,
    },
    /// The caller's own body failed: nobody is left to answer.
    Caller,
}

struct Failed {
    failure: Failure,
    detail: String,
    response: Option<(Response<Incoming>, Held, EndpointIx)>,
}

struct Deadlines {
    began: Instant,
    response_headers: Duration,
    per_try: Option<Duration>,
    idle: Duration,
}

enum Late {
    /// The endpoint took too long to read the request or to answer it.
    Endpoint,
    /// The caller stopped sending its body.
    Caller,
}

impl Deadlines {
    /// Waits for the response's head: `response_headers` from the end of the request, or while the
    /// endpoint does not read it; `idle` while the caller sends none of it; `per_try` in all.
    async fn hold<T>(&self, source: &Source, sending: impl Future<Output = T>) -> Result<T, Late> {
        let mut sending = std::pin::pin!(sending);
        loop {
            let (since, patience, late) = match source.progress() {
                Progress::Ended(at) | Progress::AwaitsEndpoint(at) => {
                    (at, self.response_headers, Late::Endpoint)
                }
                Progress::AwaitsCaller(at) => (at, self.idle, Late::Caller),
            };
            let due = self.began.max(Instant::from_std(since)) + patience;
            let per_try = self.per_try.map(|per_try| self.began + per_try);
            // Looked at anew now and then: what is waited for changes under way.
            let look = due.min(Instant::now() + self.response_headers);
            let look = per_try.map_or(look, |per_try| look.min(per_try));
            // The sending is pinned outside of the loop; the other arm only waits.
            tokio::select! {
                sent = &mut sending => return Ok(sent),
                () = tokio::time::sleep_until(look) => {}
            }
            let now = Instant::now();
            if per_try.is_some_and(|per_try| now >= per_try) {
                return Err(Late::Endpoint);
            }
            if now >= due {
                let moved = match source.progress() {
                    Progress::Ended(at)
                    | Progress::AwaitsEndpoint(at)
                    | Progress::AwaitsCaller(at) => at != since,
                };
                if !moved {
                    return Err(late);
                }
            }
        }
    }
}

fn is_gateway(published: &Published, context: &Context, verified: &SpiffeId) -> bool {
    let snapshot = &published.snapshot;
    zeugma_core::authorize::peer_of(snapshot, context.source.ip(), verified).is_some_and(|ix| {
        snapshot
            .peer(ix)
            .ids
            .iter()
            .any(|pattern| pattern.matches(verified))
    })
}

/// The failure that a response is a sign of, if it is.
pub(super) fn failure_in(endpoint: &Endpoint, response: &Response<Incoming>) -> Option<Failure> {
    let headers = response.headers();
    let no_local_endpoint = Reason::NoLocalEndpoint.label();
    if endpoint.peer.is_some()
        && headers
            .get(&ZEUGMA_REASON)
            .is_some_and(|why| why == no_local_endpoint)
    {
        return Some(Failure::NoLocalEndpoint);
    }
    if headers.get("grpc-status").is_some_and(|code| code == "14") {
        return Some(Failure::Unavailable);
    }
    let status = response.status();
    status
        .is_server_error()
        .then(|| Failure::Status(status.as_u16()))
}

const fn reason_of(failure: Failure) -> Reason {
    match failure {
        Failure::Connect => Reason::ConnectFailed,
        Failure::Timeout => Reason::UpstreamTimeout,
        Failure::NoLocalEndpoint => Reason::NoHealthyEndpoint,
        Failure::RefusedStream | Failure::Reset | Failure::Status(_) | Failure::Unavailable => {
            Reason::UpstreamReset
        }
    }
}
