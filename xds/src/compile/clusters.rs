//! Clusters: where a service's traffic goes.

use std::collections::BTreeMap;
use std::time::Duration;

use zeugma_core::admission::Rate;
use zeugma_core::locality::Locality;
use zeugma_core::outlier::STRIKES_MAX;
use zeugma_core::snapshot::{Address, EndpointTls, Failure};

use super::rbac::id_matcher;
use super::target::{self, Target};
use super::{
    Context, Export, Made, Scope, Service, Services, cluster_name, http_rules, levels,
    mirror_cluster_name,
};
use crate::meta::{
    AnyClusterMeta, ClusterMeta, EndpointMeta, ErrorRateMeta, ExportMeta, FailoverMeta, HashMeta,
    InboundMeta, PassiveMeta, PeerMeta, ProtocolMeta, RetriesMeta, ServiceMeta, SlowMeta,
    TimeoutsMeta,
};
use crate::model::defaults::{or_secs, passive_on, retry_on};
use crate::model::scalar::Text;
use crate::model::{
    BalancePolicy, Document, FailbackModeSpec, HashSpec, InboundSpec, MeshPeer, MeshRoute,
    PolicySpec, Port, ProtocolSpec, RouteLimitsSpec, TooFewSpec, WhenStaleSpec,
};
use crate::pb::{self, cluster, core, endpoint, tls, upstream_http};
use crate::text;

/// Envoy's key for the metadata that picks a transport socket.
const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";
/// Our key within it.
pub(crate) const SOCKET: &str = "socket";

/// The cluster of one service in one scope.
pub(crate) fn service(context: Context<'_>, service: &Service<'_>, scope: Scope) -> Made {
    let targets: Vec<&Target> = (service.targets.iter())
        .filter(|target| scope == Scope::Outbound || target.peer.is_none())
        .collect();
    let described = (scope == Scope::Outbound).then(|| describe(service));
    let named = Built {
        name: cluster_name(scope, &service.id),
        scope,
        described,
    };
    build(context, service, &targets, named)
}

/// The clusters of a service's mirrors that are not another service's own.
pub(crate) fn mirrors(
    context: Context<'_>,
    service: &Service<'_>,
    services: &Services<'_>,
) -> Vec<Made> {
    service
        .mirrors(context, services)
        .into_iter()
        .filter_map(|(_, to, peer)| {
            let peer = context.model.peer(peer.as_deref()?)?;
            let written = to
                .targets
                .iter()
                .find(|target| target.peer.as_deref() == Some(&peer.name))
                .cloned();
            let target = written.unwrap_or_else(|| {
                target::peer_target(context.model, to.route, &to.port, peer, None)
            });
            let name = mirror_cluster_name(to, Some(&peer.name));
            let named = Built {
                name,
                scope: Scope::Outbound,
                described: None,
            };
            Some(build(context, to, &[&target], named))
        })
        .collect()
}

/// The clusters of the parts of a service's splits that are of some of its backends alone.
pub(crate) fn splits(
    context: Context<'_>,
    service: &Service<'_>,
    services: &Services<'_>,
) -> Vec<Made> {
    if service.port.protocol == ProtocolSpec::Tcp {
        return Vec::new();
    }
    (http_rules::clusters(services, service).into_iter())
        .map(|(name, (scope, targets))| {
            let named = Built {
                name,
                scope,
                described: None,
            };
            build(context, service, &targets, named)
        })
        .collect()
}

fn describe(service: &Service<'_>) -> ServiceMeta {
    let position = service.route.name_position();
    ServiceMeta {
        id: service.id.clone(),
        port: service.port.port,
        ports: service.route.ports().len(),
        hosts: service.hosts(),
        protocol: match service.port.protocol {
            ProtocolSpec::Tcp => ProtocolMeta::Tcp,
            ProtocolSpec::Http => ProtocolMeta::Http,
        },
        inbound: match service.inbound {
            InboundSpec::Passthrough => InboundMeta::Passthrough,
            InboundSpec::Terminate => InboundMeta::Terminate,
        },
        is_audited: service.route.spec.policy == Some(PolicySpec::Audit),
        own: service
            .has_own
            .then(|| cluster_name(Scope::Own, &service.id)),
        export: match &service.export {
            Export::Nobody => ExportMeta::Nobody,
            Export::To(peers) => ExportMeta::To(peers.clone()),
            Export::AllPeers => ExportMeta::AllPeers,
        },
        position: position.into(),
    }
}

