use std::sync::Arc;
use std::time::Duration;

use zeugma_core::fleet::Fleet;
use zeugma_core::identity::IdPattern;
use zeugma_core::shares::EndpointStatus;
use zeugma_core::snapshot::{Address, Balance, EndpointTls, Failure, HashOn, HttpVersion, TooFew};
use zeugma_core::time::Time;

use super::build::{
    chain, chains, filter, lb, of_cluster, of_endpoints, seconds, source_ip, tcp, upstream, zone,
};
use super::{build, cluster, ingest, refused};
use crate::compile::HTTP_OPTIONS;
use crate::pb::{self, cluster as envoy, core, endpoint, tcp_proxy, upstream_http};

#[test]
fn a_cluster_that_says_nothing_has_envoys_defaults() {
    let snapshot = ingest(&[build::one("a")]).unwrap();
    let made = cluster(&snapshot, "a");
    let policy = &made.policy;
    assert_eq!(policy.balance, Balance::RoundRobin);
    assert_eq!(policy.timeouts.connect, Duration::from_secs(5));
    assert_eq!(policy.limits.connections, Some(1024));
    assert_eq!(policy.passive.consecutive, 0);
    assert_eq!(policy.retries.attempts, 0);
    assert_eq!(policy.failover.too_few, TooFew::UseAll);
    assert_eq!(policy.active, None);
    let endpoint = &made.endpoints[0];
    assert_eq!(endpoint.version, HttpVersion::H1);
    assert_eq!(endpoint.tls, EndpointTls::None);
    assert_eq!(&*endpoint.key.0, "a|eu/eu-0|10.0.0.1:80|none");
}

/// `../shared/spec/traps.md`: as measured at Envoy 1.40, healthy 50/60 % gives 69/31, 25/100 % gives 35/65,
/// 5/65 % gives 8.4/91.6.
#[test]
fn priorities_share_traffic_as_envoys_do() {
    for (healthy, expected) in [
        ([10, 12], [0.70, 0.30]),
        ([5, 20], [0.35, 0.65]),
        ([1, 13], [0.07, 0.91]),
    ] {
        let of = |nth: usize, host: usize| format!("10.0.{nth}.{host}:80");
        let mut made = build::cluster("a", &[]);
        let groups = healthy.iter().enumerate().map(|(nth, healthy)| {
            let addresses: Vec<String> = (1..=20).map(|host| of(nth, host)).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let priority = u32::try_from(nth).unwrap();
            let mut group = zone(&format!("eu-{nth}"), priority, &addresses);
            for down in group.lb_endpoints.iter_mut().skip(*healthy) {
                down.health_status = core::HealthStatus::Unhealthy.into();
            }
            group
        });
        made.load_assignment.as_mut().unwrap().endpoints = groups.collect();
        let snapshot = ingest(&[of_cluster(&made)]).unwrap();
        let mut fleet = Fleet::new();
        fleet.reconcile(&snapshot, Time::ZERO);
        let shares = fleet.shares(Time::ZERO);
        let levels = &shares.clusters.get(0).unwrap().levels;
        let [first, second]: [f64; 2] = expected;
        let sum = first + second;
        for (level, expected) in levels.iter().zip([first / sum, second / sum]) {
            assert!((level - expected).abs() < 0.005, "{healthy:?}: {levels:?}");
        }
    }
}

#[test]
fn health_that_a_control_plane_tells_counts() {
    let mut made = build::cluster("a", &[&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]]);
    let all = &mut made.load_assignment.as_mut().unwrap().endpoints[0].lb_endpoints;
    all[0].health_status = core::HealthStatus::Draining.into();
    all[1].health_status = core::HealthStatus::Healthy.into();
    let snapshot = ingest(&[of_cluster(&made)]).unwrap();
    let mut fleet = Fleet::new();
    fleet.reconcile(&snapshot, Time::ZERO);
    let status = fleet
        .shares(Time::ZERO)
        .clusters
        .get(0)
        .unwrap()
        .endpoints
        .clone();
    let healthy = EndpointStatus::Healthy;
    assert_eq!(status, [EndpointStatus::Unhealthy, healthy, healthy]);
    let all = &mut made.load_assignment.as_mut().unwrap().endpoints[0].lb_endpoints;
    all[2].health_status = core::HealthStatus::Degraded.into();
    let why = refused(&[of_cluster(&made)]);
    assert!(
        why.contains("load_assignment.endpoints[0].lb_endpoints[2].health_status: "),
        "{why}"
    );
}

