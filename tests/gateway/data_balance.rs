//! Which endpoint gets a request, and what is asked of endpoints before they get any.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::data_client::{Client, Wire};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route, route, statuses};
use crate::data_services::{HttpService, Mode, TcpService};
use crate::mesh::{
    Body, Cluster, Service, collect, empty, eventually, frames, full, h2, send, within,
};

/// gRPC's health service: `grpc.health.v1` of one service, whose status a test sets.
struct Health {
    service: Service,
    says: Arc<AtomicU8>,
    /// How many asked as they should.
    asked: Arc<AtomicUsize>,
}

/// Instead of a status: no answer at all, or gRPC's UNIMPLEMENTED.
const SILENT: u8 = 100;
const UNIMPLEMENTED: u8 = 101;
const SERVING: u8 = 1;
const NOT_SERVING: u8 = 2;

impl Health {
    async fn start() -> Self {
        let (says, asked) = (
            Arc::new(AtomicU8::new(SERVING)),
            Arc::<AtomicUsize>::default(),
        );
        let state = (Arc::clone(&says), Arc::clone(&asked));
        let service = Service::handling(move |request| {
            let (says, asked) = state.clone();
            async move { answer(request, &says, &asked).await }
        })
        .await;
        Self {
            service,
            says,
            asked,
        }
    }

    fn say(&self, what: u8) {
        self.says.store(what, Ordering::SeqCst);
    }
}

async fn answer(
    request: Request<Incoming>,
    says: &AtomicU8,
    asked: &AtomicUsize,
) -> Response<Body> {
    let says = says.load(Ordering::SeqCst);
    if says == SILENT {
        return std::future::pending().await;
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    // The frame of `service: "shop.Orders"`.
    let is_asked = head.uri.path() == "/grpc.health.v1.Health/Check"
        && head.version == Version::HTTP_2
        && head.headers["content-type"] == "application/grpc"
        && *body == *b"\0\0\0\0\x0d\x0a\x0bshop.Orders";
    asked.fetch_add(usize::from(is_asked), Ordering::SeqCst);
    let (code, message) = match says {
        UNIMPLEMENTED => ("12", Bytes::new()),
        _ => ("0", Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, says])),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
    Response::builder()
        .header("content-type", "application/grpc")
        .body(body.map_err(|never| match never {}).boxed())
        .unwrap()
}

