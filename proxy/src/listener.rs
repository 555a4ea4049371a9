//! Accepting: sockets in, capped, to the least busy worker.
//!
//! The control thread accepts and chooses. Where there is one worker there is nothing to choose, and
//! it accepts by itself: no connection waits for two threads to wake.

use std::cell::RefCell;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use zeugma_core::snapshot::Listener;
use zeugma_core::verdict::Reason;

use crate::admission::{self, Admission, Rated, Shaking};
use crate::runtime::Shared;
use crate::upstream;

/// Connections the kernel queues for us.
const BACKLOG: i32 = 4096;
/// How long accepting pauses where it cannot go on (no descriptors, no memory).
const BACK_OFF: Duration = Duration::from_millis(100);

/// A connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) tcp: TcpStream,
    pub(crate) source: SocketAddr,
    pub(crate) listener: Arc<str>,
    pub(crate) open: Open,
}

/// What a worker is handed.
#[derive(Debug)]
pub(crate) enum Handed {
    Connection(Accepted),
    /// A socket to accept on.
    Listener(Box<Listening>),
}

/// A socket on its way to where it accepts.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) socket: TcpListener,
    pub(crate) stopped: oneshot::Receiver<()>,
    pub(crate) name: ServedName,
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Arc<[WorkerHandle]>,
}

impl Listening {
    /// Accepts on the one worker, or on this thread where there are several to choose from.
    pub(crate) fn start(self) {
        let accepting = match &*self.workers {
            [only] => {
                let worker = only.sockets.clone();
                match worker.try_send(Handed::Listener(Box::new(self))) {
                    Ok(()) => return,
                    // Busy as it is, it can be handed connections as soon as it has room for them.
                    Err(
                        mpsc::error::TrySendError::Full(handed)
                        | mpsc::error::TrySendError::Closed(handed),
                    ) => handed,
                }
            }
            _ => Handed::Listener(Box::new(self)),
        };
        if let Handed::Listener(listening) = accepting {
            listening.start_here();
        }
    }

    /// Accepts on this thread.
    pub(crate) fn start_here(self) {
        // Ends when the other end of `stopped` is dropped, or with the process.
        drop(tokio::task::spawn_local(accept(self)));
    }
}

/// Counts a connection as open until dropped.
#[derive(Debug)]
pub(crate) struct Open {
    shared: Arc<Shared>,
    nth: usize,
    worker: Arc<AtomicUsize>,
    listener: Arc<str>,
    /// Until its handshake has ended.
    shaking: RefCell<Option<Shaking>>,
}

impl Open {
    /// Whether its source, which a load balancer has told by now, may begin one more connection.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn admits(&self, listener: &Listener, source: IpAddr) -> Result<(), Reason> {
        match &*self.shaking.borrow() {
            Some(shaking) => shaking.sources.admit(&self.shared, listener, source),
            None => Ok(()),
        }
    }

    /// Its handshake has ended, or it has none.
    pub(crate) fn has_shaken(&self) {
        self.shaking.take();
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.left_worker(self.nth);
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
        self.shared.metrics.ended(&self.listener);
    }
}

/// The way to one worker.
#[derive(Debug, Clone)]
pub(crate) struct WorkerHandle {
    pub(crate) nth: usize,
    pub(crate) sockets: mpsc::Sender<Handed>,
    pub(crate) open: Arc<AtomicUsize>,
}

/// The name of the listener that a bound socket serves; it may change while the socket accepts.
#[derive(Debug, Clone)]
pub(crate) struct ServedName(Arc<Mutex<Arc<str>>>);

impl ServedName {
    pub(crate) fn new(name: Arc<str>) -> Self {
        Self(Arc::new(Mutex::new(name)))
    }

