use std::sync::Arc;

use zeugma_core::identity::TrustDomain;
use zeugma_core::locality::Locality;
use zeugma_core::snapshot::Snapshot;

use super::*;
use crate::compile::Context;
use crate::model::Model;
use crate::pb::{self, Any, cluster, endpoint, listener, route};
use crate::state::Versions;

use Kind::{Cluster, Endpoints, Listener, Routes};

const GATEWAY: &str = r#"
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    apps: { address: "127.0.0.1:15001", role: workloads }
    more: { address: "127.0.0.1:15002", role: workloads }
"#;

const ORDERS: &str = r#"
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: orders, namespace: shop }
spec: { protocol: http, backends: [{ endpoints: ["10.0.1.1:80"] }], allow: [{ listeners: [apps, more] }] }
"#;

const CART: &str = r#"
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: cart, namespace: shop }
spec: { protocol: http, backends: [{ endpoints: ["10.0.2.1:80"] }], allow: [{ listeners: [apps, more] }] }
"#;

/// What the documents compile to.
fn compiled(documents: &[&str]) -> BTreeMap<Key, Any> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.yaml");
    std::fs::write(&path, documents.concat()).unwrap();
    let sources = crate::files::read(&path, crate::files::LIMITS).unwrap();
    let (model, mut findings) = Model::read(sources.documents);
    assert!(findings.is_empty(), "{findings}");
    let context = Context {
        model: &model,
        gateway: &model.gateways[0],
        node: &node(),
    };
    let packed = crate::packed::compile(context, &mut findings);
    let all = [
        (Cluster, packed.clusters),
        (Routes, packed.routes),
        (Listener, packed.listeners),
    ];
    all.into_iter()
        .flat_map(|(kind, all)| {
            all.into_iter()
                .map(move |(name, any)| ((kind, name.as_str().into()), any))
        })
        .collect()
}

fn node() -> Node {
    Node {
        name: "east-gw".into(),
        cluster: "east".into(),
        locality: Locality::parse("eu/eu-1").unwrap(),
        trust_domain: TrustDomain::parse("east.example").unwrap(),
    }
}

fn put(kind: Kind, name: &str, version: &str, any: &Any) -> (Key, Change) {
    let references = crate::session::client::references(kind, name, any);
    let resource = Resource {
        version: Some(version.into()),
        body: Arc::new(any.clone().into()),
        references: references.unwrap(),
    };
    ((kind, name.into()), Change::Put(resource))
}

fn puts(all: &BTreeMap<Key, Any>, of: &[Kind], version: &str) -> Vec<(Key, Change)> {
    (all.iter())
        .filter(|((kind, _), _)| of.contains(kind))
        .map(|((kind, name), any)| put(*kind, name, version, any))
        .collect()
}

fn all_known(changes: Vec<(Key, Change)>) -> Update {
    Update {
        changes: changes.into_iter().collect(),
        known: Kind::ALL.into(),
    }
}

/// A gateway that takes what it is given.
struct Given {
    holdings: Holdings,
    snapshot: Option<Snapshot>,
    /// How often only what changed was looked at ...
    alone: usize,
    /// ... while something was refused, or waited.
    beside: usize,
}

impl Given {
    fn new() -> Self {
        Self::on_empty(OnEmpty::Keep)
    }

    fn on_empty(on_empty: OnEmpty) -> Self {
        Self {
            holdings: Holdings::new(node(), on_empty),
            snapshot: None,
            alone: 0,
            beside: 0,
        }
    }

    /// What is refused, a line each.
    fn give(&mut self, update: Update) -> Vec<String> {
        let keys: Vec<Key> = update.changes.keys().cloned().collect();
        let faults = self.holdings.take(update);
        let whole = self.holdings.draft_of_all(faults.clone(), BTreeSet::new());
        let draft = self.holdings.draft(faults, BTreeSet::new());
        let (Ok(whole), Ok(draft)) = (whole.as_ref(), draft) else {
            assert!(whole.is_err(), "what can be drafted of all can be");
            self.holdings.refuse(keys, "it does not fit");
            return Vec::new();
        };
        let (served, all) = (&draft.served, &whole.served);
        assert_eq!(served.snapshot, all.snapshot, "as if all were looked at");
        assert_eq!(served.resources, all.resources);
        let version = Versions::of(&served.snapshot).whole();
        assert_eq!(served.snapshot.version, version);
        let mut of_all = self.holdings.clone();
        let expected = of_all.commit(whole);
        let verdict = self.holdings.commit(&draft);
        assert_eq!(verdict, expected, "and of the same for the same");
        assert_eq!(self.holdings.entries, of_all.entries);
        assert_eq!(self.holdings.unkept, of_all.unkept);
        if draft.look.is_none() {
            self.alone += 1;
            self.beside += usize::from(self.holdings.waiting() > 0 || !verdict.refused.is_empty());
        }
        self.snapshot = Some(draft.served.snapshot);
        let refused = (verdict.refused.iter())
            .map(|((kind, name), refusal)| format!("{kind:?} {name}: {}", refusal.why));
        refused
            .chain((verdict.revived.iter()).map(|(kind, name)| format!("{kind:?} {name} serves")))
            .chain((verdict.gone.iter()).map(|(kind, name)| format!("{kind:?} {name} is gone")))
            .collect()
    }

    /// The names of services, with the address of the first endpoint of each.
    fn services(&self) -> Vec<String> {
        let snapshot = self.snapshot.as_ref().unwrap();
        let of = |service: &zeugma_core::snapshot::Service| {
            let cluster = snapshot.cluster(service.outbound);
            let first = cluster.endpoints.first();
            format!(
                "{} {}",
                service.name,
                first.map_or_else(|| "none".to_owned(), |one| one.address.to_string())
            )
        };
        snapshot.services.iter().map(of).collect()
    }

