//! Ejection of endpoints that take longer to answer than the others of their level.
//!
//! A level is judged once a second, as answers are told of, the slowest first. What is slow is out as
//! what fails is: within `maxEjected` and `keepAtLeast`, and with one request to try it again, which is
//! held to the same measure.

use std::time::Duration;

use crate::outlier::{Counted, EjectCause};
use crate::slow::{Took, Typical};
use crate::snapshot::{EndpointKey, Slow};
use crate::time::Time;

use super::Fleet;
use super::endpoint::{EndpointState, Home};

/// How often a level is judged: to look at all its endpoints for each answer would cost the more the
/// larger it is.
const JUDGED_EVERY: Duration = Duration::from_secs(1);

impl Fleet {
    /// What makes an endpoint slow where it is judged.
    pub(super) fn slow_at(&self, home: Home) -> Option<Slow> {
        let state = self.clusters.get(home.cluster())?;
        state.cluster.policy.passive.slow
    }

    /// Counts how long answers of an endpoint took.
    pub(super) fn note_took(&mut self, key: &EndpointKey, took: Took, now: Time) {
        if let Some(state) = self.endpoints.get_mut(key) {
            let outlier = state.outlier.get_or_insert_default();
            outlier.took.get_or_insert_default().add(took, now);
        }
    }

    /// What these answers are to a trial of an endpoint that was ejected for being slow: bad if they
    /// took too long.
    pub(super) fn counted_on_trial(
        &self,
        key: &EndpointKey,
        home: Home,
        slow: &Slow,
        took: Took,
        now: Time,
    ) -> Counted {
        let ejection = self.endpoints.get(key).and_then(EndpointState::ejection);
        let is_slow = ejection.is_some_and(|ejection| ejection.cause == EjectCause::Slow);
        let Some(typical) = took.typical().filter(|_| is_slow) else {
            return Counted::Good;
        };
        let mut others = self.typical_of(home, slow, now);
        others.sort_unstable();
        let others: Vec<Typical> = others.into_iter().map(|(typical, _)| typical).collect();
        if typical.is_over(slow, &others) {
            Counted::Bad
        } else {
            Counted::Good
        }
    }

    /// Ejects what is slow in the level, if it is time to judge it.
    pub(super) fn judge_slow(&mut self, home: Home, slow: &Slow, now: Time) {
        let cluster = self.clusters.get_mut(home.cluster());
        let Some(level) = cluster.and_then(|state| state.levels.get_mut(home.level())) else {
            return;
        };
        let is_due = |at: Time| now.since(at) >= JUDGED_EVERY;
        if !level.slow_judged.is_none_or(is_due) {
            return;
        }
        level.slow_judged = Some(now);
        let mut all = self.typical_of(home, slow, now);
        all.sort_unstable();
        let mut others: Vec<Typical> = all.iter().map(|(typical, _)| *typical).collect();
        let mut found = Vec::new();
        while let Some((typical, endpoint)) = all.pop() {
            others.pop();
            if !typical.is_over(slow, &others) {
                break;
            }
            found.push(endpoint);
        }
        for endpoint in found {
            let state = self.clusters.get(home.cluster());
            let endpoint = state.and_then(|state| {
                let at = usize::try_from(endpoint).ok()?;
                state.cluster.endpoints.get(at)
            });
            let Some(key) = endpoint.map(|endpoint| endpoint.key.clone()) else {
                continue;
            };
            if let Some(home) = self.endpoints.get(&key).and_then(|state| state.home) {
                self.try_eject(&key, home, EjectCause::Slow, now);
            }
        }
    }

