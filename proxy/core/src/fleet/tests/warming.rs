//! Endpoints that start slowly.

use std::sync::Arc;
use std::time::Duration;

use crate::fixture;
use crate::fleet::{EndpointStatus, Fleet};
use crate::snapshot::Cluster;
use crate::time::Time;

use super::{active, at, check_until, fleet, key, kill, revive, shares, snapshot, thousandths};

fn slowly(mut cluster: Cluster, seconds: u64) -> Cluster {
    Arc::make_mut(&mut cluster.policy).slow_start = Duration::from_secs(seconds);
    cluster
}

/// Nobody starts slowly.
const ALL: [i64; 0] = [];

/// What the endpoints of the first cluster are given of their weight, in thousandths.
fn parts(fleet: &mut Fleet, now: Time) -> Vec<i64> {
    thousandths(&fleet.shares(now).clusters[0].parts)
}

/// Envoy's formula with `aggression` 1: the larger of 10 % and the share of the time that has passed.
#[test]
fn an_endpoint_that_is_readmitted_comes_to_its_weight_by_and_by() {
    let mut fleet = fleet(vec![slowly(fixture::cluster(&[&["a", "b"]]), 20)]);
    assert_eq!(parts(&mut fleet, at(0.0)), ALL);
    kill(&mut fleet, "a", at(0.0));
    assert_eq!(parts(&mut fleet, at(29.9)), ALL);
    revive(&mut fleet, "a", at(30.0));
    for (second, part) in [(30.0, 100), (31.0, 100), (35.0, 250), (49.0, 950)] {
        assert_eq!(parts(&mut fleet, at(second)), [part, 1000], "{second}");
    }
    assert!(fleet.next_wake().unwrap().since(at(49.0)) <= Duration::from_secs(1));
    // Its level is as healthy as ever.
    assert_eq!(shares(&mut fleet, at(49.0)), [1000]);
    assert_eq!(parts(&mut fleet, at(50.0)), ALL);
    assert_eq!(fleet.next_wake(), None);
}

#[test]
fn an_endpoint_that_is_out_again_starts_anew() {
    let mut fleet = fleet(vec![slowly(fixture::cluster(&[&["a", "b"]]), 20)]);
    kill(&mut fleet, "a", at(0.0));
    assert_eq!(parts(&mut fleet, at(30.0)), ALL);
    revive(&mut fleet, "a", at(30.0));
    assert_eq!(parts(&mut fleet, at(30.0)), [100, 1000]);
    assert_eq!(parts(&mut fleet, at(45.0)), [750, 1000]);
    kill(&mut fleet, "a", at(45.0));
    assert_eq!(parts(&mut fleet, at(46.0)), ALL);
    revive(&mut fleet, "a", at(105.0));
    assert_eq!(parts(&mut fleet, at(105.0)), [100, 1000]);
}

#[test]
fn what_joins_those_that_serve_starts_slowly_and_a_gateway_starts_nobody_so() {
    let of = |keys: &[&str]| snapshot(vec![slowly(fixture::cluster(&[keys]), 20)]);
    let mut fleet = Fleet::new();
    fleet.reconcile(&of(&["a", "b"]), at(0.0));
    assert_eq!(parts(&mut fleet, at(0.0)), ALL);
    fleet.reconcile(&of(&["a", "b", "c"]), at(1.0));
    assert_eq!(parts(&mut fleet, at(1.0)), [1000, 1000, 100]);
    // A push forgets no start.
    fleet.reconcile(&of(&["z", "c", "a"]), at(11.0));
    assert_eq!(parts(&mut fleet, at(11.0)), [100, 500, 1000]);
    // All are new: each is given as much as every other.
    fleet.reconcile(&of(&["d", "e"]), at(12.0));
    assert_eq!(parts(&mut fleet, at(12.0)), ALL);
    assert_eq!(fleet.next_wake(), None);
}

#[test]
fn what_passes_its_checks_again_starts_slowly_and_what_was_never_bad_does_not() {
    let mut fleet = fleet(vec![slowly(active(fixture::cluster(&[&["a", "b"]])), 20)]);
    check_until(&mut fleet, &["a"], at(20.0));
    assert_eq!(parts(&mut fleet, at(20.0)), ALL);
    while fleet.status(&key("a")) != Some(EndpointStatus::Healthy) {
        let next = fleet.next_wake().unwrap();
        check_until(&mut fleet, &[], next);
    }
    let now = fleet.shares(at(20.0));
    assert_eq!(thousandths(&now.clusters[0].parts), [100, 1000]);
}
