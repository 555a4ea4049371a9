//! What becomes of requests when endpoints, levels and clusters fail.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::json;

use crate::data_client::{Client, Wire, call};
use crate::data_load::{Calls, Load};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, levels, near_route, statuses};
use crate::data_reports::without_reports;
use crate::data_services::{HttpService, Mode, Refusing};
use crate::mesh::Cluster;

/// Passive checks that eject nothing.
const NO_EJECTION: &str =
    "health: { passive: { consecutive: 0, errorRate: { over: 100%, requests: 1000 } } }";

/// However late a busy machine ejects, every request may be tried again.
const AMPLE: &str = "retries: { budget: 100% }";

/// One level of two endpoints in turn.
async fn two(one: &HttpService, other: &HttpService, spec: &[&str]) -> Gateway {
    let both = endpoints(&[one.address(), other.address()]);
    let backends = format!("backends: [{{ {both} }}]");
    let spec = [&[&*backends, "balance: { policy: round-robin }"], spec].concat();
    Gateway::alone(&near_route("hello", &spec)).await
}

fn load(gateway: &Gateway, wire: Wire, method: &'static str) -> Calls {
    Calls {
        address: gateway.apps(),
        wire,
        method,
        host: HELLO,
        path: "/",
        every: Duration::from_millis(100),
    }
}

#[tokio::test]
async fn an_endpoint_that_refuses_connections_costs_no_request_of_any_method() {
    let (refusing, good) = (Refusing::new(), HttpService::start("good"));
    let both = endpoints(&[refusing.address, good.address()]);
    let backends = format!("backends: [{{ {both} }}]");
    let spec = [&*backends, "balance: { policy: round-robin }", NO_EJECTION];
    let gateway = Gateway::alone(&near_route("hello", &spec)).await;
    for method in ["GET", "POST", "PATCH"] {
        for _ in 0..4 {
            let answer = call(gateway.apps(), method, HELLO, "/", Bytes::from("x")).await;
            assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "good"));
        }
    }
    assert_eq!(good.hits(), 12);
    let retried = gateway
        .counted("zeugma_retries_total", &[("cause", "connect")])
        .await;
    assert!(retried >= 1.0, "{retried}");
}

#[tokio::test]
async fn after_a_reset_get_is_tried_again_and_post_is_not() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    bad.set(Mode::Reset);
    let gateway = two(&bad, &good, &[NO_EJECTION]).await;
    for _ in 0..6 {
        assert_eq!(gateway.get("/").await.text(), "good");
    }
    let mut statuses = Vec::new();
    for _ in 0..6 {
        let answer = call(gateway.apps(), "POST", HELLO, "/", Bytes::from("x")).await;
        statuses.push(answer.status.as_u16());
    }
    assert!(
        statuses.contains(&502) && statuses.contains(&200),
        "{statuses:?}"
    );
    let posts = bad.seen().iter().filter(|one| one.method == "POST").count();
    assert_eq!(
        posts,
        statuses.iter().filter(|status| **status == 502).count()
    );
    let line = gateway.process.log(|line| line["http.status"] == 502).await;
    assert_eq!(line["verdict"], "upstream-reset", "{line}");
}

#[tokio::test]
async fn a_503_is_tried_again_elsewhere_and_the_last_one_is_passed_on() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    bad.set(Mode::Status(503));
    let gateway = two(&bad, &good, &[NO_EJECTION]).await;
    for _ in 0..6 {
        assert_eq!(gateway.get("/").await.text(), "good");
    }
    good.set(Mode::Status(503));
    let answer = gateway.get("/").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("x-zeugma-reason"), "");
    // An error that is none of the retried is the service's own answer.
    good.set(Mode::Status(500));
    bad.set(Mode::Status(500));
    let before = good.hits() + bad.hits();
    assert_eq!(gateway.get("/").await.status, 500);
    assert_eq!(good.hits() + bad.hits(), before + 1);
}

