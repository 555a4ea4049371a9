//! Signs of life: whether the event loop of every worker turns.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

/// How often a worker gives a sign.
const EVERY: Duration = Duration::from_secs(1);
/// A worker that has given none for this long is stalled: something on its thread does not return.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// The signs of the workers that run.
#[derive(Debug)]
pub(crate) struct Pulses {
    began: Instant,
    workers: Mutex<Vec<Weak<Pulse>>>,
}

/// When a worker last gave a sign: milliseconds since its [`Pulses`] began.
#[derive(Debug)]
pub(crate) struct Pulse(AtomicU64);

impl Pulses {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            workers: Mutex::default(),
        }
    }

    /// Gives signs for the worker on whose event loop this runs; it is forgotten when this ends.
    pub(crate) async fn give(&self) {
        let pulse = self.join();
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            pulse.0.store(self.millis(), Ordering::Relaxed);
        }
    }

    /// How many workers are stalled.
    pub(crate) fn stalled(&self) -> usize {
        let now = self.millis();
        let limit = u64::try_from(STALLED_AFTER.as_millis()).unwrap_or(u64::MAX);
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stalled = 0;
        workers.retain(|worker| {
            let Some(pulse) = worker.upgrade() else {
                return false;
            };
            let silent = now.saturating_sub(pulse.0.load(Ordering::Relaxed));
            stalled += usize::from(silent > limit);
            true
        });
        stalled
    }

    /// A worker that gives no signs by itself.
    pub(crate) fn join(&self) -> Arc<Pulse> {
        let pulse = Arc::new(Pulse(AtomicU64::new(self.millis())));
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers.push(Arc::downgrade(&pulse));
        pulse
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_is_stalled_when_its_signs_stop_and_forgotten_when_it_has_ended() {
        let pulses = Pulses::new();
        let stuck = pulses.join();
        let turns = async {
            tokio::time::sleep(STALLED_AFTER).await;
            assert_eq!(pulses.stalled(), 0);
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(pulses.stalled(), 1, "the one that gives signs is not");
            stuck.0.store(pulses.millis(), Ordering::Relaxed);
            assert_eq!(pulses.stalled(), 0);
            tokio::time::sleep(2 * STALLED_AFTER).await;
            assert_eq!(pulses.stalled(), 1);
        };
        tokio::select! {
            () = pulses.give() => {}
            () = turns => {}
        }
        drop(stuck);
        tokio::time::sleep(2 * STALLED_AFTER).await;
        assert_eq!(pulses.stalled(), 0, "both have ended");
    }
}
