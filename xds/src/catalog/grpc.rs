//! What gRPC's own xds resolvers are told otherwise than proxies (gRFC A27, A28, A48): services as API
//! listeners, which they ask for by `host:port`, and clusters in the words that they know. A word that they
//! do not know they refuse, and all of the resource with it.

use crate::compile::{Compiled, by_place};
use crate::pb::{self, cluster, endpoint, hcm, listener, route};

/// The listener of each name that a service is dialled by.
pub(super) fn listeners(compiled: &Compiled<'_>) -> Vec<listener::Listener> {
    let mut all = Vec::new();
    for (names, mut host) in compiled.on_demand() {
        for route in &mut host.routes {
            retry(route);
        }
        let config = route::RouteConfiguration {
            name: host.name.clone(),
            virtual_hosts: vec![host],
            ..Default::default()
        };
        let manager = hcm::HttpConnectionManager {
            stat_prefix: config.name.clone(),
            route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::RouteConfig(
                config,
            )),
            http_filters: vec![hcm::HttpFilter {
                name: "envoy.filters.http.router".to_owned(),
                config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pb::pack(
                    &pb::Router::default(),
                ))),
                ..Default::default()
            }],
            ..Default::default()
        };
        let api = listener::ApiListener {
            api_listener: Some(pb::pack(&manager)),
        };
        all.extend(names.into_iter().map(|name| listener::Listener {
            name,
            api_listener: Some(api.clone()),
            ..Default::default()
        }));
    }
    all
}

/// They refuse a policy that retries nothing.
fn retry(route: &mut route::Route) {
    if let Some(route::route::Action::Route(action)) = &mut route.action {
        let retries = action
            .retry_policy
            .as_ref()
            .and_then(|policy| policy.num_retries);
        if retries.is_none_or(|retries| retries.value == 0) {
            action.retry_policy = None;
        }
    }
}

/// Of its policies they have two.
pub(super) fn cluster(cluster: &mut cluster::Cluster) {
    use cluster::cluster::LbPolicy;

    if cluster.lb_policy == i32::from(LbPolicy::Maglev) {
        // By the same key.
        cluster.lb_policy = LbPolicy::RingHash.into();
    }
    if cluster.lb_policy != i32::from(LbPolicy::RingHash) {
        cluster.lb_policy = LbPolicy::RoundRobin.into();
        cluster.lb_config = None;
    }
}

/// A locality stands once in each priority, and one without a weight is not used. A factor that says when
/// a priority is too little they do not know (`envoy.lb.does_not_support_overprovisioning`): they go on
/// to the next where nothing of it answers.
pub(super) fn endpoints(assigned: &mut endpoint::ClusterLoadAssignment) {
    if let Some(policy) = &mut assigned.policy {
        policy.overprovisioning_factor = None;
        assigned
            .policy
            .take_if(|policy| *policy == Default::default());
    }
    let mut merged = by_place(std::mem::take(&mut assigned.endpoints));
    for group in &mut merged {
        let weighed = (group.lb_endpoints.iter())
            .filter_map(|one| one.load_balancing_weight)
            .fold(0_u32, |sum, weight| sum.saturating_add(weight.value));
        if group.load_balancing_weight.is_none() {
            group.load_balancing_weight = pb::number(weighed.max(1));
        }
    }
    assigned.endpoints = merged;
}
