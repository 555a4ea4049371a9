//! A secret discovery service on a Unix socket: tonic and Envoy's own messages, and no code of ours. It says
//! what a test has it say, and remembers what it was told.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::config::core::v3::{DataSource, TypedExtensionConfig};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::spiffe_cert_validator_config::TrustDomain;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, Secret, SpiffeCertValidatorConfig, TlsCertificate,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use envoy_types::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use envoy_types::pb::google::protobuf::Any;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use prost::{Message as _, Name as _};
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tonic::codegen::tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};
use zeugma_proxy::tls::Bundles;

use super::control_plane::Coming;
use super::{Cluster, within};

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SecretManner {
    /// As it should.
    Well,
    /// It knows no deltas.
    Full,
    /// It says nothing.
    Silent,
    /// It gives nothing to us.
    Denying,
    /// Bytes that are no message.
    Rubbish,
    /// More than anybody takes.
    Huge,
    /// The same again and again, under another version each time, and waits for nobody.
    Flapping,
}

/// What a client said to a secret.
#[derive(Debug, Clone)]
pub(crate) struct HeardOfSecret {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) error: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) is_delta: bool,
    pub(crate) is_first: bool,
}

type Has = BTreeMap<String, (u64, Any)>;

struct Shared {
    has: watch::Sender<(SecretManner, Has)>,
    heard: Mutex<Vec<HeardOfSecret>>,
    told: watch::Sender<usize>,
}

/// A service; it ends, its connections with it, when dropped.
pub(crate) struct SecretServer {
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

impl SecretServer {
    pub(crate) fn at(path: &Path, manner: SecretManner) -> Self {
        // An error: there is none.
        fs::remove_file(path).ok();
        let listener = UnixListener::bind(path).unwrap();
        let shared = Arc::new(Shared {
            has: watch::channel((manner, Has::new())).0,
            heard: Mutex::default(),
            told: watch::channel(0).0,
        });
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&shared)));
        Self {
            shared,
            _serving: serving,
        }
    }

    pub(crate) fn behave(&self, manner: SecretManner) {
        self.shared.has.send_modify(|(now, _)| *now = manner);
    }

    /// Has this secret from now on.
    pub(crate) fn put(&self, name: &str, of: Type) {
        let secret = Secret {
            name: name.to_owned(),
            r#type: Some(of),
        };
        let any = Any {
            type_url: Secret::type_url(),
            value: secret.encode_to_vec(),
        };
        self.shared.has.send_modify(|(_, has)| {
            let version = has.values().map(|(version, _)| version + 1).max();
            has.insert(name.to_owned(), (version.unwrap_or(1), any));
        });
    }

    /// The first thing heard, past or to come, that `wanted` accepts.
    pub(crate) async fn heard(
        &self,
        what: &str,
        wanted: impl Fn(&HeardOfSecret) -> bool,
    ) -> HeardOfSecret {
        let mut told = self.shared.told.subscribe();
        within(what, async {
            loop {
                told.borrow_and_update();
                let found = self.heard_so_far().into_iter().find(&wanted);
                if let Some(found) = found {
                    return found;
                }
                told.changed().await.unwrap();
            }
        })
        .await
    }

    pub(crate) fn heard_so_far(&self) -> Vec<HeardOfSecret> {
        let heard = self.shared.heard.lock();
        heard.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for a NACK of this secret that is not one of those before; its reason.
    pub(crate) async fn refused(&self, name: &str, words: &str) -> String {
        let is_it = |heard: &HeardOfSecret| {
            let why = heard.error.as_deref();
            heard.name == name && why.is_some_and(|why| why.contains(words))
        };
        let what = format!("a NACK of {name}: {words}");
        self.heard(&what, is_it).await.error.unwrap()
    }
}

/// PEM in a secret.
pub(crate) fn inline(pem: &str) -> Option<DataSource> {
    Some(DataSource {
        specifier: Some(Specifier::InlineBytes(pem.as_bytes().to_vec())),
        ..Default::default()
    })
}

/// The certificate and the key in a cluster's files.
pub(crate) fn certificate_of(cluster: &Cluster) -> TlsCertificate {
    let files = cluster.svid();
    TlsCertificate {
        certificate_chain: inline(&fs::read_to_string(files.certificate).unwrap()),
        private_key: inline(&fs::read_to_string(files.key).unwrap()),
        ..Default::default()
    }
}

