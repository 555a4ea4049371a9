//! Which fields of the resources of control planes that know nothing of us are understood: the list that
//! `table.rs` is made of.
//!
//! Each message has its section. A line is a field, and with it whatever the section of its message says;
//! or a path, of which only the end is understood; `x.**` is a field with all that is in it,
//! `x(envoy.Some.Type)` one that may hold a message of this type, `x[key]` the value of one key of a map.
//! Repeated fields and values of maps need no mark. Durations, structs and wrapped numbers are understood
//! whole; a section without lines is a message that may be there and have nothing in it.
//!
//! That a field is honoured does not say that all of its values are: what reads it refuses those that
//! are not.

/// Why a field is on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// What it says is done.
    Honoured,
    /// It changes nothing for the traffic, and why.
    Ignored(&'static str),
}

use Use::{Honoured, Ignored};

/// The message, and what of it is understood.
pub(super) type Section = (&'static str, &'static [(&'static str, Use)]);

const STATISTICS: Use = Ignored("metrics have our names");
const LOGS: Use = Ignored("one line of ours for each connection and request");
const NAME: Use = Ignored("a word for people");
const SOURCE: Use = Ignored("all comes by the same stream");
const UNASKED: Use = Ignored("nothing here asks for it");
const NO_RING: Use = Ignored("there is no ring that has a size");
const NEVER_RESUMED: Use = Ignored("no session is ever resumed");

/// What a resource is.
pub(super) const ROOTS: [&str; 4] = [
    "envoy.config.cluster.v3.Cluster",
    "envoy.config.endpoint.v3.ClusterLoadAssignment",
    "envoy.config.listener.v3.Listener",
    "envoy.config.route.v3.RouteConfiguration",
];

pub(super) const ALLOWED: &[Section] = &[
    // Cluster.
    (
        "envoy.config.cluster.v3.Cluster",
        &[
            ("name", Honoured),
            ("alt_stat_name", STATISTICS),
            ("type", Honoured),
            ("eds_cluster_config", Honoured),
            ("load_assignment", Honoured),
            ("connect_timeout", Honoured),
            ("lb_policy", Honoured),
            ("common_lb_config", Honoured),
            ("least_request_lb_config", Honoured),
            ("round_robin_lb_config", Honoured),
            ("ring_hash_lb_config", Honoured),
            ("maglev_lb_config", Honoured),
            ("health_checks", Honoured),
            ("outlier_detection", Honoured),
            ("circuit_breakers", Honoured),
            ("transport_socket.name", NAME),
            (
                "transport_socket.typed_config(envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer)",
                Honoured,
            ),
            (
                "transport_socket.typed_config(envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext)",
                Honoured,
            ),
            ("transport_socket_matches", Honoured),
            (
                "typed_extension_protocol_options[envoy.extensions.upstreams.http.v3.HttpProtocolOptions](envoy.extensions.upstreams.http.v3.HttpProtocolOptions)",
                Honoured,
            ),
            ("http2_protocol_options", Honoured),
            ("metadata.**", UNASKED),
            ("dns_lookup_family", Honoured),
            ("respect_dns_ttl", Honoured),
        ],
    ),
    (
        "envoy.config.cluster.v3.Cluster.EdsClusterConfig",
        &[("service_name", Honoured), ("eds_config", SOURCE)],
    ),
    (
        "envoy.config.cluster.v3.Cluster.CommonLbConfig",
        &[
            ("healthy_panic_threshold", Honoured),
            ("locality_weighted_lb_config", Honoured),
        ],
    ),
    (
        "envoy.config.cluster.v3.Cluster.LeastRequestLbConfig",
        &[("choice_count", Honoured), ("slow_start_config", Honoured)],
    ),
    (
        "envoy.config.cluster.v3.Cluster.RoundRobinLbConfig",
        &[("slow_start_config", Honoured)],
    ),
    (
        "envoy.config.cluster.v3.Cluster.SlowStartConfig",
        &[("slow_start_window", Honoured)],
    ),
    (
        "envoy.config.cluster.v3.Cluster.RingHashLbConfig",
        &[
            ("minimum_ring_size", NO_RING),
            ("maximum_ring_size", NO_RING),
        ],
    ),
    (
        "envoy.config.cluster.v3.Cluster.MaglevLbConfig",
        &[("table_size", NO_RING)],
    ),
    (
        "envoy.config.cluster.v3.Cluster.TransportSocketMatch",
        &[
            ("name", Honoured),
            ("match", Honoured),
            ("transport_socket.name", NAME),
            (
                "transport_socket.typed_config(envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer)",
                Honoured,
            ),
            (
                "transport_socket.typed_config(envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext)",
                Honoured,
            ),
        ],
    ),
    (
        "envoy.config.cluster.v3.OutlierDetection",
        &[
            ("consecutive_5xx", Honoured),
            ("enforcing_consecutive_5xx", Honoured),
            ("consecutive_gateway_failure", Honoured),
            ("enforcing_consecutive_gateway_failure", Honoured),
            ("enforcing_success_rate", Honoured),
            ("enforcing_failure_percentage", Honoured),
            ("base_ejection_time", Honoured),
            ("max_ejection_percent", Honoured),
            (
                "interval",
                Ignored("an ejection ends at its time and not at the next look"),
            ),
        ],
    ),
    (
        "envoy.config.cluster.v3.CircuitBreakers",
        &[("thresholds", Honoured)],
    ),
    (
        "envoy.config.cluster.v3.CircuitBreakers.Thresholds",
        &[
            ("priority", Honoured),
            ("max_connections", Honoured),
            ("max_pending_requests", Honoured),
            ("max_requests", Honoured),
            ("max_retries", Honoured),
        ],
    ),
    (
        "envoy.config.core.v3.HealthCheck",
        &[
            ("timeout", Honoured),
            ("interval", Honoured),
            ("healthy_threshold", Honoured),
            ("unhealthy_threshold", Honoured),
            ("http_health_check", Honoured),
            ("tcp_health_check", Honoured),
            ("grpc_health_check", Honoured),
        ],
    ),
    (
        "envoy.config.core.v3.HealthCheck.HttpHealthCheck",
        &[("host", Honoured), ("path", Honoured)],
    ),
    (
        "envoy.config.core.v3.HealthCheck.GrpcHealthCheck",
        &[("service_name", Honoured), ("authority", Honoured)],
    ),
    (
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        &[
            ("common_http_protocol_options", Honoured),
            ("explicit_http_config", Honoured),
            ("use_downstream_protocol_config", Honoured),
        ],
    ),
    (
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.ExplicitHttpConfig",
        &[
            ("http_protocol_options", Honoured),
            ("http2_protocol_options", Honoured),
        ],
    ),
    (
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions.UseDownstreamHttpConfig",
        &[
            ("http_protocol_options", Honoured),
            ("http2_protocol_options", Honoured),
        ],
    ),
    (
        "envoy.config.core.v3.HttpProtocolOptions",
        &[("max_connection_duration", Honoured)],
    ),
    // Endpoints, in a cluster or by themselves.
    (
        "envoy.config.endpoint.v3.ClusterLoadAssignment",
        &[
            ("cluster_name", Honoured),
            ("endpoints", Honoured),
            ("policy", Honoured),
        ],
    ),
    (
        "envoy.config.endpoint.v3.ClusterLoadAssignment.Policy",
        &[
            ("overprovisioning_factor", Honoured),
            (
                "weighted_priority_health",
                Ignored("a priority's health is by weight"),
            ),
        ],
    ),
    (
        "envoy.config.endpoint.v3.LocalityLbEndpoints",
        &[
            ("locality", Honoured),
            ("lb_endpoints", Honoured),
            ("load_balancing_weight", Honoured),
            ("priority", Honoured),
        ],
    ),
    (
        "envoy.config.core.v3.Locality",
        &[
            ("region", Honoured),
            ("zone", Honoured),
            ("sub_zone", Honoured),
        ],
    ),
    (
        "envoy.config.endpoint.v3.LbEndpoint",
        &[
            ("endpoint", Honoured),
            ("health_status", Honoured),
            ("metadata.**", Honoured),
            ("load_balancing_weight", Honoured),
        ],
    ),
    (
        "envoy.config.endpoint.v3.Endpoint",
        &[
            ("address", Honoured),
            ("hostname", Ignored("no route rewrites a host to it")),
        ],
    ),
    // Listener.
    (
        "envoy.config.listener.v3.Listener",
        &[
            ("name", Honoured),
            ("address", Honoured),
            ("stat_prefix", STATISTICS),
            ("filter_chains", Honoured),
            ("default_filter_chain", Honoured),
            ("listener_filters", Honoured),
            ("metadata.**", UNASKED),
            ("traffic_direction", NAME),
            (
                "enable_reuse_port",
                Ignored("connections go to the least loaded worker"),
            ),
            ("access_log.**", LOGS),
        ],
    ),
    (
        "envoy.config.listener.v3.ListenerFilter",
        &[
            ("name", Honoured),
            (
                "typed_config(envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol)",
                Honoured,
            ),
            (
                "typed_config(envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector)",
                Honoured,
            ),
        ],
    ),
    (
        "envoy.config.listener.v3.FilterChain",
        &[
            ("name", Honoured),
            ("filter_chain_match", Honoured),
            ("filters", Honoured),
            ("transport_socket.name", NAME),
            (
                "transport_socket.typed_config(envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext)",
                Honoured,
            ),
            ("metadata.**", UNASKED),
        ],
    ),
    (
        "envoy.config.listener.v3.FilterChainMatch",
        &[
            ("server_names", Honoured),
            ("transport_protocol", Honoured),
            ("source_prefix_ranges", Honoured),
            ("destination_port", Honoured),
        ],
    ),
    (
        "envoy.config.listener.v3.Filter",
        &[
            ("name", Honoured),
            (
                "typed_config(envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager)",
                Honoured,
            ),
            (
                "typed_config(envoy.extensions.filters.network.rbac.v3.RBAC)",
                Honoured,
            ),
            (
                "typed_config(envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy)",
                Honoured,
            ),
        ],
    ),
    (
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        &[
            ("stat_prefix", STATISTICS),
            ("cluster", Honoured),
            ("idle_timeout", Honoured),
            ("hash_policy", Honoured),
            ("access_log.**", LOGS),
        ],
    ),
    (
        "envoy.extensions.filters.network.rbac.v3.RBAC",
        &[("rules", Honoured), ("stat_prefix", STATISTICS)],
    ),
    (
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        &[("rules", Honoured)],
    ),
    (
        "envoy.extensions.filters.http.rbac.v3.RBACPerRoute",
        &[("rbac", Honoured)],
    ),
    (
        "envoy.config.rbac.v3.RBAC",
        &[("action", Honoured), ("policies", Honoured)],
    ),
    (
        "envoy.config.rbac.v3.Policy",
        &[("permissions", Honoured), ("principals", Honoured)],
    ),
    (
        "envoy.config.rbac.v3.Permission",
        &[
            ("any", Honoured),
            ("and_rules", Honoured),
            ("or_rules", Honoured),
            ("header", Honoured),
            ("requested_server_name", Honoured),
            ("url_path", Honoured),
        ],
    ),
    (
        "envoy.config.rbac.v3.Permission.Set",
        &[("rules", Honoured)],
    ),
    (
        "envoy.config.rbac.v3.Principal",
        &[
            ("any", Honoured),
            ("and_ids", Honoured),
            ("or_ids", Honoured),
            ("authenticated", Honoured),
            ("direct_remote_ip", Honoured),
            ("remote_ip", Honoured),
            ("source_ip", Honoured),
            ("not_id", Honoured),
        ],
    ),
    ("envoy.config.rbac.v3.Principal.Set", &[("ids", Honoured)]),
    (
        "envoy.config.rbac.v3.Principal.Authenticated",
        &[("principal_name", Honoured)],
    ),
    (
        "envoy.config.core.v3.CidrRange",
        &[("address_prefix", Honoured), ("prefix_len", Honoured)],
    ),
    (
        "envoy.type.matcher.v3.StringMatcher",
        &[
            ("exact", Honoured),
            ("prefix", Honoured),
            ("suffix", Honoured),
        ],
    ),
    ("envoy.type.matcher.v3.PathMatcher", &[("path", Honoured)]),
    (
        "envoy.config.core.v3.Address",
        &[("socket_address", Honoured)],
    ),
    (
        "envoy.config.core.v3.SocketAddress",
        &[
            ("protocol", Honoured),
            ("address", Honoured),
            ("port_value", Honoured),
        ],
    ),
    ("envoy.type.v3.HashPolicy", &[("source_ip", Honoured)]),
    // TLS.
    (
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        &[
            ("common_tls_context", Honoured),
            ("require_client_certificate", Honoured),
            ("disable_stateless_session_resumption", NEVER_RESUMED),
            ("disable_stateful_session_resumption", NEVER_RESUMED),
        ],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        &[("common_tls_context", Honoured), ("sni", Honoured)],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext",
        &[
            ("tls_params", Honoured),
            ("tls_certificate_sds_secret_configs", Honoured),
            ("validation_context", Honoured),
            ("validation_context_sds_secret_config", Honoured),
            ("combined_validation_context", Honoured),
            ("alpn_protocols", Honoured),
        ],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CommonTlsContext.CombinedCertificateValidationContext",
        &[
            ("default_validation_context", Honoured),
            ("validation_context_sds_secret_config", Honoured),
        ],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.TlsParameters",
        &[
            ("tls_minimum_protocol_version", Honoured),
            ("tls_maximum_protocol_version", Honoured),
        ],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig",
        &[
            ("name", Honoured),
            (
                "sds_config",
                Ignored("what the gateway holds it has from its own source"),
            ),
        ],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext",
        &[
            ("match_typed_subject_alt_names", Honoured),
            ("custom_validator_config.name", NAME),
            (
                "custom_validator_config.typed_config(envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig)",
                Honoured,
            ),
        ],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.SubjectAltNameMatcher",
        &[("san_type", Honoured), ("matcher", Honoured)],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig",
        &[("trust_domains", Honoured)],
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig.TrustDomain",
        &[
            ("name", Honoured),
            (
                "trust_bundle.**",
                Ignored("the anchors are those of the bundle that the gateway holds for it"),
            ),
        ],
    ),
    // HTTP.
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        &[
            ("codec_type", Honoured),
            ("stat_prefix", STATISTICS),
            ("rds", Honoured),
            ("route_config", Honoured),
            ("http_filters", Honoured),
            ("stream_idle_timeout", Honoured),
            ("access_log.**", LOGS),
            ("normalize_path", Honoured),
            ("merge_slashes", Honoured),
            ("forward_client_cert_details", Honoured),
            ("set_current_client_cert_details", Honoured),
        ],
    ),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.Rds",
        &[("route_config_name", Honoured), ("config_source", SOURCE)],
    ),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager.SetCurrentClientCertDetails",
        &[("uri", Honoured)],
    ),
    (
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpFilter",
        &[
            ("name", Honoured),
            (
                "typed_config(envoy.extensions.filters.http.rbac.v3.RBAC)",
                Honoured,
            ),
            (
                "typed_config(envoy.extensions.filters.http.router.v3.Router)",
                Honoured,
            ),
        ],
    ),
    (
        "envoy.config.route.v3.RouteConfiguration",
        &[
            ("name", Honoured),
            ("virtual_hosts", Honoured),
            ("request_headers_to_add", Honoured),
            ("request_headers_to_remove", Honoured),
            ("response_headers_to_add", Honoured),
            ("response_headers_to_remove", Honoured),
            ("validate_clusters", Honoured),
        ],
    ),
    (
        "envoy.config.route.v3.VirtualHost",
        &[
            ("name", Honoured),
            ("domains", Honoured),
            ("routes", Honoured),
            ("request_headers_to_add", Honoured),
            ("request_headers_to_remove", Honoured),
            ("response_headers_to_add", Honoured),
            ("response_headers_to_remove", Honoured),
            ("retry_policy", Honoured),
            ("request_mirror_policies", Honoured),
            (
                "typed_per_filter_config(envoy.extensions.filters.http.rbac.v3.RBACPerRoute)",
                Honoured,
            ),
        ],
    ),
    (
        "envoy.config.route.v3.Route",
        &[
            ("name", Honoured),
            ("match", Honoured),
            ("route", Honoured),
            ("metadata.**", UNASKED),
            ("request_headers_to_add", Honoured),
            ("request_headers_to_remove", Honoured),
            ("response_headers_to_add", Honoured),
            ("response_headers_to_remove", Honoured),
        ],
    ),
    (
        "envoy.config.route.v3.RouteMatch",
        &[
            ("prefix", Honoured),
            ("path", Honoured),
            ("path_separated_prefix", Honoured),
            ("case_sensitive", Honoured),
            ("headers", Honoured),
            ("query_parameters", Honoured),
        ],
    ),
    (
        "envoy.config.route.v3.HeaderMatcher",
        &[
            ("name", Honoured),
            ("string_match", Honoured),
            ("exact_match", Honoured),
        ],
    ),
    (
        "envoy.config.route.v3.QueryParameterMatcher",
        &[("name", Honoured), ("string_match", Honoured)],
    ),
    (
        "envoy.config.route.v3.RouteAction",
        &[
            ("cluster", Honoured),
            ("weighted_clusters", Honoured),
            ("timeout", Honoured),
            ("idle_timeout", Honoured),
            ("retry_policy", Honoured),
            ("request_mirror_policies", Honoured),
            ("hash_policy", Honoured),
        ],
    ),
    (
        "envoy.config.route.v3.WeightedCluster",
        &[("clusters", Honoured), ("total_weight", Honoured)],
    ),
    (
        "envoy.config.route.v3.WeightedCluster.ClusterWeight",
        &[("name", Honoured), ("weight", Honoured)],
    ),
    (
        "envoy.config.route.v3.RouteAction.HashPolicy",
        &[
            ("header", Honoured),
            ("connection_properties", Honoured),
            ("terminal", Ignored("there is one")),
        ],
    ),
    (
        "envoy.config.route.v3.RouteAction.HashPolicy.Header",
        &[("header_name", Honoured)],
    ),
    (
        "envoy.config.route.v3.RouteAction.HashPolicy.ConnectionProperties",
        &[("source_ip", Honoured)],
    ),
    (
        "envoy.config.route.v3.RouteAction.RequestMirrorPolicy",
        &[
            ("cluster", Honoured),
            ("runtime_fraction", Honoured),
            ("disable_shadow_host_suffix_append", Honoured),
        ],
    ),
    (
        "envoy.config.core.v3.RuntimeFractionalPercent",
        &[
            ("default_value", Honoured),
            ("runtime_key", Ignored("nothing overrides the default here")),
        ],
    ),
    (
        "envoy.type.v3.FractionalPercent",
        &[("numerator", Honoured), ("denominator", Honoured)],
    ),
    ("envoy.type.v3.Percent", &[("value", Honoured)]),
    (
        "envoy.config.route.v3.RetryPolicy",
        &[
            ("retry_on", Honoured),
            ("num_retries", Honoured),
            ("per_try_timeout", Honoured),
            ("retriable_status_codes", Honoured),
            ("retry_host_predicate", Honoured),
            (
                "host_selection_retry_max_attempts",
                Ignored("another endpoint is always taken"),
            ),
        ],
    ),
    (
        "envoy.config.route.v3.RetryPolicy.RetryHostPredicate",
        &[
            ("name", Honoured),
            (
                "typed_config(envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate)",
                Honoured,
            ),
        ],
    ),
    (
        "envoy.config.core.v3.HeaderValueOption",
        &[
            ("header", Honoured),
            ("append", Honoured),
            ("append_action", Honoured),
        ],
    ),
    (
        "envoy.config.core.v3.HeaderValue",
        &[("key", Honoured), ("value", Honoured)],
    ),
    // What may have nothing in it.
    ("envoy.config.core.v3.HealthCheck.TcpHealthCheck", &[]),
    ("envoy.config.core.v3.Http1ProtocolOptions", &[]),
    ("envoy.config.core.v3.Http2ProtocolOptions", &[]),
    ("envoy.extensions.filters.http.router.v3.Router", &[]),
    (
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        &[],
    ),
    (
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
        &[],
    ),
    // Where something comes from.
    (
        "envoy.config.core.v3.ConfigSource",
        &[
            ("ads", SOURCE),
            ("self", SOURCE),
            ("api_config_source.**", SOURCE),
            (
                "initial_fetch_timeout",
                Ignored("what does not come is waited for 15 s"),
            ),
            ("resource_api_version", SOURCE),
        ],
    ),
    (
        "envoy.config.core.v3.SelfConfigSource",
        &[("transport_api_version", SOURCE)],
    ),
];
