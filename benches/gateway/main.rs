//! Measures the gateway beside Envoy, HAProxy and nginx, in one run on one machine.
//!
//! `cargo bench -p zeugma --bench gateway -- --quick` looks; `cargo bench -p zeugma --bench gateway`
//! measures everything and writes `benches/RESULTS.json` and, from it, `benches/RESULTS.md`. With
//! `--only` it measures some of it and replaces their rows there: each row says which run it is of.
//! `-p zeugma`, so that the program is the one that users have: cargo builds it with what the tests of
//! all packages that are asked for need, and those of `zeugma-proxy` and `zeugma-xds` need tokio's `test-util`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark talks to the one who runs it"
)]
#![expect(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a wrong index or figure ends the run, as any wrong answer does"
)]

mod backend;
mod facts;
mod load;
#[path = "../../tests/support/long_way.rs"]
mod long_way;
#[path = "../support/machine.rs"]
mod machine;
mod measure;
mod pace;
#[path = "../../tests/support/peers.rs"]
#[expect(dead_code, reason = "the tests' peers are more than ours")]
mod peers;
mod pki;
#[path = "../support/ports.rs"]
mod ports;
mod proxies;
mod relay;
mod report;
mod results;
mod role;
mod run;
mod spread;
mod tls;
mod wire;
mod workloads;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Parser;

use proxies::programs;
use results::{Failure, Measured, Metric, Peer, Results, Run, Settings};
use run::{Bench, Contestant, Effort};
use workloads::Workload;

/// Open files that a proxy needs for 5,000 connections: two for each, and HAProxy wants those of
/// `maxconn` when it starts.
const FILES: u64 = 16_384;
/// How far two measurements of one proxy may be apart, as a share.
const AGREES_WITHIN: f64 = 0.05;

/// Measures the gateway beside Envoy, HAProxy and nginx.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these workloads; a name that ends in `*` means all that begin so
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Only these proxies, of zeugma, envoy, haproxy, nginx
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Measures this zeugma in place of the one built with the bench, such as that of an image; the rows
    /// are kept only in what `--out` names
    #[arg(long)]
    program: Option<PathBuf>,
    /// Samples of each workload and proxy
    #[arg(long)]
    repetitions: Option<usize>,
    /// Less work and three samples: to see that everything runs
    #[arg(long)]
    quick: bool,
    /// Measures every proxy twice and fails if it does not agree with itself
    #[arg(long)]
    self_check: bool,
    /// Where the rows go, in place of those of the same workloads, and the table beside it;
    /// benches/RESULTS.json unless `--quick`, `--peers` or `--program` is there
    #[arg(long)]
    out: Option<PathBuf>,
    /// Writes the table of a JSON of before, and measures nothing
    #[arg(long)]
    render: Option<PathBuf>,
    /// Names the workloads and measures nothing
    #[arg(long)]
    list: bool,
    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let roles: Vec<String> = std::env::args().skip(1).take(2).collect();
    match roles.as_slice() {
        [role, what] if role == "load" => return load::run(serde_json::from_str(what)?),
        [role, what] if role == "backend" => return backend::run(&serde_json::from_str(what)?),
        [role, _] if role == pace::ROLE => return pace::run(),
        _ => {}
    }
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.render {
        return Results::read(path)?.write(path);
    }
    if arguments.list {
        for workload in workloads::all() {
            println!("{:40} {}", workload.name, workload.title);
        }
        return Ok(());
    }
    measure(&arguments)
}

