//! The end of an ejection: one request, or one connection, shows whether an endpoint is good again.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::data_client::Wire;
use crate::data_load::{Calls, Load};
use crate::data_mesh::{Gateway, HELLO, endpoints, near_route, route};
use crate::data_services::{HttpService, Mode};
use crate::mesh::{Cluster, eventually};

/// How long a trial is waited for until there is another one.
const TRIAL: Duration = Duration::from_secs(10);
const HEALTH: &str = "health: { passive: { consecutive: 1, eject: 200ms } }";

fn calls(gateway: &Gateway) -> Calls {
    Calls {
        address: gateway.apps(),
        wire: Wire::H1,
        method: "GET",
        host: HELLO,
        path: "/",
        every: Duration::from_millis(50),
    }
}

fn both(bad: SocketAddr, good: SocketAddr) -> String {
    format!("backends: [{{ {} }}]", endpoints(&[bad, good]))
}

/// A gateway whose first endpoint is out, and hangs; it is waited for so long.
async fn hanging(bad: &HttpService, good: &HttpService, patience: &str) -> Gateway {
    let backends = both(bad.address(), good.address());
    let patience = format!("timeouts: {{ responseHeaders: {patience} }}");
    let gateway = Gateway::alone(&near_route("hello", &[&backends, HEALTH, &patience])).await;
    bad.set(Mode::Status(503));
    while !gateway.process.told().contains("ZG0421") {
        assert_eq!(gateway.get("/").await.status, 200);
    }
    bad.set(Mode::Hang);
    gateway
}

#[tokio::test]
async fn one_request_tries_an_endpoint_that_was_ejected_and_the_others_wait_for_its_outcome() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    let gateway = hanging(&bad, &good, "60s").await;
    let before = bad.hits();
    let began = Instant::now();
    // Of both workers.
    let load = Load::start(8, &calls(&gateway));
    bad.arrived(before + 1).await;
    load.goes_on(100).await;
    let tried = bad.hits() - before;
    // One for each time that a trial has; there is no other outcome within a minute.
    let trials = 1 + began.elapsed().as_secs() / TRIAL.as_secs();
    assert!(tried as u64 <= trials, "{tried} of {trials}");
    drop(load);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_trial_that_fails_is_followed_by_another_until_one_is_answered() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    let gateway = hanging(&bad, &good, "1s").await;
    let load = Load::start(8, &calls(&gateway));
    // It gets no answer, which is another failure; so is the next, until one gets an answer.
    let ejected = || gateway.process.told().matches("ZG0421").count();
    while ejected() < 2 {
        load.goes_on(1).await;
    }
    bad.set(Mode::Normal);
    while !gateway.process.told().contains("ZG0422") {
        load.goes_on(1).await;
    }
    let hits = bad.hits();
    bad.arrived(hits + 20).await;
    let tally = load.end().await;
    // Those that hung are what it costs.
    assert!(tally.lost.len() <= ejected(), "{:?}", tally.lost);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_trial_that_takes_longer_than_others_are_waited_for_is_seen_through() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    let backends = both(bad.address(), good.address());
    let hedged = "retries: { budget: 100%, hedge: { after: 10ms } }";
    let gateway = Gateway::alone(&near_route("hello", &[&backends, HEALTH, hedged])).await;
    bad.set(Mode::Status(503));
    eventually("an ejection", async || {
        assert_eq!(gateway.get("/").await.status, 200);
        gateway.process.told().contains("ZG0421").then_some(())
    })
    .await;
    bad.set(Mode::Delay(Duration::from_millis(200)));
    eventually("its end", async || {
        assert_eq!(gateway.get("/").await.status, 200);
        gateway.process.told().contains("ZG0422").then_some(())
    })
    .await;
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_connection_that_stays_open_shows_that_an_endpoint_is_good_again() {
    let (mut bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let spec = [
        "protocol: tcp",
        "port: 5432",
        "allow: [{ listeners: [db] }]",
        HEALTH,
        &both(bad.address(), good.address()),
    ];
    let gateway = Gateway::of(east, &route("db", &spec)).await;
    // None of them ends before all is seen.
    let mut open = Vec::new();
    bad.kill().await;
    eventually("an ejection", async || {
        open.push(TcpStream::connect(db).await.unwrap());
        gateway.process.told().contains("ZG0421").then_some(())
    })
    .await;
    bad.revive();
    eventually("its end", async || {
        open.push(TcpStream::connect(db).await.unwrap());
        gateway.process.told().contains("ZG0422").then_some(())
    })
    .await;
    let ended = gateway.process.access_so_far();
    assert!(ended.is_empty(), "{ended:?}");
    drop(open);
    gateway.process.finish().await;
}
