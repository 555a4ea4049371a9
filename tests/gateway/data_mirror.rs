//! Copies of requests, which their callers never notice.

use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::data_client::{Client, Wire};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route};
use crate::data_services::{HttpService, Mode, Refusing, pattern, summary};
use crate::mesh::eventually;

const MIRRORED: &str = "zeugma_mirrored_total";

fn backends(address: std::net::SocketAddr) -> String {
    format!("backends: [{{ {} }}]", endpoints(&[address]))
}

/// `hello` with its copies, and the route `canary` they go to.
async fn mirrored(primary: &HttpService, canary: std::net::SocketAddr, more: &str) -> Gateway {
    let mirror = format!("mirror: [{{ route: demo/canary{more} }}]");
    let hello = near_route("hello", &[&backends(primary.address()), &mirror]);
    let canary = near_route("canary", &[&backends(canary)]);
    Gateway::alone(&format!("{hello}{canary}")).await
}

#[tokio::test]
async fn every_request_is_copied_marked_and_whole() {
    let (primary, canary) = (HttpService::start("primary"), HttpService::start("canary"));
    let gateway = mirrored(&primary, canary.address(), "").await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        for _ in 0..3 {
            let answer = client
                .post(HELLO, "/sum?a=b", pattern(10_000))
                .await
                .unwrap();
            assert_eq!(answer.text(), summary(&pattern(10_000)));
            assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "primary");
        }
    }
    canary.arrived(12).await;
    gateway
        .until_counted(MIRRORED, &[("result", "sent")], 12.0)
        .await;
    assert_eq!((primary.hits(), canary.hits()), (12, 12));
    for copy in canary.seen() {
        assert_eq!(copy.header("x-zeugma-mirror"), "1");
        assert_eq!(copy.host, HELLO);
    }
    assert!(
        primary
            .seen()
            .iter()
            .all(|one| one.header("x-zeugma-mirror").is_empty())
    );
    let copied = canary
        .seen()
        .iter()
        .filter(|one| one.path == "/sum")
        .count();
    assert_eq!(copied, 6);
}

#[tokio::test]
async fn a_share_of_the_requests_is_copied() {
    let (primary, canary) = (HttpService::start("primary"), HttpService::start("canary"));
    let gateway = mirrored(&primary, canary.address(), ", percent: 50%").await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    let mut asked = 0;
    // Each is one of two by chance: a hundred alike are as likely as 2 to the power of -100.
    while asked < 100 || canary.hits() == 0 {
        assert_eq!(client.get(HELLO, "/").await.unwrap().text(), "primary");
        asked += 1;
    }
    assert!(canary.hits() < asked, "{} of {asked}", canary.hits());
}

#[tokio::test]
async fn a_canary_that_hangs_or_fails_or_is_gone_is_not_noticed() {
    let (primary, canary) = (HttpService::start("primary"), HttpService::start("canary"));
    let gone = Refusing::new();
    for (mode, address, result) in [
        (Mode::Hang, canary.address(), "timeout"),
        (Mode::Status(500), canary.address(), "failed"),
        (Mode::Normal, gone.address, "unreachable"),
    ] {
        canary.set(mode);
        let gateway = mirrored(&primary, address, ", timeout: 500ms").await;
        let mut client = Client::connect(gateway.apps(), &Wire::H1).await.unwrap();
        let began = Instant::now();
        for _ in 0..5 {
            let answer = client.post(HELLO, "/sum", pattern(1000)).await.unwrap();
            assert_eq!(answer.text(), summary(&pattern(1000)));
        }
        // Five waits for a copy would take five timeouts.
        assert!(began.elapsed() < Duration::from_millis(2500), "{mode:?}");
        gateway
            .until_counted(MIRRORED, &[("result", result)], 5.0)
            .await;
    }
}