fn measure(arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    let chosen = choose(&arguments.only)?;
    // Before anything is measured: what cannot be read cannot be kept.
    let kept = kept(arguments)?;
    let wanted = match arguments.peers.as_slice() {
        [] => Peer::ALL.to_vec(),
        names => names
            .iter()
            .map(|name| Peer::parse(name))
            .collect::<Result<_>>()?,
    };
    let effort = Effort {
        repetitions: arguments
            .repetitions
            .unwrap_or(if arguments.quick { 3 } else { 10 }),
        quick: arguments.quick,
    };
    ensure!(effort.repetitions > 0, "no repetitions, no figures");
    raise_files()?;
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut bench = Bench::start(&folder, programs(&wanted, arguments.program.as_deref())?)?;
    let settings = Settings {
        repetitions: effort.repetitions,
        quick: effort.quick,
        seconds: 0,
    };
    let mut run = Run::begin(settings, &bench.site.programs, &folder)?;
    let contestants = contestants(run.programs.keys().copied(), arguments.self_check);
    let mut measured = Vec::new();
    let mut failures = Vec::new();
    for workload in &chosen {
        let since = Instant::now();
        // A wrong answer fails the run, but not before the rest of it is known.
        let one = match bench.measure(&run.id, workload, &contestants, effort) {
            Ok(one) => one,
            Err(error) => {
                println!("{:38} FAILED: {error:#}", workload.name);
                failures.push(Failure {
                    workload: workload.name.to_owned(),
                    run: run.id.clone(),
                    error: format!("{error:#}"),
                });
                continue;
            }
        };
        say(&one, since.elapsed());
        measured.push(one);
    }
    run.machine.ended()?;
    run.fastest_ns = Some(bench.fastest());
    run.settings.seconds = begin.elapsed().as_secs();
    let results = Results {
        runs: vec![run],
        workloads: measured,
        failures,
    };
    drop(bench);
    if results.failures.is_empty() {
        std::fs::remove_dir_all(&folder)?;
    }
    println!("\n{}", results.table()?);
    if arguments.self_check {
        return agrees(&results);
    }
    let failed = !results.failures.is_empty();
    if let Some((path, kept)) = kept {
        let names: Vec<_> = workloads::all().iter().map(|one| one.name).collect();
        kept.with(results, &names).write(&path)?;
    }
    ensure!(
        !failed,
        "not everything was measured; the logs are in {}",
        folder.display()
    );
    Ok(())
}

/// Where the rows go, and what is kept there.
fn kept(arguments: &Arguments) -> Result<Option<(PathBuf, Results)>> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/RESULTS.json");
    // What is to be quoted is measured in full, and beside everyone.
    let is_full = arguments.peers.is_empty() && !arguments.quick && !arguments.self_check;
    // Nor without being asked to, if it is not the program that was built with this.
    let quotable = is_full && arguments.program.is_none();
    let path = match &arguments.out {
        Some(path) => path.clone(),
        None if quotable => default(),
        None => return Ok(None),
    };
    let results = if path.exists() {
        Results::read(&path)?
    } else {
        Results::default()
    };
    Ok(Some((path, results)))
}

/// Shows that the run goes on, and how.
fn say(one: &Measured, took: Duration) {
    print!("{:38}", one.name);
    for label in one.samples.keys() {
        for metric in [Metric::CpuNs, Metric::PssBytes, Metric::CpuMs] {
            if let Some(spread) = one.spread(label, metric) {
                let percent = spread.relative() * 100.0;
                print!(" {label} {:.0} ±{percent:.1}%", spread.median);
            }
        }
    }
    println!(" ({:.1} s)", took.as_secs_f64());
}

fn choose(only: &[String]) -> Result<Vec<Workload>> {
    let fits = |name: &str, word: &String| match word.strip_suffix('*') {
        Some(begin) => name.starts_with(begin),
        None => name == word,
    };
    let all = workloads::all();
    if let Some(word) = only
        .iter()
        .find(|word| !all.iter().any(|workload| fits(workload.name, word)))
    {
        bail!("no workload {word:?}; --list names them");
    }
    Ok(all
        .into_iter()
        .filter(|workload| only.is_empty() || only.iter().any(|word| fits(workload.name, word)))
        .collect())
}

fn contestants(peers: impl Iterator<Item = Peer>, twice: bool) -> Vec<Contestant> {
    let mut all = Vec::new();
    for peer in peers {
        let label = peer.name().to_owned();
        if twice {
            all.push(Contestant {
                label: format!("{label}-again"),
                peer,
            });
        }
        all.push(Contestant { label, peer });
    }
    all
}

/// Holds two measurements of one proxy beside each other.
fn agrees(results: &Results) -> Result<()> {
    let mut apart = Vec::new();
    for one in &results.workloads {
        for label in one.samples.keys() {
            let again = format!("{label}-again");
            if let Some(ratio) = one.ratio(label, &again, Metric::CpuNs) {
                let by = (ratio.median - 1.0).abs();
                println!("{:38} {label}: {:.1} % apart", one.name, by * 100.0);
                if by > AGREES_WITHIN {
                    apart.push(format!("{} ({label})", one.name));
                }
            }
        }
    }
    ensure!(
        apart.is_empty(),
        "measured twice, more than {:.0} % apart: {}",
        AGREES_WITHIN * 100.0,
        apart.join(", ")
    );
    Ok(())
}

/// Raises the limit of open files, as far as it goes, for all that is started from here.
fn raise_files() -> Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    ensure!(
        maximum.is_none_or(|maximum| maximum >= FILES),
        "5,000 idle connections need {FILES} open files; raise the hard limit (`ulimit -Hn`)"
    );
    let current = maximum;
    Ok(setrlimit(Resource::Nofile, Rlimit { current, maximum })?)
}
