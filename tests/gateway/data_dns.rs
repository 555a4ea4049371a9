//! Backends by name: every address is an endpoint, and answers move traffic.

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::data_services::Socket;
use crate::mesh::{Cluster, Gateway, NameServer, Zone, eventually, within};

/// Services on one port of several addresses: each says which it is, and sends back what it gets.
struct Services(Vec<Socket>);

impl Services {
    fn on(addresses: &[&str]) -> Self {
        let mut sockets: Vec<Socket> = Vec::new();
        for ip in addresses {
            let ip: IpAddr = ip.parse().unwrap();
            let port = sockets.first().map_or(0, |first| first.address.port());
            let address = SocketAddr::new(ip, port).to_string();
            sockets.push(Socket::serve(&address, move |mut tcp| async move {
                tcp.write_all(format!("{ip}\n").as_bytes()).await.ok();
                let (mut read, mut write) = tcp.split();
                tokio::io::copy(&mut read, &mut write).await.ok();
            }));
        }
        Self(sockets)
    }

    fn port(&self) -> u16 {
        self.0[0].address.port()
    }
}

fn has(addresses: &[&str]) -> Zone {
    // They are asked for again after a second.
    let addresses = addresses.iter().map(|ip| ip.parse().unwrap());
    Zone::Has(addresses.collect(), 1)
}

/// East with a one-route listener `db`, whose backends these are.
async fn east(names: &NameServer, backends: &str) -> (Cluster, Gateway, SocketAddr) {
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: shop/db");
    // Turns are each worker's own.
    east.set("workers", "1");
    write(&east, backends);
    let gateway = east.start_under(&names.wrapper()).await;
    (east, gateway, db)
}

fn write(east: &Cluster, backends: &str) {
    east.route(
        "shop/db",
        &format!(
            "port: 5432\nbackends: [{backends}]\nbalance: {{ policy: round-robin }}\n\
             failover: {{ failback: {{ after: 0s }} }}\nallow: [{{ listeners: [db] }}]"
        ),
    );
}

/// A connection, and who answered.
async fn connect(db: SocketAddr) -> (TcpStream, String) {
    let mut tcp = TcpStream::connect(db).await.unwrap();
    let mut name = String::new();
    loop {
        let byte = within("a name", tcp.read_u8()).await.unwrap();
        if byte == b'\n' {
            return (tcp, name);
        }
        name.push(char::from(byte));
    }
}

async fn echoes(tcp: &mut TcpStream) {
    tcp.write_all(b"ping").await.unwrap();
    let mut echo = [0; 4];
    within("an echo", tcp.read_exact(&mut echo)).await.unwrap();
    assert_eq!(&echo, b"ping");
}

/// The addresses of the route's endpoints, by level.
async fn endpoints(gateway: &Gateway) -> Vec<Vec<String>> {
    let routes = gateway.admin_json("/api/v1/routes").await;
    let levels = routes["routes"][0]["outbound"]["levels"]
        .as_array()
        .unwrap();
    let of = |level: &Value| {
        let endpoints = level["endpoints"].as_array().unwrap();
        let address = |one: &Value| one["address"].as_str().unwrap().to_owned();
        endpoints.iter().map(address).collect()
    };
    levels.iter().map(of).collect()
}

async fn until_endpoints(gateway: &Gateway, wanted: &[&[String]]) {
    let mut last = Vec::new();
    let looking = eventually("the endpoints", async || {
        last = endpoints(gateway).await;
        (last == wanted).then_some(())
    });
    looking.await;
}

