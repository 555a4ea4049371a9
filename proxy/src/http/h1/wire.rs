//! The bytes of one connection, both ways.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::sending::Piece;
use crate::transport::Readable;

/// What is allocated at once for reading: it serves many short messages, of one connection after the
/// other.
const BLOCK_BYTES: usize = 32 * 1024;
/// The room of a read, at least.
const ROOM_BYTES: usize = 8 * 1024;
/// The room of a read on a connection that fills it each time.
const ROOM_BYTES_MAX: usize = 64 * 1024;
/// Pieces of a body up to this are copied behind what waits: cheaper than a `writev`.
const COPY_BYTES: usize = 16 * 1024;
/// What waits to be written before it is.
const GATHER_BYTES: usize = 16 * 1024;
/// How many reads of what nobody wants are made.
const UNREAD_MAX: usize = 16;
/// What a spare block keeps of its memory.
const SPARE_BYTES: usize = 64 * 1024;
/// Blocks that are kept until they can be used again.
const SPENT_MAX: usize = 8;
/// Spares to write into, and what each of them keeps of its memory.
const SPARE_OUTS_MAX: usize = 64;
const SPARE_OUT_BYTES: usize = 20 * 1024;

thread_local! {
    /// The rest of a block: connections that wait hold none.
    static READ: Cell<BytesMut> = Cell::new(BytesMut::new());
    /// Blocks that are full, of which somebody may still hold a part; oldest first.
    static SPENT: RefCell<VecDeque<BytesMut>> = const { RefCell::new(VecDeque::new()) };
    /// What was written from: as many connections as are ready at once write into one each.
    static OUT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A stream, what was read of it and not used, and what waits to be written.
#[derive(Debug)]
pub(super) struct Wire<S> {
    stream: S,
    pub(super) read: BytesMut,
    room: usize,
    /// The other end has sent all.
    is_eof: bool,
    /// What had come was read, or something was sent since: most likely nothing is there to be read.
    is_drained: bool,
    out: Vec<u8>,
    written: usize,
    /// Behind `out`, too long to be copied; and what is behind that.
    piece: Bytes,
    tail: &'static [u8],
    /// Bytes that the stream took.
    taken: u64,
    /// The stream keeps nothing back of what it took: TLS may, and writes it when it is flushed.
    is_flushed: bool,
}

impl<S: Readable + AsyncWrite> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            read: BytesMut::new(),
            room: ROOM_BYTES,
            is_eof: false,
            is_drained: false,
            out: Vec::new(),
            written: 0,
            piece: Bytes::new(),
            tail: &[],
            taken: 0,
            is_flushed: true,
        }
    }

    pub(super) const fn stream(&self) -> &S {
        &self.stream
    }

    /// Bytes that the stream took so far.
    pub(super) const fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether all that was written has left.
    pub(super) const fn is_flushed(&self) -> bool {
        self.is_flushed && self.waiting() == 0
    }

    /// The stream, and what was read of it and not used; a copy, for it may be kept for long.
    pub(super) fn into_parts(mut self) -> (S, Bytes) {
        let read = Bytes::copy_from_slice(&self.read);
        self.read.clear();
        self.rest();
        (self.stream, read)
    }

    /// Reads more; 0 is the end.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.is_eof {
            return Poll::Ready(Ok(0));
        }
        // Once: who is woken finds something.
        if mem::take(&mut self.is_drained) && self.stream.poll_readable(cx).is_pending() {
            self.rest();
            return Poll::Pending;
        }
        if self.read.capacity() == 0 {
            self.read = READ.take();
        }
        if self.read.capacity() - self.read.len() < self.room {
            self.make_room();
        }
        let room = self.read.capacity() - self.read.len();
        let polled = poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.read);
        match &polled {
            Poll::Ready(Ok(0)) => self.is_eof = true,
            Poll::Ready(Ok(n)) if *n == room => {
                self.room = (self.room * 2).min(ROOM_BYTES_MAX);
            }
            Poll::Ready(_) => self.is_drained = true,
            Poll::Pending => self.rest(),
        }
        polled
    }

    /// Reads go on in a block of before that nobody holds a part of any more, if there is one: memory that
    /// the allocator gives back to the kernel and takes again costs a page fault for each page.
    fn make_room(&mut self) {
        let wanted = BLOCK_BYTES.max(self.room);
        if !self.read.is_empty() {
            self.read.reserve(wanted);
            return;
        }
        let spent = mem::take(&mut self.read);
        self.read = SPENT.with_borrow_mut(|blocks| {
            if spent.capacity() > 0 || blocks.is_empty() {
                blocks.push_back(spent);
            }
            if let Some(oldest) = blocks.front_mut()
                && oldest.try_reclaim(wanted)
                && let Some(block) = blocks.pop_front()
            {
                return block;
            }
            if blocks.len() > SPENT_MAX {
                blocks.pop_front();
            }
            BytesMut::with_capacity(wanted)
        });
    }

    /// Reads away what has come: a connection that is closed over it is reset, and what was written
    /// to it may be lost (RFC 1122 §4.2.2.13).
    pub(super) fn drop_unread(&mut self, cx: &mut Context<'_>) {
        for _ in 0..UNREAD_MAX {
            self.read.clear();
            match self.poll_fill(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0) | Err(_)) | Poll::Pending => return,
            }
        }
    }

    /// Reads what comes, and drops it, until the other end has no more or nothing is `left`.
    pub(super) fn poll_drop(&mut self, left: &mut usize, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            self.read.clear();
            match ready!(self.poll_fill(cx)) {
                Ok(n @ 1..) if n < *left => *left -= n,
                Ok(_) | Err(_) => return Poll::Ready(()),
            }
        }
    }

    /// Gives the rest of the block back, if nothing is left to use of it.
    pub(super) fn rest(&mut self) {
        // Whoever has none gives none back: another's would be dropped for it.
        if self.read.is_empty() && self.read.capacity() > 0 {
            let spare = mem::take(&mut self.read);
            if spare.capacity() <= SPARE_BYTES {
                READ.set(spare);
            }
        }
    }

    /// Whether nothing has come that nobody has asked for, and the other end is there, as far as is
    /// known without a system call.
    pub(super) fn is_quiet(&mut self) -> bool {
        !self.is_eof && self.read.is_empty() && self.stream.is_quiet()
    }

    /// Where a head is written to.
    pub(super) fn out(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.piece.is_empty(), "nothing goes before a piece");
        if self.out.capacity() == 0 {
            self.out = OUT.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.out
    }

    /// Adds a piece of a body.
    pub(super) fn push(&mut self, piece: Piece) {
        let is_short = piece.bytes.len() <= COPY_BYTES;
        let out = self.out();
        out.extend_from_slice(piece.before());
        if is_short {
            out.extend_from_slice(&piece.bytes);
            out.extend_from_slice(piece.behind);
        } else {
            self.piece = piece.bytes;
            self.tail = piece.behind;
        }
    }

    /// Bytes that wait to be written.
    pub(super) const fn waiting(&self) -> usize {
        self.out.len() - self.written + self.piece.len() + self.tail.len()
    }

    /// Whether more may be pushed before what waits is written.
    pub(super) fn may_gather(&self) -> bool {
        self.waiting() < GATHER_BYTES && self.piece.is_empty() && self.tail.is_empty()
    }

    /// Writes all that waits.
    pub(super) fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.waiting() > 0 {
            let out = self.out.get(self.written..).unwrap_or_default();
            let stream = Pin::new(&mut self.stream);
            let polled = if self.piece.is_empty() && self.tail.is_empty() {
                stream.poll_write(cx, out)
            } else {
                let slices = [out, &self.piece, self.tail].map(IoSlice::new);
                let from = usize::from(out.is_empty());
                stream.poll_write_vectored(cx, slices.get(from..).unwrap_or_default())
            };
            let n = ready!(polled)?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(n);
        }
        if self.out.capacity() > 0 {
            self.written = 0;
            let mut spare = mem::take(&mut self.out);
            if spare.capacity() <= SPARE_OUT_BYTES {
                spare.clear();
                OUT.with_borrow_mut(|spares| {
                    if spares.len() < SPARE_OUTS_MAX {
                        spares.push(spare);
                    }
                });
            }
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.is_flushed = true;
        self.is_drained = true;
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, n: usize) {
        self.is_flushed = false;
        self.taken += n as u64;
        let of_out = n.min(self.out.len() - self.written);
        self.written += of_out;
        let of_piece = (n - of_out).min(self.piece.len());
        self.piece.advance(of_piece);
        let of_tail = n - of_out - of_piece;
        self.tail = self.tail.get(of_tail..).unwrap_or_default();
    }

    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A stream of which some bytes were read ahead.
