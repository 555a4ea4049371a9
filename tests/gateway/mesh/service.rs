//! Services behind the gateways, inside the test.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::{Body, Identity, full};

/// A service on a port of its own; it ends, its connections with it, when dropped.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) address: SocketAddr,
    seen: Arc<Seen>,
    _task: JoinSet<()>,
}

/// What came in.
#[derive(Debug, Default)]
struct Seen {
    connections: AtomicUsize,
    requests: Mutex<Vec<Arrived>>,
}

/// A request that came in whole.
#[derive(Debug, Clone)]
pub(crate) struct Arrived {
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

type Answer = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
type Handler = Arc<dyn Fn(Request<Incoming>) -> Answer + Send + Sync>;

impl Service {
    /// An HTTP/1.1 and HTTP/2 (prior knowledge) service that answers 200 and its name.
    pub(crate) async fn http(name: &'static str) -> Self {
        Self::listen(None, Serve::Named(name)).await
    }

    /// An HTTP service that answers as `handler` does; its requests are counted, not kept.
    pub(crate) async fn handling<F, A>(handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + Send + Sync + 'static,
        A: Future<Output = Response<Body>> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        Self::listen(None, Serve::Handler(handler)).await
    }

    /// As [`http`](Self::http), over mTLS as `identity` (ALPN h2, http/1.1).
    pub(crate) async fn mtls(name: &'static str, identity: &Identity) -> Self {
        Self::listen(Some(identity.clone()), Serve::Named(name)).await
    }

    /// A TCP service that carries each connection as `carry` does.
    pub(crate) async fn tcp<F, A>(carry: F) -> Self
    where
        F: Fn(TcpStream) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        Self::accepting(move |tcp, _| carry(tcp)).await
    }

    /// A TCP service that sends back what it gets, until the caller half-closes.
    pub(crate) async fn echo() -> Self {
        Self::tcp(|mut tcp| async move {
            let (mut read, mut write) = tcp.split();
            // An error ends the connection, which the caller sees.
            tokio::io::copy(&mut read, &mut write).await.ok();
            write.shutdown().await.ok();
        })
        .await
    }

    async fn listen(identity: Option<Identity>, serve: Serve) -> Self {
        Self::accepting(move |tcp, seen| {
            let (identity, serve) = (identity.clone(), serve.clone());
            async move {
                let Some(identity) = identity else {
                    let mut first = [0; 3];
                    let is_h2 = tcp
                        .peek(&mut first)
                        .await
                        .is_ok_and(|n| first[..n] == *b"PRI");
                    return serve.on(tcp, is_h2, seen).await;
                };
                // A caller that refuses us is gone.
                if let Ok(stream) = identity.accept(tcp, &[b"h2", b"http/1.1"]).await {
                    let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    serve.on(stream, is_h2, seen).await;
                }
            }
        })
        .await
    }

    async fn accepting<F, A>(carry: F) -> Self
    where
        F: Fn(TcpStream, Arc<Seen>) -> A + Send + Sync + 'static,
        A: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<Seen>::default();
        let counted = Arc::clone(&seen);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                counted.connections.fetch_add(1, Ordering::SeqCst);
                open.spawn(carry(tcp, Arc::clone(&counted)));
                while open.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            seen,
            _task: task,
        }
    }

    /// How many connections it accepted.
    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// The requests that came in whole, in their order.
    pub(crate) fn requests(&self) -> Vec<Arrived> {
        self.seen
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// How requests are answered.
#[derive(Clone)]
enum Serve {
    Named(&'static str),
    Handler(Handler),
}

impl Serve {
    async fn on<S>(self, stream: S, is_h2: bool, seen: Arc<Seen>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request| {
            let (serve, seen) = (self.clone(), Arc::clone(&seen));
            async move {
                match serve {
                    Self::Named(name) => named(name, request, &seen).await,
                    Self::Handler(handler) => Ok(handler(request).await),
                }
            }
        });
        let io = TokioIo::new(stream);
        // What goes wrong is seen at the other end.
        if is_h2 {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.serve_connection(io, service).await.ok();
        } else {
            let builder = hyper::server::conn::http1::Builder::new();
            let connection = builder.serve_connection(io, service).with_upgrades();
            connection.await.ok();
        }
    }
}

/// Answers with the service's name; a request that does not come in whole is no request.
async fn named(
    name: &'static str,
    request: Request<Incoming>,
    seen: &Seen,
) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let mut requests = seen.requests.lock().unwrap_or_else(PoisonError::into_inner);
    requests.push(Arrived {
        uri: parts.uri,
        headers: parts.headers,
        body,
    });
    Ok(Response::new(full(name)))
}
