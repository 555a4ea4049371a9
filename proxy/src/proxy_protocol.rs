//! PROXY protocol v2 with the caller's SPIFFE ID, in front of the bytes of a TCP service; what load
//! balancers send is [`incoming`].
//!
//! Source: "The PROXY protocol", versions 1 & 2, §2.2. The ID is the value of a TLV of type 0xD0,
//! the one that ztunnel uses.

pub(crate) mod incoming;

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncReadExt};
use zeugma_core::identity::{SPIFFE_ID_BYTES_MAX, SpiffeId};

/// Under `zeugma-tcp/1` a gateway answers the header with one byte, before any other: this one once
/// it has connected an endpoint of its own ...
pub(crate) const CONNECTED: u8 = 0;
/// ... or this one, and the calling gateway tries elsewhere.
pub(crate) const NO_LOCAL_ENDPOINT: u8 = 1;
/// The answer of a called gateway whose route has as many connections as it may.
pub(crate) const SHED: u8 = 2;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
const TCP4: u8 = 0x11;
const TCP6: u8 = 0x21;
/// The type of the TLV that holds the caller's SPIFFE ID.
const TLV_IDENTITY: u8 = 0xD0;
/// What follows the fixed header: addresses, one ID, and room for other TLVs.
const REST_BYTES_MAX: usize = 36 + SPIFFE_ID_BYTES_MAX + 512;

/// Why a header was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyProtocolError {
    /// The connection failed or ended within the header.
    #[error("the PROXY v2 header is not whole: {0}")]
    Io(#[from] std::io::Error),
    /// It does not begin with the signature, or is no PROXY command.
    #[error("no PROXY v2 header; zeugma-tcp/1 begins with one")]
    NotProxy,
    /// It is longer than any we send.
    #[error("the PROXY v2 header holds {0} bytes; at most {REST_BYTES_MAX} are allowed")]
    TooLong(usize),
    /// A TLV reaches over the end, or two hold an ID.
    #[error("the PROXY v2 header's TLVs are malformed")]
    Tlv,
    /// The ID is not one.
    #[error("the PROXY v2 header's caller is no SPIFFE ID: {0}")]
    Identity(zeugma_core::identity::IdentityError),
}

/// The header for a connection from `source` to `destination`.
pub(crate) fn header(
    source: SocketAddr,
    destination: SocketAddr,
    caller: Option<&SpiffeId>,
) -> Vec<u8> {
    let mut rest = Vec::with_capacity(64);
    let family = match (source, destination) {
        (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
            rest.extend_from_slice(&source.ip().octets());
            rest.extend_from_slice(&destination.ip().octets());
            TCP4
        }
        (source, destination) => {
            for address in [source, destination] {
                let ip = match address {
                    SocketAddr::V4(v4) => v4.ip().to_ipv6_mapped(),
                    SocketAddr::V6(v6) => *v6.ip(),
                };
                rest.extend_from_slice(&ip.octets());
            }
            TCP6
        }
    };
    rest.extend_from_slice(&source.port().to_be_bytes());
    rest.extend_from_slice(&destination.port().to_be_bytes());
    if let Some(caller) = caller {
        let id = caller.as_str().as_bytes();
        rest.push(TLV_IDENTITY);
        rest.extend_from_slice(&length(id.len()));
        rest.extend_from_slice(id);
    }
    let mut header = Vec::with_capacity(16 + rest.len());
    header.extend_from_slice(&SIGNATURE);
    header.extend_from_slice(&[PROXY, family]);
    header.extend_from_slice(&length(rest.len()));
    header.append(&mut rest);
    header
}

fn length(n: usize) -> [u8; 2] {
    // An ID is at most 2048 bytes: two bytes always hold it.
    u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes()
}

