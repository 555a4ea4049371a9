//! The configuration of one gateway: immutable, every cross-reference resolved.
//!
//! `xds::ingest` is the only maker of a [`Snapshot`]; everything that decides reads one. Its parts
//! refer to each other by index newtypes, so that a snapshot is a few flat tables.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::admission::{Rate, RouteLimits};
use crate::balance::Slots;
use crate::identity::{IdPattern, TrustDomain};
use crate::locality::Locality;
use crate::names::{Host, HostPattern, SniTarget};
use crate::rules::Rules;
pub use crate::table::Table;

/// The index of a [`Service`] in [`Snapshot::services`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceIx(pub usize);
/// The index of a [`Cluster`] in [`Snapshot::clusters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterIx(pub usize);
/// The index of a [`Peer`] in [`Snapshot::peers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIx(pub usize);
/// The index of an [`Endpoint`] in [`Cluster::endpoints`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointIx(pub usize);

/// Everything one gateway was told, checked and resolved.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// What the configuration's source calls this version; opaque, equal only for equal content.
    pub version: Arc<str>,
    /// Who this gateway is.
    pub node: Node,
    /// Where it listens, in the order written.
    pub listeners: Table<Listener>,
    /// What it can carry, one entry for each route and port.
    pub services: Table<Service>,
    /// Where traffic can go.
    pub clusters: Table<Arc<Cluster>>,
    /// The other clusters it knows.
    pub peers: Table<Peer>,
}

/// Who a gateway is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The gateway's name.
    pub name: Arc<str>,
    /// The cluster it stands at the edge of.
    pub cluster: Arc<str>,
    /// Where it stands; distances are measured from here.
    pub locality: Locality,
    /// The trust domain of its own SVID.
    pub trust_domain: TrustDomain,
}

/// A socket that accepts connections.
#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    /// The name rules refer to.
    pub name: Arc<str>,
    /// The address to bind.
    pub address: SocketAddr,
    /// Who is expected to connect here.
    pub role: Role,
    /// The one service of a one-route listener; such a listener never waits for client bytes.
    pub only: Option<ServiceIx>,
    /// The services reachable here by SNI or authority; empty on a one-route listener.
    pub hosts: HostTable,
    /// The networks that may connect at all; empty: any.
    pub sources: Vec<IpNet>,
    /// How many connections one source may begin; `None`: any.
    pub handshakes: Option<Rate>,
    /// The networks that alone may connect, each connection with a PROXY header that says whose it
    /// is; empty: there are no headers, and who connects is the source.
    pub proxies: Vec<IpNet>,
}

/// Who is expected to connect to a [`Listener`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Other clusters' gateways and meshes: TLS only, exported services only, own backends only.
    Mesh,
    /// This cluster's workloads: plaintext HTTP by authority, TLS by SNI, plain TCP on one-route
    /// listeners.
    Workloads,
}

impl Role {
    /// The word in a configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Workloads => "workloads",
        }
    }
}

/// One port of one route: the unit that is authorized, exported and balanced.
#[derive(Debug, Clone, PartialEq)]
pub struct Service {
    /// `namespace/name` of the route.
    pub name: Arc<str>,
    /// The port callers name.
    pub port: u16,
    /// How many ports the route has; with more than one a bare host does not name a port.
    pub ports: usize,
    /// The hosts it answers to.
    pub hosts: Vec<HostPattern>,
    /// What is inside the connection.
    pub protocol: Protocol,
    /// What a listener does with TLS that asks for it.
    pub inbound: Inbound,
    /// Every backend, nearest level first: where workloads' traffic goes.
    pub outbound: ClusterIx,
    /// This cluster's own backends alone: where other clusters' traffic goes.
    pub own: Option<ClusterIx>,
    /// Who may call it.
    pub policy: Policy,
    /// Which peers see it through a mesh listener.
    pub export: Export,
    /// Where copies of its requests go.
    pub mirrors: Vec<Mirror>,
    /// How its requests are told apart; `None`: they are all alike.
    pub rules: Option<Arc<Rules>>,
    /// Where TLS is ended for it: the services by what requests inside may ask for, whatever their
    /// names; `None`: the hosts of its own route on the listener.
    pub inside: Option<Arc<HostTable>>,
    /// Whether requests may go on as WebSocket, of which no rule says anything more.
    pub is_upgraded: bool,
    /// Where it was written.
    pub position: Option<Position>,
}

/// What is inside a service's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Bytes.
    Tcp,
    /// HTTP/1.1 or HTTP/2: requests are decided one by one.
    Http,
}

impl Protocol {
    /// The word in a configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
        }
    }
}

