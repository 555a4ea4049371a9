//! Makes `table.rs` of the allow-list and of the descriptors of the protocol.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::{env, fs};

use prost_reflect::{DescriptorPool, FieldDescriptor, Kind, MessageDescriptor};

use super::allowed::{ALLOWED, ROOTS, Use};

/// What stands in the table's place until it is made anew.
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/ingest/fields/table.rs");
/// The crate whose descriptors they are.
const CRATE: &str = "envoy-types";
/// Messages that mean what they say as a whole.
pub(super) const WHOLE: [&str; 12] = [
    "google.protobuf.BoolValue",
    "google.protobuf.BytesValue",
    "google.protobuf.DoubleValue",
    "google.protobuf.Duration",
    "google.protobuf.FloatValue",
    "google.protobuf.Int32Value",
    "google.protobuf.Int64Value",
    "google.protobuf.StringValue",
    "google.protobuf.Struct",
    "google.protobuf.Timestamp",
    "google.protobuf.UInt32Value",
    "google.protobuf.UInt64Value",
];
pub(super) const ANY: &str = "google.protobuf.Any";
/// The state's fields have their bits in one number.
const FIELDS_MAX: usize = 128;

/// A part of a path of the allow-list: `field`, `field[key]`, `field(type)`, or `**`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) name: String,
    pub(super) key: Option<String>,
    pub(super) of: Option<String>,
}

/// A path without what leads to it.
pub(super) type Path_ = Vec<Segment>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    No,
    All,
    Within(usize),
    Any(BTreeMap<String, Self>),
    Map(BTreeMap<String, Self>),
}

struct Field {
    number: u32,
    name: String,
    shape: String,
    step: Step,
}

#[derive(Default)]
struct Maker {
    used: BTreeSet<String>,
    states: Vec<(String, Vec<Field>)>,
    known: HashMap<(String, Vec<Path_>), usize>,
}

/// The descriptors of all that the allow-list names.
pub(super) static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    let protos = protos();
    let includes: Vec<PathBuf> = subfolders(&protos);
    let mut files = BTreeSet::new();
    let lines = ALLOWED
        .iter()
        .flat_map(|section| section.1.iter().map(|line| line.0));
    let inner = lines.flat_map(|line| parsed(line).into_iter().filter_map(|one| one.of));
    let types = (ALLOWED.iter().map(|section| section.0.to_owned())).chain(inner);
    for name in types {
        files.extend(files_of(&includes, &name));
    }
    let mut compiler = protox::Compiler::new(&includes).unwrap();
    compiler.include_imports(true).open_files(files).unwrap();
    compiler.descriptor_pool()
});

/// The folder of the descriptors, where cargo has the crate.
fn protos() -> PathBuf {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let said = told_by_cargo(&["-vV"]);
    let said = String::from_utf8(said).unwrap();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    // Without a platform it wants the packages of all, which a build here does not fetch.
    let output = told_by_cargo(&[
        "metadata",
        "--format-version=1",
        "--locked",
        "--offline",
        "--filter-platform",
        host.unwrap(),
        "--manifest-path",
        manifest,
    ]);
    let known: serde_json::Value = serde_json::from_slice(&output).unwrap();
    let all = known["packages"].as_array().unwrap();
    let one = all.iter().find(|one| one["name"] == CRATE).unwrap();
    Path::new(one["manifest_path"].as_str().unwrap()).with_file_name("proto")
}

fn told_by_cargo(arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(env!("CARGO")).args(arguments).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut found: Vec<PathBuf> = entries.map(|one| one.unwrap().path()).collect();
    found.sort();
    found
}

/// The files of the package that a message is of.
fn files_of(includes: &[PathBuf], message: &str) -> Vec<PathBuf> {
    let is_package = |part: &&str| part.starts_with(|first: char| first.is_ascii_lowercase());
    let package: PathBuf = message.split('.').take_while(is_package).collect();
    let folders = includes.iter().map(|include| include.join(&package));
    let found = folders.filter(|folder| folder.is_dir());
    let files = found.flat_map(|folder| subfolders(&folder));
    files
        .filter(|file| file.extension().is_some_and(|of| of == "proto"))
        .collect()
}

