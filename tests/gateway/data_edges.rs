//! What one side may do to the other at the edges of HTTP: bodies that nobody reads, lengths that
//! contradict each other, messages that break off politely.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::data_client::{Client, Wire, finish, read_head};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route};
use crate::data_relay::memory;
use crate::data_services::{AnyBody, HttpService, Mode, TcpService, accept_of, pattern, summary};
use crate::mesh::{Cluster, within};

async fn before(service: &HttpService, more: &[&str]) -> Gateway {
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    Gateway::alone(&near_route("hello", &[&[&*backend], more].concat())).await
}

/// A caller that speaks HTTP/2, and answers PINGs whatever it does not read.
async fn caller(gateway: &Gateway) -> h2::client::SendRequest<Bytes> {
    let tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let (caller, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    caller
}

#[tokio::test]
async fn a_stream_that_its_caller_does_not_read_is_given_up_after_the_idle_time() {
    let service = HttpService::start("near");
    let gateway = before(&service, &["timeouts: { idle: 1s }"]).await;
    let mut caller = caller(&gateway).await;
    let request = Request::get(format!("http://{HELLO}/big"))
        .header("x-request-id", "unread")
        .body(());
    let (response, _) = caller.send_request(request.unwrap(), true).unwrap();
    let response = within("a head", response).await.unwrap();
    let line = gateway.request("unread").await;
    assert_eq!(line["verdict"], "idle-timeout", "{line}");
    // It is told, once it reads what had been sent.
    let mut body = response.into_body();
    let error = within("the end", async {
        loop {
            match body.data().await {
                Some(Ok(bytes)) => body.flow_control().release_capacity(bytes.len()).unwrap(),
                Some(Err(error)) => return error,
                None => panic!("an answer that was cut off ended as if it were whole"),
            }
        }
    })
    .await;
    assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "{error}");
    // The connection is as good as before.
    let request = Request::get(format!("http://{HELLO}/")).body(());
    let (response, _) = caller.send_request(request.unwrap(), true).unwrap();
    assert_eq!(within("an answer", response).await.unwrap().status(), 200);
    drop((body, caller));
    gateway.process.finish().await;
}

