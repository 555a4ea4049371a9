//! Bytes: one-route listeners, TCP between gateways, passthrough of the callers' own TLS.

use std::io::ErrorKind;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::data_mesh::{Gateway, Pair, endpoints, route};
use crate::data_services::{BANNER, Refusing, TcpService, echo, pattern, read_all};
use crate::mesh::hello::hello;
use crate::mesh::{Cluster, Identity, Service, h1, within};

const DB: &str = "db.demo.svc.clusterset.local";

/// A TCP route; further lines of its `spec`.
fn tcp_route(spec: &[&str]) -> String {
    let common = ["protocol: tcp", "port: 5432"];
    route("db", &[&common, spec].concat())
}

const FROM_EAST: &str = "allow: [{ from: [\"spiffe://east.example/*\"] }]";
const FROM_APPS: &str = "allow: [{ listeners: [db] }]";
const EXPORT: &str = "export: { to: [\"*\"] }";

/// East's one-route listener `db`, and west's service behind west's gateway.
async fn far(service: &TcpService, west: &str) -> (Pair, std::net::SocketAddr) {
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let backend = format!(
        "backends: [{{ {}{west} }}]",
        endpoints(&[service.address()])
    );
    let pair = Pair::of(
        (east, Cluster::new("west")),
        &tcp_route(&["backends: [{ peer: west }]", FROM_APPS]),
        &tcp_route(&[&backend, FROM_EAST, EXPORT]),
    )
    .await;
    (pair, db)
}

async fn banner(stream: &mut (impl AsyncRead + Unpin)) {
    let mut first = vec![0; BANNER.len()];
    within("the banner", stream.read_exact(&mut first))
        .await
        .unwrap();
    assert_eq!(first, BANNER);
}

#[tokio::test]
async fn a_server_that_speaks_first_is_heard_and_half_closes_are_passed_on() {
    let service = TcpService::start();
    let (pair, db) = far(&service, "").await;
    let mut tcp = TcpStream::connect(db).await.unwrap();
    banner(&mut tcp).await;
    tcp.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    within("the echo", tcp.read_exact(&mut echoed))
        .await
        .unwrap();
    assert_eq!(&echoed, b"hello");
    tcp.shutdown().await.unwrap();
    // The service goes on talking after our end.
    assert_eq!(read_all(&mut tcp).await, b"\n5 bytes");
    let near = pair
        .east
        .process
        .connection(tcp.local_addr().unwrap())
        .await;
    assert_eq!(
        (&near["verdict"], &near["bytes_recv"]),
        (&json!("completed"), &json!(5))
    );
    assert_eq!(near["bytes_sent"], BANNER.len() + 5 + 8);
    assert_eq!(near["dst.identity"], "spiffe://west.example/zeugma/gateway");
    let far = pair
        .west
        .process
        .log(|line| line["dst.service"] == "demo/db")
        .await;
    assert_eq!(far["src.identity"], "spiffe://east.example/zeugma/gateway");
    pair.finish().await;
}

#[tokio::test]
async fn a_service_that_ends_first_still_hears_its_caller() {
    let service = TcpService::with(|mut tcp| async move {
        tcp.write_all(b"bye").await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"still here");
    });
    let (pair, db) = far(&service, "").await;
    let mut tcp = TcpStream::connect(db).await.unwrap();
    assert_eq!(read_all(&mut tcp).await, b"bye");
    tcp.write_all(b"still here").await.unwrap();
    tcp.shutdown().await.unwrap();
    let line = pair
        .west
        .process
        .log(|line| line["dst.service"] == "demo/db")
        .await;
    assert_eq!(line["verdict"], "completed", "{line}");
    assert_eq!(
        (&line["bytes_recv"], &line["bytes_sent"]),
        (&json!(10), &json!(3))
    );
}

/// Reads what comes until the connection is reset.
async fn read_until_reset(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let error = within("a reset", stream.read_to_end(&mut all)).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ConnectionReset);
    all
}

/// A service that sends half of an answer, and resets the connection when it is told to `stop`; and
/// what it tells of how its callers ended.
fn halves() -> (TcpService, mpsc::Receiver<Result<Vec<u8>, ErrorKind>>) {
    let (heard, hears) = mpsc::channel(1);
    let service = TcpService::with(move |mut tcp| {
        let heard = heard.clone();
        async move {
            tcp.write_all(b"half").await.unwrap();
            let mut all = Vec::new();
            let ended = loop {
                match tcp.read_buf(&mut all).await {
                    Ok(0) => break Ok(all),
                    Ok(_) if all.ends_with(b"stop") => return tcp.set_zero_linger().unwrap(),
                    Ok(_) => {}
                    Err(error) => break Err(error.kind()),
                }
            };
            heard.send(ended).await.unwrap();
        }
    });
    (service, hears)
}

