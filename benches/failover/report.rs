//! What a run found, as JSON and as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::case::Case;
use crate::endpoint::WORK;
use crate::figures::{Figures, SLOW, ms};
use crate::gateway::Contestant;
use crate::load::{BEFORE, PATIENCE, PER_SECOND};
use crate::machine::Machine;

/// How many requests that are not idempotent may fail.
const FAILED_MAX: usize = 5;

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) at: String,
    pub(crate) commit: String,
    pub(crate) command: String,
    pub(crate) machine: Machine,
    pub(crate) zeugma: String,
    pub(crate) envoy: String,
    pub(crate) repetitions: usize,
    pub(crate) seconds: u64,
    /// What decides how each fails over, by its name and the case.
    pub(crate) given: BTreeMap<String, BTreeMap<String, String>>,
    pub(crate) rows: Vec<Row>,
}

/// What one contestant made of one case.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) case: Case,
    pub(crate) contestant: Contestant,
    pub(crate) method: String,
    /// One for each repetition.
    pub(crate) figures: Vec<Figures>,
}

impl Results {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Writes the JSON to `path` and the document beside it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        self.render(path)
    }

    /// Writes the document alone, beside the JSON at `path`.
    pub(crate) fn render(&self, path: &Path) -> Result<()> {
        Ok(fs::write(path.with_extension("md"), self.document()?)?)
    }

    pub(crate) fn has(&self, case: Case) -> bool {
        self.rows.iter().any(|row| row.case == case)
    }

    /// The figures alone.
    pub(crate) fn tables(&self) -> Result<String> {
        let mut text = String::new();
        for case in Case::ALL {
            let rows: Vec<_> = self.rows.iter().filter(|row| row.case == case).collect();
            if rows.is_empty() {
                continue;
            }
            writeln!(
                text,
                "## {}\n\n{}.\n\n| | gateway | sent | failed | outage | steady after | p99 | goal |\n\
                 |---|---|--:|--:|--:|--:|--:|---|",
                case.name(),
                case.title(),
            )?;
            for row in &rows {
                row.write(&mut text)?;
            }
            for row in &rows {
                row.write_failures(&mut text)?;
            }
            text.push('\n');
        }
        Ok(text)
    }

    fn document(&self) -> Result<String> {
        let mut text = format!(
            "# Failover, beside Envoy

Written by `{}` from `FAILOVER.json`; do not edit.

- {}, commit {}; {} repetitions, {} s in all
- {}
- zeugma: `{}`; envoy: `{}`

Every gateway stands between the same callers and endpoints, in a mesh of its own; all meshes of a
case and method run side by side and meet the fault at the same time, GET before POST, so that
the times are those of a busy machine. {PER_SECOND} requests a second are due at fixed times over
kept-alive HTTP/1.1, whether or not those before them were answered, from {} s before the fault on;
a caller gives up after {} s. An endpoint works {} ms on a request, so that some are under way when
it dies. The killed are processes, by SIGKILL; a link is a veth pair to a network namespace, of
which the far end is taken down. Gateways of other clusters are of the same kind as the one that is
called, and speak mTLS with it.

- **sent**: requests that had not ended when the fault came, and those after, of all repetitions;
  **failed**: those of them without a 200, for each repetition.
- **outage**, the worst of the repetitions: the longer of the time from the fault to the first good
  answer to a request that was due after the last that failed, and the longest time without a good
  answer. **steady after**, the worst: from the fault until every request that was due was answered
  well within {} ms. `>`: not so when the load ended.
- **p99**, the worst: of the time from when a request was due to its end, well or not.
- **goal**: no GET fails; at most {FAILED_MAX} POSTs of a repetition fail; the outage is at most 1 s,
  or 5 s where a link is cut. Where an endpoint merely answers 503 the goal is for GET alone.

",
            self.command,
            self.at,
            self.commit,
            self.repetitions,
            self.seconds,
            self.machine,
            self.zeugma,
            self.envoy,
            BEFORE.as_secs(),
            PATIENCE.as_secs(),
            WORK.as_millis(),
            SLOW.as_millis(),
        );
        text.push_str(&self.tables()?);
        text.push_str(LIMITS);
        text.push_str(GIVEN);
        for (name, cases) in &self.given {
            let shown = Case::KilledEndpoint.name();
            let language = if name == Contestant::Zeugma.name() {
                "yaml"
            } else {
                "json"
            };
            if let Some(given) = cases.get(shown) {
                write!(
                    text,
                    "\n### {name}, in {shown}\n\n```{language}\n{}\n```\n",
                    given.trim_end()
                )?;
            }
        }
        Ok(text)
    }
}

