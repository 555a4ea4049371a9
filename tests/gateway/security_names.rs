//! Rules that ask for the server name of TLS.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::control_explain::{explain, first_line, json, text};
use crate::mesh::hello::hello;
use crate::mesh::{Body, Cluster, Identity, Service, empty, frames, h1, h2, send, within};

/// RFC 8446 §5.1, §6: of a record that holds a handshake message, and an alert.
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

/// East, with a route of two hosts for each way that TLS may come: for HTTP inside it, for bytes inside it,
/// and passed through.
struct World {
    east: Cluster,
    cart: Identity,
    web: Service,
    bytes: Service,
}

impl World {
    async fn new() -> Self {
        let (mut west, east) = (Cluster::new("west"), Cluster::new("east"));
        east.meet(&west);
        Self {
            east,
            cart: west.identity("ns/shop/sa/cart"),
            web: Service::handling(|request: Request<Incoming>| async move {
                // Frame by frame, as they come.
                let body = request.into_body().map_err(std::io::Error::other);
                Response::new(body.boxed())
            })
            .await,
            bytes: Service::echo().await,
        }
    }

    /// Gives each route this policy, in which `X` is the domain of its hosts.
    fn policy(&self, policy: &str) {
        for (name, spec, service, tls) in [
            ("web", "protocol: http", &self.web, "none"),
            (
                "bytes",
                "port: 5432\ninbound: terminate",
                &self.bytes,
                "none",
            ),
            (
                "pass",
                "port: 443\ninbound: passthrough",
                &self.bytes,
                "workload",
            ),
        ] {
            let spec = format!(
                "{spec}
hosts: [one.{name}.example, two.{name}.example]
backends: [{{ endpoints: ['{}'], tls: {tls} }}]
export: {{ to: ['*'] }}
{policy}",
                service.address
            );
            let spec = spec.replace('X', &format!("{name}.example"));
            self.east.route(
                &format!("shop/{name}"),
                &format!("\n{spec}").replace('\n', "\n            "),
            );
        }
    }

    /// Whether each way lets in who asks for the host `nth` of a route, `one` or `two`.
    async fn carries(&self, nth: &str) -> [bool; 3] {
        [
            self.carries_web(nth).await,
            self.carries_bytes(nth).await,
            self.carries_passed(&format!("{nth}.pass.example")).await,
        ]
    }

    async fn carries_web(&self, nth: &str) -> bool {
        let host = format!("{nth}.web.example");
        let dialled = self.cart.dial(self.east.mesh, &host, &[b"http/1.1"]);
        let mut sender = h1(within("a handshake", dialled).await.unwrap()).await;
        let request = Request::get("/").header("host", &host);
        let sent = sender.send_request(request.body(empty()).unwrap());
        match within("an answer", sent).await.unwrap().status().as_u16() {
            200 => true,
            403 => false,
            other => panic!("{other}"),
        }
    }

    async fn carries_bytes(&self, nth: &str) -> bool {
        let host = format!("{nth}.bytes.example");
        let dialled = self.cart.dial(self.east.mesh, &host, &[]);
        let mut stream = within("a handshake", dialled).await.unwrap();
        let said = stream.write_all(b"ping").await;
        let mut echoed = [0; 4];
        let read = within("an echo", stream.read_exact(&mut echoed)).await;
        said.is_ok() && read.is_ok()
    }

    async fn carries_passed(&self, sni: &str) -> bool {
        let mut tcp = TcpStream::connect(self.east.mesh).await.unwrap();
        tcp.write_all(&hello(Some(sni.as_bytes()))).await.unwrap();
        match within("an answer", tcp.read_u8()).await.unwrap() {
            HANDSHAKE => true,
            ALERT => false,
            other => panic!("{other}"),
        }
    }

    /// Whether a request without TLS is answered.
    async fn answers_plaintext(&self) -> bool {
        let request = Request::get("/").header("host", "one.web.example");
        let answer = send(self.east.apps, request.body(empty()).unwrap()).await;
        answer.status == 200
    }
}

