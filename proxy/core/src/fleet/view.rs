//! What a fleet knows of a level or an endpoint, for whoever asks why: it is only looked at.

use std::time::Duration;

use crate::health::ActiveVerdict;
use crate::outlier::Ejection;
use crate::shares::{EndpointStatus, capacity};
use crate::snapshot::{ClusterIx, EndpointKey, Failover};
use crate::time::Time;

use super::Fleet;
use super::level::{LevelState, Motion};

/// One level of one cluster.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelView {
    /// h: the healthy share of its weight; over the ports of its route the least.
    pub healthy: f64,
    /// c: the share of all traffic that it could take by its health.
    pub capacity: f64,
    /// d: the damped value of c, which counts.
    pub damped: f64,
    /// How d follows c.
    pub motion: LevelMotion,
}

/// How d follows c (the diagram stands in `fleet/level.rs`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LevelMotion {
    /// It is the same.
    Settled,
    /// c fell, and the level keeps what it had.
    Holding {
        /// Since when c is lower.
        since: Time,
        /// When it gives up what it has no room for.
        until: Time,
    },
    /// c rose, and nothing comes back yet.
    Waiting {
        /// Since when c is higher.
        since: Time,
        /// When it begins to come back.
        until: Time,
    },
    /// It comes back bit by bit.
    Ramping {
        /// Since when.
        since: Time,
        /// When d will be c.
        until: Time,
    },
}

/// One endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndpointView {
    /// Whether it is used.
    pub status: EndpointStatus,
    /// The ejection under way.
    pub ejection: Option<Ejection>,
    /// What its active checks amount to; `None` where there are none.
    pub active: Option<ActiveVerdict>,
}

impl Fleet {
    /// The levels of a cluster of the snapshot last reconciled, as of the last call that let time
    /// pass; empty where there is no such cluster.
    #[must_use]
    pub fn levels(&self, cluster: ClusterIx) -> Vec<LevelView> {
        let Some(state) = self.clusters.get(cluster.0) else {
            return Vec::new();
        };
        let members = self.routes.get(&state.cluster.route);
        let members = members.map(Vec::as_slice).unwrap_or_default();
        let all = self.least_healthy(members);
        let at = members.iter().position(|ix| *ix == cluster.0);
        let healthy = at.and_then(|at| all.into_iter().nth(at));
        let failover = &state.cluster.policy.failover;
        (state.levels.iter().zip(healthy.unwrap_or_default()))
            .map(|(level, healthy)| level.view(healthy, failover))
            .collect()
    }

    /// One endpoint; `None` if it is not in the snapshot last reconciled.
    #[must_use]
    pub fn endpoint(&self, key: &EndpointKey) -> Option<EndpointView> {
        let state = self.endpoints.get(key)?;
        state.home?;
        Some(EndpointView {
            status: state.status(),
            ejection: state.ejection(),
            active: state.active.as_ref().map(|active| active.verdict()),
        })
    }
}

impl LevelState {
    fn view(&self, healthy: f64, failover: &Failover) -> LevelView {
        let capacity = capacity(healthy, failover);
        let motion = match self.motion() {
            Motion::Settled | Motion::Free => LevelMotion::Settled,
            Motion::Holding { since } => LevelMotion::Holding {
                since,
                until: since + failover.hold,
            },
            Motion::Waiting { since } => LevelMotion::Waiting {
                since,
                until: since + failover.failback_after,
            },
            Motion::Ramping { since, from } => LevelMotion::Ramping {
                since,
                until: since + part(failover.failback_ramp, capacity - from),
            },
        };
        LevelView {
            healthy,
            capacity,
            damped: self.damped(),
            motion,
        }
    }
}

fn part(of: Duration, share: f64) -> Duration {
    of.mul_f64(share.clamp(0.0, 1.0))
}
