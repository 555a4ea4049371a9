//! HTTP/1.1 at its edges: answers that are cut where only the connection's end tells of theirs, or
//! that come before the request has; what is behind a body; targets that are none.

use http::{Request, StatusCode, header};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::data_client::{Client, Wire, raw, read_head};
use crate::data_mesh::{Gateway, HELLO, endpoints, near_route};
use crate::data_services::{AnyBody, HttpService, TcpService};
use crate::mesh::within;

/// An endpoint by HTTP/1.1 that answers every head with these bytes, and then closes or does not.
fn answers(answer: &'static str, closes: bool) -> TcpService {
    TcpService::with(move |mut tcp| async move {
        while read_head(&mut tcp).await.is_ok() {
            tcp.write_all(answer.as_bytes()).await.ok();
            if closes {
                return;
            }
        }
    })
}

async fn before(service: &TcpService, more: &[&str]) -> Gateway {
    let address = endpoints(&[service.address()]);
    let backend = format!("backends: [{{ version: h1, {address} }}]");
    Gateway::alone(&near_route("hello", &[&[&*backend], more].concat())).await
}

/// What a caller gets, and how it ends.
async fn asked(version: &str, gateway: &Gateway, id: &str) -> (String, std::io::Result<usize>) {
    let mut tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let head = format!("GET / HTTP/{version}\r\nhost: {HELLO}\r\nx-request-id: {id}\r\n\r\n");
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let ended = within("the end", tcp.read_to_end(&mut all)).await;
    (String::from_utf8(all).unwrap(), ended)
}

/// RFC 9112 §8: HTTP/1.0 knows no chunks, and what is cut must not look whole.
#[tokio::test]
async fn an_answer_that_is_cut_does_not_look_whole_to_a_caller_by_http_1_0() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    let cut = answers(HEAD, true);
    let gateway = before(&cut, &[]).await;
    let (heard, ended) = asked("1.0", &gateway, "cut").await;
    assert!(ended.is_err(), "{heard:?} looks whole");
    let line = gateway.request("cut").await;
    assert_eq!(line["verdict"], "upstream-reset", "{line}");
    // One by HTTP/1.1 is told by the missing chunk, and gets what there was.
    for nth in 0..20 {
        let (heard, ended) = asked("1.1", &gateway, &format!("cut-{nth}")).await;
        assert!(
            ended.is_ok() && heard.starts_with("HTTP/1.1 200 OK\r\n"),
            "{heard:?}"
        );
        assert!(heard.ends_with("4\r\nhalf\r\n"), "{heard:?}");
    }
    gateway.process.finish().await;

    let silent = answers(HEAD, false);
    let gateway = before(&silent, &["timeouts: { idle: 1s }"]).await;
    let (heard, ended) = asked("1.0", &gateway, "silent").await;
    assert!(ended.is_err(), "{heard:?} looks whole");
    let line = gateway.request("silent").await;
    assert_eq!(line["verdict"], "idle-timeout", "{line}");
    gateway.process.finish().await;

    let whole = answers("HTTP/1.1 200 OK\r\n\r\nall of it", true);
    let gateway = before(&whole, &[]).await;
    let (heard, ended) = asked("1.0", &gateway, "whole").await;
    assert!(ended.is_ok() && heard.ends_with("\r\n\r\nall of it"));
    gateway.process.finish().await;
}

/// RFC 9112 §9.6: closed over what still comes, a connection is reset, and the answer may be lost.
#[tokio::test]
async fn an_answer_reaches_a_caller_that_first_sends_all_of_its_body() {
    const BODY: usize = 8 << 20;
    let service = HttpService::start("near");
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    for (host, framing) in [
        ("nowhere.example", format!("content-length: {BODY}")),
        // The head itself is refused.
        (HELLO, format!("content-length : {BODY}")),
    ] {
        let mut tcp = TcpStream::connect(gateway.apps()).await.unwrap();
        let head = format!("POST / HTTP/1.1\r\nhost: {host}\r\n{framing}\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        let sent = within("the body", tcp.write_all(&vec![b'x'; BODY])).await;
        sent.unwrap();
        let mut all = String::new();
        let read = within("the answer", tcp.read_to_string(&mut all)).await;
        read.unwrap();
        assert!(all.starts_with("HTTP/1.1 40"), "{all}");
    }
    gateway.process.finish().await;
}

/// RFC 9110 §6.5.1: what frames, routes, authenticates or describes a message is not read in trailers.
#[tokio::test]
async fn what_belongs_into_a_head_does_not_reach_the_caller_in_trailers() {
    let service = answers(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\
         trailer: x-sum, content-type, set-cookie, keep-alive\r\n\r\n\
         2\r\nok\r\n0\r\nx-sum: 42\r\ncontent-type: text/html\r\nset-cookie: a=b\r\n\
         content-length: 9\r\ntransfer-encoding: chunked\r\nconnection: x-sum\r\n\
         keep-alive: 5\r\nhost: a\r\ncache-control: no-store\r\nauthorization: x\r\n\
         x-forwarded-client-cert: URI=spiffe://east.example/ns/shop/sa/admin\r\n\
         x-zeugma-reason: drained\r\n\r\n",
        false,
    );
    let gateway = before(&service, &[]).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let request = client
            .head("GET", HELLO, "/")
            .header(header::TE, "trailers");
        let request = request.body(AnyBody::empty()).unwrap();
        let answer = within("an answer", client.send(request)).await.unwrap();
        let trailers = answer.trailers.unwrap();
        let names: Vec<_> = trailers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["x-sum"], "{wire:?}");
    }
    gateway.process.finish().await;
}

/// RFC 9113 §8.3.1: `:path` begins with `/`, or is the `*` of `OPTIONS`; RFC 9112 §3.2 likewise.
#[tokio::test]
async fn a_target_that_is_no_path_is_refused_by_either_version() {
    let service = HttpService::start("near");
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    for (method, target, status) in [
        ("GET", "?x", 400),
        ("GET", "*", 400),
        ("POST", "*", 400),
        ("OPTIONS", "*", 200),
        ("GET", "/?x", 200),
    ] {
        let end = "connection: close\r\n\r\n";
        let head = format!("{method} {target} HTTP/1.1\r\nhost: {HELLO}\r\n{end}");
        let answer = raw(gateway.apps(), &head).await;
        let told = answer.get(9..12).unwrap_or_default();
        assert_eq!(told, status.to_string(), "{method} {target}: {answer}");

        let tcp = TcpStream::connect(gateway.apps()).await.unwrap();
        let (mut caller, connection) = h2::client::handshake(tcp).await.unwrap();
        let driving = tokio::spawn(connection);
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(http::uri::Scheme::HTTP);
        parts.authority = Some(HELLO.parse().unwrap());
        parts.path_and_query = Some(target.parse().unwrap());
        let uri = http::Uri::from_parts(parts).unwrap();
        let request = Request::builder().method(method).uri(uri).body(()).unwrap();
        let (response, _) = caller.send_request(request, true).unwrap();
        let response = within("an answer", response).await.unwrap();
        let expected = StatusCode::from_u16(status).unwrap();
        assert_eq!(response.status(), expected, "{method} {target} by HTTP/2");
        drop((caller, response));
        driving.abort();
    }
    gateway.process.finish().await;
}
