//! `/api/v1`: what the gateway knows, as documents that programs read. Never a secret.
//!
//! Each is made from what is published at that moment, by functions of that alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::{Query, State};
use axum::response::Response;
use axum::routing::get;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zeugma_core::fleet::STALE_AFTER;
use zeugma_core::rules::{Field, HttpRule, Match, Part, PathMatch, Rules};
use zeugma_core::shares::{ClusterShares, EndpointStatus, LevelMotion, SHARE_EPSILON, Worth};
use zeugma_core::snapshot::{Cluster, ClusterIx, Endpoint, Mirror, Peer, Service};
use zeugma_core::time::Time;
use zeugma_core::verdict::Reason;

use super::{as_json, beside, explain};
use crate::explain::exported_to;
use crate::identity::AgentKind;
use crate::journal::Event;
use crate::listing::{self, ENTRIES_MAX, Wanted};
use crate::peer::ask::Standing;
use crate::runtime::{Published, Shared};

/// What the documents' form is called; a field may be added under the same name.
const VERSION: &str = "api.zeugma.dev/v1";
/// Entries of `/api/v1/connections` where no `limit` is asked for.
const LISTED: usize = 1000;

/// The paths of the interface.
pub(super) fn routes(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/api/v1/routes", get(services))
        .route("/api/v1/services", get(services))
        .route("/api/v1/peers", get(peers))
        .route("/api/v1/failovers", get(failovers))
        .route("/api/v1/identities", get(identities))
        .route("/api/v1/findings", get(findings))
        .route("/api/v1/control-plane", get(control_plane))
        .route("/api/v1/connections", get(connections))
        .route("/api/v1/topology", get(topology))
        .route("/api/v1/explain", get(explain::explain))
        .with_state(Arc::clone(shared))
}

/// Which entries are wanted; unknown words are an error.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Filter {
    /// `namespace/name` of the route.
    service: Option<String>,
    /// The name of a listener.
    listener: Option<String>,
    /// The most entries.
    limit: Option<usize>,
}

async fn services(State(shared): State<Arc<Shared>>, Query(filter): Query<Filter>) -> Response {
    beside(move || {
        let published = shared.published.load_full();
        let limit = filter.limit.unwrap_or(usize::MAX);
        let over_capacity = shared.metrics.ended_by_service(Reason::OverCapacity);
        let all: Vec<Value> = (published.snapshot.services.iter())
            .filter(|service| {
                (filter.service.as_deref()).is_none_or(|wanted| *service.name == *wanted)
            })
            .take(limit)
            .map(|service| {
                let mut told = service_json(&published, &shared, service);
                let refused = over_capacity.get(&*service.name).copied();
                if let Some(told) = told.as_object_mut() {
                    // Since the start, of all ports of its route.
                    told.insert(
                        "refused_over_capacity".to_owned(),
                        json!(refused.unwrap_or(0)),
                    );
                }
                told
            })
            .collect();
        document(&published, "routes", all.into())
    })
    .await
}

pub(super) fn document(published: &Published, name: &str, content: Value) -> Response {
    as_json(&json!({
        "apiVersion": VERSION,
        "gateway": &*published.snapshot.node.name,
        "generation": published.generation,
        name: content,
    }))
}

pub(super) fn service_json(published: &Published, shared: &Shared, service: &Service) -> Value {
    let hosts: Vec<String> = service.hosts.iter().map(ToString::to_string).collect();
    let mirrors: Vec<Value> = (service.mirrors.iter()).map(mirror_json).collect();
    let view = |ix| cluster_json(published, shared, ix);
    json!({
        "service": &*service.name,
        "port": service.port,
        "hosts": hosts,
        "protocol": service.protocol.label(),
        "inbound": service.inbound.label(),
        "exported_to": exported_to(&published.snapshot, service),
        "allow": service.policy.allow.len(),
        "deny": service.policy.deny.len(),
        "mirrors": mirrors,
        "rules": service.rules.as_ref().map(|rules| rules_json(published, shared, rules)),
        "written": service.position.as_ref().map(ToString::to_string),
        "outbound": view(service.outbound),
        "own": service.own.map(view),
    })
}

