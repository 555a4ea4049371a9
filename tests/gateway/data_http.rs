//! HTTP through one gateway and through two.

use bytes::Bytes;
use http::{HeaderMap, Request, Version};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::data_client::{Client, Wire, call, finish, get, raw, read_head};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route};
use crate::data_services::{
    AnyBody, HttpService, Mode, Speaks, TcpService, pattern, read_all, summary,
};
use crate::mesh::{Cluster, within};

const HTTP_404: u16 = 404;

/// East has no service of its own, west has one.
async fn far(service: &HttpService, west: &[&str]) -> Pair {
    let backend = format!("- {{ {} }}", endpoints(&[service.address()]));
    let west = [&["backends:", &*backend], west].concat();
    Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &west),
    )
    .await
}

async fn near(service: &HttpService) -> Gateway {
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    Gateway::alone(&near_route("hello", &[&backend])).await
}

#[tokio::test]
async fn both_versions_pass_through_both_gateways_and_reach_the_service_as_they_began() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    for (wire, version) in [(Wire::H1, Version::HTTP_11), (Wire::H2, Version::HTTP_2)] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let answer = client.get(HELLO, "/a?b=c").await.unwrap();
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "west"));
        assert_eq!(answer.version, version);
        assert_eq!(service.last().version, version);
        assert_eq!(service.last().host, HELLO);
    }
    // Between the gateways both were HTTP/2, on TLS 1.3 with the hybrid group.
    let line = pair
        .west
        .process
        .log(|line| line["kind"] == "request")
        .await;
    assert_eq!(line["http.version"], "HTTP/2");
    assert_eq!(line["src.identity"], "spiffe://east.example/zeugma/gateway");
    assert_eq!(line["src.peer"], "east");
    assert_eq!(line["tls.group"], "X25519MLKEM768");
    assert_eq!(line["sni"], HELLO);
}

#[tokio::test]
async fn a_service_that_knows_only_http_1_gets_it_from_every_caller() {
    let service = HttpService::start_with("old", Speaks::OnlyH1);
    let backend = format!("- {{ version: h1, {} }}", endpoints(&[service.address()]));
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &["backends:", &backend]),
    )
    .await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let answer = client.post(HELLO, "/sum", pattern(1000)).await.unwrap();
        assert_eq!(answer.text(), summary(&pattern(1000)));
        assert_eq!(service.last().version, Version::HTTP_11);
    }
}

#[tokio::test]
async fn a_service_configured_for_http_2_gets_it_from_every_caller() {
    let service = HttpService::start("new");
    let backend = format!("- {{ version: h2, {} }}", endpoints(&[service.address()]));
    let pair = Pair::new(
        &http_route("hello", &["backends: [{ peer: west }]"]),
        &http_route("hello", &["backends:", &backend]),
    )
    .await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let answer = client.post(HELLO, "/sum", pattern(1000)).await.unwrap();
        assert_eq!(answer.text(), summary(&pattern(1000)));
        assert_eq!(service.last().version, Version::HTTP_2);
    }
}

#[tokio::test]
async fn bodies_of_any_length_arrive_whole_both_ways() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        for length in [0, 1, 64 * 1024, 5 << 20] {
            let sum = summary(&pattern(length));
            let up = client.post(HELLO, "/sum", pattern(length)).await.unwrap();
            assert_eq!(up.text(), sum, "{wire:?} up");
            let path = format!("/bytes/{length}");
            let down = client.get(HELLO, &path).await.unwrap();
            assert_eq!(summary(&down.body), sum, "{wire:?} down");
            // Known lengths stay known; a body of unknown length is streamed.
            if length > 0 {
                assert_eq!(down.header("content-length"), length.to_string());
            }
            let (frames, body) = AnyBody::channel();
            let head = client.head("POST", HELLO, "/sum");
            let sending = client.send(head.body(body).unwrap());
            let telling = async move {
                for part in pattern(length).chunks(100_000) {
                    let part = Bytes::copy_from_slice(part);
                    frames.send(Frame::data(part)).await.unwrap();
                }
                drop(frames);
            };
            let (chunked, ()) = Box::pin(within("a streamed body", async {
                tokio::join!(sending, telling)
            }))
            .await;
            assert_eq!(chunked.unwrap().text(), sum, "{wire:?} streamed");
        }
    }
}

