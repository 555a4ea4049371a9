//! Moving bytes both ways: half-close, an idle deadline, byte counts.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::time::Instant;

/// What one direction buffers.
const BUFFER_BYTES: usize = 16 * 1024;

/// Bytes moved so far; readable while the relay runs and after it was dropped.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// From the caller to the endpoint.
    pub(crate) up: Cell<u64>,
    /// From the endpoint to the caller.
    pub(crate) down: Cell<u64>,
}

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum RelayEnd {
    /// Both directions were closed in order.
    Closed,
    /// No byte moved for the idle time.
    Idle,
    /// The caller's side failed.
    Downstream(io::Error),
    /// The endpoint's side failed.
    Upstream(io::Error),
}

enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

/// Relays until both directions are closed, one fails, or nothing moved for `idle`.
///
/// The end of one direction is passed on and leaves the other open (RFC 9293 §3.6).
///
/// # Cancel safety
/// Dropping the future drops both streams; what was moved stands in `moved`.
pub(crate) async fn relay<D, U>(
    downstream: D,
    upstream: U,
    idle: Duration,
    moved: &Moved,
) -> RelayEnd
where
    D: AsyncRead + AsyncWrite,
    U: AsyncRead + AsyncWrite,
{
    let (down_read, down_write) = tokio::io::split(downstream);
    let (up_read, up_write) = tokio::io::split(upstream);
    let moved_at = Cell::new(Instant::now());
    let mut upwards = pin!(copy(down_read, up_write, &moved.up, &moved_at));
    let mut downwards = pin!(copy(up_read, down_write, &moved.down, &moved_at));
    let (mut up_open, mut down_open) = (true, true);
    loop {
        // Every arm is cancel-safe: the copies are pinned outside of the loop.
        tokio::select! {
            ended = &mut upwards, if up_open => match ended {
                Ok(()) => up_open = false,
                Err(Broken::Reading(error)) => return RelayEnd::Downstream(error),
                Err(Broken::Writing(error)) => return RelayEnd::Upstream(error),
            },
            ended = &mut downwards, if down_open => match ended {
                Ok(()) => down_open = false,
                Err(Broken::Reading(error)) => return RelayEnd::Upstream(error),
                Err(Broken::Writing(error)) => return RelayEnd::Downstream(error),
            },
            () = tokio::time::sleep_until(moved_at.get() + idle) => {
                if moved_at.get().elapsed() >= idle {
                    return RelayEnd::Idle;
                }
            }
        }
        if !up_open && !down_open {
            return RelayEnd::Closed;
        }
    }
}

async fn copy<R: AsyncRead, W: AsyncWrite>(
    mut from: ReadHalf<R>,
    mut to: WriteHalf<W>,
    moved: &Cell<u64>,
    moved_at: &Cell<Instant>,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => return to.shutdown().await.map_err(Broken::Writing),
            Ok(n) => n,
            Err(error) => return Err(Broken::Reading(error)),
        };
        moved_at.set(Instant::now());
        let read = buffer.get(..n).unwrap_or_default();
        to.write_all(read).await.map_err(Broken::Writing)?;
        to.flush().await.map_err(Broken::Writing)?;
        moved.set(moved.get() + n as u64);
        moved_at.set(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn half_close_keeps_the_other_direction() {
        let (mut client, near) = tokio::io::duplex(64);
        let (far, mut server) = tokio::io::duplex(64);
        let moved = Moved::default();
        let relaying = relay(near, far, Duration::from_secs(60), &moved);
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
        let relaying = relay(near, far, Duration::from_secs(10), &moved);
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
}
