//! What is known of one endpoint, where it is judged, and what its status is by all of it.

use crate::health::Active;
use crate::outlier::{Ejection, Outlier};
use crate::shares::EndpointStatus;
use crate::snapshot::{ActiveCheck, Cluster, Endpoint, EndpointKey};
use crate::time::Time;

use super::reports::Behind;
use super::{ClusterState, Fleet};

/// Small, for there are many; what most endpoints never need is made when it is.
#[derive(Debug, Clone, Default)]
pub(super) struct EndpointState {
    /// `None` for an ejected endpoint that the last push removed: it may come back.
    pub(super) home: Option<Home>,
    /// `None` until traffic taught something.
    pub(super) outlier: Option<Box<Outlier>>,
    pub(super) active: Option<Box<Active>>,
    /// `None` where it is no peer's gateway, or nothing is reported that counts.
    pub(super) behind: Option<Box<Behind>>,
    pub(super) is_evacuated: bool,
    /// [`Endpoint::is_down`].
    pub(super) is_down: bool,
}

impl EndpointState {
    /// Gives it its place, and the check that is asked there.
    pub(super) fn settle(
        &mut self,
        home: Home,
        now_asked: Option<&ActiveCheck>,
        was_asked: Option<&ActiveCheck>,
        now: Time,
    ) {
        self.home = Some(home);
        match &mut self.active {
            active if now_asked.is_none() => *active = None,
            None => self.active = Some(Box::new(Active::new(now))),
            Some(active) if now_asked != was_asked => active.asked_anew(now),
            Some(_) => {}
        }
    }

    pub(super) fn ejection(&self) -> Option<Ejection> {
        self.outlier.as_ref()?.ejection()
    }

    pub(super) fn reports_capacity(&self) -> bool {
        self.behind
            .as_ref()
            .is_some_and(|behind| behind.reports_capacity())
    }

    pub(super) fn status(&self) -> EndpointStatus {
        if self.is_evacuated {
            EndpointStatus::Evacuated
        } else {
            self.status_otherwise()
        }
    }

    /// Its status, whatever operators have decided.
    pub(super) fn status_otherwise(&self) -> EndpointStatus {
        let active =
            (self.active.as_ref()).map_or(EndpointStatus::Healthy, |active| active.status());
        let empty = self.behind.as_ref().filter(|behind| behind.is_empty());
        match (active, empty, self.ejection()) {
            _ if self.is_down => EndpointStatus::Unhealthy,
            (EndpointStatus::Unhealthy, _, _) => EndpointStatus::Unhealthy,
            (_, Some(behind), _) if behind.is_stale => EndpointStatus::EmptyOnce,
            (_, Some(_), _) => EndpointStatus::Empty,
            (_, None, Some(_)) => EndpointStatus::Ejected,
            (active, None, None) => active,
        }
    }
}

/// Where an endpoint is judged: the cluster of its route with the most levels that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Home {
    cluster: u32,
    level: u32,
    endpoint: u32,
}

impl Home {
    pub(super) fn new(cluster: usize, level: usize, endpoint: usize) -> Self {
        // Four thousand million of anything do not fit into memory.
        let small = |ix: usize| u32::try_from(ix).unwrap_or(u32::MAX);
        Self {
            cluster: small(cluster),
            level: small(level),
            endpoint: small(endpoint),
        }
    }

    pub(super) const fn cluster(self) -> usize {
        self.cluster as usize
    }

    pub(super) const fn level(self) -> usize {
        self.level as usize
    }

    pub(super) const fn endpoint(self) -> usize {
        self.endpoint as usize
    }
}

impl Fleet {
    /// The status of one endpoint; `None` if it is not in the snapshot.
    #[must_use]
    pub fn status(&self, key: &EndpointKey) -> Option<EndpointStatus> {
        let state = self.endpoints.get(key)?;
        state.home.map(|_| state.status())
    }

    pub(super) fn statuses(&self, cluster: &Cluster) -> Vec<EndpointStatus> {
        let of = |endpoint: &Endpoint| {
            (self.endpoints.get(&endpoint.key))
                .map_or(EndpointStatus::Healthy, EndpointState::status)
        };
        cluster.endpoints.iter().map(of).collect()
    }

    /// Takes over what an endpoint is by now, in each cluster that holds it.
    pub(super) fn restate(&mut self, key: &EndpointKey) {
        let Some(state) = self.endpoints.get(key) else {
            return;
        };
        let (status, home) = (state.status(), state.home);
        let cluster = home.and_then(|home| self.clusters.get(home.cluster()));
        let members = cluster.and_then(|state| self.routes.get(&state.cluster.route));
        for ix in members.into_iter().flatten() {
            if let Some(state) = self.clusters.get_mut(*ix) {
                state.restate(key, status);
            }
        }
    }
}

impl ClusterState {
    fn restate(&mut self, key: &EndpointKey, status: EndpointStatus) {
        let at = |ix: u32| usize::try_from(ix).unwrap_or(usize::MAX);
        let endpoints = &self.cluster.endpoints;
        let key_at = |ix: &u32| endpoints.get(at(*ix)).map(|endpoint| &endpoint.key);
        let first = self.by_key.partition_point(|ix| key_at(ix) < Some(key));
        // One address may stand in it more than once.
        let places = self.by_key.iter().skip(first);
        for ix in places.take_while(|ix| key_at(ix) == Some(key)) {
            if let Some(place) = self.statuses.get_mut(at(*ix)) {
                *place = status;
            }
        }
    }
}

/// The places of a cluster's endpoints, in the order of their keys.
pub(super) fn by_key(cluster: &Cluster) -> Box<[u32]> {
    let mut places: Box<[u32]> = (0..).take(cluster.endpoints.len()).collect();
    let key = |place: &u32| {
        let place = usize::try_from(*place).unwrap_or(usize::MAX);
        cluster.endpoints.get(place).map(|endpoint| &endpoint.key)
    };
    places.sort_by(|a, b| key(a).cmp(&key(b)));
    places
}
