//! What happened to the gateway, kept for a while and told to whoever listens.
//!
//! ```text
//! control thread --add--> [the last EVENTS_MAX] --since--> /api/v1/failovers
//!           `--wakes--> each listener --after what it saw--> /api/v1/events (SSE)
//! ```
//!
//! A listener that does not keep up is told how many events it missed. One that comes back asks with
//! the number of the last event that it saw, and gets what came after it as far as that is kept.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use zeugma_core::fleet::{FleetEvent, Said};
use zeugma_core::shares::Counts;
use zeugma_core::snapshot::{EndpointKey, WhenStale};

/// Events that are kept.
pub(crate) const EVENTS_MAX: usize = 1024;
/// Listeners at once.
pub(crate) const LISTENERS_MAX: usize = 16;
/// Events that one listener takes at once.
const TAKEN_MAX: usize = 256;
/// Causes that one move of traffic names.
const CAUSES_MAX: usize = 8;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Its number, from 1; it never falls while the process lives.
    pub(crate) nth: u64,
    /// When, RFC 3339.
    pub(crate) at: String,
    /// What, in a word with `-`.
    pub(crate) kind: &'static str,
    /// The rest, by kind.
    pub(crate) data: Value,
}

impl Event {
    /// As programs read it.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "nth": self.nth,
            "at": self.at,
            "kind": self.kind,
            "code": self.code(),
            "data": self.data,
        })
    }

    /// The code of what the log says of the same.
    fn code(&self) -> Option<&'static str> {
        let code = match self.kind {
            "ready" => "ZG0901",
            "drain-begun" | "draining" => "ZG0902",
            "configuration-applied" => "ZG0120",
            "endpoint-ejected" => "ZG0421",
            "endpoint-readmitted" => "ZG0422",
            "endpoint-unhealthy" => "ZG0423",
            "endpoint-healthy" => "ZG0424",
            "endpoint-reported" if self.data.get("empty").is_some_and(|empty| empty == true) => {
                "ZG0428"
            }
            "endpoint-reported" => "ZG0429",
            "peer-report-stale" => "ZG0430",
            "fails-alike" => "ZG0425",
            "waits-for-reset" => "ZG0436",
            "shares-moved" => "ZG0426",
            "lever" => match self.data.get("lever").and_then(Value::as_str) {
                Some("logging") => "ZG0967",
                Some("evacuate") => "ZG0440",
                Some("reset") => "ZG0441",
                Some("drill") => "ZG0450",
                Some("drill-over") => "ZG0451",
                Some(_) | None => "ZG0902",
            },
            _ => return None,
        };
        Some(code)
    }
}

/// The last move of a cluster's traffic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Move {
    /// When, RFC 3339.
    pub(crate) at: String,
    /// Why, for people.
    pub(crate) causes: Vec<String>,
}

/// What happened, the last of it.
#[derive(Debug, Default)]
pub(crate) struct Journal(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    last: u64,
    events: VecDeque<Arc<Event>>,
    listeners: Vec<mpsc::Sender<()>>,
    moves: BTreeMap<Arc<str>, Move>,
    is_closed: bool,
}

/// A listener's part of the journal.
#[derive(Debug)]
pub(crate) struct Listening {
    /// The last event that it knows of.
    pub(crate) seen: u64,
    /// Told that there is more; ends with the gateway.
    pub(crate) woken: mpsc::Receiver<()>,
}

/// What comes next for a listener.
#[derive(Debug, Default)]
pub(crate) struct Next {
    /// Events that are not kept any more, before the others.
    pub(crate) missed: u64,
    /// The next of them.
    pub(crate) events: VecDeque<Arc<Event>>,
}

impl Journal {
    /// Notes something that happened just now.
    pub(crate) fn add(&self, kind: &'static str, data: Value) {
        let at = now();
        self.kept().add(at, kind, data);
    }

    /// Notes what the fleet tells, in one batch: what happened to endpoints is the cause of what moved.
    ///
    /// `because` is the cause where it is something else, such as another configuration.
    pub(crate) fn add_fleet(&self, events: &[FleetEvent], because: Option<&str>) {
        if events.is_empty() {
            return;
        }
        let at = now();
        let mut causes: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for event in events {
            if let Some((route, cause)) = cause_of(event) {
                let causes = causes.entry(route).or_default();
                if causes.len() < CAUSES_MAX {
                    causes.push(cause);
                }
            }
        }
        let mut kept = self.kept();
        for event in events {
            if let FleetEvent::Reported { turned: false, .. } = event {
                // It is told where it is the cause of a move, and may change many times a second.
                continue;
            }
            let FleetEvent::SharesMoved { cluster, route, .. } = event else {
                let (kind, data) = told(event, &[]);
                kept.add(at.clone(), kind, data);
                continue;
            };
            let causes = causes.get(&**route).cloned().unwrap_or_else(|| {
                let by_time = "by the clock: hold, failback or ramp";
                vec![because.unwrap_or(by_time).to_owned()]
            });
            let (kind, data) = told(event, &causes);
            let at = at.clone();
            kept.moves.insert(
                Arc::clone(cluster),
                Move {
                    at: at.clone(),
                    causes,
                },
            );
            kept.add(at, kind, data);
        }
    }

