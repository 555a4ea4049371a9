//! Walking a plan for a connection: one endpoint after the other, until one has committed itself.
//!
//! Until then nothing has reached the caller, so that the next endpoint can still be tried. What
//! commits an endpoint differs: see [`Commit`].

use std::borrow::Cow;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};
use zeugma_core::engine::nothing_to_try;
use zeugma_core::identity::SpiffeId;
use zeugma_core::plan::{Attempt, Why, plan};
use zeugma_core::snapshot::{ClusterIx, Endpoint, EndpointTls, Failure, Role};
use zeugma_core::verdict::Reason;

use crate::connection::Visit;
use crate::metrics::Latest;
use crate::proxy_protocol;
use crate::runtime::InFlight;
use crate::transport::Stream;
use crate::transport::alert::is_no_local_endpoint;
use crate::transport::mtls::ALPN_TCP;
use crate::upstream::{self, First, Reached, Unreached, Upstream};
use crate::{admission, capacity};

/// What the first bytes of an answer are read into, to see whether it is a refusal.
const ANSWER_BYTES: usize = 4096;

/// What makes an endpoint the one.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Commit<'a> {
    /// It answers this ClientHello with anything but a fatal `internal_error` alert.
    Hello(&'a [u8]),
    /// It is connected; a peer's gateway has said that it has connected an endpoint of its own.
    Tcp {
        /// The identity handed on.
        caller: Option<&'a SpiffeId>,
        /// Whether the caller's first bytes are there.
        first: First,
    },
}

impl Commit<'_> {
    pub(crate) const fn alpn(self) -> &'static [&'static [u8]] {
        match self {
            Self::Hello(_) => &[],
            Self::Tcp { .. } => &[ALPN_TCP],
        }
    }

    pub(crate) const fn first(self, endpoint: &Endpoint) -> First {
        match self {
            Self::Hello(_) => First::We,
            // A header comes first.
            Self::Tcp { .. } if endpoint.proxy_protocol => First::We,
            Self::Tcp { first, .. } => first,
        }
    }

    pub(crate) fn suits(self, endpoint: &Endpoint) -> bool {
        let speaks_itself = endpoint.tls == EndpointTls::Workload;
        match self {
            Self::Hello(_) => speaks_itself,
            Self::Tcp { .. } => !speaks_itself,
        }
    }
}

/// Walks the plan of `to` until an endpoint has committed itself.
///
/// # Errors
/// None is healthy, none of those tried would, or the time for all of them is over.
pub(crate) async fn walk(
    visit: &Visit,
    role: Role,
    to: ClusterIx,
    commit: Commit<'_>,
) -> Result<Reached, Unreached> {
    let cluster = visit.published.snapshot.cluster(to);
    let counted = admission::route_connection(&visit.published, to).map_err(Unreached::for_now)?;
    capacity::offer(visit.published.shares_of(to));
    let budget = match commit {
        Commit::Hello(_) => cluster.policy.timeouts.response_headers + cluster.connect_budget(),
        Commit::Tcp { .. } => cluster.connect_budget(),
    };
    let mut failed = Failed::default();
    let give_up = Instant::now() + budget;
    let walking = Box::pin(try_each(visit, to, commit, give_up, &mut failed));
    if let Ok(Some(committed)) = timeout_at(give_up, walking).await {
        return Ok(Reached {
            upstream: committed.upstream,
            attempt: committed.attempt,
            attempts: failed.attempts,
            in_flight: committed.in_flight,
            counted,
        });
    }
    let reason = match failed.attempts {
        0 => nothing_to_try(visit.published.shares_of(to), role),
        _ => Reason::ConnectFailed,
    };
    Err(Unreached {
        reason,
        last: failed.last,
        rule: failed.rule,
    })
}

struct Committed {
    upstream: Upstream,
    attempt: Attempt,
    in_flight: InFlight,
}

#[derive(Debug, Default)]
struct Failed {
    attempts: u32,
    last: Option<String>,
    rule: Option<String>,
}

