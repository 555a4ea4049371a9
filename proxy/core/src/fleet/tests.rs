use super::*;
use crate::fixture;
use crate::locality::Locality;
use crate::names::Host;
use crate::names::HostPattern;
use crate::report::{Presence, Report, Standing};
use crate::shares::{Counts, Trial};
use crate::snapshot::{
    ActiveKind, Address, ClusterIx, EndpointIx, Failover, PeerIx, Service, TooFew,
};

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

/// Many successes at once are many successes.
#[test]
fn successes_count_alike_at_once_and_one_by_one() {
    let of = || fleet(vec![fixture::cluster(&[&["a", "b"], &["c"]])]);
    let (mut one_by_one, mut at_once) = (of(), of());
    for (second, (name, good, bad)) in [
        ("a", 30, 4),
        ("b", 7, 0),
        ("a", 1, 3),
        ("c", 9, 1),
        ("a", 0, 40),
    ]
    .into_iter()
    .enumerate()
    {
        let now = Time::ZERO + Duration::from_secs(second as u64);
        see(&mut one_by_one, name, Ok(()), good, now);
        if let Some(times) = u32::try_from(good).ok().filter(|times| *times > 0) {
            at_once.observe_successes(&key(name), times, Took::default(), now);
        }
        for fleet in [&mut one_by_one, &mut at_once] {
            see(fleet, name, Err(Failure::Reset), bad, now);
        }
        assert_eq!(
            format!("{one_by_one:?}"),
            format!("{at_once:?}"),
            "{second}"
        );
    }
    assert_eq!(at_once.status(&key("a")), Some(EndpointStatus::Ejected));
}

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

fn waits(fleet: &mut Fleet, now: Time) -> Vec<LevelMotion> {
    fleet.shares(now).clusters[0].motions.clone()
}

fn told_to_wait(fleet: &mut Fleet) -> usize {
    let is = |event: &FleetEvent| matches!(event, FleetEvent::WaitsForReset { level, .. } if &**level == "level 0");
    fleet
        .drain_events()
        .iter()
        .filter(|event| is(event))
        .count()
}

#[test]
fn with_manual_failback_a_level_waits_for_a_reset_and_then_takes_the_ramp() {
    let mut fleet = fleet(vec![manual(fixture::cluster(&[&["a"], &["b"]]))]);
    assert_eq!(fleet.reset("a/b", at(0.0)), 0, "nothing waits");
    kill(&mut fleet, "a", at(0.0));
    assert_eq!(shares(&mut fleet, at(29.0)), [0, 1000]);
    assert_eq!(told_to_wait(&mut fleet), 0);
    revive(&mut fleet, "a", at(30.0));
    let kept = [LevelMotion::Kept { since: at(30.0) }, LevelMotion::Settled];
    for seconds in [30.0, 100.0, 10_000.0] {
        assert_eq!(shares(&mut fleet, at(seconds)), [0, 1000], "{seconds}");
        assert_eq!(waits(&mut fleet, at(seconds)), kept);
    }
    assert_eq!(told_to_wait(&mut fleet), 1);
    assert_eq!(fleet.next_wake(), None);
    // A push forgets no wait.
    let same = snapshot(vec![manual(fixture::cluster(&[&["a"], &["b"]]))]);
    fleet.reconcile(&same, at(10_000.0));
    assert_eq!(waits(&mut fleet, at(10_000.0)), kept);
    assert_eq!(fleet.reset("a/other", at(10_000.0)), 0);
    assert_eq!(fleet.reset("a/b", at(10_000.0)), 1);
    // By the ramp, without `after`.
    for (seconds, local) in [(10_000.0, 0), (10_030.0, 500), (10_060.0, 1000)] {
        let now = at(seconds);
        assert_eq!(shares(&mut fleet, now), [local, 1000 - local], "{seconds}");
    }
    assert_eq!(waits(&mut fleet, at(10_060.0)), []);
    // It left once more: the reset was for once.
    kill(&mut fleet, "a", at(11_000.0));
    revive(&mut fleet, "a", at(11_900.0));
    assert_eq!(shares(&mut fleet, at(12_000.0)), [0, 1000]);
}

