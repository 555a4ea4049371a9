//! Bodies: a request's, kept in part for another try and for mirrors; a response's, counted.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::mem;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{DuplexStream, ReadHalf};
use tokio::sync::oneshot;
use tokio::time::Sleep;
use tokio_util::io::poll_read_buf;

use super::compare::Primary;
use super::expect::{Answered, Gate, Stands};
use super::h2_client::StreamCount;
use super::record::Record;
use super::ruled::Ruled;
use super::stream::Incoming;
use super::{h1, headers};
use crate::runtime::InFlight;

/// What is read at once of another protocol.
const TUNNEL_BYTES: usize = 16 * 1024;

/// Frames that are kept however short they are, and for how many bytes each further one stands: a
/// frame of one byte is kept as a `Bytes` of 32, and holds what came with it.
const FRAMES_FREE: usize = 64;
const FRAME_BYTES: usize = 64;

/// How many frames are kept where so many bytes may be.
const fn frames_max(bytes_max: usize) -> usize {
    FRAMES_FREE + bytes_max / FRAME_BYTES
}

/// Why a body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    /// The other side's body failed, or the side that it goes to.
    #[error(transparent)]
    Http2(#[from] h2::Error),
    /// The other side's body failed, or the side that it goes to.
    #[error(transparent)]
    Http1(#[from] h1::Error),
    /// The other side is gone.
    #[error("no PING was answered")]
    Unanswered,
    /// The stream it was written to has ended.
    #[error("the stream has ended")]
    Closed,
    /// No byte came for the idle time.
    #[error("the endpoint sent nothing for {0:?}")]
    Silent(Duration),
    /// No byte of it was taken for the idle time.
    #[error("the caller read nothing for {0:?}")]
    Unread(Duration),
    /// A change took the caller's or the endpoint's right to go on.
    #[error("no longer allowed")]
    Refused,
    /// Another try took the body over.
    #[error("this try was given up; another one sends the body")]
    Superseded,
}

impl BodyError {
    /// How a stream is reset whose body ends by this.
    pub(crate) fn reset(&self) -> h2::Reason {
        match self {
            // Many take the one for an end, and the other says that nothing was processed (RFC 9113
            // §8.7): neither is so of a message that breaks off.
            Self::Http2(error) => match error.reason() {
                Some(h2::Reason::NO_ERROR | h2::Reason::REFUSED_STREAM) => {
                    h2::Reason::INTERNAL_ERROR
                }
                reason => reason.unwrap_or(h2::Reason::CANCEL),
            },
            Self::Superseded | Self::Closed | Self::Refused | Self::Unread(_) => h2::Reason::CANCEL,
            Self::Http1(_) | Self::Unanswered | Self::Silent(_) => h2::Reason::INTERNAL_ERROR,
        }
    }
}

/// A request body that can be sent again as long as all that was read of it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Source(Rc<RefCell<SourceState>>);

#[derive(Debug)]
struct SourceState {
    incoming: Incoming,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    keep_bytes_max: usize,
    trailers: Option<HeaderMap>,
    overflowed: bool,
    ended: bool,
    failed: bool,
    received: u64,
    progressed: Instant,
    starved: bool,
    /// The latest try.
    current: u32,
    /// The first of those that may read.
    oldest: u32,
    tees: Vec<Tee>,
    /// Keeps the body back until the endpoint asks for it.
    gate: Option<Gate>,
    /// What changes headers.
    ruled: Option<Ruled>,
    /// The headers that its caller was judged by.
    judged: Vec<Arc<str>>,
}

/// How the sending of a request's body stands, and since when.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Progress {
    /// All of it was read.
    Ended(Instant),
    /// More of it has to come from the caller.
    AwaitsCaller(Instant),
    /// The endpoint has to read what there is.
    AwaitsEndpoint(Instant),
}

/// A copy of the whole body for a mirror, if it is not over the limit.
#[derive(Debug)]
struct Tee {
    bytes: VecDeque<Bytes>,
    bytes_max: usize,
    left: usize,
    done: oneshot::Sender<Option<VecDeque<Bytes>>>,
}

