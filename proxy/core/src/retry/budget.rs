//! How many extra tries there may be: a share of the requests of the last 10 s.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::outlier::WINDOW;
use crate::time::Time;

/// The extra tries in 10 s that are always within the budget.
pub const BUDGET_MIN: u32 = 10;

/// One for each second of [`WINDOW`].
const SLOTS: usize = 10;
const _: () = assert!(WINDOW.as_secs() == SLOTS as u64);

/// Counts requests and extra tries of the last 10 s, so that tries do not multiply an outage.
///
/// One for each route: all who serve it count here, whichever share of its connections each has.
#[derive(Debug, Default)]
pub struct RetryBudget {
    /// A second each, made by the first request: of ten thousand routes most have none.
    slots: OnceLock<Box<[AtomicU64; SLOTS]>>,
}

/// What was counted in one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Slot {
    /// [`SECOND_BITS`] of its number, which wraps after half a year.
    second: u32,
    /// Up to [`REQUESTS_MAX`].
    requests: u32,
    /// Up to [`TAKEN_MAX`].
    taken: u32,
}

const SECOND_BITS: u32 = 24;
/// Nobody is later than the others by so many seconds: what seems to be still to come is long over.
const LATE_MAX: u32 = 1024;
const REQUESTS_BITS: u32 = 24;
const TAKEN_BITS: u32 = 16;
const REQUESTS_MAX: u32 = (1 << REQUESTS_BITS) - 1;
/// No more extra tries than this are made in a second.
const TAKEN_MAX: u32 = (1 << TAKEN_BITS) - 1;

impl Slot {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the bits that are left fit"
    )]
    const fn unpack(word: u64) -> Self {
        Self {
            second: (word >> (REQUESTS_BITS + TAKEN_BITS)) as u32,
            requests: (word >> TAKEN_BITS) as u32 & REQUESTS_MAX,
            taken: word as u32 & TAKEN_MAX,
        }
    }

    fn pack(self) -> u64 {
        let second = u64::from(self.second) << (REQUESTS_BITS + TAKEN_BITS);
        second | u64::from(self.requests) << TAKEN_BITS | u64::from(self.taken)
    }

    /// How many seconds before `second` it is; `None` for one to come.
    const fn age(self, second: u32) -> Option<u32> {
        let age = second.wrapping_sub(self.second) & ((1 << SECOND_BITS) - 1);
        if age < (1 << SECOND_BITS) - LATE_MAX {
            Some(age)
        } else {
            None
        }
    }

    /// As it counts at `second`, which has no other slot; `None` where it is of a later one: who says
    /// so late is not counted any more.
    const fn at(self, second: u32) -> Option<Self> {
        match self.age(second) {
            Some(0) => Some(self),
            None if self.requests > 0 || self.taken > 0 => None,
            Some(_) | None => Some(Self {
                second,
                requests: 0,
                taken: 0,
            }),
        }
    }
}

fn second_of(now: Time) -> u32 {
    let second = now.since_origin().as_secs() & ((1 << SECOND_BITS) - 1);
    u32::try_from(second).unwrap_or_default()
}