#[tokio::test]
async fn a_call_like_grpc_streams_both_ways_and_ends_with_trailers() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    let mut client = Client::connect(pair.east.apps(), &Wire::H2).await.unwrap();
    let (frames, body) = AnyBody::channel();
    let head = client
        .head("POST", HELLO, "/echo")
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    // The service answers while the request is still open.
    let response = client.begin(head.body(body).unwrap());
    let response = within("the head of the answer", response).await.unwrap();
    assert_eq!(response.status(), 200);
    let (_, mut answer) = response.into_parts();
    for nth in 0..20 {
        let message = Bytes::from(format!("message {nth}"));
        frames.send(Frame::data(message.clone())).await.unwrap();
        let frame = http_body_util::BodyExt::frame(&mut answer);
        let frame = within("the echo", frame).await.unwrap().unwrap();
        assert_eq!(frame.data_ref(), Some(&message));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("x-sum", "7".parse().unwrap());
    frames
        .send(Frame::trailers(trailers.clone()))
        .await
        .unwrap();
    drop(frames);
    let frame = http_body_util::BodyExt::frame(&mut answer);
    let frame = within("the trailers", frame).await.unwrap().unwrap();
    assert_eq!(frame.trailers_ref(), Some(&trailers));
    assert_eq!(service.last().header("te"), "trailers");
}

#[tokio::test]
async fn trailers_of_requests_and_responses_are_passed_on() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let head = client
            .head("GET", HELLO, "/trailers")
            .header("te", "trailers");
        let answer = client
            .send(head.body(AnyBody::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.text(), "with trailers");
        assert_eq!(answer.trailers.unwrap()["x-sum"], "42", "{wire:?}");

        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "9".parse().unwrap());
        let frames = [Frame::data(Bytes::from("abc")), Frame::trailers(trailers)];
        let head = client
            .head("POST", HELLO, "/sum")
            .header("trailer", "x-sum");
        let body = AnyBody::Frames(frames.into());
        let answer = client.send(head.body(body).unwrap()).await.unwrap();
        assert_eq!(answer.header("x-got-trailer"), "9", "{wire:?}");
    }
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let head = client.head("HEAD", HELLO, "/bytes/1000");
        let answer = client
            .send(head.body(AnyBody::empty()).unwrap())
            .await
            .unwrap();
        assert_eq!(answer.header("content-length"), "1000", "{wire:?}");
        assert_eq!(answer.body.len(), 0);
        for status in [204, 304] {
            let path = format!("/status/{status}");
            let answer = client.get(HELLO, &path).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.body.len()), (status, 0));
        }
        // The connection is still in step.
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "west");
    }
    for line in ["HEAD", "GET"] {
        let line = pair
            .east
            .process
            .log(|one| one["http.method"] == *line)
            .await;
        assert_eq!(line["verdict"], "completed");
    }
}