    /// What is typical of those in its level that are judged there and in use, with their places.
    fn typical_of(&self, home: Home, slow: &Slow, now: Time) -> Vec<(Typical, u32)> {
        let Some(state) = self.clusters.get(home.cluster()) else {
            return Vec::new();
        };
        let level = state.cluster.levels.get(home.level());
        let members = level.into_iter().flat_map(|level| &level.members);
        members
            .filter_map(|ix| {
                let state = self.endpoints.get(&state.cluster.endpoint(*ix).key)?;
                let outlier = state.outlier.as_ref()?;
                if outlier.ejection().is_some() {
                    return None;
                }
                let typical = outlier.took.as_ref()?.typical(slow, now)?;
                Some((typical, u32::try_from(ix.0).ok()?))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixture;
    use crate::fleet::{EndpointStatus, FleetEvent, Observation};
    use crate::snapshot::{ClusterPolicy, Failure, Snapshot};

    const FAST: Duration = Duration::from_millis(10);
    const LATE: Duration = Duration::from_millis(40);

    fn at(seconds: u64) -> Time {
        Time::from_origin(Duration::from_secs(seconds))
    }

    fn fleet(levels: &[&[&str]], change: impl FnOnce(&mut ClusterPolicy)) -> Fleet {
        let mut cluster = fixture::cluster(levels);
        let policy = Arc::make_mut(&mut cluster.policy);
        policy.passive.slow = Some(Slow {
            over: 3.0,
            requests: 20,
        });
        change(policy);
        let mut fleet = Fleet::new();
        let snapshot = Snapshot {
            clusters: vec![Arc::new(cluster)].into(),
            ..fixture::snapshot(vec![])
        };
        fleet.reconcile(&snapshot, Time::ZERO);
        fleet
    }

    /// `name` gives so many answers that took so long.
    fn answers(fleet: &mut Fleet, name: &str, times: u32, took: Duration, second: u64) {
        let mut all = Took::default();
        (0..times).for_each(|_| all.add(Took::one(took)));
        fleet.observe_successes(&EndpointKey(name.into()), times, all, at(second));
    }

    /// What is out once each of these has given so many answers that took so long, twice.
    fn out(fleet: &mut Fleet, times: u32, answering: &[(&str, Duration)]) -> Vec<String> {
        for second in [1, 2] {
            for (name, took) in answering {
                answers(fleet, name, times, *took, second);
            }
        }
        // The level is judged again by whatever it is told next.
        answers(fleet, answering[0].0, 1, answering[0].1, 3);
        let is_out = |name: &&str| {
            fleet.status(&EndpointKey((*name).into())) == Some(EndpointStatus::Ejected)
        };
        let names = answering.iter().map(|(name, _)| *name);
        names.filter(is_out).map(str::to_owned).collect()
    }

    #[test]
    fn what_is_slow_is_ejected_and_what_is_alike_is_not() {
        let of = |times, answering: &[(&str, Duration)]| {
            let mut fleet = fleet(&[&["a", "b", "c", "d"], &["far"]], |_| {});
            out(&mut fleet, times, answering)
        };
        let all = |[a, b, c, d]: [Duration; 4]| [("a", a), ("b", b), ("c", c), ("d", d)];
        assert_eq!(of(10, &all([FAST, FAST, LATE, FAST])), ["c"]);
        assert_eq!(of(10, &all([FAST, LATE, LATE, FAST])), ["b", "c"]);
        // Where most are slow, that is how long it takes.
        assert_eq!(of(10, &all([LATE, LATE, LATE, FAST])), [""; 0]);
        assert_eq!(of(10, &all([LATE; 4])), [""; 0]);
        assert_eq!(of(9, &all([FAST, FAST, LATE, FAST])), [""; 0], "too few");
        // Another level is farther away.
        assert_eq!(of(10, &[("a", FAST), ("b", FAST), ("far", LATE)]), [""; 0]);
        assert_eq!(of(10, &[("a", FAST), ("b", LATE)]), ["b"]);
        assert_eq!(of(10, &[("b", LATE)]), [""; 0], "nothing to compare with");
    }

    #[test]
    fn nothing_is_ejected_for_being_slow_that_is_kept_or_where_nobody_asks() {
        let of = |change: &dyn Fn(&mut ClusterPolicy)| {
            let mut fleet = fleet(&[&["a", "b", "c", "d"]], change);
            let answering = [("a", FAST), ("b", FAST), ("c", LATE), ("d", LATE * 2)];
            out(&mut fleet, 10, &answering)
        };
        assert_eq!(of(&|_| {}), ["c", "d"]);
        // The slowest first.
        assert_eq!(of(&|policy| policy.passive.keep_at_least = 3), ["d"]);
        assert_eq!(of(&|policy| policy.passive.max_ejected = 0.3), ["d"]);
        assert_eq!(of(&|policy| policy.passive.keep_at_least = 4), [""; 0]);
        assert_eq!(of(&|policy| policy.passive.slow = None), [""; 0]);
    }

    #[test]
    fn the_request_that_tries_it_again_must_not_be_slow_either() {
        for (took, is_back) in [(LATE, false), (FAST, true)] {
            let mut fleet = fleet(&[&["a", "b"]], |_| {});
            assert_eq!(out(&mut fleet, 10, &[("a", FAST), ("b", LATE)]), ["b"]);
            answers(&mut fleet, "a", 20, FAST, 32);
            let shares = fleet.shares(at(33));
            let [(_, trial)] = &*shares.clusters[0].trials else {
                panic!("no trial: {:?}", shares.clusters[0].trials);
            };
            // What was under way before says nothing new.
            answers(&mut fleet, "b", 1, LATE, 33);
            assert!(trial.begin());
            drop(fleet.drain_events());
            answers(&mut fleet, "b", 1, took, 33);
            let told = fleet.drain_events();
            let lasts = told.iter().find_map(|event| {
                let FleetEvent::Ejected { cause, lasts, .. } = event else {
                    return None;
                };
                Some((*cause, *lasts))
            });
            let twice = (EjectCause::Slow, Duration::from_secs(60));
            assert_eq!(lasts, (!is_back).then_some(twice));
            let status = fleet.status(&EndpointKey("b".into()));
            assert_eq!(status == Some(EndpointStatus::Healthy), is_back);
        }
    }

    /// Of a connection that lasts the outcome comes when it ends.
    #[test]
    fn how_long_it_took_is_no_outcome_of_its_own() {
        let mut fleet = fleet(&[&["a", "b"]], |_| {});
        let fails = |fleet: &mut Fleet, times: usize| {
            let observation = Observation {
                key: EndpointKey("b".into()),
                result: Err(Failure::Reset),
            };
            (0..times).for_each(|_| fleet.observe(&observation, at(1)));
        };
        fails(&mut fleet, 4);
        let b = EndpointKey("b".into());
        fleet.observe_successes(&b, 0, Took::one(FAST), at(1));
        assert_eq!(fleet.status(&b), Some(EndpointStatus::Healthy));
        fails(&mut fleet, 1);
        assert_eq!(fleet.status(&b), Some(EndpointStatus::Ejected));
    }
}
