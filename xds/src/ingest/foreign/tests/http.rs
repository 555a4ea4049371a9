use std::time::Duration;

use zeugma_core::rules::Field;
use zeugma_core::snapshot::{Balance, Failure, HashOn};

use super::build::{
    chain, chains, cluster, filter, header, host, http, manager, of_cluster, of_routes, one, rds,
    route, routes, seconds, to, weighted,
};
use super::{SOMEBODY, asked, ingest, plain, refused, service};
use crate::pb::{self, cluster as envoy, core, percent, route as wire};
use crate::session::Kind;

/// The listener `in` of plaintext HTTP with these virtual hosts, beside clusters `a` and `b`.
fn hosts(hosts: Vec<wire::VirtualHost>) -> Vec<super::Listed> {
    vec![
        one("a"),
        one("b"),
        chains(vec![chain("c", &[], http(hosts))]),
    ]
}

fn routed(all: Vec<wire::Route>) -> Vec<super::Listed> {
    hosts(vec![host("h", &["*"], all)])
}

/// Where what is wrong with the routes of [`routed`] stands.
const PLACE: &str =
    "listener in: filter_chains[0].filters[0].typed_config.route_config.virtual_hosts[0].";

#[test]
fn the_first_route_that_matches_decides_in_the_order_written() {
    let mut beta = route("/", to("b"));
    beta.r#match.as_mut().unwrap().headers = vec![header("X-Beta", "1")];
    let mut post = route("/", to("b"));
    post.r#match.as_mut().unwrap().headers = vec![header(":method", "POST")];
    let by = |specifier| wire::Route {
        r#match: Some(wire::RouteMatch {
            path_specifier: Some(specifier),
            ..Default::default()
        }),
        ..route("/", to("b"))
    };
    use wire::route_match::PathSpecifier;
    let snapshot = ingest(&routed(vec![
        // Envoy's prefix is one of text; a longer one behind it is never reached.
        route("/v1", to("a")),
        route("/v1/b", to("b")),
        by(PathSpecifier::Path("/whole".to_owned())),
        by(PathSpecifier::PathSeparatedPrefix("/parts".to_owned())),
        beta,
        post,
        route("/rest", to("a")),
    ]));
    let snapshot = snapshot.unwrap();
    let ask =
        |method, path, headers: &[_]| asked(&snapshot, SOMEBODY, (method, "x.x", path), headers);
    let (to_a, to_b) = ("in/c/h to a", "in/c/h to b");
    for (method, path, headers, expected) in [
        ("GET", "/v1", &[][..], to_a),
        ("GET", "/v1beta", &[], to_a),
        ("GET", "/v1/b", &[], to_a),
        ("GET", "/whole", &[], to_b),
        ("GET", "/whole?q=1", &[], to_b),
        ("GET", "/whole/x", &[], "no-rule"),
        ("GET", "/parts/x", &[], to_b),
        ("GET", "/partsx", &[], "no-rule"),
        ("GET", "/rest", &[("x-beta", "1")], to_b),
        ("POST", "/rest", &[], to_b),
        ("GET", "/restful", &[], to_a),
        ("GET", "/other", &[], "no-rule"),
    ] {
        assert_eq!(
            ask(method, path, headers),
            expected,
            "{method} {path} {headers:?}"
        );
    }
}

#[test]
fn virtual_hosts_are_found_by_their_domains() {
    let of = |name: &str, domains: &[&str], cluster: &str| {
        host(name, domains, vec![route("/", to(cluster))])
    };
    let snapshot = ingest(&hosts(vec![
        of("rest", &["*"], "a"),
        of("wild", &["*.example.com"], "b"),
        of("one", &["one.example.com", "one.example.com:80"], "a"),
        of("port", &["one.example.com:81"], "b"),
    ]));
    let snapshot = snapshot.unwrap();
    for (authority, expected) in [
        ("one.example.com", "in/c/one to a"),
        ("ONE.example.com", "in/c/one to a"),
        ("one.example.com:80", "in/c/one to a"),
        ("one.example.com:81", "in/c/port to b"),
        ("one.example.com:82", "in/c/rest to a"),
        ("two.example.com", "in/c/wild to b"),
        ("example.com", "in/c/rest to a"),
        ("10.0.0.1:8443", "in/c/rest to a"),
        ("", "authority-missing"),
    ] {
        assert_eq!(plain(&snapshot, authority, "/"), expected, "{authority}");
    }
    let twice = vec![of("x", &["a.a"], "a"), of("y", &["A.a"], "b")];
    let why = refused(&hosts(twice));
    assert!(
        why.ends_with("route_config.virtual_hosts[1].domains[0]: another virtual host has it"),
        "{why}"
    );
    for domain in ["a.*", "*-a.com", "a.a:*", "a.a:0", "10.0.0.1", ""] {
        let why = refused(&hosts(vec![of("x", &["ok.a", domain], "a")]));
        assert!(why.starts_with(&format!("{PLACE}domains[1]: ")), "{why}");
    }
    assert!(refused(&hosts(vec![of("x", &[], "a")])).contains("domains: it has none"));
}

