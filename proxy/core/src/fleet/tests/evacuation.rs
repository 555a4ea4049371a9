//! What operators take traffic off.

use std::sync::Arc;

use crate::fixture;
use crate::fleet::{EVACUATIONS_MAX, EndpointStatus, Evacuation, FleetEvent, Kept};
use crate::locality::Locality;
use crate::shares::SHARE_EPSILON;
use crate::snapshot::Cluster;

use super::{at, fleet, key, kill, manual, revive, shares, snapshot, told_to_wait};

fn standing_in(mut cluster: Cluster, localities: &[&str]) -> Cluster {
    for (endpoint, locality) in cluster.endpoints.iter_mut().zip(localities) {
        endpoint.locality = Locality::parse(locality).unwrap();
        endpoint.backend = (*locality).into();
    }
    cluster
}

fn place(text: &str) -> Evacuation {
    Evacuation::Locality(Locality::parse(text).unwrap())
}

#[test]
fn an_evacuation_takes_all_traffic_off_a_place_until_it_is_reset() {
    let cluster = || {
        let levels = fixture::cluster(&[&["a", "b"], &["c"]]);
        standing_in(levels, &["eu/eu-1/r1", "eu/eu-10", "us/us-1"])
    };
    let mut fleet = fleet(vec![cluster()]);
    let effect = fleet.effect(&place("eu/eu-1"));
    let close = |a: f64, b: f64| (a - b).abs() < SHARE_EPSILON;
    assert_eq!((effect.len(), effect[0].endpoints), (1, 1));
    assert!(close(effect[0].levels[0].1, 1.0) && close(effect[0].levels[0].2, 5.0 / 7.0));
    assert!(!effect[0].leaves_nothing);
    assert!(fleet.evacuate(place("eu/eu-1"), at(0.0)));
    assert!(!fleet.evacuate(place("eu/eu-1"), at(0.0)), "once is enough");
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Evacuated));
    assert_eq!(fleet.status(&key("b")), Some(EndpointStatus::Healthy));
    assert_eq!(shares(&mut fleet, at(0.0)), [714, 286]);
    // What is in it by a push, too.
    let mut more = cluster();
    more.endpoints[1].locality = Locality::parse("eu/eu-1").unwrap();
    fleet.reconcile(&snapshot(vec![more]), at(10.0));
    assert_eq!(fleet.status(&key("b")), Some(EndpointStatus::Evacuated));
    assert_eq!(shares(&mut fleet, at(10.0)), [0, 1000]);
    assert!(fleet.evacuate(place("us"), at(10.0)));
    assert_eq!(
        shares(&mut fleet, at(10.0)),
        [0, 0],
        "not for want of others either"
    );
    assert!(fleet.end_evacuation(&place("us"), at(10.0)));
    assert_eq!(shares(&mut fleet, at(10.0)), [0, 1000]);
    assert!(fleet.end_evacuation(&place("eu/eu-1"), at(1_000.0)));
    assert!(!fleet.end_evacuation(&place("eu/eu-1"), at(1_000.0)));
    // The reset says that it is good: only the ramp is left.
    assert_eq!(shares(&mut fleet, at(1_030.0)), [500, 500]);
    assert_eq!(shares(&mut fleet, at(1_060.0)), [1000, 0]);
}

/// All that there is is ejected at this moment, and carries what comes: it is something to lose.
#[test]
fn to_evacuate_what_is_tried_for_want_of_better_leaves_nothing() {
    let mut cluster = standing_in(fixture::cluster(&[&["a"], &["b"]]), &["eu", "us"]);
    Arc::make_mut(&mut cluster.policy).passive.keep_at_least = 0;
    let mut fleet = fleet(vec![cluster]);
    for name in ["a", "b"] {
        kill(&mut fleet, name, at(0.0));
    }
    let place = |text: &str| Evacuation::Locality(Locality::parse(text).unwrap());
    assert!(!fleet.effect(&place("us"))[0].leaves_nothing);
    assert!(fleet.evacuate(place("us"), at(0.0)));
    assert!(fleet.effect(&place("eu"))[0].leaves_nothing);
}

#[test]
fn a_backend_of_one_route_is_evacuated_and_the_reset_of_the_route_ends_that() {
    let cluster = standing_in(fixture::cluster(&[&["a"], &["b"]]), &["eu", "us"]);
    let mut fleet = fleet(vec![manual(cluster)]);
    let backend = |route: &str| Evacuation::Backend {
        route: route.into(),
        backend: "eu".into(),
    };
    assert!(fleet.effect(&backend("a/other")).is_empty());
    assert!(fleet.evacuate(backend("a/b"), at(0.0)));
    assert_eq!(shares(&mut fleet, at(0.0)), [0, 1000]);
    let rest = Evacuation::Locality(Locality::parse("us").unwrap());
    assert!(fleet.effect(&rest)[0].leaves_nothing);
    assert_eq!(fleet.reset("a/b", at(100.0)), 1, "the backend");
    assert_eq!(shares(&mut fleet, at(130.0)), [500, 500]);
}

