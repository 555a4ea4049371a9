//! Resources of control planes that know nothing of us: those without our metadata.
//!
//! ```text
//! listener --chains--> services --rules--> clusters, as they are used --> snapshot
//!    `---- routes -------'
//! ```
//!
//! Each is translated wholly, or refused with the place of what is not (a field by its path). `SUPPORTED`, beside this
//! file, lists the fields that are read, and which values of them; all others are refused before
//! they come here. What decides is what Envoy would have decided, or narrower where that cannot be
//! said; never wider.
//!
//! A filter chain is a service, and so is each virtual host of one with HTTP inside; they are called by
//! the listener, the chain and the host.

mod at;
mod clusters;
mod ids;
mod listeners;
mod rbac;
mod routes;
mod tls;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use zeugma_core::identity::TrustDomain;
use zeugma_core::names::HostPattern;
use zeugma_core::rules::{HttpRule, Part, PathMatch, RuleTimeouts, Rules};
use zeugma_core::snapshot::{
    Cluster, ClusterIx, Export, HashOn, HostTable, Inbound, Listener, Mirror, Policy, Protocol,
    Rule, Service, ServiceIx,
};

use self::at::At;
use self::clusters::Use;
pub(super) use self::clusters::{Template, read as read_cluster};
use self::listeners::{ChainTo, ReadChain, ReadListener, Routes, Tls};
use self::rbac::{Callers, Filter, Passed};
use self::routes::{Domain, ReadHost, ReadRoute, ReadRoutes};
use super::{Errors, Ingest};
use crate::compile::ALLOW;
use crate::parallel;
use crate::pb::{self, cluster, core, listener, route};
use crate::session::Kind;

/// Envoy's default for a request without a byte in either direction.
const STREAM_IDLE: Duration = Duration::from_secs(5 * 60);
/// Ours, of which Envoy has none.
const COPY_TIMEOUT: Duration = Duration::from_secs(15);
const COPY_BYTES_MAX: usize = 1024 * 1024;
const COPIES_MAX: usize = 64;

/// The most ways in which one cluster may be used: for each it is made once more, with its endpoints.
const USES_MAX: usize = 64;

/// Whether a resource with this metadata is a stranger's.
pub(super) fn is_foreign(metadata: Option<&core::Metadata>) -> bool {
    metadata.is_none_or(|metadata| !metadata.filter_metadata.contains_key(pb::METADATA))
}

/// Whether a route configuration is; one without virtual hosts is anybody's.
pub(super) fn is_foreign_routes(config: &route::RouteConfiguration) -> bool {
    let is_ours = |host: &route::VirtualHost| {
        let mut routes = host.routes.iter();
        host.typed_per_filter_config.contains_key(ALLOW)
            || routes.any(|route| !is_foreign(route.metadata.as_ref()))
    };
    !config.virtual_hosts.is_empty() && !config.virtual_hosts.iter().any(is_ours)
}

/// What is wrong with a cluster by itself.
pub(super) fn check_cluster(cluster: &cluster::Cluster, own: &TrustDomain) -> Result<(), String> {
    clusters::read(cluster, own)?.used(&Use::NONE).map(drop)
}

/// What is wrong with a route configuration by itself.
pub(super) fn check_routes(config: &route::RouteConfiguration) -> Result<(), String> {
    routes::read(config, &At::Root).map(drop)
}

/// What is wrong with a listener by itself.
pub(super) fn check_listener(
    listener: &listener::Listener,
    own: &TrustDomain,
) -> Result<(), String> {
    listeners::read(listener, own).map(drop)
}

