//! What went wrong once: refusals, resets and upgrades at the edges of the data path.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::header;
use hyper::body::Frame;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::data_client::{Client, Wire, call, finish, raw, read_head};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route, route, statuses};
use crate::data_reports::without_reports;
use crate::data_services::{
    AnyBody, BANNER, HttpService, Mode, Refusing, Speaks, TcpService, read_all,
};
use crate::mesh::{Cluster, within};

/// Passive checks that eject nothing.
const NO_EJECTION: &str =
    "health: { passive: { consecutive: 0, errorRate: { over: 100%, requests: 1000 } } }";
/// West first, then the backend `backup`.
const WEST_FIRST: &str = "failover: { order: [{ cluster: west }, { backend: backup }] }";

fn backends(address: SocketAddr) -> String {
    format!("backends: [{{ {} }}]", endpoints(&[address]))
}

/// West, and `backup` for when it fails.
fn west_and_backup(backup: SocketAddr) -> String {
    format!(
        "backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]",
        endpoints(&[backup])
    )
}

fn tcp_route(spec: &[&str]) -> String {
    let common = ["protocol: tcp", "port: 5432"];
    route("db", &[&common, spec].concat())
}

/// A cluster with a listener for the route `db` alone.
fn with_db_listener() -> (Cluster, SocketAddr) {
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    (east, db)
}

/// Three connections to an endpoint that resets, and three that the next level takes.
async fn ejects_what_resets(reads_first: bool) {
    let resetting = TcpService::with(move |mut tcp| async move {
        if reads_first {
            tcp.read_u8().await.ok();
        }
        tcp.set_zero_linger().unwrap();
    });
    let service = TcpService::start();
    let (east, db) = with_db_listener();
    let both = format!(
        "backends: [{{ {} }}, {{ name: far, locality: us/us-1, {} }}]",
        endpoints(&[resetting.address()]),
        endpoints(&[service.address()])
    );
    let passive = "health: { passive: { consecutive: 3, keepAtLeast: 0, eject: 10m } }";
    let routes = tcp_route(&[&both, "allow: [{ listeners: [db] }]", passive]);
    let gateway = Gateway::of(east, &routes).await;
    let mut taken_elsewhere = 0;
    for _ in 0..3 {
        let mut tcp = TcpStream::connect(db).await.unwrap();
        // It may be reset by now.
        tcp.write_all(b"x").await.ok();
        let mut byte = [0];
        let first = within("the end", tcp.read(&mut byte)).await;
        let source = tcp.local_addr().unwrap();
        if matches!(first, Ok(1..)) {
            // The reset was there before the connection was.
            assert!(!reads_first);
            taken_elsewhere += 1;
            drop(tcp);
            gateway.process.connection(source).await;
        } else {
            let line = gateway.process.connection(source).await;
            assert_eq!(line["verdict"], "upstream-reset", "{line}");
        }
    }
    gateway
        .until("db", "the ejection", |now| {
            statuses(now) == ["ejected", "healthy"]
        })
        .await;
    for _ in 0..3 {
        let mut tcp = TcpStream::connect(db).await.unwrap();
        tcp.shutdown().await.unwrap();
        let all = read_all(&mut tcp).await;
        assert!(all.starts_with(BANNER), "{all:?}");
    }
    assert_eq!((resetting.hits(), service.hits()), (3, 3 + taken_elsewhere));
}

#[tokio::test]
async fn a_tcp_endpoint_that_resets_before_its_first_byte_is_ejected() {
    for reads_first in [true, false] {
        ejects_what_resets(reads_first).await;
    }
}