/// What a listener does with TLS that asks for a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Inbound {
    /// Relay it as it is, by SNI.
    Passthrough,
    /// End it here with the gateway's own SVID and verify the caller's.
    Terminate,
}

impl Inbound {
    /// The word in a configuration.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Passthrough => "passthrough",
            Self::Terminate => "terminate",
        }
    }
}

/// Which peers may reach a service through a mesh listener.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Export {
    /// Nobody: the default.
    Nobody,
    /// These peers.
    To(Vec<PeerIx>),
    /// Every known peer.
    AllPeers,
}

/// Who may call a service. Deny wins; no matching allow rule is a denial.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Policy {
    /// At least one of these must match.
    pub allow: Vec<Rule>,
    /// None of these may match.
    pub deny: Vec<Rule>,
    /// What becomes of a denial.
    pub mode: PolicyMode,
}

/// What becomes of a denial by a [`Policy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum PolicyMode {
    /// The caller is refused.
    #[default]
    Enforce,
    /// The caller is let in, and the denial is told.
    Audit,
}

/// One authorization rule: every non-empty field must match, by one of its values.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rule {
    /// The caller's identity.
    pub from: Vec<IdPattern>,
    /// The peers whose gateway must have attested the caller's identity.
    pub via: Vec<PeerIx>,
    /// The listener the connection came in on.
    pub listeners: Vec<Arc<str>>,
    /// The source address of the connection.
    pub sources: Vec<IpNet>,
    /// The server name of the caller's TLS.
    pub sni: Vec<SniPattern>,
    /// The HTTP method, in upper case.
    pub methods: Vec<Arc<str>>,
    /// The HTTP path.
    pub paths: Vec<PathPattern>,
    /// Headers of the request, each with its name once.
    pub headers: Vec<HeaderRule>,
    /// Where the rule was written.
    pub position: Option<Position>,
}

impl Policy {
    /// Whether a rule asks for the headers of requests.
    #[must_use]
    pub fn asks_headers(&self) -> bool {
        self.headers_asked().next().is_some()
    }

    /// The names of the headers of requests that rules ask for.
    pub fn headers_asked(&self) -> impl Iterator<Item = &Arc<str>> {
        let rules = self.allow.iter().chain(&self.deny);
        rules.flat_map(|rule| &rule.headers).map(|of| &of.name)
    }
}

/// What a rule's `sni` names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SniPattern {
    /// Every server name of such a host, whether it names a port too or not
    /// ([`SniTarget`]).
    Host(HostPattern),
    /// Every server name of such a text, as control planes have it that know nothing of us.
    Text(HostPattern),
}

impl fmt::Display for SniPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(pattern) | Self::Text(pattern) => write!(f, "{pattern}"),
        }
    }
}

/// What a rule's `headers` names: a header, and its values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HeaderRule {
    /// Its name, in lower case.
    pub name: Arc<str>,
    /// One of them it must have.
    pub values: Vec<ValuePattern>,
}

impl fmt::Display for HeaderRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.name)?;
        for (nth, value) in self.values.iter().enumerate() {
            write!(f, "{} {value}", if nth > 0 { " or" } else { "" })?;
        }
        Ok(())
    }
}

/// A value of a header.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ValuePattern {
    /// `acme`: this value alone.
    Exact(Arc<str>),
    /// `acme-*`: every value that begins with `acme-`. Holds `acme-`, or nothing: any value.
    Begins(Arc<str>),
}

impl fmt::Display for ValuePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(value) => f.write_str(value),
            Self::Begins(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// What a rule's `paths` names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PathPattern {
    /// `/v1/orders`: this path alone.
    Exact(Arc<str>),
    /// `/v1/*`: every path that begins with `/v1/`; `/v1` itself is one for deny rules alone. Holds
    /// `/v1/`.
    Below(Arc<str>),
}

impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Below(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Where something was written, for messages.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// The line, from 1.
    pub line: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// A copy of a share of a service's requests, or of its connections where it carries bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Mirror {
    /// `namespace/name` of the route that receives the copies, for messages.
    pub route: Arc<str>,
    /// Where the copies go.
    pub to: ClusterIx,
    /// The authority that copies carry where they leave through a peer's gateway.
    pub host: Arc<str>,
    /// The share of them copied, 0 to 1.
    pub share: f64,
    /// How long one copy may take; of a connection to be connected, and once its primary is over.
    pub timeout: Duration,
    /// Bodies above this many bytes are neither copied nor compared; of a connection, the bytes that
    /// may wait for its copy.
    pub body_bytes_max: usize,
    /// Copies under way at once, on one worker; more are dropped and counted.
    pub in_flight_max: usize,
    /// Whether the copies' answers are compared with those of the primaries.
    pub compare: bool,
    /// Where it was written.
    pub position: Option<Position>,
}

