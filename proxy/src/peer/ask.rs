//! Asks the gateways of each peer in use how things stand behind them, on the control thread.
//!
//! ```text
//!            connected, ALPN agreed            a report
//! Reaching ------------------------> Asked --------------> Reporting
//!   ^  ^  ^                            |                     |   |
//!   |  |  `--- wait (doubles, drawn) --+---- it broke off ---'   | it was on its way out: at once,
//!   |  |                                                         | for another may answer there; if
//!   |  |                                                         | nobody does, it is gone
//!   |  `------ a minute: it does not report, or says nonsense ---+
//!   `------------------------------------------------------------'
//! ```
//!
//! A gateway that does not report is judged by its refusals and by active checks, as one that is no
//! Zeugma.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::{Builder, Connection, SendRequest};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use rustls::AlertDescription;
use rustls_pki_types::UnixTime;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use zeugma_core::fleet::STALE_AFTER;
use zeugma_core::identity::IdPattern;
use zeugma_core::locality::Locality;
use zeugma_core::report::{Presence, Report};
use zeugma_core::route::{REPORTS_ALPN, REPORTS_SNI};
use zeugma_core::snapshot::{
    Address, Cluster, Endpoint, EndpointKey, EndpointTls, HttpVersion, PeerIx, Snapshot,
};
use zeugma_core::svid::Rule;

use super::message::{Malformed, Reading, question};
use super::{MEDIA_TYPE, METHOD, STATUS, status};
use crate::runtime::Shared;
use crate::tls::TlsPeer;
use crate::transport::Stream;
use crate::transport::mtls::SessionError;
use crate::upstream::{self, ConnectError, First, Upstream};

/// Gateways that are connected at once: all of them at a start, or after a cut.
const CONNECTS_MAX: usize = 8;
/// How long connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the head of the answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long is waited before a gateway is asked again, at first ...
const WAIT_MIN: Duration = Duration::from_millis(100);
/// ... and at most, of one that has reported ...
const WAIT_MAX: Duration = Duration::from_secs(2);
/// ... or has not.
const WAIT_UNHEARD_MAX: Duration = Duration::from_secs(30);
/// The same for one that does not report, or whose reports make no sense.
const WAIT_RARELY: Duration = Duration::from_secs(60);
/// What one gateway may say within [`WINDOW`], as if all of it were bytes: 25 reports a second are as
/// much, where ten are the most that a gateway of ours says.
const COST_MAX: usize = 64 * 1024 * 1024;
const WINDOW: Duration = Duration::from_secs(10);
/// The longest list of headers of an answer.
const HEADER_BYTES_MAX: u32 = 8 * 1024;
/// The most characters that are told of why there is no report: much of it is another's text.
const WHY_MAX: usize = 300;
/// Reports on their way to the control loop.
pub(crate) const HEARD_MAX: usize = 64;

/// A gateway of a peer: the peer's name, and its address.
pub(crate) type GatewayId = (Arc<str>, Address);

/// What came from a gateway, for the fleet.
#[derive(Debug)]
pub(crate) struct Heard {
    pub(crate) peer: Arc<str>,
    pub(crate) gateway: Address,
    /// What it reports; `None`: it does not report.
    pub(crate) report: Option<Arc<Report>>,
}

/// How things stand with the reports of one gateway.
#[derive(Debug, Clone)]
pub(crate) struct Standing {
    /// In a word.
    pub(crate) state: State,
    /// When something came last.
    pub(crate) last: Option<(Instant, SystemTime)>,
    /// What was reported last.
    pub(crate) report: Option<Arc<Report>>,
    /// Why it does not report.
    pub(crate) why: Option<String>,
}

/// How far a gateway is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It is being connected, or will be.
    Reaching,
    /// It reports.
    Reporting,
    /// It does not speak `zeugma-peer/1`, or not to us.
    Silent,
    /// What it says makes no sense.
    Malformed,
}

impl State {
    /// The word in documents.
    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Reaching => "reaching",
            Self::Reporting => "reporting",
            Self::Silent => "does-not-report",
            Self::Malformed => "malformed",
        }
    }
}

/// How things stand with all of them.
#[derive(Debug, Default)]
pub(crate) struct Standings(Mutex<BTreeMap<GatewayId, Standing>>);

impl Standings {
    /// A lock is held to move pointers alone: nobody fails meanwhile.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<GatewayId, Standing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them at this moment.
    pub(crate) fn all(&self) -> BTreeMap<GatewayId, Standing> {
        self.lock().clone()
    }
}