#[tokio::test]
async fn a_connection_that_a_peer_could_take_nowhere_is_taken_elsewhere() {
    let (gone, backup) = (Refusing::new(), TcpService::start());
    let (east, db) = with_db_listener();
    let pair = Pair::of(
        (east, Cluster::new("west")),
        &tcp_route(&[
            &west_and_backup(backup.address()),
            WEST_FIRST,
            "allow: [{ listeners: [db] }]",
            NO_EJECTION,
        ]),
        &tcp_route(&[
            &backends(gone.address),
            "allow: [{ from: [\"spiffe://east.example/*\"] }]",
            "export: { to: [\"*\"] }",
            NO_EJECTION,
        ]),
    )
    .await;
    for _ in 0..3 {
        let mut tcp = TcpStream::connect(db).await.unwrap();
        // What the caller said first is not lost on the way.
        tcp.write_all(b"hello").await.unwrap();
        tcp.shutdown().await.unwrap();
        let all = read_all(&mut tcp).await;
        assert_eq!(all, [BANNER, b"hello\n5 bytes"].concat());
        let line = pair
            .east
            .process
            .connection(tcp.local_addr().unwrap())
            .await;
        assert_eq!(
            (&line["verdict"], &line["dst.backend"]),
            (&json!("completed"), &json!("backup")),
            "{line}"
        );
    }
    assert_eq!(backup.hits(), 3);
    let line = pair
        .west
        .process
        .log(|line| line["dst.service"] == "demo/db")
        .await;
    assert_eq!(line["verdict"], "connect-failed", "{line}");
    pair.finish().await;
}

#[tokio::test]
async fn an_upgrade_to_http_2_is_not_offered_to_the_service() {
    let service = HttpService::start("west");
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &[&backends(service.address())]),
    )
    .await;
    let near = Gateway::alone(&near_route("hello", &[&backends(service.address())])).await;
    for apps in [near.apps(), pair.east.apps()] {
        for (path, answered) in [("/", "HTTP/1.1 200 "), ("/switch", "HTTP/1.1 426 ")] {
            let answer = raw(
                apps,
                &format!(
                    "GET {path} HTTP/1.1\r\nhost: {HELLO}\r\n\
                     connection: close, Upgrade, HTTP2-Settings\r\n\
                     upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
                ),
            )
            .await;
            assert!(answer.starts_with(answered), "{answer}");
            let seen = service.last();
            for name in ["upgrade", "http2-settings", "connection"] {
                assert_eq!(seen.header(name), "", "{name}");
            }
        }
    }
}

#[tokio::test]
async fn a_protocol_that_nobody_asked_for_is_no_tunnel() {
    let (tell, mut told) = mpsc::unbounded_channel();
    let service = TcpService::with(move |mut tcp| {
        let tell = tell.clone();
        async move {
            read_head(&mut tcp).await.ok();
            let switched = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                            upgrade: h2c\r\n\r\n";
            tcp.write_all(switched.as_bytes()).await.ok();
            let mut rest = Vec::new();
            tcp.read_to_end(&mut rest).await.ok();
            tell.send(rest).ok();
        }
    });
    let backend = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&backend, NO_EJECTION])).await;
    for asked in [
        "",
        "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        "connection: upgrade\r\nupgrade: websocket\r\n",
    ] {
        let before = service.hits();
        let mut tcp = TcpStream::connect(gateway.apps()).await.unwrap();
        let head = format!("GET / HTTP/1.1\r\nhost: {HELLO}\r\n{asked}\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        let answer = read_head(&mut tcp).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 502 "), "{asked}: {answer}");
        // Not a request either.
        tcp.write_all(b"\x00smuggled\r\n\r\n").await.ok();
        let mut rest = Vec::new();
        within("the end", tcp.read_to_end(&mut rest)).await.ok();
        let hits = service.hits();
        assert!(hits > before);
        for _ in before..hits {
            let arrived = within("the service's end", told.recv()).await.unwrap();
            assert_eq!(arrived, b"", "{asked}");
        }
    }
}

