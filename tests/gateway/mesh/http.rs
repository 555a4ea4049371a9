//! HTTP as a caller speaks it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Frame;
use hyper::client::conn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::within;

/// The body of a request or response.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

/// No bytes.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// All bytes at once.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed()
}

/// A body whose frames are sent as the test goes on; it ends when the sender is dropped.
pub(crate) fn frames() -> (mpsc::Sender<Bytes>, Body) {
    let (send, receive) = mpsc::channel(1);
    (send, Frames(receive).boxed())
}

#[derive(Debug)]
struct Frames(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Frames {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let next = self.0.poll_recv(cx);
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A whole response.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    /// A header that is there once.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap().to_str().unwrap()
    }
}

/// Reads a response to its end.
pub(crate) async fn collect<B>(response: Response<B>) -> Reply
where
    B: hyper::body::Body<Data = Bytes, Error: std::fmt::Debug>,
{
    let (parts, body) = response.into_parts();
    let collected = within("the rest of a response", body.collect())
        .await
        .unwrap();
    Reply {
        status: parts.status.as_u16(),
        version: parts.version,
        headers: parts.headers,
        trailers: collected.trailers().cloned(),
        body: collected.to_bytes(),
    }
}

/// HTTP/1.1 over `stream`; the connection lives as long as the sender.
pub(crate) async fn h1<S>(stream: S) -> conn::http1::SendRequest<Body>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    // What ends it is seen by the request.
    tokio::spawn(async move { connection.with_upgrades().await.ok() });
    sender
}

/// HTTP/2 over `stream`; the connection lives as long as the sender.
pub(crate) async fn h2<S>(stream: S) -> conn::http2::SendRequest<Body>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(async move { connection.await.ok() });
    sender
}

/// Sends one HTTP/1.1 request over a connection of its own.
pub(crate) async fn send(address: SocketAddr, request: Request<Body>) -> Reply {
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut sender = h1(tcp).await;
    let response = within("a response", sender.send_request(request)).await;
    collect(response.unwrap()).await
}

/// GET over a connection of its own.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Reply {
    let request = Request::get(path).header("host", host).body(empty());
    send(address, request.unwrap()).await
}