/// Endpoints that answer for a service, in levels.
#[derive(Debug, Clone, PartialEq)]
pub struct Cluster {
    /// The name, unique in the snapshot.
    pub name: Arc<str>,
    /// `namespace/name` of the route it belongs to.
    pub route: Arc<str>,
    /// Every endpoint.
    pub endpoints: Vec<Endpoint>,
    /// The levels, preferred first; each endpoint is in exactly one. Never empty, but a level is while
    /// its names have no addresses.
    pub levels: Vec<Level>,
    /// How it is used.
    pub policy: Arc<ClusterPolicy>,
}

/// How a cluster is used. Most say the same as others, and share it.
#[derive(Debug, Clone, PartialEq)]
pub struct ClusterPolicy {
    /// How one endpoint of a level is picked.
    pub balance: Balance,
    /// The localities of one level that its traffic is weighed by; empty: endpoints alone weigh.
    pub spread: Vec<SpreadPart>,
    /// When traffic leaves a level and how it comes back.
    pub failover: Failover,
    /// The active check, if any.
    pub active: Option<ActiveCheck>,
    /// What is learned from traffic.
    pub passive: PassiveCheck,
    /// After so long an HTTP connection to an endpoint takes no new requests; zero: it takes any.
    pub connection_age_max: Duration,
    /// For how long an endpoint that comes (back) to others gets less than its weight; zero: not.
    pub slow_start: Duration,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Extra tries.
    pub retries: Retries,
    /// How much of the route may be under way at once.
    pub limits: RouteLimits,
}

/// A locality's part of the level that it is in.
#[derive(Debug, Clone, PartialEq)]
pub struct SpreadPart {
    /// The locality, as its endpoints have it.
    pub locality: Locality,
    /// Its weight among those of the level, 0 or more.
    pub weight: f64,
}

/// Endpoints that are equally preferred.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level {
    /// For people: the localities and peers in it, such as `eu/eu-1` or `peer west`.
    pub name: Arc<str>,
    /// Its endpoints.
    pub members: Vec<EndpointIx>,
    /// The table that they are picked from, where they are picked by one.
    pub slots: Slots,
}

/// What an endpoint is known by across configuration changes: route, backend, address and TLS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointKey(pub Arc<str>);

impl fmt::Display for EndpointKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One address that answers for a service: a workload, or a peer's gateway.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// What it is known by; equal in every cluster that holds it.
    pub key: EndpointKey,
    /// The name of its backend.
    pub backend: Arc<str>,
    /// Where to connect.
    pub address: Address,
    /// Its weight inside its level, above 0. The gateways of a peer share the peer's weight of 1.
    pub weight: f64,
    /// Where it stands.
    pub locality: Locality,
    /// The peer it is a gateway of.
    pub peer: Option<PeerIx>,
    /// What TLS is spoken with it.
    pub tls: EndpointTls,
    /// The HTTP version spoken with it.
    pub version: HttpVersion,
    /// Whether a PROXY protocol v2 header with the caller's SPIFFE ID precedes the bytes.
    pub proxy_protocol: bool,
    /// What its backend, which is all endpoints of its name, takes in a second from this gateway;
    /// `None`: anything.
    pub capacity: Option<Rate>,
    /// Whether whoever configures it says that it is of no use now, whatever checks find: it counts as
    /// unhealthy.
    pub is_down: bool,
}

/// Where an endpoint is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An address.
    Socket(SocketAddr),
    /// A name that is resolved by its TTL, and a port: one endpoint, whatever its addresses.
    Name(Host, u16),
    /// A name, and a port: in a snapshot as it is written, every address of it is an endpoint (see
    /// [`resolved`](crate::resolved::resolved)).
    Each(Host, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Name(host, port) | Self::Each(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// What TLS is spoken with an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointTls {
    /// None.
    None,
    /// The endpoint's own: the caller's TLS is relayed as it is.
    Workload,
    /// The gateway originates mTLS with its SVID.
    Mesh {
        /// The SNI sent.
        sni: Arc<str>,
        /// Who must answer; never empty.
        expected: Vec<IdPattern>,
    },
}

/// The HTTP version spoken with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HttpVersion {
    /// The caller's.
    Same,
    /// HTTP/1.1.
    H1,
    /// HTTP/2.
    H2,
}

/// How one endpoint of a level is picked.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Balance {
    /// The less busy of two drawn by weight.
    LeastRequest,
    /// In turn, by weight.
    RoundRobin,
    /// Drawn by weight.
    Random,
    /// The one of two drawn by weight that costs less by its latency and what is under way there.
    PeakEwma,
    /// By a key, by weight: one key goes to one endpoint. Without it as [`Random`](Self::Random).
    RingHash(HashOn),
    /// The same from a table: of one that goes all keys go elsewhere, and a few of others with them.
    Maglev(HashOn),
}

