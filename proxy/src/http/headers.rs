//! Headers that the gateway reads, adds and removes.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Method, Version, request};
use zeugma_core::identity::SpiffeId;

/// The caller's identity as the gateway hands it on (Envoy's `x-forwarded-client-cert`).
pub(crate) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// One request through all hops.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The trace that a request is part of (W3C Trace Context).
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Why a gateway answered itself, for the gateway that called it.
pub(crate) const ZEUGMA_REASON: HeaderName = HeaderName::from_static(REASON);
/// Its name.
pub(crate) const REASON: &str = "x-zeugma-reason";
/// Marks a copy: a mirrored request is never mirrored again.
pub(crate) const ZEUGMA_MIRROR: HeaderName = HeaderName::from_static(MIRROR);
/// Its name.
pub(crate) const MIRROR: &str = "x-zeugma-mirror";

/// The longest request ID that is kept.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Headers that end at this hop (RFC 9110 §7.6.1), besides those that `connection` names.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Which of the headers that the gateway looks for a message has. Most have few of them, which one
/// look at all names tells at less than what it costs to ask for two.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Present(u16);

impl Present {
    pub(crate) const CONNECTION: Self = Self(1);
    pub(crate) const CONTENT_LENGTH: Self = Self(1 << 1);
    pub(crate) const COOKIE: Self = Self(1 << 2);
    pub(crate) const EXPECT: Self = Self(1 << 3);
    pub(crate) const GRPC_STATUS: Self = Self(1 << 4);
    pub(crate) const REQUEST_ID: Self = Self(1 << 5);
    pub(crate) const TE: Self = Self(1 << 6);
    pub(crate) const TRACEPARENT: Self = Self(1 << 7);
    pub(crate) const UPGRADE: Self = Self(1 << 8);
    pub(crate) const ZEUGMA_REASON: Self = Self(1 << 9);
    pub(crate) const DATE: Self = Self(1 << 11);
    /// Any that ends at this hop by its own name.
    pub(crate) const HOP_BY_HOP: Self = Self(1 << 10);
    pub(crate) const TRANSFER_ENCODING: Self = Self(1 << 12);

    pub(crate) fn of(headers: &HeaderMap) -> Self {
        headers
            .keys()
            .fold(Self::default(), |all, name| Self(all.0 | Self::by(name).0))
    }

    fn by(name: &HeaderName) -> Self {
        let name = name.as_str();
        let known = match name {
            "connection" => Self::CONNECTION,
            "content-length" => Self::CONTENT_LENGTH,
            "cookie" => Self::COOKIE,
            "date" => Self::DATE,
            "expect" => Self::EXPECT,
            "grpc-status" => Self::GRPC_STATUS,
            "x-request-id" => Self::REQUEST_ID,
            "te" => Self::TE,
            "traceparent" => Self::TRACEPARENT,
            "transfer-encoding" => Self::TRANSFER_ENCODING,
            "upgrade" => Self::UPGRADE,
            REASON => Self::ZEUGMA_REASON,
            _ => Self::default(),
        };
        if ends_at_hop(name) {
            Self(known.0 | Self::HOP_BY_HOP.0)
        } else {
            known
        }
    }

    pub(crate) const fn has(self, one: Self) -> bool {
        self.0 & one.0 != 0
    }
}

/// What nobody may read in trailers (RFC 9110 §6.5.1), besides what ends at this hop: it frames,
/// routes, authenticates or describes the message.
const OF_HEADS: [HeaderName; 11] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    header::HOST,
    header::MAX_FORWARDS,
    header::SET_COOKIE,
    header::TE,
    header::TRAILER,
];

/// Removes from trailers what belongs into a head, ends at this hop, says who calls, or is between
/// gateways: some take them for headers (RFC 9110 §6.5.1 warns of it), and nothing else vouches for
/// them.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    for name in [XFCC, ZEUGMA_REASON, ZEUGMA_MIRROR]
        .iter()
        .chain(&HOP_BY_HOP)
        .chain(&OF_HEADS)
    {
        trailers.remove(name);
    }
}

/// Removes what ends at this hop.
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    for name in named_by_connection(headers).iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove(header::TE);
}

/// Whether a header ends at this hop by its own name (RFC 9110 §7.6.1).
pub(crate) fn ends_at_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
            | "te"
    )
}

