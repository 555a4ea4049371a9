//! HTTP/1.1 to endpoints: a connection that carries one request after the other.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, TRAILER, TRANSFER_ENCODING};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::AsyncWrite;

use super::framing::{Decoded, Framing};
use super::head::{self, Awaited};
use super::sending::{Length, Sending, named_trailers};
use super::wire::Wire;
use super::{Error, Malformed};
use crate::http::body::{BodyError, Outgoing};
use crate::http::expect::{Gate, Passing};
use crate::http::headers::Present;
use crate::runtime::others_first;
use crate::transport::Readable;

/// Interim responses to one request.
const INTERIMS_MAX: u32 = 32;

/// A connection to an endpoint. Dropped within a message, it is closed.
#[derive(Debug)]
pub(in crate::http) struct Connection<S> {
    wire: Wire<S>,
    head_bytes_max: usize,
    sending: Sending,
    /// The request could not be sent to its end: there is nothing more to send.
    is_broken: bool,
    to_head: bool,
    gate: Option<Gate>,
    /// Takes interim responses on to the caller.
    passing: Option<Passing>,
    awaited: Awaited,
    interims: u32,
    framing: Framing,
    /// The rest of the response's body, where all of it came with the head.
    ahead: Bytes,
    /// What the headers of the response have.
    present: Present,
    /// Both ends keep the connection behind this response.
    is_kept: bool,
    /// What the stream had taken before this request.
    taken: u64,
    start: Start,
}

/// How far a request is before it is sent.
#[derive(Debug, Clone, Copy)]
enum Start {
    /// Others have their turn first.
    Early,
    /// They have had it.
    Due,
    /// It is sent as the other end takes it.
    Made,
}

impl<S: Readable + AsyncWrite> Connection<S> {
    pub(in crate::http) fn new(stream: S, head_bytes_max: usize) -> Self {
        Self {
            wire: Wire::new(stream),
            head_bytes_max,
            sending: Sending::nothing(),
            is_broken: false,
            to_head: false,
            gate: None,
            passing: None,
            awaited: Awaited::default(),
            interims: 0,
            framing: Framing::Ended,
            ahead: Bytes::new(),
            present: Present::default(),
            is_kept: true,
            taken: 0,
            start: Start::Made,
        }
    }

    pub(in crate::http) const fn stream(&self) -> &S {
        self.wire.stream()
    }

    /// The stream, and what was read behind the response that changed the protocol.
    pub(in crate::http) fn into_parts(self) -> (S, Bytes) {
        self.wire.into_parts()
    }

    /// Whether it may carry another request: the endpoint has not closed it, nor said anything.
    pub(in crate::http) fn is_ready(&mut self) -> bool {
        self.is_done() && self.wire.is_flushed() && self.wire.is_quiet()
    }

    /// Whether request and response are complete, and the connection outlives them.
    pub(in crate::http) const fn is_done(&self) -> bool {
        self.is_kept && !self.is_broken && !self.is_sending() && self.has_ended()
    }

    /// Whether some of the request is still to be sent.
    pub(in crate::http) const fn is_sending(&self) -> bool {
        !self.is_broken && (!self.sending.is_done() || !self.wire.is_flushed())
    }

    /// Whether nothing of the request has left.
    pub(in crate::http) const fn has_sent_nothing(&self) -> bool {
        self.wire.taken() == self.taken
    }

    /// Takes a request, of which `poll_head` sends what it can. The connection is ready.
    pub(in crate::http) fn begin(&mut self, request: Request<Outgoing>) {
        let (head, body) = request.into_parts();
        let asked = Asked {
            to_head: head.method == Method::HEAD,
            length: crate::http::headers::content_length(&head.headers),
            headers: &head.headers,
            passing: None,
        };
        self.begin_written(asked, body, None, |out| {
            head::write_request_line(out, &head.method, &head.uri);
            head::write_headers(out, &head.headers);
        });
    }

