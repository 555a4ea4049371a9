//! What others say, for a line that a person reads: whole errors, and of strangers' texts the
//! beginning.

use std::error::Error;

/// An error and its causes in one line.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// The first so many characters of a text, with ` ...` after them where there are more.
#[must_use]
pub fn beginning(text: &str, characters_max: usize) -> String {
    match text.char_indices().nth(characters_max) {
        Some((at, _)) => format!("{} ...", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("no file")]
    struct NoFile(#[source] std::num::ParseIntError);

    #[test]
    fn the_causes_of_an_error_follow_it() {
        let cause = "x".parse::<u8>().unwrap_err();
        let text = with_causes(&NoFile(cause));
        assert_eq!(text, "no file: invalid digit found in string");
    }

    #[test]
    fn of_a_long_text_the_beginning_is_told() {
        assert_eq!(beginning("\u{e4}\u{e4}", 2), "\u{e4}\u{e4}");
        assert_eq!(beginning("\u{e4}\u{e4}b", 2), "\u{e4}\u{e4} ...");
    }
}
