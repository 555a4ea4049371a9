//! Envoy's configuration, as JSON.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};

use crate::gateway::{Exit, Settings, Ways};
use crate::pki::Svid;
use crate::site::Site;

const EXTENSIONS: &str = "type.googleapis.com/envoy.extensions";
/// No limit, as Istio writes it.
const ANY: u32 = u32::MAX;

/// The gateway that callers call.
pub(crate) fn entry(
    site: &Site,
    folder: &Path,
    listen: SocketAddr,
    ways: &Ways<'_>,
    settings: Settings,
) -> Result<Command> {
    let mut cluster = cluster(ways, settings);
    cluster["transport_socket_matches"] = json!([
        {
            "name": "tls",
            "match": { "tls": true },
            "transport_socket": tls("Upstream", site, &site.gateways[0]),
        },
        {
            "name": "plain",
            "match": {},
            "transport_socket": {
                "name": "envoy.transport_sockets.raw_buffer",
                "typed_config": {
                    "@type": format!("{EXTENSIONS}.transport_sockets.raw_buffer.v3.RawBuffer"),
                },
            },
        },
    ]);
    let chain = chain(&routes(settings));
    command(site, folder, listen, &chain, &cluster)
}

/// What decides how it fails over.
pub(crate) fn decisive(ways: &Ways<'_>, settings: Settings) -> Result<String> {
    let text = json!({ "routes": routes(settings), "cluster": cluster(ways, settings) });
    Ok(serde_json::to_string_pretty(&text)?)
}

/// The gateway of another cluster, before its endpoint.
pub(crate) fn exit(site: &Site, folder: &Path, exit: Exit) -> Result<Command> {
    let mut chain = chain(&json!([plain_route()]));
    chain["transport_socket"] = tls("Downstream", site, &site.gateways[exit.cluster]);
    chain["transport_socket"]["typed_config"]["require_client_certificate"] = json!(true);
    let cluster = json!({
        "name": "svc",
        "load_assignment": {
            "cluster_name": "svc",
            "endpoints": [{ "lb_endpoints": [endpoint(exit.endpoint)] }],
        },
    });
    command(site, folder, exit.listen, &chain, &cluster)
}

fn cluster(ways: &Ways<'_>, settings: Settings) -> Value {
    let mut levels = Vec::new();
    if !ways.local.is_empty() {
        let local: Vec<_> = ways.local.iter().map(|one| endpoint(*one)).collect();
        levels.push(json!({ "priority": 0, "lb_endpoints": local }));
    }
    for address in ways.remote {
        let mut remote = endpoint(*address);
        remote["metadata"] =
            json!({ "filter_metadata": { "envoy.transport_socket_match": { "tls": true } } });
        levels.push(json!({ "priority": levels.len(), "lb_endpoints": [remote] }));
    }
    let mut cluster = json!({
        "name": "svc",
        "load_assignment": { "cluster_name": "svc", "endpoints": levels },
    });
    let limits = json!({ "thresholds": [{
        "max_connections": ANY,
        "max_pending_requests": ANY,
        "max_requests": ANY,
        "max_retries": ANY,
    }] });
    match settings {
        Settings::Defaults => {}
        Settings::Istio => {
            cluster["connect_timeout"] = json!("10s");
            cluster["lb_policy"] = json!("LEAST_REQUEST");
            cluster["circuit_breakers"] = limits;
            cluster["common_lb_config"] = json!({ "healthy_panic_threshold": { "value": 0 } });
            cluster["outlier_detection"] = json!({ "enforcing_success_rate": 0 });
        }
        Settings::Equal => {
            cluster["connect_timeout"] = json!("1s");
            cluster["lb_policy"] = json!("LEAST_REQUEST");
            cluster["circuit_breakers"] = limits;
            cluster["common_lb_config"] = json!({ "healthy_panic_threshold": { "value": 0 } });
            cluster["outlier_detection"] = json!({
                "consecutive_5xx": 5,
                "consecutive_gateway_failure": 5,
                "enforcing_consecutive_gateway_failure": 100,
                "split_external_local_origin_errors": true,
                "consecutive_local_origin_failure": 5,
                "max_ejection_percent": 100,
                "base_ejection_time": "30s",
                "interval": "1s",
            });
            // TCP_USER_TIMEOUT: what nobody acknowledges ends the connection.
            cluster["upstream_bind_config"] = json!({ "socket_options": [
                { "level": 6, "name": 18, "int_value": 4000, "state": "STATE_PREBIND" },
            ] });
        }
    }
    if ways.local.is_empty() {
        let mut http2 = json!({});
        if settings == Settings::Equal {
            http2["connection_keepalive"] = json!({ "interval": "2s", "timeout": "2s" });
        }
        cluster["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": format!("{EXTENSIONS}.upstreams.http.v3.HttpProtocolOptions"),
                "explicit_http_config": { "http2_protocol_options": http2 },
            }
        });
    }
    cluster
}

