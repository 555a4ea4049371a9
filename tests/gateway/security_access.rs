//! Who may call what: default deny, deny, export, and identities that others hand on.

use rustls::AlertDescription;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::mesh::{
    Cluster, Gateway, Identity, Reply, Service, alert_of, collect, empty, h2, send, within,
};

const ORDERS: &str = "orders.shop.svc.clusterset.local";
const XFCC: &str = "x-forwarded-client-cert";
const CART: &str = "spiffe://west.example/ns/shop/sa/cart";

/// A request inside mTLS; `None` sends no `x-forwarded-client-cert`.
async fn call(east: &Cluster, caller: &Identity, xfcc: Option<&str>) -> Reply {
    let dialled = caller.dial(east.mesh, ORDERS, &[b"h2"]);
    let stream = within("a handshake", dialled).await.unwrap();
    let mut request = http::Request::get(format!("http://{ORDERS}/"));
    if let Some(xfcc) = xfcc {
        request = request.header(XFCC, xfcc);
    }
    let mut sender = h2(stream).await;
    let sent = sender.send_request(request.body(empty()).unwrap());
    collect(within("a response", sent).await.unwrap()).await
}

/// The line of a request by its ID.
async fn line_of(gateway: &Gateway, reply: &Reply) -> Value {
    let id = reply.header("x-request-id").to_owned();
    gateway.log(|line| line["request.id"] == *id).await
}

#[tokio::test]
async fn only_what_a_rule_allows_passes_and_deny_wins() {
    let service = Service::http("orders").await;
    let (mut west, east) = (Cluster::new("west"), Cluster::new("east"));
    east.meet(&west);
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow:
              - {{ from: ['spiffe://west.example/ns/shop/*'] }}
            deny:
              - {{ from: ['spiffe://west.example/ns/shop/sa/evil'] }}
            export: {{ to: [west] }}",
            service.address
        ),
    );
    let gateway = east.start().await;
    for (path, status, verdict, rule) in [
        (
            "ns/shop/sa/cart",
            200,
            "completed",
            Some("shop-orders.yaml:8"),
        ),
        (
            "ns/shop/sa/evil",
            403,
            "denied",
            Some("shop-orders.yaml:10"),
        ),
        // By segment, never by prefix.
        ("ns/shop", 403, "not-allowed", None),
        ("ns/shopping/sa/cart", 403, "not-allowed", None),
        ("ns/other/sa/cart", 403, "not-allowed", None),
        ("zeugma/gateway", 403, "not-allowed", None),
    ] {
        let caller = west.identity(path);
        let reply = call(&east, &caller, None).await;
        let text = reply.text();
        assert_eq!(reply.status, status, "{path}: {text}");
        let line = gateway
            .log(|line| {
                line["kind"] == "request"
                    && line["src.identity"] == format!("spiffe://west.example/{path}")
            })
            .await;
        assert_eq!(line["verdict"], verdict, "{path}: {line}");
        assert_eq!(line["src.peer"], "west");
        let told = line["policy.rule"].as_str();
        assert_eq!(
            told.map(|at| at.rsplit('/').next().unwrap()),
            rule,
            "{path}: {line}"
        );
        if status == 403 {
            // The caller learns an ID to ask with, not whom we would have let in.
            assert!(!text.contains("spiffe://"), "{text}");
        }
    }
    // Plaintext brings no identity, and this route allows nothing else.
    let request = http::Request::get("/").header("host", ORDERS).body(empty());
    assert_eq!(send(east.apps, request.unwrap()).await.status, 403);
    assert_eq!(service.requests().len(), 1);
    gateway.finish().await;
}

