//! Connecting: the attempts of a plan, one after the other, each outcome told to health.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use zeugma_core::plan::Attempt;
use zeugma_core::retry::RetryBudget;
use zeugma_core::snapshot::{Cluster, ClusterIx, Endpoint, EndpointTls};
use zeugma_core::verdict::Reason;

use crate::admission::Counted;
use crate::metrics::Latest;
use crate::runtime::{InFlight, Published, Shared, Worker};
use crate::tls::TlsPeer;
use crate::transport::Stream;
use crate::transport::mtls::{self, Session, SessionError};

/// When TCP itself asks the other end of an idle connection whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How long it waits for an answer before it asks again.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// How often it asks before it gives up: silence ends a connection after 30 s.
const KEEPALIVE_PROBES: u32 = 3;
/// The same for connections that carry requests: silence ends one within 5 s.
const REQUESTS_KEEPALIVE: Duration = Duration::from_secs(2);
/// How long it waits for an answer before it asks again.
const REQUESTS_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// How often it asks before it gives up; Linux looks at the user timeout instead, if there is one.
const REQUESTS_KEEPALIVE_PROBES: u32 = 2;
/// What the other end did not take for this long ends a connection that carries requests (RFC 5482).
const REQUESTS_USER_TIMEOUT: Duration = Duration::from_secs(4);
/// After how long the next address of a name is dialled beside those that have not answered
/// (RFC 8305 §5 recommends this).
const STAGGER_MAX: Duration = Duration::from_millis(250);
/// No sooner than this (RFC 8305 §5: must not be less).
const STAGGER_MIN: Duration = Duration::from_millis(10);

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) stream: Stream,
    pub(crate) address: SocketAddr,
    /// Who answered, where we originated TLS.
    pub(crate) peer: Option<Arc<TlsPeer>>,
    /// What was agreed on, where we originated TLS.
    pub(crate) alpn: Option<Vec<u8>>,
}

/// Who speaks first on a connection that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// We do, as soon as it is there.
    We,
    /// That is not known: in some protocols the server does, and in others the caller takes its time.
    Anyone,
}

impl Upstream {
    /// The SPIFFE ID of who answered.
    pub(crate) fn identity(&self) -> Option<String> {
        self.peer.as_ref().map(|peer| peer.id.to_string())
    }
}

/// Why an endpoint was not connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// In time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// By TCP.
    #[error("{0}")]
    Tcp(std::io::Error),
    /// By TLS.
    #[error("{0}")]
    Tls(SessionError),
    /// The name has no address at present.
    #[error("`{0}` has no address at present")]
    Unresolved(String),
}

impl ConnectError {
    /// Whether the fault is this gateway's own, or its name server's: such an attempt says nothing
    /// of the endpoint, and must not count against it.
    pub(crate) fn is_ours(&self) -> bool {
        match self {
            Self::Tcp(error) => is_shortage(error),
            Self::Tls(SessionError::Setup(_)) | Self::Unresolved(_) => true,
            Self::Tls(
                SessionError::Timeout(_)
                | SessionError::Refused(_)
                | SessionError::Handshake(_)
                | SessionError::ServerName(_),
            )
            | Self::Timeout(_) => false,
        }
    }
}

/// Whether we lack descriptors, ports or memory (connect(2), socket(2)).
fn is_shortage(error: &std::io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::MFILE | Errno::NFILE | Errno::ADDRNOTAVAIL | Errno::NOBUFS | Errno::NOMEM)
    )
}

/// The endpoint of an attempt that was connected.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) upstream: Upstream,
    pub(crate) attempt: Attempt,
    pub(crate) attempts: u32,
    /// Held while the endpoint is in use.
    pub(crate) in_flight: InFlight,
    /// Held while the connection is one of its route.
    pub(crate) counted: Counted,
}

/// Why none was.
#[derive(Debug)]
pub(crate) struct Unreached {
    pub(crate) reason: Reason,
    /// What the last one tried said.
    pub(crate) last: Option<String>,
    /// The rule that the last one's certificate breaks.
    pub(crate) rule: Option<String>,
}

impl Unreached {
    /// Nothing was tried.
    pub(crate) const fn for_now(reason: Reason) -> Self {
        Self {
            reason,
            last: None,
            rule: None,
        }
    }
}

