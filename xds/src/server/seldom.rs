//! Lines of the log that anybody may cause: so many in a while, and then how many more there were.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines in a [`WHILE`].
const LINES_MAX: u32 = 20;
const WHILE: Duration = Duration::from_secs(10);

/// What one kind of line may take of the log.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    said: u32,
    left_out: u64,
}

impl Seldom {
    /// Whether a line may be said now, and how many were left out since the last that was.
    #[must_use]
    pub fn may_say(&self) -> Option<u64> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now - since >= WHILE) {
            state.since = Some(now);
            state.said = 0;
        }
        if state.said >= LINES_MAX {
            state.left_out += 1;
            return None;
        }
        state.said += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_are_said_in_a_while_and_the_next_tells_of_the_rest() {
        let seldom = Seldom::default();
        let begun = Instant::now();
        for _ in 0..LINES_MAX {
            assert_eq!(seldom.at(begun), Some(0));
        }
        for late in [Duration::ZERO, Duration::from_secs(9)] {
            assert_eq!(seldom.at(begun + late), None);
        }
        assert_eq!(seldom.at(begun + WHILE), Some(2));
        assert_eq!(seldom.at(begun + WHILE), Some(0));
    }
}
