//! Gateways of peers report to each other how what they export stands.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, HeaderName, Request, Response};
use rustix::process::Signal;
use rustls::AlertDescription;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::Accept;
use tokio_rustls::client::TlsStream;

use crate::data_client::get;
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, levels, statuses};
use crate::data_services::HttpService;
use crate::mesh::{Cluster, Identity, alert_of, eventually, within};

const SNI: &str = "peer.zeugma.internal";
const ALPN: &[u8] = b"zeugma-peer/1";
const STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// Finds what has died without a request.
const CHECKED: &str =
    "health: { active: { tcp: true, every: 100ms, timeout: 1s, up: 1, down: 1 } }";
/// Comes back as soon as it can.
const AT_ONCE: &str = "failover: { order: [{ cluster: west }, { backend: backup }], \
                       failback: { after: 0s, ramp: 0s } }";

/// East's route that goes to west first, and then to a backup.
fn near(name: &str, backup: &HttpService) -> String {
    let backup = endpoints(&[backup.address()]);
    let backends =
        format!("backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {backup} }}]");
    http_route(name, &[&backends, AT_ONCE])
}

/// West's, which goes to its own services.
fn far(name: &str, services: &[&HttpService]) -> String {
    let addresses: Vec<SocketAddr> = services.iter().map(|one| one.address()).collect();
    let backends = format!("backends: [{{ {} }}]", endpoints(&addresses));
    http_route(name, &[&backends, CHECKED])
}

fn host(name: &str) -> String {
    format!("{name}.demo.svc.clusterset.local")
}

/// What east says of the only gateway of a peer.
async fn gateway_of(east: &Gateway, peer: &str) -> Value {
    let all = east.process.admin_json("/api/v1/peers").await;
    let mut peers = all["peers"].as_array().unwrap().iter();
    let peer = peers.find(|one| one["name"] == *peer).unwrap();
    peer["gateways"][0].clone()
}

/// Waits until a peer's gateway is in this state.
async fn until_state(east: &Gateway, peer: &str, state: &str) -> Value {
    let mut last = Value::Null;
    let what = format!("{peer} to be {state}");
    let looking = eventually(&what, async || {
        last = gateway_of(east, peer).await;
        (last["report"]["state"] == *state).then(|| last.clone())
    });
    looking.await
}

/// Waits until east's route has these shares, and says what it is.
async fn until_levels(east: &Gateway, route: &str, expected: &[f64]) -> Value {
    let close = |now: &Value| {
        let now = levels(now);
        (now.iter().zip(expected)).all(|(now, expected)| (now - expected).abs() < 0.005)
    };
    east.until(route, &format!("{route} to have {expected:?}"), close)
        .await
}

async fn tried(east: &Gateway, route: &str, backend: &str) -> f64 {
    let route = format!("demo/{route}");
    let labels = [
        ("destination_service", route.as_str()),
        ("destination_backend", backend),
    ];
    east.counted("zeugma_attempts_total", &labels).await
}

/// The events of the journal of this kind.
async fn events(east: &Gateway, kind: &str) -> Vec<Value> {
    let all = east.process.admin_json("/api/v1/failovers").await;
    let timeline = all["failovers"]["timeline"].as_array().unwrap();
    let of_kind = timeline.iter().filter(|event| event["kind"] == *kind);
    of_kind.cloned().collect()
}

/// Two services behind west's gateway, each with a backup at east.
struct Two {
    backup: HttpService,
    orders: HttpService,
    pair: Pair,
    _carts: HttpService,
}

impl Two {
    async fn new() -> Self {
        Box::pin(Self::of(Cluster::new("east"), Cluster::new("west"))).await
    }

    async fn of(east: Cluster, west: Cluster) -> Self {
        let backup = HttpService::start("backup");
        let (orders, carts) = (HttpService::start("orders"), HttpService::start("carts"));
        let near = [near("orders", &backup), near("carts", &backup)].concat();
        let far = [far("orders", &[&orders]), far("carts", &[&carts])].concat();
        let pair = Box::pin(Pair::of((east, west), &near, &far)).await;
        until_state(&pair.east, "west", "reporting").await;
        Self {
            backup,
            orders,
            pair,
            _carts: carts,
        }
    }
}

