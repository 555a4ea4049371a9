//! What a gateway is told of itself: its sockets, its identity, its control plane.

use super::{check, findings, only};
use crate::support::{EAST, route, try_load};
use zeugma_xds::{Code, Finding, Severity};

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
