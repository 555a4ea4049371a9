//! HTTP/1.1 of callers: one request after the other, each answered before the next is read.
//!
//! ```text
//! head -> answer, and meanwhile: the body is read by whoever answers, or, once it has come,
//!         the caller is watched -> the response is written -> what is left of the body -> head ..
//! ```

use std::cell::RefCell;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, DATE, HeaderMap, HeaderName, TRAILER, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version, request};
use http_body::{Body, Frame, SizeHint};
use hyper::ext::ReasonPhrase;
use tokio::io::AsyncWrite;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::client::keeps;
use super::framing::{Decoded, Framing};
use super::head::{self, Awaited};
use super::sending::{Length, Sending, named_trailers};
use super::wire::{Rewound, Wire};
use super::{Error, Malformed};
use crate::http::body::{BodyError, Outgoing};
use crate::http::expect::{Here, Passing};
use crate::http::headers::Present;
use crate::http::{date, expect};
use crate::runtime::{Polled, others_first, unless_others_first};
use crate::transport::Readable;

/// What is read and dropped of a body that nobody wants, so that the connection can be used again.
const UNWANTED_BYTES_MAX: usize = 256 * 1024;

/// How long a caller is listened to that may still send when its connection ends, and how much is
/// read of it: it may first send all of a request that was answered early.
pub(super) const LINGER_MAX: Duration = Duration::from_secs(5);
pub(super) const LINGER_BYTES_MAX: usize = 16 << 20;

/// A caller's connection, shared by its task and the body that is read from it.
#[derive(Debug)]
pub(in crate::http) struct Served<S>(Rc<RefCell<State<S>>>);

#[derive(Debug)]
struct State<S> {
    /// `None` once it speaks another protocol.
    wire: Option<Wire<S>>,
    head_bytes_max: usize,
    awaited: Awaited,
    /// What the headers of the request under way have.
    present: Present,
    /// What is to come of the request's body.
    framing: Framing,
    asking: Asking,
    /// What an endpoint says before its answer; of HTTP/1.0 there is none.
    passing: Option<Here>,
    /// The request under way: a body of one before reads nothing.
    nth: u64,
    is_body_held: bool,
    /// The connection's task, where it waits for the body.
    waiter: Option<Waker>,
    is_leaving: bool,
    /// Of the answer under way the connection's end tells the end.
    is_open_ended: bool,
    /// The connection has ended for our part, and what still comes is dropped.
    is_lingering: bool,
    upgrade: Option<oneshot::Sender<Rewound<S>>>,
}

/// Whether the caller waits to be asked for its body (RFC 9110 §10.1.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Asking {
    /// It does not.
    #[default]
    Done,
    /// Some of the question is still to be sent.
    UnderWay,
    /// It does.
    Unasked,
}

/// What of a request decides how it is answered.
#[derive(Debug, Clone, Copy)]
struct Asked {
    is_head: bool,
    version: Version,
    is_kept: bool,
    takes_trailers: bool,
}

impl<S> Clone for Served<S> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<S: Readable + AsyncWrite> Served<S> {
    pub(in crate::http) fn new(stream: S, head_bytes_max: usize) -> Self {
        Self(Rc::new(RefCell::new(State {
            wire: Some(Wire::new(stream)),
            head_bytes_max,
            awaited: Awaited::default(),
            present: Present::default(),
            framing: Framing::Ended,
            asking: Asking::Done,
            passing: None,
            nth: 0,
            is_body_held: false,
            waiter: None,
            is_leaving: false,
            is_open_ended: false,
            is_lingering: false,
            upgrade: None,
        })))
    }