/// Counts an attempt, and a retry if it is not the first.
pub(crate) fn note_attempt(
    worker: &Worker,
    cluster: &Cluster,
    attempt: &Attempt,
    nth: u32,
    latest: &Latest,
) {
    let why = if nth > 1 {
        "retry"
    } else {
        attempt.why.label()
    };
    let backend = &cluster.endpoint(attempt.endpoint).backend;
    worker
        .shared
        .metrics
        .attempt(&cluster.route, backend, attempt.level, why, latest);
}

/// Counts a certificate of an endpoint that was refused.
pub(crate) fn note_refusal(shared: &Shared, error: &ConnectError) {
    if let Some(rule) = refused_rule(error) {
        shared.metrics.certificate_refused("upstream", &rule);
    }
}

/// The rule that an endpoint's certificate breaks, if that is why it was not connected.
pub(crate) fn refused_rule(error: &ConnectError) -> Option<String> {
    match error {
        ConnectError::Tls(SessionError::Refused(refusal)) => Some(refusal.label().to_owned()),
        ConnectError::Tls(_)
        | ConnectError::Timeout(_)
        | ConnectError::Tcp(_)
        | ConnectError::Unresolved(_) => None,
    }
}

/// Connects one endpoint, TLS included where it is ours to originate.
///
/// Of a name every address is tried, within the one deadline; the first that TCP connects is used.
/// It has no end to silence yet: whoever keeps it for longer than its own deadlines sets one, by
/// [`tune`] or [`tune_requests`].
///
/// # Errors
/// As [`ConnectError`]; the whole takes no longer than `deadline`.
///
/// # Cancel safety
/// Dropping it abandons the connection.
pub(crate) async fn connect(
    shared: &Shared,
    deadline: Duration,
    endpoint: &Endpoint,
    alpn: &[&[u8]],
    first: First,
) -> Result<Upstream, ConnectError> {
    let first = match endpoint.tls {
        // A client of TLS speaks first.
        EndpointTls::Mesh { .. } => First::We,
        EndpointTls::None | EndpointTls::Workload => first,
    };
    let connecting = async {
        let draw = fastrand::usize(..);
        let addresses = shared.names.load().addresses(&endpoint.address, draw);
        if addresses.is_empty() {
            return Err(ConnectError::Unresolved(endpoint.address.to_string()));
        }
        let (tcp, address) = dial(&addresses, deadline, first)
            .await
            .map_err(ConnectError::Tcp)?;
        let EndpointTls::Mesh { sni, expected } = &endpoint.tls else {
            let stream = Stream::plain(tcp);
            return Ok(Upstream {
                stream,
                address,
                peer: None,
                alpn: None,
            });
        };
        let credentials = shared.credentials.load_full();
        let Session {
            stream, peer, alpn, ..
        } = mtls::originate((tcp, address), &credentials, sni, expected, alpn)
            .await
            .map_err(ConnectError::Tls)?;
        Ok(Upstream {
            stream,
            address,
            peer: Some(peer),
            alpn,
        })
    };
    timeout(deadline, Box::pin(connecting))
        .await
        .unwrap_or(Err(ConnectError::Timeout(deadline)))
}

/// Connects the first address that answers.
///
/// The next one is dialled when one has failed, and beside the others when none has answered for
/// some time: a dead address costs that time, not the whole `deadline` (RFC 8305 §5, without its
/// order of address families).
///
/// # Errors
/// What the last one said, of the endpoint if any said something of it and not of us.
pub(crate) async fn dial(
    addresses: &[SocketAddr],
    deadline: Duration,
    first: First,
) -> std::io::Result<(TcpStream, SocketAddr)> {
    if let [only] = addresses {
        return Ok((dial_one(*only, first).await?, *only));
    }
    let stagger = stagger(addresses.len(), deadline);
    let mut rest = addresses.iter().copied();
    let mut dialled = JoinSet::new();
    let mut failed: Option<std::io::Error> = None;
    loop {
        if let Some(address) = rest.next() {
            dialled.spawn(async move { (dial_one(address, first).await, address) });
        }
        // Both arms are cancel-safe: tasks of their own, and a sleep that begins anew on purpose.
        let ended = tokio::select! {
            ended = dialled.join_next() => ended,
            () = tokio::time::sleep(stagger), if rest.len() > 0 => continue,
        };
        match ended {
            Some(Ok((Ok(tcp), address))) => return Ok((tcp, address)),
            Some(Ok((Err(error), _))) => {
                if failed.as_ref().is_none_or(is_shortage) || !is_shortage(&error) {
                    failed = Some(error);
                }
            }
            // A task of ours ended by a panic; the next address may do.
            Some(Err(_panicked)) => {}
            None if rest.len() > 0 => {}
            None => {
                let nothing = || std::io::Error::other("no address could be dialled");
                return Err(failed.unwrap_or_else(nothing));
            }
        }
    }
}