    /// The listeners that lead somewhere.
    fn listeners(&self) -> Vec<String> {
        let all = self.snapshot.as_ref().unwrap().listeners.iter();
        all.map(|one| format!("{} {}", one.name, one.hosts.entries().count()))
            .collect()
    }
}

const NOTHING: [&str; 0] = [];

#[test]
fn what_came_serves_whatever_order_it_came_in() {
    let all = compiled(&[GATEWAY, ORDERS, CART]);
    let kinds = [Cluster, Listener, Routes];
    let mut whole = Given::new();
    assert_eq!(whole.give(all_known(puts(&all, &kinds, "1"))), NOTHING);
    assert_eq!(
        whole.services(),
        ["shop/cart 10.0.2.1:80", "shop/orders 10.0.1.1:80"]
    );
    assert_eq!(whole.listeners(), ["apps 2", "more 2"]);
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut given = Given::new();
        let mut known = BTreeSet::new();
        for nth in order {
            let kind = kinds[nth];
            known.insert(kind);
            // P31: a listener waits for its routes, and what refers to clusters until these are known.
            let update = Update {
                changes: puts(&all, &[kind], "1").into_iter().collect(),
                known: known.clone(),
            };
            assert_eq!(given.give(update), NOTHING, "{order:?}");
        }
        assert_eq!(given.snapshot, whole.snapshot, "{order:?}");
        assert_eq!(given.holdings.waiting(), 0, "{order:?}");
    }
}

#[test]
fn p29_one_that_is_bad_keeps_its_last_good_one_and_the_others_serve() {
    let before = compiled(&[GATEWAY, ORDERS, CART]);
    let mut given = Given::new();
    given.give(all_known(puts(&before, &[Cluster, Listener, Routes], "1")));
    let mut after = compiled(&[
        GATEWAY,
        &ORDERS.replace("1.1:80", "1.9:80"),
        &CART.replace("2.1:80", "2.9:80"),
    ]);
    let name: Name = "outbound|shop/cart:80".into();
    let any = after.get_mut(&(Cluster, name)).unwrap();
    let mut bad: cluster::Cluster = pb::unpack(any).unwrap();
    bad.lb_policy = 77;
    *any = pb::pack(&bad);
    assert_eq!(
        given.give(all_known(puts(&after, &[Cluster], "2"))),
        ["Cluster outbound|shop/cart:80: lb_policy 77 is not known"]
    );
    assert_eq!(
        given.services(),
        ["shop/cart 10.0.2.1:80", "shop/orders 10.0.1.9:80"]
    );
    let version = |name: &str| {
        let key = (Cluster, Name::from(name));
        given
            .holdings
            .good()
            .find(|(of, _)| **of == key)
            .unwrap()
            .1
            .version
            .clone()
    };
    assert_eq!(version("outbound|shop/cart:80").as_deref(), Some("1"));
    assert_eq!(version("outbound|shop/orders:80").as_deref(), Some("2"));
}

#[test]
fn a_stranger_s_resource_that_is_wrong_is_refused_by_its_place() {
    let mut given = Given::new();
    given.give(all_known(puts(
        &compiled(&[GATEWAY, ORDERS]),
        &[Cluster, Listener, Routes],
        "1",
    )));
    let stranger = pb::pack(&cluster::Cluster {
        name: "stranger".to_owned(),
        ..Default::default()
    });
    assert_eq!(
        given.give(all_known(vec![put(Cluster, "stranger", "1", &stranger)])),
        ["Cluster stranger: load_assignment: it has no endpoints"]
    );
    assert_eq!(given.services(), ["shop/orders 10.0.1.1:80"]);
}

#[test]
fn a_reference_that_leads_nowhere_is_refused_and_serves_once_it_leads_somewhere() {
    let one = compiled(&[GATEWAY, ORDERS]);
    let two = compiled(&[GATEWAY, ORDERS, CART]);
    let mut given = Given::new();
    given.give(all_known(puts(&one, &[Cluster, Listener, Routes], "1")));
    let refused = given.give(all_known(puts(&two, &[Routes], "2"))).join("\n");
    assert!(refused.contains("no service `shop/cart:80`"), "{refused}");
    assert_eq!(given.listeners(), ["apps 1", "more 1"]);
    // It is not said again and again.
    let revived = given.give(all_known(puts(&two, &[Cluster], "2")));
    // Those of the new service alone nothing refers to yet.
    assert_eq!(revived.len(), 4, "{revived:?}");
    assert!(
        revived
            .iter()
            .all(|line| line.starts_with("Routes ") && line.ends_with(" serves"))
    );
    assert_eq!(given.listeners(), ["apps 2", "more 2"]);
}

#[test]
fn p30_what_is_removed_before_what_refers_to_it_serves_until_that_lets_go_of_it() {
    let two = compiled(&[GATEWAY, ORDERS, CART]);
    let one = compiled(&[GATEWAY, ORDERS]);
    let mut given = Given::new();
    given.give(all_known(puts(&two, &[Cluster, Listener, Routes], "1")));
    let gone = (two.keys())
        .filter(|key| key.0 == Cluster && !one.contains_key(*key))
        .map(|key| (key.clone(), Change::Removed));
    assert_eq!(given.give(all_known(gone.collect())), NOTHING);
    assert_eq!(given.services().len(), 2);
    assert_eq!(given.listeners(), ["apps 2", "more 2"]);
    assert_eq!(
        given.give(all_known(puts(&one, &[Listener, Routes], "2"))),
        NOTHING
    );
    assert_eq!(given.services(), ["shop/orders 10.0.1.1:80"]);
    assert_eq!(given.listeners(), ["apps 1", "more 1"]);
    let mut good = given.holdings.good();
    assert!(!good.any(|((kind, name), _)| *kind == Cluster && name.contains("cart")));
}

