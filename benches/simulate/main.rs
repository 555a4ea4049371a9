//! What `zeugma simulate` takes of time for an hour of 1,000 endpoints in 50 localities.
//!
//! Is an answer there within 2 s, so that a change is played before it is made, by hand and in CI?
//! `cargo bench -p zeugma --bench simulate` runs the command itself, as it is built for release, and writes
//! `benches/SIMULATE.md`. The last case is there to show what an hour costs that is nothing but ejections.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark talks to the one who runs it"
)]

#[path = "../support/machine.rs"]
mod machine;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use serde_json::Value;

use machine::{Machine, commit, now};

const LOCALITIES: usize = 50;
/// Of each region.
const ZONES: usize = 10;
/// Of each locality.
const ENDPOINTS: usize = 20;
/// Runs of each case that are counted, after one that is not.
const SAMPLES: usize = 11;
/// What an hour may take.
const GOAL: Duration = Duration::from_secs(2);
/// proc_pid_stat(5): Linux tells 100 ticks a second.
const TICK: Duration = Duration::from_millis(10);

/// An hour of one course of events.
struct Case {
    title: &'static str,
    faults: &'static [&'static str],
}

const CASES: [Case; 4] = [
    Case {
        title: "nothing fails",
        faults: &[],
    },
    Case {
        title: "60 % of the nearest locality are down for half an hour, half of the next flap",
        faults: &["--down", "r0/z0=60%@6m..36m", "--flap", "r0/z1=50%,5s"],
    },
    Case {
        title: "that, a region answers 3 s late, and of a locality a fifth of the answers are 503",
        faults: &[
            "--down",
            "r0/z0=60%@6m..36m",
            "--flap",
            "r0/z1=50%,5s",
            "--slow",
            "r1=100%,3s",
            "--errors",
            "r0/z2=100%,20%",
        ],
    },
    Case {
        title: "half of all endpoints flap for the whole hour, each region in its own turn",
        faults: &[
            "--flap",
            "r0=50%,5s@0s..60m",
            "--flap",
            "r1=50%,7s@0s..60m",
            "--flap",
            "r2=50%,11s@0s..60m",
            "--flap",
            "r3=50%,13s@0s..60m",
            "--flap",
            "r4=50%,17s@0s..60m",
        ],
    },
];

/// What one run took.
#[derive(Debug, Clone, Copy)]
struct Took {
    wall: Duration,
    cpu: Duration,
}

fn main() -> Result<()> {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("simulate-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let config = folder.join("mesh.yaml");
    fs::write(&config, documents()?)?;
    let (date, mut machine) = (now()?, Machine::here()?);
    let mut rows = String::new();
    for case in &CASES {
        case.check(&config)?;
        let runs = (0..SAMPLES).map(|_| case.run(&config));
        let runs: Vec<Took> = runs.collect::<Result<_>>()?;
        let row = case.row(&runs)?;
        println!("{}", row.trim_end());
        rows.push_str(&row);
    }
    fs::remove_dir_all(&folder)?;
    machine.ended()?;
    let endpoints = LOCALITIES * ENDPOINTS;
    let text = format!(
        "# An hour of {endpoints} endpoints, simulated\n\n\
         Written by `cargo bench -p zeugma --bench simulate`; do not edit.\n\n\
         - {date}, commit {}\n- {machine}\n- `zeugma simulate --for 1h` of one http route with \
         {endpoints} endpoints in {LOCALITIES} localities, at 200 requests a second; the command from \
         its start to its end\n- the median of {SAMPLES} runs, and the fastest and slowest of them; CPU \
         time is the mean, in steps of {} ms of one run\n- goal: {} s\n\n\
         | the hour | wall, ms | fastest to slowest | CPU, ms | goal |\n|---|--:|--:|--:|---|\n{rows}",
        commit(),
        TICK.as_millis(),
        GOAL.as_secs(),
    );
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    fs::write(benches.join("SIMULATE.md"), text)?;
    Ok(())
}

impl Case {
    /// Runs it once to see that it plays what the others are timed at.
    fn check(&self, config: &Path) -> Result<()> {
        let output = self.command(config).args(["-o", "json"]).output()?;
        let played: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let sent = played.pointer("/requests/sent").and_then(Value::as_f64);
        let retried = played
            .pointer("/requests/retried")
            .and_then(Value::as_f64)
            .unwrap_or_default();
        let faults = played
            .pointer("/faults")
            .and_then(Value::as_array)
            .map_or(0, Vec::len);
        ensure!(sent == Some(720_000.0), "{}: {sent:?} requests", self.title);
        ensure!(
            faults == self.faults.len() / 2,
            "{}: {faults} faults",
            self.title
        );
        ensure!(
            (retried > 0.0) == (faults > 0),
            "{}: {retried} retried",
            self.title
        );
        Ok(())
    }

    fn command(&self, config: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command.args(["simulate", "--for", "1h", "--config"]);
        command.arg(config).args(self.faults);
        command
    }

    fn run(&self, config: &Path) -> Result<Took> {
        let (before, began) = (cpu_of_children()?, Instant::now());
        let status = self.command(config).stdout(Stdio::null()).status()?;
        let wall = began.elapsed();
        ensure!(status.success(), "{}: {status}", self.title);
        let cpu = cpu_of_children()?.saturating_sub(before);
        Ok(Took { wall, cpu })
    }

    fn row(&self, runs: &[Took]) -> Result<String> {
        let mut walls: Vec<Duration> = runs.iter().map(|took| took.wall).collect();
        walls.sort_unstable();
        let median = *walls.get(walls.len() / 2).context("no runs")?;
        let (fastest, slowest) = (walls.first(), walls.last());
        let cpu: Duration = runs.iter().map(|took| took.cpu).sum();
        let mut row = String::new();
        writeln!(
            row,
            "| {} | {} | {} to {} | {} | {} |",
            self.title,
            median.as_millis(),
            fastest.context("no runs")?.as_millis(),
            slowest.context("no runs")?.as_millis(),
            cpu.as_millis() / u128::try_from(runs.len())?,
            if median < GOAL { "met" } else { "**missed**" },
        )?;
        Ok(row)
    }
}

/// The CPU time of the children that have ended (proc_pid_stat(5): `cutime` and `cstime`).
fn cpu_of_children() -> Result<Duration> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(')').context("no fields")?;
    let mut ticks = 0;
    for field in fields.split_whitespace().skip(13).take(2) {
        ticks += field.parse::<u32>()?;
    }
    Ok(TICK * ticks)
}

fn documents() -> Result<String> {
    let mut text = "\
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: r0/z0
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    apps: { address: '127.0.0.1:15001', role: workloads }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: orders, namespace: shop }
spec:
  protocol: http
  health: { active: { http: /healthz } }
  allow: [{ listeners: [apps] }]
  backends:
"
    .to_owned();
    for nth in 0..LOCALITIES {
        let (region, zone) = (nth / ZONES, nth % ZONES);
        let endpoints: Vec<String> = (1..=ENDPOINTS)
            .map(|host| format!("'10.{nth}.0.{host}:80'"))
            .collect();
        let endpoints = endpoints.join(", ");
        writeln!(
            text,
            "    - {{ name: b{nth}, locality: r{region}/z{zone}, endpoints: [{endpoints}] }}"
        )?;
    }
    Ok(text)
}
