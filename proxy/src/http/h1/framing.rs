//! Where a message's body ends (RFC 9112 §6.3), and what of it came.

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use http::{StatusCode, Version};
use http_body::SizeHint;

use super::Malformed;
use super::head::{self, HEADERS_MAX};
use crate::http::headers::Present;

/// What the extensions of all chunks of a message may be long (RFC 9112 §7.1.1).
const EXTENSION_BYTES_MAX: usize = 16 * 1024;
/// What its trailers may be long.
const TRAILER_BYTES_MAX: usize = 16 * 1024;
/// The digits of a chunk's size: those of 64 bits.
const SIZE_DIGITS_MAX: u8 = 16;

/// A body as it is read.
#[derive(Debug)]
pub(super) enum Framing {
    /// All of it came.
    Ended,
    /// So many bytes are left.
    Exact(u64),
    /// In chunks.
    Chunked(Chunks),
    /// Until the connection is closed.
    UntilClose,
}

/// What was decoded.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decoded {
    Data(Bytes),
    Trailers(HeaderMap),
    /// There is no more.
    End,
    /// More has to be read.
    Starved,
}

impl Framing {
    /// How the body of a response ends.
    ///
    /// # Errors
    /// It says something that is not known.
    pub(super) fn of_response(
        to_head: bool,
        status: StatusCode,
        version: Version,
        headers: &mut HeaderMap,
        present: Present,
    ) -> Result<Stated, Malformed> {
        // RFC 9112 §6.3 rule 8: a response of no stated length ends with its connection.
        let mut stated = stated(version, headers, present, Self::UntilClose)?;
        // Rule 1, whatever the headers say.
        let has_none = to_head
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED;
        if has_none {
            stated.framing = Self::Ended;
        }
        Ok(stated)
    }

    /// How the body of a request ends.
    ///
    /// # Errors
    /// It says something that is not known.
    pub(super) fn of_request(
        version: Version,
        headers: &mut HeaderMap,
        present: Present,
    ) -> Result<Stated, Malformed> {
        // RFC 9112 §6.3 rule 7: without a stated length there is none.
        stated(version, headers, present, Self::Ended)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::Ended => SizeHint::with_exact(0),
            Self::Exact(left) => SizeHint::with_exact(*left),
            Self::Chunked(_) | Self::UntilClose => SizeHint::new(),
        }
    }

    pub(super) const fn is_ended(&self) -> bool {
        matches!(self, Self::Ended)
    }

    /// Takes what is there of it.
    ///
    /// # Errors
    /// A chunk or trailer that is none.
    pub(super) fn decode(&mut self, read: &mut BytesMut) -> Result<Decoded, Malformed> {
        match self {
            Self::Ended => Ok(Decoded::End),
            Self::UntilClose if read.is_empty() => Ok(Decoded::Starved),
            Self::UntilClose => Ok(Decoded::Data(read.split().freeze())),
            Self::Exact(left) => {
                if read.is_empty() {
                    return Ok(Decoded::Starved);
                }
                let bytes = take(read, left);
                if *left == 0 {
                    *self = Self::Ended;
                }
                Ok(Decoded::Data(bytes))
            }
            Self::Chunked(chunks) => {
                let decoded = chunks.decode(read)?;
                if matches!(decoded, Decoded::End | Decoded::Trailers(_)) {
                    *self = Self::Ended;
                }
                Ok(decoded)
            }
        }
    }
}

/// What a head says of the length of its body.
#[derive(Debug)]
pub(super) struct Stated {
    pub(super) framing: Framing,
    /// What the headers have that are left.
    pub(super) present: Present,
    /// It says two things, of which one counts: the connection is not used further (RFC 9112 §6.1).
    pub(super) is_doubtful: bool,
}

/// The length that headers state (RFC 9112 §6.3 rules 3 to 6).
fn stated(
    version: Version,
    headers: &mut HeaderMap,
    present: Present,
    otherwise: Framing,
) -> Result<Stated, Malformed> {
    let length = if present.has(Present::CONTENT_LENGTH) {
        let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
        let length = lengths.next();
        // RFC 9110 §8.6: even the same one twice may be refused.
        if lengths.next().is_some() {
            return Err(Malformed::ContentLength);
        }
        length.map(digits).transpose()?
    } else {
        None
    };
    if present.has(Present::TRANSFER_ENCODING) {
        let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
        let coding = codings.next().ok_or(Malformed::TransferEncoding)?;
        // RFC 9112 §6.1: of HTTP/1.0 its framing is faulty. Beside `chunked` we know no coding, and
        // it is not ours to be removed.
        let is_chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        if version != Version::HTTP_11 || codings.next().is_some() || !is_chunked {
            return Err(Malformed::TransferEncoding);
        }
        // Rule 3: it overrides a length, which is not passed on.
        let is_doubtful = headers.remove(CONTENT_LENGTH).is_some();
        return Ok(Stated {
            framing: Framing::Chunked(Chunks::default()),
            present: if is_doubtful {
                Present::of(headers)
            } else {
                present
            },
            is_doubtful,
        });
    }
    Ok(Stated {
        framing: match length {
            None => otherwise,
            Some(0) => Framing::Ended,
            Some(left) => Framing::Exact(left),
        },
        present,
        is_doubtful: false,
    })
}

