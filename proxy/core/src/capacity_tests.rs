use proptest::prelude::*;

use super::*;
use crate::balance::mix;
use crate::fixture::{cluster, service, snapshot};
use crate::fleet::{Evacuation, Fleet, Observation};
use crate::names::HostPattern;
use crate::plan::{Why, plan};
use crate::report::{Presence, Report, Standing};
use crate::shares::{Shares, spread};
use crate::snapshot::{Address, ClusterIx, EndpointKey, Failure, PeerIx, Snapshot, TooFew};

fn at(nanos: u64) -> Time {
    Time::from_origin(Duration::from_nanos(nanos))
}

fn seconds(seconds: f64) -> Time {
    Time::from_origin(Duration::from_secs_f64(seconds))
}

fn held(most: f64) -> Held {
    Held::new("b".into(), most, Arc::default())
}

#[test]
fn what_is_given_back_is_there_for_another() {
    // Four at once, and no fifth.
    let held = held(4.0);
    let take = || held.take(held.interval, 0);
    for _ in 0..4 {
        assert!(take());
    }
    assert!(!take());
    held.give_back(held.interval);
    assert!(take() && !take());
    assert_eq!(held.met_full(), 2);
}

#[test]
fn what_is_given_back_of_a_backend_that_grew_leaves_it_empty_and_not_full_for_ever() {
    // One in 10 s.
    let held = held(0.1);
    assert!(held.take(held.interval, 0));
    held.taken.grew(Time::from_origin(Duration::ZERO));
    held.give_back(held.interval);
    assert!(held.take(held.interval, 0));
}

proptest! {
    /// Two bounds that any bucket of this rate and burst keeps, by hand: in no window more than the
    /// burst and the rate give, and no refusal while a second's worth was not used up.
    #[test]
    fn a_backend_is_sent_its_capacity_no_more_and_no_less(
        most in 1.0..40.0_f64,
        gaps in prop::collection::vec(prop_oneof![Just(0_u64), 0..200_000_000_u64, 0..3_000_000_000_u64], 1..200),
    ) {
        let held = held(most);
        let mut now = 0;
        let mut taken: Vec<u64> = Vec::new();
        for gap in gaps {
            now += gap;
            let is_full = held.is_full(units(Duration::from_nanos(now)));
            let has_taken = held.take(held.interval, units(Duration::from_nanos(now)));
            prop_assert_eq!(is_full, !has_taken, "it is full as it says");
            if has_taken {
                taken.push(now);
            } else {
                let recent = taken.iter().filter(|then| **then + 1_000_000_000 > now).count();
                prop_assert!(recent as f64 >= (most - 1.0).floor(), "refused after {} of {}", recent, most);
            }
        }
        for (nth, from) in taken.iter().enumerate() {
            for (further, to) in taken.iter().enumerate().skip(nth) {
                let count = (further - nth + 1) as f64;
                let window = (to - from) as f64 / 1e9;
                prop_assert!(count <= most * window + most.max(1.0) + 1e-6, "{} within {} s", count, window);
            }
        }
    }

    /// Whatever levels have: all that is offered has its place or is refused; nothing is refused
    /// while something healthy has room; the nearest keeps what it has room for; no level has more
    /// than its room; and without capacities it is the formula that was.
    #[test]
    fn shares_and_what_is_refused_are_one_and_keep_what_has_room(rooms in rooms()) {
        let placed = place(&rooms);
        let all: f64 = placed.shares.iter().sum::<f64>() + placed.refused;
        if rooms.iter().all(|room| room.healthy <= 0.0) {
            prop_assert_eq!(all, 0.0);
            return Ok(());
        }
        prop_assert!((all - 1.0).abs() < 1e-6, "{:?}", placed);
        for (share, room) in placed.shares.iter().zip(&rooms) {
            prop_assert!(*share >= 0.0 && *share <= room.most + 1e-9);
            prop_assert!(room.healthy > 0.0 || *share == 0.0);
            let is_full = *share >= room.most - 1e-9 || room.healthy <= 0.0;
            prop_assert!(placed.refused == 0.0 || is_full, "{:?} of {:?}", placed, rooms);
        }
        let first = rooms.first().map_or(0.0, |room| room.damped.min(room.most));
        prop_assert!(placed.shares.first().is_some_and(|share| *share >= first - 1e-9));
        let unlimited: Vec<Room> = (rooms.iter())
            .map(|room| Room { most: f64::INFINITY, damped: room.healthy, ..*room })
            .collect();
        let healthy: Vec<f64> = rooms.iter().map(|room| room.healthy).collect();
        for (one, other) in place(&unlimited).shares.iter().zip(spread(&healthy)) {
            prop_assert!((one - other).abs() < 1e-9);
        }
    }

    /// A little more load moves little.
    #[test]
    fn a_small_change_of_load_makes_a_small_change_of_shares(rooms in rooms(), by in 0.999..1.001_f64) {
        let changed: Vec<Room> = (rooms.iter())
            .map(|room| Room { most: room.most * by, ..*room })
            .collect();
        let (before, after) = (place(&rooms), place(&changed));
        for (before, after) in before.shares.iter().zip(&after.shares) {
            prop_assert!((before - after).abs() < 0.05, "{:?} {:?}", rooms, by);
        }
        prop_assert!((before.refused - after.refused).abs() < 0.05);
    }

    /// Whatever is offered, in bursts or evenly, whatever dies meanwhile: no backend is ever sent more
    /// than its capacity over any window and the burst, and nothing is refused while one that is
    /// healthy has room.
    #[test]
    fn no_backend_is_offered_more_than_it_takes_over_any_window(
        most in prop::collection::vec(prop_oneof![3 => (1_u32..60).prop_map(Some), 1 => Just(None)], 1..4),
        bursts in prop::collection::vec((1_u32..80, 0_u64..900), 1..60),
        dead in prop::option::of(0_usize..4),
        seed in any::<u64>(),
    ) {
        let mut world = World::new(&most);
        if let Some(dead) = dead.filter(|dead| *dead < most.len()) {
            world.kill(dead, Time::ZERO);
        }
        let mut sent: Vec<Vec<u64>> = vec![Vec::new(); most.len()];
        let mut millis = 0;
        for (nth, (burst, gap)) in bursts.into_iter().enumerate() {
            millis += gap;
            let now = at(millis * 1_000_000);
            for one in 0..burst {
                let draw = mix(seed, nth as u64 * 1000 + u64::from(one));
                match world.send(draw, now) {
                    Some((level, _)) => sent[level].push(millis),
                    None => {
                        let of = world.metered();
                        let has_room = (0..most.len())
                            .any(|level| Some(level) != dead && !of.is_full(EndpointIx(level * 2), of.full(now)));
                        prop_assert!(!has_room, "refused beside room");
                    }
                }
            }
        }
        for (sent, most) in sent.iter().zip(&most) {
            let Some(most) = most.map(f64::from) else { continue };
            for (nth, from) in sent.iter().enumerate() {
                let window = |to: u64| (to - from) as f64 / 1e3;
                for (further, to) in sent.iter().enumerate().skip(nth) {
                    let count = (further - nth + 1) as f64;
                    prop_assert!(count <= most * window(*to) + most + 1e-6);
                }
            }
        }
    }
}

