//! gRPC's framing: requests out of a body, and a body of responses whose parts are shared with every
//! other stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt::Display;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::{Code, Status};

use crate::session::server::{Protocol, Response};

/// Before each message: whether it is compressed, and how long it is.
const PREFIX: usize = 5;
/// A request up to this long needs no leave to be read.
const SMALL: usize = 64 * 1024;
/// What of a request comes at once, at most (RFC 9113 section 6.5.2, SETTINGS_MAX_FRAME_SIZE).
const FRAME_MAX: usize = 16 * 1024;
/// How long the rest of a request may take.
const REST: Duration = Duration::from_secs(30);
/// How long a long request waits until it may be read.
const TURN: Duration = Duration::from_secs(60);
/// What is handed on at once: so much a peer takes each time for what it was told to move on.
const CHUNK: usize = 16 * 1024;
/// How long a peer may take nothing of how a stream ended, and of what was told before.
pub(super) const END_MOVES: Duration = Duration::from_secs(30);

/// The requests of a stream.
pub(super) struct Requests<B = Incoming> {
    body: B,
    read: BytesMut,
    bytes_max: usize,
    /// What all streams of the caller, and all together, may hold of long requests, in KiB.
    memory: [Arc<Semaphore>; 2],
    waits: Option<Waits>,
    held: Option<Held>,
    begun: Option<Instant>,
}

type Held = [OwnedSemaphorePermit; 2];

/// A long request that waits until it may be read: its place in the queue stays, whatever else comes
/// meanwhile.
struct Waits {
    turn: Pin<Box<dyn Future<Output = Result<Held, AcquireError>> + Send>>,
    until: Instant,
}

impl Waits {
    fn new(len: usize, [of_caller, of_all]: [Arc<Semaphore>; 2]) -> Self {
        let kib = u32::try_from(len.div_ceil(1024)).unwrap_or(u32::MAX);
        let turn = async move {
            let of_caller = of_caller.acquire_many_owned(kib).await?;
            Ok([of_caller, of_all.acquire_many_owned(kib).await?])
        };
        Self {
            turn: Box::pin(turn),
            until: Instant::now() + TURN,
        }
    }
}

