//! Limits that are reached, TLS that is not ours to speak, and the way out.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use rustix::process::Signal;
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::mesh::hello::{alert, rest, say};
use crate::mesh::{
    Cluster, Gateway, Identity, Service, collect, empty, eventually, frames, get, h1, h2, send,
    within,
};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// A cluster with `orders` for its own workloads and for west.
fn serve(east: &Cluster, service: &Service) {
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ listeners: [apps] }}, {{ from: ['spiffe://west.example/*'] }}]
            export: {{ to: [west] }}",
            service.address
        ),
    );
}

async fn east_and_caller() -> (Cluster, Identity, Service) {
    let service = Service::http("orders").await;
    let (mut west, east) = (Cluster::new("west"), Cluster::new("east"));
    east.meet(&west);
    serve(&east, &service);
    (east, west.identity("ns/shop/sa/cart"), service)
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_those_that_are_open_live_on() {
    let (mut east, _caller, _service) = east_and_caller().await;
    east.set("limits", "{ connections: 3 }");
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut sender = h1(TcpStream::connect(east.apps).await.unwrap()).await;
        let request = Request::get("/").header("host", ORDERS).body(empty());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(collect(response).await.text(), "orders");
        open.push(sender);
    }
    for address in [east.apps, east.mesh] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let source = tcp.local_addr().unwrap();
        assert_eq!(rest(&mut tcp).await, b"");
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], "connection-limit", "{line}");
        assert_eq!(line["flags"], "UO");
    }
    for sender in &mut open {
        let request = Request::get("/").header("host", ORDERS).body(empty());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        assert_eq!(collect(response).await.text(), "orders");
    }
    // A place that is free again is given again.
    open.pop();
    eventually("a free place", async || {
        let mut sender = h1(TcpStream::connect(east.apps).await.ok()?).await;
        let request = Request::get("/").header("host", ORDERS).body(empty());
        sender.send_request(request.unwrap()).await.ok()
    })
    .await;
    drop(open);
    let metrics = gateway.metrics().await;
    let refused = |listener| {
        let labels = [("listener", listener), ("reason", "connection-limit")];
        metrics.value("zeugma_connections_total", &labels)
    };
    assert_eq!(refused("mesh"), 1.0);
    assert!(refused("apps") >= 1.0);
    // Endpoints' connections stay in their pools.
    gateway.sockets_fall_to(sockets + 3).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused() {
    let (mut east, caller, service) = east_and_caller().await;
    east.set("limits", "{ headerBytes: 8KiB }");
    let gateway = east.start().await;
    let long = "a".repeat(12 * 1024);
    let request = |with: &str| {
        Request::get("/")
            .header("host", ORDERS)
            .header("x-long", with)
            .body(empty())
            .unwrap()
    };
    assert_eq!(send(east.apps, request(&long)).await.status, 431);
    assert_eq!(send(east.apps, request(&long[..4096])).await.status, 200);

    let dialled = caller.dial(east.mesh, ORDERS, &[b"h2"]).await;
    let mut sender = h2(dialled.unwrap()).await;
    let request = |with: &str| {
        Request::get(format!("http://{ORDERS}/"))
            .header("x-long", with)
            .body(empty())
            .unwrap()
    };
    let refused = within("an end", sender.send_request(request(&long))).await;
    assert!(refused.is_err() || refused.is_ok_and(|response| response.status() == 431));
    let dialled = caller.dial(east.mesh, ORDERS, &[b"h2"]).await;
    let mut sender = h2(dialled.unwrap()).await;
    let response = within("a response", sender.send_request(request(&long[..4096]))).await;
    assert_eq!(response.unwrap().status(), 200);
    drop(sender);
    assert_eq!(service.requests().len(), 2);
    gateway.finish().await;
}