    /// What comes after event `seen`, at most [`TAKEN_MAX`] of it.
    pub(crate) fn after(&self, seen: u64) -> Next {
        let kept = self.kept();
        let first = kept.first();
        let skip = (seen + 1).saturating_sub(first);
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        Next {
            missed: first.saturating_sub(seen + 1),
            events: (kept.events.iter().skip(skip))
                .take(TAKEN_MAX)
                .cloned()
                .collect(),
        }
    }

    /// Whether any traffic has moved.
    pub(crate) fn has_moves(&self) -> bool {
        !self.kept().moves.is_empty()
    }

    /// Forgets the moves of clusters that are gone.
    pub(crate) fn keep_moves(&self, is_there: impl Fn(&str) -> bool) {
        self.kept().moves.retain(|cluster, _| is_there(cluster));
    }

    /// When and why the traffic of a cluster moved last.
    pub(crate) fn moved(&self, cluster: &str) -> Option<Move> {
        self.kept().moves.get(cluster).cloned()
    }

    /// What is kept of what came after event `nth`, oldest first.
    pub(crate) fn since(&self, nth: u64) -> Vec<Arc<Event>> {
        let kept = self.kept();
        let after = kept.events.iter().filter(|event| event.nth > nth);
        after.cloned().collect()
    }

    /// Listens to what happens after event `nth`, or to all that is kept; `None` once the gateway ends, or where
    /// [`LISTENERS_MAX`] listen.
    pub(crate) fn listen(&self, nth: Option<u64>) -> Option<Listening> {
        let mut kept = self.kept();
        kept.listeners.retain(|listener| !listener.is_closed());
        if kept.is_closed || kept.listeners.len() >= LISTENERS_MAX {
            return None;
        }
        // That there is more is said once.
        let (listener, woken) = mpsc::channel(1);
        kept.listeners.push(listener);
        // A number that was not given out yet is another process's: all of this one's is news.
        let nth = nth.filter(|nth| *nth <= kept.last);
        let seen = nth.unwrap_or_else(|| kept.first().saturating_sub(1));
        Some(Listening { seen, woken })
    }

    /// Ends every listener, and lets none begin.
    pub(crate) fn close(&self) {
        let mut kept = self.kept();
        kept.is_closed = true;
        kept.listeners.clear();
    }

    /// A lock is held to move pointers alone: nobody fails meanwhile.
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, at: String, kind: &'static str, data: Value) {
        self.last += 1;
        let event = Arc::new(Event {
            nth: self.last,
            at,
            kind,
            data,
        });
        if self.events.len() >= EVENTS_MAX {
            self.events.pop_front();
        }
        self.events.push_back(event);
        self.listeners.retain(|listener| {
            // One that was woken and has not looked yet finds this as well.
            !matches!(listener.try_send(()), Err(TrySendError::Closed(())))
        });
    }

    /// The number of the first event that is kept, or will be.
    fn first(&self) -> u64 {
        self.events.front().map_or(self.last + 1, |event| event.nth)
    }
}

/// This moment, RFC 3339.
pub(crate) fn now() -> String {
    let now = OffsetDateTime::now_utc();
    // It fails for years beyond 9999 alone.
    (now.replace_millisecond(now.millisecond()).unwrap_or(now))
        .format(&Rfc3339)
        .unwrap_or_default()
}

/// What an event of an endpoint is to the traffic of its route.
fn cause_of(event: &FleetEvent) -> Option<(&str, String)> {
    let (key, what) = match event {
        FleetEvent::Ejected { key, cause, .. } => (key, format!("ejected: {}", cause.label())),
        FleetEvent::Readmitted { key } => (key, "readmitted".to_owned()),
        FleetEvent::Unhealthy { key } => (key, "fails its active check".to_owned()),
        FleetEvent::Healthy { key } => (key, "passes its active check".to_owned()),
        FleetEvent::Reported { key, said, .. } => (key, said_text(*said)),
        FleetEvent::FailsAlike { .. }
        | FleetEvent::WaitsForReset { .. }
        | FleetEvent::SharesMoved { .. }
        | FleetEvent::ReportStale { .. }
        | _ => return None,
    };
    Some((route_of(key), format!("{} {what}", endpoint(key))))
}

