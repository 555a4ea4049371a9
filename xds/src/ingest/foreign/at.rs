//! Where in a resource something stands.

use std::fmt;

/// A field of a resource, by the way to it; it costs nothing until it is written out.
#[derive(Debug, Clone, Copy)]
pub(super) enum At<'a> {
    Root,
    Field(&'a Self, &'static str),
    Nth(&'a Self, &'static str, usize),
    Key(&'a Self, &'static str, &'a str),
}

impl<'a> At<'a> {
    /// A field of it.
    pub(super) const fn field(&'a self, name: &'static str) -> Self {
        Self::Field(self, name)
    }

    /// One of the entries of a list in it.
    pub(super) const fn nth(&'a self, list: &'static str, nth: usize) -> Self {
        Self::Nth(self, list, nth)
    }

    /// One of the entries of a map in it.
    pub(super) const fn key(&'a self, map: &'static str, key: &'a str) -> Self {
        Self::Key(self, map, key)
    }

    /// Why what stands here is refused.
    pub(super) fn why(&self, why: impl fmt::Display) -> String {
        match self {
            Self::Root => why.to_string(),
            Self::Field(..) | Self::Nth(..) | Self::Key(..) => format!("{self}: {why}"),
        }
    }

    /// Refuses what stands here.
    pub(super) fn refuse<T>(&self, why: impl fmt::Display) -> Result<T, String> {
        Err(self.why(why))
    }

    /// Refuses what stands here unless it is as it must be.
    pub(super) fn must(&self, is: bool, why: impl fmt::Display) -> Result<(), String> {
        if is { Ok(()) } else { self.refuse(why) }
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = match self {
            Self::Root => return Ok(()),
            Self::Field(before, _) | Self::Nth(before, ..) | Self::Key(before, ..) => before,
        };
        if !matches!(before, Self::Root) {
            write!(f, "{before}.")?;
        }
        match self {
            Self::Root => Ok(()),
            Self::Field(_, name) => f.write_str(name),
            Self::Nth(_, name, nth) => write!(f, "{name}[{nth}]"),
            Self::Key(_, name, key) => write!(f, "{name}[\"{key}\"]"),
        }
    }
}