impl Balance {
    /// What the key is made of, where there is one.
    #[must_use]
    pub const fn hash_on(&self) -> Option<&HashOn> {
        match self {
            Self::RingHash(on) | Self::Maglev(on) => Some(on),
            Self::LeastRequest | Self::RoundRobin | Self::Random | Self::PeakEwma => None,
        }
    }
}

/// What a key is made of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashOn {
    /// The header of this name, in lower case, of a request.
    Header(Arc<str>),
    /// The source address of the connection.
    Source,
}

/// When traffic leaves a level and how it comes back (the formula stands in `fleet`).
#[derive(Debug, Clone, PartialEq)]
pub struct Failover {
    /// The healthy share of a level below which traffic starts to leave it, 0 to 1.
    pub start: f64,
    /// The healthy share at which all has left, at most `start` and below 1.
    pub full: f64,
    /// How long a level must have been bad before more is moved away.
    pub hold: Duration,
    /// How long a level must have been good before anything comes back.
    pub failback_after: Duration,
    /// How long the way back from nothing to everything takes.
    pub failback_ramp: Duration,
    /// Who decides that traffic comes back.
    pub failback: Failback,
    /// What happens when no level has a healthy endpoint.
    pub too_few: TooFew,
}

/// Who decides that traffic comes back to a level that is good again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failback {
    /// Time: [`Failover::failback_after`].
    Auto,
    /// An operator, by a reset.
    Manual,
}

/// What happens when no level has a healthy endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TooFew {
    /// The nearest level's endpoints that only passive checks ejected are used.
    UseAll,
    /// The connection or request is refused.
    Fail,
}

/// An active check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActiveCheck {
    /// What is asked.
    pub kind: ActiveKind,
    /// How often.
    pub every: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Good answers in a row until healthy.
    pub up: u32,
    /// Bad answers in a row until unhealthy.
    pub down: u32,
}

/// What an active check asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ActiveKind {
    /// `GET` this path; a 2xx status is good.
    Http {
        /// The path.
        path: Arc<str>,
        /// The authority sent.
        host: Arc<str>,
    },
    /// A connection is accepted.
    Tcp,
    /// `grpc.health.v1.Health/Check` of this service over HTTP/2; `SERVING` is good.
    Grpc {
        /// The service asked for; empty: the server as a whole.
        service: Arc<str>,
        /// The authority sent.
        host: Arc<str>,
    },
}

/// What is learned from traffic.
#[derive(Debug, Clone, PartialEq)]
pub struct PassiveCheck {
    /// Failures in a row until ejected; 0 counts none.
    pub consecutive: u32,
    /// What counts as a failure.
    pub on: Vec<Failure>,
    /// Ejection by share of failures.
    pub error_rate: Option<ErrorRate>,
    /// Ejection of what answers later than others; `None`: nothing is.
    pub slow: Option<Slow>,
    /// How long the first ejection lasts.
    pub eject: Duration,
    /// The largest share of a level that may be ejected, 0 to 1.
    pub max_ejected: f64,
    /// Endpoints of the route that are never ejected, over all levels.
    pub keep_at_least: u32,
}

/// Ejection by share of failures in 10 s windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ErrorRate {
    /// The share above which an endpoint is ejected, 0 to 1.
    pub over: f64,
    /// The requests a window needs before it is judged.
    pub requests: u32,
}

/// Ejection by how long an endpoint takes to answer, in 10 s windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slow {
    /// So many times as long as the others of its level, over 1.
    pub over: f64,
    /// The answers a window needs before it is judged.
    pub requests: u32,
}

/// How an attempt failed: the causes that passive checks and retries name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// No connection, or no TLS session with the expected identity.
    Connect,
    /// HTTP/2 refused the stream before any processing (REFUSED_STREAM, GOAWAY).
    RefusedStream,
    /// The connection broke before a response.
    Reset,
    /// No response in time.
    Timeout,
    /// This HTTP status.
    Status(u16),
    /// gRPC status 14.
    Unavailable,
    /// This gRPC status, where it is another one.
    Grpc(u16),
    /// A peer's gateway has no healthy endpoint of its own: no endpoint saw the request.
    NoLocalEndpoint,
}

impl Failure {
    /// Whether no endpoint saw the request, so that any request may be tried again.
    #[must_use]
    pub const fn is_unseen(self) -> bool {
        matches!(
            self,
            Self::Connect | Self::RefusedStream | Self::NoLocalEndpoint
        )
    }

