//! FNV-1a of 128 bits (draft-eastlake-fnv §2, §5): tells contents apart, and is no secret.

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
        let of = |hashes: &[u128]| joined(hashes.iter().copied());
        let all = [
            of(&[]),
            of(&[0]),
            of(&[0, 0]),
            of(&[1, 2]),
            of(&[2, 1]),
            of(&[1, 1]),
        ];
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one), "{at}");
        }
        assert_eq!(of(&[1, 2]), all[3]);
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
