//! What backends take in a second: the excess goes on, and what fits nowhere is refused.
//!
//! Nothing here waits for a second to pass: what is asserted of rates is bounded by the time that it
//! really took.

use std::process::Command;
use std::time::Instant;

use http::{Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::mesh::{Cluster, Gateway, Service, eventually, full, get, send, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";
const PATH: &str = "/api/v1/explain?host=orders.shop.svc.clusterset.local";

/// `shop/orders` for workloads and for other clusters, of these backends.
fn orders(cluster: &Cluster, backends: &str, more: &str) {
    cluster.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{backends}]
            allow: [{{ listeners: [apps] }}, {{ from: ['spiffe://east.example/*'] }}]
            export: {{ to: ['*'] }}
            {more}"
        ),
    );
}

fn own(service: &Service, more: &str) -> String {
    format!("{{ name: near, endpoints: ['{}']{more} }}", service.address)
}

/// A burst of one second and what came after: the most that a backend of this capacity was sent since.
fn at_most(capacity: f64, since: Instant) -> f64 {
    capacity + capacity * since.elapsed().as_secs_f64() + 1.0
}

/// What `zeugma status` says of a gateway.
fn status(of: &Cluster, words: &[&str]) -> String {
    let asked = Command::new(env!("CARGO_BIN_EXE_zeugma"))
        .arg("status")
        .args(words)
        .arg("--config")
        .arg(of.config())
        .env_remove("ZEUGMA_ADMIN")
        .output()
        .unwrap();
    assert!(asked.status.success(), "{asked:?}");
    String::from_utf8(asked.stdout).unwrap()
}

fn count(service: &Service) -> f64 {
    f64::from(u32::try_from(service.requests().len()).unwrap())
}

/// What the gateway holds a backend of `shop/orders` to.
async fn capacity(gateway: &Gateway, backend: &str) -> f64 {
    let labels = [
        ("destination_service", "shop/orders"),
        ("destination_backend", backend),
    ];
    let metrics = gateway.metrics().await;
    metrics.value("zeugma_backend_capacity", &labels)
}

