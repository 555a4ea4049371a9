//! The YAML parser, wrapped: strict YAML 1.2 scalars, bounded work, a position for every value.

mod plain;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::budget::BudgetBreach;
use serde_saphyr::{DuplicateKeyPolicy, Error, Location, NonFiniteFloatPolicy, Options, Spanned};

use crate::error::{Code, Finding, Place, suggest};
use crate::files::Source;

/// Nodes of one document; a route has about 60.
pub(crate) const NODES_MAX: usize = 2_000_000;

/// Lists and maps within each other; a route has at most 8.
const DEPTH_MAX: usize = 32;

/// What aliases of one document may expand to.
const REPLAYED_EVENTS_MAX: usize = 10_000;

/// A document's values without their text: where each stands.
#[derive(Debug, Clone)]
pub(crate) struct Positions {
    spot: Spot,
    inside: Inside,
}

#[derive(Debug, Clone)]
enum Inside {
    Scalar(String),
    List(Vec<Positions>),
    Map(Vec<(String, Spot, Positions)>),
}

impl Default for Positions {
    /// Those of a document that says nothing.
    fn default() -> Self {
        Self {
            spot: Spot {
                line: 1,
                column: 1,
                width: 1,
            },
            inside: Inside::Map(Vec::new()),
        }
    }
}

/// A value with the line of its document it stands in.
#[derive(Debug, Clone)]
pub(crate) struct Placed<T> {
    pub value: T,
    pub line: u32,
    /// 0: of this document; else the place, from 1, among those it inherits from.
    pub of: u8,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Placed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(plain::PLACED, PlacedVisitor(PhantomData))
    }
}

struct PlacedVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for PlacedVisitor<T> {
    type Value = Placed<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    /// Of the reader of plain documents.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Placed<T>, A::Error> {
        let (Some(line), Some(value)) = (seq.next_element()?, seq.next_element()?) else {
            return Err(de::Error::invalid_length(0, &self));
        };
        Ok(Placed { value, line, of: 0 })
    }

    /// Of the library, which knows of places by a type of its own.
    fn visit_newtype_struct<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> Result<Placed<T>, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        Ok(Placed {
            value: spanned.value,
            line: Spot::from(spanned.referenced).line,
            of: 0,
        })
    }
}

impl<T: JsonSchema> JsonSchema for Placed<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// A line and a column within a document, from 1, and a width in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spot {
    pub line: u32,
    pub column: u32,
    pub width: u32,
}

impl From<Location> for Spot {
    fn from(location: Location) -> Self {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            line: small(location.line()).max(1),
            column: small(location.column()).max(1),
            width: small(location.span().len()),
        }
    }
}

/// Reads the positions of a document.
pub(crate) fn positions(source: &Source) -> Result<Positions, Finding> {
    // Reading the values finds these too, and then their path is known.
    let mut options = options(DuplicateKeyPolicy::LastWins);
    // What looks like a number here may be a text to who reads it.
    options.non_finite_float_policy = NonFiniteFloatPolicy::PassThrough;
    let spanned: Spanned<Tree> = serde_saphyr::from_str_with_options(&source.text, options)
        .map_err(|error| finding(source, None, &error))?;
    Ok(Positions::from(spanned))
}

/// Reads a document as `T`; the finding of a failure has the path of the value.
pub(crate) fn read<T: DeserializeOwned>(
    source: &Source,
    positions: &Positions,
) -> Result<T, Finding> {
    serde_saphyr::from_str_with_options(&source.text, options(DuplicateKeyPolicy::Error))
        .map_err(|error| finding(source, Some(positions), &error))
}

/// Reads a document as `T` where nothing in it could be said differently of its positions: without
/// anchors, aliases and tags. `None` is no verdict: [`positions`] and [`read`] have it.
///
/// A type tells by itself whether a field is there twice, and [`unique`] of a map.
pub(crate) fn read_plain<T: DeserializeOwned>(source: &Source) -> Option<T> {
    plain::read(&source.text)
}

