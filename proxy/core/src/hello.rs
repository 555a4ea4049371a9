//! The TLS ClientHello, read from the first bytes of a connection (RFC 8446 §4.1.2, §5.1).
//!
//! Only what routing needs is taken: the server name (RFC 6066 §3) and the ALPN protocols (RFC 7301
//! §3.1). The whole message is checked for shape, so that a passthrough never relays what a TLS
//! stack would read differently.

use crate::verdict::Reason;

/// The longest ClientHello accepted, in bytes of handshake message with its 4-byte header.
pub const HELLO_MESSAGE_BYTES_MAX: usize = 16 * 1024;
/// The most bytes read, records' headers included, before a connection without a whole ClientHello
/// is refused. One-byte records cost six bytes each: a hello of 2.7 KB survives even those.
pub const HELLO_BYTES_MAX: usize = HELLO_MESSAGE_BYTES_MAX + 64 * RECORD_HEADER_BYTES;

const RECORD_HEADER_BYTES: usize = 5;
/// RFC 8446 §5.1: a record's fragment is at most 2^14 bytes.
const FRAGMENT_BYTES_MAX: usize = 1 << 14;
const CONTENT_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

/// What the bytes received so far amount to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HelloProgress {
    /// The start of a ClientHello; more bytes are needed.
    NeedMore,
    /// A whole ClientHello.
    Done(ClientHello),
    /// No further byte can make this a ClientHello.
    Malformed(HelloError),
}

/// What routing needs from a ClientHello.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The server name as the client sent it, in no canonical form.
    pub sni: Option<String>,
    /// The protocols offered by ALPN, in the client's order.
    pub alpn: Vec<Vec<u8>>,
    /// How many of the bytes, record headers included, the ClientHello takes.
    pub len: usize,
}

/// Why bytes are no ClientHello.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// The first record is no TLS handshake record.
    #[error("the first byte is {0:#04x}, a TLS handshake record begins with 0x16")]
    NotTls(u8),
    /// A later record is of another type, or the version is not TLS.
    #[error("record {0} is not a TLS handshake record (RFC 8446 §5.1)")]
    Record(usize),
    /// A record without content.
    #[error("record {0} is empty, which a handshake record must not be (RFC 8446 §5.1)")]
    RecordEmpty(usize),
    /// A record above 2^14 bytes.
    #[error("record {0} is over 16384 bytes (RFC 8446 §5.1)")]
    RecordLength(usize),
    /// The first handshake message is another one.
    #[error("the first handshake message is of type {0}, not client_hello (1)")]
    MessageType(u8),
    /// The message or the bytes before its end are over the limit.
    #[error("the ClientHello is over {HELLO_MESSAGE_BYTES_MAX} bytes or cut into too many records")]
    TooLarge,
    /// Bytes follow the message in its last record.
    #[error("bytes follow the ClientHello in its record (RFC 8446 §5.1)")]
    Trailing,
    /// A length points outside, or a list is not filled by its elements.
    #[error("{0} of the ClientHello does not fit its length (RFC 8446 §4.1.2)")]
    Shape(&'static str),
    /// An extension stands twice.
    #[error("extension {0} stands twice (RFC 8446 §4.2)")]
    ExtensionTwice(u16),
    /// More than one name, or a type that is not `host_name`.
    #[error("server_name holds something other than one host_name (RFC 6066 §3)")]
    ServerNames,
    /// The name is not text.
    #[error("the server name is not UTF-8 text or holds a NUL (RFC 6066 §3)")]
    ServerNameText,
}

impl HelloError {
    /// The reason under which the connection ends.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::NotTls(_) => Reason::NotTls,
            Self::TooLarge => Reason::HelloTooLarge,
            Self::ServerNames | Self::ServerNameText => Reason::SniMalformed,
            Self::Record(_)
            | Self::RecordEmpty(_)
            | Self::RecordLength(_)
            | Self::MessageType(_)
            | Self::Trailing
            | Self::Shape(_)
            | Self::ExtensionTwice(_) => Reason::HelloMalformed,
        }
    }
}

/// Whether a connection that begins with this byte can be TLS.
#[must_use]
pub const fn looks_like_tls(first: u8) -> bool {
    first == CONTENT_HANDSHAKE
}

