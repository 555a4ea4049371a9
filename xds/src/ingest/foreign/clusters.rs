//! Clusters and their endpoints.
//!
//! Envoy's priorities are our levels, and its formula is ours: a level takes what its healthy share, times the
//! overprovisioning factor, allows, so `start` is 1 through that factor and `full` is 0. Nothing is held, nothing
//! comes back slowly. Where no level has anything healthy Envoy panics and uses every endpoint; here those
//! that traffic alone speaks against are used, never what checks or its control plane found bad.
//!
//! What a cluster does not say, since who uses it does, is its [`Use`]: a cluster that is used in several ways is several of
//! ours, which have the endpoints' health and the limits in common.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use zeugma_core::admission::RouteLimits;
use zeugma_core::balance::Slots;
use zeugma_core::identity::TrustDomain;
use zeugma_core::locality::Locality;
use zeugma_core::names::Host;
use zeugma_core::snapshot::{
    ActiveCheck, ActiveKind, Address, Balance, Cluster, ClusterPolicy, Endpoint, EndpointIx,
    EndpointKey, EndpointTls, Failback, Failover, Failure, HashOn, HttpVersion, Level,
    PassiveCheck, Retries, SpreadPart, Timeouts, TooFew,
};

use super::at::At;
use super::tls as contexts;
use crate::compile::HTTP_OPTIONS;
use crate::ingest::clusters::{is_discovered, tls_text};
use crate::pb::{self, cluster, core, endpoint, tls, upstream_http};

/// Envoy's defaults.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(15);
const EJECTION: Duration = Duration::from_secs(30);
const OVERPROVISIONING: u32 = 140;
const LIMIT: u32 = 1024;
const RETRIES: u32 = 3;
/// The key by which endpoints choose among the sockets of their cluster.
const SOCKET_MATCH: &str = "envoy.transport_socket_match";
/// Ours, of which Envoy has none.
const RETRY_BUDGET: f64 = 0.2;
const RETRY_BYTES_MAX: usize = 64 * 1024;

/// What who uses a cluster says of that.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Use {
    /// Whether the caller's TLS is relayed as it is.
    pub as_it_is: bool,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// What a ring's key is made of.
    pub hash: Option<HashOn>,
}

impl Use {
    /// No other comes before it.
    pub(super) const FIRST: Self = Self {
        as_it_is: false,
        idle: Duration::ZERO,
        hash: None,
    };

    /// The way of a cluster that nobody uses.
    pub(super) const NONE: Self = Self {
        as_it_is: false,
        idle: super::STREAM_IDLE,
        hash: None,
    };

    fn suffix(&self) -> String {
        let mut parts = Vec::new();
        if self.as_it_is {
            parts.push("passthrough".to_owned());
        }
        if self.idle != super::STREAM_IDLE {
            parts.push(format!("idle {}ms", self.idle.as_millis()));
        }
        match &self.hash {
            Some(HashOn::Header(name)) => parts.push(format!("by header {name}")),
            Some(HashOn::Source) => parts.push("by source".to_owned()),
            None => {}
        }
        parts.iter().map(|part| format!("|{part}")).collect()
    }
}

/// A cluster but for its use.
#[derive(Debug)]
pub(in crate::ingest) struct Template {
    cluster: Cluster,
    /// What picks by a key, where it does.
    by_key: Option<fn(HashOn) -> Balance>,
    is_tls: bool,
}

impl Template {
    /// Whether another one with the same but its endpoints may stand in its place for whoever uses it.
    pub(in crate::ingest) const fn is_for_the_same(&self, other: &Self) -> bool {
        self.is_tls == other.is_tls && self.is_by_key() == other.is_by_key()
    }