/// The headers that `connection` names as ending at this hop (RFC 9110 §7.6.1).
pub(crate) fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // It is of the message, whatever a sender says (RFC 9110 §7.6.1): without it the body would be
        // taken for the next message.
        .filter(|name| *name != header::CONTENT_LENGTH)
        .collect()
}

/// Whether a request takes trailers (RFC 9110 §10.1.4).
pub(crate) fn takes_trailers(headers: &HeaderMap) -> bool {
    headers.get_all(header::TE).iter().any(|value| {
        let mut codings = value.as_bytes().split(|byte| *byte == b',');
        codings.any(|one| one.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    })
}

/// Whether a message changes the protocol to WebSocket, and to nothing else, as the core sees it.
pub(crate) fn upgrades_to_websocket(headers: &HeaderMap) -> bool {
    zeugma_core::engine::Headers(&|name, tell| each(headers, name, tell)).upgrade_to_websocket()
}

/// Tells each value of a header.
pub(crate) fn each(headers: &HeaderMap, name: &str, tell: &mut dyn FnMut(&[u8])) {
    let all = headers.get_all(name).iter();
    all.for_each(|value| tell(value.as_bytes()));
}

/// The lines that HTTP/2 splits a cookie into as one (RFC 9113 §8.2.3).
pub(crate) fn joined_cookies(headers: &HeaderMap) -> Option<HeaderValue> {
    let crumbs = headers.get_all(header::COOKIE).iter();
    let crumbs: Vec<&[u8]> = crumbs.map(HeaderValue::as_bytes).collect();
    HeaderValue::from_bytes(&crumbs.join(&b"; "[..])).ok()
}

/// Whether a request's target is a path, or the `*` of `OPTIONS` (RFC 9112 §3.2, RFC 9113 §8.3.1).
pub(crate) fn has_target(request: &request::Parts) -> bool {
    match request.uri.path_and_query().map(PathAndQuery::as_str) {
        Some("*") => request.method == Method::OPTIONS,
        Some(target) => {
            // RFC 9112 §3.2.2: of HTTP/1.1 a whole URI may have none, which is `/`.
            let is_whole = request.uri.authority().is_some() && request.version != Version::HTTP_2;
            target.starts_with('/') || is_whole
        }
        None => false,
    }
}

/// The host a request is for; `None` if it names none, or two that differ.
pub(crate) fn authority(request: &request::Parts) -> Option<&str> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(HeaderValue::to_str);
    if hosts.next().is_some() {
        return None;
    }
    let named = request.uri.authority().map(Authority::as_str);
    match (named, host) {
        // RFC 9113 §8.3.1: the two must not differ. RFC 9112 §3.2.2: the target wins.
        (Some(named), Some(Ok(host))) if request.version == Version::HTTP_2 => {
            named.eq_ignore_ascii_case(host).then_some(named)
        }
        (Some(named), _) => Some(named),
        (None, Some(Ok(host))) => Some(host),
        (None, Some(Err(_)) | None) => None,
    }
}

/// What a request is known by, here and behind.
#[derive(Debug, Clone)]
pub(crate) struct Ids {
    pub(crate) request: RequestId,
    pub(crate) trace: Trace,
}

/// A value that the caller sent, or `N` letters, digits and hyphens of ours: made for nearly every
/// request, and seldom wanted as a value that can be shared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Id<const N: usize> {
    Sent(HeaderValue),
    Made([u8; N]),
}

pub(crate) type RequestId = Id<32>;

#[cfg(test)]
impl Ids {
    /// Those that a request has.
    pub(crate) fn of(request: &str, trace: &str) -> std::rc::Rc<Self> {
        std::rc::Rc::new(Self {
            request: Id::Sent(request.parse().unwrap()),
            trace: Trace::of(trace),
        })
    }
}

impl<const N: usize> Id<N> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Sent(value) => value.as_bytes(),
            Self::Made(text) => text,
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    pub(crate) fn to_value(&self) -> HeaderValue {
        match self {
            Self::Sent(value) => value.clone(),
            Self::Made(text) => Said::Text(text).to_value(),
        }
    }
}