#[tokio::test]
async fn a_caller_that_waits_for_100_is_told_to_continue() {
    let service = HttpService::start("near");
    let gateway = near(&service).await;
    let mut tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let head = format!(
        "POST /sum HTTP/1.1\r\nhost: {HELLO}\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\
         connection: close\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let first = read_head(&mut tcp).await.unwrap();
    assert!(first.starts_with("HTTP/1.1 100 "), "{first}");
    tcp.write_all(b"abc").await.unwrap();
    let rest = String::from_utf8(read_all(&mut tcp).await).unwrap();
    assert!(rest.starts_with("HTTP/1.1 200 "), "{rest}");
    assert!(rest.ends_with(&summary(b"abc")), "{rest}");
    assert_eq!(service.last().header("expect"), "100-continue");
}

#[tokio::test]
async fn headers_of_one_hop_stay_there() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    let answer = raw(
        pair.east.apps(),
        &format!(
            "GET / HTTP/1.1\r\nhost: {HELLO}\r\nconnection: close, x-secret\r\nx-secret: 1\r\n\
             keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: deflate\r\n\
             x-kept: yes\r\nx-zeugma-reason: no-local-endpoint\r\n\r\n"
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let seen = service.last();
    assert_eq!(seen.header("x-kept"), "yes");
    for name in [
        "x-secret",
        "keep-alive",
        "proxy-connection",
        "te",
        "x-zeugma-reason",
    ] {
        assert_eq!(seen.header(name), "", "{name}");
    }
}

#[tokio::test]
async fn the_request_id_is_kept_or_made_and_the_same_in_both_logs() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    let mut client = Client::connect(pair.east.apps(), &Wire::H1).await.unwrap();
    let head = client
        .head("GET", HELLO, "/")
        .header("x-request-id", "mine-1");
    client
        .send(head.body(AnyBody::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(service.last().header("x-request-id"), "mine-1");
    for gateway in [&pair.east, &pair.west] {
        assert_eq!(gateway.request("mine-1").await["http.status"], 200);
    }
    client.get(HELLO, "/").await.unwrap();
    let made = service.last().header("x-request-id");
    assert_eq!(made.len(), 32);
    for gateway in [&pair.east, &pair.west] {
        assert_eq!(gateway.request(&made).await["http.status"], 200);
    }
}

#[tokio::test]
async fn who_called_is_what_the_gateways_say_and_not_what_the_caller_claims() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    let mut client = Client::connect(pair.east.apps(), &Wire::H1).await.unwrap();
    let head = client.head("GET", HELLO, "/");
    let head = head.header(
        "x-forwarded-client-cert",
        "By=spiffe://west.example/x;URI=spiffe://west.example/ns/shop/sa/admin",
    );
    let answer = client
        .send(head.body(AnyBody::empty()).unwrap())
        .await
        .unwrap();
    assert_eq!(answer.status, 200);
    // A workload on the plaintext listener has no identity: west sees east's gateway.
    assert_eq!(
        service.last().header("x-forwarded-client-cert"),
        "By=spiffe://west.example/zeugma/gateway;URI=spiffe://east.example/zeugma/gateway"
    );
}

#[tokio::test]
async fn a_workload_with_an_svid_is_known_in_the_other_cluster() {
    let service = HttpService::start("west");
    let (mut east, west) = (Cluster::new("east"), Cluster::new("west"));
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
    let cart = east.identity("ns/shop/sa/cart");
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let via = "allow: [{ from: [\"spiffe://east.example/ns/shop/*\"], via: [east] }]";
    let spec = ["protocol: http", &backend, via, "export: { to: [east] }"];
    let west = Gateway::of(west, &crate::data_mesh::route("hello", &spec)).await;
    let routes = http_route("hello", &["backends: [{ peer: west }]"]);
    let east = Gateway::of(east, &routes).await;
    for alpn in [&b"h2"[..], b"http/1.1"] {
        let tls = cart.dial(east.apps(), HELLO, &[alpn]).await.unwrap();
        let request = Request::get(format!("http://{HELLO}/who")).header(
            "x-forwarded-client-cert",
            "URI=spiffe://east.example/ns/shop/sa/admin",
        );
        let answer = if alpn == b"h2" {
            let mut client = Box::pin(crate::mesh::h2(tls)).await;
            let request = request.body(crate::mesh::empty()).unwrap();
            crate::mesh::collect(client.send_request(request).await.unwrap()).await
        } else {
            let mut client = crate::mesh::h1(tls).await;
            let request = request.header("host", HELLO).body(crate::mesh::empty());
            let response = client.send_request(request.unwrap()).await.unwrap();
            crate::mesh::collect(response).await
        };
        assert_eq!((answer.status, &*answer.text()), (200, "west"));
        assert_eq!(
            service.last().header("x-forwarded-client-cert"),
            "By=spiffe://west.example/zeugma/gateway;URI=spiffe://east.example/ns/shop/sa/cart"
        );
    }
    let line = west.process.log(|line| line["kind"] == "request").await;
    assert_eq!(
        line["src.attested"],
        "spiffe://east.example/ns/shop/sa/cart"
    );
    assert_eq!(line["src.identity"], "spiffe://east.example/zeugma/gateway");
    // A workload of the plaintext listener is not named to west, and west lets nobody else in.
    assert_eq!(get(east.apps(), HELLO, "/").await.status, 403);
}

#[tokio::test]
async fn a_websocket_passes_through_both_gateways_until_both_sides_have_ended_it() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    let mut tcp = TcpStream::connect(pair.east.apps()).await.unwrap();
    let head = format!(
        "GET /switch HTTP/1.1\r\nhost: {HELLO}\r\nconnection: keep-alive, Upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         x-request-id: ws-1\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let answer = read_head(&mut tcp).await.unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("upgrade: websocket"), "{answer}");
    let seen = service.last();
    assert_eq!(seen.header("sec-websocket-key"), "dGhlIHNhbXBsZSBub25jZQ==");
    let mut banner = [0; 5];
    tcp.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"echo:");
    for nth in 0..5_u8 {
        tcp.write_all(&[nth; 3]).await.unwrap();
        let mut echoed = [0; 3];
        within("the echo", tcp.read_exact(&mut echoed))
            .await
            .unwrap();
        assert_eq!(echoed, [nth; 3]);
    }
    // The end of one direction leaves the other open.
    tcp.shutdown().await.unwrap();
    assert_eq!(read_all(&mut tcp).await, b":end");
    for gateway in [&pair.east, &pair.west] {
        let line = gateway.request("ws-1").await;
        assert_eq!(
            (&line["http.status"], &line["verdict"]),
            (&101.into(), &"completed".into())
        );
        assert_eq!(line["bytes_recv"], 15);
        assert_eq!(line["bytes_sent"], 24);
    }
}

#[tokio::test]
async fn an_upgrade_that_is_declined_is_an_ordinary_answer() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    let answer = raw(
        pair.east.apps(),
        &format!(
            "POST /sum HTTP/1.1\r\nhost: {HELLO}\r\nconnection: close, upgrade, http2-settings\r\n\
             upgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\ncontent-length: 3\r\n\r\nabc"
        ),
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert!(answer.ends_with(&summary(b"abc")), "{answer}");
}

#[tokio::test]
async fn an_answer_that_comes_early_is_passed_on_while_the_body_is_still_sent() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let (frames, body) = AnyBody::channel();
        let head = client.head("POST", HELLO, "/early");
        let response = client.begin(head.body(body).unwrap());
        let first = async {
            frames.send(Frame::data(pattern(10))).await.unwrap();
            std::future::pending::<()>().await;
        };
        let response = tokio::select! {
            response = within("an early answer", response) => response.unwrap(),
            () = first => unreachable!(),
        };
        assert_eq!(response.status(), 200, "{wire:?}");
        drop(frames);
        assert_eq!(finish(response).await.unwrap().text(), "early");
    }
}

