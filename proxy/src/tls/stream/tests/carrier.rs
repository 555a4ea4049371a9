//! Carriers that cut, delay, count, limit and damage what they carry.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Carries in random portions, and often not at once.
#[derive(Debug)]
pub(super) struct Choppy {
    pub(super) carrier: DuplexStream,
    pub(super) random: fastrand::Rng,
    /// The largest portion.
    pub(super) portion: usize,
}

impl Choppy {
    fn delays(&mut self, cx: &Context<'_>) -> bool {
        let delays = self.random.u8(..4) == 0;
        if delays {
            cx.waker().wake_by_ref();
        }
        delays
    }
}

impl AsyncRead for Choppy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.delays(cx) {
            return Poll::Pending;
        }
        let most = buf.remaining().min(self.portion);
        let mut bytes = vec![0; self.random.usize(1..=most)];
        let mut portion = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.carrier).poll_read(cx, &mut portion))?;
        buf.put_slice(portion.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Choppy {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.delays(cx) {
            return Poll::Pending;
        }
        let most = buf.len().min(self.portion);
        let n = self.random.usize(most.min(1)..=most);
        Pin::new(&mut self.carrier).poll_write(cx, &buf[..n])
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.delays(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.delays(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }
}

/// What is done to the bytes that are read through a [`Tampered`] carrier.
#[derive(Debug)]
pub(super) enum Tamper {
    /// They end after so many.
    EndAfter(usize),
    /// Bits, bytes and stretches are changed at random; one in so many portions is.
    Damage(fastrand::Rng, u32),
}

/// Changes what is read, and counts the calls.
#[derive(Debug)]
pub(super) struct Tampered<S> {
    pub(super) carrier: S,
    pub(super) tamper: Tamper,
    pub(super) reads: usize,
    pub(super) writes: usize,
    /// How much more is taken before it fails.
    pub(super) takes: usize,
}

impl<S> Tampered<S> {
    pub(super) const fn new(carrier: S, tamper: Tamper) -> Self {
        Self {
            carrier,
            tamper,
            reads: 0,
            writes: 0,
            takes: usize::MAX,
        }
    }

    /// Changes nothing.
    pub(super) const fn counted(carrier: S) -> Self {
        Self::new(carrier, Tamper::EndAfter(usize::MAX))
    }
}

fn damage(bytes: &mut Vec<u8>, random: &mut fastrand::Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = random.usize(..bytes.len());
    match random.u8(..5) {
        0 => bytes[at] ^= 1 << random.u8(..8),
        1 => bytes[at] = random.u8(..),
        2 => bytes.truncate(at + 1),
        3 => bytes.insert(at, random.u8(..)),
        _ => {
            let copy = bytes[at..].to_vec();
            bytes.extend(copy);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tampered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Half of the room, since damage may double what is read.
        let room = match &this.tamper {
            Tamper::EndAfter(left) => buf.remaining().min(*left),
            Tamper::Damage(..) => buf.remaining().div_ceil(2),
        };
        if room == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = vec![0; room];
        let mut portion = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut this.carrier).poll_read(cx, &mut portion))?;
        let n = portion.filled().len();
        bytes.truncate(n);
        this.reads += 1;
        match &mut this.tamper {
            Tamper::EndAfter(left) => *left -= n,
            Tamper::Damage(random, one_in) => {
                if random.u32(..*one_in) == 0 {
                    damage(&mut bytes, random);
                }
            }
        }
        bytes.truncate(buf.remaining());
        buf.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tampered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writes += 1;
        let buf = &buf[..buf.len().min(self.takes)];
        if buf.is_empty() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let n = ready!(Pin::new(&mut self.carrier).poll_write(cx, buf))?;
        self.takes -= n;
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writes += 1;
        Pin::new(&mut self.carrier).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.carrier).poll_shutdown(cx)
    }
}
