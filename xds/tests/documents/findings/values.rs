//! Values that cannot be read, and fields that are not known.

use super::{OWN, check, of_route, only};
use crate::support::{EAST, WEST_PEER, route};
use zeugma_xds::Code;

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