async fn try_each(
    visit: &Visit,
    to: ClusterIx,
    commit: Commit<'_>,
    give_up: Instant,
    failed: &mut Failed,
) -> Option<Committed> {
    let worker = &visit.worker;
    let cluster = visit.published.snapshot.cluster(to);
    let load = |endpoint| worker.load(cluster, endpoint);
    let shares = visit.published.shares_of(to);
    let draw = worker.draw_for(cluster, visit.listed.source().ip(), None);
    let planned = plan(cluster, shares, &load, draw);
    for attempt in capacity::within(&worker.shared, shares, planned) {
        let endpoint = cluster.endpoint(attempt.endpoint);
        if !commit.suits(endpoint) {
            continue;
        }
        // The last attempt may have ended at this very moment.
        if Instant::now() >= give_up {
            break;
        }
        if !capacity::begins(&worker.shared, shares, &attempt) {
            continue;
        }
        failed.attempts += 1;
        let in_flight = worker.enter(&endpoint.key);
        upstream::note_attempt(
            worker,
            cluster,
            &attempt,
            failed.attempts,
            &Latest::default(),
        );
        let began = worker.begins(cluster);
        let deadline = cluster.connect_deadline(endpoint);
        let (alpn, first) = (commit.alpn(), commit.first(endpoint));
        let connected = upstream::connect(&worker.shared, deadline, endpoint, alpn, first).await;
        let mut upstream = match connected {
            Ok(upstream) => upstream,
            Err(error) => {
                worker.observe_connect(endpoint, &error);
                worker.failed(cluster, &endpoint.key, began);
                upstream::note_refusal(&worker.shared, &error);
                failed.last = Some(error.to_string());
                failed.rule = upstream::refused_rule(&error);
                continue;
            }
        };
        let patience = match commit {
            Commit::Hello(_) => cluster.policy.timeouts.response_headers,
            Commit::Tcp { .. } => deadline,
        };
        let source = visit.listed.source();
        let committing = commit_to(source, &mut upstream, endpoint, commit);
        let failure = match timeout(patience, Box::pin(committing)).await {
            Ok(Ok(())) => {
                worker.answered(cluster, &endpoint.key, began, began);
                if attempt.why == Why::Trial {
                    // What becomes of the connection is known when it ends, which may be in days.
                    worker.observe(&endpoint.key, Ok(()));
                }
                return Some(Committed {
                    upstream,
                    attempt,
                    in_flight,
                });
            }
            Ok(Err(failure)) => failure,
            Err(_elapsed) => Failure::Timeout,
        };
        worker.observe(&endpoint.key, Err(failure));
        worker.failed(cluster, &endpoint.key, began);
        failed.last = Some(format!(
            "{} was connected and then: {}",
            endpoint.key,
            failure.label()
        ));
        failed.rule = None;
    }
    None
}

/// Has a connected endpoint commit itself, on behalf of a caller at `source`.
///
/// # Errors
/// It has none of its own to connect, sheds load, or broke the connection off.
pub(crate) async fn commit_to(
    source: SocketAddr,
    upstream: &mut Upstream,
    endpoint: &Endpoint,
    commit: Commit<'_>,
) -> Result<(), Failure> {
    match commit {
        Commit::Hello(hello) => {
            let mut first = Cow::Borrowed(hello);
            if endpoint.proxy_protocol {
                let header = proxy_protocol::header(source, upstream.address, None);
                first = Cow::Owned([&header, hello].concat());
            }
            let answer = greet(&mut upstream.stream, &first).await?;
            upstream.stream.unread(answer);
            Ok(())
        }
        Commit::Tcp { caller, .. } => {
            let to_gateway = upstream.alpn.as_deref() == Some(ALPN_TCP);
            if !to_gateway && !endpoint.proxy_protocol {
                return Ok(());
            }
            let header = proxy_protocol::header(source, upstream.address, caller);
            let stream = &mut upstream.stream;
            stream
                .write_all(&header)
                .await
                .map_err(|_broken| Failure::Reset)?;
            stream.flush().await.map_err(|_broken| Failure::Reset)?;
            if !to_gateway {
                return Ok(());
            }
            match stream.read_u8().await {
                Ok(proxy_protocol::CONNECTED) => Ok(()),
                Ok(proxy_protocol::NO_LOCAL_ENDPOINT) => Err(Failure::NoLocalEndpoint),
                // As with a stream that HTTP/2 refuses: elsewhere at once, and no sign of ill health.
                Ok(proxy_protocol::SHED) => Err(Failure::RefusedStream),
                Ok(_) | Err(_) => Err(Failure::Reset),
            }
        }
    }
}

/// Sends the hello and reads the first bytes of the answer.
async fn greet(stream: &mut Stream, hello: &[u8]) -> Result<Vec<u8>, Failure> {
    stream
        .write_all(hello)
        .await
        .map_err(|_broken| Failure::Reset)?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    loop {
        match stream.read_buf(&mut answer).await {
            Ok(0) | Err(_) => return Err(Failure::Reset),
            Ok(_) => {}
        }
        if is_no_local_endpoint(&answer) {
            return Err(Failure::NoLocalEndpoint);
        }
        // An alert is seven bytes; anything else is known to be an answer by its first.
        if answer.len() >= 7 || answer.first() != Some(&21) {
            return Ok(answer);
        }
    }
}
