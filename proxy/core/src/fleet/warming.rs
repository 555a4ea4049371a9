//! Endpoints that start slowly: for a while they are given less than their weight.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::snapshot::EndpointKey;
use crate::time::Time;

/// What an endpoint is given of its weight at the least (Envoy's `min_weight_percent`).
pub(super) const LEAST: f64 = 0.1;

/// In so many steps an endpoint comes to its weight.
const STEPS: u32 = 32;
/// No step is shorter.
const STEP_MIN: Duration = Duration::from_millis(50);

/// The endpoints that start slowly, and since when.
#[derive(Debug, Clone, Default)]
pub(super) struct Warming {
    since: BTreeMap<EndpointKey, Time>,
    /// When one of them is given more.
    wake: Option<Time>,
}

impl Warming {
    /// Has an endpoint start; it comes to its weight after `lasts`.
    pub(super) fn start(&mut self, key: EndpointKey, lasts: Duration, now: Time) {
        self.since.insert(key, now);
        self.wake_after(lasts, now);
    }

    /// Has an endpoint start no longer: it is out, or it is at its weight.
    pub(super) fn stop(&mut self, key: &EndpointKey) {
        self.since.remove(key);
        if self.since.is_empty() {
            self.wake = None;
        }
    }

    /// Forgets those that are not there any more.
    pub(super) fn retain(&mut self, is_there: impl Fn(&EndpointKey) -> bool) {
        self.since.retain(|key, _| is_there(key));
        if self.since.is_empty() {
            self.wake = None;
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.since.is_empty()
    }

    pub(super) const fn wake(&self) -> Option<Time> {
        self.wake
    }

    /// Lets time pass; `lasts` is how long the start of an endpoint takes, `None` if it is gone.
    /// Returns those that are given more from here on.
    pub(super) fn step(
        &mut self,
        now: Time,
        lasts: impl Fn(&EndpointKey) -> Option<Duration>,
    ) -> Vec<EndpointKey> {
        if self.wake.is_none_or(|wake| wake > now) {
            return Vec::new();
        }
        self.wake = None;
        let moved = self.since.keys().cloned().collect();
        let mut next = None;
        self.since.retain(|key, since| {
            let left = lasts(key).filter(|lasts| now.since(*since) < *lasts);
            next = [next, left].into_iter().flatten().min();
            left.is_some()
        });
        if let Some(lasts) = next {
            self.wake_after(lasts, now);
        }
        moved
    }

    /// What part of its weight an endpoint is given, whose start takes `lasts`: Envoy's formula with
    /// `aggression` 1.
    pub(super) fn part(&self, key: &EndpointKey, lasts: Duration, now: Time) -> f64 {
        match self.since.get(key) {
            Some(since) if !lasts.is_zero() => {
                let part = now.since(*since).as_secs_f64() / lasts.as_secs_f64();
                part.clamp(LEAST, 1.0)
            }
            _ => 1.0,
        }
    }

    fn wake_after(&mut self, lasts: Duration, now: Time) {
        let next = now + (lasts / STEPS).max(STEP_MIN);
        self.wake = Some(self.wake.map_or(next, |wake| wake.min(next)));
    }
}