/// Reads a map in which no name may stand twice, whatever the reader makes of that.
pub(crate) fn unique<'de, D, V>(deserializer: D) -> Result<Option<BTreeMap<String, V>>, D::Error>
where
    D: Deserializer<'de>,
    V: Deserialize<'de>,
{
    deserializer.deserialize_option(UniqueVisitor(PhantomData))
}

struct UniqueVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for UniqueVisitor<V> {
    type Value = Option<BTreeMap<String, V>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, value)) = entries.next_entry::<String, V>()? {
            if map.contains_key(&name) {
                return Err(de::Error::custom(format_args!("`{name}` is there twice")));
            }
            map.insert(name, value);
        }
        Ok(Some(map))
    }
}

/// What a document says, whatever it is for; `None` if it cannot be read.
pub(crate) fn value(text: &str) -> Option<serde_json::Value> {
    serde_saphyr::from_str_with_options(text, options(DuplicateKeyPolicy::Error)).ok()
}

fn options(duplicate_keys: DuplicateKeyPolicy) -> Options {
    serde_saphyr::options! {
        duplicate_keys: duplicate_keys,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: REPLAYED_EVENTS_MAX,
        },
        budget: serde_saphyr::budget! {
            max_nodes: NODES_MAX,
            max_events: NODES_MAX * 2,
            max_depth: DEPTH_MAX,
        },
        strict_booleans: true,
        underscored_numbers_as_strings: true,
        leading_zero_numbers_as_strings: true,
    }
}

fn finding(source: &Source, positions: Option<&Positions>, error: &Error) -> Finding {
    let mut error = error.without_snippet();
    while let Error::AliasError { error: inner, .. } = error {
        error = inner.without_snippet();
    }
    let spot = error.location().map_or(
        Spot {
            line: 1,
            column: 1,
            width: 1,
        },
        Spot::from,
    );
    let place = |path: &str, width: u32| source.place(spot.line, spot.column, width, path);
    let path = positions
        .and_then(|positions| positions.path_at(spot))
        .unwrap_or_default();
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser has over sixty errors, most of which differ in their text alone"
    )]
    match error {
        Error::SerdeUnknownField {
            field, expected, ..
        } => Finding::error(Code::UnknownField, format!("unknown field `{field}`"))
            .maybe_help(suggest(field, expected.iter().copied()))
            .at(place(&path, chars(field))),
        Error::SerdeMissingField { field, .. } => {
            let path = positions.map_or("", |positions| positions.map_at(spot, &path));
            Finding::error(Code::MissingField, format!("`{field}` is missing"))
                .at(place(path, spot.width))
        }
        Error::SerdeUnknownVariant {
            variant, expected, ..
        } => Finding::error(Code::BadValue, format!("`{variant}` is not known here"))
            .maybe_help(suggest(variant, expected.iter().copied()))
            .at(place(&path, chars(variant))),
        Error::DuplicateMappingKey { key, .. } => {
            let key = key.as_deref().unwrap_or("a key");
            Finding::error(Code::Duplicate, format!("`{key}` is written twice"))
                .help("keep one of them")
                .at(place(&path, chars(key)))
        }
        Error::AliasReplayLimitExceeded { .. } => Finding::error(
            Code::TooLarge,
            format!("the document's aliases stand for over {REPLAYED_EVENTS_MAX} values"),
        )
        .help("write the values out")
        .at(place(&path, 1)),
        Error::Budget {
            breach: BudgetBreach::Depth { .. },
            ..
        } => Finding::error(
            Code::TooLarge,
            format!("lists and fields are over {DEPTH_MAX} deep within each other"),
        )
        .help("close a bracket that was left open; no field is nested as deep")
        .at(place(&path, 1)),
        Error::Budget { .. } => Finding::error(
            Code::TooLarge,
            format!("the document has over {NODES_MAX} values"),
        )
        .help("split it into several documents, with `---` between them")
        .at(place(&path, 1)),
        other => {
            let place = place(&path, spot.width);
            match plain(other) {
                Some((message, help)) => Finding::error(Code::BadValue, message).help(help),
                None if positions.is_some() => Finding::error(Code::BadValue, rendered(other)),
                None => Finding::error(Code::NotADocument, rendered(other)),
            }
            .at(place)
        }
    }
}

