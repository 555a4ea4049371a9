//! Listeners: which services they reach, and the rules of each.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use zeugma_core::admission::Rate;
use zeugma_core::snapshot::{HostTable, Listener, Mirror, Protocol, Role, Service, ServiceIx};

use super::clusters::all;
use super::{Gathered, Names};
use crate::compile::{ALLOW, DENY};
use crate::meta::{ListenerMeta, RouteMeta};
use crate::pb::{self, hcm, http_rbac, listener, network_rbac, percent, route, tcp_proxy};

/// What reading a listener needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    pub routes: &'a BTreeMap<String, route::RouteConfiguration>,
    pub names: &'a Names,
    pub services: &'a [Service],
}

impl Reader<'_> {
    /// One listener; what it says about services goes into `gathered`.
    pub(super) fn listener(
        &self,
        listener: &listener::Listener,
        gathered: &mut Gathered,
    ) -> Result<Listener, String> {
        let meta: ListenerMeta = pb::from_metadata(listener.metadata.as_ref())?;
        let mut reached = BTreeSet::new();
        for chain in &listener.filter_chains {
            self.chain(chain, gathered, &mut reached)
                .map_err(|error| format!("filter chain `{}`: {error}", chain.name))?;
        }
        let only = meta
            .only
            .as_deref()
            .map(|id| self.service(id))
            .transpose()?;
        let service = only.and_then(|ix| self.services.get(ix.0));
        if let Some(service) = service.filter(|service| service.protocol == Protocol::Http) {
            return Err(format!(
                "it carries plain TCP to one service, and `{}` is http",
                service.name
            ));
        }
        let mut hosts = HostTable::default();
        if only.is_none() {
            for ix in reached {
                self.add_hosts(&mut hosts, ix)?;
            }
        }
        Ok(Listener {
            name: listener.name.as_str().into(),
            address: pb::from_socket(listener.address.as_ref())?,
            role: if meta.mesh {
                Role::Mesh
            } else {
                Role::Workloads
            },
            only,
            hosts,
            sources: all(&meta.sources, crate::net::parse)?,
            handshakes: meta.handshakes_per_source.map(handshakes).transpose()?,
        })
    }

    fn add_hosts(&self, hosts: &mut HostTable, ix: ServiceIx) -> Result<(), String> {
        let Some(service) = self.services.get(ix.0) else {
            return Ok(());
        };
        for host in &service.hosts {
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

    fn service(&self, id: &str) -> Result<ServiceIx, String> {
        self.names
            .services
            .get(id)
            .copied()
            .ok_or_else(|| format!("no service `{id}`"))
    }

    fn chain(
        &self,
        chain: &listener::FilterChain,
        gathered: &mut Gathered,
        reached: &mut BTreeSet<ServiceIx>,
    ) -> Result<(), String> {
        let last = chain
            .filters
            .last()
            .ok_or("it has no filters")
            .and_then(typed)?;
        if let Ok(manager) = pb::unpack::<hcm::HttpConnectionManager>(last) {
            return self.http(&manager, gathered, reached);
        }
        pb::unpack::<tcp_proxy::TcpProxy>(last)?;
        let ix = self.service(&chain.name)?;
        for filter in &chain.filters {
            if let Ok(rbac) = pb::unpack::<network_rbac::Rbac>(typed(filter)?)
                && let Some(rules) = &rbac.rules
            {
                gathered
                    .rules
                    .entry(ix)
                    .or_default()
                    .add(rules, self.names)?;
            }
        }
        reached.insert(ix);
        Ok(())
    }

    fn http(
        &self,
        manager: &hcm::HttpConnectionManager,
        gathered: &mut Gathered,
        reached: &mut BTreeSet<ServiceIx>,
    ) -> Result<(), String> {
        let Some(hcm::http_connection_manager::RouteSpecifier::Rds(rds)) = &manager.route_specifier
        else {
            return Err("its routes are not named".to_owned());
        };
        let config = self
            .routes
            .get(&rds.route_config_name)
            .ok_or_else(|| format!("no route configuration `{}`", rds.route_config_name))?;
        for host in &config.virtual_hosts {
            let ix = self.service(&host.name)?;
            self.virtual_host(host, ix, gathered)
                .map_err(|error| format!("virtual host `{}`: {error}", host.name))?;
            reached.insert(ix);
        }
        Ok(())
    }

    fn virtual_host(
        &self,
        host: &route::VirtualHost,
        ix: ServiceIx,
        gathered: &mut Gathered,
    ) -> Result<(), String> {
        for name in [ALLOW, DENY] {
            let any = host
                .typed_per_filter_config
                .get(name)
                .ok_or_else(|| format!("it has no rules for `{name}`"))?;
            let rbac: http_rbac::RbacPerRoute = pb::unpack(any)?;
            if let Some(rules) = rbac.rbac.and_then(|rbac| rbac.rules) {
                gathered
                    .rules
                    .entry(ix)
                    .or_default()
                    .add(&rules, self.names)?;
            }
        }
        let route = host.routes.first().ok_or("it has no route")?;
        let Some(route::route::Action::Route(action)) = &route.action else {
            return Err("its route leads to no cluster".to_owned());
        };
        let mirrors = self.mirrors(route, action)?;
        match gathered.mirrors.get(&ix) {
            Some(known) if *known != mirrors => {
                Err("its mirrors differ between listeners".to_owned())
            }
            Some(_) => Ok(()),
            None => {
                gathered.mirrors.insert(ix, mirrors);
                Ok(())
            }
        }
    }

    fn mirrors(
        &self,
        route: &route::Route,
        action: &route::RouteAction,
    ) -> Result<Vec<Mirror>, String> {
        let meta: RouteMeta = pb::from_metadata(route.metadata.as_ref())?;
        if meta.mirrors.len() != action.request_mirror_policies.len() {
            return Err("its mirrors do not match their metadata".to_owned());
        }
        action
            .request_mirror_policies
            .iter()
            .zip(meta.mirrors)
            .map(|(policy, meta)| {
                let to = self
                    .names
                    .clusters
                    .get(&policy.cluster)
                    .copied()
                    .ok_or_else(|| format!("no cluster `{}`", policy.cluster))?;
                Ok(Mirror {
                    route: meta.route.into(),
                    to,
                    host: meta.host.into(),
                    share: share(policy),
                    timeout: Duration::from_millis(meta.timeout_millis),
                    body_bytes_max: meta.body_bytes_max,
                    in_flight_max: meta.in_flight_max,
                })
            })
            .collect()
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

/// The share of requests that is mirrored; all where nothing is written, as Envoy has it.
fn share(policy: &route::route_action::RequestMirrorPolicy) -> f64 {
    use percent::fractional_percent::DenominatorType;

    let Some(fraction) = policy
        .runtime_fraction
        .as_ref()
        .and_then(|fraction| fraction.default_value)
    else {
        return 1.0;
    };
    let whole = match DenominatorType::try_from(fraction.denominator) {
        Ok(DenominatorType::Hundred) | Err(_) => 100.0,
        Ok(DenominatorType::TenThousand) => 10_000.0,
        Ok(DenominatorType::Million) => 1_000_000.0,
    };
    (f64::from(fraction.numerator) / whole).min(1.0)
}