    /// What of the stream is still there.
    pub(in crate::http) fn stream(&self) -> Option<std::cell::Ref<'_, S>> {
        let state = std::cell::Ref::map(self.0.borrow(), |state| &state.wire);
        std::cell::Ref::filter_map(state, |wire| wire.as_ref().map(Wire::stream)).ok()
    }

    /// Whether the caller would take the end of the connection for that of an answer which is not
    /// complete.
    pub(in crate::http) fn is_open_ended(&self) -> bool {
        self.0.borrow().is_open_ended
    }

    /// Whether what comes is the rest of a request that was answered, and no head.
    pub(in crate::http) fn is_amid_body(&self) -> bool {
        let state = self.0.borrow();
        state.is_lingering || (state.is_body_held && !state.framing.is_ended())
    }

    /// Has the connection end behind the request under way; whoever drives it polls it after this.
    pub(in crate::http) fn leave(&self) {
        self.0.borrow_mut().is_leaving = true;
    }

    /// Carries it until it ends, or speaks another protocol.
    ///
    /// # Errors
    /// The caller broke a rule, which it is told, or the connection.
    ///
    /// # Cancel safety
    /// Dropping it closes the connection, once nobody holds a body of it.
    pub(in crate::http) async fn serve(
        &self,
        answer: impl AsyncFn(Request<RequestBody<S>>) -> Response<Outgoing>,
    ) -> Result<(), Error> {
        loop {
            let head = match std::future::poll_fn(|cx| self.poll_head(cx)).await {
                Ok(Some(head)) => head,
                Ok(None) => return self.close().await,
                Err(error) => {
                    self.refuse(&error).await;
                    return Err(error);
                }
            };
            let asked = Asked::by(&head, self.0.borrow().present);
            let body = self.body(head.version);
            let mut has_interims = false;
            // Put there by whichever poll it comes of: handed up through each of them, it would be
            // moved by each.
            let mut answered = Err(Error::Incomplete);
            {
                let mut answering = pin!(answer(Request::from_parts(head, body)));
                let until_answered = std::future::poll_fn(|cx| {
                    let poll = || answering.as_mut().poll(cx).map(|one| answered = Ok(one));
                    match unless_others_first(poll) {
                        Polled::Ready(()) => Poll::Ready(()),
                        // It is polled again at once.
                        Polled::OthersFirst => Poll::Pending,
                        Polled::Pending => {
                            if self.take_interims() {
                                has_interims = true;
                            }
                            if has_interims && let Poll::Ready(sent) = self.poll_interims(cx) {
                                if let Err(error) = sent {
                                    answered = Err(error);
                                    return Poll::Ready(());
                                }
                                has_interims = false;
                            }
                            self.poll_gone(cx).map(|gone| answered = Err(gone))
                        }
                    }
                });
                until_answered.await;
            }
            let response = answered?;
            // They leave with the answer.
            self.take_interims();
            let is_switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let (mut sending, is_kept) = self.begin_response(asked, response);
            let mut is_early = true;
            std::future::poll_fn(|cx| {
                if std::mem::take(&mut is_early) {
                    return others_first(cx);
                }
                Poll::Ready(())
            })
            .await;
            std::future::poll_fn(|cx| self.poll_send(&mut sending, cx)).await?;
            self.0.borrow_mut().is_open_ended = false;
            if is_switching {
                return self.switch();
            }
            // It may hold what is to come of the request.
            drop(sending);
            // In any case: what goes on to the endpoint must not be read away from under it.
            match std::future::poll_fn(|cx| self.poll_unwanted(cx)).await {
                Ok(true) if is_kept => {}
                Ok(true) if !self.has_more() => return self.close().await,
                Ok(_) => return Box::pin(self.linger()).await,
                Err(error) => {
                    Box::pin(self.linger()).await.ok();
                    return Err(error);
                }
            }
        }
    }

    /// The next head; `None` if the caller has no more, or is to have none.
    fn poll_head(&self, cx: &mut Context<'_>) -> Poll<Result<Option<request::Parts>, Error>> {
        let state = &mut *self.0.borrow_mut();
        let wire = state.wire.as_mut().ok_or(Error::Incomplete)?;
        loop {
            if let Some(mut head) = state
                .awaited
                .request(&mut wire.read, state.head_bytes_max)?
            {
                let present = Present::of(&head.headers);
                let stated = Framing::of_request(head.version, &mut head.headers, present)?;
                state.present = stated.present;
                state.framing = stated.framing;
                // The next connection reads on in the same block.
                wire.rest();
                state.is_leaving |= stated.is_doubtful;
                let asks = !state.framing.is_ended() && expect::expects_continue(&head.headers);
                // RFC 9110 §10.1.1: not of HTTP/1.0.
                state.asking = if asks && head.version == Version::HTTP_11 {
                    Asking::Unasked
                } else {
                    Asking::Done
                };
                return Poll::Ready(Ok(Some(head)));
            }
            if state.is_leaving && wire.read.is_empty() {
                return Poll::Ready(Ok(None));
            }
            if ready!(wire.poll_fill(cx))? == 0 {
                return Poll::Ready(if wire.read.is_empty() {
                    Ok(None)
                } else {
                    Err(Error::Incomplete)
                });
            }
        }
    }

    fn body(&self, version: Version) -> RequestBody<S> {
        let mut state = self.0.borrow_mut();
        // RFC 9110 §15.2: a client of HTTP/1.0 knows none.
        let before = state.passing.take();
        state.passing = (version == Version::HTTP_11).then(|| Here::after(before));
        state.nth += 1;
        state.is_body_held = true;
        RequestBody {
            state: Rc::clone(&self.0),
            nth: state.nth,
        }
    }

    /// Takes what an endpoint has said before its answer, to be written; whether there was anything.
    fn take_interims(&self) -> bool {
        let state = &mut *self.0.borrow_mut();
        let (Some(passing), Some(wire)) = (&state.passing, &mut state.wire) else {
            return false;
        };
        let mut has_some = false;
        while let Some(interim) = passing.next() {
            has_some = true;
            let out = wire.out();
            let reason = interim.extensions().get();
            write_status_line(out, Version::HTTP_11, interim.status(), reason);
            for (name, value) in interim.headers() {
                head::write_header(out, name.as_str(), value.as_bytes());
            }
            out.extend_from_slice(b"\r\n");
        }
        has_some
    }

    /// Writes what was taken.
    fn poll_interims(&self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.0.borrow_mut().wire {
            Some(wire) => wire.poll_write(cx).map_err(Error::from),
            None => Poll::Ready(Err(Error::Incomplete)),
        }
    }

    /// Ready once the caller has gone, as far as can be known: it sends nothing before the answer but
    /// its body and maybe further requests.
    fn poll_gone(&self, cx: &mut Context<'_>) -> Poll<Error> {
        let state = &mut *self.0.borrow_mut();
        let Some(wire) = &mut state.wire else {
            return Poll::Pending;
        };
        // Whoever holds the body reads it.
        if !state.framing.is_ended() {
            state.wait(cx);
            return Poll::Pending;
        }
        if !wire.read.is_empty() {
            return Poll::Pending;
        }
        match ready!(wire.poll_fill(cx)) {
            Ok(0) => Poll::Ready(Error::Incomplete),
            Ok(_) => Poll::Pending,
            Err(error) => Poll::Ready(error.into()),
        }
    }

    /// Writes the head of a response; says how its body goes, and whether the connection is kept.
    fn begin_response(&self, asked: Asked, response: Response<Outgoing>) -> (Sending, bool) {
        let state = &mut *self.0.borrow_mut();
        // RFC 9110 §10.1.1: the body may come all the same, or not. What is left of the question
        // leaves with the response.
        let is_unasked = std::mem::take(&mut state.asking) == Asking::Unasked;
        let Some(wire) = &mut state.wire else {
            return (Sending::nothing(), false);
        };
        let (head, body) = response.into_parts();
        let present = Present::of(&head.headers);
        let out = wire.out();
        write_status_line(out, asked.version, head.status, head.extensions.get());
        let is_kept = asked.is_kept
            && !is_unasked
            && !state.is_leaving
            && keeps(Version::HTTP_11, &head.headers, present);
        let headers = (&head.headers, present);
        let (sending, is_kept) = write_length(out, asked, head.status, headers, body, is_kept);
        for (name, value) in &head.headers {
            if *name != CONTENT_LENGTH {
                head::write_header(out, name.as_str(), value.as_bytes());
            }
        }
        if !present.has(Present::DATE) {
            date::with_now(|now| head::write_header(out, DATE.as_str(), now.as_bytes()));
        }
        if !present.has(Present::CONNECTION) {
            // RFC 9112 §9.3: each version is told what it does not take for granted.
            match (asked.version, is_kept) {
                (Version::HTTP_11, false) => head::write_header(out, "connection", b"close"),
                (Version::HTTP_10, true) => head::write_header(out, "connection", b"keep-alive"),
                _ => {}
            }
        }
        out.extend_from_slice(b"\r\n");
        state.is_open_ended = sending.is_until_close();
        (sending, is_kept)
    }

    fn poll_send(&self, sending: &mut Sending, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            let mut is_starved = false;
            // Not while the body is polled: it may read from this connection.
            while !sending.is_done() && !is_starved && self.may_gather() {
                match sending.poll_piece(cx) {
                    Poll::Ready(Ok(Some(piece))) => {
                        if let Some(wire) = &mut self.0.borrow_mut().wire {
                            wire.push(piece);
                        }
                    }
                    Poll::Ready(Ok(None)) => {}
                    Poll::Ready(Err(error)) => {
                        // What was gathered before leaves all the same, as far as it is taken at
                        // once: without the head the caller would think that nothing was answered.
                        if let Some(wire) = &mut self.0.borrow_mut().wire {
                            let _sent = wire.poll_write(cx);
                        }
                        return Poll::Ready(Err(error));
                    }
                    Poll::Pending => is_starved = true,
                }
            }
            let written = match &mut self.0.borrow_mut().wire {
                Some(wire) => wire.poll_write(cx)?,
                None => return Poll::Ready(Err(Error::Incomplete)),
            };
            if written.is_ready() && sending.is_done() {
                return Poll::Ready(Ok(()));
            }
            if written.is_pending() || is_starved {
                return self.poll_gone(cx).map(Err);
            }
        }
    }

    fn may_gather(&self) -> bool {
        let state = self.0.borrow();
        state.wire.as_ref().is_some_and(Wire::may_gather)
    }

    /// Waits for the end of a body that was answered before it had come; whether there is one.
    fn poll_unwanted(&self, cx: &mut Context<'_>) -> Poll<Result<bool, Error>> {
        let state = &mut *self.0.borrow_mut();
        if state.framing.is_ended() {
            return Poll::Ready(Ok(true));
        }
        if state.is_body_held {
            // The rest of it still goes to the endpoint.
            state.wait(cx);
            return Poll::Pending;
        }
        // One that was never asked for it may send it or not (RFC 9110 §10.1.1): it is closed too.
        let Some(wire) = &mut state.wire else {
            return Poll::Ready(Ok(false));
        };
        let mut dropped = 0;
        loop {
            match state.framing.decode(&mut wire.read)? {
                Decoded::End => return Poll::Ready(Ok(true)),
                Decoded::Trailers(_) => {}
                Decoded::Data(bytes) => dropped += bytes.len(),
                Decoded::Starved => match wire.poll_fill(cx)? {
                    Poll::Ready(1..) => {}
                    Poll::Ready(0) | Poll::Pending => return Poll::Ready(Ok(false)),
                },
            }
            if dropped > UNWANTED_BYTES_MAX {
                return Poll::Ready(Ok(false));
            }
        }
    }

    /// Gives the connection to whoever speaks another protocol on it.
    fn switch(&self) -> Result<(), Error> {
        let state = &mut *self.0.borrow_mut();
        let (wire, upgrade) = (state.wire.take(), state.upgrade.take());
        let (wire, upgrade) = (
            wire.ok_or(Error::Incomplete)?,
            upgrade.ok_or(Error::Incomplete)?,
        );
        let (stream, ahead) = wire.into_parts();
        // Nobody wants it if the endpoint is gone already.
        drop(upgrade.send(Rewound::new(stream, ahead)));
        Ok(())
    }

    /// Tells the caller which rule it broke, if it is one.
    async fn refuse(&self, error: &Error) {
        let Error::Malformed(rule) = error else {
            return;
        };
        let status = match rule {
            Malformed::TooLong | Malformed::TooMany => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Malformed::TargetTooLong => StatusCode::URI_TOO_LONG,
            Malformed::Head(_)
            | Malformed::LineEnd
            | Malformed::StartLine
            | Malformed::ContentLength
            | Malformed::TransferEncoding
            | Malformed::Chunk
            | Malformed::Trailers
            | Malformed::Interims => StatusCode::BAD_REQUEST,
        };
        let mut response = Response::new(Outgoing::Empty);
        *response.status_mut() = status;
        let asked = Asked {
            is_head: false,
            version: Version::HTTP_11,
            is_kept: false,
            takes_trailers: false,
        };
        self.0.borrow_mut().framing = Framing::Ended;
        let (mut sending, _) = self.begin_response(asked, response);
        // What it makes of it is its own affair.
        let sent = std::future::poll_fn(|cx| self.poll_send(&mut sending, cx)).await;
        if sent.is_ok() {
            Box::pin(self.linger()).await.ok();
        }
    }

    /// Whether something was read behind the request.
    fn has_more(&self) -> bool {
        let state = self.0.borrow();
        (state.wire.as_ref()).is_some_and(|wire| !wire.read.is_empty())
    }

    /// Ends the connection in order.
    async fn close(&self) -> Result<(), Error> {
        std::future::poll_fn(|cx| match &mut self.0.borrow_mut().wire {
            Some(wire) => {
                ready!(wire.poll_shutdown(cx))?;
                wire.drop_unread(cx);
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Ok(())),
        })
        .await
    }

    /// As [`close`](Self::close), where the caller may still send: it reads the answer before it is
    /// reset over what nobody reads (RFC 9112 §9.6).
    async fn linger(&self) -> Result<(), Error> {
        self.close().await?;
        self.0.borrow_mut().is_lingering = true;
        let mut left = LINGER_BYTES_MAX;
        let until_gone = std::future::poll_fn(|cx| match &mut self.0.borrow_mut().wire {
            Some(wire) => wire.poll_drop(&mut left, cx),
            None => Poll::Ready(()),
        });
        timeout(LINGER_MAX, until_gone).await.ok();
        Ok(())
    }
}

