//! What a control plane gave, and what of it serves together.
//!
//! ```text
//! put ------> next --it fits what is there--> good: it serves
//!               |  `--refused: a fault, kept aside; tried again whenever something changes that it may depend on
//!               `--what it refers to has not come yet: it waits, and the good one serves (P31)
//! removed --> good serves on while something that serves refers to it (P30), or nothing else would
//! ```
//!
//! Something that is wrong by itself is never tried again. Of those that do not fit together the one
//! that is new is at fault.

mod alone;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use zeugma_core::snapshot::Node;

use self::alone::{Alone, Held};
use crate::body::Body;
use crate::ingest::{Blamed, Packed, Served, check};
use crate::parallel;
use crate::session::Kind;
use crate::session::client::{Change, Name, Refusal, Resource, Update, Verdict};

/// Times that something is left out because it does not fit, before all that is new is.
const ROUNDS_MAX: usize = 16;

/// Fewer entries than this leave no room that counts.
const LOOSE_MIN: usize = 64;

/// A resource.
pub(crate) type Key = (Kind, Name);

/// What is done about an update that would leave nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnEmpty {
    /// What is there stays.
    Keep,
    /// It is done.
    Apply,
}

#[derive(Debug, Clone, Default)]
#[cfg_attr(test, derive(PartialEq))]
struct Entry {
    good: Option<Resource>,
    next: Option<Next>,
    /// There is none, or it did not come in time.
    is_absent: bool,
    /// What is next was refused.
    is_aside: bool,
    /// What came last is wrong by itself: nothing of it is to come.
    is_wrong: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Next {
    Put(Resource),
    Removed,
}

/// All that came, for one gateway.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Holdings {
    node: Node,
    on_empty: OnEmpty,
    entries: BTreeMap<Key, Entry>,
    /// So many of them came and went since all were put together: a tree that was made one by one in order takes
    /// twice the memory.
    loose: usize,
    known: BTreeSet<Kind>,
    /// Whether a listener and a service serve.
    serves: [bool; 2],
    alone: Alone,
    /// Those of which what is good changed since that was asked.
    unkept: BTreeSet<Key>,
}

/// What is to serve, and what is not to.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) served: Served,
    /// How all was looked at; nothing where but endpoints and clusters in their places has changed.
    look: Option<Look>,
    /// Those of which the good one, or none, serves in place of the next.
    left_out: BTreeSet<Key>,
    /// Those of them that wait for what they refer to.
    warming: BTreeSet<Key>,
    faults: BTreeMap<Key, String>,
}

/// How it was found what does not serve.
#[derive(Debug)]
struct Look {
    /// Nothing had been left out before.
    is_of_all: bool,
    /// By what something was left out, at the most.
    by: By,
    /// What was to go stayed, for nothing would have been left.
    is_guarded: bool,
    /// All that was said to be wrong on the way.
    blamed: BTreeSet<Key>,
}

/// By what something is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum By {
    /// It is blamed, or missed.
    Blame,
    /// It was aside before, and something else is blamed.
    Aside,
    /// It is new, and something else is blamed.
    New,
}

/// The resources that a name may stand for.
enum Found<'a> {
    Resource(&'a Resource),
    /// It is known that there is none.
    Absent,
    Unknown,
}

/// What serves, if these are left out.
struct View<'a> {
    packed: Packed<'a>,
    warming: BTreeSet<Key>,
    /// Whether something has not come yet that may come.
    is_waiting: bool,
    /// What is in it, by name.
    used: BTreeSet<Key>,
}

impl Holdings {
    /// Nothing yet.
    pub(crate) const fn new(node: Node, on_empty: OnEmpty) -> Self {
        Self {
            node,
            on_empty,
            entries: BTreeMap::new(),
            loose: 0,
            known: BTreeSet::new(),
            serves: [false; 2],
            alone: Alone::new(),
            unkept: BTreeSet::new(),
        }
    }

