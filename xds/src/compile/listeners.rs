//! Listeners and routes: who may reach which service.

use std::collections::{BTreeSet, HashMap};

use ipnet::IpNet;
use zeugma_core::snapshot::Failure;

use super::clusters::{ads, common_tls, hash_on, socket};
use super::part::{self, Unmade};
use super::rbac::rules;
use super::{Context, Scope, Service, Services, cluster_name, http_rules, mirror_cluster_name};
use crate::meta::{ChainMeta, CopiesMeta, HashMeta, ListenerMeta, MirrorMeta, RouteMeta};
use crate::model::defaults::{or_secs, retry_on};
use crate::model::scalar::{CAUSES, Text};
use crate::model::{InboundSpec, ListenerSpec, MeshRoute, PolicySpec, ProtocolSpec, RoleSpec};
use crate::parallel;
use crate::pb::core::header_value_option::HeaderAppendAction;
use crate::pb::{self, hcm, http_rbac, listener, network_rbac, percent, rbac, route, tcp_proxy};
use crate::sum::Fnv;

/// What marks a copy between gateways.
const MIRRORED: &str = "x-zeugma-mirror";
/// The chain that takes plaintext HTTP.
const PLAINTEXT: &str = "plaintext";
/// What the name of a chain begins with that refuses the names of a service.
pub(crate) const HIDDEN: &str = "hidden|";
/// What a server name begins with that names a port too.
pub(crate) const OF_PORT: &str = "outbound_.";
/// The chain of a listener that leads nowhere.
pub(crate) const NOBODY: &str = "nobody";
/// The HTTP filters that a virtual host's rules replace.
pub(crate) const DENY: &str = "dev.zeugma.deny";
/// See [`DENY`].
pub(crate) const ALLOW: &str = "dev.zeugma.allow";

/// One listener, and what `of` makes of each of its chains; `None` for a one-route listener whose
/// route this gateway does not carry.
pub(crate) fn listener<R: Send>(
    context: Context<'_>,
    services: &Services<'_>,
    name: &str,
    of: impl Fn(Unmade<'_, listener::FilterChain>) -> R + Sync,
) -> Option<(listener::Listener, Vec<R>)> {
    let spec = context.gateway.spec.listeners.get(name)?;
    let only = match &spec.route {
        None => None,
        Some(reference) => {
            let id = reference.0.id(&context.gateway.namespace);
            let only = services.of_route(&id).next()?;
            Some(only)
        }
    };
    let mut planned = match only {
        Some(service) => vec![Chain::PlainTcp(service)],
        None => chains(services, spec),
    };
    if planned.is_empty() {
        planned.push(Chain::Nobody);
    }
    let chains = parallel::map(planned, |planned| {
        let make = || {
            let mut chain = planned.build(context, services, name, spec.role);
            if let Some(matched) = &mut chain.filter_chain_match {
                let cidrs =
                    |nets: &[Text<IpNet>]| nets.iter().map(|net| pb::cidr(&net.0)).collect();
                matched.source_prefix_ranges = cidrs(&spec.sources);
                matched.direct_source_prefix_ranges = cidrs(proxies(spec));
            }
            chain
        };
        of(Unmade::new(name, &|| planned.input(services, name), &make))
    });
    let inspects = only.is_none();
    let listener = listener::Listener {
        name: name.to_owned(),
        address: Some(pb::address(
            &spec.address.0.ip().to_string(),
            spec.address.0.port(),
        )),
        listener_filters: (spec.proxy_protocol.as_ref().map(|_| proxy_header()))
            .into_iter()
            .chain(inspects.then(inspector))
            .collect(),
        listener_filters_timeout: pb::duration(or_secs(
            context.gateway.spec.limits.handshake_timeout.as_ref(),
            10,
        )),
        metadata: Some(pb::metadata(&ListenerMeta {
            mesh: spec.role == RoleSpec::Mesh,
            only: only.map(|service| service.id.clone()),
            sources: spec.sources.iter().map(|net| net.0.to_string()).collect(),
            handshakes_per_source: spec.handshakes.per_source.as_ref().map(|rate| rate.0.get()),
            proxies: (proxies(spec).iter())
                .map(|net| net.0.to_string())
                .collect(),
        })),
        ..Default::default()
    };
    Some((listener, chains))
}

fn inspector() -> listener::ListenerFilter {
    listener_filter(
        "envoy.filters.listener.tls_inspector",
        pb::pack(&pb::TlsInspector::default()),
    )
}

/// Before any other: what they look at comes behind it.
fn proxy_header() -> listener::ListenerFilter {
    listener_filter(
        "envoy.filters.listener.proxy_protocol",
        pb::pack(&pb::ProxyProtocol::default()),
    )
}

fn listener_filter(name: &str, config: pb::Any) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// The networks that send PROXY headers to a listener.
fn proxies(spec: &ListenerSpec) -> &[Text<IpNet>] {
    (spec.proxy_protocol.as_ref()).map_or(&[], |proxy| proxy.trusted.as_slice())
}

/// Whether a service is reachable by name on a listener of this role.
fn is_reachable(service: &Service<'_>, role: RoleSpec) -> bool {
    match role {
        RoleSpec::Mesh => service.export != super::Export::Nobody,
        RoleSpec::Workloads => true,
    }
}

const fn scope(role: RoleSpec) -> Scope {
    match role {
        RoleSpec::Mesh => Scope::Own,
        RoleSpec::Workloads => Scope::Outbound,
    }
}

/// A filter chain that is to be made.
enum Chain<'s> {
    BySni(&'s Service<'s>),
    BareHttp(&'s Service<'s>),
    Plaintext,
    PlainTcp(&'s Service<'s>),
    /// Refuses these names.
    Hidden(&'s Service<'s>, Vec<String>),
    /// Refuses everybody: Envoy takes no listener without a chain.
    Nobody,
}

