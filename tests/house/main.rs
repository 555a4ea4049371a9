//! The rules of the house: who may know whom (`ARCHITECTURE.md`), held by a test.
//!
//! Every check collects all it finds, so that one run names everything there is to mend.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::expect_used, reason = "tests")]

mod codes;
mod sources;
mod workspace;

use std::collections::{BTreeMap, BTreeSet};

use sources::{code_lines, own_files, rust_files, without_tests, words};
use workspace::{DependencyKind, Workspace, read, tree};

/// What the core may be built from, its dependencies' dependencies included. A name is added here
/// only for a crate that does no IO and reads no clock.
const CORE_ALLOWED: &[&str] = &[
    // Ours to name: networks, error texts, the certificates handed over by the shell.
    "ipnet",
    "thiserror",
    "x509-parser",
    // What those three need.
    "asn1-rs",
    "data-encoding",
    "deranged",
    "der-parser",
    "lazy_static",
    "memchr",
    "minimal-lexical",
    "nom",
    "num-bigint",
    "num-conv",
    "num-integer",
    "num-traits",
    "oid-registry",
    "powerfmt",
    "rusticata-macros",
    "serde",
    "serde_core",
    "time",
    "time-core",
];

/// Which of ours each package may know, in any kind of dependency.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("zeugma-core", &[]),
    ("zeugma-xds", &["zeugma-core"]),
    ("zeugma-ca", &["zeugma-core"]),
    ("zeugma-proxy", &["zeugma-core", "zeugma-xds"]),
    (
        "zeugma",
        &["zeugma-core", "zeugma-xds", "zeugma-ca", "zeugma-proxy"],
    ),
];

/// Crates with an owner: who may link them (tests of other packages may link some, see the rule).
const OWNED: &[Owned] = &[
    Owned {
        name: "envoy-types",
        owners: &["zeugma-xds"],
        // Control planes that are not ours, and what they say.
        in_tests: InTests::Anyone,
    },
    Owned {
        name: "prost",
        // In the gateway for the Workload API and health reports, see `messages_stay_in_their_modules`.
        owners: &["zeugma-xds", "zeugma-proxy"],
        in_tests: InTests::Anyone,
    },
    Owned {
        name: "tonic-prost",
        owners: &["zeugma-xds", "zeugma-ca", "zeugma-proxy"],
        in_tests: InTests::Anyone,
    },
    Owned {
        name: "prost-reflect",
        owners: &["zeugma-xds"],
        in_tests: InTests::OwnersOnly,
    },
    // In the gateway for CSRs alone, see `only_the_ca_signs`.
    Owned {
        name: "rcgen",
        owners: &["zeugma-ca", "zeugma-proxy"],
        in_tests: InTests::Anyone,
    },
    Owned {
        name: "rusqlite",
        owners: &["zeugma-ca"],
        in_tests: InTests::OwnersOnly,
    },
    Owned {
        name: "tonic",
        owners: &["zeugma-xds", "zeugma-ca", "zeugma-proxy"],
        in_tests: InTests::Anyone,
    },
    Owned {
        name: "prometheus-client",
        owners: &["zeugma-proxy"],
        in_tests: InTests::OwnersOnly,
    },
    Owned {
        name: "clap",
        owners: &["zeugma"],
        in_tests: InTests::OwnersOnly,
    },
    Owned {
        name: "anyhow",
        owners: &["zeugma"],
        in_tests: InTests::Anyone,
    },
];

/// A crate that only some packages may link.
struct Owned {
    name: &'static str,
    owners: &'static [&'static str],
    in_tests: InTests,
}

/// Who may link an owned crate in tests.
#[derive(PartialEq, Eq)]
enum InTests {
    Anyone,
    OwnersOnly,
}

/// Words that no line of the core's own code may hold.
const NOT_IN_CORE: &[&str] = &[
    "tokio",
    "rustls",
    "Instant::now",
    "SystemTime",
    "std::env",
    "std::fs",
    "std::io",
    "std::process",
    "std::thread",
    "fastrand",
    "getrandom",
    "TcpStream",
    "UdpSocket",
    "async",
    "HashMap",
    "HashSet",
];

