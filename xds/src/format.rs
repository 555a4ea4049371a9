//! One way to write documents: what is meant, each value as it is spelled, and every comment stay.
//!
//! A text is read into a tree with its comments, written from it, and read again: what would not be
//! the same is refused and left as it is.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use granit_parser::{Event, Parser, ScalarStyle, Span, StructureStyle};

use crate::error::Findings;
use crate::files;
use crate::yaml;

/// Lists and maps within each other; the reader of documents takes no more.
const DEPTH_MAX: usize = 32;

/// Why a text is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is not YAML.
    #[error("line {line}: {message}")]
    NotYaml {
        /// The line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// It uses what this does not know how to write.
    #[error("line {line}: {what}; write it otherwise, or keep this file as it is")]
    Unwritable {
        /// The line, from 1.
        line: usize,
        /// What it is.
        what: &'static str,
    },
    /// It would not mean the same, or lose a comment.
    #[error("{what} would not stay as they are; the file is kept")]
    Changed {
        /// What.
        what: &'static str,
    },
}

impl FormatError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotYaml { .. } => "ZG0104",
            Self::Unwritable { .. } | Self::Changed { .. } => "ZG0114",
        }
    }
}

/// The YAML files that a configuration at `path` consists of.
///
/// # Errors
/// As [`load`](crate::load) for what cannot be listed.
pub fn yaml_files(path: &Path) -> Result<Vec<PathBuf>, Findings> {
    files::list(path, files::LIMITS).map_err(Findings::from)
}

/// Writes a text of YAML documents in the one way: two blanks for each level, lists below their field,
/// one blank inside braces and after commas, at most one empty line, `---` alone between documents,
/// `apiVersion`, `kind`, `metadata` and `spec` in this order.
///
/// # Errors
/// Where it is not YAML, or could not be kept as it is meant.
pub fn format(text: &str) -> Result<String, FormatError> {
    let before = Text::read(text)?;
    let mut out = String::new();
    for (nth, document) in before.documents.iter().enumerate() {
        if nth > 0 {
            out.push_str("---\n");
        }
        document.write(&mut out);
    }
    let after = Text::read(&out)?;
    let changed = |what| FormatError::Changed { what };
    let same = before.documents.len() == after.documents.len()
        && (before.documents.iter().zip(&after.documents)).all(|(a, b)| a.root.means(&b.root));
    if !same || values(text) != values(&out) {
        return Err(changed("the values"));
    }
    if before.comments != after.comments {
        return Err(changed("the comments"));
    }
    Ok(out)
}

/// What a gateway would read, document by document.
fn values(text: &str) -> Vec<Option<serde_json::Value>> {
    let documents = files::split(Path::new(""), text);
    let values = documents.iter().map(|source| yaml::value(&source.text));
    values.collect()
}

/// Documents and, for comparison, every comment in their order.
struct Text {
    documents: Vec<Document>,
    comments: Vec<String>,
}

struct Document {
    root: Value,
    /// What follows the last value.
    tail: Vec<Comment>,
}

/// A comment of its own line, or at the end of one.
struct Comment {
    text: String,
    line: usize,
    column: usize,
    /// Whether an empty line stands before it.
    is_apart: bool,
    /// Whether an empty line stands after it.
    is_alone: bool,
}

/// A value, and what stands around it.
struct Value {
    inside: Inside,
    /// Whether it is written in brackets, on one line.
    is_flow: bool,
    /// At the end of its first line.
    beside: Option<Comment>,
    /// Below its last entry, as far in.
    tail: Vec<Comment>,
}

enum Inside {
    Nothing,
    Scalar(String),
    List(Vec<Entry>),
    Map(Vec<Entry>),
}

/// An entry of a list, or a field of a map.
struct Entry {
    key: String,
    value: Value,
    above: Vec<Comment>,
    /// Whether an empty line stands before it and its comments.
    is_apart: bool,
}