impl<B> Requests<B>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    pub(super) fn new(body: B, bytes_max: usize, memory: [Arc<Semaphore>; 2]) -> Self {
        Self {
            body,
            read: BytesMut::new(),
            bytes_max,
            memory,
            waits: None,
            held: None,
            begun: None,
        }
    }

    /// Waits until the first bytes of the next one have come, or the end.
    ///
    /// # Errors
    /// Where the connection fails.
    pub(super) async fn arrive(&mut self) -> Result<(), Status> {
        if !self.read.is_empty() {
            return Ok(());
        }
        match self.body.frame().await {
            None => Ok(()),
            Some(Err(error)) => Err(Status::cancelled(error.to_string())),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    self.begun = Some(Instant::now());
                    self.read.extend_from_slice(&data);
                }
                Ok(())
            }
        }
    }

    /// The next one; `None` where the client has ended its side.
    ///
    /// # Cancel safety
    /// What was read is kept for the next call.
    ///
    /// # Errors
    /// One that is compressed, too long, not ended in time, or cut off.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            let wanted = self.wanted()?;
            if let Some(len) = wanted
                && self.read.len() >= PREFIX + len
            {
                self.read.advance(PREFIX);
                let message = self.read.split_to(len).freeze();
                self.begun = (!self.read.is_empty()).then(Instant::now);
                return Ok(Some(message));
            }
            if let Some(len) = wanted.filter(|len| *len > SMALL && self.held.is_none()) {
                // Until then the client's window is all that it can send.
                let memory = &self.memory;
                let waits = (self.waits).get_or_insert_with(|| Waits::new(len, memory.clone()));
                let held = timeout_at(waits.until, waits.turn.as_mut()).await;
                self.waits = None;
                let held = held.map_err(|_elapsed| {
                    Status::unavailable("too many long requests are read at once")
                })?;
                self.held = Some(held.map_err(|_closed| Status::unavailable("draining"))?);
                self.begun = Some(Instant::now());
                // With its end the beginning of the next one comes: for that alone all would be copied.
                self.read.reserve(PREFIX + len + FRAME_MAX);
            }
            let frame = match self.begun {
                None => self.body.frame().await,
                Some(begun) => (timeout_at(begun + REST, self.body.frame()).await)
                    .map_err(|_elapsed| Status::deadline_exceeded("half a request"))?,
            };
            match frame {
                None if self.read.is_empty() => return Ok(None),
                None => return Err(Status::data_loss("the last request is cut off")),
                Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.begun = self.begun.or_else(|| Some(Instant::now()));
                        self.read.extend_from_slice(&data);
                    }
                }
            }
        }
    }

    /// The next one; `None` also where the client gives the stream up.
    ///
    /// # Errors
    /// As [`next`](Self::next), and where none comes for so long: that it is `missing`.
    pub(super) async fn within(
        &mut self,
        patience: Duration,
        missing: &'static str,
        tell: &mpsc::Sender<Telling>,
    ) -> Result<Option<Bytes>, Status> {
        tokio::select! {
            next = timeout(patience, self.next()) => {
                next.map_err(|_elapsed| Status::deadline_exceeded(missing))?
            }
            () = tell.closed() => Ok(None),
        }
    }

    /// The request was used: its memory is free again, but for what came of the next one.
    pub(super) fn done(&mut self) {
        if self.held.is_some() || self.read.is_empty() {
            // It came in the room of the long one, all of which it would keep until its turn.
            self.read = BytesMut::from(&*self.read);
        }
        self.held = None;
    }

    fn wanted(&self) -> Result<Option<usize>, Status> {
        let Some(mut prefix) = self.read.get(..PREFIX) else {
            return Ok(None);
        };
        if prefix.get_u8() != 0 {
            return Err(Status::unimplemented("compressed requests are not read"));
        }
        let len = usize::try_from(prefix.get_u32()).unwrap_or(usize::MAX);
        if len > self.bytes_max {
            let max = self.bytes_max;
            return Err(Status::resource_exhausted(format!(
                "a request of {len} bytes; {max} are read"
            )));
        }
        Ok(Some(len))
    }
}

/// What a stream is to tell.
#[derive(Debug)]
pub(super) enum Telling {
    Response(Response),
    /// One message.
    Message(Bytes),
    End(Status),
}

/// Whether what a stream told last was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    Taken,
    /// What is on its way to a peer that lets none of it come goes with its connection alone.
    Untaken,
}

/// Tells how a stream ended, and waits until that was taken.
pub(super) async fn end(tell: &mpsc::Sender<Telling>, taking: Taking, status: Status) -> Left {
    // Room is kept for it; nobody may be there to take it.
    tell.try_send(Telling::End(status)).ok();
    let Taking { moved, all } = taking;
    let all = async {
        // Nothing comes: it ends with what it waits for.
        all.await.ok();
    };
    while_it_moves(&moved, END_MOVES, all).await
}

/// What of a body is not written yet, as its stream sees it: what a peer has no window for stays with its
/// connection when the body has long ended.
#[derive(Debug)]
pub(super) struct Taking {
    moved: Weak<Untaken>,
    all: oneshot::Receiver<Infallible>,
}

/// Held by a body, and by the last bytes of each message of it until they are written.
#[derive(Debug)]
struct Untaken {
    began: Instant,
    /// When the peer had last let something of it come, in milliseconds from then.
    moved: AtomicU64,
    #[expect(dead_code, reason = "its other end sees when it is dropped")]
    waits: oneshot::Sender<Infallible>,
}

impl Untaken {
    fn moves(&self) {
        let since = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved.store(since, Ordering::Relaxed);
    }

