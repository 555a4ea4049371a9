//! A gateway without route files: what it carries comes from a control plane that it did not write,
//! which dies, falls silent, is slow, says rubbish, and comes back.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::task::JoinSet;

use crate::mesh::by_hand::{self, CLUSTER, ENDPOINTS, LISTENER, ROUTES};
use crate::mesh::{Cluster, ControlPlane, Gateway, Manner, Service, eventually, get, within};

pub(crate) const ORDERS: &str = "orders.shop.svc.clusterset.local";
const CART: &str = "cart.shop.svc.clusterset.local";

/// East, whose gateway asks a control plane that shows who it is.
pub(crate) struct World {
    pub(crate) east: Cluster,
    pub(crate) control_plane: ControlPlane,
    pub(crate) orders: Service,
}

impl World {
    pub(crate) async fn new() -> Self {
        let mut east = Cluster::new("east");
        let identity = east.identity("zeugma/xds");
        let control_plane = ControlPlane::new(Some(&identity));
        let address = control_plane.address;
        let of = format!(
            "{{ addresses: ['https://{address}'], spiffeIDs: ['spiffe://east.example/zeugma/xds'] }}"
        );
        east.set("controlPlane", &of);
        Self {
            east,
            control_plane,
            orders: Service::http("orders").await,
        }
    }

    /// Has the control plane say all that there is of orders.
    pub(crate) fn say_orders(&self, version: &str) {
        self.control_plane.put(
            version,
            [
                by_hand::service("orders"),
                by_hand::endpoints("orders", &[self.orders.address]),
                by_hand::listener("apps", self.east.apps),
                by_hand::routes(&["orders"]),
            ],
        );
    }

    fn spawn(&self) -> Gateway {
        self.east.write_gateway();
        self.east.spawn(Gateway::command(&self.east.config()))
    }

    pub(crate) async fn start(&self) -> Gateway {
        let gateway = self.spawn();
        gateway.message("ZG0901 gateway ready").await;
        gateway
    }

    async fn acked(&self, kind: &str) {
        let what = format!("ACK of {kind}");
        let is_ack = |heard: &crate::mesh::Heard| {
            heard.kind == kind && !heard.nonce.is_empty() && heard.error.is_none()
        };
        self.control_plane.heard(&what, is_ack).await;
    }
}

/// Requests without a pause, all of which must be answered.
pub(crate) struct Load {
    answered: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    callers: JoinSet<()>,
}