/// What a peer's gateway says, behind its name.
fn said_text(said: Said) -> String {
    match said {
        Said::Healthy(Counts { healthy, total }) => {
            format!("reports {healthy} of {total} healthy")
        }
        Said::Leaving => "reports that it is on its way out".to_owned(),
        Said::Gone => "is gone, as it reported it would be".to_owned(),
        Said::Nothing => "reports nothing any more".to_owned(),
    }
}

/// An endpoint as people know it: its backend and address, without the route and its TLS.
fn endpoint(key: &EndpointKey) -> String {
    let mut parts = key.0.split('|').skip(1);
    match (parts.next(), parts.next()) {
        (Some(backend), Some(address)) => format!("{backend} {address}"),
        _ => key.0.to_string(),
    }
}

fn of_level(route: &str, level: &str) -> Value {
    json!({ "route": route, "level": level })
}

fn told(event: &FleetEvent, causes: &[String]) -> (&'static str, Value) {
    match event {
        FleetEvent::Ejected { key, cause, lasts } => (
            "endpoint-ejected",
            json!({
                "endpoint": endpoint(key),
                "route": route_of(key),
                "cause": cause.label(),
                "seconds": lasts.as_secs_f64(),
            }),
        ),
        FleetEvent::Readmitted { key } => ("endpoint-readmitted", of_endpoint(key)),
        FleetEvent::Unhealthy { key } => ("endpoint-unhealthy", of_endpoint(key)),
        FleetEvent::Healthy { key } => ("endpoint-healthy", of_endpoint(key)),
        FleetEvent::Reported {
            key, peer, said, ..
        } => {
            let counts = match said {
                Said::Healthy(counts) => Some(counts),
                Said::Leaving | Said::Gone | Said::Nothing => None,
            };
            let is_empty = match said {
                Said::Healthy(counts) => counts.healthy == 0,
                Said::Gone => true,
                Said::Leaving | Said::Nothing => false,
            };
            (
                "endpoint-reported",
                json!({
                    "endpoint": endpoint(key),
                    "route": route_of(key),
                    "peer": &**peer,
                    "cause": said_text(*said),
                    "empty": is_empty,
                    "healthy": counts.map(|counts| counts.healthy),
                    "total": counts.map(|counts| counts.total),
                }),
            )
        }
        FleetEvent::ReportStale {
            peer,
            gateway,
            when_stale,
        } => (
            "peer-report-stale",
            json!({
                "peer": &**peer,
                "gateway": gateway.to_string(),
                "held": *when_stale == WhenStale::Hold,
            }),
        ),
        FleetEvent::WaitsForReset { route, level, .. } => {
            ("waits-for-reset", of_level(route, level))
        }
        FleetEvent::FailsAlike { route } => ("fails-alike", json!({ "route": &**route })),
        FleetEvent::SharesMoved {
            cluster,
            route,
            levels,
            too_few,
            moving,
        } => {
            let levels: Vec<Value> = (levels.iter())
                .map(|(name, before, now)| json!({ "name": &**name, "before": before, "now": now }))
                .collect();
            (
                "shares-moved",
                json!({
                    "cluster": &**cluster,
                    "route": &**route,
                    "levels": levels,
                    "too_few": too_few,
                    "moving": moving,
                    "causes": causes,
                }),
            )
        }
        other => ("health", json!({ "text": format!("{other:?}") })),
    }
}

fn of_endpoint(key: &EndpointKey) -> Value {
    json!({ "endpoint": endpoint(key), "route": route_of(key) })
}