/// Reads a header and returns the caller it hands on, if any.
///
/// # Errors
/// As [`ProxyProtocolError`]. The time limit is the caller's.
///
/// # Cancel safety
/// None: bytes that were read are lost.
pub(crate) async fn read_identity(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<SpiffeId>, ProxyProtocolError> {
    let mut fixed = [0; 16];
    stream.read_exact(&mut fixed).await?;
    let [signature @ .., command, family, high, low] = fixed;
    if signature != SIGNATURE || command != PROXY {
        return Err(ProxyProtocolError::NotProxy);
    }
    let addresses = match family {
        TCP4 => 12,
        TCP6 => 36,
        _ => return Err(ProxyProtocolError::NotProxy),
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > REST_BYTES_MAX {
        return Err(ProxyProtocolError::TooLong(length));
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await?;
    identity(rest.get(addresses..).ok_or(ProxyProtocolError::Tlv)?)
}

fn identity(mut tlvs: &[u8]) -> Result<Option<SpiffeId>, ProxyProtocolError> {
    let mut found = None;
    while let [kind, high, low, rest @ ..] = tlvs {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest
            .split_at_checked(length)
            .ok_or(ProxyProtocolError::Tlv)?;
        tlvs = rest;
        if *kind == TLV_IDENTITY {
            let text = std::str::from_utf8(value).map_err(|_not_text| ProxyProtocolError::Tlv)?;
            let id = SpiffeId::parse(text).map_err(ProxyProtocolError::Identity)?;
            if found.replace(id).is_some() {
                return Err(ProxyProtocolError::Tlv);
            }
        }
    }
    if tlvs.is_empty() {
        Ok(found)
    } else {
        Err(ProxyProtocolError::Tlv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(mut bytes: &[u8]) -> Result<Option<SpiffeId>, ProxyProtocolError> {
        read_identity(&mut bytes).await
    }

    #[tokio::test]
    async fn what_is_written_is_read() {
        let id = SpiffeId::parse("spiffe://west.example/ns/shop/sa/cart").unwrap();
        for (source, destination) in [
            ("10.0.0.1:1", "10.0.0.2:2"),
            ("[::1]:1", "[::2]:2"),
            ("10.0.0.1:1", "[::2]:2"),
        ] {
            let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
            let with = header(source, destination, Some(&id));
            assert_eq!(read(&with).await.unwrap(), Some(id.clone()));
            assert_eq!(
                read(&header(source, destination, None)).await.unwrap(),
                None
            );
            for cut in 0..with.len() {
                assert!(read(&with[..cut]).await.is_err(), "{cut}");
            }
        }
    }

    #[tokio::test]
    async fn a_known_header_byte_by_byte() {
        // Written by hand from §2.2 of the specification.
        let bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x1a\x0a\0\0\x01\x0a\0\0\x02\x12\x34\x00\x50\
            \xd0\x00\x0bspiffe://a/";
        assert!(matches!(
            read(bytes).await,
            Err(ProxyProtocolError::Identity(_))
        ));
        let bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x1b\x0a\0\0\x01\x0a\0\0\x02\x12\x34\x00\x50\
            \xd0\x00\x0cspiffe://a/b";
        assert_eq!(read(bytes).await.unwrap().unwrap().as_str(), "spiffe://a/b");
    }

    #[tokio::test]
    async fn two_ids_overlong_and_foreign_headers_are_refused() {
        let id = SpiffeId::parse("spiffe://a/b").unwrap();
        let mut two = header(
            "1.1.1.1:1".parse().unwrap(),
            "2.2.2.2:2".parse().unwrap(),
            Some(&id),
        );
        let tlv = two[28..].to_vec();
        two.extend_from_slice(&tlv);
        two[15] += u8::try_from(tlv.len()).unwrap();
        assert!(matches!(read(&two).await, Err(ProxyProtocolError::Tlv)));
        let mut long = two;
        long[14] = 0xff;
        assert!(matches!(
            read(&long).await,
            Err(ProxyProtocolError::TooLong(_))
        ));
        assert!(matches!(
            read(b"GET / HTTP/1.1\r\n").await,
            Err(ProxyProtocolError::NotProxy)
        ));
    }
}