    pub(crate) fn get(&self) -> Arc<str> {
        // A panic while it was held left a whole name.
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set(&self, name: Arc<str>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }
}

/// Binds `address` for accepting.
///
/// # Errors
/// As the operating system says: in use, not ours, not permitted.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts until it is stopped by the other end of `stopped`: dropped, what the kernel has queued by
/// then is accepted too, since closing the socket would reset it; told, another process has the
/// socket too, and what is queued is for that one.
async fn accept(listening: Listening) {
    let Listening {
        socket,
        mut stopped,
        name,
        shared,
        workers,
    } = listening;
    // What is accepted inherits these (tcp(7)): they cost a connection no system call of its own.
    upstream::tune(&socket);
    let socket = match watch(socket) {
        Ok(socket) => socket,
        Err(error) => {
            tracing::error!(code = "ZG0908", listener = %name.get(), %error, "a listener cannot be watched");
            return;
        }
    };
    let sources = admission::sources();
    let mut pause = Pause::default();
    loop {
        // Both arms are cancel-safe by their own documentation.
        let accepted = tokio::select! {
            accepted = socket.async_io(Interest::READABLE, accept_one) => accepted,
            told = &mut stopped => match told {
                Ok(()) => return,
                Err(_dropped) => break,
            },
        };
        match accepted {
            Ok((tcp, source)) => {
                pause.is_over(&name);
                hand_over(tcp, source, &name.get(), &shared, &workers, &sources);
            }
            Err(error) if is_of_that_connection(&error) => {}
            Err(error) => {
                shared.metrics.accept_failed(&name.get());
                pause.begins(&name, &error);
                // What waits in the kernel's queue meanwhile is not lost.
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
    // Never blocks; an error is the end of the queue, or as bad.
    while let Ok((tcp, source)) = accept_one(socket.get_ref()) {
        hand_over(tcp, source, &name.get(), &shared, &workers, &sources);
    }
}

/// A time in which nothing can be accepted: told when it begins and when it is over, however often
/// it is tried in between.
#[derive(Debug, Default)]
struct Pause {
    since: Option<Instant>,
    failures: u64,
}

impl Pause {
    fn begins(&mut self, name: &ServedName, error: &io::Error) {
        self.failures += 1;
        if self.since.is_none() {
            self.since = Some(Instant::now());
            tracing::error!(
                code = "ZG0921",
                listener = %name.get(), %error,
                "cannot accept; trying again every {BACK_OFF:?}. Raise the limit of open files if it is reached"
            );
        }
    }

    fn is_over(&mut self, name: &ServedName) {
        if let Some(since) = self.since.take() {
            tracing::info!(
                code = "ZG0922",
                listener = %name.get(), failures = self.failures, lasted = ?since.elapsed(),
                "accepting again"
            );
            self.failures = 0;
        }
    }
}

/// Watches a socket as a plain descriptor: of what it accepts, only the worker registers anything.
#[expect(
    deprecated,
    reason = "unsound for types whose descriptor changes meanwhile; the one of std's listener stays"
)]
fn watch(socket: TcpListener) -> io::Result<AsyncFd<TcpListener>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Takes one connection out of the queue, non-blocking as tokio needs it.
fn accept_one(socket: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (tcp, source) = acceptfrom_with(socket, flags)?;
    // The kernel names the source of every TCP connection.
    let source = source.ok_or(io::ErrorKind::InvalidData)?;
    Ok((tcp.into(), source.try_into()?))
}

pub(crate) fn hand_over(
    tcp: TcpStream,
    source: SocketAddr,
    name: &Arc<str>,
    shared: &Arc<Shared>,
    workers: &[WorkerHandle],
    sources: &Rated,
) {
    if let Err(reason) = Admission::connection(shared, name, source.ip(), sources) {
        shared.refuse_unseen(name, source, reason);
        return;
    }
    let Some(worker) = workers
        .iter()
        .filter(|worker| !worker.sockets.is_closed())
        .min_by_key(|worker| worker.open.load(Ordering::Relaxed))
    else {
        // Draining has just begun, or no worker is left.
        shared.refuse_unseen(name, source, Reason::Drained);
        return;
    };
    worker.open.fetch_add(1, Ordering::Relaxed);
    shared.open.fetch_add(1, Ordering::Relaxed);
    shared.metrics.opened(name);
    shared.metrics.entered_worker(worker.nth);
    let open = Open {
        shared: Arc::clone(shared),
        nth: worker.nth,
        worker: Arc::clone(&worker.open),
        listener: name.clone(),
        shaking: RefCell::new(Some(Shaking::begin(shared, sources))),
    };
    let accepted = Accepted {
        tcp,
        source,
        listener: name.clone(),
        open,
    };
    match worker.sockets.try_send(Handed::Connection(accepted)) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(_shed)) => {
            shared.metrics.dropped("sockets", 1);
            shared.refuse_unseen(name, source, Reason::ConnectionLimit);
        }
        // It ended this very moment.
        Err(mpsc::error::TrySendError::Closed(_shed)) => {
            shared.refuse_unseen(name, source, Reason::Internal);
        }
    }
}

