//! A compiled model as resources that travel.

use std::sync::{Arc, LazyLock};

use prost::{Message, Name};

use super::memo::{Making, Part};
use super::{Catalog, Memo, Resource, Store, Traits, grpc};
use crate::canonical::{self, canonical};
use crate::compile::{Compiled, Context, Made, Unmade, ads};
use crate::envoy::{Exports, Secrets};
use crate::error::Findings;
use crate::meta::AnyClusterMeta;
use crate::pb::{self, cluster, endpoint, listener, route};
use crate::session::Kind;

/// For whom it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum Flavor {
    /// Our gateway.
    #[default]
    Proxy,
    /// An Envoy, which is told what our gateway knows by itself: whom a route is exported to.
    Envoy,
    /// An Envoy that nobody gives secrets.
    Bare,
    /// A workload with gRPC's own resolver.
    Grpc,
}

/// What a node of `context` is told. What is as it was `before` keeps its bytes, and what was made of the
/// same is not made again.
pub(crate) fn catalog(
    (context, flavor): (Context<'_>, Flavor),
    (store, memo): (&mut Store, &mut Memo),
    before: Option<&Catalog>,
    findings: &mut Findings,
) -> Catalog {
    let compiled = Compiled::new(context, findings);
    let secrets = match flavor {
        Flavor::Envoy => Some(Secrets::by_cluster()),
        Flavor::Bare => Some(Secrets::nowhere()),
        Flavor::Proxy | Flavor::Grpc => None,
    };
    let secrets = secrets.as_ref();
    let mut shelves = Shelves {
        making: Making::new(std::mem::take(memo), context),
        store,
        lists: Default::default(),
    };
    shelves.clusters(&compiled, flavor, secrets);
    if flavor == Flavor::Grpc {
        let on_demand = Traits {
            is_on_demand: true,
            has_endpoints: false,
        };
        for listener in grpc::listeners(&compiled) {
            let made = resource(Kind::Listener, &listener.name, &listener, on_demand);
            shelves.add(Kind::Listener, made);
        }
    } else {
        // Every Envoy.
        let is_told = secrets.is_some();
        let exports = LazyLock::new(|| Exports::new(context));
        let exports = || is_told.then(|| &*exports);
        shelves.listeners(compiled.listeners_by(findings, |unmade| {
            shelves.making.part_of(&unmade, |mut chain| {
                // What cannot be guarded is left out: nobody is let in there.
                if let Some(exports) = exports()
                    && exports.guard_chain(unmade.listener, &mut chain).is_err()
                {
                    return None;
                }
                if let Some(secrets) = secrets
                    && secrets.chain(&mut chain).is_err()
                {
                    return None;
                }
                Some(field(CHAINS, &canonical::of_chain(chain.encode_to_vec())))
            })
        }));
        shelves.routes(compiled.routes_by(|unmade| {
            shelves.making.part_of(&unmade, |mut host| {
                if let Some(exports) = exports()
                    && exports.guard_host(unmade.listener, &mut host).is_err()
                {
                    return None;
                }
                Some(field(HOSTS, &canonical::of_host(host.encode_to_vec())))
            })
        }));
    }
    let Shelves { making, lists, .. } = shelves;
    *memo = making.end();
    Catalog::new(lists, before)
}

/// `Listener.filter_chains`, and `RouteConfiguration.virtual_hosts`.
const CHAINS: u32 = 3;
const HOSTS: u32 = 2;

fn field(number: u32, message: &[u8]) -> Vec<u8> {
    let mut to = Vec::with_capacity(message.len() + 8);
    super::put(number, message, &mut to);
    to
}

struct Shelves<'a> {
    making: Making,
    store: &'a mut Store,
    lists: [Vec<Arc<Resource>>; 4],
}

