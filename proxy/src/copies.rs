//! Copies for a service's mirror: how many are under way, and how often it is said that they differ.
//! Those of requests are made in `http/mirror`, those of connections here.

mod connection;
mod feed;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

pub(crate) use self::connection::copied;
pub(crate) use self::feed::Copied;

/// Of each mirror a worker logs no more than one difference in so long; all are counted.
pub(crate) const TOLD_EVERY: Duration = Duration::from_secs(10);

/// What one worker knows of the copies from a service to a mirror.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    under_way: Cell<usize>,
    told: Cell<Option<Instant>>,
    untold: Cell<u64>,
}

impl Copies {
    /// How many are under way.
    pub(crate) const fn under_way(&self) -> usize {
        self.under_way.get()
    }

    /// Whether there is nothing to remember once none is under way.
    pub(crate) fn is_forgettable(&self) -> bool {
        (self.told.get()).is_none_or(|told| told.elapsed() >= TOLD_EVERY)
    }

    /// Notes a difference `now`; if it is to be told, how many before it were not.
    pub(crate) fn tells(&self, now: Instant) -> Option<u64> {
        let is_early =
            |told: Instant| now.checked_duration_since(told).unwrap_or_default() < TOLD_EVERY;
        if self.told.get().is_some_and(is_early) {
            self.untold.set(self.untold.get() + 1);
            return None;
        }
        self.told.set(Some(now));
        Some(self.untold.replace(0))
    }
}

/// One copy under way.
#[derive(Debug)]
pub(crate) struct Place(Rc<Copies>);

impl Place {
    /// Counts one more until it is dropped.
    pub(crate) fn new(copies: Rc<Copies>) -> Self {
        copies.under_way.set(copies.under_way.get() + 1);
        Self(copies)
    }

    /// All of its kind.
    pub(crate) fn copies(&self) -> &Copies {
        &self.0
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let under_way = &self.0.under_way;
        under_way.set(under_way.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_difference_is_told_in_so_long_and_how_many_were_not() {
        let copies = Copies::default();
        let began = Instant::now();
        assert!(copies.is_forgettable());
        assert_eq!(copies.tells(began), Some(0));
        assert!(!copies.is_forgettable());
        for secs in [0, 1, 9] {
            assert_eq!(copies.tells(began + Duration::from_secs(secs)), None);
        }
        assert_eq!(copies.tells(began + TOLD_EVERY), Some(3));
        assert_eq!(copies.tells(began + TOLD_EVERY * 2), Some(0));
    }

    #[test]
    fn a_place_counts_until_it_is_dropped() {
        let copies = Rc::<Copies>::default();
        let (one, other) = (
            Place::new(Rc::clone(&copies)),
            Place::new(Rc::clone(&copies)),
        );
        assert_eq!(one.copies().under_way(), 2);
        drop((one, other));
        assert_eq!(copies.under_way(), 0);
    }
}
