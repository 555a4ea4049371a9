//! `zeugma explain route`: what it tells is what the gateway then does.

use std::process::{Command, Output};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::mesh::{Cluster, Pair, Service, eventually, get, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// `zeugma explain route` with these words, of a gateway or the configuration.
pub(crate) fn explain(east: &Cluster, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zeugma"))
        .args(["explain", "route"])
        .args(words)
        .arg("--config")
        .arg(east.config())
        .env_remove("ZEUGMA_ADMIN")
        .output()
        .unwrap()
}

pub(crate) fn text(output: &Output) -> String {
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    let wrong = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}{wrong}");
    said
}

pub(crate) fn json(east: &Cluster, words: &[&str]) -> Value {
    let output = explain(east, &[words, &["-o", "json"]].concat());
    let told: Value = serde_json::from_str(&text(&output)).unwrap();
    assert_eq!(told["apiVersion"], "cli.zeugma.dev/v1");
    assert_eq!(told["kind"], "RouteExplanation");
    told
}

/// Of the next request to the route.
async fn access_reason(pair: &Pair, id: &str) -> Value {
    let path = format!("/{id}");
    assert_eq!(get(pair.east.apps, ORDERS, &path).await.status, 200);
    let is_it = |line: &Value| line["http.path"] == *path;
    pair.gateway.log(is_it).await["reason"].clone()
}

pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap()
}

/// What scripts read stays: a field may come, none may go.
fn holds_its_form(told: &Value) {
    let level = &told["destination"]["levels"][0];
    for (of, fields) in [
        (
            told,
            "apiVersion kind gateway generation answer carried reason code to_do health host listener \
             caller assumed steps route rule policy destination attempts extra_tries_max draw \
             sni mirrors mirrors_left_out",
        ),
        (
            &told["caller"],
            "source source_principal source_attested attested_by",
        ),
        (&told["steps"][0], "asks what answer service reason"),
        (&told["route"], "service port protocol inbound written"),
        (
            &told["policy"],
            "verdict reason rule nearest nearest_failed",
        ),
        (
            &told["destination"],
            "cluster levels levels_left_out too_few since causes",
        ),
        (
            level,
            "name share healthy total healthy_share capacity damped_capacity state statuses \
             endpoints endpoints_left_out",
        ),
        (&level["state"], "is for_seconds ends_in_seconds"),
        (
            &level["endpoints"][0],
            "address backend locality weight peer status ejected_by ejected_for_seconds active_check",
        ),
        (
            &told["attempts"][0],
            "address backend locality level reason",
        ),
    ] {
        for field in fields.split_whitespace() {
            assert!(of.get(field).is_some(), "{field} in {of}");
        }
    }
}

async fn pair() -> Pair {
    Pair::start(Cluster::new("east"), "{ listeners: [apps] }").await
}

#[tokio::test]
async fn what_goes_its_usual_way_and_what_fails_over_is_told_with_its_cause() {
    let mut pair = pair().await;
    let told = text(&explain(&pair.east, &[ORDERS]));
    assert_eq!(
        first_line(&told),
        "goes to east/east-1: 1 of 1 endpoint healthy"
    );
    assert!(told.contains("shop-orders.yaml:3"), "the route: {told}");
    let rule = "by the allow rule at ";
    assert!(told.contains(rule) && told.contains("{ listeners: [apps] }"));
    let usual = json(&pair.east, &[ORDERS]);
    holds_its_form(&usual);
    assert_eq!(usual["health"], "live");
    assert_eq!(usual["attempts"][0]["reason"], "local");
    assert_eq!(access_reason(&pair, "usual").await, "local");

    let dead = pair.near.take().unwrap().address.to_string();
    eventually("a move to west", async || {
        assert_eq!(get(pair.east.apps, ORDERS, "/").await.status, 200);
        let told = json(&pair.east, &[ORDERS]);
        (told["destination"]["levels"][1]["share"] == 1.0).then_some(())
    })
    .await;
    let told = text(&explain(&pair.east, &[ORDERS]));
    assert!(
        first_line(&told).starts_with("goes to peer west: east/east-1 has 0 of 1 endpoint healthy"),
        "{told}"
    );
    assert!(told.contains(&format!("because: own {dead} ejected: unreachable")));
    assert!(told.contains("ejected: unreachable, "), "{told}");
    let moved = json(&pair.east, &[ORDERS, "--draw", "18446744073709551615"]);
    assert_eq!(moved["attempts"][0]["reason"], "failover");
    assert_eq!(moved["attempts"][0]["address"], pair.west.mesh.to_string());
    assert_eq!(moved["draw"], "18446744073709551615");
    assert_eq!(access_reason(&pair, "moved").await, "failover");
    pair.finish().await;
}

