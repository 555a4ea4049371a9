//! Holding what is sent to what backends take: every attempt at an endpoint takes of it here, and what
//! finds no room goes elsewhere. What that means stands in the core's `capacity`.
//!
//! Where no capacity is known this is one look at whether it is.

use zeugma_core::mirror::{Dropped, attempts, nothing_to_try};
use zeugma_core::plan::{Attempt, Plan};
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

/// Takes one for an attempt that is made now; whether it is: there is room for it, and a trial is by
/// whoever is first.
pub(crate) fn begins(shared: &Shared, of: &ClusterShares, attempt: &Attempt) -> bool {
    if !take(shared, of, attempt.endpoint) {
        return false;
    }
    let begins = attempt.begins(of);
    if !begins {
        give_back(of, attempt.endpoint);
    }
    begins
}

/// Gives back what was taken for what was not sent.
pub(crate) fn give_back(of: &ClusterShares, ix: EndpointIx) {
    if let Some(metered) = &of.metered {
        metered.give_back(ix);
    }
}

/// The endpoint that gets a copy: to whoever answers it, that is a request too.
///
/// # Errors
/// Why none does.
pub(crate) fn first(
    shared: &Shared,
    of: &ClusterShares,
    plan: Plan<'_>,
) -> Result<Attempt, Dropped> {
    let mut shown = attempts(within(shared, of, plan));
    let first = shown.find(|attempt| take(shared, of, attempt.endpoint));
    first.ok_or_else(|| nothing_to_try(of))
}
