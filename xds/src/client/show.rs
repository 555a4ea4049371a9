//! Resources for people.

use serde_json::Value;

use crate::pb::{self, Any, METADATA, cluster, core, endpoint, listener, route};
use crate::session::Kind;

/// All of a resource, as Rust shows it: there are no descriptors to make JSON of it by.
pub(super) fn body(kind: Kind, any: &Any) -> Option<String> {
    Some(match kind {
        Kind::Cluster => format!("{:#?}", pb::unpack::<cluster::Cluster>(any).ok()?),
        Kind::Endpoints => {
            format!(
                "{:#?}",
                pb::unpack::<endpoint::ClusterLoadAssignment>(any).ok()?
            )
        }
        Kind::Listener => format!("{:#?}", pb::unpack::<listener::Listener>(any).ok()?),
        Kind::Routes => format!("{:#?}", pb::unpack::<route::RouteConfiguration>(any).ok()?),
    })
}

/// Our metadata on it, if there is some.
pub(super) fn metadata(kind: Kind, any: &Any) -> Option<Value> {
    let metadata: core::Metadata = match kind {
        Kind::Cluster => pb::unpack::<cluster::Cluster>(any).ok()?.metadata?,
        Kind::Listener => pb::unpack::<listener::Listener>(any).ok()?.metadata?,
        Kind::Endpoints | Kind::Routes => return None,
    };
    metadata.filter_metadata.get(METADATA).map(pb::from_struct)
}
