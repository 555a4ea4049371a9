//! The less busy of two drawn by weight ("power of two choices").

use crate::snapshot::EndpointIx;

use super::{Candidates, fraction};

pub(super) fn pick(
    candidates: Candidates<'_>,
    load: &dyn Fn(EndpointIx) -> u32,
    draw: u64,
) -> Option<EndpointIx> {
    let total = candidates.total();
    let one = candidates.at_of(total, fraction(draw, 0), None)?;
    // An endpoint of twice the weight is as busy with twice the requests.
    let weight = |ix| candidates.weight(ix).max(f64::MIN_POSITIVE);
    let of_one = candidates.weight(one);
    let rest = if total > 0.0 { total - of_one } else { total };
    if total > 0.0 && rest <= f64::EPSILON {
        // What weighs nothing at this time, as a gateway that leaves does, is nobody's second choice.
        return Some(one);
    }
    let Some(other) = candidates.at_of(rest, fraction(draw, 1), Some(one)) else {
        return Some(one);
    };
    let busy = |ix: EndpointIx| f64::from(load(ix)) / weight(ix);
    Some(if busy(other) < busy(one) { other } else { one })
}