fn plain_route() -> Value {
    json!({ "match": { "prefix": "/" }, "route": { "cluster": "svc" } })
}

fn routes(settings: Settings) -> Value {
    match settings {
        Settings::Defaults => json!([plain_route()]),
        Settings::Istio => {
            let mut route = plain_route();
            route["route"]["timeout"] = json!("0s");
            route["route"]["retry_policy"] = json!({
                "retry_on":
                    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
                "retriable_status_codes": [503],
                "num_retries": 2,
                "retry_host_predicate": [previous_hosts()],
                "host_selection_retry_max_attempts": 5,
            });
            json!([route])
        }
        Settings::Equal => {
            let retrying = |on: &str| {
                let mut route = plain_route();
                route["route"]["timeout"] = json!("15s");
                let priorities = "retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";
                route["route"]["retry_policy"] = json!({
                    "retry_on": on,
                    "num_retries": 2,
                    "retry_host_predicate": [previous_hosts()],
                    "host_selection_retry_max_attempts": 5,
                    "retry_priority": {
                        "name": "envoy.retry_priorities.previous_priorities",
                        "typed_config": {
                            "@type": format!("{EXTENSIONS}.{priorities}"),
                            "update_frequency": 1,
                        },
                    },
                });
                route
            };
            let mut post = retrying("connect-failure,refused-stream");
            post["match"]["headers"] =
                json!([{ "name": ":method", "string_match": { "exact": "POST" } }]);
            let idempotent = retrying("connect-failure,refused-stream,reset,gateway-error");
            json!([post, idempotent])
        }
    }
}

fn previous_hosts() -> Value {
    let kind = "retry.host.previous_hosts.v3.PreviousHostsPredicate";
    json!({
        "name": "envoy.retry_host_predicates.previous_hosts",
        "typed_config": { "@type": format!("{EXTENSIONS}.{kind}") },
    })
}

fn endpoint(address: SocketAddr) -> Value {
    json!({ "endpoint": { "address": socket(address) } })
}

fn socket(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip(), "port_value": address.port() } })
}

fn chain(routes: &Value) -> Value {
    let filters = format!("{EXTENSIONS}.filters");
    let kind = "network.http_connection_manager.v3.HttpConnectionManager";
    json!({
        "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": format!("{filters}.{kind}"),
                "stat_prefix": "in",
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": format!("{filters}.http.router.v3.Router") },
                }],
                "route_config": {
                    "virtual_hosts": [{ "name": "any", "domains": ["*"], "routes": routes }],
                },
            },
        }],
    })
}

/// mTLS 1.3 with the gateways of this run.
fn tls(side: &str, site: &Site, own: &Svid) -> Value {
    let gateway = json!({ "safe_regex": { "regex": "spiffe://[a-z]+\\.example/zeugma/gateway" } });
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": format!("{EXTENSIONS}.transport_sockets.tls.v3.{side}TlsContext"),
            "common_tls_context": {
                "tls_params": {
                    "tls_minimum_protocol_version": "TLSv1_3",
                    "tls_maximum_protocol_version": "TLSv1_3",
                },
                "tls_certificates": [{
                    "certificate_chain": { "filename": own.certificate },
                    "private_key": { "filename": own.key },
                }],
                "validation_context": {
                    "trusted_ca": { "filename": site.anchors },
                    "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": gateway }],
                },
            },
        },
    })
}

fn command(
    site: &Site,
    folder: &Path,
    listen: SocketAddr,
    chain: &Value,
    cluster: &Value,
) -> Result<Command> {
    let listener = json!({ "name": "in", "address": socket(listen), "filter_chains": [chain] });
    let config = json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } });
    let path = folder.join("envoy.json");
    fs::write(&path, config.to_string())?;
    let mut command = Command::new(&site.envoy);
    command
        .args(["--disable-hot-restart", "--concurrency", "2"])
        .args(["--log-level", "error", "-c"])
        .arg(path);
    Ok(command)
}
