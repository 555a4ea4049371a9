//! Levels that fail alike.

use std::sync::Arc;
use std::time::Duration;

use crate::fixture;
use crate::fleet::{EndpointStatus, FleetEvent};
use crate::outlier::EjectCause;
use crate::snapshot::Failure;

use super::{at, fleet, key, kill, see, shares};

#[test]
fn when_every_level_fails_alike_nothing_is_ejected() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"], &["c"]])]);
    let poison = Err(Failure::Status(503));
    // The first level fails alone: that is its own fault as far as anyone can tell.
    see(&mut fleet, "a", poison, 12, at(0.0));
    see(&mut fleet, "b", poison, 12, at(0.0));
    assert_eq!(shares(&mut fleet, at(0.0)), [0, 1000]);
    // The second fails the same way: it is the requests, and the first one is taken back.
    see(&mut fleet, "c", poison, 20, at(1.0));
    assert_eq!(shares(&mut fleet, at(1.0)), [1000, 0]);
    let alike = FleetEvent::FailsAlike {
        route: "a/b".into(),
    };
    assert_eq!(
        fleet.drain_events().iter().filter(|e| **e == alike).count(),
        1
    );
    see(&mut fleet, "a", poison, 50, at(2.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
    // What cannot be reached is ejected all the same.
    kill(&mut fleet, "a", at(3.0));
    // Once the second is tried no more it counts as good, and the first is judged by itself.
    see(&mut fleet, "b", poison, 30, at(20.0));
    assert_eq!(fleet.status(&key("b")), Some(EndpointStatus::Ejected));
}

#[test]
fn a_level_that_cannot_be_reached_does_not_fail_alike() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a"], &["b"], &["c"]])]);
    let poison = Err(Failure::Status(503));
    see(&mut fleet, "b", Err(Failure::Connect), 30, at(0.0));
    see(&mut fleet, "c", Ok(()), 1, at(0.0));
    see(&mut fleet, "c", Err(Failure::NoLocalEndpoint), 30, at(0.0));
    // The second and third levels are down, which says nothing about the requests of the first.
    see(&mut fleet, "a", poison, 4, at(0.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
    let alike = |event: &FleetEvent| matches!(event, FleetEvent::FailsAlike { .. });
    assert!(!fleet.drain_events().iter().any(alike));
    // Two of them are down: the last one is kept, though it fails.
    see(&mut fleet, "a", poison, 30, at(0.0));
    assert!(!fleet.drain_events().iter().any(alike));
}

#[test]
fn connect_failures_over_the_error_rate_eject_though_every_level_fails_alike() {
    for consecutive in [0, 5] {
        let mut cluster = fixture::cluster(&[&["a", "b"], &["c"]]);
        Arc::make_mut(&mut cluster.policy).passive.consecutive = consecutive;
        Arc::make_mut(&mut cluster.policy).passive.keep_at_least = 0;
        let mut fleet = fleet(vec![cluster]);
        let poison = Err(Failure::Status(503));
        see(&mut fleet, "b", poison, 40, at(0.0));
        see(&mut fleet, "c", poison, 40, at(0.0));
        // 11 of 20 could not be reached, never two in a row.
        for _ in 0..9 {
            see(&mut fleet, "a", Err(Failure::Connect), 1, at(1.0));
            see(&mut fleet, "a", Ok(()), 1, at(1.0));
        }
        assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
        see(&mut fleet, "a", Err(Failure::Connect), 2, at(1.0));
        assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
        let unreachable = FleetEvent::Ejected {
            key: key("a"),
            cause: EjectCause::Unreachable,
            lasts: Duration::from_secs(30),
        };
        assert!(fleet.drain_events().contains(&unreachable));
    }
}

#[test]
fn a_level_that_answers_keeps_its_share_though_others_fail() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a"], &["b"], &["c"]])]);
    let bad = Err(Failure::Status(503));
    see(&mut fleet, "a", bad, 30, at(0.0));
    see(&mut fleet, "c", Ok(()), 30, at(0.0));
    see(&mut fleet, "b", bad, 30, at(0.0));
    assert_eq!(shares(&mut fleet, at(0.0)), [0, 0, 1000]);
}
