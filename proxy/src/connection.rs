//! The life of a connection, top to bottom.
//!
//! ```text
//! accept -> peek -> pin config -> route -> terminate -> authorize -> plan -> connect
//!        -> originate -> relay -> account
//! ```

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeugma_core::authorize::{Asking, Evidence, Verdict, authorize, evidence, peer_of};
use zeugma_core::hello::ClientHello;
use zeugma_core::identity::SpiffeId;
use zeugma_core::plan::{Attempt, plan};
use zeugma_core::route::{Routed, route_plaintext, route_tls};
use zeugma_core::snapshot::{
    ClusterIx, EndpointTls, Failure, Listener, Protocol, Role, Service, ServiceIx, Snapshot,
};
use zeugma_core::svid::Rule;
use zeugma_core::verdict::Reason;

use crate::account::{Caller, Closed, Destination, TlsFacts};
use crate::listener::Open;
use crate::peek::{First, PeekError, peek};
use crate::relay::{Moved, RelayEnd, relay};
use crate::runtime::{Published, Worker};
use crate::tls::Admit;
use crate::transport::alert::{Alert, is_no_local_endpoint, say_and_close};
use crate::transport::mtls::{self, ALPN_H2, ALPN_HTTP1, ALPN_TCP, SessionError};
use crate::transport::{Prefixed, Stream};
use crate::upstream::{self, Reached, Unreached, connect_any};
use crate::{http, proxy_protocol};

/// Who was refused inside the handshake by policy, and why.
type Refused = Arc<OnceLock<(SpiffeId, Reason)>>;

/// What the first bytes of an endpoint's answer are read into, to see whether it is a refusal.
const FIRST_ANSWER_BYTES: usize = 4096;

/// A connection that is being carried: what is known of it so far.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) worker: Rc<Worker>,
    pub(crate) published: Arc<Published>,
    pub(crate) listener: Arc<str>,
    pub(crate) source: SocketAddr,
    pub(crate) caller: Caller,
    pub(crate) tls: Option<TlsFacts>,
    service: Option<Arc<str>>,
    destination: Option<Destination>,
    pub(crate) detail: Option<String>,
    rule: Option<String>,
    /// Bytes to the caller, and from it.
    pub(crate) moved: (u64, u64),
    began: Instant,
    /// Counts the connection as open; shared with what outlives it, such as an upgrade.
    pub(crate) open: Rc<Open>,
}

/// What the SNI of a terminated connection named.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SniTarget {
    pub(crate) service: ServiceIx,
    /// The host has several ports and the SNI named none: each request has to.
    pub(crate) any_port: bool,
}

/// Carries one connection from its first byte to its one record.
pub(crate) async fn serve(
    worker: Rc<Worker>,
    tcp: TcpStream,
    source: SocketAddr,
    listener: Arc<str>,
    open: Open,
) {
    upstream::tune(&tcp);
    let published = worker.shared.published.load_full();
    let mut visit = Visit::new(worker, published, source, listener, open);
    let reason = carry(&mut visit, tcp).await;
    visit.account(reason);
}

/// The table of `ARCHITECTURE.md` as one function: every way through returns why it ended.
async fn carry(visit: &mut Visit, mut tcp: TcpStream) -> Reason {
    let published = Arc::clone(&visit.published);
    let Some(listener) = published.snapshot.listener(&visit.listener) else {
        return Reason::Drained;
    };
    if !admits(listener, visit.source.ip()) {
        return Reason::SourceRefused;
    }
    let mut prefix = Vec::new();
    let first = match visit.first_bytes(listener, &mut tcp, &mut prefix).await {
        Ok(first) => first,
        Err(error) => return refuse_bytes(visit, tcp, error).await,
    };
    let stream = Prefixed::new(tcp, prefix);
    let only = |service| SniTarget {
        service,
        any_port: false,
    };
    let any_port = |service| SniTarget {
        service,
        any_port: true,
    };
    // Each branch is boxed: an idle connection pays for the one it is in.
    match (route(&published.snapshot, listener, &first), &first) {
        (Routed::Passthrough(service), _) => {
            Box::pin(passthrough(visit, listener, service, stream)).await
        }
        (Routed::Terminate(service), First::Hello(hello)) => {
            Box::pin(terminate(visit, listener, only(service), hello, stream)).await
        }
        (Routed::TerminateAnyPort(service), First::Hello(hello)) => {
            Box::pin(terminate(visit, listener, any_port(service), hello, stream)).await
        }
        (Routed::Plain(service), _) => {
            Box::pin(plain(visit, listener, service, first.version(), stream)).await
        }
        (Routed::PlainHttp, _) => {
            let stream = Stream::Plain(stream);
            Box::pin(http::serve(visit, None, None, first.version(), stream)).await
        }
        (Routed::Refuse(reason), _) => refuse(visit, stream.into_tcp(), reason).await,
        (Routed::Terminate(_) | Routed::TerminateAnyPort(_), _) => Reason::Internal,
    }
}

