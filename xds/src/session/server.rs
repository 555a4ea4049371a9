//! The server's end of one stream, as a state machine that is told what came and says what to do.
//!
//! ```text
//! of each type:   asked for --> answered, unacknowledged --ACK or NACK--> at rest --changed--> answered ...
//! over all types: clusters, endpoints | listeners, routes | clusters and endpoints that are gone
//! ```
//!
//! Of a type at most one response is unacknowledged; what changes meanwhile is told together when it is
//! acknowledged, as it then is (P52). Listeners and routes follow the clusters and endpoints that they may
//! lead to, and what they led to goes when they have been taken (P30). What a client was told is not
//! listed: it is a shelf that all streams share, and the few names that differ from it.

mod names;
mod subscription;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use zeugma_core::time::Time;

use self::subscription::{Because, Known, Load, Subscription};
use super::Kind;
use crate::catalog::{Catalog, Resource, Shelf, Version};

/// How long listeners and routes wait for a client to ask for the endpoints of clusters it was told, and
/// clusters that are gone for a client to ask for listeners and routes.
const WAIT: Duration = Duration::from_secs(5);

/// What a stream may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Names, of all types together.
    pub names: usize,
    /// Types that are not served, and are answered with nothing.
    pub other_types: usize,
    /// Bytes of a name.
    pub name_bytes: usize,
    /// Bytes of names that are not there, of all types together: those that are, all streams share.
    pub stranger_bytes: usize,
}

/// The two ways of telling (P6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// State of the world: requests say all names, responses of some types hold all there is.
    Sotw,
    /// What changed.
    Delta,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// The client sent this.
    Asked(Request<'a>),
    /// What it may be told is this now.
    Published(Arc<Catalog>),
    /// A time that [`Action::WakeAt`] named has come.
    Woken,
}

/// A request of either protocol.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request<'a> {
    pub type_url: String,
    pub nonce: String,
    /// What the client has against the response of that nonce.
    pub error: Option<String>,
    pub asks: Asks<'a>,
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asks<'a> {
    /// State of the world: every name, and the version that was accepted last.
    Whole {
        version: String,
        names: Vec<Cow<'a, str>>,
    },
    /// Names more and less; at first, what the client has from an earlier stream.
    Changes {
        subscribe: Vec<Cow<'a, str>>,
        unsubscribe: Vec<Cow<'a, str>>,
        known: Vec<(Cow<'a, str>, Cow<'a, str>)>,
    },
}

impl Default for Asks<'_> {
    fn default() -> Self {
        Self::Whole {
            version: String::new(),
            names: Vec::new(),
        }
    }
}

/// A response of either protocol.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub type_url: Arc<str>,
    pub version: Version,
    pub nonce: u64,
    pub resources: Vec<Arc<Resource>>,
    /// With [`Protocol::Delta`] alone.
    pub removed: Vec<Arc<str>>,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Action {
    /// Send this. A client that reads slowly has at most one of each type waiting.
    Send(Response),
    /// The client took what it was sent.
    Accepted {
        type_url: Arc<str>,
        version: Version,
    },
    /// It did not, at least not all of it.
    Rejected {
        type_url: Arc<str>,
        version: Version,
        detail: String,
    },
    /// Come back then with [`Message::Woken`], and not when was said before.
    WakeAt(Time),
    /// End the stream: nothing more comes of it.
    End(Violation),
}

/// What a client must not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("subscribed to over {0} names on one stream")]
    Names(usize),
    #[error("over {0} bytes of names that are not there on one stream")]
    Strangers(usize),
    #[error("a resource name of over {0} bytes")]
    LongName(usize),
    #[error("subscribed to over {0} types that are not served here")]
    Types(usize),
    #[error("this service serves {served} and not `{asked}`")]
    OtherType { served: String, asked: String },
}

/// How one type of a stream stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Standing {
    pub type_url: Arc<str>,
    pub is_wildcard: bool,
    pub names: usize,
    /// What was sent last.
    pub sent: Option<Version>,
    /// What was taken last.
    pub accepted: Option<Version>,
    /// What was refused last, unless something was taken since.
    pub rejected: Option<(Version, String)>,
    /// Since when a response waits to be acknowledged.
    pub unacknowledged: Option<Time>,
    /// Whether there is something newer than what was sent.
    pub is_behind: bool,
}

static EMPTY: LazyLock<Arc<Shelf>> = LazyLock::new(|| Arc::new(Shelf::new(Vec::new())));
static TYPE_URLS: LazyLock<[Arc<str>; 4]> =
    LazyLock::new(|| Kind::ALL.map(|kind| kind.type_url().into()));

