//! The less busy of two drawn by weight ("power of two choices").

use crate::snapshot::EndpointIx;

use super::{Candidates, fraction};

pub(super) fn pick(
    candidates: Candidates<'_>,
    load: &dyn Fn(EndpointIx) -> u32,
    draw: u64,
) -> Option<EndpointIx> {
    let one = candidates.at(fraction(draw, 0))?;
    let others = Candidates {
        usable: &|ix| ix != one && (candidates.usable)(ix),
        ..candidates
    };
    let Some(other) = others.at(fraction(draw, 1)) else {
        return Some(one);
    };
    // An endpoint of twice the weight is as busy with twice the requests.
    let weight = |ix| candidates.weight(ix).max(f64::MIN_POSITIVE);
    let busy = |ix: EndpointIx| f64::from(load(ix)) / weight(ix);
    Some(if busy(other) < busy(one) { other } else { one })
}
