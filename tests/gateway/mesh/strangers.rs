//! Resources of a control plane that knows nothing of us, written by hand.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::rbac::v3 as rbac;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp_proxy;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
use envoy_types::pb::envoy::r#type::matcher::v3 as matcher;
use envoy_types::pb::google::protobuf::{Any, BoolValue, UInt32Value};
use prost::{Message, Name};

use super::by_hand::{address, packed};

/// The endpoints of a priority, and whether they are of use.
pub(crate) type Priority<'a> = (&'a [SocketAddr], bool);

/// Endpoints by priority.
pub(crate) fn endpoints(name: &str, priorities: &[Priority<'_>]) -> (String, Any) {
    let all = assignment(name, priorities);
    (name.to_owned(), packed(&all))
}

fn assignment(name: &str, priorities: &[Priority<'_>]) -> endpoint::ClusterLoadAssignment {
    let one = |at: &SocketAddr, is_up: bool| endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
            endpoint::Endpoint {
                address: address(*at),
                ..Default::default()
            },
        )),
        health_status: if is_up {
            core::HealthStatus::Healthy
        } else {
            core::HealthStatus::Unhealthy
        }
        .into(),
        ..Default::default()
    };
    let groups = priorities.iter().zip(0..);
    endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: groups
            .map(
                |((addresses, is_up), priority)| endpoint::LocalityLbEndpoints {
                    priority,
                    lb_endpoints: addresses.iter().map(|at| one(at, *is_up)).collect(),
                    ..Default::default()
                },
            )
            .collect(),
        ..Default::default()
    }
}

/// A cluster whose endpoints are sent by themselves.
pub(crate) fn eds(name: &str) -> (String, Any) {
    let made = cluster::Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        ..Default::default()
    };
    (name.to_owned(), packed(&made))
}

/// A cluster of one endpoint, over mTLS where it says who must answer.
pub(crate) fn fixed(name: &str, at: SocketAddr, answers: Option<&str>) -> (String, Any) {
    let context = |id| tls::UpstreamTlsContext {
        sni: name.to_owned(),
        common_tls_context: Some(context(Pattern::Exact(id))),
        ..Default::default()
    };
    let made = cluster::Cluster {
        name: name.to_owned(),
        load_assignment: Some(assignment(name, &[(&[at], true)])),
        transport_socket: answers.map(|id| socket(&context(id))),
        ..Default::default()
    };
    (name.to_owned(), packed(&made))
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Pattern<'a> {
    Exact(&'a str),
    Prefix(&'a str),
}

fn text(pattern: Pattern<'_>) -> matcher::StringMatcher {
    use matcher::string_matcher::MatchPattern;
    matcher::StringMatcher {
        match_pattern: Some(match pattern {
            Pattern::Exact(text) => MatchPattern::Exact(text.to_owned()),
            Pattern::Prefix(text) => MatchPattern::Prefix(text.to_owned()),
        }),
        ..Default::default()
    }
}

/// The gateway's own certificate, and those of a URI like this.
fn context(peer: Pattern<'_>) -> tls::CommonTlsContext {
    use tls::common_tls_context::{CombinedCertificateValidationContext, ValidationContextType};
    let secret = |name: &str| tls::SdsSecretConfig {
        name: name.to_owned(),
        ..Default::default()
    };
    let san = tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(text(peer)),
        ..Default::default()
    };
    let combined = CombinedCertificateValidationContext {
        default_validation_context: Some(tls::CertificateValidationContext {
            match_typed_subject_alt_names: vec![san],
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret("ROOTCA")),
        ..Default::default()
    };
    tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(combined)),
        ..Default::default()
    }
}

fn socket<M: Message + Name>(message: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: "envoy.transport_sockets.tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(packed(
            message,
        ))),
    }
}

fn filter<M: Message + Name>(name: &str, message: &M) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(packed(message))),
    }
}

/// Bytes to a cluster.
pub(crate) fn tcp(cluster: &str) -> listener::Filter {
    let proxy = tcp_proxy::TcpProxy {
        stat_prefix: "tcp".to_owned(),
        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(
            cluster.to_owned(),
        )),
        ..Default::default()
    };
    filter("envoy.filters.network.tcp_proxy", &proxy)
}

