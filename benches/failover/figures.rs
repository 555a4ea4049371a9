//! What a volley says of a failover.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::load::{Shot, Volley};

/// A request that takes longer has noticed the fault.
pub(crate) const SLOW: Duration = Duration::from_millis(100);

/// Of the requests that had not ended when the fault came, and those after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) sent: usize,
    pub(crate) failed: usize,
    /// The longer of: from the fault to the first good answer to a request that was due after the
    /// last that failed; the longest time without a good answer. `None`: not over at the end.
    pub(crate) outage_ms: Option<f64>,
    /// From the fault until every request that was due was answered well and not slowly. `None`:
    /// not so at the end.
    pub(crate) steady_ms: Option<f64>,
    /// All but a hundredth ended sooner, well or not.
    pub(crate) p99_ms: f64,
    /// What callers saw in place of good answers, and how often.
    pub(crate) failures: BTreeMap<String, usize>,
}

impl Figures {
    pub(crate) fn of(volley: &Volley) -> Result<Self> {
        let fault = volley.fault;
        let (before, shots): (Vec<_>, Vec<_>) =
            volley.shots.iter().partition(|shot| shot.end() < fault);
        let early = before.iter().find_map(|shot| shot.failure.as_ref());
        ensure!(early.is_none(), "failed before the fault: {early:?}");
        let mut failures = BTreeMap::new();
        for failure in shots.iter().filter_map(|shot| shot.failure.clone()) {
            *failures.entry(failure).or_insert(0) += 1;
        }
        let mut took: Vec<_> = shots.iter().map(|shot| shot.took).collect();
        took.sort_unstable();
        let p99 = took.get(took.len() * 99 / 100).copied();
        Ok(Self {
            sent: shots.len(),
            failed: failures.values().sum(),
            outage_ms: outage(&shots, fault).map(ms),
            steady_ms: steady(&shots, fault).map(ms),
            p99_ms: ms(p99.unwrap_or_default()),
            failures,
        })
    }
}

impl Shot {
    fn end(&self) -> Duration {
        self.due + self.took
    }

    fn is_good(&self) -> bool {
        self.failure.is_none()
    }
}

fn outage(shots: &[&Shot], fault: Duration) -> Option<Duration> {
    let good = |from: Option<Duration>| {
        let mut ends: Vec<_> = shots
            .iter()
            .filter(|shot| shot.is_good() && from.is_none_or(|from| shot.due > from))
            .map(|shot| shot.end())
            .collect();
        ends.sort_unstable();
        ends
    };
    let last_failed = shots.iter().rfind(|shot| !shot.is_good());
    let over = *good(last_failed.map(|shot| shot.due)).first()?;
    let lasted = match last_failed {
        Some(_) => over.saturating_sub(fault),
        None => Duration::ZERO,
    };
    let mut since = fault;
    let mut silence = Duration::ZERO;
    for end in good(None) {
        silence = silence.max(end.saturating_sub(since));
        since = end;
    }
    Some(lasted.max(silence))
}

fn steady(shots: &[&Shot], fault: Duration) -> Option<Duration> {
    let noticed = |shot: &&&Shot| !shot.is_good() || shot.took > SLOW;
    let Some(last) = shots.iter().rfind(noticed) else {
        return Some(Duration::ZERO);
    };
    let next = shots.iter().find(|shot| shot.due > last.due)?;
    Some(next.due.saturating_sub(fault))
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