#[tokio::test]
async fn a_denial_names_the_nearest_rule_and_the_line_that_would_let_it_in() {
    let pair = pair().await;
    let cart = "spiffe://west.example/ns/shop/sa/cart";
    let denied = ["--from", cart, "--listener", "mesh", ORDERS];
    let told = text(&explain(&pair.east, &denied));
    assert!(
        first_line(&told)
            .starts_with("refused (not-allowed): no allow rule matched; the nearest, at ")
            && first_line(&told).ends_with("does not match in `listeners`"),
        "{told}"
    );
    assert!(told.contains("shop-orders.yaml:"), "{told}");
    let line = format!("add `- {{ from: [\"{cart}\"] }}` under `allow` of shop/orders (");
    assert!(told.contains(&line), "{told}");
    let told = json(&pair.east, &denied);
    assert_eq!(told["code"], "ZG0702");
    assert_eq!(told["policy"]["nearest_failed"][0], "listeners");
    assert_eq!(told["attempts"].as_array().unwrap().len(), 0);
    // Nobody at all, where somebody has to be.
    let nobody = json(&pair.east, &["--listener", "mesh", ORDERS]);
    assert_eq!(nobody["reason"], "certificate-missing");
    // By a trust domain that the gateway has no bundle of.
    let stranger = [
        "--from",
        "spiffe://north.example/x",
        "--listener",
        "mesh",
        ORDERS,
    ];
    let stranger = json(&pair.east, &stranger);
    assert_eq!(stranger["reason"], "certificate-refused");
    // Through the peer, which attests for nobody.
    let via = json(&pair.east, &["--from", cart, "--via", "west", ORDERS]);
    assert_eq!(via["caller"]["source_principal"], pair.west.gateway_id());
    assert_eq!(via["caller"]["source_attested"], Value::Null);
    pair.finish().await;
}

#[tokio::test]
async fn an_unknown_host_is_told_with_what_was_meant_and_a_wrong_question_with_what_there_is() {
    let pair = pair().await;
    let typo = text(&explain(&pair.east, &["odrers.shop.svc.clusterset.local"]));
    assert!(
        first_line(&typo).starts_with("refused (authority-unknown)"),
        "{typo}"
    );
    assert!(
        typo.contains(&format!("did you mean `{ORDERS}`?")),
        "{typo}"
    );
    for (words, said) in [
        (["--listener", "aps"], "no listener `aps`; there are: "),
        (["--via", "north"], "no peer `north`; there are: west"),
    ] {
        let wrong = explain(&pair.east, &[&words[..], &[ORDERS]].concat());
        assert_eq!(wrong.status.code(), Some(64));
        let told = String::from_utf8(wrong.stderr).unwrap();
        assert!(told.contains(said) && told.contains("ZG0981"), "{told}");
    }
    let long = "a".repeat(301);
    for (sni, said) in [
        ("", "the SNI is empty"),
        (&long, "the SNI is over 300 bytes"),
    ] {
        for more in [&[][..], &["--offline"]] {
            let wrong = explain(&pair.east, &[&["--sni", sni, ORDERS], more].concat());
            let told = String::from_utf8(wrong.stderr).unwrap();
            assert_eq!(wrong.status.code(), Some(64), "{told}");
            assert!(told.contains(said) && told.contains("ZG0981"), "{told}");
        }
    }
    for bad in ["host=a&from=cart", "host=a&sni="] {
        let bad = pair.gateway.admin(&format!("/api/v1/explain?{bad}")).await;
        assert_eq!(bad.status, 400);
        assert!(bad.text().contains("(ZG0981)"), "{}", bad.text());
    }
    // To ask changed nothing.
    let metrics = pair.gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_requests_total", &[]), 0.0);
    let events = pair.gateway.admin_json("/api/v1/failovers").await;
    assert_eq!(events["failovers"]["timeline"].as_array().unwrap().len(), 0);
    pair.finish().await;
}