/// The rules in the order written, each with what it matches and the place of that in the order asked.
fn rules_json(published: &Published, shared: &Shared, rules: &Rules) -> Value {
    let fields = |fields: &[Field]| -> BTreeMap<String, String> {
        let all = fields.iter();
        all.map(|field| (field.name.to_string(), field.value.to_string()))
            .collect()
    };
    let match_json = |(asked, one): (usize, &Match)| {
        let (exact, prefix, begins) = match &one.path {
            PathMatch::Any => (None, None, None),
            PathMatch::Exact(path) => (Some(&**path), None, None),
            PathMatch::Prefix(prefix) => (None, Some(&**prefix), None),
            PathMatch::Begins(text) => (None, None, Some(&**text)),
        };
        json!({
            "asked": asked,
            "exact": exact,
            "prefix": prefix,
            "begins": begins,
            "method": one.method.as_deref(),
            "headers": fields(&one.headers),
            "query": fields(&one.query),
        })
    };
    let part_json = |part: &Part| {
        json!({
            "part": &*part.label,
            "weight": part.weight,
            "outbound": cluster_json(published, shared, part.outbound),
            "own": part.own.map(|own| cluster_json(published, shared, own)),
        })
    };
    let rule_json = |(nth, rule): (usize, &HttpRule)| {
        let matches = rules
            .matches
            .iter()
            .enumerate()
            .filter(|(_, one)| one.rule == nth);
        let split = rule.split.as_ref();
        json!({
            "rule": &*rule.label,
            "matches": matches.map(match_json).collect::<Vec<_>>(),
            "split": split.map(|split| split.iter().map(part_json).collect::<Vec<_>>()),
            "written": rule.position.as_ref().map(ToString::to_string),
        })
    };
    rules.list.iter().enumerate().map(rule_json).collect()
}

fn mirror_json(mirror: &Mirror) -> Value {
    json!({
        "route": &*mirror.route,
        "percent": mirror.share * 100.0,
        "compare": mirror.compare,
    })
}

/// A cluster: its levels, what each takes, and why.
fn cluster_json(published: &Published, shared: &Shared, ix: ClusterIx) -> Value {
    let now = shared.now();
    let cluster = published.snapshot.cluster(ix);
    let shares = published.shares_of(ix);
    let levels: Vec<Value> = (cluster.levels.iter().zip(&shares.levels).enumerate())
        .map(|(at, (level, share))| {
            let status = |ix: usize| shares.endpoints.get(ix).copied();
            let is_healthy = |ix: usize| status(ix).is_some_and(EndpointStatus::is_healthy);
            let healthy = level.members.iter().filter(|ix| is_healthy(ix.0)).count();
            let endpoints: Vec<Value> = (level.members.iter())
                .map(|ix| {
                    let of = (shares.worths.get(ix.0), shares.parts.get(ix.0).copied());
                    endpoint_json(cluster.endpoint(*ix), status(ix.0), of)
                })
                .collect();
            let motion = (shares.motions.get(at).copied()).unwrap_or(LevelMotion::Settled);
            json!({
                "name": &*level.name,
                "share": share,
                "state": motion.label(),
                "spread": spread_json(cluster, shares, at),
                "state_since": motion.since().map(|since| ago(since, now)),
                "healthy": healthy,
                "total": level.members.len(),
                "endpoints": endpoints,
            })
        })
        .collect();
    let moved = shared.admin.journal.moved(&cluster.name);
    json!({
        "cluster": &*cluster.name,
        "levels": levels,
        "why": why(shares),
        "load": load_json(shares),
        "too_few": shares.too_few,
        "since": moved.as_ref().map(|moved| moved.at.as_str()),
        "causes": moved.as_ref().map(|moved| moved.causes.as_slice()).unwrap_or_default(),
    })
}

