//! Our SVID, and whom to trust, from an agent: a SPIFFE Workload API (SPIFFE_Workload_API.md), or a secret
//! discovery service.
//!
//! ```text
//! connect --asked--> answers: each is the whole (WA3) --read--> kept in memory, credentials renewed
//!    ^                  |                                 `---> misses something: refused, told
//!    `--waits longer----' ended, denied, silent: told; what was given last stays
//! ```
//!
//! Of a secret discovery service an answer is one secret: the whole is made of the last of each (`secrets`).
//!
//! What comes is used by the same way as files that changed: `control/reload` takes it from here.

mod answer;
mod asked;
mod dial;
mod secrets;
mod stream;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use zeugma_core::line::beginning;

pub(crate) use self::asked::{AgentKind, AskedAgent};
use self::secrets::Assembly;
use self::stream::{Ended, Event, SILENCE_TOLD};
use crate::metrics::Metrics;
use crate::runtime::Shared;
use crate::tls::{Given, SvidSource};

/// Before it is asked again for the first time ...
const AGAIN_MIN: Duration = Duration::from_millis(200);
/// ... and after many failures.
const AGAIN_MAX: Duration = Duration::from_secs(10);
/// The most characters that are told of what an agent says.
const WHY_MAX: usize = 1000;
/// The code of one that does not answer.
const FAILS: &str = "ZG0261";
/// The code of an answer that is refused.
const REFUSED: &str = "ZG0262";
/// The code of a gateway without an SVID.
pub(crate) const AWAITED: &str = "ZG0264";

/// What an agent gave, and what is wrong with it.
#[derive(Debug)]
pub(crate) struct Agent {
    known: Mutex<Known>,
    /// That of the configuration that serves; counts the times that it is to be asked anew.
    wanted: watch::Sender<(u64, Option<AskedAgent>)>,
    /// Told when there is an answer that the credentials have not.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Known {
    given: Option<Arc<Given>>,
    /// Of what was given what the credentials that serve are made of.
    used: Option<Arc<Given>>,
    answered: Option<OffsetDateTime>,
    failing: Option<Failing>,
    /// Why the last answer could not be read.
    unread: Option<String>,
    /// Why what was given last is not used.
    refused: Option<String>,
}

#[derive(Debug)]
struct Failing {
    in_a_row: u32,
    why: String,
    help: &'static str,
}

impl Agent {
    /// One that is asked once [`run`] runs; none where the SVID comes from files.
    pub(crate) fn new(asked: Option<AskedAgent>) -> Self {
        Self {
            known: Mutex::default(),
            wanted: watch::channel((0, asked)).0,
            changed: Notify::new(),
        }
    }

    /// Takes that of a configuration that serves. What another one gave stays until this one has given
    /// something.
    pub(crate) fn want(&self, asked: Option<AskedAgent>) {
        if asked.is_none() {
            *self.lock() = Known::default();
        }
        self.wanted.send_if_modified(|(_, wanted)| {
            let is_new = *wanted != asked;
            *wanted = asked;
            is_new
        });
    }

    /// Has it asked at once, whenever it would have been.
    pub(crate) fn ask_anew(&self) {
        self.wanted.send_modify(|(times, _)| *times += 1);
    }

    /// Waits until there is an answer that credentials made before have not.
    ///
    /// # Cancel safety
    /// Safe: a permit is kept until it is taken.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The source of an identity, and what was given for it.
    pub(crate) fn beside(&self, mut source: SvidSource) -> SvidSource {
        if let SvidSource::Given(source) = &mut source {
            source.given.clone_from(&self.lock().given);
        }
        source
    }

    /// Notes that the credentials that serve are made of this.
    pub(crate) fn used(&self, source: &SvidSource) {
        if let SvidSource::Given(source) = source {
            let mut known = self.lock();
            known.used.clone_from(&source.given);
            if known.given == source.given {
                known.refused = None;
            }
        }
    }

    /// Notes why it is not used, and tells what is, where that is something else.
    pub(crate) fn refused(&self, source: &SvidSource, why: String) -> Option<SvidSource> {
        let SvidSource::Given(refused) = source else {
            return None;
        };
        let mut known = self.lock();
        known.refused = Some(why);
        let used = known
            .used
            .clone()
            .filter(|used| refused.given.as_ref() != Some(used))?;
        let mut source = refused.clone();
        source.given = Some(used);
        Some(SvidSource::Given(source))
    }

    /// Whether there is an answer that is not used.
    pub(crate) fn is_refused(&self) -> bool {
        let known = self.lock();
        known.unread.is_some() || known.refused.is_some()
    }

