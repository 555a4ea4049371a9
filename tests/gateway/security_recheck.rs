//! Changes that take rights away, and connections of every kind that are open then: those concerned
//! end with a reason, and those beside them go on moving bytes.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;

use crate::mesh::hello::hello;
use crate::mesh::{
    Body, Cluster, Gateway, Identity, Service, empty, eventually, frames, get, h1, h2, within,
};
use crate::security_pki::{Domain, INTERMEDIATE, Issued};

const NEVER: time::Duration = time::Duration::hours(12);

fn host(name: &str) -> String {
    format!("{name}.shop.svc.clusterset.local")
}

trait Bidirectional: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bidirectional for T {}

/// An open connection that a test watches.
struct Held {
    what: &'static str,
    source: SocketAddr,
    on: On,
}

enum On {
    /// What is written comes back.
    Echo(Box<dyn Bidirectional>),
    H1(conn::http1::SendRequest<Body>),
    /// A stream under way, whose frames come back.
    H2 {
        sender: conn::http2::SendRequest<Body>,
        to: mpsc::Sender<Bytes>,
        from: Incoming,
    },
}

impl Held {
    /// Moves bytes both ways.
    async fn goes_on(&mut self) {
        let what = self.what;
        match &mut self.on {
            On::Echo(stream) => {
                stream.write_all(b"ping").await.unwrap();
                let mut echoed = [0; 4];
                let read = within(what, stream.read_exact(&mut echoed)).await;
                read.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert_eq!(&echoed, b"ping", "{what}");
            }
            On::H1(sender) => {
                let request = Request::get("/").header("host", host("web"));
                let sent = sender.send_request(request.body(empty()).unwrap());
                let response = within(what, sent).await.unwrap();
                assert_eq!(response.status(), 200, "{what}");
                within(what, response.into_body().collect()).await.unwrap();
            }
            On::H2 { to, from, .. } => {
                within(what, to.send(Bytes::from_static(b"ping")))
                    .await
                    .unwrap();
                let frame = within(what, from.frame()).await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), "ping", "{what}");
            }
        }
    }

    /// Waits until the gateway has ended it.
    async fn ends(&mut self) {
        let what = self.what;
        match &mut self.on {
            On::Echo(stream) => {
                let mut rest = Vec::new();
                let end = within(what, stream.read_to_end(&mut rest)).await;
                // RFC 8446 §6.1: without close_notify the bytes count as cut short. Where the TLS is
                // the caller's and the endpoint's own, the gateway can only close.
                assert!(what == "passthrough" || end.is_ok(), "{what}: {end:?}");
            }
            On::H1(sender) => {
                let closed = async || sender.is_closed().then_some(());
                eventually(what, closed).await;
            }
            On::H2 { sender, from, .. } => {
                let next = within(what, from.frame()).await;
                assert!(next.is_none_or(|frame| frame.is_err()), "{what}");
                eventually(what, async || sender.is_closed().then_some(())).await;
            }
        }
    }
}

/// East's gateway, and the services of every kind behind it.
struct World {
    east: Cluster,
    west: Domain,
    north: Domain,
    web: Service,
    bytes: Service,
    ws: Service,
}

const EVERYBODY: &str = "'spiffe://west.example/*', 'spiffe://north.example/*'";
const KINDS: [&str; 3] = ["bytes", "web", "ws"];

impl World {
    async fn new() -> Self {
        let web = Service::handling(|request: Request<Incoming>| async move {
            // Frame by frame, as they come.
            let body = request.into_body().map_err(std::io::Error::other);
            Response::new(body.boxed())
        })
        .await;
        let bytes = Service::echo().await;
        let ws = Service::tcp(websocket).await;
        let (west, north) = (Domain::new("west.example"), Domain::new("north.example"));
        let mut east = Cluster::new("east");
        for (domain, name) in [(&west, "west"), (&north, "north")] {
            domain.write_bundle(&east);
            let spec = format!(
                "
                cluster: {name}
                locality: {name}/{name}-1
                gateways: ['127.0.0.1:1']
                spiffeIDs: ['spiffe://{name}.example/zeugma/gateway']"
            );
            east.peer(name, &spec);
        }
        std::fs::create_dir(east.config().join("crls")).unwrap();
        std::fs::write(east.config().join("denied"), "# nobody yet\n").unwrap();
        east.set("limits", "{ connections: 1000 }");
        east.trusting("crls: crls/, denied: denied");
        let this = Self {
            east,
            west,
            north,
            web,
            bytes,
            ws,
        };
        for name in KINDS {
            this.route(name, &format!("[{{ from: [{EVERYBODY}] }}]"), "[]", "['*']");
        }
        this.passthrough("[{ sources: ['127.0.0.0/8'] }]", "[]", "['*']");
        this
    }

