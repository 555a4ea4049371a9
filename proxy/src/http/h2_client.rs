//! HTTP/2 to endpoints: `h2` itself, for the same reasons as towards callers.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use zeugma_core::snapshot::Failure;

use super::body::Outgoing;
use super::expect::Ahead;
use super::flow::{Flow, FlowIo, H2_WINDOW, Side};
use super::keepalive::{Keepalive, Pings, When};
use super::pool::SendError;
use super::stream::{self, Incoming, Sending, Whose};
use super::unheard::{Hearing, Host};
use super::{DATA_FRAME_BUDGET, STREAM_SEND_BYTES};
use crate::runtime::Shared;
use crate::transport::sent::Link;

/// Streams on one connection before another is opened.
const STREAMS_MAX: u32 = 100;
/// The streams that are used before an endpoint's SETTINGS say how many it takes.
const UNTOLD: usize = 1;
/// How long a new connection waits for them before it is shared.
const SETTINGS_WAIT: Duration = Duration::from_millis(250);

/// A connection to an endpoint that carries many requests; its driving task ends with its last
/// sender and stream.
#[derive(Debug)]
pub(crate) struct Multiplexed {
    sender: SendRequest<Bytes>,
    flow: Flow,
    ended: Rc<Cell<bool>>,
    streams: Rc<Cell<usize>>,
    /// How many streams the endpoint takes at once.
    streams_max: Rc<Cell<usize>>,
    hearing: Hearing,
}

/// A place for one request on a connection.
#[derive(Debug)]
pub(crate) struct Place {
    sender: SendRequest<Bytes>,
    flow: Flow,
    count: StreamCount,
}

/// One stream counted on its connection until dropped.
#[derive(Debug)]
pub(crate) struct StreamCount(Rc<Cell<usize>>);

impl StreamCount {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Multiplexed {
    /// Begins HTTP/2 on a connection.
    ///
    /// # Errors
    /// The endpoint does not speak it, or ended the connection.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection.
    pub(crate) async fn begin<S>(
        shared: &Shared,
        stream: S,
        link: Option<Link>,
        asking: Pings,
    ) -> Result<Self, h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let flow = Flow::new(&shared.windows, Side::Client, STREAMS_MAX);
        let header_bytes = shared.settings.limits.header_bytes;
        let (sender, mut connection) = Builder::new()
            .enable_push(false)
            .initial_window_size(H2_WINDOW)
            .initial_connection_window_size(H2_WINDOW)
            .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
            .max_send_buffer_size(STREAM_SEND_BYTES)
            .data_frame_budget(DATA_FRAME_BUDGET)
            // Until the endpoint has said how many it takes: more may be refused.
            .initial_max_send_streams(UNTOLD)
            .handshake::<_, Bytes>(FlowIo::new(stream, &flow))
            .await?;
        let settled = std::future::poll_fn(|cx| match pin!(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended),
            Poll::Pending if flow.is_settled() => Poll::Ready(Ok(())),
            Poll::Pending => Poll::Pending,
        });
        // One that takes one stream, or is slow to say, is used as one that takes one.
        timeout(SETTINGS_WAIT, settled).await.unwrap_or(Ok(()))?;
        let most = |max: usize| max.clamp(1, STREAMS_MAX as usize);
        let streams = Rc::<Cell<usize>>::default();
        let streams_max = Rc::new(Cell::new(most(connection.max_concurrent_send_streams())));
        let ended = Rc::<Cell<bool>>::default();
        let host = match asking.when {
            When::Always => Host::Peer,
            When::Awaiting => Host::Other,
        };
        let hearing = Hearing::new(&flow, link, host);
        let mut keepalive = Keepalive::new(connection.ping_pong(), &flow, link, asking);
        let driving = {
            let (flow, streams) = (flow.clone(), Rc::clone(&streams));
            let (streams_max, ended) = (Rc::clone(&streams_max), Rc::clone(&ended));
            async move {
                let driven = std::future::poll_fn(|cx| {
                    flow.driven_by(cx);
                    flow.gather();
                    loop {
                        match pin!(&mut connection).poll(cx) {
                            Poll::Ready(driven) => return Poll::Ready(driven),
                            // Writes what it has gathered meanwhile.
                            Poll::Pending if flow.release() => {}
                            Poll::Pending => break,
                        }
                    }
                    streams_max.set(most(connection.max_concurrent_send_streams()));
                    keepalive.poll(cx, streams.get() > 0).map(|_silent| {
                        flow.fell_silent();
                        Ok(())
                    })
                });
                let driven = driven.await;
                ended.set(true);
                if flow.is_silent() {
                    tracing::debug!("an endpoint answered no PING");
                } else if let Err(error) = driven {
                    tracing::debug!(%error, "a connection to an endpoint ended");
                }
            }
        };
        // Ends with its connection, and that with its last sender and stream.
        drop(tokio::task::spawn_local(driving));
        Ok(Self {
            sender,
            flow,
            ended,
            streams,
            streams_max,
            hearing,
        })
    }

    /// Whether its host is there.
    pub(super) const fn hearing(&self) -> &Hearing {
        &self.hearing
    }

    /// Whether it was ended because the endpoint answered no PING.
    pub(crate) fn is_silent(&self) -> bool {
        self.flow.is_silent()
    }

    /// Whether it takes no more requests.
    pub(crate) fn is_closed(&self) -> bool {
        self.ended.get() || self.flow.is_leaving()
    }

    /// Whether no request is on it.
    pub(crate) fn is_idle(&self) -> bool {
        self.streams.get() == 0
    }

    /// Whether it has a place for a request.
    pub(crate) fn has_place(&self) -> bool {
        !self.is_closed() && self.streams.get() < self.streams_max.get()
    }

    /// A place for a request, if there is one.
    pub(crate) fn place(&self) -> Option<Place> {
        self.has_place().then(|| Place {
            sender: self.sender.clone(),
            flow: self.flow.clone(),
            count: StreamCount::new(&self.streams),
        })
    }

    /// The first place of a new connection, whatever became of it meanwhile.
    pub(crate) fn first_place(&self) -> Place {
        Place {
            sender: self.sender.clone(),
            flow: self.flow.clone(),
            count: StreamCount::new(&self.streams),
        }
    }
}

