//! What came of it, as a table and as JSON.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::machine::Machine;

/// What our gateway is to keep to: time to be ready, memory, CPU of a change.
const READY_MAX: Duration = Duration::from_secs(3);
const MEMORY_MAX: u64 = 150_000_000;
const CHANGE_MAX: Duration = Duration::from_millis(5);

/// What one client took.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) client: String,
    pub(crate) version: String,
    /// From its start until it says that it is ready.
    pub(crate) ready: Duration,
    /// The CPU time of that.
    pub(crate) ready_cpu: Duration,
    /// PSS at rest, in bytes.
    pub(crate) memory: u64,
    /// The most that was resident until then, in bytes.
    pub(crate) memory_peak: u64,
    /// CPU time for each change, without what it takes at rest.
    pub(crate) change: Duration,
    /// CPU at rest, in thousandths of a processor.
    pub(crate) idle_permille: f64,
    /// PSS after the changes, in bytes.
    pub(crate) memory_after: u64,
}

/// What came of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) at: String,
    pub(crate) commit: String,
    pub(crate) machine: Machine,
    pub(crate) services: usize,
    pub(crate) changes: usize,
    pub(crate) rows: Vec<Row>,
}

impl Results {
    /// Writes them, and the table beside.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        fs::write(path.with_extension("md"), self.table())?;
        Ok(())
    }

    pub(crate) fn table(&self) -> String {
        let Self {
            at,
            commit,
            machine,
            services,
            changes,
            rows,
        } = self;
        let mut text = format!(
            "# The cost of being the client of a control plane

Written by `cargo bench -p zeugma --bench xds_client`; do not edit.

- {at}, commit {commit}
- {machine}
- {services} services of three endpoints each, over incremental ADS without TLS on loopback, from one `zeugma xds serve` on the same processors
- a change is of one endpoint of one service; the CPU time of {changes} changes one after the other, {rest} s of rest after them and all that is written to disk included, without what the client takes at rest
- memory: PSS at rest, {rest} s after it was ready, and in brackets the most that was resident until then

| client | ready after | CPU until then | memory | CPU of a change | at rest | memory after the changes |
|---|--:|--:|--:|--:|--:|--:|
",
            rest = crate::REST.as_secs(),
        );
        for row in rows {
            writeln!(
                text,
                "| {} | {:.2} s | {:.2} s | {:.0} MB ({:.0} MB) | {:.2} ms | {:.1} ‰ | {:.0} MB |",
                row.version,
                row.ready.as_secs_f64(),
                row.ready_cpu.as_secs_f64(),
                megabytes(row.memory),
                megabytes(row.memory_peak),
                row.change.as_secs_f64() * 1e3,
                row.idle_permille,
                megabytes(row.memory_after),
            )
            .ok();
        }
        if let Some(ours) = rows.iter().find(|row| row.client == "zeugma") {
            let marks = [
                (
                    "ready with 10,000 services in under 3 s",
                    ours.ready < READY_MAX,
                ),
                (
                    "and in 150 MB",
                    ours.memory.max(ours.memory_after) < MEMORY_MAX,
                ),
                (
                    "a change of one endpoint costs under 5 ms of CPU",
                    ours.change < CHANGE_MAX,
                ),
            ];
            text.push_str("\n| what our gateway is held to | |\n|---|---|\n");
            for (mark, is_met) in marks {
                let is_met = if is_met { "met" } else { "missed" };
                writeln!(text, "| {mark} | {is_met} |").ok();
            }
        }
        text
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
