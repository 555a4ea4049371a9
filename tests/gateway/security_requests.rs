//! Requests that say two things at once: hosts, request targets, lengths, paths.

use std::net::SocketAddr;

use http::{Request, Version};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::mesh::{Cluster, Gateway, Identity, Service, collect, empty, h1, h2, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";
const BILLS: &str = "bills.shop.svc.clusterset.local";
const SECRET: &str = "secret.shop.svc.clusterset.local";

/// What a gateway answered to raw bytes.
#[derive(Debug)]
struct Raw {
    text: String,
}

impl Raw {
    /// The status of the first response.
    fn status(&self) -> u16 {
        let status = self.text.strip_prefix("HTTP/1.1 ").map(|rest| &rest[..3]);
        status
            .unwrap_or_else(|| panic!("no response but {:?}", self.text))
            .parse()
            .unwrap()
    }
}

/// Sends bytes that no HTTP library would, and reads to the end.
async fn raw<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, bytes: &[u8]) -> Raw {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // After an answer the end may be abrupt: the answer counts.
    within("the answer", stream.read_to_end(&mut answer))
        .await
        .ok();
    Raw {
        text: String::from_utf8(answer).unwrap(),
    }
}

async fn plain(address: SocketAddr, bytes: &[u8]) -> Raw {
    raw(TcpStream::connect(address).await.unwrap(), bytes).await
}

struct Shop {
    east: Cluster,
    caller: Identity,
    orders: Service,
    bills: Service,
    secret: Service,
    gateway: Gateway,
}

/// `orders` and `bills` are for everybody, `secret` is exported to nobody.
async fn shop() -> Shop {
    let (orders, bills) = (Service::http("orders").await, Service::http("bills").await);
    let secret = Service::http("secret").await;
    let (mut west, east) = (Cluster::new("west"), Cluster::new("east"));
    east.meet(&west);
    for (name, service, export) in [
        ("orders", &orders, "export: { to: [west] }"),
        ("bills", &bills, "export: { to: [west] }"),
        ("secret", &secret, ""),
    ] {
        east.route(
            &format!("shop/{name}"),
            &format!(
                "
                protocol: http
                backends: [{{ endpoints: ['{}'] }}]
                allow: [{{ from: ['spiffe://west.example/*'] }}, {{ listeners: [apps] }}]
                {export}",
                service.address
            ),
        );
    }
    Shop {
        caller: west.identity("ns/shop/sa/cart"),
        gateway: east.start().await,
        east,
        orders,
        bills,
        secret,
    }
}

impl Shop {
    /// A request inside TLS for `orders`, whose authority is another.
    async fn ask(&self, version: Version, authority: &str) -> (u16, String) {
        let is_h2 = version == Version::HTTP_2;
        let alpn: &[&[u8]] = if is_h2 { &[b"h2"] } else { &[b"http/1.1"] };
        let dialled = self.caller.dial(self.east.mesh, ORDERS, alpn);
        let stream = within("a handshake", dialled).await.unwrap();
        let response = if is_h2 {
            let uri = format!("http://{authority}/");
            let request = Request::get(uri).body(empty()).unwrap();
            h2(stream).await.send_request(request).await.unwrap()
        } else {
            let request = Request::get("/").header("host", authority).body(empty());
            h1(stream)
                .await
                .send_request(request.unwrap())
                .await
                .unwrap()
        };
        let reply = collect(response).await;
        (reply.status, reply.text())
    }
}

