//! How long an endpoint may take to answer, and a caller to send its body.

use std::cell::RefCell;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use crate::http::Context;
use crate::http::body::{Progress, Source};
use crate::runtime::{Polled, unless_others_first};

pub(super) struct Deadlines {
    pub(super) began: Instant,
    pub(super) response_headers: Duration,
    pub(super) per_try: Option<Duration>,
    pub(super) idle: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Late {
    /// The endpoint took too long to read the request or to answer it.
    Endpoint,
    /// The caller stopped sending its body.
    Caller,
}

impl Deadlines {
    /// Waits for the response's head: `response_headers` from the end of the request, or while the
    /// endpoint does not read it; `idle` while the caller sends none of it; `per_try` in all.
    ///
    /// The timer is the connection's, or a spare one of the worker where requests have that under way,
    /// and is left running for the next request: to set one costs more than the rest of this.
    pub(super) async fn hold<T>(
        &self,
        context: &Context,
        source: &Source,
        sending: impl Future<Output = T>,
    ) -> Result<T, Late> {
        let mut sending = std::pin::pin!(sending);
        let spares = &context.worker.timers;
        let mut sleep = context.timer.take().or_else(|| spares.take());
        let mut now = self.began;
        let mut waits = self.waits(source, now);
        // Put there by whichever poll it comes of: handed up through each of them, it would be moved
        // by each.
        let mut held = Err(Late::Endpoint);
        let until_held = std::future::poll_fn(|cx| {
            let poll = || sending.as_mut().poll(cx).map(|sent| held = Ok(sent));
            match unless_others_first(poll) {
                Polled::Ready(()) => return Poll::Ready(()),
                Polled::OthersFirst => return Poll::Pending,
                Polled::Pending => {}
            }
            loop {
                let sleep = sleep.get_or_insert_with(|| Box::pin(sleep_until(waits.look)));
                if sleep.deadline() > waits.look {
                    sleep.as_mut().reset(waits.look);
                }
                ready!(sleep.as_mut().poll(cx));
                now = Instant::now();
                if now >= waits.look {
                    if let Some(late) = self.is_late(source, &waits, now) {
                        held = Err(late);
                        return Poll::Ready(());
                    }
                    waits = self.waits(source, now);
                }
                sleep.as_mut().reset(waits.look);
            }
        });
        until_held.await;
        if let Some(another) = context.timer.replace(sleep) {
            spares.keep(another);
        }
        held
    }

    /// What is waited for, from `now` on.
    fn waits(&self, source: &Source, now: Instant) -> Waits {
        let (since, patience, late) = match source.progress() {
            Progress::Ended(at) | Progress::AwaitsEndpoint(at) => {
                (at, self.response_headers, Late::Endpoint)
            }
            Progress::AwaitsCaller(at) => (at, self.idle, Late::Caller),
        };
        let due = self.began.max(Instant::from_std(since)) + patience;
        // Looked at anew now and then: what is waited for changes under way.
        let look = due.min(now + self.response_headers);
        let per_try = self.per_try.map(|per_try| self.began + per_try);
        Waits {
            since,
            due,
            late,
            look: per_try.map_or(look, |per_try| look.min(per_try)),
        }
    }

    fn is_late(&self, source: &Source, waits: &Waits, now: Instant) -> Option<Late> {
        if self
            .per_try
            .is_some_and(|per_try| now >= self.began + per_try)
        {
            return Some(Late::Endpoint);
        }
        let (Progress::Ended(at) | Progress::AwaitsEndpoint(at) | Progress::AwaitsCaller(at)) =
            source.progress();
        (now >= waits.due && at == waits.since).then_some(waits.late)
    }
}

/// What a try waits for.
#[derive(Debug)]
struct Waits {
    since: std::time::Instant,
    due: Instant,
    late: Late,
    /// When it is looked at.
    look: Instant,
}

/// The timer of a connection, while no request of it has it.
pub(crate) type Timer = RefCell<Option<Pin<Box<Sleep>>>>;

/// Timers that a worker keeps for requests beside others on their connection.
const SPARES_MAX: usize = 64;

/// The timers of a worker that no request has, left running.
#[derive(Debug, Default)]
pub(crate) struct Timers(RefCell<Vec<Pin<Box<Sleep>>>>);

impl Timers {
    fn take(&self) -> Option<Pin<Box<Sleep>>> {
        self.0.borrow_mut().pop()
    }

    fn keep(&self, timer: Pin<Box<Sleep>>) {
        let mut spares = self.0.borrow_mut();
        if spares.len() < SPARES_MAX {
            spares.push(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_keeps_so_many_timers_and_gives_each_once() {
        let timers = Timers::default();
        for _ in 0..=SPARES_MAX {
            timers.keep(Box::pin(sleep_until(Instant::now())));
        }
        let given = std::iter::from_fn(|| timers.take());
        assert_eq!(given.count(), SPARES_MAX);
    }
}