    /// What is wrong at present, as findings; `has_identity`: whether an SVID serves.
    pub(crate) fn findings(&self, has_identity: bool) -> Vec<Value> {
        let Some(asked) = self.wanted.borrow().1.clone() else {
            return Vec::new();
        };
        let known = self.lock();
        let finding = |code, severity, message: String, help| json!({ "code": code, "severity": severity, "message": message, "help": help });
        let severity = if has_identity { "warning" } else { "error" };
        let stays = if has_identity {
            "the last SVID stays in use until it expires"
        } else {
            "there is no SVID yet"
        };
        let mut found = Vec::new();
        if let Some(failing) = &known.failing {
            let (why, times) = (&failing.why, failing.in_a_row);
            let message = format!("the {asked} fails, {times} times in a row: {why}; {stays}");
            found.push(finding(FAILS, severity, message, failing.help));
        }
        if let Some(why) = known.unread.as_ref().or(known.refused.as_ref()) {
            let message = format!("what the {asked} gives is refused: {why}; {stays}");
            let help = "look at the gateway's registration at its agent, and at `trustDomain`";
            found.push(finding(REFUSED, severity, message, help));
        }
        if found.is_empty() && !has_identity {
            let message = format!("the {asked} has not answered yet; {stays}");
            found.push(finding(
                AWAITED,
                severity,
                message,
                "wait, or look at the agent's log",
            ));
        }
        found
    }

    /// Where the SVID comes from, if from an agent of this kind, and when it last came.
    pub(crate) fn to_json(&self, kind: AgentKind) -> Value {
        let asked = self.wanted.borrow().1.clone();
        let Some(asked) = asked.filter(|asked| asked.kind() == kind) else {
            return Value::Null;
        };
        let known = self.lock();
        let answered = known.answered.and_then(|at| at.format(&Rfc3339).ok());
        let mut told = json!({
            "address": asked.address().to_string(),
            "answers": known.failing.is_none() && answered.is_some(),
            "last_answer": answered,
        });
        if let (AskedAgent::Sds(sds), Some(told)) = (&asked, told.as_object_mut()) {
            told.insert("secrets".to_owned(), json!(sds.names().collect::<Vec<_>>()));
        }
        told
    }

    /// What it is called, and all that is known of it, for the log.
    pub(crate) fn said(&self) -> (&'static str, Value) {
        let kind =
            (self.wanted.borrow().1.as_ref()).map_or(AgentKind::WorkloadApi, AskedAgent::kind);
        (kind.name(), self.to_json(kind))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing that holds it can fail.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, asked: &AskedAgent, event: Event, metrics: &Metrics) {
        let (given, refused) = match event {
            Event::Silence(what) => {
                let why = format!("{what} for {SILENCE_TOLD:?}");
                return self.fails(asked, why, "look at the agent's log");
            }
            Event::Answer(Ok(given)) => (Some(given), None),
            Event::Answer(Err(error)) => (None, Some(error)),
            Event::Secrets(given, refused) => (given, refused),
        };
        let (agent, address) = (asked.kind().name(), asked.address());
        let mut known = self.lock();
        let is_back = known.failing.take().is_some() || known.answered.is_none();
        known.answered = Some(OffsetDateTime::now_utc());
        let why = refused.map(|error| error.to_string());
        if let Some(why) = why
            .as_ref()
            .filter(|why| known.unread.as_ref() != Some(why))
        {
            tracing::error!(code = REFUSED, %address, %why, "an answer of the {agent} is refused; the last good one stays in use");
        }
        let is_refused = why.is_some();
        known.unread = why;
        // One that was refused before may be what is needed by now: the clock goes on.
        let is_given = given.is_some();
        if let Some(given) = given {
            if is_back {
                tracing::info!(code = "ZG0263", %address, id = %given.id, "the {agent} answers");
            }
            known.given = Some(Arc::new(given));
        }
        drop(known);
        if is_given {
            self.changed.notify_one();
        }
        if is_refused {
            metrics.reloaded("credentials", false);
        }
    }

    fn ended(&self, asked: &AskedAgent, ended: &Ended) {
        let help = match ended {
            Ended::Connect(_) | Ended::ConnectTimeout => asked.kind().unreachable(),
            Ended::Denied(_) => {
                "register the gateway at its agent: it issues no identity to this process"
            }
            Ended::Silent(_) | Ended::Refused(_) | Ended::Closed => "look at the agent's log",
        };
        self.fails(asked, cut(&ended.to_string()), help);
    }

    fn fails(&self, asked: &AskedAgent, why: String, help: &'static str) {
        let (agent, address) = (asked.kind().name(), asked.address());
        let mut known = self.lock();
        let before = known.failing.as_ref();
        let in_a_row = before.map_or(0, |before| before.in_a_row) + 1;
        if before.is_none_or(|before| before.why != why) {
            tracing::warn!(
                code = FAILS, %address, %why, has_svid = known.given.is_some(),
                "the {agent} fails; what it gave last stays in use, and it is asked again"
            );
        }
        known.failing = Some(Failing {
            in_a_row,
            why,
            help,
        });
    }