impl Source {
    /// Takes the body of a request that came `now`; up to `keep_bytes_max` bytes are kept for another
    /// try.
    pub(crate) fn new(incoming: Incoming, keep_bytes_max: usize, now: Instant) -> Self {
        let ended = incoming.is_end_stream();
        Self(Rc::new(RefCell::new(SourceState {
            incoming,
            kept: Vec::new(),
            kept_bytes: 0,
            keep_bytes_max,
            trailers: None,
            overflowed: false,
            ended,
            failed: false,
            received: 0,
            progressed: now,
            starved: false,
            current: 0,
            oldest: 0,
            tees: Vec::new(),
            gate: None,
            ruled: None,
            judged: Vec::new(),
        })))
    }

    /// Keeps the body back until the endpoint asks for it.
    pub(crate) fn keep_back(&self, gate: Gate) {
        self.0.borrow_mut().gate = Some(gate);
    }

    /// Keeps from its trailers what the rule of the request takes out of headers.
    pub(super) fn is_led_by(&self, ruled: Ruled) {
        self.0.borrow_mut().ruled = Some(ruled);
    }

    /// Keeps from its trailers what policies were asked about it: some take them for headers.
    pub(super) fn is_judged_by<'n>(&self, names: impl Iterator<Item = &'n Arc<str>>) {
        self.0.borrow_mut().judged.extend(names.cloned());
    }

    /// What keeps the body back, as long as it does.
    pub(crate) fn gate(&self) -> Option<Gate> {
        let state = self.0.borrow();
        state.gate.clone().filter(Gate::is_closed)
    }

    /// Whether all that was read of the body is still kept.
    pub(crate) fn can_repeat(&self) -> bool {
        let state = self.0.borrow();
        !state.overflowed && !state.failed
    }

    /// Whether the caller's side of the body failed.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.borrow().failed
    }

    /// Bytes read from the caller.
    pub(crate) fn received(&self) -> u64 {
        self.0.borrow().received
    }

    /// How the sending of the body stands.
    pub(crate) fn progress(&self) -> Progress {
        let state = self.0.borrow();
        match (state.ended, state.starved) {
            (true, _) => Progress::Ended(state.progressed),
            (false, true) => Progress::AwaitsCaller(state.progressed),
            (false, false) => Progress::AwaitsEndpoint(state.progressed),
        }
    }

    /// The body for the next try; tries made before can no longer read.
    pub(crate) fn next_try(&self) -> Outgoing {
        let mut state = self.0.borrow_mut();
        state.current += 1;
        state.oldest = state.current;
        Outgoing::Request(Replay {
            source: self.clone(),
            nth: state.current,
            next: 0,
            trailers_sent: false,
            patience: None,
        })
    }

    /// Which one the next try is.
    pub(crate) fn next_nth(&self) -> u32 {
        self.0.borrow().current + 1
    }

    /// Lets the tries from this one on read, each for itself: of a body all of which is kept.
    pub(crate) fn keeps(&self, nth: u32) {
        let mut state = self.0.borrow_mut();
        if state.ended && !state.overflowed {
            state.oldest = state.oldest.min(nth);
        }
    }

    /// Whether all of the body has come and is kept.
    pub(crate) fn is_whole(&self) -> bool {
        let state = self.0.borrow();
        state.ended && !state.overflowed && !state.failed
    }

    /// Asks for a copy of the whole body; `None` comes if it is over `bytes_max` or fails.
    pub(crate) fn tee(&self, bytes_max: usize) -> oneshot::Receiver<Option<VecDeque<Bytes>>> {
        let (done, copy) = oneshot::channel();
        let mut state = self.0.borrow_mut();
        if state.ended {
            drop(done.send(Some(VecDeque::new())));
        } else {
            state.tees.push(Tee {
                bytes: VecDeque::new(),
                bytes_max,
                left: bytes_max,
                done,
            });
        }
        copy
    }
}