    /// As [`begin`](Self::begin); the head is written by `write`, but for what is said of the body.
    pub(in crate::http) fn begin_written(
        &mut self,
        asked: Asked<'_>,
        body: Outgoing,
        gate: Option<Gate>,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        self.to_head = asked.to_head;
        self.gate = gate;
        self.passing = asked.passing.cloned();
        self.interims = 0;
        self.taken = self.wire.taken();
        self.start = Start::Early;
        let out = self.wire.out();
        write(out);
        self.sending = length_of(&asked, body, out);
        out.extend_from_slice(b"\r\n");
    }

    /// Sends the request and waits for the head of its response; the rest is sent while the response
    /// is read.
    ///
    /// # Errors
    /// The connection is of no further use.
    pub(in crate::http) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, Error>> {
        match self.start {
            Start::Early => {
                self.start = Start::Due;
                return others_first(cx);
            }
            Start::Due => {
                self.start = Start::Made;
                // RFC 9112 §9.2: what has come before the request answers none. A new connection has
                // no other request that it could be for.
                if self.taken > 0 && !self.wire.is_quiet() {
                    self.is_broken = true;
                    return Poll::Ready(Err(Error::NotQuiet));
                }
            }
            Start::Made => {}
        }
        // An endpoint may answer without having read all of it, and close.
        let failed = self.poll_send(cx)?;
        loop {
            while let Some(response) = self
                .awaited
                .response(&mut self.wire.read, self.head_bytes_max)?
            {
                if let Some(response) = self.take_head(response)? {
                    self.take_ahead()?;
                    return Poll::Ready(Ok(response));
                }
            }
            match self.wire.poll_fill(cx) {
                Poll::Ready(Ok(1..)) => {}
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(failed.unwrap_or(Error::Incomplete))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Sends what can be sent; what of the stream fails does not keep a response from being read.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Result<Option<Error>, Error> {
        if !self.is_sending() {
            return Ok(None);
        }
        match self.poll_rest(cx) {
            Poll::Pending | Poll::Ready(Ok(())) => Ok(None),
            Poll::Ready(Err(error @ Error::Io(_))) => {
                self.sending = Sending::nothing();
                Ok(Some(error))
            }
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    /// Sends the rest of the request.
    ///
    /// # Errors
    /// It cannot be sent.
    pub(in crate::http) fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        let sent = ready!(self.poll_pieces(cx));
        self.is_broken |= sent.is_err();
        Poll::Ready(sent)
    }

    fn poll_pieces(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            let mut is_starved = false;
            while !self.sending.is_done() && !is_starved && self.wire.may_gather() {
                match self.sending.poll_piece(cx)? {
                    Poll::Ready(Some(piece)) => self.wire.push(piece),
                    Poll::Ready(None) => {}
                    Poll::Pending => is_starved = true,
                }
            }
            ready!(self.wire.poll_write(cx))?;
            if self.sending.is_done() {
                return Poll::Ready(Ok(()));
            }
            if is_starved {
                return Poll::Pending;
            }
        }
    }

    /// Takes the head of the response, unless it is an interim one.
    fn take_head(&mut self, mut response: Response<()>) -> Result<Option<Response<()>>, Error> {
        let status = response.status();
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            // RFC 9110 §15.2: any number of them, which a proxy passes on.
            self.interims += 1;
            if self.interims > INTERIMS_MAX {
                return Err(Malformed::Interims.into());
            }
            if status == StatusCode::CONTINUE
                && let Some(gate) = &self.gate
            {
                gate.open();
            }
            if let Some(passing) = &self.passing {
                passing.push(response);
            }
            return Ok(None);
        }
        let version = response.version();
        let headers = response.headers_mut();
        let present = Present::of(headers);
        let stated = Framing::of_response(self.to_head, status, version, headers, present)?;
        self.framing = stated.framing;
        self.present = stated.present;
        self.is_kept = keeps(version, headers, present)
            && status != StatusCode::SWITCHING_PROTOCOLS
            && !stated.is_doubtful
            && !matches!(self.framing, Framing::UntilClose);
        Ok(Some(response))
    }

    /// Takes all of a body that is there already, so that the next connection reads on in the same block:
    /// others have their turn before this one is sent.
    fn take_ahead(&mut self) -> Result<(), Error> {
        let read = &mut self.wire.read;
        if let Framing::Exact(left) = self.framing
            && left <= read.len() as u64
            && let Decoded::Data(bytes) = self.framing.decode(read)?
        {
            self.ahead = bytes;
            self.wire.rest();
        }
        Ok(())
    }

    /// The next piece of the response's body.
    pub(in crate::http) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_decoded(cx);
        if let Poll::Ready(Err(_)) = &polled {
            self.framing = Framing::Ended;
            self.ahead = Bytes::new();
            self.is_kept = false;
        }
        polled.map(|decoded| match decoded {
            Ok(Decoded::Data(bytes)) => Some(Ok(Frame::data(bytes))),
            Ok(Decoded::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
            Ok(Decoded::End | Decoded::Starved) => None,
            Err(error) => Some(Err(error.into())),
        })
    }

    fn poll_decoded(&mut self, cx: &mut Context<'_>) -> Poll<Result<Decoded, Error>> {
        // What is answered may depend on what comes of the request.
        self.poll_send(cx)?;
        if !self.ahead.is_empty() {
            return Poll::Ready(Ok(Decoded::Data(std::mem::take(&mut self.ahead))));
        }
        loop {
            let decoded = self.framing.decode(&mut self.wire.read)?;
            if decoded != Decoded::Starved {
                return Poll::Ready(Ok(decoded));
            }
            if ready!(self.wire.poll_fill(cx))? == 0 {
                return Poll::Ready(match self.framing {
                    Framing::UntilClose => {
                        self.framing = Framing::Ended;
                        Ok(Decoded::End)
                    }
                    // RFC 9112 §8: what is short of its length is incomplete.
                    Framing::Exact(_) | Framing::Chunked(_) | Framing::Ended => {
                        Err(Error::Incomplete)
                    }
                });
            }
        }
    }

    /// What the headers of the response have.
    pub(in crate::http) const fn present(&self) -> Present {
        self.present
    }

    pub(in crate::http) const fn has_ended(&self) -> bool {
        self.framing.is_ended() && self.ahead.is_empty()
    }

    pub(in crate::http) fn size_hint(&self) -> SizeHint {
        if self.ahead.is_empty() {
            self.framing.size_hint()
        } else {
            SizeHint::with_exact(self.ahead.len() as u64)
        }
    }

    /// Gives back what only a message under way needs.
    pub(in crate::http) fn rest(&mut self) {
        self.gate = None;
        self.passing = None;
        self.wire.rest();
    }
}

/// What of a request's head decides how it is sent and answered.
#[derive(Debug)]
pub(crate) struct Asked<'a> {
    pub(in crate::http) to_head: bool,
    /// The length that the head says.
    pub(in crate::http) length: Option<u64>,
    pub(in crate::http) headers: &'a HeaderMap,
    /// What takes interim responses on to its caller, if something does.
    pub(in crate::http) passing: Option<&'a Passing>,
}

/// How the body of a request is sent, which its head has to say.
fn length_of(asked: &Asked<'_>, body: Outgoing, out: &mut Vec<u8>) -> Sending {
    if body.is_end_stream() {
        // RFC 9110 §8.6: what a caller said of none is said already.
        return Sending::nothing();
    }
    if let Some(stated) = asked.length {
        return Sending::new(body, Length::Exact(stated), Vec::new());
    }
    match body.size_hint().exact() {
        Some(length) => {
            head::write_number(out, CONTENT_LENGTH.as_str(), length);
            Sending::new(body, Length::Exact(length), Vec::new())
        }
        None => {
            head::write_header(out, TRANSFER_ENCODING.as_str(), b"chunked");
            Sending::new(
                body,
                Length::Chunked,
                named_trailers(&asked.headers.get_all(TRAILER)),
            )
        }
    }
}

/// Whether the other end keeps the connection (RFC 9112 §9.3).
pub(super) fn keeps(version: Version, headers: &HeaderMap, present: Present) -> bool {
    if !present.has(Present::CONNECTION) {
        return version == Version::HTTP_11;
    }
    let says = |option: &str| {
        headers.get_all(CONNECTION).iter().any(|value| {
            let mut options = value.as_bytes().split(|byte| *byte == b',');
            options.any(|one| one.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
        })
    };
    if version == Version::HTTP_11 {
        !says("close")
    } else {
        says("keep-alive") && !says("close")
    }
}
