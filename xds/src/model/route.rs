//! `MeshRoute`.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;
use zeugma_core::admission::Rate;
use zeugma_core::identity::IdPattern;
use zeugma_core::locality::Locality;
use zeugma_core::names::HostPattern;
use zeugma_core::snapshot::{PathPattern, ValuePattern};

use super::list::List;
use super::scalar::{
    Cause, EndpointSpec, FieldName, FieldValue, GrpcName, MaybeDuration, MaybeTimes, Method, Name,
    Percent, Reference, RulePath, Size, Sni, Target, Text, whole, whole_or_none,
};
use crate::yaml::{self, Placed};

/// A service, the same name in every cluster.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MeshRoute {
    /// The hosts it answers to, matched against SNI, Host and :authority; `*.x` is any depth below
    /// x and not x itself. Default: `<name>.<namespace>.svc.clusterset.local`.
    pub hosts: Option<Vec<Text<HostPattern>>>,
    /// What is inside its connections. Default `tcp`; several `ports` may each have their own.
    pub protocol: Option<ProtocolSpec>,
    /// The port callers name, 1 to 65535. Default 80 for http; tcp must write it, or `ports`.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub port: Option<u16>,
    /// Several ports by name, instead of `port`; they fail over together.
    #[serde(default, deserialize_with = "yaml::unique")]
    pub ports: Option<BTreeMap<String, PortSpec>>,
    /// What a listener does with TLS that asks for this route. Default: `passthrough` if tcp and
    /// every backend with endpoints is `tls: workload`, else `terminate`.
    pub inbound: Option<InboundSpec>,
    /// Where it is served. Required, at least one.
    pub backends: Vec<BackendSpec>,
    /// How requests are told apart, and what is done with them. The first match counts, in Gateway
    /// API's order of precedence: an exact path, the longest prefix, a method, the most headers, the
    /// most query parameters, then the order written. What no rule matches is refused (404,
    /// `no-rule`). What a MeshPeer's gateway sends is told apart by no rule: it has applied its own.
    /// http only; at most 64. Default: one rule that matches all and changes nothing.
    #[serde(default)]
    pub rules: List<Placed<HttpRuleSpec>>,
    /// How one endpoint of a level is picked.
    #[serde(default)]
    pub balance: BalanceSpec,
    /// What is near.
    #[serde(default)]
    pub locality: LocalitySpec,
    /// When traffic leaves a level and how it comes back.
    #[serde(default)]
    pub failover: FailoverSpec,
    /// How healthy endpoints are told from others.
    #[serde(default)]
    pub health: HealthSpec,
    /// Deadlines.
    #[serde(default)]
    pub timeouts: TimeoutsSpec,
    /// Extra tries, each on another endpoint.
    #[serde(default)]
    pub retries: RetriesSpec,
    /// How much of it may be under way at once, on one gateway and over all its workers.
    #[serde(default)]
    pub limits: RouteLimitsSpec,
    /// Copies of a share of the requests, or of a tcp route of the connections, to other routes. Default:
    /// none.
    #[serde(default)]
    pub mirror: List<Placed<MirrorSpec>>,
    /// Who may call it: at least one entry must match. Default: nobody.
    #[serde(default)]
    pub allow: List<Placed<RuleSpec>>,
    /// Who may not: an entry here wins over `allow`. Default: nothing.
    #[serde(default)]
    pub deny: List<Placed<RuleSpec>>,
    /// What becomes of a caller whom `allow` and `deny` do not let in. Default `enforce`.
    pub policy: Option<PolicySpec>,
    /// Which peers may reach it through a mesh listener. Default: none.
    #[serde(default)]
    pub export: ExportSpec,
}

/// What becomes of a caller whom `allow` and `deny` do not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PolicySpec {
    /// It is refused.
    Enforce,
    /// It is let in; the access log says what would have denied it, and it is counted. For trying
    /// rules before they hold. `export`, and the `sources` of a listener, hold all the same.
    Audit,
}

/// What is inside a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ProtocolSpec {
    /// Bytes.
    Tcp,
    /// HTTP/1.1, HTTP/2, gRPC, WebSocket: requests are decided one by one.
    Http,
}

/// One of several ports.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PortSpec {
    /// The port callers name, 1 to 65535. Required.
    #[serde(deserialize_with = "whole")]
    pub port: u16,
    /// The port of endpoints that are written without one. Default: `port`.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub target_port: Option<u16>,
    /// What is inside its connections. Default: the route's `protocol`.
    pub protocol: Option<ProtocolSpec>,
}