/// Says `say` to such a service, once its half of an answer has come.
async fn half_an_answer(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), say: &[u8]) {
    let mut half = [0; 4];
    within("half an answer", stream.read_exact(&mut half))
        .await
        .unwrap();
    stream.write_all(say).await.unwrap();
}

#[tokio::test]
async fn a_reset_reaches_the_other_end_through_both_gateways_and_never_looks_like_the_end() {
    let (service, mut hears) = halves();
    let (pair, db) = far(&service, "").await;
    let mut tcp = TcpStream::connect(db).await.unwrap();
    half_an_answer(&mut tcp, b"stop").await;
    assert_eq!(read_until_reset(&mut tcp).await, b"");
    let mut tcp = TcpStream::connect(db).await.unwrap();
    half_an_answer(&mut tcp, b"go on").await;
    tcp.set_zero_linger().unwrap();
    drop(tcp);
    let heard = within("the end of a caller", hears.recv()).await.unwrap();
    assert_eq!(heard, Err(ErrorKind::ConnectionReset));
    // An orderly end is none.
    let mut tcp = TcpStream::connect(db).await.unwrap();
    half_an_answer(&mut tcp, b"done, bye").await;
    tcp.shutdown().await.unwrap();
    let heard = within("the end of a caller", hears.recv()).await.unwrap();
    assert_eq!(heard.unwrap(), b"done, bye");
    pair.finish().await;
}

