//! HTTP/2 receive windows of our own: one for each stream, sized by its reader.
//!
//! The `h2` crate knows one window size for all streams of a connection, and keeps it full. A fast
//! stream over a long way needs megabytes, a slow reader must not be sent more than a little, and
//! both may share a connection. So `h2` is told of windows that never fill, and the windows that
//! the other end sees are kept here, between `h2` and the socket: our SETTINGS name the small
//! window that every stream begins with, `WINDOW_UPDATE`s are written as readers read, and what
//! comes in is held against what was granted (RFC 9113 §6.9).
//!
//! ```text
//! socket -> FlowIo (counts DATA, refuses what was not granted) -> h2 -> Recv -> whoever reads
//! socket <- FlowIo (writes WINDOW_UPDATEs, hides those of h2)  <- h2     |
//!              ^------------------- Flow::consumed(stream, bytes) <------'
//! ```

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// What every stream may be sent before anything of it was read: what a reader that has stopped
/// holds (RFC 9113 §6.9.2: the protocol's own default).
pub(crate) const WINDOW_MIN: u32 = 65_535;
/// What a stream may be sent whose reader keeps up: 20 MB/s over 100 ms need 2 MB, and half of a
/// window is on its way back when the other half is used.
pub(crate) const WINDOW_MAX: u32 = 4 * 1024 * 1024;
/// What of a window is granted again at once: half of it, and of a large one this. What is read and
/// not granted is on no way: with half of it waiting for the other half, what was sent in one go comes
/// in one go, is granted in one go, and only half of the window moves in a round trip.
const GRANT_BYTES_MAX: u32 = 256 * 1024;
/// What all windows of the process may be larger than [`WINDOW_MIN`], together.
const BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// Above this, windows that are not used are made smaller: no more can be as large as they may be.
const BUDGET_TIGHT_BYTES: usize = BUDGET_BYTES / 2;
/// A window grows by no more than this part of what is free then: eight streams have the largest
/// there is, eight more the half of it, and so on. What was granted to a stream that stops cannot be
/// taken back (RFC 9113 §6.9.2), so it must not be all there is.
const BUDGET_PART: usize = 8;
/// The window that `h2` is told of (RFC 9113 §6.9.1: the largest there is).
pub(crate) const H2_WINDOW: u32 = (1 << 31) - 1;

/// Streams that windows are kept for, at least; those that `h2` refuses at once included.
const STREAMS_MAX: usize = 4096;
/// Resets in a second for each stream that may be open at once. Streams that live a tenth of a second
/// cannot be reset more often than this: whoever does begins requests only to have them begun
/// (CVE-2023-44487), since a reset stream no longer counts as open.
const RESETS_PER_STREAM: u32 = 10;
/// What is held back of what a driver writes in one turn: a frame of the size that everybody takes
/// (RFC 9113 §4.2). Longer pieces are not copied.
const HELD_BYTES: usize = 16 * 1024;
const HEAD_BYTES: usize = 9;
/// RFC 9113 §3.4.
const PREFACE_BYTES: u32 = 24;
/// A frame of ours or of `h2` that is looked into is never longer: SETTINGS and WINDOW_UPDATE.
const GATHER_BYTES_MAX: usize = 512;

const DATA: u8 = 0x0;
const HEADERS: u8 = 0x1;
const RST_STREAM: u8 = 0x3;
const SETTINGS: u8 = 0x4;
const GOAWAY: u8 = 0x7;
const WINDOW_UPDATE: u8 = 0x8;
const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const PADDED: u8 = 0x8;
const SETTINGS_INITIAL_WINDOW_SIZE: [u8; 2] = [0, 4];

/// The memory that windows of all workers may grow into.
#[derive(Debug, Default)]
pub(crate) struct WindowBudget {
    used: AtomicUsize,
}

impl WindowBudget {
    /// Has a window that has grown by `grown` grow by `more`, if that leaves enough to others.
    fn take(&self, grown: u32, more: u32) -> bool {
        let (grown, more) = (grown as usize, more as usize);
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                let used = used.checked_add(more)?;
                (grown + more <= part_of_free(used)).then_some(used)
            });
        taken.is_ok()
    }

    fn give_back(&self, bytes: u32) {
        self.used.fetch_sub(bytes as usize, Ordering::Relaxed);
    }

    fn is_tight(&self) -> bool {
        self.used.load(Ordering::Relaxed) > BUDGET_TIGHT_BYTES
    }

    /// Whether a window that has grown by `grown` has more than its part by now.
    fn is_exceeded_by(&self, grown: u32) -> bool {
        grown as usize > part_of_free(self.used.load(Ordering::Relaxed))
    }
}

const fn part_of_free(used: usize) -> usize {
    BUDGET_BYTES.saturating_sub(used) / BUDGET_PART
}

/// The streams that a caller has reset in the second under way.
#[derive(Debug, Clone, Copy, Default)]
struct Resets {
    since: Option<Instant>,
    count: u32,
}

impl Resets {
    /// With one more; and whether there are more than `max`.
    fn with(self, max: u32, now: Instant) -> (Self, bool) {
        let is_same_second = |since| now.saturating_duration_since(since) < Duration::from_secs(1);
        let this = match self.since {
            Some(since) if is_same_second(since) => Self {
                since: Some(since),
                count: self.count.saturating_add(1),
            },
            Some(_) | None => Self {
                since: Some(now),
                count: 1,
            },
        };
        (this, this.count > max)
    }
}

/// Which end of a connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Server,
    Client,
}