    fn moved_at(&self) -> Instant {
        self.began + Duration::from_millis(self.moved.load(Ordering::Relaxed))
    }
}

/// The last bytes of a message.
struct Last {
    bytes: Bytes,
    #[expect(dead_code, reason = "it is held as long as the bytes are")]
    untaken: Arc<Untaken>,
}

impl AsRef<[u8]> for Last {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Taking {
    /// Waits for `taken` as long as the peer lets something come, each time in `patience`.
    pub(super) async fn while_it_moves(
        &self,
        patience: Duration,
        taken: impl Future<Output = ()>,
    ) -> Left {
        while_it_moves(&self.moved, patience, taken).await
    }
}

async fn while_it_moves(
    moved: &Weak<Untaken>,
    patience: Duration,
    taken: impl Future<Output = ()>,
) -> Left {
    let mut taken = pin!(taken);
    let mut until = Instant::now() + patience;
    loop {
        if timeout_at(until, taken.as_mut()).await.is_ok() {
            return Left::Taken;
        }
        let Some(untaken) = moved.upgrade() else {
            return Left::Taken;
        };
        let later = untaken.moved_at() + patience;
        if later <= until {
            return Left::Untaken;
        }
        until = later;
    }
}

/// The body of a stream: what came out of the session, in pieces that stay shared until they go out.
#[derive(Debug)]
pub(super) struct Told {
    protocol: Protocol,
    identifier: Arc<str>,
    telling: mpsc::Receiver<Telling>,
    untaken: Arc<Untaken>,
    /// The rest of the response under way.
    rest: VecDeque<Bytes>,
    is_ended: bool,
}

impl Told {
    pub(super) fn new(
        protocol: Protocol,
        identifier: Arc<str>,
        telling: mpsc::Receiver<Telling>,
    ) -> (Self, Taking) {
        let (waits, all) = oneshot::channel();
        let untaken = Arc::new(Untaken {
            began: Instant::now(),
            moved: AtomicU64::new(0),
            waits,
        });
        let moved = Arc::downgrade(&untaken);
        let told = Self {
            protocol,
            identifier,
            telling,
            untaken,
            rest: VecDeque::new(),
            is_ended: false,
        };
        (told, Taking { moved, all })
    }

    /// The next piece, and with the last of a message what waits for it.
    fn piece(&mut self) -> Option<Bytes> {
        let chunk = self.chunk()?;
        self.untaken.moves();
        if !self.rest.is_empty() {
            return Some(chunk);
        }
        Some(Bytes::from_owner(Last {
            bytes: chunk,
            untaken: Arc::clone(&self.untaken),
        }))
    }

    /// Small pieces go together; larger ones one after the other, for they stay until they are written.
    fn chunk(&mut self) -> Option<Bytes> {
        let mut first = self.rest.pop_front()?;
        if first.len() > CHUNK {
            self.rest.push_front(first.split_off(CHUNK));
        }
        if first.len() >= CHUNK / 2 || self.rest.is_empty() {
            return Some(first);
        }
        let mut chunk = BytesMut::with_capacity(CHUNK);
        chunk.put(first);
        while let Some(next) = self
            .rest
            .pop_front_if(|next| chunk.len() + next.len() <= CHUNK)
        {
            chunk.put(next);
        }
        Some(chunk.freeze())
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = this.piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if this.is_ended {
                return Poll::Ready(None);
            }
            let status = match this.telling.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Telling::Response(response))) => {
                    this.rest = pieces(this.protocol, &this.identifier, &response);
                    continue;
                }
                Poll::Ready(Some(Telling::Message(message))) => {
                    this.rest = [prefix(message.len()), message].into();
                    continue;
                }
                Poll::Ready(Some(Telling::End(status))) => status,
                Poll::Ready(None) => Status::unavailable("the stream is given up"),
            };
            this.is_ended = true;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers(&status)))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.is_ended && self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// A status as headers.
