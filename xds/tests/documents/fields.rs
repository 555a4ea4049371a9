//! Every field of the schema has a row in [`table`]: a configuration, the same with that field alone
//! changed, and what is decided otherwise then. A field without a row fails, and so does a row
//! without a field.

mod decided;
mod mesh;
mod sockets;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use decided::World;
use mesh::Mesh;

use crate::support::unplaced;

/// One field, changed alone.
struct Row {
    /// The `metadata.name` of the document it stands in, in [`mesh::MESH`].
    document: &'static str,
    /// Where it stands there.
    field: &'static str,
    /// What is written before, as YAML; nothing where it is empty.
    before: &'static str,
    /// What is written after.
    after: &'static str,
    /// Other fields that both have: document, field, value.
    given: Vec<(&'static str, &'static str, &'static str)>,
    /// What shows that it matters.
    proof: Proof,
}

/// What shows that a field matters.
enum Proof {
    /// What is decided, with both.
    Decided(fn(&World) -> String, &'static str, &'static str),
    /// What comes of a fault as `zeugma simulate` plays it, with both.
    Played((&'static str, &'static str), &'static str, &'static str),
    /// Nothing that the core decides: a test of `tests/gateway`, as `file::function`, which writes the
    /// field and sees on sockets what it does.
    Socket(&'static str),
    /// It names a document for people and tools, and is meant to decide nothing.
    Names,
}

const fn row(
    document: &'static str,
    field: &'static str,
    before: &'static str,
    after: &'static str,
) -> Row {
    Row {
        document,
        field,
        before,
        after,
        given: Vec::new(),
        proof: Proof::Names,
    }
}

impl Row {
    fn given(mut self, document: &'static str, field: &'static str, value: &'static str) -> Self {
        self.given.push((document, field, value));
        self
    }

    fn decides(
        mut self,
        what: fn(&World) -> String,
        before: &'static str,
        after: &'static str,
    ) -> Self {
        self.proof = Proof::Decided(what, before, after);
        self
    }

    const fn plays(
        mut self,
        fault: (&'static str, &'static str),
        before: &'static str,
        after: &'static str,
    ) -> Self {
        self.proof = Proof::Played(fault, before, after);
        self
    }

    const fn names(self) -> Self {
        self
    }

    fn seen_by(mut self, test: &'static str) -> Self {
        self.proof = Proof::Socket(test);
        self
    }

    /// The two configurations.
    fn meshes(&self) -> (Mesh, Mesh) {
        let mut before = Mesh::new();
        for (document, field, value) in &self.given {
            before.set(document, field, value);
        }
        let mut after = before.clone();
        before.set(self.document, self.field, self.before);
        after.set(self.document, self.field, self.after);
        (before, after)
    }

