//! By a key, so that one key goes to one endpoint: weighted rendezvous hashing ("highest random
//! weight", Thaler and Ravishankar, IEEE/ACM ToN 1998; weights by Schindelhauer and Schomaker, SPAA
//! 2005).
//!
//! Each endpoint lies at a distance from the key, drawn by both and divided by its weight; the nearest
//! is picked. What goes takes its own keys with it and no others; what comes, or comes to its weight,
//! takes its share from all others and moves no key among them. It needs no table that would have to
//! be made anew whenever an endpoint's health changes.

use crate::snapshot::EndpointIx;

use super::{Candidates, fraction};

/// Tells the draw of the distance from those of others.
const DISTANCE_PART: u64 = 0x7269_6e67;

pub(super) fn pick(candidates: Candidates<'_>, key: u64) -> Option<EndpointIx> {
    let mut nearest: Option<(EndpointIx, f64)> = None;
    for (ix, weight) in candidates.iter().filter(|(_, weight)| *weight > 0.0) {
        let seed = candidates.seeds.get(ix.0).copied().unwrap_or_default();
        // Above 0 and at most 1, so that the logarithm is finite.
        let point = 1.0 - fraction(key ^ seed, DISTANCE_PART);
        let distance = -point.ln() / weight;
        if nearest.is_none_or(|(_, least)| distance < least) {
            nearest = Some((ix, distance));
        }
    }
    match nearest {
        // None is better than the others: as is configured.
        None if !candidates.worths.is_empty() => pick(
            Candidates {
                worths: &[],
                ..candidates
            },
            key,
        ),
        nearest => nearest.map(|(ix, _)| ix),
    }
}