    /// The cluster, used so.
    pub(super) fn used(&self, way: &Use) -> Result<Cluster, String> {
        self.fits(way)?;
        let mut made = self.cluster.clone();
        if way.as_it_is {
            for endpoint in &mut made.endpoints {
                endpoint.tls = EndpointTls::Workload;
                endpoint.key = key(&made.route, endpoint);
            }
        }
        made.name = format!("{}{}", made.name, way.suffix()).into();
        let policy = Arc::make_mut(&mut made.policy);
        policy.timeouts.idle = way.idle;
        // Where a route has no key Envoy draws one.
        if let (Some(by_key), Some(on)) = (self.by_key, &way.hash) {
            policy.balance = by_key(on.clone());
        }
        Ok(made)
    }

    /// Whether it can be used so.
    pub(super) fn fits(&self, way: &Use) -> Result<(), String> {
        if way.as_it_is && self.is_tls {
            return Err(format!(
                "cluster `{}` has TLS of its own, and the caller's is relayed as it is",
                self.cluster.name
            ));
        }
        Ok(())
    }

    /// Whether what it is used by may be hashed: of others that is said to nobody.
    pub(super) const fn is_by_key(&self) -> bool {
        self.by_key.is_some()
    }
}

/// Reads a cluster with its endpoints in it.
pub(in crate::ingest) fn read(
    cluster: &cluster::Cluster,
    own: &TrustDomain,
) -> Result<Template, String> {
    let at = At::Root;
    let sockets = Sockets::read(cluster, own, &at)?;
    let version = version(cluster, &at)?;
    let kind = Discovery::of(cluster, &at)?;
    let (endpoints, levels) = endpoints(cluster, (&sockets, version, kind), &at)?;
    let (balance, by_key) = balance(cluster, &at)?;
    let is_tls = endpoints.iter().any(|one| one.tls != EndpointTls::None);
    let made = Cluster {
        name: cluster.name.as_str().into(),
        route: cluster.name.as_str().into(),
        policy: Arc::new(ClusterPolicy {
            balance,
            spread: spread(cluster, &at)?,
            failover: failover(cluster, &at)?,
            active: active(cluster, &at)?,
            passive: passive(cluster, &at)?,
            connection_age_max: connection_age_max(cluster, &at)?,
            slow_start: slow_start(cluster, &at)?,
            timeouts: Timeouts {
                connect: millis(
                    cluster.connect_timeout.as_ref(),
                    CONNECT_TIMEOUT,
                    &at.field("connect_timeout"),
                )?,
                connect_peer: CONNECT_TIMEOUT,
                response_headers: RESPONSE_TIMEOUT,
                idle: super::STREAM_IDLE,
                per_try: None,
            },
            retries: Retries {
                attempts: 0,
                on: Vec::new(),
                budget: RETRY_BUDGET,
                buffer_bytes_max: RETRY_BYTES_MAX,
                any_method: true,
                hedge_after: None,
            },
            limits: limits(cluster, &at)?,
        }),
        endpoints,
        levels,
    };
    Ok(Template {
        cluster: made,
        by_key,
        is_tls,
    })
}

/// A duration that is above nothing, or its default.
fn millis(
    duration: Option<&pb::PbDuration>,
    default: Duration,
    at: &At<'_>,
) -> Result<Duration, String> {
    match super::duration(duration, at)? {
        None => Ok(default),
        Some(Duration::ZERO) => at.refuse("it must be above 0"),
        Some(duration) => Ok(duration),
    }
}

/// A count that defaults to this.
fn number(value: Option<pb::UInt32Value>, default: u32) -> u32 {
    value.map_or(default, |value| value.value)
}

/// A policy, and what it is where there is a key.
type Picks = (Balance, Option<fn(HashOn) -> Balance>);

