//! PACKED NODE   prints `listening PORT`, serves the resources in the file PACKED to the node until it is
//! killed
//!
//! The file is a `DeltaDiscoveryResponse`, made by `control_plane.py`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use xds_cache::{Cache, ShardedCache, Snapshot};
use xds_core::{BoxResource, NodeHash, Resource, ResourceRegistry, TypeUrl};
use xds_server::services::AdsService;
use xds_types::envoy::service::discovery::v3::DeltaDiscoveryResponse;

/// A resource as it was packed.
#[derive(Debug)]
struct Packed {
    name: String,
    body: prost_types::Any,
}

impl Resource for Packed {
    fn type_url(&self) -> &str {
        &self.body.type_url
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn encode(&self) -> Result<prost_types::Any, Box<dyn Error + Send + Sync>> {
        Ok(self.body.clone())
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_ansi(false).init();
    let mut arguments = std::env::args().skip(1);
    let (Some(path), Some(node)) = (arguments.next(), arguments.next()) else {
        return Err("usage: PACKED NODE".into());
    };
    let packed = DeltaDiscoveryResponse::decode(std::fs::read(path)?.as_slice())?;
    let mut by_type: BTreeMap<String, Vec<BoxResource>> = BTreeMap::new();
    for resource in packed.resources {
        let any = resource.resource.ok_or("a resource without a body")?;
        let body = prost_types::Any {
            type_url: any.type_url,
            value: any.value,
        };
        let url = body.type_url.clone();
        let name = resource.name;
        by_type
            .entry(url)
            .or_default()
            .push(Arc::new(Packed { name, body }));
    }
    let mut snapshot = Snapshot::builder().version("1");
    for (url, resources) in by_type {
        snapshot = snapshot.resources(TypeUrl::new(url), resources);
    }
    let cache = Arc::new(ShardedCache::new());
    cache.set_snapshot(NodeHash::from_id(&node), snapshot.build());
    let service = AdsService::new(cache, Arc::new(ResourceRegistry::with_envoy_types()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening {}", listener.local_addr()?.port());
    let server = tonic::transport::Server::builder().add_service(service.into_service());
    server
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}
