//! What a load balancer says of a connection that it hands to a listener: PROXY protocol v1 or v2.
//!
//! Source: "The PROXY protocol", versions 1 & 2. Of a v2 header the addresses alone count: a SPIFFE
//! ID in it would be anybody's word.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::{PROXY, REST_BYTES_MAX, SIGNATURE, TCP4, TCP6};

/// What a header of version 1 begins with.
const TEXT: &[u8] = b"PROXY ";
/// The longest line of version 1, its CRLF included (§2.1).
const TEXT_BYTES_MAX: usize = 107;
/// The fixed part of version 2.
const FIXED_BYTES: usize = 16;
/// The longest header that is read.
const BYTES_MAX: usize = FIXED_BYTES + REST_BYTES_MAX;
/// Version 2, command LOCAL.
const LOCAL: u8 = 0x20;
/// Version 2, of no family or of Unix sockets.
const UNSPECIFIED: [u8; 3] = [0x00, 0x31, 0x32];

/// Why a connection does not begin as it has to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IncomingError {
    /// It ended within the header.
    #[error("the connection ended after {0} bytes of a PROXY header")]
    Gone(usize),
    /// It begins with something else.
    #[error("the connection does not begin with a PROXY header")]
    Missing,
    /// It is longer than any that makes sense.
    #[error("the PROXY header is longer than {0} bytes")]
    TooLong(usize),
    /// It breaks the rules of its version.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(&'static str),
}

/// A whole header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    /// Whose connection it is; `None`: the proxy's own, or of nobody that it could name.
    source: Option<SocketAddr>,
    /// Its length.
    bytes: usize,
}

/// Reads a header off `stream` and returns whose connection it is, `None` where it is the proxy's
/// own; what came behind it is left in `behind`.
///
/// # Errors
/// As [`IncomingError`]. The time limit is the caller's.
///
/// # Cancel safety
/// What was read is in `behind`.
pub(crate) async fn read_source(
    stream: &mut (impl AsyncRead + Unpin),
    behind: &mut Vec<u8>,
) -> Result<Option<SocketAddr>, IncomingError> {
    loop {
        if let Some(header) = parse(behind)? {
            behind.drain(..header.bytes);
            return Ok(header.source);
        }
        // One byte over the longest header ends it: `parse` wants no more.
        let room = (BYTES_MAX + 1).saturating_sub(behind.len());
        let mut limited = AsyncReadExt::take(&mut *stream, room as u64);
        match limited.read_buf(behind).await {
            Ok(0) | Err(_) => return Err(IncomingError::Gone(behind.len())),
            Ok(_) => {}
        }
    }
}

/// Reads what has come; `None`: more is needed.
fn parse(bytes: &[u8]) -> Result<Option<Header>, IncomingError> {
    if begins(bytes, &SIGNATURE) {
        return binary(bytes);
    }
    if begins(bytes, TEXT) {
        return text(bytes);
    }
    Err(IncomingError::Missing)
}

/// Whether `bytes` are `start` or begin with it, as far as they go.
fn begins(bytes: &[u8], start: &[u8]) -> bool {
    let shared = bytes.len().min(start.len());
    bytes.get(..shared) == start.get(..shared)
}

fn binary(bytes: &[u8]) -> Result<Option<Header>, IncomingError> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(None);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > REST_BYTES_MAX {
        return Err(IncomingError::TooLong(BYTES_MAX));
    }
    let Some(rest) = rest.get(..length) else {
        return Ok(None);
    };
    let source = match (command, family) {
        // §2.2: a connection of the proxy's own; whatever else is said is passed over.
        (LOCAL, _) => None,
        (PROXY, TCP4) => Some(addresses::<4, 12>(rest)?),
        (PROXY, TCP6) => Some(addresses::<16, 36>(rest)?),
        (PROXY, family) if UNSPECIFIED.contains(&family) => None,
        (PROXY, _) => return Err(IncomingError::Malformed("it is not of a TCP connection")),
        _ => {
            return Err(IncomingError::Malformed(
                "neither PROXY nor LOCAL of version 2",
            ));
        }
    };
    Ok(Some(Header {
        source,
        bytes: FIXED_BYTES + length,
    }))
}

