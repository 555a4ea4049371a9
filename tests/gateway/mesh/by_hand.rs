//! Resources for a gateway, written by hand: nothing here is made by what the gateway's own files are
//! compiled with.

use std::net::SocketAddr;

use envoy_types::pb::envoy::config::cluster::v3 as cluster;
use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::endpoint::v3 as endpoint;
use envoy_types::pb::envoy::config::listener::v3 as listener;
use envoy_types::pb::envoy::config::rbac::v3 as rbac;
use envoy_types::pb::envoy::config::route::v3 as route;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3 as http_rbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::google::protobuf::{
    Any, Duration, ListValue, Struct, UInt32Value, Value as PbValue, value::Kind,
};
use prost::{Message, Name};
use serde_json::{Value, json};

pub(crate) const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(crate) const ENDPOINTS: &str =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(crate) const LISTENER: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(crate) const ROUTES: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

pub(crate) fn packed<M: Message + Name>(message: &M) -> Any {
    Any {
        type_url: M::type_url(),
        value: message.encode_to_vec(),
    }
}

fn metadata(value: &Value) -> Option<core::Metadata> {
    Some(core::Metadata {
        filter_metadata: [("dev.zeugma".to_owned(), structure(value))].into(),
        ..Default::default()
    })
}

fn structure(value: &Value) -> Struct {
    let fields = value.as_object().unwrap().iter();
    Struct {
        fields: fields
            .map(|(key, value)| (key.clone(), of_json(value)))
            .collect(),
    }
}

fn of_json(value: &Value) -> PbValue {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(*value),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap()),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(values) => Kind::ListValue(ListValue {
            values: values.iter().map(of_json).collect(),
        }),
        Value::Object(_) => Kind::StructValue(structure(value)),
    };
    PbValue { kind: Some(kind) }
}

const fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

pub(crate) fn address(address: SocketAddr) -> Option<core::Address> {
    use core::socket_address::PortSpecifier;
    Some(core::Address {
        address: Some(core::address::Address::SocketAddress(core::SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
            ..Default::default()
        })),
    })
}

/// The cluster of the HTTP service `shop/<name>`, whose endpoints are sent by themselves.
pub(crate) fn service(name: &str) -> (String, Any) {
    let named = format!("outbound|shop/{name}:80");
    let meta = json!({
        "kind": "traffic",
        "route": format!("shop/{name}"),
        "failover": {
            "start": 0.7, "full": 0.0, "holdMillis": 0, "failbackAfterMillis": 60_000,
            "failbackRampMillis": 60_000, "useAll": true,
        },
        "passive": { "on": ["connect"], "maxEjected": 1.0, "keepAtLeast": 1 },
        "timeouts": { "connectPeerMillis": 3000, "responseHeadersMillis": 15_000, "idleMillis": 3_600_000 },
        "retries": { "attempts": 2, "on": ["connect"], "budget": 0.2, "bufferBytes": 65_536, "anyMethod": false },
        "service": {
            "id": format!("shop/{name}:80"), "port": 80, "ports": 1,
            "hosts": [format!("{name}.shop.svc.clusterset.local")],
            "protocol": "http", "inbound": "terminate", "isAudited": false, "export": "nobody",
            "position": { "file": "by hand", "line": 1 },
        },
    });
    let raw = cluster::cluster::TransportSocketMatch {
        name: "raw".to_owned(),
        transport_socket: Some(core::TransportSocket {
            name: "raw".to_owned(),
            config_type: Some(core::transport_socket::ConfigType::TypedConfig(packed(
                &RawBuffer::default(),
            ))),
        }),
        ..Default::default()
    };
    let cluster = cluster::Cluster {
        name: named.clone(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        connect_timeout: seconds(1),
        transport_socket_matches: vec![raw],
        outlier_detection: Some(cluster::OutlierDetection {
            base_ejection_time: seconds(30),
            ..Default::default()
        }),
        circuit_breakers: Some(cluster::CircuitBreakers {
            thresholds: vec![cluster::circuit_breakers::Thresholds {
                max_connections: Some(UInt32Value { value: u32::MAX }),
                max_pending_requests: Some(UInt32Value { value: u32::MAX }),
                max_requests: Some(UInt32Value { value: u32::MAX }),
                ..Default::default()
            }],
            ..Default::default()
        }),
        metadata: metadata(&meta),
        ..Default::default()
    };
    (named, packed(&cluster))
}

/// The endpoints of `shop/<name>`.
pub(crate) fn endpoints(name: &str, addresses: &[SocketAddr]) -> (String, Any) {
    let named = format!("outbound|shop/{name}:80");
    let one = |at: &SocketAddr| {
        let mut meta =
            metadata(&json!({ "backend": "here", "workload": false, "version": "same" }));
        let picks = structure(&json!({ "socket": "raw" }));
        let all = &mut meta.as_mut().unwrap().filter_metadata;
        all.insert("envoy.transport_socket_match".to_owned(), picks);
        endpoint::LbEndpoint {
            host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(
                endpoint::Endpoint {
                    address: address(*at),
                    ..Default::default()
                },
            )),
            metadata: meta,
            ..Default::default()
        }
    };
    let all = endpoint::ClusterLoadAssignment {
        cluster_name: named.clone(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            locality: Some(core::Locality {
                region: "east".to_owned(),
                zone: "east-1".to_owned(),
                ..Default::default()
            }),
            lb_endpoints: addresses.iter().map(one).collect(),
            ..Default::default()
        }],
        ..Default::default()
    };
    (named, packed(&all))
}

