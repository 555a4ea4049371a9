//! By a key, from a table: Maglev hashing (Eisenbud et al., NSDI 2016, §3.4; weights as Envoy's has
//! them), so that a pick costs the same among a thousand endpoints as among three.
//!
//! A table is made of what is configured of a level, once, by the first request that needs it. It never
//! asks who is healthy: from a slot whose endpoint is not to be had the key walks on to the next, so that
//! what goes moves its own keys alone and takes the same ones back. What is worth less than is configured
//! (it starts slowly, or its peer reports so) takes as much less of the keys that come by.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::OnceLock;

use crate::snapshot::{Cluster, EndpointIx, Level};

use super::{Candidates, fraction, key_of, mix, ring_hash};

/// Levels of up to so many endpoints have a table of so many slots, each a prime: at least sixteen for
/// one that weighs what others do, of two bytes each: 4 KiB, 32 KiB and 128 KiB. Envoy's have 65537
/// however few there are. What is larger is picked as by a ring hash.
const SLOTS: [(usize, usize); 3] = [(16, 2_039), (256, 16_381), (4_096, 65_537)];

/// The slots that a key walks before all that may be picked are looked at.
const WALK_MAX: u64 = 64;

const OFFSET_PART: u64 = 0x6d61_676f;
const STEP_PART: u64 = 0x6d61_6773;
const SLOT_PART: u64 = 0x6d61_676c;
const TAKEN_PART: u64 = 0x6d61_6774;

/// Which of a level's members has each slot of its table; made when it is first looked at, for of ten
/// thousand routes most never are. It follows from the rest of the level and its cluster.
#[derive(Debug, Default)]
pub struct Slots(OnceLock<Box<[u16]>>);

