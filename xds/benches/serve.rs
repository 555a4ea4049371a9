//! What a control plane costs: 10,000 services to 1,000 gateways over incremental xDS in memory.
//!
//! The questions, with the numbers that would change a decision: does a change of one endpoint, which is
//! encoded once, reach all gateways within 1 s; does a gateway cost under 1 MB; are 1,000 that come back at
//! once, saying all that they have, done in 10 s, with next to nothing sent? Clients and server share the
//! process and its threads, so that every figure is of both.
//!
//! `ZEUGMA_BENCH_SERVICES` and `ZEUGMA_BENCH_CLIENTS` make it smaller.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench: it ends where something is not as it should be"
)]

#[path = "../../tests/support/many.rs"]
mod many;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use http::Request;
use prost::Message as _;
use tokio::sync::watch;
use zeugma_xds::{Admission, Caller, Good, Kind, Server, ServerLimits, Sources, Visitor};

const GATEWAY: &str = "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    mesh: { address: '0.0.0.0:15443', role: mesh }
    apps: { address: '127.0.0.1:15001', role: workloads }
";
const ADS: &str =
    "http://x/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CHANGES: usize = 10;

fn main() {
    let number = |name: &str, default: usize| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(default)
    };
    let services = number("ZEUGMA_BENCH_SERVICES", 10_000);
    let clients = number("ZEUGMA_BENCH_CLIENTS", 1000);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(run(services, clients));
}

async fn run(services: usize, clients: usize) {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), services);
    let plane = |good: &Good| Sources::read(folder.path()).unwrap().plane(good).unwrap();
    let begun = Instant::now();
    let first = plane(&Good::default());
    println!(
        "{services} services read and checked: {:.2?}",
        begun.elapsed()
    );
    let good = first.good().clone();
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        caller_streams: clients + 1,
        ..Default::default()
    };
    let server = Server::new(first, admission, limits, "bench");

    let begun = Instant::now();
    let learned = learn(&server).await;
    println!(
        "the first gateway has all {} resources, {:.1} MB: {:.2?}",
        learned.resources,
        megabytes(learned.bytes),
        begun.elapsed()
    );
    println!(
        "what a gateway says that comes back: {:.2} MB",
        megabytes(learned.requests.len())
    );

    let before = resident();
    let counts = Arc::new(Counts::default());
    let (go, gone) = watch::channel(0_usize);
    let (begun, cpu) = (Instant::now(), cpu());
    for _ in 0..clients {
        let (near, far) = tokio::io::duplex(64 * 1024);
        serve(&server, far);
        let (requests, counts, gone) =
            (learned.requests.clone(), Arc::clone(&counts), gone.clone());
        drop(tokio::spawn(follow(near, requests, counts, gone)));
    }
    until(&counts.answered, clients * 4).await;
    let sent = counts.bytes.load(Ordering::Relaxed);
    println!(
        "{clients} gateways are back: {:.2?}, {:.2?} of CPU, {:.1} kB sent to each",
        begun.elapsed(),
        self::cpu().saturating_sub(cpu),
        megabytes(sent) * 1000.0 / clients.max(1) as f64
    );
    let each = resident().saturating_sub(before) / clients.max(1);
    println!(
        "memory for each, its client too: {:.0} kB",
        megabytes(each) * 1000.0
    );

    let mut worst = Duration::ZERO;
    for nth in 1..=CHANGES {
        let file = folder.path().join("routes-0.yaml");
        let (from, to) = (
            format!("\"10.1.0.{nth}:8080\""),
            format!("\"10.9.0.{nth}:8080\""),
        );
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(&from));
        std::fs::write(&file, text.replace(&from, &to)).unwrap();
        let begun = Instant::now();
        let changed = plane(&good);
        let read = begun.elapsed();
        go.send_replace(nth);
        let took = change(&server, changed, &counts, clients).await;
        println!("read {read:.2?}, {took}", took = took.0);
        worst = worst.max(took.1);
    }
    println!("the slowest: {worst:.2?}");
}

fn write(folder: &Path, services: usize) {
    std::fs::write(folder.join("gateway.yaml"), GATEWAY).unwrap();
    let documents = many::mesh(services);
    for (nth, part) in documents.chunks(1000).enumerate() {
        let file = folder.join(format!("routes-{nth}.yaml"));
        std::fs::write(file, part.join("---\n")).unwrap();
    }
}

/// Publishes a change of one endpoint; what it took, as a text and until all gateways had it.
async fn change(
    server: &Server,
    changed: zeugma_xds::Plane,
    counts: &Counts,
    clients: usize,
) -> (String, Duration) {
    let told = counts.changes.load(Ordering::Relaxed);
    let begun = Instant::now();
    let encoded = server.publish(changed).await;
    let made = begun.elapsed();
    until(&counts.changes, told + clients).await;
    let all = begun.elapsed();
    let text = format!("made {made:.2?} with {encoded} encoded, at all gateways {all:.2?}");
    (text, all)
}

#[derive(Debug, Default)]
struct Counts {
    /// Types whose first request was acknowledged by an answer, or needs none.
    answered: AtomicUsize,
    changes: AtomicUsize,
    bytes: AtomicUsize,
}

/// What one gateway was told, as the requests of another that has it from an earlier stream.
struct Learned {
    requests: Bytes,
    resources: usize,
    bytes: usize,
}