/// The windows of one connection; shared by its driver, its bytes and its readers.
#[derive(Debug, Clone)]
pub(crate) struct Flow(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    budget: Arc<WindowBudget>,
    side: Side,
    streams_max: usize,
    /// Streams that a caller may reset in a second.
    resets_max: u32,
    streams: RefCell<HashMap<u32, Window, BuildHasherDefault<ById>>>,
    /// The highest stream that the other end opened.
    opened: Cell<u32>,
    /// `WINDOW_UPDATE`s that were not written yet.
    updates: RefCell<Vec<u8>>,
    driver: RefCell<Option<Waker>>,
    /// How long a PING takes there and back.
    round_trip: Cell<Option<Duration>>,
    wants_round_trip: Cell<bool>,
    /// Bytes read; and how many frames of them were of messages.
    read: Cell<u64>,
    messages: Cell<u64>,
    settled: Cell<bool>,
    leaving: Cell<bool>,
    silent: Cell<bool>,
    /// Somebody doubts that the other end is there.
    doubted: Cell<bool>,
    /// Somebody waits for bytes to come in.
    listened: Cell<bool>,
    came: Notify,
    resets: Cell<Resets>,
    /// The other end has reset too many streams: nothing more is read.
    flooded: Cell<bool>,
    /// The driver is at work: what it writes may wait for what it writes next.
    gathers: Cell<bool>,
    /// Something waits.
    holds: Cell<bool>,
}

