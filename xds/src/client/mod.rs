//! A gateway whose configuration comes from a control plane.
//!
//! ```text
//! stream --messages--> session (what is asked for and answered) --update--> holdings (what serves together)
//!    ^                    |    ^                                                |
//!    `--- requests -------'    `--- verdict, once it is published --------------'--snapshot--> (the gateway)
//! ```
//!
//! It opens no socket and knows no names: who drives it dials, and publishes.

pub(crate) mod counted;
pub(crate) mod holdings;
mod kept;
mod lent;
mod pace;
mod show;
pub(crate) mod stream;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zeugma_core::snapshot::{Node, Snapshot};
use zeugma_core::time::Time;

pub use self::holdings::OnEmpty;
use self::holdings::{Draft, Holdings, Key};
use self::kept::{Given, Written};
pub use self::kept::{Keep, Kept, More};
use self::lent::{Failed, Lent, Turn};
use self::pace::Pace;
use self::stream::{Came, Stream};
use crate::compile::ResourceList;
use crate::ingest::Blamed;
use crate::pb::core;
use crate::session::Kind;
use crate::session::client::{
    Action, Change, Ended, Event, Limits, Notice, Session, Update, Verdict,
};

/// How a gateway asks for its configuration.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// Who it is.
    pub node: Node,
    /// The servers, in the order in which they are asked: what HTTP calls them,
    /// `https://xds.example:15012`.
    pub servers: Vec<String>,
    /// What is done about an update that would leave nothing.
    pub on_empty: OnEmpty,
    /// The largest message that is read, in bytes (P51).
    pub message_bytes_max: usize,
}

/// The largest message that is read unless something else is said: what ztunnel reads.
pub const MESSAGE_BYTES_MAX: usize = 200 << 20;

/// What is asked of who drives a [`Client`].
#[derive(Debug)]
pub enum Asked {
    /// Dial the server of this number, and say [`Client::dialled`].
    Dial(usize),
    /// Have this serve, and say [`Client::published`].
    Publish(Box<Offer>),
    /// Know this.
    Tell(Told),
    /// Of a [`Client::reader`]: know what came and went.
    Read(Vec<Seen>),
}

/// A resource as it came.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// What it is.
    pub kind: Kind,
    /// What it is called.
    pub name: String,
    /// Its version; none where there is no such resource.
    pub version: Option<String>,
    /// What it takes.
    pub bytes: usize,
    /// Our metadata on it.
    pub metadata: Option<serde_json::Value>,
    /// All of it, for people.
    pub body: Option<String>,
}

/// What was kept, to begin with.
#[derive(Debug)]
pub struct Resumed {
    /// What serves of it.
    pub snapshot: Snapshot,
    /// What that was made from.
    pub resources: ResourceList,
    /// What this program refuses of it, which another version may have kept, and why.
    pub refused: Vec<(Kind, String, String)>,
}

/// A configuration to be published.
#[derive(Debug)]
pub struct Offer {
    /// What is to serve.
    pub snapshot: Snapshot,
    /// What it was made from.
    pub resources: ResourceList,
    /// What is done where a listener cannot be bound.
    pub binding: Binding,
}

/// What is done where a listener cannot be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binding {
    /// Nothing is published; those listeners are named.
    All,
    /// It serves without.
    WhatCan,
}

/// What an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// A server answers.
    Connected(usize),
    /// It does not any more, or could not be reached, and why.
    Lost(usize, String),
    /// What a server sent was accepted.
    Accepted(Kind),
    /// A resource is refused, and why; its server was told.
    Refused(Kind, String, String),
    /// One that was refused is not any more.
    Mended(Kind, String),
    /// A resource that is asked for did not come in time.
    Missing(Kind, String),
    /// The time to live of a resource is over.
    Expired(Kind, String),
    /// A server could not make a resource.
    Trouble(Kind, String, String),
    /// Nobody asked for a resource of this type.
    Strange(String),
}

