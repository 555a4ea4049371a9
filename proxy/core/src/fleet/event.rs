//! What a fleet tells of its changes, until it is drained.

use std::sync::Arc;
use std::time::Duration;

use crate::outlier::EjectCause;
use crate::shares::SHARE_EPSILON;
use crate::snapshot::{Address, EndpointKey, WhenStale};

use super::level::LevelState;
use super::{Fleet, Said};

/// The most events kept until they are drained; older ones are dropped and counted.
pub const EVENTS_MAX: usize = 4096;

/// A change of shares below this is told with the next larger one.
const SHARE_TOLD_MIN: f64 = 0.1;

/// What changed, for logs, metrics and narration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum FleetEvent {
    /// Traffic showed an endpoint to be bad.
    Ejected {
        /// The endpoint.
        key: EndpointKey,
        /// Why.
        cause: EjectCause,
        /// For how long.
        lasts: Duration,
    },
    /// An ejection ended.
    Readmitted {
        /// The endpoint.
        key: EndpointKey,
    },
    /// Active checks found an endpoint bad.
    Unhealthy {
        /// The endpoint.
        key: EndpointKey,
    },
    /// Active checks found an endpoint good.
    Healthy {
        /// The endpoint.
        key: EndpointKey,
    },
    /// A peer's gateway reports otherwise of what is behind it.
    Reported {
        /// The endpoint that it is.
        key: EndpointKey,
        /// The peer.
        peer: Arc<str>,
        /// What it says.
        said: Said,
        /// Whether the endpoint is of use by it and was not, or the reverse.
        turned: bool,
    },
    /// A peer's gateway has not reported for [`STALE_AFTER`](super::STALE_AFTER).
    ReportStale {
        /// The peer.
        peer: Arc<str>,
        /// The gateway's address.
        gateway: Address,
        /// What its last report is worth.
        when_stale: WhenStale,
    },
    /// Every level of a route fails alike: the requests are at fault, and nothing is ejected.
    FailsAlike {
        /// `namespace/name` of the route.
        route: Arc<str>,
    },
    /// A level is good again and waits for a reset: `failback.mode` of its route is manual.
    WaitsForReset {
        /// `namespace/name` of the route.
        route: Arc<str>,
        /// The cluster.
        cluster: Arc<str>,
        /// The level's name.
        level: Arc<str>,
    },
    /// The shares of a cluster's levels changed.
    SharesMoved {
        /// The cluster.
        cluster: Arc<str>,
        /// `namespace/name` of its route.
        route: Arc<str>,
        /// Each level's name, its share before and after.
        levels: Vec<(Arc<str>, f64, f64)>,
        /// Whether ejected endpoints are used, for there are too few others.
        too_few: bool,
        /// Whether more follows by time alone: a hold, a wait or a ramp is under way.
        moving: bool,
    },
}

impl Fleet {
    /// Takes what changed since the last call, oldest first.
    pub fn drain_events(&mut self) -> Vec<FleetEvent> {
        self.events.drain(..).collect()
    }

    /// How many events were dropped because nobody drained them.
    #[must_use]
    pub const fn events_dropped(&self) -> u64 {
        self.events_dropped
    }

    pub(super) fn tell(&mut self, event: FleetEvent) {
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
            self.events_dropped += 1;
        }
        self.events.push_back(event);
    }

    pub(super) fn tell_shares(&mut self, ix: usize) {
        let shares = self.shares.clusters.shared(ix).map(Arc::clone);
        let (Some(state), Some(shares)) = (self.clusters.get_mut(ix), shares) else {
            return;
        };
        // A load changes all the time.
        let by_load = shares.metered.is_some();
        let moving = state.levels.iter().any(LevelState::is_moving);
        let Some(told) = &state.told else {
            state.told = Some(shares);
            return;
        };
        let most = (told.levels.iter().zip(&shares.levels))
            .map(|(before, after)| {
                // The first to leave or come, and the last, are always told.
                let turned = !by_load && (*before > 0.0) != (*after > 0.0);
                if turned { 1.0 } else { (before - after).abs() }
            })
            .fold(0.0, f64::max);
        let least = if moving || by_load {
            SHARE_TOLD_MIN
        } else {
            SHARE_EPSILON
        };
        if most < least && told.too_few == shares.too_few {
            return;
        }
        let names = state.cluster.levels.iter().map(|level| level.name.clone());
        let levels = names
            .zip(told.levels.iter().zip(&shares.levels))
            .map(|(name, (before, after))| (name, *before, *after))
            .collect();
        let event = FleetEvent::SharesMoved {
            cluster: state.cluster.name.clone(),
            route: state.cluster.route.clone(),
            levels,
            too_few: shares.too_few,
            moving,
        };
        state.told = Some(shares);
        self.tell(event);
    }
}