    fn route(&self, name: &str, allow: &str, deny: &str, export: &str) {
        let (protocol, port, service) = match name {
            "bytes" => ("tcp", "port: 5432", &self.bytes),
            "web" => ("http", "port: 80", &self.web),
            _ => ("http", "port: 80", &self.ws),
        };
        let spec = format!(
            "
            protocol: {protocol}
            {port}
            inbound: terminate
            backends: [{{ endpoints: ['{}'] }}]
            deny: {deny}
            allow: {allow}
            export: {{ to: {export} }}",
            service.address
        );
        self.east.route(&format!("shop/{name}"), &spec);
    }

    fn passthrough(&self, allow: &str, deny: &str, export: &str) {
        let spec = format!(
            "
            protocol: tcp
            port: 443
            inbound: passthrough
            backends: [{{ endpoints: ['{}'], tls: workload }}]
            deny: {deny}
            allow: {allow}
            export: {{ to: {export} }}",
            self.bytes.address
        );
        self.east.route("shop/pass", &spec);
    }

    /// A connection of every kind by one caller, from one address.
    async fn open(&self, who: &Identity, from: &str) -> Vec<Held> {
        let mut held = vec![self.open_passthrough(from).await];
        let stream = self.dial(who, from, "bytes", &[]).await;
        held.push(echo("bytes", stream));
        let (source, stream) = self.dial(who, from, "web", &[b"http/1.1"]).await;
        held.push(Held {
            what: "h1",
            source,
            on: On::H1(h1(stream).await),
        });
        let (source, stream) = self.dial(who, from, "web", &[b"h2"]).await;
        let mut sender = h2(stream).await;
        let (to, body) = frames();
        let request = Request::post(format!("http://{}/", host("web"))).body(body);
        let response = within("a response", sender.send_request(request.unwrap())).await;
        held.push(Held {
            what: "h2",
            source,
            on: On::H2 {
                sender,
                to,
                from: response.unwrap().into_body(),
            },
        });
        let (source, mut stream) = self.dial(who, from, "ws", &[b"http/1.1"]).await;
        let asked = format!(
            "GET / HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            host("ws")
        );
        stream.write_all(asked.as_bytes()).await.unwrap();
        let head = head_of(&mut stream).await;
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        held.push(echo("websocket", (source, stream)));
        for one in &mut held {
            one.goes_on().await;
        }
        held
    }

    async fn open_passthrough(&self, from: &str) -> Held {
        let mut tcp = connect(self.east.mesh, from).await;
        let source = tcp.local_addr().unwrap();
        let hello = hello(Some(host("pass").as_bytes()));
        tcp.write_all(&hello).await.unwrap();
        let mut echoed = vec![0; hello.len()];
        within("the hello", tcp.read_exact(&mut echoed))
            .await
            .unwrap();
        echo("passthrough", (source, tcp))
    }

    async fn dial(
        &self,
        who: &Identity,
        from: &str,
        name: &str,
        alpn: &[&[u8]],
    ) -> (SocketAddr, impl Bidirectional + use<>) {
        let tcp = connect(self.east.mesh, from).await;
        let source = tcp.local_addr().unwrap();
        let sni = host(name);
        let dialled = who.dial_over(tcp, &sni, alpn);
        (source, within("a handshake", dialled).await.unwrap())
    }
}

fn echo(what: &'static str, (source, stream): (SocketAddr, impl Bidirectional + 'static)) -> Held {
    Held {
        what,
        source,
        on: On::Echo(Box::new(stream)),
    }
}

