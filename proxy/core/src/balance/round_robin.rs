//! In turn, by weight.

use crate::snapshot::EndpointIx;

use super::Candidates;

/// 2^64 / the golden ratio: multiples of it, cut to 64 bits, fall more evenly than any others.
const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// With equal weights in strict turn; else turn n lies at n times the golden ratio on the circle of
/// weights, which keeps every endpoint within a few turns of its weight without any state.
pub(super) fn pick(candidates: Candidates<'_>, turn: u64) -> Option<EndpointIx> {
    let (_, first) = candidates.iter().next()?;
    if candidates.iter().all(|(_, weight)| weight == first) {
        let count = u64::try_from(candidates.iter().count()).ok()?;
        let at = usize::try_from(turn % count).ok()?;
        return candidates.iter().nth(at).map(|(ix, _)| ix);
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "53 bits fit the mantissa exactly"
    )]
    let point = (turn.wrapping_mul(STRIDE) >> 11) as f64 / (1u64 << 53) as f64;
    candidates.at(point)
}
