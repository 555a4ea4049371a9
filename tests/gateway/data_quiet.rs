//! Hosts that take nothing any more without a word: what may not be sent twice is not sent there.
//!
//! Nothing is ejected here, so that every request has to find out for itself.

use std::net::SocketAddr;
use std::time::Duration;

use crate::data_client::Wire;
use crate::data_load::{Calls, Load, Tally};
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route};
use crate::data_services::{HttpService, Mode};
use crate::long_way::LongWay;
use crate::mesh::{self, Cluster, Link, Namespace, eventually};

const PATIENT: &str = "timeouts: { responseHeaders: 60s }";
const NO_EJECTION: &str =
    "health: { passive: { consecutive: 0, errorRate: { over: 100%, requests: 100000 } } }";
const WEST_FIRST: &str = "failover: { order: [{ cluster: west }, { backend: backup }] }";
/// Callers, each of which waits for its answer: few are at it at any time, on a busy machine too.
const CALLERS: u32 = 20;

fn calls(address: SocketAddr, method: &'static str) -> Calls {
    Calls {
        address,
        wire: Wire::H1,
        method,
        host: HELLO,
        path: "/",
        every: Duration::from_secs(1),
    }
}

fn west_and_backup(backup: &HttpService) -> String {
    format!(
        "backends: [{{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]",
        endpoints(&[backup.address()])
    )
}

/// A cluster `west` over a link that can be cut, and who calls it.
pub(crate) struct Far {
    pub(crate) link: Link,
    /// What west serves.
    pub(crate) service: HttpService,
    pub(crate) east: Cluster,
    /// It, and its gateway.
    pub(crate) west: (Cluster, mesh::Gateway),
}

impl Far {
    pub(crate) async fn in_a(namespace: &Namespace) -> Self {
        Self::with_doors(namespace, 1).await.0
    }

    /// The same whose gateway has so many addresses, each of which is a gateway to east.
    async fn with_doors(namespace: &Namespace, doors: usize) -> (Self, Vec<SocketAddr>) {
        let link = namespace.link();
        let service = HttpService::start_on(link.near, "west");
        let (east, mut west) = (Cluster::new("east"), Cluster::new("west"));
        west.move_over(&link);
        let mut addresses = vec![west.mesh];
        for nth in 1..doors {
            let name = format!("mesh-{nth}");
            let port = west.listen(&name, "role: mesh").port();
            let address = SocketAddr::new(link.far.into(), port);
            west.relisten(&name, address, "role: mesh");
            addresses.push(address);
        }
        east.meet(&west);
        let gateways: Vec<_> = addresses.iter().map(|one| format!("'{one}'")).collect();
        let spec = format!(
            "{{ cluster: west, locality: west/west-1, gateways: [{}], spiffeIDs: ['{}'] }}",
            gateways.join(", "),
            west.gateway_id()
        );
        east.peer("west", &spec);
        let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
        west.write("routes.yaml", &http_route("hello", &[&near, PATIENT]));
        let gateway = Box::pin(west.start_in(link.namespace())).await;
        let this = Self {
            link,
            service,
            east,
            west: (west, gateway),
        };
        (this, addresses)
    }
}

/// What is lost of a load of `method` when the link to the peer that serves it is cut.
async fn lost_at_a_cut_link(method: &'static str) -> Option<Tally> {
    let namespace = Namespace::new()?;
    let Far {
        link,
        service,
        east,
        west: _west,
    } = Far::in_a(&namespace).await;
    service.set(Mode::Delay(Duration::from_millis(10)));
    let backup = HttpService::start("backup");
    let both = west_and_backup(&backup);
    let budget = "retries: { budget: 100% }";
    let spec = [&*both, WEST_FIRST, PATIENT, NO_EJECTION, budget];
    let east = Gateway::of(east, &http_route("hello", &spec)).await;
    let load = Load::spread(CALLERS, &calls(east.apps(), method));
    load.goes_on(60).await;
    assert_eq!(backup.hits(), 0);
    link.cut_far();
    // Until long after a PING is overdue.
    backup.arrived(120).await;
    let tally = load.end().await;
    assert!(
        east.counted("zeugma_retries_total", &[("cause", "quiet")])
            .await
            > 0.0
    );
    east.process.finish().await;
    Some(tally)
}

