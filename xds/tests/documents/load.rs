//! Whole configurations: what a person writes, and the snapshot a gateway gets.

use std::fs;
use std::time::Duration;

use crate::support::{EAST, WEST_PEER, level_names, levels, loaded, route, service, try_load};
use zeugma_core::admission::{Rate, RouteLimits};
use zeugma_core::hello::ClientHello;
use zeugma_core::identity::{IdPattern, SpiffeId};
use zeugma_core::names::{Host, SniTarget};
use zeugma_core::route::{Routed, route_tls};
use zeugma_core::snapshot::{
    ActiveKind, Address, Balance, EndpointTls, ErrorRate, Export, Failback, Failure, HttpVersion,
    Inbound, Lookup, PathPattern, PeerIx, Protocol, Role, Slow, TooFew, WhenStale,
};
use zeugma_xds::{AccessLogFormat, AdminAddress, BundleProfile, NodeOptions, load};

/// The smallest useful route of the manual, as it stands there.
const SMALLEST: &str = r#"
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {name: orders, namespace: shop}
spec: {protocol: http, backends: [{endpoints: ["10.0.1.10:8080"]}, {peer: west}], allow: [{listeners: [apps]}, {from: ["spiffe://west.example/*"]}], export: {to: [west]}}
"#;

#[test]
fn the_smallest_useful_route_of_the_manual_loads() {
    let loaded = loaded(&[EAST, WEST_PEER, SMALLEST], None);
    assert!(loaded.warnings.is_empty(), "{}", loaded.warnings);
    let snapshot = &loaded.snapshot;
    let orders = service(snapshot, "orders", 80);
    assert_eq!((orders.ports, orders.protocol), (1, Protocol::Http));
    assert_eq!(orders.inbound, Inbound::Terminate);
    assert_eq!(
        orders.hosts[0].to_string(),
        "orders.shop.svc.clusterset.local"
    );
    assert_eq!(
        levels(snapshot.cluster(orders.outbound)),
        [
            (
                "eu/eu-1/rack-a".to_owned(),
                vec!["10.0.1.10:8080".to_owned()]
            ),
            (
                "peer west".to_owned(),
                vec![
                    "gw.west.example:15443".to_owned(),
                    "192.0.2.7:15443".to_owned()
                ]
            ),
        ]
    );
    let own = snapshot.cluster(orders.own.unwrap());
    assert_eq!(level_names(own), ["eu/eu-1/rack-a"]);
    assert_eq!(orders.export, Export::To(vec![PeerIx(0)]));
    assert_eq!(orders.policy.allow.len(), 2);
    assert_eq!(&*orders.policy.allow[0].listeners[0], "apps");
    assert_eq!(
        orders.policy.allow[1].from,
        [IdPattern::parse("spiffe://west.example/*").unwrap()]
    );
    for listener in &snapshot.listeners {
        let host = Host::parse("orders.shop.svc.clusterset.local").unwrap();
        assert!(matches!(
            listener.hosts.lookup(&host, None),
            Lookup::Found(_)
        ));
    }
    let roles: Vec<_> = snapshot
        .listeners
        .iter()
        .map(|listener| (&*listener.name, listener.role))
        .collect();
    assert_eq!(roles, [("mesh", Role::Mesh), ("apps", Role::Workloads)]);
}

// Every value from the comments of the manual's example.
#[test]
fn the_defaults_of_an_http_route_are_the_manuals() {
    let snapshot = loaded(&[EAST, WEST_PEER, SMALLEST], None).snapshot;
    let cluster = snapshot.cluster(service(&snapshot, "orders", 80).outbound);
    let secs = Duration::from_secs;
    assert_eq!(cluster.policy.balance, Balance::LeastRequest);
    let failover = &cluster.policy.failover;
    assert_eq!((failover.start, failover.full), (0.7, 0.0));
    assert_eq!(failover.hold, secs(0));
    assert_eq!(
        (failover.failback_after, failover.failback_ramp),
        (secs(60), secs(60))
    );
    assert_eq!(failover.failback, Failback::Auto);
    assert_eq!(cluster.policy.spread, []);
    assert_eq!(failover.too_few, TooFew::UseAll);
    assert_eq!(cluster.policy.active, None);
    let statuses = [502, 503, 504].map(Failure::Status);
    let passive = &cluster.policy.passive;
    assert_eq!(
        passive.on,
        [
            &[Failure::Connect, Failure::Reset, Failure::Timeout][..],
            &statuses
        ]
        .concat()
    );
    assert_eq!(
        passive.error_rate,
        Some(ErrorRate {
            over: 0.5,
            requests: 20
        })
    );
    assert_eq!(passive.slow, None);
    assert_eq!((passive.consecutive, passive.eject), (5, secs(30)));
    assert_eq!((passive.max_ejected, passive.keep_at_least), (1.0, 1));
    let timeouts = &cluster.policy.timeouts;
    assert_eq!(
        (timeouts.connect, timeouts.connect_peer),
        (secs(1), secs(3))
    );
    assert_eq!(
        (timeouts.response_headers, timeouts.idle, timeouts.per_try),
        (secs(15), secs(3600), None)
    );
    let retries = &cluster.policy.retries;
    assert_eq!(
        retries.on,
        [
            &[Failure::Connect, Failure::RefusedStream, Failure::Reset][..],
            &statuses,
            &[Failure::Unavailable]
        ]
        .concat()
    );
    assert_eq!((retries.attempts, retries.budget), (2, 0.2));
    assert_eq!(
        (retries.buffer_bytes_max, retries.any_method),
        (65_536, false)
    );
    assert_eq!(retries.hedge_after, None);
    let peer = &snapshot.peers[0];
    assert_eq!(
        (peer.keepalive_ping, peer.keepalive_timeout),
        (secs(2), secs(2))
    );
    assert_eq!(peer.when_stale, WhenStale::Hold);
}