#[tokio::test]
async fn an_answer_is_passed_on_though_others_fail_without_one() {
    let service = HttpService::start("bad");
    service.set(Mode::Status(503));
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = closed.local_addr().unwrap();
    drop(closed);
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&[service.address(), nobody])
    );
    let gateway = Gateway::alone(&near_route("hello", &[&backends, NO_EJECTION])).await;
    // Whichever comes first.
    for nth in 0..6 {
        let answer = gateway.get(&format!("/{nth}")).await;
        assert_eq!(
            (answer.status, answer.header("x-zeugma-reason")),
            (503.try_into().unwrap(), "")
        );
        let path = format!("/{nth}");
        let line = gateway.process.log(|line| line["http.path"] == path).await;
        assert_eq!(line["dst.addr"], service.address().to_string(), "{line}");
        assert_eq!(line["verdict"], "completed", "{line}");
    }
    assert_eq!(service.hits(), 6);
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_in_time_costs_its_time_and_no_more() {
    let service = HttpService::start("slow");
    service.set(Mode::Hang);
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let spec = [
        &*backends,
        "timeouts: { responseHeaders: 300ms }",
        NO_EJECTION,
    ];
    let gateway = Gateway::alone(&near_route("hello", &spec)).await;
    let began = Instant::now();
    assert_eq!(gateway.get("/").await.status, 504);
    assert!(began.elapsed() >= Duration::from_millis(300));
    service.given_up(1).await;
    let line = gateway.process.log(|line| line["http.status"] == 504).await;
    assert_eq!(
        (&line["verdict"], &line["flags"]),
        (&json!("upstream-timeout"), &json!("UT"))
    );
}

#[tokio::test]
async fn a_try_may_have_less_time_than_the_request() {
    let (slow, good) = (HttpService::start("slow"), HttpService::start("good"));
    slow.set(Mode::Hang);
    let spec = [
        "timeouts: { responseHeaders: 10s, perTry: 200ms }",
        "retries: { on: [timeout] }",
        NO_EJECTION,
    ];
    let gateway = two(&slow, &good, &spec).await;
    for _ in 0..4 {
        assert_eq!(gateway.get("/").await.text(), "good");
    }
    assert!(slow.hits() >= 1);
}

#[tokio::test]
async fn failures_in_a_row_eject_an_endpoint_but_never_the_last_ones() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    bad.set(Mode::Status(503));
    let passive = "health: { passive: { consecutive: 3, eject: 10m } }";
    let gateway = two(&bad, &good, &[passive]).await;
    while statuses(&gateway.shares("hello").await) != ["ejected", "healthy"] {
        assert_eq!(gateway.get("/").await.text(), "good");
    }
    let hits = bad.hits();
    assert!(hits >= 3, "{hits}");
    for _ in 0..6 {
        assert_eq!(gateway.get("/").await.text(), "good");
    }
    assert_eq!(bad.hits(), hits);
    // keepAtLeast is 1: the last one stays, whatever it does.
    good.set(Mode::Status(503));
    for _ in 0..6 {
        assert_eq!(gateway.get("/").await.status, 503);
    }
    assert_eq!(
        statuses(&gateway.shares("hello").await),
        ["ejected", "healthy"]
    );
    // It answers: that is no reason to ask the one that is out.
    assert_eq!(bad.hits(), hits);
}

#[tokio::test]
async fn a_share_of_failures_ejects_an_endpoint() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    bad.set(Mode::Status(503));
    let passive = "health: { passive: { consecutive: 0, errorRate: { over: 50%, requests: 5 } } }";
    let gateway = two(&bad, &good, &[passive]).await;
    while statuses(&gateway.shares("hello").await) != ["ejected", "healthy"] {
        assert_eq!(gateway.get("/").await.text(), "good");
    }
    assert!(bad.hits() >= 5, "{}", bad.hits());
}