fn type_url(kind: Kind) -> Arc<str> {
    let [clusters, endpoints, listeners, routes] = &*TYPE_URLS;
    Arc::clone(match kind {
        Kind::Cluster => clusters,
        Kind::Endpoints => endpoints,
        Kind::Listener => listeners,
        Kind::Routes => routes,
    })
}

/// The server's end of a stream.
#[derive(Debug)]
pub(crate) struct Session {
    protocol: Protocol,
    /// The only type, on a service of one.
    only: Option<Kind>,
    limits: Limits,
    catalog: Arc<Catalog>,
    served: [Subscription; 4],
    /// Types that nothing is known of (P22 holds for them too).
    others: BTreeMap<Arc<str>, Subscription>,
    /// Clusters the client was told and has not asked the endpoints of.
    awaited: BTreeSet<Arc<str>>,
    awaited_until: Time,
    /// Clusters that changed while the client was away, told before it asked for endpoints. It may have
    /// those, but it waits for them again.
    returned: BTreeSet<Arc<str>>,
    is_return: bool,
    /// Until when one that has not asked for listeners and routes may still.
    settles_at: Option<Time>,
    /// What [`Action::WakeAt`] said last, if that is still to come.
    wakes_at: Option<Time>,
    nonce: u64,
}

impl Session {
    pub(crate) fn new(
        protocol: Protocol,
        only: Option<Kind>,
        limits: Limits,
        catalog: Arc<Catalog>,
    ) -> Self {
        Self {
            protocol,
            only,
            limits,
            catalog,
            served: std::array::from_fn(|_| Subscription::new(&EMPTY)),
            others: BTreeMap::new(),
            awaited: BTreeSet::new(),
            awaited_until: Time::ZERO,
            returned: BTreeSet::new(),
            is_return: false,
            settles_at: None,
            wakes_at: None,
            nonce: 0,
        }
    }

    /// Takes what happened, and says what to do about it.
    pub(crate) fn handle(&mut self, message: Message<'_>, now: Time) -> Vec<Action> {
        let mut actions = Vec::new();
        match message {
            Message::Asked(request) => {
                if let Err(violation) = self.asked(request, &mut actions) {
                    actions.push(Action::End(violation));
                    return actions;
                }
            }
            Message::Published(catalog) => {
                self.catalog = catalog;
                let clusters = self.catalog.shelf(Kind::Cluster);
                self.awaited.retain(|name| clusters.get(name).is_some());
            }
            Message::Woken => self.wakes_at = None,
        }
        if now >= self.awaited_until {
            self.awaited.clear();
        }
        self.flush(now, &mut actions);
        self.wake(now, &mut actions);
        debug_assert!(
            self.check_invariants().is_ok(),
            "{:?}",
            self.check_invariants()
        );
        actions
    }

    /// How each type that was asked for stands.
    pub(crate) fn standing(&self) -> Vec<Standing> {
        let served = Kind::ALL.into_iter().zip(&self.served);
        let served = served.map(|(kind, of)| (type_url(kind), of, self.catalog.shelf(kind)));
        let others = self.others.iter();
        let others = others.map(|(url, of)| (Arc::clone(url), of, &*EMPTY));
        served
            .chain(others)
            .filter(|(_, of, _)| of.is_asked())
            .map(|(url, of, shelf)| of.standing(url, shelf))
            .collect()
    }

    /// What holds between any two messages.
    ///
    /// # Errors
    /// What does not.
    pub(crate) fn check_invariants(&self) -> Result<(), String> {
        let load = self.load();
        if load.names > self.limits.names {
            return Err(format!("{} names", load.names));
        }
        for (kind, of) in Kind::ALL.into_iter().zip(&self.served) {
            of.check_invariants(self.catalog.shelf(kind))
                .map_err(|what| format!("{kind:?}: {what}"))?;
        }
        Ok(())
    }

    fn subscriptions(&self) -> impl Iterator<Item = &Subscription> {
        self.served.iter().chain(self.others.values())
    }

    const fn of(&self, kind: Kind) -> &Subscription {
        let [clusters, endpoints, listeners, routes] = &self.served;
        match kind {
            Kind::Cluster => clusters,
            Kind::Endpoints => endpoints,
            Kind::Listener => listeners,
            Kind::Routes => routes,
        }
    }

    const fn of_mut(&mut self, kind: Kind) -> &mut Subscription {
        let [clusters, endpoints, listeners, routes] = &mut self.served;
        match kind {
            Kind::Cluster => clusters,
            Kind::Endpoints => endpoints,
            Kind::Listener => listeners,
            Kind::Routes => routes,
        }
    }

