//! What HTTP carries besides plain requests: WebSocket on streams of HTTP/2, traces, and bodies
//! that wait to be asked for.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use h2::ext::Protocol;
use http::{Method, Request, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::data_client::{Client, Wire, raw, read_head};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route};
use crate::data_services::{AnyBody, HttpService, TcpService};
use crate::mesh::{eventually, within};

/// A caller that speaks HTTP/2, once the gateway has said that it takes extended CONNECT.
async fn caller(apps: SocketAddr) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(apps).await.unwrap();
    let (caller, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    eventually("extended CONNECT to be taken", async || {
        caller.is_extended_connect_protocol_enabled().then_some(())
    })
    .await;
    caller
}

/// The head of a request for another protocol (RFC 8441 §4).
fn asks_for(protocol: &'static str, path: &str) -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = format!("http://{HELLO}{path}").parse().unwrap();
    request
        .extensions_mut()
        .insert(Protocol::from_static(protocol));
    request
}

/// Says `hello` on a stream, hears it again, and ends it.
pub(crate) async fn talk(apps: SocketAddr) -> String {
    let mut caller = caller(apps).await;
    let (response, mut send) = caller
        .send_request(asks_for("websocket", "/switch"), false)
        .unwrap();
    let response = within("the answer", response).await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("upgrade"));
    send.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let mut body = response.into_body();
    let mut heard = Vec::new();
    within("what was said", async {
        while !heard.ends_with(b"hello") {
            heard.extend_from_slice(&body.data().await.unwrap().unwrap());
        }
    })
    .await;
    send.send_data(Bytes::new(), true).unwrap();
    within("the end", async {
        while let Some(bytes) = body.data().await {
            heard.extend_from_slice(&bytes.unwrap());
        }
    })
    .await;
    String::from_utf8(heard).unwrap()
}

/// An endpoint by HTTP/2 that sends `hints` interim responses before its answer.
fn hinting(hints: usize) -> TcpService {
    TcpService::with(move |tcp| async move {
        let Ok(mut connection) = h2::server::handshake(tcp).await else {
            return;
        };
        while let Some(Ok((_request, mut respond))) = connection.accept().await {
            for nth in 0..hints {
                let hint = Response::builder().status(103).header("x-nth", nth);
                let hint = hint.header("link", "</style.css>; rel=preload");
                respond.send_informational(hint.body(()).unwrap()).unwrap();
            }
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"final"), true).unwrap();
        }
    })
}

/// The interim responses to a request, and its answer's body.
pub(crate) async fn hints(apps: SocketAddr) -> (Vec<Response<()>>, Vec<u8>) {
    let mut caller = caller(apps).await;
    let request = Request::get(format!("http://{HELLO}/")).body(()).unwrap();
    let (mut response, _send) = caller.send_request(request, true).unwrap();
    let mut hints = Vec::new();
    let answered = std::future::poll_fn(|cx| {
        while let Poll::Ready(Some(hint)) = response.poll_informational(cx) {
            hints.push(hint.unwrap());
        }
        Pin::new(&mut response).poll(cx)
    });
    let response = within("an answer", answered).await.unwrap();
    let mut body = response.into_body();
    let mut all = Vec::new();
    while let Some(bytes) = within("a body", body.data()).await {
        all.extend_from_slice(&bytes.unwrap());
    }
    (hints, all)
}

