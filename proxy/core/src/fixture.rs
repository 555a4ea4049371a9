//! Small snapshots for unit tests.

use std::sync::Arc;
use std::time::Duration;

use crate::admission::RouteLimits;
use crate::balance::Slots;
use crate::identity::{IdPattern, SpiffeId, TrustDomain};
use crate::locality::Locality;
use crate::names::HostPattern;
use crate::rules::{HeaderChanges, HttpRule, Part, RuleRetries, RuleTimeouts};
use crate::snapshot::*;

pub(crate) fn id(text: &str) -> SpiffeId {
    SpiffeId::parse(text).unwrap()
}

pub(crate) fn ids(texts: &[&str]) -> Vec<IdPattern> {
    texts
        .iter()
        .map(|text| IdPattern::parse(text).unwrap())
        .collect()
}

pub(crate) fn nets(texts: &[&str]) -> Vec<ipnet::IpNet> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

pub(crate) fn names(texts: &[&str]) -> Vec<Arc<str>> {
    texts.iter().map(|text| (*text).into()).collect()
}

pub(crate) fn endpoint(key: &str) -> Endpoint {
    Endpoint {
        key: EndpointKey(key.into()),
        backend: "backend".into(),
        address: Address::Socket("127.0.0.1:1".parse().unwrap()),
        weight: 1.0,
        locality: Locality::default(),
        peer: None,
        tls: EndpointTls::None,
        version: HttpVersion::Same,
        proxy_protocol: false,
        capacity: None,
        is_down: false,
    }
}

/// A cluster of the route `a/b`, one level for each list of endpoint keys.
pub(crate) fn cluster(levels: &[&[&str]]) -> Cluster {
    let endpoints: Vec<_> = levels
        .iter()
        .flat_map(|keys| keys.iter().map(|key| endpoint(key)))
        .collect();
    let mut next = 0;
    let levels = levels
        .iter()
        .enumerate()
        .map(|(at, keys)| Level {
            name: format!("level {at}").into(),
            members: keys
                .iter()
                .map(|_| {
                    next += 1;
                    EndpointIx(next - 1)
                })
                .collect(),
            slots: Slots::default(),
        })
        .collect();
    Cluster {
        name: "a/b:80".into(),
        route: "a/b".into(),
        endpoints,
        levels,
        policy: Arc::new(policy()),
    }
}

fn policy() -> ClusterPolicy {
    ClusterPolicy {
        balance: Balance::LeastRequest,
        spread: Vec::new(),
        failover: Failover {
            start: 0.7,
            full: 0.0,
            hold: Duration::ZERO,
            failback_after: Duration::from_secs(60),
            failback_ramp: Duration::from_secs(60),
            failback: Failback::Auto,
            too_few: TooFew::UseAll,
        },
        active: None,
        passive: PassiveCheck {
            consecutive: 5,
            on: vec![
                Failure::Connect,
                Failure::Reset,
                Failure::Timeout,
                Failure::Status(502),
                Failure::Status(503),
                Failure::Status(504),
            ],
            error_rate: Some(ErrorRate {
                over: 0.5,
                requests: 20,
            }),
            slow: None,
            eject: Duration::from_secs(30),
            max_ejected: 1.0,
            keep_at_least: 1,
        },
        connection_age_max: Duration::ZERO,
        slow_start: Duration::ZERO,
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            connect_peer: Duration::from_secs(3),
            response_headers: Duration::from_secs(15),
            idle: Duration::from_secs(3600),
            per_try: None,
        },
        retries: Retries {
            attempts: 2,
            on: vec![
                Failure::Connect,
                Failure::RefusedStream,
                Failure::Reset,
                Failure::Status(502),
                Failure::Status(503),
                Failure::Status(504),
                Failure::Unavailable,
            ],
            budget: 0.2,
            buffer_bytes_max: 65536,
            any_method: false,
            hedge_after: None,
        },
        limits: RouteLimits::default(),
    }
}

pub(crate) fn service(name: &str, host: &str, port: u16) -> Service {
    Service {
        name: name.into(),
        port,
        ports: 1,
        hosts: vec![HostPattern::parse(host).unwrap()],
        protocol: Protocol::Http,
        inbound: Inbound::Terminate,
        outbound: ClusterIx(0),
        own: Some(ClusterIx(0)),
        policy: Policy::default(),
        export: Export::AllPeers,
        mirrors: Vec::new(),
        rules: None,
        inside: None,
        is_upgraded: true,
        position: None,
    }
}

/// A rule that changes nothing but where requests go.
pub(crate) fn http_rule(label: &str, split: Option<Vec<Part>>) -> HttpRule {
    HttpRule {
        label: label.into(),
        split,
        timeouts: RuleTimeouts::default(),
        retries: RuleRetries::default(),
        request: HeaderChanges::default(),
        response: HeaderChanges::default(),
        position: None,
    }
}

/// A part of a split, of workloads alone.
pub(crate) fn part(cluster: usize, weight: u32) -> Part {
    Part {
        label: cluster.to_string().into(),
        weight,
        outbound: ClusterIx(cluster),
        own: None,
        host: None,
        service: None,
    }
}

pub(crate) fn peer(name: &str, trust_domain: &str, gateway: &str) -> Peer {
    Peer {
        name: name.into(),
        cluster: name.into(),
        locality: Locality::default(),
        ids: ids(&[gateway]),
        attests: vec![TrustDomain::parse(trust_domain).unwrap()],
        sources: Vec::new(),
        keepalive_ping: Duration::from_secs(2),
        keepalive_timeout: Duration::from_secs(2),
        when_stale: WhenStale::Hold,
    }
}

/// A mesh listener and a workloads listener, both with every service by its hosts.
pub(crate) fn snapshot(services: Vec<Service>) -> Snapshot {
    let mut hosts = HostTable::default();
    for (at, service) in services.iter().enumerate() {
        for host in &service.hosts {
            hosts.insert(host, service.port, ServiceIx(at));
        }
    }
    let listener = |name: &str, role, address: &str| Listener {
        name: name.into(),
        address: address.parse().unwrap(),
        role,
        only: None,
        hosts: hosts.clone(),
        sources: Vec::new(),
        handshakes: None,
        proxies: Vec::new(),
    };
    Snapshot {
        version: "1".into(),
        node: Node {
            name: "east-gw".into(),
            cluster: "east".into(),
            locality: Locality::parse("eu/eu-1").unwrap(),
            trust_domain: TrustDomain::parse("east.example").unwrap(),
        },
        listeners: vec![
            listener("mesh", Role::Mesh, "0.0.0.0:15443"),
            listener("apps", Role::Workloads, "127.0.0.1:15001"),
        ]
        .into(),
        services: services.into(),
        clusters: vec![Arc::new(cluster(&[&["e0"], &["e1"]]))].into(),
        peers: vec![peer(
            "west",
            "west.example",
            "spiffe://west.example/zeugma/gateway",
        )]
        .into(),
    }
}