/// What broke: the end of an evacuation was a reset of the whole route.
#[test]
fn the_end_of_an_evacuation_lets_back_what_it_took_and_no_level_that_waits_for_a_reset() {
    let levels = fixture::cluster(&[&["a"], &["b"], &["c"]]);
    let cluster = manual(standing_in(levels, &["eu", "us", "ap"]));
    let mut fleet = fleet(vec![cluster]);
    kill(&mut fleet, "a", at(0.0));
    revive(&mut fleet, "a", at(30.0));
    assert_eq!(shares(&mut fleet, at(40.0)), [0, 1000, 0]);
    assert!(fleet.evacuate(place("us"), at(40.0)));
    assert_eq!(shares(&mut fleet, at(40.0)), [0, 0, 1000]);
    told_to_wait(&mut fleet);
    assert!(fleet.end_evacuation(&place("us"), at(100.0)));
    let told = fleet.drain_events();
    let waits = |event: &&FleetEvent| matches!(event, FleetEvent::WaitsForReset { .. });
    assert_eq!(told.iter().filter(waits).count(), 0, "{told:?}");
    assert_eq!(shares(&mut fleet, at(130.0)), [0, 500, 500]);
    assert_eq!(shares(&mut fleet, at(1_000.0)), [0, 1000, 0]);
    assert_eq!(fleet.reset("a/b", at(1_000.0)), 1);
    assert_eq!(shares(&mut fleet, at(1_060.0)), [1000, 0, 0]);
    // What waited before it was taken off waits after.
    kill(&mut fleet, "a", at(2_000.0));
    revive(&mut fleet, "a", at(2_030.0));
    assert_eq!(shares(&mut fleet, at(2_040.0)), [0, 1000, 0]);
    assert!(fleet.evacuate(place("eu"), at(2_040.0)));
    assert!(fleet.end_evacuation(&place("eu"), at(2_100.0)));
    assert_eq!(shares(&mut fleet, at(3_000.0)), [0, 1000, 0]);
    // The reset of the route means that as well.
    assert!(fleet.evacuate(place("eu"), at(3_000.0)));
    assert_eq!(fleet.reset("a/b", at(3_000.0)), 1);
    assert!(fleet.end_evacuation(&place("eu"), at(3_000.0)));
    assert_eq!(shares(&mut fleet, at(3_060.0)), [1000, 0, 0]);
}

/// What broke: a level that was still bad at a restart came back without a reset.
#[test]
fn a_level_that_is_bad_at_a_restart_waits_for_a_reset_after_it() {
    let clusters = || {
        let levels = fixture::cluster(&[&["a"], &["b"]]);
        vec![manual(standing_in(levels, &["eu", "us"]))]
    };
    let mut before = fleet(clusters());
    kill(&mut before, "a", at(0.0));
    assert!(before.take_kept_changed(), "it is told before it is back");
    let kept: Vec<Kept> = before.kept().collect();
    assert_eq!((kept.len(), kept[0].damped), (1, 0.0));
    let mut after = fleet(clusters());
    after.keep(&kept, at(0.0));
    assert_eq!(shares(&mut after, at(1_000.0)), [0, 1000]);
    // What operators took off alone comes back by their word, and owes nothing.
    let mut fleet = fleet(clusters());
    assert!(fleet.evacuate(place("eu"), at(0.0)));
    assert_eq!(fleet.kept().count(), 0);
    fleet.reconcile(&snapshot(clusters()), at(1.0));
    assert_eq!(fleet.kept().count(), 0);
    // Evacuated and waiting, across a restart.
    assert!(after.evacuate(place("eu"), at(1_000.0)));
    let kept: Vec<Kept> = after.kept().collect();
    assert_eq!(kept.len(), 1);
    fleet.keep(&kept, at(2.0));
    assert!(fleet.end_evacuation(&place("eu"), at(2.0)));
    assert_eq!(shares(&mut fleet, at(1_000.0)), [0, 1000]);
    assert_eq!(fleet.reset("a/b", at(1_000.0)), 1);
    assert_eq!(shares(&mut fleet, at(1_060.0)), [1000, 0]);
}

#[test]
fn an_evacuation_is_missed_once_nothing_else_is_healthy() {
    let mut fleet = fleet(vec![standing_in(
        fixture::cluster(&[&["a"], &["b"]]),
        &["eu", "us"],
    )]);
    assert!(fleet.evacuate(place("eu"), at(0.0)));
    assert!(!fleet.is_missed(&place("eu"), None));
    fleet.end_evacuation(&place("eu"), at(0.0));
    let mut cluster = standing_in(fixture::cluster(&[&["a"], &["b"]]), &["eu", "us"]);
    Arc::make_mut(&mut cluster.policy).passive.keep_at_least = 0;
    fleet.reconcile(&snapshot(vec![cluster]), at(0.0));
    assert!(fleet.evacuate(place("eu"), at(0.0)));
    kill(&mut fleet, "b", at(0.0));
    assert!(fleet.is_missed(&place("eu"), None) && !fleet.is_missed(&place("us"), Some("a/b")));
    assert_eq!(fleet.unwell().collect::<Vec<_>>(), [&key("b")]);
    // Whoever is let back for that takes everything at once.
    assert!(fleet.end_evacuation(&place("eu"), at(0.0)));
    assert_eq!(shares(&mut fleet, at(0.0)), [1000, 0]);
    assert!(!fleet.is_missed(&place("eu"), None));
}

#[test]
fn there_are_no_more_evacuations_than_are_kept() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a"], &["b"]])]);
    for nth in 0..EVACUATIONS_MAX {
        assert!(fleet.evacuate(place(&format!("r{nth}")), at(0.0)), "{nth}");
    }
    assert!(!fleet.evacuate(place("more"), at(0.0)));
    assert_eq!(fleet.evacuations().count(), EVACUATIONS_MAX);
}