/// RFC 9110 §15.2: a proxy forwards interim responses that it did not ask for itself.
#[tokio::test]
async fn interim_responses_reach_the_caller_in_order_and_so_many_of_them() {
    let service = hinting(2);
    let near = format!(
        "backends: [{{ version: h2, {} }}]",
        endpoints(&[service.address()])
    );
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &[&near]),
    )
    .await;
    let (heard, body) = hints(pair.east.apps()).await;
    assert_eq!(body, b"final");
    assert_eq!(heard.len(), 2);
    for (nth, hint) in heard.iter().enumerate() {
        assert_eq!(hint.status(), 103);
        assert_eq!(hint.headers()["x-nth"], nth.to_string());
        assert_eq!(hint.headers()["link"], "</style.css>; rel=preload");
    }
    pair.finish().await;

    // More than anybody needs.
    let service = hinting(40);
    let near = format!(
        "backends: [{{ version: h2, {} }}]",
        endpoints(&[service.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
    let (heard, body) = hints(gateway.apps()).await;
    assert_eq!((heard.len(), &*body), (16, &b"final"[..]));
    gateway.process.finish().await;
}

#[tokio::test]
async fn interim_responses_of_an_endpoint_by_http_1_reach_a_caller_by_http_2() {
    let service = TcpService::with(|mut tcp| async move {
        while read_head(&mut tcp).await.is_ok() {
            let answer = "HTTP/1.1 100 Continue\r\n\r\n\
                          HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nconnection: x\r\nx: 1\r\n\
                          content-length: 0\r\nx-zeugma-reason: x\r\n\r\n\
                          HTTP/1.1 103 Early Hints\r\nlink: </b>\r\n\r\n\
                          HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n\
                          5\r\nfinal\r\n0\r\n\r\n";
            tcp.write_all(answer.as_bytes()).await.ok();
        }
    });
    let near = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
    // The second time on a connection that has passed some on before.
    for _ in 0..2 {
        let (heard, body) = hints(gateway.apps()).await;
        assert_eq!(body, b"final");
        let links: Vec<_> = heard.iter().map(|hint| &hint.headers()["link"]).collect();
        assert_eq!(links, ["</a>", "</b>"]);
        assert!(heard.iter().all(|hint| hint.headers().len() == 1));
    }
    gateway.process.finish().await;
}

/// What a caller by HTTP/1 reads of two requests on one connection: the status and the `link` of each head.
async fn heads_by_h1(apps: SocketAddr, version: &str) -> Vec<String> {
    let first = format!("GET / {version}\r\nhost: {HELLO}\r\nconnection: keep-alive\r\n\r\n");
    let last = format!("GET / {version}\r\nhost: {HELLO}\r\nconnection: close\r\n\r\n");
    let text = raw(apps, &[first, last].concat()).await;
    let is_told = |line: &&str| line.starts_with("HTTP/1") || line.starts_with("link: ");
    let text = text.replace("final", "\r\n");
    text.lines().filter(is_told).map(str::to_owned).collect()
}

#[tokio::test]
async fn interim_responses_reach_a_caller_by_http_1_before_the_answer_and_one_by_http_1_0_never() {
    // The second hint and the answer leave once the first has reached the caller.
    let (telling, told) = tokio::sync::mpsc::channel::<()>(1);
    let told = std::sync::Arc::new(tokio::sync::Mutex::new(told));
    let service = TcpService::with(move |mut tcp| {
        let told = std::sync::Arc::clone(&told);
        async move {
            while read_head(&mut tcp).await.is_ok() {
                let hint = "HTTP/1.1 100 Continue\r\n\r\n\
                            HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nconnection: x\r\nx: 1\r\n\r\n";
                tcp.write_all(hint.as_bytes()).await.ok();
                told.lock().await.recv().await;
                let rest = "HTTP/1.1 103 Early Hints\r\nlink: </b>\r\n\r\n\
                            HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfinal";
                tcp.write_all(rest.as_bytes()).await.ok();
            }
        }
    });
    let near = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
    let mut tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {HELLO}\r\n\r\n");
    for _ in 0..2 {
        tcp.write_all(request.as_bytes()).await.unwrap();
        let hint = read_head(&mut tcp).await.unwrap();
        assert_eq!(hint, "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n");
        telling.send(()).await.unwrap();
        let hint = read_head(&mut tcp).await.unwrap();
        assert_eq!(hint, "HTTP/1.1 103 Early Hints\r\nlink: </b>\r\n\r\n");
        let head = read_head(&mut tcp).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        let mut body = [0; 5];
        within("the body", tcp.read_exact(&mut body)).await.unwrap();
        assert_eq!(&body, b"final");
    }
    drop((tcp, telling));
    // With everything at once.
    let two = ["</a>", "</b>"].map(|link| ["HTTP/1.1 103 Early Hints", link]);
    let heads = heads_by_h1(gateway.apps(), "HTTP/1.1").await;
    let mut expected = Vec::new();
    for [status, link] in two {
        expected.extend([status.to_owned(), format!("link: {link}")]);
    }
    expected.push("HTTP/1.1 200 OK".to_owned());
    assert_eq!(heads, [&*expected, &expected].concat());
    let heads = heads_by_h1(gateway.apps(), "HTTP/1.0").await;
    assert_eq!(heads, ["HTTP/1.0 200 OK"; 2]);
    gateway.process.finish().await;

    // Of an endpoint by HTTP/2 in another cluster, and no more than anybody needs.
    let service = hinting(40);
    let near = format!(
        "backends: [{{ version: h2, {} }}]",
        endpoints(&[service.address()])
    );
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &[&near]),
    )
    .await;
    let heads = heads_by_h1(pair.east.apps(), "HTTP/1.1").await;
    let hints = heads.iter().filter(|line| line.contains(" 103 "));
    assert_eq!(hints.count(), 2 * 16);
    assert_eq!(heads.last().unwrap(), "HTTP/1.1 200 OK");
    pair.finish().await;
}

