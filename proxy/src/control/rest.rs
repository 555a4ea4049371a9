//! Which files are at rest: what is still being written is not believed.
//!
//! ```text
//! the same in two looks --------------------> believed
//! and it may have been cut off -------------> believed once it was the same for longer
//! still not after a while ------------------> its last good documents serve, and a finding says so
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use zeugma_xds::{FileLook, Sources};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// How long a file must be the same that may have been cut off.
const CUT_REST: Duration = Duration::from_secs(1);
/// How long anything else waits for a file that never comes to rest.
const UNREST_MAX: Duration = Duration::from_secs(10);

/// What was seen of the files since they last were at rest.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    seen: BTreeMap<Arc<str>, Seen>,
    next: Next,
}

/// When to look again though nothing is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Next {
    /// Not at all: all are at rest.
    #[default]
    Never,
    /// Then; nothing was believed.
    At(Instant),
    /// Then; all but what is not at rest was believed.
    ForTheRest(Instant),
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// `None`: it was gone.
    look: Option<FileLook>,
    /// Since when it looks so.
    same: Instant,
    /// Since when it is waited for.
    waited: Instant,
}

/// What comes of a look.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Looked {
    /// Some are to be looked at again.
    Again,
    /// All that can be believed is at rest; these are not.
    AtRest(BTreeSet<Arc<str>>),
}

impl Rest {
    /// Takes a look of every file; those in `cut` may have been cut off.
    pub(crate) fn look(
        &mut self,
        mut looks: BTreeMap<Arc<str>, FileLook>,
        cut: &BTreeSet<Arc<str>>,
        now: Instant,
    ) -> Looked {
        for (file, seen) in &mut self.seen {
            let look = looks.remove(file);
            if look != seen.look {
                (seen.look, seen.same) = (look, now);
            }
        }
        let new = looks.into_iter().map(|(file, look)| {
            let (look, same, waited) = (Some(look), now, now);
            (file, Seen { look, same, waited })
        });
        self.seen.extend(new);
        let is_at_rest = |file: &Arc<str>, seen: &Seen| {
            let wanted = if cut.contains(file) { CUT_REST } else { LOOK };
            now - seen.same >= wanted
        };
        let restless = (self.seen.iter()).filter(|(file, seen)| !is_at_rest(file, seen));
        let restless: BTreeMap<Arc<str>, Seen> =
            (restless.map(|(file, seen)| (Arc::clone(file), *seen))).collect();
        if (restless.values()).any(|seen| now - seen.waited < UNREST_MAX) {
            self.next = Next::At(now + LOOK);
            return Looked::Again;
        }
        // Of the others the next change is news.
        let held = restless.keys().cloned().collect();
        self.next = if restless.is_empty() {
            Next::Never
        } else {
            Next::ForTheRest(now + CUT_REST)
        };
        self.seen = restless;
        Looked::AtRest(held)
    }

    /// Takes a look of what was read, and holds back what cannot be believed; `None` where some are
    /// to be looked at again.
    pub(crate) fn believe(
        &mut self,
        sources: Sources,
        cut: &BTreeSet<Arc<str>>,
    ) -> Option<Sources> {
        match self.look(sources.looks(), cut, Instant::now()) {
            Looked::Again => None,
            Looked::AtRest(held) => Some(sources.without(&held)),
        }
    }

    /// When to look again though nothing is told.
    pub(crate) const fn next(&self) -> Next {
        self.next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Folder {
        rest: Rest,
        now: Instant,
    }

    impl Folder {
        fn new() -> Self {
            Self {
                rest: Rest::default(),
                now: Instant::now(),
            }
        }

        /// Looks after a while; each file has a number for its content.
        fn look(&mut self, after: Duration, files: &[(&str, u128)], cut: &[&str]) -> Looked {
            self.now += after;
            let looks = files.iter().map(|(file, content)| {
                let (file, content) = (Arc::from(*file), *content);
                (
                    file,
                    FileLook {
                        stat: None,
                        content,
                    },
                )
            });
            let cut = cut.iter().map(|file| Arc::from(*file)).collect();
            self.rest.look(looks.collect(), &cut, self.now)
        }
    }

    fn at_rest(but: &[&str]) -> Looked {
        Looked::AtRest(but.iter().map(|file| Arc::from(*file)).collect())
    }

    #[test]
    fn a_file_is_believed_when_it_is_the_same_in_two_looks() {
        let mut folder = Folder::new();
        assert_eq!(folder.look(LOOK, &[("a", 1)], &[]), Looked::Again);
        assert_eq!(folder.look(LOOK, &[("a", 2)], &[]), Looked::Again);
        // One that is gone may be there again.
        assert_eq!(folder.look(LOOK, &[], &[]), Looked::Again);
        assert_eq!(folder.look(LOOK, &[("a", 3)], &[]), Looked::Again);
        assert_eq!(folder.look(LOOK, &[("a", 3)], &[]), at_rest(&[]));
        // And the next time it is no different.
        assert_eq!(folder.look(LOOK, &[("a", 4)], &[]), Looked::Again);
        assert_eq!(folder.look(LOOK, &[("a", 4)], &[]), at_rest(&[]));
    }

    #[test]
    fn a_file_that_may_have_been_cut_off_must_be_the_same_for_longer() {
        let mut folder = Folder::new();
        let files = [("a", 1), ("b", 1)];
        assert_eq!(folder.look(LOOK, &files, &["a"]), Looked::Again);
        assert_eq!(folder.look(CUT_REST - LOOK, &files, &["a"]), Looked::Again);
        let files = [("a", 2), ("b", 1)];
        assert_eq!(folder.look(LOOK, &files, &["a"]), Looked::Again);
        assert_eq!(folder.look(CUT_REST - LOOK, &files, &["a"]), Looked::Again);
        assert_eq!(folder.look(LOOK, &files, &["a"]), at_rest(&[]));
    }

    #[test]
    fn a_file_that_never_comes_to_rest_holds_up_the_others_for_a_while_alone() {
        let mut folder = Folder::new();
        let mut content = 0;
        let mut looks = 0;
        while folder.look(LOOK, &[("a", content), ("b", 1)], &[]) == Looked::Again {
            content += 1;
            looks += 1;
        }
        assert_eq!(looks, UNREST_MAX.as_millis() / LOOK.as_millis());
        // From then on it holds up nobody.
        let seconds = Duration::from_secs(1);
        let next = [("a", content + 1), ("b", 2)];
        assert_eq!(folder.look(seconds, &next, &[]), Looked::Again);
        let next = [("a", content + 2), ("b", 2)];
        assert_eq!(folder.look(LOOK, &next, &[]), at_rest(&["a"]));
        let next = folder.now + CUT_REST;
        assert_eq!(folder.rest.next(), Next::ForTheRest(next));
        let next = [("a", content + 2), ("b", 2)];
        // Until it is the same again.
        assert_eq!(folder.look(LOOK, &next, &[]), Looked::Again);
        assert_eq!(folder.look(LOOK, &next, &[]), at_rest(&[]));
        assert_eq!(folder.rest.next(), Next::Never);
    }
}
