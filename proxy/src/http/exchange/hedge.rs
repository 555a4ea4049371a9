//! One more endpoint for a request that has waited for long, while the first one is still at it
//! (`retries.hedge`). The first good answer is the caller's; the other try is given up.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use tokio::time::{Instant, sleep_until};
use zeugma_core::plan::{Attempt, Why};
use zeugma_core::retry::{RequestLeft, Stop, could_hedge, hedged_after, take_hedge};
use zeugma_core::snapshot::Cluster;
use zeugma_core::time::Time;

use super::Exchange;
use super::outcome::{Failed, Tries, TryError, failure_in};
use crate::account::Destination;
use crate::http::body::{Held, Progress, Source};
use crate::http::h2_client::StreamCount;
use crate::http::pool::{Lease, Patience};
use crate::http::stream::Incoming;
use crate::http::turns::Turns;
use crate::metrics::Latest;
use crate::runtime::{InFlight, Worker};
use crate::tls::TlsPeer;
use crate::upstream::Pinned;

/// Why an endpoint was asked, in the access log and in metrics.
const WHY: &str = "hedge";

/// What became of a try.
pub(super) type Tried = Result<(Response<Incoming>, Option<StreamCount>), TryError>;

/// A try that has begun.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) attempt: Attempt,
    pub(super) nth: u32,
    pub(super) patience: Patience,
    /// Held while the endpoint is in use.
    pub(super) in_flight: InFlight,
    /// When it began, where that counts.
    pub(super) began: Option<Time>,
}

impl Begun {
    /// A try that begins, which takes a place at its endpoint.
    pub(super) fn new(
        worker: &Worker,
        cluster: &Cluster,
        attempt: Attempt,
        (nth, patience): (u32, Patience),
    ) -> Self {
        let key = &cluster.endpoint(attempt.endpoint).key;
        Self {
            attempt,
            nth,
            patience,
            in_flight: worker.enter(key),
            began: worker.begins(cluster),
        }
    }
}

/// A request, and where it goes.
type Of<'a> = (&'a Pinned, &'a Source);

/// The request for as long as several tries of it are under way in one task: none of them holds it while
/// it waits.
type Shared<'a> = RefCell<&'a mut Exchange>;

/// Whether a try began beside another one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Place {
    #[default]
    First,
    Beside,
}

/// A try under way, and what it has noted so far.
struct Running<F> {
    begun: Begun,
    noted: Rc<Noted>,
    run: Pin<Box<F>>,
}

#[derive(Debug, Default)]
struct Noted {
    place: Place,
    /// When the endpoint was asked, connecting apart.
    asked_at: Cell<Option<Time>>,
    reached: RefCell<Option<Reached>>,
}

/// Where it was sent, and over which connection.
#[derive(Debug)]
struct Reached {
    destination: Rc<Destination>,
    peer: Option<Arc<TlsPeer>>,
    credentials: u64,
}

impl Exchange {
    /// After how long one more endpoint is asked beside this attempt, if one is.
    pub(super) fn hedged_after(&self, cluster: &Cluster, attempt: &Attempt) -> Option<Duration> {
        let retries = &cluster.policy.retries;
        // Mostly none is, and nothing else is looked at.
        retries.hedge_after?;
        // A trial that is given up shows nothing: who is slower than others would never come back.
        if self.upgrade.is_some() || attempt.why == Why::Trial {
            return None;
        }
        hedged_after(retries, self.method().as_str(), self.sender())
    }

