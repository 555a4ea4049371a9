//! The reader of plain documents beside the general one, which is right by what it is.

use std::path::{Path, PathBuf};

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
metadata: {name: orders, namespace: "shop", labels: {}}
spec:
  protocol: http
  port: 443
  hosts: [orders.example, 'other.example'] # two
  backends:
  - endpoints:
      - 10.0.1.10:8080
      - {address: "[fd00::1]:80", weight: 3}
    tls: workload
  - peer: west
    priority: 2
  allow: [{listeners: [apps]}, {from: ["spiffe://west.example/*"]}]
  export: {to: [west], as: "or\
    ders"}
  timeouts:
    connect: 5s
    request: 1m
"#;

fn source(text: &str) -> Source {
    files::split(Path::new("mesh.yaml"), text)
        .pop()
        .expect("every text is a document")
}

/// What the general reader makes of a route.
fn strictly(source: &Source) -> Option<RouteDocument> {
    let positions = yaml::positions(source).ok()?;
    yaml::read(source, &positions).ok()
}

/// The routes of every example, one from each field's reference, and [`WRITTEN`].
fn routes() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> = ["examples", "deploy", "tests/interop", "xds/src/reference"]
        .iter()
        .map(|folder| root.join(folder))
        .collect();
    let mut all = files::split(Path::new("written.yaml"), WRITTEN);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "yaml") {
                all.extend(files::split(
                    &path,
                    &std::fs::read_to_string(&path).unwrap(),
                ));
            }
        }
    }
    all.retain(|source| source.text.contains("MeshRoute"));
    all
}

#[test]
fn what_is_plain_is_read_as_by_the_general_reader() {
    let routes = routes();
    assert!(routes.len() > 30, "{} routes", routes.len());
    for source in &routes {
        let plain: Option<RouteDocument> = yaml::read_plain(source);
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
        let source = source(&damage(
            &routes[random.usize(..routes.len())].text,
            &mut random,
        ));
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

/// Puts something in, takes something out, repeats a line, or moves it.
fn damage(text: &str, random: &mut Rng) -> String {
    const PIECES: &[&str] = &[
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        ": ",
        " ",
        "  ",
        "\n",
        "\n  ",
        "- ",
        "-",
        "#",
        " # ",
        "'",
        "\"",
        "~",
        "null",
        "true",
        "False",
        "<<: ",
        "&a ",
        "*a",
        "!!str ",
        "! ",
        "|\n",
        ">-\n",
        "? ",
        "%YAML 1.1\n",
        "\n---\n",
        "\n...\n",
        "\t",
        "0",
        "12",
        "1e3",
        "0x1",
        ".5",
        ".inf",
        "-1",
        "\u{feff}",
        "é",
        "\\n",
        "\\\n",
        "\r",
        "\r\n",
        "{}",
        "[]",
        "''",
        "a: b",
        "\u{85}",
        "\u{0}",
    ];
    let mut text: Vec<char> = text.chars().collect();
    for _ in 0..random.usize(1..=2) {
        let at = random.usize(..=text.len());
        let end = (at + random.usize(1..8)).min(text.len());
        match random.u8(..6) {
            0 | 1 => {
                let piece = PIECES[random.usize(..PIECES.len())];
                text.splice(at..at, piece.chars());
            }
            2 => drop(text.drain(at..end)),
            3 => {
                let piece = PIECES[random.usize(..PIECES.len())];
                text.splice(at..end, piece.chars());
            }
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