async fn connect(to: SocketAddr, from: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

async fn head_of(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("a head", stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// Agrees to any upgrade, and sends back what comes.
async fn websocket(mut tcp: TcpStream) {
    head_of(&mut tcp).await;
    let agreed =
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    tcp.write_all(agreed).await.ok();
    let (mut read, mut write) = tcp.split();
    tokio::io::copy(&mut read, &mut write).await.ok();
}

/// The line that says why a connection ended; of an upgrade, its request's.
async fn line_of(gateway: &Gateway, held: &Held) -> Value {
    let source = held.source.to_string();
    let is_request = held.what == "websocket";
    gateway
        .log(|line| line["src.addr"] == *source && (line["kind"] == "request") == is_request)
        .await
}

/// What a change is expected to say.
struct Says<'a> {
    verdict: &'a str,
    rule: Option<&'a str>,
}

/// Those of `concerned` end, saying why; those of `others` go on.
async fn holds(gateway: &Gateway, concerned: &mut [Held], others: &mut [Held], says: &Says<'_>) {
    for one in concerned {
        one.ends().await;
        let line = line_of(gateway, one).await;
        assert_eq!(line["verdict"], says.verdict, "{}: {line}", one.what);
        if let Some(rule) = says.rule {
            let told = line["policy.rule"].as_str().unwrap_or_default();
            assert!(told.contains(rule), "{}: {line}", one.what);
        }
        assert!(line["error"].is_string(), "{}: {line}", one.what);
    }
    for one in others {
        one.goes_on().await;
    }
}

fn split(held: Vec<Held>, concerned: &[&str]) -> (Vec<Held>, Vec<Held>) {
    held.into_iter()
        .partition(|one| concerned.contains(&one.what))
}

/// A new name for a listener takes no right away: sessions, streams, bytes and upgrades go on, and
/// are still judged by the rules of the listener.
#[tokio::test]
async fn what_is_open_on_a_listener_that_is_renamed_goes_on_until_a_rule_says_otherwise() {
    let mut world = World::new().await;
    let gateway = world.east.start().await;
    let west = world.west.issue(&world.east, "ns/shop/sa/cart");
    let north = world.north.issue(&world.east, "ns/shop/sa/cart");
    let mut held = world.open(&west.identity, "127.0.0.1").await;
    let mut others = world.open(&north.identity, "127.0.0.2").await;
    let mesh = world.east.mesh;
    for name in ["outside", "border"] {
        let before = if name == "outside" { "mesh" } else { "outside" };
        world.east.unlisten(before);
        world.east.relisten(name, mesh, "role: mesh");
        world.east.write_gateway();
        eventually("the new name", async || {
            let one = world.open_passthrough("127.0.0.3").await;
            let source = one.source;
            drop(one);
            let line = gateway.connection(source).await;
            (line["listener"] == name).then_some(())
        })
        .await;
        for one in held.iter_mut().chain(&mut others) {
            one.goes_on().await;
        }
    }
    world
        .east
        .relisten("border", mesh, "role: mesh, sources: ['127.0.0.2/31']");
    world.east.write_gateway();
    let says = Says {
        verdict: "no-longer-allowed",
        rule: None,
    };
    holds(&gateway, &mut held, &mut others, &says).await;
    drop(others);
    gateway.finish().await;
}

const TERMINATED: [&str; 4] = ["bytes", "h1", "h2", "websocket"];

#[tokio::test]
async fn a_policy_that_no_longer_lets_in_ends_what_it_let_in() {
    let world = World::new().await;
    let cart = world.west.issue(&world.east, "ns/shop/sa/cart").identity;
    let pay = world.west.issue(&world.east, "ns/shop/sa/pay").identity;
    let gateway = world.east.start().await;
    // A deny rule is added.
    let mut concerned = world.open(&cart, "127.0.0.2").await;
    let mut others = world.open(&pay, "127.0.0.3").await;
    let allow = format!("[{{ from: [{EVERYBODY}] }}]");
    for name in KINDS {
        let deny = "[{ from: ['spiffe://west.example/ns/shop/sa/cart'] }]";
        world.route(name, &allow, deny, "['*']");
    }
    let sources = "[{ sources: ['127.0.0.0/8'] }]";
    world.passthrough(sources, "[{ sources: ['127.0.0.2/32'] }]", "['*']");
    let says = Says {
        verdict: "no-longer-allowed",
        // The deny list's line in each document.
        rule: Some(".yaml:9"),
    };
    holds(&gateway, &mut concerned, &mut others, &says).await;
    // An allow rule is taken away.
    let mut concerned = others;
    let north = world.north.issue(&world.east, "ns/shop/sa/pay").identity;
    let mut others = world.open(&north, "127.0.0.4").await;
    for name in KINDS {
        world.route(
            name,
            "[{ from: ['spiffe://north.example/*'] }]",
            "[]",
            "['*']",
        );
    }
    world.passthrough("[{ sources: ['127.0.0.4/32'] }]", "[]", "['*']");
    let says = Says {
        verdict: "no-longer-allowed",
        rule: Some(".yaml:10"),
    };
    holds(&gateway, &mut concerned, &mut others, &says).await;
    gateway.finish().await;
}

/// What a workload of west has open, as far as its TLS ends here; and the rest, all that one of north
/// has open included.
async fn west_and_north() -> (World, Gateway, Vec<Held>, Vec<Held>) {
    let world = World::new().await;
    let cart = world.west.issue(&world.east, "ns/shop/sa/cart").identity;
    let north = world.north.issue(&world.east, "ns/shop/sa/cart").identity;
    let gateway = world.east.start().await;
    let held = world.open(&cart, "127.0.0.2").await;
    let (concerned, mut others) = split(held, &TERMINATED);
    others.extend(world.open(&north, "127.0.0.3").await);
    (world, gateway, concerned, others)
}

#[tokio::test]
async fn an_export_that_is_taken_back_ends_its_connections_alone() {
    let (world, gateway, mut concerned, mut others) = west_and_north().await;
    let allow = format!("[{{ from: [{EVERYBODY}] }}]");
    for name in KINDS {
        world.route(name, &allow, "[]", "[north]");
    }
    let says = Says {
        verdict: "no-longer-served",
        rule: Some("shop-"),
    };
    holds(&gateway, &mut concerned, &mut others, &says).await;
    // Nobody is left to reach what is relayed as it is.
    let (mut passed, mut others) = split(others, &["passthrough"]);
    world.passthrough("[{ sources: ['127.0.0.0/8'] }]", "[]", "[]");
    holds(&gateway, &mut passed, &mut others, &says).await;
    // A route that is removed takes its connections with it.
    let (mut bytes, mut others) = split(others, &["bytes"]);
    std::fs::remove_file(world.east.config().join("shop-bytes.yaml")).unwrap();
    let says = Says {
        verdict: "no-longer-served",
        rule: None,
    };
    holds(&gateway, &mut bytes, &mut others, &says).await;
    gateway.finish().await;
}

#[tokio::test]
async fn what_a_trust_domain_is_not_believed_any_more_ends() {
    let (world, gateway, mut concerned, mut others) = west_and_north().await;
    // Another anchor of the same name.
    world.west.write_other_bundle(&world.east);
    let says = Says {
        verdict: "anchor-removed",
        rule: Some("unknown-issuer"),
    };
    holds(&gateway, &mut concerned, &mut others, &says).await;
    gateway.finish().await;
}

/// Runs `change` after the connections of both were opened: those of the first end.
async fn ends_the_first(
    world: &World,
    gateway: &Gateway,
    (first, second): (&Identity, &Identity),
    says: &Says<'_>,
    change: impl FnOnce(),
) {
    let held = world.open(first, "127.0.0.2").await;
    let (mut concerned, mut others) = split(held, &TERMINATED);
    others.extend(world.open(second, "127.0.0.3").await);
    change();
    holds(gateway, &mut concerned, &mut others, says).await;
}

#[tokio::test]
async fn a_revoked_leaf_a_revoked_issuer_and_a_denied_id_end_theirs_alone() {
    let world = World::new().await;
    let leaf = world.west.issue(&world.east, "ns/shop/sa/leaf");
    let deep = world.west.issue_deep(&world.east, "ns/shop/sa/deep");
    let denied = world.west.issue(&world.east, "ns/shop/sa/denied");
    let other = world.west.issue(&world.east, "ns/shop/sa/other");
    let gateway = world.east.start().await;
    let crls = world.east.config().join("crls");
    let on_crl = Says {
        verdict: "certificate-revoked",
        rule: Some("revoked"),
    };
    let pair = |one: &Issued| (one.identity.clone(), other.identity.clone());
    let (first, second) = pair(&leaf);
    ends_the_first(&world, &gateway, (&first, &second), &on_crl, || {
        let crl = world.west.crl(1, &[leaf.serial], NEVER);
        world.west.write_crl(&crls, &crl);
    })
    .await;
    let (first, second) = pair(&deep);
    ends_the_first(&world, &gateway, (&first, &second), &on_crl, || {
        let crl = world.west.crl(2, &[leaf.serial, INTERMEDIATE], NEVER);
        world.west.write_crl(&crls, &crl);
    })
    .await;
    let (first, second) = pair(&denied);
    let on_list = Says {
        verdict: "identity-denied",
        rule: Some("denied:2"),
    };
    ends_the_first(&world, &gateway, (&first, &second), &on_list, || {
        let text = "# stolen\nspiffe://west.example/ns/shop/sa/denied\n";
        world.east.write("denied", text);
    })
    .await;
    gateway.finish().await;
}

/// An mTLS endpoint that sends back what it gets.
async fn mtls_echo(identity: &Identity) -> Service {
    let identity = identity.clone();
    Service::tcp(move |tcp| {
        let identity = identity.clone();
        async move {
            if let Ok(stream) = identity.accept(tcp, &[]).await {
                let (mut read, mut write) = tokio::io::split(stream);
                tokio::io::copy(&mut read, &mut write).await.ok();
            }
        }
    })
    .await
}

/// East's gateway calls endpoints that answer with mTLS.
struct Outwards {
    east: Cluster,
    west: Domain,
    gateway: Gateway,
    listeners: [SocketAddr; 2],
    relays: [Service; 2],
    pooled: [Service; 2],
    serials: [[u8; 2]; 2],
}

const ENDPOINTS: [&str; 2] = ["one", "two"];

impl Outwards {
    async fn new() -> Self {
        let west = Domain::new("west.example");
        let mut east = Cluster::new("east");
        west.write_bundle(&east);
        std::fs::create_dir(east.config().join("crls")).unwrap();
        std::fs::write(east.config().join("denied"), "").unwrap();
        east.trusting("crls: crls/, denied: denied");
        // One pool: with several, which of them a call came to decides how many connections end.
        east.set("workers", "1");
        let issued = ENDPOINTS.map(|name| west.issue(&east, &format!("ns/shop/sa/{name}")));
        let identities = [&issued[0].identity, &issued[1].identity];
        let relays = [
            mtls_echo(identities[0]).await,
            mtls_echo(identities[1]).await,
        ];
        let pooled = [
            Service::mtls("one", identities[0]).await,
            Service::mtls("two", identities[1]).await,
        ];
        let listeners = ENDPOINTS.map(|name| {
            east.listen(
                &format!("db-{name}"),
                &format!("role: workloads, route: shop/db-{name}"),
            )
        });
        let serials = [issued[0].serial, issued[1].serial];
        for nth in [0, 1] {
            write_outwards(
                &east,
                nth,
                ENDPOINTS[nth],
                relays[nth].address,
                pooled[nth].address,
            );
        }
        let gateway = east.start().await;
        Self {
            east,
            west,
            gateway,
            listeners,
            relays,
            pooled,
            serials,
        }
    }

    /// A relay through the gateway to endpoint `nth`, and an idle connection in its pool.
    async fn open(&self, nth: usize) -> Held {
        let tcp = TcpStream::connect(self.listeners[nth]).await.unwrap();
        let mut held = echo("relay", (tcp.local_addr().unwrap(), tcp));
        held.goes_on().await;
        self.call(nth).await;
        held
    }

    async fn call(&self, nth: usize) {
        let name = ENDPOINTS[nth];
        let reply = get(self.east.apps, &host(&format!("api-{name}")), "/").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, name));
    }

    /// The relay to `one` ends with `verdict`, and so does what was pooled to it.
    async fn ends_one(&self, one: &mut Held, two: &mut Held, verdict: &str, pooled: f64) {
        one.ends().await;
        let line = line_of(&self.gateway, one).await;
        assert_eq!(line["verdict"], verdict, "{line}");
        assert!(line["error"].is_string(), "{line}");
        let name = "zeugma_pooled_connections_ended_total";
        let labels = [("reason", "upstream-refused")];
        (self.gateway).metric_becomes(name, &labels, pooled).await;
        two.goes_on().await;
        self.call(1).await;
    }
}