struct Reader<'t> {
    text: &'t str,
    /// Where each line begins.
    lines: Vec<&'t str>,
    events: Vec<(Event<'t>, Span)>,
    at: usize,
    comments: Peekable<IntoIter<Comment>>,
    depth: usize,
    /// Within brackets on one line: the comment beside it is of all of it.
    is_in_flow: bool,
    /// The column of the field whose value is read.
    field_column: Option<usize>,
}

impl Text {
    fn read(text: &str) -> Result<Self, FormatError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines: Vec<&str> = text.lines().collect();
        if let Some(at) = lines.iter().position(|line| line.starts_with('%')) {
            return Err(unwritable(at + 1, "a directive"));
        }
        let mut events = Vec::new();
        let mut comments = Vec::new();
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(|error| FormatError::NotYaml {
                line: error.marker().line(),
                message: error.info(),
            })?;
            let (line, column) = (span.start.line(), span.start.col());
            if let Event::Comment(said, _) = &event {
                comments.push(Comment {
                    text: said.trim_end().to_owned(),
                    line,
                    column,
                    is_apart: is_empty(&lines, line.saturating_sub(1)),
                    is_alone: is_empty(&lines, line + 1),
                });
            } else {
                events.push((event, span));
            }
        }
        comments.sort_by_key(|comment| (comment.line, comment.column));
        let said = (comments.iter())
            .map(|comment| comment.text.clone())
            .collect();
        let mut reader = Reader {
            text,
            lines,
            events,
            at: 0,
            comments: comments.into_iter().peekable(),
            depth: 0,
            is_in_flow: false,
            field_column: None,
        };
        Ok(Self {
            documents: reader.documents()?,
            comments: said,
        })
    }
}

/// Whether a line, from 1, is there and says nothing.
fn is_empty(lines: &[&str], line: usize) -> bool {
    let found = line.checked_sub(1).and_then(|at| lines.get(at));
    found.is_some_and(|line| line.trim().is_empty())
}

const fn unwritable(line: usize, what: &'static str) -> FormatError {
    FormatError::Unwritable { line, what }
}

impl<'t> Reader<'t> {
    fn documents(&mut self) -> Result<Vec<Document>, FormatError> {
        let mut documents = Vec::new();
        loop {
            match self.next() {
                Some((Event::StreamEnd, _)) | None => break,
                Some((Event::DocumentStart(..), _)) => documents.push(self.document()?),
                Some(_) => {}
            }
        }
        let tail = self.comments_before(usize::MAX);
        if documents.is_empty() && !tail.is_empty() {
            documents.push(Document {
                root: Value {
                    inside: Inside::Nothing,
                    is_flow: false,
                    beside: None,
                    tail: Vec::new(),
                },
                tail,
            });
        }
        Ok(documents)
    }

    fn document(&mut self) -> Result<Document, FormatError> {
        let line = self.line();
        let mut root = self.value()?;
        let tail = self.comments_before(self.next_line());
        if let Inside::Map(fields) = &mut root.inside {
            // What stands above all of it may speak of the file.
            if fields.first().is_some_and(|first| first.above.is_empty()) {
                fields.sort_by_key(|field| rank(&field.key));
            }
        } else if !matches!(root.inside, Inside::Nothing) {
            return Err(unwritable(line, "a document that is no map of fields"));
        }
        Ok(Document { root, tail })
    }

    fn next(&mut self) -> Option<(Event<'t>, Span)> {
        let next = self.events.get(self.at).cloned();
        self.at += 1;
        next
    }

    /// The line of the next event.
    fn line(&self) -> usize {
        (self.events.get(self.at)).map_or(usize::MAX, |(_, span)| span.start.line())
    }

