//! Routing of requests by `rules`: matches, splits, header changes, deadlines and tries.

use bytes::Bytes;
use http::{HeaderMap, Request, Response, header};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::data_client::{Answer, Client, Wire, call, read_head};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route, statuses};
use crate::data_protocols::{hints, talk};
use crate::data_services::{AnyBody, HttpService, Mode, Refusing, TcpService};
use crate::mesh::{Cluster, Identity, Service, collect, empty, eventually, full, h2, within};

const RULED: &str = "zeugma_rule_requests_total";
const AUDITED: &str = "zeugma_policy_audited_total";
/// The host of the route `canary` in `demo`.
const CANARY: &str = "canary.demo.svc.clusterset.local";

/// A backend of this name.
fn backend(name: &str, service: &HttpService) -> String {
    format!("{{ name: {name}, {} }}", endpoints(&[service.address()]))
}

/// The route `hello` with these backends and rules.
fn hello(backends: &[String], rules: &str) -> String {
    let backends = format!("backends: [{}]", backends.join(", "));
    near_route("hello", &[&backends, &format!("rules: [{rules}]")])
}

/// One GET with these headers.
async fn ask(client: &mut Client, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut head = client.head("GET", HELLO, path);
    for (name, value) in headers {
        head = head.header(*name, *value);
    }
    client
        .send(head.body(AnyBody::empty()).unwrap())
        .await
        .unwrap()
}

#[tokio::test]
async fn a_request_goes_where_its_path_method_headers_query_or_grpc_method_lead() {
    let names = ["admin", "write", "beta", "second", "grpc", "rest"];
    let services = names.map(HttpService::start);
    let backends: Vec<String> = (names.iter().zip(&services))
        .map(|(name, service)| backend(name, service))
        .collect();
    let rules = "{ name: rest, split: [{ backends: [rest] }] }, \
        { name: admin, matches: [{ path: { prefix: /admin } }], split: [{ backends: [admin] }] }, \
        { matches: [{ method: PUT }, { path: { exact: /w } }], split: [{ backends: [write] }] }, \
        { matches: [{ headers: { X-Beta: '1' } }], split: [{ backends: [beta] }] }, \
        { matches: [{ query: { v: '2' } }], split: [{ backends: [second] }] }, \
        { matches: [{ grpc: { service: shop.Orders, method: Get } }], split: [{ backends: [grpc] }] }";
    let gateway = Gateway::alone(&hello(&backends, rules)).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let beta = ("x-beta", "1");
        for (path, headers, expected) in [
            ("/", &[][..], "rest"),
            ("/admin", &[beta], "admin"),
            ("/admin/x?v=2", &[], "admin"),
            ("/adminx", &[], "rest"),
            ("/w", &[], "write"),
            ("/x", &[beta], "beta"),
            ("/x", &[beta, beta], "rest"),
            ("/x?v=2", &[beta], "beta"),
            ("/x?v=2&v=3", &[], "second"),
            ("/shop.Orders/Get", &[], "rest"),
        ] {
            let answer = ask(&mut client, path, headers).await;
            assert_eq!(answer.text(), expected, "{wire:?} {path} {headers:?}");
        }
        for (method, path, expected) in [
            ("PUT", "/x", "write"),
            ("POST", "/shop.Orders/Get", "grpc"),
            ("POST", "/shop.Orders/Put", "rest"),
        ] {
            let head = client.head(method, HELLO, path);
            let answer = client
                .send(head.body(AnyBody::empty()).unwrap())
                .await
                .unwrap();
            assert_eq!(answer.text(), expected, "{wire:?} {method} {path}");
        }
    }
    // Three of each wire.
    let admin = [("rule", "admin"), ("part", "admin")];
    assert_eq!(gateway.counted(RULED, &admin).await, 4.0);
    let line = gateway
        .process
        .log(|line| line["http.path"] == "/adminx")
        .await;
    assert_eq!(
        (&line["http.rule"], &line["http.split"]),
        (&"rest".into(), &"rest".into())
    );
    let write = gateway.process.log(|line| line["http.path"] == "/w").await;
    assert_eq!(write["http.rule"], "2");
    let told = gateway.process.admin_json("/api/v1/routes").await;
    let rules = told["routes"][0]["rules"].as_array().unwrap();
    assert_eq!(rules.len(), 6, "{told}");
    assert_eq!(rules[1]["rule"], "admin");
    assert_eq!(rules[1]["matches"][0]["prefix"], "/admin");
    assert_eq!(rules[1]["split"][0]["part"], "admin");
    gateway.process.finish().await;
}

