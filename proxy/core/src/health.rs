//! What active checks say about one endpoint, and when the next is due.
//!
//! ```text
//!            `down` bad in a row
//! Unknown ------------------------> Unhealthy
//!    |  ^ (counts as healthy)          |   ^
//!    | first good        `up` good in  |   | `down` bad in a row
//!    v                   a row         v   |
//!   Healthy <--------------------------    |
//!      |___________________________________|
//! ```

use std::time::Duration;

use crate::balance::fraction;
use crate::shares::EndpointStatus;
use crate::snapshot::ActiveCheck;
use crate::time::Time;

/// How much longer than its deadlines a check may stay unanswered before it counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// The active check of one endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    verdict: ActiveVerdict,
    good_in_a_row: u32,
    bad_in_a_row: u32,
    schedule: Schedule,
}

/// What the answers so far amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActiveVerdict {
    /// Too few answers to tell: not dead.
    Unknown,
    /// Good.
    Healthy,
    /// Bad.
    Unhealthy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Schedule {
    Due(Time),
    /// Under way; a lost one is forgotten at `lost`, the next one is due at `next`.
    InFlight {
        lost: Time,
        next: Time,
    },
}

impl Active {
    /// A check that is due at once.
    #[must_use]
    pub const fn new(now: Time) -> Self {
        Self {
            verdict: ActiveVerdict::Unknown,
            good_in_a_row: 0,
            bad_in_a_row: 0,
            schedule: Schedule::Due(now),
        }
    }

    /// What the answers so far amount to.
    #[must_use]
    pub const fn verdict(&self) -> ActiveVerdict {
        self.verdict
    }

    /// The endpoint's health by active checks alone.
    #[must_use]
    pub const fn status(&self) -> EndpointStatus {
        match self.verdict {
            ActiveVerdict::Unknown => EndpointStatus::Unknown,
            ActiveVerdict::Healthy => EndpointStatus::Healthy,
            ActiveVerdict::Unhealthy => EndpointStatus::Unhealthy,
        }
    }

    /// When the next check may start: when it is due, or when the one under way counts as lost.
    #[must_use]
    pub const fn wake(&self) -> Time {
        match self.schedule {
            Schedule::Due(at) => at,
            Schedule::InFlight { lost, .. } => lost,
        }
    }

    /// Whether a check is under way.
    #[must_use]
    pub const fn is_in_flight(&self) -> bool {
        matches!(self.schedule, Schedule::InFlight { .. })
    }

    /// Notes that a check starts. The next is due after `every`, give or take a tenth, so that
    /// gateways that started together do not ask together.
    pub fn started(&mut self, check: &ActiveCheck, connect: Duration, now: Time, draw: u64) {
        self.schedule = Schedule::InFlight {
            lost: now + connect + check.timeout + LOST_AFTER,
            next: now + check.every.mul_f64(0.9 + 0.2 * fraction(draw, 0)),
        };
    }

    /// Makes a check due at once, for another question is asked from here on. What the answers so far
    /// amount to stays until there are others; one that is under way is not waited for.
    pub fn asked_anew(&mut self, now: Time) {
        *self = Self {
            verdict: self.verdict,
            ..Self::new(now)
        };
    }

    /// Takes an answer; returns the new verdict if it changed. An answer nobody waits for says
    /// nothing.
    pub fn finished(
        &mut self,
        good: bool,
        check: &ActiveCheck,
        now: Time,
    ) -> Option<ActiveVerdict> {
        let Schedule::InFlight { next, .. } = self.schedule else {
            return None;
        };
        self.schedule = Schedule::Due(next.max(now));
        let before = self.verdict;
        if good {
            self.bad_in_a_row = 0;
            self.good_in_a_row = self.good_in_a_row.saturating_add(1);
            let enough = self.good_in_a_row >= check.up;
            if enough || before == ActiveVerdict::Unknown {
                self.verdict = ActiveVerdict::Healthy;
            }
        } else {
            self.good_in_a_row = 0;
            self.bad_in_a_row = self.bad_in_a_row.saturating_add(1);
            if self.bad_in_a_row >= check.down {
                self.verdict = ActiveVerdict::Unhealthy;
            }
        }
        (self.verdict != before).then_some(self.verdict)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::ActiveKind;

    const SECOND: Duration = Duration::from_secs(1);

    fn check() -> ActiveCheck {
        ActiveCheck {
            kind: ActiveKind::Tcp,
            every: SECOND * 5,
            timeout: SECOND,
            up: 2,
            down: 3,
        }
    }

    /// The verdict after each of these answers.
    fn after(answers: &[bool]) -> Vec<ActiveVerdict> {
        let mut active = Active::new(Time::ZERO);
        answers
            .iter()
            .map(|good| {
                active.started(&check(), SECOND, active.wake(), 1);
                let _change = active.finished(*good, &check(), active.wake());
                active.verdict()
            })
            .collect()
    }

    #[test]
    fn thresholds_are_answers_in_a_row() {
        use ActiveVerdict::{Healthy as H, Unhealthy as U, Unknown as N};
        assert_eq!(after(&[false, false, false]), [N, N, U]);
        assert_eq!(after(&[true, false, false, true]), [H, H, H, H]);
        assert_eq!(
            after(&[false, false, false, true, false, true, true]),
            [N, N, U, U, U, U, H]
        );
        assert_eq!(after(&[true, false, false, false, false]), [H, H, H, U, U]);
    }

    #[test]
    fn the_first_is_due_at_once_and_the_next_within_a_tenth_of_every() {
        for draw in 0..100 {
            let mut active = Active::new(Time::ZERO);
            assert_eq!(active.wake(), Time::ZERO);
            active.started(&check(), SECOND, Time::ZERO, draw);
            assert!(active.is_in_flight());
            let change = active.finished(true, &check(), Time::ZERO + SECOND);
            assert_eq!(change, Some(ActiveVerdict::Healthy));
            let wait = active.wake().since(Time::ZERO);
            assert!(
                wait >= SECOND * 45 / 10 && wait <= SECOND * 55 / 10,
                "{wait:?}"
            );
        }
    }

    #[test]
    fn a_lost_check_does_not_stop_the_next_and_its_late_answer_is_counted_once() {
        let mut active = Active::new(Time::ZERO);
        active.started(&check(), SECOND, Time::ZERO, 0);
        let lost = active.wake();
        assert_eq!(lost, Time::ZERO + SECOND * 2 + LOST_AFTER);
        active.started(&check(), SECOND, lost, 0);
        assert_eq!(active.finished(false, &check(), lost), None);
        assert_eq!(active.finished(false, &check(), lost), None);
        assert_eq!(active.bad_in_a_row, 1);
    }
}
