use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::transport::Prefixed;

/// More than what sockets buffer on loopback, so that a direction has to wait for its sink.
const BULK: usize = 24 * 1024 * 1024;
/// Pipes enough.
const ENOUGH: usize = 8;
const IDLE: Duration = Duration::from_secs(60);
const DEADLINE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn half_close_keeps_the_other_direction() {
    let (mut client, near) = tokio::io::duplex(64);
    let (far, mut server) = tokio::io::duplex(64);
    let moved = Moved::default();
    let relaying = relay(
        near,
        far,
        Duration::from_secs(60),
        &moved,
        Entry::unlisted(),
    );
    let story = async {
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        server
            .write_all(b"a long answer after the end of the question")
            .await
            .unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (end, answer) = tokio::join!(relaying, story);
    assert_eq!(answer.len(), 43);
    assert_eq!((moved.up.get(), moved.down.get()), (8, 43));
    assert!(matches!(end, RelayEnd::Closed));
}

#[tokio::test(start_paused = true)]
async fn silence_in_both_directions_ends_it_after_the_idle_time() {
    let (mut client, near) = tokio::io::duplex(64);
    let (far, mut server) = tokio::io::duplex(64);
    let began = Instant::now();
    let moved = Moved::default();
    let relaying = relay(
        near,
        far,
        Duration::from_secs(10),
        &moved,
        Entry::unlisted(),
    );
    let story = async {
        tokio::time::sleep(Duration::from_secs(9)).await;
        client.write_all(b"x").await.unwrap();
        let mut byte = [0];
        server.read_exact(&mut byte).await.unwrap();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        end = relaying => assert!(matches!(end, RelayEnd::Idle)),
        () = story => {}
    }
    assert_eq!(began.elapsed().as_secs(), 19);
}

/// A caller and an endpoint, and the gateway's sockets between them.
struct Wired {
    caller: TcpStream,
    near: TcpStream,
    far: TcpStream,
    endpoint: TcpStream,
}

impl Wired {
    async fn new() -> Self {
        let (caller, near) = connected().await;
        let (far, endpoint) = connected().await;
        Self {
            caller,
            near,
            far,
            endpoint,
        }
    }
}

async fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(address), listener.accept());
    (one.unwrap(), other.unwrap().0)
}

fn noise(seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; BULK];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Writes all of `bytes` in portions of many sizes, and ends.
async fn write_portions(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8], seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut rest = bytes;
    while !rest.is_empty() {
        let n = 1 << random.u32(0..20);
        let (now, later) = rest.split_at(n.min(rest.len()));
        to.write_all(now).await.unwrap();
        if random.u8(0..8) == 0 {
            tokio::task::yield_now().await;
        }
        rest = later;
    }
    to.shutdown().await.unwrap();
}

/// Reads to the end in portions of many sizes.
async fn read_portions(from: &mut (impl AsyncRead + Unpin), seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut all = Vec::with_capacity(BULK);
    let mut portion = vec![0; 1 << 20];
    loop {
        let n = 1 << random.u32(8..21);
        match from.read(&mut portion[..n]).await.unwrap() {
            0 => return all,
            n => all.extend_from_slice(&portion[..n]),
        }
        for _ in 0..random.u8(0..8) {
            tokio::task::yield_now().await;
        }
    }
}

