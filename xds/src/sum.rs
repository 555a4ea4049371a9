//! Numbers of 128 bits that tell contents apart, the same in every run, and no secret. FNV-1a
//! (draft-eastlake-fnv §2, §5) is of what is kept, and of parts after each other; XXH3 (the xxHash
//! specification, 0.2.0) is of whole texts, for it does not go from byte to byte.

use twox_hash::XxHash3_128;

/// Of these bytes.
pub(crate) fn of(bytes: &[u8]) -> u128 {
    XxHash3_128::oneshot(bytes)
}

const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// A hash under way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fnv(u128);

impl Default for Fnv {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Fnv {
    /// Of these bytes alone.
    pub(crate) fn of(bytes: &[u8]) -> u128 {
        let mut fnv = Self::default();
        fnv.add(bytes);
        fnv.end()
    }

    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// Adds a text, however long, as what [`of`] says of it.
    pub(crate) fn add_all(&mut self, bytes: &[u8]) {
        self.add(&of(bytes).to_le_bytes());
    }

    pub(crate) const fn end(self) -> u128 {
        self.0
    }
}

/// One hash of several, in their order; each of them counts as one letter.
pub(crate) fn joined(hashes: impl Iterator<Item = u128>) -> u128 {
    // Without it a product keeps the low bits of what it is made of in their place.
    const TURN: u32 = 41;
    let start = Fnv::default().end();
    hashes.fold(start, |all, one| {
        (all ^ one).wrapping_mul(PRIME).rotate_left(TURN)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_joined_in_their_order() {
        let joined = |hashes: &[u128]| joined(hashes.iter().copied());
        let all = [
            joined(&[]),
            joined(&[0]),
            joined(&[0, 0]),
            joined(&[1, 2]),
            joined(&[2, 1]),
            joined(&[1, 1]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
        assert_eq!(joined(&[1, 2]), all[3]);
    }

    // The canonical results of `xxhsum -H2`.
    #[test]
    fn what_is_whole_is_hashed_by_xxh3() {
        for (text, expected) in [
            ("", 0x99aa_06d3_0147_98d8_6001_c324_468d_497f),
            ("abc", 0x06b0_5ab6_733a_6185_78af_5f94_892f_3950),
        ] {
            assert_eq!(of(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn what_is_added_whole_is_not_joined_to_the_next() {
        let of = |texts: [&str; 2]| {
            let mut fnv = Fnv::default();
            for text in texts {
                fnv.add_all(text.as_bytes());
            }
            fnv.end()
        };
        let all = [
            of(["abc", ""]),
            of(["ab", "c"]),
            of(["", "abc"]),
            of(["c", "ab"]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
    }

    // The vectors of Go's hash/fnv.
    #[test]
    fn the_hash_is_fnv_1a() {
        for (text, expected) in [
            ("", 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d),
            ("a", 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964),
            ("ab", 0x0880_9544_bbab_1be9_5aa0_7330_55b6_9a62),
        ] {
            assert_eq!(Fnv::of(text.as_bytes()), expected, "{text}");
        }
    }
}
