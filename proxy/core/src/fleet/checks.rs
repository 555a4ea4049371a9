//! Active checks: which are due, how many are under way, and what comes of an answer.

use std::time::Duration;

use crate::balance::mix;
use crate::health::ActiveVerdict;
use crate::snapshot::{ActiveCheck, Endpoint, EndpointKey};
use crate::time::Time;

use super::{Fleet, FleetEvent, cluster_route};

/// The most active checks under way at once.
pub const PROBES_IN_FLIGHT_MAX: usize = 512;

/// An active check to be made.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    /// What [`Fleet::probed`] wants to hear.
    pub key: EndpointKey,
    /// Where to.
    pub endpoint: Endpoint,
    /// What to ask.
    pub check: ActiveCheck,
    /// How long the connection may take, TLS included.
    pub connect: Duration,
}

impl Fleet {
    /// The active checks that are due; each is under way from here on, one for an endpoint.
    pub fn due_probes(&mut self, now: Time, draw: u64) -> Vec<Probe> {
        self.advance(now);
        let mut probes = Vec::new();
        while let Some((at, key)) = self.checks.first().cloned() {
            if at > now {
                break;
            }
            let state = self.endpoints.get_mut(&key);
            let active = state.and_then(|state| Some((state.home?, state.active.as_mut()?)));
            let found = active.and_then(|(home, active)| {
                let cluster = &self.clusters.get(home.cluster())?.cluster;
                let check = cluster.policy.active.as_ref()?;
                Some((
                    active,
                    cluster,
                    check,
                    cluster.endpoints.get(home.endpoint())?,
                ))
            });
            let Some((active, cluster, check, endpoint)) = found else {
                self.checks.pop_first();
                continue;
            };
            if active.is_in_flight() {
                // Lost: its place is free, and the next takes it.
                self.checks_in_flight = self.checks_in_flight.saturating_sub(1);
            } else if self.checks_in_flight >= PROBES_IN_FLIGHT_MAX {
                break;
            }
            self.checks.pop_first();
            let connect = cluster.connect_deadline(endpoint);
            let part = u64::try_from(probes.len()).unwrap_or(u64::MAX);
            active.started(check, connect, now, mix(draw, part));
            self.checks_in_flight += 1;
            self.checks.insert((active.wake(), key.clone()));
            probes.push(Probe {
                key,
                endpoint: endpoint.clone(),
                check: check.clone(),
                connect,
            });
        }
        probes
    }

    /// Takes the answer to a [`Probe`].
    pub fn probed(&mut self, key: &EndpointKey, ok: bool, now: Time) {
        self.advance(now);
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        let (Some(home), Some(active)) = (state.home, state.active.as_mut()) else {
            return;
        };
        let Some(cluster) = self.clusters.get(home.cluster()) else {
            return;
        };
        let Some(check) = &cluster.cluster.policy.active else {
            return;
        };
        let (before, was_in_flight) = (active.wake(), active.is_in_flight());
        let was_bad = active.verdict() == ActiveVerdict::Unhealthy;
        let change = active.finished(ok, check, now);
        if was_in_flight {
            self.checks_in_flight = self.checks_in_flight.saturating_sub(1);
            self.checks.remove(&(before, key.clone()));
            self.checks.insert((active.wake(), key.clone()));
        }
        let event = match change {
            None => return,
            Some(ActiveVerdict::Unhealthy) => FleetEvent::Unhealthy { key: key.clone() },
            Some(ActiveVerdict::Healthy | ActiveVerdict::Unknown) => {
                FleetEvent::Healthy { key: key.clone() }
            }
        };
        self.restate(key);
        self.tell(event);
        if change == Some(ActiveVerdict::Unhealthy) {
            self.warming.stop(key);
        } else if was_bad {
            self.start_slowly(vec![key.clone()], now);
        }
        if change == Some(ActiveVerdict::Healthy) && self.trials.contains_key(key) {
            self.try_to_readmit(key, now);
        }
        let route = cluster_route(&self.clusters, home);
        self.step_route(&route, now);
        self.check_invariants(now);
    }
}
