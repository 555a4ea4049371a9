//! Explanations as documents: what core [`explain`](zeugma_core::explain) tells, with names, places
//! and words in place of indexes.
//!
//! The control thread knows the health of endpoints, so that it is asked; the document is made
//! elsewhere. A command makes the same one of files alone.

mod capacity;
mod copies;
mod files;
mod words;

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;
use zeugma_core::authorize::{RuleField, Verdict};
use zeugma_core::engine::Matched;
use zeugma_core::explain::{
    Answer, Asks, Assumed, Beside, Caller, Candidate, Destination, Explanation, Judged, Keyed,
    LevelSeen, Question, QuestionError, Step, Vouched, explain,
};
use zeugma_core::fleet::{Fleet, LevelMotion, LevelView};
use zeugma_core::health::ActiveVerdict;
use zeugma_core::identity::SpiffeId;
use zeugma_core::snapshot::{Balance, Cluster, HashOn, Rule, Service, ServiceIx, Snapshot};
use zeugma_core::time::Time;
use zeugma_core::verdict::Reason;
use zeugma_xds::GatewaySettings;

use crate::runtime::{Published, Shared};
use crate::tls::Credentials;

pub(crate) use self::copies::exported_to;
use self::files::Trust;

/// Questions on their way to the control thread.
pub(crate) const ASKED_MAX: usize = 4;
/// How long its answer may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// Values of one field of a rule that are shown; the rest is counted.
const VALUES_MAX: usize = 16;

/// A question on its way to the control thread.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    question: Arc<Question>,
    draw: u64,
    answer: mpsc::Sender<Result<Told, QuestionError>>,
}

/// The answer, and what it is about.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) published: Arc<Published>,
    pub(crate) explanation: Explanation,
    pub(crate) now: Time,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    /// It names what is not configured.
    #[error(transparent)]
    Question(QuestionError),
    /// The control thread has too much to do, or ends.
    #[error("the gateway had no time to explain; ask again")]
    Late,
}

impl Asked {
    /// Answers, on the thread that has the fleet.
    pub(crate) fn answer(&self, shared: &Shared, fleet: &Fleet) {
        let published = shared.published.load_full();
        let credentials = shared.credentials.load();
        let beside = Beside {
            load: &|_| 0,
            draw: self.draw,
            now: shared.now(),
            refuses: &|id, vouched| refuses(&credentials, id, vouched),
        };
        let (snapshot, shares) = (&published.snapshot, &published.shares);
        let told = explain(snapshot, shares, fleet, &self.question, beside);
        let told = told.map(|explanation| Told {
            explanation,
            now: shared.now(),
            published: Arc::clone(&published),
        });
        // There is room for the one answer, or nobody waits.
        drop(self.answer.try_send(told));
    }
}

/// Why an identity is refused whatever the policy says.
fn refuses(credentials: &Credentials, id: &SpiffeId, vouched: Vouched) -> Option<Reason> {
    if credentials.denied().position(id).is_some() {
        return Some(Reason::IdentityDenied);
    }
    if vouched == Vouched::Gateway {
        return None;
    }
    if credentials
        .bundles()
        .iter()
        .all(|of| !id.is_of(of.domain()))
    {
        return Some(Reason::CertificateRefused);
    }
    // Which certificate it has nobody knows; where its CRL is too old, any is refused.
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    let checked = credentials.check_crls(&id.trust_domain(), now);
    checked.err().map(|_too_old| Reason::RevocationUnknown)
}

/// Asks the control thread.
pub(crate) async fn ask(
    shared: &Shared,
    question: Arc<Question>,
    draw: u64,
) -> Result<Told, Unanswered> {
    let (answer, mut answered) = mpsc::channel(1);
    let asked = Asked {
        question,
        draw,
        answer,
    };
    // An error: nobody is there to be asked.
    shared
        .admin
        .explains
        .send(asked)
        .map_err(|_| Unanswered::Late)?;
    match timeout(DEADLINE, answered.recv()).await {
        Ok(Some(told)) => told.map_err(Unanswered::Question),
        Ok(None) | Err(_) => Err(Unanswered::Late),
    }
}

/// How the health of endpoints is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// From a gateway that serves, at this moment of its clock.
    Live(Time),
    /// Not at all: every endpoint counts as good.
    Assumed,
}

