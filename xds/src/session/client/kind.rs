//! What a session has and asks for of one kind of resource.

mod taking;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt::Write as _;
use std::sync::Arc;

use zeugma_core::time::Time;

pub(super) use self::taking::Taking;
use super::super::Kind;
use super::entry::{Entry, Next, Slot};
use super::noted::{Noted, Referred, Tally};
use super::{Change, Fault, Limits, Name, Notice, Refusal, Resource};
use crate::body::Patterns;
use crate::pb::{Any, Status};

/// The most faults that a server is told of at once, and the most that it is told of each, in characters.
const FAULTS_TOLD: usize = 20;
const FAULT_CHARS: usize = 500;
/// The most names that are remembered as refused.
const FAULTY_MAX: usize = 1000;
/// `INVALID_ARGUMENT` of gRPC.
const INVALID: i32 = 3;

/// A response that was not answered yet.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) nonce: String,
    pub(super) version: String,
    /// The update that must have been judged.
    pub(super) after: u64,
    /// What it brought or took.
    pub(super) names: BTreeSet<Name>,
    /// What was wrong with resources by themselves.
    pub(super) faults: Vec<Fault>,
}

/// What a session has and asks for of one kind.
#[derive(Debug)]
pub(super) struct OfKind {
    is_wildcard: bool,
    entries: BTreeMap<Name, Slot>,
    patterns: Patterns,
    /// Those that may be otherwise than they were counted.
    touched: BTreeSet<Name>,
    /// How those were counted that are no more.
    ended: Vec<(Name, Noted)>,
    tally: Tally,
    /// What is asked for by name.
    wanted: BTreeSet<Name>,
    /// Those that may be neither wanted nor asked for.
    loose: BTreeSet<Name>,
    /// What was asked for on this stream.
    asked: Option<BTreeSet<Name>>,
    /// Nothing else is wanted since.
    is_all_asked: bool,
    /// Of the newest full answer on this stream (P2).
    pub(super) nonce: String,
    /// Of the last full answer that was accepted (P3).
    pub(super) version: String,
    /// Something of that answer was refused since: the next stream asks for all of it again.
    is_version_void: bool,
    pub(super) pending: VecDeque<Pending>,
    /// Those of which the newest that came is refused.
    faulty: BTreeSet<Name>,
    /// They are of a stream before: the next answer speaks of all that is faulty.
    is_stale: bool,
    /// Whether something of it was answered on this stream.
    has_spoken: bool,
    /// Whether it is known what there is.
    is_known: bool,
    /// When that counts as known though nobody has said it.
    known_at: Option<Time>,
}

impl OfKind {
    pub(super) fn new(kind: Kind) -> Self {
        Self {
            is_wildcard: kind.is_wildcard(),
            entries: BTreeMap::new(),
            patterns: Patterns::default(),
            touched: BTreeSet::new(),
            ended: Vec::new(),
            tally: Tally::default(),
            wanted: BTreeSet::new(),
            loose: BTreeSet::new(),
            asked: None,
            is_all_asked: false,
            nonce: String::new(),
            version: String::new(),
            is_version_void: false,
            pending: VecDeque::new(),
            faulty: BTreeSet::new(),
            is_stale: false,
            has_spoken: false,
            // Those that have names are known by name.
            is_known: !kind.is_wildcard(),
            known_at: None,
        }
    }

    pub(super) fn hold(&mut self, name: Name, resource: Resource) {
        self.is_known = true;
        self.touch(&name);
        if !self.is_wildcard {
            self.loose.insert(Arc::clone(&name));
        }
        self.patterns.take(&resource.body);
        self.entries.entry(name).or_default().entry().held = Some(resource);
    }

    fn touch(&mut self, name: &Name) {
        self.touched.insert(Arc::clone(name));
    }

    /// One that is counted anew.
    fn entry_mut(&mut self, name: &Name) -> Option<&mut Entry> {
        let slot = self.entries.get_mut(name)?;
        self.touched.insert(Arc::clone(name));
        Some(slot.entry())
    }