#[tokio::test]
async fn of_two_services_behind_one_gateway_the_dead_one_moves_alone_and_before_a_request_failed() {
    let mut two = Box::pin(Two::new()).await;
    let east = &two.pair.east;
    for name in ["orders", "carts"] {
        assert_eq!(get(east.apps(), &host(name), "/").await.text(), name);
    }
    let behind = until_state(east, "west", "reporting").await["behind"].clone();
    assert_eq!(behind.as_array().unwrap().len(), 2, "{behind}");
    assert_eq!(
        (&behind[0]["healthy"], &behind[0]["total"]),
        (&1.into(), &1.into())
    );

    two.orders.kill().await;
    let orders = until_levels(east, "orders", &[0.0, 1.0]).await;
    assert_eq!(statuses(&orders), ["empty", "healthy"]);
    let carts = east.shares("carts").await;
    assert_eq!(levels(&carts), [1.0, 0.0]);
    assert_eq!(statuses(&carts), ["healthy", "healthy"]);
    for _ in 0..5 {
        assert_eq!(
            get(east.apps(), &host("orders"), "/").await.text(),
            "backup"
        );
        assert_eq!(get(east.apps(), &host("carts"), "/").await.text(), "carts");
    }
    // No request was sent to where it would have failed, and none was tried twice.
    assert_eq!(tried(east, "orders", "west").await, 1.0);
    assert_eq!(tried(east, "orders", "backup").await, 5.0);
    assert_eq!(tried(east, "carts", "west").await, 6.0);
    assert_eq!(east.counted("zeugma_retries_total", &[]).await, 0.0);
    let requests = two.pair.west.process.log_so_far();
    let mut requests = requests.iter().filter(|line| line["kind"] == "request");
    assert!(
        requests.all(|line| line["verdict"] == "completed"),
        "{requests:?}"
    );

    // The journal says why.
    let reported = events(east, "endpoint-reported").await;
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert_eq!(reported[0]["code"], "ZG0428");
    assert_eq!(reported[0]["data"]["cause"], "reports 0 of 1 healthy");
    let moved = events(east, "shares-moved").await;
    assert_eq!(moved.len(), 1, "{moved:?}");
    let cause = moved[0]["data"]["causes"][0].as_str().unwrap();
    let west = two.pair.west.cluster.mesh;
    assert_eq!(cause, format!("west {west} reports 0 of 1 healthy"));
    assert_eq!(events(east, "endpoint-ejected").await, Vec::<Value>::new());
    east.process
        .message("ZG0428 a peer's gateway reports that nothing healthy")
        .await;

    // What the commands and metrics say of it.
    let zeugma = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command
            .args(words)
            .arg("--config")
            .arg(east.cluster.config());
        let output = command.env_remove("ZEUGMA_ADMIN").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let table = zeugma(&["get", "peers"]);
    assert!(
        table.contains("demo/orders 0/1") && !table.contains("demo/carts"),
        "{table}"
    );
    let status = zeugma(&["status"]);
    assert!(status.contains("1/2 ways healthy  reports: "), "{status}");
    let reporting = [("peer", "west"), ("gateway", &*west.to_string())];
    assert_eq!(east.counted("zeugma_peer_reporting", &reporting).await, 1.0);
    assert!(
        east.counted("zeugma_peer_report_timestamp_seconds", &reporting)
            .await
            > 1e9
    );
    let page = east.process.admin("/ui").await.text();
    assert!(page.contains("demo/orders 0/1"), "{page}");

    two.orders.revive();
    until_levels(east, "orders", &[1.0, 0.0]).await;
    assert_eq!(
        get(east.apps(), &host("orders"), "/").await.text(),
        "orders"
    );
    east.process
        .message("ZG0429 a peer's gateway is of use again")
        .await;
    assert_eq!(two.backup.hits(), 5);
    two.pair.finish().await;
}

#[tokio::test]
async fn a_level_loses_what_its_peer_has_no_room_for() {
    let (backup, one) = (HttpService::start("backup"), HttpService::start("one"));
    let other = HttpService::start("other");
    let (near, far) = (near("hello", &backup), far("hello", &[&one, &other]));
    let pair = Box::pin(Pair::new(&near, &far)).await;
    until_state(&pair.east, "west", "reporting").await;
    until_levels(&pair.east, "hello", &[1.0, 0.0]).await;
    other.kill().await;
    // One of two is healthy: 0.5 / 0.7 stays.
    let shares = until_levels(&pair.east, "hello", &[0.714, 0.286]).await;
    assert_eq!(statuses(&shares), ["healthy", "healthy"]);
    let routes = pair.east.process.admin_json("/api/v1/routes").await;
    let endpoint = &routes["routes"][0]["outbound"]["levels"][0]["endpoints"][0];
    assert_eq!(endpoint["reported"]["healthy"], 1, "{endpoint}");
    assert_eq!(endpoint["reported"]["total"], 2, "{endpoint}");
    pair.finish().await;
}

/// East's `MeshPeer` of west with another word for old reports.
fn forgets(east: &Cluster, west: &Cluster) {
    let spec = format!(
        "
        cluster: west
        locality: west/west-1
        gateways: ['{}']
        spiffeIDs: ['{}']
        whenStale: drop",
        west.mesh,
        west.gateway_id()
    );
    east.peer("west", &spec);
}