impl Shelves<'_> {
    fn add(&mut self, kind: Kind, made: Resource) -> Arc<Resource> {
        let resource = self.store.put(kind, made);
        self.put(kind, &resource);
        resource
    }

    fn put(&mut self, kind: Kind, resource: &Arc<Resource>) {
        if let Some(list) = self.lists.get_mut(kind as usize) {
            list.push(Arc::clone(resource));
        }
    }

    fn clusters(&mut self, compiled: &Compiled<'_>, flavor: Flavor, secrets: Option<&Secrets>) {
        for made in compiled.peers() {
            self.add_packed(pack(made, flavor, secrets));
        }
        let making = &self.making;
        let services = compiled.clusters_by(|unmade| {
            let input = unmade.input();
            let made = match making.clusters(input) {
                Some(known) => Err(known.clone()),
                None => Ok(unmade
                    .make()
                    .map(|made| made.map(|made| pack(made, flavor, secrets)))),
            };
            (input, made)
        });
        for (input, made) in services {
            let made = match made {
                Ok(made) => {
                    let made = made.into_iter().flatten();
                    made.flat_map(|packed| self.add_packed(packed)).collect()
                }
                Err(known) => {
                    for (kind, resource) in &known {
                        self.put(*kind, resource);
                    }
                    known
                }
            };
            self.making.keep_clusters(input, made);
        }
        for made in compiled.others() {
            self.add_packed(pack(made, flavor, secrets));
        }
    }

    fn add_packed(&mut self, packed: Packed) -> Vec<(Kind, Arc<Resource>)> {
        let Packed { cluster, endpoints } = packed;
        let mut added = vec![(Kind::Cluster, self.add(Kind::Cluster, cluster))];
        if let Some(endpoints) = endpoints {
            added.push((Kind::Endpoints, self.add(Kind::Endpoints, endpoints)));
        }
        added
    }

    fn listeners(&mut self, made: Vec<(listener::Listener, Vec<(u128, Part)>)>) {
        for (listener, chains) in made {
            let shell = canonical(&listener::Listener::type_url(), listener.encode_to_vec());
            let of = (Kind::Listener, &*listener.name);
            let whole = self.making.whole(self.store, of, (&shell, CHAINS), chains);
            self.put(Kind::Listener, &whole);
        }
    }

    fn routes(&mut self, made: Vec<(String, Vec<(u128, Part)>)>) {
        for (name, mut hosts) in made {
            // What cannot be guarded is not told.
            if hosts.iter().any(|(_, host)| !host.is_there()) {
                hosts.clear();
            }
            let shell = route::RouteConfiguration {
                name,
                ..Default::default()
            };
            let of = (Kind::Routes, &*shell.name);
            let bytes = shell.encode_to_vec();
            let whole = self.making.whole(self.store, of, (&bytes, HOSTS), hosts);
            self.put(Kind::Routes, &whole);
        }
    }
}

impl Making {
    /// The part that is made of the same, or what `encode` makes of it now.
    fn part_of<T>(
        &self,
        unmade: &Unmade<'_, T>,
        encode: impl FnOnce(T) -> Option<Vec<u8>>,
    ) -> (u128, Part) {
        let input = unmade.input();
        let part = match self.part(input) {
            Some(known) => known.clone(),
            None => encode(unmade.make()).map_or_else(Part::missing, Part::new),
        };
        (input, part)
    }
}

struct Packed {
    cluster: Resource,
    endpoints: Option<Resource>,
}

fn pack(made: Made, flavor: Flavor, secrets: Option<&Secrets>) -> Packed {
    let Made { mut cluster, meta } = made;
    if let Some(secrets) = secrets {
        // It was packed by us, and can be read.
        secrets.cluster(&mut cluster).ok();
    }
    let mut endpoints = match meta {
        AnyClusterMeta::Traffic(_) => apart(&mut cluster),
        // They are few, and what they say belongs together.
        AnyClusterMeta::Peer(_) => None,
    };
    if flavor == Flavor::Grpc {
        grpc::cluster(&mut cluster);
        endpoints.iter_mut().for_each(grpc::endpoints);
    }
    cluster.metadata = Some(pb::metadata(&meta));
    let traits = Traits {
        has_endpoints: endpoints.is_some(),
        is_on_demand: false,
    };
    let name = &cluster.name;
    Packed {
        cluster: resource(Kind::Cluster, name, &cluster, traits),
        endpoints: endpoints.map(|one| resource(Kind::Endpoints, name, &one, Traits::default())),
    }
}

/// Has a cluster's addresses come by themselves, so that a change of one is small; names are resolved
/// by who has the cluster itself.
fn apart(cluster: &mut cluster::Cluster) -> Option<endpoint::ClusterLoadAssignment> {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};

    let fixed = ClusterDiscoveryType::Type(DiscoveryType::Static.into());
    if cluster.cluster_discovery_type != Some(fixed) {
        return None;
    }
    let endpoints = cluster.load_assignment.take()?;
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
    cluster.eds_cluster_config = Some(EdsClusterConfig {
        eds_config: Some(ads()),
        ..Default::default()
    });
    Some(endpoints)
}

