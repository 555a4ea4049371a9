//! Clusters: peers, endpoints in their levels, and what a service is.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use zeugma_core::admission::{Rate, RouteLimits};
use zeugma_core::balance::Slots;
use zeugma_core::identity::{IdPattern, TrustDomain};
use zeugma_core::locality::Locality;
use zeugma_core::names::{Host, HostPattern};
use zeugma_core::snapshot::{
    ActiveCheck, ActiveKind, Address, Balance, Cluster, ClusterPolicy, Endpoint, EndpointIx,
    EndpointKey, EndpointTls, ErrorRate, Export, Failback, Failover, Failure, HashOn, HttpVersion,
    Inbound, Level, PassiveCheck, Peer, Policy, PolicyMode, Position, Protocol, Retries, Service,
    Slow, SpreadPart, Timeouts, TooFew, WhenStale,
};

use super::Names;
use super::rbac::id_pattern;
use crate::compile::{HTTP_OPTIONS, SOCKET};
use crate::meta::{
    ClusterMeta, EndpointMeta, ExportMeta, HashMeta, InboundMeta, PeerMeta, ProtocolMeta,
    RetriesMeta, ServiceMeta, TimeoutsMeta, VersionMeta,
};
use crate::names::ByName;
use crate::pb::{self, cluster, core, endpoint, tls, upstream_http};
use crate::text;

/// A peer, from the cluster of its gateways.
pub(super) fn peer(cluster: &cluster::Cluster, meta: &PeerMeta) -> Result<Peer, String> {
    let matched = cluster
        .transport_socket_matches
        .first()
        .ok_or("it has no transport socket")?;
    let Socket {
        tls: EndpointTls::Mesh { expected, .. },
        ..
    } = socket(matched)?
    else {
        return Err("its transport socket is not TLS".to_owned());
    };
    let keepalive = keepalive(cluster)?;
    let duration = |value: Option<&pb::PbDuration>| {
        pb::from_duration(value).ok_or_else(|| "it has no HTTP/2 keepalive".to_owned())
    };
    Ok(Peer {
        name: meta.peer.as_str().into(),
        cluster: meta.cluster.as_str().into(),
        locality: parsed(&meta.locality, Locality::parse)?,
        ids: expected,
        attests: all(&meta.attests, TrustDomain::parse)?,
        sources: all(&meta.sources, crate::net::parse)?,
        keepalive_ping: duration(keepalive.interval.as_ref())?,
        keepalive_timeout: duration(keepalive.timeout.as_ref())?,
        when_stale: if meta.drops_stale {
            WhenStale::Drop
        } else {
            WhenStale::Hold
        },
    })
}

fn keepalive(cluster: &cluster::Cluster) -> Result<core::KeepaliveSettings, String> {
    use upstream_http::http_protocol_options as options;

    let any = cluster
        .typed_extension_protocol_options
        .get(HTTP_OPTIONS)
        .ok_or("it has no HTTP options")?;
    let http: upstream_http::HttpProtocolOptions = pb::unpack(any)?;
    let Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) =
        http.upstream_protocol_options
    else {
        return Err("its HTTP version is not fixed".to_owned());
    };
    let Some(options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(http2)) =
        explicit.protocol_config
    else {
        return Err("it is not HTTP/2".to_owned());
    };
    http2
        .connection_keepalive
        .ok_or_else(|| "it has no HTTP/2 keepalive".to_owned())
}

/// What one text stands for.
fn parsed<T, E: std::fmt::Display>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<T, String> {
    parse(text).map_err(|error| format!("`{text}`: {error}"))
}

/// What several texts stand for.
pub(super) fn all<T, E: std::fmt::Display>(
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, E>,
) -> Result<Vec<T>, String> {
    texts.iter().map(|text| parsed(text, &parse)).collect()
}

