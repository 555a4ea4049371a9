//! `MeshGateway`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use zeugma_core::admission::Rate;
use zeugma_core::identity::{IdPattern, TrustDomain};
use zeugma_core::locality::Locality;

use super::scalar::{Admin, Name, Reference, Size, Text, whole_or_none};
use crate::control_address::ControlAddress;
use crate::workload_address::WorkloadAddress;

/// One cluster's gateway.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MeshGateway {
    /// The trust domain of its own SVID. Required.
    pub trust_domain: Text<TrustDomain>,
    /// The cluster it stands at the edge of. Required; backends without a `cluster` are of this one.
    pub cluster: Text<Name>,
    /// Where it stands, `region/zone/subzone`; distances to backends are measured from here.
    /// Required here or as `--locality`.
    pub locality: Option<Text<Locality>>,
    /// Its own certificate. Required.
    pub svid: Svid,
    /// Where it accepts connections, by name; rules refer to the names. Required, at least one.
    pub listeners: BTreeMap<String, ListenerSpec>,
    /// Where the admin API listens: `unix:/path` or a loopback address. Default: the socket
    /// `admin.sock` in `$RUNTIME_DIRECTORY`, else in `/run/zeugma`; where that cannot be bound, the
    /// gateway warns and runs without. A socket has mode 0600. A relative path starts from this
    /// file's folder.
    pub admin: Option<Text<Admin>>,
    /// The file of the token that the admin API wants for whatever changes something and for
    /// `/api/v1/tap` where `admin` is an address, as `authorization: Bearer TOKEN`: one line of 16 to
    /// 256 visible ASCII characters, mode 0600. Default: none, and nothing can be changed or tapped
    /// there. A relative path starts from this file's folder.
    pub admin_token: Option<PathBuf>,
    /// Where `/ready` and `/livez` are served, nothing else. Default `127.0.0.1:15021`; port 0
    /// takes a free one.
    pub probes: Option<Text<SocketAddr>>,
    /// Where `/metrics` is served. Default `127.0.0.1:15020`; port 0 takes a free one.
    /// On a loopback address nothing is told to whoever asks for it by another name than `localhost`.
    pub metrics: Option<Text<SocketAddr>>,
    /// The folder where it keeps what outlives it: the last good configuration, evacuations; never a
    /// secret. Each gateway has a folder of its name in it, mode 0700 and locked: a second gateway of
    /// that name is refused, or takes over with `--takeover`. A relative path starts from this file's
    /// folder. Default: `$STATE_DIRECTORY`, else `/var/lib/zeugma`. A folder that is written here or
    /// in `$STATE_DIRECTORY` and cannot be used refuses the start; without the default one the
    /// gateway warns and runs without.
    pub state_dir: Option<PathBuf>,
    /// A control plane that what the gateway carries comes from, over xDS. Default: none, and the files
    /// are the configuration. With it, the files supply this document and trust domains alone: peers,
    /// routes and defaults in them are not used, and listeners are those that the control plane sends,
    /// which has this document too. The gateway is not ready before it has a configuration. What it got
    /// last is kept in `stateDir`: it serves at once after a restart, and for as long as no server
    /// answers.
    pub control_plane: Option<ControlPlaneSpec>,
    /// Worker threads, 1 to 1024. Default: the processors it may run on, within a cgroup quota.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub workers: Option<usize>,
    /// Limits of the whole process.
    #[serde(default)]
    pub limits: GatewayLimits,
    /// How it stops.
    #[serde(default)]
    pub drain: DrainSpec,
    /// The log of connections and requests, on standard output.
    #[serde(default)]
    pub access_log: AccessLogSpec,
}

/// Where a gateway's configuration comes from, if not from files.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ControlPlaneSpec {
    /// Its servers, 1 to 8, which all say the same: `https://host:port`, or `http://` with a loopback
    /// address and port. Required. They are asked in this order, by the name `metadata.name`: the next
    /// one at once while something is missing, after 10 s without an answer otherwise. The first one is
    /// asked again after 5 to 10 minutes with another. Where none answers they are asked again after up
    /// to 0.5 s, 1 s, 2 s and so on, at most 30 s. A server is asked for what changed (delta), or for all
    /// of it where it knows no better.
    pub addresses: Vec<Text<ControlAddress>>,
    /// Who must answer there. Required with `https://`: the gateway shows its SVID, and believes only
    /// these.
    #[serde(rename = "spiffeIDs", default)]
    pub spiffe_ids: Vec<Text<IdPattern>>,
    /// What is done where an update would leave no listener or no service at all. Default `keep`: it is
    /// refused, its server is told, and what is there stays; what is left of the update is applied.
    pub on_empty: Option<OnEmptySpec>,
}

/// What is done where an update would leave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnEmptySpec {
    /// What is there stays.
    Keep,
    /// It is done.
    Apply,
}

