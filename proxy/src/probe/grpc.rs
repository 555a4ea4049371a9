//! `grpc.health.v1.Health/Check`: a question and an answer of one field each.

use std::pin::pin;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use zeugma_core::verdict::Reason;

use super::{USER_AGENT, Way};
use crate::http::headers::ZEUGMA_REASON;
use crate::transport::Stream;

const PATH: &str = "/grpc.health.v1.Health/Check";

/// The longest answer that is read. A usual one is 7 bytes.
const ANSWER_BYTES_MAX: usize = 1024;

/// gRPC's frame (`PROTOCOL-HTTP2.md`): whether it is compressed, and its length.
const FRAME_HEAD_BYTES: usize = 5;

/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;

const GRPC_STATUS: &str = "grpc-status";
/// By which a peer's gateway, or a service behind it, refuses a check (gRPC's `statuscodes.md`):
/// PERMISSION_DENIED, UNIMPLEMENTED, UNAUTHENTICATED.
const REFUSALS: [&str; 3] = ["7", "12", "16"];

/// Asks for `service`; whoever calls it sets a deadline.
pub(super) async fn check(
    stream: Stream,
    service: &str,
    host: &str,
    way: Way,
) -> Result<(), String> {
    let request = question(service, host)?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(crate::http::OnThisWorker, TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
    let mut asking = pin!(async {
        let response = sender.send_request(request).await;
        let (head, body) = response.map_err(|error| error.to_string())?.into_parts();
        let (message, trailers) = read(body).await?;
        judge(way, head.status, &head.headers, &trailers, &message)
    });
    tokio::select! {
        biased;
        answered = &mut asking => answered,
        // What came before its end is still to be read.
        _ended = connection => asking.await,
    }
}

fn question(service: &str, host: &str) -> Result<Request<Full<Bytes>>, String> {
    let message = encode(service);
    let mut body = BytesMut::with_capacity(FRAME_HEAD_BYTES + message.len());
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(|error| error.to_string())?);
    body.put(message);
    Request::post(format!("http://{host}{PATH}"))
        .header(header::USER_AGENT, USER_AGENT)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .body(Full::new(body.freeze()))
        .map_err(|error| error.to_string())
}

/// `message HealthCheckRequest { string service = 1; }`; what is empty is not sent.
fn encode(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(1 << 3 | 2);
        let mut rest = service.len();
        while rest >= 0x80 {
            #[expect(clippy::cast_possible_truncation, reason = "its lowest seven bits")]
            message.put_u8(rest as u8 | 0x80);
            rest >>= 7;
        }
        #[expect(clippy::cast_possible_truncation, reason = "below 0x80")]
        message.put_u8(rest as u8);
        message.put_slice(service.as_bytes());
    }
    message.freeze()
}

async fn read(mut body: Incoming) -> Result<(Bytes, HeaderMap), String> {
    let mut message = BytesMut::new();
    while let Some(frame) = body.frame().await {
        match frame.map_err(|error| error.to_string())?.into_data() {
            Ok(data) if message.len() + data.len() > ANSWER_BYTES_MAX => {
                return Err(format!("answered over {ANSWER_BYTES_MAX} bytes"));
            }
            Ok(data) => message.put(data),
            Err(other) => {
                return Ok((message.freeze(), other.into_trailers().unwrap_or_default()));
            }
        }
    }
    Ok((message.freeze(), HeaderMap::new()))
}

/// Whether an answer is good.
///
/// As with a check by HTTP, a refusal that a peer's gateway or its service says of the check itself is
/// a sign of life, and no word of `NOT_SERVING` is.
fn judge(
    way: Way,
    status: StatusCode,
    headers: &HeaderMap,
    trailers: &HeaderMap,
    message: &[u8],
) -> Result<(), String> {
    let nothing_there = Reason::NoLocalEndpoint.label();
    let says_so = |why: &http::HeaderValue| why == nothing_there;
    if way == Way::Peer && headers.get(&ZEUGMA_REASON).is_some_and(says_so) {
        return Err(nothing_there.to_owned());
    }
    if status != StatusCode::OK {
        let is_refusal = way == Way::Peer && status.is_client_error();
        return (is_refusal.then_some(())).ok_or_else(|| format!("answered {status}"));
    }
    // Where there is no message, the status stands in the head.
    let code = trailers
        .get(GRPC_STATUS)
        .or_else(|| headers.get(GRPC_STATUS));
    match code.and_then(|code| code.to_str().ok()) {
        None => Err("answered without grpc-status".to_owned()),
        Some("0") => match decode(message)? {
            SERVING => Ok(()),
            other => Err(format!("answered serving status {other}")),
        },
        Some(code) if way == Way::Peer && REFUSALS.contains(&code) => Ok(()),
        Some(code) => Err(format!("answered grpc-status {code}")),
    }
}

