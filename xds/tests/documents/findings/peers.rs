//! What is said of peers, and of whom they vouch for.

use super::{OWN, check, findings, only};
use crate::support::{EAST, WEST_PEER, route};
use zeugma_xds::{Code, Findings, Severity};

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

/// Between gateways there is one name for a route.
#[test]
fn a_server_name_that_peers_gateways_never_name_is_found() {
    let told = |rest: &str| {
        let hosts = "hosts: [one.example, two.example, '*.deep.example']";
        let web = route("web", &format!("protocol: http, {OWN}, {hosts}, {rest}"));
        findings(&[EAST, WEST_PEER, &web])
    };
    let exported = "export: {to: [west]}";
    for (rules, path) in [
        ("allow: [{sni: [two.example]}]", "spec.allow[0].sni[0]"),
        (
            "allow: [{sni: ['*.deep.example', x.deep.example]}]",
            "spec.allow[0].sni[1]",
        ),
        (
            "allow: [{listeners: [mesh]}], deny: [{sni: [two.example]}]",
            "spec.deny[0].sni[0]",
        ),
    ] {
        let found = told(&format!("{rules}, {exported}"));
        let [found] = found.iter().collect::<Vec<_>>()[..] else {
            panic!("{rules}: {found}");
        };
        assert_eq!(found.severity, Severity::Warning);
        check(found, Code::NoEffect, path, "they name `one.example`");
    }
    assert_eq!(told("allow: [{sni: [two.example]}]"), Findings::new());
    for rules in [
        "allow: [{sni: [two.example, one.example]}]",
        "allow: [{sni: ['*.example']}]",
        "allow: [{sni: [two.example], listeners: [apps]}]",
    ] {
        assert_eq!(told(&format!("{rules}, {exported}")), Findings::new());
    }
}

#[test]
fn a_denial_by_server_name_is_found_to_deny_nothing_that_has_none() {
    let told = |rest: &str| {
        let web = route(
            "web",
            &format!("{OWN}, hosts: [one.example, two.example], {rest}"),
        );
        findings(&[EAST, WEST_PEER, &web])
    };
    let denied = "deny: [{sni: [one.example]}]";
    let apps = "allow: [{listeners: [apps]}]";
    let found = told(&format!("protocol: http, {apps}, {denied}"));
    let [found] = found.iter().collect::<Vec<_>>()[..] else {
        panic!("{found}");
    };
    assert_eq!(found.severity, Severity::Warning);
    check(
        found,
        Code::Unsafe,
        "spec.deny[0].sni",
        "by `apps` without TLS",
    );
    for closed in [
        format!("protocol: http, {apps}, deny: [{{sni: [one.example]}}, {{listeners: [apps]}}]"),
        format!(
            "protocol: http, {apps}, deny: [{{sni: [one.example], listeners: [mesh]}}], export: {{to: [west]}}"
        ),
        // Without TLS nothing lets in.
        format!("protocol: http, allow: [{{sni: ['*.example']}}], {denied}"),
        format!("protocol: http, allow: [{{from: ['spiffe://east.example/*']}}], {denied}"),
        format!("port: 5432, {apps}, {denied}"),
        // Nor is anybody known.
        format!(
            "protocol: http, {apps}, deny: [{{sni: [one.example], from: ['spiffe://east.example/*']}}]"
        ),
        format!("protocol: http, {apps}, policy: audit, {denied}"),
    ] {
        assert_eq!(told(&closed), Findings::new(), "{closed}");
    }
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
