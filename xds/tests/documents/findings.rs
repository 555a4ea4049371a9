//! What a person is told: every kind of finding, its place, and what to do.

mod contradictions;
mod gateway;
mod peers;
mod references;
mod values;

use crate::support::{EAST, WEST_PEER, route, try_load};
use zeugma_xds::{Code, Color, Finding, Findings, Severity};

fn findings(documents: &[&str]) -> Findings {
    match try_load(documents, None) {
        Ok(loaded) => loaded.warnings,
        Err(findings) => findings,
    }
}

/// The one finding of a route with this spec on gateway east with peer west.
fn of_route(spec: &str) -> Finding {
    only(&[EAST, WEST_PEER, &route("orders", spec)], spec)
}

fn only(documents: &[&str], what: &str) -> Finding {
    let findings = findings(documents);
    let mut errors = findings.iter().filter(|f| f.severity == Severity::Error);
    let Some(first) = errors.next() else {
        panic!("nothing found: {what}");
    };
    assert_eq!(errors.next(), None, "{what}: {findings}");
    first.clone()
}

fn check(finding: &Finding, code: Code, path: &str, words: &str) {
    let place = finding.place.as_ref().unwrap();
    assert_eq!(
        (finding.code, place.path.as_str()),
        (code, path),
        "{finding}"
    );
    assert!(finding.to_string().contains(words), "{finding}");
    assert!(place.line > 0 && place.column > 0, "{finding}");
    assert!(finding.help.is_some(), "it says what to do: {finding}");
}

const OWN: &str = "backends: [{name: a, endpoints: ['10.0.0.1:80']}]";

/// What is told by code, in logs, the API and `zeugma explain`; ZG0105 and ZG0113 are the system's.
#[test]
fn each_kind_of_finding_has_the_code_that_is_explained() {
    let route = |more: &str| route("orders", &format!("protocol: http, {OWN}{more}"));
    let deep = format!("\n---\n{}{}\n", "[".repeat(100), "]".repeat(100));
    for (document, code) in [
        (route(", retry: {}"), "ZG0101"),
        (route(", timeouts: {connect: soon}"), "ZG0102"),
        (route(", allow: [{from: []}]"), "ZG0103"),
        ("\n---\nkind: [\n".to_owned(), "ZG0104"),
        (deep, "ZG0106"),
        (route(", allow: [{listeners: [aps]}]"), "ZG0107"),
        (EAST.to_owned(), "ZG0108"),
        (route(", allow: [{}]"), "ZG0111"),
    ] {
        let finding = only(&[EAST, &document], &document);
        assert_eq!(finding.code.as_str(), code, "{finding}");
    }
    let token = EAST.replace("  cluster:", "  adminToken: token\n  cluster:");
    assert_eq!(only(&[&token], "adminToken").code.as_str(), "ZG0110");
}

#[test]
fn all_findings_come_at_once_in_the_order_of_the_file() {
    let broken = "\n---\nkind: [\n";
    let findings = findings(&[
        &EAST.replace("role: mesh", "role: mseh"),
        &WEST_PEER.replace("locality:", "localty:"),
        broken,
        &route("orders", "protocol: htp, backends: []"),
    ]);
    let codes: Vec<Code> = findings.iter().map(|finding| finding.code).collect();
    assert_eq!(
        codes,
        [
            Code::BadValue,
            Code::UnknownField,
            Code::NotADocument,
            Code::BadValue
        ],
        "{findings}"
    );
    let lines: Vec<u32> = findings
        .iter()
        .map(|finding| finding.place.as_ref().unwrap().line)
        .collect();
    assert!(lines.is_sorted(), "{lines:?}");

    let findings = self::findings(&[
        EAST,
        WEST_PEER,
        &route(
            "orders",
            "backends: [{peer: wset}, {endpoints: [{address: '10.0.0.1:1', weight: 0}]}], export: {to: [north]}",
        ),
    ]);
    assert_eq!(findings.iter().count(), 4, "{findings}");
}

