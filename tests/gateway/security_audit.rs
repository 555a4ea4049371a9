//! `policy: audit`: rules are tried before they hold.

use http::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::data_mesh::HELLO;
use crate::data_services::{BANNER, HttpService, TcpService};
use crate::mesh::{Cluster, empty, eventually, get, h1, within};

#[tokio::test]
async fn a_policy_that_is_audited_lets_in_tells_and_counts_and_enforced_it_denies() {
    let (service, bytes) = (HttpService::start("hello"), TcpService::start());
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let routes = |east: &Cluster, policy: &str| {
        let http = format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ listeners: [apps], methods: [POST] }}]
            {policy}",
            service.address()
        );
        east.route("demo/hello", &http);
        let tcp = format!(
            "
            port: 5432
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ listeners: [db] }}]
            deny: [{{ sources: ['127.0.0.0/8'] }}]
            {policy}",
            bytes.address()
        );
        east.route("demo/db", &tcp);
    };
    routes(&east, "policy: audit");
    let gateway = east.start().await;
    assert_eq!(get(east.apps, HELLO, "/").await.status, 200);
    let line = gateway.log(|line| line["kind"] == "request").await;
    let detail = line["error"].as_str().unwrap_or_default();
    assert!(
        detail.starts_with("let in by `policy: audit`; enforced: not-allowed: the allow rule at "),
        "{line}"
    );
    let mut open = TcpStream::connect(db).await.unwrap();
    let mut banner = vec![0; BANNER.len()];
    within("the banner", open.read_exact(&mut banner))
        .await
        .unwrap();
    open.shutdown().await.unwrap();
    within("the end", open.read_to_end(&mut Vec::new()))
        .await
        .unwrap();
    let line = gateway
        .log(|line| line["kind"] == "connection" && line["listener"] == "db")
        .await;
    let rule = line["policy.rule"].as_str().unwrap_or_default();
    assert!(rule.contains("demo-db.yaml:"), "{line}");
    for (service, reason) in [("demo/hello", "not-allowed"), ("demo/db", "denied")] {
        let labels = [("destination_service", service), ("reason", reason)];
        gateway
            .metric_becomes("zeugma_policy_audited_total", &labels, 1.0)
            .await;
    }
    // Held to it, and the connection that is open as well.
    let mut open = TcpStream::connect(db).await.unwrap();
    within("the banner", open.read_exact(&mut banner))
        .await
        .unwrap();
    routes(&east, "policy: enforce");
    // A request that is under way then may be cut in its answer.
    eventually("a denial", async || {
        let mut caller = h1(TcpStream::connect(east.apps).await.unwrap()).await;
        let request = Request::get("/").header("host", HELLO).body(empty());
        let reply = within("a reply", caller.send_request(request.unwrap())).await;
        reply.is_ok_and(|reply| reply.status() == 403).then_some(())
    })
    .await;
    // Whether it is closed or reset.
    within("its end", open.read_to_end(&mut Vec::new()))
        .await
        .ok();
    gateway.finish().await;
}
