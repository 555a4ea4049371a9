//! The commands that ask a running gateway.

use std::process::{Command, Output};

use serde_json::Value;

use crate::mesh::{Cluster, Pair, eventually, get, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// `zeugma` with these words and east's configuration.
fn command(east: &Cluster, words: &[&str]) -> Command {
    let (first, rest) = words.split_first().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
    command
        .arg(first)
        .args(rest)
        .arg("--config")
        .arg(east.config())
        .env_remove("ZEUGMA_ADMIN");
    command
}

fn zeugma(east: &Cluster, words: &[&str]) -> Output {
    command(east, words).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    assert_eq!(output.status.code(), Some(0), "{}", err(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// East's admin interface is a socket, as it is by default.
async fn pair() -> Pair {
    let mut east = Cluster::new("east");
    east.set("admin", "'unix:admin.sock'");
    Pair::start(east, "{ listeners: [apps] }").await
}

#[tokio::test]
async fn status_says_where_traffic_goes_and_get_says_why_it_moved() {
    let mut pair = pair().await;
    let status = zeugma(&pair.east, &["status"]);
    let text = out(&status);
    assert_eq!(status.status.code(), Some(0), "{}", err(&status));
    assert!(text.contains("gateway east-gw  cluster east"), "{text}");
    assert!(
        text.contains("peer west  west/west-1  healthy  1/1 ways"),
        "{text}"
    );
    let row = text.lines().find(|line| line.starts_with("shop/orders"));
    let words: Vec<&str> = row.unwrap().split_whitespace().collect();
    assert!(
        words.contains(&"preferred") && words.contains(&"west"),
        "{row:?}"
    );

    drop(pair.near.take());
    eventually("a move to west", async || {
        assert_eq!(get(pair.east.apps, ORDERS, "/").await.status, 200);
        let status = json(&zeugma(&pair.east, &["status", "-o", "json"]));
        assert_eq!(status["apiVersion"], "cli.zeugma.dev/v1");
        (status["routes"][0]["outbound"]["why"] == "failover").then_some(())
    })
    .await;
    let failovers = out(&zeugma(&pair.east, &["get", "failovers"]));
    assert!(failovers.contains("endpoint-ejected"), "{failovers}");
    assert!(failovers.contains("ejected: unreachable"), "{failovers}");
    let moves = (failovers.lines()).filter(|line| line.contains("shares-moved"));
    let moves: Vec<&str> = moves.collect();
    assert_eq!(moves.len(), 1, "{failovers}");
    assert!(moves[0].contains("outbound|shop/orders"), "{failovers}");
    for what in ["routes", "peers", "identities"] {
        let table = out(&zeugma(&pair.east, &["get", what]));
        assert!(table.lines().count() > 1, "{what}: {table}");
    }
    assert_eq!(out(&zeugma(&pair.east, &["get", "findings"])), "none\n");
    let typo = zeugma(&pair.east, &["status", "--service", "shop/odrers"]);
    assert_eq!(typo.status.code(), Some(1), "{}", out(&typo));
    let said = err(&typo);
    assert!(
        said.starts_with("error[ZG1010]: ") && said.contains("did you mean `shop/orders`?"),
        "{said}"
    );
    for what in ["routes", "connections"] {
        let typo = zeugma(
            &pair.east,
            &["get", what, "--service", "shop/odrers", "-o", "json"],
        );
        assert_eq!(typo.status.code(), Some(1), "{what}: {}", out(&typo));
        let said = err(&typo);
        assert!(
            said.starts_with("error[ZG1010]: ") && said.contains("did you mean `shop/orders`?"),
            "{what}: {said}"
        );
    }
    let none = zeugma(
        &pair.east,
        &["get", "connections", "--service", "shop/orders"],
    );
    assert_eq!(none.status.code(), Some(0), "{}", err(&none));
    let peers = zeugma(&pair.east, &["get", "peers", "--service", "shop/orders"]);
    assert_eq!(peers.status.code(), Some(64));
    assert!(
        err(&peers).contains("peers are of no route"),
        "{}",
        err(&peers)
    );
    pair.finish().await;
}

#[tokio::test]
async fn check_follows_the_way_to_a_peer_and_says_where_it_ends() {
    let pair = pair().await;
    let check = zeugma(&pair.east, &["check"]);
    let text = out(&check);
    assert_eq!(check.status.code(), Some(0), "{text}{}", err(&check));
    for step in ["tcp", "tls", "identity", "clock"] {
        let line = format!("{}: {step}", pair.west.mesh);
        let found = text.lines().find(|one| one.contains(&line));
        assert!(
            found.is_some_and(|one| one.starts_with("ok")),
            "{step}: {text}"
        );
    }
    assert!(
        text.contains("spiffe://west.example/zeugma/gateway"),
        "{text}"
    );
    let unknown = zeugma(&pair.east, &["check", "--peer", "north"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        err(&unknown).starts_with("error[ZG1008]: ")
            && err(&unknown).contains("no peer `north`; there are: west (ZG0966)"),
        "{}",
        err(&unknown)
    );

    // What is refused is not asked again, and a name is asked for as it was typed.
    let asked = ["check", "--peer", "no&rth +1%", "--wait", "3600s"];
    let refused = tokio::process::Command::from(command(&pair.east, &asked))
        .kill_on_drop(true)
        .output();
    let refused = within("an answer at once", refused).await.unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = err(&refused);
    assert!(said.contains("no peer `no&rth +1%`"), "{said}");

    // Somebody else answers there.
    let id = pair.west.gateway_id();
    pair.east.peer(
        "west",
        &format!(
            "
            cluster: west
            locality: west/west-1
            gateways: ['{}']
            spiffeIDs: ['{id}-of-another']",
            pair.west.mesh
        ),
    );
    pair.gateway.message("generation=2").await;
    let check = zeugma(&pair.east, &["check", "--peer", "west", "-o", "json"]);
    assert_eq!(check.status.code(), Some(2), "{}", err(&check));
    let items: Value = serde_json::from_slice(&check.stdout).unwrap();
    let failed: Vec<&Value> = (items["items"].as_array().unwrap().iter())
        .filter(|item| item["result"] == "failed")
        .collect();
    assert_eq!(failed.len(), 1, "{items}");
    assert!(
        failed[0]["what"].as_str().unwrap().ends_with(": tls"),
        "{failed:?}"
    );

    // Nobody listens there.
    pair.other.finish().await;
    let check = zeugma(&pair.east, &["check", "--wait", "1s"]);
    assert_eq!(check.status.code(), Some(2));
    let text = out(&check);
    let line = format!("{}: tcp", pair.west.mesh);
    let found = text.lines().find(|one| one.contains(&line)).unwrap();
    assert!(
        found.starts_with("FAILED") && found.contains("refused"),
        "{text}"
    );
    pair.gateway.finish().await;
}

/// One check reaches for so many; those that it left out are not passed over in silence.
#[tokio::test]
async fn check_says_that_there_are_more_gateways_than_it_reached_for() {
    let mut east = Cluster::new("east");
    east.set("admin", "'unix:admin.sock'");
    // Nobody listens at this port of any of them.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let gateways: Vec<String> = (0..258)
        .map(|nth| format!("127.0.{}.{}:{port}", 1 + nth / 200, 1 + nth % 200))
        .collect();
    east.peer(
        "west",
        &format!(
            "
            cluster: west
            locality: west/west-1
            gateways: {gateways:?}
            spiffeIDs: ['spiffe://west.example/zeugma/gateway']"
        ),
    );
    east.route(
        "shop/orders",
        "
        protocol: http
        backends: [{ peer: west }]
        allow: [{ listeners: [apps] }]",
    );
    let gateway = east.start().await;
    let text = out(&zeugma(&east, &["check"]));
    let row = text.lines().find(|line| line.contains("2 more gateways"));
    assert!(row.is_some_and(|row| row.starts_with("warning")), "{text}");
    gateway.finish().await;
}

#[tokio::test]
async fn a_gateway_that_does_not_run_is_no_riddle() {
    let mut east = Cluster::new("east");
    east.set("admin", "'unix:admin.sock'");
    east.write_gateway();
    let away = zeugma(&east, &["status"]);
    assert_eq!(away.status.code(), Some(69));
    assert!(
        err(&away).starts_with("error[ZG1005]: no gateway answers at ")
            && err(&away).contains("admin.sock; does it run"),
        "{}",
        err(&away)
    );
    let wrong = Command::new(env!("CARGO_BIN_EXE_zeugma"))
        .args(["status", "--admin", "10.0.0.1:15000"])
        .output()
        .unwrap();
    assert_eq!(wrong.status.code(), Some(64), "{}", err(&wrong));
    let said = err(&wrong);
    assert!(
        said.starts_with("error[ZG1003]: `10.0.0.1:15000` is no admin address"),
        "{said}"
    );
}

#[tokio::test]
async fn drain_drains_and_a_report_holds_what_is_needed() {
    let mut pair = pair().await;
    let to = pair.east.config().join("report");
    let report = zeugma(&pair.east, &["bug-report", "--to", to.to_str().unwrap()]);
    assert_eq!(report.status.code(), Some(0), "{}", err(&report));
    let text = std::fs::read_to_string(&to).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let pages = document["gateway"].as_object().unwrap();
    assert!(pages.len() >= 12, "{:?}", pages.keys());
    assert!(pages.values().all(|page| page.get("error").is_none()));
    let key = std::fs::read_to_string(pair.east.svid().key).unwrap();
    let secret = key.lines().nth(1).unwrap();
    assert!(!text.contains(secret) && !text.contains("PRIVATE KEY"));
    let again = zeugma(&pair.east, &["bug-report", "--to", to.to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(1), "no file is replaced");
    let said = err(&again);
    assert!(
        said.starts_with("error[ZG1002]: the report cannot be written"),
        "{said}"
    );

    let drain = zeugma(&pair.east, &["drain"]);
    assert_eq!(drain.status.code(), Some(0), "{}", err(&drain));
    assert!(pair.gateway.ended().await.success());
    pair.other.finish().await;
}

#[test]
fn completions_and_manual_pages_are_made_from_the_command_itself() {
    let run = |words: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_zeugma"))
            .arg("completion")
            .args(words)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        out(&output)
    };
    for shell in ["bash", "zsh", "fish"] {
        assert!(run(&["shell", shell]).contains("bug-report"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    run(&["man", folder.path().to_str().unwrap()]);
    let page = std::fs::read_to_string(folder.path().join("zeugma-status.1")).unwrap();
    assert!(page.contains("ZEUGMA_ADMIN"), "{page}");
}