/// Explains by files alone, with every endpoint good: the configuration, and the deny list, bundles
/// and CRLs that it names.
///
/// # Errors
/// As [`explain`].
pub fn offline(
    snapshot: &Snapshot,
    settings: &GatewaySettings,
    question: &Question,
    draw: u64,
) -> Result<Value, QuestionError> {
    let mut fleet = Fleet::new();
    fleet.reconcile(snapshot, Time::ZERO);
    let shares = fleet.shares(Time::ZERO);
    let trust = Trust::read(settings);
    let beside = Beside {
        load: &|_| 0,
        draw,
        now: Time::ZERO,
        refuses: &|id, vouched| trust.refuses(id, vouched),
    };
    let explanation = explain(snapshot, &shares, &fleet, question, beside)?;
    let mut told = document(snapshot, question, &explanation, Health::Assumed);
    if let Some(all) = told.as_object_mut() {
        all.insert("trust".to_owned(), trust.to_json());
        if explanation.refused == Some(Reason::IdentityDenied) {
            let from = question.from.as_ref();
            all.insert(
                "deny_list".to_owned(),
                json!(from.and_then(|id| trust.denied(id))),
            );
        }
    }
    Ok(told)
}

/// An explanation, as programs read it; a field may be added.
#[must_use]
pub fn document(
    snapshot: &Snapshot,
    question: &Question,
    told: &Explanation,
    health: Health,
) -> Value {
    let service = told.service.map(|ix| snapshot.service(ix));
    let reason = told.refused;
    let now = match health {
        Health::Live(now) => now,
        Health::Assumed => Time::ZERO,
    };
    let role = (snapshot.listener(&told.listener)).map(|listener| listener.role.label());
    let destination = (told.to.as_ref()).map(|to| destination(snapshot, to, service, now));
    let attempts = (told.to.as_ref()).map_or_else(Vec::new, |to| attempts(snapshot, to));
    json!({
        "answer": words::answer(snapshot, told, now),
        "carried": reason.is_none(),
        "reason": reason.map(|reason| reason.label()),
        "code": reason.and_then(|reason| reason.code()),
        "to_do": words::to_do(snapshot, question, told),
        "health": match health {
            Health::Live(_) => "live",
            Health::Assumed => "assumed",
        },
        "host": question.host,
        "sni": told.sni,
        "listener": { "name": &*told.listener, "role": role },
        "caller": caller(snapshot, told),
        "assumed": told.assumed.iter().map(assumed).collect::<Vec<_>>(),
        "steps": told.steps.iter().map(|one| step(snapshot, one)).collect::<Vec<_>>(),
        "route": service.map(route),
        "rule": service.and_then(|service| http_rule(service, told.matched?)),
        "policy": (service.zip(told.judged.as_ref()))
            .map(|(service, judged)| policy(snapshot, service, judged)),
        "destination": destination,
        "attempts": attempts,
        "mirrors": copies::mirrors(snapshot, told, now),
        "mirrors_left_out": copies::left_out(snapshot, told),
        "extra_tries_max": extra_tries(snapshot, told),
        "hedged_after_seconds": hedged_after(snapshot, told),
        // As text: not every reader of JSON has numbers of 64 bits.
        "draw": told.draw.to_string(),
        "key": told.keyed.as_ref().map(|keyed| key(snapshot, told, keyed)),
    })
}

/// What goes to one endpoint, and whether the question says it.
fn key(snapshot: &Snapshot, told: &Explanation, keyed: &Keyed) -> Value {
    let to = told.to.as_ref().map(|to| snapshot.cluster(to.cluster));
    let policy = to.map(|cluster| match cluster.policy.balance {
        Balance::Maglev(_) => "maglev",
        Balance::RingHash(_)
        | Balance::LeastRequest
        | Balance::PeakEwma
        | Balance::RoundRobin
        | Balance::Random => "ring-hash",
    });
    let of = match &keyed.on {
        HashOn::Header(name) => format!("header {name}"),
        HashOn::Source => "source address".to_owned(),
    };
    json!({ "policy": policy, "of": of, "known": keyed.key.is_some() })
}

fn caller(snapshot: &Snapshot, told: &Explanation) -> Value {
    let (principal, attested, peer) = match &told.caller {
        Caller::Network => (None, None, None),
        Caller::Verified(id) => (Some(id.as_str()), None, None),
        Caller::Asserted { by, peer, id } => {
            let peer = &*snapshot.peer(*peer).name;
            (Some(by.as_str()), Some(id.as_str()), Some(peer))
        }
    };
    json!({
        "source": told.source.to_string(),
        "source_principal": principal,
        "source_attested": attested,
        "attested_by": peer,
    })
}

fn assumed(one: &Assumed) -> String {
    match one {
        Assumed::Listener(name) => format!("listener {name}"),
        Assumed::Source(source) => format!("source {source}"),
        Assumed::Gateway(id) => format!("the peer's gateway is {id}"),
        Assumed::NobodyVerified => {
            "nobody is verified on this way: who calls does not count".to_owned()
        }
        Assumed::HostUnread => {
            "no request is read on this way: the SNI alone says what is called".to_owned()
        }
        Assumed::SniUnread => {
            "the listener carries one route alone and looks into no TLS: the SNI does not count"
                .to_owned()
        }
    }
}

