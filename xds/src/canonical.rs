//! One order of bytes for one message: protobuf's maps have none, and `prost` writes them as they
//! come. Versions are made of bytes, so that every server and every start must make the same.
//!
//! What is written here is which fields of the resources that `compile` makes are maps, and which lead
//! to some. A test makes every document of the reference twice and compares.

use bytes::Buf as _;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

use crate::pb::{cluster, endpoint, hcm, http_rbac, listener, network_rbac, route};

/// A message that holds maps, or messages that do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Any,
    ApiListener,
    Assignment,
    Chain,
    Cluster,
    Entry(Held),
    Filter,
    HttpFilter,
    HttpManager,
    Listener,
    ListenerFilter,
    LbEndpoint,
    List,
    Localities,
    Metadata,
    Rbac,
    RbacFilter,
    RbacPerRoute,
    Route,
    RouteAction,
    RouteConfiguration,
    Socket,
    SocketMatch,
    Struct,
    UpstreamProxy,
    Value,
    VirtualHost,
    WeightedCluster,
    WeightedClusters,
}

/// What the entries of a map hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Any,
    Leaf,
    Struct,
    Value,
}

#[derive(Debug, Clone, Copy)]
enum Field {
    One(Shape),
    Map(Held),
}

impl Shape {
    /// Of a packed message.
    fn of(type_url: &str) -> Option<Self> {
        use prost::Name as _;

        let of = [
            (cluster::Cluster::type_url(), Self::Cluster),
            (
                endpoint::ClusterLoadAssignment::type_url(),
                Self::Assignment,
            ),
            (listener::Listener::type_url(), Self::Listener),
            (
                route::RouteConfiguration::type_url(),
                Self::RouteConfiguration,
            ),
            (hcm::HttpConnectionManager::type_url(), Self::HttpManager),
            (http_rbac::Rbac::type_url(), Self::RbacFilter),
            (network_rbac::Rbac::type_url(), Self::RbacFilter),
            (http_rbac::RbacPerRoute::type_url(), Self::RbacPerRoute),
            (
                crate::pb::ProxyProtocolUpstreamTransport::type_url(),
                Self::UpstreamProxy,
            ),
        ];
        of.into_iter()
            .find(|(url, _)| url == type_url)
            .map(|(_, shape)| shape)
    }

    /// What stands in a field, by its number in the `.proto`.
    const fn field(self, number: u32) -> Option<Field> {
        use Field::{Map, One};

        Some(match (self, number) {
            (Self::Cluster, 24) | (Self::Chain, 6) | (Self::UpstreamProxy, 2) => One(Self::Socket),
            (Self::Cluster, 25)
            | (Self::LbEndpoint, 3)
            | (Self::Listener, 6)
            | (Self::Chain, 5)
            | (Self::Route, 4)
            | (Self::RouteAction, 4)
            | (Self::WeightedCluster, 3) => One(Self::Metadata),
            (Self::Cluster, 33) => One(Self::Assignment),
            (Self::Cluster, 36)
            | (Self::VirtualHost, 15)
            | (Self::Route, 13)
            | (Self::WeightedCluster, 10)
            | (Self::RouteConfiguration, 16)
            | (Self::Metadata, 2) => Map(Held::Any),
            (Self::Cluster, 43) => One(Self::SocketMatch),
            (Self::SocketMatch, 2) | (Self::Entry(Held::Struct), 2) | (Self::Value, 5) => {
                One(Self::Struct)
            }
            (Self::SocketMatch, 3) => One(Self::Socket),
            (Self::Socket, 3)
            | (Self::Filter, 4)
            | (Self::HttpFilter, 4)
            | (Self::ListenerFilter, 3)
            | (Self::ApiListener, 1)
            | (Self::Entry(Held::Any), 2) => One(Self::Any),
            (Self::Assignment, 2) => One(Self::Localities),
            (Self::Localities, 2) => One(Self::LbEndpoint),
            (Self::Metadata, 1) => Map(Held::Struct),
            (Self::Struct, 1) => Map(Held::Value),
            (Self::Entry(Held::Value), 2) | (Self::List, 1) => One(Self::Value),
            (Self::Value, 6) => One(Self::List),
            (Self::Listener, 3 | 25) => One(Self::Chain),
            (Self::Listener, 9) => One(Self::ListenerFilter),
            (Self::Listener, 19) => One(Self::ApiListener),
            (Self::Chain, 3) => One(Self::Filter),
            (Self::HttpManager, 4) => One(Self::RouteConfiguration),
            (Self::HttpManager, 5) => One(Self::HttpFilter),
            (Self::RbacFilter, 1 | 2) => One(Self::Rbac),
            (Self::RbacPerRoute, 2) => One(Self::RbacFilter),
            (Self::Rbac, 2) => Map(Held::Leaf),
            (Self::RouteConfiguration, 2) => One(Self::VirtualHost),
            (Self::VirtualHost, 3) => One(Self::Route),
            (Self::Route, 2) => One(Self::RouteAction),
            (Self::RouteAction, 3) => One(Self::WeightedClusters),
            (Self::WeightedClusters, 1) => One(Self::WeightedCluster),
            _ => return None,
        })
    }
}