/// A gateway's end of its control plane.
#[derive(Debug)]
pub struct Client {
    options: ClientOptions,
    session: Lent,
    /// Not there while something is judged on another thread.
    holdings: Option<Holdings>,
    stream: Stream,
    pace: Pace,
    server: usize,
    /// To be done, or told.
    turns: VecDeque<Turn>,
    told: VecDeque<Told>,
    judging: Option<JoinHandle<Judged>>,
    /// The update that is judged or offered.
    under_way: BTreeSet<Key>,
    /// Everything that comes is handed out as it is.
    is_reader: bool,
    has_answered: bool,
    /// Who answered last, as HTTP calls it; empty: nobody knows.
    answered_by: Arc<str>,
    /// Who gave what serves, and when; as long as some of it is another control plane's, that one.
    given: Given,
    is_of_another: bool,
    draft: Option<Draft>,
    /// The version of what serves.
    serves: Option<String>,
    /// Of it, what was said to be kept.
    written: Written,
    begun: Instant,
}

/// Nothing is said of what could not be judged.
type Judged = (Holdings, Option<Result<Draft, Vec<Blamed>>>);

impl Client {
    /// One that has what was kept, if there is something, and what of it serves.
    #[must_use]
    pub fn new(options: ClientOptions, kept: Option<&Kept>) -> (Self, Option<Resumed>) {
        let mut holdings = Holdings::new(options.node.clone(), options.on_empty);
        let by = kept.and_then(Kept::by);
        let is_asked = by.is_some_and(|by| options.servers.iter().any(|one| one == by));
        let resumed = kept.and_then(|kept| {
            let resources = kept.resources().map(|(key, mut one)| {
                one.version = one.version.filter(|_| is_asked);
                (key, one)
            });
            holdings.resume(resources)
        });
        let held = match &resumed {
            Some(_) => {
                let good = holdings.good();
                good.map(|((kind, name), one)| (*kind, name.clone(), one.clone()))
                    .collect()
            }
            None => {
                holdings = Holdings::new(options.node.clone(), options.on_empty);
                Vec::new()
            }
        };
        let servers = options.servers.len();
        let session = Session::new(node(&options.node), servers, Limits::default(), held);
        let serves = resumed
            .as_ref()
            .map(|(draft, _)| draft.served.snapshot.version.to_string());
        let client = Self {
            session: Lent::new(session),
            holdings: Some(holdings),
            stream: Stream::None,
            pace: Pace::new(Instant::now()),
            server: 0,
            turns: VecDeque::new(),
            told: VecDeque::new(),
            judging: None,
            under_way: BTreeSet::new(),
            is_reader: false,
            has_answered: false,
            answered_by: by.unwrap_or_default().into(),
            given: kept.map(Kept::given).unwrap_or_default(),
            is_of_another: resumed.is_some() && !is_asked,
            draft: None,
            serves,
            written: Written::default(),
            begun: Instant::now(),
            options,
        };
        let resumed = resumed.map(|(draft, refused)| Resumed {
            snapshot: draft.served.snapshot,
            resources: draft.served.resources,
            refused: (refused.into_iter())
                .map(|((kind, name), why)| (kind, name.to_string(), why))
                .chain(kept.into_iter().flat_map(Kept::unread))
                .collect(),
        });
        (client, resumed)
    }

    /// One that asks as a gateway does, takes all that comes for good, and publishes nothing.
    #[must_use]
    pub fn reader(options: ClientOptions) -> Self {
        let (client, _) = Self::new(options, None);
        Self {
            is_reader: true,
            ..client
        }
    }

    /// Whether a server has ever answered.
    #[must_use]
    pub const fn has_answered(&self) -> bool {
        self.has_answered
    }