fn balance(cluster: &cluster::Cluster, at: &At<'_>) -> Result<Picks, String> {
    use cluster::cluster::{LbConfig, LbPolicy};

    if let Some(LbConfig::LeastRequestLbConfig(config)) = &cluster.lb_config {
        (at.field("least_request_lb_config").field("choice_count")).must(
            number(config.choice_count, 2) == 2,
            "the less busy of two is taken",
        )?;
    }
    match LbPolicy::try_from(cluster.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Ok((Balance::RoundRobin, None)),
        Ok(LbPolicy::LeastRequest) => Ok((Balance::LeastRequest, None)),
        Ok(LbPolicy::Random) => Ok((Balance::Random, None)),
        Ok(LbPolicy::RingHash) => Ok((Balance::Random, Some(Balance::RingHash))),
        Ok(LbPolicy::Maglev) => Ok((Balance::Random, Some(Balance::Maglev))),
        Ok(other @ (LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig)) => {
            (at.field("lb_policy")).refuse(format!("{} is not supported", other.as_str_name()))
        }
        Err(_) => (at.field("lb_policy")).refuse(format!("{} is not known", cluster.lb_policy)),
    }
}

fn slow_start(cluster: &cluster::Cluster, at: &At<'_>) -> Result<Duration, String> {
    use cluster::cluster::{LbConfig, LbPolicy};

    let (config, name) = match &cluster.lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => {
            (config.slow_start_config.as_ref(), "least_request_lb_config")
        }
        Some(LbConfig::RoundRobinLbConfig(config)) => {
            (config.slow_start_config.as_ref(), "round_robin_lb_config")
        }
        Some(LbConfig::OriginalDstLbConfig(_)) => {
            return at
                .field("original_dst_lb_config")
                .refuse("it is not supported");
        }
        Some(LbConfig::RingHashLbConfig(_) | LbConfig::MaglevLbConfig(_)) | None => {
            return Ok(Duration::ZERO);
        }
    };
    let at = at.field(name);
    let at = at.field("slow_start_config");
    let of = match &cluster.lb_config {
        Some(LbConfig::LeastRequestLbConfig(_)) => LbPolicy::LeastRequest,
        _ => LbPolicy::RoundRobin,
    };
    at.must(
        config.is_none() || cluster.lb_policy == i32::from(of),
        format!("`lb_policy` is not {}", of.as_str_name()),
    )?;
    let window = config.and_then(|config| config.slow_start_window.as_ref());
    Ok(super::duration(window, &at.field("slow_start_window"))?.unwrap_or_default())
}

fn failover(cluster: &cluster::Cluster, at: &At<'_>) -> Result<Failover, String> {
    let policy = cluster
        .load_assignment
        .as_ref()
        .and_then(|all| all.policy.as_ref());
    let factor = policy.and_then(|policy| policy.overprovisioning_factor);
    let factor = number(factor, OVERPROVISIONING);
    (at.field("load_assignment")
        .field("policy")
        .field("overprovisioning_factor"))
    .must(
        factor >= 100,
        "below 100 a priority that is wholly healthy would not take all",
    )?;
    let common = cluster.common_lb_config.as_ref();
    let panic = common.and_then(|common| common.healthy_panic_threshold);
    let too_few = match panic.map(|percent| percent.value) {
        Some(0.0) => TooFew::Fail,
        None | Some(50.0) => TooFew::UseAll,
        Some(other) => {
            return (at
                .field("common_lb_config")
                .field("healthy_panic_threshold"))
            .refuse(format!("{other} % is neither 0 nor 50"));
        }
    };
    Ok(Failover {
        start: 100.0 / f64::from(factor),
        full: 0.0,
        hold: Duration::ZERO,
        failback_after: Duration::ZERO,
        failback_ramp: Duration::ZERO,
        failback: Failback::Auto,
        too_few,
    })
}