#[tokio::test]
async fn what_no_rule_matches_is_refused_and_so_is_a_path_that_servers_read_differently() {
    let (admin, rest) = (HttpService::start("admin"), HttpService::start("rest"));
    let backends = [backend("admin", &admin), backend("rest", &rest)];
    let rules = "{ matches: [{ path: { prefix: /admin } }], split: [{ backends: [admin] }] }, \
        { matches: [{ method: GET }], split: [{ backends: [rest] }] }";
    let gateway = Gateway::alone(&hello(&backends, rules)).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        for path in [
            "/x/../admin",
            "/x/%2e%2e/admin",
            "//admin",
            "/admin%2fx",
            "/x%2f..%2fadmin",
            "/;a/admin/x",
            "/admin/..",
        ] {
            let answer = ask(&mut client, path, &[]).await;
            assert_eq!(answer.status, 404, "{wire:?} {path}");
        }
        for (path, expected) in [
            ("/admin//x", "admin"),
            ("/%61dmin", "admin"),
            ("/x//y", "rest"),
        ] {
            assert_eq!(ask(&mut client, path, &[]).await.text(), expected, "{path}");
        }
        let refused = client
            .post(HELLO, "/x", Bytes::from_static(b"x"))
            .await
            .unwrap();
        assert_eq!(refused.status, 404);
        let line = gateway.request(refused.header("x-request-id")).await;
        assert_eq!(
            (&line["verdict"], &line["code"]),
            (&"no-rule".into(), &"ZG0418".into())
        );
        assert_eq!(line["dst.service"], "demo/hello");
        assert!(line["http.rule"].is_null());
    }
    assert_eq!((admin.hits(), rest.hits()), (4, 2));
    gateway.until_counted(RULED, &[("rule", "")], 16.0).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    let grpc = client
        .head("POST", HELLO, "/a.B/C")
        .header("content-type", "application/grpc");
    let refused = client
        .send(grpc.body(AnyBody::empty()).unwrap())
        .await
        .unwrap();
    // gRPC's http-grpc-status-mapping.md: 404 is UNIMPLEMENTED.
    assert_eq!(
        (refused.status.as_u16(), refused.header("grpc-status")),
        (200, "12")
    );
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_split_is_kept_within_bounds_and_a_dead_parts_share_goes_to_the_other() {
    let (stable, mut canary) = (HttpService::start("stable"), HttpService::start("canary"));
    let to_canary = near_route(
        "canary",
        &[&format!("backends: [{}]", backend("c", &canary))],
    );
    let rules = "{ split: [{ backends: [s], weight: 90 }, { route: demo/canary, weight: 10 }] }";
    let route = hello(&[backend("s", &stable)], rules);
    let gateway = Gateway::alone(&format!("{route}{to_canary}")).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    for _ in 0..2000 {
        assert_eq!(client.get(HELLO, "/").await.unwrap().status, 200);
    }
    // Of 2000 by one in ten: 200, and six standard deviations are 80.
    let hits = canary.hits();
    assert!(hits.abs_diff(200) < 80, "{hits}");
    assert_eq!(hits + stable.hits(), 2000);
    assert!(canary.seen().iter().all(|seen| seen.host == HELLO));
    let counted = gateway
        .counted(RULED, &[("rule", "0"), ("part", "demo/canary")])
        .await;
    assert_eq!(counted, hits as f64);
    // No request of any method fails for it: no endpoint saw those that could not be connected.
    canary.kill().await;
    for nth in 0..200 {
        let answer = match nth % 2 {
            0 => client.get(HELLO, "/").await,
            _ => client.post(HELLO, "/", Bytes::from_static(b"x")).await,
        };
        assert_eq!(answer.unwrap().text(), "stable");
    }
    canary.revive();
    let before = canary.hits();
    eventually("the canary to have its share again", async || {
        client.get(HELLO, "/").await.unwrap();
        (canary.hits() > before).then_some(())
    })
    .await;
    // What may be done twice is, in the other part.
    canary.set(Mode::Status(503));
    for _ in 0..100 {
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "stable");
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn what_may_not_be_done_twice_is_not_taken_to_another_part() {
    let (stable, canary) = (HttpService::start("stable"), HttpService::start("canary"));
    canary.set(Mode::Status(503));
    let rules = "{ split: [{ backends: [c], weight: 1000000 }, { backends: [s] }] }";
    let backends = [backend("s", &stable), backend("c", &canary)];
    let gateway = Gateway::alone(&hello(&backends, rules)).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H1).await.unwrap();
    let answer = client
        .post(HELLO, "/", Bytes::from_static(b"x"))
        .await
        .unwrap();
    assert_eq!(answer.status, 503);
    let line = gateway
        .request(&canary.seen()[0].header("x-request-id"))
        .await;
    assert_eq!(
        (&line["http.split"], &line["attempts"]),
        (&"c".into(), &1.into())
    );
    assert_eq!((canary.hits(), stable.hits()), (1, 0));
    gateway.process.finish().await;
}