/// The message of this type with the entries of each map in the order of their keys. What is no such
/// message stays as it is.
pub(crate) fn canonical(type_url: &str, message: Vec<u8>) -> Vec<u8> {
    let Some(shape) = Shape::of(type_url) else {
        return message;
    };
    of_shape(shape, message)
}

/// The same of a filter chain, which is part of a listener.
pub(crate) fn of_chain(message: Vec<u8>) -> Vec<u8> {
    of_shape(Shape::Chain, message)
}

/// The same of a virtual host, which is part of a route configuration.
pub(crate) fn of_host(message: Vec<u8>) -> Vec<u8> {
    of_shape(Shape::VirtualHost, message)
}

/// How many bytes of a message stand before its first field of this number, or of one above it.
pub(crate) fn before(number: u32, message: &[u8]) -> usize {
    let mut rest = message;
    loop {
        let at = message.len() - rest.len();
        match next(&mut rest) {
            Some(field) if field.number < number => {}
            Some(_) | None => return at,
        }
    }
}

fn of_shape(shape: Shape, message: Vec<u8>) -> Vec<u8> {
    let mut to = Vec::with_capacity(message.len());
    match write(shape, &message, &mut to) {
        Some(()) => to,
        None => message,
    }
}

fn write(shape: Shape, mut from: &[u8], to: &mut Vec<u8>) -> Option<()> {
    if shape == Shape::Any {
        return write_any(from, to);
    }
    let mut entries: Vec<(&[u8], Vec<u8>)> = Vec::new();
    let mut map = None;
    while from.has_remaining() {
        let field = next(&mut from)?;
        if map != Some(field.number) {
            flush(map, &mut entries, to);
            map = None;
        }
        match shape.field(field.number).zip(field.message) {
            None => to.extend_from_slice(field.whole),
            Some((Field::One(shape), message)) => {
                let mut inner = Vec::with_capacity(message.len());
                write(shape, message, &mut inner)?;
                put(field.number, &inner, to);
            }
            Some((Field::Map(held), message)) => {
                let mut inner = Vec::with_capacity(message.len());
                write(Shape::Entry(held), message, &mut inner)?;
                entries.push((key(message)?, inner));
                map = Some(field.number);
            }
        }
    }
    flush(map, &mut entries, to);
    Some(())
}

fn write_any(from: &[u8], to: &mut Vec<u8>) -> Option<()> {
    let type_url = std::str::from_utf8(key(from)?).ok()?;
    let shape = Shape::of(type_url);
    let mut from = from;
    while from.has_remaining() {
        let field = next(&mut from)?;
        match (shape, field.number, field.message) {
            (Some(shape), 2, Some(message)) => {
                let mut inner = Vec::with_capacity(message.len());
                write(shape, message, &mut inner)?;
                put(2, &inner, to);
            }
            (_, _, _) => to.extend_from_slice(field.whole),
        }
    }
    Some(())
}

fn flush(map: Option<u32>, entries: &mut Vec<(&[u8], Vec<u8>)>, to: &mut Vec<u8>) {
    let Some(number) = map else {
        return;
    };
    entries.sort_by_key(|(key, _)| *key);
    for (_, entry) in entries.drain(..) {
        put(number, &entry, to);
    }
}

fn put(number: u32, message: &[u8], to: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(message.len() as u64, to);
    to.extend_from_slice(message);
}

/// The text or bytes of field 1: of an entry its key, of a packed message its type.
fn key(mut from: &[u8]) -> Option<&[u8]> {
    while from.has_remaining() {
        let field = next(&mut from)?;
        if field.number == 1 {
            return field.message;
        }
    }
    // A key that is empty is not written.
    Some(&[])
}

/// A field of a message.
pub(crate) struct Part<'a> {
    pub number: u32,
    /// With its key.
    whole: &'a [u8],
    /// What it holds, where that may be a message.
    pub message: Option<&'a [u8]>,
}

/// Key and value of an entry of a map of texts; what is empty is not written.
pub(crate) fn entry(mut from: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
    while from.has_remaining() {
        let part = next(&mut from)?;
        match part.number {
            1 => key = part.message?,
            2 => value = part.message?,
            _ => {}
        }
    }
    Some((key, value))
}

/// The number and the length of a field that says both in a byte each, as nearly all do.
const fn short(from: &[u8]) -> Option<(u32, usize)> {
    const LENGTH_DELIMITED: u8 = 2;
    let [key, len, ..] = *from else {
        return None;
    };
    let is_short = key < 0x80 && len < 0x80 && key & 7 == LENGTH_DELIMITED && key >> 3 != 0;
    if !is_short {
        return None;
    }
    Some(((key >> 3) as u32, len as usize))
}