#[test]
fn endpoints_come_by_themselves_under_the_name_of_the_service() {
    let mut made = build::cluster("a", &[]);
    made.load_assignment = None;
    made.cluster_discovery_type = Some(envoy::cluster::ClusterDiscoveryType::Type(
        envoy::cluster::DiscoveryType::Eds.into(),
    ));
    made.eds_cluster_config = Some(envoy::cluster::EdsClusterConfig {
        service_name: "orders".to_owned(),
        ..Default::default()
    });
    let mut heavy = lb("10.0.0.2:80");
    heavy.load_balancing_weight = pb::number(3);
    let mut group = zone("eu-1", 0, &["10.0.0.1:80"]);
    group.lb_endpoints.push(heavy);
    let endpoints = endpoint::ClusterLoadAssignment {
        cluster_name: "orders".to_owned(),
        endpoints: vec![group, zone("eu-2", 1, &["10.0.1.1:80"])],
        ..Default::default()
    };
    let snapshot = ingest(&[of_cluster(&made), of_endpoints(&endpoints)]).unwrap();
    let read = cluster(&snapshot, "a");
    let weights: Vec<f64> = read.endpoints.iter().map(|one| one.weight).collect();
    assert_eq!(weights, [1.0, 3.0, 1.0]);
    let levels: Vec<&str> = read.levels.iter().map(|level| &*level.name).collect();
    assert_eq!(levels, ["eu/eu-1", "eu/eu-2"]);
    // None have come, or it is scaled to nothing.
    let snapshot = ingest(&[of_cluster(&made)]).unwrap();
    assert!(cluster(&snapshot, "a").endpoints.is_empty());
}

/// Endpoints are whose their cluster is: one of them that says it is ours hides nothing.
#[test]
fn endpoints_of_a_strangers_cluster_are_a_strangers() {
    let mut made = build::cluster("a", &[]);
    made.load_assignment = None;
    made.cluster_discovery_type = Some(envoy::cluster::ClusterDiscoveryType::Type(
        envoy::cluster::DiscoveryType::Eds.into(),
    ));
    let mut ours = lb("10.0.0.1:80");
    let metadata = [(pb::METADATA.to_owned(), pb::Struct::default())];
    ours.metadata = Some(core::Metadata {
        filter_metadata: metadata.into(),
        ..Default::default()
    });
    ours.health_status = 0;
    let mut group = zone("eu-1", 0, &[]);
    group.lb_endpoints.push(ours);
    group.proximity = pb::number(1);
    let endpoints = endpoint::ClusterLoadAssignment {
        cluster_name: "a".to_owned(),
        endpoints: vec![group],
        ..Default::default()
    };
    let faults = ingest(&[of_cluster(&made), of_endpoints(&endpoints)]).unwrap_err();
    assert!(
        faults[0].starts_with("cluster a: ") && faults[0].contains("proximity"),
        "{faults:?}"
    );
}

#[test]
fn names_are_resolved_as_their_cluster_says() {
    use envoy::cluster::{ClusterDiscoveryType, DiscoveryType};
    let mut made = build::cluster("a", &[&["orders.internal:80"]]);
    let why = refused(&[of_cluster(&made)]);
    assert!(
        why.ends_with("endpoint.address: `orders.internal` is not an IP address"),
        "{why}"
    );
    let mut kind = |kind: DiscoveryType| {
        made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind.into()));
        let snapshot = ingest(&[of_cluster(&made)]).unwrap();
        cluster(&snapshot, "a").endpoints[0].address.clone()
    };
    assert!(matches!(kind(DiscoveryType::StrictDns), Address::Each(..)));
    assert!(matches!(kind(DiscoveryType::LogicalDns), Address::Name(..)));
    made.cluster_discovery_type = Some(ClusterDiscoveryType::Type(
        DiscoveryType::OriginalDst.into(),
    ));
    assert!(refused(&[of_cluster(&made)]).contains("cluster a: type: "));
}

