//! Listeners: which services they reach, and the rules of each.

use std::collections::BTreeSet;
use std::sync::Arc;

use zeugma_core::admission::Rate;
use zeugma_core::names::HostPattern;
use zeugma_core::rules::Rules;
use zeugma_core::snapshot::{HostTable, Listener, Mirror, Protocol, Role, Service, ServiceIx};

use super::clusters::all;
use super::rbac::Listed;
use super::{Gathered, Names, http_rules};
use crate::compile::{ALLOW, DENY, HIDDEN, NOBODY, OF_PORT};
use crate::meta::ListenerMeta;
use crate::names::ByName;
use crate::pb::{self, hcm, http_rbac, listener, network_rbac, route, tcp_proxy};

/// What is wrong with a listener by itself.
pub(super) fn check(listener: &listener::Listener) -> Result<(), String> {
    let any = Names::any();
    for chain in &listener.filter_chains {
        let ReadChain { name, to } = ReadChain::read(chain, &any);
        to.map_err(|error| format!("filter chain `{name}`: {error}"))?;
    }
    let meta: ListenerMeta = pb::from_metadata(listener.metadata.as_ref())?;
    socket(listener, &meta).map(drop)
}

/// A listener that leads nowhere yet.
fn socket(listener: &listener::Listener, meta: &ListenerMeta) -> Result<Listener, String> {
    Ok(Listener {
        name: listener.name.as_str().into(),
        address: pb::from_socket(listener.address.as_ref())?,
        role: if meta.mesh {
            Role::Mesh
        } else {
            Role::Workloads
        },
        only: None,
        hosts: HostTable::default(),
        sources: all(&meta.sources, crate::net::parse)?,
        handshakes: meta.handshakes_per_source.map(handshakes).transpose()?,
        proxies: all(&meta.proxies, crate::net::parse)?,
    })
}

/// What a filter chain says, its routes aside.
#[derive(Debug)]
pub(crate) struct ReadChain {
    name: String,
    to: Result<ChainTo, String>,
}

#[derive(Debug)]
enum ChainTo {
    Service(ServiceIx, Vec<Listed>, Vec<Mirror>),
    /// The route configuration of this name.
    Routes(String),
    /// It refuses these names of this service.
    Hidden(ServiceIx, Vec<HostPattern>),
    Nowhere,
}

impl ReadChain {
    /// Reads a chain.
    pub(crate) fn read(chain: &listener::FilterChain, names: &Names) -> Self {
        Self {
            name: chain.name.clone(),
            to: chain_to(chain, names),
        }
    }
}

fn chain_to(chain: &listener::FilterChain, names: &Names) -> Result<ChainTo, String> {
    if chain.name == NOBODY {
        return Ok(ChainTo::Nowhere);
    }
    if let Some(id) = chain.name.strip_prefix(HIDDEN) {
        return Ok(ChainTo::Hidden(names.service(id)?, bare_names(chain)?));
    }
    let last = chain
        .filters
        .last()
        .ok_or("it has no filters")
        .and_then(typed)?;
    if pb::is_of::<hcm::HttpConnectionManager>(last) {
        let manager: hcm::HttpConnectionManager = pb::unpack(last)?;
        return match manager.route_specifier {
            Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) => {
                Ok(ChainTo::Routes(rds.route_config_name))
            }
            _ => Err("its routes are not named".to_owned()),
        };
    }
    pb::unpack::<tcp_proxy::TcpProxy>(last)?;
    let ix = names.service(&chain.name)?;
    let mut listed = Vec::new();
    for filter in &chain.filters {
        let filter = typed(filter)?;
        if !pb::is_of::<network_rbac::Rbac>(filter) {
            continue;
        }
        let rbac: network_rbac::Rbac = pb::unpack(filter)?;
        // Whether they hold or are audited alone is the service's to say.
        if let Some(rules) = rbac.rules.as_ref().or(rbac.shadow_rules.as_ref()) {
            listed.push(Listed::read(rules, names)?);
        }
    }
    Ok(ChainTo::Service(
        ix,
        listed,
        http_rules::copies(chain, names)?,
    ))
}

/// The hosts by which a chain is chosen, but for those that name a port: of these others may be reached
/// by another port.
fn bare_names(chain: &listener::FilterChain) -> Result<Vec<HostPattern>, String> {
    let names = chain
        .filter_chain_match
        .iter()
        .flat_map(|matched| &matched.server_names);
    names
        .filter(|name| !name.starts_with(OF_PORT))
        .map(|name| HostPattern::parse(name).map_err(|error| format!("`{name}`: {error}")))
        .collect()
}

/// What a virtual host says.
#[derive(Debug)]
pub(crate) struct ReadHost(Result<HostTo, String>);

#[derive(Debug)]
struct HostTo {
    ix: ServiceIx,
    rules: Vec<Listed>,
    mirrors: Vec<Mirror>,
    http_rules: Option<Arc<Rules>>,
    name: String,
}

impl ReadHost {
    /// Reads a virtual host.
    pub(crate) fn read(host: &route::VirtualHost, names: &Names) -> Self {
        let to = names.service(&host.name).and_then(|ix| {
            virtual_host(host, ix, names)
                .map_err(|error| format!("virtual host `{}`: {error}", host.name))
        });
        Self(to)
    }

    /// What is wrong with it.
    pub(super) fn error(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }
}