    /// Counts anew what was touched.
    pub(super) fn settle(&mut self, referred: &mut Referred) {
        for (name, was) in std::mem::take(&mut self.ended) {
            let nothing = Noted::default();
            self.tally.change(&name, &was, &nothing);
            referred.change(&was.refers, &nothing.refers);
        }
        let touched = std::mem::take(&mut self.touched);
        let is_much = touched.len() > self.entries.len() / 2;
        for name in touched {
            let Some(slot) = self.entries.get_mut(&name) else {
                continue;
            };
            let entry = slot.entry();
            let is = entry.to_note(self.wanted.contains(&name));
            self.tally.change(&name, &entry.noted, &is);
            referred.change(&entry.noted.refers, &is.refers);
            entry.noted = is;
            slot.settle();
        }
        if is_much {
            // Names that come one by one in their order fill the nodes of a tree by half.
            self.entries = std::mem::take(&mut self.entries).into_iter().collect();
            self.wanted = std::mem::take(&mut self.wanted).into_iter().collect();
        }
    }

    /// Takes the version of one that comes as it is held; whether that is all there is to it (P36).
    fn comes_again(&mut self, name: &Name, version: &Arc<str>, body: &Any) -> bool {
        let Some(Slot::Rests(held)) = self.entries.get_mut(name) else {
            return false;
        };
        let is_same = held.version.is_some() && held.body.is(body);
        if is_same {
            held.version = Some(Arc::clone(version));
        }
        is_same
    }

    pub(super) fn held(&self) -> impl Iterator<Item = (&Name, &Resource)> {
        (self.entries.iter()).filter_map(|(name, slot)| Some((name, slot.held()?)))
    }

    pub(super) fn begin_stream(&mut self) {
        self.end_stream();
    }

    /// Nothing of a stream outlives it (P2): what came and was not handed on yet is not counted as held
    /// by the next (P25), and so must not come to be behind its back, nor must what was refused. Timers
    /// begin anew (P18).
    pub(super) fn end_stream(&mut self) {
        self.asked = None;
        self.is_all_asked = false;
        self.is_stale = true;
        self.has_spoken = false;
        if std::mem::take(&mut self.is_version_void) {
            self.version.clear();
        }
        self.nonce.clear();
        self.pending.clear();
        self.known_at = None;
        let mut names = Vec::new();
        for (name, slot) in &mut self.entries {
            // What rests is not of a stream.
            let Slot::Moves(entry) = slot else {
                continue;
            };
            entry.missing_at = None;
            entry.forget_unjudged();
            let is_on_its_way = entry.applying == Some(Next::Withdrawn);
            if entry.is_open() && entry.next.is_none() && !is_on_its_way {
                entry.next = Some(Next::Withdrawn);
            }
            names.push(Arc::clone(name));
        }
        for name in names {
            self.touch(&name);
            self.forget(&name);
        }
    }

    /// Those that were handed on, and not judged yet.
    pub(super) fn applying(&self) -> impl Iterator<Item = &Name> {
        let moving = self.entries.iter();
        let moving = moving.filter_map(|(name, slot)| Some((name, slot.moving()?)));
        moving.filter_map(|(name, entry)| entry.applying.as_ref().map(|_| name))
    }

    /// Whether something that came by the stream before is not known to be held or not.
    pub(super) fn is_unsettled(&self) -> bool {
        let mut all = self.entries.values().filter_map(Slot::moving);
        all.any(|entry| entry.applying.is_some() || entry.next == Some(Next::Withdrawn))
    }

    /// It has been said what there is; whether that is news.
    pub(super) const fn know(&mut self) -> bool {
        let is_news = !self.is_known;
        self.is_known = true;
        self.known_at = None;
        is_news
    }

    pub(super) const fn is_known(&self) -> bool {
        self.is_known
    }