/// What is copied is changed, mostly: the copy has a table of its own.
impl Clone for Slots {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Slots {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Slots {}

impl Slots {
    /// The table of a level of this cluster; empty where there is none.
    fn of(&self, cluster: &Cluster, level: &Level) -> &[u16] {
        self.0
            .get_or_init(|| table(cluster, level).unwrap_or_default())
    }
}

/// A member while a table is made.
struct Filling {
    member: u16,
    seed: u64,
    weight: f64,
    /// What it has taken of its weight.
    taken: f64,
    at: usize,
    step: usize,
}

fn table(cluster: &Cluster, level: &Level) -> Option<Box<[u16]>> {
    let count = level.members.len();
    let (_, slots) = SLOTS.iter().find(|(most, _)| count <= *most)?;
    if count < 2 {
        return None;
    }
    let modulus = u64::try_from(*slots).ok()?;
    let below = |draw: u64, modulus: u64| usize::try_from(draw % modulus).unwrap_or_default();
    let mut filling: Vec<Filling> = (0..)
        .zip(&level.members)
        .map(|(member, ix)| {
            let endpoint = cluster.endpoint(*ix);
            let seed = key_of(endpoint.key.0.as_bytes());
            Filling {
                member,
                seed,
                weight: endpoint.weight,
                taken: 0.0,
                at: below(mix(seed, OFFSET_PART), modulus),
                step: 1 + below(mix(seed, STEP_PART), modulus - 1),
            }
        })
        .collect();
    // Where they stand in the list does not matter.
    filling.sort_by_key(|one| one.seed);
    Some(fill(&mut filling, *slots))
}

/// Each in its turn takes the next slot of its own order that is free, as often as it weighs: the heaviest
/// one in every turn. Turns in which one takes nothing are not gone through: with four thousand beside one
/// that weighs as much as all of them they were a hundred million.
fn fill(filling: &mut [Filling], count: usize) -> Box<[u16]> {
    let heaviest = (filling.iter()).map(|one| one.weight).fold(0.0, f64::max);
    let mut slots = vec![None; count];
    let mut left = count;
    // Who takes next, and in which turn: the bits of numbers above 0 are in their order.
    let mut next: BinaryHeap<_> = (0..filling.len())
        .map(|at| Reverse((1.0_f64.to_bits(), at)))
        .collect();
    while left > 0 {
        let Some(Reverse((turn, at))) = next.pop() else {
            break;
        };
        let Some(one) = filling.get_mut(at) else {
            break;
        };
        one.taken += heaviest;
        let following = f64::from_bits(turn) + 1.0;
        let due = (one.taken / one.weight).ceil().max(following);
        next.push(Reverse((due.to_bits(), at)));
        // The step and the number of slots have no divisor in common: it comes by all of them.
        while let Some(slot) = slots.get_mut(one.at) {
            one.at = (one.at + one.step) % count;
            if slot.is_none() {
                *slot = Some(one.member);
                left -= 1;
                break;
            }
        }
    }
    slots.into_iter().map(Option::unwrap_or_default).collect()
}

pub(super) fn pick(candidates: Candidates<'_>, key: u64) -> Option<EndpointIx> {
    let (cluster, level) = (candidates.cluster, candidates.level);
    let slots = level.slots.of(cluster, level);
    let count = slots.len() as u64;
    let first = mix(key, SLOT_PART).checked_rem(count).unwrap_or_default();
    let at = |after: u64| -> Option<EndpointIx> {
        let slot = usize::try_from((first + after) % count).ok()?;
        let member = slots.get(slot)?;
        level.members.get(usize::from(*member)).copied()
    };
    let most = most_worth(candidates);
    let takes = |ix: EndpointIx, after: u64| {
        let of_all = candidates.weight(ix) / cluster.endpoint(ix).weight;
        of_all >= most || fraction(mix(key, after), TAKEN_PART) * most < of_all
    };
    let walked = if count == 0 { 0 } else { WALK_MAX };
    (0..walked)
        .find_map(|after| at(after).filter(|ix| (candidates.usable)(*ix) && takes(*ix, after)))
        // Few are to be had, or there is no table: they are looked for.
        .or_else(|| ring_hash::pick(candidates, key))
}

/// What the most worth of the level's members is worth of what is configured of it.
fn most_worth(candidates: Candidates<'_>) -> f64 {
    if candidates.worths.is_empty() {
        return 1.0;
    }
    let of = |ix: &EndpointIx| {
        let worth = candidates.worths.get(ix.0);
        worth.map_or(0.0, |worth| worth.drawn) / candidates.cluster.endpoint(*ix).weight
    };
    (candidates.level.members.iter())
        .map(of)
        .fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::fixture;
    use crate::shares::{Worth, seeds};
    use crate::snapshot::{Balance, HashOn};

    fn cluster(count: usize) -> Cluster {
        let names = (0..count).map(|n| format!("shop/orders|eu|10.0.0.{n}:80"));
        named(&names.collect::<Vec<_>>())
    }

    fn named(names: &[String]) -> Cluster {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut cluster = fixture::cluster(&[&names]);
        Arc::make_mut(&mut cluster.policy).balance = Balance::Maglev(HashOn::Source);
        cluster
    }

    struct Given<'a> {
        worths: &'a [Worth],
        parts: &'a [f64],
    }

    const ALL: Given<'_> = Given {
        worths: &[],
        parts: &[],
    };

    /// Where each of these keys goes.
    fn homes(
        cluster: &Cluster,
        keys: u64,
        given: &Given<'_>,
        usable: &dyn Fn(EndpointIx) -> bool,
    ) -> Vec<usize> {
        let seeds = seeds(cluster);
        let candidates = Candidates {
            cluster,
            level: &cluster.levels[0],
            worths: given.worths,
            parts: given.parts,
            seeds: &seeds,
            usable,
        };
        let key = |key| key_of(format!("user-{key}").as_bytes());
        (0..keys)
            .map(|nth| pick(candidates, key(nth)).unwrap().0)
            .collect()
    }

