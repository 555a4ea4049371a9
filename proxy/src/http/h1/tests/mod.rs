//! Against hyper as the oracle, and rule by rule.

mod oracle;
mod rules;

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Connection, Error, Served};
use crate::http::body::{BodyError, Outgoing};
use crate::transport::Readable;

/// What a head may be long in these tests.
const HEAD_BYTES_MAX: usize = 4096;

/// Far more than any of it takes.
const DEADLINE: Duration = Duration::from_secs(20);

/// A stream that says what it is told to in portions, and keeps what it hears.
#[derive(Debug, Default)]
struct Script {
    says: VecDeque<Vec<u8>>,
    /// What it says once it has heard something that ends so.
    asked_says: Option<(Vec<u8>, Vec<u8>)>,
    heard: Vec<u8>,
    /// A portion has just been read: the next comes with the next turn.
    rests: bool,
    /// Stays open behind the last portion.
    stays: bool,
    /// Takes so much at once, and nothing every other time.
    takes: Option<usize>,
    is_full: bool,
    /// Takes everything, and lets the other end hear of it only when it is flushed, so much each time,
    /// as TLS over a full socket does.
    behind: Option<usize>,
    kept: Vec<u8>,
}

impl Script {
    fn says(bytes: &[u8], portions: &[usize]) -> Self {
        let mut says = VecDeque::new();
        let (mut rest, mut portions) = (bytes, portions.iter().cycle());
        while !rest.is_empty() {
            let n = portions
                .next()
                .map_or(rest.len(), |n| (*n).clamp(1, rest.len()));
            let (portion, behind) = rest.split_at(n);
            says.push_back(portion.to_vec());
            rest = behind;
        }
        Self {
            says,
            ..Self::default()
        }
    }
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.kept.is_empty() {
            // The other end answers when it has heard all.
            return Poll::Pending;
        }
        self.rests = !self.rests;
        if self.rests && !self.says.is_empty() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.says.is_empty()
            && let Some((asked, says)) = self.asked_says.take()
        {
            if !self.heard.ends_with(&asked) {
                self.asked_says = Some((asked, says));
                return Poll::Pending;
            }
            self.says.push_back(says);
        }
        let Some(portion) = self.says.front_mut() else {
            return if self.stays {
                Poll::Pending
            } else {
                Poll::Ready(Ok(()))
            };
        };
        let n = portion.len().min(buf.remaining());
        buf.put_slice(&portion[..n]);
        portion.drain(..n);
        if portion.is_empty() {
            self.says.pop_front();
        }
        Poll::Ready(Ok(()))
    }
}

impl Readable for Script {}

impl AsyncWrite for Script {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let most = self.takes.unwrap_or(usize::MAX);
        self.is_full = !self.is_full;
        if self.takes.is_some() && self.is_full {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let n = buf.len().min(most);
        if self.behind.is_some() {
            self.kept.extend_from_slice(&buf[..n]);
        } else {
            self.heard.extend_from_slice(&buf[..n]);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let n = self.behind.unwrap_or_default().min(self.kept.len());
        let sent: Vec<u8> = self.kept.drain(..n).collect();
        self.heard.extend_from_slice(&sent);
        if self.kept.is_empty() {
            return Poll::Ready(Ok(()));
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A message as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Read {
    start: String,
    version: Version,
    headers: HeaderMap,
    /// The bytes and trailers, or that it is broken.
    body: Option<(Bytes, HeaderMap)>,
}

impl Read {
    fn is_whole(&self) -> bool {
        self.body.is_some()
    }

    /// What is compared: a length beside a coding counts for nothing.
    fn new(
        start: String,
        version: Version,
        mut headers: HeaderMap,
        body: Option<(Bytes, HeaderMap)>,
    ) -> Self {
        if headers.contains_key("transfer-encoding") {
            headers.remove("content-length");
        }
        Self {
            start,
            version,
            headers,
            body,
        }
    }
}

async fn collected<B: http_body::Body<Data = Bytes>>(body: B) -> Option<(Bytes, HeaderMap)> {
    let all = body.collect().await.ok()?;
    let trailers = all.trailers().cloned().unwrap_or_default();
    Some((all.to_bytes(), trailers))
}

/// A connection that was asked for `/`, and its response.
async fn asked(
    method: Method,
    script: Script,
) -> Result<(Connection<Script>, Response<()>), Error> {
    let mut connection = Connection::new(script, HEAD_BYTES_MAX);
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a.example");
    connection.begin(request.body(Outgoing::Empty).unwrap());
    let head = std::future::poll_fn(|cx| connection.poll_head(cx)).await?;
    Ok((connection, head))
}

/// The response that our client reads, if there is one.
async fn response(method: Method, script: Script) -> Option<Read> {
    let (mut connection, response) = asked(method, script).await.ok()?;
    let body = rest_of(&mut connection).await;
    let (head, ()) = response.into_parts();
    Some(Read::new(
        head.status.to_string(),
        head.version,
        head.headers,
        body,
    ))
}

/// The body of a response, and its trailers.
async fn rest_of(connection: &mut Connection<Script>) -> Option<(Bytes, HeaderMap)> {
    let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
    while let Some(frame) = std::future::poll_fn(|cx| connection.poll_frame(cx)).await {
        match frame.ok()?.into_data() {
            Ok(data) => bytes.extend_from_slice(&data),
            Err(frame) => trailers = frame.into_trailers().unwrap(),
        }
    }
    Some((bytes.into(), trailers))
}

/// The requests that our server reads, what it answered, and why it ended.
async fn requests(script: Script) -> (Vec<Read>, String, Result<(), Error>) {
    let seen = std::cell::RefCell::new(Vec::new());
    let served = Served::new(script, HEAD_BYTES_MAX);
    let ended = served
        .serve(async |request| {
            let (head, body) = request.into_parts();
            let body = collected(body).await;
            let start = format!("{} {}", head.method, head.uri);
            seen.borrow_mut()
                .push(Read::new(start, head.version, head.headers, body));
            Response::new(Outgoing::Empty)
        })
        .await;
    let heard = served
        .stream()
        .map_or_else(Vec::new, |script| script.heard.clone());
    let heard = String::from_utf8(heard).unwrap();
    (seen.into_inner(), heard, ended)
}

fn statuses(heard: &str) -> Vec<&str> {
    let lines = heard.lines().filter(|line| line.starts_with("HTTP/1."));
    lines.map(|line| &line[9..12]).collect()
}
