//! One more endpoint beside one that takes long, as `http/exchange/hedge` does it.

use std::time::Duration;

use super::{Played, Tries, World};
use crate::plan::{Attempt, Plan, Why};
use crate::retry::{RequestLeft, Sender, could_hedge, hedged_after, take_hedge};
use crate::shares::ClusterShares;
use crate::snapshot::{Cluster, Failure};

impl World<'_> {
    /// Sees an attempt through, beside which another one begins where it takes long; how it ended, and
    /// after how long.
    pub(super) fn hedge(
        &mut self,
        nth: usize,
        (cluster, of): (&Cluster, &ClusterShares),
        plan: &mut Plan<'_>,
        (tried, first): (&Attempt, &Played),
        tries: &mut Tries,
    ) -> (Result<(), Failure>, Duration) {
        let after = self.hedged_after(nth, cluster, first.took, tries);
        // A trial is seen through.
        let after = after.filter(|_| tried.why != Why::Trial);
        let next = after.and_then(|after| {
            let attempt = self.next_beside(of, plan, tries.weight)?;
            Some((after, attempt))
        });
        let Some((after, attempt)) = next else {
            self.settle(cluster, first);
            return (first.result, first.took);
        };
        self.take_hedge(nth, cluster);
        tries.counted += 1;
        tries.retried += tries.weight;
        let second = self.outcome(nth, cluster, attempt.endpoint, first.after + after);
        let ends = (first.took, after + second.took);
        let first_decides = match (first.result, second.result) {
            (Ok(()), Ok(())) => ends.0 <= ends.1,
            (Ok(()), Err(_)) => true,
            (Err(_), Ok(())) => false,
            // The last word.
            (Err(_), Err(_)) => ends.0 > ends.1,
        };
        let (decides, end) = if first_decides {
            (first, ends.0)
        } else {
            (&second, ends.1)
        };
        self.settle(cluster, decides);
        if !first_decides && ends.0 >= end {
            self.give_up(cluster, first, end, true);
        } else if !first_decides {
            self.settle(cluster, first);
        } else if ends.1 >= end {
            self.give_up(cluster, &second, end.saturating_sub(after), false);
        } else {
            self.settle(cluster, &second);
        }
        (decides.result, end)
    }

    /// After how long another one begins beside an attempt that takes so long.
    fn hedged_after(
        &self,
        nth: usize,
        cluster: &Cluster,
        took: Duration,
        tries: &Tries,
    ) -> Option<Duration> {
        cluster.policy.retries.hedge_after?;
        let (retries, is_http) = self.retries_of(nth, cluster)?;
        let after = hedged_after(&retries, &self.scenario.method, Sender::Caller)?;
        let called = self.services.get(nth).filter(|_| is_http && took > after)?;
        let left = (tries.counted, RequestLeft::Whole);
        let could = could_hedge(&retries, &called.budget, left, self.now);
        could.ok().map(|()| after)
    }

    fn take_hedge(&self, nth: usize, cluster: &Cluster) {
        if let Some((retries, _)) = self.retries_of(nth, cluster)
            && let Some(called) = self.services.get(nth)
        {
            let has_taken = take_hedge(&retries, &called.budget, self.now);
            debug_assert!(has_taken, "there was room");
        }
    }

    fn next_beside(&self, of: &ClusterShares, plan: &mut Plan<'_>, weight: f64) -> Option<Attempt> {
        loop {
            let before = *plan;
            let next = plan.next()?;
            if next.is_last_resort(of) {
                *plan = before;
                return None;
            }
            if self.begins(of, &next, weight) {
                return Some(next);
            }
        }
    }
}
