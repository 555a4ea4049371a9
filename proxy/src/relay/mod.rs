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
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use self::direction::{Broken, Direction, Splicing};
pub(crate) use self::pipes::Pipes;
use crate::recheck::Entry;
use crate::transport::Stream;
use crate::upstream::tune;

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
    /// It was told to end.
    Told,
    /// The caller's side failed.
    Downstream(io::Error),
    /// The endpoint's side failed.
    Upstream(io::Error),
}

/// How long a relay lives before its connection to the endpoint gets an end to silence: most are
/// over by then, and pay for no options that they do not need.
const SETTLED: Duration = Duration::from_secs(5);

/// Relays until both directions are closed, one fails, nothing moved for `idle`, or `entry` is told
/// to end.
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
    entry: Rc<Entry>,
) -> impl Future<Output = RelayEnd>
where
    D: AsyncRead + AsyncWrite + Unpin + 'static,
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    // TLS below an upgraded connection is out of sight: it decrypts in its own buffer.
    let pair = Pair::new((downstream, false), (upstream, false), None);
    run(pair, idle, moved, entry)
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
    entry: Rc<Entry>,
) -> impl Future<Output = RelayEnd> + use<> {
    const ENDS: &Ends<Stream, Stream> = &Ends {
        downstream: Stream::socket,
        upstream: Stream::socket,
        cork_downstream: Stream::cork,
        cork_upstream: Stream::cork,
        reset_downstream: Stream::reset_when_dropped,
        reset_upstream: Stream::reset_when_dropped,
        settle: |upstream| tune(upstream.tcp()),
    };
    let sockets = Sockets { ends: ENDS, pipes };
    let are_tls = (downstream.is_tls(), upstream.is_tls());
    let pair = Pair::new(
        (downstream, are_tls.0),
        (upstream, are_tls.1),
        Some(sockets),
    );
    run(pair, idle, moved, entry)
}

/// Both streams and both directions, polled as one: nothing is shared between tasks.
#[derive(Debug)]
struct Pair<D: 'static, U: 'static> {
    downstream: D,
    upstream: U,
    sockets: Option<Sockets<D, U>>,
    up: Direction,
    down: Direction,
}

/// Streams that may be spliced.
#[derive(Debug)]
struct Sockets<D: 'static, U: 'static> {
    ends: &'static Ends<D, U>,
    pipes: Rc<Pipes>,
}

/// How to come by their sockets.
#[derive(Debug)]
struct Ends<D, U> {
    downstream: fn(&D) -> Option<&TcpStream>,
    upstream: fn(&U) -> Option<&TcpStream>,
    /// Has the last bytes leave together with the end.
    cork_downstream: fn(&mut D),
    cork_upstream: fn(&mut U),
    /// Has dropping it tell the other end that something is missing.
    reset_downstream: fn(&D),
    reset_upstream: fn(&U),
    /// Sets what a connection needs that stays.
    settle: fn(&U),
}

