//! What operators decide of failover: resets of levels that wait for one, and evacuations.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use crate::data_mesh::HELLO;
use crate::data_services::HttpService;
use crate::mesh::{Cluster, Gateway, eventually, get};

pub(crate) const FAILBACK: &str = "failback: { after: 0s, ramp: 0s }";
pub(crate) const MANUAL: &str = "failback: { ramp: 0s, mode: manual }";

/// Two backends, the second in another region.
pub(crate) struct Two {
    pub(crate) east: Cluster,
    pub(crate) near: HttpService,
    pub(crate) far: HttpService,
}

impl Two {
    pub(crate) fn new(failback: &str) -> Self {
        let (near, far) = (HttpService::start("near"), HttpService::start("far"));
        let mut east = Cluster::new("east");
        east.set("admin", "'unix:admin.sock'");
        let this = Self { east, near, far };
        this.route(failback, "5s");
        this
    }

    fn route(&self, failback: &str, answers_in: &str) {
        self.east.route(
            "demo/hello",
            &format!(
                "
                protocol: http
                backends:
                  - {{ name: near, endpoints: ['{}'] }}
                  - {{ name: far, locality: far/far-1, endpoints: ['{}'] }}
                failover: {{ {failback} }}
                health: {{ passive: {{ consecutive: 1, eject: 200ms, keepAtLeast: 0 }} }}
                timeouts: {{ responseHeaders: {answers_in} }}
                allow: [{{ listeners: [apps] }}]",
                self.near.address(),
                self.far.address()
            ),
        );
    }

    pub(crate) async fn answers(&self) -> String {
        let answer = get(self.east.apps, HELLO, "/").await;
        format!("{} {}", answer.status, answer.text())
    }

    pub(crate) async fn becomes(&self, who: &str) {
        let wanted = format!("200 {who}");
        eventually(&wanted, async || {
            (self.answers().await == wanted).then_some(())
        })
        .await;
    }

    /// `zeugma` with these words.
    pub(crate) fn zeugma(&self, words: &[&str]) -> Output {
        let (first, rest) = words.split_first().unwrap();
        Command::new(env!("CARGO_BIN_EXE_zeugma"))
            .arg(first)
            .args(rest)
            .arg("--config")
            .arg(self.east.config())
            .env_remove("ZEUGMA_ADMIN")
            .output()
            .unwrap()
    }

