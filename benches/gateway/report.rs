//! The figures: kept as JSON, and shown as a table made from that JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::measure::Spread;
use crate::proxies::{Peer, version};
use crate::workloads::{Goal, Metric};

/// What one sample says.
pub(crate) type Sample = BTreeMap<Metric, f64>;

/// A run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) programs: BTreeMap<Peer, Program>,
    pub(crate) settings: Settings,
    pub(crate) workloads: Vec<Measured>,
    /// What was not measured, and why.
    pub(crate) failures: Vec<String>,
}

/// Where it ran.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    date: String,
    cpu: String,
    cores: usize,
    kernel: String,
    memory: String,
    /// `/proc/loadavg` when it began and when it ended: what else ran.
    load: Vec<String>,
}

/// What ran.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    version: String,
    bytes: u64,
    /// Without symbols; `None` where `strip` is missing.
    stripped_bytes: Option<u64>,
}

/// How it ran.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) repetitions: usize,
    pub(crate) quick: bool,
    pub(crate) seconds: u64,
}

/// The samples of a workload.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) goals: Vec<Goal>,
    /// By who took part.
    pub(crate) samples: BTreeMap<String, Vec<Sample>>,
}

impl Measured {
    /// What one of them reached.
    pub(crate) fn spread(&self, label: &str, metric: Metric) -> Option<Spread> {
        let values: Vec<f64> = self
            .samples
            .get(label)?
            .iter()
            .filter_map(|sample| sample.get(&metric).copied())
            .collect();
        Spread::of(&values)
    }

    fn metrics(&self) -> BTreeSet<Metric> {
        let samples = self.samples.values().flatten();
        samples.flat_map(|sample| sample.keys().copied()).collect()
    }
}

impl Machine {
    /// This one, now.
    pub(crate) fn here() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let field = |text: &str, name: &str| -> String {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        Ok(Self {
            date: OffsetDateTime::now_utc().format(&Rfc3339)?,
            cpu: field(&cpuinfo, "model name"),
            cores: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            memory: field(&meminfo, "MemTotal"),
            load: vec![Self::load_now()?],
        })
    }

    /// Notes how busy the machine is at the end.
    pub(crate) fn ended(&mut self) -> Result<()> {
        self.load.push(Self::load_now()?);
        Ok(())
    }

    fn load_now() -> Result<String> {
        let text = fs::read_to_string("/proc/loadavg")?;
        Ok(text.trim().to_owned())
    }
}

impl Program {
    /// What is to be said of one.
    pub(crate) fn of(peer: Peer, path: &Path, folder: &Path) -> Result<Self> {
        let stripped = folder.join(format!("{}.stripped", peer.name()));
        let output = Command::new("strip")
            .arg("-o")
            .arg(&stripped)
            .arg(path)
            .output();
        let stripped_bytes = match output {
            Ok(output) if output.status.success() => Some(fs::metadata(&stripped)?.len()),
            _ => None,
        };
        Ok(Self {
            version: version(peer, path)?,
            bytes: fs::metadata(path)?.len(),
            stripped_bytes,
        })
    }
}

impl Metric {
    const fn unit(self) -> &'static str {
        match self {
            Self::CpuNs => "CPU µs",
            Self::CpuMs => "CPU ms",
            Self::WallMs => "ms",
            Self::P50Us => "p50 µs",
            Self::P99Us => "p99 µs",
            Self::PssBytes => "PSS kB",
            Self::PssMib => "PSS MiB",
        }
    }

    /// A figure in [`unit`](Self::unit)s.
    fn scaled(self, value: f64) -> f64 {
        match self {
            Self::CpuNs | Self::PssBytes => value / 1e3,
            Self::CpuMs | Self::WallMs | Self::P50Us | Self::P99Us | Self::PssMib => value,
        }
    }
}