/// `message HealthCheckResponse { ServingStatus status = 1; }` in its frame; what else is in it is
/// for others. What is not sent is 0, UNKNOWN.
fn decode(frame: &[u8]) -> Result<u64, String> {
    let wrong = || "answered what is no HealthCheckResponse".to_owned();
    let (head, mut message) = frame.split_at_checked(FRAME_HEAD_BYTES).ok_or_else(wrong)?;
    let [0, length @ ..] = head else {
        return Err("answered compressed, which it was not asked to".to_owned());
    };
    let length = <[u8; 4]>::try_from(length).map_err(|_| wrong())?;
    if usize::try_from(u32::from_be_bytes(length)) != Ok(message.len()) {
        return Err(wrong());
    }
    let mut status = 0;
    while !message.is_empty() {
        let tag = varint(&mut message).ok_or_else(wrong)?;
        let skipped = match (tag >> 3, tag & 7) {
            (1, 0) => {
                status = varint(&mut message).ok_or_else(wrong)?;
                0
            }
            (_, 0) => {
                varint(&mut message).ok_or_else(wrong)?;
                0
            }
            (_, 1) => 8,
            (_, 2) => varint(&mut message).ok_or_else(wrong)?,
            (_, 5) => 4,
            _ => return Err(wrong()),
        };
        let skipped = usize::try_from(skipped).map_err(|_| wrong())?;
        message = message.get(skipped..).ok_or_else(wrong)?;
    }
    Ok(status)
}

/// A number of at most ten bytes (protobuf's `encoding`: base 128, lowest first).
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for nth in 0..10 {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f).checked_shl(nth * 7)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect()
    }

    /// As `protoc --encode` and gRPC's frame have it.
    #[test]
    fn the_question_is_as_grpc_spells_it() {
        assert_eq!(&*encode(""), b"");
        assert_eq!(&*encode("a.B"), b"\x0a\x03a.B");
        let long = "x".repeat(200);
        assert_eq!(encode(&long).get(..3), Some(&b"\x0a\xc8\x01"[..]));
        let asked = question("a.B", "orders.shop").unwrap();
        assert_eq!(
            asked.uri(),
            "http://orders.shop/grpc.health.v1.Health/Check"
        );
        assert_eq!(asked.headers().get("te").unwrap(), "trailers");
    }

    #[test]
    fn only_serving_is_good_and_nothing_of_an_answer_is_a_panic() {
        assert_eq!(decode(b"\0\0\0\0\x02\x08\x01"), Ok(SERVING));
        assert_eq!(decode(b"\0\0\0\0\0"), Ok(0));
        assert_eq!(decode(b"\0\0\0\0\x02\x08\x02"), Ok(2));
        // Fields that are not ours: a text, a number, four and eight bytes.
        let others = b"\x12\x01x\x18\x85\x01\x25abcd\x29abcdefgh\x08\x01";
        let frame = [b"\0\0\0\0\x16", &others[..]].concat();
        assert_eq!(decode(&frame), Ok(SERVING));
        for cut in 0..frame.len() {
            assert!(decode(&frame[..cut]).is_err(), "{cut}");
        }
        for bad in [
            &b"\x01\0\0\0\x02\x08\x01"[..],
            b"\0\0\0\0\x02\x08\x01\0",
            b"\0\0\0\0\x01\x0b",
            b"\0\0\0\0\x03\x12\xff\x01",
            b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_refusal_by_a_peer_is_a_sign_of_life_and_one_by_an_endpoint_is_not() {
        let serving = b"\0\0\0\0\x02\x08\x01";
        let not_serving = b"\0\0\0\0\x02\x08\x02";
        let good = |way, status: u16, code: &str, message: &[u8]| {
            let status = StatusCode::from_u16(status).unwrap();
            let trailers = head(&[("grpc-status", code)]);
            judge(way, status, &HeaderMap::new(), &trailers, message).is_ok()
        };
        for way in [Way::Direct, Way::Peer] {
            assert!(good(way, 200, "0", serving));
            assert!(!good(way, 200, "0", not_serving));
            // NOT_FOUND: the health service does not know what it was asked for.
            for code in ["2", "5", "13", "14", "x"] {
                assert!(!good(way, 200, code, b""), "{code}");
            }
            assert!(!good(way, 503, "0", serving));
            let silent = judge(
                way,
                StatusCode::OK,
                &HeaderMap::new(),
                &HeaderMap::new(),
                serving,
            );
            assert!(silent.is_err(), "an answer that was cut off");
        }
        for (status, code) in [(200, "7"), (200, "12"), (200, "16"), (403, "0"), (421, "0")] {
            assert!(good(Way::Peer, status, code, b""), "{status} {code}");
            assert!(!good(Way::Direct, status, code, b""), "{status} {code}");
        }
        // Trailers alone, as a gateway answers.
        let none_there = head(&[
            ("grpc-status", "12"),
            ("x-zeugma-reason", "no-local-endpoint"),
        ]);
        let of = |way| judge(way, StatusCode::OK, &none_there, &HeaderMap::new(), b"");
        assert_eq!(of(Way::Peer), Err("no-local-endpoint".to_owned()));
    }
}
