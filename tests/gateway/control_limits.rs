//! Workers, and every limit at its edge: what is let in, what is shed, with what reason, and that a
//! place that is free again is given again.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use http::{Request, Response};
use hyper::client::conn;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;

use crate::mesh::hello::{alert, hello, rest};
use crate::mesh::{
    Body, Cluster, Gateway, Service, collect, empty, eventually, full, get, h1, h2, send, within,
};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// `orders` for this cluster's own workloads, with these further lines.
fn orders(cluster: &Cluster, endpoint: SocketAddr, more: &str) {
    cluster.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{endpoint}'] }}]
            allow: [{{ listeners: [apps] }}, {{ from: ['spiffe://west.example/*'] }}]
            export: {{ to: ['*'] }}
            {more}"
        ),
    );
}

/// A one-route listener `db` and its TCP route, with these further lines.
fn db(cluster: &mut Cluster, endpoint: SocketAddr, more: &str) -> SocketAddr {
    let address = cluster.listen("db", "role: workloads, route: shop/db");
    cluster.route(
        "shop/db",
        &format!(
            "
            port: 5432
            backends: [{{ endpoints: ['{endpoint}'] }}]
            allow: [{{ listeners: [db] }}]
            {more}"
        ),
    );
    address
}

fn request() -> Request<Body> {
    let request = Request::get("/").header("host", ORDERS).body(empty());
    request.unwrap()
}

/// A connection of its own for each request, so that workers share them.
async fn sender(address: SocketAddr) -> conn::http1::SendRequest<Body> {
    h1(TcpStream::connect(address).await.unwrap()).await
}

async fn echoes(tcp: &mut TcpStream) {
    tcp.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    within("an echo", tcp.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(&answer, b"ping");
}

/// A connection that is carried: a byte went there and back.
async fn echoing(address: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    echoes(&mut tcp).await;
    tcp
}

/// A connection that ends before a byte; its verdict.
async fn shed(gateway: &Gateway, address: SocketAddr) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let source = tcp.local_addr().unwrap();
    let mut byte = [0];
    let end = within("the end", tcp.read(&mut byte)).await;
    assert_eq!(end.unwrap_or(0), 0);
    let line = gateway.connection(source).await;
    line["verdict"].as_str().unwrap().to_owned()
}

/// A service that answers each request when the test says so.
async fn gated() -> (Arc<Semaphore>, Arc<Semaphore>, Service) {
    let (arrived, gate) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (at, through) = (Arc::clone(&arrived), Arc::clone(&gate));
    let service = Service::handling(move |_request| {
        at.add_permits(1);
        let through = Arc::clone(&through);
        async move {
            through.acquire().await.unwrap().forget();
            Response::new(full("late"))
        }
    })
    .await;
    (arrived, gate, service)
}

async fn arrive(arrived: &Semaphore, count: u32) {
    let all = within("requests at the service", arrived.acquire_many(count)).await;
    all.unwrap().forget();
}

/// The names of its threads.
fn workers(gateway: &Gateway) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", gateway.pid())).unwrap();
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.starts_with("worker-"))
        .count()
}

/// A folder of the control groups for processors; gone when dropped.
struct Group(PathBuf);