#[tokio::test]
async fn a_request_inside_tls_is_for_the_service_that_the_sni_named_or_421() {
    let shop = shop().await;
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for same in [
            ORDERS,
            "ORDERS.shop.svc.clusterset.local",
            &format!("{ORDERS}:80"),
            &format!("{ORDERS}."),
        ] {
            let (status, text) = shop.ask(version, same).await;
            assert_eq!((status, &*text), (200, "orders"), "{version:?} {same}");
        }
        for other in [
            BILLS,
            SECRET,
            "nobody.shop.svc.clusterset.local",
            "orders.shop.svc.clusterset.local.evil.example",
            "evil.orders.shop.svc.clusterset.local",
            "127.0.0.1",
            &format!("{ORDERS}:81"),
        ] {
            let (status, text) = shop.ask(version, other).await;
            assert_eq!(status, 421, "{version:?} {other}");
            assert!(
                !text.contains(other),
                "the answer says no more than it must: {text}"
            );
            // The answer has the ID under which the log says more.
            let is_of_it = |id: &str| text.contains(&format!("request {id}"));
            let line = shop
                .gateway
                .log(|line| line["request.id"].as_str().is_some_and(is_of_it))
                .await;
            assert_eq!(line["verdict"], "misdirected", "{line}");
            assert_eq!(line["http.status"], 421);
            assert_eq!(line["http.authority"], other);
            assert_eq!(line["sni"], ORDERS);
        }
    }
    assert_eq!(shop.bills.connections() + shop.secret.connections(), 0);
    let labels = [
        ("listener", "mesh"),
        ("reason", "misdirected"),
        ("response_code", "421"),
    ];
    let metrics = shop.gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_requests_total", &labels), 14.0);
    shop.gateway.finish().await;
}

#[tokio::test]
async fn hosts_that_contradict_each_other_are_refused_or_read_in_one_way() {
    let shop = shop().await;
    let head = |target: &str, hosts: &[&str]| {
        let hosts: String = hosts.iter().map(|h| format!("Host: {h}\r\n")).collect();
        format!("GET {target} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n")
    };
    let absolute = format!("http://{ORDERS}/a");
    for (what, request, status) in [
        ("no host", head("/", &[]), 400),
        ("an empty host", head("/", &[""]), 400),
        ("two hosts", head("/", &[ORDERS, BILLS]), 400),
        ("the same host twice", head("/", &[ORDERS, ORDERS]), 400),
        (
            "two hosts in one",
            head("/", &[&format!("{ORDERS}, {BILLS}")]),
            404,
        ),
        ("userinfo", head("/", &[&format!("{BILLS}@{ORDERS}")]), 404),
        ("a path", head("/", &[&format!("{ORDERS}/x")]), 404),
        (
            "two hosts beside a target",
            head(&absolute, &[ORDERS, BILLS]),
            400,
        ),
        (
            "a tunnel",
            format!("CONNECT {ORDERS}:80 HTTP/1.1\r\nHost: {ORDERS}\r\nConnection: close\r\n\r\n"),
            400,
        ),
    ] {
        let answer = plain(shop.east.apps, request.as_bytes()).await;
        assert_eq!(answer.status(), status, "{what}: {answer:?}");
    }
    assert_eq!(shop.orders.connections() + shop.bills.connections(), 0);

    // RFC 9112 §3.2.2: the absolute form wins, and the endpoint sees what was judged.
    let answer = plain(shop.east.apps, head(&absolute, &[BILLS]).as_bytes()).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let seen = &shop.orders.requests()[0];
    assert_eq!(
        (seen.uri.to_string(), &seen.headers["host"]),
        ("/a".to_owned(), &ORDERS.parse().unwrap())
    );
    assert_eq!(shop.bills.connections(), 0);
    // So inside TLS too: the SNI's service is not what the target names.
    let dialled = shop.caller.dial(shop.east.mesh, BILLS, &[b"http/1.1"]);
    let stream = within("a handshake", dialled).await.unwrap();
    let answer = raw(stream, head(&absolute, &[BILLS]).as_bytes()).await;
    assert_eq!(answer.status(), 421, "{answer:?}");

    // RFC 9113 §8.3.1: `:authority` and `host` must not differ.
    let dialled = shop.caller.dial(shop.east.mesh, ORDERS, &[b"h2"]);
    let mut sender = h2(within("a handshake", dialled).await.unwrap()).await;
    for (host, status) in [(BILLS, 400), (ORDERS, 200)] {
        let request = Request::get(format!("http://{ORDERS}/")).header("host", host);
        let response = sender.send_request(request.body(empty()).unwrap()).await;
        assert_eq!(response.unwrap().status(), status, "host: {host}");
    }
    assert_eq!(shop.bills.connections(), 0);
    drop(sender);
    shop.gateway.finish().await;
}

