//! A TCP stream whose first bytes were already read.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::Readable;

/// Pieces that are no more than this together are written as one: to copy them costs less than
/// `writev` costs more than `send` (0.2 us on the machine that was measured on).
const GATHER_BYTES: usize = 4096;

/// A TCP stream that yields the bytes read ahead before those still in the socket.
#[derive(Debug)]
pub(crate) struct Prefixed {
    tcp: TcpStream,
    /// Most of its life there is none.
    prefix: Option<Box<Prefix>>,
    sending: Sending,
}

/// How the socket is given bytes.
#[derive(Debug, Clone, Copy)]
enum Sending {
    /// None were sent yet, so that there is room, whether or not the event loop has told so: what
    /// is sent to an endpoint that is connected at once does not wait for it.
    First,
    Steady,
    /// The end follows, which the kernel sends with what fills no packet.
    Last,
}

/// Bytes read ahead, not empty.
#[derive(Debug)]
struct Prefix {
    bytes: Vec<u8>,
    taken: usize,
}

impl Prefixed {
    pub(crate) fn new(tcp: TcpStream, prefix: Vec<u8>) -> Self {
        let mut this = Self {
            tcp,
            prefix: None,
            sending: Sending::First,
        };
        this.unread(prefix);
        this
    }

    /// The connection below.
    pub(crate) const fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Keeps back what fills no packet until the stream is shut down.
    pub(crate) const fn cork(&mut self) {
        self.sending = Sending::Last;
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let flags = match self.sending {
            Sending::First => SendFlags::NOSIGNAL,
            Sending::Steady => return Pin::new(&mut self.tcp).poll_write(cx, buf),
            Sending::Last => SendFlags::NOSIGNAL | SendFlags::MORE,
        };
        if matches!(self.sending, Sending::First) {
            self.sending = Sending::Steady;
        }
        match send(&self.tcp, buf, flags) {
            Ok(sent) => Poll::Ready(Ok(sent)),
            Err(Errno::AGAIN | Errno::INTR) => Pin::new(&mut self.tcp).poll_write(cx, buf),
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }

    /// The socket, if nothing is left of what was read ahead.
    pub(crate) const fn socket(&self) -> Option<&TcpStream> {
        if self.prefix.is_none() {
            Some(&self.tcp)
        } else {
            None
        }
    }

    /// The socket; what was read ahead is dropped.
    pub(crate) fn into_tcp(self) -> TcpStream {
        self.tcp
    }

    /// The socket, and what was read ahead and not taken.
    pub(crate) fn into_parts(self) -> (TcpStream, Vec<u8>) {
        let Some(mut prefix) = self.prefix else {
            return (self.tcp, Vec::new());
        };
        prefix.bytes.drain(..prefix.taken);
        (self.tcp, prefix.bytes)
    }

    /// Puts back `bytes`, which were just read.
    pub(crate) fn unread(&mut self, mut bytes: Vec<u8>) {
        if let Some(prefix) = &self.prefix {
            bytes.extend_from_slice(prefix.bytes.get(prefix.taken..).unwrap_or_default());
        }
        self.prefix = (!bytes.is_empty()).then(|| Box::new(Prefix { bytes, taken: 0 }));
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let Some(prefix) = &mut this.prefix else {
            return Pin::new(&mut this.tcp).poll_read(cx, buf);
        };
        let rest = prefix.bytes.get(prefix.taken..).unwrap_or_default();
        let n = rest.len().min(buf.remaining());
        buf.put_slice(rest.get(..n).unwrap_or_default());
        prefix.taken += n;
        if prefix.taken == prefix.bytes.len() {
            this.prefix = None;
        }
        Poll::Ready(Ok(()))
    }
}

impl Readable for Prefixed {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self.socket() {
            // Reading tells what is wrong with it.
            Some(tcp) => tcp.poll_read_ready(cx).map(drop),
            None => Poll::Ready(()),
        }
    }