#[tokio::test]
async fn a_check_by_grpc_believes_serving_in_time_and_nothing_else() {
    let health = Health::start().await;
    let backends = format!("backends: [{{ {} }}]", endpoints(&[health.service.address]));
    let check =
        "health: { active: { grpc: shop.Orders, every: 100ms, timeout: 500ms, up: 1, down: 1 } }";
    let gateway = Gateway::alone(&near_route("hello", &[&backends, check])).await;
    for bad in [NOT_SERVING, SILENT, UNIMPLEMENTED, 0] {
        gateway
            .until("hello", "serving", |now| statuses(now) == ["healthy"])
            .await;
        health.say(bad);
        gateway
            .until("hello", "not serving", |now| statuses(now) == ["unhealthy"])
            .await;
        health.say(SERVING);
    }
    assert!(health.asked.load(Ordering::SeqCst) > 0);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_check_by_grpc_reaches_the_service_behind_a_peer_and_is_no_check_of_its_gateway() {
    let health = Health::start().await;
    let check = "health: { active: { grpc: shop.Orders, every: 100ms, up: 1, down: 1 } }";
    let backends = format!("backends: [{{ {} }}]", endpoints(&[health.service.address]));
    // West lets in one workload of east's, which east's gateway is not.
    let closed = route(
        "hello",
        &[
            "protocol: http",
            &backends,
            "allow: [{ from: [\"spiffe://east.example/ns/shop/sa/cart\"] }]",
            "export: { to: [\"*\"] }",
        ],
    );
    let east = http_route("hello", &["backends: [{ peer: west }]", check]);
    let pair = Pair::new(&east, &closed).await;
    let refused = |line: &serde_json::Value| line["http.path"] == "/grpc.health.v1.Health/Check";
    let line = pair.west.process.log(refused).await;
    assert_eq!(line["verdict"], "not-allowed", "{line}");
    pair.east
        .until("hello", "the peer is alive", |now| {
            statuses(now) == ["healthy"]
        })
        .await;
    assert_eq!(health.asked.load(Ordering::SeqCst), 0);
    health.say(NOT_SERVING);
    let open = http_route("hello", &[&backends]);
    pair.west.cluster.write("routes.yaml", &open);
    pair.east
        .until("hello", "the service's own word", |now| {
            statuses(now) == ["unhealthy"]
        })
        .await;
    health.say(SERVING);
    pair.east
        .until("hello", "serving", |now| statuses(now) == ["healthy"])
        .await;
    eventually("the question as it was asked", async || {
        (health.asked.load(Ordering::SeqCst) > 1).then_some(())
    })
    .await;
    pair.finish().await;
}

/// The endpoints of the nearest level: what they are given of their weight.
fn given(shares: &serde_json::Value) -> Vec<f64> {
    let endpoints = shares["levels"][0]["endpoints"].as_array().unwrap();
    let given = |one: &serde_json::Value| one["given"].as_f64().unwrap();
    endpoints.iter().map(given).collect()
}

#[tokio::test]
async fn an_endpoint_that_comes_back_is_given_little_at_first_and_then_its_weight() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&[bad.address(), good.address()])
    );
    for (slow_start, is_slow) in [("10m", true), ("100ms", false), ("0s", false)] {
        let health = format!(
            "health: {{ passive: {{ consecutive: 1, eject: 100ms }}, slowStart: {slow_start} }}"
        );
        let policy = "balance: { policy: random }";
        let gateway = Gateway::alone(&near_route("hello", &[&backends, &health, policy])).await;
        assert_eq!(given(&gateway.shares("hello").await), [1.0, 1.0]);
        bad.set(Mode::Status(503));
        let process = &gateway.process;
        while !process.told().contains("ZG0421") {
            gateway.get("/").await;
        }
        bad.set(Mode::Normal);
        let wanted = if is_slow { [0.1, 1.0] } else { [1.0, 1.0] };
        // One request shows it, or that there is none for a while.
        while !process.told().contains("ZG0422") {
            gateway.get("/").await;
        }
        gateway
            .until("hello", "what it is given", |now| given(now) == wanted)
            .await;
        // What programs read says the same.
        eventually("the same of programs", async || {
            let routes = process.admin_json("/api/v1/routes").await;
            (given(&routes["routes"][0]["outbound"]) == wanted).then_some(())
        })
        .await;
        let before = bad.hits();
        for _ in 0..200 {
            assert_eq!(gateway.get("/").await.status, 200);
        }
        // 0.1 of 1.1 are 18 of 200, and a half is 100: both are far from 60.
        assert_eq!(bad.hits() - before < 60, is_slow, "{slow_start}");
        gateway.process.finish().await;
    }
}

/// Which service answers each of these users, on a connection of its own each time.
async fn homes(gateway: &Gateway, users: usize) -> BTreeMap<usize, String> {
    let mut homes = BTreeMap::new();
    for user in 0..users {
        let request = Request::get("/")
            .header("host", HELLO)
            .header("x-user", format!("user-{user}"))
            .body(empty());
        let answer = send(gateway.apps(), request.unwrap()).await;
        assert_eq!(answer.status, 200);
        homes.insert(user, answer.text());
    }
    homes
}

#[tokio::test]
async fn one_user_goes_to_one_endpoint_and_moves_only_with_it() {
    for policy in ["ring-hash", "maglev"] {
        by_user(policy).await;
    }
}

async fn by_user(policy: &str) {
    const USERS: usize = 60;
    let services = ["a", "b", "c"].map(HttpService::start);
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&services.each_ref().map(HttpService::address))
    );
    let routes = near_route(
        "hello",
        &[
            &backends,
            &format!("balance: {{ policy: {{ {policy}: {{ header: x-user }} }} }}"),
            "health: { passive: { consecutive: 1 } }",
        ],
    );
    let gateway = Gateway::alone(&routes).await;
    let before = homes(&gateway, USERS).await;
    // Other workers, and later, the same.
    assert_eq!(homes(&gateway, USERS).await, before);
    let of = |name: &str| before.values().filter(|home| *home == name).count();
    // A third are 20; fewer than 5 of 60 are improbable (below 1e-6), wherever the ports are.
    assert!(
        ["a", "b", "c"].iter().all(|name| of(name) >= 5),
        "{before:?}"
    );
    services[0].kill().await;
    let after = homes(&gateway, USERS).await;
    for (user, home) in &before {
        let moved = after[user] != *home;
        assert_eq!(moved, home == "a", "user {user} of {home}");
    }
    // Who says no name is drawn for.
    let mut hits = BTreeMap::<String, usize>::new();
    for _ in 0..40 {
        *hits.entry(gateway.get("/").await.text()).or_default() += 1;
    }
    assert_eq!(hits.len(), 2, "{hits:?}");
    gateway.process.finish().await;
}