#[test]
fn a_level_that_waits_for_a_reset_lends_what_the_others_lack_and_no_more() {
    let mut fleet = fleet(vec![manual(fixture::cluster(&[&["a"], &["b", "c"]]))]);
    kill(&mut fleet, "a", at(0.0));
    revive(&mut fleet, "a", at(30.0));
    assert_eq!(shares(&mut fleet, at(100.0)), [0, 1000]);
    // By hand: half of the second level takes 5/7.
    kill(&mut fleet, "b", at(100.0));
    assert_eq!(shares(&mut fleet, at(100.0)), [286, 714]);
    revive(&mut fleet, "b", at(200.0));
    assert_eq!(shares(&mut fleet, at(200.0)), [286, 714], "nearest first");
    kill(&mut fleet, "b", at(200.0));
    kill(&mut fleet, "c", at(200.0));
    assert_eq!(shares(&mut fleet, at(200.0)), [1000, 0]);
}

/// What the published shares have for whoever asks first.
fn trial(fleet: &mut Fleet, now: Time) -> Option<Trial> {
    let shares = fleet.shares(now);
    shares.clusters[0]
        .trials
        .first()
        .map(|(_, trial)| trial.clone())
}

#[test]
fn one_request_shows_whether_an_endpoint_is_good_again() {
    let cluster = fixture::cluster(&[&["a", "b"]]);
    let mut fleet = fleet(vec![cluster.clone()]);
    kill(&mut fleet, "a", at(0.0));
    assert!(trial(&mut fleet, at(29.9)).is_none());
    let first = |of: &ClusterShares| {
        let first = crate::plan::plan(&cluster, of, &|_| 0, 7).find(|one| one.begins(of));
        first.map(|first| (first.endpoint.0, first.why.label()))
    };
    let published = fleet.shares(at(30.0));
    let of = &published.clusters[0];
    assert_eq!(first(of), Some((0, "trial")));
    for _ in 0..100 {
        assert_eq!(first(of), Some((1, "local")));
    }
    // The others go on waiting for what comes of it, and of what was sent before nothing follows.
    assert!(!fleet.has_changed());
    see(&mut fleet, "a", Err(Failure::RefusedStream), 1, at(31.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
    assert!(fleet.shares(at(31.0)) == published);
    see(&mut fleet, "a", Err(Failure::Reset), 1, at(32.0));
    // Out for twice as long.
    assert!(trial(&mut fleet, at(91.9)).is_none());
    assert!(trial(&mut fleet, at(92.0)).is_some_and(|trial| trial.begin()));
    revive(&mut fleet, "a", at(92.0));
    assert!(trial(&mut fleet, at(92.0)).is_none());
    assert_eq!(fleet.next_wake(), None);
    let mut lasts = Vec::new();
    for event in fleet.drain_events() {
        if let FleetEvent::Ejected { lasts: now, .. } = event {
            lasts.push(now.as_secs());
        }
    }
    assert_eq!(lasts, [30, 60]);
}

#[test]
fn a_trial_of_which_nothing_comes_is_followed_by_another() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"]])]);
    kill(&mut fleet, "a", at(0.0));
    let one = trial(&mut fleet, at(30.0)).unwrap();
    assert_eq!(fleet.next_wake(), Some(at(40.0)));
    // Nothing of what was under way is held against it.
    see(&mut fleet, "a", Err(Failure::Reset), 3, at(31.0));
    assert!(one.begin() && !one.begin());
    let other = trial(&mut fleet, at(40.0)).unwrap();
    assert!(other != one && other.is_open());
    // Where nobody asks anything it is back by time alone.
    assert!(trial(&mut fleet, at(49.9)).unwrap() == other);
    assert!(trial(&mut fleet, at(50.0)).is_none());
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
    assert_eq!(fleet.next_wake(), None);
}

/// What broke: of bytes a trial shows that somebody connects, and five more were lost each time.
#[test]
fn the_first_failure_after_a_trial_ejects_again_until_something_went_well() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"]])]);
    kill(&mut fleet, "a", at(0.0));
    assert!(trial(&mut fleet, at(30.0)).unwrap().begin());
    revive(&mut fleet, "a", at(30.0));
    see(&mut fleet, "a", Err(Failure::Reset), 1, at(31.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
    assert!(trial(&mut fleet, at(91.0)).unwrap().begin());
    revive(&mut fleet, "a", at(91.0));
    see(&mut fleet, "a", Ok(()), 1, at(91.5));
    see(&mut fleet, "a", Err(Failure::Reset), 4, at(92.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
}

/// What broke: of several that are all out the one that had its turn first was taken for good, for
/// nobody sends a trial where what is out has traffic anyway.
#[test]
fn where_too_few_are_left_a_failure_is_an_answer_to_an_open_trial() {
    let mut cluster = fixture::cluster(&[&["a", "b"]]);
    Arc::make_mut(&mut cluster.policy).passive.keep_at_least = 0;
    let mut fleet = fleet(vec![cluster]);
    for one in ["a", "b"] {
        see(&mut fleet, one, Err(Failure::Reset), 5, at(0.0));
    }
    let shares = fleet.shares(at(30.0));
    assert!(shares.clusters[0].too_few);
    see(&mut fleet, "a", Err(Failure::Reset), 1, at(31.0));
    fleet.shares(at(41.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
}

/// What broke: to play what a lever would do used up the trials of the gateway that was asked.
#[test]
fn a_fleet_that_was_cloned_tries_for_itself() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"]])]);
    kill(&mut fleet, "a", at(0.0));
    let own = trial(&mut fleet, at(30.0)).unwrap();
    let mut played = fleet.clone();
    played.count_apart();
    let other = trial(&mut played, at(30.0)).unwrap();
    assert!(other.begin() && own.is_open());
    assert!(!fleet.has_changed());
    // What has begun there has begun here.
    assert!(own.begin());
    let mut played = fleet.clone();
    played.count_apart();
    assert!(!trial(&mut played, at(30.0)).unwrap().is_open());
}

#[test]
fn who_was_not_reached_and_is_reached_by_checks_needs_no_trial() {
    let mut fleet = fleet(vec![active(fixture::cluster(&[&["a", "b"]]))]);
    kill(&mut fleet, "a", at(0.0));
    see(&mut fleet, "b", Err(Failure::Reset), 5, at(1.0));
    assert_eq!(
        fleet.status(&key("b")),
        Some(EndpointStatus::Unknown),
        "kept"
    );
    let probe = |fleet: &mut Fleet, now| {
        for probe in fleet.due_probes(now, 1) {
            fleet.probed(&probe.key, true, now);
        }
    };
    // On trial, for nothing is known of it; then it is.
    assert!(trial(&mut fleet, at(31.0)).is_some());
    probe(&mut fleet, at(31.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
    kill(&mut fleet, "a", at(500.0));
    probe(&mut fleet, at(530.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Healthy));
    // Whose requests fail is not shown to be good by that.
    see(&mut fleet, "a", Err(Failure::Reset), 5, at(1000.0));
    probe(&mut fleet, at(1030.0));
    assert_eq!(fleet.status(&key("a")), Some(EndpointStatus::Ejected));
    assert!(trial(&mut fleet, at(1030.0)).is_some());
}

#[test]
fn a_level_waits_as_it_did_before_the_gateway_started() {
    let clusters = || vec![manual(fixture::cluster(&[&["a"], &["b"]]))];
    let mut before = fleet(clusters());
    assert!(!before.take_kept_changed());
    kill(&mut before, "a", at(0.0));
    revive(&mut before, "a", at(40.0));
    assert_eq!(shares(&mut before, at(40.0)), [0, 1000]);
    assert!(before.take_kept_changed() && !before.take_kept_changed());
    let kept: Vec<Kept> = before.kept().collect();
    assert_eq!(kept.len(), 1);
    let mut after = fleet(clusters());
    after.keep(&kept, at(0.0));
    assert_eq!(shares(&mut after, at(1_000.0)), [0, 1000]);
    assert_eq!(after.reset("a/b", at(1_000.0)), 1);
    assert_eq!(shares(&mut after, at(1_060.0)), [1000, 0]);
    // What may come back by the clock does.
    let mut auto = fleet(vec![fixture::cluster(&[&["a"], &["b"]])]);
    auto.keep(&kept, at(0.0));
    assert_eq!(shares(&mut auto, at(1.0)), [0, 1000]);
    assert_eq!(shares(&mut auto, at(120.0)), [1000, 0]);
    // Nothing is kept from traffic that nobody else carries.
    let mut alone = fleet(vec![manual(fixture::cluster(&[&["a"]]))]);
    let level = Kept {
        level: "level 0".into(),
        ..kept[0].clone()
    };
    alone.keep(&[level], at(0.0));
    assert_eq!(shares(&mut alone, at(0.0)), [1000]);
}

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

#[test]
fn five_connect_failures_eject_for_as_long_as_configured() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a", "b"], &["c"]])]);
    see(&mut fleet, "a", Err(Failure::Connect), 4, at(1.0));
    assert_eq!(shares(&mut fleet, at(1.0)), [1000, 0]);
    see(&mut fleet, "a", Err(Failure::Connect), 1, at(1.0));
    assert_eq!(shares(&mut fleet, at(1.0)), [714, 286]);
    assert_eq!(fleet.next_wake(), Some(at(31.0)));
    assert_eq!(
        fleet.drain_events(),
        [
            FleetEvent::Ejected {
                key: key("a"),
                cause: EjectCause::Unreachable,
                lasts: Duration::from_secs(30)
            },
            FleetEvent::SharesMoved {
                cluster: "a/b:80".into(),
                route: "a/b".into(),
                levels: vec![
                    ("level 0".into(), 1.0, 5.0 / 7.0),
                    ("level 1".into(), 0.0, 1.0 - 5.0 / 7.0)
                ],
                too_few: false,
                moving: false
            }
        ]
    );
    let status = |fleet: &mut Fleet, now| fleet.shares(now).clusters[0].endpoints[0];
    assert_eq!(status(&mut fleet, at(30.9)), EndpointStatus::Ejected);
    // Until one request has succeeded.
    assert_eq!(status(&mut fleet, at(31.0)), EndpointStatus::Ejected);
    revive(&mut fleet, "a", at(31.0));
    assert_eq!(status(&mut fleet, at(31.0)), EndpointStatus::Healthy);
}

#[test]
fn traffic_leaves_a_dead_level_at_once_and_comes_back_after_a_minute_over_a_minute() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a"], &["b"]])]);
    kill(&mut fleet, "a", at(0.0));
    assert_eq!(shares(&mut fleet, at(0.0)), [0, 1000]);
    // Readmitted at 30, waits until 90, ramps until 150.
    revive(&mut fleet, "a", at(30.0));
    for (seconds, local) in [
        (30.0, 0),
        (89.9, 0),
        (90.0, 0),
        (105.0, 250),
        (120.0, 500),
        (150.0, 1000),
    ] {
        let now = shares(&mut fleet, at(seconds));
        assert_eq!(now, [local, 1000 - local], "at {seconds} s");
    }
    assert_eq!(fleet.next_wake(), None);
}

#[test]
fn next_wake_leads_through_the_whole_way_back_in_small_steps() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a"], &["b"]])]);
    kill(&mut fleet, "a", at(0.0));
    assert_eq!(fleet.next_wake(), Some(at(30.0)));
    revive(&mut fleet, "a", at(30.0));
    let mut last = 0;
    let mut steps = 0;
    while let Some(wake) = fleet.next_wake() {
        let now = shares(&mut fleet, wake);
        assert!(
            now[0] - last <= 18,
            "a step of {} to {now:?}",
            now[0] - last
        );
        last = now[0];
        steps += 1;
    }
    assert_eq!(last, 1000);
    assert!(steps < 100, "{steps} steps");
    let moves = fleet
        .drain_events()
        .into_iter()
        .filter(|event| matches!(event, FleetEvent::SharesMoved { .. }));
    assert!(moves.count() <= 13);
}

#[test]
fn hold_keeps_a_level_that_is_bad_but_never_one_that_is_dead() {
    let mut cluster = fixture::cluster(&[&["a", "b"], &["c"]]);
    Arc::make_mut(&mut cluster.policy).failover.hold = Duration::from_secs(10);
    let mut fleet = fleet(vec![cluster]);
    kill(&mut fleet, "a", at(0.0));
    assert_eq!(shares(&mut fleet, at(0.0)), [1000, 0]);
    assert_eq!(fleet.next_wake(), Some(at(10.0)));
    assert_eq!(shares(&mut fleet, at(10.0)), [714, 286]);
    kill(&mut fleet, "b", at(11.0));
    assert_eq!(shares(&mut fleet, at(11.0)), [0, 1000]);
}

#[test]
fn where_the_damped_capacities_do_not_reach_the_undamped_apply() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a"], &["b"]])]);
    kill(&mut fleet, "a", at(0.0));
    assert_eq!(shares(&mut fleet, at(30.0)), [0, 1000]);
    // `a` is back but waits; `b` dies: `a` takes all of it now.
    kill(&mut fleet, "b", at(40.0));
    assert_eq!(shares(&mut fleet, at(40.0)), [1000, 0]);
    // And it keeps it when `b` is back.
    assert_eq!(shares(&mut fleet, at(200.0)), [1000, 0]);
}

#[test]
fn a_little_too_little_is_too_little_for_damping() {
    let mut fleet = fleet(vec![fixture::cluster(&[&["a"], &["b", "c", "d"]])]);
    kill(&mut fleet, "a", at(0.0));
    revive(&mut fleet, "a", at(30.0));
    assert_eq!(shares(&mut fleet, at(30.0)), [0, 1000]);
    // 2 of 3 healthy is c = 20/21 by hand: with `a` waiting at 0, below 1 together.
    kill(&mut fleet, "b", at(31.0));
    assert_eq!(shares(&mut fleet, at(31.0)), [1000, 0]);
}

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

#[test]
fn clusters_of_a_route_share_endpoints_and_its_ports_fail_over_together() {
    let port = |name: &str, levels: &[&[&str]]| Cluster {
        name: name.into(),
        ..fixture::cluster(levels)
    };
    let mut fleet = fleet(vec![
        port("web", &[&["w1", "w2"], &["w3"]]),
        port("grpc", &[&["g1", "g2"], &["g3"]]),
        port("web, own", &[&["w1", "w2"]]),
    ]);
    kill(&mut fleet, "w1", at(0.0));
    let shares = fleet.shares(at(0.0));
    assert_eq!(thousandths(&shares.clusters[0].levels), [714, 286]);
    assert_eq!(thousandths(&shares.clusters[1].levels), [714, 286]);
    assert_eq!(thousandths(&shares.clusters[2].levels), [1000]);
    assert_eq!(shares.clusters[2].endpoints[0], EndpointStatus::Ejected);
    assert_eq!(shares.clusters[1].endpoints, [EndpointStatus::Healthy; 3]);
    // `keepAtLeast` counts over all levels, so the own cluster can end up with nothing: the peer
    // that called is told at once.
    kill(&mut fleet, "w2", at(0.0));
    let shares = fleet.shares(at(0.0));
    assert_eq!(shares.clusters[2].endpoints, [EndpointStatus::Ejected; 2]);
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

/// Found by a simulation: a dead canary took the share of what was well.
#[test]
fn the_parts_of_a_split_do_not_fail_over_together_as_ports_do() {
    let part = |name: &str, level: [&str; 2]| {
        let mut cluster = fixture::cluster(&[&level, &["far"]]);
        cluster.name = name.into();
        for endpoint in &mut cluster.endpoints {
            endpoint.backend = name.into();
            endpoint.key = key(&format!("{name} {}", endpoint.key));
        }
        Arc::make_mut(&mut cluster.policy).passive.keep_at_least = 0;
        cluster
    };
    let mut fleet = fleet(vec![part("main", ["a", "b"]), part("canary", ["c", "d"])]);
    for name in ["canary c", "canary d"] {
        see(&mut fleet, name, Err(Failure::Connect), 5, at(1.0));
    }
    let shares = fleet.shares(at(1.0));
    assert_eq!(shares.clusters[0].levels, [1.0, 0.0]);
    assert!(!shares.clusters[0].too_few);
    assert_eq!(shares.clusters[1].levels, [0.0, 1.0]);
}

/// Where the nth gateway of a peer answers.
fn gateway(nth: u16) -> Address {
    Address::Socket(([192, 0, 2, 1], nth).into())
}

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