/// A gateway that is asked.
#[derive(Debug, Clone, PartialEq)]
struct Gateway {
    id: GatewayId,
    /// Who must answer.
    expected: Vec<IdPattern>,
}

/// The gateways that routes of `snapshot` go to.
fn gateways_of(snapshot: &Snapshot) -> BTreeMap<GatewayId, Gateway> {
    let endpoints = (snapshot.clusters.iter()).flat_map(|cluster| &cluster.endpoints);
    // Ten thousand routes go to a few gateways: nothing is copied before that is known.
    let used: BTreeSet<(PeerIx, &Address)> = endpoints
        .filter_map(|endpoint| Some((endpoint.peer?, &endpoint.address)))
        .collect();
    let gateway = |(peer, address): (PeerIx, &Address)| {
        let peer = snapshot.peer(peer);
        let id = (Arc::clone(&peer.name), address.clone());
        let expected = peer.ids.clone();
        (id.clone(), Gateway { id, expected })
    };
    used.into_iter().map(gateway).collect()
}

/// Whether each cluster is of the gateways that the one in its place was of: no other is looked at than
/// those that changed.
fn are_of_the_same_gateways(one: &Snapshot, other: &Snapshot) -> bool {
    fn gateways(cluster: &Cluster) -> impl Iterator<Item = (PeerIx, &Address)> {
        let endpoints = cluster.endpoints.iter();
        endpoints.filter_map(|endpoint| Some((endpoint.peer?, &endpoint.address)))
    }

    let mut both = one.clusters.iter().zip(&other.clusters);
    one.peers == other.peers
        && one.clusters.len() == other.clusters.len()
        && both.all(|(one, other)| Arc::ptr_eq(one, other) || gateways(one).eq(gateways(other)))
}

/// Asks every gateway in use for as long as it is, and says what comes.
pub(crate) async fn run(shared: Arc<Shared>, tell: mpsc::Sender<Heard>) {
    let mut changes = shared.changes.subscribe();
    let connects = Arc::new(Semaphore::new(CONNECTS_MAX));
    let mut asked: BTreeMap<GatewayId, (Gateway, AbortHandle)> = BTreeMap::new();
    let mut asking = JoinSet::new();
    let mut seen: Option<Arc<Snapshot>> = None;
    loop {
        changes.borrow_and_update();
        let snapshot = Arc::clone(&shared.published.load().snapshot);
        let is_new = seen
            .as_ref()
            .is_none_or(|seen| !Arc::ptr_eq(seen, &snapshot));
        let is_same = (seen.as_ref()).is_some_and(|seen| are_of_the_same_gateways(seen, &snapshot));
        if is_new && is_same {
            seen = Some(snapshot);
        } else if is_new {
            let mut wanted = gateways_of(&snapshot);
            let gone = asked.extract_if(.., |id, (gateway, _)| wanted.get(id) != Some(gateway));
            for (id, (_, task)) in gone.collect::<Vec<_>>() {
                task.abort();
                forget(&shared, &tell, id).await;
            }
            wanted.retain(|id, _| !asked.contains_key(id));
            for (id, gateway) in wanted {
                let asker = Asker::new(&shared, &tell, &connects, gateway.clone());
                asked.insert(id, (gateway, asking.spawn_local(asker.run())));
            }
            seen = Some(snapshot);
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() {
                return;
            },
            // They end when they are told to.
            Some(_ended) = asking.join_next() => {}
        }
    }
}

async fn forget(shared: &Shared, tell: &mpsc::Sender<Heard>, id: GatewayId) {
    shared.peers.standings.lock().remove(&id);
    shared.metrics.peer_forgotten(&id.0, &id.1);
    let (peer, gateway) = id;
    let heard = Heard {
        peer,
        gateway,
        report: None,
    };
    // Nobody listens at the end of the process.
    tell.send(heard).await.ok();
}

/// Why one asking ended.
#[derive(Debug)]
enum Ended {
    /// There is no connection, or no more.
    Broken(String),
    /// It does not speak our language, or not to us.
    Silent(String),
    /// It says what cannot be.
    Malformed(String),
}

impl From<Malformed> for Ended {
    fn from(why: Malformed) -> Self {
        Self::Malformed(why.to_string())
    }
}

