//! What a session has to know of a resource: its name, and what it refers to.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message as _;

use super::super::Kind;
use super::Name;
use crate::pb::{self, Any, cluster, discovery, endpoint, hcm, listener, route};

/// What a resource refers to that is asked for by name.
pub(crate) type References = Arc<[(Kind, Name)]>;

/// The name of a resource, whatever else is in it: every kind has it as its first field.
#[derive(Clone, PartialEq, prost::Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
}

/// The name within a resource, if it can be told: also where what stands behind it cannot be read, so
/// that it is known what is bad (P29).
pub(super) fn name(any: &Any) -> Option<String> {
    let bytes = any.value.as_slice();
    let name = match Named::decode(bytes) {
        Ok(named) => named.name,
        Err(_) => first_field(bytes)?,
    };
    (!name.is_empty()).then_some(name)
}

/// The text that stands first, if it is of field 1.
fn first_field(bytes: &[u8]) -> Option<String> {
    const TEXT_OF_FIELD_1: u8 = 0x0a;
    let mut rest = bytes.strip_prefix(&[TEXT_OF_FIELD_1])?;
    let len = prost::decode_length_delimiter(&mut rest).ok()?;
    String::from_utf8(rest.get(..len)?.to_vec()).ok()
}

/// A resource of a full answer out of the wrapper that it may be in (P44).
pub(super) fn unwrapped(any: Any) -> Result<discovery::Resource, String> {
    let wrapper = <discovery::Resource as prost::Name>::type_url();
    if any.type_url != wrapper {
        return Ok(discovery::Resource {
            name: name(&any).unwrap_or_default(),
            resource: Some(any),
            ..Default::default()
        });
    }
    let mut resource: discovery::Resource = pb::unpack(&any)?;
    if resource.name.is_empty() {
        resource.name = (resource.resource.as_ref().and_then(name)).unwrap_or_default();
    }
    Ok(resource)
}

/// Decodes a resource, which must be of this kind and name, and tells what it refers to.
pub(crate) fn references(kind: Kind, name: &str, any: &Any) -> Result<References, String> {
    if name.starts_with("xdstp:") {
        // P45: an authority that is not known is an error, and none is.
        return Err("the authority of its name is not known".to_owned());
    }
    let (within, found) = match kind {
        Kind::Cluster => {
            let cluster: cluster::Cluster = pb::unpack(any)?;
            let endpoints = endpoints_of(&cluster);
            (cluster.name, endpoints.into_iter().collect())
        }
        Kind::Endpoints => {
            let all: endpoint::ClusterLoadAssignment = pb::unpack(any)?;
            (all.cluster_name, BTreeSet::new())
        }
        Kind::Listener => {
            let listener: listener::Listener = pb::unpack(any)?;
            let routes = routes_of(&listener)?;
            (listener.name, routes)
        }
        Kind::Routes => {
            let routes: route::RouteConfiguration = pb::unpack(any)?;
            (routes.name, BTreeSet::new())
        }
    };
    if within != name {
        return Err(format!("within it is called `{within}`"));
    }
    if found.iter().any(|(_, name)| name.starts_with("xdstp:")) {
        return Err("the authority of a name that it refers to is not known".to_owned());
    }
    // To collect nothing would take memory all the same.
    Ok(if found.is_empty() {
        References::default()
    } else {
        found.into_iter().collect()
    })
}

/// The name of a cluster's endpoints, where they come by themselves.
pub(crate) fn endpoints_of(cluster: &cluster::Cluster) -> Option<(Kind, Name)> {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType};

    let is_eds = matches!(
        cluster.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(kind)) if kind == i32::from(DiscoveryType::Eds)
    );
    let named = cluster.eds_cluster_config.as_ref();
    let named = named.map(|config| config.service_name.as_str());
    let name = named
        .filter(|name| !name.is_empty())
        .unwrap_or(&cluster.name);
    is_eds.then(|| (Kind::Endpoints, name.into()))
}

/// The names of the route configurations that a listener's connections are led by.
fn routes_of(listener: &listener::Listener) -> Result<BTreeSet<(Kind, Name)>, String> {
    use hcm::http_connection_manager::RouteSpecifier;
    use listener::filter::ConfigType;

    let manager = <hcm::HttpConnectionManager as prost::Name>::type_url();
    let chains = (listener.filter_chains.iter()).chain(&listener.default_filter_chain);
    let mut found = BTreeSet::new();
    for filter in chains.flat_map(|chain| &chain.filters) {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else {
            continue;
        };
        if any.type_url != manager {
            continue;
        }
        let manager: hcm::HttpConnectionManager = pb::unpack(any)?;
        if let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier {
            found.insert((Kind::Routes, rds.route_config_name.as_str().into()));
        }
    }
    Ok(found)
}
