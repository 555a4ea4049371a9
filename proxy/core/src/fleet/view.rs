//! What a fleet knows of a level or an endpoint, for whoever asks why: it is only looked at.

use crate::health::ActiveVerdict;
use crate::outlier::Ejection;
use crate::shares::{EndpointStatus, LevelMotion, capacity};
use crate::snapshot::{ClusterIx, EndpointKey, Failover};
use crate::time::Time;

use super::Fleet;
use super::level::LevelState;

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
    /// When that ends by time alone; `None` where it does not.
    pub until: Option<Time>,
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
        let members = members.map(|members| &**members).unwrap_or_default();
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
        LevelView {
            healthy,
            capacity,
            damped: self.damped(),
            motion: self.motion(),
            until: self.until(capacity, failover),
        }
    }
}