#[test]
fn packages_know_only_whom_the_architecture_lets_them() {
    let workspace = Workspace::load();
    let allowed: BTreeMap<_, _> = MAY_KNOW.iter().copied().collect();
    let ours: BTreeSet<&str> = workspace.names().collect();
    let mut found = Vec::new();
    for package in &workspace.packages {
        let Some(may) = allowed.get(package.name.as_str()) else {
            found.push(format!(
                "{}: a new package; say in MAY_KNOW whom it may know",
                package.name
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if ours.contains(name) && !may.contains(&name) {
                found.push(format!(
                    "{}: depends on {name}, which it may not know",
                    package.name
                ));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn the_core_is_built_from_the_allow_list_alone() {
    let allowed: BTreeSet<&str> = CORE_ALLOWED.iter().copied().collect();
    let found: Vec<_> = tree("zeugma-core")
        .into_iter()
        .filter(|name| name != "zeugma-core" && !allowed.contains(name.as_str()))
        .map(|name| format!("zeugma-core: {name} is not on the allow-list CORE_ALLOWED"))
        .collect();
    assert_none(&found);
}

#[test]
fn crates_with_an_owner_are_linked_by_their_owners_alone() {
    let workspace = Workspace::load();
    let mut found = Vec::new();
    for package in &workspace.packages {
        for dependency in &package.dependencies {
            let Some(rule) = OWNED.iter().find(|rule| rule.name == dependency.name) else {
                continue;
            };
            let in_tests = dependency.kind == DependencyKind::Development;
            let ok = rule.owners.contains(&package.name.as_str())
                || (in_tests && rule.in_tests == InTests::Anyone);
            if !ok {
                found.push(format!(
                    "{}: links {}, which belongs to {}",
                    package.name,
                    rule.name,
                    rule.owners.join(", ")
                ));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn the_core_names_no_runtime_no_clock_and_no_random_source() {
    let mut found = Vec::new();
    for file in own_files("proxy/core/src") {
        for (number, line) in code_lines(&without_tests(&read(&file))) {
            for word in NOT_IN_CORE {
                if words(&line, word) {
                    found.push(format!("{file}:{number}: the core may not know {word}"));
                }
            }
        }
    }
    assert_none(&found);
}

#[test]
fn only_the_ca_signs() {
    let mut found = Vec::new();
    for folder in ["proxy/src", "proxy/core/src", "xds/src"] {
        for file in own_files(folder) {
            for (number, line) in code_lines(&without_tests(&read(&file))) {
                for call in ["signed_by", "self_signed"] {
                    if words(&line, call) {
                        found.push(format!("{file}:{number}: {call}: only `ca` signs"));
                    }
                }
            }
        }
    }
    assert_none(&found);
}

#[test]
fn metrics_are_the_business_of_one_file() {
    let mut found = Vec::new();
    for file in rust_files("proxy/src") {
        if file == "proxy/src/metrics.rs" || file.starts_with("proxy/src/metrics/") {
            continue;
        }
        for (number, line) in code_lines(&read(&file)) {
            if words(&line, "prometheus_client") {
                found.push(format!(
                    "{file}:{number}: prometheus types stay in proxy/src/metrics.rs"
                ));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn messages_stay_in_their_modules() {
    let mut found = Vec::new();
    for file in rust_files("proxy/src") {
        let is_at_home = |word: &str| match word {
            "prost" if file == "proxy/src/peer/message.rs" => true,
            _ => file.starts_with("proxy/src/identity/"),
        };
        for (number, line) in code_lines(&read(&file)) {
            for word in ["prost", "tonic", "tonic_prost"] {
                if words(&line, word) && !is_at_home(word) {
                    found.push(format!(
                        "{file}:{number}: {word} stays in proxy/src/identity and proxy/src/peer/message.rs"
                    ));
                }
            }
        }
    }
    assert_none(&found);
}

#[test]
fn no_test_is_ignored() {
    let mut found = Vec::new();
    for folder in ["src", "proxy", "xds", "ca", "tests", "benches"] {
        for file in rust_files(folder) {
            for (number, line) in code_lines(&read(&file)) {
                if line.contains(concat!("#[", "ignore")) {
                    found.push(format!("{file}:{number}: an ignored test proves nothing"));
                }
            }
        }
    }
    assert_none(&found);
}

#[test]
fn every_package_inherits_the_lints_and_forbids_unsafe_code() {
    let workspace = Workspace::load();
    assert!(read("Cargo.toml").contains("\nunsafe_code = \"forbid\"\n"));
    let found: Vec<_> = workspace
        .packages
        .iter()
        .filter(|package| !read(&package.manifest).contains("[lints]\nworkspace = true\n"))
        .map(|package| format!("{}: add `[lints] workspace = true`", package.manifest))
        .collect();
    assert_none(&found);
}

#[test]
fn versions_stand_only_in_the_workspace_table() {
    let workspace = Workspace::load();
    let mut found = Vec::new();
    for package in &workspace.packages {
        let mut section = String::new();
        for (number, line) in read(&package.manifest).lines().enumerate() {
            let line = line.trim();
            if line.starts_with('[') {
                section = line.to_owned();
                continue;
            }
            let dependency = section.contains("dependencies")
                && section != "[workspace.dependencies]"
                && line.contains('=')
                && !line.starts_with('#');
            if dependency && !line.contains("workspace = true") {
                found.push(format!(
                    "{}:{}: `{line}`: put the version into the root's table and write `.workspace = true`",
                    package.manifest,
                    number + 1
                ));
            }
        }
    }
    assert_none(&found);
}

#[test]
fn every_package_is_apache_2_and_is_not_published_by_accident() {
    assert!(read("LICENSE").contains("Apache License\n                           Version 2.0"));
    let mut found = Vec::new();
    for package in Workspace::load().packages {
        if package.license.as_deref() != Some("Apache-2.0") {
            found.push(format!("{}: license is not inherited", package.manifest));
        }
        if !package.unpublished {
            found.push(format!("{}: publish is not inherited", package.manifest));
        }
    }
    assert_none(&found);
}

#[test]
fn default_members_name_every_member_so_that_cargo_test_tests_everything() {
    let workspace = Workspace::load();
    assert_eq!(workspace.members, workspace.default_members);
}

#[test]
fn the_cores_clippy_limits_are_the_workspaces() {
    let core = read("proxy/core/clippy.toml");
    let found: Vec<_> = read("clippy.toml")
        .lines()
        // Behind the limits is what may not be called, of which the core's list has more.
        .take_while(|line| !line.starts_with("disallowed-"))
        .filter(|line| line.contains('='))
        .filter(|line| !core.lines().any(|other| other == *line))
        .map(|line| format!("proxy/core/clippy.toml: `{line}` of clippy.toml is missing"))
        .collect();
    assert_none(&found);
}

#[test]
fn links_between_the_documents_lead_somewhere() {
    let mut found = Vec::new();
    for document in workspace::markdown_files() {
        let text = read(&document);
        let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
        for target in text.split("](").skip(1) {
            let target = target.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !workspace::root().join(folder).join(target).exists() {
                found.push(format!("{document}: the link to {target} leads nowhere"));
            }
        }
    }
    assert_none(&found);
}

#[track_caller]
fn assert_none(found: &[String]) {
    assert!(found.is_empty(), "{}", found.join("\n"));
}