    /// The line of the next value or document.
    fn next_line(&self) -> usize {
        let rest = self.events.get(self.at..).unwrap_or_default();
        let begins = |event: &Event<'_>| {
            matches!(
                event,
                Event::Scalar(..)
                    | Event::SequenceStart(..)
                    | Event::MappingStart(..)
                    | Event::DocumentStart(true, _)
            )
        };
        let next = rest.iter().find(|(event, _)| begins(event));
        next.map_or(usize::MAX, |(_, span)| span.start.line())
    }

    fn comments_before(&mut self, line: usize) -> Vec<Comment> {
        let mut found = Vec::new();
        while let Some(comment) = self.comments.next_if(|comment| comment.line < line) {
            found.push(comment);
        }
        found
    }

    fn comment_beside(&mut self, line: usize) -> Option<Comment> {
        if self.is_in_flow {
            return None;
        }
        self.comments.next_if(|comment| comment.line == line)
    }

    /// Comments that stand as far in as the entries of a list or map that ends here. Where a list
    /// stands as far out as its field, those that look like an entry.
    fn tail(&mut self, column: usize, is_as_far_out: bool) -> Vec<Comment> {
        let line = self.next_line();
        let mut found = Vec::new();
        let is_in = |comment: &Comment| {
            let is_entry = || comment.text.trim_start().starts_with("- ");
            let is_as_far_in = match comment.column.cmp(&column) {
                Ordering::Less => false,
                Ordering::Equal => !is_as_far_out || is_entry(),
                Ordering::Greater => true,
            };
            comment.line < line && is_as_far_in
        };
        while let Some(comment) = self.comments.next_if(is_in) {
            found.push(comment);
        }
        found
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what the parser tells beside, and may tell later, is none of these"
    )]
    fn value(&mut self) -> Result<Value, FormatError> {
        let Some((event, span)) = self.next() else {
            return Err(unwritable(self.lines.len(), "a text that ends early"));
        };
        let line = span.start.line();
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(unwritable(line, "a value that is as deep as nothing is"));
        }
        let field_column = self.field_column.take();
        let bracketed = matches!(
            event,
            Event::SequenceStart(StructureStyle::Flow, ..)
                | Event::MappingStart(StructureStyle::Flow, ..)
        );
        let (inside, is_flow) = match event {
            Event::Scalar(_, _, anchor, tag) if anchor > 0 || tag.is_some() => {
                return Err(unwritable(line, "an anchor or a tag"));
            }
            Event::SequenceStart(_, anchor, tag) | Event::MappingStart(_, anchor, tag)
                if anchor > 0 || tag.is_some() =>
            {
                return Err(unwritable(line, "an anchor or a tag"));
            }
            Event::Scalar(_, style, ..) => (self.scalar(style, &span)?, true),
            Event::SequenceStart(style, ..) => {
                let end = Event::SequenceEnd;
                let is_flow = self.is_flow(style, &end, line);
                (Inside::List(self.entries_of(&end, is_flow)?), is_flow)
            }
            Event::MappingStart(style, ..) => {
                let end = Event::MappingEnd;
                let is_flow = self.is_flow(style, &end, line);
                (Inside::Map(self.entries_of(&end, is_flow)?), is_flow)
            }
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                return Err(unwritable(line, "an alias"));
            }
            _ => return Err(unwritable(line, "something that is no value")),
        };
        self.depth -= 1;
        let column = span.start.col();
        let tail = if is_flow {
            Vec::new()
        } else if bracketed {
            self.comments_before(self.last_line())
        } else {
            let text = self.lines.get(line.saturating_sub(1)).copied();
            let text = text.unwrap_or_default();
            let dash = text.len() - text.trim_start_matches(' ').len();
            let is_dash = text.trim_start_matches(' ').starts_with('-');
            let is_list = matches!(inside, Inside::List(_));
            let is_as_far_out = is_list && is_dash && field_column == Some(dash);
            match is_as_far_out.then_some(dash) {
                // The parser has it begin behind its dash then.
                Some(dash) => self.tail(dash, true),
                None => self.tail(column, false),
            }
        };
        Ok(Value {
            beside: None,
            tail,
            inside,
            is_flow,
        })
    }

    fn scalar(&self, style: ScalarStyle, span: &Span) -> Result<Inside, FormatError> {
        let line = span.start.line();
        if line != span.end.line() || matches!(style, ScalarStyle::Literal | ScalarStyle::Folded) {
            return Err(unwritable(line, "a value of several lines"));
        }
        let range = span.start.byte_offset().zip(span.end.byte_offset());
        let raw = range.and_then(|(from, to)| self.text.get(from..to));
        let raw = raw.ok_or_else(|| unwritable(line, "a value whose place is unknown"))?;
        Ok(match raw.trim() {
            "" => Inside::Nothing,
            raw => Inside::Scalar(raw.to_owned()),
        })
    }

    /// Whether a list or map that begins before the next event is in brackets on one line.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what the parser tells beside, and may tell later, is none of these"
    )]
    fn is_flow(&self, style: StructureStyle, end: &Event<'_>, line: usize) -> bool {
        let mut depth = 0_usize;
        let rest = self.events.get(self.at..).unwrap_or_default();
        let ends = rest.iter().find(|(event, _)| {
            match event {
                Event::SequenceStart(..) | Event::MappingStart(..) => depth += 1,
                Event::SequenceEnd | Event::MappingEnd if depth == 0 => return event == end,
                Event::SequenceEnd | Event::MappingEnd => depth -= 1,
                _ => {}
            }
            false
        });
        let is_one_line = ends.is_some_and(|(_, span)| span.end.line() == line);
        // What is empty has no other form.
        let is_none = (rest.first()).is_some_and(|(event, _)| event == end);
        style == StructureStyle::Flow && (is_one_line || is_none)
    }

    fn entries_of(&mut self, end: &Event<'_>, is_flow: bool) -> Result<Vec<Entry>, FormatError> {
        let is_outermost = is_flow && !self.is_in_flow;
        self.is_in_flow |= is_flow;
        let entries = self.entries(end);
        if is_outermost {
            self.is_in_flow = false;
        }
        entries
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "what the parser tells beside, and may tell later, is none of these"
    )]
    fn entries(&mut self, end: &Event<'_>) -> Result<Vec<Entry>, FormatError> {
        let mut entries = Vec::new();
        loop {
            let (line, column) = match self.events.get(self.at) {
                Some((event, _)) if event == end => {
                    self.at += 1;
                    return Ok(entries);
                }
                Some((_, span)) => (span.start.line(), Some(span.start.col())),
                None => return Err(unwritable(self.lines.len(), "a text that ends early")),
            };
            let above = self.comments_before(line);
            let first = above.first().map_or(line, |comment| comment.line);
            let is_apart = !entries.is_empty() && is_empty(&self.lines, first.saturating_sub(1));
            let key = match end {
                Event::MappingEnd => self.key()?,
                _ => String::new(),
            };
            // A field whose value is below has its comment before that.
            let is_below = !key.is_empty() && self.line() > line;
            let beside = is_below.then(|| self.comment_beside(line)).flatten();
            self.field_column = column.filter(|_| !key.is_empty());
            let mut value = self.value()?;
            let last = self.last_line();
            value.beside = beside.or_else(|| {
                let is_single = value.is_flow || matches!(value.inside, Inside::Nothing);
                is_single.then(|| self.comment_beside(last)).flatten()
            });
            entries.push(Entry {
                key,
                value,
                above,
                is_apart,
            });
        }
    }

    fn key(&mut self) -> Result<String, FormatError> {
        let line = self.line();
        match self.value()?.inside {
            Inside::Scalar(key) => Ok(key),
            Inside::Nothing | Inside::List(_) | Inside::Map(_) => {
                Err(unwritable(line, "a field without a name"))
            }
        }
    }

    /// The line of the end of what was read last.
    fn last_line(&self) -> usize {
        let last = self.at.checked_sub(1).and_then(|at| self.events.get(at));
        last.map_or(0, |(_, span)| span.end.line())
    }
}