#[tokio::test]
async fn what_a_peer_said_before_it_fell_silent_holds_or_is_dropped() {
    let silent = async |is_dropped: bool, expected: &str| {
        let two = Box::pin(Two::new()).await;
        let (east, west) = (&two.pair.east, &two.pair.west);
        if is_dropped {
            forgets(&east.cluster, &west.cluster);
            east.process.message("ZG0120 configuration applied").await;
        }
        two.orders.kill().await;
        until_levels(east, "orders", &[0.0, 1.0]).await;
        west.process.freeze().await;
        east.process
            .message("ZG0430 a peer's gateway has stopped reporting")
            .await;
        let shares = east
            .until("orders", expected, |now| statuses(now)[0] == expected)
            .await;
        // What is forgotten is as if it had never been said.
        let at_west = if is_dropped { 1.0 } else { 0.0 };
        assert_eq!(levels(&shares)[0], at_west);
        let stale = gateway_of(east, "west").await["report"]["stale"].clone();
        assert_eq!(stale, true);
        let told = events(east, "endpoint-reported").await;
        assert_eq!(told.len(), if is_dropped { 2 } else { 1 }, "{told:?}");
        west.process.signal(Signal::CONT);
        east.until("orders", "its word to count again", |now| {
            statuses(now)[0] == "empty"
        })
        .await;
        two.pair.finish().await;
    };
    // Each is silent for ten seconds.
    tokio::join!(
        Box::pin(silent(false, "empty-once")),
        Box::pin(silent(true, "healthy"))
    );
}

#[tokio::test]
async fn a_gateway_that_is_killed_is_left_as_it_stood_until_its_traffic_says_more() {
    let two = Box::pin(Two::new()).await;
    let east = &two.pair.east;
    two.pair.west.process.signal(Signal::KILL);
    let gateway = until_state(east, "west", "reaching").await;
    assert_eq!(gateway["behind"][0]["healthy"], 1, "{gateway}");
    let labels = [("peer", "west")];
    east.process
        .metric_becomes("zeugma_peer_reporting", &labels, 0.0)
        .await;
    for name in ["orders", "carts"] {
        assert_eq!(levels(&east.shares(name).await), [1.0, 0.0]);
        // No request is lost: what cannot be connected is tried elsewhere.
        assert_eq!(get(east.apps(), &host(name), "/").await.text(), "backup");
    }
    let mut next = two
        .pair
        .west
        .cluster
        .spawn(mesh_command(&two.pair.west.cluster));
    next.message("ZG0901 gateway ready").await;
    until_state(east, "west", "reporting").await;
    next.signal(Signal::TERM);
    next.ended().await;
}

fn mesh_command(cluster: &Cluster) -> Command {
    crate::mesh::Gateway::command(&cluster.config())
}

