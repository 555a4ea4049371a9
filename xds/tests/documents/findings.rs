//! What a person is told: every kind of finding, its place, and what to do.

use crate::support::{EAST, WEST_PEER, route, try_load};
use zeugma_xds::{Code, Color, Finding, Findings, Severity};

fn findings(documents: &[&str]) -> Findings {
    match try_load(documents, None) {
        Ok(loaded) => loaded.warnings,
        Err(findings) => findings,
    }
}

/// The one finding of a route with this spec on gateway east with peer west.
fn of_route(spec: &str) -> Finding {
    only(&[EAST, WEST_PEER, &route("orders", spec)], spec)
}

fn only(documents: &[&str], what: &str) -> Finding {
    let findings = findings(documents);
    let mut errors = findings.iter().filter(|f| f.severity == Severity::Error);
    let Some(first) = errors.next() else {
        panic!("nothing found: {what}");
    };
    assert_eq!(errors.next(), None, "{what}: {findings}");
    first.clone()
}

fn check(finding: &Finding, code: Code, path: &str, words: &str) {
    let place = finding.place.as_ref().unwrap();
    assert_eq!(
        (finding.code, place.path.as_str()),
        (code, path),
        "{finding}"
    );
    assert!(finding.to_string().contains(words), "{finding}");
    assert!(place.line > 0 && place.column > 0, "{finding}");
    assert!(finding.help.is_some(), "it says what to do: {finding}");
}

const OWN: &str = "backends: [{name: a, endpoints: ['10.0.0.1:80']}]";

/// What is told by code, in logs, the API and `zeugma explain`; ZG0105 and ZG0113 are the system's.
#[test]
fn each_kind_of_finding_has_the_code_that_is_explained() {
    let route = |more: &str| route("orders", &format!("protocol: http, {OWN}{more}"));
    let deep = format!("\n---\n{}{}\n", "[".repeat(100), "]".repeat(100));
    for (document, code) in [
        (route(", retry: {}"), "ZG0101"),
        (route(", timeouts: {connect: soon}"), "ZG0102"),
        (route(", allow: [{from: []}]"), "ZG0103"),
        ("\n---\nkind: [\n".to_owned(), "ZG0104"),
        (deep, "ZG0106"),
        (route(", allow: [{listeners: [aps]}]"), "ZG0107"),
        (EAST.to_owned(), "ZG0108"),
        (route(", allow: [{}]"), "ZG0111"),
    ] {
        let finding = only(&[EAST, &document], &document);
        assert_eq!(finding.code.as_str(), code, "{finding}");
    }
    let token = EAST.replace("  cluster:", "  adminToken: token\n  cluster:");
    assert_eq!(only(&[&token], "adminToken").code.as_str(), "ZG0110");
}

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
fn contradictions_are_found() {
    use Code::Contradiction as C;

    for (spec, path, words) in [
        (
            "protocol: http, inbound: passthrough, backends: [{endpoints: ['10.0.0.1:443'], tls: workload}]",
            "spec.inbound",
            "cannot be read as http",
        ),
        (
            "port: 443, inbound: terminate, backends: [{endpoints: ['10.0.0.1:443'], tls: workload}]",
            "spec.backends[0].tls",
            "inbound: passthrough",
        ),
        (
            "port: 443, inbound: passthrough, backends: [{endpoints: ['10.0.0.1:443']}]",
            "spec.backends[0].tls",
            "endpoints do not speak it",
        ),
        (
            &format!("protocol: http, {OWN}, failover: {{start: 20%, full: 30%}}"),
            "spec.failover.full",
            "`full` (30%) is over `start` (20%)",
        ),
        (
            &format!("protocol: http, {OWN}, failover: {{start: 7%, full: 57%}}"),
            "spec.failover.full",
            "`full` (57%) is over `start` (7%)",
        ),
        (
            &format!("protocol: http, {OWN}, failover: {{start: 100%, full: 100%}}"),
            "spec.failover.full",
            "takes nothing even while all of it is healthy",
        ),
        (
            &format!("port: 9, {OWN}, failover: {{full: 10%}}"),
            "spec.failover.full",
            "`start` (0%)",
        ),
        (
            &format!("protocol: http, port: 80, ports: {{}}, {OWN}"),
            "spec.port",
            "keep one of them",
        ),
        (
            "protocol: http, hosts: ['*.example'], backends: [{peer: west}]",
            "spec.hosts",
            "only wildcards",
        ),
        (
            &format!("protocol: http, {OWN}, health: {{active: {{every: 1s}}}}"),
            "spec.health.active",
            "write `http: /path`, `grpc: package.Service`, or `tcp: true`",
        ),
        (
            &format!("protocol: http, {OWN}, health: {{active: {{http: /a, grpc: a.B}}}}"),
            "spec.health.active",
            "asks one thing",
        ),
        (
            &format!("protocol: http, {OWN}, hosts: ['*.a.b'], health: {{active: {{grpc: a.B}}}}"),
            "spec.health.active.grpc",
            "only wildcards",
        ),
        (
            &format!("protocol: http, {OWN}, health: {{active: {{http: /a, tcp: true}}}}"),
            "spec.health.active",
            "asks one thing",
        ),
        (
            &format!("protocol: http, {OWN}, mirror: [{{route: orders}}]"),
            "spec.mirror[0].route",
            "its own mirror",
        ),
        (
            "ports: {a: {port: 80}, b: {port: 81}}, backends: [{endpoints: ['10.0.0.1:8080']}]",
            "spec.backends[0].endpoints[0]",
            "`targetPort`",
        ),
    ] {
        let findings = findings(&[EAST, WEST_PEER, &route("orders", spec)]);
        let found = findings
            .iter()
            .find(|f| f.code == C && f.place.as_ref().unwrap().path == path);
        check(
            found.unwrap_or_else(|| panic!("{spec}: {findings}")),
            C,
            path,
            words,
        );
    }
    let tcp = route("tcp", "port: 9, backends: [{endpoints: ['10.0.0.1:9']}]");
    let to_tcp = route(
        "orders",
        &format!("protocol: http, {OWN}, mirror: [{{route: tcp}}]"),
    );
    check(
        &only(&[EAST, &tcp, &to_tcp], "mirror to tcp"),
        Code::NoEffect,
        "spec.mirror[0].route",
        "is tcp, and copies are http requests",
    );
    let own = "port: 5, backends: [{endpoints: ['10.0.0.1:5'], tls: workload}]";
    for (from, to, field, words) in [
        (
            "inbound: terminate, mirror: [{route: web}]",
            "protocol: http, backends: [{endpoints: ['10.0.0.1:9']}]",
            "route",
            "is http, and copies are connections",
        ),
        (
            "inbound: passthrough, mirror: [{route: web}]",
            "port: 9, backends: [{endpoints: ['10.0.0.1:9']}]",
            "route",
            "passes its callers' TLS through",
        ),
        (
            "mirror: [{route: web}]",
            own,
            "route",
            "speak TLS themselves",
        ),
        (
            "mirror: [{route: web, compare: true}]",
            "port: 9, backends: [{endpoints: ['10.0.0.1:9']}]",
            "compare",
            "the route is tcp",
        ),
        (
            "mirror: [{route: web, bodyLimit: 0B}]",
            "port: 9, backends: [{endpoints: ['10.0.0.1:9']}]",
            "bodyLimit",
            "no byte could wait",
        ),
        (
            "mirror: [{route: web}]",
            "ports: {a: {port: 8}, b: {port: 9}}, backends: [{endpoints: ['10.0.0.1']}]",
            "route",
            "no port 5",
        ),
    ] {
        let backends = if from.contains("passthrough") {
            own.to_owned()
        } else {
            own.replace(", tls: workload", "")
        };
        let raw = route("raw", &format!("{backends}, {from}"));
        let finding = only(&[EAST, &raw, &route("web", to)], from);
        let code = if words.starts_with("no port") {
            C
        } else {
            Code::NoEffect
        };
        check(&finding, code, &format!("spec.mirror[0].{field}"), words);
    }
    let one_route = |spec: &str| {
        let gateway = EAST.replace("role: workloads", "role: workloads, route: shop/pg");
        only(&[&gateway, &route("pg", spec)], spec)
    };
    check(
        &one_route("port: 9, backends: [{endpoints: ['10.0.0.1:9'], tls: workload}]"),
        C,
        "spec.listeners.apps.route",
        "which a one-route listener never reads",
    );
    check(
        &one_route("protocol: http, backends: [{endpoints: ['10.0.0.1:80']}]"),
        C,
        "spec.listeners.apps.route",
        "one address, one route (ZG0109); remove `route` here",
    );
    check(
        &one_route("ports: {a: {port: 80}, b: {port: 81}}, backends: [{endpoints: [10.0.0.1]}]"),
        C,
        "spec.listeners.apps.route",
        "several ports",
    );
    let on_mesh = EAST.replace("role: mesh", "role: mesh, route: shop/tcp");
    check(
        &only(&[&on_mesh, &tcp], "mesh"),
        C,
        "spec.listeners.mesh.route",
        "role: workloads",
    );
}

