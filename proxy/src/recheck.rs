//! Open connections and requests, and whether they may go on after a change.
//!
//! ```text
//! (control) publish, then tell --> (each worker) walk what is open, a slice at a time
//!                                     --judge--> stays | is told to leave | is cut off
//! ```
//!
//! Each worker lists what it carries. When a configuration, a bundle, a CRL or the deny list was
//! published, it judges each entry as its beginning would be judged now, and tells those alone that
//! may not go on; between slices traffic goes on. What begins while a change is published is decided
//! by the older one: whoever notes a decision in its entry compares the generations and judges again
//! at once ([`Entry::settle`]). The entry is listed before that, so that a change which comes later
//! finds it. Both happen on one thread, which leaves nothing between them.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashSet;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use http::{HeaderMap, Method, Uri};
use rustls_pki_types::UnixTime;
use slab::Slab;
use zeugma_core::engine::Headers;
use zeugma_core::identity::SpiffeId;
use zeugma_core::recheck::{Answering, Asked, Carried, Directory, Ending, Kind, find};
use zeugma_core::recheck::{judge, judge_answering, judge_copy};
use zeugma_core::snapshot::{Address, EndpointKey, Role};
use zeugma_core::svid::Rule;
use zeugma_core::verdict::Reason;

use crate::http::headers;
use crate::listing::{Carrying, Wanted};
use crate::runtime::{Published, Shared, Worker};
use crate::tls::{Credentials, Refusal, TlsPeer};

/// Entries judged before traffic has its turn: at about 2 µs each, half a millisecond.
const SLICE: usize = 256;
/// How often certificates and CRLs that ran out are looked for: nobody publishes these.
const EXPIRY_LOOK: Duration = Duration::from_secs(5);

/// What an entry is of.
#[derive(Debug)]
pub(crate) enum Open {
    /// A connection that is not decided yet.
    Undecided,
    /// The caller's own TLS, relayed as it is.
    Passthrough,
    /// The bytes of a TCP service.
    Bytes,
    /// A HTTP connection: it is asked to leave, and its requests have entries of their own.
    Session,
    /// Health reports to the gateway of a peer.
    Reports,
    /// A HTTP request, or what it was upgraded to.
    Request(Rc<(Method, Uri)>),
}

/// An endpoint whose certificate was verified.
#[derive(Debug)]
struct Upstream {
    backend: Arc<str>,
    address: Address,
    peer: Arc<TlsPeer>,
}

/// How an entry ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum How {
    /// No new requests; what is under way goes on.
    Leave,
    /// At once.
    Cut,
}

#[derive(Debug)]
struct Known {
    open: Open,
    /// Of its listener when it came in.
    role: Option<Role>,
    service: Option<(Arc<str>, u16)>,
    peer: Option<Arc<TlsPeer>>,
    /// The identity that a gateway handed on, where its word counted.
    claimed: Option<SpiffeId>,
    /// The server name of its TLS, where that ends here or is relayed as it is. A `str` would be longer.
    sni: Option<Rc<String>>,
    upstream: Option<Box<Upstream>>,
    /// Small, for there are many: what most have nothing of.
    seldom: Option<Box<Seldom>>,
}

#[derive(Debug, Clone, Default)]
struct Seldom {
    /// The route that it is a copy for, if it is one.
    mirror: Option<Arc<str>>,
    /// The load balancer that handed it on.
    proxy: Option<SocketAddr>,
    /// The other service that the split of its rule led it to.
    led: Option<(Arc<str>, u16)>,
    /// The headers of a request, where a rule asks for some.
    headers: Option<Rc<HeaderMap>>,
}

/// Something open, as its task and the walk share it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) listener: Arc<str>,
    source: Cell<SocketAddr>,
    known: RefCell<Known>,
    told: RefCell<Option<Box<(How, Ending)>>>,
    /// The deadline of draining has passed.
    overdue: Cell<bool>,
    /// Of the one task that waits.
    waker: RefCell<Option<Waker>>,
}

/// Keeps an entry listed until dropped.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) entry: Rc<Entry>,
    registry: Rc<Registry>,
    key: usize,
}

impl std::ops::Deref for Listed {
    type Target = Rc<Entry>;

    fn deref(&self) -> &Rc<Entry> {
        &self.entry
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.registry.entries.borrow_mut().try_remove(self.key);
    }
}

