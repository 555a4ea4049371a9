//! `rules`: what arrives of them, and what is said of those that are wrong.

use std::fmt::Write as _;

use zeugma_core::rules::{PathMatch, Rules};
use zeugma_xds::{Code, Finding, Severity};

use crate::support::{EAST, WEST_PEER, levels, loaded, route, service, try_load};

const BACKENDS: &str = "backends: [{ name: a, endpoints: ['10.0.0.1:80'] }, { name: b, \
    locality: eu/eu-2, endpoints: ['10.0.0.2:80'] }, { peer: west }]";

fn ruled(rules: &str) -> String {
    route(
        "orders",
        &format!("protocol: http, {BACKENDS}, rules: {rules}"),
    )
}

/// Everything that is said of a route with these rules, beside a canary and a tcp route.
fn said(rules: &str) -> Vec<Finding> {
    let canary = route(
        "canary",
        "protocol: http, backends: [{ endpoints: ['10.0.1.1:80'] }]",
    );
    let tcp = route("tcp", "port: 9, backends: [{ endpoints: ['10.0.1.1:9'] }]");
    let wild = route(
        "wild",
        "protocol: http, hosts: ['*.wild.example'], backends: [{ endpoints: ['10.0.1.1:80'] }]",
    );
    let many = route(
        "many",
        "ports: { a: { port: 81, protocol: http }, b: { port: 82, protocol: http } }, \
         backends: [{ endpoints: [10.0.1.1] }]",
    );
    let all = [EAST, WEST_PEER, &ruled(rules), &canary, &tcp, &wild, &many];
    match try_load(&all, None) {
        Ok(loaded) => loaded.warnings.iter().cloned().collect(),
        Err(findings) => findings.iter().cloned().collect(),
    }
}

