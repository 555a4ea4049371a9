//! The end of an ejection: one request shows whether an endpoint is good again, and the others wait
//! for what comes of it.
//!
//! ```text
//!            its time is over
//!   ejected ------------------> on trial --- one request, good; or none ---> readmitted
//!      ^                           |
//!      '-- one request, bad -------'   for longer than the time before
//! ```
//!
//! An endpoint that could not be reached, and that active checks reach, is readmitted by their word.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::health::ActiveVerdict;
use crate::outlier::{Counted, EjectCause};
use crate::shares::Trial;
use crate::snapshot::{Cluster, EndpointIx, EndpointKey};
use crate::time::Time;

use super::{Fleet, FleetEvent, cluster_route};

/// How long a request is waited for, and then what comes of it: there is another then.
pub(super) const TRIAL_MAX: Duration = Duration::from_secs(10);

/// The trials under way; mostly there are none.
pub(super) type Trials = BTreeMap<EndpointKey, Trial>;

impl Fleet {
    /// The time of an ejection is over, or that of a trial.
    pub(super) fn try_to_readmit(&mut self, key: &EndpointKey, now: Time) {
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        let ejection = state.outlier.as_mut().and_then(|of| of.ejection_mut());
        let (Some(ejection), Some(home)) = (ejection, state.home) else {
            self.readmit(key, now);
            return;
        };
        let is_reached = (state.active.as_ref())
            .is_some_and(|active| active.verdict() == ActiveVerdict::Healthy);
        if ejection.cause == EjectCause::Unreachable && is_reached {
            self.readmit(key, now);
            return;
        }
        if self.trials.get(key).is_some_and(Trial::is_open) {
            // Where nobody asks anything one request is as good as another.
            self.readmit(key, now);
            return;
        }
        self.expiries.remove(&(ejection.until, key.clone()));
        ejection.until = now + TRIAL_MAX;
        self.expiries.insert((ejection.until, key.clone()));
        self.trials.insert(key.clone(), Trial::new());
        let route = cluster_route(&self.clusters, home);
        let members = self.routes.get(&route).into_iter().flatten();
        self.changed.extend(members);
    }

    /// What an outcome means for a trial of the endpoint, if there is one; whether it ended.
    pub(super) fn judge_trial(&mut self, key: &EndpointKey, counted: Counted, now: Time) -> bool {
        let Some(trial) = self.trials.get(key) else {
            return false;
        };
        let is_open = trial.is_open();
        match counted {
            Counted::Good => {
                self.readmit(key, now);
                self.watch(key);
            }
            // What was under way before says nothing new. Where there are too few to leave it out it has
            // traffic, and nobody sends it a trial beside that.
            Counted::Bad | Counted::Unreachable if is_open && !self.has_traffic(key) => {
                return false;
            }
            Counted::Bad | Counted::Unreachable => self.eject_again(key, now),
            Counted::Nothing => return false,
        }
        true
    }

    /// Whether what is ejected is sent traffic all the same.
    fn has_traffic(&self, key: &EndpointKey) -> bool {
        let home = self.endpoints.get(key).and_then(|state| state.home);
        let shares = home.and_then(|home| self.shares.clusters.get(home.cluster()));
        shares.is_some_and(|shares| shares.too_few)
    }

    /// The next failure in a row ejects it again: of bytes a trial shows no more than that it is there.
    fn watch(&mut self, key: &EndpointKey) {
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        let cluster = (state.home).and_then(|home| self.clusters.get(home.cluster()));
        let limit = cluster.map_or(0, |state| state.cluster.policy.passive.consecutive);
        if let Some(outlier) = &mut state.outlier {
            outlier.watch(limit);
        }
    }

    fn eject_again(&mut self, key: &EndpointKey, now: Time) {
        self.trials.remove(key);
        let Some(state) = self.endpoints.get_mut(key) else {
            return;
        };
        let home = state.home;
        let cluster = home.and_then(|home| self.clusters.get(home.cluster()));
        let eject = cluster.map(|state| state.cluster.policy.passive.eject);
        let (Some(home), Some(eject), Some(outlier)) = (home, eject, state.outlier.as_mut()) else {
            return;
        };
        let Some(before) = outlier.ejection() else {
            return;
        };
        let ejection = outlier.eject(before.cause, eject, now);
        self.expiries.remove(&(before.until, key.clone()));
        self.expiries.insert((ejection.until, key.clone()));
        self.tell(FleetEvent::Ejected {
            key: key.clone(),
            cause: ejection.cause,
            lasts: ejection.until.since(now),
        });
        let route = cluster_route(&self.clusters, home);
        self.step_route(&route, now);
    }

    /// Has a fleet that was cloned try for itself: whoever begins a trial by its shares takes none from
    /// those who send by the shares of the other.
    pub(super) fn try_apart(&mut self) {
        self.trials
            .values_mut()
            .for_each(|trial| *trial = trial.apart());
        let shares = self.shares.clusters.iter().enumerate();
        let on_trial = shares.filter(|(_, shares)| !shares.trials.is_empty());
        self.changed.extend(on_trial.map(|(ix, _)| ix));
    }

    /// The endpoints of a cluster that are on trial.
    pub(super) fn trials_of(&self, cluster: &Cluster) -> Vec<(EndpointIx, Trial)> {
        if self.trials.is_empty() {
            return Vec::new();
        }
        (cluster.endpoints.iter().enumerate())
            .filter_map(|(ix, endpoint)| {
                let trial = self.trials.get(&endpoint.key)?;
                Some((EndpointIx(ix), trial.clone()))
            })
            .collect()
    }
}
