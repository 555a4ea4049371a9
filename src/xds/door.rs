//! Who comes in: connections, their handshakes, and how long each may stay.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use zeugma_proxy::tls::{Credentials, TlsPeer, server_config};
use zeugma_xds::{Caller, Seldom, Server, Visitor};

/// Connections at once.
const CONNECTIONS_MAX: usize = 20_000;
/// Handshakes at once: when all clients come back, each is served soon rather than none.
const HANDSHAKES_MAX: usize = 64;
/// Until a client must have begun one, how long it may take from its turn on, and wait for that.
const FIRST: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(3);
const TURN: Duration = Duration::from_secs(30);
/// How long a connection may last: what verified its caller is looked at again. Half of it at least, so
/// that those who came together do not leave together.
const AGE_MAX: Duration = Duration::from_secs(3600);
/// Between two tries where the system gives no connection.
const BACKOFF: Duration = Duration::from_millis(200);

/// What a connection is let in by.
#[derive(Debug, Clone)]
pub(super) struct Door(watch::Sender<Option<Arc<Credentials>>>);

impl Door {
    /// Without TLS where there are no credentials.
    pub(super) fn new(credentials: Option<Arc<Credentials>>) -> Self {
        Self(watch::channel(credentials).0)
    }

    pub(super) fn credentials(&self) -> Option<Arc<Credentials>> {
        self.0.borrow().clone()
    }

    /// From now on it is these, for who is in already too.
    pub(super) fn change(&self, credentials: Arc<Credentials>) {
        self.0.send_replace(Some(credentials));
    }
}

/// Accepts connections, and carries them.
#[derive(Debug, Clone)]
pub(super) struct Doorkeeper {
    server: Server,
    door: Door,
    room: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    lines: Arc<Seldom>,
    /// Of connections that are not accepted.
    turned_away: Arc<Seldom>,
}

impl Doorkeeper {
    pub(super) fn new(server: Server, door: Door) -> Self {
        Self {
            server,
            door,
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_MAX)),
            lines: Arc::default(),
            turned_away: Arc::default(),
        }
    }

    /// Accepts connections on a thread of its own and has `workers` others carry them, until the server
    /// drains and every connection has ended; then the receiver ends too. What is to be done goes to
    /// whichever worker has nothing to do: of all that come back at once, those that one worker has must
    /// not wait for it while another has done its part.
    pub(super) fn start(
        self,
        listener: TcpListener,
        workers: usize,
    ) -> io::Result<mpsc::Receiver<Infallible>> {
        let listener = listener.into_std()?;
        let (runs, ended) = mpsc::channel(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .thread_name("xds")
            .enable_all()
            .build()?;
        let carry = async move {
            match TcpListener::from_std(listener) {
                Ok(listener) => self.run(listener).await,
                Err(error) => {
                    tracing::warn!(code = "ZG0509", %error, "no connection is accepted");
                }
            }
            drop(runs);
        };
        thread::Builder::new()
            .name("xds-accept".to_owned())
            .spawn(move || runtime.block_on(carry))?;
        Ok(ended)
    }

    async fn run(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        self.accept(listener, &mut connections).await;
        while connections.join_next().await.is_some() {}
    }

    /// Until the server drains.
    async fn accept(&self, listener: TcpListener, connections: &mut JoinSet<()>) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_ended) = connections.join_next() => continue,
                () = self.server.drained() => return,
            };
            match accepted {
                Ok((tcp, source)) => {
                    let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
                        self.turn_away(&format_args!("over {CONNECTIONS_MAX} connections"));
                        continue;
                    };
                    let visit = Visit {
                        server: self.server.clone(),
                        door: self.door.clone(),
                        handshakes: Arc::clone(&self.handshakes),
                        lines: Arc::clone(&self.lines),
                        source,
                    };
                    drop(connections.spawn(async move {
                        Box::pin(visit.carry(tcp)).await;
                        drop(place);
                    }));
                }
                Err(error) => {
                    self.turn_away(&error);
                    sleep(BACKOFF).await;
                }
            }
        }
    }

    fn turn_away(&self, error: &dyn std::fmt::Display) {
        if let Some(left_out) = self.turned_away.may_say() {
            tracing::warn!(code = "ZG0509", %error, left_out, "no connection is accepted");
        }
    }
}

/// A connection.
struct Visit {
    server: Server,
    door: Door,
    handshakes: Arc<Semaphore>,
    lines: Arc<Seldom>,
    source: SocketAddr,
}

