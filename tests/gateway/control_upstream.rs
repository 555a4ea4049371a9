//! How endpoints are reached and judged: budgets, names, checks through a peer.

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::data_mesh::{Gateway, Pair, endpoints, http_route, route, statuses};
use crate::data_services::{HttpService, Mode, TcpService};
use crate::mesh::{Cluster, eventually, within};

#[tokio::test]
async fn all_attempts_of_a_caller_share_a_budget() {
    let silent: Vec<TcpService> = (0..8)
        .map(|_| {
            TcpService::with(|mut tcp| async move {
                // Takes the hello of TLS and never answers.
                tcp.read_to_end(&mut Vec::new()).await.ok();
            })
        })
        .collect();
    let addresses: Vec<_> = silent.iter().map(TcpService::address).collect();
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let routes = route(
        "db",
        &[
            "protocol: tcp",
            "port: 5432",
            &format!(
                "backends: [{{ {}, tls: mesh, spiffeIDs: [\"spiffe://east.example/*\"] }}]",
                endpoints(&addresses)
            ),
            "allow: [{ listeners: [db] }]",
            "timeouts: { connect: 200ms }",
        ],
    );
    let gateway = Gateway::of(east, &routes).await;
    let mut tcp = TcpStream::connect(db).await.unwrap();
    let end = within("the end", tcp.read_to_end(&mut Vec::new())).await;
    assert_eq!(end.unwrap_or(0), 0);
    let line = gateway.process.connection(tcp.local_addr().unwrap()).await;
    assert_eq!(line["verdict"], "connect-failed");
    // 3 x 200 ms is the time of three attempts, of eight that the plan has.
    let hits: usize = silent.iter().map(TcpService::hits).sum();
    assert!((1..=3).contains(&hits), "{hits} attempts");
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_name_without_an_address_keeps_nobody_waiting_and_is_not_held_against_its_endpoint() {
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let routes = route(
        "db",
        &[
            "protocol: tcp",
            "port: 5432",
            // RFC 6761 §6.4: names under `.invalid` do not exist.
            "backends: [{ endpoints: [\"no-such-host.invalid:80\"] }]",
            "allow: [{ listeners: [db] }]",
            "health:",
            "  passive: { consecutive: 1, keepAtLeast: 0 }",
            "  active: { tcp: true, every: 100ms, down: 1 }",
        ],
    );
    // It becomes ready although the name has no address.
    let gateway = Gateway::of(east, &routes).await;
    for _ in 0..5 {
        let mut tcp = TcpStream::connect(db).await.unwrap();
        within("the end", tcp.read_to_end(&mut Vec::new()))
            .await
            .ok();
        let line = gateway.process.connection(tcp.local_addr().unwrap()).await;
        let error = line["error"].as_str().unwrap();
        assert!(error.contains("has no address at present"), "{line}");
    }
    gateway.process.message("ZG0601 name not resolved").await;
    gateway
        .process
        .message("ZG0427 active check cannot be made")
        .await;
    assert_eq!(statuses(&gateway.shares("db").await), ["unknown"]);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_peer_that_refuses_a_check_is_alive_and_one_with_nothing_to_serve_is_not() {
    let far = HttpService::start("far");
    let check = "health: { active: { http: /healthz, every: 100ms, timeout: 1s, up: 1, down: 1 } }";
    let backends = format!("backends: [{{ {} }}]", endpoints(&[far.address()]));
    let tcp_check = "health: { active: { tcp: true, every: 100ms, up: 1, down: 1 } }";
    // West lets in one workload of east's, which east's gateway is not: its checks get 403.
    let west = route(
        "hello",
        &[
            "protocol: http",
            &backends,
            tcp_check,
            "allow: [{ from: [\"spiffe://east.example/ns/shop/sa/cart\"] }]",
            "export: { to: [\"*\"] }",
        ],
    );
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]", check]),
        &west,
    )
    .await;
    let refused = pair
        .west
        .process
        .log(|line| line["http.path"] == "/healthz")
        .await;
    assert_eq!(refused["http.status"], 403, "{refused}");
    pair.east
        .until("hello", "the peer is alive", |now| {
            statuses(now) == ["healthy"]
        })
        .await;
    // A service that answers by an error of its own is not.
    let open = http_route("hello", &[&backends, tcp_check]);
    pair.west.cluster.write("routes.yaml", &open);
    eventually("the check to be let in", async || {
        far.hits().gt(&0).then_some(())
    })
    .await;
    far.set(Mode::Status(500));
    pair.east
        .until("hello", "errors", |now| statuses(now) == ["unhealthy"])
        .await;
    far.set(Mode::Normal);
    pair.east
        .until("hello", "no errors", |now| statuses(now) == ["healthy"])
        .await;
    // Nor is a peer whose own endpoints are all gone.
    far.kill().await;
    pair.east
        .until("hello", "nothing left", |now| {
            statuses(now) == ["unhealthy"]
        })
        .await;
    drop(pair);
}