/// The cluster of orders with its endpoints apart.
fn discovered(all: &mut BTreeMap<Key, Any>) -> endpoint::ClusterLoadAssignment {
    let mut found = None;
    for ((kind, name), any) in all.iter_mut() {
        if *kind == Cluster && name.contains("outbound|shop/orders") {
            let mut cluster: cluster::Cluster = pb::unpack(any).unwrap();
            let eds = cluster::cluster::DiscoveryType::Eds;
            cluster.cluster_discovery_type =
                Some(cluster::cluster::ClusterDiscoveryType::Type(eds.into()));
            cluster.eds_cluster_config = Some(cluster::cluster::EdsClusterConfig {
                service_name: "orders".to_owned(),
                ..Default::default()
            });
            found = cluster.load_assignment.take();
            *any = pb::pack(&cluster);
        }
    }
    let mut found = found.unwrap();
    found.cluster_name = "orders".to_owned();
    found
}

#[test]
fn p31_p34_a_cluster_waits_for_its_endpoints_and_goes_on_without_when_none_come() {
    let mut all = compiled(&[GATEWAY, ORDERS]);
    let assigned = discovered(&mut all);
    let mut given = Given::new();
    // The listener waits with it, and neither is at fault.
    assert_eq!(
        given.give(all_known(puts(&all, &[Cluster, Listener, Routes], "1"))),
        NOTHING
    );
    assert_eq!(given.services(), NOTHING);
    assert!(given.holdings.waiting() > 0);
    let update = all_known(vec![put(Endpoints, "orders", "1", &pb::pack(&assigned))]);
    assert_eq!(given.give(update), NOTHING);
    assert_eq!(given.services(), ["shop/orders 10.0.1.1:80"]);
    assert_eq!(given.listeners(), ["apps 1", "more 1"]);
    // Scaled to nothing: it has none then, and is there all the same.
    let none = endpoint::ClusterLoadAssignment {
        cluster_name: "orders".to_owned(),
        ..Default::default()
    };
    given.give(all_known(vec![put(
        Endpoints,
        "orders",
        "2",
        &pb::pack(&none),
    )]));
    assert_eq!(given.services(), ["shop/orders none"]);
    let mut missing = Given::new();
    missing.give(all_known(puts(&all, &[Cluster, Listener, Routes], "1")));
    missing.give(all_known(vec![(
        (Endpoints, "orders".into()),
        Change::Missing,
    )]));
    assert_eq!(missing.services(), ["shop/orders none"]);
    assert_eq!(missing.listeners(), ["apps 1", "more 1"]);
    // P41: endpoints that are taken away while their cluster is there stay.
    given.give(all_known(vec![put(
        Endpoints,
        "orders",
        "3",
        &pb::pack(&assigned),
    )]));
    given.give(all_known(vec![(
        (Endpoints, "orders".into()),
        Change::Removed,
    )]));
    assert_eq!(given.services(), ["shop/orders 10.0.1.1:80"]);
}

#[test]
fn what_waits_beside_endpoints_that_are_to_come_is_refused_once_they_are_there() {
    let mut all = compiled(&[GATEWAY, ORDERS]);
    let assigned = discovered(&mut all);
    let two = compiled(&[GATEWAY, ORDERS, CART]);
    let mut given = Given::new();
    given.give(all_known(puts(&all, &[Cluster], "1")));
    // Their routes name a service that nobody sends; whether the endpoints bring it nobody knows.
    let waiting = given.give(all_known(puts(&two, &[Listener, Routes], "1")));
    assert_eq!(waiting, NOTHING);
    let update = all_known(vec![put(Endpoints, "orders", "1", &pb::pack(&assigned))]);
    let refused = given.give(update).join("\n");
    assert!(refused.contains("no service `shop/cart:80`"), "{refused}");
    // And said with each verdict as long as it is so.
    let again = given.give(all_known(Vec::new())).join("\n");
    assert_eq!(again, refused);
    // Endpoints that are wrong by themselves keep nothing waiting either.
    let mut given = Given::new();
    given.give(all_known(puts(&all, &[Cluster], "1")));
    given.give(all_known(puts(&two, &[Listener, Routes], "1")));
    let mut wrong = pb::pack(&assigned);
    wrong.value.extend([0xff, 0xff]);
    let put = (
        (Endpoints, "orders".into()),
        Change::Put(Resource {
            version: Some("1".into()),
            body: Arc::new(wrong.into()),
            references: Arc::default(),
        }),
    );
    let refused = given.give(all_known(vec![put])).join("\n");
    assert!(refused.contains("failed to decode"), "{refused}");
    assert!(refused.contains("no service `shop/cart:80`"), "{refused}");
}

#[test]
fn p34_p43_what_served_without_endpoints_serves_without_them_when_it_was_kept() {
    let mut all = compiled(&[GATEWAY, ORDERS]);
    discovered(&mut all);
    let mut given = Given::new();
    given.give(all_known(puts(&all, &[Cluster, Listener, Routes], "1")));
    let missing = ((Endpoints, "orders".into()), Change::Missing);
    given.give(all_known(vec![missing]));
    assert_eq!(given.services(), ["shop/orders none"]);
    let kept = given.holdings.good();
    let kept: Vec<_> = kept.map(|(key, one)| (key.clone(), one.clone())).collect();
    let mut again = Holdings::new(node(), OnEmpty::Keep);
    let (draft, refused) = again.resume(kept.clone().into_iter()).unwrap();
    assert_eq!(refused, BTreeMap::new());
    assert_eq!(Some(draft.served.snapshot), given.snapshot);
    let good = again.good().map(|(key, one)| (key.clone(), one.clone()));
    assert_eq!(good.collect::<Vec<_>>(), kept);
}

