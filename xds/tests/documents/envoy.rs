//! What an Envoy in the place of a gateway is told, and what is said of what it cannot be told.

use std::fs;

use tempfile::TempDir;
use zeugma_xds::{Code, EnvoyFile, Findings, NodeOptions, Severity, envoy_files};

use crate::support::{EAST, route};

const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
const JSON: &str = r#"{"keys":[{"use":"x509-svid","kty":"EC","x5c":["TUE9PQ=="]}]}"#;
const FAR: &str = "kind: TrustDomain\nmetadata: { name: far.example }\nspec:";
const ENDPOINT: &str =
    "bundleEndpointURL: 'https://far.example/bundle', bundleEndpointProfile: { type: https_web }";

/// What comes of the documents beside EAST's, with these files beside them.
fn compiled(
    documents: &[&str],
    files: &[(&str, &str)],
) -> Result<(Vec<EnvoyFile>, Findings), Findings> {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("bundles")).unwrap();
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let mut all = EAST.to_owned();
    for document in documents {
        let document = document.trim_start().trim_start_matches("---\n");
        let document = document.trim_start_matches("apiVersion: zeugma.dev/v1alpha1\n");
        all.push_str("---\napiVersion: zeugma.dev/v1alpha1\n");
        all.push_str(document);
        all.push('\n');
    }
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, all).unwrap();
    envoy_files(&path, &NodeOptions::default(), dir.path())
}

/// Whether the file of what is trusted holds a text.
fn trusts(files: &[EnvoyFile], text: &str) -> bool {
    let file = files.iter().find(|file| file.name == "secret-trust.pb");
    let bytes = &file.unwrap().bytes;
    bytes
        .windows(text.len())
        .any(|part| part == text.as_bytes())
}

const OWN: (&str, &str) = ("bundles/east.example.pem", PEM);

#[test]
fn envoy_trusts_the_bundles_of_the_folder_and_of_trust_domain_documents() {
    let far = format!("{FAR} {{ bundle: far.json, {ENDPOINT} }}");
    let near = FAR.replace("far", "near") + " { bundle: near.pem }";
    let files = [OWN, ("far.json", JSON), ("near.pem", PEM)];
    let (files, findings) = compiled(&[&far, &near], &files).unwrap();
    assert!(findings.is_empty(), "{findings:?}");
    for name in ["east.example", "far.example", "near.example", "near.pem"] {
        assert!(trusts(&files, name), "{name}");
    }
    let anchor = "-----BEGIN CERTIFICATE-----\nTUE9PQ==\n-----END CERTIFICATE-----\n";
    assert!(trusts(&files, anchor));
}