#[tokio::test]
async fn with_nothing_left_too_few_uses_what_was_ejected_or_refuses() {
    let service = HttpService::start("only");
    let passive = "health: { passive: { consecutive: 1, keepAtLeast: 0, eject: 10m } }";
    for (too_few, expected) in [("use-all", 200), ("fail", 503)] {
        let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
        let policy = format!("failover: {{ tooFew: {too_few} }}");
        let gateway = Gateway::alone(&near_route("hello", &[&backends, &policy, passive])).await;
        service.set(Mode::Status(503));
        gateway.get("/").await;
        gateway
            .until("hello", "the ejection", |now| statuses(now) == ["ejected"])
            .await;
        service.set(Mode::Normal);
        let answer = gateway.get("/").await;
        assert_eq!(answer.status.as_u16(), expected, "{too_few}");
        assert_eq!(answer.header("x-zeugma-reason"), "");
        let shares = gateway.shares("hello").await;
        assert_eq!(shares["too_few"], too_few == "use-all");
        if too_few == "fail" {
            let line = gateway
                .process
                .log(|line| line["verdict"] == "no-healthy-endpoint");
            assert_eq!(line.await["flags"], "UH");
        }
    }
}

#[tokio::test]
async fn active_checks_find_the_dead_and_the_living_without_traffic() {
    let mut checked = HttpService::start("checked");
    let active = [
        "health: { active: { http: /healthz, every: 100ms, timeout: 1s, up: 2, down: 2 } }",
        "health: { active: { tcp: true, every: 100ms, timeout: 1s, up: 2, down: 2 } }",
    ];
    for (nth, check) in active.into_iter().enumerate() {
        let backends = format!("backends: [{{ {} }}]", endpoints(&[checked.address()]));
        let gateway = Gateway::alone(&near_route("hello", &[&backends, check])).await;
        gateway
            .until("hello", "healthy", |now| statuses(now) == ["healthy"])
            .await;
        if nth == 0 {
            let probe = checked.last();
            assert_eq!((&*probe.path, &*probe.host), ("/healthz", HELLO));
            checked.set(Mode::Status(500));
        } else {
            checked.kill().await;
        }
        gateway
            .until("hello", "unhealthy", |now| statuses(now) == ["unhealthy"])
            .await;
        let process = &gateway.process;
        process
            .message("ZG0423 endpoint fails its active check")
            .await;
        // Failing active checks is not forgiven by tooFew.
        assert_eq!(gateway.get("/").await.status, 503);
        checked.set(Mode::Normal);
        if nth == 1 {
            checked.revive();
        }
        gateway
            .until("hello", "healthy again", |now| statuses(now) == ["healthy"])
            .await;
        process
            .message("ZG0424 endpoint passes its active check")
            .await;
        assert_eq!(gateway.get("/").await.text(), "checked");
    }
}