#[tokio::test]
async fn a_refused_head_has_no_body_and_leaves_its_connection_in_step() {
    let service = HttpService::start("near");
    let own = backends(service.address());
    let closed = [
        "protocol: http",
        "allow: [{ from: [\"spiffe://east.example/ns/shop/sa/cart\"] }]",
        &own,
    ];
    let routes = [near_route("hello", &[&own]), route("closed", &closed)].concat();
    let gateway = Gateway::alone(&routes).await;
    for (host, status) in [
        ("other.demo.svc.clusterset.local", 404),
        ("closed.demo.svc.clusterset.local", 403),
    ] {
        for wire in [Wire::H1, Wire::H2] {
            let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
            for _ in 0..2 {
                let head = client.head("HEAD", host, "/");
                let refused = client.send(head.body(AnyBody::empty()).unwrap());
                let refused = within("a refusal", refused).await.unwrap();
                assert_eq!((refused.status.as_u16(), refused.body.len()), (status, 0));
                let got = within("a refusal", client.get(host, "/")).await.unwrap();
                assert_eq!(got.status.as_u16(), status);
                // RFC 9110 §8.6: as it would have been for GET, if it is there.
                let length = got.body.len().to_string();
                assert_eq!(refused.header("content-length"), length, "{wire:?}");
                let own = within("an answer", client.get(HELLO, "/")).await.unwrap();
                assert_eq!(own.text(), "near", "{wire:?}");
            }
        }
        let text = format!("HEAD / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let answer = raw(gateway.apps(), &text).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(body, "");
    }
    assert_eq!(service.hits(), 8);
}

#[tokio::test]
async fn the_lines_of_a_cookie_are_one_for_a_service_with_http_1() {
    let service = HttpService::start_with("old", Speaks::OnlyH1);
    let own = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &[&own]),
    )
    .await;
    for apps in [pair.west.apps(), pair.east.apps()] {
        let mut client = Client::connect(apps, &Wire::H2).await.unwrap();
        let head = client.head("GET", HELLO, "/");
        let head = head
            .header(header::COOKIE, "a=1")
            .header(header::COOKIE, "b=2");
        let request = head.body(AnyBody::empty()).unwrap();
        let answer = within("an answer", client.send(request)).await.unwrap();
        assert_eq!(answer.text(), "old");
        // RFC 9113 §8.2.3; lines would be told apart by a bar.
        assert_eq!(service.last().header("cookie"), "a=1; b=2");
    }
}

#[tokio::test]
async fn a_peer_that_takes_few_streams_at_once_has_more_connections() {
    let service = HttpService::start("west");
    let mut west = Cluster::new("west");
    west.set("limits", "{ streams: 2 }");
    let pair = Pair::of(
        (Cluster::new("east"), west),
        &http_route("hello", &["backends: [{ peer: west }]", NO_EJECTION]),
        &http_route("hello", &[&backends(service.address()), NO_EJECTION]),
    )
    .await;
    for wire in [Wire::H1, Wire::H2] {
        let mut shared = Client::connect(pair.east.apps(), &Wire::H2).await.unwrap();
        let mut open = Vec::new();
        // Each stays open until all are.
        for _ in 0..10 {
            let mut own = Client::connect(pair.east.apps(), &wire).await.unwrap();
            let client = match wire {
                Wire::H1 => &mut own,
                Wire::H2 => &mut shared,
            };
            let (frames, body) = AnyBody::channel();
            let request = client.head("POST", HELLO, "/echo").body(body).unwrap();
            let begun = within("an answer's head", client.begin(request)).await;
            open.push((frames, begun.unwrap(), own));
        }
        for (frames, answer, _own) in open {
            assert_eq!(answer.status(), 200, "{wire:?}");
            let sending = async {
                frames.send(Frame::data(Bytes::from("word"))).await.unwrap();
                drop(frames);
            };
            let ending = async { tokio::join!(finish(answer), sending).0 };
            assert_eq!(within("the echo", ending).await.unwrap().text(), "word");
        }
    }
    pair.finish().await;
}

#[tokio::test]
async fn a_workload_cannot_mark_its_request_as_a_copy() {
    let (primary, canary) = (HttpService::start("primary"), HttpService::start("canary"));
    let own = backends(primary.address());
    let hello = near_route("hello", &[&own, "mirror: [{ route: demo/canary }]"]);
    let copies = near_route("canary", &[&backends(canary.address())]);
    let gateway = Gateway::alone(&format!("{hello}{copies}")).await;
    for (nth, wire) in [Wire::H1, Wire::H2].into_iter().enumerate() {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let head = client
            .head("GET", HELLO, "/")
            .header("x-zeugma-mirror", "1");
        let request = head.body(AnyBody::empty()).unwrap();
        let answer = within("an answer", client.send(request)).await.unwrap();
        assert_eq!(answer.text(), "primary");
        assert_eq!(primary.last().header("x-zeugma-mirror"), "", "{wire:?}");
        canary.arrived(nth + 1).await;
        assert_eq!(canary.last().header("x-zeugma-mirror"), "1", "{wire:?}");
    }
}