    /// Begins with what served once: what of it serves, and what is refused and why; nothing where nothing
    /// of it does.
    pub(crate) fn resume(
        &mut self,
        kept: impl Iterator<Item = (Key, Resource)>,
    ) -> Option<(Draft, BTreeMap<Key, String>)> {
        let mut update = Update::default();
        for (key, resource) in kept {
            update.known.insert(key.0);
            // What served without something it refers to does so again.
            for to in resource.references.iter() {
                let missing = update.changes.entry(to.clone());
                missing.or_insert(Change::Missing);
            }
            update.changes.insert(key, Change::Put(resource));
        }
        let keys: Vec<Key> = update.changes.keys().cloned().collect();
        let faults = self.take(update);
        let draft = self.draft(faults, BTreeSet::new()).ok()?;
        let verdict = self.commit(&draft);
        // Nobody waits for what does not serve: the session does not know that it was ever there.
        let waits = |key: &&Key| self.is_put(key);
        let mut refused: BTreeMap<Key, String> = (keys.iter().filter(waits))
            .map(|key| (key.clone(), "it does not fit what is there".to_owned()))
            .collect();
        refused.extend((verdict.refused.into_iter()).map(|(key, refusal)| (key, refusal.why)));
        self.refuse(keys, "it was kept");
        let is_nothing = draft.served.snapshot.listeners.is_empty() && !refused.is_empty();
        (!is_nothing).then_some((draft, refused))
    }

    /// What serves, or is to serve as soon as it can.
    pub(crate) fn good(&self) -> impl Iterator<Item = (&Key, &Resource)> {
        (self.entries.iter()).filter_map(|(key, entry)| Some((key, entry.good.as_ref()?)))
    }

    /// The one of them that is called so.
    pub(crate) fn good_of(&self, key: &Key) -> Option<&Resource> {
        self.entries.get(key)?.good.as_ref()
    }

    /// Whether some of them are of another control plane than the servers.
    pub(crate) fn is_of_another(&self) -> bool {
        self.good().any(|(_, one)| one.version.is_none())
    }

    /// Those of them that changed since this was asked last.
    pub(crate) fn take_unkept(&mut self) -> BTreeSet<Key> {
        std::mem::take(&mut self.unkept)
    }

