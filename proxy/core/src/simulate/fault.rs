//! What goes wrong: which endpoints, how, and when.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::balance::{fraction, mix};
use crate::fleet::Evacuation;
use crate::listed::listed;
use crate::locality::Locality;
use crate::snapshot::{Cluster, Endpoint, EndpointKey, Failure, Snapshot};
use crate::time::Time;

use super::text::{self, TextError};

/// When a fault begins and ends where nothing is written: shares of the simulation's length.
const FROM: f64 = 0.1;
const TO: f64 = 0.6;

/// What is wrong with an endpoint, or done to it.
#[derive(Debug, Clone, PartialEq)]
pub enum FaultKind {
    /// Nothing listens.
    Down,
    /// Nothing comes through, and nobody says so.
    Cut,
    /// Up and down by turns of this length, down first.
    Flap(Duration),
    /// It answers so much later.
    Slow(Duration),
    /// This share of its answers is an error.
    Errors(f64),
    /// Its backend takes no more than so many in a second, and the gateway knows: as if it were
    /// configured so, or reported by the peer.
    Capacity(f64),
    /// It is well, and an operator decides.
    Lever(Lever),
}

/// What an operator decides of failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lever {
    /// All traffic is taken off, and let back when the fault ends.
    Evacuate(Evacuation),
    /// An evacuation ends.
    End(Evacuation),
    /// Traffic of this route may come back.
    Reset(Arc<str>),
}

impl FaultKind {
    /// The word in arguments and reports.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Cut => "cut",
            Self::Flap(_) => "flap",
            Self::Slow(_) => "slow",
            Self::Errors(_) => "errors",
            Self::Capacity(_) => "capacity",
            Self::Lever(Lever::Evacuate(_)) => "evacuate",
            Self::Lever(Lever::End(_) | Lever::Reset(_)) => "reset",
        }
    }
}

/// Something that goes wrong for a time.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What.
    pub kind: FaultKind,
    /// As it was written.
    pub what: String,
    /// The endpoints that are hit.
    pub hit: Vec<EndpointKey>,
    /// Of how many.
    pub of: usize,
    /// When it begins.
    pub from: Time,
    /// When it ends; `None`: not in the simulation.
    pub to: Option<Time>,
}

/// Why a text is no fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// A part of it is not what it should be.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A kind that wants a value has none, or one too many.
    #[error("`{text}`: {wants}")]
    Value {
        /// As written.
        text: String,
        /// What should stand there.
        wants: &'static str,
    },
    /// It begins after it ends, or after the simulation.
    #[error("`{0}`: it begins after it ends, or after the simulation")]
    Times(String),
    /// Nothing is called so.
    #[error("no endpoint, backend, peer, cluster or locality is called `{0}`; there are: {1}")]
    Nothing(String, String),
}

impl Fault {
    /// Parses `WHAT[=SHARE[,VALUE]][@FROM[..[TO]]]`, such as `eu/eu-1=60%@10s..40s`.
    ///
    /// WHAT is an endpoint's address, a backend, a peer, a cluster, or a locality or the beginning of
    /// one; the first of these that has endpoints. Of them so many are hit as SHARE says, rounded, at
    /// least one; which is drawn from `seed`. VALUE is how late `slow` answers, how long a turn of
    /// `flap` is, and the share of answers for `errors` (all). For `capacity` it is `WHAT=RATE[@...]`.
    ///
    /// # Errors
    /// As [`FaultError`].
    pub fn parse(
        kind: &str,
        text: &str,
        snapshot: &Snapshot,
        lasts: Duration,
        seed: u64,
    ) -> Result<Self, FaultError> {
        let (body, times) = text
            .split_once('@')
            .map_or((text, None), |(body, times)| (body, Some(times)));
        let (what, values) = body
            .split_once('=')
            .map_or((body, "100%"), |(what, values)| (what, values));
        let (share, value) = values
            .split_once(',')
            .map_or((values, None), |(share, value)| (share, Some(value)));
        let wrong = |wants| FaultError::Value {
            text: text.to_owned(),
            wants,
        };
        // All of a backend takes it together.
        let (share, value) = match kind {
            "capacity" if value.is_some() || !body.contains('=') => {
                return Err(wrong(
                    "write what it takes, such as `=300/s`, and nothing else",
                ));
            }
            "capacity" => (1.0, Some(share)),
            _ => (text::share(share)?, value),
        };
        let kind = match (kind, value) {
            ("capacity", Some(rate)) => FaultKind::Capacity(text::rate(rate)?),
            ("flap", Some(value)) => FaultKind::Flap(text::duration(value)?),
            ("flap", None) => FaultKind::Flap(Duration::from_secs(2)),
            ("slow", Some(value)) => FaultKind::Slow(text::duration(value)?),
            ("slow", None) => return Err(wrong("write how late it is, such as `=50%,3s`")),
            ("errors", Some(value)) => FaultKind::Errors(text::share(value)?),
            ("errors", None) => FaultKind::Errors(1.0),
            ("cut", None) => FaultKind::Cut,
            (_, None) => FaultKind::Down,
            (_, Some(_)) => return Err(wrong("`down` and `cut` have a share and nothing else")),
        };
        if kind == FaultKind::Flap(Duration::ZERO) {
            return Err(wrong("a turn of `flap` is longer than nothing"));
        }
        let (from, to) = match times {
            None => (lasts.mul_f64(FROM), Some(lasts.mul_f64(TO))),
            Some(times) => match times.split_once("..") {
                None | Some((_, "")) => (text::duration(times.trim_end_matches(".."))?, None),
                Some((from, to)) => (text::duration(from)?, Some(text::duration(to)?)),
            },
        };
        if from >= lasts || to.is_some_and(|to| to <= from) {
            return Err(FaultError::Times(text.to_owned()));
        }
        let (hit, of) = choose(select(snapshot, what)?, share, seed);
        Ok(Self {
            kind,
            what: what.to_owned(),
            hit,
            of,
            from: Time::from_origin(from),
            to: to.map(Time::from_origin),
        })
    }