/// The value of a header that is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Said<'a> {
    Value(&'a HeaderValue),
    /// Letters, digits and hyphens.
    Text(&'a [u8]),
}

impl Said<'_> {
    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Value(value) => value.as_bytes(),
            Self::Text(text) => text,
        }
    }

    pub(crate) fn to_value(self) -> HeaderValue {
        match self {
            Self::Value(value) => value.clone(),
            Self::Text(text) => {
                HeaderValue::from_bytes(text).unwrap_or_else(|_| HeaderValue::from_static("-"))
            }
        }
    }
}

impl<'a, const N: usize> From<&'a Id<N>> for Said<'a> {
    fn from(id: &'a Id<N>) -> Self {
        match id {
            Id::Sent(value) => Self::Value(value),
            Id::Made(text) => Self::Text(text),
        }
    }
}

/// Whether each request has a value of its own: in a table of HPACK it is found by nobody, takes the
/// place of what would be, and is looked at whenever the next one is looked for.
pub(crate) fn is_said_once(name: &HeaderName) -> bool {
    name == REQUEST_ID || name == TRACEPARENT
}

/// The request's ID if it is short and printable, else a new one.
pub(crate) fn request_id(
    headers: &HeaderMap,
    present: Present,
    draw: impl Fn() -> u64,
) -> RequestId {
    let sent = present.has(Present::REQUEST_ID);
    let sent = sent.then(|| headers.get(&REQUEST_ID)).flatten();
    let kept = sent.filter(|id| {
        !id.is_empty()
            && id.len() <= REQUEST_ID_BYTES_MAX
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
    });
    kept.cloned().map_or_else(
        || {
            let mut id = [0; 32];
            write_hex(&mut id, [draw(), draw()]);
            Id::Made(id)
        },
        Id::Sent,
    )
}

/// The trace that a request is part of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    /// A valid `traceparent`.
    parent: Id<55>,
    /// Whether the caller has sent none that is valid.
    pub(crate) is_made: bool,
    /// The caller's span, where the gateway records one of its own.
    #[cfg(any(test, feature = "otlp"))]
    caller: Option<Box<str>>,
}

impl Trace {
    /// Its ID, in hexadecimal.
    pub(crate) fn id(&self) -> &[u8] {
        self.parent.as_bytes().get(3..35).unwrap_or_default()
    }

    /// What is sent.
    pub(crate) const fn parent(&self) -> &Id<55> {
        &self.parent
    }

    /// Whether another `traceparent` is sent than the caller's.
    pub(crate) const fn is_said_anew(&self) -> bool {
        #[cfg(any(test, feature = "otlp"))]
        if self.caller.is_some() {
            return true;
        }
        self.is_made
    }

    /// The same with a span of the gateway's own, if the caller has it sampled (W3C Trace Context
    /// §3.3: the parent's ID is ours then, and all else goes on).
    #[cfg(any(test, feature = "otlp"))]
    pub(crate) fn with_span(self, draw: impl Fn() -> u64) -> Self {
        let text = self.parent.as_str();
        let (false, Some(caller)) = (self.is_made, text.get(36..52)) else {
            return self;
        };
        if !is_sampled(text.as_bytes()) {
            return self;
        }
        let mut span = [0; 16];
        write_hex(&mut span, [draw() | 1]);
        let caller = Box::from(caller);
        // Whoever changes it says the version that it knows.
        let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
        for (to, from) in parent.iter_mut().zip(text.bytes()).skip(2) {
            *to = from;
        }
        for (to, from) in parent.iter_mut().skip(36).zip(span) {
            *to = from;
        }
        Self {
            parent: Id::Made(parent),
            is_made: false,
            caller: Some(caller),
        }
    }

    /// The IDs of the gateway's own span, where it records one.
    #[cfg(any(test, feature = "otlp"))]
    pub(crate) fn recorded(&self) -> Option<crate::otlp::Ids<'_>> {
        let text = self.parent.as_str();
        Some(crate::otlp::Ids {
            trace: text.get(3..35)?,
            span: text.get(36..52)?,
            parent: self.caller.as_deref()?,
        })
    }

    /// None that a request has.
    #[cfg(test)]
    pub(crate) fn of(id: &str) -> Self {
        Self {
            parent: Id::Made(
                format!("00-{id}-0000000000000001-00")
                    .as_bytes()
                    .try_into()
                    .unwrap(),
            ),
            is_made: true,
            #[cfg(any(test, feature = "otlp"))]
            caller: None,
        }
    }
}