#[test]
fn what_could_never_have_an_effect_is_an_error() {
    use Code::NoEffect as N;

    let tls = "port: 443, backends: [{endpoints: ['10.0.0.1:443'], tls: workload}]";
    let tcp = "port: 9, backends: [{endpoints: ['10.0.0.1:9']}]";
    let http = format!("protocol: http, {OWN}");
    let from = "from: ['spiffe://east.example/*']";
    for (spec, path, words) in [
        (
            format!("{tls}, allow: [{{{from}}}]"),
            "spec.allow[0].from",
            "TLS is passed through",
        ),
        (
            format!("{tls}, deny: [{{{from}}}]"),
            "spec.deny[0].from",
            "TLS is passed through",
        ),
        (
            format!("{tls}, allow: [{{{from}, listeners: [apps]}}]"),
            "spec.allow[0].from",
            "`sources` or `listeners`",
        ),
        (
            format!("{tcp}, allow: [{{methods: [GET]}}]"),
            "spec.allow[0].methods",
            "protocol: http",
        ),
        (
            format!("{tcp}, allow: [{{paths: [/a]}}]"),
            "spec.allow[0].paths",
            "protocol: http",
        ),
        (
            format!("{http}, allow: [{{listeners: [mesh]}}]"),
            "spec.allow[0].listeners",
            "needs `export`",
        ),
        (
            format!("{http}, allow: [{{via: [west]}}]"),
            "spec.allow[0].via",
            "into `attests`",
        ),
        (
            format!("{tcp}, timeouts: {{responseHeaders: 1s}}"),
            "spec.timeouts.responseHeaders",
            "the route is tcp",
        ),
        (
            format!("{tcp}, timeouts: {{perTry: 1s}}"),
            "spec.timeouts.perTry",
            "the route is tcp",
        ),
        (
            format!("{tcp}, retries: {{attempts: 3}}"),
            "spec.retries.attempts",
            "the route is tcp",
        ),
        (
            format!("{tcp}, retries: {{budget: 5%}}"),
            "spec.retries.budget",
            "the route is tcp",
        ),
        (
            format!("{tcp}, health: {{active: {{http: /healthz}}}}"),
            "spec.health.active.http",
            "`tcp: true`",
        ),
        (
            format!("{tcp}, balance: {{policy: {{ring-hash: {{header: x-user}}}}}}"),
            "spec.balance.policy.ring-hash.header",
            "`ring-hash: source`",
        ),
        (
            format!("{tcp}, balance: {{policy: {{maglev: {{header: x-user}}}}}}"),
            "spec.balance.policy.maglev.header",
            "`maglev: source`",
        ),
        (
            format!("{tcp}, balance: {{maxConnectionAge: 10m}}"),
            "spec.balance.maxConnectionAge",
            "the route is tcp",
        ),
        (
            format!("{tcp}, health: {{active: {{grpc: shop.Orders}}}}"),
            "spec.health.active.grpc",
            "`tcp: true`",
        ),
        (
            format!("{tcp}, retries: {{on: [reset]}}"),
            "spec.retries.on",
            "the route is tcp",
        ),
        (
            format!("{tcp}, retries: {{buffer: 1KiB}}"),
            "spec.retries.buffer",
            "the route is tcp",
        ),
        (
            format!("{tcp}, retries: {{any: true}}"),
            "spec.retries.any",
            "the route is tcp",
        ),
        (
            format!("{tcp}, allow: [{{headers: {{x-a: ['1']}}}}]"),
            "spec.allow[0].headers",
            "requests are not read",
        ),
        (
            format!("{http}, deny: [{{headers: {{host: [a]}}}}]"),
            "spec.deny[0].headers.host",
            "write `hosts`",
        ),
        (
            format!("{tcp}, retries: {{hedge: {{after: 50ms}}}}"),
            "spec.retries.hedge.after",
            "the route is tcp",
        ),
        (
            format!("{http}, retries: {{attempts: 0, hedge: {{after: 50ms}}}}"),
            "spec.retries.hedge.after",
            "write more `attempts`",
        ),
        (
            format!("{tcp}, limits: {{requests: 1}}"),
            "spec.limits.requests",
            "the route is tcp",
        ),
        (
            format!("{tcp}, limits: {{pending: 1}}"),
            "spec.limits.pending",
            "the route is tcp",
        ),
        (
            format!("protocol: http, {OWN}, limits: {{connections: 1}}"),
            "spec.limits.connections",
            "write `requests`",
        ),
        (
            format!("{tcp}, health: {{passive: {{on: [connect, 503]}}}}"),
            "spec.health.passive.on[1]",
            "only http has it",
        ),
        (
            format!("{tls}, health: {{active: {{http: /healthz}}}}"),
            "spec.health.active.http",
            "`tcp: true`",
        ),
        (
            "port: 9, backends: [{endpoints: ['10.0.0.1:9'], version: h2}]".to_owned(),
            "spec.backends[0].version",
            "the route is tcp",
        ),
        (
            "protocol: http, backends: [{endpoints: ['10.0.0.1:9'], proxyProtocol: true}]"
                .to_owned(),
            "spec.backends[0].proxyProtocol",
            "x-forwarded-client-cert",
        ),
        (
            "protocol: http, backends: [{endpoints: ['10.0.0.1:9'], spiffeIDs: ['spiffe://a/b']}]"
                .to_owned(),
            "spec.backends[0].spiffeIDs",
            "`tls: mesh`",
        ),
        (
            "protocol: http, backends: [{peer: west, tls: mesh}]".to_owned(),
            "spec.backends[0].tls",
            "as its MeshPeer says",
        ),
        (
            "protocol: http, backends: [{peer: west, cluster: west}]".to_owned(),
            "spec.backends[0].cluster",
            "as its MeshPeer says",
        ),
        (
            format!("{tls}, locality: {{prefer: [region, zone]}}"),
            "spec.locality.prefer[1]",
            "from near to far",
        ),
        (
            "ports: {a: {port: 80, targetPort: 81}}, backends: [{endpoints: ['10.0.0.1:9']}]"
                .to_owned(),
            "spec.ports.a.targetPort",
            "every endpoint names its port",
        ),
        (
            format!("{http}, mirror: [{{route: shop/canary, percent: 0%}}]"),
            "spec.mirror[0].percent",
            "nothing would be copied",
        ),
    ] {
        let canary = route(
            "canary",
            "protocol: http, backends: [{endpoints: ['10.0.0.2:80']}]",
        );
        let finding = only(&[EAST, WEST_PEER, &canary, &route("orders", &spec)], &spec);
        check(&finding, N, path, words);
    }
    let passed = format!("{tls}, allow: [{{sources: [10.0.0.1]}}]")
        .replace(
            "]}, allow",
            "]}, {peer: west, spiffeIDs: ['spiffe://a/b']}], allow",
        )
        .replace(
            "tls: workload}]",
            "tls: workload}, {peer: west, spiffeIDs: ['spiffe://a/b']}]",
        );
    check(
        &of_route(&passed),
        N,
        "spec.backends[1].spiffeIDs",
        "the caller itself checks",
    );
    let gateway = EAST.replace("role: workloads", "role: workloads, route: shop/orders");
    let one_route = route("orders", &format!("{tcp}, allow: [{{{from}}}]"));
    check(
        &only(&[&gateway, &one_route], "from on a one-route listener"),
        N,
        "spec.allow[0].from",
        "one-route listener",
    );
    let by_name = "allow: [{sni: [orders.shop.svc.clusterset.local]}]";
    let one_route = route("orders", &format!("{tcp}, {by_name}"));
    check(
        &only(&[&gateway, &one_route], "sni on a one-route listener"),
        N,
        "spec.allow[0].sni",
        "no TLS on a one-route listener",
    );
    let no_mesh = EAST.replace("role: mesh", "role: workloads, sources: [10.0.0.1]");
    let exported = route("orders", &format!("{http}, export: {{to: ['*']}}"));
    check(
        &only(&[&no_mesh, &exported], "export"),
        N,
        "spec.export",
        "role: mesh",
    );
    let peer = WEST_PEER.replace("name: west }", "name: west, namespace: shop }");
    check(
        &only(&[EAST, &peer], "namespace"),
        N,
        "metadata.namespace",
        "remove it",
    );
}

