//! What callers notice when endpoints, gateways and links die: our gateway beside Envoy, in one run.
//!
//! The question: at 200 requests a second no GET may fail, at most 5 POSTs, and no
//! outage may last longer than 1 s, or 5 s where a link is cut. A figure above these decides what is
//! worked on next. `cargo bench -p zeugma --bench failover` runs every case three times and writes
//! `benches/FAILOVER.json` and, from it, `benches/FAILOVER.md`; with `--only` it looks at some of
//! them and writes nothing. Links are cut in network namespaces, which need root.
#![expect(
    clippy::print_stdout,
    reason = "a benchmark talks to the one who runs it"
)]
#![expect(
    clippy::indexing_slicing,
    reason = "a wrong index or figure ends the run, as any wrong answer does"
)]

mod case;
mod endpoint;
mod envoy;
mod figures;
mod gateway;
mod load;
#[path = "../support/machine.rs"]
mod machine;
mod mesh;
#[path = "../../tests/gateway/mesh/namespace.rs"]
#[expect(
    dead_code,
    clippy::expect_used,
    reason = "the tests' namespaces, which end a test"
)]
mod namespace;
#[path = "../../tests/support/peers.rs"]
#[expect(dead_code, reason = "the tests' peers are more than ours")]
mod peers;
#[path = "../gateway/pki.rs"]
#[expect(dead_code, reason = "that bench issues more")]
mod pki;
#[path = "../support/ports.rs"]
mod ports;
#[path = "../../tests/support/process.rs"]
#[expect(dead_code, reason = "the tests wait for more")]
mod process;
mod report;
mod site;
mod zeugma;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Result, anyhow, bail, ensure};
use clap::Parser;
use http::Method;

use case::Case;
use figures::Figures;
use gateway::Contestant;
use machine::{Machine, commit, now};
use mesh::Mesh;
use report::{Results, Row};
use site::Site;

/// Idempotent, and not.
const METHODS: [Method; 2] = [Method::GET, Method::POST];

/// Measures what callers notice of a failover, beside Envoy.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only these cases, of failing, killed-endpoint, killed-gateway, cut-endpoint, cut-gateway;
    /// writes nothing
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How often each
    #[arg(long, default_value_t = 3)]
    repetitions: usize,
    /// Writes the document of a JSON of before, and measures nothing
    #[arg(long)]
    render: Option<PathBuf>,
    /// What cargo says
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let roles: Vec<String> = std::env::args().skip(1).take(2).collect();
    if let [role, address] = roles.as_slice()
        && role == endpoint::ROLE
    {
        return endpoint::run(address);
    }
    let arguments = Arguments::parse();
    if let Some(path) = &arguments.render {
        return Results::read(path)?.render(path);
    }
    measure(&arguments)
}

/// How often a repetition is begun at most.
const AGAIN_MAX: usize = 3;

fn measure(arguments: &Arguments) -> Result<()> {
    let begin = Instant::now();
    let cases = choose(&arguments.only)?;
    let repetitions = arguments.repetitions;
    ensure!(repetitions > 0, "no repetitions, no figures");
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("failover-{}", std::process::id()));
    let site = Site::new(&folder)?;
    let [zeugma, envoy] = site.versions()?;
    let mut machine = Machine::here()?;
    let at = now()?;
    let mut rows = Vec::new();
    for case in cases {
        let mut of_case = Vec::new();
        for contestant in Contestant::ALL {
            for method in METHODS {
                of_case.push(Row {
                    case,
                    contestant,
                    method: method.to_string(),
                    figures: Vec::new(),
                });
            }
        }
        of_case.sort_by(|one, other| one.method.cmp(&other.method));
        for repetition in 0..repetitions {
            println!("{}, {} of {repetitions}", case.name(), repetition + 1);
            // All eight at once are more than two processors have room for, and whoever waits for a
            // processor has more under way when the fault comes.
            for of_method in of_case.chunk_by_mut(|one, other| one.method == other.method) {
                let mut again = 0;
                while let Some(peer) = side_by_side(&site, of_method)? {
                    again += 1;
                    ensure!(again < AGAIN_MAX, "{peer} fails before every fault");
                    println!("once more: {peer} failed before the fault");
                }
            }
        }
        rows.extend(of_case);
    }
    machine.ended()?;
    let results = Results {
        at,
        commit: commit(),
        command: "cargo bench -p zeugma --bench failover".to_owned(),
        machine,
        zeugma,
        envoy,
        repetitions,
        seconds: begin.elapsed().as_secs(),
        given: given()?,
        rows,
    };
    println!("\n{}", results.tables()?);
    std::fs::remove_dir_all(&folder)?;
    // What is to be quoted is measured in full.
    if arguments.only.is_empty() && Case::ALL.iter().all(|case| results.has(*case)) {
        results.write(&Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/FAILOVER.json"))?;
    }
    Ok(())
}

/// Lets every row's mesh meet the fault at the same time, and adds what came of it; nothing where a peer's
/// gateway failed before, which is returned. Ours may not.
fn side_by_side(site: &Site, rows: &mut [Row]) -> Result<Option<&'static str>> {
    let meshes = on_threads(rows.iter(), |nth, row| {
        let folder = site.folder.join(format!("{}-{nth}", row.case.name()));
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        Mesh::start(site, row.case, row.contestant, &folder)
    })?;
    let jobs: Vec<_> = meshes
        .into_iter()
        .zip(rows.iter())
        .map(|(mesh, row)| -> Result<_> { Ok((mesh, Method::from_bytes(row.method.as_bytes())?)) })
        .collect::<Result<_>>()?;
    let volleys = on_threads(jobs, |_, (mesh, method)| mesh.endure(&method))?;
    let mut all = Vec::new();
    for (row, volley) in rows.iter().zip(&volleys) {
        match Figures::of(volley) {
            Ok(figures) => all.push(figures),
            Err(_) if row.contestant != Contestant::Zeugma => {
                return Ok(Some(row.contestant.name()));
            }
            Err(failed) => {
                return Err(failed.context(format!("zeugma with {}", row.method)));
            }
        }
    }
    for (row, figures) in rows.iter_mut().zip(all) {
        row.figures.push(figures);
    }
    Ok(None)
}

/// Does the same with each of them, on a thread of its own.
fn on_threads<T: Send, R: Send>(
    all: impl IntoIterator<Item = T>,
    work: impl Fn(usize, T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = all
            .into_iter()
            .enumerate()
            .map(|(nth, one)| scope.spawn(move || work(nth, one)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .map_err(|_panic| anyhow!("a thread panicked"))?
            })
            .collect()
    })
}

fn choose(only: &[String]) -> Result<Vec<Case>> {
    if let Some(word) = only
        .iter()
        .find(|word| Case::ALL.iter().all(|case| case.name() != **word))
    {
        bail!("no case {word:?}; --help names them");
    }
    let wanted = |case: &Case| only.is_empty() || only.iter().any(|word| word == case.name());
    // It says by itself that they are skipped.
    let can_cut = namespace::is_root_or_skipped("cut links");
    Ok(Case::ALL
        .into_iter()
        .filter(|case| wanted(case) && (can_cut || !case.is_cut()))
        .collect())
}

/// What decides how each fails over.
fn given() -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut all = BTreeMap::new();
    for contestant in Contestant::ALL {
        let mut of_cases = BTreeMap::new();
        for case in Case::ALL {
            of_cases.insert(case.name().to_owned(), contestant.decisive(case)?);
        }
        all.insert(contestant.name().to_owned(), of_cases);
    }
    Ok(all)
}
