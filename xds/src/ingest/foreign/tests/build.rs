//! Resources as a stranger writes them.

use std::net::SocketAddr;

use prost::{Message, Name};

use crate::pb::{
    self, Any, cluster, core, endpoint, hcm, http_rbac, listener, matcher, network_rbac, percent,
    rbac, route, tcp_proxy, tls,
};
use crate::session::Kind;

/// A resource with its name.
#[derive(Debug, Clone)]
pub(super) struct Listed {
    pub kind: Kind,
    pub name: String,
    pub body: Any,
}

fn listed<M: Message + Name>(kind: Kind, name: &str, message: &M) -> Listed {
    Listed {
        kind,
        name: name.to_owned(),
        body: pb::pack(message),
    }
}

pub(super) fn seconds(seconds: i64) -> Option<pb::PbDuration> {
    Some(pb::PbDuration { seconds, nanos: 0 })
}

pub(super) fn lb(address: &str) -> endpoint::LbEndpoint {
    let (host, port) = address.rsplit_once(':').unwrap();
    endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
            endpoint::Endpoint {
                address: Some(pb::address(host, port.parse().unwrap())),
                ..Default::default()
            },
        )),
        ..Default::default()
    }
}

/// Endpoints of the zone `eu/<zone>`.
pub(super) fn zone(zone: &str, priority: u32, addresses: &[&str]) -> endpoint::LocalityLbEndpoints {
    endpoint::LocalityLbEndpoints {
        locality: Some(core::Locality {
            region: "eu".to_owned(),
            zone: zone.to_owned(),
            ..Default::default()
        }),
        priority,
        lb_endpoints: addresses.iter().map(|address| lb(address)).collect(),
        ..Default::default()
    }
}

/// A STATIC cluster of these priorities, without anything else.
pub(super) fn cluster(name: &str, priorities: &[&[&str]]) -> cluster::Cluster {
    let zones = priorities.iter().zip(0..);
    cluster::Cluster {
        name: name.to_owned(),
        load_assignment: Some(endpoint::ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: zones
                .map(|(addresses, nth)| zone(&format!("eu-{nth}"), nth, addresses))
                .collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(super) fn of_cluster(cluster: &cluster::Cluster) -> Listed {
    listed(Kind::Cluster, &cluster.name, cluster)
}

/// A cluster of one endpoint.
pub(super) fn one(name: &str) -> Listed {
    of_cluster(&cluster(name, &[&["10.0.0.1:80"]]))
}

pub(super) fn of_endpoints(all: &endpoint::ClusterLoadAssignment) -> Listed {
    listed(Kind::Endpoints, &all.cluster_name, all)
}

pub(super) fn of_routes(config: &route::RouteConfiguration) -> Listed {
    listed(Kind::Routes, &config.name, config)
}

/// The listener `in` of these chains.
pub(super) fn listener(chains: Vec<listener::FilterChain>) -> listener::Listener {
    let at: SocketAddr = "127.0.0.1:8443".parse().unwrap();
    listener::Listener {
        name: "in".to_owned(),
        address: Some(pb::address(&at.ip().to_string(), at.port())),
        filter_chains: chains,
        ..Default::default()
    }
}

pub(super) fn of_listener(listener: &listener::Listener) -> Listed {
    listed(Kind::Listener, &listener.name, listener)
}

pub(super) fn chains(chains: Vec<listener::FilterChain>) -> Listed {
    of_listener(&listener(chains))
}

pub(super) fn filter<M: Message + Name>(name: &str, message: &M) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pb::pack(message))),
    }
}