    /// The word in logs and metrics; one for all statuses.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::RefusedStream => "refused-stream",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Status(_) => "status",
            Self::Unavailable => "unavailable",
            Self::Grpc(_) => "grpc-status",
            Self::NoLocalEndpoint => "no-local-endpoint",
        }
    }
}

/// Deadlines of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included, to an own endpoint.
    pub connect: Duration,
    /// For a connection, TLS included, to a peer's gateway.
    pub connect_peer: Duration,
    /// From the end of the request to the head of the response.
    pub response_headers: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// For one try; `None`: `response_headers` alone.
    pub per_try: Option<Duration>,
}

/// Extra tries of a cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Retries {
    /// Extra tries for one request.
    pub attempts: u32,
    /// What is retried; causes of [`Failure::is_unseen`] always are.
    pub on: Vec<Failure>,
    /// Extra tries as a share of the last 10 s' requests, at least 10.
    pub budget: f64,
    /// Request bytes kept for another try.
    pub buffer_bytes_max: usize,
    /// Whether methods that are not idempotent are retried too.
    pub any_method: bool,
    /// After how long without an answer one more endpoint is asked beside the first; `None`: never.
    pub hedge_after: Option<Duration>,
}

/// Another cluster, reached through its gateways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The name rules refer to.
    pub name: Arc<str>,
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// Where it stands.
    pub locality: Locality,
    /// Who its gateways are; never empty.
    pub ids: Vec<IdPattern>,
    /// The trust domains whose callers we believe when its gateway hands them on.
    pub attests: Vec<TrustDomain>,
    /// Where its gateways call from; empty: anywhere.
    pub sources: Vec<IpNet>,
    /// HTTP/2 PING interval on connections to it.
    pub keepalive_ping: Duration,
    /// How long an answer to a PING may take.
    pub keepalive_timeout: Duration,
    /// What its last health report is worth once it is old.
    pub when_stale: WhenStale,
}

/// What a peer's last health report is worth once it is old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WhenStale {
    /// What it was: things are as they were last heard to be.
    Hold,
    /// Nothing: as if the peer had never reported.
    Drop,
}

impl Listener {
    /// Whether `source` may connect at all.
    #[must_use]
    pub fn admits(&self, source: IpAddr) -> bool {
        self.sources.is_empty() || contains(&self.sources, source)
    }

    /// Whether the word of `proxy` on a connection's source counts.
    #[must_use]
    pub fn trusts(&self, proxy: IpAddr) -> bool {
        contains(&self.proxies, proxy)
    }
}

fn contains(nets: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    nets.iter().any(|net| net.contains(&ip))
}

impl Peer {
    /// Whether its gateways call from `source`.
    #[must_use]
    pub fn calls_from(&self, source: IpAddr) -> bool {
        self.sources.is_empty() || self.sources.iter().any(|net| net.contains(&source))
    }
}

/// What a host stands for on one listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// This service.
    Found(ServiceIx),
    /// The host is known but has several ports, and none was named.
    PortNeeded,
    /// The host is known but has no such port.
    NoSuchPort,
    /// The host is not known.
    Unknown,
}

/// Services by host and port: exact beats wildcard, a longer wildcard beats a shorter one. Port 0 is the
/// host where no port is named with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostTable {
    exact: BTreeMap<Host, Vec<(u16, ServiceIx)>>,
    below: BTreeMap<Host, Vec<(u16, ServiceIx)>>,
    /// What nothing else is there for: another name, another port, or no name at all.
    pub rest: Option<ServiceIx>,
    /// Whether each entry is for what it says and nothing else: without a port for what names none, with one for
    /// that port. What has no entry of its own goes to the longest wildcard that says it.
    pub is_literal: bool,
}

impl HostTable {
    /// An empty [literal](Self::is_literal) table.
    #[must_use]
    pub fn literal() -> Self {
        Self {
            is_literal: true,
            ..Self::default()
        }
    }

    /// Adds a service under one of its hosts; returns the service that already had that host and
    /// port, unchanged.
    pub fn insert(
        &mut self,
        pattern: &HostPattern,
        port: u16,
        service: ServiceIx,
    ) -> Option<ServiceIx> {
        let ports = match pattern {
            HostPattern::Exact(host) => self.exact.entry(host.clone()),
            HostPattern::Below(host) => self.below.entry(host.clone()),
        };
        // Most hosts have one port.
        let ports = ports.or_insert_with(|| Vec::with_capacity(1));
        if let Some((_, earlier)) = ports.iter().find(|(p, _)| *p == port) {
            return Some(*earlier);
        }
        ports.push((port, service));
        None
    }

