//! Names that name nothing, that are there twice, or that are missing.

use super::{OWN, check, findings, of_route, only};
use crate::support::{EAST, WEST_PEER, route};
use zeugma_xds::Code;

#[test]
fn references_that_name_nothing_are_found_with_a_suggestion() {
    use Code::UnknownReference as Unknown;

    for (spec, path, words) in [
        (
            "protocol: http, backends: [{peer: wset}]",
            "spec.backends[0].peer",
            "did you mean `west`?",
        ),
        (
            "protocol: http, backends: [{cluster: nroth, endpoints: ['10.0.0.1:80']}]",
            "spec.backends[0].cluster",
            "no MeshGateway or MeshPeer is of cluster `nroth`",
        ),
        (
            &format!("protocol: http, {OWN}, export: {{to: [wast]}}"),
            "spec.export.to[0]",
            "did you mean `west`?",
        ),
        (
            &format!("protocol: http, {OWN}, allow: [{{listeners: [app]}}]"),
            "spec.allow[0].listeners[0]",
            "did you mean `apps`?",
        ),
        (
            &format!("protocol: http, {OWN}, deny: [{{via: [north]}}]"),
            "spec.deny[0].via[0]",
            "known are `west`",
        ),
        (
            &format!("protocol: http, {OWN}, mirror: [{{route: shop/canary}}]"),
            "spec.mirror[0].route",
            "no MeshRoute `shop/canary`",
        ),
        (
            &format!("protocol: http, {OWN}, mirror: [{{route: canary}}]"),
            "spec.mirror[0].route",
            "no MeshRoute `shop/canary`",
        ),
        (
            &format!("protocol: http, {OWN}, failover: {{order: [{{region: us}}]}}"),
            "spec.failover.order[0].region",
            "in region `us` (ZG0107); known are `eu`",
        ),
        (
            &format!("protocol: http, {OWN}, failover: {{never: [{{backend: b}}]}}"),
            "spec.failover.never[0].backend",
            "called `b` (ZG0107); did you mean `a`?",
        ),
        (
            &format!("protocol: http, {OWN}, failover: {{order: [{{cluster: west}}]}}"),
            "spec.failover.order[0].cluster",
            "in cluster `west`",
        ),
    ] {
        check(&of_route(spec), Unknown, path, words);
    }
    let with_route = EAST.replace("role: workloads", "role: workloads, route: shop/pgg");
    let pg = route("pg", "port: 1, backends: [{endpoints: ['10.0.0.1:1']}]");
    check(
        &only(&[&with_route, &pg], "one-route"),
        Unknown,
        "spec.listeners.apps.route",
        "did you mean `shop/pg`?",
    );
}

