use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::fixture::cluster;
use crate::locality::Locality;
use crate::shares::{EndpointStatus, EndpointStatus::*, Trial, capacity, healthy_share};
use crate::snapshot::{Balance, HashOn, SpreadPart, TooFew};

/// A cluster whose levels have these endpoints, and its shares.
fn world(levels: &[&[EndpointStatus]]) -> (Cluster, ClusterShares) {
    let keys: Vec<Vec<&str>> = levels.iter().map(|level| vec!["e"; level.len()]).collect();
    let keys: Vec<&[&str]> = keys.iter().map(Vec::as_slice).collect();
    let cluster = cluster(&keys);
    let shares = shares(&cluster, levels.concat());
    (cluster, shares)
}

fn shares(cluster: &Cluster, endpoints: Vec<EndpointStatus>) -> ClusterShares {
    let capacities: Vec<f64> = (0..cluster.levels.len())
        .map(|level| {
            capacity(
                healthy_share(cluster, &endpoints, &[], level),
                &cluster.policy.failover,
            )
        })
        .collect();
    ClusterShares::new(cluster, endpoints, Vec::new(), &capacities)
}

fn attempts(world: &(Cluster, ClusterShares), draw: u64) -> Vec<(usize, usize, Why)> {
    plan(&world.0, &world.1, &|_| 0, draw)
        .map(|attempt| (attempt.level, attempt.endpoint.0, attempt.why))
        .collect()
}

#[test]
fn a_trial_comes_first_and_once_and_only_where_something_is_to_be_had() {
    let on_trial = |levels: &[&[EndpointStatus]], ix| {
        let mut world = world(levels);
        world.1.trials = vec![(EndpointIx(ix), Trial::new())];
        world
    };
    let ejected = on_trial(&[&[Ejected, Healthy], &[Ejected]], 0);
    assert_eq!(
        attempts(&ejected, 1),
        [(0, 0, Why::Trial), (0, 1, Why::Local), (1, 2, Why::TooFew)]
    );
    assert!(ejected.1.trials[0].1.begin());
    assert_eq!(attempts(&ejected, 1)[0], (0, 1, Why::Local));
    // Its active checks fail: that it could be tried is nothing.
    let unhealthy = on_trial(&[&[Unhealthy, Healthy]], 0);
    assert_eq!(attempts(&unhealthy, 1), [(0, 1, Why::Local)]);
    // Nor does it stand in another's way.
    let mut both = world(&[&[Unhealthy, Ejected, Healthy]]);
    both.1.trials = vec![(EndpointIx(0), Trial::new()), (EndpointIx(1), Trial::new())];
    assert_eq!(attempts(&both, 1), [(0, 1, Why::Trial), (0, 2, Why::Local)]);
    // It has traffic anyway.
    let too_few = on_trial(&[&[Ejected]], 0);
    assert_eq!(attempts(&too_few, 1), [(0, 0, Why::TooFew)]);
    let mut refused = on_trial(&[&[Ejected]], 0);
    Arc::make_mut(&mut refused.0.policy).failover.too_few = TooFew::Fail;
    refused.1 = ClusterShares {
        trials: refused.1.trials,
        ..shares(&refused.0, vec![Ejected])
    };
    assert_eq!(attempts(&refused, 1), []);
}

#[test]
fn the_nearest_level_comes_first_and_whole_then_the_others_in_order() {
    let world = world(&[
        &[Healthy, Healthy, Unknown],
        &[Healthy],
        &[Unhealthy],
        &[Healthy],
    ]);
    for draw in 0..50 {
        let tried = attempts(&world, draw);
        let levels: Vec<_> = tried.iter().map(|(level, _, _)| *level).collect();
        assert_eq!(levels, [0, 0, 0, 1, 3]);
        assert!(tried[..3].iter().all(|(_, _, why)| *why == Why::Local));
        assert!(tried[3..].iter().all(|(_, _, why)| *why == Why::Failover));
    }
}

