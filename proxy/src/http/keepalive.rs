//! PING: finds the other end of an HTTP/2 connection gone, and how far away it is.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::flow::Flow;

/// How often a round trip is measured while data flows.
const MEASURE: Duration = Duration::from_secs(1);
/// PINGs to an endpoint that sends no message in between. gRPC servers end a connection after the
/// fourth (`max_ping_strikes` 2, within `permit_keepalive_time` 5 min), and count anew with each
/// frame of a message that they send (gRFC A8).
const UNASKED_MAX: u32 = 3;

/// When the other end is asked whether it is there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pings {
    pub(crate) interval: Duration,
    /// How long it may take to answer, if nothing else comes from it.
    pub(crate) timeout: Duration,
    pub(crate) when: When,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// At every interval.
    Always,
    /// While a message is awaited and nothing comes, so often as gRPC servers allow.
    Awaiting,
}

/// The PINGs of one connection.
#[derive(Debug)]
pub(crate) struct Keepalive {
    ping_pong: Option<PingPong>,
    flow: Flow,
    asking: Pings,
    timer: Pin<Box<Sleep>>,
    asked: Option<Asked>,
    measured: Option<Instant>,
    /// What had come in at the last look.
    read: u64,
    messages: u64,
    unasked: u32,
}

#[derive(Debug, Clone, Copy)]
struct Asked {
    at: Instant,
    /// What had come in then.
    read: u64,
}

/// The other end did not answer in time.
#[derive(Debug)]
pub(crate) struct Silent;

impl Keepalive {
    pub(crate) fn new(ping_pong: Option<PingPong>, flow: &Flow, asking: Pings) -> Self {
        Self {
            ping_pong,
            flow: flow.clone(),
            asking,
            timer: Box::pin(tokio::time::sleep(asking.interval)),
            asked: None,
            measured: None,
            read: 0,
            messages: 0,
            unasked: 0,
        }
    }

    /// Goes on; ready when the other end is silent. `is_awaiting`: whether streams are open.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, is_awaiting: bool) -> Poll<Silent> {
        if let (Some(asked), Some(ping_pong)) = (self.asked, &mut self.ping_pong)
            && let Poll::Ready(Ok(_pong)) = ping_pong.poll_pong(cx)
        {
            let now = Instant::now();
            self.flow.took(now - asked.at);
            self.measured = Some(now);
            self.asked = None;
            self.timer.as_mut().reset(asked.at + self.asking.interval);
        }
        if self.asked.is_none() && self.flow.wants_round_trip() {
            let now = Instant::now();
            if self.measured.is_none_or(|at| now - at >= MEASURE) {
                self.ask(cx, now);
            }
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let read = self.flow.read_bytes();
            let is_due = self.asked.is_none() && self.is_due(is_awaiting, read);
            match self.asked {
                Some(asked) if asked.read == read => return Poll::Ready(Silent),
                Some(asked) => {
                    // It is there; its answer is behind what it sends.
                    self.asked = Some(Asked { read, ..asked });
                    self.timer.as_mut().reset(now + self.asking.timeout / 2);
                }
                None if is_due => self.ask(cx, now),
                None => self.timer.as_mut().reset(now + self.asking.interval),
            }
            self.read = read;
        }
        Poll::Pending
    }

    fn is_due(&mut self, is_awaiting: bool, read: u64) -> bool {
        match self.asking.when {
            When::Always => true,
            When::Awaiting => {
                let messages = self.flow.messages();
                if messages != self.messages {
                    self.messages = messages;
                    self.unasked = 0;
                }
                let due = is_awaiting && read == self.read && self.unasked < UNASKED_MAX;
                self.unasked += u32::from(due);
                due
            }
        }
    }

    fn ask(&mut self, cx: &mut Context<'_>, now: Instant) {
        // Ours alone: taken once from a new connection.
        let Some(ping_pong) = &mut self.ping_pong else {
            self.timer.as_mut().reset(now + self.asking.interval);
            return;
        };
        if ping_pong.send_ping(Ping::opaque()).is_err() {
            // The connection is ending, which its driver sees.
            self.timer.as_mut().reset(now + self.asking.interval);
            return;
        }
        self.asked = Some(Asked {
            at: now,
            read: self.flow.read_bytes(),
        });
        self.timer.as_mut().reset(now + self.asking.timeout);
        // The connection is polled before this: it has to write the PING, and to tell of the answer.
        if let Poll::Ready(Ok(_pong)) = ping_pong.poll_pong(cx) {
            self.asked = None;
        }
        cx.waker().wake_by_ref();
    }
}
