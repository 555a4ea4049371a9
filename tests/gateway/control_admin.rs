//! The admin interface: what a gateway tells of itself, to whom, and what it lets be changed.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader,
};
use tokio::net::{TcpStream, UnixStream};

use crate::control_ui::skip;
use crate::mesh::{Cluster, Pair, Service, eventually, get, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

async fn pair() -> Pair {
    Pair::start(Cluster::new("east"), "{ listeners: [apps] }").await
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter().map(|text| text.as_str().unwrap()).collect()
}

#[tokio::test]
async fn the_api_says_where_traffic_goes_why_and_since_when() {
    let mut pair = pair().await;
    let east = &pair.gateway;
    let routes = east.admin_json("/api/v1/routes?service=shop/orders").await;
    assert_eq!(routes["apiVersion"], "api.zeugma.dev/v1");
    let route = &routes["routes"][0];
    assert_eq!(texts(&route["exported_to"]), ["west"]);
    assert_eq!(texts(&route["hosts"]), [ORDERS]);
    assert_eq!(route["outbound"]["why"], "preferred");
    assert_eq!(route["outbound"]["since"], Value::Null, "it never moved");
    assert_eq!(route["own"]["levels"].as_array().unwrap().len(), 1);
    let written = route["written"].as_str().unwrap();
    assert!(written.contains("shop-orders.yaml:"), "{written}");
    let peers = east.admin_json("/api/v1/peers").await;
    assert_eq!(peers["peers"][0]["name"], "west");
    assert_eq!(peers["peers"][0]["state"], "healthy");

    let endpoint = pair.near.as_ref().unwrap().address.to_string();
    drop(pair.near.take());
    eventually("a move to west", async || {
        assert_eq!(get(pair.east.apps, ORDERS, "/").await.status, 200);
        let failovers = east.admin_json("/api/v1/failovers").await;
        let active = &failovers["failovers"]["active"];
        (active[0]["outbound"]["why"] == "failover").then_some(())
    })
    .await;
    let failovers = east.admin_json("/api/v1/failovers").await;
    let active = &failovers["failovers"]["active"][0];
    let cause = format!("own {endpoint} ejected: unreachable");
    assert_eq!(texts(&active["outbound"]["causes"]), [cause.as_str()]);
    assert!(active["outbound"]["since"].is_string());
    let timeline = failovers["failovers"]["timeline"].as_array().unwrap();
    let kinds: Vec<_> = timeline.iter().map(|event| &event["kind"]).collect();
    assert!(
        kinds.contains(&&Value::from("endpoint-ejected")),
        "{kinds:?}"
    );
    let moved = timeline
        .iter()
        .rfind(|event| event["kind"] == "shares-moved");
    assert_eq!(moved.unwrap()["data"]["causes"][0], *cause);

    let identities = east.admin_json("/api/v1/identities").await;
    let identities = &identities["identities"];
    assert_eq!(identities["own"]["spiffe_id"], pair.east.gateway_id());
    let domains: Vec<_> = (identities["bundles"].as_array().unwrap().iter())
        .map(|bundle| bundle["trust_domain"].as_str().unwrap())
        .collect();
    assert_eq!(domains, ["east.example", "west.example"]);
    let anchor = &identities["bundles"][0]["anchors"][0];
    assert_eq!(anchor["fingerprint"].as_str().unwrap().len(), 64);
    let topology = east.admin_json("/api/v1/topology").await;
    let to = &topology["topology"]["services"][0]["clusters"];
    assert_eq!(to["west"], 1.0, "{to}");
    pair.finish().await;
}

#[tokio::test]
async fn what_is_carried_is_listed_with_who_called() {
    let pair = pair().await;
    let db = Service::echo().await;
    let (mut east, gateway) = (pair.east, pair.gateway);
    let port = east.listen("db", "role: workloads, route: shop/db");
    east.route(
        "shop/db",
        &format!(
            "
            port: 5432
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ listeners: [db] }}]",
            db.address
        ),
    );
    east.write_gateway();
    gateway.message("generation=2").await;
    eventually("the listener", async || TcpStream::connect(port).await.ok()).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(TcpStream::connect(port).await.unwrap());
    }
    let carried = async |query: &str| {
        let path = format!("/api/v1/connections?listener=db{query}");
        gateway.admin_json(&path).await["carried"].clone()
    };
    eventually("three connections", async || {
        let all = carried("").await;
        let named = all["connections"].as_array().unwrap().iter();
        let of_db = named.filter(|one| one["service"] == "shop/db").count();
        (of_db == 3).then_some(())
    })
    .await;
    let all = carried("").await;
    assert_eq!((&all["total"], &all["complete"]), (&3.into(), &true.into()));
    let one = &all["connections"][0];
    assert_eq!((&one["kind"], &one["port"]), (&"tcp".into(), &5432.into()));
    let ours: Vec<String> = (open.iter())
        .map(|tcp| tcp.local_addr().unwrap().to_string())
        .collect();
    assert!(ours.iter().any(|ours| one["source"] == **ours));
    let few = carried("&limit=1").await;
    assert_eq!(few["complete"], false, "{few}");
    let wrong = gateway.admin("/api/v1/connections?colour=red").await;
    assert_eq!(wrong.status, 400);
    assert!(wrong.text().contains("colour"), "{}", wrong.text());
    drop(open);
    gateway.finish().await;
    pair.other.finish().await;
}

