use zeugma_core::engine::Wants;

use super::build::{
    chain, chains, cluster, context, ended, filter, host, http, listener, manager, of_cluster,
    of_listener, one, rds, route, seconds, socket, tcp, to, upstream, west,
};
use super::{by_sni, decided, door, from, ingest, inside, known, plain, refused, service};
use crate::pb::{self, core, hcm, listener as envoy, tcp_proxy, tls};

const CART: &str = "spiffe://west.example/cart";

#[test]
fn a_chain_with_server_names_and_no_context_relays_tls_as_it_is() {
    let all = [
        one("a"),
        one("b"),
        chains(vec![
            chain("a", &["one.a", "*.wild.a"], tcp("a")),
            chain(
                "b",
                &["outbound_.80_._.svc.b", "outbound_.81_._.svc.b"],
                tcp("b"),
            ),
        ]),
    ];
    let snapshot = ingest(&all).unwrap();
    let to_a = "in/a to a|passthrough|idle 3600000ms";
    let to_b = "in/b to b|passthrough|idle 3600000ms";
    for (sni, expected) in [
        (Some("one.a"), to_a),
        (Some("ONE.a"), to_a),
        (Some("x.y.wild.a"), to_a),
        (Some("outbound_.80_._.svc.b"), to_b),
        (Some("outbound_.81_._.svc.b"), to_b),
        (Some("outbound_.82_._.svc.b"), "sni-unknown"),
        (Some("wild.a"), "sni-unknown"),
        (None, "sni-missing"),
    ] {
        assert_eq!(by_sni(&snapshot, sni), expected, "{sni:?}");
    }
    // Nothing that is no TLS comes in.
    assert_eq!(plain(&snapshot, "one.a", "/"), "authority-unknown");
}

#[test]
fn where_callers_of_a_chain_may_come_from_is_its_first_rule() {
    let mut limited = chain("a", &["one.a"], tcp("a"));
    let matched = limited.filter_chain_match.as_mut().unwrap();
    matched.source_prefix_ranges = vec![super::build::range("10.0.0.0/8")];
    let all = [one("a"), chains(vec![limited.clone()])];
    let snapshot = ingest(&all).unwrap();
    let hello = super::hello(Some("one.a"));
    let ask = |source| decided(&snapshot, from(source), Wants::Hello(&hello));
    assert!(ask("10.1.2.3").starts_with("in/a to "));
    assert_eq!(ask("192.0.2.1"), "not-allowed");
    // Of two chains of one name one would have to be chosen by where a caller is.
    let why = refused(&[
        one("a"),
        chains(vec![limited.clone(), chain("b", &["one.a"], tcp("a"))]),
    ]);
    assert_eq!(
        why,
        "listener in: filter_chains[1]: another chain has the server name `one.a`"
    );
    let mut listener = listener(vec![limited]);
    listener.default_filter_chain = Some(chain("rest", &[], tcp("a")));
    let why = refused(&[one("a"), of_listener(&listener)]);
    assert!(
        why.contains("listener in: default_filter_chain: `filter_chains[0]` takes"),
        "{why}"
    );
}

