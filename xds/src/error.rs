//! Findings: what is wrong with a configuration, where, and what to do about it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde_json::{Value, json};

/// The kinds of finding; each has a code that is the same in log, API and command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Code {
    /// A field that no document of this kind has.
    UnknownField,
    /// A value that cannot be read as what its field holds.
    BadValue,
    /// A required field that is not there.
    MissingField,
    /// The text is not YAML, or not one of our documents.
    NotADocument,
    /// A file or directory cannot be read.
    Unreadable,
    /// A limit of the reader is exceeded.
    TooLarge,
    /// A reference that names nothing.
    UnknownReference,
    /// Two things that may exist only once.
    Duplicate,
    /// Fields that contradict each other.
    Contradiction,
    /// A field or entry that could never have an effect.
    NoEffect,
    /// A setting that would leave a door open.
    Unsafe,
    /// Something written that this gateway does not use.
    Unused,
    /// A listener whose address cannot be bound.
    Unbound,
    /// An xDS resource that this gateway cannot use.
    BadResource,
}

impl Code {
    /// The code as operators see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnknownField => "ZG0101",
            Self::BadValue => "ZG0102",
            Self::MissingField => "ZG0103",
            Self::NotADocument => "ZG0104",
            Self::Unreadable => "ZG0105",
            Self::TooLarge => "ZG0106",
            Self::UnknownReference => "ZG0107",
            Self::Duplicate => "ZG0108",
            Self::Contradiction => "ZG0109",
            Self::NoEffect => "ZG0110",
            Self::Unsafe => "ZG0111",
            Self::Unused => "ZG0112",
            Self::Unbound => "ZG0113",
            Self::BadResource => "ZG0501",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a finding refuses the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The configuration is refused.
    Error,
    /// The configuration is used as it is.
    Warning,
}

/// Where a finding points.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// The line, from 1; 0 where the file as a whole is meant.
    pub line: u32,
    /// The column in characters, from 1.
    pub column: u32,
    /// How many characters of the line are meant.
    pub width: u32,
    /// The line as it stands in the file.
    pub text: Arc<str>,
    /// The path inside the document, such as `spec.backends[1].peer`; empty for a whole document.
    pub path: String,
    /// The number of the document among all that were read, from 1; 0 where no document is meant.
    pub(crate) document: u32,
}

/// One thing that is wrong, or worth knowing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What kind of thing.
    pub code: Code,
    /// Whether it refuses the configuration.
    pub severity: Severity,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
    /// Where.
    pub place: Option<Box<Place>>,
    /// The numbers of the documents that it speaks of beside the one it points at.
    pub(crate) also: Vec<u32>,
}

impl Finding {
    /// An error.
    pub(crate) fn error(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            severity: Severity::Error,
            message: message.into(),
            help: None,
            place: None,
            also: Vec::new(),
        }
    }

    /// The number of the document it points at.
    pub(crate) fn document(&self) -> u32 {
        self.place.as_ref().map_or(0, |place| place.document)
    }

    /// The same, with advice.
    #[must_use]
    pub(crate) fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same, with advice where there is some.
    #[must_use]
    pub(crate) fn maybe_help(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    /// The same, pointing somewhere.
    #[must_use]
    pub(crate) fn at(mut self, place: Place) -> Self {
        self.place = Some(Box::new(place));
        self
    }

    /// The same, as a warning.
    #[must_use]
    pub(crate) const fn warning(mut self) -> Self {
        self.severity = Severity::Warning;
        self
    }

    fn render(&self, renderer: &Renderer) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level
            .primary_title(self.message.as_str())
            .id(self.code.as_str());
        let mut group = match &self.place {
            Some(place) if place.line > 0 => title.element(
                Snippet::source(place.text.as_ref())
                    .line_start(usize::try_from(place.line).unwrap_or(usize::MAX))
                    .path(place.file.as_ref())
                    .annotation(
                        AnnotationKind::Primary
                            .span(place.byte_span())
                            .label(place.path.as_str()),
                    ),
            ),
            Some(place) => title.element(annotate_snippets::Origin::path(place.file.as_ref())),
            None => annotate_snippets::Group::with_title(title),
        };
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }

    fn to_json(&self) -> Value {
        json!({
            "code": self.code.as_str(),
            "severity": match self.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            },
            "message": self.message,
            "help": self.help,
            "file": self.place.as_ref().map(|place| &*place.file),
            "line": self.place.as_ref().map(|place| place.line),
            "column": self.place.as_ref().map(|place| place.column),
            "path": self.place.as_ref().map(|place| place.path.as_str()),
        })
    }
}

