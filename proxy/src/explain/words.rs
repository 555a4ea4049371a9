//! The sentences of an explanation: its first line, and what to do.

use std::time::Duration;

use zeugma_core::authorize::{RuleField, Verdict};
use zeugma_core::codes;
use zeugma_core::explain::{Caller, Destination, Explanation, LevelSeen, Question};
use zeugma_core::fleet::LevelMotion;
use zeugma_core::names::{Host, SniTarget, parse_authority};
use zeugma_core::shares::{EndpointStatus, SHARE_EPSILON};
use zeugma_core::snapshot::{Role, Rule, Service, Snapshot};
use zeugma_core::time::Time;
use zeugma_core::verdict::Reason;
use zeugma_xds::suggest;

use super::capacity;

/// Levels that the first line names.
const NAMED_MAX: usize = 4;
/// Listeners that are named as those that have a host.
const LISTENERS_MAX: usize = 4;

/// The answer in one line.
pub(super) fn answer(snapshot: &Snapshot, told: &Explanation, now: Time) -> String {
    match (told.refused, &told.to) {
        (None, Some(to)) => goes(snapshot, to, now),
        (None, None) => "is carried".to_owned(),
        (Some(reason), _) => refused(snapshot, told, reason),
    }
}

fn goes(snapshot: &Snapshot, to: &Destination, now: Time) -> String {
    let cluster = snapshot.cluster(to.cluster);
    let levels = || cluster.levels.iter().zip(&to.levels);
    let used: Vec<(&str, f64)> = levels()
        .filter(|(_, seen)| seen.share > SHARE_EPSILON)
        .map(|(level, seen)| (&*level.name, seen.share))
        .collect();
    let goes = match used.as_slice() {
        [(only, _)] => format!("goes to {only}"),
        several => {
            let each: Vec<String> = (several.iter().take(NAMED_MAX))
                .map(|(name, share)| format!("to {name} with {}", percent(*share)))
                .collect();
            let more = match several.len().saturating_sub(NAMED_MAX) {
                0 => String::new(),
                n => format!(" and to {n} more"),
            };
            format!("goes {}{more}", each.join(", "))
        }
    };
    if to.too_few {
        return format!(
            "{goes}: no endpoint is healthy, and those that only traffic found bad are used \
             (failover.tooFew)"
        );
    }
    let last = to
        .levels
        .iter()
        .rposition(|seen| seen.share > SHARE_EPSILON);
    let last = last.unwrap_or_default();
    let nowhere = capacity::nowhere(to);
    // What fits nowhere has to do with the last of them as well.
    let told = if nowhere.is_empty() { last } else { last + 1 };
    let why: Vec<String> = (levels().enumerate())
        .take(told)
        .filter(|(_, (_, seen))| seen.share < 1.0 - SHARE_EPSILON)
        .take(NAMED_MAX)
        .map(|(nth, (level, seen))| match capacity::has(to, nth) {
            Some(takes) => format!("{} {takes}", level.name),
            None => format!("{} has {}", level.name, has(seen, now)),
        })
        .collect();
    if why.is_empty() {
        let nearest = levels().find(|(_, seen)| seen.share > SHARE_EPSILON);
        return nearest.map_or_else(
            || goes.clone(),
            |(_, seen)| format!("{goes}: {}", has(seen, now)),
        );
    }
    format!("{goes}: {}{nowhere}", why.join("; "))
}

/// What a level has, and what it waits for.
fn has(seen: &LevelSeen, now: Time) -> String {
    let evacuated = (seen.counts.iter())
        .find(|(status, count)| *status == EndpointStatus::Evacuated && *count > 0)
        .map_or_else(String::new, |(_, count)| format!(", {count} evacuated"));
    let of = format!(
        "{} of {} endpoint{} healthy{evacuated}",
        seen.healthy(),
        seen.total(),
        if seen.total() == 1 { "" } else { "s" }
    );
    let Some(view) = seen.view else {
        return of;
    };
    let left = span(view.until.map_or(Duration::ZERO, |until| until.since(now)));
    match view.motion {
        LevelMotion::Settled => of,
        LevelMotion::Holding { .. } => {
            format!("{of}, and holds what it had for another {left}")
        }
        LevelMotion::Waiting { .. } => {
            format!("{of}, and nothing comes back to it for another {left} (failback.after)")
        }
        LevelMotion::Kept { .. } => {
            format!("{of}, and nothing comes back to it until a reset (failback.mode: manual)")
        }
        LevelMotion::Ramping { .. } => {
            format!("{of}, and all of it is back in {left} (failback.ramp)")
        }
    }
}