impl Results {
    /// Reads one that was kept.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Keeps it as JSON, and its table beside it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_string(self)?;
        // One sample set a line: a diff of two runs can be read.
        for mark in ["{\"name\":", "\"samples\":"] {
            json = json.replace(mark, &format!("\n{mark}"));
        }
        fs::write(path, json + "\n")?;
        fs::write(path.with_extension("md"), self.table()?)?;
        Ok(())
    }

    /// The report.
    pub(crate) fn table(&self) -> Result<String> {
        let mut out = String::new();
        self.head(&mut out)?;
        let (judged, told): (Vec<_>, Vec<_>) = self
            .workloads
            .iter()
            .flat_map(|one| one.metrics().into_iter().map(move |metric| (one, metric)))
            .partition(|(one, metric)| is_judged(one, *metric));
        writeln!(out, "\n## What is judged\n")?;
        self.rows(&mut out, &judged)?;
        writeln!(
            out,
            "\n## What is told\n\nLatency depends on what else the machine does and is not judged. \
             `ms` is what a sample of the whole workload took, or the time from the start to the \
             first answer through the proxy.\n"
        )?;
        self.rows(&mut out, &told)?;
        self.foot(&mut out)?;
        Ok(out)
    }

    fn head(&self, out: &mut String) -> Result<()> {
        let Machine {
            date,
            cpu,
            cores,
            kernel,
            memory,
            load,
        } = &self.machine;
        write!(
            out,
            "# The gateway beside its peers\n\n\
             Written by `cargo bench --bench gateway` from `RESULTS.json`; do not edit.\n\n\
             - {date}, {cpu}, {cores} cores, {memory} memory, Linux {kernel}; load average before \
             and after: {}\n",
            load.join("; ")
        )?;
        for (peer, program) in &self.programs {
            let size = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
            writeln!(
                out,
                "- {}: `{}`; the program's file is {}, stripped {}",
                peer.name(),
                program.version,
                size(program.bytes),
                program
                    .stripped_bytes
                    .map_or_else(|| "unknown".to_owned(), size)
            )?;
        }
        let Settings {
            repetitions,
            quick,
            seconds,
        } = self.settings;
        writeln!(
            out,
            "- {repetitions} repetitions{}, interleaved, after one that is not kept (up to 3 of idle \
             memory and starts); {seconds} s in all",
            if quick {
                " of a quick run: too few and too short to be quoted"
            } else {
                ""
            }
        )?;
        Ok(())
    }

    fn labels(&self) -> Vec<String> {
        let all: BTreeSet<&String> = self
            .workloads
            .iter()
            .flat_map(|one| one.samples.keys())
            .collect();
        let rank = |label: &str| {
            Peer::ALL
                .iter()
                .position(|peer| label.starts_with(peer.name()))
        };
        let mut all: Vec<String> = all.into_iter().cloned().collect();
        all.sort_by_key(|label| rank(label));
        all
    }

    fn rows(&self, out: &mut String, rows: &[(&Measured, Metric)]) -> Result<()> {
        let labels = self.labels();
        let others: Vec<_> = labels.iter().skip(1).collect();
        write!(out, "| workload | unit |")?;
        for label in &labels {
            write!(out, " {label} |")?;
        }
        for label in &others {
            write!(out, " to {label} |")?;
        }
        write!(out, " goal | |\n|---|---|")?;
        for _ in 0..labels.len() + others.len() {
            write!(out, "--:|")?;
        }
        writeln!(out, "---|---|")?;
        for (one, metric) in rows {
            write!(out, "| {} | {} |", one.title, metric.unit())?;
            for label in &labels {
                match one.spread(label, *metric) {
                    Some(spread) => write!(
                        out,
                        " {} ± {:.0} % |",
                        figure(metric.scaled(spread.median)),
                        spread.relative() * 100.0
                    )?,
                    None => write!(out, " |")?,
                }
            }
            let ours = labels.first().and_then(|label| one.spread(label, *metric));
            for label in &others {
                match (ours, one.spread(label, *metric)) {
                    (Some(ours), Some(theirs)) if theirs.median > 0.0 => {
                        write!(out, " {:.2} |", ours.median / theirs.median)?;
                    }
                    _ => write!(out, " |")?,
                }
            }
            let goal = one.goals.iter().find(|goal| goal.metric == *metric);
            let (text, met) = goal.map_or_else(Default::default, |goal| judge(one, goal));
            writeln!(out, " {text} | {met} |")?;
        }
        Ok(())
    }

    fn foot(&self, out: &mut String) -> Result<()> {
        for failure in &self.failures {
            // Of a chain of causes and logs, the first line.
            let first = failure.lines().next().unwrap_or_default();
            writeln!(out, "\n**Failed:** {first}")?;
        }
        out.push_str(HOW);
        let missing: Vec<_> = Peer::ALL
            .iter()
            .filter(|peer| !self.programs.contains_key(peer))
            .map(|peer| peer.name())
            .collect();
        if !missing.is_empty() {
            writeln!(out, "\nNot measured: {}.", missing.join(", "))?;
        }
        Ok(())
    }
}

