//! What a connection owns, and how much goes through at once.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::super::{
    BATCH_BYTES_MAX, BATCH_BYTES_MIN, FRONT_BYTES, IN_PLACE_BYTES, RECORD_BYTES,
    RECORD_OVERHEAD_BYTES, TlsStream,
};
use super::carrier::Tampered;
use super::{Io, SIDES, connect_whole, with_oracle_client};

type Counted = Box<TlsStream<Tampered<DuplexStream>>>;

/// Client and server of ours, over a pipe of `capacity`.
async fn pair(capacity: usize) -> (Counted, Counted) {
    let (near, far) = tokio::io::duplex(capacity);
    let (client, server) = tokio::join!(
        connect_whole(Tampered::counted(near)),
        TlsStream::accept(Arc::clone(&SIDES.server), Tampered::counted(far)),
    );
    (client, server.unwrap())
}

fn owned<S>(stream: &TlsStream<S>) -> usize {
    let queued = stream.plaintext.bytes().len() + stream.outgoing.bytes().len();
    stream.held.capacity() + queued
}

/// One try to write `bytes`; `None`: not now.
fn try_write(stream: &mut impl Io, bytes: &[u8]) -> Option<usize> {
    let mut cx = Context::from_waker(Waker::noop());
    match Pin::new(stream).poll_write(&mut cx, bytes) {
        Poll::Ready(result) => Some(result.unwrap()),
        Poll::Pending => None,
    }
}

#[tokio::test]
async fn an_idle_connection_owns_no_bytes() {
    let (mut ours, mut theirs) = with_oracle_client().await;
    assert_eq!(owned(&ours), 0, "after the handshake");
    let mut back = vec![0; 100_000];
    theirs.write_all(&vec![7; 100_000]).await.unwrap();
    theirs.flush().await.unwrap();
    ours.read_exact(&mut back[..10]).await.unwrap();
    assert_ne!(owned(&ours), 0, "there is more than was read");
    ours.read_exact(&mut back[10..]).await.unwrap();
    ours.write_all(&back).await.unwrap();
    ours.flush().await.unwrap();
    theirs.read_exact(&mut back).await.unwrap();
    assert_eq!(owned(&ours), 0, "after bytes went both ways");
}

#[tokio::test]
async fn a_batch_is_one_write_and_one_read_of_the_carrier() {
    let (mut client, mut server) = pair(1 << 20).await;
    let bytes = vec![1; BATCH_BYTES_MAX];
    // A full batch lets the next be twice as large.
    let mut batch = BATCH_BYTES_MIN;
    let mut read = vec![0; BATCH_BYTES_MAX];
    loop {
        let before = (client.carrier.writes, server.carrier.reads);
        assert_eq!(client.write(&bytes).await.unwrap(), batch);
        assert_eq!(client.carrier.writes, before.0 + 1);
        assert_eq!(server.read(&mut read).await.unwrap(), batch);
        assert_eq!(server.carrier.reads, before.1 + 1);
        if batch == BATCH_BYTES_MAX {
            break;
        }
        batch = (batch * 2).min(BATCH_BYTES_MAX);
    }
}

#[tokio::test]
async fn records_are_decrypted_in_a_buffer_that_has_room_for_a_batch() {
    let (mut ours, mut theirs) = with_oracle_client().await;
    for (room, in_place) in [(IN_PLACE_BYTES - 1, false), (IN_PLACE_BYTES, true)] {
        let mut read = vec![0; room];
        theirs.write_all(b"before").await.unwrap();
        // What is no data stands between the records (RFC 8446 §4.6.3).
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(b" and after").await.unwrap();
        theirs.flush().await.unwrap();
        assert_eq!(ours.read(&mut read).await.unwrap(), 16);
        assert_eq!(&read[..16], b"before and after");
        // The header of the first record (RFC 8446 §5.2).
        let header = [23, 3, 3, 0, 23];
        assert_eq!(read[FRONT_BYTES..][..5] == header, in_place, "{room}");
    }
    // As many records as a batch has, and no more.
    let (mut client, mut server) = pair(1 << 20).await;
    let bytes = vec![1; 2 * BATCH_BYTES_MAX];
    client.write_all(&bytes).await.unwrap();
    client.flush().await.unwrap();
    let mut read = vec![0; 2 * IN_PLACE_BYTES];
    let before = server.carrier.reads;
    for _ in 0..2 {
        assert_eq!(server.read(&mut read).await.unwrap(), BATCH_BYTES_MAX);
    }
    assert_eq!(server.carrier.reads, before + 2);
}