fn admits(listener: &Listener, source: IpAddr) -> bool {
    let source = source.to_canonical();
    listener.sources.is_empty() || listener.sources.iter().any(|net| net.contains(&source))
}

fn route(snapshot: &Snapshot, listener: &Listener, first: &First) -> Routed {
    match first {
        First::Hello(hello) => route_tls(snapshot, listener, hello),
        First::Unpeeked | First::Http1 | First::Http2 => route_plaintext(listener),
    }
}

/// Relays the caller's own TLS, as it is, to an endpoint that speaks TLS itself.
async fn passthrough(
    visit: &mut Visit,
    listener: &Listener,
    service: ServiceIx,
    stream: Prefixed,
) -> Reason {
    let (tcp, hello) = stream.into_parts();
    let published = Arc::clone(&visit.published);
    let target = published.snapshot.service(service);
    visit.enter_service(target);
    if let Err(reason) = visit.authorize(listener, service, Evidence::Network) {
        visit.alert(tcp, Alert::AccessDenied).await;
        return reason;
    }
    let Some(cluster) = destination(listener.role, target) else {
        visit.alert(tcp, Alert::InternalError).await;
        return Reason::NoLocalEndpoint;
    };
    match connect_by_hello(visit, cluster, &hello).await {
        Ok(reached) => {
            visit.arrive(cluster, &reached);
            let idle = visit.published.snapshot.cluster(cluster).timeouts.idle;
            let reason = visit
                .relay(Stream::plain(tcp), reached.upstream.stream, idle)
                .await;
            visit.moved.1 += hello.len() as u64;
            drop(reached.in_flight);
            reason
        }
        Err(unreached) => {
            visit.detail = unreached.last;
            visit.alert(tcp, Alert::InternalError).await;
            unreached.reason
        }
    }
}

/// Ends the caller's TLS, learns who it is, and carries what is inside.
async fn terminate(
    visit: &mut Visit,
    listener: &Listener,
    sni: SniTarget,
    hello: &ClientHello,
    stream: Prefixed,
) -> Reason {
    let service = sni.service;
    let published = Arc::clone(&visit.published);
    let target = published.snapshot.service(service);
    visit.enter_service(target);
    let shared = Arc::clone(&visit.worker.shared);
    let is_tcp = target.protocol == Protocol::Tcp;
    if is_tcp && !visit.has_somewhere(listener.role, target) {
        visit.alert(stream.into_tcp(), Alert::InternalError).await;
        return Reason::NoLocalEndpoint;
    }
    let offered = |protocol: &[u8]| hello.alpn.iter().any(|offer| offer == protocol);
    let alpn: &[&[u8]] = match target.protocol {
        Protocol::Http => &[ALPN_H2, ALPN_HTTP1],
        Protocol::Tcp if offered(ALPN_TCP) => &[ALPN_TCP],
        Protocol::Tcp => &[],
    };
    // A TCP caller has no 403 to read: it is refused inside the handshake, by an alert.
    let refused = Refused::default();
    let admit = is_tcp.then(|| visit.admission(service, Arc::clone(&refused)));
    // The hello has had its part of the time.
    let limit = shared.settings.limits.handshake_timeout;
    let deadline = limit.saturating_sub(visit.began.elapsed());
    let credentials = shared.credentials.load_full();
    let session = match mtls::terminate(stream, &credentials, alpn, admit, deadline).await {
        Ok(session) => session,
        Err(error) => return visit.refuse_session(error, &refused),
    };
    visit.caller.identity = Some(session.peer.id.to_string());
    if let Some(tls) = &mut visit.tls {
        tls.group = session.group;
    }
    let peer = peer_of(
        &visit.published.snapshot,
        visit.source.ip(),
        &session.peer.id,
    );
    visit.caller.peer = peer.map(|ix| Arc::clone(&visit.published.snapshot.peer(ix).name));
    match (target.protocol, session.alpn.as_deref()) {
        (Protocol::Http, Some(ALPN_H2)) => {
            let caller = Some(session.peer.id);
            http::serve(visit, Some(sni), caller, http::Version::H2, session.stream).await
        }
        (Protocol::Http, _) => {
            let caller = Some(session.peer.id);
            http::serve(visit, Some(sni), caller, http::Version::H1, session.stream).await
        }
        (Protocol::Tcp, alpn) => {
            let from_gateway = alpn == Some(ALPN_TCP);
            tcp_session(
                visit,
                listener,
                service,
                session.stream,
                &session.peer.id,
                from_gateway,
            )
            .await
        }
    }
}

