//! `zeugma xds serve`: who gets what, and what it tells of itself.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use rustix::process::Signal;

use crate::mesh::{Cluster, DEADLINE, Gateway, eventually};

const ADS: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CLUSTERS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

/// The gateway's own MeshPeer, as another cluster's documents have it: who may be this gateway.
const EAST: &str = "{ cluster: east, locality: eu/eu-1, gateways: ['127.0.0.1:1'], spiffeIDs: ['spiffe://east.example/zeugma/gateway'] }";
const ORDERS: &str = "{ protocol: http, backends: [{ endpoints: ['127.0.0.1:8080'] }], allow: [{ listeners: [apps] }] }";

/// A running control plane.
pub(crate) struct Served {
    pub(crate) process: Gateway,
    pub(crate) listens: SocketAddr,
    admin: SocketAddr,
}

impl Served {
    pub(crate) async fn start(config: &Path, more: &[&str]) -> Self {
        Self::of(command(config, more)).await
    }

    async fn of(command: Command) -> Self {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let process = Gateway::spawn("xds", command, [nowhere; 3]);
        let line = process.message("ZG0505").await;
        let at = |name: &str| {
            let mut words = line.split_whitespace();
            let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.unwrap().trim_matches('"').parse().unwrap()
        };
        Self {
            listens: at("address"),
            admin: at("admin"),
            process,
        }
    }

    async fn page(&self, path: &str) -> (u16, String) {
        let reply = crate::mesh::get(self.admin, "localhost", path).await;
        (reply.status, reply.text())
    }

    pub(crate) async fn nodes(&self) -> serde_json::Value {
        serde_json::from_str(&self.page("/api/v1/nodes").await.1).unwrap()
    }
}

fn command(config: &Path, more: &[&str]) -> Command {
    command_at(["127.0.0.1:0"; 2], config, more)
}

fn command_at([listen, admin]: [&str; 2], config: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
    command.args(["xds", "serve", "--listen", listen, "--admin", admin]);
    command
        .arg("--config")
        .arg(config)
        .args(more)
        .env_remove("ZEUGMA_LOG");
    command
}

/// The same, where it may have so many files open.
fn command_with_files(files: usize, config: &Path) -> Command {
    let plain = command(config, &["--plaintext"]);
    let mut limited = Command::new("prlimit");
    limited
        .arg(format!("--nofile={files}"))
        .arg(plain.get_program());
    limited.args(plain.get_args()).env_remove("ZEUGMA_LOG");
    limited
}

pub(crate) fn mtls(cluster: &Cluster) -> Vec<String> {
    let svid = cluster.svid();
    [
        ("--certificate", &svid.certificate),
        ("--key", &svid.key),
        ("--bundles", &svid.bundles),
    ]
    .into_iter()
    .flat_map(|(name, path)| [name.to_owned(), path.display().to_string()])
    .collect()
}

/// A delta stream, read and written by hand: what a node has is another test's business.
struct Stream {
    body: h2::RecvStream,
    ask: h2::SendStream<Bytes>,
    read: BytesMut,
}

fn text(number: u8, text: &str, to: &mut Vec<u8>) {
    assert!(text.len() < 128);
    to.extend([number << 3 | 2, u8::try_from(text.len()).unwrap()]);
    to.extend(text.as_bytes());
}

impl Stream {
    async fn open(send: &mut SendRequest<Bytes>, node: &str) -> Self {
        let request = Request::post(format!("http://xds{ADS}"));
        let request = request
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (response, ask) = send.send_request(request, false).unwrap();
        let mut this = Self {
            ask,
            body: response_of(response).await,
            read: BytesMut::new(),
        };
        let mut of_node = Vec::new();
        text(1, node, &mut of_node);
        let mut message = vec![1 << 3 | 2, u8::try_from(of_node.len()).unwrap()];
        message.extend(of_node);
        text(2, CLUSTERS, &mut message);
        this.send(&message);
        this
    }

    fn send(&mut self, message: &[u8]) {
        let mut framed = BytesMut::new();
        framed.put_u8(0);
        framed.put_u32(u32::try_from(message.len()).unwrap());
        framed.put_slice(message);
        self.ask.send_data(framed.freeze(), false).unwrap();
    }

    /// The next response; `Err` with gRPC's status where it ends.
    async fn next(&mut self) -> Result<Bytes, String> {
        loop {
            if let Some(prefix) = self.read.get(1..5) {
                let len = u32::from_be_bytes(prefix.try_into().unwrap()) as usize;
                if self.read.len() >= 5 + len {
                    return Ok(self.read.split_to(5 + len).freeze().slice(5..));
                }
            }
            let data = tokio::time::timeout(DEADLINE, self.body.data())
                .await
                .unwrap();
            match data {
                Some(Ok(data)) => {
                    self.body
                        .flow_control()
                        .release_capacity(data.len())
                        .unwrap();
                    self.read.extend_from_slice(&data);
                }
                Some(Err(error)) => return Err(error.to_string()),
                None => {
                    let trailers = self.body.trailers().await.unwrap().unwrap();
                    return Err(trailers["grpc-status"].to_str().unwrap().to_owned());
                }
            }
        }
    }

