//! Holding what is sent to what backends take: every attempt at an endpoint takes of it here, and what
//! finds no room goes elsewhere. What that means stands in the core's `capacity`.
//!
//! Where no capacity is known this is one look at whether it is.

use zeugma_core::plan::Plan;
use zeugma_core::shares::ClusterShares;
use zeugma_core::snapshot::EndpointIx;

use crate::runtime::Shared;

/// Counts a request, or a connection of a TCP service, that is offered to a cluster.
pub(crate) fn offer(of: &ClusterShares) {
    if let Some(metered) = &of.metered {
        metered.offered().add(1);
    }
}

/// A plan without what is full at this moment.
pub(crate) fn within<'a>(shared: &Shared, of: &ClusterShares, plan: Plan<'a>) -> Plan<'a> {
    match &of.metered {
        Some(metered) => {
            let full = metered.full(shared.now());
            metered.note(full);
            plan.within(full)
        }
        None => plan,
    }
}

/// Takes one of the capacity of an endpoint's backend; whether there was room for it.
pub(crate) fn take(shared: &Shared, of: &ClusterShares, ix: EndpointIx) -> bool {
    (of.metered.as_ref()).is_none_or(|metered| metered.take(ix, shared.now()))
}
