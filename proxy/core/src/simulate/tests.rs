use std::sync::Arc;

use super::*;
use crate::fixture::{cluster, http_rule, part, service, snapshot};
use crate::fleet::Evacuation;
use crate::locality::Locality;
use crate::outlier::EjectCause;
use crate::rules::{Match, PathMatch, Rules};
use crate::snapshot::{
    ActiveCheck, ActiveKind, Address, Balance, Cluster, ClusterPolicy, EndpointKey, Failure,
    PeerIx, Protocol, Slow,
};

const MINUTE: Duration = Duration::from_secs(60);

/// `a/one` with a near level of `near` endpoints, and one endpoint through the peer west.
fn world(near: usize, change: impl FnOnce(&mut ClusterPolicy)) -> Snapshot {
    let keys: Vec<String> = (0..near).map(|nth| format!("near-{nth}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut cluster = cluster(&[&keys, &["far"]]);
    for (nth, endpoint) in cluster.endpoints.iter_mut().enumerate() {
        let is_far = nth == near;
        let port = 1000 + u16::try_from(nth).unwrap();
        endpoint.address = Address::Socket(([10, 0, 0, 1], port).into());
        endpoint.backend = if is_far { "west" } else { "eu-1" }.into();
        endpoint.peer = is_far.then_some(PeerIx(0));
        let at = if is_far { "us/us-1" } else { "eu/eu-1/a" };
        endpoint.locality = Locality::parse(at).unwrap();
    }
    name_levels(&mut cluster, &["eu/eu-1", "peer west"]);
    change(Arc::make_mut(&mut cluster.policy));
    let mut snapshot = snapshot(vec![service("a/one", "one.a", 80)]);
    snapshot.clusters = vec![Arc::new(cluster)].into();
    snapshot
}

fn name_levels(cluster: &mut Cluster, names: &[&str]) {
    for (level, name) in cluster.levels.iter_mut().zip(names) {
        level.name = (*name).into();
    }
}

/// Five minutes of 200 requests in a second.
fn play(snapshot: &Snapshot, faults: &[(&str, &str)]) -> Report {
    simulate(snapshot, &scenario(snapshot, faults))
}

fn scenario(snapshot: &Snapshot, faults: &[(&str, &str)]) -> Scenario {
    let lasts = 5 * MINUTE;
    let fault = |(kind, text): &(&str, &str)| Fault::parse(kind, text, snapshot, lasts, 1).unwrap();
    Scenario {
        services: Vec::new(),
        rate: 200.0,
        method: "GET".to_owned(),
        path: "/".to_owned(),
        lasts,
        faults: faults.iter().map(fault).collect(),
        seed: 1,
    }
}

fn judge(report: &Report, snapshot: &Snapshot, text: &str) -> (bool, String) {
    let judged = Expectation::parse(text, snapshot)
        .unwrap()
        .judge(report, snapshot);
    (judged.met, judged.measured)
}

fn share_at(report: &Report, second: f64, level: usize) -> f64 {
    let tick = report.tick.as_secs_f64();
    let nth = (0..)
        .take_while(|nth| f64::from(*nth) * tick <= second)
        .count();
    report.services[0].series[nth.saturating_sub(1)].shares[level]
}

#[test]
fn where_nothing_goes_wrong_everything_stays_and_is_answered() {
    let world = world(2, |_| {});
    let report = play(&world, &[]);
    assert!(
        (report.counts.sent - 60_000.0).abs() <= report.weight_max,
        "{report:?}"
    );
    assert_eq!(report.counts.answered, report.counts.sent);
    let level = report.services[0].levels[0];
    assert_eq!((level.min.value, level.end), (1.0, 1.0));
    assert!(report.events.is_empty() && report.services[0].phases.is_empty());
    // Two levels, each with room for everything.
    assert_eq!(report.services[0].room_min.value, 2.0);
    assert_eq!(level.endpoint_rate_max, 100.0);
}

#[test]
fn one_of_two_down_moves_what_the_formula_says_and_loses_nothing() {
    let world = world(2, |_| {});
    let report = play(&world, &[("down", "eu/eu-1=50%@60s..120s")]);
    assert_eq!(report.counts.lost(), 0.0);
    // Five failures in a row and it is out; every 30 s it is tried again.
    assert!(
        (5.0..=30.0).contains(&report.counts.retried),
        "{:?}",
        report.counts
    );
    // By hand: 0.5 / 0.7 stays.
    let level = report.services[0].levels[0];
    assert!((level.min.value - 5.0 / 7.0).abs() < 1e-9, "{level:?}");
    assert!((share_at(&report, 90.0, 1) - 2.0 / 7.0).abs() < 1e-9);
    assert_eq!(level.end, 1.0);
    let phases = &report.services[0].phases;
    assert_eq!((phases[0].edge, phases[1].edge), (Edge::Begins, Edge::Ends));
    // 100 requests in a second go to it: well within a second.
    assert!(
        phases[0].settled_after.unwrap() < Duration::from_secs(1),
        "{phases:?}"
    );
    // Out for up to 30 s, a minute of waiting, 2/7 of a minute of ramp.
    let back = phases[1].settled_after.unwrap().as_secs_f64();
    assert!((60.0 + 16.0..=30.0 + 60.0 + 18.0).contains(&back), "{back}");
    let ejected = report.events.iter().any(|(_, event)| {
        matches!(
            event,
            FleetEvent::Ejected {
                cause: EjectCause::Unreachable,
                ..
            }
        )
    });
    assert!(ejected);
}

#[test]
fn with_everything_near_down_all_goes_to_the_peer() {
    let world = world(3, |_| {});
    for what in [
        "eu/eu-1@60s..120s",
        "eu@60s..120s",
        "eu-1@60s..120s",
        "east@60s..120s",
    ] {
        let report = play(&world, &[("down", what)]);
        assert_eq!(report.counts.lost(), 0.0, "{what}");
        let (met, measured) = judge(&report, &world, "share(west)>=1%");
        assert!(!met && measured.starts_with("0.00 % at 0.0s"), "{measured}");
        let (met, measured) = judge(&report, &world, "share(west)<=30%");
        assert!(
            !met && measured.starts_with("100.00 % at 60."),
            "{measured}"
        );
        assert!(measured.ends_with("(a/one:80)"), "{measured}");
    }
}

#[test]
fn what_nobody_can_carry_is_lost_and_told() {
    let world = world(2, |_| {});
    let both = [("down", "eu-1@60s..120s"), ("down", "west@60s..120s")];
    let report = play(&world, &both);
    // A minute of 200 in a second; refused from the active checks' point of view they never are.
    let lost = report.counts.lost();
    assert!((11_000.0..=13_500.0).contains(&lost), "{:?}", report.counts);
    let (met, measured) = judge(&report, &world, "lost<=0.1%");
    assert!(
        !met && measured.contains(&format!("({lost:.0} of ")),
        "{measured}"
    );
    assert!(judge(&report, &world, "lost>=11000").0);
    assert!(!judge(&report, &world, "headroom>=0%").0);
}

#[test]
fn a_post_is_not_tried_again_after_an_error_and_a_get_is() {
    let world = world(2, |_| {});
    let faults = [("errors", "eu/eu-1=50%,30%@60s..120s")];
    let get = simulate(&world, &scenario(&world, &faults));
    let post = simulate(
        &world,
        &Scenario {
            method: "POST".to_owned(),
            ..scenario(&world, &faults)
        },
    );
    assert!(
        get.counts.failed < 20.0 && get.counts.retried > 50.0,
        "{:?}",
        get.counts
    );
    // About 70 in a second go to it, 30 % of which fail, until five in a row do and it is out for 30 s.
    assert!(
        post.counts.failed > 100.0 && post.counts.retried == 0.0,
        "{:?}",
        post.counts
    );
}

#[test]
fn bytes_are_tried_elsewhere_only_where_nothing_was_connected() {
    let mut world = world(2, |_| {});
    world.services[0].protocol = Protocol::Tcp;
    let report = play(&world, &[("down", "eu-1=50%@60s..120s")]);
    assert_eq!(report.counts.lost(), 0.0);
    assert!(report.counts.retried >= 5.0, "{:?}", report.counts);
    // An answer that is none is a reset here, and may have been acted on.
    let report = play(&world, &[("errors", "eu-1=50%@60s..120s")]);
    assert_eq!(report.counts.retried, 0.0);
    assert!(
        (5.0..=30.0).contains(&report.counts.failed),
        "{:?}",
        report.counts
    );
}

/// Nine of ten requests below `/v1` go to one cluster, the rest to another; no other path has a rule.
fn split() -> Snapshot {
    let mut snapshot = world(2, |_| {});
    for (key, port) in [("most", 8001), ("few", 8002)] {
        let mut part = cluster(&[&[key]]);
        part.name = format!("part {key}").into();
        Arc::make_mut(&mut part.policy).passive.keep_at_least = 0;
        part.endpoints[0].address = Address::Socket(([10, 0, 0, 2], port).into());
        part.endpoints[0].backend = key.into();
        snapshot.clusters.edit(|all| all.push(part.into()));
    }
    snapshot.services[0].rules = Some(Arc::new(Rules {
        matches: vec![Match {
            path: PathMatch::Prefix("/v1".into()),
            ..Match::default()
        }],
        list: vec![http_rule("v1", Some(vec![part(1, 90), part(2, 10)]))],
    }));
    snapshot
}

#[test]
fn a_split_is_drawn_by_weight_and_what_a_dead_part_had_goes_to_the_others() {
    let world = split();
    let to_v1 = |faults: &[(&str, &str)]| Scenario {
        path: "/v1/orders".to_owned(),
        ..scenario(&world, faults)
    };
    let report = simulate(&world, &to_v1(&[]));
    let parts: Vec<f64> = report.services.iter().map(|one| one.counts.sent).collect();
    assert_eq!(report.services.len(), 2);
    assert!(
        (parts[0] / (parts[0] + parts[1]) - 0.9).abs() < 0.01,
        "{parts:?}"
    );
    let report = simulate(&world, &to_v1(&[("down", "10.0.0.2:8002@60s")]));
    assert_eq!(report.counts.lost(), 0.0, "{:?}", report.counts);
    assert!(report.counts.retried >= 5.0);
    // A dead canary is no reason to leave what is well.
    let most = &report.services[0];
    assert_eq!((most.levels[0].min.value, most.room_min.value), (1.0, 1.0));
    let told = |name: &str| {
        let moved = |event: &FleetEvent| matches!(event, FleetEvent::SharesMoved { cluster, .. } if **cluster == *name);
        report.events.iter().any(|(_, event)| moved(event))
    };
    assert!(told("part few") && !told("part most"));
    let few = &report.services[1];
    assert_eq!(few.part.as_deref(), Some("2"));
    let late: f64 = few
        .series
        .iter()
        .skip(120)
        .map(|tick| tick.counts.sent)
        .sum();
    // Only what it is tried again with, once its ejection is over.
    assert!(late < 100.0, "{late}");
}

#[test]
fn what_no_rule_is_for_is_refused() {
    let world = split();
    let report = play(&world, &[]);
    assert_eq!(report.counts.refused, report.counts.sent);
}

#[test]
fn what_flaps_is_told_to_move_as_long_as_it_does() {
    let quick = |policy: &mut ClusterPolicy| {
        policy.passive.eject = Duration::from_secs(1);
        policy.failover.failback_after = Duration::from_secs(1);
        policy.failover.failback_ramp = Duration::from_secs(1);
    };
    let world = world(2, quick);
    let report = play(&world, &[("flap", "eu-1=50%,5s@60s..180s")]);
    assert_eq!(report.counts.lost(), 0.0);
    let moves = report
        .events
        .iter()
        .filter(|(_, event)| matches!(event, FleetEvent::Ejected { .. }));
    // Twelve turns down, each of which costs at least one ejection.
    assert!(moves.count() >= 12, "{report:?}");
    let phases = &report.services[0].phases;
    assert_eq!(phases[0].settled_after, None, "{phases:?}");
    let calm = play(&world, &[("down", "eu-1=50%@60s..180s")]);
    assert!(report.events.len() > calm.events.len() / 2);
}

#[test]
fn what_is_slow_times_out_and_what_is_a_little_slow_only_waits() {
    let checked = |policy: &mut ClusterPolicy| {
        policy.active = Some(ActiveCheck {
            kind: ActiveKind::Http {
                path: "/".into(),
                host: "one.a".into(),
            },
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            up: 2,
            down: 3,
        });
    };
    let world = world(2, checked);
    let late = play(&world, &[("slow", "eu-1=50%,500ms@60s..120s")]);
    assert_eq!((late.counts.lost(), late.counts.retried), (0.0, 0.0));
    // Least-request keeps away from what has requests waiting.
    assert!(
        late.counts.slow > 60.0 && late.counts.slow < 3000.0,
        "{:?}",
        late.counts
    );
    assert_eq!(late.services[0].levels[0].min.value, 1.0);
    // Over the check's timeout: found bad by it, before a request has timed out after 15 s.
    let bad = play(&world, &[("slow", "eu-1=50%,30s@60s..120s")]);
    let unhealthy = bad
        .events
        .iter()
        .find(|(_, event)| matches!(event, FleetEvent::Unhealthy { .. }));
    let at = unhealthy.unwrap().0.since_origin().as_secs_f64();
    assert!((70.0..=78.0).contains(&at), "{at}");
    assert!(
        bad.services[0].levels[1].max.value > 0.28,
        "{:?}",
        bad.services[0].levels
    );
}

#[test]
fn what_is_cut_off_is_found_by_the_deadline_of_connecting() {
    let world = world(2, |_| {});
    let report = play(&world, &[("cut", "eu-1=50%@60s..120s")]);
    assert_eq!(report.counts.lost(), 0.0);
    // Nobody says that nothing listens: each of five failures takes a second, two or so at a time.
    let ejected = report
        .events
        .iter()
        .find(|(_, event)| matches!(event, FleetEvent::Ejected { .. }));
    let at = ejected.unwrap().0.since_origin().as_secs_f64();
    assert!((61.0..=66.0).contains(&at), "{at}");
    // Until then some wait, and are answered by another; the busier it is the fewer are sent there.
    assert!(
        (5.0..=100.0).contains(&report.counts.slow),
        "{:?}",
        report.counts
    );
    let down = play(&world, &[("down", "eu-1=50%@60s..120s")]);
    assert_eq!(down.counts.slow, 0.0);
}

#[test]
fn active_checks_find_what_no_request_meets() {
    let checked = |policy: &mut ClusterPolicy| {
        policy.active = Some(ActiveCheck {
            kind: ActiveKind::Tcp,
            every: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            up: 2,
            down: 3,
        });
    };
    let world = world(2, checked);
    // The peer gets no traffic, and is found down by three checks.
    let report = play(&world, &[("down", "west@60s")]);
    assert_eq!(report.counts.lost() + report.counts.retried, 0.0);
    let told: Vec<_> = report.events.iter().map(|(_, event)| event).collect();
    assert!(matches!(told[0], FleetEvent::Unhealthy { .. }), "{told:?}");
    assert_eq!(report.services[0].room_min.value, 1.0);
    assert!(judge(&report, &world, "headroom<=0%").0);
}

#[test]
fn one_seed_is_one_history_and_another_is_another() {
    let world = world(5, |_| {});
    let faults = [
        ("errors", "eu-1=60%,70%@30s..2m"),
        ("flap", "west=100%,3s@1m..3m"),
    ];
    let one = scenario(&world, &faults);
    assert_eq!(simulate(&world, &one), simulate(&world, &one));
    let other = Scenario {
        seed: 2,
        ..one.clone()
    };
    assert_ne!(simulate(&world, &one), simulate(&world, &other));
}

#[test]
fn shares_and_counts_add_up_in_every_step() {
    let world = world(4, |_| {});
    let report = play(
        &world,
        &[
            ("down", "eu-1=75%@1m..2m"),
            ("errors", "west=100%,20%@1m..2m"),
        ],
    );
    let service = &report.services[0];
    assert_eq!(service.series.len(), TICKS as usize);
    for tick in &service.series {
        assert!(
            (tick.shares.iter().sum::<f64>() - 1.0).abs() < 1e-6,
            "{tick:?}"
        );
    }
    let sum: f64 = service.series.iter().map(|tick| tick.counts.sent).sum();
    assert!((sum - report.counts.sent).abs() < 1e-6);
    let Counts { sent, answered, .. } = report.counts;
    assert!((sent - answered - report.counts.lost()).abs() < 1e-6);
    assert!((sent - 60_000.0).abs() <= report.weight_max, "{sent}");
}

#[test]
fn many_services_at_a_high_rate_cost_a_bounded_number_of_plans() {
    let mut world = world(2, |_| {});
    let one = world.services[0].clone();
    world.services = (0..50).map(|_| one.clone()).collect();
    let wild = Scenario {
        rate: 100_000.0,
        ..scenario(&world, &[("errors", "eu-1=100%,1%@10s")])
    };
    let report = simulate(&world, &wild);
    assert!(report.weight_max > 100_000.0, "{}", report.weight_max);
    let sent = 5.0 * 60.0 * 100_000.0 * 50.0;
    assert!(
        (report.counts.sent / sent - 1.0).abs() < 0.01,
        "{:?}",
        report.counts
    );
}

fn evacuate(snapshot: &Snapshot, from: u64, to: Option<u64>) -> Fault {
    let at = |second| Time::from_origin(Duration::from_secs(second));
    let of = Evacuation::Locality(Locality::parse("eu/eu-1").unwrap());
    Fault::lever(Lever::Evacuate(of), snapshot, at(from), to.map(at))
}

#[test]
fn what_operators_do_moves_traffic_as_it_does_in_a_gateway_and_loses_nothing() {
    let world = world(2, |_| {});
    let fault = evacuate(&world, 60, Some(120));
    assert_eq!((fault.hit.len(), fault.of), (2, 2));
    let scenario = Scenario {
        faults: vec![fault],
        ..scenario(&world, &[])
    };
    let report = simulate(&world, &scenario);
    assert_eq!(report.counts.lost() + report.counts.retried, 0.0);
    assert_eq!(share_at(&report, 90.0, 0), 0.0);
    // By the ramp of a minute, without a wait.
    assert!((share_at(&report, 150.0, 0) - 0.5).abs() < 0.03);
    assert_eq!(report.services[0].levels[0].end, 1.0);
    let phases = &report.services[0].phases;
    assert_eq!(phases[0].settled_after, Some(Duration::ZERO), "{phases:?}");
    let back = phases[1].settled_after.unwrap().as_secs_f64();
    assert!((57.0..=60.5).contains(&back), "{back}");
    // One level is left meanwhile.
    assert_eq!(report.services[0].room_min.value, 1.0);
}

#[test]
fn what_is_played_from_a_gateways_present_state_begins_with_that() {
    let world = world(2, |_| {});
    let now = Time::from_origin(Duration::from_secs(10_000));
    let mut fleet = Fleet::new();
    fleet.reconcile(&world, now);
    let key = world.clusters[0].endpoints[2].key.clone();
    let observation = crate::fleet::Observation {
        key,
        result: Err(Failure::Connect),
    };
    (0..5).for_each(|_| fleet.observe(&observation, now));
    let scenario = Scenario {
        faults: vec![evacuate(&world, 10, None)],
        ..scenario(&world, &[])
    };
    // The far endpoint is out, and what is bad now stays so: nobody carries what the near ones did.
    let report = simulate_from(&world, fleet.clone(), now, &scenario);
    assert!(report.counts.lost() > 0.0, "{:?}", report.counts);
    assert_eq!(report.services[0].room_min.value, 0.0);
    let calm = Scenario {
        faults: Vec::new(),
        ..scenario
    };
    let report = simulate_from(&world, fleet, now, &calm);
    assert_eq!(report.counts.lost(), 0.0);
    assert_eq!(report.services[0].room_min.value, 1.0);
}

/// What broke: it was played as `least-request`, which never learns that an answer is late.
#[test]
fn peak_ewma_leaves_what_is_slow_where_least_request_stays() {
    let slow_at = |balance: Balance| {
        let world = world(2, |policy| policy.balance = balance);
        let slow = scenario(&world, &[("slow", "10.0.0.1:1000=100%,20ms@10s..280s")]);
        simulate(&world, &Scenario { rate: 20.0, ..slow })
            .counts
            .slow
    };
    let (timed, least) = (slow_at(Balance::PeakEwma), slow_at(Balance::LeastRequest));
    assert!(least > 1_000.0 && timed < least / 4.0, "{timed} {least}");
}

#[test]
fn what_is_slow_is_ejected_where_that_is_asked_for() {
    let with = |slow: Option<Slow>| {
        let world = world(3, |policy| policy.passive.slow = slow);
        let slow = scenario(&world, &[("slow", "10.0.0.1:1000=100%,50ms@10s..280s")]);
        simulate(&world, &slow).counts.slow
    };
    let asked = Slow {
        over: 3.0,
        requests: 20,
    };
    let (asked, never) = (with(Some(asked)), with(None));
    assert!(never > 1_000.0 && asked < never / 20.0, "{asked} {never}");
}

/// What broke: bytes timed out as a request does that is not answered.
#[test]
fn bytes_have_no_answer_to_wait_for() {
    let mut world = world(2, |_| {});
    world.services[0].protocol = Protocol::Tcp;
    let report = play(&world, &[("slow", "eu-1=100%,60s@60s..120s")]);
    assert_eq!(report.counts.lost() + report.counts.retried, 0.0);
    assert!(report.counts.slow > 0.0);
}

#[test]
fn faults_are_read_and_what_is_none_is_told() {
    let world = world(10, |_| {});
    let lasts = 5 * MINUTE;
    let parse = |kind: &str, text: &str| Fault::parse(kind, text, &world, lasts, 1);
    let fault = parse("down", "eu/eu-1=25%@10s..40s").unwrap();
    // 2.5 of ten, rounded.
    assert_eq!((fault.hit.len(), fault.of), (3, 10));
    let at = |second| Time::from_origin(Duration::from_secs(second));
    assert_eq!((fault.from, fault.to), (at(10), Some(at(40))));
    assert_eq!((fault.truth(at(9)), fault.truth(at(40))), (None, None));
    assert_eq!(fault.truth(at(39)), Some(Truth::Down));
    assert_eq!(parse("down", "eu=1%").unwrap().hit.len(), 1, "at least one");
    let all = parse("down", "west").unwrap();
    assert_eq!(
        (all.from, all.to),
        (at(30), Some(at(180))),
        "the middle by default"
    );
    assert_eq!(parse("down", "west@10s").unwrap().to, None);
    let hit = parse("down", "10.0.0.1:1004").unwrap().hit;
    assert_eq!(hit, [EndpointKey("near-4".into())]);
    for (kind, text, said) in [
        (
            "down",
            "eu/eu-9",
            "no endpoint, backend, peer, cluster or locality is called `eu/eu-9`",
        ),
        (
            "down",
            "e",
            "is called `e`; there are: eu-1, eu/eu-1/a, us/us-1, west",
        ),
        ("down", "eu=60", "`60` is no share"),
        (
            "down",
            "eu=60%,2s",
            "`down` and `cut` have a share and nothing else",
        ),
        ("down", "eu@40s..10s", "begins after it ends"),
        ("down", "eu@6m", "or after the simulation"),
        ("down", "eu@soon", "`soon` is no duration"),
        ("slow", "eu=60%", "write how late it is"),
        ("flap", "eu=60%,0s", "longer than nothing"),
        ("errors", "eu=60%,2s", "`2s` is no share"),
    ] {
        let told = parse(kind, text).unwrap_err().to_string();
        assert!(told.contains(said), "{text}: {told}");
    }
}

#[test]
fn expectations_are_read_and_what_is_none_is_told() {
    let world = world(2, |_| {});
    for good in [
        "share(west)<=30%",
        "share(peer west) < 30%",
        "share(eu)>=50%",
        "share-end(eu/eu-1)>=99%",
        "lost<=5",
        "lost<0.1%",
        "retried<=100",
        "converge<=10s",
        "recover<=3m",
        "headroom>=150%",
    ] {
        assert!(Expectation::parse(good, &world).is_ok(), "{good}");
    }
    for (text, said) in [
        ("lost", "with <=, <, >= or >"),
        (
            "share(north)<=1%",
            "no level is called `north`; there are: eu/eu-1, peer west",
        ),
        ("share(e)<=1%", "no level is called `e`"),
        ("share(west)<=1", "`1` is no share"),
        ("lost<=many", "neither a count nor a share"),
        ("latency<=1s", "`latency` is not measured"),
        ("converge<=10", "is no duration"),
    ] {
        let told = Expectation::parse(text, &world).unwrap_err().to_string();
        assert!(told.contains(said), "{text}: {told}");
    }
    // What still moves at the end is later than any time.
    let report = play(&world, &[("down", "eu-1=50%@60s..240s")]);
    let (met, measured) = judge(&report, &world, "recover<=1h");
    assert!(!met && measured.starts_with("still moving"), "{measured}");
    let (met, measured) = judge(&report, &world, "converge<=1s");
    assert!(met && measured.contains("s (a/one:80)"), "{measured}");
}

#[test]
fn a_truth_is_what_its_name_says() {
    let attempt = |truth: Truth, second: u64| {
        let now = Time::from_origin(Duration::from_secs(second));
        let deadlines = Deadlines {
            connect: Duration::from_secs(1),
            answer: Duration::from_secs(2),
        };
        truth.attempt(now, deadlines, Failure::Reset, 1)
    };
    let flaps = Truth::Flapping {
        turn: Duration::from_secs(2),
        from: Time::from_origin(Duration::from_secs(3)),
    };
    let turns: Vec<bool> = (3..9)
        .map(|second| attempt(flaps, second).0.is_ok())
        .collect();
    assert_eq!(turns, [false, false, true, true, false, false]);
    let slow = |seconds| attempt(Truth::Slow(Duration::from_secs(seconds)), 0);
    assert_eq!(slow(2), (Ok(()), Duration::from_secs(2)));
    assert_eq!(slow(3), (Err(Failure::Timeout), Duration::from_secs(2)));
    let cut = attempt(Truth::Cut, 0);
    assert_eq!(cut, (Err(Failure::Connect), Duration::from_secs(1)));
    assert_eq!(attempt(Truth::Errors(1.0), 0).0, Err(Failure::Reset));
    assert_eq!(attempt(Truth::Errors(0.0), 0).0, Ok(()));
}

fn taking(near: u32, far: u32) -> Snapshot {
    let mut world = world(2, |_| {});
    for endpoint in &mut Arc::make_mut(&mut world.clusters[0]).endpoints {
        let most = if endpoint.peer.is_some() { far } else { near };
        endpoint.capacity = crate::admission::Rate::per_second(most);
    }
    world
}

#[test]
fn what_backends_take_is_kept_to_and_what_fits_nowhere_is_counted() {
    // 200 a second: by hand 100, 50, and 50 that are refused, and each second's burst once.
    let world = taking(100, 50);
    let report = play(&world, &[]);
    let Counts {
        sent,
        refused,
        over_capacity,
        failed,
        ..
    } = report.counts;
    assert!((refused / sent - 0.25).abs() < 0.01, "{:?}", report.counts);
    assert_eq!((over_capacity, failed), (refused, 0.0));
    let service = &report.services[0];
    assert!((service.levels[0].end - 0.5).abs() < 0.01, "{service:?}");
    assert!((service.levels[1].end - 0.25).abs() < 0.01);
    assert!((service.room_min.value - 0.75).abs() < 1e-9);
    assert!(!judge(&report, &world, "headroom>=0%").0);
}

#[test]
fn a_capacity_that_falls_moves_what_is_over_and_that_comes_back_at_once() {
    let world = taking(1000, 1000);
    let report = play(&world, &[("capacity", "eu-1=50/s@60s..120s")]);
    assert_eq!(report.counts.lost(), 0.0, "{:?}", report.counts);
    assert_eq!(report.counts.retried, 0.0);
    assert!((share_at(&report, 100.0, 0) - 0.25).abs() < 0.01);
    assert!((share_at(&report, 100.0, 1) - 0.75).abs() < 0.01);
    // No wait for `failback`: it never was ill.
    assert_eq!(share_at(&report, 125.0, 0), 1.0);
    let report = play(
        &world,
        &[("capacity", "eu-1=50/s@60s"), ("capacity", "west=30/s@60s")],
    );
    // 240 of 300 s: 120 of 200 a second fit nowhere.
    let lost = report.counts.lost() / report.counts.sent;
    assert!((lost - 0.6 * 0.8).abs() < 0.01, "{lost}");
    for wrong in ["west", "west=50%", "west=300/s,2s", "west=0/s"] {
        assert!(
            Fault::parse("capacity", wrong, &world, MINUTE, 1).is_err(),
            "{wrong}"
        );
    }
}

/// One planned request may stand for many more than a backend takes in a second.
#[test]
fn many_at_once_keep_to_a_small_capacity_over_time() {
    let world = taking(2, 3);
    let mut scenario = scenario(&world, &[]);
    scenario.rate = 2_000.0;
    let report = simulate(&world, &scenario);
    let answered = report.counts.answered / 300.0;
    assert!((answered - 5.0).abs() < 1.0, "{answered}");
}

#[test]
fn one_more_endpoint_beside_one_that_takes_long_loses_nothing_where_that_is_asked_for() {
    let with = |after: Option<Duration>, method: &str| {
        let world = world(3, |policy| {
            policy.retries.hedge_after = after;
            // Nothing takes it out.
            policy.passive.on.clear();
        });
        let slow = scenario(&world, &[("slow", "10.0.0.1:1000=100%,60s@10s..280s")]);
        let slow = Scenario {
            method: method.to_owned(),
            ..slow
        };
        simulate(&world, &slow).counts
    };
    let hedged = Some(Duration::from_millis(100));
    assert!(with(None, "GET").failed > 0.0);
    assert!(with(hedged, "POST").failed > 0.0);
    let counts = with(hedged, "GET");
    assert_eq!((counts.failed, counts.refused), (0.0, 0.0));
    assert!(counts.retried > 0.0);
}