    fn reject(&mut self, response: &[u8], why: &str) {
        // `nonce` is field 5 of a response, here of one digit.
        let at = response
            .windows(3)
            .position(|part| part[..2] == [5 << 3 | 2, 1]);
        let nonce = char::from(response[at.unwrap() + 2]).to_string();
        let mut status = Vec::new();
        text(2, why, &mut status);
        let mut message = Vec::new();
        text(2, CLUSTERS, &mut message);
        text(6, &nonce, &mut message);
        message.extend([7 << 3 | 2, u8::try_from(status.len()).unwrap()]);
        message.extend(status);
        self.send(&message);
    }
}

async fn response_of(response: h2::client::ResponseFuture) -> h2::RecvStream {
    tokio::time::timeout(DEADLINE, response)
        .await
        .unwrap()
        .unwrap()
        .into_body()
}

async fn h2_over<S>(stream: S) -> SendRequest<Bytes>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (send, connection) = h2::client::handshake(stream).await.unwrap();
    drop(tokio::spawn(connection));
    send
}

fn has(response: &[u8], name: &str) -> bool {
    response
        .windows(name.len())
        .any(|part| part == name.as_bytes())
}

#[tokio::test]
async fn a_node_gets_its_gateways_configuration_by_its_svid_and_hears_of_changes() {
    let mut east = Cluster::new("east");
    east.write_gateway();
    east.peer("east", EAST);
    east.route("shop/orders", ORDERS);
    let more = mtls(&east);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let mut served = Served::start(&east.config(), &more).await;
    assert_eq!(served.page("/ready").await, (200, "ready\n".to_owned()));

    let gateway = east.gateway_identity();
    let tls = gateway.dial(served.listens, "xds", &[b"h2"]).await.unwrap();
    let mut send = h2_over(tls).await;
    let mut stream = Stream::open(&mut send, "east-gw").await;
    let told = stream.next().await.unwrap();
    assert!(has(&told, "outbound|shop/orders:80"));
    // NACK, which is told with its reason.
    stream.reject(&told, "no such socket");
    let line = served.process.message("ZG0503").await;
    assert!(
        line.contains("no such socket") && line.contains("east"),
        "{line}"
    );
    let node = eventually("what the node did not take", async || {
        let node = served.nodes().await["nodes"][0].take();
        (node["types"][0]["rejected"]["detail"] == "no such socket").then_some(node)
    })
    .await;
    assert_eq!(node["caller"], east.gateway_id());

    east.route("shop/carts", ORDERS);
    let told = stream.next().await.unwrap();
    assert!(has(&told, "outbound|shop/carts:80") && !has(&told, "outbound|shop/orders:80"));
    served.process.message("ZG0120").await;

    // A document that is wrong changes nothing, and is named.
    east.route("shop/orders", "{ protocol: htp }");
    let line = served.process.message("ZG0508").await;
    assert!(line.contains("MeshRoute shop/orders (last-good)"), "{line}");
    eventually("its finding", async || {
        let (_, findings) = served.page("/api/v1/findings").await;
        findings.contains("htp").then_some(())
    })
    .await;

    // Who is nobody's gateway gets nothing, and is told nothing.
    let cart = east.identity("ns/shop/sa/cart");
    let tls = cart.dial(served.listens, "xds", &[b"h2"]).await.unwrap();
    let mut send = h2_over(tls).await;
    let mut stream = Stream::open(&mut send, "east-gw").await;
    // 7: permission denied.
    assert_eq!(stream.next().await.unwrap_err(), "7");
    let line = served.process.message("ZG0502").await;
    assert!(line.contains("/ns/shop/sa/cart"), "{line}");
    served.process.signal(Signal::TERM);
    served.process.ended().await;
}

#[tokio::test]
async fn whoever_shows_no_certificate_is_refused_and_certificates_are_read_again() {
    let east = Cluster::new("east");
    east.write_gateway();
    east.peer("east", EAST);
    east.route("shop/orders", ORDERS);
    let more = mtls(&east);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let served = Served::start(&east.config(), &more).await;
    let west = Cluster::new("west");
    west.trust(&east.trust_domain());
    let stranger = west.gateway_identity();
    // Of a trust domain that the server has no bundle of.
    let dialled = stranger.dial(served.listens, "xds", &[b"h2"]).await;
    let line = served.process.message("ZG0506").await;
    assert!(line.contains("west.example"), "{line}");
    drop(dialled);
    std::fs::write(east.svid().bundles.join("east.example.json"), "{").unwrap();
    let line = served.process.message("ZG0507").await;
    assert!(line.contains("east.example"), "{line}");
}

