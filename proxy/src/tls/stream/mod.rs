//! A TLS stream over rustls's unbuffered connections.
//!
//! All connections of a thread share one buffer ([`scratch`]), in which records are decrypted and
//! encrypted; a reader with room for a batch of records has them decrypted in its own
//! ([`IN_PLACE_BYTES`]), so that a batch takes the processor's cache once and not twice. A connection
//! owns bytes only while it cannot hand them on:
//!
//! ```text
//!  socket -> shared buffer -> reader      a record that is not whole yet waits in `held`,
//!                                         what the reader has no room for in `plaintext`
//!  socket ------------------> reader      as above; there is room for all
//!  writer -> shared buffer -> socket      what the socket does not take waits in `outgoing`
//! ```
//!
//! Each of the three has a bound: [`HELD_BYTES_MAX`], one receive, and one batch; idle they own
//! nothing. The stream is generic over what carries the bytes, and the same for both sides.

mod backlog;
mod connection;
mod scratch;
#[cfg(test)]
mod tests;

use std::fmt;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use rustls::{ClientConfig, CommonState, InvalidMessage, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use backlog::Backlog;
use connection::{Connection, Gains, Sealing, Step};
use scratch::Scratch;

use crate::runtime::others_first;

/// The plaintext of a record (RFC 8446 §5.1: at most 2^14 bytes).
const RECORD_BYTES: usize = 1 << 14;
/// A record on the wire: header, plaintext, what encryption adds (RFC 8446 §5.2: at most 256 bytes).
const WIRE_BYTES: usize = 5 + RECORD_BYTES + 256;
/// The header, the content type and the tag that each record of our suites has besides plaintext.
const RECORD_OVERHEAD_BYTES: usize = 5 + 1 + 16;
/// The most plaintext that is encrypted, or received, at once.
const BATCH_BYTES_MAX: usize = 256 * 1024;
/// What is encrypted at once for a socket that took only a part of the last batch: what it does not
/// take is kept in memory.
const BATCH_BYTES_MIN: usize = 64 * 1024;
/// A reader whose buffer has so much room, all of it written before, receives a batch of records there:
/// in front of them, where their plaintext goes, is room for that of one.
pub(crate) const IN_PLACE_BYTES: usize = FRONT_BYTES + with_overhead(BATCH_BYTES_MAX);
/// To where a cache line begins: the kernel copies there.
const FRONT_BYTES: usize = WIRE_BYTES.next_multiple_of(64);
/// The most ciphertext that is held while a handshake message is not whole: rustls's own limit for
/// one, with its buffered connections.
const HELD_BYTES_MAX: usize = 0xffff;

/// Plaintext as the largest records of our suites.
const fn with_overhead(plaintext_bytes: usize) -> usize {
    plaintext_bytes + plaintext_bytes.div_ceil(RECORD_BYTES) * RECORD_OVERHEAD_BYTES
}

/// A byte stream inside TLS.
///
/// Reading and writing are independent: a closed or truncated direction leaves the other one open.
/// After [`AsyncWrite::poll_write`] has taken bytes they may be kept until the next write, flush or
/// shutdown, as with any buffered stream.
pub struct TlsStream<S> {
    carrier: S,
    connection: Connection,
    /// Received, and not a whole record or handshake message.
    held: Vec<u8>,
    /// Decrypted, and not read.
    plaintext: Backlog,
    /// Encrypted, and not sent.
    outgoing: Backlog,
    reading: Reading,
    writing: Writing,
    /// Whether others had their turn since a flight of the handshake became ready.
    has_let_others: bool,
    batch_bytes: usize,
}

/// What reading gives once there is no plaintext left.
#[derive(Debug)]
enum Reading {
    Open,
    /// The peer has closed by close_notify.
    Closed,
    /// The bytes ended without close_notify (RFC 8446 §6.1: truncated).
    Truncated,
    /// The peer broke the protocol, or refused us; nothing is sent after the alert either.
    Failed(rustls::Error),
}

/// Where plaintext goes first.
enum Place<'a, 'b> {
    /// To a reader, if there is one.
    Reader(Option<&'a mut ReadBuf<'b>>),
    /// In front of the records that are not decrypted yet; so much stands there.
    ///
    /// The first has [`FRONT_BYTES`] in front, each leaves more room than its plaintext takes, and
    /// a step gives that of one: all has room.
    InFront(usize),
}

#[derive(Debug, PartialEq, Eq)]
enum Writing {
    /// The last flight of a client's handshake waits in `outgoing` for what is written first: in
    /// most protocols a client speaks first, and both then leave in one packet.
    Opening,
    Open,
    /// What is written next is the last: it waits in `outgoing` for close_notify, if it is no more
    /// than a record.
    Closing,
    /// Nothing more is sent: our close_notify is sent or queued, or what was to be sent is lost.
    Closed,
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Answers the handshake that comes over `carrier`.
    ///
    /// # Errors
    /// What the peer did wrong, or the carrier; with it comes the carrier, over which the alert has
    /// been sent.
    ///
    /// # Cancel safety
    /// Dropping it drops the carrier.
    pub fn accept(
        config: Arc<ServerConfig>,
        carrier: S,
    ) -> impl Future<Output = Result<Box<Self>, (io::Error, S)>> {
        Self::shake_hands(Self::boxed(
            Connection::server(config),
            Writing::Open,
            carrier,
        ))
    }

    /// Begins a handshake over `carrier` with the server `name`.
    ///
    /// Its last flight may be sent only with the first write, read, flush or shutdown.
    ///
    /// # Errors
    /// As [`Self::accept`].
    ///
    /// # Cancel safety
    /// Dropping it drops the carrier.
    pub fn connect(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
        carrier: S,
    ) -> impl Future<Output = Result<Box<Self>, (io::Error, S)>> {
        Self::shake_hands(Self::boxed(
            Connection::client(config, name),
            Writing::Opening,
            carrier,
        ))
    }

    /// In a box from the beginning: a future that holds a session costs its caller as much for as
    /// long as the caller lives.
    fn boxed(
        connection: Result<Connection, rustls::Error>,
        writing: Writing,
        carrier: S,
    ) -> Result<Box<Self>, (io::Error, S)> {
        match connection {
            Ok(connection) => Ok(Box::new(Self {
                carrier,
                connection,
                held: Vec::new(),
                plaintext: Backlog::default(),
                outgoing: Backlog::default(),
                reading: Reading::Open,
                writing,
                has_let_others: false,
                batch_bytes: BATCH_BYTES_MIN,
            })),
            Err(error) => Err((io::Error::other(error), carrier)),
        }
    }

    /// Whether something was decrypted that nobody has read.
    pub const fn has_more(&self) -> bool {
        !self.plaintext.is_empty()
    }

    async fn shake_hands(
        begun: Result<Box<Self>, (io::Error, S)>,
    ) -> Result<Box<Self>, (io::Error, S)> {
        let mut stream = begun?;
        // A client speaks first.
        stream.take_in(&mut [], 0, &mut Place::Reader(None));
        match poll_fn(|cx| stream.poll_handshake(cx)).await {
            Ok(()) => Ok(stream),
            Err(error) => Err((error, stream.carrier)),
        }
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.holds_last_flight() {
                return Poll::Ready(Ok(()));
            }
            // To make a flight takes long: what several have made leaves in one go.
            if !self.outgoing.is_empty() && !std::mem::replace(&mut self.has_let_others, true) {
                return others_first(cx);
            }
            // The last flight of a server, and an alert too, goes out before the handshake ends.
            let sent = ready!(self.poll_send_and_flush(cx));
            if let Some(Err(error)) = self.reading.end() {
                return Poll::Ready(Err(error));
            }
            sent?;
            if !self.connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_receive(cx, None))?;
            self.has_let_others = false;
        }
    }

    /// Whether the handshake is over and its last flight has not been sent yet, on purpose.
    fn holds_last_flight(&self) -> bool {
        self.writing == Writing::Opening
            && !self.connection.is_handshaking()
            && self.reading.end().is_none()
    }

    /// Receives once, and takes in what came; the first plaintext goes to `reader`.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        reader: Option<&mut ReadBuf<'_>>,
    ) -> Poll<io::Result<()>> {
        match reader {
            Some(reader) if written_room(reader) >= IN_PLACE_BYTES => {
                let room = reader.initialize_unfilled_to(IN_PLACE_BYTES);
                let mut place = Place::InFront(0);
                let received = self.poll_receive_in(cx, room, FRONT_BYTES, &mut place);
                if let Place::InFront(filled) = place {
                    reader.advance(filled);
                }
                received
            }
            reader => {
                let wanted = reader.as_ref().map_or(0, |reader| reader.remaining());
                let mut scratch = Scratch::lend();
                let ciphertext = &mut scratch.buffers().ciphertext;
                let end =
                    (self.held.len() + WIRE_BYTES).max(with_overhead(wanted.min(BATCH_BYTES_MAX)));
                let room = ciphertext.get_mut(..end).unwrap_or_default();
                self.poll_receive_in(cx, room, 0, &mut Place::Reader(reader))
            }
        }
    }

    /// Receives once, into `room` from `begin`, and takes in what came.
    fn poll_receive_in(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
        begin: usize,
        place: &mut Place<'_, '_>,
    ) -> Poll<io::Result<()>> {
        let behind_held = begin + self.held.len();
        let mut free = ReadBuf::new(room.get_mut(behind_held..).unwrap_or_default());
        ready!(Pin::new(&mut self.carrier).poll_read(cx, &mut free))?;
        let received = free.filled().len();
        if received == 0 {
            // What is held stays: rustls counts on it when it is asked to write.
            self.reading = Reading::Truncated;
            return Poll::Ready(Ok(()));
        }
        if let Some(front) = room.get_mut(begin..behind_held) {
            front.copy_from_slice(&self.held);
        }
        // Whoever shakes hands sends by itself.
        let is_idle = self.outgoing.is_empty() && !self.connection.is_handshaking();
        let bytes = room.get_mut(..behind_held + received).unwrap_or_default();
        self.take_in(bytes, begin, place);
        if is_idle && !self.outgoing.is_empty() {
            // Nobody waits to send, so nobody loses its waker; if the socket takes nothing now, the
            // next write, flush or shutdown sends it.
            drop(self.poll_send(cx));
        }
        Poll::Ready(Ok(()))
    }

    /// Processes `bytes` from `at` to their last whole record, and holds the rest.
    ///
    /// To the last, even where the reader's room ends: a connection that has whole records before
    /// it gives them, and lets nobody write.
    fn take_in(&mut self, bytes: &mut [u8], mut at: usize, place: &mut Place<'_, '_>) {
        let step = loop {
            // What is used up was there; if not, a slice would panic.
            let (front, rest) = bytes.split_at_mut(at.min(bytes.len()));
            let (used, step) = match place {
                Place::Reader(reader) => self.step(rest, reader.as_deref_mut()),
                Place::InFront(filled) => {
                    let mut reader = ReadBuf::new(front);
                    reader.set_filled(*filled);
                    let stepped = self.step(rest, Some(&mut reader));
                    *filled = reader.filled().len();
                    stepped
                }
            };
            at += used;
            if !matches!(step, Step::Again) {
                break step;
            }
        };
        let rest = bytes.get(at..).unwrap_or_default();
        self.held.clear();
        match step {
            Step::Again | Step::Blocked if rest.is_empty() => self.held = Vec::new(),
            Step::Again | Step::Blocked if rest.len() < HELD_BYTES_MAX => {
                self.held.extend_from_slice(rest);
            }
            Step::Again | Step::Blocked => {
                self.fail(InvalidMessage::HandshakePayloadTooLarge.into());
            }
            // RFC 8446 §6.1: what comes after close_notify is ignored.
            Step::PeerClosed => {
                self.reading = Reading::Closed;
                self.held = Vec::new();
            }
            Step::Failed(error) => self.fail(error),
        }
    }

    /// Processes the next record of `received`; how many bytes of it are used up.
    fn step(&mut self, received: &mut [u8], reader: Option<&mut ReadBuf<'_>>) -> (usize, Step) {
        let mut gains = Gains {
            reader,
            plaintext: &mut self.plaintext,
            outgoing: &mut self.outgoing,
        };
        self.connection.step(received, &mut gains)
    }

    fn fail(&mut self, error: rustls::Error) {
        self.connection.take_alert(&mut self.outgoing);
        self.reading = Reading::Failed(error);
        self.held = Vec::new();
    }

    /// Sends what was kept.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let carrier = Pin::new(&mut self.carrier);
            match ready!(carrier.poll_write(cx, self.outgoing.bytes()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.outgoing.consume(n),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send_and_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_write_slices(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if slices.iter().all(|slice| slice.is_empty()) {
            return Poll::Ready(Ok(0));
        }
        let opens = self.writing == Writing::Opening;
        let closes = self.writing == Writing::Closing;
        if opens {
            self.writing = Writing::Open;
        }
        // Beside a batch of the smallest size there is room for as much.
        if !opens || self.outgoing.bytes().len() > BATCH_BYTES_MIN {
            ready!(self.poll_send(cx))?;
        }
        if let Reading::Failed(error) = &self.reading {
            return Poll::Ready(Err(invalid_data(error)));
        }
        if self.writing == Writing::Closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut scratch = Scratch::lend();
        let buffers = scratch.buffers();
        let mut sealing = Sealing {
            slices,
            limit: self.batch_bytes,
            gathered: &mut buffers.gathered,
            ciphertext: &mut buffers.ciphertext,
            taken: 0,
            len: 0,
        };
        let sealed = sealing.append(self.outgoing.bytes());
        let sealed = sealed.and_then(|()| self.connection.seal(&mut self.held, &mut sealing));
        self.outgoing = Backlog::default();
        if let Err(error) = sealed {
            // What was to be sent is lost: nothing may follow it.
            self.writing = Writing::Closed;
            return Poll::Ready(Err(error));
        }
        let (taken, len) = (sealing.taken, sealing.len);
        let mut rest = buffers.ciphertext.get(..len).unwrap_or_default();
        if closes && len <= WIRE_BYTES {
            self.outgoing.push(rest);
            return Poll::Ready(Ok(taken));
        }
        while !rest.is_empty() {
            match Pin::new(&mut self.carrier).poll_write(cx, rest) {
                Poll::Ready(Ok(n @ 1..)) => rest = rest.get(n..).unwrap_or_default(),
                Poll::Ready(failed) if rest.len() == len => {
                    return Poll::Ready(failed.and_then(|_| Err(io::ErrorKind::WriteZero.into())));
                }
                // A part has left, and an error would say that nothing has: what is sent next meets
                // it again.
                Poll::Ready(_) | Poll::Pending => {
                    self.outgoing.push(rest);
                    break;
                }
            }
        }
        if !self.outgoing.is_empty() {
            self.batch_bytes = BATCH_BYTES_MIN;
        } else if taken == self.batch_bytes {
            self.batch_bytes = (self.batch_bytes * 2).min(BATCH_BYTES_MAX);
        }
        Poll::Ready(Ok(taken))
    }
}

impl<S> TlsStream<S> {
    /// What carries the bytes.
    pub const fn carrier(&self) -> &S {
        &self.carrier
    }

    /// As [`Self::carrier`].
    pub const fn carrier_mut(&mut self) -> &mut S {
        &mut self.carrier
    }

    /// Says that the stream is shut down behind what is written next: both then leave in one.
    pub const fn hold_last(&mut self) {
        match self.writing {
            // The last flight may be waited for though nothing is written.
            Writing::Opening if !self.outgoing.is_empty() => {}
            Writing::Opening | Writing::Open => self.writing = Writing::Closing,
            Writing::Closing | Writing::Closed => {}
        }
    }

    /// What was agreed on in the handshake.
    pub fn session(&self) -> &CommonState {
        &self.connection
    }
}

impl Reading {
    /// How reading has ended; `None` while it has not.
    fn end(&self) -> Option<io::Result<()>> {
        match self {
            Self::Open => None,
            Self::Closed => Some(Ok(())),
            Self::Truncated => {
                let what = "the peer closed the connection without close_notify";
                Some(Err(io::Error::new(io::ErrorKind::UnexpectedEof, what)))
            }
            Self::Failed(error) => Some(Err(invalid_data(error))),
        }
    }
}

/// How much room a reader has that was written before: to write it for that costs more than it saves.
fn written_room(reader: &ReadBuf<'_>) -> usize {
    reader.initialized().len() - reader.filled().len()
}

fn invalid_data(error: &rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.clone())
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("reading", &self.reading)
            .field("writing", &self.writing)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        // What the socket does not take now is tried again with each read; a writer sends it first.
        if this.writing == Writing::Opening && this.poll_send(cx).is_ready() {
            this.writing = Writing::Open;
        }
        let filled = buf.filled().len();
        while buf.filled().len() == filled {
            if !this.plaintext.is_empty() {
                let bytes = this.plaintext.bytes();
                let n = bytes.len().min(buf.remaining());
                buf.put_slice(bytes.get(..n).unwrap_or_default());
                this.plaintext.consume(n);
            } else if let Some(end) = this.reading.end() {
                return Poll::Ready(end);
            } else {
                ready!(this.poll_receive(cx, Some(buf)))?;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_slices(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_send_and_flush(cx)
    }

    /// Sends close_notify behind what was written, and ends our direction of the carrier.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.writing != Writing::Closed {
            this.writing = Writing::Closed;
            // After an alert there is nothing left to say.
            if !matches!(this.reading, Reading::Failed(_)) {
                this.connection.close(&mut this.held, &mut this.outgoing)?;
            }
        }
        ready!(this.poll_send(cx))?;
        match ready!(Pin::new(&mut this.carrier).poll_shutdown(cx)) {
            // The peer is gone: there is no direction left to end.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}