#[test]
fn bad_endpoints_are_refused_with_their_cluster_s_name_and_the_good_ones_stay() {
    let mut all = compiled(&[GATEWAY, ORDERS]);
    let assigned = discovered(&mut all);
    let mut given = Given::new();
    given.give(all_known(puts(&all, &[Cluster, Listener, Routes], "1")));
    given.give(all_known(vec![put(
        Endpoints,
        "orders",
        "1",
        &pb::pack(&assigned),
    )]));
    let mut bad = assigned;
    bad.endpoints[0].lb_endpoints[0].load_balancing_weight = pb::number(0);
    assert_eq!(
        given.give(all_known(vec![put(
            Endpoints,
            "orders",
            "2",
            &pb::pack(&bad)
        )])),
        ["Endpoints orders: endpoint 10.0.1.1:80 has weight 0"]
    );
    assert_eq!(given.services(), ["shop/orders 10.0.1.1:80"]);
}

#[test]
fn an_update_that_would_leave_nothing_is_refused_unless_it_is_wanted_so() {
    let all = compiled(&[GATEWAY, ORDERS]);
    for (on_empty, left) in [(OnEmpty::Keep, 2), (OnEmpty::Apply, 0)] {
        let mut given = Given::on_empty(on_empty);
        given.give(all_known(puts(&all, &[Cluster, Listener, Routes], "1")));
        let gone = |of: Kind| -> Update {
            let keys = all.keys().filter(|key| key.0 == of);
            all_known(keys.map(|key| (key.clone(), Change::Removed)).collect())
        };
        let refused = given.give(gone(Listener));
        assert_eq!(refused.len(), left, "{refused:?}");
        assert_eq!(given.listeners().len(), left);
        if on_empty == OnEmpty::Keep {
            assert!(refused[0].contains("nothing would be left"), "{refused:?}");
            // One of two may go: the other is there again. And a cluster that something refers to stays by
            // itself.
            let apps = (Listener, "apps".into());
            let one = put(Listener, "apps", "2", &all[&apps]);
            assert_eq!(given.give(all_known(vec![one])), ["Listener more is gone"]);
            assert_eq!(given.listeners(), ["apps 1"]);
            assert_eq!(given.give(gone(Cluster)), NOTHING);
            assert_eq!(given.services().len(), 1);
        }
    }
}

#[test]
fn what_stayed_since_nothing_else_was_left_goes_once_something_else_serves() {
    let both = compiled(&[GATEWAY, ORDERS]);
    let mut given = Given::new();
    given.give(all_known(puts(&both, &[Cluster, Listener, Routes], "1")));
    let gone = (both.keys().filter(|key| key.0 == Listener))
        .map(|key| (key.clone(), Change::Removed))
        .collect();
    assert_eq!(given.give(all_known(gone)).len(), 2);
    // Nothing of it is forgotten meanwhile.
    assert_eq!(given.give(all_known(Vec::new())).len(), 2);
    let mut other = compiled(&[
        &GATEWAY.replace("apps:", "others:"),
        &ORDERS.replace("apps", "others"),
    ]);
    other.retain(|key, _| *key == (Listener, "others".into()) || key.0 == Routes);
    assert_eq!(
        given.give(all_known(puts(&other, &[Listener, Routes], "2"))),
        ["Listener apps is gone", "Listener more is gone"]
    );
    assert_eq!(given.listeners(), ["others 1"]);
}

#[test]
fn listeners_that_cannot_be_bound_are_left_out_and_named() {
    let all = compiled(&[GATEWAY, ORDERS]);
    let mut holdings = Holdings::new(node(), OnEmpty::Keep);
    let faults = holdings.take(all_known(puts(&all, &[Cluster, Listener, Routes], "1")));
    let draft = holdings.draft(faults, BTreeSet::new()).unwrap();
    assert_eq!(draft.served.snapshot.listeners.len(), 2);
    let unbound = [("more".to_owned(), "it is in use".to_owned())];
    let draft = holdings.without(&draft, &unbound).unwrap();
    assert_eq!(draft.served.snapshot.listeners.len(), 1);
    let verdict = holdings.commit(&draft);
    let refusal = &verdict.refused[&(Listener, "more".into())];
    assert_eq!((&*refusal.why, &refusal.good), ("it is in use", &None));
    // What serves already is not left out for it.
    let draft = holdings.draft(BTreeMap::new(), BTreeSet::new()).unwrap();
    let unbound = [("apps".to_owned(), "it is in use".to_owned())];
    assert!(holdings.without(&draft, &unbound).is_none());
}

#[test]
fn routes_that_are_bad_are_blamed_and_not_the_listener_that_they_lead() {
    let all = compiled(&[GATEWAY, ORDERS]);
    let mut given = Given::new();
    given.give(all_known(puts(&all, &[Cluster, Listener, Routes], "1")));
    let ((_, name), any) = all.iter().find(|(key, _)| key.0 == Routes).unwrap();
    let mut bad: route::RouteConfiguration = pb::unpack(any).unwrap();
    bad.virtual_hosts[0].routes.clear();
    let refused = given.give(all_known(vec![put(Routes, name, "2", &pb::pack(&bad))]));
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert!(
        refused[0].starts_with("Routes ") && refused[0].ends_with("it has no route"),
        "{refused:?}"
    );
    let bare = pb::pack(&listener::Listener {
        name: "bare".to_owned(),
        ..Default::default()
    });
    assert_eq!(
        given.give(all_known(vec![put(Listener, "bare", "1", &bare)])),
        ["Listener bare: address: it has no socket address"]
    );
}