/// Sends a request as text; the answer as it comes.
async fn ask<S>(mut stream: S, head: &str) -> BufReader<S>
where
    S: AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let head = format!("{}\r\n\r\n", head.replace('\n', "\r\n"));
    stream.write_all(head.as_bytes()).await.unwrap();
    BufReader::new(stream)
}

/// The whole answer to a request that asks to close.
async fn answer<S>(stream: S, head: &str) -> String
where
    S: AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut text = String::new();
    let mut reading = ask(stream, head).await;
    within("an answer", reading.read_to_string(&mut text))
        .await
        .unwrap();
    text
}

#[tokio::test]
async fn events_are_told_as_they_happen_and_missed_ones_again() {
    let mut pair = pair().await;
    let tcp = TcpStream::connect(pair.east.admin).await.unwrap();
    let events = "GET /api/v1/events HTTP/1.1\nhost: localhost\nlast-event-id: 0";
    let mut lines = ask(tcp, events).await.lines();
    let mut told = async |wanted: &str| {
        within(wanted, async {
            loop {
                let line = lines.next_line().await.unwrap().unwrap();
                if let Some(data) = line.strip_prefix("data: ") {
                    let event: Value = serde_json::from_str(data).unwrap();
                    if event["kind"] == wanted {
                        return event;
                    }
                }
            }
        })
        .await
    };
    assert_eq!(told("ready").await["data"]["name"], "east-gw");
    drop(pair.near.take());
    let moving = async {
        eventually("an ejection", async || {
            get(pair.east.apps, ORDERS, "/").await;
            let events = pair.gateway.admin_json("/api/v1/failovers").await;
            let timeline = events["failovers"]["timeline"].as_array()?.len();
            (timeline > 1).then_some(())
        })
        .await;
    };
    let (ejected, ()) = tokio::join!(told("endpoint-ejected"), moving);
    assert_eq!(ejected["data"]["route"], "shop/orders");
    let moved = told("shares-moved").await;
    assert!(moved["nth"].as_u64() > ejected["nth"].as_u64());

    // Whoever comes back with what it saw misses nothing, and hears nothing twice.
    let tcp = TcpStream::connect(pair.east.admin).await.unwrap();
    let again = format!(
        "GET /events HTTP/1.1\nhost: localhost\nlast-event-id: {}",
        ejected["nth"]
    );
    let mut lines = ask(tcp, &again).await.lines();
    let first = within("the next event", async {
        loop {
            let line = lines.next_line().await.unwrap().unwrap();
            if let Some(id) = line.strip_prefix("id: ") {
                return id.parse::<u64>().unwrap();
            }
        }
    })
    .await;
    assert_eq!(Some(first), ejected["nth"].as_u64().map(|nth| nth + 1));
    let tcp = TcpStream::connect(pair.east.admin).await.unwrap();
    let wrong = "GET /events HTTP/1.1\nhost: localhost\nlast-event-id: x\nconnection: close";
    let refused = answer(tcp, wrong).await;
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    assert!(refused.contains("(ZG0970)"), "{refused}");
    // Listeners end with the gateway, and do not hold it up.
    pair.finish().await;
}

