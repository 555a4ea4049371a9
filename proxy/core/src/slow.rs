//! How long an endpoint takes to answer beside the others of its level.
//!
//! What is typical is the geometric mean of the last 10 s: of a hundred answers one that took a
//! thousand times as long makes 7 % of difference, and every request may have its reasons. Logarithms
//! are summed, so that what a worker tells of many answers is two numbers.

use std::time::Duration;

use crate::outlier::WINDOW;
use crate::snapshot::Slow;
use crate::time::Time;

const SLOTS: usize = 10;

/// Others count as taking as long as this at the least: below it a difference is the scheduler's.
pub const FLOOR: Duration = Duration::from_millis(2);

/// A logarithm to the base e, in so many parts of one.
const PARTS: f64 = 1e6;

/// How long several answers took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Took {
    answers: u32,
    /// Of the microseconds of each, summed.
    logs: u64,
}

impl Took {
    /// One answer.
    #[must_use]
    pub fn one(took: Duration) -> Self {
        Self {
            answers: 1,
            logs: log_of(took),
        }
    }

    /// Takes some more.
    pub const fn add(&mut self, more: Self) {
        self.answers = self.answers.saturating_add(more.answers);
        self.logs = self.logs.saturating_add(more.logs);
    }

    /// Whether it is of no answer.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.answers == 0
    }

    /// How long one typically took; `None` where none was.
    #[must_use]
    pub fn typical(self) -> Option<Typical> {
        (self.logs.checked_div(u64::from(self.answers))).map(Typical)
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "of at least one microsecond, and under 60 for any duration"
)]
fn log_of(took: Duration) -> u64 {
    ((took.as_secs_f64() * 1e6).max(1.0).ln() * PARTS) as u64
}

/// How long one of several answers typically took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Typical(u64);

impl Typical {
    /// Whether it is more than so many times what is typical of `others`, which stand in their order.
    /// Half of them may be slow as well; where there are none, nothing is.
    #[must_use]
    pub fn is_over(self, slow: &Slow, others: &[Self]) -> bool {
        let Some(Self(others)) = others.get(others.len() / 2) else {
            return false;
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "of a number over one"
        )]
        let times = (slow.over.max(1.0).ln() * PARTS) as u64;
        self.0 > (*others).max(log_of(FLOOR)).saturating_add(times)
    }
}

/// How long the answers of the last 10 s took, in slots of one second.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TookWindow([(u64, Took); SLOTS]);

impl TookWindow {
    /// Counts some answers.
    pub fn add(&mut self, took: Took, now: Time) {
        let second = now.since_origin().as_secs();
        let at = usize::try_from(second).unwrap_or_default() % SLOTS;
        let Some(slot) = self.0.get_mut(at) else {
            return;
        };
        // What is told so late is no part of the window any more, and the slot is another second's.
        if slot.0 > second {
            return;
        }
        if slot.0 < second {
            *slot = (second, Took::default());
        }
        slot.1.add(took);
    }

    /// What is typical of the last 10 s; `None` of fewer answers than it takes to tell.
    #[must_use]
    pub fn typical(&self, slow: &Slow, now: Time) -> Option<Typical> {
        let second = now.since_origin().as_secs();
        let mut all = Took::default();
        (self.0.iter())
            .filter(|(of, _)| of + WINDOW.as_secs() > second && *of <= second)
            .for_each(|(_, took)| all.add(*took));
        (all.typical()).filter(|_| all.answers >= slow.requests.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Slow = Slow {
        over: 3.0,
        requests: 20,
    };

    fn typical(micros: u64) -> Typical {
        let took = Took::one(Duration::from_micros(micros));
        took.typical().unwrap()
    }

    fn at(seconds: u64) -> Time {
        Time::from_origin(Duration::from_secs(seconds))
    }

    #[test]
    fn what_is_typical_is_the_geometric_mean() {
        let mut took = Took::default();
        assert_eq!(took.typical(), None);
        // Of 1 ms and 100 ms it is 10 ms.
        took.add(Took::one(Duration::from_millis(1)));
        took.add(Took::one(Duration::from_millis(100)));
        let off = took.typical().unwrap().0.abs_diff(typical(10_000).0);
        assert!(off <= 1, "{off}");
        // One of a hundred that took a thousand times as long: 1000^(1/100) = 1.0715.
        let mut took = Took::one(Duration::from_secs(10));
        (0..99).for_each(|_| took.add(Took::one(Duration::from_millis(10))));
        let off = took.typical().unwrap().0.abs_diff(typical(10_715).0);
        assert!(off < 50, "{off}");
    }

    #[test]
    fn it_is_over_what_is_typical_of_the_others_and_never_below_the_floor() {
        let of = |own: u64, others: &[u64]| {
            let others: Vec<_> = others.iter().map(|micros| typical(*micros)).collect();
            typical(own).is_over(&SLOW, &others)
        };
        assert!(of(30_100, &[10_000]) && !of(29_900, &[10_000]));
        assert!(!of(30_100, &[]), "there is nothing to compare with");
        // Half of the others may be slow as well, but not more.
        assert!(of(90_000, &[10_000, 10_000, 90_000]));
        assert!(!of(90_000, &[10_000, 90_000]));
        // A tenth of a millisecond counts as two.
        assert!(of(6_100, &[100]) && !of(5_900, &[100]));
    }

    #[test]
    fn enough_answers_of_ten_seconds_tell() {
        let mut window = TookWindow::default();
        let ten = Took::one(Duration::from_millis(10));
        (0..19).for_each(|_| window.add(ten, at(5)));
        assert_eq!(window.typical(&SLOW, at(5)), None);
        window.add(ten, at(14));
        assert_eq!(window.typical(&SLOW, at(14)), ten.typical());
        assert_eq!(window.typical(&SLOW, at(15)), None);
        // Told too late, and of a second whose slot is another's.
        (0..20).for_each(|_| window.add(Took::one(Duration::from_secs(9)), at(4)));
        assert_eq!(window.typical(&SLOW, at(14)), ten.typical());
    }
}