/// A stranger's: a listener led by the routes `r`, whose requests go to the cluster `a`.
fn strange(cluster: &str) -> [(Key, Change); 3] {
    use pb::hcm::http_connection_manager::RouteSpecifier;
    let router = pb::hcm::HttpFilter {
        name: "router".to_owned(),
        config_type: Some(pb::hcm::http_filter::ConfigType::TypedConfig(pb::pack(
            &pb::Router::default(),
        ))),
        ..Default::default()
    };
    let manager = pb::hcm::HttpConnectionManager {
        route_specifier: Some(RouteSpecifier::Rds(pb::hcm::Rds {
            route_config_name: "r".to_owned(),
            ..Default::default()
        })),
        http_filters: vec![router],
        ..Default::default()
    };
    let http = listener::Filter {
        name: "http".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pb::pack(
            &manager,
        ))),
    };
    let listener = listener::Listener {
        name: "strange".to_owned(),
        address: Some(pb::address("127.0.0.1", 15009)),
        filter_chains: vec![listener::FilterChain {
            filters: vec![http],
            ..Default::default()
        }],
        ..Default::default()
    };
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
            "a".to_owned(),
        )),
        ..Default::default()
    };
    let routes = route::RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: "h".to_owned(),
            domains: vec!["a.a".to_owned()],
            routes: vec![route::Route {
                r#match: Some(route::RouteMatch {
                    path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
                    ..Default::default()
                }),
                action: Some(route::route::Action::Route(action)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    let made = cluster::Cluster {
        name: cluster.to_owned(),
        cluster_discovery_type: Some(cluster::cluster::ClusterDiscoveryType::Type(
            cluster::cluster::DiscoveryType::Eds.into(),
        )),
        ..Default::default()
    };
    [
        put(Listener, "strange", "1", &pb::pack(&listener)),
        put(Routes, "r", "1", &pb::pack(&routes)),
        put(Cluster, cluster, "1", &pb::pack(&made)),
    ]
}

fn strange_endpoints(cluster: &str) -> (Key, Change) {
    let endpoint = endpoint::Endpoint {
        address: Some(pb::address("10.0.9.1", 80)),
        ..Default::default()
    };
    let all = endpoint::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![endpoint::LocalityLbEndpoints {
            lb_endpoints: vec![endpoint::LbEndpoint {
                host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint)),
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    put(Endpoints, cluster, "1", &pb::pack(&all))
}

/// What broke: after each change that was not alone all of it was put together anew.
#[test]
fn all_is_put_together_anew_where_most_of_it_came_or_went_and_not_for_one() {
    let mut gateway = GATEWAY.to_owned();
    for nth in 0..LOOSE_MIN {
        let port = 16_000 + nth;
        gateway.push_str(&format!(
            "    l{nth}: {{ address: \"127.0.0.1:{port}\", role: workloads }}\n"
        ));
    }
    let kinds = [Cluster, Listener, Routes];
    let few = compiled(&[&gateway, ORDERS]);
    let more = compiled(&[&gateway, ORDERS, CART]);
    let mut given = Given::new();
    assert_eq!(given.give(all_known(puts(&few, &kinds, "1"))), NOTHING);
    assert_eq!(given.holdings.loose, 0);
    assert_eq!(given.give(all_known(puts(&more, &kinds, "2"))), NOTHING);
    let new = more.len() - few.len();
    assert!(new > 0);
    assert_eq!(given.holdings.loose, new);
    // What nobody refers to and nothing is left of is forgotten.
    let gone = (Endpoints, "nobody's".into());
    given.give(all_known(vec![(gone, Change::Missing)]));
    assert_eq!(given.holdings.loose, new + 2);
    assert_eq!(given.holdings.entries.len(), more.len());
    given.holdings.refuse([], "no use");
    assert_eq!(given.holdings.loose, new + 2);
}

#[test]
fn p31_a_stranger_s_listener_and_cluster_wait_for_what_they_name() {
    let mut given = Given::new();
    let ours = compiled(&[GATEWAY, ORDERS]);
    given.give(all_known(puts(&ours, &[Cluster, Listener, Routes], "1")));
    let [listener, routes, cluster] = strange("a");
    assert_eq!(given.give(all_known(vec![listener])), [""; 0]);
    assert_eq!(given.listeners(), ["apps 1", "more 1"]);
    // Its routes are there, and where they lead is not yet.
    assert_eq!(given.give(all_known(vec![cluster, routes])), [""; 0]);
    assert_eq!(given.listeners(), ["apps 1", "more 1"]);
    assert_eq!(given.give(all_known(vec![strange_endpoints("a")])), [""; 0]);
    assert_eq!(given.listeners(), ["apps 1", "more 1", "strange 1"]);
    let services = given.services();
    assert_eq!(
        services,
        ["shop/orders 10.0.1.1:80", "strange/rest/h 10.0.9.1:80"]
    );
}

#[test]
fn a_stranger_s_route_that_leads_nowhere_is_refused_and_serves_once_it_leads_somewhere() {
    let mut given = Given::new();
    let [listener, routes, other] = strange("b");
    let refused = given
        .give(all_known(vec![
            listener,
            routes,
            other,
            strange_endpoints("b"),
        ]))
        .join("\n");
    assert!(
        refused.contains("Routes r: virtual_hosts[0].routes[0]: no cluster `a`"),
        "{refused}"
    );
    let [_, _, cluster] = strange("a");
    let revived = given
        .give(all_known(vec![cluster, strange_endpoints("a")]))
        .join("\n");
    assert!(revived.contains("Routes r serves"), "{revived}");
    assert_eq!(given.services(), ["strange/rest/h 10.0.9.1:80"]);
}

/// The same with the endpoints of each cluster by themselves.
fn apart(all: BTreeMap<Key, Any>) -> BTreeMap<Key, Any> {
    use cluster::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};

    let mut apart = BTreeMap::new();
    for ((kind, name), any) in all {
        if kind != Cluster {
            apart.insert((kind, name), any);
            continue;
        }
        let mut cluster: cluster::Cluster = pb::unpack(&any).unwrap();
        let endpoints = cluster.load_assignment.take().unwrap_or_default();
        // Every other one calls them otherwise.
        let of = match name.len() % 2 {
            0 => Name::clone(&name),
            _ => format!("of {name}").into(),
        };
        let endpoints = endpoint::ClusterLoadAssignment {
            cluster_name: of.to_string(),
            ..endpoints
        };
        let eds = DiscoveryType::Eds.into();
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(eds));
        cluster.eds_cluster_config = Some(EdsClusterConfig {
            service_name: of.to_string(),
            ..Default::default()
        });
        apart.insert((Endpoints, of), pb::pack(&endpoints));
        apart.insert((Cluster, name), pb::pack(&cluster));
    }
    apart
}

