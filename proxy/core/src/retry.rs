//! Whether a failed try is followed by another, on another endpoint.

use std::time::Duration;

use crate::snapshot::{Failure, Retries};
use crate::time::Time;

mod budget;

pub use budget::{BUDGET_MIN, RetryBudget};

/// A try that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tried<'a> {
    /// How it failed.
    pub failure: Failure,
    /// The HTTP method; `None` for what is no request.
    pub method: Option<&'a str>,
    /// Extra tries already made that [`again`] called [`Again::Counted`].
    pub counted: u32,
    /// What is left of the request.
    pub request: RequestLeft,
    /// Whether the caller has seen a byte of a response.
    pub response: ResponseSeen,
    /// Whether it arrived from a peer's gateway, which tries again by itself.
    pub sender: Sender,
}

/// Whether a request can be sent once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestLeft {
    /// All of it is still here.
    Whole,
    /// Bytes that were sent are not kept.
    Gone,
}

/// Whether a caller has seen a byte of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResponseSeen {
    /// None.
    Nothing,
    /// At least one.
    Some,
}

/// Who sent a request to this gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Sender {
    /// A workload, or a mesh that is not ours.
    Caller,
    /// A peer's gateway: it has applied rules, mirrors and retries of its own.
    PeerGateway,
}

/// Why a request may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Again {
    /// No endpoint saw it: neither attempts nor budget are used, the plan is the only limit.
    Free,
    /// It may be done twice, and counts against attempts and budget.
    Counted,
}

/// Why a request is not tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stop {
    /// The caller has seen a part of a response.
    Responded,
    /// The request is not kept.
    RequestGone,
    /// The failure is none that is retried.
    Failure,
    /// The method is not idempotent (RFC 9110 §9.2.2).
    Method,
    /// Every attempt is used.
    Attempts,
    /// The budget is used.
    Budget,
}

impl Stop {
    /// The word in logs and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Responded => "responded",
            Self::RequestGone => "request-gone",
            Self::Failure => "failure",
            Self::Method => "method",
            Self::Attempts => "attempts",
            Self::Budget => "budget",
        }
    }
}

/// Whether a failed try is followed by another; an extra try that counts is taken from the budget.
///
/// # Errors
/// Why it is not.
pub fn again(
    retries: &Retries,
    budget: &RetryBudget,
    tried: &Tried<'_>,
    now: Time,
) -> Result<Again, Stop> {
    let again = allowed(retries, tried)?;
    if again == Again::Counted && !budget.take(retries.budget, now) {
        return Err(Stop::Budget);
    }
    Ok(again)
}

/// As [`again`], of a try that is not made yet: nothing is taken.
///
/// # Errors
/// As [`again`].
pub fn could_again(
    retries: &Retries,
    budget: &RetryBudget,
    tried: &Tried<'_>,
    now: Time,
) -> Result<Again, Stop> {
    let again = allowed(retries, tried)?;
    if again == Again::Counted && !budget.has_room(retries.budget, now) {
        return Err(Stop::Budget);
    }
    Ok(again)
}

/// What the budget is not asked of.
fn allowed(retries: &Retries, tried: &Tried<'_>) -> Result<Again, Stop> {
    if tried.response == ResponseSeen::Some {
        return Err(Stop::Responded);
    }
    if tried.request == RequestLeft::Gone {
        return Err(Stop::RequestGone);
    }
    if tried.failure.is_unseen() {
        return Ok(Again::Free);
    }
    let answered = matches!(
        tried.failure,
        Failure::Status(_) | Failure::Unavailable | Failure::Grpc(_)
    );
    if !retries.on.contains(&tried.failure) || (answered && tried.sender == Sender::PeerGateway) {
        return Err(Stop::Failure);
    }
    match tried.method {
        // Bytes of an unknown protocol may have been acted on.
        None => return Err(Stop::Method),
        Some(method) if retries.any_method || is_idempotent(method) => {}
        Some(_) => return Err(Stop::Method),
    }
    if tried.counted >= retries.attempts {
        return Err(Stop::Attempts);
    }
    Ok(Again::Counted)
}