#[tokio::test]
async fn what_the_gateway_takes_for_one_request_is_one_at_the_endpoint() {
    let shop = shop().await;
    let host = format!("Host: {ORDERS}\r\n");
    let second = format!("GET /smuggled HTTP/1.1\r\n{host}Connection: close\r\n\r\n");
    let length = second.len();
    for (what, request) in [
        (
            "both lengths, chunked is empty",
            format!(
                "POST /a HTTP/1.1\r\n{host}Content-Length: {length}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{second}"
            ),
        ),
        (
            "two lengths",
            format!(
                "POST /a HTTP/1.1\r\n{host}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{second}"
            ),
        ),
        (
            "a list of lengths",
            format!("POST /a HTTP/1.1\r\n{host}Content-Length: 0, {length}\r\n\r\n{second}"),
        ),
        (
            "a signed length",
            format!("POST /a HTTP/1.1\r\n{host}Content-Length: +{length}\r\n\r\n{second}"),
        ),
        (
            "an unknown coding last",
            format!(
                "POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked, xyz\r\n\r\n0\r\n\r\n{second}"
            ),
        ),
        (
            "a coding with a tab",
            format!(
                "POST /a HTTP/1.1\r\n{host}Transfer-Encoding:\tchunked\x0b\r\n\r\n0\r\n\r\n{second}"
            ),
        ),
        (
            "a space before the colon",
            format!("POST /a HTTP/1.1\r\n{host}Content-Length : {length}\r\n\r\n{second}"),
        ),
        (
            "a folded header",
            format!("POST /a HTTP/1.1\r\n{host}X: 1\r\n Content-Length: {length}\r\n\r\n{second}"),
        ),
        (
            "a bad chunk",
            format!(
                "POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{second}"
            ),
        ),
        (
            "an overlong chunk",
            format!(
                "POST /a HTTP/1.1\r\n{host}Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n\r\n{second}"
            ),
        ),
    ] {
        let (lines, arrived) = (told(&shop.gateway), shop.orders.requests().len());
        let mut tcp = TcpStream::connect(shop.east.apps).await.unwrap();
        let source = tcp.local_addr().unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        tcp.shutdown().await.unwrap();
        let mut answer = Vec::new();
        within("the answer", tcp.read_to_end(&mut answer))
            .await
            .ok();
        shop.gateway.connection(source).await;
        // Every request that an endpoint saw whole is one that the gateway judged and told of.
        let judged = told(&shop.gateway).split_off(lines.len());
        for seen in &shop.orders.requests()[arrived..] {
            assert!(
                judged.contains(&seen.uri.path().to_owned()),
                "{what}: {judged:?} but {seen:?}"
            );
            assert!(seen.body.is_empty(), "{what}: {seen:?}");
        }
        let smuggled = judged.iter().filter(|path| *path == "/smuggled").count();
        assert!(smuggled <= 1, "{what}: {judged:?}");
    }
    shop.gateway.finish().await;
}

#[tokio::test]
async fn a_body_is_framed_by_its_length_whatever_the_caller_says_of_it() {
    let shop = shop().await;
    // RFC 9110 §7.6.1: `connection` may not name it, and without it the body is the next request.
    let body = "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let request = format!(
        "POST /a HTTP/1.1\r\nHost: {ORDERS}\r\nConnection: close, Content-Length\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = plain(shop.east.apps, request.as_bytes()).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let seen = shop.orders.requests();
    assert_eq!(seen.len(), 1, "{seen:?}");
    assert_eq!(
        (seen[0].uri.path(), &*seen[0].body),
        ("/a", body.as_bytes())
    );
    shop.gateway.finish().await;
}

/// The paths of the requests in the log.
fn told(gateway: &Gateway) -> Vec<String> {
    let lines = gateway.log_so_far();
    let paths = lines.iter().filter(|line| line["kind"] == "request");
    paths
        .map(|line| line["http.path"].as_str().unwrap().to_owned())
        .collect()
}

