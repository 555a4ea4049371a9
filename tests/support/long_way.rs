//! A long way between two addresses, for the tests and the benches.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The most that is on its way at once, each way of a connection. Whoever measures looks whether it
/// was reached: the way was then not only long but narrow.
pub(crate) const WAY_BYTES_MAX: usize = 64 << 20;
/// The most that is read at once.
const CHUNK: usize = 64 * 1024;
/// Reads that wait, however small each was.
const READS_MAX: usize = 16_384;

/// A relay: bytes arrive as they were sent, in their order, a fixed time later.
#[derive(Debug)]
pub(crate) struct LongWay {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// The most that was on its way at once: there, and back.
    pub(crate) most: [Arc<AtomicUsize>; 2],
    _tasks: JoinSet<()>,
}

impl LongWay {
    /// A way to `target` that takes `one_way`; a round trip takes twice as long.
    pub(crate) async fn to(target: SocketAddr, one_way: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let most = [(); 2].map(|()| Arc::<AtomicUsize>::default());
        let [there, back] = most.clone();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            // Either end sees by itself that a connection is missing.
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(target).await else {
                    continue;
                };
                near.set_nodelay(true).ok();
                far.set_nodelay(true).ok();
                let (near_read, near_write) = near.into_split();
                let (far_read, far_write) = far.into_split();
                open.spawn(carry(near_read, far_write, one_way, Arc::clone(&there)));
                open.spawn(carry(far_read, near_write, one_way, Arc::clone(&back)));
                while open.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            most,
            _tasks: tasks,
        })
    }
}

/// What was read, and when it is to arrive.
struct OnTheWay {
    due: Instant,
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    one_way: Duration,
    most: Arc<AtomicUsize>,
) {
    let room = Arc::new(Semaphore::new(WAY_BYTES_MAX));
    let (send, mut receive) = mpsc::channel::<OnTheWay>(READS_MAX);
    let reading = async move {
        let mut buffer = vec![0; CHUNK];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let permits = u32::try_from(read).unwrap_or(u32::MAX);
            let Ok(permit) = Arc::clone(&room).acquire_many_owned(permits).await else {
                break;
            };
            let now = WAY_BYTES_MAX - room.available_permits();
            most.fetch_max(now, Ordering::Relaxed);
            let sent = send.send(OnTheWay {
                due: Instant::now() + one_way,
                // Copied, so that a small read does not keep a large buffer.
                bytes: Bytes::copy_from_slice(&buffer[..read]),
                _room: permit,
            });
            if sent.await.is_err() {
                break;
            }
        }
    };
    let writing = async move {
        while let Some(one) = receive.recv().await {
            tokio::time::sleep_until(one.due).await;
            if to.write_all(&one.bytes).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(reading, writing);
}