#[tokio::test]
async fn the_rule_of_a_request_is_told_with_its_line_and_its_split() {
    let (main, canary) = (Service::http("main").await, Service::http("canary").await);
    let east = Cluster::new("east");
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends:
              - {{ name: main, endpoints: ['{}'] }}
              - {{ name: canary, endpoints: ['{}'] }}
            rules:
              - {{ name: beta, matches: [{{ headers: {{ x-beta: '1' }} }}], split: [{{ backends: [canary] }}] }}
              - {{ name: rest, split: [{{ backends: [main] }}] }}
            allow: [{{ listeners: [apps] }}]",
            main.address, canary.address
        ),
    );
    let gateway = east.start().await;
    let beta = json(&east, &[ORDERS, "--header", "X-Beta=1"]);
    assert_eq!(beta["rule"]["name"], "beta");
    let written = beta["rule"]["written"].as_str().unwrap();
    assert!(written.contains("shop-orders.yaml:"), "{written}");
    assert_eq!(beta["attempts"][0]["address"], canary.address.to_string());
    let offline = json(&east, &[ORDERS, "--header", "x-beta=1", "--offline"]);
    assert_eq!(offline["rule"], beta["rule"]);
    let rest = text(&explain(&east, &[ORDERS]));
    assert!(rest.contains("rule       rest "), "{rest}");
    assert!(rest.contains(&main.address.to_string()), "{rest}");
    let wrong = explain(&east, &[ORDERS, "--header", "x-beta"]);
    assert_eq!(wrong.status.code(), Some(64));
    gateway.finish().await;
}

/// What the mirrors make of it: of requests, of which a gateway then copies as many.
#[tokio::test]
async fn each_mirror_of_a_route_is_told_with_its_line_its_share_and_where_its_copy_goes() {
    let (main, canary) = (Service::http("main").await, Service::http("canary").await);
    let east = Cluster::new("east");
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            mirror:
              - {{ route: shop/canary, compare: true }}
              - {{ route: shop/gone, percent: 0.0001% }}
            allow: [{{ listeners: [apps], methods: [GET] }}]",
            main.address
        ),
    );
    for (name, endpoint) in [
        ("canary", &*canary.address.to_string()),
        ("gone", "127.0.0.1:1"),
    ] {
        east.route(
            &format!("shop/{name}"),
            &format!(
                "
            protocol: http
            backends: [{{ name: {name}, endpoints: ['{endpoint}'] }}]
            export: {{ to: ['*'] }}
            allow: [{{ listeners: [apps] }}]"
            ),
        );
    }
    let gateway = east.start().await;
    let draw = ["--draw", "7", ORDERS];
    let told = json(&east, &draw);
    let [copied, seldom] = [0, 1].map(|nth| told["mirrors"][nth].clone());
    assert_eq!(
        (
            &copied["route"],
            &copied["copied"],
            &copied["why"],
            &copied["sampled"]
        ),
        (
            &"shop/canary".into(),
            &true.into(),
            &Value::Null,
            &false.into()
        )
    );
    assert_eq!(copied["attempts"][0]["address"], canary.address.to_string());
    assert_eq!(copied["attempts"][0]["level"], "east/east-1");
    assert_eq!(copied["target"]["exported_to"][0], "*");
    assert_eq!(
        (&seldom["copied"], &seldom["why"], &seldom["sampled"]),
        (&false.into(), &"not-drawn".into(), &true.into())
    );
    let written = copied["written"].as_str().unwrap();
    let file = std::fs::read_to_string(east.config().join("shop-orders.yaml")).unwrap();
    let line = file
        .lines()
        .position(|line| line.contains("route: shop/canary"));
    let at = format!("shop-orders.yaml:{}", line.unwrap() + 1);
    assert!(written.ends_with(&at), "{written}, not {at}");
    assert_eq!(
        json(&east, &[&draw[..], &["--offline"]].concat())["mirrors"],
        told["mirrors"]
    );
    let text = text(&explain(&east, &draw));
    for said in [
        format!(
            "mirrors    copied to shop/canary (all are, answers compared, the mirror at {written})"
        ),
        format!(
            "to {} of canary (level east/east-1) this time",
            canary.address
        ),
        "not copied to shop/gone: it was not drawn this time (0.0001 % of all, drawn for each"
            .to_owned(),
        "exported to all peers".to_owned(),
    ] {
        assert!(text.contains(&said), "{said}: {text}");
    }
    // To ask has copied nothing, and to call does what was told.
    assert_eq!(canary.requests().len(), 0);
    assert_eq!(get(east.apps, ORDERS, "/").await.text(), "main");
    eventually("a copy", async || {
        (canary.requests().len() == 1).then_some(())
    })
    .await;
    // What is denied is not copied, nor what goes on as something else.
    let denied = json(&east, &["--method", "POST", ORDERS]);
    assert_eq!(denied["reason"], "not-allowed");
    assert_eq!(denied["mirrors"][0]["why"], "refused");
    let socket = [
        "--header",
        "connection=upgrade",
        "--header",
        "upgrade=websocket",
        ORDERS,
    ];
    assert_eq!(json(&east, &socket)["mirrors"][0]["why"], "upgrade");
    gateway.finish().await;
}