/// What sets a cluster apart from others of its service.
struct Built {
    name: String,
    scope: Scope,
    described: Option<ServiceMeta>,
}

fn build(context: Context<'_>, service: &Service<'_>, targets: &[&Target], built: Built) -> Made {
    let Built {
        name,
        scope,
        described,
    } = built;
    let route = &service.route.spec;
    let mut levels = levels::levels(
        targets,
        &context.node.locality,
        &route.locality,
        &route.failover,
    );
    if levels.is_empty() {
        // A mirror's peer that `order` does not name.
        levels.push((0..targets.len()).collect());
    }
    let is_dns = targets
        .iter()
        .flat_map(|target| &target.endpoints)
        .any(|(address, _)| !matches!(address, Address::Socket(_)));
    let kind = if is_dns {
        cluster::cluster::DiscoveryType::StrictDns
    } else {
        cluster::cluster::DiscoveryType::Static
    };
    let spread = levels::spread(&route.locality);
    let spread_level = levels.iter().position(|level| {
        let mut targets = level.iter().filter_map(|at| targets.get(*at));
        targets.any(|target| spread.contains_key(&target.locality))
    });
    let mut meta = meta(service.route, &service.port, described);
    // The calling gateway has other places to try: it must hear `no-local-endpoint` at once.
    meta.failover.use_all &= scope == Scope::Outbound;
    let mut assigned = assignment(&name, targets, &levels, meta.failover.start);
    if let Some(level) = spread_level {
        meta.spread_priority = u32::try_from(level).ok();
        weigh(&mut assigned, meta.spread_priority, &spread);
    }
    let cluster = cluster::Cluster {
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(kind.into())),
        connect_timeout: pb::duration(or_secs(route.timeouts.connect.as_ref(), 1)),
        lb_policy: lb_policy(route.balance.policy.as_ref()).into(),
        lb_config: lb_config(route),
        load_assignment: Some(assigned),
        transport_socket_matches: (targets.iter().copied()).map(socket_match).collect(),
        health_checks: health_check(service).into_iter().collect(),
        outlier_detection: Some(outlier(service.route)),
        circuit_breakers: Some(breakers(&route.limits, meta.retries.budget)),
        common_lb_config: Some(cluster::cluster::CommonLbConfig {
            // Envoy's panic uses what active checks found dead; we never do.
            healthy_panic_threshold: Some(pb::percent::Percent { value: 0.0 }),
            locality_config_specifier: spread_level.map(|_| by_locality()),
            ..Default::default()
        }),
        typed_extension_protocol_options: protocol_options(
            targets,
            service.port.protocol,
            or_secs(route.balance.max_connection_age.as_ref(), 0),
        ),
        name,
        ..Default::default()
    };
    let meta = AnyClusterMeta::Traffic(Box::new(meta));
    Made { cluster, meta }
}

fn lb_policy(policy: Option<&BalancePolicy>) -> cluster::cluster::LbPolicy {
    match policy.unwrap_or(&BalancePolicy::LeastRequest) {
        // Envoy's is an extension that few are built with.
        BalancePolicy::LeastRequest | BalancePolicy::PeakEwma => {
            cluster::cluster::LbPolicy::LeastRequest
        }
        BalancePolicy::RoundRobin => cluster::cluster::LbPolicy::RoundRobin,
        BalancePolicy::Random => cluster::cluster::LbPolicy::Random,
        BalancePolicy::RingHash(_) => cluster::cluster::LbPolicy::RingHash,
        BalancePolicy::Maglev(_) => cluster::cluster::LbPolicy::Maglev,
    }
}

/// What a key is made of: a connection of bytes has no headers.
pub(super) fn hash_on(route: &MeshRoute, protocol: ProtocolSpec) -> Option<HashMeta> {
    let on = route.balance.policy.as_ref()?.hash_on()?;
    Some(match (on, protocol) {
        (HashSpec::Header(Text(name)), ProtocolSpec::Http) => HashMeta::Header(name.0.clone()),
        (HashSpec::Header(_) | HashSpec::Source, _) => HashMeta::Source,
    })
}