impl Place {
    /// Whether the endpoint takes WebSocket over HTTP/2 (RFC 8441 §3).
    pub(crate) fn takes_extended_connect(&self) -> bool {
        self.sender.is_extended_connect_protocol_enabled()
    }

    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// The connection broke or refused the stream.
    ///
    /// # Cancel safety
    /// Dropping it resets the stream.
    pub(crate) async fn send(
        mut self,
        request: Request<Outgoing>,
        ahead: Ahead,
    ) -> Result<(Response<Incoming>, StreamCount), SendError> {
        let (head, body) = request.into_parts();
        let is_end = body.is_end_stream();
        let unsent = |error: h2::Error| SendError {
            failure: Failure::RefusedStream,
            detail: error.to_string(),
        };
        std::future::poll_fn(|cx| self.sender.poll_ready(cx))
            .await
            .map_err(unsent)?;
        let (mut response, mut sending) = self
            .sender
            .send_request(Request::from_parts(head, ()), is_end)
            .map_err(unsent)?;
        let window = self.flow.open(response.stream_id().as_u32());
        let sending = (!is_end).then(|| {
            // Ends with the response, at the latest, which has deadlines.
            let task = tokio::task::spawn_local(async move {
                if let Err(error) = stream::send(body, &mut sending, None).await {
                    tracing::debug!(%error, "a request's body was not sent to its end");
                }
            });
            Sending(task.abort_handle())
        });
        let responding = std::future::poll_fn(|cx| {
            // Pending, there is no answer either.
            while let Some(Ok(interim)) = ready!(response.poll_informational(cx)) {
                if interim.status() == StatusCode::CONTINUE
                    && let Some(gate) = &ahead.gate
                {
                    gate.open();
                }
                if let Some(passing) = &ahead.passing {
                    passing.push(interim);
                }
            }
            pin!(&mut response).poll(cx)
        });
        let response = responding.await.map_err(|error| self.explain(&error))?;
        let (head, recv) = response.into_parts();
        let body = Incoming::h2(recv, window, &head.headers, Whose::Endpoint(sending));
        Ok((Response::from_parts(head, body), self.count))
    }

    fn explain(&self, error: &h2::Error) -> SendError {
        if self.flow.is_silent() {
            return SendError {
                failure: Failure::Reset,
                detail: "the endpoint answered no PING".to_owned(),
            };
        }
        // RFC 9113 §8.7: neither was processed by the application.
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR));
        SendError {
            failure: if refused {
                Failure::RefusedStream
            } else {
                Failure::Reset
            },
            detail: error.to_string(),
        }
    }
}