/// The chain of these server names and this last filter.
pub(super) fn chain(name: &str, names: &[&str], last: listener::Filter) -> listener::FilterChain {
    let matched = listener::FilterChainMatch {
        server_names: names.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    listener::FilterChain {
        name: name.to_owned(),
        filter_chain_match: (!names.is_empty()).then_some(matched),
        filters: vec![last],
        ..Default::default()
    }
}

pub(super) fn tcp(cluster: &str) -> listener::Filter {
    use tcp_proxy::tcp_proxy::ClusterSpecifier;
    let proxy = tcp_proxy::TcpProxy {
        stat_prefix: "tcp".to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    };
    filter("tcp", &proxy)
}

/// Whose certificates a TLS context takes.
pub(super) fn context(sans: Vec<matcher::StringMatcher>) -> tls::CommonTlsContext {
    let san = |matcher| tls::SubjectAltNameMatcher {
        san_type: tls::subject_alt_name_matcher::SanType::Uri.into(),
        matcher: Some(matcher),
        ..Default::default()
    };
    let secret = |name: &str| tls::SdsSecretConfig {
        name: name.to_owned(),
        ..Default::default()
    };
    tls::CommonTlsContext {
        tls_certificate_sds_secret_configs: vec![secret("default")],
        validation_context_type: Some(
            tls::common_tls_context::ValidationContextType::CombinedValidationContext(
                tls::common_tls_context::CombinedCertificateValidationContext {
                    default_validation_context: Some(tls::CertificateValidationContext {
                        match_typed_subject_alt_names: sans.into_iter().map(san).collect(),
                        ..Default::default()
                    }),
                    validation_context_sds_secret_config: Some(secret("ALL")),
                    ..Default::default()
                },
            ),
        ),
        ..Default::default()
    }
}

pub(super) fn socket<M: Message + Name>(message: &M) -> core::TransportSocket {
    core::TransportSocket {
        name: "tls".to_owned(),
        config_type: Some(core::transport_socket::ConfigType::TypedConfig(pb::pack(
            message,
        ))),
    }
}

/// A chain that ends TLS for whom the context takes.
pub(super) fn ended(
    chain: listener::FilterChain,
    common: tls::CommonTlsContext,
) -> listener::FilterChain {
    let context = tls::DownstreamTlsContext {
        common_tls_context: Some(common),
        require_client_certificate: pb::boolean(true),
        ..Default::default()
    };
    listener::FilterChain {
        transport_socket: Some(socket(&context)),
        ..chain
    }
}

/// Those of the west.
pub(super) fn west() -> tls::CommonTlsContext {
    context(vec![pb::beginning("spiffe://west.example/")])
}

pub(super) fn upstream(sni: &str, id: &str) -> core::TransportSocket {
    socket(&tls::UpstreamTlsContext {
        sni: sni.to_owned(),
        common_tls_context: Some(context(vec![pb::exactly(id)])),
        ..Default::default()
    })
}

pub(super) fn to(cluster: &str) -> route::RouteAction {
    use route::route_action::ClusterSpecifier;
    route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    }
}

pub(super) fn weighted(parts: &[(&str, u32)]) -> route::RouteAction {
    use route::route_action::ClusterSpecifier;
    let parts = parts
        .iter()
        .map(|(name, weight)| route::weighted_cluster::ClusterWeight {
            name: (*name).to_owned(),
            weight: pb::number(*weight),
            ..Default::default()
        });
    route::RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(route::WeightedCluster {
            clusters: parts.collect(),
            ..Default::default()
        })),
        ..Default::default()
    }
}

/// A route of what begins with this text.
pub(super) fn route(prefix: &str, action: route::RouteAction) -> route::Route {
    route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    }
}

pub(super) fn host(name: &str, domains: &[&str], routes: Vec<route::Route>) -> route::VirtualHost {
    route::VirtualHost {
        name: name.to_owned(),
        domains: domains.iter().map(|domain| (*domain).to_owned()).collect(),
        routes,
        ..Default::default()
    }
}

pub(super) fn routes(name: &str, hosts: Vec<route::VirtualHost>) -> route::RouteConfiguration {
    route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: hosts,
        ..Default::default()
    }
}

fn http_filter<M: Message + Name>(name: &str, message: &M) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(pb::pack(message))),
        ..Default::default()
    }
}