/// What Envoy says with the policy: how an endpoint starts slowly.
fn lb_config(route: &MeshRoute) -> Option<cluster::cluster::LbConfig> {
    use cluster::cluster::{
        LbConfig, LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig, SlowStartConfig,
    };

    let lasts = slow_start(route);
    let slow_start_config = (!lasts.is_zero()).then(|| SlowStartConfig {
        slow_start_window: pb::duration(lasts),
        // The rest is as Envoy's defaults are: from 10 % on, linear.
        ..Default::default()
    });
    slow_start_config.as_ref()?;
    match lb_policy(route.balance.policy.as_ref()) {
        LbPolicy::LeastRequest => Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
            slow_start_config,
            ..Default::default()
        })),
        LbPolicy::RoundRobin => Some(LbConfig::RoundRobinLbConfig(RoundRobinLbConfig {
            slow_start_config,
        })),
        LbPolicy::RingHash
        | LbPolicy::Random
        | LbPolicy::Maglev
        | LbPolicy::ClusterProvided
        | LbPolicy::LoadBalancingPolicyConfig => None,
    }
}

fn slow_start(route: &MeshRoute) -> Duration {
    or_secs(route.health.slow_start.as_ref(), 0)
}

fn meta(route: &Document<MeshRoute>, port: &Port, described: Option<ServiceMeta>) -> ClusterMeta {
    let spec = &route.spec;
    let is_http = port.protocol == ProtocolSpec::Http;
    let failover = &spec.failover;
    let back = &failover.failback;
    let passive = &spec.health.passive;
    let over = passive
        .error_rate
        .over
        .as_ref()
        .map_or(0.5, |over| over.0.0);
    let timeouts = &spec.timeouts;
    let retries = &spec.retries;
    ClusterMeta {
        route: route.id(),
        spread_priority: None,
        failover: FailoverMeta {
            start: start_of(spec, port.protocol),
            full: failover.full.as_ref().map_or(0.0, |full| full.0.0),
            hold_millis: millis(or_secs(failover.hold.as_ref(), 0)),
            failback_after_millis: millis(or_secs(
                back.after.as_ref(),
                if is_http { 60 } else { 300 },
            )),
            failback_ramp_millis: millis(or_secs(back.ramp.as_ref(), if is_http { 60 } else { 0 })),
            failback_is_manual: back.mode == Some(FailbackModeSpec::Manual),
            use_all: failover
                .too_few
                .map_or(is_http, |what| what == TooFewSpec::UseAll),
        },
        passive: PassiveMeta {
            on: causes(passive.on.as_ref().map_or_else(
                || passive_on(port.protocol),
                |on| on.iter().map(|c| c.0.0).collect(),
            )),
            // No share is over the whole: that is how it is switched off.
            error_rate: (over < 1.0).then(|| ErrorRateMeta {
                over,
                requests: passive.error_rate.requests.unwrap_or(20),
            }),
            slow: (passive.slow.over.as_ref().and_then(|over| over.0.0)).map(|over| SlowMeta {
                over,
                requests: passive.slow.requests.unwrap_or(20),
            }),
            max_ejected: passive.max_ejected.as_ref().map_or(1.0, |share| share.0.0),
            keep_at_least: passive.keep_at_least.unwrap_or(1),
        },
        peak_ewma: spec.balance.policy == Some(BalancePolicy::PeakEwma),
        hash_on: hash_on(spec, port.protocol),
        slow_start_millis: (lb_config(spec).is_none() && !slow_start(spec).is_zero())
            .then(|| millis(slow_start(spec))),
        timeouts: TimeoutsMeta {
            connect_peer_millis: millis(or_secs(timeouts.connect.as_ref(), 3)),
            response_headers_millis: millis(or_secs(timeouts.response_headers.as_ref(), 15)),
            idle_millis: millis(or_secs(timeouts.idle.as_ref(), 3600)),
            per_try_millis: timeouts.per_try.as_ref().and_then(|t| t.0.0).map(millis),
        },
        retries: RetriesMeta {
            attempts: retries.attempts.unwrap_or(2),
            on: causes(retries.on.as_ref().map_or_else(
                || retry_on(port.protocol),
                |on| on.iter().map(|c| c.0.0).collect(),
            )),
            budget: retries.budget.as_ref().map_or(0.2, |share| share.0.0),
            buffer_bytes: retries.buffer.as_ref().map_or(64 * 1024, |size| size.0.0),
            any_method: retries.any.unwrap_or(false),
            hedge_after_millis: (retries.hedge.after.as_ref())
                .and_then(|after| after.0.0)
                .map(millis),
        },
        service: described,
    }
}

