//! The table of codes, held against the sources and the tests.

use std::collections::{BTreeMap, BTreeSet};

use zeugma_core::codes::{self, PREFIX};
use zeugma_core::verdict::Reason;

use crate::assert_none;
use crate::sources::{own_files, rust_files, tests_of, without_tests};
use crate::workspace::read;

/// Where messages are written.
const FOLDERS: &[&str] = &["src", "proxy/src", "proxy/core/src", "xds/src", "ca/src"];
/// What says how codes are looked up, and provokes none.
const NO_PROOF: &[&str] = &["src/explain.rs"];

#[test]
fn every_code_of_the_sources_is_in_the_table_and_every_entry_is_used() {
    let mut used = BTreeMap::new();
    for folder in FOLDERS {
        for file in own_files(folder) {
            if !file.starts_with("proxy/core/src/codes") {
                for code in codes_in(&without_tests(&read(&file))) {
                    used.entry(code).or_insert_with(|| file.clone());
                }
            }
        }
    }
    let mut found: Vec<_> = (used.iter())
        .filter(|(code, _)| codes::find(code).is_none())
        .map(|(code, file)| format!("{file}: {code} is not in proxy/core/src/codes"))
        .collect();
    found.extend(
        codes::all()
            .filter(|entry| !used.contains_key(entry.code))
            .map(|entry| format!("{}: nothing says it; take it out of the table", entry.code)),
    );
    assert_none(&found);
}

#[test]
fn every_message_of_the_log_has_a_code() {
    let mut found = Vec::new();
    for folder in FOLDERS {
        for file in own_files(folder) {
            let text = without_tests(&read(&file));
            for level in ["info!(", "warn!(", "error!("] {
                for (at, _) in text.match_indices(&format!("tracing::{level}")) {
                    let said = &text[at..];
                    let first = said.split_once('(').unwrap().1.trim_start();
                    if !first.starts_with("code = ") {
                        let line = text[..at].lines().count();
                        found.push(format!("{file}:{line}: a message without a code"));
                    }
                }
                let bare = text.match_indices(level).count();
                if bare != text.match_indices(&format!("tracing::{level}")).count() {
                    found.push(format!("{file}: write tracing::{level}..)"));
                }
            }
        }
    }
    assert_none(&found);
}

// A verdict is provoked by a test that meets its label: every line of an access log that the gateway's
// tests read is held to the code of its label (`tests/gateway/mesh/gateway.rs`).
#[test]
fn every_code_is_provoked_by_a_test() {
    let mut tests = String::new();
    for file in rust_files("tests") {
        if !file.starts_with("tests/house/") {
            tests += &read(&file);
        }
    }
    let black_box = tests.clone();
    for folder in FOLDERS.iter().chain(&["xds/tests"]) {
        for file in rust_files(folder) {
            if !NO_PROOF.contains(&file.as_str()) {
                tests += &tests_of(&file, &read(&file));
            }
        }
    }
    let named = codes_in(&tests);
    let is_met = |code: &str| {
        let reason = (Reason::ALL.iter()).find(|reason| reason.code() == Some(code));
        reason.is_some_and(|reason| black_box.contains(&format!("\"{}\"", reason.label())))
    };
    let mut found = Vec::new();
    for entry in codes::all() {
        let is_provoked = named.contains(entry.code) || is_met(entry.code);
        if !is_provoked && entry.unprovoked.is_none() {
            found.push(format!(
                "{}: no test provokes it: {}",
                entry.code, entry.title
            ));
        }
        if is_provoked && entry.unprovoked.is_some() {
            found.push(format!("{}: a test does provoke it", entry.code));
        }
    }
    assert_none(&found);
}

/// Every code that stands in a text.
fn codes_in(text: &str) -> BTreeSet<String> {
    (text.match_indices(PREFIX))
        .filter_map(|(at, _)| text.get(at..at + PREFIX.len() + 4))
        .filter(|code| {
            code[PREFIX.len()..]
                .bytes()
                .all(|byte| byte.is_ascii_digit())
        })
        .map(str::to_owned)
        .collect()
}
