//! Reads a file or a directory into documents; knows nothing of what they say.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Code, Finding, Findings, Place};

/// What the reader accepts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadLimits {
    /// Bytes of one file.
    pub file_bytes_max: u64,
    /// Files of one directory.
    pub files_max: usize,
    /// Documents of all files.
    pub documents_max: usize,
}

/// Ten thousand routes of a real mesh are 3 MB; this leaves room for ten times that.
pub(crate) const LIMITS: ReadLimits = ReadLimits {
    file_bytes_max: 32 * 1024 * 1024,
    files_max: 10_000,
    documents_max: 100_000,
};

/// One YAML document, as text.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The file as the operator named it.
    pub file: Arc<str>,
    /// The folder that relative paths start from.
    pub folder: PathBuf,
    /// How many lines of the file stand before the document.
    pub lines_before: u32,
    /// Its number among all that were read, from 1.
    pub nth: u32,
    /// The text.
    pub text: String,
}

impl Source {
    /// A place in this document; `line` and `column` count from 1 within it.
    pub(crate) fn place(&self, line: u32, column: u32, width: u32, path: &str) -> Place {
        let at = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
        let text = self.text.lines().nth(at).unwrap_or_default();
        let rest = u32::try_from(text.chars().count())
            .unwrap_or(u32::MAX)
            .saturating_sub(column.saturating_sub(1));
        Place {
            file: Arc::clone(&self.file),
            line: line.saturating_add(self.lines_before),
            column,
            width: width.clamp(1, rest.max(1)),
            text: text.into(),
            path: path.to_owned(),
            document: self.nth,
        }
    }
}

/// What stands below a path.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Every document.
    pub documents: Vec<Source>,
    /// The paths to watch.
    pub watched: Vec<PathBuf>,
    /// The files that cannot be read, and why.
    pub unread: Vec<(Arc<str>, Finding)>,
    /// The files that hold nothing at all, not even a comment: cut short, as far as can be known.
    pub emptied: Vec<Arc<str>>,
}

/// Everything below `path`.
///
/// # Errors
/// Where it cannot even be told what there is, or there is more than may be.
pub(crate) fn read(path: &Path, limits: ReadLimits) -> Result<Contents, Findings> {
    let files = list(path, limits)?;
    let (mut unread, mut emptied) = (Vec::new(), Vec::new());
    let mut documents = Vec::new();
    for file in &files {
        match read_file(file, limits) {
            Ok(text) if text.trim_ascii().is_empty() => {
                emptied.push(file.display().to_string().into());
            }
            Ok(text) => documents.extend(split(file, &text)),
            Err(finding) => unread.push((file.display().to_string().into(), finding)),
        }
    }
    if documents.len() > limits.documents_max {
        let message = format!(
            "{} documents; at most {} are read",
            documents.len(),
            limits.documents_max
        );
        return Err(whole(path, Code::TooLarge, message)
            .help("load fewer files into one gateway")
            .into());
    }
    for (nth, document) in (1..).zip(&mut documents) {
        document.nth = nth;
    }
    let mut watched = files;
    if path.is_dir() {
        watched.push(path.to_owned());
    }
    Ok(Contents {
        documents,
        watched,
        unread,
        emptied,
    })
}

/// What is said of a file that holds nothing where it held documents before.
pub(crate) fn emptied(file: &Arc<str>) -> Finding {
    let message = "the file is empty; what it held before goes on serving";
    whole(Path::new(&**file), Code::Unreadable, message)
        .help("write it again, or remove the file to remove its documents")
}

