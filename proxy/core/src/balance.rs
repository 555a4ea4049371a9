//! Which endpoint of a level is picked. One file for each policy.

mod latency;
mod least_request;
mod maglev;
mod random;
mod ring_hash;
mod round_robin;

pub use latency::Latency;
pub use maglev::Slots;

use std::net::IpAddr;

use crate::shares::Worth;
use crate::snapshot::{Balance, Cluster, EndpointIx, HashOn, Level};

/// The endpoints of a level among which one is picked.
#[derive(Clone, Copy)]
pub struct Candidates<'a> {
    /// The cluster they are of.
    pub cluster: &'a Cluster,
    /// The level they are of.
    pub level: &'a Level,
    /// What each endpoint of the cluster is worth; empty where all are worth what is configured.
    pub worths: &'a [Worth],
    /// What part of its weight each endpoint is given; empty: all of it.
    pub parts: &'a [f64],
    /// What tells each endpoint from others by a key; empty where nothing is picked by one.
    pub seeds: &'a [u64],
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
/// `load` is what this worker has under way at an endpoint, or for [`Balance::PeakEwma`] what one more
/// costs there ([`Latency::cost`]). `draw` is random, but for
/// [`Balance::RoundRobin`], whose turns are counted by it: there the caller passes 0, 1, 2, ...; and
/// for [`Balance::RingHash`] and [`Balance::Maglev`], whose key it is ([`key_of`]).
#[must_use]
pub fn pick(
    candidates: Candidates<'_>,
    load: &dyn Fn(EndpointIx) -> u32,
    draw: u64,
) -> Option<EndpointIx> {
    match &candidates.cluster.policy.balance {
        Balance::LeastRequest | Balance::PeakEwma => least_request::pick(candidates, load, draw),
        Balance::RoundRobin => round_robin::pick(candidates, draw),
        Balance::Random => random::pick(candidates, draw),
        Balance::RingHash(_) => ring_hash::pick(candidates, draw),
        Balance::Maglev(_) => maglev::pick(candidates, draw),
    }
}