#[tokio::test]
async fn a_tcp_service_refuses_inside_the_handshake() {
    let service = Service::echo().await;
    let (mut west, mut north) = (Cluster::new("west"), Cluster::new("north"));
    let mut east = Cluster::new("east");
    east.meet(&west);
    east.meet(&north);
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: tcp
            port: 5432
            inbound: terminate
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ from: ['spiffe://west.example/ns/shop/*', 'spiffe://north.example/*', 'spiffe://east.example/*'] }}]
            deny: [{{ from: ['spiffe://west.example/ns/shop/sa/evil'] }}]
            export: {{ to: [west] }}",
            service.address
        ),
    );
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    for (caller, verdict) in [
        (west.identity("ns/shop/sa/evil"), "denied"),
        (west.identity("ns/other/sa/cart"), "not-allowed"),
        // Allowed by its rule, but the route is not exported to it.
        (north.identity("ns/shop/sa/cart"), "not-exported"),
        // Of no peer at all.
        (east.identity("ns/shop/sa/cart"), "not-exported"),
    ] {
        let tcp = TcpStream::connect(east.mesh).await.unwrap();
        let source = tcp.local_addr().unwrap();
        let dialled = caller.dial_over(tcp, ORDERS, &[]);
        let mut stream = within("a handshake", dialled).await.unwrap();
        stream.write_all(b"secret").await.unwrap();
        let error = within("an alert", stream.read_u8()).await.unwrap_err();
        assert_eq!(alert_of(&error), AlertDescription::AccessDenied);
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], verdict, "{line}");
        assert_eq!(line["tls.alert"], "access_denied", "{line}");
        assert!(line["src.identity"].is_string(), "{line}");
    }
    assert_eq!(service.connections(), 0);
    gateway.sockets_fall_to(sockets).await;
    let metrics = gateway.metrics().await;
    for (reason, times) in [("denied", 1.0), ("not-allowed", 1.0), ("not-exported", 2.0)] {
        let labels = [("reason", reason), ("destination_service", "shop/orders")];
        assert_eq!(
            metrics.value("zeugma_connections_total", &labels),
            times,
            "{reason}"
        );
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_service_is_reached_by_those_it_is_exported_to_alone() {
    let service = Service::http("orders").await;
    let (mut west, mut north, mut east) = (
        Cluster::new("west"),
        Cluster::new("north"),
        Cluster::new("east"),
    );
    east.meet(&west);
    east.meet(&north);
    for (name, export) in [
        ("orders", "export: { to: [west] }"),
        ("everybody", "export: { to: ['*'] }"),
        ("nobody", ""),
    ] {
        east.route(
            &format!("shop/{name}"),
            &format!(
                "
                protocol: http
                backends: [{{ endpoints: ['{}'] }}]
                allow: [{{ from: ['spiffe://west.example/*', 'spiffe://north.example/*', 'spiffe://east.example/*'] }}, {{ listeners: [apps] }}]
                {export}",
                service.address
            ),
        );
    }
    let gateway = east.start().await;
    let callers = [
        ("west", west.identity("ns/shop/sa/cart")),
        ("north", north.identity("ns/shop/sa/cart")),
        // Its own trust domain is no peer.
        ("east", east.identity("ns/shop/sa/cart")),
    ];
    for (name, caller) in &callers {
        for (host, to) in [("orders", &["west"][..]), ("everybody", &["west", "north"])] {
            let host = format!("{host}.shop.svc.clusterset.local");
            let dialled = caller.dial(east.mesh, &host, &[b"h2"]);
            let mut sender = h2(within("a handshake", dialled).await.unwrap()).await;
            let request = http::Request::get(format!("http://{host}/")).body(empty());
            let sent = sender.send_request(request.unwrap()).await;
            let reply = collect(sent.unwrap()).await;
            let expected = if to.contains(name) { 200 } else { 403 };
            assert_eq!(reply.status, expected, "{name} {host}");
            if expected == 403 {
                let line = line_of(&gateway, &reply).await;
                assert_eq!(line["verdict"], "not-exported", "{line}");
            }
        }
        let dialled = caller.dial(east.mesh, "nobody.shop.svc.clusterset.local", &[b"h2"]);
        let error = within("a handshake", dialled).await.unwrap_err();
        assert_eq!(alert_of(&error), AlertDescription::UnrecognisedName);
    }
    assert_eq!(service.requests().len(), 3);
    gateway.finish().await;
}

/// A cluster that lets in `cart` of west only as west's gateway attests it.
async fn attesting(protocol: &str, attests: &str) -> (Cluster, Cluster, Service, Gateway) {
    let service = match protocol {
        "http" => Service::http("orders").await,
        _ => Service::echo().await,
    };
    let (west, east) = (Cluster::new("west"), Cluster::new("east"));
    east.meet(&west);
    east.peer(
        "west",
        &format!(
            "
            cluster: west
            locality: west/west-1
            gateways: ['{}']
            spiffeIDs: ['{}']
            attests: [{attests}]",
            west.mesh,
            west.gateway_id()
        ),
    );
    let port = if protocol == "tcp" {
        "port: 5432\ninbound: terminate"
    } else {
        "port: 80"
    };
    let port = port.replace('\n', "\n            ");
    // Only what the peer is believed about can be written.
    let from = if attests == "west.example" {
        format!("'{CART}', 'spiffe://west.example/ns/bad/*'")
    } else {
        format!("'spiffe://{attests}/*'")
    };
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: {protocol}
            {port}
            backends: [{{ endpoints: ['{}'] }}]
            allow:
              - {{ from: [{from}], via: [west] }}
              - {{ from: ['spiffe://west.example/ns/direct/*'] }}
            deny:
              - {{ from: ['spiffe://west.example/ns/bad/*'] }}
            export: {{ to: [west] }}",
            service.address
        ),
    );
    let gateway = east.start().await;
    (east, west, service, gateway)
}