    fn asked(&mut self, request: Request<'_>, actions: &mut Vec<Action>) -> Result<(), Violation> {
        let Request {
            type_url: asked,
            nonce,
            error,
            mut asks,
        } = request;
        let kind = self.kind_of(&asked)?;
        self.check_names(&asks)?;
        let has_new_clusters = self.of(Kind::Cluster).is_asked() && !self.is_return;
        if let Asks::Changes { known, .. } = &mut asks
            && kind == Some(Kind::Endpoints)
            && has_new_clusters
        {
            // P32: it has endpoints, but not for the clusters that it was told.
            known.clear();
        }
        let (url, shelf, is_whole) = match kind {
            Some(kind) => (
                type_url(kind),
                Arc::clone(self.catalog.shelf(kind)),
                kind.is_wildcard(),
            ),
            None => (asked.as_str().into(), Arc::clone(&EMPTY), false),
        };
        let subscription = match kind {
            Some(kind) => self.of_mut(kind),
            None => {
                self.check_type(&url)?;
                (self.others.entry(Arc::clone(&url))).or_insert_with(|| Subscription::new(&EMPTY))
            }
        };
        if asks.is_whole() && subscription.is_stale(&nonce) {
            // P9. What it says now it will say again with the response that is on its way.
            return Ok(());
        }
        let acknowledged = subscription.acknowledge(&nonce, error);
        let has_known = matches!(&asks, Asks::Changes { known, .. } if !known.is_empty());
        match asks {
            Asks::Whole { version, names } => {
                subscription.names_are(&version, names, &shelf, is_whole);
            }
            Asks::Changes {
                subscribe,
                unsubscribe,
                known,
            } => subscription.names_change(subscribe, unsubscribe, &known, &shelf, is_whole),
        }
        match kind {
            Some(Kind::Cluster) => self.is_return |= has_known,
            Some(Kind::Endpoints) => {
                for name in std::mem::take(&mut self.returned) {
                    self.owe_endpoints(&name);
                }
            }
            Some(Kind::Listener | Kind::Routes) | None => {}
        }
        if let Some((version, error)) = acknowledged {
            if error.is_some() && kind == Some(Kind::Cluster) {
                // It may not have taken those.
                self.awaited.clear();
            }
            actions.push(match error {
                None => Action::Accepted {
                    type_url: url,
                    version,
                },
                Some(detail) => Action::Rejected {
                    type_url: url,
                    version,
                    detail,
                },
            });
        }
        let load = self.load();
        if load.names > self.limits.names {
            return Err(Violation::Names(self.limits.names));
        }
        if load.bytes > self.limits.stranger_bytes {
            return Err(Violation::Strangers(self.limits.stranger_bytes));
        }
        Ok(())
    }

    fn load(&self) -> Load {
        let all = self.subscriptions().map(Subscription::load);
        all.fold(Load::default(), Load::and)
    }

    fn kind_of(&self, asked: &str) -> Result<Option<Kind>, Violation> {
        let kind = match self.only {
            // On a service of one type its name may be left out.
            Some(kind) if asked.is_empty() => Some(kind),
            Some(_) | None => Kind::of_url(asked),
        };
        match self.only.filter(|only| kind != Some(*only)) {
            None => Ok(kind),
            Some(served) => Err(Violation::OtherType {
                served: served.type_url(),
                asked: asked.to_owned(),
            }),
        }
    }

