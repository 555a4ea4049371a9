//! Bytes that could not be handed on yet.

/// A queue of bytes that owns memory only while it holds some.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    bytes: Vec<u8>,
    taken: usize,
}

impl Backlog {
    pub(super) const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is queued, oldest first.
    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.taken..).unwrap_or_default()
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.reserve_exact(bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Removes the oldest `n`; with the last byte goes the memory.
    pub(super) fn consume(&mut self, n: usize) {
        self.taken += n;
        if self.taken >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_and_an_empty_queue_owns_nothing() {
        let mut backlog = Backlog::default();
        assert_eq!(backlog.bytes.capacity(), 0);
        backlog.push(b"ab");
        backlog.consume(1);
        backlog.push(b"cd");
        assert_eq!(backlog.bytes(), b"bcd");
        backlog.consume(3);
        assert!(backlog.is_empty());
        assert_eq!(backlog.bytes.capacity(), 0);
    }
}
