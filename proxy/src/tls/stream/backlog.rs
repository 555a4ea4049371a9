//! Bytes that could not be handed on yet.

/// Room for most flights of a handshake, whose records come one by one.
const FLIGHT_BYTES: usize = 1024;

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

    /// Appends the record that `write` writes, or nothing: it says how much room it wants where it has
    /// less.
    pub(super) fn append(&mut self, mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>) {
        let end = self.bytes.len();
        let mut room = 0;
        let written = loop {
            match write(self.bytes.get_mut(end..).unwrap_or_default()) {
                Ok(written) => break written,
                // Asked twice at most.
                Err(wanted) if room < wanted => room = wanted,
                Err(_) => break 0,
            }
            if self.bytes.capacity() == 0 {
                self.bytes.reserve_exact(room.max(FLIGHT_BYTES));
            }
            self.bytes.resize(end + room, 0);
        };
        self.bytes.truncate(end + written);
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

    #[test]
    fn what_is_written_in_place_comes_behind_the_rest_and_whole_or_not_at_all() {
        let mut backlog = Backlog::default();
        for length in [3, FLIGHT_BYTES, 1] {
            let before = backlog.bytes().len();
            backlog.append(|room| {
                let place = room.get_mut(..length).ok_or(length)?;
                place.fill(b'x');
                Ok(length)
            });
            assert_eq!(backlog.bytes().len(), before + length);
        }
        assert!(backlog.bytes().iter().all(|byte| *byte == b'x'));
        // It never has enough.
        let before = backlog.bytes().len();
        backlog.append(|_| Err(7));
        assert_eq!(backlog.bytes().len(), before);
    }
}