#[test]
fn a_split_is_by_weight() {
    let snapshot = ingest(&routed(vec![route("/", weighted(&[("a", 90), ("b", 10)]))])).unwrap();
    let made = service(&snapshot, "in/c/h");
    let rules = made.rules.as_ref().unwrap();
    let split = rules.list[0].split.as_ref().unwrap();
    let parts: Vec<(&str, u32)> = split.iter().map(|one| (&*one.label, one.weight)).collect();
    assert_eq!(parts, [("a", 90), ("b", 10)]);
    let seventeen: Vec<(&str, u32)> = (0..17).map(|_| ("a", 1)).collect();
    for (parts, why) in [
        (&seventeen[..], "clusters: a split has at most 16 parts"),
        (&[("a", 0)], "clusters: none of them has a weight"),
    ] {
        let refused = refused(&routed(vec![route("/", weighted(parts))]));
        let place = "routes[0].route.weighted_clusters.";
        assert!(
            refused.starts_with(&format!("{PLACE}{place}{why}")),
            "{refused}"
        );
    }
    let why = refused(&routed(vec![route(
        "/",
        weighted(&[("a", 1), ("nowhere", 1)]),
    )]));
    assert_eq!(why, format!("{PLACE}routes[0]: no cluster `nowhere`"));
}

#[test]
fn deadlines_and_retries_are_a_routes_own() {
    let policy = wire::RetryPolicy {
        retry_on: "gateway-error, connect-failure,retriable-status-codes,unavailable".to_owned(),
        num_retries: pb::number(3),
        per_try_timeout: seconds(2),
        retriable_status_codes: vec![429],
        ..Default::default()
    };
    let action = wire::RouteAction {
        timeout: seconds(7),
        retry_policy: Some(policy.clone()),
        ..to("a")
    };
    let endless = wire::RouteAction {
        timeout: seconds(0),
        ..to("a")
    };
    let mut own = host(
        "h",
        &["*"],
        vec![
            route("/own", action),
            route("/0", endless),
            route("/", to("a")),
        ],
    );
    let read = |host: &wire::VirtualHost| {
        let snapshot = ingest(&hosts(vec![host.clone()])).unwrap();
        let rules = service(&snapshot, "in/c/h").rules.clone().unwrap();
        rules.list.clone()
    };
    let rules = read(&own);
    assert_eq!(
        rules[0].timeouts.response_headers,
        Some(Duration::from_secs(7))
    );
    assert_eq!(
        rules[0].timeouts.per_try,
        Some(Some(Duration::from_secs(2)))
    );
    assert_eq!(rules[0].retries.attempts, Some(3));
    assert_eq!(rules[0].retries.any_method, Some(true));
    let mut on = vec![
        Failure::Connect,
        Failure::RefusedStream,
        Failure::Reset,
        Failure::Timeout,
        Failure::Status(429),
        Failure::Status(502),
        Failure::Status(503),
        Failure::Status(504),
        Failure::Unavailable,
    ];
    on.sort_unstable();
    assert_eq!(rules[0].retries.on.as_ref().unwrap(), &on);
    assert!(rules[1].timeouts.response_headers.unwrap() > Duration::from_secs(86400));
    assert_eq!(
        rules[2].timeouts.response_headers,
        Some(Duration::from_secs(15))
    );
    assert_eq!(rules[2].retries.attempts, Some(0));
    // A virtual host's holds for routes without one.
    own.retry_policy = Some(wire::RetryPolicy {
        retry_on: "reset".to_owned(),
        ..Default::default()
    });
    let rules = read(&own);
    assert_eq!(rules[0].retries.attempts, Some(3));
    assert_eq!(rules[2].retries.attempts, Some(1));
    assert_eq!(rules[2].retries.on, Some(vec![Failure::Reset]));
    let ratelimited = wire::RouteAction {
        retry_policy: Some(wire::RetryPolicy {
            retry_on: "5xx,envoy-ratelimited".to_owned(),
            ..policy
        }),
        ..to("a")
    };
    let why = refused(&routed(vec![route("/", ratelimited)]));
    let path = "routes[0].route.retry_policy.retry_on: `envoy-ratelimited`";
    assert!(why.starts_with(&format!("{PLACE}{path}")), "{why}");
}