#[tokio::test]
async fn no_spelling_of_a_path_slips_past_the_rules() {
    let service = Service::http("orders").await;
    let east = Cluster::new("east");
    for (name, rules) in [
        (
            "orders",
            "allow: [{ listeners: [apps], methods: [GET], paths: ['/v1/*', '/health'] }]",
        ),
        (
            "bills",
            "allow: [{ listeners: [apps] }]\ndeny: [{ paths: ['/admin/*', '/admin'] }]",
        ),
    ] {
        let rules = rules.replace('\n', "\n                ");
        east.route(
            &format!("shop/{name}"),
            &format!(
                "
                protocol: http
                backends: [{{ endpoints: ['{}'] }}]
                {rules}",
                service.address
            ),
        );
    }
    let gateway = east.start().await;
    let mut arrived = 0;
    for target in [
        "/v1/a",
        "/v1/",
        "/v1/a?q=/../admin",
        "/v1//a",
        "/v1/%61",
        "/v1/%7Ea%20b",
        "/health",
    ] {
        let answer = ask(&east, "GET", target, ORDERS).await;
        assert_eq!(answer.status(), 200, "{target}: {answer:?}");
        let seen = service.requests();
        arrived += 1;
        assert_eq!(seen.len(), arrived);
        assert_eq!(
            seen[arrived - 1].uri.to_string(),
            target,
            "as it was judged"
        );
    }
    for target in [
        "/",
        "/v1",
        "/v2/a",
        "/V1/a",
        "/healthz",
        "/health/",
        "*",
        "/v1/../admin",
        "/v1/..",
        "/v1/./a",
        "/v1/%2e%2e/admin",
        "/v1/%2E./admin",
        "/v1/.%2e/admin",
        "/v1/..%2fadmin",
        "/v1/..%2Fadmin",
        "/v1%2Fa",
        "/v1/a%2f..%2f..%2fadmin",
        "/v1/..\\admin",
        "/v1/..%5cadmin",
        "/v1\\a",
        "/v1/%252e%252e/admin",
        "/v1/a%252fb",
        "//v1/../admin",
        "/v1/;/../admin",
        "/v1/..;/admin",
        "/v1/%00",
        "/v1/%0d%0aX:1",
        "/v1/%",
        "/v1/%zz",
        "/v1/%c0%ae%c0%ae/admin/%2e%2e",
    ] {
        let answer = ask(&east, "GET", target, ORDERS).await;
        assert!(
            [400, 403].contains(&answer.status()),
            "{target}: {answer:?}"
        );
    }
    for target in [
        "/admin",
        "/admin/x",
        "//admin/x",
        "/%61dmin/x",
        "/x/../admin/x",
        "/./admin/x",
        "/admin%2Fx",
        "/admin%2fx",
        "/admin;a=b/x",
        "/admin\\x",
        "/%2561dmin/x",
        "/admin//x",
        "/x/%2e%2e/admin/x",
        "/admin/?a",
        "/admin?a",
    ] {
        let answer = ask(&east, "GET", target, BILLS).await;
        assert!(
            [400, 403].contains(&answer.status()),
            "{target}: {answer:?}"
        );
    }
    // A method is what it is, and no header makes it another.
    for method in ["POST", "get", "PUT", "X"] {
        let answer = ask(&east, method, "/v1/a", ORDERS).await;
        assert!(
            [400, 403].contains(&answer.status()),
            "{method}: {answer:?}"
        );
    }
    let overriding = format!(
        "POST /v1/a HTTP/1.1\r\nHost: {ORDERS}\r\nX-HTTP-Method-Override: GET\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    let answer = plain(east.apps, overriding.as_bytes()).await;
    assert_eq!(answer.status(), 403, "{answer:?}");
    assert_eq!(service.requests().len(), arrived);

    // The same over HTTP/2, whose `:path` no request line restrains.
    let tcp = TcpStream::connect(east.apps).await.unwrap();
    let mut sender = h2(tcp).await;
    for (path, status) in [
        ("/v1/a", 200),
        ("/v1/../admin", 403),
        ("/v1%2Fa", 403),
        ("/v1/..\\admin", 403),
    ] {
        let request = Request::get(format!("http://{ORDERS}{path}")).body(empty());
        let response = within("a response", sender.send_request(request.unwrap())).await;
        assert_eq!(response.unwrap().status(), status, "{path}");
    }
    drop(sender);
    let denied = gateway.log(|line| line["verdict"] == "denied").await;
    let rule = denied["policy.rule"].as_str().unwrap();
    assert!(rule.contains("shop-bills.yaml:"), "{rule}");
    gateway.finish().await;
}

async fn ask(east: &Cluster, method: &str, target: &str, host: &str) -> Raw {
    let request =
        format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    plain(east.apps, request.as_bytes()).await
}