/// What a listener does with TLS that asks for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum InboundSpec {
    /// Relay it as it is, by SNI, to endpoints that speak TLS themselves.
    Passthrough,
    /// End it with the gateway's own SVID and verify the caller's.
    Terminate,
}

/// A group of endpoints, or a peer.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct BackendSpec {
    /// The name that `failover` refers to. Default: the peer's, else `backend-` and its position
    /// from 1.
    pub name: Option<Text<Name>>,
    /// The cluster it is in. Default: the gateway's own. A gateway reaches its own cluster's
    /// backends directly, and another cluster's as one target through the MeshPeer of that cluster.
    pub cluster: Option<Text<Name>>,
    /// Where it stands. Default: where the gateway stands, or where the MeshPeer does.
    pub locality: Option<Text<Locality>>,
    /// Where it answers: addresses, or `{address, weight}`. A name here is one endpoint, whatever
    /// its addresses.
    pub endpoints: Option<Vec<EndpointSpec>>,
    /// A name, instead of `endpoints`: each of its addresses, IPv4 and IPv6, is an endpoint of weight
    /// 1, at most 64 of them. `name` or `name:port`; default: the route's `targetPort`. It is resolved
    /// anew when its TTL is over, after 1 s at the least and 5 min at the most; what is open goes on
    /// where an address leaves the answer. While it cannot be resolved the addresses of the last answer
    /// stay, and the gateway says so. An answer that there are none is believed when it came twice in a
    /// row, or at first; then there is no endpoint.
    #[schemars(extend("examples" = ["orders.eu-1.internal:8080"]))]
    pub dns: Option<Text<Target>>,
    /// What TLS is spoken with its endpoints. Default `none`.
    pub tls: Option<TlsSpec>,
    /// Who must answer: with `tls: mesh` the endpoints (required), with `peer` the workload behind
    /// a gateway that passes through (default: the peer's gateway itself).
    #[serde(rename = "spiffeIDs")]
    pub spiffe_ids: Option<Vec<Text<IdPattern>>>,
    /// The HTTP version spoken with its endpoints. http only. Default `same`.
    pub version: Option<VersionSpec>,
    /// Whether a PROXY protocol v2 header precedes the bytes, with the caller's address and, where it
    /// was verified, its SPIFFE ID (TLV 0xD0); where TLS is passed through, before the caller's
    /// ClientHello. An endpoint that does not expect it takes it for the first bytes. tcp only. Default
    /// false.
    pub proxy_protocol: Option<bool>,
    /// What it takes in a second from this gateway, of requests, or of connections where the route is
    /// tcp, over all ports of the route; retries and mirrored copies count. What is more goes to the next
    /// levels that have room, and what fits nowhere is refused with 503 and `over-capacity`, which a
    /// gateway that calls tries elsewhere. Of a backend of which a part is healthy, that part. A second's
    /// worth may come at once. Of a peer the lesser of this and what its gateways report. `1/s` to
    /// `1000000/s`. Default: anything.
    pub capacity: Option<Text<Rate>>,
    /// A MeshPeer, instead of `endpoints`: where that cluster keeps its own files.
    pub peer: Option<Text<Name>>,
}

/// What TLS is spoken with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum TlsSpec {
    /// None.
    None,
    /// The gateway originates mTLS with its SVID and expects `spiffeIDs`.
    Mesh,
    /// The endpoint speaks TLS itself; the only one `inbound: passthrough` may use.
    Workload,
}

/// The HTTP version spoken with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum VersionSpec {
    /// The caller's.
    Same,
    /// HTTP/1.1.
    H1,
    /// HTTP/2, also without TLS (gRPC).
    H2,
}

/// How one endpoint of a level is picked.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct BalanceSpec {
    /// Default `least-request`.
    pub policy: Option<BalancePolicy>,
    /// After so long, give or take a tenth, a connection to an endpoint takes no new requests: the next
    /// are sent over another one, which may lead elsewhere where an address stands for several. What is
    /// under way on it goes on. http only: a tcp connection is one caller's, and is never cut for its age.
    /// Default `0s`: any age.
    pub max_connection_age: Option<Text<Duration>>,
}

