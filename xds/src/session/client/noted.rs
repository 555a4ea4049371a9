//! What is counted of all that a session has: kept up to date by those that were touched, so that what
//! one resource changes costs the same beside ten thousand as beside ten.

use std::collections::{BTreeMap, BTreeSet};

use zeugma_core::time::Time;

use super::super::Kind;
use super::{Name, References};

/// What is counted of one resource.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Noted {
    /// Whether there is a body of it.
    pub(super) is_there: bool,
    /// Those of all that it is or may come to be.
    pub(super) bytes: usize,
    pub(super) has_next: bool,
    /// It is wanted, and nothing is known of it.
    pub(super) is_unknown: bool,
    /// When something is to be done about it.
    pub(super) due: Option<Time>,
    pub(super) refers: Vec<References>,
}

/// What is counted of one kind.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) resources: usize,
    pub(super) bytes: usize,
    pub(super) next: BTreeSet<Name>,
    pub(super) unknown: BTreeSet<Name>,
    pub(super) due: BTreeSet<(Time, Name)>,
}

impl Tally {
    /// Counts one as it is, and no more as it was.
    pub(super) fn change(&mut self, name: &Name, was: &Noted, is: &Noted) {
        self.resources = self.resources - usize::from(was.is_there) + usize::from(is.is_there);
        self.bytes = self.bytes - was.bytes + is.bytes;
        for (all, was, is) in [
            (&mut self.next, was.has_next, is.has_next),
            (&mut self.unknown, was.is_unknown, is.is_unknown),
        ] {
            match (was, is) {
                (false, true) => drop(all.insert(name.clone())),
                (true, false) => drop(all.remove(name)),
                (false, false) | (true, true) => {}
            }
        }
        if was.due != is.due {
            if let Some(at) = was.due {
                self.due.remove(&(at, name.clone()));
            }
            self.due.extend(is.due.map(|at| (at, name.clone())));
        }
    }
}

/// Fewer names than this leave no room that counts.
const LOOSE_MIN: usize = 64;

/// How often each name is referred to.
#[derive(Debug, Default)]
pub(super) struct Referred {
    times: BTreeMap<(Kind, Name), usize>,
    /// So many of them came since all were put together: one by one in their order they fill the nodes of a
    /// tree by half.
    loose: usize,
    /// Those of which the first or the last came or went.
    changed: BTreeSet<(Kind, Name)>,
}

impl Referred {
    /// Counts what one refers to, and no more what it referred to.
    pub(super) fn change(&mut self, was: &[References], is: &[References]) {
        if was == is {
            return;
        }
        for to in is.iter().flat_map(|all| all.iter()) {
            let times = self.times.entry(to.clone()).or_default();
            *times += 1;
            if *times == 1 {
                self.changed.insert(to.clone());
                self.loose += 1;
            }
        }
        for to in was.iter().flat_map(|all| all.iter()) {
            if let Some(times) = self.times.get_mut(to) {
                *times -= 1;
                if *times == 0 {
                    self.times.remove(to);
                    self.changed.insert(to.clone());
                }
            }
        }
    }

    /// Puts all together where many came since it did.
    pub(super) fn compact(&mut self) {
        if self.is_loose() {
            self.times = std::mem::take(&mut self.times).into_iter().collect();
            self.loose = 0;
        }
    }

    fn is_loose(&self) -> bool {
        self.loose >= LOOSE_MIN && self.loose > self.times.len() / 2
    }

    /// Those that may be referred to otherwise than before, and whether they are referred to.
    pub(super) fn take_changed(&mut self) -> Vec<((Kind, Name), bool)> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed
            .map(|key| {
                let is_referred_to = self.times.contains_key(&key);
                (key, is_referred_to)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What broke: each change of the only listener put ten thousand names together anew.
    #[test]
    fn names_are_put_together_where_most_of_them_are_new() {
        let to = |nth: usize| -> References {
            [(Kind::Endpoints, Name::from(format!("e{nth}")))].into()
        };
        let mut referred = Referred::default();
        let all: Vec<References> = (0..1000).map(to).collect();
        referred.change(&[], &all);
        assert!(referred.is_loose());
        referred.compact();
        for nth in 1000..1501 {
            assert!(!referred.is_loose(), "{nth}");
            referred.change(&[], &[to(nth)]);
            referred.change(&[to(nth)], &[]);
        }
        assert!(referred.is_loose());
        let mut few = Referred::default();
        few.change(&[], &all[..LOOSE_MIN - 1]);
        assert!(!few.is_loose());
    }
}