/// The request's trace if its `traceparent` is valid, else a new one (W3C Trace Context §3.2).
///
/// A valid one goes on as it is, unless the gateway records a span of its own ([`Trace::with_span`]).
pub(crate) fn trace(headers: &HeaderMap, present: Present, draw: impl Fn() -> u64) -> Trace {
    let only = if present.has(Present::TRACEPARENT) {
        let mut values = headers.get_all(&TRACEPARENT).iter();
        values.next().filter(|_| values.next().is_none())
    } else {
        None
    };
    if let Some(parent) = only.filter(|value| trace_id(value.as_bytes()).is_some()) {
        return Trace {
            parent: Id::Sent(parent.clone()),
            is_made: false,
            #[cfg(any(test, feature = "otlp"))]
            caller: None,
        };
    }
    // Not sampled, as far as we know (§3.2.2.5).
    let mut parent = *b"00-00000000000000000000000000000000-0000000000000000-00";
    let [_, _, _, ids @ ..] = &mut parent;
    let (trace, span) = ids.split_at_mut(32);
    // Neither ID may be all zeros.
    write_hex(trace, [draw(), draw() | 1]);
    if let [_, span @ ..] = span {
        write_hex(span, [draw() | 1]);
    }
    Trace {
        parent: Id::Made(parent),
        is_made: true,
        #[cfg(any(test, feature = "otlp"))]
        caller: None,
    }
}

/// Whether whoever sent a valid `traceparent` records the trace (W3C Trace Context §3.2.2.5).
pub(crate) fn is_sampled(parent: &[u8]) -> bool {
    let digit = parent.get(54).copied().map(char::from);
    (digit.and_then(|digit| digit.to_digit(16))).is_some_and(|flags| flags & 1 == 1)
}

/// Writes numbers of 16 hexadecimal digits each.
fn write_hex<const N: usize>(to: &mut [u8], numbers: [u64; N]) {
    const EACH: u128 = u128::MAX / 0xff;
    for (digits, number) in to.chunks_mut(16).zip(numbers) {
        // Four bits to a byte, by halves; then all of them become digits at once.
        let mut bytes = u128::from(number);
        for shift in [32, 16, 8, 4] {
            let kept = u128::MAX / ((1 << shift) + 1);
            bytes = (bytes | (bytes << shift)) & kept;
        }
        let letters = ((bytes + EACH * 6) >> 4) & EACH;
        let text = bytes + EACH * u128::from(b'0') + letters * u128::from(b'a' - b'0' - 10);
        if let Ok(digits) = <&mut [u8; 16]>::try_from(digits) {
            *digits = text.to_be_bytes();
        }
    }
}

/// The trace ID of a valid `traceparent`.
fn trace_id(value: &[u8]) -> Option<&str> {
    const BYTES: usize = 55;
    let text = str::from_utf8(value).ok()?;
    let (known, rest) = text.split_at_checked(BYTES)?;
    let mut parts = known.split('-');
    let [version, trace, parent, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
    let is_hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_id = |part: &str, length| is_hex(part, length) && part.bytes().any(|byte| byte != b'0');
    // §4.3: what later versions add comes behind.
    let fits = match version {
        "00" => rest.is_empty(),
        "ff" => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let valid = fits
        && parts.next().is_none()
        && is_hex(version, 2)
        && is_id(trace, 32)
        && is_id(parent, 16)
        && is_hex(flags, 2);
    valid.then_some(trace)
}

/// What `x-forwarded-client-cert` says of who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Nothing.
    Absent,
    /// This.
    Of(SpiffeId),
    /// Something that must not be guessed at: several elements, or none with exactly one ID.
    Unreadable,
}

impl Claim {
    pub(crate) const fn id(&self) -> Option<&SpiffeId> {
        match self {
            Self::Of(id) => Some(id),
            Self::Absent | Self::Unreadable => None,
        }
    }
}

/// The identity that `x-forwarded-client-cert` attests: of exactly one element with one `URI`.
pub(crate) fn attested(headers: &HeaderMap) -> Claim {
    let mut values = headers.get_all(&XFCC).iter();
    let Some(value) = values.next() else {
        return Claim::Absent;
    };
    let only = values.next().is_none();
    let id = value
        .to_str()
        .ok()
        .filter(|text| only && !text.contains([',', '"', '\\']));
    let id = id.and_then(|text| {
        let mut uris = text.split(';').filter_map(|pair| {
            let (key, id) = pair.split_once('=')?;
            key.eq_ignore_ascii_case("uri").then_some(id)
        });
        let id = uris.next()?;
        if uris.next().is_some() {
            None
        } else {
            SpiffeId::parse(id).ok()
        }
    });
    id.map_or(Claim::Unreadable, Claim::Of)
}

/// The one element of `x-forwarded-client-cert` that we vouch for.
pub(crate) fn handed_on(us: &SpiffeId, caller: &SpiffeId) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("By={us};URI={caller}")).ok()
}