impl SourceState {
    fn take(&mut self, bytes: &Bytes) {
        if bytes.is_empty() {
            // Neither kept nor progress, however many come.
            return;
        }
        self.received += bytes.len() as u64;
        self.starved = false;
        self.progressed = Instant::now();
        if !self.overflowed {
            if self.kept_bytes + bytes.len() <= self.keep_bytes_max
                && self.kept.len() < frames_max(self.keep_bytes_max)
            {
                self.kept_bytes += bytes.len();
                self.kept.push(bytes.clone());
            } else {
                self.overflowed = true;
                self.kept = Vec::new();
            }
        }
        let mut nth = 0;
        while let Some(tee) = self.tees.get_mut(nth) {
            let frames = tee.bytes.len();
            match tee.left.checked_sub(bytes.len()) {
                Some(left) if frames < frames_max(tee.bytes_max) => {
                    tee.left = left;
                    tee.bytes.push_back(bytes.clone());
                    nth += 1;
                }
                Some(_) | None => {
                    let tee = self.tees.swap_remove(nth);
                    drop(tee.done.send(None));
                }
            }
        }
    }

    fn end(&mut self) {
        self.ended = true;
        self.progressed = Instant::now();
        for tee in self.tees.drain(..) {
            drop(tee.done.send(Some(tee.bytes)));
        }
    }
}

/// One try's view of a [`Source`].
#[derive(Debug)]
pub(crate) struct Replay {
    source: Source,
    nth: u32,
    next: usize,
    trailers_sent: bool,
    /// How long the endpoint has to ask for it.
    patience: Option<Pin<Box<Sleep>>>,
}

impl Replay {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.source.0.borrow_mut();
        if state.oldest > self.nth {
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(bytes) = state.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(bytes.clone()))));
        }
        if state.ended {
            let trailers = state.trailers.clone().filter(|_| !self.trailers_sent);
            self.trailers_sent = true;
            return Poll::Ready(trailers.map(|map| Ok(Frame::trailers(map))));
        }
        if let Some(gate) = &state.gate {
            match ready!(gate.poll(&mut self.patience, cx)) {
                Stands::Unwanted => return Poll::Ready(Some(Err(BodyError::Superseded))),
                Stands::Open | Stands::Closed => state.gate = None,
            }
        }
        match Pin::new(&mut state.incoming).poll_frame(cx) {
            Poll::Pending => {
                state.starved = true;
                Poll::Pending
            }
            Poll::Ready(None) => {
                state.end();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                state.failed = true;
                state.tees.clear();
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(mut frame))) => {
                if let Some(bytes) = frame.data_ref() {
                    state.take(bytes);
                    self.next = state.kept.len();
                } else if let Some(trailers) = frame.trailers_mut() {
                    headers::clean_trailers(trailers);
                    if let Some(ruled) = &state.ruled {
                        ruled.clean_request(trailers);
                    }
                    for name in &state.judged {
                        trailers.remove(&**name);
                    }
                    state.trailers = Some(trailers.clone());
                    state.end();
                    self.trailers_sent = true;
                }
                if state.incoming.is_end_stream() && !state.ended {
                    state.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let state = self.source.0.borrow();
        state.ended
            && self.next >= state.kept.len()
            && (self.trailers_sent || state.trailers.is_none())
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.source.0.borrow();
        if state.received == 0 {
            return state.incoming.size_hint();
        }
        let pending: u64 = state
            .kept
            .iter()
            .skip(self.next)
            .map(|bytes| bytes.len() as u64)
            .sum();
        match (state.ended, state.incoming.size_hint().exact()) {
            (true, _) => SizeHint::with_exact(pending),
            (false, Some(rest)) => SizeHint::with_exact(pending + rest),
            (false, None) => SizeHint::new(),
        }
    }
}

/// Every body that the gateway sends.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// What another protocol sends, on an HTTP/2 stream.
    Tunnel(Tunnel),
    /// None.
    Empty,
    /// One of ours, or a copy.
    Bytes(VecDeque<Bytes>),
    /// A request's on its way to an endpoint.
    Request(Replay),
    /// A response's on its way to the caller.
    Response(Box<Response>),
}

/// The bytes of another protocol on their way to the caller.
#[derive(Debug)]
pub(crate) struct Tunnel {
    from: ReadHalf<DuplexStream>,
    buffer: BytesMut,
    idle: Duration,
}