#[tokio::test]
async fn connections_that_say_nothing_keep_nobody_from_a_handshake() {
    let east = Cluster::new("east");
    east.write_gateway();
    east.peer("east", EAST);
    east.route("shop/orders", ORDERS);
    let more = mtls(&east);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let served = Served::start(&east.config(), &more).await;
    // Four times as many as there are handshakes at once.
    let mut silent = Vec::new();
    for _ in 0..256 {
        let tcp = tokio::net::TcpStream::connect(served.listens).await;
        silent.push(tcp.unwrap());
    }
    let gateway = east.gateway_identity();
    let tls = gateway.dial(served.listens, "xds", &[b"h2"]).await.unwrap();
    let mut stream = Stream::open(&mut h2_over(tls).await, "east-gw").await;
    assert!(stream.next().await.is_ok());
    let line = served.process.message("ZG0506").await;
    assert!(line.contains("nothing came in 10s"), "{line}");
}

#[tokio::test]
async fn what_is_wrong_at_the_start_is_said_and_exits() {
    let east = Cluster::new("east");
    east.write_gateway();
    let config = east.config();
    let ended = |mut command: Command| {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), text)
    };
    let of = |more: &[&str]| ended(command(&config, more));
    let more = ["--plaintext"];
    for (at, what) in [
        (
            ["0.0.0.0:0", "127.0.0.1:0"],
            "`--listen 0.0.0.0:0`: without TLS it serves on a loopback address alone",
        ),
        (
            ["127.0.0.1:0", "0.0.0.0:0"],
            "`--admin 0.0.0.0:0`: it is served on a loopback address alone",
        ),
    ] {
        let (code, text) = ended(command_at(at, &config, &more));
        assert!(text.contains(what), "{text}");
        assert_eq!(code, Some(64), "{text}");
    }
    let (code, text) = of(&[]);
    assert_eq!(code, Some(64), "{text}");
    let (code, text) = of(&["--plaintext", "--allow", "nobody"]);
    assert_eq!(code, Some(64), "{text}");
    std::fs::write(config.join("wrong.yaml"), "kind: Nothing\n").unwrap();
    std::fs::remove_file(config.join("gateway.yaml")).unwrap();
    let (code, text) = of(&["--plaintext"]);
    assert_eq!(code, Some(65), "{text}");
    assert!(text.contains("ZG0122"), "{text}");
}

#[tokio::test]
async fn a_control_plane_that_ends_lets_its_nodes_go_and_its_limits_hold() {
    let east = Cluster::new("east");
    east.write_gateway();
    east.route("shop/orders", ORDERS);
    let mut served = Served::start(&east.config(), &["--plaintext"]).await;
    let tcp = tokio::net::TcpStream::connect(served.listens)
        .await
        .unwrap();
    let mut send = h2_over(tcp).await;
    let mut stream = Stream::open(&mut send, "east-gw/replica-1").await;
    assert!(stream.next().await.is_ok());
    let mut other = Stream::open(&mut send, "east-gw").await;
    assert!(other.next().await.is_ok());
    let mut message = Vec::new();
    text(2, CLUSTERS, &mut message);
    message.extend([3 << 3 | 2, 0x88, 0x27]);
    message.extend([b'x'; 5000]);
    other.send(&message);
    assert_eq!(other.next().await.unwrap_err(), "8");
    served.process.message("ZG0504").await;
    eventually("one stream is left", async || {
        let metrics = served.page("/metrics").await.1;
        metrics.contains("zeugma_xds_streams 1\n").then_some(())
    })
    .await;
    served.process.signal(Signal::TERM);
    // 14: unavailable.
    assert_eq!(stream.next().await.unwrap_err(), "14");
    served.process.ended().await;
}

#[tokio::test]
async fn without_files_it_says_so_and_goes_on_accepting() {
    let east = Cluster::new("east");
    east.write_gateway();
    east.route("shop/orders", ORDERS);
    let served = Served::of(command_with_files(32, &east.config())).await;
    let mut many = Vec::new();
    for _ in 0..40 {
        many.push(
            tokio::net::TcpStream::connect(served.listens)
                .await
                .unwrap(),
        );
    }
    served.process.message("ZG0509").await;
    drop(many);
    let tcp = tokio::net::TcpStream::connect(served.listens)
        .await
        .unwrap();
    let mut stream = Stream::open(&mut h2_over(tcp).await, "east-gw").await;
    assert!(stream.next().await.is_ok());
}
