//! A control plane that means no good, under load: no request notices.

use crate::control_client::{Load, ORDERS, World, until_finding};
use crate::mesh::{Gateway, Heard, Manner, Service, by_hand, eventually, get};

/// More than are heard one right after the other.
const TIMES: u64 = 600;

/// Waits until so many responses on one stream were answered.
async fn until_answered(world: &World, times: u64) -> Heard {
    let is_late = |heard: &Heard| {
        let nonce: Option<u64> = heard.nonce.parse().ok();
        nonce.is_some_and(|nonce| nonce >= times)
    };
    world.control_plane.heard("so many answers", is_late).await
}

/// All that it says over and over, and what comes of it when it is well again: what has endpoints then beside
/// orders, and must stay for as long as it is asked.
#[must_use]
async fn endures(world: &World, gateway: &Gateway, load: &Load) -> Service {
    world.control_plane.forget();
    world.control_plane.behave(Manner::Flapping);
    until_answered(world, TIMES).await;
    load.more(50).await;
    world.control_plane.behave(Manner::Insisting);
    let nack = world
        .control_plane
        .heard("a NACK", |heard| heard.error.is_some())
        .await;
    assert!(nack.error.unwrap().contains("`broken`"));
    let before: u64 = nack.nonce.parse().unwrap();
    world.control_plane.forget();
    until_answered(world, before + 100).await;
    load.more(50).await;
    until_finding(gateway, "ZG0523").await;
    // It is told once, however often it is refused.
    let said = gateway.told();
    let told = said.lines().filter(|line| {
        line.contains("ZG0523") && line.contains("cluster") && line.contains("broken")
    });
    assert_eq!(told.count(), 1, "{said}");
    world.control_plane.behave(Manner::Well);
    let other = Service::http("other").await;
    let both = [world.orders.address, other.address];
    world
        .control_plane
        .put("2", [by_hand::endpoints("orders", &both)]);
    eventually("the new endpoint", async || {
        (!other.requests().is_empty()).then_some(())
    })
    .await;
    other
}

#[tokio::test]
async fn a_control_plane_that_says_the_same_or_something_broken_again_and_again_costs_no_request() {
    let world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    let load = Load::on(world.east.apps);
    load.more(50).await;
    let other = endures(&world, &gateway, &load).await;
    // More than anybody has: the stream ends for it, and no memory is given for it.
    world.control_plane.behave(Manner::Huge);
    let finding = until_finding(&gateway, "ZG0522").await;
    assert!(finding.contains("parts"), "{finding}");
    load.more(50).await;
    world.control_plane.behave(Manner::Well);
    let last = Service::http("last").await;
    world
        .control_plane
        .put("3", [by_hand::endpoints("orders", &[last.address])]);
    eventually("the last endpoint", async || {
        (get(world.east.apps, ORDERS, "/").await.text() == "last").then_some(())
    })
    .await;
    assert_eq!(load.end().await, 0, "no request fails\n{}", gateway.told());
    drop(other);
    gateway.finish().await;
}

#[tokio::test]
async fn nor_does_one_that_knows_no_deltas() {
    let world = World::new().await;
    world.control_plane.behave(Manner::Full);
    world.say_orders("1");
    let gateway = world.start().await;
    let load = Load::on(world.east.apps);
    load.more(50).await;
    let other = endures(&world, &gateway, &load).await;
    assert_eq!(load.end().await, 0, "no request fails\n{}", gateway.told());
    drop(other);
    gateway.finish().await;
}
