//! The life of a connection, top to bottom.
//!
//! ```text
//! accept -> peek -> pin config -> route -> terminate -> authorize -> plan -> connect
//!        -> originate -> relay -> account
//! ```

use std::cell::OnceCell;
use std::mem;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeugma_core::authorize::{
    Asking, Evidence, Verdict, authorize, evidence, gateway_of, gateways_of, peer_of,
};
use zeugma_core::engine::cluster_of;
use zeugma_core::hello::ClientHello;
use zeugma_core::identity::SpiffeId;
use zeugma_core::plan::{Attempt, plan};
use zeugma_core::retry::Sender;
use zeugma_core::route::{REPORTS_ALPN, Routed, route_plaintext, route_tls};
use zeugma_core::snapshot::{ClusterIx, Failure, Listener, Protocol, Service, ServiceIx, Snapshot};
use zeugma_core::svid::Rule;
use zeugma_core::verdict::Reason;

use crate::account::{Caller, Closed, Destination, Origin, Stretch, TlsFacts};
use crate::admission::{Counted, NO_LOAD_BALANCER};
use crate::copies::copied;
use crate::listener::Open;
use crate::peek::{First, PeekError, peek};
use crate::peer::tell;
use crate::proxy_protocol::incoming::{self, IncomingError};
use crate::recheck::{self, Listed};
use crate::relay::{Moved, RelayEnd, relay_streams};
use crate::runtime::{InFlight, Published, Worker};
use crate::tls::{Admit, TlsPeer};
use crate::transport::alert::{Alert, name_of, say_and_close};
use crate::transport::mtls::{self, ALPN_H2, ALPN_HTTP1, ALPN_TCP, SessionError};
use crate::transport::{Prefixed, Stream};
use crate::upstream::{self, Reached, Unreached};
use crate::walk::{Commit, walk};
use crate::{http, policy, proxy_protocol};

/// Who was refused inside the handshake by policy, and why.
type Refused = Arc<OnceLock<(SpiffeId, Reason)>>;

/// A connection that is being carried: what is known of it so far.
#[derive(Debug)]
pub(crate) struct Visit {
    pub(crate) worker: Rc<Worker>,
    pub(crate) published: Arc<Published>,
    pub(crate) caller: Caller,
    /// The SPIFFE ID that a peer's gateway attests.
    attested: Option<Box<str>>,
    pub(crate) tls: Option<TlsFacts>,
    service: Option<Arc<str>>,
    arrived: Option<Arrived>,
    pub(crate) detail: Option<String>,
    rule: Option<Box<str>>,
    pub(crate) moved: Rc<Moved>,
    began: Instant,
    /// Why it ended; `None`: it was cut off.
    ended: Option<Reason>,
    /// Counts the connection as open; shared with what outlives it, such as an upgrade.
    pub(crate) open: Rc<Open>,
    /// Where a change finds it, and where it came in and from.
    pub(crate) listed: Listed,
}

/// The endpoint that a connection is taken to: what its record is made from in the end.
#[derive(Debug)]
struct Arrived {
    cluster: ClusterIx,
    attempt: Attempt,
    attempts: u32,
    address: SocketAddr,
    peer: Option<Arc<TlsPeer>>,
}

/// What the SNI of a terminated connection named.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SniTarget {
    pub(crate) service: ServiceIx,
    /// The host has several ports and the SNI named none: each request has to.
    pub(crate) any_port: bool,
}

/// Carries one connection from its first byte to its one record.
///
/// Not an `async fn`, whose future would have room for its arguments twice.
pub(crate) fn serve(
    worker: Rc<Worker>,
    tcp: TcpStream,
    source: SocketAddr,
    listener: Arc<str>,
    open: Open,
) -> impl Future<Output = ()> {
    let published = worker.shared.published.load_full();
    let mut visit = Visit::new(worker, published, source, listener, open);
    async move {
        let mut relaying = match carry_unless_cut(&mut visit, tcp).await {
            Ok(relaying) => relaying,
            Err(ended) => return visit.end(ended),
        };
        let end = relaying.bytes.as_mut().await;
        drop(relaying);
        let ended = visit.relayed(end);
        visit.end(ended);
    }
}