#[tokio::test]
async fn a_gateway_on_its_way_out_serves_until_it_is_gone_and_no_request_finds_that_out() {
    let mut west = Cluster::new("west");
    west.set("drain", "{ delay: 30s, timeout: 5s }");
    let two = Box::pin(Two::of(Cluster::new("east"), west)).await;
    let (east, west) = (&two.pair.east, &two.pair.west);
    west.process.signal(Signal::TERM);
    eventually("west to say that it leaves", async || {
        let report = gateway_of(east, "west").await["report"].clone();
        (report["presence"] == "leaving").then_some(())
    })
    .await;
    // It still accepts, and there is no other gateway of west's.
    for name in ["orders", "carts"] {
        assert_eq!(levels(&east.shares(name).await), [1.0, 0.0]);
        assert_eq!(get(east.apps(), &host(name), "/").await.text(), name);
    }
    west.process.signal(Signal::INT);
    for name in ["orders", "carts"] {
        let shares = until_levels(east, name, &[0.0, 1.0]).await;
        assert_eq!(statuses(&shares), ["empty", "healthy"]);
        assert_eq!(get(east.apps(), &host(name), "/").await.text(), "backup");
    }
    let report = gateway_of(east, "west").await["report"].clone();
    assert_eq!(report["presence"], "gone", "{report}");
    (east
        .process
        .message("ZG0428 a peer's gateway is gone, as it reported"))
    .await;
    let line = (west.process)
        .log(|line| line["sni"] == SNI && line["kind"] == "connection")
        .await;
    assert_eq!(line["verdict"], "completed", "{line}");
    assert_eq!(east.counted("zeugma_retries_total", &[]).await, 0.0);
    assert_eq!(events(east, "endpoint-ejected").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_successor_reports_on_and_nothing_moves() {
    let two = Box::pin(Two::new()).await;
    let (east, west) = (&two.pair.east, &two.pair.west);
    let before = gateway_of(east, "west").await["report"]["last"].clone();
    let next = west.cluster.take_over().await;
    // Its predecessor has ended, and reports come.
    next.message("ZG0901 gateway ready").await;
    eventually("reports of the successor", async || {
        let report = gateway_of(east, "west").await["report"].clone();
        (report["state"] == "reporting" && report["last"] != before).then_some(())
    })
    .await;
    assert_eq!(events(east, "endpoint-reported").await, Vec::<Value>::new());
    for name in ["orders", "carts"] {
        assert_eq!(get(east.apps(), &host(name), "/").await.text(), name);
    }
    next.finish().await;
}

/// Two clusters of which west does not report to east, for it has no place left while these are kept:
/// what a refusal does is seen where no report came before it.
pub(crate) async fn without_reports(east_routes: &str, west_routes: &str) -> (Pair, Vec<Asked>) {
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let west = Box::pin(Gateway::of(west, west_routes)).await;
    let places = take_places(&east.gateway_identity(), west.cluster.mesh).await;
    let east = Box::pin(Gateway::of(east, east_routes)).await;
    (Pair { east, west }, places)
}

/// Takes every place that there is for one peer.
async fn take_places(gateway: &Identity, mesh: SocketAddr) -> Vec<Asked> {
    let mut all = Vec::new();
    for nth in 0..64 {
        let mut told = within("an answer", ask(gateway, mesh)).await.unwrap();
        assert_eq!(told.head.headers().get("grpc-status"), None, "{nth}");
        told.next().await.unwrap();
        all.push(told);
    }
    all
}

#[tokio::test]
async fn a_peer_that_has_none_of_its_own_is_not_asked() {
    let backup = HttpService::start("backup");
    let far = http_route("hello", &["backends: [{ peer: east }]"]);
    let pair = Box::pin(Pair::new(&near("hello", &backup), &far)).await;
    let shares = until_levels(&pair.east, "hello", &[0.0, 1.0]).await;
    assert_eq!(statuses(&shares), ["empty", "healthy"]);
    assert_eq!(pair.east.get("/").await.text(), "backup");
    assert_eq!(tried(&pair.east, "hello", "west").await, 0.0);
    pair.finish().await;
}

/// A caller that asks as a gateway does.
async fn ask(identity: &Identity, address: SocketAddr) -> std::io::Result<Asked> {
    let tls = identity.dial(address, SNI, &[ALPN]).await?;
    Asked::over(tls).await
}

/// An answer that comes.
pub(crate) struct Asked {
    head: Response<()>,
    body: RecvStream,
    _connection: JoinSet<()>,
}

impl Asked {
    async fn over(tls: TlsStream<TcpStream>) -> std::io::Result<Self> {
        let failed = |error: h2::Error| match error.into_io() {
            Some(io) => io,
            None => std::io::Error::other("HTTP/2"),
        };
        let (mut sender, connection) = h2::client::handshake(tls).await.map_err(failed)?;
        let mut driving = JoinSet::new();
        driving.spawn(async move {
            // The stream sees how it ends.
            connection.await.ok();
        });
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failed)?;
        let uri = format!("https://{SNI}/zeugma.peer.v1.Health/Watch");
        let request = Request::post(uri).body(()).unwrap();
        let (answer, mut stream) = sender.send_request(request, false).map_err(failed)?;
        stream
            .send_data(Bytes::from_static(&[0; 5]), true)
            .map_err(failed)?;
        let (head, body) = answer.await.map_err(failed)?.into_parts();
        Ok(Self {
            head: Response::from_parts(head, ()),
            body,
            _connection: driving,
        })
    }

    /// The next bytes.
    async fn next(&mut self) -> Option<Bytes> {
        let data = within("a message", self.body.data()).await?.unwrap();
        self.body
            .flow_control()
            .release_capacity(data.len())
            .unwrap();
        Some(data)
    }

    /// The trailers, past all that comes before.
    async fn ended(&mut self) -> HeaderMap {
        while self.next().await.is_some() {}
        within("trailers", self.body.trailers())
            .await
            .unwrap()
            .unwrap_or_default()
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// East, with a route exported to west and one to nobody, and west's identity; no gateway of west's.
async fn east_alone() -> (Gateway, Cluster, HttpService) {
    let service = HttpService::start("own");
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let hidden = crate::data_mesh::near_route("hidden", &[&backends]);
    let routes = [http_route("hello", &[&backends]), hidden].concat();
    let east = Box::pin(Gateway::of(east, &routes)).await;
    (east, west, service)
}

#[tokio::test]
async fn nobody_but_a_gateway_of_a_peer_is_told_anything() {
    let (east, mut west, _service) = Box::pin(east_alone()).await;
    let mesh = east.cluster.mesh;
    let gateway = west.gateway_identity();
    let mut told = within("an answer", ask(&gateway, mesh)).await.unwrap();
    let first = told.next().await.unwrap();
    assert!(
        holds(&first, HELLO) && !holds(&first, "hidden"),
        "{first:?}"
    );
    // A beat: a message without a field.
    assert_eq!(told.next().await.unwrap(), Bytes::from_static(&[0; 5]));
    // One of its trust domain that is no gateway of it, and one of our own.
    let mut us = Cluster::new("east");
    us.trust("west.example");
    for stranger in [
        west.identity("ns/demo/sa/cart"),
        us.identity("ns/demo/sa/cart"),
    ] {
        let Err(refused) = within("a refusal", ask(&stranger, mesh)).await else {
            panic!("a stranger was told");
        };
        // HTTP/2 keeps the text alone.
        assert!(
            refused.to_string().ends_with("alert: AccessDenied"),
            "{refused}"
        );
    }
    let line = east
        .process
        .log(|line| line["verdict"] == "not-a-gateway")
        .await;
    assert_eq!(line["code"], "ZG0434", "{line}");
    // Who does not say what it wants to speak is not known by that name.
    let mut tls = gateway
        .dial(mesh, SNI, &[b"h2"])
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(alert_of(&tls), AlertDescription::UnrecognisedName);
    tls = gateway
        .dial(east.apps(), SNI, &[ALPN])
        .await
        .map(drop)
        .unwrap_err();
    assert_eq!(alert_of(&tls), AlertDescription::UnrecognisedName);
    drop(told);
    let line = east
        .process
        .log(|line| line["verdict"] == "completed" || line["verdict"] == "downstream-closed")
        .await;
    assert_eq!(line["sni"], SNI, "{line}");
    east.process.finish().await;
}

#[tokio::test]
async fn a_peer_that_is_removed_is_told_no_more() {
    let (east, west, _service) = Box::pin(east_alone()).await;
    let gateway = west.gateway_identity();
    let mut told = within("an answer", ask(&gateway, east.cluster.mesh))
        .await
        .unwrap();
    told.next().await.unwrap();
    let listed = east.process.admin_json("/api/v1/connections").await;
    let mut kinds = listed["carried"]["connections"].as_array().unwrap().iter();
    assert!(kinds.any(|one| one["kind"] == "reports"), "{listed}");
    std::fs::remove_file(east.cluster.config().join("peer-west.yaml")).unwrap();
    assert_eq!(told.ended().await["grpc-status"], "7");
    let line = east
        .process
        .log(|line| line["verdict"] == "no-longer-served")
        .await;
    assert_eq!(line["sni"], SNI, "{line}");
    east.process.finish().await;
}

#[tokio::test]
async fn what_a_peer_may_not_ask_or_not_so_often_is_refused() {
    let (east, west, _service) = Box::pin(east_alone()).await;
    let gateway = west.gateway_identity();
    let mesh = east.cluster.mesh;
    let mut all = take_places(&gateway, mesh).await;
    let one_more = within("an answer", ask(&gateway, mesh)).await.unwrap();
    assert_eq!(one_more.head.headers()["grpc-status"], "8");
    let line = east
        .process
        .log(|line| line["verdict"] == "report-limit")
        .await;
    assert_eq!(line["code"], "ZG0435", "{line}");
    // A place that is left is another's.
    all.pop();
    eventually("a place", async || {
        let told = ask(&gateway, mesh).await.unwrap();
        told.head
            .headers()
            .get("grpc-status")
            .is_none()
            .then_some(())
    })
    .await;
    // Who connects and asks nothing of it, or something else.
    let tls = gateway.dial(mesh, SNI, &[ALPN]).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(tls).await.unwrap();
    let _driving = tokio::spawn(connection);
    let other = Request::get(format!("https://{SNI}/other"))
        .body(())
        .unwrap();
    poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
    let (answer, _) = sender.send_request(other, true).unwrap();
    let answer = within("an answer", answer).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "12");
    drop(all);
    east.process.finish().await;
}

#[tokio::test]
async fn who_does_not_ask_does_not_read_or_does_not_answer_is_let_go() {
    let service = HttpService::start("own");
    let (mut east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    east.set("limits", "{ headerTimeout: 1s }");
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let east = Box::pin(Gateway::of(east, &http_route("hello", &[&backends]))).await;
    let (gateway, mesh) = (west.gateway_identity(), east.cluster.mesh);
    let dial = || gateway.dial(mesh, SNI, &[ALPN]);
    // Nothing is asked.
    let _idle = dial().await.unwrap();
    // There is never room for an answer.
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(0);
    let tls = dial().await.unwrap();
    let (mut sender, connection) = builder.handshake::<_, Bytes>(tls).await.unwrap();
    let _driving = tokio::spawn(connection);
    let request = || {
        let uri = format!("https://{SNI}/zeugma.peer.v1.Health/Watch");
        Request::post(uri).body(()).unwrap()
    };
    poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
    let (_answer, _stream) = sender.send_request(request(), true).unwrap();
    // Nobody is there any more: what comes is not even looked at.
    let tls = dial().await.unwrap();
    let (mut gone, mut connection) = h2::client::handshake(tls).await.unwrap();
    let (answer, _stream) = gone.send_request(request(), true).unwrap();
    tokio::select! {
        answer = answer => assert_eq!(answer.unwrap().status(), 200),
        ended = &mut connection => panic!("{ended:?}"),
    }
    let process = &east.process;
    let line = process.log(|line| line["verdict"] == "hello-timeout").await;
    assert_eq!(line["sni"], SNI, "{line}");
    for why in ["is not read for 10s", "answered no PING"] {
        let line = process.log(|line| {
            let error = line["error"].as_str();
            error.is_some_and(|error| error.contains(why))
        });
        let line = line.await;
        assert_eq!(line["verdict"], "downstream-closed", "{line}");
        assert_eq!(line["sni"], SNI, "{line}");
    }
    assert_eq!(east.get("/").await.text(), "own");
}

/// What stands where a peer's gateway would.
#[derive(Clone)]
enum Stand {
    /// TLS without any protocol, as an older gateway's for TCP.
    NoProtocol,
    /// TLS that knows HTTP/2 alone.
    Http,
    /// It speaks of its health by these bytes, again and again if `true`.
    Says(Vec<u8>, bool),
    /// It answers with another status.
    NotFound,
    /// It takes the question and says nothing.
    Mute,
    /// It says that it leaves, and is full from then on; how often it was asked.
    LeavesAndIsFull(Arc<AtomicUsize>),
}

/// Has east take what stands there for the gateway of its peer west.
fn stands_for(east: &Cluster, west: &Cluster, address: SocketAddr) {
    let spec = format!(
        "
        cluster: west
        locality: west/west-1
        gateways: ['{address}']
        spiffeIDs: ['{}']",
        west.gateway_id()
    );
    east.peer("west", &spec);
}

/// Serves that at an address of its own.
async fn stand(identity: &Identity, what: Stand) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let alpn: &'static [&'static [u8]] = match what {
        Stand::NoProtocol => &[],
        Stand::Http => &[b"h2"],
        Stand::Says(..) | Stand::NotFound | Stand::Mute | Stand::LeavesAndIsFull(_) => &[ALPN],
    };
    let identity = identity.clone();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let (identity, what) = (identity.clone(), what.clone());
            open.spawn(async move {
                // What goes wrong is seen at the other end.
                stand_on(identity.accept(tcp, alpn), what).await;
            });
        }
    });
    (address, tasks)
}

