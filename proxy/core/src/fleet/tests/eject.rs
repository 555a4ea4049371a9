//! Ejection within its limits.

use std::sync::Arc;

use crate::fixture;
use crate::fleet::{EndpointStatus, Fleet};
use crate::snapshot::{Failure, TooFew};

use super::{at, fleet, key, kill, see, shares, thousandths};

#[test]
fn the_last_endpoints_of_a_route_are_never_ejected() {
    let mut cluster = fixture::cluster(&[&["a", "b"], &["c"]]);
    Arc::make_mut(&mut cluster.policy).passive.keep_at_least = 2;
    let mut fleet = fleet(vec![cluster]);
    kill(&mut fleet, "a", at(0.0));
    see(&mut fleet, "b", Err(Failure::Connect), 50, at(0.5));
    assert_eq!(fleet.status(&key("b")), Some(EndpointStatus::Healthy));
    // One for the other is no fewer.
    see(&mut fleet, "b", Err(Failure::Connect), 1, at(1.0));
    let statuses = ["a", "b", "c"].map(|name| fleet.status(&key(name)));
    let (healthy, out) = (EndpointStatus::Healthy, EndpointStatus::Ejected);
    assert_eq!(statuses, [healthy, out, healthy].map(Some));
}

/// A rolling restart: the first is back long before its ejection ends, and the second stops.
#[test]
fn where_what_is_kept_cannot_be_reached_what_is_out_longest_is_tried_again() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b", "c"]])]);
    kill(&mut fleet, "b", at(0.0));
    kill(&mut fleet, "a", at(1.0));
    let statuses = |fleet: &Fleet| ["a", "b", "c"].map(|name| fleet.status(&key(name)).unwrap());
    let (healthy, out) = (EndpointStatus::Healthy, EndpointStatus::Ejected);
    assert_eq!(statuses(&fleet), [out, out, healthy]);
    // Where one answers, the requests may be at fault.
    see(&mut fleet, "c", Err(Failure::Status(503)), 50, at(2.0));
    assert_eq!(statuses(&fleet), [out, out, healthy]);
    see(&mut fleet, "c", Ok(()), 1, at(2.0));
    see(&mut fleet, "c", Err(Failure::Connect), 4, at(2.0));
    assert_eq!(statuses(&fleet), [out, out, healthy]);
    see(&mut fleet, "c", Err(Failure::Connect), 1, at(2.0));
    assert_eq!(statuses(&fleet), [out, healthy, out]);
    assert_eq!(shares(&mut fleet, at(2.0)), [1000]);
    // Where all are gone they take turns, each out for a second at least.
    see(&mut fleet, "b", Err(Failure::Connect), 50, at(2.0));
    assert_eq!(statuses(&fleet), [healthy, out, out]);
    see(&mut fleet, "a", Err(Failure::Connect), 50, at(2.5));
    assert_eq!(statuses(&fleet), [healthy, out, out]);
    see(&mut fleet, "a", Err(Failure::Connect), 1, at(3.0));
    assert_eq!(statuses(&fleet), [out, healthy, out]);
}

#[test]
fn no_more_than_max_ejected_of_a_level_is_out() {
    // As Envoy measured at 10 %: a pool of nine ejects nobody.
    let names = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    for (count, expected) in [(9, EndpointStatus::Healthy), (10, EndpointStatus::Ejected)] {
        let mut cluster = fixture::cluster(&[&names[..count]]);
        Arc::make_mut(&mut cluster.policy).passive.max_ejected = 0.1;
        let mut fleet = fleet(vec![cluster]);
        see(&mut fleet, "a", Err(Failure::Connect), 9, at(0.0));
        assert_eq!(fleet.status(&key("a")), Some(expected), "{count}");
        see(&mut fleet, "b", Err(Failure::Connect), 9, at(0.0));
        assert_eq!(fleet.status(&key("b")), Some(EndpointStatus::Healthy));
    }
}

#[test]
fn a_cluster_that_fails_where_too_few_are_left_never_uses_what_is_ejected() {
    // As the two clusters of a service are: what arrives from other clusters is refused at once.
    let mut own = fixture::cluster(&[&["a", "b"]]);
    own.name = "own".into();
    Arc::make_mut(&mut own.policy).failover.too_few = TooFew::Fail;
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"], &["c"]]), own]);
    kill(&mut fleet, "a", at(0.0));
    kill(&mut fleet, "b", at(0.0));
    let shares = fleet.shares(at(0.0));
    assert_eq!(thousandths(&shares.clusters[0].levels), [0, 1000]);
    assert!(shares.clusters[1].refuses() && !shares.clusters[1].too_few);
    // The same where workloads get the ejected ones.
    see(&mut fleet, "c", Err(Failure::Connect), 50, at(0.0));
    assert!(fleet.shares(at(0.0)).clusters[1].refuses());
}
