//! Names in a message: what there is, where what was asked for is not.

use std::fmt;

/// The most names that are shown.
const SHOWN_MAX: usize = 20;

/// Some of these names, and how many more there are.
pub(crate) fn listed(names: &[impl fmt::Display]) -> String {
    let shown: Vec<String> = (names.iter().take(SHOWN_MAX))
        .map(ToString::to_string)
        .collect();
    match names.len().saturating_sub(SHOWN_MAX) {
        _ if names.is_empty() => "none".to_owned(),
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_can_be_read_is_a_number() {
        assert_eq!(listed(&[""; 0]), "none");
        assert_eq!(listed(&["a", "b"]), "a, b");
        let many = listed(&["a"; SHOWN_MAX + 3]);
        assert!(
            many.starts_with("a, a") && many.ends_with("a and 3 more"),
            "{many}"
        );
    }
}