#[test]
fn what_would_leave_a_door_open_is_an_error() {
    const U: Code = Code::Unsafe;

    for (spec, path, words) in [
        (format!("protocol: http, {OWN}, allow: [{{}}]"), "spec.allow[0]", "would match everyone"),
        (format!("protocol: http, {OWN}, deny: [{{headers: {{Cookie: ['a=1']}}}}]"), "spec.deny[0].headers.Cookie", "part `cookie` into values"),
        ("protocol: http, backends: [{endpoints: ['10.0.0.1:9'], tls: mesh}]".to_owned(), "spec.backends[0].tls", "write `spiffeIDs`"),
        ("port: 443, backends: [{endpoints: ['10.0.0.1:443'], tls: workload}], export: {to: [west]}".to_owned(), "spec.export.to[0]", "write `sources`"),
    ] {
        check(&of_route(&spec), U, path, words);
    }
    for (from, to, path, words) in [
        (
            "127.0.0.1:15001",
            "0.0.0.0:15001",
            "spec.listeners.apps.address",
            "write `sources`",
        ),
        (
            "  cluster:",
            "  admin: '0.0.0.0:15000'\n  cluster:",
            "spec.admin",
            "`unix:`",
        ),
    ] {
        check(&only(&[&EAST.replace(from, to)], to), U, path, words);
    }
    let nobody = WEST_PEER.replace(r#"["spiffe://west.example/zeugma/gateway"]"#, "[]");
    check(
        &only(&[EAST, &nobody], "no IDs"),
        U,
        "spec.spiffeIDs",
        "SPIFFE IDs of its gateways",
    );
}

#[test]
fn a_token_has_no_effect_on_a_socket() {
    let token = EAST.replace("  cluster:", "  adminToken: token\n  cluster:");
    let on_an_address = token.replace("  cluster:", "  admin: '127.0.0.1:15000'\n  cluster:");
    assert!(findings(&[&on_an_address]).is_empty());
    check(
        &only(&[&token], "adminToken"),
        Code::NoEffect,
        "spec.adminToken",
        "asks for no token",
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

#[test]
fn values_that_cannot_be_read_are_found_where_they_stand() {
    use Code::BadValue as B;

    for (spec, path, words) in [
        (
            format!("protocol: http, {OWN}, timeouts: {{connect: 5}}"),
            "spec.timeouts.connect",
            "the unit is missing",
        ),
        (
            format!("protocol: http, {OWN}, failover: {{start: 0.7}}"),
            "spec.failover.start",
            "`%` is missing",
        ),
        (
            format!("protocol: htpp, {OWN}"),
            "spec.protocol",
            "did you mean `http`?",
        ),
        (
            format!("protocol: http, {OWN}, balance: {{policy: leastrequest}}"),
            "spec.balance.policy",
            "did you mean `least-request`?",
        ),
        (
            format!("protocol: http, {OWN}, retries: {{any: yes}}"),
            "spec.retries.any",
            "neither true nor false (ZG0102); write `true` or `false`",
        ),
        (
            format!("protocol: http, {OWN}, allow: [{{headers: {{x-a: ['a*b']}}}}]"),
            "spec.allow[0].headers.x-a[0]",
            "only at the end",
        ),
        (
            format!("protocol: http, {OWN}, allow: [{{sni: ['outbound_.80_._.a.b']}}]"),
            "spec.allow[0].sni[0]",
            "write `a.b`, which is for all of its ports",
        ),
        (
            format!("protocol: http, {OWN}, deny: [{{sni: ['a.*.b']}}]"),
            "spec.deny[0].sni[0]",
            "only letters, digits",
        ),
        (
            format!("protocol: http, {OWN}, deny: [{{headers: {{x-a: ['a, b']}}}}]"),
            "spec.deny[0].headers.x-a[0]",
            "`,` parts two values",
        ),
        (
            format!("protocol: http, {OWN}, retries: {{hedge: {{after: 0ms}}}}"),
            "spec.retries.hedge.after",
            "1ms",
        ),
        (
            format!("protocol: http, {OWN}, retries: {{attempts: 11}}"),
            "spec.retries.attempts",
            "write 0 to 10",
        ),
        (
            format!("protocol: http, {OWN}, retries: {{attempts: 1_0}}"),
            "spec.retries.attempts",
            "ZG0102",
        ),
        (
            format!("protocol: http, {OWN}, port: 0"),
            "spec.port",
            "write 1 to 65535",
        ),
        (
            format!("protocol: http, {OWN}, port: 65536"),
            "spec.port",
            "ZG0102",
        ),
        (
            "protocol: http, backends: [{endpoints: ['10.0.0.1:0']}]".to_owned(),
            "spec.backends[0].endpoints[0]",
            "port 0 cannot be connected to",
        ),
        (
            "protocol: http, backends: [{endpoints: [{address: '10.0.0.1:1', weight: 0}]}]"
                .to_owned(),
            "spec.backends[0].endpoints[0].weight",
            "remove the endpoint",
        ),
        (
            "protocol: http, backends: [{endpoints: [{address: '10.0.0.1:1', weight: 10001}]}]"
                .to_owned(),
            "spec.backends[0].endpoints[0].weight",
            "write 1 to 10000",
        ),
        (
            format!("protocol: http, {OWN}, allow: [{{from: ['spiffe://East/a']}}]"),
            "spec.allow[0].from[0]",
            "(ID2, ID3)",
        ),
        (
            format!("protocol: http, {OWN}, allow: [{{sources: [10.1.0.0/8]}}]"),
            "spec.allow[0].sources[0]",
            "`10.0.0.0/8`",
        ),
        (
            format!("protocol: http, {OWN}, deny: [{{sources: ['::/0']}}]"),
            "spec.deny[0].sources[0]",
            "`0.0.0.0/0` for all",
        ),
        (
            format!("protocol: http, {OWN}, deny: [{{paths: [/a/../b]}}]"),
            "spec.deny[0].paths[0]",
            "no request is matched by it",
        ),
        (
            format!("protocol: http, {OWN}, retries: {{attempts: ~}}"),
            "spec.retries.attempts",
            "nothing is written here",
        ),
        (
            format!("protocol: http, {OWN}, timeouts: {{connect: [1s]}}"),
            "spec.timeouts.connect",
            "one value is expected here (ZG0102); write it without",
        ),
        (
            format!("protocol: http, {OWN}, timeouts: 5s"),
            "spec.timeouts",
            "fields are expected here (ZG0102); write them in braces",
        ),
        (
            format!("protocol: http, {OWN}, export: {{to: west}}"),
            "spec.export.to",
            "a list is expected here (ZG0102); write it in brackets",
        ),
        (
            format!("protocol: http, {OWN}, export: {{to: [~]}}"),
            "spec.export.to[0]",
            "nothing is written here (ZG0102); write a value",
        ),
        (
            format!("protocol: http, {OWN}, failover: {{order: [{{region: ~}}]}}"),
            "spec.failover.order[0].region",
            "nothing is written here",
        ),
        (
            format!("protocol: http, {OWN}, failover: {{order: [{{region: us, cluster: west}}]}}"),
            "spec.failover.order[0].cluster",
            "an entry names one thing alone (ZG0102); give each its own entry",
        ),
        (
            "protocol: http, backends: [{locality: \"eu/a\\nb\", endpoints: ['10.0.0.1:80']}]"
                .to_owned(),
            "spec.backends[0].locality",
            "may not stand in a locality",
        ),
        (
            format!("protocol: http, {OWN}, allow: [{{methods: [get]}}]"),
            "spec.allow[0].methods[0]",
            "write `GET`",
        ),
        (
            format!("protocol: http, {OWN}, health: {{active: {{http: healthz}}}}"),
            "spec.health.active.http",
            "begins with `/`",
        ),
        (
            format!(
                "protocol: http, {OWN}, health: {{active: {{grpc: {}}}}}",
                "a".repeat(256)
            ),
            "spec.health.active.grpc",
            "at most 255 bytes",
        ),
        (
            format!("protocol: http, {OWN}, health: {{active: {{tcp: true, every: 1ms}}}}"),
            "spec.health.active.every",
            "`100ms` or more",
        ),
        (
            format!("protocol: http, {OWN}, health: {{active: {{tcp: true, up: 0}}}}"),
            "spec.health.active.up",
            "write 1 to 100",
        ),
        // sni-filter-chain-invalid-01 and -02, refused by Envoy 1.40.0 as well.
        (
            format!("protocol: http, hosts: ['*w.example.com'], {OWN}"),
            "spec.hosts[0]",
            "ZG0102",
        ),
        (
            format!("protocol: http, hosts: ['a.*.com'], {OWN}"),
            "spec.hosts[0]",
            "ZG0102",
        ),
    ] {
        let finding = of_route(&spec);
        let place = finding.place.as_ref().unwrap();
        assert_eq!((finding.code, place.path.as_str()), (B, path), "{finding}");
        assert!(finding.to_string().contains(words), "{finding}");
    }
    for (field, path) in [
        ("workers: 0", "spec.workers"),
        ("limits: {streams: 0}", "spec.limits.streams"),
        ("limits: {headerBytes: 1KiB}", "spec.limits.headerBytes"),
        (
            "limits: {handshakeTimeout: 0s}",
            "spec.limits.handshakeTimeout",
        ),
        ("limits: {connections: 0}", "spec.limits.connections"),
        ("limits: {headerBytes: 2MiB}", "spec.limits.headerBytes"),
        ("limits: {memory: 1023KiB}", "spec.limits.memory"),
        ("limits: {memory: 80%}", "spec.limits.memory"),
        ("probes: localhost:1", "spec.probes"),
    ] {
        let gateway = EAST.replace("  cluster: east", &format!("  {field}\n  cluster: east"));
        let finding = only(&[&gateway], field);
        assert_eq!(finding.place.unwrap().path, path);
    }
}

#[test]
fn a_rate_is_a_whole_number_above_nothing_a_second() {
    for (written, words) in [
        ("100", "`/s` is missing"),
        ("100/m", "`/m` is not `/s`"),
        ("0/s", "write 1/s to 1000000/s"),
        ("1000001/s", "write 1/s to 1000000/s"),
        ("99999999999999999999/s", "the number is too large"),
        ("1.5/s", "`.5/s` is not `/s`"),
        ("-1/s", "it does not begin with a whole number"),
    ] {
        let with = format!("role: mesh, handshakes: {{perSource: '{written}'}}");
        let gateway = EAST.replace("role: mesh", &with);
        let finding = only(&[&gateway], written);
        let place = finding.place.as_ref().unwrap();
        assert_eq!(place.path, "spec.listeners.mesh.handshakes.perSource");
        assert_eq!(finding.code, Code::BadValue, "{finding}");
        assert!(finding.to_string().contains(words), "{finding}");
    }
    for (backend, path) in [
        (
            "endpoints: ['10.0.0.1:9'], capacity: 0/s",
            "spec.backends[0].capacity",
        ),
        (
            "peer: west, capacity: 2000000/s",
            "spec.backends[0].capacity",
        ),
    ] {
        let text = route("r", &format!("protocol: http, backends: [{{{backend}}}]"));
        let finding = only(&[EAST, WEST_PEER, &text], backend);
        assert_eq!(finding.place.as_ref().unwrap().path, path);
        assert!(
            finding.to_string().contains("write 1/s to 1000000/s"),
            "{finding}"
        );
    }
    let typo = EAST.replace("role: mesh", "role: mesh, handshakes: {perSoruce: 1/s}");
    let finding = only(&[&typo], "a typo");
    assert_eq!(finding.code, Code::UnknownField);
    assert!(
        finding.to_string().contains("did you mean `perSource`?"),
        "{finding}"
    );
}

#[test]
fn a_backend_by_dns_is_a_name_alone() {
    for (backend, more, path, code, words) in [
        (
            "dns: 10.0.0.1",
            "",
            "dns",
            Code::BadValue,
            "nothing to resolve",
        ),
        (
            "dns: '[::1]:80'",
            "",
            "dns",
            Code::BadValue,
            "nothing to resolve",
        ),
        ("dns: 'no name'", "", "dns", Code::BadValue, "is not"),
        ("dns: a.example:0", "", "dns", Code::BadValue, "a.example:0"),
        (
            "dns: a.example, endpoints: ['10.0.0.1:80']",
            "",
            "dns",
            Code::Contradiction,
            "already",
        ),
        (
            "name: a",
            "",
            "",
            Code::MissingField,
            "neither `endpoints`, `dns` nor `peer`",
        ),
        (
            "dns: a.example:81",
            "ports: {a: {port: 80}, b: {port: 90}}, ",
            "dns",
            Code::Contradiction,
            "all of them would go to this one",
        ),
    ] {
        let port = if more.is_empty() { "port: 80, " } else { more };
        let spec = format!("{port}backends: [{{{backend}}}]");
        let finding = only(&[EAST, &route("orders", &spec)], backend);
        let at = format!("spec.backends[0].{path}");
        assert_eq!(
            finding.place.as_ref().unwrap().path,
            at.trim_end_matches('.'),
            "{finding}"
        );
        assert_eq!(finding.code, code, "{finding}");
        assert!(finding.to_string().contains(words), "{finding}");
    }
    let peer = "protocol: http, backends: [{peer: west, dns: a.example}]";
    let finding = only(&[EAST, WEST_PEER, &route("orders", peer)], peer);
    assert_eq!(finding.code, Code::NoEffect, "{finding}");
    assert_eq!(finding.place.unwrap().path, "spec.backends[0].dns");
    // `targetPort` is that of names without a port.
    let unused = "ports: {a: {port: 80, targetPort: 81}}, backends: [{dns: 'a.example:82'}]";
    let finding = only(&[EAST, &route("orders", unused)], unused);
    assert_eq!(finding.code, Code::NoEffect, "{finding}");
}

#[test]
fn a_listener_behind_load_balancers_says_which_they_are_and_not_everybody() {
    for (written, path, code, words) in [
        (
            "[]",
            "trusted",
            Code::MissingField,
            "there is no load balancer",
        ),
        (
            "['10.0.0.0/8', '0.0.0.0/0']",
            "trusted[1]",
            Code::Unsafe,
            "0.0.0.0/0 is everybody",
        ),
        (
            "['::/0']",
            "trusted[0]",
            Code::BadValue,
            "`0.0.0.0/0` for all",
        ),
        ("[10.0.0.0/33]", "trusted[0]", Code::BadValue, "10.0.0.0/33"),
    ] {
        let with = format!("role: mesh, proxyProtocol: {{trusted: {written}}}");
        let gateway = EAST.replace("role: mesh", &with);
        let finding = only(&[&gateway], written);
        let at = format!("spec.listeners.mesh.proxyProtocol.{path}");
        assert_eq!(finding.place.as_ref().unwrap().path, at, "{finding}");
        assert_eq!(finding.code, code, "{finding}");
        assert!(finding.to_string().contains(words), "{finding}");
    }
    let without = EAST.replace("role: mesh", "role: mesh, proxyProtocol: {}");
    let finding = only(&[&without], "no networks");
    assert_eq!(finding.code, Code::MissingField, "{finding}");
    let bool = EAST.replace("role: mesh", "role: mesh, proxyProtocol: true");
    assert_eq!(only(&[&bool], "true").code, Code::BadValue);
}

#[test]
fn what_traffic_is_spread_over_is_one_level_and_all_of_it() {
    let backends = "protocol: http, backends: [{name: a, locality: eu/eu-1, endpoints: ['10.0.0.1:1']}, {name: b, locality: eu/eu-2, endpoints: ['10.0.0.2:1']}]";
    for (locality, says) in [
        (
            "{prefer: [region], spread: {eu/eu-1: 0%, eu/eu-2: 0%}}",
            "no locality has a share",
        ),
        ("{spread: {eu/eu-1: 80%, eu/eu-2: 20%}}", "not in one level"),
        (
            "{prefer: [region], spread: {eu/eu-1: 100%}}",
            "`eu/eu-2` is in the same level",
        ),
        (
            "{prefer: [region], spread: {eu/eu-1: 50%, eu/eu-2: 0%, eu/eu-9: 50%}}",
            "stands in `eu/eu-9`",
        ),
    ] {
        let finding = of_route(&format!("{backends}, locality: {locality}"));
        assert!(finding.message.contains(says), "{finding}");
    }
}

#[test]
fn fields_of_later_versions_and_typos_are_unknown() {
    for (spec, path, help) in [
        (
            format!("protocol: http, {OWN}, hedging: {{}}"),
            "spec.hedging",
            "known are",
        ),
        (
            format!("protocol: http, {OWN}, rules: [{{mirror: []}}]"),
            "spec.rules[0].mirror",
            "known are",
        ),
        (
            format!("protocol: http, {OWN}, timeout: {{}}"),
            "spec.timeout",
            "did you mean `timeouts`?",
        ),
        (
            format!("protocol: http, {OWN}, failover: {{failback: {{moed: manual}}}}"),
            "spec.failover.failback.moed",
            "did you mean `mode`?",
        ),
        (
            "protocol: http, backends: [{endpoints: [{adress: '10.0.0.1:1'}]}]".to_owned(),
            "spec.backends[0].endpoints[0].adress",
            "did you mean `address`?",
        ),
    ] {
        check(&of_route(&spec), Code::UnknownField, path, help);
    }
    let defaults = WEST_PEER.replace("MeshPeer", "MeshPolicy");
    let finding = only(&[EAST, &defaults], "kind");
    check(
        &finding,
        Code::NotADocument,
        "kind",
        "unknown kind `MeshPolicy`",
    );
    let version = WEST_PEER.replace("v1alpha1", "v2");
    check(
        &only(&[EAST, &version], "version"),
        Code::NotADocument,
        "apiVersion",
        "write `apiVersion: zeugma.dev/v1alpha1`",
    );
}

#[test]
fn all_findings_come_at_once_in_the_order_of_the_file() {
    let broken = "\n---\nkind: [\n";
    let findings = findings(&[
        &EAST.replace("role: mesh", "role: mseh"),
        &WEST_PEER.replace("locality:", "localty:"),
        broken,
        &route("orders", "protocol: htp, backends: []"),
    ]);
    let codes: Vec<Code> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(
        codes,
        [
            Code::BadValue,
            Code::UnknownField,
            Code::NotADocument,
            Code::BadValue
        ],
        "{findings}"
    );
    let lines: Vec<u32> = findings
        .iter()
        .map(|finding| finding.place.as_ref().unwrap().line)
        .collect();
    assert!(lines.is_sorted(), "{lines:?}");

    let findings = self::findings(&[
        EAST,
        WEST_PEER,
        &route(
            "orders",
            "backends: [{peer: wset}, {endpoints: [{address: '10.0.0.1:1', weight: 0}]}], export: {to: [north]}",
        ),
    ]);
    assert_eq!(findings.iter().count(), 4, "{findings}");
}

#[test]
fn a_finding_shows_the_line_and_what_to_do() {
    let text = concat!(
        "apiVersion: zeugma.dev/v1alpha1\n",
        "kind: MeshRoute\n",
        "metadata: { name: größe }\n",
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    std::fs::write(
        &path,
        [
            EAST.trim_start(),
            "---\n",
            "apiVersion: zeugma.dev/v1alpha1\n",
            "kind: MeshRoute\n",
            "metadata: { name: orders, namespace: shop }\n",
            "spec:\n",
            "  protocol: http\n",
            "  backends: [{ peer: wset }]\n",
            "---\n",
            text,
        ]
        .concat(),
    )
    .unwrap();
    let findings = zeugma_xds::load(&path, &zeugma_xds::NodeOptions::default()).unwrap_err();
    let human = findings
        .to_human(Color::Plain)
        .replace(&path.display().to_string(), "mesh.yaml");
    // The peer is not looked for while a document cannot be read: it may be that one.
    assert_eq!(
        human,
        "error[ZG0102]: `größe` is not a name of letters, digits, `-`, `_` and `.`: 'ö' may not stand in a name
  --> mesh.yaml:23:19
   |
23 | metadata: { name: größe }
   |                   ^^^^^ metadata.name

"
    );
    std::fs::write(
        &path,
        std::fs::read_to_string(&path)
            .unwrap()
            .replace(&format!("---\n{text}"), &WEST_PEER[1..]),
    )
    .unwrap();
    let findings = zeugma_xds::load(&path, &zeugma_xds::NodeOptions::default()).unwrap_err();
    let human = findings
        .to_human(Color::Plain)
        .replace(&path.display().to_string(), "mesh.yaml");
    assert_eq!(
        human,
        "error[ZG0107]: no MeshPeer `wset`
  --> mesh.yaml:19:22
   |
19 |   backends: [{ peer: wset }]
   |                      ^^^^ spec.backends[0].peer
   |
   = help: did you mean `west`?

"
    );
    let json = findings.to_json();
    assert_eq!(json[0]["code"], "ZG0107");
    assert_eq!(
        (json[0]["line"].as_u64(), json[0]["column"].as_u64()),
        (Some(19), Some(22))
    );
    assert_eq!(json[0]["path"], "spec.backends[0].peer");
    assert!(findings.to_human(Color::Ansi).contains("\u{1b}["));
}

#[test]
fn a_document_of_too_many_nodes_or_too_deep_is_refused() {
    let deep = format!("\n---\n{}{}\n", "[".repeat(100), "]".repeat(100));
    let finding = only(&[EAST, &deep], "deep");
    assert_eq!(finding.code, Code::TooLarge, "{finding}");
    assert_eq!(
        finding.message,
        "lists and fields are over 32 deep within each other"
    );
    assert!(finding.help.is_some());
    let bomb = "\n---\na: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
    let finding = only(&[EAST, bomb], "bomb");
    assert_eq!(finding.code, Code::TooLarge, "{finding}");
}

/// The peer of cluster west, with this in place of its last line.
fn west(ids_and_more: &str) -> String {
    WEST_PEER.replace(
        r#"  spiffeIDs: ["spiffe://west.example/zeugma/gateway"]"#,
        &format!("  {}", ids_and_more.replace('\n', "\n  ")),
    )
}

const WEST_ID: &str = r#"spiffeIDs: ["spiffe://west.example/zeugma/gateway"]"#;

#[test]
fn only_gateways_named_in_full_may_attest() {
    let wide = west(
        "spiffeIDs: [\"spiffe://west.example/zeugma/gateway\", \"spiffe://west.example/ns/*\"]\nattests: [west.example]",
    );
    check(
        &only(&[EAST, &wide], "wildcard"),
        Code::Unsafe,
        "spec.spiffeIDs[1]",
        "could name anyone of `attests`",
    );
    // Without `attests` nobody is impersonated.
    let wide = west(r#"spiffeIDs: ["spiffe://west.example/ns/*"]"#);
    assert_eq!(findings(&[EAST, &wide]), Findings::new());

    let ours = west(&format!("{WEST_ID}\nattests: [west.example, east.example]"));
    let found = findings(&[EAST, &ours]);
    let [warning] = found.iter().collect::<Vec<_>>()[..] else {
        panic!("{found}");
    };
    assert_eq!(warning.severity, Severity::Warning);
    check(
        warning,
        Code::Unsafe,
        "spec.attests[1]",
        "the trust domain of this side too",
    );
    // A file that serves both clusters: to the gateway of west, the peer west is itself.
    let own = EAST
        .replace("east-gw", "west-gw")
        .replace("cluster: east", "cluster: west")
        .replace("trustDomain: east", "trustDomain: west");
    let theirs = west(&format!("{WEST_ID}\nattests: [west.example]"));
    assert_eq!(findings(&[&own, &theirs]), {
        let alone = findings(&[&own]);
        assert!(alone.is_empty(), "{alone}");
        alone
    });
}

#[test]
fn peers_that_cannot_be_told_apart_are_found_where_it_matters() {
    let peer = |name: &str, more: &str| {
        west(more)
            .replace("name: west", &format!("name: {name}"))
            .replace("cluster: west", &format!("cluster: {name}"))
    };
    let exported = |to: &str, rule: &str| {
        route(
            "orders",
            &format!("protocol: http, {OWN}, export: {{to: {to}}}, allow: [{rule}]"),
        )
    };
    let any = "{from: ['spiffe://west.example/*']}";
    let below = r#"spiffeIDs: ["spiffe://west.example/zeugma/*"]"#;
    for (first, second, route, words) in [
        (
            WEST_ID,
            WEST_ID,
            exported("[west]", any),
            "`shop/orders` is exported to one of them",
        ),
        (
            below,
            WEST_ID,
            exported("[north]", any),
            "is exported to one of them",
        ),
        (
            WEST_ID,
            &format!("{WEST_ID}\nattests: [west.example]"),
            exported("['*']", any),
            "only one of them is believed about callers of `west.example`",
        ),
        (
            &format!("{WEST_ID}\nattests: [a.example]\nsources: [10.0.0.0/8]"),
            &format!("{WEST_ID}\nattests: [a.example]\nsources: [10.1.0.0/16]"),
            exported("['*']", "{via: [west], from: ['spiffe://a.example/x']}"),
            "a rule of route `shop/orders` is about one of them alone",
        ),
    ] {
        let found = only(
            &[EAST, &peer("west", first), &peer("north", second), &route],
            words,
        );
        check(&found, Code::Unsafe, "spec.spiffeIDs[0]", words);
        assert!(found.to_string().contains("MeshPeer `west` too"), "{found}");
    }
    let told = format!("{WEST_ID}\nsources: [10.0.0.0/8]");
    let other = r#"spiffeIDs: ["spiffe://west.example/north/gateway"]"#;
    for (first, second, to) in [
        // It makes no difference which one calls.
        (WEST_ID, WEST_ID, "['*']"),
        (WEST_ID, WEST_ID, "[west, north]"),
        (WEST_ID, other, "[west]"),
        (WEST_ID, &*told, "[west]"),
        (
            &*told,
            &*format!("{WEST_ID}\nsources: [192.0.2.0/24]"),
            "[west]",
        ),
    ] {
        let found = findings(&[
            EAST,
            &peer("west", first),
            &peer("north", second),
            &exported(to, any),
        ]);
        assert!(!found.has_errors(), "{found}");
    }
    // Each gateway of a file that serves both has one of them alone as a peer.
    let gateway = |name: &str| EAST.replace("east", name);
    let found = findings(&[
        &gateway("west"),
        &gateway("north"),
        &peer("west", WEST_ID),
        &peer("north", WEST_ID),
        &exported("[west]", any),
    ]);
    assert!(
        !found.to_string().contains("may be a gateway of"),
        "{found}"
    );
}

#[test]
fn an_identity_that_no_peer_of_via_attests_is_found_by_itself() {
    let attests = west(&format!("{WEST_ID}\nattests: [west.example]"));
    for (list, severity) in [("allow", Severity::Warning), ("deny", Severity::Error)] {
        let orders = route(
            "orders",
            &format!(
                "protocol: http, {OWN}, export: {{to: [west]}}, {list}: [{{via: [west], from: ['spiffe://west.example/a', 'spiffe://north.example/b']}}]"
            ),
        );
        let found = findings(&[EAST, &attests, &orders]);
        let [found] = found.iter().collect::<Vec<_>>()[..] else {
            panic!("{found}");
        };
        // What is not allowed stays out; what is not denied may come in.
        assert_eq!(found.severity, severity);
        check(
            found,
            Code::NoEffect,
            &format!("spec.{list}[0].from[1]"),
            "write `north.example` into `attests`",
        );
    }
}

#[test]
fn a_server_name_by_which_nobody_comes_is_found_by_itself() {
    let hosts = "hosts: [a.example, '*.b.example']";
    for (list, severity) in [("allow", Severity::Warning), ("deny", Severity::Error)] {
        let names = "[A.example., '*.example', x.b.example, '*.x.b.example', b.example]";
        let rule = format!("{list}: [{{sni: {names}}}]");
        let web = route("web", &format!("protocol: http, {OWN}, {hosts}, {rule}"));
        let found = findings(&[EAST, &web]);
        let [found] = found.iter().collect::<Vec<_>>()[..] else {
            panic!("{found}");
        };
        assert_eq!(found.severity, severity);
        let path = format!("spec.{list}[0].sni[4]");
        check(
            found,
            Code::NoEffect,
            &path,
            "comes to this route by `b.example`",
        );
    }
    // Who is led here by another route's split named that one's host; its `allow` alone is asked then.
    let split = "rules: [{split: [{route: web}, {backends: [own]}]}]";
    let own = "backends: [{name: own, endpoints: ['10.0.0.1:80']}]";
    let from = route(
        "from",
        &format!("protocol: http, {own}, hosts: [from.example], {split}"),
    );
    let web = |rule: &str| route("web", &format!("protocol: http, {OWN}, {hosts}, {rule}"));
    let denied = web("deny: [{sni: [from.example]}]");
    assert_eq!(findings(&[EAST, &from, &denied]), Findings::new());
    let allowed = web("allow: [{sni: [from.example]}]");
    let found = findings(&[EAST, &from, &allowed]).to_string();
    assert!(found.contains("by `from.example`"), "{found}");
    // What is meant for all need not suit each.
    let defaults = "---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshDefaults\nmetadata: { name: mesh }\n\
                    spec: { deny: [{ sni: [from.example] }] }\n";
    assert_eq!(
        findings(&[EAST, defaults, &from, &web("allow: [{listeners: [apps]}]")]),
        Findings::new()
    );
}

#[test]
fn an_export_that_nobody_can_use_is_a_warning() {
    let elsewhere = route(
        "orders",
        "protocol: http, backends: [{peer: west}], export: {to: [west]}, allow: [{listeners: [mesh]}]",
    );
    let found = findings(&[EAST, WEST_PEER, &elsewhere]);
    let [warning] = found.iter().collect::<Vec<_>>()[..] else {
        panic!("{found}");
    };
    assert_eq!(warning.severity, Severity::Warning);
    check(warning, Code::NoEffect, "spec.export", "the route has none");
    let orders = route(
        "orders",
        &format!("protocol: http, {OWN}, export: {{to: ['*']}}, allow: [{{listeners: [mesh]}}]"),
    );
    let found = findings(&[EAST, &orders]);
    let [warning] = found.iter().collect::<Vec<_>>()[..] else {
        panic!("{found}");
    };
    assert_eq!(warning.severity, Severity::Warning);
    check(
        warning,
        Code::NoEffect,
        "spec.export",
        "there is no MeshPeer",
    );
}

#[test]
fn no_two_sockets_of_a_gateway_may_ask_for_one_address() {
    let with = |mesh: &str, apps: &str, more: &str| {
        EAST.replace("0.0.0.0:15443", mesh)
            .replace("127.0.0.1:15001", apps)
            .replace("  cluster:", &format!("  {more}\n  cluster:"))
    };
    for (mesh, apps, more, path, words) in [
        (
            "0.0.0.0:15001",
            "127.0.0.1:15001",
            "",
            "spec.listeners.apps.address",
            "listener `mesh` has the address 127.0.0.1:15001 already by 0.0.0.0:15001",
        ),
        (
            "[::]:15001",
            "127.0.0.1:15001",
            "",
            "spec.listeners.apps.address",
            "already by [::]:15001",
        ),
        (
            "[::]:15001",
            "[::1]:15001",
            "",
            "spec.listeners.apps.address",
            "already by [::]:15001",
        ),
        (
            "127.0.0.1:15021",
            "127.0.0.1:15001",
            "",
            "spec.listeners.mesh.address",
            "`probes` has the address 127.0.0.1:15021 already (ZG0108)",
        ),
        (
            "0.0.0.0:15443",
            "127.0.0.1:15001",
            "metrics: 0.0.0.0:15443",
            "spec.metrics",
            "listener `mesh` has the address",
        ),
        (
            "0.0.0.0:15443",
            "127.0.0.1:15001",
            "admin: 127.0.0.1:15000\n  probes: 127.0.0.1:15000",
            "spec.probes",
            "`admin` has the address",
        ),
        (
            "0.0.0.0:15443",
            "127.0.0.1:15001",
            "admin: 127.0.0.1:15020",
            "spec.admin",
            "`metrics` has the address",
        ),
        (
            "0.0.0.0:15443",
            "127.0.0.1:15001",
            "probes: 0.0.0.0:9\n  metrics: 127.0.0.1:9",
            "spec.metrics",
            "`probes` has the address 127.0.0.1:9 already by 0.0.0.0:9",
        ),
    ] {
        let gateway = with(mesh, apps, more);
        check(&only(&[&gateway], words), Code::Duplicate, path, words);
    }
    for (mesh, apps, more) in [
        ("127.0.0.2:15001", "127.0.0.1:15001", ""),
        ("0.0.0.0:15001", "[::1]:15001", ""),
        (
            "0.0.0.0:0",
            "127.0.0.1:0",
            "probes: 127.0.0.1:0\n  metrics: 127.0.0.1:0",
        ),
        (
            "127.0.0.1:15000",
            "127.0.0.1:15001",
            "admin: 'unix:admin.sock'",
        ),
    ] {
        let found = findings(&[&with(mesh, apps, more)]);
        assert!(found.is_empty(), "{found}");
    }
}

#[test]
fn a_route_of_which_never_leaves_nothing_says_so_and_so_does_its_listener() {
    let gateway = EAST.replace("role: workloads", "role: workloads, route: shop/orders");
    let orders = route(
        "orders",
        "port: 9, backends: [{name: a, endpoints: ['10.0.0.1:9']}], failover: {never: [{backend: a}]}",
    );
    let found = findings(&[&gateway, &orders]);
    let found: Vec<&Finding> = found.iter().collect();
    assert!(
        found.iter().all(|f| f.severity == Severity::Warning),
        "{found:?}"
    );
    let [listener, never] = found[..] else {
        panic!("{found:?}");
    };
    check(
        listener,
        Code::Unused,
        "spec.listeners.apps.route",
        "`apps` is not opened",
    );
    check(
        never,
        Code::Unused,
        "spec.failover.never",
        "`failover.never` leaves none",
    );
}

// Debug builds take a few seconds for it; a product of routes and routes would take minutes.
#[test]
fn thousands_of_wrong_names_are_found_in_time_and_a_bounded_number_of_suggestions() {
    let mut documents = EAST.to_owned();
    for n in 0..3000 {
        documents.push_str(&route(
            &format!("route-{n:04}"),
            &format!("protocol: http, {OWN}, mirror: [{{route: roote-{n:04}}}]"),
        ));
    }
    let found = findings(&[&documents]);
    assert_eq!(found.iter().count(), 3000);
    let suggested = |f: &&Finding| {
        f.help
            .as_deref()
            .is_some_and(|h| h.starts_with("did you mean"))
    };
    assert_eq!(found.iter().filter(suggested).count(), 100);
    assert!(found.iter().all(|finding| finding.help.is_some()));
}

#[test]
fn a_control_plane_has_servers_that_show_who_they_are() {
    let with = |spec: &str| {
        EAST.replace(
            "  listeners:",
            &format!("  controlPlane: {spec}\n  listeners:"),
        )
    };
    for spec in [
        "{ addresses: ['https://xds.east.example:15012'], spiffeIDs: ['spiffe://east.example/zeugma/xds'] }",
        "{ addresses: ['http://127.0.0.1:15012'], onEmpty: apply }",
    ] {
        assert!(try_load(&[&with(spec)], None).is_ok(), "{spec}");
    }
    let nine = ["'http://127.0.0.1:15012'"; 9].join(", ");
    for (spec, code, path, words) in [
        (
            "{ addresses: [] }",
            Code::MissingField,
            "addresses",
            "at least one",
        ),
        (
            &format!("{{ addresses: [{nine}] }}"),
            Code::BadValue,
            "addresses",
            "at most 8",
        ),
        (
            "{ addresses: ['https://a.example'] }",
            Code::Unsafe,
            "spiffeIDs",
            "nobody is expected",
        ),
        (
            "{ addresses: ['http://127.0.0.1:1'], spiffeIDs: ['spiffe://east.example/xds'] }",
            Code::NoEffect,
            "spiffeIDs",
            "in plaintext",
        ),
        (
            "{ addresses: ['http://10.0.0.1:1'] }",
            Code::BadValue,
            "addresses[0]",
            "not a loopback",
        ),
    ] {
        let finding = only(&[&with(spec)], spec);
        let place = finding.place.as_ref().unwrap();
        let path = format!("spec.controlPlane.{path}");
        assert_eq!((finding.code, &place.path), (code, &path), "{finding}");
        let said = format!("{finding} {}", finding.help.as_deref().unwrap_or_default());
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn a_certificate_comes_from_files_or_from_a_workload_api() {
    const FILES: &str = "files: { certificate: gw.pem, key: gw.key, bundles: bundles/ }";
    let with = |svid: &str| EAST.replace(FILES, svid);
    let api = "workloadApi: unix:///run/zeugma/workload.sock";
    assert!(try_load(&[&with(api)], None).is_ok());
    assert!(try_load(&[&with(&format!("{api}, denied: denied"))], None).is_ok());
    let sds = "sds: { address: unix:///a, bundles: [ROOTCA, 'spiffe://west.example'] }";
    assert!(try_load(&[&with(&format!("{sds}, denied: denied"))], None).is_ok());
    for (svid, code, path, words) in [
        (
            "",
            Code::MissingField,
            "spec.svid",
            "workloadApi: unix:///path",
        ),
        (
            &format!("{FILES}, {api}"),
            Code::Contradiction,
            "spec.svid.workloadApi",
            "not both",
        ),
        (
            &format!("{FILES}, denied: denied"),
            Code::Contradiction,
            "spec.svid.denied",
            "files.denied",
        ),
        (
            "workloadApi: /run/zeugma/workload.sock",
            Code::BadValue,
            "spec.svid.workloadApi",
            "write `unix:///run/zeugma/workload.sock`",
        ),
        (
            "workloadApi: 'tcp://10.0.0.1:8081'",
            Code::BadValue,
            "spec.svid.workloadApi",
            "private key would cross the network",
        ),
        (
            &format!("{api}, sds: {{ address: unix:///a }}"),
            Code::Contradiction,
            "spec.svid.sds",
            "comes from `workloadApi` already",
        ),
        (
            "sds: { address: 'tcp://10.0.0.1:8081' }",
            Code::BadValue,
            "spec.svid.sds.address",
            "private key would cross the network",
        ),
        (
            "sds: { address: unix:///a, bundles: [] }",
            Code::BadValue,
            "spec.svid.sds.bundles",
            "1 to 64",
        ),
        (
            "sds: { address: unix:///a, svid: a, bundles: [b, a] }",
            Code::BadValue,
            "spec.svid.sds.bundles[1]",
            "`a` is asked for already",
        ),
        (
            "sds: { address: unix:///a, svid: '' }",
            Code::BadValue,
            "spec.svid.sds.svid",
            "1 to 2048 bytes",
        ),
    ] {
        let finding = only(&[&with(svid)], svid);
        let place = finding.place.as_ref().unwrap();
        assert_eq!(
            (finding.code, place.path.as_str()),
            (code, path),
            "{finding}"
        );
        let said = format!("{finding} {}", finding.help.as_deref().unwrap_or_default());
        assert!(said.contains(words), "{said}");
    }
}