#[test]
fn the_defaults_of_a_tcp_route_are_the_manuals() {
    let pg = route(
        "pg",
        "port: 5432, backends: [{endpoints: ['10.0.1.10:5432']}], allow: [{from: ['spiffe://east.example/*']}]",
    );
    let snapshot = loaded(&[EAST, &pg], None).snapshot;
    let pg = service(&snapshot, "pg", 5432);
    assert_eq!(
        (pg.protocol, pg.inbound),
        (Protocol::Tcp, Inbound::Terminate)
    );
    assert_eq!(pg.export, Export::Nobody);
    let cluster = snapshot.cluster(pg.outbound);
    let failover = &cluster.policy.failover;
    assert_eq!((failover.start, failover.full), (0.0, 0.0));
    assert_eq!(
        (failover.failback_after, failover.failback_ramp),
        (Duration::from_secs(300), Duration::ZERO)
    );
    assert_eq!(failover.too_few, TooFew::Fail);
    assert_eq!(
        cluster.policy.passive.on,
        [Failure::Connect, Failure::Reset, Failure::Timeout]
    );
}

#[test]
fn the_settings_have_the_manuals_defaults_and_paths_start_at_the_file() {
    let loaded = loaded(&[EAST, WEST_PEER, SMALLEST], None);
    let settings = &loaded.settings;
    let folder = loaded.files[0].parent().unwrap();
    let files = settings.svid.files().unwrap();
    assert_eq!(files.certificate, folder.join("gw.pem"));
    assert_eq!(files.bundles, folder.join("bundles/"));
    assert_eq!(settings.admin, AdminAddress::Default);
    assert_eq!(settings.admin_token, None);
    assert_eq!(settings.probes.to_string(), "127.0.0.1:15021");
    assert_eq!(settings.metrics.to_string(), "127.0.0.1:15020");
    assert_eq!(settings.workers, None);
    assert_eq!(settings.access_log, AccessLogFormat::Json);
    let limits = &settings.limits;
    let ten = Duration::from_secs(10);
    assert_eq!((limits.connections, limits.streams), (50_000, 100));
    assert_eq!(
        (limits.handshake_timeout, limits.header_timeout),
        (ten, ten)
    );
    assert_eq!(limits.header_bytes, 65_536);
    assert_eq!(limits.memory_bytes, None);
    assert_eq!(
        (settings.drain.delay, settings.drain.timeout),
        (ten, Duration::from_secs(45))
    );
}

#[test]
fn limits_of_a_gateway_its_listeners_and_a_tcp_route_arrive() {
    let gateway = EAST
        .replace(
            "role: mesh",
            "role: mesh, handshakes: {perSource: 100/s}, proxyProtocol: {trusted: [10.0.0.0/8, '2001:db8::1']}",
        )
        .replace(
            "  cluster: east",
            "  limits: {memory: 3GiB}\n  cluster: east",
        );
    let pg = route(
        "pg",
        "port: 5432, backends: [{endpoints: ['10.0.0.1:5432']}], limits: {connections: 2}",
    );
    let loaded = loaded(&[&gateway, &pg], None);
    assert_eq!(loaded.settings.limits.memory_bytes, Some(3 << 30));
    let rates: Vec<_> = loaded
        .snapshot
        .listeners
        .iter()
        .map(|l| l.handshakes)
        .collect();
    assert_eq!(rates, [Rate::per_second(100), None]);
    let listeners = loaded.snapshot.listeners.iter();
    let proxies: Vec<Vec<String>> = listeners
        .map(|l| l.proxies.iter().map(ToString::to_string).collect())
        .collect();
    assert_eq!(proxies, [vec!["10.0.0.0/8", "2001:db8::1/128"], vec![]]);
    let pg = service(&loaded.snapshot, "pg", 5432);
    let limits = &loaded.snapshot.cluster(pg.outbound).policy.limits;
    assert_eq!((limits.connections, limits.requests), (Some(2), None));
}

#[test]
fn a_name_by_dns_arrives_with_its_port_or_that_of_the_route() {
    let db = route(
        "db",
        "ports: {a: {port: 5432, targetPort: 15432}, b: {port: 9}}, backends: [{dns: DB.internal}]",
    );
    let web = route(
        "web",
        "protocol: http, port: 80, backends: [{dns: 'web.internal:8080'}]",
    );
    let loaded = loaded(&[EAST, &db, &web], None);
    let addresses = |name: &str, port| -> Vec<Address> {
        let cluster = loaded
            .snapshot
            .cluster(service(&loaded.snapshot, name, port).outbound);
        cluster
            .endpoints
            .iter()
            .map(|one| one.address.clone())
            .collect()
    };
    let each = |host: &str, port| vec![Address::Each(Host::parse(host).unwrap(), port)];
    assert_eq!(addresses("db", 5432), each("db.internal", 15432));
    assert_eq!(addresses("db", 9), each("db.internal", 9));
    assert_eq!(addresses("web", 80), each("web.internal", 8080));
    let meaning = zeugma_xds::meaning(&loaded.snapshot);
    let web = meaning
        .iter()
        .find(|one| one.service.starts_with("shop/web"));
    let text = web.unwrap().to_string();
    assert!(text.contains("(the addresses of web.internal)"), "{text}");
}

