//! Changes that touch nothing but themselves: of endpoints, and of clusters that are used as before.
//!
//! All else stays as it was put together, and costs nothing. What is not certain to be such a change is
//! looked at among all others, as if this were not here.

use std::collections::{BTreeMap, BTreeSet};

use super::{Entry, Found, Holdings, Key, Next};
use crate::ingest::{Changed, Served};
use crate::session::Kind;
use crate::session::client::{Change, Name, Resource};

/// The most clusters that are looked at one by one: of more the whole takes no longer.
const CLUSTERS_MAX: usize = 256;

/// What is known since all was looked at.
#[derive(Debug)]
pub(super) struct Alone {
    /// What was put together last.
    served: Option<Served>,
    /// Those that have something next.
    next: BTreeSet<Key>,
    /// Something came since that is no resource in the place of another.
    is_more: bool,
    /// The clusters whose endpoints are not called like them, by these.
    by_endpoints: BTreeMap<Name, Vec<Name>>,
}

impl Alone {
    pub(super) const fn new() -> Self {
        Self {
            served: None,
            next: BTreeSet::new(),
            is_more: false,
            by_endpoints: BTreeMap::new(),
        }
    }

    pub(super) const fn served(&self) -> Option<&Served> {
        self.served.as_ref()
    }

    /// Something comes.
    pub(super) fn came(&mut self, key: &Key, change: &Change) {
        self.next.insert(key.clone());
        self.is_more |= !matches!(change, Change::Put(_));
    }
}

impl Holdings {
    /// What serves if all that is next takes the place of what is there; `None` where that is not all
    /// there is to it.
    pub(super) fn with_those_alone(
        &self,
        faults: &BTreeMap<Key, String>,
        left_out: &BTreeSet<Key>,
    ) -> Option<Served> {
        let Alone {
            served,
            next,
            is_more,
            ..
        } = &self.alone;
        if *is_more || !faults.is_empty() || !left_out.is_empty() || next.len() > CLUSTERS_MAX {
            return None;
        }
        let mut clusters = BTreeSet::new();
        for key in next {
            let entry = self.entries.get(key)?;
            if !entry.is_in_its_place()? {
                continue;
            }
            match key.0 {
                Kind::Cluster => drop(clusters.insert(&key.1)),
                Kind::Endpoints => clusters.extend(self.users(&key.1)?),
                Kind::Listener | Kind::Routes => return None,
            }
        }
        if clusters.len() > CLUSTERS_MAX {
            return None;
        }
        let changed: Option<Vec<_>> = clusters
            .into_iter()
            .map(|name| self.changed(name))
            .collect();
        served.as_ref()?.with(&changed?)
    }

    /// All that is next serves.
    pub(super) fn commit_those_alone(&mut self, served: &Served) {
        for key in std::mem::take(&mut self.alone.next) {
            if let Some(entry) = self.entries.get_mut(&key)
                && let Some(Next::Put(resource)) = entry.next.take()
            {
                entry.good = Some(resource);
                entry.is_absent = false;
                self.unkept.insert(key);
            }
        }
        self.alone.served = Some(served.clone());
        self.check_those_alone();
    }

    /// All was put together, or nothing of what came last.
    pub(super) fn look_at_all(&mut self, served: Option<Served>) {
        let entries = self.entries.iter();
        let next = entries.filter(|(_, entry)| entry.next.is_some());
        let mut by_endpoints: BTreeMap<Name, Vec<Name>> = BTreeMap::new();
        for ((kind, name), entry) in &self.entries {
            if *kind != Kind::Cluster {
                continue;
            }
            let references = entry.good.iter().flat_map(|good| good.references.iter());
            for (_, to) in references.filter(|(_, to)| to != name) {
                by_endpoints
                    .entry(to.clone())
                    .or_default()
                    .push(name.clone());
            }
        }
        self.alone = Alone {
            served,
            next: next.map(|(key, _)| key.clone()).collect(),
            is_more: false,
            by_endpoints,
        };
        self.check_those_alone();
    }

    /// The clusters that have these endpoints; `None` where there is none.
    fn users(&self, endpoints: &Name) -> Option<Vec<&Name>> {
        let mut users: Vec<&Name> = Vec::new();
        let own = self
            .entries
            .get_key_value(&(Kind::Cluster, endpoints.clone()));
        if let Some(((_, name), entry)) = own
            && let Some(good) = &entry.good
            && good.references.iter().any(|(_, to)| to == endpoints)
        {
            users.push(name);
        }
        users.extend(self.alone.by_endpoints.get(endpoints).into_iter().flatten());
        (!users.is_empty()).then_some(users)
    }

    /// A cluster as it is to be.
    fn changed<'a>(&'a self, name: &'a Name) -> Option<Changed<'a>> {
        let key = (Kind::Cluster, name.clone());
        let nothing = BTreeSet::new();
        let found = |key: &Key| match self.found(key, &nothing) {
            Found::Resource(resource) => Some(&*resource.body),
            Found::Absent | Found::Unknown => None,
        };
        let before = self.entries.get(&key)?.good.as_ref()?;
        let endpoints = match &*before.references {
            [] => None,
            [endpoints] => Some(found(endpoints)?),
            [_, _, ..] => return None,
        };
        Some(Changed {
            name,
            before: &before.body,
            now: found(&key)?,
            endpoints,
        })
    }

    fn check_those_alone(&self) {
        debug_assert!(
            self.entries.len() >= 100
                || self
                    .entries
                    .iter()
                    .all(|(key, entry)| { entry.next.is_none() || self.alone.next.contains(key) }),
            "what is next is known"
        );
    }
}

impl Entry {
    /// Whether something is to take the place of what is there, that refers to the same; `None` where
    /// something else is to be.
    fn is_in_its_place(&self) -> Option<bool> {
        let refers = |one: &Resource| one.references.clone();
        match (&self.next, &self.good) {
            (None, _) => Some(false),
            (Some(Next::Put(next)), Some(good)) => {
                (!self.is_aside && refers(next) == refers(good)).then_some(true)
            }
            (Some(Next::Put(_) | Next::Removed), _) => None,
        }
    }
}