impl<D, U> Pair<D, U>
where
    D: AsyncRead + AsyncWrite + Unpin + 'static,
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    /// Each stream with whether it is TLS of ours.
    fn new(
        (downstream, is_tls_down): (D, bool),
        (upstream, is_tls_up): (U, bool),
        sockets: Option<Sockets<D, U>>,
    ) -> Self {
        Self {
            downstream,
            upstream,
            sockets,
            up: Direction::new(is_tls_down),
            down: Direction::new(is_tls_up),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: &Moved) -> Poll<RelayEnd> {
        if !self.up.has_ended() {
            let splicing = self.sockets.as_ref().map(|sockets| Splicing {
                source: sockets.ends.downstream,
                sink: sockets.ends.upstream,
                cork: sockets.ends.cork_upstream,
                is_last: self.down.has_ended(),
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
                source: sockets.ends.upstream,
                sink: sockets.ends.downstream,
                cork: sockets.ends.cork_downstream,
                is_last: self.up.has_ended(),
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

    fn settle(&self) {
        if let Some(sockets) = &self.sockets {
            (sockets.ends.settle)(&self.upstream);
        }
    }

    /// Passes on that one side failed: what it sent may be cut short, and to the other side, which
    /// would see FIN, it must not look whole (RFC 9293 §3.10.5: ABORT, not CLOSE).
    fn pass_on(&self, end: &RelayEnd) {
        let Some(sockets) = &self.sockets else {
            return;
        };
        match end {
            RelayEnd::Downstream(_) => (sockets.ends.reset_upstream)(&self.upstream),
            RelayEnd::Upstream(_) => (sockets.ends.reset_downstream)(&self.downstream),
            RelayEnd::Closed | RelayEnd::Idle | RelayEnd::Told => {}
        }
    }

    /// Has TLS say that nothing follows (RFC 8446 §6.1), as far as that needs no waiting. Where
    /// bytes are held back it says nothing: what they belong to is cut short, and must look so.
    fn take_leave(&mut self, cx: &mut Context<'_>) {
        let (up, down) = match &self.sockets {
            // Closing a socket says as much.
            Some(sockets) => (
                (sockets.ends.upstream)(&self.upstream).is_none(),
                (sockets.ends.downstream)(&self.downstream).is_none(),
            ),
            None => (true, true),
        };
        if up && self.up.holds_nothing() {
            drop(Pin::new(&mut self.upstream).poll_shutdown(cx));
        }
        if down && self.down.holds_nothing() {
            drop(Pin::new(&mut self.downstream).poll_shutdown(cx));
        }
        if let Some(sockets) = &self.sockets {
            if self.up.holds_bytes() {
                (sockets.ends.reset_upstream)(&self.upstream);
            }
            if self.down.holds_bytes() {
                (sockets.ends.reset_downstream)(&self.downstream);
            }
        }
    }

    /// Whether bytes moved since this was last asked.
    const fn take_stirred(&mut self) -> bool {
        let stirred = self.up.stirred || self.down.stirred;
        (self.up.stirred, self.down.stirred) = (false, false);
        stirred
    }
}

/// A relay and what ends it.
#[derive(Debug)]
struct Running<D: 'static, U: 'static, M> {
    pair: Pair<D, U>,
    moved: M,
    entry: Rc<Entry>,
    idle: Duration,
    stirred_at: Instant,
    is_settled: bool,
}

impl<D, U, M> Running<D, U, M>
where
    D: AsyncRead + AsyncWrite + Unpin + 'static,
    U: AsyncRead + AsyncWrite + Unpin + 'static,
    M: Deref<Target = Moved>,
{
    fn poll(&mut self, cx: &mut Context<'_>, mut alarm: Pin<&mut Sleep>) -> Poll<RelayEnd> {
        if let Poll::Ready(end) = self.pair.poll(cx, &self.moved) {
            self.pair.pass_on(&end);
            return Poll::Ready(end);
        }
        if self.entry.poll_over(cx).is_ready() {
            self.pair.take_leave(cx);
            return Poll::Ready(RelayEnd::Told);
        }
        if self.pair.take_stirred() {
            self.stirred_at = Instant::now();
        }
        while alarm.as_mut().poll(cx).is_ready() {
            if !self.is_settled {
                self.is_settled = true;
                self.pair.settle();
            }
            let until = self.stirred_at + self.idle;
            if until <= Instant::now() {
                return Poll::Ready(RelayEnd::Idle);
            }
            alarm.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// Not an `async fn`, whose future would have room for its arguments twice.
fn run<D, U>(
    pair: Pair<D, U>,
    idle: Duration,
    moved: impl Deref<Target = Moved>,
    entry: Rc<Entry>,
) -> impl Future<Output = RelayEnd>
where
    D: AsyncRead + AsyncWrite + Unpin + 'static,
    U: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut running = Running {
        pair,
        moved,
        entry,
        idle,
        stirred_at: Instant::now(),
        is_settled: false,
    };
    async move {
        // Set anew only when it goes off: bytes that move do not touch the timer.
        let mut alarm = pin!(sleep_until(running.stirred_at + idle.min(SETTLED)));
        poll_fn(|cx| running.poll(cx, alarm.as_mut())).await
    }
}

#[cfg(test)]
mod tests;