impl Chain<'_> {
    /// See [`Unmade::input`].
    fn input(&self, services: &Services<'_>, listener: &str) -> u128 {
        let mut fnv = Fnv::default();
        fnv.add(listener.as_bytes());
        let kind = match self {
            Self::BySni(_) => 0xf0,
            Self::BareHttp(_) => 0xf1,
            Self::Plaintext => 0xf2,
            Self::PlainTcp(_) => 0xf3,
            Self::Hidden(..) => 0xf4,
            Self::Nobody => 0xf5,
        };
        fnv.add(&[0xff, kind]);
        match self {
            Self::BySni(service) | Self::BareHttp(service) | Self::PlainTcp(service) => {
                part::add(services, service, &mut fnv);
            }
            Self::Hidden(service, names) => {
                part::add(services, service, &mut fnv);
                for name in names {
                    fnv.add(name.as_bytes());
                    fnv.add(&[0xff]);
                }
            }
            Self::Plaintext | Self::Nobody => {}
        }
        fnv.end()
    }

    fn build(
        &self,
        context: Context<'_>,
        services: &Services<'_>,
        name: &str,
        role: RoleSpec,
    ) -> listener::FilterChain {
        let copied = match self {
            Self::BySni(service) | Self::PlainTcp(service)
                if service.port.protocol == ProtocolSpec::Tcp =>
            {
                let copies = copies(context, services, service).into_iter();
                copies.map(|(copies, _)| copies).collect()
            }
            Self::BySni(_)
            | Self::BareHttp(_)
            | Self::Plaintext
            | Self::PlainTcp(_)
            | Self::Hidden(..)
            | Self::Nobody => Vec::new(),
        };
        let mut chain = match self {
            Self::BySni(service) => by_sni(context, service, name, role),
            Self::BareHttp(service) => bare_http(service, name, role),
            Self::Plaintext => listener::FilterChain {
                name: PLAINTEXT.to_owned(),
                filter_chain_match: Some(listener::FilterChainMatch {
                    transport_protocol: "raw_buffer".to_owned(),
                    ..Default::default()
                }),
                filters: vec![http_manager(&all_hosts(name), false)],
                ..Default::default()
            },
            Self::PlainTcp(service) => plain_tcp(context, service, name),
            Self::Hidden(service, names) => {
                let cluster = cluster_name(scope(role), &service.id);
                let matched = listener::FilterChainMatch {
                    server_names: names.clone(),
                    transport_protocol: "tls".to_owned(),
                    ..Default::default()
                };
                closed(&[HIDDEN, &service.id].concat(), cluster, matched)
            }
            Self::Nobody => closed(NOBODY, NOBODY.to_owned(), Default::default()),
        };
        if !copied.is_empty() {
            chain.metadata = Some(pb::metadata(&ChainMeta { mirrors: copied }));
        }
        chain
    }
}

