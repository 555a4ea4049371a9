//! The gateway's own decisions on a virtual clock, under seeded faults: what must hold after every
//! step, whatever happens.
//!
//! A failure prints its seed; `ZEUGMA_SEED=<seed> cargo test --test sim` replays that scenario
//! alone, and `ZEUGMA_SCENARIOS=<n>` runs more of them.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "tests, which read what to run from the environment"
)]

mod check;
mod scenario;
mod world;

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, available_parallelism};

use scenario::{Scenario, Tally};

/// Scenarios of one run of the tests: a good minute of one processor, for `zeugma-core` is optimised
/// where it is tested too.
const SCENARIOS: u64 = 10_000;

#[test]
fn what_must_hold_holds_in_every_scenario() {
    let (first, count) = match number("ZEUGMA_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("ZEUGMA_SCENARIOS").unwrap_or(SCENARIOS)),
    };
    let next = AtomicU64::new(first);
    let runner = || {
        let mut tally = Tally::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + count {
                return tally;
            }
            tally.add(&run(seed));
        }
    };
    let runners = available_parallelism().map_or(1, NonZero::get);
    let mut tally = Tally::default();
    thread::scope(|scope| {
        let runners: Vec<_> = (0..runners).map(|_| scope.spawn(runner)).collect();
        for runner in runners {
            tally.add(&runner.join().unwrap());
        }
    });
    eprintln!("{count} scenarios: {tally:?}");
    if count >= SCENARIOS {
        tally.check_that_everything_happened();
    }
}

#[test]
fn one_seed_is_one_history() {
    for seed in [3, 77, 4242] {
        assert_eq!(run(seed), run(seed));
    }
}

fn run(seed: u64) -> Tally {
    let _told_on_panic = Seed(seed);
    Scenario::new(seed).run()
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap())
}

/// Says which scenario failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("replay with ZEUGMA_SEED={}", self.0);
        }
    }
}
