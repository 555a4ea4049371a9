//! What a service wrote down of each request: its own count, which outlives its being killed.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

/// The methods that the demo sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verb {
    /// May be sent again by a gateway.
    Get,
    /// Is never sent again once an endpoint may have seen it.
    Post,
}

/// What happened to a request at a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// It arrived whole.
    Received,
    /// Its answer was about to be written.
    Answered,
}

/// One line of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) verb: Verb,
    pub(crate) id: u64,
    pub(crate) event: Event,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verb {
            Verb::Get => "GET",
            Verb::Post => "POST",
        };
        let event = match self.event {
            Event::Received => "received",
            Event::Answered => "answered",
        };
        write!(f, "{verb} {} {event}", self.id)
    }
}

impl Entry {
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        let verb = match words.next()? {
            "GET" => Verb::Get,
            "POST" => Verb::Post,
            _ => return None,
        };
        let id = words.next()?.parse().ok()?;
        let event = match words.next()? {
            "received" => Event::Received,
            "answered" => Event::Answered,
            _ => return None,
        };
        words.next().is_none().then_some(Self { verb, id, event })
    }
}

/// All that one service wrote down, over all its lives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Journal {
    /// The service's name.
    pub(crate) service: String,
    /// By method and id: how often received, how often answered.
    requests: BTreeMap<(Verb, u64), (u32, u32)>,
}

impl Journal {
    /// An empty journal of `service`.
    pub(crate) fn new(service: &str) -> Self {
        Self {
            service: service.to_owned(),
            requests: BTreeMap::new(),
        }
    }

    /// Reads the journal of `service`; one that was never begun is empty.
    ///
    /// # Errors
    /// When the file cannot be read, or has a line that is none of a journal's.
    pub(crate) fn read(service: &str, path: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            read => read?,
        };
        let mut journal = Self::new(service);
        for (index, line) in text.lines().enumerate() {
            let entry = Entry::parse(line).ok_or_else(|| {
                let what = format!("line {}: `{line}` is no journal entry", index + 1);
                io::Error::new(io::ErrorKind::InvalidData, what)
            })?;
            journal.add(entry);
        }
        Ok(journal)
    }

    /// Adds one line.
    pub(crate) fn add(&mut self, entry: Entry) {
        let (received, answered) = self.requests.entry((entry.verb, entry.id)).or_default();
        match entry.event {
            Event::Received => *received += 1,
            Event::Answered => *answered += 1,
        }
    }

    /// How often that request arrived here.
    pub(crate) fn received(&self, verb: Verb, id: u64) -> u32 {
        self.requests.get(&(verb, id)).map_or(0, |counts| counts.0)
    }

    /// How often that request was answered here.
    pub(crate) fn answered(&self, verb: Verb, id: u64) -> u32 {
        self.requests.get(&(verb, id)).map_or(0, |counts| counts.1)
    }

    /// The requests that arrived here, each once.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (Verb, u64)> + '_ {
        self.requests.keys().copied()
    }

    /// How many requests of that method arrived here, each once.
    pub(crate) fn count(&self, verb: Verb) -> usize {
        self.requests().filter(|(found, _)| *found == verb).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_as_written() {
        for verb in [Verb::Get, Verb::Post] {
            for event in [Event::Received, Event::Answered] {
                let entry = Entry {
                    verb,
                    id: 17,
                    event,
                };
                assert_eq!(Entry::parse(&entry.to_string()), Some(entry));
            }
        }
        for bad in [
            "",
            "GET",
            "GET 1",
            "GET x received",
            "PUT 1 received",
            "GET 1 received x",
        ] {
            assert_eq!(Entry::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_line_that_is_no_entry_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        std::fs::write(&path, "GET 1 received\nGET 1 rec").unwrap();
        let error = Journal::read("east-1", &path).unwrap_err().to_string();
        assert_eq!(error, "line 2: `GET 1 rec` is no journal entry");
    }

    #[test]
    fn a_journal_that_was_never_begun_is_empty() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::read("east-1", &folder.path().join("none")).unwrap();
        assert_eq!(journal, Journal::new("east-1"));
    }
}