/// An endpoint has committed itself: what is left to do is to relay.
struct Relaying {
    bytes: Pin<Box<dyn Future<Output = RelayEnd>>>,
    /// Held while the endpoint is in use.
    _in_flight: InFlight,
    /// Held while it is under way on its route.
    _counted: Counted,
}

/// Carries it until it relays, and cuts it off wherever it is when it is told: dropping what carries
/// it closes both sides.
///
/// Boxed, and so given back before the relay, which may be long and idle.
fn carry_unless_cut(
    visit: &mut Visit,
    tcp: TcpStream,
) -> Pin<Box<dyn Future<Output = Result<Relaying, Reason>> + '_>> {
    let entry = Rc::clone(&visit.listed);
    Box::pin(async move {
        tokio::select! {
            biased;
            carried = carry(visit, tcp) => carried,
            () = entry.cut_unless_session() => Err(Reason::NoLongerAllowed),
        }
    })
}

/// The table of `ARCHITECTURE.md` as one function: every way through returns what to relay, or why
/// it ended without.
async fn carry(visit: &mut Visit, mut tcp: TcpStream) -> Result<Relaying, Reason> {
    let published = Arc::clone(&visit.published);
    let Some(listener) = published.listener(&visit.listed.listener) else {
        return Err(Reason::Drained);
    };
    let mut prefix = Vec::new();
    if !listener.proxies.is_empty() {
        Box::pin(visit.handed_on(listener, &mut tcp, &mut prefix)).await?;
    }
    if !listener.admits(visit.listed.source().ip()) {
        return Err(Reason::SourceRefused);
    }
    let first = match visit.first_bytes(listener, &mut tcp, &mut prefix).await {
        Ok(first) => first,
        Err(error) => return Err(refuse_bytes(visit, tcp, error).await),
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
    let routed = route(&published.snapshot, listener, &first);
    match routed {
        Routed::Terminate(_) | Routed::TerminateAnyPort(_) | Routed::Reports => {}
        Routed::Passthrough(_) | Routed::Plain(_) | Routed::PlainHttp | Routed::Refuse(_) => {
            visit.open.has_shaken();
        }
    }
    // Each branch is boxed: an idle connection pays for the one it is in.
    match (routed, &first) {
        (Routed::Passthrough(service), _) => {
            let hello = first.hello_bytes();
            Box::pin(passthrough(visit, listener, service, stream, hello)).await
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
            Err(Box::pin(http::serve(visit, None, None, first.version(), stream)).await)
        }
        (Routed::Reports, First::Hello(_)) => Err(Box::pin(reports(visit, stream)).await),
        (Routed::Refuse(reason), _) => Err(refuse(visit, stream.into_tcp(), reason).await),
        (Routed::Terminate(_) | Routed::TerminateAnyPort(_) | Routed::Reports, _) => {
            Err(Reason::Internal)
        }
    }
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
    hello_bytes: usize,
) -> Result<Relaying, Reason> {
    let (tcp, mut hello) = stream.into_parts();
    // Early data behind the hello is sent once, to the endpoint that has committed itself.
    let behind = hello.split_off(hello_bytes.min(hello.len()));
    let published = Arc::clone(&visit.published);
    visit.enter_service(published.snapshot.service(service));
    if let Err(reason) = visit.carries(recheck::Open::Passthrough, listener, service) {
        visit.alert(tcp, Alert::AccessDenied).await;
        return Err(reason);
    }
    let reached = match cluster_of(&published.snapshot, listener, service) {
        Err(reason) => Err(Unreached::for_now(reason)),
        Ok(cluster) => walk(visit, listener.role, cluster, Commit::Hello(&hello))
            .await
            .map(|reached| (cluster, reached)),
    };
    match reached {
        Ok((to, reached)) => {
            visit.moved.up.set(hello.len() as u64);
            let downstream = Stream::Plain(Prefixed::new(tcp, behind));
            Ok(visit.start_relay(to, downstream, reached))
        }
        Err(unreached) => {
            visit.detail = unreached.last;
            visit.alert(tcp, Alert::InternalError).await;
            Err(unreached.reason)
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
) -> Result<Relaying, Reason> {
    let service = sni.service;
    let published = Arc::clone(&visit.published);
    let target = published.snapshot.service(service);
    visit.enter_service(target);
    let shared = Arc::clone(&visit.worker.shared);
    let is_tcp = target.protocol == Protocol::Tcp;
    if is_tcp && !visit.has_somewhere(listener, service) {
        visit.alert(stream.into_tcp(), Alert::InternalError).await;
        return Err(Reason::NoLocalEndpoint);
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
    if credentials.id().is_none() {
        visit.alert(stream.into_tcp(), Alert::InternalError).await;
        return Err(Reason::NoIdentity);
    }
    let session = match mtls::terminate(stream, &credentials, alpn, admit, deadline).await {
        Ok(session) => session,
        Err(error) => return Err(visit.refuse_session(error, &refused)),
    };
    visit.open.has_shaken();
    visit.caller.identity = Some(session.peer.id.as_str().into());
    visit.listed.is_by(&session.peer);
    let trusted = Some(credentials.generation());
    // A service of several ports is each request's to name.
    let asked = (!sni.any_port).then_some((&target.name, target.port));
    if !is_tcp {
        visit.listed.asks(recheck::Open::Session, asked);
    }
    (visit.listed).settle(&shared, published.generation, trusted);
    if let Some(tls) = &mut visit.tls {
        tls.group = session.group;
    }
    let peer = peer_of(
        &visit.published.snapshot,
        visit.listed.source().ip(),
        &session.peer.id,
    );
    visit.caller.peer = peer.map(|ix| Arc::clone(&visit.published.snapshot.peer(ix).name));
    match (target.protocol, session.alpn.as_deref()) {
        (Protocol::Http, Some(ALPN_H2)) => {
            let caller = Some(session.peer.id.clone());
            Err(http::serve(visit, Some(sni), caller, http::Version::H2, session.stream).await)
        }
        (Protocol::Http, _) => {
            let caller = Some(session.peer.id.clone());
            Err(http::serve(visit, Some(sni), caller, http::Version::H1, session.stream).await)
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

/// Ends the TLS of a caller that asks for health reports, and tells it, if it is a peer's gateway.
async fn reports(visit: &mut Visit, stream: Prefixed) -> Reason {
    let shared = Arc::clone(&visit.worker.shared);
    let published = Arc::clone(&visit.published);
    let refused = Refused::default();
    let admit = visit.gateways_alone(Arc::clone(&refused));
    let limit = shared.settings.limits.handshake_timeout;
    let deadline = limit.saturating_sub(visit.began.elapsed());
    let credentials = shared.credentials.load_full();
    let alpn = &[REPORTS_ALPN];
    let session = match mtls::terminate(stream, &credentials, alpn, Some(admit), deadline).await {
        Ok(session) => session,
        Err(error) => return visit.refuse_session(error, &refused),
    };
    visit.open.has_shaken();
    visit.caller.identity = Some(session.peer.id.as_str().into());
    visit.listed.is_by(&session.peer);
    visit.listed.asks(recheck::Open::Reports, None);
    let trusted = Some(credentials.generation());
    (visit.listed).settle(&shared, published.generation, trusted);
    if let Some(tls) = &mut visit.tls {
        tls.group = session.group;
    }
    let source = visit.listed.source().ip();
    let peer = peer_of(&published.snapshot, source, &session.peer.id);
    visit.caller.peer = peer.map(|ix| Arc::clone(&published.snapshot.peer(ix).name));
    tell::serve(visit, session.stream, &session.peer.id).await
}

/// Carries a plaintext connection of a one-route listener.
async fn plain(
    visit: &mut Visit,
    listener: &Listener,
    service: ServiceIx,
    version: http::Version,
    stream: Prefixed,
) -> Result<Relaying, Reason> {
    let published = Arc::clone(&visit.published);
    let target = published.snapshot.service(service);
    visit.enter_service(target);
    if target.protocol == Protocol::Http {
        return Err(http::serve(visit, None, None, version, Stream::Plain(stream)).await);
    }
    visit.carries(recheck::Open::Bytes, listener, service)?;
    carry_tcp(visit, listener, service, Stream::Plain(stream), None).await
}

/// Carries the bytes of a TCP service whose caller is verified.
async fn tcp_session(
    visit: &mut Visit,
    listener: &Listener,
    service: ServiceIx,
    mut stream: Stream,
    caller: &SpiffeId,
    from_gateway: bool,
) -> Result<Relaying, Reason> {
    let deadline = visit.worker.shared.settings.limits.header_timeout;
    let attested = if from_gateway {
        match timeout(deadline, proxy_protocol::read_identity(&mut stream)).await {
            Ok(Ok(attested)) => attested,
            Ok(Err(error)) => {
                visit.detail = Some(error.to_string());
                return Err(Reason::RequestMalformed);
            }
            Err(_elapsed) => return Err(Reason::HelloTimeout),
        }
    } else {
        None
    };
    let snapshot = Arc::clone(&visit.published.snapshot);
    let evidence = evidence(
        &snapshot,
        visit.listed.source().ip(),
        caller,
        attested.as_ref(),
    );
    if let Evidence::Asserted { id, .. } = evidence {
        visit.attested = Some(id.as_str().into());
        visit.listed.is_for(Some(id));
    }
    visit.authorize(listener, service, evidence)?;
    let asked = snapshot.service(service);
    visit
        .listed
        .asks(recheck::Open::Bytes, Some((&asked.name, asked.port)));
    // What is handed on was not known in the handshake: the deny list has its say here.
    visit.listed.settle_now(&visit.worker.shared);
    if let Some(reason) = visit.told_to_end() {
        return Err(reason);
    }
    let handed_on = match evidence {
        Evidence::Asserted { id, .. } => id.clone(),
        Evidence::Verified(_) | Evidence::Network => caller.clone(),
    };
    let source = visit.listed.source().ip();
    let handed_on = HandedOn {
        caller: &handed_on,
        answers: from_gateway,
        // By who it is: anybody may offer the ALPN of gateways.
        sender: match gateway_of(&snapshot, source, caller) {
            Some(_) => Sender::PeerGateway,
            None => Sender::Caller,
        },
    };
    carry_tcp(visit, listener, service, stream, Some(handed_on)).await
}

/// Who calls a TCP service.
#[derive(Debug, Clone, Copy)]
struct HandedOn<'a> {
    /// The identity that goes on to whoever answers.
    caller: &'a SpiffeId,
    /// Whether it waits to hear how connecting went.
    answers: bool,
    sender: Sender,
}

/// Plans and connects a TCP service.
async fn carry_tcp(
    visit: &mut Visit,
    listener: &Listener,
    service: ServiceIx,
    mut downstream: Stream,
    caller: Option<HandedOn<'_>>,
) -> Result<Relaying, Reason> {
    let published = Arc::clone(&visit.published);
    let commit = Commit::Tcp {
        caller: caller.map(|caller| caller.caller),
        first: if downstream.has_more() {
            upstream::First::We
        } else {
            upstream::First::Anyone
        },
    };
    let reached = match cluster_of(&published.snapshot, listener, service) {
        Err(reason) => Err(Unreached::for_now(reason)),
        Ok(cluster) => walk(visit, listener.role, cluster, commit)
            .await
            .map(|reached| (cluster, reached)),
    };
    let deadline = visit.worker.shared.settings.limits.header_timeout;
    if caller.is_some_and(|caller| caller.answers) {
        let answer = match &reached {
            Ok(_) => proxy_protocol::CONNECTED,
            Err(shed)
                if matches!(
                    shed.reason,
                    Reason::RouteConnectionLimit | Reason::OverCapacity
                ) =>
            {
                proxy_protocol::SHED
            }
            Err(_) => proxy_protocol::NO_LOCAL_ENDPOINT,
        };
        let answering = async {
            downstream.write_all(&[answer]).await?;
            downstream.flush().await
        };
        if !matches!(timeout(deadline, answering).await, Ok(Ok(()))) {
            return Err(Reason::DownstreamClosed);
        }
    }
    match reached {
        Ok((to, reached)) => {
            let target = published.snapshot.service(service);
            let sender = caller.map_or(Sender::Caller, |caller| caller.sender);
            let caller = caller.map(|caller| caller.caller);
            let downstream = copied(visit, target, sender, caller, downstream);
            Ok(visit.start_relay(to, downstream, reached))
        }
        Err(Unreached { reason, last, rule }) => {
            visit.detail = last;
            if let Some(rule) = rule {
                visit.rule = Some(rule.into());
            }
            // In order, so that the answer above is read; it is as good as closed if nobody takes it.
            timeout(deadline, downstream.shutdown()).await.ok();
            Err(reason)
        }
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
        let undecided = recheck::Open::Undecided;
        let listed = worker.registry.list(listener, source, undecided);
        let role = published.listener(&listed.listener).map(|at| at.role);
        listed.comes_by(role);
        Self {
            listed,
            worker,
            published,
            caller: Caller::default(),
            attested: None,
            tls: None,
            service: None,
            arrived: None,
            detail: None,
            rule: None,
            moved: Rc::default(),
            began: Instant::now(),
            ended: None,
            open: Rc::new(open),
        }
    }

    /// Ends it; dropping it writes its record.
    fn end(mut self, reason: Reason) {
        // Where it was told to end, that says why.
        self.ended = Some(self.told_to_end().unwrap_or(reason));
    }

    /// Hears from the load balancer that connected whose connection it is; what came behind that is
    /// left in `behind`.
    ///
    /// # Errors
    /// It is no load balancer, does not say it, or hands on more than its source may begin.
    async fn handed_on(
        &mut self,
        listener: &Listener,
        tcp: &mut TcpStream,
        behind: &mut Vec<u8>,
    ) -> Result<(), Reason> {
        let proxy = self.listed.source();
        if !listener.trusts(proxy.ip()) {
            // It was one when it was accepted.
            self.detail = Some(NO_LOAD_BALANCER.to_owned());
            return Err(Reason::SourceRefused);
        }
        let limit = self.worker.shared.settings.limits.handshake_timeout;
        let told = match timeout(limit, incoming::read_source(tcp, behind)).await {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                self.detail = Some(error.to_string());
                return Err(match error {
                    IncomingError::Gone(_) => Reason::DownstreamClosed,
                    IncomingError::Missing
                    | IncomingError::TooLong(_)
                    | IncomingError::Malformed(_) => Reason::ProxyHeader,
                });
            }
            Err(_elapsed) => {
                let bytes = behind.len();
                self.detail = Some(format!("{bytes} bytes in {limit:?} and no PROXY header"));
                return Err(Reason::HelloTimeout);
            }
        };
        // Of its own it calls in its own name, and is let in as a load balancer all the same.
        self.listed.comes_from(told.unwrap_or(proxy), proxy);
        self.caller.proxy = told.map(|_| Box::new(proxy));
        self.open.admits(listener, self.listed.source().ip())
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
        let mut deadline = self.worker.shared.settings.limits.handshake_timeout;
        if !listener.proxies.is_empty() {
            // The header has had its part of the time.
            deadline = deadline.saturating_sub(self.began.elapsed());
        }
        let first = peek(tcp, prefix, deadline).await?;
        if let First::Hello(hello) = &first {
            let sni: Option<Rc<String>> = hello.sni.clone().map(Rc::new);
            // What one route alone is carried on is not looked into.
            if listener.only.is_none() {
                self.listed.is_called(sni.clone());
            }
            self.tls = Some(TlsFacts {
                sni,
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
        let endpoint = self
            .published
            .snapshot
            .cluster(cluster)
            .endpoint(attempt.endpoint);
        let peer = upstream.peer.as_ref();
        self.listed
            .goes_to(&endpoint.backend, &endpoint.address, peer);
        if peer.is_some() {
            // It was verified some awaits ago.
            self.listed.settle_now(&self.worker.shared);
        }
        self.arrived = Some(Arrived {
            cluster,
            attempt: *attempt,
            attempts: *attempts,
            address: upstream.address,
            peer: upstream.peer.clone(),
        });
    }

    /// Authorizes what no TLS of ours tells more of, and notes it for rechecks.
    fn carries(
        &mut self,
        open: recheck::Open,
        listener: &Listener,
        service: ServiceIx,
    ) -> Result<(), Reason> {
        self.authorize(listener, service, Evidence::Network)?;
        let asked = self.published.snapshot.service(service);
        self.listed.asks(open, Some((&asked.name, asked.port)));
        (self.listed).settle(&self.worker.shared, self.published.generation, None);
        Ok(())
    }

    /// Why a recheck ends it, if one does; notes what decided.
    pub(crate) fn told_to_end(&mut self) -> Option<Reason> {
        let ending = self.listed.ending()?;
        self.detail = Some(ending.detail);
        self.rule = ending.rule.map(Into::into);
        Some(ending.reason)
    }

    fn has_somewhere(&self, listener: &Listener, service: ServiceIx) -> bool {
        let snapshot = &self.published.snapshot;
        let Ok(ix) = cluster_of(snapshot, listener, service) else {
            return false;
        };
        let shares = self.published.shares_of(ix);
        plan(snapshot.cluster(ix), shares, &|_| 0, 0)
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
        let sni = self.listed.sni();
        let asking = Asking {
            listener,
            source: self.listed.source().ip(),
            evidence,
            sni: sni.as_ref().map(|sni| sni.as_str()),
            method: None,
            path: None,
            headers: None,
        };
        let metrics = &self.worker.shared.metrics;
        let judged = policy::judge(&snapshot, service, &asking, metrics);
        self.detail = judged.detail;
        self.rule = judged
            .rule
            .and_then(|rule| rule.position.as_ref())
            .map(|position| position.to_string().into());
        judged.verdict
    }

    /// A check of the caller's own identity that runs inside the handshake.
    ///
    /// What its gateway hands on is not known before the handshake has ended, so a service that
    /// has rules with `via` admits every gateway of such a peer and decides afterwards.
    fn admission(&self, service: ServiceIx, refused: Refused) -> Admit {
        let published = Arc::clone(&self.published);
        let (listener, source) = (Arc::clone(&self.listed.listener), self.listed.source().ip());
        // `Admit` may be asked on any thread, which an `Rc` may not.
        let sni: Option<Box<str>> = self.listed.sni().map(|sni| sni.as_str().into());
        Box::new(move |id: &SpiffeId| {
            let snapshot = &published.snapshot;
            let Some(listener) = published.listener(&listener) else {
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
                sni: sni.as_deref(),
                method: None,
                path: None,
                headers: None,
            };
            match authorize(snapshot, service, &asking) {
                Verdict::Allow { .. } | Verdict::Audit { .. } => true,
                Verdict::Deny { .. } if decides_later => true,
                Verdict::Deny { reason, .. } => {
                    // One handshake asks once.
                    drop(refused.set((id.clone(), reason)));
                    false
                }
            }
        })
    }

    /// A check inside the handshake that lets in the gateways of peers.
    fn gateways_alone(&self, refused: Refused) -> Admit {
        let published = Arc::clone(&self.published);
        let source = self.listed.source().ip();
        Box::new(move |id: &SpiffeId| {
            let is_gateway = !gateways_of(&published.snapshot, source, id).is_empty();
            if !is_gateway {
                // One handshake asks once.
                drop(refused.set((id.clone(), Reason::NotAGateway)));
            }
            is_gateway
        })
    }

    fn refuse_session(&mut self, error: SessionError, refused: &Refused) -> Reason {
        self.detail = Some(error.to_string());
        match error {
            SessionError::Timeout(_) => Reason::HandshakeTimeout,
            SessionError::Refused(refusal) => {
                if let Some(tls) = &mut self.tls {
                    tls.alert = name_of(refusal.alert);
                }
                if let Some((id, reason)) = refused.get() {
                    self.caller.identity = Some(id.as_str().into());
                    return *reason;
                }
                self.rule = Some(refusal.label().into());
                self.worker
                    .shared
                    .metrics
                    .certificate_refused("downstream", refusal.label());
                let rule = refusal.violation.rule;
                if rule == Rule::NoCertificate {
                    Reason::CertificateMissing
                } else if [Rule::Revoked, Rule::RevocationUnknown, Rule::DeniedId].contains(&rule) {
                    recheck::reason_of(rule)
                } else {
                    Reason::CertificateRefused
                }
            }
            SessionError::Handshake(_) | SessionError::ServerName(_) => Reason::HandshakeFailed,
            SessionError::Setup(_) => Reason::Internal,
        }
    }

    /// Begins to relay between the caller and the endpoint reached.
    fn start_relay(&mut self, to: ClusterIx, downstream: Stream, reached: Reached) -> Relaying {
        self.arrive(to, &reached);
        let idle = self.published.snapshot.cluster(to).policy.timeouts.idle;
        let (moved, pipes) = (Rc::clone(&self.moved), Rc::clone(&self.worker.pipes));
        let entry = Rc::clone(&self.listed);
        let upstream = reached.upstream.stream;
        Relaying {
            bytes: Box::pin(relay_streams(
                downstream, upstream, idle, moved, pipes, entry,
            )),
            _in_flight: reached.in_flight,
            _counted: reached.counted,
        }
    }

    /// Tells health how a relay went.
    fn relayed(&mut self, end: RelayEnd) -> Reason {
        let answered = self.moved.down.get() > 0;
        let (reason, result) = match end {
            // By a change, which says why, or by the deadline of draining.
            RelayEnd::Told => (Reason::Drained, answered.then_some(Ok(()))),
            // An endpoint that ends it before a byte has neither served nor failed for certain.
            RelayEnd::Closed => (Reason::Completed, answered.then_some(Ok(()))),
            RelayEnd::Idle => (Reason::IdleTimeout, answered.then_some(Ok(()))),
            RelayEnd::Downstream(error) => {
                self.detail = Some(error.to_string());
                (Reason::DownstreamClosed, answered.then_some(Ok(())))
            }
            RelayEnd::Upstream(error) => {
                self.detail = Some(error.to_string());
                let result = if answered {
                    Ok(())
                } else {
                    Err(Failure::Reset)
                };
                (Reason::UpstreamReset, Some(result))
            }
        };
        if let (Some(result), Some(arrived)) = (result, &self.arrived) {
            let cluster = self.published.snapshot.cluster(arrived.cluster);
            let endpoint = cluster.endpoint(arrived.attempt.endpoint);
            self.worker.observe(&endpoint.key, result);
        }
        reason
    }
}

impl Drop for Visit {
    /// Writes the one record of this connection, however it ends.
    fn drop(&mut self) {
        let shared = Arc::clone(&self.worker.shared);
        let cut_off = || {
            if !std::thread::panicking() && shared.drain_is_over() {
                Reason::Drained
            } else {
                Reason::Internal
            }
        };
        shared.account(&Closed {
            origin: Rc::new(Origin {
                listener: Arc::clone(&self.listed.listener),
                source: self.listed.source(),
                caller: mem::take(&mut self.caller),
                tls: self.tls.take(),
                line: Stretch::new(),
            }),
            attested: self.attested.take(),
            generation: self.published.generation,
            service: self.service.take(),
            destination: self.arrived.take().map(|arrived| {
                let identity = arrived.peer.map(|peer| peer.id.to_string());
                let address = arrived.address.to_string().into();
                let (cluster, attempt) = (arrived.cluster, &arrived.attempt);
                describe(
                    &self.published,
                    cluster,
                    attempt,
                    address,
                    identity,
                    arrived.attempts,
                )
            }),
            request: None,
            reason: self.ended.unwrap_or_else(cut_off),
            detail: self.detail.take(),
            rule: self.rule.take().map(Arc::from),
            bytes_sent: self.moved.down.get(),
            bytes_received: self.moved.up.get(),
            duration: self.began.elapsed(),
        });
    }
}

/// Describes the endpoint that an attempt reached.
pub(crate) fn describe(
    published: &Published,
    cluster: ClusterIx,
    attempt: &Attempt,
    address: Arc<str>,
    identity: Option<String>,
    attempts: u32,
) -> Rc<Destination> {
    let cluster = published.snapshot.cluster(cluster);
    let endpoint = cluster.endpoint(attempt.endpoint);
    let preferred = cluster.levels.first().filter(|_| attempt.level > 0);
    Rc::new(Destination {
        address,
        backend: Arc::clone(&endpoint.backend),
        locality: endpoint.locality.clone(),
        identity,
        level: attempt.level,
        why: if attempts > 1 {
            "retry"
        } else {
            attempt.why.label()
        },
        failover_from: preferred.map(|level| Arc::clone(&level.name)),
        line: OnceCell::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of<A, B, C, D, E, F: Future>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    fn bytes_of_relay<A, B, C, D, E, G, F: Future>(_: impl FnOnce(A, B, C, D, E, G) -> F) -> usize {
        size_of::<F>()
    }

    /// What tokio has of a task besides its future: a header, the scheduler, an id and a trailer, in
    /// a cell that begins on a cache line of its own and ends with one (its `task::core`, where an
    /// assertion says as much of the header alone).
    const TASK_BYTES: usize = 128;

    /// What stays of a connection that relays: the phases before are boxed and given back.
    #[test]
    fn a_connection_that_relays_is_small() {
        let (task, relay) = (bytes_of(serve) + TASK_BYTES, bytes_of_relay(relay_streams));
        assert!(task + relay < 1024, "{task} + {relay}");
    }
}