/// A resource that is wrong by itself, or beside others.
fn bad(rng: &mut fastrand::Rng, (kind, name): &Key, any: &Any) -> (Key, Change) {
    let any = match kind {
        Cluster => {
            let mut bad: cluster::Cluster = pb::unpack(any).unwrap();
            bad.lb_policy = 77;
            pb::pack(&bad)
        }
        Endpoints => {
            let mut bad: endpoint::ClusterLoadAssignment = pb::unpack(any).unwrap();
            for group in &mut bad.endpoints {
                for one in &mut group.lb_endpoints {
                    one.host_identifier = None;
                }
            }
            pb::pack(&bad)
        }
        Routes => {
            let mut bad: route::RouteConfiguration = pb::unpack(any).unwrap();
            match rng.u8(..3) {
                0 => bad.virtual_hosts[0].routes.clear(),
                1 => bad.virtual_hosts[0].name.push_str("-none"),
                _ => {
                    // Another one for the same.
                    let mut twice = bad.virtual_hosts[0].clone();
                    twice.name.push_str("-twice");
                    bad.virtual_hosts.push(twice);
                }
            }
            pb::pack(&bad)
        }
        Listener => {
            let mut bad: listener::Listener = pb::unpack(any).unwrap();
            if rng.bool() {
                bad.address = None;
            } else {
                for chain in &mut bad.filter_chains {
                    chain.name.push_str("-none");
                }
                bad.filter_chains.extend(bad.filter_chains.first().cloned());
            }
            pb::pack(&bad)
        }
    };
    put(*kind, name, &rng.u16(..).to_string(), &any)
}

/// What may come next: of one or of several at once.
fn changes(rng: &mut fastrand::Rng, worlds: &[BTreeMap<Key, Any>]) -> Vec<(Key, Change)> {
    let world = &worlds[rng.usize(..worlds.len())];
    let version = rng.u16(..).to_string();
    let mut some: Vec<&Key> = world.keys().collect();
    rng.shuffle(&mut some);
    some.truncate(match rng.u8(..8) {
        0 => world.len(),
        1 | 2 => 3,
        _ => 1,
    });
    some.into_iter()
        .map(|key| {
            let change = match rng.u8(..16) {
                0 => Change::Removed,
                1 => Change::Missing,
                2 => Change::Withdrawn,
                3..6 => return bad(rng, key, &world[key]),
                _ => return put(key.0, &key.1, &version, &world[key]),
            };
            (key.clone(), change)
        })
        .collect()
}

/// Endpoints or clusters of which there may be others in their places; rarely one of them is wrong.
fn in_their_places(rng: &mut fastrand::Rng, worlds: &[BTreeMap<Key, Any>]) -> Vec<(Key, Change)> {
    let world = &worlds[rng.usize(..2)];
    let of = |(kind, _): &&Key| matches!(kind, Cluster | Endpoints);
    let mut some: Vec<&Key> = world.keys().filter(of).collect();
    rng.shuffle(&mut some);
    some.truncate(rng.usize(1..3));
    let version = rng.u16(..).to_string();
    some.into_iter()
        .map(|key| match rng.u8(..16) {
            0 => bad(rng, key, &world[key]),
            _ => put(key.0, &key.1, &version, &world[key]),
        })
        .collect()
}

/// A stranger's listener that leads all that comes to the cluster `a`.
fn raw() -> (Key, Change) {
    let proxy = pb::tcp_proxy::TcpProxy {
        stat_prefix: "raw".to_owned(),
        cluster_specifier: Some(pb::tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(
            "a".to_owned(),
        )),
        ..Default::default()
    };
    let filter = listener::Filter {
        name: "tcp".to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(pb::pack(&proxy))),
    };
    let listener = listener::Listener {
        name: "raw".to_owned(),
        address: Some(pb::address("127.0.0.1", 15010)),
        filter_chains: vec![listener::FilterChain {
            filters: vec![filter],
            ..Default::default()
        }],
        ..Default::default()
    };
    put(Listener, "raw", "1", &pb::pack(&listener))
}

/// All of strangers; the cluster `a` has its endpoint there.
fn strangers(address: &str) -> BTreeMap<Key, Any> {
    let all = strange("a").into_iter().chain([raw()]);
    let mut all: BTreeMap<Key, Any> = all
        .map(|(key, change)| {
            let Change::Put(resource) = change else {
                panic!("{change:?}");
            };
            (key, resource.body.to_any())
        })
        .collect();
    let Change::Put(endpoints) = strange_endpoints("a").1 else {
        panic!("there are some");
    };
    let mut assigned: endpoint::ClusterLoadAssignment =
        pb::unpack(&endpoints.body.to_any()).unwrap();
    let endpoint = endpoint::Endpoint {
        address: Some(pb::address(address, 80)),
        ..Default::default()
    };
    assigned.endpoints[0].lb_endpoints[0].host_identifier =
        Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(endpoint));
    all.insert((Endpoints, "a".into()), pb::pack(&assigned));
    all
}