/// `failover.start` with its default.
pub(crate) fn start_of(spec: &MeshRoute, protocol: ProtocolSpec) -> f64 {
    spec.failover.start.as_ref().map_or(
        match protocol {
            ProtocolSpec::Http => 0.7,
            ProtocolSpec::Tcp => 0.0,
        },
        |start| start.0.0,
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn causes(failures: Vec<Failure>) -> Vec<String> {
    failures.into_iter().map(cause).collect()
}

/// A cause in one word.
pub(crate) fn cause(failure: Failure) -> String {
    match failure {
        Failure::Connect => "connect".to_owned(),
        Failure::RefusedStream => "refused-stream".to_owned(),
        Failure::Reset => "reset".to_owned(),
        Failure::Timeout => "timeout".to_owned(),
        Failure::Status(status) => status.to_string(),
        Failure::Unavailable => "unavailable".to_owned(),
        Failure::Grpc(code) => format!("grpc-{code}"),
        Failure::NoLocalEndpoint => "no-local-endpoint".to_owned(),
    }
}

fn assignment(
    name: &str,
    targets: &[&Target],
    levels: &[Vec<usize>],
    start: f64,
) -> endpoint::ClusterLoadAssignment {
    let mut endpoints = Vec::with_capacity(levels.iter().map(Vec::len).sum());
    // Whole weights that give each peer the weight of one own endpoint of weight 1.
    let unit = targets
        .iter()
        .filter(|target| target.peer.is_some())
        .fold(1, |unit, target| lcm(unit, count(target)));
    for (priority, level) in (0..).zip(levels) {
        for target in level.iter().filter_map(|at| targets.get(*at)) {
            endpoints.push(endpoint::LocalityLbEndpoints {
                locality: Some(locality(&target.locality)),
                lb_endpoints: target
                    .endpoints
                    .iter()
                    .map(|(address, weight)| {
                        let weight = match target.peer {
                            Some(_) => unit / count(target),
                            None => weight.saturating_mul(unit),
                        };
                        lb_endpoint(target, address, weight)
                    })
                    .collect(),
                priority,
                ..Default::default()
            });
        }
    }
    endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints,
        policy: Some(endpoint::cluster_load_assignment::Policy {
            overprovisioning_factor: pb::number(overprovisioning(start)),
            // "The healthy share of its weight", not of its number.
            weighted_priority_health: true,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn by_locality() -> cluster::cluster::common_lb_config::LocalityConfigSpecifier {
    use cluster::cluster::common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig};

    LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig::default())
}

/// Gives localities their weights: of one priority by `spread`, of the others what their endpoints
/// weigh together, for to Envoy a locality without a weight is not to be used.
fn weigh(
    assigned: &mut endpoint::ClusterLoadAssignment,
    priority: Option<u32>,
    spread: &BTreeMap<Locality, f64>,
) {
    let mut merged = by_place(std::mem::take(&mut assigned.endpoints));
    for group in &mut merged {
        let share = (spread.iter()).find(|(place, _)| Some(locality(place)) == group.locality);
        let endpoints = group.lb_endpoints.iter();
        let weight = match share.filter(|_| Some(group.priority) == priority) {
            Some((_, share)) => parts_per_million(*share),
            None => endpoints
                .filter_map(|one| one.load_balancing_weight.map(|weight| weight.value))
                .fold(0, u32::saturating_add),
        };
        group.load_balancing_weight = (weight > 0).then_some(pb::UInt32Value { value: weight });
    }
    assigned.endpoints = merged;
}

/// Each locality once in each priority.
pub(crate) fn by_place(
    groups: Vec<endpoint::LocalityLbEndpoints>,
) -> Vec<endpoint::LocalityLbEndpoints> {
    let mut merged: Vec<endpoint::LocalityLbEndpoints> = Vec::new();
    for group in groups {
        let same = (merged.iter_mut())
            .find(|one| one.priority == group.priority && one.locality == group.locality);
        match same {
            Some(one) => one.lb_endpoints.extend(group.lb_endpoints),
            None => merged.push(group),
        }
    }
    merged
}

/// A percentage has at most four decimal places.
fn parts_per_million(share: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "0 to 1,000,000"
    )]
    {
        (share.clamp(0.0, 1.0) * 1e6).round() as u32
    }
}

/// Envoy's factor for `full: 0%`, in percent: a level keeps all while `h * factor >= 100`. With
/// `start: 0%` one healthy endpoint in a hundred keeps all.
fn overprovisioning(start: f64) -> u32 {
    let factor = (100.0 / start.max(0.01)).round().clamp(100.0, 10_000.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole and clamped to 100..10000"
    )]
    {
        factor as u32
    }
}

