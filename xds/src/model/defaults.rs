//! What is meant where nothing is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use smallvec::{SmallVec, smallvec};
use zeugma_core::identity::TrustDomain;
use zeugma_core::locality::Locality;
use zeugma_core::names::{Host, HostPattern};
use zeugma_core::snapshot::{Failure, Node};

use super::scalar::{Admin, Reference, Text};
use super::{
    AccessLogFormatSpec, BackendSpec, ControlPlaneSpec, Document, InboundSpec, MeshGateway,
    MeshPeer, MeshRoute, Model, OnEmptySpec, ProfileType, ProtocolSpec, TlsSpec, TrustDomainSpec,
};
use crate::client::OnEmpty;
use crate::settings::{
    AccessLogFormat, AdminAddress, BundleEndpoint, BundleProfile, ControlPlane, Drain,
    ForeignDomain, GatewaySettings, Limits, StateDir, SvidApi, SvidFiles, SvidSds, SvidSource,
};

/// One port of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// Its name, where it is one of several.
    pub name: Option<String>,
    /// The port callers name.
    pub port: u16,
    /// The port of endpoints written without one.
    pub target_port: u16,
    /// What is inside its connections.
    pub protocol: ProtocolSpec,
}

const HTTP_PORT: u16 = 80;

impl MeshRoute {
    /// Gives back the room that its lists grew into as they were read: most have one entry, and room for
    /// four.
    pub(super) fn shrink_to_fit(&mut self) {
        self.backends.shrink_to_fit();
        self.allow.shrink_to_fit();
        self.deny.shrink_to_fit();
    }

    fn protocol_default(&self) -> ProtocolSpec {
        self.protocol.unwrap_or(ProtocolSpec::Tcp)
    }

    /// Its ports, in the order of their names; never empty. A tcp route without a port is refused
    /// by the check, and has port 0 here.
    pub(crate) fn ports(&self) -> SmallVec<[Port; 1]> {
        match &self.ports {
            Some(ports) => ports
                .iter()
                .map(|(name, spec)| Port {
                    name: Some(name.clone()),
                    port: spec.port,
                    target_port: spec.target_port.unwrap_or(spec.port),
                    protocol: spec.protocol.unwrap_or_else(|| self.protocol_default()),
                })
                .collect(),
            None => {
                let protocol = self.protocol_default();
                let port = self.port.unwrap_or(match protocol {
                    ProtocolSpec::Http => HTTP_PORT,
                    ProtocolSpec::Tcp => 0,
                });
                smallvec![Port {
                    name: None,
                    port,
                    target_port: port,
                    protocol,
                }]
            }
        }
    }

    /// What a listener does with TLS that asks for it.
    pub(crate) fn inbound(&self) -> InboundSpec {
        if let Some(inbound) = self.inbound {
            return inbound;
        }
        let is_tcp = self
            .ports()
            .iter()
            .all(|port| port.protocol == ProtocolSpec::Tcp);
        // Over every cluster's backends, so that all gateways of one file agree.
        let mut own = self
            .backends
            .iter()
            .filter(|backend| backend.peer.is_none())
            .peekable();
        let is_workload =
            own.peek().is_some() && own.all(|backend| backend.tls == Some(TlsSpec::Workload));
        if is_tcp && is_workload {
            InboundSpec::Passthrough
        } else {
            InboundSpec::Terminate
        }
    }
}

impl Document<MeshRoute> {
    /// What it is.
    pub(crate) fn ports(&self) -> SmallVec<[Port; 1]> {
        self.spec.ports()
    }

    /// What a listener does with TLS that asks for it.
    pub(crate) fn inbound(&self) -> InboundSpec {
        self.spec.inbound()
    }

    /// The hosts it answers to.
    pub(crate) fn hosts(&self) -> SmallVec<[HostPattern; 1]> {
        match &self.spec.hosts {
            Some(hosts) => hosts.iter().map(|host| host.0.clone()).collect(),
            None => {
                let default = self.host_default.get_or_init(|| {
                    let host = format!("{}.{}.svc.clusterset.local", self.name, self.namespace);
                    HostPattern::parse(&host).ok()
                });
                default.iter().cloned().collect()
            }
        }
    }

    /// The first host without a wildcard.
    pub(crate) fn first_host(&self) -> Option<Host> {
        self.hosts().into_iter().find_map(|host| match host {
            HostPattern::Exact(host) => Some(host),
            HostPattern::Below(_) => None,
        })
    }
}

impl BackendSpec {
    /// The name `failover` refers to.
    pub(crate) fn display_name(&self, at: usize) -> String {
        match (&self.name, &self.peer) {
            (Some(Text(name)), _) | (None, Some(Text(name))) => name.0.clone(),
            (None, None) => format!("backend-{}", at + 1),
        }
    }
}

impl Reference {
    /// `namespace/name`, the namespace being the document's own where none is written.
    pub(crate) fn id(&self, namespace: &str) -> String {
        let namespace = self.namespace.as_deref().unwrap_or(namespace);
        format!("{namespace}/{}", self.name)
    }
}

