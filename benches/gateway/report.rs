//! The report: a table made from what is kept.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::Result;

use crate::results::{Goal, Mark, Measured, Metric, Peer, Program, Results, Run, Settings};

impl Results {
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
        writeln!(
            out,
            "# The gateway beside its peers\n\n\
             Written by `cargo bench -p zeugma --bench gateway` from `RESULTS.json`; do not edit. {}\n",
            match self.runs.len() {
                0 | 1 => "All rows are of one run:".to_owned(),
                several => format!(
                    "The rows are of {several} runs; each row is of the one that its column \"run\" \
                     names, and only figures of one run are compared:"
                ),
            }
        )?;
        for (at, run) in self.runs.iter().enumerate() {
            run.tell(at + 1, out)?;
        }
        Ok(())
    }

    /// What a row says its run is: its place among those in the head.
    fn run_number(&self, id: &str) -> String {
        let at = self.runs.iter().position(|run| run.id == id);
        at.map_or_else(|| "unknown".to_owned(), |at| (at + 1).to_string())
    }

    /// How much slower the proxy's core was than the fastest it was seen in the run: least and most; and
    /// how often it changed.
    fn core(&self, one: &Measured) -> String {
        let run = self.runs.iter().find(|run| run.id == one.run);
        let fastest = run.and_then(|run| run.fastest_ns);
        let paces = fastest.zip(one.extremes(Metric::PaceNs));
        paces.map_or_else(String::new, |(fastest, (least, most))| {
            let range = format!("{:.2}–{:.2}", least / fastest, most / fastest);
            match one.uneven {
                0 => range,
                uneven => format!("{range}, uneven {uneven}"),
            }
        })
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
        write!(out, " goal | | core | run | samples |\n|---|---|")?;
        for _ in 0..labels.len() + others.len() {
            write!(out, "--:|")?;
        }
        writeln!(out, "---|---|--:|--:|--:|")?;
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
            for label in &others {
                let ours = labels.first();
                match ours.and_then(|ours| one.ratio(ours, label, *metric)) {
                    Some(ratio) => write!(
                        out,
                        " {:.2} ± {:.0} % |",
                        ratio.median,
                        ratio.relative() * 100.0
                    )?,
                    None => write!(out, " |")?,
                }
            }
            let goal = one.goals.iter().find(|goal| goal.metric == *metric);
            let (text, met) = goal.map_or_else(Default::default, |goal| judge(one, goal));
            let run = self.run_number(&one.run);
            let core = self.core(one);
            writeln!(out, " {text} | {met} | {core} | {run} | {} |", one.count())?;
        }
        Ok(())
    }

    fn foot(&self, out: &mut String) -> Result<()> {
        for failure in &self.failures {
            // Of a chain of causes and logs, the first line.
            let first = failure.error.lines().next().unwrap_or_default();
            let run = self.run_number(&failure.run);
            writeln!(
                out,
                "\n**Failed** in run {run}: {}: {first}",
                failure.workload
            )?;
        }
        out.push_str(HOW);
        Ok(())
    }
}

impl Run {
    fn tell(&self, number: usize, out: &mut String) -> Result<()> {
        let Settings {
            repetitions,
            quick,
            seconds,
        } = self.settings;
        let how = if quick {
            " of a quick run: too few and too short to be quoted"
        } else {
            ""
        };
        writeln!(
            out,
            "- run {number}: {}, commit {}; {repetitions} repetitions{how}, interleaved; \
             {seconds} s in all\n  \
             - {}",
            self.id, self.commit, self.machine
        )?;
        for (peer, program) in &self.programs {
            program.tell(*peer, out)?;
        }
        let missing: Vec<_> = Peer::ALL
            .iter()
            .filter(|peer| !self.programs.contains_key(peer))
            .map(|peer| peer.name())
            .collect();
        if !missing.is_empty() {
            writeln!(out, "  - not measured: {}", missing.join(", "))?;
        }
        Ok(())
    }
}

impl Program {
    fn tell(&self, peer: Peer, out: &mut String) -> Result<()> {
        let size = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let path = self.path.as_ref();
        writeln!(
            out,
            "  - {}: `{}`{}; the program's file is {}, stripped {}",
            peer.name(),
            self.version,
            path.map_or_else(String::new, |path| format!(", `{path}`")),
            size(self.bytes),
            self.stripped_bytes
                .map_or_else(|| "unknown".to_owned(), size)
        )?;
        Ok(())
    }
}

impl Metric {
    const fn unit(self) -> &'static str {
        match self {
            Self::CpuNs => "CPU µs",
            Self::CpuMs => "CPU ms",
            Self::StreamMbPerS => "MB/s a stream",
            Self::WallMs => "ms",
            Self::P50Us => "p50 µs",
            Self::P99Us => "p99 µs",
            Self::PssBytes => "PSS kB",
            Self::PssMib => "PSS MiB",
            Self::PaceNs => "core ns",
        }
    }

    /// A figure in [`unit`](Self::unit)s.
    fn scaled(self, value: f64) -> f64 {
        match self {
            Self::CpuNs | Self::PssBytes => value / 1e3,
            Self::CpuMs
            | Self::StreamMbPerS
            | Self::WallMs
            | Self::P50Us
            | Self::P99Us
            | Self::PssMib
            | Self::PaceNs => value,
        }
    }
}

