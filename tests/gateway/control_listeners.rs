//! Listeners that change their names and addresses while their sockets stay.

use std::net::SocketAddr;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::data_mesh::{Gateway, endpoints, route};
use crate::data_services::{TcpService, read_all};
use crate::mesh::{Cluster, eventually, within};

/// A service that says its name, and one whose callers stay until they are told to go.
fn naming(name: &'static [u8]) -> TcpService {
    TcpService::with(move |mut tcp| async move {
        tokio::io::AsyncWriteExt::write_all(&mut tcp, name)
            .await
            .ok();
        // Until the caller ends: an open connection that must survive.
        tcp.read_to_end(&mut Vec::new()).await.ok();
    })
}

fn routes(one: &TcpService, two: &TcpService, listener_of_one: &str) -> String {
    let of = |name, service: &TcpService, listener: &str| {
        let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
        let allow = format!("allow: [{{ listeners: [{listener}] }}]");
        route(name, &["protocol: tcp", "port: 5432", &backends, &allow])
    };
    format!(
        "{}{}",
        of("one", one, listener_of_one),
        of("two", two, "two")
    )
}

/// Who answers at an address of the gateway, and the connection; it stays open.
async fn answers(address: SocketAddr) -> (String, Option<TcpStream>) {
    let Ok(mut tcp) = TcpStream::connect(address).await else {
        return (String::new(), None);
    };
    let mut name = [0; 3];
    match within("an answer or the end", tcp.read_exact(&mut name)).await {
        Ok(_) => (String::from_utf8_lossy(&name).into_owned(), Some(tcp)),
        Err(_ended) => (String::new(), None),
    }
}

async fn until_answers(address: SocketAddr, name: &str) -> TcpStream {
    eventually(name, async || {
        let (found, tcp) = answers(address).await;
        tcp.filter(|_| found == name)
    })
    .await
}

/// The inode of the socket that listens on an address of 127.0.0.1, as `/proc/net/tcp` has it.
fn listening(address: SocketAddr) -> String {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{:04X}", address.port());
    let fields = table.lines().map(|line| line.split_whitespace().collect());
    // 0A is TCP_LISTEN.
    let found = fields
        .filter(|fields: &Vec<&str>| fields[1] == local && fields[3] == "0A")
        .map(|fields| fields[9].to_owned())
        .next();
    found.unwrap_or_else(|| panic!("nobody listens on {address}\n{table}"))
}

#[tokio::test]
async fn listeners_are_renamed_and_swap_their_addresses_without_closing_a_socket() {
    let (one, two) = (naming(b"one"), naming(b"two"));
    let (role_one, role_two) = (
        "role: workloads, route: demo/one",
        "role: workloads, route: demo/two",
    );
    let mut east = Cluster::new("east");
    let (a, b) = (east.listen("one", role_one), east.listen("two", role_two));
    let mut gateway = Gateway::of(east, &routes(&one, &two, "one")).await;
    let mut open = vec![until_answers(a, "one").await, until_answers(b, "two").await];
    let sockets = (listening(a), listening(b));

    // Swapped.
    gateway.cluster.relisten("one", b, role_one);
    gateway.cluster.relisten("two", a, role_two);
    gateway.cluster.write_gateway();
    open.push(until_answers(a, "two").await);
    open.push(until_answers(b, "one").await);
    assert_eq!((listening(a), listening(b)), sockets);

    // Renamed.
    gateway.cluster.unlisten("one");
    gateway.cluster.relisten("uno", b, role_one);
    gateway
        .cluster
        .write("routes.yaml", &routes(&one, &two, "uno"));
    gateway.cluster.write_gateway();
    let renamed = eventually("the new name", async || {
        let caller = until_answers(b, "one").await;
        let source = caller.local_addr().unwrap();
        drop(caller);
        let line = gateway.process.connection(source).await;
        (line["listener"] == "uno").then_some(line)
    })
    .await;
    assert_eq!(renamed["dst.service"], "demo/one");
    assert_eq!((listening(a), listening(b)), sockets);

    for mut tcp in open {
        tokio::io::AsyncWriteExt::shutdown(&mut tcp).await.unwrap();
        let source = tcp.local_addr().unwrap();
        assert_eq!(read_all(&mut tcp).await, b"");
        let line = gateway.process.connection(source).await;
        assert_eq!(line["verdict"], "completed", "{line}");
    }
    let said = gateway.process.told();
    assert!(!said.contains("cannot be bound"), "{said}");
    gateway.process.finish().await;
}