impl Tunnel {
    pub(crate) fn new(from: ReadHalf<DuplexStream>, idle: Duration) -> Self {
        Self {
            from,
            buffer: BytesMut::new(),
            idle,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.buffer.reserve(TUNNEL_BYTES);
        let read = poll_read_buf(Pin::new(&mut self.from), cx, &mut self.buffer);
        match ready!(read) {
            Ok(0) => Poll::Ready(None),
            Ok(_) => Poll::Ready(Some(Ok(Frame::data(self.buffer.split().freeze())))),
            Err(_broken) => Poll::Ready(Some(Err(BodyError::Closed))),
        }
    }
}

/// A response body that closes its record when it ends.
#[derive(Debug)]
pub(crate) struct Response {
    incoming: Incoming,
    record: Record,
    /// Held until the endpoint has nothing more to send.
    held: Option<Held>,
    /// How long the endpoint may be silent, and until when it may; most bodies are there at once,
    /// and need no timer.
    idle: Duration,
    silent_until: Option<Pin<Box<Sleep>>>,
    /// Whether something came since the timer was set.
    has_moved: bool,
    /// What had come of the request's body then.
    received: u64,
    /// The copies that are told of it.
    compared: Option<Box<Primary>>,
}

/// What a response in progress occupies, until dropped.
#[derive(Debug)]
#[expect(dead_code, reason = "held for their drop")]
pub(crate) struct Held {
    /// A place at the endpoint.
    pub(crate) in_flight: InFlight,
    /// A stream on its connection.
    pub(crate) stream: Option<StreamCount>,
    /// A body that was not asked for.
    pub(crate) unasked: Option<Answered>,
}

impl Outgoing {
    /// A body of ours.
    pub(crate) fn text(text: String) -> Self {
        Self::Bytes(VecDeque::from([Bytes::from(text)]))
    }

    /// How long whoever it is for may take nothing of it, where that is known.
    pub(crate) const fn patience(&self) -> Option<Duration> {
        match self {
            Self::Response(response) => Some(response.idle),
            Self::Tunnel(tunnel) => Some(tunnel.idle),
            Self::Empty | Self::Bytes(_) | Self::Request(_) => None,
        }
    }

    /// Closes the record of a response that nobody reads.
    pub(crate) fn unread(&mut self) {
        if let Self::Response(response) = self {
            response.fell_silent();
        }
    }

    /// An endpoint's body; when it ends, `record` is closed, what is `held` released and who has it
    /// `compared` told.
    pub(super) fn response(
        incoming: Incoming,
        record: Record,
        held: Held,
        idle: Duration,
        compared: Option<Box<Primary>>,
    ) -> Self {
        Self::Response(Box::new(Response {
            incoming,
            record,
            held: Some(held),
            idle,
            silent_until: None,
            has_moved: true,
            received: 0,
            compared,
        }))
    }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Tunnel(tunnel) => tunnel.poll(cx),
            Self::Bytes(bytes) => Poll::Ready(bytes.pop_front().map(|b| Ok(Frame::data(b)))),
            Self::Request(replay) => replay.poll(cx),
            Self::Response(response) => response.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Tunnel(_) => false,
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Request(replay) => replay.is_end_stream(),
            Self::Response(response) => response.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Tunnel(_) => SizeHint::new(),
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.iter().map(|b| b.len() as u64).sum()),
            Self::Request(replay) => replay.size_hint(),
            Self::Response(response) => response.incoming.size_hint(),
        }
    }
}