async fn stand_on(accepting: Accept<TcpStream>, what: Stand) -> Option<()> {
    let mut tls = accepting.await.ok()?;
    if matches!(what, Stand::NoProtocol | Stand::Http) {
        return tls.read(&mut [0; 64]).await.ok().map(drop);
    }
    let mut connection = h2::server::handshake(tls).await.ok()?;
    let (_, mut respond) = connection.accept().await?.ok()?;
    let driving = async { while connection.accept().await.is_some() {} };
    let answering = async {
        let mut head = Response::new(());
        let (bytes, is_endless) = match what {
            Stand::Says(bytes, is_endless) => (bytes, is_endless),
            Stand::Mute => return std::future::pending().await,
            Stand::LeavesAndIsFull(asked) => {
                let is_first = asked.fetch_add(1, Ordering::SeqCst) == 0;
                let status = if is_first { "14" } else { "8" };
                let kind = http::HeaderValue::from_static("application/grpc");
                head.headers_mut().insert("content-type", kind);
                let mut stream = respond.send_response(head, false).ok()?;
                if is_first {
                    // Whole, and draining.
                    let leaving = Bytes::from(framed(&[0x08, 1, 0x10, 1]));
                    stream.send_data(leaving, false).ok()?;
                }
                let status = http::HeaderValue::from_static(status);
                let trailers = HeaderMap::from_iter([(STATUS, status)]);
                stream.send_trailers(trailers).ok()?;
                return std::future::pending().await;
            }
            Stand::NoProtocol | Stand::Http | Stand::NotFound => {
                *head.status_mut() = http::StatusCode::NOT_FOUND;
                respond.send_response(head, true).ok()?;
                return std::future::pending().await;
            }
        };
        let kind = http::HeaderValue::from_static("application/grpc");
        head.headers_mut().insert("content-type", kind);
        let mut stream = respond.send_response(head, false).ok()?;
        loop {
            let mut rest = Bytes::from(bytes.clone());
            while !rest.is_empty() {
                stream.reserve_capacity(rest.len());
                let room = poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
                let part = rest.split_to(room.min(rest.len()));
                stream.send_data(part, false).ok()?;
            }
            if !is_endless {
                return std::future::pending().await;
            }
        }
    };
    tokio::select! {
        () = driving => None,
        done = answering => done,
    }
}

