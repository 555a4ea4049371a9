//! What a push keeps.

use std::sync::Arc;
use std::time::Duration;

use crate::fixture;
use crate::fleet::known::Known;
use crate::fleet::reports::asked_of;
use crate::fleet::{ClusterShares, EndpointStatus, Fleet, Shares};
use crate::locality::Locality;
use crate::names::{Host, HostPattern};
use crate::report::{Presence, Report, Standing};
use crate::snapshot::{
    Address, Cluster, ClusterIx, EndpointIx, Failure, PeerIx, Service, Snapshot, WhenStale,
};
use crate::time::Time;

use super::{
    active, at, check_until, fleet, gateway, key, kill, revive, see, shares, snapshot, thousandths,
};

#[test]
fn a_push_forgets_no_ejection_no_check_and_no_ramp() {
    let cluster = || active(fixture::cluster(&[&["a"], &["b"]]));
    let mut fleet = fleet(vec![cluster()]);
    kill(&mut fleet, "a", at(0.0));
    check_until(&mut fleet, &[], at(100.0));
    let before = fleet.shares(at(105.0));
    assert_eq!(thousandths(&before.clusters[0].levels), [250, 750]);
    // Another cluster comes first, a level and an endpoint are added, the address changes.
    let mut changed = fixture::cluster(&[&["a"], &["b", "x"], &["c"]]);
    Arc::make_mut(&mut changed.policy).active = cluster().policy.active.clone();
    changed.endpoints[0].address = Address::Name(Host::parse("a.example").unwrap(), 80);
    changed.endpoints[1].locality = Locality::parse("us").unwrap();
    let other = Cluster {
        name: "other".into(),
        route: "a/other".into(),
        ..fixture::cluster(&[&["o"]])
    };
    fleet.reconcile(&snapshot(vec![other, changed]), at(105.0));
    let after = fleet.shares(at(105.0));
    assert_eq!(thousandths(&after.clusters[1].levels), [250, 750, 0]);
    assert_eq!(
        after.clusters[1].endpoints,
        [
            EndpointStatus::Healthy,
            EndpointStatus::Healthy,
            EndpointStatus::Unknown,
            EndpointStatus::Unknown
        ]
    );
    assert_eq!(
        thousandths(&fleet.shares(at(120.0)).clusters[1].levels),
        [500, 500, 0]
    );
}