fn write_outwards(east: &Cluster, nth: usize, id: &str, relay: SocketAddr, pooled: SocketAddr) {
    let name = ENDPOINTS[nth];
    let id = format!("spiffe://west.example/ns/shop/sa/{id}");
    let db = format!(
        "
        protocol: tcp
        port: 5432
        backends: [{{ endpoints: ['{relay}'], tls: mesh, spiffeIDs: ['{id}'] }}]
        allow: [{{ listeners: [db-{name}] }}]"
    );
    east.route(&format!("shop/db-{name}"), &db);
    let api = format!(
        "
        protocol: http
        backends: [{{ endpoints: ['{pooled}'], tls: mesh, spiffeIDs: ['{id}'] }}]
        allow: [{{ listeners: [apps] }}]"
    );
    east.route(&format!("shop/api-{name}"), &api);
}

#[tokio::test]
async fn an_endpoint_that_is_revoked_ends_its_relay_and_leaves_the_pool() {
    let outwards = Outwards::new().await;
    let (mut one, mut two) = (outwards.open(0).await, outwards.open(1).await);
    let crl = outwards.west.crl(1, &[outwards.serials[0]], NEVER);
    let crls = outwards.east.config().join("crls");
    outwards.west.write_crl(&crls, &crl);
    // New credentials: no pooled connection of older ones is used again, whoever answers.
    outwards
        .ends_one(&mut one, &mut two, "upstream-refused", 2.0)
        .await;
    // Refused in the handshake too, by its rule.
    let reply = get(outwards.east.apps, &host("api-one"), "/").await;
    assert_eq!(reply.status, 503);
    let line = outwards
        .gateway
        .log(|line| line["policy.rule"] == "revoked" && line["kind"] == "request")
        .await;
    assert_eq!(line["verdict"], "connect-failed", "{line}");
    outwards.gateway.finish().await;
}

