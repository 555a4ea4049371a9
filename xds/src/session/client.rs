//! A gateway's end of an xDS session: what it has, what it asks for, what it says of what came.
//!
//! ```text
//!          a response                  handed on                     a verdict
//! (server) ----------> next: newest --------------> applying -------------------> held: it serves, or
//!                        ^ what fails by itself                |                   waits for others (P31)
//!                        `- is a fault at once                 |                   |
//!                                                              `- refused ---------`-> aside: served when it can
//! ```
//!
//! What waits is held and may still be refused: what served before is held then, as after any refusal.
//!
//! A response is answered when all that it brought was judged: ACK, or NACK with each resource that is
//! refused and why, while the others serve (P29). What is held is what a reconnecting client says that
//! it has, whatever response it came in (P25).

mod entry;
#[cfg(test)]
mod fixture;
mod kind;
mod link;
mod noted;
mod read;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use zeugma_core::time::Time;

use self::kind::{OfKind, Pending};
use self::link::Link;
pub(crate) use self::link::Protocol;
use self::noted::Referred;
pub(crate) use self::read::{References, endpoints_of, references};
use super::Kind;
use crate::body::Body;
use crate::pb::{core, discovery};

/// The name of a resource.
pub(crate) type Name = Arc<str>;

/// How long a resource that was asked for is waited for (P18, P34).
pub(crate) const WAIT: Duration = Duration::from_secs(15);
/// What P5 a server may make use of.
const FEATURES: [&str; 1] = ["xds.config.resource-in-sotw"];

/// A resource as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Resource {
    /// None where none of the servers gave it, but another control plane before: its versions say nothing to
    /// them (P4).
    pub(crate) version: Option<Arc<str>>,
    pub(crate) body: Arc<Body>,
    pub(crate) references: References,
}

/// The most that a server may make a gateway keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Resources of all kinds.
    pub(crate) resources: usize,
    /// The bytes of all that is held, under way or aside.
    pub(crate) bytes: usize,
    /// Of one name.
    pub(crate) name_bytes: usize,
    /// Responses of one kind that wait for their answer; a server sends one at a time (P52).
    pub(crate) unanswered: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            resources: 200_000,
            bytes: 512 << 20,
            name_bytes: 4096,
            unanswered: 64,
        }
    }
}

/// What happened.
#[derive(Debug)]
pub(crate) enum Event {
    /// The stream that was to be opened is open.
    Opened,
    /// It could not be opened, or ended.
    Closed(Ended),
    Delta(discovery::DeltaDiscoveryResponse),
    Full(discovery::DiscoveryResponse),
    /// What was handed on was judged, and what is good of it is published.
    Applied(Verdict),
    /// It is as late as it is.
    Tick,
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its server does not know the method.
    Unimplemented,
    Otherwise,
}

/// What is to be done.
#[derive(Debug, PartialEq)]
pub(crate) enum Action {
    /// Open a stream to the server of this number.
    Open(usize, Protocol),
    /// End the stream: its server breaks the rules, or another is asked instead.
    Close(&'static str),
    Delta(discovery::DeltaDiscoveryRequest),
    Full(discovery::DiscoveryRequest),
    /// Judge and publish, and answer by [`Event::Applied`]. There is never a second before that.
    Apply(Update),
    /// Something that an operator may want to know.
    Tell(Notice),
}

/// What changed since the last one.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Update {
    pub(crate) changes: BTreeMap<(Kind, Name), Change>,
    /// The kinds of which it is known what there is; before that, what refers to one waits for it.
    pub(crate) known: BTreeSet<Kind>,
}

/// What became of one resource.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Change {
    Put(Resource),
    Removed,
    /// It was asked for, and did not come in time (P18).
    Missing,
    /// What was refused counts no more: whether it is there still nobody knows.
    Withdrawn,
}

/// What was said of an update.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Verdict {
    /// What does not serve; of what came before too, where it had to wait.
    pub(crate) refused: BTreeMap<(Kind, Name), Refusal>,
    /// What was refused once, and serves.
    pub(crate) revived: Vec<(Kind, Name)>,
    /// What was to go and stayed, and is gone.
    pub(crate) gone: Vec<(Kind, Name)>,
}

/// Why a resource does not serve.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) why: String,
    /// What serves in its place, if anything does.
    pub(crate) good: Option<Resource>,
}

