//! Rules that ask for headers.

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt as _;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::mesh::{Cluster, Gateway, Service, collect, empty, frames, h1, h2, send, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// A route whose policy this is.
fn route(east: &Cluster, service: &Service, policy: &str) {
    let policy = policy.replace('\n', "\n                ");
    east.route(
        "shop/orders",
        &format!(
            "
                protocol: http
                backends: [{{ endpoints: ['{}'] }}]
                {policy}",
            service.address
        ),
    );
}

fn request(headers: &[(&str, &str)]) -> http::request::Builder {
    let request = Request::get("/").header("host", ORDERS);
    headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    })
}

/// The status by HTTP/1.1, which by HTTP/2 is the same.
async fn asked(east: &Cluster, headers: &[(&str, &str)]) -> u16 {
    let of_h1 = send(east.apps, request(headers).body(empty()).unwrap())
        .await
        .status;
    let tcp = TcpStream::connect(east.apps).await.unwrap();
    let mut sender = h2(tcp).await;
    let again = Request::get(format!("http://{ORDERS}/"));
    let again = headers.iter().fold(again, |request, (name, value)| {
        request.header(*name, *value)
    });
    let answer = within(
        "an answer",
        sender.send_request(again.body(empty()).unwrap()),
    )
    .await;
    assert_eq!(collect(answer.unwrap()).await.status, of_h1, "{headers:?}");
    of_h1
}

