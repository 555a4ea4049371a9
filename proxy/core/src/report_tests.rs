use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fixture::{cluster, peer, service, snapshot};
use crate::fleet::{Fleet, Observation};
use crate::snapshot::{ClusterIx, EndpointKey, Failure, TooFew};
use crate::time::Time;

fn pattern(text: &str) -> HostPattern {
    HostPattern::parse(text).unwrap()
}

fn standing(healthy: u32, total: u32) -> Standing {
    Standing::new(healthy, total, healthy.into(), total.into()).unwrap()
}

/// `a/one` with three own endpoints of which one weighs twice, and a peer behind it; `a/two` with
/// another one, exported to west alone; `a/far` without any; `a/hidden`, which is exported to nobody.
fn world() -> Snapshot {
    let to = |ix| Export::To(vec![PeerIx(ix)]);
    let of = |service: Service, outbound, own| Service {
        outbound: ClusterIx(outbound),
        own,
        ..service
    };
    let mut world = snapshot(vec![
        of(service("a/one", "one.a", 80), 0, Some(ClusterIx(1))),
        Service {
            export: to(0),
            ..of(service("a/two", "*.two.a", 81), 2, Some(ClusterIx(2)))
        },
        of(service("a/far", "far.a", 80), 0, None),
        Service {
            export: Export::Nobody,
            ..of(service("a/hidden", "hidden.a", 80), 2, Some(ClusterIx(2)))
        },
    ]);
    let own = |levels: &[&[&str]], heavy: usize| {
        let mut own = cluster(levels);
        own.endpoints[heavy].weight = 2.0;
        Arc::make_mut(&mut own.policy).failover.too_few = TooFew::Fail;
        own
    };
    let mut all = own(&[&["e0", "e1"], &["e2"], &["w"]], 2);
    all.endpoints[3].peer = Some(PeerIx(0));
    let mut second = own(&[&["f0"]], 0);
    second.route = "a/two".into();
    second.name = "a/two:81".into();
    let mut alone = own(&[&["e0", "e1"], &["e2"]], 2);
    alone.name = "own a/one:80".into();
    world.clusters = [all, alone, second].map(Arc::new).to_vec().into();
    let north = peer("north", "north.example", "spiffe://north.example/gw");
    world.peers.edit(|all| all.push(north));
    world
}

fn kill(fleet: &mut Fleet, key: &str) {
    for _ in 0..5 {
        let key = EndpointKey(key.into());
        let result = Err(Failure::Connect);
        fleet.observe(&Observation { key, result }, Time::ZERO);
    }
}

#[test]
fn a_peer_is_told_of_what_is_exported_to_it_and_of_own_endpoints_alone() {
    let world = world();
    let mut fleet = Fleet::new();
    fleet.reconcile(&world, Time::ZERO);
    let told = |fleet: &mut Fleet, peer: usize| -> Vec<String> {
        let report = Report::to(&world, &fleet.shares(Time::ZERO), &[PeerIx(peer)]);
        let line = |(host, port, of): (HostPattern, u16, Standing)| {
            format!(
                "{host}:{port} {of}, {} of {}",
                of.healthy_weight(),
                of.weight()
            )
        };
        report.entries().map(line).collect()
    };
    let far = "far.a:80 0 of 0 healthy, 0 of 0";
    assert_eq!(
        told(&mut fleet, 0),
        [
            far,
            "one.a:80 3 of 3 healthy, 4 of 4",
            "*.two.a:81 1 of 1 healthy, 2 of 2"
        ]
    );
    assert_eq!(
        told(&mut fleet, 1),
        [far, "one.a:80 3 of 3 healthy, 4 of 4"]
    );
    let before = fleet.shares(Time::ZERO);
    let mut followed = Report::to(&world, &before, &[PeerIx(1)]);
    kill(&mut fleet, "e2");
    assert_eq!(told(&mut fleet, 1)[1], "one.a:80 2 of 3 healthy, 2 of 4");
    // What follows the changes comes to the same, and says what they are.
    let now = fleet.shares(Time::ZERO);
    let changes = followed.update(&world, (&before, &now), &[PeerIx(1)]);
    assert_eq!(followed, Report::to(&world, &now, &[PeerIx(1)]));
    assert_eq!(
        changes,
        followed.since(&Report::to(&world, &before, &[PeerIx(1)]))
    );
    assert_eq!(changes.len(), 1);
    assert_eq!(followed.update(&world, (&now, &now), &[PeerIx(1)]), []);
    kill(&mut fleet, "e0");
    kill(&mut fleet, "e1");
    assert_eq!(told(&mut fleet, 1)[1], "one.a:80 0 of 3 healthy, 0 of 4");
    let nobody = Report::to(&world, &fleet.shares(Time::ZERO), &[]);
    assert!(nobody.is_empty());
}

#[test]
fn what_own_backends_take_is_told_by_the_part_that_is_healthy() {
    let mut world = world();
    let own = Arc::make_mut(&mut world.clusters[1]);
    for endpoint in &mut own.endpoints {
        endpoint.capacity = Rate::per_second(200);
    }
    let mut fleet = Fleet::new();
    fleet.reconcile(&world, Time::ZERO);
    let told = |fleet: &mut Fleet| {
        let standing = Standing::of(&world, &fleet.shares(Time::ZERO), &world.services[0]);
        standing.capacity().map(Rate::get)
    };
    assert_eq!(told(&mut fleet), Some(200));
    // Two of the four that all weigh together.
    kill(&mut fleet, "e2");
    assert_eq!(told(&mut fleet), Some(100));
    // One of several that takes anything.
    let own = Arc::make_mut(&mut world.clusters[1]);
    own.endpoints[0].backend = "other".into();
    own.endpoints[0].capacity = None;
    fleet.reconcile(&world, Time::ZERO);
    let shares = fleet.shares(Time::ZERO);
    let standing = Standing::of(&world, &shares, &world.services[0]);
    assert_eq!(standing.capacity(), None);
}

