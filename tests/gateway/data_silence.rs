//! What goes quiet without a word: nobody waits for the rest of a timeout.
//!
//! Every route here gives a response a minute, and every test has a third of that: an answer that
//! comes in time was not waited for.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use rustix::process::Signal;
use tokio::task::JoinSet;

use crate::data_client::{Wire, get};
use crate::data_load::{Calls, Load};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route};
use crate::data_quiet::Far;
use crate::data_services::{HttpService, Mode, TcpService};
use crate::mesh::{Cluster, Namespace, within};

const PATIENT: &str = "timeouts: { responseHeaders: 60s }";
/// So that every request has to find out for itself.
const NO_EJECTION: &str =
    "health: { passive: { consecutive: 0, errorRate: { over: 100%, requests: 1000 } } }";
/// A service that is rarely called has ten extra tries.
const AMPLE: &str = "retries: { budget: 100% }";
const WEST_FIRST: &str = "failover: { order: [{ cluster: west }, { backend: backup }] }";
/// Requests at once.
const REQUESTS: usize = 8;

fn west_and_backup(backup: SocketAddr) -> String {
    format!(
        "backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]",
        endpoints(&[backup])
    )
}

/// A near endpoint and, for when it fails, a far one.
fn near_and_far(version: &str, near: SocketAddr, far: SocketAddr) -> String {
    format!(
        "backends: [{{ version: {version}, {} }}, {{ name: far, locality: us/us-1, {} }}]",
        endpoints(&[near]),
        endpoints(&[far])
    )
}

/// Some requests at once, each on a connection of its own.
fn ask(apps: SocketAddr) -> JoinSet<String> {
    let mut asked = JoinSet::new();
    for _ in 0..REQUESTS {
        asked.spawn(async move { get(apps, HELLO, "/").await.text() });
    }
    asked
}

async fn answered(asked: JoinSet<String>) -> Vec<String> {
    let mut answers = within("every answer", asked.join_all()).await;
    answers.dedup();
    answers
}

/// Holds `asked`, which are in flight, and those asked now to the answer of `backup`.
async fn all_go_elsewhere(apps: SocketAddr, asked: JoinSet<String>) {
    let later = ask(apps);
    assert_eq!(answered(asked).await, ["backup"]);
    assert_eq!(answered(later).await, ["backup"]);
    // And those after, that find no connection.
    assert_eq!(answered(ask(apps)).await, ["backup"]);
}

#[tokio::test]
async fn a_link_between_gateways_that_goes_down_under_load_loses_no_get() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let Far {
        link,
        service,
        east,
        west: _west,
    } = Far::in_a(&namespace).await;
    let backup = HttpService::start("backup");
    let both = west_and_backup(backup.address());
    let spec = [&*both, WEST_FIRST, PATIENT, NO_EJECTION, AMPLE];
    let east = Gateway::of(east, &http_route("hello", &spec)).await;
    assert_eq!(answered(ask(east.apps())).await, ["west"]);
    service.set(Mode::Hang);
    let asked = ask(east.apps());
    service.arrived(2 * REQUESTS).await;
    link.cut_far();
    all_go_elsewhere(east.apps(), asked).await;
    east.process.finish().await;
}

#[tokio::test]
async fn a_peers_gateway_that_is_stopped_under_load_loses_no_get() {
    let (service, backup) = (HttpService::start("west"), HttpService::start("backup"));
    let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let both = west_and_backup(backup.address());
    let pair = Pair::new(
        &http_route("hello", &[&both, WEST_FIRST, PATIENT, NO_EJECTION, AMPLE]),
        &http_route("hello", &[&near, PATIENT]),
    )
    .await;
    assert_eq!(answered(ask(pair.east.apps())).await, ["west"]);
    service.set(Mode::Hang);
    let asked = ask(pair.east.apps());
    service.arrived(2 * REQUESTS).await;
    pair.west.process.freeze().await;
    all_go_elsewhere(pair.east.apps(), asked).await;
    pair.west.process.signal(Signal::CONT);
    pair.finish().await;
}

/// Speaks HTTP/2 and takes requests, until `silent_after` of them: then nothing more is read or
/// written, as of a process that was stopped.
fn stops_after(silent_after: usize) -> TcpService {
    TcpService::with(move |tcp| async move {
        let Ok(mut connection) = h2::server::handshake(tcp).await else {
            return;
        };
        let mut held = Vec::new();
        while held.len() < silent_after {
            let Some(Ok((_request, mut respond))) = connection.accept().await else {
                return;
            };
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"near"), true).unwrap();
            held.push(respond);
        }
        std::future::pending().await
    })
}

#[tokio::test]
async fn an_http_2_endpoint_that_is_stopped_costs_its_requests_seconds_and_no_minute() {
    let (near, far) = (stops_after(1), HttpService::start("backup"));
    let backends = near_and_far("h2", near.address(), far.address());
    let spec = [&*backends, PATIENT, NO_EJECTION, AMPLE];
    let gateway = Gateway::alone(&near_route("hello", &spec)).await;
    assert_eq!(answered(ask(gateway.apps())).await, ["backup"]);
    assert!(near.hits() > 0);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_host_that_vanishes_with_its_http_1_endpoint_is_given_up_in_seconds() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let (callers, vanishing) = (namespace.link(), namespace.link());
    let near = HttpService::start_on(vanishing.near, "near");
    let far = HttpService::start_on(callers.near, "backup");
    let mut east = Cluster::new("east");
    east.move_over(&callers);
    let backends = near_and_far("h1", near.address(), far.address());
    let spec = [&*backends, PATIENT, NO_EJECTION, AMPLE];
    east.write("routes.yaml", &near_route("hello", &spec));
    let process = Box::pin(east.start_in(&namespace.name)).await;
    // Connections to keep: some are used again when the host is gone, and some are idle then.
    assert_eq!(answered(ask(east.apps)).await, ["near"]);
    near.set(Mode::Hang);
    let mut asked = JoinSet::new();
    for _ in 0..REQUESTS / 2 {
        let apps = east.apps;
        asked.spawn(async move { get(apps, HELLO, "/").await.text() });
    }
    near.arrived(REQUESTS + REQUESTS / 2).await;
    vanishing.cut_near();
    all_go_elsewhere(east.apps, asked).await;
    process.finish().await;
}

#[tokio::test]
async fn a_link_to_one_of_two_local_endpoints_that_is_cut_under_load_loses_no_get() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let (callers, vanishing) = (namespace.link(), namespace.link());
    let first = HttpService::start_on(vanishing.near, "first");
    let other = HttpService::start_on(callers.near, "other");
    let mut east = Cluster::new("east");
    east.move_over(&callers);
    let both = endpoints(&[first.address(), other.address()]);
    let both = format!("backends: [{{ {both} }}]");
    let spec = [&*both, PATIENT, NO_EJECTION, AMPLE];
    east.write("routes.yaml", &near_route("hello", &spec));
    let process = Box::pin(east.start_in(&namespace.name)).await;
    let calls = Calls {
        address: east.apps,
        wire: Wire::H1,
        method: "GET",
        host: HELLO,
        path: "/",
        every: Duration::from_millis(100),
    };
    for service in [&first, &other] {
        service.set(Mode::Delay(Duration::from_millis(20)));
    }
    let load = Load::start(20, &calls);
    load.goes_on(50).await;
    assert!(first.hits() > 0 && other.hits() > 0);
    vanishing.cut_near();
    let before = other.hits();
    other.arrived(before + 200).await;
    let tally = load.end().await;
    assert_eq!(tally.lost, Vec::<String>::new(), "of {}", tally.answered);
    process.finish().await;
}
