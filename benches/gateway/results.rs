//! The figures and the runs they are of, kept as JSON. A run of some workloads takes the place of
//! their rows and leaves the others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::spread::Spread;

/// A proxy that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Peer {
    Zeugma,
    Envoy,
    Haproxy,
    Nginx,
}

impl Peer {
    pub(crate) const ALL: [Self; 4] = [Self::Zeugma, Self::Envoy, Self::Haproxy, Self::Nginx];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Zeugma => "zeugma",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    pub(crate) fn parse(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|peer| peer.name() == name)
            .with_context(|| format!("no peer {name:?}; there are zeugma, envoy, haproxy, nginx"))
    }
}

/// A number of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// CPU time for a unit of work, in nanoseconds.
    CpuNs,
    /// CPU time in all, in milliseconds.
    CpuMs,
    /// What a stream carried, in millions of bytes a second.
    StreamMbPerS,
    /// Time from the start, in milliseconds.
    WallMs,
    /// The median answer's time, in microseconds.
    P50Us,
    /// The time that one in a hundred answers took longer than, in microseconds.
    P99Us,
    /// PSS for a connection, in bytes.
    PssBytes,
    /// PSS in all, in MiB.
    PssMib,
    /// What a piece of work took on the proxy's core before and after, in nanoseconds.
    PaceNs,
}

/// A mark to reach.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Goal {
    pub(crate) metric: Metric,
    /// The peer whose figure it is a ratio to; the figure itself is limited where there is none.
    pub(crate) against: Option<Peer>,
    #[serde(flatten)]
    pub(crate) mark: Mark,
}

/// Which side of a mark is the good one.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mark {
    AtMost(f64),
    AtLeast(f64),
}

/// What one sample says.
pub(crate) type Sample = BTreeMap<Metric, f64>;

/// All that is kept.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// By when they began. Each has a row or a failure that is of it.
    pub(crate) runs: Vec<Run>,
    /// In the order of the report.
    pub(crate) workloads: Vec<Measured>,
    /// What was not measured.
    pub(crate) failures: Vec<Failure>,
}

/// One call of the command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// When it began, UTC to the second: what rows know it by.
    pub(crate) id: String,
    /// The commit it was built from.
    pub(crate) commit: String,
    pub(crate) machine: Machine,
    pub(crate) programs: BTreeMap<Peer, Program>,
    pub(crate) settings: Settings,
    /// The fastest piece of work on the proxy's core, in nanoseconds: what [`Metric::PaceNs`] is at best
    /// of a core that is not shared.
    #[serde(default)]
    pub(crate) fastest_ns: Option<f64>,
}

/// What ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Program {
    pub(crate) version: String,
    /// Where our own lies in the repository: how it was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    pub(crate) bytes: u64,
    /// Without symbols; `None` where `strip` is missing.
    pub(crate) stripped_bytes: Option<u64>,
}

/// How it ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) repetitions: usize,
    pub(crate) quick: bool,
    pub(crate) seconds: u64,
}

/// The samples of a workload, all of one run.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    pub(crate) name: String,
    /// The [`Run::id`] it is of.
    pub(crate) run: String,
    pub(crate) title: String,
    pub(crate) goals: Vec<Goal>,
    /// By who took part.
    pub(crate) samples: BTreeMap<String, Vec<Sample>>,
    /// Rounds, and starts, in which the pace of the core was not the same all the while.
    #[serde(default)]
    pub(crate) uneven: usize,
}

/// A workload that a run could not measure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    pub(crate) workload: String,
    pub(crate) run: String,
    pub(crate) error: String,
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

    /// How often `label` takes what `other` takes: of those taken beside each other, in one round, the
    /// median of the ratios.
    pub(crate) fn ratio(&self, label: &str, other: &str, metric: Metric) -> Option<Spread> {
        let pairs = self
            .samples
            .get(label)?
            .iter()
            .zip(self.samples.get(other)?);
        let ratios: Vec<f64> = pairs
            .filter_map(|(ours, theirs)| Some((*ours.get(&metric)?, *theirs.get(&metric)?)))
            .filter(|(_, theirs)| *theirs > 0.0)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        Spread::of(&ratios)
    }

    /// The least and the greatest of a number, of all that took part.
    pub(crate) fn extremes(&self, metric: Metric) -> Option<(f64, f64)> {
        let samples = self.samples.values().flatten();
        let values = samples.filter_map(|sample| sample.get(&metric).copied());
        values.fold(None, |extremes, value| {
            let (least, most) = extremes.unwrap_or((value, value));
            Some((least.min(value), most.max(value)))
        })
    }

    /// Every number that some sample has, but the pace of the core, which is not the proxy's.
    pub(crate) fn metrics(&self) -> BTreeSet<Metric> {
        let samples = self.samples.values().flatten();
        let metrics = samples.flat_map(|sample| sample.keys().copied());
        metrics.filter(|one| *one != Metric::PaceNs).collect()
    }

    /// How many samples each has; of the least where one has fewer.
    pub(crate) fn count(&self) -> usize {
        self.samples.values().map(Vec::len).min().unwrap_or(0)
    }
}

impl Results {
    /// Reads what was kept.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Keeps it as JSON, and its table beside it.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut json = serde_json::to_string(self)?;
        // One sample set a line: a diff of two runs can be read.
        for mark in ["{\"id\":", "{\"name\":", "\"samples\":", "{\"workload\":"] {
            json = json.replace(mark, &format!("\n{mark}"));
        }
        fs::write(path, json + "\n")?;
        fs::write(path.with_extension("md"), self.table()?)?;
        Ok(())
    }

    /// What is kept of `self` once `later` is there: its rows take the place of those of the same
    /// workloads. A workload that `later` could not measure keeps its row, and the failure is told.
    /// What `names`, the order of the report, does not have is no longer measured and goes.
    pub(crate) fn with(self, later: Self, names: &[&str]) -> Self {
        let place = |name: &str| names.iter().position(|other| *other == name);
        let mut failures = self.failures;
        failures.retain(|old| !later.tried(&old.workload) && place(&old.workload).is_some());
        let mut workloads = self.workloads;
        workloads.retain(|old| !later.workloads.iter().any(|new| new.name == old.name));
        workloads.extend(later.workloads);
        workloads.retain(|one| place(&one.name).is_some());
        workloads.sort_by_key(|one| place(&one.name));
        failures.extend(later.failures);
        let mut runs: Vec<_> = self.runs.into_iter().chain(later.runs).collect();
        runs.retain(|run| {
            workloads.iter().any(|one| one.run == run.id)
                || failures.iter().any(|one| one.run == run.id)
        });
        runs.sort_by(|one, other| one.id.cmp(&other.id));
        Self {
            runs,
            workloads,
            failures,
        }
    }

    fn tried(&self, workload: &str) -> bool {
        self.workloads.iter().any(|one| one.name == workload)
            || self.failures.iter().any(|one| one.workload == workload)
    }
}