    /// Finds the service that `host` stands for.
    #[must_use]
    pub fn lookup(&self, host: &Host, port: Option<u16>) -> Lookup {
        self.lookup_name(host.as_str(), port)
    }

    /// The same by the [canonical text](Host::as_str) of the host.
    #[must_use]
    pub fn lookup_name(&self, host: &str, port: Option<u16>) -> Lookup {
        if self.is_literal {
            let port = port.unwrap_or_default();
            let exact = self.exact.get(host).and_then(|ports| of_port(ports, port));
            let found = exact.or_else(|| self.of_wildcard(host, port));
            return found.map_or(Lookup::Unknown, Lookup::Found);
        }
        match self.ports_of_name(host) {
            [] => Lookup::Unknown,
            ports => choose(ports, port),
        }
    }

    /// Finds the service that a server name stands for.
    #[must_use]
    pub fn lookup_sni(&self, sni: &SniTarget) -> Lookup {
        let found = self.lookup(&sni.host, sni.port);
        if !self.is_literal || sni.port.is_none() || found != Lookup::Unknown {
            return found;
        }
        // The name with a port in it has the host below itself.
        let host = sni.host.as_str();
        let whole = self.below.get(host).and_then(|ports| of_port(ports, 0));
        let found = whole.or_else(|| self.of_wildcard(host, 0));
        found.map_or(Lookup::Unknown, Lookup::Found)
    }

    /// The service of the longest wildcard above `host` that has the port.
    fn of_wildcard(&self, host: &str, port: u16) -> Option<ServiceIx> {
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            let ports = self.below.get(suffix);
            if let Some(ix) = ports.and_then(|ports| of_port(ports, port)) {
                return Some(ix);
            }
            rest = suffix;
        }
        None
    }

    /// Every port of `host` and its service; empty where the host is not known.
    #[must_use]
    pub fn ports(&self, host: &Host) -> &[(u16, ServiceIx)] {
        self.ports_of_name(host.as_str())
    }

    /// The same by the [canonical text](Host::as_str) of the host.
    #[must_use]
    pub fn ports_of_name(&self, host: &str) -> &[(u16, ServiceIx)] {
        if let Some(ports) = self.exact.get(host) {
            return ports;
        }
        let mut rest = host;
        while let Some((_, suffix)) = rest.split_once('.') {
            if let Some(ports) = self.below.get(suffix) {
                return ports;
            }
            rest = suffix;
        }
        &[]
    }

    /// Every host, the exact ones first, each with its ports.
    pub fn entries(&self) -> impl Iterator<Item = (HostPattern, &[(u16, ServiceIx)])> {
        let exact = (self.exact.iter())
            .map(|(host, ports)| (HostPattern::Exact(host.clone()), ports.as_slice()));
        let below = (self.below.iter())
            .map(|(host, ports)| (HostPattern::Below(host.clone()), ports.as_slice()));
        exact.chain(below)
    }

    /// Whether nothing is reachable.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.below.is_empty() && self.rest.is_none()
    }
}

impl FromIterator<(HostPattern, Vec<(u16, ServiceIx)>)> for HostTable {
    fn from_iter<I: IntoIterator<Item = (HostPattern, Vec<(u16, ServiceIx)>)>>(all: I) -> Self {
        let mut exact = Vec::new();
        let mut below = Vec::new();
        for (pattern, ports) in all {
            match pattern {
                HostPattern::Exact(host) => exact.push((host, ports)),
                HostPattern::Below(host) => below.push((host, ports)),
            }
        }
        // Maps that are made of all at once have no gaps.
        Self {
            exact: exact.into_iter().collect(),
            below: below.into_iter().collect(),
            rest: None,
            is_literal: false,
        }
    }
}

impl std::borrow::Borrow<str> for Host {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

fn choose(ports: &[(u16, ServiceIx)], port: Option<u16>) -> Lookup {
    match (ports, port) {
        ([(_, only)], None) => Lookup::Found(*only),
        (_, None) => of_port(ports, 0).map_or(Lookup::PortNeeded, Lookup::Found),
        (_, Some(port)) => of_port(ports, port).map_or(Lookup::NoSuchPort, Lookup::Found),
    }
}

fn of_port(ports: &[(u16, ServiceIx)], port: u16) -> Option<ServiceIx> {
    let mut ports = ports.iter();
    ports.find(|(p, _)| *p == port).map(|(_, ix)| *ix)
}

impl Snapshot {
    /// Takes from `before` what is the same, so that it is kept once, and is seen at a glance to be the
    /// same.
    pub fn share(&mut self, before: &Self) {
        self.share_clusters(before);
        share(&mut self.listeners, &before.listeners);
        share(&mut self.services, &before.services);
        share(&mut self.peers, &before.peers);
    }

