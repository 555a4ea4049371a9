//! Drills: traffic is taken off for a time, and comes back whatever happens.

use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::control_failover::{FAILBACK, MANUAL, Two};
use crate::data_services::Mode;
use crate::mesh::{eventually, within};

const HERE: [&str; 4] = ["failover", "drill", "--locality", "east/east-1"];

/// `zeugma failover drill` under way, of what is near.
struct Drill(Option<Child>);

impl Drill {
    fn start(two: &Two, more: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command
            .args(HERE)
            .args(more)
            .arg("--config")
            .arg(two.east.config())
            .env_remove("ZEUGMA_ADMIN")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(Some(command.spawn().unwrap()))
    }

    fn kill(&mut self) {
        let child = self.0.as_mut().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Its end, while requests go on.
    async fn ends(mut self, two: &Two) -> (Output, Vec<String>) {
        let child = self.0.take().unwrap();
        let mut ending = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap());
        let mut answers = Vec::new();
        let output = within("the drill ends", async {
            loop {
                tokio::select! {
                    output = &mut ending => break output.unwrap(),
                    answer = two.answers() => answers.push(answer),
                }
            }
        });
        (output.await, answers)
    }
}

impl Drop for Drill {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_drill_takes_traffic_off_for_its_time_brings_it_back_and_says_what_happened() {
    let two = Two::new(FAILBACK);
    let gateway = two.east.start().await;
    two.becomes("near").await;
    let drill = Drill::start(&two, &["--for", "2s", "-o", "json"]);
    let (output, answers) = drill.ends(&two).await;
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    let told = json(&output);
    assert_eq!(told["kind"], "Drill");
    assert_eq!(
        (&told["over"], &told["ok"]),
        (&"time".into(), &true.into()),
        "{told}"
    );
    let levels = &told["clusters"][0]["levels"];
    assert_eq!(levels[0]["share_before"], 1.0, "{told}");
    assert_eq!(levels[0]["share_end"], 0.0, "{told}");
    assert_eq!(levels[1]["share_end"], 1.0, "{told}");
    assert_eq!(levels[0]["share_after"], 1.0, "{told}");
    assert!(told["requests"]["ended"].as_u64().unwrap() > 0, "{told}");
    assert_eq!(told["requests"]["failed"], 0, "{told}");
    assert!(told["back_after_seconds"].is_number(), "{told}");
    assert!(told["settled_after_seconds"].is_number(), "{told}");
    assert!(answers.iter().any(|answer| answer == "200 far"));
    assert!(answers.iter().all(|answer| answer.starts_with("200 ")));
    gateway.message("ZG0450").await;
    gateway.message("ZG0451").await;
    two.becomes("near").await;
    let failovers = two.does(&["get", "failovers", "-o", "json"]);
    assert!(failovers.contains("drill-over"), "{failovers}");
    gateway.finish().await;
}

#[tokio::test]
async fn a_drill_whose_command_dies_ends_by_itself_and_nobody_begins_a_second_meanwhile() {
    let two = Two::new(FAILBACK);
    let gateway = two.east.start().await;
    let mut drill = Drill::start(&two, &["--for", "1h"]);
    gateway.message("ZG0450").await;
    two.becomes("far").await;
    let second = two.fails(&[
        "failover",
        "drill",
        "--backend",
        "near",
        "--route",
        "demo/hello",
    ]);
    assert!(second.contains("a drill is under way"), "{second}");
    let evacuations = gateway_evacuations(&two);
    assert_eq!(evacuations[0]["drill"], true, "{evacuations}");
    drill.kill();
    let over = gateway.message("ZG0451").await;
    assert!(over.contains("lease"), "{over}");
    two.becomes("near").await;
    assert_eq!(gateway_evacuations(&two), Value::Array(Vec::new()));
    gateway.finish().await;
}

fn gateway_evacuations(two: &Two) -> Value {
    let told = two.does(&["get", "failovers", "-o", "json"]);
    let told: Value = serde_json::from_str(&told).unwrap();
    told["failovers"]["evacuations"].clone()
}

#[tokio::test]
async fn a_drill_is_never_of_the_last_resort_and_ends_when_it_has_become_that() {
    let mut two = Two::new(FAILBACK);
    let gateway = two.east.start().await;
    two.becomes("near").await;
    let rest = ["failover", "evacuate", "--locality", "far"];
    two.does(&rest);
    let refused = two.fails(&HERE);
    assert!(
        refused.contains("a drill never takes the last resort"),
        "{refused}"
    );
    assert!(refused.contains("(ZG0437)"), "{refused}");
    let tried = two.zeugma(&[&HERE[..], &["--dry-run"]].concat());
    assert_eq!(tried.status.code(), Some(2), "{tried:?}");
    assert!(
        error(&tried).contains("error[ZG1070]: it would be refused"),
        "{tried:?}"
    );
    two.does(&["failover", "reset", "--locality", "far"]);
    let drill = Drill::start(&two, &["--for", "1h"]);
    gateway.message("ZG0450").await;
    two.becomes("far").await;
    two.far.kill().await;
    let (output, _) = drill.ends(&two).await;
    assert_eq!(output.status.code(), Some(2), "{}", error(&output));
    let said = error(&output);
    assert!(
        said.contains("error[ZG1071]: nothing else of a route was healthy"),
        "{said}"
    );
    let over = gateway.message("ZG0451").await;
    assert!(over.contains("last-resort"), "{over}");
    two.becomes("near").await;
    two.far.revive();
    gateway.finish().await;
}

#[tokio::test]
async fn a_drill_is_given_up_when_more_fails_than_may() {
    let two = Two::new(FAILBACK);
    let gateway = two.east.start().await;
    two.becomes("near").await;
    // It ejects nothing, so that the gateway alone would see nothing in it.
    two.far.set(Mode::Status(500));
    let drill = Drill::start(&two, &["--for", "1h", "--max-failed", "5%"]);
    let (output, _) = drill.ends(&two).await;
    assert_eq!(output.status.code(), Some(2), "{}", error(&output));
    assert!(error(&output).contains("given up: "), "{}", error(&output));
    let over = gateway.message("ZG0451").await;
    assert!(over.contains("asked"), "{over}");
    two.becomes("near").await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_drill_ends_with_the_gateway_and_leaves_manual_failback_as_it_was() {
    let two = Two::new(MANUAL);
    let first = two.east.start().await;
    two.becomes("near").await;
    let drill = Drill::start(&two, &["--for", "1h"]);
    first.message("ZG0450").await;
    two.becomes("far").await;
    first.finish().await;
    let second = two.east.start().await;
    // No reset is owed: nothing was bad.
    two.becomes("near").await;
    let (output, _) = drill.ends(&two).await;
    assert_eq!(output.status.code(), Some(2), "{}", error(&output));
    assert!(
        error(&output).contains("was restarted or handed over"),
        "{}",
        error(&output)
    );
    second.finish().await;
}

#[tokio::test]
async fn a_dry_run_plays_the_gateways_present_state_and_changes_nothing() {
    let mut two = Two::new("failback: { after: 0s, ramp: 10s, mode: manual }");
    let gateway = two.east.start().await;
    two.becomes("near").await;
    let evacuate = [
        "failover",
        "evacuate",
        "--locality",
        "east/east-1",
        "--dry-run",
    ];
    let said = two.does(&evacuate);
    for line in [
        "nothing is changed.",
        "evacuate locality east/east-1 at 5 s: 1 endpoint(s)",
        "demo/hello:80",
        "headroom: what is healthy has room for 100.0 % of the traffic at the least, at 5 s",
        "0 would fail and 0 be refused",
        "begins at 5 s: shares stay after 0 s",
    ] {
        assert!(said.contains(line), "{line} is not in:\n{said}");
    }
    let drill = [
        &HERE[..],
        &["--for", "20s", "--dry-run", "--rate", "10/s", "-o", "json"],
    ]
    .concat();
    let told: Value = serde_json::from_str(&two.does(&drill)).unwrap();
    let played = &told["simulation"];
    assert_eq!(
        (&told["kind"], &told["dryRun"]),
        (&"Drill".into(), &true.into())
    );
    assert_eq!(played["rate"], 10.0);
    let phases = played["services"][0]["phases"].as_array().unwrap();
    assert_eq!(phases[1]["edge"], "ends", "{played}");
    let back = phases[1]["settled_after_seconds"].as_f64().unwrap();
    assert!((9.0..=10.5).contains(&back), "the ramp: {played}");
    assert_eq!(two.answers().await, "200 near");
    assert_eq!(gateway_evacuations(&two), Value::Array(Vec::new()));
    // From how it stands: the near one waits for a reset.
    two.near.kill().await;
    two.becomes("far").await;
    two.near.revive();
    gateway.message("ZG0436").await;
    let reset = ["failover", "reset", "demo/hello", "--dry-run", "-o", "json"];
    let told: Value = serde_json::from_str(&two.does(&reset)).unwrap();
    let near = &told["simulation"]["services"][0]["levels"][0];
    assert_eq!(
        (&near["share"], &near["share_end"]),
        (&0.0.into(), &1.0.into()),
        "{told}"
    );
    let levels = two.levels();
    assert_eq!(levels[0]["state"], "waits for reset", "{levels}");
    let wrong = two.fails(&["failover", "reset", "demo/helo", "--dry-run"]);
    assert!(wrong.contains("did you mean `demo/hello`?"), "{wrong}");
    let nothing = two.fails(&["failover", "evacuate", "--locality", "mars", "--dry-run"]);
    assert!(
        nothing.contains("there are: east/east-1, far/far-1"),
        "{nothing}"
    );
    eventually("nothing moved", async || {
        (two.answers().await == "200 far").then_some(())
    })
    .await;
    gateway.finish().await;
}

/// What broke: what was before was by health, what was after by what has room, so that traffic never
/// was back.
#[tokio::test]
async fn a_drill_of_what_takes_only_so_much_ends_when_its_share_by_health_is_back() {
    let two = Two::new(FAILBACK);
    two.east.route(
        "demo/hello",
        &format!(
            "
            protocol: http
            backends:
              - {{ name: near, endpoints: ['{}'], capacity: 2/s }}
              - {{ name: far, locality: far/far-1, endpoints: ['{}'] }}
            failover: {{ {FAILBACK} }}
            allow: [{{ listeners: [apps] }}]",
            two.near.address(),
            two.far.address()
        ),
    );
    let gateway = two.east.start().await;
    eventually("more than fits", async || {
        for _ in 0..20 {
            two.answers().await;
        }
        let placed = two.levels()[0]["share"].as_f64()?;
        (placed < 0.5).then_some(())
    })
    .await;
    let words = ["--for", "1s", "--back-within", "20s", "-o", "json"];
    let (output, answers) = Drill::start(&two, &words).ends(&two).await;
    assert_eq!(output.status.code(), Some(0), "{}", error(&output));
    let told = json(&output);
    let levels = &told["clusters"][0]["levels"];
    assert_eq!(
        (&levels[0]["share_end"], &levels[0]["share_after"]),
        (&0.0.into(), &1.0.into()),
        "{told}"
    );
    assert_eq!(levels[1]["placed_end"], 1.0, "{told}");
    let series = told["series"].as_array().unwrap();
    let first = series[0]["placed"][0][0].as_f64().unwrap();
    assert!(first < 0.5, "{told}");
    assert!(answers.iter().all(|answer| answer.starts_with("200 ")));
    gateway.finish().await;
}

/// What broke: it was refused as done, and undone when the drill was over.
#[tokio::test]
async fn who_evacuates_what_is_drilled_has_it_evacuated_after_the_drill() {
    let two = Two::new(FAILBACK);
    let gateway = two.east.start().await;
    two.becomes("near").await;
    let drill = Drill::start(&two, &["--for", "1h"]);
    gateway.message("ZG0450").await;
    let evacuate = ["failover", "evacuate", "--locality", "east/east-1"];
    let tried = two.zeugma(&[&evacuate[..], &["--dry-run"]].concat());
    assert_eq!(tried.status.code(), Some(0), "{}", error(&tried));
    let said = two.does(&[&evacuate[..], &["-o", "json"]].concat());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["kept"], true, "{said}");
    let over = gateway.message("ZG0451").await;
    assert!(over.contains("it is evacuated"), "{over}");
    let (output, answers) = drill.ends(&two).await;
    assert_eq!(output.status.code(), Some(2), "{}", error(&output));
    assert!(
        error(&output).contains("traffic stays off until `zeugma failover reset`"),
        "{}",
        error(&output)
    );
    assert!(
        answers
            .iter()
            .rev()
            .take(3)
            .all(|answer| answer == "200 far")
    );
    let evacuations = gateway_evacuations(&two);
    assert_eq!(evacuations[0]["locality"], "east/east-1", "{evacuations}");
    assert_eq!(evacuations[0].get("drill"), None, "{evacuations}");
    assert_eq!(evacuations.as_array().unwrap().len(), 1, "{evacuations}");
    gateway.finish().await;
    let second = two.east.start().await;
    assert_eq!(two.answers().await, "200 far", "after a restart");
    two.does(&["failover", "reset", "--locality", "east/east-1"]);
    two.becomes("near").await;
    second.finish().await;
}