/// The anchors of a trust domain in a cluster's files, PEM.
pub(crate) fn anchors_of(cluster: &Cluster, domain: &str) -> String {
    use base64::Engine as _;

    let bundles = Bundles::load(&cluster.svid().bundles).unwrap();
    let bundle = bundles.iter().find(|one| one.domain().as_str() == domain);
    let anchors = bundle.unwrap().anchors().iter().map(|anchor| {
        let text = base64::engine::general_purpose::STANDARD.encode(&anchor.der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    });
    anchors.collect()
}

/// These anchors, by Envoy's validator for SPIFFE.
pub(crate) fn validator(domains: &[(&str, &str)]) -> CertificateValidationContext {
    let trust_domains = domains.iter().map(|(name, anchors)| TrustDomain {
        name: (*name).to_owned(),
        trust_bundle: inline(anchors),
        ..Default::default()
    });
    let config = SpiffeCertValidatorConfig {
        trust_domains: trust_domains.collect(),
        ..Default::default()
    };
    CertificateValidationContext {
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(Any {
                type_url: SpiffeCertValidatorConfig::type_url(),
                value: config.encode_to_vec(),
            }),
        }),
        ..Default::default()
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let mut open = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = SecretDiscoveryServiceServer::new(Said(Arc::clone(&shared)));
        let service = TowerToHyperService::new(service);
        let http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // A client that goes ends it.
        open.spawn(async move {
            drop(http.serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

struct Said(Arc<Shared>);

type Answers<T> = Response<Coming<Result<T, Status>>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Said {
    type DeltaSecretsStream = Coming<Result<DeltaDiscoveryResponse, Status>>;
    type StreamSecretsStream = Coming<Result<DiscoveryResponse, Status>>;

    async fn delta_secrets(
        &self,
        requests: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Answers<DeltaDiscoveryResponse>, Status> {
        if self.0.has.borrow().0 == SecretManner::Full {
            return Err(Status::unimplemented("no deltas here"));
        }
        let (say, coming) = mpsc::channel(1);
        let heard = |request: DeltaDiscoveryRequest| Asking {
            names: request.resource_names_subscribe,
            version: request.response_nonce,
            error: request.error_detail.map(|error| error.message),
            node: request.node.map(|node| node.id),
            is_delta: true,
        };
        let make = |name: &str, version: u64, any: Any| DeltaDiscoveryResponse {
            type_url: Secret::type_url(),
            nonce: version.to_string(),
            resources: vec![Resource {
                name: name.to_owned(),
                version: version.to_string(),
                resource: Some(any),
                ..Default::default()
            }],
            ..Default::default()
        };
        let (requests, shared) = (requests.into_inner(), Arc::clone(&self.0));
        tokio::spawn(discover(requests, say, shared, heard, make));
        Ok(Response::new(Coming(coming)))
    }

    async fn stream_secrets(
        &self,
        requests: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Answers<DiscoveryResponse>, Status> {
        let (say, coming) = mpsc::channel(1);
        let heard = |request: DiscoveryRequest| Asking {
            names: request.resource_names,
            version: request.response_nonce,
            error: request.error_detail.map(|error| error.message),
            node: request.node.map(|node| node.id),
            is_delta: false,
        };
        let make = |_: &str, version: u64, any: Any| DiscoveryResponse {
            type_url: Secret::type_url(),
            version_info: version.to_string(),
            nonce: version.to_string(),
            resources: vec![any],
            ..Default::default()
        };
        let (requests, shared) = (requests.into_inner(), Arc::clone(&self.0));
        tokio::spawn(discover(requests, say, shared, heard, make));
        Ok(Response::new(Coming(coming)))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("not polled"))
    }
}

/// What of either kind of request counts.
struct Asking {
    names: Vec<String>,
    version: String,
    error: Option<String>,
    node: Option<String>,
    is_delta: bool,
}

async fn discover<T, U>(
    mut requests: Streaming<T>,
    say: mpsc::Sender<Result<U, Status>>,
    shared: Arc<Shared>,
    heard: fn(T) -> Asking,
    make: fn(&str, u64, Any) -> U,
) {
    let mut changes = shared.has.subscribe();
    let mut name = String::new();
    let (mut said, mut flaps, mut said_wrong) = (0, 1_000_000, None);
    loop {
        let (manner, has) = changes.borrow_and_update().clone();
        let next = has.get(&name).filter(|(version, _)| *version != said);
        let wrong = |bytes: Vec<u8>| Any {
            type_url: Secret::type_url(),
            value: bytes,
        };
        let sent = match manner {
            SecretManner::Silent => Ok(()),
            SecretManner::Denying => say.send(Err(Status::permission_denied("not you"))).await,
            SecretManner::Rubbish | SecretManner::Huge if said_wrong == Some(manner) => Ok(()),
            SecretManner::Rubbish => {
                said_wrong = Some(manner);
                let any = wrong(vec![0xff; 40]);
                say.send(Ok(make(&name, 7_777, any))).await
            }
            SecretManner::Huge => {
                said_wrong = Some(manner);
                let any = wrong(vec![0; 5 << 20]);
                say.send(Ok(make(&name, 8_888, any))).await
            }
            SecretManner::Flapping => match has.get(&name) {
                Some((_, any)) => {
                    flaps += 1;
                    let sent = say.send(Ok(make(&name, flaps, any.clone()))).await;
                    // What is asked meanwhile is heard all the same.
                    while let Ok(Some(request)) =
                        tokio::time::timeout(std::time::Duration::ZERO, requests.next()).await
                    {
                        let Ok(request) = request else { return };
                        hear(&shared, &mut name, heard(request));
                    }
                    if sent.is_err() {
                        return;
                    }
                    continue;
                }
                None => Ok(()),
            },
            SecretManner::Well | SecretManner::Full => match next {
                Some((version, any)) => {
                    said = *version;
                    say.send(Ok(make(&name, said, any.clone()))).await
                }
                None => Ok(()),
            },
        };
        if sent.is_err() || manner == SecretManner::Denying {
            return;
        }
        tokio::select! {
            request = requests.next() => match request {
                Some(Ok(request)) => hear(&shared, &mut name, heard(request)),
                Some(Err(_)) | None => return,
            },
            changed = changes.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

fn hear(shared: &Shared, name: &mut String, request: Asking) {
    let is_first = name.is_empty();
    if let Some(asked) = request.names.first() {
        assert_eq!(request.names.len(), 1, "a stream is of one secret");
        name.clone_from(asked);
    }
    let heard = HeardOfSecret {
        name: name.clone(),
        version: request.version,
        error: request.error,
        node: request.node,
        is_delta: request.is_delta,
        is_first,
    };
    let mut all = shared.heard.lock().unwrap_or_else(PoisonError::into_inner);
    all.push(heard);
    drop(all);
    shared.told.send_modify(|count| *count += 1);
}