#[test]
fn traffic_spills_by_the_shares() {
    // One of two is down: 5/7 stays (formula by hand).
    let world = world(&[&[Healthy, Ejected], &[Healthy]]);
    let mut spilled = 0u32;
    for draw in 0..7000 {
        let tried = attempts(&world, draw);
        match tried[0] {
            (0, 0, Why::Local) => {
                assert_eq!(tried[1..], [(1, 2, Why::Failover), (0, 1, Why::TooFew)]);
            }
            (1, 2, Why::Spill) => {
                spilled += 1;
                assert_eq!(tried[1..], [(0, 0, Why::Local), (0, 1, Why::TooFew)]);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(spilled.abs_diff(2000) < 150, "{spilled}");
}

#[test]
fn without_a_nearest_endpoint_it_is_failover_and_without_any_too_few_or_nothing() {
    let failed_over = world(&[&[Unhealthy], &[Healthy]]);
    assert_eq!(attempts(&failed_over, 1), [(1, 1, Why::Failover)]);
    let mut too_few = world(&[&[Ejected, Unhealthy], &[Ejected]]);
    assert_eq!(
        attempts(&too_few, 1),
        [(0, 0, Why::TooFew), (1, 2, Why::TooFew)]
    );
    Arc::make_mut(&mut too_few.0.policy).failover.too_few = TooFew::Fail;
    too_few.1 = shares(&too_few.0, too_few.1.endpoints);
    assert_eq!(attempts(&too_few, 1), []);
    assert_eq!(attempts(&world(&[&[Unhealthy]]), 1), []);
}

#[test]
fn once_all_that_are_healthy_have_failed_those_that_traffic_found_bad_have_a_turn() {
    let mut world = world(&[&[Ejected, Unhealthy], &[Healthy], &[Ejected]]);
    let healthy = (1, 2, Why::Failover);
    assert_eq!(
        attempts(&world, 1),
        [healthy, (0, 0, Why::TooFew), (2, 3, Why::TooFew)]
    );
    // Whoever says so is refused instead.
    Arc::make_mut(&mut world.0.policy).failover.too_few = TooFew::Fail;
    assert_eq!(attempts(&world, 1), [healthy]);
}

#[test]
fn a_large_dead_level_leaves_attempts_for_the_next() {
    let world = world(&[
        &[Healthy; 100],
        &[Healthy; 100],
        &[Healthy; 100],
        &[Healthy; 100],
        &[Healthy; 100],
    ]);
    let tried = attempts(&world, 3);
    assert_eq!(tried.len(), ATTEMPTS_MAX);
    for level in 0..4 {
        let count = tried.iter().filter(|(l, _, _)| *l == level).count();
        assert_eq!(count, LEVEL_ATTEMPTS_MAX);
    }
}

fn statuses() -> impl Strategy<Value = Vec<Vec<EndpointStatus>>> {
    let status = prop::sample::select(vec![Healthy, Unknown, Ejected, Unhealthy]);
    prop::collection::vec(prop::collection::vec(status, 0..6), 1..5)
}

proptest! {
    #[test]
    fn a_plan_tries_each_usable_endpoint_once_and_no_other(
        levels in statuses(),
        draw in any::<u64>(),
        balance in prop::sample::select(vec![
            Balance::LeastRequest,
            Balance::RoundRobin,
            Balance::Random,
            Balance::RingHash(HashOn::Source),
            Balance::Maglev(HashOn::Source),
        ]),
    ) {
        let levels: Vec<&[EndpointStatus]> = levels.iter().map(Vec::as_slice).collect();
        let mut world = world(&levels);
        Arc::make_mut(&mut world.0.policy).balance = balance;
        let tried = attempts(&world, draw);
        let all = levels.concat();
        // The healthy ones, and after them those that only traffic found bad.
        let mut last = false;
        for (_, ix, _) in &tried {
            last |= !all[*ix].is_healthy();
            prop_assert_eq!(last, !all[*ix].is_healthy());
        }
        let mut endpoints: Vec<usize> = tried.iter().map(|(_, ix, _)| *ix).collect();
        endpoints.sort_unstable();
        let any_healthy = all.iter().any(|s| s.is_healthy());
        let of = |status: &dyn Fn(EndpointStatus) -> bool| -> Vec<usize> {
            (0..all.len()).filter(|ix| status(all[*ix])).collect()
        };
        let (healthy, ejected) = (of(&|s| s.is_healthy()), of(&|s| s == Ejected));
        let (first, rest): (Vec<usize>, Vec<usize>) =
            endpoints.iter().partition(|ix| all[**ix].is_healthy());
        prop_assert_eq!(first, healthy);
        prop_assert!(rest.iter().all(|ix| ejected.contains(ix)));
        let most = if any_healthy { ejected.len().min(LAST_RESORT_MAX) } else { ejected.len() };
        prop_assert_eq!(rest.len(), most);
        if let Some((level, _, _)) = tried.first() {
            prop_assert!(world.1.levels[*level] > 0.0);
        }
    }
}

/// Two endpoints in one locality and one in another, of one level, and a further level.
fn spread_cluster(weights: [f64; 2]) -> Cluster {
    let mut spread = cluster(&[&["a", "b", "c"], &["d"]]);
    let places = ["eu/1", "eu/1", "eu/2", "us"].map(|text| Locality::parse(text).unwrap());
    for (endpoint, place) in spread.endpoints.iter_mut().zip(&places) {
        endpoint.locality = place.clone();
    }
    let policy = Arc::make_mut(&mut spread.policy);
    policy.spread = [(&places[0], weights[0]), (&places[2], weights[1])]
        .map(|(locality, weight)| SpreadPart {
            locality: locality.clone(),
            weight,
        })
        .to_vec();
    spread
}

/// How many of 10,000 draws go to each endpoint first, in hundreds.
fn first_of(cluster: &Cluster, endpoints: Vec<EndpointStatus>) -> Vec<u32> {
    let shares = shares(cluster, endpoints);
    let mut counts = vec![0u32; cluster.endpoints.len()];
    for draw in 0..10_000 {
        if let Some(first) = plan(cluster, &shares, &|_| 0, draw).next() {
            counts[first.endpoint.0] += 1;
        }
    }
    counts.iter().map(|count| (count + 50) / 100).collect()
}

#[test]
fn a_level_is_spread_over_its_localities_by_their_shares_and_their_health() {
    let close = |ours: Vec<u32>, hand: [u32; 4]| {
        let is = (ours.iter().zip(hand)).all(|(ours, hand)| ours.abs_diff(hand) <= 2);
        assert!(is, "{ours:?}, not {hand:?}");
    };
    let of = spread_cluster([0.2, 0.8]);
    close(first_of(&of, vec![Healthy; 4]), [10, 10, 80, 0]);
    // By hand: h of the first locality is 1/2, c = 5/7: 1/7 to 4/5, so 15 and 85 of the level, which
    // has 2/3 of its weight and takes 20/21.
    let one_down = vec![Ejected, Healthy, Healthy, Healthy];
    close(first_of(&of, one_down), [0, 14, 81, 5]);
    // The other locality is gone: all that the level takes (20/21) is the first one's.
    let other_down = || vec![Healthy, Healthy, Ejected, Healthy];
    close(first_of(&of, other_down()), [48, 48, 0, 5]);
    // What weighs nothing is used where nothing else of the level is.
    let of = spread_cluster([0.0, 1.0]);
    close(first_of(&of, vec![Healthy; 4]), [0, 0, 100, 0]);
    close(first_of(&of, other_down()), [48, 48, 0, 5]);
}

#[test]
fn in_a_spread_level_a_key_and_a_slow_start_choose_inside_the_locality() {
    let mut of = spread_cluster([0.2, 0.8]);
    let counts = |of: &Cluster, parts: Vec<f64>| {
        let mut shares = shares(of, vec![Healthy; 4]);
        shares.parts = parts;
        let mut counts = [0u32; 4];
        for draw in 0..10_000 {
            let first = || plan(of, &shares, &|_| 0, draw).next().unwrap().endpoint;
            assert_eq!(first(), first());
            counts[first().0] += 1;
        }
        counts.map(|count| (count + 50) / 100)
    };
    // By hand: 0.25 of a weight beside a whole one is a fifth of the locality's 20.
    Arc::make_mut(&mut of.policy).balance = Balance::Random;
    let slow = counts(&of, vec![0.25, 1.0, 0.25, 1.0]);
    assert!(
        slow[0].abs_diff(4) <= 2 && slow[1].abs_diff(16) <= 2,
        "{slow:?}"
    );
    assert!(slow[2].abs_diff(80) <= 2 && slow[3] == 0, "{slow:?}");
    Arc::make_mut(&mut of.policy).balance = Balance::RingHash(HashOn::Source);
    let keyed = counts(&of, Vec::new());
    assert!(
        keyed[0].abs_diff(10) <= 2 && keyed[1].abs_diff(10) <= 2,
        "{keyed:?}"
    );
    assert!(keyed[2].abs_diff(80) <= 2 && keyed[3] == 0, "{keyed:?}");
}