#[test]
fn an_ejected_endpoint_that_leaves_and_comes_back_is_still_ejected() {
    let both = || fixture::cluster(&[&["a", "b"]]);
    let mut fleet = fleet(vec![both()]);
    kill(&mut fleet, "a", at(0.0));
    fleet.reconcile(&snapshot(vec![fixture::cluster(&[&["b"]])]), at(1.0));
    assert_eq!(fleet.status(&key("a")), None);
    fleet.reconcile(&snapshot(vec![both()]), at(2.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
    fleet.reconcile(&snapshot(vec![fixture::cluster(&[&["b"]])]), at(3.0));
    let _shares = fleet.shares(at(60.0));
    assert_eq!(fleet.endpoints.len(), 1);
    assert_eq!(fleet.next_wake(), None);
}

/// A cluster with levels of these names.
fn named(levels: &[(&str, &[&str])]) -> Cluster {
    let keys: Vec<&[&str]> = levels.iter().map(|(_, keys)| *keys).collect();
    let mut cluster = fixture::cluster(&keys);
    for (level, (name, _)) in cluster.levels.iter_mut().zip(levels) {
        level.name = (*name).into();
    }
    cluster
}

#[test]
fn a_level_that_is_called_otherwise_goes_on_waiting_for_failback() {
    for (pushed, expected) in [
        // An endpoint in another rack joins the level: its name says so.
        (
            named(&[("eu/1/a, eu/1/b", &["a1", "a2", "new"]), ("us", &["b"])]),
            vec![0, 1000],
        ),
        // A nearer level appears, which is new and healthy, and the others move down.
        (
            named(&[
                ("eu/1/z", &["z"]),
                ("eu/1/a", &["a1", "a2"]),
                ("us", &["b"]),
            ]),
            vec![1000, 0, 0],
        ),
        // The names change places, the endpoints do not.
        (
            named(&[("us", &["a1", "a2"]), ("eu/1/a", &["b"])]),
            vec![0, 1000],
        ),
        // A level is split: both halves wait.
        (
            named(&[("eu/1/a", &["a1"]), ("eu/1/b", &["a2"]), ("us", &["b"])]),
            vec![0, 0, 1000],
        ),
        // Every address is new: the name is all there is to go by.
        (
            named(&[("eu/1/a", &["n1", "n2"]), ("us", &["n3"])]),
            vec![0, 1000],
        ),
    ] {
        let mut fleet = fleet(vec![named(&[("eu/1/a", &["a1", "a2"]), ("us", &["b"])])]);
        kill(&mut fleet, "a1", at(0.0));
        kill(&mut fleet, "a2", at(0.0));
        // Back at 31 s, waiting until 91 s.
        revive(&mut fleet, "a1", at(31.0));
        revive(&mut fleet, "a2", at(31.0));
        assert_eq!(shares(&mut fleet, at(31.0)), [0, 1000]);
        let names: Vec<_> = pushed
            .levels
            .iter()
            .map(|level| level.name.clone())
            .collect();
        let ramps = expected[0] == 0;
        fleet.reconcile(&snapshot(vec![pushed]), at(40.0));
        assert_eq!(shares(&mut fleet, at(40.0)), expected, "{names:?}");
        if ramps && expected.len() == 2 {
            assert_eq!(shares(&mut fleet, at(106.0)), [250, 750], "{names:?}");
        }
    }
}

#[test]
fn a_level_that_is_held_stays_held_when_a_rack_joins_it() {
    let with_hold = |mut cluster: Cluster| {
        Arc::make_mut(&mut cluster.policy).failover.hold = Duration::from_secs(20);
        cluster
    };
    let before = named(&[("eu/1/a", &["a1", "a2"]), ("us", &["b"])]);
    let mut fleet = fleet(vec![with_hold(before)]);
    kill(&mut fleet, "a1", at(0.0));
    let after = named(&[("eu/1/a, eu/1/b", &["a1", "a2", "a3"]), ("us", &["b"])]);
    fleet.reconcile(&snapshot(vec![with_hold(after)]), at(10.0));
    // 2 of 3 is c = 20/21, and held since 0 s.
    assert_eq!(shares(&mut fleet, at(19.9)), [1000, 0]);
    assert_eq!(shares(&mut fleet, at(20.0)), [952, 48]);
}

#[test]
fn a_push_of_thousands_of_clusters_is_not_quadratic() {
    let clusters: Vec<Cluster> = (0..3000)
        .map(|n| Cluster {
            name: format!("a/{n}:80").into(),
            route: format!("a/{n}").into(),
            ..named(&[("eu", &[&format!("{n}a")]), ("us", &[&format!("{n}b")])])
        })
        .collect();
    let snapshot = snapshot(clusters);
    let mut fleet = Fleet::new();
    fleet.reconcile(&snapshot, Time::ZERO);
    // A look at every known cluster for each would be 9 million comparisons of names a push.
    for second in 1..4 {
        fleet.advance(at(f64::from(second)));
        fleet.reconcile_all(&snapshot, asked_of(&snapshot), at(f64::from(second)));
    }
    let known = Known::new(&fleet.clusters);
    assert_eq!((known.by_name.len(), known.by_route.len()), (3000, 3000));
}

#[test]
fn a_new_port_takes_over_how_far_its_route_is() {
    let port = |name: &str, levels: &[&[&str]]| Cluster {
        name: name.into(),
        ..fixture::cluster(levels)
    };
    let web = || port("web", &[&["w1"], &["w2"]]);
    let mut fleet = fleet(vec![web()]);
    kill(&mut fleet, "w1", at(0.0));
    let _readmitted = fleet.shares(at(31.0));
    fleet.reconcile(
        &snapshot(vec![web(), port("grpc", &[&["g1"], &["g2"]])]),
        at(40.0),
    );
    let shares = fleet.shares(at(40.0));
    assert_eq!(thousandths(&shares.clusters[1].levels), [0, 1000]);
}

/// Shares without whose trials they are.
fn plain(shares: &Shares) -> (Vec<ClusterShares>, Vec<Vec<EndpointIx>>) {
    let mut all: Vec<ClusterShares> = shares.clusters.iter().cloned().collect();
    let trials = (all.iter_mut())
        .map(|of| std::mem::take(&mut of.trials))
        .map(|trials| trials.into_iter().map(|(ix, _)| ix).collect())
        .collect();
    (all, trials)
}

/// What is done for the routes that changed alone comes to the same as doing it for all.
#[expect(clippy::too_many_lines, reason = "a flat list of what may happen")]
#[test]
fn a_push_that_changes_few_routes_leaves_the_fleet_as_one_that_is_looked_at_whole() {
    const ROUTES: usize = 12;
    const ROUNDS: usize = 3000;
    let mut seed = 7_u64;
    let mut draw = |below: usize| {
        seed =
            (seed.wrapping_mul(6_364_136_223_846_793_005)).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % below
    };
    let cluster = |route: usize, shape: usize, name: &str| {
        let keys: Vec<String> = (0..4).map(|nth| format!("{route}/{nth}")).collect();
        let all: Vec<&str> = keys.iter().map(String::as_str).collect();
        let levels: [&[&[&str]]; 4] = [
            &[&all[0..2], &all[2..3]],
            &[&all[0..1], &all[1..3]],
            &[&all[0..4]],
            &[&all[1..2], &all[3..4], &all[0..1]],
        ];
        let mut cluster = fixture::cluster(levels[shape % 4]);
        cluster.route = format!("shop/{route}").into();
        cluster.name = format!("{name}/{route}").into();
        for endpoint in &mut cluster.endpoints {
            let nth: u16 = endpoint.key.0.rsplit('/').next().unwrap().parse().unwrap();
            endpoint.peer = (nth > 1).then_some(PeerIx(0));
            endpoint.address = gateway(nth);
        }
        if shape.is_multiple_of(3) {
            active(cluster)
        } else {
            cluster
        }
    };
    let of_route = |route: usize, shape: usize| {
        let own = cluster(route, shape + 1, "own");
        [cluster(route, shape, "outbound"), own].map(Arc::new)
    };
    let service_of = |route: usize, host: usize| Service {
        outbound: ClusterIx(route * 2),
        own: Some(ClusterIx(route * 2 + 1)),
        ..fixture::service(&format!("shop/{route}"), &format!("h{host}.x"), 80)
    };
    let mut now_served = snapshot(vec![]);
    now_served.services = (0..ROUTES).map(|route| service_of(route, route)).collect();
    now_served.clusters = (0..ROUTES)
        .flat_map(|route| of_route(route, route))
        .collect();
    let look_at_all = |fleet: &mut Fleet, snapshot: &Snapshot, now| {
        fleet.advance(now);
        fleet.reports.are_of(snapshot);
        fleet.reconcile_all(snapshot, asked_of(snapshot), now);
    };
    let (mut quick, mut whole) = (Fleet::new(), Fleet::new());
    quick.reconcile(&now_served, Time::ZERO);
    look_at_all(&mut whole, &now_served, Time::ZERO);
    let west: Arc<str> = "west".into();
    let (mut seconds, mut pushes) = (0.0, 0);
    for round in 0..ROUNDS {
        seconds += [0.0, 0.3, 2.0, 20.0][draw(4)];
        let now = at(seconds);
        let name = format!("{}/{}", draw(ROUTES), draw(4));
        match draw(5) {
            3 => {
                let (mut report, gateway) = (Report::default(), gateway([2, 3][draw(2)]));
                for _ in 0..draw(8) {
                    let host = HostPattern::parse(&format!("h{}.x", draw(ROUTES))).unwrap();
                    let healthy = u32::try_from(draw(4)).unwrap();
                    let standing = Standing::new(healthy, 3, healthy.into(), 3.0).unwrap();
                    report.set(&host, 80, standing);
                }
                report.presence =
                    [Presence::Serving, Presence::Leaving, Presence::Gone][draw(12) % 3];
                let report = Arc::new(report);
                let is_forgotten = draw(8) == 0;
                for fleet in [&mut quick, &mut whole] {
                    if is_forgotten {
                        fleet.forget_report(&west, &gateway, now);
                    } else {
                        fleet.report(&west, &gateway, &report, now);
                    }
                }
            }
            4 if draw(4) == 0 => {
                let mut next = now_served.clone();
                let when = next.peers[0].when_stale;
                next.peers[0].when_stale = match when {
                    WhenStale::Hold => WhenStale::Drop,
                    WhenStale::Drop => WhenStale::Hold,
                };
                quick.reconcile(&next, now);
                look_at_all(&mut whole, &next, now);
                now_served = next;
            }
            0 => {
                let result = [Ok(()), Err(Failure::Connect), Err(Failure::Reset)][draw(3)];
                let times = 1 + draw(6);
                see(&mut quick, &name, result, times, now);
                see(&mut whole, &name, result, times, now);
            }
            1 => {
                let due = quick.due_probes(now, 3);
                assert_eq!(due, whole.due_probes(now, 3), "round {round}");
                for probe in due {
                    let good = draw(3) > 0;
                    quick.probed(&probe.key, good, now);
                    whole.probed(&probe.key, good, now);
                }
            }
            _ => {
                let mut next = now_served.clone();
                for _ in 0..=draw(2) {
                    let (route, shape) = (draw(ROUTES), draw(9));
                    for (nth, cluster) in of_route(route, shape).into_iter().enumerate() {
                        next.clusters[route * 2 + nth] = cluster;
                    }
                    next.services[route] = service_of(route, draw(ROUTES));
                }
                next.share(&now_served);
                let asked = asked_of(&next);
                pushes += usize::from(quick.changed_routes(&next, &asked).is_some());
                quick.reconcile(&next, now);
                look_at_all(&mut whole, &next, now);
                now_served = next;
            }
        }
        assert_eq!(
            plain(&quick.shares(now)),
            plain(&whole.shares(now)),
            "round {round}"
        );
        assert_eq!(quick.next_wake(), whole.next_wake(), "round {round}");
        assert_eq!(quick.drain_events(), whole.drain_events(), "round {round}");
    }
    assert!(pushes > ROUNDS / 4, "{pushes} pushes were quick");
}