fn added(
    name: &str,
    value: &str,
    action: core::header_value_option::HeaderAppendAction,
) -> core::HeaderValueOption {
    core::HeaderValueOption {
        header: Some(core::HeaderValue {
            key: name.to_owned(),
            value: value.to_owned(),
            ..Default::default()
        }),
        append_action: action.into(),
        ..Default::default()
    }
}

#[test]
fn header_changes_of_route_host_and_configuration_come_in_this_order() {
    use core::header_value_option::HeaderAppendAction::{
        AddIfAbsent, AppendIfExistsOrAdd as Add, OverwriteIfExistsOrAdd as Set,
    };
    let mut one = route("/", to("a"));
    one.request_headers_to_add = vec![added("X-Set", "route", Set), added("x-add", "100%%", Add)];
    one.response_headers_to_remove = vec!["Server".to_owned()];
    let mut of_host = host("h", &["*"], vec![one.clone()]);
    of_host.request_headers_to_add = vec![added("x-set", "host", Set)];
    of_host.request_headers_to_remove = vec!["X-Debug".to_owned()];
    let mut config = routes("r", vec![of_host]);
    config.request_headers_to_add = vec![added("x-add", "config", Add)];
    let http = filter("http", &manager(rds("r"), &[]));
    let with = |config: &wire::RouteConfiguration| {
        let chain = chain("c", &[], http.clone());
        [
            super::build::one("a"),
            of_routes(config),
            chains(vec![chain]),
        ]
    };
    let snapshot = ingest(&with(&config)).unwrap();
    let rule = &service(&snapshot, "in/c/h").rules.as_ref().unwrap().list[0];
    let field = |name: &str, value: &str| Field {
        name: name.into(),
        value: value.into(),
    };
    // What is least specific is the last to write, as Envoy has it.
    assert_eq!(rule.request.set, [field("x-set", "host")]);
    assert_eq!(
        rule.request.add,
        [field("x-add", "100%"), field("x-add", "config")]
    );
    assert_eq!(rule.request.remove, ["x-debug".into()]);
    assert_eq!(rule.response.remove, ["server".into()]);
    for (option, why) in [
        (
            added("x-a", "%REQ(x)%", Set),
            ".header.value: command operators",
        ),
        (added("x-a", "", Set), ".header.value: it is empty"),
        (
            added("host", "x", Set),
            ".header.key: `host` is the gateway's own",
        ),
        // What we say to those behind us of who calls.
        (
            added(
                "X-Forwarded-Client-Cert",
                "URI=spiffe://west.example/x",
                Set,
            ),
            ".header.key: `x-forwarded-client-cert` is the gateway's own",
        ),
        (
            added("x-zeugma-route", "x", Set),
            ".header.key: `x-zeugma-route` is the gateway's own",
        ),
        (
            added(":path", "x", Set),
            ".header.key: `:path` is not the name",
        ),
        (added("x-a", "x", AddIfAbsent), ".append_action: "),
    ] {
        let mut one = one.clone();
        one.request_headers_to_add = vec![option];
        let refused = refused(&routed(vec![one]));
        let path = format!("{PLACE}routes[0].request_headers_to_add[0]{why}");
        assert!(refused.starts_with(&path), "{refused}");
    }
    config.request_headers_to_remove = vec!["x-add".to_owned()];
    let why = refused(&with(&config));
    assert_eq!(
        why,
        "route configuration r: request_headers_to_remove[0]: `x-add` is set or added by another level"
    );
}

fn mirror(cluster: &str, numerator: u32) -> wire::route_action::RequestMirrorPolicy {
    wire::route_action::RequestMirrorPolicy {
        cluster: cluster.to_owned(),
        runtime_fraction: Some(core::RuntimeFractionalPercent {
            default_value: Some(percent::FractionalPercent {
                numerator,
                denominator: percent::fractional_percent::DenominatorType::TenThousand.into(),
            }),
            ..Default::default()
        }),
        disable_shadow_host_suffix_append: true,
        ..Default::default()
    }
}

