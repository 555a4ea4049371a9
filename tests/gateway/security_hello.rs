//! What comes before a handshake: server names, ClientHellos in pieces, and bytes that are none.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::mesh::hello::{Cut, Knife, alert, hello, message, record, rest, say};
use crate::mesh::{Cluster, Gateway, Service, collect, empty, get, h1, within};

// RFC 8446 §6.2, RFC 6066 §3.
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const UNRECOGNIZED_NAME: u8 = 112;

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// A cluster whose mesh listener has a service for everybody and one for nobody.
async fn east(handshake_timeout: &str) -> (Cluster, Service) {
    let service = Service::http("orders").await;
    let mut east = Cluster::new("east");
    east.set(
        "limits",
        &format!("{{ handshakeTimeout: {handshake_timeout} }}"),
    );
    // Its callers here are of its own trust domain, from another cluster.
    east.peer(
        "north",
        "
        cluster: north
        locality: north/north-1
        gateways: ['127.0.0.1:1']
        spiffeIDs: ['spiffe://east.example/ns/north/sa/gateway']",
    );
    for (reference, export) in [
        ("shop/orders", "export: { to: ['*'] }"),
        ("shop/secret", ""),
    ] {
        east.route(
            reference,
            &format!(
                "
                protocol: http
                backends: [{{ endpoints: ['{}'] }}]
                allow: [{{ from: ['spiffe://east.example/*'] }}, {{ listeners: [apps] }}]
                {export}",
                service.address
            ),
        );
    }
    (east, service)
}

/// Holds a refusal to all that is promised of it: the bytes the caller saw, one line with the
/// reason, one count; no endpoint was tried and no socket is left.
async fn refused(
    gateway: &Gateway,
    what: &str,
    (source, answer): (SocketAddr, Vec<u8>),
    expected: &[u8],
    reason: &str,
) -> Value {
    assert_eq!(
        answer,
        expected,
        "{what}: {:?}",
        String::from_utf8_lossy(&answer)
    );
    let line = gateway.connection(source).await;
    assert_eq!(line["verdict"], reason, "{what}: {line}");
    assert_eq!(line["listener"], "mesh");
    assert!(line.get("dst.addr").is_none(), "{what}: {line}");
    line
}

async fn counted(gateway: &Gateway, reasons: &[&str]) {
    let metrics = gateway.metrics().await;
    for reason in reasons {
        let times = reasons.iter().filter(|other| *other == reason).count();
        let labels = [("listener", "mesh"), ("reason", *reason)];
        let value = metrics.value("zeugma_connections_total", &labels);
        assert_eq!(value, f64::from(u32::try_from(times).unwrap()), "{reason}");
    }
    assert_eq!(metrics.value("zeugma_attempts_total", &[]), 0.0);
}

#[tokio::test]
async fn a_server_name_that_names_nothing_here_is_refused_at_once() {
    let (east, service) = east("5s").await;
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let long = [&b"a".repeat(63)[..]; 4].join(&b'.').repeat(2);
    let cases: Vec<(&str, Option<&[u8]>, &str)> = vec![
        (
            "unknown",
            Some(b"nobody.shop.svc.clusterset.local"),
            "sni-unknown",
        ),
        ("unknown, as a domain", Some(b"example.com"), "sni-unknown"),
        (
            "a port it does not have",
            Some(b"outbound_.81_._.orders.shop.svc.clusterset.local"),
            "sni-unknown",
        ),
        (
            "a longer name",
            Some(b"a.orders.shop.svc.clusterset.local"),
            "sni-unknown",
        ),
        (
            "exported to nobody",
            Some(b"secret.shop.svc.clusterset.local"),
            "sni-unknown",
        ),
        ("missing", None, "sni-missing"),
        ("300 bytes", Some(&long[..300]), "sni-malformed"),
        ("254 bytes", Some(&long[..254]), "sni-malformed"),
        ("a label of 64 bytes", Some(&[b'a'; 64]), "sni-malformed"),
        ("an IPv4 address", Some(b"127.0.0.1"), "sni-malformed"),
        ("an IPv6 address", Some(b"::1"), "sni-malformed"),
        ("an empty label", Some(b"orders..shop"), "sni-malformed"),
        ("only a dot", Some(b"."), "sni-malformed"),
        ("a space", Some(b"orders shop"), "sni-malformed"),
        ("a newline", Some(b"orders\nshop"), "sni-malformed"),
        (
            "a NUL",
            Some(b"orders.shop.svc.clusterset.local\0.evil"),
            "sni-malformed",
        ),
        ("a path", Some(b"../../etc/passwd"), "sni-malformed"),
        (
            "a wildcard",
            Some(b"*.shop.svc.clusterset.local"),
            "sni-malformed",
        ),
        (
            "a port",
            Some(b"orders.shop.svc.clusterset.local:80"),
            "sni-malformed",
        ),
        ("no UTF-8", Some(b"orders\xff.shop"), "sni-malformed"),
        (
            "letters beyond ASCII",
            Some("örders.shop".as_bytes()),
            "sni-malformed",
        ),
    ];
    for (what, sni, reason) in &cases {
        let said = say(east.mesh, &hello(*sni)).await;
        let line = refused(&gateway, what, said, &alert(UNRECOGNIZED_NAME), reason).await;
        assert_eq!(line["tls.alert"], "unrecognized_name", "{what}: {line}");
    }
    gateway.sockets_fall_to(sockets).await;
    let reasons: Vec<&str> = cases.iter().map(|(_, _, reason)| *reason).collect();
    counted(&gateway, &reasons).await;
    assert_eq!(service.connections(), 0);
    gateway.finish().await;
}