impl Group {
    /// One with the quota of a single processor; `None` where none can be made.
    fn of_one_processor() -> Option<Self> {
        let name = format!("zeugma-test-{}", std::process::id());
        let v2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
        let has_cpu = v2.is_ok_and(|all| all.split_whitespace().any(|one| one == "cpu"));
        let (root, quota) = if has_cpu {
            ("/sys/fs/cgroup", vec![("cpu.max", "100000 100000")])
        } else {
            let period = ("cpu.cfs_period_us", "100000");
            (
                "/sys/fs/cgroup/cpu",
                vec![period, ("cpu.cfs_quota_us", "100000")],
            )
        };
        let group = Self(PathBuf::from(root).join(name));
        fs::create_dir(&group.0).ok()?;
        for (file, value) in quota {
            fs::write(group.0.join(file), value).ok()?;
        }
        Some(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        fs::remove_dir(&self.0).ok();
    }
}

#[expect(clippy::print_stderr, reason = "what is not tested is told")]
fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

#[tokio::test]
async fn there_are_as_many_workers_as_processors_it_may_use_or_as_written() {
    let mut east = Cluster::new("east");
    east.unset("workers");
    let gateway = east.start_under(&["taskset", "-c", "0"]).await;
    assert_eq!(workers(&gateway), 1, "by affinity");
    gateway.finish().await;
    let gateway = east.start().await;
    let available = std::thread::available_parallelism().unwrap().get();
    assert_eq!(workers(&gateway), available);
    gateway.finish().await;
    match Group::of_one_processor() {
        None => skip("no control group with a quota can be made here"),
        Some(group) => {
            let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", group.0.display());
            let gateway = east.start_under(&["sh", "-c", &enter, "sh"]).await;
            assert_eq!(workers(&gateway), 1, "by quota");
            gateway.finish().await;
        }
    }
    east.set("workers", "3");
    let gateway = east.start_under(&["taskset", "-c", "0"]).await;
    assert_eq!(workers(&gateway), 3, "as written");
    gateway.finish().await;
}

#[tokio::test]
async fn a_connection_goes_to_the_worker_that_has_fewest() {
    let service = Service::echo().await;
    let mut east = Cluster::new("east");
    let db = db(&mut east, service.address, "");
    east.set("workers", "4");
    let gateway = east.start().await;
    let by_worker = async || {
        let metrics = gateway.metrics().await;
        ["0", "1", "2", "3"]
            .map(|nth| metrics.value("zeugma_worker_connections", &[("worker", nth)]))
    };
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(echoing(db).await);
    }
    assert_eq!(by_worker().await, [2.0; 4]);
    // Whoever has lost some gets the next ones.
    open.truncate(3);
    eventually("five have ended", async || {
        (by_worker().await.iter().sum::<f64>() == 3.0).then_some(())
    })
    .await;
    for _ in 0..5 {
        open.push(echoing(db).await);
    }
    assert_eq!(by_worker().await, [2.0; 4]);
    drop(open);
    gateway
        .metric_becomes("zeugma_worker_connections", &[], 0.0)
        .await;
    gateway.finish().await;
}

#[tokio::test]
async fn few_open_files_lower_the_limit_of_connections_and_it_is_said() {
    let service = Service::echo().await;
    let mut east = Cluster::new("east");
    let db = db(&mut east, service.address, "");
    // By hand: half of 160 is for connections of two descriptors each.
    let gateway = east.start_under(&["prlimit", "--nofile=160:160"]).await;
    let told = gateway
        .message("ZG0924 limits.connections is more than")
        .await;
    assert!(
        told.contains("at most 40 connections") && told.contains("LimitNOFILE=100128"),
        "{told}"
    );
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_connections_limit", &[]), 40.0);
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(echoing(db).await);
    }
    for address in [db, east.apps, east.mesh] {
        assert_eq!(shed(&gateway, address).await, "connection-limit");
    }
    open.pop();
    let listeners = [("listener", "db")];
    gateway
        .metric_becomes("zeugma_connections_open", &listeners, 39.0)
        .await;
    open.push(echoing(db).await);
    assert_eq!(shed(&gateway, db).await, "connection-limit");
    for tcp in &mut open {
        echoes(tcp).await;
    }
    drop(open);
    gateway.finish().await;

    // Enough of them: nothing to say.
    east.set("limits", "{ connections: 36 }");
    let gateway = east.start_under(&["prlimit", "--nofile=100:200"]).await;
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_connections_limit", &[]), 36.0);
    assert!(
        !gateway.told().contains("limits.connections"),
        "raised to the hard limit"
    );
    gateway.finish().await;
}

#[tokio::test]
async fn so_many_handshakes_are_under_way_and_what_is_open_does_not_count() {
    let service = Service::echo().await;
    let mut east = Cluster::new("east");
    let caller = east.identity("ns/shop/sa/cart");
    let db = db(&mut east, service.address, "");
    let web = Service::http("orders").await;
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ from: ['spiffe://east.example/*'] }}]",
            web.address
        ),
    );
    east.set("limits", "{ handshakes: 2 }");
    let gateway = east.start().await;
    // Plaintext and TLS that are through it: as many as there may be, and more.
    let mut open = Vec::new();
    let mut sessions = Vec::new();
    for _ in 0..3 {
        open.push(echoing(db).await);
        let mut session = caller.dial(east.apps, ORDERS, &[b"h2"]).await.unwrap();
        // The caller is through before the gateway is, which tells by its first byte.
        within("SETTINGS", session.read_u8()).await.unwrap();
        sessions.push(session);
    }
    let half = async || {
        let mut tcp = TcpStream::connect(east.apps).await.unwrap();
        tcp.write_all(&hello(Some(ORDERS.as_bytes()))[..7])
            .await
            .unwrap();
        tcp
    };
    let one = half().await;
    let two = half().await;
    assert_eq!(shed(&gateway, east.apps).await, "handshake-limit");
    assert_eq!(shed(&gateway, db).await, "handshake-limit");
    for tcp in &mut open {
        echoes(tcp).await;
    }
    // A place that is free again is given again.
    drop(one);
    eventually("a place", async || {
        caller.dial(east.apps, ORDERS, &[b"h2"]).await.ok()
    })
    .await;
    drop((two, sessions, open));
    gateway.finish().await;
}

