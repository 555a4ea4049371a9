//! Copies of connections: what a caller sends reaches another route, what that answers nobody.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use crate::data_mesh::{Gateway, Pair, endpoints, route};
use crate::data_services::{BANNER, Refusing, TcpService, pattern, read_all};
use crate::mesh::{Cluster, eventually, within};
use crate::security_access::proxy_header;

const MIRRORED: &str = "zeugma_mirrored_total";
const DB: &str = "db.demo.svc.clusterset.local";
const ALLOW: &str = "allow: [{ listeners: [db] }, { from: [\"spiffe://east.example/*\", \"spiffe://west.example/*\"] }]";
const EXPORT: &str = "export: { to: [\"*\"] }";

/// What a service heard of one connection, and how that ended.
type Heard = (Vec<u8>, Result<(), ErrorKind>);

/// Where copies go: it reads a connection once it may, and tells what it heard.
struct Canary {
    service: TcpService,
    heard: mpsc::Receiver<Heard>,
    /// How many connections it may read.
    may: Arc<Semaphore>,
}

impl Canary {
    /// One that reads so many connections at once; more when it is told to.
    fn reading(connections: usize) -> Self {
        let (telling, heard) = mpsc::channel(64);
        let may = Arc::new(Semaphore::new(connections));
        let reads = Arc::clone(&may);
        let service = TcpService::with(move |mut tcp| {
            let (telling, reads) = (telling.clone(), Arc::clone(&reads));
            async move {
                tcp.write_all(b"for nobody").await.ok();
                reads.acquire().await.unwrap().forget();
                let mut all = Vec::new();
                let ended = tcp.read_to_end(&mut all).await;
                let ended = ended.map(|_| ()).map_err(|error| error.kind());
                telling.send((all, ended)).await.unwrap();
            }
        });
        Self {
            service,
            heard,
            may,
        }
    }

    async fn hears(&mut self) -> Heard {
        within("what the copy was", self.heard.recv())
            .await
            .unwrap()
    }

    async fn opened(&self, count: usize) {
        eventually("a copy's connection", async || {
            (self.service.hits() >= count).then_some(())
        })
        .await;
    }
}

fn tcp_route(name: &str, spec: &[&str]) -> String {
    route(name, &[&["protocol: tcp", "port: 5432"], spec].concat())
}

fn backends(address: SocketAddr) -> String {
    format!("backends: [{{ {} }}]", endpoints(&[address]))
}

/// `db` at `primary` with its copies, and the route `canary` they go to.
fn routes(primary: SocketAddr, canary: SocketAddr, more: &str) -> String {
    let mirror = format!("mirror: [{{ route: demo/canary{more} }}]");
    let db = tcp_route("db", &[&backends(primary), &mirror, ALLOW]);
    db + &tcp_route("canary", &[&backends(canary)])
}

/// A gateway with one worker and a listener for `db`.
async fn mirrored(primary: SocketAddr, canary: SocketAddr, more: &str) -> (Gateway, SocketAddr) {
    let mut east = Cluster::new("east");
    east.set("workers", "1");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let gateway = Gateway::of(east, &routes(primary, canary, more)).await;
    (gateway, db)
}