fn chains<'s>(services: &'s Services<'s>, spec: &ListenerSpec) -> Vec<Chain<'s>> {
    let reachable = || (services.list.iter()).filter(|service| is_reachable(service, spec.role));
    let mut chains: Vec<Chain<'s>> = reachable().map(Chain::BySni).collect();
    let mut bare: BTreeSet<String> = BTreeSet::new();
    for service in reachable() {
        if is_bare_http(service) && bare.insert(service.route.id()) {
            chains.push(Chain::BareHttp(service));
        }
    }
    let has_http = reachable().any(|service| service.port.protocol == ProtocolSpec::Http);
    if spec.role == RoleSpec::Workloads && has_http {
        chains.push(Chain::Plaintext);
    }
    if spec.role == RoleSpec::Mesh {
        chains.extend(hidden(services));
    }
    chains
}

/// The services that are exported to nobody and have a name that a wildcard of an exported one would
/// take: the name that fits best is the one that is meant, also where it is refused.
fn hidden<'s>(services: &'s Services<'s>) -> Vec<Chain<'s>> {
    let (open, closed): (Vec<_>, Vec<_>) =
        (services.list.iter()).partition(|service| is_reachable(service, RoleSpec::Mesh));
    let mut wildcards = BTreeSet::new();
    for service in &open {
        wildcards.extend(service.hosts().into_iter().filter(|host| is_wildcard(host)));
    }
    if wildcards.is_empty() {
        return Vec::new();
    }
    let mut taken: BTreeSet<String> = open.iter().flat_map(|service| service.hosts()).collect();
    let mut chains = Vec::new();
    for service in closed {
        let mut names = Vec::new();
        for host in service.hosts() {
            if !is_below(&host, &wildcards) {
                continue;
            }
            if !is_wildcard(&host) {
                names.push(of_port(service, &host));
            }
            if taken.insert(host.clone()) {
                names.push(host);
            }
        }
        if !names.is_empty() {
            chains.push(Chain::Hidden(service, names));
        }
    }
    chains
}

fn is_wildcard(host: &str) -> bool {
    host.starts_with("*.")
}

/// The server name of a host and the port of one of its services.
fn of_port(service: &Service<'_>, host: &str) -> String {
    let mut port = itoa::Buffer::new();
    [OF_PORT, port.format(service.port.port), "_._.", host].concat()
}

/// Whether one of `wildcards` takes what `host` names.
fn is_below(host: &str, wildcards: &BTreeSet<String>) -> bool {
    let mut rest = host;
    while let Some((_, above)) = rest.split_once('.') {
        if wildcards.contains(&["*.", above].concat()) {
            return true;
        }
        rest = above;
    }
    false
}

/// Whether a bare host leads to this service once its authority names the port.
fn is_bare_http(service: &Service<'_>) -> bool {
    !service.is_bare
        && service.route.ports().len() > 1
        && service.port.protocol == ProtocolSpec::Http
        && service.inbound == InboundSpec::Terminate
}

fn by_sni(
    context: Context<'_>,
    service: &Service<'_>,
    name: &str,
    role: RoleSpec,
) -> listener::FilterChain {
    let mut server_names = if service.is_bare {
        service.hosts()
    } else {
        Vec::new()
    };
    server_names.extend((service.exact_hosts()).map(|host| of_port(service, &host)));
    let terminates = service.inbound == InboundSpec::Terminate;
    let filters = if terminates && service.port.protocol == ProtocolSpec::Http {
        vec![http_manager(&one_service(name, &service.id), true)]
    } else {
        tcp_filters(context, service, name, scope(role))
    };
    listener::FilterChain {
        name: service.id.clone(),
        filter_chain_match: Some(listener::FilterChainMatch {
            server_names,
            transport_protocol: "tls".to_owned(),
            ..Default::default()
        }),
        filters,
        transport_socket: terminates.then(downstream_tls),
        ..Default::default()
    }
}

