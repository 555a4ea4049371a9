//! The configuration whose fields are changed, one at a time.

use serde_json::Value;

use super::decided::World;

/// Two levels of one cluster and two peers for an HTTP route; a TCP route with a listener of its own;
/// routes for copies of each kind. Those that are copied are of a namespace of their own, so that defaults
/// can be for them alone.
pub(super) const MESH: &str = r#"
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
    pg: { address: "127.0.0.1:15432", role: workloads, route: db/pg }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: west }
spec:
  cluster: west
  locality: us/us-1
  gateways: ["192.0.2.7:15443"]
  spiffeIDs: ["spiffe://west.example/zeugma/gateway"]
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: north }
spec:
  cluster: north
  locality: no/no-1
  gateways: ["192.0.2.8:15443"]
  spiffeIDs: ["spiffe://north.example/zeugma/gateway"]
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: orders, namespace: shop }
spec:
  protocol: http
  backends:
    - { name: near, locality: eu/eu-1/rack-a, endpoints: ["10.0.1.1:80", "10.0.1.2:80"] }
    - { name: far, locality: eu/eu-2, endpoints: ["10.0.2.1:80"] }
    - { peer: west }
  allow: [{ listeners: [apps, mesh] }]
  export: { to: [west] }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: pg, namespace: db }
spec:
  protocol: tcp
  port: 5432
  backends:
    - { endpoints: ["10.0.3.1:5432"] }
  allow: [{ listeners: [pg, mesh] }]
  export: { to: [west] }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: canary, namespace: labs }
spec:
  protocol: http
  backends: [{ endpoints: ["10.0.4.1:80"] }, { peer: west }]
  allow: [{ listeners: [apps] }]
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: other, namespace: labs }
spec:
  protocol: http
  backends: [{ endpoints: ["10.0.5.1:80"] }]
  allow: [{ listeners: [apps] }]
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: dump, namespace: labs }
spec:
  protocol: tcp
  port: 5432
  backends: [{ endpoints: ["10.0.6.1:5432"] }]
  allow: [{ listeners: [apps, mesh] }]
  export: { to: ["*"] }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: dump-2, namespace: labs }
spec:
  protocol: tcp
  port: 5432
  backends: [{ endpoints: ["10.0.7.1:5432"] }]
  allow: [{ listeners: [apps, mesh] }]
  export: { to: ["*"] }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshDefaults
metadata: { name: defaults }
spec: {}
---
apiVersion: zeugma.dev/v1alpha1
kind: TrustDomain
metadata: { name: acme }
spec: { bundle: acme.json }
"#;

/// Documents that can be changed.
#[derive(Clone)]
pub(super) struct Mesh(Vec<Value>);

impl Mesh {
    pub(super) fn new() -> Self {
        Self(MESH.split("\n---\n").map(read).collect())
    }

    fn document(&mut self, name: &str) -> &mut Value {
        let named = |document: &&mut Value| document["metadata"]["name"] == name;
        self.0.iter_mut().find(named).unwrap()
    }

    /// The kind of a document.
    pub(super) fn kind(&self, name: &str) -> String {
        let document = self.clone().document(name)["kind"].clone();
        document.as_str().unwrap().to_owned()
    }

    /// Writes a field, or takes it out where `value` is empty.
    pub(super) fn set(&mut self, document: &str, field: &str, value: &str) {
        let mut at = self.document(document);
        let field = field.replace('[', ".[");
        let (parent, last) = field.rsplit_once('.').unwrap_or(("", &field));
        for step in parent.split('.').filter(|step| !step.is_empty()) {
            if value.is_empty() && at.get(step).is_none() && !step.starts_with('[') {
                return;
            }
            at = below(at, step);
        }
        if !value.is_empty() {
            *below(at, last) = read(value);
        } else if let Some(fields) = at.as_object_mut() {
            fields.remove(last);
        }
    }

    /// The same, with a block of a route's `spec` in `MeshDefaults`; `None` if it has none.
    pub(super) fn inheriting(&self, route: &str, block: &str) -> Option<Self> {
        let mut moved = self.clone();
        let route = moved.document(route);
        let namespace = route["metadata"]["namespace"].clone();
        let written = route["spec"].as_object_mut().unwrap().remove(block)?;
        let defaults = moved.document("defaults");
        defaults["metadata"]["namespace"] = namespace;
        defaults["spec"][block] = written;
        Some(moved)
    }

    /// It as a file: JSON is YAML.
    pub(super) fn text(&self) -> String {
        let texts: Vec<String> = self.0.iter().map(|one| format!("{one:#}")).collect();
        texts.join("\n---\n")
    }

    /// What a gateway makes of it.
    pub(super) fn world(&self) -> World {
        World::of(&self.text())
    }
}

fn read(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

fn below<'v>(value: &'v mut Value, step: &str) -> &'v mut Value {
    let Some(nth) = step.strip_prefix('[') else {
        return &mut value[step];
    };
    let nth: usize = nth.trim_end_matches(']').parse().unwrap();
    if value.is_null() {
        *value = Value::Array(Vec::new());
    }
    let list = value.as_array_mut().unwrap();
    while list.len() <= nth {
        list.push(Value::Null);
    }
    &mut list[nth]
}