fn count(target: &Target) -> u32 {
    u32::try_from(target.endpoints.len())
        .unwrap_or(u32::MAX)
        .max(1)
}

fn lcm(a: u32, b: u32) -> u32 {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

pub(crate) fn locality(locality: &Locality) -> core::Locality {
    core::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        sub_zone: locality.subzone.to_string(),
    }
}

fn lb_endpoint(target: &Target, address: &Address, weight: u32) -> endpoint::LbEndpoint {
    let mut metadata = pb::metadata(&EndpointMeta {
        backend: target.name().to_owned(),
        peer: target.peer.clone(),
        workload: target.tls == EndpointTls::Workload,
        version: target.version,
        each: matches!(address, Address::Each(..)),
        capacity: target.capacity.map(Rate::get),
    });
    metadata
        .filter_metadata
        .insert(TRANSPORT_SOCKET_MATCH.to_owned(), socket_key(target));
    endpoint::LbEndpoint {
        metadata: Some(metadata),
        load_balancing_weight: pb::number(weight),
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
            endpoint::Endpoint {
                address: Some(match address {
                    Address::Socket(socket) => {
                        pb::address(&text::of_ip(socket.ip()), socket.port())
                    }
                    Address::Name(host, port) | Address::Each(host, port) => {
                        pb::address(host.as_str(), *port)
                    }
                }),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

fn socket_key(target: &Target) -> pb::Struct {
    let value = pb::PbValue {
        kind: Some(pb::Kind::StringValue(target.name().to_owned())),
    };
    pb::Struct {
        fields: [(SOCKET.to_owned(), value)].into(),
    }
}

fn socket_match(target: &Target) -> cluster::cluster::TransportSocketMatch {
    let socket = match &target.tls {
        EndpointTls::None | EndpointTls::Workload => {
            socket("envoy.transport_sockets.raw_buffer", &pb::RawBuffer {})
        }
        EndpointTls::Mesh { sni, expected } => {
            let sans = expected
                .iter()
                .map(|id| tls::SubjectAltNameMatcher {
                    san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
                    matcher: Some(id_matcher(id)),
                    ..Default::default()
                })
                .collect();
            socket(
                "envoy.transport_sockets.tls",
                &tls::UpstreamTlsContext {
                    common_tls_context: Some(common_tls(sans)),
                    sni: sni.to_string(),
                    ..Default::default()
                },
            )
        }
    };
    let socket = if target.proxy_protocol {
        self::socket(
            "envoy.transport_sockets.upstream_proxy_protocol",
            &pb::ProxyProtocolUpstreamTransport {
                config: Some(core::ProxyProtocolConfig {
                    version: core::proxy_protocol_config::Version::V2.into(),
                    ..Default::default()
                }),
                transport_socket: Some(socket),
                ..Default::default()
            },
        )
    } else {
        socket
    };
    cluster::cluster::TransportSocketMatch {
        name: target.name().to_owned(),
        r#match: Some(socket_key(target)),
        transport_socket: Some(socket),
    }
}

/// A transport socket with its typed configuration.
pub(crate) fn socket<M: prost::Message + prost::Name>(
    name: &str,
    message: &M,
) -> core::TransportSocket {
    core::TransportSocket {
        name: name.to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pb::pack(
            message,
        ))),
    }
}

/// Our SVID and trust bundles by SDS; TLS 1.3 alone.
pub(crate) fn common_tls(sans: Vec<tls::SubjectAltNameMatcher>) -> tls::CommonTlsContext {
    let secret = |name: &str| tls::SdsSecretConfig {
        name: name.to_owned(),
        sds_config: Some(ads()),
    };
    let version = tls::tls_parameters::TlsProtocol::TlSv13.into();
    tls::CommonTlsContext {
        tls_params: Some(tls::TlsParameters {
            tls_minimum_protocol_version: version,
            tls_maximum_protocol_version: version,
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(
            tls::common_tls_context::ValidationContextType::CombinedValidationContext(
                tls::common_tls_context::CombinedCertificateValidationContext {
                    default_validation_context: Some(tls::CertificateValidationContext {
                        match_typed_subject_alt_names: sans,
                        ..Default::default()
                    }),
                    validation_context_sds_secret_config: Some(secret("ROOTCA")),
                    ..Default::default()
                },
            ),
        ),
        ..Default::default()
    }
}

/// The stream that the resource itself came by.
pub(crate) fn ads() -> core::ConfigSource {
    core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(core::config_source::ConfigSourceSpecifier::Ads(
            core::AggregatedConfigSource {},
        )),
        ..Default::default()
    }
}

fn health_check(service: &Service<'_>) -> Option<core::HealthCheck> {
    let active = service.route.spec.health.active.as_ref()?;
    // What is no http port cannot answer a request: there a connection has to do.
    let is_http = service.port.protocol == ProtocolSpec::Http;
    let host = || {
        let host = service.route.first_host();
        host.map(|host| host.to_string()).unwrap_or_default()
    };
    let checker = match (&active.http, &active.grpc) {
        (Some(path), _) if is_http => core::health_check::HealthChecker::HttpHealthCheck(
            core::health_check::HttpHealthCheck {
                host: host(),
                path: path.clone(),
                // 2xx, where Envoy's own default is 200 alone.
                expected_statuses: vec![pb::percent::Int64Range {
                    start: 200,
                    end: 300,
                }],
                ..Default::default()
            },
        ),
        (None, Some(grpc)) if is_http => core::health_check::HealthChecker::GrpcHealthCheck(
            core::health_check::GrpcHealthCheck {
                service_name: grpc.clone(),
                authority: host(),
                ..Default::default()
            },
        ),
        _ => core::health_check::HealthChecker::TcpHealthCheck(
            core::health_check::TcpHealthCheck::default(),
        ),
    };
    Some(core::HealthCheck {
        timeout: pb::duration(or_secs(active.timeout.as_ref(), 1)),
        interval: pb::duration(or_secs(active.every.as_ref(), 5)),
        healthy_threshold: pb::number(active.up.unwrap_or(2)),
        unhealthy_threshold: pb::number(active.down.unwrap_or(3)),
        health_checker: Some(checker),
        ..Default::default()
    })
}

fn outlier(route: &Document<MeshRoute>) -> cluster::OutlierDetection {
    let passive = &route.spec.health.passive;
    let eject = or_secs(passive.eject.as_ref(), 30);
    let share = passive.max_ejected.as_ref().map_or(1.0, |share| share.0.0);
    cluster::OutlierDetection {
        consecutive_5xx: pb::number(passive.consecutive.unwrap_or(5)),
        interval: pb::duration(Duration::from_secs(10)),
        base_ejection_time: pb::duration(eject),
        max_ejection_time: pb::duration(eject.saturating_mul(STRIKES_MAX)),
        max_ejection_percent: pb::number(whole_percent(share)),
        ..Default::default()
    }
}

fn whole_percent(share: f64) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share is 0 to 1"
    )]
    {
        (share.clamp(0.0, 1.0) * 100.0).round() as u32
    }
}