/// Encoded where it is made: one thread alone would take longer for it than for all the rest.
fn resource<M: Message + Name>(kind: Kind, name: &str, message: &M, traits: Traits) -> Resource {
    let bytes = canonical(&M::type_url(), message.encode_to_vec());
    Resource::new(kind, name, &bytes, traits)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use zeugma_core::snapshot::Node;

    use super::*;
    use crate::model::Model;
    use crate::packed::{self, Resources};
    use crate::pb::{Any, core, listener};

    const MESH: &str = include_str!("mesh.yaml");

    fn with_context<R>(yaml: &str, of: impl FnOnce(Context<'_>, &Node) -> R) -> R {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mesh.yaml");
        std::fs::write(&path, yaml).unwrap();
        let contents = crate::files::read(&path, crate::files::LIMITS).unwrap();
        let (mut model, mut findings) = Model::read(contents.documents);
        model.name_files_from(dir.path());
        findings.extend(crate::model::check::check(&model));
        assert!(!findings.has_errors(), "{findings}");
        let gateway = &model.gateways[0];
        let node = gateway.node(gateway.spec.locality.clone().unwrap().0);
        let context = Context {
            model: &model,
            gateway,
            node: &node,
        };
        of(context, &node)
    }

    fn of(yaml: &str, store: &mut Store, before: Option<&Catalog>) -> Catalog {
        with_context(yaml, |context, _| {
            catalog(
                (context, Flavor::Proxy),
                (store, &mut Memo::default()),
                before,
                &mut Findings::new(),
            )
        })
    }

    fn messages<M: Message + Name + Default>(catalog: &Catalog, kind: Kind) -> BTreeMap<String, M> {
        let read = |one: &Arc<Resource>| {
            let bytes = one.whole();
            let response =
                envoy_types::pb::envoy::service::discovery::v3::DiscoveryResponse::decode(bytes);
            let any: Any = response.unwrap().resources.remove(0);
            (one.name().to_string(), pb::unpack::<M>(&any).unwrap())
        };
        catalog.shelf(kind).iter().map(read).collect()
    }

    #[test]
    fn the_same_documents_make_the_same_bytes_every_time() {
        let first = of(MESH, &mut Store::default(), None);
        assert!(
            first.shelf(Kind::Routes).iter().count() > 2
                && first.shelf(Kind::Listener).iter().count() > 2
        );
        for _ in 0..10 {
            let again = of(MESH, &mut Store::default(), None);
            for kind in Kind::ALL {
                let difference = again.shelf(kind).difference(first.shelf(kind));
                assert!(difference.changed.is_empty(), "{:?}", difference.changed);
            }
        }
    }

    #[test]
    fn one_endpoint_is_one_resource_encoded() {
        let mut store = Store::default();
        let old = of(MESH, &mut store, None);
        let encoded = store.encoded();
        let yaml = MESH.replacen("10.0.2.10:80", "10.0.2.11:80", 1);
        let new = of(&yaml, &mut store, Some(&old));
        let changed: Vec<String> = Kind::ALL
            .into_iter()
            .flat_map(|kind| {
                let difference = new.shelf(kind).difference(old.shelf(kind));
                let changed = difference.changed.iter();
                changed
                    .map(|one| format!("{kind:?} {}", one.name()))
                    .collect::<Vec<_>>()
            })
            .collect();
        // The service's two clusters, for workloads and for other clusters.
        let expected = [
            "Endpoints outbound|shop/orders:80",
            "Endpoints own|shop/orders:80",
        ];
        assert_eq!(changed, expected);
        assert_eq!(store.encoded(), encoded + 2);
    }

    #[test]
    fn grpcs_resolvers_are_told_in_their_words() {
        let made = with_context(MESH, |context, _| {
            let mut store = Store::default();
            catalog(
                (context, Flavor::Grpc),
                (&mut store, &mut Memo::default()),
                None,
                &mut Findings::new(),
            )
        });
        let listeners = messages::<listener::Listener>(&made, Kind::Listener);
        assert!(
            listeners.contains_key("orders.example:80") && listeners.contains_key("orders.example")
        );
        assert!(
            !listeners
                .keys()
                .any(|name| name.contains('*') || name == "mesh"),
            "{listeners:?}"
        );
        assert!(
            made.shelf(Kind::Listener)
                .iter()
                .all(|one| one.is_on_demand())
        );
        assert_eq!(made.shelf(Kind::Routes).iter().count(), 0);
        for (name, cluster) in messages::<cluster::Cluster>(&made, Kind::Cluster) {
            let policy = i32::from(cluster::cluster::LbPolicy::RoundRobin);
            assert_eq!(cluster.lb_policy, policy, "{name}");
        }
        for (name, assigned) in messages::<endpoint::ClusterLoadAssignment>(&made, Kind::Endpoints)
        {
            let mut seen = Vec::new();
            for group in assigned.endpoints {
                assert!(
                    group
                        .load_balancing_weight
                        .is_some_and(|weight| weight.value > 0),
                    "{name}"
                );
                let place = (group.priority, group.locality);
                assert!(!seen.contains(&place), "{name}");
                seen.push(place);
            }
        }
    }

    /// A service that is told who calls, and is asked by TLS.
    const TOLD: &str = "\n---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshRoute\nmetadata: { name: told, namespace: shop }\nspec: { port: 99, backends: [{ endpoints: [10.0.7.1], tls: mesh, spiffeIDs: [\"spiffe://east.example/ns/shop/*\"], proxyProtocol: true }], allow: [{ listeners: [mesh] }], export: { to: [west] } }\n";

    /// Where a certificate and a trust bundle come from, of everything that has TLS of its own; by listener
    /// or cluster.
    fn sources(flavor: Flavor) -> BTreeMap<String, Vec<[core::ConfigSource; 2]>> {
        use crate::pb::tls;

        let made = with_context(&format!("{MESH}{TOLD}"), |context, _| {
            let (mut store, mut memo) = (Store::default(), Memo::default());
            catalog(
                (context, flavor),
                (&mut store, &mut memo),
                None,
                &mut Findings::new(),
            )
        });
        let mut all = BTreeMap::<_, Vec<_>>::new();
        let mut add = |name: &String, tls: Option<tls::CommonTlsContext>| {
            all.entry(name.clone())
                .or_default()
                .push(both(tls.unwrap()));
        };
        for (name, one) in messages::<listener::Listener>(&made, Kind::Listener) {
            for socket in (one.filter_chains.into_iter()).filter_map(|one| one.transport_socket) {
                let context = read::<tls::DownstreamTlsContext>(&socket).unwrap();
                add(&name, context.common_tls_context);
            }
        }
        for (name, one) in messages::<cluster::Cluster>(&made, Kind::Cluster) {
            let sockets = one.transport_socket_matches.into_iter();
            for mut socket in sockets.filter_map(|one| one.transport_socket) {
                if let Some(around) = read::<pb::ProxyProtocolUpstreamTransport>(&socket) {
                    socket = around.transport_socket.unwrap();
                }
                if let Some(context) = read::<tls::UpstreamTlsContext>(&socket) {
                    add(&name, context.common_tls_context);
                }
            }
        }
        all
    }

    fn both(tls: pb::tls::CommonTlsContext) -> [core::ConfigSource; 2] {
        use crate::pb::tls::common_tls_context::ValidationContextType;

        let [own] = &*tls.tls_certificate_sds_secret_configs else {
            panic!("{tls:?}");
        };
        let Some(ValidationContextType::CombinedValidationContext(context)) =
            tls.validation_context_type
        else {
            panic!("it trusts anybody");
        };
        let trust = context.validation_context_sds_secret_config.unwrap();
        [own.sds_config.clone(), trust.sds_config].map(Option::unwrap)
    }

    fn read<M: Message + Name + Default>(socket: &core::TransportSocket) -> Option<M> {
        let Some(core::transport_socket::ConfigType::TypedConfig(any)) = &socket.config_type else {
            return None;
        };
        pb::unpack(any).ok()
    }

    #[test]
    fn p34_an_envoy_waits_for_secrets_only_where_somebody_gives_it_some() {
        use core::config_source::ConfigSourceSpecifier;

        let (by_stream, by_us) = (sources(Flavor::Envoy), sources(Flavor::Bare));
        let mut all: BTreeMap<&str, usize> = (by_us.iter())
            .map(|(name, all)| (name.as_str(), all.len()))
            .collect();
        // TLS ends for the seven ports that are exported and not passed through, and for workloads that
        // speak it to one of the four of HTTP.
        let listeners = ["mesh", "apps"].map(|name| all.remove(name).unwrap());
        assert!(listeners[0] >= 7 && listeners[1] >= 4, "{listeners:?}");
        // It begins for each backend of a cluster that is a peer or is asked by the mesh's TLS.
        let expected = [
            ("mirror|shop/orders:80|west", 1),
            ("outbound|shop/more:80", 2),
            ("outbound|shop/more:81", 2),
            ("outbound|shop/more:82", 2),
            ("outbound|shop/orders:80", 1),
            ("outbound|shop/told:99", 1),
            ("own|shop/more:80", 1),
            ("own|shop/more:81", 1),
            ("own|shop/more:82", 1),
            ("own|shop/told:99", 1),
            ("peer|north", 1),
            ("peer|west", 1),
            ("split|outbound|shop/more:80|backend-1", 1),
            ("split|outbound|shop/more:80|west", 1),
            ("split|outbound|shop/more:81|backend-1", 1),
            ("split|outbound|shop/more:81|west", 1),
        ];
        assert_eq!(all, expected.into());
        assert!(by_stream.keys().eq(by_us.keys()));
        for source in by_stream.into_values().flatten().flatten() {
            let by_stream = source.config_source_specifier;
            assert!(matches!(
                by_stream,
                Some(ConfigSourceSpecifier::ApiConfigSource(_))
            ));
            assert_eq!(source.initial_fetch_timeout, None);
        }
        for source in by_us.into_values().flatten().flatten() {
            let by_us = source.config_source_specifier;
            assert!(matches!(by_us, Some(ConfigSourceSpecifier::Ads(_))));
            // Zero would be for ever.
            let patience = source.initial_fetch_timeout.unwrap();
            assert_eq!((patience.seconds, patience.nanos), (0, 1_000_000));
        }
    }

    #[test]
    fn p5_what_counts_by_a_factor_is_told_to_nobody_who_cannot_count_so() {
        let made = |flavor| {
            with_context(MESH, |context, _| {
                let (mut store, mut memo) = (Store::default(), Memo::default());
                let made = catalog(
                    (context, flavor),
                    (&mut store, &mut memo),
                    None,
                    &mut Findings::new(),
                );
                let all = messages::<endpoint::ClusterLoadAssignment>(&made, Kind::Endpoints);
                let factors = all.into_values().filter_map(|one| one.policy);
                factors
                    .filter(|one| one.overprovisioning_factor.is_some())
                    .count()
            })
        };
        assert!(made(Flavor::Proxy) > 0);
        assert_eq!(made(Flavor::Grpc), 0);
    }

    #[test]
    fn what_travels_says_what_is_handed_over_within_one_process() {
        let made = of(MESH, &mut Store::default(), None);
        let mut clusters = messages::<cluster::Cluster>(&made, Kind::Cluster);
        let assigned = messages::<endpoint::ClusterLoadAssignment>(&made, Kind::Endpoints);
        assert!(assigned.len() > 3);
        for (name, assignment) in assigned {
            let cluster = clusters.get_mut(&name).unwrap();
            let eds = cluster.eds_cluster_config.take().unwrap();
            let source = eds.eds_config.unwrap().config_source_specifier;
            assert!(matches!(
                source,
                Some(core::config_source::ConfigSourceSpecifier::Ads(_))
            ));
            assert_eq!(assignment.cluster_name, name);
            assert!(cluster.load_assignment.replace(assignment).is_none());
            let kind = cluster::cluster::DiscoveryType::Static;
            cluster.cluster_discovery_type =
                Some(cluster::cluster::ClusterDiscoveryType::Type(kind.into()));
        }
        let packed = |name: &String, message: &cluster::Cluster| (name.clone(), pb::pack(message));
        let mut of_wire = Resources {
            clusters: clusters
                .iter()
                .map(|(name, one)| packed(name, one))
                .collect(),
            ..Default::default()
        };
        for (name, one) in messages::<route::RouteConfiguration>(&made, Kind::Routes) {
            of_wire.routes.push((name, pb::pack(&one)));
        }
        for (name, one) in messages::<listener::Listener>(&made, Kind::Listener) {
            of_wire.listeners.push((name, pb::pack(&one)));
        }
        with_context(MESH, |context, node| {
            let mut of_process = packed::compile(context, &mut Findings::new());
            of_process.clusters.sort_by(|a, b| a.0.cmp(&b.0));
            of_process.listeners.sort_by(|a, b| a.0.cmp(&b.0));
            let of_process = packed::ingest(&of_process, node.clone());
            assert_eq!(packed::ingest(&of_wire, node.clone()), of_process);
            assert!(of_process.unwrap().services.len() > 5);
        });
    }
}