impl RetryBudget {
    /// Counts a request; extra tries are none.
    pub fn request(&self, now: Time) {
        let second = second_of(now);
        // Whoever loses the race counts on what the other made of it.
        let counted = self
            .slot(now)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let slot = Slot::unpack(word).at(second)?;
                let requests = (slot.requests + 1).min(REQUESTS_MAX);
                Some(Slot { requests, ..slot }.pack())
            });
        // Of a second that is over: not counted.
        counted.ok();
    }

    /// Takes an extra try, if `share` of the last 10 s' requests, or [`BUDGET_MIN`], allow one.
    #[must_use]
    pub fn take(&self, share: f64, now: Time) -> bool {
        let second = second_of(now);
        let place = self.slot(now);
        loop {
            // Read before the others: whoever takes meanwhile changes it.
            let word = place.load(Ordering::Acquire);
            let Some(slot) = Slot::unpack(word).at(second) else {
                return false;
            };
            if slot.taken == TAKEN_MAX || !self.has_room(share, now) {
                return false;
            }
            let taken = slot.taken + 1;
            let new = Slot { taken, ..slot }.pack();
            let swapped =
                place.compare_exchange_weak(word, new, Ordering::AcqRel, Ordering::Relaxed);
            if swapped.is_ok() {
                return true;
            }
        }
    }

    /// Whether an extra try could be taken.
    #[must_use]
    pub fn has_room(&self, share: f64, now: Time) -> bool {
        let (requests, taken) = self.totals(now);
        let allowed = (f64::from(requests) * share).max(f64::from(BUDGET_MIN));
        f64::from(taken) + 1.0 <= allowed
    }

    fn totals(&self, now: Time) -> (u32, u32) {
        let second = second_of(now);
        let slots = self.slots.get().into_iter().flat_map(|slots| slots.iter());
        slots
            .map(|slot| Slot::unpack(slot.load(Ordering::Acquire)))
            .filter(|slot| (slot.age(second)).is_some_and(|age| (age as usize) < SLOTS))
            .fold((0, 0), |(requests, taken), slot| {
                (requests + slot.requests, taken + slot.taken)
            })
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "a remainder is below the number of slots"
    )]
    fn slot(&self, now: Time) -> &AtomicU64 {
        let slots = self.slots.get_or_init(Box::default);
        let second = usize::try_from(now.since_origin().as_secs()).unwrap_or_default();
        &slots[second % SLOTS]
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> Time {
        Time::from_origin(Duration::from_secs(second))
    }

    fn taken(budget: &RetryBudget, second: u64) -> usize {
        (0..1000).filter(|_| budget.take(0.2, at(second))).count()
    }

    #[test]
    fn the_budget_is_a_share_of_ten_seconds_and_at_least_ten() {
        let budget = RetryBudget::default();
        assert_eq!(taken(&budget, 0), 10);
        assert_eq!(taken(&budget, 9), 0);
        assert_eq!(taken(&budget, 10), 10);
        for _ in 0..100 {
            budget.request(at(15));
        }
        // 20 % of 100, ten of which were taken at 10 s.
        assert_eq!(taken(&budget, 15), 10);
        assert_eq!(taken(&budget, 20), 10);
        assert_eq!(taken(&budget, 40), 10);
    }

    #[test]
    fn who_comes_from_a_second_that_is_over_takes_nothing_and_counts_for_nothing() {
        let budget = RetryBudget::default();
        budget.request(at(25));
        for _ in 0..1000 {
            budget.request(at(15));
        }
        assert!(!budget.take(0.2, at(15)));
        assert_eq!(taken(&budget, 25), 10);
    }

    #[test]
    fn seconds_are_told_apart_where_their_numbers_wrap() {
        let half = 1 << (SECOND_BITS - 1);
        for last in [(1 << SECOND_BITS) - 1, (1 << SECOND_BITS) - 5, half] {
            let budget = RetryBudget::default();
            for _ in 0..100 {
                budget.request(at(last));
            }
            assert_eq!(taken(&budget, last + 1), 20);
            assert_eq!(taken(&budget, last + 9), 0);
            assert_eq!(taken(&budget, last + 11), 10);
        }
    }

    #[test]
    fn a_second_counts_no_more_than_it_has_room_for() {
        let budget = RetryBudget::default();
        let full = Slot {
            second: 7,
            requests: REQUESTS_MAX,
            taken: TAKEN_MAX - 1,
        };
        budget.slot(at(7)).store(full.pack(), Ordering::Relaxed);
        budget.request(at(7));
        assert!(budget.take(1.0, at(7)));
        assert!(!budget.take(1.0, at(7)));
        assert_eq!(budget.totals(at(7)), (REQUESTS_MAX, TAKEN_MAX));
        // Nor do the others lose anything by it.
        assert_eq!(Slot::unpack(full.pack()), full);
        assert!(budget.take(1.0, at(8)));
    }

    #[test]
    fn workers_that_take_at_once_take_what_there_is_and_no_more() {
        const REQUESTS: usize = 10_000;
        for workers in [1, 2, 4] {
            let budget = RetryBudget::default();
            let taken: usize = thread::scope(|scope| {
                let work = || {
                    for _ in 0..REQUESTS / workers {
                        budget.request(at(3));
                    }
                };
                let counting: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
                counting.into_iter().for_each(|one| one.join().unwrap());
                let taking = || (0..REQUESTS).filter(|_| budget.take(0.2, at(3))).count();
                let taking: Vec<_> = (0..workers).map(|_| scope.spawn(taking)).collect();
                taking.into_iter().map(|one| one.join().unwrap()).sum()
            });
            assert_eq!(taken, REQUESTS / 5, "{workers} workers");
        }
    }
}
