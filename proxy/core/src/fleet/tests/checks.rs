//! Active checks.

use std::sync::Arc;
use std::time::Duration;

use crate::fixture;
use crate::fleet::{EndpointStatus, FleetEvent, PROBES_IN_FLIGHT_MAX};
use crate::snapshot::{ActiveCheck, ActiveKind, PeerIx};
use crate::time::Time;

use super::{active, at, check_until, fleet, key, shares, snapshot};

#[test]
fn active_checks_start_at_once_and_unknown_is_not_dead() {
    let mut fleet = fleet(vec![active(fixture::cluster(&[&["a"], &["b"]]))]);
    assert_eq!(fleet.next_wake(), Some(Time::ZERO));
    let probes = fleet.due_probes(Time::ZERO, 7);
    let keys: Vec<_> = probes.iter().map(|probe| probe.key.clone()).collect();
    assert_eq!(keys, [key("a"), key("b")]);
    assert_eq!(probes[0].connect, Duration::from_secs(1));
    assert_eq!(fleet.due_probes(at(0.5), 7), []);
    assert_eq!(
        fleet.shares(at(0.5)).clusters[0].endpoints,
        [EndpointStatus::Unknown; 2]
    );
    assert_eq!(shares(&mut fleet, at(0.5)), [1000, 0]);
}

#[test]
fn an_endpoint_that_fails_its_checks_gets_nothing_until_it_passes_them_again() {
    let mut fleet = fleet(vec![active(fixture::cluster(&[&["a", "b"], &["c"]]))]);
    check_until(&mut fleet, &["a"], at(9.0));
    assert_eq!(shares(&mut fleet, at(9.0)), [1000, 0]);
    check_until(&mut fleet, &["a"], at(11.0));
    assert_eq!(shares(&mut fleet, at(11.0)), [714, 286]);
    check_until(&mut fleet, &[], at(200.0));
    assert_eq!(shares(&mut fleet, at(200.0)), [1000, 0]);
    let events: Vec<_> = fleet
        .drain_events()
        .into_iter()
        .filter(|event| !matches!(event, FleetEvent::SharesMoved { .. }))
        .collect();
    assert_eq!(
        events,
        [
            FleetEvent::Healthy { key: key("b") },
            FleetEvent::Healthy { key: key("c") },
            FleetEvent::Unhealthy { key: key("a") },
            FleetEvent::Healthy { key: key("a") },
        ]
    );
}

#[test]
fn too_few_never_uses_what_fails_its_checks() {
    let mut fleet = fleet(vec![active(fixture::cluster(&[&["a"], &["b"]]))]);
    check_until(&mut fleet, &["a", "b"], at(20.0));
    assert!(fleet.shares(at(20.0)).clusters[0].refuses());
    // Without any endpoint left, a passive ejection is refused too (keepAtLeast), so that the
    // first good check brings traffic back without waiting for failback.
    check_until(&mut fleet, &["b"], at(32.0));
    assert_eq!(shares(&mut fleet, at(32.0)), [1000, 0]);
}

#[test]
fn checks_under_way_are_bounded() {
    let names: Vec<String> = (0..600).map(|n| format!("e{n:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut fleet = fleet(vec![active(fixture::cluster(&[&names]))]);
    let probes = fleet.due_probes(Time::ZERO, 1);
    assert_eq!(probes.len(), PROBES_IN_FLIGHT_MAX);
    assert_eq!(fleet.due_probes(Time::ZERO, 1), []);
    fleet.probed(&probes[0].key, true, Time::ZERO);
    assert_eq!(fleet.next_wake(), Some(Time::ZERO));
    assert_eq!(fleet.due_probes(Time::ZERO, 1).len(), 1);
}

#[test]
fn a_peers_gateway_is_given_more_time_to_connect() {
    let mut cluster = active(fixture::cluster(&[&["a"]]));
    cluster.endpoints[0].peer = Some(PeerIx(0));
    let mut fleet = fleet(vec![cluster]);
    assert_eq!(
        fleet.due_probes(Time::ZERO, 1)[0].connect,
        Duration::from_secs(3)
    );
}

#[test]
fn a_check_that_asks_otherwise_is_due_at_once() {
    let with_check = |change: fn(&mut ActiveCheck)| {
        let mut cluster = active(fixture::cluster(&[&["a"], &["b"]]));
        change(Arc::make_mut(&mut cluster.policy).active.as_mut().unwrap());
        cluster
    };
    let mut fleet = fleet(vec![with_check(|check| {
        check.every = Duration::from_secs(3600)
    })]);
    check_until(&mut fleet, &["a"], at(1.0));
    assert!(fleet.next_wake() > Some(at(3000.0)));
    // The same check goes on waiting.
    fleet.reconcile(
        &snapshot(vec![with_check(|check| {
            check.every = Duration::from_secs(3600)
        })]),
        at(2.0),
    );
    assert_eq!(fleet.due_probes(at(2.0), 1), []);
    for (second, change) in [
        (
            3.0,
            (|check| check.every = Duration::from_secs(60)) as fn(&mut ActiveCheck),
        ),
        (4.0, |check| {
            check.kind = ActiveKind::Http {
                path: "/healthz".into(),
                host: "b".into(),
            };
        }),
    ] {
        fleet.reconcile(&snapshot(vec![with_check(change)]), at(second));
        // What the answers amounted to stays until there are new ones.
        assert_eq!(fleet.status(&key("b")), Some(EndpointStatus::Healthy));
        assert_eq!(fleet.due_probes(at(second), 1).len(), 2);
        assert_eq!(fleet.due_probes(at(second), 1), []);
    }
}
