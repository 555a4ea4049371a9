//! A control plane inside the test: tonic and Envoy's own messages, and no code of ours. It says what a
//! test has it say, and remembers what it was told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::google::protobuf::Any;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::codegen::tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use super::{Identity, within};

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As it should.
    Well,
    /// It takes its time before each response.
    Slow,
    /// It says nothing.
    Silent,
    /// It says what no server should: see [`rubbish`].
    Rubbish,
    /// It says all of it again as soon as that is answered, each time in other bytes.
    Flapping,
    /// It says something broken again as soon as that is refused, each time the same.
    Insisting,
    /// It says more resources at once than anybody has.
    Huge,
    /// It knows no deltas.
    Full,
}

/// By type and name: version and body.
type Has = BTreeMap<(String, String), (String, Any)>;

/// What a client said, as far as a test asks.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) kind: String,
    pub(crate) nonce: String,
    pub(crate) error: Option<String>,
    pub(crate) node: Option<Node>,
    pub(crate) initial: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Shared {
    has: watch::Sender<(u64, Manner, Has)>,
    heard: Mutex<Vec<Heard>>,
    told: watch::Sender<usize>,
}

/// A control plane; it ends, its connections with it, when dropped.
#[derive(Debug)]
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    identity: Option<Identity>,
    serving: JoinSet<()>,
}

impl ControlPlane {
    /// One that shows who it is, and wants to know who asks; plaintext without an identity.
    pub(crate) fn new(identity: Option<&Identity>) -> Self {
        let shared = Arc::new(Shared {
            has: watch::channel((0, Manner::Well, Has::new())).0,
            heard: Mutex::default(),
            told: watch::channel(0).0,
        });
        let mut this = Self {
            address: "127.0.0.1:0".parse().unwrap(),
            shared,
            identity: identity.cloned(),
            serving: JoinSet::new(),
        };
        this.start();
        this
    }

    /// Starts it again after [`kill`](Self::kill), where it was.
    pub(crate) fn start(&mut self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        let listener = socket.listen(64).unwrap();
        self.address = listener.local_addr().unwrap();
        self.serving.spawn(serve(
            listener,
            self.identity.clone(),
            Arc::clone(&self.shared),
        ));
    }

    /// Ends it, as kill -9 does: every connection is cut.
    pub(crate) async fn kill(&mut self) {
        self.serving.shutdown().await;
    }

    pub(crate) fn behave(&self, manner: Manner) {
        self.shared.has.send_modify(|(times, now, _)| {
            *times += 1;
            *now = manner;
        });
    }

    /// Has these, under this version.
    pub(crate) fn put(&self, version: &str, resources: impl IntoIterator<Item = (String, Any)>) {
        self.shared.has.send_modify(|(times, _, has)| {
            *times += 1;
            for (name, any) in resources {
                has.insert((any.type_url.clone(), name), (version.to_owned(), any));
            }
        });
    }

    /// Has this no more.
    pub(crate) fn remove(&self, kind: &str, name: &str) {
        self.shared.has.send_modify(|(times, _, has)| {
            *times += 1;
            has.remove(&(kind.to_owned(), name.to_owned())).unwrap();
        });
    }

    /// The first thing heard, past or to come, that `wanted` accepts.
    pub(crate) async fn heard(&self, what: &str, wanted: impl Fn(&Heard) -> bool) -> Heard {
        let mut told = self.shared.told.subscribe();
        within(what, async {
            loop {
                told.borrow_and_update();
                if let Some(found) = self.heard_so_far().into_iter().find(&wanted) {
                    return found;
                }
                told.changed().await.unwrap();
            }
        })
        .await
    }

    pub(crate) fn heard_so_far(&self) -> Vec<Heard> {
        lock(&self.shared.heard).clone()
    }

