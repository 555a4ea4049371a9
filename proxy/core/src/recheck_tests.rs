use super::*;
use crate::fixture::{cluster, http_rule, id, ids, nets, part, service, snapshot};
use crate::rules::Rules;
use crate::snapshot::{Export, Policy, Position, Rule};

const CART: &str = "spiffe://west.example/ns/shop/sa/cart";
const GATEWAY: &str = "spiffe://west.example/zeugma/gateway";

fn rule(from: &[&str], line: u32) -> Rule {
    Rule {
        from: ids(from),
        position: Some(Position {
            file: "orders.yaml".into(),
            line,
        }),
        ..Rule::default()
    }
}

/// One TCP service for `CART`, one HTTP service for anybody.
fn world() -> Snapshot {
    let mut bytes = service("shop/db", "db.a", 5432);
    bytes.protocol = Protocol::Tcp;
    bytes.policy.allow = vec![rule(&[CART], 7)];
    let mut web = service("shop/web", "web.a", 80);
    web.policy.allow = vec![Rule {
        paths: vec![crate::snapshot::PathPattern::Below("/v1/".into())],
        ..rule(&[], 9)
    }];
    snapshot(vec![bytes, web])
}

fn carried<'a>(
    world: &Snapshot,
    name: &str,
    verified: &'a SpiffeId,
    kind: Kind<'a>,
) -> Carried<'a> {
    let port = if name == "shop/db" { 5432 } else { 80 };
    Carried {
        listener: "mesh",
        role: Some(Role::Mesh),
        source: "192.0.2.1".parse().unwrap(),
        proxy: None,
        verified: Some(verified),
        claimed: None,
        sni: None,
        service: find(world, name, port),
        led: None,
        kind,
    }
}

fn bytes_of(world: &Snapshot, who: &SpiffeId) -> Result<(), Ending> {
    judge(world, &carried(world, "shop/db", who, Kind::Bytes))
}

#[test]
fn a_new_deny_rule_by_server_name_ends_what_asked_for_it_and_nothing_else() {
    let mut world = world();
    let cart = id(CART);
    let pattern = crate::names::HostPattern::parse("*.db.a").unwrap();
    world.services[0].policy.deny = vec![Rule {
        sni: vec![crate::snapshot::SniPattern::Host(pattern)],
        ..Rule::default()
    }];
    world.services[0].inbound = Inbound::Passthrough;
    for (kind, verified) in [(Kind::Bytes, Some(&cart)), (Kind::Passthrough, None)] {
        let told = |sni| {
            let carried = Carried {
                sni,
                verified,
                ..carried(&world, "shop/db", &cart, kind)
            };
            judge(&world, &carried).map_err(|ending| ending.detail)
        };
        let ended = told(Some("one.db.a")).unwrap_err();
        assert!(ended.contains("denied"), "{kind:?}: {ended}");
        for other in [None, Some("db.a"), Some("other.a")] {
            // Bytes without an identity are let in by no rule here.
            let is_let_in = verified.is_some();
            assert_eq!(told(other).is_ok(), is_let_in, "{kind:?} {other:?}");
        }
    }
}

#[test]
fn what_a_load_balancer_handed_on_ends_where_its_word_counts_no_more() {
    let mut world = world();
    let cart = id(CART);
    let handed_on = |world: &Snapshot| {
        let carried = Carried {
            proxy: Some("10.0.0.7".parse().unwrap()),
            ..carried(world, "shop/db", &cart, Kind::Bytes)
        };
        judge(world, &carried).map_err(|ending| ending.detail)
    };
    world.listeners[0].proxies = nets(&["10.0.0.0/8"]);
    assert_eq!(handed_on(&world), Ok(()));
    // What came without a word, before one was asked for, goes on.
    assert_eq!(bytes_of(&world, &cart), Ok(()));
    for others in [nets(&["10.1.0.0/16"]), Vec::new()] {
        world.listeners[0].proxies = others;
        let told = handed_on(&world).unwrap_err();
        assert!(
            told.contains("no longer takes the word of 10.0.0.7"),
            "{told}"
        );
    }
}