#[test]
fn where_everything_is_refused_nothing_is_healthy() {
    let mut world = world();
    let own = Arc::make_mut(&mut world.clusters[1]);
    // A third is left, which is not enough to send anything there.
    Arc::make_mut(&mut own.policy).failover.full = 0.6;
    own.levels.truncate(1);
    let mut fleet = Fleet::new();
    fleet.reconcile(&world, Time::ZERO);
    kill(&mut fleet, "e0");
    let shares = fleet.shares(Time::ZERO);
    assert!(shares.clusters[1].refuses());
    assert!(Standing::of(&world, &shares, &world.services[0]).is_empty());
}

#[test]
fn a_host_is_found_as_the_reporting_gateway_would_find_it() {
    let mut report = Report::default();
    for (host, port, healthy) in [
        ("a.b.c", 80, 1),
        ("*.b.c", 80, 2),
        ("*.c", 80, 3),
        ("two.x", 80, 4),
        ("two.x", 90, 5),
    ] {
        assert!(report.set(&pattern(host), port, standing(healthy, 9)));
    }
    let find = |host: &str, port, names_port| {
        let found = report.find(&pattern(host), port, names_port);
        found.map(|standing| standing.healthy())
    };
    assert_eq!(find("a.b.c", 80, true), Some(1));
    assert_eq!(find("z.b.c", 80, true), Some(2));
    assert_eq!(find("z.y.c", 80, true), Some(3));
    assert_eq!(find("*.b.c", 80, true), Some(2));
    assert_eq!(find("*.y.c", 80, true), Some(3));
    assert_eq!(find("c", 80, true), None);
    // The SNI names no port of a route that has one: the only one of the other side is meant.
    assert_eq!(find("a.b.c", 8080, false), Some(1));
    assert_eq!(find("a.b.c", 8080, true), None);
    assert_eq!(find("two.x", 90, false), Some(5));
    assert_eq!(find("two.x", 8080, false), None);
}

#[test]
fn what_cannot_be_is_no_standing() {
    for (healthy, total, healthy_weight, weight) in [
        (2, 1, 1.0, 1.0),
        (1, 1, 2.0, 1.0),
        (1, 1, -1.0, 1.0),
        (1, 1, 1.0, f64::NAN),
        (1, 1, f64::NAN, 1.0),
        (1, 1, 1.0, f64::INFINITY),
        (1, 1, 1.0, WEIGHT_MAX * 2.0),
        (1, 1, -0.5, -0.1),
    ] {
        let made = Standing::new(healthy, total, healthy_weight, weight);
        assert_eq!(made, None, "{healthy} {total} {healthy_weight} {weight}");
    }
}

#[test]
fn there_is_room_for_so_many_entries_and_no_more() {
    let mut report = Report::default();
    let one = standing(1, 1);
    for nth in 0..ENTRIES_MAX {
        assert!(report.set(&pattern(&format!("h{nth}.x")), 80, one));
    }
    assert!(!report.set(&pattern("more.x"), 80, one));
    assert!(report.set(&pattern("h7.x"), 80, standing(0, 1)));
    let gone = Change {
        host: pattern("h7.x"),
        port: 80,
        standing: None,
    };
    assert!(report.apply(&gone));
    assert!(report.set(&pattern("more.x"), 80, one));
    assert_eq!(report.len(), ENTRIES_MAX);
}

fn some_report() -> impl Strategy<Value = Report> {
    let entry = (0..6usize, 0..3u16, 0..4u32);
    proptest::collection::vec(entry, 0..12).prop_map(|entries| {
        let hosts = ["a.x", "b.x", "*.x", "*.y.x", "c.y.x", "*.z"];
        let mut report = Report::default();
        for (host, port, healthy) in entries {
            report.set(
                &pattern(hosts[host]),
                port,
                standing(healthy, 3.max(healthy)),
            );
        }
        report
    })
}

proptest! {
    #[test]
    fn changes_make_the_later_of_the_earlier(before in some_report(), after in some_report()) {
        let mut made = before.clone();
        for change in after.since(&before) {
            prop_assert!(made.apply(&change));
        }
        prop_assert_eq!(&made, &after);
        prop_assert_eq!(made.since(&after), []);
        prop_assert_eq!(made.len(), made.entries().count());
    }
}

/// As many as a peer may send, in the order that costs a sorted list the most.
#[test]
fn one_host_may_have_every_port() {
    let mut report = Report::default();
    let host = HostPattern::parse("a.x").unwrap();
    let standing = Standing::new(1, 1, 1.0, 1.0).unwrap();
    for _ in 0..2 {
        for port in (1..=u16::MAX).rev() {
            assert!(report.set(&host, port, standing));
        }
    }
    assert_eq!(report.len(), usize::from(u16::MAX));
    assert_eq!(report.find(&host, 7, false), Some(standing));
    let mut fewer = report.clone();
    let change = Change {
        host: host.clone(),
        port: 7,
        standing: None,
    };
    assert!(fewer.apply(&change));
    assert_eq!(fewer.since(&report), [change]);
    assert_eq!(fewer.find(&host, 7, false), None);
}