#[test]
fn a_virtual_host_is_copied_as_a_whole() {
    let copied = |mirror| wire::RouteAction {
        request_mirror_policies: vec![mirror],
        ..to("a")
    };
    let all = routed(vec![
        route("/v1", copied(mirror("b", 500))),
        route("/", copied(mirror("b", 500))),
    ]);
    let snapshot = ingest(&all).unwrap();
    let made = &service(&snapshot, "in/c/h").mirrors[0];
    assert!((made.share - 0.05).abs() < 1e-9);
    assert_eq!(&*snapshot.cluster(made.to).name, "b");
    let why = refused(&routed(vec![
        route("/v1", copied(mirror("b", 500))),
        route("/", to("a")),
    ]));
    let path = "routes[1].route.request_mirror_policies: the routes of a virtual host";
    assert!(why.starts_with(&format!("{PLACE}{path}")), "{why}");
    let mut shadow = mirror("b", 500);
    shadow.disable_shadow_host_suffix_append = false;
    let why = refused(&routed(vec![route("/", copied(shadow))]));
    let path = "routes[0].route.request_mirror_policies[0].disable_shadow_host_suffix_append: ";
    assert!(why.starts_with(&format!("{PLACE}{path}")), "{why}");
    let why = refused(&routed(vec![route("/", copied(mirror("nowhere", 1)))]));
    assert!(
        why.ends_with("virtual_hosts[0]: no cluster `nowhere`"),
        "{why}"
    );
}

#[test]
fn a_key_is_made_of_what_the_route_says() {
    use wire::route_action::hash_policy::{ConnectionProperties, Header, PolicySpecifier};
    let by = |specifier| wire::RouteAction {
        hash_policy: vec![wire::route_action::HashPolicy {
            policy_specifier: Some(specifier),
            ..Default::default()
        }],
        ..to("a")
    };
    let mut ring = cluster("a", &[&["10.0.0.1:80", "10.0.0.2:80"]]);
    ring.lb_policy = envoy::cluster::LbPolicy::Maglev.into();
    let header = by(PolicySpecifier::Header(Header {
        header_name: "X-User".to_owned(),
        ..Default::default()
    }));
    let source = by(PolicySpecifier::ConnectionProperties(
        ConnectionProperties { source_ip: true },
    ));
    let mut all = routed(vec![
        route("/header", header),
        route("/source", source.clone()),
        route("/", to("a")),
    ]);
    all[0] = of_cluster(&ring);
    let snapshot = ingest(&all).unwrap();
    let balance = |name: &str| super::cluster(&snapshot, name).policy.balance.clone();
    assert_eq!(balance("a"), Balance::Random);
    let on = HashOn::Header("x-user".into());
    assert_eq!(balance("a|by header x-user"), Balance::Maglev(on));
    assert_eq!(balance("a|by source"), Balance::Maglev(HashOn::Source));
    assert_eq!(plain(&snapshot, "x.x", "/source"), "in/c/h to a|by source");
    // A policy that is none of keys has no use for one.
    let snapshot = ingest(&routed(vec![route("/", source.clone())])).unwrap();
    assert_eq!(plain(&snapshot, "x.x", "/"), "in/c/h to a");
    let mut two = source;
    two.hash_policy.push(two.hash_policy[0].clone());
    let why = refused(&routed(vec![route("/", two)]));
    assert!(
        why.starts_with(&format!("{PLACE}routes[0].route.hash_policy[1]: ")),
        "{why}"
    );
}