/// Upgrades to WebSocket and says one word.
async fn websocket(apps: SocketAddr) {
    let mut tcp = TcpStream::connect(apps).await.unwrap();
    let head = format!(
        "GET /switch HTTP/1.1\r\nhost: {HELLO}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let answer = read_head(&mut tcp).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    tcp.write_all(b"word").await.unwrap();
    tcp.shutdown().await.unwrap();
    assert_eq!(read_all(&mut tcp).await, b"echo:word:end");
}

#[tokio::test]
async fn a_websocket_goes_to_the_next_endpoint_that_can_be_reached() {
    let (gone, service) = (Refusing::new(), HttpService::start("good"));
    let both = format!(
        "backends: [{{ {} }}, {{ name: far, locality: us/us-1, {} }}]",
        endpoints(&[gone.address]),
        endpoints(&[service.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&both, NO_EJECTION])).await;
    for _ in 0..3 {
        websocket(gateway.apps()).await;
    }
    assert_eq!(service.hits(), 3);
    let retried = [("cause", "connect")];
    let retried = gateway.counted("zeugma_retries_total", &retried).await;
    assert!(retried >= 3.0, "{retried}");
}

#[tokio::test]
async fn a_websocket_that_a_peer_has_no_endpoint_for_goes_elsewhere() {
    let (gone, backup) = (Refusing::new(), HttpService::start("backup"));
    for (far, verdict) in [
        ("backends: [{ peer: east }]", "no-local-endpoint"),
        (&*backends(gone.address), "connect-failed"),
    ] {
        let before = backup.hits();
        let east = west_and_backup(backup.address());
        // What was reported before would keep it from west.
        let (pair, _places) = Box::pin(without_reports(
            &http_route("hello", &[&east, WEST_FIRST, NO_EJECTION]),
            &http_route("hello", &[far, NO_EJECTION]),
        ))
        .await;
        websocket(pair.east.apps()).await;
        assert_eq!(backup.hits(), before + 1);
        let id = backup.last().header("x-request-id");
        let line = pair.west.request(&id).await;
        assert_eq!(line["verdict"], verdict, "{line}");
        // The connection between the gateways is still in step.
        let answer = call(pair.east.apps(), "POST", HELLO, "/", Bytes::from("x")).await;
        assert_eq!(answer.text(), "backup");
        pair.finish().await;
    }
}

#[tokio::test]
async fn a_peer_that_takes_few_streams_at_once_costs_no_request_and_no_time() {
    let service = HttpService::start("west");
    service.set(Mode::Delay(Duration::from_millis(300)));
    let mut west = Cluster::new("west");
    west.set("limits", "{ streams: 2 }");
    // Twenty behind one another, two at a time, would take 3 s.
    let timeouts = "timeouts: { responseHeaders: 2s }";
    let pair = Pair::of(
        (Cluster::new("east"), west),
        &http_route(
            "hello",
            &["backends: [{ peer: west }]", timeouts, NO_EJECTION],
        ),
        &http_route("hello", &[&backends(service.address()), NO_EJECTION]),
    )
    .await;
    for wire in [Wire::H1, Wire::H2] {
        let mut calls = tokio::task::JoinSet::new();
        let shared = Client::connect(pair.east.apps(), &Wire::H2).await.unwrap();
        let Client::H2(sender) = shared else {
            unreachable!("an HTTP/2 client")
        };
        for _ in 0..20 {
            let mut client = match wire {
                Wire::H1 => Client::connect(pair.east.apps(), &wire).await.unwrap(),
                Wire::H2 => Client::H2(sender.clone()),
            };
            calls.spawn(async move { client.post(HELLO, "/", Bytes::from("x")).await });
        }
        while let Some(answer) = within("an answer", calls.join_next()).await {
            let answer = answer.unwrap().unwrap();
            assert_eq!(
                (answer.status.as_u16(), &*answer.text()),
                (200, "west"),
                "{wire:?}"
            );
        }
    }
    assert_eq!(service.hits(), 40);
    for gateway in [&pair.east, &pair.west] {
        let told = gateway.process.log_so_far();
        let odd: Vec<_> = told
            .iter()
            .filter(|line| line["kind"] == "request" && line["verdict"] != "completed")
            .collect();
        assert!(odd.is_empty(), "{odd:?}");
    }
    let timeouts = [("cause", "timeout")];
    let retried = pair.east.counted("zeugma_retries_total", &timeouts).await;
    assert!(retried.abs() < f64::EPSILON, "{retried}");
    pair.finish().await;
}
