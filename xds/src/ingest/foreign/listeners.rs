//! Listeners and their filter chains.
//!
//! A chain with a TLS context ends TLS; one with server names and without a context relays it as it is; one without either
//! takes bytes or HTTP as they come. Every listener is one for workloads: what a mesh listener adds (who is a
//! peer, what is exported to it, own backends alone) nobody has said. Whoever a context lets in by its
//! certificate is the first rule of a chain, where it came from the second; RBAC narrows both.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use zeugma_core::identity::{IdPattern, TrustDomain};
use zeugma_core::names::{HostPattern, SniTarget};
use zeugma_core::snapshot::{HashOn, HostTable, Listener, Role};

use super::at::At;
use super::rbac::{Filter, Kind};
use super::routes::{self, ReadRoutes};
use super::tls::{Inside, downstream};
use super::{STREAM_IDLE, duration, over_tcp};
use crate::pb::{self, core, hcm, http_rbac, listener, network_rbac, percent, tcp_proxy, tls};

/// Envoy's default.
const TCP_IDLE: Duration = Duration::from_secs(60 * 60);
/// No limit, where a limit has to be written.
const NO_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// What a chain is called that no server name asks for.
const REST: &str = "rest";
/// Any address.
const ANYWHERE: [&str; 2] = ["0.0.0.0/0", "::/0"];

/// A listener, its chains aside.
#[derive(Debug)]
pub(super) struct ReadListener {
    pub socket: Listener,
    pub chains: Vec<ReadChain>,
}

/// A filter chain.
#[derive(Debug)]
pub(super) struct ReadChain {
    pub label: String,
    /// What it is asked for by.
    asked: String,
    /// Where it stands, for messages.
    pub place: String,
    /// The names that TLS asks for it by, each with its port in Istio's form.
    pub names: Vec<(HostPattern, Option<u16>)>,
    /// Where callers may come from; empty: anywhere.
    pub sources: Vec<IpNet>,
    pub tls: Tls,
    /// Whether what its TLS names is looked at, and before it is told apart.
    pub has_sni: bool,
    pub filters: Vec<Filter>,
    pub to: ChainTo,
}

/// What a chain does with TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tls {
    /// It takes whatever comes.
    Nothing,
    /// It relays it.
    Passed,
    /// It ends it, for these.
    Ended(Vec<IdPattern>),
}

/// What is inside a chain's connections.
#[derive(Debug)]
pub(super) enum ChainTo {
    Bytes {
        cluster: String,
        idle: Duration,
        hash: Option<HashOn>,
    },
    Http {
        routes: Routes,
        filters: Vec<(String, Filter)>,
        idle: Duration,
        /// Whether no path may be passed on that servers read differently.
        clear_paths: bool,
    },
}

/// The routes of a connection.
#[derive(Debug)]
pub(super) enum Routes {
    Named(String),
    Written(ReadRoutes),
}

/// Reads a listener.
pub(super) fn read(
    listener: &listener::Listener,
    own: &TrustDomain,
) -> Result<ReadListener, String> {
    let at = At::Root;
    over_tcp(listener.address.as_ref(), &at.field("address"))?;
    let address = pb::from_socket(listener.address.as_ref());
    let address = address.map_err(|why| at.field("address").why(why))?;
    let mut proxies = Vec::new();
    let mut is_inspected = false;
    for (nth, filter) in listener.listener_filters.iter().enumerate() {
        let at = at.nth("listener_filters", nth);
        let at = at.field("typed_config");
        let Some(listener::listener_filter::ConfigType::TypedConfig(any)) = &filter.config_type
        else {
            return at.refuse("it is missing");
        };
        if pb::unpack::<pb::ProxyProtocol>(any).is_ok() {
            proxies = ANYWHERE.iter().filter_map(|net| net.parse().ok()).collect();
        } else {
            is_inspected = true;
            at.must(
                pb::unpack::<pb::TlsInspector>(any).is_ok(),
                format!(
                    "`{}` is neither TlsInspector nor ProxyProtocol",
                    any.type_url
                ),
            )?;
        }
    }
    let mut chains = Vec::new();
    for (nth, chain) in listener.filter_chains.iter().enumerate() {
        let at = at.nth("filter_chains", nth);
        chains.push(read_chain(chain, (own, address.port()), &at)?);
    }
    if let Some(chain) = &listener.default_filter_chain {
        let place = at.field("default_filter_chain");
        if let Some(limited) = chains.iter().find(|chain| !chain.sources.is_empty()) {
            return place.refuse(format!(
                "`{}` takes callers of some networks, and others would come here instead of being refused",
                limited.place
            ));
        }
        (place.field("filter_chain_match")).must(
            chain.filter_chain_match.is_none(),
            "it is what nothing matched",
        )?;
        chains.push(read_chain(chain, (own, address.port()), &place)?);
    }
    at.field("filter_chains")
        .must(!chains.is_empty(), "it has none")?;
    unique(&mut chains);
    for chain in &mut chains {
        chain.has_sni = is_inspected && chain.tls != Tls::Nothing;
    }
    Ok(ReadListener {
        socket: Listener {
            name: listener.name.as_str().into(),
            address,
            role: Role::Workloads,
            only: None,
            hosts: HostTable::literal(),
            sources: Vec::new(),
            handshakes: None,
            proxies,
        },
        chains,
    })
}