#[test]
fn what_cannot_be_said_of_a_route_is_refused_by_its_place() {
    use wire::route::Action;
    use wire::route_match::PathSpecifier;
    type Change = fn(&mut wire::Route);
    fn matched(one: &mut wire::Route) -> &mut wire::RouteMatch {
        one.r#match.as_mut().unwrap()
    }
    let all: [(Change, &str); 14] = [
        (
            |one| one.action = Some(Action::Redirect(wire::RedirectAction::default())),
            "redirect: ",
        ),
        (
            |one| one.action = Some(Action::DirectResponse(wire::DirectResponseAction::default())),
            "direct_response: ",
        ),
        (|one| one.action = None, "it leads to no cluster"),
        (|one| one.r#match = None, "match: it is missing"),
        (|one| matched(one).path_specifier = None, "match: its path"),
        (
            |one| matched(one).path_specifier = Some(PathSpecifier::Prefix("/a/../b".to_owned())),
            "match.prefix: no request is matched",
        ),
        (
            |one| matched(one).path_specifier = Some(PathSpecifier::Path("v1".to_owned())),
            "match.path: no request is matched",
        ),
        (
            |one| matched(one).path_specifier = Some(PathSpecifier::Path("/%76".to_owned())),
            "match.path: it must be written `/v`",
        ),
        (
            |one| {
                matched(one).path_specifier =
                    Some(PathSpecifier::PathSeparatedPrefix("/v1/".to_owned()));
            },
            "match.path_separated_prefix: it must not end with `/`",
        ),
        (
            |one| matched(one).case_sensitive = pb::boolean(false),
            "match.case_sensitive: ",
        ),
        (
            |one| {
                let mut inverted = header("x", "y");
                inverted.invert_match = true;
                matched(one).headers = vec![inverted];
            },
            "match.headers[0].invert_match: ",
        ),
        (
            |one| matched(one).headers = vec![header(":authority", "y")],
            "match.headers[0].name: ",
        ),
        (
            |one| {
                matched(one).query_parameters = vec![wire::QueryParameterMatcher {
                    name: "q".to_owned(),
                    ..Default::default()
                }];
            },
            "match.query_parameters[0]: ",
        ),
        (
            |one| {
                one.typed_per_filter_config = [("x".to_owned(), pb::Any::default())].into();
            },
            "typed_per_filter_config: ",
        ),
    ];
    for (change, path) in all {
        let mut one = route("/", to("a"));
        change(&mut one);
        let separator = if path.starts_with("it ") { ": " } else { "." };
        let place = format!("virtual_hosts[0].routes[0]{separator}{path}");
        let why = refused(&routed(vec![one.clone()]));
        assert!(why.contains(&place), "{why}");
        let config = routes("r", vec![host("h", &["*"], vec![one])]);
        let alone = super::super::check_routes(&config).unwrap_err();
        assert!(alone.starts_with(&place), "{alone}");
    }
}

/// What is the same for all of a connection is said once for several listeners.
#[test]
fn routes_that_are_named_lead_every_listener_that_names_them() {
    let config = routes("r", vec![host("h", &["*"], vec![route("/", to("a"))])]);
    let http = || filter("http", &manager(rds("r"), &[]));
    let mut other = super::build::listener(vec![chain("d", &[], http())]);
    other.name = "out".to_owned();
    let all = [
        one("a"),
        of_routes(&config),
        chains(vec![chain("c", &[], http())]),
        super::build::of_listener(&other),
    ];
    let snapshot = ingest(&all).unwrap();
    let names: Vec<&str> = snapshot.services.iter().map(|one| &*one.name).collect();
    assert_eq!(names, ["in/c/h", "out/d/h"]);
    assert_eq!(snapshot.clusters.len(), 1);
    assert!(all.iter().all(|one| one.kind != Kind::Endpoints));
}

#[test]
fn a_cluster_is_used_in_so_many_ways_and_no_more() {
    let of = |count: i64| {
        let each = (0..count).map(|nth| {
            let mut action = to("a");
            action.idle_timeout = seconds(1 + nth);
            route("/", action)
        });
        routed(each.collect())
    };
    // Beside the one that nobody uses.
    assert_eq!(ingest(&of(64)).unwrap().clusters.len(), 65);
    assert_eq!(
        refused(&of(65)),
        "cluster a: it is used in more than 64 ways, by idle timeouts and hash keys"
    );
}

/// Envoy would send on what it made of the path; we send on what came, or nothing.
#[test]
fn what_a_path_would_be_made_of_is_refused_where_it_is_ambiguous() {
    for (normalize_path, expected) in [(None, "in/c/h to a"), (pb::boolean(true), "no-rule")] {
        let config = routes("r", vec![host("h", &["*"], vec![route("/", to("a"))])]);
        let mut made = manager(rds("r"), &[]);
        made.normalize_path = normalize_path;
        let all = [
            one("a"),
            of_routes(&config),
            chains(vec![chain("c", &[], filter("http", &made))]),
        ];
        let snapshot = ingest(&all).unwrap();
        for path in ["/public/../admin", "/./a", "/a%2Fb", "/a/%2e%2e/b"] {
            assert_eq!(plain(&snapshot, "a.a", path), expected, "{path}");
        }
        for path in ["/", "/a/b", "/a?b=../c", "/a%20b"] {
            assert_eq!(plain(&snapshot, "a.a", path), "in/c/h to a", "{path}");
        }
    }
}

#[test]
fn how_a_call_ended_is_changed_in_no_answer() {
    let mut one = route("/", to("a"));
    one.request_headers_to_remove = vec!["grpc-timeout".to_owned()];
    ingest(&routed(vec![one.clone()])).unwrap();
    one.response_headers_to_remove = vec!["grpc-status".to_owned()];
    let refused = refused(&routed(vec![one]));
    let path = format!("{PLACE}routes[0].response_headers_to_remove[0]: `grpc-status` is the");
    assert!(refused.starts_with(&path), "{refused}");
}
