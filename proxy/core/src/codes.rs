//! Every message an operator can meet, by its code: the one table that `zeugma explain` prints and
//! the house's tests hold against the sources.
//!
//! A code is never given a second meaning. Messages that ask for the same thing to be done share one.
//! Where a message is written its code stands as text, so that a search leads from either to the other.

mod commands;
mod config;
mod names;
mod peers;
mod policy;
mod process;
mod routing;
mod trust;

/// What stands in front of the four digits.
pub const PREFIX: &str = "ZG";

/// What a code means, and what to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// `ZG` and four digits, of which two are the area's.
    pub code: &'static str,
    /// In a few words.
    pub title: &'static str,
    /// Where it is met.
    pub seen: &'static [Seen],
    /// What has happened.
    pub meaning: &'static str,
    /// What to do about it.
    pub action: &'static str,
    /// Why no test provokes it; `None`: one does.
    pub unprovoked: Option<&'static str>,
}

/// Where a message is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Among the findings of a configuration: `zeugma config check`, `/api/v1/findings`, the log.
    Finding,
    /// In the log of a gateway, on standard error.
    Log,
    /// In the access log, as the reason of an end.
    AccessLog,
    /// On the terminal, by a command.
    Command,
    /// In an answer of the admin interface.
    Admin,
}

impl Seen {
    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Finding => "findings of a configuration",
            Self::Log => "log",
            Self::AccessLog => "access log",
            Self::Command => "terminal",
            Self::Admin => "admin interface",
        }
    }
}

/// What the first two digits say.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// The two digits.
    pub digits: &'static str,
    /// What it is about.
    pub name: &'static str,
    /// Its codes, in order.
    pub entries: &'static [Entry],
}

/// Every area, in order.
pub const AREAS: &[Area] = &[
    area("01", "configuration", config::ENTRIES),
    area("02", "certificates and the CA", trust::ENTRIES),
    area("03", "peers and TLS", peers::ENTRIES),
    area("04", "routing and failover", routing::ENTRIES),
    area("05", "xDS", config::RESOURCES),
    area("06", "names", names::ENTRIES),
    area("07", "policy", policy::ENTRIES),
    area(
        "09",
        "the gateway's process and its limits",
        process::ENTRIES,
    ),
    area("10", "commands", commands::ENTRIES),
];

const fn area(digits: &'static str, name: &'static str, entries: &'static [Entry]) -> Area {
    Area {
        digits,
        name,
        entries,
    }
}

/// Every code, in order.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    AREAS.iter().flat_map(|area| area.entries)
}

/// What a code means; `None` if there is none of that name.
#[must_use]
pub fn find(code: &str) -> Option<&'static Entry> {
    all().find(|entry| entry.code == code)
}

const fn entry(
    code: &'static str,
    title: &'static str,
    seen: &'static [Seen],
    meaning: &'static str,
    action: &'static str,
) -> Entry {
    Entry {
        code,
        title,
        seen,
        meaning,
        action,
        unprovoked: None,
    }
}

impl Entry {
    /// The same, which no test provokes.
    const fn unprovoked(mut self, because: &'static str) -> Self {
        self.unprovoked = Some(because);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes that no test provokes: as few as there is no way to.
    const UNPROVOKED_MAX: usize = 5;

    #[test]
    fn codes_are_of_their_area_in_order_and_none_stands_twice() {
        for area in AREAS {
            for entry in area.entries {
                let rest = entry.code.strip_prefix(PREFIX).unwrap_or_default();
                let is_code = rest.len() == 4 && rest.bytes().all(|b| b.is_ascii_digit());
                assert!(is_code && rest.starts_with(area.digits), "{}", entry.code);
            }
        }
        let codes: Vec<_> = all().map(|entry| entry.code).collect();
        assert!(codes.is_sorted_by(|a, b| a < b), "{codes:?}");
        assert_eq!(find("ZG0101").unwrap().code, "ZG0101");
        assert_eq!(find("ZG0100"), None);
    }

    #[test]
    fn every_code_says_what_it_means_what_to_do_and_where_it_is_met() {
        for entry in all() {
            let Entry { code, .. } = entry;
            let is_title = !entry.title.is_empty()
                && entry.title.len() <= 72
                && !entry.title.ends_with('.')
                && !entry.title.starts_with(char::is_uppercase);
            assert!(is_title, "{code}: {}", entry.title);
            for text in [entry.meaning, entry.action] {
                let is_sentence = text.len() > 7 && text.ends_with('.');
                assert!(is_sentence && !text.contains("  "), "{code}: {text}");
            }
            assert!(!entry.seen.is_empty(), "{code}");
        }
        let mut titles: Vec<_> = all().map(|entry| entry.title).collect();
        titles.sort_unstable();
        assert!(titles.is_sorted_by(|a, b| a < b), "two titles are the same");
    }

    #[test]
    fn few_codes_are_not_provoked_by_a_test() {
        let reasons: Vec<_> = all().filter_map(|entry| entry.unprovoked).collect();
        assert!(reasons.len() <= UNPROVOKED_MAX, "{reasons:?}");
        assert!(reasons.iter().all(|reason| reason.len() > 20));
    }
}
