//! The configuration that a demo writes: what a person would write, with short times.

use std::net::SocketAddr;

use super::site::{Cluster, Gateway, Service};

/// The first lines of each file.
pub(crate) fn head(scenario: &str, cluster: Cluster) -> String {
    format!(
        "\
# Written by `zeugma demo --scenario {scenario}` for the cluster {name}.
# Its times are short so that there is something to see within a minute. Where nothing is
# written the defaults hold: failback {{ after: 1m, ramp: 1m }}, eject 30s, checks every 5s.
",
        name = cluster.name
    )
}

/// The document of a gateway.
pub(crate) fn gateway(gateway: &Gateway) -> String {
    let Gateway {
        cluster,
        folder: _,
        mesh,
        apps,
        admin,
        probes,
        metrics,
    } = gateway;
    format!(
        "\
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: {{ name: {name} }}
spec:
  trustDomain: {trust_domain}
  cluster: {cluster}
  locality: {locality}
  svid: {{ files: {{ certificate: gw.pem, key: gw.key, bundles: bundles/ }} }}
  listeners:
    mesh: {{ address: \"{mesh}\", role: mesh }}       # from the other cluster, SPIFFE mTLS
    apps: {{ address: \"{apps}\", role: workloads }}  # from this cluster's own workloads
  admin: \"{admin}\"
  probes: \"{probes}\"
  metrics: \"{metrics}\"
  stateDir: state
  drain: {{ delay: 0s, timeout: 2s }}
",
        name = cluster.gateway(),
        trust_domain = cluster.trust_domain,
        cluster = cluster.name,
        locality = cluster.locality,
    )
}

/// The document of another cluster as its neighbour sees it.
pub(crate) fn peer(cluster: Cluster, reached_at: SocketAddr) -> String {
    format!(
        "\
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: {{ name: {name} }}
spec:
  cluster: {name}
  locality: {locality}
  gateways: [\"{reached_at}\"]
  spiffeIDs: [\"{id}\"]  # who its gateway must be
",
        name = cluster.name,
        locality = cluster.locality,
        id = cluster.gateway_id(),
    )
}

/// The head of a route's document, up to `spec:`.
pub(crate) fn route(name: &str) -> String {
    format!(
        "\
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: {name}, namespace: shop }}
spec:
  protocol: http
"
    )
}

/// The host of a route of that name.
pub(crate) fn host(route: &str) -> String {
    format!("{route}.shop.svc.clusterset.local")
}

/// A backend of the gateway's own cluster.
pub(crate) fn backend(name: &str, locality: &str, services: &[&Service]) -> String {
    let endpoints: Vec<_> = services
        .iter()
        .map(|service| format!("\"{}\"", service.address))
        .collect();
    let names: Vec<_> = services.iter().map(|service| service.name).collect();
    format!(
        "    - {{ name: {name}, locality: {locality}, endpoints: [{}] }}  # {}\n",
        endpoints.join(", "),
        names.join(", ")
    )
}

/// Short times for failing over and back.
pub(crate) const SHORT_TIMES: &str = "  failover:
    failback: { after: 3s, ramp: 5s }
  health:
    active: { http: /healthz, every: 500ms, up: 2, down: 2 }
    passive: { eject: 2s }
";

/// Who may call a route in the cluster where the client is.
pub(crate) const ALLOW_APPS: &str = "  allow: [{ listeners: [apps] }]\n";

/// Who may call a route in the other cluster.
pub(crate) fn allow_gateway(of: Cluster) -> String {
    format!(
        "  allow: [{{ from: [\"{}\"] }}]\n  export: {{ to: [{}] }}\n",
        of.gateway_id(),
        of.name
    )
}
