//! Drawn by weight.

use crate::snapshot::EndpointIx;

use super::{Candidates, fraction};

pub(super) fn pick(candidates: Candidates<'_>, draw: u64) -> Option<EndpointIx> {
    candidates.at(fraction(draw, 0))
}