#[test]
fn what_backends_take_arrives_and_is_said_in_words() {
    let web = route(
        "web",
        "protocol: http, backends: [{name: a, endpoints: ['10.0.1.1:80', '10.0.1.2:80'], capacity: 300/s}, \
         {name: b, endpoints: ['10.0.1.3:80'], capacity: 200/s}, \
         {name: c, locality: eu/eu-2, endpoints: ['10.0.2.1:80'], capacity: 50/s}, \
         {name: d, locality: eu/eu-2, endpoints: ['10.0.2.2:80']}, \
         {peer: west, capacity: 100/s}]",
    );
    let loaded = loaded(&[EAST, WEST_PEER, &web], None);
    let cluster = loaded
        .snapshot
        .cluster(service(&loaded.snapshot, "web", 80).outbound);
    let capacities = (cluster.endpoints.iter()).map(|one| one.capacity.map(|rate| rate.get()));
    // West has two gateways.
    let wanted = [
        Some(300),
        Some(300),
        Some(200),
        Some(50),
        None,
        Some(100),
        Some(100),
    ];
    assert_eq!(capacities.collect::<Vec<_>>(), wanted);
    let text = zeugma_xds::meaning(&loaded.snapshot)[0].to_string();
    for line in [
        "     a takes 300/s, b takes 200/s: of what is offered, what is over 500/s is for eu/eu-2\n",
        "     c takes 50/s: what is over that is for the others of this level\n",
        "     west takes 100/s: what is over 100/s here is refused (503)\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    // Several backends of one other cluster are one, and take what they take together.
    let both = route(
        "both",
        "protocol: http, backends: [{name: x, cluster: west, endpoints: ['10.0.1.1:80'], capacity: 3/s}, \
         {name: y, cluster: west, endpoints: ['10.0.1.2:80'], capacity: 4/s}]",
    );
    let loaded = self::loaded(&[EAST, WEST_PEER, &both], None);
    let ix = service(&loaded.snapshot, "both", 80).outbound;
    let one = &loaded.snapshot.cluster(ix).endpoints[0];
    assert_eq!(one.capacity.map(|rate| rate.get()), Some(7));
}

#[test]
fn everything_that_is_written_arrives() {
    let orders = route(
        "orders",
        r#"protocol: http, port: 8080, hosts: [orders.example, "*.orders.example"],
        backends: [
          {name: a, locality: eu/eu-1, endpoints: [{address: "10.0.1.10:8080", weight: 3}, "a.internal:8080"], version: h2},
          {name: b, locality: eu/eu-2, endpoints: ["10.0.2.10:8443"], tls: mesh, spiffeIDs: ["spiffe://east.example/ns/shop/sa/orders"]},
          {peer: west, spiffeIDs: ["spiffe://west.example/ns/shop/*"]}],
        balance: {policy: round-robin},
        failover: {start: 80%, full: 20%, hold: 5s, failback: {after: 3s, ramp: 7s, mode: manual}, tooFew: fail},
        health: {active: {http: /healthz, every: 500ms, timeout: 200ms, up: 1, down: 4},
                 passive: {consecutive: 9, on: [reset, 500], errorRate: {over: 25%, requests: 40}, slow: {over: 2.5x, requests: 30}, eject: 2s, maxEjected: 50%, keepAtLeast: 2}},
        timeouts: {connect: 250ms, responseHeaders: 4s, idle: 2m, perTry: 900ms},
        retries: {attempts: 4, on: [timeout, 429], budget: 12.5%, buffer: 1MiB, any: true, hedge: {after: 30ms}},
        limits: {pending: 7, requests: 9},
        allow: [
          {from: ["spiffe://east.example/ns/shop/*"], methods: [GET, POST], paths: ["/v1/*", /exact]},
          {from: ["spiffe://west.example/ns/shop/sa/cart"], via: [west]},
          {listeners: [apps, mesh], sources: ["10.0.0.0/8", "2001:db8::/32"]}],
        deny: [{sources: ["10.9.0.0/16"]}],
        mirror: [{route: canary, peer: west, percent: 5%, timeout: 750ms, bodyLimit: 2KiB, inFlight: 3}, {route: shop/canary}],
        export: {to: ["*"]}"#,
    );
    let canary = route(
        "canary",
        "protocol: http, backends: [{endpoints: ['10.0.3.1:80']}, {peer: west}]",
    );
    let peer = WEST_PEER.replace(
        "  cluster: west",
        "  cluster: west\n  attests: [west.example]\n  sources: [203.0.113.7]\n  whenStale: drop\n  keepalive: {ping: 5s, timeout: 4s}",
    );
    let snapshot = loaded(&[EAST, &peer, &orders, &canary], None).snapshot;
    let orders = service(&snapshot, "orders", 8080);
    let cluster = snapshot.cluster(orders.outbound);
    let millis = Duration::from_millis;

    assert_eq!(
        level_names(cluster),
        ["eu/eu-1", "eu/eu-2", "peer west"],
        "zone, region, elsewhere"
    );
    let endpoint = |at: usize| &cluster.endpoints[at];
    assert_eq!((endpoint(0).weight, endpoint(1).weight), (3.0, 1.0));
    assert_eq!(
        endpoint(1).address,
        Address::Name(Host::parse("a.internal").unwrap(), 8080)
    );
    assert_eq!(endpoint(0).version, HttpVersion::H2);
    assert_eq!(
        endpoint(2).tls,
        EndpointTls::Mesh {
            sni: "orders.example".into(),
            expected: vec![IdPattern::parse("spiffe://east.example/ns/shop/sa/orders").unwrap()],
        }
    );
    assert_eq!(
        endpoint(3).tls,
        EndpointTls::Mesh {
            sni: "orders.example".into(),
            expected: vec![IdPattern::parse("spiffe://west.example/ns/shop/*").unwrap()],
        },
        "what stands at the backend wins over the peer's own IDs"
    );
    assert_eq!((endpoint(3).weight, endpoint(4).weight), (0.5, 0.5));

    assert_eq!(cluster.policy.balance, Balance::RoundRobin);
    let failover = &cluster.policy.failover;
    assert_eq!((failover.start, failover.full), (0.8, 0.2));
    assert_eq!(
        (
            failover.hold,
            failover.failback_after,
            failover.failback_ramp
        ),
        (millis(5000), millis(3000), millis(7000))
    );
    assert_eq!(failover.too_few, TooFew::Fail);
    let active = cluster.policy.active.as_ref().unwrap();
    assert_eq!(
        active.kind,
        ActiveKind::Http {
            path: "/healthz".into(),
            host: "orders.example".into()
        }
    );
    assert_eq!(
        (active.every, active.timeout, active.up, active.down),
        (millis(500), millis(200), 1, 4)
    );
    let passive = &cluster.policy.passive;
    assert_eq!(passive.on, [Failure::Reset, Failure::Status(500)]);
    assert_eq!(
        passive.error_rate,
        Some(ErrorRate {
            over: 0.25,
            requests: 40
        })
    );
    let slow = Slow {
        over: 2.5,
        requests: 30,
    };
    assert_eq!(passive.slow, Some(slow));
    assert_eq!((passive.consecutive, passive.eject), (9, millis(2000)));
    assert_eq!((passive.max_ejected, passive.keep_at_least), (0.5, 2));
    let limits = RouteLimits {
        connections: None,
        pending: Some(7),
        requests: Some(9),
    };
    assert_eq!(cluster.policy.limits, limits);
    let own = snapshot.cluster(orders.own.unwrap());
    assert_eq!(own.policy.limits, limits);
    let timeouts = &cluster.policy.timeouts;
    assert_eq!(
        (timeouts.connect, timeouts.connect_peer),
        (millis(250), millis(250))
    );
    assert_eq!(
        (timeouts.response_headers, timeouts.idle, timeouts.per_try),
        (millis(4000), millis(120_000), Some(millis(900)))
    );
    let retries = &cluster.policy.retries;
    assert_eq!(retries.on, [Failure::Timeout, Failure::Status(429)]);
    assert_eq!(
        (
            retries.attempts,
            retries.budget,
            retries.buffer_bytes_max,
            retries.any_method
        ),
        (4, 0.125, 1 << 20, true)
    );
    assert_eq!(retries.hedge_after, Some(millis(30)));

    let [by_id, attested, network] = &orders.policy.allow[..] else {
        panic!("{:?}", orders.policy.allow);
    };
    assert_eq!(by_id.methods, ["GET".into(), "POST".into()]);
    assert_eq!(
        by_id.paths,
        [
            PathPattern::Below("/v1/".into()),
            PathPattern::Exact("/exact".into())
        ]
    );
    assert_eq!(attested.via, [PeerIx(0)]);
    assert_eq!(network.listeners, ["apps".into(), "mesh".into()]);
    assert_eq!(network.sources.len(), 2);
    assert_eq!(
        orders.policy.deny[0].sources,
        ["10.9.0.0/16".parse().unwrap()]
    );
    assert!(by_id.position.as_ref().unwrap().line < attested.position.as_ref().unwrap().line);

    assert_eq!(orders.export, Export::AllPeers);
    let peer = &snapshot.peers[0];
    assert_eq!(peer.attests[0].as_str(), "west.example");
    assert_eq!(peer.sources, ["203.0.113.7/32".parse().unwrap()]);
    assert_eq!(
        (peer.keepalive_ping, peer.keepalive_timeout),
        (millis(5000), millis(4000))
    );
    assert_eq!(peer.when_stale, WhenStale::Drop);

    let [to_west, everywhere] = &orders.mirrors[..] else {
        panic!("{:?}", orders.mirrors);
    };
    assert_eq!(&*to_west.route, "shop/canary");
    assert_eq!(&*to_west.host, "canary.shop.svc.clusterset.local");
    assert_eq!((to_west.share, to_west.timeout), (0.05, millis(750)));
    assert_eq!((to_west.body_bytes_max, to_west.in_flight_max), (2048, 3));
    assert_eq!(level_names(snapshot.cluster(to_west.to)), ["peer west"]);
    assert_eq!(
        everywhere.to,
        service(&snapshot, "canary", 80).outbound,
        "without a peer the copies go where that route's traffic goes"
    );
    assert_eq!((everywhere.share, everywhere.in_flight_max), (1.0, 64));
    assert_eq!(
        (everywhere.timeout, everywhere.body_bytes_max),
        (millis(2000), 1 << 20)
    );
}

#[test]
fn connections_are_copied_to_the_port_that_carries_bytes() {
    let db = route(
        "db",
        "port: 5432, backends: [{endpoints: ['10.0.1.1:5432']}], allow: [{listeners: [apps, mesh]}], export: {to: ['*']}, \
         mirror: [{route: copies, peer: west, percent: 12.5%, timeout: 3s, bodyLimit: 2KiB, inFlight: 3}, {route: copies}]",
    );
    let copies = route(
        "copies",
        "ports: {web: {port: 5432, protocol: http}, raw: {port: 90, targetPort: 91}}, \
         backends: [{endpoints: ['10.0.2.1']}, {peer: west}], allow: [{listeners: [apps]}]",
    );
    let snapshot = loaded(&[EAST, WEST_PEER, &db, &copies], None).snapshot;
    let db = service(&snapshot, "db", 5432);
    let [to_west, everywhere] = &db.mirrors[..] else {
        panic!("{:?}", db.mirrors);
    };
    assert_eq!(&*to_west.route, "shop/copies");
    assert_eq!(to_west.share, 0.125);
    assert_eq!(to_west.timeout.as_secs(), 3);
    assert_eq!((to_west.body_bytes_max, to_west.in_flight_max), (2048, 3));
    assert_eq!(level_names(snapshot.cluster(to_west.to)), ["peer west"]);
    let raw = service(&snapshot, "copies", 90);
    assert_eq!(everywhere.to, raw.outbound);
    assert_eq!((everywhere.share, everywhere.in_flight_max), (1.0, 64));
}

const BOTH_GATEWAYS: &str = r#"
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: west-gw }
spec:
  trustDomain: west.example
  cluster: west
  locality: us/us-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    mesh: { address: "0.0.0.0:16443", role: mesh }
    apps: { address: "127.0.0.1:16001", role: workloads }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: east }
