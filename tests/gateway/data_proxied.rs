//! Listeners behind load balancers, and endpoints that want to be told who calls: the PROXY protocol
//! both ways, by hand and by HAProxy.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::control_limits::connect_from;
use crate::data_services::read_all;
use crate::mesh::hello::{alert, hello};
use crate::mesh::{Cluster, Gateway, Service, eventually, get, within};

/// What a load balancer says of a caller, in version 1.
const CALLER: &str = "PROXY TCP4 203.0.113.7 192.0.2.1 4660 443\r\n";

/// The same in version 2, with a TLV that names somebody (§2.2 of the specification).
fn binary() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x29".to_vec();
    header.extend_from_slice(b"\xcb\x00\x71\x07\xc0\0\x02\x01\x12\x34\x01\xbb");
    header.extend_from_slice(b"\xd0\x00\x1aspiffe://east.example/root");
    header
}

/// East with a one-route listener `db` behind load balancers, with these further fields, and the
/// rules of its route.
async fn behind(fields: &str, rules: &str, endpoint: SocketAddr) -> (Cluster, Gateway, SocketAddr) {
    let mut east = Cluster::new("east");
    let db = east.listen(
        "db",
        &format!(
            "role: workloads, route: shop/db, proxyProtocol: {{ trusted: ['127.0.0.1/32'] }} {fields}"
        ),
    );
    east.set("limits", "{ handshakeTimeout: 500ms }");
    east.route(
        "shop/db",
        &format!("port: 5432\nbackends: [{{ endpoints: ['{endpoint}'] }}]\n{rules}"),
    );
    let gateway = east.start().await;
    (east, gateway, db)
}

const FROM_CALLER: &str = "allow: [{ listeners: [db], sources: ['203.0.113.0/24'] }]";

/// What a connection that begins so and sends no more gets, and its access-log line.
async fn begin(gateway: &Gateway, to: SocketAddr, pieces: &[&[u8]]) -> (Vec<u8>, Value) {
    let (mut tcp, port) = dial(to, pieces).await;
    tcp.shutdown().await.unwrap();
    end(gateway, tcp, &port).await
}

/// A connection that begins so, and its own address.
async fn dial(to: SocketAddr, pieces: &[&[u8]]) -> (TcpStream, String) {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    let port = tcp.local_addr().unwrap().to_string();
    for piece in pieces {
        tcp.write_all(piece).await.unwrap();
        tcp.flush().await.unwrap();
        // What a piece does to the gateway is not seen: it has at least its own packet.
        tokio::task::yield_now().await;
    }
    (tcp, port)
}

/// What it gets, and its access-log line.
async fn end(gateway: &Gateway, mut tcp: TcpStream, port: &str) -> (Vec<u8>, Value) {
    let mut answer = Vec::new();
    // A connection closed over unread bytes is reset (RFC 1122 §4.2.2.13).
    within("the end", tcp.read_to_end(&mut answer)).await.ok();
    let is_it = |line: &Value| line["src.proxy"] == port || line["src.addr"] == port;
    let line = gateway
        .log(|line| line["kind"] == "connection" && is_it(line))
        .await;
    (answer, line)
}

