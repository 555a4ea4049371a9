//! A SPIFFE Workload API on a Unix socket, which says what a test has it say. Its messages are written
//! by hand, so that nothing of the gateway's own reading of them is trusted.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeugma_proxy::tls::Bundles;

use super::Cluster;

/// `X509SVIDResponse` (SPIFFE_Workload_API.md §5.2.2).
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer {
    pub(crate) svids: Vec<Svid>,
    pub(crate) crls: Vec<Vec<u8>>,
    /// By trust domain.
    pub(crate) federated: BTreeMap<String, Vec<u8>>,
}

/// `X509SVID`.
#[derive(Debug, Clone)]
pub(crate) struct Svid {
    pub(crate) id: String,
    pub(crate) chain: Vec<u8>,
    pub(crate) key: Vec<u8>,
    pub(crate) bundle: Vec<u8>,
    pub(crate) hint: &'static str,
}

impl Answer {
    /// What a cluster's files say now.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        let files = cluster.svid();
        let chain = CertificateDer::pem_file_iter(&files.certificate).unwrap();
        let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
        let mut federated = BTreeMap::new();
        for bundle in Bundles::load(&files.bundles).unwrap().iter() {
            let anchors = bundle
                .anchors()
                .iter()
                .flat_map(|anchor| anchor.der.to_vec());
            federated.insert(bundle.domain().as_str().to_owned(), anchors.collect());
        }
        let svid = Svid {
            id: cluster.gateway_id(),
            chain: chain.flat_map(|der| der.unwrap().to_vec()).collect(),
            key: key.secret_der().to_vec(),
            bundle: federated.remove(&cluster.trust_domain()).unwrap(),
            hint: "",
        };
        Self {
            svids: vec![svid],
            crls: Vec::new(),
            federated,
        }
    }

    pub(crate) fn svid(&mut self) -> &mut Svid {
        &mut self.svids[0]
    }

    /// As protocol buffers: every field here is of wire type 2.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut message = Vec::new();
        for svid in &self.svids {
            let mut inner = Vec::new();
            field(&mut inner, 1, svid.id.as_bytes());
            field(&mut inner, 2, &svid.chain);
            field(&mut inner, 3, &svid.key);
            field(&mut inner, 4, &svid.bundle);
            field(&mut inner, 5, svid.hint.as_bytes());
            field(&mut message, 1, &inner);
        }
        for crl in &self.crls {
            field(&mut message, 2, crl);
        }
        for (domain, bundle) in &self.federated {
            let mut entry = Vec::new();
            field(&mut entry, 1, format!("spiffe://{domain}").as_bytes());
            field(&mut entry, 2, bundle);
            field(&mut message, 3, &entry);
        }
        message
    }
}

fn field(to: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    // What is empty is not written (proto3).
    if bytes.is_empty() {
        return;
    }
    to.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        to.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    to.push(u8::try_from(length).unwrap());
    to.extend(bytes);
}

/// What an agent says to whoever asks, at once and whenever it changes.
#[derive(Debug, Clone)]
pub(crate) enum Said {
    /// Nothing.
    Nothing,
    /// A message.
    Message(Vec<u8>),
    /// A gRPC status, and the end.
    Status(u32, &'static str),
}

impl From<&Answer> for Said {
    fn from(answer: &Answer) -> Self {
        Self::Message(answer.bytes())
    }
}

/// An agent; it dies when dropped, and leaves its socket file as one that was killed does.
#[derive(Debug)]
pub(crate) struct Agent {
    say: watch::Sender<Said>,
    asked: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Agent {
    pub(crate) fn at(path: &Path, said: impl Into<Said>) -> Self {
        // An error: there is none.
        fs::remove_file(path).ok();
        let listener = Arc::new(UnixListener::bind(path).unwrap());
        let next = move || {
            let listener = Arc::clone(&listener);
            async move { listener.accept().await.unwrap().0 }
        };
        Self::new(said.into(), next)
    }

    /// One on an address.
    pub(crate) fn on(listener: TcpListener, said: impl Into<Said>) -> Self {
        let listener = Arc::new(listener);
        let next = move || {
            let listener = Arc::clone(&listener);
            async move { listener.accept().await.unwrap().0 }
        };
        Self::new(said.into(), next)
    }

    fn new<S, F>(said: Said, accept: impl Fn() -> F + Send + 'static) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        F: Future<Output = S> + Send + 'static,
    {
        let (say, said) = watch::channel(said);
        let asked = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&asked);
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let stream = accept().await;
                counted.fetch_add(1, Ordering::SeqCst);
                connections.spawn(serve(stream, said.clone()));
            }
        });
        Self {
            say,
            asked,
            _serving: serving,
        }
    }

    pub(crate) fn say(&self, said: impl Into<Said>) {
        self.say.send_replace(said.into());
    }

    /// How many connections there were.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, said: watch::Receiver<Said>) {
    // Whoever asks may go away at any time.
    let Ok(mut connection) = h2::server::handshake(stream).await else {
        return;
    };
    let mut calls = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        calls.spawn(answer(request, respond, said.clone()));
    }
}

async fn answer(
    request: Request<h2::RecvStream>,
    mut respond: SendResponse<Bytes>,
    mut said: watch::Receiver<Said>,
) {
    assert_eq!(request.uri().path(), "/SpiffeWorkloadAPI/FetchX509SVID");
    let head = || Response::builder().header("content-type", "application/grpc");
    let trailers = |code: u32, text: &'static str| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from(code));
        trailers.insert("grpc-message", HeaderValue::from_static(text));
        trailers
    };
    // SPIFFE_Workload_Endpoint.md §6.1 (WE1): InvalidArgument without this very header.
    let is_meant = request
        .headers()
        .get("workload.spiffe.io")
        .is_some_and(|value| value == "true");
    let mut stream = None;
    loop {
        let now = said.borrow_and_update().clone();
        let now = if is_meant {
            now
        } else {
            Said::Status(3, "no header")
        };
        if !matches!(now, Said::Nothing) && stream.is_none() {
            stream = respond.send_response(head().body(()).unwrap(), false).ok();
        }
        let sent = match (now, &mut stream) {
            (Said::Message(message), Some(stream)) => {
                let mut frame = vec![0];
                frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
                frame.extend(message);
                stream.send_data(frame.into(), false)
            }
            (Said::Status(code, text), Some(stream)) => {
                stream.send_trailers(trailers(code, text)).ok();
                return;
            }
            (Said::Nothing, _) => Ok(()),
            (_, None) => return,
        };
        if sent.is_err() || said.changed().await.is_err() {
            return;
        }
    }
}