/// Strangers' resources that are to serve together.
#[derive(Debug, Default)]
pub(super) struct Foreign<'a> {
    /// With their endpoints in them.
    pub clusters: Vec<(&'a str, cluster::Cluster)>,
    pub routes: Vec<(&'a str, route::RouteConfiguration)>,
    pub listeners: Vec<(&'a str, listener::Listener)>,
}

/// How the clusters of strangers are used, by their names, and where each stands for that.
#[derive(Debug, Default)]
pub(super) struct Ways(BTreeMap<(String, Use), Option<ClusterIx>>);

impl Ways {
    /// All that is made of a cluster, and where that stands; `None` where something of it cannot be made, or
    /// nothing is.
    pub(super) fn made(&self, name: &str, of: &Template) -> Option<Vec<(usize, Cluster)>> {
        let ways = self.0.range((name.to_owned(), Use::FIRST)..);
        let ways = ways.take_while(|((known, _), _)| known == name);
        let made: Option<Vec<_>> = ways
            .map(|((_, way), ix)| Some(((*ix)?.0, of.used(way).ok()?)))
            .collect();
        made.filter(|made| !made.is_empty())
    }
}

impl Foreign<'_> {
    /// Puts them beside what is there.
    pub(super) fn ingest(self, to: &mut Ingest) -> Ways {
        let own = to.node.trust_domain.clone();
        let errors = &mut to.errors;
        let snapshot = &mut Parts {
            clusters: &mut to.clusters,
            services: &mut to.services,
            listeners: &mut to.listeners,
        };
        let read = parallel::map(self.clusters, |(name, cluster)| {
            (name, clusters::read(&cluster, &own))
        });
        let mut set = Set {
            errors,
            templates: BTreeMap::new(),
            routes: BTreeMap::new(),
            uses: BTreeMap::new(),
        };
        for (name, template) in read {
            let template = set.errors.keep(Kind::Cluster, name, template);
            set.templates.insert(name, template);
        }
        let read = parallel::map(self.routes, |(name, config)| {
            (name, routes::read(&config, &At::Root))
        });
        for (name, routes) in read {
            let routes = set.errors.keep(Kind::Routes, name, routes);
            set.routes.insert(name, routes);
        }
        let read = parallel::map(self.listeners, |(name, listener)| {
            (name, listeners::read(&listener, &own))
        });
        let mut listeners = Vec::new();
        for (name, listener) in read {
            if let Some(listener) = set.errors.keep(Kind::Listener, name, listener) {
                listeners.push((name, listener));
            }
        }
        set.find_uses(&listeners);
        set.make_clusters(snapshot);
        for (name, listener) in listeners {
            set.make_listener(name, listener, snapshot);
        }
        Ways(set.uses)
    }
}

/// Those of a snapshot that strangers add to.
struct Parts<'i> {
    clusters: &'i mut Vec<Arc<Cluster>>,
    services: &'i mut Vec<Service>,
    listeners: &'i mut Vec<Listener>,
}

/// What was read; `None` stands for what was refused, of which that was said.
struct Set<'a, 'e> {
    errors: &'e mut Errors,
    templates: BTreeMap<&'a str, Option<Template>>,
    routes: BTreeMap<&'a str, Option<ReadRoutes>>,
    /// The clusters by how they are used.
    uses: BTreeMap<(String, Use), Option<ClusterIx>>,
}

/// A resource that is at fault, if something is.
type Blame<'a> = (Kind, &'a str);