#[test]
fn reports_end_with_the_peer_that_they_are_for() {
    let mut world = world();
    let (gateway, cart) = (id(GATEWAY), id(CART));
    let reports = |world: &Snapshot, who| {
        let carried = Carried {
            service: Asked::Nothing,
            ..carried(world, "shop/web", who, Kind::Reports)
        };
        judge(world, &carried).map_err(|ending| (ending.reason, ending.detail))
    };
    assert_eq!(reports(&world, &gateway), Ok(()));
    // Who may call a service is told nothing of it.
    let over = "its caller is no peer's gateway any more".to_owned();
    let over = Err((Reason::NoLongerServed, over));
    assert_eq!(reports(&world, &cart), over);
    world.peers[0].sources = nets(&["198.51.100.0/24"]);
    assert_eq!(reports(&world, &gateway), over);
    world.peers.edit(Vec::clear);
    assert_eq!(reports(&world, &gateway), over);
}

#[test]
fn what_came_in_by_a_listener_of_another_role_ends() {
    let mut world = world();
    let cart = id(CART);
    let request = Kind::Request {
        method: "GET",
        path: "/v1/x",
        headers: None,
    };
    let all = [
        ("shop/db", Kind::Bytes),
        ("shop/web", Kind::Session),
        ("shop/web", request),
    ];
    for (service, kind) in all {
        judge(&world, &carried(&world, service, &cart, kind)).unwrap();
    }
    for listener in &mut world.listeners {
        listener.role = Role::Workloads;
    }
    for (service, kind) in all {
        let mut carried = carried(&world, service, &cart, kind);
        let ending = judge(&world, &carried).unwrap_err();
        assert_eq!(ending.reason, Reason::NoLongerServed);
        assert!(ending.detail.contains("`mesh` has another role"));
        // Also before it has asked for anything.
        carried.service = Asked::Nothing;
        judge(&world, &carried).unwrap_err();
    }
}

#[test]
fn what_would_be_let_in_again_stays() {
    let world = world();
    let cart = id(CART);
    bytes_of(&world, &cart).unwrap();
    judge(&world, &carried(&world, "shop/web", &cart, Kind::Session)).unwrap();
    let request = Kind::Request {
        method: "GET",
        path: "/v1/orders",
        headers: None,
    };
    judge(&world, &carried(&world, "shop/web", &cart, request)).unwrap();
    let name: Arc<str> = "shop/db".into();
    let directory = Directory::new(&world);
    assert_eq!(directory.find(&name, 5432), find(&world, "shop/db", 5432));
    assert_eq!(directory.find(&name, 1), Asked::Gone);
}

#[test]
fn each_kind_of_change_has_its_reason_and_names_its_rule() {
    let cart = id(CART);
    let ended = |change: &dyn Fn(&mut Snapshot)| {
        let mut world = world();
        change(&mut world);
        let ending = bytes_of(&world, &cart).unwrap_err();
        (ending.reason.label(), ending.rule)
    };
    let at = |line: u32| Some(format!("orders.yaml:{line}"));
    let denied = ended(&|world| {
        world.services[0].policy.deny = vec![rule(&["spiffe://west.example/ns/shop/*"], 3)];
    });
    assert_eq!(denied, ("no-longer-allowed", at(3)));
    let other = ended(&|world| {
        world.services[0].policy.allow = vec![rule(&[GATEWAY], 4)];
    });
    assert_eq!(other, ("no-longer-allowed", at(4)));
    let nothing = ended(&|world| {
        world.services[0].policy = Policy::default();
        world.services[0].position = Some(Position {
            file: "orders.yaml".into(),
            line: 1,
        });
    });
    assert_eq!(nothing, ("no-longer-allowed", at(1)));
    let unexported = ended(&|world| world.services[0].export = Export::Nobody);
    assert_eq!(unexported.0, "no-longer-served");
    let gone = ended(&|world| {
        world.services.edit(|all| drop(all.remove(0)));
    });
    assert_eq!(gone.0, "no-longer-served");
    let unheard = ended(&|world| {
        world.listeners.edit(|all| drop(all.remove(0)));
    });
    assert_eq!(unheard.0, "no-longer-served");
    let elsewhere = ended(&|world| world.listeners[0].only = Some(ServiceIx(1)));
    assert_eq!(elsewhere.0, "no-longer-served");
    let http = ended(&|world| world.services[0].protocol = Protocol::Http);
    assert_eq!(http.0, "no-longer-served");
    let source = ended(&|world| world.listeners[0].sources = nets(&["198.51.100.0/24"]));
    assert_eq!(source.0, "no-longer-allowed");
}