/// The parts of a path.
pub(super) fn parsed(line: &str) -> Path_ {
    let mut parts = vec![String::new()];
    let mut within = 0_u32;
    for c in line.chars() {
        match c {
            '[' | '(' => within += 1,
            ']' | ')' => within -= 1,
            _ => {}
        }
        if c == '.' && within == 0 {
            parts.push(String::new());
        } else {
            parts.last_mut().unwrap().push(c);
        }
    }
    let between = |part: &str, open: char, shut: char| -> Option<String> {
        let (_, rest) = part.split_once(open)?;
        Some(rest.split_once(shut).unwrap().0.to_owned())
    };
    let segment = |part: String| Segment {
        name: part.split(['[', '(']).next().unwrap().to_owned(),
        key: between(&part, '[', ']'),
        of: between(&part, '(', ')'),
    };
    parts.into_iter().map(segment).collect()
}

/// The lines of each section.
pub(super) static SECTIONS: LazyLock<BTreeMap<&str, Vec<Path_>>> = LazyLock::new(|| {
    let mut sections = BTreeMap::new();
    for (name, lines) in ALLOWED {
        let paths = lines.iter().map(|(line, _)| parsed(line)).collect();
        let before = sections.insert(*name, paths);
        assert!(before.is_none(), "{name} is there twice");
    }
    sections
});

/// Whether a path goes no further, and whatever is there is understood.
pub(super) fn is_rest(path: &[Segment]) -> bool {
    matches!(path, [one] if one.name == "**")
}

impl Maker {
    /// The state of a message of which these paths are understood.
    fn state(&mut self, message: &MessageDescriptor, mut paths: Vec<Path_>) -> usize {
        paths.sort();
        let key = (message.full_name().to_owned(), paths.clone());
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        let at = self.states.len();
        self.known.insert(key, at);
        self.states
            .push((message.full_name().to_owned(), Vec::new()));
        for path in &paths {
            let name = &path[0].name;
            let is_there = message.get_field_by_name(name).is_some();
            assert!(is_there, "{} has no field {name}", message.full_name());
        }
        let mut fields: Vec<FieldDescriptor> = message.fields().collect();
        fields.sort_by_key(FieldDescriptor::number);
        assert!(fields.len() <= FIELDS_MAX, "{}", message.full_name());
        let fields = (fields.iter())
            .map(|field| {
                let of_field = paths.iter().filter(|path| path[0].name == field.name());
                let of_field: Vec<Path_> = of_field.cloned().collect();
                Field {
                    number: field.number(),
                    name: field.name().to_owned(),
                    shape: shape(field),
                    step: self.field(field, of_field),
                }
            })
            .collect();
        self.states[at].1 = fields;
        at
    }

    fn field(&mut self, field: &FieldDescriptor, paths: Vec<Path_>) -> Step {
        let name = field.full_name();
        if paths.is_empty() {
            return Step::No;
        }
        if !field.is_map() {
            let has_key = paths.iter().any(|path| path[0].key.is_some());
            assert!(!has_key, "{name} is no map");
            return self.kind(&field.kind(), paths, name);
        }
        let entry = field.kind();
        let entry = entry.as_message().unwrap();
        assert_eq!(entry.map_entry_key_field().kind(), Kind::String, "{name}");
        let value = entry.map_entry_value_field().kind();
        let is_long = matches!(value, Kind::Message(_) | Kind::String | Kind::Bytes);
        assert!(is_long, "{name}");
        let mut by_key: BTreeMap<String, Vec<Path_>> = BTreeMap::new();
        for path in paths {
            let key = path[0].key.clone().unwrap_or_default();
            by_key.entry(key).or_default().push(path);
        }
        let steps = by_key.into_iter();
        Step::Map(
            steps
                .map(|(key, paths)| (key, self.kind(&value, paths, name)))
                .collect(),
        )
    }