/// The parser's own words: the first line alone, for the rest is its rendering of the place.
fn rendered(error: &Error) -> String {
    let text = error.render();
    let text = text.lines().next().unwrap_or_default();
    let text = text.strip_prefix("error: ").unwrap_or(text);
    let text = text.split(" at line ").next().unwrap_or_default();
    text.to_owned()
}

/// What a person is told where the parser speaks of its own events and types.
fn plain(error: &Error) -> Option<(&'static str, &'static str)> {
    const EMPTY: (&str, &str) = (
        "nothing is written here",
        "write a value, or remove the field",
    );
    const ONE: (&str, &str) = (
        "one value is expected here",
        "write it without brackets, braces or further lines below",
    );
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the parser has over sixty errors, most of which differ in their text alone"
    )]
    match error {
        Error::NullIntoString { .. } | Error::InvalidCharNull { .. } => Some(EMPTY),
        Error::SerdeInvalidType { unexpected, .. }
            if unexpected.contains("unit") || unexpected.contains("null") =>
        {
            Some(EMPTY)
        }
        Error::Unexpected { expected, .. } => match *expected {
            "sequence start" | "seq" => Some((
                "a list is expected here",
                "write it in brackets, such as `[a, b]`, or each entry in a line that begins with `- `",
            )),
            "mapping start" | "map" => Some((
                "fields are expected here",
                "write them in braces, such as `{name: value}`, or each in a line of its own below",
            )),
            "string" | "string scalar" | "scalar" | "value" => Some(ONE),
            _ => None,
        },
        Error::ExpectedMappingEndAfterEnumVariantValue { .. } => Some((
            "an entry names one thing alone",
            "give each its own entry, such as `[{region: us}, {cluster: north}]`",
        )),
        Error::ExternallyTaggedEnumExpectedScalarOrMapping { .. } => Some(ONE),
        Error::InvalidBooleanStrict { .. } => {
            Some(("it is neither true nor false", "write `true` or `false`"))
        }
        _ => None,
    }
}

fn chars(text: &str) -> u32 {
    u32::try_from(text.chars().count()).unwrap_or(u32::MAX)
}

impl Positions {
    /// The text of a scalar directly in the document's top map.
    pub(crate) fn top(&self, key: &str) -> Option<&str> {
        let Inside::Map(entries) = &self.inside else {
            return None;
        };
        entries
            .iter()
            .find_map(|(name, _, value)| match &value.inside {
                Inside::Scalar(text) if name == key => Some(text.as_str()),
                Inside::Scalar(_) | Inside::List(_) | Inside::Map(_) => None,
            })
    }

