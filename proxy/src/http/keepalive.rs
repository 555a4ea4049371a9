//! PING: finds the other end of an HTTP/2 connection gone, and how far away it is.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use super::flow::Flow;
use crate::transport::sent::{Link, Sent};

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
    link: Option<Link>,
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
    /// What had become of what was written, from half of the timeout on.
    sent: Option<Sent>,
}

/// The other end did not answer in time.
#[derive(Debug)]
pub(crate) struct Silent;

impl Keepalive {
    /// `link`: what is below, if it can be asked what became of the bytes written.
    pub(crate) fn new(
        ping_pong: Option<PingPong>,
        flow: &Flow,
        link: Option<Link>,
        asking: Pings,
    ) -> Self {
        Self {
            ping_pong,
            flow: flow.clone(),
            link,
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
        let is_doubted = self.flow.is_doubted();
        if self.asked.is_none() && (self.flow.wants_round_trip() || is_doubted) {
            let now = Instant::now();
            if is_doubted || self.measured.is_none_or(|at| now - at >= MEASURE) {
                self.ask(cx, now);
            }
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            self.flow.trim();
            let now = Instant::now();
            let read = self.flow.read_bytes();
            let is_due = self.asked.is_none() && self.is_due(is_awaiting, read);
            match self.asked {
                Some(asked) => match self.waits_until(asked, read, now) {
                    Some(until) => self.timer.as_mut().reset(until),
                    None => return Poll::Ready(Silent),
                },
                None if is_due => self.ask(cx, now),
                None => self.timer.as_mut().reset(now + self.asking.interval),
            }
            self.read = read;
        }
        Poll::Pending
    }

    /// How long the answer is waited for yet, unless the other end is silent. The PING and its
    /// answer may stand behind a lot of data on a slow way.
    fn waits_until(&mut self, asked: Asked, read: u64, now: Instant) -> Option<Instant> {
        let sent = self.link.and_then(|link| link.sent());
        let end = asked.at + self.asking.timeout;
        if now < end {
            self.asked = Some(Asked { sent, ..asked });
            return Some(end);
        }
        // Once nothing is queued the PING has arrived: its host is there, and it has to answer.
        let is_taken = matches!(
            (asked.sent, sent),
            (Some(before), Some(sent)) if before.queued > 0 && sent.acked > before.acked
        );
        let is_alive = is_taken || read != asked.read;
        self.asked = Some(Asked {
            read,
            sent,
            ..asked
        });
        is_alive.then(|| now + self.asking.timeout / 2)
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
        // Mostly the answer is there before it is time to look what became of the PING.
        self.timer.as_mut().reset(now + self.asking.timeout / 2);
        self.asked = Some(Asked {
            at: now,
            read: self.flow.read_bytes(),
            sent: None,
        });
        // The connection is polled before this: it has to write the PING, and to tell of the answer.
        if let Poll::Ready(Ok(_pong)) = ping_pong.poll_pong(cx) {
            self.asked = None;
        }
        cx.waker().wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::pin::pin;
    use std::sync::Arc;

    use bytes::Bytes;
    use h2::client::{Builder, Connection, SendRequest};
    use tokio::net::TcpStream;
    use tokio::time::advance;

    use super::*;
    use crate::http::flow::{FlowIo, Side};

    const ASKING: Pings = Pings {
        interval: Duration::from_millis(1500),
        timeout: Duration::from_millis(1500),
        when: When::Always,
    };

    /// A connection that asks, and its far end.
    struct Asking {
        connection: Connection<FlowIo<TcpStream>, Bytes>,
        keepalive: Keepalive,
        near: std::net::TcpStream,
        far: std::net::TcpStream,
        link: Link,
        _sender: SendRequest<Bytes>,
    }

    impl Asking {
        async fn new() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            near.set_nonblocking(true).unwrap();
            let (mut far, _) = listener.accept().unwrap();
            // SETTINGS (RFC 9113 §3.4).
            far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
            let tcp = TcpStream::from_std(near.try_clone().unwrap()).unwrap();
            let link = Link::of(&tcp).unwrap();
            let flow = Flow::new(&Arc::default(), Side::Client, 1);
            let begun = Builder::new().handshake(FlowIo::new(tcp, &flow)).await;
            let (sender, mut connection) = begun.unwrap();
            let keepalive = Keepalive::new(connection.ping_pong(), &flow, Some(link), ASKING);
            Self {
                connection,
                keepalive,
                near,
                far,
                link,
                _sender: sender,
            }
        }

        /// Puts bytes before whatever is written next; returns how many.
        fn fill(&mut self) -> usize {
            let mut given = 0;
            while let Ok(n) = self.near.write(&[0; 1 << 16]) {
                given += n;
            }
            given
        }

        /// Has the other end take so many bytes, and waits until its host has said so.
        fn takes(&mut self, bytes: usize) {
            let before = self.link.sent().unwrap();
            self.far.read_exact(&mut vec![0; bytes]).unwrap();
            while self.link.sent().unwrap().acked == before.acked {}
        }

        async fn is_silent_after(&mut self, elapsed: Duration) -> bool {
            advance(elapsed).await;
            let polled = poll_fn(|cx| {
                drop(pin!(&mut self.connection).poll(cx));
                Poll::Ready(self.keepalive.poll(cx, true))
            });
            polled.await.is_ready()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_bytes_slowly_is_there_and_who_takes_none_is_not() {
        let half = ASKING.timeout / 2;
        let mut asking = Asking::new().await;
        let given = asking.fill();
        assert!(!asking.is_silent_after(ASKING.interval).await);
        for _ in 0..4 {
            assert!(!asking.is_silent_after(half).await);
            asking.takes(given / 8);
        }
        assert!(!asking.is_silent_after(half).await);
        assert!(asking.is_silent_after(half).await);
    }

    #[tokio::test(start_paused = true)]
    async fn whose_host_has_taken_a_ping_has_to_answer_it_in_time() {
        let half = ASKING.timeout / 2;
        let mut asking = Asking::new().await;
        assert!(!asking.is_silent_after(ASKING.interval).await);
        while asking.link.sent().unwrap().queued > 0 {}
        assert!(!asking.is_silent_after(half).await);
        assert!(asking.is_silent_after(half).await);
    }
}