#[test]
fn outlier_detection_is_of_one_kind_of_failure() {
    let mut made = build::cluster("a", &[&["10.0.0.1:80"]]);
    let mut with = |outlier: envoy::OutlierDetection| {
        made.outlier_detection = Some(outlier);
        ingest(&[of_cluster(&made)]).map(|snapshot| cluster(&snapshot, "a").policy.passive.clone())
    };
    let default = with(envoy::OutlierDetection::default()).unwrap();
    assert_eq!(default.consecutive, 5);
    assert!(default.on.contains(&Failure::Status(507)) && default.on.contains(&Failure::Connect));
    assert!((default.max_ejected - 0.1).abs() < 1e-9);
    let gateways = with(envoy::OutlierDetection {
        enforcing_consecutive_5xx: pb::number(0),
        enforcing_consecutive_gateway_failure: pb::number(100),
        consecutive_gateway_failure: pb::number(3),
        base_ejection_time: seconds(7),
        max_ejection_percent: pb::number(100),
        ..Default::default()
    });
    let gateways = gateways.unwrap();
    assert_eq!((gateways.consecutive, gateways.eject.as_secs()), (3, 7));
    assert!(!gateways.on.contains(&Failure::Status(500)));
    for (outlier, path) in [
        (
            envoy::OutlierDetection {
                enforcing_consecutive_gateway_failure: pb::number(100),
                ..Default::default()
            },
            "outlier_detection.enforcing_consecutive_gateway_failure: ",
        ),
        (
            envoy::OutlierDetection {
                enforcing_consecutive_5xx: pb::number(50),
                ..Default::default()
            },
            "outlier_detection.enforcing_consecutive_5xx: 50 % ",
        ),
        (
            envoy::OutlierDetection {
                enforcing_success_rate: pb::number(100),
                ..Default::default()
            },
            "outlier_detection.enforcing_success_rate: ",
        ),
        (
            envoy::OutlierDetection {
                max_ejection_percent: pb::number(101),
                ..Default::default()
            },
            "outlier_detection.max_ejection_percent: ",
        ),
    ] {
        let why = with(outlier).unwrap_err();
        assert!(why[0].contains(path), "{why:?}");
    }
}

#[test]
fn a_health_check_is_translated_with_its_thresholds() {
    use core::health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck};
    use zeugma_core::snapshot::ActiveKind;

    let mut made = build::cluster("a", &[&["10.0.0.1:80"]]);
    let check = |checker| core::HealthCheck {
        timeout: seconds(1),
        interval: seconds(5),
        healthy_threshold: pb::number(2),
        unhealthy_threshold: pb::number(4),
        health_checker: Some(checker),
        ..Default::default()
    };
    let http = HttpHealthCheck {
        path: "/healthz".to_owned(),
        ..Default::default()
    };
    for (checker, expected) in [
        (
            HealthChecker::HttpHealthCheck(http.clone()),
            ActiveKind::Http {
                path: "/healthz".into(),
                host: "a".into(),
            },
        ),
        (
            HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
            ActiveKind::Tcp,
        ),
        (
            HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
                service_name: "s".to_owned(),
                authority: "h".to_owned(),
                ..Default::default()
            }),
            ActiveKind::Grpc {
                service: "s".into(),
                host: "h".into(),
            },
        ),
    ] {
        made.health_checks = vec![check(checker)];
        let snapshot = ingest(&[of_cluster(&made)]).unwrap();
        let active = cluster(&snapshot, "a").policy.active.clone().unwrap();
        assert_eq!((active.kind, active.up, active.down), (expected, 2, 4));
    }
    made.health_checks[0].interval = None;
    assert!(refused(&[of_cluster(&made)]).contains("health_checks[0].interval: "));
    made.health_checks = vec![check(HealthChecker::HttpHealthCheck(http)); 2];
    assert!(refused(&[of_cluster(&made)]).contains("health_checks[1]: "));
}

