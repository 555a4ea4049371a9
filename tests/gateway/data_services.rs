//! The services behind the gateways: they do as they are told and remember what they saw.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::mesh::within;

/// The threads of [`io`]: on one alone a service that computes would hold up those of other tests.
const IO_THREADS: usize = 2;

/// What all services of this test binary run on, until it ends.
pub(crate) fn io() -> &'static Handle {
    static IO: OnceLock<Runtime> = OnceLock::new();
    let runtime = IO.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .enable_all()
            .build()
            .unwrap()
    });
    runtime.handle()
}

/// A listening address that ends with what it accepted when it is stopped.
#[derive(Debug)]
pub(crate) struct Socket {
    pub(crate) address: SocketAddr,
    task: Mutex<Option<AbortHandle>>,
}

impl Socket {
    /// Serves each connection by a task of its own, all ended together.
    pub(crate) fn serve<F>(address: &str, serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = bind(address);
        let address = listener.local_addr().unwrap();
        let task = io().spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let Ok((tcp, _)) = accepted else { continue };
                        tcp.set_nodelay(true).ok();
                        open.spawn(serve(tcp));
                    }
                    Some(_ended) = open.join_next() => {}
                }
            }
        });
        Self {
            address,
            task: Mutex::new(Some(task.abort_handle())),
        }
    }

    /// Stops listening and breaks what is open, as a process that is killed.
    pub(crate) async fn kill(&self) {
        let task = self.task.lock().unwrap().take();
        if let Some(task) = task {
            task.abort();
            let gone = async {
                while TcpStream::connect(self.address).await.is_ok() {
                    tokio::task::yield_now().await;
                }
            };
            within("the service to be gone", gone).await;
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Some(task) = self.task.lock().unwrap().take() {
            task.abort();
        }
    }
}

/// Binds so that an address that was just left can be taken again.
fn bind(address: &str) -> std::net::TcpListener {
    let address: SocketAddr = address.parse().unwrap();
    // std sets SO_REUSEADDR.
    let listener = std::net::TcpListener::bind(address).unwrap();
    listener.set_nonblocking(true).unwrap();
    listener
}

/// An address that refuses connections: bound, so that nobody else gets it, and not listening.
#[derive(Debug)]
pub(crate) struct Refusing {
    pub(crate) address: SocketAddr,
    _held: tokio::net::TcpSocket,
}

impl Refusing {
    pub(crate) fn new() -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self {
            address: socket.local_addr().unwrap(),
            _held: socket,
        }
    }
}

/// What an HTTP service does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As the path says.
    Normal,
    /// As the path says, after this long.
    Delay(Duration),
    /// This status at once.
    Status(u16),
    /// This gRPC status, and nothing but trailers.
    Grpc(&'static str),
    /// Breaks the connection.
    Reset,
    /// Never answers.
    Hang,
    /// Answers once it is told how: as the next mode says.
    Wait,
}

/// Which versions an HTTP service understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Both,
    OnlyH1,
}

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) host: String,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
}

impl Seen {
    /// All values of a header, joined.
    pub(crate) fn header(&self, name: &str) -> String {
        let values = self.headers.get_all(name).iter();
        let values: Vec<_> = values.map(|value| value.to_str().unwrap()).collect();
        values.join(" | ")
    }
}

/// More than all buffers between a service and a caller that does not read.
pub(crate) const BIG: usize = 16 << 20;
static ZEROS: [u8; BIG] = [0; BIG];

/// An HTTP service, HTTP/1.1 and HTTP/2 with prior knowledge.
///
/// | path | answer |
/// |---|---|
/// | `/echo` | the body as it comes, and its trailers |
/// | `/sum` | length and checksum of the body |
/// | `/bytes/N` | N bytes of [`pattern`] |
/// | `/big` | [`BIG`] bytes |
/// | `/status/N` | that status |
/// | `/early` | 200 before the body is read |
/// | `/switch` | 101, then an echo of bytes with `echo:` before the first |
/// | `/trailers` | a body and the trailer `x-sum` |
/// | `/grpc` | a body and the trailer `grpc-status`, the service's name |
/// | `/encoded` | a body whose `content-encoding` is the service's name |
/// | anything else | the service's name |
#[derive(Debug)]
pub(crate) struct HttpService {
    socket: Socket,
    state: Arc<HttpState>,
}