#[test]
fn what_may_exist_only_once_is_found_with_the_first_place() {
    let orders = route("orders", &format!("protocol: http, {OWN}"));
    let same_host = route(
        "other",
        &format!("protocol: http, hosts: [Orders.shop.svc.clusterset.local.], {OWN}"),
    );
    for (documents, path, words) in [
        (
            vec![EAST, EAST],
            "metadata.name",
            "a second MeshGateway `east-gw`",
        ),
        (
            vec![EAST, WEST_PEER, WEST_PEER],
            "metadata.name",
            "a second MeshPeer `west`",
        ),
        (
            vec![EAST, &orders, &orders],
            "metadata.name",
            "a second MeshRoute `shop/orders`",
        ),
        (
            vec![EAST, &orders, &same_host],
            "spec.hosts[0]",
            "is of route `shop/orders` already (ZG0108); the first is at",
        ),
    ] {
        let findings = findings(&documents);
        let found = findings
            .iter()
            .find(|finding| finding.code == Code::Duplicate && finding.to_string().contains(words));
        check(
            found.unwrap_or_else(|| panic!("{words}: {findings}")),
            Code::Duplicate,
            path,
            "the first is at",
        );
    }
    let second_peer = WEST_PEER.replace("name: west", "name: other");
    check(
        &only(&[EAST, WEST_PEER, &second_peer], "cluster twice"),
        Code::Duplicate,
        "spec.cluster",
        "a second MeshPeer of cluster `west`",
    );
    for (spec, path, words) in [
        (
            "protocol: http, backends: [{peer: west}, {peer: west}]",
            "spec.backends[1].peer",
            "peer `west` is backend 1 already",
        ),
        (
            "protocol: http, backends: [{name: a, endpoints: ['10.0.0.1:80']}, {name: a, endpoints: ['10.0.0.2:80']}]",
            "spec.backends[1]",
            "called `a` already",
        ),
        (
            "ports: {a: {port: 80, protocol: http}, b: {port: 80}}, backends: [{endpoints: [10.0.0.1]}]",
            "spec.ports.b.port",
            "port 80 is `a` already",
        ),
        (
            &format!("protocol: http, protocol: tcp, {OWN}"),
            "spec.protocol",
            "`protocol` is written twice",
        ),
    ] {
        check(&of_route(spec), Code::Duplicate, path, words);
    }
    // Each map of a route.
    let rule = |rest: &str| {
        format!("protocol: http, {OWN}, allow: [{{listeners: [apps]}}], rules: [{{{rest}}}]")
    };
    for (spec, path) in [
        (
            "ports: {a: {port: 80}, a: {port: 81}}, backends: [{endpoints: [10.0.0.1]}]".to_owned(),
            "spec.ports.a",
        ),
        (
            format!("protocol: http, {OWN}, locality: {{spread: {{eu: 1%, a: 99%, eu: 1%}}}}"),
            "spec.locality.spread.eu",
        ),
        (
            format!("protocol: http, {OWN}, allow: [{{headers: {{a: [b], a: [c]}}}}]"),
            "spec.allow[0].headers.a",
        ),
        (
            rule("matches: [{headers: {a: b, a: c}}]"),
            "spec.rules[0].matches[0].headers.a",
        ),
        (
            rule("matches: [{query: {a: b, a: c}}]"),
            "spec.rules[0].matches[0].query.a",
        ),
        (
            rule("headers: {request: {set: {a: b, a: c}}}"),
            "spec.rules[0].headers.request.set.a",
        ),
        (
            rule("headers: {response: {add: {a: b, a: c}}}"),
            "spec.rules[0].headers.response.add.a",
        ),
    ] {
        check(&of_route(&spec), Code::Duplicate, path, "is written twice");
    }
    let same_address = EAST
        .replace("127.0.0.1:15001", "0.0.0.0:15443")
        .replace("role: workloads", "role: workloads, sources: [10.0.0.1]");
    check(
        &only(&[&same_address], "address twice"),
        Code::Duplicate,
        "spec.listeners.apps.address",
        "listener `mesh` has the address",
    );
}

#[test]
fn what_is_missing_is_found() {
    use Code::MissingField as M;

    for (spec, path, words) in [
        ("protocol: http", "spec", "`backends` is missing"),
        (
            "protocol: http, backends: []",
            "spec.backends",
            "no backends",
        ),
        (
            "protocol: http, backends: [{}]",
            "spec.backends[0]",
            "neither `endpoints`, `dns` nor `peer`",
        ),
        (
            "protocol: http, backends: [{endpoints: []}]",
            "spec.backends[0].endpoints",
            "no endpoints",
        ),
        (OWN, "spec", "`port` is missing"),
        (
            &format!("protocol: http, {OWN}, allow: [{{from: []}}]"),
            "spec.allow[0].from",
            "the list is empty",
        ),
        (&format!("ports: {{}}, {OWN}"), "spec.ports", "no ports"),
    ] {
        let finding = of_route(spec);
        let place = finding.place.as_ref().unwrap();
        assert_eq!((finding.code, place.path.as_str()), (M, path), "{finding}");
        assert!(finding.to_string().contains(words), "{finding}");
    }
    let no_gateways = WEST_PEER.replace(r#"["gw.west.example:15443", "192.0.2.7:15443"]"#, "[]");
    check(
        &only(&[EAST, &no_gateways], "no gateways"),
        M,
        "spec.gateways",
        "write at least one",
    );
    let no_port = WEST_PEER.replace("192.0.2.7:15443", "192.0.2.7");
    check(
        &only(&[EAST, &no_port], "no port"),
        M,
        "spec.gateways[1]",
        "15443",
    );
    let no_locality = EAST.replace("  locality: eu/eu-1/rack-a\n", "");
    check(
        &only(&[&no_locality], "no locality"),
        M,
        "spec",
        "`--locality`",
    );
    let findings = findings(&[WEST_PEER]);
    assert!(
        findings.to_string().contains("no MeshGateway"),
        "{findings}"
    );
}