    pub(super) const fn hear(&mut self) {
        self.has_spoken = true;
    }

    /// Whether its server has spoken of all of it on this stream; of what it has by name nobody says that it
    /// has not changed.
    pub(super) const fn is_heard(&self) -> bool {
        self.has_spoken || !self.is_wildcard
    }

    pub(super) fn is_complete(&self) -> bool {
        self.is_known && self.tally.unknown.is_empty()
    }

    pub(super) fn wake(&self) -> Option<Time> {
        let first = self.tally.due.first().map(|(at, _)| *at);
        first.into_iter().chain(self.known_at).min()
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, kind: Kind, now: Time, is_news: &mut bool) -> Vec<Notice> {
        let mut told = Vec::new();
        let is_due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        if is_due(self.known_at) {
            *is_news |= self.know();
        }
        let due = self.tally.due.iter().take_while(|(at, _)| *at <= now);
        let due: BTreeSet<Name> = due.map(|(_, name)| Arc::clone(name)).collect();
        for name in due {
            let Some(entry) = self.entry_mut(&name) else {
                continue;
            };
            if is_due(entry.missing_at) {
                entry.missing_at = None;
                if entry.is_unknown() {
                    entry.next = Some(Next::Missing);
                    told.push(Notice::Missing(kind, Arc::clone(&name)));
                }
            }
            if is_due(entry.expires_at) {
                entry.expires_at = None;
                entry.next = Some(Next::Expired);
                told.push(Notice::Expired(kind, name));
            }
        }
        told
    }

    /// Resources, and the bytes of all that each of them is or may come to be.
    pub(super) const fn size(&self) -> (usize, usize) {
        (self.tally.resources, self.tally.bytes)
    }

