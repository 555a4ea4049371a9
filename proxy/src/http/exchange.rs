//! The life of a request: route -> authorize -> plan -> connect -> send -> answer -> account.

mod hedge;

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, ready};
use std::time::Duration;

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri,
    Version as HttpVersion, header, request,
};
use http_body::Body as _;
use tokio::time::{Instant, Sleep, sleep_until};
use zeugma_core::authorize::{Asking, Evidence, Verdict, authorize, evidence, gateway_of};
use zeugma_core::engine::{Headers, nothing_to_try};
use zeugma_core::identity::SpiffeId;
use zeugma_core::plan::{Attempt, plan};
use zeugma_core::retry::{
    Again, RequestLeft, ResponseSeen, Sender, Tried, again, is_idempotent, is_repeatable,
};
use zeugma_core::route::{check_authority, check_authority_port, route_authority};
use zeugma_core::shares::ClusterShares;
use zeugma_core::snapshot::{
    Cluster, Endpoint, EndpointIx, Failure, HttpVersion as EndpointVersion, Listener, Peer, Role,
    Service, ServiceIx, Snapshot,
};
use zeugma_core::time::Time;
use zeugma_core::verdict::Reason;

use self::hedge::Begun;
use super::body::{Held, Outgoing, Progress, Source};
use super::compare::Primary;
use super::expect::{Answered, Gate, Passing, expects_continue};
use super::h1;
use super::h2_client::StreamCount;
use super::headers::{self, Claim, Ids, Present, Said, TRACEPARENT, ZEUGMA_REASON};
use super::keepalive::{Pings, When};
use super::pool::{ConnectFailure, Lease, Patience, SendError, Turn, Wanted, Wire};
use super::record::Record;
use super::ruled::{self, Ruled};
use super::stream::Incoming;
use super::turns::Turns;
use super::unheard::Care;
use super::upgrade::Upgrade;
use super::{Context, Routed, Version, mirror, reply, upgrade};
use crate::account::{Closed, Destination, RequestFacts};
use crate::admission::{self, Counted};
use crate::capacity;
use crate::connection::{describe, explain_audit, explain_denial};
use crate::recheck::Entry;
use crate::runtime::{Polled, Published, unless_others_first};
use crate::tls::TlsPeer;
use crate::upstream::{self, Pinned};

/// Times a request is sent anew because a pooled connection turned out to be closed.
const STALE_MAX: u32 = 3;
/// Why a request goes on that was not sent to a quiet host, in metrics.
const QUIET: &str = "quiet";
/// Room for the headers that are added to a request.
const ADDED: usize = 6;

/// A request that is being answered.
pub(super) struct Exchange {
    pub(super) context: Rc<Context>,
    pub(super) head: request::Parts,
    /// What its headers have.
    present: Present,
    pub(super) ids: Rc<Ids>,
    pub(super) is_grpc: bool,
    /// The identity handed on to whoever answers.
    pub(super) caller: Option<SpiffeId>,
    /// Whether a peer's gateway sent it: it has applied its own policy already.
    pub(super) from_gateway: bool,
    /// The caller's connection, where it asks for another protocol on it.
    pub(super) upgrade: Option<Upgrade>,
    began: std::time::Instant,
    /// When the endpoint was asked that answers, connecting apart, where its time counts.
    asked_at: Option<Time>,
    /// A gateway whose word counts says who calls, but not so that it can be read.
    is_unreadable: bool,
    pub(super) record: Record,
    /// The copies that are told of the answer.
    compared: Option<Box<Primary>>,
    /// Where an endpoint's interim responses go.
    pub(super) passing: Option<Passing>,
}

/// Answers one request, by an endpoint or by ourselves.
pub(super) async fn exchange(
    context: &Rc<Context>,
    request: Request<Incoming>,
) -> Response<Outgoing> {
    let published = context.worker.shared.published.load_full();
    let present = request.body().present();
    let present = present.unwrap_or_else(|| Present::of(request.headers()));
    let upgrade = upgrade::asked_for(context.version, &request, present);
    let (head, incoming) = request.into_parts();
    let passing = incoming.passing();
    let asks = present.has(Present::EXPECT) && expects_continue(&head.headers);
    let gate = (asks && !incoming.is_end_stream()).then(Gate::default);
    // Boxed, for it is handed on to whoever answers.
    let mut exchange = Box::new(Exchange::begin(context, &published, head, present));
    exchange.upgrade = upgrade;
    exchange.passing = passing.or_else(|| exchange.head.extensions.remove().map(Passing::Across));
    if exchange.is_unreadable {
        return exchange.refuse(Reason::RequestMalformed, None);
    }
    let service = match exchange.route(&published) {
        Ok(service) => service,
        Err(reason) => return exchange.refuse(reason, None),
    };
    if let Err(reason) = exchange.authorize(&published, service) {
        return exchange.refuse(reason, None);
    }
    if exchange.upgrade.is_some() && !published.snapshot.service(service).is_upgraded {
        return exchange.refuse(Reason::NotAllowed, None);
    }
    // A caller that goes on asking until its connection is closed has no right to any more.
    if let Some(ending) = context.entry.cut_off() {
        return exchange.refuse(ending.reason, None);
    }
    let Some(listener) = published.listener(&context.origin.listener) else {
        return exchange.refuse(Reason::Drained, None);
    };
    let cluster = match exchange.choose(&published, listener, service) {
        Ok(cluster) => cluster,
        Err((reason, detail)) => return exchange.refuse(reason, detail),
    };
    let role = listener.role;
    let to = Pinned { published, cluster };
    match admission::request(&context.worker.shared, &to) {
        Ok(counted) => exchange.record.holds(counted),
        Err(reason) => return exchange.refuse(reason, None),
    }
    context.note_idle(to.cluster().policy.timeouts.idle);
    let source = Source::new(
        incoming,
        to.cluster().policy.retries.buffer_bytes_max,
        exchange.began,
    );
    if let Some(ruled) = exchange.ruled()
        && exchange.request_changes().is_some()
    {
        source.is_led_by(ruled.clone());
    }
    for of in exchange.held_to(service) {
        let policy = &to.published.snapshot.service(of).policy;
        source.is_judged_by(policy.headers_asked());
    }
    exchange.record.counts(source.clone());
    if let Some(gate) = gate {
        source.keep_back(gate);
    }
    if exchange.upgrade.is_none() {
        let target = to.published.snapshot.service(service);
        exchange.compared = mirror::start_all(&exchange, &to.published, target, &source);
    }
    let entry = Rc::clone(exchange.record.entry());
    let (ids, is_grpc) = (Rc::clone(&exchange.ids), exchange.is_grpc);
    // Dropped, it ends the try under way; its record says why.
    tokio::select! {
        biased;
        response = exchange.answer(&to, role, &source, None) => response,
        () = entry.cut() => {
            let reason = entry
                .ending()
                .map_or(Reason::NoLongerAllowed, |ending| ending.reason);
            reply::reply(reason, &ids.request, is_grpc)
        }
    }
}

