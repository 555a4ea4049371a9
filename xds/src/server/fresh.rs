//! Views that each caller has made: where its nodes stand it says itself, and what is made of that is
//! made one after the other.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::lock;

/// In which a caller may have so many views made.
const WHILE: Duration = Duration::from_secs(60);

/// Who had how many views made a short while ago.
#[derive(Debug, Default)]
pub(super) struct Fresh(Mutex<BTreeMap<String, Made>>);

#[derive(Debug)]
struct Made {
    since: Instant,
    views: usize,
}

impl Fresh {
    /// Whether one more may be made, which then counts.
    pub(super) fn may_make(&self, caller: &str, max: usize) -> bool {
        self.at(Instant::now(), caller, max)
    }

    fn at(&self, now: Instant, caller: &str, max: usize) -> bool {
        let mut callers = lock(&self.0);
        callers.retain(|_, made| now - made.since < WHILE);
        let made = callers.entry(caller.to_owned()).or_insert(Made {
            since: now,
            views: 0,
        });
        let may = made.views < max;
        made.views += usize::from(may);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_has_so_many_made_in_a_while_and_others_are_not_held_up() {
        let fresh = Fresh::default();
        let begun = Instant::now();
        let late = begun + WHILE - Duration::from_secs(1);
        assert!(fresh.at(begun, "a", 2) && fresh.at(begun, "a", 2));
        assert!(!fresh.at(late, "a", 2) && fresh.at(late, "b", 2));
        assert!(fresh.at(begun + WHILE, "a", 2));
        // Who was here long ago takes no room.
        assert!(fresh.at(late + WHILE, "c", 2));
        assert_eq!(lock(&fresh.0).len(), 2);
    }
}
