//! A session, its clock, and what it did in words.

use std::sync::Arc;
use std::time::Duration;

use zeugma_core::time::Time;

use super::{
    Action, Change, Ended, Event, Kind, Limits, Name, Protocol, Refusal, Resource, Session, Verdict,
};
use crate::pb::{self, Any, cluster, core, discovery, endpoint, hcm, listener, route};

/// A session that is driven by hand.
pub(super) struct Client {
    pub(super) session: Session,
    pub(super) now: Time,
}

impl Client {
    pub(super) fn new() -> Self {
        Self::of(1, Limits::default())
    }

    pub(super) fn of(servers: usize, limits: Limits) -> Self {
        Self::with(servers, limits, [])
    }

    /// One that has these already.
    pub(super) fn with(
        servers: usize,
        limits: Limits,
        held: impl IntoIterator<Item = (Kind, Name, Resource)>,
    ) -> Self {
        let node = core::Node {
            id: "east-gw".to_owned(),
            ..Default::default()
        };
        Self {
            session: Session::new(node, servers, limits, held),
            now: Time::ZERO,
        }
    }

    /// One whose first stream is open, with what it said.
    pub(super) fn open() -> Self {
        let mut client = Self::new();
        client.tick();
        client.handle(Event::Opened);
        client
    }

    /// One that is asked in full, since its server knows nothing else.
    pub(super) fn open_full() -> Self {
        let mut client = Self::new();
        client.tick();
        client.handle(Event::Closed(Ended::Unimplemented));
        client.handle(Event::Opened);
        client
    }

    pub(super) fn handle(&mut self, event: Event) -> Vec<String> {
        said(&self.session.handle(event, self.now, 1.0))
    }

    pub(super) fn tick(&mut self) -> Vec<String> {
        self.handle(Event::Tick)
    }

    /// So much later.
    pub(super) fn later(&mut self, secs: u64) -> Vec<String> {
        self.now = self.now + Duration::from_secs(secs);
        self.tick()
    }

    pub(super) fn delta(
        &mut self,
        kind: Kind,
        nonce: &str,
        resources: &[(&str, &str, Any)],
    ) -> Vec<String> {
        self.handle(Event::Delta(delta(kind, nonce, resources, &[])))
    }

    pub(super) fn gone(&mut self, kind: Kind, nonce: &str, names: &[&str]) -> Vec<String> {
        self.handle(Event::Delta(delta(kind, nonce, &[], names)))
    }

    pub(super) fn full(
        &mut self,
        kind: Kind,
        version: &str,
        nonce: &str,
        resources: &[Any],
    ) -> Vec<String> {
        self.handle(Event::Full(discovery::DiscoveryResponse {
            version_info: version.to_owned(),
            resources: resources.to_vec(),
            type_url: kind.type_url(),
            nonce: nonce.to_owned(),
            ..Default::default()
        }))
    }

    /// All that was handed on is good.
    pub(super) fn good(&mut self) -> Vec<String> {
        self.handle(Event::Applied(Verdict::default()))
    }

    /// These are not; what is held serves.
    pub(super) fn bad(&mut self, refused: &[(Kind, &str, &str)]) -> Vec<String> {
        let held = |kind: Kind, name: &str| {
            let mut all = self.session.held();
            let found = all.find(|(of, one, _)| *of == kind && &***one == name);
            found.map(|(_, _, resource)| resource.clone())
        };
        let refused = refused
            .iter()
            .map(|(kind, name, why)| refusal(*kind, name, why, held(*kind, name)))
            .collect();
        self.handle(Event::Applied(Verdict {
            refused,
            ..Verdict::default()
        }))
    }

    /// The names and versions of what is held.
    pub(super) fn held(&self) -> Vec<String> {
        (self.session.held())
            .map(|(kind, name, Resource { version, .. })| {
                format!("{kind:?} {name}={}", text(version))
            })
            .collect()
    }
}

fn text(version: &Option<Arc<str>>) -> &str {
    version.as_deref().unwrap_or("another's")
}

/// That it is refused, and this serves in its place.
pub(super) fn refusal(
    kind: Kind,
    name: &str,
    why: &str,
    good: Option<Resource>,
) -> ((Kind, Name), Refusal) {
    let why = why.to_owned();
    ((kind, name.into()), Refusal { why, good })
}