fn descriptors(gateway: &Gateway) -> usize {
    let table = fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap();
    table.count()
}

#[tokio::test]
async fn without_descriptors_accepting_waits_and_what_is_open_goes_on() {
    const FILES: usize = 100;
    let service = Service::echo().await;
    let mut east = Cluster::new("east");
    let db = db(&mut east, service.address, "");
    let gateway = east.start_under(&["prlimit", "--nofile=100:100"]).await;
    let mut open = echoing(db).await;
    let mut scraper = sender(east.metrics).await;
    // Somebody holds all the rest, at once: an interface ends who asks nothing for long, the scraper
    // too.
    let mut hoard = Vec::new();
    eventually("no descriptor left", async || {
        for _ in 0..16 {
            hoard.push(TcpStream::connect(east.probes).await.ok());
        }
        // One that was inherited may have a number beyond the limit.
        (descriptors(&gateway) >= FILES).then_some(())
    })
    .await;
    // More wait for each that becomes free.
    for _ in 0..20 {
        hoard.push(TcpStream::connect(east.probes).await.ok());
    }
    let labels = [("listener", "db")];
    let mut late = Vec::new();
    eventually("several tries", async || {
        scraper.ready().await.unwrap();
        let scrape = Request::get("/metrics").header("host", "localhost");
        let scrape = scraper.send_request(scrape.body(empty()).unwrap());
        let metrics = crate::mesh::Metrics(collect(scrape.await.unwrap()).await.text());
        let errors = metrics.value("zeugma_accept_errors_total", &labels);
        if errors == 0.0 && late.len() < 8 {
            let mut tcp = TcpStream::connect(db).await.unwrap();
            tcp.write_all(b"ping").await.unwrap();
            late.push(tcp);
        }
        (errors >= 5.0).then_some(())
    })
    .await;
    let mut late = late.pop().unwrap();
    echoes(&mut open).await;
    let told = gateway.messages_so_far();
    let told: Vec<_> = told
        .iter()
        .filter(|line| line.contains("ZG0921 cannot accept;"))
        .collect();
    assert_eq!(told.len(), 1, "once, not with every try: {told:?}");
    drop(hoard);
    // What waited in the queue meanwhile is served.
    let mut answer = [0; 4];
    within("an echo", late.read_exact(&mut answer))
        .await
        .unwrap();
    gateway.message("ZG0922 accepting again").await;
    drop((scraper, open, late));
    gateway.finish().await;
}

