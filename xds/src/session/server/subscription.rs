//! One type of resource on one stream: what is asked for, what was told, what is owed.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use zeugma_core::time::Time;

use super::names::Names;
use super::{Protocol, Response, Standing};
use crate::catalog::{Resource, Shelf, Version};

/// Every resource, but those on demand (P15).
const ALL: &str = "*";

/// What a state-of-the-world response of a type says of what it does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// That it is not there (P13).
    Whole,
    /// Nothing (P14).
    Partial,
}

/// What a response is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Because {
    /// Whatever changed.
    Anything,
    /// What changed, but what is gone stays until it is asked [for](Self::Anything).
    Kept,
    /// What the client asked for and has no answer to; then all that changed comes with it.
    Asked,
}

#[derive(Debug)]
pub(super) struct Subscription {
    /// There was a request.
    is_asked: bool,
    /// Names were given at least once: from then on no names mean none (P15).
    was_named: bool,
    is_wildcard: bool,
    names: Names,
    /// Names to answer whatever the client has (P12, P22, P23, P32).
    owed: BTreeSet<Arc<str>>,
    /// An answer is due even if it is empty (P26).
    owes_answer: bool,
    /// What the client was told, as far as it asked for it, but for `kept`.
    told: Arc<Shelf>,
    /// What is not there any more, and the client was not told so yet; as it was, if that is known.
    kept: BTreeMap<Arc<str>, Option<Arc<Resource>>>,
    /// What of `owed` and `kept` is of names that are not there, besides those that are asked for; at
    /// most that much.
    owed_strangers: Load,
    kept_strangers: Load,
    unacknowledged: Option<Unacknowledged>,
    /// Of the last response.
    nonce: Option<u64>,
    sent: Option<Version>,
    accepted: Option<Version>,
    rejected: Option<(Version, String)>,
}

/// What is kept for a client alone.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Load {
    pub names: usize,
    /// Of names that are not there.
    pub bytes: usize,
}

impl Load {
    pub(super) const fn and(self, other: Self) -> Self {
        Self {
            names: self.names + other.names,
            bytes: self.bytes + other.bytes,
        }
    }

    const fn of(stranger: &str) -> Self {
        Self {
            names: 1,
            bytes: stranger.len(),
        }
    }
}

#[derive(Debug)]
struct Unacknowledged {
    version: Version,
    since: Time,
}

/// A response before it has a nonce.
#[derive(Debug)]
pub(super) struct Made {
    pub resources: Vec<Arc<Resource>>,
    removed: Vec<Arc<str>>,
    /// Those of the resources that are new or not as they were, as far as the client may see it.
    pub changed: Vec<Arc<Resource>>,
    version: Version,
}

impl Made {
    pub(super) fn response(self, type_url: &Arc<str>, nonce: u64) -> Response {
        Response {
            type_url: Arc::clone(type_url),
            version: self.version,
            nonce,
            resources: self.resources,
            removed: self.removed,
        }
    }
}

impl Subscription {
    pub(super) fn new(empty: &Arc<Shelf>) -> Self {
        Self {
            is_asked: false,
            was_named: false,
            is_wildcard: false,
            names: Names::on(empty),
            owed: BTreeSet::new(),
            owes_answer: false,
            told: Arc::clone(empty),
            kept: BTreeMap::new(),
            owed_strangers: Load::default(),
            kept_strangers: Load::default(),
            unacknowledged: None,
            nonce: None,
            sent: None,
            accepted: None,
            rejected: None,
        }
    }

    pub(super) const fn is_asked(&self) -> bool {
        self.is_asked
    }

    /// Whether nothing was sent yet.
    pub(super) const fn is_first(&self) -> bool {
        self.nonce.is_none()
    }

    /// What is kept for the client alone.
    pub(super) fn load(&self) -> Load {
        let asked = Load {
            names: self.names.len(),
            bytes: self.names.bytes(),
        };
        asked.and(self.owed_strangers).and(self.kept_strangers)
    }

    /// Whether the endpoints of this name are asked for: there are none on demand.
    pub(super) fn wants_name(&self, name: &str) -> bool {
        self.is_wildcard || self.names.contains(name)
    }

    pub(super) fn wants(&self, resource: &Resource) -> bool {
        (self.is_wildcard && !resource.is_on_demand()) || self.names.contains(resource.name())
    }

