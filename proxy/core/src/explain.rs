//! Why something goes where it goes: the engine's own decisions about it, each kept, and beside them
//! what the fleet knows of the levels and endpoints that they chose from.
//!
//! ```text
//! Question --assume--> Arrival --decide--> Terminate, ReadHttp --decide--> Carry, Refuse
//!                                   each is a Step                  |
//!                            verdict, levels, candidates, attempts <'
//! ```
//!
//! Nothing is decided here, and nothing is changed: [`decide`] is what a worker and a simulation
//! call, and the fleet is only looked at.

mod assume;
mod copies;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::authorize::{Evidence, RuleField, Verdict, authorize, mismatches};
use crate::balance::{key, key_of};
use crate::capacity::Metered;
use crate::engine::{
    Arrival, Carry, Decision, Headers, Matched, Refusal, Request, SniPort, Target, Wants, aimed,
    decide,
};
use crate::fleet::{EndpointView, Fleet, LevelView};
use crate::hello::ClientHello;
use crate::identity::SpiffeId;
use crate::plan::{Attempt, Plan, plan};
use crate::shares::{ClusterShares, EndpointStatus, Shares};
use crate::snapshot::{
    Cluster, ClusterIx, EndpointIx, HashOn, Level, PeerIx, Protocol, ServiceIx, Snapshot,
};
use crate::time::Time;
use crate::verdict::Reason;

pub use assume::{Assumed, QuestionError};
pub use copies::{Copied, MIRRORS_MAX};

/// The most candidates that are shown of one level; the rest is counted.
pub const CANDIDATES_MAX: usize = 10;
/// The most levels that are shown; the rest is counted.
pub const LEVELS_MAX: usize = 32;

/// What is asked: what would become of this connection or request?
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// What is called, as in `Host` or an SNI; a port may follow.
    pub host: String,
    /// What its TLS names, where that is not the host.
    pub sni: Option<String>,
    /// The method, where it is a request.
    pub method: String,
    /// The path, where it is a request.
    pub path: String,
    /// Its headers, the names in lower case.
    pub headers: Vec<(String, String)>,
    /// Who calls; `None`: nobody that is verified.
    pub from: Option<SpiffeId>,
    /// The peer whose gateway hands it on.
    pub via: Option<String>,
    /// The address that it comes from.
    pub source: Option<IpAddr>,
    /// The listener that it comes in on.
    pub listener: Option<String>,
}

/// What decides beside the configuration and its health.
#[derive(Clone, Copy)]
pub struct Beside<'a> {
    /// What one worker has under way at an endpoint.
    pub load: &'a dyn Fn(EndpointIx) -> u32,
    /// The random number, or the turn of a round robin.
    pub draw: u64,
    /// When it comes: what backends take is used up by what came before.
    pub now: Time,
    /// Why an identity is refused whatever the policy says.
    pub refuses: &'a dyn Fn(&SpiffeId, Vouched) -> Option<Reason>,
}

/// Who says that a caller is who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vouched {
    /// Its certificate.
    Certificate,
    /// A peer's gateway that hands it on.
    Gateway,
}

impl std::fmt::Debug for Beside<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beside")
            .field("draw", &self.draw)
            .finish_non_exhaustive()
    }
}

/// What would become of it, and why. Its indexes are of the snapshot that was asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// Where it comes in.
    pub listener: Arc<str>,
    /// From which address.
    pub source: IpAddr,
    /// From whom, as far as what decided knew.
    pub caller: Caller,
    /// What its TLS names, where that is read.
    pub sni: Option<String>,
    /// What the question left open.
    pub assumed: Vec<Assumed>,
    /// The engine's decisions, in order; the last is how it ends.
    pub steps: Vec<Step>,
    /// The service, where one was found.
    pub service: Option<ServiceIx>,
    /// Whether the service may be called; `None` where it was not asked.
    pub judged: Option<Judged>,
    /// The rule of the service's own that it is for, where it has some that apply.
    pub matched: Option<Matched>,
    /// Where it would go; `None` where it does not come that far.
    pub to: Option<Destination>,
    /// What the mirrors of the service make of it, at most [`MIRRORS_MAX`]; none where it is not known who
    /// calls.
    pub copies: Vec<Copied>,
    /// `None`: it is carried.
    pub refused: Option<Reason>,
    /// The service that its split leads to and that refused it, and the deny rule there.
    pub refused_by: Option<(ServiceIx, Option<usize>)>,
    /// As in [`Beside`].
    pub draw: u64,
    /// What goes to one endpoint there, where it is balanced by keys.
    pub keyed: Option<Keyed>,
}

