//! The negative corpus at a gateway's real ports: presented by callers of its mesh listener, and by
//! endpoints it calls.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use rustls::AlertDescription;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use zeugma_core::svid::Rule;
use zeugma_proxy::tls::Credentials;

use crate::corpus::{self, Case, Outcome, REFERENCE_ID, Roles, World, cases, long_domain};
use crate::mesh::{Cluster, Gateway, Service, get, within};

const HOST: &str = "orders.shop.svc.clusterset.local";

/// A cluster whose gateway is of the corpus' world, and its credentials.
fn east(world: &World) -> (Cluster, Arc<Credentials>) {
    let mut east = Cluster::new("east");
    let files = east.svid();
    fs::remove_file(&files.certificate).unwrap();
    fs::remove_file(&files.key).unwrap();
    fs::remove_dir_all(&files.bundles).unwrap();
    let written = world.write(&east.config());
    assert_eq!(written, files);
    east.set("workers", "1");
    (east, Arc::new(Credentials::load(&files, 1).unwrap()))
}

/// Waits for the `nth` line of a connection or request, counted from 1.
async fn nth_line(gateway: &Gateway, kind: &str, nth: usize) -> Value {
    let mut seen = 0;
    gateway
        .log(|line| {
            seen += usize::from(line["kind"] == kind);
            seen == nth
        })
        .await
}

/// How often each rule refuses among `cases`.
fn by_rule<'a>(cases: impl Iterator<Item = &'a Case>) -> BTreeMap<&'static str, f64> {
    let mut rules = BTreeMap::new();
    for case in cases {
        if let Outcome::Refused(rule, _) = case.outcome {
            *rules.entry(rule.id()).or_default() += 1.0;
        }
    }
    rules
}

#[tokio::test]
async fn every_case_meets_its_rule_alert_counter_and_line_as_a_caller() {
    let world = World::new();
    let (east, credentials) = east(&world);
    let service = Service::tcp(|mut tcp| async move {
        tcp.write_all(b"k").await.ok();
    })
    .await;
    // Whoever is verified is allowed: only the certificate decides.
    let domains = [
        "east.example".to_owned(),
        "west.example".to_owned(),
        "pooled.example".to_owned(),
        "10.0.0.1".to_owned(),
        "renewed.example".to_owned(),
        "deep.example".to_owned(),
        long_domain(),
    ];
    let mut from = Vec::new();
    for (nth, domain) in domains.iter().enumerate() {
        east.peer(
            &format!("peer-{nth}"),
            &format!(
                "
                cluster: cluster-{nth}
                locality: other
                gateways: ['127.0.0.1:1']
                spiffeIDs: ['spiffe://{domain}/zeugma/gateway']"
            ),
        );
        from.push(format!("'spiffe://{domain}/*'"));
    }
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: tcp
            port: 5432
            inbound: terminate
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ from: [{}] }}]
            export: {{ to: ['*'] }}",
            service.address,
            from.join(", ")
        ),
    );
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let cases = cases(&world);
    let (mut refused, mut accepted) = (0, 0);
    for (nth, case) in cases.iter().enumerate() {
        let call = corpus::call(east.mesh, HOST, case, &credentials);
        let seen = within(case.name, Box::pin(call)).await;
        let line = nth_line(&gateway, "connection", nth + 1).await;
        match case.outcome {
            Outcome::Accepted => {
                accepted += 1;
                assert_eq!(seen, Ok(()), "{}: {line}", case.name);
                assert_eq!(line["verdict"], "completed", "{}: {line}", case.name);
                assert_eq!(line["src.identity"].as_str(), case.id.as_deref());
            }
            Outcome::Refused(rule, alert) => {
                refused += 1;
                assert_eq!(seen, Err(alert), "{}: {line}", case.name);
                let verdict = if rule == Rule::NoCertificate {
                    "certificate-missing"
                } else {
                    "certificate-refused"
                };
                assert_eq!(line["verdict"], verdict, "{}: {line}", case.name);
                assert_eq!(line["policy.rule"], rule.id(), "{}: {line}", case.name);
                assert_eq!(line["tls.alert"], rfc_name(alert), "{}", case.name);
                assert!(line.get("src.identity").is_none(), "{}: {line}", case.name);
                assert!(line.get("dst.addr").is_none(), "{}: {line}", case.name);
            }
        }
    }
    assert!(refused >= 40 && accepted >= 8, "{refused} {accepted}");
    assert_eq!(service.connections(), accepted);
    let metrics = gateway.metrics().await;
    for (rule, times) in by_rule(cases.iter()) {
        let labels = [("side", "downstream"), ("rule", rule)];
        let counted = metrics.value("zeugma_certificates_refused_total", &labels);
        assert_eq!(counted, times, "{rule}");
    }
    gateway.sockets_fall_to(sockets).await;
    gateway.finish().await;
}