/// Gives each chain a name of its own: they are known by it, wherever in the listener they stand.
fn unique(chains: &mut [ReadChain]) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for chain in &*chains {
        *counts.entry(chain.label.clone()).or_default() += 1;
    }
    for chain in chains {
        if counts.get(&chain.label).is_some_and(|count| *count > 1) {
            chain.label = format!("{}#{}", chain.label, chain.asked);
        }
    }
}

fn read_chain(
    chain: &listener::FilterChain,
    (own, port): (&TrustDomain, u16),
    at: &At<'_>,
) -> Result<ReadChain, String> {
    let matched = read_match(
        chain.filter_chain_match.as_ref(),
        port,
        &at.field("filter_chain_match"),
    )?;
    let Some((last, before)) = chain.filters.split_last() else {
        return at.field("filters").refuse("it has none");
    };
    let mut filters = Vec::new();
    for (nth, filter) in before.iter().enumerate() {
        let at = at.nth("filters", nth);
        let at = at.field("typed_config");
        let any = typed(filter, &at)?;
        let rbac = pb::unpack::<network_rbac::Rbac>(any);
        let rbac = rbac.map_err(|why| at.why(format!("before the last one RBAC alone: {why}")))?;
        filters.push(Filter::read(
            rbac.rules.as_ref(),
            Kind::Network,
            &at.field("rules"),
        )?);
    }
    let place = at.nth("filters", before.len());
    let place = place.field("typed_config");
    let any = typed(last, &place)?;
    let (to, inside) = if any.type_url == <tcp_proxy::TcpProxy as prost::Name>::type_url() {
        let proxy = pb::unpack(any).map_err(|why| place.why(why))?;
        (read_tcp(&proxy, &place)?, Inside::Bytes)
    } else {
        let manager = pb::unpack(any).map_err(|why| place.why(why))?;
        (read_http(&manager, &place)?, Inside::Http)
    };
    let place = at.field("transport_socket");
    let tls = match context(chain.transport_socket.as_ref(), &place)? {
        Some(context) => Tls::Ended(downstream(
            &context,
            inside,
            own,
            &place.field("typed_config"),
        )?),
        None if !matched.names.is_empty() || matched.is_tls => Tls::Passed,
        None => Tls::Nothing,
    };
    at.field("transport_socket").must(
        !(tls == Tls::Passed && inside == Inside::Http),
        "it is missing: what is inside TLS that is not ended cannot be told apart",
    )?;
    // No other chain has one of its server names, so the first of them tells it apart.
    let names = chain
        .filter_chain_match
        .iter()
        .flat_map(|one| &one.server_names);
    let asked = names.min().map_or(REST, String::as_str);
    let label = if chain.name.is_empty() {
        asked
    } else {
        &chain.name
    };
    Ok(ReadChain {
        label: label.to_owned(),
        asked: asked.to_owned(),
        place: at.to_string(),
        names: matched.names,
        sources: matched.sources,
        tls,
        has_sni: false,
        filters,
        to,
    })
}

#[derive(Debug, Default)]
struct Matched {
    names: Vec<(HostPattern, Option<u16>)>,
    sources: Vec<IpNet>,
    is_tls: bool,
}

fn read_match(
    one: Option<&listener::FilterChainMatch>,
    port: u16,
    at: &At<'_>,
) -> Result<Matched, String> {
    let mut matched = Matched::default();
    let Some(one) = one else {
        return Ok(matched);
    };
    at.field("destination_port").must(
        one.destination_port
            .is_none_or(|to| to.value == u32::from(port)),
        "connections come to the listener's own port",
    )?;
    for (nth, name) in one.server_names.iter().enumerate() {
        let read = match SniTarget::parse(name) {
            Ok(target) => Ok((HostPattern::Exact(target.host), target.port)),
            Err(_) => HostPattern::parse(name).map(|pattern| (pattern, None)),
        };
        let at = at.nth("server_names", nth);
        matched
            .names
            .push(read.map_err(|error| at.why(format!("`{name}`: {error}")))?);
    }
    for (nth, range) in one.source_prefix_ranges.iter().enumerate() {
        let at = at.nth("source_prefix_ranges", nth);
        matched
            .sources
            .push(pb::from_cidr(range).map_err(|why| at.why(why))?);
    }
    match one.transport_protocol.as_str() {
        "" => {}
        "tls" => matched.is_tls = true,
        other => {
            return at.field("transport_protocol").refuse(format!(
                "`{other}` is none that chains are told apart by, but `tls`"
            ));
        }
    }
    (at.field("application_protocols")).must(
        one.application_protocols.is_empty(),
        "chains are told apart by server names alone",
    )?;
    Ok(matched)
}