thread_local! {
    /// A buffer for what is held back: it is needed only while a driver is at work.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Stream numbers are given out in turn: they need no hashing.
#[derive(Debug, Default)]
struct ById(u64);

impl Hasher for ById {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 << 8) | u64::from(*byte);
        }
    }

    fn write_u32(&mut self, id: u32) {
        // Odd multiplier: spreads over the table's top bits, which hashbrown looks at.
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The receive window of one stream.
#[derive(Debug)]
struct Window {
    size: u32,
    /// What the other end may still send.
    credit: i64,
    /// What came and was not read yet.
    unread: i64,
    /// Whether the other end has said that this is all (`END_STREAM`).
    is_whole: bool,
    /// Since when the reader's pace is measured, and what it read since.
    since: Option<Instant>,
    paced: u64,
    /// Whether it read anything since [`Flow::trim`] last looked.
    is_used: bool,
}

impl Window {
    const fn new() -> Self {
        Self {
            size: WINDOW_MIN,
            credit: WINDOW_MIN as i64,
            unread: 0,
            is_whole: false,
            since: None,
            paced: 0,
            is_used: true,
        }
    }

    const fn grown(&self) -> u32 {
        self.size - WINDOW_MIN
    }

    fn shrink(&mut self, less: u32, budget: &WindowBudget) {
        let less = less.min(self.grown());
        self.size -= less;
        budget.give_back(less);
    }

    /// Makes the window as large as its reader's pace needs: twice what it reads in a round trip, as
    /// the time that half a window took tells it.
    fn resize(&mut self, round_trip: Option<Duration>, budget: &WindowBudget) {
        let now = Instant::now();
        let Some(since) = self.since else {
            self.since = Some(now);
            self.paced = 0;
            return;
        };
        let (Some(round_trip), elapsed) = (round_trip, now.duration_since(since)) else {
            return;
        };
        // Half a window is pace enough to tell, however soon it was read: to wait for a round trip to be
        // over would cost the start of every stream another one for each doubling.
        let is_enough = self.paced >= u64::from(self.size / 2);
        if elapsed.is_zero() || (elapsed < round_trip && !is_enough) {
            return;
        }
        let size = u128::from(self.size);
        let in_round_trip =
            u128::from(self.paced) * round_trip.as_nanos() / elapsed.as_nanos().max(1);
        self.since = Some(now);
        self.paced = 0;
        // A whole window may come at once, and half of it is not read yet when this is asked: what is
        // read in a round trip tells how well the reader keeps up, and a slow one fails that.
        let keeps_up = self.unread <= i64::from(self.size / 2);
        let is_idle = in_round_trip * 8 < size && budget.is_tight();
        if is_idle || budget.is_exceeded_by(self.grown()) {
            self.shrink(self.size / 2, budget);
        } else if keeps_up && in_round_trip * 2 >= size && self.size < WINDOW_MAX {
            let more = self.size.min(WINDOW_MAX - self.size);
            if budget.take(self.grown(), more) {
                self.size += more;
            }
        }
    }

    /// Gives back what was not granted yet, if nothing was read since the last look: all that the
    /// stream may hold then is what it was sent and may still be sent.
    fn trim(&mut self, budget: &WindowBudget) {
        if !std::mem::take(&mut self.is_used) {
            let missing = i64::from(self.size) - self.credit - self.unread;
            self.shrink(u32::try_from(missing).unwrap_or(0), budget);
        }
    }
}

impl Flow {
    pub(crate) fn new(budget: &Arc<WindowBudget>, side: Side, streams_max: u32) -> Self {
        Self(Rc::new(Inner {
            budget: Arc::clone(budget),
            side,
            streams_max: (streams_max as usize).saturating_mul(2).max(STREAMS_MAX),
            resets_max: streams_max.saturating_mul(RESETS_PER_STREAM),
            streams: RefCell::default(),
            opened: Cell::new(0),
            updates: RefCell::default(),
            driver: RefCell::default(),
            round_trip: Cell::new(None),
            wants_round_trip: Cell::new(false),
            read: Cell::new(0),
            messages: Cell::new(0),
            settled: Cell::new(false),
            leaving: Cell::new(false),
            silent: Cell::new(false),
            doubted: Cell::new(false),
            listened: Cell::new(false),
            came: Notify::new(),
            resets: Cell::default(),
            flooded: Cell::new(false),
            gathers: Cell::new(false),
            holds: Cell::new(false),
        }))
    }

    /// Holds back what is written from now on, up to [`HELD_BYTES`]: `h2` flushes after each frame of
    /// data, and a system call for each is the most of what a short message costs.
    pub(crate) fn gather(&self) {
        self.0.gathers.set(true);
    }

    /// Ends that. Whether something was held back, which the connection writes when it is polled
    /// again.
    pub(crate) fn release(&self) -> bool {
        self.0.gathers.replace(false) && self.0.holds.get()
    }

    /// Notes the task that drives the connection: it is woken to write `WINDOW_UPDATE`s.
    pub(crate) fn driven_by(&self, cx: &Context<'_>) {
        let mut driver = self.0.driver.borrow_mut();
        match &mut *driver {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            other => *other = Some(cx.waker().clone()),
        }
    }

    /// The window of a stream, until the guard is dropped.
    pub(crate) fn open(&self, stream: u32) -> OpenWindow {
        if self.0.side == Side::Client {
            let mut streams = self.0.streams.borrow_mut();
            streams.insert(stream, Window::new());
        }
        OpenWindow {
            flow: self.clone(),
            stream,
        }
    }

    /// Whether the other end's SETTINGS have come.
    pub(crate) fn is_settled(&self) -> bool {
        self.0.settled.get()
    }

    /// Whether the other end takes no more streams.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.leaving.get()
    }

    /// Bytes that came in.
    pub(crate) fn read_bytes(&self) -> u64 {
        self.0.read.get()
    }

    fn note_read(&self, bytes: usize) {
        self.0.read.set(self.0.read.get() + bytes as u64);
        if self.0.listened.take() {
            self.0.came.notify_waiters();
        }
    }

    /// Waits until something comes in.
    ///
    /// # Cancel safety
    /// Loses nothing.
    pub(crate) async fn comes_in(&self) {
        self.0.listened.set(true);
        self.0.came.notified().await;
    }

    /// Has the other end asked whether it is there.
    pub(crate) fn doubt(&self) {
        self.0.doubted.set(true);
        self.wake();
    }

    /// Whether it is to be asked; told once.
    pub(crate) fn is_doubted(&self) -> bool {
        self.0.doubted.take()
    }

    /// Frames that came in of requests or responses.
    pub(crate) fn messages(&self) -> u64 {
        self.0.messages.get()
    }

    /// Whether a reader's pace cannot be judged for want of a round trip; asked once.
    pub(crate) fn wants_round_trip(&self) -> bool {
        self.0.wants_round_trip.take()
    }

    /// Notes how long a PING took.
    pub(crate) fn took(&self, round_trip: Duration) {
        self.0.round_trip.set(Some(round_trip));
    }

    /// Notes that the other end answered no PING.
    pub(crate) fn fell_silent(&self) {
        self.0.silent.set(true);
        self.0.leaving.set(true);
    }

    /// Whether the connection was ended because the other end answered no PING.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.silent.get()
    }

    /// To be called now and then: where memory is tight, streams whose readers have stopped give back
    /// what they can.
    pub(crate) fn trim(&self) {
        if self.0.budget.is_tight() {
            let mut streams = self.0.streams.borrow_mut();
            (streams.values_mut()).for_each(|window| window.trim(&self.0.budget));
        }
    }

    /// Whether the other end has reset more streams than it may.
    pub(crate) fn is_flooded(&self) -> bool {
        self.0.flooded.get()
    }

    fn wake(&self) {
        if let Some(waker) = self.0.driver.borrow().as_ref() {
            waker.wake_by_ref();
        }
    }

    fn consumed(&self, stream: u32, bytes: usize) {
        let mut streams = self.0.streams.borrow_mut();
        let Some(window) = streams.get_mut(&stream) else {
            return;
        };
        let bytes = bytes as u64;
        window.unread = window.unread.saturating_sub_unsigned(bytes);
        window.paced += bytes;
        window.is_used = true;
        let missing = |window: &Window| i64::from(window.size) - window.credit - window.unread;
        if missing(window) < i64::from(GRANT_BYTES_MAX.min(window.size / 2)) {
            return;
        }
        window.resize(self.0.round_trip.get(), &self.0.budget);
        self.0.wants_round_trip.set(true);
        if let Ok(grant @ 1..) = u32::try_from(missing(window)) {
            window.credit += i64::from(grant);
            let mut updates = self.0.updates.borrow_mut();
            updates.extend_from_slice(&[0, 0, 4, WINDOW_UPDATE, 0]);
            updates.extend_from_slice(&stream.to_be_bytes());
            updates.extend_from_slice(&grant.to_be_bytes());
            drop(updates);
            self.wake();
        }
    }

    /// Holds a frame that came in against what was granted.
    fn came(&self, head: FrameHead) -> io::Result<()> {
        match head.kind {
            DATA => {
                self.0.messages.set(self.0.messages.get() + 1);
                let mut streams = self.0.streams.borrow_mut();
                // What no window is kept for was reset or has ended: h2 drops or refuses it.
                if let Some(window) = streams.get_mut(&head.stream) {
                    window.credit -= i64::from(head.length);
                    window.unread += i64::from(head.length);
                    window.is_whole |= head.flags & END_STREAM != 0;
                    if window.credit < 0 {
                        // RFC 9113 §6.9.1: may be answered as an error of the connection.
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            "more was sent than the stream's window holds",
                        ));
                    }
                }
            }
            HEADERS => {
                self.0.messages.set(self.0.messages.get() + 1);
                let is_new = self.0.side == Side::Server && head.stream > self.0.opened.get();
                if is_new {
                    self.0.opened.set(head.stream);
                    if head.flags & END_STREAM == 0 {
                        let mut streams = self.0.streams.borrow_mut();
                        if streams.len() >= self.0.streams_max {
                            return Err(io::Error::other("too many streams were begun"));
                        }
                        streams.insert(head.stream, Window::new());
                    }
                } else if head.flags & END_STREAM != 0
                    && let Some(window) = self.0.streams.borrow_mut().get_mut(&head.stream)
                {
                    window.is_whole = true;
                }
            }
            RST_STREAM if self.0.side == Side::Server => {
                let resets = self.0.resets.get();
                let (resets, too_many) = resets.with(self.0.resets_max, Instant::now());
                self.0.resets.set(resets);
                self.0.flooded.set(self.0.flooded.get() || too_many);
            }
            SETTINGS if head.flags & ACK == 0 => self.0.settled.set(true),
            GOAWAY => self.0.leaving.set(true),
            _ => {}
        }
        Ok(())
    }

    fn forget(&self, stream: u32) {
        let mut streams = self.0.streams.borrow_mut();
        if let Some(window) = streams.remove(&stream) {
            self.0.budget.give_back(window.grown());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let grown: u32 = self.streams.get_mut().values().map(Window::grown).sum();
        self.budget.give_back(grown);
    }
}

