//! A quick hash for keys that come from the configuration.
//!
//! Nobody who sends traffic chooses such keys, so that they need not be hashed as those of a map that
//! strangers fill (`std`'s SipHash costs several times as much, and each request hashes a few).

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map whose keys are of the configuration.
pub(crate) type Configured<K, V> = HashMap<K, V, BuildHasherDefault<Quick>>;

/// Multiplies and rotates, a word at a time: the hash of rustc's own tables (`rustc-hash` 2).
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Quick(u64);

const FACTOR: u64 = 0xf135_7aea_2e62_a9c5;
/// The upper bits are the good ones, and tables take the lower ones.
const TURN: u32 = 26;

impl Quick {
    const fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    }
}

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks();
        for word in words {
            self.add(u64::from_le_bytes(*word));
        }
        // The length tells "a" from "a\0"; `str` adds 0xff behind itself besides.
        let last = rest.iter().fold(bytes.len() as u64, |word, byte| {
            word << 8 | u64::from(*byte)
        });
        self.add(last);
    }

    fn write_u8(&mut self, byte: u8) {
        self.add(u64::from(byte));
    }

    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }

    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }

    fn finish(&self) -> u64 {
        self.0.rotate_left(TURN)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::{BuildHasher, BuildHasherDefault};

    use super::*;

    /// Names as configurations have them: alike but for a number, or a length.
    #[test]
    fn names_that_are_alike_are_spread() {
        let hash = BuildHasherDefault::<Quick>::default();
        let names = (0..10_000)
            .map(|nth| format!("shop/svc-{nth}/blue/10.0.{}.{}:80", nth / 250, nth % 250));
        let hashes: Vec<u64> = names.map(|name| hash.hash_one(name)).collect();
        let all: HashSet<u64> = hashes.iter().copied().collect();
        assert_eq!(all.len(), hashes.len());
        // As many buckets as names: a fair draw fills 1 - 1/e of them.
        let buckets: HashSet<u64> = hashes.iter().map(|hash| hash % 8192).collect();
        assert!(buckets.len() > 8192 / 2, "{}", buckets.len());
        let tags: HashSet<u64> = hashes.iter().map(|hash| hash >> 57).collect();
        assert_eq!(tags.len(), 128);
        let short: HashSet<u64> = (0..64).map(|n| hash.hash_one("\0".repeat(n))).collect();
        assert_eq!(short.len(), 64);
    }
}