#[tokio::test]
async fn an_upload_whose_endpoint_is_silent_lasts_as_long_as_bytes_move() {
    let service = TcpService::with(|mut tcp| async move {
        read_head(&mut tcp).await.ok();
        let head = "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n";
        tcp.write_all(head.as_bytes()).await.ok();
        let mut all = Vec::new();
        let mut some = [0; 64];
        while !all.ends_with(b"0\r\n\r\n") {
            match tcp.read(&mut some).await {
                Ok(n @ 1..) => all.extend_from_slice(&some[..n]),
                _ => return,
            }
        }
        tcp.write_all(b"done").await.ok();
    });
    let backend = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let idle = "timeouts: { idle: 1s }";
    let gateway = Gateway::alone(&near_route("hello", &[&backend, idle])).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let (frames, body) = AnyBody::channel();
        let request = client.head("POST", HELLO, "/").body(body).unwrap();
        let answer = within("a head", client.begin(request)).await.unwrap();
        let reading = tokio::spawn(finish(answer));
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
        for _ in 0..25 {
            tick.tick().await;
            frames.send(Frame::data(pattern(3))).await.unwrap();
        }
        drop(frames);
        let answer = within("the end", reading).await.unwrap().unwrap();
        assert_eq!(answer.text(), "done", "{wire:?}");
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_length_beside_a_transfer_encoding_says_nothing() {
    // RFC 9112 §6.3: the transfer encoding has precedence, and the length is not passed on.
    let service = HttpService::start("near");
    let answering = TcpService::with(|mut tcp| async move {
        read_head(&mut tcp).await.ok();
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n\
                      b\r\nhello world\r\n0\r\n\r\n";
        tcp.write_all(answer.as_bytes()).await.ok();
        tcp.read_u8().await.ok();
    });
    for version in ["h1", "h2"] {
        let backend = format!(
            "backends: [{{ version: {version}, {} }}]",
            endpoints(&[service.address()])
        );
        let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
        let answer = crate::data_client::raw(
            gateway.apps(),
            &format!(
                "POST /sum HTTP/1.1\r\nhost: {HELLO}\r\ncontent-length: 5\r\n\
                 transfer-encoding: chunked\r\nconnection: close\r\n\r\n\
                 b\r\nhello world\r\n0\r\n\r\n"
            ),
        )
        .await;
        let expected = summary(b"hello world");
        assert!(answer.contains(&expected), "{version}: {answer}");
        assert_eq!(service.last().header("content-length"), "", "{version}");
        gateway.process.finish().await;
    }
    let backend = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[answering.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let answer = within("an answer", client.get(HELLO, "/")).await.unwrap();
        assert_eq!(answer.text(), "hello world", "{wire:?}");
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_body_that_get_has_arrives_whole() {
    let service = HttpService::start("near");
    for version in ["h1", "h2"] {
        let backend = format!(
            "backends: [{{ version: {version}, {} }}]",
            endpoints(&[service.address()])
        );
        let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
        let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
        let (frames, body) = AnyBody::channel();
        let request = client.head("GET", HELLO, "/sum").body(body).unwrap();
        let asking = async { finish(client.begin(request).await?).await };
        let sending = async {
            frames.send(Frame::data(pattern(1000))).await.unwrap();
            drop(frames);
        };
        let (answer, ()) = within("an answer", async { tokio::join!(asking, sending) }).await;
        assert_eq!(answer.unwrap().text(), summary(&pattern(1000)), "{version}");
        gateway.process.finish().await;
    }
}

#[tokio::test]
async fn an_answer_that_is_reset_without_an_error_before_its_end_is_not_whole() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            connections.spawn(async move {
                let mut connection = h2::server::handshake(tcp).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    stream.send_data(Bytes::from("half of it"), false).unwrap();
                    tokio::spawn(async move {
                        // Once that is on its way.
                        std::future::poll_fn(|cx| {
                            stream.reserve_capacity(100_000);
                            stream.poll_capacity(cx)
                        })
                        .await;
                        stream.send_reset(h2::Reason::NO_ERROR);
                    });
                }
            });
        }
    });
    let backend = format!("backends: [{{ version: h2, {} }}]", endpoints(&[address]));
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    let mut tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let head = format!(
        "GET / HTTP/1.1\r\nhost: {HELLO}\r\nx-request-id: half\r\nconnection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    within("the end", tcp.read_to_end(&mut all)).await.ok();
    let all = String::from_utf8_lossy(&all);
    // Nothing at all, where the reset came before the head was passed on.
    let is_whole = all.ends_with("0\r\n\r\n") || all.contains("content-length");
    assert!(!is_whole, "{all}");
    let line = gateway.request("half").await;
    assert_eq!(line["verdict"], "upstream-reset", "{line}");

    let mut caller = caller(&gateway).await;
    let request = Request::get(format!("http://{HELLO}/")).body(());
    let (response, _) = caller.send_request(request.unwrap(), true).unwrap();
    let error = within("the end", async {
        let mut body = response.await?.into_body();
        while let Some(bytes) = body.data().await {
            bytes?;
        }
        Ok::<_, h2::Error>(())
    });
    // Some take a reset without an error as an end.
    let reason = error.await.unwrap_err().reason();
    assert_eq!(reason, Some(h2::Reason::INTERNAL_ERROR));
    drop(caller);
    gateway.process.finish().await;
}

/// Answers with the request as it came.
fn mirror() -> TcpService {
    TcpService::with(|mut tcp| async move {
        let mut all = Vec::new();
        let mut some = [0; 64];
        while !all.ends_with(b"\r\n\r\n") || !all.windows(5).any(|five| five == b"\r\n0\r\n") {
            match tcp.read(&mut some).await {
                Ok(n @ 1..) => all.extend_from_slice(&some[..n]),
                _ => return,
            }
        }
        let head = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            all.len()
        );
        tcp.write_all(head.as_bytes()).await.ok();
        tcp.write_all(&all).await.ok();
    })
}

