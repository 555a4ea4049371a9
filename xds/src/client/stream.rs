//! A stream of discovery over bytes that somebody else dialled.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::client::Grpc;
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::Stream as TokioStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};
use zeugma_core::line::{beginning, with_causes};

use super::HANDSHAKE_TIMEOUT;
use super::counted::{Counted, Encode, in_order, plain};
use crate::pb::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use crate::session::client::{Ended, Protocol};

/// How often a server that says nothing is asked whether it lives (P40) ...
const PING: Duration = Duration::from_secs(30);
/// ... and how long it has to answer that.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// The methods of the aggregated discovery service.
const DELTA: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const FULL: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
/// Requests that wait to be read. A server that answers is told as much again as it sends.
const REQUESTS_MAX: usize = 1024;
/// The largest head of an answer.
pub(crate) const HEAD_BYTES_MAX: u32 = 16 << 10;
/// How much may be under way: ten thousand clusters are some megabytes, and one window of 64 KiB each
/// would take a round trip.
const WINDOW: u32 = 4 << 20;

type Calling<T> = Pin<Box<dyn Future<Output = Result<Response<Streaming<T>>, Status>> + Send>>;

/// What comes of a stream.
#[derive(Debug)]
pub(super) enum Came {
    Opened,
    Delta(DeltaDiscoveryResponse),
    Full(DiscoveryResponse),
    Ended(Ended, String),
}

/// Where a stream is.
pub(super) enum Stream {
    None,
    /// Somebody dials.
    Dialling(Protocol),
    Shaking(
        Protocol,
        Pin<Box<dyn Future<Output = Result<Channel, String>> + Send>>,
        usize,
    ),
    Delta(
        mpsc::Sender<DeltaDiscoveryRequest>,
        Answers<DeltaDiscoveryResponse>,
    ),
    Full(mpsc::Sender<DiscoveryRequest>, Answers<DiscoveryResponse>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Dialling(_) => "Dialling",
            Self::Shaking(..) => "Shaking",
            Self::Delta(..) => "Delta",
            Self::Full(..) => "Full",
        })
    }
}

/// The answers of a call; its head may come with the first of them, and no sooner.
pub(super) enum Answers<T> {
    Calling(Calling<T>),
    Coming(Box<Streaming<T>>),
}

impl Stream {
    /// Begins HTTP/2 on these bytes, which are of a server that is called so.
    pub(super) fn shake_hands<S>(&mut self, io: S, origin: &str, message_bytes_max: usize)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self::Dialling(protocol) = *self else {
            return;
        };
        let endpoint = endpoint(origin);
        let shaking = async move {
            let endpoint = endpoint?;
            let connecting = endpoint.connect_with_connector(Once(Some(io)));
            match timeout(HANDSHAKE_TIMEOUT, connecting).await {
                Ok(Ok(channel)) => Ok(channel),
                Ok(Err(error)) => Err(with_causes(&error)),
                Err(_elapsed) => Err(format!("no HTTP/2 within {HANDSHAKE_TIMEOUT:?}")),
            }
        };
        *self = Self::Shaking(protocol, Box::pin(shaking), message_bytes_max);
    }

    /// Says something; whether there is room for it.
    pub(super) fn delta(&self, request: DeltaDiscoveryRequest) -> bool {
        match self {
            Self::Delta(requests, _) => requests.try_send(request).is_ok(),
            // It was said to a stream that has ended meanwhile.
            Self::None | Self::Dialling(_) | Self::Shaking(..) | Self::Full(..) => true,
        }
    }

    /// Says something; whether there is room for it.
    pub(super) fn full(&self, request: DiscoveryRequest) -> bool {
        match self {
            Self::Full(requests, _) => requests.try_send(request).is_ok(),
            Self::None | Self::Dialling(_) | Self::Shaking(..) | Self::Delta(..) => true,
        }
    }

    /// What comes next; for ever where there is no stream.
    ///
    /// # Cancel safety
    /// Safe: a future that has not ended stays, and a message is taken whole or not at all.
    pub(super) async fn came(&mut self) -> Came {
        match self {
            Self::None | Self::Dialling(_) => std::future::pending().await,
            Self::Shaking(protocol, shaking, bytes_max) => match shaking.await {
                Ok(channel) => {
                    *self = call(channel, *protocol, *bytes_max);
                    Came::Opened
                }
                Err(why) => Came::Ended(Ended::Otherwise, why),
            },
            Self::Delta(_, answers) => answers.came(Came::Delta).await,
            Self::Full(_, answers) => answers.came(Came::Full).await,
        }
    }
}

