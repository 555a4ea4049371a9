//! Ejection within its limits: some of a cluster's endpoints, and some of each level, stay in use
//! however bad they are.

use std::time::Duration;

use crate::outlier::EjectCause;
use crate::shares::SHARE_EPSILON;
use crate::snapshot::{Cluster, EndpointKey};
use crate::time::Time;

use super::endpoint::Home;
use super::{ClusterState, Fleet, FleetEvent, cluster_route};

/// How long an endpoint is out at the least where another one would take its place: as long as a
/// process needs to start.
const EXCHANGED_AFTER: Duration = Duration::from_secs(1);

impl Fleet {
    pub(super) fn try_eject(
        &mut self,
        key: &EndpointKey,
        home: Home,
        cause: EjectCause,
        now: Time,
    ) {
        // Requests cannot be at fault where none arrived.
        if cause != EjectCause::Unreachable && self.notice_alike(home, now) {
            self.readmit_alike(home, now);
            return;
        }
        let Some(state) = self.clusters.get(home.cluster()) else {
            return;
        };
        let eject = state.cluster.policy.passive.eject;
        if !self.has_room_to_eject(state, home, None) {
            // What is kept fails, and what is out may be back: a restart takes a second, an ejection
            // its whole time.
            let out = self.longest_ejected(&state.cluster, now);
            let Some(out) = out.filter(|out| {
                cause == EjectCause::Unreachable && self.has_room_to_eject(state, home, Some(out))
            }) else {
                return;
            };
            self.readmit(&out, now);
        }
        let Some(endpoint) = self.endpoints.get_mut(key) else {
            return;
        };
        let outlier = endpoint.outlier.get_or_insert_default();
        let until = outlier.eject(cause, eject, now).until;
        self.expiries.insert((until, key.clone()));
        self.restate(key);
        self.warming.stop(key);
        self.tell(FleetEvent::Ejected {
            key: key.clone(),
            cause,
            lasts: until.since(now),
        });
        let route = cluster_route(&self.clusters, home);
        self.step_route(&route, now);
    }

    /// The endpoint that is ejected longest, if it is for [`EXCHANGED_AFTER`].
    fn longest_ejected(&self, cluster: &Cluster, now: Time) -> Option<EndpointKey> {
        let ejected = cluster.endpoints.iter().filter_map(|endpoint| {
            let ejection = self.endpoints.get(&endpoint.key)?.ejection()?;
            Some((ejection.since, &endpoint.key))
        });
        let (since, key) = ejected.min()?;
        (now.since(since) >= EXCHANGED_AFTER).then(|| key.clone())
    }

    /// Whether one more ejection leaves enough, in its level and in all, if `again` is taken back.
    fn has_room_to_eject(
        &self,
        state: &ClusterState,
        home: Home,
        again: Option<&EndpointKey>,
    ) -> bool {
        let cluster = &state.cluster;
        let passive = &cluster.policy.passive;
        let is_again = |ix: usize| {
            again.is_some()
                && (cluster.endpoints.get(ix)).is_some_and(|endpoint| Some(&endpoint.key) == again)
        };
        let kept = (state.statuses.iter().enumerate())
            .filter(|(ix, _)| *ix != home.endpoint())
            .filter(|(ix, status)| is_again(*ix) || status.is_healthy())
            .count();
        kept >= usize::try_from(passive.keep_at_least).unwrap_or(usize::MAX)
            && (passive.max_ejected >= 1.0 || self.has_share_to_eject(cluster, home, &is_again))
    }

    /// Whether one more ejection leaves its level the share that it keeps.
    fn has_share_to_eject(
        &self,
        cluster: &Cluster,
        home: Home,
        is_again: &dyn Fn(usize) -> bool,
    ) -> bool {
        let is_out = |ix: usize| {
            let endpoint = cluster.endpoints.get(ix);
            let state = endpoint.and_then(|endpoint| self.endpoints.get(&endpoint.key));
            state.is_some_and(|state| state.ejection().is_some())
        };
        let members = cluster.levels.get(home.level()).map(|level| &level.members);
        let (mut total, mut ejected) = (0u32, 1u32);
        for member in members.into_iter().flatten() {
            total += 1;
            ejected += u32::from(is_out(member.0) && !is_again(member.0));
        }
        let max = cluster.policy.passive.max_ejected;
        f64::from(ejected) <= f64::from(total) * max + SHARE_EPSILON
    }

    pub(super) fn readmit(&mut self, key: &EndpointKey, now: Time) {
        self.trials.remove(key);
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        if let Some(ejection) = state.ejection() {
            self.expiries.remove(&(ejection.until, key.clone()));
        }
        if let Some(outlier) = state.outlier.as_mut().filter(|of| of.ejection().is_some()) {
            outlier.readmit(now);
        }
        let Some(home) = state.home else {
            self.endpoints.remove(key);
            return;
        };
        self.restate(key);
        self.tell(FleetEvent::Readmitted { key: key.clone() });
        self.start_slowly(vec![key.clone()], now);
        let route = cluster_route(&self.clusters, home);
        self.step_route(&route, now);
    }
}