impl Visit {
    async fn carry(self, tcp: TcpStream) {
        // Small answers are what others wait for.
        tcp.set_nodelay(true).ok();
        let mut now = self.door.0.subscribe();
        let credentials = now.borrow_and_update().clone();
        let until = Instant::now() + age();
        let Some(credentials) = credentials else {
            let visitor = Visitor {
                caller: Caller::Local,
                source: self.source,
                until,
            };
            return self.server.serve(tcp, visitor).await;
        };
        let (stream, peer) = match self.shake_hands(tcp, &credentials).await {
            Ok(done) => done,
            Err(why) => {
                if let Some(left_out) = self.lines.may_say() {
                    tracing::warn!(code = "ZG0506", source = %self.source, left_out, "a connection failed: {why}");
                }
                return;
            }
        };
        let left = Duration::from_secs(u64::try_from(peer.not_after - unix()).unwrap_or_default());
        let visitor = Visitor {
            caller: Caller::Verified(peer.id.clone()),
            source: self.source,
            until: until.min(Instant::now() + left),
        };
        let refused = async {
            while now.changed().await.is_ok() {
                let credentials = now.borrow_and_update().clone();
                let judged = credentials.map(|credentials| credentials.judge(&peer, unix()));
                if let Some(Err(refusal)) = judged {
                    return refusal;
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            () = self.server.serve(stream, visitor) => {}
            refusal = refused => {
                tracing::warn!(code = "ZG0506", source = %self.source, id = %peer.id, "a connection is ended: {refusal}");
            }
        }
    }

    async fn shake_hands(
        &self,
        tcp: TcpStream,
        credentials: &Arc<Credentials>,
    ) -> Result<(tokio_rustls::server::TlsStream<TcpStream>, Arc<TlsPeer>), String> {
        // Who says nothing takes no turn from those who do.
        let said = timeout(FIRST, tcp.peek(&mut [0])).await;
        let said = said.map_err(|_elapsed| format!("nothing came in {FIRST:?}"))?;
        said.map_err(|error| error.to_string())?;
        let turn = timeout(TURN, self.handshakes.acquire()).await;
        let _turn = turn.map_err(|_elapsed| "too many handshakes at once".to_owned())?;
        let (config, slot) =
            server_config(credentials, &[b"h2"]).map_err(|error| error.to_string())?;
        let shaken = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(tcp)).await;
        let shaken = shaken.map_err(|_elapsed| format!("no handshake in {HANDSHAKE:?}"))?;
        let stream = shaken.map_err(|error| match slot.refusal(&error) {
            Some(refusal) => refusal.to_string(),
            None => error.to_string(),
        })?;
        let peer = slot.peer().cloned();
        Ok((stream, peer.ok_or("the other end was not verified")?))
    }
}

fn age() -> Duration {
    AGE_MAX.mul_f64(0.5 + fastrand::f64() / 2.0)
}

fn unix() -> i64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;
    use zeugma_xds::{Admission, Good, ServerLimits, Sources};

    use super::*;

    const MESH: &str = "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners: { apps: { address: '127.0.0.1:0', role: workloads } }
";

    async fn comes<T>(what: &str, of: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), of).await.expect(what)
    }

    #[tokio::test]
    async fn connections_are_carried_until_the_server_drains_and_the_last_of_them_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("mesh.yaml"), MESH).unwrap();
        let sources = Sources::read(folder.path()).unwrap();
        let plane = sources.plane(&Good::default()).unwrap();
        let limits = ServerLimits::default();
        let server = Server::new(plane, Admission::default(), limits, "test");
        let keeper = Doorkeeper::new(server.clone(), Door::new(None));
        let room = Arc::clone(&keeper.room);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut carried = keeper.start(listener, 2).unwrap();
        let connect = async || {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            // The server's SETTINGS.
            comes("it is not accepted", tcp.read_exact(&mut [0; 9]))
                .await
                .unwrap();
            tcp
        };
        drop(connect().await);
        comes("it makes room", async {
            while room.available_permits() < CONNECTIONS_MAX {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let mut last = connect().await;
        assert!(carried.try_recv() == Err(mpsc::error::TryRecvError::Empty));
        server.drain();
        comes("it is not told to leave", last.read_to_end(&mut Vec::new()))
            .await
            .unwrap();
        comes("it does not end", carried.recv()).await;
    }
}