fn refused(snapshot: &Snapshot, told: &Explanation, reason: Reason) -> String {
    let service = told.service.map(|ix| snapshot.service(ix));
    if let Some(service) = service.filter(|_| is_held_to_http(told, reason)) {
        return format!(
            "refused ({}): it asks to go on as WebSocket, which {} is not let; its rules let in the \
             request itself",
            reason.label(),
            service.name
        );
    }
    let mut text = format!("refused ({}): {}", reason.label(), reason.text());
    if reason == Reason::OverCapacity
        && let Some(full) = capacity::full(snapshot, told)
    {
        text.push_str(&full);
    }
    let Some((service, judged)) = service.zip(told.judged.as_ref()) else {
        return text;
    };
    if let Some((by, rule)) = told.refused_by {
        let by = snapshot.service(by);
        text.push_str(&format!(", of {}, which the split leads to", by.name));
        if let Some(position) = rule.and_then(|ix| written(by.policy.deny.get(ix))) {
            text.push_str(&format!(", the one at {position}"));
        }
        return text;
    }
    let Verdict::Deny { rule, nearest, .. } = judged.verdict else {
        return text;
    };
    if let Some(position) = rule.and_then(|ix| written(service.policy.deny.get(ix))) {
        text.push_str(&format!(", the one at {position}"));
    }
    if reason == Reason::NotAllowed
        && let Some(position) = nearest.and_then(|ix| written(service.policy.allow.get(ix)))
    {
        let failed: Vec<String> = (judged.mismatches.iter())
            .map(|field| format!("`{}`", field.label()))
            .collect();
        text.push_str(&format!(
            "; the nearest, at {position}, does not match in {}",
            failed.join(" and ")
        ));
    }
    text
}

/// Whether only what the request would go on as is refused.
fn is_held_to_http(told: &Explanation, reason: Reason) -> bool {
    let judged = told.judged.as_ref().map(|judged| judged.verdict);
    reason == Reason::NotAllowed
        && told.refused_by.is_none()
        && matches!(judged, Some(Verdict::Allow { .. } | Verdict::Audit { .. }))
}

fn written(rule: Option<&Rule>) -> Option<String> {
    Some(rule?.position.as_ref()?.to_string())
}

/// What can be done about a refusal, most likely first.
pub(super) fn to_do(snapshot: &Snapshot, question: &Question, told: &Explanation) -> Vec<String> {
    let Some(reason) = told.refused else {
        return Vec::new();
    };
    let service = told.refused_by.map(|(by, _)| by).or(told.service);
    let service = service.map(|ix| snapshot.service(ix));
    let mut all = Vec::new();
    if let Some(service) = service {
        if is_held_to_http(told, reason) {
            all.push(format!(
                "ask without `upgrade`: the control plane that {} is of does not say that requests \
                 may go on as WebSocket",
                place(service)
            ));
        } else if reason == Reason::NotAllowed {
            all.push(format!(
                "to let it in, add `- {}` under `allow` of {}",
                line_to_add(snapshot, told),
                place(service)
            ));
        } else if reason == Reason::NotExported {
            let peer = told_peer(snapshot, told).unwrap_or("\"*\"");
            let of = place(service);
            all.push(format!(
                "to let that cluster see it, add `{peer}` to `export.to` of {of}"
            ));
        }
    } else if matches!(
        reason,
        Reason::SniUnknown | Reason::AuthorityUnknown | Reason::Misdirected
    ) {
        let (text, asked) = match &told.sni {
            Some(sni) if reason == Reason::SniUnknown => {
                let target = SniTarget::parse(sni).ok();
                (sni, target.map(|target| (target.host, target.port)))
            }
            Some(_) | None => (&question.host, parse_authority(&question.host).ok()),
        };
        all.extend(unknown_host(snapshot, text, asked, &told.listener));
    }
    if reason == Reason::SniMalformed
        && let Some(sni) = &told.sni
        && let Err(error) = SniTarget::parse(sni)
    {
        all.push(format!("the SNI `{sni}` is no host: {error}"));
    }
    if reason == Reason::CertificateMissing {
        all.push("say who calls: --from SPIFFE-ID".to_owned());
    } else if reason == Reason::CertificateRefused {
        all.push(
            "the gateway has no bundle of the caller's trust domain: add it to its bundles"
                .to_owned(),
        );
    } else if let Some(entry) = reason.code().and_then(codes::find)
        && !is_held_to_http(told, reason)
    {
        all.push(entry.action.to_owned());
    }
    all
}