    /// Sees a try through, beside which another begins where it takes longer than `after`; returns the
    /// one that decided. What the other one failed by before is told, and noted in `tries`.
    pub(super) async fn hedge(
        &mut self,
        of: Of<'_>,
        first: Begun,
        after: Duration,
        (turns, tries): (&mut Turns<'_>, &mut Tries),
    ) -> (Begun, Tried) {
        let (to, source) = of;
        let shared = RefCell::new(self);
        let oldest = source.next_nth();
        let began = Instant::now();
        let mut first = begin(&shared, of, oldest, first, Place::First);
        let mut timer = std::pin::pin!(sleep_until(began + after));
        let second = loop {
            tokio::select! {
                biased;
                tried = &mut first.run => {
                    return shared.borrow_mut().decided(to, first.end(), tried, tries.attempts);
                }
                () = &mut timer => {}
            }
            match due(source, began, after) {
                Some(due) if due > Instant::now() => timer.as_mut().reset(due),
                Some(_) => break shared.borrow().begin_beside(to, source, turns, tries),
                // It is not kept.
                None => break None,
            }
        };
        let Some(second) = second else {
            let tried = first.run.as_mut().await;
            return shared
                .borrow_mut()
                .decided(to, first.end(), tried, tries.attempts);
        };
        let nth = second.nth;
        let second = begin(&shared, of, oldest, second, Place::Beside);
        let (mut ended, mut tried, mut other) = first.or(second).await;
        let is_final = shared.borrow().is_final(to, &ended.begun, &tried);
        if is_final {
            other.was_given_up(&shared.borrow().context.worker, to.cluster(), nth);
        } else {
            // The other one may still be good.
            let failed = (ended.end(), tried);
            shared.borrow().fails(to, failed, turns, tries);
            tried = other.run.as_mut().await;
            ended = other;
        }
        let exchange = &mut *shared.borrow_mut();
        if ended.begun.nth == nth && tried.is_ok() && exchange.is_final(to, &ended.begun, &tried) {
            let metrics = &exchange.context.worker.shared.metrics;
            metrics.hedged(&to.cluster().route, "won");
        }
        exchange.decided(to, ended.end(), tried, tries.attempts)
    }

    /// Begins one more try, if there may be one, and somewhere to go.
    fn begin_beside(
        &self,
        to: &Pinned,
        source: &Source,
        turns: &mut Turns<'_>,
        tries: &mut Tries,
    ) -> Option<Begun> {
        // What was published since may deny it: whoever polls this sees that only once it waits again.
        if self.entry().cut_off().is_some() {
            return None;
        }
        let (worker, cluster) = (&self.context.worker, to.cluster());
        let (metrics, now) = (&worker.shared.metrics, worker.shared.now());
        let retries = self.retries(cluster);
        let left = if source.is_whole() {
            RequestLeft::Whole
        } else {
            RequestLeft::Gone
        };
        let counted = (tries.counted, left);
        if let Err(stop) = could_hedge(&retries, to.budget(), counted, now) {
            if stop == Stop::Budget {
                metrics.hedged(&cluster.route, "budget");
            }
            return None;
        }
        let before = turns.place();
        let Some(attempt) = turns.next_beside() else {
            metrics.hedged(&cluster.route, "nowhere");
            return None;
        };
        // Another worker may have been first.
        if !take_hedge(&retries, to.budget(), now) {
            turns.goes_back(before, &attempt);
            metrics.hedged(&cluster.route, "budget");
            return None;
        }
        tries.counted += 1;
        tries.attempts += 1;
        let endpoint = cluster.endpoint(attempt.endpoint);
        let (route, backend) = (&cluster.route, &endpoint.backend);
        metrics.attempt(route, backend, attempt.level, WHY, &Latest::default());
        metrics.hedged(route, "sent");
        let which = (tries.attempts, Patience::Elsewhere);
        Some(Begun::new(worker, cluster, attempt, which))
    }

    /// Whether what one try brought is the caller's, whatever another one would bring: an answer that is
    /// none of those that are tried again.
    fn is_final(&self, to: &Pinned, begun: &Begun, tried: &Tried) -> bool {
        match tried {
            Ok((response, _)) => {
                let endpoint = to.cluster().endpoint(begun.attempt.endpoint);
                let failure = failure_in(endpoint, response, false);
                failure.is_none_or(|failure| {
                    !failure.is_unseen() && !self.retries(to.cluster()).on.contains(&failure)
                })
            }
            Err(TryError::Caller) => true,
            Err(TryError::Failed(_) | TryError::Shed(_) | TryError::Quiet) => false,
        }
    }

    /// Notes that a try failed while another is under way.
    fn fails(
        &self,
        to: &Pinned,
        ((begun, noted), tried): ((Begun, Rc<Noted>), Tried),
        turns: &mut Turns<'_>,
        tries: &mut Tries,
    ) {
        let (worker, cluster) = (&self.context.worker, to.cluster());
        let endpoint = cluster.endpoint(begun.attempt.endpoint);
        // It was not sent what is shed.
        if !matches!(tried, Err(TryError::Shed(_) | TryError::Caller)) {
            worker.failed(cluster, &endpoint.key, begun.began);
        }
        let failed = match tried {
            Err(TryError::Failed(failed)) => failed,
            Err(TryError::Quiet) => return turns.was_quiet(begun.attempt),
            Err(TryError::Shed(_)) => return turns.was_not_sent(&begun.attempt),
            Err(TryError::Caller) => return,
            Ok((response, stream)) => {
                let Some(failure) = failure_in(endpoint, &response, false) else {
                    return;
                };
                worker.observe(&endpoint.key, Err(failure));
                let held = Held {
                    in_flight: begun.in_flight,
                    stream,
                    unasked: None,
                };
                let reached = noted.reached.borrow();
                let destination = reached.as_ref().map(|at| Rc::clone(&at.destination));
                Failed::by(
                    failure,
                    response,
                    held,
                    (destination, self.ruled().cloned()),
                )
            }
        };
        tries.failed = Some(failed.after(tries.failed.take()));
    }

    /// Notes again where the try that decided went: the other one has noted where it went since.
    fn decided(
        &mut self,
        to: &Pinned,
        (begun, noted): (Begun, Rc<Noted>),
        tried: Tried,
        attempts: u32,
    ) -> (Begun, Tried) {
        self.asked_at = noted.asked_at.get();
        if let Some(reached) = noted.reached.take() {
            let (peer, credentials) = (reached.peer.as_ref(), Some(reached.credentials));
            self.goes_to(to, &begun.attempt, peer, credentials);
            self.note(|closed, _| *closed.destination = Some(reached.destination));
        }
        self.note(|_, request| request.attempts = attempts);
        (begun, tried)
    }

    /// Notes that it is sent over this connection.
    fn reaches(
        &mut self,
        to: &Pinned,
        (attempt, nth): (&Attempt, u32),
        lease: &Lease,
        noted: &Noted,
    ) {
        let peer = lease.facts.peer.clone();
        let credentials = lease.credentials();
        self.goes_to(to, attempt, peer.as_ref(), Some(credentials));
        let mut destination = lease.facts.destination(to, attempt, nth);
        if noted.place == Place::Beside {
            destination = Rc::new(Destination {
                why: WHY,
                line: Default::default(),
                ..(*destination).clone()
            });
        }
        let told = Rc::clone(&destination);
        self.note(|closed, request| {
            *closed.destination = Some(told);
            request.attempts = request.attempts.max(nth);
        });
        noted.reached.replace(Some(Reached {
            destination,
            peer,
            credentials,
        }));
    }
}

impl<F: Future<Output = Tried>> Running<F> {
    /// Ends it, if it has not ended: the stream is reset, or its connection closed.
    fn end(self) -> (Begun, Rc<Noted>) {
        (self.begun, self.noted)
    }