/// What an operator may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A server answers on a new stream.
    Connected(usize),
    /// A response was accepted.
    Accepted(Kind),
    /// Resources of a response were refused, and why.
    Rejected(Kind, Vec<Fault>),
    /// What was refused is not any more.
    Mended(Kind, Name),
    /// A resource did not come in time.
    Missing(Kind, Name),
    /// Its time to live is over (P44).
    Expired(Kind, Name),
    /// A server says that it could not make a resource; what is there stays (P28, P41).
    Trouble(Kind, String, String),
    /// Something that nobody asked for, of another type.
    Strange(String),
}

/// What is wrong with a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// As far as it can be told.
    pub(crate) name: Name,
    pub(crate) why: String,
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    node: core::Node,
    limits: Limits,
    wait: Duration,
    link: Link,
    kinds: BTreeMap<Kind, OfKind>,
    referred: Referred,
    has_said_who: bool,
    /// How many updates were handed on, and the last of them where it is not judged yet.
    handed_on: u64,
    under_way: Option<Vec<(Kind, Name)>>,
    /// What is known of kinds has changed.
    is_news: bool,
    /// What is referred to may have changed.
    is_moved: bool,
}

impl Session {
    /// One of a gateway that asks so many servers, in their order, and has `held` already.
    pub(crate) fn new(
        mut node: core::Node,
        servers: usize,
        limits: Limits,
        held: impl IntoIterator<Item = (Kind, Name, Resource)>,
    ) -> Self {
        node.client_features = FEATURES.map(str::to_owned).into();
        let kinds = Kind::ALL.map(|kind| (kind, OfKind::new(kind)));
        let mut session = Self {
            node,
            limits,
            wait: WAIT,
            link: Link::new(servers),
            kinds: kinds.into(),
            referred: Referred::default(),
            has_said_who: false,
            handed_on: 0,
            under_way: None,
            is_news: false,
            is_moved: true,
        };
        for (kind, name, resource) in held {
            if let Some(of) = session.kinds.get_mut(&kind) {
                of.hold(name, resource);
            }
        }
        session.settle();
        session
    }

