//! Interim responses. `expect: 100-continue`: a caller is asked for its body when the endpoint asks
//! for it (RFC 9110 §10.1.1), or is slow to. Other interim responses are passed on (§15.2).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderMap, Response, StatusCode, header};
use tokio::time::Sleep;

use super::headers;
use super::ruled::Ruled;

/// An endpoint that has not asked by then is sent the body: some never ask (RFC 9110 §10.1.1: not
/// to be waited for indefinitely).
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether a message waits to be asked for its body.
pub(crate) fn expects_continue(headers: &HeaderMap) -> bool {
    headers
        .get(header::EXPECT)
        .is_some_and(|expect| expect.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Keeps a body back until the endpoint asks for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stands: Stands,
    waker: Option<Waker>,
}

/// How a gate stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Stands {
    /// The endpoint has not asked.
    #[default]
    Closed,
    /// The body may go.
    Open,
    /// The endpoint answered without it.
    Unwanted,
}

impl Gate {
    /// Lets the body go.
    pub(crate) fn open(&self) {
        self.set(Stands::Open);
    }

    fn set(&self, stands: Stands) {
        // Nothing that holds it can fail.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.stands == Stands::Closed {
            state.stands = stands;
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }

    /// Whether it is not open yet.
    pub(crate) fn is_closed(&self) -> bool {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.stands == Stands::Closed
    }

    /// Waits until it is no longer closed, [`PATIENCE`] at most.
    pub(crate) fn poll(
        &self,
        patience: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<Stands> {
        let patience = patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(PATIENCE)));
        if patience.as_mut().poll(cx).is_ready() {
            self.open();
        }
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.stands {
            Stands::Closed => {
                state.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            stands @ (Stands::Open | Stands::Unwanted) => Poll::Ready(stands),
        }
    }
}

/// Gives up a body that nobody asked for, with the end of the answer.
#[derive(Debug)]
pub(crate) struct Answered(pub(crate) Gate);

impl Drop for Answered {
    fn drop(&mut self) {
        self.0.set(Stands::Unwanted);
    }
}

/// Asks an HTTP/2 caller for its body when it is read for the first time; `h1` does so by itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interim(Rc<RefCell<Asking>>);

#[derive(Debug, Default)]
struct Asking {
    asks: bool,
    waker: Option<Waker>,
}

impl Interim {
    /// Says that the body is read.
    pub(crate) fn ask(&self) {
        let mut asking = self.0.borrow_mut();
        asking.asks = true;
        if let Some(waker) = asking.waker.take() {
            waker.wake();
        }
    }

    /// Whether the caller has to be asked now.
    pub(crate) fn take(&self, cx: &Context<'_>) -> bool {
        let mut asking = self.0.borrow_mut();
        asking.waker = Some(cx.waker().clone());
        std::mem::take(&mut asking.asks)
    }
}

/// Interim responses of one request that are passed on; the rest is dropped.
const PASSED_MAX: usize = 16;

/// An endpoint's interim responses on their way to the caller.
#[derive(Debug, Clone)]
pub(crate) enum Passing {
    Here(Here),
    Across(Across),
}

/// The way to a caller by HTTP/1.1, whose own task asks the endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Here(Rc<RefCell<Way>>);

#[derive(Debug, Default)]
struct Way {
    passed: Passed,
    /// Where an endpoint by HTTP/2 says them.
    across: Option<Across>,
}

/// The way to a caller by HTTP/2, or from an endpoint by it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Across(Rc<RefCell<Passed>>);

#[derive(Debug, Default)]
struct Passed {
    heads: VecDeque<Response<()>>,
    count: usize,
    ruled: Option<Ruled>,
    waker: Option<Waker>,
}

/// Who is told of what comes ahead of the answer to a request by HTTP/2: interim responses.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// By 100: the endpoint asks for the body.
    pub(crate) gate: Option<Gate>,
    /// By others.
    pub(crate) passing: Option<Across>,
}

impl Passing {
    /// Keeps back what the rule of the request takes out of answers.
    pub(super) fn is_led_by(&self, ruled: Ruled) {
        match self {
            Self::Here(Here(way)) => way.borrow_mut().passed.ruled = Some(ruled),
            Self::Across(Across(passed)) => passed.borrow_mut().ruled = Some(ruled),
        }
    }