/// The log names the field: `version` is the caller's by default, and curl speaks HTTP/2 over TLS.
#[tokio::test]
async fn the_log_says_what_to_write_for_an_endpoint_without_http2() {
    let service = TcpService::with(|mut tcp| async move {
        let mut preface = [0; 24];
        if tcp.read_exact(&mut preface).await.is_ok() {
            let answer = b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-length: 0\r\n\r\n";
            tcp.write_all(answer).await.ok();
            // Until the gateway has gone.
            while tcp.read(&mut preface).await.is_ok_and(|read| read > 0) {}
        }
    });
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    let mut caller = caller(gateway.apps()).await;
    let request = Request::get(format!("http://{HELLO}/")).body(()).unwrap();
    let (response, _send) = caller.send_request(request, true).unwrap();
    let response = within("an answer", response).await.unwrap();
    assert_eq!(response.status(), 503);
    let line = (gateway.process.log(|line| line["kind"] == "request")).await;
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("`version: h1`"), "{error}");
    gateway.process.finish().await;
}

/// An endpoint that takes WebSocket on streams of HTTP/2 and echoes.
fn tunnels(tasks: &mut JoinSet<()>, listener: TcpListener) {
    tasks.spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut builder = h2::server::Builder::new();
        let serving = builder.enable_connect_protocol().handshake::<_, Bytes>(tcp);
        let mut connection = serving.await.unwrap();
        let mut streams = JoinSet::new();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let protocol = request.extensions().get::<Protocol>().unwrap();
            assert_eq!(protocol.as_str(), "websocket");
            assert_eq!(request.method(), Method::CONNECT);
            let mut body = request.into_body();
            streams.spawn(async move {
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                while let Some(Ok(bytes)) = body.data().await {
                    send.send_data(bytes, false).unwrap();
                }
                send.send_data(Bytes::new(), true).unwrap();
            });
        }
    });
}

