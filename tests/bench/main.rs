//! What `cargo bench -p zeugma --bench gateway` keeps: every row says which run it is of, however many runs
//! the file is made of.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../../benches/support/machine.rs"]
#[expect(dead_code, reason = "nothing is measured here")]
mod machine;
#[path = "../../benches/gateway/report.rs"]
mod report;
#[path = "../../benches/gateway/results.rs"]
#[expect(dead_code, reason = "who takes part is the bench's to say")]
mod results;
#[path = "../../benches/gateway/spread.rs"]
mod spread;

use std::collections::BTreeMap;
use std::path::Path;

use results::{
    Failure, Goal, Mark, Measured, Metric, Peer, Program, Results, Run, Sample, Settings,
};

const FULL: &str = "2026-11-01T10:00:00Z";
const LATER: &str = "2026-11-02T10:00:00Z";
const NAMES: [&str; 3] = ["connections", "requests", "bulk"];

#[test]
fn a_part_that_is_run_again_replaces_its_rows_and_no_others() {
    let full = of_run(
        FULL,
        4,
        &[("connections", 60.0), ("requests", 20.0), ("bulk", 400.0)],
    );
    let part = of_run(LATER, 10, &[("requests", 15.0)]);
    let kept = full.with(part, &NAMES);
    assert_eq!(
        rows(&kept),
        [
            ("connections", FULL, 60.0, 4),
            ("requests", LATER, 15.0, 10),
            ("bulk", FULL, 400.0, 4),
        ]
    );
    assert_eq!(runs(&kept), [FULL, LATER]);
}

#[test]
fn a_table_says_which_program_ran() {
    let table = of_run(FULL, 4, &[("bulk", 400.0)]).table().unwrap();
    let told = "zeugma: `zeugma 0.1.0`, `target/image/zeugma`; the program's file is 1.0 MiB";
    assert!(table.contains(told), "{table}");
}

#[test]
fn a_run_of_which_no_row_is_left_is_forgotten() {
    let full = of_run(FULL, 4, &[("connections", 60.0), ("requests", 20.0)]);
    let again = of_run(LATER, 4, &[("connections", 61.0), ("requests", 21.0)]);
    let kept = full.with(again, &NAMES);
    assert_eq!(runs(&kept), [LATER]);
    assert!(kept.table().unwrap().contains("All rows are of one run"));
}

#[test]
fn a_workload_that_is_no_more_goes_with_the_next_run() {
    let full = of_run(FULL, 4, &[("dropped", 1.0), ("bulk", 400.0)]);
    let part = of_run(LATER, 4, &[("connections", 61.0)]);
    let kept = full.with(part, &NAMES);
    assert_eq!(
        rows(&kept),
        [("connections", LATER, 61.0, 4), ("bulk", FULL, 400.0, 4)]
    );
}

#[test]
fn a_failure_leaves_the_row_of_before_and_goes_once_the_workload_is_measured() {
    let full = of_run(FULL, 4, &[("requests", 20.0)]);
    let mut failed = of_run(LATER, 4, &[]);
    failed.failures.push(Failure {
        workload: "requests".to_owned(),
        run: LATER.to_owned(),
        error: "a wrong body\nand what came of it".to_owned(),
    });
    let kept = full.with(failed, &NAMES);
    assert_eq!(rows(&kept), [("requests", FULL, 20.0, 4)]);
    assert_eq!(runs(&kept), [FULL, LATER]);
    let table = kept.table().unwrap();
    assert!(
        table.contains("**Failed** in run 2: requests: a wrong body\n"),
        "{table}"
    );

    let third = "2026-11-03T10:00:00Z";
    let mended = kept.with(of_run(third, 4, &[("requests", 19.0)]), &NAMES);
    assert_eq!(mended.failures, []);
    assert_eq!(runs(&mended), [third]);
}

#[test]
fn the_report_tells_the_run_of_every_row_and_never_claims_one_where_there_were_several() {
    let full = of_run(FULL, 4, &[("connections", 60.0), ("requests", 20.0)]);
    let part = of_run(LATER, 10, &[("requests", 15.0)]);
    let table = full.with(part, &NAMES).table().unwrap();
    assert!(table.contains("The rows are of 2 runs"), "{table}");
    assert!(!table.contains("one run:"), "{table}");
    for line in [
        "- run 1: 2026-11-01T10:00:00Z, commit c-2026-11-01; 4 repetitions,",
        "- run 2: 2026-11-02T10:00:00Z, commit c-2026-11-02; 10 repetitions,",
        "| title of connections | CPU µs | 60.0 ± 0 % | ≤ 20.0 CPU µs | **missed** |  | 1 | 4 |",
        "| title of requests | CPU µs | 15.0 ± 0 % | ≤ 20.0 CPU µs | met |  | 2 | 10 |",
    ] {
        assert!(table.contains(line), "{line} in {table}");
    }
}