    /// The one that ends first, and the other.
    async fn or(mut self, mut other: Self) -> (Self, Tried, Self) {
        tokio::select! {
            biased;
            tried = &mut self.run => (self, tried, other),
            tried = &mut other.run => (other, tried, self),
        }
    }

    /// Another one was answered before. That it was given up is no failure of its endpoint; the first
    /// one has taken so long already, and of the `second` nothing is known.
    fn was_given_up(self, worker: &Worker, cluster: &Cluster, second: u32) {
        let (begun, noted) = self.end();
        if begun.nth != second {
            let key = &cluster.endpoint(begun.attempt.endpoint).key;
            worker.answered(cluster, key, begun.began, noted.asked_at.get());
        }
    }
}

/// Begins a try, which may read what is kept of the body as all of them from `oldest` on.
fn begin<'r>(
    shared: &'r Shared<'_>,
    of: Of<'r>,
    oldest: u32,
    begun: Begun,
    place: Place,
) -> Running<impl Future<Output = Tried>> {
    let noted = Rc::new(Noted {
        place,
        ..Noted::default()
    });
    let which = (begun.attempt, begun.nth, begun.patience);
    let run = Box::pin(run(shared, of, oldest, which, Rc::clone(&noted)));
    Running { begun, noted, run }
}