/// How one endpoint of a level is picked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum BalancePolicy {
    /// The less busy of two drawn by weight.
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// Drawn by weight.
    Random,
    /// The one of two drawn by weight that costs less: how long it takes to answer, times what is under
    /// way there and one more. Each worker learns it from the heads of responses, and of tcp from
    /// connecting. A peak counts at once and is forgotten within tens of seconds; what fails counts as
    /// 1 s at the least.
    PeakEwma,
    /// By a key of this, by weight: what has the same key goes to the same endpoint, from every gateway,
    /// while that one is healthy and of the level that the key falls on. One of n that goes takes about
    /// 1/n of the keys with it, its own, and no other key moves.
    RingHash(HashSpec),
    /// By a key, from a table, which takes the same however many endpoints there are; `ring-hash` looks at
    /// each. Where one of n is removed from the configuration, up to 8 % of the keys of others move too;
    /// while one is merely bad, its own alone. A level of up to 16 endpoints has a table of 4 KiB, up to
    /// 256 of 32 KiB, up to 4096 of 128 KiB, made when it is first used; a larger one is picked as by
    /// `ring-hash`.
    Maglev(HashSpec),
}

impl BalancePolicy {
    /// What the key is made of, where there is one.
    pub(crate) const fn hash_on(&self) -> Option<&HashSpec> {
        match self {
            Self::RingHash(on) | Self::Maglev(on) => Some(on),
            Self::LeastRequest | Self::RoundRobin | Self::Random | Self::PeakEwma => None,
        }
    }
}

/// What a key is made of.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HashSpec {
    /// The source address of the connection; of what came through a peer's gateway, that gateway's.
    Source,
    /// The first header of this name; requests without it are drawn as by `random`. Ports of the route
    /// that are not http take the source address.
    Header(Text<FieldName>),
}

/// What is near.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct LocalitySpec {
    /// The levels, nearest first. Default `[subzone, zone, region]`.
    pub prefer: Option<Vec<ScopeSpec>>,
    /// The share of each locality in the traffic of the level that they are all in, such as
    /// `{ eu/eu-1: 80%, eu/eu-2: 20% }`, each written as its backends have it, and taken relative to
    /// each other where they are not together `100%`. One that is not healthy enough for its share
    /// (`failover.start`) gives of it to the others; `0%` is used where the others fail. Default:
    /// endpoints alone weigh.
    #[serde(default, deserialize_with = "yaml::unique")]
    pub spread: Option<BTreeMap<String, Text<Percent>>>,
}

/// One step of nearness.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ScopeSpec {
    /// The same region, zone and subzone.
    Subzone,
    /// The same region and zone.
    Zone,
    /// The same region.
    Region,
}

/// When traffic leaves a level and how it comes back.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct FailoverSpec {
    /// What follows the nearest level, in this order; what is not named is not used. Default: all
    /// backends, nearest first.
    pub order: Option<Vec<Selector>>,
    /// What is never used. Default: nothing.
    #[serde(default)]
    pub never: List<Selector>,
    /// The healthy share of a level below which traffic starts to leave it. Default `70%` for http,
    /// `0%` for tcp.
    pub start: Option<Text<Percent>>,
    /// The healthy share at which all has left. Default `0%`; at most `start`, and below `100%`.
    pub full: Option<Text<Percent>>,
    /// How long a level must have been bad before more is moved away. Default `0s`.
    pub hold: Option<Text<Duration>>,
    /// How traffic comes back.
    #[serde(default)]
    pub failback: FailbackSpec,
    /// What happens when no level has a healthy endpoint: `use-all` uses those that only passive
    /// checks ejected, `fail` refuses. Default `use-all` for http, `fail` for tcp.
    pub too_few: Option<TooFewSpec>,
}

/// How traffic comes back.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct FailbackSpec {
    /// How long a level must have been good before anything comes back. Default `1m` for http, `5m`
    /// for tcp.
    pub after: Option<Text<Duration>>,
    /// How long the way back from nothing to everything takes. Default `1m` for http, `0s` for tcp.
    pub ramp: Option<Text<Duration>>,
    /// `auto`, or `manual`: traffic comes back to a level that it left when `zeugma failover reset`
    /// says so, by `ramp`; `after` has no say then. What the other levels cannot carry comes back
    /// without it, and no more. A level waits across reloads, and across restarts where there is a
    /// `stateDir`. Default `auto`.
    pub mode: Option<FailbackModeSpec>,
}