fn bare_http(service: &Service<'_>, name: &str, role: RoleSpec) -> listener::FilterChain {
    debug_assert!(is_reachable(service, role));
    listener::FilterChain {
        name: service.route.id(),
        filter_chain_match: Some(listener::FilterChainMatch {
            server_names: service.hosts(),
            transport_protocol: "tls".to_owned(),
            ..Default::default()
        }),
        filters: vec![http_manager(&one_service(name, &service.route.id()), true)],
        transport_socket: Some(downstream_tls()),
        ..Default::default()
    }
}

fn plain_tcp(context: Context<'_>, service: &Service<'_>, name: &str) -> listener::FilterChain {
    listener::FilterChain {
        name: service.id.clone(),
        filter_chain_match: Some(listener::FilterChainMatch::default()),
        filters: tcp_filters(context, service, name, Scope::Outbound),
        ..Default::default()
    }
}

/// What lets nobody in.
fn closed(
    name: &str,
    cluster: String,
    matched: listener::FilterChainMatch,
) -> listener::FilterChain {
    let nobody = network_rbac::Rbac {
        rules: Some(rbac::Rbac {
            action: rbac::rbac::Action::Allow.into(),
            ..Default::default()
        }),
        stat_prefix: ALLOW.to_owned(),
        ..Default::default()
    };
    let nowhere = tcp_proxy::TcpProxy {
        stat_prefix: name.to_owned(),
        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(cluster)),
        ..Default::default()
    };
    listener::FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(matched),
        filters: vec![
            filter(ALLOW, &nobody),
            filter("envoy.filters.network.tcp_proxy", &nowhere),
        ],
        ..Default::default()
    }
}

fn downstream_tls() -> pb::core::TransportSocket {
    socket(
        "envoy.transport_sockets.tls",
        &pb::tls::DownstreamTlsContext {
            common_tls_context: Some(common_tls(Vec::new())),
            require_client_certificate: pb::boolean(true),
            disable_stateful_session_resumption: true,
            session_ticket_keys_type: Some(
                pb::tls::downstream_tls_context::SessionTicketKeysType::DisableStatelessSessionResumption(true),
            ),
            ..Default::default()
        },
    )
}

fn filter<M: prost::Message + prost::Name>(name: &str, message: &M) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pb::pack(message))),
    }
}

fn tcp_filters(
    context: Context<'_>,
    service: &Service<'_>,
    name: &str,
    scope: Scope,
) -> Vec<listener::Filter> {
    let (allow, deny) = rules(
        context.model,
        context.gateway,
        context.node,
        (service.route, ProtocolSpec::Tcp),
        name,
    );
    let rbac = |name: &str, rules: rbac::Rbac| {
        let (rules, shadow_rules) = held(service, rules);
        filter(
            name,
            &network_rbac::Rbac {
                rules,
                shadow_rules,
                stat_prefix: name.to_owned(),
                ..Default::default()
            },
        )
    };
    vec![
        rbac(DENY, deny),
        rbac(ALLOW, allow),
        filter(
            "envoy.filters.network.tcp_proxy",
            &tcp_proxy::TcpProxy {
                stat_prefix: service.id.clone(),
                idle_timeout: pb::duration(or_secs(
                    service.route.spec.timeouts.idle.as_ref(),
                    3600,
                )),
                // What no endpoint saw is tried on each of them.
                max_connect_attempts: pb::number(service.endpoints(scope)),
                hash_policy: hash_on(&service.route.spec, ProtocolSpec::Tcp)
                    .map(|_| source_hash())
                    .into_iter()
                    .collect(),
                cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(
                    cluster_name(scope, &service.id),
                )),
                ..Default::default()
            },
        ),
    ]
}