/// Reads the ClientHello from all bytes received so far.
///
/// The work is linear in the bytes, and small until the message is whole, so that a caller may
/// call this after every read of a client that sends byte by byte.
#[must_use]
pub fn parse(bytes: &[u8]) -> HelloProgress {
    match reassemble(bytes).and_then(|whole| match whole {
        Some(Whole { message, len }) => parse_message(&message, len).map(Some),
        None => Ok(None),
    }) {
        Ok(Some(hello)) => HelloProgress::Done(hello),
        Ok(None) if bytes.len() >= HELLO_BYTES_MAX => {
            HelloProgress::Malformed(HelloError::TooLarge)
        }
        Ok(None) => HelloProgress::NeedMore,
        Err(error) => HelloProgress::Malformed(error),
    }
}

struct Whole {
    /// The handshake message with its header.
    message: Vec<u8>,
    /// Bytes of records it came in.
    len: usize,
}

/// Joins the fragments of the first handshake message; `None` until the last one is whole.
fn reassemble(bytes: &[u8]) -> Result<Option<Whole>, HelloError> {
    let mut head = [0u8; 4];
    let mut have = 0usize;
    let mut need = head.len();
    let mut rest = bytes;
    let mut number = 0usize;
    while have < need {
        number += 1;
        let Some(Record { fragment, after }) = next_record(rest, number)? else {
            // What is visible of a record that is not whole still tells a wrong message early.
            let visible = rest.get(RECORD_HEADER_BYTES..).unwrap_or_default();
            take_head(&mut head, have, visible, &mut need)?;
            return Ok(None);
        };
        take_head(&mut head, have, fragment, &mut need)?;
        have += fragment.len();
        rest = after;
    }
    if have > need {
        return Err(HelloError::Trailing);
    }
    let len = bytes.len() - rest.len();
    let mut message = Vec::with_capacity(need);
    let mut rest = bytes.get(..len).unwrap_or_default();
    while let Some(Record { fragment, after }) = next_record(rest, 0)? {
        message.extend_from_slice(fragment);
        rest = after;
    }
    Ok(Some(Whole { message, len }))
}

/// Copies what belongs to the message's header and, once that is whole, sets the length `need`.
fn take_head(
    head: &mut [u8; 4],
    have: usize,
    fragment: &[u8],
    need: &mut usize,
) -> Result<(), HelloError> {
    let Some(room) = head.get_mut(have..) else {
        return Ok(());
    };
    for (to, from) in room.iter_mut().zip(fragment) {
        *to = *from;
    }
    let seen = have + fragment.len();
    let [kind, a, b, c] = *head;
    if seen >= 1 && kind != HANDSHAKE_CLIENT_HELLO {
        return Err(HelloError::MessageType(kind));
    }
    if seen >= head.len() {
        let body = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        *need = head.len() + body;
        if *need > HELLO_MESSAGE_BYTES_MAX {
            return Err(HelloError::TooLarge);
        }
    }
    Ok(())
}

/// A record's content, and the bytes after the record.
struct Record<'a> {
    fragment: &'a [u8],
    after: &'a [u8],
}

/// Splits off the first record's fragment; `None` if it is not whole, an error as soon as its
/// header is wrong.
fn next_record(bytes: &[u8], number: usize) -> Result<Option<Record<'_>>, HelloError> {
    match bytes.first() {
        None => return Ok(None),
        Some(&CONTENT_HANDSHAKE) => {}
        Some(other) if number == 1 => return Err(HelloError::NotTls(*other)),
        Some(_) => return Err(HelloError::Record(number)),
    }
    // RFC 8446 §5.1: the minor version is to be ignored; 3 is the only major one there ever was.
    if bytes.get(1).is_some_and(|major| *major != 3) {
        return Err(HelloError::Record(number));
    }
    let Some(([_, _, _, high, low], rest)) = bytes.split_first_chunk::<RECORD_HEADER_BYTES>()
    else {
        return Ok(None);
    };
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    // RFC 8446 §5.1: "Implementations MUST NOT send zero-length fragments of Handshake types".
    if length == 0 {
        return Err(HelloError::RecordEmpty(number));
    }
    if length > FRAGMENT_BYTES_MAX {
        return Err(HelloError::RecordLength(number));
    }
    Ok(rest
        .split_at_checked(length)
        .map(|(fragment, after)| Record { fragment, after }))
}

