//! One direction of a relay: what was read and not written yet, and the end passed on.
//!
//! ```text
//! Empty --read, all written--> Flushing --> Empty
//! Empty --read, sink full--> Kept --all written--> Flushing
//! Empty --spliced, sink full--> Piped --all written--> Empty
//! Empty --end of the source--> Ending --end passed on--> Ended
//! ```
//!
//! What comes behind the bytes read is looked for before they are written, if that costs nothing: an
//! end that is known then goes out with them, not in packets of its own.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::pipes::{Filled, Pipe, Pipes};
use crate::tls::IN_PLACE_BYTES;

/// What is read in one go, and so what a direction keeps at most of what its sink did not take; of TLS
/// it is up to [`IN_PLACE_BYTES`].
const READ_BYTES: usize = 256 * 1024;
/// When the directions of a worker keep so much together, each reads no more than
/// [`SCARCE_BYTES`] in one go: many callers that do not read cost little each.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;
const SCARCE_BYTES: usize = 16 * 1024;
/// After so many bytes a direction is worth a pipe.
const SPLICE_AFTER: u32 = 256 * 1024;
/// What comes in portions below this is copied as cheaply: a message, not a stream.
const SPLICE_MIN: usize = 4 * 1024;
/// Batches that a direction moves before other directions and connections have their turn.
const BATCHES_MAX: usize = 4;
/// Bytes after which they have it sooner.
const TURN_BYTES: u64 = 1024 * 1024;
/// Behind fewer bytes than this the end is looked for: they are a message, which may be the last.
const LAST_BYTES_MAX: usize = 16 * 1024;

thread_local! {
    /// A worker's one buffer, used within a poll only: an idle relay has none. TLS decrypts in it.
    static BUFFER: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; IN_PLACE_BYTES].into_boxed_slice());
    /// What the directions of a worker keep.
    static KEPT_BYTES: Cell<usize> = const { Cell::new(0) };
}

/// One direction.
#[derive(Debug)]
pub(super) struct Direction {
    state: State,
    behind: Behind,
    /// Bytes copied since it last was not worth a pipe.
    copied: u32,
    /// Whether the kernel splices between the two.
    splices: bool,
    /// Whether the source is TLS of ours.
    is_tls: bool,
    /// Bytes were read or written since this was last taken.
    pub(super) stirred: bool,
}

#[derive(Debug)]
enum State {
    /// Nothing is on its way.
    Empty,
    /// All is written, and the sink may still hold some of it.
    Flushing,
    /// The sink did not take these bytes yet.
    Kept(Kept),
    /// Nor these.
    Piped(Pipe),
    /// The source has ended, which the sink is being told.
    Ending,
    Ended,
}

/// What is known to come behind the bytes that are on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    Unknown,
    End,
    /// The error's number: a socket tells it once.
    Failure(i32),
}

/// Bytes of which a sink has taken so many.
#[derive(Debug)]
struct Kept {
    bytes: Box<[u8]>,
    taken: usize,
}

impl Kept {
    fn new(bytes: &[u8]) -> Self {
        KEPT_BYTES.set(KEPT_BYTES.get() + bytes.len());
        Self {
            bytes: bytes.into(),
            taken: 0,
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // A thread that ends no longer counts.
        KEPT_BYTES
            .try_with(|kept| kept.set(kept.get().saturating_sub(self.bytes.len())))
            .ok();
    }
}

/// What a direction is broken by.
#[derive(Debug)]
pub(super) enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

/// The sockets of a direction that may be spliced.
#[derive(Debug)]
pub(super) struct Splicing<'a, S, T> {
    /// The socket of the source, if that is all there is to it: no TLS, nothing read ahead.
    pub(super) source: fn(&S) -> Option<&TcpStream>,
    pub(super) sink: fn(&T) -> Option<&TcpStream>,
    /// Keeps back what does not fill a packet until the sink is told of the end.
    pub(super) cork: fn(&mut T),
    /// Whether the other direction has ended: both sockets are closed when this one has, too.
    pub(super) is_last: bool,
    pub(super) pipes: &'a Rc<Pipes>,
}

impl Direction {
    /// `is_tls`: whether the source is TLS of ours.
    pub(super) const fn new(is_tls: bool) -> Self {
        Self {
            state: State::Empty,
            behind: Behind::Unknown,
            copied: 0,
            splices: true,
            is_tls,
            stirred: false,
        }
    }