/// A key in place of the draw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyed {
    /// What it is made of.
    pub on: HashOn,
    /// The key; `None` where the question has none, so that it is drawn.
    pub key: Option<u64>,
}

/// Who calls, as evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Only its address is known.
    Network,
    /// A certificate says it.
    Verified(SpiffeId),
    /// A peer's gateway says it.
    Asserted {
        /// The gateway's own ID.
        by: SpiffeId,
        /// The peer.
        peer: PeerIx,
        /// The caller's ID.
        id: SpiffeId,
    },
}

/// One decision of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was asked.
    pub asks: Asks,
    /// What the answer was.
    pub answer: Answer,
}

/// What the engine was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asks {
    /// A ClientHello with this SNI.
    Hello(String),
    /// A connection that does not begin with TLS.
    Plaintext,
    /// A request with this authority.
    Request(String),
    /// A request with this authority, inside TLS that was ended here.
    RequestInside(String),
    /// Bytes inside TLS that was ended here.
    Inside,
}

/// What the engine answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// End the TLS for this service, and see what is inside.
    Terminate(ServiceIx),
    /// Read HTTP, and see each request.
    ReadHttp,
    /// Tell a peer's gateway how what is exported to it stands.
    Report,
    /// Carry it.
    Carry,
    /// Refuse it.
    Refuse(Reason),
}

/// Whether a service may be called, and which rule says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// What the policy says.
    pub verdict: Verdict,
    /// The fields in which the nearest allow rule does not match, where none does.
    pub mismatches: Vec<RuleField>,
}

/// Where it would go.
#[derive(Debug, Clone, PartialEq)]
pub struct Destination {
    /// The cluster.
    pub cluster: ClusterIx,
    /// Its levels, preferred first, at most [`LEVELS_MAX`].
    pub levels: Vec<LevelSeen>,
    /// How many levels are not shown.
    pub levels_left_out: usize,
    /// Whether nothing is healthy and ejected endpoints are used.
    pub too_few: bool,
    /// What its backends take in a second, and what is offered; `None` where nothing is known of it.
    pub metered: Option<Arc<Metered>>,
    /// The backends that take no more at this moment.
    pub full: Vec<Arc<str>>,
    /// The endpoints that would be tried, in order: each where those before it fail. Of a split
    /// those of the part that was drawn, before those of others.
    pub attempts: Vec<Attempt>,
}

/// A level, and what it is chosen by.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelSeen {
    /// Its share of the traffic.
    pub share: f64,
    /// What the fleet knows of it; `None` where it knows nothing.
    pub view: Option<LevelView>,
    /// How many endpoints are of each status.
    pub counts: Vec<(EndpointStatus, usize)>,
    /// Endpoints, those first that are not healthy; at most [`CANDIDATES_MAX`].
    pub candidates: Vec<Candidate>,
    /// How many are not shown.
    pub left_out: usize,
}

impl LevelSeen {
    /// How many of its endpoints are healthy.
    #[must_use]
    pub fn healthy(&self) -> usize {
        let healthy = self.counts.iter().filter(|(status, _)| status.is_healthy());
        healthy.map(|(_, count)| count).sum()
    }

    /// How many endpoints it has.
    #[must_use]
    pub fn total(&self) -> usize {
        self.counts.iter().map(|(_, count)| count).sum()
    }
}

/// An endpoint that may be chosen, or may not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub endpoint: EndpointIx,
    /// Its health, as the shares have it.
    pub status: EndpointStatus,
    /// What the fleet knows of it.
    pub view: Option<EndpointView>,
}