/// Connects from one address of the loopback network.
pub(crate) async fn connect_from(source: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{source}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

#[tokio::test]
async fn a_source_that_begins_too_many_is_closed_before_tls_and_others_are_not() {
    let mut east = Cluster::new("east");
    let mesh = east.mesh;
    east.relisten("mesh", mesh, "role: mesh, handshakes: { perSource: 2/s }");
    let gateway = east.start().await;
    let hello = hello(Some(b"nobody.example"));
    let began = std::time::Instant::now();
    let mut closed = Vec::new();
    let mut answered = 0;
    // At the rate of one that does not stop.
    for _ in 0..60 {
        let mut tcp = connect_from("127.0.0.2", mesh).await;
        let source = tcp.local_addr().unwrap();
        tcp.write_all(&hello).await.ok();
        let mut answer = Vec::new();
        // A connection closed over unread bytes is reset (RFC 1122 §4.2.2.13).
        within("the end", tcp.read_to_end(&mut answer)).await.ok();
        if answer.is_empty() {
            closed.push(source);
        } else {
            assert_eq!(answer, alert(112));
            answered += 1;
        }
    }
    // Two at once, and two a second.
    let most = 2 + 2 * (began.elapsed().as_secs() + 1);
    assert!((2..=most).contains(&answered), "{answered} of {most}");
    assert!(!closed.is_empty(), "{answered}");
    for source in closed.iter().map(ToString::to_string) {
        // Not the first of that source: the kernel may have given its port to one that was let in.
        let is_it = |line: &serde_json::Value| {
            line["src.addr"] == *source && line["verdict"] == "handshake-rate"
        };
        let line = gateway.log(is_it).await;
        assert_eq!(
            (&line["flags"], &line["sni"]),
            (&"RL".into(), &serde_json::Value::Null)
        );
    }
    let labels = [("listener", "mesh"), ("reason", "handshake-rate")];
    let metrics = gateway.metrics().await;
    let counted = metrics.value("zeugma_connections_total", &labels);
    assert_eq!(counted, closed.len() as f64);
    // Others, and other listeners, have nothing to do with it.
    let mut tcp = connect_from("127.0.0.3", mesh).await;
    tcp.write_all(&hello).await.unwrap();
    assert_eq!(rest(&mut tcp).await, alert(112));
    let tcp = connect_from("127.0.0.2", east.apps).await;
    drop(tcp);
    // Whoever comes at that rate is let in.
    eventually("a token", async || {
        let mut tcp = connect_from("127.0.0.2", mesh).await;
        tcp.write_all(&hello).await.ok();
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await.ok();
        (answer == alert(112)).then_some(())
    })
    .await;
    gateway.finish().await;
}

#[tokio::test]
async fn requests_over_a_routes_limit_are_refused_at_once_over_all_workers_and_configurations() {
    let (arrived, gate, service) = gated().await;
    let mut east = Cluster::new("east");
    east.set("workers", "2");
    orders(&east, service.address, "limits: { requests: 3 }");
    let gateway = east.start().await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let mut sender = sender(east.apps).await;
        waiting.push(tokio::spawn(async move {
            let response = sender.send_request(request()).await.unwrap();
            collect(response).await.status
        }));
    }
    arrive(&arrived, 3).await;
    let refused = async || {
        let reply = get(east.apps, ORDERS, "/").await;
        assert_eq!(reply.status, 503);
        assert_eq!(
            reply.headers.get("x-zeugma-reason"),
            None,
            "for gateways only"
        );
        let line = gateway.log(|line| line["verdict"] == "request-limit").await;
        assert_eq!(
            (&line["flags"], &line["dst.service"]),
            (&"UO".into(), &"shop/orders".into())
        );
    };
    refused().await;
    // A push does not forget them.
    orders(
        &east,
        service.address,
        "limits: { requests: 3 }\n            retries: { attempts: 1 }",
    );
    gateway
        .metric_becomes("zeugma_config_generation", &[], 2.0)
        .await;
    refused().await;
    gate.add_permits(1);
    eventually("one answer", async || {
        waiting
            .iter()
            .any(tokio::task::JoinHandle::is_finished)
            .then_some(())
    })
    .await;
    // Its place is given again, once.
    let mut sender = sender(east.apps).await;
    waiting.push(tokio::spawn(async move {
        let response = sender.send_request(request()).await.unwrap();
        collect(response).await.status
    }));
    arrive(&arrived, 1).await;
    refused().await;
    // A higher limit holds at once.
    orders(&east, service.address, "limits: { requests: 4 }");
    gateway
        .metric_becomes("zeugma_config_generation", &[], 3.0)
        .await;
    gate.add_permits(4);
    assert_eq!(get(east.apps, ORDERS, "/").await.status, 200);
    for one in waiting {
        assert_eq!(within("an answer", one).await.unwrap(), 200);
    }
    let labels = [
        ("reason", "request-limit"),
        ("destination_service", "shop/orders"),
    ];
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_requests_total", &labels), 3.0);
    gateway.finish().await;
}