impl<'a> Candidates<'a> {
    fn iter(self) -> impl Iterator<Item = (EndpointIx, f64)> + 'a {
        (self.level.members.iter().copied())
            .filter(move |ix| (self.usable)(*ix))
            .map(move |ix| (ix, self.weight(ix)))
    }

    /// What an endpoint is picked by.
    fn weight(self, ix: EndpointIx) -> f64 {
        let drawn = self.worths.get(ix.0).map(|worth| worth.drawn);
        let weight = drawn.unwrap_or_else(|| self.cluster.endpoint(ix).weight);
        weight * self.parts.get(ix.0).copied().unwrap_or(1.0)
    }

    /// What all that may be picked weigh together.
    fn total(self) -> f64 {
        self.iter().map(|(_, weight)| weight).sum()
    }

    /// The endpoint in whose part of the weights, laid end to end, the point lies (0 to 1).
    fn at(self, point: f64) -> Option<EndpointIx> {
        self.at_of(self.total(), point, None)
    }

    /// The same of all but one, that weigh `total` together.
    fn at_of(self, total: f64, point: f64, but: Option<EndpointIx>) -> Option<EndpointIx> {
        let all = move || self.iter().filter(move |(ix, _)| Some(*ix) != but);
        if total <= f64::EPSILON && !self.worths.is_empty() {
            // None is better than the others: as is configured.
            let configured = Self {
                worths: &[],
                ..self
            };
            let total = all().map(|(ix, _)| configured.weight(ix)).sum();
            return configured.at_of(total, point, but);
        }
        let mut rest = point * total;
        let mut last = None;
        for (ix, weight) in all() {
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

/// What stands for a key, or for an endpoint where keys are: the same in every gateway and after every
/// start (FNV-1a, 64 bits).
#[must_use]
pub fn key_of(bytes: &[u8]) -> u64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // It leaves keys that differ in their last byte close to each other.
    mix(hash, 0)
}

/// The key of what came from `source`, where keys are made of `on`; `header` hashes the header of a name
/// by [`key_of`]. `None` where it has none.
#[must_use]
pub fn key(on: &HashOn, source: IpAddr, header: &dyn Fn(&str) -> Option<u64>) -> Option<u64> {
    match on {
        HashOn::Header(name) => header(name),
        HashOn::Source => Some(match source.to_canonical() {
            IpAddr::V4(ip) => key_of(&ip.octets()),
            IpAddr::V6(ip) => key_of(&ip.octets()),
        }),
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

    use proptest::prelude::*;

    use super::*;
    use crate::fixture::cluster;
    use crate::shares::seeds;
    use crate::snapshot::HashOn;

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
                worths: &[],
                parts: &[],
                seeds: &[],
                usable: &|_| true,
            };
            counts[pick(candidates, &|_| 0, draw).unwrap().0] += 1;
        }
        counts
    }

    #[test]
    fn every_policy_picks_by_weight() {
        for balance in [Balance::Random, Balance::RoundRobin] {
            let counts = counts(balance.clone(), &[1.0, 2.0, 1.0], 8000);
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
                        worths: &[],
                        parts: &[],
                        seeds: &[],
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
    fn what_weighs_nothing_at_this_time_is_not_picked_for_being_idle() {
        let cluster = cluster(&[&["a", "b"]]);
        let leaving = Worth {
            drawn: 0.0,
            ..Worth::configured(1.0)
        };
        let candidates = Candidates {
            cluster: &cluster,
            level: &cluster.levels[0],
            worths: &[Worth::configured(1.0), leaving],
            parts: &[],
            seeds: &[],
            usable: &|_| true,
        };
        let busy = |ix: EndpointIx| if ix.0 == 0 { 5 } else { 0 };
        assert!((0..100).all(|draw| pick(candidates, &busy, draw) == Some(EndpointIx(0))));
    }

    #[test]
    fn nothing_usable_is_no_pick() {
        for balance in [
            Balance::Random,
            Balance::RoundRobin,
            Balance::LeastRequest,
            Balance::RingHash(HashOn::Source),
            Balance::Maglev(HashOn::Source),
        ] {
            let mut cluster = cluster(&[&["a", "b"]]);
            Arc::make_mut(&mut cluster.policy).balance = balance;
            let candidates = |usable| Candidates {
                cluster: &cluster,
                level: &cluster.levels[0],
                worths: &[],
                parts: &[],
                seeds: &[],
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
            Arc::make_mut(&mut cluster.policy).balance = balance.clone();
            let of_a = (0..8000).filter(|draw| {
                let candidates = Candidates {
                    cluster: &cluster,
                    level: &cluster.levels[0],
                    worths: &[],
                    parts: &[0.25, 1.0],
                    seeds: &[],
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

    /// Where each of these keys goes.
    fn homes(cluster: &Cluster, keys: u64, usable: &dyn Fn(EndpointIx) -> bool) -> Vec<usize> {
        let seeds = seeds(cluster);
        let candidates = Candidates {
            cluster,
            level: &cluster.levels[0],
            worths: &[],
            parts: &[],
            seeds: &seeds,
            usable,
        };
        (0..keys)
            .map(|key| {
                let key = key_of(format!("user-{key}").as_bytes());
                pick(candidates, &|_| 0, key).unwrap().0
            })
            .collect()
    }

    fn hashed(keys: &[&str]) -> Cluster {
        let mut cluster = cluster(&[keys]);
        Arc::make_mut(&mut cluster.policy).balance = Balance::RingHash(HashOn::Source);
        cluster
    }

    proptest! {
        /// What goes moves its own keys alone, about 1/n of all, and evenly; what comes moves keys to
        /// itself alone.
        #[test]
        fn a_key_moves_only_with_its_endpoint(count in 2usize..12, gone in any::<prop::sample::Index>()) {
            let names: Vec<String> = (0..count).map(|n| format!("shop/orders|eu|10.0.0.{n}:80")).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let cluster = hashed(&names);
            let gone = gone.index(count);
            let before = homes(&cluster, 4000, &|_| true);
            let after = homes(&cluster, 4000, &|ix| ix.0 != gone);
            let mut moved = 0usize;
            for (before, after) in before.iter().zip(&after) {
                prop_assert!(before == after || *before == gone);
                moved += usize::from(before != after);
            }
            let share = 4000 / count;
            prop_assert!(moved.abs_diff(share) < 60 + share / 5, "{} of {}", moved, count);
            // Where the others stand in the list does not matter.
            let rest: Vec<&str> = names.iter().copied().filter(|name| *name != names[gone]).collect();
            let without = homes(&hashed(&rest), 4000, &|_| true);
            let named = |list: &[&str], home: &[usize]| -> Vec<String> {
                home.iter().map(|ix| list[*ix].to_owned()).collect()
            };
            prop_assert_eq!(named(&rest, &without), named(&names, &after));
        }
    }

    #[test]
    fn keys_go_by_weight_and_more_weight_moves_keys_to_itself_alone() {
        let mut cluster = hashed(&["a", "b", "c"]);
        let before = homes(&cluster, 9000, &|_| true);
        cluster.endpoints[1].weight = 4.0;
        let after = homes(&cluster, 9000, &|_| true);
        assert!(
            before
                .iter()
                .zip(&after)
                .all(|(before, after)| before == after || *after == 1)
        );
        let of = |homes: &[usize], ix| homes.iter().filter(|home| **home == ix).count();
        for ix in 0..3 {
            assert!(of(&before, ix).abs_diff(3000) < 200, "{ix}");
        }
        assert!(of(&after, 1).abs_diff(6000) < 200);
    }

    #[test]
    fn a_fraction_is_even_and_below_one() {
        let mean = (0..10_000).map(|draw| fraction(draw, 0)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        assert!((0..10_000).all(|draw| (0.0..1.0).contains(&fraction(draw, 3))));
    }
}