/// Both ways at once, with `pipes`; what was read ahead comes first.
async fn bulk_both_ways(pipes: Rc<Pipes>) {
    let Wired {
        mut caller,
        near,
        far,
        mut endpoint,
    } = Wired::new().await;
    let (question, answer) = (noise(1), noise(2));
    let (ahead, rest) = question.split_at(70_000);
    let moved = Rc::<Moved>::default();
    let near = Stream::Plain(Prefixed::new(near, ahead.to_vec()));
    let relaying = relay_streams(
        near,
        Stream::plain(far),
        IDLE,
        Rc::clone(&moved),
        Rc::clone(&pipes),
        Entry::unlisted(),
    );
    let (mut caller_read, mut caller_write) = caller.split();
    let (mut endpoint_read, mut endpoint_write) = endpoint.split();
    let story = async {
        tokio::join!(
            relaying,
            write_portions(&mut caller_write, rest, 3),
            write_portions(&mut endpoint_write, &answer, 4),
            read_portions(&mut endpoint_read, 5),
            read_portions(&mut caller_read, 6),
        )
    };
    let (end, (), (), asked, answered) = tokio::time::timeout(DEADLINE, story).await.unwrap();
    assert!(matches!(end, RelayEnd::Closed), "{end:?}");
    assert!(asked == question, "{} bytes up", asked.len());
    assert!(answered == answer, "{} bytes down", answered.len());
    assert_eq!(
        (moved.up.get(), moved.down.get()),
        (BULK as u64, BULK as u64)
    );
}

#[tokio::test]
async fn bulk_is_spliced_whole_in_both_directions_at_once() {
    let pipes = Pipes::with_max(ENOUGH);
    bulk_both_ways(Rc::clone(&pipes)).await;
    let (open, idle) = pipes.counts();
    assert!(open > 0, "a pipe was used");
    assert_eq!(open, idle, "and given back");
}

#[tokio::test]
async fn bulk_is_copied_whole_where_there_are_no_pipes() {
    let pipes = Pipes::with_max(0);
    bulk_both_ways(Rc::clone(&pipes)).await;
    assert_eq!(pipes.counts(), (0, 0));
}

/// Lets the others go on until `seen`.
async fn until(seen: impl Fn() -> bool) {
    while !seen() {
        tokio::task::yield_now().await;
    }
}

/// Waits until `moved` has begun, and a direction holds a pipe if there are any: it does only while
/// its sink takes no more.
async fn until_full(moved: &Cell<u64>, pipes: &Pipes, max: usize) {
    until(|| {
        let (open, idle) = pipes.counts();
        moved.get() > 0 && (max == 0 || open > idle)
    })
    .await;
}

#[tokio::test]
async fn the_end_behind_a_full_pipe_is_passed_on_after_its_bytes_and_the_other_way_stays_open() {
    for max in [0, ENOUGH] {
        for upwards in [true, false] {
            let pipes = Pipes::with_max(max);
            let Wired {
                caller,
                near,
                far,
                endpoint,
            } = Wired::new().await;
            let (mut writer, mut reader) = if upwards {
                (caller, endpoint)
            } else {
                (endpoint, caller)
            };
            let bytes = noise(7);
            let moved = Rc::<Moved>::default();
            let near = Stream::plain(near);
            let relaying = relay_streams(
                near,
                Stream::plain(far),
                IDLE,
                Rc::clone(&moved),
                Rc::clone(&pipes),
                Entry::unlisted(),
            );
            let way = if upwards { &moved.up } else { &moved.down };
            let (mut back, mut out) = writer.split();
            let story = async {
                let writing = write_portions(&mut out, &bytes, 8);
                let reading = async {
                    until_full(way, &pipes, max).await;
                    let all = read_portions(&mut reader, 9).await;
                    // The other way is open after the end.
                    reader.write_all(b"got it").await.unwrap();
                    reader.shutdown().await.unwrap();
                    all
                };
                let hearing = async {
                    let mut heard = String::new();
                    back.read_to_string(&mut heard).await.unwrap();
                    heard
                };
                tokio::join!(relaying, writing, reading, hearing)
            };
            let (end, (), all, heard) = tokio::time::timeout(DEADLINE, story).await.unwrap();
            assert!(matches!(end, RelayEnd::Closed), "{end:?}");
            assert!(all == bytes, "{} bytes, upwards: {upwards}", all.len());
            assert_eq!(heard, "got it");
            assert_eq!(way.get(), BULK as u64);
            let (open, idle) = pipes.counts();
            assert_eq!(open, idle, "all are given back");
        }
    }
}