#[derive(Debug)]
pub(crate) struct Rewound<S> {
    ahead: Bytes,
    stream: S,
}

impl<S> Rewound<S> {
    pub(crate) const fn new(stream: S, ahead: Bytes) -> Self {
        Self { ahead, stream }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    /// Connections whose messages wait to be sent on read one after the other into the same block.
    #[tokio::test]
    async fn a_block_is_read_into_until_it_is_full() {
        let mut wires = Vec::new();
        let mut others = Vec::new();
        for _ in 0..40 {
            let (near, far) = tokio::io::duplex(4096);
            wires.push(Wire::new(near));
            others.push(far);
        }
        let (mut end, mut changes) = (0, 0);
        for _ in 0..10 {
            let mut held = Vec::new();
            for (wire, other) in wires.iter_mut().zip(&mut others) {
                other.write_all(&[7; 1000]).await.unwrap();
                let read = std::future::poll_fn(|cx| wire.poll_fill(cx)).await;
                assert_eq!(read.unwrap(), 1000);
                let message = wire.read.split_to(1000).freeze();
                // Once more than needed: a connection gives it back when it is kept, too.
                wire.rest();
                wire.rest();
                let begin = message.as_ptr().addr();
                changes += usize::from(begin != end);
                end = begin + message.len();
                held.push(message);
            }
        }
        let each = (BLOCK_BYTES - ROOM_BYTES) / 1000;
        assert!(changes <= 400 / each, "{changes} blocks");
    }
}