    pub(super) fn owe(&mut self, name: &Arc<str>) {
        self.owed.insert(Arc::clone(name));
    }

    /// Whether a state-of-the-world request was made before its sender saw the last response.
    pub(super) fn is_stale(&self, nonce: &str) -> bool {
        self.nonce.is_some_and(|last| last.to_string() != nonce)
    }

    /// Takes an acknowledgement, if it is one: of which version, and what the client has against it.
    pub(super) fn acknowledge(
        &mut self,
        nonce: &str,
        error: Option<String>,
    ) -> Option<(Version, Option<String>)> {
        // P20: paired by nonce alone; any other is of no response that waits.
        self.nonce.filter(|last| last.to_string() == nonce)?;
        let version = self.unacknowledged.take()?.version;
        match &error {
            // P8: by its presence alone.
            Some(detail) => self.rejected = Some((version, detail.clone())),
            None => {
                self.accepted = Some(version);
                self.rejected = None;
            }
        }
        Some((version, error))
    }

    /// State of the world: these are all the names.
    pub(super) fn names_are(
        &mut self,
        version: &str,
        names: Vec<Cow<'_, str>>,
        shelf: &Arc<Shelf>,
        is_whole: bool,
    ) {
        let is_first = !std::mem::replace(&mut self.is_asked, true);
        self.was_named |= !names.is_empty();
        let was_wildcard = self.is_wildcard;
        let mut asked = Names::on(shelf);
        self.is_wildcard = !self.was_named && is_whole;
        let mut is_more = false;
        for name in names {
            if name == ALL {
                self.is_wildcard = true;
                continue;
            }
            let name = interned(&name, shelf);
            // P12.
            if !self.names.contains(&name) {
                is_more = true;
                self.owed.insert(Arc::clone(&name));
            }
            asked.insert(name);
        }
        if self.is_wildcard && !was_wildcard {
            is_more = true;
            self.told = Arc::clone(&super::EMPTY);
        }
        self.names = asked;
        self.forget_unwanted();
        if self.is_wildcard {
            // No response of this protocol says that one name is not there.
            let names = &self.names;
            (self.owed).retain(|name| names.contains(name) || shelf.index_of(name).is_some());
        }
        if is_first && !self.is_wildcard {
            // What is named is owed; nothing else was told.
            self.told = Arc::clone(shelf);
        }
        if is_first && self.names.is_empty() && version == shelf.version().to_string() {
            // The client has all of it from an earlier stream (P3, P11).
            self.told = Arc::clone(shelf);
            self.accepted = Some(shelf.version());
            return;
        }
        // P26.
        self.owes_answer |= is_whole && is_more;
    }

    /// Incremental: these names come, and those go. `known` is what the client has.
    pub(super) fn names_change(
        &mut self,
        subscribe: Vec<Cow<'_, str>>,
        unsubscribe: Vec<Cow<'_, str>>,
        known: &[(Cow<'_, str>, Cow<'_, str>)],
        shelf: &Arc<Shelf>,
        is_whole: bool,
    ) {
        let is_first = !std::mem::replace(&mut self.is_asked, true);
        let was_wildcard = self.is_wildcard;
        self.was_named |= !subscribe.is_empty();
        if is_first && !self.was_named && is_whole {
            self.is_wildcard = true;
            self.owes_answer = true;
        }
        let has = Has::of(if is_first { known } else { &[] }, shelf);
        self.names.follow(shelf);
        let mut walk = shelf.index().walk();
        for name in subscribe {
            if name == ALL {
                self.is_wildcard = true;
                self.owes_answer = true;
                continue;
            }
            let at = walk.place(&name);
            match at.filter(|at| has.it(*at)) {
                Some(at) => self.names.insert_at(at),
                None => {
                    let name = interned_at(&name, at, shelf);
                    // P22; at first, P24.
                    self.owed.insert(Arc::clone(&name));
                    self.names.insert(name);
                }
            }
        }
        for name in unsubscribe {
            if name == ALL {
                self.is_wildcard = false;
                continue;
            }
            let was_named = self.names.remove(&name);
            if self.is_wildcard {
                // P23: the client may have dropped it.
                let at = shelf.index_of(&name);
                let is_new = self.owed.insert(interned_at(&name, at, shelf));
                if at.is_none() && (is_new || was_named) {
                    self.owed_strangers = self.owed_strangers.and(Load::of(&name));
                }
            } else if was_named {
                self.owed.remove(&*name);
                self.kept.remove(&*name);
            }
        }
        self.forget_unwanted();
        if self.is_wildcard && is_first && !known.is_empty() {
            self.owe_differences(known, &has, shelf);
        } else if self.is_wildcard && !was_wildcard {
            self.told = Arc::clone(&super::EMPTY);
        } else if is_first {
            // What is named is owed; nothing else was told.
            self.told = Arc::clone(shelf);
        }
    }

