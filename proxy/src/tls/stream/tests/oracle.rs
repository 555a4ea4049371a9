//! The same script through ours and through tokio-rustls: the same bytes, order and end.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::super::IN_PLACE_BYTES;
use super::carrier::Choppy;
use super::{DEADLINE, Io, Kind, accept, connect};

/// What a side does besides reading to the end.
#[derive(Debug, Clone)]
enum Act {
    Write(usize),
    Flush,
}

/// How a side ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Shutdown,
    /// Goes without close_notify, once the other side has ended.
    Vanish,
}

#[derive(Debug, Clone)]
struct Script {
    client: (Vec<Act>, Ending),
    server: (Vec<Act>, Ending),
    /// How much may be under way.
    capacity: usize,
    /// The largest portion that the carrier carries.
    portion: usize,
    seed: u64,
}

/// What a side has seen.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    read: usize,
    /// How many reads had other bytes than were sent there.
    wrong: usize,
    end: Result<(), io::ErrorKind>,
    written: Result<(), io::ErrorKind>,
}

/// What either side writes, from its beginning.
static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut random = fastrand::Rng::with_seed(1);
    std::iter::repeat_with(|| random.u8(..))
        .take(WRITES_MAX * WRITE_BYTES_MAX)
        .collect()
});
/// How many writes a script has.
const WRITES_MAX: usize = 5;
/// What is written by one.
const WRITE_BYTES_MAX: usize = 700_000;

/// A side that reads and writes in turns, each time with other buffers: what did not go through is
/// tried again as if the first try had been dropped.
struct Actor {
    stream: Option<Box<dyn Io>>,
    acts: VecDeque<Act>,
    ending: Option<Ending>,
    wrote: usize,
    random: fastrand::Rng,
    seen: Seen,
    end_read: bool,
}

impl Actor {
    fn new(stream: Box<dyn Io>, (acts, ending): &(Vec<Act>, Ending), seed: u64) -> Self {
        Self {
            stream: Some(stream),
            acts: acts.iter().cloned().collect(),
            ending: Some(*ending),
            wrote: 0,
            random: fastrand::Rng::with_seed(seed),
            seen: Seen {
                read: 0,
                wrong: 0,
                end: Ok(()),
                written: Ok(()),
            },
            end_read: false,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let read = self.poll_read(cx);
            let wrote = self.poll_write(cx);
            if self.end_read && self.ending.is_none() {
                return Poll::Ready(());
            }
            if read.is_pending() && wrote.is_pending() {
                return Poll::Pending;
            }
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(stream) = self.stream.as_mut().filter(|_| !self.end_read) else {
            return Poll::Pending;
        };
        let size = match self.random.u8(..4) {
            0 => 1,
            1 => self.random.usize(1..64),
            2 => self.random.usize(1..20_000),
            _ => IN_PLACE_BYTES,
        };
        // Records are decrypted in a buffer that is large enough if it was written before.
        let (mut bytes, mut unwritten) = (vec![0; size], Vec::with_capacity(size));
        let mut buf = if self.random.bool() {
            ReadBuf::new(&mut bytes)
        } else {
            ReadBuf::uninit(unwritten.spare_capacity_mut())
        };
        match Pin::new(stream).poll_read(cx, &mut buf) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                let read = self.seen.read..self.seen.read + buf.filled().len();
                self.seen.wrong += usize::from(BYTES.get(read.clone()) != Some(buf.filled()));
                self.seen.read = read.end;
            }
            Poll::Ready(result) => {
                self.seen.end = result.map_err(|error| error.kind());
                self.end_read = true;
            }
        }
        Poll::Ready(())
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let (Some(stream), Some(ending)) = (&mut self.stream, self.ending) else {
            return Poll::Pending;
        };
        let stream = Pin::new(stream);
        let result = match self.acts.front_mut() {
            Some(Act::Write(left)) => {
                let bytes = &BYTES[self.wrote..self.wrote + *left];
                let polled = if self.random.bool() {
                    stream.poll_write(cx, bytes)
                } else {
                    let slices = slices(bytes, &mut self.random);
                    stream.poll_write_vectored(cx, &slices)
                };
                polled.map_ok(|n| {
                    self.wrote += n;
                    *left -= n;
                    *left == 0
                })
            }
            Some(Act::Flush) => stream.poll_flush(cx).map_ok(|()| true),
            None if ending == Ending::Shutdown => stream.poll_shutdown(cx).map_ok(|()| true),
            None if self.end_read => Poll::Ready(Ok(true)),
            None => Poll::Pending,
        };
        match result {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(false)) => {}
            Poll::Ready(Ok(true)) => {
                if self.acts.pop_front().is_none() {
                    self.finish(ending);
                }
            }
            Poll::Ready(Err(error)) => {
                self.seen.written = Err(error.kind());
                self.finish(ending);
            }
        }
        Poll::Ready(())
    }

    fn finish(&mut self, ending: Ending) {
        self.ending = None;
        if ending == Ending::Vanish {
            self.stream = None;
            self.end_read = true;
        }
    }
}