#[tokio::test]
async fn a_callers_tls_that_ends_without_close_notify_ends_by_a_reset_at_the_endpoint() {
    let (service, mut hears) = halves();
    let mut east = Cluster::new("east");
    let caller = east.identity("ns/shop/sa/cart");
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let routes = tcp_route(&[&backend, "inbound: terminate", FROM_EAST]);
    let gateway = Gateway::of(east, &routes).await;
    let mut tls = caller.dial(gateway.apps(), DB, &[]).await.unwrap();
    half_an_answer(&mut tls, b"go on").await;
    // RFC 8446 §6.1: without close_notify the bytes may have been cut short.
    tls.get_mut().0.shutdown().await.unwrap();
    let heard = within("the end of a caller", hears.recv()).await.unwrap();
    assert_eq!(heard, Err(ErrorKind::ConnectionReset));

    // And the caller hears of an endpoint's reset, without close_notify.
    let mut tls = caller.dial(gateway.apps(), DB, &[]).await.unwrap();
    half_an_answer(&mut tls, b"stop").await;
    assert_eq!(read_until_reset(&mut tls).await, b"");
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_reset_passes_through_both_gateways_with_the_callers_own_tls() {
    let (service, mut hears) = halves();
    let own = format!("backends: [{}]", workload_backend(service.address()));
    let clusters = (Cluster::new("east"), Cluster::new("west"));
    let pair = passing(clusters, "backends: [{ peer: west }]", &own).await;
    let hello = hello(Some(DB.as_bytes()));
    let mut tcp = TcpStream::connect(pair.east.apps()).await.unwrap();
    tcp.write_all(&hello).await.unwrap();
    half_an_answer(&mut tcp, b"go on").await;
    tcp.set_zero_linger().unwrap();
    drop(tcp);
    let heard = within("the end of a caller", hears.recv()).await.unwrap();
    assert_eq!(heard, Err(ErrorKind::ConnectionReset));

    let mut tcp = TcpStream::connect(pair.east.apps()).await.unwrap();
    tcp.write_all(&hello).await.unwrap();
    half_an_answer(&mut tcp, b"stop").await;
    assert_eq!(read_until_reset(&mut tcp).await, b"");
    pair.finish().await;
}

#[tokio::test]
async fn large_transfers_arrive_whole_in_both_directions_at_once() {
    let service = TcpService::start();
    let (_pair, db) = far(&service, "").await;
    let mut tcp = TcpStream::connect(db).await.unwrap();
    banner(&mut tcp).await;
    let sent = pattern(8 << 20);
    let (mut read, mut write) = tcp.split();
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (got, ()) = tokio::join!(read_all(&mut read), writing);
    let (body, end) = got.split_at(sent.len());
    assert!(body == sent, "{} bytes differ", sent.len());
    assert_eq!(end, format!("\n{} bytes", sent.len()).as_bytes());
}

/// Reads a PROXY v2 header (signature, 0x21, family, length, addresses, TLVs) and returns TLV 0xD0.
async fn read_proxy(tcp: &mut TcpStream) -> String {
    let mut head = [0; 16];
    tcp.read_exact(&mut head).await.unwrap();
    assert_eq!(&head[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(head[12], 0x21);
    assert_eq!(head[13], 0x11, "TCP over IPv4");
    let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
    tcp.read_exact(&mut rest).await.unwrap();
    let mut tlvs = &rest[12..];
    while let [kind, high, low, more @ ..] = tlvs {
        let (value, next) = more.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        if *kind == 0xd0 {
            return String::from_utf8(value.to_vec()).unwrap();
        }
        tlvs = next;
    }
    String::new()
}

#[tokio::test]
async fn the_callers_identity_reaches_the_endpoint_that_wants_it() {
    let service = TcpService::with(|mut tcp| async move {
        let who = read_proxy(&mut tcp).await;
        tcp.write_all(format!("{who}\n").as_bytes()).await.unwrap();
        echo(tcp).await;
    });
    let (pair, db) = far(&service, ", proxyProtocol: true").await;
    // A workload on a plaintext listener has none; west sees east's gateway.
    let mut tcp = TcpStream::connect(db).await.unwrap();
    tcp.shutdown().await.unwrap();
    let got = String::from_utf8(read_all(&mut tcp).await).unwrap();
    assert_eq!(got, "spiffe://east.example/zeugma/gateway\n\n0 bytes");
    pair.finish().await;
}

#[tokio::test]
async fn between_gateways_the_identity_is_attested_and_believed_where_that_was_agreed() {
    let service = TcpService::with(|mut tcp| async move {
        let who = read_proxy(&mut tcp).await;
        tcp.write_all(who.as_bytes()).await.unwrap();
    });
    let (mut east, west) = (Cluster::new("east"), Cluster::new("west"));
    let cart = east.identity("ns/shop/sa/cart");
    let other = east.identity("ns/shop/sa/other");
    let (east_routes, west_routes) = (
        tcp_route(&[
            "backends: [{ peer: west }]",
            "inbound: terminate",
            FROM_EAST,
        ]),
        tcp_route(&[
            &format!(
                "backends: [{{ {}, proxyProtocol: true }}]",
                endpoints(&[service.address()])
            ),
            "allow: [{ from: [\"spiffe://east.example/ns/shop/sa/cart\"], via: [east] }]",
            EXPORT,
        ]),
    );
    east.meet(&west);
    west.peer(
        "east",
        &format!(
            "cluster: east\nlocality: east/east-1\ngateways: ['{}']\nspiffeIDs: ['{}']\n\
             attests: [east.example]",
            east.mesh,
            east.gateway_id()
        ),
    );
    let west = Gateway::of(west, &west_routes).await;
    let east = Gateway::of(east, &east_routes).await;
    let mut tls = cart.dial(east.apps(), DB, &[]).await.unwrap();
    let who = String::from_utf8(read_all(&mut tls).await).unwrap();
    assert_eq!(who, "spiffe://east.example/ns/shop/sa/cart");
    drop(tls);
    let line = west
        .process
        .log(|line| line["src.attested"].is_string())
        .await;
    assert_eq!(
        line["src.attested"],
        "spiffe://east.example/ns/shop/sa/cart"
    );
    assert_eq!(line["src.identity"], "spiffe://east.example/zeugma/gateway");
    // Another workload is known to west as well, and not allowed.
    let mut tls = other.dial(east.apps(), DB, &[]).await.unwrap();
    let mut all = Vec::new();
    within("the end", tls.read_to_end(&mut all)).await.ok();
    assert_eq!(all, b"");
    let line = west
        .process
        .log(|line| line["verdict"] == "not-allowed")
        .await;
    assert_eq!(
        line["src.attested"],
        "spiffe://east.example/ns/shop/sa/other"
    );
}

#[tokio::test]
async fn silence_ends_a_connection_after_the_idle_time() {
    let service = TcpService::start();
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let idle = "timeouts: { idle: 300ms }";
    let gateway = Gateway::of(east, &tcp_route(&[&backend, FROM_APPS, idle])).await;
    let mut tcp = TcpStream::connect(db).await.unwrap();
    banner(&mut tcp).await;
    assert_eq!(read_all(&mut tcp).await, b"");
    let line = gateway.process.connection(tcp.local_addr().unwrap()).await;
    assert_eq!(
        (&line["verdict"], &line["flags"]),
        (&json!("idle-timeout"), &json!("SI"))
    );
}

#[tokio::test]
async fn a_tcp_connection_goes_to_the_next_endpoint_and_to_the_next_cluster() {
    let (refusing, service) = (Refusing::new(), TcpService::start());
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let near = endpoints(&[refusing.address, refusing.address]);
    let far = endpoints(&[service.address()]);
    let pair = Pair::of(
        (east, Cluster::new("west")),
        &tcp_route(&[
            &format!("backends: [{{ {near} }}, {{ peer: west }}]"),
            FROM_APPS,
        ]),
        &tcp_route(&[&format!("backends: [{{ {far} }}]"), FROM_EAST, EXPORT]),
    )
    .await;
    for _ in 0..3 {
        let mut tcp = TcpStream::connect(db).await.unwrap();
        banner(&mut tcp).await;
        drop(tcp);
    }
    assert_eq!(service.hits(), 3);
    let line = pair
        .east
        .process
        .log(|line| line["dst.backend"] == "west")
        .await;
    assert_eq!(line["level"], 1);
}

const PASS: &str = "inbound: passthrough";
const PASS_APPS: &str = "allow: [{ listeners: [apps] }]";
const PASS_MESH: &str = "allow: [{ listeners: [apps, mesh] }]";

async fn who_answers(caller: &Identity, gateway: &Gateway) -> String {
    let tls = within(
        "a handshake",
        caller.dial(gateway.apps(), DB, &[b"http/1.1"]),
    )
    .await;
    let mut client = h1(tls.unwrap()).await;
    let request = http::Request::get("/").header("host", DB);
    let request = request.body(crate::mesh::empty()).unwrap();
    let response = within("an answer", client.send_request(request))
        .await
        .unwrap();
    crate::mesh::collect(response).await.text()
}

/// East's route to `targets`, west's to `own`; the workloads speak TLS themselves.
async fn passing((east, west): (Cluster, Cluster), targets: &str, own: &str) -> Pair {
    Pair::of(
        (east, west),
        &tcp_route(&[targets, PASS, PASS_APPS]),
        &tcp_route(&[own, PASS, PASS_MESH, EXPORT]),
    )
    .await
}

fn workload_backend(address: std::net::SocketAddr) -> String {
    format!("{{ tls: workload, {} }}", endpoints(&[address]))
}

#[tokio::test]
async fn a_callers_own_tls_passes_through_both_gateways_to_the_workload() {
    let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let caller = east.identity("ns/shop/sa/cart");
    let service = Service::mtls("workload", &west.identity("ns/shop/sa/db")).await;
    let own = format!("backends: [{}]", workload_backend(service.address));
    let pair = passing((east, west), "backends: [{ peer: west }]", &own).await;
    assert_eq!(who_answers(&caller, &pair.east).await, "workload");
    let line = pair
        .west
        .process
        .log(|line| line["dst.service"] == "demo/db")
        .await;
    assert_eq!(
        (&line["sni"], &line["verdict"]),
        (&json!(DB), &json!("completed"))
    );
    // Nobody was identified on the way: it is their own TLS.
    assert_eq!(line["src.identity"], json!(null));
}

#[tokio::test]
async fn an_attempt_to_pass_through_moves_on_until_the_first_byte() {
    let (mut east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let caller = east.identity("ns/shop/sa/cart");
    let service = Service::mtls("workload", &east.identity("ns/shop/sa/db")).await;
    let refusing = Refusing::new();
    let resetting = TcpService::with(|mut tcp| async move {
        tcp.read_u8().await.ok();
        tcp.set_zero_linger().ok();
    });
    // RFC 8446 §6: a fatal alert, internal_error.
    let alerting = TcpService::with(|mut tcp| async move {
        tcp.read_u8().await.ok();
        tcp.write_all(&[21, 3, 3, 0, 2, 2, 80]).await.ok();
    });
    let mut backends = String::from("backends:");
    for address in [
        refusing.address,
        resetting.address(),
        alerting.address(),
        service.address,
    ] {
        backends.push_str(&format!("\n    - {}", workload_backend(address)));
    }
    let routes = tcp_route(&[&backends, PASS, PASS_APPS]);
    let gateway = Gateway::of(east, &routes).await;
    for _ in 0..6 {
        assert_eq!(who_answers(&caller, &gateway).await, "workload");
    }
    drop(west);
}

#[tokio::test]
async fn a_peer_without_a_healthy_endpoint_says_so_and_the_next_target_is_used() {
    let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let caller = east.identity("ns/shop/sa/cart");
    let backup = Service::mtls("backup", &east.identity("ns/shop/sa/db")).await;
    let gone = Refusing::new();
    west.set("workers", "1");
    let own = format!("backends: [{}]", workload_backend(gone.address));
    let targets = format!(
        "backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]\n  \
         failover: {{ order: [{{ cluster: west }}, {{ backend: backup }}] }}",
        workload_backend(backup.address).trim_matches(['{', '}'])
    );
    let pair = passing((east, west), &targets, &own).await;
    // West's answer is the alert internal_error, before any byte of a server hello.
    let direct = caller.dial(pair.west.cluster.mesh, DB, &[]).await;
    let error = direct.unwrap_err().to_string();
    assert!(error.contains("InternalError"), "{error}");
    assert_eq!(who_answers(&caller, &pair.east).await, "backup");
}