impl Row {
    fn write(&self, text: &mut String) -> Result<()> {
        let figures = &self.figures;
        let sent: usize = figures.iter().map(|one| one.sent).sum();
        let failed: Vec<_> = figures.iter().map(|one| one.failed.to_string()).collect();
        let after = ms(self.case.after());
        let p99 = figures.iter().map(|one| one.p99_ms).fold(0.0, f64::max);
        writeln!(
            text,
            "| {} | {} | {sent} | {} | {} | {} | {} | {} |",
            self.method,
            self.contestant.name(),
            failed.join(" / "),
            worst(figures.iter().map(|one| one.outage_ms), after),
            worst(figures.iter().map(|one| one.steady_ms), after),
            millis(p99),
            self.goal(),
        )?;
        Ok(())
    }

    fn goal(&self) -> &'static str {
        let is_get = self.method == "GET";
        let failed_max = if is_get { 0 } else { FAILED_MAX };
        let outage_max = self.case.outage_max().map(ms);
        if !is_get && outage_max.is_none() {
            return "";
        }
        let is_met = self.figures.iter().all(|one| {
            one.failed <= failed_max
                && outage_max.is_none_or(|max| one.outage_ms.is_some_and(|outage| outage <= max))
        });
        if is_met { "met" } else { "**missed**" }
    }

    /// What callers saw.
    fn write_failures(&self, text: &mut String) -> Result<()> {
        let kinds: BTreeSet<_> = self
            .figures
            .iter()
            .flat_map(|one| one.failures.keys())
            .collect();
        if kinds.is_empty() {
            return Ok(());
        }
        let mut told = Vec::new();
        for kind in kinds {
            let counts = self.figures.iter().filter_map(|one| one.failures.get(kind));
            told.push(format!("{} × {kind}", counts.sum::<usize>()));
        }
        writeln!(
            text,
            "\n{} by {}: {}.",
            self.method,
            self.contestant.name(),
            told.join(", ")
        )?;
        Ok(())
    }
}

/// The largest; what is not over is larger than all.
fn worst(times: impl Iterator<Item = Option<f64>>, end: f64) -> String {
    let mut worst = 0.0_f64;
    for time in times {
        match time {
            Some(time) => worst = worst.max(time),
            None => return format!("> {}", millis(end)),
        }
    }
    millis(worst)
}

fn millis(ms: f64) -> String {
    if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1000.0)
    }
}

/// What keeps a goal from being met.
const LIMITS: &str = "## What is lost, and why

- **cut-gateway, POST by zeugma.** Nothing tells that the link is gone, and a POST that may have arrived
  is not sent again. Lost are those that were under way (2 or 3 of 200 a second that take 10 ms), and
  one for each worker: what is sent next, unanswered and unacknowledged for 3 ms and two round trips,
  makes the peer doubtful, and others wait for its answer to a PING. What several callers send within
  that time is lost as well: over a way of 80 ms it is 163 ms.
- **GETs under a small budget.** Extra tries are at most 20 % of the last 10 s' requests. A link that
  is cut before a service has seen some seconds of its usual load can have more requests under way
  than that, and then loses the rest: 46 of 2,000 with 1.5 s of load before the fault.

";

/// Said before what each was given.
const GIVEN: &str = "## What each was given

Two worker threads each; everything that is not shown is a default.

- **zeugma**: where the endpoints are, and nothing else. Its defaults: two extra tries, each on
  another endpoint, for what was not seen by any (every method) and for resets, 502, 503 and 504
  (idempotent methods); 5 failures in a row eject for 30 s; a peer is asked by PING after 2 s and has
  2 s to answer.
- **envoy, equal**: the same words as far as Envoy has them: the same tries by method, on another
  host and another priority; 5 failures in a row eject for 30 s, all hosts of a priority if need be;
  no panic; connections within 1 s; PING after 2 s, 2 s for its answer; and, since that ends what is
  not acknowledged as our gateway does, TCP_USER_TIMEOUT of 4 s.
- **envoy, istio**: what Istio writes for a `VirtualService` without `retries` or `timeout` and a
  `DestinationRule` with locality failover and `outlierDetection: {}`: two retries on the same
  conditions for every method, Envoy's own outlier detection with its 10 % of hosts that may be
  ejected, no panic, no timeout, connections within 10 s.
- **envoy, defaults**: endpoints with their priorities.

Local endpoints are spoken to by HTTP/1.1, and so are Envoy's gateways behind them (ours always speak
HTTP/2 with each other); in killed-gateway and cut-gateway gateways speak HTTP/2 for everybody, and
there are two of them and no local endpoint: `FAILOVER.json` has the words of every case.
";