/// Whether a request could be tried again that went down with its connection, if the budget allows.
#[must_use]
pub fn is_repeatable(retries: &Retries, method: &str) -> bool {
    retries.attempts > 0
        && retries.on.contains(&Failure::Reset)
        && (retries.any_method || is_idempotent(method))
}

/// After how long without an answer a request is sent to one more endpoint while the first is still at
/// it; `None`: never. Both do what is asked, without a failure that would be a reason for it, and the one
/// that is given up may do it late, after what the same caller asks for next: only safe methods are sent
/// so, whatever is retried. Of what a peer's gateway sends, that one does it.
#[must_use]
pub fn hedged_after(retries: &Retries, method: &str, sender: Sender) -> Option<Duration> {
    let is_hedged = sender == Sender::Caller && is_safe(method);
    retries.hedge_after.filter(|_| is_hedged)
}

/// Whether a request that has waited for so long is sent to one more endpoint, where `counted` extra
/// tries were made. It is taken from the budget once it is sent ([`take_hedge`]).
///
/// # Errors
/// Why it is not.
pub fn could_hedge(
    retries: &Retries,
    budget: &RetryBudget,
    (counted, request): (u32, RequestLeft),
    now: Time,
) -> Result<(), Stop> {
    if request == RequestLeft::Gone {
        return Err(Stop::RequestGone);
    }
    if counted >= retries.attempts {
        return Err(Stop::Attempts);
    }
    let has_room = budget.has_room(retries.budget, now);
    has_room.then_some(()).ok_or(Stop::Budget)
}

/// Takes from the budget what [`could_hedge`] found in it; whether it was still there.
#[must_use]
pub fn take_hedge(retries: &Retries, budget: &RetryBudget, now: Time) -> bool {
    budget.take(retries.budget, now)
}

/// Whether a request with this method asks for no change (RFC 9110 §9.2.1).
fn is_safe(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE")
}

