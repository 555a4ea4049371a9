//! Where each name of a shelf stands. Who comes back says every name that it has, so that names are looked
//! up by the million: the table, and the names again in one piece, lie close together in memory, where
//! those that are shared lie anywhere.

use std::sync::Arc;

/// What the table holds is ours alone: whoever asks for names whose hashes fall together finds no more
/// taken places than others do.
#[derive(Debug)]
pub(crate) struct Index {
    names: Vec<Arc<str>>,
    /// All names, one after the other, and where each ends.
    text: Vec<u8>,
    ends: Vec<u32>,
    /// At least twice as many as names, a power of two.
    slots: Vec<Slot>,
}

/// A place of the table.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// The upper half of the hash.
    tag: u32,
    /// Of the name, and one; 0: free.
    place: u32,
}

impl Index {
    /// Of names that differ from each other.
    pub(super) fn of(names: Vec<Arc<str>>) -> Self {
        let free = Slot { tag: 0, place: 0 };
        let mut this = Self {
            text: Vec::with_capacity(names.iter().map(|name| name.len()).sum()),
            ends: Vec::with_capacity(names.len()),
            slots: vec![free; (names.len() * 2).next_power_of_two().max(2)],
            names: Vec::new(),
        };
        for (place, name) in (1..).zip(&names) {
            this.text.extend_from_slice(name.as_bytes());
            // Names of over 4 GiB there are not: those behind that would not be found.
            this.ends
                .push(u32::try_from(this.text.len()).unwrap_or(u32::MAX));
            let (mut at, tag) = this.first(name);
            while this.slots.get(at).is_some_and(|slot| slot.place != 0) {
                at = this.after(at);
            }
            if let Some(slot) = this.slots.get_mut(at) {
                *slot = Slot { tag, place };
            }
        }
        this.names = names;
        this
    }

    /// In their places.
    pub(crate) fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    pub(crate) fn place(&self, name: &str) -> Option<usize> {
        let (mut at, tag) = self.first(name);
        loop {
            let slot = self.slots.get(at)?;
            let place = (slot.place as usize).checked_sub(1)?;
            if slot.tag == tag && self.is_at(place, name) {
                return Some(place);
            }
            at = self.after(at);
        }
    }

    /// For who asks for many, maybe in their order.
    pub(crate) const fn walk(&self) -> Walk<'_> {
        Walk {
            index: self,
            next: 0,
            missed: 0,
        }
    }

    fn is_at(&self, place: usize, name: &str) -> bool {
        let start = match place.checked_sub(1) {
            Some(before) => self.ends.get(before),
            None => Some(&0),
        };
        let range = start.zip(self.ends.get(place));
        let text = range.and_then(|(start, end)| self.text.get(*start as usize..*end as usize));
        text == Some(name.as_bytes())
    }

    /// Where it is looked for next.
    const fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }

    /// Where a name is looked for first, and its tag.
    fn first(&self, name: &str) -> (usize, u32) {
        let hash = hash(name.as_bytes());
        #[expect(clippy::cast_possible_truncation, reason = "a part of it")]
        let at = hash as usize;
        // There is one at least.
        (at & (self.slots.len() - 1), (hash >> 32) as u32)
    }
}

/// Many names that are looked up one after the other.
#[derive(Debug)]
pub(crate) struct Walk<'a> {
    index: &'a Index,
    /// Where the next one is if it follows the last.
    next: usize,
    /// How many in a row did not follow.
    missed: usize,
}

impl Walk<'_> {
    /// After so many they are in another order: where each is does not depend on the one before, and the
    /// processor looks up several at once.
    const MISSED_MAX: usize = 16;

    pub(crate) fn place(&mut self, name: &str) -> Option<usize> {
        if self.missed >= Self::MISSED_MAX {
            return self.index.place(name);
        }
        if self.index.is_at(self.next, name) {
            self.missed = 0;
            self.next += 1;
            return Some(self.next - 1);
        }
        self.missed += 1;
        let place = self.index.place(name)?;
        self.next = place + 1;
        Some(place)
    }
}

/// Eight bytes at a time: mixed in, multiplied by an odd number (Knuth, TAOCP 3 §6.4), folded.
fn hash(bytes: &[u8]) -> u64 {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let wide = u128::from(hash ^ word).wrapping_mul(u128::from(ODD));
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        let folded = wide as u64 ^ (wide >> 64) as u64;
        folded.wrapping_add(ODD)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let mut last = [0; 8];
    for (to, byte) in last.iter_mut().zip(rest) {
        *to = *byte;
    }
    mix(
        words.fold(0, mix),
        u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56),
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn name(nth: usize) -> String {
        format!("outbound|ns-{}/svc-{nth}:80", nth % 50)
    }

    #[test]
    fn names_that_differ_little_fall_apart() {
        let (mut whole, mut low) = (BTreeSet::new(), BTreeSet::new());
        for nth in 0..100_000 {
            let hash = hash(name(nth).as_bytes());
            whole.insert(hash);
            low.insert(hash & 0xf_ffff);
        }
        assert_eq!(whole.len(), 100_000);
        // Of as many drawn at random about 95,300 are other than all others.
        assert!(low.len() > 94_000, "{}", low.len());
    }

    #[test]
    fn every_name_is_found_where_it_stands_and_no_other() {
        for count in [0, 1, 2, 3, 1000] {
            let names: Vec<Arc<str>> = (0..count).map(|nth| name(nth).into()).collect();
            let index = Index::of(names);
            for nth in 0..count + 10 {
                let expected = (nth < count).then_some(nth);
                assert_eq!(index.place(&name(nth)), expected, "{nth} of {count}");
            }
            assert_eq!(index.place(""), None);
            let in_order: Vec<usize> = (0..count + 10).collect();
            // Some that are left out, some twice, and all that is there behind far too many that are not.
            let with_gaps = in_order.iter().copied().filter(|nth| nth % 7 != 3);
            let twice = in_order.iter().flat_map(|nth| [*nth, *nth]);
            let backwards = in_order.iter().rev().copied();
            let strangers = (count..count + 100).chain(0..count);
            let orders: [Vec<usize>; 5] = [
                in_order.clone(),
                with_gaps.collect(),
                twice.collect(),
                backwards.collect(),
                strangers.collect(),
            ];
            for order in orders {
                let mut walk = index.walk();
                for nth in order {
                    let expected = (nth < count).then_some(nth);
                    assert_eq!(walk.place(&name(nth)), expected, "{nth} of {count}");
                }
            }
        }
    }
}