fn serve(server: &Server, stream: tokio::io::DuplexStream) {
    let visitor = Visitor {
        caller: Caller::Local,
        source: SocketAddr::from(([127, 0, 0, 1], 1)),
        until: tokio::time::Instant::now() + Duration::from_secs(3600),
    };
    let server = server.clone();
    drop(tokio::spawn(
        async move { server.serve(stream, visitor).await },
    ));
}

fn framed(request: &DeltaDiscoveryRequest, to: &mut BytesMut) {
    to.put_u8(0);
    to.put_u32(u32::try_from(request.encoded_len()).unwrap());
    request.encode(to).unwrap();
}

/// Asks for everything once.
async fn learn(server: &Server) -> Learned {
    let (near, far) = tokio::io::duplex(1 << 20);
    serve(server, far);
    let mut stream = Stream::open(near).await;
    let node = || {
        Some(Node {
            id: "east-gw".to_owned(),
            ..Default::default()
        })
    };
    let mut all = BytesMut::new();
    let (mut resources, mut bytes) = (0, 0);
    for kind in Kind::ALL {
        let is_wildcard = matches!(kind, Kind::Cluster | Kind::Listener);
        let subscribe = if is_wildcard {
            Vec::new()
        } else {
            vec!["*".to_owned()]
        };
        let mut request = DeltaDiscoveryRequest {
            node: node(),
            type_url: kind.type_url(),
            resource_names_subscribe: subscribe,
            ..Default::default()
        };
        let mut ask = BytesMut::new();
        framed(&request, &mut ask);
        stream.send(ask.freeze()).await;
        let message = stream.next().await.unwrap();
        bytes += message.len();
        let told = DeltaDiscoveryResponse::decode(message).unwrap();
        resources += told.resources.len();
        request.initial_resource_versions = (told.resources.iter())
            .map(|one| (one.name.clone(), one.version.clone()))
            .collect();
        if !is_wildcard {
            request.resource_names_subscribe =
                told.resources.iter().map(|one| one.name.clone()).collect();
        }
        framed(&request, &mut all);
        let mut taken = BytesMut::new();
        framed(&acknowledge(&told.type_url, &told.nonce), &mut taken);
        stream.send(taken.freeze()).await;
    }
    // The last: what is answered shows that all before was read.
    framed(&last(), &mut all);
    Learned {
        requests: all.freeze(),
        resources,
        bytes,
    }
}

fn last() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/nothing".to_owned(),
        resource_names_subscribe: vec!["x".to_owned()],
        ..Default::default()
    }
}

fn acknowledge(type_url: &str, nonce: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

/// A gateway that comes back, and counts what it is told.
async fn follow(
    near: tokio::io::DuplexStream,
    requests: Bytes,
    counts: Arc<Counts>,
    go: watch::Receiver<usize>,
) {
    let mut stream = Stream::open(near).await;
    stream.send(requests).await;
    while let Some(message) = stream.next().await {
        counts.bytes.fetch_add(message.len(), Ordering::Relaxed);
        let told = DeltaDiscoveryResponse::decode(message).unwrap();
        if *go.borrow() > 0 {
            counts.changes.fetch_add(1, Ordering::Relaxed);
        } else {
            // Two wildcards are answered with nothing, the last with what is missing.
            assert!(told.resources.is_empty());
            let is_last = !told.removed_resources.is_empty();
            counts
                .answered
                .fetch_add(if is_last { 2 } else { 1 }, Ordering::Relaxed);
        }
        let mut taken = BytesMut::new();
        framed(&acknowledge(&told.type_url, &told.nonce), &mut taken);
        stream.send(taken.freeze()).await;
    }
}

async fn until(count: &AtomicUsize, wanted: usize) {
    while count.load(Ordering::Relaxed) < wanted {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

struct Stream {
    ask: h2::SendStream<Bytes>,
    body: h2::RecvStream,
    read: BytesMut,
}

impl Stream {
    async fn open(near: tokio::io::DuplexStream) -> Self {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 20);
        let (mut send, connection) = builder.handshake(near).await.unwrap();
        drop(tokio::spawn(connection));
        let request = Request::post(ADS).header("content-type", "application/grpc");
        let (response, ask) = send.send_request(request.body(()).unwrap(), false).unwrap();
        Self {
            ask,
            body: response.await.unwrap().into_body(),
            read: BytesMut::new(),
        }
    }

    async fn send(&mut self, mut bytes: Bytes) {
        while bytes.has_remaining() {
            self.ask.reserve_capacity(bytes.len().min(64 * 1024));
            let granted = std::future::poll_fn(|context| self.ask.poll_capacity(context)).await;
            let part = bytes.split_to(granted.unwrap().unwrap().min(bytes.len()));
            self.ask.send_data(part, false).unwrap();
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(prefix) = self.read.get(1..5) {
                let len = u32::from_be_bytes(prefix.try_into().unwrap()) as usize;
                if self.read.len() >= 5 + len {
                    self.read.advance(5);
                    let message = self.read.split_to(len).freeze();
                    if self.read.is_empty() {
                        self.read = BytesMut::new();
                    }
                    return Some(message);
                }
            }
            let data = self.body.data().await?.unwrap();
            self.body
                .flow_control()
                .release_capacity(data.len())
                .unwrap();
            self.read.extend_from_slice(&data);
        }
    }
}

fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// Bytes of memory that the process has.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Processor time of the process so far.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    // `utime` and `stime` are fields 14 and 15, of which two stand before the parenthesis; ticks of 10 ms.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}