/// The routes of the listener `apps`, to these services, for everybody.
pub(crate) fn routes(services: &[&str]) -> (String, Any) {
    let host = |name: &&str| {
        let rules = |action: rbac::rbac::Action, policies| http_rbac::RbacPerRoute {
            rbac: Some(http_rbac::Rbac {
                rules: Some(rbac::Rbac {
                    action: action.into(),
                    policies,
                    ..Default::default()
                }),
                ..Default::default()
            }),
        };
        let anybody = rbac::Policy {
            permissions: vec![rbac::Permission {
                rule: Some(rbac::permission::Rule::Any(true)),
            }],
            principals: vec![rbac::Principal {
                identifier: Some(rbac::principal::Identifier::Any(true)),
            }],
            ..Default::default()
        };
        let allow = [("0 listeners apps at by hand:1".to_owned(), anybody)].into();
        let allow = packed(&rules(rbac::rbac::Action::Allow, allow));
        let deny = packed(&rules(rbac::rbac::Action::Deny, Default::default()));
        route::VirtualHost {
            name: format!("shop/{name}:80"),
            domains: vec![format!("{name}.shop.svc.clusterset.local")],
            routes: vec![route::Route {
                metadata: metadata(&json!({ "mirrors": [] })),
                action: Some(route::route::Action::Route(route::RouteAction::default())),
                ..Default::default()
            }],
            typed_per_filter_config: [
                ("dev.zeugma.allow".to_owned(), allow),
                ("dev.zeugma.deny".to_owned(), deny),
            ]
            .into(),
            ..Default::default()
        }
    };
    let all = route::RouteConfiguration {
        name: "apps".to_owned(),
        virtual_hosts: services.iter().map(host).collect(),
        ..Default::default()
    };
    ("apps".to_owned(), packed(&all))
}

/// The listener `name` for workloads, led by the routes `apps`.
pub(crate) fn listener(name: &str, at: SocketAddr) -> (String, Any) {
    use hcm::http_connection_manager::RouteSpecifier;
    let manager = hcm::HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(hcm::Rds {
            route_config_name: "apps".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let chain = listener::FilterChain {
        name: "plaintext".to_owned(),
        filters: vec![listener::Filter {
            name: "http".to_owned(),
            config_type: Some(listener::filter::ConfigType::TypedConfig(packed(&manager))),
        }],
        ..Default::default()
    };
    let all = listener::Listener {
        name: name.to_owned(),
        address: address(at),
        filter_chains: vec![chain],
        metadata: metadata(&json!({ "mesh": false, "sources": [] })),
        ..Default::default()
    };
    (name.to_owned(), packed(&all))
}
