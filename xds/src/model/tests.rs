//! The reader of plain documents beside the general one, which is right by what it is.

use std::path::Path;

use fastrand::Rng;

use super::*;
use crate::files;

/// Some seconds, unoptimised.
const ROUNDS: usize = 8_000;

/// What a plain route has, in every way that it may be written.
const WRITTEN: &str = r#"
# Of the shop.
apiVersion: zeugma.dev/v1alpha1
kind: 'MeshRoute'
metadata: {name: orders, namespace: "shop"}
spec:
  protocol: http
  port: 443
  hosts: [orders.example, 'other.example', "thi\
    rd.example"] # three
  backends:
  - endpoints:
      - 10.0.1.10:8080
      - {address: "[fd00::1]:80", weight: 3}
    tls: workload
  - peer: west
  allow: [{listeners: [apps]}, {from: ["spiffe://west.example/*"]}]
  "export": {to: [west]}
  health: {}
  retries: {any: false}
  timeouts:
    connect: 5s
    idle: ~
"#;

/// What damage puts in.
const PIECES: &[&str] = &[
    "{", "}", "[", "]", ",", ":", ": ", " ", "  ", "\n", "\n  ", "- ", "-", "#", " # ", "'", "\"",
    "~", "null", "true", "False", "<<: ", "&a ", "*a", "!!str ", "! ", "|\n", ">-\n", "? ",
    "%YAML\n", "\n---\n", "\n...\n", "\t", "0", "12", "1e3", "0x1", ".5", ".inf", "-1", "\u{feff}",
    "é", "\\n", "\\\n", "\r", "\r\n", "{}", "[]", "''", "a: b", "\u{85}", "\u{0}",
];

/// The last document of a text, if it says anything.
fn source(text: &str) -> Option<Source> {
    files::split(Path::new("mesh.yaml"), text).pop()
}

/// What the general reader makes of a route.
fn strictly(source: &Source) -> Option<RouteDocument> {
    let positions = yaml::positions(source).ok()?;
    yaml::read(source, &positions).ok()
}

/// [`WRITTEN`], and the routes of every example and of the reference.
fn routes() -> Vec<Source> {
    let mut all = files::split(Path::new("written.yaml"), WRITTEN);
    let folders = ["examples", "deploy", "tests/interop", "xds/src/reference"];
    for (path, text) in files::of_repository(&folders) {
        all.extend(files::split(&path, &text));
    }
    let kinds = ["kind: MeshRoute\n", "kind: 'MeshRoute'\n"];
    all.retain(|source| kinds.iter().any(|kind| source.text.contains(kind)));
    all
}

#[test]
fn what_is_plain_is_read_as_by_the_general_reader() {
    let routes = routes();
    assert!(routes.len() > 30, "{} routes", routes.len());
    for source in &routes {
        let plain: Option<RouteDocument> = yaml::read_plain(source);
        assert!(plain.is_some(), "{}", source.text);
        let strictly = strictly(source);
        assert_eq!(
            format!("{plain:?}"),
            format!("{strictly:?}"),
            "{}",
            source.text
        );
    }
}

#[test]
fn what_is_damaged_is_not_read_in_another_way() {
    let seed = std::env::var("ZEUGMA_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = Rng::with_seed(seed);
    let routes = routes();
    let (mut plain, mut general) = (0, 0);
    for round in 0..ROUNDS {
        let damaged = damage(&routes[random.usize(..routes.len())].text, &mut random);
        let Some(source) = source(&damaged) else {
            continue;
        };
        let strictly = strictly(&source);
        general += usize::from(strictly.is_some());
        let Some(read): Option<RouteDocument> = yaml::read_plain(&source) else {
            continue;
        };
        plain += 1;
        assert_eq!(
            format!("{:?}", Some(read)),
            format!("{strictly:?}"),
            "ZEUGMA_SEED={seed}, round {round}:\n{}",
            source.text
        );
    }
    // Much of the damage is to comments and to names; little of what is left is not plain.
    assert!(
        plain > ROUNDS / 20 && plain > general * 9 / 10,
        "{plain} of {general}"
    );
}

/// Puts something in or in another's place, takes something out, repeats a line or removes it.
fn damage(text: &str, random: &mut Rng) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for _ in 0..random.usize(1..=2) {
        let at = random.usize(..=text.len());
        let end = (at + random.usize(1..8)).min(text.len());
        let piece = PIECES[random.usize(..PIECES.len())];
        match random.u8(..6) {
            0 | 1 => drop(text.splice(at..at, piece.chars())),
            2 => drop(text.drain(at..end)),
            3 => drop(text.splice(at..end, piece.chars())),
            _ => {
                let whole: String = text.iter().collect();
                let mut lines: Vec<&str> = whole.split('\n').collect();
                let line = lines[random.usize(..lines.len())];
                if random.bool() {
                    lines.insert(random.usize(..=lines.len()), line);
                } else {
                    lines.remove(random.usize(..lines.len()));
                }
                text = lines.join("\n").chars().collect();
            }
        }
    }
    text.into_iter().collect()
}

