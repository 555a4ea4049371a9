//! Requests that are sent to one more endpoint while the first is still at them.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use crate::data_client::{Client, Wire, call};
use crate::data_mesh::{Gateway, HELLO, endpoints, near_route, statuses};
use crate::data_services::{HttpService, Mode, Refusing};
use crate::mesh::{Cluster, eventually, within};

/// Soon: where it is used the first answer is held back.
const HEDGED: &str = "retries: { budget: 100%, hedge: { after: 20ms } }";
/// Passive checks that eject nothing.
const NO_EJECTION: &str =
    "health: { passive: { consecutive: 0, errorRate: { over: 100%, requests: 1000 } } }";
const IN_TURN: &str = "balance: { policy: round-robin }";

async fn gateway(services: &[&HttpService], spec: &[&str]) -> Gateway {
    let addresses: Vec<_> = services.iter().map(|one| one.address()).collect();
    let backends = format!("backends: [{{ {} }}]", endpoints(&addresses));
    let spec = [&[&*backends, IN_TURN], spec].concat();
    Gateway::alone(&near_route("hello", &spec)).await
}

async fn hedges(gateway: &Gateway, result: &str) -> f64 {
    gateway
        .counted("zeugma_hedges_total", &[("result", result)])
        .await
}

async fn line(gateway: &Gateway, path: &str) -> Value {
    gateway.process.log(|line| line["http.path"] == path).await
}

#[tokio::test]
async fn the_answer_comes_from_the_endpoint_that_gives_one_and_the_other_is_given_up() {
    for version in ["h1", "h2"] {
        let (slow, good) = (HttpService::start("slow"), HttpService::start("good"));
        slow.set(Mode::Hang);
        let addresses = endpoints(&[slow.address(), good.address()]);
        let backends = format!("backends: [{{ {addresses}, version: {version} }}]");
        // Later than a good endpoint answers on any machine.
        let late = "retries: { budget: 100%, hedge: { after: 500ms } }";
        let spec = [&*backends, IN_TURN, late];
        let gateway = Gateway::alone(&near_route("hello", &spec)).await;
        for nth in 0..6 {
            assert_eq!(gateway.get(&format!("/{nth}")).await.text(), "good");
        }
        // Each in its turn was the first.
        assert!(slow.hits() >= 2, "{}", gateway.process.told());
        slow.given_up(slow.hits()).await;
        let mut attempts = Vec::new();
        for nth in 0..6 {
            let line = line(&gateway, &format!("/{nth}")).await;
            assert_eq!(line["dst.addr"], good.address().to_string(), "{line}");
            assert_eq!(line["verdict"], "completed", "{line}");
            let why = line["reason"].as_str().unwrap().to_owned();
            attempts.push((line["attempts"].as_u64().unwrap(), why));
        }
        let hedged = attempts
            .iter()
            .filter(|one| **one == (2, "hedge".to_owned()));
        let alone = attempts
            .iter()
            .filter(|one| **one == (1, "local".to_owned()));
        let (hedged, alone) = (hedged.count(), alone.count());
        assert_eq!(
            (hedged, alone),
            (slow.hits(), 6 - slow.hits()),
            "{attempts:?}\n{}",
            gateway.process.told()
        );
        let won = [
            hedges(&gateway, "sent").await,
            hedges(&gateway, "won").await,
        ];
        assert_eq!(won, [slow.hits() as f64; 2]);
        // To be slower than another is no failure.
        assert!(!gateway.process.told().contains("ZG0421"));
        gateway.process.finish().await;
    }
}