#[test]
fn an_endpoint_chooses_among_the_sockets_of_its_cluster() {
    let structure = |key: &str, value: &str| pb::Struct {
        fields: [(
            key.to_owned(),
            pb::PbValue {
                kind: Some(pb::Kind::StringValue(value.to_owned())),
            },
        )]
        .into(),
    };
    let mut made = build::cluster("a", &[&["10.0.0.1:80", "10.0.0.2:80"]]);
    made.transport_socket = Some(upstream("", "spiffe://east.example/b"));
    made.transport_socket_matches = vec![envoy::cluster::TransportSocketMatch {
        name: "mesh".to_owned(),
        r#match: Some(structure("tls", "istio")),
        transport_socket: Some(upstream("orders", "spiffe://west.example/o")),
    }];
    let first = &mut made.load_assignment.as_mut().unwrap().endpoints[0].lb_endpoints[0];
    first.metadata = Some(core::Metadata {
        filter_metadata: [(
            "envoy.transport_socket_match".to_owned(),
            structure("tls", "istio"),
        )]
        .into(),
        ..Default::default()
    });
    let snapshot = ingest(&[of_cluster(&made)]).unwrap();
    let endpoints = &cluster(&snapshot, "a").endpoints;
    let mesh = |sni: &str, id: &str| EndpointTls::Mesh {
        sni: sni.into(),
        expected: vec![IdPattern::parse(id).unwrap()],
    };
    assert_eq!(endpoints[0].tls, mesh("orders", "spiffe://west.example/o"));
    // RFC 6066 §3: an address is no SNI, and none is sent.
    assert_eq!(
        endpoints[1].tls,
        mesh("10.0.0.2", "spiffe://east.example/b")
    );
}

#[test]
fn the_version_of_http_is_what_is_said_and_else_the_first() {
    use upstream_http::http_protocol_options as options;
    let explicit = |config| upstream_http::HttpProtocolOptions {
        upstream_protocol_options: Some(options::UpstreamProtocolOptions::ExplicitHttpConfig(
            options::ExplicitHttpConfig {
                protocol_config: Some(config),
            },
        )),
        ..Default::default()
    };
    use options::explicit_http_config::ProtocolConfig;
    let mut made = build::cluster("a", &[&["10.0.0.1:80"]]);
    for (config, version) in [
        (
            ProtocolConfig::HttpProtocolOptions(core::Http1ProtocolOptions::default()),
            HttpVersion::H1,
        ),
        (
            ProtocolConfig::Http2ProtocolOptions(core::Http2ProtocolOptions::default()),
            HttpVersion::H2,
        ),
    ] {
        let all = [(HTTP_OPTIONS.to_owned(), pb::pack(&explicit(config)))];
        made.typed_extension_protocol_options = all.into();
        let snapshot = ingest(&[of_cluster(&made)]).unwrap();
        assert_eq!(cluster(&snapshot, "a").endpoints[0].version, version);
    }
    let any = pb::pack(&upstream_http::HttpProtocolOptions::default());
    made.typed_extension_protocol_options = [("x".to_owned(), any)].into();
    let why = refused(&[of_cluster(&made)]);
    assert!(
        why.contains("typed_extension_protocol_options[\"x\"]: "),
        "{why}"
    );
}

#[test]
fn a_cluster_that_is_used_in_several_ways_is_several_with_the_same_endpoints() {
    let mut made = build::cluster("a", &[&["10.0.0.1:80"]]);
    made.lb_policy = envoy::cluster::LbPolicy::RingHash.into();
    let hashed = tcp_proxy::TcpProxy {
        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(
            "a".to_owned(),
        )),
        hash_policy: vec![source_ip()],
        idle_timeout: seconds(60),
        ..Default::default()
    };
    let all = [
        of_cluster(&made),
        chains(vec![
            chain("one", &["one.a"], tcp("a")),
            chain("two", &["two.a"], filter("tcp", &hashed)),
        ]),
    ];
    let snapshot = ingest(&all).unwrap();
    let names: Vec<&str> = snapshot.clusters.iter().map(|one| &*one.name).collect();
    let [one, two] = [
        "a|passthrough|idle 3600000ms",
        "a|passthrough|idle 60000ms|by source",
    ];
    assert_eq!(names, [two, one]);
    let (one, two) = (cluster(&snapshot, one), cluster(&snapshot, two));
    assert_eq!(one.policy.balance, Balance::Random);
    assert_eq!(two.policy.balance, Balance::RingHash(HashOn::Source));
    assert_eq!(one.endpoints, two.endpoints);
    assert_eq!((&*one.route, &*two.route), ("a", "a"));
    assert_eq!(one.endpoints[0].tls, EndpointTls::Workload);
}