/// What a service sees of a request with these trailers, and with one more, which it always sees.
async fn seen_with(
    gateway: &Gateway,
    wire: &Wire,
    path: &str,
    trailers: &[(&'static str, &str)],
) -> String {
    let mut client = Client::connect(gateway.apps(), wire).await.unwrap();
    let mut map = HeaderMap::new();
    map.insert("x-sum", "42".parse().unwrap());
    for (name, value) in trailers {
        map.insert(*name, value.parse().unwrap());
    }
    let names: Vec<_> = map.keys().map(http::HeaderName::as_str).collect();
    let request = client
        .head("POST", HELLO, path)
        .header(header::TRAILER, names.join(", "))
        .header(header::TE, "trailers");
    let frames = [Frame::data(pattern(3)), Frame::trailers(map)];
    let request = request.body(AnyBody::Frames(frames.into()));
    let answer = within("an answer", client.send(request.unwrap())).await;
    let seen = answer.unwrap().text();
    assert!(seen.contains("x-sum: 42"), "{wire:?}: {seen}");
    seen
}

#[tokio::test]
async fn who_calls_is_not_said_in_trailers() {
    let service = mirror();
    let backend = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    for wire in [Wire::H1, Wire::H2] {
        let claim = "URI=spiffe://east.example/ns/shop/sa/admin";
        let trailers = [("x-forwarded-client-cert", claim)];
        let seen = seen_with(&gateway, &wire, "/", &trailers).await;
        assert!(!seen.contains(claim), "{wire:?}: {seen}");
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn what_policies_ask_for_is_not_said_in_trailers() {
    let service = mirror();
    let backend = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let split =
        "rules: [{ matches: [{ path: { exact: /c } }], split: [{ route: demo/canary }] }, {}]";
    let own = "deny: [{ headers: { x-role: [guest] } }]";
    let others = "deny: [{ headers: { X-Tenant: [evil] } }]";
    let routes = [
        near_route("hello", &[&*backend, split, own]),
        near_route("canary", &[&*backend, others]),
    ];
    let gateway = Gateway::alone(&routes.concat()).await;
    for wire in [Wire::H1, Wire::H2] {
        let trailers = [
            ("x-role", "role-of-trailer"),
            ("x-tenant", "tenant-of-trailer"),
        ];
        let seen = seen_with(&gateway, &wire, "/", &trailers).await;
        assert!(!seen.contains("role-of-trailer"), "{wire:?}: {seen}");
        assert!(seen.contains("tenant-of-trailer"), "{wire:?}: {seen}");
        let seen = seen_with(&gateway, &wire, "/c", &trailers).await;
        assert!(!seen.contains("role-of-trailer"), "{wire:?}: {seen}");
        assert!(!seen.contains("tenant-of-trailer"), "{wire:?}: {seen}");
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn an_answer_without_a_date_gets_one_by_either_version() {
    // RFC 9110 §6.6.1.
    let service = TcpService::with(|mut tcp| async move {
        while read_head(&mut tcp).await.is_ok() {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            tcp.write_all(answer.as_bytes()).await.ok();
        }
    });
    let backend = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let answer = within("an answer", client.get(HELLO, "/")).await.unwrap();
        // IMF-fixdate (RFC 9110 §5.6.7), as `Sun, 06 Nov 1994 08:49:37 GMT`.
        let date = answer.header("date");
        assert!(
            date.len() == 29 && date.ends_with(" GMT"),
            "{wire:?}: {date}"
        );
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_stream_of_websocket_that_the_endpoint_ends_is_over() {
    let service = TcpService::with(|mut tcp| async move {
        let head = read_head(&mut tcp).await.unwrap_or_default();
        let key = head
            .lines()
            .find_map(|line| line.strip_prefix("sec-websocket-key: "));
        let accept = key.map(accept_of).unwrap_or_default();
        let switched = format!(
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-accept: {accept}\r\n\r\n"
        );
        tcp.write_all(switched.as_bytes()).await.ok();
        tcp.read_u8().await.ok();
        tcp.set_zero_linger().unwrap();
    });
    let backend = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    let mut caller = caller(&gateway).await;
    let mut request = Request::new(());
    *request.method_mut() = http::Method::CONNECT;
    *request.uri_mut() = format!("http://{HELLO}/").parse().unwrap();
    let protocol = h2::ext::Protocol::from_static("websocket");
    request.extensions_mut().insert(protocol);
    crate::mesh::eventually("extended CONNECT to be taken", async || {
        caller.is_extended_connect_protocol_enabled().then_some(())
    })
    .await;
    let (response, mut send) = caller.send_request(request, false).unwrap();
    let mut body = within("an answer", response).await.unwrap().into_body();
    send.send_data(Bytes::from("x"), false).unwrap();
    within("the end of what the endpoint says", async {
        while let Some(Ok(bytes)) = body.data().await {
            assert_eq!(bytes, "");
        }
    })
    .await;
    // The caller keeps its own direction open: nobody is left who would read it.
    let reset = std::future::poll_fn(|cx| send.poll_reset(cx));
    within("the stream to be over", reset).await.ok();
    drop((body, send, caller));
    gateway.process.finish().await;
}

/// RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

#[tokio::test]
async fn an_answer_to_head_that_ends_behind_its_head_is_complete() {
    let service = TcpService::with(|tcp| async move {
        let Ok(mut connection) = h2::server::handshake(tcp).await else {
            return;
        };
        while let Some(Ok((_request, mut respond))) = connection.accept().await {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::new(), true).unwrap();
        }
    });
    let address = endpoints(&[service.address()]);
    let near = format!("backends: [{{ version: h2, {address} }}]");
    let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
    let mut caller = caller(&gateway).await;
    let request = Request::head(format!("http://{HELLO}/")).header("x-request-id", "head");
    let (response, _) = caller
        .send_request(request.body(()).unwrap(), true)
        .unwrap();
    let response = within("an answer", response).await.unwrap();
    assert!(response.body().is_end_stream());
    let line = gateway.request("head").await;
    assert_eq!(line["verdict"], "completed", "{line}");
    gateway.process.finish().await;
}

const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;

/// An answer of 200 that is over: END_STREAM and END_HEADERS; RFC 7541 §A: `:status: 200`.
fn ok(stream: u32) -> Vec<u8> {
    frame(HEADERS, 0x5, stream, &[0x88])
}

/// The stream of the next HEADERS frame, and what the frame holds.
async fn next_headers(tcp: &mut TcpStream) -> Option<(u32, Vec<u8>)> {
    loop {
        let mut head = [0; 9];
        tcp.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        tcp.read_exact(&mut payload).await.ok()?;
        if head[3] == HEADERS {
            return Some((u32::from_be_bytes(*head.last_chunk().unwrap()), payload));
        }
    }
}

/// RFC 7541 §6.2.3: what each request has of its own is written each time, also where it is the same
/// again; what requests have in common is written once.
#[tokio::test]
async fn what_each_request_has_of_its_own_stays_out_of_the_table_of_an_endpoint() {
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel();
    let service = TcpService::with(move |mut tcp| {
        let heard = heard.clone();
        async move {
            let mut preface = [0; 24];
            tcp.read_exact(&mut preface).await.unwrap();
            tcp.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            while let Some((stream, headers)) = next_headers(&mut tcp).await {
                heard.send(headers).ok();
                tcp.write_all(&ok(stream)).await.unwrap();
            }
        }
    });
    let address = endpoints(&[service.address()]);
    let near = format!("backends: [{{ version: h2, {address} }}]");
    let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
    let mut caller = caller(&gateway).await;
    let mut written = Vec::new();
    for _ in 0..2 {
        let request = Request::get(format!("http://{HELLO}/"))
            .header("x-request-id", "a".repeat(16))
            .header(
                "traceparent",
                format!("00-{}-{}-01", "c".repeat(32), "1".repeat(16)),
            )
            .header("x-team", "e".repeat(16));
        let request = request.body(()).unwrap();
        let (response, _send) = caller.send_request(request, true).unwrap();
        let response = within("an answer", response).await.unwrap();
        assert_eq!(response.status(), 200);
        written.push(within("its headers", hears.recv()).await.unwrap());
    }
    // RFC 7541 §B: eight of a letter of five bits; `00-` before a trace's ID takes two bytes.
    let has = |headers: &[u8], eight: [u8; 5]| headers.windows(5).any(|bytes| bytes == eight);
    for (nth, headers) in written.iter().enumerate() {
        assert!(
            has(headers, [0x18, 0xc6, 0x31, 0x8c, 0x63]),
            "ID of {nth}: {headers:x?}"
        );
        assert!(
            has(headers, [0x21, 0x08, 0x42, 0x10, 0x84]),
            "trace of {nth}: {headers:x?}"
        );
        let is_team_written = has(headers, [0x29, 0x4a, 0x52, 0x94, 0xa5]);
        assert_eq!(is_team_written, nth == 0, "{headers:x?}");
    }
    gateway.process.finish().await;
}

/// An endpoint by HTTP/2 that on its first connection takes two requests, says by GOAWAY that it has
/// processed the first one alone, and answers that or does not; on others it answers each.
fn leaves_after_one(answers: bool) -> TcpService {
    const GOAWAY: u8 = 0x7;
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    TcpService::with(move |mut tcp| {
        let nth = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        async move {
            let mut preface = [0; 24];
            tcp.read_exact(&mut preface).await.unwrap();
            tcp.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
            let mut begun = 0;
            while let Some((stream, _headers)) = next_headers(&mut tcp).await {
                begun += 1;
                if nth > 0 {
                    tcp.write_all(&ok(stream)).await.unwrap();
                } else if begun == 2 {
                    // RFC 9113 §6.8: the last stream processed, NO_ERROR.
                    let leaves = [&1_u32.to_be_bytes()[..], &[0; 4]].concat();
                    tcp.write_all(&frame(GOAWAY, 0, 0, &leaves)).await.unwrap();
                    if !answers {
                        return;
                    }
                    tcp.write_all(&ok(1)).await.unwrap();
                }
            }
        }
    })
}

/// RFC 9113 §6.8: what is above the last stream was not processed, and any method may be tried again;
/// what is not above it may have been.
#[tokio::test]
async fn a_request_that_a_leaving_endpoint_did_not_process_is_sent_again_whatever_its_method() {
    for answers in [true, false] {
        let service = leaves_after_one(answers);
        let address = endpoints(&[service.address()]);
        let near = format!("backends: [{{ version: h2, {address} }}]");
        let gateway = Gateway::alone(&near_route("hello", &[&near])).await;
        let mut caller = caller(&gateway).await;
        let mut post = |id: &str| {
            let request = Request::post(format!("http://{HELLO}/")).header("x-request-id", id);
            let request = request.body(()).unwrap();
            caller.send_request(request, true).unwrap().0
        };
        let (first, second) = (post("first"), post("second"));
        let both = async { tokio::join!(first, second) };
        let (first, second) = within("both answers", both).await;
        assert_eq!(second.unwrap().status(), 200);
        let expected = if answers { 200 } else { 502 };
        assert_eq!(first.unwrap().status(), expected);
        assert_eq!(service.hits(), 2, "connections");
        gateway.process.finish().await;
    }
}

/// CVE-2023-44487, slowly enough for each request to be begun.
#[tokio::test]
async fn who_resets_more_streams_than_can_be_meant_is_told_to_calm_down() {
    let service = HttpService::start("near");
    service.set(Mode::Hang);
    let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let mut east = Cluster::new("east");
    // Ten resets a second.
    east.set("limits", "{ streams: 1 }");
    let gateway = Gateway::of(east, &near_route("hello", &[&near])).await;
    let tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let source = tcp.local_addr().unwrap();
    let (mut caller, connection) = h2::client::handshake(tcp).await.unwrap();
    let mut connection = tokio::spawn(connection);
    let mut begun = 0;
    let ended = loop {
        let request = Request::get(format!("http://{HELLO}/")).body(()).unwrap();
        let ready = within("a place", caller.ready()).await;
        let begins = ready.and_then(|mut ready| {
            let (_response, stream) = ready.send_request(request, false)?;
            Ok((ready, stream))
        });
        let Ok((next, mut stream)) = begins else {
            break within("the end", connection).await;
        };
        caller = next;
        begun += 1;
        // Both only wait.
        tokio::select! {
            ended = &mut connection => break ended,
            () = service.arrived(begun) => stream.send_reset(h2::Reason::CANCEL),
        }
    };
    assert!(begun > 10, "{begun}");
    let error = ended.unwrap().unwrap_err();
    assert_eq!(error.reason(), Some(h2::Reason::ENHANCE_YOUR_CALM));
    assert!(error.is_go_away() && error.is_remote(), "{error}");
    let line = gateway.process.connection(source).await;
    assert_eq!(line["verdict"], "frame-flood", "{line}");
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_flood_of_frames_ends_its_connection_and_no_other() {
    const HEADERS: u8 = 0x1;
    const RST_STREAM: u8 = 0x3;
    const PING: u8 = 0x6;
    const CONTINUATION: u8 = 0x9;
    const END_STREAM: u8 = 0x1;
    const END_HEADERS: u8 = 0x4;
    let service = HttpService::start("near");
    let gateway = before(&service, &[]).await;
    // RFC 7541: :method GET, :scheme http, :path /, :authority as a literal.
    let mut head = vec![0x82, 0x86, 0x84, 0x01, u8::try_from(HELLO.len()).unwrap()];
    head.extend_from_slice(HELLO.as_bytes());
    let streams = (1..20_001).step_by(2);
    // CVE-2023-44487.
    let resets = streams.flat_map(|stream| {
        let begun = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
        [begun, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    });
    // CVE-2024-27316: a header that is never indexed, 16 KiB of it in each frame.
    let mut field = vec![0x10, 1, b'a', 0x7f, 0x80, 0x7f];
    field.resize(field.len() + 127 + 16_256, b'a');
    let continued = (0..2_000).flat_map(|_| frame(CONTINUATION, 0, 1, &field));
    let continued = frame(HEADERS, 0, 1, &head).into_iter().chain(continued);
    // Answers to PINGs that nobody reads.
    let pings = (0..1_000_000).flat_map(|_| frame(PING, 0, 0, &[7; 8]));
    let floods = [
        ("resets", resets.collect::<Vec<u8>>(), Some("frame-flood")),
        // What h2 no longer takes is no frame any more.
        (
            "continuations",
            continued.collect(),
            Some("downstream-closed"),
        ),
        ("pings", pings.collect(), None),
    ];
    // They took a while to make, in which nobody would have spoken for a connection.
    let mut beside = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    for (what, flood, refused) in floods {
        let before = memory(&gateway.process);
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut tcp = socket.connect(gateway.apps()).await.unwrap();
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend_from_slice(&frame(0x4, 0, 0, &[]));
        bytes.extend_from_slice(&flood);
        // It takes all, ends the connection, or takes no more for want of a reader.
        let writing =
            tokio::time::timeout(std::time::Duration::from_secs(3), tcp.write_all(&bytes)).await;
        let got = within("others", beside.get(HELLO, "/")).await.unwrap();
        assert_eq!(got.text(), "near", "{what}");
        let held = memory(&gateway.process).saturating_sub(before);
        assert!(held < 16 << 20, "{what}: {held} bytes more");
        if let Some(verdict) = refused {
            let mut rest = Vec::new();
            within("the end", tcp.read_to_end(&mut rest)).await.ok();
            let line = gateway.process.connection(tcp.local_addr().unwrap());
            let line = line.await;
            assert_eq!(line["verdict"], verdict, "{what}: {line}");
        } else {
            assert!(writing.is_err(), "{what}: all were taken");
        }
    }
    drop(beside);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_body_that_waits_to_be_asked_for_goes_to_the_endpoint_that_is_tried_next() {
    let backup = HttpService::start("backup");
    let both = format!(
        "backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]",
        endpoints(&[backup.address()])
    );
    let west_first = "failover: { order: [{ cluster: west }, { backend: backup }] }";
    // West has none of its own, and says so without asking for the body.
    let pair = Pair::new(
        &http_route("hello", &[&both, west_first]),
        &http_route("hello", &["backends: [{ peer: east }]"]),
    )
    .await;
    let mut tcp = TcpStream::connect(pair.east.apps()).await.unwrap();
    let head = format!(
        "POST /sum HTTP/1.1\r\nhost: {HELLO}\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\
         connection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let told = read_head(&mut tcp).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 100 "), "{told}");
    tcp.write_all(b"hello").await.unwrap();
    let mut rest = String::new();
    within("the answer", tcp.read_to_string(&mut rest))
        .await
        .unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 "), "{rest}");
    assert!(rest.ends_with(&summary(b"hello")), "{rest}");
    pair.finish().await;
}
