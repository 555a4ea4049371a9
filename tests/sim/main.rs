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
    reason = "tests"
)]

mod check;
mod scenario;
mod world;

use scenario::{Scenario, Tally};

/// Scenarios of one run of the tests; about fifteen seconds of one processor without optimisation.
const SCENARIOS: u64 = 1000;

#[test]
fn what_must_hold_holds_in_every_scenario() {
    let (first, count) = match number("ZEUGMA_SEED") {
        Some(seed) => (seed, 1),
        None => (1, number("ZEUGMA_SCENARIOS").unwrap_or(SCENARIOS)),
    };
    let mut tally = Tally::default();
    for seed in first..first + count {
        tally.add(&run(seed));
    }
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
        if std::thread::panicking() {
            eprintln!("replay with ZEUGMA_SEED={}", self.0);
        }
    }
}