#[tokio::test]
async fn each_field_of_a_server_name_rule_alone_decides_who_is_carried() {
    let anybody = "allow: [{ sources: ['127.0.0.0/8'] }]";
    for (policy, [one, two, plaintext]) in [
        (anybody.to_owned(), [true, true, true]),
        ("allow: [{ sni: [one.X] }]".to_owned(), [true, false, false]),
        ("allow: [{ sni: ['*.X'] }]".to_owned(), [true, true, false]),
        // Nobody comes here by the domain itself.
        ("allow: [{ sni: [X] }]".to_owned(), [false, false, false]),
        (
            format!("{anybody}\ndeny: [{{ sni: [one.X] }}]"),
            [false, true, true],
        ),
        (
            format!("{anybody}\ndeny: [{{ sni: ['*.X'] }}]"),
            [false, false, true],
        ),
    ] {
        let world = World::new().await;
        world.policy(&policy);
        let gateway = world.east.start().await;
        assert_eq!(world.carries("one").await, [one; 3], "{policy}");
        assert_eq!(world.carries("two").await, [two; 3], "{policy}");
        assert_eq!(world.answers_plaintext().await, plaintext, "{policy}");
        // However it is written, it is the same host.
        for sni in [
            "ONE.pass.EXAMPLE",
            "one.pass.example.",
            "outbound_.443_._.one.pass.example",
        ] {
            assert_eq!(world.carries_passed(sni).await, one, "{sni}: {policy}");
        }
        gateway.finish().await;
    }
}

/// A wildcard takes every name below it, in whichever form, and endpoints behind TLS that is passed through
/// may know more of Istio's forms than we.
#[tokio::test]
async fn a_denied_host_below_a_wildcard_is_denied_by_every_name_that_may_mean_it() {
    let world = World::new().await;
    world.east.route(
        "shop/pass",
        &format!(
            "
            port: 443
            inbound: passthrough
            hosts: ['*.pass.example']
            backends: [{{ endpoints: ['{}'], tls: workload }}]
            export: {{ to: ['*'] }}
            allow: [{{ sources: ['127.0.0.0/8'] }}]
            deny: [{{ sni: [one.pass.example] }}]",
            world.bytes.address
        ),
    );
    let gateway = world.east.start().await;
    for form in [
        "H",
        "H.",
        "outbound_.443_._.H",
        "OUTBOUND_.443_._.H",
        "outbounD_.443_._.H.",
        "outbound_.443_.v1_.H",
        "OUTBOUND_.443_.V1_.H",
        "outbound_.0443_._.H",
    ] {
        for host in ["one.pass.example", "ONE.pass.Example"] {
            let sni = form.replace('H', host);
            assert!(!world.carries_passed(&sni).await, "{sni}");
            let line = gateway.log(|line| line["sni"] == *sni).await;
            assert_eq!(line["verdict"], "denied", "{line}");
        }
        for host in [
            "two.pass.example",
            "xone.pass.example",
            "one.one.pass.example",
        ] {
            let sni = form.replace('H', host);
            assert!(world.carries_passed(&sni).await, "{sni}");
        }
    }
    gateway.finish().await;
}

/// The name is the connection's: among the hosts of one route, what a request names is another matter.
#[tokio::test]
async fn a_request_for_another_host_of_the_route_goes_by_the_name_of_its_connection() {
    let world = World::new().await;
    world.policy("allow: [{ sni: [one.X] }]");
    let gateway = world.east.start().await;
    for (sni, status) in [("one", 200), ("two", 403)] {
        let sni = format!("{sni}.web.example");
        let dialled = world.cart.dial(world.east.mesh, &sni, &[b"h2"]);
        let mut connection = h2(within("a handshake", dialled).await.unwrap()).await;
        for host in ["one", "two"] {
            let request = Request::get(format!("http://{host}.web.example/"));
            let sent = connection.send_request(request.body(empty()).unwrap());
            let answer = within("an answer", sent).await.unwrap();
            assert_eq!(answer.status(), status, "{host} by {sni}");
        }
    }
    gateway.finish().await;
}