fn route_of(key: &EndpointKey) -> &str {
    key.0.split('|').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use zeugma_core::outlier::EjectCause;

    use super::*;

    fn moved(route: &str) -> FleetEvent {
        FleetEvent::SharesMoved {
            cluster: format!("{route}:80").into(),
            route: route.into(),
            levels: vec![("eu".into(), 1.0, 0.0), ("us".into(), 0.0, 1.0)],
            too_few: false,
            moving: false,
        }
    }

    fn ejected(route: &str) -> FleetEvent {
        FleetEvent::Ejected {
            key: EndpointKey(format!("{route}|eu-1|10.0.0.1:80|none").into()),
            cause: EjectCause::Consecutive,
            lasts: Duration::from_secs(30),
        }
    }

    #[test]
    fn a_move_names_what_happened_to_the_endpoints_of_its_route_alone() {
        let journal = Journal::default();
        let events = [
            ejected("shop/orders"),
            ejected("shop/orders-canary"),
            moved("shop/orders"),
            moved("shop/cart"),
        ];
        journal.add_fleet(&events, Some("configuration 7"));
        let moves = |cluster: &str| journal.moved(cluster).unwrap().causes;
        assert_eq!(
            moves("shop/orders:80"),
            ["eu-1 10.0.0.1:80 ejected: consecutive"]
        );
        assert_eq!(moves("shop/cart:80"), ["configuration 7"]);
        let told = journal.since(2);
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].data["causes"][0], moves("shop/orders:80")[0]);
        let codes: Vec<_> = (journal.since(0).iter())
            .map(|event| event.to_json()["code"].clone())
            .collect();
        assert_eq!(codes, ["ZG0421", "ZG0421", "ZG0426", "ZG0426"]);
        journal.keep_moves(|cluster| cluster == "shop/cart:80");
        assert_eq!(journal.moved("shop/orders:80"), None);
    }

    #[test]
    fn a_report_that_turns_nothing_is_told_as_a_cause_alone() {
        let reported = |healthy, turned| FleetEvent::Reported {
            key: EndpointKey("shop/orders|west|192.0.2.1:15443|tls".into()),
            peer: "west".into(),
            said: Said::Healthy(Counts { healthy, total: 3 }),
            turned,
        };
        let journal = Journal::default();
        journal.add_fleet(&[reported(2, false), moved("shop/orders")], None);
        journal.add_fleet(&[reported(0, true)], None);
        journal.add_fleet(&[reported(1, false)], None);
        let told = journal.since(0);
        let kinds: Vec<_> = told.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, ["shares-moved", "endpoint-reported"]);
        let cause = "west 192.0.2.1:15443 reports 2 of 3 healthy";
        assert_eq!(told[0].data["causes"][0], cause);
        assert_eq!(told[1].to_json()["code"], "ZG0428");
        assert_eq!(told[1].data["healthy"], 0);
    }

    #[test]
    fn the_oldest_events_are_forgotten_and_numbers_go_on() {
        let journal = Journal::default();
        for nth in 0..=EVENTS_MAX {
            journal.add("ready", json!(nth));
        }
        let kept = journal.since(0);
        assert_eq!(kept.len(), EVENTS_MAX);
        assert_eq!(kept.first().unwrap().nth, 2);
        assert_eq!(kept.last().unwrap().nth, EVENTS_MAX as u64 + 1);
    }

    #[test]
    fn a_listener_gets_what_it_missed_and_then_what_happens() {
        let journal = Journal::default();
        journal.add("ready", json!(1));
        journal.add("ready", json!(2));
        let mut listening = journal.listen(Some(1)).unwrap();
        let numbers = |seen: u64| -> Vec<u64> {
            let next = journal.after(seen);
            assert_eq!(next.missed, 0);
            next.events.iter().map(|event| event.nth).collect()
        };
        assert_eq!(numbers(listening.seen), [2]);
        assert!(listening.woken.try_recv().is_err(), "nothing is new");
        journal.add("ready", json!(3));
        assert!(listening.woken.try_recv().is_ok());
        assert_eq!(numbers(2), [3]);
        let of_another_process = journal.listen(Some(500)).unwrap();
        assert_eq!(numbers(of_another_process.seen), [1, 2, 3]);
    }

    #[test]
    fn a_batch_reaches_every_listener_and_the_slow_one_is_told_what_it_missed() {
        let journal = Journal::default();
        let (mut quick, slow) = (journal.listen(None).unwrap(), journal.listen(None).unwrap());
        let count = 2 * TAKEN_MAX + 1;
        for nth in 0..count {
            journal.add("ready", json!(nth));
        }
        assert!(quick.woken.try_recv().is_ok());
        let mut seen = quick.seen;
        let mut taken = Vec::new();
        loop {
            let next = journal.after(seen);
            assert_eq!(next.missed, 0);
            let Some(last) = next.events.back() else {
                break;
            };
            seen = last.nth;
            taken.push(next.events.len());
        }
        assert_eq!(taken, [TAKEN_MAX, TAKEN_MAX, 1]);
        for nth in count..EVENTS_MAX + 7 {
            journal.add("ready", json!(nth));
        }
        let next = journal.after(slow.seen);
        assert_eq!((next.missed, next.events.front().unwrap().nth), (7, 8));
        assert_eq!(journal.after(seen).missed, 0);
        // Whoever begins has missed nothing.
        let new = journal.listen(None).unwrap();
        assert_eq!(journal.after(new.seen).missed, 0);
    }

    #[test]
    fn there_are_not_too_many_listeners() {
        let journal = Journal::default();
        let all: Vec<_> = (0..LISTENERS_MAX)
            .map(|_| journal.listen(None).unwrap())
            .collect();
        assert!(journal.listen(None).is_none());
        drop(all);
        let mut last = journal.listen(None).expect("those who left make room");
        journal.close();
        assert!(last.woken.blocking_recv().is_none());
        assert!(journal.listen(None).is_none());
    }
}