spec:
  cluster: east
  locality: eu/eu-1
  gateways: ["gw.east.example:15443"]
  spiffeIDs: ["spiffe://east.example/zeugma/gateway"]
"#;

#[test]
fn one_file_serves_both_clusters() {
    let orders = route(
        "orders",
        r#"protocol: http, backends: [
          {name: eu, cluster: east, locality: eu/eu-1, endpoints: ["10.0.1.10:80", "10.0.1.11:80"]},
          {name: us, cluster: west, locality: us/us-1, endpoints: ["10.1.1.10:80"]}],
        allow: [{listeners: [apps]}, {from: ["spiffe://east.example/*", "spiffe://west.example/*"]}],
        export: {to: [east, west]}"#,
    );
    let file = [EAST, BOTH_GATEWAYS, WEST_PEER, &orders];

    let east = loaded(&file, Some("east-gw")).snapshot;
    let on_east = service(&east, "orders", 80);
    assert_eq!(
        level_names(east.cluster(on_east.outbound)),
        ["eu/eu-1", "peer west"]
    );
    assert_eq!(
        levels(east.cluster(on_east.own.unwrap()))[0].1,
        ["10.0.1.10:80", "10.0.1.11:80"]
    );
    assert_eq!(east.peers.len(), 1, "its own cluster's peer is ignored");
    assert_eq!(on_east.export, Export::To(vec![PeerIx(0)]));

    let west = loaded(&file, Some("west-gw")).snapshot;
    let on_west = service(&west, "orders", 80);
    assert_eq!(
        levels(west.cluster(on_west.outbound)),
        [
            ("us/us-1".to_owned(), vec!["10.1.1.10:80".to_owned()]),
            (
                "peer east".to_owned(),
                vec!["gw.east.example:15443".to_owned()]
            )
        ]
    );

    let findings = try_load(&file, None).unwrap_err();
    assert!(
        findings.to_string().contains("`--name`: east-gw, west-gw"),
        "{findings}"
    );
    let findings = try_load(&file, Some("wst-gw")).unwrap_err();
    assert!(
        findings.to_string().contains("did you mean `west-gw`?"),
        "{findings}"
    );
}

