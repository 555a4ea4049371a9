//! How a level's capacity follows its health in time.
//!
//! c is what the level could take by its health at this moment, d the damped value that counts.
//!
//! ```text
//!              c < d                                  c > d
//!   Holding <----------- Settled (c = d) -----------------------> Waiting
//!   |  since  ------------>   ^   ^  <------------------------     | since
//!   |         c >= d again    |   |   c <= d again                 |
//!   | for `hold`, or nothing  |   | d = c                          | for `failback.after`
//!   | healthy: d = c          |   |                                v
//!   `-------------------------'   `---- Ramping: d rises from where it was, by 1 / `ramp`
//! ```
//!
//! From every state c < d leads to Holding, and the rest as from Settled.
//!
//! With `failback.mode: manual` Waiting is Kept, which ends by a reset alone: what the others cannot
//! carry is lent (d rises by what is missing), and everything else waits. A level that fell owes a reset
//! from then on; one that operators took traffic off owes what it owed before.

use std::time::Duration;

use crate::outlier::Window;
use crate::shares::{LevelMotion, SHARE_EPSILON};
use crate::snapshot::{Failback, Failover};
use crate::time::Time;

/// The longest and shortest time between two steps of a ramp.
const RAMP_STEP_MAX: Duration = Duration::from_secs(1);
const RAMP_STEP_MIN: Duration = Duration::from_millis(50);

/// One level of one cluster.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct LevelState {
    /// d.
    damped: f64,
    /// c, as of the last step.
    healthy: f64,
    motion: Motion,
    /// What it took without a reset before operators took traffic off it; `None` where none is taken.
    before: Option<f64>,
    /// Outcomes at all its endpoints together.
    pub(super) window: Window,
    /// When its endpoints were last compared by how long they take.
    pub(super) slow_judged: Option<Time>,
}

/// Where in the diagram it is.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Motion {
    Settled,
    Holding {
        since: Time,
    },
    Waiting {
        since: Time,
    },
    /// Good again, and left until somebody resets it.
    Kept {
        since: Time,
    },
    Ramping {
        since: Time,
        from: f64,
    },
    /// The next step is not damped, whatever was before.
    Free,
}

impl LevelState {
    /// A level that nothing is known about takes what its health allows.
    pub(super) fn new(capacity: f64) -> Self {
        Self {
            damped: capacity,
            healthy: capacity,
            motion: Motion::Settled,
            before: None,
            window: Window::default(),
            slow_judged: None,
        }
    }

    /// One that nothing is known about but that operators took traffic off it.
    pub(super) fn new_taken_off(capacity: f64) -> Self {
        Self {
            before: Some(1.0),
            ..Self::new(capacity)
        }
    }

    /// What it takes without a reset, where failback is manual.
    fn allowed(&self) -> f64 {
        match self.motion {
            Motion::Ramping { .. } => 1.0,
            Motion::Settled
            | Motion::Holding { .. }
            | Motion::Waiting { .. }
            | Motion::Kept { .. }
            | Motion::Free => self.damped,
        }
    }

    /// What it takes at most until somebody resets it, where failback is manual; `None`: all that its
    /// health allows.
    pub(super) fn owes(&self) -> Option<f64> {
        let allowed = self.before.unwrap_or_else(|| self.allowed());
        (allowed < 1.0 - SHARE_EPSILON).then_some(allowed)
    }

    /// Notes whether operators have taken traffic off any of its endpoints.
    pub(super) fn is_taken_off(&mut self, is: bool) {
        if !is {
            self.before = None;
        } else if self.before.is_none() {
            self.before = Some(self.allowed());
        }
    }

    /// Lets come back what operators took off, by the ramp and without a wait; what owed a reset before
    /// owes it still.
    pub(super) fn let_back(&mut self, failover: &Failover, now: Time) {
        let owes = failover.failback == Failback::Manual
            && self
                .before
                .is_some_and(|before| before < 1.0 - SHARE_EPSILON);
        if !owes {
            self.motion = Motion::Ramping {
                since: now,
                from: self.damped,
            };
        }
    }

    pub(super) const fn damped(&self) -> f64 {
        self.damped
    }

    /// c, as of the last step.
    pub(super) const fn healthy(&self) -> f64 {
        self.healthy
    }

    /// Applies c as it is: what the damped capacities together could not carry.
    pub(super) fn undamp(&mut self, capacity: f64) {
        self.damped = capacity;
        self.motion = Motion::Settled;
    }

    /// The next step applies c as it is.
    pub(super) fn forget_damping(&mut self) {
        self.motion = Motion::Free;
    }