/// What one worker carries.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    entries: RefCell<Slab<Rc<Entry>>>,
}

impl Registry {
    /// Lists something that begins.
    pub(crate) fn list(
        self: &Rc<Self>,
        listener: Arc<str>,
        source: SocketAddr,
        open: Open,
    ) -> Listed {
        let entry = Rc::new(Entry {
            listener,
            source: Cell::new(source),
            known: RefCell::new(Known {
                open,
                role: None,
                service: None,
                peer: None,
                claimed: None,
                sni: None,
                upstream: None,
                seldom: None,
            }),
            told: RefCell::default(),
            overdue: Cell::default(),
            waker: RefCell::default(),
        });
        self.add(entry)
    }

    /// Lists a copy for the mirror to `route`: it has no more right than what it is a copy `of`.
    pub(crate) fn list_copy(self: &Rc<Self>, of: &Entry, open: Open, route: &Arc<str>) -> Listed {
        let original = of.known.borrow();
        let entry = Rc::new(Entry {
            listener: Arc::clone(&of.listener),
            source: of.source.clone(),
            known: RefCell::new(Known {
                open,
                role: original.role,
                service: original.service.clone(),
                peer: original.peer.clone(),
                claimed: original.claimed.clone(),
                sni: original.sni.clone(),
                upstream: None,
                seldom: Some(Box::new(Seldom {
                    mirror: Some(Arc::clone(route)),
                    proxy: original.seldom.as_ref().and_then(|seldom| seldom.proxy),
                    led: None,
                    headers: (original.seldom.as_ref()).and_then(|seldom| seldom.headers.clone()),
                })),
            }),
            told: RefCell::default(),
            overdue: Cell::default(),
            waker: RefCell::default(),
        });
        self.add(entry)
    }

    fn add(self: &Rc<Self>, entry: Rc<Entry>) -> Listed {
        let key = self.entries.borrow_mut().insert(Rc::clone(&entry));
        Listed {
            entry,
            registry: Rc::clone(self),
            key,
        }
    }
}

impl Registry {
    /// What is listed of it as `wanted`, and how many there are.
    pub(crate) fn carried(&self, wanted: &Wanted) -> (Vec<Carrying>, usize) {
        let entries = self.entries.borrow();
        let mut total = 0;
        let mut carried = Vec::new();
        for (_, entry) in entries.iter() {
            let known = entry.known.borrow();
            let service = known.service.as_ref().map(|(name, _)| &**name);
            if !wanted.holds(&entry.listener, service) {
                continue;
            }
            total += 1;
            if carried.len() < wanted.limit {
                carried.push(known.carrying(entry));
            }
        }
        (carried, total)
    }
}

impl Known {
    fn carrying(&self, entry: &Entry) -> Carrying {
        let request = match &self.open {
            Open::Request(request) => Some((request.0.to_string(), request.1.path().to_owned())),
            Open::Undecided | Open::Passthrough | Open::Bytes | Open::Session | Open::Reports => {
                None
            }
        };
        let upstream = self.upstream.as_ref();
        Carrying {
            kind: self.open.label(),
            listener: Arc::clone(&entry.listener),
            source: entry.source(),
            service: self.service.clone(),
            peer: self.peer.clone(),
            attested: self.claimed.clone(),
            sni: self.sni.as_ref().map(|sni| sni.as_str().into()),
            request,
            upstream: upstream.map(|up| {
                (
                    Arc::clone(&up.backend),
                    up.address.clone(),
                    Arc::clone(&up.peer),
                )
            }),
        }
    }
}

impl Open {
    /// The word in tables.
    const fn label(&self) -> &'static str {
        match self {
            Self::Undecided => "undecided",
            Self::Passthrough => "passthrough",
            Self::Bytes => "tcp",
            Self::Session => "http",
            Self::Reports => "reports",
            Self::Request(_) => "request",
        }
    }
}

impl Entry {
    /// Where it came from.
    pub(crate) fn source(&self) -> SocketAddr {
        self.source.get()
    }

    /// Notes where it came from, as the load balancer `proxy` says.
    pub(crate) fn comes_from(&self, source: SocketAddr, proxy: SocketAddr) {
        self.source.set(source);
        let mut known = self.known.borrow_mut();
        known.seldom.get_or_insert_default().proxy = Some(proxy);
    }