#[tokio::test]
async fn killing_every_local_endpoint_under_load_loses_no_get_and_traffic_comes_back_by_ramp() {
    let mut local = [HttpService::start("east"), HttpService::start("east")];
    let remote = HttpService::start("west");
    for service in local.iter().chain([&remote]) {
        service.set(Mode::Delay(Duration::from_millis(50)));
    }
    let near = endpoints(&[local[0].address(), local[1].address()]);
    let pair = Pair::new(
        &http_route(
            "hello",
            &[
                &format!("backends: [{{ {near} }}, {{ peer: west }}]"),
                "failover: { failback: { after: 500ms, ramp: 1s } }",
                "health: { passive: { consecutive: 2, eject: 500ms } }",
            ],
        ),
        &http_route(
            "hello",
            &[&format!(
                "backends: [{{ {} }}]",
                endpoints(&[remote.address()])
            )],
        ),
    )
    .await;
    let east = &pair.east;
    let load = Load::start(10, &load(east, Wire::H1, "GET"));
    load.goes_on(50).await;
    assert_eq!(remote.hits(), 0);
    for service in &local {
        service.kill().await;
    }
    east.until("hello", "all to be in west", |now| {
        levels(now) == [0.0, 1.0]
    })
    .await;
    load.goes_on(50).await;
    assert!(remote.hits() >= 50);
    let line = east.process.log(|line| line["dst.backend"] == "west").await;
    assert_eq!(
        (&line["level"], &line["http.status"]),
        (&json!(1), &json!(200)),
        "{line}"
    );
    for service in &mut local {
        service.revive();
    }
    // On the way back both take a part.
    east.until("hello", "the ramp", |now| {
        let levels = levels(now);
        0.0 < levels[0] && levels[0] < 1.0 && (levels[0] + levels[1] - 1.0).abs() < 1e-9
    })
    .await;
    east.until("hello", "all to be back", |now| levels(now) == [1.0, 0.0])
        .await;
    load.goes_on(20).await;
    for said in [
        "ZG0421 endpoint ejected",
        "ZG0426 traffic moved",
        "ZG0422 endpoint readmitted",
    ] {
        east.process.message(said).await;
    }
    let tally = load.end().await;
    assert_eq!(tally.lost, Vec::<String>::new(), "of {}", tally.answered);
    let arrived = local[0].hits() + local[1].hits() + remote.hits();
    assert!(arrived >= tally.answered, "{arrived} of {}", tally.answered);
    pair.finish().await;
}

/// Callers that together make 200 requests in a second.
fn busy(gateway: &Gateway) -> Load {
    Load::start(20, &load(gateway, Wire::H1, "GET"))
}

/// Local endpoints before a peer's.
async fn local_and_peer(local: &[SocketAddr], remote: &HttpService) -> Pair {
    let east = format!("backends: [{{ {} }}, {{ peer: west }}]", endpoints(local));
    let west = format!("backends: [{{ {} }}]", endpoints(&[remote.address()]));
    Pair::new(
        &http_route("hello", &[&east, AMPLE]),
        &http_route("hello", &[&west]),
    )
    .await
}

/// What Envoy's and Istio's defaults lose every request of: one of two hosts is more than the 10 %
/// that may be ejected, and the other tries go to the same priority.
#[tokio::test]
async fn the_only_local_endpoint_failing_beside_a_good_peer_loses_no_get() {
    let (near, remote) = (HttpService::start("east"), HttpService::start("west"));
    let pair = local_and_peer(&[near.address()], &remote).await;
    let load = busy(&pair.east);
    load.goes_on(50).await;
    assert_eq!(remote.hits(), 0);
    near.set(Mode::Status(503));
    let east = &pair.east;
    east.until("hello", "all to be in west", |now| {
        levels(now) == [0.0, 1.0]
    })
    .await;
    load.goes_on(100).await;
    let tally = load.end().await;
    assert_eq!(tally.lost, Vec::<String>::new(), "of {}", tally.answered);
    pair.finish().await;
}

#[tokio::test]
async fn killing_one_of_two_local_endpoints_under_load_loses_no_get() {
    let local = [HttpService::start("east"), HttpService::start("east")];
    let remote = HttpService::start("west");
    for service in &local {
        service.set(Mode::Delay(Duration::from_millis(50)));
    }
    let addresses = [local[0].address(), local[1].address()];
    let pair = local_and_peer(&addresses, &remote).await;
    let load = busy(&pair.east);
    load.goes_on(50).await;
    assert!(local[0].hits() > 0 && local[1].hits() > 0);
    local[0].kill().await;
    let east = &pair.east;
    east.until("hello", "the ejection", |now| {
        statuses(now) == ["ejected", "healthy", "healthy"]
    })
    .await;
    load.goes_on(100).await;
    let tally = load.end().await;
    assert_eq!(tally.lost, Vec::<String>::new(), "of {}", tally.answered);
    pair.finish().await;
}