/// This gateway in `via`, with the version that the request came in by (RFC 9110 §7.6.3).
pub(crate) const fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 => "1.0 zeugma",
        Version::HTTP_2 => "2.0 zeugma",
        _ => "1.1 zeugma",
    })
}

/// Whether the first gateway on the way says that the request came in by HTTP/2.
///
/// Between gateways all requests share HTTP/2; an endpoint with `version: same` gets the version
/// of the caller before the first gateway.
pub(crate) fn began_as_h2(headers: &HeaderMap) -> Option<bool> {
    let first = headers.get(header::VIA)?.to_str().ok()?;
    let first = first.split(',').next()?.trim();
    first.ends_with(" zeugma").then(|| first.starts_with("2.0"))
}

/// The length that a message says it has.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

/// Whether a request is gRPC: HTTP/2 to the endpoint whatever else is configured.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|kind| kind.starts_with("application/grpc"))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(
                name.parse::<HeaderName>().unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        headers
    }

    #[test]
    fn one_look_tells_which_headers_there_are() {
        let all = [
            ("connection", Present::CONNECTION),
            ("content-length", Present::CONTENT_LENGTH),
            ("cookie", Present::COOKIE),
            ("date", Present::DATE),
            ("expect", Present::EXPECT),
            ("grpc-status", Present::GRPC_STATUS),
            ("x-request-id", Present::REQUEST_ID),
            ("te", Present::TE),
            ("traceparent", Present::TRACEPARENT),
            ("transfer-encoding", Present::TRANSFER_ENCODING),
            ("upgrade", Present::UPGRADE),
            ("x-zeugma-reason", Present::ZEUGMA_REASON),
        ];
        for (name, one) in all {
            let present = Present::of(&map(&[("accept", "a"), (name, "b")]));
            for (other, bit) in all {
                assert_eq!(present.has(bit), other == name, "{other} beside {name}");
            }
            assert_eq!(
                present.has(Present::HOP_BY_HOP),
                ends_at_hop(name),
                "{name}"
            );
            assert!(Present::of(&map(&[(name, "b"), ("accept", "a")])).has(one));
        }
        let hop = Present::of(&map(&[("keep-alive", "timeout=5")]));
        assert!(hop.has(Present::HOP_BY_HOP));
    }

    #[test]
    fn hop_by_hop_headers_and_those_that_connection_names_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate"),
            ("x-kept", "1"),
        ]);
        assert!(takes_trailers(&headers));
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("x-kept", "1")]));
        assert!(!takes_trailers(&headers));
    }

    #[test]
    fn only_one_plain_element_attests() {
        let of = |value: &str| attested(&map(&[("x-forwarded-client-cert", value)]));
        let cart = SpiffeId::parse("spiffe://west.example/ns/shop/sa/cart").unwrap();
        assert_eq!(
            of("By=spiffe://a/gw;URI=spiffe://west.example/ns/shop/sa/cart"),
            Claim::Of(cart)
        );
        assert_eq!(
            of("By=spiffe://a/gw;URI=spiffe://a/x,By=b;URI=spiffe://a/y"),
            Claim::Unreadable
        );
        assert_eq!(of("URI=spiffe://a/x;URI=spiffe://a/y"), Claim::Unreadable);
        assert_eq!(of("URI=\"spiffe://a/x\""), Claim::Unreadable);
        assert_eq!(of("URI=not-an-id"), Claim::Unreadable);
        let two = [("x-forwarded-client-cert", "URI=spiffe://a/x"); 2];
        assert_eq!(attested(&map(&two)), Claim::Unreadable);
    }

    #[test]
    fn a_caller_is_handed_on_as_one_element() {
        let us = SpiffeId::parse("spiffe://east.example/zeugma/gateway").unwrap();
        let caller = SpiffeId::parse("spiffe://a/x").unwrap();
        let expected = "By=spiffe://east.example/zeugma/gateway;URI=spiffe://a/x";
        assert_eq!(handed_on(&us, &caller).unwrap(), expected);
    }

    #[test]
    fn two_hosts_are_no_host() {
        let request = Request::builder()
            .header("host", "a")
            .header("host", "b")
            .body(());
        let request = request.unwrap().into_parts().0;
        assert_eq!(authority(&request), None);
        let request = Request::builder()
            .version(Version::HTTP_2)
            .uri("http://a.b/")
            .header("host", "c.d")
            .body(())
            .unwrap()
            .into_parts()
            .0;
        assert_eq!(authority(&request), None);
        let request = Request::builder()
            .header("host", "a.b:80")
            .body(())
            .unwrap()
            .into_parts()
            .0;
        assert_eq!(authority(&request), Some("a.b:80"));
    }

    #[test]
    fn numbers_are_written_as_format_writes_them() {
        for number in [
            0,
            1,
            9,
            10,
            15,
            16,
            0x0123_4567_89ab_cdef,
            u64::MAX / 3,
            u64::MAX,
        ] {
            let mut text = [0; 32];
            write_hex(&mut text, [number, !number]);
            let wanted = format!("{number:016x}{:016x}", !number);
            assert_eq!(text, wanted.as_bytes());
        }
    }

    #[test]
    fn a_request_id_is_kept_only_if_it_is_short_and_printable() {
        let id = |headers: &HeaderMap| request_id(headers, Present::of(headers), || 7);
        assert_eq!(id(&map(&[("x-request-id", "abc-1")])).as_str(), "abc-1");
        let made = "00000000000000070000000000000007";
        assert_eq!(id(&map(&[("x-request-id", "a b")])).as_str(), made);
        assert_eq!(
            id(&map(&[("x-request-id", &"a".repeat(129))])).as_str(),
            made
        );
        assert_eq!(id(&HeaderMap::new()).to_value(), made);
    }

    #[test]
    fn a_valid_trace_is_kept_and_any_other_replaced() {
        let id = "4bf92f3577b34da6a3ce929d0e0e4736";
        let of = |headers: &HeaderMap| trace(headers, Present::of(headers), || 0);
        let only = |value: &str| of(&map(&[("traceparent", value)]));
        // The first is the example of W3C Trace Context §3.2.
        for valid in [
            format!("00-{id}-00f067aa0ba902b7-01"),
            format!("01-{id}-00f067aa0ba902b7-01"),
            format!("01-{id}-00f067aa0ba902b7-01-more"),
        ] {
            let kept = only(&valid);
            assert_eq!((kept.id(), kept.is_made), (id.as_bytes(), false));
            assert_eq!(kept.parent().as_str(), valid);
        }
        let made = Trace::of("00000000000000000000000000000001");
        assert_eq!(made.id(), b"00000000000000000000000000000001");
        for invalid in [
            String::new(),
            format!("00-{id}-00f067aa0ba902b7"),
            format!("00-{id}-00f067aa0ba902b7-01-more"),
            format!("ff-{id}-00f067aa0ba902b7-01"),
            format!("01-{id}-00f067aa0ba902b7-01more"),
            format!("00-{}-00f067aa0ba902b7-01", id.to_uppercase()),
            format!("00-{id}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        ] {
            assert_eq!(only(&invalid), made, "{invalid}");
        }
        assert_eq!(of(&HeaderMap::new()), made);
        let twice = (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        );
        assert_eq!(of(&map(&[twice, twice])), made);
    }

    #[test]
    fn only_websocket_is_changed_to() {
        let asks = |upgrade: &str| {
            upgrades_to_websocket(&map(&[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", upgrade),
            ]))
        };
        assert!(asks("websocket") && asks("WebSocket"));
        assert!(!asks("h2c") && !asks("websocket, h2c") && !asks("TLS/1.2"));
        assert!(!upgrades_to_websocket(&map(&[("upgrade", "websocket")])));
        let two = [
            ("connection", "upgrade"),
            ("upgrade", "websocket"),
            ("upgrade", "h2c"),
        ];
        assert!(!upgrades_to_websocket(&map(&two)));
    }

    #[test]
    fn cookie_crumbs_are_joined_in_order() {
        let headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        assert_eq!(joined_cookies(&headers).unwrap(), "a=1; b=2; c=3");
    }
}