#[test]
fn a_trust_domain_of_which_envoy_would_trust_nobody_is_told() {
    let fetched = format!("{FAR} {{ {ENDPOINT} }}");
    let of_file = format!("{FAR} {{ bundle: far.json }}");
    let no_anchor = r#"{"keys":[{"use":"jwt-svid","kty":"EC"}]}"#;
    for (document, file, code) in [
        (&fetched, JSON, Code::Unused),
        (&of_file, r#"{"keys":[]}"#, Code::NoEffect),
        (&of_file, no_anchor, Code::NoEffect),
    ] {
        let (files, findings) = compiled(&[document], &[OWN, ("far.json", file)]).unwrap();
        let told: Vec<_> = (findings.iter())
            .map(|finding| (finding.code, finding.severity))
            .collect();
        assert_eq!(told, [(code, Severity::Warning)], "{file}");
        let said = &findings.iter().next().unwrap().message;
        assert!(
            said.contains("nobody of trust domain `far.example`"),
            "{said}"
        );
        assert!(!trusts(&files, "far.example"), "{file}");
    }
}

#[test]
fn a_bundle_that_envoy_cannot_be_given_is_an_error() {
    let of_file = format!("{FAR} {{ bundle: far.json }}");
    let again = ("bundles/far.example.pem", PEM);
    let both = ("bundles/east.example.json", JSON);
    for (files, code) in [
        (vec![OWN, ("far.json", "{}")], Code::Unreadable),
        (vec![OWN, ("far.json", "")], Code::Unreadable),
        (vec![OWN], Code::Unreadable),
        (vec![(OWN.0, ""), ("far.json", JSON)], Code::Unreadable),
        (vec![OWN, again, ("far.json", JSON)], Code::Duplicate),
        (vec![OWN, both, ("far.json", JSON)], Code::Duplicate),
        (vec![("far.json", r#"{"keys":[]}"#)], Code::Unsafe),
    ] {
        let findings = compiled(&[&of_file], &files).unwrap_err();
        let codes: Vec<_> = findings.iter().map(|finding| finding.code).collect();
        assert_eq!(codes, [code], "{files:?}: {findings:?}");
    }
}

/// What broke: an ID that is denied was let in by Envoy, which sees the gateway alone that attests it.
#[test]
fn a_denial_of_whom_envoy_does_not_see_is_an_error() {
    let west = "kind: MeshPeer\nmetadata: { name: west }\nspec: { cluster: west, locality: us/us-1, \
        gateways: ['192.0.2.7:15443'], spiffeIDs: ['spiffe://west.example/gw'], attests: [west.example] }";
    let cart = "spiffe://west.example/ns/shop/sa/cart";
    let gateway = "spiffe://west.example/gw";
    let all = "allow: [{ from: ['spiffe://west.example/*'] }]";
    let export = "export: { to: [west] }";
    for (allow, deny, export, is_let_past) in [
        (all, format!("from: ['{cart}']"), export, true),
        (
            all,
            format!("from: ['{cart}'], methods: [GET]"),
            export,
            true,
        ),
        (
            "allow: [{ methods: [GET] }]",
            format!("from: ['{cart}']"),
            export,
            true,
        ),
        (all, format!("from: ['{cart}'], via: [west]"), export, true),
        (all, format!("from: ['{cart}', '{gateway}']"), export, false),
        (
            all,
            format!("from: ['{cart}'], listeners: [mesh]"),
            export,
            true,
        ),
        (
            "allow: [{ from: ['spiffe://west.example/ns/*'] }]",
            format!("from: ['{cart}']"),
            export,
            false,
        ),
        (
            "allow: [{ from: ['spiffe://west.example/*'], via: [west] }]",
            format!("from: ['{cart}']"),
            export,
            false,
        ),
        (
            all,
            "from: ['spiffe://north.example/*']".to_owned(),
            export,
            false,
        ),
        (
            "allow: [{ listeners: [apps] }]",
            format!("from: ['{cart}']"),
            "policy: enforce",
            false,
        ),
    ] {
        let rest = "protocol: http, backends: [{ endpoints: ['10.0.0.1:80'] }]";
        let orders = route(
            "orders",
            &format!("{rest}, {allow}, deny: [{{ {deny} }}], {export}"),
        );
        let compiled = compiled(&[west, &orders], &[OWN]);
        let codes: Vec<_> = match &compiled {
            Ok(_) => Vec::new(),
            Err(findings) => findings.iter().map(|finding| finding.code).collect(),
        };
        let expected = if is_let_past {
            vec![Code::Unsafe]
        } else {
            Vec::new()
        };
        assert_eq!(codes, expected, "{allow} {deny}: {compiled:?}");
    }
}

#[test]
fn of_a_route_that_is_hedged_envoy_hedges_nothing_and_is_said_to() {
    let backends =
        "protocol: http, backends: [{endpoints: ['10.0.1.1:80']}], allow: [{listeners: [apps]}]";
    let hedged = route(
        "orders",
        &format!("{backends}, retries: {{hedge: {{after: 50ms}}}}"),
    );
    let not = route(
        "carts",
        &format!("{backends}, retries: {{hedge: {{after: none}}}}"),
    );
    let (_, findings) = compiled(&[&hedged, &not], &[OWN]).unwrap();
    let [finding] = &findings.iter().collect::<Vec<_>>()[..] else {
        panic!("{findings:?}");
    };
    assert_eq!(
        (finding.code, finding.severity),
        (Code::Unused, Severity::Warning)
    );
    assert!(
        finding.message.contains("hedges none of this route"),
        "{finding:?}"
    );
}

/// Envoy knows of no port in a server name: `outbound_.80_._.a.example` is a name below `a.example` to it.
#[test]
fn who_is_let_in_by_a_name_below_a_host_of_the_route_is_no_business_of_envoys() {
    let hosts = "hosts: [a.example, '*.a.example', '*.b.example']";
    for (rules, is_let_past) in [
        ("allow: [{ sni: ['*.a.example'] }]", true),
        ("allow: [{ sni: [a.example, '*.a.example'] }]", true),
        ("allow: [{ sni: [a.example, '*.b.example'] }]", false),
        // A wildcard of the route takes it.
        ("allow: [{ sni: ['*.c.b.example'] }]", true),
        ("allow: [{ sni: [c.b.example] }]", false),
        // It denies one more.
        (
            "allow: [{ sni: [a.example] }], deny: [{ sni: ['*.a.example'] }]",
            false,
        ),
    ] {
        let rest = "protocol: http, backends: [{ endpoints: ['10.0.0.1:80'] }]";
        let orders = route("orders", &format!("{rest}, {hosts}, {rules}"));
        let told = match compiled(&[&orders], &[OWN]) {
            Ok(_) => String::new(),
            Err(findings) => findings.to_string(),
        };
        let expected = "for a name below it";
        assert_eq!(told.contains(expected), is_let_past, "{rules}: {told}");
    }
}

/// What broke: of two lines of a header one was allowed, and Envoy let the request in.
#[test]
fn who_is_let_in_by_a_header_s_value_is_no_business_of_envoys() {
    for (headers, is_let_past) in [
        ("x-tenant: [acme]", true),
        ("x-tenant: ['*', 'beta-*']", true),
        ("x-env: ['*'], x-tenant: ['beta-*']", true),
        ("x-tenant: ['*']", false),
    ] {
        let rest = "protocol: http, backends: [{ endpoints: ['10.0.0.1:80'] }]";
        let orders = route(
            "orders",
            &format!("{rest}, allow: [{{ headers: {{ {headers} }} }}]"),
        );
        let told = match compiled(&[&orders], &[OWN]) {
            Ok(_) => String::new(),
            Err(findings) => findings.to_string(),
        };
        let expected = "one line of a header that fits";
        assert_eq!(told.contains(expected), is_let_past, "{headers}: {told}");
    }
}