/// Asks one gateway.
struct Asker {
    shared: Arc<Shared>,
    tell: mpsc::Sender<Heard>,
    connects: Arc<Semaphore>,
    gateway: Gateway,
    endpoint: Endpoint,
    /// What it said last, if it was on its way out.
    leaving: Option<Arc<Report>>,
    /// It has ended since, and is asked again: behind one address there may be others.
    is_asked_again: bool,
    /// Its identity was verified when it was asked last.
    is_reached: Cell<bool>,
    /// How long is waited before the next time.
    wait: Duration,
    has_reported: bool,
}

impl Asker {
    fn new(
        shared: &Arc<Shared>,
        tell: &mpsc::Sender<Heard>,
        connects: &Arc<Semaphore>,
        gateway: Gateway,
    ) -> Self {
        let (name, address) = &gateway.id;
        let endpoint = Endpoint {
            key: EndpointKey(Arc::clone(name)),
            backend: Arc::clone(name),
            address: address.clone(),
            weight: 1.0,
            locality: Locality::default(),
            peer: None,
            tls: EndpointTls::Mesh {
                sni: REPORTS_SNI.into(),
                expected: gateway.expected.clone(),
            },
            version: HttpVersion::H2,
            proxy_protocol: false,
            capacity: None,
            is_down: false,
        };
        Self {
            shared: Arc::clone(shared),
            tell: tell.clone(),
            connects: Arc::clone(connects),
            gateway,
            endpoint,
            leaving: None,
            is_asked_again: false,
            is_reached: Cell::default(),
            wait: WAIT_MIN,
            has_reported: false,
        }
    }