fn list(path: &Path, limits: ReadLimits) -> Result<Vec<PathBuf>, Finding> {
    let meta = fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| unreadable(path, &error))? {
        let entry = entry.map_err(|error| unreadable(path, &error))?.path();
        let is_yaml = entry
            .extension()
            .is_some_and(|end| end == "yaml" || end == "yml");
        let is_hidden = entry
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        // A link that leads nowhere is a file that cannot be read, and no file that was removed.
        let is_file = || fs::metadata(&entry).map_or(true, |meta| meta.is_file());
        if is_yaml && !is_hidden && is_file() {
            files.push(entry);
        }
    }
    if files.len() > limits.files_max {
        let message = format!(
            "{} files; at most {} are read",
            files.len(),
            limits.files_max
        );
        return Err(whole(path, Code::TooLarge, message)
            .help("put several documents into one file, separated by `---`"));
    }
    if files.is_empty() {
        return Err(whole(
            path,
            Code::Unreadable,
            "no file here ends in `.yaml` or `.yml`",
        ));
    }
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, limits: ReadLimits) -> Result<String, Finding> {
    use std::io::Read as _;

    let file = fs::File::open(path).map_err(|error| unreadable(path, &error))?;
    let mut bytes = Vec::new();
    // One byte more than allowed is read, so that a pipe or a growing file is bounded as well.
    file.take(limits.file_bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(path, &error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limits.file_bytes_max {
        let message = format!(
            "the file is over {} bytes, which is all that is read",
            limits.file_bytes_max
        );
        return Err(whole(path, Code::TooLarge, message).help("split it into several files"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        whole(
            path,
            Code::NotADocument,
            format!("the file is not UTF-8 at byte {at}"),
        )
    })
}

/// Splits at `---` and `...` in the first column, which no scalar may hold (YAML 1.2.2 §9.1.2,
/// production c-forbidden): one broken document then does not hide the others.
fn split(path: &Path, text: &str) -> Vec<Source> {
    let file: Arc<str> = path.display().to_string().into();
    let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    let mut sources = Vec::new();
    let mut current = String::new();
    let mut lines_before = 0;
    let mut finish = |text: &mut String, lines_before: u32| {
        let text = std::mem::take(text);
        let says_something = text
            .lines()
            .map(str::trim_start)
            .any(|line| !line.is_empty() && !line.starts_with('#'));
        if says_something {
            sources.push(Source {
                file: Arc::clone(&file),
                folder: folder.clone(),
                lines_before,
                nth: 0,
                text,
            });
        }
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (at, line) in (1_u32..).zip(text.split_inclusive('\n')) {
        match marker_rest(line) {
            Some("") => {
                finish(&mut current, lines_before);
                lines_before = at;
            }
            Some(rest) => {
                finish(&mut current, lines_before);
                // Content may follow on the marker's line; blanks keep its column.
                lines_before = at.saturating_sub(1);
                current.push_str("   ");
                current.push_str(rest);
            }
            None => current.push_str(line),
        }
    }
    finish(&mut current, lines_before);
    sources
}

/// What follows a document marker on its line: empty, or content that begins with a blank.
fn marker_rest(line: &str) -> Option<&str> {
    let rest = line
        .strip_prefix("---")
        .or_else(|| line.strip_prefix("..."))?;
    if rest.trim().is_empty() || rest.trim_start().starts_with('#') {
        return Some("");
    }
    rest.starts_with([' ', '\t']).then_some(rest)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Finding {
    whole(path, Code::Unreadable, format!("cannot read: {error}"))
}

fn whole(path: &Path, code: Code, message: impl Into<String>) -> Finding {
    Finding::error(code, message).at(Place {
        file: path.display().to_string().into(),
        line: 0,
        column: 0,
        width: 0,
        text: "".into(),
        path: String::new(),
        document: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<(u32, String)> {
        split(Path::new("a.yaml"), text)
            .into_iter()
            .map(|source| (source.lines_before, source.text))
            .collect()
    }

    #[test]
    fn documents_are_split_at_markers_in_the_first_column_alone() {
        assert_eq!(
            texts("# head\n---\na: 1\nb: |\n  ---\n--- # next\nc: 2\n...\n---\n---\nd: 3"),
            [
                (2, "a: 1\nb: |\n  ---\n".to_owned()),
                (6, "c: 2\n".to_owned()),
                (10, "d: 3".to_owned())
            ]
        );
        assert_eq!(texts("--- {a: 1}\n"), [(0, "    {a: 1}\n".to_owned())]);
        assert_eq!(texts("---a: 1\n"), [(0, "---a: 1\n".to_owned())]);
    }

    #[test]
    fn every_limit_is_reached_and_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.yaml", "b.yml", "c.txt", ".d.yaml"] {
            fs::write(dir.path().join(name), "a: 1\n---\nb: 1\n").unwrap();
        }
        let limits = ReadLimits {
            file_bytes_max: 14,
            files_max: 2,
            documents_max: 4,
        };
        let all = read(dir.path(), limits).unwrap();
        assert_eq!((all.documents.len(), all.watched.len()), (4, 3));
        assert!(all.documents.iter().map(|one| one.nth).eq(1..=4));
        for (limits, words) in [
            (
                ReadLimits {
                    file_bytes_max: 13,
                    ..limits
                },
                "over 13 bytes",
            ),
            (
                ReadLimits {
                    files_max: 1,
                    ..limits
                },
                "2 files; at most 1",
            ),
            (
                ReadLimits {
                    documents_max: 3,
                    ..limits
                },
                "4 documents; at most 3",
            ),
        ] {
            let findings = all_findings(dir.path(), limits);
            assert!(findings.to_string().contains(words), "{findings}");
            assert!(findings.iter().all(|f| f.code == Code::TooLarge));
        }
        let large = dir.path().join("large.yaml");
        fs::File::create(&large)
            .unwrap()
            .set_len(LIMITS.file_bytes_max + 1)
            .unwrap();
        assert!(!all_findings(&large, LIMITS).is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing.yaml");
        assert!(
            all_findings(&missing, LIMITS)
                .to_string()
                .contains("missing.yaml: cannot read")
        );
        assert!(
            all_findings(dir.path(), LIMITS)
                .to_string()
                .contains("no file here ends in")
        );
        let binary = dir.path().join("binary.yaml");
        fs::write(&binary, b"a: \xff").unwrap();
        assert!(
            all_findings(&binary, LIMITS)
                .to_string()
                .contains("not UTF-8 at byte 3")
        );
    }
    fn all_findings(path: &Path, limits: ReadLimits) -> Findings {
        let mut findings = Findings::new();
        match read(path, limits) {
            Ok(contents) => {
                for (file, finding) in contents.unread {
                    assert!(finding.to_string().starts_with(&*file));
                    findings.push(finding);
                }
            }
            Err(all) => findings = all,
        }
        findings
    }
}
