//! The files `zeugma init` writes, as text.

use serde::{Deserialize, Serialize};

/// What `zeugma init` was told; kept beside the configuration for the cluster that joins next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cluster {
    pub(super) trust_domain: String,
    pub(super) cluster: String,
    pub(super) locality: String,
    /// All its ports are at fixed distances from this one.
    pub(super) base_port: u16,
    pub(super) peers: Vec<Self>,
}

impl Cluster {
    /// The port of the mesh listener, which other clusters reach.
    pub(super) fn mesh_port(&self) -> u16 {
        self.base_port.saturating_add(443)
    }

    /// The port of the apps listener, which workloads reach.
    pub(super) fn apps_port(&self) -> u16 {
        self.base_port.saturating_add(1)
    }

    /// The port where the example route expects its service.
    pub(super) fn hello_port(&self) -> u16 {
        self.base_port.saturating_add(80)
    }

    /// The SPIFFE ID of its gateways.
    pub(super) fn gateway_id(&self) -> String {
        format!("spiffe://{}/zeugma/gateway", self.trust_domain)
    }

    /// The same cluster as a peer sees it.
    pub(super) fn alone(&self) -> Self {
        Self {
            peers: Vec::new(),
            ..self.clone()
        }
    }

    pub(super) fn gateway_yaml(&self) -> String {
        let Self {
            trust_domain,
            cluster,
            locality,
            base_port,
            ..
        } = self;
        let (mesh, apps) = (self.mesh_port(), self.apps_port());
        let (probes, metrics) = (base_port.saturating_add(21), base_port.saturating_add(20));
        format!(
            r#"# The gateway of cluster {cluster}. Made by `zeugma init`; yours to change.
# Start it with `zeugma gateway --config` and this folder. Paths are relative to this file.
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: {{ name: "{cluster}-gw" }}
spec:
  trustDomain: "{trust_domain}"
  cluster: "{cluster}"
  locality: "{locality}" # region/zone/subzone: what is near is decided by it
  svid:
    # Its own certificate and whom it trusts. All watched: after
    #   zeugma ca --dir <the CA's folder> renew gw.pem --key gw.key
    # the running gateway takes the new one without closing a connection. It lasts 30 days.
    files: {{ certificate: gw.pem, key: gw.key, bundles: bundles/ }}
  listeners:
    # Other clusters' gateways come here, with mTLS; use "0.0.0.0:{mesh}" where they run on other machines.
    mesh: {{ address: "127.0.0.1:{mesh}", role: mesh }}
    # This cluster's workloads come here: HTTP by Host, TLS by SNI. Plaintext, so keep it on loopback.
    apps: {{ address: "127.0.0.1:{apps}", role: workloads }}
  # What it knows, for every process of this machine (a page at /ui); what changes it and `tap` want the token.
  # Without a browser, `unix:admin.sock` is for this user alone.
  admin: "127.0.0.1:{base_port}"
  adminToken: admin.token
  probes: "127.0.0.1:{probes}" # /ready and /livez
  metrics: "127.0.0.1:{metrics}" # /metrics
  stateDir: state # what it keeps for its next start, never a secret; made when it starts
"#
        )
    }

    pub(super) fn hello_yaml(&self) -> String {
        let Self { cluster, .. } = self;
        let (hello, apps) = (self.hello_port(), self.apps_port());
        let mut text = format!(
            r#"# A first service, to try and to copy. Made by `zeugma init`; yours to change.
# Start something on port {hello}, for instance `python3 -m http.server {hello} --bind 127.0.0.1`, then
#   curl -H 'Host: hello.demo.svc.clusterset.local' http://127.0.0.1:{apps}/
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: hello, namespace: demo }}
spec:
  protocol: http
  backends: # the nearest first; when it fails, the next
    - {{ name: "{cluster}", endpoints: ["127.0.0.1:{hello}"] }}
"#
        );
        for peer in &self.peers {
            text.push_str(&format!("    - {{ peer: \"{}\" }}\n", peer.cluster));
        }
        text.push_str(
            "  allow: # who may call it; nobody else\n    - { listeners: [apps] } # this cluster's workloads\n",
        );
        if !self.peers.is_empty() {
            text.push_str("    # and those that these peers' gateways speak for\n");
            for peer in &self.peers {
                text.push_str(&format!("    - {{ from: [\"{}\"] }}\n", peer.gateway_id()));
            }
            let names: Vec<String> = self
                .peers
                .iter()
                .map(|peer| format!("\"{}\"", peer.cluster))
                .collect();
            text.push_str(&format!(
                "  export: {{ to: [{}] }} # whose gateways may ask for it\n",
                names.join(", ")
            ));
        }
        text
    }

    /// This cluster as a document for a peer.
    pub(super) fn peer_yaml(&self) -> String {
        let Self {
            cluster, locality, ..
        } = self;
        let (mesh, id) = (self.mesh_port(), self.gateway_id());
        format!(
            r#"# Cluster {cluster}, reached through its gateway. Made by `zeugma init`; yours to change.
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: {{ name: "{cluster}" }}
spec:
  cluster: "{cluster}"
  locality: "{locality}"
  gateways: ["127.0.0.1:{mesh}"]
  spiffeIDs: ["{id}"] # who its gateway must be
"#
        )
    }
}
