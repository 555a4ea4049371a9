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

    /// The next one, and whether it is waited for there. It is tried if it [`begins`](Self::begins).
    pub(super) fn next(&mut self) -> Option<(Attempt, Patience)> {
        let before = self.planned;
        let next = self.planned.next();
        // Before those that were found bad comes the one that is merely quiet.
        let is_bad = |next: &Attempt| next.is_last_resort(self.shares);
        if next.as_ref().is_none_or(is_bad)
            && let Some(quiet) = self.quiet.take()
        {
            self.planned = before;
            return Some((*quiet, Patience::Here));
        }
        match next {
            None => None,
            // Whether its host is back is what is to be seen.
            Some(next) if next.why == Why::Trial => Some((next, Patience::Here)),
            Some(next) => Some((next, Patience::Elsewhere)),
        }
    }

    /// One to try beside another that is under way: healthy, with room and not asked before. It has
    /// begun.
    pub(super) fn next_beside(&mut self) -> Option<Attempt> {
        loop {
            let before = self.planned;
            let next = self.planned.next()?;
            if next.is_last_resort(self.shares) {
                self.planned = before;
                return None;
            }
            if self.begins(&next) {
                return Some(next);
            }
        }
    }

    /// Where it stands.
    pub(super) const fn place(&self) -> Plan<'a> {
        self.planned
    }

    /// Goes back to where it stood before one that began and was not sent: it may come yet.
    pub(super) fn goes_back(&mut self, before: Plan<'a>, attempt: &Attempt) {
        self.was_not_sent(attempt);
        self.planned = before;
    }

    /// Whether the next one is tried; it takes of what its backend takes then.
    pub(super) fn begins(&self, attempt: &Attempt) -> bool {
        capacity::begins(self.shared, self.shares, attempt)
    }

    /// Notes that nothing was sent there, for its host is quiet.
    pub(super) fn was_quiet(&mut self, attempt: Attempt) {
        self.was_not_sent(&attempt);
        self.quiet.get_or_insert_with(|| Box::new(attempt));
    }

    /// Gives back what one took that began and was not sent.
    pub(super) fn was_not_sent(&self, attempt: &Attempt) {
        capacity::give_back(self.shares, attempt.endpoint);
    }
}