fn rooms() -> impl Strategy<Value = Vec<Room>> {
    let c = prop_oneof![Just(0.0), Just(1.0), 0.05..1.0_f64];
    let most = prop_oneof![Just(f64::INFINITY), 0.01..1.5_f64];
    let room = (c, 0.0..=1.0_f64, most).prop_map(|(healthy, part, most)| Room {
        damped: healthy * if part > 0.5 { 1.0 } else { part },
        healthy,
        most,
    });
    prop::collection::vec(room, 1..6)
}

/// A fleet of one cluster, each level a backend of two endpoints.
struct World {
    snapshot: Snapshot,
    fleet: Fleet,
    shares: Shares,
}

impl World {
    fn new(most: &[Option<u32>]) -> Self {
        let keys: Vec<Vec<String>> = (0..most.len())
            .map(|level| (0..2).map(|nth| format!("{level}.{nth}")).collect())
            .collect();
        let keys: Vec<Vec<&str>> = (keys.iter())
            .map(|level| level.iter().map(String::as_str).collect())
            .collect();
        let keys: Vec<&[&str]> = keys.iter().map(Vec::as_slice).collect();
        let mut cluster = cluster(&keys);
        for (nth, endpoint) in cluster.endpoints.iter_mut().enumerate() {
            endpoint.backend = format!("b{}", nth / 2).into();
            endpoint.capacity = most[nth / 2].and_then(Rate::per_second);
        }
        Self::of(vec![cluster])
    }

