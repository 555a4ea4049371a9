//! The end of an ejection: one request shows whether an endpoint is good again.

use std::time::Duration;

use crate::data_client::Wire;
use crate::data_load::{Calls, Load};
use crate::data_mesh::{Gateway, HELLO, endpoints, near_route};
use crate::data_services::{HttpService, Mode};

#[tokio::test]
async fn one_request_tries_an_endpoint_that_was_ejected_and_the_others_wait_for_its_outcome() {
    let (bad, good) = (HttpService::start("bad"), HttpService::start("good"));
    let backends = format!(
        "backends: [{{ {} }}]",
        endpoints(&[bad.address(), good.address()])
    );
    let health = "health: { passive: { consecutive: 1, eject: 200ms } }";
    let patience = "timeouts: { responseHeaders: 2s }";
    let gateway = Gateway::alone(&near_route("hello", &[&backends, health, patience])).await;
    bad.set(Mode::Status(503));
    while !gateway.process.told().contains("ZG0421") {
        assert_eq!(gateway.get("/").await.status, 200);
    }
    bad.set(Mode::Hang);
    let before = bad.hits();
    let calls = Calls {
        address: gateway.apps(),
        wire: Wire::H1,
        method: "GET",
        host: HELLO,
        path: "/",
        every: Duration::from_millis(50),
    };
    // Of both workers.
    let load = Load::start(8, &calls);
    bad.arrived(before + 1).await;
    load.goes_on(100).await;
    assert_eq!(bad.hits(), before + 1);
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