/// Who decides that traffic comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FailbackModeSpec {
    /// Time: `after`.
    Auto,
    /// An operator, by `zeugma failover reset`.
    Manual,
}

/// What happens when no level has a healthy endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TooFewSpec {
    /// The nearest level's endpoints that only passive checks ejected are used.
    UseAll,
    /// The connection or request is refused.
    Fail,
}

/// Names backends by one property.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Selector {
    /// All in this region.
    Region(Text<Name>),
    /// All in this cluster.
    Cluster(Text<Name>),
    /// The backend of this name.
    Backend(Text<Name>),
}

/// How healthy endpoints are told from others.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HealthSpec {
    /// Checks that the gateway makes; through a peer's gateway all the way to the service.
    /// Default: none.
    pub active: Option<ActiveSpec>,
    /// What is learned from traffic.
    #[serde(default)]
    pub passive: PassiveSpec,
    /// For how long an endpoint gets less than its weight that comes back from an ejection, passes its
    /// active checks again, or joins others that serve: 10% of it at first, then as much as of this time
    /// has passed. How healthy its level is does not wait for it, and one that is alone gets everything.
    /// Nobody starts slowly only because the gateway does. Default `0s`: at its weight at once.
    pub slow_start: Option<Text<Duration>>,
}

/// Checks that the gateway makes. One of `http`, `grpc` and `tcp`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ActiveSpec {
    /// `GET` this path; a 2xx status is good. Ports of the route that are not http are checked as by
    /// `tcp: true`.
    pub http: Option<String>,
    /// Ask `grpc.health.v1.Health/Check` for this service, `""` for the server as a whole; `SERVING` is
    /// good. It goes by HTTP/2, whatever the backend's `version` is. Through a peer's gateway a refusal
    /// by PERMISSION_DENIED, UNAUTHENTICATED or UNIMPLEMENTED is a sign of life: the check may need a
    /// rule in `allow` there. Ports of the route that are not http are checked as by `tcp: true`. At
    /// most 255 bytes.
    #[schemars(extend("examples" = ["shop.Orders"]))]
    pub grpc: Option<String>,
    /// `true`: a connection is accepted.
    pub tcp: Option<bool>,
    /// How often. Default `5s`; at least 100ms.
    pub every: Option<Text<Duration>>,
    /// How long an answer may take. Default `1s`; at least 1ms.
    pub timeout: Option<Text<Duration>>,
    /// Good answers in a row until healthy. Default 2; 1 to 100.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub up: Option<u32>,
    /// Bad answers in a row until unhealthy. Default 3; 1 to 100.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub down: Option<u32>,
}

/// What is learned from traffic.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PassiveSpec {
    /// Failures in a row until an endpoint is ejected; 0 counts none. Default 5.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub consecutive: Option<u32>,
    /// What counts as a failure. Default `[connect, reset, timeout, 502, 503, 504]` for http,
    /// `[connect, reset, timeout]` for tcp.
    pub on: Option<Vec<Text<Cause>>>,
    /// Ejection by share of failures in 10 s windows.
    #[serde(default)]
    pub error_rate: ErrorRateSpec,
    /// Ejection of endpoints that answer later than the others of their level, in 10 s windows. What counts
    /// is the geometric mean of the time from the request to the head of an answer below 400, connecting
    /// apart; for tcp, until the endpoint is connected; for TLS that is passed through, until its first
    /// byte. An endpoint is compared with the middle one of the others that have been asked as often as
    /// `requests` says, and those count as taking 2 ms at the least: endpoints of one level should be about
    /// equally far away. The one request that tries an endpoint again must not be slow either. Default:
    /// none.
    #[serde(default)]
    pub slow: SlowSpec,
    /// How long an ejection lasts; each further one as much longer, up to ten times, until it was well
    /// for so long again. Then one request is sent there, and the others wait for what comes of it.
    /// Default `30s`; at least 1ms.
    pub eject: Option<Text<Duration>>,
    /// The largest share of a level that may be ejected. Default `100%`.
    pub max_ejected: Option<Text<Percent>>,
    /// Endpoints of the route that are never ejected, counted over all levels. Default 1.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub keep_at_least: Option<u32>,
}