    async fn run(mut self) {
        self.note(State::Reaching, None);
        loop {
            let ended = Box::pin(self.ask()).await;
            let wait = match ended {
                Ended::Broken(why) => {
                    tracing::debug!(peer = %self.gateway.id.0, gateway = %self.gateway.id.1, %why, "no report");
                    self.note(State::Reaching, Some(why));
                    if self.leaving.is_some() && !self.is_asked_again {
                        self.is_asked_again = true;
                        continue;
                    }
                    match self.leaving.take() {
                        Some(leaving) if self.is_reached.get() => {
                            // Another one is there, which has not said how it stands; or the same
                            // on its way out, which is gone the next time.
                            self.say(None).await;
                            self.leaving = Some(leaving);
                        }
                        Some(leaving) => self.is_gone(&leaving).await,
                        None => {}
                    }
                    self.next_wait()
                }
                Ended::Silent(why) => {
                    if self.note(State::Silent, Some(why.clone())) {
                        tracing::info!(
                            code = "ZG0432",
                            peer = %self.gateway.id.0,
                            gateway = %self.gateway.id.1,
                            %why,
                            "a peer's gateway does not report; it is judged by its traffic"
                        );
                    }
                    self.is_without_report().await
                }
                Ended::Malformed(why) => {
                    self.note(State::Malformed, Some(why.clone()));
                    tracing::warn!(
                        code = "ZG0433",
                        peer = %self.gateway.id.0,
                        gateway = %self.gateway.id.1,
                        %why,
                        "what a peer's gateway reports is no report; it is asked again later"
                    );
                    self.is_without_report().await
                }
            };
            // Drawn, so that many gateways that lost one do not come back together.
            sleep(wait.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    async fn is_without_report(&mut self) -> Duration {
        (self.leaving, self.has_reported) = (None, false);
        self.say(None).await;
        WAIT_RARELY
    }

    /// It was on its way out, and nobody answers there any more.
    async fn is_gone(&self, leaving: &Report) {
        let mut gone = leaving.clone();
        gone.presence = Presence::Gone;
        let gone = Arc::new(gone);
        if let Some(standing) = (self.shared.peers.standings.lock()).get_mut(&self.gateway.id) {
            standing.report = Some(Arc::clone(&gone));
        }
        self.say(Some(gone)).await;
    }

    fn next_wait(&mut self) -> Duration {
        let most = if self.has_reported {
            WAIT_MAX
        } else {
            WAIT_UNHEARD_MAX
        };
        let wait = self.wait.min(most);
        self.wait = wait.saturating_mul(2);
        wait
    }

    /// Notes how far it is; whether that is news.
    fn note(&self, state: State, why: Option<String>) -> bool {
        let mut all = self.shared.peers.standings.lock();
        let standing = all.entry(self.gateway.id.clone()).or_insert(Standing {
            state: State::Reaching,
            last: None,
            report: None,
            why: None,
        });
        let is_news = standing.state != state;
        standing.state = state;
        standing.why = why.map(|why| why.chars().take(WHY_MAX).collect());
        if matches!(state, State::Silent | State::Malformed) {
            standing.report = None;
        }
        drop(all);
        if state != State::Reporting {
            let (peer, gateway) = &self.gateway.id;
            self.shared.metrics.peer_reports(peer, gateway, None);
        }
        is_news
    }

    /// Notes what came.
    fn note_report(&self, report: &Arc<Report>) {
        let now = SystemTime::now();
        if self.note(State::Reporting, None) {
            tracing::info!(
                code = "ZG0431",
                peer = %self.gateway.id.0,
                gateway = %self.gateway.id.1,
                services = report.len(),
                "a peer's gateway reports"
            );
        }
        let mut all = self.shared.peers.standings.lock();
        if let Some(standing) = all.get_mut(&self.gateway.id) {
            standing.last = Some((Instant::now(), now));
            standing.report = Some(Arc::clone(report));
        }
        drop(all);
        let (peer, gateway) = &self.gateway.id;
        self.shared.metrics.peer_reports(peer, gateway, Some(now));
    }

    async fn say(&self, report: Option<Arc<Report>>) {
        let (peer, gateway) = self.gateway.id.clone();
        let heard = Heard {
            peer,
            gateway,
            report,
        };
        // Nobody listens at the end of the process.
        self.tell.send(heard).await.ok();
    }

    /// Asks once, and listens for as long as it says something.
    async fn ask(&mut self) -> Ended {
        self.is_reached.set(false);
        let asking = async {
            // Never closed.
            let _connecting = self.connects.acquire().await;
            let reached = self.connect().await?;
            self.is_reached.set(true);
            let answering = Box::pin(question_and_answer(reached));
            (timeout(ANSWER_TIMEOUT, answering).await)
                .unwrap_or_else(|_elapsed| Err(Ended::Broken("no answer in time".to_owned())))
        };
        let answered = match Box::pin(asking).await {
            Ok(answered) => answered,
            Err(ended) => return ended,
        };
        let Answered {
            mut connection,
            body,
            peer,
            sender,
        } = answered;
        let mut changes = self.shared.changes.subscribe();
        let shared = Arc::clone(&self.shared);
        let mut listening = pin!(self.listen(body));
        let ended = loop {
            // They are outside of the loop; the last waits for state.
            tokio::select! {
                biased;
                ended = &mut listening => break ended,
                ended = &mut connection => {
                    let ended = ended.map_or_else(|error| broken(&error), |()| closed());
                    // What came together with its end has not been heard yet.
                    break match listening.await {
                        Ended::Broken(_) => ended,
                        told @ (Ended::Silent(_) | Ended::Malformed(_)) => told,
                    };
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        break Ended::Broken("the gateway ends".to_owned());
                    }
                    if let Some(why) = is_refused(&shared, &peer) {
                        break Ended::Silent(why);
                    }
                }
            }
        };
        drop(sender);
        ended
    }

    async fn connect(&self) -> Result<Upstream, Ended> {
        let connected = upstream::connect(
            &self.shared,
            CONNECT_TIMEOUT,
            &self.endpoint,
            &[REPORTS_ALPN],
            First::We,
        )
        .await;
        let upstream = connected.map_err(|error| unreached(&error))?;
        if upstream.alpn.as_deref() != Some(REPORTS_ALPN) {
            return Err(Ended::Silent("it does not speak zeugma-peer/1".to_owned()));
        }
        Ok(upstream)
    }

    /// Takes what it says until it ends.
    async fn listen(&mut self, mut body: RecvStream) -> Ended {
        let mut reading = Reading::default();
        let mut allowance = Allowance::new();
        let began = Instant::now();
        loop {
            if began.elapsed() > WAIT_MAX {
                // One that ends as soon as it has begun is not asked again and again.
                self.wait = WAIT_MIN;
            }
            let bytes = match timeout(STALE_AFTER, body.data()).await {
                Err(_elapsed) => return Ended::Broken(format!("nothing came for {STALE_AFTER:?}")),
                Ok(Some(Err(error))) => return broken(&error),
                Ok(None) => break,
                Ok(Some(Ok(bytes))) => bytes,
            };
            reading.push(&bytes);
            // The connection tells if it fails.
            body.flow_control().release_capacity(bytes.len()).ok();
            loop {
                match reading.next() {
                    Err(malformed) => return malformed.into(),
                    Ok(None) => break,
                    Ok(Some(report)) => self.take(report).await,
                }
                if !allowance.spend(reading.take_cost()) {
                    return flooded();
                }
            }
            if !allowance.spend(reading.take_cost()) {
                return flooded();
            }
        }
        let trailers = timeout(ANSWER_TIMEOUT, body.trailers()).await;
        let trailers = trailers.ok().and_then(Result::ok).flatten();
        let status = trailers.as_ref().and_then(status_in);
        let said = status.unwrap_or("no status");
        ended_by(said).unwrap_or_else(|| Ended::Broken(format!("it ended its answer: {said}")))
    }

    async fn take(&mut self, report: Arc<Report>) {
        let is_leaving = report.presence != Presence::Serving;
        self.leaving = is_leaving.then(|| Arc::clone(&report));
        self.is_asked_again = false;
        self.has_reported = true;
        self.note_report(&report);
        self.say(Some(report)).await;
    }
}

/// A gateway that has begun to answer.
struct Answered {
    connection: Connection<Stream, Bytes>,
    body: RecvStream,
    peer: Option<Arc<TlsPeer>>,
    /// The connection goes when nobody can ask any more.
    sender: SendRequest<Bytes>,
}

async fn question_and_answer(reached: Upstream) -> Result<Answered, Ended> {
    let Upstream { stream, peer, .. } = reached;
    upstream::tune_requests(stream.tcp());
    let (mut sender, mut connection) = Builder::new()
        .enable_push(false)
        .max_header_list_size(HEADER_BYTES_MAX)
        .handshake::<_, Bytes>(stream)
        .await
        .map_err(|error| broken(&error))?;
    let answer = {
        let mut answering = pin!(async {
            poll_fn(|cx| sender.poll_ready(cx)).await?;
            let (answer, mut body) = sender.send_request(request(), false)?;
            body.send_data(question(), true)?;
            answer.await
        });
        tokio::select! {
            answer = &mut answering => answer.map_err(|error| broken(&error))?,
            ended = &mut connection => {
                let ended = ended.map_or_else(|error| broken(&error), |()| closed());
                // An answer may have come together with the end.
                answering.await.map_err(|_unanswered| ended)?
            }
        }
    };
    check_head(&answer)?;
    Ok(Answered {
        connection,
        body: answer.into_body(),
        peer,
        sender,
    })
}

fn request() -> Request<()> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    let uri = Uri::builder()
        .scheme("https")
        .authority(REPORTS_SNI)
        .path_and_query(METHOD);
    // Of constants: it is well formed.
    *request.uri_mut() = uri.build().unwrap_or_default();
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    request
}

/// Whether an answer is one to our question.
fn check_head(answer: &Response<RecvStream>) -> Result<(), Ended> {
    let (status, headers) = (answer.status(), answer.headers());
    if let Some(ended) = status_in(headers).and_then(ended_by) {
        return Err(ended);
    }
    let is_grpc = (headers.get(header::CONTENT_TYPE))
        .is_some_and(|kind| kind.as_bytes().starts_with(MEDIA_TYPE.as_bytes()));
    if status == StatusCode::OK && is_grpc {
        Ok(())
    } else {
        Err(Ended::Silent(format!("it answers {status}")))
    }
}

fn status_in(headers: &HeaderMap) -> Option<&str> {
    headers.get(STATUS)?.to_str().ok()
}

/// What a status of gRPC makes of the asking.
fn ended_by(status: &str) -> Option<Ended> {
    let what = match status {
        status::OK | status::UNAVAILABLE => return None,
        status::RESOURCE_EXHAUSTED => {
            return Some(Ended::Broken("it has no place for another".to_owned()));
        }
        status::PERMISSION_DENIED => "it does not report to this gateway",
        status::UNIMPLEMENTED | status::NOT_FOUND => "it does not know the question",
        _ => return Some(Ended::Broken("it failed".to_owned())),
    };
    Some(Ended::Silent(what.to_owned()))
}

fn closed() -> Ended {
    Ended::Broken("it closed the connection".to_owned())
}

fn broken(error: &h2::Error) -> Ended {
    if error.is_library() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) {
        return flooded();
    }
    match error.get_io().and_then(refusal) {
        Some(why) => Ended::Silent(why),
        None => Ended::Broken(error.to_string()),
    }
}

