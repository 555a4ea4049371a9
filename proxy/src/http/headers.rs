//! Headers that the gateway reads, adds and removes.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Version, request};
use zeugma_core::identity::SpiffeId;

/// The caller's identity as the gateway hands it on (Envoy's `x-forwarded-client-cert`).
pub(crate) const XFCC: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// One request through all hops.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Why a gateway answered itself, for the gateway that called it.
pub(crate) const ZEUGMA_REASON: HeaderName = HeaderName::from_static("x-zeugma-reason");
/// Marks a copy: a mirrored request is never mirrored again.
pub(crate) const ZEUGMA_MIRROR: HeaderName = HeaderName::from_static("x-zeugma-mirror");

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

/// Removes what ends at this hop; `te: trailers` is kept, since gRPC needs it (RFC 9110 §10.1.4).
pub(crate) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| *name != header::TE)
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    let trailers = headers.get_all(header::TE).iter().any(|value| {
        value
            .to_str()
            .is_ok_and(|te| te.split(',').any(|one| one.trim() == "trailers"))
    });
    headers.remove(header::TE);
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
}

/// The protocol a request wants to change to, if it does (RFC 9110 §7.8).
///
/// Not `h2c`, which callers offer with requests that are meant to be answered as they are
/// (RFC 9113 §3.1 withdrew it).
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = headers.get_all(header::CONNECTION).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',')
                .any(|one| one.trim().eq_ignore_ascii_case("upgrade"))
        })
    });
    if asks {
        let protocol = headers.get(header::UPGRADE)?;
        (!protocol.as_bytes().eq_ignore_ascii_case(b"h2c")).then(|| protocol.clone())
    } else {
        None
    }
}

/// The host a request is for; `None` if it names none, or two that differ.
pub(crate) fn authority(request: &request::Parts) -> Option<String> {
    let mut hosts = request.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|value| value.to_str().map(str::to_owned));
    if hosts.next().is_some() {
        return None;
    }
    let named = request
        .uri
        .authority()
        .map(|authority| authority.as_str().to_owned());
    match (named, host) {
        // RFC 9113 §8.3.1: the two must not differ. RFC 9112 §3.2.2: the target wins.
        (Some(named), Some(Ok(host))) if request.version == Version::HTTP_2 => {
            named.eq_ignore_ascii_case(&host).then_some(named)
        }
        (Some(named), _) => Some(named),
        (None, Some(Ok(host))) => Some(host),
        (None, Some(Err(_)) | None) => None,
    }
}

/// The request's ID if it is short and printable, else a new one.
pub(crate) fn request_id(headers: &HeaderMap, draw: impl Fn() -> u64) -> String {
    let kept = headers
        .get(&REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            !id.is_empty()
                && id.len() <= REQUEST_ID_BYTES_MAX
                && id.bytes().all(|byte| byte.is_ascii_graphic())
        });
    kept.map_or_else(|| format!("{:016x}{:016x}", draw(), draw()), str::to_owned)
}

/// The identity that the last element of `x-forwarded-client-cert` attests.
///
/// Exactly one element with exactly one `URI` is read; anything else attests nothing.
pub(crate) fn attested(headers: &HeaderMap) -> Option<SpiffeId> {
    let mut values = headers.get_all(&XFCC).iter();
    let value = values.next()?.to_str().ok()?;
    if values.next().is_some() || value.contains([',', '"', '\\']) {
        return None;
    }
    let mut uris = value.split(';').filter_map(|pair| {
        pair.split_once('=')
            .filter(|(key, _)| key.eq_ignore_ascii_case("uri"))
            .map(|(_, id)| id)
    });
    let id = uris.next()?;
    if uris.next().is_some() {
        return None;
    }
    SpiffeId::parse(id).ok()
}

/// Replaces whatever the caller sent by the one element that we vouch for.
pub(crate) fn hand_on(headers: &mut HeaderMap, us: &SpiffeId, caller: Option<&SpiffeId>) {
    headers.remove(&XFCC);
    if let Some(caller) = caller
        && let Ok(value) = HeaderValue::try_from(format!("By={us};URI={caller}"))
    {
        headers.insert(XFCC, value);
    }
}

/// Adds this gateway to `via`, with the version that the request came in by (RFC 9110 §7.6.3).
pub(crate) fn add_via(headers: &mut HeaderMap, version: Version) {
    headers.append(header::VIA, HeaderValue::from_static(via(version)));
}

const fn via(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0 zeugma",
        Version::HTTP_2 => "2.0 zeugma",
        _ => "1.1 zeugma",
    }
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
    fn hop_by_hop_headers_and_those_that_connection_names_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("te", "trailers, deflate"),
            ("x-kept", "1"),
        ]);
        remove_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("x-kept", "1"), ("te", "trailers")]));
    }

    #[test]
    fn only_one_plain_element_attests() {
        let of = |value: &str| attested(&map(&[("x-forwarded-client-cert", value)]));
        let cart = SpiffeId::parse("spiffe://west.example/ns/shop/sa/cart").unwrap();
        assert_eq!(
            of("By=spiffe://a/gw;URI=spiffe://west.example/ns/shop/sa/cart"),
            Some(cart)
        );
        assert_eq!(
            of("By=spiffe://a/gw;URI=spiffe://a/x,By=b;URI=spiffe://a/y"),
            None
        );
        assert_eq!(of("URI=spiffe://a/x;URI=spiffe://a/y"), None);
        assert_eq!(of("URI=\"spiffe://a/x\""), None);
        assert_eq!(of("URI=not-an-id"), None);
        let two = [("x-forwarded-client-cert", "URI=spiffe://a/x"); 2];
        assert_eq!(attested(&map(&two)), None);
    }

    #[test]
    fn what_the_caller_claims_is_replaced() {
        let us = SpiffeId::parse("spiffe://east.example/zeugma/gateway").unwrap();
        let mut headers = map(&[("x-forwarded-client-cert", "URI=spiffe://a/admin")]);
        hand_on(&mut headers, &us, None);
        assert!(headers.is_empty());
        let caller = SpiffeId::parse("spiffe://a/x").unwrap();
        hand_on(&mut headers, &us, Some(&caller));
        let expected = "By=spiffe://east.example/zeugma/gateway;URI=spiffe://a/x";
        assert_eq!(headers.get(XFCC).unwrap(), expected);
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
        assert_eq!(authority(&request).as_deref(), Some("a.b:80"));
    }

    #[test]
    fn a_request_id_is_kept_only_if_it_is_short_and_printable() {
        let new = || 7;
        assert_eq!(request_id(&map(&[("x-request-id", "abc-1")]), new), "abc-1");
        let made = "00000000000000070000000000000007";
        assert_eq!(request_id(&map(&[("x-request-id", "a b")]), new), made);
        assert_eq!(
            request_id(&map(&[("x-request-id", &"a".repeat(129))]), new),
            made
        );
        assert_eq!(request_id(&HeaderMap::new(), new), made);
    }
}