#[tokio::test]
async fn what_one_peer_sheds_another_takes_and_nobody_is_ejected() {
    let (arrived, gate, busy) = gated().await;
    let idle = Service::http("north").await;
    let [east, north, west] = ["east", "north", "west"].map(Cluster::new);
    for there in [&east, &north] {
        west.meet(there);
    }
    orders(&east, busy.address, "limits: { requests: 1 }");
    orders(&north, idle.address, "");
    west.route(
        "shop/orders",
        "
        protocol: http
        backends: [{ peer: east }, { peer: north }]
        balance: { policy: round-robin }
        allow: [{ listeners: [apps] }]",
    );
    let (at_east, at_north) = (east.start().await, north.start().await);
    let gateway = west.start().await;
    let mut first = None;
    // Until one is at east and stays there.
    let held = eventually("a request at east", async || {
        if first.is_none() {
            let mut sender = sender(west.apps).await;
            first = Some(tokio::spawn(async move {
                let response = sender.send_request(request()).await.unwrap();
                collect(response).await.text()
            }));
        }
        if let Ok(permit) = arrived.try_acquire() {
            permit.forget();
            return first.take();
        }
        if first
            .as_ref()
            .is_some_and(tokio::task::JoinHandle::is_finished)
        {
            first = None;
        }
        None
    })
    .await;
    for _ in 0..12 {
        // A method that only what no endpoint saw may be repeated of.
        let post = Request::post("/").header("host", ORDERS).body(full("body"));
        let reply = send(west.apps, post.unwrap()).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "north"));
    }
    let shed = at_east.log(|line| line["verdict"] == "request-limit").await;
    assert_eq!(shed["http.status"], 503, "{shed}");
    let metrics = gateway.metrics().await;
    let retried = metrics.value("zeugma_retries_total", &[("cause", "refused-stream")]);
    // Of turns of two workers, each beginning anywhere.
    assert!(retried >= 5.0, "{retried}");
    assert!(!gateway.told().contains("ejected"), "{}", gateway.told());
    gate.add_permits(1);
    assert_eq!(within("the first", held).await.unwrap(), "late");
    for gateway in [gateway, at_east, at_north] {
        gateway.finish().await;
    }
}