    /// Takes what a response says.
    pub(super) fn taking(
        &mut self,
        kind: Kind,
        (limits, resources, bytes): (Limits, usize, usize),
        now: Time,
    ) -> Taking<'_> {
        Taking {
            of: self,
            kind,
            limits,
            resources,
            bytes,
            now,
            names: BTreeSet::new(),
            faults: Vec::new(),
            told: Vec::new(),
        }
    }

    pub(super) fn has_next(&self) -> bool {
        !self.tally.next.is_empty()
    }

    /// What is to be handed on.
    pub(super) fn take_next(&mut self) -> Vec<(Name, Change)> {
        let mut taken = Vec::new();
        for name in self.tally.next.clone() {
            if let Some(entry) = self.entry_mut(&name)
                && let Some(next) = entry.next.take()
            {
                let change = match &next {
                    Next::Put(resource) => Change::Put(resource.clone()),
                    Next::Removed | Next::Expired | Next::Unwanted => Change::Removed,
                    Next::Missing => Change::Missing,
                    Next::Withdrawn => Change::Withdrawn,
                };
                entry.applying = Some(next);
                entry.refused = None;
                taken.push((name, change));
            }
        }
        taken
    }

    /// What was handed on was judged.
    pub(super) fn judged(&mut self, name: &Name, refusal: Option<Refusal>) {
        let is_over = self.asked.is_none();
        let Some(entry) = self.entry_mut(name) else {
            return;
        };
        match (entry.applying.take(), refusal) {
            (Some(Next::Put(resource)), None) => {
                entry.held = Some(resource);
                entry.aside = None;
                entry.is_staying = false;
                entry.is_absent = false;
                entry.forget_withdrawal();
            }
            (Some(Next::Put(resource)), Some(refusal)) => {
                entry.set_aside(resource, is_over);
                entry.hold_good(refusal);
            }
            (Some(Next::Withdrawn), _) => {
                entry.aside = None;
                entry.is_staying = false;
            }
            (
                Some(next @ (Next::Removed | Next::Expired | Next::Unwanted | Next::Missing)),
                None,
            ) => {
                entry.held = None;
                entry.aside = None;
                entry.is_staying = false;
                entry.is_absent = next != Next::Unwanted;
                entry.expires_at = None;
                entry.forget_withdrawal();
            }
            // It stays though its server has none any more.
            (
                Some(Next::Removed | Next::Expired | Next::Unwanted | Next::Missing),
                Some(refusal),
            ) => {
                entry.aside = None;
                entry.stay(is_over);
                entry.hold_good(refusal);
            }
            (None, _) => {}
        }
        self.forget(name);
    }

    /// What was acknowledged while it waited is refused; why, if that is news.
    pub(super) fn refused_late(&mut self, name: &Name, refusal: Refusal) -> Option<String> {
        let is_over = self.asked.is_none();
        let entry = self.entry_mut(name)?;
        let body = |of: Option<&Resource>| of.map(|of| Arc::clone(&of.body));
        if body(entry.held.as_ref()) == body(refusal.good.as_ref()) {
            // It was told of before.
            return None;
        }
        let why = refusal.why.clone();
        match entry.held.take() {
            Some(waited) => entry.set_aside(waited, is_over),
            None => entry.stay(is_over),
        }
        entry.hold_good(refusal);
        self.is_version_void = true;
        self.note_faulty([name]);
        Some(why)
    }

    /// What was refused serves; whether it was known to be aside.
    pub(super) fn revived(&mut self, name: &Name) -> bool {
        let Some(entry) = self.entry_mut(name) else {
            return false;
        };
        let Some(resource) = entry.aside.take() else {
            return false;
        };
        entry.held = Some(resource);
        entry.refused = None;
        entry.forget_withdrawal();
        true
    }

    /// What was to go and stayed is gone; whether it was known to stay.
    pub(super) fn gone(&mut self, name: &Name) -> bool {
        let Some(entry) = self.entry_mut(name) else {
            return false;
        };
        if !std::mem::take(&mut entry.is_staying) {
            return false;
        }
        entry.held = None;
        entry.refused = None;
        entry.is_absent = true;
        entry.expires_at = None;
        entry.forget_withdrawal();
        self.forget(name);
        true
    }

    /// Forgets one of which there is nothing to know, unless it is a name that is asked for.
    fn forget(&mut self, name: &Name) {
        let entry = self.entries.get(name).and_then(Slot::moving);
        let is_empty = entry.is_some_and(|entry| {
            entry.resources().next().is_none() && entry.next.is_none() && entry.applying.is_none()
        });
        if is_empty
            && !self.wanted.contains(name)
            && let Some(Slot::Moves(entry)) = self.entries.remove(name)
        {
            self.ended.push((Arc::clone(name), entry.noted));
        }
    }

    /// Wants one.
    pub(super) fn want(&mut self, name: Name) {
        self.is_all_asked = false;
        self.touch(&name);
        let entry = (self.entries.entry(Arc::clone(&name)).or_default()).entry();
        if entry.next == Some(Next::Unwanted) {
            let is_over = self.asked.is_none() && entry.is_open();
            entry.next = is_over.then_some(Next::Withdrawn);
        }
        self.wanted.insert(name);
    }

    /// Wants one no more.
    pub(super) fn want_no_more(&mut self, name: Name) {
        self.is_all_asked = false;
        self.touch(&name);
        self.wanted.remove(&name);
        self.loose.insert(name);
    }

    /// What was refused, and is of no interest any more.
    pub(super) fn forget_faults(&mut self) -> Vec<Name> {
        let is_wanted = |name: &Name| self.wanted.contains(name) || name.starts_with('#');
        let no_more = self.faulty.iter().filter(|name| !is_wanted(name));
        let no_more: Vec<Name> = no_more.cloned().collect();
        for name in &no_more {
            self.faulty.remove(name);
        }
        no_more
    }

    /// Lets go of what nobody refers to any more, once its server has heard that: else it would not send
    /// it again when it is wanted again.
    pub(super) fn let_go(&mut self) {
        if self.is_wildcard {
            return;
        }
        let is_asked =
            |name: &Name| (self.asked.as_ref()).is_some_and(|asked| asked.contains(name));
        let unwanted: Vec<Name> = (self.loose.iter())
            .filter(|name| !self.wanted.contains(*name) && !is_asked(name))
            .cloned()
            .collect();
        for name in unwanted {
            let Some(entry) = self.entry_mut(&name) else {
                continue;
            };
            entry.missing_at = None;
            entry.is_absent = false;
            let is_on_its_way = entry.applying == Some(Next::Unwanted) && entry.next.is_none();
            if entry.resources().next().is_some() && !is_on_its_way {
                entry.next = Some(Next::Unwanted);
            }
            self.forget(&name);
        }
        let (entries, wanted) = (&self.entries, &self.wanted);
        (self.loose).retain(|name| entries.contains_key(name) && !wanted.contains(name));
    }

    /// A full answer was accepted.
    pub(super) fn accept(&mut self, version: String) {
        self.version = version;
        // P14: others need not hold all that there is.
        self.is_version_void &= !self.is_wildcard;
    }

    pub(super) const fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// What is to be asked for, and what no more; nothing where all was said.
    pub(super) fn to_ask(&self) -> Option<(Vec<String>, Vec<String>)> {
        let names = |names: BTreeSet<&Name>| names.iter().map(|name| name.to_string()).collect();
        match &self.asked {
            // P15: the first request of all without a name is for all there are.
            None if self.is_wildcard => Some((Vec::new(), Vec::new())),
            None if self.wanted.is_empty() => None,
            None => Some((names(self.wanted.iter().collect()), Vec::new())),
            Some(asked) if self.is_all_asked || *asked == self.wanted => None,
            Some(asked) => Some((
                names(self.wanted.difference(asked).collect()),
                names(asked.difference(&self.wanted).collect()),
            )),
        }
    }

    pub(super) fn note_asked(&mut self) {
        if self.asked.is_none() || !self.is_all_asked {
            self.asked = Some(self.wanted.iter().cloned().collect());
            self.is_all_asked = true;
        }
    }

    /// What was just asked for and is not known is missing by then (P18).
    pub(super) fn await_missing(&mut self, at: Time) {
        if !self.is_known {
            self.known_at.get_or_insert(at);
        }
        for name in self.tally.unknown.clone() {
            if let Some(entry) = self.entry_mut(&name)
                && entry.is_unknown()
            {
                entry.missing_at.get_or_insert(at);
            }
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.wanted.iter().map(ToString::to_string).collect()
    }

    /// What a new stream is told (P24): what is held, whatever response it came in (P25). No version is that of
    /// nothing that a server has: it sends it, or says that it is gone.
    pub(super) fn versions(&self) -> HashMap<String, String> {
        let version = |of: &Resource| of.version.as_deref().unwrap_or_default().to_owned();
        self.held()
            .map(|(name, resource)| (name.to_string(), version(resource)))
            .collect()
    }

    /// The next response that can be answered.
    pub(super) fn take_pending(&mut self, judged: u64) -> Option<Pending> {
        self.pending.pop_front_if(|pending| pending.after <= judged)
    }

    /// The update that the newest response waits for.
    pub(super) fn waits_for(&self) -> Option<u64> {
        self.pending.back().map(|pending| pending.after)
    }

    /// All that is wrong with what a response brought.
    pub(super) fn faults(&self, pending: &Pending) -> Vec<Fault> {
        let mut faults = pending.faults.clone();
        for name in &pending.names {
            let entry = self.entries.get(name).and_then(Slot::moving);
            if let Some(why) = entry.and_then(|entry| entry.refused.as_ref()) {
                faults.push(Fault {
                    name: Arc::clone(name),
                    why: why.clone(),
                });
            }
        }
        faults
    }

    /// Notes what is wrong with what came; tells what was, and is not any more.
    pub(super) fn note_faults(&mut self, names: &BTreeSet<Name>, faults: &[Fault]) -> Vec<Name> {
        let now: BTreeSet<&Name> = faults.iter().map(|fault| &fault.name).collect();
        let is_faulty = |name: &Name| now.contains(name);
        // One that could not be told by name is gone with the response that it came in. What was refused
        // before this stream comes again on it, if it is there still.
        let is_fresh = std::mem::take(&mut self.is_stale);
        let is_spoken_of = |name: &Name| is_fresh || names.contains(name) || name.starts_with('#');
        let mended: Vec<Name> = (self.faulty.iter())
            .filter(|name| is_spoken_of(name) && !is_faulty(name))
            .cloned()
            .collect();
        for name in &mended {
            self.faulty.remove(name);
        }
        self.note_faulty(faults.iter().map(|fault| &fault.name));
        mended
    }

    fn note_faulty<'a>(&mut self, names: impl IntoIterator<Item = &'a Name>) {
        let room = FAULTY_MAX.saturating_sub(self.faulty.len());
        self.faulty.extend(names.into_iter().take(room).cloned());
    }

    /// Whether it was refused until now.
    pub(super) fn mend(&mut self, name: &Name) -> bool {
        self.faulty.remove(name)
    }

    pub(super) fn check_invariants(&self, kind: Kind, under_way: &[(Kind, Name)]) {
        debug_assert!(
            !self.is_wildcard || self.wanted.is_empty(),
            "all of a kind are not asked for by name"
        );
        // It is quadratic.
        if cfg!(debug_assertions) && self.entries.len() < 100 {
            let mut tally = Tally::default();
            for (name, slot) in &self.entries {
                let is = match slot {
                    Slot::Rests(resource) => Entry::resting(resource.clone()).noted,
                    Slot::Moves(entry) => entry.to_note(self.wanted.contains(name)),
                };
                tally.change(name, &Noted::default(), &is);
            }
            debug_assert_eq!(self.tally, tally, "all is counted");
            debug_assert_eq!(
                (self.touched.len(), self.ended.len()),
                (0, 0),
                "nothing was touched since"
            );
            let mut loose = self
                .entries
                .keys()
                .filter(|name| !self.wanted.contains(*name));
            debug_assert!(
                self.is_wildcard || loose.all(|name| self.loose.contains(name)),
                "what nobody wants is loose"
            );
            for (name, slot) in &self.entries {
                let entry = slot.moving();
                let is_under_way = under_way.iter().any(|(of, one)| *of == kind && one == name);
                debug_assert_eq!(
                    entry.is_some_and(|entry| entry.applying.is_some()),
                    is_under_way,
                    "what is handed on is known: {name}"
                );
                let asked = self.asked.as_ref();
                debug_assert!(
                    self.is_wildcard
                        || self.wanted.contains(name)
                        || asked.is_some_and(|asked| asked.contains(name))
                        || entry
                            .is_some_and(|entry| entry.next.is_some() || entry.applying.is_some()),
                    "nobody wants {name}"
                );
            }
        }
    }
}

/// What a server is told of faults.
pub(super) fn detail(kind: Kind, faults: &[Fault]) -> Status {
    let mut message = String::new();
    for Fault { name, why } in faults.iter().take(FAULTS_TOLD) {
        // Writing into a String does not fail.
        let why = cut(why, FAULT_CHARS);
        write!(message, "{} `{name}`: {why}; ", kind.as_str()).ok();
    }
    match faults.len().checked_sub(FAULTS_TOLD) {
        Some(more @ 1..) => write!(message, "and {more} more").unwrap_or_default(),
        Some(0) | None => message.truncate(message.len().saturating_sub(2)),
    }
    Status {
        code: INVALID,
        message,
        details: Vec::new(),
    }
}

fn cut(text: &str, chars_max: usize) -> String {
    match text.char_indices().nth(chars_max) {
        Some((at, _)) => format!("{} ...", text.get(..at).unwrap_or_default()),
        None => text.to_owned(),
    }
}
