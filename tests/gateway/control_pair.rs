//! Our control plane and our gateways, each a process: two gateways without route files are told of one
//! folder by two servers.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::control_client::{Load, ORDERS};
use crate::control_xds::{Served, mtls};
use crate::mesh::{Cluster, Gateway, Service, eventually, get};

/// East and west; what both carry stands in a folder that a link leads to, as a checkout of Git does.
struct World {
    east: Cluster,
    west: Cluster,
    /// What never changes of it, by file.
    documents: Vec<(String, String)>,
    sets: TempDir,
    sets_made: usize,
}

impl World {
    fn new() -> Self {
        let (east, west) = (Cluster::new("east"), Cluster::new("west"));
        east.meet(&west);
        let mut documents = Vec::new();
        for (cluster, other) in [(&east, "west"), (&west, "east")] {
            cluster.write_gateway();
            let of = |name: &str| fs::read_to_string(cluster.config().join(name)).unwrap();
            documents.push((
                format!("{}.yaml", cluster.trust_domain()),
                of("gateway.yaml"),
            ));
            let peer = format!("peer-{other}.yaml");
            documents.push((peer.clone(), of(&peer)));
        }
        Self {
            east,
            west,
            documents,
            sets: tempfile::tempdir().unwrap(),
            sets_made: 0,
        }
    }

    /// What is served.
    fn current(&self) -> PathBuf {
        self.sets.path().join("current")
    }

    /// Writes all documents anew, with orders at `backend` of west, and has the link lead there.
    fn switch(&mut self, backend: SocketAddr) {
        self.sets_made += 1;
        let set = self.sets.path().join(self.sets_made.to_string());
        fs::create_dir(&set).unwrap();
        for (file, document) in &self.documents {
            fs::write(set.join(file), document).unwrap();
        }
        let route = format!(
            "apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: orders, namespace: shop }}
spec:
  protocol: http
  backends: [{{ cluster: west, endpoints: ['{backend}'] }}]
  allow: [{{ listeners: [apps] }}, {{ from: ['spiffe://east.example/*'] }}]
  export: {{ to: ['*'] }}
"
        );
        fs::write(set.join("orders.yaml"), route).unwrap();
        let next = self.sets.path().join("next");
        symlink(&set, &next).unwrap();
        fs::rename(next, self.current()).unwrap();
    }

    async fn serve(&self) -> Served {
        let more = mtls(&self.east);
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        Served::start(&self.current(), &more).await
    }

    /// Has both gateways ask these servers, and starts them.
    async fn start(&mut self, servers: [&Served; 2]) -> [Gateway; 2] {
        let [first, second] = servers.map(|server| server.listens);
        // The servers show the certificate of east's gateway.
        let of = format!(
            "{{ addresses: ['https://{first}', 'https://{second}'], spiffeIDs: ['{}'] }}",
            self.east.gateway_id()
        );
        self.east.set("controlPlane", &of);
        self.west.set("controlPlane", &of);
        // Who its peers are it is told.
        for (cluster, peer) in [(&self.east, "west"), (&self.west, "east")] {
            fs::remove_file(cluster.config().join(format!("peer-{peer}.yaml"))).unwrap();
        }
        [self.east.start().await, self.west.start().await]
    }
}

async fn until_answered_by(apps: SocketAddr, name: &str) {
    eventually(name, async || {
        let reply = get(apps, ORDERS, "/").await;
        (reply.status == 200 && reply.text() == name).then_some(())
    })
    .await;
}

async fn asks(gateway: &Gateway) -> String {
    let told = gateway.admin_json("/api/v1/control-plane").await;
    told["control_plane"]["connected"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[tokio::test]
async fn gateways_without_route_files_go_by_one_folder_and_outlive_one_of_two_servers() {
    let mut world = World::new();
    let (one, other) = (Service::http("one").await, Service::http("other").await);
    world.switch(one.address);
    let (mut first, second) = (world.serve().await, world.serve().await);
    let [east, west] = world.start([&first, &second]).await;
    until_answered_by(world.east.apps, "one").await;

    // An edit, as a checkout of another commit is one: all of it at once.
    let load = Load::on(world.east.apps);
    load.more(50).await;
    world.switch(other.address);
    until_answered_by(world.east.apps, "other").await;

    let address = format!("https://{}", first.listens);
    assert_eq!(
        [asks(&east).await, asks(&west).await],
        [address.clone(), address]
    );
    first.process.signal(Signal::KILL);
    first.process.ended().await;
    load.more(50).await;
    let address = format!("https://{}", second.listens);
    for gateway in [&east, &west] {
        let is_asked = async || (asks(gateway).await == address).then_some(());
        eventually("the second server is asked", is_asked).await;
    }
    world.switch(one.address);
    until_answered_by(world.east.apps, "one").await;
    load.more(50).await;
    assert_eq!(load.end().await, 0, "no request failed");

    // The second one's word was as good.
    let nodes = second.nodes().await;
    let nodes = nodes["nodes"].as_array().unwrap();
    assert_eq!(nodes.len(), 2, "{nodes:?}");
    for node in nodes {
        let types = node["types"].as_array().unwrap();
        assert!(!types.is_empty(), "{node}");
        assert!(types.iter().all(|of| of["rejected"].is_null()), "{node}");
    }
    east.finish().await;
    west.finish().await;
}
