//! What the demo tells while it runs: plain lines, each with the time since its start.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// Where the telling goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Voice {
    /// Standard output.
    Out,
    /// Standard error, where standard output is for the report.
    Err,
    /// Nowhere.
    Quiet,
}

/// Tells what happens when; also the demo's clock.
#[derive(Debug, Clone)]
pub(crate) struct Narrator {
    start: Instant,
    voice: Voice,
    colour: bool,
}

impl Narrator {
    /// Starts the clock.
    pub(crate) fn new(voice: Voice) -> Self {
        let terminal = match voice {
            Voice::Out => io::stdout().is_terminal(),
            Voice::Err => io::stderr().is_terminal(),
            Voice::Quiet => false,
        };
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self {
            start: Instant::now(),
            voice,
            colour: terminal && wanted,
        }
    }

    /// The time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// The moment the clock started.
    pub(crate) fn start(&self) -> Instant {
        self.start
    }

    /// One line with the time: what was done.
    pub(crate) fn tell(&self, text: &str) {
        self.timed(text, "1");
    }

    /// One line with the time: what was seen.
    pub(crate) fn show(&self, text: &str) {
        self.timed(text, "2");
    }

    /// One line without the time.
    pub(crate) fn line(&self, text: &str) {
        self.write(text);
    }

    /// One line on how a claim turned out.
    pub(crate) fn verdict(&self, held: bool, text: &str) {
        let (word, style) = if held {
            ("held ", "32")
        } else {
            ("BROKEN", "31")
        };
        self.write(&format!("  {} {text}", self.styled(word, style)));
    }

    fn timed(&self, text: &str, style: &str) {
        let tenths = self.elapsed().as_millis() / 100;
        let text = self.styled(text, style);
        self.write(&format!("[{:>3}.{}s] {text}", tenths / 10, tenths % 10));
    }

    fn styled(&self, text: &str, style: &str) -> String {
        if self.colour {
            format!("\u{1b}[{style}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }

    /// A reader that has gone away does not end the demo: its claims are still to be checked.
    fn write(&self, line: &str) {
        match self.voice {
            Voice::Out => writeln!(io::stdout(), "{line}").ok(),
            Voice::Err => writeln!(io::stderr(), "{line}").ok(),
            Voice::Quiet => None,
        };
    }
}

/// A span of time as people say it: `340 ms`, `2.1 s`.
pub(crate) fn said(span: Duration) -> String {
    let milliseconds = span.as_millis();
    if milliseconds < 1000 {
        format!("{milliseconds} ms")
    } else {
        let tenths = (milliseconds + 50) / 100;
        format!("{}.{} s", tenths / 10, tenths % 10)
    }
}

/// A share in thousandths as people say it: `71.4 %`.
pub(crate) fn percent(thousandths: usize) -> String {
    if thousandths.is_multiple_of(10) {
        format!("{} %", thousandths / 10)
    } else {
        format!("{}.{} %", thousandths / 10, thousandths % 10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_and_shares_are_said_as_people_say_them() {
        assert_eq!(said(Duration::from_millis(340)), "340 ms");
        assert_eq!(said(Duration::from_millis(2149)), "2.1 s");
        assert_eq!(said(Duration::from_millis(2150)), "2.2 s");
        assert_eq!(percent(1000), "100 %");
        assert_eq!(percent(714), "71.4 %");
    }
}
