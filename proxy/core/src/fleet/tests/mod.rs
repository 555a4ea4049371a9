//! The fleet as its callers see it, by idea; here what they share, and what is of none of them.

mod alike;
mod checks;
mod eject;
mod evacuation;
mod level;
mod passive;
mod push;
mod reports;
mod route;
mod trial;
mod warming;

use std::sync::Arc;
use std::time::Duration;

use crate::fixture;
use crate::fleet::{EVENTS_MAX, EndpointStatus, Fleet, FleetEvent, Observation, Shares};
use crate::snapshot::{
    ActiveCheck, ActiveKind, Address, Cluster, EndpointIx, EndpointKey, Failback, Failover,
    Failure, Snapshot, TooFew,
};
use crate::time::Time;

#[test]
fn what_is_configured_to_be_down_is_unhealthy_whatever_is_found() {
    let mut cluster = active(fixture::cluster(&[&["a", "b"], &["c"]]));
    cluster.endpoints[0].is_down = true;
    let mut fleet = fleet(vec![cluster.clone()]);
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Unhealthy));
    assert_eq!(fleet.status(&key("b")), Some(EndpointStatus::Unknown));
    let shares = fleet.shares(at(0.0));
    let status = &shares.clusters.get(0).unwrap().endpoints;
    assert!(!status[0].is_usable(true) && status[1].is_usable(false));
    // One of two is down, and it is one of the level's two.
    let levels = &shares.clusters.get(0).unwrap().levels;
    assert!(levels[0] < 1.0 && levels[1] > 0.0, "{levels:?}");
    cluster.endpoints[0].is_down = false;
    fleet.reconcile(&snapshot(vec![cluster]), at(1.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Unknown));
}

#[test]
fn unknown_endpoints_and_answers_nobody_waits_for_change_nothing() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a"], &["b"]])]);
    let before = fleet.shares(at(0.0));
    see(&mut fleet, "nobody", Err(Failure::Connect), 9, at(0.0));
    fleet.probed(&key("a"), false, at(0.0));
    fleet.probed(&key("nobody"), false, at(0.0));
    assert_eq!(fleet.shares(at(0.0)), before);
    assert!(!fleet.has_changed());
}

#[test]
fn events_nobody_drains_are_bounded() {
    let mut cluster = fixture::cluster(&[&["a", "b"]]);
    Arc::make_mut(&mut cluster.policy).passive.eject = Duration::from_secs(1);
    let mut fleet = fleet(vec![cluster]);
    for nth in 0..3000u32 {
        // Well for as long as is forgiven.
        let second = f64::from(2 * nth);
        kill(&mut fleet, "a", at(second));
        revive(&mut fleet, "a", at(second + 1.0));
    }
    // An ejection and a readmission each.
    assert_eq!(fleet.events_dropped(), 3000 + 3000 - 4096);
    assert_eq!(fleet.drain_events().len(), EVENTS_MAX);
}

#[test]
fn shares_of_a_fleet_that_saw_nothing_are_all_healthy() {
    let clusters = vec![
        fixture::cluster(&[&["a", "b"], &["c"]]),
        Cluster {
            route: "a/other".into(),
            ..fixture::cluster(&[&[], &["c"]])
        },
    ];
    let snapshot = snapshot(clusters.clone());
    assert_eq!(
        fleet(clusters).shares(at(0.0)),
        Shares::all_healthy(&snapshot)
    );
}

#[test]
fn fail_refuses_where_use_all_would_try() {
    let mut cluster = fixture::cluster(&[&["a", "b"]]);
    Arc::make_mut(&mut cluster.policy).failover = Failover {
        full: 0.6,
        start: 0.9,
        too_few: TooFew::Fail,
        ..cluster.policy.failover
    };
    let mut fail = fleet(vec![cluster.clone()]);
    kill(&mut fail, "a", at(0.0));
    assert!(fail.shares(at(0.0)).clusters[0].refuses());
    Arc::make_mut(&mut cluster.policy).failover.too_few = TooFew::UseAll;
    let mut use_all = fleet(vec![cluster]);
    kill(&mut use_all, "a", at(0.0));
    let shares = use_all.shares(at(0.0));
    assert!(shares.clusters[0].too_few);
    assert!(shares.clusters[0].is_usable(EndpointIx(0)));
}

fn at(seconds: f64) -> Time {
    Time::from_origin(Duration::from_secs_f64(seconds))
}

fn key(name: &str) -> EndpointKey {
    EndpointKey(name.into())
}

fn snapshot(clusters: Vec<Cluster>) -> Snapshot {
    Snapshot {
        clusters: clusters.into_iter().map(Arc::new).collect(),
        ..fixture::snapshot(vec![])
    }
}

fn fleet(clusters: Vec<Cluster>) -> Fleet {
    let mut fleet = Fleet::new();
    fleet.reconcile(&snapshot(clusters), Time::ZERO);
    fleet
}

fn active(mut cluster: Cluster) -> Cluster {
    Arc::make_mut(&mut cluster.policy).active = Some(ActiveCheck {
        kind: ActiveKind::Tcp,
        every: Duration::from_secs(5),
        timeout: Duration::from_secs(1),
        up: 2,
        down: 3,
    });
    cluster
}

fn see(fleet: &mut Fleet, name: &str, result: Result<(), Failure>, times: usize, now: Time) {
    for _ in 0..times {
        let observation = Observation {
            key: key(name),
            result,
        };
        fleet.observe(&observation, now);
    }
}

/// Has the one request succeed that is sent when an ejection is over.
fn revive(fleet: &mut Fleet, name: &str, now: Time) {
    see(fleet, name, Ok(()), 1, now);
    assert_eq!(fleet.status(&key(name)), Some(EndpointStatus::Healthy));
}

fn kill(fleet: &mut Fleet, name: &str, now: Time) {
    see(fleet, name, Err(Failure::Connect), 5, now);
    assert_eq!(fleet.status(&key(name)), Some(EndpointStatus::Ejected));
}

/// The levels' shares of the first cluster, in thousandths.
fn shares(fleet: &mut Fleet, now: Time) -> Vec<i64> {
    let shares = fleet.shares(now);
    thousandths(&shares.clusters[0].levels)
}

#[expect(clippy::cast_possible_truncation, reason = "shares are 0 to 1")]
fn thousandths(shares: &[f64]) -> Vec<i64> {
    shares.iter().map(|s| (s * 1000.0).round() as i64).collect()
}

fn manual(mut cluster: Cluster) -> Cluster {
    Arc::make_mut(&mut cluster.policy).failover.failback = Failback::Manual;
    cluster
}

fn told_to_wait(fleet: &mut Fleet) -> usize {
    let is = |event: &FleetEvent| matches!(event, FleetEvent::WaitsForReset { level, .. } if &**level == "level 0");
    fleet
        .drain_events()
        .iter()
        .filter(|event| is(event))
        .count()
}

/// Answers every check until `end`: those of `dead` badly.
fn check_until(fleet: &mut Fleet, dead: &[&str], end: Time) {
    while let Some(wake) = fleet.next_wake().filter(|wake| *wake <= end) {
        for probe in fleet.due_probes(wake, 3) {
            let good = !dead.contains(&&*probe.key.0);
            fleet.probed(&probe.key, good, wake);
        }
        let _shares = fleet.shares(wake);
    }
}

/// Where the nth gateway of a peer answers.
fn gateway(nth: u16) -> Address {
    Address::Socket(([192, 0, 2, 1], nth).into())
}
