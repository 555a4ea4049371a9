//! What it costs to be the client of a control plane: 10,000 services of three endpoints each, taken by
//! our gateway and by Envoy from one `zeugma xds serve` on loopback.
//!
//! The questions, with the numbers that would change a decision: is a gateway ready within 3 s and
//! 150 MB, and does a change of one endpoint cost it less than 5 ms of CPU?
//!
//! `cargo bench -p zeugma --bench xds_client` writes `benches/XDS.json` and the table `benches/XDS.md`; with
//! `--services` or `--changes` it only looks.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark talks to the one who runs it"
)]

mod client;
#[path = "../support/machine.rs"]
mod machine;
#[path = "../gateway/measure.rs"]
#[expect(dead_code, reason = "other benches ask for single threads")]
mod measure;
#[path = "../../tests/support/peers.rs"]
#[expect(dead_code, reason = "the tests' peers are more than ours")]
mod peers;
#[path = "../gateway/pki.rs"]
#[expect(dead_code, reason = "the proxies' certificates are more than ours")]
mod pki;
mod plane;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../../tests/support/process.rs"]
mod process;
mod report;
#[path = "../../tests/support/serving.rs"]
mod serving;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;

use client::Client;
use machine::{Machine, commit, now};
use measure::{Cpu, lifetime, pss};
use plane::Plane;
use report::{Results, Row};

const SERVICES: usize = 10_000;
const CHANGES: usize = 20;
/// How long a client rests before its memory counts, and before and after changes: what it writes later
/// than it acknowledges is written by then.
const REST: Duration = Duration::from_secs(12);
/// How long it is looked at what a client costs that is told nothing.
const IDLE: Duration = Duration::from_secs(10);

/// Measures what it costs to be the client of a control plane.
#[derive(Debug, Parser)]
struct Arguments {
    /// Services, of three endpoints each
    #[arg(long, default_value_t = SERVICES)]
    services: usize,
    /// Changes of one endpoint
    #[arg(long, default_value_t = CHANGES)]
    changes: usize,
    /// Only these clients, of zeugma and envoy
    #[arg(long, value_delimiter = ',', default_value = "zeugma,envoy")]
    peers: Vec<String>,
    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut machine = Machine::here()?;
    let (at, commit) = (now()?, commit());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xds-client");
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    std::fs::create_dir_all(&folder)?;
    let mut plane = Plane::start(&folder, arguments.services)?;
    let mut rows = Vec::new();
    for peer in &arguments.peers {
        let listens = plane.listens;
        let client = || Client::start(peer, &folder, listens);
        let row = measure(peer, client, &mut plane, arguments.changes)?;
        println!("{row:#?}");
        rows.push(row);
    }
    machine.ended()?;
    let results = Results {
        at,
        commit,
        machine,
        services: arguments.services,
        changes: arguments.changes,
        rows,
    };
    println!("\n{}", results.table());
    std::fs::remove_dir_all(&folder)?;
    // What is to be quoted is measured in full.
    if arguments.services == SERVICES && arguments.changes == CHANGES && results.rows.len() == 2 {
        results.write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/XDS.json"))?;
    }
    Ok(())
}

fn measure(
    name: &str,
    start: impl Fn() -> Result<Client>,
    plane: &mut Plane,
    changes: usize,
) -> Result<Row> {
    let begun = Instant::now();
    let client = start()?;
    client.wait_ready()?;
    let ready = begun.elapsed();
    let pid = client.pid();
    let ready_cpu = Duration::from_nanos(lifetime(pid)?);
    plane.wait_settled()?;
    std::thread::sleep(REST);
    let memory = pss(pid)?;
    let memory_peak = client.memory_peak()?;

    let before = Cpu::at_rest(&[pid])?.total();
    std::thread::sleep(IDLE);
    let idle = Cpu::of(&[pid])?.total().saturating_sub(before);
    let idle = idle as f64 / IDLE.as_nanos() as f64;

    let (begun, before) = (Instant::now(), lifetime(pid)?);
    for _ in 0..changes {
        plane.change()?;
    }
    std::thread::sleep(REST);
    let spent = Duration::from_nanos(lifetime(pid)?.saturating_sub(before));
    let change = spent.saturating_sub(begun.elapsed().mul_f64(idle)) / u32::try_from(changes)?;
    ensure!(client.is_ready(), "{name} is not ready any more");
    Ok(Row {
        client: name.to_owned(),
        version: client.version.clone(),
        ready,
        ready_cpu,
        memory,
        memory_peak,
        change,
        idle_permille: idle * 1000.0,
        memory_after: pss(pid)?,
    })
}