/// Has the engine decide about a question, and keeps why.
///
/// `shares` are of `snapshot`, and `fleet` reconciled it last.
///
/// # Errors
/// What the question names is not configured: a listener, a peer.
pub fn explain(
    snapshot: &Snapshot,
    shares: &Shares,
    fleet: &Fleet,
    question: &Question,
    beside: Beside<'_>,
) -> Result<Explanation, QuestionError> {
    let assume::Facts {
        listener,
        source,
        sni,
        verified,
        claimed,
        assumed,
    } = assume::facts(snapshot, question)?;
    let each = |name: &str, tell: &mut dyn FnMut(&[u8])| {
        let named = (question.headers.iter()).filter(|(header, _)| header == name);
        named.for_each(|(_, value)| tell(value.as_bytes()));
    };
    let request = Request {
        authority: &question.host,
        method: &question.method,
        path: &question.path,
        headers: Headers(&each),
    };
    let hello = sni.map(|sni| ClientHello {
        sni: Some(sni),
        ..ClientHello::default()
    });
    let mut asked = Asked {
        world: (snapshot, shares),
        question,
        beside,
        steps: Vec::new(),
    };
    let arrival = |evidence, wants| Arrival {
        listener,
        source,
        evidence,
        sni: hello.as_ref().and_then(|hello| hello.sni.as_deref()),
        wants,
    };
    let begins = hello.as_ref().map_or(Wants::Plaintext, Wants::Hello);
    let mut last = arrival(Evidence::Network, begins);
    let mut decision = asked.decide(&last);
    if let Decision::ReadHttp = decision {
        last = arrival(Evidence::Network, Wants::Request(request));
        decision = asked.decide(&last);
    } else if let Decision::Terminate(sni, port) = decision {
        let refused = match &verified {
            None => Some(Reason::CertificateMissing),
            Some(id) => (beside.refuses)(id, Vouched::Certificate),
        };
        let Some(verified) = verified.as_ref().filter(|_| refused.is_none()) else {
            let refused = asked.refuse(refused.unwrap_or(Reason::Internal), sni);
            return Ok(asked.end(&last, refused, fleet, assumed));
        };
        let evidence = crate::authorize::evidence(snapshot, source, verified, claimed.as_ref());
        last = arrival(evidence, inside(snapshot, sni, port, request));
        decision = asked.decide(&last);
        if let Evidence::Asserted { id, .. } = evidence
            && let Some(reason) = (beside.refuses)(id, Vouched::Gateway)
            && let Some(service) = is_known(&decision)
        {
            decision = asked.refuse(reason, service);
        }
    }
    let mut told = asked.end(&last, decision, fleet, assumed);
    if verified.is_some() && told.service.is_some() && told.caller == Caller::Network {
        told.assumed.push(Assumed::NobodyVerified);
    }
    let is_by_sni = question.sni.is_some() && hello.is_some();
    if is_by_sni && told.service.is_some() && last.request().is_none() {
        told.assumed.push(Assumed::HostUnread);
    }
    Ok(told)
}

/// The service, where it came so far that the identity is looked at.
const fn is_known(decision: &Decision<'_>) -> Option<ServiceIx> {
    match decision {
        Decision::Carry(carry) => Some(carry.service),
        Decision::Refuse(refusal) => refusal.service,
        Decision::Terminate(..) | Decision::ReadHttp | Decision::Report => None,
    }
}

fn inside<'a>(
    snapshot: &Snapshot,
    sni: ServiceIx,
    port: SniPort,
    request: Request<'a>,
) -> Wants<'a> {
    match snapshot.service(sni).protocol {
        Protocol::Tcp => Wants::Inside(sni),
        Protocol::Http => Wants::RequestInside { sni, port, request },
    }
}

/// The engine, with every question to it kept.
struct Asked<'a> {
    world: (&'a Snapshot, &'a Shares),
    question: &'a Question,
    beside: Beside<'a>,
    steps: Vec<Step>,
}

impl<'a> Asked<'a> {
    fn decide(&mut self, arrival: &Arrival<'_>) -> Decision<'a> {
        let (snapshot, shares) = self.world;
        let Beside {
            load, draw, now, ..
        } = self.beside;
        let decision = decide(snapshot, shares, arrival, load, draw).within(shares, now);
        let asks = match arrival.wants {
            Wants::Hello(hello) => Asks::Hello(hello.sni.clone().unwrap_or_default()),
            Wants::Plaintext => Asks::Plaintext,
            Wants::Inside(_) => Asks::Inside,
            Wants::Request(request) => Asks::Request(request.authority.to_owned()),
            Wants::RequestInside { request, .. } => {
                Asks::RequestInside(request.authority.to_owned())
            }
        };
        let answer = match &decision {
            Decision::Carry(_) => Answer::Carry,
            Decision::Terminate(ix, _) => Answer::Terminate(*ix),
            Decision::ReadHttp => Answer::ReadHttp,
            Decision::Report => Answer::Report,
            Decision::Refuse(refusal) => Answer::Refuse(refusal.reason),
        };
        self.steps.push(Step { asks, answer });
        decision
    }

    fn is_passed_through(&self) -> bool {
        let mut terminated = self.steps.iter();
        !terminated.any(|step| matches!(step.answer, Answer::Terminate(_)))
    }

    /// What is refused for who calls, which no decision is asked about.
    fn refuse(&mut self, reason: Reason, service: ServiceIx) -> Decision<'a> {
        self.steps.push(Step {
            asks: Asks::Inside,
            answer: Answer::Refuse(reason),
        });
        Decision::Refuse(Refusal {
            reason,
            service: Some(service),
            by: None,
            rule: None,
        })
    }