/// A stream's window, and the memory it was granted, until dropped.
#[derive(Debug)]
pub(crate) struct OpenWindow {
    flow: Flow,
    stream: u32,
}

impl OpenWindow {
    /// Notes that the stream's reader took these bytes.
    pub(crate) fn consumed(&self, bytes: usize) {
        self.flow.consumed(self.stream, bytes);
    }

    /// Whether the other end has sent all of its message, read or not.
    pub(crate) fn is_whole(&self) -> bool {
        let streams = self.flow.0.streams.borrow();
        streams.get(&self.stream).is_some_and(|one| one.is_whole)
    }

    /// The connection's windows.
    pub(crate) const fn flow(&self) -> &Flow {
        &self.flow
    }
}

impl Drop for OpenWindow {
    fn drop(&mut self) {
        self.flow.forget(self.stream);
    }
}

#[derive(Debug, Clone, Copy)]
struct FrameHead {
    length: u32,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl FrameHead {
    /// RFC 9113 §4.1.
    const fn parse(head: [u8; HEAD_BYTES]) -> Self {
        let [a, b, c, kind, flags, s0, s1, s2, s3] = head;
        Self {
            length: u32::from_be_bytes([0, a, b, c]),
            kind,
            flags,
            stream: u32::from_be_bytes([s0, s1, s2, s3]) & (H2_WINDOW),
        }
    }

    const fn is_padded_data(self) -> bool {
        self.kind == DATA && self.flags & PADDED != 0 && self.length > 0
    }

    /// Whether `h2` writes it about windows that are kept here.
    const fn is_about_windows(self) -> bool {
        (self.kind == WINDOW_UPDATE && self.stream != 0)
            || (self.kind == SETTINGS && self.flags & ACK == 0)
    }
}

/// Where the frames begin in bytes that are read.
#[derive(Debug)]
struct Frames {
    head: [u8; HEAD_BYTES],
    have: usize,
    /// Bytes left of the frame under way.
    rest: u32,
    /// The stream whose next byte says how much of a frame is padding.
    padded: Option<u32>,
}

impl Frames {
    const fn after(preface: u32) -> Self {
        Self {
            head: [0; HEAD_BYTES],
            have: 0,
            rest: preface,
            padded: None,
        }
    }

    fn walk(&mut self, mut bytes: &[u8], flow: &Flow) -> io::Result<()> {
        while let Some(first) = bytes.first() {
            if let Some(stream) = self.padded.take() {
                // Nobody reads padding: it is read as soon as it comes (RFC 9113 §6.9.1).
                flow.consumed(stream, usize::from(*first) + 1);
            }
            if self.rest > 0 {
                let skip = bytes.len().min(self.rest as usize);
                self.rest -= u32::try_from(skip).unwrap_or(self.rest);
                bytes = bytes.get(skip..).unwrap_or_default();
                continue;
            }
            let take = bytes.len().min(HEAD_BYTES - self.have);
            let (taken, left) = bytes.split_at(take);
            if let Some(to) = self.head.get_mut(self.have..self.have + take) {
                to.copy_from_slice(taken);
            }
            bytes = left;
            self.have += take;
            if self.have == HEAD_BYTES {
                self.have = 0;
                let head = FrameHead::parse(self.head);
                self.rest = head.length;
                flow.came(head)?;
                self.padded = head.is_padded_data().then_some(head.stream);
            }
        }
        Ok(())
    }
}

/// Where the frames begin in bytes that are written.
#[derive(Debug, Clone, Copy)]
struct Written {
    /// Bytes left of the frame under way.
    rest: u32,
    /// A head of which the socket took a part.
    head: [u8; HEAD_BYTES],
    have: usize,
}

impl Written {
    const fn is_between_frames(&self) -> bool {
        self.rest == 0 && self.have == 0
    }

