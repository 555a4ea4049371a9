//! Callers that go on calling, and what became of their requests.

use std::net::SocketAddr;
use std::time::Duration;

use http::header;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, interval_at};

use crate::data_client::{Answer, Client, Wire};
use crate::data_services::AnyBody;
use crate::mesh::within;

/// Callers under way.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    answered: watch::Sender<usize>,
    callers: JoinSet<Tally>,
}

/// What became of requests.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) answered: usize,
    /// What callers saw instead of an answer, or answers over 299.
    pub(crate) lost: Vec<String>,
    /// Callers that found nobody listening any more.
    pub(crate) turned_away: usize,
}

/// What to call.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    pub(crate) address: SocketAddr,
    pub(crate) wire: Wire,
    pub(crate) method: &'static str,
    pub(crate) host: &'static str,
    pub(crate) path: &'static str,
    /// Each caller begins one request in this time.
    pub(crate) every: Duration,
}

impl Load {
    /// All callers call at the same times.
    pub(crate) fn start(callers: usize, calls: &Calls) -> Self {
        Self::with(vec![Duration::ZERO; callers], calls)
    }

    /// They call one after the other.
    pub(crate) fn spread(callers: u32, calls: &Calls) -> Self {
        let after = |nth| calls.every * nth / callers;
        Self::with((0..callers).map(after).collect(), calls)
    }

    fn with(first: Vec<Duration>, calls: &Calls) -> Self {
        let mut this = Self {
            stop: watch::Sender::new(false),
            answered: watch::Sender::new(0),
            callers: JoinSet::new(),
        };
        for first in first {
            let (stop, answered) = (this.stop.subscribe(), this.answered.clone());
            let ticks = interval_at(Instant::now() + first, calls.every);
            this.callers
                .spawn(call(calls.clone(), ticks, stop, answered));
        }
        this
    }

    /// Waits for this many more answers.
    pub(crate) async fn goes_on(&self, more: usize) {
        let mut answered = self.answered.subscribe();
        let from = *answered.borrow();
        let waiting = answered.wait_for(|now| *now >= from + more);
        drop(within("answers to the load", waiting).await.unwrap());
    }

    /// Ends it after the requests that are under way.
    pub(crate) async fn end(self) -> Tally {
        self.stop.send_replace(true);
        self.ended().await
    }

    /// Waits until every caller ended by itself, which it does when nobody listens any more.
    pub(crate) async fn ended(mut self) -> Tally {
        let mut all = Tally::default();
        while let Some(one) = within("the callers' end", self.callers.join_next()).await {
            let one = one.unwrap();
            all.answered += one.answered;
            all.turned_away += one.turned_away;
            all.lost.extend(one.lost);
        }
        all
    }
}

async fn call(
    calls: Calls,
    mut ticks: Interval,
    stop: watch::Receiver<bool>,
    answered: watch::Sender<usize>,
) -> Tally {
    let mut tally = Tally::default();
    let mut client = None;
    while !*stop.borrow() {
        ticks.tick().await;
        match once(&calls, &mut client).await {
            Ok(Some(answer)) if answer.status.is_success() => {
                tally.answered += 1;
                answered.send_modify(|count| *count += 1);
            }
            Ok(Some(answer)) => tally
                .lost
                .push(format!("{} {}", answer.status, answer.text())),
            Ok(None) => {
                tally.turned_away += 1;
                break;
            }
            Err(error) => tally.lost.push(format!("{error:#}")),
        }
    }
    tally
}

/// One request, on the connection that is there; `None` if nobody listens.
async fn once(calls: &Calls, kept: &mut Option<Client>) -> anyhow::Result<Option<Answer>> {
    loop {
        let (mut client, is_kept) = match kept.take() {
            Some(client) => (client, true),
            None => match Client::connect(calls.address, &calls.wire).await {
                Ok(client) => (client, false),
                Err(_refused) => return Ok(None),
            },
        };
        let head = client.head(calls.method, calls.host, calls.path);
        match client.send(head.body(AnyBody::empty())?).await {
            Ok(answer) => {
                let closes = answer.headers.get(header::CONNECTION);
                if closes.is_none_or(|value| value != "close") {
                    *kept = Some(client);
                }
                return Ok(Some(answer));
            }
            // The gateway closed a kept connection before it saw the request (RFC 9112 §9.3.1).
            Err(error) if is_kept && was_closed(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

fn was_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<hyper::Error>().is_some_and(|error| {
        error.is_closed() || error.is_canceled() || error.is_incomplete_message()
    })
}