    /// What waits for something that it refers to, and what is aside.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        let puts = (self.entries.values()).filter(|one| matches!(one.next, Some(Next::Put(_))));
        puts.count()
    }

    /// Takes an update; what is wrong in it by itself is a fault.
    pub(crate) fn take(&mut self, update: Update) -> BTreeMap<Key, String> {
        let mut faults = BTreeMap::new();
        let before = self.entries.len();
        if !update.known.is_subset(&self.known) {
            self.alone.is_more();
            self.known.extend(update.known);
        }
        let changes = update.changes.into_iter().collect();
        let checked = parallel::map(changes, |(key, change): (Key, Change)| {
            let wrong = match &change {
                Change::Put(resource) => check(key.0, &resource.body.to_any(), &self.node).err(),
                Change::Removed | Change::Missing | Change::Withdrawn => None,
            };
            (key, change, wrong)
        });
        for (key, change, wrong) in checked {
            self.alone.came(&key, &change);
            let entry = self.entries.entry(key.clone()).or_default();
            entry.is_aside = false;
            entry.is_wrong = wrong.is_some();
            entry.next = None;
            match change {
                Change::Put(resource) => match wrong {
                    Some(why) => drop(faults.insert(key, why)),
                    None => match &mut entry.good {
                        // P36: it serves already.
                        Some(good) if good.body == resource.body => {
                            if good.version != resource.version {
                                self.unkept.insert(key);
                            }
                            *good = resource;
                        }
                        Some(_) | None => entry.next = Some(Next::Put(resource)),
                    },
                },
                Change::Removed | Change::Missing => {
                    entry.is_absent = true;
                    entry.next = entry.good.is_some().then_some(Next::Removed);
                }
                Change::Withdrawn => {}
            }
        }
        self.loose += self.entries.len() - before;
        faults
    }

    /// What is to serve of all that there is; `faults` are of what was left out already.
    ///
    /// # Errors
    /// Not even what served before does.
    pub(crate) fn draft(
        &self,
        faults: BTreeMap<Key, String>,
        left_out: BTreeSet<Key>,
    ) -> Result<Draft, Vec<Blamed>> {
        match self.with_those_alone(&faults, &left_out) {
            Some(draft) => Ok(draft),
            None => self.draft_of_all(faults, left_out),
        }
    }

    fn draft_of_all(
        &self,
        mut faults: BTreeMap<Key, String>,
        mut left_out: BTreeSet<Key>,
    ) -> Result<Draft, Vec<Blamed>> {
        let mut look = Look {
            is_of_all: left_out.is_empty(),
            by: By::Blame,
            is_guarded: false,
            blamed: BTreeSet::new(),
        };
        for round in 0.. {
            let View {
                packed,
                warming,
                is_waiting,
                ..
            } = self.view(&left_out);
            let mut served = match packed.ingest(self.node.clone()) {
                Ok(made) => made,
                Err(errors) => {
                    let is_waiting = is_waiting || !self.known.contains(&Kind::Cluster);
                    let is_last = round >= ROUNDS_MAX;
                    let blamed = errors.0;
                    let names = blamed
                        .iter()
                        .map(|one| (one.kind, one.name.as_str().into()));
                    look.blamed.extend(names);
                    let more = (&mut left_out, &mut faults);
                    let Some(by) = self.leave_out(&blamed, is_last, is_waiting, more) else {
                        return Err(blamed);
                    };
                    look.by = look.by.max(by);
                    continue;
                }
            };
            let serves = [
                !served.snapshot.listeners.is_empty(),
                !served.snapshot.services.is_empty(),
            ];
            if self.would_empty(serves) && !look.is_guarded {
                look.is_guarded = true;
                let removed = self.removed(&left_out);
                let why =
                    "nothing would be left, so it stays; `controlPlane.onEmpty: apply` lets it go";
                if !removed.is_empty() {
                    // What they refer to stays with them.
                    let named = removed.iter().filter(|key| key.0.is_wildcard());
                    faults.extend(named.map(|key| (key.clone(), why.to_owned())));
                    left_out.extend(removed);
                    continue;
                }
            }
            served.share(self.alone.served());
            return Ok(Draft {
                served,
                look: Some(look),
                left_out,
                warming,
                faults,
            });
        }
        Err(Vec::new())
    }

    /// The same without these listeners, which cannot be bound; `None` where they are not new.
    pub(crate) fn without(&self, draft: &Draft, unbound: &[(String, String)]) -> Option<Draft> {
        let (mut left_out, mut faults) = (draft.left_out.clone(), draft.faults.clone());
        let mut is_less = false;
        for (name, why) in unbound {
            let key = (Kind::Listener, Name::from(name.as_str()));
            if self.is_put(&key) && left_out.insert(key.clone()) {
                is_less = true;
                faults.insert(key, why.clone());
            }
        }
        is_less.then(|| self.draft(faults, left_out).ok()).flatten()
    }

    /// A draft serves.
    pub(crate) fn commit(&mut self, draft: &Draft) -> Verdict {
        let Some(look) = &draft.look else {
            self.commit_those_alone(&draft.served);
            return Verdict {
                refused: self.refused(draft),
                ..Verdict::default()
            };
        };
        let mut verdict = Verdict::default();
        let snapshot = &draft.served.snapshot;
        let serves = [
            !snapshot.listeners.is_empty(),
            !snapshot.services.is_empty(),
        ];
        let served = std::mem::replace(&mut self.serves, serves);
        let mut is_more_aside = false;
        let used = self.view(&draft.left_out).used;
        for (key, entry) in &mut self.entries {
            let is_faulty = draft.faults.contains_key(key);
            // What nobody refers to was not seen beside the others.
            let is_seen = key.0.is_wildcard() || used.contains(key);
            let is_left_out =
                !is_seen || draft.left_out.contains(key) || draft.warming.contains(key);
            match entry.next.take() {
                Some(Next::Put(resource)) if is_left_out => {
                    is_more_aside |= is_faulty && !entry.is_aside;
                    entry.is_aside |= is_faulty;
                    entry.next = Some(Next::Put(resource));
                }
                Some(Next::Put(resource)) => {
                    if std::mem::take(&mut entry.is_aside) {
                        verdict.revived.push(key.clone());
                    }
                    entry.good = Some(resource);
                    entry.is_absent = false;
                    self.unkept.insert(key.clone());
                }
                // Its server is told that it stays; it goes when something else is there.
                Some(Next::Removed) if is_faulty => {
                    entry.is_absent = false;
                    is_more_aside |= !entry.is_aside;
                    entry.is_aside = true;
                    entry.next = Some(Next::Removed);
                }
                Some(Next::Removed) if draft.left_out.contains(key) || used.contains(key) => {
                    entry.next = Some(Next::Removed);
                }
                Some(Next::Removed) => {
                    self.unkept.insert(key.clone());
                    entry.good = None;
                    entry.is_absent = true;
                    if std::mem::take(&mut entry.is_aside) {
                        verdict.gone.push(key.clone());
                    }
                }
                None => {}
            }
        }
        verdict.refused = self.refused(draft);
        self.forget();
        let is_lasting = look.is_of_all
            && match look.by {
                By::Blame => true,
                By::Aside => !is_more_aside,
                By::New => false,
            }
            && (!look.is_guarded || serves == served);
        let held = if is_lasting {
            self.held(draft, &look.blamed)
        } else {
            None
        };
        self.look_at_all(Some(draft.served.clone()), held);
        verdict
    }

    /// Nothing of an update serves, and why.
    pub(crate) fn refuse(&mut self, keys: impl IntoIterator<Item = Key>, why: &str) -> Verdict {
        let mut verdict = Verdict::default();
        for key in keys {
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.next = None;
            }
            verdict.refused.extend([self.refusal(&key, why)]);
        }
        self.forget();
        let served = self.alone.served().cloned();
        let is_all_good = self.entries.values().all(|entry| entry.next.is_none());
        self.look_at_all(served, is_all_good.then(Held::default));
        verdict
    }

    fn refused(&self, draft: &Draft) -> BTreeMap<Key, Refusal> {
        let faults = draft.faults.iter();
        faults.map(|(key, why)| self.refusal(key, why)).collect()
    }

    fn refusal(&self, key: &Key, why: &str) -> (Key, Refusal) {
        let good = self.entries.get(key).and_then(|entry| entry.good.clone());
        let why = why.to_owned();
        (key.clone(), Refusal { why, good })
    }

    /// Forgets that there is none of what nobody refers to.
    fn forget(&mut self) {
        let is_nothing = |entry: &Entry| entry.good.is_none() && entry.next.is_none();
        let nothing = self.entries.iter().filter(|(_, entry)| is_nothing(entry));
        let mut nothing: BTreeSet<Key> = nothing.map(|(key, _)| key.clone()).collect();
        if !nothing.is_empty() {
            for entry in self.entries.values() {
                let next = entry.next.as_ref().and_then(Next::resource);
                for to in (entry.good.iter().chain(next)).flat_map(|one| one.references.iter()) {
                    nothing.remove(to);
                }
            }
        }
        for key in &nothing {
            self.entries.remove(key);
        }
        self.loose += nothing.len();
        if self.loose >= LOOSE_MIN && self.loose > self.entries.len() / 2 {
            self.entries = std::mem::take(&mut self.entries).into_iter().collect();
            self.loose = 0;
        }
    }

    fn is_put(&self, key: &Key) -> bool {
        let next = self.entries.get(key).and_then(|entry| entry.next.as_ref());
        matches!(next, Some(Next::Put(_)))
    }

    const fn would_empty(&self, [listens, serves]: [bool; 2]) -> bool {
        let [listened, served] = self.serves;
        matches!(self.on_empty, OnEmpty::Keep) && ((listened && !listens) || (served && !serves))
    }

    /// Those that go, but for these.
    fn removed(&self, left_out: &BTreeSet<Key>) -> Vec<Key> {
        (self.entries.iter())
            .filter(|(key, entry)| entry.next == Some(Next::Removed) && !left_out.contains(*key))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// Leaves out what is to blame, and says by what that is; nothing where there is none.
    fn leave_out(
        &self,
        blamed: &[Blamed],
        is_last: bool,
        is_waiting: bool,
        (left_out, faults): (&mut BTreeSet<Key>, &mut BTreeMap<Key, String>),
    ) -> Option<By> {
        let before = left_out.len();
        for Blamed { kind, name, why } in blamed {
            let key = (*kind, Name::from(name.as_str()));
            // Endpoints are read with their cluster.
            let beside = self.entries.get(&key).into_iter().flat_map(|entry| {
                let next = entry.next.as_ref().and_then(Next::resource);
                let all = next.into_iter().chain(&entry.good);
                all.flat_map(|one| one.references.iter().cloned())
            });
            let endpoints = beside.filter(|(kind, _)| *kind == Kind::Endpoints);
            for key in endpoints.chain([key.clone()]) {
                if self.is_put(&key) && left_out.insert(key.clone()) && !is_waiting {
                    faults.insert(key, why.clone());
                }
            }
        }
        if left_out.len() > before && !is_last {
            return Some(By::Blame);
        }
        // Nothing new is at fault: something is missed that is to go.
        let removed = self.removed(left_out);
        let is_missed = !removed.is_empty();
        left_out.extend(removed);
        if is_missed && !is_last {
            return Some(By::Blame);
        }
        let (kind, name, why) = (blamed.first()).map_or(("", "", ""), |one| {
            (one.kind.as_str(), &*one.name, &*one.why)
        });
        // First what did not fit before, then what is of the same kind of thing, then all that is new.
        let is_of_clusters = |kind| matches!(kind, Kind::Cluster | Kind::Endpoints);
        let is_alike =
            |kind| (blamed.iter()).any(|one| is_of_clusters(one.kind) == is_of_clusters(kind));
        let is_suspect = |nth: usize, (kind, _): &Key, entry: &Entry| match nth {
            0 => entry.is_aside,
            1 => is_alike(*kind),
            _ => true,
        };
        for nth in if is_last { 2..3 } else { 0..3 } {
            for (key, entry) in &self.entries {
                let is_new = entry.next.is_some() && is_suspect(nth, key, entry);
                if is_new && left_out.insert(key.clone()) && !is_waiting {
                    let why = format!("beside it {kind} `{name}` is not right: {why}");
                    faults.insert(key.clone(), why);
                }
            }
            if left_out.len() > before {
                return Some(if nth == 0 { By::Aside } else { By::New });
            }
        }
        None
    }

    /// What a name stands for, if these are left out.
    fn found(&self, key: &Key, left_out: &BTreeSet<Key>) -> Found<'_> {
        let Some(entry) = self.entries.get(key) else {
            return Found::Unknown;
        };
        if let Some(Next::Put(resource)) = &entry.next
            && !left_out.contains(key)
        {
            return Found::Resource(resource);
        }
        match (&entry.good, entry.is_absent) {
            (Some(good), _) => Found::Resource(good),
            (None, true) => Found::Absent,
            (None, false) => Found::Unknown,
        }
    }

    /// What serves of a kind of which all serve.
    fn of_kind<'a>(
        &'a self,
        kind: Kind,
        left_out: &BTreeSet<Key>,
        warming: &mut BTreeSet<Key>,
    ) -> Vec<(&'a Key, &'a Resource)> {
        let mut all = Vec::new();
        for (key, entry) in &self.entries {
            if key.0 != kind {
                continue;
            }
            let is_out = left_out.contains(key);
            let mut chosen = entry.good.as_ref();
            match &entry.next {
                Some(Next::Put(resource)) if !is_out => {
                    let mut references = resource.references.iter();
                    let waits =
                        references.any(|to| matches!(self.found(to, left_out), Found::Unknown));
                    if waits {
                        warming.insert(key.clone());
                    } else {
                        chosen = Some(resource);
                    }
                }
                Some(Next::Removed) if !is_out => chosen = None,
                Some(Next::Put(_) | Next::Removed) | None => {}
            }
            all.extend(chosen.map(|chosen| (key, chosen)));
        }
        all
    }

    fn view(&self, left_out: &BTreeSet<Key>) -> View<'_> {
        let mut warming = BTreeSet::new();
        let mut used = BTreeSet::new();
        let clusters = self.of_kind(Kind::Cluster, left_out, &mut warming);
        let listeners = self.of_kind(Kind::Listener, left_out, &mut warming);
        let mut of = [HashMap::new(), HashMap::new()];
        for (_, resource) in clusters.iter().chain(&listeners) {
            for to in resource.references.iter() {
                let [endpoints, routes] = &mut of;
                let of = if to.0 == Kind::Endpoints {
                    endpoints
                } else {
                    routes
                };
                let known = self.entries.get_key_value(to);
                if let (Some(((_, name), _)), Found::Resource(found)) =
                    (known, self.found(to, left_out))
                {
                    of.insert(&**name, &*found.body);
                    used.insert(to.clone());
                }
            }
        }
        let [endpoints, routes] = of;
        let mut routes: Vec<(&str, &Body)> = routes.into_iter().collect();
        routes.sort_unstable_by_key(|(name, _)| *name);
        let absent = (listeners.iter())
            .flat_map(|(_, resource)| resource.references.iter())
            .filter(|to| !used.contains(*to))
            .map(|(_, name)| &**name);
        let absent: BTreeSet<&str> = absent.collect();
        let is_to_come = |to: &Key| {
            let entry = self.entries.get(to);
            entry.is_none_or(|entry| entry.next.is_none() && !entry.is_wrong)
                && matches!(self.found(to, left_out), Found::Unknown)
        };
        let next = |key: &Key| self.entries.get(key)?.next.as_ref()?.resource();
        let is_waiting = (warming.iter().filter_map(next))
            .flat_map(|resource| resource.references.iter())
            .any(is_to_come);
        View {
            is_waiting,
            packed: Packed {
                clusters: clusters
                    .iter()
                    .map(|(key, one)| (&*key.1, &*one.body))
                    .collect(),
                endpoints,
                routes,
                empty_routes: absent.into_iter().collect(),
                listeners: listeners
                    .iter()
                    .map(|(key, one)| (&*key.1, &*one.body))
                    .collect(),
            },
            warming,
            used,
        }
    }
}

impl Next {
    const fn resource(&self) -> Option<&Resource> {
        match self {
            Self::Put(resource) => Some(resource),
            Self::Removed => None,
        }
    }
}

#[cfg(test)]
mod tests;