#[tokio::test]
async fn a_gateway_that_knows_nothing_of_us_reports_nothing_and_serves_as_ever() {
    let (backup, remote) = (HttpService::start("backup"), HttpService::start("remote"));
    for (peers_of_west, why) in [(0, "UnrecognisedName"), (1, "AccessDenied")] {
        let (east, west) = (Cluster::new("east"), Cluster::new("west"));
        east.meet(&west);
        std::fs::remove_file(west.config().join("peer-east.yaml")).unwrap();
        if peers_of_west > 0 {
            let north = "cluster: north\nlocality: north/n-1\ngateways: ['192.0.2.1:1']\n\
                         spiffeIDs: ['spiffe://north.example/gw']";
            west.peer("north", north);
        }
        let west = Box::pin(Gateway::of(west, &far("hello", &[&remote]))).await;
        let east = Box::pin(Gateway::of(east, &near("hello", &backup))).await;
        let gateway = until_state(&east, "west", "does-not-report").await;
        let said = gateway["report"]["why"].as_str().unwrap().to_owned();
        assert!(said.ends_with(why), "{said}");
        assert_eq!(levels(&east.shares("hello").await), [1.0, 0.0]);
        east.process
            .message("ZG0432 a peer's gateway does not report")
            .await;
        drop((east, west));
    }
}