/// Five backends around a gateway in eu/eu-1/rack-a, and how they are ordered.
async fn ordered(spec: &[&str]) -> Vec<String> {
    let address = Refusing::new().address;
    let mut backends = String::from("backends:");
    for (name, locality) in [
        ("far", "us/us-1"),
        ("region", "eu/eu-2"),
        ("zone", "eu/eu-1/rack-b"),
        ("subzone", "eu/eu-1/rack-a"),
        ("asia", "asia/a-1"),
    ] {
        backends.push_str(&format!(
            "\n    - {{ name: {name}, locality: {locality}, {} }}",
            endpoints(&[address])
        ));
    }
    let mut east = Cluster::new("east");
    east.set("locality", "eu/eu-1/rack-a");
    let spec = [&[&*backends], spec].concat();
    let gateway = Gateway::of(east, &near_route("hello", &spec)).await;
    let shares = gateway.shares("hello").await;
    let levels = shares["levels"].as_array().unwrap().iter();
    levels
        .map(|level| {
            let endpoints = level["endpoints"].as_array().unwrap().iter();
            let names = endpoints.map(|one| one["backend"].as_str().unwrap());
            names.collect::<Vec<_>>().join("+")
        })
        .collect()
}

#[tokio::test]
async fn levels_are_ordered_by_nearness_and_by_the_words_of_the_route() {
    assert_eq!(
        ordered(&[]).await,
        ["subzone", "zone", "region", "far+asia"]
    );
    assert_eq!(
        ordered(&["locality: { prefer: [region] }"]).await,
        ["region+zone+subzone", "far+asia"]
    );
    assert_eq!(
        ordered(&["failover: { order: [{ region: asia }, { backend: far }] }"]).await,
        ["subzone", "asia", "far"]
    );
    assert_eq!(
        ordered(&["failover: { never: [{ region: us }, { backend: zone }] }"]).await,
        ["subzone", "region", "asia"]
    );
}

#[tokio::test]
async fn spill_is_what_the_formula_says() {
    let (dead, alive) = (Refusing::new(), HttpService::start("near"));
    let far = HttpService::start("far");
    let near = endpoints(&[dead.address, alive.address()]);
    let far = endpoints(&[far.address()]);
    let backends = format!("backends: [{{ {near} }}, {{ locality: us/us-1, {far} }}]");
    let active = "health: { active: { tcp: true, every: 100ms, up: 1, down: 1 } }";
    for (failover, expected) in [
        // c = h / start = 50 / 70.
        ("{ start: 70% }", 50.0 / 70.0),
        // c = (h - full) / (start - full) = 30 / 70.
        ("{ start: 90%, full: 20% }", 30.0 / 70.0),
        // h <= full.
        ("{ start: 90%, full: 50% }", 0.0),
        // h >= start.
        ("{ start: 50% }", 1.0),
    ] {
        let failover = format!("failover: {failover}");
        let gateway = Gateway::alone(&near_route("hello", &[&backends, active, &failover])).await;
        gateway
            .until("hello", "the shares of the formula", |now| {
                let levels = levels(now);
                let is = |level: usize, share: f64| (levels[level] - share).abs() < 1e-9;
                is(0, expected) && is(1, 1.0 - expected)
            })
            .await;
    }
}

#[tokio::test]
async fn extra_tries_stay_within_their_budget() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    one.set(Mode::Status(503));
    other.set(Mode::Status(503));
    let gateway = two(&one, &other, &["retries: { budget: 0% }", NO_EJECTION]).await;
    // Whichever worker has which of the callers: they are given to the one that has the fewest.
    let mut callers = Vec::new();
    for _ in 0..4 {
        callers.push(Client::connect(gateway.apps(), &Wire::H1).await.unwrap());
    }
    for _ in 0..10 {
        for caller in &mut callers {
            assert_eq!(caller.get(HELLO, "/").await.unwrap().status, 503);
        }
    }
    // Never below ten in 10 s.
    assert_eq!(one.hits() + other.hits(), 40 + 10);
}