impl Place {
    fn byte_span(&self) -> std::ops::Range<usize> {
        let at = |chars: u32| {
            self.text
                .char_indices()
                .nth(usize::try_from(chars).unwrap_or(usize::MAX))
                .map_or(self.text.len(), |(at, _)| at)
        };
        let start = self.column.saturating_sub(1);
        at(start)..at(start.saturating_add(self.width.max(1)))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{}", place.file)?;
            if place.line > 0 {
                write!(f, ":{}:{}", place.line, place.column)?;
            }
            f.write_str(": ")?;
            if !place.path.is_empty() {
                write!(f, "{}: ", place.path)?;
            }
        }
        write!(f, "{} ({})", self.message, self.code)?;
        match &self.help {
            Some(help) => write!(f, "; {help}"),
            None => Ok(()),
        }
    }
}

/// Everything that was found, in the order of the files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Findings {
    list: Vec<Finding>,
    /// The same, and their places in the list: several gateways of one file find the same things.
    known: BTreeMap<Finding, usize>,
}

impl Findings {
    /// Nothing found.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            list: Vec::new(),
            known: BTreeMap::new(),
        }
    }

    /// Adds a finding, to say of which other documents it speaks.
    pub(crate) fn push(&mut self, mut finding: Finding) -> Pushed<'_> {
        let also = std::mem::take(&mut finding.also);
        let at = match self.known.get(&finding) {
            Some(at) => *at,
            None => {
                self.known.insert(finding.clone(), self.list.len());
                self.list.push(finding);
                self.list.len() - 1
            }
        };
        Pushed {
            finding: self.list.get_mut(at),
        }
        .also(also)
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: Self) {
        for finding in other.list {
            self.push(finding);
        }
    }

    /// How many there are.
    pub(crate) const fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether nothing was found.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether one of them refuses the configuration.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.iter()
            .any(|finding| finding.severity == Severity::Error)
    }

    /// All of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Finding> {
        self.list.iter()
    }

    /// Sorts by file and line, so that a reader can go through the files from top to bottom.
    pub(crate) fn sort(&mut self) {
        self.list.sort_by_key(|finding| {
            finding
                .place
                .as_ref()
                .map(|place| (Arc::clone(&place.file), place.line, place.column))
        });
        self.known.clear();
        for (at, finding) in self.list.iter().enumerate() {
            let mut key = finding.clone();
            key.also.clear();
            self.known.insert(key, at);
        }
    }

    /// The findings for a person: each with its line of the file, as rustc shows them.
    #[must_use]
    pub fn to_human(&self, color: Color) -> String {
        let renderer = match color {
            Color::Plain => Renderer::plain(),
            Color::Ansi => Renderer::styled(),
        }
        .decor_style(DecorStyle::Ascii);
        let mut text = String::new();
        for finding in &self.list {
            text.push_str(&finding.render(&renderer));
            text.push_str("\n\n");
        }
        text
    }

    /// The findings for a script.
    #[must_use]
    pub fn to_json(&self) -> Value {
        self.list.iter().map(Finding::to_json).collect()
    }
}

/// A finding that was just added.
#[derive(Debug)]
pub(crate) struct Pushed<'a> {
    finding: Option<&'a mut Finding>,
}

impl Pushed<'_> {
    /// The documents of these numbers are concerned as well.
    pub(crate) fn also(self, documents: impl IntoIterator<Item = u32>) -> Self {
        let Some(finding) = self.finding else {
            return self;
        };
        for document in documents {
            if !finding.also.contains(&document) {
                finding.also.push(document);
            }
        }
        Self {
            finding: Some(finding),
        }
    }
}

impl<'a> IntoIterator for &'a Findings {
    type Item = &'a Finding;
    type IntoIter = std::slice::Iter<'a, Finding>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl From<Finding> for Findings {
    fn from(finding: Finding) -> Self {
        let mut findings = Self::new();
        findings.push(finding);
        findings
    }
}

impl fmt::Display for Findings {
    /// One line for each finding, for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, finding) in self.list.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Findings {}

/// Whether findings are shown in colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Color {
    /// Text alone.
    Plain,
    /// With ANSI escapes.
    Ansi,
}

/// `did you mean ...?` where one of `known` is close to `wrong`, else what is known.
#[must_use]
pub fn suggest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    known.dedup();
    let best = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .min()?;
    let near = (wrong.chars().count().max(3) / 3).max(1);
    if best.0 <= near {
        return Some(format!("did you mean `{}`?", best.1));
    }
    const SHOWN_MAX: usize = 20;
    let more = known.len().saturating_sub(SHOWN_MAX);
    let list: Vec<String> = known
        .iter()
        .take(SHOWN_MAX)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    Some(format!("known are {}{more}", list.join(", ")))
}