/// One port of one route, as its outbound cluster describes it.
pub(super) fn service(
    outbound: &str,
    route: &str,
    meta: &ServiceMeta,
    names: &Names,
) -> Result<Service, String> {
    Ok(Service {
        name: route.into(),
        port: meta.port,
        ports: meta.ports,
        hosts: all(&meta.hosts, HostPattern::parse)?,
        protocol: match meta.protocol {
            ProtocolMeta::Tcp => Protocol::Tcp,
            ProtocolMeta::Http => Protocol::Http,
        },
        inbound: match meta.inbound {
            InboundMeta::Passthrough => Inbound::Passthrough,
            InboundMeta::Terminate => Inbound::Terminate,
        },
        outbound: names.cluster(outbound)?,
        own: (meta.own.as_deref().map(|name| names.cluster(name))).transpose()?,
        policy: Policy {
            mode: if meta.is_audited {
                PolicyMode::Audit
            } else {
                PolicyMode::Enforce
            },
            ..Policy::default()
        },
        export: match &meta.export {
            ExportMeta::Nobody => Export::Nobody,
            ExportMeta::AllPeers => Export::AllPeers,
            ExportMeta::To(peers) => Export::To(
                peers
                    .iter()
                    .map(|peer| names.peer(peer))
                    .collect::<Result<_, _>>()?,
            ),
        },
        mirrors: Vec::new(),
        rules: None,
        inside: None,
        is_upgraded: true,
        position: Some(Position::from(&meta.position)),
    })
}

/// A cluster that carries a service's traffic.
pub(super) fn traffic(
    cluster: &cluster::Cluster,
    meta: &ClusterMeta,
    names: &Names,
) -> Result<Cluster, String> {
    let (endpoints, levels) = endpoints(cluster, &meta.route, names)?;
    Ok(Cluster {
        name: cluster.name.as_str().into(),
        route: meta.route.as_str().into(),
        endpoints,
        levels,
        policy: Arc::new(ClusterPolicy {
            balance: balance(cluster, meta)?,
            spread: spread(cluster, meta)?,
            failover: Failover {
                start: share(meta.failover.start)?,
                full: share(meta.failover.full)?,
                hold: Duration::from_millis(meta.failover.hold_millis),
                failback_after: Duration::from_millis(meta.failover.failback_after_millis),
                failback_ramp: Duration::from_millis(meta.failover.failback_ramp_millis),
                failback: if meta.failover.failback_is_manual {
                    Failback::Manual
                } else {
                    Failback::Auto
                },
                too_few: if meta.failover.use_all {
                    TooFew::UseAll
                } else {
                    TooFew::Fail
                },
            },
            active: cluster.health_checks.first().map(active).transpose()?,
            passive: passive(cluster, meta)?,
            connection_age_max: connection_age_max(cluster)?,
            slow_start: slow_start(cluster, meta)?,
            timeouts: timeouts(cluster, &meta.timeouts)?,
            retries: retries(&meta.retries)?,
            limits: limits(cluster)?,
        }),
    })
}

/// What the localities of one priority weigh among each other; nothing where endpoints alone do.
fn spread(cluster: &cluster::Cluster, meta: &ClusterMeta) -> Result<Vec<SpreadPart>, String> {
    let Some(priority) = meta.spread_priority else {
        return Ok(Vec::new());
    };
    let groups = cluster
        .load_assignment
        .iter()
        .flat_map(|all| &all.endpoints);
    let mut parts: Vec<SpreadPart> = Vec::new();
    for group in groups.filter(|group| group.priority == priority) {
        let weight = group.load_balancing_weight.map_or(0, |weight| weight.value);
        let locality = locality(group.locality.as_ref())?;
        if parts.iter().all(|part| part.locality != locality) {
            parts.push(SpreadPart {
                locality,
                weight: f64::from(weight),
            });
        }
    }
    let sum: f64 = parts.iter().map(|part| part.weight).sum();
    if sum > 0.0 {
        parts.iter_mut().for_each(|part| part.weight /= sum);
    }
    Ok(parts)
}

fn share(value: f64) -> Result<f64, String> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(format!("the share {value} is not 0 to 1"))
    }
}