    fn check_names(&self, asks: &Asks<'_>) -> Result<(), Violation> {
        type Names<'a> = &'a [Cow<'a, str>];
        let (names, others, known): (Names<'_>, Names<'_>, &[_]) = match asks {
            Asks::Whole { names, .. } => (names, &[], &[]),
            Asks::Changes {
                subscribe,
                unsubscribe,
                known,
            } => (subscribe, unsubscribe, known),
        };
        if names.len().max(others.len()).max(known.len()) > self.limits.names {
            return Err(Violation::Names(self.limits.names));
        }
        let known = known.iter().map(|(name, _)| name);
        let mut all = names.iter().chain(others).chain(known);
        match all.find(|name| name.len() > self.limits.name_bytes) {
            Some(_) => Err(Violation::LongName(self.limits.name_bytes)),
            None => Ok(()),
        }
    }

    fn check_type(&self, url: &Arc<str>) -> Result<(), Violation> {
        let max = self.limits.other_types;
        if self.others.contains_key(url) {
            return Ok(());
        }
        if self.others.len() >= max {
            return Err(Violation::Types(max));
        }
        if url.len() > self.limits.name_bytes {
            return Err(Violation::LongName(self.limits.name_bytes));
        }
        Ok(())
    }

    /// Sends what is due.
    fn flush(&mut self, now: Time, actions: &mut Vec<Action>) {
        for (url, of) in &mut self.others {
            let made = of.response(&EMPTY, self.protocol, Known::Partial, Because::Anything);
            if let Some(made) = made {
                self.nonce += 1;
                of.sent(self.nonce, &made, now);
                actions.push(Action::Send(made.response(url, self.nonce)));
            }
        }
        self.send(Kind::Cluster, Because::Kept, now, actions);
        self.send(Kind::Endpoints, Because::Kept, now, actions);
        if !self.is_behind(now) {
            let because = if self.awaited.is_empty() {
                Because::Anything
            } else {
                Because::Asked
            };
            self.send(Kind::Listener, because, now, actions);
            self.send(Kind::Routes, because, now, actions);
        }
        self.settles_at.get_or_insert(now + WAIT);
        if self.may_break(now) {
            self.send(Kind::Cluster, Because::Anything, now, actions);
            self.send(Kind::Endpoints, Because::Anything, now, actions);
        }
    }

    /// Says when something is due that no message brings.
    fn wake(&mut self, now: Time, actions: &mut Vec<Action>) {
        let awaited = (!self.awaited.is_empty()).then_some(self.awaited_until);
        let all = [self.settles_at, awaited]
            .into_iter()
            .chain([Kind::Cluster, Kind::Endpoints].map(|kind| self.behind_until(kind)));
        let first = all.flatten().filter(|at| *at > now).min();
        if self.wakes_at.is_some_and(|at| at <= now) {
            self.wakes_at = None;
        }
        if let Some(at) = first.filter(|at| self.wakes_at != Some(*at)) {
            self.wakes_at = Some(at);
            actions.push(Action::WakeAt(at));
        }
    }

    /// Whether the client was not told yet of all that listeners and routes may lead to. What it was
    /// told first it takes first; but where it takes clusters only with what is held back here, it
    /// would take nothing for ever.
    fn is_behind(&self, now: Time) -> bool {
        let is_behind = |kind| self.behind_until(kind).is_some_and(|until| now < until);
        is_behind(Kind::Cluster) || is_behind(Kind::Endpoints)
    }

    /// Until when a type that was not told of what is newer holds back others; nothing but a response
    /// that waits to be acknowledged keeps it from being told.
    fn behind_until(&self, kind: Kind) -> Option<Time> {
        let of = self.of(kind);
        let since = of.unacknowledged_since()?;
        (of.is_behind(self.catalog.shelf(kind))).then_some(since + WAIT)
    }

    /// Whether nothing leads any more to what is gone. A client that refused a listener or a route has
    /// the one before it; one that has not asked for any may have them from an earlier stream.
    fn may_break(&self, now: Time) -> bool {
        let is_over = self.settles_at.is_some_and(|at| now >= at);
        [Kind::Listener, Kind::Routes].into_iter().all(|kind| {
            let of = self.of(kind);
            (is_over || of.is_asked()) && of.is_settled(self.catalog.shelf(kind))
        })
    }

    fn send(&mut self, kind: Kind, because: Because, now: Time, actions: &mut Vec<Action>) {
        let shelf = Arc::clone(self.catalog.shelf(kind));
        let known = if kind.is_wildcard() {
            Known::Whole
        } else {
            Known::Partial
        };
        let protocol = self.protocol;
        let of = self.of_mut(kind);
        let is_first = of.is_first();
        let Some(made) = of.response(&shelf, protocol, known, because) else {
            return;
        };
        self.nonce += 1;
        let nonce = self.nonce;
        self.of_mut(kind).sent(nonce, &made, now);
        match kind {
            Kind::Cluster => self.clusters_sent(&made.changed, is_first, now),
            Kind::Endpoints => {
                for one in &made.resources {
                    self.awaited.remove(one.name());
                }
            }
            Kind::Listener | Kind::Routes => {}
        }
        actions.push(Action::Send(made.response(&type_url(kind), nonce)));
    }

    /// P32: a cluster that changed waits for its endpoints, though they are as they were.
    fn clusters_sent(&mut self, changed: &[Arc<Resource>], is_first: bool, now: Time) {
        let names = (changed.iter())
            .filter(|one| one.has_endpoints())
            .map(|one| Arc::clone(one.name()));
        if !self.of(Kind::Endpoints).is_asked() {
            // Of one that had no clusters all are new.
            if self.is_return {
                self.returned.extend(names);
            }
            return;
        }
        let new: Vec<_> = names.filter(|name| !self.owe_endpoints(name)).collect();
        if is_first || new.is_empty() {
            return;
        }
        self.awaited.extend(new);
        self.awaited_until = now + WAIT;
    }
}

impl Session {
    /// Whether the client has asked for the endpoints of this cluster; then it gets them, again.
    fn owe_endpoints(&mut self, name: &Arc<str>) -> bool {
        let endpoints = self.of_mut(Kind::Endpoints);
        let is_asked = endpoints.wants_name(name);
        if is_asked {
            endpoints.owe(name);
        }
        is_asked
    }
}

impl Asks<'_> {
    const fn is_whole(&self) -> bool {
        matches!(self, Self::Whole { .. })
    }
}

#[cfg(test)]
mod tests;
