//! A body on its way out.

use std::io::Write as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{GetAll, HeaderMap, HeaderName, HeaderValue};
use http_body::{Body as _, Frame};

use super::{Error, head};
use crate::http::body::Outgoing;

/// The size of a chunk and the end of its line, at most.
const SIZE_LINE_BYTES: usize = 18;
/// Behind the last bytes of a body.
const LAST_CHUNK_BEHIND: &[u8] = b"\r\n0\r\n\r\n";

/// How the other end finds the end of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// It is so long.
    Exact(u64),
    /// By the last chunk.
    Chunked,
    /// By the end of the connection.
    UntilClose,
}

/// What is left to be sent of a message.
#[derive(Debug)]
pub(super) struct Sending {
    body: Outgoing,
    length: Length,
    /// The trailers that the head has named.
    trailers: Vec<HeaderName>,
    is_done: bool,
}

/// What is written at once.
#[derive(Debug)]
pub(super) struct Piece {
    line: [u8; SIZE_LINE_BYTES],
    line_bytes: usize,
    pub(super) bytes: Bytes,
    pub(super) behind: &'static [u8],
}

impl Piece {
    const fn of(bytes: Bytes, behind: &'static [u8]) -> Self {
        Self {
            line: [0; SIZE_LINE_BYTES],
            line_bytes: 0,
            bytes,
            behind,
        }
    }

    fn chunk(bytes: Bytes, behind: &'static [u8]) -> Self {
        let mut piece = Self::of(bytes, behind);
        let mut room = &mut piece.line[..];
        // Sixteen digits at most.
        drop(write!(room, "{:x}\r\n", piece.bytes.len()));
        piece.line_bytes = SIZE_LINE_BYTES - room.len();
        piece
    }

    pub(super) fn before(&self) -> &[u8] {
        self.line.get(..self.line_bytes).unwrap_or_default()
    }
}

impl Sending {
    pub(super) const fn new(body: Outgoing, length: Length, trailers: Vec<HeaderName>) -> Self {
        Self {
            body,
            length,
            trailers,
            is_done: false,
        }
    }

    /// None of a body.
    pub(super) const fn nothing_of(body: Outgoing) -> Self {
        Self {
            body,
            length: Length::Exact(0),
            trailers: Vec::new(),
            is_done: true,
        }
    }

    /// No body.
    pub(super) const fn nothing() -> Self {
        Self::nothing_of(Outgoing::Empty)
    }

    /// Whether the end of the connection is to tell of its end.
    pub(super) const fn is_until_close(&self) -> bool {
        matches!(self.length, Length::UntilClose)
    }

    /// Whether there is no more.
    pub(super) const fn is_done(&self) -> bool {
        self.is_done
    }

    /// The next piece of it; `None` is its end.
    pub(super) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Piece>, Error>> {
        while !self.is_done {
            let piece = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => self.take(frame)?,
                Some(Err(error)) => return Poll::Ready(Err(Error::Body(Box::new(error)))),
                None => self.end(None)?,
            };
            if piece.is_some() {
                return Poll::Ready(Ok(piece));
            }
        }
        Poll::Ready(Ok(None))
    }

    fn take(&mut self, frame: Frame<Bytes>) -> Result<Option<Piece>, Error> {
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(frame) => return self.end(frame.into_trailers().ok()),
        };
        let is_last = self.body.is_end_stream();
        if bytes.is_empty() {
            // A chunk of nothing would be the last.
            return if is_last { self.end(None) } else { Ok(None) };
        }
        let piece = match &mut self.length {
            Length::Exact(left) => {
                let rest = left.checked_sub(bytes.len() as u64);
                *left = rest.ok_or(Error::Length)?;
                if is_last && *left > 0 {
                    return Err(Error::Length);
                }
                Piece::of(bytes, &[])
            }
            Length::Chunked if is_last => Piece::chunk(bytes, LAST_CHUNK_BEHIND),
            Length::Chunked => Piece::chunk(bytes, b"\r\n"),
            Length::UntilClose => Piece::of(bytes, &[]),
        };
        if is_last {
            self.finish();
        }
        Ok(Some(piece))
    }

    fn end(&mut self, trailers: Option<HeaderMap>) -> Result<Option<Piece>, Error> {
        self.finish();
        match self.length {
            Length::Exact(0) | Length::UntilClose => Ok(None),
            Length::Exact(_) => Err(Error::Length),
            Length::Chunked => {
                let mut end = b"0\r\n".to_vec();
                for (name, value) in trailers.iter().flatten() {
                    if self.trailers.contains(name) {
                        head::write_header(&mut end, name.as_str(), value.as_bytes());
                    }
                }
                Ok(Some(Piece::of(end.into(), b"\r\n")))
            }
        }
    }

    fn finish(&mut self) {
        self.is_done = true;
        // What it holds ends with it.
        self.body = Outgoing::Empty;
    }
}

/// The trailers that a head names (RFC 9110 §6.6.2).
pub(super) fn named_trailers(lines: &GetAll<'_, HeaderValue>) -> Vec<HeaderName> {
    lines
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}
