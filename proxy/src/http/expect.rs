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

/// What of them a worker keeps for further requests, of callers by HTTP/1.1.
const SPARE_MAX: usize = 64;

thread_local! {
    /// Ways to callers by HTTP/1.1 that are not in use: a connection that waits has none.
    static SPARE: RefCell<Vec<Passing>> = const { RefCell::new(Vec::new()) };
}

/// An endpoint's interim responses on their way to the caller.
#[derive(Debug, Clone, Default)]
pub(crate) struct Passing(Arc<Mutex<Passed>>);

#[derive(Debug, Default)]
struct Passed {
    heads: VecDeque<Response<()>>,
    count: usize,
    ruled: Option<Ruled>,
    waker: Option<Waker>,
}

impl Passing {
    /// One for a request, used before or not.
    pub(crate) fn spare() -> Self {
        SPARE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Keeps it for another request, if nobody holds it any more.
    pub(crate) fn give_back(mut self) {
        let Some(passed) = Arc::get_mut(&mut self.0) else {
            return;
        };
        let passed = passed.get_mut().unwrap_or_else(PoisonError::into_inner);
        passed.heads.clear();
        (passed.count, passed.ruled, passed.waker) = (0, None, None);
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_MAX {
                spare.push(self);
            }
        });
    }

    /// Keeps back what the rule of the request takes out of answers.
    pub(super) fn is_led_by(&self, ruled: Ruled) {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passed.ruled = Some(ruled);
    }

    /// Passes one on that is not only for us: 100 is answered by [`Interim`] and by `h1`, and 101 is none
    /// (RFC 9113 §8.6).
    pub(crate) fn push(&self, mut response: Response<()>) {
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
        // Nothing that holds it can fail.
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ruled) = &passed.ruled {
            ruled.clean_response(heads);
        }
        if passed.count < PASSED_MAX {
            passed.count += 1;
            passed.heads.push_back(response);
            if let Some(waker) = passed.waker.take() {
                waker.wake();
            }
        }
    }

    /// The next one, if there is one, for whoever polls what they come from and is woken by that.
    pub(crate) fn next(&self) -> Option<Response<()>> {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passed.heads.pop_front()
    }

    /// The next one, if there is one now.
    pub(crate) fn pop(&self, cx: &Context<'_>) -> Option<Response<()>> {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        passed.waker = Some(cx.waker().clone());
        passed.heads.pop_front()
    }
}
