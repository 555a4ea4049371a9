//! Envoy with one worker, its configuration as JSON.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::{Peer, Plan, Site, Work, free_port, host, text};
use crate::pki::Svid;

const TYPES: &str = "type.googleapis.com/envoy";

pub(super) fn plan(site: &Site, work: Work, folder: &Path) -> Result<Plan> {
    let address = free_port()?;
    let backend = &site.backend;
    let (chains, clusters): (Vec<Value>, Vec<Value>) = match work {
        Work::Passthrough { routes, .. } => (0..routes)
            .map(|route| {
                let name = format!("c-{route}");
                let mut chain = tcp_chain(&name);
                chain["filter_chain_match"] = json!({ "server_names": [host(route)] });
                (chain, cluster(&name, backend.hello))
            })
            .unzip(),
        Work::Terminate | Work::Originate => {
            let mut chain = tcp_chain("c");
            chain["transport_socket"] = downstream_tls(site);
            let cluster = if work == Work::Originate {
                let mut cluster = cluster("c", backend.tls);
                cluster["transport_socket"] = upstream_tls(site, &site.gateway, &site.service);
                cluster
            } else {
                cluster("c", backend.plain)
            };
            (vec![chain], vec![cluster])
        }
        Work::Http1 => (vec![http_chain("HTTP1")], vec![cluster("c", backend.http1)]),
        Work::Http2ToHttp1 => (vec![http_chain("HTTP2")], vec![cluster("c", backend.http1)]),
        Work::Http2 => (
            vec![http_chain("HTTP2")],
            vec![http2_cluster(backend.http2)],
        ),
        Work::Entry { exit } => {
            let mut cluster = http2_cluster(exit);
            cluster["transport_socket"] = upstream_tls(site, &site.entry, &site.gateway);
            (vec![http_chain("HTTP2")], vec![cluster])
        }
        Work::Exit => {
            let mut chain = http_chain("HTTP2");
            chain["transport_socket"] = downstream_tls(site);
            (vec![chain], vec![http2_cluster(backend.http2)])
        }
    };
    let mut listener = json!({
        "name": "in",
        "address": socket(address),
        "filter_chains": chains,
        "tcp_backlog_size": 4096,
    });
    if let Work::Passthrough { .. } = work {
        let kind = format!("{TYPES}.extensions.filters.listener.tls_inspector.v3.TlsInspector");
        listener["listener_filters"] = json!([{
            "name": "envoy.filters.listener.tls_inspector",
            "typed_config": { "@type": kind },
        }]);
    }
    let config = json!({
        "static_resources": { "listeners": [listener], "clusters": clusters }
    });
    fs::write(folder.join("envoy.json"), config.to_string())?;
    let arguments = [
        "--disable-hot-restart",
        "--concurrency",
        "1",
        "--log-level",
        "error",
        "-c",
        "envoy.json",
    ];
    Ok(Plan {
        program: site.program(Peer::Envoy)?,
        arguments: arguments.map(str::to_owned).into(),
        address,
    })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

fn access_log() -> Value {
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": format!("{TYPES}.extensions.access_loggers.file.v3.FileAccessLog"),
            "path": "/dev/null",
        },
    }])
}

fn tcp_chain(cluster: &str) -> Value {
    json!({
        "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": format!("{TYPES}.extensions.filters.network.tcp_proxy.v3.TcpProxy"),
                "stat_prefix": "in",
                "cluster": cluster,
                "access_log": access_log(),
            },
        }],
    })
}

fn http_chain(codec: &str) -> Value {
    let filters = format!("{TYPES}.extensions.filters");
    json!({
        "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!(
                    "{filters}.network.http_connection_manager.v3.HttpConnectionManager"
                ),
                "stat_prefix": "in",
                "codec_type": codec,
                "access_log": access_log(),
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": format!("{filters}.http.router.v3.Router") },
                }],
                "route_config": {
                    "virtual_hosts": [{
                        "name": "any",
                        "domains": [host(0)],
                        "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "c" } }],
                    }],
                },
            },
        }],
    })
}

fn cluster(name: &str, address: SocketAddr) -> Value {
    // The limits of a circuit breaker are 1,024 unless told otherwise.
    let most = 100_000;
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": most,
            "max_pending_requests": most,
            "max_requests": most,
        }] },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(address) } }] }],
        },
    })
}

fn http2_cluster(address: SocketAddr) -> Value {
    let mut cluster = cluster("c", address);
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": format!("{TYPES}.extensions.upstreams.http.v3.HttpProtocolOptions"),
            "explicit_http_config": { "http2_protocol_options": {} }
        }
    });
    cluster
}

fn common_tls(own: &Svid, groups: &[&str], trusted: &Path, id: &Value) -> Value {
    json!({
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_3",
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": groups,
        },
        "tls_certificates": [{
            "certificate_chain": { "filename": text(&own.certificate) },
            "private_key": { "filename": text(&own.key) },
        }],
        "validation_context": {
            "trusted_ca": { "filename": text(trusted) },
            "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": id }],
        },
    })
}

fn downstream_tls(site: &Site) -> Value {
    let callers = json!({ "prefix": "spiffe://west.example/" });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.DownstreamTlsContext"),
            "require_client_certificate": true,
            "disable_stateless_session_resumption": true,
            "disable_stateful_session_resumption": true,
            // The second is for the callers that offer it alone.
            "common_tls_context":
                common_tls(&site.gateway, &["X25519", "X25519MLKEM768"], &site.west.anchor, &callers),
        },
    })
}

fn upstream_tls(site: &Site, own: &Svid, server: &Svid) -> Value {
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{TYPES}.extensions.transport_sockets.tls.v3.UpstreamTlsContext"),
            "sni": host(0),
            "max_session_keys": 0,
            "common_tls_context": common_tls(
                own,
                &["X25519"],
                &site.east.anchor,
                &json!({ "exact": server.id }),
            ),
        },
    })
}