/// The order of what stands at the top of a document.
fn rank(key: &str) -> usize {
    let order = ["apiVersion", "kind", "metadata", "spec"];
    let own = order.iter().position(|known| *known == key);
    own.unwrap_or(order.len())
}

impl Document {
    fn write(&self, out: &mut String) {
        if !matches!(self.root.inside, Inside::Nothing) {
            self.root.write_below(out, 0);
        }
        write_comments(out, &self.tail, 0);
    }
}

fn write_comments(out: &mut String, comments: &[Comment], indent: usize) {
    for comment in comments {
        let is_first = out.is_empty() || out.ends_with("---\n");
        if comment.is_apart && !is_first && !out.ends_with("\n\n") {
            out.push('\n');
        }
        blanks(out, indent);
        writeln!(out, "#{}", comment.text).ok();
    }
}

fn blanks(out: &mut String, count: usize) {
    out.extend(std::iter::repeat_n(' ', count));
}

/// Ends a line, with the comment beside it: where it stood, or further right.
fn end_line(out: &mut String, beside: Option<&Comment>) {
    if let Some(comment) = beside {
        let line = out.rsplit('\n').next().unwrap_or_default().chars().count();
        blanks(out, comment.column.saturating_sub(line).max(1));
        write!(out, "#{}", comment.text).ok();
    }
    out.push('\n');
}