#[tokio::test]
async fn either_may_win_and_that_the_other_was_given_up_is_no_failure() {
    let (first, other) = (HttpService::start("first"), HttpService::start("other"));
    first.set(Mode::Wait);
    other.set(Mode::Wait);
    let passive = "health: { passive: { consecutive: 1 } }";
    let gateway = gateway(&[&first, &other], &[HEDGED, passive]).await;
    let asking = gateway.get("/");
    let answering = async {
        first.arrived(1).await;
        other.arrived(1).await;
        // Whichever was asked first, this one answers.
        first.set(Mode::Normal);
        other.given_up(1).await;
    };
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer.text(), "first");
    let line = line(&gateway, "/").await;
    assert_eq!(line["dst.addr"], first.address().to_string(), "{line}");
    assert_eq!(line["attempts"], 2, "{line}");
    // Both are healthy: nothing was ejected.
    other.set(Mode::Normal);
    for _ in 0..4 {
        gateway.get("/again").await;
    }
    assert!(other.hits() >= 2);
    assert!(!gateway.process.told().contains("ZG0421"));
    gateway.process.finish().await;
}

#[tokio::test]
async fn where_the_first_fails_the_other_goes_on_and_where_both_fail_the_last_is_told() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    bad.set(Mode::Wait);
    good.set(Mode::Wait);
    let ejects = "health: { passive: { consecutive: 1, eject: 1h } }";
    let gateway = gateway(&[&bad, &good], &[HEDGED, ejects]).await;
    let asking = gateway.get("/one");
    let answering = async {
        bad.arrived(1).await;
        good.arrived(1).await;
        bad.set(Mode::Status(503));
        // Its answer is there, and is not the caller's.
        let ejected = async {
            while !gateway.process.told().contains("ZG0421") {
                tokio::task::yield_now().await;
            }
        };
        within("an ejection", ejected).await;
        good.set(Mode::Normal);
    };
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer.text(), "good");
    bad.set(Mode::Status(503));
    good.set(Mode::Status(503));
    let answer = gateway.get("/two").await;
    assert_eq!(answer.status, 503);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_retry_is_not_told_as_one_beside_another() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    bad.set(Mode::Status(503));
    let late = "retries: { budget: 100%, hedge: { after: 1h } }";
    let gateway = gateway(&[&bad, &good], &[late, NO_EJECTION]).await;
    for nth in 0..4 {
        let answer = gateway.get(&format!("/{nth}")).await;
        assert_eq!(answer.text(), "good");
        let line = line(&gateway, &format!("/{nth}")).await;
        let expected = if line["attempts"] == 2 {
            "retry"
        } else {
            "local"
        };
        assert_eq!(line["reason"], expected, "{line}");
    }
    // Each in its turn was the first.
    assert!(bad.hits() >= 1);
    assert_eq!(hedges(&gateway, "sent").await, 0.0);
    gateway.process.finish().await;
}

#[tokio::test]
async fn an_answer_that_is_not_tried_again_is_the_callers_at_once() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    one.set(Mode::Wait);
    other.set(Mode::Wait);
    let gateway = gateway(&[&one, &other], &[HEDGED, NO_EJECTION]).await;
    let asking = gateway.get("/");
    let answering = async {
        one.arrived(1).await;
        other.arrived(1).await;
        one.set(Mode::Status(500));
        other.given_up(1).await;
    };
    let (answer, ()) = tokio::join!(asking, answering);
    assert_eq!(answer.status, 500);
    gateway.process.finish().await;
}

#[tokio::test]
async fn what_is_not_safe_is_never_sent_twice() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    for service in [&one, &other] {
        service.set(Mode::Delay(Duration::from_millis(500)));
    }
    let any = "retries: { any: true, budget: 100%, hedge: { after: 1ms } }";
    let gateway = gateway(&[&one, &other], &[any, NO_EJECTION]).await;
    // Of those that are idempotent too: what is given up may be done late.
    for method in ["POST", "PUT", "DELETE"] {
        let answer = call(gateway.apps(), method, HELLO, "/", Bytes::from("x")).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(one.hits() + other.hits(), 3);
    // A body that is kept whole is sent twice, whole.
    let answer = call(
        gateway.apps(),
        "OPTIONS",
        HELLO,
        "/echo",
        Bytes::from("kept"),
    )
    .await;
    assert_eq!(answer.text(), "kept");
    assert_eq!(one.hits() + other.hits(), 5);
    // One that is too long to be kept is not.
    let long = Bytes::from(vec![7; 100_000]);
    let answer = call(gateway.apps(), "OPTIONS", HELLO, "/echo", long.clone()).await;
    assert_eq!(answer.body.len(), long.len());
    assert_eq!(one.hits() + other.hits(), 6);
    gateway.process.finish().await;
}