    /// Notes what it is and which service it asked for.
    pub(crate) fn asks(&self, open: Open, service: Option<(&Arc<str>, u16)>) {
        let mut known = self.known.borrow_mut();
        known.open = open;
        known.service = service.map(|(name, port)| (Arc::clone(name), port));
    }

    /// Notes the role of the listener that let it in.
    pub(crate) fn comes_by(&self, role: Option<Role>) {
        self.known.borrow_mut().role = role;
    }

    /// The role of the listener that let it in.
    pub(crate) fn role(&self) -> Option<Role> {
        self.known.borrow().role
    }

    /// Notes which service it asked for.
    pub(crate) fn is_of(&self, service: &Arc<str>, port: u16) {
        self.known.borrow_mut().service = Some((Arc::clone(service), port));
    }

    /// Notes the other service that the split of its rule leads it to, if it is one.
    pub(crate) fn is_led_to(&self, service: Option<(&Arc<str>, u16)>) {
        let mut known = self.known.borrow_mut();
        if service.is_some() || known.seldom.is_some() {
            let led = service.map(|(name, port)| (Arc::clone(name), port));
            known.seldom.get_or_insert_default().led = led;
        }
    }

    /// Notes the headers of a request, which rules ask for.
    pub(crate) fn has_headers(&self, headers: &HeaderMap) {
        let mut known = self.known.borrow_mut();
        let seldom = known.seldom.get_or_insert_default();
        if seldom.headers.is_none() {
            seldom.headers = Some(Rc::new(headers.clone()));
        }
    }

    /// Notes whose certificate was verified.
    pub(crate) fn is_by(&self, peer: &Arc<TlsPeer>) {
        self.known.borrow_mut().peer = Some(Arc::clone(peer));
    }

    /// Notes the identity that was handed on and counted.
    pub(crate) fn is_for(&self, claimed: Option<&SpiffeId>) {
        self.known.borrow_mut().claimed = claimed.cloned();
    }

    /// Notes the server name of its TLS, which ends here or is relayed as it is.
    pub(crate) fn is_called(&self, sni: Option<Rc<String>>) {
        self.known.borrow_mut().sni = sni;
    }

    /// The server name of its TLS, where that ends here or is relayed as it is.
    pub(crate) fn sni(&self) -> Option<Rc<String>> {
        self.known.borrow().sni.clone()
    }

    /// Notes the endpoint it is carried to, where its certificate was verified.
    pub(crate) fn goes_to(
        &self,
        backend: &Arc<str>,
        address: &Address,
        peer: Option<&Arc<TlsPeer>>,
    ) {
        let upstream = peer.map(|peer| {
            Box::new(Upstream {
                backend: Arc::clone(backend),
                address: address.clone(),
                peer: Arc::clone(peer),
            })
        });
        self.known.borrow_mut().upstream = upstream;
    }

    /// The verified certificate of its caller.
    pub(crate) fn peer(&self) -> Option<Arc<TlsPeer>> {
        self.known.borrow().peer.clone()
    }

    /// Judges it anew if a change was published since the decisions noted in it were made.
    pub(crate) fn settle(&self, shared: &Shared, generation: u64, credentials: Option<u64>) {
        let now = shared.published.load().generation;
        let trusted = shared.credentials.load().generation();
        if now != generation || credentials.is_some_and(|before| before != trusted) {
            Judge::of_one(shared).look_at(self);
        }
    }

    /// Judges it by what is published now.
    pub(crate) fn settle_now(&self, shared: &Shared) {
        Judge::of_one(shared).look_at(self);
    }

    fn tell(&self, how: How, ending: Ending) {
        {
            let mut told = self.told.borrow_mut();
            if told.as_ref().is_some_and(|before| before.0 >= how) {
                return;
            }
            *told = Some(Box::new((how, ending)));
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Tells a relay that the deadline of draining has passed.
    fn is_overdue(&self) {
        self.overdue.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Why it ends, once it was told.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.told.borrow().as_ref().map(|told| told.1.clone())
    }

    /// Why it ends at once, once it was told to.
    pub(crate) fn cut_off(&self) -> Option<Ending> {
        let told = self.told.borrow();
        told.as_ref()
            .filter(|told| told.0 == How::Cut)
            .map(|told| told.1.clone())
    }

    /// Ready once it is to end at once.
    pub(crate) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_told(cx, How::Cut)
    }

    /// Ready once what is relayed is to end at once: it was told, or draining does not wait longer.
    pub(crate) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.overdue.get() {
            return Poll::Ready(());
        }
        self.poll_told(cx, How::Cut)
    }