#[tokio::test]
async fn bodies_over_the_limit_and_copies_over_the_cap_are_dropped_and_counted() {
    let (primary, canary) = (HttpService::start("primary"), HttpService::start("canary"));
    canary.set(Mode::Hang);
    let more = ", bodyLimit: 64KiB, inFlight: 2, timeout: 10s";
    let gateway = mirrored(&primary, canary.address(), more).await;
    let mut client = Client::connect(gateway.apps(), &Wire::H1).await.unwrap();
    for length in [100_000, 65_537] {
        let answer = client.post(HELLO, "/sum", pattern(length)).await.unwrap();
        assert_eq!(answer.text(), summary(&pattern(length)));
    }
    gateway
        .until_counted(MIRRORED, &[("result", "body")], 2.0)
        .await;
    // Its length is not known before.
    let (frames, body) = crate::data_services::AnyBody::channel();
    let head = client.head("POST", HELLO, "/sum");
    let sending = client.send(head.body(body).unwrap());
    let telling = async {
        for _ in 0..10 {
            let frame = hyper::body::Frame::data(pattern(10_000));
            frames.send(frame).await.unwrap();
        }
        drop(frames);
    };
    let (answer, ()) = tokio::join!(sending, telling);
    assert!(answer.unwrap().text().starts_with("100000 "));
    gateway
        .until_counted(MIRRORED, &[("result", "body")], 3.0)
        .await;
    assert_eq!(canary.hits(), 0);
    for _ in 0..5 {
        client.get(HELLO, "/").await.unwrap();
    }
    gateway
        .until_counted(MIRRORED, &[("result", "in-flight")], 3.0)
        .await;
    canary.arrived(2).await;
    assert_eq!(canary.hits(), 2);
}

#[tokio::test]
async fn a_copy_in_another_cluster_has_the_canarys_host_and_is_not_copied_again() {
    let (primary, canary) = (HttpService::start("primary"), HttpService::start("canary"));
    let third = HttpService::start("third");
    let east = [
        http_route(
            "hello",
            &[
                &backends(primary.address()),
                "mirror: [{ route: demo/canary, peer: west }]",
            ],
        ),
        http_route("canary", &["backends: [{ peer: west }]"]),
    ];
    let west = [
        http_route(
            "canary",
            &[
                &backends(canary.address()),
                "mirror: [{ route: demo/third }]",
            ],
        ),
        http_route("third", &[&backends(third.address())]),
    ];
    let pair = Pair::new(&east.concat(), &west.concat()).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(pair.east.apps(), &wire).await.unwrap();
        let answer = client
            .post(HELLO, "/sum", Bytes::from("abc"))
            .await
            .unwrap();
        assert_eq!(answer.text(), summary(b"abc"));
    }
    canary.arrived(2).await;
    for copy in canary.seen() {
        assert_eq!(copy.host, "canary.demo.svc.clusterset.local");
        assert_eq!(copy.header("x-zeugma-mirror"), "1");
    }
    pair.east
        .until_counted(MIRRORED, &[("result", "sent")], 2.0)
        .await;
    assert_eq!(pair.west.counted(MIRRORED, &[]).await, 0.0);
    assert_eq!(third.hits(), 0);
    pair.finish().await;
}

#[tokio::test]
async fn copies_under_way_end_with_their_mirror_and_with_the_right_of_their_request() {
    let (primary, canary) = (HttpService::start("primary"), HttpService::start("canary"));
    canary.set(Mode::Hang);
    let hello = |more: &[&str]| {
        let primary = backends(primary.address());
        near_route("hello", &[&[&*primary][..], more].concat())
    };
    let mirror = "mirror: [{ route: demo/canary, timeout: 60s }]";
    let copied = hello(&[mirror]);
    let denied = hello(&[mirror, "deny: [{ paths: ['/sum'] }]"]);
    let canary_route = near_route("canary", &[&backends(canary.address())]);
    let gateway = mirrored(&primary, canary.address(), ", timeout: 60s").await;
    let mut client = Client::connect(gateway.apps(), &Wire::H2).await.unwrap();
    let ended = &[("result", "ended")];
    for without in [hello(&[]), denied] {
        let write = |hello: &str| {
            let routes = format!("{hello}{canary_route}");
            gateway.cluster.write("routes.yaml", &routes);
        };
        let before = canary.hits();
        copied_anew(&mut client, &canary, before).await;
        let so_far = gateway.counted(MIRRORED, ended).await;
        write(&without);
        gateway.until_counted(MIRRORED, ended, so_far + 1.0).await;
        canary.given_up(before + 1).await;
        write(&copied);
    }
    gateway.process.finish().await;
}

/// Asks until a request was copied: a change takes a while.
async fn copied_anew(client: &mut Client, canary: &HttpService, before: usize) {
    eventually("a copy", async || {
        let answer = client.get(HELLO, "/sum").await.unwrap();
        assert!(answer.status == 200 || answer.status == 403);
        (canary.hits() > before).then_some(())
    })
    .await;
}