    /// What an operator does at `from`, and at `to` takes back where it is an evacuation.
    #[must_use]
    pub fn lever(lever: Lever, snapshot: &Snapshot, from: Time, to: Option<Time>) -> Self {
        let is_hit = |cluster: &Cluster, endpoint: &Endpoint| match &lever {
            Lever::Evacuate(of) | Lever::End(of) => {
                let peer = endpoint.peer.map(|ix| &*snapshot.peer(ix).name);
                of.covers(cluster, endpoint, peer)
            }
            Lever::Reset(route) => cluster.route == *route,
        };
        let of_cluster = |cluster: &'_ Arc<Cluster>| {
            let hit = cluster.endpoints.iter().filter(|one| is_hit(cluster, one));
            hit.map(|one| one.key.clone()).collect::<Vec<_>>()
        };
        let hit: BTreeSet<EndpointKey> = snapshot.clusters.iter().flat_map(of_cluster).collect();
        let what = match &lever {
            Lever::Evacuate(of) | Lever::End(of) => of.to_string(),
            Lever::Reset(route) => route.to_string(),
        };
        Self {
            kind: FaultKind::Lever(lever),
            what,
            of: hit.len(),
            hit: hit.into_iter().collect(),
            from,
            to,
        }
    }

    /// What the backends of its endpoints take in a second at a time; `None` where it says nothing of that.
    #[must_use]
    pub fn capacity(&self, now: Time) -> Option<f64> {
        match &self.kind {
            FaultKind::Capacity(most) => self.is_on(now).then_some(*most),
            FaultKind::Down
            | FaultKind::Cut
            | FaultKind::Flap(_)
            | FaultKind::Slow(_)
            | FaultKind::Errors(_)
            | FaultKind::Lever(_) => None,
        }
    }

    fn is_on(&self, now: Time) -> bool {
        self.from <= now && self.to.is_none_or(|to| now < to)
    }

    /// What it makes of its endpoints at a time; `None` where it is not there.
    #[must_use]
    pub fn truth(&self, now: Time) -> Option<Truth> {
        let truth = match &self.kind {
            FaultKind::Down => Truth::Down,
            FaultKind::Cut => Truth::Cut,
            FaultKind::Slow(by) => Truth::Slow(*by),
            FaultKind::Errors(share) => Truth::Errors(*share),
            FaultKind::Flap(turn) => Truth::Flapping {
                turn: *turn,
                from: self.from,
            },
            FaultKind::Lever(_) | FaultKind::Capacity(_) => return None,
        };
        self.is_on(now).then_some(truth)
    }
}