impl<S> State<S> {
    fn wait(&mut self, cx: &Context<'_>) {
        match &mut self.waiter {
            Some(waiter) if waiter.will_wake(cx.waker()) => {}
            waiter => *waiter = Some(cx.waker().clone()),
        }
    }
}

impl Asked {
    fn by(head: &request::Parts, present: Present) -> Self {
        Self {
            is_head: head.method == Method::HEAD,
            version: head.version,
            is_kept: keeps(head.version, &head.headers, present),
            takes_trailers: present.has(Present::TE)
                && crate::http::headers::takes_trailers(&head.headers),
        }
    }
}

fn write_status_line(
    out: &mut Vec<u8>,
    version: Version,
    status: StatusCode,
    reason: Option<&ReasonPhrase>,
) {
    let version = if version == Version::HTTP_10 {
        b"HTTP/1.0 "
    } else {
        b"HTTP/1.1 "
    };
    out.extend_from_slice(version);
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    let usual = status.canonical_reason().unwrap_or_default().as_bytes();
    out.extend_from_slice(reason.map_or(usual, ReasonPhrase::as_bytes));
    out.extend_from_slice(b"\r\n");
}

/// Writes how long the body is: once, whatever the headers say.
fn write_length(
    out: &mut Vec<u8>,
    asked: Asked,
    status: StatusCode,
    (headers, present): (&HeaderMap, Present),
    body: Outgoing,
    is_kept: bool,
) -> (Sending, bool) {
    // RFC 9112 §6.3 rule 1.
    let has_none = asked.is_head
        || status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED;
    let stated = if present.has(Present::CONTENT_LENGTH) {
        crate::http::headers::content_length(headers)
    } else {
        None
    };
    if has_none {
        // RFC 9110 §8.6: not of those that have none by definition; of others, what a GET would get.
        let may_state = !status.is_informational() && status != StatusCode::NO_CONTENT;
        if let Some(length) = stated.filter(|_| may_state) {
            head::write_number(out, CONTENT_LENGTH.as_str(), length);
        }
        return (Sending::nothing_of(body), is_kept);
    }
    let known = if body.is_end_stream() {
        Some(0)
    } else {
        body.size_hint().exact()
    };
    match (stated.or(known), asked.version) {
        (Some(length), _) => {
            head::write_number(out, CONTENT_LENGTH.as_str(), length);
            let sending = Sending::new(body, Length::Exact(length), Vec::new());
            (sending, is_kept)
        }
        (None, Version::HTTP_11) => {
            head::write_header(out, TRANSFER_ENCODING.as_str(), b"chunked");
            let trailers: Vec<HeaderName> = if asked.takes_trailers {
                named_trailers(&headers.get_all(TRAILER))
            } else {
                Vec::new()
            };
            (Sending::new(body, Length::Chunked, trailers), is_kept)
        }
        // RFC 9112 §6.1: HTTP/1.0 knows no chunks.
        (None, _) => (Sending::new(body, Length::UntilClose, Vec::new()), false),
    }
}