fn balance(cluster: &cluster::Cluster, meta: &ClusterMeta) -> Result<Balance, String> {
    use cluster::cluster::LbPolicy;

    let on = || match &meta.hash_on {
        Some(HashMeta::Header(name)) => Ok(HashOn::Header(name.as_str().into())),
        Some(HashMeta::Source) => Ok(HashOn::Source),
        None => Err("its hash does not say of what".to_owned()),
    };
    match LbPolicy::try_from(cluster.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Ok(Balance::RoundRobin),
        Ok(LbPolicy::LeastRequest) if meta.peak_ewma => Ok(Balance::PeakEwma),
        Ok(LbPolicy::LeastRequest) => Ok(Balance::LeastRequest),
        Ok(LbPolicy::Random) => Ok(Balance::Random),
        Ok(LbPolicy::RingHash) => on().map(Balance::RingHash),
        Ok(LbPolicy::Maglev) => on().map(Balance::Maglev),
        Ok(other @ (LbPolicy::ClusterProvided | LbPolicy::LoadBalancingPolicyConfig)) => Err(
            format!("lb_policy {} is not supported", other.as_str_name()),
        ),
        Err(_) => Err(format!("lb_policy {} is not known", cluster.lb_policy)),
    }
}

/// Of clusters of bytes, which have no HTTP options, and where nothing is said: any age.
fn connection_age_max(cluster: &cluster::Cluster) -> Result<Duration, String> {
    let Some(any) = cluster.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        return Ok(Duration::ZERO);
    };
    let http: upstream_http::HttpProtocolOptions = pb::unpack(any)?;
    let common = http.common_http_protocol_options.unwrap_or_default();
    Ok(pb::from_duration(common.max_connection_duration.as_ref()).unwrap_or_default())
}

fn slow_start(cluster: &cluster::Cluster, meta: &ClusterMeta) -> Result<Duration, String> {
    use cluster::cluster::LbConfig;

    let config = match &cluster.lb_config {
        Some(LbConfig::LeastRequestLbConfig(config)) => config.slow_start_config.as_ref(),
        Some(LbConfig::RoundRobinLbConfig(config)) => config.slow_start_config.as_ref(),
        Some(
            LbConfig::RingHashLbConfig(_)
            | LbConfig::MaglevLbConfig(_)
            | LbConfig::OriginalDstLbConfig(_),
        )
        | None => None,
    };
    match config {
        Some(config) => pb::from_duration(config.slow_start_window.as_ref())
            .ok_or_else(|| "its slow start has no window".to_owned()),
        None => Ok(Duration::from_millis(meta.slow_start_millis.unwrap_or(0))),
    }
}

fn passive(cluster: &cluster::Cluster, meta: &ClusterMeta) -> Result<PassiveCheck, String> {
    let outlier = cluster
        .outlier_detection
        .as_ref()
        .ok_or("it has no outlier detection")?;
    let meta = &meta.passive;
    Ok(PassiveCheck {
        consecutive: outlier.consecutive_5xx.map_or(5, |count| count.value),
        on: all(&meta.on, failure)?,
        error_rate: meta
            .error_rate
            .as_ref()
            .map(|rate| {
                Ok::<_, String>(ErrorRate {
                    over: share(rate.over)?,
                    requests: rate.requests,
                })
            })
            .transpose()?,
        slow: (meta.slow.as_ref())
            .map(|slow| {
                Ok::<_, String>(Slow {
                    over: times(slow.over)?,
                    requests: slow.requests,
                })
            })
            .transpose()?,
        eject: pb::from_duration(outlier.base_ejection_time.as_ref())
            .ok_or("it has no base_ejection_time")?,
        max_ejected: share(meta.max_ejected)?,
        keep_at_least: meta.keep_at_least,
    })
}

/// More than once.
fn times(over: f64) -> Result<f64, String> {
    let is = over.is_finite() && over > 1.0;
    is.then_some(over)
        .ok_or_else(|| format!("{over} is not more than once"))
}

pub(super) fn failure(word: &str) -> Result<Failure, String> {
    let wrong = |_| "it is not a cause of failure".to_owned();
    Ok(match word {
        "connect" => Failure::Connect,
        "refused-stream" => Failure::RefusedStream,
        "reset" => Failure::Reset,
        "timeout" => Failure::Timeout,
        "unavailable" => Failure::Unavailable,
        "no-local-endpoint" => Failure::NoLocalEndpoint,
        other => match other.strip_prefix("grpc-") {
            Some(code) => Failure::Grpc(code.parse().map_err(wrong)?),
            None => Failure::Status(other.parse().map_err(wrong)?),
        },
    })
}

