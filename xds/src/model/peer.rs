//! `MeshPeer`.

use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use zeugma_core::identity::{IdPattern, TrustDomain};
use zeugma_core::locality::Locality;

use super::scalar::{Name, Target, Text};

/// Another cluster, reached through its gateways.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MeshPeer {
    /// The cluster's name. Required; one peer for each cluster. The peer of the gateway's own
    /// cluster is ignored, so that one file can serve several clusters.
    pub cluster: Text<Name>,
    /// Where it stands, `region/zone/subzone`. Required.
    pub locality: Text<Locality>,
    /// Its gateways, `host:port`, at least one. Names are resolved by their TTL, all addresses used.
    pub gateways: Vec<Text<Target>>,
    /// Who its gateways must be; checked inside the handshake. Required, at least one.
    #[serde(rename = "spiffeIDs")]
    pub spiffe_ids: Vec<Text<IdPattern>>,
    /// The trust domains whose callers' identities we believe when its gateway hands them on.
    /// Default: none.
    #[serde(default)]
    pub attests: Vec<Text<TrustDomain>>,
    /// Where its gateways call from. Default: anywhere.
    #[serde(default)]
    pub sources: Vec<Text<IpNet>>,
    /// What the last health report of a gateway of its is worth once nothing has come from that
    /// gateway for 10 s: `hold` goes on as it was, `drop` goes on as if it had never reported.
    /// Default `hold`.
    pub when_stale: Option<WhenStaleSpec>,
    /// How a silent peer is found.
    #[serde(default)]
    pub keepalive: Keepalive,
}

/// What an old health report is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WhenStaleSpec {
    /// What it was.
    Hold,
    /// Nothing.
    Drop,
}

/// How a silent peer is found.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Keepalive {
    /// Between HTTP/2 PINGs. Default `2s`; at least 100ms.
    pub ping: Option<Text<Duration>>,
    /// For the answer; then the connection is closed. Default `2s`; at least 100ms.
    pub timeout: Option<Text<Duration>>,
}