impl Value {
    /// Whether both say the same, however it is laid out.
    fn means(&self, other: &Self) -> bool {
        let all = |a: &[Entry], b: &[Entry]| {
            let same = |(a, b): (&Entry, &Entry)| a.key == b.key && a.value.means(&b.value);
            a.len() == b.len() && a.iter().zip(b).all(same)
        };
        match (&self.inside, &other.inside) {
            (Inside::Nothing, Inside::Nothing) => true,
            (Inside::Scalar(a), Inside::Scalar(b)) => a == b,
            (Inside::List(a), Inside::List(b)) | (Inside::Map(a), Inside::Map(b)) => all(a, b),
            (
                Inside::Nothing | Inside::Scalar(_) | Inside::List(_) | Inside::Map(_),
                Inside::Nothing | Inside::Scalar(_) | Inside::List(_) | Inside::Map(_),
            ) => false,
        }
    }

    /// On the line it begins on.
    fn write_beside(&self, out: &mut String) {
        match &self.inside {
            Inside::Nothing => {}
            Inside::Scalar(text) => out.push_str(text),
            Inside::List(entries) => {
                out.push('[');
                for (nth, entry) in entries.iter().enumerate() {
                    out.push_str(if nth > 0 { ", " } else { "" });
                    entry.value.write_beside(out);
                }
                out.push(']');
            }
            Inside::Map(fields) if fields.is_empty() => out.push_str("{}"),
            Inside::Map(fields) => {
                for (nth, field) in fields.iter().enumerate() {
                    out.push_str(if nth > 0 { ", " } else { "{ " });
                    out.push_str(&field.key);
                    if !matches!(field.value.inside, Inside::Nothing) {
                        out.push_str(": ");
                        field.value.write_beside(out);
                    }
                }
                out.push_str(" }");
            }
        }
    }