    fn end(
        self,
        arrival: &Arrival<'_>,
        decision: Decision<'_>,
        fleet: &Fleet,
        assumed: Vec<Assumed>,
    ) -> Explanation {
        let (snapshot, shares) = self.world;
        let refused_by = match &decision {
            Decision::Refuse(refusal) => refusal.by.map(|by| (by, refusal.rule)),
            Decision::Carry(_)
            | Decision::Terminate(..)
            | Decision::ReadHttp
            | Decision::Report => None,
        };
        let mut keyed = None;
        let (service, refused, attempts) = match decision {
            Decision::Carry(Carry {
                service,
                cluster,
                plan,
                ..
            }) => {
                keyed = self.keyed(cluster, arrival);
                (Some(service), None, self.attempts(cluster, plan, &keyed))
            }
            Decision::Refuse(refusal) => (refusal.service, Some(refusal.reason), Vec::new()),
            // Each is followed by another question.
            Decision::Terminate(service, _) => (Some(service), Some(Reason::Internal), Vec::new()),
            Decision::ReadHttp => (None, Some(Reason::Internal), Vec::new()),
            // It is answered here, and carried nowhere.
            Decision::Report => (None, None, Vec::new()),
        };
        // What the handshake refuses never comes to the policy.
        let is_judged = !matches!(arrival.wants, Wants::Hello(_)) || self.is_passed_through();
        let judged = (service.filter(|_| is_judged)).map(|ix| judge(snapshot, ix, arrival));
        let may = matches!(
            judged.as_ref().map(|judged| judged.verdict),
            Some(Verdict::Allow { .. } | Verdict::Audit { .. })
        );
        // What nothing healthy answers has somewhere to go as well.
        let aimed = (service.filter(|_| may && refused.is_none_or(is_of_health)))
            .and_then(|ix| aimed(snapshot, shares, arrival, ix, self.beside.draw).ok());
        let to = aimed
            .and_then(|Target { cluster, .. }| Some((cluster, shares.clusters.get(cluster.0)?)))
            .map(|(ix, of)| see(snapshot, (ix, of), fleet, attempts, self.beside.now));
        // A request is copied before an endpoint is tried, a connection once one has taken it.
        let is_copied = match arrival.request() {
            Some(_) => to.is_some(),
            None => to.is_some() && refused.is_none(),
        };
        let copies = (service.filter(|_| judged.is_some())).map_or_else(Vec::new, |ix| {
            self.copies(snapshot.service(ix), arrival, fleet, is_copied)
        });
        Explanation {
            listener: Arc::clone(&arrival.listener.name),
            source: arrival.source,
            caller: Caller::of(arrival.evidence),
            sni: arrival.sni.map(str::to_owned),
            assumed,
            steps: self.steps,
            service,
            judged,
            matched: aimed.and_then(|target| target.matched),
            to,
            copies,
            refused,
            refused_by,
            draw: self.beside.draw,
            keyed,
        }
    }

    /// What a cluster is balanced by, where that is a key: as a worker has it.
    fn keyed(&self, cluster: ClusterIx, arrival: &Arrival<'_>) -> Option<Keyed> {
        let balance = &self.world.0.cluster(cluster).policy.balance;
        let on = balance.hash_on()?;
        let is_request = arrival.request().is_some();
        let header = |name: &str| {
            let mut headers = self.question.headers.iter().filter(|_| is_request);
            let (_, value) = headers.find(|(header, _)| header == name)?;
            Some(key_of(value.as_bytes()))
        };
        Some(Keyed {
            on: on.clone(),
            key: key(on, arrival.source, &header),
        })
    }