/// Carries a plaintext connection of a one-route listener.
async fn plain(
    visit: &mut Visit,
    listener: &Listener,
    service: ServiceIx,
    version: http::Version,
    stream: Prefixed,
) -> Reason {
    let published = Arc::clone(&visit.published);
    let target = published.snapshot.service(service);
    visit.enter_service(target);
    if target.protocol == Protocol::Http {
        return http::serve(visit, None, None, version, Stream::Plain(stream)).await;
    }
    if let Err(reason) = visit.authorize(listener, service, Evidence::Network) {
        return reason;
    }
    carry_tcp(visit, listener, target, Stream::Plain(stream), None).await
}

/// Carries the bytes of a TCP service whose caller is verified.
async fn tcp_session(
    visit: &mut Visit,
    listener: &Listener,
    service: ServiceIx,
    mut stream: Stream,
    caller: &SpiffeId,
    from_gateway: bool,
) -> Reason {
    let deadline = visit.worker.shared.settings.limits.header_timeout;
    let attested = if from_gateway {
        match timeout(deadline, proxy_protocol::read_identity(&mut stream)).await {
            Ok(Ok(attested)) => attested,
            Ok(Err(error)) => {
                visit.detail = Some(error.to_string());
                return Reason::RequestMalformed;
            }
            Err(_elapsed) => return Reason::HelloTimeout,
        }
    } else {
        None
    };
    let snapshot = Arc::clone(&visit.published.snapshot);
    let evidence = evidence(&snapshot, visit.source.ip(), caller, attested.as_ref());
    if let Evidence::Asserted { id, .. } = evidence {
        visit.caller.attested = Some(id.to_string());
    }
    if let Err(reason) = visit.authorize(listener, service, evidence) {
        return reason;
    }
    let published = Arc::clone(&visit.published);
    let target = published.snapshot.service(service);
    visit.enter_service(target);
    let handed_on = match evidence {
        Evidence::Asserted { id, .. } => id.clone(),
        Evidence::Verified(_) | Evidence::Network => caller.clone(),
    };
    carry_tcp(visit, listener, target, stream, Some(&handed_on)).await
}

/// Plans, connects and relays the bytes of a TCP service.
async fn carry_tcp(
    visit: &mut Visit,
    listener: &Listener,
    target: &Service,
    downstream: Stream,
    caller: Option<&SpiffeId>,
) -> Reason {
    let Some(cluster) = destination(listener.role, target) else {
        return Reason::NoLocalEndpoint;
    };
    let published = Arc::clone(&visit.published);
    let reached = match connect_any(&visit.worker, &published, cluster, &[ALPN_TCP]).await {
        Ok(reached) => reached,
        Err(Unreached { reason, last, rule }) => {
            visit.detail = last;
            if rule.is_some() {
                visit.rule = rule;
            }
            return reason;
        }
    };
    visit.arrive(cluster, &reached);
    let endpoint = published
        .snapshot
        .cluster(cluster)
        .endpoint(reached.attempt.endpoint);
    let mut stream = reached.upstream.stream;
    let hands_on = reached.upstream.alpn.as_deref() == Some(ALPN_TCP) || endpoint.proxy_protocol;
    if hands_on {
        let header = proxy_protocol::header(visit.source, reached.upstream.address, caller);
        if let Err(error) = stream.write_all(&header).await {
            visit.detail = Some(error.to_string());
            visit.worker.observe(&endpoint.key, Err(Failure::Reset));
            return Reason::UpstreamReset;
        }
    }
    let idle = published.snapshot.cluster(cluster).timeouts.idle;
    let reason = visit.relay(downstream, stream, idle).await;
    if reason == Reason::UpstreamReset {
        visit.worker.observe(&endpoint.key, Err(Failure::Reset));
    }
    drop(reached.in_flight);
    reason
}

