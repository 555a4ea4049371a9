//! What traffic teaches of an endpoint, attempt by attempt.

use crate::outlier::{Counted, count};
use crate::slow::Took;
use crate::snapshot::{EndpointKey, Failure};
use crate::time::Time;

use super::Fleet;

/// The outcome of one attempt at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The endpoint.
    pub key: EndpointKey,
    /// How it went.
    pub result: Result<(), Failure>,
}

impl Fleet {
    /// Learns from traffic. An endpoint that is not known is none of ours any more.
    pub fn observe(&mut self, observation: &Observation, now: Time) {
        self.advance(now);
        let Some(state) = self.endpoints.get_mut(&observation.key) else {
            return;
        };
        let Some(home) = state.home else { return };
        let Some(cluster) = self.clusters.get_mut(home.cluster()) else {
            return;
        };
        let passive = &cluster.cluster.policy.passive;
        let counted = count(passive, observation.result);
        if let Some(level) = cluster.levels.get_mut(home.level()) {
            match counted {
                Counted::Good => level.window.add(false, now),
                Counted::Bad => level.window.add(true, now),
                // No request can be at fault for it.
                Counted::Unreachable | Counted::Nothing => {}
            }
        }
        if counted == Counted::Nothing {
            return;
        }
        let outlier = state.outlier.get_or_insert_default();
        let cause = outlier.record(counted, passive, now);
        if self.judge_trial(&observation.key, counted, now) {
            self.check_invariants(now);
        } else if let Some(cause) = cause {
            self.try_eject(&observation.key, home, cause, now);
            self.check_invariants(now);
        }
    }

    /// Takes so many good outcomes of attempts at one endpoint, as [`observe`](Self::observe) would one
    /// after the other; `took` is how long answers took that were measured, be they of these attempts or
    /// of others whose outcome is still to come.
    pub fn observe_successes(&mut self, key: &EndpointKey, times: u32, took: Took, now: Time) {
        self.advance(now);
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        let Some(home) = state.home else { return };
        let Some(cluster) = self.clusters.get_mut(home.cluster()) else {
            return;
        };
        if let Some(level) = cluster.levels.get_mut(home.level()) {
            level.window.add_requests(times, now);
        }
        if times > 0 {
            (state.outlier.get_or_insert_default()).succeeded(times, now);
        }
        let slow = if took.is_empty() {
            None
        } else {
            self.slow_at(home)
        };
        let counted = slow.map_or(Counted::Good, |slow| {
            self.counted_on_trial(key, home, &slow, took, now)
        });
        let is_outcome = times > 0 || counted == Counted::Bad;
        let mut is_judged = is_outcome && self.judge_trial(key, counted, now);
        if !is_judged && let Some(slow) = slow {
            self.note_took(key, took, now);
            self.judge_slow(home, &slow, now);
            is_judged = true;
        }
        if is_judged {
            self.check_invariants(now);
        }
    }
}
