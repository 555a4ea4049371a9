//! Where an endpoint or a gateway stands: `region/zone/subzone`.

use std::fmt;
use std::sync::Arc;

/// Why a text is not a locality.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalityError {
    /// The text is empty.
    #[error("a locality is `region`, `region/zone` or `region/zone/subzone`; this one is empty")]
    Empty,
    /// One part between slashes is empty.
    #[error(
        "part {0} of the locality is empty; write `region`, `region/zone` or `region/zone/subzone`"
    )]
    EmptyPart(usize),
    /// More than three parts.
    #[error("a locality has at most three parts, `region/zone/subzone`; this one has {0}")]
    TooManyParts(usize),
    /// A character that names of places do not have.
    #[error("{0:?} may not stand in a locality; write letters, digits, `-`, `_` and `.`")]
    Character(char),
    /// One part is over [`PART_CHARS_MAX`] characters.
    #[error("part {0} of the locality is over {PART_CHARS_MAX} characters; write a shorter name")]
    PartTooLong(usize),
}

/// The longest part of a locality: as long as any name that refers to one.
pub const PART_CHARS_MAX: usize = 253;

/// A region, with a zone and a subzone where known.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Locality {
    /// The region, such as `eu`; empty only for an unknown locality.
    pub region: Arc<str>,
    /// The zone within the region; empty if not known.
    pub zone: Arc<str>,
    /// The part of the zone, such as a rack; empty if not known.
    pub subzone: Arc<str>,
}

/// One step of nearness, as `locality.prefer` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The same region, zone and subzone.
    Subzone,
    /// The same region and zone.
    Zone,
    /// The same region.
    Region,
}

impl Locality {
    /// Parses `region`, `region/zone` or `region/zone/subzone`.
    ///
    /// # Errors
    /// An empty text, an empty part or one that is too long, more than three parts, or a character
    /// that is neither an ASCII letter or digit nor `-`, `_` or `.`.
    pub fn parse(text: &str) -> Result<Self, LocalityError> {
        if text.is_empty() {
            return Err(LocalityError::Empty);
        }
        let parts: Vec<&str> = text.split('/').collect();
        if let Some(at) = parts.iter().position(|part| part.is_empty()) {
            return Err(LocalityError::EmptyPart(at + 1));
        }
        if let Some(at) = parts.iter().position(|part| part.len() > PART_CHARS_MAX) {
            return Err(LocalityError::PartTooLong(at + 1));
        }
        let is_good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
        if let Some(bad) = text.chars().find(|c| !is_good(*c)) {
            return Err(LocalityError::Character(bad));
        }
        let part = |at: usize| -> Arc<str> { parts.get(at).copied().unwrap_or_default().into() };
        match parts.len() {
            1..=3 => Ok(Self {
                region: part(0),
                zone: part(1),
                subzone: part(2),
            }),
            n => Err(LocalityError::TooManyParts(n)),
        }
    }

    /// Whether both are in the same `scope`; parts that are not known match only each other.
    #[must_use]
    pub fn shares(&self, other: &Self, scope: Scope) -> bool {
        self.region == other.region
            && (scope >= Scope::Region || self.zone == other.zone)
            && (scope >= Scope::Zone || self.subzone == other.subzone)
    }

    /// Whether it is `other`, or a region or zone that `other` is in.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let is = |part: &str, other: &str| part.is_empty() || part == other;
        self.region == other.region
            && is(&self.zone, &other.zone)
            && is(&self.subzone, &other.subzone)
    }

    /// The nearest scope both share; `None` where not even the region is the same.
    #[must_use]
    pub fn nearest_shared(&self, other: &Self) -> Option<Scope> {
        [Scope::Subzone, Scope::Zone, Scope::Region]
            .into_iter()
            .find(|scope| self.shares(other, *scope))
    }
}

impl fmt::Display for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.region)?;
        for part in [&self.zone, &self.subzone] {
            if !part.is_empty() {
                f.write_str("/")?;
                f.write_str(part)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Locality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_and_format_are_inverse() {
        for text in ["eu", "eu/eu-1", "eu/eu-1/rack-a"] {
            assert_eq!(Locality::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Locality::parse(""), Err(LocalityError::Empty));
        assert_eq!(Locality::parse("eu//a"), Err(LocalityError::EmptyPart(2)));
        assert_eq!(
            Locality::parse("a/b/c/d"),
            Err(LocalityError::TooManyParts(4))
        );
    }

    #[test]
    fn a_part_is_a_name_that_a_selector_can_name() {
        for bad in ['\n', '\u{7f}', '\u{1b}', ' ', 'ö', '*', '"'] {
            assert_eq!(
                Locality::parse(&format!("eu/a{bad}b")),
                Err(LocalityError::Character(bad))
            );
        }
        assert!(Locality::parse("eu_1/eu-1.a/R2").is_ok());
        let long = "a".repeat(PART_CHARS_MAX);
        assert!(Locality::parse(&format!("eu/{long}")).is_ok());
        assert_eq!(
            Locality::parse(&format!("eu/{long}a")),
            Err(LocalityError::PartTooLong(2))
        );
    }

    #[test]
    fn nearness_needs_every_wider_part_to_match() {
        let at = |text| Locality::parse(text).unwrap();
        let here = at("eu/eu-1/a");
        assert_eq!(here.nearest_shared(&at("eu/eu-1/a")), Some(Scope::Subzone));
        assert_eq!(here.nearest_shared(&at("eu/eu-1/b")), Some(Scope::Zone));
        assert_eq!(here.nearest_shared(&at("eu/eu-2/a")), Some(Scope::Region));
        assert_eq!(here.nearest_shared(&at("us/eu-1/a")), None);
    }
}
