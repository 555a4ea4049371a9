//! Connecting: the attempts of a plan, one after the other, each outcome told to health.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeugma_core::plan::Attempt;
use zeugma_core::snapshot::{Cluster, ClusterIx, Endpoint, EndpointTls};
use zeugma_core::verdict::Reason;

use crate::runtime::{InFlight, Published, Shared, Worker};
use crate::transport::Stream;
use crate::transport::mtls::{self, Session, SessionError};

/// Data that no peer acknowledged for this long ends a connection (RFC 5482).
const USER_TIMEOUT: Duration = Duration::from_secs(5);
/// When TCP itself asks an idle peer whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// A connection to an endpoint.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) stream: Stream,
    pub(crate) address: SocketAddr,
    /// Who answered, where we originated TLS.
    pub(crate) identity: Option<String>,
    /// What was agreed on, where we originated TLS.
    pub(crate) alpn: Option<Vec<u8>>,
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

/// The endpoint of an attempt that was connected.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) upstream: Upstream,
    pub(crate) attempt: Attempt,
    pub(crate) attempts: u32,
    /// Held while the endpoint is in use.
    pub(crate) in_flight: InFlight,
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
pub(crate) fn note_attempt(worker: &Worker, cluster: &Cluster, attempt: &Attempt, nth: u32) {
    let why = if nth > 1 {
        "retry"
    } else {
        attempt.why.label()
    };
    let backend = &cluster.endpoint(attempt.endpoint).backend;
    worker
        .shared
        .metrics
        .attempt(&cluster.route, backend, attempt.level, why);
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

/// How long connecting an endpoint may take, TLS included.
pub(crate) const fn connect_deadline(cluster: &Cluster, endpoint: &Endpoint) -> Duration {
    match endpoint.peer {
        Some(_) => cluster.timeouts.connect_peer,
        None => cluster.timeouts.connect,
    }
}

/// Connects one endpoint, TLS included where it is ours to originate.
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
) -> Result<Upstream, ConnectError> {
    let connecting = async {
        let address = shared
            .names
            .load()
            .address(&endpoint.address)
            .ok_or_else(|| ConnectError::Unresolved(endpoint.address.to_string()))?;
        let tcp = TcpStream::connect(address)
            .await
            .map_err(ConnectError::Tcp)?;
        tune(&tcp);
        let EndpointTls::Mesh { sni, expected } = &endpoint.tls else {
            let stream = Stream::plain(tcp);
            return Ok(Upstream {
                stream,
                address,
                identity: None,
                alpn: None,
            });
        };
        let credentials = shared.credentials.load_full();
        let Session {
            stream, peer, alpn, ..
        } = mtls::originate(tcp, &credentials, sni, expected, alpn)
            .await
            .map_err(ConnectError::Tls)?;
        Ok(Upstream {
            stream,
            address,
            identity: Some(peer.id.to_string()),
            alpn,
        })
    };
    timeout(deadline, Box::pin(connecting))
        .await
        .unwrap_or(Err(ConnectError::Timeout(deadline)))
}

/// Sets what every connection of ours has: no Nagle delay, and an end to silence.
pub(crate) fn tune(tcp: &TcpStream) {
    let socket = SockRef::from(tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(USER_TIMEOUT);
    let tuned = tcp
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_user_timeout(Some(USER_TIMEOUT)))
        .and_then(|()| socket.set_tcp_keepalive(&keepalive));
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
}
