//! From one endpoint to the next until one answers, and from one part of a split to the next.

use std::pin::Pin;
use std::rc::Rc;

use http::Response;
use tokio::time::Instant;
use zeugma_core::plan::plan;
use zeugma_core::retry::{Again, RequestLeft, ResponseSeen, Tried, again};
use zeugma_core::shares::ClusterShares;
use zeugma_core::snapshot::{Cluster, EndpointIx, Failure, Role};
use zeugma_core::verdict::Reason;

use super::Exchange;
use super::hedge::Begun;
use super::outcome::{Failed, Tries, TryError, failure_in, is_served};
use crate::capacity;
use crate::http::body::{Held, Outgoing, Source};
use crate::http::stream::Incoming;
use crate::http::turns::Turns;
use crate::upstream::{self, Pinned};

/// Why a request goes on that was not sent to a quiet host, in metrics.
const QUIET: &str = "quiet";

impl Exchange {
    /// Tries one endpoint after the other until one answers; `before` says what other parts of a split
    /// made of it.
    #[expect(
        clippy::too_many_lines,
        reason = "one loop over what is tried, read top to bottom"
    )]
    pub(super) async fn answer(
        mut self: Box<Self>,
        to: &Pinned,
        role: Role,
        source: &Source,
        before: Option<Box<Tries>>,
    ) -> Response<Outgoing> {
        let worker = Rc::clone(&self.context.worker);
        let (cluster, shares) = (to.cluster(), to.published.shares_of(to.cluster));
        self.count(to, shares, before.as_deref());
        let load = |endpoint: EndpointIx| worker.load(cluster, endpoint);
        let mut tries = before.map_or_else(Tries::default, |before| *before);
        let mut give_up = None;
        let planned = plan(cluster, shares, &load, self.draw(cluster));
        let mut turns = Turns::new(&worker.shared, shares, planned);
        while let Some((attempt, patience)) = turns.next() {
            if let Some(before) = &mut tries.failed {
                // What was published since may deny it, or the route that it is led to: whoever polls
                // this sees that only once it waits again.
                if let Some(ending) = self.entry().cut_off() {
                    return self.refuse(ending.reason, None);
                }
                let is_bad = attempt.is_last_resort(shares);
                let is_enough = is_bad && self.needs_no_last_resort(before, to, role);
                let limits = (&mut tries.counted, &mut give_up);
                if is_enough || !self.goes_on(to, before, source, limits) {
                    break;
                }
            }
            if !turns.begins(&attempt) {
                continue;
            }
            tries.attempts += 1;
            let nth = tries.attempts;
            upstream::note_attempt(&worker, cluster, &attempt, nth, &self.context.latest);
            let mut begun = Begun::new(&worker, cluster, attempt, (nth, patience));
            let tried = match self.hedged_after(cluster, &attempt) {
                None => (self.try_endpoint(to, &attempt, (nth, patience), source)).await,
                Some(after) => {
                    let (of, all) = ((to, source), (&mut turns, &mut tries));
                    let tried;
                    (begun, tried) = Box::pin(self.hedge(of, begun, after, all)).await;
                    tried
                }
            };
            let (attempt, began) = (begun.attempt, begun.began);
            let endpoint = cluster.endpoint(attempt.endpoint);
            let now_failed = match tried {
                Err(TryError::Quiet) => {
                    worker.failed(cluster, &endpoint.key, began);
                    (worker.shared.metrics).retried(&cluster.route, QUIET);
                    turns.was_quiet(attempt);
                    continue;
                }
                Err(TryError::Caller) => return self.refuse(Reason::DownstreamClosed, None),
                Err(TryError::Shed(reason)) => {
                    turns.was_not_sent(&attempt);
                    return self.refuse(reason, None);
                }
                Err(TryError::Failed(failed)) => failed,
                Ok((response, stream)) => {
                    let held = Held {
                        in_flight: begun.in_flight,
                        stream,
                        unasked: None,
                    };
                    match failure_in(endpoint, &response, self.upgrade.is_some()) {
                        None => {
                            // Before its outcome, which may be told at once.
                            let asked = self.asked_at.or(began).filter(|_| is_served(&response));
                            worker.answered(cluster, &endpoint.key, began, asked);
                            worker.observe(&endpoint.key, Ok(()));
                            return self.hand_over(to, response, source, held);
                        }
                        Some(failure) => {
                            worker.observe(&endpoint.key, Err(failure));
                            self.failed_by(failure, response, held)
                        }
                    }
                }
            };
            worker.failed(cluster, &endpoint.key, began);
            tries.failed = Some(now_failed.after(tries.failed));
        }
        let may_go_on = |before: &Failed| {
            let tried = self.tried(before.failure, source, tries.counted);
            before.is_paid || self.would_try_again(to, &tried)
        };
        if tries.failed.as_ref().is_none_or(may_go_on)
            && let Some(next) = self.next_part(to, role)
        {
            return self.answer_by(next, role, source, Box::new(tries)).await;
        }
        self.give_up(tries.failed, to, role, source)
    }

    /// As [`answer`](Self::answer), for another part of a split.
    fn answer_by(
        self: Box<Self>,
        to: Pinned,
        role: Role,
        source: &Source,
        before: Box<Tries>,
    ) -> Pin<Box<dyn Future<Output = Response<Outgoing>> + '_>> {
        Box::pin(async move { self.answer(&to, role, source, Some(before)).await })
    }

    /// Counts the request for the budget of its route, [`next_part`](Self::next_part) does for others; and
    /// as offered where it goes first.
    fn count(&self, to: &Pinned, shares: &ClusterShares, before: Option<&Tries>) {
        if before.is_none() {
            capacity::offer(shares);
            let shared = &self.context.worker.shared;
            to.budget().request(shared.time_of(self.began));
        }
    }

    /// What a plan of this cluster draws for the request, and for its copies.
    pub(in crate::http) fn draw(&self, cluster: &Cluster) -> u64 {
        let source = self.context.origin.source.ip();
        (self.context.worker).draw_for(cluster, source, Some(&self.head.headers))
    }

    /// An answer that another endpoint may better.
    fn failed_by(&mut self, failure: Failure, response: Response<Incoming>, held: Held) -> Failed {
        let facts = self.record.facts();
        let to = facts.and_then(|closed| closed.destination.clone());
        Failed::by(failure, response, held, (to, self.ruled().cloned()))
    }

    /// Whether nothing is sent to those that were found bad: one that answers or that may be at work on
    /// it is there, or there are other parts of a split, which come before them.
    fn needs_no_last_resort(&self, before: &Failed, to: &Pinned, role: Role) -> bool {
        !before.failure.is_unseen() || self.has_other_part(to, role)
    }

    /// Whether the request goes to another endpoint after a failure, which is noted then.
    fn goes_on(
        &self,
        to: &Pinned,
        before: &mut Failed,
        source: &Source,
        (counted, give_up): (&mut u32, &mut Option<Instant>),
    ) -> bool {
        if before.is_paid {
            return true;
        }
        let (cluster, failure) = (to.cluster(), before.failure);
        // Nothing else limits attempts that cost an endpoint nothing.
        let now = Instant::now();
        let until = || now + cluster.connect_budget();
        if failure.is_unseen() && now >= *give_up.get_or_insert_with(until) {
            return false;
        }
        match self.may_try_again(to, failure, source, *counted) {
            None => return false,
            Some(Again::Free) => {}
            Some(Again::Counted) => *counted += 1,
        }
        let metrics = &self.context.worker.shared.metrics;
        metrics.retried(&cluster.route, failure.label());
        before.is_paid = true;
        true
    }

    /// Whether the request may be sent once more, and whether that counts against its attempts.
    fn may_try_again(
        &self,
        to: &Pinned,
        failure: Failure,
        source: &Source,
        counted: u32,
    ) -> Option<Again> {
        let tried = self.tried(failure, source, counted);
        let now = self.context.worker.shared.now();
        again(&self.retries(to.cluster()), to.budget(), &tried, now).ok()
    }

    /// A try that failed so.
    fn tried(&self, failure: Failure, source: &Source, counted: u32) -> Tried<'_> {
        Tried {
            failure,
            method: Some(self.method().as_str()),
            counted,
            request: if source.can_repeat() {
                RequestLeft::Whole
            } else {
                RequestLeft::Gone
            },
            response: ResponseSeen::Nothing,
            sender: self.sender(),
        }
    }
}