#[tokio::test]
async fn websocket_on_a_stream_reaches_endpoints_of_both_versions_near_and_far() {
    let service = HttpService::start("west");
    let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
    assert_eq!(talk(gateway.apps()).await, "echo:hello:end");
    let seen = service.last();
    assert_eq!(
        (&*seen.method, &*seen.header("upgrade")),
        ("GET", "websocket")
    );
    assert_eq!(seen.header("sec-websocket-key").len(), 24);
    let is_it = |line: &serde_json::Value| line["http.method"] == "CONNECT";
    let line = gateway.process.log(is_it).await;
    assert_eq!(line["verdict"], "completed", "{line}");
    assert_eq!(
        (&line["http.status"], &line["bytes_recv"]),
        (&200.into(), &5.into())
    );
    gateway.process.finish().await;

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let speaks_h2 = endpoints(&[listener.local_addr().unwrap()]);
    let mut tasks = JoinSet::new();
    tunnels(&mut tasks, listener);
    let near = format!("backends: [{{ version: h2, {speaks_h2} }}]");
    let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
    assert_eq!(talk(gateway.apps()).await, "hello");
    gateway.process.finish().await;

    let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &[&near]),
    )
    .await;
    assert_eq!(talk(pair.east.apps()).await, "echo:hello:end");
    // Between the gateways it is a stream as well.
    let line = pair.west.process.log(is_it).await;
    assert_eq!(line["http.version"], "HTTP/2", "{line}");
    pair.finish().await;
}

/// RFC 6455 §4.1: what answers another key, or none, does not speak WebSocket.
#[tokio::test]
async fn an_endpoint_that_has_not_read_our_key_is_no_websocket() {
    let of_the_rfc = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
    for accept in ["", of_the_rfc] {
        let service = TcpService::with(move |mut tcp| async move {
            if read_head(&mut tcp).await.is_ok() {
                let switched = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
                     upgrade: websocket\r\n{accept}\r\nhello"
                );
                tcp.write_all(switched.as_bytes()).await.ok();
                tcp.read_u8().await.ok();
            }
        });
        let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
        let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
        let mut caller = caller(gateway.apps()).await;
        let asked = asks_for("websocket", "/switch");
        let (response, _send) = caller.send_request(asked, false).unwrap();
        let response = within("an answer", response).await.unwrap();
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{accept}");
        let line = (gateway.process)
            .log(|line| line["verdict"] == "upstream-protocol")
            .await;
        assert!(
            line["error"].as_str().unwrap().contains("our key"),
            "{line}"
        );
        gateway.process.finish().await;
    }
}

#[tokio::test]
async fn a_stream_for_another_protocol_or_without_a_rule_is_refused() {
    let service = HttpService::start("one");
    let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let allow = "allow: [{ listeners: [apps], methods: [GET], paths: ['/switch', '/plain'] }]";
    let route = crate::data_mesh::route("hello", &["protocol: http", allow, &near]);
    let gateway = Gateway::alone(&route).await;
    let mut caller = caller(gateway.apps()).await;
    let mut ask = |request| {
        let (response, _send) = caller.send_request(request, true).unwrap();
        within("an answer", response)
    };
    for (protocol, path, status) in [
        ("connect-udp", "/switch", StatusCode::BAD_REQUEST),
        ("websocket", "/other", StatusCode::FORBIDDEN),
        // The endpoint answers 200, which is no WebSocket.
        ("websocket", "/plain", StatusCode::BAD_GATEWAY),
    ] {
        let response = ask(asks_for(protocol, path)).await.unwrap();
        assert_eq!(response.status(), status, "{protocol} {path}");
    }
    let mut plain = Request::new(());
    *plain.method_mut() = Method::CONNECT;
    *plain.uri_mut() = format!("{HELLO}:80").parse().unwrap();
    assert_eq!(ask(plain).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert_eq!(talk(gateway.apps()).await, "echo:hello:end");
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_valid_trace_passes_unchanged_and_any_other_is_replaced() {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    let service = HttpService::start("west");
    let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &[&near]),
    )
    .await;
    let valid = format!("00-{TRACE}-00f067aa0ba902b7-01");
    for (nth, (sent, kept)) in [(valid.as_str(), true), ("00-0-0-0", false)]
        .into_iter()
        .enumerate()
    {
        let id = format!("traced-{nth}");
        let mut client = Client::connect(pair.east.apps(), &Wire::H1).await.unwrap();
        let head = client.head("GET", HELLO, "/").header("x-request-id", &id);
        let head = head.header("traceparent", sent).header("tracestate", "a=1");
        let request = head.body(AnyBody::empty()).unwrap();
        within("an answer", client.send(request)).await.unwrap();
        let (parent, state) = {
            let seen = service.last();
            (seen.header("traceparent"), seen.header("tracestate"))
        };
        assert_eq!(
            (parent == valid, state == "a=1"),
            (kept, kept),
            "{parent} {state}"
        );
        // Both logs name the trace that the service sees.
        for gateway in [&pair.east, &pair.west] {
            let line = gateway.request(&id).await;
            assert_eq!(line["trace.id"], parent[3..35], "{line}");
        }
    }
    pair.finish().await;
}

