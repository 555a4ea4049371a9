//! The distance between two clusters: a relay that hands bytes on later, never fewer.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::hold::span;

const CHUNK_BYTES: usize = 16 * 1024;
/// 16 MiB on their way in one direction: at 40 ms each way that is 400 MB/s on one connection.
const CHUNKS_UNDER_WAY: usize = 1024;
const CONNECTIONS_MAX: usize = 4096;

/// What `zeugma demo-relay` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct RelayArgs {
    /// Where it listens
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// Where the bytes go
    #[arg(long)]
    pub(crate) to: SocketAddr,
    /// How much later they arrive, in each direction
    #[arg(long, value_parser = span)]
    pub(crate) delay: Duration,
}

/// Runs a relay until its process ends.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) async fn run(args: RelayArgs) -> io::Result<()> {
    let listener = TcpListener::bind(args.listen).await?;
    serve(listener, args.to, args.delay).await;
    Ok(())
}

async fn serve(listener: TcpListener, to: SocketAddr, delay: Duration) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((near, _)) => {
                connections.spawn(relay(near, to, delay));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A broken direction ends both, so that each side sees what the other did.
async fn relay(near: TcpStream, to: SocketAddr, delay: Duration) {
    let Ok(far) = TcpStream::connect(to).await else {
        return;
    };
    near.set_nodelay(true).ok();
    far.set_nodelay(true).ok();
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    tokio::try_join!(
        carry(near_read, far_write, delay),
        carry(far_read, near_write, delay),
    )
    .ok();
}

async fn carry<R, W>(from: R, to: W, delay: Duration) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (sender, receiver) = mpsc::channel(CHUNKS_UNDER_WAY);
    tokio::try_join!(take(from, sender, delay), give(to, receiver))?;
    Ok(())
}

/// The end of the stream travels as an empty chunk: it takes as long as a byte would.
async fn take<R: AsyncRead + Unpin>(
    mut from: R,
    under_way: mpsc::Sender<(Instant, Bytes)>,
    delay: Duration,
) -> io::Result<()> {
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        let count = from.read_buf(&mut chunk).await?;
        let due = Instant::now() + delay;
        if under_way.send((due, chunk.freeze())).await.is_err() || count == 0 {
            return Ok(());
        }
    }
}

async fn give<W: AsyncWrite + Unpin>(
    mut to: W,
    mut under_way: mpsc::Receiver<(Instant, Bytes)>,
) -> io::Result<()> {
    while let Some((due, chunk)) = under_way.recv().await {
        tokio::time::sleep_until(due).await;
        if chunk.is_empty() {
            break;
        }
        to.write_all(&chunk).await?;
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An echo that answers at the end of the stream, so that a half-close must pass.
    async fn far_side(bytes: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            assert_eq!(all.len(), bytes);
            stream.write_all(&all).await.unwrap();
        });
        address
    }

    async fn round_trip(payload: &[u8], delay: Duration) -> Duration {
        let to = far_side(payload.len()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener, to, delay));
        let before = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(payload).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert!(back == payload, "the bytes came back changed");
        before.elapsed()
    }

    #[tokio::test]
    async fn each_direction_takes_the_delay_and_the_half_close_passes() {
        let took = round_trip(b"hello", Duration::from_millis(40)).await;
        assert!(took >= Duration::from_millis(80), "{took:?}");
    }

    #[tokio::test]
    async fn many_bytes_share_one_delay() {
        // Four mebibytes are 256 chunks or more: one delay after the other would take over 5 s
        // each way.
        let payload: Vec<u8> = (0..4 * 1024 * 1024_u32)
            .map(|i| i.to_le_bytes()[0])
            .collect();
        let took = round_trip(&payload, Duration::from_millis(20)).await;
        assert!(took < Duration::from_secs(4), "{took:?}");
    }
}