/// Ejection by share of failures in 10 s windows.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ErrorRateSpec {
    /// The share above which an endpoint is ejected. Default `50%`; `100%` switches it off.
    pub over: Option<Text<Percent>>,
    /// The requests a window needs before it is judged. Default 20; at least 1.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub requests: Option<u32>,
}

/// Ejection of endpoints that answer later than the others of their level.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct SlowSpec {
    /// So many times as long as the others. Default `none`: nothing is ejected for being slow; more than
    /// `1x`, at most `1000x`.
    pub over: Option<Text<MaybeTimes>>,
    /// The answers a window needs before it is judged. Default 20; at least 1.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub requests: Option<u32>,
}

/// Deadlines.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TimeoutsSpec {
    /// For a connection, TLS included. Default `1s`, to a peer's gateway `3s`; at least 1ms.
    pub connect: Option<Text<Duration>>,
    /// From the end of the request to the head of the response. http only. Default `15s`; over it:
    /// another try, else 504.
    pub response_headers: Option<Text<Duration>>,
    /// Without a byte in either direction. Default `1h`; then the connection or stream is ended.
    pub idle: Option<Text<Duration>>,
    /// For one try. http only. Default `none`: `responseHeaders` alone.
    pub per_try: Option<Text<MaybeDuration>>,
}

/// Extra tries, each on another endpoint.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RetriesSpec {
    /// Extra tries for one request. http only: a connection that no endpoint took is always tried on
    /// every other one. Default 2; 0 to 10.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub attempts: Option<u32>,
    /// What is retried, before any byte of a response. http only. Default `[connect-failure,
    /// refused-stream, reset, 502, 503, 504, unavailable]`; the first two, and a peer's
    /// `no-local-endpoint`, always are, since no endpoint saw the request. A gRPC status is seen where
    /// the answer is nothing but trailers.
    pub on: Option<Vec<Text<Cause>>>,
    /// Extra tries as a share of the last 10 s' requests, at least 10. http only. Default `20%`.
    pub budget: Option<Text<Percent>>,
    /// Request bytes kept for another try; a longer request is not tried again. http only. Default
    /// `64KiB`; at most 16MiB.
    pub buffer: Option<Text<Size>>,
    /// Whether methods that are not idempotent are retried too. http only. Default false.
    pub any: Option<bool>,
    /// One more endpoint is asked while the first has not answered; the first good answer is the
    /// caller's, and the other try is given up. It is one of `attempts` and of the `budget`, and nothing
    /// is sent where no other endpoint is healthy and has room. Only requests of safe methods (GET, HEAD,
    /// OPTIONS and TRACE, whatever `any` says: the other endpoint may still do what is asked, and late) that
    /// came whole and fit `buffer`; not what a peer's gateway sends, which hedges by itself. A try that is
    /// given up counts as no failure: an endpoint that hangs is found by `health.passive.slow` or by an
    /// active check.
    #[serde(default)]
    pub hedge: HedgeSpec,
}

/// When one more endpoint is asked beside the first.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HedgeSpec {
    /// How long after the end of the request. http only. Default `none`: no request is hedged; at least
    /// 1ms. Best what 95 of 100 answers take: one more request for each of the others.
    pub after: Option<Text<MaybeDuration>>,
}

/// How much of a route may be under way at once, on one gateway and over all its workers. More is
/// refused at once and counted: a request by a 503, a connection by being closed, TLS that is passed
/// through by an alert. A calling gateway may try another cluster. Copies of requests count only where
/// they wait; copies of connections are connections, and one too many is dropped and counted.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RouteLimitsSpec {
    /// Connections that are carried, copies that mirrors make included. tcp only. Default: any number;
    /// 1 to 10000000.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub connections: Option<u32>,
    /// Requests that wait for a connection to an endpoint. http only. Default: any number; 1 to
    /// 10000000.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub pending: Option<u32>,
    /// Requests, until their responses have ended; upgraded ones and streams too. http only.
    /// Default: any number; 1 to 10000000.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub requests: Option<u32>,
}

