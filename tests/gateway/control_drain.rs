//! The end of a gateway whose callers do not end.

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::data_mesh::{Gateway, endpoints, route};
use crate::data_services::{BANNER, TcpService};
use crate::mesh::{Cluster, Service, within};

const CALLERS: usize = 64;

#[tokio::test]
async fn what_the_drain_deadline_ends_has_its_record() {
    let service = TcpService::start();
    let mut east = Cluster::new("east");
    east.set("drain", "{ delay: 0s, timeout: 300ms }");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let allow = "allow: [{ listeners: [db] }]";
    let routes = route("db", &["protocol: tcp", "port: 5432", &backends, allow]);
    let mut gateway = Gateway::of(east, &routes).await;
    let mut callers = Vec::new();
    for _ in 0..CALLERS {
        let mut tcp = TcpStream::connect(db).await.unwrap();
        let mut banner = vec![0; BANNER.len()];
        within("the banner", tcp.read_exact(&mut banner))
            .await
            .unwrap();
        callers.push(tcp);
    }
    gateway.process.signal(Signal::TERM);
    assert!(gateway.process.ended().await.success());
    let told = gateway.process.log_so_far();
    for caller in callers {
        let source = caller.local_addr().unwrap().to_string();
        let lines: Vec<_> = told
            .iter()
            .filter(|line| line["src.addr"] == *source)
            .collect();
        assert_eq!(lines.len(), 1, "{}", gateway.process.told());
        assert_eq!(lines[0]["verdict"], "drained");
        assert_eq!(lines[0]["bytes_sent"], BANNER.len());
    }
}

/// What drains may be open for hours, and the right to be can end meanwhile.
#[tokio::test]
async fn a_right_that_is_taken_away_ends_what_drains() {
    let service = Service::echo().await;
    let mut east = Cluster::new("east");
    east.set("drain", "{ delay: 0s, timeout: 60s }");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let route = |allow: &str| {
        format!(
            "protocol: tcp\nport: 5432\nbackends: [{{ endpoints: ['{}'] }}]\nallow: {allow}",
            service.address
        )
    };
    east.route("demo/db", &route("[{ listeners: [db] }]"));
    let mut gateway = east.start().await;
    let mut tcp = TcpStream::connect(db).await.unwrap();
    let source = tcp.local_addr().unwrap();
    let mut echoes = async || {
        tcp.write_all(b"x").await.unwrap();
        within("an echo", tcp.read_u8()).await.unwrap()
    };
    assert_eq!(echoes().await, b'x');
    gateway.signal(Signal::TERM);
    gateway.message("ZG0902 draining: no new connections").await;
    assert_eq!(echoes().await, b'x');
    east.route("demo/db", &route("[{ sources: ['192.0.2.0/24'] }]"));
    assert!(within("its end", tcp.read_u8()).await.is_err());
    assert!(gateway.ended().await.success());
    let told = gateway.log_so_far();
    let source = source.to_string();
    let line = told
        .iter()
        .find(|line| line["src.addr"] == *source)
        .unwrap();
    assert_eq!(line["verdict"], "no-longer-allowed", "{line}");
}