#[tokio::test]
async fn every_case_meets_its_rule_and_alert_as_an_endpoint_and_learns_nothing() {
    let world = World::new();
    let (mut east, credentials) = east(&world);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cases: Vec<Case> = cases(&world)
        .into_iter()
        .filter(|case| case.roles == Roles::Both)
        .collect();
    let mut ids: Vec<&str> = cases.iter().filter_map(|case| case.id.as_deref()).collect();
    ids.extend([REFERENCE_ID, "spiffe://east.example/*"]);
    ids.sort_unstable();
    ids.dedup();
    let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    let db = east.listen("db", "role: workloads, route: shop/db");
    for (reference, protocol, more) in [
        ("shop/orders", "http", "retries: { attempts: 0 }"),
        ("shop/db", "tcp", "port: 5432"),
    ] {
        let listeners = if protocol == "tcp" { "db" } else { "apps" };
        east.route(
            reference,
            &format!(
                "
                protocol: {protocol}
                {more}
                backends: [{{ endpoints: ['{address}'], tls: mesh, spiffeIDs: [{}] }}]
                allow: [{{ listeners: [{listeners}] }}]",
                ids.join(", ")
            ),
        );
    }
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let (mut requests, mut connections) = (0, 0);
    for case in &cases {
        // `answer` is given what arrives only once the gateway has accepted it: `Err` means that
        // no byte of the request was sent.
        let answer = corpus::answer(&listener, case, &credentials);
        match case.outcome {
            Outcome::Refused(rule, alert) => {
                let call = get(east.apps, HOST, "/secret");
                let both = Box::pin(async { tokio::join!(answer, call) });
                let (seen, reply) = within(case.name, both).await;
                requests += 1;
                let line = nth_line(&gateway, "request", requests).await;
                assert_eq!(seen, Err(alert), "{}: {line}", case.name);
                assert_eq!(reply.status, 503, "{}", case.name);
                assert_eq!(line["verdict"], "connect-failed", "{}: {line}", case.name);
                assert_eq!(line["policy.rule"], rule.id(), "{}: {line}", case.name);
                assert!(line.get("dst.identity").is_none(), "{}: {line}", case.name);
            }
            Outcome::Accepted => {
                let call = async {
                    let mut tcp = TcpStream::connect(db).await.unwrap();
                    let mut bytes = Vec::new();
                    tcp.read_to_end(&mut bytes).await.unwrap();
                    bytes
                };
                let both = Box::pin(async { tokio::join!(answer, call) });
                let (seen, bytes) = within(case.name, both).await;
                assert_eq!((seen, &*bytes), (Ok(()), &b"k"[..]), "{}", case.name);
                connections += 1;
                let mut nth = 0;
                let line = gateway
                    .log(|line| {
                        nth += usize::from(line["listener"] == "db");
                        nth == connections
                    })
                    .await;
                assert_eq!(line["verdict"], "completed", "{}: {line}", case.name);
                assert_eq!(line["dst.identity"].as_str(), case.id.as_deref());
            }
        }
    }
    assert!(requests >= 40 && connections >= 8);
    let metrics = gateway.metrics().await;
    for (rule, times) in by_rule(cases.iter()) {
        let labels = [("side", "upstream"), ("rule", rule)];
        let counted = metrics.value("zeugma_certificates_refused_total", &labels);
        assert_eq!(counted, times, "{rule}");
    }
    gateway.sockets_fall_to(sockets).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_tcp_route_names_the_rule_that_its_endpoint_breaks() {
    let world = World::new();
    let (mut east, credentials) = east(&world);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let db = east.listen("db", "role: workloads, route: shop/db");
    east.route(
        "shop/db",
        &format!(
            "
            protocol: tcp
            port: 5432
            backends: [{{ endpoints: ['{address}'], tls: mesh, spiffeIDs: ['{REFERENCE_ID}'] }}]
            allow: [{{ listeners: [db] }}]"
        ),
    );
    let gateway = east.start().await;
    let cases = cases(&world);
    for (name, rule) in [("expired", "expired"), ("two URI SANs", "XL1")] {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        let call = async {
            let mut tcp = TcpStream::connect(db).await.unwrap();
            tcp.write_all(b"secret").await.unwrap();
            let mut bytes = Vec::new();
            // Closed with the caller's bytes unread: an end, orderly or not.
            tcp.read_to_end(&mut bytes).await.ok();
            assert_eq!(bytes, b"");
            tcp.local_addr().unwrap()
        };
        let both =
            Box::pin(async { tokio::join!(corpus::answer(&listener, case, &credentials), call) });
        let (seen, source) = within(name, both).await;
        assert!(seen.is_err(), "{name}");
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], "connect-failed", "{name}: {line}");
        assert_eq!(line["policy.rule"], rule, "{name}: {line}");
    }
    // A good certificate of somebody else is refused by the route's `spiffeIDs`.
    let other = cases
        .iter()
        .find(|case| case.outcome == Outcome::Accepted && case.id.as_deref() != Some(REFERENCE_ID));
    let call = async {
        let mut tcp = TcpStream::connect(db).await.unwrap();
        let mut bytes = Vec::new();
        tcp.read_to_end(&mut bytes).await.unwrap();
        tcp.local_addr().unwrap()
    };
    let both = Box::pin(async {
        tokio::join!(
            corpus::answer(&listener, other.unwrap(), &credentials),
            call
        )
    });
    let (seen, source) = within("somebody else", both).await;
    assert_eq!(seen, Err(AlertDescription::AccessDenied));
    let line = gateway.connection(source).await;
    assert_eq!(line["policy.rule"], "unexpected-id", "{line}");
    gateway.finish().await;
}

/// The name of RFC 8446 §6.2 for what rustls spells otherwise.
fn rfc_name(alert: AlertDescription) -> String {
    let mut name = String::new();
    for letter in alert.as_str().unwrap().replace("CA", "Ca").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}