#[tokio::test]
async fn few_posts_are_lost_at_a_link_that_is_cut() {
    let Some(tally) = lost_at_a_cut_link("POST").await else {
        return;
    };
    // Those under way, and one for each worker: all callers would be lost if nobody noticed.
    assert!(tally.lost.len() <= CALLERS as usize / 3, "{:?}", tally.lost);
}

#[tokio::test]
async fn no_get_is_lost_at_a_link_that_is_cut() {
    let Some(tally) = lost_at_a_cut_link("GET").await else {
        return;
    };
    assert_eq!(tally.lost, Vec::<String>::new());
}

#[tokio::test]
async fn quiet_gateways_of_a_peer_cost_a_request_no_retries() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let (far, doors) = Far::with_doors(&namespace, 2).await;
    let (near, backup) = (HttpService::start("near"), HttpService::start("backup"));
    let backends = format!(
        "backends: [{{ name: near, {} }}, {{ peer: west }}, {{ name: backup, locality: asia/a-1, {} }}]",
        endpoints(&[near.address()]),
        endpoints(&[backup.address()])
    );
    // One for the failure of `near`, one for what goes down with the link.
    let retries = "retries: { attempts: 2, budget: 100% }";
    let spec = [&*backends, WEST_FIRST, PATIENT, NO_EJECTION, retries];
    let Far {
        link,
        service: _service,
        mut east,
        west: _west,
    } = far;
    east.set("workers", "1");
    let east = Gateway::of(east, &http_route("hello", &spec)).await;
    // So that the budget is no matter.
    for _ in 0..100 {
        assert_eq!(east.get("/").await.text(), "near");
    }
    near.set(Mode::Reset);
    eventually("both gateways", async || {
        assert_eq!(east.get("/").await.text(), "west");
        let lines = east.process.log_so_far();
        let is_used = |door: &SocketAddr| {
            let door = door.to_string();
            lines.iter().any(|line| line["dst.addr"] == *door)
        };
        doors.iter().all(is_used).then_some(())
    })
    .await;
    link.cut_far();
    eventually("an answer of the last that is left", async || {
        (east.get("/").await.text() == "backup").then_some(())
    })
    .await;
    // Nothing is sent to either: of what each of these is allowed only the first failure takes.
    for _ in 0..20 {
        let answer = east.get("/").await;
        assert_eq!((answer.status.as_u16(), &*answer.text()), (200, "backup"));
    }
    let quiet = [("cause", "quiet")];
    assert!(east.counted("zeugma_retries_total", &quiet).await >= 40.0);
    let resets = [("cause", "reset")];
    let (resets, hits) = (
        east.counted("zeugma_retries_total", &resets).await,
        near.hits() - 100,
    );
    let hits = f64::from(u32::try_from(hits).unwrap());
    // Those of the link's end apart, of which each gateway has one.
    assert!(resets <= hits + 2.0, "{resets} of {hits}");
    east.process.finish().await;
}

#[tokio::test]
async fn a_peer_is_gone_back_to_once_its_link_is_mended() {
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
    let both = west_and_backup(&backup);
    let spec = [&*both, WEST_FIRST, PATIENT, NO_EJECTION];
    let east = Gateway::of(east, &http_route("hello", &spec)).await;
    let load = Load::spread(CALLERS, &calls(east.apps(), "POST"));
    load.goes_on(40).await;
    link.cut_far();
    backup.arrived(20).await;
    link.mend_far();
    let before = service.hits();
    service.arrived(before + 60).await;
    load.end().await;
    east.process.finish().await;
}