#[tokio::test]
async fn one_more_try_is_one_of_the_attempts_of_the_budget_and_of_what_an_endpoint_takes() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    for service in [&one, &other] {
        service.set(Mode::Delay(Duration::from_millis(500)));
    }
    // Ten are always within the budget.
    let spent = "retries: { budget: 0%, hedge: { after: 1ms } }";
    let gateway_ = gateway(&[&one, &other], &[spent, NO_EJECTION]).await;
    for _ in 0..12 {
        assert_eq!(gateway_.get("/").await.status, 200);
    }
    let sent = hedges(&gateway_, "sent").await;
    let refused = hedges(&gateway_, "budget").await;
    assert!(sent >= 10.0 && sent + refused == 12.0, "{sent} {refused}");
    assert_eq!((one.hits() + other.hits() - 12) as f64, sent);
    gateway_.process.finish().await;
    // There is nowhere to go.
    let before = one.hits();
    let gateway_ = gateway(&[&one], &[HEDGED, NO_EJECTION]).await;
    assert_eq!(gateway_.get("/").await.status, 200);
    assert_eq!(one.hits(), before + 1);
    assert_eq!(hedges(&gateway_, "nowhere").await, 1.0);
    gateway_.process.finish().await;
    // What cannot be connected costs nothing.
    let refusing = Refusing::new();
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&[one.address(), refusing.address])
    );
    let spec = [&*backends, IN_TURN, HEDGED, NO_EJECTION];
    let gateway_ = Gateway::alone(&near_route("hello", &spec)).await;
    one.set(Mode::Normal);
    let before = one.hits();
    for _ in 0..4 {
        assert_eq!(gateway_.get("/").await.text(), "one");
    }
    assert_eq!(one.hits(), before + 4);
    gateway_.process.finish().await;
}

#[tokio::test]
async fn a_caller_that_leaves_takes_both_tries_with_it() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    for service in [&one, &other] {
        service.set(Mode::Hang);
    }
    let gateway = gateway(&[&one, &other], &[HEDGED, NO_EJECTION]).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    let arrived = async {
        one.arrived(1).await;
        other.arrived(1).await;
    };
    tokio::select! {
        answer = client.get(HELLO, "/left") => panic!("{answer:?}"),
        () = arrived => {}
    }
    drop(client);
    one.given_up(1).await;
    other.given_up(1).await;
    let line = line(&gateway, "/left").await;
    assert_eq!(line["verdict"], "downstream-closed", "{line}");
    assert_eq!(line["attempts"], 2, "{line}");
    gateway.process.finish().await;
}