/// HTTP by the routes of this name, for callers of which one of these is true: any permission with an
/// identity, or a path below this one for anybody.
pub(crate) fn http(routes: &str, allowed: Option<(Pattern<'_>, &str)>) -> listener::Filter {
    use hcm::http_connection_manager::RouteSpecifier;
    let http_filter = |name: &str, any| hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    };
    let router = http_filter("envoy.filters.http.router", packed(&Router::default()));
    let rules = allowed.map(|(id, open)| {
        let policy = |principal, permission| rbac::Policy {
            principals: vec![rbac::Principal {
                identifier: Some(principal),
            }],
            permissions: vec![rbac::Permission {
                rule: Some(permission),
            }],
            ..Default::default()
        };
        let named = rbac::principal::Identifier::Authenticated(rbac::principal::Authenticated {
            principal_name: Some(text(id)),
        });
        let below = rbac::permission::Rule::UrlPath(matcher::PathMatcher {
            rule: Some(matcher::path_matcher::Rule::Path(text(Pattern::Prefix(
                open,
            )))),
        });
        let policies = [
            (
                "named".to_owned(),
                policy(named, rbac::permission::Rule::Any(true)),
            ),
            (
                "open".to_owned(),
                policy(rbac::principal::Identifier::Any(true), below),
            ),
        ];
        let rbac = http_rbac::Rbac {
            rules: Some(rbac::Rbac {
                action: rbac::rbac::Action::Allow.into(),
                policies: policies.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        http_filter("envoy.filters.http.rbac", packed(&rbac))
    });
    let manager = hcm::HttpConnectionManager {
        stat_prefix: "http".to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(hcm::Rds {
            route_config_name: routes.to_owned(),
            ..Default::default()
        })),
        http_filters: rules.into_iter().chain([router]).collect(),
        ..Default::default()
    };
    filter("envoy.filters.network.http_connection_manager", &manager)
}

/// A filter chain: its server names, whose TLS it ends, and where that leads.
pub(crate) fn chain(
    names: &[&str],
    ends: Option<Pattern<'_>>,
    last: listener::Filter,
) -> listener::FilterChain {
    let context = |peer| tls::DownstreamTlsContext {
        common_tls_context: Some(context(peer)),
        require_client_certificate: Some(BoolValue { value: true }),
        ..Default::default()
    };
    let matched = listener::FilterChainMatch {
        server_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    listener::FilterChain {
        name: names.first().map_or("plain", |name| *name).to_owned(),
        filter_chain_match: (!names.is_empty()).then_some(matched),
        transport_socket: ends.map(|peer| socket(&context(peer))),
        filters: vec![last],
        ..Default::default()
    }
}

/// A listener of these chains.
pub(crate) fn listener(
    name: &str,
    at: SocketAddr,
    chains: Vec<listener::FilterChain>,
) -> (String, Any) {
    let made = listener::Listener {
        name: name.to_owned(),
        address: address(at),
        filter_chains: chains,
        ..Default::default()
    };
    (name.to_owned(), packed(&made))
}

/// A route of what begins with a text, to clusters by weight; to none it answers by itself.
pub(crate) fn route(prefix: &str, to: &[(&str, u32)]) -> route::Route {
    use route::route_action::ClusterSpecifier;
    let parts = to
        .iter()
        .map(|(name, weight)| route::weighted_cluster::ClusterWeight {
            name: (*name).to_owned(),
            weight: Some(UInt32Value { value: *weight }),
            ..Default::default()
        });
    let action = match to {
        [] => route::route::Action::DirectResponse(route::DirectResponseAction {
            status: 404,
            ..Default::default()
        }),
        [_, ..] => route::route::Action::Route(route::RouteAction {
            cluster_specifier: Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
                clusters: parts.collect(),
                ..Default::default()
            })),
            ..Default::default()
        }),
    };
    route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        action: Some(action),
        ..Default::default()
    }
}

/// A route configuration of one virtual host.
pub(crate) fn routes(name: &str, domain: &str, routes: Vec<route::Route>) -> (String, Any) {
    let made = route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: "host".to_owned(),
            domains: vec![domain.to_owned()],
            routes,
            ..Default::default()
        }],
        ..Default::default()
    };
    (name.to_owned(), packed(&made))
}