/// One rule for requests that are let in. What it does not say is as the route, or the route that
/// its split leads to, has it.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HttpRuleSpec {
    /// What it is called in the access log and in metrics. Default: its place, from 0.
    pub name: Option<Text<Name>>,
    /// Which requests it is for: those that one of these matches; at most 16. Default: all.
    pub matches: Option<Vec<MatchSpec>>,
    /// Where they go, by weight; at most 16 parts. The share of a part where nothing is healthy goes
    /// to the others, and so does a request that its part fails. Default: where the route's traffic
    /// goes.
    pub split: Option<Vec<PartSpec>>,
    /// Deadlines of their own.
    #[serde(default)]
    pub timeouts: RuleTimeoutsSpec,
    /// Extra tries of their own.
    #[serde(default)]
    pub retries: RuleRetriesSpec,
    /// What becomes of headers.
    #[serde(default)]
    pub headers: HeadersSpec,
}

/// What a request must have: all that is written. Texts are literal.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MatchSpec {
    /// The path, read as `allow` and `deny` read it. One that servers read differently (with `..`,
    /// `%2F`, or `//` where that makes a difference) is matched by no rule of a route whose rules look
    /// at paths. Default: any.
    pub path: Option<PathSpec>,
    /// The method; WebSocket by HTTP/2 is a `GET`. Default: any.
    pub method: Option<Text<Method>>,
    /// Headers, by name; one that a request has twice is matched by nothing. At most 16. Default: any.
    #[serde(default, deserialize_with = "yaml::unique")]
    pub headers: Option<BTreeMap<String, Text<FieldValue>>>,
    /// Query parameters, by name; of several the first counts. At most 16. Default: any.
    #[serde(default, deserialize_with = "yaml::unique")]
    pub query: Option<BTreeMap<String, String>>,
    /// A gRPC service or method, instead of `path` and `method`: `POST /service/method`.
    pub grpc: Option<GrpcSpec>,
}

/// What a path must be.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PathSpec {
    /// This path, or one below it: `/v1` is `/v1`, `/v1/` and `/v1/x`, and not `/v1x`.
    Prefix(Text<RulePath>),
    /// This path alone.
    Exact(Text<RulePath>),
}

/// A gRPC service or method.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct GrpcSpec {
    /// The service with its package. Required.
    pub service: Text<GrpcName>,
    /// The method. Default: all of the service's.
    pub method: Option<Text<GrpcName>>,
}

/// A part of a split: `backends`, or `route`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct PartSpec {
    /// Some of this route's backends, by name; they fail over among each other.
    pub backends: Option<Vec<Text<Name>>>,
    /// Another http route, `namespace/name`, with its own backends, failover, timeouts, retries and
    /// limits. Its `deny` holds, and on mesh listeners its `export`: what they refuse goes to the
    /// other parts, and is refused where there are none. Its `rules`, `mirror` and `allow` are not
    /// asked: the request was let in here.
    /// The only endpoint of a route is not ejected unless its `health.passive.keepAtLeast` is 0: a
    /// request tries it before it goes to another part.
    pub route: Option<Text<Reference>>,
    /// Its share of the requests relative to the other parts. Default 1; 0 to 1000000.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub weight: Option<u32>,
}

/// Deadlines of a rule.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleTimeoutsSpec {
    /// As `timeouts.responseHeaders` of the route.
    pub response_headers: Option<Text<Duration>>,
    /// As `timeouts.perTry` of the route.
    pub per_try: Option<Text<MaybeDuration>>,
}

/// Extra tries of a rule.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleRetriesSpec {
    /// As `retries.attempts` of the route.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub attempts: Option<u32>,
    /// As `retries.on` of the route.
    pub on: Option<Vec<Text<Cause>>>,
    /// As `retries.any` of the route.
    pub any: Option<bool>,
}

/// What becomes of headers. `host`, `content-length`, what ends at each hop, and what the gateway itself
/// writes (`x-request-id`, `x-forwarded-client-cert`, `x-zeugma-*`, `traceparent`, `via`) cannot be
/// changed, and of answers neither can `grpc-*`, which says how a call ended.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HeadersSpec {
    /// Of requests, as they leave for an endpoint or a peer.
    #[serde(default)]
    pub request: HeaderChangesSpec,
    /// Of what an endpoint or a peer answers; the gateway's own answers stay as they are.
    #[serde(default)]
    pub response: HeaderChangesSpec,
}

/// Changes of headers, at most 32 of each kind; no name stands in two of them.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct HeaderChangesSpec {
    /// Take the place of what is there.
    #[serde(default, deserialize_with = "yaml::unique")]
    pub set: Option<BTreeMap<String, Text<FieldValue>>>,
    /// Come beside what is there.
    #[serde(default, deserialize_with = "yaml::unique")]
    pub add: Option<BTreeMap<String, Text<FieldValue>>>,
    /// Are taken out, by name.
    pub remove: Option<Vec<Text<FieldName>>>,
}