/// The rules that hold, and those that are looked at alone.
fn held(service: &Service<'_>, rules: rbac::Rbac) -> (Option<rbac::Rbac>, Option<rbac::Rbac>) {
    match service.route.spec.policy {
        Some(PolicySpec::Audit) => (None, Some(rules)),
        Some(PolicySpec::Enforce) | None => (Some(rules), None),
    }
}

/// The routes of one chain.
fn one_service(listener: &str, id: &str) -> String {
    [listener, "|", id].concat()
}

/// The routes of a listener's plaintext chain.
fn all_hosts(listener: &str) -> String {
    format!("{listener}|*")
}

fn http_manager(routes: &str, has_identity: bool) -> listener::Filter {
    let http_filter = |name: &str, message: pb::Any| hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(message)),
        ..Default::default()
    };
    let forward = if has_identity {
        hcm::http_connection_manager::ForwardClientCertDetails::SanitizeSet
    } else {
        hcm::http_connection_manager::ForwardClientCertDetails::Sanitize
    };
    filter(
        "envoy.filters.network.http_connection_manager",
        &hcm::HttpConnectionManager {
            stat_prefix: routes.to_owned(),
            route_specifier: Some(hcm::http_connection_manager::RouteSpecifier::Rds(
                hcm::Rds {
                    config_source: Some(ads()),
                    route_config_name: routes.to_owned(),
                },
            )),
            forward_client_cert_details: forward.into(),
            set_current_client_cert_details: has_identity.then(|| {
                hcm::http_connection_manager::SetCurrentClientCertDetails {
                    uri: true,
                    ..Default::default()
                }
            }),
            upgrade_configs: vec![hcm::http_connection_manager::UpgradeConfig {
                upgrade_type: "websocket".to_owned(),
                ..Default::default()
            }],
            strip_trailing_host_dot: true,
            // Envoy compares rules with the path as it came; ours look through all of this.
            normalize_path: pb::boolean(true),
            merge_slashes: true,
            path_with_escaped_slashes_action:
                hcm::http_connection_manager::PathWithEscapedSlashesAction::RejectRequest.into(),
            http_filters: vec![
                http_filter(DENY, pb::pack(&http_rbac::Rbac::default())),
                http_filter(ALLOW, pb::pack(&http_rbac::Rbac::default())),
                http_filter(
                    "envoy.filters.http.router",
                    pb::pack(&pb::Router::default()),
                ),
            ],
            ..Default::default()
        },
    )
}

/// A virtual host that is to be made.
struct Host<'s> {
    service: &'s Service<'s>,
    listener: &'s str,
    scope: Scope,
    domains: Vec<String>,
}

impl Host<'_> {
    /// See [`Unmade::input`].
    fn input(&self, services: &Services<'_>) -> u128 {
        let mut fnv = Fnv::default();
        fnv.add(self.listener.as_bytes());
        fnv.add(&[0xfe]);
        fnv.add(self.scope.as_str().as_bytes());
        for domain in &self.domains {
            fnv.add(&[0xff]);
            fnv.add(domain.as_bytes());
        }
        part::add(services, self.service, &mut fnv);
        fnv.end()
    }
}

/// Every route configuration that the listeners name, and what `of` makes of its virtual hosts.
pub(crate) fn routes<R: Send>(
    context: Context<'_>,
    services: &Services<'_>,
    of: impl Fn(Unmade<'_, route::VirtualHost>) -> R + Sync,
) -> Vec<(String, Vec<R>)> {
    let mut configs: Vec<(String, usize)> = Vec::new();
    let mut hosts: Vec<Host<'_>> = Vec::new();
    for (name, planned) in planned_routes(context, services) {
        configs.push((name, planned.len()));
        hosts.extend(planned);
    }
    let each = |host: Host<'_>| {
        let make = || virtual_host(context, services, &host);
        of(Unmade::new(host.listener, &|| host.input(services), &make))
    };
    let mut made = parallel::map(hosts, each).into_iter();
    (configs.into_iter())
        .map(|(name, len)| (name, made.by_ref().take(len).collect()))
        .collect()
}