    /// Forgets what was heard.
    pub(crate) fn forget(&self) {
        lock(&self.shared.heard).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(listener: TcpListener, identity: Option<Identity>, shared: Arc<Shared>) {
    let mut open = JoinSet::new();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let service = AggregatedDiscoveryServiceServer::new(Said(Arc::clone(&shared)));
        let service = TowerToHyperService::new(service);
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        let identity = identity.clone();
        open.spawn(async move {
            // A client that goes, or is not let in, ends it.
            match identity {
                Some(identity) => {
                    if let Ok(stream) = identity.accept(tcp, &[b"h2"]).await {
                        http.serve_connection(TokioIo::new(stream), service)
                            .await
                            .ok();
                    }
                }
                None => drop(http.serve_connection(TokioIo::new(tcp), service).await),
            }
        });
    }
}

struct Said(Arc<Shared>);

pub(super) struct Coming<T>(pub(super) mpsc::Receiver<T>);

impl<T> Stream for Coming<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

type Answers<T> = Response<Coming<Result<T, Status>>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Said {
    type StreamAggregatedResourcesStream = Coming<Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = Coming<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Answers<DiscoveryResponse>, Status> {
        let (say, coming) = mpsc::channel(16);
        tokio::spawn(full(requests.into_inner(), say, Arc::clone(&self.0)));
        Ok(Response::new(Coming(coming)))
    }

    async fn delta_aggregated_resources(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Answers<DeltaDiscoveryResponse>, Status> {
        if self.0.has.borrow().1 == Manner::Full {
            return Err(Status::unimplemented("no deltas here"));
        }
        let (say, coming) = mpsc::channel(16);
        tokio::spawn(deltas(requests.into_inner(), say, Arc::clone(&self.0)));
        Ok(Response::new(Coming(coming)))
    }
}

impl Shared {
    fn hear(&self, heard: Heard) {
        lock(&self.heard).push(heard);
        self.told.send_modify(|count| *count += 1);
    }
}

/// What one stream of deltas has asked for and been told.
#[derive(Default)]
struct Asked {
    /// By type: the names; none are all.
    names: BTreeMap<String, BTreeSet<String>>,
    told: BTreeMap<(String, String), String>,
    /// Types that wait for an answer of the client's.
    unanswered: BTreeSet<String>,
    owed: BTreeSet<String>,
    nonces: u64,
}

impl Asked {
    fn take(&mut self, request: DeltaDiscoveryRequest) -> Heard {
        let kind = request.type_url;
        if !request.response_nonce.is_empty() {
            self.unanswered.remove(&kind);
        }
        if !self.names.contains_key(&kind) {
            self.owed.insert(kind.clone());
        }
        let names = self.names.entry(kind.clone()).or_default();
        names.extend(request.resource_names_subscribe.iter().cloned());
        for name in &request.resource_names_unsubscribe {
            names.remove(name);
        }
        for name in &request.resource_names_subscribe {
            self.told.remove(&(kind.clone(), name.clone()));
        }
        let initial: BTreeMap<String, String> =
            request.initial_resource_versions.into_iter().collect();
        for (name, version) in &initial {
            self.told
                .insert((kind.clone(), name.clone()), version.clone());
        }
        Heard {
            kind,
            nonce: request.response_nonce,
            error: request.error_detail.map(|error| error.message),
            node: request.node,
            initial,
        }
    }

    fn next(&mut self, has: &Has) -> Option<DeltaDiscoveryResponse> {
        let kinds: Vec<String> = self.names.keys().cloned().collect();
        kinds.into_iter().find_map(|kind| self.next_of(&kind, has))
    }

    /// Something of a type whose last response was answered, whatever was told before.
    fn again(&mut self, manner: Manner, has: &Has) -> Option<DeltaDiscoveryResponse> {
        let mut kinds = self.names.keys();
        let kind = kinds.find(|kind| !self.unanswered.contains(*kind))?.clone();
        let named = |(name, any): (String, Any)| Resource {
            name,
            version: self.nonces.to_string(),
            resource: Some(any),
            ..Default::default()
        };
        let resources = said_again(manner, &kind, self.nonces, has);
        let resources = resources.into_iter().map(named).collect();
        self.told.retain(|key, _| key.0 != kind);
        self.owed.insert(kind.clone());
        self.unanswered.insert(kind.clone());
        self.nonces += 1;
        Some(DeltaDiscoveryResponse {
            type_url: kind,
            resources,
            nonce: self.nonces.to_string(),
            ..Default::default()
        })
    }

    fn next_of(&mut self, kind: &str, has: &Has) -> Option<DeltaDiscoveryResponse> {
        if self.unanswered.contains(kind) {
            return None;
        }
        let names = &self.names[kind];
        let is_asked = |name: &str| names.is_empty() || names.contains(name);
        let resources: Vec<Resource> = (has.iter())
            .filter(|((of, name), _)| of == kind && is_asked(name))
            .filter(|(key, (version, _))| self.told.get(*key) != Some(version))
            .map(|((_, name), (version, any))| Resource {
                name: name.clone(),
                version: version.clone(),
                resource: Some(any.clone()),
                ..Default::default()
            })
            .collect();
        let removed: Vec<String> = (self.told.keys())
            .filter(|key| key.0 == kind && !has.contains_key(*key))
            .map(|(_, name)| name.clone())
            .collect();
        if resources.is_empty() && removed.is_empty() && !self.owed.contains(kind) {
            return None;
        }
        self.owed.remove(kind);
        for resource in &resources {
            let key = (kind.to_owned(), resource.name.clone());
            self.told.insert(key, resource.version.clone());
        }
        for name in &removed {
            self.told.remove(&(kind.to_owned(), name.clone()));
        }
        self.unanswered.insert(kind.to_owned());
        self.nonces += 1;
        Some(DeltaDiscoveryResponse {
            type_url: kind.to_owned(),
            resources,
            removed_resources: removed,
            nonce: self.nonces.to_string(),
            ..Default::default()
        })
    }
}

async fn deltas(
    mut requests: Streaming<DeltaDiscoveryRequest>,
    say: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    shared: Arc<Shared>,
) {
    let mut changes = shared.has.subscribe();
    let mut asked = Asked::default();
    loop {
        let (_, manner, has) = changes.borrow_and_update().clone();
        let next = match manner {
            Manner::Silent => None,
            Manner::Rubbish => {
                for response in rubbish() {
                    if say.send(Ok(response)).await.is_err() {
                        return;
                    }
                }
                return;
            }
            Manner::Huge => {
                let huge = DeltaDiscoveryResponse {
                    type_url: super::by_hand::CLUSTER.to_owned(),
                    nonce: "huge".to_owned(),
                    resources: vec![Resource::default(); 500_000],
                    ..Default::default()
                };
                // It waits for the client to end the stream.
                if say.send(Ok(huge)).await.is_ok() {
                    say.closed().await;
                }
                return;
            }
            Manner::Flapping | Manner::Insisting => asked.again(manner, &has),
            Manner::Well | Manner::Slow | Manner::Full => asked.next(&has),
        };
        if let Some(next) = next {
            if manner == Manner::Slow {
                // Slowness is what it is about, and nothing waits for it.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            if say.send(Ok(next)).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            request = requests.next() => match request {
                Some(Ok(request)) => shared.hear(asked.take(request)),
                Some(Err(_)) | None => return,
            },
            changed = changes.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// What is said over and over: all that there is, which differs in what nobody reads, or a cluster that is
/// no message.
fn said_again(manner: Manner, kind: &str, nth: u64, has: &Has) -> Vec<(String, Any)> {
    if manner == Manner::Insisting {
        let broken = Any {
            type_url: kind.to_owned(),
            value: [&[0x0a, 6][..], b"broken", &[0xff, 0xff]].concat(),
        };
        return vec![("broken".to_owned(), broken)];
    }
    let of_it = has.iter().filter(|((of, _), _)| of == kind);
    of_it
        .map(|((_, name), (_, any))| {
            let mut any = any.clone();
            // Field 8190, a number.
            any.value.extend([0xf0, 0xff, 3]);
            prost::encoding::encode_varint(nth, &mut any.value);
            (name.clone(), any)
        })
        .collect()
}

/// What no server should say: bytes that are no message, one type in the place of another, one name
/// twice, a response that nobody can answer.
fn rubbish() -> Vec<DeltaDiscoveryResponse> {
    let resource = |name: &str, type_url: &str, value: Vec<u8>| Resource {
        name: name.to_owned(),
        version: "rubbish".to_owned(),
        resource: Some(Any {
            type_url: type_url.to_owned(),
            value,
        }),
        ..Default::default()
    };
    let response = |type_url: &str, nonce: &str, resources: Vec<Resource>| DeltaDiscoveryResponse {
        type_url: type_url.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        ..Default::default()
    };
    let (cluster, listener) = (super::by_hand::CLUSTER, super::by_hand::LISTENER);
    vec![
        response(cluster, "r1", vec![resource("a", cluster, vec![0xff; 40])]),
        response(listener, "r2", vec![resource("apps", cluster, Vec::new())]),
        response(cluster, "r3", vec![resource("b", cluster, Vec::new()); 2]),
        response("type.googleapis.com/no.Such", "r4", Vec::new()),
        response(cluster, "", Vec::new()),
    ]
}

async fn full(
    mut requests: Streaming<DiscoveryRequest>,
    say: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    shared: Arc<Shared>,
) {
    let mut changes = shared.has.subscribe();
    let mut asked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut said: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    let mut unanswered = BTreeSet::new();
    let mut nonces = 0_u64;
    loop {
        let (times, manner, has) = changes.borrow_and_update().clone();
        for (kind, names) in &asked {
            let of_it = || {
                (has.iter()).filter(|((of, name), _)| {
                    of == kind && (names.is_empty() || names.contains(name))
                })
            };
            let now: Vec<(String, String)> = of_it()
                .map(|((_, name), (version, _))| (name.clone(), version.clone()))
                .collect();
            let is_again = matches!(manner, Manner::Flapping | Manner::Insisting);
            if unanswered.contains(kind) || (!is_again && said.get(kind) == Some(&now)) {
                continue;
            }
            let (version, resources) = if is_again {
                said.remove(kind);
                let again = said_again(manner, kind, nonces, &has).into_iter();
                (
                    format!("again {nonces}"),
                    again.map(|(_, any)| any).collect(),
                )
            } else {
                said.insert(kind.clone(), now);
                let all = of_it().map(|(_, (_, any))| any.clone()).collect();
                (times.to_string(), all)
            };
            unanswered.insert(kind.clone());
            nonces += 1;
            let response = DiscoveryResponse {
                version_info: version,
                resources,
                type_url: kind.clone(),
                nonce: nonces.to_string(),
                ..Default::default()
            };
            if say.send(Ok(response)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            request = requests.next() => {
                let Some(Ok(request)) = request else {
                    return;
                };
                if !request.response_nonce.is_empty() {
                    unanswered.remove(&request.type_url);
                }
                let names: BTreeSet<String> = request.resource_names.iter().cloned().collect();
                // P12
                if asked.get(&request.type_url) != Some(&names) {
                    said.remove(&request.type_url);
                }
                asked.insert(request.type_url.clone(), names);
                shared.hear(Heard {
                    kind: request.type_url,
                    nonce: request.response_nonce,
                    error: request.error_detail.map(|error| error.message),
                    node: request.node,
                    initial: BTreeMap::new(),
                });
            }
            changed = changes.changed() => if changed.is_err() {
                return;
            },
        }
    }
}
