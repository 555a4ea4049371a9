//! How fast the proxy's core is just now. A virtual machine's core is as a rule one of two hardware
//! threads of a core of the host; while another machine is busy on the second, everything here is
//! slower by up to two thirds, for seconds or for minutes, and nothing in this machine tells why.

use std::hint::black_box;
use std::io::{BufRead, Write, stdin, stdout};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::role::Role;
use crate::spread::Spread;

/// What the second program is called by.
pub(crate) const ROLE: &str = "pace";
/// Rounds of a piece of work: some milliseconds, in which a core that is shared shows it.
const ROUNDS: u32 = 3_000_000;
/// Pieces of a reading.
const PIECES: usize = 9;
/// By how much a core may be slower than the fastest piece of the run and count as not shared.
const ALONE: f64 = 1.15;
/// How far two readings may be apart between which figures are compared.
const STEADY: f64 = 1.2;
/// Readings at the beginning, from which the fastest piece is known: a core that is shared is not so in
/// every millisecond.
const FIRST: usize = 24;
const PAUSE: Duration = Duration::from_millis(250);

/// Reads the pace of a core, from a program on it that otherwise sleeps.
#[derive(Debug)]
pub(crate) struct Pace {
    probe: Role,
    fastest: f64,
}

impl Pace {
    /// Of this core.
    pub(crate) fn of(core: &str) -> Result<Self> {
        let mut this = Self {
            probe: Role::start_on(core, ROLE, "")?,
            fastest: f64::INFINITY,
        };
        for _ in 0..FIRST {
            this.now()?;
            thread::sleep(PAUSE / 5);
        }
        Ok(this)
    }

    /// Nanoseconds that a piece of work takes.
    pub(crate) fn now(&mut self) -> Result<f64> {
        let pieces: Vec<f64> = self.probe.go()?;
        let least = pieces.iter().copied().fold(f64::INFINITY, f64::min);
        self.fastest = self.fastest.min(least);
        let middle = Spread::of(&pieces).map(|spread| spread.median);
        ensure!(middle.is_some(), "the probe of the core did nothing");
        Ok(middle.unwrap_or_default())
    }

    /// The same once the core is not shared, or as it is when `patience`, which is used up, is at its end.
    pub(crate) fn alone(&mut self, patience: &mut Duration) -> Result<f64> {
        loop {
            let since = Instant::now();
            let pace = self.now()?;
            if self.is_alone(pace) || patience.is_zero() {
                return Ok(pace);
            }
            thread::sleep(PAUSE);
            *patience = patience.saturating_sub(since.elapsed());
        }
    }

    /// Whether it was read on a core that is not shared, as far as the run has seen.
    pub(crate) fn is_alone(&self, pace: f64) -> bool {
        pace < ALONE * self.fastest
    }

    /// The fastest piece of all, in nanoseconds.
    pub(crate) const fn fastest(&self) -> f64 {
        self.fastest
    }
}

/// Whether nothing has changed between some readings.
pub(crate) fn is_steady(paces: &[f64]) -> bool {
    let least = paces.iter().copied().fold(f64::INFINITY, f64::min);
    paces.iter().all(|pace| *pace < STEADY * least)
}

/// What the second program does: a reading for each line of its input.
pub(crate) fn run() -> Result<()> {
    for line in stdin().lock().lines() {
        line?;
        // The first wakes the core and is not told.
        piece();
        let pieces: Vec<_> = (0..PIECES).map(|_| piece()).collect();
        let mut out = stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&pieces)?)?;
        out.flush()?;
    }
    Ok(())
}

/// Nanoseconds of a piece: sums that do not wait for each other, so that they fill every unit of the
/// core, and a second thread of it takes its share.
fn piece() -> u64 {
    let since = Instant::now();
    let mut lanes: [u64; 6] = black_box([1, 2, 3, 4, 5, 6]);
    for _ in 0..ROUNDS {
        for (lane, turn) in lanes.iter_mut().zip([5, 7, 11, 13, 17, 19]) {
            *lane = lane.rotate_left(turn).wrapping_add(0x9E37_79B9);
        }
    }
    black_box(lanes);
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