    /// Goes on to the first frame that `holds` holds back, or over all bytes; returns how many.
    fn pass(&mut self, bytes: &[u8], mut holds: impl FnMut(Option<FrameHead>) -> bool) -> usize {
        let mut at = 0;
        while let Some(left) = bytes.get(at..).filter(|left| !left.is_empty()) {
            if self.rest > 0 {
                let skip = left.len().min(self.rest as usize);
                self.rest -= u32::try_from(skip).unwrap_or(self.rest);
                at += skip;
                continue;
            }
            if self.have == 0 {
                let head = left.first_chunk().map(|head| FrameHead::parse(*head));
                if holds(head) {
                    return at;
                }
                if let Some(head) = head {
                    self.rest = head.length;
                    at += HEAD_BYTES;
                    continue;
                }
            }
            let take = left.len().min(HEAD_BYTES - self.have);
            if let Some(to) = self.head.get_mut(self.have..self.have + take) {
                to.copy_from_slice(left.get(..take).unwrap_or_default());
            }
            at += take;
            self.have += take;
            if self.have == HEAD_BYTES {
                self.have = 0;
                self.rest = FrameHead::parse(self.head).length;
            }
        }
        at
    }
}

/// The bytes of an HTTP/2 connection, with windows of our own.
#[derive(Debug)]
pub(crate) struct FlowIo<S> {
    stream: S,
    flow: Flow,
    incoming: Frames,
    outgoing: Written,
    /// A frame of `h2` that is looked into before it is written.
    gathered: Vec<u8>,
    /// What has to be written before anything else.
    out: Vec<u8>,
    out_written: usize,
    /// What was written here, and is held back until the driver has had its turn.
    held: Vec<u8>,
    held_written: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> FlowIo<S> {
    pub(crate) fn new(stream: S, flow: &Flow) -> Self {
        let (from_them, from_us) = match flow.0.side {
            Side::Server => (PREFACE_BYTES, 0),
            Side::Client => (0, PREFACE_BYTES),
        };
        Self {
            stream,
            flow: flow.clone(),
            incoming: Frames::after(from_them),
            outgoing: Written {
                rest: from_us,
                head: [0; HEAD_BYTES],
                have: 0,
            },
            gathered: Vec::new(),
            out: Vec::new(),
            out_written: 0,
            held: Vec::new(),
            held_written: 0,
        }
    }

    /// Writes what is held back.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.held.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while let Some(left @ [_, ..]) = self.held.get(self.held_written..) {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, left))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.held_written += n;
        }
        self.held.clear();
        self.held_written = 0;
        self.flow.0.holds.set(false);
        SPARE.set(std::mem::take(&mut self.held));
        Poll::Ready(Ok(()))
    }

    /// Writes these bytes, or as many of them as may be held back.
    fn poll_out(&mut self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let bytes: usize = bufs.iter().map(|buf| buf.len()).sum();
        if !self.flow.0.gathers.get() || bytes >= HELD_BYTES {
            ready!(self.poll_held(cx))?;
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        }
        if self.held.len() + bytes > HELD_BYTES {
            ready!(self.poll_held(cx))?;
        }
        if self.held.capacity() == 0 {
            self.held = SPARE.take();
            self.held.reserve(HELD_BYTES);
        }
        for buf in bufs {
            self.held.extend_from_slice(buf);
        }
        self.flow.0.holds.set(bytes > 0 || self.flow.0.holds.get());
        Poll::Ready(Ok(bytes))
    }

    /// Writes what is of our own, where a frame may begin.
    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.outgoing.is_between_frames() && self.gathered.is_empty() {
            let mut updates = self.flow.0.updates.borrow_mut();
            if !updates.is_empty() {
                self.out.append(&mut updates);
            }
        }
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.out_written < self.out.len() {
            let out = std::mem::take(&mut self.out);
            let left = out.get(self.out_written..).unwrap_or_default();
            let written = self.poll_out(cx, &[IoSlice::new(left)]);
            self.out = out;
            let n = ready!(written)?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out_written += n;
        }
        self.out.clear();
        self.out_written = 0;
        Poll::Ready(Ok(()))
    }

    /// How many of these bytes may be written as they are.
    fn passing(&self, bytes: &[u8], from: &mut Written) -> usize {
        from.pass(bytes, |head| {
            let Some(head) = head else {
                return true;
            };
            if head.kind == RST_STREAM && self.flow.0.side == Side::Server {
                // h2 refuses some streams without showing them to us.
                self.flow.forget(head.stream);
            }
            head.is_about_windows()
        })
    }

    /// Takes bytes of a frame that is looked into; returns how many.
    fn gather(&mut self, bytes: &[u8]) -> usize {
        let wanted = match self.gathered.first_chunk() {
            None => HEAD_BYTES,
            Some(head) => HEAD_BYTES + FrameHead::parse(*head).length as usize,
        };
        let take = bytes.len().min(wanted.saturating_sub(self.gathered.len()));
        self.gathered
            .extend_from_slice(bytes.get(..take).unwrap_or_default());
        let Some(head) = self.gathered.first_chunk() else {
            return take;
        };
        let head = FrameHead::parse(*head);
        if !head.is_about_windows() || head.length as usize > GATHER_BYTES_MAX {
            self.outgoing.rest = head.length;
            self.out.append(&mut self.gathered);
        } else if self.gathered.len() == HEAD_BYTES + head.length as usize {
            if head.kind == SETTINGS {
                name_window(self.gathered.get_mut(HEAD_BYTES..).unwrap_or_default());
                self.out.append(&mut self.gathered);
            }
            self.gathered.clear();
        }
        take
    }
}