fn typed<'f>(filter: &'f listener::Filter, at: &At<'_>) -> Result<&'f pb::Any, String> {
    match &filter.config_type {
        Some(listener::filter::ConfigType::TypedConfig(any)) => Ok(any),
        Some(listener::filter::ConfigType::ConfigDiscovery(_)) | None => at.refuse("it is missing"),
    }
}

fn context(
    socket: Option<&core::TransportSocket>,
    at: &At<'_>,
) -> Result<Option<tls::DownstreamTlsContext>, String> {
    let Some(socket) = socket else {
        return Ok(None);
    };
    let at = at.field("typed_config");
    let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
        return at.refuse("it is missing");
    };
    if pb::unpack::<pb::RawBuffer>(any).is_ok() {
        return Ok(None);
    }
    pb::unpack(any).map(Some).map_err(|why| at.why(why))
}

fn read_tcp(proxy: &tcp_proxy::TcpProxy, at: &At<'_>) -> Result<ChainTo, String> {
    use percent::hash_policy::PolicySpecifier;
    use tcp_proxy::tcp_proxy::ClusterSpecifier;

    let cluster = match &proxy.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => name.clone(),
        Some(ClusterSpecifier::WeightedClusters(_)) => {
            return at
                .field("weighted_clusters")
                .refuse("connections are not split");
        }
        None => return at.field("cluster").refuse("it is missing"),
    };
    let hash = match proxy.hash_policy.as_slice() {
        [] => None,
        [one] if matches!(one.policy_specifier, Some(PolicySpecifier::SourceIp(_))) => {
            Some(HashOn::Source)
        }
        [_, ..] => {
            return at
                .field("hash_policy")
                .refuse("a key is made of the source address alone");
        }
    };
    let idle = idle(
        proxy.idle_timeout.as_ref(),
        TCP_IDLE,
        &at.field("idle_timeout"),
    )?;
    Ok(ChainTo::Bytes {
        cluster,
        idle,
        hash,
    })
}

fn idle(
    timeout: Option<&pb::PbDuration>,
    default: Duration,
    at: &At<'_>,
) -> Result<Duration, String> {
    Ok(match duration(timeout, at)? {
        None => default,
        Some(Duration::ZERO) => NO_TIMEOUT,
        Some(timeout) => timeout,
    })
}

fn read_http(manager: &hcm::HttpConnectionManager, at: &At<'_>) -> Result<ChainTo, String> {
    use hcm::http_connection_manager::{CodecType, ForwardClientCertDetails, RouteSpecifier};

    at.field("codec_type").must(
        manager.codec_type == i32::from(CodecType::Auto),
        "a connection says itself which version it speaks",
    )?;
    let details = ForwardClientCertDetails::try_from(manager.forward_client_cert_details);
    at.field("forward_client_cert_details").must(
        matches!(
            details,
            Ok(ForwardClientCertDetails::Sanitize | ForwardClientCertDetails::SanitizeSet)
        ),
        "what a caller says of itself is never believed",
    )?;
    at.field("merge_slashes").must(
        !manager.merge_slashes,
        "a path is passed on as it came: who is behind would see `//`",
    )?;
    let Some((last, before)) = manager.http_filters.split_last() else {
        return at.field("http_filters").refuse("it has none");
    };
    let mut filters = Vec::new();
    for (nth, filter) in before.iter().enumerate() {
        let at = at.nth("http_filters", nth);
        let at = at.field("typed_config");
        let any = http_typed(filter, &at)?;
        let rbac = pb::unpack::<http_rbac::Rbac>(any);
        let rbac = rbac.map_err(|why| at.why(format!("before the last one RBAC alone: {why}")))?;
        let read = Filter::read(rbac.rules.as_ref(), Kind::Http, &at.field("rules"))?;
        filters.push((filter.name.clone(), read));
    }
    let place = at.nth("http_filters", before.len());
    let place = place.field("typed_config");
    let any = http_typed(last, &place)?;
    let _router: pb::Router = pb::unpack(any).map_err(|why| place.why(why))?;
    let routes = match &manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) => Routes::Named(rds.route_config_name.clone()),
        Some(RouteSpecifier::RouteConfig(config)) => {
            Routes::Written(routes::read(config, &at.field("route_config"))?)
        }
        Some(RouteSpecifier::ScopedRoutes(_)) => {
            return at.field("scoped_routes").refuse("it is not supported");
        }
        None => return at.field("rds").refuse("it is missing, and so are routes"),
    };
    let place = at.field("stream_idle_timeout");
    Ok(ChainTo::Http {
        routes,
        filters,
        idle: idle(manager.stream_idle_timeout.as_ref(), STREAM_IDLE, &place)?,
        clear_paths: manager.normalize_path.is_some_and(|is| is.value),
    })
}

fn http_typed<'f>(filter: &'f hcm::HttpFilter, at: &At<'_>) -> Result<&'f pb::Any, String> {
    match &filter.config_type {
        Some(hcm::http_filter::ConfigType::TypedConfig(any)) => Ok(any),
        Some(hcm::http_filter::ConfigType::ConfigDiscovery(_)) | None => at.refuse("it is missing"),
    }
}