#[tokio::test]
async fn a_loop_of_gateways_ends_where_it_began() {
    let only_the_other =
        |peer: &str| http_route("hello", &[&format!("backends: [{{ peer: {peer} }}]")]);
    let routes = [only_the_other("west"), only_the_other("east")];
    let (pair, _places) = Box::pin(without_reports(&routes[0], &routes[1])).await;
    for (wire, method) in [(Wire::H1, "GET"), (Wire::H2, "POST")] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let head = client.head(method, HELLO, "/");
        let body = crate::data_services::AnyBody::empty();
        let answer = client.send(head.body(body).unwrap()).await.unwrap();
        assert_eq!(answer.status, 503);
        // The reason is told to the calling gateway alone.
        assert_eq!(answer.header("x-zeugma-reason"), "");
        let line = pair.east.request(answer.header("x-request-id")).await;
        assert_eq!(line["verdict"], "no-healthy-endpoint", "{line}");
        let line = pair.west.request(answer.header("x-request-id")).await;
        assert_eq!(
            (&line["verdict"], &line["http.status"]),
            (&json!("no-local-endpoint"), &json!(503))
        );
    }
}

#[tokio::test]
async fn what_a_peer_has_no_endpoint_for_is_tried_elsewhere_even_if_it_is_a_post() {
    let backup = HttpService::start("backup");
    let east = format!(
        "backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]",
        endpoints(&[backup.address()])
    );
    let order = "failover: { order: [{ cluster: west }, { backend: backup }] }";
    let (pair, _places) = Box::pin(without_reports(
        &http_route("hello", &[&east, order, NO_EJECTION]),
        &http_route("hello", &["backends: [{ peer: east }]"]),
    ))
    .await;
    for method in ["GET", "POST"] {
        let body = Bytes::from("x");
        let answer = call(pair.east.apps(), method, HELLO, "/", body).await;
        assert_eq!(answer.text(), "backup");
        let id = backup.last().header("x-request-id");
        let line = pair.east.request(&id).await;
        assert_eq!(
            (&line["attempts"], &line["reason"]),
            (&json!(2), &json!("retry")),
            "{line}"
        );
    }
}

#[tokio::test]
async fn what_no_endpoint_of_a_peer_saw_is_tried_elsewhere_even_if_it_is_a_post() {
    let (backup, gone) = (HttpService::start("backup"), Refusing::new());
    let east = format!(
        "backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]",
        endpoints(&[backup.address()])
    );
    let order = "failover: { order: [{ cluster: west }, { backend: backup }] }";
    let west = format!("backends: [{{ {} }}]", endpoints(&[gone.address]));
    let pair = Pair::new(
        &http_route("hello", &[&east, order, NO_EJECTION]),
        &http_route("hello", &[&west, NO_EJECTION]),
    )
    .await;
    for method in ["GET", "POST"] {
        let answer = call(pair.east.apps(), method, HELLO, "/", Bytes::from("x")).await;
        assert_eq!(answer.text(), "backup", "{method}");
        let id = backup.last().header("x-request-id");
        assert_eq!(pair.west.request(&id).await["verdict"], "connect-failed");
    }
}

/// East's route: west first, then a backup; and west's.
fn backed_up(near: &HttpService, far: &HttpService) -> [String; 2] {
    let east = format!(
        "backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]",
        endpoints(&[near.address()])
    );
    let order = "failover: { order: [{ cluster: west }, { backend: backup }] }";
    let west = format!("backends: [{{ {} }}]", endpoints(&[far.address()]));
    [
        http_route("hello", &[&east, order]),
        http_route("hello", &[&west]),
    ]
}

async fn with_backup(near: &HttpService, far: &HttpService) -> Pair {
    let [east, west] = backed_up(near, far);
    Pair::new(&east, &west).await
}