fn spread(cluster: &cluster::Cluster, at: &At<'_>) -> Result<Vec<SpreadPart>, String> {
    use cluster::cluster::common_lb_config::LocalityConfigSpecifier;

    let common = cluster.common_lb_config.as_ref();
    let by_weight = common.and_then(|common| common.locality_config_specifier.as_ref());
    let Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) = by_weight else {
        return Ok(Vec::new());
    };
    let groups = cluster
        .load_assignment
        .iter()
        .flat_map(|all| &all.endpoints);
    // A priority of one locality is spread over nothing.
    let mut of_priority: BTreeMap<u32, Vec<&endpoint::LocalityLbEndpoints>> = BTreeMap::new();
    for group in groups {
        of_priority.entry(group.priority).or_default().push(group);
    }
    let mut spread = of_priority.into_values().filter(|groups| groups.len() > 1);
    let Some(groups) = spread.next() else {
        return Ok(Vec::new());
    };
    (at.field("common_lb_config")
        .field("locality_weighted_lb_config"))
    .must(
        spread.next().is_none(),
        "the localities of one priority alone can be weighed",
    )?;
    let mut parts = Vec::new();
    for group in groups {
        // One without a weight is given nothing, as Envoy has it.
        let weight = f64::from(number(group.load_balancing_weight, 0));
        let locality = locality(group.locality.as_ref(), at)?;
        parts.push(SpreadPart { locality, weight });
    }
    let sum: f64 = parts.iter().map(|part| part.weight).sum();
    if sum > 0.0 {
        parts.iter_mut().for_each(|part| part.weight /= sum);
    }
    Ok(parts)
}

fn limits(cluster: &cluster::Cluster, at: &At<'_>) -> Result<RouteLimits, String> {
    use core::RoutingPriority;

    let all = cluster
        .circuit_breakers
        .iter()
        .flat_map(|all| &all.thresholds);
    let is_default = |one: &&cluster::circuit_breakers::Thresholds| {
        one.priority == i32::from(RoutingPriority::Default)
    };
    // Of several Envoy uses the first.
    let thresholds = all.clone().find(is_default);
    let limit = |value: Option<pb::UInt32Value>| match number(value, LIMIT) {
        u32::MAX => None,
        limit => Some(limit),
    };
    if let Some(retries) = thresholds.and_then(|one| one.max_retries) {
        let nth = all
            .clone()
            .position(|one| is_default(&one))
            .unwrap_or_default();
        let at = at.field("circuit_breakers");
        let at = at.nth("thresholds", nth);
        at.field("max_retries").must(
            [RETRIES, u32::MAX].contains(&retries.value),
            "retries are limited by a share of the requests",
        )?;
    }
    Ok(RouteLimits {
        connections: limit(thresholds.and_then(|one| one.max_connections)),
        pending: limit(thresholds.and_then(|one| one.max_pending_requests)),
        requests: limit(thresholds.and_then(|one| one.max_requests)),
    })
}

/// Every status by which a service says that it failed.
pub(super) fn server_errors() -> impl Iterator<Item = Failure> {
    (500..600).map(Failure::Status)
}

/// What gateways say of those behind them.
pub(super) fn gateway_errors() -> impl Iterator<Item = Failure> {
    [502, 503, 504].into_iter().map(Failure::Status)
}

fn passive(cluster: &cluster::Cluster, at: &At<'_>) -> Result<PassiveCheck, String> {
    let mut check = PassiveCheck {
        consecutive: 0,
        on: Vec::new(),
        error_rate: None,
        slow: None,
        eject: EJECTION,
        max_ejected: 0.1,
        keep_at_least: 0,
    };
    let Some(outlier) = &cluster.outlier_detection else {
        return Ok(check);
    };
    let at = at.field("outlier_detection");
    let enforced = |value: Option<pb::UInt32Value>, default, name| match number(value, default) {
        0 => Ok(false),
        100 => Ok(true),
        other => at
            .field(name)
            .refuse(format!("{other} % is neither 0 nor 100")),
    };
    let of_5xx = enforced(
        outlier.enforcing_consecutive_5xx,
        100,
        "enforcing_consecutive_5xx",
    )?;
    let of_gateways = enforced(
        outlier.enforcing_consecutive_gateway_failure,
        0,
        "enforcing_consecutive_gateway_failure",
    )?;
    at.field("enforcing_success_rate").must(
        outlier
            .enforcing_success_rate
            .is_none_or(|share| share.value == 0),
        "success rates are not compared",
    )?;
    at.field("enforcing_failure_percentage").must(
        number(outlier.enforcing_failure_percentage, 0) == 0,
        "it is not supported",
    )?;
    let broken = [Failure::Connect, Failure::Reset, Failure::Timeout];
    match (of_5xx, of_gateways) {
        (true, true) => {
            return (at.field("enforcing_consecutive_gateway_failure")).refuse(
                "failures are counted once: with it, `enforcing_consecutive_5xx` must be 0",
            );
        }
        (true, false) => {
            check.consecutive = number(outlier.consecutive_5xx, 5);
            check.on = broken.into_iter().chain(server_errors()).collect();
        }
        (false, true) => {
            check.consecutive = number(outlier.consecutive_gateway_failure, 5);
            check.on = broken.into_iter().chain(gateway_errors()).collect();
        }
        (false, false) => {}
    }
    check.eject = millis(
        outlier.base_ejection_time.as_ref(),
        EJECTION,
        &at.field("base_ejection_time"),
    )?;
    let percent = number(outlier.max_ejection_percent, 10);
    at.field("max_ejection_percent")
        .must(percent <= 100, "it is over 100 %")?;
    check.max_ejected = f64::from(percent) / 100.0;
    Ok(check)
}