/// As [`Exchange::try_endpoint`], without holding the request while it waits.
async fn run(
    shared: &Shared<'_>,
    (to, source): Of<'_>,
    oldest: u32,
    (attempt, nth, patience): (Attempt, u32, Patience),
    noted: Rc<Noted>,
) -> Tried {
    let context = Rc::clone(&shared.borrow().context);
    let (worker, cluster) = (&context.worker, to.cluster());
    let endpoint = cluster.endpoint(attempt.endpoint);
    let began = if nth == 1 {
        Instant::from_std(shared.borrow().began)
    } else {
        Instant::now()
    };
    let mut stale = 0;
    loop {
        let now = if stale == 0 { began } else { Instant::now() };
        let wanted = shared.borrow().wanted(cluster, endpoint, patience, now);
        let lease = match worker.pool.at_once(worker, to, endpoint, wanted) {
            Some(lease) => lease,
            None => (worker.pool.lease(worker, to, endpoint, wanted).await)
                .map_err(|failure| shared.borrow_mut().unleased(to, &attempt, nth, failure))?,
        };
        noted.asked_at.set(worker.begins(cluster));
        shared
            .borrow_mut()
            .reaches(to, (&attempt, nth), &lease, &noted);
        let is_kept = lease.reused && !lease.is_h2();
        let deadlines = shared.borrow().deadlines(cluster, began);
        let sent = match lease.into_turn() {
            Ok(mut turn) => {
                shared.borrow().begin_turn(endpoint, &mut turn, source);
                source.keeps(oldest);
                let answering = turn.response(worker);
                deadlines.hold(&context, source, answering).await
            }
            Err(place) => {
                let (request, ahead) = shared.borrow().for_stream(endpoint, source);
                source.keeps(oldest);
                let sending = Box::pin(place.send(request, ahead));
                let sent = deadlines.hold(&context, source, sending).await;
                sent.map(|sent| sent.map(|(response, stream)| (response, Some(stream))))
            }
        };
        let unanswered = match sent {
            Ok(Ok(sent)) => return Ok(sent),
            Ok(Err(error)) => Ok(error),
            Err(late) => Err(late),
        };
        let which = (is_kept, stale);
        if let Some(error) = (shared.borrow()).fails_by(unanswered, endpoint, source, which) {
            return Err(error);
        }
        stale += 1;
    }
}

/// When a try that began so has taken so long from the end of the request on, as far as is known;
/// `None` where the request is not kept.
fn due(source: &Source, began: Instant, after: Duration) -> Option<Instant> {
    if !source.can_repeat() {
        return None;
    }
    match source.progress() {
        Progress::Ended(at) => Some(began.max(Instant::from_std(at)) + after),
        Progress::AwaitsCaller(_) | Progress::AwaitsEndpoint(_) => Some(Instant::now() + after),
    }
}