fn virtual_host(host: &route::VirtualHost, ix: ServiceIx, names: &Names) -> Result<HostTo, String> {
    let mut rules = Vec::new();
    for name in [ALLOW, DENY] {
        let any = host
            .typed_per_filter_config
            .get(name)
            .ok_or_else(|| format!("it has no rules for `{name}`"))?;
        let rbac: http_rbac::RbacPerRoute = pb::unpack(any)?;
        if let Some(listed) = (rbac.rbac).and_then(|rbac| rbac.rules.or(rbac.shadow_rules)) {
            rules.push(Listed::read(&listed, names)?);
        }
    }
    let route = host.routes.first().ok_or("it has no route")?;
    Ok(HostTo {
        ix,
        rules,
        mirrors: http_rules::mirrors(route, names)?,
        http_rules: http_rules::rules(&host.routes, names)?.map(Arc::new),
        name: host.name.clone(),
    })
}

/// What putting a listener together needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub routes: &'a ByName<Vec<ReadHost>>,
    pub names: &'a Names,
    pub services: &'a [Service],
}

impl Reader<'_> {
    /// One listener of these chains; what they say about services goes into `gathered`.
    pub(super) fn listener(
        &self,
        listener: &listener::Listener,
        chains: Vec<ReadChain>,
        gathered: &mut Gathered,
    ) -> Result<Listener, String> {
        let meta: ListenerMeta = pb::from_metadata(listener.metadata.as_ref())?;
        let mut reached = BTreeSet::new();
        let mut hosts = HostTable::default();
        for ReadChain { name, to } in chains {
            to.and_then(|to| self.chain(to, gathered, (&mut reached, &mut hosts)))
                .map_err(|error| format!("filter chain `{name}`: {error}"))?;
        }
        let only = meta
            .only
            .as_deref()
            .map(|id| self.names.service(id))
            .transpose()?;
        let service = only.and_then(|ix| self.services.get(ix.0));
        if let Some(service) = service.filter(|service| service.protocol == Protocol::Http) {
            return Err(format!(
                "it carries plain TCP to one service, and `{}` is http",
                service.name
            ));
        }
        if only.is_none() {
            for ix in reached {
                self.add_hosts(&mut hosts, ix, None)?;
            }
        }
        Ok(Listener {
            only,
            hosts,
            ..socket(listener, &meta)?
        })
    }

    /// Adds a service by all of its hosts, or by `some` of them.
    fn add_hosts(
        &self,
        hosts: &mut HostTable,
        ix: ServiceIx,
        some: Option<&[HostPattern]>,
    ) -> Result<(), String> {
        let Some(service) = self.services.get(ix.0) else {
            return Ok(());
        };
        for host in some.unwrap_or(&service.hosts) {
            match hosts.insert(host, service.port, ix) {
                Some(other) if other != ix => {
                    return Err(format!(
                        "host `{host}` with port {} names two services",
                        service.port
                    ));
                }
                Some(_) | None => {}
            }
        }
        Ok(())
    }

    fn chain(
        &self,
        to: ChainTo,
        gathered: &mut Gathered,
        (reached, hosts): (&mut BTreeSet<ServiceIx>, &mut HostTable),
    ) -> Result<(), String> {
        match to {
            ChainTo::Nowhere => {}
            ChainTo::Hidden(ix, names) => self.add_hosts(hosts, ix, Some(&names))?,
            ChainTo::Service(ix, listed, mirrors) => {
                gather(gathered, ix, listed, (mirrors, None))?;
                reached.insert(ix);
            }
            ChainTo::Routes(name) => {
                let hosts = self
                    .routes
                    .get(&name)
                    .ok_or_else(|| format!("no route configuration `{name}`"))?;
                // What is wrong with one was said of its route configuration.
                for host in hosts.iter().filter_map(|ReadHost(host)| host.as_ref().ok()) {
                    let said = (host.mirrors.clone(), host.http_rules.clone());
                    gather(gathered, host.ix, host.rules.iter().cloned(), said)
                        .map_err(|error| format!("virtual host `{}`: {error}", host.name))?;
                    reached.insert(host.ix);
                }
            }
        }
        Ok(())
    }
}

fn gather(
    gathered: &mut Gathered,
    ix: ServiceIx,
    listed: impl IntoIterator<Item = Listed>,
    said: (Vec<Mirror>, Option<Arc<Rules>>),
) -> Result<(), String> {
    let rules = gathered.rules.entry(ix).or_default();
    (listed.into_iter()).try_for_each(|listed| rules.add(listed))?;
    match gathered.routed.get(&ix) {
        Some((known, _)) if *known != said.0 => {
            Err("its mirrors differ between listeners".to_owned())
        }
        Some((_, known)) if *known != said.1 => {
            Err("its rules differ between listeners".to_owned())
        }
        Some(_) => Ok(()),
        None => {
            gathered.routed.insert(ix, said);
            Ok(())
        }
    }
}

fn handshakes(per_source: u32) -> Result<Rate, String> {
    Rate::per_second(per_source).ok_or_else(|| "no source may begin a connection".to_owned())
}

fn typed(filter: &listener::Filter) -> Result<&pb::Any, &'static str> {
    match &filter.config_type {
        Some(listener::filter::ConfigType::TypedConfig(any)) => Ok(any),
        Some(listener::filter::ConfigType::ConfigDiscovery(_)) | None => {
            Err("a filter has no configuration")
        }
    }
}