fn active(cluster: &cluster::Cluster, at: &At<'_>) -> Result<Option<ActiveCheck>, String> {
    use core::health_check::HealthChecker;

    let check = match cluster.health_checks.as_slice() {
        [] => return Ok(None),
        [one] => one,
        [_, ..] => {
            return at
                .nth("health_checks", 1)
                .refuse("one check is made of an endpoint");
        }
    };
    let at = at.nth("health_checks", 0);
    let of_cluster = |host: &str| -> Arc<str> {
        if host.is_empty() {
            cluster.name.as_str().into()
        } else {
            host.into()
        }
    };
    let kind = match &check.health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => {
            let at = at.field("http_health_check");
            let at = at.field("path");
            at.must(http.path.starts_with('/'), "it must begin with `/`")?;
            ActiveKind::Http {
                path: http.path.as_str().into(),
                host: of_cluster(&http.host),
            }
        }
        Some(HealthChecker::TcpHealthCheck(_)) => ActiveKind::Tcp,
        Some(HealthChecker::GrpcHealthCheck(grpc)) => ActiveKind::Grpc {
            service: grpc.service_name.as_str().into(),
            host: of_cluster(&grpc.authority),
        },
        Some(HealthChecker::CustomHealthCheck(_)) | None => {
            return at.refuse("it is neither HTTP, TCP nor gRPC");
        }
    };
    let needed =
        |value: Option<&pb::PbDuration>, name| match super::duration(value, &at.field(name))? {
            None | Some(Duration::ZERO) => at.field(name).refuse("it must be above 0"),
            Some(duration) => Ok(duration),
        };
    let threshold = |value: Option<pb::UInt32Value>, name| match number(value, 0) {
        0 => at.field(name).refuse("it must be above 0"),
        count => Ok(count),
    };
    Ok(Some(ActiveCheck {
        kind,
        every: needed(check.interval.as_ref(), "interval")?,
        timeout: needed(check.timeout.as_ref(), "timeout")?,
        up: threshold(check.healthy_threshold, "healthy_threshold")?,
        down: threshold(check.unhealthy_threshold, "unhealthy_threshold")?,
    }))
}

fn http_options(
    cluster: &cluster::Cluster,
    at: &At<'_>,
) -> Result<Option<upstream_http::HttpProtocolOptions>, String> {
    let all = &cluster.typed_extension_protocol_options;
    if let Some(key) = all.keys().filter(|key| *key != HTTP_OPTIONS).min() {
        return at
            .key("typed_extension_protocol_options", key)
            .refuse("it is not supported");
    }
    let at = at.key("typed_extension_protocol_options", HTTP_OPTIONS);
    let any = all.get(HTTP_OPTIONS);
    any.map(|any| pb::unpack(any).map_err(|why| at.why(why)))
        .transpose()
}