    fn is_quiet(&mut self) -> bool {
        let read = self.socket().map(|tcp| tcp.try_read(&mut [0]));
        matches!(read, Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let [only] = bufs {
            return this.poll_send(cx, only);
        }
        if bufs.iter().map(|buf| buf.len()).sum::<usize>() > GATHER_BYTES {
            return Pin::new(&mut this.tcp).poll_write_vectored(cx, bufs);
        }
        let mut room = [const { MaybeUninit::uninit() }; GATHER_BYTES];
        let mut gathered = ReadBuf::uninit(&mut room);
        for buf in bufs {
            gathered.put_slice(buf);
        }
        this.poll_send(cx, gathered.filled())
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn pieces_are_written_in_order_and_whole_gathered_or_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let mut stream = Prefixed::new(near, Vec::new());
        for pieces in [
            &[5][..],
            &[5, 0, 7],
            &[1, GATHER_BYTES - 1],
            &[1, GATHER_BYTES],
            &[GATHER_BYTES, GATHER_BYTES],
            &[0, 0],
        ] {
            let mut nth = 0_u8;
            let mut piece = |length: &usize| -> Vec<u8> {
                let bytes = (0..*length).map(|_| {
                    nth = nth.wrapping_add(1);
                    nth
                });
                bytes.collect()
            };
            let pieces: Vec<Vec<u8>> = pieces.iter().map(&mut piece).collect();
            let slices: Vec<_> = pieces.iter().map(|piece| io::IoSlice::new(piece)).collect();
            let written = stream.write_vectored(&slices).await.unwrap();
            let all = pieces.concat();
            assert_eq!(written, all.len());
            let mut read = vec![0; written];
            far.read_exact(&mut read).await.unwrap();
            assert_eq!(read, all);
        }
    }

    #[tokio::test]
    async fn the_first_bytes_do_not_wait_for_the_event_loop_and_the_last_for_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        near.set_nonblocking(true).unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        // It has no turn between these.
        let mut stream = Prefixed::new(TcpStream::from_std(near).unwrap(), Vec::new());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let sent = Pin::new(&mut stream).poll_write(&mut cx, b"first");
        assert!(matches!(sent, Poll::Ready(Ok(5))), "{sent:?}");
        let mut read = [0; 5];
        far.read_exact(&mut read).await.unwrap();
        stream.cork();
        let sent = Pin::new(&mut stream).poll_write(&mut cx, b" last");
        assert!(matches!(sent, Poll::Ready(Ok(5))), "{sent:?}");
        stream.shutdown().await.unwrap();
        let mut rest = String::new();
        far.read_to_string(&mut rest).await.unwrap();
        assert_eq!((&read, &*rest), (b"first", " last"));
    }

    #[tokio::test]
    async fn that_nothing_can_be_read_is_told_without_reading() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut far, _) = listener.accept().await.unwrap();
        let mut stream = Prefixed::new(near, b"ahead".to_vec());
        let readable = |stream: &Prefixed| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            stream.poll_readable(&mut cx).is_ready()
        };
        assert!(readable(&stream) && !stream.is_quiet());
        stream.read_exact(&mut [0; 5]).await.unwrap();
        // What is not known before it is tried may be tried.
        while readable(&stream) {
            assert!(stream.is_quiet());
        }
        far.write_all(b"12").await.unwrap();
        std::future::poll_fn(|cx| stream.poll_readable(cx)).await;
        assert_eq!(stream.read_u8().await.unwrap(), b'1');
        assert!(!stream.is_quiet());
        while !stream.is_quiet() {}
        drop(far);
        std::future::poll_fn(|cx| stream.poll_readable(cx)).await;
        assert!(!stream.is_quiet());
    }

    #[tokio::test]
    async fn bytes_read_ahead_come_first_in_any_portions() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut far = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (near, _) = listener.accept().await.unwrap();
        far.write_all(b"world").await.unwrap();
        far.shutdown().await.unwrap();
        let mut stream = Prefixed::new(near, b"hello ".to_vec());
        let mut two = [0; 2];
        stream.read_exact(&mut two).await.unwrap();
        assert_eq!(&two, b"he");
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "llo world");
    }
}