/// An endpoint that does with a head as `answers` says and then sends back the body's length.
fn asks(answers: &'static str) -> TcpService {
    TcpService::with(move |mut tcp| async move {
        let head = read_head(&mut tcp).await.unwrap().to_lowercase();
        assert!(head.contains("expect: 100-continue"), "{head}");
        tcp.write_all(answers.as_bytes()).await.unwrap();
        if answers.starts_with("HTTP/1.1 4") {
            // Whatever comes is for nobody.
            let mut rest = Vec::new();
            tcp.read_to_end(&mut rest).await.ok();
            assert!(rest.is_empty(), "a body that was not asked for");
            return;
        }
        let mut body = [0; 5];
        tcp.read_exact(&mut body).await.unwrap();
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\n";
        tcp.write_all(answer.as_bytes()).await.unwrap();
        tcp.write_all(&body).await.unwrap();
    })
}

/// Asks whether it may send `hello`, and sends it when told to; returns all that it was told.
async fn may_i_send(apps: SocketAddr) -> String {
    let mut tcp = TcpStream::connect(apps).await.unwrap();
    let head = format!(
        "POST / HTTP/1.1\r\nhost: {HELLO}\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\
         connection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut told = within("a first answer", read_head(&mut tcp)).await.unwrap();
    if told.starts_with("HTTP/1.1 100 ") {
        tcp.write_all(b"hello").await.unwrap();
        told.push_str(&within("the answer", read_head(&mut tcp)).await.unwrap());
    }
    let mut rest = String::new();
    within("the end", tcp.read_to_string(&mut rest))
        .await
        .unwrap();
    told + &rest
}

#[tokio::test]
async fn a_caller_is_asked_for_its_body_when_the_endpoint_asks_or_is_slow_to() {
    for answers in ["HTTP/1.1 100 Continue\r\n\r\n", ""] {
        let endpoint = asks(answers);
        let near = format!("backends: [{{ {} }}]", endpoints(&[endpoint.address()]));
        let pair = Pair::new(
            &http_route("hello", &["backends: [{ peer: west }]"]),
            &http_route("hello", &[&near]),
        )
        .await;
        for gateway in [&pair.west, &pair.east] {
            let told = may_i_send(gateway.apps()).await;
            assert!(told.starts_with("HTTP/1.1 100 "), "{told}");
            assert!(
                told.contains("HTTP/1.1 200 ") && told.ends_with("hello"),
                "{told}"
            );
        }
        pair.finish().await;
    }
}

#[tokio::test]
async fn a_body_that_the_endpoint_does_not_want_is_never_asked_for() {
    let endpoint = asks("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nno\n");
    let near = format!("backends: [{{ {} }}]", endpoints(&[endpoint.address()]));
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &[&near]),
    )
    .await;
    for gateway in [&pair.west, &pair.east] {
        let told = may_i_send(gateway.apps()).await;
        assert!(
            told.starts_with("HTTP/1.1 413 ") && told.ends_with("no\n"),
            "{told}"
        );
    }
    pair.finish().await;
}