    fn poll_told(&self, cx: &mut Context<'_>, least: How) -> Poll<()> {
        if (self.told.borrow().as_ref()).is_some_and(|told| told.0 >= least) {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if !(waker.as_ref()).is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until it is to end at once.
    ///
    /// # Cancel safety
    /// Safe: what was told is state.
    pub(crate) async fn cut(&self) {
        std::future::poll_fn(|cx| self.poll_told(cx, How::Cut)).await;
    }

    /// Waits until what is relayed is to end at once, as [`poll_over`](Self::poll_over).
    ///
    /// # Cancel safety
    /// As [`cut`](Self::cut).
    pub(crate) async fn over(&self) {
        std::future::poll_fn(|cx| self.poll_over(cx)).await;
    }

    /// As [`cut`](Self::cut), but a HTTP connection is left to end itself, and so are reports.
    pub(crate) async fn cut_unless_session(&self) {
        std::future::poll_fn(|cx| {
            let cut = self.poll_told(cx, How::Cut);
            if matches!(self.known.borrow().open, Open::Session | Open::Reports) {
                return Poll::Pending;
            }
            cut
        })
        .await;
    }

    /// Waits until a HTTP connection is asked to leave; says whether it is cut off soon.
    ///
    /// # Cancel safety
    /// As [`cut`](Self::cut).
    pub(crate) async fn asked_to_leave(&self, before: Option<Leaving>) -> Leaving {
        let least = match before {
            None => How::Leave,
            Some(Leaving::InPeace) => How::Cut,
            Some(Leaving::Soon) => return std::future::pending().await,
        };
        std::future::poll_fn(|cx| self.poll_told(cx, least)).await;
        match self.told.borrow().as_ref().map(|told| told.0) {
            Some(How::Cut) => Leaving::Soon,
            Some(How::Leave) | None => Leaving::InPeace,
        }
    }
}

/// How a HTTP connection leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaving {
    /// When its requests have ended.
    InPeace,
    /// Its requests end too.
    Soon,
}

/// What is published, for judging by.
pub(crate) struct Judge {
    published: Arc<Published>,
    credentials: Arc<Credentials>,
    /// Whether so many may be judged that what follows is worth making; then each is made when the first
    /// asks for it.
    is_of_many: bool,
    directory: OnceCell<Directory>,
    endpoints: OnceCell<HashSet<EndpointKey>>,
    now: i64,
}

impl Judge {
    fn of_one(shared: &Shared) -> Self {
        Self {
            published: shared.published.load_full(),
            credentials: shared.credentials.load_full(),
            is_of_many: false,
            directory: OnceCell::new(),
            endpoints: OnceCell::new(),
            now: i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX),
        }
    }

    fn of_many(shared: &Shared) -> Self {
        Self {
            is_of_many: true,
            ..Self::of_one(shared)
        }
    }

    fn find(&self, service: Option<&(Arc<str>, u16)>) -> Asked {
        let snapshot = &self.published.snapshot;
        match service {
            None => Asked::Nothing,
            Some((name, port)) if self.is_of_many => {
                let directory = self.directory.get_or_init(|| Directory::new(snapshot));
                directory.find(name, *port)
            }
            Some((name, port)) => find(snapshot, name, *port),
        }
    }

    fn is_configured(&self, endpoint: &EndpointKey) -> bool {
        let clusters = self.published.snapshot.clusters.iter();
        let all = self.endpoints.get_or_init(|| {
            let endpoints = clusters.flat_map(|cluster| &cluster.endpoints);
            endpoints.map(|endpoint| endpoint.key.clone()).collect()
        });
        all.contains(endpoint)
    }