/// Connects one address. Where that takes no time, as on the same machine, the event loop is not
/// waited for.
async fn dial_one(address: SocketAddr, first: First) -> std::io::Result<TcpStream> {
    let kind = Type::STREAM.nonblocking();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    note_untuned(socket.set_tcp_nodelay(true));
    if first == First::We {
        // The last packet of TCP's handshake is the one with our first bytes, instead of one before it
        // (tcp(7), TCP_QUICKACK; the kernel sends it by itself if they do not come within 200 ms).
        note_untuned(socket.set_tcp_quickack(false));
    }
    match socket.connect(&address.into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let tcp = TcpStream::from_std(socket.into())?;
    // A socket that is not connected yet, or no more, has no peer.
    if tcp.peer_addr().is_err() {
        tcp.writable().await?;
        if let Some(error) = tcp.take_error()? {
            return Err(error);
        }
    }
    Ok(tcp)
}

/// So that every address has its turn before the deadline.
fn stagger(addresses: usize, deadline: Duration) -> Duration {
    let turns = u32::try_from(addresses)
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    (deadline / turns).clamp(STAGGER_MIN, STAGGER_MAX)
}

/// Sets what every connection of ours has: no Nagle delay, and an end to silence.
///
/// No TCP user timeout: it also ends a connection whose other end is there and only does not read
/// for a while, since unanswered and zero-window probes count alike (tcp(7)).
pub(crate) fn tune(tcp: &impl AsFd) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let tuned = socket
        .set_tcp_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive));
    note_untuned(tuned);
}

/// Sets what a connection has besides that carries requests: whoever waits for a response does not
/// send, so that only an answer to TCP's own question tells that the other end is still there.
///
/// HTTP/2 has its own flow control for each stream (RFC 9113 §5.2), so that its other end goes on
/// reading frames while a stream is stopped, and a slow reader does not meet the user timeout. For
/// HTTP/1.1 see [`await_slow_reader`]. The bytes of a TCP service have no such thing: there a reader
/// that pauses closes the window, and the limit would end its connection.
///
/// A process that is stopped (or hangs) is not found by this: its kernel goes on answering. Of
/// HTTP/2 a PING finds it, of HTTP/1.1 only the deadline for the response.
pub(crate) fn tune_requests(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(REQUESTS_KEEPALIVE)
        .with_interval(REQUESTS_KEEPALIVE_INTERVAL)
        .with_retries(REQUESTS_KEEPALIVE_PROBES);
    let tuned = socket
        .set_tcp_keepalive(&keepalive)
        .and_then(|()| socket.set_tcp_user_timeout(Some(REQUESTS_USER_TIMEOUT)));
    note_untuned(tuned);
}

/// Ends what did not take our bytes for some time, or, while it may be a slow reader of many, does
/// not: TCP counts probes of a closed window as unanswered, though they are (tcp(7)).
pub(crate) fn await_slow_reader(tcp: &TcpStream, may_be_slow: bool) {
    let limit = (!may_be_slow).then_some(REQUESTS_USER_TIMEOUT);
    note_untuned(SockRef::from(tcp).set_tcp_user_timeout(limit));
}

fn note_untuned(tuned: std::io::Result<()>) {
    if let Err(error) = tuned {
        // The connection may already be gone; its next use will tell.
        tracing::debug!(%error, "socket options not set");
    }
}

/// A shared handle that keeps an `Arc<Published>` and one of its clusters together.
#[derive(Debug, Clone)]
pub(crate) struct Pinned {
    pub(crate) published: Arc<Published>,
    pub(crate) cluster: ClusterIx,
}

impl Pinned {
    /// The cluster.
    pub(crate) fn cluster(&self) -> &Cluster {
        self.published.snapshot.cluster(self.cluster)
    }

    /// The retry budget of its route.
    pub(crate) fn budget(&self) -> &RetryBudget {
        &self.published.under_way_of(self.cluster).budget
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::time::Instant;

    use super::*;

    /// An address where nobody listens, that nobody else gets.
    fn refusing() -> (Socket, SocketAddr) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        (socket, address)
    }