    /// The attempts of a decision; where a key is known those of it, for a decision is drawn.
    fn attempts(&self, ix: ClusterIx, drawn: Plan<'_>, keyed: &Option<Keyed>) -> Vec<Attempt> {
        let (snapshot, shares) = self.world;
        let key = keyed.as_ref().and_then(|keyed| keyed.key);
        match key.zip(shares.clusters.get(ix.0)) {
            Some((key, of)) => {
                let plan = plan(snapshot.cluster(ix), of, self.beside.load, key);
                let metered = of.metered.as_ref();
                let full = metered.map(|metered| metered.full(self.beside.now));
                plan.within(full.unwrap_or_default()).collect()
            }
            None => drawn.collect(),
        }
    }
}

/// Whether a refusal is one that levels and endpoints explain.
fn is_of_health(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::NoHealthyEndpoint | Reason::NoLocalEndpoint | Reason::OverCapacity
    )
}

impl Caller {
    fn of(evidence: Evidence<'_>) -> Self {
        match evidence {
            Evidence::Network => Self::Network,
            Evidence::Verified(id) => Self::Verified(id.clone()),
            Evidence::Asserted { by, peer, id } => Self::Asserted {
                by: by.clone(),
                peer,
                id: id.clone(),
            },
        }
    }
}

fn judge(snapshot: &Snapshot, service: ServiceIx, arrival: &Arrival<'_>) -> Judged {
    let asking = arrival.asking();
    let verdict = authorize(snapshot, service, &asking);
    let nearest = match verdict {
        Verdict::Allow { .. } => None,
        Verdict::Audit { nearest, .. } | Verdict::Deny { nearest, .. } => nearest,
    };
    Judged {
        verdict,
        mismatches: nearest.map_or_else(Vec::new, |rule| {
            mismatches(snapshot, service, rule, &asking)
        }),
    }
}

fn see(
    snapshot: &Snapshot,
    (ix, of): (ClusterIx, &ClusterShares),
    fleet: &Fleet,
    attempts: Vec<Attempt>,
    now: Time,
) -> Destination {
    let cluster = snapshot.cluster(ix);
    let views = fleet.levels(ix);
    let levels = (cluster.levels.iter().enumerate())
        .take(LEVELS_MAX)
        .map(|(at, level)| LevelSeen {
            share: of.levels.get(at).copied().unwrap_or_default(),
            view: views.get(at).copied(),
            ..see_level(cluster, level, of, fleet)
        })
        .collect();
    Destination {
        cluster: ix,
        levels,
        levels_left_out: cluster.levels.len().saturating_sub(LEVELS_MAX),
        too_few: of.too_few,
        metered: of.metered.clone(),
        full: (of.metered.as_ref()).map_or_else(Vec::new, |metered| {
            let full = metered.those(metered.full(now));
            full.map(|held| Arc::clone(&held.backend)).collect()
        }),
        attempts,
    }
}

/// A level's endpoints: those first that are no good, for they are what is asked about.
fn see_level(cluster: &Cluster, level: &Level, of: &ClusterShares, fleet: &Fleet) -> LevelSeen {
    let status = |ix: EndpointIx| of.endpoints.get(ix.0).copied();
    let mut counts: BTreeMap<EndpointStatus, usize> = BTreeMap::new();
    for status in level.members.iter().filter_map(|ix| status(*ix)) {
        *counts.entry(status).or_default() += 1;
    }
    let mut counts: Vec<(EndpointStatus, usize)> = counts.into_iter().collect();
    counts.sort_by_key(|(status, _)| told_first(*status));
    let of_status = |wanted| {
        let members = level.members.iter().copied();
        members.filter(move |ix| status(*ix) == Some(wanted))
    };
    let candidates: Vec<Candidate> = (counts.iter())
        .flat_map(|(wanted, _)| of_status(*wanted).map(|ix| (ix, *wanted)))
        .take(CANDIDATES_MAX)
        .map(|(endpoint, status)| Candidate {
            endpoint,
            status,
            view: fleet.endpoint(&cluster.endpoint(endpoint).key),
        })
        .collect();
    LevelSeen {
        share: 0.0,
        view: None,
        counts,
        left_out: level.members.len().saturating_sub(candidates.len()),
        candidates,
    }
}

/// What is no good is what is asked about.
const fn told_first(status: EndpointStatus) -> u8 {
    match status {
        EndpointStatus::Unhealthy | EndpointStatus::Evacuated => 0,
        EndpointStatus::Empty | EndpointStatus::EmptyOnce => 1,
        EndpointStatus::Ejected => 2,
        EndpointStatus::Unknown => 3,
        EndpointStatus::Healthy => 4,
    }
}

#[cfg(test)]
#[path = "explain/tests.rs"]
mod tests;
