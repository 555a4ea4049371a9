//! The buffers that all connections of a thread share.

use std::cell::Cell;

use super::{BATCH_BYTES_MAX, HELD_BYTES_MAX, RECORD_BYTES};

/// Room for what a connection holds and a batch behind it, or for a batch that is encrypted: its
/// records add 22 bytes each (RFC 8446 §5.2), a hundredth of what is held.
const CIPHERTEXT_BYTES: usize = BATCH_BYTES_MAX + HELD_BYTES_MAX + 1;

thread_local! {
    static SHARED: Cell<Option<Box<Buffers>>> = const { Cell::new(None) };
}

/// Where records are decrypted and encrypted, in place.
pub(super) struct Buffers {
    /// Ciphertext as it comes from the wire and goes there.
    pub(super) ciphertext: Box<[u8]>,
    /// Small writes on their way into one record; never more than a record's worth.
    pub(super) gathered: Vec<u8>,
}

/// The buffers of this thread, lent until dropped.
///
/// They are taken out of their place, so that a stream over another one of ours gets buffers of its
/// own instead of a panic.
pub(super) struct Scratch(Option<Box<Buffers>>);

impl Scratch {
    pub(super) fn lend() -> Self {
        Self(SHARED.take())
    }

    pub(super) fn buffers(&mut self) -> &mut Buffers {
        self.0.get_or_insert_with(|| {
            Box::new(Buffers {
                ciphertext: vec![0; CIPHERTEXT_BYTES].into_boxed_slice(),
                gathered: Vec::with_capacity(RECORD_BYTES),
            })
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SHARED.set(self.0.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffers_are_shared_by_turns_and_lent_anew_while_they_are_lent() {
        let first = Scratch::lend().buffers().ciphertext.as_ptr();
        let mut again = Scratch::lend();
        assert_eq!(again.buffers().ciphertext.as_ptr(), first);
        let mut within = Scratch::lend();
        assert_ne!(within.buffers().ciphertext.as_ptr(), first);
        drop(within);
        drop(again);
        assert_eq!(Scratch::lend().buffers().ciphertext.as_ptr(), first);
    }
}
