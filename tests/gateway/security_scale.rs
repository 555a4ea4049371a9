//! Many open connections, half of which a change takes the right from.

use std::net::SocketAddr;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::mesh::{Cluster, Service, within};

/// Set to open that many, and to be told how long it took.
const ASKED: &str = "ZEUGMA_RECHECK_CONNECTIONS";
/// More than ten slices of a walk on each of two workers; both ends fit under 20,000 open files.
const CONNECTIONS: usize = 6_000;
/// Connections that are being opened at once.
const AT_ONCE: usize = 64;
/// Callers of one address.
const PORTS: usize = 5_000;

/// Has this process, and those it starts, open as many files as two for each connection and some
/// more; returns how many connections may be opened.
fn raise_open_files(connections: usize) -> usize {
    const MORE: u64 = 500;
    let needed = u64::try_from(connections).unwrap() * 2 + MORE;
    let limit = getrlimit(Resource::Nofile);
    let raise = |to: Option<u64>, maximum| {
        let limit = Rlimit {
            current: to,
            maximum,
        };
        setrlimit(Resource::Nofile, limit).is_ok()
    };
    let higher = limit.maximum.map(|maximum| maximum.max(needed));
    if raise(higher, higher) {
        return connections;
    }
    assert!(raise(limit.maximum, limit.maximum));
    let most = limit.maximum.unwrap() - MORE;
    usize::try_from(most / 2).unwrap().min(connections)
}

/// Sends back what it gets, with little memory.
async fn echo(mut tcp: TcpStream) {
    let mut bytes = [0; 16];
    while let Ok(n) = tcp.read(&mut bytes).await {
        if n == 0 || tcp.write_all(&bytes[..n]).await.is_err() {
            return;
        }
    }
}

async fn open(to: SocketAddr, nth: usize) -> TcpStream {
    // By turns of the half that stays, 127.2.x.x, and of the half that goes, 127.3.x.x.
    let from = format!("127.{}.0.{}:0", 2 + nth % 2, 1 + nth / PORTS);
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(from.parse().unwrap()).unwrap();
    let mut tcp = within("a connection", socket.connect(to)).await.unwrap();
    goes_on(&mut tcp).await;
    tcp
}

async fn goes_on(tcp: &mut TcpStream) {
    tcp.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    within("an echo", tcp.read_exact(&mut echoed))
        .await
        .unwrap();
    assert_eq!(&echoed, b"ping");
}

fn write_route(east: &Cluster, service: &Service, sources: &str) {
    let spec = format!(
        "
        protocol: tcp
        port: 5432
        backends: [{{ endpoints: ['{}'] }}]
        allow: [{{ sources: ['{sources}'] }}]",
        service.address
    );
    east.route("shop/db", &spec);
}

#[tokio::test]
async fn half_of_many_connections_end_at_once_and_the_other_half_moves_bytes() {
    let asked = std::env::var(ASKED).ok();
    let count = asked.as_ref().map_or(CONNECTIONS, |n| n.parse().unwrap());
    let count = raise_open_files(count);
    let service = Service::tcp(echo).await;
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: shop/db");
    write_route(&east, &service, "127.0.0.0/8");
    let gateway = east.start().await;
    let (mut stay, mut go) = (Vec::new(), Vec::new());
    let mut opening = JoinSet::new();
    for nth in 0..count {
        opening.spawn(async move { (nth, open(db, nth).await) });
        if opening.len() >= AT_ONCE || nth + 1 == count {
            let until = if nth + 1 == count { 0 } else { AT_ONCE / 2 };
            while opening.len() > until {
                let (nth, tcp) = opening.join_next().await.unwrap().unwrap();
                if nth % 2 == 0 {
                    stay.push(tcp);
                } else {
                    go.push(tcp);
                }
            }
        }
    }
    write_route(&east, &service, "127.2.0.0/16");
    gateway.message("ZG0120 configuration applied").await;
    let applied = Instant::now();
    for tcp in &mut go {
        // In order, or reset: it is over.
        within("an end", tcp.read(&mut [0])).await.ok();
    }
    let ended = applied.elapsed();
    for tcp in &mut stay {
        goes_on(tcp).await;
    }
    let labels = [("reason", "no-longer-allowed")];
    let gone = f64::from(u32::try_from(go.len()).unwrap());
    let name = "zeugma_connections_total";
    gateway.metric_becomes(name, &labels, gone).await;
    if asked.is_some() {
        let walks = gateway.messages_so_far();
        let walks = walks.iter().filter(|line| line.contains("rechecked"));
        tell(count, ended, &walks.cloned().collect::<Vec<_>>().join("\n"));
    }
    drop(stay);
}

#[expect(clippy::print_stderr, reason = "asked for by a variable")]
fn tell(count: usize, ended: std::time::Duration, walks: &str) {
    eprintln!("{count} connections: half ended {ended:?} after it was applied\n{walks}");
}