/// Takes a field off a message; `None` where it is none.
pub(crate) fn next<'a>(from: &mut &'a [u8]) -> Option<Part<'a>> {
    let start = *from;
    if let Some((number, len)) = short(start) {
        let whole = start.get(..2 + len)?;
        *from = start.get(2 + len..)?;
        return Some(Part {
            number,
            whole,
            message: whole.get(2..),
        });
    }
    let (number, kind) = decode_key(from).ok()?;
    let mut message = None;
    let skipped = match kind {
        WireType::Varint => {
            decode_varint(from).ok()?;
            0
        }
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        WireType::LengthDelimited => {
            let len = usize::try_from(decode_varint(from).ok()?).ok()?;
            message = Some(from.get(..len)?);
            len
        }
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    *from = from.get(skipped..)?;
    let whole = start.get(..start.len() - from.len())?;
    Some(Part {
        number,
        whole,
        message,
    })
}

#[cfg(test)]
mod tests {
    use prost::{Message as _, Name as _};

    use super::*;
    use crate::pb::{self, core};

    #[test]
    fn a_field_is_taken_whole_however_long_it_is() {
        for len in [0, 1, 127, 128, 129, 20_000] {
            for number in [1, 15, 16] {
                let value = vec![7; len];
                let mut field = Vec::new();
                prost::encoding::bytes::encode(number, &value, &mut field);
                let bytes = [&*field, b"\x08\x01"].concat();
                let mut rest = &*bytes;
                let part = next(&mut rest).unwrap();
                assert_eq!((part.number, part.whole), (number, &*field));
                assert_eq!((part.message, rest), (Some(&*value), &b"\x08\x01"[..]));
                for cut in 0..field.len() {
                    assert!(next(&mut &field[..cut]).is_none(), "{cut} of {len}");
                }
            }
        }
        // Zero is no number, and three no kind of a field that begins and ends by itself.
        for broken in [&b"\x02\x00"[..], b"\x0b\x00"] {
            assert!(next(&mut &*broken).is_none());
        }
    }

    fn of_maps(keys: &[&str]) -> cluster::Cluster {
        let text = |text: &str| pb::PbValue {
            kind: Some(pb::Kind::StringValue(text.to_owned())),
        };
        let inner = pb::Struct {
            fields: keys
                .iter()
                .map(|key| ((*key).to_owned(), text(key)))
                .collect(),
        };
        let list = pb::PbValue {
            kind: Some(pb::Kind::ListValue(pb::ListValue {
                values: vec![
                    pb::PbValue {
                        kind: Some(pb::Kind::StructValue(inner.clone())),
                    },
                    text("zz"),
                    text("yy"),
                ],
            })),
        };
        let rules = http_rbac::Rbac {
            rules: Some(pb::rbac::Rbac {
                policies: keys
                    .iter()
                    .map(|key| ((*key).to_owned(), pb::rbac::Policy::default()))
                    .collect(),
                ..Default::default()
            }),
            ..Default::default()
        };
        cluster::Cluster {
            name: "c".to_owned(),
            metadata: Some(core::Metadata {
                filter_metadata: (keys.iter())
                    .map(|key| ((*key).to_owned(), inner.clone()))
                    .chain([(
                        "list".to_owned(),
                        pb::Struct {
                            fields: [("all".to_owned(), list)].into(),
                        },
                    )])
                    .collect(),
                ..Default::default()
            }),
            typed_extension_protocol_options: keys
                .iter()
                .map(|key| ((*key).to_owned(), pb::pack(&rules)))
                .collect(),
            ..Default::default()
        }
    }

    #[test]
    fn maps_have_one_order_whatever_they_were_filled_in() {
        let one = ["e", "a", "d", "b", "", "c"];
        let other = ["c", "", "b", "d", "a", "e"];
        let bytes = |keys: &[&str]| {
            let message = of_maps(keys).encode_to_vec();
            canonical(&cluster::Cluster::type_url(), message)
        };
        let first = bytes(&one);
        for _ in 0..20 {
            assert_eq!(bytes(&one), first);
            assert_eq!(bytes(&other), first);
        }
        let read = cluster::Cluster::decode(first.as_slice()).unwrap();
        assert_eq!(read.metadata, of_maps(&one).metadata);
        let keys = read.typed_extension_protocol_options.len();
        assert_eq!(keys, one.len());
        // The order of what is no map is meant.
        let at = |text: &[u8]| first.windows(text.len()).position(|part| part == text);
        assert!(at(b"zz") < at(b"yy"), "{first:?}");
    }

    #[test]
    fn what_is_no_such_message_stays() {
        let url = cluster::Cluster::type_url();
        for bytes in [
            &b"\xff\xff"[..],
            b"\x0a\x7fabc",
            b"\xca\x02\x02\xff\xff",
            b"\x0b",
        ] {
            assert_eq!(canonical(&url, bytes.to_vec()), bytes);
        }
        assert_eq!(canonical("type.googleapis.com/x.Y", vec![7]), [7]);
    }
}
