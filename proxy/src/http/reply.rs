//! The gateway's own answers: short, with the request's ID; the log with the same ID says why.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode, Version};
use http_body::Body;
use zeugma_core::verdict::Reason;

use super::body::Outgoing;
use super::headers::{REQUEST_ID, RequestId, ZEUGMA_REASON};

/// The status by which a reason is told.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "reasons that never answer a request need no status of their own"
)]
pub(crate) const fn status(reason: Reason) -> StatusCode {
    match reason {
        Reason::AuthorityMissing | Reason::RequestMalformed | Reason::PortNeeded => {
            StatusCode::BAD_REQUEST
        }
        Reason::AuthorityUnknown | Reason::SniUnknown | Reason::NoRule => StatusCode::NOT_FOUND,
        Reason::Misdirected => StatusCode::MISDIRECTED_REQUEST,
        Reason::Denied
        | Reason::NotAllowed
        | Reason::NotExported
        | Reason::SourceRefused
        | Reason::IdentityDenied
        | Reason::NoLongerAllowed
        | Reason::NoLongerServed
        | Reason::CertificateRevoked
        | Reason::RevocationUnknown
        | Reason::AnchorRemoved => StatusCode::FORBIDDEN,
        Reason::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::UpstreamProtocol | Reason::UpstreamReset | Reason::UpstreamRefused => {
            StatusCode::BAD_GATEWAY
        }
        Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        // Everything else is a state of ours or of what is behind us that may pass.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

/// gRPC's code for a status (the mapping of gRPC's `http-grpc-status-mapping.md`).
const fn grpc_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "13",
        403 => "7",
        404 => "12",
        502..=504 => "14",
        _ => "2",
    }
}

/// The answer for `reason`; a gRPC caller gets it as a trailers-only response.
pub(crate) fn reply(reason: Reason, request_id: &RequestId, is_grpc: bool) -> Response<Outgoing> {
    let status = status(reason);
    let id = request_id.as_str();
    let text = format!("zeugma: {} (request {id})\n", status.as_str());
    let mut response = if is_grpc {
        let mut response = Response::new(Outgoing::Empty);
        *response.version_mut() = Version::HTTP_2;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert("grpc-status", HeaderValue::from_static(grpc_status(status)));
        if let Ok(message) = HeaderValue::try_from(text.trim_end()) {
            headers.insert("grpc-message", message);
        }
        response
    } else {
        let mut response = Response::new(Outgoing::text(text));
        *response.status_mut() = status;
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        response
    };
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, request_id.to_value());
    if reason == Reason::Drained {
        // Its listener is gone or going: the next request had better begin elsewhere.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if reason == Reason::NoLocalEndpoint {
        tell_no_local_endpoint(&mut response);
    }
    response
}

/// Leaves what a `HEAD` is answered: the length of the body, and none of it (RFC 9110 §9.3.2).
pub(crate) fn drop_body(response: &mut Response<Outgoing>) {
    if let Some(length) = response.body().size_hint().exact() {
        response
            .headers_mut()
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    *response.body_mut() = Outgoing::Empty;
}

/// Tells the calling gateway that no endpoint of this cluster saw the request.
pub(crate) fn tell_no_local_endpoint(response: &mut Response<Outgoing>) {
    tell(response, Reason::NoLocalEndpoint);
}

/// Tells the calling gateway why the request is to be tried elsewhere.
pub(crate) fn tell(response: &mut Response<Outgoing>, reason: Reason) {
    let reason = HeaderValue::from_static(reason.label());
    response.headers_mut().insert(ZEUGMA_REASON, reason);
}
