//! The names that a stream asks for: bits over an index that all streams share, and the few that are not
//! in it. As a list they would be what a stream takes most memory for.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::catalog::{Index, Shelf};

#[derive(Debug)]
pub(super) struct Names {
    index: Arc<Index>,
    /// By place in the index; none where none is set.
    bits: Vec<u64>,
    /// Of them that are set.
    set: usize,
    others: BTreeSet<Arc<str>>,
    /// Of the others.
    bytes: usize,
}

impl Names {
    pub(super) fn on(shelf: &Shelf) -> Self {
        Self {
            index: Arc::clone(shelf.index()),
            bits: Vec::new(),
            set: 0,
            others: BTreeSet::new(),
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.set + self.others.len()
    }

    /// Bytes of those that are not in the index.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        match self.index.place(name) {
            Some(place) => {
                let (word, bit) = split(place);
                self.bits.get(word).is_some_and(|word| word & bit != 0)
            }
            None => self.others.contains(name),
        }
    }

    pub(super) fn insert(&mut self, name: Arc<str>) {
        let Some(place) = self.index.place(&name) else {
            let len = name.len();
            if self.others.insert(name) {
                self.bytes += len;
            }
            return;
        };
        self.insert_at(place);
    }

    /// Adds what stands here in the index.
    pub(super) fn insert_at(&mut self, place: usize) {
        let (word, bit) = split(place);
        if self.bits.len() <= word {
            let all = self.index.names().len().div_ceil(64);
            self.bits.resize(all.max(word + 1), 0);
        }
        if let Some(word) = self.bits.get_mut(word) {
            self.set += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        let Some(place) = self.index.place(name) else {
            let was_there = self.others.remove(name);
            if was_there {
                self.bytes -= name.len();
            }
            return was_there;
        };
        let (word, bit) = split(place);
        let Some(word) = self.bits.get_mut(word).filter(|word| **word & bit != 0) else {
            return false;
        };
        *word &= !bit;
        self.set -= 1;
        true
    }

    /// Counts by the index of this shelf from now on.
    pub(super) fn follow(&mut self, shelf: &Shelf) {
        if Arc::ptr_eq(&self.index, shelf.index()) {
            return;
        }
        let before = std::mem::replace(self, Self::on(shelf));
        for (place, name) in before.index.names().iter().enumerate() {
            let (word, bit) = split(place);
            if before.bits.get(word).is_some_and(|word| word & bit != 0) {
                self.insert(Arc::clone(name));
            }
        }
        for name in before.others {
            self.insert(name);
        }
    }
}

const fn split(place: usize) -> (usize, u64) {
    (place / 64, 1 << (place % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Resource, Store, Traits};
    use crate::session::Kind;

    fn shelf(names: &[String]) -> Shelf {
        let mut store = Store::default();
        let made = names.iter().map(|name| {
            store.put(
                Kind::Routes,
                Resource::new(Kind::Routes, name, b"", Traits::default()),
            )
        });
        Shelf::new(made.collect())
    }

    #[test]
    fn names_are_a_set_whatever_the_shelf_holds() {
        let name = |nth: usize| format!("n{nth}");
        let mut names = Names::on(&shelf(&[]));
        let mut expected = BTreeSet::new();
        for round in 0..20_usize {
            let all: Vec<String> = (0..200)
                .filter(|nth| nth % (round % 5 + 1) != 0)
                .map(name)
                .collect();
            names.follow(&shelf(&all));
            for nth in (round..200).step_by(7) {
                names.insert(name(nth).into());
                expected.insert(name(nth));
            }
            for nth in (round..250).step_by(11) {
                assert_eq!(names.remove(&name(nth)), expected.remove(&name(nth)));
            }
            assert_eq!(names.len(), expected.len());
            let others = expected.iter().filter(|name| !all.contains(name));
            assert_eq!(names.bytes(), others.map(String::len).sum::<usize>());
            assert_eq!(names.is_empty(), expected.is_empty());
            for nth in 0..250 {
                assert_eq!(
                    names.contains(&name(nth)),
                    expected.contains(&name(nth)),
                    "{nth}"
                );
            }
        }
    }
}