/// A delta response.
pub(super) fn delta(
    kind: Kind,
    nonce: &str,
    resources: &[(&str, &str, Any)],
    removed: &[&str],
) -> discovery::DeltaDiscoveryResponse {
    let resources = resources
        .iter()
        .map(|(name, version, any)| discovery::Resource {
            name: (*name).to_owned(),
            version: (*version).to_owned(),
            resource: Some(any.clone()),
            ..Default::default()
        });
    discovery::DeltaDiscoveryResponse {
        resources: resources.collect(),
        removed_resources: removed.iter().map(|&name| name.to_owned()).collect(),
        type_url: kind.type_url(),
        nonce: nonce.to_owned(),
        ..Default::default()
    }
}

/// A cluster of this name whose endpoints come by themselves; `alt` makes it another one.
pub(super) fn eds(name: &str, alt: &str) -> Any {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType};
    pb::pack(&cluster::Cluster {
        name: name.to_owned(),
        alt_stat_name: alt.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        ..Default::default()
    })
}

/// A cluster that refers to nothing.
pub(super) fn fixed(name: &str, alt: &str) -> Any {
    pb::pack(&cluster::Cluster {
        name: name.to_owned(),
        alt_stat_name: alt.to_owned(),
        ..Default::default()
    })
}

/// Endpoints in this zone.
pub(super) fn endpoints(name: &str, zone: &str) -> Any {
    pb::pack(&endpoint::ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            locality: Some(core::Locality {
                zone: zone.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    })
}

/// A listener that is led by these routes.
pub(super) fn listener(name: &str, routes: &[&str]) -> Any {
    use hcm::http_connection_manager::RouteSpecifier;
    let chain = |routes: &&str| listener::FilterChain {
        filters: vec![listener::Filter {
            name: "http".to_owned(),
            config_type: Some(listener::filter::ConfigType::TypedConfig(pb::pack(
                &hcm::HttpConnectionManager {
                    route_specifier: Some(RouteSpecifier::Rds(hcm::Rds {
                        route_config_name: (*routes).to_owned(),
                        ..Default::default()
                    })),
                    ..Default::default()
                },
            ))),
        }],
        ..Default::default()
    };
    pb::pack(&listener::Listener {
        name: name.to_owned(),
        filter_chains: routes.iter().map(chain).collect(),
        ..Default::default()
    })
}

/// Routes with a virtual host of this name.
pub(super) fn routes(name: &str, host: &str) -> Any {
    pb::pack(&route::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: host.to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    })
}

/// What was done, a line each; notices aside.
pub(super) fn said(actions: &[Action]) -> Vec<String> {
    actions.iter().filter_map(line).collect()
}

fn line(action: &Action) -> Option<String> {
    let kind = |url: &str| format!("{:?}", Kind::of_url(url).unwrap());
    Some(match action {
        Action::Open(server, protocol) => format!("open {server} {protocol:?}"),
        Action::Close(why) => format!("close: {why}"),
        Action::Tell(_) => return None,
        Action::Apply(update) => {
            let changes = update
                .changes
                .iter()
                .map(|((kind, name), change)| match change {
                    Change::Put(Resource { version, .. }) => {
                        format!("{kind:?} {name}={}", text(version))
                    }
                    Change::Removed => format!("{kind:?} {name} removed"),
                    Change::Missing => format!("{kind:?} {name} missing"),
                    Change::Withdrawn => format!("{kind:?} {name} withdrawn"),
                });
            format!("apply {}", changes.collect::<Vec<_>>().join(", "))
        }
        Action::Delta(request) => {
            let kind = kind(&request.type_url);
            let who = if request.node.is_some() { " node" } else { "" };
            match (&request.error_detail, request.response_nonce.as_str()) {
                (Some(error), nonce) => format!("{kind} nack {nonce}: {}", error.message),
                (None, "") => {
                    let mut has: Vec<String> = (request.initial_resource_versions.iter())
                        .map(|(name, version)| format!("{name}={version}"))
                        .collect();
                    has.sort();
                    format!(
                        "{kind} +[{}] -[{}] has [{}]{who}",
                        request.resource_names_subscribe.join(","),
                        request.resource_names_unsubscribe.join(","),
                        has.join(","),
                    )
                }
                (None, nonce) => format!("{kind} ack {nonce}"),
            }
        }
        Action::Full(request) => {
            let who = if request.node.is_some() { " node" } else { "" };
            let error = request.error_detail.as_ref();
            format!(
                "{} v={} n={} [{}]{who}{}",
                kind(&request.type_url),
                request.version_info,
                request.response_nonce,
                request.resource_names.join(","),
                error.map_or(String::new(), |error| format!(" error: {}", error.message)),
            )
        }
    })
}

/// Whatever else is wrong, a protocol is one of two.
pub(super) const PROTOCOLS: [Protocol; 2] = [Protocol::Delta, Protocol::Full];