/// `1*DIGIT` (RFC 9110 §8.6), nothing else: no sign, no list, no space.
fn digits(value: &HeaderValue) -> Result<u64, Malformed> {
    let bytes = value.as_bytes();
    if bytes.is_empty() {
        return Err(Malformed::ContentLength);
    }
    bytes.iter().try_fold(0_u64, |length, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
        digit
            .and_then(|digit| length.checked_mul(10)?.checked_add(digit))
            .ok_or(Malformed::ContentLength)
    })
}

fn take(read: &mut BytesMut, left: &mut u64) -> Bytes {
    let n = usize::try_from(*left).map_or(read.len(), |left| left.min(read.len()));
    *left -= n as u64;
    read.split_to(n).freeze()
}

/// The chunked coding (RFC 9112 §7.1) as it comes.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    at: At,
    /// Bytes of extensions so far.
    extensions: usize,
}

/// ```text
/// Size -> [Extension ->] SizeLf -> Data -> DataCr -> DataLf -> Size ..
///                           `-(0)-> Trailers
/// ```
#[derive(Debug)]
enum At {
    Size {
        size: u64,
        digits: u8,
    },
    Extension {
        size: u64,
    },
    SizeLf {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    /// So much was looked at without finding their end.
    Trailers {
        seen: usize,
    },
}

impl Default for At {
    fn default() -> Self {
        Self::Size { size: 0, digits: 0 }
    }
}

impl Chunks {
    fn decode(&mut self, read: &mut BytesMut) -> Result<Decoded, Malformed> {
        loop {
            if let At::Trailers { seen } = &mut self.at {
                return trailers(read, seen);
            }
            let Some(&byte) = read.first() else {
                return Ok(Decoded::Starved);
            };
            if let At::Data { left } = &mut self.at {
                let bytes = take(read, left);
                if *left == 0 {
                    self.at = At::DataCr;
                }
                return Ok(Decoded::Data(bytes));
            }
            self.step(byte)?;
            read.advance(1);
        }
    }

    /// Takes one byte of what is around data.
    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        self.at = match (&self.at, byte) {
            (At::Size { size, digits }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).map(u64::from);
                let digits = digits + 1;
                let size = (digits <= SIZE_DIGITS_MAX)
                    .then(|| size.checked_mul(16)?.checked_add(digit?))
                    .flatten();
                At::Size {
                    size: size.ok_or(Malformed::Chunk)?,
                    digits,
                }
            }
            (At::Size { size, digits: 1.. }, b'\r') => At::SizeLf { size: *size },
            // RFC 9112 §7.1.1 lets bad whitespace stand before the `;`.
            (At::Size { size, digits: 1.. }, b';' | b' ' | b'\t') => At::Extension { size: *size },
            (At::Extension { size }, b'\r') => At::SizeLf { size: *size },
            // No control characters: a line feed above all.
            (At::Extension { size }, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extensions += 1;
                if self.extensions > EXTENSION_BYTES_MAX {
                    return Err(Malformed::Chunk);
                }
                At::Extension { size: *size }
            }
            (At::SizeLf { size: 0 }, b'\n') => At::Trailers { seen: 0 },
            (At::SizeLf { size }, b'\n') => At::Data { left: *size },
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::default(),
            _ => return Err(Malformed::Chunk),
        };
        Ok(())
    }
}

/// What is behind the last chunk: headers, maybe, and an empty line.
fn trailers(read: &mut BytesMut, seen: &mut usize) -> Result<Decoded, Malformed> {
    if read.starts_with(b"\r\n") {
        read.advance(2);
        return Ok(Decoded::End);
    }
    if read.starts_with(b"\n") {
        return Err(Malformed::LineEnd);
    }
    let from = seen.saturating_sub(2);
    let Some(end) = head::end_of(read.get(from..).unwrap_or_default()) else {
        *seen = read.len();
        if read.len() > TRAILER_BYTES_MAX {
            return Err(Malformed::Trailers);
        }
        return Ok(Decoded::Starved);
    };
    let end = from + end;
    if end > TRAILER_BYTES_MAX {
        return Err(Malformed::Trailers);
    }
    let lines = read.split_to(end).freeze();
    if !head::ends_lines_well(&lines) {
        return Err(Malformed::LineEnd);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::parse_headers(&lines, &mut headers) {
        Ok(httparse::Status::Complete((n, headers))) if n == lines.len() => {
            Ok(Decoded::Trailers(head::to_map(&lines, headers)?))
        }
        Ok(_) | Err(_) => Err(Malformed::Trailers),
    }
}