    pub(super) const fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Whether the sink has all that was read, and was not told of an end.
    pub(super) const fn holds_nothing(&self) -> bool {
        matches!(self.state, State::Empty | State::Flushing)
    }

    /// Whether the sink has not taken all that was read.
    pub(super) const fn holds_bytes(&self) -> bool {
        matches!(self.state, State::Kept(_) | State::Piped(_))
    }

    /// Moves bytes until the source has none, the sink takes none, or others should have their
    /// turn; ready once the end of the source has been passed on.
    pub(super) fn poll<S, T>(
        &mut self,
        cx: &mut Context<'_>,
        (source, sink): (&mut S, &mut T),
        splicing: Option<&Splicing<'_, S, T>>,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), Broken>>
    where
        S: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        let begun = moved.get();
        for _ in 0..BATCHES_MAX {
            ready!(self.poll_write_out(cx, sink, splicing, moved))?;
            if self.has_ended() {
                return Poll::Ready(Ok(()));
            }
            if moved.get() - begun >= TURN_BYTES {
                break;
            }
            let sockets = splicing
                .filter(|_| self.splices && self.copied >= SPLICE_AFTER)
                .and_then(|splicing| {
                    let (source, sink) = ((splicing.source)(source)?, (splicing.sink)(sink)?);
                    Some((source, sink, splicing.pipes))
                });
            match sockets {
                Some((from, to, pipes)) => {
                    let pipe = ready!(self.poll_take(cx, from, pipes))?;
                    match pipe {
                        Some(pipe) => ready!(self.poll_splice(cx, (from, to), pipe, moved))?,
                        None => ready!(self.poll_copy(cx, (source, sink), splicing, moved))?,
                    }
                }
                None => ready!(self.poll_copy(cx, (source, sink), splicing, moved))?,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what is on its way; ready when nothing is any more.
    fn poll_write_out<S, T: AsyncWrite + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        sink: &mut T,
        splicing: Option<&Splicing<'_, S, T>>,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            match &mut self.state {
                State::Empty | State::Ended => return Poll::Ready(Ok(())),
                // Telling the end flushes.
                State::Flushing if self.behind == Behind::End => self.state = State::Ending,
                State::Flushing => {
                    ready!(Pin::new(&mut *sink).poll_flush(cx)).map_err(Broken::Writing)?;
                    if let Behind::Failure(errno) = self.behind {
                        let error = io::Error::from_raw_os_error(errno);
                        return Poll::Ready(Err(Broken::Reading(error)));
                    }
                    self.state = State::Empty;
                }
                State::Kept(kept) => {
                    let rest = kept.bytes.get(kept.taken..).unwrap_or_default();
                    if rest.is_empty() {
                        self.state = State::Flushing;
                        continue;
                    }
                    let n = ready!(poll_write_some(cx, sink, rest)).map_err(Broken::Writing)?;
                    kept.taken += n;
                    moved.set(moved.get() + n as u64);
                    self.stirred = true;
                }
                State::Piped(pipe) => {
                    let Some(socket) = splicing.and_then(|splicing| (splicing.sink)(sink)) else {
                        debug_assert!(false, "what is in a pipe came from a socket to a socket");
                        return Poll::Ready(Err(Broken::Writing(io::ErrorKind::Other.into())));
                    };
                    if pipe.is_empty() {
                        self.state = State::Empty;
                        continue;
                    }
                    let n = ready!(pipe.poll_drain(cx, socket)).map_err(Broken::Writing)?;
                    moved.set(moved.get() + n as u64);
                    self.stirred = true;
                }
                State::Ending => {
                    // Closing a socket, from which all was read, ends it in the same way.
                    let closes = splicing.is_some_and(|splicing| {
                        splicing.is_last && (splicing.sink)(sink).is_some()
                    });
                    if closes {
                        self.state = State::Ended;
                        continue;
                    }
                    ready!(Pin::new(&mut *sink).poll_shutdown(cx)).map_err(Broken::Writing)?;
                    self.state = State::Ended;
                }
            }
        }
    }

