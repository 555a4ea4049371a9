//! Connecting: the attempts of a plan, one after the other, each outcome told to health.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeugma_core::plan::{Attempt, plan};
use zeugma_core::snapshot::{Cluster, ClusterIx, Endpoint, EndpointTls, Failure};
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

/// Walks the plan of a TCP connection until an endpoint is connected.
///
/// # Errors
/// None is healthy, or none of those tried was connected.
pub(crate) async fn connect_any(
    worker: &Rc<Worker>,
    published: &Published,
    to: ClusterIx,
    alpn: &[&[u8]],
) -> Result<Reached, Unreached> {
    let cluster = published.snapshot.cluster(to);
    let load = |endpoint| worker.load(cluster, endpoint);
    let mut attempts = 0;
    let (mut last, mut rule) = (None, None);
    for attempt in plan(
        cluster,
        published.shares_of(to),
        &load,
        worker.draw_for(cluster),
    ) {
        attempts += 1;
        let endpoint = cluster.endpoint(attempt.endpoint);
        let in_flight = worker.enter(&endpoint.key);
        note_attempt(worker, cluster, &attempt, attempts);
        match connect(
            &worker.shared,
            connect_deadline(cluster, endpoint),
            endpoint,
            alpn,
        )
        .await
        {
            Ok(upstream) => {
                worker.observe(&endpoint.key, Ok(()));
                return Ok(Reached {
                    upstream,
                    attempt,
                    attempts,
                    in_flight,
                });
            }
            Err(error) => {
                worker.observe(&endpoint.key, Err(Failure::Connect));
                note_refusal(&worker.shared, &error);
                tracing::debug!(endpoint = %endpoint.key, %error, "not connected");
                last = Some(error.to_string());
                rule = refused_rule(&error);
            }
        }
    }
    let reason = if attempts == 0 {
        nothing_healthy(published, to)
    } else {
        Reason::ConnectFailed
    };
    Err(Unreached { reason, last, rule })
}

/// What an empty plan means: for a cluster of own backends alone another cluster may still serve.
pub(crate) fn nothing_healthy(published: &Published, cluster: ClusterIx) -> Reason {
    let is_own = published
        .snapshot
        .services
        .iter()
        .any(|service| service.own == Some(cluster));
    if is_own {
        Reason::NoLocalEndpoint
    } else {
        Reason::NoHealthyEndpoint
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