    fn of(homes: &[usize], ix: usize) -> usize {
        homes.iter().filter(|home| **home == ix).count()
    }

    /// The slots that each member has.
    fn held(cluster: &Cluster) -> Vec<u32> {
        let level = &cluster.levels[0];
        let mut held = vec![0; level.members.len()];
        for member in level.slots.of(cluster, level) {
            held[usize::from(*member)] += 1;
        }
        held
    }

    proptest! {
        /// What is not to be had moves its own keys alone, and evenly.
        #[test]
        fn a_key_moves_only_with_its_endpoint(count in 2usize..40, gone in any::<prop::sample::Index>()) {
            let cluster = cluster(count);
            let gone = gone.index(count);
            let before = homes(&cluster, 4000, &ALL, &|_| true);
            let after = homes(&cluster, 4000, &ALL, &|ix| ix.0 != gone);
            for (before, after) in before.iter().zip(&after) {
                prop_assert!(before == after || *before == gone);
                prop_assert!(*after != gone);
            }
            let share = 4000 / count;
            let moved = of(&before, gone);
            prop_assert!(moved.abs_diff(share) < 60 + share / 5, "{} of {}", moved, count);
        }

        /// What is no longer configured takes about its own keys; where the others stand in the list
        /// does not matter.
        #[test]
        fn a_table_without_one_is_mostly_as_it_was(count in 3usize..17, gone in any::<prop::sample::Index>()) {
            let cluster = cluster(count);
            let gone = gone.index(count);
            let names: Vec<String> = cluster.endpoints.iter().map(|one| one.key.0.to_string()).collect();
            let mut rest: Vec<String> = names.clone();
            rest.remove(gone);
            rest.reverse();
            let before = homes(&cluster, 4000, &ALL, &|_| true);
            let after = homes(&named(&rest), 4000, &ALL, &|_| true);
            let moved = (before.iter().zip(&after))
                .filter(|(before, after)| **before != gone && names[**before] != rest[**after])
                .count();
            // Maglev is not minimal (§5.3 there): a few of a hundred move besides.
            prop_assert!(moved < 4000 * 8 / 100, "{} of {}", moved, count);
        }

        /// Each has its share of the slots, whatever the others weigh, within 2 % of all of them.
        #[test]
        fn slots_go_by_weight(weights in prop::collection::vec(1u32..100, 2..40)) {
            let mut cluster = cluster(weights.len());
            for (endpoint, weight) in cluster.endpoints.iter_mut().zip(&weights) {
                endpoint.weight = f64::from(*weight);
            }
            let all: u32 = weights.iter().sum();
            let held = held(&cluster);
            let slots: u32 = held.iter().sum();
            for (held, weight) in held.iter().zip(&weights) {
                let (has, wants) = (
                    f64::from(*held) / f64::from(slots),
                    f64::from(*weight) / f64::from(all),
                );
                prop_assert!((has - wants).abs() < 0.02, "{} {}", has, wants);
                prop_assert!(*held > 0);
            }
        }
    }

    /// Turn by turn, as the paper has it.
    fn by_turns(filling: &mut [Filling], count: usize) -> Vec<u16> {
        let heaviest = (filling.iter()).map(|one| one.weight).fold(0.0, f64::max);
        let mut slots = vec![None; count];
        let mut turn = 0.0;
        while slots.contains(&None) {
            turn += 1.0;
            for one in filling.iter_mut() {
                if turn * one.weight < one.taken || !slots.contains(&None) {
                    continue;
                }
                one.taken += heaviest;
                while slots[one.at].is_some() {
                    one.at = (one.at + one.step) % count;
                }
                slots[one.at] = Some(one.member);
                one.at = (one.at + one.step) % count;
            }
        }
        slots.into_iter().flatten().collect()
    }