/// What is offered and what fits nowhere, where backends take only so much; else null.
fn load_json(shares: &ClusterShares) -> Value {
    let Some(metered) = &shares.metered else {
        return Value::Null;
    };
    let backends: Vec<Value> = (metered.held.iter())
        .map(|held| json!({ "backend": &*held.backend, "takes_per_second": held.most }))
        .collect();
    json!({
        "offered_per_second": metered.load,
        "refused_share": metered.refused,
        "backends": backends,
    })
}

/// How the traffic of a level is spread over its localities; null where endpoints alone weigh.
fn spread_json(cluster: &Cluster, shares: &ClusterShares, level: usize) -> Value {
    let Some(spread) = shares
        .spread
        .as_ref()
        .filter(|spread| spread.level == level)
    else {
        return Value::Null;
    };
    (cluster.policy.spread.iter().zip(&spread.shares))
        .map(|(part, share)| json!({ "locality": part.locality.to_string(), "weight": part.weight, "share": share }))
        .collect()
}

fn endpoint_json(
    endpoint: &Endpoint,
    status: Option<EndpointStatus>,
    (worth, part): (Option<&Worth>, Option<f64>),
) -> Value {
    let reported = worth.and_then(|worth| worth.reported);
    json!({
        "address": endpoint.address.to_string(),
        "backend": &*endpoint.backend,
        "locality": endpoint.locality.to_string(),
        "weight": endpoint.weight,
        "status": status.map(EndpointStatus::label),
        // What part of its weight: less than all while it starts slowly.
        "given": part.unwrap_or(1.0),
        "reported": reported.map(|of| json!({ "healthy": of.healthy, "total": of.total })),
    })
}

/// In a word, why traffic is shared out as it is.
fn why(shares: &ClusterShares) -> &'static str {
    let first = shares.levels.first().copied().unwrap_or(0.0);
    let all: f64 = shares.levels.iter().sum();
    if all < SHARE_EPSILON {
        "refused"
    } else if shares.too_few {
        "too-few"
    } else if shares.refused() > SHARE_EPSILON {
        "over-capacity"
    } else if first > 1.0 - SHARE_EPSILON {
        "preferred"
    } else if first > SHARE_EPSILON {
        "spill"
    } else {
        "failover"
    }
}

async fn peers(State(shared): State<Arc<Shared>>) -> Response {
    beside(move || {
        let published = shared.published.load_full();
        let content = peers_json(&published, &shared);
        document(&published, "peers", content)
    })
    .await
}

/// What the routes that go to one gateway of a peer make of it.
#[derive(Debug, Default)]
struct Gateway {
    healthy: usize,
    total: usize,
    addresses: Vec<String>,
    /// How things stand with its reports.
    report: Value,
    /// What it reports of each route that goes to it.
    behind: Vec<Value>,
}

pub(super) fn peers_json(published: &Published, shared: &Shared) -> Value {
    let names = shared.names.load();
    let standings = shared.peers.standings.all();
    let snapshot = &published.snapshot;
    let mut gateways: Vec<BTreeMap<String, Gateway>> = Vec::new();
    gateways.resize_with(snapshot.peers.len(), BTreeMap::default);
    for (cluster, shares) in snapshot.clusters.iter().zip(&published.shares.clusters) {
        let endpoints = cluster.endpoints.iter().zip(&shares.endpoints).enumerate();
        for (ix, (endpoint, status)) in endpoints {
            let Some(known) = endpoint.peer.and_then(|ix| gateways.get_mut(ix.0)) else {
                continue;
            };
            let gateway = (known.entry(endpoint.address.to_string())).or_insert_with(|| {
                let resolved = names.addresses(&endpoint.address, 0);
                let peer = endpoint.peer.map(|ix| Arc::clone(&snapshot.peer(ix).name));
                let id = (peer.unwrap_or_default(), endpoint.address.clone());
                Gateway {
                    addresses: resolved.iter().map(ToString::to_string).collect(),
                    report: standings.get(&id).map_or(Value::Null, report_json),
                    ..Gateway::default()
                }
            });
            if let Some(of) = shares.worths.get(ix).and_then(|worth| worth.reported) {
                gateway.behind.push(json!({
                    "service": &*cluster.route,
                    "cluster": &*cluster.name,
                    "healthy": of.healthy,
                    "total": of.total,
                    "status": status.label(),
                }));
            }
            gateway.total += 1;
            gateway.healthy += usize::from(status.is_healthy());
        }
    }
    (snapshot.peers.iter().zip(&gateways))
        .map(|(peer, gateways)| peer_json(peer, gateways))
        .collect()
}