/// What is looked up in a model more often than once.
#[derive(Debug, Default)]
pub(crate) struct Index {
    ports_by_host: BTreeMap<HostPattern, BTreeSet<u16>>,
    routes: BTreeMap<String, usize>,
}

impl Model {
    /// Builds the index, of the routes alone; called when every document is read, and when routes changed.
    pub(crate) fn index(&mut self) {
        let mut index = Index::default();
        for (at, route) in self.routes.iter().enumerate() {
            index.routes.entry(route.id()).or_insert(at);
            for host in route.hosts() {
                let ports = index.ports_by_host.entry(host).or_default();
                ports.extend(route.ports().iter().map(|port| port.port));
            }
        }
        self.index = index;
    }

    /// The route of this `namespace/name`.
    pub(crate) fn route(&self, id: &str) -> Option<&Document<MeshRoute>> {
        self.index
            .routes
            .get(id)
            .and_then(|at| self.routes.get(*at).map(AsRef::as_ref))
    }

    /// Every `namespace/name` of a route.
    pub(crate) fn route_ids(&self) -> impl Iterator<Item = &str> {
        self.index.routes.keys().map(String::as_str)
    }

    /// The peer of this name.
    pub(crate) fn peer(&self, name: &str) -> Option<&Document<MeshPeer>> {
        self.peers.iter().find(|peer| peer.name == name)
    }

    /// The peer that is this cluster.
    pub(crate) fn peer_of_cluster(&self, cluster: &str) -> Option<&Document<MeshPeer>> {
        self.peers
            .iter()
            .find(|peer| peer.spec.cluster.0.0 == cluster)
    }

    /// The peers that are not the cluster itself.
    pub(crate) fn other_peers<'a>(
        &'a self,
        own: &'a str,
    ) -> impl Iterator<Item = &'a Document<MeshPeer>> {
        self.peers
            .iter()
            .filter(move |peer| peer.spec.cluster.0.0 != own)
    }

    /// Whether each host of `route` stands for one port alone.
    pub(crate) fn is_bare_host_enough(&self, route: &Document<MeshRoute>) -> bool {
        route.hosts().iter().all(|host| {
            self.index
                .ports_by_host
                .get(host)
                .is_none_or(|ports| ports.len() <= 1)
        })
    }
}

impl Document<MeshGateway> {
    /// The names of its listeners, in the order written.
    pub(crate) fn listeners_as_written(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.spec.listeners.keys().map(String::as_str).collect();
        names.sort_by_key(|name| {
            let place = self.at_key(&format!("spec.listeners.{name}"));
            (place.line, place.column)
        });
        names
    }

    /// Who the gateway is, at `locality` where the document's own does not hold.
    pub(crate) fn node(&self, locality: Locality) -> Node {
        Node {
            name: self.name.as_str().into(),
            cluster: self.spec.cluster.0.0.as_str().into(),
            locality,
            trust_domain: self.spec.trust_domain.0.clone(),
        }
    }

    /// Everything but the listeners, with its defaults.
    pub(crate) fn settings(
        &self,
        node: &Node,
        domains: &[Document<TrustDomainSpec>],
    ) -> GatewaySettings {
        let limits = &self.spec.limits;
        let connections = limits.connections.unwrap_or(50_000);
        let drain = &self.spec.drain;
        GatewaySettings {
            name: self.name.clone(),
            cluster: node.cluster.to_string(),
            trust_domain: node.trust_domain.clone(),
            locality: node.locality.clone(),
            svid: self.svid(),
            domains: (domains.iter())
                .filter_map(|domain| {
                    let name = TrustDomain::parse(&domain.name).ok()?;
                    // What is another gateway's foreign one may be our own.
                    (name != node.trust_domain).then(|| foreign(name, domain))
                })
                .collect(),
            admin: match &self.spec.admin {
                Some(Text(Admin::Unix(path))) => AdminAddress::Unix(self.folder().join(path)),
                Some(Text(Admin::Tcp(address))) => AdminAddress::Tcp(*address),
                None => AdminAddress::Default,
            },
            admin_token: (self.spec.admin_token.as_ref()).map(|path| self.folder().join(path)),
            probes: self
                .spec
                .probes
                .as_ref()
                .map_or_else(|| loopback(PROBES), |at| at.0),
            metrics: self
                .spec
                .metrics
                .as_ref()
                .map_or_else(|| loopback(METRICS), |at| at.0),
            state_dir: self
                .spec
                .state_dir
                .as_ref()
                .map_or(StateDir::Default, |path| {
                    StateDir::Given(self.folder().join(path))
                }),
            control_plane: self.spec.control_plane.as_ref().map(control_plane),
            workers: self.spec.workers,
            limits: Limits {
                connections,
                handshakes: limits
                    .handshakes
                    .unwrap_or_else(|| (connections / 4).max(1)),
                handshake_timeout: or_secs(limits.handshake_timeout.as_ref(), 10),
                header_timeout: or_secs(limits.header_timeout.as_ref(), 10),
                streams: limits.streams.unwrap_or(100),
                header_bytes: limits.header_bytes.as_ref().map_or(64 * 1024, |n| n.0.0),
                memory_bytes: limits.memory.as_ref().map(|size| size.0.0 as u64),
            },
            drain: Drain {
                delay: or_secs(drain.delay.as_ref(), 10),
                timeout: or_secs(drain.timeout.as_ref(), 45),
            },
            access_log: match self.spec.access_log.format {
                Some(AccessLogFormatSpec::Text) => AccessLogFormat::Text,
                Some(AccessLogFormatSpec::Json) | None => AccessLogFormat::Json,
            },
        }
    }
}