    fn of(clusters: Vec<Cluster>) -> Self {
        let snapshot = Snapshot {
            clusters: clusters.into_iter().map(Arc::new).collect(),
            ..snapshot(vec![])
        };
        let mut fleet = Fleet::new();
        fleet.reconcile(&snapshot, Time::ZERO);
        let shares = fleet.shares(Time::ZERO);
        Self {
            snapshot,
            fleet,
            shares,
        }
    }

    fn metered(&self) -> &Metered {
        self.shares.clusters[0].metered.as_ref().unwrap()
    }

    /// As a worker sends one.
    fn send(&mut self, draw: u64, now: Time) -> Option<(usize, Why)> {
        self.send_to(0, draw, now)
    }

    fn send_to(&mut self, cluster: usize, draw: u64, now: Time) -> Option<(usize, Why)> {
        self.pass(now);
        let of = &self.shares.clusters[cluster];
        let Some(metered) = &of.metered else {
            let first = plan(&self.snapshot.clusters[cluster], of, &|_| 0, draw).next()?;
            return Some((first.level, first.why));
        };
        metered.offered().add(1);
        let plan = plan(&self.snapshot.clusters[cluster], of, &|_| 0, draw);
        let mut plan = plan.within(metered.full(now));
        let sent = plan.find(|attempt| metered.take(attempt.endpoint, now))?;
        Some((sent.level, sent.why))
    }

    fn pass(&mut self, now: Time) {
        while let Some(wake) = self.fleet.next_wake().filter(|wake| *wake <= now) {
            self.shares = self.fleet.shares(wake);
        }
        if self.fleet.has_changed() {
            self.shares = self.fleet.shares(now);
        }
    }

    fn kill(&mut self, level: usize, now: Time) {
        for nth in 0..2 {
            let observation = Observation {
                key: EndpointKey(format!("{level}.{nth}").into()),
                result: Err(Failure::Connect),
            };
            (0..5).for_each(|_| self.fleet.observe(&observation, now));
        }
        self.pass(now);
    }

    /// So many a second for so long, evenly, from a moment on; how many each level got, and how many
    /// were refused.
    fn load(&mut self, rate: f64, from: f64, lasts: f64) -> (Vec<u32>, u32) {
        let levels = self.snapshot.clusters[0].levels.len();
        let (mut got, mut refused) = (vec![0; levels], 0);
        let mut nth = 0_u64;
        while (nth as f64) < rate * lasts {
            let now = seconds(from + nth as f64 / rate);
            match self.send(mix(from.to_bits(), nth), now) {
                Some((level, _)) => got[level] += 1,
                None => refused += 1,
            }
            nth += 1;
        }
        (got, refused)
    }
}

fn close(one: f64, other: f64, by: f64) -> bool {
    (one - other).abs() <= by
}

#[test]
fn the_nearest_keeps_its_capacity_and_the_excess_goes_on_until_nothing_has_room() {
    let mut world = World::new(&[Some(100), Some(50), None]);
    // Twice the nearest's: by hand 100 and 50 each second, and once the burst; what is over comes after 1 s.
    let (got, refused) = world.load(200.0, 0.0, 60.0);
    assert!(close(got[0].into(), 6100.0, 20.0), "{got:?}");
    assert!(close(got[1].into(), 3000.0, 20.0), "{got:?}");
    assert_eq!((refused, got.iter().sum::<u32>()), (0, 12_000));
    let of = &world.shares.clusters[0];
    for (share, wanted) in of.levels.iter().zip([0.5, 0.25, 0.25]) {
        assert!(close(*share, wanted, 0.02), "{:?}", of.levels);
    }

    let mut world = World::new(&[Some(100), Some(50)]);
    let (got, refused) = world.load(200.0, 0.0, 60.0);
    assert!(close(got[0].into(), 6100.0, 20.0), "{got:?}");
    assert!(close(got[1].into(), 3000.0, 20.0), "{got:?}");
    assert_eq!(got.iter().sum::<u32>() + refused, 12_000);
    assert!(close(world.shares.clusters[0].refused(), 0.25, 0.02));
    // The load ends: all is near again, at once.
    let (got, refused) = world.load(50.0, 60.0, 10.0);
    assert!(close(got[0].into(), 500.0, 3.0), "{got:?} {refused}");
}

