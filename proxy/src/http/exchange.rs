//! The life of a request: route -> authorize -> plan -> connect -> send -> answer -> account.
//!
//! `route` finds the service, `caller` is who asks and whether it may. `walk` goes from endpoint to
//! endpoint; each is one `attempt`, or two at once (`hedge`), which sends what `outgoing` writes within
//! its `deadlines`. `outcome` is what came of them, `answer` what the caller gets, `notes` what is told
//! of it.

mod answer;
mod attempt;
mod caller;
mod deadlines;
mod hedge;
mod notes;
mod outcome;
mod outgoing;
mod route;
mod walk;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, request};
use http_body::Body as _;
use zeugma_core::identity::SpiffeId;
use zeugma_core::retry::Sender;
use zeugma_core::time::Time;
use zeugma_core::verdict::Reason;

use self::caller::{caller_of, peer_of_gateway};
use super::body::{Outgoing, Source};
use super::compare::Primary;
use super::expect::{Gate, Passing, expects_continue};
use super::headers::{self, Claim, Ids, Present};
use super::record::Record;
use super::ruled::Ruled;
use super::stream::Incoming;
use super::upgrade::Upgrade;
use super::{Context, Version, mirror, reply, upgrade};
use crate::account::{Closed, RequestFacts};
use crate::admission::{self, Counted};
use crate::recheck::Entry;
use crate::runtime::Published;
use crate::upstream::Pinned;

pub(super) use self::caller::asking_peer;
pub(crate) use self::deadlines::{Timer, Timers};
pub(super) use self::outcome::TryError;

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
///
/// What it came with is taken up before it is first polled: the future would have room for it as well.
pub(super) fn exchange(
    context: &Rc<Context>,
    request: Request<Incoming>,
) -> impl Future<Output = Response<Outgoing>> + use<> {
    let published = context.worker.shared.published.load_full();
    let present = request.body().present();
    let upgrade = upgrade::asked_for(context.version, &request, present);
    let (head, incoming) = request.into_parts();
    let passing = incoming.passing();
    let asks = present.has(Present::EXPECT) && expects_continue(&head.headers);
    let gate = (asks && !incoming.is_end_stream()).then(Gate::default);
    let mut exchange = Exchange::begin(context, &published, head, present);
    exchange.upgrade = upgrade;
    exchange.passing = passing;
    respond(exchange, published, incoming, gate)
}

async fn respond(
    mut exchange: Box<Exchange>,
    published: Arc<Published>,
    incoming: Incoming,
    gate: Option<Gate>,
) -> Response<Outgoing> {
    let context = Rc::clone(&exchange.context);
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
        let detail = "it asks to go on as WebSocket, which its service is not let".to_owned();
        return exchange.refuse(Reason::NotAllowed, Some(detail));
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
    let target = to.published.snapshot.service(service);
    exchange.compared = mirror::start_all(&exchange, &to.published, target, &source);
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
    ) -> Box<Self> {
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
        // Boxed, for it is handed on to whoever answers.
        Box::new(Self {
            context: Rc::clone(context),
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
        })
    }

    /// The method as rules know it: WebSocket by HTTP/2 has `CONNECT` in place of the `GET` of
    /// HTTP/1.1 (RFC 8441 §5).
    pub(super) const fn method(&self) -> &Method {
        match self.upgrade {
            Some(Upgrade::Stream) => &Method::GET,
            Some(Upgrade::Connection(_)) | None => &self.head.method,
        }
    }

    pub(super) const fn sender(&self) -> Sender {
        if self.from_gateway {
            Sender::PeerGateway
        } else {
            Sender::Caller
        }
    }

    /// The rule that it is for, where its route has some.
    pub(super) fn ruled(&self) -> Option<&Ruled> {
        self.record.request()?.ruled.as_ref()
    }

    /// Where a change finds it.
    pub(super) const fn entry(&self) -> &Rc<Entry> {
        self.record.entry()
    }

    /// Holds a place in the route that the request goes to.
    pub(super) fn holds(&mut self, counted: Counted) {
        self.record.holds(counted);
    }
}