#[tokio::test]
async fn mirrors_of_connections_are_told_as_well_and_why_none_is_made() {
    let (db, copy) = (Service::echo().await, Service::echo().await);
    let mut east = Cluster::new("east");
    let port = east.listen("db", "role: workloads, route: shop/db");
    let route = |name: &str, address: &str, more: &str| {
        let listener = if name == "db" { "db" } else { "apps" };
        east.route(
            &format!("shop/{name}"),
            &format!(
                "
            port: 5432
            backends: [{{ name: {name}, endpoints: ['{address}'] }}]
            failover: {{ tooFew: fail }}
            allow: [{{ listeners: [{listener}] }}]
            {more}"
            ),
        );
    };
    route(
        "db",
        &db.address.to_string(),
        "mirror: [{ route: shop/copy }]",
    );
    route("copy", &copy.address.to_string(), "");
    let gateway = east.start().await;
    let host = "db.shop.svc.clusterset.local";
    let told = json(&east, &[host]);
    let mirror = &told["mirrors"][0];
    assert_eq!(
        (&mirror["copied"], &mirror["route"]),
        (&true.into(), &"shop/copy".into())
    );
    assert_eq!(mirror["attempts"][0]["address"], copy.address.to_string());
    assert_eq!(mirror["target"]["exported_to"].as_array().unwrap().len(), 0);
    let written = mirror["written"].as_str().unwrap();
    assert!(written.contains("shop-db.yaml:"), "{written}");
    let mut stream = TcpStream::connect(port).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    within("an echo", stream.read_u8()).await.unwrap();
    drop(stream);
    let sent = [("mirror", "shop/copy"), ("result", "sent")];
    gateway
        .metric_becomes("zeugma_mirrored_total", &sent, 1.0)
        .await;
    let said = text(&explain(&east, &[host]));
    assert!(
        said.contains("mirrors    copied to shop/copy (all are"),
        "{said}"
    );
    // Nowhere to go, and then nobody to take it.
    route(
        "copy",
        "127.0.0.1:1",
        "health: { active: { tcp: true, every: 100ms } }",
    );
    let nowhere = eventually("a copy that is gone", async || {
        let told = json(&east, &[host]);
        (told["mirrors"][0]["copied"] == false).then_some(told)
    })
    .await;
    assert_eq!(nowhere["mirrors"][0]["why"], "unreachable", "{nowhere}");
    assert_eq!(nowhere["carried"], true);
    gateway.finish().await;
}

/// One of two endpoints is gone, and its level holds what it had.
#[tokio::test]
async fn a_level_that_holds_says_for_how_long() {
    let (near, far) = (Service::http("near").await, Service::http("far").await);
    let east = Cluster::new("east");
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends:
              - {{ name: own, endpoints: ['{}', '127.0.0.1:1'] }}
              - {{ name: other, locality: east/east-2, endpoints: ['{}'] }}
            failover: {{ hold: 1h }}
            allow: [{{ listeners: [apps] }}]",
            near.address, far.address
        ),
    );
    let gateway = east.start().await;
    let told = eventually("a held level", async || {
        assert_eq!(get(east.apps, ORDERS, "/").await.status, 200);
        let told = json(&east, &[ORDERS]);
        (told["destination"]["levels"][0]["state"]["is"] == "holding").then_some(told)
    })
    .await;
    let level = &told["destination"]["levels"][0];
    assert_eq!(
        (&level["share"], &level["healthy"]),
        (&1.0.into(), &1.into())
    );
    assert_eq!(level["damped_capacity"], 1.0);
    // By hand: 0.5 / 0.7.
    let room = level["capacity"].as_f64().unwrap();
    assert!((room - 5.0 / 7.0).abs() < 1e-9, "{room}");
    let left = level["state"]["ends_in_seconds"].as_f64().unwrap();
    assert!(left > 3500.0 && left <= 3600.0, "{left}");
    let text = text(&explain(&east, &[ORDERS]));
    assert!(
        first_line(&text).contains("1 of 2 endpoints healthy, and holds what it had for another"),
        "{text}"
    );
    gateway.finish().await;
}