    /// Whether a connection to an endpoint may be kept for further requests.
    pub(crate) fn keeps(&self, pooled: &Pooled<'_>) -> Result<(), Ending> {
        let refused = |rule: Option<String>, detail: String| Ending {
            reason: Reason::UpstreamRefused,
            rule,
            detail,
        };
        if let Some(peer) = pooled.peer {
            self.trusts(peer)?;
            if pooled.credentials != self.credentials.generation() {
                let detail = "certificate or bundles were replaced".to_owned();
                return Err(refused(None, detail));
            }
        }
        if self.is_configured(pooled.endpoint) {
            return Ok(());
        }
        Err(refused(
            None,
            "the endpoint is not configured any more".to_owned(),
        ))
    }

    /// Whether an endpoint's certificate is still accepted; one that only ran out is.
    fn trusts(&self, peer: &TlsPeer) -> Result<(), Ending> {
        match self.credentials.judge(peer, self.now) {
            Err(refusal) if refusal.violation.rule != Rule::Expired => Err(Ending {
                reason: Reason::UpstreamRefused,
                rule: Some(self.rule_of(&refusal, &peer.id)),
                detail: refusal.violation.detail,
            }),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn rule_of(&self, refusal: &Refusal, id: &SpiffeId) -> String {
        let position = (refusal.violation.rule == Rule::DeniedId)
            .then(|| self.credentials.denied().position(id))
            .flatten();
        position.unwrap_or_else(|| refusal.label().to_owned())
    }

    fn look_at(&self, entry: &Entry) -> bool {
        let verdict = self.verdict(entry);
        let ends = verdict.is_err();
        if let Err((how, ending)) = verdict {
            entry.tell(how, ending);
        }
        ends
    }

    fn verdict(&self, entry: &Entry) -> Result<(), (How, Ending)> {
        let known = entry.known.borrow();
        let nothing = Seldom::default();
        let seldom = known.seldom.as_deref().unwrap_or(&nothing);
        let cut = |ending| (How::Cut, ending);
        self.trusted(&known)?;
        if let Some(upstream) = &known.upstream {
            self.trusts(&upstream.peer).map_err(cut)?;
        }
        let snapshot = &self.published.snapshot;
        let service = self.find(known.service.as_ref());
        let led = match self.find(seldom.led.as_ref()) {
            Asked::Service(led) => Some(led),
            Asked::Nothing | Asked::Gone => None,
        };
        let each = |name: &str, tell: &mut dyn FnMut(&[u8])| {
            let headers = seldom.headers.iter();
            headers.for_each(|headers| headers::each(headers, name, tell));
        };
        let kind = match &known.open {
            Open::Passthrough => Kind::Passthrough,
            Open::Bytes => Kind::Bytes,
            Open::Undecided | Open::Session => Kind::Session,
            Open::Reports => Kind::Reports,
            Open::Request(request) => Kind::Request {
                method: request.0.as_str(),
                path: request.1.path(),
                headers: seldom.headers.as_ref().map(|_| Headers(&each)),
            },
        };
        let renamed = self.published.listener(&entry.listener);
        let listener = renamed.map_or(&entry.listener, |listener| &listener.name);
        let carried = Carried {
            listener,
            role: known.role,
            source: entry.source().ip(),
            proxy: seldom.proxy.map(|proxy| proxy.ip()),
            verified: known.peer.as_ref().map(|peer| &peer.id),
            claimed: known.claimed.as_ref(),
            sni: known.sni.as_ref().map(|sni| sni.as_str()),
            service,
            led,
            kind,
        };
        judge(snapshot, &carried).map_err(cut)?;
        let Asked::Service(service) = service else {
            return Ok(());
        };
        let answering = known.upstream.as_ref().map(|upstream| Answering {
            backend: &upstream.backend,
            address: &upstream.address,
            id: &upstream.peer.id,
        });
        match (&seldom.mirror, &answering) {
            (Some(route), _) => judge_copy(snapshot, service, route, answering.as_ref()),
            (None, Some(answering)) => judge_answering(snapshot, listener, service, answering),
            (None, None) => Ok(()),
        }
        .map_err(cut)
    }

    /// Whether the caller's certificate and what it handed on are still accepted.
    fn trusted(&self, known: &Known) -> Result<(), (How, Ending)> {
        let Some(peer) = &known.peer else {
            return Ok(());
        };
        if let Err(refusal) = self.credentials.judge(peer, self.now) {
            let is_session = matches!(known.open, Open::Session | Open::Reports);
            let ran_out = refusal.violation.rule == Rule::Expired;
            // T3: what ran out makes no new requests; bytes and requests under way go on.
            if is_session || !ran_out {
                let ending = Ending {
                    reason: reason_of(refusal.violation.rule),
                    rule: Some(self.rule_of(&refusal, &peer.id)),
                    detail: refusal.violation.detail,
                };
                return Err((if ran_out { How::Leave } else { How::Cut }, ending));
            }
        }
        match known
            .claimed
            .as_ref()
            .map(|id| (id, self.credentials.check_denied(id)))
        {
            Some((id, Err(refusal))) => {
                let ending = Ending {
                    reason: Reason::IdentityDenied,
                    rule: Some(self.rule_of(&refusal, id)),
                    detail: refusal.violation.detail,
                };
                Err((How::Cut, ending))
            }
            Some((_, Ok(()))) | None => Ok(()),
        }
    }
}

/// A connection that is kept for further requests.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pooled<'a> {
    pub(crate) endpoint: &'a EndpointKey,
    pub(crate) credentials: u64,
    pub(crate) peer: Option<&'a Arc<TlsPeer>>,
}

/// The reason by which the end of an accepted certificate is told.
pub(crate) fn reason_of(rule: Rule) -> Reason {
    if rule == Rule::Revoked {
        Reason::CertificateRevoked
    } else if rule == Rule::DeniedId {
        Reason::IdentityDenied
    } else if rule == Rule::RevocationUnknown {
        Reason::RevocationUnknown
    } else if rule == Rule::Expired {
        Reason::CertificateExpired
    } else {
        Reason::AnchorRemoved
    }
}

/// Walks what a worker carries after each change, and at the deadline of draining, for ever.
pub(crate) async fn run(worker: Rc<Worker>) {
    tokio::join!(follow(&worker), end_overdue(&worker));
}

/// One for the worker: an idle relay would pay for a timer and a watch of its own.
async fn end_overdue(worker: &Worker) {
    tokio::time::sleep_until(worker.shared.draining().await).await;
    each(worker, |entry| {
        entry.is_overdue();
        true
    })
    .await;
}

async fn follow(worker: &Worker) {
    let mut changes = worker.shared.changes.subscribe();
    let mut expiry = tokio::time::interval(EXPIRY_LOOK);
    expiry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        // Both arms are cancel-safe by their documentation.
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => walk(worker).await,
                Err(_control_is_gone) => return,
            },
            _ = expiry.tick() => walk_expired(worker).await,
        }
    }
}