/// The HTTP version that endpoints are spoken to with: HTTP/1.1 where nothing is said, as Envoy has it.
fn version(cluster: &cluster::Cluster, at: &At<'_>) -> Result<HttpVersion, String> {
    use options::explicit_http_config::ProtocolConfig;
    use upstream_http::http_protocol_options as options;

    #[expect(deprecated, reason = "control planes in use say it")]
    let is_h2 = cluster.http2_protocol_options.is_some();
    let Some(http) = http_options(cluster, at)? else {
        return Ok(if is_h2 {
            HttpVersion::H2
        } else {
            HttpVersion::H1
        });
    };
    let at = at.key("typed_extension_protocol_options", HTTP_OPTIONS);
    match &http.upstream_protocol_options {
        Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match &explicit.protocol_config {
                Some(ProtocolConfig::HttpProtocolOptions(_)) => Ok(HttpVersion::H1),
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(HttpVersion::H2),
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => (at.field("explicit_http_config"))
                    .field("http3_protocol_options")
                    .refuse("HTTP/3 is not supported"),
                None => at
                    .field("explicit_http_config")
                    .refuse("it names no version"),
            }
        }
        Some(options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => {
            Ok(HttpVersion::Same)
        }
        Some(options::UpstreamProtocolOptions::AutoConfig(_)) => at
            .field("auto_config")
            .refuse("endpoints are not asked which version they speak"),
        None => at.refuse("it names no version"),
    }
}

fn connection_age_max(cluster: &cluster::Cluster, at: &At<'_>) -> Result<Duration, String> {
    let http = http_options(cluster, at)?;
    let common = http.and_then(|http| http.common_http_protocol_options);
    let common = common.unwrap_or_default();
    let at = at.key("typed_extension_protocol_options", HTTP_OPTIONS);
    let at = at.field("common_http_protocol_options");
    let age = super::duration(
        common.max_connection_duration.as_ref(),
        &at.field("max_connection_duration"),
    )?;
    Ok(age.unwrap_or_default())
}

/// What is spoken with an endpoint before HTTP or bytes.
#[derive(Debug, Clone)]
enum Socket {
    Raw,
    Tls {
        sni: String,
        expected: Vec<zeugma_core::identity::IdPattern>,
    },
}

/// The sockets of a cluster: of those that ask for something the first that an endpoint has it all for.
struct Sockets<'a> {
    matched: Vec<(Option<&'a pb::Struct>, Socket)>,
    otherwise: Socket,
}

impl<'a> Sockets<'a> {
    fn read(cluster: &'a cluster::Cluster, own: &TrustDomain, at: &At<'_>) -> Result<Self, String> {
        let mut matched = Vec::new();
        for (nth, one) in cluster.transport_socket_matches.iter().enumerate() {
            let at = at.nth("transport_socket_matches", nth);
            let at = at.field("transport_socket");
            let socket = socket(one.transport_socket.as_ref(), own, &at)?;
            matched.push((one.r#match.as_ref(), socket));
        }
        let at = at.field("transport_socket");
        Ok(Self {
            matched,
            otherwise: socket(cluster.transport_socket.as_ref(), own, &at)?,
        })
    }

    fn of(&self, lb: &endpoint::LbEndpoint) -> &Socket {
        let metadata = lb.metadata.as_ref();
        let has = metadata.and_then(|metadata| metadata.filter_metadata.get(SOCKET_MATCH));
        let is = |wanted: &Option<&pb::Struct>| {
            wanted.is_none_or(|wanted| {
                let mut all = wanted.fields.iter();
                all.all(|(key, value)| has.and_then(|has| has.fields.get(key)) == Some(value))
            })
        };
        let found = self.matched.iter().find(|(wanted, _)| is(wanted));
        found.map_or(&self.otherwise, |(_, socket)| socket)
    }
}

fn socket(
    socket: Option<&core::TransportSocket>,
    own: &TrustDomain,
    at: &At<'_>,
) -> Result<Socket, String> {
    let Some(socket) = socket else {
        return Ok(Socket::Raw);
    };
    let at = at.field("typed_config");
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return at.refuse("it is missing");
    };
    if pb::unpack::<pb::RawBuffer>(any).is_ok() {
        return Ok(Socket::Raw);
    }
    let context: tls::UpstreamTlsContext = pb::unpack(any).map_err(|why| at.why(why))?;
    let (sni, expected) = contexts::upstream(&context, own, &at)?;
    Ok(Socket::Tls { sni, expected })
}

/// Where endpoints come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Discovery {
    /// They are written.
    Static,
    /// They come by themselves.
    Eds,
    /// Every address of a name is one.
    StrictDns,
    /// A name is one.
    LogicalDns,
}