#[test]
fn a_session_stays_while_any_request_of_it_could_be_allowed() {
    let cart = id(CART);
    let session =
        |world: &Snapshot| judge(world, &carried(world, "shop/web", &cart, Kind::Session));
    let mut world = world();
    // A rule against some requests is none against the connection.
    world.services[1].policy.deny = vec![Rule {
        methods: vec!["PUT".into()],
        ..rule(&[CART], 11)
    }];
    session(&world).unwrap();
    let put = Kind::Request {
        method: "PUT",
        path: "/v1/orders",
        headers: None,
    };
    let ending = judge(&world, &carried(&world, "shop/web", &cart, put)).unwrap_err();
    assert_eq!(ending.rule.as_deref(), Some("orders.yaml:11"));
    world.services[1].policy.deny = vec![rule(&[CART], 12)];
    let ending = session(&world).unwrap_err();
    assert_eq!(ending.rule.as_deref(), Some("orders.yaml:12"));
    // What a gateway hands on is not known of its connection.
    world.services[1].policy = Policy {
        allow: vec![Rule {
            via: vec![crate::snapshot::PeerIx(0)],
            ..rule(&[CART], 13)
        }],
        ..Policy::default()
    };
    let gateway = id(GATEWAY);
    judge(
        &world,
        &carried(&world, "shop/web", &gateway, Kind::Session),
    )
    .unwrap();
    world.services[1].policy.allow[0].via = Vec::new();
    let ending = judge(
        &world,
        &carried(&world, "shop/web", &gateway, Kind::Session),
    )
    .unwrap_err();
    assert_eq!(ending.reason, Reason::NoLongerAllowed);
}

#[test]
fn an_identity_handed_on_is_judged_as_one() {
    let mut world = world();
    world.services[0].policy.allow = vec![Rule {
        via: vec![crate::snapshot::PeerIx(0)],
        ..rule(&[CART], 5)
    }];
    let (gateway, cart) = (id(GATEWAY), id(CART));
    let mut handed_on = carried(&world, "shop/db", &gateway, Kind::Bytes);
    handed_on.claimed = Some(&cart);
    judge(&world, &handed_on).unwrap();
    // The peer no longer attests: the word of its gateway does not count.
    world.peers[0].attests = Vec::new();
    let ending = judge(&world, &handed_on).unwrap_err();
    assert_eq!(ending.reason, Reason::NoLongerAllowed);
}

#[test]
fn an_endpoint_may_go_but_not_become_somebody_else() {
    let mut world = world();
    let address = Address::Socket("127.0.0.1:1".parse().unwrap());
    let cart = id(CART);
    let answering = Answering {
        backend: "backend",
        address: &address,
        id: &cart,
    };
    let judged = |world: &Snapshot| judge_answering(world, "apps", ServiceIx(0), &answering);
    let expects = |world: &mut Snapshot, who: &[&str]| {
        for endpoint in &mut Arc::make_mut(&mut world.clusters[0]).endpoints {
            endpoint.tls = EndpointTls::Mesh {
                sni: "db.a".into(),
                expected: ids(who),
            };
        }
    };
    judged(&world).unwrap();
    expects(&mut world, &["spiffe://west.example/ns/shop/*"]);
    judged(&world).unwrap();
    expects(&mut world, &[GATEWAY]);
    assert_eq!(judged(&world).unwrap_err().reason, Reason::UpstreamRefused);
    Arc::make_mut(&mut world.clusters[0]).endpoints.clear();
    judged(&world).unwrap();
}

#[test]
fn an_endpoint_of_another_route_that_a_rule_leads_to_may_not_become_somebody_else() {
    let mut world = world();
    let mut canary = cluster(&[&["canary"]]);
    canary.endpoints[0].backend = "canary".into();
    world.clusters.edit(|all| all.push(canary.into()));
    world.services[1].rules = Some(Arc::new(Rules {
        list: vec![http_rule("0", Some(vec![part(1, 1)]))],
        ..Rules::default()
    }));
    let cart = id(CART);
    let judged = |world: &mut Snapshot, who: &[&str]| {
        let endpoint = &mut Arc::make_mut(&mut world.clusters[1]).endpoints[0];
        endpoint.tls = EndpointTls::Mesh {
            sni: "canary.a".into(),
            expected: ids(who),
        };
        let answering = Answering {
            backend: "canary",
            address: &endpoint.address.clone(),
            id: &cart,
        };
        judge_answering(world, "apps", ServiceIx(1), &answering)
    };
    judged(&mut world, &[CART]).unwrap();
    let ending = judged(&mut world, &[GATEWAY]).unwrap_err();
    assert_eq!(ending.reason, Reason::UpstreamRefused);
}