    /// Entry by entry, each on a line of its own; the first line is begun already where something
    /// stands on it.
    fn write_below(&self, out: &mut String, indent: usize) {
        let (entries, is_list) = match &self.inside {
            Inside::List(entries) => (entries, true),
            Inside::Map(fields) => (fields, false),
            Inside::Nothing | Inside::Scalar(_) => return,
        };
        for entry in entries {
            let is_begun = !out.is_empty() && !out.ends_with('\n');
            if !is_begun {
                if entry.is_apart && !out.ends_with("\n\n") {
                    out.push('\n');
                }
                write_comments(out, &entry.above, indent);
                if entry.above.last().is_some_and(|last| last.is_alone) && !out.ends_with("\n\n") {
                    out.push('\n');
                }
                blanks(out, indent);
            }
            let value = &entry.value;
            if is_list {
                out.push('-');
            } else {
                write!(out, "{}:", entry.key).ok();
            }
            let is_beside = value.is_flow || matches!(value.inside, Inside::Nothing);
            if is_beside {
                if !matches!(value.inside, Inside::Nothing) {
                    out.push(' ');
                    value.write_beside(out);
                }
                end_line(out, value.beside.as_ref());
            } else if is_list {
                out.push(' ');
                value.write_below(out, indent + 2);
            } else {
                end_line(out, value.beside.as_ref());
                value.write_below(out, indent + 2);
            }
        }
        write_comments(out, &self.tail, indent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_laid_out_in_one_way_and_nothing_is_lost() {
        let written = "\u{feff}---\n# For all.\n\nkind:   MeshRoute # a route\napiVersion: zeugma.dev/v1alpha1\r\nmetadata: {name: orders,namespace: shop}\nspec:\n    # Where.\n    backends:\n    -   name: near\n        endpoints: [ \"10.0.1.1:80\",'10.0.1.2:80' ]   # two\n\n\n    - {peer: west}\n    # - {peer: north}\n    allow: [\n        {listeners: [apps]},  # our own\n        # nobody else\n        ]\n    deny: []\n# The end.\n---\nkind: MeshDefaults\n...\n";
        let expected = "# For all.\n\nkind: MeshRoute   # a route\napiVersion: zeugma.dev/v1alpha1\nmetadata: { name: orders, namespace: shop }\nspec:\n  # Where.\n  backends:\n    - name: near\n      endpoints: [\"10.0.1.1:80\", '10.0.1.2:80']      # two\n\n    - { peer: west }\n    # - {peer: north}\n  allow:\n    - { listeners: [apps] }   # our own\n    # nobody else\n  deny: []\n# The end.\n---\nkind: MeshDefaults\n";
        let formatted = format(written).unwrap();
        assert_eq!(formatted, expected);
        assert_eq!(format(&formatted).unwrap(), formatted);
    }

    #[test]
    fn the_head_of_a_document_has_one_order_where_no_comment_stands_above_it() {
        let written = "spec: {}\nmetadata:\n  name: a\nkind: MeshDefaults\napiVersion: v\n";
        let expected = "apiVersion: v\nkind: MeshDefaults\nmetadata:\n  name: a\nspec: {}\n";
        assert_eq!(format(written).unwrap(), expected);
    }

    #[test]
    fn what_cannot_be_kept_is_refused() {
        for (text, said) in [
            ("a: &x 1\nb: *x\n", "an anchor or a tag"),
            ("a: !str 1\n", "an anchor or a tag"),
            ("a: |\n  text\n", "a value of several lines"),
            ("a: one\n  two\n", "a value of several lines"),
            ("- a\n", "a document that is no map of fields"),
            ("? [a]\n: b\n", "a field without a name"),
            ("%YAML 1.2\n---\na: b\n", "a directive"),
            ("a: [", "line 1"),
        ] {
            let error = format(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text:?}: {error}");
        }
        let deep = "[".repeat(DEPTH_MAX + 1) + &"]".repeat(DEPTH_MAX + 1);
        let error = format(&format!("a: {deep}")).unwrap_err().to_string();
        assert!(error.contains("as deep as nothing is"), "{error}");
    }

    #[test]
    fn a_file_of_comments_alone_stays() {
        let text = "# a: b\n\n# c: d\n";
        assert_eq!(format(text).unwrap(), text);
        assert_eq!(format("").unwrap(), "");
    }

    #[test]
    fn every_document_of_the_examples_keeps_its_meaning() {
        let examples = files::of_repository(&["examples"]);
        for (path, text) in &examples {
            let formatted = format(text).unwrap();
            assert_eq!(format(&formatted), Ok(formatted.clone()), "{path:?}");
        }
        assert!(examples.len() > 10, "{}", examples.len());
    }
}