    /// What is to be done next.
    ///
    /// # Cancel safety
    /// Safe: what has come is in `self`.
    pub async fn next(&mut self, draw: fn() -> f64) -> Asked {
        loop {
            if let Some(told) = self.told.pop_front() {
                return Asked::Tell(told);
            }
            if let Some(turn) = self.turns.pop_front() {
                match turn {
                    Turn::Tell(told) => return Asked::Tell(told),
                    Turn::Act(action) => {
                        if let Some(asked) = self.act(action, draw) {
                            return asked;
                        }
                    }
                }
                continue;
            }
            let wake = self.session.at_hand().and_then(Session::wake);
            let wake = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(self.begun + at.since_origin()).await,
                    None => std::future::pending().await,
                }
            };
            let judged = async {
                match &mut self.judging {
                    Some(judging) => judging.await,
                    None => std::future::pending().await,
                }
            };
            let free_at = self.pace.free_at();
            let is_at_hand = self.session.at_hand().is_some();
            let came = async {
                if !is_at_hand {
                    // What waits to be read waits at its server.
                    return std::future::pending().await;
                }
                if free_at > Instant::now() {
                    tokio::time::sleep_until(free_at).await;
                }
                self.stream.came().await
            };
            // A stream and a task keep what they have; the sleeps are until fixed moments.
            let event = tokio::select! {
                back = self.session.back() => {
                    match back {
                        Ok(turns) => self.turns.extend(turns),
                        // That its stream has ended is among what happened meanwhile.
                        Err(Failed) if matches!(self.stream, Stream::None) => {
                            let turns = self.session.go_on();
                            self.turns.extend(turns);
                        }
                        Err(Failed) => self.lost(DEFECT.to_owned(), Ended::Otherwise, draw),
                    }
                    continue;
                }
                judged = judged => {
                    self.judging = None;
                    if let Some(asked) = self.judged(judged.ok(), draw) {
                        return asked;
                    }
                    continue;
                }
                came = came => match came {
                    Came::Ended(ended, why) => {
                        self.lost(why, ended, draw);
                        continue;
                    }
                    Came::Opened => Event::Opened,
                    Came::Delta(response) => {
                        self.pace.take(Instant::now());
                        Event::Delta(response)
                    }
                    Came::Full(response) => {
                        self.pace.take(Instant::now());
                        Event::Full(response)
                    }
                },
                () = wake => Event::Tick,
            };
            self.handle(event, draw);
        }
    }

    /// A server was dialled, or could not be.
    pub fn dialled<S>(&mut self, dialled: Result<S, String>, draw: fn() -> f64)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match dialled {
            Ok(io) => {
                let origin = self.options.servers.get(self.server);
                let origin = origin.map_or("http://unknown", String::as_str);
                self.stream
                    .shake_hands(io, origin, self.options.message_bytes_max);
            }
            Err(why) => self.lost(why, Ended::Otherwise, draw),
        }
    }

    /// What was offered serves, but for listeners that could not be bound: where all of them were to
    /// be, nothing has changed then.
    pub fn published(&mut self, unbound: &[(String, String)], draw: fn() -> f64) -> Option<Asked> {
        let draft = self.draft.take()?;
        let holdings = self.holdings.as_mut()?;
        if unbound.is_empty() {
            self.commit(&draft, draw);
            return None;
        }
        let (draft, binding) = match holdings.without(&draft, unbound) {
            Some(less) => (less, Binding::All),
            // They are none of this update's, or nothing good is left without them.
            None => (draft, Binding::WhatCan),
        };
        Some(self.offer(draft, binding))
    }

    /// Ends the stream, if there is one: its server is not believed any more.
    pub fn cut(&mut self, why: String, draw: fn() -> f64) {
        if !matches!(self.stream, Stream::None | Stream::Dialling(_)) {
            self.lost(why, Ended::Otherwise, draw);
        }
    }

    /// Whether everything that the gateway wants to know is there, or is known not to be.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.session.at_hand().is_some_and(Session::is_complete)
            && self.judging.is_none()
            && self.draft.is_none()
    }

    /// Whether a server has said on this stream all there is to say, and it serves as far as it is good.
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.session.at_hand().is_some_and(Session::is_confirmed)
            && self.serves.is_some()
            && self.judging.is_none()
            && self.draft.is_none()
    }

    /// Whether something serves that none of the servers gave, but another control plane before the start.
    #[must_use]
    pub const fn serves_of_another(&self) -> bool {
        self.is_of_another
    }

    /// Whether what serves can be asked for: it is not while something is judged.
    #[must_use]
    pub const fn can_keep(&self) -> bool {
        self.holdings.is_some()
    }

    /// What is to be kept of what serves, after what this gave before. `said`: when a server said what serves,
    /// if that is news, in seconds since 1970.
    pub fn keep(&mut self, said: Option<u64>) -> Option<Keep> {
        let holdings = self.holdings.as_mut()?;
        if let Some(at) = said.filter(|_| !self.is_of_another) {
            let by = Arc::clone(&self.answered_by);
            self.given = Given {
                at,
                by,
                is_of_several: false,
            };
        }
        let changed = holdings.take_unkept();
        let good = |key: &Key| holdings.good_of(key);
        let all = holdings.good();
        self.given.is_of_several |= self.is_of_another;
        let given = self.given.clone();
        Some(Keep::of(&mut self.written, changed, good, all, given))
    }

    /// What is new is kept nowhere.
    pub fn keep_nothing(&mut self) {
        if let Some(holdings) = &mut self.holdings {
            drop(holdings.take_unkept());
        }
        self.keep_anew();
    }

    /// What was kept is lost: all of it is to be kept next.
    pub fn keep_anew(&mut self) {
        self.written = Written::default();
    }

    fn now(&self) -> Time {
        Time::from_origin(self.begun.elapsed())
    }

    fn handle(&mut self, event: Event, draw: fn() -> f64) {
        self.handle_told(None, event, draw);
    }

    /// The same, of which this is told first.
    fn handle_told(&mut self, told: Option<Told>, event: Event, draw: fn() -> f64) {
        let about = match event {
            Event::Applied(_) => std::mem::take(&mut self.under_way).len(),
            Event::Opened | Event::Closed(_) | Event::Delta(_) | Event::Full(_) | Event::Tick => 0,
        };
        let happened = (event, self.now(), draw());
        let turns = self.session.handle(told, happened, about);
        self.turns.extend(turns);
    }

    fn lost(&mut self, why: String, ended: Ended, draw: fn() -> f64) {
        self.stream = Stream::None;
        let is_told = ended != Ended::Unimplemented;
        let told = is_told.then_some(Told::Lost(self.server, why));
        self.handle_told(told, Event::Closed(ended), draw);
    }

    /// Refuses what the session handed on and nobody was given, for it failed behind that: nothing else would ever
    /// be handed on. What serves is held, and the server that is asked next sends the rest.
    fn recover(&mut self, draw: fn() -> f64) {
        let is_given = |turn: &Turn| matches!(turn, Turn::Act(Action::Apply(_)));
        if self.judging.is_some() || self.draft.is_some() || self.turns.iter().any(is_given) {
            return;
        }
        if let Some(undone) = self.session.undone()
            && let Some(holdings) = self.holdings.take()
        {
            self.under_way = undone;
            self.refuse_all(holdings, UNJUDGED, draw);
        }
    }

    fn act(&mut self, action: Action, draw: fn() -> f64) -> Option<Asked> {
        match action {
            Action::Open(server, protocol) => {
                self.server = server;
                self.stream = Stream::Dialling(protocol);
                self.recover(draw);
                return Some(Asked::Dial(server));
            }
            Action::Close(why) => {
                self.stream = Stream::None;
                return Some(Asked::Tell(Told::Lost(self.server, why.to_owned())));
            }
            Action::Delta(request) => {
                if !self.stream.delta(request) {
                    self.lost(UNREAD.to_owned(), Ended::Otherwise, draw);
                }
            }
            Action::Full(request) => {
                if !self.stream.full(request) {
                    self.lost(UNREAD.to_owned(), Ended::Otherwise, draw);
                }
            }
            Action::Apply(update) if self.is_reader => {
                self.handle(Event::Applied(Verdict::default()), draw);
                let seen = update
                    .changes
                    .into_iter()
                    .map(|(key, change)| seen(key, &change));
                return Some(Asked::Read(seen.collect()));
            }
            Action::Apply(update) => self.judge(update),
            Action::Tell(notice) => {
                if let Notice::Connected(server) = notice {
                    self.has_answered = true;
                    let by = self.options.servers.get(server);
                    self.answered_by = by.map(String::as_str).unwrap_or_default().into();
                }
                self.told.extend(told(notice));
            }
        }
        None
    }

    /// Finds out what is to serve, on a thread of its own: of ten thousand clusters it takes its time.
    fn judge(&mut self, update: Update) {
        self.under_way = update.changes.keys().cloned().collect();
        let Some(mut holdings) = self.holdings.take() else {
            return;
        };
        self.judging = Some(tokio::task::spawn_blocking(move || {
            // A panic is told by the hook; what served before does so on, and what is there is kept.
            let draft = catch_unwind(AssertUnwindSafe(|| {
                let faults = holdings.take(update);
                holdings.draft(faults, BTreeSet::new())
            }));
            (holdings, draft.ok())
        }));
    }

    fn judged(&mut self, judged: Option<Judged>, draw: fn() -> f64) -> Option<Asked> {
        // Nothing: the process ends.
        let (holdings, draft) = judged?;
        match draft {
            None => {
                self.refuse_all(holdings, UNJUDGED, draw);
                None
            }
            Some(Ok(draft)) => {
                self.holdings = Some(holdings);
                let version = &*draft.served.snapshot.version;
                // Nothing is no configuration, unless there was one.
                let is_nothing =
                    self.serves.is_none() && draft.served.snapshot.listeners.is_empty();
                if self.serves.as_deref() == Some(version) || is_nothing {
                    self.commit(&draft, draw);
                    return None;
                }
                Some(self.offer(draft, Binding::All))
            }
            Some(Err(blamed)) => {
                let first = blamed.first();
                let why = first.map_or_else(String::new, |one| {
                    format!("{} `{}`: {}", one.kind.as_str(), one.name, one.why)
                });
                self.refuse_all(holdings, &why, draw);
                None
            }
        }
    }

    fn offer(&mut self, draft: Draft, binding: Binding) -> Asked {
        let offer = Offer {
            snapshot: draft.served.snapshot.clone(),
            resources: draft.served.resources.clone(),
            binding,
        };
        self.draft = Some(draft);
        Asked::Publish(Box::new(offer))
    }

    fn commit(&mut self, draft: &Draft, draw: fn() -> f64) {
        let snapshot = &draft.served.snapshot;
        if self.serves.is_some() || !snapshot.listeners.is_empty() {
            self.serves = Some(snapshot.version.to_string());
        }
        let verdict = (self.holdings.as_mut()).map(|holdings| {
            let verdict = holdings.commit(draft);
            self.is_of_another = self.is_of_another && holdings.is_of_another();
            verdict
        });
        self.handle(Event::Applied(verdict.unwrap_or_default()), draw);
    }

    fn refuse_all(&mut self, mut holdings: Holdings, why: &str, draw: fn() -> f64) {
        let verdict = holdings.refuse(self.under_way.iter().cloned(), why);
        self.is_of_another = self.is_of_another && holdings.is_of_another();
        self.holdings = Some(holdings);
        self.handle(Event::Applied(verdict), draw);
    }
}

