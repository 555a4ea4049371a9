//! A second opinion on who may call what: [`opinion`] is written from the manual alone, as plainly as
//! it can be and sharing nothing with the engine, and both are asked about a million calls to
//! configurations that are loaded from YAML.
//!
//! A difference prints its seed; `ZEUGMA_SEED=<seed> cargo test -p zeugma-xds --test oracle` replays
//! the calls to that configuration alone, and `ZEUGMA_WORLDS=<n>` asks about more of them.

#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "tests"
)]

mod calls;
mod engine;
mod opinion;
mod path;
mod world;
mod worlds;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use fastrand::Rng;

use opinion::Answer;
use world::Call;

/// Configurations of one run.
const WORLDS: u64 = 500;
/// Calls to each.
const CALLS: usize = 2100;
/// Configurations with entries that may have no effect.
const DOUBTFUL_WORLDS: u64 = 1500;

/// How often each answer was given.
type Tally = BTreeMap<String, u64>;

#[test]
fn the_engine_and_the_manual_agree_on_every_call() {
    let tally = each_world(WORLDS, |seed, tally| {
        let mut rng = Rng::with_seed(seed);
        let world = worlds::world(&mut rng);
        let engine = engine::Engine::new(&world);
        for nth in 0..CALLS {
            let call = calls::call(&mut rng, &world);
            let (ours, expected) = (engine.answer(&call), opinion::answer(&world, &call));
            assert_eq!(
                ours,
                expected,
                "the engine's answer and the manual's, call {nth} with seed {seed}\n{call:?}\n{}",
                world.yaml()
            );
            *tally.entry(kind(&call, &expected)).or_default() += 1;
        }
    });
    let Some(tally) = tally else { return };
    let calls: u64 = tally.values().sum();
    eprintln!("{calls} calls: {tally:#?}");
    assert!(calls >= 1_000_000);
    // Whatever is asked too rarely proves nothing.
    for (answer, least) in [
        ("carried", 100_000),
        ("carried, audited", 20_000),
        ("carried for whom a peer attests", 10_000),
        ("denied", 30_000),
        ("misdirected", 10_000),
        ("no-local-endpoint", 2000),
        ("no-rule", 5000),
        ("not-allowed", 50_000),
        ("not-exported", 20_000),
        ("not-tls", 1000),
        ("port-needed", 5000),
        ("sni-unknown", 5000),
        ("authority-unknown", 5000),
        ("authority-missing", 1000),
        ("sni-missing", 500),
        ("source-refused", 20_000),
    ] {
        let asked = tally.get(answer).copied().unwrap_or_default();
        assert!(asked >= least, "{answer} only {asked} times");
    }
}

#[test]
fn an_entry_without_effect_is_refused_where_the_table_of_paths_says() {
    let tally = each_world(DOUBTFUL_WORLDS, |seed, tally| {
        let mut rng = Rng::with_seed(seed);
        let world = worlds::doubtful(&mut rng);
        let useless = opinion::without_effect(&world);
        let refused = engine::refused(&world);
        assert_eq!(
            refused,
            useless,
            "refused entries, and those the manual says have no effect, seed {seed}\n{}",
            world.yaml()
        );
        let kind = if useless.is_empty() {
            "loads"
        } else {
            "refused"
        };
        *tally.entry(kind.to_owned()).or_default() += 1;
    });
    let Some(tally) = tally else { return };
    eprintln!("{tally:?}");
    assert!(
        tally["loads"] >= 100 && tally["refused"] >= 100,
        "{tally:?}"
    );
}

/// Asks about each seed's world, on all processors; the tally where it was as many as the test asks for.
fn each_world(count: u64, ask: impl Fn(u64, &mut Tally) + Sync) -> Option<Tally> {
    if let Some(seed) = number("ZEUGMA_SEED") {
        ask(seed, &mut Tally::new());
        return None;
    }
    let asked = number("ZEUGMA_WORLDS");
    let count = asked.unwrap_or(count);
    let next = AtomicU64::new(1);
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let tally = thread::scope(|scope| {
        let asking = || {
            let mut tally = Tally::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed > count {
                    return tally;
                }
                let _told_on_panic = Seed(seed);
                ask(seed, &mut tally);
            }
        };
        let asked: Vec<_> = (0..threads).map(|_| scope.spawn(asking)).collect();
        let mut all = Tally::new();
        for thread in asked {
            for (kind, count) in thread.join().unwrap() {
                *all.entry(kind).or_default() += count;
            }
        }
        all
    });
    asked.is_none().then_some(tally)
}

fn kind(call: &Call, answer: &Answer) -> String {
    match answer {
        Answer::Refused(reason) => (*reason).to_owned(),
        Answer::Carried { allow: None, .. } => "carried, audited".to_owned(),
        Answer::Carried { attested: true, .. } => "carried for whom a peer attests".to_owned(),
        Answer::Carried { .. } if call.listener == "raw" => {
            "carried from a listener of its own".to_owned()
        }
        Answer::Carried { .. } => "carried".to_owned(),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

/// Says which world failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("replay with ZEUGMA_SEED={}", self.0);
        }
    }
}
