//! Bytes that could not be handed on yet.

use std::io;

/// Room for most flights of a handshake, whose records come one by one: a hello or a server's flight
/// with a hybrid share, and two certificates. More is made room for as it comes.
const FLIGHT_BYTES: usize = 2560;

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

    /// Appends the record that `write` writes: it says how much room it wants where it has less.
    ///
    /// # Errors
    /// It wants more than it said. Nothing is appended, and the record is lost.
    pub(super) fn append(
        &mut self,
        mut write: impl FnMut(&mut [u8]) -> Result<usize, usize>,
    ) -> Result<(), NoRoom> {
        let end = self.bytes.len();
        let mut room = 0;
        let written = loop {
            match write(self.bytes.get_mut(end..).unwrap_or_default()) {
                Ok(written) => break Ok(written),
                // Asked twice at most.
                Err(wanted) if room < wanted => room = wanted,
                Err(_) => break Err(NoRoom),
            }
            if self.bytes.capacity() == 0 {
                self.bytes.reserve_exact(room.max(FLIGHT_BYTES));
            }
            self.bytes.resize(end + room, 0);
        };
        self.bytes.truncate(end + written.as_ref().unwrap_or(&0));
        if self.bytes.is_empty() {
            *self = Self::default();
        }
        written.map(drop)
    }

    /// Removes the oldest `n`; with the last byte goes the memory.
    pub(super) fn consume(&mut self, n: usize) {
        self.taken += n;
        if self.taken >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// A record was ready, and is lost: nothing may be sent behind it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a TLS record has no room")]
pub(super) struct NoRoom;

impl From<NoRoom> for io::Error {
    fn from(error: NoRoom) -> Self {
        Self::other(error)
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
            let appended = backlog.append(|room| {
                let place = room.get_mut(..length).ok_or(length)?;
                place.fill(b'x');
                Ok(length)
            });
            assert_eq!(appended, Ok(()));
            assert_eq!(backlog.bytes().len(), before + length);
        }
        assert!(backlog.bytes().iter().all(|byte| *byte == b'x'));
        // It never has enough.
        let before = backlog.bytes().len();
        assert_eq!(backlog.append(|_| Err(7)), Err(NoRoom));
        assert_eq!(backlog.bytes().len(), before);
        // Behind what was handed on in part.
        backlog.consume(before - 1);
        let appended = backlog.append(|room| {
            room.get_mut(..2).ok_or(2_usize)?.copy_from_slice(b"yz");
            Ok(2)
        });
        assert_eq!(appended, Ok(()));
        assert_eq!(backlog.bytes(), b"xyz");
        backlog.consume(3);
        assert_eq!(backlog.bytes.capacity(), 0);
    }

    #[test]
    fn a_queue_to_which_nothing_was_written_owns_nothing() {
        for written in [Ok(0), Err(7)] {
            let mut backlog = Backlog::default();
            let appended = backlog.append(|room| if room.len() < 7 { Err(7) } else { written });
            assert_eq!(appended.is_ok(), written.is_ok());
            assert!(backlog.is_empty());
            assert_eq!(backlog.bytes.capacity(), 0, "{written:?}");
        }
    }
}