/// HTTP with these filters before the router.
pub(super) fn manager(
    specifier: hcm::http_connection_manager::RouteSpecifier,
    rules: &[(&str, rbac::Rbac)],
) -> hcm::HttpConnectionManager {
    let filters = rules.iter().map(|(name, rules)| {
        let rbac = http_rbac::Rbac {
            rules: Some(rules.clone()),
            ..Default::default()
        };
        http_filter(name, &rbac)
    });
    let router = http_filter("router", &pb::Router::default());
    hcm::HttpConnectionManager {
        stat_prefix: "http".to_owned(),
        route_specifier: Some(specifier),
        http_filters: filters.chain([router]).collect(),
        ..Default::default()
    }
}

pub(super) fn rds(name: &str) -> hcm::http_connection_manager::RouteSpecifier {
    hcm::http_connection_manager::RouteSpecifier::Rds(hcm::Rds {
        route_config_name: name.to_owned(),
        ..Default::default()
    })
}

pub(super) fn written(
    hosts: Vec<route::VirtualHost>,
) -> hcm::http_connection_manager::RouteSpecifier {
    hcm::http_connection_manager::RouteSpecifier::RouteConfig(routes("written", hosts))
}

/// HTTP of these virtual hosts, for everybody.
pub(super) fn http(hosts: Vec<route::VirtualHost>) -> listener::Filter {
    filter("http", &manager(written(hosts), &[]))
}

pub(super) fn network(rules: rbac::Rbac) -> listener::Filter {
    let rbac = network_rbac::Rbac {
        rules: Some(rules),
        stat_prefix: "rbac".to_owned(),
        ..Default::default()
    };
    filter("rbac", &rbac)
}

/// Rules of policies that are called by their place.
pub(super) fn rules(action: rbac::rbac::Action, policies: Vec<rbac::Policy>) -> rbac::Rbac {
    let named = policies.into_iter().enumerate();
    rbac::Rbac {
        action: action.into(),
        policies: named
            .map(|(nth, policy)| (format!("p{nth}"), policy))
            .collect(),
        ..Default::default()
    }
}

pub(super) fn policy(
    principals: Vec<rbac::principal::Identifier>,
    permissions: Vec<rbac::permission::Rule>,
) -> rbac::Policy {
    rbac::Policy {
        principals: principals.into_iter().map(principal).collect(),
        permissions: permissions.into_iter().map(permission).collect(),
        ..Default::default()
    }
}

pub(super) fn principal(identifier: rbac::principal::Identifier) -> rbac::Principal {
    rbac::Principal {
        identifier: Some(identifier),
    }
}

pub(super) fn permission(rule: rbac::permission::Rule) -> rbac::Permission {
    rbac::Permission { rule: Some(rule) }
}

pub(super) fn is(name: matcher::StringMatcher) -> rbac::principal::Identifier {
    rbac::principal::Identifier::Authenticated(rbac::principal::Authenticated {
        principal_name: Some(name),
    })
}

pub(super) fn at(net: &str) -> rbac::principal::Identifier {
    rbac::principal::Identifier::DirectRemoteIp(range(net))
}

pub(super) fn range(net: &str) -> core::CidrRange {
    pb::cidr(&net.parse().unwrap())
}

pub(super) fn header(name: &str, value: &str) -> route::HeaderMatcher {
    route::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(route::header_matcher::HeaderMatchSpecifier::StringMatch(
            pb::exactly(value),
        )),
        ..Default::default()
    }
}

pub(super) fn path(text: matcher::StringMatcher) -> rbac::permission::Rule {
    rbac::permission::Rule::UrlPath(matcher::PathMatcher {
        rule: Some(matcher::path_matcher::Rule::Path(text)),
    })
}

pub(super) fn any_permission() -> Vec<rbac::permission::Rule> {
    vec![rbac::permission::Rule::Any(true)]
}

pub(super) fn source_ip() -> percent::HashPolicy {
    percent::HashPolicy {
        policy_specifier: Some(percent::hash_policy::PolicySpecifier::SourceIp(
            percent::hash_policy::SourceIp {},
        )),
    }
}