async fn until_capacity(gateway: &Gateway, backend: &str, wanted: f64) {
    eventually("the capacity", async || {
        let is = capacity(gateway, backend).await;
        ((is - wanted).abs() < 1e-9).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_excess_goes_west_and_what_fits_nowhere_is_refused_with_its_reason_and_counted() {
    let (near, far) = (Service::http("near").await, Service::http("far").await);
    let [east, west] = ["east", "west"].map(Cluster::new);
    east.meet(&west);
    let west_takes = "{ peer: west, capacity: 4/s }";
    let backends = format!("{}, {west_takes}", own(&near, ", capacity: 3/s"));
    orders(&east, &backends, "");
    orders(&west, &own(&far, ""), "");
    let (gateway, at_west) = (east.start().await, west.start().await);
    let began = Instant::now();
    let mut sent = 0.0;
    // Until nothing has room: two seconds' worth is more than the bursts of both.
    let refused = eventually("a refusal", async || {
        let reply = get(east.apps, ORDERS, "/").await;
        sent += 1.0;
        (reply.status == 503).then_some(reply)
    })
    .await;
    assert_eq!(refused.headers.get("x-zeugma-reason"), None, "for gateways");
    let (local, gone) = (count(&near), count(&far));
    assert_eq!(
        local + gone + 1.0,
        sent,
        "each went somewhere or was refused"
    );
    assert!(local >= 3.0 && local <= at_most(3.0, began), "{local}");
    assert!(gone >= 4.0 && gone <= at_most(4.0, began), "{gone}");
    let line = gateway.log(|line| line["verdict"] == "over-capacity").await;
    // As soon as it is counted.
    let told = status(&east, &["-o", "json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["routes"][0]["refused_over_capacity"], 1);
    let said = "\nshop/orders: 1 refused for capacity since the start (ZG0442)";
    let told = status(&east, &[]);
    assert!(told.contains(said), "{told}");
    let told = status(&west, &[]);
    assert!(
        !told.contains("for capacity"),
        "west refused nothing: {told}"
    );
    assert_eq!(
        (&line["flags"], &line["http.status"], &line["dst.service"]),
        (&json!("UO"), &json!(503), &json!("shop/orders"))
    );
    // What went west was moved for want of room.
    let spilled = gateway
        .log(|line| line["dst.backend"] == "west" && line["verdict"] == "completed")
        .await;
    assert_eq!(spilled["reason"], "spill", "{spilled}");
    let metrics = gateway.metrics().await;
    let value = |name: &str, labels: &[(&str, &str)]| metrics.value(name, labels);
    assert_eq!(
        value("zeugma_requests_total", &[("reason", "over-capacity")]),
        1.0
    );
    assert!(value("zeugma_cluster_offered_total", &[]) >= sent);
    assert!(
        value(
            "zeugma_backend_full_total",
            &[("destination_backend", "near")]
        ) > 0.0
    );
    assert_eq!(capacity(&gateway, "west").await, 4.0);
    let spills = [("destination_backend", "west"), ("why", "spill")];
    assert_eq!(value("zeugma_attempts_total", &spills), gone);
    // West's gateway has nothing to hold to.
    assert!(
        !at_west
            .metrics()
            .await
            .0
            .contains("zeugma_backend_capacity")
    );
    gateway.finish().await;
    at_west.finish().await;
}

#[tokio::test]
async fn explain_and_routes_say_what_is_offered_and_what_moves_for_it() {
    let (near, far) = (Service::http("near").await, Service::http("far").await);
    let east = Cluster::new("east");
    let backends = format!(
        "{}, {{ name: far, locality: us/us-1, endpoints: ['{}'], capacity: 1/s }}",
        own(&near, ", capacity: 1/s"),
        far.address
    );
    orders(&east, &backends, "");
    let gateway = east.start().await;
    let explained = async || -> Value { gateway.admin_json(PATH).await["explanation"].clone() };
    let told = explained().await;
    assert_eq!(
        told["destination"]["load"]["backends"][0]["takes_per_second"],
        1.0
    );
    // As fast as they come: far more than two in each second.
    let told = eventually("a measured load", async || {
        for _ in 0..20 {
            get(east.apps, ORDERS, "/").await;
        }
        let told = explained().await;
        let offered = told["destination"]["load"]["offered_per_second"].as_f64()?;
        (offered > 4.0).then_some(told)
    })
    .await;
    let to = &told["destination"];
    let load = &to["load"];
    let offered = load["offered_per_second"].as_f64().unwrap();
    for level in to["levels"].as_array().unwrap() {
        assert_eq!(level["takes_per_second"], 1.0);
        let share = level["share"].as_f64().unwrap();
        assert!((share - 1.0 / offered).abs() < 1e-6, "{told:#}");
    }
    let refused = load["refused_share"].as_f64().unwrap();
    assert!((refused - (1.0 - 2.0 / offered)).abs() < 1e-6, "{told:#}");
    let written = load["backends"][0]["written"].as_str().unwrap();
    assert!(written.contains("shop-orders.yaml:"), "{written}");
    let answer = told["answer"].as_str().unwrap();
    let is_told = answer.contains("(capacity)") || answer.contains("over-capacity");
    assert!(is_told, "{answer}");
    gateway.finish().await;
}

#[tokio::test]
async fn a_peer_reports_what_it_takes_and_the_lesser_of_that_and_what_is_written_holds() {
    let [one, other] = ["west", "north"].map(Service::http);
    let (one, other) = (one.await, other.await);
    let [east, west, north] = ["east", "west", "north"].map(Cluster::new);
    east.meet(&west);
    east.meet(&north);
    orders(
        &east,
        "{ peer: west, capacity: 100/s }, { peer: north }",
        "failover: { order: [{ backend: west }, { backend: north }] }",
    );
    orders(&west, &own(&one, ", capacity: 3/s"), "");
    orders(&north, &own(&other, ""), "");
    let (at_west, at_north) = (west.start().await, north.start().await);
    let gateway = east.start().await;
    until_capacity(&gateway, "west", 3.0).await;
    let began = Instant::now();
    for _ in 0..20 {
        // A method that only what no endpoint saw may be repeated of.
        let post = Request::post("/").header("host", ORDERS).body(full("body"));
        let reply = send(east.apps, post.unwrap()).await;
        assert_eq!(reply.status, 200, "north takes what is over");
    }
    let taken = count(&one);
    assert!(taken >= 3.0 && taken <= at_most(3.0, began), "{taken}");
    assert_eq!(taken + count(&other), 20.0);
    // East holds to it by itself. West refuses no more than what came closer together than it was
    // sent, where 17 of 20 would be too many for it.
    let metrics = at_west.metrics().await;
    let refused = [("reason", "over-capacity")];
    let refused = metrics.value("zeugma_requests_total", &refused);
    assert!(refused <= 3.0, "{refused}");
    // What is written here is less.
    orders(&east, "{ peer: west, capacity: 2/s }, { peer: north }", "");
    until_capacity(&gateway, "west", 2.0).await;
    // And what is reported changes at once.
    orders(&west, &own(&one, ", capacity: 1/s"), "");
    until_capacity(&gateway, "west", 1.0).await;
    for gateway in [gateway, at_west, at_north] {
        gateway.finish().await;
    }
}

#[tokio::test]
async fn what_a_peers_gateway_has_no_capacity_for_is_tried_elsewhere_and_nobody_is_ejected() {
    let [one, other] = ["west", "north"].map(Service::http);
    let (one, other) = (one.await, other.await);
    let [east, west, north] = ["east", "west", "north"].map(Cluster::new);
    east.meet(&west);
    east.meet(&north);
    orders(
        &east,
        "{ peer: west }, { peer: north }",
        "balance: { policy: round-robin }",
    );
    orders(&west, &own(&one, ", capacity: 1/s"), "");
    orders(&north, &own(&other, ""), "");
    let (at_west, at_north) = (west.start().await, north.start().await);
    let gateway = east.start().await;
    until_capacity(&gateway, "west", 1.0).await;
    // West's own workloads use it up, which east does not see.
    let line = eventually("a refusal to a gateway", async || {
        get(west.apps, ORDERS, "/").await;
        let post = Request::post("/").header("host", ORDERS).body(full("body"));
        let reply = send(east.apps, post.unwrap()).await;
        assert_eq!(reply.status, 200);
        let metrics = at_west.metrics().await;
        let labels = [("reason", "over-capacity"), ("listener", "mesh")];
        (metrics.value("zeugma_requests_total", &labels) > 0.0).then_some(())
    });
    line.await;
    let metrics = gateway.metrics().await;
    let retried = metrics.value("zeugma_retries_total", &[("cause", "refused-stream")]);
    assert!(retried >= 1.0, "{retried}");
    assert!(!gateway.told().contains("ejected"), "{}", gateway.told());
    for gateway in [gateway, at_west, at_north] {
        gateway.finish().await;
    }
}

#[tokio::test]
async fn a_request_that_fails_and_is_not_sent_again_takes_one_and_no_more() {
    let failing = async |_| {
        let mut response = Response::new(full("failing"));
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response
    };
    let one = Service::handling(failing).await;
    let other = Service::handling(failing).await;
    let east = Cluster::new("east");
    let both = format!(
        "{{ name: near, endpoints: ['{}', '{}'], capacity: 6/s }}",
        one.address, other.address
    );
    let never =
        "health: { passive: { consecutive: 0, errorRate: { over: 100%, requests: 100000 } } }";
    orders(&east, &both, never);
    let gateway = east.start().await;
    // A second's worth is to be had at once, whatever the time is.
    for nth in 0..6 {
        let post = Request::post("/").header("host", ORDERS).body(full("body"));
        let reply = send(east.apps, post.unwrap()).await;
        assert_eq!(reply.text(), "failing", "number {nth}");
    }
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_backend_full_total", &[]), 0.0);
    gateway.finish().await;
}

#[tokio::test]
async fn connections_of_a_tcp_service_are_held_to_it_too() {
    let service = Service::echo().await;
    let mut east = Cluster::new("east");
    let address = east.listen("db", "role: workloads, route: shop/db");
    east.route(
        "shop/db",
        &format!(
            "
            port: 5432
            backends: [{{ endpoints: ['{}'], capacity: 2/s }}]
            allow: [{{ listeners: [db] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    let began = Instant::now();
    let mut open = Vec::new();
    let refused = eventually("a refusal", async || {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let source = tcp.local_addr().unwrap();
        tokio::io::AsyncWriteExt::write_all(&mut tcp, b"ping")
            .await
            .unwrap();
        let mut byte = [0; 4];
        match within("an answer", tcp.read_exact(&mut byte)).await {
            Ok(_) => {
                open.push(tcp);
                None
            }
            Err(_ended) => Some(source),
        }
    })
    .await;
    let line = gateway.connection(refused).await;
    assert_eq!(line["verdict"], "over-capacity", "{line}");
    let told = gateway.admin_json("/api/v1/routes").await;
    assert_eq!(told["routes"][0]["refused_over_capacity"], 1);
    let carried = f64::from(u32::try_from(open.len()).unwrap());
    assert!(
        carried >= 2.0 && carried <= at_most(2.0, began),
        "{carried}"
    );
    drop(open);
    gateway.finish().await;
}

#[tokio::test]
async fn copies_take_of_what_a_backend_takes_and_the_primary_does_not_notice() {
    let (near, canary) = (Service::http("near").await, Service::http("canary").await);
    let east = Cluster::new("east");
    orders(&east, &own(&near, ""), "mirror: [{ route: shop/canary }]");
    east.route(
        "shop/canary",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'], capacity: 2/s }}]
            allow: [{{ listeners: [apps] }}]",
            canary.address
        ),
    );
    let gateway = east.start().await;
    let began = Instant::now();
    let mut sent = 0.0;
    eventually("a copy without room", async || {
        assert_eq!(get(east.apps, ORDERS, "/").await.text(), "near");
        sent += 1.0;
        let labels = [("mirror", "shop/canary"), ("result", "over-capacity")];
        let metrics = gateway.metrics().await;
        (metrics.value("zeugma_mirrored_total", &labels) > 0.0).then_some(())
    })
    .await;
    let copied = count(&canary);
    assert!(copied <= at_most(2.0, began), "{copied} of {sent}");
    assert_eq!(count(&near), sent);
    gateway.finish().await;
}
