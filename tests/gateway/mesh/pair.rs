//! Two clusters, each with a service of its own and the other's behind it.

use super::{Cluster, Gateway, Service};

/// East and west with the route `shop/orders`, their gateways, and their services.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) east: Cluster,
    pub(crate) west: Cluster,
    /// East's.
    pub(crate) gateway: Gateway,
    /// West's.
    pub(crate) other: Gateway,
    /// East's backend `own`; without it traffic moves to west.
    pub(crate) near: Option<Service>,
    _far: Service,
}

impl Pair {
    /// Starts both; `rule` says who may call the route at `east`.
    pub(crate) async fn start(east: Cluster, rule: &str) -> Self {
        let (near, far) = (Service::http("near").await, Service::http("far").await);
        let west = Cluster::new("west");
        east.meet(&west);
        for (cluster, own, peer, rule) in [
            (&east, &near, "west", rule),
            (&west, &far, "east", "{ from: ['spiffe://east.example/*'] }"),
        ] {
            cluster.route(
                "shop/orders",
                &format!(
                    "
                    protocol: http
                    backends: [{{ name: own, endpoints: ['{}'] }}, {{ peer: {peer} }}]
                    allow: [{rule}]
                    export: {{ to: [{peer}] }}",
                    own.address
                ),
            );
        }
        let (gateway, other) = (east.start().await, west.start().await);
        Self {
            east,
            west,
            gateway,
            other,
            near: Some(near),
            _far: far,
        }
    }

    /// Drains both.
    pub(crate) async fn finish(self) {
        self.gateway.finish().await;
        self.other.finish().await;
    }
}