/// The log of connections and requests.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct AccessLogSpec {
    /// How its lines look. Default `json`. What is in them is the same.
    pub format: Option<AccessLogFormatSpec>,
}

/// How the lines of the access log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AccessLogFormatSpec {
    /// One JSON object each.
    Json,
    /// `name=value` for each fact, a value in quotes with the escapes of JSON where it holds more than
    /// visible ASCII.
    Text,
}

/// A gateway's own certificate.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct Svid {
    /// From files, which are watched: a new certificate is used without a restart. Required unless
    /// `workloadApi` or `sds` is written; one of the three.
    pub files: Option<SvidFilesSpec>,
    /// From a SPIFFE Workload API, such as a SPIRE agent's: its Unix socket, `unix:///path`, or
    /// `tcp://` with a loopback address and port, where whoever on this machine has that port is
    /// believed. Default: none. It gives the certificate, its key,
    /// the bundles of the own and of federated trust domains, and CRLs; each answer is the whole, so
    /// that what is not in it any more does not count any more. Of several SVIDs the first is the
    /// gateway's, and hints are not looked at. An answer that misses something, whose SVID every
    /// peer would refuse, or whose SVID is not of `trustDomain`, is refused and told, and the last
    /// good one stays. A gateway that has had no answer accepts connections, refuses those that need
    /// its certificate (`no-identity`), and is not ready. Where a CRL of an answer cannot be used, or is
    /// older than one used before, those of before stay; a federated trust domain that it may be of,
    /// was not trusted before and has no CRL, or not all that were known, is not trusted until they
    /// come, and of its own trust domain the answer is refused. Where the API fails or ends it is asked
    /// again, after 200 ms at first and 10 s at last, and what it gave serves until it expires. The
    /// key stays in memory. An answer is at most 4 MiB, with at most 1024 federated bundles and 256
    /// CRLs.
    pub workload_api: Option<Text<WorkloadAddress>>,
    /// From a secret discovery service, as an Envoy has it: a SPIRE agent's, or any control plane's.
    /// Default: none.
    pub sds: Option<SvidSdsSpec>,
    /// Beside `workloadApi` or `sds`, a file of SPIFFE IDs that are refused, as `files.denied` is beside
    /// certificates of files. Default: none. It is watched; one that cannot be read or used is told,
    /// and the last good one stays; at the start there is none, and the gateway does not start.
    pub denied: Option<PathBuf>,
}

/// A secret discovery service (SDS v3) that a gateway's identity comes from.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SvidSdsSpec {
    /// Its Unix socket, `unix:///path`, or `tcp://` with a loopback address and port, where whoever on
    /// this machine has that port is believed. Required. Each secret is asked for by a stream of its own,
    /// by what changed (delta) where the service offers that; the node's id is `metadata.name`. Where it
    /// fails or ends it is asked again, after 200 ms at first and 10 s at last, and what it gave serves
    /// until it expires. A gateway that has not all secrets yet accepts connections, refuses those that
    /// need its certificate (`no-identity`), and is not ready. The key stays in memory.
    pub address: Text<WorkloadAddress>,
    /// The name of the secret with the certificate and its key, PEM (`tls_certificate`). Default
    /// `default`, as of a SPIRE agent. One whose key is another's, that has expired, is no SVID or is not
    /// of `trustDomain` is refused: the service is told, and the last good one stays.
    pub svid: Option<String>,
    /// The names of the secrets that say whom to trust, 1 to 64 (`validation_context`). Default
    /// `[ROOTCA]`, as of a SPIRE agent, whose `ALL` has those of federated trust domains too. The anchors
    /// of a `trusted_ca` are those of the trust domain that the secret is called by, as
    /// `spiffe://west.example`, or else of `trustDomain`; those of Envoy's SPIFFE validator are of the
    /// trust domains that it names. One that says more of whom it trusts (hashes, names of a certificate)
    /// is refused by the field's name.
    pub bundles: Option<Vec<String>>,
}

/// The files of a gateway's identity; relative paths start from this file's folder.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SvidFilesSpec {
    /// The certificate chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// The private key, PEM. It is refused if other users can read it, but a group may read one that
    /// root owns, where the gateway is not root.
    pub key: PathBuf,
    /// The folder of trust bundles: `<trust domain>.json` (SPIFFE bundle) or `.pem`.
    pub bundles: PathBuf,
    /// The folder of CRLs: `<trust domain>.pem`, each of one to 16 CRLs signed by anchors of that
    /// trust domain's bundle, or by issuers below them whose certificates (at most 16) stand in the
    /// file too. Default: none. A revoked certificate is refused, and connections made
    /// with it are ended. A CRL past its nextUpdate is honoured for 24 h and told in log and metrics;
    /// then its trust domain is refused. A CRL with a lower crlNumber than the one in use is refused.
    pub crls: Option<PathBuf>,
    /// A file of SPIFFE IDs that are refused whatever certificate they show, one a line: an ID, or a
    /// pattern such as `spiffe://east.example/ns/shop/*`; `#` begins a comment. Default: none. It
    /// holds for callers, for the identities that gateways hand on, and for endpoints, and ends what
    /// is open.
    pub denied: Option<PathBuf>,
}