/// Offers the kept ClientHello to one endpoint after the other, until one answers.
///
/// The first byte that is no fatal `internal_error` alert commits the attempt: until then nothing
/// has reached the caller.
async fn connect_by_hello(
    visit: &Visit,
    to: ClusterIx,
    hello: &[u8],
) -> Result<Reached, Unreached> {
    let worker = &visit.worker;
    let cluster = visit.published.snapshot.cluster(to);
    let load = |endpoint| worker.load(cluster, endpoint);
    let mut last = None;
    let mut nth = 0;
    for attempt in plan(
        cluster,
        visit.published.shares_of(to),
        &load,
        worker.draw_for(cluster),
    ) {
        let endpoint = cluster.endpoint(attempt.endpoint);
        if endpoint.tls != EndpointTls::Workload {
            continue;
        }
        nth += 1;
        let in_flight = worker.enter(&endpoint.key);
        upstream::note_attempt(worker, cluster, &attempt, nth);
        let deadline = upstream::connect_deadline(cluster, endpoint);
        let connected = upstream::connect(&worker.shared, deadline, endpoint, &[]).await;
        let mut upstream = match connected {
            Ok(upstream) => upstream,
            Err(error) => {
                worker.observe(&endpoint.key, Err(Failure::Connect));
                last = Some(error.to_string());
                continue;
            }
        };
        let deadline = cluster.timeouts.response_headers;
        match timeout(deadline, greet(&mut upstream.stream, hello)).await {
            Ok(Ok(answer)) => {
                worker.observe(&endpoint.key, Ok(()));
                upstream.stream.unread(answer);
                return Ok(Reached {
                    upstream,
                    attempt,
                    attempts: nth,
                    in_flight,
                });
            }
            Ok(Err(failure)) => {
                worker.observe(&endpoint.key, Err(failure));
                last = Some(format!("{} refused the hello: {failure:?}", endpoint.key));
            }
            Err(_elapsed) => {
                worker.observe(&endpoint.key, Err(Failure::Timeout));
                last = Some(format!(
                    "{} did not answer the hello in {deadline:?}",
                    endpoint.key
                ));
            }
        }
    }
    let reason = match nth {
        0 => upstream::nothing_healthy(&visit.published, to),
        _ => Reason::ConnectFailed,
    };
    // Whose certificate it is, the caller judges.
    let rule = None;
    Err(Unreached { reason, last, rule })
}