impl Set<'_, '_> {
    /// Notes how clusters are used.
    fn find_uses(&mut self, listeners: &[(&str, ReadListener)]) {
        let mut found: BTreeSet<(String, Use)> = BTreeSet::new();
        for chain in listeners.iter().flat_map(|(_, listener)| &listener.chains) {
            match &chain.to {
                ChainTo::Bytes {
                    cluster,
                    idle,
                    hash,
                } => {
                    let way = self.bytes_way(&chain.tls, cluster, (*idle, hash.as_ref()));
                    found.insert((cluster.clone(), way));
                }
                ChainTo::Http { routes, idle, .. } => {
                    let hosts = match routes {
                        Routes::Written(routes) => Some(routes),
                        Routes::Named(name) => self.routes.get(&**name).and_then(Option::as_ref),
                    };
                    for host in hosts.into_iter().flat_map(|routes| &routes.hosts) {
                        for route in &host.routes {
                            let each = route.to.iter();
                            found.extend(
                                each.map(|(name, _)| (name.clone(), self.way(name, route, *idle))),
                            );
                        }
                        let copies = host.mirrors.iter().map(|mirror| &mirror.cluster);
                        found.extend(copies.map(|name| (name.clone(), copied(*idle))));
                    }
                }
            }
        }
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, _) in &found {
            *counts.entry(name).or_default() += 1;
        }
        for (name, _) in counts.into_iter().filter(|(_, count)| *count > USES_MAX) {
            if let Some(template) = self.templates.get_mut(name) {
                *template = None;
                let why = format!(
                    "it is used in more than {USES_MAX} ways, by idle timeouts and hash keys"
                );
                self.errors.add(Kind::Cluster, name, &why);
            }
        }
        let mut used: BTreeSet<&str> = found.iter().map(|(name, _)| &**name).collect();
        used = self
            .templates
            .keys()
            .copied()
            .filter(|name| !used.contains(name))
            .collect();
        let unused: Vec<_> = used
            .iter()
            .map(|name| ((*name).to_owned(), Use::NONE))
            .collect();
        self.uses = found
            .into_iter()
            .chain(unused)
            .map(|key| (key, None))
            .collect();
    }

    /// What a key is made of, where one is asked for.
    fn hash(&self, cluster: &str, said: Option<&HashOn>) -> Option<HashOn> {
        let template = self.templates.get(cluster)?.as_ref()?;
        said.filter(|_| template.is_by_key()).cloned()
    }

    /// How a chain of bytes uses a cluster.
    fn bytes_way(
        &self,
        tls: &Tls,
        cluster: &str,
        (idle, hash): (Duration, Option<&HashOn>),
    ) -> Use {
        Use {
            as_it_is: *tls == Tls::Passed,
            idle,
            hash: self.hash(cluster, hash),
        }
    }

    /// How a route does.
    fn way(&self, cluster: &str, route: &ReadRoute, idle: Duration) -> Use {
        Use {
            as_it_is: false,
            idle: route.idle.unwrap_or(idle),
            hash: self.hash(cluster, route.hash.as_ref()),
        }
    }

    /// Makes each cluster as often as it is used in another way; they stand in the order of their names.
    fn make_clusters(&mut self, snapshot: &mut Parts<'_>) {
        let mut doubtful = Vec::new();
        for ((name, way), place) in &mut self.uses {
            let Some(Some(template)) = self.templates.get(&**name) else {
                continue;
            };
            // What does not fit is said of who uses it.
            if let Ok(made) = template.used(way) {
                // Another cluster may be called as this one is for its use.
                if *made.name != **name && self.templates.contains_key(&*made.name) {
                    doubtful.push((name.clone(), made.name));
                    continue;
                }
                *place = Some(ClusterIx(snapshot.clusters.len()));
                snapshot.clusters.push(made.into());
            }
        }
        for (name, made) in doubtful {
            if let Some(template) = self.templates.get_mut(&*name)
                && template.take().is_some()
            {
                let why = format!("as it is used it would be called `{made}`, as another one is");
                self.errors.add(Kind::Cluster, &name, &why);
            }
        }
    }

    /// A cluster as it is used; why there is none, or nothing where that was said of it.
    fn cluster(&self, name: &str, way: Use) -> Result<ClusterIx, Option<String>> {
        match self.templates.get(name) {
            None => return Err(Some(format!("no cluster `{name}`"))),
            Some(None) => return Err(None),
            Some(Some(template)) => template.fits(&way).map_err(Some)?,
        };
        let place = self.uses.get(&(name.to_owned(), way));
        (place.copied().flatten()).ok_or_else(|| Some(format!("cluster `{name}` was not made")))
    }

    fn make_listener(&mut self, name: &str, read: ReadListener, snapshot: &mut Parts<'_>) {
        let before = snapshot.services.len();
        match self.listener(name, read, snapshot) {
            Ok(listener) => snapshot.listeners.push(listener),
            Err(faults) => {
                snapshot.services.truncate(before);
                for ((kind, name), why) in faults {
                    self.errors.add(kind, &name, &why);
                }
            }
        }
    }

    fn listener(
        &self,
        name: &str,
        read: ReadListener,
        snapshot: &mut Parts<'_>,
    ) -> Result<Listener, Faults> {
        let ReadListener { mut socket, chains } = read;
        let is_alone = chains.len() == 1;
        let of_listener = |why: String| Faults::from([((Kind::Listener, name.to_owned()), why)]);
        for chain in &chains {
            if chain.tls == Tls::Nothing && !is_alone {
                return Err(of_listener(format!(
                    "{}: it takes whatever comes, so no other chain may stand beside it",
                    chain.place
                )));
            }
            let mut maker = Maker {
                set: self,
                listener: name,
                port: socket.address.port(),
                is_proxied: !socket.proxies.is_empty(),
                chain,
                services: snapshot.services,
                faults: Faults::new(),
            };
            let made = maker.chain();
            let faults = maker.faults;
            let Some(made) = made.filter(|_| faults.is_empty()) else {
                return Err(faults);
            };
            match made {
                Made::Only(ix) => socket.only = Some(ix),
                Made::Hosts(hosts) => socket.hosts = hosts,
                Made::Door(ix) => {
                    let is_free = door(&mut socket.hosts, chain, ix);
                    is_free.map_err(|why| of_listener(format!("{}: {why}", chain.place)))?;
                }
            }
        }
        Ok(socket)
    }
}