    fn share_clusters(&mut self, before: &Self) {
        if self.clusters.is_one_with(&before.clusters) {
            return;
        }
        let mut by_name: BTreeMap<&str, &Arc<Cluster>> = BTreeMap::new();
        let mut shared = Vec::new();
        for (at, cluster) in self.clusters.iter().enumerate() {
            let there = before.clusters.get(at);
            if there.is_some_and(|known| Arc::ptr_eq(known, cluster)) {
                continue;
            }
            let known = match there.filter(|known| known.name == cluster.name) {
                Some(known) => Some(known),
                None => {
                    if by_name.is_empty() {
                        let all = before.clusters.iter();
                        by_name = all.map(|known| (&*known.name, known)).collect();
                    }
                    by_name.get(&*cluster.name).copied()
                }
            };
            let known = known.filter(|known| *known == cluster);
            shared.extend(known.map(|known| (at, Arc::clone(known))));
        }
        for (at, known) in shared {
            if let Some(cluster) = self.clusters.get_mut(at) {
                *cluster = known;
            }
        }
        let mut both = self.clusters.iter().zip(&before.clusters);
        if self.clusters.len() == before.clusters.len()
            && both.all(|(one, other)| Arc::ptr_eq(one, other))
        {
            self.clusters = before.clusters.clone();
        }
    }

    /// The service at `ix`.
    ///
    /// # Panics
    /// If `ix` is of another snapshot.
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "an index is only made for its own snapshot"
    )]
    pub fn service(&self, ix: ServiceIx) -> &Service {
        &self.services[ix.0]
    }

    /// The cluster at `ix`.
    ///
    /// # Panics
    /// If `ix` is of another snapshot.
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "an index is only made for its own snapshot"
    )]
    pub fn cluster(&self, ix: ClusterIx) -> &Cluster {
        &self.clusters[ix.0]
    }

    /// The peer at `ix`.
    ///
    /// # Panics
    /// If `ix` is of another snapshot.
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "an index is only made for its own snapshot"
    )]
    pub fn peer(&self, ix: PeerIx) -> &Peer {
        &self.peers[ix.0]
    }

    /// The listener called `name`.
    #[must_use]
    pub fn listener(&self, name: &str) -> Option<&Listener> {
        self.listeners
            .iter()
            .find(|listener| &*listener.name == name)
    }
}

/// Keeps a table once that is the same.
fn share<T: PartialEq>(table: &mut Table<T>, before: &Table<T>) {
    if table == before {
        *table = before.clone();
    }
}

/// How many times the longest connect deadline of its cluster all attempts of one caller may take.
const CONNECT_BUDGET_FACTOR: u32 = 3;

impl Cluster {
    /// How long a connection to an endpoint may take, TLS included.
    #[must_use]
    pub fn connect_deadline(&self, endpoint: &Endpoint) -> Duration {
        match endpoint.peer {
            Some(_) => self.policy.timeouts.connect_peer,
            None => self.policy.timeouts.connect,
        }
    }

    /// How long all attempts of one caller to connect an endpoint may take together: a plan has up to
    /// 32, and no caller waits that long.
    #[must_use]
    pub fn connect_budget(&self) -> Duration {
        let deadlines = self.endpoints.iter();
        let longest = deadlines
            .map(|endpoint| self.connect_deadline(endpoint))
            .max();
        longest
            .unwrap_or_default()
            .saturating_mul(CONNECT_BUDGET_FACTOR)
    }

