//! `prules.md` against the tests that it names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const TABLE: &str = include_str!("../prules.md");
const RULES: usize = 52;
const FOLDERS: [&str; 3] = ["xds", "proxy", "tests"];

/// What is between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Whether it is the name of a test: a sentence.
fn is_test(name: &str) -> bool {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    name.chars().all(good) && name.matches('_').count() > 3
}

fn names_in(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names_in(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let mut is_test = false;
            for line in fs::read_to_string(&path).unwrap().lines().map(str::trim) {
                let declared = line.strip_prefix("async ").unwrap_or(line);
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some(rest) = declared.strip_prefix("fn ").filter(|_| is_test) {
                    names.extend(rest.split_once('(').map(|(name, _)| name.to_owned()));
                    is_test = false;
                } else if !line.starts_with(['#', '/']) {
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn every_rule_has_a_line_and_every_test_that_is_named_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut known = BTreeSet::new();
    for folder in FOLDERS {
        names_in(&root.join(folder), &mut known);
    }
    let mut wrong = Vec::new();
    for rule in 1..=RULES {
        let begin = format!("| P{rule} ");
        let mut lines = TABLE.lines().filter(|line| line.starts_with(&begin));
        let (Some(line), None) = (lines.next(), lines.next()) else {
            wrong.push(format!("P{rule}: not one line"));
            continue;
        };
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").collect();
        let [_, server, client] = cells[..] else {
            wrong.push(format!("P{rule}: not two sides"));
            continue;
        };
        for side in [server, client] {
            let named: Vec<&str> = quoted(side).filter(|name| is_test(name)).collect();
            if named.is_empty() && !side.trim().starts_with("not: ") {
                wrong.push(format!("P{rule}: neither a test nor a reason in `{side}`"));
            }
            let missing = named.iter().filter(|name| !known.contains(**name));
            wrong.extend(missing.map(|name| format!("P{rule}: no test is called `{name}`")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
