//! Just enough reading of Rust source for checks by word: comments and test modules are left out,
//! text in string literals is not told from code.

use crate::workspace::{root, walk};

/// The Rust files below a folder named from the root, sorted.
pub(crate) fn rust_files(folder: &str) -> Vec<String> {
    let mut files = Vec::new();
    walk(&root().join(folder), "rs", &mut files);
    files.sort();
    files
}

/// The files below a folder that are not tests by their name: `tests.rs`, `x_tests.rs`, `tests/`, and
/// `fixture.rs`, what tests share.
pub(crate) fn own_files(folder: &str) -> Vec<String> {
    let mut files = rust_files(folder);
    files.retain(|file| !is_test(file));
    files
}

fn is_test(file: &str) -> bool {
    let is_named = ["/tests.rs", "_tests.rs", "/fixture.rs"]
        .iter()
        .any(|end| file.ends_with(end));
    is_named || file.contains("/tests/")
}

/// What of a file is tests: all of it, its test module, or nothing.
pub(crate) fn tests_of(file: &str, text: &str) -> String {
    if is_test(file) {
        return text.to_owned();
    }
    let own = without_tests(text);
    text.get(own.len()..).unwrap_or_default().to_owned()
}

/// The text before the test module, which by the style of this repository stands last.
pub(crate) fn without_tests(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    let end = (0..lines.len()).find(|at| {
        lines.get(*at) == Some(&"#[cfg(test)]")
            && lines
                .iter()
                .skip(at + 1)
                .find(|line| line.starts_with("mod "))
                .is_some_and(|line| line.ends_with('{'))
    });
    lines
        .into_iter()
        .take(end.unwrap_or(usize::MAX))
        .fold(String::new(), |text, line| text + line + "\n")
}

/// Numbered lines with what follows `//` removed. A `//` inside a literal hides the line's rest.
pub(crate) fn code_lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    text.lines().enumerate().map(|(index, line)| {
        let code = line.split("//").next().unwrap_or_default();
        (index + 1, code.to_owned())
    })
}

/// Whether `word` stands in `line` with no identifier character at either end of it.
pub(crate) fn words(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let part = |c: char| c.is_alphanumeric() || c == '_';
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line
            .get(at + word.len()..)
            .and_then(|text| text.chars().next());
        let open = word.ends_with(part) && after.is_some_and(part);
        !before.is_some_and(part) && !open
    })
}

#[test]
fn a_word_is_not_part_of_another() {
    assert!(words("use tokio::net", "tokio"));
    assert!(words("tokio", "tokio"));
    assert!(!words("my_tokio", "tokio"));
    assert!(!words("tokio_rustls", "tokio"));
    assert!(words("envoy_types::pb", "envoy_types::"));
}

#[test]
fn comments_and_the_test_module_are_left_out() {
    let text = "let a = 1; // tokio\n\n#[cfg(test)]\nmod tests {\nuse tokio;\n}\n";
    let lines: Vec<_> = code_lines(&without_tests(text)).collect();
    assert_eq!(lines, [(1, "let a = 1; ".to_owned()), (2, String::new())]);
    let elsewhere = "#[cfg(test)]\nmod tests;\nuse std::fmt;\n";
    assert_eq!(without_tests(elsewhere), elsewhere);
}