/// Puts the window that streams begin with into a SETTINGS payload (RFC 9113 §6.5.1).
fn name_window(payload: &mut [u8]) {
    for setting in payload.chunks_exact_mut(6) {
        let (id, value) = setting.split_at_mut(2);
        if *id == SETTINGS_INITIAL_WINDOW_SIZE {
            value.copy_from_slice(&WINDOW_MIN.to_be_bytes());
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for FlowIo<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.flow.is_flooded() {
            // Its driver says so and ends the connection.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
        let came = buf.filled().get(before..).unwrap_or_default();
        this.flow.note_read(came.len());
        Poll::Ready(this.incoming.walk(came, &this.flow))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FlowIo<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_own(cx))?;
        if this.gathered.is_empty() {
            let passing = this.passing(buf, &mut this.outgoing.clone());
            if passing > 0 {
                let pass = buf.get(..passing).unwrap_or_default();
                let n = ready!(this.poll_out(cx, &[IoSlice::new(pass)]))?;
                this.outgoing
                    .pass(pass.get(..n).unwrap_or_default(), |_| false);
                return Poll::Ready(Ok(n));
            }
        }
        Poll::Ready(Ok(this.gather(buf)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_own(cx))?;
        let mut from = this.outgoing;
        let all_pass = this.gathered.is_empty()
            && bufs
                .iter()
                .all(|buf| this.passing(buf, &mut from) == buf.len());
        if !all_pass {
            // One at a time, up to the frame that is looked into.
            let first = bufs.iter().find(|buf| !buf.is_empty());
            return Pin::new(this).poll_write(cx, first.map_or(&[], |buf| buf));
        }
        let n = ready!(this.poll_out(cx, bufs))?;
        let mut left = n;
        for buf in bufs {
            let took = left.min(buf.len());
            this.outgoing
                .pass(buf.get(..took).unwrap_or_default(), |_| false);
            left -= took;
        }
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own(cx))?;
        if this.flow.0.gathers.get() {
            // The driver polls once more when it has had its turn.
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_own(cx))?;
        ready!(this.poll_held(cx))?;
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::http::body::Outgoing;
    use crate::http::stream::{self, Incoming, Whose};

    const ROUND_TRIP: Duration = Duration::from_millis(100);

    /// A stream whose reader took what came in one round trip.
    fn keeps_up(window: &mut Window, budget: &WindowBudget) {
        window.since = Some(Instant::now() - ROUND_TRIP);
        window.paced = u64::from(window.size);
        window.resize(Some(ROUND_TRIP), budget);
    }

    #[test]
    fn a_window_doubles_each_round_trip_that_its_reader_keeps_up_and_only_then() {
        let budget = WindowBudget::default();
        let mut window = Window::new();
        keeps_up(&mut window, &budget);
        assert_eq!(window.size, 2 * WINDOW_MIN);
        for _ in 0..10 {
            keeps_up(&mut window, &budget);
        }
        assert_eq!(window.size, WINDOW_MAX);
        // 20 MB/s over 100 ms have 2 MB on their way.
        assert!(window.size >= 2 * 2_000_000);
        // Half of what came at once is still to be read.
        let mut burst = Window::new();
        keeps_up(&mut burst, &budget);
        burst.unread = i64::from(burst.size / 2);
        keeps_up(&mut burst, &budget);
        assert_eq!(burst.size, 4 * WINDOW_MIN);
        let mut stopped = Window::new();
        stopped.unread = i64::from(WINDOW_MIN);
        keeps_up(&mut stopped, &budget);
        // Half of it, in much less than a round trip, is pace enough; what was read before it was
        // measured is none.
        let mut early = Window::new();
        early.paced = u64::from(WINDOW_MIN);
        early.resize(Some(ROUND_TRIP), &budget);
        early.paced += u64::from(WINDOW_MIN / 2) - 1;
        early.resize(Some(ROUND_TRIP), &budget);
        assert_eq!(early.size, WINDOW_MIN);
        early.paced += 1;
        early.resize(Some(ROUND_TRIP), &budget);
        assert_eq!(early.size, 2 * WINDOW_MIN);
        let mut slow = Window::new();
        slow.since = Some(Instant::now() - ROUND_TRIP);
        slow.paced = u64::from(WINDOW_MIN / 4);
        slow.resize(Some(ROUND_TRIP), &budget);
        assert_eq!((stopped.size, slow.size), (WINDOW_MIN, WINDOW_MIN));
    }

    #[test]
    fn a_large_window_is_granted_again_long_before_half_of_it_is_read() {
        let flow = Flow::new(&Arc::default(), Side::Client, 1);
        let window = flow.open(1);
        (flow.0.streams.borrow_mut().get_mut(&1).unwrap()).size = WINDOW_MAX;
        let granted = || std::mem::take(&mut *flow.0.updates.borrow_mut());
        // What it has grown by.
        window.consumed(0);
        assert!(!granted().is_empty());
        for _ in 0..4 {
            window.consumed(GRANT_BYTES_MAX as usize - 1);
            assert!(granted().is_empty());
            window.consumed(1);
            let update = granted();
            assert_eq!(update[9..], GRANT_BYTES_MAX.to_be_bytes());
        }
        let small = flow.open(3);
        small.consumed(WINDOW_MIN as usize / 2 - 1);
        assert!(granted().is_empty());
        small.consumed(1);
        assert!(!granted().is_empty());
    }

    #[test]
    fn windows_share_a_budget_and_give_it_back_when_they_are_not_used() {
        let budget = WindowBudget::default();
        let mut windows: Vec<Window> = (0..32).map(|_| Window::new()).collect();
        for _ in 0..10 {
            for window in &mut windows {
                keeps_up(window, &budget);
            }
        }
        let grown = |windows: &[Window]| -> usize {
            (windows.iter()).map(|window| window.grown() as usize).sum()
        };
        assert!(grown(&windows) <= BUDGET_BYTES);
        assert_eq!(grown(&windows), budget.used.load(Ordering::Relaxed));
        assert!(budget.is_tight());
        let mut idle = windows.remove(0);
        let before = idle.size;
        idle.since = Some(Instant::now() - ROUND_TRIP);
        idle.paced = 1;
        idle.resize(Some(ROUND_TRIP), &budget);
        assert!(idle.size < before);
        windows.push(idle);
        assert_eq!(grown(&windows), budget.used.load(Ordering::Relaxed));
    }

    #[test]
    fn streams_that_have_stopped_leave_room_for_the_next() {
        let budget = WindowBudget::default();
        let largest = || {
            let mut window = Window::new();
            for _ in 0..10 {
                keeps_up(&mut window, &budget);
            }
            window
        };
        // They keep up until they have the most that they get, and then they stop for good.
        let sixteen: Vec<Window> = (0..16).map(|_| largest()).collect();
        assert!(sixteen.iter().take(8).all(|one| one.size == WINDOW_MAX));
        assert!(sixteen.iter().all(|one| one.size >= 32 * WINDOW_MIN));
        assert!(largest().size >= 16 * WINDOW_MIN);
        // And so on, by halves: twice as many have stopped, and the next one has more than the least.
        let more: Vec<Window> = (16..40).map(|_| largest()).collect();
        assert!(more.iter().all(|one| one.size > WINDOW_MIN));
        assert!(budget.used.load(Ordering::Relaxed) < BUDGET_BYTES);
    }

    #[test]
    fn streams_that_go_on_make_room_for_others() {
        let budget = WindowBudget::default();
        let mut windows: Vec<Window> = (0..8).map(|_| Window::new()).collect();
        let all_keep_up = |windows: &mut [Window]| {
            for _ in 0..20 {
                for window in &mut *windows {
                    keeps_up(window, &budget);
                }
            }
        };
        all_keep_up(&mut windows);
        assert!(windows.iter().all(|one| one.size == WINDOW_MAX));
        windows.extend((8..32).map(|_| Window::new()));
        all_keep_up(&mut windows);
        let (least, most) = (windows.iter().map(|one| one.size))
            .fold((u32::MAX, 0), |(a, b), size| (a.min(size), b.max(size)));
        // 64 MiB for 32 and as much as eight of them free.
        assert!(
            least >= 16 * WINDOW_MIN && most <= WINDOW_MAX / 2,
            "{least} to {most}"
        );
    }

    #[test]
    fn what_a_reader_that_has_stopped_was_not_granted_is_given_back_once_memory_is_tight() {
        let budget = Arc::<WindowBudget>::default();
        let flow = Flow::new(&budget, Side::Client, 100);
        let mut open = Vec::new();
        while !budget.is_tight() {
            let stream = 2 * u32::try_from(open.len()).unwrap() + 1;
            open.push(flow.open(stream));
            let mut streams = flow.0.streams.borrow_mut();
            let window = streams.get_mut(&stream).unwrap();
            for _ in 0..10 {
                keeps_up(window, &budget);
            }
            // Two thirds are on their way or came, and a third was read and not granted again.
            window.credit = i64::from(window.size / 3);
            window.unread = i64::from(window.size / 3);
        }
        let before = budget.used.load(Ordering::Relaxed);
        // Whoever reads meanwhile keeps what it has.
        flow.trim();
        open[0].consumed(1);
        assert_eq!(budget.used.load(Ordering::Relaxed), before);
        flow.trim();
        let after = budget.used.load(Ordering::Relaxed);
        assert!(after < before / 4 * 3, "{after} of {before}");
        let streams = flow.0.streams.borrow();
        assert_eq!(streams[&1].size, WINDOW_MAX);
        let stopped = &streams[&3];
        let most = i64::from(stopped.size);
        assert_eq!(most, stopped.credit + stopped.unread);
        // One that reads on is granted no more than that at once.
        let stopped = stopped.unread;
        drop(streams);
        open[1].consumed(usize::try_from(stopped).unwrap());
        assert!(flow.0.streams.borrow()[&3].credit <= most);
        drop(open);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    /// Sends `bytes` and gets them back, over a pipe that takes `cut` bytes at once.
    async fn echo(cut: usize, bytes: &Bytes) -> Bytes {
        let (near, far) = tokio::io::duplex(cut);
        let budget = Arc::<WindowBudget>::default();
        let ours = Flow::new(&budget, Side::Client, 1);
        let theirs = Flow::new(&budget, Side::Server, 1);
        let whole = |bytes: &Bytes| Outgoing::Bytes(VecDeque::from([bytes.clone()]));
        let asking = async {
            let (mut sender, mut connection) = h2::client::Builder::new()
                .initial_window_size(H2_WINDOW)
                .initial_connection_window_size(H2_WINDOW)
                .handshake::<_, Bytes>(FlowIo::new(near, &ours))
                .await
                .unwrap();
            let driving = std::future::poll_fn(|cx| {
                ours.driven_by(cx);
                ours.gather();
                loop {
                    let polled = Pin::new(&mut connection).poll(cx);
                    if polled.is_ready() || !ours.release() {
                        return polled;
                    }
                }
            });
            let exchanging = async {
                let request = Request::post("http://a.example/").body(()).unwrap();
                let (response, mut send) = sender.send_request(request, false).unwrap();
                let window = ours.open(response.stream_id().as_u32());
                let receiving = async {
                    let (head, recv) = response.await.unwrap().into_parts();
                    let body = Incoming::h2(recv, window, &head.headers, Whose::Endpoint(None));
                    body.collect().await.unwrap().to_bytes()
                };
                let sending = stream::send(whole(bytes), &mut send, None);
                let (sent, got) = tokio::join!(sending, receiving);
                sent.unwrap();
                got
            };
            tokio::select! {
                _ = driving => None,
                got = exchanging => Some(got),
            }
        };
        let answering = async {
            let mut connection = h2::server::Builder::new()
                .initial_window_size(H2_WINDOW)
                .initial_connection_window_size(H2_WINDOW)
                .handshake::<_, Bytes>(FlowIo::new(far, &theirs))
                .await
                .unwrap();
            let (request, mut respond) = connection.accept().await.unwrap().unwrap();
            let window = theirs.open(respond.stream_id().as_u32());
            let driving = std::future::poll_fn(|cx| {
                theirs.driven_by(cx);
                theirs.gather();
                loop {
                    let polled = connection.poll_accept(cx).map(drop);
                    if polled.is_ready() || !theirs.release() {
                        return polled;
                    }
                }
            });
            let echoing = async {
                let (head, recv) = request.into_parts();
                let body = Incoming::h2(recv, window, &head.headers, Whose::Endpoint(None));
                let bytes = body.collect().await.unwrap().to_bytes();
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                stream::send(whole(&bytes), &mut send, None).await.unwrap();
            };
            tokio::join!(driving, echoing);
        };
        let answered = Box::pin(answering);
        let (got, ()) = tokio::join!(Box::pin(asking), answered);
        drop((ours, theirs));
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        got.unwrap()
    }

    /// Counts what reaches it, and takes everything.
    #[derive(Debug, Default)]
    struct Sink {
        calls: usize,
        bytes: Vec<u8>,
    }

    impl AsyncRead for Sink {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Sink {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.calls += 1;
            self.bytes.extend_from_slice(buf);
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn data(length: usize) -> Vec<u8> {
        let [.., a, b, c] = length.to_be_bytes();
        let mut frame = vec![a, b, c, DATA, 0, 0, 0, 0, 1];
        frame.resize(HEAD_BYTES + length, 7);
        frame
    }

    #[tokio::test]
    async fn what_a_driver_writes_in_a_turn_goes_out_at_once_in_order_and_bounded() {
        use tokio::io::AsyncWriteExt as _;

        let flow = Flow::new(&Arc::default(), Side::Server, 1);
        let mut io = FlowIo::new(Sink::default(), &flow);
        flow.gather();
        let mut all = Vec::new();
        for _ in 0..3 {
            all.extend_from_slice(&data(100));
            io.write_all(&data(100)).await.unwrap();
            io.flush().await.unwrap();
        }
        assert_eq!(io.stream.calls, 0);
        assert!(flow.release() && !flow.release());
        io.flush().await.unwrap();
        assert_eq!((io.stream.calls, &io.stream.bytes), (1, &all));
        assert!(io.held.capacity() == 0 && !flow.0.holds.get());

        // No more than that is held back, and a long piece never.
        flow.gather();
        let mut written = 0;
        while io.stream.calls == 1 {
            all.extend_from_slice(&data(1000));
            written += data(1000).len();
            io.write_all(&data(1000)).await.unwrap();
            assert!(written < HELD_BYTES + 2 * data(1000).len());
        }
        all.extend_from_slice(&data(HELD_BYTES));
        io.write_all(&data(HELD_BYTES)).await.unwrap();
        assert_eq!(io.stream.bytes, all);
        io.write_all(&data(5)).await.unwrap();
        io.shutdown().await.unwrap();
        all.extend_from_slice(&data(5));
        assert_eq!(io.stream.bytes, all);
    }

    #[tokio::test]
    async fn bodies_of_many_windows_arrive_whole_however_the_bytes_are_cut() {
        let bytes: Bytes = (0..WINDOW_MIN + WINDOW_MIN / 4)
            .map(|n| n.to_le_bytes()[1])
            .collect();
        // No fewer: where SETTINGS do not fit, both ends of h2 wait for each other to read them.
        for cut in [1_000, 1_013, 1 << 20] {
            assert_eq!(echo(cut, &bytes).await, bytes, "{cut} bytes at once");
        }
    }

    #[test]
    fn as_many_streams_may_be_reset_in_a_second_and_no_more() {
        let began = Instant::now();
        let mut resets = Resets::default();
        for _ in 0..2 {
            for (after, count) in [(0, 7), (999, 3)] {
                for _ in 0..count {
                    let at = began + Duration::from_millis(after);
                    let (next, too_many) = resets.with(10, at);
                    assert!(!too_many);
                    resets = next;
                }
            }
            let (_, too_many) = resets.with(10, began + Duration::from_millis(999));
            assert!(too_many);
            resets = Resets::default();
        }
        // The next second begins anew.
        let (next, _) = resets.with(1, began);
        let (next, too_many) = next.with(1, began + Duration::from_secs(1));
        assert!(!too_many && next.count == 1);
    }

    #[test]
    fn padding_is_granted_again_at_once() {
        let flow = Flow::new(&Arc::default(), Side::Client, 1);
        let window = flow.open(1);
        let mut frames = Frames::after(0);
        // DATA of 16,384 bytes with 255 of padding, in pieces; nobody reads the rest.
        let mut frame = vec![0, 0x40, 0, DATA, PADDED, 0, 0, 0, 1, 254];
        frame.extend_from_slice(&[0; 16_383]);
        for piece in frame.chunks(7) {
            frames.walk(piece, &flow).unwrap();
        }
        let unread = flow.0.streams.borrow().get(&1).map(|one| one.unread);
        assert_eq!(unread, Some(16_384 - 255));
        for _ in 0..2 {
            frames.walk(&frame, &flow).unwrap();
        }
        frames.walk(&frame, &flow).unwrap_err();
        drop(window);
        // Nothing is kept of a stream that is closed, and what still comes for it is h2's to refuse.
        Frames::after(0).walk(&frame, &flow).unwrap();
    }
}