    /// Follows c; `alive` is whether anything in the level is healthy.
    pub(super) fn step(&mut self, capacity: f64, alive: bool, failover: &Failover, now: Time) {
        self.healthy = capacity;
        if !alive || self.motion == Motion::Free {
            self.undamp(capacity);
        } else if capacity < self.damped - SHARE_EPSILON {
            let since = match self.motion {
                Motion::Holding { since } => since,
                Motion::Settled
                | Motion::Waiting { .. }
                | Motion::Kept { .. }
                | Motion::Ramping { .. }
                | Motion::Free => now,
            };
            self.motion = Motion::Holding { since };
            if now.since(since) >= failover.hold {
                self.undamp(capacity);
            }
        } else if capacity > self.damped + SHARE_EPSILON {
            self.rise(capacity, failover, now);
        } else {
            self.undamp(capacity);
        }
    }

    fn rise(&mut self, capacity: f64, failover: &Failover, now: Time) {
        let after = failover.failback_after;
        let is_released = matches!(self.motion, Motion::Ramping { .. });
        if failover.failback == Failback::Manual && !is_released {
            let since = match self.motion {
                Motion::Waiting { since } | Motion::Kept { since } => since,
                Motion::Settled
                | Motion::Holding { .. }
                | Motion::Ramping { .. }
                | Motion::Free => now,
            };
            self.motion = Motion::Kept { since };
            return;
        }
        let (since, from) = match self.motion {
            Motion::Ramping { since, from } => (since, from),
            Motion::Waiting { since } | Motion::Kept { since } if now.since(since) >= after => {
                (since + after, self.damped)
            }
            Motion::Waiting { since } | Motion::Kept { since } => {
                self.motion = Motion::Waiting { since };
                return;
            }
            Motion::Settled | Motion::Holding { .. } | Motion::Free if after.is_zero() => {
                (now, self.damped)
            }
            Motion::Settled | Motion::Holding { .. } | Motion::Free => {
                self.motion = Motion::Waiting { since: now };
                return;
            }
        };
        let ramp = failover.failback_ramp.as_secs_f64();
        let risen = if ramp > 0.0 {
            from + now.since(since).as_secs_f64() / ramp
        } else {
            1.0
        };
        if risen >= capacity - SHARE_EPSILON {
            self.undamp(capacity);
        } else {
            self.damped = risen;
            self.motion = Motion::Ramping { since, from };
        }
    }

    /// When time alone changes d next.
    pub(super) fn wake(&self, failover: &Failover, now: Time) -> Option<Time> {
        match self.motion {
            Motion::Settled | Motion::Free | Motion::Kept { .. } => None,
            Motion::Holding { since } => Some(since + failover.hold),
            Motion::Waiting { since } => Some(since + failover.failback_after),
            Motion::Ramping { .. } => {
                let step = (failover.failback_ramp / 20).clamp(RAMP_STEP_MIN, RAMP_STEP_MAX);
                Some(now + step)
            }
        }
    }

    /// Whether d is on its way.
    pub(super) fn is_moving(&self) -> bool {
        !matches!(self.motion, Motion::Settled | Motion::Kept { .. })
    }

    /// Whether it waits for a reset.
    pub(super) const fn is_kept(&self) -> bool {
        matches!(self.motion, Motion::Kept { .. })
    }

    /// Takes as much of `missing` as c allows, without a wait; what it took.
    pub(super) fn lend(&mut self, capacity: f64, missing: f64) -> f64 {
        if self.damped >= capacity - SHARE_EPSILON {
            return 0.0;
        }
        let lent = (capacity - self.damped).min(missing);
        if self.damped + lent >= capacity - SHARE_EPSILON {
            self.undamp(capacity);
        } else if lent > 0.0 {
            self.damped += lent;
            if let Motion::Ramping { from, .. } = &mut self.motion {
                *from += lent;
            }
        }
        lent
    }

    /// Lets traffic come back, by the ramp; whether it waited for that.
    pub(super) fn release(&mut self, now: Time) -> bool {
        let owed = self.before.is_some() && self.owes().is_some();
        if owed {
            self.before = Some(1.0);
        }
        let waits = matches!(self.motion, Motion::Waiting { .. } | Motion::Kept { .. });
        if waits {
            self.motion = Motion::Ramping {
                since: now,
                from: self.damped,
            };
        }
        waits || owed
    }

    /// Has it wait for a reset with no more than `damped`, as it did before the gateway started.
    pub(super) fn keep(&mut self, damped: f64, now: Time) {
        if let Some(before) = &mut self.before {
            *before = before.min(damped);
        } else if damped < self.damped - SHARE_EPSILON {
            self.damped = damped;
            self.motion = Motion::Kept { since: now };
        }
    }