impl Exchange {
    fn begin(
        context: &Rc<Context>,
        published: &Published,
        head: request::Parts,
        present: Present,
    ) -> Self {
        let ids = Rc::new(Ids {
            request: headers::request_id(&head.headers, present, || context.worker.draw()),
            trace: context.trace(&head.headers, present),
        });
        let is_grpc = context.version == Version::H2 && headers::is_grpc(&head.headers);
        // Nobody else's word counts.
        let claim = match &context.identity {
            Some(_) => headers::attested(&head.headers),
            None => Claim::Absent,
        };
        let (caller, from_gateway) = (context.identity.as_ref())
            .map_or((None, false), |verified| {
                caller_of(published, context, verified, &claim)
            });
        // What is asked on a stream of HTTP/2 by CONNECT is judged as the GET it stands for.
        let method = if head.method == Method::CONNECT {
            Method::GET
        } else {
            head.method.clone()
        };
        let asked = Rc::new((method, head.uri.clone()));
        let closed = Box::new(Closed {
            origin: Rc::clone(&context.origin),
            attested: None,
            generation: published.generation,
            service: None,
            destination: None,
            request: Some(RequestFacts {
                ids: Rc::clone(&ids),
                method: head.method.clone(),
                routed: None,
                asked: Rc::clone(&asked),
                version: context.version.text(),
                status: 0,
                attempts: 0,
                ruled: None,
            }),
            reason: Reason::Completed,
            detail: None,
            rule: None,
            bytes_sent: 0,
            bytes_received: 0,
            duration: Duration::ZERO,
        });
        let began = std::time::Instant::now();
        let record = Record::new(context, closed, asked, began);
        let attests = |verified| {
            peer_of_gateway(published, context, verified).is_some_and(|p| !p.attests.is_empty())
        };
        let is_unreadable =
            matches!(claim, Claim::Unreadable) && context.identity.as_ref().is_some_and(attests);
        let context = Rc::clone(context);
        Self {
            context,
            head,
            present,
            ids,
            is_grpc,
            caller,
            from_gateway,
            upgrade: None,
            began,
            is_unreadable,
            record,
            compared: None,
            asked_at: None,
            passing: None,
        }
    }

    /// Finds the service that the request's host names, within what the SNI allows.
    fn route(&mut self, published: &Published) -> Result<ServiceIx, Reason> {
        if (self.head.method == Method::CONNECT && self.upgrade.is_none())
            || !headers::has_target(&self.head)
        {
            return Err(Reason::RequestMalformed);
        }
        let authority = headers::authority(&self.head).ok_or(Reason::AuthorityMissing)?;
        // Callers keep to one on a connection, mostly.
        let before = self.context.routed.borrow().as_ref().map(Rc::clone);
        let known = before
            .filter(|one| one.generation == published.generation && *one.authority == *authority);
        let (routed, service) = match known {
            Some(routed) => {
                let service = routed.service.ok_or(Reason::AuthorityUnknown);
                (routed, service)
            }
            None => {
                let service = self.find(published, authority);
                let routed = Rc::new(Routed {
                    generation: published.generation,
                    service: service.ok(),
                    ..Routed::unknown(authority.into())
                });
                if service.is_ok() {
                    self.context.routed.replace(Some(Rc::clone(&routed)));
                }
                (routed, service)
            }
        };
        if let Some(request) = self.record.facts().and_then(|facts| facts.request.as_mut()) {
            request.routed = Some(routed);
        }
        let service = service?;
        let at = published.snapshot.service(service);
        let name = Arc::clone(&at.name);
        (self.record.entry()).is_of(&name, at.port);
        if let Some(closed) = self.record.facts() {
            closed.service = Some(name);
        }
        Ok(service)
    }