#[test]
fn what_cannot_be_said_of_a_cluster_is_refused_by_its_place() {
    type Change = fn(&mut envoy::Cluster);
    let all: [(Change, &str); 9] = [
        (|one| one.lb_policy = 6, "lb_policy: CLUSTER_PROVIDED"),
        (|one| one.lb_policy = 99, "lb_policy: 99"),
        (|one| one.connect_timeout = seconds(0), "connect_timeout: "),
        (
            |one| one.connect_timeout = seconds(-1),
            "connect_timeout: it is negative",
        ),
        (
            |one| {
                one.common_lb_config = Some(envoy::cluster::CommonLbConfig {
                    healthy_panic_threshold: Some(pb::percent::Percent { value: 30.0 }),
                    ..Default::default()
                });
            },
            "common_lb_config.healthy_panic_threshold: 30 %",
        ),
        (
            |one| {
                one.load_assignment.as_mut().unwrap().policy =
                    Some(endpoint::cluster_load_assignment::Policy {
                        overprovisioning_factor: pb::number(99),
                        ..Default::default()
                    });
            },
            "load_assignment.policy.overprovisioning_factor: ",
        ),
        (
            |one| {
                one.circuit_breakers = Some(envoy::CircuitBreakers {
                    thresholds: vec![envoy::circuit_breakers::Thresholds {
                        max_retries: pb::number(10),
                        ..Default::default()
                    }],
                    ..Default::default()
                });
            },
            "circuit_breakers.thresholds[0].max_retries: ",
        ),
        (
            |one| {
                one.transport_socket = Some(build::socket(&pb::tls::UpstreamTlsContext::default()));
            },
            "transport_socket.typed_config.common_tls_context: it is missing",
        ),
        (
            |one| one.load_assignment = None,
            "load_assignment: it has no endpoints",
        ),
    ];
    for (change, path) in all {
        let mut made = build::cluster("a", &[&["10.0.0.1:80"]]);
        change(&mut made);
        let why = refused(&[of_cluster(&made)]);
        assert!(why.starts_with(&format!("cluster a: {path}")), "{why}");
        let alone = super::super::check_cluster(&made, &super::node().trust_domain);
        assert!(alone.unwrap_err().starts_with(path));
    }
}

#[test]
fn localities_of_one_priority_are_weighed() {
    let mut made = build::cluster("a", &[]);
    let weighed = |name: &str, priority, address, weight| {
        let mut group = zone(name, priority, &[address]);
        group.load_balancing_weight = pb::number(weight);
        group
    };
    let groups = vec![
        weighed("eu-1", 0, "10.0.0.1:80", 3),
        weighed("eu-2", 0, "10.0.0.2:80", 1),
        weighed("eu-3", 1, "10.0.0.3:80", 1),
    ];
    made.load_assignment.as_mut().unwrap().endpoints = groups;
    let read = |made: &envoy::Cluster| {
        let snapshot = ingest(&[of_cluster(made)]).unwrap();
        Arc::clone(&snapshot.clusters[0])
    };
    // Envoy looks at the weights of localities only where it is told to.
    assert!(read(&made).policy.spread.is_empty());
    made.common_lb_config = Some(envoy::cluster::CommonLbConfig {
        locality_config_specifier: Some(
            envoy::cluster::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(
                envoy::cluster::common_lb_config::LocalityWeightedLbConfig {},
            ),
        ),
        ..Default::default()
    });
    let weights: Vec<f64> = read(&made)
        .policy
        .spread
        .iter()
        .map(|one| one.weight)
        .collect();
    assert_eq!(weights, [0.75, 0.25]);
    let groups = &mut made.load_assignment.as_mut().unwrap().endpoints;
    groups.push(weighed("eu-4", 1, "10.0.0.4:80", 1));
    let why = refused(&[of_cluster(&made)]);
    assert!(
        why.contains("common_lb_config.locality_weighted_lb_config: "),
        "{why}"
    );
}

#[test]
fn slow_start_is_of_the_policy_that_there_is() {
    use envoy::cluster::{LbConfig, LbPolicy, LeastRequestLbConfig, SlowStartConfig};

    let mut made = build::cluster("a", &[&["10.0.0.1:80"]]);
    made.lb_config = Some(LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
        slow_start_config: Some(SlowStartConfig {
            slow_start_window: seconds(30),
            ..Default::default()
        }),
        ..Default::default()
    }));
    for policy in [LbPolicy::RoundRobin, LbPolicy::Random] {
        made.lb_policy = policy.into();
        let why = refused(&[of_cluster(&made)]);
        let place = "cluster a: least_request_lb_config.slow_start_config: ";
        assert!(why.starts_with(place), "{why}");
    }
    made.lb_policy = LbPolicy::LeastRequest.into();
    ingest(&[of_cluster(&made)]).unwrap();
}
