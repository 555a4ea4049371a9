//! The page for people, in a browser that we did not write.

use std::path::Path;
use std::process::Command;

use crate::mesh::{Cluster, Pair, eventually, get};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// East whose traffic has failed over to west, and an answer that was refused.
async fn failed_over() -> Pair {
    let rule = "{ listeners: [apps], paths: ['/', '/open/*'] }";
    let mut pair = Pair::start(Cluster::new("east"), rule).await;
    assert_eq!(get(pair.east.apps, ORDERS, "/secret").await.status, 403);
    drop(pair.near.take());
    eventually("a move to west", async || {
        assert_eq!(get(pair.east.apps, ORDERS, "/").await.status, 200);
        let failovers = pair.gateway.admin_json("/api/v1/failovers").await;
        let active = failovers["failovers"]["active"].as_array()?.len();
        (active == 1).then_some(())
    })
    .await;
    pair
}

#[tokio::test]
async fn the_page_has_its_tables_without_a_script_and_lets_nothing_else_in() {
    let pair = failed_over().await;
    let page = pair.gateway.admin("/ui").await;
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'; style-src 'self'; script-src 'self'"),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"), "{policy}");
    let text = page.text();
    for held in [
        "shop/orders",
        "failover",
        "peer west",
        "spiffe://west.example/zeugma/gateway",
        "own 127.0.0.1:",
        "ejected: unreachable",
        "not-allowed",
        "spiffe://east.example/zeugma/gateway",
    ] {
        assert!(text.contains(held), "{held}: {text}");
    }
    for (path, kind) in [
        ("/ui/style.css", "text/css"),
        ("/ui/script.js", "text/javascript"),
    ] {
        let part = pair.gateway.admin(path).await;
        assert_eq!((part.status, part.header("content-type")), (200, kind));
    }
    pair.finish().await;
}

#[tokio::test]
async fn a_browser_shows_the_page_and_refuses_nothing_of_it() {
    let browser = "chromium";
    if Command::new(browser).arg("--version").output().is_err() {
        skip("no chromium in PATH; run `apt-get install chromium`");
        return;
    }
    let pair = failed_over().await;
    let url = format!("http://{}/ui", pair.east.admin);
    // Kept, so that a person can look at it.
    let shot = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ui.png");
    let profile = tempfile::tempdir().unwrap();
    let asking = tokio::process::Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ])
        .args([
            "--no-first-run",
            "--disable-background-networking",
            "--window-size=1200,1500",
        ])
        .args(["--enable-logging=stderr", "--timeout=5000"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("--screenshot={}", shot.display()))
        .arg(&url)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(60), asking);
    let output = output.await.expect("the browser ends").unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(!said.contains("Content Security Policy"), "{said}");
    assert!(!said.contains("Uncaught"), "{said}");
    let png = std::fs::read(&shot).unwrap();
    assert!(
        png.starts_with(b"\x89PNG") && png.len() > 20_000,
        "{} bytes",
        png.len()
    );
    pair.finish().await;
}

#[expect(
    clippy::print_stderr,
    reason = "a test that did not run must not look like one that did"
)]
pub(crate) fn skip(why: &str) {
    assert!(std::env::var_os("ZEUGMA_REQUIRE_PEERS").is_none(), "{why}");
    eprintln!("SKIPPED: {why}");
}
