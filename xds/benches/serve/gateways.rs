//! The other end: gateways that come back, as a process of their own.

use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
};
use http::Request;
use prost::Message as _;
use tokio::net::TcpStream;
use zeugma_xds::Kind;

pub(crate) const ADDRESS: &str = "ZEUGMA_BENCH_SERVER";
pub(crate) const CLIENTS: &str = "ZEUGMA_BENCH_CLIENTS";
pub(crate) const ORDER: &str = "ZEUGMA_BENCH_ORDER";
const ADS: &str =
    "http://x/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Two wildcards are answered with nothing, the last with what is missing; names that are as they were,
/// not at all.
const ANSWERS: usize = 3;

/// In which a gateway says what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Names,
    None,
}

impl Order {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::None => "none",
        }
    }

    fn given() -> Self {
        let name = std::env::var(ORDER).unwrap();
        let all = [Self::Names, Self::None];
        all.into_iter().find(|one| one.name() == name).unwrap()
    }
}

/// Does what its input says, and says how it went.
pub(crate) fn run(server: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let clients = std::env::var(CLIENTS).unwrap().parse().unwrap();
    runtime.block_on(carry(server, clients));
}

async fn carry(server: SocketAddr, clients: usize) {
    let learned = learn(server, Order::given()).await;
    say(&format!(
        "learned {} {} {}",
        learned.resources,
        learned.bytes,
        learned.requests.len()
    ));
    assert_eq!(hear().await.as_deref(), Some("connect"));
    let counts = Arc::new(Counts::default());
    for _ in 0..clients {
        let (requests, counts) = (learned.requests.clone(), Arc::clone(&counts));
        drop(tokio::spawn(follow(server, requests, counts)));
    }
    drop(learned);
    until(&counts.answered, clients).await;
    say(&format!("back {}", counts.bytes.load(Ordering::Relaxed)));
    let changes = async {
        for nth in 1.. {
            until(&counts.changes, clients * nth).await;
            say(&format!("changed {nth}"));
        }
    };
    tokio::select! {
        () = changes => {}
        // It has nothing more to say.
        _ended = hear() => {}
    }
}

fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

async fn hear() -> Option<String> {
    let line = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).unwrap();
        line
    });
    let line = line.await.unwrap();
    (!line.is_empty()).then(|| line.trim().to_owned())
}

async fn until(count: &AtomicUsize, wanted: usize) {
    while count.load(Ordering::Relaxed) < wanted {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[derive(Debug, Default)]
struct Counts {
    /// Gateways whose last request was answered.
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

fn framed(request: &DeltaDiscoveryRequest, to: &mut BytesMut) {
    said(&request.encode_to_vec(), to);
}

fn said(message: &[u8], to: &mut BytesMut) {
    to.put_u8(0);
    to.put_u32(u32::try_from(message.len()).unwrap());
    to.put_slice(message);
}

/// One after the other: a message is what its parts are, and of a map each entry is one.
fn with_versions(request: &DeltaDiscoveryRequest, versions: Vec<(String, String)>) -> Vec<u8> {
    let mut message = request.encode_to_vec();
    for version in versions {
        let part = DeltaDiscoveryRequest {
            initial_resource_versions: [version].into(),
            ..Default::default()
        };
        part.encode(&mut message).unwrap();
    }
    message
}

/// Asks for everything once.
async fn learn(server: SocketAddr, order: Order) -> Learned {
    let mut random = fastrand::Rng::with_seed(1);
    let mut stream = Stream::open(server).await;
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
            node: Some(Node {
                id: "east-gw".to_owned(),
                ..Default::default()
            }),
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
        let mut versions: Vec<_> = (told.resources.iter())
            .map(|one| (one.name.clone(), one.version.clone()))
            .collect();
        versions.sort_unstable();
        if !is_wildcard {
            request.resource_names_subscribe =
                versions.iter().map(|(name, _)| name.clone()).collect();
        }
        if order == Order::None {
            random.shuffle(&mut request.resource_names_subscribe);
            random.shuffle(&mut versions);
        }
        said(&with_versions(&request, versions), &mut all);
        let mut taken = BytesMut::new();
        framed(&acknowledge(&told.type_url, &told.nonce), &mut taken);
        stream.send(taken.freeze()).await;
    }
    framed(&last(), &mut all);
    Learned {
        requests: all.freeze(),
        resources,
        bytes,
    }
}

/// What is answered shows that all before was read.
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
async fn follow(server: SocketAddr, requests: Bytes, counts: Arc<Counts>) {
    let mut stream = Stream::open(server).await;
    stream.send(requests).await;
    let mut answers = 0;
    while let Some(message) = stream.next().await {
        let told = DeltaDiscoveryResponse::decode(&*message).unwrap();
        answers += 1;
        if answers > ANSWERS {
            counts.changes.fetch_add(1, Ordering::Relaxed);
        } else {
            assert!(told.resources.is_empty());
            counts.bytes.fetch_add(message.len(), Ordering::Relaxed);
            let is_back = usize::from(answers == ANSWERS);
            counts.answered.fetch_add(is_back, Ordering::Relaxed);
        }
        let mut taken = BytesMut::new();
        framed(&acknowledge(&told.type_url, &told.nonce), &mut taken);
        stream.send(taken.freeze()).await;
    }
}

struct Stream {
    ask: h2::SendStream<Bytes>,
    body: h2::RecvStream,
    read: BytesMut,
}

impl Stream {
    async fn open(server: SocketAddr) -> Self {
        let near = TcpStream::connect(server).await.unwrap();
        near.set_nodelay(true).unwrap();
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