    fn kind(&mut self, kind: &Kind, paths: Vec<Path_>, name: &str) -> Step {
        if let [path] = paths.as_slice()
            && (is_rest(&path[1..]) && path[0].of.is_none())
        {
            return Step::All;
        }
        let Kind::Message(message) = kind else {
            assert!(paths.len() == 1 && paths[0].len() == 1, "{name}: {paths:?}");
            return Step::All;
        };
        if message.full_name() != ANY {
            let none = paths.iter().all(|path| path[0].of.is_none());
            assert!(none, "{name} does not hold any type");
            let rests = paths.into_iter().map(|path| path[1..].to_vec());
            return self.whole(message, rests.collect());
        }
        let mut by_type: BTreeMap<String, Vec<Path_>> = BTreeMap::new();
        for path in paths {
            let of = path[0].of.clone();
            let of = of.unwrap_or_else(|| panic!("{name}: of which type?"));
            by_type.entry(of).or_default().push(path[1..].to_vec());
        }
        let pool = &*POOL;
        let steps = by_type.into_iter().map(|(of, rests)| {
            let message = pool.get_message_by_name(&of);
            let message = message.unwrap_or_else(|| panic!("{name}: no type {of}"));
            (of, self.whole(&message, rests))
        });
        Step::Any(steps.collect())
    }

    /// What is left of paths in a message: its section where nothing is.
    fn whole(&mut self, message: &MessageDescriptor, rests: Vec<Path_>) -> Step {
        let name = message.full_name().to_owned();
        let ends = rests.iter().filter(|rest| rest.is_empty()).count();
        if ends == 0 {
            if let [rest] = rests.as_slice()
                && is_rest(rest)
            {
                return Step::All;
            }
            return Step::Within(self.state(message, rests));
        }
        assert!(ends == 1 && rests.len() == 1, "{name}: {rests:?}");
        if WHOLE.contains(&&*name) {
            return Step::All;
        }
        self.section(message)
    }

    fn section(&mut self, message: &MessageDescriptor) -> Step {
        let name = message.full_name();
        let lines = match SECTIONS.get(name) {
            Some(lines) => lines.clone(),
            None if message.fields().len() == 0 => Vec::new(),
            None => panic!("nothing is said of {name}"),
        };
        self.used.insert(name.to_owned());
        Step::Within(self.state(message, lines))
    }
}

fn shape(field: &FieldDescriptor) -> String {
    let wire = match field.kind() {
        Kind::Message(_) if field.is_list() || field.is_map() => return "Ones".to_owned(),
        Kind::Message(_) => return "One".to_owned(),
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => "Fixed64",
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => {
            panic!("`Wire` has no numbers of 32 bits yet")
        }
        Kind::String | Kind::Bytes => "Bytes",
        Kind::Int32
        | Kind::Int64
        | Kind::Uint32
        | Kind::Uint64
        | Kind::Sint32
        | Kind::Sint64
        | Kind::Bool
        | Kind::Enum(_) => "Varint",
    };
    if field.is_list() {
        format!("Many({wire})")
    } else if field.supports_presence() {
        format!("Marked({wire})")
    } else {
        format!("Plain({wire})")
    }
}

