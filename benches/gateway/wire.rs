//! What the load generator and the backend say to each other through a proxy, so that each can
//! check that the other's bytes arrived.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rustls::{ClientConfig, ClientConnection};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Both directions of a connection, TLS or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// The most that is read or written at once.
pub(crate) const CHUNK: usize = 256 * 1024;
/// The bytes of a command.
const COMMAND: usize = 16;
/// The bytes of the answer to a command.
pub(crate) const ANSWER: usize = 64;
/// Where a ClientHello has its `random`: after the headers of record (5) and handshake (4), and the
/// version (RFC 8446 §4.1.2).
const RANDOM: usize = 11;

/// What the backend is to do next. It answers each, then does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Close.
    Close,
    /// Wait for the next command.
    Hold,
    /// Send this many bytes.
    Down(u64),
    /// Read this many bytes, then answer once more.
    Up(u64),
    /// Send every this many bytes back, until the end.
    Echo(u64),
}

impl Command {
    fn encode(self) -> [u8; COMMAND] {
        let (kind, bytes) = match self {
            Self::Close => (1_u8, 0),
            Self::Hold => (2, 0),
            Self::Down(bytes) => (3, bytes),
            Self::Up(bytes) => (4, bytes),
            Self::Echo(bytes) => (5, bytes),
        };
        let mut all = [kind; COMMAND];
        all[8..].copy_from_slice(&bytes.to_be_bytes());
        all
    }

    fn decode(text: &[u8]) -> Result<Self> {
        ensure!(text.len() == COMMAND, "a command of {} bytes", text.len());
        let (head, tail) = text.split_at(8);
        let bytes = u64::from_be_bytes(tail.try_into()?);
        let kind = head[0];
        ensure!(head.iter().all(|byte| *byte == kind), "a torn command");
        Ok(match kind {
            1 => Self::Close,
            2 => Self::Hold,
            3 => Self::Down(bytes),
            4 => Self::Up(bytes),
            5 => Self::Echo(bytes),
            other => anyhow::bail!("no command {other}"),
        })
    }

