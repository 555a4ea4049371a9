//! A large mesh, as its YAML documents.

/// A peer, and this many routes, each with two backends of two endpoints, the peer as a third, two
/// rules and an export.
pub(crate) fn mesh(routes: usize) -> Vec<String> {
    let peer = "apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: west }
spec:
  cluster: west
  locality: us/us-1
  gateways: [\"192.0.2.7:15443\"]
  spiffeIDs: [\"spiffe://west.example/zeugma/gateway\"]
"
    .to_owned();
    std::iter::once(peer)
        .chain((0..routes).map(route))
        .collect()
}

fn route(at: usize) -> String {
    let (namespace, net) = (at % 50, format!("{}.{}", at / 256 % 256, at % 256));
    format!(
        "apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: svc-{at}, namespace: ns-{namespace} }}
spec:
  protocol: http
  backends:
    - {{ name: near, endpoints: [\"10.1.{net}:8080\", \"10.2.{net}:8080\"] }}
    - {{ name: far, locality: eu/eu-2, endpoints: [\"10.3.{net}:8080\", \"10.4.{net}:8080\"] }}
    - {{ peer: west }}
  allow:
    - {{ listeners: [apps] }}
    - {{ from: [\"spiffe://west.example/ns/ns-{namespace}/*\"] }}
  export: {{ to: [west] }}
"
    )
}