fn peer_json(peer: &Peer, gateways: &BTreeMap<String, Gateway>) -> Value {
    let (healthy, total) = (gateways.values()).fold((0, 0), |(healthy, total), gateway| {
        (healthy + gateway.healthy, total + gateway.total)
    });
    let state = match (healthy, total) {
        (_, 0) => "unused",
        (0, _) => "down",
        (healthy, total) if healthy == total => "healthy",
        _ => "degraded",
    };
    let texts = |all: &mut dyn Iterator<Item = String>| all.collect::<Vec<String>>();
    let gateways: Vec<Value> = (gateways.iter())
        .map(|(address, gateway)| {
            json!({
                "address": address,
                "resolved": gateway.addresses,
                "healthy": gateway.healthy,
                "total": gateway.total,
                "report": gateway.report,
                "behind": gateway.behind,
            })
        })
        .collect();
    json!({
        "name": &*peer.name,
        "cluster": &*peer.cluster,
        "locality": peer.locality.to_string(),
        "state": state,
        "gateways": gateways,
        "spiffe_ids": texts(&mut peer.ids.iter().map(ToString::to_string)),
        "attests": texts(&mut peer.attests.iter().map(ToString::to_string)),
        "sources": texts(&mut peer.sources.iter().map(ToString::to_string)),
    })
}