fn slices<'a>(bytes: &'a [u8], random: &mut fastrand::Rng) -> Vec<IoSlice<'a>> {
    let mut slices = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() && slices.len() < 20 {
        let size = if random.bool() { 40 } else { 40_000 };
        let n = random.usize(0..=size).min(rest.len());
        let (slice, over) = rest.split_at(n);
        slices.push(IoSlice::new(slice));
        rest = over;
    }
    // An empty one at the end as well, as h2 has them.
    if slices.iter().any(|slice| !slice.is_empty()) {
        slices.push(IoSlice::new(&[]));
        return slices;
    }
    vec![IoSlice::new(bytes)]
}

/// What both sides see, client first.
async fn play(script: &Script, client: Kind, server: Kind) -> (Seen, Seen) {
    let (near, far) = tokio::io::duplex(script.capacity);
    let choppy = |carrier, seed| Choppy {
        carrier,
        random: fastrand::Rng::with_seed(seed),
        portion: script.portion,
    };
    let seed = script.seed;
    let carriers = (choppy(near, seed), choppy(far, seed ^ 1));
    // Each side goes on by itself: a server may still be sending tickets when the client is done.
    let client = async {
        let stream = connect(client, carriers.0).await.unwrap();
        let mut actor = Actor::new(stream, &script.client, seed ^ 2);
        poll_fn(|cx| actor.poll(cx)).await;
        actor
    };
    let server = async {
        let stream = accept(server, carriers.1).await.unwrap();
        let mut actor = Actor::new(stream, &script.server, seed ^ 3);
        poll_fn(|cx| actor.poll(cx)).await;
        actor
    };
    let (client, server) = tokio::join!(client, server);
    (client.seen, server.seen)
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let size = prop_oneof![
        1..40_usize,
        16_380..16_390_usize,
        1..40_000_usize,
        200_000..WRITE_BYTES_MAX
    ];
    let act = prop_oneof![3 => size.prop_map(Act::Write), 1 => Just(Act::Flush)];
    prop::collection::vec(act, 0..=WRITES_MAX)
}

fn script() -> impl Strategy<Value = Script> {
    // Both may not wait for the other to end first.
    let endings = prop_oneof![
        3 => Just((Ending::Shutdown, Ending::Shutdown)),
        1 => Just((Ending::Vanish, Ending::Shutdown)),
        1 => Just((Ending::Shutdown, Ending::Vanish)),
    ];
    let capacity = prop_oneof![16..2_000_usize, 10_000..400_000_usize];
    let portion = prop_oneof![1..8_usize, 1..3_000_usize, Just(1 << 20)];
    (acts(), acts(), endings, capacity, portion, any::<u64>()).prop_map(
        |(client, server, endings, capacity, portion, seed)| {
            // So that no script takes more than some thousand portions.
            let most = portion.min(capacity).saturating_mul(400);
            let cut = |acts: Vec<Act>| {
                let acts = acts.into_iter().map(|act| match act {
                    Act::Write(n) => Act::Write(n.min(most)),
                    Act::Flush => Act::Flush,
                });
                acts.chain([Act::Flush]).collect()
            };
            Script {
                client: (cut(client), endings.0),
                server: (cut(server), endings.1),
                capacity,
                portion,
                seed,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        max_shrink_time: 30_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_same_script_has_the_same_outcome_as_with_tokio_rustls(script in script()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let played = |client, server| {
            let played = async { timeout(DEADLINE, play(&script, client, server)).await };
            let played = runtime.block_on(played);
            played.unwrap_or_else(|_| panic!("{client:?} and {server:?} did not end"))
        };
        let expected = played(Kind::Oracle, Kind::Oracle);
        prop_assert_eq!(expected.0.wrong + expected.1.wrong, 0);
        for (client, server) in [
            (Kind::Ours, Kind::Oracle),
            (Kind::Oracle, Kind::Ours),
            (Kind::Ours, Kind::Ours),
        ] {
            let outcome = played(client, server);
            prop_assert_eq!(&outcome, &expected, "{:?} and {:?}", client, server);
        }
    }
}