#[tokio::test]
async fn headers_are_set_added_and_removed_on_the_way_there_and_back() {
    // Answers with what it saw of some headers.
    let service = Service::handling(|request: Request<hyper::body::Incoming>| async move {
        let seen = ["x-mesh", "x-more", "x-debug", "x-kept"].map(|name| {
            let values = request.headers().get_all(name).iter();
            let values: Vec<_> = values
                .map(|value| value.to_str().unwrap().to_owned())
                .collect();
            values.join("+")
        });
        let mut response = Response::new(full(seen.join(" ")));
        for (name, value) in [
            ("x-served", "service"),
            ("x-also", "service"),
            ("x-debug", "service"),
            ("x-kept", "service"),
        ] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address]));
    let rules = "rules: [{ headers: { \
        request: { set: { x-mesh: east }, add: { x-more: east }, remove: [X-Debug] }, \
        response: { set: { x-served: east }, add: { x-also: east }, remove: [x-debug] } } }]";
    let gateway = Gateway::alone(&near_route("hello", &[&backends, rules])).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let sent = ["x-mesh", "x-more", "x-debug", "x-kept"].map(|name| (name, "caller"));
        let twice = [("x-mesh", "again")];
        let answer = ask(&mut client, "/", &[&sent[..], &twice].concat()).await;
        assert_eq!(answer.text(), "east caller+east  caller", "{wire:?}");
        let all = |name: &str| -> Vec<&str> {
            let values = answer.headers.get_all(name).iter();
            values.map(|value| value.to_str().unwrap()).collect()
        };
        assert_eq!(all("x-served"), ["east"]);
        assert_eq!(all("x-also"), ["service", "east"]);
        assert_eq!(all("x-debug"), [""; 0]);
        assert_eq!(all("x-kept"), ["service"]);
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_rule_has_deadlines_and_tries_of_its_own() {
    let (slow, good) = (HttpService::start("slow"), HttpService::start("good"));
    slow.set(Mode::Hang);
    // Only a rule's own end a request here: the route's are longer than the test waits.
    let route = |rules: &str| {
        let long = "timeouts: { responseHeaders: 1h }, retries: { attempts: 0, on: [connect] }";
        let backends = format!(
            "backends: [{}, {}]",
            backend("a", &slow),
            backend("b", &good)
        );
        let only = format!(
            "{backends}\n  {}",
            long.replace("}, retries", "}\n  retries")
        );
        near_route("hello", &[&only, &format!("rules: [{rules}]")])
    };
    let rules = "{ matches: [{ path: { exact: /head } }], split: [{ backends: [a] }], \
            timeouts: { responseHeaders: 300ms } }, \
        { matches: [{ path: { exact: /try } }], split: [{ backends: [a], weight: 1000000 }, \
            { backends: [b] }], timeouts: { perTry: 300ms }, \
            retries: { attempts: 1, on: [timeout] } }, \
        { matches: [{ path: { exact: /any } }], split: [{ backends: [a], weight: 1000000 }, \
            { backends: [b] }], retries: { attempts: 1, on: [501, resource-exhausted], any: true } }";
    let gateway = Gateway::alone(&route(rules)).await;
    for wire in [Wire::H1, Wire::H2] {
        slow.set(Mode::Hang);
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let late = client.get(HELLO, "/head").await.unwrap();
        assert_eq!(late.status, 504, "{wire:?}");
        let line = gateway.request(late.header("x-request-id")).await;
        assert_eq!(line["verdict"], "upstream-timeout");
        let tried = client.get(HELLO, "/try").await.unwrap();
        assert_eq!(
            (tried.status.as_u16(), &*tried.text()),
            (200, "good"),
            "{wire:?}"
        );
        for mode in [Mode::Status(501), Mode::Grpc("8")] {
            slow.set(mode);
            let tried = client
                .post(HELLO, "/any", Bytes::from_static(b"x"))
                .await
                .unwrap();
            assert_eq!(tried.text(), "good", "{wire:?} {mode:?}");
        }
        // Not what the rule names, and not retried by the route.
        slow.set(Mode::Grpc("5"));
        let other = client.get(HELLO, "/any").await.unwrap();
        assert_eq!(other.header("grpc-status"), "5");
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_peers_gateway_has_applied_rules_already_and_another_route_is_asked_for_by_its_own_host()
{
    let (plain, canary) = (HttpService::start("plain"), HttpService::start("canary"));
    let third = HttpService::start("third");
    let rules = "rules: [{ matches: [{ path: { prefix: /c } }], split: [{ route: demo/canary }], \
            headers: { request: { set: { x-east: '1' } } } }, \
        { matches: [{ path: { prefix: /p } }] }]";
    let east = [
        http_route("hello", &["backends: [{ peer: west }]", rules]),
        http_route("canary", &["backends: [{ peer: west }]"]),
    ];
    // Here nothing of it would match, and what would is led elsewhere and marked.
    let west_rules = "rules: [{ matches: [{ path: { exact: /nothing } }], \
            split: [{ backends: [third] }] }]";
    let west_canary = "rules: [{ split: [{ backends: [third] }], \
        headers: { request: { set: { x-west: '1' } }, response: { set: { x-west: '1' } } } }]";
    let of = |service: &HttpService| {
        format!(
            "backends: [{}, {}]",
            backend("own", service),
            backend("third", &third)
        )
    };
    let west = [
        http_route(
            "hello",
            &[&of(&plain), west_rules, "failover: { never: [] }"],
        ),
        http_route("canary", &[&of(&canary), west_canary]),
    ];
    let pair = Pair::new(&east.concat(), &west.concat()).await;
    let mut seen = std::collections::BTreeSet::new();
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        for _ in 0..40 {
            let answer = client.get(HELLO, "/c/x").await.unwrap();
            assert!(answer.headers.get("x-west").is_none());
            seen.insert(answer.text());
            seen.insert(client.get(HELLO, "/p").await.unwrap().text());
        }
        assert_eq!(client.get(HELLO, "/x").await.unwrap().status, 404);
    }
    // By the whole route's balance, whatever its rules would split.
    let all: Vec<_> = seen.iter().map(String::as_str).collect();
    assert_eq!(all, ["canary", "plain", "third"]);
    for one in canary.seen() {
        assert_eq!((&*one.host, &*one.header("x-east")), (CANARY, "1"));
        assert_eq!(one.header("x-west"), "");
    }
    assert_eq!(pair.west.counted(RULED, &[]).await, 0.0);
    // A caller that is no gateway is told apart by them.
    let direct = call(pair.west.apps(), "GET", HELLO, "/x", Bytes::new()).await;
    assert_eq!(direct.status, 404);
    pair.finish().await;
}

#[tokio::test]
async fn a_reload_changes_rules_under_an_open_connection() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    let backends = [backend("one", &one), backend("other", &other)];
    let routes = |to: &str| hello(&backends, &format!("{{ split: [{{ backends: [{to}] }}] }}"));
    let gateway = Gateway::alone(&routes("one")).await;
    let mut h1 = Client::connect(gateway.apps(), &Wire::H1).await.unwrap();
    let mut h2 = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    let mut expected = "one";
    for next in ["other", "one"] {
        for client in [&mut h1, &mut h2] {
            assert_eq!(client.get(HELLO, "/").await.unwrap().text(), expected);
        }
        gateway.cluster.write("routes.yaml", &routes(next));
        eventually("the rules to change", async || {
            let answer = h2.get(HELLO, "/").await.unwrap();
            (answer.text() == next).then_some(())
        })
        .await;
        assert_eq!(h1.get(HELLO, "/").await.unwrap().text(), next);
        expected = next;
    }
    // What is wrong keeps the rules before.
    gateway.cluster.write("routes.yaml", &routes("nobody"));
    gateway
        .process
        .message("no backend of this route is called `nobody`")
        .await;
    assert_eq!(h1.get(HELLO, "/").await.unwrap().text(), "one");
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_websocket_is_led_by_a_rule_as_the_get_it_begins_as() {
    let (rest, talks) = (HttpService::start("rest"), HttpService::start("talks"));
    let dead = Refusing::new();
    let backends = [
        backend("rest", &rest),
        backend("talks", &talks),
        format!("{{ name: dead, {} }}", endpoints(&[dead.address])),
    ];
    // Nearly always the dead part first, which nobody is told of.
    let rules = "{ split: [{ backends: [rest] }] }, \
        { matches: [{ method: GET, path: { prefix: /switch } }], \
          split: [{ backends: [dead], weight: 1000000 }, { backends: [talks] }], \
          headers: { request: { set: { x-led: '1' } }, response: { set: { x-back: '1' } } } }";
    let gateway = Gateway::alone(&hello(&backends, rules)).await;
    assert_eq!(talk(gateway.apps()).await, "echo:hello:end");
    let mut tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let head = format!(
        "GET /switch HTTP/1.1\r\nhost: {HELLO}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    tcp.write_all(head.as_bytes()).await.unwrap();
    let answer = read_head(&mut tcp).await.unwrap().to_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("x-back: 1"), "{answer}");
    drop(tcp);
    assert!(talks.seen().iter().all(|one| one.header("x-led") == "1"));
    assert_eq!((talks.hits(), rest.hits()), (2, 0));
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_split_to_another_route_is_held_to_the_limits_of_that_route() {
    let (stable, canary) = (HttpService::start("stable"), HttpService::start("canary"));
    canary.set(Mode::Hang);
    let to_canary = near_route(
        "canary",
        &[
            &format!("backends: [{}]", backend("c", &canary)),
            "limits: { requests: 1 }",
        ],
    );
    let rules = "{ matches: [{ path: { exact: /c } }], split: [{ route: demo/canary }] }, \
        { split: [{ backends: [s] }] }";
    let route = hello(&[backend("s", &stable)], rules);
    let gateway = Gateway::alone(&format!("{route}{to_canary}")).await;
    let mut first = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    let held = tokio::spawn(async move { first.get(HELLO, "/c").await });
    canary.arrived(1).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    let shed = client.get(HELLO, "/c").await.unwrap();
    assert_eq!(shed.status, 503);
    let line = gateway.request(shed.header("x-request-id")).await;
    assert_eq!(line["verdict"], "request-limit");
    assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "stable");
    held.abort();
    gateway.process.finish().await;
}

/// A request inside mTLS to a mesh listener.
async fn inside(to: &Cluster, caller: &Identity, path: &str) -> (u16, String) {
    let dialled = caller.dial(to.mesh, HELLO, &[b"h2"]);
    let stream = within("a handshake", dialled).await.unwrap();
    let request = Request::get(format!("http://{HELLO}{path}"));
    let mut sender = h2(stream).await;
    let sent = sender.send_request(request.body(empty()).unwrap());
    let reply = collect(within("a response", sent).await.unwrap()).await;
    (reply.status, reply.text())
}

#[tokio::test]
async fn at_a_mesh_listener_rules_are_for_workloads_and_lead_to_own_backends_alone() {
    let (a, b) = (HttpService::start("a"), HttpService::start("b"));
    let (east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let backends = format!(
        "backends: [{}, {}, {{ peer: west }}]",
        backend("a", &a),
        backend("b", &b)
    );
    let rules = "rules: [{ matches: [{ path: { prefix: /v1 } }], \
            split: [{ backends: [west], weight: 1000000 }, { backends: [a] }] }, \
        { matches: [{ path: { prefix: /v2 } }], split: [{ backends: [west] }] }]";
    let gateway = Gateway::of(east, &http_route("hello", &[&backends, rules])).await;
    let cart = west.identity("ns/shop/sa/cart");
    for (path, expected) in [("/v1", 200), ("/v2", 503), ("/x", 404)] {
        let (status, text) = inside(&gateway.cluster, &cart, path).await;
        assert_eq!(status, expected, "{path}: {text}");
        assert!(status != 200 || text == "a", "{path}: {text}");
    }
    let by = west.gateway_identity();
    for path in ["/v1", "/v2", "/x"] {
        let (status, text) = inside(&gateway.cluster, &by, path).await;
        assert_eq!(status, 200, "{path}: {text}");
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn what_was_ejected_is_not_tried_while_another_part_is_healthy() {
    let (stable, canary) = (HttpService::start("stable"), HttpService::start("canary"));
    let backends = format!("backends: [{}]", backend("c", &canary));
    let health = "health: { passive: { keepAtLeast: 0, eject: 1h } }";
    let to_canary = near_route("canary", &[&backends, health]);
    let rules = "{ split: [{ route: demo/canary, weight: 9 }, { backends: [s] }] }";
    let route = hello(&[backend("s", &stable)], rules);
    let gateway = Gateway::alone(&format!("{route}{to_canary}")).await;
    canary.kill().await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    for _ in 0..40 {
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "stable");
    }
    let is_out = |shares: &serde_json::Value| statuses(shares) == ["ejected"];
    gateway
        .until("demo/canary", "the canary to be ejected", is_out)
        .await;
    let tried = [("destination_service", "demo/canary")];
    let before = gateway.counted("zeugma_attempts_total", &tried).await;
    for _ in 0..40 {
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "stable");
    }
    let after = gateway.counted("zeugma_attempts_total", &tried).await;
    assert_eq!((before > 0.0, after), (true, before));
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_split_gets_around_no_denial_of_the_route_that_it_leads_to() {
    let (stable, canary) = (HttpService::start("stable"), HttpService::start("canary"));
    let routes = |policy: &str| {
        let to_canary = near_route(
            "canary",
            &[
                &format!("backends: [{}]", backend("c", &canary)),
                "deny: [{ methods: [POST] }]",
                policy,
            ],
        );
        let rules = "{ split: [{ route: demo/canary, weight: 1000000 }, { backends: [s] }] }, \
            { matches: [{ path: { prefix: /c } }], split: [{ route: demo/canary }] }";
        format!("{}{to_canary}", hello(&[backend("s", &stable)], rules))
    };
    let gateway = Gateway::alone(&routes("policy: enforce")).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let mut post = async |path| {
            let body = Bytes::from_static(b"x");
            client.post(HELLO, path, body).await.unwrap()
        };
        assert_eq!(post("/").await.text(), "stable", "{wire:?}");
        let refused = post("/c").await;
        assert_eq!(refused.status, 403, "{wire:?}");
        let line = gateway.request(refused.header("x-request-id")).await;
        assert_eq!(line["verdict"], "denied");
        assert_eq!(line["error"], "the split leads to demo/canary");
        let rule = line["policy.rule"].as_str().unwrap();
        assert!(rule.contains(".yaml:"), "{line}");
        assert_eq!(client.get(HELLO, "/c").await.unwrap().text(), "canary");
    }
    assert_eq!((canary.hits(), stable.hits()), (2, 2));
    gateway.process.finish().await;

    let gateway = Gateway::alone(&routes("policy: audit")).await;
    let body = Bytes::from_static(b"x");
    let answer = call(gateway.apps(), "POST", HELLO, "/c", body).await;
    assert_eq!(answer.text(), "canary");
    let denied = [("destination_service", "demo/canary"), ("reason", "denied")];
    gateway.until_counted(AUDITED, &denied, 1.0).await;
    gateway.process.finish().await;
}

/// What broke: only the route that was called was asked again after a change.
#[tokio::test]
async fn a_denial_that_comes_later_ends_what_a_split_led_to_that_route_alone() {
    let (stable, canary) = (HttpService::start("stable"), HttpService::start("canary"));
    let routes = |deny: &str| {
        let of = format!("backends: [{}]", backend("c", &canary));
        let to_canary = near_route("canary", &[&of, deny]);
        let rules = "{ split: [{ backends: [s] }] }, \
            { matches: [{ path: { prefix: /c } }], split: [{ route: demo/canary }] }";
        format!("{}{to_canary}", hello(&[backend("s", &stable)], rules))
    };
    let gateway = Gateway::alone(&routes("deny: []")).await;
    stable.set(Mode::Hang);
    canary.set(Mode::Hang);
    let apps = gateway.apps();
    let led = tokio::spawn(async move { call(apps, "GET", HELLO, "/c", Bytes::new()).await });
    let own = tokio::spawn(async move { call(apps, "GET", HELLO, "/", Bytes::new()).await });
    canary.arrived(1).await;
    stable.arrived(1).await;
    let denies = routes("deny: [{ methods: [GET] }]");
    gateway.cluster.write("routes.yaml", &denies);
    let line = (gateway.process).log(|line| line["verdict"] == "no-longer-allowed");
    let line = line.await;
    assert_eq!(line["http.path"], "/c", "{line}");
    let error = line["error"].as_str().unwrap();
    assert!(
        error.starts_with("the split leads to demo/canary: denied"),
        "{line}"
    );
    assert!(
        line["policy.rule"].as_str().unwrap().contains(".yaml:"),
        "{line}"
    );
    canary.given_up(1).await;
    assert!(!own.is_finished(), "what goes elsewhere goes on");
    led.abort();
    own.abort();
    drop(gateway);
}

/// What broke: a kept connection of HTTP/2 took the head of the request before the denial was looked at.
#[tokio::test]
async fn a_split_takes_nothing_on_to_a_route_that_denies_it_by_then() {
    let (own, canary) = (HttpService::start("own"), HttpService::start("canary"));
    let routes = |deny: &str| {
        let of = endpoints(&[canary.address()]);
        let of = format!("backends: [{{ name: c, version: h2, {of} }}]");
        let to_canary = near_route("canary", &[&of, deny]);
        let rules = "{ matches: [{ path: { prefix: /c } }], split: [{ route: demo/canary }] }, \
            { split: [{ backends: [own], weight: 1000000 }, { route: demo/canary }], \
              retries: { attempts: 1, on: [503] } }";
        format!("{}{to_canary}", hello(&[backend("own", &own)], rules))
    };
    let mut east = Cluster::new("east");
    // All share what is kept.
    east.set("workers", "1");
    let gateway = Gateway::of(east, &routes("deny: []")).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    let canary_said = client.get(HELLO, "/c").await.unwrap();
    assert_eq!(canary_said.text(), "canary");
    own.set(Mode::Wait);
    let apps = gateway.apps();
    let led = tokio::spawn(async move { call(apps, "GET", HELLO, "/", Bytes::new()).await });
    own.arrived(1).await;
    let denies = routes("deny: [{ methods: [GET] }]");
    gateway.cluster.write("routes.yaml", &denies);
    eventually("the denial", async || {
        (client.get(HELLO, "/c").await.unwrap().status == 403).then_some(())
    })
    .await;
    let before = canary.hits();
    own.set(Mode::Status(503));
    // One of those that asked meanwhile may have ended so too.
    let is_led = |line: &serde_json::Value| {
        line["verdict"] == "no-longer-allowed" && line["http.path"] == "/"
    };
    gateway.process.log(is_led).await;
    assert_eq!(led.await.unwrap().status, 403);
    // Behind whatever was sent on that connection.
    let body = Bytes::from_static(b"x");
    assert_eq!(
        client.post(HELLO, "/c", body).await.unwrap().text(),
        "canary"
    );
    let arrived: Vec<_> = (canary.seen().into_iter().skip(before))
        .map(|seen| seen.method)
        .collect();
    assert_eq!(arrived, ["POST"]);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_request_keeps_its_place_in_its_route_whichever_part_it_goes_to() {
    let (stable, dead) = (HttpService::start("stable"), Refusing::new());
    let backends = format!(
        "backends: [{}, {{ name: dead, {} }}]",
        backend("s", &stable),
        endpoints(&[dead.address])
    );
    let rules = "rules: [{ split: [{ backends: [dead], weight: 1000000 }, { backends: [s] }] }]";
    let lines = [&*backends, rules, "limits: { requests: 1 }"];
    let gateway = Gateway::alone(&near_route("hello", &lines)).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H1).await.unwrap();
    for _ in 0..4 {
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "stable");
    }
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_request_is_one_to_the_budget_of_its_route_however_many_parts_it_goes_to() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    for service in [&one, &other] {
        service.set(Mode::Status(501));
    }
    let backends = [backend("one", &one), backend("other", &other)];
    let rules = "{ split: [{ backends: [one] }, { backends: [other] }], \
        retries: { attempts: 1, on: [501] } }";
    let gateway = Gateway::alone(&hello(&backends, rules)).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    for _ in 0..100 {
        assert_eq!(client.get(HELLO, "/").await.unwrap().status, 501);
    }
    // `retries.budget` is 20 % where nothing is written.
    assert_eq!(one.hits() + other.hits(), 120);
    gateway.process.finish().await;
}

#[tokio::test]
async fn headers_that_are_set_or_removed_come_by_no_trailers_and_no_interim_response() {
    // Says what it heard, and a hint and trailers with it.
    let service = TcpService::with(|mut tcp| async move {
        let mut all = Vec::new();
        let has = |all: &[u8], part: &[u8]| all.windows(part.len()).any(|one| one == part);
        let mut some = [0; 64];
        while !all.ends_with(b"\r\n\r\n")
            || (has(&all, b"transfer-encoding") && !has(&all, b"\r\n0\r\n"))
        {
            match tcp.read(&mut some).await {
                Ok(n @ 1..) => all.extend_from_slice(&some[..n]),
                _ => return,
            }
        }
        let answer = format!(
            "HTTP/1.1 103 Early Hints\r\nx-debug: s\r\nx-served: s\r\nx-kept: s\r\n\r\n\
             HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
             trailer: x-debug, x-served, x-kept\r\n\r\n\
             {:x}\r\n{}\r\n0\r\nx-debug: s\r\nx-served: s\r\nx-kept: s\r\n\r\n",
            all.len(),
            String::from_utf8_lossy(&all)
        );
        tcp.write_all(answer.as_bytes()).await.ok();
    });
    let backends = format!(
        "backends: [{{ version: h1, {} }}]",
        endpoints(&[service.address()])
    );
    let rules = "rules: [{ headers: { \
        request: { set: { X-Mesh: east }, remove: [x-debug] }, \
        response: { set: { X-Served: east }, remove: [X-Debug] } } }]";
    let gateway = Gateway::alone(&near_route("hello", &[&backends, rules])).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let mut trailers = HeaderMap::new();
        for name in ["x-mesh", "x-debug", "x-kept"] {
            trailers.insert(name, "caller".parse().unwrap());
        }
        let body = [
            Frame::data(Bytes::from_static(b"x")),
            Frame::trailers(trailers),
        ];
        let request = client
            .head("POST", HELLO, "/")
            .header(header::TRAILER, "x-mesh, x-debug, x-kept")
            .header(header::TE, "trailers")
            .body(AnyBody::Frames(body.into()));
        let answer = within("an answer", client.send(request.unwrap())).await;
        let answer = answer.unwrap();
        let heard = answer.text();
        assert!(heard.contains("x-mesh: east\r\n"), "{wire:?}: {heard}");
        assert!(heard.contains("x-kept: caller\r\n"), "{wire:?}: {heard}");
        for gone in ["x-mesh: caller", "x-debug: caller"] {
            assert!(!heard.contains(gone), "{wire:?}: {heard}");
        }
        assert_eq!(answer.header("x-served"), "east");
        let trailers = answer.trailers.unwrap();
        let names: Vec<_> = trailers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["x-kept"], "{wire:?}");
    }
    let (heard, _body) = hints(gateway.apps()).await;
    let names: Vec<_> = (heard.iter())
        .flat_map(|hint| hint.headers().keys().map(http::HeaderName::as_str))
        .collect();
    assert_eq!(names, ["x-kept"]);
    gateway.process.finish().await;
}