#[tokio::test]
async fn the_caller_that_a_header_names_is_whom_the_rules_and_the_log_see() {
    let service = Service::echo().await;
    let (_east, gateway, db) = behind("", FROM_CALLER, service.address).await;
    let v2 = binary();
    let (first, rest) = v2.split_at(20);
    for pieces in [
        &[CALLER.as_bytes(), b"ping"][..],
        &[b"PROXY TCP4 203.0.113.7 192.0.2.1 4660 443\r\nping"],
        &[
            b"PRO",
            b"XY TCP4 203.0.113.7 192.0.2.1 4660 443\r",
            b"\nping",
        ],
        &[&v2, b"ping"],
        &[first, rest, b"ping"],
    ] {
        let (answer, line) = begin(&gateway, db, pieces).await;
        assert_eq!(answer, b"ping", "{line}");
        assert_eq!(line["src.addr"], "203.0.113.7:4660");
        assert_eq!(line["verdict"], "completed");
        assert_eq!(line["bytes_recv"], 4, "a header is not the caller's");
        // A SPIFFE ID in a header is anybody's word.
        assert_eq!(line["src.identity"], Value::Null);
    }
    // Another caller has no right, whoever hands it on.
    let (answer, line) = begin(
        &gateway,
        db,
        &[b"PROXY TCP4 198.51.100.7 192.0.2.1 4660 443\r\nping"],
    )
    .await;
    assert_eq!(
        (&*answer, &line["verdict"]),
        (&b""[..], &json!("not-allowed"))
    );
    // Of its own the load balancer calls in its own name: no rule lets it in.
    for own in ["PROXY UNKNOWN\r\n", "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let (_, line) = begin(&gateway, db, &[own.as_bytes()]).await;
        assert_eq!(line["verdict"], "not-allowed");
        assert!(line["src.addr"].as_str().unwrap().starts_with("127.0.0.1:"));
        assert_eq!(line["src.proxy"], Value::Null);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn what_begins_otherwise_is_closed_and_so_is_who_is_no_load_balancer() {
    let service = Service::echo().await;
    let everyone = "allow: [{ listeners: [db] }]";
    let (_east, gateway, db) = behind("", everyone, service.address).await;
    for bytes in [
        &b"ping"[..],
        &hello(None),
        b"PROXY TCP4 203.0.113.7 192.0.2.1 4660\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
        &[&b"PROXY UNKNOWN "[..], &[b'x'; 107]].concat(),
    ] {
        let (answer, line) = begin(&gateway, db, &[bytes]).await;
        let (verdict, told) = (&line["verdict"], &line["error"]);
        assert_eq!(
            (&*answer, verdict),
            (&b""[..], &json!("proxy-header")),
            "{told}"
        );
        assert!(told.as_str().unwrap().contains("PROXY header"), "{told}");
    }
    // It ends within its header.
    let (_, line) = begin(&gateway, db, &[b"PROXY TCP4 "]).await;
    assert_eq!(line["verdict"], "downstream-closed");
    // It does not go on: the deadline is `limits.handshakeTimeout`.
    let mut tcp = TcpStream::connect(db).await.unwrap();
    let source = tcp.local_addr().unwrap();
    tcp.write_all(b"PROXY TCP4 ").await.unwrap();
    assert_eq!(read_all(&mut tcp).await, b"");
    assert_eq!(gateway.connection(source).await["verdict"], "hello-timeout");
    // Somebody else writes a fine header.
    let mut tcp = connect_from("127.0.0.2", db).await;
    let source = tcp.local_addr().unwrap();
    tcp.write_all(CALLER.as_bytes()).await.unwrap();
    within("the end", tcp.read_to_end(&mut Vec::new()))
        .await
        .ok();
    let line = gateway.connection(source).await;
    assert_eq!(line["verdict"], "source-refused", "{line}");
    let told = line["error"].as_str().unwrap();
    assert!(told.contains("none of `proxyProtocol.trusted`"), "{told}");
    assert_eq!(service.connections(), 0);
    gateway.finish().await;
}

#[tokio::test]
async fn sources_and_rates_are_of_the_callers_and_not_of_the_load_balancer() {
    let service = Service::echo().await;
    let fields = ", sources: ['203.0.113.0/24'], handshakes: { perSource: 1/s }";
    let everyone = "allow: [{ listeners: [db] }]";
    let (_east, gateway, db) = behind(fields, everyone, service.address).await;
    let from = |caller: &str| format!("PROXY TCP4 {caller} 192.0.2.1 4660 443\r\n");
    // Each has its own burst, of one: the load balancer would have had one for all of them.
    for nth in 1..=8 {
        let header = from(&format!("203.0.113.{nth}"));
        let (answer, line) = begin(&gateway, db, &[header.as_bytes(), b"ping"]).await;
        assert_eq!(
            (&*answer, &line["verdict"]),
            (&b"ping"[..], &json!("completed"))
        );
    }
    // At the rate of one that does not stop.
    let header = from("203.0.113.9");
    let began = std::time::Instant::now();
    let mut verdicts = Vec::new();
    for _ in 0..20 {
        let (_, line) = begin(&gateway, db, &[header.as_bytes(), b"ping"]).await;
        verdicts.push(line["verdict"].as_str().unwrap().to_owned());
    }
    let let_in = verdicts.iter().filter(|verdict| *verdict == "completed");
    let let_in = u64::try_from(let_in.count()).unwrap();
    let most = 1 + began.elapsed().as_secs() + 1;
    assert!((1..=most).contains(&let_in), "{verdicts:?}");
    assert!(verdicts.iter().any(|verdict| verdict == "handshake-rate"));
    let header = from("198.51.100.9");
    let (_, line) = begin(&gateway, db, &[header.as_bytes(), b"ping"]).await;
    assert_eq!(line["verdict"], "source-refused");
    gateway.finish().await;
}

#[tokio::test]
async fn what_a_load_balancer_handed_on_ends_when_its_word_counts_no_more() {
    let service = Service::echo().await;
    let (mut east, gateway, db) = behind("", FROM_CALLER, service.address).await;
    let (mut tcp, _) = dial(db, &[CALLER.as_bytes(), b"ping"]).await;
    let mut echo = [0; 4];
    within("an echo", tcp.read_exact(&mut echo)).await.unwrap();
    let others = "role: workloads, route: shop/db, proxyProtocol: { trusted: ['127.0.0.2/32'] }";
    east.relisten("db", db, others);
    east.write_gateway();
    let mut rest = Vec::new();
    within("the end", tcp.read_to_end(&mut rest)).await.ok();
    let line = gateway
        .log(|line| line["src.addr"] == "203.0.113.7:4660")
        .await;
    assert_eq!(line["verdict"], "no-longer-allowed", "{line}");
    let told = line["error"].as_str().unwrap();
    assert!(
        told.contains("no longer takes the word of 127.0.0.1"),
        "{told}"
    );
    gateway.finish().await;
}

#[tokio::test]
async fn what_a_load_balancer_began_of_its_own_ends_with_its_trust_as_well() {
    let service = Service::echo().await;
    let everyone = "allow: [{ listeners: [db] }]";
    let (mut east, gateway, db) = behind("", everyone, service.address).await;
    let mut open = Vec::new();
    for own in ["PROXY UNKNOWN\r\n", "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
        let (mut tcp, port) = dial(db, &[own.as_bytes(), b"ping"]).await;
        let mut echo = [0; 4];
        within("an echo", tcp.read_exact(&mut echo)).await.unwrap();
        open.push((tcp, port));
    }
    let others = "role: workloads, route: shop/db, proxyProtocol: { trusted: ['127.0.0.2/32'] }";
    east.relisten("db", db, others);
    east.write_gateway();
    for (tcp, port) in open {
        let (_, line) = end(&gateway, tcp, &port).await;
        assert_eq!(line["verdict"], "no-longer-allowed", "{line}");
        let told = line["error"].as_str().unwrap();
        assert!(
            told.contains("no longer takes the word of 127.0.0.1"),
            "{told}"
        );
    }
    gateway.finish().await;
}

#[tokio::test]
async fn tls_and_http_begin_behind_the_header() {
    let service = Service::http("one").await;
    let mut east = Cluster::new("east");
    let trusted = "proxyProtocol: { trusted: ['127.0.0.0/8'] }";
    let (mesh, apps) = (east.mesh, east.apps);
    east.relisten("mesh", mesh, &format!("role: mesh, {trusted}"));
    east.relisten("apps", apps, &format!("role: workloads, {trusted}"));
    east.route(
        "shop/orders",
        &format!(
            "protocol: http\nbackends: [{{ endpoints: ['{}'] }}]\n\
             allow: [{{ listeners: [apps], sources: ['203.0.113.7/32'] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    // RFC 8446 §6.2: unrecognized_name.
    let opening = [CALLER.as_bytes(), &hello(Some(b"nobody.example"))].concat();
    let (answer, line) = begin(&gateway, mesh, &[&opening]).await;
    assert_eq!(answer, alert(112));
    assert_eq!(
        (&line["sni"], &line["src.addr"]),
        (&json!("nobody.example"), &json!("203.0.113.7:4660"))
    );

    let request =
        "GET / HTTP/1.1\r\nhost: orders.shop.svc.clusterset.local\r\nconnection: close\r\n\r\n";
    let opening = [CALLER.as_bytes(), request.as_bytes()].concat();
    let (tcp, port) = dial(apps, &[&opening]).await;
    let (answer, _) = end(&gateway, tcp, &port).await;
    assert!(
        answer.starts_with(b"HTTP/1.1 200"),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    // Each request says by whom it was handed on as well.
    let line = gateway.log(|line| line["kind"] == "request").await;
    assert_eq!(line["src.addr"], "203.0.113.7:4660");
    assert!(
        line["src.proxy"]
            .as_str()
            .unwrap()
            .starts_with("127.0.0.1:")
    );
    gateway.finish().await;
}

#[tokio::test]
async fn an_endpoint_that_tls_is_passed_to_is_told_who_calls_before_the_hello() {
    let service = Service::tcp(|mut tcp| async move {
        let mut first = vec![0; 28];
        tcp.read_exact(&mut first).await.unwrap();
        // Anything but an alert commits it.
        tcp.write_all(&first).await.unwrap();
        let (mut read, mut write) = tcp.split();
        tokio::io::copy(&mut read, &mut write).await.ok();
    })
    .await;
    let east = Cluster::new("east");
    east.route(
        "shop/db",
        &format!(
            "port: 5432\ninbound: passthrough\n\
             backends: [{{ tls: workload, proxyProtocol: true, endpoints: ['{}'] }}]\n\
             allow: [{{ listeners: [apps] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    let mut tcp = TcpStream::connect(east.apps).await.unwrap();
    let source = tcp.local_addr().unwrap();
    let hello = hello(Some(b"db.shop.svc.clusterset.local"));
    tcp.write_all(&hello).await.unwrap();
    tcp.shutdown().await.unwrap();
    let heard = read_all(&mut tcp).await;
    let (header, rest) = heard.split_at(28);
    // §2.2: signature, version 2 and PROXY, TCP over IPv4, twelve bytes of addresses.
    assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
    assert_eq!(&header[16..24], b"\x7f\0\0\x01\x7f\0\0\x01");
    assert_eq!(header[24..26], source.port().to_be_bytes());
    assert_eq!(header[26..], service.address.port().to_be_bytes());
    assert_eq!(rest, hello);
    gateway.finish().await;
}

/// HAProxy with these frontends and backends; it ends when dropped.
struct Haproxy {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Haproxy {
    /// Starts one, where it is installed.
    ///
    /// # Panics
    /// It is missing where every test is required to run.
    #[expect(
        clippy::print_stderr,
        reason = "a test that did not run must not look like one that did"
    )]
    fn start(sections: &str) -> Option<Self> {
        const WHY: &str = "no haproxy in PATH; run `apt-get install haproxy`";
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("haproxy.cfg");
        let mut text = String::from(
            "global\n  maxconn 64\ndefaults\n  mode tcp\n  timeout connect 5s\n  \
             timeout client 20s\n  timeout server 20s\n",
        );
        text.push_str(sections);
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => Some(Self {
                child,
                _folder: folder,
            }),
            Err(_) => {
                assert!(std::env::var_os("ZEUGMA_REQUIRE_PEERS").is_none(), "{WHY}");
                eprintln!("SKIPPED: {WHY}");
                None
            }
        }
    }
}

/// An address that nobody listens on.
fn free() -> SocketAddr {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap()
}

async fn up(address: SocketAddr) {
    eventually("haproxy to listen", async || {
        TcpStream::connect(address).await.ok().map(drop)
    })
    .await;
}

#[tokio::test]
async fn haproxy_hands_callers_on_to_a_listener_in_both_versions() {
    let service = Service::http("one").await;
    let mut east = Cluster::new("east");
    let apps = east.apps;
    let trusted = "role: workloads, proxyProtocol: { trusted: ['127.0.0.1/32'] }";
    east.relisten("apps", apps, trusted);
    // HAProxy calls from 127.0.0.1 whoever called it; that address alone has no right.
    east.route(
        "shop/orders",
        &format!(
            "protocol: http\nbackends: [{{ endpoints: ['{}'] }}]\n\
             allow: [{{ sources: ['127.0.0.3/32'] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    let (v1, v2) = (free(), free());
    let mut sections = String::new();
    for (address, word) in [(v1, "send-proxy"), (v2, "send-proxy-v2")] {
        writeln!(
            sections,
            "listen l{}\n  bind {address}\n  server gateway {apps} {word}",
            address.port()
        )
        .unwrap();
    }
    let Some(_haproxy) = Haproxy::start(&sections) else {
        return gateway.finish().await;
    };
    for address in [v1, v2] {
        up(address).await;
        let tcp = connect_from("127.0.0.3", address).await;
        let caller = tcp.local_addr().unwrap().to_string();
        let mut http = crate::mesh::h1(tcp).await;
        let request = http::Request::get("/").header("host", "orders.shop.svc.clusterset.local");
        let request = request.body(crate::mesh::empty()).unwrap();
        let answer = within("an answer", http.send_request(request))
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        let line = gateway.log(|line| line["src.addr"] == caller).await;
        assert!(
            line["src.proxy"]
                .as_str()
                .unwrap()
                .starts_with("127.0.0.1:")
        );
    }
    gateway.finish().await;
}

#[tokio::test]
async fn haproxy_is_told_who_calls_by_an_endpoint_that_wants_it() {
    let (front, mut east) = (free(), Cluster::new("east"));
    let db = east.listen("db", "role: workloads, route: shop/db");
    east.route(
        "shop/db",
        &format!(
            "port: 5432\nbackends: [{{ proxyProtocol: true, endpoints: ['{front}'] }}]\n\
             allow: [{{ listeners: [db] }}]"
        ),
    );
    // It answers with the address that it was told of.
    let sections = format!(
        "frontend f\n  mode http\n  timeout http-request 20s\n  bind {front} accept-proxy\n  \
         http-request return status 200 content-type text/plain lf-string \"%[src]:%[src_port]\"\n"
    );
    let Some(_haproxy) = Haproxy::start(&sections) else {
        return;
    };
    up(front).await;
    let gateway = east.start().await;
    let reply = get(db, "any", "/").await;
    let line = gateway.log(|line| line["dst.service"] == "shop/db").await;
    assert_eq!(line["src.addr"], reply.text());
    gateway.finish().await;
}