fn planned_routes<'s>(
    context: Context<'s>,
    services: &'s Services<'s>,
) -> Vec<(String, Vec<Host<'s>>)> {
    let mut configs = Vec::new();
    for listener in context.gateway.listeners_as_written() {
        let Some(spec) = context.gateway.spec.listeners.get(listener) else {
            continue;
        };
        if spec.route.is_some() {
            continue;
        }
        let http = || {
            (services.list.iter())
                .filter(|service| is_reachable(service, spec.role))
                .filter(|service| service.port.protocol == ProtocolSpec::Http)
        };
        let host = |service: &'s Service<'s>, domains| Host {
            service,
            listener,
            scope: scope(spec.role),
            domains,
        };
        for service in http().filter(|service| service.inbound == InboundSpec::Terminate) {
            configs.push((
                one_service(listener, &service.id),
                vec![host(service, vec!["*".to_owned()])],
            ));
        }
        let mut bare: Vec<(String, Vec<Host<'s>>)> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for service in http().filter(|service| is_bare_http(service)) {
            let id = service.route.id();
            let planned = host(service, domains(service));
            let at = *known.entry(id).or_insert(bare.len());
            match bare.get_mut(at) {
                Some((_, hosts)) => hosts.push(planned),
                None => bare.push((one_service(listener, &service.route.id()), vec![planned])),
            }
        }
        configs.extend(bare);
        let all: Vec<Host<'s>> = http()
            .map(|service| host(service, domains(service)))
            .collect();
        if spec.role == RoleSpec::Workloads && !all.is_empty() {
            configs.push((all_hosts(listener), all));
        }
    }
    configs
}

/// What a workload that balances by itself calls a service by, and where its requests go: a proxy's own
/// rules are of no use there.
pub(crate) fn on_demand(
    context: Context<'_>,
    services: &Services<'_>,
) -> Vec<(Vec<String>, route::VirtualHost)> {
    let http = (services.list.iter()).filter(|one| one.port.protocol == ProtocolSpec::Http);
    let called = |service| {
        let names = domains(service)
            .into_iter()
            .filter(|name| !name.starts_with('*'));
        let host = route::VirtualHost {
            name: service.id.clone(),
            domains: vec!["*".to_owned()],
            routes: http_routes(context, services, service, Scope::Outbound),
            ..Default::default()
        };
        (names.collect(), host)
    };
    http.map(called).collect()
}

/// The authorities that name a service.
fn domains(service: &Service<'_>) -> Vec<String> {
    let mut domains = Vec::new();
    for host in service.hosts() {
        domains.push(format!("{host}:{}", service.port.port));
        if service.is_bare {
            domains.push(host);
        }
    }
    domains
}

fn virtual_host(
    context: Context<'_>,
    services: &Services<'_>,
    host: &Host<'_>,
) -> route::VirtualHost {
    let Host {
        service,
        listener,
        scope,
        ref domains,
    } = *host;
    let (allow, deny) = rules(
        context.model,
        context.gateway,
        context.node,
        (service.route, ProtocolSpec::Http),
        listener,
    );
    let per_route = |rules: rbac::Rbac| {
        let (rules, shadow_rules) = held(service, rules);
        pb::pack(&http_rbac::RbacPerRoute {
            rbac: Some(http_rbac::Rbac {
                rules,
                shadow_rules,
                ..Default::default()
            }),
        })
    };
    route::VirtualHost {
        name: service.id.clone(),
        domains: domains.clone(),
        routes: http_routes(context, services, service, scope),
        typed_per_filter_config: HashMap::from([
            (ALLOW.to_owned(), per_route(allow)),
            (DENY.to_owned(), per_route(deny)),
        ]),
        ..Default::default()
    }
}

/// What is the same for all routes of a service.
pub(super) struct Common {
    pub mirrors: Vec<MirrorMeta>,
    pub action: route::RouteAction,
}