    pub(crate) fn does(&self, words: &[&str]) -> String {
        let output = self.zeugma(words);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{words:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn fails(&self, words: &[&str]) -> String {
        let output = self.zeugma(words);
        assert_ne!(output.status.code(), Some(0), "{words:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn levels(&self) -> Value {
        let status = self.does(&["status", "-o", "json"]);
        let status: Value = serde_json::from_str(&status).unwrap();
        status["routes"][0]["outbound"]["levels"].clone()
    }
}

async fn applied(gateway: &Gateway, generation: u32) {
    let text = format!("\"generation\":{generation}");
    eventually(&text, async || {
        let told = gateway.told();
        (told.contains("configuration applied")
            && told.contains(&format!("generation={generation}")))
        .then_some(())
    })
    .await;
}

#[tokio::test]
async fn with_manual_failback_traffic_stays_away_until_the_reset_across_reload_and_restart() {
    let mut two = Two::new(MANUAL);
    let first = two.east.start().await;
    assert_eq!(two.answers().await, "200 near");
    two.near.kill().await;
    two.becomes("far").await;
    two.near.revive();
    first.message("ZG0436").await;
    let levels = two.levels();
    assert_eq!(levels[0]["state"], "waits for reset", "{levels}");
    assert!(levels[0]["state_since"].is_string(), "{levels}");
    assert_eq!(levels[0]["healthy"], 1);
    let status = two.does(&["status"]);
    assert!(status.contains("(waits for reset since "), "{status}");
    two.route(MANUAL, "6s");
    applied(&first, 2).await;
    for _ in 0..5 {
        assert_eq!(two.answers().await, "200 far", "after a reload");
    }
    first.finish().await;
    let second = two.east.start().await;
    for _ in 0..5 {
        assert_eq!(two.answers().await, "200 far", "after a restart");
    }
    let said = two.fails(&["failover", "reset", "demo/other"]);
    assert!(
        said.contains("there is no route demo/other; ") && said.contains("(ZG0438)"),
        "{said}"
    );
    let said = two.does(&["failover", "reset", "demo/hello"]);
    assert_eq!(said, "reset: traffic comes back\n");
    second.message("ZG0441").await;
    two.becomes("near").await;
    let said = two.does(&["failover", "reset", "demo/hello"]);
    assert_eq!(said, "nothing of it waited\n");
    second.finish().await;
    // The reset outlives the process too.
    let third = two.east.start().await;
    assert_eq!(two.answers().await, "200 near");
    third.finish().await;
}

#[tokio::test]
async fn an_evacuation_holds_across_a_restart_until_its_reset_and_leaves_no_route_without() {
    let two = Two::new(FAILBACK);
    let first = two.east.start().await;
    assert_eq!(two.answers().await, "200 near");
    let here = ["--locality", "east/east-1"];
    let words =
        |verb: &'static str, more: &[&'static str]| [&["failover", verb], &here[..], more].concat();
    let said = two.does(&words("evacuate", &["--dry-run"]));
    let row = said
        .lines()
        .find(|line| line.contains("far/far-1"))
        .unwrap();
    assert!(row.contains("0.0 %") && row.contains("100.0 %"), "{said}");
    assert_eq!(two.answers().await, "200 near", "it was only asked");
    let said = two.does(&words("evacuate", &[]));
    assert!(said.ends_with("evacuated until a reset\n"), "{said}");
    first.message("ZG0440").await;
    for _ in 0..5 {
        assert_eq!(two.answers().await, "200 far");
    }
    let again = two.fails(&words("evacuate", &[]));
    assert!(again.contains("(ZG0438)"), "{again}");
    let rest = [
        "failover",
        "evacuate",
        "--backend",
        "far",
        "--route",
        "demo/hello",
    ];
    let refused = two.fails(&rest);
    assert!(refused.contains("outbound|demo/hello"), "{refused}");
    assert!(refused.contains("(ZG0437)"), "{refused}");
    let nobody = two.fails(&["failover", "evacuate", "--peer", "nobody"]);
    assert!(nobody.contains("no endpoint is of peer nobody"), "{nobody}");
    first.finish().await;

    let second = two.east.start().await;
    for _ in 0..5 {
        assert_eq!(two.answers().await, "200 far", "after a restart");
    }
    let levels = two.levels();
    assert_eq!(levels[0]["endpoints"][0]["status"], "evacuated", "{levels}");
    let failovers = two.does(&["get", "failovers", "-o", "json"]);
    assert!(
        failovers.contains(r#""locality":"east/east-1""#)
            || failovers.contains(r#""locality": "east/east-1""#),
        "{failovers}"
    );
    two.does(&[&rest[..], &["--force"]].concat());
    let answer = two.answers().await;
    assert!(answer.starts_with("503"), "{answer}");
    // What is reset by its route is its backend.
    two.does(&["failover", "reset", "demo/hello"]);
    two.becomes("far").await;
    two.does(&words("reset", &[]));
    two.becomes("near").await;
    let again = two.fails(&words("reset", &[]));
    assert!(
        again.contains("is not evacuated; ") && again.contains("(ZG0438)"),
        "{again}"
    );
    second.finish().await;
}

async fn handed_over(mut before: Gateway) {
    assert!(before.ended().await.success(), "{}", before.told());
}

/// What broke: both processes wrote the file, and a level that was bad came back without a reset.
#[tokio::test]
async fn what_was_decided_goes_over_in_a_handover_and_to_a_restart_while_a_level_is_bad() {
    let mut two = Two::new(MANUAL);
    let first = two.east.start().await;
    two.becomes("near").await;
    two.near.kill().await;
    two.becomes("far").await;
    // It is bad while the next takes over, and well after.
    let second = two.east.take_over().await;
    handed_over(first).await;
    two.near.revive();
    for _ in 0..5 {
        assert_eq!(two.answers().await, "200 far", "after a handover");
    }
    two.does(&["failover", "reset", "demo/hello"]);
    two.becomes("near").await;
    two.near.kill().await;
    two.becomes("far").await;
    second.finish().await;
    two.near.revive();
    let third = two.east.start().await;
    for _ in 0..5 {
        assert_eq!(two.answers().await, "200 far", "after a restart");
    }
    two.does(&["failover", "reset", "demo/hello"]);
    two.does(&["failover", "evacuate", "--locality", "east/east-1"]);
    let fourth = two.east.take_over().await;
    handed_over(third).await;
    two.does(&["failover", "reset", "--locality", "east/east-1"]);
    two.becomes("near").await;
    fourth.finish().await;
    let fifth = two.east.start().await;
    assert_eq!(
        two.answers().await,
        "200 near",
        "the reset is what was written last"
    );
    fifth.finish().await;
}

#[tokio::test]
async fn what_cannot_be_kept_is_said_and_holds_until_the_end() {
    let two = Two::new(FAILBACK);
    let state = two.east.config().join("state/east-gw");
    let first = two.east.start().await;
    first.finish().await;
    fs::create_dir(state.join("failover")).unwrap();
    let second = two.east.start().await;
    second
        .message("ZG0439 what operators decided of failover cannot be read")
        .await;
    let said = two.does(&["failover", "evacuate", "--locality", "east"]);
    assert!(
        said.contains("nothing can be kept in its stateDir"),
        "{said}"
    );
    second
        .message("ZG0439 what operators decided of failover cannot be kept")
        .await;
    assert_eq!(two.answers().await, "200 far");
    second.finish().await;
    let third = two.east.start().await;
    assert_eq!(two.answers().await, "200 near");
    third.finish().await;
}