    /// The text of the scalar at `path`.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        let mut node = self;
        for step in steps(path) {
            node = node.step(step)?.1;
        }
        match &node.inside {
            Inside::Scalar(text) => Some(text),
            Inside::List(_) | Inside::Map(_) => None,
        }
    }

    /// Where `path` stands; the nearest parent where it is not written.
    pub(crate) fn value(&self, path: &str) -> Spot {
        let mut node = self;
        for step in steps(path) {
            match node.step(step) {
                Some((_, next)) => node = next,
                None => break,
            }
        }
        node.spot
    }

    /// Where the last key of `path` stands; the nearest parent's key where it is not written.
    pub(crate) fn key(&self, path: &str) -> Spot {
        let mut node = self;
        let mut key = self.spot;
        for step in steps(path) {
            match node.step(step) {
                Some((spot, next)) => {
                    key = spot;
                    node = next;
                }
                None => break,
            }
        }
        key
    }

    /// How many entries the list at `path` has.
    pub(crate) fn count(&self, path: &str) -> usize {
        let mut node = self;
        for step in steps(path) {
            match node.step(step) {
                Some((_, next)) => node = next,
                None => return 0,
            }
        }
        match &node.inside {
            Inside::List(items) => items.len(),
            Inside::Scalar(_) | Inside::Map(_) => 0,
        }
    }

    /// Whether `path` is written.
    pub(crate) fn has(&self, path: &str) -> bool {
        let mut node = self;
        steps(path).all(|step| match node.step(step) {
            Some((_, next)) => {
                node = next;
                true
            }
            None => false,
        })
    }

    fn step(&self, step: Step<'_>) -> Option<(Spot, &Self)> {
        match (&self.inside, step) {
            (Inside::Map(entries), Step::Key(key)) => entries
                .iter()
                .find(|(name, ..)| name == key)
                .map(|(_, spot, value)| (*spot, value)),
            (Inside::List(items), Step::Index(at)) => items.get(at).map(|item| (item.spot, item)),
            _ => None,
        }
    }

    /// The path of the key or value that begins at `spot`, else of the innermost that encloses it.
    fn path_at(&self, spot: Spot) -> Option<String> {
        let mut best: Option<(Spot, String)> = None;
        self.visit(&mut String::new(), &mut |at, path| {
            let before = (at.line, at.column) <= (spot.line, spot.column);
            let later = best
                .as_ref()
                .is_none_or(|(kept, _)| (kept.line, kept.column) <= (at.line, at.column));
            if before && later {
                best = Some((at, path.to_owned()));
            }
        });
        best.map(|(_, path)| path)
    }

    /// The map that begins at `spot`, where `path` is the innermost there: a block map begins with
    /// its first key.
    fn map_at<'p>(&self, spot: Spot, path: &'p str) -> &'p str {
        let is_first_key = !path.ends_with(']') && self.key(path) == spot;
        match path.rfind('.') {
            Some(at) if is_first_key => path.get(..at).unwrap_or_default(),
            None if is_first_key => "",
            Some(_) | None => path,
        }
    }

    fn visit(&self, path: &mut String, see: &mut impl FnMut(Spot, &str)) {
        see(self.spot, path);
        let len = path.len();
        match &self.inside {
            Inside::Scalar(_) => {}
            Inside::List(items) => {
                for (at, item) in items.iter().enumerate() {
                    path.push_str(&format!("[{at}]"));
                    item.visit(path, see);
                    path.truncate(len);
                }
            }
            Inside::Map(entries) => {
                for (key, spot, value) in entries {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                    see(*spot, path);
                    value.visit(path, see);
                    path.truncate(len);
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Step<'a> {
    Key(&'a str),
    Index(usize),
}

fn steps(path: &str) -> impl Iterator<Item = Step<'_>> {
    path.split('.')
        .filter(|part| !part.is_empty())
        .flat_map(|part| {
            let (key, indexes) = part.split_once('[').unwrap_or((part, ""));
            let key = (!key.is_empty()).then_some(Step::Key(key));
            let indexes = indexes
                .split('[')
                .filter_map(|index| index.trim_end_matches(']').parse().ok())
                .map(Step::Index);
            key.into_iter().chain(indexes)
        })
}

impl Source {
    /// The place of the value at `path`.
    pub(crate) fn place_of(&self, spot: Spot, path: &str) -> Place {
        self.place(spot.line, spot.column, spot.width, path)
    }

    /// The text of the scalar at `path`.
    pub(crate) fn text_at(&self, path: &str) -> Option<String> {
        positions(self).ok()?.text(path).map(str::to_owned)
    }
}

/// What [`positions`] reads: any value, with spans.
enum Tree {
    Scalar(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl From<Spanned<Tree>> for Positions {
    fn from(spanned: Spanned<Tree>) -> Self {
        let inside = match spanned.value {
            Tree::Scalar(text) => Inside::Scalar(text),
            Tree::List(items) => Inside::List(items.into_iter().map(Self::from).collect()),
            Tree::Map(entries) => Inside::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (key.value, key.referenced.into(), value.into()))
                    .collect(),
            ),
        };
        Self {
            spot: spanned.referenced.into(),
            inside,
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(v.to_string()))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(v.to_string()))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Tree, E> {
        Ok(Tree::Scalar(v.to_string()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(v.to_string()))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Tree, E> {
        Ok(Tree::Scalar(v.to_string()))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Tree, E> {
        Ok(Tree::Scalar(v.to_string()))
    }

    fn visit_str<E>(self, v: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(v.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(String::new()))
    }

    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(String::new()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}
