//! Reads a file or a directory into documents; knows nothing of what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Code, Finding, Findings, Place};
use crate::sum::Fnv;

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

/// What an editor may put before a file's first line.
const BOM: char = '\u{feff}';

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

/// What a file looked like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileLook {
    /// Device, inode, length, and when it was written, in seconds and nanoseconds.
    pub stat: Option<(u64, u64, u64, i64, i64)>,
    /// A sum of what was read of it.
    pub content: u128,
}

/// What stands below a path.
#[derive(Debug)]
pub(crate) struct Contents {
    /// Every document.
    pub documents: Vec<Source>,
    /// The paths to watch: the files, and their folder.
    pub watched: Vec<PathBuf>,
    /// How many of them are files.
    pub files: usize,
    /// The files that cannot be read, and why.
    pub unread: Vec<(Arc<str>, Finding)>,
    /// The files that hold nothing at all, not even a comment: cut short, as far as can be known.
    pub emptied: Vec<Arc<str>>,
}

impl Contents {
    /// What each file looks like now, with what was read of it before.
    pub(crate) fn looks(&self) -> BTreeMap<Arc<str>, FileLook> {
        let mut sums: BTreeMap<Arc<str>, Fnv> = BTreeMap::new();
        for source in &self.documents {
            let sum = sums.entry(Arc::clone(&source.file)).or_default();
            sum.add(&source.lines_before.to_le_bytes());
            sum.add_all(source.text.as_bytes());
        }
        for (file, finding) in &self.unread {
            let sum = sums.entry(Arc::clone(file)).or_default();
            sum.add(finding.message.as_bytes());
        }
        let looks = self.files().map(|file| {
            let stat = fs::metadata(&*file).ok();
            let stat = stat.map(|s| (s.dev(), s.ino(), s.len(), s.mtime(), s.mtime_nsec()));
            let content = sums.remove(&file).unwrap_or_default().end();
            (file, FileLook { stat, content })
        });
        looks.collect()
    }

    /// The files that hold less than `good`, the documents that serve, in a way that is seen where a
    /// file is still being written: fewer documents, the beginning of the last one, or no end of its
    /// last line.
    pub(crate) fn cut<'a>(&self, good: impl Iterator<Item = &'a Source>) -> BTreeSet<Arc<str>> {
        let mut before: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for source in good {
            before.entry(&source.file).or_default().push(&source.text);
        }
        let mut now: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        for source in &self.documents {
            let (count, last) = now.entry(&source.file).or_default();
            (*count, *last) = (*count + 1, &source.text);
        }
        let is_cut = |file: &Arc<str>| {
            let before = before.get(&**file).map_or(&[][..], Vec::as_slice);
            let (count, last) = now.get(&**file).copied().unwrap_or_default();
            let is_part = |whole: &&str| whole.starts_with(last);
            let ends = || last.ends_with('\n') || before.contains(&last);
            let is_begun = || before.iter().any(is_part) && !before.contains(&last);
            count < before.len() || (count > 0 && (!ends() || is_begun()))
        };
        self.files().filter(is_cut).collect()
    }

    /// Holds back what was read of these files: they are still being written.
    pub(crate) fn hold(&mut self, files: &BTreeSet<Arc<str>>) {
        if files.is_empty() {
            return;
        }
        self.documents
            .retain(|source| !files.contains(&source.file));
        self.unread.retain(|(file, _)| !files.contains(file));
        self.emptied.retain(|file| !files.contains(file));
        let held = files.iter().map(|file| {
            let message = "the file does not come to rest; what it held before goes on serving";
            let finding = whole(Path::new(&**file), Code::Unreadable, message)
                .help("write it beside and rename it, or end what keeps writing to it");
            (Arc::clone(file), finding)
        });
        self.unread.extend(held);
    }

    /// Every file, as documents name it.
    fn files(&self) -> impl Iterator<Item = Arc<str>> {
        let files = self.watched.iter().take(self.files);
        files.map(|file| file.display().to_string().into())
    }
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
    let files = watched.len();
    if path.is_dir() {
        watched.push(path.to_owned());
    }
    Ok(Contents {
        documents,
        watched,
        files,
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

pub(crate) fn list(path: &Path, limits: ReadLimits) -> Result<Vec<PathBuf>, Finding> {
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
pub(crate) fn split(path: &Path, text: &str) -> Vec<Source> {
    let file: Arc<str> = path.display().to_string().into();
    let folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
    let mut sources = Vec::new();
    let mut add = |(lines_before, blanks, from): (u32, &str, usize), to: usize| {
        let says = text.get(from..to).unwrap_or_default();
        let says_something = says
            .lines()
            .map(str::trim_start)
            .any(|line| !line.is_empty() && !line.starts_with('#'));
        if says_something {
            sources.push(Source {
                file: Arc::clone(&file),
                folder: folder.clone(),
                lines_before,
                nth: 0,
                text: [blanks, says].concat(),
            });
        }
    };
    // The lines before it, what stands before its text, and where that begins.
    let mut document = (
        0,
        "",
        if text.starts_with(BOM) {
            BOM.len_utf8()
        } else {
            0
        },
    );
    let ends = memchr::memchr_iter(b'\n', text.as_bytes());
    let starts = std::iter::once(document.2).chain(ends.map(|end| end.saturating_add(1)));
    for (nth, start) in (1_u32..).zip(starts) {
        let line = text.get(start..).unwrap_or_default();
        match marker_rest(line) {
            Some("") => {
                add(document, start);
                let next = line
                    .find('\n')
                    .map_or(line.len(), |end| end.saturating_add(1));
                document = (nth, "", start.saturating_add(next));
            }
            Some(rest) => {
                add(document, start);
                // Content may follow on the marker's line; blanks keep its column.
                document = (
                    nth.saturating_sub(1),
                    "   ",
                    text.len().saturating_sub(rest.len()),
                );
            }
            None => {}
        }
    }
    add(document, text.len());
    sources
}

/// What follows a document marker at the start of `text`: empty where its line says nothing else, or
/// all of it, which begins with a blank.
fn marker_rest(text: &str) -> Option<&str> {
    let rest = text
        .strip_prefix("---")
        .or_else(|| text.strip_prefix("..."))?;
    let line = rest.lines().next().unwrap_or_default();
    if line.trim().is_empty() || line.trim_start().starts_with('#') {
        return Some("");
    }
    line.starts_with([' ', '\t']).then_some(rest)
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

/// Every YAML file of these folders of the repository, and in what is below them.
#[cfg(test)]
pub(crate) fn of_repository(folders: &[&str]) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "yaml") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    found
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
        assert_eq!(
            texts("\u{feff}---\r\na: 1\r\n--- {b: 1}\n# c\nd: 2\n...\ne: 3\n---"),
            [
                (1, "a: 1\r\n".to_owned()),
                (2, "    {b: 1}\n# c\nd: 2\n".to_owned()),
                (6, "e: 3\n".to_owned()),
            ]
        );
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