/// Whether a figure belongs to the first table.
fn is_judged(one: &Measured, metric: Metric) -> bool {
    one.goals.iter().any(|goal| goal.metric == metric)
        || match metric {
            Metric::CpuNs | Metric::CpuMs | Metric::PssBytes => true,
            // Where memory for one connection is told, the sum is a remark.
            Metric::PssMib => !one.metrics().contains(&Metric::PssBytes),
            Metric::WallMs | Metric::P50Us | Metric::P99Us => false,
        }
}

/// A goal in words, and whether it is reached.
fn judge(one: &Measured, goal: &Goal) -> (String, &'static str) {
    let ours = one.spread(Peer::Zeugma.name(), goal.metric);
    let (text, reached) = match goal.against {
        Some(peer) => (
            format!("≤ {:.2} × {}", goal.at_most, peer.name()),
            ours.zip(one.spread(peer.name(), goal.metric))
                .map(|(ours, theirs)| ours.median <= goal.at_most * theirs.median),
        ),
        None => (
            format!(
                "≤ {} {}",
                figure(goal.metric.scaled(goal.at_most)),
                goal.metric.unit()
            ),
            ours.map(|ours| ours.median <= goal.at_most),
        ),
    };
    let met = match reached {
        Some(true) => "met",
        Some(false) => "**missed**",
        None => "not measured",
    };
    (text, met)
}

/// Three digits that count.
fn figure(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

const HOW: &str = "
## How it is measured

- CPU is the time that all threads of the proxy's process tree were on a processor
  (`/proc/<pid>/task/*/schedstat`), from before the work until the tree is at rest again, divided by
  the units of work: a connection, a MiB, a request, a message. That of a start is the whole process's,
  threads that have ended included (`/proc/<pid>/stat`, in steps of 10 ms). PSS is that of the tree
  (`smaps_rollup`); for idle connections, what it grew by in a new process after 64 connections.
  Every figure is the median; ± is the median distance to it.
- Each proxy has one worker (zeugma `workers: 1`, Envoy `--concurrency 1`, HAProxy `nbthread 1`,
  nginx `worker_processes 1`) and is pinned to core 0; load generator and backend share core 1.
  Traffic is on loopback. The load generator and the backend compare every byte with what it must
  be; a wrong answer ends the run.
- Every proxy writes an access log, one line for each connection or request, to `/dev/null`.
- TLS 1.3, AES-128-GCM, X25519, P-256 leaves signed by the P-256 anchor, both sides show one, no
  resumption, no tickets. Towards an mTLS backend zeugma prefers X25519MLKEM768, makes its share for
  the first connection, and that of X25519, which the backend takes, for the others.
- HAProxy is told to splice what is bulk (`option splice-request`, `splice-response`) and may decide
  by itself (`splice-auto`) elsewhere; each is the cheaper for it. Otherwise each proxy has the settings it comes with, and limits
  that are not reached.
- A passthrough connection: ClientHello there, 64 bytes back, the backend closes. An mTLS
  connection: the same inside, after the handshake. A request: GET, answered with 1 KiB.
";