#[test]
fn what_is_wrong_with_rules_is_said_where_it_stands() {
    use Code::{
        BadValue as B, Contradiction as C, Duplicate as D, MissingField as M, NoEffect as N,
        UnknownReference as U,
    };

    let matched = |what: &str| format!("[{{ matches: [{what}] }}]");
    let split = |what: &str| format!("[{{ split: {what} }}]");
    let request = |what: &str| format!("[{{ headers: {{ request: {what} }} }}]");
    for (rules, code, path, words) in [
        (
            "[{ name: '7' }]".to_owned(),
            B,
            "[0].name",
            "the place of another rule",
        ),
        (
            "[{ name: x }, { name: x }]".to_owned(),
            D,
            "[1].name",
            "`spec.rules[0]` already",
        ),
        (
            "[{ matches: [] }]".to_owned(),
            M,
            "[0].matches",
            "the list is empty",
        ),
        (
            matched("{ path: { prefix: v1 } }"),
            B,
            "[0].matches[0].path.prefix",
            "begin with `/`",
        ),
        (
            matched("{ path: { prefix: '/v1/*' } }"),
            B,
            "[0].matches[0].path.prefix",
            "all below",
        ),
        (
            matched("{ path: { exact: '/a/../b' } }"),
            B,
            "[0].matches[0].path.exact",
            "dot segments",
        ),
        (
            matched("{ grpc: { service: a.B }, path: { exact: /a } }"),
            C,
            "[0].matches[0].path",
            "`grpc` says both",
        ),
        (
            matched("{ grpc: { service: a.B }, method: POST }"),
            C,
            "[0].matches[0].method",
            "`grpc` says both",
        ),
        (
            matched("{ grpc: { service: a/B } }"),
            B,
            "[0].matches[0].grpc.service",
            "may not stand",
        ),
        (
            matched("{ headers: { 'x y': a } }"),
            B,
            "[0].matches[0].headers.x y",
            "may not stand",
        ),
        (
            matched("{ headers: { Host: a } }"),
            N,
            "[0].matches[0].headers.Host",
            "HTTP/2 has none",
        ),
        (
            matched("{ headers: { x-forwarded-client-cert: a } }"),
            Code::Unsafe,
            "[0].matches[0].headers.x-forwarded-client-cert",
            "any caller can write",
        ),
        (
            matched("{ headers: { x-a: '1', X-A: '1' } }"),
            D,
            "[0].matches[0].headers.x-a",
            "otherwise written",
        ),
        (
            matched("{ query: { '': a } }"),
            B,
            "[0].matches[0].query",
            "1 to 1024 characters",
        ),
        (split("[]"), M, "[0].split", "the list is empty"),
        (
            split("[{ weight: 1 }]"),
            C,
            "[0].split[0]",
            "or another `route`",
        ),
        (
            split("[{ backends: [a], route: canary }]"),
            C,
            "[0].split[0]",
            "or another `route`",
        ),
        (
            split("[{ backends: [] }]"),
            M,
            "[0].split[0].backends",
            "the list is empty",
        ),
        (
            split("[{ backends: [wst] }]"),
            U,
            "[0].split[0].backends[0]",
            "did you mean `west`?",
        ),
        (
            split("[{ route: canry }]"),
            U,
            "[0].split[0].route",
            "no MeshRoute `shop/canry`",
        ),
        (
            split("[{ route: orders }]"),
            C,
            "[0].split[0].route",
            "its own route",
        ),
        (split("[{ route: tcp }]"), C, "[0].split[0].route", "is tcp"),
        (
            split("[{ route: wild }]"),
            C,
            "[0].split[0].route",
            "only wildcards",
        ),
        (
            split("[{ route: many }]"),
            C,
            "[0].split[0].route",
            "no http port 80",
        ),
        (
            split("[{ backends: [a], weight: 1000001 }]"),
            B,
            "[0].split[0].weight",
            "out of range",
        ),
        (
            split("[{ backends: [a], weight: 0 }, { backends: [b], weight: 0 }]"),
            C,
            "[0].split",
            "every weight is 0",
        ),
        (
            "[{ timeouts: { perTry: 0ms } }]".to_owned(),
            B,
            "[0].timeouts.perTry",
            "too short",
        ),
        (
            "[{ timeouts: { responseHeaders: 0s } }]".to_owned(),
            B,
            "[0].timeouts.responseHeaders",
            "too short",
        ),
        (
            "[{ retries: { attempts: 11 } }]".to_owned(),
            B,
            "[0].retries.attempts",
            "out of range",
        ),
        (
            request("{ set: { host: a } }"),
            C,
            "[0].headers.request.set.host",
            "gateway's to write",
        ),
        (
            request("{ add: { X-Zeugma-Reason: a } }"),
            C,
            "[0].headers.request.add.X-Zeugma-Reason",
            "gateway's to write",
        ),
        (
            request("{ remove: [Transfer-Encoding] }"),
            C,
            "[0].headers.request.remove[0]",
            "gateway's to write",
        ),
        (
            "[{ headers: { response: { set: { Grpc-Status: '0' } } } }]".to_owned(),
            C,
            "[0].headers.response.set.Grpc-Status",
            "gateway's to write",
        ),
        (
            "[{ headers: { response: { remove: [grpc-message] } } }]".to_owned(),
            C,
            "[0].headers.response.remove[0]",
            "gateway's to write",
        ),
        (
            request("{ set: { x-a: a }, remove: [X-A] }"),
            C,
            "[0].headers.request.remove[0]",
            "in `set` already",
        ),
        (
            request("{ set: { x-a: ' a' } }"),
            B,
            "[0].headers.request.set.x-a",
            "would be lost",
        ),
        (
            request("{ set: { x-a: é } }"),
            B,
            "[0].headers.request.set.x-a",
            "may not stand",
        ),
        (
            request("{ set: { 'x a': b } }"),
            B,
            "[0].headers.request.set.x a",
            "may not stand",
        ),
    ] {
        let found = said(&rules);
        let path = format!("spec.rules{path}");
        let is_it = |one: &&Finding| {
            let at = one.place.as_ref().map(|place| place.path.as_str());
            (one.code, at) == (code, Some(&*path)) && one.to_string().contains(words)
        };
        let one = found.iter().find(is_it);
        let one = one.unwrap_or_else(|| panic!("{rules}: {path} {words}: {found:?}"));
        let errors = found.iter().filter(|one| one.severity == Severity::Error);
        assert_eq!(errors.collect::<Vec<_>>(), [one], "{rules}");
        assert!(one.help.is_some() || code == B, "it says what to do: {one}");
    }
    let tcp = route(
        "orders",
        "port: 9, backends: [{ endpoints: ['10.0.0.1:9'] }], rules: [{}]",
    );
    let findings = try_load(&[EAST, &tcp], None).unwrap_err().to_string();
    assert!(
        findings.contains("no port of the route is http"),
        "{findings}"
    );
}