/// What broke: one request, taken while next to nothing was to be had, kept the backend full for a
/// thousand seconds, whatever it took by then.
#[test]
fn what_was_taken_at_a_small_capacity_does_not_fill_a_backend_that_has_grown() {
    let mut world = World::new(&[Some(100)]);
    let lower = |world: &mut World, most, now| {
        world.fleet.lower_capacity("a/b", "b0", most, seconds(now));
    };
    lower(&mut world, Some(1e-3), 0.0);
    let (got, _) = world.load(10.0, 0.0, 1.0);
    assert_eq!(got, [1]);
    lower(&mut world, None, 1.0);
    // As if its burst were used up, and not more: no more than its rate at first.
    let (got, _) = world.load(200.0, 1.0, 1.0);
    assert!(close(got[0].into(), 100.0, 2.0), "{got:?}");
    let (got, refused) = world.load(90.0, 2.0, 10.0);
    assert_eq!((got, refused), (vec![900], 0));
    // To take less, and as much again, is worth no burst.
    lower(&mut world, Some(50.0), 12.0);
    lower(&mut world, None, 12.0);
    let (got, _) = world.load(1000.0, 12.0, 1.0);
    assert!(close(got[0].into(), 200.0, 12.0), "{got:?}");
}

/// What broke: all of the traffic was promised to what takes half of it.
#[test]
fn what_an_evacuation_would_do_says_what_has_room_for_it() {
    let mut world = World::new(&[Some(100), Some(50)]);
    world.load(80.0, 0.0, 30.0);
    let near = Evacuation::Backend {
        route: "a/b".into(),
        backend: "b0".into(),
    };
    let [effect] = &world.fleet.effect(&near)[..] else {
        panic!("one cluster");
    };
    let by_health: Vec<(f64, f64)> = (effect.levels.iter())
        .map(|(_, before, after)| (*before, *after))
        .collect();
    assert_eq!(by_health, [(1.0, 0.0), (0.0, 1.0)]);
    let (before, after) = effect.placed.as_ref().unwrap();
    assert_eq!((&before.shares[..], before.refused), (&[1.0, 0.0][..], 0.0));
    // By hand: 50 of 80 fit.
    assert!(close(after.shares[1], 0.625, 0.01), "{after:?}");
    assert!(close(after.refused, 0.375, 0.01), "{after:?}");
    assert_eq!(after.shares[0], 0.0);
    // So it comes.
    assert!(world.fleet.evacuate(near, seconds(30.0)));
    world.pass(seconds(30.0));
    let of = &world.shares.clusters[0];
    assert!(close(of.levels[1], after.shares[1], 1e-9), "{of:?}");
    let unlimited = World::new(&[None, None]);
    let effect = unlimited.fleet.effect(&Evacuation::Backend {
        route: "a/b".into(),
        backend: "b0".into(),
    });
    assert_eq!((effect.len(), &effect[0].placed), (1, &None));
}

#[test]
fn what_moves_for_want_of_room_does_not_swing() {
    let mut world = World::new(&[Some(100), None]);
    world.load(150.0, 0.0, 20.0);
    let (mut least, mut most) = (1.0_f64, 0.0_f64);
    for second in 20..80_u32 {
        world.load(150.0, f64::from(second), 1.0);
        let share = world.shares.clusters[0].levels[0];
        (least, most) = (least.min(share), most.max(share));
    }
    // What is offered is measured, not what came through.
    assert!(least > 0.64 && most < 0.69, "{least} {most}");
}

#[test]
fn a_level_that_waits_for_failback_helps_out_where_others_are_full_and_its_backend_has_half_of_its_capacity_with_half_of_its_endpoints()
 {
    let mut world = World::new(&[Some(100), Some(50)]);
    world.kill(0, Time::ZERO);
    let of = &world.shares.clusters[0];
    assert_eq!(of.metered.as_ref().unwrap().most, [0.0, 50.0]);
    // Ejections last 30 s; from then on it waits a minute for failback.
    let (_, refused) = world.load(100.0, 0.0, 29.0);
    assert!(refused > 1000, "{refused}");
    world.load(100.0, 29.0, 5.0);
    // The burst that the far one saved up, and then half.
    let (got, refused) = world.load(100.0, 40.0, 10.0);
    assert!(close(got[1].into(), 550.0, 10.0), "{got:?}");
    assert_eq!(refused, 0, "{got:?}");

    let mut world = World::new(&[Some(100), None]);
    let observation = Observation {
        key: EndpointKey("0.1".into()),
        result: Err(Failure::Connect),
    };
    (0..5).for_each(|_| world.fleet.observe(&observation, Time::ZERO));
    world.pass(Time::ZERO);
    assert_eq!(world.metered().most, [50.0, f64::INFINITY]);
}