impl Response {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.record.poll_cut(cx).is_ready() {
            self.compared = None;
            self.finish(Ok(()));
            return Poll::Ready(Some(Err(BodyError::Refused)));
        }
        let mut polled = Pin::new(&mut self.incoming).poll_frame(cx);
        match &mut polled {
            Poll::Pending => {
                let idle = self.idle;
                let until = self
                    .silent_until
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                if mem::take(&mut self.has_moved) {
                    until.as_mut().reset(tokio::time::Instant::now() + idle);
                    self.received = self.record.received();
                }
                while until.as_mut().poll(cx).is_ready() {
                    // An upload that goes on is no silence: the endpoint may have nothing to say.
                    let received = self.record.received();
                    if received == mem::replace(&mut self.received, received) {
                        return Poll::Ready(Some(Err(self.fell_silent())));
                    }
                    until.as_mut().reset(tokio::time::Instant::now() + idle);
                }
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.has_moved = true;
                if let Some(bytes) = frame.data_ref() {
                    self.record.sent(bytes.len());
                    if let Some(compared) = &mut self.compared {
                        compared.data(bytes);
                    }
                } else if let Some(trailers) = frame.trailers_mut() {
                    if let Some(compared) = &mut self.compared {
                        compared.trailers(trailers);
                    }
                    headers::clean_trailers(trailers);
                    let request = self.record.request();
                    if let Some(ruled) = request.and_then(|request| request.ruled.as_ref()) {
                        ruled.clean_response(trailers);
                    }
                }
                if self.incoming.is_end_stream() {
                    self.finish(Ok(()));
                }
            }
            Poll::Ready(Some(Err(error))) => {
                let text = error.to_string();
                self.finish(Err(text));
            }
            Poll::Ready(None) => self.finish(Ok(())),
        }
        polled
    }

    fn fell_silent(&mut self) -> BodyError {
        self.held = None;
        self.compared = None;
        self.record.body_stalled();
        BodyError::Silent(self.idle)
    }

    fn finish(&mut self, ended: Result<(), String>) {
        self.held = None;
        if let (Some(compared), Ok(())) = (self.compared.take(), &ended) {
            compared.ends();
        }
        self.record.body_ended(ended);
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        // A body that is empty from the start may never be polled.
        if self.incoming.is_end_stream() {
            self.finish(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt as _;

    use super::*;
    use crate::http::flow::{Flow, Side};
    use crate::http::stream::Whose;

    const KEPT_MAX: usize = 1000;

    /// Reads a body that comes in so many frames of so many bytes; returns it, and the copy of it.
    async fn read(frames: usize, bytes: usize) -> (Source, Option<VecDeque<Bytes>>) {
        let (near, far) = tokio::io::duplex(1 << 16);
        let calling = async {
            let (mut caller, connection) = h2::client::handshake(near).await.unwrap();
            let sending = async {
                let request = http::Request::post("http://a.example/").body(()).unwrap();
                let (response, mut stream) = caller.send_request(request, false).unwrap();
                for nth in 1..=frames {
                    let bytes = Bytes::from(vec![7; bytes]);
                    stream.send_data(bytes, nth == frames).unwrap();
                }
                drop(response.await);
            };
            tokio::select! {
                _ = connection => {}
                () = sending => {}
            }
        };
        let reading = async {
            let mut builder = h2::server::Builder::new();
            builder.data_frame_budget(crate::http::DATA_FRAME_BUDGET);
            let mut connection = builder.handshake::<_, Bytes>(far).await.unwrap();
            let (request, _respond) = connection.accept().await.unwrap().unwrap();
            let (head, recv) = request.into_parts();
            let window = Flow::new(&Arc::default(), Side::Server, 1).open(1);
            let incoming = Incoming::h2(recv, window, &head.headers, Whose::Endpoint(None));
            let source = Source::new(incoming, KEPT_MAX, Instant::now());
            let copy = source.tee(KEPT_MAX);
            let body = source.next_try();
            let driving = std::future::poll_fn(|cx| connection.poll_accept(cx).map(drop));
            let all = tokio::select! {
                all = body.collect() => all.unwrap().to_bytes(),
                () = driving => panic!("the connection ended"),
            };
            assert_eq!(all.len(), frames * bytes);
            (source, copy.await.unwrap())
        };
        tokio::select! {
            read = reading => read,
            () = calling => panic!("the caller ended"),
        }
    }

    #[tokio::test]
    async fn short_frames_are_kept_within_a_bound_and_empty_ones_not_at_all() {
        let most = frames_max(KEPT_MAX);
        let (source, copy) = Box::pin(read(most, 1)).await;
        assert_eq!(source.0.borrow().kept.len(), most);
        assert_eq!(copy.unwrap().len(), most);
        let (source, copy) = Box::pin(read(most + 1, 1)).await;
        assert!(!source.can_repeat() && source.0.borrow().kept.is_empty());
        assert_eq!(copy, None);
        let (source, copy) = Box::pin(read(10, 0)).await;
        assert!(source.can_repeat() && source.0.borrow().kept.is_empty());
        assert_eq!(copy, Some(VecDeque::new()));
    }
}