#[tokio::test]
async fn every_address_of_both_families_is_an_endpoint_and_what_leaves_the_answer_goes_on() {
    let Some(names) = NameServer::new().await else {
        return;
    };
    let services = Services::on(&["127.0.2.1", "127.0.2.2", "::1"]);
    let port = services.port();
    names.set("db.internal", has(&["127.0.2.1", "127.0.2.2", "::1"]));
    let (_east, gateway, db) = east(&names, &format!("{{ dns: 'db.internal:{port}' }}")).await;
    // It is ready: all of them are there, and each in its turn.
    let mut open = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let (tcp, name) = connect(db).await;
        open.push((tcp, name.clone()));
        seen.push(name);
    }
    seen.sort();
    assert_eq!(seen, ["127.0.2.1", "127.0.2.2", "::1"]);
    let at = |ip: &str| format!("{ip}:{port}");
    until_endpoints(
        &gateway,
        &[&[at("127.0.2.1"), at("127.0.2.2"), at("[::1]")]],
    )
    .await;
    let before = gateway.admin_json("/server_info").await["config_generation"].clone();

    names.set("db.internal", has(&["127.0.2.2"]));
    until_endpoints(&gateway, &[&[at("127.0.2.2")]]).await;
    for _ in 0..3 {
        assert_eq!(connect(db).await.1, "127.0.2.2");
    }
    for (tcp, _) in &mut open {
        echoes(tcp).await;
    }
    // And back: what comes is used.
    names.set("db.internal", has(&["::1"]));
    until_endpoints(&gateway, &[&[at("[::1]")]]).await;
    assert_eq!(connect(db).await.1, "::1");
    for (tcp, _) in &mut open {
        echoes(tcp).await;
    }
    let after = gateway.admin_json("/server_info").await["config_generation"].clone();
    assert_eq!(before, after, "nobody wrote another configuration");
    drop(open);
    gateway.finish().await;
}

#[tokio::test]
async fn while_a_name_does_not_resolve_its_last_addresses_stay_and_that_is_told() {
    let Some(names) = NameServer::new().await else {
        return;
    };
    let services = Services::on(&["127.0.2.1"]);
    let at = format!("127.0.2.1:{}", services.port());
    names.set("db.internal", has(&["127.0.2.1"]));
    let backends = format!("{{ dns: 'db.internal:{}' }}", services.port());
    let (_east, gateway, db) = east(&names, &backends).await;
    assert_eq!(connect(db).await.1, "127.0.2.1");
    let findings = async || gateway.admin_json("/api/v1/findings").await["findings"].clone();
    assert_eq!(findings().await, Value::Array(Vec::new()));

    names.set("db.internal", Zone::Broken);
    gateway.message("name not resolved").await;
    // Again and again: it is told once, and how often it was.
    let labels = [("result", "failed")];
    eventually("three failures", async || {
        let metrics = gateway.metrics().await;
        (metrics.value("zeugma_name_questions_total", &labels) >= 3.0).then_some(())
    })
    .await;
    let metrics = gateway.metrics().await;
    assert_eq!(metrics.value("zeugma_names_failing", &[]), 1.0);
    assert_eq!(metrics.value("zeugma_names", &[]), 1.0);
    let told = findings().await;
    assert_eq!(told[0]["code"], "ZG0601", "{told}");
    let message = told[0]["message"].as_str().unwrap();
    assert!(
        message.contains("`db.internal` does not resolve"),
        "{message}"
    );
    assert!(
        message.contains("its last address stays in use"),
        "{message}"
    );
    assert_eq!(endpoints(&gateway).await, [[at]]);
    assert_eq!(connect(db).await.1, "127.0.2.1");
    let messages = gateway.messages_so_far();
    let warned = messages
        .iter()
        .filter(|line| line.contains("name not resolved"));
    assert_eq!(warned.count(), 1);

    names.set("db.internal", has(&["127.0.2.1"]));
    gateway.message("ZG0603 name resolved again").await;
    assert_eq!(findings().await, Value::Array(Vec::new()));
    gateway.finish().await;
}

