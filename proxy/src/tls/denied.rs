//! The deny list: SPIFFE IDs that are refused whatever certificate they show.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zeugma_core::identity::{IdPattern, IdentityError, SpiffeId};

use super::credentials::{ReadError, read_bounded};

/// The largest deny list read, in bytes.
pub const DENIED_BYTES_MAX: u64 = 4 << 20;
/// The most entries of a deny list.
pub const DENIED_MAX: usize = 50_000;

/// Why a deny list cannot be used; every message names the file and the line.
#[derive(Debug, thiserror::Error)]
pub enum DeniedError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is not text.
    #[error("{}: not UTF-8 text; is it the right file?", path.display())]
    Text {
        /// The file.
        path: PathBuf,
    },
    /// A line names nobody.
    #[error(
        "{}:{line}: not a SPIFFE ID and not a pattern such as `spiffe://east.example/ns/shop/*`",
        path.display()
    )]
    Entry {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: IdentityError,
    },
    /// It has too many entries.
    #[error("{}:{line}: over {DENIED_MAX} entries; deny by pattern, or take the trust domain's bundle away", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
}

/// SPIFFE IDs, and patterns of them, that are refused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeniedIds {
    file: Arc<str>,
    exact: HashMap<SpiffeId, usize>,
    /// By what stands before `/*`.
    below: HashMap<Box<str>, usize>,
}

impl DeniedIds {
    /// Reads a file of one ID or pattern a line; what follows `#` is ignored.
    ///
    /// # Errors
    /// The first line that cannot be used: a file is taken whole or not at all.
    pub fn load(path: &Path) -> Result<Self, DeniedError> {
        let bytes = read_bounded(path, DENIED_BYTES_MAX)?;
        let text = str::from_utf8(&bytes).map_err(|_not_text| DeniedError::Text {
            path: path.to_owned(),
        })?;
        let mut denied = Self {
            file: path.display().to_string().into(),
            ..Self::default()
        };
        for (nth, text) in text.lines().enumerate() {
            let line = nth + 1;
            let entry = text.split('#').next().unwrap_or_default().trim();
            if entry.is_empty() {
                continue;
            }
            let pattern = IdPattern::parse(entry).map_err(|source| DeniedError::Entry {
                path: path.to_owned(),
                line,
                source,
            })?;
            if denied.exact.len() + denied.below.len() >= DENIED_MAX {
                return Err(DeniedError::TooMany {
                    path: path.to_owned(),
                    line,
                });
            }
            match pattern {
                IdPattern::Exact(id) => denied.exact.entry(id).or_insert(line),
                IdPattern::Below(id) => denied.below.entry(id.as_str().into()).or_insert(line),
            };
        }
        Ok(denied)
    }

    /// Where the list denies `id`: file and line.
    #[must_use]
    pub fn position(&self, id: &SpiffeId) -> Option<String> {
        let line = self.exact.get(id).or_else(|| self.line_above(id))?;
        Some(format!("{}:{line}", self.file))
    }

    /// T7: cut at segment borders, never a text prefix.
    fn line_above(&self, id: &SpiffeId) -> Option<&usize> {
        if self.below.is_empty() {
            return None;
        }
        let domain = id.as_str().len() - id.path().len();
        let mut above = id.as_str();
        loop {
            let (parent, _) = above.rsplit_once('/')?;
            if parent.len() < domain {
                return None;
            }
            if let Some(line) = self.below.get(parent) {
                return Some(line);
            }
            above = parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_file<T>(text: &str, load: impl FnOnce(&Path) -> T) -> T {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("denied");
        std::fs::write(&path, text).unwrap();
        load(&path)
    }

    fn load(text: &str) -> Result<DeniedIds, DeniedError> {
        in_file(text, DeniedIds::load)
    }

    #[test]
    fn ids_and_patterns_deny_as_the_rules_of_a_route_do() {
        let text = "# stolen\nspiffe://a.example/ns/shop/sa/cart # ticket 7\n\n\
            spiffe://a.example/ns/evil/*\nspiffe://b.example/*\n";
        let denied = load(text).unwrap();
        let line = |id: &str| {
            let position = denied.position(&SpiffeId::parse(id).unwrap())?;
            Some(position.rsplit_once(':')?.1.to_owned())
        };
        assert_eq!(
            line("spiffe://a.example/ns/shop/sa/cart").as_deref(),
            Some("2")
        );
        assert_eq!(line("spiffe://a.example/ns/shop/sa/cart/x"), None);
        assert_eq!(
            line("spiffe://a.example/ns/evil/sa/x").as_deref(),
            Some("4")
        );
        assert_eq!(line("spiffe://a.example/ns/evil"), None);
        assert_eq!(line("spiffe://a.example/ns/eviler/x"), None);
        assert_eq!(line("spiffe://b.example/x").as_deref(), Some("5"));
        assert_eq!(line("spiffe://b.example.org/x"), None);
        // The same as a pattern says by itself.
        for pattern in ["spiffe://a.example/ns/*", "spiffe://a.example/*"] {
            let list = load(pattern).unwrap();
            let pattern = IdPattern::parse(pattern).unwrap();
            for id in [
                "spiffe://a.example/ns",
                "spiffe://a.example/ns/x",
                "spiffe://a.example/x",
            ] {
                let id = SpiffeId::parse(id).unwrap();
                assert_eq!(list.position(&id).is_some(), pattern.matches(&id), "{id}");
            }
        }
    }

    #[test]
    fn a_bad_line_is_named_and_the_limit_is_reached() {
        let error = load("spiffe://a.example/x\nspiffe://a.example/*/x\n").unwrap_err();
        assert!(
            error.to_string().contains("denied:2: not a SPIFFE ID"),
            "{error}"
        );
        assert!(load("\u{0}\n").is_err());
        let mut many: String = (0..DENIED_MAX)
            .map(|n| format!("spiffe://a.example/{n}\n"))
            .collect();
        assert_eq!(load(&many).unwrap().exact.len(), DENIED_MAX);
        many.push_str("spiffe://a.example/more");
        let error = load(&many).unwrap_err();
        assert!(matches!(error, DeniedError::TooMany { line, .. } if line == DENIED_MAX + 1));
    }
}