    /// The service that an authority stands for on this connection.
    fn find(&self, published: &Published, authority: &str) -> Result<ServiceIx, Reason> {
        let snapshot = &published.snapshot;
        let listener = published
            .listener(&self.context.origin.listener)
            .ok_or(Reason::Drained)?;
        match (&self.context.sni_service, listener.only) {
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
                    check_authority_port(snapshot, listener, sni, authority)
                } else {
                    check_authority(snapshot, listener, sni, authority)
                }
            }
            (_, Some(only)) => Ok(only),
            (None, None) => route_authority(snapshot, listener, authority),
        }
    }

    /// The method as rules know it: WebSocket by HTTP/2 has `CONNECT` in place of the `GET` of
    /// HTTP/1.1 (RFC 8441 §5).
    pub(super) const fn method(&self) -> &Method {
        match self.upgrade {
            Some(Upgrade::Stream) => &Method::GET,
            Some(Upgrade::Connection(_)) | None => &self.head.method,
        }
    }

    /// What the caller says of itself or of whom it calls for; nobody else's word counts.
    pub(super) fn claim(&self) -> Claim {
        match &self.context.identity {
            Some(_) => headers::attested(&self.head.headers),
            None => Claim::Absent,
        }
    }

    /// What policies are asked about it.
    pub(super) fn asking<'a>(
        &'a self,
        snapshot: &Snapshot,
        listener: &'a Listener,
        claim: &'a Claim,
        headers: Headers<'a>,
    ) -> Asking<'a> {
        let source = self.context.origin.source.ip();
        let evidence = match &self.context.identity {
            None => Evidence::Network,
            Some(verified) => evidence(snapshot, source, verified, claim.id()),
        };
        Asking {
            listener,
            source,
            evidence,
            sni: self.context.sni(),
            method: Some(self.method().as_str()),
            path: Some(self.head.uri.path()),
            headers: Some(headers),
        }
    }

    /// Keeps the headers for rechecks, where a rule of the service asks for some.
    pub(super) fn keep_headers(&self, of: Option<&Service>) {
        if of.is_some_and(|of| of.policy.asks_headers()) {
            self.record.entry().has_headers(&self.head.headers);
        }
    }

    fn authorize(&mut self, published: &Published, service: ServiceIx) -> Result<(), Reason> {
        let snapshot = &published.snapshot;
        let listener = published
            .listener(&self.context.origin.listener)
            .ok_or(Reason::Drained)?;
        let claim = self.claim();
        let all = &self.head.headers;
        let each = |name: &str, tell: &mut dyn FnMut(&[u8])| headers::each(all, name, tell);
        let asking = self.asking(snapshot, listener, &claim, Headers(&each));
        let policy = &snapshot.service(service).policy;
        let mut denial = None;
        let (verdict, rule) = match authorize(snapshot, service, &asking) {
            Verdict::Allow { rule } => (Ok(()), policy.allow.get(rule)),
            Verdict::Audit {
                reason,
                rule,
                nearest,
            } => {
                denial = Some(explain_audit(snapshot.service(service), reason, nearest));
                let metrics = &self.context.worker.shared.metrics;
                metrics.audited(&snapshot.service(service).name, reason);
                (Ok(()), rule.and_then(|nth| policy.deny.get(nth)))
            }
            Verdict::Deny {
                reason,
                rule,
                nearest,
            } => {
                denial = explain_denial(snapshot.service(service), nearest);
                (Err(reason), rule.and_then(|nth| policy.deny.get(nth)))
            }
        };
        let handed_on = match asking.evidence {
            Evidence::Asserted { id, .. } => Some(id),
            Evidence::Verified(_) | Evidence::Network => None,
        };
        self.record.entry().is_for(handed_on);
        self.keep_headers(Some(snapshot.service(service)));
        let attested = handed_on.map(|id| id.as_str().into());
        let on_list = (self.context.identity.iter().chain(handed_on)).find_map(|id| {
            let credentials = self.context.worker.shared.credentials.load();
            credentials.denied().position(id).map(Arc::from)
        });
        let position = rule.and_then(|rule| rule.position.as_ref());
        let position = position.map(|at| self.context.latest_rule.text(published.generation, at));
        let is_on_list = on_list.is_some();
        if let Some(closed) = self.record.facts() {
            closed.attested = attested;
            closed.detail = denial;
            closed.rule = on_list.or(position);
        }
        if is_on_list {
            return Err(Reason::IdentityDenied);
        }
        verdict
    }

    /// Tries one endpoint after the other until one answers; `before` says what other parts of a split
    /// made of it.
    #[expect(
        clippy::too_many_lines,
        reason = "one loop over what is tried, read top to bottom"
    )]
    async fn answer(
        mut self: Box<Self>,
        to: &Pinned,
        role: Role,
        source: &Source,
        before: Option<Box<Tries>>,
    ) -> Response<Outgoing> {
        let worker = Rc::clone(&self.context.worker);
        let (cluster, shares) = (to.cluster(), to.published.shares_of(to.cluster));
        self.count(to, shares, before.as_deref());
        let load = |endpoint: EndpointIx| worker.load(cluster, endpoint);
        let mut tries = before.map_or_else(Tries::default, |before| *before);
        let mut give_up = None;
        let planned = plan(cluster, shares, &load, self.draw(cluster));
        let mut turns = Turns::new(&worker.shared, shares, planned);
        while let Some((attempt, patience)) = turns.next() {
            if let Some(before) = &mut tries.failed {
                // What was published since may deny it, or the route that it is led to: whoever polls
                // this sees that only once it waits again.
                if let Some(ending) = self.entry().cut_off() {
                    return self.refuse(ending.reason, None);
                }
                let is_bad = attempt.is_last_resort(shares);
                let is_enough = is_bad && self.needs_no_last_resort(before, to, role);
                let limits = (&mut tries.counted, &mut give_up);
                if is_enough || !self.goes_on(to, before, source, limits) {
                    break;
                }
            }
            if !turns.begins(&attempt) {
                continue;
            }
            tries.attempts += 1;
            let nth = tries.attempts;
            upstream::note_attempt(&worker, cluster, &attempt, nth, &self.context.latest);
            let mut begun = Begun::new(&worker, cluster, attempt, (nth, patience));
            let tried = match self.hedged_after(cluster, &attempt) {
                None => (self.try_endpoint(to, &attempt, (nth, patience), source)).await,
                Some(after) => {
                    let (of, all) = ((to, source), (&mut turns, &mut tries));
                    let tried;
                    (begun, tried) = Box::pin(self.hedge(of, begun, after, all)).await;
                    tried
                }
            };
            let (attempt, began) = (begun.attempt, begun.began);
            let endpoint = cluster.endpoint(attempt.endpoint);
            let now_failed = match tried {
                Err(TryError::Quiet) => {
                    worker.failed(cluster, &endpoint.key, began);
                    (worker.shared.metrics).retried(&cluster.route, QUIET);
                    turns.was_quiet(attempt);
                    continue;
                }
                Err(TryError::Caller) => return self.refuse(Reason::DownstreamClosed, None),
                Err(TryError::Shed(reason)) => {
                    turns.was_not_sent(&attempt);
                    return self.refuse(reason, None);
                }
                Err(TryError::Failed(failed)) => failed,
                Ok((response, stream)) => {
                    let held = Held {
                        in_flight: begun.in_flight,
                        stream,
                        unasked: None,
                    };
                    match failure_in(endpoint, &response, self.upgrade.is_some()) {
                        None => {
                            // Before its outcome, which may be told at once.
                            let asked = self.asked_at.or(began).filter(|_| is_served(&response));
                            worker.answered(cluster, &endpoint.key, began, asked);
                            worker.observe(&endpoint.key, Ok(()));
                            return self.hand_over(to, response, source, held);
                        }
                        Some(failure) => {
                            worker.observe(&endpoint.key, Err(failure));
                            self.failed_by(failure, response, held)
                        }
                    }
                }
            };
            worker.failed(cluster, &endpoint.key, began);
            tries.failed = Some(now_failed.after(tries.failed));
        }
        let may_go_on = |before: &Failed| {
            let tried = self.tried(before.failure, source, tries.counted);
            before.is_paid || self.would_try_again(to, &tried)
        };
        if tries.failed.as_ref().is_none_or(may_go_on)
            && let Some(next) = self.next_part(to, role)
        {
            return self.answer_by(next, role, source, Box::new(tries)).await;
        }
        self.give_up(tries.failed, to, role, source)
    }

    /// An answer that another endpoint may better.
    fn failed_by(&mut self, failure: Failure, response: Response<Incoming>, held: Held) -> Failed {
        let facts = self.record.facts();
        let to = facts.and_then(|closed| closed.destination.clone());
        Failed::by(failure, response, held, (to, self.ruled().cloned()))
    }

    /// Whether nothing is sent to those that were found bad: one that answers or that may be at work on
    /// it is there, or there are other parts of a split, which come before them.
    fn needs_no_last_resort(&self, before: &Failed, to: &Pinned, role: Role) -> bool {
        !before.failure.is_unseen() || self.has_other_part(to, role)
    }

    /// What a plan of this cluster draws for the request, and for its copies.
    pub(super) fn draw(&self, cluster: &Cluster) -> u64 {
        let source = self.context.origin.source.ip();
        (self.context.worker).draw_for(cluster, source, Some(&self.head.headers))
    }

    /// Counts the request for the budget of its route, [`next_part`](Self::next_part) does for others; and
    /// as offered where it goes first.
    fn count(&self, to: &Pinned, shares: &ClusterShares, before: Option<&Tries>) {
        if before.is_none() {
            capacity::offer(shares);
            let shared = &self.context.worker.shared;
            to.budget().request(shared.time_of(self.began));
        }
    }

    /// As [`answer`](Self::answer), for another part of a split.
    fn answer_by(
        self: Box<Self>,
        to: Pinned,
        role: Role,
        source: &Source,
        before: Box<Tries>,
    ) -> Pin<Box<dyn Future<Output = Response<Outgoing>> + '_>> {
        Box::pin(async move { self.answer(&to, role, source, Some(before)).await })
    }

    /// Tells what came of a request that nobody answered as it should be.
    fn give_up(
        mut self: Box<Self>,
        failed: Option<Failed>,
        to: &Pinned,
        role: Role,
        source: &Source,
    ) -> Response<Outgoing> {
        match failed {
            None => {
                let reason = nothing_to_try(to.published.shares_of(to.cluster), role);
                self.refuse(reason, None)
            }
            Some(Failed {
                response: Some(answered),
                ..
            }) => {
                let LastAnswer {
                    response,
                    mut held,
                    destination,
                    ruled,
                } = *answered;
                // Others may have been tried since.
                self.note(|closed, request| {
                    *closed.destination = destination;
                    request.ruled = ruled;
                });
                held.unasked = source.gate().map(Answered);
                self.pass_on(response, held, to.cluster().policy.timeouts.idle)
            }
            Some(Failed {
                failure, detail, ..
            }) => self.refuse(reason_of(failure), Some(detail)),
        }
    }

    /// Gives the endpoint's answer to the caller: a response, or another protocol.
    fn hand_over(
        mut self: Box<Self>,
        to: &Pinned,
        response: Response<Incoming>,
        source: &Source,
        mut held: Held,
    ) -> Response<Outgoing> {
        // Only with an answer that the caller gets: another endpoint may still ask.
        held.unasked = source.gate().map(Answered);
        match self.upgrade.take() {
            Some(_)
                if response.status() == StatusCode::SWITCHING_PROTOCOLS
                    && !upgrade::has_read_our_key(&response) =>
            {
                let detail = "the endpoint's sec-websocket-accept is not of our key".to_owned();
                self.refuse(Reason::UpstreamProtocol, Some(detail))
            }
            Some(downstream) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let downstream = downstream.into_caller(source);
                upgrade::switch(*self, to, response, downstream, held)
            }
            // RFC 8441 §5: any 2xx would say that the stream is a WebSocket.
            Some(Upgrade::Stream)
                if response.status().is_success() && response.version() != HttpVersion::HTTP_2 =>
            {
                let detail = "the endpoint did not change to WebSocket".to_owned();
                self.refuse(Reason::UpstreamProtocol, Some(detail))
            }
            Some(_) | None => self.pass_on(response, held, to.cluster().policy.timeouts.idle),
        }
    }

    /// Whether the request goes to another endpoint after a failure, which is noted then.
    fn goes_on(
        &self,
        to: &Pinned,
        before: &mut Failed,
        source: &Source,
        (counted, give_up): (&mut u32, &mut Option<Instant>),
    ) -> bool {
        if before.is_paid {
            return true;
        }
        let (cluster, failure) = (to.cluster(), before.failure);
        // Nothing else limits attempts that cost an endpoint nothing.
        let now = Instant::now();
        let until = || now + cluster.connect_budget();
        if failure.is_unseen() && now >= *give_up.get_or_insert_with(until) {
            return false;
        }
        match self.may_try_again(to, failure, source, *counted) {
            None => return false,
            Some(Again::Free) => {}
            Some(Again::Counted) => *counted += 1,
        }
        let metrics = &self.context.worker.shared.metrics;
        metrics.retried(&cluster.route, failure.label());
        before.is_paid = true;
        true
    }

    /// Whether the request may be sent once more, and whether that counts against its attempts.
    fn may_try_again(
        &self,
        to: &Pinned,
        failure: Failure,
        source: &Source,
        counted: u32,
    ) -> Option<Again> {
        let tried = self.tried(failure, source, counted);
        let now = self.context.worker.shared.now();
        again(&self.retries(to.cluster()), to.budget(), &tried, now).ok()
    }

    /// A try that failed so.
    fn tried(&self, failure: Failure, source: &Source, counted: u32) -> Tried<'_> {
        Tried {
            failure,
            method: Some(self.method().as_str()),
            counted,
            request: if source.can_repeat() {
                RequestLeft::Whole
            } else {
                RequestLeft::Gone
            },
            response: ResponseSeen::Nothing,
            sender: self.sender(),
        }
    }

    /// Where a change finds it.
    pub(super) const fn entry(&self) -> &Rc<Entry> {
        self.record.entry()
    }

    pub(super) const fn sender(&self) -> Sender {
        if self.from_gateway {
            Sender::PeerGateway
        } else {
            Sender::Caller
        }
    }

    /// The connection to an endpoint that it wants.
    fn wanted(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        patience: Patience,
        now: Instant,
    ) -> Wanted {
        let is_repeatable = is_repeatable(&self.retries(cluster), self.method().as_str());
        Wanted {
            wire: self.wire(endpoint),
            care: if is_repeatable {
                Care::Repeatable
            } else {
                Care::Once
            },
            patience,
            now: now.into_std(),
        }
    }

    /// Sends the request to one endpoint, anew where a pooled connection had ended before.
    async fn try_endpoint(
        &mut self,
        to: &Pinned,
        attempt: &Attempt,
        (nth, patience): (u32, Patience),
        source: &Source,
    ) -> Result<(Response<Incoming>, Option<StreamCount>), TryError> {
        let worker = Rc::clone(&self.context.worker);
        let cluster = to.cluster();
        let endpoint = cluster.endpoint(attempt.endpoint);
        // The first try begins with the request.
        let began = if nth == 1 {
            Instant::from_std(self.began)
        } else {
            Instant::now()
        };
        if self.upgrade.is_some() && !self.tunnels_on_stream(endpoint) {
            let response = Box::pin(upgrade::try_endpoint(self, to, attempt, nth)).await?;
            return Ok((response, None));
        }
        let mut stale = 0;
        self.asked_at = None;
        loop {
            let now = if stale == 0 { began } else { Instant::now() };
            let wanted = self.wanted(cluster, endpoint, patience, now);
            let lease = match worker.pool.at_once(&worker, to, endpoint, wanted) {
                Some(lease) => lease,
                None => Box::pin(worker.pool.lease(&worker, to, endpoint, wanted))
                    .await
                    .map_err(|failure| self.unleased(to, attempt, nth, failure))?,
            };
            if self.upgrade.is_some() && !lease.takes_extended_connect() {
                drop(lease);
                let response = Box::pin(upgrade::try_endpoint(self, to, attempt, nth)).await?;
                return Ok((response, None));
            }
            self.asked_at = worker.begins(cluster);
            self.arrive(to, attempt, nth, Some(&lease));
            let reused = lease.reused;
            let is_kept = reused && !lease.is_h2();
            let (response_headers, per_try) = self.timeouts(cluster);
            let deadlines = Deadlines {
                began,
                response_headers,
                per_try,
                idle: cluster.policy.timeouts.idle,
            };
            let timer = &self.context.timer;
            let sent = match lease.into_turn() {
                Ok(mut turn) => {
                    self.begin_turn(endpoint, &mut turn, source);
                    deadlines.hold(timer, source, turn.response(&worker)).await
                }
                Err(place) => {
                    let request = self.for_stream(endpoint, source);
                    let sending = Box::pin(place.send(request));
                    let sent = deadlines.hold(timer, source, sending).await;
                    sent.map(|sent| sent.map(|(response, stream)| (response, Some(stream))))
                }
            };
            match sent {
                Err(Late::Caller) => return Err(TryError::Caller),
                Err(Late::Endpoint) => {
                    worker.observe(&endpoint.key, Err(Failure::Timeout));
                    let detail = format!("no response from {} in time", endpoint.key);
                    return Err(TryError::untold(Failure::Timeout, detail));
                }
                Ok(Ok(sent)) => return Ok(sent),
                Ok(Err(_)) if source.has_failed() => return Err(TryError::Caller),
                // RFC 9113 §8.7: it was not processed. A fresh lease knows what the endpoint takes.
                Ok(Err(error))
                    if error.failure == Failure::RefusedStream
                        && source.can_repeat()
                        && stale < STALE_MAX =>
                {
                    stale += 1;
                }
                Ok(Err(error)) if self.met_a_close(&error, is_kept, source) && stale == 0 => {
                    stale += 1;
                }
                Ok(Err(error)) => {
                    worker.observe(&endpoint.key, Err(error.failure));
                    return Err(TryError::untold(error.failure, error.detail));
                }
            }
        }
    }

    /// Tells of an endpoint to which there is no connection.
    fn unleased(
        &mut self,
        to: &Pinned,
        attempt: &Attempt,
        nth: u32,
        failure: ConnectFailure,
    ) -> TryError {
        if let Some(reason) = failure.shed {
            return TryError::Shed(reason);
        }
        if failure.is_quiet {
            if failure.is_first_told {
                let endpoint = to.cluster().endpoint(attempt.endpoint);
                (self.context.worker).observe(&endpoint.key, Err(Failure::Connect));
            }
            return TryError::Quiet;
        }
        self.arrive(to, attempt, nth, None);
        self.note_refused(failure.refused_rule);
        if failure.is_first_told {
            let endpoint = to.cluster().endpoint(attempt.endpoint);
            (self.context.worker).observe(&endpoint.key, Err(Failure::Connect));
        }
        TryError::untold(Failure::Connect, failure.detail)
    }

    /// Whether the endpoint may have closed a kept HTTP/1.1 connection before the request reached
    /// it, so that the request may go to it once more (RFC 9112 §9.3.1).
    fn met_a_close(&self, error: &SendError, is_kept: bool, source: &Source) -> bool {
        is_kept
            && error.failure == Failure::Reset
            && is_idempotent(self.method().as_str())
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

    /// Whether WebSocket goes on to this endpoint on a stream of HTTP/2: as it came, where the
    /// endpoint speaks it whatever else is asked for (others rarely do so for WebSocket).
    fn tunnels_on_stream(&self, endpoint: &Endpoint) -> bool {
        matches!(self.upgrade, Some(Upgrade::Stream))
            && (endpoint.peer.is_some() || endpoint.version == EndpointVersion::H2)
    }

    /// The request as it leaves this hop.
    pub(super) fn outgoing_head(&self, endpoint: &Endpoint, is_h2: bool) -> request::Parts {
        let authority = (self.other_host(endpoint))
            .unwrap_or_else(|| headers::authority(&self.head).unwrap_or_default());
        let path = self.head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(path);
        if is_h2 {
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = match self.head.uri.authority() {
                Some(named) if named.as_str() == authority => Some(named.clone()),
                Some(_) | None => Authority::try_from(authority).ok(),
            };
        }
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = self.method().clone();
        head.uri = Uri::from_parts(parts).unwrap_or_default();
        head.version = if is_h2 {
            HttpVersion::HTTP_2
        } else {
            HttpVersion::HTTP_11
        };
        head.headers = self.outgoing_headers(endpoint, is_h2);
        head
    }

    fn outgoing_headers(&self, endpoint: &Endpoint, is_h2: bool) -> HeaderMap {
        let mut out = HeaderMap::with_capacity(self.head.headers.len() + ADDED);
        self.each_outgoing(endpoint, is_h2, |name, value| {
            out.append(name.clone(), value.to_value());
        });
        out
    }

    /// The headers of the request as it leaves this hop, one by one.
    fn each_outgoing(
        &self,
        endpoint: &Endpoint,
        is_h2: bool,
        mut tell: impl FnMut(&HeaderName, Said<'_>),
    ) {
        let headers = &self.head.headers;
        let has = |one| self.present.has(one);
        let named = if has(Present::CONNECTION) {
            headers::named_by_connection(headers)
        } else {
            Vec::new()
        };
        let to_peer = endpoint.peer.is_some();
        let splits_cookies = !is_h2
            && has(Present::COOKIE)
            && headers.get_all(header::COOKIE).iter().nth(1).is_some();
        let trace = Some(&self.ids.trace).filter(|trace| trace.is_said_anew());
        // It was routed by the one host that it names (RFC 9112 §3.2.2: the target's wins).
        let other = self.other_host(endpoint);
        let host_goes_on = !is_h2 && other.is_none() && self.head.uri.authority().is_none();
        // Most of all headers are none of these, which one look at the name tells.
        let passes = |name: &HeaderName| match name.as_str() {
            "host" => host_goes_on,
            // What is said anew below, and what is between gateways.
            "expect" | "x-request-id" | "x-forwarded-client-cert" | headers::REASON => false,
            name if headers::ends_at_hop(name) => false,
            "traceparent" => trace.is_none() && !named.contains(name),
            // Of a trace that goes on, which one that we begin does not: that is never sampled.
            "tracestate" => {
                trace.is_none_or(|trace| headers::is_sampled(trace.parent().as_bytes()))
                    && !named.contains(name)
            }
            headers::MIRROR => self.from_gateway && !named.contains(name),
            "via" => !to_peer && !named.contains(name),
            "cookie" => !splits_cookies && !named.contains(name),
            // Once below: HTTP/1.1 frames the body by it.
            "content-length" => is_h2,
            _ => !named.contains(name),
        };
        if !is_h2 && !host_goes_on {
            let own = || headers::authority(&self.head).unwrap_or_default();
            if let Ok(host) = HeaderValue::try_from(other.unwrap_or_else(own)) {
                tell(&header::HOST, Said::Value(&host));
            }
        }
        let changes = self.request_changes();
        let keeps = |name: &str| changes.is_none_or(|changes| changes.keeps(name));
        for (name, value) in headers {
            if passes(name) && keeps(name.as_str()) {
                tell(name, Said::Value(value));
            }
        }
        if let Some(changes) = changes {
            let more = changes.set.iter().chain(&changes.add);
            for (name, value) in more.filter_map(ruled::header) {
                tell(&name, Said::Value(&value));
            }
        }
        if !is_h2
            && has(Present::CONTENT_LENGTH)
            && headers::content_length(headers).is_some()
            && let Some(length) = headers.get(header::CONTENT_LENGTH)
        {
            tell(&header::CONTENT_LENGTH, Said::Value(length));
        }
        if has(Present::TE) && headers::takes_trailers(headers) {
            // gRPC needs it (RFC 9110 §10.1.4).
            tell(&header::TE, Said::Text(b"trailers"));
        }
        if splits_cookies
            && !named.contains(&header::COOKIE)
            && keeps(header::COOKIE.as_str())
            && let Some(joined) = headers::joined_cookies(headers)
        {
            tell(&header::COOKIE, Said::Value(&joined));
        }
        self.each_of_ours(endpoint, &named, &mut tell);
    }

    /// What the gateway says itself.
    fn each_of_ours(
        &self,
        endpoint: &Endpoint,
        named: &[HeaderName],
        tell: &mut impl FnMut(&HeaderName, Said<'_>),
    ) {
        let trace = Some(&self.ids.trace).filter(|trace| trace.is_said_anew());
        if let Some(trace) = trace {
            tell(&TRACEPARENT, trace.parent().into());
        }
        tell(&headers::REQUEST_ID, (&self.ids.request).into());
        if let Some(caller) = &self.caller {
            // Whatever the caller sent, this is the one element that we vouch for.
            let credentials = self.context.worker.shared.credentials.load();
            let us = credentials.id();
            if let Some(value) = us.and_then(|us| headers::handed_on(us, caller)) {
                tell(&headers::XFCC, Said::Value(&value));
            }
        }
        if endpoint.peer.is_some() {
            // Our word on where the request began is the first one that the peer reads.
            tell(&header::VIA, Said::Value(&headers::via(self.head.version)));
            if !named.contains(&header::VIA) {
                for value in self.head.headers.get_all(header::VIA) {
                    tell(&header::VIA, Said::Value(value));
                }
            }
        }
    }

    /// Begins the request on an HTTP/1.1 connection: written, without a map of its headers.
    fn begin_turn(&self, endpoint: &Endpoint, turn: &mut Turn, source: &Source) {
        let gate = source.gate();
        let asks = gate.is_some();
        let headers = &self.head.headers;
        let asked = h1::Asked {
            to_head: self.head.method == Method::HEAD,
            length: if self.present.has(Present::CONTENT_LENGTH) {
                headers::content_length(headers)
            } else {
                None
            },
            headers,
            passing: self.passing.as_ref(),
        };
        turn.begin(asked, source.next_try(), gate, |out| {
            h1::write_request_line(out, self.method(), &self.head.uri);
            self.each_outgoing(endpoint, false, |name, value| {
                h1::write_header(out, name.as_str(), value.as_bytes());
            });
            if asks {
                h1::write_header(out, header::EXPECT.as_str(), b"100-continue");
            }
        });
    }

    /// The request for a stream of HTTP/2.
    fn for_stream(&self, endpoint: &Endpoint, source: &Source) -> Request<Outgoing> {
        let head = self.outgoing_head(endpoint, true);
        let mut request = Request::from_parts(head, source.next_try());
        if let Some(gate) = source.gate() {
            let expect = HeaderValue::from_static("100-continue");
            request.headers_mut().insert(header::EXPECT, expect);
            request.extensions_mut().insert(gate);
        }
        if let Some(passing) = &self.passing {
            request.extensions_mut().insert(passing.across());
        }
        if self.upgrade.is_some() {
            upgrade::ask_on_stream(&mut request);
        }
        request
    }

    /// Notes which endpoint is tried.
    pub(super) fn arrive(&mut self, to: &Pinned, attempt: &Attempt, nth: u32, at: Option<&Lease>) {
        let peer = at.and_then(|lease| lease.facts.peer.as_ref());
        self.goes_to(to, attempt, peer, at.map(Lease::credentials));
        let destination = if let Some(lease) = at {
            lease.facts.destination(to, attempt, nth)
        } else {
            let endpoint = to.cluster().endpoint(attempt.endpoint);
            let address = endpoint.address.to_string().into();
            describe(&to.published, to.cluster, attempt, address, None, nth)
        };
        self.arrived(destination, nth);
    }

    /// Notes the endpoint's certificate, verified with `credentials`, for rechecks.
    pub(super) fn goes_to(
        &self,
        to: &Pinned,
        attempt: &Attempt,
        peer: Option<&Arc<TlsPeer>>,
        credentials: Option<u64>,
    ) {
        let endpoint = to.cluster().endpoint(attempt.endpoint);
        let entry = self.record.entry();
        entry.goes_to(&endpoint.backend, &endpoint.address, peer);
        if peer.is_some() {
            // It was verified some awaits ago.
            let shared = &self.context.worker.shared;
            match credentials {
                Some(_) => entry.settle(shared, to.published.generation, credentials),
                None => entry.settle_now(shared),
            }
        }
    }

    /// Notes the endpoint that was reached.
    pub(super) fn arrived(&mut self, destination: Rc<Destination>, attempts: u32) {
        self.note(|closed, request| {
            *closed.destination = Some(destination);
            request.attempts = attempts;
        });
    }

    /// Notes the rule that an endpoint's certificate breaks.
    pub(super) fn note_refused(&mut self, rule: Option<String>) {
        if rule.is_some() {
            self.note(|closed, _| *closed.rule = rule.map(Arc::from));
        }
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
    fn pass_on(
        mut self: Box<Self>,
        response: Response<Incoming>,
        held: Held,
        idle: Duration,
    ) -> Response<Outgoing> {
        let (mut head, incoming) = response.into_parts();
        if let Some(compared) = &mut self.compared {
            compared.begins(&head);
        }
        let present = incoming.present();
        let present = present.unwrap_or_else(|| Present::of(&head.headers));
        if present.has(Present::HOP_BY_HOP) {
            headers::remove_hop_by_hop(&mut head.headers);
        }
        if present.has(Present::ZEUGMA_REASON) {
            // It is between gateways; ours to the calling one is made by `reply`.
            head.headers.remove(&ZEUGMA_REASON);
        }
        self.change_response(&mut head.headers);
        head.version = self.head.version;
        let status = head.status.as_u16();
        self.note(|_, request| request.status = status);
        let body = Outgoing::response(incoming, self.record, held, idle, self.compared);
        Response::from_parts(head, body)
    }

    /// Answers ourselves.
    pub(super) fn refuse(mut self, reason: Reason, detail: Option<String>) -> Response<Outgoing> {
        let mut response = reply::reply(reason, &self.ids.request, self.is_grpc);
        if self.head.method == Method::HEAD {
            reply::drop_body(&mut response);
        }
        if self.from_gateway && reason == Reason::ConnectFailed {
            // No endpoint saw the request either: the calling gateway may try any method elsewhere.
            reply::tell_no_local_endpoint(&mut response);
        } else if self.from_gateway && reason.is_shed() {
            reply::tell(&mut response, reason);
        }
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

    /// The rule that it is for, where its route has some.
    pub(super) fn ruled(&self) -> Option<&Ruled> {
        self.record.request()?.ruled.as_ref()
    }

    /// Holds a place in the route that the request goes to.
    pub(super) fn holds(&mut self, counted: Counted) {
        self.record.holds(counted);
    }

    /// The record, for an answer that outlives the exchange.
    pub(super) fn into_record(mut self, status: StatusCode) -> Record {
        self.note(|_, request| request.status = status.as_u16());
        self.record
    }
}

/// What of a record an exchange adds to.
pub(super) struct NotedClosed<'a> {
    pub(super) destination: &'a mut Option<Rc<Destination>>,
    pub(super) rule: &'a mut Option<Arc<str>>,
    pub(super) detail: &'a mut Option<String>,
    pub(super) reason: &'a mut Reason,
}

pub(super) enum TryError {
    Failed(Failed),
    /// The caller's own body failed: nobody is left to answer.
    Caller,
    /// A limit of ours: no endpoint was asked.
    Shed(Reason),
    /// The endpoint's host is quiet: nothing was sent to it.
    Quiet,
}

impl TryError {
    /// A failure without a response that could be passed on.
    pub(super) const fn untold(failure: Failure, detail: String) -> Self {
        Self::Failed(Failed {
            failure,
            detail,
            response: None,
            is_paid: false,
        })
    }
}

/// What became of a request so far.
#[derive(Default)]
struct Tries {
    attempts: u32,
    /// Extra tries that count.
    counted: u32,
    failed: Option<Failed>,
}

pub(super) struct Failed {
    failure: Failure,
    detail: String,
    /// What the caller gets if no other endpoint answers better.
    response: Option<Box<LastAnswer>>,
    /// Whether the try after it was allowed, and is still to be made: nothing was sent since, for want
    /// of room or because a host is quiet.
    is_paid: bool,
}

/// An answer that another endpoint may better.
struct LastAnswer {
    response: Response<Incoming>,
    held: Held,
    /// Whose it is.
    destination: Option<Rc<Destination>>,
    ruled: Option<Ruled>,
}

impl Failed {
    fn by(
        failure: Failure,
        response: Response<Incoming>,
        held: Held,
        (destination, ruled): (Option<Rc<Destination>>, Option<Ruled>),
    ) -> Self {
        let is_answer = matches!(
            failure,
            Failure::Status(_) | Failure::Unavailable | Failure::Grpc(_) | Failure::RefusedStream
        );
        let detail = format!("answered {}", response.status());
        Self {
            failure,
            detail,
            response: is_answer.then(|| {
                Box::new(LastAnswer {
                    response,
                    held,
                    destination,
                    ruled,
                })
            }),
            is_paid: false,
        }
    }

    /// This, after what failed before: an answer of that is better than none.
    fn after(mut self, before: Option<Self>) -> Self {
        if self.response.is_none() {
            self.response = before.and_then(|before| before.response);
        }
        self
    }
}

struct Deadlines {
    began: Instant,
    response_headers: Duration,
    per_try: Option<Duration>,
    idle: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Late {
    /// The endpoint took too long to read the request or to answer it.
    Endpoint,
    /// The caller stopped sending its body.
    Caller,
}

impl Deadlines {
    /// Waits for the response's head: `response_headers` from the end of the request, or while the
    /// endpoint does not read it; `idle` while the caller sends none of it; `per_try` in all.
    ///
    /// The timer is the connection's, and is left running for its next request: to set one costs more
    /// than the rest of this.
    async fn hold<T>(
        &self,
        timer: &Timer,
        source: &Source,
        sending: impl Future<Output = T>,
    ) -> Result<T, Late> {
        let mut sending = std::pin::pin!(sending);
        let mut sleep = timer.take();
        let mut now = self.began;
        let mut waits = self.waits(source, now);
        // Put there by whichever poll it comes of: handed up through each of them, it would be moved
        // by each.
        let mut held = Err(Late::Endpoint);
        let until_held = std::future::poll_fn(|cx| {
            let poll = || sending.as_mut().poll(cx).map(|sent| held = Ok(sent));
            match unless_others_first(poll) {
                Polled::Ready(()) => return Poll::Ready(()),
                Polled::OthersFirst => return Poll::Pending,
                Polled::Pending => {}
            }
            loop {
                let sleep = sleep.get_or_insert_with(|| Box::pin(sleep_until(waits.look)));
                if sleep.deadline() > waits.look {
                    sleep.as_mut().reset(waits.look);
                }
                ready!(sleep.as_mut().poll(cx));
                now = Instant::now();
                if now >= waits.look {
                    if let Some(late) = self.is_late(source, &waits, now) {
                        held = Err(late);
                        return Poll::Ready(());
                    }
                    waits = self.waits(source, now);
                }
                sleep.as_mut().reset(waits.look);
            }
        });
        until_held.await;
        timer.replace(sleep);
        held
    }

    /// What is waited for, from `now` on.
    fn waits(&self, source: &Source, now: Instant) -> Waits {
        let (since, patience, late) = match source.progress() {
            Progress::Ended(at) | Progress::AwaitsEndpoint(at) => {
                (at, self.response_headers, Late::Endpoint)
            }
            Progress::AwaitsCaller(at) => (at, self.idle, Late::Caller),
        };
        let due = self.began.max(Instant::from_std(since)) + patience;
        // Looked at anew now and then: what is waited for changes under way.
        let look = due.min(now + self.response_headers);
        let per_try = self.per_try.map(|per_try| self.began + per_try);
        Waits {
            since,
            due,
            late,
            look: per_try.map_or(look, |per_try| look.min(per_try)),
        }
    }

    fn is_late(&self, source: &Source, waits: &Waits, now: Instant) -> Option<Late> {
        if self
            .per_try
            .is_some_and(|per_try| now >= self.began + per_try)
        {
            return Some(Late::Endpoint);
        }
        let (Progress::Ended(at) | Progress::AwaitsEndpoint(at) | Progress::AwaitsCaller(at)) =
            source.progress();
        (now >= waits.due && at == waits.since).then_some(waits.late)
    }
}

/// What a try waits for.
#[derive(Debug)]
struct Waits {
    since: std::time::Instant,
    due: Instant,
    late: Late,
    /// When it is looked at.
    look: Instant,
}

/// The timer of a connection, while no request of it has it.
pub(crate) type Timer = RefCell<Option<Pin<Box<Sleep>>>>;

/// When the caller of a connection is asked whether it is there, if it is a peer's gateway.
pub(super) fn asking_peer(published: &Published, context: &Context) -> Option<Pings> {
    let peer = peer_of_gateway(published, context, context.identity.as_ref()?)?;
    Some(Pings {
        interval: peer.keepalive_ping,
        timeout: peer.keepalive_timeout,
        when: When::Always,
    })
}

/// The peer whose gateway a verified caller is.
fn peer_of_gateway<'a>(
    published: &'a Published,
    context: &Context,
    verified: &SpiffeId,
) -> Option<&'a Peer> {
    let snapshot = &published.snapshot;
    Some(snapshot.peer(gateway_of(snapshot, context.origin.source.ip(), verified)?))
}

/// Who calls, whoever hands it on, and whether a peer's gateway sent it.
fn caller_of(
    published: &Published,
    context: &Context,
    verified: &SpiffeId,
    claim: &Claim,
) -> (Option<SpiffeId>, bool) {
    let from = context.origin.source.ip();
    match evidence(&published.snapshot, from, verified, claim.id()) {
        Evidence::Asserted { id, .. } => (Some(id.clone()), true),
        Evidence::Verified(_) | Evidence::Network => {
            let is_gateway = peer_of_gateway(published, context, verified).is_some();
            (Some(verified.clone()), is_gateway)
        }
    }
}

/// Whether an answer says how long the endpoint takes for its work: to refuse is fast.
fn is_served(response: &Response<Incoming>) -> bool {
    let grpc = response.headers().get("grpc-status");
    response.status().as_u16() < 400 && grpc.is_none_or(|status| status == "0")
}

/// The failure that a response is a sign of, if it is.
fn failure_in(
    endpoint: &Endpoint,
    response: &Response<Incoming>,
    asks_upgrade: bool,
) -> Option<Failure> {
    let (status, headers) = (response.status(), response.headers());
    if status == StatusCode::SWITCHING_PROTOCOLS {
        // RFC 9110 §15.2.2: only to what was asked for. Anything else would be a way around us.
        let agreed = asks_upgrade && headers::upgrades_to_websocket(headers);
        return (!agreed).then_some(Failure::Reset);
    }
    let present = response.body().present();
    let present = present.unwrap_or_else(|| Present::of(headers));
    // Of others than 200 the status counts (gRPC's `http-grpc-status-mapping.md`); 14 says the same, and a
    // peer's gateway says it so.
    let grpc = if present.has(Present::GRPC_STATUS) && !asks_upgrade {
        headers.get("grpc-status").map(HeaderValue::as_bytes)
    } else {
        None
    };
    let unavailable = grpc == Some(b"14");
    if endpoint.peer.is_some() && (status == StatusCode::SERVICE_UNAVAILABLE || unavailable) {
        let why = headers.get(&ZEUGMA_REASON).map(HeaderValue::as_bytes);
        let is = |reason: Reason| why == Some(reason.label().as_bytes());
        if is(Reason::NoLocalEndpoint) {
            return Some(Failure::NoLocalEndpoint);
        }
        // Its limits, not its health: to be tried elsewhere as a refused stream is.
        if Reason::SHED.into_iter().any(is) {
            return Some(Failure::RefusedStream);
        }
    }
    if unavailable {
        return Some(Failure::Unavailable);
    }
    match grpc.filter(|_| status == StatusCode::OK) {
        // Those that `on` can name; of others the endpoint has done what was asked.
        Some(b"1") => Some(Failure::Grpc(1)),
        Some(b"4") => Some(Failure::Grpc(4)),
        Some(b"8") => Some(Failure::Grpc(8)),
        Some(b"13") => Some(Failure::Grpc(13)),
        Some(_) | None => status
            .is_server_error()
            .then(|| Failure::Status(status.as_u16())),
    }
}

const fn reason_of(failure: Failure) -> Reason {
    match failure {
        Failure::Connect => Reason::ConnectFailed,
        Failure::Timeout => Reason::UpstreamTimeout,
        Failure::NoLocalEndpoint => Reason::NoHealthyEndpoint,
        Failure::RefusedStream
        | Failure::Reset
        | Failure::Status(_)
        | Failure::Unavailable
        | Failure::Grpc(_) => Reason::UpstreamReset,
    }
}