#[tokio::test]
async fn two_server_names_are_refused() {
    let (east, _service) = east("5s").await;
    let gateway = east.start().await;
    // server_name twice in its list, and the extension twice.
    let one = message(Some(ORDERS.as_bytes()));
    let name = [&[0][..], &[0, 32], ORDERS.as_bytes()].concat();
    assert_eq!(ORDERS.len(), 32);
    let at = one.windows(name.len()).position(|w| w == name).unwrap();
    let list = u16::try_from(2 * name.len()).unwrap();
    let twice = [
        &(list + 2).to_be_bytes()[..],
        &list.to_be_bytes(),
        &name,
        &name,
    ]
    .concat();
    let server_name = [&[0, 0][..], &twice].concat();
    let mut names = one[..at - 6].to_vec();
    names.extend(server_name);
    let said = say(east.mesh, &record(&relength(names, name.len()))).await;
    refused(
        &gateway,
        "two names",
        said,
        &alert(UNRECOGNIZED_NAME),
        "sni-malformed",
    )
    .await;

    let mut extensions = one.clone();
    extensions.extend_from_slice(&one[at - 6..]);
    let grown = extensions.len() - one.len();
    let said = say(east.mesh, &record(&relength(extensions, grown))).await;
    refused(
        &gateway,
        "two extensions",
        said,
        &alert(DECODE_ERROR),
        "hello-malformed",
    )
    .await;
    gateway.finish().await;
}

