//! What Envoy has no field for: our metadata on resources, as compile writes and ingest reads it.

use std::ops::Not;

use serde::{Deserialize, Serialize};
use zeugma_core::snapshot::Position;

/// On any cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(crate) enum AnyClusterMeta {
    Traffic(Box<ClusterMeta>),
    Peer(PeerMeta),
}

/// On a cluster that carries a service's traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ClusterMeta {
    pub route: String,
    pub failover: FailoverMeta,
    /// The priority whose localities are weighed. In all others the weights are the endpoints'.
    #[serde(default)]
    pub spread_priority: Option<u32>,
    pub passive: PassiveMeta,
    /// Whether what Envoy takes for least requests is by latency too.
    #[serde(default)]
    pub peak_ewma: bool,
    /// What the key of a ring hash is made of: Envoy says it of routes.
    pub hash_on: Option<HashMeta>,
    /// Where the policy is one that Envoy starts nothing slowly with.
    pub slow_start_millis: Option<u64>,
    pub timeouts: TimeoutsMeta,
    pub retries: RetriesMeta,
    /// On a service's outbound cluster alone.
    pub service: Option<ServiceMeta>,
}

/// What a key is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HashMeta {
    Header(String),
    Source,
}

/// One port of one route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ServiceMeta {
    pub id: String,
    pub port: u16,
    pub ports: usize,
    pub hosts: Vec<String>,
    pub protocol: ProtocolMeta,
    pub inbound: InboundMeta,
    /// Whether a denial is only told; to Envoy its rules are shadow rules.
    pub is_audited: bool,
    pub own: Option<String>,
    pub export: ExportMeta,
    pub position: PositionMeta,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProtocolMeta {
    Tcp,
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InboundMeta {
    Passthrough,
    Terminate,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ExportMeta {
    Nobody,
    To(Vec<String>),
    AllPeers,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PositionMeta {
    pub file: String,
    pub line: u32,
}

impl From<Position> for PositionMeta {
    fn from(position: Position) -> Self {
        Self {
            file: position.file.to_string(),
            line: position.line,
        }
    }
}

impl From<&PositionMeta> for Position {
    fn from(meta: &PositionMeta) -> Self {
        Self {
            file: meta.file.as_str().into(),
            line: meta.line,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct FailoverMeta {
    pub start: f64,
    pub full: f64,
    pub hold_millis: u64,
    pub failback_after_millis: u64,
    pub failback_ramp_millis: u64,
    #[serde(default)]
    pub failback_is_manual: bool,
    pub use_all: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PassiveMeta {
    pub on: Vec<String>,
    pub error_rate: Option<ErrorRateMeta>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<SlowMeta>,
    pub max_ejected: f64,
    pub keep_at_least: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ErrorRateMeta {
    pub over: f64,
    pub requests: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SlowMeta {
    pub over: f64,
    pub requests: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TimeoutsMeta {
    pub connect_peer_millis: u64,
    pub response_headers_millis: u64,
    pub idle_millis: u64,
    pub per_try_millis: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RetriesMeta {
    pub attempts: u32,
    pub on: Vec<String>,
    pub budget: f64,
    pub buffer_bytes: usize,
    pub any_method: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge_after_millis: Option<u64>,
}

/// On an endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct EndpointMeta {
    pub backend: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Whether the endpoint speaks TLS itself, which is raw bytes to Envoy.
    pub workload: bool,
    pub version: VersionMeta,
    /// Whether every address of the name is an endpoint of its own.
    #[serde(default, skip_serializing_if = "Not::not")]
    pub each: bool,
    /// What its backend takes in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VersionMeta {
    Same,
    H1,
    H2,
}

/// On a cluster that is a peer's gateways.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PeerMeta {
    pub peer: String,
    pub cluster: String,
    pub locality: String,
    pub attests: Vec<String>,
    pub sources: Vec<String>,
    /// Whether an old health report counts for nothing.
    #[serde(default)]
    pub drops_stale: bool,
}

/// On a listener.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ListenerMeta {
    pub mesh: bool,
    /// The service of a one-route listener.
    pub only: Option<String>,
    pub sources: Vec<String>,
    /// Connections that one source may begin a second.
    pub handshakes_per_source: Option<u32>,
    /// The networks that send PROXY headers.
    #[serde(default)]
    pub proxies: Vec<String>,
}

/// On a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RouteMeta {
    /// One for each of its mirror policies, in their order.
    pub mirrors: Vec<MirrorMeta>,
    /// The rule that it is a match of; none where the service has no rules.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleMeta>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleMeta {
    /// Its place among the rules, from 0.
    pub nth: usize,
    pub label: String,
    /// The parts of its split that this gateway has.
    pub parts: Option<Vec<PartMeta>>,
    pub response_headers_millis: Option<u64>,
    /// 0: none.
    pub per_try_millis: Option<u64>,
    pub attempts: Option<u32>,
    pub on: Option<Vec<String>>,
    pub any_method: Option<bool>,
    pub position: PositionMeta,
}

/// Envoy has the weights of those that the listener leads to as well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PartMeta {
    pub label: String,
    pub weight: u32,
    /// The cluster of workloads' requests.
    pub outbound: String,
    /// The cluster of other clusters' requests.
    pub own: Option<String>,
    pub host: Option<String>,
    /// Of another route: its service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
}

/// On a filter chain of a TCP service with mirrors: Envoy copies requests alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ChainMeta {
    pub mirrors: Vec<CopiesMeta>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct CopiesMeta {
    pub cluster: String,
    pub share: f64,
    pub mirror: MirrorMeta,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MirrorMeta {
    pub route: String,
    pub host: String,
    pub timeout_millis: u64,
    pub body_bytes_max: usize,
    pub in_flight_max: usize,
    #[serde(default)]
    pub compare: bool,
    /// None of a control plane that does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<PositionMeta>,
}