/// Whether doing a request with this method twice is as doing it once (RFC 9110 §9.2.2).
#[must_use]
pub fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::cluster;

    fn get(failure: Failure) -> Tried<'static> {
        Tried {
            failure,
            method: Some("GET"),
            counted: 0,
            request: RequestLeft::Whole,
            response: ResponseSeen::Nothing,
            sender: Sender::Caller,
        }
    }

    fn ask(tried: &Tried<'_>) -> Result<Again, Stop> {
        let retries = cluster(&[&["a"]]).policy.retries.clone();
        again(&retries, &RetryBudget::default(), tried, Time::ZERO)
    }

    #[test]
    fn what_no_endpoint_saw_is_always_tried_again() {
        for failure in [
            Failure::Connect,
            Failure::RefusedStream,
            Failure::NoLocalEndpoint,
        ] {
            for method in [Some("POST"), Some("GET"), None] {
                let tried = Tried {
                    method,
                    counted: 99,
                    sender: Sender::PeerGateway,
                    ..get(failure)
                };
                assert_eq!(ask(&tried), Ok(Again::Free));
                let gone = Tried {
                    request: RequestLeft::Gone,
                    ..tried
                };
                assert_eq!(ask(&gone), Err(Stop::RequestGone));
                let seen = Tried {
                    response: ResponseSeen::Some,
                    ..tried
                };
                assert_eq!(ask(&seen), Err(Stop::Responded));
            }
        }
    }

    #[test]
    fn the_rest_needs_a_listed_failure_an_idempotent_method_and_an_attempt() {
        let reset = get(Failure::Reset);
        assert_eq!(ask(&reset), Ok(Again::Counted));
        assert_eq!(ask(&get(Failure::Timeout)), Err(Stop::Failure));
        assert_eq!(ask(&get(Failure::Status(500))), Err(Stop::Failure));
        assert_eq!(ask(&get(Failure::Status(503))), Ok(Again::Counted));
        assert_eq!(
            ask(&Tried {
                counted: 1,
                ..reset
            }),
            Ok(Again::Counted)
        );
        assert_eq!(
            ask(&Tried {
                counted: 2,
                ..reset
            }),
            Err(Stop::Attempts)
        );
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            assert_eq!(
                ask(&Tried {
                    method: Some(method),
                    ..reset
                }),
                Ok(Again::Counted)
            );
        }
        for method in [
            Some("POST"),
            Some("PATCH"),
            Some("CONNECT"),
            Some("get"),
            None,
        ] {
            assert_eq!(ask(&Tried { method, ..reset }), Err(Stop::Method));
        }
        let mut retries = cluster(&[&["a"]]).policy.retries.clone();
        retries.any_method = true;
        let post = Tried {
            method: Some("POST"),
            ..reset
        };
        let budget = RetryBudget::default();
        assert_eq!(
            again(&retries, &budget, &post, Time::ZERO),
            Ok(Again::Counted)
        );
    }

    #[test]
    fn what_is_repeatable_is_tried_again_after_a_reset_and_nothing_else_is() {
        let defaults = cluster(&[&["a"]]).policy.retries.clone();
        let mut any_method = defaults.clone();
        any_method.any_method = true;
        let mut none = defaults.clone();
        none.attempts = 0;
        let mut unlisted = defaults.clone();
        unlisted.on.retain(|on| *on != Failure::Reset);
        for retries in [defaults, any_method, none, unlisted] {
            for method in ["GET", "PUT", "POST", "PATCH", "CONNECT"] {
                let tried = Tried {
                    method: Some(method),
                    ..get(Failure::Reset)
                };
                let again = again(&retries, &RetryBudget::default(), &tried, Time::ZERO);
                assert_eq!(is_repeatable(&retries, method), again.is_ok(), "{method}");
            }
        }
    }

    #[test]
    fn a_peers_gateway_tries_statuses_again_by_itself() {
        let sender = Sender::PeerGateway;
        assert_eq!(
            ask(&Tried {
                sender,
                ..get(Failure::Status(503))
            }),
            Err(Stop::Failure)
        );
        assert_eq!(
            ask(&Tried {
                sender,
                ..get(Failure::Reset)
            }),
            Ok(Again::Counted)
        );
    }

    #[test]
    fn what_is_safe_and_kept_is_hedged_within_attempts_and_budget() {
        let after = Duration::from_millis(50);
        let mut retries = cluster(&[&["a"]]).policy.retries.clone();
        assert_eq!(hedged_after(&retries, "GET", Sender::Caller), None);
        retries.hedge_after = Some(after);
        // Whatever is retried.
        retries.any_method = true;
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert_eq!(hedged_after(&retries, method, Sender::Caller), Some(after));
            assert_eq!(hedged_after(&retries, method, Sender::PeerGateway), None);
        }
        for method in ["PUT", "DELETE", "POST", "PATCH", "CONNECT", "get"] {
            assert_eq!(hedged_after(&retries, method, Sender::Caller), None);
        }
        let budget = RetryBudget::default();
        let could = |counted, left| could_hedge(&retries, &budget, (counted, left), Time::ZERO);
        assert_eq!(could(0, RequestLeft::Gone), Err(Stop::RequestGone));
        assert_eq!(could(2, RequestLeft::Whole), Err(Stop::Attempts));
        for _ in 0..BUDGET_MIN {
            assert_eq!(could(1, RequestLeft::Whole), Ok(()));
            assert!(take_hedge(&retries, &budget, Time::ZERO));
        }
        assert_eq!(could(0, RequestLeft::Whole), Err(Stop::Budget));
        assert!(!take_hedge(&retries, &budget, Time::ZERO));
    }

    #[test]
    fn whether_a_try_could_be_made_takes_nothing_from_the_budget() {
        let retries = cluster(&[&["a"]]).policy.retries.clone();
        let (budget, reset) = (RetryBudget::default(), get(Failure::Reset));
        let could = || could_again(&retries, &budget, &reset, Time::ZERO);
        for _ in 0..BUDGET_MIN {
            assert_eq!(could(), Ok(Again::Counted));
            assert_eq!(could(), again(&retries, &budget, &reset, Time::ZERO));
        }
        assert_eq!(could(), Err(Stop::Budget));
        assert_eq!(
            could_again(&retries, &budget, &get(Failure::Connect), Time::ZERO),
            Ok(Again::Free)
        );
    }
}