#[derive(Debug)]
struct HttpState {
    name: String,
    speaks: Speaks,
    mode: watch::Sender<Mode>,
    seen: watch::Sender<Vec<Seen>>,
    abandoned: watch::Sender<usize>,
}

impl HttpService {
    pub(crate) fn start(name: &str) -> Self {
        Self::start_with(name, Speaks::Both)
    }

    pub(crate) fn start_with(name: &str, speaks: Speaks) -> Self {
        let state = Arc::new(HttpState {
            name: name.to_owned(),
            speaks,
            mode: watch::Sender::new(Mode::Normal),
            seen: watch::Sender::new(Vec::new()),
            abandoned: watch::Sender::new(0),
        });
        Self {
            socket: Self::listen("127.0.0.1:0", &state),
            state,
        }
    }

    /// On another interface than loopback.
    pub(crate) fn start_on(ip: std::net::Ipv4Addr, name: &str) -> Self {
        let mut this = Self::start(name);
        this.socket = Self::listen(&format!("{ip}:0"), &this.state);
        this
    }

    fn listen(address: &str, state: &Arc<HttpState>) -> Socket {
        let state = Arc::clone(state);
        Socket::serve(address, move |tcp| serve_http(tcp, Arc::clone(&state)))
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.address
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.mode.send_replace(mode);
    }

    /// Ends as a killed process does.
    pub(crate) async fn kill(&self) {
        self.socket.kill().await;
    }

    /// Listens again where it did.
    pub(crate) fn revive(&mut self) {
        self.socket = Self::listen(&self.address().to_string(), &self.state);
    }

    /// How many requests arrived.
    pub(crate) fn hits(&self) -> usize {
        self.state.seen.borrow().len()
    }

    /// What arrived.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.borrow().clone()
    }

    /// The last request that arrived.
    pub(crate) fn last(&self) -> Seen {
        self.state.seen.borrow().last().cloned().unwrap()
    }

    /// Waits until `count` requests have arrived in all.
    pub(crate) async fn arrived(&self, count: usize) {
        let mut seen = self.state.seen.subscribe();
        let waiting = seen.wait_for(|seen| seen.len() >= count);
        drop(within("requests at the service", waiting).await.unwrap());
    }

    /// Waits until `count` requests were given up by their caller before they were answered.
    pub(crate) async fn given_up(&self, count: usize) {
        let mut abandoned = self.state.abandoned.subscribe();
        let waiting = abandoned.wait_for(|abandoned| *abandoned >= count);
        drop(within("a request to be given up", waiting).await.unwrap());
    }
}

async fn serve_http(tcp: TcpStream, state: Arc<HttpState>) {
    let mut first = [0; 3];
    loop {
        match tcp.peek(&mut first).await {
            Ok(3) => break,
            Ok(0) | Err(_) => return,
            Ok(_) => tokio::task::yield_now().await,
        }
    }
    let is_h2 = &first == b"PRI" && state.speaks == Speaks::Both;
    let (breaking, mut broken) = mpsc::channel::<()>(1);
    let io = TokioIo::new(tcp);
    let service = service_fn(move |request| {
        let (state, breaking) = (Arc::clone(&state), breaking.clone());
        answer(request, state, breaking)
    });
    let serving = async {
        if is_h2 {
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.serve_connection(io, service).await.ok();
        } else {
            let builder = hyper::server::conn::http1::Builder::new();
            let connection = builder.serve_connection(io, service);
            connection.with_upgrades().await.ok();
        }
    };
    tokio::select! {
        () = serving => {}
        _ = broken.recv() => {}
    }
}

