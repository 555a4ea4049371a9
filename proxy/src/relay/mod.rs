//! Moving bytes both ways: half-close, an idle deadline, byte counts.
//!
//! Bytes go through one buffer of the worker's, and between two plain sockets through a pipe once
//! it is worth one; a relay that moves nothing holds neither.

mod direction;
mod pipes;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::ops::Deref;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use self::direction::{Broken, Direction, Splicing};
pub(crate) use self::pipes::Pipes;
use crate::transport::Stream;

/// Bytes moved so far; readable while the relay runs and after it was dropped.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// From the caller to the endpoint.
    pub(crate) up: Cell<u64>,
    /// From the endpoint to the caller.
    pub(crate) down: Cell<u64>,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum RelayEnd {
    /// Both directions were closed in order.
    Closed,
    /// No byte moved for the idle time.
    Idle,
    /// The caller's side failed.
    Downstream(io::Error),
    /// The endpoint's side failed.
    Upstream(io::Error),
}

/// Relays until both directions are closed, one fails, or nothing moved for `idle`.
///
/// The end of one direction is passed on and leaves the other open (RFC 9293 §3.6).
///
/// # Cancel safety
/// Dropping the future drops both streams; what was moved stands in `moved`.
pub(crate) fn relay<D, U>(
    downstream: D,
    upstream: U,
    idle: Duration,
    moved: &Moved,
) -> impl Future<Output = RelayEnd>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    run(Pair::new(downstream, upstream, None), idle, moved)
}

/// As [`relay`]; where neither stream is TLS of ours, by `splice(2)` once that is worth it.
///
/// # Cancel safety
/// As [`relay`].
pub(crate) fn relay_streams(
    downstream: Stream,
    upstream: Stream,
    idle: Duration,
    moved: Rc<Moved>,
    pipes: Rc<Pipes>,
) -> impl Future<Output = RelayEnd> + use<> {
    let sockets = Sockets {
        downstream: Stream::socket,
        upstream: Stream::socket,
        cork: (Stream::cork, Stream::cork),
        pipes,
    };
    run(Pair::new(downstream, upstream, Some(sockets)), idle, moved)
}

/// Both streams and both directions, polled as one: nothing is shared between tasks.
#[derive(Debug)]
struct Pair<D, U> {
    downstream: D,
    upstream: U,
    sockets: Option<Sockets<D, U>>,
    up: Direction,
    down: Direction,
}

/// How to come by the sockets of streams that may be spliced.
#[derive(Debug)]
struct Sockets<D, U> {
    downstream: fn(&D) -> Option<&TcpStream>,
    upstream: fn(&U) -> Option<&TcpStream>,
    cork: (fn(&D), fn(&U)),
    pipes: Rc<Pipes>,
}

impl<D, U> Pair<D, U>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    const fn new(downstream: D, upstream: U, sockets: Option<Sockets<D, U>>) -> Self {
        Self {
            downstream,
            upstream,
            sockets,
            up: Direction::new(),
            down: Direction::new(),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: &Moved) -> Poll<RelayEnd> {
        if !self.up.has_ended() {
            let splicing = self.sockets.as_ref().map(|sockets| Splicing {
                source: sockets.downstream,
                sink: sockets.upstream,
                cork: sockets.cork.1,
                pipes: &sockets.pipes,
            });
            let streams = (&mut self.downstream, &mut self.upstream);
            match self.up.poll(cx, streams, splicing.as_ref(), &moved.up) {
                Poll::Ready(Err(Broken::Reading(error))) => {
                    return Poll::Ready(RelayEnd::Downstream(error));
                }
                Poll::Ready(Err(Broken::Writing(error))) => {
                    return Poll::Ready(RelayEnd::Upstream(error));
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if !self.down.has_ended() {
            let splicing = self.sockets.as_ref().map(|sockets| Splicing {
                source: sockets.upstream,
                sink: sockets.downstream,
                cork: sockets.cork.0,
                pipes: &sockets.pipes,
            });
            let streams = (&mut self.upstream, &mut self.downstream);
            match self.down.poll(cx, streams, splicing.as_ref(), &moved.down) {
                Poll::Ready(Err(Broken::Reading(error))) => {
                    return Poll::Ready(RelayEnd::Upstream(error));
                }
                Poll::Ready(Err(Broken::Writing(error))) => {
                    return Poll::Ready(RelayEnd::Downstream(error));
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if self.up.has_ended() && self.down.has_ended() {
            return Poll::Ready(RelayEnd::Closed);
        }
        Poll::Pending
    }

    /// Whether bytes moved since this was last asked.
    const fn take_stirred(&mut self) -> bool {
        let stirred = self.up.stirred || self.down.stirred;
        (self.up.stirred, self.down.stirred) = (false, false);
        stirred
    }
}

#[expect(
    clippy::manual_async_fn,
    reason = "the future of an `async fn` has room for its arguments twice"
)]
fn run<D, U>(
    mut pair: Pair<D, U>,
    idle: Duration,
    moved: impl Deref<Target = Moved>,
) -> impl Future<Output = RelayEnd>
where
    D: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    async move {
        let mut stirred_at = Instant::now();
        // Set anew only when it goes off: bytes that move do not touch the timer.
        let mut alarm = pin!(sleep_until(stirred_at + idle));
        poll_fn(|cx| {
            if let Poll::Ready(end) = pair.poll(cx, &moved) {
                return Poll::Ready(end);
            }
            if pair.take_stirred() {
                stirred_at = Instant::now();
            }
            while alarm.as_mut().poll(cx).is_ready() {
                let until = stirred_at + idle;
                if until <= Instant::now() {
                    return Poll::Ready(RelayEnd::Idle);
                }
                alarm.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests;
