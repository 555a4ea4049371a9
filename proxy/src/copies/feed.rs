//! What a caller sends, on its way to copies of its connection: bytes that wait, within a bound.
//!
//! ```text
//! Goes --end read--> Ended --caller's stream dropped--> Over
//! Goes --caller's stream dropped--> Broken
//! Goes --more waits than may--> TooSlow
//! ```
//!
//! Whoever gives never waits: what a copy does not take in time ends the copy.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

use crate::transport::Stream;

/// How the caller's side stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Giving {
    /// More may come.
    Goes,
    /// It ended in order, and may still be answered.
    Ended,
    /// It ended in order, and is answered no more.
    Over,
    /// It was broken off.
    Broken,
    /// More would wait than may: nothing comes any more, and what waited is gone.
    TooSlow,
}

#[derive(Debug)]
struct Waiting {
    bytes: VecDeque<u8>,
    bytes_max: usize,
    giving: Giving,
    waker: Option<Waker>,
}

impl Waiting {
    fn becomes(&mut self, giving: Giving) {
        self.giving = giving;
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Where bytes are given to one copy.
#[derive(Debug)]
pub(super) struct Giver(Rc<RefCell<Waiting>>);

/// Where one copy takes them.
#[derive(Debug)]
pub(super) struct Taker(Rc<RefCell<Waiting>>);

/// A way to one copy, on which no more than `bytes_max` bytes wait.
pub(super) fn feed(bytes_max: usize) -> (Giver, Taker) {
    let waiting = Rc::new(RefCell::new(Waiting {
        bytes: VecDeque::new(),
        bytes_max,
        giving: Giving::Goes,
        waker: None,
    }));
    (Giver(Rc::clone(&waiting)), Taker(waiting))
}

impl Giver {
    /// Gives bytes; whether more of them will be taken.
    fn give(&self, bytes: &[u8]) -> bool {
        if Rc::strong_count(&self.0) == 1 {
            // The copy is over.
            return false;
        }
        let mut waiting = self.0.borrow_mut();
        if bytes.len() > waiting.bytes_max - waiting.bytes.len() {
            waiting.bytes = VecDeque::new();
            waiting.becomes(Giving::TooSlow);
            return false;
        }
        waiting.bytes.extend(bytes);
        waiting.wake();
        true
    }

    fn end(&self) {
        self.0.borrow_mut().becomes(Giving::Ended);
    }
}

impl Drop for Giver {
    fn drop(&mut self) {
        let mut waiting = self.0.borrow_mut();
        match waiting.giving {
            Giving::Goes => waiting.becomes(Giving::Broken),
            Giving::Ended => waiting.becomes(Giving::Over),
            Giving::Over | Giving::Broken | Giving::TooSlow => {}
        }
    }
}

impl Taker {
    /// How the caller's side stands; whoever asks is woken when that changes or bytes come.
    pub(super) fn giving(&self, cx: &mut Context<'_>) -> Giving {
        let mut waiting = self.0.borrow_mut();
        if !(waiting.waker.as_ref()).is_some_and(|waker| waker.will_wake(cx.waker())) {
            waiting.waker = Some(cx.waker().clone());
        }
        waiting.giving
    }

    /// Has `write` take some of what waits; ready with whether nothing waits.
    pub(super) fn poll_take(
        &self,
        write: impl FnOnce(&[u8]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<bool>> {
        let mut waiting = self.0.borrow_mut();
        let (first, _) = waiting.bytes.as_slices();
        if first.is_empty() {
            return Poll::Ready(Ok(true));
        }
        write(first).map_ok(|n| {
            let n = n.min(waiting.bytes.len());
            waiting.bytes.drain(..n);
            if waiting.bytes.is_empty() {
                // A copy that has nothing to do holds nothing.
                waiting.bytes = VecDeque::new();
            }
            false
        })
    }
}

/// A caller's stream of which copies are made as it is read.
#[derive(Debug)]
pub(crate) struct Copied {
    stream: Stream,
    givers: Vec<Giver>,
}

impl Copied {
    pub(super) const fn new(stream: Stream, givers: Vec<Giver>) -> Self {
        Self { stream, givers }
    }

    /// The stream itself.
    pub(crate) const fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The stream itself, for all but reading.
    pub(crate) const fn stream_mut(&mut self) -> &mut Stream {
        &mut self.stream
    }

    /// As [`Stream::socket`], once no copy is left: what is spliced is not seen.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        self.stream.socket().filter(|_| self.givers.is_empty())
    }

    /// As [`AsyncRead::poll_read`].
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, had_room) = (buf.filled().len(), buf.remaining() > 0);
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if matches!(polled, Poll::Ready(Ok(()))) && had_room && !self.givers.is_empty() {
            let read = buf.filled().get(before..).unwrap_or_default();
            if read.is_empty() {
                self.givers.iter().for_each(Giver::end);
            } else {
                self.givers.retain(|giver| giver.give(read));
            }
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Takes up to so many bytes.
    fn taken(taker: &Taker, most: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < most {
            let polled = taker.poll_take(|bytes| {
                let n = bytes.len().min(most - all.len());
                all.extend(&bytes[..n]);
                Poll::Ready(Ok(n))
            });
            if matches!(polled, Poll::Ready(Ok(true))) {
                break;
            }
        }
        all
    }

    async fn giving(taker: &Taker) -> Giving {
        poll_fn(|cx| Poll::Ready(taker.giving(cx))).await
    }

    #[tokio::test]
    async fn no_more_waits_than_may_and_what_was_taken_makes_room() {
        let (giver, taker) = feed(4);
        assert!(giver.give(b"abcd"));
        assert_eq!(taken(&taker, 3), b"abc");
        assert!(giver.give(b"efg"));
        assert_eq!(taken(&taker, 9), b"defg");
        assert!(giver.give(b"hijk"));
        assert!(!giver.give(b"l"));
        assert_eq!(giving(&taker).await, Giving::TooSlow);
        assert_eq!(taken(&taker, 9), b"");
        // That it is dropped then changes nothing.
        drop(giver);
        assert_eq!(giving(&taker).await, Giving::TooSlow);
    }

    #[tokio::test]
    async fn an_end_and_a_break_are_told_apart_and_what_waits_is_left() {
        for (ends, expected) in [(true, Giving::Over), (false, Giving::Broken)] {
            let (giver, taker) = feed(4);
            assert!(giver.give(b"ab"));
            assert_eq!(giving(&taker).await, Giving::Goes);
            if ends {
                giver.end();
                assert_eq!(giving(&taker).await, Giving::Ended);
            }
            drop(giver);
            assert_eq!(giving(&taker).await, expected);
            assert_eq!(taken(&taker, 9), b"ab");
        }
    }

    #[tokio::test]
    async fn nothing_is_kept_for_a_copy_that_is_over() {
        let (giver, taker) = feed(4);
        drop(taker);
        assert!(!giver.give(b"a"));
        assert!(giver.0.borrow().bytes.is_empty());
    }

    #[tokio::test]
    async fn a_stream_may_be_spliced_once_no_copy_of_it_is_left() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut far, (near, _)) = (far.unwrap(), near.unwrap());
        let (giver, taker) = feed(4);
        let mut copied = Stream::Copied(Box::new(Copied::new(Stream::plain(near), vec![giver])));
        let mut read = [0; 4];
        far.write_all(b"ab").await.unwrap();
        copied.read_exact(&mut read[..2]).await.unwrap();
        assert!(copied.socket().is_none());
        assert_eq!(taken(&taker, 9), b"ab");
        // More than may wait: the copy is given up, and the stream goes on.
        far.write_all(b"cdefg").await.unwrap();
        let mut all = [0; 5];
        copied.read_exact(&mut all).await.unwrap();
        assert_eq!(&all, b"cdefg");
        assert!(copied.socket().is_some());
        assert_eq!(giving(&taker).await, Giving::TooSlow);
    }
}