#[test]
fn one_file_for_each_cluster_gives_the_same_as_one_for_both() {
    let shared_route = |backends: &str| {
        route(
            "orders",
            &format!(
                "protocol: http, backends: [{backends}], allow: [{{listeners: [apps]}}], export: {{to: ['*']}}"
            ),
        )
    };
    let shared = shared_route(
        "{name: eu, cluster: east, locality: eu/eu-1, endpoints: ['10.0.1.10:80']}, {name: us, cluster: west, locality: us/us-1, endpoints: ['10.1.1.10:80']}",
    );
    let alone =
        shared_route("{name: eu, locality: eu/eu-1, endpoints: ['10.0.1.10:80']}, {peer: west}");
    let shared = loaded(&[EAST, BOTH_GATEWAYS, WEST_PEER, &shared], Some("east-gw")).snapshot;
    let alone = loaded(&[EAST, WEST_PEER, &alone], None).snapshot;
    assert_eq!(shared.clusters, alone.clusters);
}

#[test]
fn a_file_that_lists_every_cluster_as_a_peer_ignores_its_own() {
    let orders = route(
        "orders",
        r#"protocol: http, backends: [{endpoints: ["10.0.1.10:80"]}, {peer: east}, {peer: west}],
        failover: {order: [{cluster: east}, {cluster: west}]},
        allow: [{from: ["spiffe://x.example/*"], via: [east]}, {listeners: [apps]}],
        export: {to: [east, west]}"#,
    );
    let peers = [WEST_PEER, BOTH_GATEWAYS]
        .map(|text| text.replace("  gateways:", "  attests: [x.example]\n  gateways:"));
    let east = loaded(&[EAST, &peers[0], &peers[1], &orders], Some("east-gw")).snapshot;
    let on_east = service(&east, "orders", 80);
    assert_eq!(
        level_names(east.cluster(on_east.outbound)),
        ["eu/eu-1/rack-a", "peer west"]
    );
    assert_eq!(
        on_east.policy.allow.len(),
        1,
        "what only oneself could attest matches nobody, and must not match everybody"
    );
    assert_eq!(&*on_east.policy.allow[0].listeners[0], "apps");
}

#[test]
fn several_ports_are_one_service_each_and_their_sni_names_the_port() {
    let orders = route(
        "orders",
        r#"ports: {web: {port: 80, targetPort: 8080, protocol: http}, raw: {port: 9000}},
        backends: [{endpoints: ["10.0.1.10"]}, {peer: west}],
        allow: [{listeners: [apps]}], export: {to: ['*']}"#,
    );
    let snapshot = loaded(&[EAST, WEST_PEER, &orders], None).snapshot;
    let web = service(&snapshot, "orders", 80);
    let raw = service(&snapshot, "orders", 9000);
    assert_eq!((web.protocol, web.ports), (Protocol::Http, 2));
    assert_eq!((raw.protocol, raw.ports), (Protocol::Tcp, 2));
    for (service, address, sni) in [
        (
            web,
            "10.0.1.10:8080",
            "outbound_.80_._.orders.shop.svc.clusterset.local",
        ),
        (
            raw,
            "10.0.1.10:9000",
            "outbound_.9000_._.orders.shop.svc.clusterset.local",
        ),
    ] {
        let cluster = snapshot.cluster(service.outbound);
        assert_eq!(cluster.endpoints[0].address.to_string(), address);
        let EndpointTls::Mesh { sni: sent, .. } = &cluster.endpoints[1].tls else {
            panic!("{:?}", cluster.endpoints[1].tls);
        };
        assert_eq!(&**sent, sni);
        // The other gateway, with the same route, finds the same service by what is sent.
        let target = SniTarget::parse(sent).unwrap();
        let mesh = snapshot.listener("mesh").unwrap();
        let Lookup::Found(found) = mesh.hosts.lookup(&target.host, target.port) else {
            panic!("{target:?}");
        };
        assert_eq!(snapshot.service(found).port, service.port);
        assert_eq!(mesh.hosts.lookup(&target.host, None), Lookup::PortNeeded);
    }
}

#[test]
fn passthrough_relays_to_workloads_and_peers_without_tls_of_its_own() {
    let secure = route(
        "secure",
        r#"port: 443, backends: [{endpoints: ["10.0.1.10:8443"], tls: workload, proxyProtocol: true}, {peer: west}],
        allow: [{sources: ["10.0.0.0/8"]}], export: {to: [west]}"#,
    );
    let peer = WEST_PEER.replace(
        "  cluster: west",
        "  cluster: west\n  sources: [203.0.113.7]",
    );
    let snapshot = loaded(&[EAST, &peer, &secure], None).snapshot;
    let secure = service(&snapshot, "secure", 443);
    assert_eq!(secure.inbound, Inbound::Passthrough);
    let cluster = snapshot.cluster(secure.outbound);
    assert!(
        cluster
            .endpoints
            .iter()
            .all(|endpoint| endpoint.tls == EndpointTls::Workload)
    );
    assert!(cluster.endpoints[0].proxy_protocol);
    assert!(!cluster.endpoints[1].proxy_protocol);
}

#[test]
fn a_one_route_listener_has_its_service_and_no_hosts() {
    let gateway = EAST.replace(
        "    apps:",
        "    pg: { address: '127.0.0.1:0', role: workloads, route: shop/pg, sources: [127.0.0.1] }\n    apps:",
    );
    let pg = route(
        "pg",
        "port: 5432, backends: [{endpoints: ['10.0.1.10:5432']}], allow: [{listeners: [pg]}]",
    );
    let snapshot = loaded(&[&gateway, &pg], None).snapshot;
    let names: Vec<&str> = snapshot
        .listeners
        .iter()
        .map(|listener| &*listener.name)
        .collect();
    assert_eq!(names, ["mesh", "pg", "apps"], "in the order written");
    let listener = snapshot.listener("pg").unwrap();
    assert_eq!(&*snapshot.service(listener.only.unwrap()).name, "shop/pg");
    assert!(listener.hosts.is_empty());
    assert_eq!(listener.sources, ["127.0.0.1/32".parse().unwrap()]);
    assert!(
        snapshot.listener("mesh").unwrap().hosts.is_empty(),
        "it is exported to nobody"
    );
}

