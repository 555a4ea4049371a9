//! One request ends an ejection.

use std::sync::Arc;

use crate::fixture;
use crate::fleet::{ClusterShares, EndpointStatus, Fleet, FleetEvent};
use crate::shares::Trial;
use crate::snapshot::Failure;
use crate::time::Time;

use super::{active, at, fleet, key, kill, revive, see};

/// What the published shares have for whoever asks first.
fn trial(fleet: &mut Fleet, now: Time) -> Option<Trial> {
    let shares = fleet.shares(now);
    shares.clusters[0]
        .trials
        .first()
        .map(|(_, trial)| trial.clone())
}

#[test]
fn one_request_shows_whether_an_endpoint_is_good_again() {
    let cluster = fixture::cluster(&[&["a", "b"]]);
    let mut fleet = fleet(vec![cluster.clone()]);
    kill(&mut fleet, "a", at(0.0));
    assert!(trial(&mut fleet, at(29.9)).is_none());
    let first = |of: &ClusterShares| {
        let first = crate::plan::plan(&cluster, of, &|_| 0, 7).find(|one| one.begins(of));
        first.map(|first| (first.endpoint.0, first.why.label()))
    };
    let published = fleet.shares(at(30.0));
    let of = &published.clusters[0];
    assert_eq!(first(of), Some((0, "trial")));
    for _ in 0..100 {
        assert_eq!(first(of), Some((1, "local")));
    }
    // The others go on waiting for what comes of it, and of what was sent before nothing follows.
    assert!(!fleet.has_changed());
    see(&mut fleet, "a", Err(Failure::RefusedStream), 1, at(31.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
    assert!(fleet.shares(at(31.0)) == published);
    see(&mut fleet, "a", Err(Failure::Reset), 1, at(32.0));
    // Out for twice as long.
    assert!(trial(&mut fleet, at(91.9)).is_none());
    assert!(trial(&mut fleet, at(92.0)).is_some_and(|trial| trial.begin()));
    revive(&mut fleet, "a", at(92.0));
    assert!(trial(&mut fleet, at(92.0)).is_none());
    assert_eq!(fleet.next_wake(), None);
    let mut lasts = Vec::new();
    for event in fleet.drain_events() {
        if let FleetEvent::Ejected { lasts: now, .. } = event {
            lasts.push(now.as_secs());
        }
    }
    assert_eq!(lasts, [30, 60]);
}

#[test]
fn a_trial_of_which_nothing_comes_is_followed_by_another() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"]])]);
    kill(&mut fleet, "a", at(0.0));
    let one = trial(&mut fleet, at(30.0)).unwrap();
    assert_eq!(fleet.next_wake(), Some(at(40.0)));
    // Nothing of what was under way is held against it.
    see(&mut fleet, "a", Err(Failure::Reset), 3, at(31.0));
    assert!(one.begin() && !one.begin());
    let other = trial(&mut fleet, at(40.0)).unwrap();
    assert!(other != one && other.is_open());
    // Where nobody asks anything it is back by time alone.
    assert!(trial(&mut fleet, at(49.9)).unwrap() == other);
    assert!(trial(&mut fleet, at(50.0)).is_none());
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
    assert_eq!(fleet.next_wake(), None);
}

/// What broke: of bytes a trial shows that somebody connects, and five more were lost each time.
#[test]
fn the_first_failure_after_a_trial_ejects_again_until_something_went_well() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"]])]);
    kill(&mut fleet, "a", at(0.0));
    assert!(trial(&mut fleet, at(30.0)).unwrap().begin());
    revive(&mut fleet, "a", at(30.0));
    see(&mut fleet, "a", Err(Failure::Reset), 1, at(31.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
    assert!(trial(&mut fleet, at(91.0)).unwrap().begin());
    revive(&mut fleet, "a", at(91.0));
    see(&mut fleet, "a", Ok(()), 1, at(91.5));
    see(&mut fleet, "a", Err(Failure::Reset), 4, at(92.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
}

/// What broke: of several that are all out the one that had its turn first was taken for good, for
/// nobody sends a trial where what is out has traffic anyway.
#[test]
fn where_too_few_are_left_a_failure_is_an_answer_to_an_open_trial() {
    let mut cluster = fixture::cluster(&[&["a", "b"]]);
    Arc::make_mut(&mut cluster.policy).passive.keep_at_least = 0;
    let mut fleet = fleet(vec![cluster]);
    for one in ["a", "b"] {
        see(&mut fleet, one, Err(Failure::Reset), 5, at(0.0));
    }
    let shares = fleet.shares(at(30.0));
    assert!(shares.clusters[0].too_few);
    see(&mut fleet, "a", Err(Failure::Reset), 1, at(31.0));
    fleet.shares(at(41.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
}

/// What broke: to play what a lever would do used up the trials of the gateway that was asked.
#[test]
fn a_fleet_that_was_cloned_tries_for_itself() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"]])]);
    kill(&mut fleet, "a", at(0.0));
    let own = trial(&mut fleet, at(30.0)).unwrap();
    let mut played = fleet.clone();
    played.count_apart();
    let other = trial(&mut played, at(30.0)).unwrap();
    assert!(other.begin() && own.is_open());
    assert!(!fleet.has_changed());
    // What has begun there has begun here.
    assert!(own.begin());
    let mut played = fleet.clone();
    played.count_apart();
    assert!(!trial(&mut played, at(30.0)).unwrap().is_open());
}

#[test]
fn who_was_not_reached_and_is_reached_by_checks_needs_no_trial() {
    let mut fleet = fleet(vec![active(fixture::cluster(&[&["a", "b"]]))]);
    kill(&mut fleet, "a", at(0.0));
    see(&mut fleet, "b", Err(Failure::Reset), 5, at(1.0));
    assert_eq!(
        fleet.status(&key("b")),
        Some(EndpointStatus::Unknown),
        "kept"
    );
    let probe = |fleet: &mut Fleet, now| {
        for probe in fleet.due_probes(now, 1) {
            fleet.probed(&probe.key, true, now);
        }
    };
    // On trial, for nothing is known of it; then it is.
    assert!(trial(&mut fleet, at(31.0)).is_some());
    probe(&mut fleet, at(31.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
    kill(&mut fleet, "a", at(500.0));
    probe(&mut fleet, at(530.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
    // Whose requests fail is not shown to be good by that.
    see(&mut fleet, "a", Err(Failure::Reset), 5, at(1000.0));
    probe(&mut fleet, at(1030.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
    assert!(trial(&mut fleet, at(1030.0)).is_some());
}
