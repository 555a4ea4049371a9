//! Each field of failover and authorization changed alone: who answers and who is answered, on sockets.
//!
//! `xds/tests/documents/fields/sockets.rs` holds the schema to what stands here.

use std::net::SocketAddr;

use crate::data_client;
use crate::data_mesh::{Gateway, Pair, endpoints, http_route, near_route, statuses};
use crate::data_services::{HttpService, Refusing};
use crate::mesh::{Cluster, Identity, collect, empty, eventually, h1, send, within};

/// Who calls.
#[derive(Debug, Clone, Copy)]
enum Caller {
    /// A workload of east, in plaintext.
    Near,
    /// A workload of west, with its own certificate.
    Far,
    /// West's gateway, which attests that workload.
    Attested,
}

/// A field, who calls how, what is written before and after, and the statuses that come of it.
struct Ruled {
    field: &'static str,
    call: (Caller, &'static str),
    specs: [&'static str; 2],
    statuses: [u16; 2],
}

const fn ruled(
    field: &'static str,
    call: (Caller, &'static str),
    specs: [&'static str; 2],
    statuses: [u16; 2],
) -> Ruled {
    Ruled {
        field,
        call,
        specs,
        statuses,
    }
}

const TO_WEST: &str = "export: { to: [west] }";
const CART: &str = "spiffe://west.example/ns/shop/sa/cart";

/// Where nothing else is written everybody is let in, and routes are exported to west.
fn rules() -> Vec<Ruled> {
    use Caller::{Attested, Far, Near};

    vec![
        ruled(
            "allow[].from",
            (Far, "GET"),
            [
                "allow: [{ listeners: [mesh] }]",
                "allow: [{ listeners: [mesh], from: ['spiffe://west.example/ns/other/*'] }]",
            ],
            [200, 403],
        ),
        ruled(
            "allow[].via",
            (Far, "GET"),
            [
                "allow: [{ from: ['spiffe://west.example/ns/shop/*'] }]",
                "allow: [{ from: ['spiffe://west.example/ns/shop/*'], via: [west] }]",
            ],
            [200, 403],
        ),
        ruled(
            "allow[].via",
            (Attested, "GET"),
            [
                "allow: [{ from: ['spiffe://west.example/ns/shop/*'] }]",
                "allow: [{ from: ['spiffe://west.example/ns/shop/*'], via: [west] }]",
            ],
            [403, 200],
        ),
        ruled(
            "allow[].listeners",
            (Near, "GET"),
            [
                "allow: [{ sources: ['127.0.0.0/8'] }]",
                "allow: [{ sources: ['127.0.0.0/8'], listeners: [mesh] }]",
            ],
            [200, 403],
        ),
        ruled(
            "allow[].sources",
            (Near, "GET"),
            [
                "allow: [{ listeners: [apps] }]",
                "allow: [{ listeners: [apps], sources: ['192.0.2.0/24'] }]",
            ],
            [200, 403],
        ),
        ruled(
            "allow[].methods",
            (Near, "POST"),
            [
                "allow: [{ listeners: [apps] }]",
                "allow: [{ listeners: [apps], methods: [GET] }]",
            ],
            [200, 403],
        ),
        ruled(
            "allow[].paths",
            (Near, "GET"),
            [
                "allow: [{ listeners: [apps] }]",
                "allow: [{ listeners: [apps], paths: ['/v2/*'] }]",
            ],
            [200, 403],
        ),
        ruled(
            "deny[].from",
            (Far, "GET"),
            [
                "deny: [{ from: ['spiffe://west.example/ns/other/*'] }]",
                "deny: [{ from: ['spiffe://west.example/ns/shop/*'] }]",
            ],
            [200, 403],
        ),
        ruled(
            "deny[].via",
            (Attested, "GET"),
            [
                "deny: [{ from: ['spiffe://west.example/ns/shop/*'], via: [north] }]",
                "deny: [{ from: ['spiffe://west.example/ns/shop/*'], via: [west] }]",
            ],
            [200, 403],
        ),
        ruled(
            "deny[].listeners",
            (Near, "GET"),
            [
                "deny: [{ listeners: [mesh] }]",
                "deny: [{ listeners: [apps] }]",
            ],
            [200, 403],
        ),
        ruled(
            "deny[].sources",
            (Near, "GET"),
            [
                "deny: [{ sources: ['192.0.2.0/24'] }]",
                "deny: [{ sources: ['127.0.0.0/8'] }]",
            ],
            [200, 403],
        ),
        ruled(
            "deny[].methods",
            (Near, "POST"),
            ["deny: [{ methods: [PUT] }]", "deny: [{ methods: [POST] }]"],
            [200, 403],
        ),
        ruled(
            "deny[].paths",
            (Near, "GET"),
            [
                "deny: [{ paths: ['/v2/*'] }]",
                "deny: [{ paths: ['/v1/*'] }]",
            ],
            [200, 403],
        ),
        ruled(
            "policy",
            (Near, "GET"),
            ["allow: []\npolicy: enforce", "allow: []\npolicy: audit"],
            [403, 200],
        ),
        ruled(
            "export.to",
            (Far, "GET"),
            ["export: { to: [north] }", TO_WEST],
            [403, 200],
        ),
    ]
}

/// A peer that attests for `west.example`.
fn attesting(cluster: &Cluster, name: &str) -> String {
    format!(
        "cluster: {name}\nlocality: {name}/{name}-1\ngateways: ['{}']\nspiffeIDs: ['{}']\n\
         attests: [west.example]",
        cluster.mesh,
        cluster.gateway_id()
    )
}

#[tokio::test]
async fn each_field_of_authorization_alone_decides_who_is_answered() {
    let service = HttpService::start("orders");
    let (mut west, north, east) = (
        Cluster::new("west"),
        Cluster::new("north"),
        Cluster::new("east"),
    );
    east.meet(&west);
    east.meet(&north);
    east.peer("west", &attesting(&west, "west"));
    east.peer("north", &attesting(&north, "north"));
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    for (nth, case) in rules().iter().enumerate() {
        for (at, spec) in case.specs.iter().enumerate() {
            let mut all = vec!["protocol: http", &backends];
            all.extend(spec.lines());
            if !spec.contains("allow:") {
                all.push(
                    "allow: [{ listeners: [apps, mesh] }, { from: ['spiffe://west.example/*'], via: [west] }]",
                );
            }
            if !spec.contains("export:") {
                all.push(TO_WEST);
            }
            east.route(&format!("shop/c{nth}-{at}"), &all.join("\n"));
        }
    }
    let gateway = east.start().await;
    let (cart, peer) = (west.identity("ns/shop/sa/cart"), west.gateway_identity());
    for (nth, case) in rules().iter().enumerate() {
        for (at, expected) in case.statuses.into_iter().enumerate() {
            let host = format!("c{nth}-{at}.shop.svc.clusterset.local");
            let (caller, method) = case.call;
            let status = match caller {
                Caller::Near => {
                    let head = http::Request::builder().method(method).uri("/v1/a");
                    let request = head.header("host", &host).body(empty());
                    send(east.apps, request.unwrap()).await.status
                }
                Caller::Far => called(&east, &cart, &host, None).await,
                Caller::Attested => {
                    let xfcc = format!("By={};URI={CART}", west.gateway_id());
                    called(&east, &peer, &host, Some(&xfcc)).await
                }
            };
            assert_eq!(status, expected, "{}: {}", case.field, case.specs[at]);
        }
    }
    gateway.finish().await;
}

/// The status of a request inside mTLS.
async fn called(east: &Cluster, caller: &Identity, host: &str, xfcc: Option<&str>) -> u16 {
    let dialled = caller.dial(east.mesh, host, &[b"http/1.1"]);
    let mut sender = h1(within("a handshake", dialled).await.unwrap()).await;
    let mut request = http::Request::get("/v1/a").header("host", host);
    if let Some(xfcc) = xfcc {
        request = request.header("x-forwarded-client-cert", xfcc);
    }
    let sent = sender.send_request(request.body(empty()).unwrap());
    collect(within("a response", sent).await.unwrap())
        .await
        .status
}

/// The nearest level of a route, before those that are further away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearest {
    /// Nothing is there.
    Gone,
    /// One of two endpoints is.
    Half,
    /// One endpoint, which is killed and comes back.
    Returns,
}

/// A field, the nearest level, `failover` before and after, and who answers then.
struct Moved {
    field: &'static str,
    nearest: Nearest,
    failover: [&'static str; 2],
    answers: [&'static [&'static str]; 2],
}

const fn moved(
    field: &'static str,
    nearest: Nearest,
    failover: [&'static str; 2],
    answers: [&'static [&'static str]; 2],
) -> Moved {
    Moved {
        field,
        nearest,
        failover,
        answers,
    }
}

fn moves() -> Vec<Moved> {
    use Nearest::{Gone, Half, Returns};

    const US: &[&str] = &["us"];
    const ASIA: &[&str] = &["asia"];
    const WEST: &[&str] = &["west"];
    const NEAR: &[&str] = &["near"];
    const BOTH: &[&str] = &["near", "us"];
    const TO_US: &str = "order: [{ backend: us }]";
    vec![
        moved(
            "failover.order[].region",
            Gone,
            ["order: [{ region: us }]", "order: [{ region: asia }]"],
            [US, ASIA],
        ),
        moved(
            "failover.order[].backend",
            Gone,
            [TO_US, "order: [{ backend: asia }]"],
            [US, ASIA],
        ),
        moved(
            "failover.order[].cluster",
            Gone,
            [TO_US, "order: [{ cluster: west }]"],
            [US, WEST],
        ),
        moved(
            "failover.never[].region",
            Gone,
            [
                "order: [{ region: us }, { region: asia }], never: [{ region: us }]",
                "order: [{ region: us }, { region: asia }], never: [{ region: asia }]",
            ],
            [ASIA, US],
        ),
        moved(
            "failover.never[].backend",
            Gone,
            [
                "order: [{ region: us }, { region: asia }], never: [{ backend: us }]",
                "order: [{ region: us }, { region: asia }], never: [{ backend: asia }]",
            ],
            [ASIA, US],
        ),
        moved(
            "failover.never[].cluster",
            Gone,
            [
                "order: [{ cluster: west }, { region: us }]",
                "order: [{ cluster: west }, { region: us }], never: [{ cluster: west }]",
            ],
            [WEST, US],
        ),
        moved(
            "failover.start",
            Half,
            [TO_US, "order: [{ backend: us }], start: 40%"],
            [BOTH, NEAR],
        ),
        moved(
            "failover.full",
            Half,
            [TO_US, "order: [{ backend: us }], full: 60%"],
            [BOTH, US],
        ),
        moved(
            "failover.hold",
            Half,
            [TO_US, "order: [{ backend: us }], hold: 1h"],
            [BOTH, NEAR],
        ),
        moved(
            "failover.failback.after",
            Returns,
            [
                "order: [{ backend: us }], failback: { after: 0s, ramp: 0s }",
                "order: [{ backend: us }], failback: { after: 1h, ramp: 0s }",
            ],
            [NEAR, US],
        ),
        moved(
            "failover.failback.ramp",
            Returns,
            [
                "order: [{ backend: us }], failback: { after: 0s, ramp: 0s }",
                "order: [{ backend: us }], failback: { after: 0s, ramp: 1000h }",
            ],
            [NEAR, US],
        ),
        moved(
            "failover.failback.mode",
            Returns,
            [
                "order: [{ backend: us }], failback: { after: 0s, ramp: 0s, mode: auto }",
                "order: [{ backend: us }], failback: { after: 0s, ramp: 0s, mode: manual }",
            ],
            [NEAR, US],
        ),
    ]
}

/// The services of a route.
struct Places {
    near: HttpService,
    returning: HttpService,
    us: HttpService,
    asia: HttpService,
    west: HttpService,
    gone: Refusing,
}

impl Places {
    fn spec(&self, nearest: Nearest, failover: &str) -> [String; 3] {
        let near: Vec<SocketAddr> = match nearest {
            Nearest::Gone => vec![self.gone.address],
            Nearest::Half => vec![self.gone.address, self.near.address()],
            Nearest::Returns => vec![self.returning.address()],
        };
        [
            format!(
                "backends: [{{ {} }}, {{ name: us, locality: us/us-1, {} }}, \
                 {{ name: asia, locality: asia/asia-1, {} }}, {{ peer: west }}]",
                endpoints(&near),
                endpoints(&[self.us.address()]),
                endpoints(&[self.asia.address()])
            ),
            format!("failover: {{ {failover} }}"),
            "health: { active: { tcp: true, every: 100ms, up: 1, down: 1 } }".to_owned(),
        ]
    }
}

#[tokio::test]
async fn each_field_of_failover_alone_decides_who_answers() {
    let mut places = Places {
        near: HttpService::start("near"),
        returning: HttpService::start("near"),
        us: HttpService::start("us"),
        asia: HttpService::start("asia"),
        west: HttpService::start("west"),
        gone: Refusing::new(),
    };
    let (mut of_east, mut of_west) = (String::new(), String::new());
    let at_west = format!("backends: [{{ {} }}]", endpoints(&[places.west.address()]));
    for (nth, case) in moves().iter().enumerate() {
        for (at, failover) in case.failover.into_iter().enumerate() {
            let spec = places.spec(case.nearest, failover);
            let name = format!("c{nth}-{at}");
            of_east += &near_route(&name, &spec.each_ref().map(String::as_str));
            of_west += &http_route(&name, &[&at_west]);
        }
    }
    let pair = Pair::new(&of_east, &of_west).await;
    let east = &pair.east;
    for (nth, case) in moves().iter().enumerate() {
        for (at, who) in case.answers.into_iter().enumerate() {
            let name = format!("c{nth}-{at}");
            let of_nearest = if case.nearest == Nearest::Returns {
                "healthy"
            } else {
                "unhealthy"
            };
            is_found(east, &name, of_nearest).await;
            if case.nearest != Nearest::Returns {
                answered_by(east, &name, who, (case.field, case.failover[at])).await;
            }
        }
    }
    places.returning.kill().await;
    let returning =
        || (moves().into_iter().enumerate()).filter(|(_, case)| case.nearest == Nearest::Returns);
    for (nth, case) in returning() {
        for at in 0..2 {
            let name = format!("c{nth}-{at}");
            is_found(east, &name, "unhealthy").await;
            answered_by(east, &name, &["us"], (case.field, case.failover[at])).await;
        }
    }
    places.returning.revive();
    for (nth, case) in returning() {
        for (at, who) in case.answers.into_iter().enumerate() {
            let name = format!("c{nth}-{at}");
            is_found(east, &name, "healthy").await;
            answered_by(east, &name, who, (case.field, case.failover[at])).await;
        }
    }
    pair.finish().await;
}

/// Waits until the first endpoint of a route is found to be so.
async fn is_found(east: &Gateway, name: &str, status: &str) {
    let is_it = |now: &serde_json::Value| statuses(now).first().is_some_and(|one| one == status);
    east.until(name, status, is_it).await;
}

/// Waits until these services answer a route, and no other does twenty times in a row.
async fn answered_by(east: &Gateway, name: &str, who: &[&str], (field, spec): (&str, &str)) {
    let host = format!("{name}.demo.svc.clusterset.local");
    eventually(&format!("{field}: {spec}: {who:?}"), async || {
        let mut heard: Vec<String> = Vec::new();
        for _ in 0..20 {
            heard.push(data_client::get(east.apps(), &host, "/").await.text());
        }
        heard.sort();
        heard.dedup();
        (heard == who).then_some(())
    })
    .await;
}
