//! What a session knows of one resource.

use std::sync::Arc;

use zeugma_core::time::Time;

use super::noted::Noted;
use super::{Refusal, Resource};

/// What is to become of a resource.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    Put(Resource),
    /// Its server has none.
    Removed,
    /// Its time to live is over.
    Expired,
    /// Nobody refers to it any more.
    Unwanted,
    Missing,
    /// What was refused came by a stream that has ended.
    Withdrawn,
}

/// What there is of one name: nearly always of nearly all of them a resource that is held, and nothing
/// else; or all that may be.
#[derive(Debug)]
pub(super) enum Slot {
    Rests(Resource),
    Moves(Box<Entry>),
}

impl Default for Slot {
    fn default() -> Self {
        Self::Moves(Box::default())
    }
}

impl Slot {
    /// What is held.
    pub(super) fn held(&self) -> Option<&Resource> {
        match self {
            Self::Rests(resource) => Some(resource),
            Self::Moves(entry) => entry.held.as_ref(),
        }
    }

    /// What there is beside what is held, if there is something.
    pub(super) fn moving(&self) -> Option<&Entry> {
        match self {
            Self::Rests(_) => None,
            Self::Moves(entry) => Some(entry),
        }
    }

    /// All that may be, to change something of it.
    pub(super) fn entry(&mut self) -> &mut Entry {
        if let Self::Rests(resource) = self {
            *self = Self::Moves(Box::new(Entry::resting(resource.clone())));
        }
        match self {
            Self::Moves(entry) => entry,
            Self::Rests(_) => unreachable!("it was set two lines above"),
        }
    }

    /// Has it rest if it may, once it was counted.
    pub(super) fn settle(&mut self) {
        if let Self::Moves(entry) = self
            && let Some(resource) = entry.rests()
        {
            *self = Self::Rests(resource.clone());
        }
    }
}

/// All that may be known of one name.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) held: Option<Resource>,
    /// Handed on, and not judged yet.
    pub(super) applying: Option<Next>,
    /// Newer.
    pub(super) next: Option<Next>,
    /// It was refused, and may serve when what it refers to is there.
    pub(super) aside: Option<Resource>,
    /// That it goes was refused; it may go when there is something else.
    pub(super) is_staying: bool,
    /// Why what was handed on last was refused.
    pub(super) refused: Option<String>,
    /// The server says that there is none, or did not say anything in time.
    pub(super) is_absent: bool,
    pub(super) missing_at: Option<Time>,
    pub(super) expires_at: Option<Time>,
    /// As it was when it was counted last.
    pub(super) noted: Noted,
}

impl Entry {
    /// One that holds this and nothing else, and was counted so.
    pub(super) fn resting(resource: Resource) -> Self {
        let mut entry = Self {
            held: Some(resource),
            ..Self::default()
        };
        entry.noted = entry.to_note(false);
        entry
    }

    /// What it holds, where nothing else is to be known of it.
    const fn rests(&self) -> Option<&Resource> {
        let Self {
            held,
            applying,
            next,
            aside,
            is_staying,
            refused,
            is_absent,
            missing_at,
            expires_at,
            noted: _,
        } = self;
        let is_bare = applying.is_none() && next.is_none() && aside.is_none();
        let is_on_time = missing_at.is_none() && expires_at.is_none();
        let is_good = refused.is_none() && !*is_staying && !*is_absent;
        if is_bare && is_on_time && is_good {
            held.as_ref()
        } else {
            None
        }
    }

    /// What is to be counted of it.
    pub(super) fn to_note(&self, is_wanted: bool) -> Noted {
        let bytes = self.resources().map(|one| one.body.len());
        let refers = self.resources().map(|one| &one.references);
        Noted {
            is_there: self.resources().next().is_some(),
            bytes: bytes.sum(),
            has_next: self.next.is_some(),
            is_unknown: is_wanted && self.is_unknown(),
            due: [self.missing_at, self.expires_at]
                .into_iter()
                .flatten()
                .min(),
            refers: refers.filter(|all| !all.is_empty()).cloned().collect(),
        }
    }

    /// All that it may come to be.
    pub(super) fn resources(&self) -> impl Iterator<Item = &Resource> {
        [
            self.held.as_ref(),
            resource_of(self.applying.as_ref()),
            resource_of(self.next.as_ref()),
            self.aside.as_ref(),
        ]
        .into_iter()
        .flatten()
    }

    /// The newest, unless it is on its way out.
    pub(super) fn newest(&self) -> Option<&Resource> {
        match (&self.next, &self.applying) {
            (Some(Next::Withdrawn), _) | (None, Some(Next::Withdrawn) | None) => self.held.as_ref(),
            (Some(next), _) | (None, Some(next)) => resource_of(Some(next)),
        }
    }

    pub(super) fn newest_mut(&mut self) -> Option<&mut Resource> {
        match (&mut self.next, &mut self.applying) {
            (Some(Next::Put(resource)), _) | (None, Some(Next::Put(resource))) => Some(resource),
            (Some(Next::Withdrawn), _) | (None, Some(Next::Withdrawn) | None) => self.held.as_mut(),
            (Some(Next::Removed | Next::Expired | Next::Unwanted | Next::Missing), _)
            | (None, Some(Next::Removed | Next::Expired | Next::Unwanted | Next::Missing)) => None,
        }
    }

    /// What its server said last counts no more, if it was not handed on yet.
    pub(super) fn forget_unjudged(&mut self) {
        if matches!(self.next, Some(Next::Put(_) | Next::Removed)) {
            self.next = None;
        }
    }

    /// It was refused; where the stream that it came by is over, it counts no more.
    pub(super) fn set_aside(&mut self, resource: Resource, is_over: bool) {
        self.aside = Some(resource);
        self.is_staying = false;
        if is_over && self.next.is_none() {
            self.next = Some(Next::Withdrawn);
        }
    }

    /// The same of its going.
    pub(super) fn stay(&mut self, is_over: bool) {
        self.is_staying = true;
        if is_over && self.next.is_none() {
            self.next = Some(Next::Withdrawn);
        }
    }

    /// Whether something of it was refused that may come to be.
    pub(super) const fn is_open(&self) -> bool {
        self.aside.is_some() || self.is_staying
    }

    /// Nothing is aside any more.
    pub(super) fn forget_withdrawal(&mut self) {
        if self.next == Some(Next::Withdrawn) {
            self.next = None;
        }
    }

    /// Something of it was refused: what serves is what is held.
    pub(super) fn hold_good(&mut self, Refusal { why, good }: Refusal) {
        self.refused = Some(why);
        let body = |of: &Option<Resource>| of.as_ref().map(|of| Arc::clone(&of.body));
        // Equal bytes may have come under a newer version since (P36).
        if body(&self.held) != body(&good) {
            self.is_absent &= good.is_none();
            self.held = good;
        }
    }

    /// Whether nothing is known of it.
    pub(super) fn is_unknown(&self) -> bool {
        self.newest().is_none() && !self.is_absent && self.next.is_none() && self.applying.is_none()
    }
}

pub(super) fn resource_of(next: Option<&Next>) -> Option<&Resource> {
    match next {
        Some(Next::Put(resource)) => Some(resource),
        Some(Next::Removed | Next::Expired | Next::Unwanted | Next::Missing | Next::Withdrawn)
        | None => None,
    }
}