    /// The field as the schema has it, `MeshRoute.spec.hosts`.
    fn path(&self, schema: &BTreeMap<String, BTreeSet<String>>) -> String {
        let kind = Mesh::new().kind(self.document);
        let mut path = format!("{kind}.");
        for c in self.field.chars().filter(|c| !c.is_ascii_digit()) {
            path.push(c);
        }
        let fits = |known: &&String| {
            let (known, own) = (known.split('.'), path.split('.'));
            known.clone().count() == own.clone().count()
                && known
                    .zip(own)
                    .all(|(known, own)| known == own || known == "*")
        };
        schema.keys().find(fits).cloned().unwrap_or(path)
    }
}

/// Each field that holds a value, and the words it may be, where they are few.
fn leaves(schema: &Value) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    for document in schema["oneOf"].as_array().unwrap() {
        let kind = resolved(schema, document)["properties"]["kind"].clone();
        let kind = resolved(schema, &kind);
        let words = words(schema, kind);
        let name = words.first().unwrap();
        walk(schema, document, name, &mut found);
    }
    found
}

fn resolved<'s>(schema: &'s Value, node: &'s Value) -> &'s Value {
    match node["$ref"].as_str() {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap(),
        None => node,
    }
}

/// Returns whether something below `node` is a field itself.
fn walk(
    schema: &Value,
    node: &Value,
    path: &str,
    found: &mut BTreeMap<String, BTreeSet<String>>,
) -> bool {
    let node = resolved(schema, node);
    let mut has_fields = false;
    for (name, field) in node["properties"].as_object().into_iter().flatten() {
        has_fields = true;
        field_of(schema, field, &format!("{path}.{name}"), found);
    }
    if node["additionalProperties"].is_object() {
        has_fields = true;
        let values = &node["additionalProperties"];
        field_of(schema, values, &format!("{path}.*"), found);
    }
    if node["items"].is_object() && walk(schema, &node["items"], &format!("{path}[]"), found) {
        has_fields = true;
    }
    for one in alternatives(node) {
        has_fields |= walk(schema, one, path, found);
    }
    // What may be written short as well is a field in its short form, too.
    let is_scalar = |one: &&Value| resolved(schema, one)["type"] == "string";
    if has_fields && alternatives(node).any(|one| is_scalar(&one)) {
        found.insert(path.to_owned(), words(schema, node));
    }
    has_fields
}

fn field_of(
    schema: &Value,
    field: &Value,
    path: &str,
    found: &mut BTreeMap<String, BTreeSet<String>>,
) {
    if !walk(schema, field, path, found) {
        found.insert(path.to_owned(), words(schema, field));
    }
}

fn alternatives(node: &Value) -> impl Iterator<Item = &Value> {
    ["anyOf", "oneOf"]
        .into_iter()
        .filter_map(|key| node[key].as_array())
        .flatten()
}

/// The words that a field may be.
fn words(schema: &Value, field: &Value) -> BTreeSet<String> {
    let field = resolved(schema, field);
    let text = |word: &Value| word.as_str().map(str::to_owned);
    let listed = field["enum"].as_array().into_iter().flatten();
    let mut all: BTreeSet<String> = listed.chain([&field["const"]]).filter_map(text).collect();
    for one in alternatives(field).chain([&field["items"]]) {
        if !one.is_null() {
            all.extend(words(schema, one));
        }
    }
    all
}

#[test]
fn every_field_of_the_schema_has_a_row_and_every_row_a_field() {
    let schema = leaves(&zeugma_xds::schema());
    let rows = table::rows();
    let mut written: BTreeMap<String, String> = BTreeMap::new();
    for row in &rows {
        let said = written.entry(row.path(&schema)).or_default();
        *said = [said, " ", row.before, " ", row.after].concat();
    }
    let of_defaults = |path: &str| {
        let block = path.strip_prefix("MeshDefaults.spec.")?;
        Some(format!("MeshRoute.spec.{block}"))
    };
    let mut wrong = Vec::new();
    for (path, words) in &schema {
        // What `MeshDefaults` and a route have in common is tried in both by the route's row.
        let row = of_defaults(path).unwrap_or_else(|| path.clone());
        match written.get(&row) {
            None => wrong.push(format!("no row for `{path}`")),
            Some(said) => {
                let is_said = |word: &&String| {
                    let mut parts =
                        said.split(|c: char| !(c.is_alphanumeric() || "-._/".contains(c)));
                    parts.any(|part| part == **word)
                };
                let unsaid = words.iter().filter(|word| !is_said(word));
                wrong.extend(unsaid.map(|word| format!("no row writes `{path}: {word}`")));
            }
        }
    }
    let unknown = written.keys().filter(|path| !schema.contains_key(*path));
    wrong.extend(unknown.map(|path| format!("no such field: `{path}`")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn each_field_alone_changes_what_is_decided() {
    let mut wrong = Vec::new();
    for row in table::rows() {
        let (before, after) = row.meshes();
        let (before, after) = (before.world(), after.world());
        let at = format!(
            "{}: {}: {:?} -> {:?}",
            row.document, row.field, row.before, row.after
        );
        match row.proof {
            Proof::Decided(_, expected_before, expected_after)
            | Proof::Played(_, expected_before, expected_after) => {
                for (world, expected) in [(&before, expected_before), (&after, expected_after)] {
                    let got = match row.proof {
                        Proof::Played(fault, ..) => outcome(world, |world| world.plays(fault)),
                        Proof::Decided(decide, ..) => outcome(world, decide),
                        Proof::Socket(_) | Proof::Names => unreachable!("matched above"),
                    };
                    if got != expected {
                        let said = world.said();
                        wrong.push(format!(
                            "{at}\n  expected {expected:?}\n       got {got:?}{said}"
                        ));
                    }
                }
                if expected_before == expected_after {
                    wrong.push(format!("{at}: nothing differs"));
                }
            }
            Proof::Socket(_) | Proof::Names
                if before.try_loaded().is_none() && after.try_loaded().is_none() =>
            {
                wrong.push(format!(
                    "{at}: {} / {}",
                    before.findings(),
                    after.findings()
                ));
            }
            Proof::Socket(_) => {
                if same(&before, &after) {
                    wrong.push(format!("{at}: the gateway gets the same"));
                }
            }
            Proof::Names => {
                if !same(&before, &after) {
                    wrong.push(format!("{at}: it decides something, and no row says what"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} rows:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What is decided, or the codes of what is wrong.
fn outcome(world: &World, decide: impl Fn(&World) -> String) -> String {
    match world.try_loaded() {
        Some(_) => decide(world),
        None => world.findings(),
    }
}

/// What the schema gives as an example of each field, as YAML.
fn examples(schema: &Value) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for path in leaves(schema).into_keys() {
        let (kind, fields) = path.split_once('.').unwrap();
        let mut node = (schema["oneOf"].as_array().unwrap().iter())
            .map(|document| resolved(schema, document))
            .find(|document| {
                let said = resolved(schema, &document["properties"]["kind"]);
                words(schema, said).contains(kind)
            })
            .unwrap();
        for step in fields.split('.') {
            let (name, is_list) = step
                .strip_suffix("[]")
                .map_or((step, false), |name| (name, true));
            node = match name {
                "*" => &node["additionalProperties"],
                name => {
                    let parts = [node].into_iter().chain(alternatives(node));
                    let parts = parts.map(|part| resolved(schema, part));
                    let mut with = parts.filter(|part| part["properties"][name].is_object());
                    match with.next() {
                        Some(part) => &part["properties"][name],
                        None => break,
                    }
                }
            };
            node = resolved(schema, node);
            if is_list {
                node = resolved(schema, &node["items"]);
            }
        }
        let of = |node: &Value| Some(node["examples"].get(0)?.as_str()?.to_owned());
        let listed = of(&node["items"]).map(|example| format!("['{example}']"));
        if let Some(example) = of(node).map(|one| format!("'{one}'")).or(listed) {
            found.insert(path, example);
        }
    }
    found
}

#[test]
fn every_example_of_the_schema_is_a_value_of_its_field() {
    let schema = zeugma_xds::schema();
    let (leaves, examples) = (leaves(&schema), examples(&schema));
    assert!(examples.len() > 40, "{}", examples.len());
    let mut wrong = Vec::new();
    for row in table::rows() {
        let Some(example) = examples.get(&row.path(&leaves)) else {
            continue;
        };
        let (mut mesh, _) = row.meshes();
        mesh.set(row.document, row.field, example);
        let world = mesh.world();
        if world.findings().contains("ZG0102") {
            wrong.push(format!("{}: {example}{}", row.field, world.said()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether two gateways get the same, wherever it was written.
fn same(a: &World, b: &World) -> bool {
    let (Some(_), Some(_)) = (a.try_loaded(), b.try_loaded()) else {
        return false;
    };
    a.settings() == b.settings()
        && unplaced(a.loaded().snapshot.clone()) == unplaced(b.loaded().snapshot.clone())
}

#[test]
fn what_mesh_defaults_says_is_as_if_the_route_said_it() {
    let schema = leaves(&zeugma_xds::schema());
    let rows = table::rows();
    let mut tried = BTreeSet::new();
    let mut wrong = Vec::new();
    for row in &rows {
        let path = row.path(&schema);
        let defaults = path.replace("MeshRoute.spec.", "MeshDefaults.spec.");
        if !path.starts_with("MeshRoute.spec.") || !schema.contains_key(&defaults) {
            continue;
        }
        tried.insert(defaults);
        let block = row.field.trim_start_matches("spec.");
        let block = block.split(['.', '[']).next().unwrap();
        let (before, after) = row.meshes();
        for (mesh, written) in [(before, row.before), (after, row.after)] {
            let Some(moved) = mesh.inheriting(row.document, block) else {
                continue;
            };
            let at = format!("{path}: {written:?}");
            let moved = moved.world();
            if moved.try_loaded().is_none() {
                wrong.push(format!("{at}: {}", moved.findings()));
            } else if mesh.world().try_loaded().is_some() && !same(&mesh.world(), &moved) {
                wrong.push(format!("{at}: inherited, it is something else"));
            } else if let Proof::Decided(decide, before, after) = row.proof
                && ![before, after].contains(&&*outcome(&moved, decide))
            {
                wrong.push(format!(
                    "{at}: inherited, it decides {}",
                    outcome(&moved, decide)
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let fields = schema
        .keys()
        .filter(|path| path.starts_with("MeshDefaults.spec."));
    assert_eq!(fields.cloned().collect::<BTreeSet<_>>(), tried);
}

#[test]
fn laid_out_otherwise_every_field_means_the_same() {
    for row in table::rows() {
        let (_, after) = row.meshes();
        let text = after.text();
        let formatted = zeugma_xds::format(&text).unwrap();
        assert_ne!(formatted, text);
        let (one, other) = (World::of(&text), World::of(&formatted));
        assert_eq!(one.findings(), other.findings(), "{formatted}");
        assert!(
            one.try_loaded().is_none() || same(&one, &other),
            "{formatted}"
        );
    }
}

/// What a field is called by in a test's text, where it is not written as in the schema.
fn spelled(field: &str) -> &str {
    match field {
        // `Cluster` writes them for every test, each from a field of its own.
        "spec.metrics" => ".metrics",
        "spec.probes" => ".probes",
        "spec.listeners.mesh.address" => ".listen(",
        "spec.svid.files.certificate" => ".certificate",
        "spec.svid.files.key" => ".key",
        "spec.svid.files.bundles" => ".bundles",
        // `World` of that file does.
        "spec.svid.files.crls" => ".crls()",
        _ => field
            .rsplit(['.', ']'])
            // Of a map whatever is in it.
            .find(|part| !part.is_empty() && *part != "*")
            .unwrap(),
    }
}

#[test]
fn what_only_sockets_show_is_shown_by_a_test_that_writes_it() {
    let rows = table::rows();
    let wrong: Vec<String> = (rows.iter())
        .filter_map(|row| match row.proof {
            Proof::Socket(test) => writes(test, row.field).err(),
            Proof::Decided(..) | Proof::Played(..) | Proof::Names => None,
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Of these each field is held to both: a simulation, and a test on sockets in [`sockets`].
const BOTH: [&str; 6] = ["failover", "mirror", "allow", "deny", "policy", "export"];

#[test]
fn each_field_of_failover_mirroring_and_authorization_is_shown_in_a_simulation_and_on_sockets() {
    let schema = leaves(&zeugma_xds::schema());
    let rows = table::rows();
    let mut wrong = Vec::new();
    let mut held = BTreeSet::new();
    for path in schema.keys() {
        let Some(field) = path.strip_prefix("MeshRoute.spec.") else {
            continue;
        };
        let block = field.split(['.', '[']).next().unwrap();
        if !BOTH.contains(&block) {
            continue;
        }
        held.insert(field);
        // What failover does it does in time, which takes more than one decision to see.
        let is_simulated = rows
            .iter()
            .filter(|row| row.path(&schema) == *path)
            .any(|row| {
                let is_played = matches!(row.proof, Proof::Played(..));
                is_played || (block != "failover" && matches!(row.proof, Proof::Decided(..)))
            });
        if !is_simulated {
            wrong.push(format!("{field}: no row simulates it"));
        }
        match sockets::SHOWN.iter().find(|(shown, _)| *shown == field) {
            Some((_, test)) => wrong.extend(writes(test, field).err()),
            None => wrong.push(format!("{field}: no test of sockets is named")),
        }
    }
    let unknown = sockets::SHOWN
        .iter()
        .filter(|(field, _)| !held.contains(field));
    wrong.extend(unknown.map(|(field, _)| format!("{field}: no such field")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a test of `tests/gateway` is there and writes a field; what is wrong otherwise.
fn writes(test: &str, field: &str) -> Result<(), String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/gateway");
    let (file, function) = test.split_once("::").unwrap();
    let text = fs::read_to_string(folder.join(format!("{file}.rs"))).unwrap_or_default();
    let functions = functions(&text);
    let Some((before, body)) = functions.get(function) else {
        return Err(format!("{field}: no test {test}"));
    };
    if !before.contains("test]") {
        return Err(format!("{field}: {test} is no test"));
    }
    // What it calls in its file may write the field for it.
    let called = functions
        .iter()
        .filter(|(name, _)| body.contains(&format!("{name}(")));
    let all: String = called.map(|(_, (_, body))| *body).chain([*body]).collect();
    let constants = text.lines().filter(|line| line.contains("const "));
    let constants: String = (text.lines().zip(text.lines().skip(1)))
        .filter(|(line, _)| constants.clone().any(|constant| constant == *line))
        .filter(|(line, _)| {
            let name = line
                .split("const ")
                .nth(1)
                .and_then(|rest| rest.split(':').next());
            name.is_some_and(|name| all.contains(name))
        })
        .flat_map(|(line, next)| [line, next])
        .collect();
    let word = spelled(field);
    // In YAML, or as `Cluster::set` takes it; what is no field's name stands for itself.
    let forms = if word.starts_with('.') {
        vec![word.to_owned()]
    } else if file == "data_fields" {
        // A table, whose entries are called as the field is.
        vec![format!("\"{field}\"")]
    } else {
        vec![format!("{word}:"), format!("\"{word}\"")]
    };
    let text = [all, constants].concat();
    if !forms.iter().any(|form| text.contains(form)) {
        return Err(format!("{field}: {test} does not write `{word}`"));
    }
    Ok(())
}

/// Each function of a file: what stands right before it, and its text.
fn functions(text: &str) -> BTreeMap<&str, (&str, &str)> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while let Some(at) = rest
        .find("\nfn ")
        .into_iter()
        .chain(rest.find("\nasync fn "))
        .min()
    {
        let before = rest[..at].rsplit("\n\n").next().unwrap_or_default();
        let from = &rest[at + 1..];
        let end = from.find("\n}\n").map_or(from.len(), |end| end + 2);
        let name = from
            .split("fn ")
            .nth(1)
            .and_then(|name| name.split(['(', '<']).next());
        found.insert(name.unwrap(), (before, &from[..end]));
        rest = &from[end..];
    }
    found
}