fn unreached(error: &ConnectError) -> Ended {
    if let ConnectError::Tls(SessionError::Handshake(io)) = error
        && let Some(why) = refusal(io)
    {
        return Ended::Silent(why);
    }
    Ended::Broken(error.to_string())
}

/// What an alert says of a gateway that does not speak of its health, or not to us. Of an error that
/// came by HTTP/2 the text is all that is left.
fn refusal(error: &io::Error) -> Option<String> {
    const REFUSALS: [AlertDescription; 3] = [
        AlertDescription::UnrecognisedName,
        AlertDescription::NoApplicationProtocol,
        AlertDescription::AccessDenied,
    ];
    let text = error.to_string();
    let is_said = |alert: &&AlertDescription| {
        text.contains(&rustls::Error::AlertReceived(**alert).to_string())
    };
    let alert = REFUSALS.iter().find(is_said)?;
    Some(format!("it refuses by the alert {alert:?}"))
}

/// Why who answers is not believed any more, if so.
fn is_refused(shared: &Shared, peer: &Option<Arc<TlsPeer>>) -> Option<String> {
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX);
    let refusal = shared.credentials.load().judge(peer.as_ref()?, now).err()?;
    // Its next connection has another.
    (refusal.violation.rule != Rule::Expired).then(|| refusal.to_string())
}

