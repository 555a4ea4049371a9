//! Whole configurations: what a person writes, and the snapshot a gateway gets.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;

use zeugma_xds::{Color, Loaded, NodeOptions, load};

const EAST: &str = r#"
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1/rack-a
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    mesh: { address: "0.0.0.0:15443", role: mesh }
    apps: { address: "127.0.0.1:15001", role: workloads }
"#;

const WEST_PEER: &str = r#"
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: west }
spec:
  cluster: west
  locality: us/us-1
  gateways: ["gw.west.example:15443", "192.0.2.7:15443"]
  spiffeIDs: ["spiffe://west.example/zeugma/gateway"]
"#;

/// The smallest useful route of the manual, as it stands there.
const SMALLEST: &str = r#"
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {name: orders, namespace: shop}
spec: {protocol: http, backends: [{endpoints: ["10.0.1.10:8080"]}, {peer: west}], allow: [{listeners: [apps]}, {from: ["spiffe://west.example/*"]}], export: {to: [west]}}
"#;

fn east(parts: &[&str]) -> Loaded {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("east.yaml");
    fs::write(&path, [&[EAST], parts].concat().concat()).unwrap();
    load(&path, &NodeOptions::default())
        .unwrap_or_else(|findings| panic!("{}", findings.to_human(Color::Plain)))
}

#[test]
fn the_smallest_useful_route_loads() {
    let loaded = east(&[WEST_PEER, SMALLEST]);
    let snapshot = &loaded.snapshot;
    assert_eq!(snapshot.services.len(), 1);
    let service = &snapshot.services[0];
    assert_eq!(
        (&*service.name, service.port, service.ports),
        ("shop/orders", 80, 1)
    );
    let levels: Vec<(&str, usize)> = snapshot
        .cluster(service.outbound)
        .levels
        .iter()
        .map(|level| (&*level.name, level.members.len()))
        .collect();
    assert_eq!(levels, [("eu/eu-1/rack-a", 1), ("peer west", 2)]);
    assert_eq!(snapshot.cluster(service.own.unwrap()).endpoints.len(), 1);
    assert_eq!(service.policy.allow.len(), 2);
}
