//! The manual of the documents, made of the schema: the doc comments of the model are its text.

use std::fmt::Write as _;

use serde_json::{Map, Value};
use zeugma_core::codes;

/// One small document of each kind; together they are a configuration.
const EXAMPLES: [(&str, &str); 5] = [
    ("MeshGateway", include_str!("reference/gateway.yaml")),
    ("MeshPeer", include_str!("reference/peer.yaml")),
    ("MeshRoute", include_str!("reference/route.yaml")),
    ("MeshDefaults", include_str!("reference/defaults.yaml")),
    ("TrustDomain", include_str!("reference/domain.yaml")),
];

const HEAD: &str = "\
# Configuration reference

Made by `zeugma config reference` from the program itself; do not edit it by hand.

A configuration is a YAML file, or a directory of them, with documents of these kinds. Every field has
its default unless it is said to be required. Unknown fields are errors. Text is YAML 1.2: `no`, `y` and
`1_000` are what they look like. A relative path starts from the folder of the file it is written in.

`zeugma config check` says what is wrong with a configuration and what its numbers mean, `zeugma config
diff` what a change of it means, `zeugma config fmt` lays it out, and `zeugma config schema` prints the
JSON schema that editors complete from.
";

/// Writes the manual, as Markdown.
pub(crate) fn reference() -> String {
    let schema = crate::schema();
    let mut out = HEAD.to_owned();
    out.push_str("\n## Kinds\n\n");
    for (kind, _) in EXAMPLES {
        let spec = spec(&schema, kind);
        let said = first_sentence(text(spec, "description"));
        writeln!(out, "- [`{kind}`](#{}): {said}", slug(kind)).ok();
    }
    for (kind, example) in EXAMPLES {
        write!(out, "\n## {kind}\n").ok();
        let document = document(&schema, kind);
        let mut page = Page {
            schema: &schema,
            kind,
            out: &mut out,
        };
        page.say(text(spec(&schema, kind), "description"));
        write!(page.out, "\n```yaml\n{example}```\n").ok();
        page.object(document, "metadata");
        page.object(document, "spec");
    }
    errors(&mut out);
    out
}

/// The schema of a document of this kind.
fn document<'s>(schema: &'s Value, kind: &str) -> &'s Value {
    let all = list(schema, "oneOf").iter();
    let mut all = all.map(|one| resolved(schema, one));
    let is_it = |document: &&Value| {
        let said = resolved(schema, field(field(document, "properties"), "kind"));
        words(said).iter().any(|(word, _)| *word == kind)
    };
    all.find(is_it).unwrap_or(&Value::Null)
}

fn spec<'s>(schema: &'s Value, kind: &str) -> &'s Value {
    let document = document(schema, kind);
    resolved(schema, field(field(document, "properties"), "spec"))
}

fn field<'s>(node: &'s Value, name: &str) -> &'s Value {
    node.get(name).unwrap_or(&Value::Null)
}

fn text<'s>(node: &'s Value, name: &str) -> &'s str {
    field(node, name).as_str().unwrap_or_default()
}

fn list<'s>(node: &'s Value, name: &str) -> &'s [Value] {
    field(node, name).as_array().map_or(&[], Vec::as_slice)
}

fn fields(node: &Value) -> Option<&Map<String, Value>> {
    field(node, "properties").as_object()
}

fn resolved<'s>(schema: &'s Value, node: &'s Value) -> &'s Value {
    let target = text(node, "$ref").strip_prefix('#');
    target
        .and_then(|target| schema.pointer(target))
        .unwrap_or(node)
}

/// What a field may be written as, where there are several ways.
fn alternatives(node: &Value) -> impl Iterator<Item = &Value> {
    let all = list(node, "anyOf").iter().chain(list(node, "oneOf"));
    all.filter(|one| text(one, "type") != "null")
}

/// The words that a field may be, and what each means.
fn words(node: &Value) -> Vec<(&str, &str)> {
    let listed = list(node, "enum").iter().filter_map(Value::as_str);
    let mut all: Vec<(&str, &str)> = listed.map(|word| (word, "")).collect();
    for one in [node].into_iter().chain(alternatives(node)) {
        if let Some(word) = field(one, "const").as_str() {
            all.push((word, text(one, "description")));
        } else if !std::ptr::eq(one, node) {
            let listed = list(one, "enum").iter().filter_map(Value::as_str);
            all.extend(listed.map(|word| (word, "")));
        }
    }
    all
}