/// A service that hangs behind hedged requests is given up each time, which is no failure: what notices is
/// that it takes longer than others, or a check that asks by itself.
#[tokio::test]
async fn what_hangs_is_taken_out_by_being_slow_or_by_an_active_check_and_by_nothing_else() {
    // Later than a good endpoint answers, so that those are not slow.
    let late = "retries: { budget: 100%, hedge: { after: 200ms } }";
    let slow = "health: { passive: { slow: { over: 3x, requests: 5 }, eject: 1h } }";
    let active = "health: { active: { http: /healthz, every: 200ms, timeout: 1s, down: 2 } }";
    for (health, code, cause) in [
        ("health: { passive: { consecutive: 1 } }", None, ""),
        (slow, Some("ZG0421"), "cause=Slow"),
        (active, Some("ZG0423"), ""),
    ] {
        let services = ["stuck", "good", "good"].map(HttpService::start);
        let [stuck, good, _] = &services;
        stuck.set(Mode::Hang);
        let gateway = gateway(&services.each_ref(), &[late, health]).await;
        let address = stuck.address().to_string();
        let is_out = |gateway: &Gateway| {
            let told = gateway.process.told();
            let mut lines = told.lines().filter(|line| line.contains(&address));
            code.is_some_and(|code| lines.any(|line| line.contains(code) && line.contains(cause)))
        };
        let asked = |service: &HttpService| {
            let seen = service.seen();
            seen.iter().filter(|one| one.path != "/healthz").count()
        };
        let out = async {
            while !is_out(&gateway) && (code.is_some() || asked(stuck) < 8) {
                assert_eq!(gateway.get("/").await.text(), "good");
            }
        };
        within("its end", out).await;
        let told = gateway.process.told();
        let others = ["ZG0421", "ZG0423"]
            .into_iter()
            .filter(|one| code != Some(*one));
        others.for_each(|other| assert!(!told.contains(other), "{health}: {told}"));
        if code.is_some() {
            // Both workers know it by now or soon; none is asked there after that.
            (gateway.until("demo/hello", "two that are healthy", |shares| {
                statuses(shares)
                    .iter()
                    .filter(|one| *one == "healthy")
                    .count()
                    == 2
            }))
            .await;
            let before = (asked(stuck), asked(good));
            for _ in 0..12 {
                assert_eq!(gateway.get("/").await.text(), "good");
            }
            assert_eq!(asked(stuck), before.0, "{health}");
            assert!(asked(good) > before.1);
        }
        gateway.process.finish().await;
    }
}

#[tokio::test]
async fn a_new_rule_ends_both_tries_with_its_reason_and_leaves_no_place_taken() {
    let (one, other) = (HttpService::start("one"), HttpService::start("other"));
    one.set(Mode::Hang);
    other.set(Mode::Hang);
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&[one.address(), other.address()])
    );
    // Of one worker: a place that stays taken would send all that follows to the other endpoint.
    let balance = "balance: { policy: least-request }";
    let limits = "limits: { requests: 1 }";
    let spec = [&*backends, balance, limits, HEDGED, NO_EJECTION];
    let mut cluster = Cluster::new("east");
    cluster.set("workers", "1");
    let gateway = Gateway::of(cluster, &near_route("hello", &spec)).await;
    let asking = gateway.get("/denied");
    let denying = async {
        one.arrived(1).await;
        other.arrived(1).await;
        let denied = [&spec[..], &["deny: [{ paths: [/denied] }]"]].concat();
        let routes = near_route("hello", &denied);
        gateway.cluster.write("routes.yaml", &routes);
        one.given_up(1).await;
        other.given_up(1).await;
    };
    let (answer, ()) = tokio::join!(asking, denying);
    assert_eq!(answer.status, 403);
    let line = line(&gateway, "/denied").await;
    assert_eq!(line["verdict"], "no-longer-allowed", "{line}");
    assert_eq!(line["attempts"], 2, "{line}");
    let rule = line["policy.rule"].as_str().unwrap();
    assert!(rule.contains("routes.yaml:"), "{line}");
    let told = [
        hedges(&gateway, "sent").await,
        hedges(&gateway, "won").await,
    ];
    assert_eq!(told, [1.0, 0.0]);
    eventually("nothing that is open", async || {
        let open = gateway.process.admin_json("/api/v1/connections").await;
        (open["carried"]["total"] == 0).then_some(())
    })
    .await;
    one.set(Mode::Normal);
    other.set(Mode::Normal);
    for nth in 0..24 {
        assert_eq!(gateway.get(&format!("/{nth}")).await.status, 200);
        // Its place is given back with its line.
        self::line(&gateway, &format!("/{nth}")).await;
    }
    assert!(
        one.hits() > 1 && other.hits() > 1,
        "{} {}",
        one.hits(),
        other.hits()
    );
    gateway.process.finish().await;
}
