//! One cluster or two, and the few words that the tests of the data path need about them.

use std::net::SocketAddr;

use serde_json::Value;

use crate::data_client::{self, Answer};
use crate::mesh::{self, Cluster, eventually};

/// The host of the route `hello` in `demo`.
pub(crate) const HELLO: &str = "hello.demo.svc.clusterset.local";

/// A running gateway and its cluster.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) cluster: Cluster,
    pub(crate) process: mesh::Gateway,
}

impl Gateway {
    /// East alone, with these routes.
    pub(crate) async fn alone(routes: &str) -> Self {
        Box::pin(Self::of(Cluster::new("east"), routes)).await
    }

    /// The gateway of a cluster, with these routes.
    pub(crate) async fn of(cluster: Cluster, routes: &str) -> Self {
        cluster.write("routes.yaml", routes);
        let process = Box::pin(cluster.start()).await;
        Self { cluster, process }
    }

    /// Where workloads connect.
    pub(crate) fn apps(&self) -> SocketAddr {
        self.cluster.apps
    }

    /// One GET of `path` from the route `hello`, on a connection of its own.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        data_client::get(self.apps(), HELLO, path).await
    }

    /// The access-log line of the request with this ID.
    pub(crate) async fn request(&self, id: &str) -> Value {
        self.process.log(|line| line["request.id"] == *id).await
    }

    /// What `/clusters` says of where workloads' traffic for a route goes.
    pub(crate) async fn shares(&self, route: &str) -> Value {
        let all = self.process.admin_json("/clusters").await;
        let clusters = all["clusters"].as_object().unwrap();
        let found = clusters
            .iter()
            .filter(|(name, _)| name.starts_with("outbound|") && name.contains(route))
            .max_by_key(|(_, cluster)| cluster["levels"].as_array().unwrap().len());
        let found = found.unwrap_or_else(|| panic!("{route} in {all}"));
        found.1.clone()
    }

    /// Waits until `is_it` of what `/clusters` says of a route.
    pub(crate) async fn until(
        &self,
        route: &str,
        what: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> Value {
        eventually(what, async || {
            Some(self.shares(route).await).filter(|shares| is_it(shares))
        })
        .await
    }

    /// The sum of a counter over all series with these labels.
    pub(crate) async fn counted(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.process.metrics().await.value(name, labels)
    }

    /// Waits until a counter is at least `least`.
    pub(crate) async fn until_counted(&self, name: &str, labels: &[(&str, &str)], least: f64) {
        eventually(name, async || {
            (self.counted(name, labels).await >= least).then_some(())
        })
        .await;
    }
}

/// The share of each level.
pub(crate) fn levels(shares: &Value) -> Vec<f64> {
    let levels = shares["levels"].as_array().unwrap();
    levels
        .iter()
        .map(|level| level["share"].as_f64().unwrap())
        .collect()
}

/// The status of each endpoint, by level.
pub(crate) fn statuses(shares: &Value) -> Vec<String> {
    let levels = shares["levels"].as_array().unwrap();
    levels
        .iter()
        .flat_map(|level| level["endpoints"].as_array().unwrap())
        .map(|endpoint| endpoint["status"].as_str().unwrap().to_owned())
        .collect()
}

/// Two clusters that are each other's peer.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) east: Gateway,
    pub(crate) west: Gateway,
}

impl Pair {
    /// Starts both; the texts are their routes.
    pub(crate) async fn new(east: &str, west: &str) -> Self {
        let clusters = (Cluster::new("east"), Cluster::new("west"));
        Box::pin(Self::of(clusters, east, west)).await
    }

    /// Starts both of these clusters.
    pub(crate) async fn of(
        (east, west): (Cluster, Cluster),
        east_routes: &str,
        west_routes: &str,
    ) -> Self {
        east.meet(&west);
        let west = Box::pin(Gateway::of(west, west_routes)).await;
        let east = Box::pin(Gateway::of(east, east_routes)).await;
        Self { east, west }
    }

    /// Drains both and holds them to what must always be true.
    pub(crate) async fn finish(self) {
        self.east.process.finish().await;
        self.west.process.finish().await;
    }
}

/// A route's document: name, `spec` lines.
pub(crate) fn route(name: &str, spec: &[&str]) -> String {
    let mut text = format!(
        "---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshRoute\n\
         metadata: {{ name: {name}, namespace: demo }}\nspec:\n"
    );
    for line in spec {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// An HTTP route of a cluster alone, for its workloads; further lines of its `spec`.
pub(crate) fn near_route(name: &str, spec: &[&str]) -> String {
    let open = ["protocol: http", "allow: [{ listeners: [apps] }]"];
    route(name, &[&open, spec].concat())
}

/// An HTTP route of a cluster with a peer that everybody may call; further lines of its `spec`.
pub(crate) fn http_route(name: &str, spec: &[&str]) -> String {
    let open = [
        "protocol: http",
        "allow: [{ listeners: [apps] }, { from: [\"spiffe://east.example/*\", \"spiffe://west.example/*\"] }]",
        "export: { to: [\"*\"] }",
    ];
    route(name, &[&open, spec].concat())
}

/// `endpoints: [...]` of addresses.
pub(crate) fn endpoints(addresses: &[SocketAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(|one| format!("\"{one}\"")).collect();
    format!("endpoints: [{}]", all.join(", "))
}
