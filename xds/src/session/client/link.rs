//! Which server is asked, and when.
//!
//! ```text
//! Waiting --due--> Opening --opened--> Open --answers--> Open, and the count of failures is 0 (P39)
//!    ^                |                 |
//!    `---- failed ----'-----------------'
//! ```
//!
//! A round asks each server once. The others are asked at once where something that is wanted is not
//! there, or where the one before has been gone for long (P42); between rounds is a pause that grows,
//! and every round begins with the first server.

use std::time::Duration;

use zeugma_core::time::Time;

/// Before the second round, at most ...
const AGAIN_MIN: Duration = Duration::from_millis(500);
/// ... and after many (P39).
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// After how long without a server another is asked though everything wanted is there: the servers of a
/// gateway are replicas, and what they say may be newer.
pub(super) const FALLBACK_AFTER: Duration = Duration::from_secs(10);
/// How long another server than the first is listened to before the first is asked again.
pub(super) const RETURN_AFTER: Duration = Duration::from_secs(300);
/// How long a server may be open and say nothing where there is another.
pub(super) const SILENCE: Duration = Duration::from_secs(30);

/// How requests and answers are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// What changed.
    Delta,
    /// All of it.
    Full,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Waiting { until: Time },
    Opening,
    Open { since: Time, has_answered: bool },
}

#[derive(Debug)]
pub(super) struct Link {
    /// How each of them is asked; one at least.
    protocols: Vec<Protocol>,
    server: usize,
    pub(super) state: State,
    /// Servers of this round that failed.
    tried: usize,
    rounds: u32,
    /// Since when no server has answered.
    lost_at: Option<Time>,
    /// The first server is asked though another answers.
    is_returning: bool,
    /// When to do so.
    return_at: Option<Time>,
}

impl Link {
    pub(super) fn new(servers: usize) -> Self {
        Self {
            protocols: vec![Protocol::Delta; servers.max(1)],
            server: 0,
            state: State::Waiting { until: Time::ZERO },
            tried: 0,
            rounds: 0,
            lost_at: None,
            is_returning: false,
            return_at: None,
        }
    }

    pub(super) const fn server(&self) -> usize {
        self.server
    }