    /// An address that does not answer: its queue is full, and the kernel drops what comes more.
    async fn silent() -> (Socket, Vec<TcpStream>, SocketAddr) {
        let (socket, address) = refusing();
        socket.listen(0).unwrap();
        let mut held = Vec::new();
        while let Ok(Ok(tcp)) = timeout(STAGGER_MAX, TcpStream::connect(address)).await {
            held.push(tcp);
            assert!(held.len() < 16, "the queue does not fill");
        }
        (socket, held, address)
    }

    /// Whether the other end has the connection once we do, or only with our first byte.
    async fn is_there_before_a_byte(first: First) -> bool {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let tcp = dial_one(address, first).await.unwrap();
        // On loopback what is sent is there when the system call returns.
        let at_once = listener.accept().is_ok();
        tcp.writable().await.unwrap();
        assert_eq!(tcp.try_write(b"x").unwrap(), 1);
        assert!(at_once || listener.accept().is_ok());
        at_once
    }

    #[tokio::test]
    async fn the_last_packet_of_a_handshake_waits_for_our_bytes_only_where_we_speak_first() {
        assert!(is_there_before_a_byte(First::Anyone).await);
        // The kernel waits for 200 ms, which a test may be stopped for.
        let mut waited = false;
        for _ in 0..20 {
            waited |= !is_there_before_a_byte(First::We).await;
        }
        assert!(waited, "it never waits");
    }

    #[tokio::test]
    async fn every_address_of_a_name_has_its_turn_within_one_deadline() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let (_closed, refusing) = refusing();
        let (_full, _held, silent) = silent().await;
        let deadline = Duration::from_secs(20);
        let began = Instant::now();
        for addresses in [
            vec![good],
            vec![refusing, good],
            vec![silent, good],
            vec![silent, refusing, silent, good],
        ] {
            let dialled = timeout(deadline, dial(&addresses, deadline, First::Anyone)).await;
            let (tcp, address) = dialled.unwrap().unwrap();
            assert_eq!((address, tcp.peer_addr().unwrap()), (good, good));
        }
        assert!(began.elapsed() < deadline, "{:?}", began.elapsed());
        let closed = [refusing, refusing];
        let none = dial(&closed, deadline, First::Anyone).await.unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::ConnectionRefused);
        let short = Duration::from_millis(100);
        let late = timeout(short, dial(&[silent, silent], short, First::Anyone)).await;
        assert!(late.is_err(), "nobody answers");
    }

    #[test]
    fn addresses_share_the_deadline() {
        let ms = Duration::from_millis;
        assert_eq!(stagger(2, ms(3000)), ms(250));
        assert_eq!(stagger(3, ms(200)), ms(50));
        assert_eq!(stagger(64, ms(100)), ms(10));
    }

    #[test]
    fn our_own_faults_are_told_from_those_of_endpoints() {
        // errno(3) of Linux: ENOMEM, ENFILE, EMFILE, EADDRNOTAVAIL, ENOBUFS.
        for ours in [12, 23, 24, 99, 105] {
            let error = ConnectError::Tcp(io::Error::from_raw_os_error(ours));
            assert!(error.is_ours(), "{error}");
        }
        // ECONNRESET, ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH.
        for theirs in [104, 110, 111, 113, 101] {
            let error = ConnectError::Tcp(io::Error::from_raw_os_error(theirs));
            assert!(!error.is_ours(), "{error}");
        }
        assert!(ConnectError::Unresolved("a.example:1".to_owned()).is_ours());
        let setup = SessionError::Setup(rustls::Error::General("no".to_owned()));
        assert!(ConnectError::Tls(setup).is_ours());
        let handshake = SessionError::Handshake(io::Error::other("no"));
        assert!(!ConnectError::Tls(handshake).is_ours());
        assert!(!ConnectError::Timeout(Duration::ZERO).is_ours());
    }

    #[tokio::test]
    async fn only_what_carries_requests_ends_when_nothing_is_taken() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (tcp, _accepted) = tokio::join!(
            TcpStream::connect(listener.local_addr().unwrap()),
            listener.accept()
        );
        let tcp = tcp.unwrap();
        tune(&tcp);
        let socket = SockRef::from(&tcp);
        assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap().as_secs(), 15);
        assert_eq!(socket.tcp_keepalive_interval().unwrap().as_secs(), 5);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert!(tcp.nodelay().unwrap());
        tune_requests(&tcp);
        // Found within 5 s, with the time to notice and to try elsewhere.
        let limit = socket.tcp_user_timeout().unwrap();
        assert_eq!(limit, Some(Duration::from_secs(4)));
    }
}