fn http_routes(
    context: Context<'_>,
    services: &Services<'_>,
    service: &Service<'_>,
    scope: Scope,
) -> Vec<route::Route> {
    let common = common(context, services, service, scope);
    if !service.route.spec.rules.is_empty() {
        return http_rules::routes(services, service, scope, &common);
    }
    vec![route::Route {
        r#match: Some(route::RouteMatch {
            path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
            ..Default::default()
        }),
        metadata: Some(pb::metadata(&RouteMeta {
            mirrors: common.mirrors,
            rule: None,
        })),
        action: Some(route::route::Action::Route(common.action)),
        ..Default::default()
    }]
}

fn common(
    context: Context<'_>,
    services: &Services<'_>,
    service: &Service<'_>,
    scope: Scope,
) -> Common {
    let mut meta = Vec::new();
    let mut policies = Vec::new();
    for (copies, to) in copies(context, services, service) {
        policies.push(mirror_policy(&copies, to));
        meta.push(copies.mirror);
    }
    let timeouts = &service.route.spec.timeouts;
    Common {
        mirrors: meta,
        action: route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
                cluster_name(scope, &service.id),
            )),
            // Streams have no total limit.
            timeout: pb::duration(std::time::Duration::ZERO),
            idle_timeout: pb::duration(or_secs(timeouts.idle.as_ref(), 3600)),
            retry_policy: Some(retry_policy(&service.route.spec)),
            request_mirror_policies: policies,
            hash_policy: hash_policy(&service.route.spec).into_iter().collect(),
            ..Default::default()
        },
    }
}

/// Where copies go, as far as their head is concerned.
#[derive(Clone, Copy)]
enum CopiesTo {
    /// Endpoints of this cluster.
    OwnEndpoints,
    /// A peer's gateway, some of them at least.
    Peers,
}