fn timeouts(cluster: &cluster::Cluster, meta: &TimeoutsMeta) -> Result<Timeouts, String> {
    Ok(Timeouts {
        connect: pb::from_duration(cluster.connect_timeout.as_ref())
            .ok_or("it has no connect_timeout")?,
        connect_peer: Duration::from_millis(meta.connect_peer_millis),
        response_headers: Duration::from_millis(meta.response_headers_millis),
        idle: Duration::from_millis(meta.idle_millis),
        per_try: meta.per_try_millis.map(Duration::from_millis),
    })
}

/// What is not said is Envoy's default of 1024; the largest number there is stands for no limit.
fn limits(cluster: &cluster::Cluster) -> Result<RouteLimits, String> {
    use core::RoutingPriority;

    let mut thresholds = cluster
        .circuit_breakers
        .iter()
        .flat_map(|all| &all.thresholds);
    // Of several Envoy uses the first.
    let thresholds = thresholds
        .find(|one| one.priority == i32::from(RoutingPriority::Default))
        .ok_or("it has no circuit breakers of the default priority")?;
    let limit = |value: Option<&pb::UInt32Value>| match value.map_or(1024, |value| value.value) {
        u32::MAX => None,
        limit => Some(limit),
    };
    Ok(RouteLimits {
        connections: limit(thresholds.max_connections.as_ref()),
        pending: limit(thresholds.max_pending_requests.as_ref()),
        requests: limit(thresholds.max_requests.as_ref()),
    })
}

fn retries(meta: &RetriesMeta) -> Result<Retries, String> {
    Ok(Retries {
        attempts: meta.attempts,
        on: all(&meta.on, failure)?,
        budget: share(meta.budget)?,
        buffer_bytes_max: meta.buffer_bytes,
        any_method: meta.any_method,
        hedge_after: meta.hedge_after_millis.map(Duration::from_millis),
    })
}

fn active(check: &core::HealthCheck) -> Result<ActiveCheck, String> {
    use core::health_check::HealthChecker;

    let duration = |value: Option<&pb::PbDuration>, name: &str| {
        pb::from_duration(value).ok_or_else(|| format!("its health check has no {name}"))
    };
    let kind = match &check.health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => ActiveKind::Http {
            path: http.path.as_str().into(),
            host: http.host.as_str().into(),
        },
        Some(HealthChecker::TcpHealthCheck(_)) => ActiveKind::Tcp,
        Some(HealthChecker::GrpcHealthCheck(grpc)) => ActiveKind::Grpc {
            service: grpc.service_name.as_str().into(),
            host: grpc.authority.as_str().into(),
        },
        Some(HealthChecker::CustomHealthCheck(_)) | None => {
            return Err("its health check is neither HTTP, TCP nor gRPC".to_owned());
        }
    };
    Ok(ActiveCheck {
        kind,
        every: duration(check.interval.as_ref(), "interval")?,
        timeout: duration(check.timeout.as_ref(), "timeout")?,
        up: check.healthy_threshold.map_or(2, |count| count.value),
        down: check.unhealthy_threshold.map_or(3, |count| count.value),
    })
}

/// What a transport socket match stands for.
struct Socket {
    tls: EndpointTls,
    proxy_protocol: bool,
}

fn socket(matched: &cluster::cluster::TransportSocketMatch) -> Result<Socket, String> {
    let outer = matched
        .transport_socket
        .as_ref()
        .ok_or_else(|| format!("transport socket match `{}` has no socket", matched.name))?;
    let any = typed(outer)?;
    if !pb::is_of::<pb::ProxyProtocolUpstreamTransport>(any) {
        return Ok(Socket {
            tls: upstream_tls(any)?,
            proxy_protocol: false,
        });
    }
    let proxy: pb::ProxyProtocolUpstreamTransport = pb::unpack(any)?;
    let inner = proxy
        .transport_socket
        .ok_or("its PROXY protocol wraps no socket")?;
    Ok(Socket {
        tls: upstream_tls(typed(&inner)?)?,
        proxy_protocol: true,
    })
}

fn typed(socket: &core::TransportSocket) -> Result<&pb::Any, String> {
    match &socket.config_type {
        Some(core::transport_socket::ConfigType::TypedConfig(any)) => Ok(any),
        None => Err(format!(
            "transport socket `{}` has no configuration",
            socket.name
        )),
    }
}

