//! How traffic leaves a level and comes back.

use std::sync::Arc;
use std::time::Duration;

use crate::fixture;
use crate::fleet::{Fleet, FleetEvent, Kept, LevelMotion};
use crate::time::Time;

use super::{at, fleet, kill, manual, revive, shares, snapshot, told_to_wait};

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

fn waits(fleet: &mut Fleet, now: Time) -> Vec<LevelMotion> {
    fleet.shares(now).clusters[0].motions.clone()
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
