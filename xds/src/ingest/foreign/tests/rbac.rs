use zeugma_core::engine::Wants;

use super::build::{
    any_permission, at, chain, chains, ended, filter, header, host, is, listener, manager, network,
    of_listener, one, path, permission, policy, principal, range, route, routes, rules, tcp, to,
    west, written,
};
use super::{Caller, asked, decided, door, ingest, inside, known, refused};
use crate::pb::{self, http_rbac, listener as envoy, matcher, rbac};
use rbac::permission::{Rule as Permitted, Set as Permissions};
use rbac::principal::{Identifier, Set as Principals};
use rbac::rbac::Action::{Allow, Deny};

const CART: &str = "spiffe://west.example/ns/shop/sa/cart";
const ORDERS: &str = "spiffe://west.example/ns/shop/sa/orders";
const BANK: &str = "spiffe://west.example/ns/bank/sa/teller";

fn set(all: Vec<Identifier>) -> Principals {
    Principals {
        ids: all.into_iter().map(principal).collect(),
    }
}

fn permissions(all: Vec<Permitted>) -> Permissions {
    Permissions {
        rules: all.into_iter().map(permission).collect(),
    }
}

fn not(other: Identifier) -> Identifier {
    Identifier::NotId(Box::new(principal(other)))
}

/// Whether each caller is let in by a TCP chain of the west with these filters.
fn let_in(filters: Vec<rbac::Rbac>, callers: &[Caller<'_>]) -> Vec<bool> {
    let mut made = ended(chain("a", &["a.a"], tcp("a")), west());
    let all = filters.into_iter().map(network);
    made.filters = all.chain([tcp("a")]).collect();
    let snapshot = ingest(&[one("a"), chains(vec![made])]).unwrap();
    let ask = |caller: &Caller<'_>| {
        let wants = Wants::Inside(door(&snapshot, "in/a"));
        match &*decided(&snapshot, *caller, wants) {
            "not-allowed" | "denied" => false,
            "in/a to a|idle 3600000ms" => true,
            other => panic!("{other}"),
        }
    };
    callers.iter().map(ask).collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn who_is_let_in_is_let_in_by_context_and_rules_alike() {
    let shop = || is(pb::beginning("spiffe://west.example/ns/shop/"));
    let callers = [
        known(CART),
        known(ORDERS),
        known(BANK),
        known("spiffe://north.example/x"),
    ];
    let any = || policy(vec![Identifier::Any(true)], any_permission());
    let of = |principal| policy(vec![principal], any_permission());
    for (filters, expected) in [
        (vec![], [true, true, true, false]),
        // Rules never widen whom the context lets in.
        (vec![rules(Allow, vec![any()])], [true, true, true, false]),
        (vec![rules(Allow, vec![])], [false; 4]),
        (vec![rules(Deny, vec![])], [true, true, true, false]),
        (vec![rules(Deny, vec![any()])], [false; 4]),
        (
            vec![rules(Allow, vec![of(shop())])],
            [true, true, false, false],
        ),
        (
            vec![rules(Deny, vec![of(shop())])],
            [false, false, true, false],
        ),
        (
            vec![rules(
                Allow,
                vec![of(is(pb::exactly(CART))), of(is(pb::exactly(BANK)))],
            )],
            [true, false, true, false],
        ),
        // Each filter has its say.
        (
            vec![
                rules(Allow, vec![of(shop())]),
                rules(
                    Allow,
                    vec![of(is(pb::exactly(CART))), of(is(pb::exactly(BANK)))],
                ),
            ],
            [true, false, false, false],
        ),
        (
            vec![
                rules(Allow, vec![of(shop())]),
                rules(Deny, vec![of(is(pb::exactly(CART)))]),
            ],
            [false, true, false, false],
        ),
        (
            vec![rules(
                Allow,
                vec![of(Identifier::AndIds(set(vec![
                    shop(),
                    Identifier::OrIds(set(vec![is(pb::exactly(BANK)), is(pb::exactly(ORDERS))])),
                ])))],
            )],
            [false, true, false, false],
        ),
        // Whoever is verified.
        (
            vec![rules(
                Allow,
                vec![of(Identifier::Authenticated(
                    rbac::principal::Authenticated::default(),
                ))],
            )],
            [true, true, true, false],
        ),
        (
            vec![rules(Deny, vec![of(not(shop()))])],
            [true, true, false, false],
        ),
        (
            vec![rules(
                Deny,
                vec![of(not(shop())), of(is(pb::exactly(CART)))],
            )],
            [false, true, false, false],
        ),
    ] {
        let text = format!("{filters:#?}");
        assert_eq!(let_in(filters, &callers), expected, "{text}");
    }
}

#[test]
fn where_a_caller_is_counts_beside_who_it_is() {
    let of = |source| Caller {
        source,
        ..known(CART)
    };
    let near = || at("10.0.0.0/8");
    let both = || Identifier::AndIds(set(vec![near(), is(pb::exactly(CART))]));
    let callers = [of("10.1.1.1"), of("192.0.2.1")];
    let one = |identifier, action| {
        let_in(
            vec![rules(
                action,
                vec![policy(vec![identifier], any_permission())],
            )],
            &callers,
        )
    };
    assert_eq!(one(near(), Allow), [true, false]);
    assert_eq!(one(near(), Deny), [false, true]);
    assert_eq!(one(both(), Allow), [true, false]);
    assert_eq!(
        one(Identifier::RemoteIp(range("192.0.2.0/24")), Allow),
        [false, true]
    );
    let none = Identifier::AndIds(set(vec![near(), at("192.0.2.0/24")]));
    assert_eq!(one(none, Allow), [false, false]);
}

#[test]
fn requests_are_told_apart_by_method_and_path() {
    let get = || Permitted::Header(header(":method", "GET"));
    let below = |prefix: &str| path(pb::beginning(prefix));
    let allow = rules(
        Allow,
        vec![
            policy(
                vec![is(pb::exactly(CART))],
                vec![Permitted::AndRules(permissions(vec![
                    get(),
                    Permitted::OrRules(permissions(vec![below("/v1/"), path(pb::exactly("/"))])),
                ]))],
            ),
            policy(vec![is(pb::exactly(BANK))], any_permission()),
        ],
    );
    let deny = rules(
        Deny,
        vec![policy(
            vec![Identifier::Any(true)],
            vec![below("/v1/secret/")],
        )],
    );
    let hosts = vec![host("h", &["a.a"], vec![route("/", to("a"))])];
    let http = manager(written(hosts), &[("allow", allow), ("deny", deny)]);
    let made = ended(chain("a", &["a.a"], filter("http", &http)), west());
    let snapshot = ingest(&[one("a"), chains(vec![made])]).unwrap();
    let ask = |id, method, path| inside(&snapshot, ("in/a", known(id)), (method, "a.a", path));
    let passes = "in/a/h to a";
    for (id, method, path, expected) in [
        (CART, "GET", "/v1/x", passes),
        (CART, "GET", "/", passes),
        (CART, "POST", "/v1/x", "not-allowed"),
        (CART, "GET", "/v2", "not-allowed"),
        (CART, "GET", "/v1/secret/x", "denied"),
        (BANK, "DELETE", "/v2", passes),
        (BANK, "GET", "/v1/secret/x", "denied"),
        (ORDERS, "GET", "/", "not-allowed"),
        // What servers may take for another path is allowed as none.
        (CART, "GET", "/v1/../v2", "denied"),
    ] {
        assert_eq!(ask(id, method, path), expected, "{id} {method} {path}");
    }
}

#[test]
fn a_virtual_host_may_have_rules_of_its_own_in_place_of_a_filters() {
    let only = |id: &str| {
        rules(
            Allow,
            vec![policy(vec![is(pb::exactly(id))], any_permission())],
        )
    };
    let own = |rbac| pb::pack(&http_rbac::RbacPerRoute { rbac });
    let of = |name: &str, filters: &[(&str, pb::Any)]| {
        let mut made = host(name, &[&format!("{name}.a")], vec![route("/", to("a"))]);
        let all = filters
            .iter()
            .map(|(name, any)| ((*name).to_owned(), any.clone()));
        made.typed_per_filter_config = all.collect();
        made
    };
    let bank = http_rbac::Rbac {
        rules: Some(only(BANK)),
        ..Default::default()
    };
    let hosts = vec![
        of("plain", &[]),
        of("bank", &[("rbac", own(Some(bank)))]),
        of("open", &[("rbac", own(None))]),
    ];
    let with = |hosts: Vec<_>| {
        let http = manager(written(hosts), &[("rbac", only(CART))]);
        let made = ended(chain("a", &["a.a"], filter("http", &http)), west());
        [one("a"), chains(vec![made])]
    };
    let snapshot = ingest(&with(hosts)).unwrap();
    let ask = |id, host: &str| {
        let said = inside(
            &snapshot,
            ("in/a", known(id)),
            ("GET", &format!("{host}.a"), "/"),
        );
        said != "not-allowed"
    };
    assert_eq!([ask(CART, "plain"), ask(BANK, "plain")], [true, false]);
    assert_eq!([ask(CART, "bank"), ask(BANK, "bank")], [false, true]);
    assert_eq!([ask(CART, "open"), ask(BANK, "open")], [true, true]);
    assert!(!ask("spiffe://north.example/x", "open"));
    // A name that no filter has would leave out what it says.
    let why = refused(&with(vec![of("bank", &[("rbca", own(None))])]));
    assert!(
        why.ends_with(
            "route_config.virtual_hosts[0]: no filter of the connection is called `rbca`"
        ),
        "{why}"
    );
}

#[test]
fn rules_that_ask_for_what_is_not_known_are_refused() {
    let place = "filter_chains[0].filters[0].typed_config.rules.policies[\"p0\"]";
    let with = |action, identifier, permitted: Vec<Permitted>| {
        rules(action, vec![policy(vec![identifier], permitted)])
    };
    let any = || Identifier::Any(true);
    for (rules, why) in [
        (
            with(Allow, is(pb::exactly(CART)), any_permission()),
            ".principals[0].authenticated: it asks for a verified caller",
        ),
        (
            with(Deny, is(pb::exactly(CART)), any_permission()),
            ".principals[0].authenticated: it asks for a verified caller",
        ),
        (
            with(Allow, not(at("10.0.0.0/8")), any_permission()),
            ".principals[0].not_id: it can be said",
        ),
        (
            with(
                Deny,
                not(at("10.0.0.0/8")),
                vec![Permitted::DestinationPort(80)],
            ),
            ".principals[0].not_id: it can be said of any permission alone",
        ),
        (
            with(Allow, any(), vec![Permitted::DestinationPort(80)]),
            ".permissions[0]: a permission of this kind",
        ),
        (
            with(Allow, any(), vec![path(pb::exactly("/"))]),
            ".permissions[0].url_path.path: connections have no such thing",
        ),
        (
            with(
                Allow,
                any(),
                vec![Permitted::Header(header(":method", "GET"))],
            ),
            ".permissions[0].header: connections have no such thing",
        ),
        (
            with(
                Allow,
                Identifier::Header(header("x", "y")),
                any_permission(),
            ),
            ".principals[0]: a principal of this kind",
        ),
    ] {
        let mut made = chain("a", &["a.a"], tcp("a"));
        made.filters.insert(0, network(rules));
        let refused = refused(&[one("a"), chains(vec![made])]);
        assert!(refused.contains(&format!("{place}{why}")), "{refused}");
    }
    let mut log = chain("a", &["a.a"], tcp("a"));
    log.filters
        .insert(0, network(rules(rbac::rbac::Action::Log, vec![])));
    let why = refused(&[one("a"), chains(vec![log])]);
    assert!(why.contains("typed_config.rules.action: "), "{why}");
}

#[test]
fn rules_of_requests_that_could_never_match_are_refused() {
    for (permitted, why) in [
        (
            path(pb::beginning("/v1")),
            "path.prefix: it must end with `/`",
        ),
        (path(pb::exactly("/a/../b")), "path: no request is matched"),
        (
            path(pb::exactly("/%61")),
            "path: `/%61` must be written `/a`",
        ),
        (
            Permitted::Header(header("x-beta", "1")),
            "header.name: of headers `:method`",
        ),
    ] {
        let rules = rules(
            Allow,
            vec![policy(vec![Identifier::Any(true)], vec![permitted])],
        );
        let hosts = vec![host("h", &["*"], vec![route("/", to("a"))])];
        let http = manager(written(hosts), &[("rbac", rules)]);
        let why_not = refused(&[
            one("a"),
            chains(vec![chain("a", &[], filter("http", &http))]),
        ]);
        assert!(why_not.contains(why), "{why_not}");
    }
    let remote = policy(
        vec![Identifier::RemoteIp(range("10.0.0.0/8"))],
        any_permission(),
    );
    let hosts = vec![host("h", &["*"], vec![route("/", to("a"))])];
    let http = manager(written(hosts), &[("rbac", rules(Allow, vec![remote]))]);
    let why = refused(&[
        one("a"),
        chains(vec![chain("a", &[], filter("http", &http))]),
    ]);
    assert!(
        why.contains("remote_ip: of requests it is what a header says"),
        "{why}"
    );
}

/// A route configuration is read whoever asks for it; whether its rules can be asked shows where it is used.
#[test]
fn rules_of_routes_are_asked_for_an_identity_where_one_is_known() {
    let only = rules(
        Allow,
        vec![policy(vec![is(pb::exactly(CART))], any_permission())],
    );
    let own = http_rbac::RbacPerRoute {
        rbac: Some(http_rbac::Rbac {
            rules: Some(only),
            ..Default::default()
        }),
    };
    let mut made = host("h", &["a.a"], vec![route("/", to("a"))]);
    made.typed_per_filter_config = [("rbac".to_owned(), pb::pack(&own))].into();
    let config = super::build::of_routes(&routes("r", vec![made]));
    let http = manager(super::build::rds("r"), &[("rbac", rules(Allow, vec![]))]);
    let plain = chain("a", &[], filter("http", &http));
    let closed = ended(plain.clone(), west());
    let snapshot = ingest(&[one("a"), config.clone(), chains(vec![closed])]).unwrap();
    let ask = |id| inside(&snapshot, ("in/a", known(id)), ("GET", "a.a", "/"));
    assert_eq!((&*ask(CART), &*ask(BANK)), ("in/a/h to a", "not-allowed"));
    let why = refused(&[one("a"), config, chains(vec![plain])]);
    let place = "virtual_hosts[0].typed_per_filter_config[\"rbac\"].rbac.rules.policies[\"p0\"]";
    assert!(
        why.starts_with(&format!("route configuration r: {place}")),
        "{why}"
    );
}

#[test]
fn behind_proxy_headers_a_callers_own_address_is_asked_for() {
    #[expect(deprecated, reason = "it is what is meant here")]
    let own = Identifier::SourceIp(range("10.0.0.0/8"));
    for (identifier, is_right) in [(at("10.0.0.0/8"), false), (own, true)] {
        let mut made = chain("a", &["a.a"], tcp("a"));
        let allow = rules(Allow, vec![policy(vec![identifier], any_permission())]);
        made.filters.insert(0, network(allow));
        let mut made = listener(vec![made]);
        made.listener_filters = vec![envoy::ListenerFilter {
            name: "proxy".to_owned(),
            config_type: Some(envoy::listener_filter::ConfigType::TypedConfig(pb::pack(
                &pb::ProxyProtocol::default(),
            ))),
            ..Default::default()
        }];
        match ingest(&[one("a"), of_listener(&made)]) {
            Ok(_) => assert!(is_right),
            Err(why) => {
                assert!(!is_right && why[0].contains("direct_remote_ip: behind a PROXY header"));
            }
        }
    }
}

fn named(name: matcher::StringMatcher) -> Vec<Permitted> {
    vec![Permitted::RequestedServerName(name)]
}

fn inspected(made: envoy::FilterChain) -> super::build::Listed {
    let mut made = listener(vec![made]);
    made.listener_filters = vec![envoy::ListenerFilter {
        name: "tls".to_owned(),
        config_type: Some(envoy::listener_filter::ConfigType::TypedConfig(pb::pack(
            &pb::TlsInspector::default(),
        ))),
        ..Default::default()
    }];
    of_listener(&made)
}

#[test]
fn a_server_name_is_taken_at_its_word() {
    let anybody = |permitted| policy(vec![Identifier::Any(true)], permitted);
    let with = |filters: Vec<rbac::Rbac>| {
        let mut made = ended(chain("a", &["*.a"], tcp("a")), west());
        let all = filters.into_iter().map(network);
        made.filters = all.chain([tcp("a")]).collect();
        let snapshot = ingest(&[one("a"), inspected(made)]).unwrap();
        let names = ["b.a", "B.A", "b.a.", "outbound_.80_._.b.a", "c.b.a"];
        names.map(|sni| {
            let caller = Caller {
                sni: Some(sni),
                ..known(CART)
            };
            let wants = Wants::Inside(door(&snapshot, "in/a"));
            decided(&snapshot, caller, wants).starts_with("in/a to")
        })
    };
    let exact = || named(pb::exactly("b.a"));
    let below = || named(pb::ending(".b.a"));
    let allow = |permitted| vec![rules(Allow, vec![anybody(permitted)])];
    let deny = |permitted| vec![rules(Deny, vec![anybody(permitted)])];
    // The one with a dot at its end Envoy would not take for the same: it is neither let in nor let past.
    assert_eq!(with(allow(exact())), [true, true, false, false, false]);
    assert_eq!(with(deny(exact())), [false, false, false, true, true]);
    assert_eq!(with(allow(below())), [false, false, false, true, true]);
    assert_eq!(with(deny(below())), [true, true, true, false, false]);
    let ports = named(pb::exactly("outbound_.80_._.b.a"));
    assert_eq!(with(allow(ports)), [false, false, false, true, false]);
    // Each filter has its say, and each policy of one.
    let both = [allow(below()), allow(named(pb::ending(".c.b.a")))].concat();
    assert_eq!(with(both), [false; 5]);
    let narrowed = [allow(named(pb::ending(".a"))), allow(exact())].concat();
    assert_eq!(with(narrowed), [true, true, false, false, false]);
    let either = vec![rules(Allow, vec![anybody(exact()), anybody(below())])];
    assert_eq!(with(either), [true, true, false, true, true]);
}

#[test]
fn server_names_that_no_tls_would_have_are_refused() {
    let with = |permitted| rules(Deny, vec![policy(vec![Identifier::Any(true)], permitted)]);
    let ignoring = matcher::StringMatcher {
        ignore_case: true,
        ..pb::exactly("a.a")
    };
    for (name, why) in [
        (
            pb::exactly("A.a"),
            ".exact: no server name is matched by it; `a.a` would be",
        ),
        (pb::exactly("a..a"), ".exact: label"),
        (pb::ending("a.a"), ".suffix: it must begin with `.`"),
        (pb::ending(".A.a"), ".suffix: no server name is matched"),
        (
            pb::beginning("a."),
            ": a server name is matched by `exact` or `suffix` alone",
        ),
        (ignoring, ".ignore_case: it is not supported"),
    ] {
        let mut made = ended(chain("a", &["a.a"], tcp("a")), west());
        made.filters.insert(0, network(with(named(name))));
        let refused = refused(&[one("a"), inspected(made)]);
        let expected = format!(".permissions[0].requested_server_name{why}");
        assert!(refused.contains(&expected), "{refused}");
    }
    // Where Envoy and we would see different names, or none.
    let mut without = ended(chain("a", &["a.a"], tcp("a")), west());
    without
        .filters
        .insert(0, network(with(named(pb::exactly("a.a")))));
    let mut plain = chain("a", &[], tcp("a"));
    plain
        .filters
        .insert(0, network(with(named(pb::exactly("a.a")))));
    for listener in [chains(vec![without]), inspected(plain)] {
        let why = refused(&[one("a"), listener]);
        assert!(
            why.contains("it asks for a server name, and TLS is not told apart"),
            "{why}"
        );
    }
}

#[test]
fn plaintext_is_let_in_by_where_it_comes_from() {
    let near = rules(
        Allow,
        vec![policy(vec![at("10.0.0.0/8")], any_permission())],
    );
    let hosts = vec![host("h", &["a.a"], vec![route("/", to("a"))])];
    let http = manager(written(hosts), &[("rbac", near)]);
    let made = chain("a", &[], filter("http", &http));
    let snapshot = ingest(&[one("a"), chains(vec![made])]).unwrap();
    let ask = |source| asked(&snapshot, super::from(source), ("GET", "a.a", "/"), &[]);
    assert_eq!(ask("10.1.1.1"), "in/a/h to a");
    assert_eq!(ask("192.0.2.1"), "not-allowed");
}

#[test]
fn filters_that_amount_to_too_many_rules_are_refused() {
    // Each narrows the other in one of 65 x 65 ways.
    let nets = |nth: usize| {
        (0..65).map(move |of| match nth {
            0 => policy(
                vec![at(&format!("10.{of}.0.0/16"))],
                vec![Permitted::Header(header(":method", &format!("M{of}")))],
            ),
            _ => policy(
                vec![is(pb::exactly(&format!("spiffe://west.example/{of}")))],
                vec![path(pb::exactly(&format!("/{of}")))],
            ),
        })
    };
    let hosts = vec![host("h", &["*"], vec![route("/", to("a"))])];
    let both = [
        ("one", rules(Allow, nets(0).collect())),
        ("two", rules(Allow, nets(1).collect())),
    ];
    let http = manager(written(hosts), &both);
    let made = ended(chain("a", &["a.a"], filter("http", &http)), west());
    let why = refused(&[one("a"), chains(vec![made])]);
    assert!(
        why.ends_with("with other RBAC filters it amounts to more than 4096 rules"),
        "{why}"
    );
}

/// Each pair would be looked at, and what is left of them compared with each other, before anything is
/// counted.
#[test]
fn rules_are_counted_before_they_are_paired() {
    const MANY: usize = 5000;
    let nets = |begin: usize| {
        let each = (0..MANY).map(move |nth| (begin, nth / 250, nth % 250));
        each.map(|(a, b, c)| at(&format!("{a}.{b}.{c}.0/24")))
    };
    let both = Identifier::AndIds(set(vec![
        Identifier::OrIds(set(nets(10).collect())),
        Identifier::OrIds(set(nets(10).collect())),
    ]));
    // Not one of them is in two of these.
    let half = |begin| Identifier::OrIds(set(nets(begin).take(4096).collect()));
    let pairs = Identifier::AndIds(set(vec![
        Identifier::OrIds(set(vec![half(10), Identifier::Any(true)])),
        half(11),
    ]));
    for (policy, place) in [
        (
            policy(vec![both], any_permission()),
            "principals[0].and_ids",
        ),
        (
            policy(nets(10).collect(), any_permission()),
            "principals[4096]: it amounts",
        ),
        (policy(vec![pairs], any_permission()), ""),
    ] {
        let mut made = chain("a", &["a.a"], tcp("a"));
        made.filters.insert(0, network(rules(Allow, vec![policy])));
        let all = [one("a"), chains(vec![made])];
        if place.is_empty() {
            ingest(&all).unwrap();
            continue;
        }
        let why = refused(&all);
        assert!(why.contains(place), "{why}");
        assert!(why.ends_with("it amounts to more than 4096 rules"), "{why}");
    }
    let only =
        (0..65).map(|nth| policy(vec![not(at(&format!("10.{nth}.0.0/16")))], any_permission()));
    let mut made = chain("a", &["a.a"], tcp("a"));
    made.filters.insert(0, network(rules(Deny, only.collect())));
    let why = refused(&[one("a"), chains(vec![made])]);
    assert!(why.ends_with("more than 64 are like it"), "{why}");
}