    /// What to do about what happened at `now`; `draw`, from 0 to 1, is for what must not be done by all
    /// at once.
    pub(crate) fn handle(&mut self, event: Event, now: Time, draw: f64) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Opened => self.opened(now, draw),
            Event::Closed(ended) => self.closed(ended, now, draw),
            Event::Delta(response) => {
                self.answered(&mut out);
                self.delta(response, now, draw, &mut out);
            }
            Event::Full(response) => {
                self.answered(&mut out);
                self.full(response, now, draw, &mut out);
            }
            Event::Applied(verdict) => self.applied(verdict, &mut out),
            Event::Tick => self.tick(now, draw, &mut out),
        }
        self.go_on(now, &mut out);
        self.settle();
        self.check_invariants();
        out
    }

    /// What was handed on and not judged yet: after a failure even what was not said to be.
    pub(crate) fn under_way(&mut self) -> Option<BTreeSet<(Kind, Name)>> {
        let applying = self.kinds.iter().flat_map(|(kind, of)| {
            let names = of.applying();
            names.map(|name| (*kind, Name::clone(name)))
        });
        let all: BTreeSet<_> = applying.collect();
        if self.under_way.is_none() && all.is_empty() {
            return None;
        }
        self.under_way = Some(all.iter().cloned().collect());
        Some(all)
    }

    /// When it wants [`Event::Tick`] at the latest.
    pub(crate) fn wake(&self) -> Option<Time> {
        let of_kinds = self.kinds.values().filter_map(OfKind::wake);
        of_kinds.chain(self.link.wake()).min()
    }

    /// Whether everything that it wants is there, or is known not to be.
    pub(crate) fn is_complete(&self) -> bool {
        self.kinds.values().all(OfKind::is_complete)
    }

    /// Whether a server has said on this stream all there is to say, so far.
    pub(crate) fn is_confirmed(&self) -> bool {
        self.is_complete() && self.kinds.values().all(OfKind::is_heard)
    }

    /// What is held, with the version that it came in.
    #[cfg(test)]
    pub(crate) fn held(&self) -> impl Iterator<Item = (Kind, &Name, &Resource)> {
        (self.kinds.iter()).flat_map(|(kind, of)| {
            of.held()
                .map(move |(name, resource)| (*kind, name, resource))
        })
    }

    fn opened(&mut self, now: Time, draw: f64) {
        self.link.opened(now, draw);
        self.has_said_who = false;
        for of in self.kinds.values_mut() {
            of.begin_stream();
        }
    }

    fn closed(&mut self, ended: Ended, now: Time, draw: f64) {
        self.is_moved = true;
        for of in self.kinds.values_mut() {
            of.end_stream();
        }
        if ended == Ended::Unimplemented && self.link.knows_not(now) {
            return;
        }
        self.settle();
        let lacks = !self.is_complete();
        self.link.failed(lacks, now, draw);
    }

    /// Ends a stream whose server breaks the rules.
    fn close(&mut self, why: &'static str, now: Time, draw: f64, out: &mut Vec<Action>) {
        out.push(Action::Close(why));
        self.closed(Ended::Otherwise, now, draw);
    }

    fn answered(&mut self, out: &mut Vec<Action>) {
        if let link::State::Open {
            has_answered: false,
            ..
        } = self.link.state
        {
            out.push(Action::Tell(Notice::Connected(self.link.server())));
        }
        self.link.answered();
    }

    fn tick(&mut self, now: Time, draw: f64, out: &mut Vec<Action>) {
        for (kind, of) in &mut self.kinds {
            for notice in of.tick(*kind, now, &mut self.is_news) {
                out.push(Action::Tell(notice));
            }
        }
        if self.link.is_silent(now) {
            self.close("it says nothing", now, draw, out);
        } else if self.link.is_time_to_go_back(now) {
            out.push(Action::Close("the first server is asked again"));
            self.is_moved = true;
            for of in self.kinds.values_mut() {
                of.end_stream();
            }
            self.link.go_back(now);
        }
    }

    fn delta(
        &mut self,
        response: discovery::DeltaDiscoveryResponse,
        now: Time,
        draw: f64,
        out: &mut Vec<Action>,
    ) {
        let Some(kind) = Kind::of_url(&response.type_url) else {
            // P16: it was not asked for.
            out.push(Action::Tell(Notice::Strange(response.type_url)));
            return;
        };
        // P20: an answer could not be told from a question.
        if response.nonce.is_empty() {
            return self.close("a response without a nonce", now, draw, out);
        }
        let room = self.room();
        let Some(of) = self.kinds.get_mut(&kind) else {
            return;
        };
        let mut taking = of.taking(kind, room, now);
        taking.resources(response.resources, None);
        let removed = response.removed_resources.into_iter();
        let by_name = response.removed_resource_names.into_iter();
        for name in removed.chain(by_name.map(|name| name.name)) {
            taking.removed(&name);
        }
        taking.errors(response.resource_errors);
        let (names, faults, told) = taking.end();
        out.extend(told.into_iter().map(Action::Tell));
        let pending = Pending {
            nonce: response.nonce,
            version: response.system_version_info,
            after: 0,
            names,
            faults,
        };
        self.pend(kind, pending, now, draw, out);
    }

    fn full(
        &mut self,
        response: discovery::DiscoveryResponse,
        now: Time,
        draw: f64,
        out: &mut Vec<Action>,
    ) {
        let Some(kind) = Kind::of_url(&response.type_url) else {
            out.push(Action::Tell(Notice::Strange(response.type_url)));
            return;
        };
        let room = self.room();
        let Some(of) = self.kinds.get_mut(&kind) else {
            return;
        };
        of.nonce.clone_from(&response.nonce);
        let mut taking = of.taking(kind, room, now);
        let mut are_all_named = true;
        let mut resources = Vec::with_capacity(response.resources.len());
        for (nth, any) in response.resources.into_iter().enumerate() {
            match read::unwrapped(any) {
                Ok(resource) if !resource.name.is_empty() => resources.push(resource),
                Ok(_) => {
                    are_all_named = false;
                    taking.fault(&format!("#{nth}"), "its name cannot be read".to_owned());
                }
                Err(why) => {
                    are_all_named = false;
                    taking.fault(&format!("#{nth}"), why);
                }
            }
        }
        taking.resources(resources, Some(response.version_info.as_str().into()));
        if kind.is_wildcard() && are_all_named {
            // P13; but one that cannot be told by name may be any of those that seem to be gone (P29).
            taking.absent();
        }
        taking.errors(response.resource_errors);
        let (names, faults, told) = taking.end();
        out.extend(told.into_iter().map(Action::Tell));
        let pending = Pending {
            nonce: response.nonce,
            version: response.version_info,
            after: 0,
            names,
            faults,
        };
        self.pend(kind, pending, now, draw, out);
    }

    /// Has a response answered once what it brought is judged.
    fn pend(
        &mut self,
        kind: Kind,
        mut pending: Pending,
        now: Time,
        draw: f64,
        out: &mut Vec<Action>,
    ) {
        self.settle();
        let Some(of) = self.kinds.get_mut(&kind) else {
            return;
        };
        self.is_news |= of.know();
        self.is_moved = true;
        pending.after = if of.has_next() || self.is_news {
            self.handed_on + 1
        } else {
            // It brought nothing: there is no more to wait for than before.
            self.handed_on
        };
        of.pending.push_back(pending);
        if of.pending.len() > self.limits.unanswered {
            self.close(
                "too many responses that were not answered yet",
                now,
                draw,
                out,
            );
        }
    }

    /// How many resources, and bytes of them, there is room for.
    fn room(&self) -> (Limits, usize, usize) {
        let (mut resources, mut bytes) = (0, 0);
        for of in self.kinds.values() {
            let (some, their_bytes) = of.size();
            resources += some;
            bytes += their_bytes;
        }
        let limits = self.limits;
        (
            limits,
            limits.resources.saturating_sub(resources),
            limits.bytes.saturating_sub(bytes),
        )
    }

    fn applied(&mut self, mut verdict: Verdict, out: &mut Vec<Action>) {
        for key in self.under_way.take().unwrap_or_default() {
            let refusal = verdict.refused.remove(&key);
            if let Some(of) = self.kinds.get_mut(&key.0) {
                of.judged(&key.1, refusal);
            }
        }
        // Those that were acknowledged while they waited: nobody else tells of them.
        let mut late: BTreeMap<Kind, Vec<Fault>> = BTreeMap::new();
        for ((kind, name), refusal) in verdict.refused {
            if let Some(of) = self.kinds.get_mut(&kind)
                && let Some(why) = of.refused_late(&name, refusal)
            {
                late.entry(kind).or_default().push(Fault { name, why });
            }
        }
        let late = late.into_iter();
        out.extend(late.map(|(kind, faults)| Action::Tell(Notice::Rejected(kind, faults))));
        for (kind, name) in &verdict.revived {
            if let Some(of) = self.kinds.get_mut(kind)
                && of.revived(name)
                && of.mend(name)
            {
                out.push(Action::Tell(Notice::Mended(*kind, Name::clone(name))));
            }
        }
        for (kind, name) in verdict.gone {
            if let Some(of) = self.kinds.get_mut(&kind)
                && of.gone(&name)
                && of.mend(&name)
            {
                out.push(Action::Tell(Notice::Mended(kind, name)));
            }
        }
        self.is_moved = true;
    }

    /// Does whatever follows from how things are.
    fn go_on(&mut self, now: Time, out: &mut Vec<Action>) {
        if self.is_moved {
            self.is_moved = false;
            self.refer(out);
        }
        if self.link.is_due(now) {
            self.link.opening();
            out.push(Action::Open(self.link.server(), self.link.protocol()));
        }
        self.hand_on(out);
        if self.link.is_open() {
            let judged = self.handed_on - u64::from(self.under_way.is_some());
            for kind in Kind::ALL {
                if self.kinds.get(&kind).is_some_and(|of| !of.is_asked()) {
                    self.ask(kind, now, out);
                }
                self.answer(kind, judged, now, out);
                self.ask(kind, now, out);
            }
        }
        self.kinds.values_mut().for_each(OfKind::let_go);
        self.hand_on(out);
    }

    /// Counts anew what was touched.
    fn settle(&mut self) {
        for of in self.kinds.values_mut() {
            of.settle(&mut self.referred);
        }
        self.referred.compact();
    }

    /// Wants just what is referred to.
    fn refer(&mut self, out: &mut Vec<Action>) {
        self.settle();
        for ((kind, name), is_referred_to) in self.referred.take_changed() {
            match self.kinds.get_mut(&kind).filter(|_| !kind.is_wildcard()) {
                Some(of) if is_referred_to => of.want(name),
                Some(of) => of.want_no_more(name),
                None => {}
            }
        }
        self.settle();
        for (kind, of) in &mut self.kinds {
            if !kind.is_wildcard() {
                let mended = of.forget_faults();
                let told = mended.into_iter().map(|name| Notice::Mended(*kind, name));
                out.extend(told.map(Action::Tell));
            }
        }
    }

    /// Hands on what is new, unless something is being judged.
    fn hand_on(&mut self, out: &mut Vec<Action>) {
        if self.under_way.is_some() {
            return;
        }
        self.settle();
        let mut update = Update::default();
        for (kind, of) in &mut self.kinds {
            for (name, change) in of.take_next() {
                update.changes.insert((*kind, name), change);
            }
            if of.is_known() {
                update.known.insert(*kind);
            }
        }
        if update.changes.is_empty() && !self.is_news {
            // What a response brought may have been taken back by the next.
            let waits_for = (self.kinds.values()).filter_map(OfKind::waits_for).max();
            self.handed_on = self.handed_on.max(waits_for.unwrap_or_default());
            return;
        }
        self.is_news = false;
        self.handed_on += 1;
        self.under_way = Some(update.changes.keys().cloned().collect());
        out.push(Action::Apply(update));
    }

    /// Answers the responses whose resources are judged.
    fn answer(&mut self, kind: Kind, judged: u64, now: Time, out: &mut Vec<Action>) {
        let Some(of) = self.kinds.get_mut(&kind) else {
            return;
        };
        let is_delta = self.link.protocol() == Protocol::Delta;
        if is_delta && !of.is_asked() && of.to_ask().is_some() {
            // What is held is said by the first request of a kind, and it is not known yet (P24).
            return;
        }
        while let Some(pending) = of.take_pending(judged) {
            of.hear();
            let faults = of.faults(&pending);
            for name in of.note_faults(&pending.names, &faults) {
                out.push(Action::Tell(Notice::Mended(kind, name)));
            }
            let error_detail = (!faults.is_empty()).then(|| kind::detail(kind, &faults));
            out.push(Action::Tell(if faults.is_empty() {
                Notice::Accepted(kind)
            } else {
                Notice::Rejected(kind, faults)
            }));
            let is_good = error_detail.is_none();
            out.push(match self.link.protocol() {
                Protocol::Delta => Action::Delta(discovery::DeltaDiscoveryRequest {
                    type_url: kind.type_url(),
                    response_nonce: pending.nonce,
                    error_detail,
                    ..Default::default()
                }),
                Protocol::Full => {
                    if is_good {
                        of.accept(pending.version);
                    }
                    of.note_asked();
                    of.await_missing(now + self.wait);
                    Action::Full(discovery::DiscoveryRequest {
                        version_info: of.version.clone(),
                        resource_names: of.names(),
                        type_url: kind.type_url(),
                        response_nonce: pending.nonce,
                        error_detail,
                        ..Default::default()
                    })
                }
            });
        }
    }

    /// Asks for what is wanted and was not asked for, on this stream.
    fn ask(&mut self, kind: Kind, now: Time, out: &mut Vec<Action>) {
        let Some(of) = self.kinds.get_mut(&kind) else {
            return;
        };
        let protocol = self.link.protocol();
        let is_first = !of.is_asked();
        if protocol == Protocol::Full && !of.pending.is_empty() {
            // The answer says it: in between, what is asked would seem to be one.
            return;
        }
        if is_first && of.is_unsettled() {
            // What came by the stream before is held or not; only then can it be said (P25).
            return;
        }
        let Some((more, fewer)) = of.to_ask() else {
            return;
        };
        let node = (!self.has_said_who).then(|| self.node.clone());
        self.has_said_who = true;
        of.note_asked();
        of.await_missing(now + self.wait);
        out.push(match protocol {
            Protocol::Delta => Action::Delta(discovery::DeltaDiscoveryRequest {
                node,
                type_url: kind.type_url(),
                resource_names_subscribe: more,
                resource_names_unsubscribe: fewer,
                initial_resource_versions: if is_first {
                    of.versions()
                } else {
                    Default::default()
                },
                ..Default::default()
            }),
            Protocol::Full => Action::Full(discovery::DiscoveryRequest {
                node,
                version_info: of.version.clone(),
                resource_names: of.names(),
                type_url: kind.type_url(),
                response_nonce: of.nonce.clone(),
                ..Default::default()
            }),
        });
    }

    fn check_invariants(&self) {
        let under_way = self.under_way.as_deref().unwrap_or_default();
        for (kind, of) in &self.kinds {
            of.check_invariants(*kind, under_way);
        }
    }
}