/// Refused are listeners, clusters, endpoints and routes: for themselves, for what they refer to, and for others that
/// they do not fit.
#[test]
fn whatever_comes_what_changed_alone_is_worth_what_all_together_is() {
    let west = r#"
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: west }
spec: { cluster: west, locality: us/us-1, gateways: ["192.0.2.7:15443"], spiffeIDs: ["spiffe://west.example/gw"] }
"#;
    let east = west
        .replace("west", "east2")
        .replace("192.0.2.7", "192.0.2.8");
    let beyond = |peers: &str| ORDERS.replace("1.1:80\"] }]", &format!("1.1:80\"] }}, {peers}]"));
    let far = beyond("{ peer: west }");
    // Both listeners have to say the same of it.
    let mirrored = ORDERS.replace("allow:", "mirror: [{ route: shop/cart }], allow:");
    let other = ORDERS.replace("1.1:80", "1.9:80");
    let near = [
        compiled(&[GATEWAY, ORDERS, CART]),
        compiled(&[GATEWAY, &other, CART]),
        compiled(&[
            GATEWAY,
            west,
            &far,
            &CART.replace("2.1:80\"", "2.1:80\", \"10.0.2.2:80\""),
        ]),
        compiled(&[GATEWAY, ORDERS]),
        compiled(&[GATEWAY, &mirrored, CART]),
    ];
    // There are peers from the first on, that are elsewhere in the second, and come and go.
    let both = beyond("{ peer: west }, { peer: east2 }");
    let peers = [
        compiled(&[GATEWAY, west, &far, CART]),
        compiled(&[
            GATEWAY,
            &west.replace("2.7", "2.9"),
            &far.replace("1.1:80", "1.9:80"),
            CART,
        ]),
        compiled(&[GATEWAY, west, &east, &both, CART]),
        compiled(&[GATEWAY, &east, &beyond("{ peer: east2 }"), CART]),
        compiled(&[GATEWAY, ORDERS, CART]),
    ];
    for worlds in [near, peers] {
        let mut worlds = worlds.map(apart);
        for (nth, world) in worlds.iter_mut().enumerate() {
            let address = if nth == 1 { "10.0.9.2" } else { "10.0.9.1" };
            world.extend(strangers(address));
        }
        all_together(&worlds);
    }
}

/// Gives what is of these worlds, in many ways. With each of them what was looked at alone is held to all together;
/// so it is often, and often beside what is refused.
fn all_together(worlds: &[BTreeMap<Key, Any>]) {
    let [mut alone, mut beside] = [0; 2];
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let on_empty = [OnEmpty::Apply, OnEmpty::Keep][usize::from(rng.bool())];
        let mut given = Given::on_empty(on_empty);
        given.give(all_known(puts(&worlds[0], &Kind::ALL, "0")));
        for _ in 0..24 {
            let changes = match rng.u8(..3) {
                0 => changes(&mut rng, worlds),
                _ => in_their_places(&mut rng, worlds),
            };
            given.give(all_known(changes));
        }
        alone += given.alone;
        beside += given.beside;
    }
    assert!(
        alone > 100 && beside > 50,
        "{alone} of them, {beside} beside"
    );
}

/// What is said of what is refused, that, and how many of three changes of others' endpoints are looked at alone
/// after it.
type Refused = (&'static str, Vec<(Key, Change)>, usize);

/// What may be refused, or waits.
fn refusals(base: &BTreeMap<Key, Any>) -> [Refused; 9] {
    let more = ORDERS.replace("name: orders", "name: more");
    let more = apart(compiled(&[GATEWAY, ORDERS, CART, &more]));
    let mirrored = ORDERS.replace("allow:", "mirror: [{ route: shop/cart }], allow:");
    let mirrored = compiled(&[GATEWAY, &mirrored, CART]);
    let mut mirrored = puts(&mirrored, &[Routes], "2");
    mirrored.truncate(1);
    let bare = pb::pack(&listener::Listener {
        name: "bare".to_owned(),
        ..Default::default()
    });
    let mut rng = fastrand::Rng::with_seed(1);
    let cart = |kind| {
        let key = base.keys();
        key.filter(move |key| key.0 == kind)
            .find(|key| key.1.contains("outbound|shop/cart"))
            .unwrap()
    };
    let [cluster, endpoints] = [Cluster, Endpoints].map(cart);
    let removed = |kind: Kind| {
        let all = base.keys().filter(move |key| key.0 == kind);
        all.map(|key| (key.clone(), Change::Removed)).collect()
    };
    let routes = |change: &dyn Fn(&mut route::RouteConfiguration)| {
        let mut bad = pb::unpack(&base[&(Routes, "r".into())]).unwrap();
        change(&mut bad);
        put(Routes, "r", "2", &pb::pack(&bad))
    };
    let twice = routes(&|bad| bad.virtual_hosts.extend(bad.virtual_hosts.first().cloned()));
    let nowhere = routes(&|bad| {
        let action = route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(
                "b".to_owned(),
            )),
            ..Default::default()
        };
        bad.virtual_hosts[0].routes[0].action = Some(route::route::Action::Route(action));
    });
    [
        (
            "Listener bare: address",
            vec![put(Listener, "bare", "1", &bare)],
            3,
        ),
        (
            "Cluster outbound|shop/cart",
            vec![bad(&mut rng, cluster, &base[cluster])],
            3,
        ),
        (
            "Endpoints ",
            vec![bad(&mut rng, endpoints, &base[endpoints])],
            3,
        ),
        // What is refused with it is known once it was looked at again.
        ("no service `shop/more:80`", puts(&more, &[Routes], "2"), 2),
        ("no cluster `b`", vec![nowhere], 3),
        ("Routes r: ", vec![twice], 3),
        ("differs between listeners", mirrored, 2),
        ("nothing would be left", removed(Listener), 3),
        // It is not refused, and waits to go.
        ("", removed(Routes), 3),
    ]
}