    /// Reads into the worker's buffer and writes what was read at once; keeps what is left.
    fn poll_copy<S, T>(
        &mut self,
        cx: &mut Context<'_>,
        (source, sink): (&mut S, &mut T),
        splicing: Option<&Splicing<'_, S, T>>,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), Broken>>
    where
        S: AsyncRead + Unpin,
        T: AsyncWrite + Unpin,
    {
        BUFFER.with_borrow_mut(|buffer| {
            let room = if KEPT_BYTES.get() >= KEPT_BYTES_MAX {
                SCARCE_BYTES
            } else if self.is_tls {
                IN_PLACE_BYTES
            } else {
                READ_BYTES
            };
            let mut room = ReadBuf::new(buffer.get_mut(..room).unwrap_or_default());
            ready!(Pin::new(&mut *source).poll_read(cx, &mut room)).map_err(Broken::Reading)?;
            if room.filled().is_empty() {
                self.state = State::Ending;
                return Poll::Ready(Ok(()));
            }
            self.behind = look_behind(cx, source, &mut room);
            if let (Behind::End, Some(splicing)) = (&self.behind, splicing) {
                (splicing.cork)(sink);
            }
            let mut rest = room.filled();
            self.stirred = true;
            let n = u32::try_from(rest.len()).unwrap_or(u32::MAX);
            self.copied = self.copied.saturating_add(n);
            self.state = State::Flushing;
            while !rest.is_empty() {
                let Poll::Ready(written) = poll_write_some(cx, sink, rest) else {
                    self.state = State::Kept(Kept::new(rest));
                    return Poll::Pending;
                };
                let n = written.map_err(Broken::Writing)?;
                moved.set(moved.get() + n as u64);
                rest = rest.get(n..).unwrap_or_default();
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Takes a pipe once there is something for it; none where bytes have to be copied.
    fn poll_take(
        &mut self,
        cx: &mut Context<'_>,
        source: &TcpStream,
        pipes: &Rc<Pipes>,
    ) -> Poll<Result<Option<Pipe>, Broken>> {
        ready!(source.poll_read_ready(cx)).map_err(Broken::Reading)?;
        let pipe = pipes.take();
        if pipe.is_none() {
            // Asked for again after as many bytes: there may be one by then.
            self.copied = 0;
        }
        Poll::Ready(Ok(pipe))
    }

    /// Moves what has come in through `pipe`; keeps that only if the sink does not take all.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        (source, sink): (&TcpStream, &TcpStream),
        mut pipe: Pipe,
        moved: &Cell<u64>,
    ) -> Poll<Result<(), Broken>> {
        match ready!(pipe.poll_fill(cx, source)).map_err(Broken::Reading)? {
            Filled::Bytes(n) => {
                self.stirred = true;
                if n < SPLICE_MIN {
                    self.copied = 0;
                }
            }
            Filled::End => {
                self.state = State::Ending;
                return Poll::Ready(Ok(()));
            }
            Filled::Unsupported => {
                pipe.note_unsupported();
                self.splices = false;
                return Poll::Ready(Ok(()));
            }
        }
        while !pipe.is_empty() {
            let Poll::Ready(written) = pipe.poll_drain(cx, sink) else {
                self.state = State::Piped(pipe);
                return Poll::Pending;
            };
            moved.set(moved.get() + written.map_err(Broken::Writing)? as u64);
        }
        Poll::Ready(Ok(()))
    }
}

/// Looks for what comes behind the few bytes in `room`.
///
/// A source that has given less than it was asked for has no more, and says so without a system
/// call, unless its end has come too.
fn look_behind<S: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    source: &mut S,
    room: &mut ReadBuf<'_>,
) -> Behind {
    let filled = room.filled().len();
    if filled >= LAST_BYTES_MAX || room.remaining() == 0 {
        return Behind::Unknown;
    }
    match Pin::new(source).poll_read(cx, room) {
        Poll::Ready(Ok(())) if room.filled().len() == filled => Behind::End,
        // TLS of ours tells its own errors with every read.
        Poll::Ready(Err(error)) => (error.raw_os_error()).map_or(Behind::Unknown, Behind::Failure),
        Poll::Ready(Ok(())) | Poll::Pending => Behind::Unknown,
    }
}

/// As `poll_write`, but a sink that takes nothing is an error.
fn poll_write_some<T: AsyncWrite + Unpin>(
    cx: &mut Context<'_>,
    sink: &mut T,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    match ready!(Pin::new(sink).poll_write(cx, bytes))? {
        0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
        n => Poll::Ready(Ok(n)),
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    /// How much a direction keeps of a lot, when its sink takes only so much.
    async fn kept_beyond(taken: usize) -> usize {
        let before = KEPT_BYTES.get();
        let (mut far, mut source) = duplex(READ_BYTES * 4);
        let (mut sink, mut end) = duplex(taken);
        far.write_all(&vec![7; READ_BYTES * 4]).await.unwrap();
        far.shutdown().await.unwrap();
        let (mut direction, moved) = (Direction::new(false), Cell::new(0));
        let polled =
            poll_fn(|cx| Poll::Ready(direction.poll(cx, (&mut source, &mut sink), None, &moved)));
        assert!(polled.await.is_pending());
        assert_eq!(moved.get(), taken as u64);
        let kept = KEPT_BYTES.get() - before;
        // All comes in the end, and nothing is kept then.
        let mut all = Vec::new();
        let rest = poll_fn(|cx| direction.poll(cx, (&mut source, &mut sink), None, &moved));
        let (ended, read) = tokio::join!(rest, end.read_to_end(&mut all));
        ended.unwrap();
        assert_eq!(read.unwrap(), READ_BYTES * 4);
        assert_eq!(KEPT_BYTES.get(), before);
        kept
    }

    #[tokio::test]
    async fn what_directions_keep_together_is_bounded() {
        assert_eq!(kept_beyond(1000).await, READ_BYTES - 1000);
        let others = Kept::new(&vec![0; KEPT_BYTES_MAX]);
        assert_eq!(kept_beyond(1000).await, SCARCE_BYTES - 1000);
        drop(others);
        assert_eq!(KEPT_BYTES.get(), 0);
    }

    /// Notes how much room it is read with, and has nothing.
    #[derive(Default)]
    struct Asked(Option<usize>);

    impl AsyncRead for Asked {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            assert_eq!(buf.initialized().len(), buf.remaining());
            self.0 = Some(buf.remaining());
            Poll::Pending
        }
    }

    #[test]
    fn tls_has_room_for_its_records_and_all_others_for_as_much_plaintext() {
        for (others, is_tls, room) in [
            (0, false, READ_BYTES),
            (0, true, IN_PLACE_BYTES),
            (KEPT_BYTES_MAX, true, SCARCE_BYTES),
        ] {
            let others = Kept::new(&vec![0; others]);
            let (mut source, mut sink) = (Asked::default(), tokio::io::sink());
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let streams = (&mut source, &mut sink);
            let polled = Direction::new(is_tls).poll(&mut cx, streams, None, &Cell::new(0));
            assert!(polled.is_pending());
            assert_eq!(source.0, Some(room));
            drop(others);
        }
    }

    /// Gives its bytes once, and then what it has behind them.
    struct Message(&'static [u8], Behind);

    impl AsyncRead for Message {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if !self.0.is_empty() {
                buf.put_slice(std::mem::take(&mut self.0));
                return Poll::Ready(Ok(()));
            }
            match self.1 {
                Behind::Unknown => Poll::Pending,
                Behind::End => Poll::Ready(Ok(())),
                Behind::Failure(errno) => {
                    // Told once, as by a socket.
                    self.1 = Behind::End;
                    Poll::Ready(Err(io::Error::from_raw_os_error(errno)))
                }
            }
        }
    }

    /// Notes what is asked of it.
    #[derive(Default)]
    struct Noting(RefCell<Vec<&'static str>>);

    impl AsyncWrite for Noting {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.borrow_mut().push("write");
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.borrow_mut().push("flush");
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.borrow_mut().push("shutdown");
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn an_end_that_is_known_goes_out_with_the_last_bytes() {
        let pipes = Pipes::with_max(0);
        let splicing = Splicing {
            source: |_| None,
            sink: |_| None,
            cork: |sink: &mut Noting| sink.0.borrow_mut().push("cork"),
            is_last: false,
            pipes: &pipes,
        };
        for (behind, asked) in [
            (Behind::End, &["cork", "write", "shutdown"][..]),
            (Behind::Unknown, &["write", "flush"]),
            (
                // ECONNRESET, errno(3).
                Behind::Failure(104),
                &["write", "flush"],
            ),
        ] {
            let (mut source, mut sink) = (Message(b"bye", behind), Noting::default());
            let (mut direction, moved) = (Direction::new(false), Cell::new(0));
            let streams = (&mut source, &mut sink);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let polled = direction.poll(&mut cx, streams, Some(&splicing), &moved);
            match behind {
                Behind::End => assert!(matches!(polled, Poll::Ready(Ok(())))),
                Behind::Unknown => assert!(polled.is_pending()),
                Behind::Failure(errno) => {
                    let Poll::Ready(Err(Broken::Reading(error))) = polled else {
                        panic!("{polled:?}");
                    };
                    assert_eq!(error.raw_os_error(), Some(errno));
                }
            }
            assert_eq!(*sink.0.borrow(), asked);
            assert_eq!(moved.get(), 3);
        }
    }
}