impl Discovery {
    fn of(cluster: &cluster::Cluster, at: &At<'_>) -> Result<Self, String> {
        use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily};

        let found = match &cluster.cluster_discovery_type {
            None => Self::Static,
            Some(ClusterDiscoveryType::Type(kind)) => match DiscoveryType::try_from(*kind) {
                Ok(DiscoveryType::Static) => Self::Static,
                Ok(DiscoveryType::Eds) => Self::Eds,
                Ok(DiscoveryType::StrictDns) => Self::StrictDns,
                Ok(DiscoveryType::LogicalDns) => Self::LogicalDns,
                Ok(DiscoveryType::OriginalDst) | Err(_) => {
                    return at
                        .field("type")
                        .refuse("it is none of STATIC, EDS, STRICT_DNS and LOGICAL_DNS");
                }
            },
            Some(ClusterDiscoveryType::ClusterType(_)) => {
                return at.field("cluster_type").refuse("it is not supported");
            }
        };
        if matches!(found, Self::StrictDns | Self::LogicalDns) {
            let family = DnsLookupFamily::try_from(cluster.dns_lookup_family);
            at.field("dns_lookup_family").must(
                matches!(family, Ok(DnsLookupFamily::Auto | DnsLookupFamily::All)),
                "a name is asked for addresses of both families",
            )?;
        }
        Ok(found)
    }
}

type Found = (Vec<Endpoint>, Vec<Level>);