trait Bidirectional: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bidirectional for T {}

/// Something that is carried, whose bytes come back.
enum Open {
    Bytes(Box<dyn Bidirectional>),
    Request {
        to: mpsc::Sender<Bytes>,
        from: Incoming,
        _connection: hyper::client::conn::http2::SendRequest<Body>,
    },
}

impl Open {
    async fn all(world: &World, nth: &str) -> [Self; 3] {
        let dial = async |name: &str, alpn: &[&[u8]]| {
            let host = format!("{nth}.{name}.example");
            let dialled = world.cart.dial(world.east.mesh, &host, alpn);
            within("a handshake", dialled).await.unwrap()
        };
        let mut connection = h2(dial("web", &[b"h2"]).await).await;
        let (to, body) = frames();
        let request = Request::post(format!("http://{nth}.web.example/")).body(body);
        let answer = within("an answer", connection.send_request(request.unwrap())).await;
        let request = Self::Request {
            to,
            from: answer.unwrap().into_body(),
            _connection: connection,
        };
        let mut passed = TcpStream::connect(world.east.mesh).await.unwrap();
        let hello = hello(Some(format!("{nth}.pass.example").as_bytes()));
        passed.write_all(&hello).await.unwrap();
        let mut echoed = vec![0; hello.len()];
        within("the hello", passed.read_exact(&mut echoed))
            .await
            .unwrap();
        let bytes = Self::Bytes(Box::new(dial("bytes", &[]).await));
        let mut all = [request, bytes, Self::Bytes(Box::new(passed))];
        for one in &mut all {
            assert!(one.moves().await);
        }
        all
    }

    /// Whether what is sent comes back; it ends instead where it was cut off.
    async fn moves(&mut self) -> bool {
        match self {
            Self::Bytes(stream) => {
                let mut echoed = [0; 4];
                stream.write_all(b"ping").await.is_ok()
                    && within("an echo", stream.read_exact(&mut echoed))
                        .await
                        .is_ok()
            }
            Self::Request { to, from, .. } => {
                to.send(Bytes::from_static(b"ping")).await.is_ok()
                    && matches!(within("a frame", from.frame()).await, Some(Ok(_)))
            }
        }
    }

    async fn ends(&mut self) {
        match self {
            Self::Bytes(stream) => {
                let mut rest = Vec::new();
                // Where the TLS is the caller's own, it can only be closed.
                drop(within("its end", stream.read_to_end(&mut rest)).await);
            }
            Self::Request { from, .. } => {
                let next = within("its end", from.frame()).await;
                assert!(next.is_none_or(|frame| frame.is_err()));
            }
        }
    }
}

#[tokio::test]
async fn a_new_rule_by_server_name_ends_what_asked_for_it_and_nothing_else() {
    let world = World::new().await;
    let anybody = "allow: [{ sources: ['127.0.0.0/8'] }]";
    world.policy(anybody);
    let gateway = world.east.start().await;
    let (mut one, mut two) = (
        Open::all(&world, "one").await,
        Open::all(&world, "two").await,
    );
    world.policy(&format!("{anybody}\ndeny: [{{ sni: [one.X] }}]"));
    for open in &mut one {
        open.ends().await;
    }
    for (name, kind) in [
        ("web", "request"),
        ("bytes", "connection"),
        ("pass", "connection"),
    ] {
        let line = gateway
            .log(|line| {
                line["kind"] == kind
                    && line["dst.service"] == format!("shop/{name}")
                    && line["verdict"] == "no-longer-allowed"
            })
            .await;
        assert_eq!(line["sni"], format!("one.{name}.example"), "{line}");
    }
    for open in &mut two {
        assert!(open.moves().await);
    }
    // What nothing lets in any more ends too.
    world.policy("allow: [{ sni: [one.X] }]");
    for open in &mut two {
        open.ends().await;
    }
    gateway.finish().await;
}

