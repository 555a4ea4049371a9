//! `POST /api/v1/check`: the gateway reaches for each peer's gateways as its traffic does, and says
//! how far it came: address, TCP, TLS, identity, round trip.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeugma_core::snapshot::{Endpoint, EndpointTls};

use super::as_json;
use super::levers::refused;
use crate::probe;
use crate::runtime::{Published, Shared};
use crate::transport::mtls::{ALPN_H2, ALPN_TCP};
use crate::upstream::{self, First};

/// Checks under way at once: each makes connections.
static RUNNING: Semaphore = Semaphore::const_new(1);
/// Gateways reached for in one check.
const GATEWAYS_MAX: usize = 256;
/// For one gateway, each of TCP and TLS.
const DEADLINE: Duration = Duration::from_secs(3);

/// Which peers.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    peer: Option<String>,
}

/// Reaches for them, and tells.
pub(super) async fn check(
    State(shared): State<Arc<Shared>>,
    Query(wanted): Query<Wanted>,
) -> Response {
    let Ok(_running) = RUNNING.try_acquire() else {
        let text = "a check is under way; ask again when it has ended";
        return refused(StatusCode::TOO_MANY_REQUESTS, "ZG0965", &text);
    };
    let published = shared.published.load_full();
    if let Some(name) = &wanted.peer
        && !published
            .snapshot
            .peers
            .iter()
            .any(|peer| *peer.name == **name)
    {
        let known: Vec<&str> = published
            .snapshot
            .peers
            .iter()
            .map(|peer| &*peer.name)
            .collect();
        let text = format!("no peer `{name}`; there are: {}", known.join(", "));
        return refused(StatusCode::NOT_FOUND, "ZG0966", &text);
    }
    let mut reaching = JoinSet::new();
    let gateways = gateways(&published, wanted.peer.as_deref());
    let unused = unused(&published, wanted.peer.as_deref(), &gateways);
    let left_out = gateways.len().saturating_sub(GATEWAYS_MAX);
    for ((peer, _), endpoint) in gateways.into_iter().take(GATEWAYS_MAX) {
        // The ways to endpoints are of one thread.
        reaching.spawn_local(reach(Arc::clone(&shared), peer, endpoint));
    }
    let mut reached: Vec<Value> = Vec::new();
    while let Some(one) = reaching.join_next().await {
        reached.extend(one);
    }
    reached.sort_by_key(|one| (one["peer"].to_string(), one["address"].to_string()));
    as_json(&json!({
        "apiVersion": "api.zeugma.dev/v1",
        "gateways": reached,
        "unused": unused,
        "left_out": left_out,
    }))
}

/// One endpoint for each gateway of the peers, by peer and address.
fn gateways(published: &Published, only: Option<&str>) -> BTreeMap<(String, String), Endpoint> {
    let mut all = BTreeMap::new();
    for endpoint in published
        .snapshot
        .clusters
        .iter()
        .flat_map(|one| &one.endpoints)
    {
        let Some(peer) = endpoint.peer.map(|ix| published.snapshot.peer(ix)) else {
            continue;
        };
        if only.is_none_or(|only| *peer.name == *only) {
            all.entry((peer.name.to_string(), endpoint.address.to_string()))
                .or_insert_with(|| endpoint.clone());
        }
    }
    all
}

/// The peers that no route goes to.
fn unused(
    published: &Published,
    only: Option<&str>,
    used: &BTreeMap<(String, String), Endpoint>,
) -> Vec<String> {
    (published.snapshot.peers.iter().map(|peer| &*peer.name))
        .filter(|name| only.is_none_or(|only| only == *name))
        .filter(|name| !used.keys().any(|(peer, _)| peer == name))
        .map(str::to_owned)
        .collect()
}

async fn reach(shared: Arc<Shared>, peer: String, endpoint: Endpoint) -> Value {
    let mut told = Map::new();
    let mut tell = |name: &str, what: Value| {
        told.insert(name.to_owned(), what);
    };
    let addresses = shared.names.load().addresses(&endpoint.address, 0);
    let resolved: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    tell("peer", json!(peer));
    tell("address", json!(endpoint.address.to_string()));
    tell("resolved", json!(resolved));
    let Some(first) = addresses.first() else {
        tell("failed", json!("name"));
        tell("code", json!("ZG1045"));
        tell("error", json!("the name has no address at present"));
        return told.into();
    };
    let began = Instant::now();
    let failure = match timeout(DEADLINE, TcpStream::connect(first)).await {
        Ok(Ok(_connected)) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_elapsed) => Some(format!("no answer within {DEADLINE:?}")),
    };
    if let Some(error) = failure {
        tell("failed", json!("tcp"));
        tell("code", json!("ZG1046"));
        tell("error", json!(error));
        return told.into();
    }
    // What a connection takes is one round trip, and little else.
    tell("round_trip_ms", millis(began));
    let EndpointTls::Mesh { sni, .. } = &endpoint.tls else {
        return told.into();
    };
    tell("sni", json!(&**sni));
    let began = Instant::now();
    let alpn: &[&[u8]] = &[ALPN_H2, ALPN_TCP];
    match upstream::connect(&shared, DEADLINE, &endpoint, alpn, First::We).await {
        Ok(upstream) => {
            tell("tls_ms", millis(began));
            tell("identity", json!(upstream.identity()));
            if upstream.alpn.as_deref() == Some(ALPN_H2) {
                let asking = Box::pin(probe::date_of(upstream.stream));
                let date = timeout(DEADLINE, asking).await.ok().flatten();
                let skew = date.map(|date| (date - OffsetDateTime::now_utc()).whole_seconds());
                tell("clock_skew_seconds", json!(skew));
            }
        }
        Err(error) => {
            tell("failed", json!("tls"));
            tell("code", json!("ZG1047"));
            tell("error", json!(error.to_string()));
            tell("rule", json!(upstream::refused_rule(&error)));
        }
    }
    told.into()
}

fn millis(since: Instant) -> Value {
    json!((since.elapsed().as_secs_f64() * 1e5).round() / 1e2)
}
