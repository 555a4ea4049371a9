//! Byte streams to and from the gateway, and how they are opened.
//!
//! To add a transport: a file here, a variant of [`Stream`], and the two matches that open one
//! (`connection.rs` for what is accepted, `upstream.rs` for what is connected).

pub(crate) mod alert;
pub(crate) mod mtls;
pub(crate) mod prefixed;
pub(crate) mod sent;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

pub(crate) use prefixed::Prefixed;

use crate::copies::Copied;
use crate::tls::TlsStream;

/// A stream that may tell for less than a read costs that there is nothing to be read.
pub(crate) trait Readable: AsyncRead + Unpin {
    /// Pending while nothing can be read, until which time the task is woken; ready where that is not
    /// known before it is tried.
    fn poll_readable(&self, _cx: &mut Context<'_>) -> Poll<()> {
        Poll::Ready(())
    }

    /// Whether nothing has come, and the other end is there, as far as is known without a system call.
    /// What has come may be lost by asking.
    fn is_quiet(&mut self) -> bool
    where
        Self: Sized,
    {
        reads_nothing(self)
    }
}

fn reads_nothing(stream: &mut (impl AsyncRead + Unpin)) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    let mut byte = [0];
    let mut byte = ReadBuf::new(&mut byte);
    Pin::new(stream).poll_read(&mut cx, &mut byte).is_pending()
}

#[cfg(test)]
impl Readable for tokio::io::DuplexStream {}

/// One end of a connection.
#[derive(Debug)]
pub(crate) enum Stream {
    /// Bytes as they are; what was read ahead comes first.
    Plain(Prefixed),
    /// TLS ended here.
    Terminated(Box<TlsStream<Prefixed>>),
    /// TLS begun here.
    Originated(Box<TlsStream<Prefixed>>),
    /// One of the others, of which copies are made as it is read.
    Copied(Box<Copied>),
}

impl Stream {
    /// A stream of which nothing was read ahead.
    pub(crate) fn plain(tcp: TcpStream) -> Self {
        Self::Plain(Prefixed::new(tcp, Vec::new()))
    }

    /// The connection below.
    pub(crate) const fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream.tcp(),
            Self::Terminated(stream) | Self::Originated(stream) => stream.carrier().tcp(),
            Self::Copied(copied) => copied.stream().tcp(),
        }
    }

    /// The socket, if there is nothing else to this stream: no TLS of ours, nothing read ahead.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => stream.socket(),
            Self::Terminated(_) | Self::Originated(_) => None,
            Self::Copied(copied) => copied.socket(),
        }
    }

    /// Whether TLS of ours is between the socket and what is read.
    pub(crate) const fn is_tls(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Terminated(_) | Self::Originated(_) => true,
            Self::Copied(copied) => copied.stream().is_tls(),
        }
    }

    /// Whether something was read of it that nobody has taken.
    pub(crate) const fn has_more(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.socket().is_none(),
            Self::Terminated(stream) | Self::Originated(stream) => stream.has_more(),
            Self::Copied(copied) => copied.stream().has_more(),
        }
    }

    /// Keeps back what does not fill a packet until the stream is shut down: its last bytes, TLS's
    /// close_notify and TCP's FIN then leave in one.
    pub(crate) const fn cork(&mut self) {
        match self {
            Self::Plain(stream) => stream.cork(),
            Self::Terminated(stream) | Self::Originated(stream) => {
                stream.hold_last();
                stream.carrier_mut().cork();
            }
            Self::Copied(copied) => copied.stream_mut().cork(),
        }
    }

    /// Has dropping the stream reset the connection: no FIN and, of TLS, no close_notify, which the
    /// other end would take for the end of all there is.
    pub(crate) fn reset_when_dropped(&self) {
        // Where it fails the other end sees FIN.
        (SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO))).ok();
    }

    /// Takes [`reset_when_dropped`](Self::reset_when_dropped) back.
    pub(crate) fn linger_when_dropped(&self) {
        // Where it fails the connection is reset, at whose ends nothing is left to be said.
        SockRef::from(self.tcp()).set_linger(None).ok();
    }

    /// Puts back bytes that were read from a plain stream, before any that come next.
    pub(crate) fn unread(&mut self, bytes: Vec<u8>) {
        match self {
            Self::Plain(stream) => stream.unread(bytes),
            Self::Terminated(_) | Self::Originated(_) => {
                debug_assert!(bytes.is_empty(), "only plain streams are read ahead");
            }
            // What is put back was read, and so was copied.
            Self::Copied(copied) => copied.stream_mut().unread(bytes),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Terminated(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Originated(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Copied(copied) => copied.poll_read(cx, buf),
        }
    }
}

impl Readable for Stream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Plain(stream) => stream.poll_readable(cx),
            // What was read may be on its way through TLS.
            Self::Terminated(_) | Self::Originated(_) | Self::Copied(_) => Poll::Ready(()),
        }
    }

    fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_quiet(),
            Self::Terminated(_) | Self::Originated(_) | Self::Copied(_) => reads_nothing(self),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Terminated(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Originated(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Copied(copied) => Pin::new(copied.stream_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Terminated(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Originated(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Copied(copied) => Pin::new(copied.stream_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Terminated(stream) => stream.is_write_vectored(),
            Self::Originated(stream) => stream.is_write_vectored(),
            Self::Copied(copied) => copied.stream().is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Terminated(stream) => Pin::new(stream).poll_flush(cx),
            Self::Originated(stream) => Pin::new(stream).poll_flush(cx),
            Self::Copied(copied) => Pin::new(copied.stream_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Self::Terminated(_) | Self::Originated(_) = this {
            this.cork();
        }
        match this {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Terminated(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Originated(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Copied(copied) => Pin::new(copied.stream_mut()).poll_shutdown(cx),
        }
    }
}