#[tokio::test]
async fn while_one_family_does_not_resolve_its_last_addresses_stay_beside_those_of_the_other() {
    let Some(names) = NameServer::new().await else {
        return;
    };
    let services = Services::on(&["127.0.2.1", "127.0.2.2", "::1"]);
    let port = services.port();
    let at = |ip: &str| format!("{ip}:{port}");
    names.set("db.internal", has(&["127.0.2.1", "::1"]));
    let (_east, gateway, db) = east(&names, &format!("{{ dns: 'db.internal:{port}' }}")).await;
    until_endpoints(&gateway, &[&[at("127.0.2.1"), at("[::1]")]]).await;

    let v4 = vec!["127.0.2.2".parse().unwrap()];
    names.set("db.internal", Zone::HasV4(v4, 1));
    until_endpoints(&gateway, &[&[at("127.0.2.2"), at("[::1]")]]).await;
    let mut seen = [connect(db).await.1, connect(db).await.1];
    seen.sort();
    assert_eq!(seen, ["127.0.2.2", "::1"]);
    let told = gateway.admin_json("/api/v1/findings").await["findings"].clone();
    assert_eq!(told[0]["code"], "ZG0601", "{told}");
    let message = told[0]["message"].as_str().unwrap();
    assert!(message.contains("its AAAA records"), "{message}");

    // An answer that there are none is believed.
    names.set("db.internal", has(&["127.0.2.2"]));
    until_endpoints(&gateway, &[&[at("127.0.2.2")]]).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_name_that_is_gone_leaves_its_traffic_to_the_next_level_until_it_is_back() {
    let Some(names) = NameServer::new().await else {
        return;
    };
    let services = Services::on(&["127.0.2.1", "127.0.2.9"]);
    let port = services.port();
    names.set("db.internal", has(&["127.0.2.1"]));
    let backends = format!(
        "{{ dns: 'db.internal:{port}' }}, \
         {{ name: far, locality: far/far-1, endpoints: ['127.0.2.9:{port}'] }}"
    );
    let (_east, gateway, db) = east(&names, &backends).await;
    let (mut open, name) = connect(db).await;
    assert_eq!(name, "127.0.2.1");
    let far = format!("127.0.2.9:{port}");

    names.set("db.internal", Zone::NoSuchName);
    until_endpoints(&gateway, &[&[], std::slice::from_ref(&far)]).await;
    assert_eq!(connect(db).await.1, "127.0.2.9");
    echoes(&mut open).await;
    let found = gateway.admin_json("/api/v1/findings").await["findings"].clone();
    let message = found[0]["message"].as_str().unwrap();
    assert!(
        message.contains("there are no endpoints of it"),
        "{message}"
    );

    gateway.message("ZG0604 the name has no addresses").await;

    names.set("db.internal", has(&["127.0.2.1"]));
    until_endpoints(&gateway, &[&[format!("127.0.2.1:{port}")], &[far]]).await;
    assert_eq!(connect(db).await.1, "127.0.2.1");
    drop(open);
    gateway.finish().await;
}

#[tokio::test]
async fn a_name_of_a_later_configuration_keeps_its_level_while_it_is_asked_for() {
    let Some(names) = NameServer::new().await else {
        return;
    };
    let services = Services::on(&["127.0.2.1", "127.0.2.9"]);
    let port = services.port();
    let far = format!("{{ name: far, locality: far/far-1, endpoints: ['127.0.2.9:{port}'] }}");
    names.set("late.internal", Zone::Broken);
    let (east, gateway, db) = east(&names, &far).await;
    assert_eq!(connect(db).await.1, "127.0.2.9");
    write(&east, &format!("{{ dns: 'late.internal:{port}' }}, {far}"));
    let asked = format!("late.internal:{port}");
    let next = format!("127.0.2.9:{port}");
    until_endpoints(
        &gateway,
        &[std::slice::from_ref(&asked), std::slice::from_ref(&next)],
    )
    .await;
    // Nobody knows where it is: each connection goes on to the next level at once.
    assert_eq!(connect(db).await.1, "127.0.2.9");
    names.set("late.internal", has(&["127.0.2.1"]));
    until_endpoints(&gateway, &[&[format!("127.0.2.1:{port}")], &[next]]).await;
    assert_eq!(connect(db).await.1, "127.0.2.1");
    gateway.finish().await;
}