fn upstream_tls(any: &pb::Any) -> Result<EndpointTls, String> {
    if pb::is_of::<pb::RawBuffer>(any) {
        return pb::unpack::<pb::RawBuffer>(any).map(|_nothing| EndpointTls::None);
    }
    let context: tls::UpstreamTlsContext = pb::unpack(any)?;
    let Some(tls::common_tls_context::ValidationContextType::CombinedValidationContext(combined)) =
        context
            .common_tls_context
            .and_then(|common| common.validation_context_type)
    else {
        return Err("its TLS does not say who must answer".to_owned());
    };
    let expected: Vec<IdPattern> = combined
        .default_validation_context
        .iter()
        .flat_map(|validation| &validation.match_typed_subject_alt_names)
        .map(|san| id_pattern(san.matcher.as_ref()))
        .collect::<Result<_, _>>()?;
    if expected.is_empty() {
        return Err("its TLS does not say who must answer".to_owned());
    }
    Ok(EndpointTls::Mesh {
        sni: context.sni.into(),
        expected,
    })
}

type Found = (Vec<Endpoint>, Vec<Level>);

fn endpoints(cluster: &cluster::Cluster, route: &str, names: &Names) -> Result<Found, String> {
    let assignment = cluster
        .load_assignment
        .as_ref()
        .ok_or("it has no load assignment")?;
    let sockets: ByName<Socket, &str> = cluster
        .transport_socket_matches
        .iter()
        .map(|matched| Ok((matched.name.as_str(), socket(matched)?)))
        .collect::<Result<_, String>>()?;
    let count = assignment
        .endpoints
        .iter()
        .map(|group| group.lb_endpoints.len());
    let mut endpoints: Vec<Endpoint> = Vec::with_capacity(count.sum());
    let mut known: BTreeMap<EndpointKey, usize> = BTreeMap::new();
    let mut members: BTreeMap<u32, Vec<EndpointIx>> = BTreeMap::new();
    for group in &assignment.endpoints {
        let locality = locality(group.locality.as_ref())?;
        for lb in &group.lb_endpoints {
            let built = endpoint(lb, &locality, route, &sockets, names)?;
            // One address of one backend written twice is one endpoint of both weights.
            let at = *known.entry(built.key.clone()).or_insert(endpoints.len());
            match endpoints.get_mut(at) {
                Some(known) => known.weight += built.weight,
                None => {
                    members
                        .entry(group.priority)
                        .or_default()
                        .push(EndpointIx(endpoints.len()));
                    endpoints.push(built);
                }
            }
        }
    }
    normalise(&mut endpoints);
    let mut levels: Vec<Level> = members
        .into_values()
        .map(|members| Level {
            name: level_name(&endpoints, &members),
            members,
            slots: Slots::default(),
        })
        .collect();
    if levels.is_empty() && !is_discovered(cluster) {
        return Err("it has no endpoints".to_owned());
    }
    if levels.is_empty() {
        // There may be none at present: a service that is scaled to nothing.
        levels.push(Level {
            name: "none".into(),
            members: Vec::new(),
            slots: Slots::default(),
        });
    }
    Ok((endpoints, levels))
}

/// Whether its endpoints come by themselves.
pub(super) fn is_discovered(cluster: &cluster::Cluster) -> bool {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType};

    let eds = i32::from(DiscoveryType::Eds);
    cluster.cluster_discovery_type == Some(ClusterDiscoveryType::Type(eds))
}

/// Where endpoints stand; not known where no region is named.
fn locality(at: Option<&core::Locality>) -> Result<Locality, String> {
    let Some(at) = at else {
        return Ok(Locality::default());
    };
    let parts = [&at.region, &at.zone, &at.sub_zone];
    if parts.iter().all(|part| part.is_empty()) {
        return Ok(Locality::default());
    }
    let text = parts.map(String::as_str).join("/");
    parsed(text.trim_end_matches('/'), Locality::parse)
}

/// Weights on the wire are whole numbers; ours give a peer's gateways 1 together.
fn normalise(endpoints: &mut [Endpoint]) {
    let mut totals: BTreeMap<Arc<str>, f64> = BTreeMap::new();
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.peer.is_some()) {
        *totals.entry(Arc::clone(&endpoint.backend)).or_default() += endpoint.weight;
    }
    let unit = totals.values().copied().fold(1.0, f64::max);
    for endpoint in endpoints {
        let total = match endpoint.peer {
            Some(_) => totals.get(&endpoint.backend).copied().unwrap_or(unit),
            None => unit,
        };
        endpoint.weight /= total;
    }
}