fn step(snapshot: &Snapshot, step: &Step) -> Value {
    let (asks, what) = match &step.asks {
        Asks::Hello(sni) => ("hello", Some(sni)),
        Asks::Plaintext => ("plaintext", None),
        Asks::Request(authority) => ("request", Some(authority)),
        Asks::RequestInside(authority) => ("request-inside-tls", Some(authority)),
        Asks::Inside => ("inside-tls", None),
    };
    let (answer, service, reason) = match step.answer {
        Answer::Terminate(ix) => ("terminate", Some(named(snapshot, ix)), None),
        Answer::ReadHttp => ("read-http", None, None),
        Answer::Report => ("report", None, None),
        Answer::Carry => ("carry", None, None),
        Answer::Refuse(reason) => ("refuse", None, Some(reason.label())),
    };
    json!({
        "asks": asks,
        "what": what,
        "answer": answer,
        "service": service,
        "reason": reason,
    })
}

fn named(snapshot: &Snapshot, ix: ServiceIx) -> String {
    let service = snapshot.service(ix);
    format!("{}:{}", service.name, service.port)
}

fn route(service: &Service) -> Value {
    json!({
        "service": &*service.name,
        "port": service.port,
        "protocol": service.protocol.label(),
        "inbound": service.inbound.label(),
        "written": service.position.as_ref().map(ToString::to_string),
    })
}

/// The rule that a request is for, and the parts of its split.
fn http_rule(service: &Service, matched: Matched) -> Option<Value> {
    let rule = service.rules.as_ref()?.list.get(matched.rule)?;
    let split: Option<Vec<Value>> = rule.split.as_ref().map(|split| {
        let parts = split.iter().enumerate();
        parts
            .map(|(nth, part)| {
                json!({
                    "to": &*part.label,
                    "weight": part.weight,
                    "drawn": matched.part == Some(nth),
                })
            })
            .collect()
    });
    Some(json!({
        "name": &*rule.label,
        "written": rule.position.as_ref().map(ToString::to_string),
        "split": split,
    }))
}

fn policy(snapshot: &Snapshot, service: &Service, judged: &Judged) -> Value {
    let of_allow = |ix: usize| rule(snapshot, service.policy.allow.get(ix)?, "allow");
    let of_deny = |ix: usize| rule(snapshot, service.policy.deny.get(ix)?, "deny");
    let failed: Vec<&str> = (judged.mismatches.iter())
        .map(|field| field.label())
        .collect();
    let (verdict, reason, decided, nearest) = match judged.verdict {
        Verdict::Allow { rule } => ("allow", None, of_allow(rule), None),
        Verdict::Audit {
            reason,
            rule,
            nearest,
        } => ("audit", Some(reason), rule.and_then(of_deny), nearest),
        Verdict::Deny {
            reason,
            rule,
            nearest,
        } => ("deny", Some(reason), rule.and_then(of_deny), nearest),
    };
    json!({
        "verdict": verdict,
        "reason": reason.map(|reason| reason.label()),
        "rule": decided,
        "nearest": nearest.and_then(of_allow),
        "nearest_failed": failed,
    })
}

/// A rule, in the words that it is written with.
fn rule(snapshot: &Snapshot, rule: &Rule, kind: &str) -> Option<Value> {
    let mut told = Map::new();
    told.insert("kind".to_owned(), json!(kind));
    let written = rule.position.as_ref().map(ToString::to_string);
    told.insert("written".to_owned(), json!(written));
    for field in [
        RuleField::From,
        RuleField::Via,
        RuleField::Listeners,
        RuleField::Sources,
        RuleField::Sni,
        RuleField::Methods,
        RuleField::Paths,
        RuleField::Headers,
    ] {
        let values = words::values(snapshot, rule, field);
        if values.is_empty() {
            continue;
        }
        let left_out = values.len().saturating_sub(VALUES_MAX);
        let shown: Vec<String> = values.into_iter().take(VALUES_MAX).collect();
        told.insert(field.label().to_owned(), json!(shown));
        if left_out > 0 {
            told.insert(format!("{}_left_out", field.label()), json!(left_out));
        }
    }
    Some(Value::Object(told))
}

fn destination(
    snapshot: &Snapshot,
    to: &Destination,
    service: Option<&Service>,
    now: Time,
) -> Value {
    let cluster = snapshot.cluster(to.cluster);
    let levels: Vec<Value> = (cluster.levels.iter().zip(&to.levels).enumerate())
        .map(|(nth, (level, seen))| {
            let mut told = level_json(snapshot, cluster, &level.name, seen, now);
            capacity::of_level(to, nth, &mut told);
            told
        })
        .collect();
    json!({
        "cluster": &*cluster.name,
        "levels": levels,
        "levels_left_out": to.levels_left_out,
        "too_few": to.too_few,
        "load": capacity::load(cluster, to, service),
    })
}