pub(super) fn trailers(status: &Status) -> http::HeaderMap {
    let mut trailers = http::HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // A text that can be no header is not told.
        let bare = Status::new(status.code(), "");
        bare.add_header(&mut trailers).ok();
    }
    trailers
}

/// How a stream ends that was not at fault.
pub(super) fn ended() -> Status {
    Status::new(Code::Ok, "")
}

fn prefix(len: usize) -> Bytes {
    let mut prefix = BytesMut::with_capacity(PREFIX);
    prefix.put_u8(0);
    prefix.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    prefix.freeze()
}

/// A response as one gRPC message. Its resources are the shared bytes.
fn pieces(protocol: Protocol, identifier: &str, response: &Response) -> VecDeque<Bytes> {
    let nonce = response.nonce.to_string();
    let mut head = BytesMut::new();
    text(1, &response.version.to_string(), &mut head);
    text(4, &response.type_url, &mut head);
    text(5, &nonce, &mut head);
    let control_plane = match protocol {
        Protocol::Sotw => 6,
        Protocol::Delta => 7,
    };
    // `ControlPlane.identifier` is field 1.
    encode_key(control_plane, WireType::LengthDelimited, &mut head);
    encode_varint(
        (1 + encoded_len_varint(identifier.len() as u64) + identifier.len()) as u64,
        &mut head,
    );
    text(1, identifier, &mut head);
    for name in &response.removed {
        text(6, name, &mut head);
    }
    let resources: Vec<Bytes> = (response.resources.iter())
        .map(|one| match protocol {
            Protocol::Sotw => one.whole(),
            Protocol::Delta => one.delta(),
        })
        .collect();
    let len = head.len() + resources.iter().map(Bytes::len).sum::<usize>();
    let mut first = BytesMut::with_capacity(PREFIX + head.len());
    first.put_u8(0);
    first.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    first.put(head);
    let mut pieces = VecDeque::with_capacity(1 + resources.len());
    pieces.push_back(first.freeze());
    pieces.extend(resources);
    pieces
}

fn text(number: u32, text: &str, to: &mut BytesMut) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(text.len() as u64, to);
    to.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use tonic::codegen::tokio_stream;

    use super::*;

    fn framed(len: usize) -> Vec<u8> {
        let mut bytes = vec![0];
        bytes.put_u32(u32::try_from(len).unwrap());
        bytes.resize(PREFIX + len, 1);
        bytes
    }

    #[tokio::test]
    async fn the_beginning_of_the_next_request_does_not_keep_the_room_of_a_long_one() {
        let long = 8 * SMALL;
        let all = [framed(long), framed(9), framed(long)].concat();
        let frames = all.chunks(10_000).map(|part| {
            let frame = Frame::data(Bytes::copy_from_slice(part));
            Ok::<_, Status>(frame)
        });
        let body = StreamBody::new(tokio_stream::iter(frames));
        let memory = || Arc::new(Semaphore::new(2 * long / 1024));
        let (of_caller, of_all) = (memory(), memory());
        let mut requests = Requests::new(body, long, [Arc::clone(&of_caller), of_all]);
        for expected in [long, 9, long] {
            let request = requests.next().await.unwrap().unwrap();
            assert_eq!(request.len(), expected);
            if expected == long {
                assert_eq!(of_caller.available_permits(), long / 1024);
                // What came with its end is copied there, and nothing of it.
                assert!(requests.read.capacity() < 2 * FRAME_MAX);
            }
            drop(request);
            requests.done();
            // What broke: with a byte of the next one in it, all of it stayed.
            assert!(
                requests.read.capacity() < SMALL,
                "{}",
                requests.read.capacity()
            );
            assert_eq!(of_caller.available_permits(), 2 * long / 1024);
        }
        assert!(requests.next().await.unwrap().is_none());
    }
}