#[tokio::test]
async fn tls_that_is_relayed_and_bytes_of_one_route_are_explained_as_well() {
    let db = Service::echo().await;
    let mut east = Cluster::new("east");
    let port = east.listen("db", "role: workloads, route: shop/db");
    for (name, tls) in [("db", "none"), ("pass", "workload")] {
        east.route(
            &format!("shop/{name}"),
            &format!(
                "
                port: 5432
                backends: [{{ endpoints: ['{}'], tls: {tls} }}]
                allow: [{{ sources: ['127.0.0.0/8'] }}]",
                db.address
            ),
        );
    }
    let gateway = east.start().await;
    let told = json(&east, &["db.shop.svc.clusterset.local"]);
    assert_eq!(told["listener"]["name"], "db");
    assert_eq!(told["steps"][0]["asks"], "plaintext");
    assert_eq!(told["attempts"][0]["address"], db.address.to_string());
    let stream = TcpStream::connect(port).await.unwrap();
    let source = stream.local_addr().unwrap();
    drop(stream);
    let line = gateway.connection(source).await;
    assert_eq!(line["reason"], told["attempts"][0]["reason"], "{line}");

    let told = json(&east, &["pass.shop.svc.clusterset.local"]);
    assert_eq!(told["route"]["inbound"], "passthrough");
    let hello = &told["steps"][0];
    assert_eq!(
        (&hello["asks"], &hello["answer"]),
        (&"hello".into(), &"carry".into())
    );
    let from = ["--source", "10.0.0.1", "pass.shop.svc.clusterset.local"];
    assert_eq!(json(&east, &from)["reason"], "not-allowed");
    gateway.finish().await;
}

#[tokio::test]
async fn files_alone_are_explained_where_no_gateway_answers_or_none_is_wanted() {
    let pair = pair().await;
    let offline = json(&pair.east, &[ORDERS, "--offline"]);
    assert_eq!(offline["health"], "assumed");
    // What has no locality stands where the gateway does.
    let there = text(&explain(&pair.east, &[ORDERS, "--at", "west/west-1"]));
    assert!(
        first_line(&there).starts_with("goes to west/west-1"),
        "{there}"
    );
    assert!(there.contains("NOT LIVE: no gateway was asked"), "{there}");
    let Pair {
        east,
        gateway,
        other,
        ..
    } = pair;
    gateway.finish().await;
    other.finish().await;
    let away = text(&explain(&east, &[ORDERS]));
    assert!(away.contains("NOT LIVE: no gateway answers at "), "{away}");
    east.write("broken.yaml", "kind: MeshRoute\n");
    let broken = explain(&east, &[ORDERS, "--offline"]);
    assert_eq!(broken.status.code(), Some(65));
    let said = String::from_utf8(broken.stderr).unwrap();
    assert!(said.starts_with("error[ZG1061]: "), "{said}");
    let at = Command::new(env!("CARGO_BIN_EXE_zeugma"))
        .args(["explain", "route", "--at", "eu/eu-1", ORDERS])
        .output()
        .unwrap();
    assert_eq!(at.status.code(), Some(64), "without --config");
}

/// The same engine on a virtual clock and on sockets.
#[tokio::test]
async fn what_is_simulated_of_a_fault_is_what_the_gateway_then_does() {
    let (near, gone) = (Service::http("near").await, Service::http("gone").await);
    let far = Service::http("far").await;
    let east = Cluster::new("east");
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends:
              - {{ name: own, endpoints: ['{}', '{}'] }}
              - {{ name: other, locality: east/east-2, endpoints: ['{}'] }}
            allow: [{{ listeners: [apps] }}]",
            near.address, gone.address, far.address
        ),
    );
    let gateway = east.start().await;
    let fault = gone.address.to_string();
    let simulated = Command::new(env!("CARGO_BIN_EXE_zeugma"))
        .args(["simulate", "-o", "json", "--expect", "lost<=0"])
        .args(["--down", &fault, "--config"])
        .arg(east.config())
        .output()
        .unwrap();
    let simulated: Value = serde_json::from_str(&text(&simulated)).unwrap();
    let level = &simulated["services"][0]["levels"][0];
    let expected = level["share_min"]["value"].as_f64().unwrap();

    drop(gone);
    let told = eventually("a share that moves", async || {
        // None is lost here either.
        assert_eq!(get(east.apps, ORDERS, "/").await.status, 200);
        let told = json(&east, &[ORDERS]);
        (told["destination"]["levels"][0]["share"] != 1.0).then_some(told)
    })
    .await;
    let share = told["destination"]["levels"][0]["share"].as_f64().unwrap();
    assert!((share - expected).abs() < 1e-9, "{share}, not {expected}");
    assert_eq!(told["destination"]["levels"][0]["healthy"], 1);
    gateway.finish().await;
}