#[test]
fn a_match_that_another_hides_is_a_warning() {
    for (rules, path, words) in [
        ("[{}, {}]", "[1]", "`rules[0]` is the same"),
        (
            "[{ matches: [{ method: GET }] }, { matches: [{ path: { prefix: /v1 } }, { method: GET }] }]",
            "[1].matches[1]",
            "`rules[0].matches[0]` is the same",
        ),
        (
            "[{ matches: [{ path: { prefix: /v1 } }, { path: { prefix: /v1/ } }] }]",
            "[0].matches[1]",
            "`rules[0].matches[0]` is the same",
        ),
        (
            "[{ matches: [{ path: { prefix: / } }, { headers: {} }] }]",
            "[0].matches[1]",
            "`rules[0].matches[0]` is the same",
        ),
    ] {
        let found = said(rules);
        let [one] = found.as_slice() else {
            panic!("{rules}: {found:?}");
        };
        assert_eq!(one.severity, Severity::Warning, "{one}");
        let place = one.place.as_ref().unwrap();
        assert_eq!(place.path, format!("spec.rules{path}"));
        assert!(one.to_string().contains(words), "{one}");
    }
}

/// `what` this often.
fn times(count: usize, what: impl Fn(usize) -> String) -> String {
    let all: Vec<_> = (0..count).map(what).collect();
    all.join(", ")
}