    pub(super) fn protocol(&self) -> Protocol {
        let known = self.protocols.get(self.server).copied();
        known.unwrap_or(Protocol::Delta)
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    pub(super) const fn is_due(&self, now: Time) -> bool {
        match self.state {
            State::Waiting { until } => {
                until.since_origin().as_nanos() <= now.since_origin().as_nanos()
            }
            State::Opening | State::Open { .. } => false,
        }
    }

    pub(super) const fn opening(&mut self) {
        self.state = State::Opening;
    }

    /// It is open; `draw`, from 0 to 1, keeps gateways from returning all at once.
    pub(super) fn opened(&mut self, now: Time, draw: f64) {
        self.state = State::Open {
            since: now,
            has_answered: false,
        };
        let later = RETURN_AFTER.mul_f64(1.0 + draw);
        self.return_at = (self.server > 0).then(|| now + later);
    }

    /// Something came: it lives, and so it is the one (P39).
    pub(super) const fn answered(&mut self) {
        if let State::Open { has_answered, .. } = &mut self.state {
            *has_answered = true;
        }
        self.rounds = 0;
        self.tried = 0;
        self.lost_at = None;
        self.is_returning = false;
    }

    /// It does not know what was asked: it is asked the other way at once. Whether there is one.
    pub(super) fn knows_not(&mut self, now: Time) -> bool {
        match self.protocols.get_mut(self.server) {
            Some(protocol @ Protocol::Delta) => {
                *protocol = Protocol::Full;
                self.state = State::Waiting { until: now };
                true
            }
            Some(Protocol::Full) | None => false,
        }
    }

    /// It failed, or ended. `lacks`: whether something wanted is not there.
    pub(super) fn failed(&mut self, lacks: bool, now: Time, draw: f64) {
        self.tried += 1;
        let lost_at = *self.lost_at.get_or_insert(now);
        let is_urgent = lacks || self.is_returning || now.since(lost_at) >= FALLBACK_AFTER;
        let has_others = self.tried < self.protocols.len();
        self.return_at = None;
        if has_others && is_urgent {
            self.server = (self.server + 1) % self.protocols.len();
            self.state = State::Waiting { until: now };
            return;
        }
        let mut until = now + pause(self.rounds, draw);
        // The others' turn is not slept through; nor do all that lost a server go to the next at once.
        let turn_at = lost_at + FALLBACK_AFTER.mul_f64(1.0 + draw.clamp(0.0, 1.0) / 2.0);
        if self.protocols.len() > 1 && now < turn_at {
            until = until.min(turn_at);
        }
        self.state = State::Waiting { until };
        // It may have learnt the better way meanwhile.
        self.protocols.fill(Protocol::Delta);
        self.rounds = self.rounds.saturating_add(1);
        self.tried = 0;
        self.server = 0;
        self.is_returning = false;
    }

    /// Leaves a server that answers for the first one.
    pub(super) const fn go_back(&mut self, now: Time) {
        self.server = 0;
        self.tried = 0;
        self.is_returning = true;
        self.return_at = None;
        self.state = State::Waiting { until: now };
    }

    /// Whether it is time for that.
    pub(super) fn is_time_to_go_back(&self, now: Time) -> bool {
        self.return_at.is_some_and(|at| at <= now)
    }

    /// Whether it is open, has said nothing for too long, and there is another.
    pub(super) fn is_silent(&self, now: Time) -> bool {
        self.silent_at().is_some_and(|at| at <= now)
    }

    fn silent_at(&self) -> Option<Time> {
        match self.state {
            State::Open {
                since,
                has_answered: false,
            } if self.protocols.len() > 1 => Some(since + SILENCE),
            State::Open { .. } | State::Waiting { .. } | State::Opening => None,
        }
    }

    /// When it has something to do.
    pub(super) fn wake(&self) -> Option<Time> {
        let due = match self.state {
            State::Waiting { until } => Some(until),
            State::Opening | State::Open { .. } => None,
        };
        [due, self.return_at, self.silent_at()]
            .into_iter()
            .flatten()
            .min()
    }
}

/// How long to wait after so many rounds: `draw`, from 0 to 1, spreads it over all of that (full jitter).
fn pause(rounds: u32, draw: f64) -> Duration {
    let longest = AGAIN_MIN.saturating_mul(1 << rounds.min(16)).min(AGAIN_MAX);
    longest.mul_f64(draw.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p42_the_next_server_is_asked_soon_after_ten_seconds_whatever_is_drawn() {
        let second = |n: u64| Time::ZERO + Duration::from_millis(n);
        for draws in [[1.0; 16], [0.9; 16], [0.5; 16]] {
            let mut link = Link::new(2);
            let mut now = second(0);
            for draw in draws {
                link.failed(false, now, draw);
                let State::Waiting { until } = link.state else {
                    panic!("{link:?}");
                };
                now = until;
                if link.server() == 1 {
                    break;
                }
            }
            assert_eq!(link.server(), 1, "{link:?}");
            assert!(now >= second(10_000) && now <= second(15_000), "{now:?}");
        }
    }

    #[test]
    fn the_pause_doubles_from_half_a_second_to_thirty_and_is_drawn_from_all_of_it() {
        // P39, by hand.
        for (rounds, most) in [
            (0, 500),
            (1, 1000),
            (2, 2000),
            (5, 16_000),
            (6, 30_000),
            (99, 30_000),
        ] {
            assert_eq!(pause(rounds, 0.0), Duration::ZERO);
            assert_eq!(pause(rounds, 0.5), Duration::from_millis(most / 2));
            assert_eq!(pause(rounds, 1.0), Duration::from_millis(most));
        }
    }
}
