//! A gateway without route files that a control plane feeds which knows nothing of us: nothing that it says
//! carries metadata of ours, and it is written by hand.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::data_client::read_head;
use crate::mesh::by_hand::ROUTES;
use crate::mesh::strangers::{
    Pattern, chain, eds, endpoints, fixed, http, listener, route, routes, tcp,
};
use crate::mesh::{
    Cluster, ControlPlane, Gateway, Identity, Reply, Service, collect, empty, eventually, get, h1,
    within,
};

const CART: &str = "ns/shop/sa/cart";
const TELLER: &str = "ns/bank/sa/teller";
const ORDERS_ID: &str = "spiffe://east.example/ns/shop/sa/orders";
/// Whoever is named by a namespace.
const NAMED: Pattern<'_> = Pattern::Prefix("spiffe://east.example/ns/");

struct World {
    east: Cluster,
    control_plane: ControlPlane,
    gateway: Gateway,
    /// The priorities of the cluster `orders`.
    orders: [Service; 2],
    _others: [Service; 4],
}

impl World {
    /// `outside`: TLS for three names; `inside`: plaintext HTTP.
    async fn new() -> Self {
        let mut east = Cluster::new("east");
        let control_plane = ControlPlane::new(Some(&east.identity("zeugma/xds")));
        let of = format!(
            "{{ addresses: ['https://{}'], spiffeIDs: ['spiffe://east.example/zeugma/xds'] }}",
            control_plane.address
        );
        east.set("controlPlane", &of);
        let orders = [Service::http("first").await, Service::http("second").await];
        let identity = east.identity("ns/shop/sa/orders");
        let others = [
            Service::http("canary").await,
            Service::mtls("mtls", &identity).await,
            Service::mtls("direct", &identity).await,
            Service::echo().await,
        ];
        let [canary, mtls, direct, echo] = others.each_ref().map(|one| one.address);
        control_plane.put(
            "1",
            [
                eds("orders"),
                endpoints(
                    "orders",
                    &[(&[orders[0].address], true), (&[orders[1].address], true)],
                ),
                fixed("canary", canary, None),
                fixed("mtls", mtls, Some(ORDERS_ID)),
                fixed("direct", direct, None),
                fixed("echo", echo, None),
                routes(
                    "shop",
                    "shop.example",
                    vec![
                        route("/mtls", &[("mtls", 1)]),
                        route("/split", &[("orders", 1), ("canary", 1)]),
                        route("/", &[("orders", 1)]),
                    ],
                ),
                routes("any", "*", vec![route("/", &[("orders", 1)])]),
                listener(
                    "outside",
                    east.mesh,
                    vec![
                        chain(&["pass.example"], None, tcp("direct")),
                        chain(&["tcp.example"], Some(NAMED), tcp("echo")),
                        chain(
                            &["shop.example"],
                            Some(NAMED),
                            http(
                                "shop",
                                Some((
                                    Pattern::Exact("spiffe://east.example/ns/shop/sa/cart"),
                                    "/open/",
                                )),
                            ),
                        ),
                    ],
                ),
                listener(
                    "inside",
                    east.apps,
                    vec![chain(&[], None, http("any", None))],
                ),
            ],
        );
        east.write_gateway();
        let gateway = east.spawn(Gateway::command(&east.config()));
        gateway.message("ZG0901 gateway ready").await;
        gateway.message("ZG0521").await;
        let world = Self {
            east,
            control_plane,
            gateway,
            orders,
            _others: others,
        };
        eventually("everything to serve", async || {
            (get(world.east.apps, "any.host", "/").await.status == 200).then_some(())
        })
        .await;
        world
    }

    /// GET as `caller` inside TLS for `sni`.
    async fn get(&self, caller: &Identity, sni: &str, path: &str) -> Reply {
        let stream = caller
            .dial(self.east.mesh, sni, &[b"http/1.1"])
            .await
            .unwrap();
        let mut sender = h1(stream).await;
        let request = Request::get(path).header("host", sni).body(empty());
        let reply = within("a response", sender.send_request(request.unwrap())).await;
        collect(reply.unwrap()).await
    }

    async fn plain(&self) -> String {
        get(self.east.apps, "any.host", "/").await.text()
    }
}

#[tokio::test]
async fn tls_is_relayed_ended_and_begun_as_a_strangers_listener_says() {
    let mut world = World::new().await;
    let cart = world.east.identity(CART);
    // By its name alone, to whom it is for.
    assert_eq!(world.get(&cart, "pass.example", "/").await.text(), "direct");
    // Ended here, begun anew: the service is told who calls.
    let reply = world.get(&cart, "shop.example", "/mtls").await;
    assert_eq!(reply.text(), "mtls");
    let [_, mtls, ..] = &world._others;
    let arrived = mtls.requests();
    let who = arrived[0].headers["x-forwarded-client-cert"]
        .to_str()
        .unwrap();
    assert!(
        who.contains("URI=spiffe://east.example/ns/shop/sa/cart"),
        "{who}"
    );
    let mut stream = cart
        .dial(world.east.mesh, "tcp.example", &[])
        .await
        .unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut said = [0; 5];
    within("an echo", stream.read_exact(&mut said))
        .await
        .unwrap();
    assert_eq!(&said, b"hello");
    // No chain has this name, and nobody is let in without TLS.
    assert!(
        cart.dial(world.east.mesh, "other.example", &[])
            .await
            .is_err()
    );
    assert_eq!(get(world.east.mesh, "shop.example", "/").await.status, 403);
    world.gateway.finish().await;
}