#[test]
fn a_ratio_is_of_samples_of_one_round_and_the_row_says_how_slow_the_core_was() {
    let mut one = of_run(FULL, 3, &[("requests", 1.0)]);
    let pace = |cpu: f64, pace: f64| Sample::from([(Metric::CpuNs, cpu), (Metric::PaceNs, pace)]);
    let requests = one.workloads.first_mut().unwrap();
    requests.goals = vec![Goal {
        metric: Metric::CpuNs,
        against: Some(Peer::Haproxy),
        mark: Mark::AtMost(1.0),
    }];
    // Ours takes nine tenths in most rounds; of all rounds together its median is near twice the other.
    let ours = vec![pace(18e3, 5e6), pace(18e3, 5e6), pace(9e3, 2e6)];
    let theirs = vec![pace(20e3, 5e6), pace(10e3, 2e6), pace(10e3, 2.5e6)];
    requests.samples =
        BTreeMap::from([("zeugma".to_owned(), ours), ("haproxy".to_owned(), theirs)]);
    requests.uneven = 1;
    one.runs.first_mut().unwrap().fastest_ns = Some(2e6);
    let table = one.table().unwrap();
    let row = "| 18.0 ± 0 % | 10.0 ± 0 % | 0.90 ± 0 % | ≤ 1.00 × haproxy | met | 1.00–2.50, uneven 1 | 1 | 3 |";
    assert!(table.contains(row), "{row} in {table}");
    assert!(!table.contains("core ns"), "{table}");
}

#[test]
fn a_mark_to_stay_above_is_missed_below_it() {
    for (rate, verdict) in [(19.9, "**missed**"), (20.0, "met")] {
        let mut one = of_run(FULL, 1, &[("bulk", 1.0)]);
        let bulk = one.workloads.first_mut().unwrap();
        bulk.goals = vec![Goal {
            metric: Metric::StreamMbPerS,
            against: None,
            mark: Mark::AtLeast(20.0),
        }];
        let sample = Sample::from([(Metric::StreamMbPerS, rate)]);
        bulk.samples = BTreeMap::from([("zeugma".to_owned(), vec![sample])]);
        let table = one.table().unwrap();
        let goal = format!("| ≥ 20.0 MB/s a stream | {verdict} |");
        assert!(table.contains(&goal), "{goal} in {table}");
    }
}

#[test]
fn what_is_written_is_read_again_and_the_table_stands_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("RESULTS.json");
    let full = of_run(FULL, 4, &[("connections", 60.0), ("requests", 20.0)]);
    full.write(&path).unwrap();
    assert_eq!(Results::read(&path).unwrap(), full);
    let table = std::fs::read_to_string(folder.path().join("RESULTS.md")).unwrap();
    assert_eq!(table, full.table().unwrap());
}

#[test]
fn the_table_in_the_repository_is_made_from_the_json_beside_it() {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    let kept = Results::read(&benches.join("RESULTS.json")).unwrap();
    let table = std::fs::read_to_string(benches.join("RESULTS.md")).unwrap();
    assert!(
        table == kept.table().unwrap(),
        "run `cargo bench -p zeugma --bench gateway -- --render benches/RESULTS.json`"
    );
    for one in &kept.workloads {
        assert!(
            kept.runs.iter().any(|run| run.id == one.run),
            "{}",
            one.name
        );
    }
}

/// A run of zeugma alone, with rows of as many equal samples, in CPU µs; 20 is their mark.
fn of_run(id: &str, repetitions: usize, rows: &[(&str, f64)]) -> Results {
    let program = Program {
        version: "zeugma 0.1.0".to_owned(),
        path: Some("target/image/zeugma".to_owned()),
        bytes: 1 << 20,
        stripped_bytes: None,
    };
    let machine = serde_json::json!({
        "cpu": "a processor", "cores": 2, "kernel": "6.1", "memory": "1 kB", "load": ["0.1", "0.2"],
    });
    let run = Run {
        id: id.to_owned(),
        commit: format!("c-{}", id.split('T').next().unwrap()),
        machine: serde_json::from_value(machine).unwrap(),
        programs: BTreeMap::from([(Peer::Zeugma, program)]),
        settings: Settings {
            repetitions,
            quick: false,
            seconds: 60,
        },
        fastest_ns: None,
    };
    let workloads = rows.iter().map(|(name, microseconds)| {
        let sample = Sample::from([(Metric::CpuNs, microseconds * 1e3)]);
        Measured {
            name: (*name).to_owned(),
            run: id.to_owned(),
            title: format!("title of {name}"),
            goals: vec![Goal {
                metric: Metric::CpuNs,
                against: None,
                mark: Mark::AtMost(20e3),
            }],
            samples: BTreeMap::from([("zeugma".to_owned(), vec![sample; repetitions])]),
            uneven: 0,
        }
    });
    Results {
        runs: vec![run],
        workloads: workloads.collect(),
        failures: Vec::new(),
    }
}

/// Name, run, median in µs and samples of each row.
fn rows(results: &Results) -> Vec<(&str, &str, f64, usize)> {
    results
        .workloads
        .iter()
        .map(|one| {
            let median = one.spread("zeugma", Metric::CpuNs).unwrap().median;
            (
                one.name.as_str(),
                one.run.as_str(),
                median / 1e3,
                one.count(),
            )
        })
        .collect()
}

fn runs(results: &Results) -> Vec<&str> {
    results.runs.iter().map(|run| run.id.as_str()).collect()
}