fn endpoints(
    cluster: &cluster::Cluster,
    (sockets, version, kind): (&Sockets<'_>, HttpVersion, Discovery),
    at: &At<'_>,
) -> Result<Found, String> {
    let at = at.field("load_assignment");
    let groups = cluster
        .load_assignment
        .iter()
        .flat_map(|all| &all.endpoints);
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut known: BTreeMap<EndpointKey, usize> = BTreeMap::new();
    let mut members: BTreeMap<u32, Vec<EndpointIx>> = BTreeMap::new();
    for (nth, group) in groups.enumerate() {
        let at = at.nth("endpoints", nth);
        let stands = locality(group.locality.as_ref(), &at)?;
        for (nth, lb) in group.lb_endpoints.iter().enumerate() {
            let at = at.nth("lb_endpoints", nth);
            let built = endpoint(cluster, lb, (&stands, sockets.of(lb), version, kind), &at)?;
            let place = *known.entry(built.key.clone()).or_insert(endpoints.len());
            match endpoints.get_mut(place) {
                // Written twice it is one of both weights; of two priorities it is the first one's.
                Some(known) => known.weight += built.weight,
                None => {
                    let of_level = members.entry(group.priority).or_default();
                    of_level.push(EndpointIx(endpoints.len()));
                    endpoints.push(built);
                }
            }
        }
    }
    let mut levels: Vec<Level> = members
        .into_iter()
        .map(|(priority, members)| Level {
            name: level_name(priority, &endpoints, &members),
            members,
            slots: Slots::default(),
        })
        .collect();
    if levels.is_empty() {
        at.must(is_discovered(cluster), "it has no endpoints")?;
        // There may be none at present: a service that is scaled to nothing.
        levels.push(Level {
            name: "none".into(),
            members: Vec::new(),
            slots: Slots::default(),
        });
    }
    Ok((endpoints, levels))
}

/// What people know a priority by: where its endpoints stand.
fn level_name(priority: u32, endpoints: &[Endpoint], members: &[EndpointIx]) -> Arc<str> {
    let mut places: Vec<String> = Vec::new();
    for endpoint in members.iter().filter_map(|ix| endpoints.get(ix.0)) {
        let place = endpoint.locality.to_string();
        if endpoint.locality != Locality::default() && !places.contains(&place) {
            places.push(place);
        }
    }
    if places.is_empty() {
        return format!("priority {priority}").into();
    }
    places.join(", ").into()
}

fn locality(at: Option<&core::Locality>, place: &At<'_>) -> Result<Locality, String> {
    let Some(at) = at else {
        return Ok(Locality::default());
    };
    let parts = [&at.region, &at.zone, &at.sub_zone];
    if parts.iter().all(|part| part.is_empty()) {
        return Ok(Locality::default());
    }
    let text = parts.map(String::as_str).join("/");
    let text = text.trim_end_matches('/');
    Locality::parse(text).map_err(|error| place.field("locality").why(format!("`{text}`: {error}")))
}

fn endpoint(
    cluster: &cluster::Cluster,
    lb: &endpoint::LbEndpoint,
    (locality, socket, version, kind): (&Locality, &Socket, HttpVersion, Discovery),
    at: &At<'_>,
) -> Result<Endpoint, String> {
    use core::HealthStatus;

    let Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(host)) = &lb.host_identifier else {
        return at.field("endpoint").refuse("it is missing");
    };
    let place = at.field("endpoint");
    let place = place.field("address");
    super::over_tcp(host.address.as_ref(), &place)?;
    let (host, port) = pb::from_address(host.address.as_ref()).map_err(|why| place.why(why))?;
    let named = || Host::parse(&host).map_err(|error| place.why(format!("`{host}`: {error}")));
    let address = match (host.parse(), kind) {
        (Ok(ip), _) => Address::Socket(std::net::SocketAddr::new(ip, port)),
        (Err(_), Discovery::StrictDns) => Address::Each(named()?, port),
        (Err(_), Discovery::LogicalDns) => Address::Name(named()?, port),
        (Err(_), Discovery::Static | Discovery::Eds) => {
            return place.refuse(format!("`{host}` is not an IP address"));
        }
    };
    let is_down = match HealthStatus::try_from(lb.health_status) {
        Ok(HealthStatus::Unknown | HealthStatus::Healthy) => false,
        Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => true,
        Ok(HealthStatus::Degraded) | Err(_) => {
            return at
                .field("health_status")
                .refuse("an endpoint is of use or it is not");
        }
    };
    let tls = match socket {
        Socket::Raw => EndpointTls::None,
        Socket::Tls { sni, expected } => EndpointTls::Mesh {
            sni: match (sni.as_str(), &address) {
                // To an address as a name no SNI is sent (RFC 6066 §3).
                ("", Address::Socket(socket)) => socket.ip().to_string().into(),
                ("", Address::Name(..) | Address::Each(..)) => {
                    return place
                        .refuse("its TLS has no `sni`, which an endpoint that is a name needs");
                }
                (sni, _) => sni.into(),
            },
            expected: expected.clone(),
        },
    };
    let weight = number(lb.load_balancing_weight, 1);
    at.field("load_balancing_weight")
        .must(weight > 0, "it must be above 0")?;
    let backend: Arc<str> = if *locality == Locality::default() {
        cluster.name.as_str().into()
    } else {
        locality.to_string().into()
    };
    let mut built = Endpoint {
        key: EndpointKey("".into()),
        backend,
        address,
        weight: f64::from(weight),
        locality: locality.clone(),
        peer: None,
        tls,
        version,
        proxy_protocol: false,
        capacity: None,
        is_down,
    };
    built.key = key(&cluster.name, &built);
    Ok(built)
}

/// What an endpoint is known by, however its cluster is used.
fn key(route: &str, endpoint: &Endpoint) -> EndpointKey {
    let Endpoint {
        backend,
        address,
        tls,
        ..
    } = endpoint;
    EndpointKey(format!("{route}|{backend}|{address}|{}", tls_text(tls)).into())
}