fn level_name(endpoints: &[Endpoint], members: &[EndpointIx]) -> Arc<str> {
    let mut parts: Vec<String> = Vec::new();
    for endpoint in members.iter().filter_map(|ix| endpoints.get(ix.0)) {
        let part = match endpoint.peer {
            Some(_) => format!("peer {}", endpoint.backend),
            None => endpoint.locality.to_string(),
        };
        if !parts.contains(&part) {
            parts.push(part);
        }
    }
    parts.join(", ").into()
}

fn endpoint(
    lb: &endpoint::LbEndpoint,
    locality: &Locality,
    route: &str,
    sockets: &ByName<Socket, &str>,
    names: &Names,
) -> Result<Endpoint, String> {
    let Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(host)) = &lb.host_identifier else {
        return Err("an endpoint has no address".to_owned());
    };
    let (host, port) = pb::from_address(host.address.as_ref())?;
    let meta: EndpointMeta = pb::from_metadata(lb.metadata.as_ref())
        .map_err(|error| format!("endpoint {host}:{port}: {error}"))?;
    let address = match host.parse() {
        Ok(ip) => Address::Socket(std::net::SocketAddr::new(ip, port)),
        Err(_) if meta.each => Address::Each(parsed(&host, Host::parse)?, port),
        Err(_) => Address::Name(parsed(&host, Host::parse)?, port),
    };
    let socket = sockets
        .get(socket_name(lb).as_str())
        .ok_or_else(|| format!("endpoint {address}: no transport socket matches it"))?;
    let tls = match (&socket.tls, meta.workload) {
        (EndpointTls::None, true) => EndpointTls::Workload,
        (tls, _) => tls.clone(),
    };
    let weight = lb.load_balancing_weight.map_or(1, |weight| weight.value);
    if weight == 0 {
        return Err(format!("endpoint {address} has weight 0"));
    }
    Ok(Endpoint {
        key: EndpointKey(key(route, &meta.backend, &address, &tls)),
        backend: meta.backend.as_str().into(),
        address,
        weight: f64::from(weight),
        locality: locality.clone(),
        peer: meta
            .peer
            .as_deref()
            .map(|peer| names.peer(peer))
            .transpose()?,
        tls,
        version: match meta.version {
            VersionMeta::Same => HttpVersion::Same,
            VersionMeta::H1 => HttpVersion::H1,
            VersionMeta::H2 => HttpVersion::H2,
        },
        proxy_protocol: socket.proxy_protocol,
        capacity: (meta.capacity)
            .map(|most| Rate::per_second(most).ok_or("a backend takes nothing"))
            .transpose()?,
        is_down: false,
    })
}

/// What tells an endpoint of a route from all others.
fn key(route: &str, backend: &str, address: &Address, tls: &EndpointTls) -> Arc<str> {
    let address = match address {
        Address::Socket(address) => text::of_socket(address),
        Address::Name(..) | Address::Each(..) => address.to_string(),
    };
    [route, "|", backend, "|", &address, "|", &tls_text(tls)]
        .concat()
        .into()
}

fn socket_name(lb: &endpoint::LbEndpoint) -> String {
    lb.metadata
        .as_ref()
        .and_then(|metadata| {
            metadata
                .filter_metadata
                .get("envoy.transport_socket_match")?
                .fields
                .get(SOCKET)?
                .kind
                .as_ref()
        })
        .and_then(|kind| match kind {
            pb::Kind::StringValue(name) => Some(name.clone()),
            pb::Kind::NullValue(_)
            | pb::Kind::NumberValue(_)
            | pb::Kind::BoolValue(_)
            | pb::Kind::StructValue(_)
            | pb::Kind::ListValue(_) => None,
        })
        .unwrap_or_default()
}

pub(super) fn tls_text(tls: &EndpointTls) -> String {
    match tls {
        EndpointTls::None => "none".to_owned(),
        EndpointTls::Workload => "workload".to_owned(),
        EndpointTls::Mesh { sni, expected } => {
            let ids: Vec<String> = expected.iter().map(ToString::to_string).collect();
            format!("mesh {sni} {}", ids.join(","))
        }
    }
}
