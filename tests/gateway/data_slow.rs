//! Endpoints that answer, but later than the others.

use std::time::Duration;

use crate::data_client::Wire;
use crate::data_load::{Calls, Load};
use crate::data_mesh::{Gateway, HELLO, endpoints, near_route};
use crate::data_services::{HttpService, Mode};

#[tokio::test]
async fn what_answers_later_than_the_others_is_ejected_until_it_is_as_fast_again() {
    let services = ["slow", "fast", "fast"].map(HttpService::start);
    let [slow, ..] = &services;
    slow.set(Mode::Delay(Duration::from_millis(250)));
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&services.each_ref().map(HttpService::address))
    );
    let turns = "balance: { policy: round-robin }";
    // Nothing fails: what ejects is that it is slow alone.
    let health = "health: { passive: { slow: { over: 3x, requests: 5 }, eject: 300ms } }";
    let gateway = Gateway::alone(&near_route("hello", &[&backends, turns, health])).await;
    let calls = Calls {
        address: gateway.apps(),
        wire: Wire::H1,
        method: "GET",
        host: HELLO,
        path: "/",
        every: Duration::from_millis(20),
    };
    // Of both workers.
    let load = Load::start(8, &calls);
    let address = slow.address().to_string();
    let told = |what: &str| {
        let told = gateway.process.told();
        let of_it = |line: &&str| line.contains(what) && line.contains(&address);
        told.lines().filter(of_it).count()
    };
    while told("ZG0421") < 1 {
        load.goes_on(1).await;
    }
    assert!(gateway.process.told().contains("cause=Slow"));
    // It was tried once more, and was slow still.
    while told("ZG0421") < 2 {
        load.goes_on(1).await;
    }
    assert_eq!(told("ZG0422"), 0);
    slow.set(Mode::Normal);
    while told("ZG0422") < 1 {
        load.goes_on(1).await;
    }
    let hits = slow.hits();
    slow.arrived(hits + 20).await;
    let tally = load.end().await;
    assert!(tally.lost.is_empty(), "{:?}", tally.lost);
    gateway.process.finish().await;
}

#[tokio::test]
async fn nothing_is_ejected_for_being_slow_by_default() {
    let services = ["slow", "fast", "fast"].map(HttpService::start);
    services[0].set(Mode::Delay(Duration::from_millis(50)));
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&services.each_ref().map(HttpService::address))
    );
    let turns = "balance: { policy: round-robin }";
    let gateway = Gateway::alone(&near_route("hello", &[&backends, turns])).await;
    let calls = Calls {
        address: gateway.apps(),
        wire: Wire::H1,
        method: "GET",
        host: HELLO,
        path: "/",
        every: Duration::from_millis(20),
    };
    let load = Load::start(4, &calls);
    // As many as would be judged, twice over.
    services[0].arrived(40).await;
    assert!(!gateway.process.told().contains("ZG0421"));
    assert!(load.end().await.lost.is_empty());
    gateway.process.finish().await;
}
