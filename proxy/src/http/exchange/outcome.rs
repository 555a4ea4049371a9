//! What became of the tries of a request: which answer is a failure, and what the caller gets of
//! those that failed.

use std::rc::Rc;

use http::{HeaderValue, Response, StatusCode};
use zeugma_core::snapshot::{Endpoint, Failure};
use zeugma_core::verdict::Reason;

use crate::account::Destination;
use crate::http::body::Held;
use crate::http::headers::{self, Present, ZEUGMA_REASON};
use crate::http::ruled::Ruled;
use crate::http::stream::Incoming;

pub(in crate::http) enum TryError {
    Failed(Failed),
    /// The caller's own body failed: nobody is left to answer.
    Caller,
    /// A limit of ours: no endpoint was asked.
    Shed(Reason),
    /// The endpoint's host is quiet: nothing was sent to it.
    Quiet,
}

impl TryError {
    /// A failure without a response that could be passed on.
    pub(in crate::http) const fn untold(failure: Failure, detail: String) -> Self {
        Self::Failed(Failed {
            failure,
            detail,
            response: None,
            is_paid: false,
        })
    }
}

/// What became of a request so far.
#[derive(Default)]
pub(super) struct Tries {
    pub(super) attempts: u32,
    /// Extra tries that count.
    pub(super) counted: u32,
    pub(super) failed: Option<Failed>,
}

pub(in crate::http) struct Failed {
    pub(super) failure: Failure,
    pub(super) detail: String,
    /// What the caller gets if no other endpoint answers better.
    pub(super) response: Option<Box<LastAnswer>>,
    /// Whether the try after it was allowed, and is still to be made: nothing was sent since, for want
    /// of room or because a host is quiet.
    pub(super) is_paid: bool,
}

impl Failed {
    pub(super) fn by(
        failure: Failure,
        response: Response<Incoming>,
        held: Held,
        (destination, ruled): (Option<Rc<Destination>>, Option<Ruled>),
    ) -> Self {
        let is_answer = matches!(
            failure,
            Failure::Status(_) | Failure::Unavailable | Failure::Grpc(_) | Failure::RefusedStream
        );
        let detail = format!("answered {}", response.status());
        Self {
            failure,
            detail,
            response: is_answer.then(|| {
                Box::new(LastAnswer {
                    response,
                    held,
                    destination,
                    ruled,
                })
            }),
            is_paid: false,
        }
    }

    /// This, after what failed before: an answer of that is better than none.
    pub(super) fn after(mut self, before: Option<Self>) -> Self {
        if self.response.is_none() {
            self.response = before.and_then(|before| before.response);
        }
        self
    }
}

/// An answer that another endpoint may better.
pub(super) struct LastAnswer {
    pub(super) response: Response<Incoming>,
    pub(super) held: Held,
    /// Whose it is.
    pub(super) destination: Option<Rc<Destination>>,
    pub(super) ruled: Option<Ruled>,
}

/// Whether an answer says how long the endpoint takes for its work: to refuse is fast.
pub(super) fn is_served(response: &Response<Incoming>) -> bool {
    let grpc = response.headers().get("grpc-status");
    response.status().as_u16() < 400 && grpc.is_none_or(|status| status == "0")
}

/// The failure that a response is a sign of, if it is.
pub(super) fn failure_in(
    endpoint: &Endpoint,
    response: &Response<Incoming>,
    asks_upgrade: bool,
) -> Option<Failure> {
    let (status, headers) = (response.status(), response.headers());
    if status == StatusCode::SWITCHING_PROTOCOLS {
        // RFC 9110 §15.2.2: only to what was asked for. Anything else would be a way around us.
        let agreed = asks_upgrade && headers::upgrades_to_websocket(headers);
        return (!agreed).then_some(Failure::Reset);
    }
    let present = response.body().present();
    // Of others than 200 the status counts (gRPC's `http-grpc-status-mapping.md`); 14 says the same, and a
    // peer's gateway says it so.
    let grpc = if present.has(Present::GRPC_STATUS) && !asks_upgrade {
        headers.get("grpc-status").map(HeaderValue::as_bytes)
    } else {
        None
    };
    let unavailable = grpc == Some(b"14");
    if endpoint.peer.is_some() && (status == StatusCode::SERVICE_UNAVAILABLE || unavailable) {
        let why = headers.get(&ZEUGMA_REASON).map(HeaderValue::as_bytes);
        let is = |reason: Reason| why == Some(reason.label().as_bytes());
        if is(Reason::NoLocalEndpoint) {
            return Some(Failure::NoLocalEndpoint);
        }
        // Its limits, not its health: to be tried elsewhere as a refused stream is.
        if Reason::SHED.into_iter().any(is) {
            return Some(Failure::RefusedStream);
        }
    }
    if unavailable {
        return Some(Failure::Unavailable);
    }
    match grpc.filter(|_| status == StatusCode::OK) {
        // Those that `on` can name; of others the endpoint has done what was asked.
        Some(b"1") => Some(Failure::Grpc(1)),
        Some(b"4") => Some(Failure::Grpc(4)),
        Some(b"8") => Some(Failure::Grpc(8)),
        Some(b"13") => Some(Failure::Grpc(13)),
        Some(_) | None => status
            .is_server_error()
            .then(|| Failure::Status(status.as_u16())),
    }
}

pub(super) const fn reason_of(failure: Failure) -> Reason {
    match failure {
        Failure::Connect => Reason::ConnectFailed,
        Failure::Timeout => Reason::UpstreamTimeout,
        Failure::NoLocalEndpoint => Reason::NoHealthyEndpoint,
        Failure::RefusedStream
        | Failure::Reset
        | Failure::Status(_)
        | Failure::Unavailable
        | Failure::Grpc(_) => Reason::UpstreamReset,
    }
}