#[tokio::test]
async fn a_refusal_is_explained_by_the_server_name_that_does_not_match() {
    let world = World::new().await;
    world.policy("allow: [{ sni: [one.X] }]");
    let gateway = world.east.start().await;
    let told = |host: &'static str| {
        let path = format!("/api/v1/explain?host={host}.pass.example&listener=mesh");
        let gateway = &gateway;
        async move { gateway.admin_json(&path).await["explanation"]["policy"].clone() }
    };
    assert_eq!(told("one").await["verdict"], "allow");
    let policy = told("two").await;
    assert_eq!(policy["nearest_failed"][0], "sni", "{policy}");
    assert_eq!(policy["nearest"]["sni"][0], "one.pass.example", "{policy}");
    gateway.finish().await;
}

/// By the connection's name, where it is not the host: as the gateway does for each way that TLS may come.
#[tokio::test]
async fn what_the_name_of_its_connection_denies_is_explained_with_that_name() {
    let world = World::new().await;
    world.policy("allow: [{ sources: ['127.0.0.0/8'] }]\ndeny: [{ sni: [two.X] }]");
    let gateway = world.east.start().await;
    assert_eq!(world.carries("one").await, [true; 3]);
    assert_eq!(world.carries("two").await, [false; 3]);
    let cart = "spiffe://west.example/ns/shop/sa/cart";
    for name in ["web", "bytes", "pass"] {
        let (host, other) = (format!("one.{name}.example"), format!("two.{name}.example"));
        let asked = ["--listener", "mesh", "--from", cart, &host];
        for more in [&[][..], &["--offline"]] {
            let without = json(&world.east, &[&asked[..], more].concat());
            assert_eq!(
                (&without["carried"], &without["sni"]),
                (&json!(true), &json!(host))
            );
            let named = [&asked[..], &["--sni", &other], more].concat();
            let told = json(&world.east, &named);
            assert_eq!(
                (&told["reason"], &told["sni"]),
                (&json!("denied"), &json!(other))
            );
            let rule = &told["policy"]["rule"];
            assert_eq!(rule["sni"][0], other, "{rule}");
            let written = rule["written"].as_str().unwrap();
            assert!(written.contains(&format!("shop-{name}.yaml:")), "{written}");
            let text = text(&explain(&world.east, &named));
            assert!(
                first_line(&text).ends_with(&format!(", the one at {written}")),
                "{text}"
            );
        }
    }
    // A request for the host in a connection for the other is denied too, and the other way round it is not.
    let host = "one.web.example";
    let dialled = world
        .cart
        .dial(world.east.mesh, "two.web.example", &[b"http/1.1"]);
    let mut sender = h1(within("a handshake", dialled).await.unwrap()).await;
    let request = Request::get("/").header("host", host).body(empty());
    let answer = within("an answer", sender.send_request(request.unwrap())).await;
    assert_eq!(answer.unwrap().status().as_u16(), 403);
    // What no host is in.
    let odd = ["--listener", "mesh", "--sni", "two.web.example:443", host];
    let told = json(&world.east, &odd);
    assert_eq!(told["reason"], "sni-malformed");
    let to_do = told["to_do"][0].as_str().unwrap();
    assert!(
        to_do.starts_with("the SNI `two.web.example:443` is no host: "),
        "{to_do}"
    );
    assert!(!world.carries_passed("two.web.example:443").await);
    let unknown = json(
        &world.east,
        &["--listener", "mesh", "--sni", "onn.web.example", host],
    );
    assert_eq!(unknown["reason"], "sni-unknown");
    let to_do = unknown["to_do"][0].as_str().unwrap();
    assert_eq!(to_do, "did you mean `one.web.example`?");
    gateway.finish().await;
}