#[tokio::test]
async fn requests_that_wait_for_a_connection_are_limited_and_those_with_one_are_not() {
    // It takes connections and says nothing: TLS does not come about.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut east = Cluster::new("east");
    east.set("workers", "2");
    let spec = |limit: u32| {
        format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'], tls: mesh, spiffeIDs: ['spiffe://east.example/*'] }}]
            timeouts: {{ connect: 15s }}
            limits: {{ pending: {limit} }}
            allow: [{{ listeners: [apps] }}]",
            silent.local_addr().unwrap()
        )
    };
    east.route("shop/orders", &spec(1));
    let service = Service::http("ready").await;
    east.route(
        "shop/ready",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            limits: {{ pending: 1 }}
            allow: [{{ listeners: [apps] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    let mut waits = sender(east.apps).await;
    let waiting = tokio::spawn(async move { waits.send_request(request()).await.is_ok() });
    let (held, _) = within("a connection", silent.accept()).await.unwrap();
    for _ in 0..4 {
        assert_eq!(get(east.apps, ORDERS, "/").await.status, 503);
        let host = "ready.shop.svc.clusterset.local";
        assert_eq!(get(east.apps, host, "/").await.text(), "ready");
    }
    let line = gateway.log(|line| line["verdict"] == "pending-limit").await;
    assert_eq!(
        (&line["flags"], &line["http.status"]),
        (&"UO".into(), &503.into())
    );
    assert!(
        line.get("dst.addr").is_none(),
        "no endpoint was asked: {line}"
    );
    // Whoever gives up makes room.
    waiting.abort();
    let mut next = sender(east.apps).await;
    let ended =
        gateway.log(|line| line["verdict"] == "downstream-closed" && line["kind"] == "request");
    ended.await;
    let next = tokio::spawn(async move { next.send_request(request()).await.is_ok() });
    within("a connection", silent.accept()).await.unwrap();
    next.abort();
    drop(held);
    gateway.finish().await;
}

#[tokio::test]
async fn connections_over_a_tcp_routes_limit_are_closed_and_a_free_place_is_given_again() {
    let service = Service::echo().await;
    let mut east = Cluster::new("east");
    let db = db(&mut east, service.address, "limits: { connections: 2 }");
    east.set("workers", "2");
    let gateway = east.start().await;
    let mut open = vec![echoing(db).await, echoing(db).await];
    assert_eq!(shed(&gateway, db).await, "route-connection-limit");
    for tcp in &mut open {
        echoes(tcp).await;
    }
    assert_eq!(service.connections(), 2);
    let first = open.remove(0);
    let source = first.local_addr().unwrap();
    drop(first);
    gateway.connection(source).await;
    open.push(echoing(db).await);
    assert_eq!(shed(&gateway, db).await, "route-connection-limit");
    let labels = [
        ("reason", "route-connection-limit"),
        ("destination_service", "shop/db"),
    ];
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_connections_total", &labels), 2.0);
    drop(open);
    gateway.finish().await;
}

#[tokio::test]
async fn a_tcp_connection_that_one_peer_sheds_another_takes() {
    let (busy, idle) = (Service::echo().await, Service::echo().await);
    let [east, north, mut west] = ["east", "north", "west"].map(Cluster::new);
    for there in [&east, &north] {
        west.meet(there);
    }
    for (cluster, service, limit) in [(&east, &busy, "{ connections: 1 }"), (&north, &idle, "{}")] {
        cluster.route(
            "shop/db",
            &format!(
                "
                port: 5432
                backends: [{{ endpoints: ['{}'] }}]
                limits: {limit}
                allow: [{{ from: ['spiffe://west.example/*'] }}]
                export: {{ to: [west] }}",
                service.address
            ),
        );
    }
    let db = west.listen("db", "role: workloads, route: shop/db");
    west.route(
        "shop/db",
        "
        port: 5432
        backends: [{ peer: east }, { peer: north }]
        balance: { policy: round-robin }
        health: { passive: { consecutive: 1 } }
        allow: [{ listeners: [db] }]",
    );
    let (at_east, at_north) = (east.start().await, north.start().await);
    let gateway = west.start().await;
    let mut open = Vec::new();
    for _ in 0..9 {
        open.push(echoing(db).await);
    }
    assert_eq!((busy.connections(), idle.connections()), (1, 8));
    at_east
        .log(|line| line["verdict"] == "route-connection-limit")
        .await;
    assert!(!gateway.told().contains("ejected"), "{}", gateway.told());
    drop(open);
    for gateway in [gateway, at_east, at_north] {
        gateway.finish().await;
    }
}

#[tokio::test]
async fn tls_that_is_passed_through_over_the_limit_is_refused_by_an_alert() {
    // It answers a hello with something that is no alert, and waits.
    let service = Service::tcp(|mut tcp| async move {
        if tcp.read(&mut [0; 4096]).await.is_err() {
            return;
        }
        tcp.write_all(&[22, 3, 3, 0, 1, 0]).await.ok();
        tcp.read_to_end(&mut Vec::new()).await.ok();
    })
    .await;
    let east = Cluster::new("east");
    east.route(
        "shop/orders",
        &format!(
            "
            port: 443
            backends: [{{ endpoints: ['{}'], tls: workload }}]
            limits: {{ connections: 1 }}
            allow: [{{ listeners: [apps] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    let hello = hello(Some(ORDERS.as_bytes()));
    let mut carried = TcpStream::connect(east.apps).await.unwrap();
    carried.write_all(&hello).await.unwrap();
    within("an answer", carried.read_exact(&mut [0; 6]))
        .await
        .unwrap();
    let mut over = TcpStream::connect(east.apps).await.unwrap();
    over.write_all(&hello).await.unwrap();
    // RFC 8446 §6.2: internal_error.
    assert_eq!(rest(&mut over).await, alert(80));
    let line = gateway.connection(over.local_addr().unwrap()).await;
    assert_eq!(line["verdict"], "route-connection-limit", "{line}");
    assert_eq!(service.connections(), 1);
    drop(carried);
    gateway.finish().await;
}

/// A frame of HTTP/2 (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A header block of a `GET /` without compression but for indexed fields (RFC 7541 §6).
fn head(fields: &[(&str, &str)]) -> Vec<u8> {
    // :method GET, :path /, :scheme http; then :authority, index 1.
    let mut block = vec![0x82, 0x84, 0x86, 0x01, u8::try_from(ORDERS.len()).unwrap()];
    block.extend(ORDERS.as_bytes());
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.extend(string_length(text.len()));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// An integer with a prefix of seven bits (RFC 7541 §5.1).
fn string_length(mut length: usize) -> Vec<u8> {
    if length < 127 {
        return vec![u8::try_from(length).unwrap()];
    }
    let mut bytes = vec![127];
    length -= 127;
    while length >= 128 {
        bytes.push(u8::try_from(length % 128 + 128).unwrap());
        length /= 128;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes
}

/// The next frame that is none of SETTINGS, WINDOW_UPDATE or PING: its kind, stream and payload.
async fn next_frame(tcp: &mut TcpStream) -> (u8, u32, Vec<u8>) {
    loop {
        let mut head = [0; 9];
        within("a frame", tcp.read_exact(&mut head)).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        within("its payload", tcp.read_exact(&mut payload))
            .await
            .unwrap();
        if ![4, 6, 8].contains(&head[3]) {
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            return (head[3], stream, payload);
        }
    }
}

#[tokio::test]
async fn one_stream_too_many_is_refused_and_the_others_are_answered() {
    let (arrived, gate, service) = gated().await;
    let mut east = Cluster::new("east");
    east.set("limits", "{ streams: 3 }");
    orders(&east, service.address, "");
    let gateway = east.start().await;
    let mut tcp = TcpStream::connect(east.apps).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    // END_STREAM and END_HEADERS; a caller that does not wait to hear how many may be open.
    for stream in [1, 3, 5, 7] {
        bytes.extend(frame(1, 5, stream, &head(&[])));
    }
    tcp.write_all(&bytes).await.unwrap();
    let (kind, stream, payload) = next_frame(&mut tcp).await;
    // RFC 9113 §5.1.2: RST_STREAM, here with REFUSED_STREAM, so that it may be sent again.
    assert_eq!((kind, stream, payload), (3, 7, vec![0, 0, 0, 7]));
    arrive(&arrived, 3).await;
    gate.add_permits(4);
    let mut ended = Vec::new();
    while ended.len() < 3 {
        let (kind, stream, payload) = next_frame(&mut tcp).await;
        if kind == 0 {
            assert_eq!(payload, b"late");
            ended.push(stream);
        } else {
            assert_eq!(kind, 1);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 3, 5]);
    tcp.write_all(&frame(1, 5, 9, &head(&[]))).await.unwrap();
    assert_eq!(next_frame(&mut tcp).await.1, 9);
    drop(tcp);
    gateway.finish().await;
}

/// Waits until the gateway has read all that was written: what follows is a segment of its own.
async fn taken(ours: SocketAddr, theirs: SocketAddr) {
    let port = |address: SocketAddr| format!(":{:04X}", address.port());
    let (ours, theirs) = (port(ours), port(theirs));
    eventually("a reader", async || {
        // local_address, rem_address, st, tx_queue:rx_queue (proc_pid_net(5)).
        let table = fs::read_to_string("/proc/self/net/tcp").unwrap();
        let end = table
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut end = end.filter(|line| line[1].ends_with(&theirs) && line[2].ends_with(&ours));
        // Closed, where the head is over the limit already.
        let waits = end
            .next()
            .is_some_and(|line| !line[4].ends_with(":00000000"));
        (!waits).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_head_of_a_request_may_be_as_long_as_written_and_no_byte_longer() {
    const LIMIT: usize = 8 * 1024;
    let service = Service::http("orders").await;
    let mut east = Cluster::new("east");
    east.set("limits", "{ headerBytes: 8KiB }");
    orders(&east, service.address, "");
    let gateway = east.start().await;
    // HTTP/1.1: every byte up to the empty line.
    let of_length = |length: usize| {
        let rest =
            format!("GET / HTTP/1.1\r\nHost: {ORDERS}\r\nConnection: close\r\nX-Long: \r\n\r\n");
        let long = "a".repeat(length - rest.len());
        rest.replace("X-Long: ", &format!("X-Long: {long}"))
    };
    for (length, status) in [(LIMIT, "200"), (LIMIT + 1, "431")] {
        // However it arrives.
        for pieces in [1, 2, 7] {
            let mut tcp = TcpStream::connect(east.apps).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let source = tcp.local_addr().unwrap();
            let text = of_length(length);
            assert_eq!(text.len(), length);
            for piece in text.as_bytes().chunks(length.div_ceil(pieces)) {
                tcp.write_all(piece).await.ok();
                taken(source, east.apps).await;
            }
            let mut answer = [0; 12];
            within("an answer", tcp.read_exact(&mut answer))
                .await
                .unwrap();
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert_eq!(answer, format!("HTTP/1.1 {status}"), "{length} in {pieces}");
        }
    }
    // HTTP/2: names, values and 32 for each field (RFC 9113 §6.5.2).
    let fixed = [
        (":method", "GET"),
        (":path", "/"),
        (":scheme", "http"),
        (":authority", ORDERS),
    ];
    let fixed: usize = fixed
        .iter()
        .map(|(name, value)| name.len() + value.len() + 32)
        .sum();
    for (length, status) in [(LIMIT, "200"), (LIMIT + 1, "431")] {
        let long = "a".repeat(length - fixed - 32 - "x-long".len());
        let mut tcp = TcpStream::connect(east.apps).await.unwrap();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, 5, 1, &head(&[("x-long", &long)])));
        tcp.write_all(&bytes).await.unwrap();
        let (kind, stream, payload) = next_frame(&mut tcp).await;
        assert_eq!((kind, stream), (1, 1));
        // :status 200 is index 8; 431 is a literal under the name of index 8.
        let found = if payload[0] == 0x88 { "200" } else { "431" };
        assert_eq!(found, status, "{length}: {payload:?}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn over_the_memory_watermark_new_work_is_shed_and_what_is_open_goes_on() {
    let echo = Service::echo().await;
    let service = Service::http("orders").await;
    let mut east = Cluster::new("east");
    let db = db(&mut east, echo.address, "");
    orders(&east, service.address, "");
    let gateway = east.start().await;
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let resident = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    let kib: usize = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    let metrics = gateway.metrics().await;
    gateway.finish().await;
    assert_eq!(metrics.value("zeugma_memory_short", &[]), 0.0);

    // Room for some, and not for what follows.
    east.set(
        "limits",
        &format!("{{ memory: {}KiB, headerBytes: 1MiB }}", kib + 8 * 1024),
    );
    let gateway = east.start().await;
    let mut open = echoing(db).await;
    let mut requests = sender(east.apps).await;
    let reply = requests.send_request(request()).await.unwrap();
    assert_eq!(collect(reply).await.status, 200);
    let half = format!(
        "GET / HTTP/1.1\r\nHost: {ORDERS}\r\nX: {}",
        "a".repeat(900 * 1024)
    );
    let mut heads = Vec::new();
    eventually("memory is short", async || {
        let mut tcp = TcpStream::connect(east.apps).await.unwrap();
        tcp.write_all(half.as_bytes()).await.ok();
        heads.push(tcp);
        gateway
            .told()
            .contains("ZG0918 memory is short")
            .then_some(())
    })
    .await;
    assert_eq!(shed(&gateway, db).await, "memory-pressure");
    assert_eq!(shed(&gateway, east.mesh).await, "memory-pressure");
    echoes(&mut open).await;
    let reply = requests.send_request(request()).await.unwrap();
    assert_eq!(collect(reply).await.status, 503);
    let line = gateway
        .log(|line| line["kind"] == "request" && line["verdict"] == "memory-pressure")
        .await;
    assert_eq!(line["flags"], "OM", "{line}");
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_memory_short", &[]), 1.0);
    let used = metrics.value("zeugma_memory_used_bytes", &[]);
    assert!(
        used > metrics.value("zeugma_memory_watermark_bytes", &[]),
        "{used}"
    );
    let told = gateway.messages_so_far();
    let told = told
        .iter()
        .filter(|line| line.contains("ZG0918 memory is short"));
    assert_eq!(told.count(), 1, "once, not with every look");
    // What was taken goes back, and new work is let in.
    drop(heads);
    gateway.message("ZG0919 memory is enough again").await;
    drop(echoing(db).await);
    let reply = requests.send_request(request()).await.unwrap();
    assert_eq!(collect(reply).await.status, 200);
    drop((open, requests));
    gateway.finish().await;
}

#[tokio::test]
async fn messages_that_cannot_be_written_end_nothing() {
    let service = Service::http("orders").await;
    let east = Cluster::new("east");
    orders(&east, service.address, "");
    east.write_gateway();
    // Every write to it fails, as those to a pipe whose reader is gone.
    let broken = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_zeugma"))
        .args(["gateway", "--config"])
        .arg(east.config())
        .env("ZEUGMA_LOG", "debug")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(broken)
        .spawn()
        .unwrap();
    eventually("ready", async || {
        let tcp = TcpStream::connect(east.probes).await.ok()?;
        let ready = Request::get("/ready")
            .header("host", "probes")
            .body(empty());
        let response = h1(tcp).await.send_request(ready.unwrap()).await.ok()?;
        (response.status() == 200).then_some(())
    })
    .await;
    for _ in 0..3 {
        assert_eq!(get(east.apps, ORDERS, "/").await.text(), "orders");
    }
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test]
async fn an_h2_caller_is_told_by_503_as_well() {
    let (arrived, gate, service) = gated().await;
    let east = Cluster::new("east");
    orders(&east, service.address, "limits: { requests: 1 }");
    let gateway = east.start().await;
    let mut sender = h2(TcpStream::connect(east.apps).await.unwrap()).await;
    let ask = || {
        Request::get(format!("http://{ORDERS}/"))
            .body(empty())
            .unwrap()
    };
    let first = tokio::spawn(sender.send_request(ask()));
    arrive(&arrived, 1).await;
    assert_eq!(sender.send_request(ask()).await.unwrap().status(), 503);
    gate.add_permits(2);
    let first = within("an answer", first).await.unwrap().unwrap();
    assert_eq!(collect(first).await.status, 200);
    let second = sender.send_request(ask()).await.unwrap();
    assert_eq!(collect(second).await.status, 200);
    drop(sender);
    gateway.finish().await;
}