    /// Passes one on that is not only for us: 100 is answered by [`Interim`] and by `h1`, and 101 is none
    /// (RFC 9113 §8.6).
    pub(crate) fn push(&self, response: Response<()>) {
        match self {
            Self::Here(Here(way)) => way.borrow_mut().passed.push(response),
            Self::Across(across) => across.push(response),
        }
    }

    /// The same for an endpoint by HTTP/2.
    pub(super) fn across(&self) -> Across {
        match self {
            Self::Here(Here(way)) => {
                let Way { passed, across } = &mut *way.borrow_mut();
                let new = || {
                    let new = Across::default();
                    new.0.borrow_mut().ruled.clone_from(&passed.ruled);
                    new
                };
                across.get_or_insert_with(new).clone()
            }
            Self::Across(across) => across.clone(),
        }
    }
}

impl Here {
    /// The one for the next request: of the request before, if nobody holds it any more.
    pub(crate) fn after(before: Option<Self>) -> Self {
        let mut this = before.unwrap_or_default();
        match Rc::get_mut(&mut this.0).map(RefCell::get_mut) {
            Some(way) if !way.is_used() => {}
            Some(way) => *way = Way::default(),
            None => this = Self::default(),
        }
        this
    }

    /// The next one, if there is one, for whoever polls what they come from and is woken by that.
    pub(crate) fn next(&self) -> Option<Response<()>> {
        let Way { passed, across } = &mut *self.0.borrow_mut();
        let own = passed.heads.pop_front();
        own.or_else(|| across.as_ref()?.0.borrow_mut().heads.pop_front())
    }
}

impl Way {
    const fn is_used(&self) -> bool {
        self.passed.count > 0 || self.passed.ruled.is_some() || self.across.is_some()
    }
}

impl Across {
    /// As [`Passing::push`].
    pub(crate) fn push(&self, response: Response<()>) {
        self.0.borrow_mut().push(response);
    }

    /// The next one, if there is one now.
    pub(crate) fn pop(&self, cx: &Context<'_>) -> Option<Response<()>> {
        let mut passed = self.0.borrow_mut();
        passed.waker = Some(cx.waker().clone());
        passed.heads.pop_front()
    }
}

impl Passed {
    fn push(&mut self, mut response: Response<()>) {
        let status = response.status();
        if status == StatusCode::CONTINUE || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        let heads = response.headers_mut();
        headers::remove_hop_by_hop(heads);
        // RFC 9110 §8.6: not of these; some take it for the length of what follows. The other is between
        // gateways.
        heads.remove(header::CONTENT_LENGTH);
        heads.remove(&headers::ZEUGMA_REASON);
        if let Some(ruled) = &self.ruled {
            ruled.clean_response(heads);
        }
        if self.count < PASSED_MAX {
            self.count += 1;
            self.heads.push_back(response);
            if let Some(waker) = self.waker.take() {
                waker.wake();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: StatusCode) -> Response<()> {
        let mut response = Response::new(());
        *response.status_mut() = status;
        response
    }

    #[test]
    fn what_is_said_to_one_request_is_not_said_to_the_next() {
        let hints = || said(StatusCode::EARLY_HINTS);
        let first = Here::after(None);
        for _ in 0..2 * PASSED_MAX {
            Passing::Here(first.clone()).push(hints());
        }
        let second = Here::after(Some(first));
        assert!(second.next().is_none());
        // Somebody is late with it.
        let late = Passing::Here(second.clone());
        let third = Here::after(Some(second));
        late.push(hints());
        assert!(third.next().is_none());
        for _ in 0..2 * PASSED_MAX {
            Passing::Here(third.clone()).push(hints());
        }
        assert_eq!(std::iter::from_fn(|| third.next()).count(), PASSED_MAX);
    }

    #[test]
    fn what_an_endpoint_says_by_http2_comes_to_a_caller_by_http1() {
        let way = Here::after(None);
        let across = Passing::Here(way.clone()).across();
        // RFC 9110 §15.2.1: asks for the body, which others do.
        across.push(said(StatusCode::CONTINUE));
        across.push(said(StatusCode::EARLY_HINTS));
        assert_eq!(way.next().unwrap().status(), StatusCode::EARLY_HINTS);
        assert!(way.next().is_none());
    }
}