impl Document<MeshGateway> {
    /// Where its certificate comes from. One without either is refused by the check, and has files
    /// without a path here.
    fn svid(&self) -> SvidSource {
        let path = |written: &PathBuf| self.folder().join(written);
        let svid = &self.spec.svid;
        match (&svid.files, &svid.workload_api, &svid.sds) {
            (Some(files), ..) => SvidSource::Files(SvidFiles {
                certificate: path(&files.certificate),
                key: path(&files.key),
                bundles: path(&files.bundles),
                crls: files.crls.as_ref().map(path),
                denied: files.denied.as_ref().map(path),
            }),
            (None, Some(Text(address)), _) => SvidSource::WorkloadApi(SvidApi {
                address: address.clone(),
                denied: svid.denied.as_ref().map(path),
            }),
            (None, None, Some(sds)) => SvidSource::Sds(SvidSds {
                address: sds.address.0.clone(),
                svid: sds.svid.clone().unwrap_or_else(|| SECRET.to_owned()),
                bundles: match &sds.bundles {
                    Some(bundles) => bundles.clone(),
                    None => vec![TRUST.to_owned()],
                },
                denied: svid.denied.as_ref().map(path),
            }),
            (None, None, None) => SvidSource::Files(SvidFiles {
                certificate: PathBuf::new(),
                key: PathBuf::new(),
                bundles: PathBuf::new(),
                crls: None,
                denied: None,
            }),
        }
    }
}

/// What a SPIRE agent calls the secret with a workload's certificate ...
const SECRET: &str = "default";
/// ... and the one with its trust domain's anchors.
const TRUST: &str = "ROOTCA";
/// The port of `/ready` where nothing is written.
pub(crate) const PROBES: u16 = 15021;
/// The port of `/metrics` where nothing is written.
pub(crate) const METRICS: u16 = 15020;

/// Where a gateway's own services are unless something else is written.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The duration written, or this many seconds.
pub(crate) fn or_secs(written: Option<&Text<Duration>>, default: u64) -> Duration {
    written.map_or_else(|| Duration::from_secs(default), |written| written.0)
}

/// `health.passive.on` where nothing is written.
pub(crate) fn passive_on(protocol: ProtocolSpec) -> Vec<Failure> {
    let mut on = vec![Failure::Connect, Failure::Reset, Failure::Timeout];
    if protocol == ProtocolSpec::Http {
        on.extend([502, 503, 504].map(Failure::Status));
    }
    on
}

/// `retries.on` where nothing is written.
pub(crate) fn retry_on(protocol: ProtocolSpec) -> Vec<Failure> {
    let mut on = vec![Failure::Connect];
    if protocol == ProtocolSpec::Http {
        on.extend([Failure::RefusedStream, Failure::Reset]);
        on.extend([502, 503, 504].map(Failure::Status));
        on.push(Failure::Unavailable);
    }
    on
}

fn control_plane(spec: &ControlPlaneSpec) -> ControlPlane {
    ControlPlane {
        addresses: spec.addresses.iter().map(|one| one.0.clone()).collect(),
        spiffe_ids: spec.spiffe_ids.iter().map(|id| id.0.clone()).collect(),
        on_empty: match spec.on_empty {
            Some(OnEmptySpec::Apply) => OnEmpty::Apply,
            Some(OnEmptySpec::Keep) | None => OnEmpty::Keep,
        },
    }
}

fn foreign(name: TrustDomain, document: &Document<TrustDomainSpec>) -> ForeignDomain {
    let spec = &document.spec;
    let profile = spec.bundle_endpoint_profile.as_ref();
    let profile = profile.and_then(|profile| match profile.kind {
        ProfileType::HttpsWeb => Some(BundleProfile::Web),
        ProfileType::HttpsSpiffe => {
            let id = profile.endpoint_spiffe_id.as_ref()?;
            Some(BundleProfile::Spiffe(id.0.clone()))
        }
    });
    ForeignDomain {
        domain: name,
        bundle: (spec.bundle.as_ref()).map(|path| document.folder().join(path)),
        endpoint: (spec.bundle_endpoint_url.as_ref().zip(profile)).map(|(url, profile)| {
            BundleEndpoint {
                url: url.0.clone(),
                profile,
            }
        }),
    }
}