/// All states, and those of the resources.
fn states() -> (Maker, Vec<(&'static str, Step)>) {
    let mut maker = Maker::default();
    let roots: Vec<(&str, Step)> = (ROOTS.iter())
        .map(|name| {
            let message = POOL.get_message_by_name(name).unwrap();
            (*name, maker.section(&message))
        })
        .collect();
    (maker, roots)
}

/// The table.
fn made() -> String {
    let (maker, roots) = states();
    let mut text = String::new();
    writeln!(
        text,
        "pub(super) static ROOTS: [(&str, Step); {}] = [",
        roots.len()
    )
    .unwrap();
    for (name, step) in &roots {
        writeln!(text, "    (\"{name}\", {}),", written(step)).unwrap();
    }
    let count = maker.states.len();
    writeln!(text, "];\n\npub(super) static STATES: [State; {count}] = [").unwrap();
    for (at, (name, fields)) in maker.states.iter().enumerate() {
        writeln!(text, "    // {at}: {name}\n    State {{ fields: &[").unwrap();
        for one in fields {
            let (number, name, shape) = (one.number, &one.name, &one.shape);
            let step = written(&one.step);
            writeln!(
                text,
                "        Field({number}, \"{name}\", {shape}, {step}),"
            )
            .unwrap();
        }
        text.push_str("    ] },\n");
    }
    text.push_str("];\n");
    format!("{}{text}", head(&text))
}

/// What stands before the rows: what they use.
fn head(rows: &str) -> String {
    let used = |names: &[&str]| {
        let is_used = |name: &&&str| {
            let words = rows.split(|c: char| !c.is_alphanumeric());
            words.into_iter().any(|word| word == **name)
        };
        let used: Vec<&str> = names.iter().filter(is_used).copied().collect();
        used.join(", ")
    };
    format!(
        "//! Made of `allowed.rs` and of the descriptors in envoy-types; do not edit, but say\n\
         //! `ZEUGMA_WRITE=1 cargo test -p zeugma-xds --lib fields::made`.\n\n\
         use super::Shape::{{{}}};\n\
         use super::Step::{{{}}};\n\
         use super::Wire::{{{}}};\n\
         use super::{{Field, State, Step}};\n\n",
        used(&["Many", "Marked", "One", "Ones", "Plain"]),
        used(&["All", "Any", "Map", "No", "Within"]),
        used(&["Bytes", "Fixed64", "Varint"]),
    )
}

fn written(step: &Step) -> String {
    let all = |by: &BTreeMap<String, Step>| {
        let each = (by.iter()).map(|(name, step)| format!("(\"{name}\", {})", written(step)));
        each.collect::<Vec<_>>().join(", ")
    };
    match step {
        Step::No => "No".to_owned(),
        Step::All => "All".to_owned(),
        Step::Within(state) => format!("Within({state})"),
        Step::Any(types) => format!("Any(&[{}])", all(types)),
        Step::Map(by_key) => format!("Map(&[{}])", all(by_key)),
    }
}

#[test]
fn the_table_is_what_the_allow_list_and_the_descriptors_say() {
    let made = made();
    if env::var_os("ZEUGMA_WRITE").is_some() {
        fs::write(PATH, &made).unwrap();
        return;
    }
    let there = fs::read_to_string(PATH).unwrap();
    let differs = (there.lines().zip(made.lines())).find(|(there, made)| there != made);
    assert!(
        there == made,
        "it is not: run `ZEUGMA_WRITE=1 cargo test -p zeugma-xds --lib fields::made` ({differs:?})"
    );
}

#[test]
fn each_section_is_led_to() {
    let (maker, _) = states();
    let is_unused = |name: &&&str| !maker.used.contains(**name);
    let unused: Vec<_> = SECTIONS.keys().filter(is_unused).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

/// What reads the resources of others says which values of each field it honours.
#[test]
fn the_list_is_that_of_what_reads_these_resources() {
    let supported = include_str!("../foreign/SUPPORTED").lines();
    let fields = supported.filter_map(|line| line.split(" = ").next());
    let supported: BTreeSet<&str> = fields
        .filter(|name| name.starts_with("envoy.") && POOL.get_message_by_name(name).is_none())
        .collect();
    let (maker, _) = states();
    let mut allowed = BTreeSet::new();
    for (message, fields) in &maker.states {
        let understood = fields.iter().filter(|field| field.step != Step::No);
        allowed.extend(understood.map(|field| format!("{message}.{}", field.name)));
    }
    let unlisted = (supported.iter()).filter(|name| !allowed.contains(**name));
    assert_eq!(unlisted.collect::<Vec<_>>(), Vec::<&&str>::new());
    // Which of these there are is said where they are read as a whole.
    let within = [
        "envoy.config.core.v3.ConfigSource",
        "envoy.config.core.v3.SelfConfigSource",
    ];
    let is_within = |name: &str| {
        let message = name.rsplit_once('.').map_or(name, |(message, _)| message);
        within.contains(&message)
    };
    let is_unread = |name: &&String| !supported.contains(name.as_str()) && !is_within(name);
    let unread: Vec<&String> = allowed.iter().filter(is_unread).collect();
    assert_eq!(unread, Vec::<&String>::new());
}

#[test]
fn each_field_that_is_ignored_has_a_reason() {
    for (section, lines) in ALLOWED {
        for (line, of) in *lines {
            if let Use::Ignored(why) = of {
                assert!(!why.is_empty(), "{section}: {line}");
            }
        }
    }
}