#[test]
fn two_peers_weigh_one_each_whatever_the_number_of_their_gateways() {
    let north = WEST_PEER.replace("west", "north").replace(
        r#", "192.0.2.7:15443""#,
        r#", "192.0.2.8:15443", "192.0.2.9:15443""#,
    );
    let orders = route(
        "orders",
        "protocol: http, backends: [{peer: west}, {peer: north}], allow: [{listeners: [apps]}]",
    );
    let snapshot = loaded(&[EAST, WEST_PEER, &north, &orders], None).snapshot;
    let orders = service(&snapshot, "orders", 80);
    assert_eq!(orders.own, None);
    let cluster = snapshot.cluster(orders.outbound);
    assert_eq!(level_names(cluster), ["peer west, peer north"]);
    let weights: Vec<f64> = cluster.endpoints.iter().map(|e| e.weight).collect();
    assert_eq!(weights, [0.5, 0.5, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]);
}

#[test]
fn an_endpoint_has_one_key_in_every_cluster_and_another_when_its_tls_changes() {
    let keys = |tls: &str| -> Vec<(String, String)> {
        let orders = route(
            "orders",
            &format!("protocol: http, backends: [{{name: a, endpoints: ['10.0.1.10:80']{tls}}}]"),
        );
        let snapshot = loaded(&[EAST, &orders], None).snapshot;
        let orders = service(&snapshot, "orders", 80);
        let key = |ix| snapshot.cluster(ix).endpoints[0].key.to_string();
        vec![(key(orders.outbound), key(orders.own.unwrap()))]
    };
    let plain = keys("");
    assert_eq!(plain[0].0, plain[0].1);
    assert_eq!(plain[0].0, "shop/orders|a|10.0.1.10:80|none");
    assert_ne!(
        plain,
        keys(", tls: mesh, spiffeIDs: ['spiffe://east.example/a']")
    );
}

#[test]
fn the_version_is_equal_for_equal_content_and_differs_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    let version = |text: String| {
        fs::write(&path, text).unwrap();
        load(&path, &NodeOptions::default())
            .unwrap()
            .snapshot
            .version
    };
    // Several rules and metadata fields: protobuf maps, whose order is not stable.
    let text = [EAST, WEST_PEER, SMALLEST].concat();
    let first = version(text.clone());
    for _ in 0..8 {
        assert_eq!(version(text.clone()), first);
    }
    assert_ne!(version(text.replace("10.0.1.10", "10.0.1.11")), first);
    assert_ne!(
        version(text.replace("listeners: [apps]", "sources: [10.0.0.1]")),
        first
    );
}

#[test]
fn a_directory_is_read_in_order_and_watched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("b.yaml"), SMALLEST).unwrap();
    fs::write(dir.path().join("a.yaml"), EAST).unwrap();
    fs::write(dir.path().join("c.yml"), WEST_PEER).unwrap();
    fs::write(dir.path().join("notes.txt"), "kind: [").unwrap();
    let loaded = load(dir.path(), &NodeOptions::default()).unwrap();
    let names: Vec<_> = loaded
        .files
        .iter()
        .map(|file| file.file_name().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(names[..3], ["a.yaml", "b.yaml", "c.yml"]);
    assert_eq!(loaded.files[3], dir.path());
}

#[test]
fn the_locality_of_a_replica_moves_its_levels() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    let orders = route(
        "orders",
        r#"protocol: http, backends: [{name: a, locality: eu/eu-1, endpoints: ["10.0.1.10:80"]}, {name: b, locality: eu/eu-2, endpoints: ["10.0.2.10:80"]}]"#,
    );
    fs::write(&path, [EAST, &orders].concat()).unwrap();
    let at = |locality: Option<&str>| {
        let options = NodeOptions {
            name: None,
            locality: locality.map(str::to_owned),
        };
        let snapshot = load(&path, &options).unwrap().snapshot;
        level_names(snapshot.cluster(service(&snapshot, "orders", 80).outbound))
    };
    assert_eq!(at(None), ["eu/eu-1", "eu/eu-2"]);
    assert_eq!(at(Some("eu/eu-2")), ["eu/eu-2", "eu/eu-1"]);
    assert_eq!(at(Some("us")), ["eu/eu-1, eu/eu-2"]);
}

#[test]
fn what_order_leaves_out_is_a_warning_and_not_used() {
    let orders = route(
        "orders",
        r#"protocol: http, backends: [
          {name: a, locality: eu/eu-1, endpoints: ["10.0.1.10:80"]},
          {name: b, locality: eu/eu-2, endpoints: ["10.0.2.10:80"]},
          {peer: west}],
        failover: {order: [{cluster: west}]}, allow: [{listeners: [apps]}]"#,
    );
    let loaded = loaded(&[EAST, WEST_PEER, &orders], None);
    let warnings = loaded.warnings.to_string();
    assert!(
        warnings.contains("spec.backends[1]: backend `b` is not used by gateway `east-gw`"),
        "{warnings}"
    );
    assert!(!loaded.warnings.has_errors());
    let snapshot = &loaded.snapshot;
    let cluster = snapshot.cluster(service(snapshot, "orders", 80).outbound);
    assert_eq!(level_names(cluster), ["eu/eu-1", "peer west"]);
    assert_eq!(cluster.endpoints.len(), 3);
}

#[test]
fn what_looks_like_another_type_in_yaml_1_1_stays_text() {
    let orders = route(
        "no",
        r#"protocol: http, backends: [{name: y, endpoints: ["10.0.1.10:80"]}, {name: 1_000, locality: off, endpoints: ["10.0.1.11:80"]}, {name: 0x10, endpoints: ["10.0.1.12:80"]}]"#,
    );
    let snapshot = loaded(&[EAST, &orders], None).snapshot;
    let names: Vec<&str> = snapshot.clusters[0]
        .endpoints
        .iter()
        .map(|endpoint| &*endpoint.backend)
        .collect();
    assert_eq!(&*snapshot.services[0].name, "shop/no");
    assert_eq!(names, ["y", "0x10", "1_000"]);
}