fn level_json(
    snapshot: &Snapshot,
    cluster: &Cluster,
    name: &str,
    seen: &LevelSeen,
    now: Time,
) -> Value {
    let counts: Map<String, Value> = (seen.counts.iter().filter(|(_, count)| *count > 0))
        .map(|(status, count)| (status.label().to_owned(), json!(count)))
        .collect();
    let candidates: Vec<Value> = (seen.candidates.iter())
        .map(|one| candidate(snapshot, cluster, one, now))
        .collect();
    json!({
        "name": name,
        "share": seen.share,
        "healthy": seen.healthy(),
        "total": seen.total(),
        "healthy_share": seen.view.map(|view| view.healthy),
        "capacity": seen.view.map(|view| view.capacity),
        "damped_capacity": seen.view.map(|view| view.damped),
        "state": seen.view.map(|view| motion(&view, now)),
        "statuses": counts,
        "endpoints": candidates,
        "endpoints_left_out": seen.left_out,
    })
}

fn motion(view: &LevelView, now: Time) -> Value {
    let word = match view.motion {
        LevelMotion::Settled => "settled",
        LevelMotion::Holding { .. } => "holding",
        LevelMotion::Waiting { .. } => "waiting",
        LevelMotion::Kept { .. } => "waiting-for-reset",
        LevelMotion::Ramping { .. } => "ramping",
    };
    let since = view.motion.since();
    json!({
        "is": word,
        "for_seconds": since.map(|since| seconds(now.since(since))),
        "ends_in_seconds": view.until.map(|until| seconds(until.since(now))),
    })
}

fn candidate(snapshot: &Snapshot, cluster: &Cluster, one: &Candidate, now: Time) -> Value {
    let endpoint = cluster.endpoint(one.endpoint);
    let ejection = one.view.and_then(|view| view.ejection);
    let active = one.view.and_then(|view| view.active);
    json!({
        "address": endpoint.address.to_string(),
        "backend": &*endpoint.backend,
        "locality": endpoint.locality.to_string(),
        "weight": endpoint.weight,
        "peer": endpoint.peer.map(|ix| snapshot.peer(ix).name.to_string()),
        "status": one.status.label(),
        "ejected_by": ejection.map(|ejection| ejection.cause.label()),
        "ejected_for_seconds": ejection.map(|ejection| seconds(ejection.until.since(now))),
        "active_check": active.map(|active| match active {
            ActiveVerdict::Unknown => "unknown",
            ActiveVerdict::Healthy => "healthy",
            ActiveVerdict::Unhealthy => "unhealthy",
        }),
    })
}

fn attempts(snapshot: &Snapshot, to: &Destination) -> Vec<Value> {
    let cluster = snapshot.cluster(to.cluster);
    (to.attempts.iter())
        .map(|attempt| {
            let endpoint = cluster.endpoint(attempt.endpoint);
            let level = cluster.levels.get(attempt.level);
            json!({
                "address": endpoint.address.to_string(),
                "backend": &*endpoint.backend,
                "locality": endpoint.locality.to_string(),
                "level": level.map(|level| &*level.name),
                // The access log says `retry` of all but the first.
                "reason": attempt.why.label(),
            })
        })
        .collect()
}

/// How often it may be tried again where an endpoint may have seen it.
fn extra_tries(snapshot: &Snapshot, told: &Explanation) -> Option<u32> {
    let of_cluster = &snapshot.cluster(told.to.as_ref()?.cluster).policy.retries;
    let rules = told
        .service
        .and_then(|ix| snapshot.service(ix).rules.as_ref());
    let rule = rules.zip(told.matched);
    let rule = rule.and_then(|(rules, matched)| rules.list.get(matched.rule));
    Some(rule.map_or(of_cluster.attempts, |rule| {
        rule.retries(of_cluster).attempts
    }))
}

/// After how long another endpoint is asked beside the first.
fn hedged_after(snapshot: &Snapshot, told: &Explanation) -> Option<f64> {
    let cluster = snapshot.cluster(told.to.as_ref()?.cluster);
    cluster.policy.retries.hedge_after.map(seconds)
}

/// To a millisecond, for people.
fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Alone;

    #[tokio::test]
    async fn where_nobody_can_be_asked_the_answer_is_that_there_is_none() {
        let listeners = "{ apps: { address: '127.0.0.1:0', role: workloads } }";
        let alone = Alone::new(listeners, "", 1);
        let question = Question {
            host: "one.a".to_owned(),
            sni: None,
            method: "GET".to_owned(),
            path: "/".to_owned(),
            headers: Vec::new(),
            from: None,
            via: None,
            source: None,
            listener: None,
        };
        // Its code is ZG0982.
        let late = ask(&alone.shared, Arc::new(question), 0).await.unwrap_err();
        assert!(matches!(late, Unanswered::Late), "{late}");
    }
}