    /// What it is about, for those who ask.
    pub(super) const fn motion(&self) -> LevelMotion {
        match self.motion {
            Motion::Settled | Motion::Free => LevelMotion::Settled,
            Motion::Holding { since } => LevelMotion::Holding { since },
            Motion::Waiting { since } => LevelMotion::Waiting { since },
            Motion::Kept { since } => LevelMotion::Kept { since },
            Motion::Ramping { since, .. } => LevelMotion::Ramping { since },
        }
    }

    /// When that ends by time alone, if c stays as it is.
    pub(super) fn until(&self, capacity: f64, failover: &Failover) -> Option<Time> {
        match self.motion {
            Motion::Settled | Motion::Free | Motion::Kept { .. } => None,
            Motion::Holding { since } => Some(since + failover.hold),
            Motion::Waiting { since } => Some(since + failover.failback_after),
            Motion::Ramping { since, from } => {
                let left = (capacity - from).clamp(0.0, 1.0);
                Some(since + failover.failback_ramp.mul_f64(left))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::TooFew;

    fn failover() -> Failover {
        Failover {
            start: 0.7,
            full: 0.0,
            hold: Duration::from_secs(5),
            failback_after: Duration::from_secs(60),
            failback_ramp: Duration::from_secs(20),
            failback: Failback::Auto,
            too_few: TooFew::UseAll,
        }
    }

    /// d after each of these (second, c).
    fn follow(failover: &Failover, steps: &[(u64, f64)]) -> Vec<f64> {
        let mut level = LevelState::new(1.0);
        steps
            .iter()
            .map(|(second, capacity)| {
                let now = Time::from_origin(Duration::from_secs(*second));
                level.step(*capacity, *capacity > 0.0, failover, now);
                (level.damped() * 1e6).round() / 1e6
            })
            .collect()
    }

    #[test]
    fn a_fall_waits_for_hold_and_a_recovery_forgets_it() {
        let steps = [(0, 0.5), (4, 0.5), (5, 0.4), (6, 0.3), (10, 0.3), (11, 0.3)];
        assert_eq!(follow(&failover(), &steps), [1.0, 1.0, 0.4, 0.4, 0.4, 0.3]);
        let steps = [(0, 0.5), (4, 1.0), (5, 0.5), (9, 0.5), (10, 0.5)];
        assert_eq!(follow(&failover(), &steps), [1.0, 1.0, 1.0, 1.0, 0.5]);
    }

    #[test]
    fn nothing_healthy_is_not_held() {
        assert_eq!(follow(&failover(), &[(0, 0.0)]), [0.0]);
    }

    #[test]
    fn a_rise_waits_for_after_and_then_takes_the_ramp() {
        let steps = [
            (0, 0.0),
            (10, 1.0),
            (69, 1.0),
            (70, 1.0),
            (75, 1.0),
            (90, 1.0),
        ];
        assert_eq!(follow(&failover(), &steps), [0.0, 0.0, 0.0, 0.0, 0.25, 1.0]);
        // Half the way takes half the ramp.
        let steps = [
            (0, 0.0),
            (10, 0.5),
            (70, 0.5),
            (75, 0.5),
            (80, 0.5),
            (85, 0.5),
        ];
        assert_eq!(follow(&failover(), &steps), [0.0, 0.0, 0.0, 0.25, 0.5, 0.5]);
    }

    #[test]
    fn a_dip_while_waiting_starts_the_wait_anew() {
        let steps = [
            (0, 0.0),
            (10, 1.0),
            (60, 0.0),
            (61, 1.0),
            (70, 1.0),
            (120, 1.0),
            (131, 1.0),
        ];
        assert_eq!(
            follow(&failover(), &steps),
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5]
        );
    }

    #[test]
    fn without_after_and_ramp_a_rise_is_immediate() {
        let at_once = Failover {
            failback_after: Duration::ZERO,
            failback_ramp: Duration::ZERO,
            ..failover()
        };
        assert_eq!(
            follow(&at_once, &[(0, 0.0), (1, 0.5), (2, 1.0)]),
            [0.0, 0.5, 1.0]
        );
        // tcp's default: 5 min, then everything at once.
        let tcp = Failover {
            failback_after: Duration::from_secs(300),
            ..at_once
        };
        assert_eq!(
            follow(&tcp, &[(0, 0.0), (1, 1.0), (300, 1.0), (301, 1.0)]),
            [0.0, 0.0, 0.0, 1.0]
        );
    }
}