/// Counts a request that ended before it was answered.
struct Unanswered(Option<Arc<HttpState>>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            state.abandoned.send_modify(|count| *count += 1);
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<HttpState>,
    breaking: mpsc::Sender<()>,
) -> Result<Response<AnyBody>, Infallible> {
    let host = request.headers().get(header::HOST);
    let host = host.map(|host| host.to_str().unwrap().to_owned());
    let authority = request.uri().authority().map(ToString::to_string);
    let seen = Seen {
        method: request.method().to_string(),
        path: request.uri().path().to_owned(),
        host: host.or(authority).unwrap_or_default(),
        version: request.version(),
        headers: request.headers().clone(),
    };
    state.seen.send_modify(|all| all.push(seen));
    let mut unanswered = Unanswered(Some(Arc::clone(&state)));
    let mut told = state.mode.subscribe();
    let told = told.wait_for(|mode| *mode != Mode::Wait).await;
    let mode = *told.unwrap();
    let response = match mode {
        Mode::Normal => as_the_path_says(request, &state).await,
        Mode::Delay(delay) => {
            tokio::time::sleep(delay).await;
            as_the_path_says(request, &state).await
        }
        Mode::Status(code) => status(code),
        Mode::Grpc(code) => {
            let mut response = status(200);
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, "application/grpc".parse().unwrap());
            headers.insert("grpc-status", code.parse().unwrap());
            response
        }
        Mode::Reset => {
            breaking.send(()).await.ok();
            std::future::pending().await
        }
        Mode::Hang | Mode::Wait => std::future::pending().await,
    };
    unanswered.0 = None;
    Ok(response)
}

fn status(code: u16) -> Response<AnyBody> {
    let mut response = Response::new(AnyBody::empty());
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

async fn as_the_path_says(request: Request<Incoming>, state: &HttpState) -> Response<AnyBody> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    match parts.as_slice() {
        ["echo"] => {
            let mut response = Response::new(AnyBody::Incoming(request.into_body()));
            let headers = response.headers_mut();
            headers.insert(header::TRAILER, "x-sum".parse().unwrap());
            response
        }
        ["sum"] => {
            let body = request.into_body().collect().await;
            let Ok(body) = body else { return status(400) };
            let trailer = body.trailers().and_then(|all| all.get("x-sum").cloned());
            let bytes = body.to_bytes();
            let mut response = Response::new(AnyBody::text(&summary(&bytes)));
            if let Some(trailer) = trailer {
                response.headers_mut().insert("x-got-trailer", trailer);
            }
            response
        }
        ["bytes", count] if request.method() == Method::HEAD => {
            let mut response = Response::new(AnyBody::empty());
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_LENGTH, count.parse().unwrap());
            response
        }
        ["bytes", count] => Response::new(AnyBody::of(pattern(count.parse().unwrap()))),
        ["big"] => Response::new(AnyBody::of(Bytes::from_static(&ZEROS))),
        ["status", code] => status(code.parse().unwrap()),
        ["early"] => {
            io().spawn(request.into_body().collect());
            Response::new(AnyBody::text("early"))
        }
        ["switch"] => switch(request),
        ["grpc"] => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", state.name.parse().unwrap());
            let frames = [
                Frame::data(Bytes::from_static(b"a message")),
                Frame::trailers(trailers),
            ];
            Response::new(AnyBody::Frames(frames.into()))
        }
        ["encoded"] => {
            let mut response = Response::new(AnyBody::text("encoded"));
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_ENCODING, state.name.parse().unwrap());
            response
        }
        ["trailers"] => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "42".parse().unwrap());
            let frames = [
                Frame::data(Bytes::from_static(b"with trailers")),
                Frame::trailers(trailers),
            ];
            let mut response = Response::new(AnyBody::Frames(frames.into()));
            let headers = response.headers_mut();
            headers.insert(header::TRAILER, "x-sum".parse().unwrap());
            response
        }
        _ => Response::new(AnyBody::text(&state.name)),
    }
}

/// Accepts an upgrade and echoes; the end of one direction ends the other.
fn switch(mut request: Request<Incoming>) -> Response<AnyBody> {
    let Some(protocol) = request.headers().get(header::UPGRADE).cloned() else {
        return status(426);
    };
    let key = request.headers().get("sec-websocket-key");
    let accept = key.map(|key| accept_of(key.to_str().unwrap()));
    let upgrade = hyper::upgrade::on(&mut request);
    io().spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut stream = TokioIo::new(upgraded);
        stream.write_all(b"echo:").await.ok();
        let (mut read, mut write) = tokio::io::split(stream);
        tokio::io::copy(&mut read, &mut write).await.ok();
        write.write_all(b":end").await.ok();
        write.shutdown().await.ok();
    });
    let mut response = status(101);
    let headers = response.headers_mut();
    headers.insert(header::UPGRADE, protocol);
    headers.insert(header::CONNECTION, "upgrade".parse().unwrap());
    if let Some(accept) = accept {
        headers.insert("sec-websocket-accept", accept.parse().unwrap());
    }
    response
}

