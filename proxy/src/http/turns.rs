//! The endpoints that a request is sent to, one after the other.

use zeugma_core::plan::{Attempt, Plan, Why};
use zeugma_core::shares::ClusterShares;

use super::pool::Patience;
use crate::capacity;
use crate::runtime::Shared;

/// A plan, and what of it comes once more.
pub(super) struct Turns<'a> {
    planned: Plan<'a>,
    shared: &'a Shared,
    shares: &'a ClusterShares,
    /// The first whose host was quiet; there rarely is one.
    quiet: Option<Box<Attempt>>,
}

impl<'a> Turns<'a> {
    pub(super) fn new(shared: &'a Shared, shares: &'a ClusterShares, plan: Plan<'a>) -> Self {
        Self {
            planned: capacity::within(shared, shares, plan),
            shared,
            shares,
            quiet: None,
        }
    }

    /// The next one that has room, of which it takes, and whether it is waited for there.
    pub(super) fn next(&mut self) -> Option<(Attempt, Patience)> {
        loop {
            let next = self.planned.next();
            // Before those that were found bad comes the one that is merely quiet.
            let is_bad = |next: &Attempt| next.is_last_resort(self.shares);
            match next.filter(|next| self.quiet.is_none() || !is_bad(next)) {
                None => return Some((*self.quiet.take()?, Patience::Here)),
                Some(next)
                    if !capacity::take(self.shared, self.shares, next.endpoint)
                        || !next.begins(self.shares) => {}
                // Whether its host is back is what is to be seen.
                Some(next) if next.why == Why::Trial => return Some((next, Patience::Here)),
                Some(next) => return Some((next, Patience::Elsewhere)),
            }
        }
    }

    /// Notes that nothing was sent there, for its host is quiet.
    pub(super) fn was_quiet(&mut self, attempt: Attempt) {
        self.quiet.get_or_insert_with(|| Box::new(attempt));
    }
}