#[tokio::test]
async fn a_head_that_does_not_end_is_given_up() {
    let (mut east, caller, service) = east_and_caller().await;
    east.set("limits", "{ headerTimeout: 300ms, handshakeTimeout: 5s }");
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let half = format!("GET / HTTP/1.1\r\nHost: {ORDERS}\r\nX: ");
    let (source, answer) = say(east.apps, half.as_bytes()).await;
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"),
        "{answer:?}"
    );
    let line = gateway.connection(source).await;
    assert_eq!(line["verdict"], "hello-timeout", "{line}");

    let tcp = TcpStream::connect(east.mesh).await.unwrap();
    let source = tcp.local_addr().unwrap();
    let dialled = caller.dial_over(tcp, ORDERS, &[b"http/1.1"]).await;
    let mut stream = dialled.unwrap();
    stream.write_all(half.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    within("the end", stream.read_to_end(&mut answer))
        .await
        .ok();
    let line = gateway.connection(source).await;
    assert_eq!(line["verdict"], "hello-timeout", "{line}");
    assert_eq!(service.connections(), 0);
    drop(stream);
    gateway.sockets_fall_to(sockets).await;
    gateway.finish().await;
}

/// A TLS client that would verify nothing: only what the gateway does matters.
fn client_config(versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth()
}

/// A ClientHello that offers TLS 1.2 alone: no `supported_versions` (RFC 8446 §4.2.1).
fn tls12_hello() -> Vec<u8> {
    let name = ORDERS.as_bytes();
    let length = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
    let server_name = [
        &[0, 0][..],
        &length(name.len() + 5),
        &length(name.len() + 3),
        &[0],
        &length(name.len()),
        name,
    ]
    .concat();
    let groups = [0, 10, 0, 4, 0, 2, 0, 29];
    let signatures = [0, 13, 0, 4, 0, 2, 4, 3];
    let extensions = [&server_name[..], &groups, &signatures].concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 2, 0xc0, 0x2b],
        &[1, 0],
        &length(extensions.len()),
        &extensions,
    ]
    .concat();
    let message = [&[1, 0][..], &length(body.len()), &body].concat();
    [&[22, 3, 1][..], &length(message.len()), &message].concat()
}