impl<T: 'static> Answers<T> {
    async fn came(&mut self, of: fn(T) -> Came) -> Came {
        if let Self::Calling(calling) = self {
            match calling.await {
                Ok(answer) => *self = Self::Coming(Box::new(answer.into_inner())),
                Err(status) => return ended(&status),
            }
        }
        let Self::Coming(answers) = self else {
            return std::future::pending().await;
        };
        // When the next one comes nobody knows; whether anybody is there the pings tell.
        match answers.message().await {
            Ok(Some(answer)) => of(answer),
            Ok(None) => Came::Ended(Ended::Otherwise, "it ended the stream".to_owned()),
            Err(status) => ended(&status),
        }
    }
}

fn endpoint(origin: &str) -> Result<Endpoint, String> {
    let origin: Uri = origin
        .parse()
        .map_err(|error| format!("`{origin}`: {error}"))?;
    // The bytes are dialled already: only the origin is told.
    let endpoint = Endpoint::from_static("http://dialled");
    Ok(endpoint
        .origin(origin)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .http2_max_header_list_size(HEAD_BYTES_MAX))
}

fn call(channel: Channel, protocol: Protocol, bytes_max: usize) -> Stream {
    match protocol {
        Protocol::Delta => {
            let (requests, asked) = mpsc::channel(REQUESTS_MAX);
            let calling = discover(channel, asked, (DELTA, in_order), bytes_max);
            Stream::Delta(requests, Answers::Calling(Box::pin(calling)))
        }
        Protocol::Full => {
            let (requests, asked) = mpsc::channel(REQUESTS_MAX);
            let calling = discover(channel, asked, (FULL, plain), bytes_max);
            Stream::Full(requests, Answers::Calling(Box::pin(calling)))
        }
    }
}

async fn discover<T, U>(
    channel: Channel,
    asked: mpsc::Receiver<T>,
    (method, encode): (&'static str, Encode<T>),
    bytes_max: usize,
) -> Result<Response<Streaming<U>>, Status>
where
    T: Message + 'static,
    U: Message + Default + 'static,
{
    let mut grpc = Grpc::new(channel).max_decoding_message_size(bytes_max);
    let ready = grpc.ready().await;
    ready.map_err(|error| Status::unavailable(with_causes(&error)))?;
    let path = PathAndQuery::from_static(method);
    let request = Request::new(Requests(asked));
    grpc.streaming(request, path, Counted::new(encode)).await
}

fn ended(status: &Status) -> Came {
    let ended = if status.code() == Code::Unimplemented {
        Ended::Unimplemented
    } else {
        Ended::Otherwise
    };
    let mut why = format!("{:?}", status.code());
    if !status.message().is_empty() {
        why = format!("{why}: {}", status.message());
    }
    Came::Ended(ended, cut(&why))
}

/// The beginning of what a server says.
pub(crate) fn cut(text: &str) -> String {
    const CHARS_MAX: usize = 1000;
    beginning(text, CHARS_MAX)
}

/// What is asked, as it comes.
pub(crate) struct Requests<T>(pub(crate) mpsc::Receiver<T>);

impl<T> TokioStream for Requests<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.poll_recv(cx)
    }
}

/// Gives out what was dialled, once: by a connector of tonic's own the C library would be linked to look
/// up names.
pub(crate) struct Once<S>(pub(crate) Option<S>);

impl<S> Service<Uri> for Once<S> {
    type Response = TokioIo<S>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<TokioIo<S>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let io = self
            .0
            .take()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        std::future::ready(io.map(TokioIo::new))
    }
}