fn flooded() -> Ended {
    Ended::Malformed(format!("more than may be said within {WINDOW:?}"))
}

/// How much one gateway may say.
struct Allowance {
    since: Instant,
    left: usize,
}

impl Allowance {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            left: COST_MAX,
        }
    }

    /// Counts what was said; whether it may be.
    fn spend(&mut self, cost: usize) -> bool {
        if self.since.elapsed() > WINDOW {
            *self = Self::new();
        }
        self.left = self.left.saturating_sub(cost);
        self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gateway_may_say_so_much_within_a_window_and_no_more() {
        let mut allowance = Allowance::new();
        assert!(allowance.spend(COST_MAX - 1));
        assert!(!allowance.spend(1));
        tokio::time::advance(WINDOW + Duration::from_millis(1)).await;
        assert!(allowance.spend(COST_MAX - 1));
        // The most that a gateway of ours says: ten reports a second of all there is room for would be
        // too much, of a thousand services they are not.
        let mut reading = Reading::default();
        let mut report = Report::default();
        for nth in 0..1000 {
            let host = zeugma_core::names::HostPattern::parse(&format!("host-{nth}.shop.x"));
            let standing = zeugma_core::report::Standing::new(nth, 1000, 0.0, 1.0);
            report.set(&host.unwrap(), 80, standing.unwrap());
        }
        let messages = super::super::message::messages(None, &report).concat();
        let mut allowance = Allowance::new();
        for nth in 0..100 {
            reading.push(&messages);
            assert!(reading.next().unwrap().is_some());
            assert!(allowance.spend(reading.take_cost()), "report {nth}");
        }
    }

    #[test]
    fn what_a_status_says_is_told_apart() {
        let ends = |status| match ended_by(status) {
            None => "goes on",
            Some(Ended::Silent(_)) => "silent",
            Some(Ended::Broken(_)) => "broken",
            Some(Ended::Malformed(_)) => "malformed",
        };
        for (status, end) in [
            ("0", "goes on"),
            ("14", "goes on"),
            ("5", "silent"),
            ("7", "silent"),
            ("12", "silent"),
            ("8", "broken"),
            ("13", "broken"),
            ("what?", "broken"),
        ] {
            assert_eq!(ends(status), end, "{status}");
        }
    }

    #[test]
    fn only_an_alert_that_is_a_refusal_says_that_it_does_not_report() {
        let of = |alert| {
            // As HTTP/2 hands it on, and as TLS does.
            let error = rustls::Error::AlertReceived(alert);
            let text = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            let whole = io::Error::new(io::ErrorKind::InvalidData, error);
            assert_eq!(refusal(&text), refusal(&whole));
            refusal(&whole).is_some()
        };
        assert!(of(AlertDescription::AccessDenied));
        assert!(of(AlertDescription::UnrecognisedName));
        assert!(of(AlertDescription::NoApplicationProtocol));
        assert!(!of(AlertDescription::InternalError));
        assert!(!of(AlertDescription::CertificateExpired));
        assert_eq!(refusal(&io::ErrorKind::ConnectionReset.into()), None);
    }
}