/// Fills the way up, then lets `break_one` break a connection.
async fn broken(
    break_one: impl FnOnce(TcpStream, TcpStream) -> TcpStream,
) -> (RelayEnd, Rc<Pipes>) {
    let pipes = Pipes::with_max(ENOUGH);
    let Wired {
        mut caller,
        near,
        far,
        endpoint,
    } = Wired::new().await;
    let moved = Rc::<Moved>::default();
    let near = Stream::plain(near);
    let relaying = relay_streams(
        near,
        Stream::plain(far),
        IDLE,
        Rc::clone(&moved),
        Rc::clone(&pipes),
        Entry::unlisted(),
    );
    let story = async {
        let bytes = noise(10);
        tokio::select! {
            _ = caller.write_all(&bytes) => panic!("more than all buffers hold"),
            () = until_full(&moved.up, &pipes, ENOUGH) => {}
        }
        assert_eq!(pipes.counts(), (1, 0), "a full pipe");
        break_one(caller, endpoint)
    };
    let both = async { tokio::join!(relaying, story) };
    let (end, _held) = tokio::time::timeout(DEADLINE, both).await.unwrap();
    (end, pipes)
}

fn reset(tcp: TcpStream) {
    SockRef::from(&tcp)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(tcp);
}

#[tokio::test]
async fn a_reset_while_a_pipe_is_full_is_told_apart_by_its_side_and_costs_the_pipe() {
    let (end, pipes) = broken(|caller, endpoint| {
        reset(endpoint);
        caller
    })
    .await;
    assert!(matches!(end, RelayEnd::Upstream(_)), "{end:?}");
    assert_eq!(pipes.counts(), (0, 0));
    // The other way is open and tells of the caller, though nobody takes what it has sent.
    let (end, pipes) = broken(|caller, endpoint| {
        reset(caller);
        let answer = [1; 64];
        endpoint.try_write(&answer).unwrap();
        endpoint
    })
    .await;
    assert!(matches!(end, RelayEnd::Downstream(_)), "{end:?}");
    assert_eq!(pipes.counts(), (0, 0));
}

/// Reads what comes until the other end resets the connection.
async fn read_until_reset(tcp: &mut TcpStream) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut all));
    let error = read.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    all
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset_behind_what_came_before_it() {
    for upwards in [true, false] {
        // A message, which is copied, and a stream, which is spliced where there are pipes.
        for (bytes, max) in [(1000, 0), (4 << 20, 0), (4 << 20, ENOUGH)] {
            let pipes = Pipes::with_max(max);
            let Wired {
                caller,
                near,
                far,
                endpoint,
            } = Wired::new().await;
            let relaying = relay_streams(
                Stream::plain(near),
                Stream::plain(far),
                IDLE,
                Rc::default(),
                pipes,
                Entry::unlisted(),
            );
            let (mut resets, mut hears) = if upwards {
                (caller, endpoint)
            } else {
                (endpoint, caller)
            };
            let story = async {
                let sent = vec![3; bytes];
                let mut heard = vec![0; bytes];
                let (write, read) =
                    tokio::join!(resets.write_all(&sent), hears.read_exact(&mut heard));
                write.unwrap();
                read.unwrap();
                reset(resets);
                assert_eq!(read_until_reset(&mut hears).await, b"");
            };
            let (end, ()) = tokio::join!(relaying, story);
            let is_told_apart = match end {
                RelayEnd::Downstream(_) => upwards,
                RelayEnd::Upstream(_) => !upwards,
                RelayEnd::Closed | RelayEnd::Idle | RelayEnd::Told => false,
            };
            assert!(is_told_apart, "{end:?}");
        }
    }
}