#[test]
fn each_backend_of_a_level_is_held_to_its_own_capacity() {
    let mut one = cluster(&[&["a", "b"], &["c"]]);
    for (endpoint, (backend, most)) in
        one.endpoints
            .iter_mut()
            .zip([("a", 10), ("b", 90), ("c", 0)])
    {
        endpoint.backend = backend.into();
        endpoint.capacity = Rate::per_second(most);
    }
    let mut world = World::of(vec![one]);
    assert_eq!(world.metered().most, [100.0, f64::INFINITY]);
    // Drawn alike, and yet all of it fits into their level.
    let (got, refused) = world.load(95.0, 0.0, 30.0);
    assert_eq!((got[1], refused), (0, 0), "{got:?}");
    let (got, _) = world.load(200.0, 30.0, 30.0);
    assert!(close(got[0].into(), 3030.0, 60.0), "{got:?}");
}

#[test]
fn nothing_healthy_is_used_up_to_its_capacity_and_no_further() {
    let mut world = World::new(&[Some(10)]);
    let mut next = world.snapshot.clone();
    let policy = &mut Arc::make_mut(&mut next.clusters[0]).policy;
    Arc::make_mut(policy).passive.keep_at_least = 0;
    world.fleet.reconcile(&next, Time::ZERO);
    world.pass(Time::ZERO);
    let full = Full(1);
    let one = &world.snapshot.clusters[0];
    let of = &world.shares.clusters[0];
    assert_eq!(plan(one, of, &|_| 0, 1).within(full).count(), 0);
    world.kill(0, Time::ZERO);
    assert!(world.shares.clusters[0].too_few);
    let (got, refused) = world.load(20.0, 0.0, 20.0);
    assert!(close(got[0].into(), 210.0, 5.0) && refused > 0, "{got:?}");
}

#[test]
fn what_is_full_is_no_reason_to_try_what_was_found_bad() {
    let mut one = cluster(&[&["a", "b"]]);
    Arc::make_mut(&mut one.policy).failover.too_few = TooFew::UseAll;
    for (endpoint, most) in one.endpoints.iter_mut().zip([1, 0]) {
        endpoint.backend = endpoint.key.0.clone();
        endpoint.capacity = Rate::per_second(most);
    }
    let mut world = World::of(vec![one]);
    let observation = Observation {
        key: EndpointKey("b".into()),
        result: Err(Failure::Connect),
    };
    (0..5).for_each(|_| world.fleet.observe(&observation, Time::ZERO));
    assert!(world.send(1, Time::ZERO).is_some());
    assert_eq!(world.send(2, Time::ZERO), None);
    assert_eq!(world.send(3, seconds(1.0)), Some((0, Why::Local)));
}

#[test]
fn clusters_of_a_route_share_what_a_backend_takes() {
    // All backends for workloads, and the own ones for other clusters.
    let backend = |mut one: Cluster| {
        for endpoint in &mut one.endpoints {
            if &*endpoint.key.0 == "own" {
                endpoint.backend = "own".into();
                endpoint.capacity = Rate::per_second(100);
            }
        }
        one
    };
    let outbound = backend(cluster(&[&["own"], &["far"]]));
    let own = backend(Cluster {
        name: "a/b:80|own".into(),
        ..cluster(&[&["own"]])
    });
    let mut world = World::of(vec![outbound, own]);
    let mut came = [0_u32; 3];
    for nth in 0..6000_u32 {
        let now = seconds(f64::from(nth) / 200.0);
        let one = world.send_to(0, mix(1, nth.into()), now);
        let other = world.send_to(1, mix(2, nth.into()), now);
        came[0] += u32::from(one.is_some_and(|(level, _)| level == 0));
        came[1] += u32::from(one.is_some_and(|(level, _)| level == 1));
        came[2] += u32::from(other.is_some());
    }
    // 400 a second want 100: each is told a quarter of its own, and together they get no more.
    assert_eq!(came[0] + came[1], 6000);
    assert!(close((came[0] + came[2]).into(), 3100.0, 20.0), "{came:?}");
    let shares = |nth: usize| world.shares.clusters[nth].levels[0];
    assert!(close(shares(0), 0.25, 0.02) && close(shares(1), 0.25, 0.02));
    assert!(close(world.shares.clusters[1].refused(), 0.75, 0.02));
    assert_eq!(world.fleet.levels(ClusterIx(0)).len(), 2);
}

