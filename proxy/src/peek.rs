//! The first bytes of a connection, read but kept.

use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeugma_core::hello::{self, ClientHello, HELLO_BYTES_MAX, HelloError, HelloProgress};
use zeugma_core::verdict::Reason;

use crate::http::Version;

/// What begins every HTTP/2 connection without TLS (RFC 9113 §3.4).
const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What one read asks for.
const READ_BYTES: usize = 4096;

/// What a caller began with.
#[derive(Debug)]
pub(crate) enum First {
    /// It was not asked.
    Unpeeked,
    /// TLS.
    Hello(ClientHello),
    /// HTTP/1.x, or something that will be refused as such.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
}

impl First {
    /// How many of the bytes read are the ClientHello's.
    pub(crate) const fn hello_bytes(&self) -> usize {
        match self {
            Self::Hello(hello) => hello.len,
            Self::Unpeeked | Self::Http1 | Self::Http2 => 0,
        }
    }

    /// The HTTP version that plaintext is served by.
    pub(crate) const fn version(&self) -> Version {
        match self {
            Self::Http2 => Version::H2,
            Self::Unpeeked | Self::Hello(_) | Self::Http1 => Version::H1,
        }
    }
}

/// Why no first bytes were made out.
#[derive(Debug)]
pub(crate) struct PeekError {
    pub(crate) reason: Reason,
    pub(crate) detail: String,
}

/// Reads until it is known what the caller speaks, keeping every byte in `prefix`, which may hold
/// the first ones already.
///
/// At most [`HELLO_BYTES_MAX`] bytes are read, for at most `deadline`.
///
/// # Errors
/// The caller was silent, slow, gone, too long or not making sense.
///
/// # Cancel safety
/// What was read is in `prefix`.
pub(crate) async fn peek(
    tcp: &mut TcpStream,
    prefix: &mut Vec<u8>,
    deadline: Duration,
) -> Result<First, PeekError> {
    timeout(deadline, read_first(tcp, prefix))
        .await
        .unwrap_or_else(|_elapsed| {
            Err(PeekError {
                reason: Reason::HelloTimeout,
                detail: format!("{} bytes in {deadline:?} and no whole hello", prefix.len()),
            })
        })
}

async fn read_first(tcp: &mut TcpStream, prefix: &mut Vec<u8>) -> Result<First, PeekError> {
    loop {
        if let Some(first) = make_out(prefix)? {
            return Ok(first);
        }
        if prefix.len() > HELLO_BYTES_MAX {
            return Err(PeekError {
                reason: Reason::HelloTooLarge,
                detail: format!("over {HELLO_BYTES_MAX} bytes and no whole hello"),
            });
        }
        prefix.reserve(READ_BYTES);
        let mut room = AsyncReadExt::take(&mut *tcp, READ_BYTES as u64);
        match room.read_buf(prefix).await {
            Ok(0) => {
                return Err(gone(format!(
                    "the caller left after {} bytes",
                    prefix.len()
                )));
            }
            Ok(_) => {}
            Err(error) => return Err(gone(error.to_string())),
        }
    }
}

fn make_out(bytes: &[u8]) -> Result<Option<First>, PeekError> {
    let Some(first) = bytes.first() else {
        return Ok(None);
    };
    if hello::looks_like_tls(*first) {
        return match hello::parse(bytes) {
            HelloProgress::NeedMore => Ok(None),
            HelloProgress::Done(hello) => Ok(Some(First::Hello(hello))),
            HelloProgress::Malformed(error) => Err(malformed(&error)),
        };
    }
    let shared = bytes.len().min(H2_PREFACE.len());
    if bytes.get(..shared) == H2_PREFACE.get(..shared) {
        return Ok((shared == H2_PREFACE.len()).then_some(First::Http2));
    }
    Ok(Some(First::Http1))
}

fn malformed(error: &HelloError) -> PeekError {
    PeekError {
        reason: error.reason(),
        detail: error.to_string(),
    }
}

const fn gone(detail: String) -> PeekError {
    PeekError {
        reason: Reason::DownstreamClosed,
        detail,
    }
}