#[tokio::test]
async fn whom_a_strangers_context_or_rules_do_not_name_is_not_let_in() {
    let mut world = World::new().await;
    let [cart, teller, other] = [CART, TELLER, "other"].map(|path| world.east.identity(path));
    let status =
        async |caller: &Identity, path| world.get(caller, "shop.example", path).await.status;
    assert_eq!(status(&cart, "/").await, 200);
    assert_eq!(status(&teller, "/").await, 403);
    assert_eq!(status(&teller, "/open/x").await, 200);
    assert_eq!(status(&teller, "/open/../x").await, 403);
    // Rules never let in whom the context does not.
    assert_eq!(status(&other, "/open/x").await, 403);
    let mut refused = other.dial(world.east.mesh, "tcp.example", &[]).await;
    if let Ok(stream) = &mut refused {
        let mut byte = [0];
        within("the end", stream.read(&mut byte)).await.unwrap_err();
    }
    world.gateway.finish().await;
}

/// Envoy answers 403 to what would be relayed unread where nothing says that it may be.
#[tokio::test]
async fn a_request_does_not_go_on_as_websocket_where_no_stranger_says_so() {
    let world = World::new().await;
    let mut tcp = TcpStream::connect(world.east.apps).await.unwrap();
    let head = "GET / HTTP/1.1\r\nhost: any.host\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    tcp.write_all(head.as_bytes()).await.unwrap();
    let answer = read_head(&mut tcp).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    drop(tcp);
    let line = world
        .gateway
        .log(|line| line["verdict"] == "not-allowed")
        .await;
    let detail = "it asks to go on as WebSocket, which its service is not let";
    assert_eq!(line["error"], detail, "{line}");
    // What explains says the same.
    let asks = "/api/v1/explain?host=any.host&listener=inside\
        &headers=connection=Upgrade%0Aupgrade=websocket";
    let told = world.gateway.admin_json(asks).await;
    let answer = told["explanation"]["answer"].as_str().unwrap_or_default();
    assert!(
        answer.starts_with("refused (not-allowed): it asks to go on as WebSocket, which "),
        "{told}"
    );
    let to_do = told["explanation"]["to_do"].as_array().unwrap();
    assert_eq!(to_do.len(), 1, "no rule would help: {told}");
    world.gateway.finish().await;
}

#[tokio::test]
async fn requests_are_split_and_fail_over_as_a_stranger_says() {
    let mut world = World::new().await;
    let cart = world.east.identity(CART);
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..64 {
        let reply = world.get(&cart, "shop.example", "/split").await;
        *seen.entry(reply.text()).or_default() += 1;
    }
    // Half each: 64 draws that are all alike come once in 10^19 times.
    let names: Vec<&str> = seen.keys().map(String::as_str).collect();
    assert_eq!(names, ["canary", "first"], "{seen:?}");
    // The nearest priority alone, until its control plane says that it is of no use.
    assert_eq!(world.plain().await, "first");
    let [first, second] = world.orders.each_ref().map(|one| one.address);
    let say = |version, is_up| {
        let priorities: [(&[SocketAddr], bool); 2] = [(&[first], is_up), (&[second], true)];
        world
            .control_plane
            .put(version, [endpoints("orders", &priorities)]);
    };
    say("2", false);
    eventually("the second priority", async || {
        (world.plain().await == "second").then_some(())
    })
    .await;
    say("3", true);
    eventually("the first priority", async || {
        (world.plain().await == "first").then_some(())
    })
    .await;
    world.gateway.finish().await;
}

#[tokio::test]
async fn what_a_stranger_says_and_we_do_not_is_refused_by_its_path_and_all_else_serves() {
    let world = World::new().await;
    let routes = routes(
        "any",
        "*",
        vec![route("/health", &[]), route("/", &[("canary", 1)])],
    );
    world.control_plane.put("2", [routes]);
    let nack = world
        .control_plane
        .heard("a NACK", |heard| {
            heard.kind == ROUTES && heard.error.is_some()
        })
        .await;
    let error = nack.error.unwrap();
    let place = "route configuration `any`: `virtual_hosts[0].routes[0].direct_response`";
    assert!(error.contains(place), "{error}");
    assert_eq!(world.plain().await, "first");
    let message = world.gateway.message("ZG0523").await;
    assert!(message.contains("direct_response"), "{message}");
    world.gateway.finish().await;
}