#[tokio::test]
async fn a_record_that_is_not_whole_is_held_for_whatever_buffer_it_is_read_with_next() {
    // No record fits, so that each read leaves a part of one.
    let (mut client, mut server) = pair(5_000).await;
    let sent: Vec<u8> = (0..300_000)
        .map(|n| u8::try_from(n % 251).unwrap())
        .collect();
    let writing = async {
        client.write_all(&sent).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let reading = async {
        let (mut got, mut held) = (Vec::new(), [0, 0]);
        let mut rooms = [IN_PLACE_BYTES, 20_000].into_iter().enumerate().cycle();
        loop {
            let (nth, room) = rooms.next().unwrap();
            held[nth] += usize::from(!server.held.is_empty());
            let mut read = vec![0; room];
            match server.read(&mut read).await.unwrap() {
                0 => break,
                n => got.extend_from_slice(&read[..n]),
            }
        }
        assert!(got == sent);
        held
    };
    let ((), held) = tokio::join!(writing, reading);
    assert!(held.iter().all(|held| *held > 1), "{held:?}");
    assert_eq!(owned(&server), 0);
}

#[tokio::test]
async fn the_last_bytes_leave_with_close_notify() {
    // A record's worth, and more.
    for (len, writes) in [(1, 1), (RECORD_BYTES, 1), (2 * RECORD_BYTES, 2)] {
        let (mut client, mut server) = pair(1 << 20).await;
        client.hold_last();
        let before = client.carrier.writes;
        client.write_all(&vec![3; len]).await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.carrier.writes - before, writes, "{len}");
        assert_eq!(owned(&client), 0);
        let mut read = Vec::new();
        // Its end is no truncation.
        server.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, vec![3; len]);
    }
    // Whoever flushes instead loses nothing.
    let (mut client, mut server) = pair(1 << 20).await;
    client.hold_last();
    client.write_all(b"one").await.unwrap();
    client.write_all(b"two").await.unwrap();
    client.flush().await.unwrap();
    let mut read = [0; 6];
    server.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"onetwo");
}

#[tokio::test]
async fn small_slices_share_records() {
    let (mut client, mut server) = pair(1 << 20).await;
    let (small, large) = ([1_u8; 9], [2_u8; RECORD_BYTES]);
    let slices = [
        IoSlice::new(&small),
        IoSlice::new(&large),
        IoSlice::new(&small),
        IoSlice::new(&small),
    ];
    let total = 3 * small.len() + large.len();
    assert_eq!(client.write_vectored(&slices).await.unwrap(), total);
    // Two records, where each slice would have been one.
    let mut wire = vec![0; 2 * RECORD_BYTES];
    let n = server.carrier.carrier.read(&mut wire).await.unwrap();
    assert_eq!(n, total + 2 * RECORD_OVERHEAD_BYTES);
}

#[tokio::test]
async fn a_reader_that_stops_costs_one_batch_and_stops_the_writer() {
    let (mut client, mut server) = pair(4096).await;
    let bytes = vec![1; 1 << 20];
    assert_eq!(try_write(&mut client, &bytes), Some(BATCH_BYTES_MIN));
    assert_eq!(try_write(&mut client, &bytes), None);
    assert!(client.outgoing.bytes().len() <= BATCH_BYTES_MIN + 4 * RECORD_OVERHEAD_BYTES);
    let mut read = vec![0; BATCH_BYTES_MIN];
    let (read, flushed) = tokio::join!(server.read_exact(&mut read), client.flush());
    read.unwrap();
    flushed.unwrap();
    assert_eq!(owned(&client), 0);
    assert_eq!(owned(&server), 0);
}