/// A message of `zeugma-peer/1`.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat()
}

/// A whole report of one service, by its bytes.
fn whole(service: &[u8]) -> Vec<u8> {
    let length = u8::try_from(service.len()).unwrap();
    framed(&[&[0x08, 1, 0x22, length], service].concat())
}

/// One healthy of two at `HELLO`, port 80, each of weight 1; `healthy` is what is said to be healthy.
fn service(name: &str, healthy: u8) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap();
    let mut bytes = vec![0x0a, length];
    bytes.extend(name.as_bytes());
    bytes.extend([0x10, 80, 0x20, healthy, 0x28, 2, 0x31]);
    bytes.extend(f64::from(healthy).to_le_bytes());
    bytes.push(0x39);
    bytes.extend(2.0f64.to_le_bytes());
    bytes
}

#[tokio::test]
async fn what_is_no_report_is_told_and_the_peer_is_judged_by_its_traffic() {
    let cases: [(&str, Stand, &str, &str); 13] = [
        ("l", Stand::Mute, "reaching", "no answer in time"),
        (
            "m",
            Stand::Says(Vec::new(), false),
            "reaching",
            "nothing came for 10s",
        ),
        (
            "a",
            Stand::NoProtocol,
            "does-not-report",
            "does not speak zeugma-peer/1",
        ),
        (
            "b",
            Stand::Http,
            "does-not-report",
            "the alert NoApplicationProtocol",
        ),
        ("c", Stand::NotFound, "does-not-report", "answers 404"),
        (
            "d",
            Stand::Says(vec![0xff; 600], false),
            "malformed",
            "compressed",
        ),
        (
            "e",
            Stand::Says(vec![0, 0xff, 0, 0, 0], false),
            "malformed",
            "a message of 4278190080 bytes",
        ),
        (
            "f",
            Stand::Says(framed(&[0xff; 40]), false),
            "malformed",
            "no message",
        ),
        (
            "g",
            Stand::Says(framed(&[]), false),
            "malformed",
            "before the first whole report",
        ),
        (
            "h",
            Stand::Says(whole(&service("no host", 1)), false),
            "malformed",
            "a host that is none",
        ),
        (
            "i",
            Stand::Says(whole(&service(HELLO, 3)), false),
            "malformed",
            "3 of 2 healthy",
        ),
        (
            "j",
            Stand::Says(whole(&service(HELLO, 1)), true),
            "malformed",
            "more than may be said within",
        ),
        (
            "k",
            Stand::Says(whole(&service("nobody.asked.for.it", 0)), false),
            "reporting",
            "",
        ),
    ];
    let (mut east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    east.set("workers", "1");
    std::fs::remove_file(east.config().join("peer-west.yaml")).unwrap();
    let identity = west.gateway_identity();
    let own = HttpService::start("own");
    let mut standing = Vec::new();
    let mut backends = vec![format!("{{ {} }}", endpoints(&[own.address()]))];
    for (name, what, ..) in &cases {
        let (address, tasks) = stand(&identity, what.clone()).await;
        let spec = format!(
            "
            cluster: {name}
            locality: far/{name}
            gateways: ['{address}']
            spiffeIDs: ['{}']",
            west.gateway_id()
        );
        east.peer(name, &spec);
        backends.push(format!("{{ peer: {name} }}"));
        standing.push(tasks);
    }
    let backends = format!("backends: [{}]", backends.join(", "));
    let east = Box::pin(Gateway::of(east, &http_route("hello", &[&backends]))).await;
    for (name, _, state, why) in &cases {
        let what = format!("{name} to be {state}: {why}");
        let gateway = eventually(&what, async || {
            let gateway = gateway_of(&east, name).await;
            let said = gateway["report"]["why"].as_str().unwrap_or_default();
            let is_it = gateway["report"]["state"] == **state && said.contains(why);
            is_it.then_some(gateway)
        })
        .await;
        // Nothing is known of it, and that is as it was.
        assert_eq!(gateway["healthy"], gateway["total"], "{name}");
        assert_eq!(gateway["behind"], Value::Array(Vec::new()), "{name}");
    }
    east.process
        .message("ZG0433 what a peer's gateway reports is no report")
        .await;
    east.process
        .message("ZG0432 a peer's gateway does not report")
        .await;
    east.process
        .message("ZG0431 a peer's gateway reports")
        .await;
    assert_eq!(east.get("/").await.text(), "own");
    east.process.finish().await;
}

/// A gateway that said it would leave and then has no place for another question is there.
#[tokio::test]
async fn a_gateway_that_is_full_is_not_taken_for_gone() {
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let asked = Arc::new(AtomicUsize::new(0));
    let full = Stand::LeavesAndIsFull(Arc::clone(&asked));
    let (address, _tasks) = stand(&west.gateway_identity(), full).await;
    stands_for(&east, &west, address);
    let route = http_route("hello", &["backends: [{ peer: west }]"]);
    let east = Box::pin(Gateway::of(east, &route)).await;
    east.process
        .message("ZG0431 a peer's gateway reports")
        .await;
    eventually("to be asked again, and once more", async || {
        (asked.load(Ordering::SeqCst) > 2).then_some(())
    })
    .await;
    let gateway = gateway_of(&east, "west").await;
    let why = gateway["report"]["why"].as_str().unwrap();
    assert!(why.contains("no place for another"), "{gateway}");
    assert_eq!(statuses(&east.shares("hello").await), ["healthy"]);
    assert!(
        !east.process.told().contains("ZG0428"),
        "{}",
        east.process.told()
    );
    east.process.finish().await;
}

/// An answer as one piece: that the gateway is on its way out, and the end of the connection.
fn leaving_at_once() -> Vec<u8> {
    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    let head = [b"\x88\x5f\x10", &b"application/grpc"[..]].concat();
    let trailers = [&b"\x40\x0bgrpc-status"[..], b"\x0214"].concat();
    [
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &head),
        // Whole, and draining.
        frame(0, 0, 1, &framed(&[0x08, 1, 0x10, 1])),
        frame(1, 5, 1, &trailers),
        frame(7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
    ]
    .concat()
}

/// What comes together with the end of the connection is heard; and a gateway that could still be
/// connected on its way out, but did not answer any more, is gone when it cannot.
#[tokio::test]
async fn the_last_words_of_a_gateway_are_heard_however_it_ends() {
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let identity = west.gateway_identity();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let standing = tokio::spawn(async move {
        for said in [leaving_at_once(), Vec::new()] {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tls = identity.accept(tcp, &[ALPN]).await.unwrap();
            let mut asked = Vec::new();
            while !holds(&asked, "PRI * HTTP/2.0") || (!said.is_empty() && !ends_a_stream(&asked)) {
                assert!(tls.read_buf(&mut asked).await.unwrap() > 0);
            }
            tls.write_all(&said).await.unwrap();
            tls.shutdown().await.unwrap();
        }
    });
    stands_for(&east, &west, address);
    let backup = HttpService::start("backup");
    let east = Box::pin(Gateway::of(east, &near("hello", &backup))).await;
    (east.process)
        .message("ZG0428 a peer's gateway is gone, as it reported")
        .await;
    standing.await.unwrap();
    until_levels(&east, "hello", &[0.0, 1.0]).await;
    let report = gateway_of(&east, "west").await["report"].clone();
    assert_eq!(report["presence"], "gone", "{report}");
    east.process.finish().await;
}

/// Whether a frame of what a client of HTTP/2 sent ends its stream.
fn ends_a_stream(mut sent: &[u8]) -> bool {
    sent = sent.get(24..).unwrap_or_default();
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = sent {
        if *kind == 0 && flags & 1 == 1 {
            return true;
        }
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        sent = rest.get(length..).unwrap_or_default();
    }
    false
}

#[tokio::test]
async fn who_answers_must_be_the_peers_gateway() {
    let (east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let stranger = west.identity("ns/demo/sa/cart");
    let says = Stand::Says(whole(&service(HELLO, 0)), false);
    let (address, _tasks) = stand(&stranger, says).await;
    stands_for(&east, &west, address);
    let east = Box::pin(Gateway::of(
        east,
        &http_route("hello", &["backends: [{ peer: west }]"]),
    ))
    .await;
    let east = Arc::new(east);
    eventually("a refusal", async || {
        let report = gateway_of(&east, "west").await["report"].clone();
        let why = report["why"].as_str()?;
        assert_eq!(report["state"], "reaching", "{report}");
        why.contains("cart").then_some(())
    })
    .await;
    assert_eq!(statuses(&east.shares("hello").await), ["healthy"]);
}
