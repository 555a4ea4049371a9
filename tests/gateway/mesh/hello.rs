//! ClientHellos by hand, and bytes that are none (RFC 8446 §4.1.2, RFC 6066 §3).

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;

use super::within;

/// A fatal alert as a plaintext record (RFC 8446 §6).
pub(crate) const fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// A TLS 1.3 ClientHello in one record that offers `sni` as `host_name`, whatever it is.
pub(crate) fn hello(sni: Option<&[u8]>) -> Vec<u8> {
    record(&message(sni))
}

/// Its handshake message.
pub(crate) fn message(sni: Option<&[u8]>) -> Vec<u8> {
    let mut extensions = extension(43, &[2, 3, 4]);
    if let Some(name) = sni {
        let entry = [&[0][..], &with_length(name)].concat();
        extensions.extend(extension(0, &with_length(&entry)));
    }
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 2, 0x13, 1],
        &[1, 0],
        &with_length(&extensions),
    ]
    .concat();
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1][..], &length[1..], &body].concat()
}

/// A handshake record around `fragment`.
pub(crate) fn record(fragment: &[u8]) -> Vec<u8> {
    [&[22, 3, 1][..], &with_length(fragment)].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes()[..], &with_length(content)].concat()
}

fn with_length(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    [&length[..], bytes].concat()
}

/// Sends `bytes` over a connection of its own and reads to its end; returns its own address too.
pub(crate) async fn say(address: SocketAddr, bytes: &[u8]) -> (SocketAddr, Vec<u8>) {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let source = tcp.local_addr().unwrap();
    tcp.write_all(bytes).await.unwrap();
    (source, rest(&mut tcp).await)
}

/// Reads to the end.
pub(crate) async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    within("the end of a connection", read).await.unwrap();
    answer
}

/// How a [`Cut`] stream cuts what is written first.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Knife {
    /// Into segments of so many bytes; the bytes stay what they are.
    Segments(usize),
    /// The first record, which is the ClientHello, into records with so many bytes each.
    Records(usize),
}

/// A TCP stream that cuts the ClientHello written to it.
#[derive(Debug)]
pub(crate) struct Cut {
    tcp: TcpStream,
    knife: Knife,
    /// What is still to be written of a hello cut into records.
    pending: Option<Vec<u8>>,
}

impl Cut {
    pub(crate) fn new(tcp: TcpStream, knife: Knife) -> Self {
        tcp.set_nodelay(true).unwrap();
        Self {
            tcp,
            knife,
            pending: None,
        }
    }

    fn poll_pending(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        while let Some(bytes) = self.pending.as_mut().filter(|bytes| !bytes.is_empty()) {
            let n = ready!(Pin::new(&mut self.tcp).poll_write(cx, bytes))?;
            bytes.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Cut {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Cut {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.knife {
            Knife::Segments(n) => {
                let some = &bytes[..bytes.len().min(n)];
                Pin::new(&mut self.tcp).poll_write(cx, some)
            }
            Knife::Records(n) if self.pending.is_none() => {
                let length = usize::from(u16::from_be_bytes([bytes[3], bytes[4]]));
                assert_eq!(
                    (bytes[0], bytes.len()),
                    (22, 5 + length),
                    "one whole record"
                );
                self.pending = Some(bytes[5..].chunks(n).flat_map(record).collect());
                ready!(self.poll_pending(cx))?;
                Poll::Ready(Ok(bytes.len()))
            }
            Knife::Records(_) => {
                ready!(self.poll_pending(cx))?;
                Pin::new(&mut self.tcp).poll_write(cx, bytes)
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        ready!(self.poll_pending(cx))?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
