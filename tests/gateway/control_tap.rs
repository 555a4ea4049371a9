//! Watching what a gateway carries, as each request and connection ends.

use std::process::Stdio;

use http::Request;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

use crate::mesh::{Cluster, Gateway, Reply, Service, TOKEN, empty, get, send, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// East with an HTTP route whose `/secret` nobody may have.
async fn east() -> (Cluster, Gateway, Service) {
    let service = Service::http("one").await;
    let mut east = Cluster::new("east");
    east.set("adminToken", "token");
    east.write_token();
    east.route(
        "shop/orders",
        &format!(
            "protocol: http\nbackends: [{{ name: own, endpoints: ['{}'] }}]\n\
             allow: [{{ listeners: [apps] }}]\ndeny: [{{ paths: [/secret] }}]",
            service.address
        ),
    );
    let gateway = east.start().await;
    (east, gateway, service)
}

/// What asking for a tap is answered, with the token.
async fn ask(east: &Cluster, query: &str) -> Reply {
    let request = Request::get(format!("/api/v1/tap?{query}"))
        .header("host", "localhost")
        .header("authorization", format!("Bearer {TOKEN}"));
    send(east.admin, request.body(empty()).unwrap()).await
}

/// A running `zeugma tap`, which has told that it watches.
struct Tap {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Tap {
    async fn start(east: &Cluster, words: &[&str]) -> Self {
        let mut tap = Self::spawn(east, words);
        let first = tap.line().await.unwrap();
        assert!(first.contains("east-gw"), "{first}");
        tap
    }

    fn spawn(east: &Cluster, words: &[&str]) -> Self {
        Self::spawn_with(east, "token", words)
    }

    /// With the token of this file of the configuration.
    fn spawn_with(east: &Cluster, token: &str, words: &[&str]) -> Self {
        let (admin, token) = (east.admin.to_string(), east.config().join(token));
        let at = ["--admin", &admin, "--token-file", token.to_str().unwrap()];
        Self::run(&[&at[..], words].concat())
    }

    fn run(words: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_zeugma"))
            .arg("tap")
            .args(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    async fn line(&mut self) -> Option<String> {
        within("a line", self.lines.next_line()).await.unwrap()
    }

    async fn json(&mut self) -> Value {
        serde_json::from_str(&self.line().await.unwrap()).unwrap()
    }

    /// Its exit code, and what it said on standard error.
    async fn end(self) -> (Option<i32>, String) {
        let output = within("its end", self.child.wait_with_output())
            .await
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    }
}

#[tokio::test]
async fn what_is_wanted_is_shown_as_it_ends_and_nothing_else() {
    let (east, gateway, _service) = east().await;
    let json = ["-o", "json", "--count", "2"];
    let refused = [
        "--kind",
        "request",
        "--service",
        "shop/orders",
        "--status",
        "4xx",
    ];
    let mut refused = Tap::start(&east, &[&json[..], &refused].concat()).await;
    let slash = [
        "--kind",
        "request",
        "--path",
        "/s",
        "--source",
        "127.0.0.0/8",
    ];
    let mut slash = Tap::start(&east, &[&json[..], &slash].concat()).await;
    let mut people = Tap::start(&east, &["--failed", "--verdict", "denied", "--count", "1"]).await;
    for path in ["/", "/secret", "/small", "/secret"] {
        get(east.apps, ORDERS, path).await;
    }
    for _ in 0..2 {
        let line = refused.json().await;
        let (path, status) = (&line["http.path"], &line["http.status"]);
        assert_eq!((path, status), (&json!("/secret"), &json!(403)));
        assert_eq!(line["kind"], "request");
        // It is the access log's.
        let logged = gateway
            .log(|logged| logged["request.id"] == line["request.id"])
            .await;
        assert_eq!(logged, line);
    }
    assert_eq!(slash.json().await["http.path"], "/secret");
    assert_eq!(slash.json().await["http.path"], "/small");
    let told = people.line().await.unwrap();
    for held in ["127.0.0.1:", "shop/orders", "GET", "/secret 403", "denied"] {
        assert!(told.contains(held), "{held}: {told}");
    }
    for tap in [refused, slash, people] {
        assert_eq!(tap.end().await, (Some(0), String::new()));
    }
    gateway.finish().await;
}

#[tokio::test]
async fn more_than_the_rate_is_dropped_and_told_and_the_callers_notice_nothing() {
    let (east, gateway, _service) = east().await;
    let mut tap = Tap::start(&east, &["-o", "json", "--kind", "request", "--rate", "3"]).await;
    for _ in 0..50 {
        assert_eq!(get(east.apps, ORDERS, "/").await.status, 200);
    }
    let (mut shown, mut dropped) = (0, 0);
    while shown + dropped < 50 {
        let line = tap.json().await;
        match line["kind"].as_str().unwrap() {
            "request" => shown += 1,
            "dropped" => {
                dropped += line["over_rate"].as_u64().unwrap();
                assert_eq!(line["not_read"], 0, "{line}");
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!(shown + dropped, 50);
    assert!(shown >= 3 && dropped > 0, "{shown} and {dropped}");
    drop(tap);
    gateway.finish().await;
}

#[tokio::test]
async fn only_so_many_watch_and_what_is_no_filter_is_refused() {
    let (east, gateway, _service) = east().await;
    let mut open = Vec::new();
    for _ in 0..8 {
        open.push(Tap::start(&east, &[]).await);
    }
    let (code, said) = Tap::spawn(&east, &[]).end().await;
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("8 watch already"), "{said}");
    drop(open.pop());
    // Its place is free as soon as the gateway has noticed.
    crate::mesh::eventually("a place", async || {
        let reply = ask(&east, "rate=0").await;
        assert_eq!(reply.status, 400);
        let mut tap = Tap::spawn(&east, &[]);
        tap.line().await.map(drop)
    })
    .await;
    drop(open);
    for (query, word) in [
        ("kind=stream", "request or connection"),
        ("source=10.0.0.0/33", "10.0.0.0/33"),
        ("from=cart", "from `cart`"),
        ("verdict=bad", "verdict `bad`"),
        ("status=ok", "status `ok`"),
        ("rate=10001", "1 to 10000"),
    ] {
        let reply = ask(&east, query).await;
        assert_eq!(
            (reply.status, reply.text().contains(word)),
            (400, true),
            "{query}"
        );
    }
    assert_eq!(ask(&east, "colour=red").await.status, 400);
    let (code, said) = Tap::spawn(&east, &["--verdict", "bad"]).end().await;
    assert_eq!(code, Some(64), "{said}");
    gateway.finish().await;
}

#[tokio::test]
async fn on_an_address_nobody_watches_without_the_token() {
    let (mut east, gateway, _service) = east().await;
    east.write("other", "0123456789abcdeF");
    let (code, said) = Tap::spawn_with(&east, "other", &[]).end().await;
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains("(ZG0963)"), "{said}");
    let (code, said) = Tap::spawn_with(&east, "missing", &[]).end().await;
    assert_eq!(code, Some(65), "{said}");
    assert!(said.contains("ZG1009"), "{said}");
    let reply = gateway.admin("/api/v1/tap").await;
    assert_eq!(
        (reply.status, reply.text().contains("(ZG0963)")),
        (401, true)
    );
    gateway.finish().await;

    // Without one to know, nobody does.
    east.unset("adminToken");
    let gateway = east.start().await;
    let (code, said) = Tap::spawn(&east, &[]).end().await;
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains("(ZG0962)"), "{said}");
    gateway.finish().await;

    // A Unix socket is of its user alone.
    east.set("admin", "'unix:admin.sock'");
    let gateway = east.start().await;
    let at = format!("unix:{}", east.config().join("admin.sock").display());
    let mut tap = Tap::run(&["--admin", &at]);
    let first = tap.line().await.unwrap();
    assert!(first.contains("east-gw"), "{first}");
    drop(tap);
    gateway.finish().await;
}

#[tokio::test]
async fn it_ends_by_its_count_its_time_or_with_the_gateway_and_says_which() {
    let (east, gateway, _service) = east().await;
    let short = Tap::start(&east, &["--for", "1s", "--count", "9"]).await;
    let whole = Tap::start(&east, &["--for", "1s"]).await;
    assert_eq!(short.end().await.0, Some(2));
    assert_eq!(whole.end().await.0, Some(0));
    // A connection is shown when it ends.
    let mut tap = Tap::start(
        &east,
        &["-o", "json", "--kind", "connection", "--count", "1"],
    )
    .await;
    let mut tcp = TcpStream::connect(east.apps).await.unwrap();
    tcp.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
    drop(tcp);
    assert_eq!(tap.json().await["kind"], "connection");
    assert_eq!(tap.end().await.0, Some(0));
    let forever = Tap::start(&east, &[]).await;
    gateway.finish().await;
    let (code, said) = forever.end().await;
    assert_eq!(code, Some(69), "{said}");
}

#[tokio::test]
async fn it_goes_on_with_the_process_that_takes_over() {
    let (east, mut before, _service) = east().await;
    let words = ["-o", "json", "--kind", "request", "--path", "/after"];
    let mut tap = Tap::start(&east, &words).await;
    let next = east.take_over().await;
    before.ended().await;
    let line = within("what the next one carries", async {
        loop {
            get(east.apps, ORDERS, "/after").await;
            let soon = std::time::Duration::from_millis(200);
            // It may not have asked the next process yet: what ended before is not shown.
            if let Ok(line) = tokio::time::timeout(soon, tap.json()).await {
                return line;
            }
        }
    })
    .await;
    assert_eq!(line["http.path"], "/after");
    drop(tap);
    next.signal(Signal::TERM);
}