#[tokio::test]
async fn what_can_go_nowhere_else_waits_for_a_quiet_peer() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let Far {
        link,
        service: _service,
        east,
        west: _west,
    } = Far::in_a(&namespace).await;
    let spec = ["backends: [{ peer: west }]", PATIENT, NO_EJECTION];
    let east = Gateway::of(east, &http_route("hello", &spec)).await;
    let load = Load::spread(CALLERS, &calls(east.apps(), "POST"));
    load.goes_on(40).await;
    link.cut_far();
    let quiet = [("cause", "quiet")];
    east.until_counted("zeugma_retries_total", &quiet, 1.0)
        .await;
    link.mend_far();
    load.goes_on(60).await;
    let tally = load.end().await;
    assert_eq!(tally.lost, Vec::<String>::new(), "of {}", tally.answered);
    east.process.finish().await;
}

#[tokio::test]
async fn a_slow_service_is_not_taken_for_a_host_that_is_gone() {
    // Longer than a kernel waits before it sends once more.
    let slow = Mode::Delay(Duration::from_millis(700));
    let (service, near, backup) = (
        HttpService::start("west"),
        HttpService::start("near"),
        HttpService::start("backup"),
    );
    service.set(slow);
    near.set(slow);
    let behind = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let both = west_and_backup(&backup);
    let routes = http_route("hello", &[&both, WEST_FIRST, PATIENT]);
    let pair = Pair::of((east, west), &routes, &http_route("hello", &[&behind])).await;
    let far = format!(
        "backends: [{{ {} }}, {{ name: backup, locality: us/us-1, {} }}]",
        endpoints(&[near.address()]),
        endpoints(&[backup.address()])
    );
    let alone = Gateway::alone(&near_route("hello", &[&far, PATIENT])).await;
    for gateway in [&pair.east, &alone] {
        for method in ["POST", "GET"] {
            let load = Load::spread(CALLERS, &calls(gateway.apps(), method));
            load.goes_on(3 * CALLERS as usize).await;
            let tally = load.end().await;
            assert_eq!(tally.lost, Vec::<String>::new());
        }
    }
    assert_eq!(backup.hits(), 0);
    alone.process.finish().await;
    pair.finish().await;
}

#[tokio::test]
async fn a_long_way_is_not_taken_for_a_host_that_is_gone() {
    let (service, backup) = (HttpService::start("west"), HttpService::start("backup"));
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let way = LongWay::to(west.mesh, Duration::from_millis(150)).await;
    let spec = format!(
        "{{ cluster: west, locality: west/west-1, gateways: ['{}'], spiffeIDs: ['{}'] }}",
        way.as_ref().unwrap().address,
        west.gateway_id()
    );
    east.peer("west", &spec);
    let near = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let west = Gateway::of(west, &http_route("hello", &[&near])).await;
    let both = west_and_backup(&backup);
    let spec = [&*both, WEST_FIRST, PATIENT];
    let east = Gateway::of(east, &http_route("hello", &spec)).await;
    for method in ["POST", "GET"] {
        let load = Load::spread(CALLERS, &calls(east.apps(), method));
        load.goes_on(4 * CALLERS as usize).await;
        let tally = load.end().await;
        assert_eq!(tally.lost, Vec::<String>::new());
    }
    assert_eq!(backup.hits(), 0);
    east.process.finish().await;
    west.process.finish().await;
}

#[tokio::test]
async fn a_host_of_http_1_that_is_gone_gets_no_more_posts() {
    let Some(namespace) = Namespace::new() else {
        return;
    };
    let (callers, vanishing) = (namespace.link(), namespace.link());
    let near = HttpService::start_on(vanishing.near, "near");
    let far = HttpService::start_on(callers.near, "backup");
    near.set(Mode::Delay(Duration::from_millis(10)));
    let mut east = Cluster::new("east");
    east.move_over(&callers);
    let backends = format!(
        "backends: [{{ version: h1, {} }}, {{ name: far, locality: us/us-1, {} }}]",
        endpoints(&[near.address()]),
        endpoints(&[far.address()])
    );
    let spec = [&*backends, PATIENT, NO_EJECTION];
    east.write("routes.yaml", &near_route("hello", &spec));
    let process = Box::pin(east.start_in(&namespace.name)).await;
    let load = Load::spread(CALLERS, &calls(east.apps, "POST"));
    load.goes_on(60).await;
    vanishing.cut_near();
    far.arrived(100).await;
    load.end().await;
    process.finish().await;
}