/// What is wrong, by what it is wrong with.
type Faults = BTreeMap<(Kind, String), String>;

/// How a cluster is used that copies go to.
const fn copied(idle: Duration) -> Use {
    Use {
        as_it_is: false,
        idle,
        hash: None,
    }
}

/// A name as one part of another.
fn segment(name: &str) -> Cow<'_, str> {
    if name.contains(['/', '%']) {
        return name.replace('%', "%25").replace('/', "%2F").into();
    }
    name.into()
}

/// Puts a chain at the names that TLS asks for it by.
fn door(hosts: &mut HostTable, chain: &ReadChain, ix: ServiceIx) -> Result<(), String> {
    if chain.names.is_empty() {
        return match hosts.rest.replace(ix) {
            None => Ok(()),
            Some(_) => Err("another chain takes what no server name asks for".to_owned()),
        };
    }
    for (pattern, port) in &chain.names {
        if hosts
            .insert(pattern, port.unwrap_or(0), ix)
            .is_some_and(|other| other != ix)
        {
            return Err(format!("another chain has the server name `{pattern}`"));
        }
    }
    Ok(())
}

/// What a chain is to its listener.
enum Made {
    /// All of it.
    Only(ServiceIx),
    /// What requests ask for.
    Hosts(HostTable),
    /// Where TLS comes in.
    Door(ServiceIx),
}

/// What a connection manager says of all its requests.
#[derive(Clone, Copy)]
struct Requests<'a> {
    filters: &'a [(String, Filter)],
    idle: Duration,
    /// Whether no path may be passed on that servers read differently.
    clear_paths: bool,
}

/// Makes the services of a chain.
struct Maker<'m, 'a, 'e> {
    set: &'m Set<'a, 'e>,
    listener: &'m str,
    port: u16,
    is_proxied: bool,
    chain: &'m ReadChain,
    services: &'m mut Vec<Service>,
    faults: Faults,
}

