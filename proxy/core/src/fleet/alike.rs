//! Requests that are at fault themselves: where every level fails alike nothing is ejected.

use crate::outlier::EjectCause;
use crate::snapshot::{EndpointKey, ErrorRate};
use crate::time::Time;

use super::endpoint::{EndpointState, Home};
use super::level::LevelState;
use super::{ClusterState, Fleet, FleetEvent, cluster_route};

/// What judges whether levels fail alike where passive checks have no error rate of their own.
const ALIKE_RATE: ErrorRate = ErrorRate {
    over: 0.5,
    requests: 20,
};

impl Fleet {
    /// Whether every level fails alike, which is told when it begins.
    pub(super) fn notice_alike(&mut self, home: Home, now: Time) -> bool {
        let Some(state) = self.clusters.get_mut(home.cluster()) else {
            return false;
        };
        let alike = fails_alike(state, now);
        let was = std::mem::replace(&mut state.fails_alike, alike);
        if alike && !was {
            let route = state.cluster.route.clone();
            self.tell(FleetEvent::FailsAlike { route });
        }
        alike
    }

    /// Takes back what failed like everything else.
    pub(super) fn readmit_alike(&mut self, home: Home, now: Time) {
        let Some(state) = self.clusters.get(home.cluster()) else {
            return;
        };
        let keys: Vec<EndpointKey> = (state.cluster.endpoints.iter())
            .filter(|endpoint| {
                (self.endpoints.get(&endpoint.key))
                    .and_then(EndpointState::ejection)
                    .is_some_and(|ejection| ejection.cause != EjectCause::Unreachable)
            })
            .map(|endpoint| endpoint.key.clone())
            .collect();
        if keys.is_empty() {
            return;
        }
        for key in keys {
            self.readmit(&key, now);
            // It was never to blame.
            self.warming.stop(&key);
            let outlier = self.endpoints.get_mut(&key);
            let outlier = outlier.and_then(|state| state.outlier.as_mut());
            outlier.into_iter().for_each(|outlier| outlier.forgive());
        }
        // What moved away moved for nothing: it does not wait for failback.
        let route = cluster_route(&self.clusters, home);
        for ix in self.routes.get(&route).into_iter().flatten() {
            if let Some(state) = self.clusters.get_mut(*ix) {
                state.levels.iter_mut().for_each(LevelState::forget_damping);
            }
        }
        self.step_route(&route, now);
    }
}

/// Whether every level of a cluster fails alike: there are several, and each is over the error
/// rate. One without enough requests counts as good.
fn fails_alike(state: &ClusterState, now: Time) -> bool {
    let rate = state
        .cluster
        .policy
        .passive
        .error_rate
        .unwrap_or(ALIKE_RATE);
    let tried = || {
        (state.cluster.levels.iter().zip(&state.levels))
            .filter(|(level, _)| !level.members.is_empty())
    };
    tried().count() >= 2 && tried().all(|(_, level)| level.window.is_over(rate, now))
}