#[tokio::test]
async fn no_way_to_write_a_header_slips_past_the_rules() {
    let service = Service::http("orders").await;
    let east = Cluster::new("east");
    route(
        &east,
        &service,
        "allow: [{ listeners: [apps], headers: { X-Tenant: [acme, 'beta-*'], x-env: ['*'] } }]\n\
         deny: [{ headers: { x-role: [guest] } }]",
    );
    let gateway = east.start().await;
    let env = ("x-env", "");
    for allowed in [
        &[("x-tenant", "acme"), env][..],
        &[("X-TENANT", "beta-7"), env],
        // Each is one that is named.
        &[("x-tenant", "acme"), ("x-tenant", "beta-7"), env],
        &[("x-tenant", "beta-7, beta-8"), env],
        &[("x-tenant", "acme"), ("x-env", "a, b")],
        &[("x-tenant", "acme"), env, ("x-role", "guests")],
    ] {
        assert_eq!(asked(&east, allowed).await, 200, "{allowed:?}");
    }
    for refused in [
        &[][..],
        &[("x-tenant", "acme")],
        &[env],
        &[("x-tenant", "Acme"), env],
        &[("x-tenant", "acme2"), env],
        &[("x-tenant", "acme,evil"), env],
        &[("x-tenant", "beta-7,admin"), env],
        &[("x-tenant", "beta-7, admin"), env],
        &[("x-tenant", "admin, beta-7"), env],
        &[("x-tenant", "acme"), ("x-tenant", "evil"), env],
        &[("x-tenant", "evil"), ("X-Tenant", "acme"), env],
        // Denied, however it is written.
        &[("x-tenant", "acme"), env, ("x-role", "guest")],
        &[("x-tenant", "acme"), env, ("X-Role", "GUEST")],
        &[
            ("x-tenant", "acme"),
            env,
            ("x-role", "admin"),
            ("x-role", "guest"),
        ],
        &[("x-tenant", "acme"), env, ("x-role", "admin, guest")],
        &[("x-tenant", "acme"), env, ("x-role", "guest,admin")],
    ] {
        assert_eq!(asked(&east, refused).await, 403, "{refused:?}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn each_field_of_a_header_rule_alone_decides_who_is_answered() {
    let service = Service::http("orders").await;
    for (policy, expected) in [
        ("allow: [{ listeners: [apps] }]", 200),
        ("allow: [{ headers: { x-a: ['1'] } }]", 200),
        ("allow: [{ headers: { x-a: ['2'] } }]", 403),
        (
            "allow: [{ listeners: [apps] }]\ndeny: [{ headers: { x-a: ['2'] } }]",
            200,
        ),
        (
            "allow: [{ listeners: [apps] }]\ndeny: [{ headers: { x-a: ['1'] } }]",
            403,
        ),
    ] {
        let east = Cluster::new("east");
        route(&east, &service, policy);
        let gateway = east.start().await;
        assert_eq!(asked(&east, &[("x-a", "1")]).await, expected, "{policy}");
        gateway.finish().await;
    }
}

/// A request that is being answered.
struct Open {
    body: hyper::body::Incoming,
    _connection: hyper::client::conn::http1::SendRequest<crate::mesh::Body>,
}

impl Open {
    async fn new(east: &Cluster, tenant: &str) -> Self {
        let tcp = TcpStream::connect(east.apps).await.unwrap();
        let mut sender = h1(tcp).await;
        let request = request(&[("x-tenant", tenant)]).body(empty()).unwrap();
        let answer = within("an answer", sender.send_request(request))
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        Self {
            body: answer.into_body(),
            _connection: sender,
        }
    }

    async fn goes_on(&mut self, sending: &mpsc::Sender<Bytes>) {
        sending.send(Bytes::from("more")).await.unwrap();
        let frame = within("a frame", self.body.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "more");
    }
}

#[tokio::test]
async fn what_is_open_is_judged_by_its_headers_when_the_rules_change() {
    let (opened, mut opening) = mpsc::channel(8);
    let service = Service::handling(move |_| {
        let opened = opened.clone();
        async move {
            let (sending, body) = frames();
            opened.send(sending).await.unwrap();
            http::Response::new(body)
        }
    })
    .await;
    let east = Cluster::new("east");
    let allow = "allow: [{ headers: { x-tenant: [acme, beta] } }]";
    route(&east, &service, allow);
    let gateway = east.start().await;
    let mut open = Vec::new();
    for tenant in ["acme", "beta"] {
        let one = Open::new(&east, tenant).await;
        open.push((one, opening.recv().await.unwrap()));
    }
    route(
        &east,
        &service,
        &format!("{allow}\ndeny: [{{ headers: {{ x-tenant: [beta] }} }}]"),
    );
    let [(acme, to_acme), (beta, _to_beta)] = &mut open[..] else {
        panic!("two are open");
    };
    // It is cut off in the midst of its answer.
    let cut = within("its end", beta.body.frame()).await;
    assert!(cut.is_none_or(|frame| frame.is_err()));
    acme.goes_on(to_acme).await;
    let told = |line: &serde_json::Value| line["verdict"] == "no-longer-allowed";
    gateway.log(told).await;
    // One that is not named any more ends too, and is let in no more.
    route(
        &east,
        &service,
        "allow: [{ headers: { x-tenant: [other] } }]",
    );
    let cut = within("its end", acme.body.frame()).await;
    assert!(cut.is_none_or(|frame| frame.is_err()));
    let refused = async {
        loop {
            let mut sender = h1(TcpStream::connect(east.apps).await.unwrap()).await;
            let asking = request(&[("x-tenant", "acme")]).body(empty()).unwrap();
            if sender.send_request(asking).await.unwrap().status() == 403 {
                break;
            }
        }
    };
    within("a refusal", refused).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_refusal_is_explained_by_the_header_that_does_not_match() {
    let service = Service::http("orders").await;
    let east = Cluster::new("east");
    route(
        &east,
        &service,
        "allow: [{ headers: { x-tenant: [acme, 'beta-*'] } }]",
    );
    let gateway: Gateway = east.start().await;
    let path = |tenant: &str| {
        format!("/api/v1/explain?host={ORDERS}&method=GET&path=/&headers=x-tenant={tenant}")
    };
    let told = gateway.admin_json(&path("acme")).await;
    assert_eq!(told["explanation"]["policy"]["verdict"], "allow", "{told}");
    let told = gateway.admin_json(&path("evil")).await;
    let policy = &told["explanation"]["policy"];
    assert_eq!(policy["nearest_failed"][0], "headers", "{told}");
    let values = &policy["nearest"]["headers"];
    assert_eq!(values[0], "x-tenant: acme or beta-*", "{told}");
    gateway.finish().await;
}
