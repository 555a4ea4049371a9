//! Callers: plain HTTP/1.1 and HTTP/2, and bytes.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::data_services::AnyBody;
use crate::mesh::within;

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) version: Version,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().unwrap())
    }
}

/// A connection to a gateway's listener.
#[derive(Debug, Clone)]
pub(crate) enum Wire {
    H1,
    H2,
}

/// A caller with one connection.
#[derive(Debug)]
pub(crate) enum Client {
    H1(hyper::client::conn::http1::SendRequest<AnyBody>),
    H2(hyper::client::conn::http2::SendRequest<AnyBody>),
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr, wire: &Wire) -> Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let io = TokioIo::new(tcp);
        Ok(match wire {
            Wire::H1 => {
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                tokio::spawn(connection.with_upgrades());
                Self::H1(sender)
            }
            Wire::H2 => {
                let builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
                let (sender, connection) = builder.handshake(io).await?;
                tokio::spawn(connection);
                Self::H2(sender)
            }
        })
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn begin(
        &mut self,
        request: Request<AnyBody>,
    ) -> Result<http::Response<Incoming>> {
        Ok(match self {
            Self::H1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
            Self::H2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await?
            }
        })
    }

    /// Sends a request and reads its answer.
    pub(crate) async fn send(&mut self, request: Request<AnyBody>) -> Result<Answer> {
        let response = self.begin(request).await?;
        finish(response).await
    }

    /// The head of a request as this connection's version wants it.
    pub(crate) fn head(&self, method: &str, host: &str, path: &str) -> http::request::Builder {
        match self {
            Self::H1(_) => Request::builder()
                .method(method)
                .uri(path)
                .header(header::HOST, host),
            Self::H2(_) => Request::builder()
                .method(method)
                .version(Version::HTTP_2)
                .uri(format!("http://{host}{path}")),
        }
    }

    pub(crate) async fn get(&mut self, host: &str, path: &str) -> Result<Answer> {
        let request = self.head("GET", host, path).body(AnyBody::empty())?;
        self.send(request).await
    }

    pub(crate) async fn post(&mut self, host: &str, path: &str, body: Bytes) -> Result<Answer> {
        let request = self.head("POST", host, path).body(AnyBody::of(body))?;
        self.send(request).await
    }
}

/// Reads an answer to its end.
pub(crate) async fn finish(response: http::Response<Incoming>) -> Result<Answer> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned();
    Ok(Answer {
        status: head.status,
        version: head.version,
        headers: head.headers,
        body: body.to_bytes(),
        trailers,
    })
}

/// One GET by HTTP/1.1 on a connection of its own.
pub(crate) async fn get(address: SocketAddr, host: &str, path: &str) -> Answer {
    call(address, "GET", host, path, Bytes::new()).await
}

/// One request by HTTP/1.1 on a connection of its own.
pub(crate) async fn call(
    address: SocketAddr,
    method: &str,
    host: &str,
    path: &str,
    body: Bytes,
) -> Answer {
    let calling = async {
        let mut client = Client::connect(address, &Wire::H1).await?;
        let request = client.head(method, host, path);
        client.send(request.body(AnyBody::of(body))?).await
    };
    within("an answer", calling).await.unwrap()
}

/// Writes `text` and reads until the end.
pub(crate) async fn raw(address: SocketAddr, text: &str) -> String {
    let asking = async {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(text.as_bytes()).await?;
        let mut all = Vec::new();
        tcp.read_to_end(&mut all).await?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&all).into_owned())
    };
    within("a raw answer", asking).await.unwrap()
}

/// Reads a head up to its empty line.
pub(crate) async fn read_head(tcp: &mut TcpStream) -> Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        let n = within("a head", tcp.read(&mut byte))
            .await
            .context("reading a head")?;
        if n == 0 {
            bail!(
                "the end instead of a head: {}",
                String::from_utf8_lossy(&head)
            );
        }
        head.extend_from_slice(&byte);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