/// How things stand with the reports of one gateway.
fn report_json(standing: &Standing) -> Value {
    let age = standing.last.map(|(at, _)| at.elapsed());
    let last = standing.last.map(|(_, at)| {
        let since = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        moment(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    });
    json!({
        "state": standing.state.label(),
        "last": last,
        "age_seconds": age.map(|age| age.as_secs_f64()),
        "stale": age.is_some_and(|age| age >= STALE_AFTER),
        "services": standing.report.as_ref().map(|report| report.len()),
        "presence": standing.report.as_ref().map(|report| report.presence.label()),
        "why": standing.why,
    })
}

async fn failovers(State(shared): State<Arc<Shared>>) -> Response {
    beside(move || {
        let published = shared.published.load_full();
        let content = failovers_json(&published, &shared);
        document(&published, "failovers", content)
    })
    .await
}

pub(super) fn failovers_json(published: &Published, shared: &Shared) -> Value {
    let snapshot = &published.snapshot;
    let active: Vec<Value> = (snapshot.services.iter())
        .filter(|service| why(published.shares_of(service.outbound)) != "preferred")
        .map(|service| {
            json!({
                "service": &*service.name,
                "port": service.port,
                "outbound": cluster_json(published, shared, service.outbound),
            })
        })
        .collect();
    let events = shared.admin.journal.since(0);
    // Of a move that takes own traffic along, what other clusters see of it says nothing more.
    let outbound: BTreeSet<(&str, &str)> = (events.iter())
        .filter_map(|event| Some((&*event.at, moved(event)?.strip_prefix("outbound|")?)))
        .collect();
    let is_told = |event: &Event| {
        let own = moved(event).and_then(|cluster| cluster.strip_prefix("own|"));
        own.is_some_and(|own| outbound.contains(&(&*event.at, own)))
    };
    let timeline: Vec<Value> = (events.iter())
        .filter(|event| !is_told(event))
        .filter(|event| {
            event.kind == "shares-moved"
                || event.kind == "fails-alike"
                || event.kind == "waits-for-reset"
                || is_of_failover(event)
                || event.kind.starts_with("endpoint-")
        })
        .map(|event| event.to_json())
        .collect();
    json!({
        "active": active,
        "evacuations": Value::clone(&shared.admin.evacuations.load()),
        "timeline": timeline,
    })
}

/// Whether an event is an operator's word on failover.
fn is_of_failover(event: &Event) -> bool {
    let lever = event.data.get("lever").and_then(Value::as_str);
    event.kind == "lever" && matches!(lever, Some("evacuate" | "reset" | "drill" | "drill-over"))
}

/// The cluster whose traffic an event moved.
fn moved(event: &Event) -> Option<&str> {
    (event.kind == "shares-moved").then(|| event.data.get("cluster")?.as_str())?
}

async fn identities(State(shared): State<Arc<Shared>>) -> Response {
    beside(move || {
        let published = shared.published.load_full();
        let content = identities_json(&shared);
        document(&published, "identities", content)
    })
    .await
}

pub(super) fn identities_json(shared: &Shared) -> Value {
    let credentials = shared.credentials.load();
    let due: BTreeMap<&str, i64> = (credentials.crls().due())
        .map(|(domain, due)| (domain.as_str(), due))
        .collect();
    let bundles: Vec<Value> = (credentials.bundles().iter())
        .map(|bundle| {
            let anchors: Vec<Value> = (bundle.anchors().iter())
                .map(|anchor| {
                    json!({
                        "fingerprint": hex(&anchor.fingerprint),
                        "not_before": moment(anchor.not_before),
                        "not_after": moment(anchor.not_after),
                    })
                })
                .collect();
            let domain = bundle.domain().as_str();
            json!({
                "trust_domain": domain,
                "sequence": bundle.sequence(),
                "refresh_hint_seconds": bundle.refresh_hint().map(|hint| hint.as_secs()),
                "anchors": anchors,
                "crl_next_update": due.get(domain).map(|due| moment(*due)),
            })
        })
        .collect();
    let own = credentials.own().map(|own| {
        json!({
            "spiffe_id": own.id.as_str(),
            "serials": own.serials.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "anchor": hex(&own.anchor),
            "not_before": credentials.not_before().map(moment),
            "not_after": credentials.not_after().map(moment),
            "path_not_after": moment(own.not_after),
            "generation": credentials.generation(),
        })
    });
    json!({
        "own": own,
        "workload_api": shared.agent.to_json(AgentKind::WorkloadApi),
        "sds": shared.agent.to_json(AgentKind::Sds),
        "bundles": bundles,
        "verified_chains": credentials.cached_chains(),
    })
}

async fn findings(State(shared): State<Arc<Shared>>) -> Response {
    let published = shared.published.load();
    let found = Value::clone(&shared.findings.load());
    let found = if found.is_null() {
        json!([])
    } else if let Some(text) = found.as_str() {
        // A failure to bind, told as text.
        json!([{ "severity": "error", "message": text }])
    } else {
        found
    };
    let mut found = found;
    if let Some(list) = found.as_array_mut() {
        list.extend(shared.names.load().findings());
        list.extend(shared.federation.findings());
        let has_svid = shared.credentials.load().id().is_some();
        list.extend(shared.agent.findings(has_svid));
        list.extend(shared.control_plane.findings());
    }
    document(&published, "findings", found)
}

async fn control_plane(State(shared): State<Arc<Shared>>) -> Response {
    let published = shared.published.load();
    let content = shared.control_plane.to_json(OffsetDateTime::now_utc());
    document(&published, "control_plane", content)
}

async fn connections(State(shared): State<Arc<Shared>>, Query(filter): Query<Filter>) -> Response {
    let published = shared.published.load_full();
    let wanted = Wanted {
        service: filter.service,
        listener: filter.listener,
        limit: filter.limit.unwrap_or(LISTED).min(ENTRIES_MAX),
    };
    let listed = listing::ask(&shared, wanted).await;
    beside(move || document(&published, "carried", listed.to_json())).await
}

async fn topology(State(shared): State<Arc<Shared>>) -> Response {
    beside(move || {
        let published = shared.published.load_full();
        let node = &published.snapshot.node;
        let links: Vec<Value> = (published.snapshot.services.iter())
            .map(|service| {
                let cluster = published.snapshot.cluster(service.outbound);
                let shares = published.shares_of(service.outbound);
                json!({
                    "service": &*service.name,
                    "port": service.port,
                    "clusters": shares_by_cluster(&published, cluster, shares),
                })
            })
            .collect();
        let content = json!({
            "cluster": &*node.cluster,
            "locality": node.locality.to_string(),
            "trust_domain": node.trust_domain.as_str(),
            "peers": peers_json(&published, &shared),
            "services": links,
        });
        document(&published, "topology", content)
    })
    .await
}

/// What share of a service goes to which cluster.
pub(super) fn shares_by_cluster(
    published: &Published,
    cluster: &Cluster,
    shares: &ClusterShares,
) -> Value {
    let mut by: BTreeMap<&str, f64> = BTreeMap::new();
    for (level, share) in cluster.levels.iter().zip(&shares.levels) {
        let usable = |ix: usize| {
            (shares.endpoints.get(ix)).is_some_and(|status| status.is_usable(shares.too_few))
        };
        let members = || level.members.iter().filter(|ix| usable(ix.0));
        let weight: f64 = members().map(|ix| shares.weight(cluster, *ix)).sum();
        if weight <= 0.0 {
            continue;
        }
        for ix in members() {
            let endpoint = cluster.endpoint(*ix);
            let to = endpoint
                .peer
                .map_or(&*published.snapshot.node.cluster, |peer| {
                    &*published.snapshot.peer(peer).cluster
                });
            *by.entry(to).or_default() += share * shares.weight(cluster, *ix) / weight;
        }
    }
    json!(by)
}

/// A field of a document; null where it has none of that name.
pub(super) fn field<'v>(of: &'v Value, name: &str) -> &'v Value {
    of.get(name).unwrap_or(&Value::Null)
}