fn breakers(limits: &RouteLimitsSpec, budget: f64) -> cluster::CircuitBreakers {
    use cluster::circuit_breakers::{Thresholds, thresholds::RetryBudget};

    cluster::CircuitBreakers {
        thresholds: vec![Thresholds {
            // Ours are off unless written; Envoy's own default is 1024.
            max_connections: pb::number(limits.connections.unwrap_or(u32::MAX)),
            max_pending_requests: pb::number(limits.pending.unwrap_or(u32::MAX)),
            max_requests: pb::number(limits.requests.unwrap_or(u32::MAX)),
            retry_budget: Some(RetryBudget {
                budget_percent: Some(pb::percent::Percent {
                    value: budget * 100.0,
                }),
                min_retry_concurrency: pb::number(10),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

type Options = std::collections::HashMap<String, pb::Any>;

/// The HTTP version for Envoy, which has one for the whole cluster.
fn protocol_options(targets: &[&Target], protocol: ProtocolSpec, age_max: Duration) -> Options {
    use crate::meta::VersionMeta;
    use upstream_http::http_protocol_options as options;

    if protocol == ProtocolSpec::Tcp {
        return Options::new();
    }
    let versions: BTreeMap<u8, VersionMeta> = targets
        .iter()
        .map(|target| (target.version as u8, target.version))
        .collect();
    let explicit = |config| {
        options::UpstreamProtocolOptions::ExplicitHttpConfig(options::ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let choice = match versions.values().next() {
        Some(VersionMeta::H1) if versions.len() == 1 => explicit(
            options::explicit_http_config::ProtocolConfig::HttpProtocolOptions(
                core::Http1ProtocolOptions::default(),
            ),
        ),
        Some(VersionMeta::H2) if versions.len() == 1 => explicit(
            options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(
                core::Http2ProtocolOptions::default(),
            ),
        ),
        _ => options::UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            options::UseDownstreamHttpConfig {
                http_protocol_options: Some(core::Http1ProtocolOptions::default()),
                http2_protocol_options: Some(core::Http2ProtocolOptions::default()),
                ..Default::default()
            },
        ),
    };
    packed_options(&upstream_http::HttpProtocolOptions {
        upstream_protocol_options: Some(choice),
        common_http_protocol_options: (!age_max.is_zero()).then(|| core::HttpProtocolOptions {
            max_connection_duration: pb::duration(age_max),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// Envoy's key for HTTP options of a cluster.
pub(crate) const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn packed_options(options: &upstream_http::HttpProtocolOptions) -> Options {
    [(HTTP_OPTIONS.to_owned(), pb::pack(options))].into()
}

/// A peer's gateways.
pub(crate) fn peer(peer: &Document<MeshPeer>) -> Made {
    use upstream_http::http_protocol_options as options;

    let spec = &peer.spec;
    let name = format!("peer|{}", peer.name);
    let target = Target {
        names: vec![peer.name.clone()],
        cluster: spec.cluster.0.0.clone(),
        locality: spec.locality.0.clone(),
        peer: Some(peer.name.clone()),
        endpoints: spec
            .gateways
            .iter()
            .map(|Text(gateway)| (target::address(gateway, 0), 1))
            .collect(),
        tls: EndpointTls::Mesh {
            sni: "peer.zeugma.internal".into(),
            expected: spec.spiffe_ids.iter().map(|id| id.0.clone()).collect(),
        },
        version: crate::meta::VersionMeta::H2,
        proxy_protocol: false,
        capacity: None,
    };
    let http2 = core::Http2ProtocolOptions {
        connection_keepalive: Some(core::KeepaliveSettings {
            interval: pb::duration(or_secs(spec.keepalive.ping.as_ref(), 2)),
            timeout: pb::duration(or_secs(spec.keepalive.timeout.as_ref(), 2)),
            ..Default::default()
        }),
        ..Default::default()
    };
    let is_dns = target
        .endpoints
        .iter()
        .any(|(address, _)| matches!(address, Address::Name(..)));
    let kind = if is_dns {
        cluster::cluster::DiscoveryType::StrictDns
    } else {
        cluster::cluster::DiscoveryType::Static
    };
    let cluster = cluster::Cluster {
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(kind.into())),
        connect_timeout: pb::duration(Duration::from_secs(3)),
        load_assignment: Some(assignment(&name, &[&target], &[vec![0]], 1.0)),
        transport_socket_matches: vec![socket_match(&target)],
        typed_extension_protocol_options: packed_options(&upstream_http::HttpProtocolOptions {
            upstream_protocol_options: Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(
                options::ExplicitHttpConfig {
                    protocol_config: Some(
                        options::explicit_http_config::ProtocolConfig::Http2ProtocolOptions(http2),
                    ),
                },
            )),
            ..Default::default()
        }),
        name,
        ..Default::default()
    };
    let meta = AnyClusterMeta::Peer(PeerMeta {
        peer: peer.name.clone(),
        cluster: spec.cluster.0.0.clone(),
        locality: spec.locality.0.to_string(),
        attests: spec.attests.iter().map(|td| td.0.to_string()).collect(),
        sources: spec.sources.iter().map(|net| net.0.to_string()).collect(),
        drops_stale: spec.when_stale == Some(WhenStaleSpec::Drop),
    });
    Made { cluster, meta }
}