impl Maker<'_, '_, '_> {
    /// `None` where something is at fault, of which that was said here or before.
    fn chain(&mut self) -> Option<Made> {
        let chain = self.chain;
        let passed = self.passed()?;
        match &chain.to {
            ChainTo::Bytes {
                cluster,
                idle,
                hash,
            } => {
                let said = (*idle, hash.as_ref());
                let way = self.set.bytes_way(&chain.tls, cluster, said);
                let blame = (Kind::Listener, self.listener);
                let to = self.cluster(cluster, way, (blame, &chain.place))?;
                let inbound = match chain.tls {
                    Tls::Ended(_) => Inbound::Terminate,
                    Tls::Passed | Tls::Nothing => Inbound::Passthrough,
                };
                let service = self.service(None, (Protocol::Tcp, inbound), to, passed.policy());
                let ix = self.add(service);
                Some(match chain.tls {
                    Tls::Nothing => Made::Only(ix),
                    Tls::Passed | Tls::Ended(_) => Made::Door(ix),
                })
            }
            ChainTo::Http {
                routes,
                filters,
                idle,
                clear_paths,
            } => {
                let of = Requests {
                    filters,
                    idle: *idle,
                    clear_paths: *clear_paths,
                };
                self.http(routes, of, &passed)
            }
        }
    }

    /// Whom a chain lets in.
    fn passed(&mut self) -> Option<Passed> {
        let chain = self.chain;
        let from = match &chain.tls {
            Tls::Ended(ids) => ids.clone(),
            Tls::Nothing | Tls::Passed => Vec::new(),
        };
        let mut passed = Passed::of(Rule {
            from,
            sources: chain.sources.clone(),
            ..Rule::default()
        });
        for filter in &chain.filters {
            self.and(&mut passed, filter, ((Kind::Listener, self.listener), ""))?;
        }
        Some(passed)
    }

    fn and(&mut self, passed: &mut Passed, filter: &Filter, of: (Blame<'_>, &str)) -> Option<()> {
        let callers = Callers {
            has_sni: self.chain.has_sni,
            is_verified: matches!(self.chain.tls, Tls::Ended(_)),
            is_proxied: self.is_proxied,
        };
        let done = filter.suits(callers).and_then(|()| passed.and(filter));
        done.map_err(|why| self.fault(of, Some(why))).ok()
    }

    fn fault(&mut self, ((kind, name), place): (Blame<'_>, &str), why: Option<String>) {
        let Some(why) = why else {
            return;
        };
        let why = if place.is_empty() {
            why
        } else {
            format!("{place}: {why}")
        };
        self.faults.entry((kind, name.to_owned())).or_insert(why);
    }

    fn cluster(&mut self, name: &str, way: Use, of: (Blame<'_>, &str)) -> Option<ClusterIx> {
        let found = self.set.cluster(name, way);
        found.map_err(|why| self.fault(of, why)).ok()
    }

    /// A service that is nothing but this.
    fn service(
        &self,
        host: Option<&str>,
        (protocol, inbound): (Protocol, Inbound),
        outbound: ClusterIx,
        policy: Policy,
    ) -> Service {
        let parts = [self.listener, self.chain.label.as_str()];
        let parts: Vec<_> = parts.into_iter().chain(host).map(segment).collect();
        Service {
            name: parts.join("/").into(),
            port: self.port,
            ports: 1,
            hosts: self
                .chain
                .names
                .iter()
                .map(|(pattern, _)| pattern.clone())
                .collect(),
            protocol,
            inbound,
            outbound,
            own: None,
            policy,
            export: Export::Nobody,
            mirrors: Vec::new(),
            rules: None,
            inside: None,
            // It would have to say so, and what says it is not read.
            is_upgraded: false,
            position: None,
        }
    }

    fn add(&mut self, service: Service) -> ServiceIx {
        let ix = ServiceIx(self.services.len());
        self.services.push(service);
        ix
    }

    fn http(&mut self, routes: &Routes, of: Requests<'_>, passed: &Passed) -> Option<Made> {
        let listener = (Kind::Listener, self.listener);
        let (routes, blame) = match routes {
            Routes::Written(routes) => (routes, listener),
            Routes::Named(name) => match self.set.routes.get(&**name) {
                Some(Some(routes)) => (routes, (Kind::Routes, &**name)),
                // That was said of it.
                Some(None) => return None,
                None => {
                    let why = format!("no route configuration `{name}`");
                    self.fault((listener, &self.chain.place), Some(why));
                    return None;
                }
            },
        };
        let mut hosts = HostTable::literal();
        let mut first = None;
        for host in &routes.hosts {
            let ix = self.host(host, of, passed, blame)?;
            first.get_or_insert(ix);
            for (nth, domain) in host.domains.iter().enumerate() {
                if !is_placed(&mut hosts, domain, ix) {
                    let place = format!("{}.domains[{nth}]", host.place);
                    self.fault(
                        (blame, &place),
                        Some("another virtual host has it".to_owned()),
                    );
                    return None;
                }
            }
        }
        if self.chain.tls == Tls::Nothing {
            return Some(Made::Hosts(hosts));
        }
        let Some(first) = first.and_then(|ix| self.services.get(ix.0)) else {
            let why = "it has no virtual hosts".to_owned();
            self.fault((blame, ""), Some(why));
            return None;
        };
        let outbound = first.outbound;
        let kind = (Protocol::Http, Inbound::Terminate);
        let service = self.service(None, kind, outbound, passed.policy());
        Some(Made::Door(self.add(Service {
            inside: Some(hosts.into()),
            ..service
        })))
    }

    /// A virtual host.
    fn host(
        &mut self,
        host: &ReadHost,
        requests: Requests<'_>,
        passed: &Passed,
        blame: Blame<'_>,
    ) -> Option<ServiceIx> {
        let Requests {
            filters,
            idle,
            clear_paths,
        } = requests;
        let of = (blame, host.place.as_str());
        let is_known = |name: &String| filters.iter().any(|(known, _)| known == name);
        if let Some((name, _)) = host.filters.iter().find(|(name, _)| !is_known(name)) {
            let why = format!("no filter of the connection is called `{name}`");
            self.fault(of, Some(why));
            return None;
        }
        let mut passed = passed.clone();
        for (name, filter) in filters {
            let own = host.filters.iter().find(|(known, _)| known == name);
            match own {
                Some((_, own)) => self.and(&mut passed, own, (blame, ""))?,
                None => self.and(&mut passed, filter, ((Kind::Listener, self.listener), ""))?,
            }
        }
        let mut rules = Rules::default();
        let mut outbound = None;
        for (nth, route) in host.routes.iter().enumerate() {
            let mut split = Vec::new();
            for (name, weight) in &route.to {
                let way = self.set.way(name, route, idle);
                let to = self.cluster(name, way, (blame, &route.place))?;
                split.push(part(name, *weight, to));
            }
            let to = *outbound.get_or_insert(split.first()?.outbound);
            let is_plain = split.len() == 1 && split.iter().all(|part| part.outbound == to);
            let mut matched = route.matched.clone();
            matched.rule = nth;
            if clear_paths && matched.path == PathMatch::Any {
                // As much, but that a path is looked at: one that is not clear has no rule.
                matched.path = PathMatch::Begins("/".into());
            }
            rules.matches.push(matched);
            rules.list.push(rule(route, (!is_plain).then_some(split)));
        }
        let mut mirrors = Vec::new();
        for mirror in &host.mirrors {
            let to = self.cluster(&mirror.cluster, copied(idle), of)?;
            mirrors.push(Mirror {
                route: mirror.cluster.as_str().into(),
                to,
                host: "".into(),
                share: mirror.share,
                timeout: COPY_TIMEOUT,
                body_bytes_max: COPY_BYTES_MAX,
                in_flight_max: COPIES_MAX,
                compare: false,
                position: None,
            });
        }
        let kind = (Protocol::Http, Inbound::Terminate);
        let service = self.service(Some(&host.name), kind, outbound?, passed.policy());
        Some(self.add(Service {
            hosts: host.domains.iter().filter_map(Domain::pattern).collect(),
            mirrors,
            rules: Some(Arc::new(rules)),
            ..service
        }))
    }
}

impl Domain {
    fn pattern(&self) -> Option<HostPattern> {
        match self {
            Self::Host(pattern, _) => Some(pattern.clone()),
            Self::Rest => None,
        }
    }
}

/// Puts a virtual host at a domain; whether no other one is there.
fn is_placed(hosts: &mut HostTable, domain: &Domain, ix: ServiceIx) -> bool {
    let before = match domain {
        Domain::Host(pattern, port) => hosts.insert(pattern, port.unwrap_or(0), ix),
        Domain::Rest => hosts.rest.replace(ix),
    };
    before.is_none_or(|other| other == ix)
}

fn part(cluster: &str, weight: u32, to: ClusterIx) -> Part {
    Part {
        label: cluster.into(),
        weight,
        outbound: to,
        own: None,
        host: None,
        service: None,
    }
}

fn rule(route: &ReadRoute, split: Option<Vec<Part>>) -> HttpRule {
    HttpRule {
        label: route.label.as_str().into(),
        split,
        timeouts: RuleTimeouts {
            response_headers: Some(route.timeout),
            per_try: Some(route.per_try),
        },
        retries: route.retries.clone(),
        request: route.request.clone(),
        response: route.response.clone(),
        position: None,
    }
}

/// Refuses what is not reached by TCP.
fn over_tcp(address: Option<&core::Address>, at: &At<'_>) -> Result<(), String> {
    use core::address::Address;
    use core::socket_address::Protocol;

    let is_tcp = match address.and_then(|address| address.address.as_ref()) {
        Some(Address::SocketAddress(socket)) => socket.protocol == i32::from(Protocol::Tcp),
        // That is refused where it is read.
        Some(_) | None => true,
    };
    let at = at.field("socket_address");
    at.field("protocol").must(is_tcp, "it is not TCP")
}

/// A duration, which is not negative.
fn duration(duration: Option<&pb::PbDuration>, at: &At<'_>) -> Result<Option<Duration>, String> {
    match (duration, pb::from_duration(duration)) {
        (None, _) => Ok(None),
        (Some(_), Some(duration)) => Ok(Some(duration)),
        (Some(_), None) => at.refuse("it is negative"),
    }
}

#[cfg(test)]
mod tests;