/// Says `sent` to a service that echoes, and checks that it does.
async fn echoed(db: SocketAddr, sent: &[u8]) {
    let mut tcp = TcpStream::connect(db).await.unwrap();
    let (mut read, mut write) = tcp.split();
    let writing = async {
        write.write_all(sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (got, ()) = tokio::join!(read_all(&mut read), writing);
    let expected = [BANNER, sent, format!("\n{} bytes", sent.len()).as_bytes()].concat();
    assert!(got == expected, "{} bytes came back", got.len());
}

/// Opens a connection and waits until its endpoint speaks.
async fn open(db: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(db).await.unwrap();
    let mut first = vec![0; BANNER.len()];
    within("the banner", tcp.read_exact(&mut first))
        .await
        .unwrap();
    tcp
}

/// Says `sent` on an open connection, and waits until it comes back.
async fn says(tcp: &mut TcpStream, sent: &[u8]) {
    tcp.write_all(sent).await.unwrap();
    let mut got = vec![0; sent.len()];
    within("the echo", tcp.read_exact(&mut got)).await.unwrap();
    assert_eq!(got, sent);
}

#[tokio::test]
async fn what_a_caller_sends_is_copied_whole_and_the_answer_is_thrown_away() {
    let (primary, mut canary) = (TcpService::start(), Canary::reading(9));
    let mut east = Cluster::new("east");
    let cart = east.identity("ns/shop/sa/cart");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let limit = ", bodyLimit: 16MiB, timeout: 30s";
    let all = routes(primary.address(), canary.service.address(), limit);
    let gateway = Gateway::of(east, &all).await;
    // More than what a relay copies before it would splice.
    for bytes in [0, 5, 4 << 20] {
        let sent = pattern(bytes);
        echoed(db, &sent).await;
        let (heard, ended) = canary.hears().await;
        assert!(heard == sent, "{} of {bytes} bytes", heard.len());
        assert_eq!(ended, Ok(()));
    }
    // What is inside TLS that ends here.
    let mut tls = cart.dial(gateway.apps(), DB, &[]).await.unwrap();
    tls.write_all(b"inside").await.unwrap();
    tls.shutdown().await.unwrap();
    assert!(read_all(&mut tls).await.ends_with(b"6 bytes"));
    assert_eq!(canary.hears().await, (b"inside".to_vec(), Ok(())));
    gateway
        .until_counted(MIRRORED, &[("result", "sent")], 4.0)
        .await;
    assert_eq!(gateway.counted(MIRRORED, &[]).await, 4.0);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_share_of_the_connections_is_copied() {
    let (primary, canary) = (TcpService::start(), Canary::reading(1000));
    let at = canary.service.address();
    let (_gateway, db) = mirrored(primary.address(), at, ", percent: 50%").await;
    let mut asked = 0;
    // Each is one of two by chance: forty alike are as likely as 2 to the power of -40.
    while asked < 40 || canary.service.hits() == 0 {
        echoed(db, b"one").await;
        asked += 1;
    }
    assert!(canary.service.hits() < asked);
}

#[tokio::test]
async fn a_copy_that_stalls_is_dropped_when_more_waits_than_may() {
    let (primary, mut canary) = (TcpService::start(), Canary::reading(0));
    let at = canary.service.address();
    let (gateway, db) = mirrored(primary.address(), at, ", bodyLimit: 64KiB").await;
    // More than the sockets of a connection that nobody reads take.
    let sent = pattern(24 << 20);
    let mut tcp = open(db).await;
    canary.opened(1).await;
    let (mut read, mut write) = tcp.split();
    let writing = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let (got, ()) = tokio::join!(read_all(&mut read), writing);
    assert!(got.starts_with(&sent), "{} bytes came back", got.len());
    gateway
        .until_counted(MIRRORED, &[("result", "slow")], 1.0)
        .await;
    // What it got does not look whole.
    canary.may.add_permits(1);
    let (heard, ended) = canary.hears().await;
    assert_eq!(ended, Err(ErrorKind::ConnectionReset));
    assert!(heard.len() < sent.len());
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_copy_that_is_slower_than_its_primary_gets_all_of_it_in_its_time() {
    let (primary, mut canary) = (TcpService::start(), Canary::reading(0));
    let sent = pattern(12 << 20);
    let at = canary.service.address();
    let limit = ", bodyLimit: 16MiB, timeout: 30s";
    let (gateway, db) = mirrored(primary.address(), at, limit).await;
    // The caller has all of its answer while its copy has read nothing.
    echoed(db, &sent).await;
    canary.may.add_permits(1);
    let (heard, ended) = canary.hears().await;
    assert!(heard == sent, "{} bytes", heard.len());
    assert_eq!(ended, Ok(()));
    gateway
        .until_counted(MIRRORED, &[("result", "sent")], 1.0)
        .await;

    let limit = ", bodyLimit: 16MiB, timeout: 200ms";
    let (gateway, db) = mirrored(primary.address(), at, limit).await;
    echoed(db, &sent).await;
    gateway
        .until_counted(MIRRORED, &[("result", "timeout")], 1.0)
        .await;
    canary.may.add_permits(1);
    assert_eq!(canary.hears().await.1, Err(ErrorKind::ConnectionReset));
}

/// What broke: bytes that only the kernel had taken were thrown away, and the copy was told as sent.
#[tokio::test]
async fn what_the_kernel_has_taken_of_a_copy_is_read_after_its_time() {
    let (primary, mut canary) = (TcpService::start(), Canary::reading(0));
    let limit = ", bodyLimit: 16MiB, timeout: 200ms";
    let at = canary.service.address();
    let (gateway, db) = mirrored(primary.address(), at, limit).await;
    // Less than what the sockets of a connection that nobody reads take.
    let sent = pattern(1 << 20);
    echoed(db, &sent).await;
    gateway
        .until_counted(MIRRORED, &[("result", "sent")], 1.0)
        .await;
    canary.may.add_permits(1);
    let (heard, ended) = canary.hears().await;
    assert_eq!((heard.len(), ended), (sent.len(), Ok(())));
    assert!(heard == sent);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_copy_that_is_reset_or_refused_or_never_connected_is_not_noticed() {
    let primary = TcpService::start();
    let resetting = TcpService::with(|mut tcp| async move {
        tcp.read_u8().await.ok();
        tcp.set_zero_linger().unwrap();
    });
    let gone = Refusing::new();
    // Connected by the kernel, and never answered: a peer's gateway that hangs.
    let silent = TcpService::with(|tcp| async move {
        std::future::pending::<()>().await;
        drop(tcp);
    });
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let hanging = format!(
        "cluster: far\nlocality: far/far-1\ngateways: ['{}']\nspiffeIDs: ['spiffe://far.example/gw']",
        silent.address()
    );
    east.peer("far", &hanging);
    let gateway = Gateway::of(east, &routes(primary.address(), gone.address, "")).await;
    for (to, result) in [
        (backends(resetting.address()), "failed"),
        (backends(gone.address), "unreachable"),
        ("backends: [{ peer: far }]".to_owned(), "unreachable"),
    ] {
        let mirror = "mirror: [{ route: demo/canary, timeout: 300ms }]";
        let own = backends(primary.address());
        let route = tcp_route("db", &[&own, mirror, ALLOW]) + &tcp_route("canary", &[&to]);
        gateway.cluster.write("routes.yaml", &route);
        let labels = [("result", result)];
        let before = gateway.counted(MIRRORED, &labels).await;
        eventually(result, async || {
            let mut tcp = open(db).await;
            // The primary goes on, whatever becomes of the copy.
            says(&mut tcp, b"a").await;
            says(&mut tcp, b"b").await;
            (gateway.counted(MIRRORED, &labels).await > before).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn copies_under_way_are_as_many_as_may_be() {
    let (primary, canary) = (TcpService::start(), Canary::reading(9));
    let at = canary.service.address();
    let (gateway, db) = mirrored(primary.address(), at, ", inFlight: 1").await;
    let first = open(db).await;
    canary.opened(1).await;
    let mut second = open(db).await;
    says(&mut second, b"not copied").await;
    gateway
        .until_counted(MIRRORED, &[("result", "in-flight")], 1.0)
        .await;
    assert_eq!(canary.service.hits(), 1);
    drop(first);
    gateway
        .until_counted(MIRRORED, &[("result", "sent")], 1.0)
        .await;
    let third = open(db).await;
    canary.opened(2).await;
    drop((second, third));
}

/// What broke: copies were not among the connections of the route they went to.
#[tokio::test]
async fn a_copy_is_one_of_the_connections_that_its_route_may_have() {
    let (primary, canary) = (TcpService::start(), Canary::reading(9));
    let mut east = Cluster::new("east");
    east.set("workers", "1");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let own = [
        &*backends(primary.address()),
        "mirror: [{ route: demo/canary }]",
        ALLOW,
    ];
    let limited = [
        &*backends(canary.service.address()),
        "limits: { connections: 2 }",
    ];
    let all = tcp_route("db", &own) + &tcp_route("canary", &limited);
    let gateway = Gateway::of(east, &all).await;
    let (first, second) = (open(db).await, open(db).await);
    canary.opened(2).await;
    let mut third = open(db).await;
    says(&mut third, b"not copied").await;
    gateway
        .until_counted(MIRRORED, &[("result", "in-flight")], 1.0)
        .await;
    assert_eq!(canary.service.hits(), 2);
    drop(first);
    gateway
        .until_counted(MIRRORED, &[("result", "sent")], 1.0)
        .await;
    let fourth = open(db).await;
    canary.opened(3).await;
    drop((second, third, fourth));
}

#[tokio::test]
async fn a_reset_of_the_caller_reaches_the_copy_and_never_looks_like_the_end() {
    let (primary, mut canary) = (TcpService::start(), Canary::reading(9));
    let at = canary.service.address();
    let (gateway, db) = mirrored(primary.address(), at, "").await;
    let mut tcp = open(db).await;
    canary.opened(1).await;
    says(&mut tcp, b"half").await;
    tcp.set_zero_linger().unwrap();
    drop(tcp);
    assert_eq!(canary.hears().await.1, Err(ErrorKind::ConnectionReset));
    gateway
        .until_counted(MIRRORED, &[("result", "sent")], 1.0)
        .await;
}

#[tokio::test]
async fn a_copy_ends_with_its_mirror_and_its_primary_goes_on() {
    let (primary, mut canary) = (TcpService::start(), Canary::reading(9));
    let at = canary.service.address();
    let (gateway, db) = mirrored(primary.address(), at, "").await;
    let mut tcp = open(db).await;
    canary.opened(1).await;
    says(&mut tcp, b"before").await;
    let without = tcp_route("db", &[&backends(primary.address()), ALLOW])
        + &tcp_route("canary", &[&backends(at)]);
    gateway.cluster.write("routes.yaml", &without);
    assert_eq!(canary.hears().await.1, Err(ErrorKind::ConnectionReset));
    gateway
        .until_counted(MIRRORED, &[("result", "ended")], 1.0)
        .await;
    says(&mut tcp, b"after").await;
    drop(tcp);
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_copy_in_another_cluster_is_not_copied_again() {
    let (primary, mut canary) = (TcpService::start(), Canary::reading(9));
    let third = TcpService::start();
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let mirror = "mirror: [{ route: demo/canary, peer: west, timeout: 30s }]";
    let east_routes = tcp_route("db", &[&backends(primary.address()), mirror, ALLOW])
        + &tcp_route("canary", &["backends: [{ peer: west }]"]);
    let canary_at = backends(canary.service.address());
    let again = "mirror: [{ route: demo/third }]";
    let from = "allow: [{ from: [\"spiffe://east.example/*\"] }]";
    let west_routes = tcp_route("canary", &[&canary_at, again, from, EXPORT])
        + &tcp_route("third", &[&backends(third.address())]);
    let clusters = (east, Cluster::new("west"));
    let pair = Pair::of(clusters, &east_routes, &west_routes).await;
    let sent = pattern(600_000);
    echoed(db, &sent).await;
    let (heard, ended) = canary.hears().await;
    assert!(heard == sent, "{} bytes", heard.len());
    assert_eq!(ended, Ok(()));
    pair.east
        .until_counted(MIRRORED, &[("result", "sent")], 1.0)
        .await;
    assert_eq!(pair.west.counted(MIRRORED, &[]).await, 0.0);
    assert_eq!(third.hits(), 0);
    pair.finish().await;
}

/// What broke: whoever offered the ALPN of gateways was taken for one, which has made its copies.
#[tokio::test]
async fn who_is_a_gateway_is_told_by_its_identity_and_not_by_what_it_offers() {
    let (primary, mut canary) = (TcpService::start(), Canary::reading(9));
    let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    east.set("workers", "1");
    let (own, far) = (
        east.identity("ns/shop/sa/own"),
        west.identity("ns/shop/sa/far"),
    );
    let at = backends(canary.service.address());
    let all = [
        &*backends(primary.address()),
        "mirror: [{ route: demo/canary }]",
        "allow: [{ from: ['spiffe://east.example/*', 'spiffe://west.example/*'] }]",
        EXPORT,
    ];
    let routes = tcp_route("db", &all) + &tcp_route("canary", &[&at]);
    let gateway = Gateway::of(east, &routes).await;
    let mesh = gateway.cluster.mesh;
    let by = west.gateway_identity();
    let cases = [
        (&own, "own", gateway.apps(), true, true),
        (&far, "far", mesh, true, true),
        (&far, "plain", mesh, false, true),
        (&by, "gateway", mesh, true, false),
        (&by, "bytes", mesh, false, false),
    ];
    for (caller, says, to, is_told, is_copied) in cases {
        let alpn: &[&[u8]] = if is_told { &[b"zeugma-tcp/1"] } else { &[] };
        let mut tls = caller.dial(to, DB, alpn).await.unwrap();
        if is_told {
            tls.write_all(&proxy_header(&[])).await.unwrap();
        }
        tls.write_all(says.as_bytes()).await.unwrap();
        tls.shutdown().await.unwrap();
        let answer = read_all(&mut tls).await;
        let end = format!("{} bytes", says.len());
        assert!(answer.ends_with(end.as_bytes()), "{says}");
        if is_copied {
            assert_eq!(canary.hears().await, (says.as_bytes().to_vec(), Ok(())));
        }
    }
    // Of one worker, so that a copy that was begun has been counted or is under way.
    gateway
        .until_counted(MIRRORED, &[("result", "sent")], 3.0)
        .await;
    assert_eq!(canary.service.hits(), 3);
    gateway.process.finish().await;
}