/// Why a stream ends whose server reads nothing ...
const UNREAD: &str = "it does not read what is said to it";
/// ... and one that said what cannot be taken.
const DEFECT: &str = "a defect of the gateway keeps it from taking what came";
/// Why something is refused that is not known to be wrong.
const UNJUDGED: &str = "a defect of the gateway keeps it from being judged";

fn seen((kind, name): Key, change: &Change) -> Seen {
    let resource = match change {
        Change::Put(resource) => Some(resource),
        Change::Removed | Change::Missing | Change::Withdrawn => None,
    };
    let body = resource.map(|resource| resource.body.to_any());
    let body = body.as_ref();
    Seen {
        kind,
        name: name.to_string(),
        version: (resource.and_then(|resource| resource.version.as_deref())).map(str::to_owned),
        bytes: body.map_or(0, |body| body.value.len()),
        metadata: body.and_then(|body| show::metadata(kind, body)),
        body: body.and_then(|body| show::body(kind, body)),
    }
}

fn told(notice: Notice) -> Vec<Told> {
    vec![match notice {
        Notice::Connected(server) => Told::Connected(server),
        Notice::Accepted(kind) => Told::Accepted(kind),
        Notice::Rejected(kind, faults) => {
            let of = |fault: crate::session::client::Fault| {
                Told::Refused(kind, fault.name.to_string(), fault.why)
            };
            return faults.into_iter().map(of).collect();
        }
        Notice::Mended(kind, name) => Told::Mended(kind, name.to_string()),
        Notice::Missing(kind, name) => Told::Missing(kind, name.to_string()),
        Notice::Expired(kind, name) => Told::Expired(kind, name.to_string()),
        Notice::Trouble(kind, name, why) => Told::Trouble(kind, name, why),
        Notice::Strange(url) => Told::Strange(url),
    }]
}

/// Who a gateway is, as xDS says it.
fn node(of: &Node) -> core::Node {
    core::Node {
        id: of.name.to_string(),
        cluster: of.cluster.to_string(),
        locality: Some(crate::compile::locality_of(&of.locality)),
        user_agent_name: "zeugma".to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..Default::default()
    }
}

/// How long a server may take for the handshake of HTTP/2.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