    /// Of what is not asked for any more nothing is due.
    fn forget_unwanted(&mut self) {
        if !self.is_wildcard {
            let names = &self.names;
            self.owed.retain(|name| names.contains(name));
            self.kept.retain(|name, _| names.contains(name));
            self.owed_strangers = Load::default();
            self.kept_strangers = Load::default();
        }
    }

    /// P24: what a client that was here before has not, has otherwise, or has no more.
    fn owe_differences(
        &mut self,
        known: &[(Cow<'_, str>, Cow<'_, str>)],
        has: &Has,
        shelf: &Arc<Shelf>,
    ) {
        for (at, one) in shelf.iter().enumerate() {
            if !has.it(at) && self.wants(one) {
                self.owed.insert(Arc::clone(one.name()));
            }
        }
        let strangers = has.strangers.iter().filter_map(|nth| known.get(*nth));
        for (name, _) in strangers {
            if !self.owed.contains(&**name) {
                self.kept.insert(Arc::from(&**name), None);
                self.kept_strangers = self.kept_strangers.and(Load::of(name));
            }
        }
        self.told = Arc::clone(shelf);
    }

    /// What is to be sent now, if anything is; then it counts as told.
    pub(super) fn response(
        &mut self,
        shelf: &Arc<Shelf>,
        protocol: Protocol,
        known: Known,
        because: Because,
    ) -> Option<Made> {
        let is_due = self.owes_answer || !self.owed.is_empty();
        if !self.is_asked || self.unacknowledged.is_some() || (because == Because::Asked && !is_due)
        {
            return None;
        }
        let mut made = Made {
            resources: Vec::new(),
            removed: Vec::new(),
            changed: Vec::new(),
            version: shelf.version(),
        };
        if self.told.version() != shelf.version() {
            let difference = shelf.difference(&self.told);
            self.take_changed(&difference.changed, &mut made);
            for one in &difference.removed {
                if self.wants(one) && shelf.get(one.name()).is_none() {
                    let was = Some(Arc::clone(one));
                    self.kept.insert(Arc::clone(one.name()), was);
                }
            }
            self.told = Arc::clone(shelf);
            self.names.follow(shelf);
        }
        self.take_owed(shelf, &mut made);
        if because != Because::Kept {
            made.removed
                .extend(std::mem::take(&mut self.kept).into_keys());
            self.kept_strangers = Load::default();
        }
        let is_owed = std::mem::take(&mut self.owes_answer);
        self.finish(made, shelf, (protocol, known), is_owed)
    }

    fn take_changed(&mut self, changed: &[Arc<Resource>], made: &mut Made) {
        for one in changed {
            if !self.wants(one) {
                continue;
            }
            // It was gone and came back before the client was told.
            let kept = self.kept.remove(one.name());
            if kept
                .flatten()
                .is_some_and(|kept| kept.version() == one.version())
            {
                continue;
            }
            self.owed.remove(one.name());
            made.changed.push(Arc::clone(one));
            made.resources.push(Arc::clone(one));
        }
    }

    fn take_owed(&mut self, shelf: &Shelf, made: &mut Made) {
        self.owed_strangers = Load::default();
        for name in std::mem::take(&mut self.owed) {
            match shelf.get(&name) {
                Some(one) if self.wants(one) => {
                    made.changed.push(Arc::clone(one));
                    made.resources.push(Arc::clone(one));
                }
                Some(_) | None => {
                    self.kept.remove(&name);
                    made.removed.push(name);
                }
            }
        }
    }