fn parse_message(message: &[u8], len: usize) -> Result<ClientHello, HelloError> {
    let mut hello = ClientHello {
        len,
        ..ClientHello::default()
    };
    let mut body = Reader(message.get(4..).unwrap_or_default());
    body.take(2 + 32, "legacy_version or random")?;
    if body.vec8("legacy_session_id")?.len() > 32 {
        return Err(HelloError::Shape("legacy_session_id"));
    }
    let suites = body.vec16("cipher_suites")?;
    if suites.is_empty() || suites.len() % 2 != 0 {
        return Err(HelloError::Shape("cipher_suites"));
    }
    if body.vec8("legacy_compression_methods")?.is_empty() {
        return Err(HelloError::Shape("legacy_compression_methods"));
    }
    // Before TLS 1.3 the extensions may be left out (RFC 5246 §7.4.1.2).
    if body.is_empty() {
        return Ok(hello);
    }
    let mut extensions = Reader(body.vec16("extensions")?);
    if !body.is_empty() {
        return Err(HelloError::Shape("the end"));
    }
    let mut seen = Vec::new();
    while !extensions.is_empty() {
        let kind = extensions.u16("an extension")?;
        let data = extensions.vec16("an extension")?;
        seen.push(kind);
        match kind {
            EXTENSION_SERVER_NAME => hello.sni = Some(server_name(data)?),
            EXTENSION_ALPN => hello.alpn = protocols(data)?,
            _ => {}
        }
    }
    seen.sort_unstable();
    if let Some([twice, _]) = seen.array_windows().find(|[a, b]| a == b) {
        return Err(HelloError::ExtensionTwice(*twice));
    }
    Ok(hello)
}

fn server_name(data: &[u8]) -> Result<String, HelloError> {
    let mut outer = Reader(data);
    let mut names = Reader(outer.vec16("server_name")?);
    if !outer.is_empty() || names.is_empty() {
        return Err(HelloError::Shape("server_name"));
    }
    // RFC 6066 §3 defines host_name (0) alone and allows one name of a type.
    if names.take(1, "server_name")? != [0] {
        return Err(HelloError::ServerNames);
    }
    let name = names.vec16("server_name")?;
    if !names.is_empty() {
        return Err(HelloError::ServerNames);
    }
    match str::from_utf8(name) {
        Ok("") => Err(HelloError::Shape("server_name")),
        Ok(name) if !name.contains('\0') => Ok(name.to_owned()),
        Ok(_) | Err(_) => Err(HelloError::ServerNameText),
    }
}

fn protocols(data: &[u8]) -> Result<Vec<Vec<u8>>, HelloError> {
    let mut outer = Reader(data);
    let mut list = Reader(outer.vec16("ALPN")?);
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let name = list.vec8("ALPN")?;
        if name.is_empty() {
            return Err(HelloError::Shape("ALPN"));
        }
        protocols.push(name.to_vec());
    }
    if !outer.is_empty() || protocols.is_empty() {
        return Err(HelloError::Shape("ALPN"));
    }
    Ok(protocols)
}

/// Reads the presentation language of RFC 8446 §3 from the front of a slice.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], HelloError> {
        let (head, rest) = self
            .0
            .split_at_checked(count)
            .ok_or(HelloError::Shape(what))?;
        self.0 = rest;
        Ok(head)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, HelloError> {
        let (bytes, rest) = self
            .0
            .split_first_chunk::<2>()
            .ok_or(HelloError::Shape(what))?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    /// A vector with a one-byte length.
    fn vec8(&mut self, what: &'static str) -> Result<&'a [u8], HelloError> {
        let length = self.take(1, what)?.first().copied().unwrap_or_default();
        self.take(usize::from(length), what)
    }

    /// A vector with a two-byte length.
    fn vec16(&mut self, what: &'static str) -> Result<&'a [u8], HelloError> {
        let length = self.u16(what)?;
        self.take(usize::from(length), what)
    }
}

#[cfg(test)]
#[path = "hello_tests.rs"]
mod tests;