#[tokio::test]
async fn an_endpoint_that_is_denied_or_is_expected_to_be_another_ends_and_one_that_goes_drains() {
    let outwards = Outwards::new().await;
    let (mut one, mut two) = (outwards.open(0).await, outwards.open(1).await);
    // Another identity is expected of the same address: of both its route's connections.
    let (relay, pooled) = (outwards.relays[0].address, outwards.pooled[0].address);
    write_outwards(&outwards.east, 0, "other", relay, pooled);
    outwards
        .ends_one(&mut one, &mut two, "upstream-refused", 1.0)
        .await;
    outwards
        .gateway
        .message("ZG0706 open connections rechecked")
        .await;
    write_outwards(&outwards.east, 0, "one", relay, pooled);
    outwards
        .gateway
        .message("ZG0120 configuration applied")
        .await;
    let mut one = eventually("one is called again", async || {
        let reply = get(outwards.east.apps, &host("api-one"), "/").await;
        if reply.status != 200 {
            return None;
        }
        Some(outwards.open(0).await)
    })
    .await;
    let list = "spiffe://west.example/ns/shop/sa/one\n";
    outwards.east.write("denied", list);
    outwards
        .ends_one(&mut one, &mut two, "upstream-refused", 3.0)
        .await;
    // An endpoint that is only taken away: no new connection, and the open one drains.
    let nobody: SocketAddr = "127.0.0.1:1".parse().unwrap();
    write_outwards(&outwards.east, 1, "two", nobody, nobody);
    let name = "zeugma_pooled_connections_ended_total";
    let labels = [("reason", "upstream-refused")];
    (outwards.gateway).metric_becomes(name, &labels, 4.0).await;
    two.goes_on().await;
    outwards.gateway.finish().await;
}