    fn finish(
        &self,
        mut made: Made,
        shelf: &Shelf,
        (protocol, known): (Protocol, Known),
        is_owed: bool,
    ) -> Option<Made> {
        let is_something = !made.resources.is_empty() || !made.removed.is_empty() || is_owed;
        match (protocol, known) {
            (Protocol::Delta, _) => is_something.then_some(made),
            (Protocol::Sotw, Known::Whole) => {
                if !is_something {
                    return None;
                }
                let all = shelf.iter().filter(|one| self.wants(one));
                made.resources = all.chain(self.kept.values().flatten()).cloned().collect();
                // A client that comes back with this version must be told of what is gone.
                made.version = shelf.version().with(self.kept.values().flatten());
                made.removed.clear();
                Some(made)
            }
            (Protocol::Sotw, Known::Partial) => {
                made.removed.clear();
                (!made.resources.is_empty()).then_some(made)
            }
        }
    }

    /// It went out.
    pub(super) fn sent(&mut self, nonce: u64, made: &Made, now: Time) {
        debug_assert!(self.unacknowledged.is_none(), "one of a type at a time");
        self.unacknowledged = Some(Unacknowledged {
            version: made.version,
            since: now,
        });
        self.nonce = Some(nonce);
        self.sent = Some(made.version);
    }

    /// Whether the client was not told yet what there is.
    pub(super) fn is_behind(&self, shelf: &Shelf) -> bool {
        self.is_asked && self.told.version() != shelf.version()
    }

    pub(super) fn unacknowledged_since(&self) -> Option<Time> {
        self.unacknowledged.as_ref().map(|one| one.since)
    }

    /// Whether the client has what there is, as far as it wants it.
    pub(super) fn is_settled(&self, shelf: &Shelf) -> bool {
        !self.is_asked
            || (self.told.version() == shelf.version()
                && self.unacknowledged.is_none()
                && self.rejected.is_none())
    }

    pub(super) fn standing(&self, type_url: Arc<str>, shelf: &Shelf) -> Standing {
        Standing {
            type_url,
            is_wildcard: self.is_wildcard,
            names: self.names.len(),
            sent: self.sent,
            accepted: self.accepted,
            rejected: self.rejected.clone(),
            unacknowledged: self.unacknowledged_since(),
            is_behind: self.told.version() != shelf.version() || !self.kept.is_empty(),
        }
    }

    pub(super) fn check_invariants(&self, shelf: &Shelf) -> Result<(), String> {
        let here = self
            .kept
            .keys()
            .find(|name| self.told.version() == shelf.version() && shelf.get(name).is_some());
        if let Some(name) = here {
            return Err(format!("`{name}` is kept though it is there"));
        }
        if !self.is_asked && (self.nonce.is_some() || !self.names.is_empty()) {
            return Err("something was told that nobody asked for".to_owned());
        }
        if self.unacknowledged.is_some() && self.nonce.is_none() {
            return Err("a response without a nonce".to_owned());
        }
        Ok(())
    }
}

/// What of a shelf a client has as it is.
struct Has {
    /// By place.
    places: Vec<bool>,
    /// Which of those that it has are not there.
    strangers: Vec<usize>,
}

impl Has {
    fn of(known: &[(Cow<'_, str>, Cow<'_, str>)], shelf: &Shelf) -> Self {
        let mut this = Self {
            places: Vec::new(),
            strangers: Vec::new(),
        };
        if !known.is_empty() {
            this.places.resize(shelf.len(), false);
        }
        let mut walk = shelf.index().walk();
        for (nth, (name, version)) in known.iter().enumerate() {
            let Some(at) = walk.place(name) else {
                this.strangers.push(nth);
                continue;
            };
            if shelf.version_at(at).is_some_and(|of| of.is(version))
                && let Some(has) = this.places.get_mut(at)
            {
                *has = true;
            }
        }
        this
    }

    fn it(&self, at: usize) -> bool {
        self.places.get(at).copied().unwrap_or_default()
    }
}

/// The name as the shelf has it, which all streams share.
fn interned(name: &str, shelf: &Shelf) -> Arc<str> {
    interned_at(name, shelf.index_of(name), shelf)
}

fn interned_at(name: &str, at: Option<usize>, shelf: &Shelf) -> Arc<str> {
    match at.and_then(|at| shelf.at(at)) {
        Some(one) => Arc::clone(one.name()),
        None => name.into(),
    }
}