#[tokio::test]
async fn one_source_address_goes_to_one_endpoint_of_a_tcp_route() {
    let say = |name: &'static [u8]| {
        TcpService::with(move |mut tcp| async move {
            tcp.write_all(name).await.ok();
        })
    };
    let services = [say(b"a"), say(b"b"), say(b"c")];
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let routes = route(
        "db",
        &[
            "protocol: tcp",
            "port: 5432",
            &format!(
                "backends: [{{ {} }}]",
                endpoints(&services.each_ref().map(TcpService::address))
            ),
            "balance: { policy: { ring-hash: source } }",
            "allow: [{ listeners: [db] }]",
        ],
    );
    let gateway = Gateway::of(east, &routes).await;
    let mut found = BTreeMap::<String, usize>::new();
    for host in 1..=40 {
        let mut before = None;
        for _ in 0..3 {
            let socket = TcpSocket::new_v4().unwrap();
            let from = SocketAddr::from((Ipv4Addr::new(127, 0, 7, host), 0));
            socket.bind(from).unwrap();
            let mut tcp = within("a connection", socket.connect(db)).await.unwrap();
            let mut said = String::new();
            within("a name", tcp.read_to_string(&mut said))
                .await
                .unwrap();
            assert_eq!(*before.get_or_insert_with(|| said.clone()), said);
        }
        *found.entry(before.unwrap()).or_default() += 1;
    }
    assert_eq!(found.len(), 3, "{found:?}");
    gateway.process.finish().await;
}

#[tokio::test]
async fn the_endpoint_that_answers_sooner_gets_more_by_latency() {
    let (slow, fast) = (HttpService::start("slow"), HttpService::start("fast"));
    slow.set(Mode::Delay(Duration::from_millis(200)));
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&[slow.address(), fast.address()])
    );
    for (policy, at_most, at_least) in [("peak-ewma", 5, 1), ("least-request", 40, 6)] {
        let policy = format!("balance: {{ policy: {policy} }}");
        let gateway = Gateway::alone(&near_route("hello", &[&backends, &policy])).await;
        // One connection is one worker, and each learns for itself.
        let mut client = Client::connect(gateway.apps(), &Wire::H1).await.unwrap();
        let before = slow.hits();
        for _ in 0..40 {
            assert_eq!(client.get(HELLO, "/").await.unwrap().status, 200);
        }
        // One after the other none is busier than the other: by load alone a half goes to each.
        let hits = slow.hits() - before;
        assert!((at_least..=at_most).contains(&hits), "{policy}: {hits}");
        gateway.process.finish().await;
    }
}

#[tokio::test]
async fn a_connection_that_is_old_takes_no_new_request_and_loses_none() {
    for version in ["h1", "h2"] {
        let service = Service::handling(|request: Request<Incoming>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Response::new(full(body))
        })
        .await;
        let backends = format!(
            "backends: [{{ {}, version: {version} }}]",
            endpoints(&[service.address])
        );
        for (age, is_replaced) in [("50ms", true), ("10m", false), ("0s", false)] {
            let balance = format!("balance: {{ maxConnectionAge: {age} }}");
            let gateway = Gateway::alone(&near_route("hello", &[&backends, &balance])).await;
            // One connection is one worker, and each has connections of its own.
            let tcp = TcpStream::connect(gateway.apps()).await.unwrap();
            let mut client = h2(tcp).await;
            let uri = format!("http://{HELLO}/");
            let before = service.connections();
            // This one is under way while others find its connection too old.
            let (parts, body) = frames();
            let long = client.send_request(Request::post(&uri).body(body).unwrap());
            parts.send(Bytes::from_static(b"be")).await.unwrap();
            let long = tokio::spawn(long);
            let opened = || service.connections() - before;
            if is_replaced {
                eventually("the fourth connection", async || {
                    let short = client.send_request(Request::post(&uri).body(empty()).unwrap());
                    assert_eq!(within("an answer", short).await.unwrap().status(), 200);
                    (opened() >= 4).then_some(())
                })
                .await;
            } else {
                for _ in 0..50 {
                    let short = client.send_request(Request::post(&uri).body(empty()).unwrap());
                    assert_eq!(within("an answer", short).await.unwrap().status(), 200);
                }
                // Of HTTP/1.1 the long one has its own.
                assert!(opened() <= 2, "{version} {age}: {}", opened());
            }
            parts.send(Bytes::from_static(b"fore")).await.unwrap();
            drop(parts);
            let answer = within("the long answer", long).await.unwrap().unwrap();
            assert_eq!(collect(answer).await.text(), "before");
            gateway.process.finish().await;
        }
    }
}