    /// Reads one; `None` at the end.
    pub(crate) async fn read(stream: &mut impl Stream) -> Result<Option<Self>> {
        let mut text = [0; COMMAND];
        match stream.read_exact(&mut text).await {
            Ok(_) => Self::decode(&text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the ClientHello that carries one.
    pub(crate) async fn read_hello(stream: &mut impl Stream) -> Result<Option<Self>> {
        let mut record = [0; 5];
        match stream.read_exact(&mut record).await {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        ensure!(record[0] == 0x16, "no handshake record: {record:?}");
        let mut rest = vec![0; usize::from(u16::from_be_bytes([record[3], record[4]]))];
        stream.read_exact(&mut rest).await?;
        let from = RANDOM - record.len();
        Self::decode(&rest[from..from + COMMAND]).map(Some)
    }

    /// Sends it and checks the answer.
    pub(crate) async fn send(self, stream: &mut (impl Stream + ?Sized)) -> Result<()> {
        stream.write_all(&self.encode()).await?;
        stream.flush().await?;
        expect_answer(stream).await
    }
}

/// A ClientHello as rustls makes them; each caller's copy carries a command.
#[derive(Debug, Clone)]
pub(crate) struct Hello(Vec<u8>);

impl Hello {
    /// One that asks for `sni`.
    pub(crate) fn new(config: &Arc<ClientConfig>, sni: &str) -> Result<Self> {
        let name = ServerName::try_from(sni.to_owned())?;
        let mut bytes = Vec::new();
        ClientConnection::new(Arc::clone(config), name)?.write_tls(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The bytes, with a command in place of half of `random`.
    pub(crate) fn with(&self, command: Command) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes[RANDOM..RANDOM + COMMAND].copy_from_slice(&command.encode());
        bytes
    }
}

/// The answer looks like a TLS handshake record: a gateway may look at its first byte.
pub(crate) fn answer() -> [u8; ANSWER] {
    let mut bytes = [0x5a; ANSWER];
    bytes[..5].copy_from_slice(&[0x16, 3, 3, 0, (ANSWER - 5) as u8]);
    bytes
}

/// Reads an answer and holds it to what it must be.
pub(crate) async fn expect_answer(stream: &mut (impl Stream + ?Sized)) -> Result<()> {
    let mut bytes = [0; ANSWER];
    stream.read_exact(&mut bytes).await?;
    ensure!(bytes == answer(), "a wrong answer: {bytes:02x?}");
    Ok(())
}

/// The bytes that bulk consists of: position n has the byte n modulo a prime says.
fn pattern() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut state = 1_u32;
        let mut period = Vec::with_capacity(PERIOD);
        for _ in 0..PERIOD {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            period.push((state >> 24) as u8);
        }
        period
            .iter()
            .copied()
            .cycle()
            .take(PERIOD + CHUNK)
            .collect()
    })
}

/// A prime, so that bytes lost or doubled in powers of two are noticed.
const PERIOD: usize = 65_521;

/// The pattern at a position, `length` bytes of it.
pub(crate) fn at(position: u64, length: usize) -> &'static [u8] {
    let from = (position % PERIOD as u64) as usize;
    &pattern()[from..from + length]
}

/// Sends `count` bytes of the pattern.
pub(crate) async fn send_bulk(stream: &mut (impl Stream + ?Sized), count: u64) -> Result<()> {
    let mut position = 0;
    while position < count {
        let length = CHUNK.min((count - position) as usize);
        let written = stream.write(at(position, length)).await?;
        ensure!(written > 0, "closed at byte {position} of {count}");
        position += written as u64;
    }
    stream.flush().await?;
    Ok(())
}

/// Reads `count` bytes and compares every one with the pattern.
pub(crate) async fn check_bulk(stream: &mut (impl Stream + ?Sized), count: u64) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut position = 0;
    while position < count {
        let length = CHUNK.min((count - position) as usize);
        let read = stream.read(&mut buffer[..length]).await?;
        ensure!(read > 0, "ended at byte {position} of {count}");
        ensure!(
            buffer[..read] == *at(position, read),
            "wrong bytes after {position} of {count}"
        );
        position += read as u64;
    }
    Ok(())
}

/// The same over an HTTP/2 stream, which it ends.
pub(crate) async fn send_bulk2(mut stream: h2::SendStream<Bytes>, count: u64) -> Result<()> {
    let mut position = 0;
    while position < count {
        stream.reserve_capacity(CHUNK.min((count - position) as usize));
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let capacity = capacity.context("a stream that was closed")??;
        let length = capacity.min((count - position) as usize).min(CHUNK);
        position += length as u64;
        stream.send_data(
            Bytes::from_static(at(position - length as u64, length)),
            position == count,
        )?;
    }
    Ok(())
}

/// Reads an HTTP/2 body of `count` bytes, as [`check_bulk`] does.
pub(crate) async fn check_bulk2(mut body: h2::RecvStream, count: u64) -> Result<()> {
    let mut position = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        // A frame is shorter than what `at` can give.
        ensure!(
            *data == *at(position, data.len()),
            "wrong bytes after {position} of {count}"
        );
        position += data.len() as u64;
        body.flow_control().release_capacity(data.len())?;
    }
    ensure!(position == count, "a body of {position} bytes, not {count}");
    Ok(())
}

/// Reads to the end, where nothing more may come.
///
/// Not every proxy sends a close_notify before it closes, which is an error to rustls.
pub(crate) async fn expect_end(stream: &mut (impl Stream + ?Sized)) -> Result<()> {
    let mut one = [0];
    match stream.read(&mut one).await {
        Ok(0) => Ok(()),
        Ok(_) => anyhow::bail!("bytes after the end"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(error.into()),
    }
}