/// What broke: one listener that was refused had all of ten thousand services looked at with each change.
#[test]
fn a_change_of_endpoints_costs_nothing_of_what_is_refused_either() {
    let mut base = apart(compiled(&[GATEWAY, ORDERS, CART]));
    base.extend(strangers("10.0.9.1"));
    for (expected, changes, alone) in refusals(&base) {
        let mut given = Given::new();
        assert_eq!(given.give(all_known(puts(&base, &Kind::ALL, "1"))), NOTHING);
        let refused = given.give(all_known(changes)).join("\n");
        assert!(refused.contains(expected), "{expected}: {refused}");
        let before = given.alone;
        for nth in 2..5 {
            let orders = ORDERS.replace("1.1:80", &format!("1.{nth}:80"));
            let mut next = apart(compiled(&[GATEWAY, &orders, CART]));
            next.extend(strangers(&format!("10.0.9.{nth}")));
            next.retain(|(kind, name), _| {
                *kind == Endpoints && (&**name == "a" || name.contains("outbound|shop/orders"))
            });
            assert_eq!(next.len(), 2);
            given.give(all_known(puts(&next, &[Endpoints], "2")));
            let services = given.services().join("\n");
            assert!(
                services.contains(&format!("shop/orders 10.0.1.{nth}:80")),
                "{services}"
            );
            assert!(
                services.contains(&format!("strange/rest/h 10.0.9.{nth}:80")),
                "{services}"
            );
        }
        assert_eq!(given.alone - before, alone, "{expected}: {refused}");
    }
}

#[test]
fn a_change_of_endpoints_costs_nothing_of_others() {
    let all = apart(compiled(&[GATEWAY, ORDERS, CART]));
    let mut given = Given::new();
    given.give(all_known(puts(&all, &Kind::ALL, "1")));
    let before = given.snapshot.clone().unwrap();
    let other = apart(compiled(&[
        GATEWAY,
        &ORDERS.replace("1.1:80", "1.9:80"),
        CART,
    ]));
    given.give(all_known(puts(&other, &[Endpoints], "2")));
    assert_eq!(given.alone, 1);
    assert_eq!(
        given.services(),
        ["shop/cart 10.0.2.1:80", "shop/orders 10.0.1.9:80"]
    );
    let now = given.snapshot.as_ref().unwrap();
    assert_ne!(now.version, before.version);
    assert!(now.services.is_one_with(&before.services));
    assert!(now.listeners.is_one_with(&before.listeners));
    let both = now.clusters.iter().zip(&before.clusters);
    let other = both.filter(|(now, before)| !Arc::ptr_eq(now, before));
    let other: Vec<&str> = other.map(|(now, _)| &*now.route).collect();
    assert!(
        !other.is_empty() && other.iter().all(|route| *route == "shop/orders"),
        "{other:?}"
    );
    // What is the same again is of the same version.
    given.give(all_known(puts(&all, &[Endpoints], "3")));
    assert_eq!(given.snapshot.as_ref(), Some(&before));
}

/// What broke: endpoints were refused with routes that had been refused before they came.
#[test]
fn endpoints_serve_beside_routes_that_are_refused() {
    let [one, two] = [&[GATEWAY, ORDERS][..], &[GATEWAY, ORDERS, CART]];
    let (one, two) = (apart(compiled(one)), apart(compiled(two)));
    let mut given = Given::new();
    given.give(all_known(puts(&one, &Kind::ALL, "1")));
    let refused = given.give(all_known(puts(&two, &[Routes], "2"))).join("\n");
    assert!(refused.contains("no service `shop/cart:80`"), "{refused}");
    let other = apart(compiled(&[GATEWAY, &ORDERS.replace("1.1:80", "1.9:80")]));
    let endpoints = puts(&other, &[Endpoints], "2");
    let again = given.give(all_known(endpoints)).join("\n");
    assert!(!again.contains("Endpoints "), "{again}");
    assert_eq!(given.services(), ["shop/orders 10.0.1.9:80"]);
    // It is tried again with what it was refused for.
    let came = puts(&two, &[Cluster, Endpoints], "3");
    let revived = given.give(all_known(came)).join("\n");
    assert!(revived.contains("Routes "), "{revived}");
    assert!(revived.contains(" serves"), "{revived}");
    assert_eq!(given.listeners(), ["apps 2", "more 2"]);
}

/// Endpoints that were refused with their cluster are looked at again with either.
#[test]
fn what_is_refused_of_a_cluster_is_looked_at_again_with_its_own() {
    let all = apart(compiled(&[GATEWAY, ORDERS]));
    let mut given = Given::new();
    given.give(all_known(puts(&all, &Kind::ALL, "1")));
    let key = all
        .keys()
        .find(|(kind, name)| *kind == Endpoints && name.contains("outbound|shop/orders"));
    let (_, name) = key.unwrap();
    let mut bad: endpoint::ClusterLoadAssignment =
        pb::unpack(&all[&(Endpoints, Arc::clone(name))]).unwrap();
    let first = bad.endpoints[0].lb_endpoints.first_mut().unwrap();
    first.host_identifier = None;
    let put_bad = put(Endpoints, name, "2", &pb::pack(&bad));
    let refused = given.give(all_known(vec![put_bad]));
    assert!(!refused.is_empty());
    let other = apart(compiled(&[GATEWAY, &ORDERS.replace("1.1:80", "1.9:80")]));
    given.give(all_known(puts(&other, &[Endpoints], "3")));
    assert_eq!(given.services(), ["shop/orders 10.0.1.9:80"]);
    assert_eq!(given.holdings.waiting(), 0);
}

#[test]
fn the_last_round_leaves_out_all_that_is_new_whatever_is_blamed() {
    let all = apart(compiled(&[GATEWAY, ORDERS]));
    let mut given = Given::new();
    given.holdings.take(all_known(puts(&all, &Kind::ALL, "1")));
    let (kind, name) = all.keys().next().unwrap();
    let blamed = [Blamed {
        kind: *kind,
        name: name.to_string(),
        why: "it is bad".to_owned(),
    }];
    let left_out = |is_last| {
        let (mut left_out, mut faults) = Default::default();
        let more = (&mut left_out, &mut faults);
        assert!(
            given
                .holdings
                .leave_out(&blamed, is_last, false, more)
                .is_some()
        );
        left_out.len()
    };
    assert!((1..all.len()).contains(&left_out(false)));
    assert_eq!(left_out(true), all.len());
}