/// The copies in Envoy's words: marked as ours are, so that nobody copies them again.
fn mirror_policy(copies: &CopiesMeta, to: CopiesTo) -> route::route_action::RequestMirrorPolicy {
    use pb::header_mutation::Action;

    let mark = pb::core::HeaderValueOption {
        header: Some(pb::core::HeaderValue {
            key: MIRRORED.to_owned(),
            value: "1".to_owned(),
            ..Default::default()
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..Default::default()
    };
    route::route_action::RequestMirrorPolicy {
        cluster: copies.cluster.clone(),
        host_rewrite_literal: match to {
            CopiesTo::OwnEndpoints => String::new(),
            // It answers 421 to another than that of the SNI. One host is for all copies.
            CopiesTo::Peers => copies.mirror.host.clone(),
        },
        // The host stays.
        disable_shadow_host_suffix_append: true,
        request_headers_mutations: vec![pb::HeaderMutation {
            action: Some(Action::Append(mark)),
        }],
        runtime_fraction: Some(pb::core::RuntimeFractionalPercent {
            default_value: Some(millionths(copies.share)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The copies of what a service carries.
fn copies(
    context: Context<'_>,
    services: &Services<'_>,
    service: &Service<'_>,
) -> Vec<(CopiesMeta, CopiesTo)> {
    let specs = &service.route.spec.mirror;
    let mirrors = service.mirrors(context, services).into_iter();
    mirrors
        .filter_map(|(at, to, peer)| {
            let placed = specs.get(at)?;
            let spec = &placed.value;
            let timeout = or_secs(spec.timeout.as_ref(), 2).as_millis();
            let host = to.route.first_host().map(|host| host.to_string());
            let of_peers = || to.targets.iter().any(|target| target.peer.is_some());
            let goes_to = if peer.is_some() || of_peers() {
                CopiesTo::Peers
            } else {
                CopiesTo::OwnEndpoints
            };
            let copies = CopiesMeta {
                cluster: mirror_cluster_name(to, peer.as_deref()),
                share: spec.percent.as_ref().map_or(1.0, |share| share.0.0),
                mirror: MirrorMeta {
                    route: to.route.id(),
                    host: host.unwrap_or_default(),
                    timeout_millis: u64::try_from(timeout).unwrap_or(u64::MAX),
                    body_bytes_max: spec.body_limit.as_ref().map_or(1 << 20, |size| size.0.0),
                    in_flight_max: spec.in_flight.unwrap_or(64),
                    compare: spec.compare.unwrap_or(false),
                    position: Some(service.route.position_of_rule(placed).into()),
                },
            };
            Some((copies, goes_to))
        })
        .collect()
}

/// For Envoy; ours stands in the cluster's metadata.
fn hash_policy(spec: &MeshRoute) -> Option<route::route_action::HashPolicy> {
    use route::route_action::{HashPolicy, hash_policy};

    let policy_specifier =
        match hash_on(spec, ProtocolSpec::Http)? {
            HashMeta::Header(header_name) => {
                hash_policy::PolicySpecifier::Header(hash_policy::Header {
                    header_name,
                    ..Default::default()
                })
            }
            HashMeta::Source => hash_policy::PolicySpecifier::ConnectionProperties(
                hash_policy::ConnectionProperties { source_ip: true },
            ),
        };
    Some(HashPolicy {
        terminal: true,
        policy_specifier: Some(policy_specifier),
    })
}

fn source_hash() -> percent::HashPolicy {
    use percent::hash_policy::{PolicySpecifier, SourceIp};

    percent::HashPolicy {
        policy_specifier: Some(PolicySpecifier::SourceIp(SourceIp {})),
    }
}

/// For Envoy; ours stands in the cluster's metadata.
fn retry_policy(spec: &MeshRoute) -> route::RetryPolicy {
    let on: Vec<Failure> = spec.retries.on.as_ref().map_or_else(
        || retry_on(ProtocolSpec::Http),
        |on| on.iter().map(|cause| cause.0.0).collect(),
    );
    let (retry_on, retriable_status_codes) = retry_words(on);
    route::RetryPolicy {
        retry_on,
        num_retries: pb::number(spec.retries.attempts.unwrap_or(2)),
        per_try_timeout: spec
            .timeouts
            .per_try
            .as_ref()
            .and_then(|limit| pb::duration(limit.0.0?)),
        retriable_status_codes,
        retry_host_predicate: vec![another_endpoint()],
        host_selection_retry_max_attempts: ENDPOINTS_LOOKED_AT,
        ..Default::default()
    }
}

/// How often Envoy looks for an endpoint that it has not tried, before it takes one that it has.
const ENDPOINTS_LOOKED_AT: i64 = 10;

/// "Each on another endpoint."
fn another_endpoint() -> route::retry_policy::RetryHostPredicate {
    route::retry_policy::RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(
            route::retry_policy::retry_host_predicate::ConfigType::TypedConfig(pb::pack(
                &pb::PreviousHosts::default(),
            )),
        ),
    }
}

/// What is retried, in Envoy's words and by status.
pub(super) fn retry_words(on: impl IntoIterator<Item = Failure>) -> (String, Vec<u32>) {
    // What no endpoint saw is always tried again.
    let mut words = vec!["connect-failure", "refused-stream"];
    let mut statuses = Vec::new();
    for failure in on {
        match failure {
            Failure::Connect | Failure::RefusedStream | Failure::NoLocalEndpoint => {}
            Failure::Reset => words.push("reset"),
            // Envoy counts its own timeouts as 504.
            Failure::Timeout => statuses.push(504),
            Failure::Status(status) => statuses.push(status.into()),
            Failure::Unavailable => words.push("unavailable"),
            // Envoy's words for gRPC's codes are ours.
            Failure::Grpc(_) => words.extend(
                (CAUSES.iter())
                    .filter(|(_, cause)| *cause == failure)
                    .map(|(word, _)| *word),
            ),
        }
    }
    if !statuses.is_empty() {
        words.push("retriable-status-codes");
    }
    (words.join(","), statuses)
}

fn millionths(share: f64) -> percent::FractionalPercent {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share is 0 to 1"
    )]
    let numerator = (share.clamp(0.0, 1.0) * 1e6).round() as u32;
    percent::FractionalPercent {
        numerator,
        denominator: percent::fractional_percent::DenominatorType::Million.into(),
    }
}