/// The allow rule that suits this caller and nobody else's identity.
fn line_to_add(snapshot: &Snapshot, told: &Explanation) -> String {
    match &told.caller {
        Caller::Network => format!("{{ listeners: [{}] }}", told.listener),
        Caller::Verified(id) => format!("{{ from: [\"{id}\"] }}"),
        Caller::Asserted { peer, id, .. } => {
            let peer = &snapshot.peer(*peer).name;
            format!("{{ from: [\"{id}\"], via: [{peer}] }}")
        }
    }
}

fn told_peer<'s>(snapshot: &'s Snapshot, told: &Explanation) -> Option<&'s str> {
    let peer = match &told.caller {
        Caller::Network => return None,
        Caller::Verified(id) => zeugma_core::authorize::peer_of(snapshot, told.source, id)?,
        Caller::Asserted { peer, .. } => *peer,
    };
    Some(&snapshot.peer(peer).name)
}

fn place(service: &Service) -> String {
    match &service.position {
        Some(position) => format!("{} ({position})", service.name),
        None => service.name.to_string(),
    }
}

/// Where a host that is not known on a listener may have been meant.
fn unknown_host(
    snapshot: &Snapshot,
    text: &str,
    asked: Option<(Host, Option<u16>)>,
    listener: &str,
) -> Vec<String> {
    let has = |host: &Host| {
        let others = snapshot
            .listeners
            .iter()
            .filter(|one| *one.name != *listener);
        others
            .filter(|one| {
                !one.hosts.ports(host).is_empty()
                    || one.only.is_some_and(|ix| {
                        let mut hosts = snapshot.service(ix).hosts.iter();
                        hosts.any(|pattern| pattern.matches(host))
                    })
            })
            .map(|one| one.name.to_string())
            .take(LISTENERS_MAX)
            .collect::<Vec<_>>()
    };
    let elsewhere = asked
        .as_ref()
        .map(|(host, _)| has(host))
        .unwrap_or_default();
    let mut all = Vec::new();
    let here = snapshot.listener(listener);
    if !elsewhere.is_empty() {
        all.push(format!("it is served on: {}", elsewhere.join(", ")));
        if here.is_some_and(|here| here.role == Role::Mesh) {
            all.push(
                "for other clusters to see it, add theirs to `export.to` of its route".to_owned(),
            );
        }
        return all;
    }
    let ports = (here.zip(asked.as_ref())).map(|(here, (host, _))| here.hosts.ports(host));
    if let Some(ports) = ports.filter(|ports| !ports.is_empty()) {
        let ports: Vec<String> = ports.iter().map(|(port, _)| port.to_string()).collect();
        all.push(format!("the host is there, with port {}", ports.join(", ")));
        return all;
    }
    let hosts: Vec<String> = (here.into_iter().flat_map(|one| one.hosts.entries()))
        .map(|(pattern, _)| pattern.to_string())
        .collect();
    let host = asked.map_or_else(|| text.to_owned(), |(host, _)| host.to_string());
    all.extend(suggest(&host, hosts.iter().map(String::as_str)));
    all
}

/// What a field of a rule names.
pub(super) fn values(snapshot: &Snapshot, rule: &Rule, field: RuleField) -> Vec<String> {
    fn texts(all: &[impl ToString]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }
    match field {
        RuleField::From => texts(&rule.from),
        RuleField::Via => (rule.via.iter())
            .map(|ix| snapshot.peer(*ix).name.to_string())
            .collect(),
        RuleField::Listeners => texts(&rule.listeners),
        RuleField::Sources => texts(&rule.sources),
        RuleField::Sni => texts(&rule.sni),
        RuleField::Methods => texts(&rule.methods),
        RuleField::Paths => texts(&rule.paths),
        RuleField::Headers => texts(&rule.headers),
    }
}

pub(super) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent < 1.0 || (percent > 99.0 && percent < 100.0) {
        format!("{percent:.1} %")
    } else {
        format!("{percent:.0} %")
    }
}

/// A time to come, rounded up.
fn span(time: Duration) -> String {
    let seconds = time.as_secs_f64().ceil();
    if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{:.0} min", (seconds / 60.0).ceil())
    }
}