    /// Asks one for ever; `made` is what came of its secrets before.
    async fn stay(&self, asked: &AskedAgent, made: &mut Option<Assembly>, metrics: &Metrics) {
        let mut failed = 0;
        loop {
            let began = Instant::now();
            let mut has_answered = false;
            let tell = |event| {
                has_answered |= matches!(event, Event::Answer(_) | Event::Secrets(..));
                self.take(asked, event, metrics);
            };
            let ended = match asked {
                AskedAgent::WorkloadApi(address) => Box::pin(stream::call(address, tell)).await,
                AskedAgent::Sds(sds) => {
                    Box::pin(secrets::call(Assembly::of(made, sds), tell)).await
                }
            };
            // One that answers and ends at once is not asked all the time.
            if has_answered && began.elapsed() > AGAIN_MAX {
                failed = 0;
            }
            self.ended(asked, &ended);
            tokio::time::sleep(pause(failed, fastrand::f64())).await;
            failed += 1;
        }
    }
}

/// How long to wait after so many failures: `draw` of 0 to 1 keeps those whom one agent serves from
/// asking it all at once.
fn pause(failed: u32, draw: f64) -> Duration {
    let longest = AGAIN_MIN.saturating_mul(1 << failed.min(16)).min(AGAIN_MAX);
    longest.mul_f64(0.5 + draw / 2.0)
}

/// The beginning of what an agent says.
fn cut(text: &str) -> String {
    beginning(text, WHY_MAX)
}

/// Asks whatever the configuration names, until the gateway drains.
pub(crate) async fn run(shared: Arc<Shared>) {
    let asking = async {
        let mut wanted = shared.agent.wanted.subscribe();
        let mut made = None;
        loop {
            let (_, asked) = wanted.borrow_and_update().clone();
            if !matches!(asked, Some(AskedAgent::Sds(_))) {
                made = None;
            }
            let asking = async {
                match &asked {
                    Some(asked) => shared.agent.stay(asked, &mut made, &shared.metrics).await,
                    None => std::future::pending().await,
                }
            };
            // A call that is cut off has taken nothing but whole answers.
            tokio::select! {
                () = asking => {}
                changed = wanted.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    };
    // Both only wait.
    tokio::select! {
        () = asking => {}
        _deadline = shared.draining() => {}
    }
}

#[cfg(test)]
mod tests {
    use zeugma_xds::WorkloadAddress;

    use super::*;

    #[test]
    fn it_is_asked_again_later_and_later_and_never_by_all_at_once() {
        for (failed, least, most) in [
            (0, 100, 200),
            (1, 200, 400),
            (5, 3_200, 6_400),
            (6, 5_000, 10_000),
            (u32::MAX, 5_000, 10_000),
        ] {
            assert_eq!(pause(failed, 0.0), Duration::from_millis(least));
            assert_eq!(pause(failed, 1.0), Duration::from_millis(most));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_up_is_asked_again_later_and_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let address = AskedAgent::WorkloadApi(WorkloadAddress::Unix(path));
        let api = Agent::new(Some(address.clone()));
        let metrics = Metrics::new();
        let (mut asked, began) = (Vec::new(), Instant::now());
        let hanging_up = async {
            loop {
                drop(listener.accept().await.unwrap());
                asked.push(began.elapsed().as_secs());
            }
        };
        let mut made = None;
        tokio::select! {
            () = api.stay(&address, &mut made, &metrics) => {}
            () = hanging_up => {}
            () = tokio::time::sleep(Duration::from_secs(120)) => {}
        }
        // Where the first connection is gone before there is a question, a second one is made at once.
        asked.dedup();
        let in_first = asked.iter().filter(|at| **at < 60).count();
        // By hand: 0.1 to 0.2 s, twice that each time up to 5 to 10 s: 6 waits of 6.3 to 12.6 s, which
        // begin in 3 to 6 different seconds, then 4 to 11 more in the first minute, and 6 to 13 in the
        // second.
        assert!((7..=17).contains(&in_first), "{asked:?}");
        assert!((6..=13).contains(&(asked.len() - in_first)), "{asked:?}");
        let found = api.findings(false);
        assert_eq!(found[0]["code"], FAILS);
    }

    #[test]
    fn what_an_agent_says_is_told_up_to_so_much() {
        assert_eq!(cut(&"\u{e4}".repeat(WHY_MAX)).chars().count(), WHY_MAX);
        assert!(cut(&"\u{e4}".repeat(WHY_MAX + 1)).ends_with("\u{e4} ..."));
    }
}