#[test]
fn a_chain_with_a_context_ends_tls_for_those_it_names() {
    let all = [
        one("a"),
        of_cluster(&{
            let mut mesh = cluster("b", &[&["10.0.0.2:80"]]);
            mesh.transport_socket = Some(upstream("b", "spiffe://east.example/b"));
            mesh
        }),
        chains(vec![
            ended(chain("a", &["a.a"], tcp("a")), west()),
            ended(chain("b", &["b.a"], tcp("b")), west()),
        ]),
    ];
    let snapshot = ingest(&all).unwrap();
    assert_eq!(by_sni(&snapshot, Some("a.a")), "terminate in/a");
    let ask = |caller| {
        let wants = Wants::Inside(door(&snapshot, "in/a"));
        decided(&snapshot, caller, wants)
    };
    assert_eq!(ask(known(CART)), "in/a to a|idle 3600000ms");
    assert_eq!(ask(known("spiffe://north.example/cart")), "not-allowed");
    assert_eq!(ask(super::SOMEBODY), "not-allowed");
    // TLS is ended here and begun anew there.
    let to_b = Wants::Inside(door(&snapshot, "in/b"));
    assert_eq!(
        decided(&snapshot, known(CART), to_b),
        "in/b to b|idle 3600000ms"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn whom_a_context_lets_in_is_what_all_of_it_says() {
    type Change = fn(&mut tls::CommonTlsContext);
    fn combined(
        common: &mut tls::CommonTlsContext,
    ) -> &mut tls::common_tls_context::CombinedCertificateValidationContext {
        use tls::common_tls_context::ValidationContextType;
        let Some(ValidationContextType::CombinedValidationContext(combined)) =
            &mut common.validation_context_type
        else {
            panic!("it is not combined");
        };
        combined
    }
    fn secret(common: &mut tls::CommonTlsContext, name: &str) {
        let secret = &mut combined(common).validation_context_sds_secret_config;
        secret.as_mut().unwrap().name = name.to_owned();
    }
    fn spiffe(common: &mut tls::CommonTlsContext, domains: &[&str]) {
        let config = tls::SpiffeCertValidatorConfig {
            trust_domains: (domains.iter())
                .map(|name| tls::spiffe_cert_validator_config::TrustDomain {
                    name: (*name).to_owned(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        };
        let context = combined(common)
            .default_validation_context
            .as_mut()
            .unwrap();
        context.custom_validator_config = Some(core::TypedExtensionConfig {
            name: "spiffe".to_owned(),
            typed_config: Some(pb::pack(&config)),
        });
    }
    fn nobody(common: &mut tls::CommonTlsContext) {
        let context = combined(common)
            .default_validation_context
            .as_mut()
            .unwrap();
        context.match_typed_subject_alt_names.clear();
    }
    let place = "filter_chains[0].transport_socket.typed_config.common_tls_context";
    let all: [(Change, Result<&[&str], &str>); 14] = [
        (|_| {}, Ok(&["spiffe://west.example/*"])),
        (
            |common| secret(common, "spiffe://west.example"),
            Ok(&["spiffe://west.example/*"]),
        ),
        (
            |common| {
                nobody(common);
                secret(common, "spiffe://west.example");
            },
            Ok(&["spiffe://west.example/*"]),
        ),
        (
            |common| {
                nobody(common);
                secret(common, "ROOTCA");
            },
            Ok(&["spiffe://east.example/*"]),
        ),
        (
            |common| {
                nobody(common);
                spiffe(common, &["west.example", "north.example"]);
            },
            Ok(&["spiffe://west.example/*", "spiffe://north.example/*"]),
        ),
        // What it trusts and whom it names have nobody in common.
        (
            |common| secret(common, "ROOTCA"),
            Err(".combined_validation_context.default_validation_context: nobody has an identity"),
        ),
        (
            nobody,
            Err(".combined_validation_context.default_validation_context: it lets in whoever"),
        ),
        (
            |common| secret(common, "kubernetes://ca"),
            Err(
                ".combined_validation_context.validation_context_sds_secret_config.name: the gateway holds no bundle",
            ),
        ),
        (
            |common| common.tls_certificate_sds_secret_configs[0].name = "web".to_owned(),
            Err(".tls_certificate_sds_secret_configs[0].name: the gateway holds no secret `web`"),
        ),
        // It is somebody's of our trust domain, and nothing says that it is ours.
        (
            |common| {
                let name = "spiffe://east.example/ns/shop/sa/cart";
                common.tls_certificate_sds_secret_configs[0].name = name.to_owned();
            },
            Err(".tls_certificate_sds_secret_configs[0].name: the gateway holds no secret"),
        ),
        (
            |common| common.tls_certificate_sds_secret_configs[0].name = "ROOTCA".to_owned(),
            Err(".tls_certificate_sds_secret_configs[0].name: the gateway holds no secret"),
        ),
        (
            |common| common.alpn_protocols = vec!["h2".to_owned()],
            Err(".alpn_protocols: [\"h2\"] is not offered"),
        ),
        (
            |common| common.alpn_protocols = vec!["istio".to_owned()],
            Err(".alpn_protocols: [\"istio\"] is not offered"),
        ),
        (
            |common| {
                combined(common)
                    .default_validation_context
                    .as_mut()
                    .unwrap()
                    .trusted_ca = Some(core::DataSource::default());
            },
            Err(".combined_validation_context.default_validation_context.trusted_ca: the anchors"),
        ),
    ];
    for (change, expected) in all {
        let mut common = west();
        change(&mut common);
        let made = ended(chain("a", &["a.a"], tcp("a")), common);
        let made = ingest(&[one("a"), chains(vec![made])]);
        match expected {
            Ok(ids) => {
                let snapshot = made.unwrap();
                let from = &service(&snapshot, "in/a").policy.allow[0].from;
                let from: Vec<String> = from.iter().map(ToString::to_string).collect();
                assert_eq!(from, ids);
            }
            Err(why) => {
                let faults = made.unwrap_err();
                let expected = format!("listener in: {place}{why}");
                assert!(faults[0].starts_with(&expected), "{faults:?}");
            }
        }
    }
}

#[test]
fn who_needs_no_certificate_is_let_in_by_no_chain() {
    let mut open = ended(chain("a", &["a.a"], tcp("a")), west());
    open.transport_socket = Some(socket(&tls::DownstreamTlsContext {
        common_tls_context: Some(west()),
        ..Default::default()
    }));
    let why = refused(&[one("a"), chains(vec![open])]);
    assert!(
        why.starts_with(
            "listener in: filter_chains[0].transport_socket.typed_config.require_client_certificate: "
        ),
        "{why}"
    );
}

#[test]
fn identities_are_named_by_their_whole_or_their_parent() {
    let mut folded = pb::exactly(CART);
    folded.ignore_case = true;
    for (matcher, why) in [
        (
            pb::beginning("spiffe://west.example/ca"),
            "matcher.prefix: it must end with `/`",
        ),
        (pb::beginning("spiffe://"), "matcher.prefix: `spiffe://`: "),
        // To Envoy this is an ID that nobody has.
        (
            pb::exactly("spiffe://west.example/*"),
            "matcher.exact: `spiffe://west.example/*`: ",
        ),
        (
            pb::beginning("spiffe://west.example/*/"),
            "matcher.prefix: `spiffe://west.example/*/`: ",
        ),
        (
            pb::exactly("cart.west.example"),
            "matcher.exact: `cart.west.example`: ",
        ),
        (folded, "matcher.ignore_case: "),
    ] {
        let made = ended(chain("a", &["a.a"], tcp("a")), context(vec![matcher]));
        let refused = refused(&[one("a"), chains(vec![made])]);
        let place = "match_typed_subject_alt_names[0].";
        assert!(refused.contains(&format!("{place}{why}")), "{refused}");
    }
}

#[test]
fn what_no_server_name_asks_for_is_the_chains_that_has_none() {
    let all = [
        one("a"),
        one("b"),
        chains(vec![
            ended(chain("rest", &[], tcp("b")), west()),
            ended(chain("a", &["a.a"], tcp("a")), west()),
        ]),
    ];
    let snapshot = ingest(&all).unwrap();
    assert_eq!(by_sni(&snapshot, Some("a.a")), "terminate in/a");
    for sni in [None, Some("b.b"), Some("10.0.0.1")] {
        assert_eq!(by_sni(&snapshot, sni), "terminate in/rest", "{sni:?}");
    }
    let mut made = listener(vec![ended(chain("a", &["a.a"], tcp("a")), west())]);
    made.default_filter_chain = Some(ended(chain("", &[], tcp("b")), west()));
    let snapshot = ingest(&[one("a"), one("b"), of_listener(&made)]).unwrap();
    assert_eq!(by_sni(&snapshot, None), "terminate in/rest");
    made.filter_chains[0].filter_chain_match = None;
    let why = refused(&[one("a"), one("b"), of_listener(&made)]);
    assert!(
        why.contains("default_filter_chain: another chain takes what no server name"),
        "{why}"
    );
}

#[test]
fn a_chain_without_anything_takes_whatever_comes() {
    let snapshot = ingest(&[one("a"), chains(vec![chain("", &[], tcp("a"))])]).unwrap();
    let to = "in/rest to a|idle 3600000ms";
    assert_eq!(decided(&snapshot, super::SOMEBODY, Wants::Plaintext), to);
    assert_eq!(by_sni(&snapshot, Some("x.x")), to);
    let why = refused(&[
        one("a"),
        chains(vec![
            chain("", &[], tcp("a")),
            chain("b", &["b.b"], tcp("a")),
        ]),
    ]);
    assert!(
        why.contains("listener in: filter_chains[0]: it takes whatever comes"),
        "{why}"
    );
}

#[test]
fn proxy_headers_are_read_where_the_listener_says_so() {
    let mut made = listener(vec![chain("a", &["a.a"], tcp("a"))]);
    let of = |any: pb::Any| envoy::ListenerFilter {
        name: "filter".to_owned(),
        config_type: Some(envoy::listener_filter::ConfigType::TypedConfig(any)),
        ..Default::default()
    };
    made.listener_filters = vec![
        of(pb::pack(&pb::ProxyProtocol::default())),
        of(pb::pack(&pb::TlsInspector::default())),
    ];
    let snapshot = ingest(&[one("a"), of_listener(&made)]).unwrap();
    let listener = snapshot.listener("in").unwrap();
    for proxy in ["192.0.2.7", "2001:db8::1"] {
        assert!(listener.trusts(proxy.parse().unwrap()));
    }
    made.listener_filters[1] = of(pb::pack(&pb::Router::default()));
    let why = refused(&[one("a"), of_listener(&made)]);
    assert!(
        why.contains("listener_filters[1].typed_config: `type.googleapis.com/"),
        "{why}"
    );
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn what_cannot_be_said_of_a_listener_is_refused_by_its_place() {
    type Change = fn(&mut envoy::Listener);
    fn matched(one: &mut envoy::Listener) -> &mut envoy::FilterChainMatch {
        one.filter_chains[0].filter_chain_match.as_mut().unwrap()
    }
    let all: [(Change, &str); 14] = [
        (|one| one.address = None, "address: "),
        (
            |one| {
                let address = one.address.as_mut().and_then(|one| one.address.as_mut());
                if let Some(core::address::Address::SocketAddress(socket)) = address {
                    socket.protocol = core::socket_address::Protocol::Udp.into();
                }
            },
            "address.socket_address.protocol: it is not TCP",
        ),
        (
            |one| one.address = Some(pb::address("name", 1)),
            "address: `name` is not",
        ),
        (
            |one| one.filter_chains.clear(),
            "filter_chains: it has none",
        ),
        (
            |one| one.filter_chains[0].filters.clear(),
            "filter_chains[0].filters: it has none",
        ),
        (
            |one| {
                one.filter_chains[0]
                    .filters
                    .push(filter("x", &pb::Router::default()))
            },
            "filter_chains[0].filters[0].typed_config: before the last one RBAC alone",
        ),
        (
            |one| one.filter_chains[0].filters = vec![filter("x", &pb::Router::default())],
            "filter_chains[0].filters[0].typed_config: it is a",
        ),
        (
            |one| matched(one).application_protocols = vec!["h2".to_owned()],
            "filter_chains[0].filter_chain_match.application_protocols: ",
        ),
        (
            |one| matched(one).transport_protocol = "quic".to_owned(),
            "filter_chains[0].filter_chain_match.transport_protocol: `quic`",
        ),
        (
            |one| matched(one).transport_protocol = "raw_buffer".to_owned(),
            "filter_chains[0].filter_chain_match.transport_protocol: `raw_buffer` is none",
        ),
        (
            |one| matched(one).destination_port = pb::number(1),
            "filter_chains[0].filter_chain_match.destination_port: ",
        ),
        (
            |one| matched(one).server_names = vec!["*a.a".to_owned()],
            "filter_chains[0].filter_chain_match.server_names[0]: `*a.a`: ",
        ),
        (
            |one| {
                one.filter_chains[0].filters = vec![filter(
                    "tcp",
                    &tcp_proxy::TcpProxy {
                        idle_timeout: seconds(-1),
                        cluster_specifier: Some(tcp_proxy::tcp_proxy::ClusterSpecifier::Cluster(
                            "a".to_owned(),
                        )),
                        ..Default::default()
                    },
                )];
            },
            "filter_chains[0].filters[0].typed_config.idle_timeout: it is negative",
        ),
        (
            |one| {
                let hosts = vec![host("h", &["*"], vec![route("/", to("a"))])];
                one.filter_chains[0].filters = vec![http(hosts)];
            },
            "filter_chains[0].transport_socket: it is missing",
        ),
    ];
    for (change, path) in all {
        let mut made = listener(vec![chain("a", &["a.a"], tcp("a"))]);
        change(&mut made);
        let why = refused(&[one("a"), of_listener(&made)]);
        assert!(why.starts_with(&format!("listener in: {path}")), "{why}");
        let alone = super::super::check_listener(&made, &super::node().trust_domain);
        assert!(alone.unwrap_err().starts_with(path), "{path}");
    }
}

#[test]
fn what_is_referred_to_and_not_there_is_a_fault_of_who_refers() {
    let made = chain("a", &["a.a"], tcp("a"));
    assert_eq!(
        refused(&[chains(vec![made])]),
        "listener in: filter_chains[0]: no cluster `a`"
    );
    let named = filter("http", &manager(rds("r"), &[]));
    assert_eq!(
        refused(&[chains(vec![chain("a", &[], named.clone())])]),
        "listener in: filter_chains[0]: no route configuration `r`"
    );
    let routes = super::build::routes("r", vec![host("h", &["*"], vec![route("/", to("a"))])]);
    let all = [
        super::build::of_routes(&routes),
        chains(vec![chain("a", &[], named)]),
    ];
    assert_eq!(
        refused(&all),
        "route configuration r: virtual_hosts[0].routes[0]: no cluster `a`"
    );
    // One without virtual hosts is there, and has nothing for anybody.
    let empty = super::build::of_routes(&super::build::routes("r", Vec::new()));
    let snapshot = ingest(&[empty, all[1].clone()]).unwrap();
    assert_eq!(plain(&snapshot, "any.host", "/"), "authority-unknown");
    // A cluster that is wrong itself is the only one at fault.
    let mut wrong = cluster("a", &[&["10.0.0.1:80"]]);
    wrong.lb_policy = 99;
    let all = [of_cluster(&wrong), all[0].clone(), all[1].clone()];
    assert!(refused(&all).starts_with("cluster a: lb_policy: "));
}

#[test]
fn a_cluster_with_tls_of_its_own_is_none_to_relay_tls_to() {
    let mut mesh = cluster("a", &[&["10.0.0.2:80"]]);
    mesh.transport_socket = Some(upstream("b", "spiffe://east.example/b"));
    let why = refused(&[
        of_cluster(&mesh),
        chains(vec![chain("a", &["a.a"], tcp("a"))]),
    ]);
    assert_eq!(
        why,
        "listener in: filter_chains[0]: cluster `a` has TLS of its own, and the caller's is relayed as it is"
    );
}

#[test]
fn no_two_clusters_are_called_alike() {
    let relay = || chains(vec![chain("a", &["a.a"], tcp("a"))]);
    let why = refused(&[one("a"), one("a|passthrough|idle 3600000ms"), relay()]);
    assert!(
        why.starts_with("cluster a: as it is used it would be called"),
        "{why}"
    );
    ingest(&[one("a"), one("a|passthrough"), relay()]).unwrap();
}

#[test]
fn resources_of_ours_stand_beside_a_strangers() {
    let ours = crate::meta::ListenerMeta {
        mesh: true,
        only: None,
        sources: Vec::new(),
        handshakes_per_source: None,
        proxies: Vec::new(),
    };
    let ours = envoy::Listener {
        name: "mesh".to_owned(),
        address: Some(pb::address("127.0.0.1", 15443)),
        metadata: Some(pb::metadata(&ours)),
        ..Default::default()
    };
    let all = [
        one("a"),
        chains(vec![chain("a", &["a.a"], tcp("a"))]),
        of_listener(&ours),
    ];
    let snapshot = ingest(&all).unwrap();
    let names: Vec<&str> = snapshot.listeners.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["mesh", "in"]);
    assert!(by_sni(&snapshot, Some("a.a")).starts_with("in/a to a"));
}

#[test]
fn http_inside_tls_asks_for_hosts_of_its_own_chain_alone() {
    let hosts = |cluster: &str| vec![host("h", &["api.a"], vec![route("/", to(cluster))])];
    let open = |name: &str| {
        let all = [
            hosts(name),
            vec![host("rest", &["*"], vec![route("/", to(name))])],
        ];
        all.concat()
    };
    let all = [
        one("a"),
        one("b"),
        chains(vec![
            ended(chain("a", &["a.a"], http(hosts("a"))), west()),
            ended(chain("b", &["b.a"], http(open("b"))), west()),
        ]),
    ];
    let snapshot = ingest(&all).unwrap();
    assert_eq!(by_sni(&snapshot, Some("a.a")), "terminate in/a");
    let get = |chain, authority| inside(&snapshot, (chain, known(CART)), ("GET", authority, "/"));
    assert_eq!(get("in/a", "api.a"), "in/a/h to a");
    // A domain without a port is none of those with one, be it the listener's own.
    assert_eq!(get("in/a", "api.a:8443"), "misdirected");
    assert_eq!(get("in/a", "other.a"), "misdirected");
    assert_eq!(get("in/b", "api.a"), "in/b/h to b");
    assert_eq!(get("in/b", "other.a"), "in/b/rest to b");
    assert_eq!(get("in/b", "api.a:99"), "in/b/rest to b");
    let stranger = known("spiffe://north.example/x");
    let ask = inside(&snapshot, ("in/b", stranger), ("GET", "api.a", "/"));
    assert_eq!(ask, "not-allowed");
    // What does not begin with TLS is let in by nobody's certificate.
    assert_eq!(plain(&snapshot, "a.a", "/"), "not-allowed");
}

/// Sessions are judged by the chain of the name that they came by.
#[test]
fn chains_are_known_by_what_they_are_asked_for_wherever_they_stand() {
    let mut all = vec![
        chain("", &["z.a", "b.a"], tcp("a")),
        chain("", &["c.a"], tcp("a")),
        chain("same", &["d.a"], tcp("a")),
        chain("same", &["e.a"], tcp("a")),
        chain("with/slash", &["f.a"], tcp("a")),
        chain("", &["outbound_.80_._.g.a"], tcp("a")),
        ended(chain("", &[], tcp("a")), west()),
    ];
    for _ in 0..all.len() {
        all.rotate_left(1);
        let snapshot = ingest(&[one("a"), chains(all.clone())]).unwrap();
        for (sni, expected) in [
            ("z.a", "in/b.a to "),
            ("b.a", "in/b.a to "),
            ("c.a", "in/c.a to "),
            ("d.a", "in/same#d.a to "),
            ("e.a", "in/same#e.a to "),
            ("f.a", "in/with%2Fslash to "),
            ("outbound_.80_._.g.a", "in/outbound_.80_._.g.a to "),
            ("h.a", "terminate in/rest"),
        ] {
            let said = by_sni(&snapshot, Some(sni));
            assert!(said.starts_with(expected), "{sni}: {said}");
        }
    }
}

/// `Host: a.b` is no `a.b:8080`, and a server name with a port is none without it.
#[test]
fn hosts_are_told_apart_with_their_ports() {
    let of = |name: &str, domains: &[&str]| host(name, domains, vec![route("/", to("a"))]);
    let hosts = vec![
        of("port", &["a.b:8080", "*.c:8080"]),
        of("bare", &["c.c"]),
        of("own", &["d.d"]),
        of("rest", &["*"]),
    ];
    let made = chains(vec![chain("a", &[], http(hosts))]);
    let snapshot = ingest(&[one("a"), made]).unwrap();
    for (authority, expected) in [
        ("a.b:8080", "port"),
        ("a.b", "rest"),
        ("a.b:81", "rest"),
        ("c.c", "bare"),
        ("c.c:8080", "port"),
        ("d.d", "own"),
        ("d.d:8443", "rest"),
    ] {
        let expected = format!("in/a/{expected} to a");
        assert_eq!(plain(&snapshot, authority, "/"), expected, "{authority}");
    }
    let mut made = listener(vec![
        chain("a", &["outbound_.80_._.a.b"], tcp("a")),
        chain("b", &["outbound_.90_._.a.b"], tcp("a")),
        chain("c", &["outbound_.80_._.c.d"], tcp("a")),
        chain("d", &["*.d"], tcp("a")),
    ]);
    made.default_filter_chain = Some(ended(chain("rest", &[], tcp("a")), west()));
    let snapshot = ingest(&[one("a"), of_listener(&made)]).unwrap();
    for (sni, expected) in [
        ("outbound_.80_._.a.b", "in/a to "),
        ("outbound_.90_._.a.b", "in/b to "),
        ("a.b", "terminate in/rest"),
        ("c.d", "in/d to "),
        ("outbound_.80_._.c.d", "in/c to "),
        ("outbound_.81_._.c.d", "in/d to "),
    ] {
        let said = by_sni(&snapshot, Some(sni));
        assert!(said.starts_with(expected), "{sni}: {said}");
    }
}

#[test]
fn what_a_connection_manager_says_beside_routes_is_held_to() {
    let hosts = || vec![host("h", &["*"], vec![route("/", to("a"))])];
    type Change = fn(&mut hcm::HttpConnectionManager);
    let all: [(Change, &str); 6] = [
        (|one| one.codec_type = 2, "codec_type: "),
        (|one| one.merge_slashes = true, "merge_slashes: "),
        (
            |one| one.forward_client_cert_details = 1,
            "forward_client_cert_details: ",
        ),
        (|one| one.http_filters.clear(), "http_filters: it has none"),
        (
            |one| {
                let router = one.http_filters[0].clone();
                one.http_filters.push(router);
            },
            "http_filters[0].typed_config: before the last one RBAC alone",
        ),
        (|one| one.route_specifier = None, "rds: it is missing"),
    ];
    for (change, path) in all {
        let mut made = manager(super::build::written(hosts()), &[]);
        change(&mut made);
        let why = refused(&[
            one("a"),
            chains(vec![chain("a", &[], filter("http", &made))]),
        ]);
        let place = "listener in: filter_chains[0].filters[0].typed_config.";
        assert!(why.starts_with(&format!("{place}{path}")), "{why}");
    }
}
