//! Changes and endings under load.

use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::data_client::Wire;
use crate::data_load::{Calls, Load};
use crate::data_mesh::{Gateway, HELLO, endpoints, near_route, route};
use crate::data_services::{BANNER, HttpService, Mode, TcpService, read_all};
use crate::mesh::{Cluster, eventually, within};

fn load(gateway: &Gateway, wire: Wire) -> Calls {
    Calls {
        address: gateway.apps(),
        wire,
        method: "GET",
        host: HELLO,
        path: "/",
        every: Duration::from_millis(50),
    }
}

fn hello(service: &HttpService) -> String {
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    near_route("hello", &[&backends])
}

fn db(service: &TcpService) -> String {
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let allow = "allow: [{ listeners: [db] }]";
    route("db", &["protocol: tcp", "port: 5432", &backends, allow])
}

async fn greeted(address: std::net::SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let mut banner = vec![0; BANNER.len()];
    within("the banner", tcp.read_exact(&mut banner))
        .await
        .unwrap();
    tcp
}

async fn still_echoes(tcp: &mut TcpStream) {
    tcp.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    within("the echo", tcp.read_exact(&mut echoed))
        .await
        .unwrap();
    assert_eq!(&echoed, b"ping");
}

#[tokio::test]
async fn a_changed_route_moves_its_requests_and_ends_nothing_else() {
    let (old, new) = (HttpService::start("old"), HttpService::start("new"));
    let bytes = TcpService::start();
    let mut east = Cluster::new("east");
    let listener = east.listen("db", "role: workloads, route: demo/db");
    let gateway = Gateway::of(east, &format!("{}{}", hello(&old), db(&bytes))).await;
    let mut tcp = greeted(listener).await;
    let loads = [Wire::H1, Wire::H2].map(|wire| Load::start(3, &load(&gateway, wire)));
    loads[0].goes_on(10).await;
    assert_eq!(new.hits(), 0);
    let routes = format!("{}{}", hello(&new), db(&bytes));
    gateway.cluster.write("routes.yaml", &routes);
    new.arrived(20).await;
    let after = old.hits();
    loads[1].goes_on(10).await;
    assert_eq!(old.hits(), after);
    still_echoes(&mut tcp).await;
    for load in loads {
        let tally = load.end().await;
        assert_eq!(tally.lost, Vec::<String>::new());
    }
    // What is refused changes nothing and is said.
    gateway.cluster.write("routes.yaml", "kind: Nonsense\n");
    gateway.process.message("configuration refused").await;
    assert_eq!(gateway.get("/").await.text(), "new");
    still_echoes(&mut tcp).await;
    gateway.process.finish().await;
}

#[tokio::test]
async fn listeners_come_and_go_without_a_restart() {
    let bytes = TcpService::start();
    let web = HttpService::start("web");
    let mut east = Cluster::new("east");
    let first = east.listen("db", "role: workloads, route: demo/db");
    let routes = format!("{}{}", hello(&web), db(&bytes));
    let mut gateway = Gateway::of(east, &routes).await;
    let mut open = greeted(first).await;
    let second = gateway
        .cluster
        .listen("db2", "role: workloads, route: demo/db");
    let allow = "allow: [{ listeners: [db] }]";
    let both = routes.replace(allow, "allow: [{ listeners: [db, db2] }]");
    gateway.cluster.write("routes.yaml", &both);
    gateway.cluster.write_gateway();
    eventually("the new listener", async || {
        TcpStream::connect(second).await.ok()
    })
    .await;
    let mut other = greeted(second).await;
    still_echoes(&mut open).await;
    // One that cannot be bound refuses the whole change, and what is there goes on.
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    gateway
        .cluster
        .relisten("db3", address, "role: workloads, route: demo/db");
    let all = routes.replace(allow, "allow: [{ listeners: [db, db2, db3] }]");
    gateway.cluster.write("routes.yaml", &all);
    gateway.cluster.write_gateway();
    let said = gateway.process.message("cannot be bound").await;
    assert!(
        said.contains("db3") && said.contains(&address.to_string()),
        "{said}"
    );
    assert_eq!(gateway.get("/").await.text(), "web");
    still_echoes(&mut open).await;
    still_echoes(&mut other).await;
    drop(greeted(second).await);
    // Free again, and asked for again: applied.
    drop(taken);
    gateway.process.signal(Signal::HUP);
    eventually("the listener that was taken", async || {
        TcpStream::connect(address).await.ok()
    })
    .await;
    drop(greeted(address).await);
}

#[tokio::test]
async fn a_gateway_that_drains_under_load_answers_everything_it_took() {
    for wire in [Wire::H1, Wire::H2] {
        let service = HttpService::start("busy");
        service.set(Mode::Delay(Duration::from_millis(100)));
        let bytes = TcpService::start();
        let mut east = Cluster::new("east");
        let listener = east.listen("db", "role: workloads, route: demo/db");
        east.set("drain", "{ delay: 300ms, timeout: 10s }");
        let routes = format!("{}{}", hello(&service), db(&bytes));
        let mut gateway = Gateway::of(east, &routes).await;
        let mut tcp = greeted(listener).await;
        let load = Load::start(10, &load(&gateway, wire));
        load.goes_on(50).await;
        gateway.process.signal(Signal::TERM);
        let tally = load.ended().await;
        assert_eq!(tally.lost, Vec::<String>::new());
        assert_eq!(tally.turned_away, 10);
        // A connection of bytes may go on until the deadline.
        still_echoes(&mut tcp).await;
        tcp.shutdown().await.unwrap();
        assert_eq!(read_all(&mut tcp).await, b"\n4 bytes");
        assert!(gateway.process.ended().await.success());
        assert_eq!(service.hits(), tally.answered);
    }
}