#[tokio::test]
async fn tls_is_1_3_hybrid_and_never_resumed() {
    let (east, caller, _service) = east_and_caller().await;
    let gateway = east.start().await;
    let (source, answer) = say(east.mesh, &tls12_hello()).await;
    // RFC 8446 §6.2: protocol_version.
    assert_eq!(answer, alert(70));
    let line = gateway.connection(source).await;
    assert_eq!(line["verdict"], "handshake-failed", "{line}");

    // A caller that would resume if it were let.
    let sessions = Resumption::in_memory_sessions(8);
    for _ in 0..3 {
        let mut config = caller.client(&[b"http/1.1"]);
        config.resumption = sessions.clone();
        let tcp = TcpStream::connect(east.mesh).await.unwrap();
        let name = ServerName::try_from(ORDERS).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream = within("a handshake", connector.connect(name, tcp))
            .await
            .unwrap();
        let request = format!("GET / HTTP/1.1\r\nHost: {ORDERS}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        within("the end", stream.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        let (_, session) = stream.get_ref();
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
        assert_eq!(session.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let group = session.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_caller_that_does_not_trust_us_is_told_of_in_one_line() {
    let (east, _caller, _service) = east_and_caller().await;
    let gateway = east.start().await;
    let tcp = TcpStream::connect(east.mesh).await.unwrap();
    let source = tcp.local_addr().unwrap();
    let config = client_config(&[&rustls::version::TLS13]);
    let name = ServerName::try_from(ORDERS).unwrap();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, tcp);
    assert!(within("a handshake", connected).await.is_err());
    let line = gateway.connection(source).await;
    assert_eq!(line["verdict"], "handshake-failed", "{line}");
    assert!(
        line["error"].as_str().unwrap().contains("UnknownCA"),
        "{line}"
    );
    gateway.finish().await;
}

/// A service whose responses go on until the test ends them.
async fn slow() -> (tokio::sync::mpsc::Sender<Bytes>, Service) {
    let (send, body) = frames();
    let body = std::sync::Mutex::new(Some(body));
    let service = Service::handling(move |_request| {
        let body = body.lock().unwrap().take().unwrap_or_else(empty);
        async move { Response::new(body) }
    })
    .await;
    (send, service)
}

#[tokio::test]
async fn sigterm_says_so_accepts_for_the_delay_and_lets_what_is_open_end() {
    let (frames, service) = slow().await;
    let mut east = Cluster::new("east");
    east.peer(
        "west",
        "
        cluster: west
        locality: west/west-1
        gateways: ['127.0.0.1:1']
        spiffeIDs: ['spiffe://west.example/zeugma/gateway']",
    );
    east.trust("west.example");
    serve(&east, &service);
    east.set("drain", "{ delay: 1500ms, timeout: 15s }");
    let mut gateway = east.start().await;
    let mut sender = h1(TcpStream::connect(east.apps).await.unwrap()).await;
    let request = Request::get("/")
        .header("host", ORDERS)
        .body(empty())
        .unwrap();
    let response = within("a response", sender.send_request(request))
        .await
        .unwrap();
    assert_eq!(response.status(), 200);

    let began = Instant::now();
    gateway.signal(Signal::TERM);
    eventually("not ready", async || {
        (gateway.ready().await == 503).then_some(())
    })
    .await;
    let noticed = began.elapsed();
    // Not ready, and still accepting: a load balancer takes its time to see it.
    let during = get(east.apps, ORDERS, "/").await;
    if began.elapsed() < Duration::from_millis(1500) {
        assert_eq!(during.status, 200);
    }
    assert!(noticed < Duration::from_millis(1500), "{noticed:?}");
    gateway.message("ZG0902 draining: no new connections").await;
    assert!(began.elapsed() >= Duration::from_millis(1500));
    eventually("no new connection", async || {
        TcpStream::connect(east.apps).await.is_err().then_some(())
    })
    .await;
    // What was under way goes on to its own end.
    frames
        .send(Bytes::from_static(b"to the end"))
        .await
        .unwrap();
    drop(frames);
    assert_eq!(collect(response).await.text(), "to the end");
    let status = gateway.ended().await;
    assert_eq!(status.code(), Some(0), "{}", gateway.told());
    assert!(began.elapsed() < Duration::from_secs(15));
    gateway.message("ZG0903 drained").await;
    let line = gateway.log(|line| line["bytes_sent"] == 10).await;
    assert_eq!(line["verdict"], "completed", "{line}");
}

#[tokio::test]
async fn the_drain_deadline_ends_what_does_not_end() {
    let (frames, service) = slow().await;
    let (west, mut east) = (Cluster::new("west"), Cluster::new("east"));
    east.meet(&west);
    serve(&east, &service);
    east.set("drain", "{ delay: 0s, timeout: 500ms }");
    let mut gateway = east.start().await;
    let mut sender = h1(TcpStream::connect(east.apps).await.unwrap()).await;
    let request = Request::get("/")
        .header("host", ORDERS)
        .body(empty())
        .unwrap();
    let response = within("a response", sender.send_request(request))
        .await
        .unwrap();
    // One that has said nothing yet.
    let silent = TcpStream::connect(east.mesh).await.unwrap();
    let opened = [("listener", "mesh")];
    gateway
        .metric_becomes("zeugma_connections_open", &opened, 1.0)
        .await;
    let began = Instant::now();
    gateway.signal(Signal::TERM);
    let status = gateway.ended().await;
    assert_eq!(status.code(), Some(0), "{}", gateway.told());
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    // Cut: what has no end yet is no whole response.
    let cut = within(
        "the end",
        http_body_util::BodyExt::collect(response.into_body()),
    )
    .await;
    assert!(cut.is_err());
    drop(frames);
    for kind in ["connection", "request"] {
        let ended = gateway.log(|line| line["kind"] == kind).await;
        assert_eq!(ended["verdict"], "drained", "{ended}");
    }
    let line = gateway.connection(silent.local_addr().unwrap()).await;
    assert_eq!(line["verdict"], "drained", "{line}");
}

#[tokio::test]
async fn a_gateway_that_cannot_start_says_why_and_ends() {
    let (mut east, _caller, _service) = east_and_caller().await;
    let gateway = east.start().await;
    // The same addresses again, with a state of its own.
    east.set("stateDir", "other");
    east.write_gateway();
    let output = Gateway::try_start(&east.config());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("error[ZG0113]: ") && text.contains("cannot be bound"),
        "{text}"
    );
    assert_eq!(output.stdout, b"");
    gateway.finish().await;

    std::fs::remove_file(east.svid().key).unwrap();
    let output = Gateway::try_start(&east.config());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(
        text.contains("error[ZG0206]: ") && text.contains("gw.key"),
        "{text}"
    );
    east.write("gateway.yaml", "kind: [");
    let output = Gateway::try_start(&east.config());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(
        text.starts_with("error[ZG0128]: ") && text.contains("gateway.yaml:1"),
        "{text}"
    );
}