/// The endpoints that are called so, each once, in the order of their keys.
fn select(snapshot: &Snapshot, what: &str) -> Result<Vec<EndpointKey>, FaultError> {
    type Is<'a> = &'a dyn Fn(&Endpoint) -> bool;
    let peer = |endpoint: &Endpoint| endpoint.peer.map(|ix| snapshot.peer(ix));
    let is_address = |endpoint: &Endpoint| endpoint.address.to_string() == what;
    let is_backend = |endpoint: &Endpoint| *endpoint.backend == *what;
    let is_peer = |endpoint: &Endpoint| peer(endpoint).is_some_and(|peer| *peer.name == *what);
    let is_cluster = |endpoint: &Endpoint| {
        let cluster = peer(endpoint).map_or(&snapshot.node.cluster, |peer| &peer.cluster);
        **cluster == *what
    };
    let is_there = |endpoint: &Endpoint| is_within(&endpoint.locality, what);
    let kinds: [Is<'_>; 5] = [&is_address, &is_backend, &is_peer, &is_cluster, &is_there];
    let endpoints = || (snapshot.clusters.iter()).flat_map(|cluster| &cluster.endpoints);
    for is in kinds {
        let found: BTreeSet<EndpointKey> = endpoints()
            .filter(|endpoint| is(endpoint))
            .map(|endpoint| endpoint.key.clone())
            .collect();
        if !found.is_empty() {
            return Ok(found.into_iter().collect());
        }
    }
    let known: BTreeSet<Arc<str>> = endpoints()
        .flat_map(|endpoint| {
            [
                Arc::clone(&endpoint.backend),
                endpoint.locality.to_string().into(),
            ]
        })
        .collect();
    let known: Vec<Arc<str>> = known.into_iter().collect();
    Err(FaultError::Nothing(what.to_owned(), listed(&known)))
}

/// Whether `what` is a locality that holds this one: its beginning, up to a border.
fn is_within(locality: &Locality, what: &str) -> bool {
    let parts = [&locality.region, &locality.zone, &locality.subzone];
    let mut parts = parts.into_iter();
    what.split('/')
        .all(|wanted| parts.next().is_some_and(|part| **part == *wanted))
}

/// A share of them, rounded, at least one of several; and how many there are.
fn choose(mut keys: Vec<EndpointKey>, share: f64, seed: u64) -> (Vec<EndpointKey>, usize) {
    let of = keys.len();
    let wanted = (of as f64 * share).round();
    let wanted = if share > 0.0 { wanted.max(1.0) } else { 0.0 };
    // By a number of each key's own, so that the same ones are hit whatever else there is.
    keys.sort_by_cached_key(|key| {
        (key.0.bytes()).fold(mix(seed, 0), |sum, byte| mix(sum, u64::from(byte)))
    });
    let count = (0..of).take_while(|nth| (*nth as f64) < wanted).count();
    keys.truncate(count);
    (keys, of)
}

/// How an endpoint really is.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Truth {
    /// It answers at once.
    #[default]
    Up,
    /// Nothing listens.
    Down,
    /// Whoever connects it waits until its deadline.
    Cut,
    /// This share of answers is an error.
    Errors(f64),
    /// It answers so much later.
    Slow(Duration),
    /// Down and up by turns.
    Flapping {
        /// How long one is.
        turn: Duration,
        /// When the first began, in which it is down.
        from: Time,
    },
}

/// How long the parts of an attempt may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// To connect.
    pub connect: Duration,
    /// To answer; where nobody waits for an answer, as long as there is.
    pub answer: Duration,
}

impl Truth {
    /// How an attempt that begins at `now` ends, and after how long. `error` is what the protocol has
    /// for an answer that is none.
    pub fn attempt(
        self,
        now: Time,
        deadlines: Deadlines,
        error: Failure,
        draw: u64,
    ) -> (Result<(), Failure>, Duration) {
        let limit = deadlines.answer;
        match self {
            Self::Up => (Ok(()), Duration::ZERO),
            Self::Down => (Err(Failure::Connect), Duration::ZERO),
            Self::Cut => (Err(Failure::Connect), deadlines.connect),
            Self::Errors(share) if fraction(draw, 0) < share => (Err(error), Duration::ZERO),
            Self::Errors(_) => (Ok(()), Duration::ZERO),
            Self::Slow(by) if by > limit => (Err(Failure::Timeout), limit),
            Self::Slow(by) => (Ok(()), by),
            Self::Flapping { turn, from } => {
                let turn = turn.as_nanos().max(1);
                if (now.since(from).as_nanos() / turn).is_multiple_of(2) {
                    (Err(Failure::Connect), Duration::ZERO)
                } else {
                    (Ok(()), Duration::ZERO)
                }
            }
        }
    }
}