#[test]
fn what_was_taken_survives_a_push_and_capacity_that_goes_is_forgotten() {
    let mut world = World::new(&[Some(5), None]);
    (0..5).for_each(|nth| assert_eq!(world.send(nth, Time::ZERO).unwrap().0, 0));
    assert_eq!(world.send(9, Time::ZERO), Some((1, Why::Spill)));
    let mut next = world.snapshot.clone();
    let changed = Arc::make_mut(&mut next.clusters[0]);
    Arc::make_mut(&mut changed.policy).retries.attempts = 7;
    world.fleet.reconcile(&next, Time::ZERO);
    world.pass(Time::ZERO);
    assert_eq!(world.send(9, Time::ZERO).unwrap().0, 1, "still full");
    for endpoint in &mut Arc::make_mut(&mut next.clusters[0]).endpoints {
        endpoint.capacity = None;
    }
    world.fleet.reconcile(&next, Time::ZERO);
    world.pass(Time::ZERO);
    assert_eq!(world.shares.clusters[0].metered, None);
    world.pass(seconds(5.0));
    assert_eq!(world.fleet.next_wake(), None, "nothing is measured");
}

#[test]
fn a_whole_second_is_taken_at_once_however_small_it_is() {
    for (most, burst) in [(0.5, 1), (1.0, 1), (7.0, 7), (1e6, 1_000_000)] {
        let held = held(most);
        let taken = (0..2_000_000)
            .take_while(|_| held.take(held.interval, 0))
            .count();
        assert!(taken == burst || taken + 1 == burst, "{taken} of {most}");
    }
}

/// A level that is the peer west, with two gateways, and one behind it.
#[test]
fn a_peer_takes_what_its_gateways_report_together_and_no_more_than_is_written() {
    let mut one = cluster(&[&["w1", "w2"], &["far"]]);
    for (nth, endpoint) in one.endpoints.iter_mut().enumerate().take(2) {
        endpoint.backend = "west".into();
        endpoint.peer = Some(PeerIx(0));
        endpoint.weight = 0.5;
        endpoint.address = gateway(nth);
    }
    one.endpoints[2].backend = "far".into();
    let mut world = World::of(vec![one]);
    world.snapshot.services = vec![service("a/b", "one.a", 80)].into();
    world.fleet.reconcile(&world.snapshot, Time::ZERO);
    let most = |world: &mut World, now| {
        world.pass(now);
        let metered = world.shares.clusters[0].metered.as_ref();
        metered.map(|metered| metered.most[0])
    };
    assert_eq!(most(&mut world, Time::ZERO), None);
    let report = |world: &mut World, nth, capacity, presence| {
        let mut report = Report::default();
        let standing = Standing::new(2, 2, 2.0, 2.0).unwrap();
        let standing = standing.taking(Rate::per_second(capacity));
        report.set(&HostPattern::parse("one.a").unwrap(), 80, standing);
        report.presence = presence;
        let (west, gateway) = ("west".into(), gateway(nth));
        world
            .fleet
            .report(&west, &gateway, &report.into(), Time::ZERO);
    };
    // One that reports none takes anything.
    report(&mut world, 0, 100, Presence::Serving);
    assert_eq!(most(&mut world, Time::ZERO), None);
    report(&mut world, 1, 50, Presence::Serving);
    assert_eq!(most(&mut world, Time::ZERO), Some(150.0));
    report(&mut world, 1, 0, Presence::Serving);
    assert_eq!(most(&mut world, Time::ZERO), None);
    // Who leaves is not counted with.
    report(&mut world, 1, 70, Presence::Leaving);
    assert_eq!(most(&mut world, Time::ZERO), Some(100.0));
    report(&mut world, 1, 70, Presence::Serving);
    for endpoint in Arc::make_mut(&mut world.snapshot.clusters[0])
        .endpoints
        .iter_mut()
        .take(2)
    {
        endpoint.capacity = Rate::per_second(120);
    }
    world.fleet.reconcile(&world.snapshot, Time::ZERO);
    assert_eq!(most(&mut world, Time::ZERO), Some(120.0));
    // Of what is reported, held: old or not.
    assert_eq!(most(&mut world, seconds(60.0)), Some(120.0));
    world.snapshot.peers[0].when_stale = crate::snapshot::WhenStale::Drop;
    for endpoint in &mut Arc::make_mut(&mut world.snapshot.clusters[0]).endpoints {
        endpoint.capacity = None;
    }
    world.fleet.reconcile(&world.snapshot, seconds(60.0));
    assert_eq!(most(&mut world, seconds(60.0)), None);
}

fn gateway(nth: usize) -> Address {
    let port = 15_443 + u16::try_from(nth).unwrap();
    Address::Socket(([192, 0, 2, 7], port).into())
}