/// A gateway whose admin interface is a socket in its folder.
fn on_a_socket() -> (Cluster, PathBuf) {
    let mut east = Cluster::new("east");
    east.set("admin", "'unix:admin.sock'");
    let path = east.config().join("admin.sock");
    (east, path)
}

async fn post(path: &Path, what: &str) -> String {
    let socket = UnixStream::connect(path).await.unwrap();
    let head = format!("POST {what} HTTP/1.1\nhost: localhost\nconnection: close");
    answer(socket, &head).await
}

#[tokio::test]
async fn levers_work_on_the_socket() {
    let (east, socket) = on_a_socket();
    let mut gateway = east.start().await;
    let read = UnixStream::connect(&socket).await.unwrap();
    let read = answer(
        read,
        "GET /quitquitquit HTTP/1.1\nhost: localhost\nconnection: close",
    )
    .await;
    assert!(read.starts_with("HTTP/1.1 405"), "{read}");
    assert_eq!(gateway.ready().await, 200, "to look at it changes nothing");
    let said = post(&socket, "/drain_listeners").await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    gateway.message("asked by the admin interface").await;
    assert!(gateway.ended().await.success());
    assert!(!socket.exists());
}

#[tokio::test]
async fn levers_on_an_address_want_the_token() {
    let head = |more: &str| {
        format!("POST /quitquitquit HTTP/1.1\nhost: localhost\nconnection: close{more}")
    };
    let mut east = Cluster::new("east");
    let gateway = east.start().await;
    let tcp = async || TcpStream::connect(east.admin).await.unwrap();
    let refused = answer(tcp().await, &head("")).await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    assert!(
        refused.contains("spec.adminToken to a file (ZG0962)"),
        "{refused}"
    );
    gateway.finish().await;

    east.set("adminToken", "token");
    let token = east.write_token();
    let mut gateway = east.start().await;
    let tcp = async || TcpStream::connect(east.admin).await.unwrap();
    let wrong = head("\nauthorization: Bearer 0123456789abcdeF");
    let refused = answer(tcp().await, &wrong).await;
    assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    assert!(refused.contains("(ZG0963)"), "{refused}");
    std::fs::write(&token, "short\n").unwrap();
    let unusable = answer(tcp().await, &wrong).await;
    assert!(unusable.starts_with("HTTP/1.1 500"), "{unusable}");
    assert!(unusable.contains("(ZG0964)"), "{unusable}");
    std::fs::write(&token, "0123456789abcdef\n").unwrap();
    // A page of another site has the browser's user ask, by a name of its own.
    let elsewhere = "GET /config_dump HTTP/1.1\nhost: rebound.example\nconnection: close";
    let refused = answer(tcp().await, elsewhere).await;
    assert!(refused.starts_with("HTTP/1.1 421"), "{refused}");
    assert!(refused.contains("(ZG0972)"), "{refused}");
    assert_eq!(gateway.ready().await, 200);
    let right = head("\nauthorization: Bearer 0123456789abcdef");
    let done = answer(tcp().await, &right).await;
    assert!(done.starts_with("HTTP/1.1 200"), "{done}");
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn no_page_holds_a_secret() {
    let mut east = Cluster::new("east");
    east.set("adminToken", "token");
    std::fs::write(east.config().join("token"), "tell-nobody-of-this-token").unwrap();
    let gateway = east.start().await;
    let key = std::fs::read_to_string(east.svid().key).unwrap();
    let mut secrets: Vec<&str> = (key.lines())
        .filter(|line| !line.starts_with("-----") && line.len() > 16)
        .collect();
    assert!(!secrets.is_empty());
    secrets.extend(["PRIVATE KEY", "tell-nobody-of-this-token"]);
    for path in [
        "/ready",
        "/livez",
        "/metrics",
        "/stats/prometheus",
        "/server_info",
        "/config_dump",
        "/clusters",
        "/listeners",
        "/certs",
        "/api/v1/routes",
        "/api/v1/services",
        "/api/v1/peers",
        "/api/v1/failovers",
        "/api/v1/identities",
        "/api/v1/findings",
        "/api/v1/connections",
        "/api/v1/topology",
        "/api/v1/explain?host=orders.shop.svc.clusterset.local",
    ] {
        let reply = gateway.admin(path).await;
        assert_eq!(reply.status, 200, "{path}");
        let text = reply.text();
        for secret in &secrets {
            assert!(!text.contains(secret), "{path} tells a secret");
        }
    }
    let told = gateway.told();
    assert!(secrets.iter().all(|secret| !told.contains(secret)));
    gateway.finish().await;
}

/// A page that a browser loaded from elsewhere may have its own name resolve to a loopback address.
#[tokio::test]
async fn metrics_on_a_loopback_address_are_told_to_nobody_who_names_another_host() {
    let east = Cluster::new("east");
    let gateway = east.start().await;
    let status = async |host: &str| get(east.metrics, host, "/metrics").await.status;
    let addressed = east.metrics.to_string();
    for host in ["localhost", "127.0.0.1", "10.1.2.3:15020", &addressed] {
        assert_eq!(status(host).await, 200, "{host}");
    }
    for host in ["metrics.example.com", "127.0.0.1.example.com:15020"] {
        assert_eq!(status(host).await, 421, "{host}");
    }
    gateway.finish().await;
}

#[tokio::test]
async fn metrics_are_openmetrics_for_who_asks_and_else_the_older_text() {
    let east = Cluster::new("east");
    let gateway = east.start().await;
    let ask = async |accept: &str| {
        let tcp = TcpStream::connect(east.metrics).await.unwrap();
        let head = format!("GET /metrics HTTP/1.1\nhost: localhost\nconnection: close{accept}");
        answer(tcp, &head).await
    };
    let open = ask("\naccept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5").await;
    assert!(
        open.contains("content-type: application/openmetrics-text"),
        "{open}"
    );
    assert!(open.contains("# TYPE zeugma_panics counter"));
    assert!(open.ends_with("# EOF\n"));
    for accept in ["", "\naccept: text/plain", "\naccept: */*"] {
        let text = ask(accept).await;
        assert!(
            text.contains("content-type: text/plain; version=0.0.4"),
            "{text}"
        );
        assert!(
            text.contains("# TYPE zeugma_panics_total counter"),
            "{text}"
        );
        assert!(!text.contains("# EOF"));
    }
    gateway.finish().await;
}

#[tokio::test]
async fn promtool_finds_nothing_to_say_about_the_metrics_of_a_gateway_at_work() {
    let promtool = "promtool";
    if Command::new(promtool).arg("--version").output().is_err() {
        skip("no promtool in PATH; run `apt-get install prometheus`");
        return;
    }
    let mut pair = pair().await;
    assert_eq!(get(pair.east.apps, ORDERS, "/").await.status, 200);
    assert_eq!(get(pair.east.apps, "nobody.example", "/").await.status, 404);
    drop(pair.near.take());
    eventually("a move to west", async || {
        get(pair.east.apps, ORDERS, "/").await;
        let told = pair.gateway.told();
        told.contains("ZG0426 traffic moved").then_some(())
    })
    .await;
    for gateway in [&pair.gateway, &pair.other] {
        let metrics = gateway.metrics().await.0;
        assert!(metrics.contains("zeugma_requests_total{"), "{metrics}");
        let mut child = Command::new(promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It reads all before it says anything; what it says is short.
        child
            .stdin
            .take()
            .unwrap()
            .write_all(metrics.as_bytes())
            .unwrap();
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{said}");
    }
    pair.finish().await;
}
