//! Copies of connections that carry bytes: what a caller sends goes to another route as well, what is
//! answered there is thrown away.
//!
//! A copy is connected and fed by a task of its own, beside the relay. It is given up by a reset, so that
//! what it got never looks whole when it is not.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep, timeout};
use zeugma_core::identity::SpiffeId;
use zeugma_core::mirror::{Copying, Dropped, Kind, Original, attempts, copying, takes_bytes};
use zeugma_core::plan::plan;
use zeugma_core::retry::Sender;
use zeugma_core::snapshot::Service;

use super::Place;
use super::feed::{Copied, Giving, Taker, feed};
use crate::admission::{self, Counted};
use crate::capacity;
use crate::connection::Visit;
use crate::recheck::{Listed, Open};
use crate::runtime::{InFlight, Worker};
use crate::transport::Stream;
use crate::upstream::{self, First, Pinned, tune};
use crate::walk::{Commit, commit_to};

/// What is read of an answer in one go.
const AWAY_BYTES: usize = 8 * 1024;

/// Begins the copies that the service's mirrors want of a connection, and returns the caller's stream, of
/// which they are made; never waits. A stream of which none are made is returned as it is.
pub(crate) fn copied(
    visit: &Visit,
    service: &Service,
    sender: Sender,
    caller: Option<&SpiffeId>,
    downstream: Stream,
) -> Stream {
    if service.mirrors.is_empty() {
        return downstream;
    }
    let original = Original {
        sender,
        kind: Kind::Primary,
        body_bytes: None,
    };
    let worker = &visit.worker;
    let draw = worker.draw();
    let mut givers = Vec::new();
    for (ix, mirror) in service.mirrors.iter().enumerate() {
        let copies = worker.copies(&service.name, &mirror.route);
        match copying(mirror, ix, &original, copies.under_way(), draw) {
            Copying::Skip(_) => {}
            Copying::Drop(why) => {
                let metrics = &worker.shared.metrics;
                metrics.mirrored(&service.name, &mirror.route, why.label());
            }
            Copying::Copy(terms) => {
                let Ok(counted) = admission::route_connection(&visit.published, mirror.to) else {
                    let why = Dropped::InFlight.label();
                    let metrics = &worker.shared.metrics;
                    metrics.mirrored(&service.name, &mirror.route, why);
                    continue;
                };
                let (giver, taker) = feed(mirror.body_bytes_max);
                givers.push(giver);
                let listed = (worker.registry).list_copy(&visit.listed, Open::Bytes, &mirror.route);
                // Something may have been published since the connection was let in.
                listed.settle(&worker.shared, visit.published.generation, None);
                let copy = Copy {
                    worker: Rc::clone(worker),
                    service: Arc::clone(&service.name),
                    route: Arc::clone(&mirror.route),
                    to: Pinned {
                        published: Arc::clone(&visit.published),
                        cluster: mirror.to,
                    },
                    source: visit.listed.source(),
                    caller: caller.cloned(),
                    timeout: terms.within,
                    listed,
                };
                // It ends with the connection that it is a copy of, and is counted in its place.
                let running = copy.run(taker, (Place::new(copies), counted));
                drop(worker.tasks.clone().spawn_local(running));
            }
        }
    }
    if givers.is_empty() {
        return downstream;
    }
    Stream::Copied(Box::new(Copied::new(downstream, givers)))
}

/// One copy.
struct Copy {
    worker: Rc<Worker>,
    service: Arc<str>,
    route: Arc<str>,
    to: Pinned,
    source: SocketAddr,
    caller: Option<SpiffeId>,
    timeout: Duration,
    /// Where a change finds it.
    listed: Listed,
}

impl Copy {
    async fn run(self, taker: Taker, places: (Place, Counted)) {
        let carrying = async {
            let connected = timeout(self.timeout, self.connect()).await;
            let (stream, in_flight) = match connected.unwrap_or(Err(Dropped::Unreachable)) {
                Ok(connected) => connected,
                Err(why) => return why.label(),
            };
            let fed = pump(stream, &taker, self.timeout).await;
            drop(in_flight);
            fed
        };
        // Both are cancel-safe: what was told is state, and what is dropped is reset.
        let result = tokio::select! {
            biased;
            () = self.listed.over() => Dropped::Ended.label(),
            result = Box::pin(carrying) => result,
        };
        let metrics = &self.worker.shared.metrics;
        metrics.mirrored(&self.service, &self.route, result);
        drop(places);
    }

