//! Messages whose parts are counted before they are decoded: a part that is empty takes two bytes on the
//! wire and hundreds in memory.

use std::marker::PhantomData;

use prost::bytes::{Buf, BufMut, Bytes};
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
    string,
};
use prost::{EncodeError, Message};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use crate::pb::discovery::DeltaDiscoveryRequest;

/// The most parts of a response: twice the resources that are kept.
const PARTS_MAX: usize = 400_000;
/// The most parts that these have in turn.
const INNER_MAX: usize = 2_000_000;
/// The fields of both kinds of response that are messages of which there may be many: the resources, and
/// from 7 on errors and names.
const MANY: [u32; 4] = [2, 7, 8, 9];
/// Its number in a `DeltaDiscoveryRequest`.
const INITIAL_RESOURCE_VERSIONS: u32 = 5;

/// How a request is written.
pub(crate) type Encode<T> = fn(T, &mut EncodeBuf<'_>) -> Result<(), EncodeError>;

/// Requests, and responses that are counted.
#[derive(Debug)]
pub(crate) struct Counted<T, U> {
    encode: Encode<T>,
    of: PhantomData<fn() -> U>,
}

#[derive(Debug)]
pub(crate) struct Encoding<T>(Encode<T>);

#[derive(Debug)]
pub(crate) struct Decoding<U> {
    /// The response that came last. Who reads them puts the next one where this was, however large that
    /// is, for as long as the stream lasts, unless it is somebody's still: the next one gets room of its
    /// own then, and the room of one that said all there is goes when the next has come.
    last: Bytes,
    of: PhantomData<fn() -> U>,
}

impl<T, U> Counted<T, U> {
    pub(crate) const fn new(encode: Encode<T>) -> Self {
        Self {
            encode,
            of: PhantomData,
        }
    }
}

/// A request as it is.
pub(crate) fn plain<T: Message>(request: T, to: &mut EncodeBuf<'_>) -> Result<(), EncodeError> {
    request.encode(to)
}

/// A request that says the versions it has by their names' order, which is the one that a server is likely
/// to have them in: one that is told tens of thousands finds each where it left off, where in the order of
/// a hash table every one of them is looked up somewhere else.
pub(crate) fn in_order(
    request: DeltaDiscoveryRequest,
    to: &mut EncodeBuf<'_>,
) -> Result<(), EncodeError> {
    write_in_order(request, to)
}

fn write_in_order(
    mut request: DeltaDiscoveryRequest,
    to: &mut impl BufMut,
) -> Result<(), EncodeError> {
    const NAME: u32 = 1;
    const VERSION: u32 = 2;
    let versions = std::mem::take(&mut request.initial_resource_versions);
    let mut versions: Vec<_> = versions.into_iter().collect();
    versions.sort_unstable();
    request.encode(to)?;
    for (name, version) in &versions {
        let len = string::encoded_len(NAME, name) + string::encoded_len(VERSION, version);
        encode_key(INITIAL_RESOURCE_VERSIONS, WireType::LengthDelimited, to);
        encode_varint(len as u64, to);
        string::encode(NAME, name, to);
        string::encode(VERSION, version, to);
    }
    Ok(())
}

impl<T, U> Codec for Counted<T, U>
where
    T: Send + 'static,
    U: Message + Default + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = Encoding<T>;
    type Decoder = Decoding<U>;

    fn encoder(&mut self) -> Self::Encoder {
        Encoding(self.encode)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoding {
            last: Bytes::new(),
            of: PhantomData,
        }
    }
}

impl<T> Encoder for Encoding<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let encoded = (self.0)(item, to);
        encoded.map_err(|error| Status::internal(error.to_string()))
    }
}