/// What is answered to a WebSocket key (RFC 6455 §4.2.2).
pub(crate) fn accept_of(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    STANDARD.encode(digest)
}

/// Bytes that tell where they are: no two positions within 251 are alike.
pub(crate) fn pattern(count: usize) -> Bytes {
    (0..count)
        .map(|at| u8::try_from((at + at / 251) % 251).unwrap())
        .collect()
}

/// Length and FNV-1a of bytes.
pub(crate) fn summary(bytes: &[u8]) -> String {
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{} {sum:016x}", bytes.len())
}

/// Every body that services and clients send.
#[derive(Debug)]
pub(crate) enum AnyBody {
    Frames(VecDeque<Frame<Bytes>>),
    Incoming(Incoming),
    /// As it is told; its length is not known before.
    Channel(mpsc::Receiver<Frame<Bytes>>),
}

impl AnyBody {
    pub(crate) fn empty() -> Self {
        Self::Frames(VecDeque::new())
    }

    pub(crate) fn of(bytes: Bytes) -> Self {
        if bytes.is_empty() {
            return Self::empty();
        }
        Self::Frames(VecDeque::from([Frame::data(bytes)]))
    }

    pub(crate) fn text(text: &str) -> Self {
        Self::of(Bytes::from(text.to_owned()))
    }

    pub(crate) fn channel() -> (mpsc::Sender<Frame<Bytes>>, Self) {
        let (frames, body) = mpsc::channel(1);
        (frames, Self::Channel(body))
    }
}

impl Body for AnyBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Frames(frames) => Poll::Ready(frames.pop_front().map(Ok)),
            Self::Incoming(incoming) => Pin::new(incoming).poll_frame(cx),
            Self::Channel(frames) => frames.poll_recv(cx).map(|frame| frame.map(Ok)),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Frames(frames) => frames.is_empty(),
            Self::Incoming(incoming) => incoming.is_end_stream(),
            Self::Channel(_) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Self::Frames(frames) if frames.iter().all(Frame::is_data) => {
                let bytes = frames.iter().filter_map(Frame::data_ref);
                hyper::body::SizeHint::with_exact(bytes.map(|b| b.len() as u64).sum())
            }
            Self::Incoming(incoming) => incoming.size_hint(),
            Self::Frames(_) | Self::Channel(_) => hyper::body::SizeHint::new(),
        }
    }
}

/// A TCP service that sends a banner at once, then echoes, then says how much it was.
#[derive(Debug)]
pub(crate) struct TcpService {
    pub(crate) socket: Socket,
    opened: watch::Sender<usize>,
}

/// What a [`TcpService`] says first.
pub(crate) const BANNER: &[u8] = b"220 welcome\r\n";

impl TcpService {
    pub(crate) fn start() -> Self {
        let opened = watch::Sender::new(0);
        let counter = opened.clone();
        let socket = Socket::serve("127.0.0.1:0", move |mut tcp| {
            counter.send_modify(|count| *count += 1);
            async move {
                tcp.write_all(BANNER).await.ok();
                echo(tcp).await;
            }
        });
        Self { socket, opened }
    }

    /// A service that does as `serve` does.
    pub(crate) fn with<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let opened = watch::Sender::new(0);
        let counter = opened.clone();
        let socket = Socket::serve("127.0.0.1:0", move |tcp| {
            counter.send_modify(|count| *count += 1);
            serve(tcp)
        });
        Self { socket, opened }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.socket.address
    }

    /// How many connections it accepted.
    pub(crate) fn hits(&self) -> usize {
        *self.opened.borrow()
    }
}

/// Echoes until the caller's end of data, then says how much it was and ends.
pub(crate) async fn echo(mut tcp: TcpStream) {
    let (mut read, mut write) = tcp.split();
    let moved = tokio::io::copy(&mut read, &mut write).await;
    let Ok(moved) = moved else { return };
    write
        .write_all(format!("\n{moved} bytes").as_bytes())
        .await
        .ok();
    write.shutdown().await.ok();
}

/// Reads until the end.
pub(crate) async fn read_all(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    within("the end of the stream", stream.read_to_end(&mut all))
        .await
        .unwrap();
    all
}