    /// Connects the first endpoint that takes it; what comes of it says nothing of their health.
    ///
    /// # Errors
    /// Why none does.
    async fn connect(&self) -> Result<(Stream, InFlight), Dropped> {
        let (worker, cluster) = (&self.worker, self.to.cluster());
        let load = |endpoint| worker.load(cluster, endpoint);
        let shares = self.to.published.shares_of(self.to.cluster);
        let draw = worker.draw_for(cluster, self.source.ip(), None);
        let commit = Commit::Tcp {
            caller: self.caller.as_ref(),
            first: First::Anyone,
        };
        let planned = plan(cluster, shares, &load, draw);
        let planned = capacity::within(&worker.shared, shares, planned);
        // What is left out for being full may be nothing that it could have.
        let mut is_full = planned.leaves_out_full() && cluster.endpoints.iter().any(takes_bytes);
        let mut is_tried = false;
        for attempt in attempts(planned) {
            let endpoint = cluster.endpoint(attempt.endpoint);
            if !takes_bytes(endpoint) {
                continue;
            }
            if !capacity::take(&worker.shared, shares, attempt.endpoint) {
                is_full = true;
                continue;
            }
            is_tried = true;
            let in_flight = worker.enter(&endpoint.key);
            let deadline = cluster.connect_deadline(endpoint);
            let (alpn, first) = (commit.alpn(), commit.first(endpoint));
            let connected = upstream::connect(&worker.shared, deadline, endpoint, alpn, first);
            let mut upstream = match connected.await {
                Ok(upstream) => upstream,
                Err(error) => {
                    tracing::debug!(endpoint = %endpoint.key, %error, "no copy is taken");
                    upstream::note_refusal(&worker.shared, &error);
                    continue;
                }
            };
            if let Some(peer) = &upstream.peer {
                (self.listed).goes_to(&endpoint.backend, &endpoint.address, Some(peer));
                self.listed.settle_now(&worker.shared);
            }
            let committing = Box::pin(commit_to(self.source, &mut upstream, endpoint, commit));
            if matches!(timeout(deadline, committing).await, Ok(Ok(()))) {
                tune(upstream.stream.tcp());
                return Ok((upstream.stream, in_flight));
            }
        }
        Err(if is_full && !is_tried {
            Dropped::OverCapacity
        } else {
            Dropped::Unreachable
        })
    }
}

/// Gives a copy's endpoint what its caller sends until that connection is over, and `patience` longer, and
/// reads away what it answers; returns what became of it.
async fn pump(stream: Stream, taker: &Taker, patience: Duration) -> &'static str {
    stream.reset_when_dropped();
    let mut pumping = Pumping {
        stream,
        is_answered: false,
        has_end: false,
    };
    let mut late = pin!(None);
    poll_fn(|cx| pumping.poll(cx, taker, late.as_mut(), patience)).await
}

#[derive(Debug)]
struct Pumping {
    stream: Stream,
    /// The endpoint has ended its answer.
    is_answered: bool,
    /// It was told of the caller's end.
    has_end: bool,
}

impl Pumping {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        taker: &Taker,
        mut late: Pin<&mut Option<Sleep>>,
        patience: Duration,
    ) -> Poll<&'static str> {
        let giving = taker.giving(cx);
        if giving == Giving::TooSlow {
            return Poll::Ready(Dropped::Slow.label());
        }
        let polled = self.poll_both(cx, taker, giving);
        if let Poll::Ready(result) = polled {
            return Poll::Ready(match result {
                Ok(()) => "sent",
                // All of it was taken, whatever became of the answer.
                Err(_) if self.has_end => "sent",
                Err(_) => "failed",
            });
        }
        if matches!(giving, Giving::Over | Giving::Broken) {
            if late.is_none() {
                late.set(Some(sleep(patience)));
            }
            if let Some(late) = late.as_mut().as_pin_mut() {
                ready!(late.poll(cx));
                return Poll::Ready(if self.has_end {
                    // What was taken may be on its way yet. Whoever has it and goes on talking is cut off:
                    // nobody reads there any more.
                    self.stream.linger_when_dropped();
                    "sent"
                } else {
                    Dropped::Timeout.label()
                });
            }
        }
        Poll::Pending
    }

    fn poll_both(
        &mut self,
        cx: &mut Context<'_>,
        taker: &Taker,
        giving: Giving,
    ) -> Poll<std::io::Result<()>> {
        if let Poll::Ready(Err(error)) = self.poll_read_away(cx) {
            return Poll::Ready(Err(error));
        }
        ready!(self.poll_give(cx, taker))?;
        match giving {
            // The primary was broken off, and so is this.
            Giving::Broken => Poll::Ready(Ok(())),
            Giving::Ended | Giving::Over => {
                if !self.has_end {
                    ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
                    self.has_end = true;
                }
                if !self.is_answered {
                    return Poll::Pending;
                }
                // Both sides have ended it: the last bytes are the kernel's to bring there.
                self.stream.linger_when_dropped();
                Poll::Ready(Ok(()))
            }
            Giving::Goes | Giving::TooSlow => Poll::Pending,
        }
    }

    /// Ready once all that waits was taken by the socket.
    fn poll_give(&mut self, cx: &mut Context<'_>, taker: &Taker) -> Poll<std::io::Result<()>> {
        if self.has_end {
            return Poll::Ready(Ok(()));
        }
        loop {
            let stream = &mut self.stream;
            let is_empty = ready!(taker.poll_take(|bytes| {
                match ready!(Pin::new(stream).poll_write(cx, bytes))? {
                    0 => Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                    n => Poll::Ready(Ok(n)),
                }
            }))?;
            if is_empty {
                return Pin::new(&mut self.stream).poll_flush(cx);
            }
        }
    }

    /// Reads until nothing is there; others have their turn after each portion that fills the room.
    fn poll_read_away(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        if self.is_answered {
            return Poll::Ready(Ok(()));
        }
        let mut room = [0; AWAY_BYTES];
        let mut away = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut away))?;
        if away.filled().is_empty() {
            self.is_answered = true;
        } else {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
