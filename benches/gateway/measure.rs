//! What a process and its children have cost: CPU time by thread, and memory.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How far apart two readings are that must agree before a process counts as quiet.
const QUIET_STEP: Duration = Duration::from_millis(25);
/// What a quiet process may still use in a step: timers of its own.
const QUIET_NS: u64 = 100_000;
/// How long to wait for quiet; what is not over by then is counted as far as it has come.
const QUIET_WITHIN: Duration = Duration::from_secs(2);

/// The CPU time of every thread of some process trees.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    threads: BTreeMap<(u32, u32), u64>,
}

impl Cpu {
    /// Reads the first field of `/proc/<pid>/task/*/schedstat`: nanoseconds on a CPU.
    pub(crate) fn of(roots: &[u32]) -> Result<Self> {
        let mut threads = BTreeMap::new();
        for pid in roots.iter().flat_map(|root| tree(*root)) {
            for tid in numbers(&format!("/proc/{pid}/task")) {
                // A thread that has just ended is not there to be read; `since` notices.
                let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat"))
                else {
                    continue;
                };
                let first = text.split_whitespace().next().unwrap_or_default();
                let spent = first
                    .parse()
                    .with_context(|| format!("schedstat of thread {tid}: {text:?}"))?;
                threads.insert((pid, tid), spent);
            }
        }
        if threads.is_empty() {
            bail!("no process of {roots:?} is running");
        }
        Ok(Self { threads })
    }

    /// Reads again and again until all of it has come to rest.
    pub(crate) fn at_rest(roots: &[u32]) -> Result<Self> {
        let until = Instant::now() + QUIET_WITHIN;
        let mut last = Self::of(roots)?;
        loop {
            thread::sleep(QUIET_STEP);
            let next = Self::of(roots)?;
            let moved = next.total().saturating_sub(last.total());
            if moved < QUIET_NS || Instant::now() > until {
                return Ok(next);
            }
            last = next;
        }
    }

    /// All of it.
    pub(crate) fn total(&self) -> u64 {
        self.threads.values().sum()
    }

    /// What was used since `before`; `None` if a thread ended in between and took its count along.
    pub(crate) fn since(&self, before: &Self) -> Option<u64> {
        let all = before
            .threads
            .keys()
            .all(|key| self.threads.contains_key(key));
        all.then(|| self.total().saturating_sub(before.total()))
    }
}

/// Nanoseconds that a process tree was on a processor in all, threads that have ended included, in
/// steps of 10 ms (proc_pid_stat(5): in ticks, of which Linux tells 100 a second).
pub(crate) fn lifetime(root: u32) -> Result<u64> {
    const TICK_NANOSECONDS: u64 = 10_000_000;
    let mut ticks = 0;
    for pid in tree(root) {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is a name, which may hold anything but ends with the last parenthesis.
        let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        for field in fields.split_whitespace().skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
    }
    Ok(ticks * TICK_NANOSECONDS)
}

/// The proportional set size of a process tree, in bytes.
pub(crate) fn pss(root: u32) -> Result<u64> {
    let mut sum = 0;
    for pid in tree(root) {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
        let kilobytes: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("Pss:"))
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("no Pss in smaps_rollup of {pid}"))?
            .parse()?;
        sum += kilobytes * 1024;
    }
    Ok(sum)
}

/// A process and all that descend from it.
fn tree(root: u32) -> Vec<u32> {
    let mut all = vec![root];
    let mut next = 0;
    while let Some(&pid) = all.get(next) {
        next += 1;
        for tid in numbers(&format!("/proc/{pid}/task")) {
            let path = format!("/proc/{pid}/task/{tid}/children");
            let children = fs::read_to_string(path).unwrap_or_default();
            all.extend(
                children
                    .split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
    }
    all
}

fn numbers(folder: &str) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
