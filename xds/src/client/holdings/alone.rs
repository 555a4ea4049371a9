//! Changes that touch nothing but themselves: of endpoints, and of clusters that are used as before.
//!
//! All else stays as it was put together, and costs nothing. What is not certain to be such a change is
//! looked at among all others, as if this were not here.
//!
//! So does what was refused, or waits. Of a cluster it depends on the name and on what that stands for, which
//! are as before; a cluster depends on peers, of which nothing may be refused then, on its endpoints, and on
//! what was said of it when all was looked at ([`Held`]).

use std::collections::{BTreeMap, BTreeSet};

use super::{Draft, Entry, Found, Holdings, Key, Next};
use crate::ingest::{Changed, Served, may_be_peer};
use crate::session::Kind;
use crate::session::client::{Change, Name, Resource};

/// The most clusters that are looked at one by one: of more the whole takes no longer.
const CLUSTERS_MAX: usize = 256;

/// What is known since all was looked at.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Alone {
    /// What was put together last.
    served: Option<Served>,
    /// What came since.
    came: BTreeSet<Key>,
    /// Something of it is no resource in the place of another.
    is_more: bool,
    /// What has something next that does not serve; nothing where it has to be looked at whatever comes.
    held: Option<Held>,
    /// The clusters whose endpoints are not called like them, by these.
    by_endpoints: BTreeMap<Name, Vec<Name>>,
}

/// What was kept from serving, and would be again: to look at all of it once more came to the same.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(super) struct Held {
    /// That, what was blamed on the way, and what these refer to. What else there is they know by its name.
    about: BTreeSet<Key>,
    /// As in the draft.
    left_out: BTreeSet<Key>,
    warming: BTreeSet<Key>,
    faults: BTreeMap<Key, String>,
}

impl Alone {
    pub(super) const fn new() -> Self {
        Self {
            served: None,
            came: BTreeSet::new(),
            is_more: false,
            held: None,
            by_endpoints: BTreeMap::new(),
        }
    }

    /// Something changed that is no resource.
    pub(super) const fn is_more(&mut self) {
        self.is_more = true;
    }

    pub(super) const fn served(&self) -> Option<&Served> {
        self.served.as_ref()
    }

    /// Something comes.
    pub(super) fn came(&mut self, key: &Key, change: &Change) {
        self.came.insert(key.clone());
        self.is_more |= !matches!(change, Change::Put(_));
    }
}

impl Holdings {
    /// What serves if all that came takes the place of what is there; `None` where that is not all
    /// there is to it.
    pub(super) fn with_those_alone(
        &self,
        faults: &BTreeMap<Key, String>,
        left_out: &BTreeSet<Key>,
    ) -> Option<Draft> {
        let Alone {
            served,
            came,
            is_more,
            held,
            ..
        } = &self.alone;
        if *is_more || !left_out.is_empty() || came.len() > CLUSTERS_MAX {
            return None;
        }
        let held = held.as_ref()?;
        let mut clusters = BTreeSet::new();
        for key in came {
            let entry = self.entries.get(key)?;
            if held.about.contains(key) {
                return None;
            }
            if faults.contains_key(key) {
                // Nothing of it is there, and who refers to it would know that.
                if entry.good.is_none() && !key.0.is_wildcard() {
                    return None;
                }
                continue;
            }
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
            .map(|name| self.changed(name, &held.about))
            .collect();
        let served = served.as_ref()?.with(&changed?)?;
        let faults = faults.iter().chain(&held.faults);
        Some(Draft {
            served,
            look: None,
            left_out: held.left_out.clone(),
            warming: held.warming.clone(),
            faults: (faults.map(|(key, why)| (key.clone(), why.clone()))).collect(),
        })
    }

    /// All that came serves, but for what was wrong by itself.
    pub(super) fn commit_those_alone(&mut self, served: &Served) {
        for key in std::mem::take(&mut self.alone.came) {
            let Some(entry) = self.entries.get_mut(&key) else {
                continue;
            };
            if let Some(Next::Put(resource)) = entry.next.take() {
                entry.good = Some(resource);
                entry.is_absent = false;
                self.unkept.insert(key);
            } else if entry.good.is_none() {
                self.entries.remove(&key);
                self.loose += 1;
            }
        }
        self.alone.served = Some(served.clone());
        self.check_those_alone();
    }

    /// What a draft of all keeps from serving, which is all that is next; `None` where something in its own
    /// place may have a part in that.
    pub(super) fn held(&self, draft: &Draft, blamed: &BTreeSet<Key>) -> Option<Held> {
        let next = self.entries.iter();
        let next = next.filter(|(_, entry)| entry.next.is_some());
        let mut about: BTreeSet<Key> = next.map(|(key, _)| key.clone()).collect();
        about.extend(blamed.iter().cloned());
        let mut references = BTreeSet::new();
        for key in &about {
            for one in self.entries.get(key).into_iter().flat_map(Entry::resources) {
                // Whoever has endpoints beyond it may depend on it.
                if key.0 == Kind::Cluster && may_be_peer(&one.body) {
                    return None;
                }
                references.extend(one.references.iter().cloned());
            }
        }
        about.extend(references);
        let is_next = |key: &&Key| self.entries.get(*key).is_some_and(|one| one.next.is_some());
        let faults = draft.faults.iter().filter(|(key, _)| is_next(key));
        Some(Held {
            about,
            left_out: draft.left_out.clone(),
            warming: draft.warming.clone(),
            faults: (faults.map(|(key, why)| (key.clone(), why.clone()))).collect(),
        })
    }

    /// All was put together, or nothing of what came last.
    pub(super) fn look_at_all(&mut self, served: Option<Served>, held: Option<Held>) {
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
            came: BTreeSet::new(),
            is_more: false,
            held,
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

    /// A cluster as it is to be; `None` where it is one of these, or its endpoints are.
    fn changed<'a>(&'a self, name: &'a Name, but: &BTreeSet<Key>) -> Option<Changed<'a>> {
        let key = (Kind::Cluster, name.clone());
        let nothing = BTreeSet::new();
        let found = |key: &Key| match self.found(key, &nothing) {
            Found::Resource(resource) => Some(&*resource.body),
            Found::Absent | Found::Unknown => None,
        };
        let before = self.entries.get(&key)?.good.as_ref()?;
        if but.contains(&key) || before.references.iter().any(|to| but.contains(to)) {
            return None;
        }
        let (endpoints, endpoints_before) = match &*before.references {
            [] => (None, None),
            [endpoints] => {
                let before = self.entries.get(endpoints)?.good.as_ref()?;
                (Some(found(endpoints)?), Some(&*before.body))
            }
            [_, _, ..] => return None,
        };
        Some(Changed {
            name,
            before: &before.body,
            now: found(&key)?,
            endpoints,
            endpoints_before,
        })
    }

    fn check_those_alone(&self) {
        debug_assert!(
            self.entries.len() >= 100
                || self.entries.iter().all(|(key, entry)| {
                    entry.next.is_none()
                        || self
                            .alone
                            .held
                            .as_ref()
                            .is_none_or(|held| held.about.contains(key))
                }),
            "what is next is known"
        );
    }
}

impl Entry {
    fn resources(&self) -> impl Iterator<Item = &Resource> {
        let next = self.next.as_ref().and_then(Next::resource);
        self.good.iter().chain(next)
    }

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
