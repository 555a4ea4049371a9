//! `zeugma config`, as a person types it.
#![expect(clippy::unwrap_used, reason = "tests")]

mod simulate;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Command, Output};

use serde_json::Value;

const GOOD: &str = r#"apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    mesh: { address: "127.0.0.1:0", role: mesh }
    apps: { address: "127.0.0.1:0", role: workloads }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: west }
spec:
  cluster: west
  locality: us/us-1
  gateways: ["gw.west.example:15443"]
  spiffeIDs: ["spiffe://west.example/zeugma/gateway"]
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: orders, namespace: shop }
spec:
  protocol: http
  backends: [{ endpoints: ["10.0.1.10:8080", "10.0.1.11:8080"] }, { peer: west }]
  allow: [{ listeners: [apps] }]
"#;

fn zeugma(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zeugma"))
        .args(args)
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn check(text: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let output = zeugma(&[&["config", "check", "--config", path], args].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(path, "mesh.yaml");
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

// The share by hand: 1 of 2 healthy is 50 %, and 50 % of `start: 70%` is kept: 71 %.
#[test]
fn check_says_what_the_numbers_mean() {
    let (code, out, err) = check(GOOD, &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(
        out,
        "gateway east-gw (cluster east, eu/eu-1): 2 listener(s), 1 service(s), 1 peer(s)

shop/orders:80
  1. eu/eu-1 (2 endpoints): with 1 of 2 endpoints down 29 % leaves eu/eu-1, with 2 down all leaves it for peer west
  2. peer west (1 endpoint)
  with nothing healthy, endpoints that only traffic found bad are used

"
    );
}

#[test]
fn check_says_in_which_order_rules_are_asked() {
    let rules = "  rules:\n    - { name: rest, split: [{ backends: [backend-1], weight: 3 }] }\n    \
        - { matches: [{ method: GET, path: { prefix: /v1 } }] }\n  allow:";
    let (code, out, err) = check(&GOOD.replace("  allow:", rules), &[]);
    assert_eq!(code, Some(0), "{err}");
    let first = out.find("  requests by rule 1, GET /v1/*: as above\n");
    let second = out.find("  requests by rule rest, all: 100% to backend-1\n");
    assert!(first.is_some() && first < second, "{out}");
    let only = "  rules: [{ matches: [{ query: { a: b } }] }]\n  allow:";
    let (_, out, _) = check(&GOOD.replace("  allow:", only), &[]);
    assert!(
        out.contains("  requests by rule 0, a=b: as above\n"),
        "{out}"
    );
    assert!(out.contains("none of these are refused (404)"), "{out}");
}

#[test]
fn check_exits_2_and_shows_each_finding() {
    let bad = GOOD
        .replace("peer: west", "peer: wset")
        .replace("[apps]", "[aps]");
    let (code, out, err) = check(&bad, &[]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert_eq!(
        err,
        "error[ZG0107]: no MeshPeer `wset`
  --> mesh.yaml:27:75
   |
27 |   backends: [{ endpoints: [\"10.0.1.10:8080\", \"10.0.1.11:8080\"] }, { peer: wset }]
   |                                                                           ^^^^ spec.backends[1].peer
   |
   = help: did you mean `west`?

error[ZG0107]: no listener `aps`
  --> mesh.yaml:28:25
   |
28 |   allow: [{ listeners: [aps] }]
   |                         ^^^ spec.allow[0].listeners[0]
   |
   = help: did you mean `apps`?

2 error(s), 0 warning(s)
"
    );
}

#[test]
fn check_prints_json_for_scripts() {
    let (code, out, _) = check(GOOD, &["-o", "json"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(json["apiVersion"], "cli.zeugma.dev/v1");
    assert_eq!(json["ok"], true);
    assert_eq!(json["gateways"][0]["name"], "east-gw");
    assert_eq!(
        json["gateways"][0]["services"][0]["levels"][0]["allLeavesWithDown"],
        2
    );

    let (code, out, _) = check(&GOOD.replace("http\n", "htp\n"), &["-o", "json"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(2));
    assert_eq!(json["ok"], false);
    let finding = &json["findings"][0];
    assert_eq!(finding["code"], "ZG0102");
    assert_eq!(finding["path"], "spec.protocol");
    assert_eq!(finding["line"], 26);
    assert_eq!(finding["help"], "did you mean `http`?");
}

#[test]
fn warnings_fail_only_when_strict() {
    let unused = GOOD.replace("  allow:", "  failover: { order: [] }\n  allow:");
    let (code, out, err) = check(&unused, &[]);
    assert_eq!(code, Some(0));
    assert!(
        err.contains("warning[ZG0112]: backend `west` is not used"),
        "{err}"
    );
    assert!(out.contains("shop/orders:80"), "{out}");
    assert_eq!(check(&unused, &["--strict"]).0, Some(2));
}

#[test]
fn what_never_names_is_no_finding() {
    let never = "  failover: { never: [{ cluster: west }] }\n  allow:";
    let (code, out, err) = check(&GOOD.replace("  allow:", never), &["--strict"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(!out.contains("peer west"), "{out}");
}

#[test]
fn every_gateway_of_a_file_is_checked_unless_one_is_named() {
    let other = GOOD
        .split("---")
        .next()
        .unwrap()
        .replace("east-gw", "east-gw-2");
    let both = format!("{GOOD}---\n{other}");
    let (code, out, _) = check(&both, &[]);
    assert_eq!(code, Some(0));
    assert_eq!(out.matches("gateway east-gw").count(), 2, "{out}");
    let (code, out, _) = check(&both, &["--name", "east-gw-2"]);
    assert_eq!((code, out.matches("gateway east-gw").count()), (Some(0), 1));
    let (code, _, err) = check(&both, &["--name", "east"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("no MeshGateway is called `east`"), "{err}");
}

#[test]
fn a_missing_file_is_named() {
    let output = zeugma(&["config", "check", "--config", "no/such/file.yaml"]);
    assert_eq!(output.status.code(), Some(2));
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(
        err.contains("error[ZG0105]: cannot read") && err.contains("no/such/file.yaml"),
        "{err}"
    );
}

#[test]
fn schema_prints_a_json_schema() {
    let output = zeugma(&["config", "schema"]);
    assert_eq!(output.status.code(), Some(0));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        json["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
}

/// What `config diff` says of two texts, and how it exits.
fn diff(old: &str, new: &str, args: &[&str]) -> (Option<i32>, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, text: &str| {
        let folder = dir.path().join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("mesh.yaml"), text).unwrap();
        folder.to_str().unwrap().to_owned()
    };
    let (old, new) = (path("old", old), path("new", new));
    let output = zeugma(&[&["config", "diff", &old, &new], args].concat());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn what_is_only_written_otherwise_is_no_difference() {
    let other = GOOD
        .replace(
            "{ name: east-gw }",
            "\n  # The gateway.\n  name: \"east-gw\"",
        )
        .replace("  protocol: http\n", "  port: 80\n  protocol: http\n");
    let (code, out, err) = diff(GOOD, &other, &[]);
    let same = "both mean the same\n";
    assert_eq!((code, out.as_str(), err.as_str()), (Some(0), same, ""));
}

// With 1 of 2 down 71 % stay, with 1 of 3 two thirds are healthy: 67 of 70 parts, 95 %.
#[test]
fn diff_says_what_a_change_opens_closes_and_moves() {
    let new = GOOD
        .replace(
            "\"10.0.1.11:8080\"]",
            "\"10.0.1.11:8080\", \"10.0.1.12:8080\"]",
        )
        .replace(
            "[{ listeners: [apps] }]",
            "[{ from: ['spiffe://west.example/*'] }]\n  export: { to: [west] }",
        )
        .replace(
            "    apps: {",
            "    more: { address: \"127.0.0.1:1\", role: workloads }\n    apps: {",
        );
    let (code, out, err) = diff(GOOD, &new, &[]);
    assert_eq!((code, err.as_str()), (Some(2), ""));
    let (meaning, rest) = out
        .split_once("what a control plane would tell it\n")
        .unwrap();
    for line in [
        "    + listener more\n",
        // Its peer has a name, which is resolved by who has the cluster: its addresses stand in it.
        "    ~ cluster outbound|shop/orders:80\n",
        "what would be ended\n    what only `may call` of service shop/orders:80 let in as it is\n",
    ] {
        assert!(rest.contains(line), "{line}: {rest}");
    }
    assert!(!rest.contains("listener apps"), "{rest}");
    assert_eq!(
        meaning,
        "gateway east-gw
+ listener more
    address:
      + 127.0.0.1:1
~ service shop/orders:80
    endpoints:
      + level 1: 10.0.1.12:8080
    exported to:
      + west
    may call: (ends what only this let in)
      - on listener apps
      + from spiffe://west.example/*
    with endpoints down:
      - 1. eu/eu-1 (2 endpoints): with 1 of 2 endpoints down 29 % leaves eu/eu-1, with 2 down all leaves it for peer west
      + 1. eu/eu-1 (3 endpoints): with 1 of 3 endpoints down 5 % leaves eu/eu-1, with 3 down all leaves it for peer west
"
    );
    let (code, out, _) = diff(GOOD, &new, &["-o", "json"]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(2));
    assert_eq!(json["kind"], "ConfigDiff");
    assert_eq!(json["same"], false);
    let service = &json["gateways"][0]["differences"][1];
    assert_eq!(service["name"], "shop/orders:80");
    assert_eq!(service["change"], "changed");
    assert_eq!(service["fields"][2]["field"], "may call");
    assert_eq!(service["fields"][2]["endsConnections"], true);
    let gateway = &json["gateways"][0];
    let more = serde_json::json!({ "type": "listener", "name": "more", "change": "added" });
    assert!(
        gateway["resources"].as_array().unwrap().contains(&more),
        "{gateway}"
    );
    assert_eq!(gateway["ends"].as_array().unwrap().len(), 1);
    assert_eq!(json["live"], Value::Null);
}

/// What travels is little where little changes, and what only moves new connections ends nothing.
#[test]
fn diff_of_one_endpoint_is_its_resources_alone_and_ends_nothing() {
    let old = GOOD.replace("gw.west.example:15443", "192.0.2.7:15443");
    let new = old.replace("10.0.1.11:8080", "10.0.1.12:8080");
    let (code, out, _) = diff(&old, &new, &[]);
    assert_eq!(code, Some(2));
    let (_, rest) = out
        .split_once("what a control plane would tell it\n")
        .unwrap();
    // For its own workloads, and for other clusters.
    assert_eq!(
        rest,
        "    ~ endpoints of cluster outbound|shop/orders:80
    ~ endpoints of cluster own|shop/orders:80
"
    );
}

#[test]
fn a_service_that_is_gone_and_a_gateway_that_is_new_are_told() {
    let fewer = GOOD
        .split("---\n")
        .take(2)
        .collect::<Vec<_>>()
        .join("---\n");
    let (code, out, _) = diff(GOOD, &fewer, &[]);
    assert_eq!(code, Some(2));
    assert!(out.contains("- service shop/orders:80\n"), "{out}");
    assert!(
        out.contains("what is open by service shop/orders:80: it is gone\n"),
        "{out}"
    );
    let gateway = GOOD.split("---").next().unwrap();
    let both = format!("{GOOD}---\n{}", gateway.replace("east-gw", "other-gw"));
    let (code, out, _) = diff(GOOD, &both, &[]);
    assert_eq!((code, out.as_str()), (Some(2), "gateway other-gw is new\n"));
}

#[test]
fn diff_with_a_wrong_configuration_exits_65_and_shows_the_findings() {
    let (code, out, err) = diff(GOOD, &GOOD.replace("peer: west", "peer: wset"), &[]);
    assert_eq!((code, out.as_str()), (Some(65), ""));
    assert!(err.contains("did you mean `west`?"), "{err}");
}

#[test]
fn fmt_lays_files_out_and_check_names_those_that_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    let loose = GOOD.replace("{ name: west }", "{name:   west}   # the other side");
    fs::write(&path, &loose).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let link = dir.path().join("link.yaml");
    std::os::unix::fs::symlink("mesh.yaml", &link).unwrap();
    let fmt = |args: &[&str]| {
        let output = zeugma(&[&["config", "fmt"], args].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let at = link.to_str().unwrap();
    let named = format!("{at}\n");
    assert_eq!(fmt(&["--check", at]), (Some(2), named.clone()));
    assert_eq!(fs::read_to_string(&path).unwrap(), loose);
    assert_eq!(fmt(&[at]), (Some(0), named));
    let written = fs::read_to_string(&path).unwrap();
    assert_eq!(
        written,
        GOOD.replace("{ name: west }", "{ name: west }   # the other side")
    );
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    for args in [&[at][..], &["--check", at]] {
        assert_eq!(fmt(args), (Some(0), String::new()));
    }
}

#[test]
fn fmt_leaves_what_it_cannot_keep_and_exits_65() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    let text = "kind: &kind MeshPeer\n";
    fs::write(&path, text).unwrap();
    let output = zeugma(&["config", "fmt", path.to_str().unwrap()]);
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{err}");
    assert!(err.starts_with("error[ZG0114]: "), "{err}");
    assert!(
        err.contains("mesh.yaml: line 1: an anchor or a tag"),
        "{err}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), text);
    let missing = zeugma(&["config", "fmt", "no/such/file.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
}

#[test]
fn the_reference_is_what_the_program_prints() {
    let printed = zeugma(&["config", "reference"]);
    assert_eq!(printed.status.code(), Some(0));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference.md");
    let written = fs::read(path).unwrap_or_default();
    assert!(
        written == printed.stdout,
        "docs/reference.md is stale: cargo run -- config reference > docs/reference.md"
    );
}

#[test]
fn each_command_has_its_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    let output = zeugma(&["completion", "man", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0));
    for command in ["check", "diff", "fmt", "reference", "schema"] {
        let page = dir.path().join(format!("zeugma-config-{command}.1"));
        assert!(page.exists(), "{}", page.display());
    }
}

#[test]
fn what_is_no_command_exits_64() {
    assert_eq!(zeugma(&["config", "chekc"]).status.code(), Some(64));
}

#[test]
fn compile_writes_what_envoy_reads_and_says_where_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("mesh.yaml"), GOOD).unwrap();
    let compile = || {
        zeugma(&[
            "config",
            "compile",
            "--config",
            &path("mesh.yaml"),
            "--out",
            &path("out"),
        ])
    };
    // The bundles are not there.
    let output = compile();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{err}");
    assert!(err.contains("bundles/: cannot be read"), "{err}");
    fs::create_dir(path("bundles")).unwrap();
    let params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let anchor = params.self_signed(&rcgen::KeyPair::generate().unwrap());
    fs::write(path("bundles/east.example.pem"), anchor.unwrap().pem()).unwrap();
    for _ in 0..2 {
        let output = compile();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let bootstrap = String::from_utf8(output.stdout).unwrap();
        let bootstrap = bootstrap.trim_end();
        let text = fs::read_to_string(bootstrap).unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["node"]["id"], "east-gw");
        for kind in ["lds_config", "cds_config"] {
            let source = &json["dynamic_resources"][kind]["path_config_source"]["path"];
            assert!(fs::metadata(source.as_str().unwrap()).unwrap().len() > 0);
        }
    }
    // What Envoy cannot deny is not handed to it.
    let attests = "gateway\"]\n  attests: [west.example]";
    let denies = "export: { to: [west] }\n  deny: [{ via: [west] }]\n  allow:";
    let text = GOOD
        .replace("gateway\"]", attests)
        .replace("allow:", denies);
    fs::write(path("mesh.yaml"), text).unwrap();
    let output = compile();
    let err = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{err}");
    assert!(err.contains("there this denies nobody"), "{err}");
    fs::write(path("mesh.yaml"), GOOD.replace("role: mesh", "role: mash")).unwrap();
    assert_eq!(compile().status.code(), Some(65));
    fs::remove_dir_all(path("out")).unwrap();
    fs::write(path("out"), "a file").unwrap();
    assert_eq!(compile().status.code(), Some(1));
}