#[tokio::test]
async fn a_body_that_goes_on_after_its_answer_is_not_cut_off_as_a_slow_head() {
    let service = HttpService::start("near");
    let mut east = Cluster::new("east");
    east.set("limits", "{ headerTimeout: 1s }");
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let gateway = Gateway::of(east, &near_route("hello", &[&backend])).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H1).await.unwrap();
    let (frames, body) = AnyBody::channel();
    let head = client.head("POST", HELLO, "/echo");
    let (_, mut answer) = client
        .begin(head.body(body).unwrap())
        .await
        .unwrap()
        .into_parts();
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
    for _ in 0..35 {
        tick.tick().await;
        frames.send(Frame::data(pattern(3))).await.unwrap();
        let frame = http_body_util::BodyExt::frame(&mut answer);
        let frame = within("the echo", frame).await.unwrap().unwrap();
        assert_eq!(frame.data_ref().map(Bytes::len), Some(3));
    }
}

#[tokio::test]
async fn a_caller_that_leaves_ends_its_request_at_the_service() {
    let service = HttpService::start("west");
    service.set(Mode::Hang);
    let pair = far(&service, &[]).await;
    for (nth, wire) in [Wire::H1, Wire::H2].into_iter().enumerate() {
        let id = format!("left-{nth}");
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let head = client.head("GET", HELLO, "/").header("x-request-id", &id);
        let sending = client.send(head.body(AnyBody::empty()).unwrap());
        tokio::select! {
            _ = sending => unreachable!(),
            () = service.arrived(nth + 1) => {}
        }
        drop(client);
        service.given_up(nth + 1).await;
        for gateway in [&pair.east, &pair.west] {
            let line = gateway.request(&id).await;
            assert_eq!(line["verdict"], "downstream-closed", "{line}");
            assert_eq!(line["flags"], "DC");
        }
    }
}

