//! What a message's body is read from, and HTTP/2 streams written to.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep};

use super::Counted;
use super::body::{BodyError, Outgoing};
use super::expect::{Across, Interim, Passing};
use super::flow::OpenWindow;
use super::h1::{self, Rewound};
use super::headers::{self, Present};
use super::pool::Answer;
use crate::transport::Stream;

/// The body of a message that came in.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// By HTTP/1.1, of a caller.
    H1(h1::RequestBody<Counted>),
    /// By HTTP/1.1, of an endpoint.
    Answer(Answer),
    /// By HTTP/2.
    H2(Box<Recv>),
    /// By HTTP/2, of a caller whose message was over with its head.
    Over { present: Present, passing: Across },
}

/// The receiving half of an HTTP/2 stream.
#[derive(Debug)]
pub(crate) struct Recv {
    stream: RecvStream,
    window: OpenWindow,
    present: Present,
    /// What the length that the message names leaves to come.
    left: Option<u64>,
    ended: bool,
    whose: Whose,
}

/// Who sends on an HTTP/2 stream.
#[derive(Debug)]
pub(crate) enum Whose {
    Caller {
        /// Asks for the body, once, when it is read.
        interim: Option<Interim>,
        passing: Across,
    },
    /// With the other half, where it is written by a task: ended with this one.
    Endpoint(#[expect(dead_code, reason = "held for its drop")] Option<Sending>),
}

/// A task that writes a request's body; it ends when dropped.
#[derive(Debug)]
pub(crate) struct Sending(pub(crate) AbortHandle);

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Incoming {
    /// The receiving half of a stream as a body.
    pub(crate) fn h2(
        stream: RecvStream,
        window: OpenWindow,
        headers: &HeaderMap,
        whose: Whose,
    ) -> Self {
        let present = Present::of(headers);
        Self::H2(Box::new(Recv {
            whose,
            left: if present.has(Present::CONTENT_LENGTH) {
                headers::content_length(headers)
            } else {
                None
            },
            present,
            ended: stream.is_end_stream(),
            stream,
            window,
        }))
    }
}

impl Incoming {
    /// What the headers of its message have.
    pub(super) fn present(&self) -> Present {
        match self {
            Self::H1(body) => body.present(),
            Self::Answer(answer) => answer.present(),
            Self::H2(recv) => recv.present,
            Self::Over { present, .. } => *present,
        }
    }

    /// Where interim responses go, of a caller.
    pub(super) fn passing(&self) -> Option<Passing> {
        match self {
            Self::H1(body) => body.passing(),
            Self::H2(recv) => match &recv.whose {
                Whose::Caller { passing, .. } => Some(Passing::Across(passing.clone())),
                Whose::Endpoint(_) => None,
            },
            Self::Over { passing, .. } => Some(Passing::Across(passing.clone())),
            Self::Answer(_) => None,
        }
    }

