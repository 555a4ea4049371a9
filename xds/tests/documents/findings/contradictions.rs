//! What contradicts itself, has no effect, or leaves a door open.

use super::{OWN, check, findings, of_route, only};
use crate::support::{EAST, WEST_PEER, route};
use zeugma_xds::Code;

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
            "`sources`, `sni` or `listeners`",
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
        "not looked into on a one-route listener",
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
