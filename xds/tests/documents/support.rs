//! Configurations to load, and what is in the snapshots that come out.

use std::fs;
use std::sync::Arc;

use zeugma_core::snapshot::{Cluster, Service, Snapshot};
use zeugma_xds::{Color, Findings, Loaded, NodeOptions, load};

/// A gateway of cluster east at `eu/eu-1/rack-a` with listeners `mesh`, `apps` and `pg` for
/// route `shop/pg`.
pub(crate) const EAST: &str = r#"
---
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

/// The peer of cluster west, two gateways.
pub(crate) const WEST_PEER: &str = r#"
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

/// A route `shop/<name>` with this spec, in flow style.
pub(crate) fn route(name: &str, spec: &str) -> String {
    format!(
        "\n---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshRoute\nmetadata: {{ name: {name}, namespace: shop }}\nspec: {{ {spec} }}\n"
    )
}

/// Loads the documents as one file.
pub(crate) fn try_load(documents: &[&str], name: Option<&str>) -> Result<Loaded, Findings> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, documents.concat()).unwrap();
    let options = NodeOptions {
        name: name.map(str::to_owned),
        locality: None,
    };
    load(&path, &options)
}

/// Loads the documents as one file, and shows what is wrong with them.
pub(crate) fn loaded(documents: &[&str], name: Option<&str>) -> Loaded {
    try_load(documents, name)
        .unwrap_or_else(|findings| panic!("{}", findings.to_human(Color::Plain)))
}

/// The service of `shop/<name>` on this port.
pub(crate) fn service<'s>(snapshot: &'s Snapshot, name: &str, port: u16) -> &'s Service {
    let name = format!("shop/{name}");
    snapshot
        .services
        .iter()
        .find(|service| *service.name == *name && service.port == port)
        .unwrap()
}

/// Each level's name and the addresses in it.
pub(crate) fn levels(cluster: &Cluster) -> Vec<(String, Vec<String>)> {
    cluster
        .levels
        .iter()
        .map(|level| {
            let members = level
                .members
                .iter()
                .map(|ix| cluster.endpoint(*ix).address.to_string())
                .collect();
            (level.name.to_string(), members)
        })
        .collect()
}

/// The names of the levels.
pub(crate) fn level_names(cluster: &Cluster) -> Vec<String> {
    levels(cluster).into_iter().map(|(name, _)| name).collect()
}

/// What a snapshot does, without the lines that made it.
pub(crate) fn unplaced(mut snapshot: Snapshot) -> Snapshot {
    snapshot.version = "".into();
    for service in &mut snapshot.services {
        service.position = None;
        let policy = &mut service.policy;
        for rule in policy.allow.iter_mut().chain(&mut policy.deny) {
            rule.position = None;
        }
        for mirror in &mut service.mirrors {
            mirror.position = None;
        }
        if let Some(rules) = &mut service.rules {
            for rule in &mut Arc::make_mut(rules).list {
                rule.position = None;
            }
        }
    }
    snapshot
}