/// Its connection goes on, whether the request was over with its head or by an empty frame after it.
#[tokio::test]
async fn a_request_that_its_caller_resets_ends_at_the_service() {
    let service = HttpService::start("west");
    service.set(Mode::Hang);
    let pair = far(&service, &[]).await;
    let tcp = TcpStream::connect(pair.east.apps()).await.unwrap();
    let (mut caller, connection) = h2::client::handshake(tcp).await.unwrap();
    let connection = tokio::spawn(connection);
    for (nth, is_over_with_head) in [true, false, true].into_iter().enumerate() {
        let id = format!("reset-{nth}");
        let request = Request::get(format!("http://{HELLO}/")).header("x-request-id", &id);
        let mut ready = within("a place", caller.ready()).await.unwrap();
        let (_response, mut stream) =
            (ready.send_request(request.body(()).unwrap(), is_over_with_head)).unwrap();
        if !is_over_with_head {
            stream.send_data(Bytes::new(), true).unwrap();
        }
        service.arrived(nth + 1).await;
        stream.send_reset(h2::Reason::CANCEL);
        service.given_up(nth + 1).await;
        for gateway in [&pair.east, &pair.west] {
            let line = gateway.request(&id).await;
            assert_eq!(line["verdict"], "downstream-closed", "{line}");
        }
        caller = ready;
    }
    assert!(!connection.is_finished());
}

#[tokio::test]
async fn callers_that_do_not_read_hold_up_nobody_else() {
    let service = HttpService::start("west");
    let pair = far(&service, &[]).await;
    let mut stuck = Vec::new();
    // Four for each worker would fill a window of four streams between the gateways.
    for nth in 0..24 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut tcp = socket.connect(pair.east.apps()).await.unwrap();
        let head = format!("GET /big HTTP/1.1\r\nhost: {HELLO}\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        service.arrived(nth + 1).await;
        let head = read_head(&mut tcp).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        stuck.push(tcp);
    }
    // Until long after every buffer on the way is full.
    let began = std::time::Instant::now();
    while began.elapsed() < std::time::Duration::from_secs(4) {
        let answer = get(pair.east.apps(), HELLO, "/bytes/100000").await;
        assert_eq!(answer.body.len(), 100_000);
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_broken_off_and_says_so_in_the_log() {
    let service = TcpService::with(|mut tcp| async move {
        read_head(&mut tcp).await.ok();
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it";
        tcp.write_all(half.as_bytes()).await.unwrap();
    });
    let backend = endpoints(&[service.address()]);
    let backend = format!("backends: [{{ version: h1, {backend} }}]");
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    for (nth, wire) in [Wire::H1, Wire::H2].into_iter().enumerate() {
        let id = format!("half-{nth}");
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let head = client.head("GET", HELLO, "/").header("x-request-id", &id);
        let head = head.header("te", "trailers");
        let request = head.body(AnyBody::empty()).unwrap();
        let answer = within("the end of half an answer", client.send(request)).await;
        answer.unwrap_err();
        let line = gateway.request(&id).await;
        assert_eq!(line["verdict"], "upstream-reset", "{line}");
        assert_eq!(line["bytes_sent"], 10);
    }
}

#[tokio::test]
async fn a_service_that_closes_kept_connections_costs_no_request() {
    // Answers once on each connection and closes it only when the next request has come in.
    let service = TcpService::with(|mut tcp| async move {
        if read_head(&mut tcp).await.is_err() {
            return;
        }
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        tcp.write_all(answer.as_bytes()).await.unwrap();
        read_head(&mut tcp).await.ok();
    });
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    for _ in 0..6 {
        let answer = get(gateway.apps(), HELLO, "/").await;
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "ok"));
    }
}

#[tokio::test]
async fn requests_for_no_route_are_refused_by_name() {
    let service = HttpService::start("near");
    let gateway = near(&service).await;
    let answer = get(gateway.apps(), "other.demo.svc.clusterset.local", "/").await;
    assert_eq!(answer.status.as_u16(), HTTP_404);
    let answer = call(gateway.apps(), "CONNECT", HELLO, "*", Bytes::new()).await;
    assert_eq!(answer.status.as_u16(), 400);
    assert_eq!(service.hits(), 0);
    for host in [
        HELLO.to_uppercase(),
        format!("{HELLO}."),
        format!("{HELLO}:80"),
    ] {
        assert_eq!(
            get(gateway.apps(), &host, "/").await.text(),
            "near",
            "{host}"
        );
    }
}