/// Adds `more` to the lengths of a message and of its extensions.
fn relength(mut message: Vec<u8>, more: usize) -> Vec<u8> {
    // header (4), version, random, session ID, suites, compression: the extensions' length.
    for at in [2, 4 + 2 + 32 + 1 + 4 + 2] {
        let length = u16::from_be_bytes([message[at], message[at + 1]]);
        let length = length + u16::try_from(more).unwrap();
        message[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    message
}

#[tokio::test]
async fn bytes_that_are_no_hello_are_refused_at_once() {
    let (east, service) = east("5s").await;
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let valid = hello(Some(ORDERS.as_bytes()));
    let altered = |at: usize, byte: u8| {
        let mut bytes = valid.clone();
        bytes[at] = byte;
        bytes
    };
    let mut over_length = message(Some(ORDERS.as_bytes()));
    over_length[1..4].copy_from_slice(&[0, 0x40, 1]);
    let tiny: Vec<u8> = [1, 0, 0x3f, 0xff]
        .iter()
        .chain(&[0; 20_000])
        .flat_map(|b| record(&[*b]))
        .collect();
    let cases: Vec<(&str, Vec<u8>, u8, &str)> = vec![
        (
            "a ServerHello",
            altered(5, 2),
            DECODE_ERROR,
            "hello-malformed",
        ),
        (
            "version 9 of the record",
            altered(1, 9),
            DECODE_ERROR,
            "hello-malformed",
        ),
        (
            "extensions beyond the end",
            altered(5 + 4 + 2 + 32 + 1 + 4 + 2, 0x7f),
            DECODE_ERROR,
            "hello-malformed",
        ),
        (
            "an empty server name",
            hello(Some(b"")),
            DECODE_ERROR,
            "hello-malformed",
        ),
        (
            "an empty record",
            record(b""),
            DECODE_ERROR,
            "hello-malformed",
        ),
        (
            "a record over 2^14 bytes",
            vec![22, 3, 1, 0x40, 1, 1],
            DECODE_ERROR,
            "hello-malformed",
        ),
        (
            "another record inside",
            [record(&[1, 0]), vec![23, 3, 3, 0, 1, 0]].concat(),
            DECODE_ERROR,
            "hello-malformed",
        ),
        (
            "bytes after it",
            record(&[&message(Some(ORDERS.as_bytes()))[..], b"x"].concat()),
            DECODE_ERROR,
            "hello-malformed",
        ),
        (
            "a message over the limit",
            record(&over_length),
            ILLEGAL_PARAMETER,
            "hello-too-large",
        ),
        (
            "one-byte records without end",
            tiny,
            ILLEGAL_PARAMETER,
            "hello-too-large",
        ),
    ];
    for (what, bytes, description, reason) in &cases {
        let said = say(east.mesh, bytes).await;
        let line = refused(&gateway, what, said, &alert(*description), reason).await;
        assert!(line["error"].is_string(), "{what}: {line}");
    }
    gateway.sockets_fall_to(sockets).await;
    let reasons: Vec<&str> = cases.iter().map(|(_, _, _, reason)| *reason).collect();
    counted(&gateway, &reasons).await;
    assert_eq!(service.connections(), 0);
    gateway.finish().await;
}

#[tokio::test]
async fn what_is_not_tls_is_told_so() {
    let (east, service) = east("5s").await;
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let request = format!("GET / HTTP/1.1\r\nhost: {ORDERS}\r\n\r\n");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let cases: [&[u8]; 5] = [
        request.as_bytes(),
        preface,
        b"\x80\x2e\x01\x00\x02", // SSL 2.0's hello
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[21, 3, 3, 0, 2, 2, 0],
    ];
    for bytes in &cases {
        let (source, answer) = say(east.mesh, bytes).await;
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], "not-tls", "{line}");
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{answer}"
        );
    }
    // As an HTTP client reads it.
    let reply = get(east.mesh, ORDERS, "/").await;
    assert_eq!(reply.status, 400);
    gateway.sockets_fall_to(sockets).await;
    counted(&gateway, &["not-tls"; 6]).await;
    assert_eq!(service.connections(), 0);
    gateway.finish().await;
}

#[tokio::test]
async fn garbage_never_reaches_anybody() {
    let (east, service) = east("300ms").await;
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let seed = 0x7a65_7567_6d61;
    let mut random = fastrand::Rng::with_seed(seed);
    let valid = hello(Some(ORDERS.as_bytes()));
    for round in 0..120 {
        let mut bytes: Vec<u8> = (0..random.usize(1..3000)).map(|_| random.u8(..)).collect();
        match round % 3 {
            0 => {}
            // Garbage that begins as a handshake record does.
            1 => bytes.splice(0..0, [22, 3, 1]).for_each(drop),
            // A ClientHello with a few bytes altered, never so that it stays one for a service.
            _ => {
                bytes.clone_from(&valid);
                let at = bytes.len() - 1 - random.usize(..8);
                bytes[at] = bytes[at].wrapping_add(random.u8(1..));
            }
        }
        let mut tcp = TcpStream::connect(east.mesh).await.unwrap();
        let source = tcp.local_addr().unwrap();
        // The gateway may have refused it before all was written.
        tcp.write_all(&bytes).await.ok();
        tcp.shutdown().await.ok();
        let mut answer = Vec::new();
        within("the end", tcp.read_to_end(&mut answer)).await.ok();
        let line = gateway.connection(source).await;
        let verdict = line["verdict"].as_str().unwrap();
        let expected = [
            "not-tls",
            "hello-malformed",
            "hello-too-large",
            "hello-timeout",
            "downstream-closed",
            "sni-unknown",
            "sni-malformed",
        ];
        assert!(
            expected.contains(&verdict),
            "seed {seed:#x}, round {round}: {line}"
        );
    }
    gateway.sockets_fall_to(sockets).await;
    counted(&gateway, &[]).await;
    assert_eq!(service.connections(), 0);
    gateway.finish().await;
}