// Measured on Envoy 1.40.0: sni-filter-chain-01, -02, -04, -07, -34 and, with `any-tls` standing
// for "not one of ours", -06. -09 differs on purpose: a trailing dot is removed (T5), where Envoy
// finds no chain.
#[test]
fn a_host_leads_to_the_service_that_envoy_would_choose() {
    let routes: Vec<String> = [
        ("exact", "A.example.com"),
        ("wild", "*.example.com"),
        ("wild2", "*.com"),
    ]
    .iter()
    .map(|(name, host)| {
        route(
            name,
            &format!("hosts: ['{host}'], port: 443, backends: [{{endpoints: ['10.0.0.1:443'], tls: workload}}], export: {{to: ['*']}}"),
        )
    })
    .collect();
    let snapshot = loaded(&[EAST, &routes[0], &routes[1], &routes[2]], None).snapshot;
    let mesh = snapshot.listener("mesh").unwrap();
    for (sni, expected) in [
        ("a.example.com", Some("shop/exact")),
        ("A.EXAMPLE.COM", Some("shop/exact")),
        ("x.y.example.com", Some("shop/wild")),
        ("foo.com", Some("shop/wild2")),
        ("com", None),
        ("a.example.com.", Some("shop/exact")),
    ] {
        let found = match mesh.hosts.lookup(&Host::parse(sni).unwrap(), None) {
            Lookup::Found(ix) => Some(&*snapshot.service(ix).name),
            Lookup::PortNeeded | Lookup::NoSuchPort | Lookup::Unknown => None,
        };
        assert_eq!(found, expected, "{sni}");
    }
}

/// "Exact beats wildcard" holds of what is refused too. The name of a service that is exported to nobody
/// led to the exported service of a wildcard. And a service that is hidden for one of its names took
/// another one from the exported service that shares it.
#[test]
fn a_name_that_is_exported_to_nobody_is_not_taken_by_an_exported_wildcard() {
    let documents = [
        ("any", "hosts: ['*.example'], export: { to: [west] }"),
        // What it says of requests is said where it can be called alone.
        (
            "secret",
            "hosts: [secret.example, other.test], mirror: [{ route: both }], rules: [{ matches: [{ method: GET }], timeouts: { perTry: 1s } }]",
        ),
        ("secrets", "hosts: ['*.secret.example'], port: 443"),
        ("both", "hosts: [both.example], export: { to: [west] }"),
        ("both-too", "hosts: [both.example, third.example], port: 81"),
    ]
    .map(|(name, spec)| {
        let rest = "protocol: http, backends: [{ endpoints: ['10.0.0.1:80'] }]";
        route(
            name,
            &format!("{spec}, {rest}, allow: [{{ listeners: [apps] }}]"),
        )
    });
    let [any, secret, secrets, both, both_too] = &documents;
    let loaded = loaded(
        &[EAST, WEST_PEER, any, secret, secrets, both, both_too],
        None,
    );
    let snapshot = &loaded.snapshot;
    let routed = |listener: &str, sni: &str| {
        let hello = ClientHello {
            sni: Some(sni.to_owned()),
            ..ClientHello::default()
        };
        match route_tls(snapshot, snapshot.listener(listener).unwrap(), &hello) {
            Routed::Terminate(ix) => snapshot.service(ix).name.to_string(),
            Routed::Refuse(reason) => reason.to_string(),
            other @ (Routed::Passthrough(_)
            | Routed::TerminateAnyPort(_)
            | Routed::Reports
            | Routed::Plain(_)
            | Routed::PlainHttp) => panic!("{sni}: {other:?}"),
        }
    };
    for (sni, mesh, apps) in [
        ("a.example", "shop/any", "shop/any"),
        ("secret.example", "not-exported", "shop/secret"),
        ("a.secret.example", "not-exported", "shop/secrets"),
        (
            "outbound_.80_._.secret.example",
            "not-exported",
            "shop/secret",
        ),
        ("both.example", "shop/both", "port-needed"),
        ("third.example", "not-exported", "shop/both-too"),
        (
            "outbound_.81_._.both.example",
            "sni-unknown",
            "shop/both-too",
        ),
    ] {
        assert_eq!(routed("mesh", sni), mesh, "{sni}");
        assert_eq!(routed("apps", sni), apps, "{sni}");
    }
}

#[test]
fn what_other_clusters_reach_is_refused_at_once_where_nothing_is_healthy() {
    let spec = "backends: [{endpoints: ['10.0.0.1:80', '10.0.0.2:80']}, {peer: west}], export: {to: [west]}";
    for written in ["", ", failover: {tooFew: use-all}"] {
        let orders = route("orders", &format!("protocol: http, {spec}{written}"));
        let loaded = loaded(&[EAST, WEST_PEER, &orders], None);
        let orders = service(&loaded.snapshot, "orders", 80);
        let too_few = |ix| loaded.snapshot.cluster(ix).policy.failover.too_few;
        assert_eq!(too_few(orders.outbound), TooFew::UseAll);
        assert_eq!(too_few(orders.own.unwrap()), TooFew::Fail);
    }
}

#[test]
fn a_check_by_http_or_grpc_asks_http_ports_alone() {
    for (asks, service) in [
        ("http: /healthz", None),
        ("grpc: shop.Orders", Some("shop.Orders")),
    ] {
        check_of_http_ports(asks, service);
    }
}

fn check_of_http_ports(asks: &str, of: Option<&str>) {
    let orders = route(
        "orders",
        &format!(
            "ports: {{web: {{port: 80, protocol: http}}, raw: {{port: 9000, protocol: tcp}}}}, backends: [{{endpoints: [10.0.0.1]}}], health: {{active: {{{asks}, every: 7s}}}}"
        ),
    );
    let loaded = loaded(&[EAST, &orders], None);
    let check = |port| {
        let cluster = service(&loaded.snapshot, "orders", port).outbound;
        loaded
            .snapshot
            .cluster(cluster)
            .policy
            .active
            .clone()
            .unwrap()
    };
    let host = "orders.shop.svc.clusterset.local".into();
    let expected = match of {
        None => ActiveKind::Http {
            path: "/healthz".into(),
            host,
        },
        Some(of) => ActiveKind::Grpc {
            service: of.into(),
            host,
        },
    };
    assert_eq!(check(80).kind, expected);
    assert_eq!(check(9000).kind, ActiveKind::Tcp);
    assert_eq!(check(9000).every, Duration::from_secs(7));
}