    /// The endpoint at `ix`.
    ///
    /// # Panics
    /// If `ix` is of another cluster.
    #[must_use]
    #[expect(
        clippy::indexing_slicing,
        reason = "an index is only made for its own cluster"
    )]
    pub fn endpoint(&self, ix: EndpointIx) -> &Endpoint {
        &self.endpoints[ix.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(&str, u16, usize)]) -> HostTable {
        let mut table = HostTable::default();
        for (pattern, port, service) in entries {
            let pattern = HostPattern::parse(pattern).unwrap();
            assert_eq!(table.insert(&pattern, *port, ServiceIx(*service)), None);
        }
        table
    }

    #[test]
    fn exact_beats_wildcard_and_the_longer_wildcard_beats_the_shorter() {
        let table = table(&[
            ("a.example.com", 80, 0),
            ("*.example.com", 80, 1),
            ("*.com", 80, 2),
        ]);
        let find = |host: &str| table.lookup(&Host::parse(host).unwrap(), None);
        assert_eq!(find("a.example.com"), Lookup::Found(ServiceIx(0)));
        assert_eq!(find("b.example.com"), Lookup::Found(ServiceIx(1)));
        assert_eq!(find("x.b.example.com"), Lookup::Found(ServiceIx(1)));
        assert_eq!(find("example.com"), Lookup::Found(ServiceIx(2)));
        assert_eq!(find("com"), Lookup::Unknown);
        assert_eq!(find("example.org"), Lookup::Unknown);
    }

    #[test]
    fn a_bare_host_names_a_port_only_where_there_is_one() {
        let table = table(&[("a.b", 80, 0), ("a.b", 90, 1), ("c.d", 80, 2)]);
        let a = Host::parse("a.b").unwrap();
        let c = Host::parse("c.d").unwrap();
        assert_eq!(table.lookup(&a, None), Lookup::PortNeeded);
        assert_eq!(table.lookup(&a, Some(90)), Lookup::Found(ServiceIx(1)));
        assert_eq!(table.lookup(&a, Some(91)), Lookup::NoSuchPort);
        assert_eq!(table.lookup(&c, None), Lookup::Found(ServiceIx(2)));
    }

    #[test]
    fn an_entry_of_a_literal_table_is_for_what_it_says_alone() {
        let mut table = table(&[
            ("a.b", 80, 0),
            ("c.b", 0, 1),
            ("*.b", 0, 2),
            ("*.b", 80, 3),
            ("*.c.b", 0, 4),
            ("*.d", 80, 5),
        ]);
        table.is_literal = true;
        let find = |host: &str, port| match table.lookup(&Host::parse(host).unwrap(), port) {
            Lookup::Found(ix) => Some(ix.0),
            Lookup::Unknown => None,
            other @ (Lookup::PortNeeded | Lookup::NoSuchPort) => panic!("{other:?}"),
        };
        for (host, port, expected) in [
            ("a.b", Some(80), Some(0)),
            ("a.b", None, Some(2)),
            ("a.b", Some(81), None),
            ("c.b", None, Some(1)),
            ("c.b", Some(80), Some(3)),
            ("x.c.b", None, Some(4)),
            ("x.c.b", Some(80), Some(3)),
            ("x.d", None, None),
            ("b", None, None),
        ] {
            assert_eq!(find(host, port), expected, "{host} {port:?}");
        }
        let find = |sni: &str| table.lookup_sni(&SniTarget::parse(sni).unwrap());
        for (sni, expected) in [
            ("outbound_.80_._.a.b", 0),
            // As a name of its own it is below whatever its host is below, and below that.
            ("outbound_.81_._.a.b", 2),
            ("outbound_.81_._.c.b", 4),
            ("a.b", 2),
        ] {
            assert_eq!(find(sni), Lookup::Found(ServiceIx(expected)), "{sni}");
        }
        assert_eq!(find("outbound_.81_._.x.d"), Lookup::Unknown);
    }

    #[test]
    fn what_is_the_same_in_two_snapshots_is_kept_once() {
        use crate::fixture::{cluster, service, snapshot};

        let of = |second: &str| {
            let mut snapshot = snapshot(vec![service("a/b", "a.b", 80)]);
            let other = Arc::new(cluster(&[&[second]]));
            snapshot.clusters.edit(|all| all.push(other));
            snapshot
        };
        let before = of("e");
        let (mut same, mut other) = (of("e"), of("f"));
        same.share(&before);
        other.share(&before);
        assert!(same.clusters.is_one_with(&before.clusters));
        for next in [&same, &other] {
            assert!(next.services.is_one_with(&before.services));
            assert!(next.listeners.is_one_with(&before.listeners));
            assert!(next.peers.is_one_with(&before.peers));
        }
        let both = other.clusters.iter().zip(&before.clusters);
        let are_one: Vec<bool> = both.map(|(one, other)| Arc::ptr_eq(one, other)).collect();
        assert_eq!(are_one, [true, false]);
        assert_eq!(other, of("f"));
    }

    #[test]
    fn a_host_without_a_port_may_be_another_service_than_any_with_one() {
        let table = table(&[("a.b", 0, 0), ("a.b", 80, 1), ("a.b", 90, 2)]);
        let a = Host::parse("a.b").unwrap();
        assert_eq!(table.lookup(&a, None), Lookup::Found(ServiceIx(0)));
        assert_eq!(table.lookup(&a, Some(90)), Lookup::Found(ServiceIx(2)));
        assert_eq!(table.lookup(&a, Some(91)), Lookup::NoSuchPort);
    }

    #[test]
    fn the_same_host_and_port_twice_is_reported() {
        let mut table = table(&[("a.b", 80, 0)]);
        let again = HostPattern::parse("A.b").unwrap();
        assert_eq!(table.insert(&again, 80, ServiceIx(1)), Some(ServiceIx(0)));
    }
}