impl Load {
    pub(crate) fn on(apps: SocketAddr) -> Self {
        let (answered, failed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut callers = JoinSet::new();
        for _ in 0..4 {
            let (answered, failed) = (Arc::clone(&answered), Arc::clone(&failed));
            callers.spawn(async move {
                loop {
                    let reply = get(apps, ORDERS, "/").await;
                    let count = if reply.status == 200 {
                        &answered
                    } else {
                        &failed
                    };
                    count.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        Self {
            answered,
            failed,
            callers,
        }
    }

    /// Waits until so many more were answered.
    pub(crate) async fn more(&self, count: usize) {
        let until = self.answered.load(Ordering::SeqCst) + count;
        eventually("requests to be answered", async || {
            (self.answered.load(Ordering::SeqCst) >= until).then_some(())
        })
        .await;
    }

    pub(crate) async fn end(mut self) -> usize {
        self.callers.shutdown().await;
        self.failed.load(Ordering::SeqCst)
    }
}

async fn told(gateway: &Gateway) -> Value {
    gateway.admin_json("/api/v1/control-plane").await["control_plane"].clone()
}

pub(crate) async fn until_finding(gateway: &Gateway, code: &str) -> String {
    eventually(code, async || {
        let found = gateway.admin_json("/api/v1/findings").await;
        let mut all = found["findings"].as_array().unwrap().iter();
        let one = all.find(|one| one["code"] == code)?;
        Some(one["message"].as_str().unwrap().to_owned())
    })
    .await
}

async fn until_no_finding(gateway: &Gateway) {
    eventually("no findings", async || {
        let found = gateway.admin_json("/api/v1/findings").await;
        found["findings"]
            .as_array()
            .unwrap()
            .is_empty()
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_gateway_without_route_files_does_what_its_control_plane_says() {
    let world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    gateway.message("ZG0521").await;
    let reply = get(world.east.apps, ORDERS, "/").await;
    assert_eq!((reply.status, reply.text()), (200, "orders".to_owned()));
    for kind in [CLUSTER, ENDPOINTS, LISTENER, ROUTES] {
        world.acked(kind).await;
    }
    // P1: who it is, once.
    let heard = world.control_plane.heard_so_far();
    let nodes: Vec<_> = heard
        .iter()
        .filter_map(|heard| heard.node.as_ref())
        .collect();
    assert_eq!(nodes.len(), 1);
    assert_eq!((&*nodes[0].id, &*nodes[0].cluster), ("east-gw", "east"));
    // A second service, made before it is used.
    let cart = Service::http("cart").await;
    world.control_plane.put(
        "2",
        [
            by_hand::service("cart"),
            by_hand::endpoints("cart", &[cart.address]),
            by_hand::routes(&["orders", "cart"]),
        ],
    );
    eventually("the second service", async || {
        (get(world.east.apps, CART, "/").await.status == 200).then_some(())
    })
    .await;
    // Its endpoints change alone.
    let other = Service::http("other").await;
    world
        .control_plane
        .put("3", [by_hand::endpoints("cart", &[other.address])]);
    eventually("the other endpoint", async || {
        (get(world.east.apps, CART, "/").await.text() == "other").then_some(())
    })
    .await;
    // And it goes.
    world.control_plane.put("4", [by_hand::routes(&["orders"])]);
    let cluster = by_hand::service("cart").0;
    world.control_plane.remove(CLUSTER, &cluster);
    eventually("it to go", async || {
        (get(world.east.apps, CART, "/").await.status != 200).then_some(())
    })
    .await;
    assert_eq!(get(world.east.apps, ORDERS, "/").await.status, 200);
    let told = told(&gateway).await;
    assert_eq!(
        told["connected"],
        format!("https://{}", world.control_plane.address)
    );
    assert_eq!(
        (&told["kept"], &told["refused"]),
        (&Value::Bool(false), &Value::from(0))
    );
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_control_plane_connected", &[]), 1.0);
    assert!(metrics.value("zeugma_control_plane_updated_timestamp_seconds", &[]) > 1.7e9);
    gateway.finish().await;
}

#[tokio::test]
async fn a_bad_resource_is_refused_by_name_and_everything_else_serves() {
    let world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    let (name, mut bad) = by_hand::service("orders");
    bad.value.extend([0xff, 0xff]);
    let cart = Service::http("cart").await;
    world.control_plane.put(
        "2",
        [
            (name, bad),
            by_hand::service("cart"),
            by_hand::endpoints("cart", &[cart.address]),
            by_hand::routes(&["orders", "cart"]),
        ],
    );
    // P29
    let nack = world
        .control_plane
        .heard("a NACK", |heard| heard.error.is_some())
        .await;
    let error = nack.error.unwrap();
    assert!(
        error.contains("cluster `outbound|shop/orders:80`: failed to decode"),
        "{error}"
    );
    eventually("the good one", async || {
        (get(world.east.apps, CART, "/").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(get(world.east.apps, ORDERS, "/").await.status, 200);
    gateway.message("ZG0523").await;
    let finding = until_finding(&gateway, "ZG0523").await;
    assert!(finding.contains("outbound|shop/orders:80"), "{finding}");
    gateway
        .metric_becomes("zeugma_control_plane_resources_refused", &[], 1.0)
        .await;
    // P25: what a new stream is told is what serves: of orders the first one, of cart the second.
    world.control_plane.forget();
    let mut world = world;
    world.control_plane.kill().await;
    world.control_plane.start();
    let first = world
        .control_plane
        .heard("the next stream", |heard| {
            heard.kind == CLUSTER && heard.nonce.is_empty()
        })
        .await;
    let versions: Vec<&str> = first.initial.values().map(String::as_str).collect();
    assert_eq!(versions, ["2", "1"], "{:?}", first.initial);
    // It is mended.
    world.control_plane.put("3", [by_hand::service("orders")]);
    until_no_finding(&gateway).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_control_plane_that_dies_falls_silent_is_slow_or_says_rubbish_costs_no_request() {
    let mut world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    let load = Load::on(world.east.apps);
    load.more(50).await;
    // P38: killed.
    world.control_plane.kill().await;
    let finding = until_finding(&gateway, "ZG0522").await;
    assert!(finding.contains("what it gave last serves"), "{finding}");
    gateway.message("ZG0522").await;
    load.more(50).await;
    // Silent, after it came back.
    world.control_plane.behave(Manner::Silent);
    world.control_plane.forget();
    world.control_plane.start();
    world
        .control_plane
        .heard("the question", |heard| heard.kind == CLUSTER)
        .await;
    load.more(50).await;
    // Rubbish: it is refused, or the stream ends for it; and it is asked again and again.
    world.control_plane.behave(Manner::Rubbish);
    until_finding(&gateway, "ZG0523").await;
    load.more(50).await;
    // Slow, and with something new.
    world.control_plane.behave(Manner::Slow);
    let other = Service::http("other").await;
    world.control_plane.put(
        "2",
        [by_hand::endpoints(
            "orders",
            &[world.orders.address, other.address],
        )],
    );
    eventually("the new endpoint", async || {
        (!other.requests().is_empty()).then_some(())
    })
    .await;
    load.more(50).await;
    // One that would leave nothing.
    world.control_plane.behave(Manner::Well);
    world.control_plane.forget();
    world.control_plane.remove(LISTENER, "apps");
    let nack = world
        .control_plane
        .heard("a NACK", |heard| heard.error.is_some())
        .await;
    assert!(nack.error.unwrap().contains("nothing would be left"));
    load.more(50).await;
    assert_eq!(load.end().await, 0, "no request fails\n{}", gateway.told());
    gateway.finish().await;
}

#[tokio::test]
async fn an_update_that_leaves_nothing_is_done_where_that_is_wanted() {
    let mut world = World::new().await;
    let address = world.control_plane.address;
    let of = format!(
        "{{ addresses: ['https://{address}'], spiffeIDs: ['spiffe://east.example/zeugma/xds'], onEmpty: apply }}"
    );
    world.east.set("controlPlane", &of);
    world.say_orders("1");
    let gateway = world.start().await;
    world.control_plane.remove(LISTENER, "apps");
    eventually("the listener to close", async || {
        tokio::net::TcpStream::connect(world.east.apps)
            .await
            .is_err()
            .then_some(())
    })
    .await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_gateway_that_is_restarted_without_a_control_plane_serves_what_it_had_and_tells_its_age()
{
    let (mut world, _former) = that_kept_orders().await;
    let kept = world.east.config().join("state/east-gw/control-plane");
    let gateway = world.start().await;
    gateway.message("ZG0524").await;
    let reply = get(world.east.apps, ORDERS, "/").await;
    assert_eq!((reply.status, reply.text()), (200, "orders".to_owned()));
    let now = told(&gateway).await;
    assert_eq!(
        (&now["kept"], &now["connected"]),
        (&Value::Bool(true), &Value::Null)
    );
    assert!(now["age_seconds"].as_i64().unwrap() >= 0, "{now}");
    // P24: it comes back, and is told what is there; what changed comes.
    world.control_plane.forget();
    let cart = Service::http("cart").await;
    world.control_plane.put(
        "2",
        [
            by_hand::service("cart"),
            by_hand::endpoints("cart", &[cart.address]),
            by_hand::routes(&["orders", "cart"]),
        ],
    );
    world.control_plane.start();
    let first = world
        .control_plane
        .heard("the question", |heard| heard.kind == CLUSTER)
        .await;
    assert_eq!(first.initial.len(), 1, "{first:?}");
    eventually("what is new", async || {
        (get(world.east.apps, CART, "/").await.status == 200).then_some(())
    })
    .await;
    // What is damaged is not used.
    gateway.finish().await;
    world.control_plane.kill().await;
    let mut bytes = fs::read(&kept).unwrap();
    let beginning = bytes.get_mut(60).unwrap();
    *beginning ^= 1;
    fs::write(&kept, bytes).unwrap();
    let gateway = world.spawn();
    gateway.message("ZG0124").await;
    gateway.message("ZG0526").await;
    assert_eq!(gateway.ready().await, 503);
    let finding = until_finding(&gateway, "ZG0522").await;
    assert!(finding.contains("nothing serves"), "{finding}");
    world.control_plane.start();
    gateway.late_message("ZG0901 gateway ready").await;
    assert_eq!(get(world.east.apps, ORDERS, "/").await.status, 200);
    gateway.finish().await;
}

/// A world whose gateway has kept what its control plane gave, and ended, and the control plane too; and how HTTP
/// calls that one.
async fn that_kept_orders() -> (World, String) {
    let mut world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    let kept = world.east.config().join("state/east-gw/control-plane");
    eventually("it to be kept", async || kept.exists().then_some(())).await;
    world.control_plane.kill().await;
    gateway.finish().await;
    let former = format!("https://{}", world.control_plane.address);
    (world, former)
}

#[tokio::test]
async fn what_another_control_plane_gave_serves_until_the_one_that_is_asked_answers() {
    let (mut world, former) = that_kept_orders().await;
    // Nobody listens there.
    let other =
        "{ addresses: ['https://127.0.0.1:1'], spiffeIDs: ['spiffe://east.example/zeugma/xds'] }";
    world.east.set("controlPlane", other);
    let gateway = world.start().await;
    gateway.message("ZG0527").await;
    assert_eq!(get(world.east.apps, ORDERS, "/").await.status, 200);
    assert_eq!(told(&gateway).await["kept_from"], former);
    let finding = until_finding(&gateway, "ZG0527").await;
    assert!(finding.contains(&former), "{finding}");
    gateway.finish().await;
}

/// The same, whose gateway is to ask another one from now on, which says nothing yet.
async fn pointed_elsewhere() -> (World, String) {
    let (mut world, former) = that_kept_orders().await;
    let identity = world.east.identity("zeugma/xds");
    world.control_plane = ControlPlane::new(Some(&identity));
    let of = format!(
        "{{ addresses: ['https://{}'], spiffeIDs: ['spiffe://east.example/zeugma/xds'] }}",
        world.control_plane.address
    );
    world.east.set("controlPlane", &of);
    (world, former)
}

/// What broke: the other one was told the versions of the first, which are its own of something else, and sent
/// nothing.
#[tokio::test]
async fn another_control_plane_takes_the_place_of_the_one_before_though_it_counts_alike() {
    let (mut world, former) = pointed_elsewhere().await;
    let other = Service::http("other").await;
    world.control_plane.put(
        "1",
        [
            by_hand::service("orders"),
            by_hand::endpoints("orders", &[other.address]),
            by_hand::listener("apps", world.east.apps),
            by_hand::routes(&["orders"]),
        ],
    );
    let gateway = world.start().await;
    let said = gateway.message("ZG0527").await;
    assert!(said.contains(&former), "{said}");
    eventually("what the other one says", async || {
        (get(world.east.apps, ORDERS, "/").await.text() == "other").then_some(())
    })
    .await;
    until_no_finding(&gateway).await;
    let now = told(&gateway).await;
    assert_eq!(
        (&now["kept"], &now["kept_from"]),
        (&Value::Bool(false), &Value::Null)
    );
    // What is kept is the other one's.
    world.control_plane.kill().await;
    gateway.finish().await;
    let gateway = world.start().await;
    gateway.message("ZG0524").await;
    assert_eq!(told(&gateway).await["kept_from"], Value::Null);
    assert_eq!(get(world.east.apps, ORDERS, "/").await.text(), "other");
    gateway.finish().await;
}

/// What broke: whoever answered was taken for who gave what serves.
#[tokio::test]
async fn another_control_plane_all_of_whose_resources_are_refused_gave_nothing() {
    let (mut world, former) = pointed_elsewhere().await;
    let bad = [
        by_hand::service("orders"),
        by_hand::endpoints("orders", &[world.orders.address]),
        by_hand::listener("apps", world.east.apps),
        by_hand::routes(&["orders"]),
    ];
    let bad = bad.map(|(name, mut any)| {
        any.value.extend([0xff, 0xff]);
        (name, any)
    });
    world.control_plane.put("1", bad);
    let is_the_firsts = async |gateway: &Gateway| {
        let now = told(gateway).await;
        assert_eq!(
            (&now["kept"], &now["kept_from"]),
            (&Value::Bool(true), &Value::from(&*former)),
            "{now}"
        );
        let finding = until_finding(gateway, "ZG0527").await;
        assert!(finding.contains(&former), "{finding}");
        assert_eq!(get(world.east.apps, ORDERS, "/").await.text(), "orders");
    };
    let gateway = world.start().await;
    for kind in [CLUSTER, ENDPOINTS, LISTENER, ROUTES] {
        let what = format!("a NACK of {kind}");
        let is_nack = |heard: &crate::mesh::Heard| heard.kind == kind && heard.error.is_some();
        world.control_plane.heard(&what, is_nack).await;
    }
    is_the_firsts(&gateway).await;
    gateway.finish().await;
    // And so it is kept.
    world.control_plane.kill().await;
    let gateway = world.start().await;
    gateway.message("ZG0527").await;
    is_the_firsts(&gateway).await;
    gateway.finish().await;
}

#[tokio::test]
async fn what_changed_is_added_to_what_is_kept_and_serves_after_a_restart_too() {
    let mut world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    let kept = world.east.config().join("state/east-gw/control-plane");
    let read = || fs::read(&kept).unwrap_or_default();
    let before = eventually("it to be kept", async || {
        Some(read()).filter(|it| !it.is_empty())
    });
    let before = before.await;
    let other = Service::http("other").await;
    let say = |version, address| {
        let endpoints = by_hand::endpoints("orders", &[address]);
        world.control_plane.put(version, [endpoints]);
    };
    say("2", other.address);
    let after = eventually("it to be added", async || {
        Some(read()).filter(|it| *it != before)
    });
    let after = after.await;
    assert!(
        after.starts_with(&before),
        "what was there stands there still"
    );
    // What is gone cannot be added to: all of it is kept again, and nobody waits for the next change.
    fs::remove_file(&kept).unwrap();
    say("3", world.orders.address);
    gateway.message("ZG0125").await;
    eventually("it to be kept again", async || kept.exists().then_some(())).await;
    say("the-fourth", other.address);
    let whole = eventually("the last", async || {
        Some(read()).filter(|it| it.windows(10).any(|part| part == b"the-fourth"))
    });
    drop(whole.await);
    world.control_plane.kill().await;
    gateway.finish().await;
    let gateway = world.start().await;
    gateway.message("ZG0524").await;
    let reply = get(world.east.apps, ORDERS, "/").await;
    assert_eq!((reply.status, reply.text()), (200, "other".to_owned()));
    gateway.finish().await;
}

#[tokio::test]
async fn what_was_kept_is_as_new_as_the_control_plane_that_has_nothing_else_to_say() {
    let mut world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    let kept = world.east.config().join("state/east-gw/control-plane");
    eventually("it to be kept", async || kept.exists().then_some(())).await;
    world.control_plane.kill().await;
    gateway.finish().await;
    let gateway = world.spawn();
    gateway.message("ZG0524").await;
    gateway.late_message("ZG0901 gateway ready").await;
    let before = told(&gateway).await;
    assert_eq!(before["kept"], true, "{before}");
    let updated = "zeugma_control_plane_updated_timestamp_seconds";
    assert!(gateway.metrics().await.value(updated, &[]) > 1.7e9);
    world.control_plane.start();
    let after = eventually("it to be confirmed", async || {
        let now = told(&gateway).await;
        (now["kept"] == false).then_some(now)
    })
    .await;
    assert_ne!(after["updated"], before["updated"], "{after}");
    // Nothing was published for it.
    assert!(!gateway.told().contains("ZG0120"), "{}", gateway.told());
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_what_its_control_plane_says_and_without_that_takes_over_nothing() {
    let mut world = World::new().await;
    world.say_orders("1");
    let mut gateway = world.start().await;
    let kept = world.east.config().join("state/east-gw/control-plane");
    eventually("it to be kept", async || kept.exists().then_some(())).await;
    let load = Load::on(world.east.apps);
    load.more(50).await;
    // Nothing is kept: what serves after the handover is what the control plane says.
    fs::remove_file(&kept).unwrap();
    let next = world.east.take_over().await;
    assert!(gateway.ended().await.success(), "{}", gateway.told());
    load.more(50).await;
    assert_eq!(load.end().await, 0, "no request fails\n{}", next.told());
    eventually("it to be kept again", async || kept.exists().then_some(())).await;
    // Nor does the control plane answer.
    fs::remove_file(&kept).unwrap();
    world.control_plane.kill().await;
    let load = Load::on(world.east.apps);
    let mut command = Gateway::command(&world.east.config());
    command.arg("--takeover");
    let mut in_vain = world.east.spawn(command);
    in_vain.late_message("ZG0944 not taken over").await;
    let said = in_vain.message("ZG0949").await;
    assert!(said.contains("gave no configuration in time"), "{said}");
    assert!(!in_vain.ended().await.success());
    load.more(50).await;
    assert_eq!(load.end().await, 0, "no request fails\n{}", next.told());
    next.finish().await;
}

#[tokio::test]
async fn what_was_kept_and_cannot_be_bound_keeps_no_gateway_from_starting_and_is_bound_later() {
    let mut world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    let kept = world.east.config().join("state/east-gw/control-plane");
    eventually("it to be kept", async || kept.exists().then_some(())).await;
    world.control_plane.kill().await;
    gateway.finish().await;
    let taken = std::net::TcpListener::bind(world.east.apps).unwrap();
    let gateway = world.spawn();
    let said = gateway.message("ZG0113").await;
    assert!(said.contains("apps"), "{said}");
    gateway.late_message("ZG0901 gateway ready").await;
    drop(taken);
    eventually("it to be bound", async || {
        let is_there = tokio::net::TcpStream::connect(world.east.apps)
            .await
            .is_ok();
        (is_there && get(world.east.apps, ORDERS, "/").await.status == 200).then_some(())
    })
    .await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_server_that_is_not_whom_the_gateway_expects_is_not_believed() {
    let mut world = World::new().await;
    let address = world.control_plane.address;
    let of = format!(
        "{{ addresses: ['https://{address}'], spiffeIDs: ['spiffe://east.example/another'] }}"
    );
    world.east.set("controlPlane", &of);
    world.say_orders("1");
    let gateway = world.spawn();
    let said = gateway.message("ZG0522").await;
    assert!(said.contains("its identity is not taken"), "{said}");
    gateway.message("ZG0526").await;
    assert_eq!(gateway.ready().await, 503);
    assert!(world.control_plane.heard_so_far().is_empty());
    let finding = until_finding(&gateway, "ZG0522").await;
    assert!(finding.contains("nothing serves"), "{finding}");
    gateway.signal(Signal::TERM);
}

#[tokio::test]
async fn another_server_is_asked_where_the_first_is_gone() {
    let mut world = World::new().await;
    let identity = world.east.identity("zeugma/xds");
    let second = ControlPlane::new(Some(&identity));
    let of = format!(
        "{{ addresses: ['https://{}', 'https://{}'], spiffeIDs: ['spiffe://east.example/zeugma/xds'] }}",
        world.control_plane.address, second.address
    );
    world.east.set("controlPlane", &of);
    world.control_plane.kill().await;
    second.put(
        "1",
        [
            by_hand::service("orders"),
            by_hand::endpoints("orders", &[world.orders.address]),
            by_hand::listener("apps", world.east.apps),
            by_hand::routes(&["orders"]),
        ],
    );
    let gateway = world.start().await;
    // P42: something is missing.
    assert_eq!(get(world.east.apps, ORDERS, "/").await.status, 200);
    assert_eq!(
        told(&gateway).await["connected"],
        format!("https://{}", second.address)
    );
    gateway.finish().await;
}

#[tokio::test]
async fn a_server_that_knows_no_deltas_is_asked_in_full() {
    let world = World::new().await;
    world.control_plane.behave(Manner::Full);
    world.say_orders("1");
    let gateway = world.start().await;
    assert_eq!(get(world.east.apps, ORDERS, "/").await.status, 200);
    world.acked(ROUTES).await;
    let other = Service::http("other").await;
    world
        .control_plane
        .put("2", [by_hand::endpoints("orders", &[other.address])]);
    eventually("the other endpoint", async || {
        (get(world.east.apps, ORDERS, "/").await.text() == "other").then_some(())
    })
    .await;
    gateway.finish().await;
}

/// What `zeugma xds get` says, and how it ends.
fn read(words: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
    let output = command.args(["xds", "get"]).args(words).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_reads_a_server_as_a_gateway_would() {
    let world = World::new().await;
    world.say_orders("1");
    world.east.write_gateway();
    let config = world.east.config();
    let config = config.to_str().unwrap();
    let (code, text, _) = read(&["clusters", "--config", config]);
    assert_eq!(code, Some(0));
    assert!(text.contains("outbound|shop/orders:80  1"), "{text}");
    let (code, text, _) = read(&["endpoints", "--config", config, "-o", "json"]);
    assert_eq!(code, Some(0));
    let read_back: Value = serde_json::from_str(&text).unwrap();
    let one = &read_back["resources"][0];
    assert_eq!(
        (&one["name"], &one["version"]),
        (&"outbound|shop/orders:80".into(), &"1".into())
    );
    let port = world.orders.address.port().to_string();
    assert!(one["body"].as_str().unwrap().contains(&port), "{one}");
    // By plaintext, as whoever one says.
    let plain = ControlPlane::new(None);
    plain.put("7", [by_hand::listener("apps", world.east.apps)]);
    let address = format!("http://{}", plain.address);
    let (code, text, _) = read(&[
        "listeners",
        "--server",
        &address,
        "--name",
        "somebody",
        "-o",
        "json",
    ]);
    assert_eq!(code, Some(0));
    let read_back: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        read_back["resources"][0]["metadata"]["mesh"], false,
        "{text}"
    );
    let node = plain
        .heard("who asks", |heard| heard.node.is_some())
        .await
        .node
        .unwrap();
    assert_eq!(node.id, "somebody");
    // Nobody is there.
    let (code, _, said) = read(&["clusters", "--server", "http://127.0.0.1:9", "--wait", "1s"]);
    assert_eq!(code, Some(69), "{said}");
    assert!(
        said.starts_with("error[ZG0522]: http://127.0.0.1:9: "),
        "{said}"
    );
}

#[tokio::test]
async fn an_operator_watches_a_server_until_who_reads_has_seen_enough() {
    let plain = ControlPlane::new(None);
    let apps = "127.0.0.1:1".parse().unwrap();
    plain.put("7", [by_hand::listener("apps", apps)]);
    let address = format!("http://{}", plain.address);
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_zeugma"));
    command.args(["xds", "watch", "listeners", "--server", &address]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut watching = command.kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    let line = within("the first", lines.next_line()).await.unwrap();
    assert!(line.unwrap().starts_with("apps version 7, "));
    plain.put("8", [by_hand::listener("more", apps)]);
    let line = within("the second", lines.next_line()).await.unwrap();
    assert!(line.unwrap().starts_with("more version 8, "));
    plain.remove(LISTENER, "more");
    let line = within("that it goes", lines.next_line()).await.unwrap();
    assert_eq!(line.unwrap(), "more is gone");
    // As `head` does.
    drop(lines);
    plain.put("9", [by_hand::listener("more", apps)]);
    let output = within("its end", watching.wait_with_output())
        .await
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn who_asks_by_tls_without_a_certificate_is_told_so_at_once() {
    let (code, _, said) = read(&["clusters", "--server", "https://127.0.0.1:9"]);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("write `--config`"), "{said}");
}

#[tokio::test]
async fn a_listener_that_cannot_be_bound_is_refused_and_the_others_serve() {
    let world = World::new().await;
    world.say_orders("1");
    let gateway = world.start().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken_at = taken.local_addr().unwrap();
    world
        .control_plane
        .put("2", [by_hand::listener("taken", taken_at)]);
    let nack = world
        .control_plane
        .heard("a NACK", |heard| heard.error.is_some())
        .await;
    let error = nack.error.unwrap();
    assert!(
        error.contains("listener `taken`") && error.contains("in use"),
        "{error}"
    );
    assert_eq!(get(world.east.apps, ORDERS, "/").await.status, 200);
    gateway.finish().await;
}

#[tokio::test]
async fn endpoints_that_do_not_come_are_told_and_waited_for_no_longer_than_15_s() {
    let world = World::new().await;
    world.control_plane.put(
        "1",
        [
            by_hand::service("orders"),
            by_hand::listener("apps", world.east.apps),
            by_hand::routes(&["orders"]),
        ],
    );
    let gateway = world.spawn();
    // P18, P34: without them it goes on, and has nowhere to send a request.
    let said = gateway.late_message("ZG0525").await;
    assert!(said.contains("outbound|shop/orders:80"), "{said}");
    gateway.late_message("ZG0901 gateway ready").await;
    assert_eq!(get(world.east.apps, ORDERS, "/").await.status, 503);
    world
        .control_plane
        .put("2", [by_hand::endpoints("orders", &[world.orders.address])]);
    eventually("the endpoints", async || {
        (get(world.east.apps, ORDERS, "/").await.status == 200).then_some(())
    })
    .await;
    gateway.finish().await;
}