/// Whether a figure belongs to the first table.
fn is_judged(one: &Measured, metric: Metric) -> bool {
    one.goals.iter().any(|goal| goal.metric == metric)
        || match metric {
            Metric::CpuNs | Metric::CpuMs | Metric::PssBytes => true,
            // Where memory for one connection is told, the sum is a remark.
            Metric::PssMib => !one.metrics().contains(&Metric::PssBytes),
            Metric::StreamMbPerS
            | Metric::WallMs
            | Metric::P50Us
            | Metric::P99Us
            | Metric::PaceNs => false,
        }
}

/// A goal in words, and whether it is reached.
fn judge(one: &Measured, goal: &Goal) -> (String, &'static str) {
    let (sign, mark) = match goal.mark {
        Mark::AtMost(mark) => ("≤", mark),
        Mark::AtLeast(mark) => ("≥", mark),
    };
    let ours = Peer::Zeugma.name();
    let (text, reached) = match goal.against {
        Some(peer) => (
            format!("{sign} {mark:.2} × {}", peer.name()),
            one.ratio(ours, peer.name(), goal.metric)
                .map(|ratio| ratio.median),
        ),
        None => (
            format!(
                "{sign} {} {}",
                figure(goal.metric.scaled(mark)),
                goal.metric.unit()
            ),
            one.spread(ours, goal.metric).map(|ours| ours.median),
        ),
    };
    let met = match (reached, goal.mark) {
        (None, _) => "not measured",
        (Some(reached), Mark::AtMost(mark)) if reached <= mark => "met",
        (Some(reached), Mark::AtLeast(mark)) if reached >= mark => "met",
        (Some(_), Mark::AtMost(_) | Mark::AtLeast(_)) => "**missed**",
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
  threads that have ended included, a second after the first answer (`/proc/<pid>/stat`, in steps of 10 ms),
  and so is its memory. PSS is that of the tree
  (`smaps_rollup`); for idle connections, what it grew by in a new process after 64 connections.
  Every figure is the median; ± is the median distance to it. A ratio is the median of the ratios of
  samples that were taken beside each other, in one round.
- The core of a virtual machine can be shared with another machine, which makes all work on it slower
  by up to two thirds for a while. Before and after each sample of CPU and each start a fixed piece of
  work, of some milliseconds, is timed nine times on the proxy's core. The column of the core has the
  mean of the two medians by the fastest piece that the run saw: near 1.00 the core was not shared. A
  round in which the readings are apart by more than a fifth is taken again, in all as often as there are
  repetitions, and then kept and counted as uneven. A start waits for a core that is not shared, 90 s in
  all for a workload, and is taken again, three times at most, where the core began to be shared meanwhile.
- The rounds begin with another proxy each, and every other round has them the other way round.
- Repetitions are spread over three starts of each proxy, after one of each start that is not kept:
  where code and memory come to lie changes a figure by up to a tenth, and is drawn at a start.
- Each proxy has one worker (zeugma `workers: 1`, Envoy `--concurrency 1`, HAProxy `nbthread 1`,
  nginx `worker_processes 1`) and is pinned to core 0; load generator and backend share core 1.
  Traffic is on loopback. The load generator and the backend compare every byte with what it must
  be; a wrong answer ends the run.
- Every proxy writes an access log, one line for each connection or request, to `/dev/null`.
- TLS 1.3, AES-128-GCM, X25519, P-256 leaves signed by the P-256 anchor, both sides show one, no
  resumption, no tickets. Towards an mTLS backend zeugma prefers X25519MLKEM768, makes its share for
  the first connection, and that of X25519, which the backend takes, for the others.
- HAProxy is told to splice what is bulk (`option splice-request`, `splice-response`) and may decide
  by itself (`splice-auto`) elsewhere; each is the cheaper for it. Otherwise each proxy has the
  settings it comes with, and limits that are not reached.
- Two proxies of a kind share core 0, and their CPU is added. The one that takes requests in trusts
  and is trusted as a gateway is; the way between the two is HTTP/2 in mTLS. A way that takes 50 ms
  each way is a relay that holds up to 64 MiB; a run in which it was full ends. It ends TCP at either
  side, so that the windows of HTTP/2 are what is measured, not those of TCP. MB/s are the bytes of a
  body by the time from the request to its last byte, or, up, to the answer.
- A passthrough connection: ClientHello there, 64 bytes back, the backend closes. An mTLS
  connection: the same inside, after the handshake. A request: GET, answered with 1 KiB.
";