    #[test]
    fn turns_that_are_not_gone_through_change_nothing() {
        let of = |weights: &[f64]| -> Vec<Filling> {
            (0..)
                .zip(weights)
                .map(|(member, weight)| Filling {
                    member,
                    seed: 0,
                    weight: *weight,
                    taken: 0.0,
                    at: usize::from(member) * 31 % 251,
                    step: 1 + usize::from(member) * 7 % 250,
                })
                .collect()
        };
        for weights in [
            &[1.0, 1.0][..],
            &[1.0, 2.0, 3.0],
            &[100.0, 1.0, 7.0, 3.0],
            &[4096.0, 1.0, 1.0, 1.0, 1.0],
            &[0.5, 0.25, 3.0],
        ] {
            let filled = fill(&mut of(weights), 251);
            assert_eq!(*filled, *by_turns(&mut of(weights), 251), "{weights:?}");
        }
    }

    #[test]
    fn one_that_weighs_as_much_as_all_others_has_half_of_the_slots() {
        let mut cluster = cluster(4_096);
        cluster.endpoints[0].weight = 4_095.0;
        let held = held(&cluster);
        assert!(held[0].abs_diff(65_537 / 2) < 4_096, "{}", held[0]);
        assert!(held.iter().all(|held| *held > 0));
    }

    #[test]
    fn what_is_worth_less_takes_less_and_moves_no_key_of_others() {
        let cluster = cluster(3);
        let whole = homes(&cluster, 9000, &ALL, &|_| true);
        let slowly = Given {
            parts: &[1.0, 0.25, 1.0],
            ..ALL
        };
        let reported = Given {
            worths: &[8.0, 2.0, 8.0].map(Worth::configured),
            ..ALL
        };
        for given in [slowly, reported] {
            let less = homes(&cluster, 9000, &given, &|_| true);
            // A quarter beside two wholes: a ninth.
            assert!(of(&less, 1).abs_diff(1000) < 120, "{}", of(&less, 1));
            let moved = |(before, after): (&usize, &usize)| before == after || *before == 1;
            assert!(whole.iter().zip(&less).all(moved));
        }
        let nothing = Given {
            worths: &[0.0, 0.0, 0.0].map(Worth::configured),
            ..ALL
        };
        let all = homes(&cluster, 900, &nothing, &|_| true);
        assert!((0..3).all(|ix| of(&all, ix) > 200), "none is better");
    }

    #[test]
    fn a_table_is_as_large_as_its_level_needs_and_no_larger() {
        let slots = |count: usize| {
            let cluster = cluster(count);
            held(&cluster).iter().sum::<u32>()
        };
        assert_eq!(slots(1), 0);
        assert_eq!([2, 16].map(slots), [2_039; 2]);
        assert_eq!([17, 256].map(slots), [16_381; 2]);
        assert_eq!([257, 4_096].map(slots), [65_537; 2]);
        assert_eq!(slots(4_097), 0);
        // Each has about as many as the others.
        assert!(
            held(&cluster(4_096))
                .iter()
                .all(|held| (16..=17).contains(held))
        );
    }

    #[test]
    fn with_few_to_be_had_and_without_a_table_one_is_still_found() {
        let of_many = cluster(300);
        let only = homes(&of_many, 200, &ALL, &|ix| ix.0 == 7);
        assert!(only.iter().all(|home| *home == 7));
        let many = cluster(4_097);
        let homes = homes(&many, 20, &ALL, &|_| true);
        assert!(homes.iter().any(|home| *home != 0));
    }

    #[test]
    fn a_table_is_the_same_in_every_gateway_and_made_once() {
        let (one, other) = (cluster(5), cluster(5));
        let level = &one.levels[0];
        let slots = level.slots.of(&one, level);
        assert_eq!(slots, other.levels[0].slots.of(&other, &other.levels[0]));
        assert!(std::ptr::eq(slots, level.slots.of(&one, level)));
        // A copy that is changed has another one.
        let mut copy = one.clone();
        copy.endpoints[0].weight = 3.0;
        assert!(held(&copy)[0] > held(&one)[0]);
    }
}