/// The body of a request, read from its connection by whoever holds it.
#[derive(Debug)]
pub(crate) struct RequestBody<S> {
    state: Rc<RefCell<State<S>>>,
    nth: u64,
}

impl<S> RequestBody<S> {
    /// What the headers of its request have.
    pub(in crate::http) fn present(&self) -> Present {
        self.state.borrow().present
    }

    /// Where an endpoint's interim responses go, if the caller knows any.
    pub(in crate::http) fn passing(&self) -> Option<Passing> {
        (self.state.borrow().passing.clone()).map(Passing::Here)
    }

    /// The connection, once it was told that it speaks another protocol.
    pub(in crate::http) fn on_upgrade(&self) -> oneshot::Receiver<Rewound<S>> {
        let (sender, receiver) = oneshot::channel();
        self.state.borrow_mut().upgrade = Some(sender);
        receiver
    }
}

impl<S> Drop for RequestBody<S> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        if state.nth != self.nth {
            return;
        }
        state.is_body_held = false;
        if let Some(waiter) = state.waiter.take() {
            waiter.wake();
        }
    }
}

impl<S: Readable + AsyncWrite> RequestBody<S> {
    fn poll_decoded(&self, cx: &mut Context<'_>) -> Poll<Result<Decoded, Error>> {
        let state = &mut *self.state.borrow_mut();
        if state.nth != self.nth {
            return Poll::Ready(Ok(Decoded::End));
        }
        let wire = state.wire.as_mut().ok_or(Error::Incomplete)?;
        if state.asking == Asking::Unasked {
            state.asking = Asking::Done;
            // RFC 9110 §10.1.1: not needed where it has begun to come.
            if wire.read.is_empty() {
                wire.out()
                    .extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                state.asking = Asking::UnderWay;
            }
        }
        if state.asking == Asking::UnderWay && wire.poll_write(cx)?.is_ready() {
            state.asking = Asking::Done;
        }
        loop {
            let decoded = state.framing.decode(&mut wire.read)?;
            if decoded != Decoded::Starved {
                if state.framing.is_ended()
                    && let Some(waiter) = state.waiter.take()
                {
                    waiter.wake();
                }
                return Poll::Ready(Ok(decoded));
            }
            if ready!(wire.poll_fill(cx))? == 0 {
                return Poll::Ready(Err(Error::Incomplete));
            }
        }
    }
}

impl<S: Readable + AsyncWrite> Body for RequestBody<S> {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_decoded(cx);
        if let Poll::Ready(Err(_)) = &polled {
            self.state.borrow_mut().is_leaving = true;
        }
        polled.map(|decoded| match decoded {
            Ok(Decoded::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Ok(Decoded::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(Decoded::End | Decoded::Starved) => None,
            Err(error) => Some(Err(error.into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        let state = self.state.borrow();
        state.nth != self.nth || state.framing.is_ended()
    }

    fn size_hint(&self) -> SizeHint {
        self.state.borrow().framing.size_hint()
    }
}