#[tokio::test]
async fn an_identity_handed_on_counts_from_an_attesting_gateway_only() {
    let (east, mut west, service, gateway) = attesting("http", "west.example").await;
    let peer = west.gateway_identity();
    let cart = west.identity("ns/shop/sa/cart");
    let direct = west.identity("ns/direct/sa/a");
    let element = |id: &str| format!("By=spiffe://west.example/zeugma/gateway;URI={id}");
    let (of_cart, of_evil) = (
        element(CART),
        element("spiffe://west.example/ns/bad/sa/evil"),
    );
    let of_other = element("spiffe://north.example/ns/shop/sa/cart");
    let of_east = element("spiffe://east.example/ns/shop/sa/cart");
    let two = format!("{of_evil},{of_cart}");
    let two_uris = format!("{of_cart};URI=spiffe://west.example/ns/bad/sa/evil");
    let quoted = format!("By=\"a\\\",URI=b\";URI={CART}");
    let cases: Vec<(&str, &Identity, Option<&str>, u16, Option<&str>)> = vec![
        ("attested", &peer, Some(&of_cart), 200, Some(CART)),
        ("the gateway itself", &peer, None, 403, None),
        (
            "denied though attested",
            &peer,
            Some(&of_evil),
            403,
            Some("spiffe://west.example/ns/bad/sa/evil"),
        ),
        (
            "a trust domain it does not attest for",
            &peer,
            Some(&of_other),
            403,
            None,
        ),
        ("our own trust domain", &peer, Some(&of_east), 403, None),
        ("two elements", &peer, Some(&two), 400, None),
        ("two URIs", &peer, Some(&two_uris), 400, None),
        ("quotes", &peer, Some(&quoted), 400, None),
        (
            "no SPIFFE ID",
            &peer,
            Some("URI=https://west.example/"),
            400,
            None,
        ),
        ("no element", &peer, Some(""), 400, None),
        (
            "the workload itself, without its gateway",
            &cart,
            None,
            403,
            None,
        ),
        ("a workload that forges", &cart, Some(&of_cart), 403, None),
        (
            "an allowed workload that forges",
            &direct,
            Some(&of_cart),
            200,
            None,
        ),
        (
            "an allowed workload that names a denied one",
            &direct,
            Some(&of_evil),
            200,
            None,
        ),
    ];
    for (what, caller, xfcc, status, attested) in cases {
        let before = service.requests().len();
        let reply = call(&east, caller, xfcc).await;
        assert_eq!(reply.status, status, "{what}");
        let seen = service.requests().split_off(before);
        if status == 200 {
            // One element, ours: who was attested, else who was verified.
            let id = attested.unwrap_or("spiffe://west.example/ns/direct/sa/a");
            let expected = format!("By=spiffe://east.example/zeugma/gateway;URI={id}");
            let got: Vec<_> = seen[0].headers.get_all(XFCC).iter().collect();
            assert_eq!(got, [&expected], "{what}");
        } else {
            assert!(seen.is_empty(), "{what}");
            let line = line_of(&gateway, &reply).await;
            assert_eq!(line["src.attested"].as_str(), attested, "{what}: {line}");
        }
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_peer_hands_on_nobody_of_a_domain_it_does_not_attest_for() {
    let (east, west, service, gateway) = attesting("http", "north.example").await;
    let xfcc = format!("By={};URI={CART}", west.gateway_id());
    let reply = call(&east, &west.gateway_identity(), Some(&xfcc)).await;
    assert_eq!(reply.status, 403);
    let line = line_of(&gateway, &reply).await;
    assert_eq!(line["verdict"], "not-allowed", "{line}");
    assert!(line.get("src.attested").is_none(), "{line}");
    assert_eq!(service.connections(), 0);
    gateway.finish().await;
}

#[tokio::test]
async fn what_a_workload_says_of_itself_is_removed() {
    let service = Service::http("orders").await;
    let mut east = Cluster::new("east");
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ listeners: [apps] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    let request = http::Request::get("/")
        .header("host", ORDERS)
        .header(XFCC, format!("URI={CART}"))
        .header("X-Forwarded-Client-Cert", "URI=spiffe://east.example/admin")
        .body(empty());
    assert_eq!(send(east.apps, request.unwrap()).await.status, 200);
    // Named by `connection`, it is removed as a hop's own header, and so it is gone as well.
    let request = http::Request::get("/")
        .header("host", ORDERS)
        .header(XFCC, format!("URI={CART}"))
        .header("connection", XFCC)
        .body(empty());
    assert_eq!(send(east.apps, request.unwrap()).await.status, 200);
    for seen in service.requests() {
        assert!(!seen.headers.contains_key(XFCC), "{seen:?}");
    }
    // A workload with an SVID: its verified ID, not what it says.
    let dialled = east
        .identity("ns/shop/sa/cart")
        .dial(east.apps, ORDERS, &[b"h2"])
        .await;
    let mut sender = h2(dialled.unwrap()).await;
    let request = http::Request::get(format!("http://{ORDERS}/"))
        .header(XFCC, "URI=spiffe://east.example/admin")
        .body(empty());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let seen = service.requests().pop().unwrap();
    assert_eq!(
        seen.headers[XFCC],
        "By=spiffe://east.example/zeugma/gateway;URI=spiffe://east.example/ns/shop/sa/cart"
    );
    drop(sender);
    gateway.finish().await;
}

/// A PROXY protocol v2 header (its §2.2) with TLVs.
pub(crate) fn proxy_header(tlvs: &[(u8, &[u8])]) -> Vec<u8> {
    let mut rest = vec![127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 2];
    for (kind, value) in tlvs {
        rest.push(*kind);
        rest.extend(u16::try_from(value.len()).unwrap().to_be_bytes());
        rest.extend_from_slice(value);
    }
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11".to_vec();
    header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    header.extend(rest);
    header
}

#[tokio::test]
async fn an_identity_in_a_proxy_header_counts_from_an_attesting_gateway_only() {
    let (east, mut west, service, gateway) = attesting("tcp", "west.example").await;
    let sockets = gateway.sockets();
    let peer = west.gateway_identity();
    let direct = west.identity("ns/direct/sa/a");
    let id = |id: &'static str| proxy_header(&[(0xd0, id.as_bytes())]);
    let evil = "spiffe://west.example/ns/bad/sa/evil";
    let cases: Vec<(&str, &Identity, Vec<u8>, &str)> = vec![
        ("attested", &peer, id(CART), "completed"),
        ("nobody", &peer, proxy_header(&[]), "not-allowed"),
        ("denied", &peer, id(evil), "denied"),
        (
            "another trust domain",
            &peer,
            id("spiffe://north.example/ns/shop/sa/cart"),
            "not-allowed",
        ),
        (
            "a workload that names a denied one",
            &direct,
            id(evil),
            "completed",
        ),
        (
            "no SPIFFE ID",
            &peer,
            id("https://west.example/"),
            "request-malformed",
        ),
        (
            "two IDs",
            &peer,
            proxy_header(&[(0xd0, CART.as_bytes()), (0xd0, evil.as_bytes())]),
            "request-malformed",
        ),
        (
            "no header",
            &peer,
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            "request-malformed",
        ),
        (
            "a header of 65535 bytes",
            &peer,
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff".to_vec(),
            "request-malformed",
        ),
        (
            "a TLV beyond the end",
            &peer,
            [&id(CART)[..15], &[13], &id(CART)[16..28], &[0xd0]].concat(),
            "request-malformed",
        ),
        (
            "half a header",
            &peer,
            id(CART)[..20].to_vec(),
            "request-malformed",
        ),
    ];
    let mut reached = 0;
    for (what, caller, header, verdict) in cases {
        let tcp = TcpStream::connect(east.mesh).await.unwrap();
        let source = tcp.local_addr().unwrap();
        let dialled = caller.dial_over(tcp, ORDERS, &[b"zeugma-tcp/1"]);
        let mut stream = within(what, dialled).await.unwrap();
        stream.write_all(&header).await.unwrap();
        if verdict == "completed" {
            reached += 1;
            stream.write_all(b"ping").await.unwrap();
        }
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        // A refusal may close with our bytes unread.
        within(what, stream.read_to_end(&mut answer)).await.ok();
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], verdict, "{what}: {line}");
        // The gateway says first that it has connected an endpoint.
        let expected: &[u8] = if verdict == "completed" {
            b"\0ping"
        } else {
            b""
        };
        assert_eq!(answer, expected, "{what}");
    }
    // A workload that is no gateway of a peer needs its own certificate's permission.
    let cart = west.identity("ns/shop/sa/cart");
    let mut stream = cart
        .dial(east.mesh, ORDERS, &[b"zeugma-tcp/1"])
        .await
        .unwrap();
    stream.write_all(&id(CART)).await.unwrap();
    let mut answer = Vec::new();
    let read = within("the end", stream.read_to_end(&mut answer)).await;
    assert!(read.is_err() || answer.is_empty());
    gateway
        .log(|line| line["src.identity"] == CART && line["verdict"] == "not-allowed")
        .await;
    assert_eq!(service.connections(), reached);
    gateway.sockets_fall_to(sockets).await;
    gateway.finish().await;
}