/// A text of a document, or nothing.
pub(super) fn word<'v>(of: &'v Value, name: &str) -> &'v str {
    field(of, name).as_str().unwrap_or_default()
}

/// A list, or nothing.
pub(super) fn list(of: &Value) -> &[Value] {
    of.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Unix seconds as RFC 3339; the number where it has none.
fn moment(unix: i64) -> Value {
    let formatted = OffsetDateTime::from_unix_timestamp(unix)
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok());
    formatted.map_or_else(|| json!(unix), Value::String)
}

/// When something was, by the clock on the wall.
fn ago(then: Time, now: Time) -> Value {
    let at = OffsetDateTime::now_utc() - now.since(then);
    moment(at.unix_timestamp())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // To write to a string never fails.
        write!(text, "{byte:02x}").ok();
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(levels: &[f64], too_few: bool) -> ClusterShares {
        ClusterShares {
            levels: levels.to_vec(),
            endpoints: Vec::new(),
            worths: Vec::new(),
            too_few,
            spread: None,
            motions: Vec::new(),
            parts: Vec::new(),
            seeds: Vec::new(),
            trials: Vec::new(),
            metered: None,
        }
    }

    #[test]
    fn one_word_says_why_traffic_is_where_it_is() {
        for (levels, too_few, word) in [
            (&[1.0, 0.0][..], false, "preferred"),
            (&[0.7, 0.3], false, "spill"),
            (&[0.0, 1.0], false, "failover"),
            (&[0.0, 0.0], false, "refused"),
            (&[1.0, 0.0], true, "too-few"),
        ] {
            assert_eq!(why(&shares(levels, too_few)), word, "{levels:?}");
        }
    }

    #[test]
    fn moments_are_rfc_3339() {
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(i64::MAX), json!(i64::MAX));
    }
}