/// Judges everything open by what is published now.
async fn walk(worker: &Worker) {
    let began = std::time::Instant::now();
    let judge = Judge::of_many(&worker.shared);
    let pooled = worker.pool.recheck(&judge, &worker.shared.metrics);
    let ended = each(worker, |entry| judge.look_at(entry)).await;
    if ended > 0 || pooled > 0 {
        let (generation, credentials) =
            (judge.published.generation, judge.credentials.generation());
        let took = began.elapsed();
        tracing::info!(
            code = "ZG0706",
            generation,
            credentials,
            ended,
            pooled,
            ?took,
            "open connections rechecked"
        );
    }
}

/// Judges what time alone has changed.
async fn walk_expired(worker: &Worker) {
    let judge = Judge::of_one(&worker.shared);
    each(worker, |entry| {
        let trusted = judge.trusted(&entry.known.borrow());
        let ends = trusted.is_err();
        if let Err((how, ending)) = trusted {
            entry.tell(how, ending);
        }
        ends
    })
    .await;
}

/// Looks at each entry, a slice at a time; returns how many `look` said yes to.
async fn each(worker: &Worker, look: impl Fn(&Entry) -> bool) -> usize {
    let entries = &worker.registry.entries;
    let (mut at, mut found) = (0, 0);
    // What is listed meanwhile was decided by what is published, or judges itself.
    let end = entries.borrow().capacity();
    while at < end {
        {
            let entries = entries.borrow();
            let slice = (at..end.min(at + SLICE)).filter_map(|key| entries.get(key));
            found += slice.filter(|entry| look(entry)).count();
        }
        at += SLICE;
        tokio::task::yield_now().await;
    }
    found
}

#[cfg(test)]
#[path = "recheck_tests.rs"]
mod tests;