impl<U: Message + Default> Decoder for Decoding<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        self.last = bytes.clone();
        if !is_within(&bytes, PARTS_MAX, INNER_MAX) {
            let why =
                format!("a response of over {PARTS_MAX} parts, or of over {INNER_MAX} in these");
            return Err(Status::resource_exhausted(why));
        }
        let decoded = U::decode(bytes);
        decoded
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// Whether a message has no more parts than these; what cannot be read the decoder refuses.
fn is_within(message: &[u8], parts_max: usize, inner_max: usize) -> bool {
    let (mut parts, mut inner) = (0_usize, 0_usize);
    let mut rest = message;
    while let Some((tag, part)) = next(&mut rest) {
        parts += 1;
        if MANY.contains(&tag) {
            let mut part = part;
            while inner <= inner_max && next(&mut part).is_some() {
                inner += 1;
            }
        }
        if parts > parts_max || inner > inner_max {
            return false;
        }
    }
    true
}

/// Whether a message has no more fields than that, and none of them has, where it is one.
pub(crate) fn is_within_each(message: &[u8], fields_max: usize) -> bool {
    let mut rest = message;
    let mut fields = 0;
    while let Some((_, part)) = next(&mut rest) {
        fields += 1;
        let mut part = part;
        let mut inner = 0;
        while inner <= fields_max && next(&mut part).is_some() {
            inner += 1;
        }
        if fields > fields_max || inner > fields_max {
            return false;
        }
    }
    true
}

/// The number of the next field, and its bytes where it may be a message.
pub(crate) fn next<'a>(rest: &mut &'a [u8]) -> Option<(u32, &'a [u8])> {
    if rest.is_empty() {
        return None;
    }
    let (tag, wire) = decode_key(rest).ok()?;
    if wire != WireType::LengthDelimited {
        skip_field(wire, tag, rest, DecodeContext::default()).ok()?;
        return Some((tag, &[]));
    }
    let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (part, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some((tag, part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::discovery::{DeltaDiscoveryResponse, Resource};

    #[test]
    fn versions_are_said_by_their_names_order() {
        let versions = || (0..1000).map(|nth| (format!("{nth:04}"), (nth * 7).to_string()));
        let request = DeltaDiscoveryRequest {
            type_url: "t".to_owned(),
            resource_names_subscribe: vec!["a".to_owned()],
            initial_resource_versions: versions().chain([(String::new(), String::new())]).collect(),
            response_nonce: "n".to_owned(),
            ..Default::default()
        };
        let mut bytes = Vec::new();
        write_in_order(request.clone(), &mut bytes).unwrap();
        assert_eq!(DeltaDiscoveryRequest::decode(&*bytes).unwrap(), request);
        let (mut rest, mut said) = (&*bytes, Vec::new());
        while let Some((tag, mut entry)) = next(&mut rest) {
            if tag == INITIAL_RESOURCE_VERSIONS {
                said.push(next(&mut entry).map(|(_, name)| name.to_vec()));
            }
        }
        let names = versions().map(|(name, _)| Some(name.into_bytes()));
        assert_eq!(
            said,
            [Some(Vec::new())]
                .into_iter()
                .chain(names)
                .collect::<Vec<_>>()
        );
    }

    #[test]
    fn parts_are_counted_on_two_levels_and_no_body_is_looked_into() {
        let with = |aliases: usize| Resource {
            aliases: vec![String::new(); aliases],
            ..Default::default()
        };
        let message = |resources: Vec<Resource>| {
            let response = DeltaDiscoveryResponse {
                resources,
                nonce: "n".to_owned(),
                removed_resources: vec!["gone".to_owned()],
                ..Default::default()
            };
            response.encode_to_vec()
        };
        // A nonce and what is gone are parts too.
        let three = message(vec![with(0); 3]);
        assert!(is_within(&three, 5, 0) && !is_within(&three, 4, 0));
        let aliases = message(vec![with(2), with(1)]);
        assert!(is_within(&aliases, 4, 3) && !is_within(&aliases, 4, 2));
        let mut body = with(0);
        body.resource = Some(crate::pb::Any {
            type_url: String::new(),
            value: vec![0x0a, 0, 0x0a, 0],
        });
        assert!(is_within(&message(vec![body]), 3, 1));
        // What ends too soon, or is no message, is for the decoder.
        assert!(is_within(&three[..three.len() - 1], 5, 0));
        assert!(is_within(&[0xff; 40], 1, 1));
    }
}