/// Who decides: the reader of plain documents, the general one, which takes it, or which refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Plain,
    General,
    Nobody,
}

fn by(text: &str) -> By {
    let source = source(text).unwrap();
    let strictly = strictly(&source);
    let plain: Option<RouteDocument> = yaml::read_plain(&source);
    if plain.is_some() {
        assert_eq!(format!("{plain:?}"), format!("{strictly:?}"), "{text}");
    }
    match (plain, strictly) {
        (Some(_), _) => By::Plain,
        (None, Some(_)) => By::General,
        (None, None) => By::Nobody,
    }
}

/// What is too rare at random.
#[test]
fn what_is_not_plain_is_left_to_the_general_reader() {
    use By::{General, Nobody, Plain};

    let mut others: Vec<(String, By)> = Vec::new();
    let query = |query: &str| format!("443\n  rules: [{{matches: [{{query: {query}}}]}}]");
    for (port, expected) in [
        (query("{a: b, c: d}"), Plain),
        (query("{1: a}"), General),
        // The same number, the same name.
        (query("{1: a, 0x1: b}"), Nobody),
        (query("{a: b, a: c}"), Nobody),
        (query("{a: b, \"a\": c}"), Nobody),
        (query("{? [a] : b}"), Nobody),
        (query("{a: .inf}"), Plain),
        (query("{a: 1e999}"), Plain),
        (query("{a: 0x10}"), Plain),
        (query("{a: ~}"), Nobody),
        (query("{~: a}"), Nobody),
        (query("{<<: {a: b}}"), General),
        (query("{\"<<\": b}"), General),
        (query("&a {a: b}"), General),
        (query("{a: !!str 1}"), General),
        ("0443".to_owned(), Nobody),
        ("'443'".to_owned(), Plain),
        ("|-\n    443".to_owned(), Plain),
        ("".to_owned(), Nobody),
        ("443\n  port: 443".to_owned(), Nobody),
        ("443\n  mirror:".to_owned(), Nobody),
        ("443\n  deny: null".to_owned(), Nobody),
        ("443\n  balance: {policy: 'random'}".to_owned(), Plain),
        ("443\n  balance: {policy: {random: ~}}".to_owned(), General),
        ("443\n  balance: {policy: ~}".to_owned(), Plain),
    ] {
        let text = WRITTEN.replace("port: 443", &format!("port: {port}"));
        if by(&text) != expected {
            others.push((port, by(&text)));
        }
    }
    for (text, expected) in [
        (WRITTEN.replace("any: false", "any: 'false'"), General),
        (WRITTEN.replace("any: false", "any: False"), General),
        (WRITTEN.replace("any: false", "any: no"), Nobody),
        (WRITTEN.replace('\n', "\r\n"), Plain),
        (format!("\u{feff}{WRITTEN}"), Plain),
        (format!("%YAML 1.2\n---\n{WRITTEN}"), Plain),
        // More than it looks at.
        (format!("{WRITTEN}#{}\n", "a".repeat(1_000_000)), General),
    ] {
        if by(&text) != expected {
            others.push((text.chars().take(80).collect(), by(&text)));
        }
    }
    assert_eq!(others, []);
}