/// The source among two addresses of `IP` bytes and two ports, `ALL` bytes together.
fn addresses<const IP: usize, const ALL: usize>(rest: &[u8]) -> Result<SocketAddr, IncomingError>
where
    IpAddr: From<[u8; IP]>,
{
    let short = IncomingError::Malformed("its addresses are cut short");
    let Some((ip, behind)) = rest
        .first_chunk::<ALL>()
        .and_then(|a| a.split_first_chunk::<IP>())
    else {
        return Err(short);
    };
    let Some([high, low]) = behind.get(IP..IP + 2) else {
        return Err(short);
    };
    Ok(SocketAddr::new(
        IpAddr::from(*ip).to_canonical(),
        u16::from_be_bytes([*high, *low]),
    ))
}

fn text(bytes: &[u8]) -> Result<Option<Header>, IncomingError> {
    let line = bytes.get(..TEXT_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = line.windows(2).position(|two| two == b"\r\n") else {
        return if bytes.len() < TEXT_BYTES_MAX {
            Ok(None)
        } else {
            Err(IncomingError::TooLong(TEXT_BYTES_MAX))
        };
    };
    let line = line.get(..end).unwrap_or_default();
    let line = std::str::from_utf8(line)
        .map_err(|_not_text| IncomingError::Malformed("it is no line of text"))?;
    Ok(Some(Header {
        source: words(line)?,
        bytes: end + 2,
    }))
}

/// `PROXY TCP4 source destination source-port destination-port` (§2.1).
fn words(line: &str) -> Result<Option<SocketAddr>, IncomingError> {
    let mut words = line.split(' ').skip(1);
    let family = words.next();
    let ip: fn(&str) -> Option<IpAddr> = match family {
        // Whatever else is said is passed over.
        Some("UNKNOWN") => return Ok(None),
        Some("TCP4") => |text| text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        Some("TCP6") => |text| text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        Some(_) | None => {
            return Err(IncomingError::Malformed("neither TCP4, TCP6 nor UNKNOWN"));
        }
    };
    let mut next = || words.next();
    let of_address = |word: Option<&str>| word.and_then(ip);
    let (source, destination) = (of_address(next()), of_address(next()));
    let (from, to) = (next().and_then(port), next().and_then(port));
    let rest = next();
    match (source, destination, from, to, rest) {
        (Some(source), Some(_), Some(port), Some(_), None) => {
            Ok(Some(SocketAddr::new(source.to_canonical(), port)))
        }
        _ => Err(IncomingError::Malformed(
            "it has not two addresses of its family and two ports",
        )),
    }
}

/// A decimal port without a sign or zeros in front.
fn port(text: &str) -> Option<u16> {
    let is_plain = text == "0" || !text.starts_with(['0', '+']);
    is_plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a connection that sends `bytes` and then ends is told, and what is left.
    async fn read(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, String>, Vec<u8>) {
        let mut behind = Vec::new();
        let read = read_source(&mut bytes, &mut behind).await;
        behind.extend_from_slice(bytes);
        (read.map_err(|error| error.to_string()), behind)
    }

    fn at(text: &str) -> Result<Option<SocketAddr>, String> {
        text.parse().map(Some).map_err(|_| text.to_owned())
    }

    /// The examples of the specification's §2.1, and what it says of UNKNOWN.
    #[tokio::test]
    async fn lines_of_version_1() {
        for (line, source) in [
            (
                "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443",
                at("192.168.0.1:56324"),
            ),
            (
                "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535",
                at("255.255.255.255:65535"),
            ),
            (
                "PROXY TCP6 2001:db8::1 2001:db8::2 0 443",
                at("[2001:db8::1]:0"),
            ),
            (
                "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535",
                at("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"),
            ),
            ("PROXY UNKNOWN", Ok(None)),
            (
                "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535",
                Ok(None),
            ),
        ] {
            let sent = format!("{line}\r\nGET / HTTP/1.1\r\n");
            let expected = (source, b"GET / HTTP/1.1\r\n".to_vec());
            assert_eq!(read(sent.as_bytes()).await, expected, "{line}");
        }
    }

    #[tokio::test]
    async fn lines_that_are_none_are_refused() {
        for line in [
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324",
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443 1",
            "PROXY TCP4  192.168.0.1 192.168.0.11 56324 443",
            "PROXY TCP4 192.168.0.01 192.168.0.11 56324 443",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2",
            "PROXY TCP6 192.168.0.1 192.168.0.11 56324 443",
            "PROXY TCP4 192.168.0.1 192.168.0.11 65536 443",
            "PROXY TCP4 192.168.0.1 192.168.0.11 +1 443",
            "PROXY TCP4 192.168.0.1 192.168.0.11 01 443",
            "PROXY UDP4 192.168.0.1 192.168.0.11 1 443",
            "PROXY ",
            "PROXY TCP4 192.168.0.1 192.168.0.11 1 443\n",
            "PROXY \u{fffd}",
        ] {
            let (source, _) = read(format!("{line}\r\n").as_bytes()).await;
            assert!(source.unwrap_err().contains("malformed"), "{line}");
        }
        // §2.1: 107 bytes with the CRLF hold every line there is.
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(92));
        assert_eq!(long.len(), 108);
        let (source, _) = read(long.as_bytes()).await;
        assert_eq!(
            source.unwrap_err(),
            "the PROXY header is longer than 107 bytes"
        );
        let (source, _) = read(&long.as_bytes()[..107]).await;
        assert_eq!(
            source.unwrap_err(),
            "the PROXY header is longer than 107 bytes"
        );
        for other in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x03\x01",
            b"PROXX",
            b"\r\n\r\nx",
        ] {
            let (source, _) = read(other).await;
            assert!(source.unwrap_err().contains("does not begin"), "{other:?}");
        }
    }

    /// Written by hand from §2.2 of the specification.
    #[tokio::test]
    async fn headers_of_version_2_byte_by_byte() {
        const SIG: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
        let v4 = b"\xcb\x00\x71\x07\x0a\0\0\x02\x12\x34\x01\xbb";
        let v6 = [
            &b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01"[..],
            &b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x02\x12\x34\x01\xbb"[..],
        ]
        .concat();
        let unix = [0; 216];
        for (head, rest, source) in [
            (&b"\x21\x11\0\x0c"[..], &v4[..], at("203.0.113.7:4660")),
            (b"\x21\x21\0\x24", &v6, at("[2001:db8::1]:4660")),
            // LOCAL, whatever it says; of no family; of Unix sockets.
            (b"\x20\x00\0\0", b"", Ok(None)),
            (b"\x20\x11\0\x0c", v4, Ok(None)),
            (b"\x21\x00\0\0", b"", Ok(None)),
            (b"\x21\x31\0\xd8", &unix, Ok(None)),
        ] {
            let sent = [SIG, head, rest, b"behind"].concat();
            assert_eq!(read(&sent).await, (source, b"behind".to_vec()), "{head:?}");
            for cut in 1..sent.len() - b"behind".len() {
                let (source, _) = read(&sent[..cut]).await;
                let told = source.unwrap_err();
                assert!(
                    told.starts_with("the connection ended after"),
                    "{cut}: {told}"
                );
            }
        }
        for (head, rest) in [
            // UDP, addresses cut short, version 3, an unknown command.
            (&b"\x21\x12\0\x0c"[..], &v4[..]),
            (b"\x21\x11\0\x0b", &v4[..11]),
            (b"\x21\x21\0\x0c", v4),
            (b"\x31\x11\0\x0c", v4),
            (b"\x22\x11\0\x0c", v4),
        ] {
            let (source, _) = read(&[SIG, head, rest].concat()).await;
            assert!(source.unwrap_err().contains("malformed"), "{head:?}");
        }
    }

    #[tokio::test]
    async fn a_header_may_have_as_many_bytes_as_are_read_and_no_more() {
        let header = |rest: usize| {
            let [high, low] = u16::try_from(rest).unwrap().to_be_bytes();
            let mut header = SIGNATURE.to_vec();
            header.extend_from_slice(&[PROXY, TCP4, high, low]);
            header.resize(FIXED_BYTES + rest, 1);
            header
        };
        let (source, behind) = read(&header(REST_BYTES_MAX)).await;
        assert_eq!((source, behind), (at("1.1.1.1:257"), Vec::new()));
        let (source, _) = read(&header(REST_BYTES_MAX + 1)).await;
        assert!(source.unwrap_err().contains("longer than"));
    }

    proptest! {
        /// However the bytes are cut, the answer is that of all of them together.
        #[test]
        fn any_bytes_in_any_pieces_end_without_a_panic(
            start in prop_oneof![Just(SIGNATURE.to_vec()), Just(b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2".to_vec()), Just(vec![])],
            more in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let all = [start, more].concat();
            let whole = parse(&all).map_err(|error| error.to_string());
            let first = (1..=all.len()).find_map(|cut| match parse(&all[..cut]) {
                Ok(None) => None,
                told => Some(told.map_err(|error| error.to_string())),
            });
            if let Some(first) = first {
                prop_assert_eq!(first, whole);
            } else {
                prop_assert!(matches!(whole, Ok(None)) || all.is_empty());
            }
        }
    }
}