#[test]
fn rules_their_matches_headers_and_parts_are_bounded() {
    let rules = |n| {
        format!(
            "[{}]",
            times(n, |nth| format!(
                "{{ matches: [{{ path: {{ exact: /{nth} }} }}] }}"
            ))
        )
    };
    let matches = |n| {
        let all = times(n, |nth| format!("{{ path: {{ exact: /{nth} }} }}"));
        format!("[{{ matches: [{all}] }}]")
    };
    let fields = |n| times(n, |nth| format!("x-{nth}: a"));
    let headers = |n| format!("[{{ matches: [{{ headers: {{ {} }} }}] }}]", fields(n));
    let query = |n| format!("[{{ matches: [{{ query: {{ {} }} }}] }}]", fields(n));
    let parts = |n| {
        format!(
            "[{{ split: [{}] }}]",
            times(n, |_| "{ backends: [a] }".to_owned())
        )
    };
    let set = |n| {
        format!(
            "[{{ headers: {{ response: {{ set: {{ {} }} }} }} }}]",
            fields(n)
        )
    };
    let remove = |n| {
        let names = times(n, |nth| format!("x-{nth}"));
        format!("[{{ headers: {{ request: {{ remove: [{names}] }} }} }}]")
    };
    type Write<'a> = &'a dyn Fn(usize) -> String;
    let all: [(Write<'_>, usize, &str); 7] = [
        (&rules, 64, "64"),
        (&matches, 16, "16"),
        (&headers, 16, "16"),
        (&query, 16, "16"),
        (&parts, 16, "16"),
        (&set, 32, "32"),
        (&remove, 32, "32"),
    ];
    for (write, most, words) in all {
        assert_eq!(said(&write(most)), [], "{}", write(most));
        let found = said(&write(most + 1));
        let [one] = found.as_slice() else {
            panic!("{}: {found:?}", write(most + 1));
        };
        assert!(
            one.to_string().contains(&format!("write at most {words}")),
            "{one}"
        );
    }
}

/// Each match in the order it is asked, with its rule.
fn order(rules: &Rules) -> String {
    let mut text = String::new();
    for one in &rules.matches {
        let path = match &one.path {
            PathMatch::Any => "any".to_owned(),
            PathMatch::Exact(path) => path.to_string(),
            PathMatch::Prefix(prefix) => format!("{prefix}/*"),
            PathMatch::Begins(text) => format!("{text}*"),
        };
        let method = one.method.as_deref().unwrap_or("any");
        let label = &rules.list[one.rule].label;
        write!(text, "{label}: {method} {path}; ").unwrap();
    }
    text
}

#[test]
fn matches_arrive_in_the_order_of_precedence_and_grpc_is_a_post() {
    let rules = "[\
        { name: rest }, \
        { name: v1, matches: [{ path: { prefix: /v1/ } }, { path: { exact: /%761/a } }] }, \
        { matches: [{ path: { prefix: /v1/orders }, method: GET }, { method: PUT }] }, \
        { name: get, matches: [{ grpc: { service: shop.Orders, method: Get } }] }, \
        { name: grpc, matches: [{ grpc: { service: shop.Orders } }] }]";
    let loaded = loaded(&[EAST, WEST_PEER, &ruled(rules)], None);
    let service = service(&loaded.snapshot, "orders", 80);
    assert_eq!(
        order(service.rules.as_ref().unwrap()),
        "get: POST /shop.Orders/Get; v1: any /v1/a; grpc: POST /shop.Orders/*; \
         2: GET /v1/orders/*; v1: any /v1/*; 2: PUT any; rest: any any; "
    );
}

#[test]
fn a_part_of_some_backends_has_levels_of_its_own_and_one_of_all_is_the_routes() {
    let rules = "[{ split: [{ backends: [b, west], weight: 9 }, { backends: [a, b, west] }, \
        { route: canary }, { backends: [west] }] }]";
    let canary = route(
        "canary",
        "protocol: http, backends: [{ endpoints: ['10.0.1.1:80'] }]",
    );
    let loaded = loaded(&[EAST, WEST_PEER, &ruled(rules), &canary], None);
    let snapshot = &loaded.snapshot;
    let orders = service(snapshot, "orders", 80);
    let rules = orders.rules.as_ref().unwrap();
    let [some, all, other, peer] = rules.list[0].split.as_deref().unwrap() else {
        panic!("{rules:?}");
    };
    assert_eq!((&*some.label, some.weight, all.weight), ("b,west", 9, 1));
    let b = ("eu/eu-2".to_owned(), vec!["10.0.0.2:80".to_owned()]);
    let west = ["gw.west.example:15443", "192.0.2.7:15443"].map(str::to_owned);
    let west = ("peer west".to_owned(), west.to_vec());
    assert_eq!(levels(snapshot.cluster(some.outbound)), [b.clone(), west]);
    assert_eq!(levels(snapshot.cluster(some.own.unwrap())), [b]);
    assert_eq!((all.outbound, all.own), (orders.outbound, orders.own));
    let canary = service(snapshot, "canary", 80);
    assert_eq!((other.outbound, other.own), (canary.outbound, canary.own));
    assert_eq!(
        other.host.as_deref(),
        Some("canary.shop.svc.clusterset.local")
    );
    assert_eq!((&*other.label, peer.own), ("shop/canary", None));
    // One endpoint is one wherever it is reached by: its health is kept once.
    let main = &snapshot.cluster(orders.outbound).endpoints;
    let subset = &snapshot.cluster(some.outbound).endpoints;
    assert!(
        subset
            .iter()
            .all(|one| main.iter().any(|of| of.key == one.key))
    );
}

#[test]
fn no_rules_and_an_empty_list_of_them_are_the_same() {
    for rules in ["", ", rules: []"] {
        let orders = route("orders", &format!("protocol: http, {BACKENDS}{rules}"));
        let loaded = loaded(&[EAST, WEST_PEER, &orders], None);
        assert_eq!(service(&loaded.snapshot, "orders", 80).rules, None);
    }
}

#[test]
fn a_part_that_this_gateway_has_nothing_of_is_left_out() {
    let rules = "[{ split: [{ backends: [b] }, { backends: [a] }] }, { matches: [{ method: PUT }], \
        split: [{ backends: [b] }] }], failover: { never: [{ backend: b }] }";
    let loaded = loaded(&[EAST, WEST_PEER, &ruled(rules)], None);
    let rules = service(&loaded.snapshot, "orders", 80)
        .rules
        .clone()
        .unwrap();
    let labels = |nth: usize| -> Vec<String> {
        let split = rules.list[nth].split.as_ref().unwrap();
        split.iter().map(|part| part.label.to_string()).collect()
    };
    assert_eq!(labels(0), ["a"]);
    assert_eq!(labels(1), [""; 0]);
}

#[test]
fn parts_that_are_behind_one_peer_are_a_warning_where_they_are() {
    let route = route(
        "orders",
        "protocol: http, backends: [{ name: own, endpoints: ['10.0.0.1:80'] }, \
         { name: a, cluster: west, endpoints: ['10.0.1.1:80'] }, \
         { name: b, cluster: west, endpoints: ['10.0.1.2:80'] }], \
         rules: [{ matches: [{ method: PUT }], split: [{ backends: [a] }, { backends: [own] }] }, \
         { matches: [{ method: GET }], split: [{ backends: [a] }, { backends: [own, a] }] }, \
         { split: [{ backends: [a] }, { backends: [own] }, { backends: [b] }] }]",
    );
    let loaded = try_load(&[EAST, WEST_PEER, &route], None).unwrap();
    let warnings: Vec<&Finding> = loaded.warnings.iter().collect();
    let [warning] = warnings[..] else {
        panic!("{warnings:?}");
    };
    let at = warning.place.as_ref().map(|place| &*place.path);
    assert_eq!(at, Some("spec.rules[2].split[2]"));
    assert_eq!(
        (warning.code, warning.severity),
        (Code::NoEffect, Severity::Warning)
    );
    let said = "this part and `split[0]` are one to gateway `east-gw`: both are behind peer `west`";
    assert!(warning.message.starts_with(said), "{}", warning.message);
}