    /// The connection of an endpoint that changed the protocol.
    pub(super) fn into_upgraded(self) -> Option<Rewound<Stream>> {
        match self {
            Self::Answer(answer) => answer.into_upgraded(),
            Self::H1(_) | Self::H2(_) | Self::Over { .. } => None,
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::H1(body) => Pin::new(body).poll_frame(cx),
            Self::Answer(answer) => answer.poll_frame(cx),
            Self::H2(recv) => recv.poll(cx),
            Self::Over { .. } => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::H1(body) => body.is_end_stream(),
            Self::Answer(answer) => answer.has_ended(),
            Self::H2(recv) => recv.ended,
            Self::Over { .. } => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1(body) => body.size_hint(),
            Self::Answer(answer) => answer.size_hint(),
            Self::H2(recv) if recv.ended => SizeHint::with_exact(0),
            Self::Over { .. } => SizeHint::with_exact(0),
            Self::H2(recv) => recv.left.map_or_else(SizeHint::new, SizeHint::with_exact),
        }
    }
}

impl Recv {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Whose::Caller { interim, .. } = &mut self.whose
            && let Some(interim) = interim.take()
        {
            interim.ask();
        }
        match ready!(self.stream.poll_data(cx)) {
            Some(Ok(bytes)) => {
                // Always within what came in.
                self.stream
                    .flow_control()
                    .release_capacity(bytes.len())
                    .ok();
                self.window.consumed(bytes.len());
                self.left = self
                    .left
                    .map(|left| left.saturating_sub(bytes.len() as u64));
                self.ended = self.stream.is_end_stream();
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Some(Err(error)) => return self.failed(error),
            None => {}
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        match trailers {
            Ok(trailers) => {
                self.ended = true;
                Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
            }
            Err(error) => self.failed(error),
        }
    }

    fn failed(&mut self, error: h2::Error) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.ended = true;
        let is_reset = error.reason() == Some(Reason::NO_ERROR) && !error.is_go_away();
        if is_reset && self.window.is_whole() {
            // RFC 9113 §8.1: a complete answer was sent, and the rest of the request is not wanted.
            // Without its end it would be half of one that looks whole.
            return Poll::Ready(None);
        }
        let error = if self.window.flow().is_silent() {
            BodyError::Unanswered
        } else {
            BodyError::Http2(error)
        };
        Poll::Ready(Some(Err(error)))
    }
}

/// Writes a body to its end.
///
/// At most what `max_send_buffer_size` allows, and one frame of the body more, waits in `h2` for
/// the other end to read (a slow reader costs no more than that); one that takes nothing for
/// `patience` is given up.
///
/// # Errors
/// Why the stream ended before: whoever reads it was told by a reset, or told us by one.
///
/// # Cancel safety
/// Dropping it resets the stream, unless all was written.
pub(crate) async fn send(
    body: Outgoing,
    stream: &mut SendStream<Bytes>,
    patience: Option<Duration>,
) -> Result<(), BodyError> {
    let mut body = pin!(body);
    let mut reader = Reader {
        patience,
        until: None,
        has_moved: false,
        has_asked: false,
    };
    loop {
        let next = std::future::poll_fn(|cx| poll_next(body.as_mut(), stream, &mut reader, cx));
        match next.await {
            None => {
                stream.send_data(Bytes::new(), true)?;
                return Ok(());
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => {
                    let is_last = body.is_end_stream();
                    if is_last || !bytes.is_empty() {
                        stream.send_data(bytes, is_last)?;
                    }
                    if is_last {
                        return Ok(());
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        stream.reserve_capacity(0);
                        stream.send_trailers(trailers)?;
                        return Ok(());
                    }
                }
            },
            Some(Err(error)) => {
                if matches!(error, BodyError::Unread(_)) {
                    body.unread();
                }
                stream.send_reset(error.reset());
                return Err(error);
            }
        }
    }
}

/// How long the other end may take nothing, and until when; most take all at once, and need no
/// timer.
#[derive(Debug)]
struct Reader {
    patience: Option<Duration>,
    until: Option<Pin<Box<Sleep>>>,
    /// Whether it took something since the timer was set.
    has_moved: bool,
    /// Whether there may be room already: until it is asked for there is none.
    has_asked: bool,
}

impl Reader {
    /// Ready with the error once it has taken nothing for too long.
    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        let Some(patience) = self.patience else {
            return Poll::Pending;
        };
        let until = self
            .until
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        if std::mem::take(&mut self.has_moved) {
            until.as_mut().reset(Instant::now() + patience);
        }
        until
            .as_mut()
            .poll(cx)
            .map(|()| BodyError::Unread(patience))
    }
}

/// The next frame of the body, once there is room for it; an error if the stream was reset.
fn poll_next(
    body: Pin<&mut Outgoing>,
    stream: &mut SendStream<Bytes>,
    reader: &mut Reader,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    if !reader.has_asked || stream.capacity() == 0 {
        reader.has_asked = true;
        stream.reserve_capacity(1);
        while stream.capacity() == 0 {
            match stream.poll_capacity(cx) {
                // Taken away again before it could be used.
                Poll::Ready(Some(Ok(0))) => {}
                Poll::Ready(Some(Ok(_))) => break,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error.into()))),
                Poll::Ready(None) => return Poll::Ready(Some(Err(BodyError::Closed))),
                Poll::Pending => {
                    if let Poll::Ready(error) = reader.poll_given_up(cx) {
                        return Poll::Ready(Some(Err(error)));
                    }
                    return poll_reset(stream, cx);
                }
            }
        }
    }
    reader.has_moved = true;
    match body.poll_frame(cx) {
        Poll::Pending => poll_reset(stream, cx),
        ready => ready,
    }
}

fn poll_reset(
    stream: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
    let error = match ready!(stream.poll_reset(cx)) {
        Ok(reason) => h2::Error::from(reason),
        Err(error) => error,
    };
    Poll::Ready(Some(Err(error.into())))
}