#[tokio::test]
async fn silence_ends_within_the_handshake_timeout() {
    let (mut east, service) = east("400ms").await;
    let caller = east.identity("ns/north/sa/gateway");
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let whole = hello(Some(ORDERS.as_bytes()));
    let began = Instant::now();
    for (what, bytes) in [
        ("silence", &b""[..]),
        ("one byte", &whole[..1]),
        ("half a hello", &whole[..whole.len() / 2]),
        ("half a preface", b"PRI * HT"),
    ] {
        let said = say(east.mesh, bytes).await;
        refused(&gateway, what, said, b"", "hello-timeout").await;
    }
    // Half a handshake: the ClientHello of a real TLS stack, and nothing after it.
    let mut session =
        rustls::ClientConnection::new(caller.client(&[]).into(), ORDERS.try_into().unwrap())
            .unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).unwrap();
    let (source, answer) = say(east.mesh, &bytes).await;
    assert_eq!(answer[0], 22, "a ServerHello");
    let line = gateway.connection(source).await;
    assert_eq!(line["verdict"], "handshake-timeout", "{line}");
    assert!(began.elapsed() < Duration::from_secs(10));
    gateway.sockets_fall_to(sockets).await;
    counted(
        &gateway,
        &[
            "hello-timeout",
            "hello-timeout",
            "hello-timeout",
            "hello-timeout",
            "handshake-timeout",
        ],
    )
    .await;
    assert_eq!(service.connections(), 0);
    gateway.finish().await;
}

#[tokio::test]
async fn a_hello_that_trickles_is_no_way_around_the_handshake_timeout() {
    let (mut east, _service) = east("2s").await;
    let caller = east.identity("ns/north/sa/gateway");
    let gateway = east.start().await;
    let mut session =
        rustls::ClientConnection::new(caller.client(&[]).into(), ORDERS.try_into().unwrap())
            .unwrap();
    let mut bytes = Vec::new();
    session.write_tls(&mut bytes).unwrap();
    let mut tcp = TcpStream::connect(east.mesh).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let source = tcp.local_addr().unwrap();
    // Most of the time is spent on the hello; what is left must not begin anew after it.
    let mut ticks = tokio::time::interval(Duration::from_millis(160));
    for piece in bytes.chunks(bytes.len().div_ceil(10)) {
        ticks.tick().await;
        tcp.write_all(piece).await.unwrap();
    }
    rest(&mut tcp).await;
    let line = gateway.connection(source).await;
    assert_eq!(line["verdict"], "handshake-timeout", "{line}");
    let duration = line["duration"].as_str().unwrap();
    let duration: u64 = duration.strip_suffix("ms").unwrap().parse().unwrap();
    assert!((1900..3000).contains(&duration), "{line}");
    gateway.finish().await;
}

#[tokio::test]
async fn a_hello_in_pieces_is_accepted() {
    let (mut east, service) = east("10s").await;
    let caller = east.identity("ns/north/sa/gateway");
    let gateway = east.start().await;
    let knives = [
        Knife::Segments(1),
        Knife::Segments(1000),
        Knife::Records(1),
        Knife::Records(100),
        Knife::Records(1400),
    ];
    for knife in knives {
        let tcp = TcpStream::connect(east.mesh).await.unwrap();
        let source = tcp.local_addr().unwrap();
        let dialled = caller.dial_over(Cut::new(tcp, knife), ORDERS, &[b"http/1.1"]);
        let stream = within("a handshake", dialled).await.unwrap();
        let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap();
        // Its hello is over the 1,460 bytes of a segment (RFC 9794: 1,216 bytes of key share).
        assert_eq!(group.name(), rustls::NamedGroup::X25519MLKEM768);
        let mut sender = h1(stream).await;
        let request = http::Request::get("/").header("host", ORDERS).body(empty());
        let response = within("a response", sender.send_request(request.unwrap())).await;
        assert_eq!(
            collect(response.unwrap()).await.text(),
            "orders",
            "{knife:?}"
        );
        drop(sender);
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], "completed", "{knife:?}: {line}");
        assert_eq!(line["tls.group"], "X25519MLKEM768");
    }
    assert_eq!(service.requests().len(), knives.len());
    gateway.finish().await;
}