/// Errors that a connection in the queue had already met (accept(2)).
fn is_of_that_connection(error: &io::Error) -> bool {
    let Some(errno) = Errno::from_io_error(error) else {
        return false;
    };
    matches!(
        errno,
        Errno::CONNABORTED
            | Errno::CONNRESET
            | Errno::INTR
            | Errno::AGAIN
            | Errno::NETDOWN
            | Errno::PROTO
            | Errno::NOPROTOOPT
            | Errno::HOSTDOWN
            | Errno::NONET
            | Errno::HOSTUNREACH
            | Errno::OPNOTSUPP
            | Errno::NETUNREACH
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Alone;
    use crate::runtime::SOCKETS_MAX;

    const LISTENERS: &str = "{ apps: { address: '127.0.0.1:0', role: workloads } }";

    /// Both ends of a connection.
    fn pair(listener: &TcpListener) -> (TcpStream, TcpStream, SocketAddr) {
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, source) = listener.accept().unwrap();
        (near, far, source)
    }

    fn queue(nth: usize) -> (WorkerHandle, mpsc::Receiver<Handed>) {
        let (sockets, queue) = mpsc::channel(SOCKETS_MAX);
        let open = Arc::default();
        (WorkerHandle { nth, sockets, open }, queue)
    }

    #[test]
    fn a_worker_that_takes_none_gets_no_more_than_its_queue_holds() {
        let alone = Alone::new(LISTENERS, "", 1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (worker, mut taken) = queue(0);
        let name: Arc<str> = "apps".into();
        let sources = admission::sources();
        let mut near = Vec::new();
        let mut hand = |count: usize| {
            for _ in 0..count {
                let (end, far, source) = pair(&listener);
                near.push(end);
                let workers = std::slice::from_ref(&worker);
                hand_over(far, source, &name, &alone.shared, workers, &sources);
            }
        };
        hand(SOCKETS_MAX);
        assert_eq!(alone.shared.open.load(Ordering::Relaxed), SOCKETS_MAX);
        assert!(alone.lines().is_empty());
        hand(2);
        assert_eq!(alone.shared.open.load(Ordering::Relaxed), SOCKETS_MAX);
        let lines = alone.lines();
        let verdicts: Vec<_> = lines.iter().map(|line| &line["verdict"]).collect();
        assert_eq!(verdicts, ["connection-limit"; 2]);
        let text = alone.shared.metrics.encode(None);
        assert!(
            text.contains(r#"zeugma_dropped_total{kind="sockets"} 2"#),
            "{text}"
        );
        // One is taken: there is room for one.
        drop(taken.try_recv().unwrap());
        hand(1);
        assert_eq!(alone.lines().len(), 2);
        assert_eq!(alone.shared.open.load(Ordering::Relaxed), SOCKETS_MAX);
        drop(taken);
        assert_eq!(alone.shared.open.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_worker_is_handed_the_socket_itself() {
        let alone = Alone::new(LISTENERS, "", 1);
        let (worker, mut taken) = queue(0);
        let (_stop, stopped) = oneshot::channel();
        let listening = Listening {
            socket: TcpListener::bind("127.0.0.1:0").unwrap(),
            stopped,
            name: ServedName::new("apps".into()),
            shared: Arc::clone(&alone.shared),
            workers: [worker].into(),
        };
        listening.start();
        assert!(matches!(taken.try_recv(), Ok(Handed::Listener(_))));
    }

    #[test]
    fn a_worker_that_has_ended_is_handed_nothing() {
        let alone = Alone::new(LISTENERS, "", 1);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ((dead, ended), (alive, mut taken)) = (queue(0), queue(1));
        drop(ended);
        let name: Arc<str> = "apps".into();
        let sources = admission::sources();
        let workers = [dead, alive];
        for _ in 0..3 {
            let (_near, far, source) = pair(&listener);
            hand_over(far, source, &name, &alone.shared, &workers, &sources);
        }
        let taken = std::iter::from_fn(|| taken.try_recv().ok()).count();
        assert_eq!((taken, alone.lines().len()), (3, 0));
        // None is left: every connection has its record all the same.
        let (_near, far, source) = pair(&listener);
        hand_over(far, source, &name, &alone.shared, &workers[..1], &sources);
        assert_eq!(alone.lines().len(), 1);
    }
}
