//! What an endpoint costs by its latency: Peak EWMA, as Finagle's and Linkerd's balancers have it.

use std::time::Duration;

use crate::time::Time;

/// In so long what was measured loses all but 1/e of its say.
const DECAY: Duration = Duration::from_secs(10);

/// The cost of an endpoint with requests under way none of which was answered yet, in microseconds:
/// over that of any that answers.
const UNKNOWN_MICROS: u32 = u32::MAX / 2;

/// The latency of one endpoint as one worker sees it: each peak is believed at once, and forgotten by
/// and by.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Latency {
    micros: f64,
    at: Time,
}

impl Latency {
    /// Takes how long an answer took.
    pub fn observe(&mut self, took: Duration, now: Time) {
        let took = took.as_secs_f64() * 1e6;
        let kept = self.kept(now);
        self.micros = if took > self.micros {
            took
        } else {
            self.micros * kept + took * (1.0 - kept)
        };
        self.at = now;
    }

    /// The cost of one more request where `load` are under way, in microseconds. One that was never
    /// asked costs nothing, and once asked more than all others until it answers.
    #[must_use]
    pub fn cost(&self, load: u32, now: Time) -> u32 {
        if self.micros == 0.0 {
            return match load {
                0 => 0,
                load => UNKNOWN_MICROS.saturating_add(load),
            };
        }
        let micros = self.micros * self.kept(now) * (f64::from(load) + 1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to what fits"
        )]
        {
            micros.clamp(0.0, f64::from(UNKNOWN_MICROS)) as u32
        }
    }

    /// How much say what was measured has left.
    fn kept(&self, now: Time) -> f64 {
        (-now.since(self.at).as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_origin(Duration::from_secs(seconds))
    }

    const MILLI: Duration = Duration::from_millis(1);

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_by_and_by() {
        let mut latency = Latency::default();
        latency.observe(MILLI, at(0));
        assert_eq!(latency.cost(0, at(0)), 1000);
        assert_eq!(latency.cost(3, at(0)), 4000);
        latency.observe(MILLI * 100, at(0));
        assert_eq!(latency.cost(0, at(0)), 100_000);
        // By hand: 100 ms / e after 10 s, and nothing is asked meanwhile.
        assert_eq!(latency.cost(0, at(10)), 36_787);
        // 100 / e + 1 * (1 - 1 / e).
        latency.observe(MILLI, at(10));
        assert_eq!(latency.cost(0, at(10)), 37_420);
        assert!(latency.cost(0, at(1000)) == 0);
    }

    #[test]
    fn who_never_answered_is_asked_once() {
        let latency = Latency::default();
        assert_eq!(latency.cost(0, at(5)), 0);
        let mut slowest = Latency::default();
        slowest.observe(Duration::from_secs(3600), at(5));
        assert!(latency.cost(1, at(5)) > slowest.cost(u32::MAX, at(5)));
    }
}
