//! How often a server is listened to. One that answers each answer at once, with something new or with what
//! was refused again, would keep a gateway at nothing else (the crate `xds-server` 0.1.0 does so after each
//! NACK of a full answer). What it says meanwhile waits, and its flow control with it (P52).

use std::time::Duration;

use tokio::time::Instant;

/// Responses that are taken one after the other ...
const BURST: u32 = 500;
/// ... and how often one is after that.
const EVERY: Duration = Duration::from_millis(10);

/// When responses were taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// When as many may be taken at once as ever.
    full_at: Instant,
}

impl Pace {
    pub(super) const fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// When the next one may be taken; now or before where it may be at once.
    pub(super) fn free_at(self) -> Instant {
        let room = EVERY * (BURST - 1);
        self.full_at.checked_sub(room).unwrap_or(self.full_at)
    }

    /// One was taken.
    pub(super) fn take(&mut self, now: Instant) {
        self.full_at = self.full_at.max(now) + EVERY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_are_taken_at_once_and_then_one_after_the_other() {
        let now = Instant::now() + Duration::from_secs(3600);
        let mut pace = Pace::new(now);
        for taken in 0..BURST {
            assert!(pace.free_at() <= now, "{taken}");
            pace.take(now);
        }
        assert_eq!(pace.free_at(), now + EVERY);
        pace.take(now + EVERY);
        assert_eq!(pace.free_at(), now + 2 * EVERY);
        // Some are free after a while, all of them after a long one.
        let later = now + 2 * EVERY + 10 * EVERY;
        for taken in 0..11 {
            assert!(pace.free_at() <= later, "{taken}");
            pace.take(later);
        }
        assert!(pace.free_at() > later);
        let much_later = later + EVERY * BURST * 2;
        for _ in 0..BURST {
            assert!(pace.free_at() <= much_later);
            pace.take(much_later);
        }
        assert!(pace.free_at() > much_later);
    }
}