#[tokio::test]
async fn killing_a_peers_gateway_under_load_loses_no_get() {
    let (backup, remote) = (HttpService::start("backup"), HttpService::start("west"));
    remote.set(Mode::Delay(Duration::from_millis(50)));
    let pair = with_backup(&backup, &remote).await;
    let load = Load::start(10, &load(&pair.east, Wire::H1, "GET"));
    load.goes_on(50).await;
    assert_eq!(backup.hits(), 0);
    pair.west.process.signal(rustix::process::Signal::KILL);
    backup.arrived(50).await;
    let tally = load.end().await;
    assert_eq!(tally.lost, Vec::<String>::new(), "of {}", tally.answered);
}

#[tokio::test]
async fn a_peers_gateway_that_falls_silent_is_found_in_seconds() {
    let (backup, remote) = (HttpService::start("backup"), HttpService::start("west"));
    let pair = with_backup(&backup, &remote).await;
    let mut client = Client::connect(pair.east.apps(), &Wire::H1).await.unwrap();
    assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "west");
    pair.west.process.freeze().await;
    let began = Instant::now();
    assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "backup");
    // An HTTP/2 PING after 2 s, which is given 2 s; the timeout for an answer is 15 s.
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    pair.west.process.signal(rustix::process::Signal::CONT);
}

/// A peer that is not written about is found after 4 s, so that the word of a document shows.
#[tokio::test]
async fn a_peers_gateway_that_falls_silent_is_found_as_soon_as_is_written() {
    let (backup, remote) = (HttpService::start("backup"), HttpService::start("west"));
    for (keepalive, answered_within) in [
        ("{ ping: 200ms, timeout: 200ms }", 0..3),
        ("{ ping: 200ms, timeout: 5s }", 4..20),
        ("{ ping: 5s, timeout: 200ms }", 4..20),
    ] {
        let (east, west) = (Cluster::new("east"), Cluster::new("west"));
        east.meet(&west);
        let silent = format!(
            "
            cluster: west
            locality: west/west-1
            gateways: ['{}']
            spiffeIDs: ['{}']
            keepalive: {keepalive}",
            west.mesh,
            west.gateway_id()
        );
        east.peer("west", &silent);
        let [near, far] = backed_up(&backup, &remote);
        let west = Box::pin(Gateway::of(west, &far)).await;
        let east = Box::pin(Gateway::of(east, &near)).await;
        let mut client = Client::connect(east.apps(), &Wire::H1).await.unwrap();
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "west");
        west.process.freeze().await;
        let began = Instant::now();
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "backup");
        let took = began.elapsed().as_secs();
        assert!(answered_within.contains(&took), "{keepalive}: {took} s");
        west.process.signal(rustix::process::Signal::CONT);
    }
}

#[tokio::test]
async fn a_request_longer_than_what_is_kept_is_not_tried_again() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    one.set(Mode::Status(503));
    other.set(Mode::Status(503));
    let body = Bytes::from(vec![b'x'; 2000]);
    for (buffer, tries) in [("1KiB", 1), ("2KiB", 2)] {
        let retries = format!("retries: {{ any: true, buffer: {buffer} }}");
        let gateway = two(&one, &other, &[NO_EJECTION, &retries]).await;
        let before = one.hits() + other.hits();
        let answer = call(gateway.apps(), "POST", HELLO, "/", body.clone()).await;
        assert_eq!(answer.status, 503);
        assert_eq!(one.hits() + other.hits(), before + tries, "{buffer}");
        gateway.process.finish().await;
    }
}

#[tokio::test]
async fn grpc_unavailable_is_tried_again_elsewhere() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    bad.set(Mode::Grpc("14"));
    let gateway = two(&bad, &good, &[NO_EJECTION, "retries: { any: true }"]).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    for _ in 0..4 {
        let answer = client.post(HELLO, "/", Bytes::from("x")).await.unwrap();
        assert_eq!(answer.text(), "good");
    }
    assert!(bad.hits() >= 1);
}