#[test]
fn a_network_written_as_ipv4_in_ipv6_is_ipv4_everywhere() {
    let east = EAST.replace("role: mesh", "role: mesh, sources: ['::ffff:10.0.0.0/104']");
    let west = format!("{WEST_PEER}  sources: ['::ffff:192.0.2.7']\n");
    let orders = route(
        "orders",
        "protocol: http, backends: [{endpoints: ['10.0.0.1:80']}], deny: [{sources: ['::ffff:10.1.0.0/112']}]",
    );
    let loaded = loaded(&[&east, &west, &orders], None);
    let snapshot = &loaded.snapshot;
    let text = |nets: &[ipnet::IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(text(&snapshot.listeners[0].sources), ["10.0.0.0/8"]);
    assert_eq!(text(&snapshot.peers[0].sources), ["192.0.2.7/32"]);
    let deny = &service(snapshot, "orders", 80).policy.deny[0];
    assert_eq!(text(&deny.sources), ["10.1.0.0/16"]);
}

// `full` and `start` alike is a step: all is kept above it, nothing at it or below.
#[test]
fn a_level_may_be_left_all_at_once() {
    let orders = route(
        "orders",
        "protocol: http, backends: [{endpoints: ['10.0.0.1:80']}], failover: {start: 50%, full: 50%}",
    );
    let loaded = loaded(&[EAST, &orders], None);
    let failover = &loaded.snapshot.clusters[0].policy.failover;
    assert!(failover.start.total_cmp(&failover.full).is_eq());
    let share = zeugma_core::shares::capacity(0.5, failover);
    assert!(share.total_cmp(&0.0).is_eq());
    assert!(zeugma_core::shares::capacity(0.51, failover) >= 1.0);
}

#[test]
fn a_trust_domain_names_the_file_of_its_bundle() {
    let domain = |name: &str, spec: &str| {
        format!(
            "\n---\napiVersion: zeugma.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{ name: {name} }}\nspec: {{ {spec} }}\n"
        )
    };
    let orders = route(
        "orders",
        "protocol: http, backends: [{endpoints: ['10.0.0.1:80']}]",
    );
    let load = |documents: &[&str]| {
        let mut all = vec![EAST, &orders];
        all.extend(documents);
        try_load(&all, None)
    };
    let acme = domain("acme.example", "bundle: acme.json");
    let domains = load(&[&acme]).unwrap().settings.domains;
    let [one] = domains.as_slice() else {
        panic!("{domains:?}");
    };
    assert_eq!(
        (one.domain.as_str(), &one.endpoint),
        ("acme.example", &None)
    );
    let path = one.bundle.as_ref().unwrap();
    assert!(
        path.is_absolute() && path.ends_with("acme.json"),
        "{path:?}"
    );
    let url = "bundleEndpointURL: 'https://acme.example/b'";
    let web = "bundleEndpointProfile: {type: https_web}";
    let spiffe =
        "bundleEndpointProfile: {type: https_spiffe, endpointSPIFFEID: 'spiffe://acme.example/ca'}";
    for (spec, profile) in [
        (format!("{url}, {web}"), BundleProfile::Web),
        (
            format!("bundle: acme.json, {url}, {spiffe}"),
            BundleProfile::Spiffe(SpiffeId::parse("spiffe://acme.example/ca").unwrap()),
        ),
    ] {
        let loaded = load(&[&domain("acme.example", &spec)]).unwrap();
        let endpoint = loaded.settings.domains[0].endpoint.clone().unwrap();
        assert_eq!(endpoint.url.to_string(), "https://acme.example/b");
        assert_eq!(endpoint.profile, profile);
    }
    for (spec, path, words) in [
        (
            String::new(),
            "spec",
            "neither `bundle` nor `bundleEndpointURL`",
        ),
        (
            url.to_owned(),
            "spec.bundleEndpointURL",
            "`bundleEndpointProfile` is missing",
        ),
        (
            format!("bundle: a.json, {web}"),
            "spec.bundleEndpointProfile",
            "has no effect",
        ),
        (
            format!("{url}, bundleEndpointProfile: {{type: https_spiffe}}"),
            "spec.bundleEndpointProfile.type",
            "`endpointSPIFFEID` is missing",
        ),
        (
            format!("{url}, {}", spiffe.replace("https_spiffe", "https_web")),
            "spec.bundleEndpointProfile.endpointSPIFFEID",
            "has no effect",
        ),
        (
            format!("{url}, {spiffe}"),
            "spec.bundleEndpointProfile",
            "nothing verifies the first answer",
        ),
        (
            format!("{}, {web}", url.replace("https:", "http:")),
            "spec.bundleEndpointURL",
            "does not begin with `https://`",
        ),
        (
            format!("{}, {web}", url.replace("acme", "u@acme")),
            "spec.bundleEndpointURL",
            "no user",
        ),
        (
            format!("{url}, {}", web.replace("web", "wob")),
            "spec.bundleEndpointProfile.type",
            "https_wob",
        ),
        (
            format!("{url}, {}", spiffe.replace("/ca", "")),
            "spec.bundleEndpointProfile.endpointSPIFFEID",
            "spiffe://acme.example",
        ),
    ] {
        let findings = load(&[&domain("acme.example", &spec)]).unwrap_err();
        let finding = findings.iter().next().unwrap();
        let at = finding.place.as_ref().unwrap();
        assert_eq!(at.path, path, "{finding}");
        assert!(finding.to_string().contains(words), "{words}: {finding}");
    }
    for (documents, words) in [
        (
            vec![domain("ACME", "bundle: acme.json")],
            "`ACME` is not a trust domain",
        ),
        (
            vec![acme.clone(), acme],
            "a second TrustDomain `acme.example`",
        ),
        (
            vec![domain("east.example", "bundle: east.json")],
            "(ZG0109)",
        ),
    ] {
        let documents: Vec<&str> = documents.iter().map(String::as_str).collect();
        let findings = load(&documents).unwrap_err();
        assert!(findings.to_string().contains(words), "{findings}");
    }
    // What is foreign to one of two gateways is the other one's own.
    let two = ["east", "west"].map(|name| domain(&format!("{name}.example"), "bundle: b.json"));
    let both = [EAST, BOTH_GATEWAYS, WEST_PEER, &orders, &two[0], &two[1]];
    for (gateway, foreign) in [("east-gw", "west.example"), ("west-gw", "east.example")] {
        let domains = loaded(&both, Some(gateway)).settings.domains;
        let names: Vec<&str> = domains.iter().map(|one| one.domain.as_str()).collect();
        assert_eq!(names, [foreign], "{gateway}");
    }
}