fn first_sentence(said: &str) -> String {
    let said = said.replace('\n', " ");
    said.split_inclusive(". ")
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The anchor that a heading gets.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || "-_".contains(c) => Some(c),
        _ => None,
    });
    kept.collect()
}

/// What is written for one kind.
struct Page<'s, 'o> {
    schema: &'s Value,
    kind: &'static str,
    out: &'o mut String,
}

impl<'s> Page<'s, '_> {
    fn say(&mut self, said: &str) {
        if !said.is_empty() {
            write!(self.out, "\n{said}\n").ok();
        }
    }

    /// The section of the fields below `path`, then those below each of them.
    fn object(&mut self, parent: &'s Value, path: &str) {
        let name = path
            .rsplit('.')
            .next()
            .unwrap_or(path)
            .trim_end_matches("[]");
        let written = fields(parent).and_then(|fields| fields.get(name));
        let written = written.unwrap_or(&Value::Null);
        self.section(written, path);
    }

    fn section(&mut self, written: &'s Value, path: &str) {
        let node = self.fields_of(written);
        write!(self.out, "\n### {} `{path}`\n", self.kind).ok();
        let own = text(node, "description");
        if path != "spec" {
            let outer = text(written, "description");
            self.say(if outer.is_empty() { own } else { outer });
        }
        let mut below = Vec::new();
        let mut parts = vec![node];
        if fields(node).is_none() {
            // One of several, each with a field of its own.
            parts = alternatives(node).collect();
            self.say("Exactly one of:");
        }
        self.out.push('\n');
        for part in parts {
            let required = list(part, "required");
            for (name, field) in fields(part).into_iter().flatten() {
                let is_one_of = !std::ptr::eq(part, node);
                let is_required = !is_one_of && required.iter().any(|one| one == name.as_str());
                let meaning = is_one_of.then(|| text(part, "description"));
                let target = self.field((path, name), field, meaning, is_required);
                below.extend(target.map(|path| (field, path)));
            }
        }
        for (field, path) in below {
            self.section(field, &path);
        }
    }

    /// One field; returns the path of what stands below it, if that has a section of its own.
    /// `meaning` is what it means where the field itself does not say it.
    fn field(
        &mut self,
        (path, name): (&str, &str),
        written: &'s Value,
        meaning: Option<&'s str>,
        is_required: bool,
    ) -> Option<String> {
        let mut below = format!("{path}.{name}");
        let mut form = self.form(written, &mut below);
        let has_section = self.has_fields(written);
        // What is the same as in a route is said there.
        let is_routes = has_section && self.kind == "MeshDefaults" && path == "spec";
        if has_section {
            let kind = if is_routes { "MeshRoute" } else { self.kind };
            let target = slug(&format!("{kind} {below}"));
            form = format!("{form}, see [`{below}`](#{target})");
        }
        let is_said = meaning.unwrap_or_else(|| text(written, "description"));
        let required = if is_required && !is_said.contains("Required") {
            " Required."
        } else {
            ""
        };
        let own = text(resolved(self.schema, written), "description");
        let said = if is_said.is_empty() { own } else { is_said };
        let said = said.replace('\n', "\n  ");
        let gap = if said.is_empty() { "" } else { " " };
        writeln!(self.out, "- **`{name}`** ({form}):{gap}{said}{required}").ok();
        for (word, meaning) in self.words(written) {
            if !meaning.is_empty() {
                let meaning = meaning.replace('\n', "\n    ");
                writeln!(self.out, "  - `{word}`: {meaning}").ok();
            }
        }
        if let Some(example) = self.example(written) {
            writeln!(self.out, "  Example: `{name}: {example}`").ok();
        }
        (has_section && !is_routes).then_some(below)
    }

    /// The node with the fields that may be written here.
    fn fields_of(&self, written: &'s Value) -> &'s Value {
        let node = resolved(self.schema, written);
        if fields(node).is_some() {
            return node;
        }
        for inner in ["items", "additionalProperties"] {
            let inner = field(node, inner);
            if inner.is_object() {
                return self.fields_of(inner);
            }
        }
        let resolved = alternatives(node).map(|one| self.fields_of(one));
        let with_fields: Vec<_> = resolved.filter(|one| self.has_fields(one)).collect();
        match with_fields.as_slice() {
            [only] => only,
            _ => node,
        }
    }

    fn has_fields(&self, written: &Value) -> bool {
        let node = resolved(self.schema, written);
        let inner = ["items", "additionalProperties"].map(|inner| field(node, inner));
        fields(node).is_some()
            || inner
                .iter()
                .any(|one| one.is_object() && self.has_fields(one))
            || alternatives(node).any(|one| self.has_fields(one))
    }

    fn words(&self, written: &'s Value) -> Vec<(&'s str, &'s str)> {
        let node = resolved(self.schema, written);
        let mut all = words(node);
        for one in alternatives(node).chain([field(node, "items")]) {
            if text(one, "$ref").starts_with('#') {
                all.extend(self.words(one));
            }
        }
        all
    }

    fn example(&self, written: &Value) -> Option<String> {
        let of = |node: &Value| list(node, "examples").first()?.as_str().map(str::to_owned);
        let plain = |example: &str| !example.starts_with(['*', '[']) && !example.contains(": ");
        let quoted = |example: String| {
            if plain(&example) {
                example
            } else {
                format!("'{example}'")
            }
        };
        let node = resolved(self.schema, written);
        let listed = of(field(node, "items")).map(|example| format!("['{example}']"));
        of(node).map(quoted).or(listed)
    }

    /// What is written there, in words; `path` becomes that of what stands below it.
    fn form(&self, written: &'s Value, path: &mut String) -> String {
        let node = resolved(self.schema, written);
        let form = text(node, "$comment");
        if !form.is_empty() {
            return form.to_owned();
        }
        let words = self.words(written);
        if field(node, "items").is_object() {
            path.push_str("[]");
            return format!(
                "a list, each entry {}",
                self.form(field(node, "items"), path)
            );
        }
        if !words.is_empty() {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            return words.join(" or ");
        }
        if field(node, "additionalProperties").is_object() {
            path.push_str(".NAME");
            let each = self.form(field(node, "additionalProperties"), path);
            return format!("{each} below each name of your own");
        }
        if fields(node).is_some() {
            return "a group of fields".to_owned();
        }
        let mut forms: Vec<String> = Vec::new();
        for one in alternatives(node) {
            let form = self.form(one, path);
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
        if !forms.is_empty() {
            return forms.join(", or ");
        }
        let is = |kind: &str| {
            let field = field(node, "type");
            field == kind
                || field
                    .as_array()
                    .is_some_and(|all| all.iter().any(|one| one == kind))
        };
        if is("integer") {
            "a whole number".to_owned()
        } else if is("boolean") {
            "`true` or `false`".to_owned()
        } else {
            "text".to_owned()
        }
    }
}

/// What any field may be refused for.
fn errors(out: &mut String) {
    out.push_str(
        "\n## What is refused\n\nWhat is wrong has a code; `zeugma explain CODE` says more. Any field may be refused for its name (ZG0101), its value or range (ZG0102), and where it is required for not being there (ZG0103).\n\n",
    );
    out.push_str("| code | what | what to do |\n|---|---|---|\n");
    let is_finding = |entry: &&codes::Entry| entry.seen.contains(&codes::Seen::Finding);
    for entry in codes::all().filter(is_finding) {
        let action = entry.action.replace('|', "\\|");
        writeln!(out, "| {} | {} | {action} |", entry.code, entry.title).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_a_configuration_laid_out_as_files_are() {
        let folder = tempfile::tempdir().unwrap();
        for (kind, text) in EXAMPLES {
            std::fs::write(folder.path().join(format!("{kind}.yaml")), text).unwrap();
            assert_eq!(crate::format(text).as_deref(), Ok(text));
        }
        let checked = crate::check(folder.path(), &crate::NodeOptions::default());
        assert!(checked.findings.is_empty(), "{}", checked.findings);
    }

    #[test]
    fn every_link_leads_to_a_heading() {
        let text = reference();
        let headings: Vec<String> = (text.lines())
            .filter_map(|line| {
                line.strip_prefix("## ")
                    .or_else(|| line.strip_prefix("### "))
            })
            .map(slug)
            .collect();
        let links: Vec<&str> = (text.split("](#").skip(1))
            .filter_map(|rest| rest.split(')').next())
            .collect();
        assert!(links.len() > 30, "{}", links.len());
        for link in links {
            assert!(headings.iter().any(|known| known == link), "{link}");
        }
    }
}
