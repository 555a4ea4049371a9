//! Whether a failed try is followed by another, on another endpoint.

use crate::outlier::Window;
use crate::snapshot::{Failure, Retries};
use crate::time::Time;

/// The extra tries in 10 s that are always within the budget.
pub const BUDGET_MIN: u32 = 10;

/// Counts requests and extra tries of the last 10 s, so that tries do not multiply an outage.
///
/// One for each cluster and worker.
#[derive(Debug, Clone, Default)]
pub struct RetryBudget {
    /// Extra tries are its failures.
    window: Window,
}

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
    budget: &mut RetryBudget,
    tried: &Tried<'_>,
    now: Time,
) -> Result<Again, Stop> {
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
    if !budget.take(retries.budget, now) {
        return Err(Stop::Budget);
    }
    Ok(Again::Counted)
}

/// Whether doing a request with this method twice is as doing it once (RFC 9110 §9.2.2).
#[must_use]
pub fn is_idempotent(method: &str) -> bool {
    matches!(
        method,
        "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE"
    )
}

impl RetryBudget {
    /// Counts a request; extra tries are none.
    pub fn request(&mut self, now: Time) {
        self.window.add_request(now);
    }

    /// Takes an extra try, if `share` of the last 10 s' requests, or [`BUDGET_MIN`], allow one.
    #[must_use]
    pub fn take(&mut self, share: f64, now: Time) -> bool {
        let (requests, taken) = self.window.totals(now);
        let allowed = (f64::from(requests) * share).max(f64::from(BUDGET_MIN));
        let ok = f64::from(taken) + 1.0 <= allowed;
        if ok {
            self.window.add_failure(now);
        }
        ok
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        again(&retries, &mut RetryBudget::default(), tried, Time::ZERO)
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
        let mut budget = RetryBudget::default();
        assert_eq!(
            again(&retries, &mut budget, &post, Time::ZERO),
            Ok(Again::Counted)
        );
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
    fn the_budget_is_a_share_of_ten_seconds_and_at_least_ten() {
        let at = |second| Time::from_origin(Duration::from_secs(second));
        let mut budget = RetryBudget::default();
        let taken = |budget: &mut RetryBudget, second| {
            (0..1000).filter(|_| budget.take(0.2, at(second))).count()
        };
        assert_eq!(taken(&mut budget, 0), 10);
        assert_eq!(taken(&mut budget, 9), 0);
        assert_eq!(taken(&mut budget, 10), 10);
        for _ in 0..100 {
            budget.request(at(15));
        }
        // 20 % of 100, ten of which were taken at 10 s.
        assert_eq!(taken(&mut budget, 15), 10);
        assert_eq!(taken(&mut budget, 20), 10);
        assert_eq!(taken(&mut budget, 40), 10);
    }
}