/// Copies of a share of the requests, or of a tcp route of the connections: of these what the caller
/// sends, while what is answered to the copy is thrown away. A copy is never mirrored again, and never
/// delays, fails or changes the original.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct MirrorSpec {
    /// The route that receives the copies, `namespace/name`, of the same protocol. Required. What a route
    /// of `inbound: passthrough` carries cannot be copied.
    pub route: Text<Reference>,
    /// Only this peer's part of that route. Default: wherever that route's traffic goes.
    pub peer: Option<Text<Name>>,
    /// The share of requests or connections copied. Default `100%`.
    pub percent: Option<Text<Percent>>,
    /// How long one copy may take. Of a tcp route: how long to connect it may take, and the copy itself
    /// once the original is over. Default `2s`; at least 1ms.
    pub timeout: Option<Text<Duration>>,
    /// Bodies above this are not copied. Of a tcp route: bytes that may wait for a copy that is slower
    /// than the original; with more it is given up, by a reset. Default `1MiB`; at most 16MiB.
    pub body_limit: Option<Text<Size>>,
    /// Copies under way at once, on one worker; more are dropped and counted. Default 64; 1 to
    /// 10000.
    #[serde(default, deserialize_with = "whole_or_none")]
    pub in_flight: Option<usize>,
    /// Whether the status and the body of the copy's answer are compared with those of the answer that
    /// the caller got; differences are counted, and logged with the request's id. Of gRPC the status is
    /// that of the trailers. Bodies above `bodyLimit`, and such as are encoded differently, are not
    /// compared. http only. Default false.
    pub compare: Option<bool>,
}

/// One rule: every field that is written must match, by one of its values. At least one field.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct RuleSpec {
    /// The caller's SPIFFE ID; exists only where TLS is terminated.
    pub from: Option<Vec<Text<IdPattern>>>,
    /// The peers whose gateway must have attested that identity.
    pub via: Option<Vec<Text<Name>>>,
    /// The listener the connection came in on.
    pub listeners: Option<Vec<Text<Name>>>,
    /// The source address of the connection.
    pub sources: Option<Vec<Text<IpNet>>>,
    /// The host that the caller's TLS named (SNI), where TLS is terminated or passed through: a host, or
    /// `*.x` for any depth below `x`, in upper or lower case, for every port of it. The name is the
    /// connection's, as its ClientHello had it, with ECH the outer one. Callers name what they like: it says
    /// what is asked for, and not who asks. On an http route it says nothing of a request's `Host`, so that it
    /// keeps no hosts of one route apart; a route of its own does. Peers' gateways name the first exact
    /// host of a route that ends TLS, whichever is asked for. What came without TLS, by a one-route listener or
    /// from a load balancer that ended TLS has no name, and no entry with `sni` matches it, in `allow` and
    /// in `deny`. Where a split leads to another route, that one's `deny` is asked with the name by which the
    /// caller came. `deny` takes a name such as `outbound_.80_.v1_.x`, which may mean `x`, for `x` too.
    pub sni: Option<Vec<Text<Sni>>>,
    /// The HTTP method. http only.
    pub methods: Option<Vec<Text<Method>>>,
    /// The HTTP path: `/v1/orders`, or `/v1/*` for all below. http only. `deny` does not count
    /// slashes at the end: `/v1/*` denies `/v1` too.
    pub paths: Option<Vec<Text<PathPattern>>>,
    /// Headers of the request, by name, such as `{ x-tenant: [acme, "east-*"] }`: each must be there, with
    /// one of its values. http only; at most 16. Where a request has a header several times, `allow`
    /// needs each of its values to be named, and `"east-*"` holds of a list with commas only if each value
    /// in it begins so; `deny` needs one, which may also stand in such a list, in upper or lower case.
    #[serde(default, deserialize_with = "yaml::unique")]
    pub headers: Option<BTreeMap<String, Vec<Text<ValuePattern>>>>,
}

/// Which peers may reach a route through a mesh listener.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ExportSpec {
    /// Names of MeshPeers, or `"*"` for all. Default: none. The peer of the gateway's own cluster
    /// is ignored.
    #[serde(default)]
    pub to: List<String>,
}