/// A socket that accepts connections.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ListenerSpec {
    /// The address and port to bind; port 0 takes a free one. Required.
    pub address: Text<SocketAddr>,
    /// Who connects here. Required.
    pub role: RoleSpec,
    /// Makes it a plain listener for this one TCP route, `namespace/name`: it gets the bytes,
    /// whatever they are. The namespace is this document's where none is written. Only with
    /// `role: workloads`; the route must have one port and not be `inbound: passthrough`.
    pub route: Option<Text<Reference>>,
    /// The networks that may connect at all. Default: any; required for `role: workloads` off
    /// loopback.
    #[serde(default)]
    pub sources: Vec<Text<IpNet>>,
    /// How fast connections may begin here.
    #[serde(default)]
    pub handshakes: HandshakesSpec,
    /// For a listener behind load balancers: each connection begins with a PROXY protocol header, v1
    /// or v2, and the source that it names is what `sources`, `handshakes`, the rules of routes,
    /// `MeshPeer.sources` and the log see (which names the load balancer as `src.proxy`). Default:
    /// none, and who connects is the source.
    pub proxy_protocol: Option<ProxyProtocolSpec>,
}

/// Who sends PROXY protocol headers to a listener.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ProxyProtocolSpec {
    /// The networks of the load balancers, whose word on the source counts; not all addresses. Nobody
    /// else may connect (`source-refused`). The header is required, of at most 107 bytes (v1) or 2612
    /// (v2), within `limits.handshakeTimeout`; without one the connection is closed (`proxy-header`,
    /// `hello-timeout`). A header that names nobody (v2 LOCAL, v1 UNKNOWN: the load balancer's own
    /// health checks) leaves the load balancer the source. A SPIFFE ID in it counts for nothing. What
    /// came by a load balancer that is no longer among them ends.
    /// Required, at least one.
    pub trusted: Vec<Text<IpNet>>,
}

/// How fast connections may begin.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HandshakesSpec {
    /// Connections that one source may begin, such as `100/s`: a burst of one second's worth, and
    /// that many a second after it; 1/s to 1000000/s. A source is an IPv4 address or an IPv6 /64.
    /// Over it, a connection is closed before TLS begins, and counted. Default: any. Write it only
    /// where callers keep their own addresses: all who call through one NAT are one source.
    pub per_source: Option<Text<Rate>>,
}

/// Who connects to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RoleSpec {
    /// Other clusters: TLS only, exported routes only; the SNI decides.
    Mesh,
    /// This cluster's workloads: HTTP by Host or :authority, TLS by SNI.
    Workloads,
}

/// Limits of the whole process.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct GatewayLimits {
    /// Open connections. Default 50000; 1 to 10000000, and no more than half of the open files the
    /// process may have, less 128. One more is closed at once and counted.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub connections: Option<usize>,
    /// Connections whose TLS handshake has not ended, or whose first bytes have not come. Default: a
    /// quarter of `connections`; 1 to 10000000. One more is closed at once and counted: the slow ones
    /// of many sources must not take every place.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub handshakes: Option<usize>,
    /// For the whole TLS handshake, ClientHello included. Default `10s`; over it the connection is closed.
    pub handshake_timeout: Option<Text<Duration>>,
    /// For the head of an HTTP request. Default `10s`; over it the connection is closed.
    pub header_timeout: Option<Text<Duration>>,
    /// HTTP/2 streams on one connection. Default 100; 1 to 100000.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub streams: Option<u32>,
    /// The head of an HTTP request. Default `64KiB`; 8KiB to 1MiB. Over it: 431.
    pub header_bytes: Option<Text<Size>>,
    /// The memory above which new connections and requests are shed; those under way go on, and
    /// work is let in again below 95 % of it. What counts is the process' resident memory, or that
    /// of its cgroup without the file cache, if the cgroup has a limit. 1MiB to 1024GiB. Default:
    /// 80 % of the cgroup's `memory.max` (cgroup v1: `memory.limit_in_bytes`), none where there is
    /// none.
    #[schemars(extend("examples" = ["2GiB"]))]
    pub memory: Option<Text<Size>>,
}

/// How a gateway stops.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct DrainSpec {
    /// Not ready, but still accepting. Default `10s`.
    pub delay: Option<Text<Duration>>,
    /// How long open work may take after that; then it is cut. Default `45s`.
    pub timeout: Option<Text<Duration>>,
}