/// Sends the hello and reads the first bytes of the answer.
async fn greet(tcp: &mut Stream, hello: &[u8]) -> Result<Vec<u8>, Failure> {
    tcp.write_all(hello)
        .await
        .map_err(|_error| Failure::Reset)?;
    let mut answer = Vec::with_capacity(FIRST_ANSWER_BYTES);
    loop {
        match tcp.read_buf(&mut answer).await {
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

/// Where traffic of a listener goes: workloads' anywhere, the mesh's to own backends only.
pub(crate) const fn destination(role: Role, service: &Service) -> Option<ClusterIx> {
    match role {
        Role::Workloads => Some(service.outbound),
        Role::Mesh => service.own,
    }
}

/// Refuses what was understood: by an alert, or in words to those who speak HTTP.
async fn refuse(visit: &mut Visit, tcp: TcpStream, reason: Reason) -> Reason {
    const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
        content-length: 43\r\nconnection: close\r\n\r\nthis port speaks TLS with SPIFFE SVIDs only";
    if reason == Reason::NotTls {
        say_and_close(tcp, NOT_TLS).await;
    } else {
        visit.alert(tcp, Alert::UnrecognizedName).await;
    }
    reason
}

/// Refuses what was not understood.
async fn refuse_bytes(visit: &mut Visit, tcp: TcpStream, error: PeekError) -> Reason {
    visit.detail = Some(error.detail);
    let alert = if error.reason == Reason::HelloTooLarge {
        Some(Alert::IllegalParameter)
    } else if error.reason == Reason::HelloMalformed {
        Some(Alert::DecodeError)
    } else if error.reason == Reason::SniMalformed {
        Some(Alert::UnrecognizedName)
    } else {
        // Gone, or not there yet.
        None
    };
    if let Some(alert) = alert {
        visit.alert(tcp, alert).await;
    }
    error.reason
}

impl Visit {
    fn new(
        worker: Rc<Worker>,
        published: Arc<Published>,
        source: SocketAddr,
        listener: Arc<str>,
        open: Open,
    ) -> Self {
        Self {
            worker,
            published,
            listener,
            source,
            caller: Caller::default(),
            tls: None,
            service: None,
            destination: None,
            detail: None,
            rule: None,
            moved: (0, 0),
            began: Instant::now(),
            open: Rc::new(open),
        }
    }

    /// Reads what the caller begins with; not on a one-route listener of a TCP service, since in
    /// some protocols the server speaks first.
    async fn first_bytes(
        &mut self,
        listener: &Listener,
        tcp: &mut TcpStream,
        prefix: &mut Vec<u8>,
    ) -> Result<First, PeekError> {
        let only = listener
            .only
            .map(|ix| self.published.snapshot.service(ix).protocol);
        if only == Some(Protocol::Tcp) {
            return Ok(First::Unpeeked);
        }
        let deadline = self.worker.shared.settings.limits.handshake_timeout;
        let first = peek(tcp, prefix, deadline).await?;
        if let First::Hello(hello) = &first {
            self.tls = Some(TlsFacts {
                sni: hello.sni.clone(),
                ..TlsFacts::default()
            });
        }
        Ok(first)
    }

    /// Refuses the connection by an alert, and notes it.
    async fn alert(&mut self, tcp: TcpStream, alert: Alert) {
        self.tls.get_or_insert_default().alert = Some(alert.name());
        say_and_close(tcp, &alert.record()).await;
    }

    /// Notes what is asked for.
    fn enter_service(&mut self, service: &Service) {
        self.service = Some(Arc::clone(&service.name));
    }

    /// Notes where the connection is taken.
    fn arrive(&mut self, cluster: ClusterIx, reached: &Reached) {
        let Reached {
            upstream,
            attempt,
            attempts,
            ..
        } = reached;
        let (address, identity) = (upstream.address.to_string(), upstream.identity.clone());
        self.destination = Some(describe(
            &self.published,
            cluster,
            attempt,
            address,
            identity,
            *attempts,
        ));
    }

    fn has_somewhere(&self, role: Role, service: &Service) -> bool {
        let Some(ix) = destination(role, service) else {
            return false;
        };
        let cluster = self.published.snapshot.cluster(ix);
        plan(cluster, self.published.shares_of(ix), &|_| 0, 0)
            .next()
            .is_some()
    }

    fn authorize(
        &mut self,
        listener: &Listener,
        service: ServiceIx,
        evidence: Evidence<'_>,
    ) -> Result<(), Reason> {
        let snapshot = Arc::clone(&self.published.snapshot);
        let asking = Asking {
            listener,
            source: self.source.ip(),
            evidence,
            method: None,
            path: None,
        };
        let (verdict, rule) = match authorize(&snapshot, service, &asking) {
            Verdict::Allow { rule } => (Ok(()), Some(rule)),
            Verdict::Deny {
                reason,
                rule,
                nearest,
            } => {
                self.detail = explain_denial(snapshot.service(service), nearest);
                (Err(reason), rule)
            }
        };
        let policy = &snapshot.service(service).policy;
        let rules = if verdict.is_ok() {
            &policy.allow
        } else {
            &policy.deny
        };
        self.rule = rule
            .and_then(|nth| rules.get(nth)?.position.as_ref())
            .map(ToString::to_string);
        verdict
    }

    /// A check of the caller's own identity that runs inside the handshake.
    ///
    /// What its gateway hands on is not known before the handshake has ended, so a service that
    /// has rules with `via` admits every gateway of such a peer and decides afterwards.
    fn admission(&self, service: ServiceIx, refused: Refused) -> Admit {
        let published = Arc::clone(&self.published);
        let (listener, source) = (Arc::clone(&self.listener), self.source.ip());
        Box::new(move |id: &SpiffeId| {
            let snapshot = &published.snapshot;
            let Some(listener) = snapshot.listener(&listener) else {
                return false;
            };
            let policy = &snapshot.service(service).policy;
            let peer = peer_of(snapshot, source, id);
            let decides_later =
                peer.is_some_and(|peer| policy.allow.iter().any(|rule| rule.via.contains(&peer)));
            let asking = Asking {
                listener,
                source,
                evidence: Evidence::Verified(id),
                method: None,
                path: None,
            };
            match authorize(snapshot, service, &asking) {
                Verdict::Allow { .. } => true,
                Verdict::Deny { .. } if decides_later => true,
                Verdict::Deny { reason, .. } => {
                    // One handshake asks once.
                    drop(refused.set((id.clone(), reason)));
                    false
                }
            }
        })
    }

    fn refuse_session(&mut self, error: SessionError, refused: &Refused) -> Reason {
        self.detail = Some(error.to_string());
        match error {
            SessionError::Timeout(_) => Reason::HandshakeTimeout,
            SessionError::Refused(refusal) => {
                if let Some(tls) = &mut self.tls {
                    tls.alert = refusal.alert.as_str();
                }
                if let Some((id, reason)) = refused.get() {
                    self.caller.identity = Some(id.to_string());
                    return *reason;
                }
                self.rule = Some(refusal.label().to_owned());
                self.worker
                    .shared
                    .metrics
                    .certificate_refused("downstream", refusal.label());
                if refusal.violation.rule == Rule::NoCertificate {
                    Reason::CertificateMissing
                } else {
                    Reason::CertificateRefused
                }
            }
            SessionError::Handshake(_) | SessionError::ServerName(_) => Reason::HandshakeFailed,
            SessionError::Setup(_) => Reason::Internal,
        }
    }

    async fn relay(&mut self, downstream: Stream, upstream: Stream, idle: Duration) -> Reason {
        let shared = Arc::clone(&self.worker.shared);
        let moved = Moved::default();
        // Draining gives open connections until the deadline; both arms may be dropped.
        let end = tokio::select! {
            end = Box::pin(relay(downstream, upstream, idle, &moved)) => Some(end),
            () = async { tokio::time::sleep_until(shared.draining().await).await } => None,
        };
        self.moved = (moved.down.get(), moved.up.get());
        let Some(end) = end else {
            return Reason::Drained;
        };
        match end {
            RelayEnd::Closed => Reason::Completed,
            RelayEnd::Idle => Reason::IdleTimeout,
            RelayEnd::Downstream(error) => {
                self.detail = Some(error.to_string());
                Reason::DownstreamClosed
            }
            RelayEnd::Upstream(error) => {
                self.detail = Some(error.to_string());
                Reason::UpstreamReset
            }
        }
    }

    /// Writes the one record of this connection.
    fn account(self, reason: Reason) {
        self.worker.shared.account(&Closed {
            listener: self.listener,
            source: self.source,
            generation: self.published.generation,
            caller: self.caller,
            tls: self.tls,
            service: self.service,
            destination: self.destination,
            request: None,
            reason,
            detail: self.detail,
            rule: self.rule,
            bytes_sent: self.moved.0,
            bytes_received: self.moved.1,
            duration: self.began.elapsed(),
        });
    }
}

/// Which allow rule came nearest to letting a caller in.
pub(crate) fn explain_denial(service: &Service, nearest: Option<usize>) -> Option<String> {
    let position = service.policy.allow.get(nearest?)?.position.as_ref()?;
    Some(format!(
        "the allow rule at {position} is the nearest to a match"
    ))
}

/// Describes the endpoint that an attempt reached.
pub(crate) fn describe(
    published: &Published,
    cluster: ClusterIx,
    attempt: &Attempt,
    address: String,
    identity: Option<String>,
    attempts: u32,
) -> Destination {
    let cluster = published.snapshot.cluster(cluster);
    let endpoint = cluster.endpoint(attempt.endpoint);
    let preferred = cluster.levels.first().filter(|_| attempt.level > 0);
    Destination {
        address,
        backend: Arc::clone(&endpoint.backend),
        locality: endpoint.locality.to_string(),
        identity,
        level: attempt.level,
        why: if attempts > 1 {
            "retry"
        } else {
            attempt.why.label()
        },
        failover_from: preferred.map(|level| Arc::clone(&level.name)),
    }
}
