//! `zeugma demo` as a new user runs it: every scenario ends by itself with its claims held.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const ZEUGMA: &str = env!("CARGO_BIN_EXE_zeugma");

/// A scenario measures times and rates: two at once would measure one another.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn failover_holds_its_claims() {
    let (code, report) = play(&["--scenario", "failover"]);
    assert_eq!(code, Some(0), "{report:#}");
    assert_eq!(report["figures"]["lostGets"], 0);
    assert!(
        report["figures"]["sentGets"].as_u64() > Some(5000),
        "{report:#}"
    );
}

#[test]
fn failover_over_a_distance_holds_its_claims() {
    let (code, report) = play(&["--rtt", "80ms"]);
    assert_eq!(code, Some(0), "{report:#}");
    // Half of the difference could be noise; all of it could not.
    let median = |key: &str| report["figures"][key].as_u64().unwrap();
    let difference = median("latencyWestP50Ms") - median("latencyEastP50Ms");
    assert!(difference >= 60, "{report:#}");
}

#[test]
fn failover_without_the_other_cluster_exits_1() {
    let (code, report) = play(&["--without-west"]);
    assert_eq!(code, Some(1), "{report:#}");
    assert_eq!(report["held"], false);
    assert!(
        report["figures"]["lostGets"].as_u64() > Some(0),
        "{report:#}"
    );
}

#[test]
fn locality_holds_its_claims() {
    let (code, report) = play(&["--scenario", "locality"]);
    assert_eq!(code, Some(0), "{report:#}");
}

#[test]
fn mirror_holds_its_claims() {
    let (code, report) = play(&["--scenario", "mirror"]);
    assert_eq!(code, Some(0), "{report:#}");
}

#[test]
fn federation_holds_its_claims() {
    let (code, report) = play(&["--scenario", "federation"]);
    assert_eq!(code, Some(0), "{report:#}");
}

#[test]
fn a_demo_asked_to_end_leaves_nothing_behind() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut demo = Command::new(ZEUGMA)
        .arg("demo")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let mut line = |with: &str| {
        let found = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains(with)));
        found.unwrap().unwrap()
    };
    let folder = line("the demo's files are in");
    let folder = folder.split(" are in ").nth(1).unwrap();
    let folder = folder.split(',').next().unwrap();
    assert!(Path::new(folder).is_dir());
    let child = line("service  east-1");
    let child = child
        .split("pid ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    line("a client in east sends");

    let pid = Pid::from_raw(demo.id().try_into().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();

    assert_eq!(demo.wait().unwrap().code(), Some(1));
    assert!(!Path::new(folder).exists(), "{folder} is still there");
    assert!(
        !Path::new("/proc").join(child).exists(),
        "{child} still runs"
    );
}

/// Runs the demo to its end; its exit code and report.
fn play(args: &[&str]) -> (Option<i32>, Value) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = Instant::now();
    let output = Command::new(ZEUGMA)
        .args(["demo", "--output", "json"])
        .args(args)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(
        before.elapsed() < Duration::from_secs(60),
        "{:?}",
        before.elapsed()
    );
    let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), report)
}