#[tokio::test]
async fn who_is_still_being_written_to_when_a_relay_is_told_to_end_is_reset() {
    let pipes = Pipes::with_max(ENOUGH);
    let Wired {
        mut caller,
        near,
        far,
        mut endpoint,
    } = Wired::new().await;
    let moved = Rc::<Moved>::default();
    let entry = Entry::unlisted();
    let relaying = relay_streams(
        Stream::plain(near),
        Stream::plain(far),
        IDLE,
        Rc::clone(&moved),
        Rc::clone(&pipes),
        Rc::clone(&entry),
    );
    let bytes = noise(12);
    let story = async {
        tokio::select! {
            _ = caller.write_all(&bytes) => panic!("more than all buffers hold"),
            () = until_full(&moved.up, &pipes, ENOUGH) => {}
        }
        entry.tell_overdue();
    };
    let (end, ()) = tokio::join!(relaying, story);
    assert!(matches!(end, RelayEnd::Told), "{end:?}");
    assert!(bytes.starts_with(&read_until_reset(&mut endpoint).await));
}

#[tokio::test]
async fn what_was_moved_is_known_of_a_relay_that_is_dropped_midway() {
    for max in [0, ENOUGH] {
        let pipes = Pipes::with_max(max);
        let Wired {
            mut caller,
            near,
            far,
            mut endpoint,
        } = Wired::new().await;
        let moved = Rc::<Moved>::default();
        let near = Stream::plain(near);
        let relaying = relay_streams(
            near,
            Stream::plain(far),
            IDLE,
            Rc::clone(&moved),
            Rc::clone(&pipes),
            Entry::unlisted(),
        );
        let bytes = noise(11);
        tokio::select! {
            end = relaying => panic!("{end:?}"),
            _ = caller.write_all(&bytes) => panic!("more than all buffers hold"),
            () = until_full(&moved.up, &pipes, max) => {}
        }
        drop(caller);
        let mut arrived = Vec::new();
        endpoint.read_to_end(&mut arrived).await.unwrap();
        assert!(bytes.starts_with(&arrived));
        assert_eq!(arrived.len() as u64, moved.up.get(), "{max} pipes");
        assert_eq!(pipes.counts(), (0, 0), "it was not empty");
    }
}

#[tokio::test]
async fn messages_after_bulk_are_not_held_back() {
    let pipes = Pipes::with_max(ENOUGH);
    let Wired {
        mut caller,
        near,
        far,
        mut endpoint,
    } = Wired::new().await;
    let moved = Rc::<Moved>::default();
    let near = Stream::plain(near);
    let relaying = relay_streams(
        near,
        Stream::plain(far),
        IDLE,
        Rc::clone(&moved),
        Rc::clone(&pipes),
        Entry::unlisted(),
    );
    let story = async {
        let bytes = vec![1; 4 << 20];
        let mut all = vec![0; 4 << 20];
        let (write, read) = tokio::join!(caller.write_all(&bytes), endpoint.read_exact(&mut all));
        write.unwrap();
        read.unwrap();
        for n in [1, 5000, 1, 100_000, 1] {
            let message = vec![2; n];
            caller.write_all(&message).await.unwrap();
            let mut heard = vec![0; n];
            endpoint.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, message);
            let (open, idle) = pipes.counts();
            assert_eq!(open, idle, "a quiet direction holds no pipe");
        }
    };
    tokio::select! {
        end = relaying => panic!("{end:?}"),
        told = tokio::time::timeout(DEADLINE, story) => told.unwrap(),
    }
}

#[tokio::test]
async fn an_idle_relay_is_small() {
    let Wired { near, far, .. } = Wired::new().await;
    let moved = Rc::<Moved>::default();
    let pipes = Pipes::with_max(ENOUGH);
    let relaying = relay_streams(
        Stream::plain(near),
        Stream::plain(far),
        IDLE,
        Rc::clone(&moved),
        pipes,
        Entry::unlisted(),
    );
    let bytes = size_of_val(&relaying);
    assert!(bytes <= 512, "{bytes}");
}
