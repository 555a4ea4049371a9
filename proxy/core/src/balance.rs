//! Which endpoint of a level is picked. One file for each policy.

mod least_request;
mod random;
mod round_robin;

use crate::snapshot::{Balance, Cluster, EndpointIx, Level};

/// The endpoints of a level among which one is picked.
#[derive(Clone, Copy)]
pub struct Candidates<'a> {
    /// The cluster they are of.
    pub cluster: &'a Cluster,
    /// The level they are of.
    pub level: &'a Level,
    /// What part of its weight each endpoint is given; empty: all of it.
    pub parts: &'a [f64],
    /// Which of the level's members may be picked.
    pub usable: &'a dyn Fn(EndpointIx) -> bool,
}

impl std::fmt::Debug for Candidates<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Picks one endpoint by the cluster's policy; `None` if none is usable.
///
/// `load` is what this worker has under way at an endpoint. `draw` is random, but for
/// [`Balance::RoundRobin`], whose turns are counted by it: there the caller passes 0, 1, 2, ...
#[must_use]
pub fn pick(
    candidates: Candidates<'_>,
    load: &dyn Fn(EndpointIx) -> u32,
    draw: u64,
) -> Option<EndpointIx> {
    match candidates.cluster.policy.balance {
        Balance::LeastRequest => least_request::pick(candidates, load, draw),
        Balance::RoundRobin => round_robin::pick(candidates, draw),
        Balance::Random => random::pick(candidates, draw),
    }
}

impl<'a> Candidates<'a> {
    fn iter(self) -> impl Iterator<Item = (EndpointIx, f64)> + 'a {
        (self.level.members.iter().copied())
            .filter(move |ix| (self.usable)(*ix))
            .map(move |ix| (ix, self.weight(ix)))
    }

    fn weight(self, ix: EndpointIx) -> f64 {
        let part = self.parts.get(ix.0).copied().unwrap_or(1.0);
        self.cluster.endpoint(ix).weight * part
    }

    /// The endpoint in whose part of the weights, laid end to end, the point lies (0 to 1).
    fn at(self, point: f64) -> Option<EndpointIx> {
        let total: f64 = self.iter().map(|(_, weight)| weight).sum();
        let mut rest = point * total;
        let mut last = None;
        for (ix, weight) in self.iter() {
            if rest < weight {
                return Some(ix);
            }
            rest -= weight;
            last = Some(ix);
        }
        // Rounding may leave the point just behind the last.
        last
    }
}

/// A number from 0 to below 1 out of a draw; `part` tells several out of one draw apart.
#[must_use]
pub fn fraction(draw: u64, part: u64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        reason = "53 bits fit the mantissa exactly"
    )]
    let high = (mix(draw, part) >> 11) as f64;
    high / (1u64 << 53) as f64
}

/// Another draw out of one draw: splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
#[must_use]
pub fn mix(draw: u64, part: u64) -> u64 {
    let mut z = draw.wrapping_add((part.wrapping_add(1)).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::fixture::cluster;

    fn counts(balance: Balance, weights: &[f64], draws: u64) -> Vec<u32> {
        let keys = ["a", "b", "c", "d"];
        let mut cluster = cluster(&[&keys[..weights.len()]]);
        Arc::make_mut(&mut cluster.policy).balance = balance;
        for (endpoint, weight) in cluster.endpoints.iter_mut().zip(weights) {
            endpoint.weight = *weight;
        }
        let mut counts = vec![0; weights.len()];
        for draw in 0..draws {
            let candidates = Candidates {
                cluster: &cluster,
                level: &cluster.levels[0],
                parts: &[],
                usable: &|_| true,
            };
            counts[pick(candidates, &|_| 0, draw).unwrap().0] += 1;
        }
        counts
    }

    #[test]
    fn every_policy_picks_by_weight() {
        for balance in [Balance::Random, Balance::RoundRobin] {
            let counts = counts(balance, &[1.0, 2.0, 1.0], 8000);
            for (count, expected) in counts.iter().zip([2000u32, 4000, 2000]) {
                assert!(count.abs_diff(expected) < 150, "{balance:?} {counts:?}");
            }
        }
    }

    #[test]
    fn round_robin_takes_turns_and_keeps_close_to_unequal_weights() {
        assert_eq!(counts(Balance::RoundRobin, &[1.0; 4], 400), [100; 4]);
        let counts = counts(Balance::RoundRobin, &[3.0, 1.0], 400);
        assert!(counts[0].abs_diff(300) <= 3, "{counts:?}");
    }

    #[test]
    fn least_request_prefers_the_less_busy_for_its_weight() {
        let mut cluster = cluster(&[&["a", "b"]]);
        let picks = |cluster: &Cluster, loads: [u32; 2]| {
            (0..1000)
                .filter(|draw| {
                    let candidates = Candidates {
                        cluster,
                        level: &cluster.levels[0],
                        parts: &[],
                        usable: &|_| true,
                    };
                    pick(candidates, &|ix| loads[ix.0], *draw) == Some(EndpointIx(0))
                })
                .count()
        };
        // Two of two are drawn: always the less busy.
        assert_eq!(picks(&cluster, [3, 4]), 1000);
        assert_eq!(picks(&cluster, [4, 3]), 0);
        cluster.endpoints[0].weight = 2.0;
        assert_eq!(picks(&cluster, [5, 3]), 1000);
    }

    #[test]
    fn nothing_usable_is_no_pick() {
        for balance in [Balance::Random, Balance::RoundRobin, Balance::LeastRequest] {
            let mut cluster = cluster(&[&["a", "b"]]);
            Arc::make_mut(&mut cluster.policy).balance = balance;
            let candidates = |usable| Candidates {
                cluster: &cluster,
                level: &cluster.levels[0],
                parts: &[],
                usable,
            };
            assert_eq!(pick(candidates(&|_| false), &|_| 0, 7), None);
            let second: &dyn Fn(EndpointIx) -> bool = &|ix| ix.0 == 1;
            assert_eq!(pick(candidates(second), &|_| 0, 7), Some(EndpointIx(1)));
        }
    }

    #[test]
    fn every_policy_gives_only_a_part_to_what_starts_slowly() {
        for balance in [Balance::Random, Balance::RoundRobin, Balance::LeastRequest] {
            let mut cluster = cluster(&[&["a", "b"]]);
            Arc::make_mut(&mut cluster.policy).balance = balance;
            let of_a = (0..8000).filter(|draw| {
                let candidates = Candidates {
                    cluster: &cluster,
                    level: &cluster.levels[0],
                    parts: &[0.25, 1.0],
                    usable: &|_| true,
                };
                // Requests that take a while: each is as busy as its part of them.
                let load = |ix: EndpointIx| if ix.0 == 0 { 1 } else { 4 };
                pick(candidates, &load, *draw) == Some(EndpointIx(0))
            });
            let of_a = of_a.count();
            assert!(of_a.abs_diff(1600) < 150, "{balance:?} {of_a}");
        }
    }

    #[test]
    fn a_fraction_is_even_and_below_one() {
        let mean = (0..10_000).map(|draw| fraction(draw, 0)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!((0..10_000).all(|draw| (0.0..1.0).contains(&fraction(draw, 3))));
    }
}
