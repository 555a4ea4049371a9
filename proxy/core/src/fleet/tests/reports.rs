//! What peers report.

use std::sync::Arc;

use crate::fixture;
use crate::fleet::{ClusterShares, Fleet, FleetEvent, Said};
use crate::names::HostPattern;
use crate::report::{Presence, Report, Standing};
use crate::shares::Counts;
use crate::snapshot::{
    Cluster, ClusterIx, EndpointIx, EndpointKey, Failure, PeerIx, Service, Snapshot, WhenStale,
};
use crate::time::Time;

use super::{at, gateway, kill, see, shares, snapshot, thousandths};

/// Own endpoints `a` and `b`, then west's two gateways, then north's one, which stand alone: `x.a` of
/// the route `a/b`, and `y.a` of the route `a/c` behind the same gateways.
fn behind_peers() -> Snapshot {
    let route = |name: &str| {
        let keys: Vec<String> = (0..5).map(|nth| format!("{name}|{nth}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut cluster = fixture::cluster(&[&keys[..2], &keys[2..4], &keys[4..]]);
        for (nth, endpoint) in cluster.endpoints.iter_mut().enumerate().skip(2) {
            let is_north = nth == 4;
            endpoint.peer = Some(PeerIx(usize::from(is_north)));
            endpoint.address = gateway(nth.try_into().unwrap());
            endpoint.weight = if is_north { 1.0 } else { 0.5 };
        }
        cluster.route = name.into();
        cluster.name = name.into();
        cluster
    };
    let service = |name: &str, host: &str, ix| Service {
        outbound: ClusterIx(ix),
        own: None,
        ..fixture::service(name, host, 80)
    };
    let mut of = snapshot(vec![route("a/b"), route("a/c")]);
    of.services = vec![service("a/b", "x.a", 0), service("a/c", "y.a", 1)].into();
    let north = fixture::peer("north", "north.a", "spiffe://north.a/gw");
    of.peers.edit(|all| all.push(north));
    of
}

fn reporting(standings: &[(&str, u32, u32)]) -> Arc<Report> {
    let mut report = Report::default();
    for (host, healthy, total) in standings {
        let (healthy, total) = (*healthy, *total);
        let standing = Standing::new(healthy, total, healthy.into(), total.into()).unwrap();
        assert!(report.set(&HostPattern::parse(host).unwrap(), 80, standing));
    }
    Arc::new(report)
}

fn hear(fleet: &mut Fleet, nth: u16, standings: &[(&str, u32, u32)], now: Time) {
    let peer = if nth == 4 { "north" } else { "west" };
    fleet.report(&peer.into(), &gateway(nth), &reporting(standings), now);
}

fn statuses(fleet: &mut Fleet, cluster: usize, now: Time) -> Vec<&'static str> {
    let shares = fleet.shares(now);
    let endpoints = shares.clusters[cluster].endpoints.iter();
    endpoints.map(|status| status.label()).collect()
}

fn of_both(fleet: &mut Fleet, now: Time) -> [Vec<i64>; 2] {
    let shares = fleet.shares(now);
    [0, 1].map(|ix| thousandths(&shares.clusters[ix].levels))
}

/// Both routes' own endpoints are gone, so that west serves them.
fn served_by_west() -> Fleet {
    let mut fleet = Fleet::new();
    fleet.reconcile(&behind_peers(), Time::ZERO);
    for key in ["a/b|0", "a/b|1", "a/c|0", "a/c|1"] {
        kill(&mut fleet, key, at(0.0));
    }
    assert_eq!(of_both(&mut fleet, at(0.0)), [[0, 1000, 0], [0, 1000, 0]]);
    fleet.drain_events();
    fleet
}

#[test]
fn a_peer_that_reports_nothing_healthy_of_one_service_loses_that_one_alone() {
    let mut fleet = served_by_west();
    for nth in [2, 3] {
        hear(&mut fleet, nth, &[("x.a", 3, 3), ("y.a", 3, 3)], at(1.0));
    }
    assert_eq!(of_both(&mut fleet, at(1.0)), [[0, 1000, 0], [0, 1000, 0]]);
    fleet.drain_events();
    for nth in [2, 3] {
        hear(&mut fleet, nth, &[("x.a", 0, 3), ("y.a", 3, 3)], at(2.0));
    }
    assert_eq!(of_both(&mut fleet, at(2.0)), [[0, 0, 1000], [0, 1000, 0]]);
    let west = ["ejected", "ejected", "empty", "empty", "healthy"];
    assert_eq!(statuses(&mut fleet, 0, at(2.0)), west);
    let told = fleet.drain_events();
    let reported = |key: &str, healthy, turned| FleetEvent::Reported {
        key: EndpointKey(key.into()),
        peer: "west".into(),
        said: Said::Healthy(Counts { healthy, total: 3 }),
        turned,
    };
    assert_eq!(
        told[..2],
        [reported("a/b|2", 0, true), reported("a/b|3", 0, true)]
    );
    assert!(matches!(&told[2..], [FleetEvent::SharesMoved { route, .. }] if **route == *"a/b"));
    // It comes back as everything does: a minute later, over a minute.
    hear(&mut fleet, 2, &[("x.a", 3, 3), ("y.a", 3, 3)], at(3.0));
    let told = fleet.drain_events();
    assert_eq!(told, [reported("a/b|2", 3, true)]);
}

#[test]
fn a_level_is_as_healthy_as_its_peers_report_by_what_they_weigh() {
    let mut fleet = served_by_west();
    // One of two healthy by each: c = 0.5 / 0.7.
    hear(&mut fleet, 2, &[("x.a", 1, 2)], at(1.0));
    hear(&mut fleet, 3, &[("x.a", 1, 2)], at(1.0));
    assert_eq!(shares(&mut fleet, at(1.0)), [0, 714, 286]);
    let worth = fleet.shares(at(1.0)).clusters[0].worths[2];
    assert_eq!((worth.weight, worth.healthy), (1.0, 0.5));
    assert_eq!(
        worth.reported,
        Some(Counts {
            healthy: 1,
            total: 2
        })
    );
    // By weight: 6 of 6 and 0 of 2 (each halved) are 3/4.
    hear(&mut fleet, 2, &[("x.a", 6, 6)], at(2.0));
    hear(&mut fleet, 3, &[("x.a", 0, 2)], at(2.0));
    assert_eq!(statuses(&mut fleet, 0, at(2.0))[2..4], ["healthy", "empty"]);
    // The level could take everything again, and waits for failback.
    assert_eq!(shares(&mut fleet, at(2.0)), [0, 714, 286]);
    assert_eq!(fleet.shares(at(2.0)).clusters[0].worths[3].healthy, 0.0);
    // The other route was never named, and nothing is known of it.
    assert_eq!(fleet.shares(at(2.0)).clusters[1].worths, []);
}

#[test]
fn the_first_report_of_what_is_well_changes_nothing() {
    let mut fleet = served_by_west();
    hear(&mut fleet, 2, &[("x.a", 5, 5)], at(1.0));
    assert_eq!(of_both(&mut fleet, at(1.0)), [[0, 1000, 0], [0, 1000, 0]]);
    assert_eq!(
        statuses(&mut fleet, 0, at(1.0))[2..],
        ["healthy", "healthy", "healthy"]
    );
}

#[test]
fn what_was_reported_holds_or_is_dropped_when_it_is_old() {
    for (when_stale, west) in [
        (WhenStale::Hold, "empty-once"),
        (WhenStale::Drop, "healthy"),
    ] {
        let mut snapshot = behind_peers();
        snapshot.peers[0].when_stale = when_stale;
        let mut fleet = Fleet::new();
        fleet.reconcile(&snapshot, Time::ZERO);
        hear(&mut fleet, 2, &[("x.a", 0, 3)], at(1.0));
        // The same again: it counts from here.
        let same = reporting(&[("x.a", 0, 3)]);
        fleet.report(&"west".into(), &gateway(2), &same, at(4.0));
        fleet.report(&"west".into(), &gateway(2), &same, at(6.0));
        assert_eq!(fleet.next_wake(), Some(at(16.0)));
        assert_eq!(statuses(&mut fleet, 0, at(15.9))[2], "empty");
        fleet.drain_events();
        assert_eq!(statuses(&mut fleet, 0, at(16.0))[2], west);
        let told = fleet.drain_events();
        assert_eq!(
            told[0],
            FleetEvent::ReportStale {
                peer: "west".into(),
                gateway: gateway(2),
                when_stale
            }
        );
        assert_eq!(
            told.len(),
            if when_stale == WhenStale::Hold { 1 } else { 2 },
            "{told:?}"
        );
        // It speaks again.
        fleet.report(&"west".into(), &gateway(2), &same, at(20.0));
        assert_eq!(statuses(&mut fleet, 0, at(20.0))[2], "empty");
    }
}

#[test]
fn a_gateway_that_leaves_is_left_to_others_and_one_that_is_gone_is_left_out() {
    let mut fleet = served_by_west();
    for nth in [2, 3] {
        hear(&mut fleet, nth, &[("x.a", 3, 3)], at(1.0));
    }
    let is = |presence| {
        let mut report = Report::clone(&reporting(&[("x.a", 3, 3)]));
        report.presence = presence;
        Arc::new(report)
    };
    let both =
        |fleet: &mut Fleet, now| [0, 1].map(|route| statuses(fleet, route, now)[2..4].to_vec());
    // It still takes what comes, and the other gateway is preferred; the level is as it was.
    fleet.report(&"west".into(), &gateway(2), &is(Presence::Leaving), at(2.0));
    assert_eq!(both(&mut fleet, at(2.0)), [["healthy"; 2], ["healthy"; 2]]);
    assert_eq!(of_both(&mut fleet, at(2.0)), [[0, 1000, 0], [0, 1000, 0]]);
    let worth = fleet.shares(at(2.0)).clusters[0].worths[2];
    assert_eq!((worth.healthy, worth.drawn), (1.5, 0.0));
    let of = fleet.shares(at(2.0)).clusters[1].clone();
    let cluster = &behind_peers().clusters[1];
    let first = |of: &ClusterShares, draw| crate::plan::plan(cluster, of, &|_| 0, draw).next();
    assert!((0..100).all(|draw| first(&of, draw).unwrap().endpoint == EndpointIx(3)));
    // Where it is the only one it is picked all the same.
    kill(&mut fleet, "a/c|3", at(2.0));
    let of = fleet.shares(at(2.0)).clusters[1].clone();
    let picked = (0..100).filter_map(|draw| first(&of, draw));
    let mut at_west = picked.filter(|attempt| attempt.level == 1);
    assert!(at_west.all(|attempt| attempt.endpoint == EndpointIx(2)));
    // Nobody answers there any more.
    fleet.report(&"west".into(), &gateway(2), &is(Presence::Gone), at(2.5));
    assert_eq!(
        both(&mut fleet, at(2.5)),
        [["empty", "healthy"], ["empty", "ejected"]]
    );
    fleet.forget_report("west", &gateway(2), at(3.0));
    assert_eq!(
        statuses(&mut fleet, 0, at(3.0))[2..4],
        ["healthy", "healthy"]
    );
    let worths = fleet.shares(at(3.0)).clusters[0].worths.clone();
    assert_eq!(worths[2], crate::shares::Worth::configured(0.5));
    assert_eq!(worths[3].weight, 1.5);
}

#[test]
fn reports_ejections_and_checks_are_each_enough_to_be_left_out() {
    let mut fleet = served_by_west();
    hear(&mut fleet, 2, &[("x.a", 2, 2)], at(1.0));
    hear(&mut fleet, 3, &[("x.a", 2, 2)], at(1.0));
    kill(&mut fleet, "a/b|2", at(1.0));
    let now = at(1.0);
    assert_eq!(statuses(&mut fleet, 0, now)[2..4], ["ejected", "healthy"]);
    hear(&mut fleet, 2, &[("x.a", 0, 2)], now);
    assert_eq!(statuses(&mut fleet, 0, now)[2..4], ["empty", "healthy"]);
    // With nothing healthy left, what was ejected is tried, and what is reported empty is not.
    hear(&mut fleet, 3, &[("x.a", 0, 2)], now);
    hear(&mut fleet, 4, &[("x.a", 0, 2)], now);
    let of = fleet.shares(now).clusters[0].clone();
    assert!(of.too_few);
    assert_eq!(thousandths(&of.levels), [1000, 0, 0]);
    let usable: Vec<bool> = (0..5).map(|ix| of.is_usable(EndpointIx(ix))).collect();
    assert_eq!(usable, [true, true, false, false, false]);
    // What was said long ago may be over.
    let of = fleet.shares(at(12.0)).clusters[0].clone();
    assert!(of.is_usable(EndpointIx(2)) && of.is_usable(EndpointIx(4)));
}

#[test]
fn what_is_reported_empty_is_none_of_those_that_are_kept() {
    let mut snapshot = behind_peers();
    for cluster in &mut snapshot.clusters {
        let policy = &mut Arc::make_mut(cluster).policy;
        Arc::make_mut(policy).passive.keep_at_least = 1;
    }
    let mut fleet = Fleet::new();
    fleet.reconcile(&snapshot, Time::ZERO);
    for nth in [2, 3, 4] {
        hear(&mut fleet, nth, &[("x.a", 0, 3)], at(0.0));
    }
    kill(&mut fleet, "a/b|0", at(0.0));
    see(&mut fleet, "a/b|1", Err(Failure::Reset), 5, at(0.0));
    assert_eq!(
        statuses(&mut fleet, 0, at(0.0))[..2],
        ["ejected", "healthy"]
    );
}

#[test]
fn a_push_keeps_what_was_reported() {
    let mut fleet = served_by_west();
    hear(&mut fleet, 2, &[("x.a", 0, 3)], at(1.0));
    let mut next = behind_peers();
    // The gateway stands elsewhere among the others, and so does the peer.
    next.peers.reverse();
    for cluster in &mut next.clusters {
        let cluster = Arc::make_mut(cluster);
        for endpoint in &mut cluster.endpoints {
            endpoint.peer = endpoint.peer.map(|ix| PeerIx(1 - ix.0));
        }
        cluster.endpoints.swap(2, 3);
    }
    fleet.reconcile(&next, at(2.0));
    assert_eq!(
        statuses(&mut fleet, 0, at(2.0))[2..],
        ["healthy", "empty", "healthy"]
    );
    // The route has another host, of which nothing is reported.
    next.services[0].hosts = vec![HostPattern::parse("z.a").unwrap()];
    fleet.reconcile(&next, at(3.0));
    assert_eq!(
        statuses(&mut fleet, 0, at(3.0))[2..],
        ["healthy", "healthy", "healthy"]
    );
}

#[test]
fn an_endpoint_that_carries_several_services_is_as_good_as_the_worst_of_them() {
    let mut of = behind_peers();
    // Two ports of one route, whose caller's TLS is relayed as it is: one endpoint for both.
    let mut second = Cluster::clone(&of.clusters[0]);
    second.name = "a/b:81".into();
    of.clusters[1] = second.into();
    of.services[0].ports = 2;
    of.services[1] = Service {
        port: 81,
        outbound: ClusterIx(1),
        ..of.services[0].clone()
    };
    let mut fleet = Fleet::new();
    fleet.reconcile(&of, Time::ZERO);
    let host = HostPattern::parse("x.a").unwrap();
    let mut hear = |ports: [u32; 2], now| {
        let mut report = Report::default();
        for (port, healthy) in [80, 81].into_iter().zip(ports) {
            let standing = Standing::new(healthy, 3, healthy.into(), 3.0).unwrap();
            report.set(&host, port, standing);
        }
        fleet.report(&"west".into(), &gateway(2), &Arc::new(report), now);
        [0, 1].map(|cluster| statuses(&mut fleet, cluster, now)[2])
    };
    assert_eq!(hear([3, 0], at(1.0)), ["empty"; 2]);
    assert_eq!(hear([3, 3], at(2.0)), ["healthy"; 2]);
    assert_eq!(hear([0, 3], at(3.0)), ["empty"; 2]);
    // A change of the better one makes nothing better.
    assert_eq!(hear([0, 2], at(4.0)), ["empty"; 2]);
}