#[test]
fn a_document_of_too_many_nodes_or_too_deep_is_refused() {
    let deep = format!("\n---\n{}{}\n", "[".repeat(100), "]".repeat(100));
    let finding = only(&[EAST, &deep], "deep");
    assert_eq!(finding.code, Code::TooLarge, "{finding}");
    assert_eq!(
        finding.message,
        "lists and fields are over 32 deep within each other"
    );
    assert!(finding.help.is_some());
    let bomb = "\n---\na: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
    let finding = only(&[EAST, bomb], "bomb");
    assert_eq!(finding.code, Code::TooLarge, "{finding}");
}

// Debug builds take a few seconds for it; a product of routes and routes would take minutes.
#[test]
fn thousands_of_wrong_names_are_found_in_time_and_a_bounded_number_of_suggestions() {
    let mut documents = EAST.to_owned();
    for n in 0..3000 {
        documents.push_str(&route(
            &format!("route-{n:04}"),
            &format!("protocol: http, {OWN}, mirror: [{{route: roote-{n:04}}}]"),
        ));
    }
    let found = findings(&[&documents]);
    assert_eq!(found.iter().count(), 3000);
    let suggested = |f: &&Finding| {
        f.help
            .as_deref()
            .is_some_and(|h| h.starts_with("did you mean"))
    };
    assert_eq!(found.iter().filter(suggested).count(), 100);
    assert!(found.iter().all(|finding| finding.help.is_some()));
}

#[test]
fn a_finding_shows_the_line_and_what_to_do() {
    let text = concat!(
        "apiVersion: zeugma.dev/v1alpha1\n",
        "kind: MeshRoute\n",
        "metadata: { name: größe }\n",
    );
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mesh.yaml");
    std::fs::write(
        &path,
        [
            EAST.trim_start(),
            "---\n",
            "apiVersion: zeugma.dev/v1alpha1\n",
            "kind: MeshRoute\n",
            "metadata: { name: orders, namespace: shop }\n",
            "spec:\n",
            "  protocol: http\n",
            "  backends: [{ peer: wset }]\n",
            "---\n",
            text,
        ]
        .concat(),
    )
    .unwrap();
    let findings = zeugma_xds::load(&path, &zeugma_xds::NodeOptions::default()).unwrap_err();
    let human = findings
        .to_human(Color::Plain)
        .replace(&path.display().to_string(), "mesh.yaml");
    // The peer is not looked for while a document cannot be read: it may be that one.
    assert_eq!(
        human,
        "error[ZG0102]: `größe` is not a name of letters, digits, `-`, `_` and `.`: 'ö' may not stand in a name
  --> mesh.yaml:23:19
   |
23 | metadata: { name: größe }
   |                   ^^^^^ metadata.name

"
    );
    std::fs::write(
        &path,
        std::fs::read_to_string(&path)
            .unwrap()
            .replace(&format!("---\n{text}"), &WEST_PEER[1..]),
    )
    .unwrap();
    let findings = zeugma_xds::load(&path, &zeugma_xds::NodeOptions::default()).unwrap_err();
    let human = findings
        .to_human(Color::Plain)
        .replace(&path.display().to_string(), "mesh.yaml");
    assert_eq!(
        human,
        "error[ZG0107]: no MeshPeer `wset`
  --> mesh.yaml:19:22
   |
19 |   backends: [{ peer: wset }]
   |                      ^^^^ spec.backends[0].peer
   |
   = help: did you mean `west`?

"
    );
    let json = findings.to_json();
    assert_eq!(json[0]["code"], "ZG0107");
    assert_eq!(
        (json[0]["line"].as_u64(), json[0]["column"].as_u64()),
        (Some(19), Some(22))
    );
    assert_eq!(json[0]["path"], "spec.backends[0].peer");
    assert!(findings.to_human(Color::Ansi).contains("\u{1b}["));
}
