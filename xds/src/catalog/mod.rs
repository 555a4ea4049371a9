//! What one node may be told: its resources by type and name, each encoded once.
//!
//! A resource's bytes are shared by all streams and, where two nodes have the same, by all nodes. Its
//! version is made of its content, so that another server, or the same after a restart, calls the same
//! content by the same version.

mod grpc;
mod index;
mod memo;
mod pack;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::plane::View;
use crate::session::Kind;
use crate::sum::Fnv;

pub(crate) use self::index::Index;
pub(crate) use self::memo::Memo;
pub(crate) use self::pack::{Flavor, catalog};

/// Of content: equal for equal content alone, as far as 64 bits go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version(u64);

impl Version {
    /// Of nothing.
    pub(crate) const NONE: Self = Self(0);

    /// Of this content and more.
    pub(crate) fn with<'a>(self, more: impl Iterator<Item = &'a Arc<Resource>>) -> Self {
        let mut fnv = Fnv::default();
        fnv.add(&self.0.to_le_bytes());
        let mut is_more = false;
        for one in more {
            is_more = true;
            fnv.add(one.name.as_bytes());
            fnv.add(&one.version.0.to_le_bytes());
        }
        if is_more { Self::of(fnv) } else { self }
    }

    /// Whether this is how it is written.
    pub(crate) fn is(self, text: &str) -> bool {
        let bytes = self.0.to_be_bytes();
        let values = bytes.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
        let mut digits = [0; 16];
        for (digit, value) in digits.iter_mut().zip(values) {
            *digit = value + if value < 10 { b'0' } else { b'a' - 10 };
        }
        text.as_bytes() == digits
    }

    fn of(fnv: Fnv) -> Self {
        let hash = fnv.end();
        #[expect(clippy::cast_possible_truncation, reason = "both halves are used")]
        Self(hash as u64 ^ (hash >> 64) as u64)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl std::fmt::Debug for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// A resource as it travels.
#[derive(PartialEq, Eq)]
pub(crate) struct Resource {
    name: Arc<str>,
    version: Version,
    /// An element of `DeltaDiscoveryResponse.resources`, with its key.
    delta: Bytes,
    /// Where in it an element of `DiscoveryResponse.resources` stands: both have number 2, and so has
    /// the resource within its wrapper.
    whole: Range<usize>,
    /// Where in it the message itself stands.
    message: Range<usize>,
    /// Told to those alone who name it.
    is_on_demand: bool,
    /// Whether it is a cluster whose endpoints are a resource of their own, of its name.
    has_endpoints: bool,
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// What is to become of a resource beside its bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Traits {
    pub is_on_demand: bool,
    pub has_endpoints: bool,
}

/// `resources` of both responses, and `Resource.resource`.
const RESOURCES: u32 = 2;

impl Resource {
    pub(crate) fn new(kind: Kind, name: &str, message: &[u8], traits: Traits) -> Self {
        let mut fnv = Fnv::default();
        fnv.add_all(message);
        let version = Version::of(fnv);
        let mut any = Vec::with_capacity(message.len() + 128);
        put(1, kind.type_url().as_bytes(), &mut any);
        put(2, message, &mut any);
        let text = version.to_string();
        let of_any = field_len(any.len());
        let len = field_len(text.len()) + of_any + field_len(name.len());
        let mut delta = Vec::with_capacity(field_len(len));
        encode_key(RESOURCES, WireType::LengthDelimited, &mut delta);
        encode_varint(len as u64, &mut delta);
        put(1, text.as_bytes(), &mut delta);
        let start = delta.len();
        put(RESOURCES, &any, &mut delta);
        let whole = start..delta.len();
        let message = delta.len() - message.len()..delta.len();
        put(3, name.as_bytes(), &mut delta);
        Self {
            name: name.into(),
            version,
            delta: delta.into(),
            whole,
            message,
            is_on_demand: traits.is_on_demand,
            has_endpoints: traits.has_endpoints,
        }
    }

    pub(crate) const fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    pub(crate) const fn is_on_demand(&self) -> bool {
        self.is_on_demand
    }

    pub(crate) const fn has_endpoints(&self) -> bool {
        self.has_endpoints
    }

    /// The message.
    pub(crate) fn message(&self) -> Bytes {
        self.delta.slice(self.message.clone())
    }

    /// An element of `DeltaDiscoveryResponse.resources`.
    pub(crate) fn delta(&self) -> Bytes {
        self.delta.clone()
    }

    /// An element of `DiscoveryResponse.resources`.
    pub(crate) fn whole(&self) -> Bytes {
        self.delta.slice(self.whole.clone())
    }
}

fn put(number: u32, bytes: &[u8], to: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(bytes.len() as u64, to);
    to.extend_from_slice(bytes);
}

/// What bytes of this length take as a field, whose number is below 16.
const fn field_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// What was encoded, as long as anybody has it.
#[derive(Debug, Default)]
pub(crate) struct Store {
    known: BTreeMap<(Kind, Version, Arc<str>), Weak<Resource>>,
    /// What each view was made of last.
    memos: BTreeMap<View, Memo>,
    /// Since the start.
    encoded: u64,
}

impl Store {
    /// The resource of this content: the one that is known, or this one.
    pub(crate) fn put(&mut self, kind: Kind, made: Resource) -> Arc<Resource> {
        let key = (kind, made.version, Arc::clone(&made.name));
        // One hash may stand for two contents: what is told must not.
        match self.known.get(&key).and_then(Weak::upgrade) {
            Some(known) if *known == made => known,
            Some(_) | None => {
                let made = Arc::new(made);
                self.encoded += 1;
                self.known.insert(key, Arc::downgrade(&made));
                made
            }
        }
    }

    /// What a view was made of last; it is given back with [`remember`](Self::remember).
    pub(crate) fn recall(&mut self, view: &View) -> Memo {
        self.memos.remove(view).unwrap_or_default()
    }

    pub(crate) fn remember(&mut self, view: View, memo: Memo) {
        self.memos.insert(view, memo);
    }

    /// Of how many views it has something.
    pub(crate) fn memos(&self) -> usize {
        self.memos.len()
    }

    /// Forgets what nobody has any more, and all that was made of views other than these.
    pub(crate) fn sweep(&mut self, views: &BTreeSet<View>) {
        self.memos.retain(|view, _| views.contains(view));
        self.known.retain(|_, known| known.strong_count() > 0);
    }

    /// How many resources were new when they were put.
    pub(crate) const fn encoded(&self) -> u64 {
        self.encoded
    }

    /// How many resources are in use.
    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }
}

/// The resources of one type, in the order of their names.
pub(crate) struct Shelf {
    list: Vec<Arc<Resource>>,
    /// Of each of them, side by side: a client that comes back has all of them looked at.
    versions: Vec<Version>,
    index: Arc<Index>,
    version: Version,
    /// The last differences that were asked for: a thousand streams ask for the same one.
    differences: Mutex<Vec<(Version, Arc<Difference>)>>,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.list).finish()
    }
}

/// What a change of a shelf is.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    /// New, or of another version.
    pub changed: Vec<Arc<Resource>>,
    /// As they were.
    pub removed: Vec<Arc<Resource>>,
}

/// Differences that are kept.
const DIFFERENCES_MAX: usize = 4;

impl Shelf {
    /// Of these resources; of several of one name the first counts.
    pub(crate) fn new(list: Vec<Arc<Resource>>) -> Self {
        Self::after(list, None)
    }

    /// The same; with the index of `before`, where that has the same names.
    fn after(mut list: Vec<Arc<Resource>>, before: Option<&Self>) -> Self {
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list.dedup_by(|a, b| a.name == b.name);
        list.shrink_to_fit();
        let mut fnv = Fnv::default();
        for one in &list {
            fnv.add(one.name.as_bytes());
            fnv.add(&[0xff, u8::from(one.is_on_demand)]);
            fnv.add(&one.version.0.to_le_bytes());
        }
        let version = if list.is_empty() {
            Version::NONE
        } else {
            Version::of(fnv)
        };
        let names = || list.iter().map(|one| Arc::clone(&one.name)).collect();
        let index = before.map(|before| &before.index);
        let index =
            index.filter(|index| (index.names().iter()).eq(list.iter().map(|one| &one.name)));
        Self {
            versions: list.iter().map(|one| one.version).collect(),
            index: index.map_or_else(|| Arc::new(Index::of(names())), Arc::clone),
            list,
            version,
            differences: Mutex::default(),
        }
    }

    /// Of all of it.
    pub(crate) const fn version(&self) -> Version {
        self.version
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.at(self.index_of(name)?)
    }

    /// The names, which shelves of the same names share.
    pub(crate) const fn index(&self) -> &Arc<Index> {
        &self.index
    }

    /// Where a resource stands.
    pub(crate) fn index_of(&self, name: &str) -> Option<usize> {
        self.index.place(name)
    }

    pub(crate) fn at(&self, at: usize) -> Option<&Arc<Resource>> {
        self.list.get(at)
    }

    pub(crate) fn version_at(&self, at: usize) -> Option<Version> {
        self.versions.get(at).copied()
    }

    pub(crate) const fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.list.iter()
    }

    /// What is other than on `before`.
    pub(crate) fn difference(&self, before: &Self) -> Arc<Difference> {
        let lock = || (self.differences.lock()).unwrap_or_else(PoisonError::into_inner);
        let known = |known: &[(Version, Arc<Difference>)]| {
            let mut known = known.iter();
            known.find_map(|(of, one)| (*of == before.version).then(|| Arc::clone(one)))
        };
        if let Some(known) = known(&lock()) {
            return known;
        }
        let made = Arc::new(self.difference_of(before));
        // All of ten thousand resources is found as fast as it is kept.
        if made.changed.len() + made.removed.len() <= self.list.len() / 2 {
            let mut kept = lock();
            kept.truncate(DIFFERENCES_MAX - 1);
            kept.insert(0, (before.version, Arc::clone(&made)));
        }
        made
    }

    fn difference_of(&self, before: &Self) -> Difference {
        let mut difference = Difference::default();
        let mut old = before.list.iter().peekable();
        for new in &self.list {
            while let Some(gone) = old.next_if(|old| old.name < new.name) {
                difference.removed.push(Arc::clone(gone));
            }
            match old.next_if(|old| old.name == new.name) {
                Some(old) if Arc::ptr_eq(old, new) || old.version == new.version => {}
                Some(_) | None => difference.changed.push(Arc::clone(new)),
            }
        }
        difference.removed.extend(old.cloned());
        difference
    }
}

/// All that one node may be told.
#[derive(Debug, Clone)]
pub(crate) struct Catalog {
    shelves: [Arc<Shelf>; 4],
}

impl Catalog {
    /// Of these resources, by kind; a shelf that is as it was on `before` stays the very same.
    pub(crate) fn new(lists: [Vec<Arc<Resource>>; 4], before: Option<&Self>) -> Self {
        let mut before = before.map(|before| before.shelves.iter());
        let shelves = lists.map(|list| {
            let before = before.as_mut().and_then(Iterator::next);
            let shelf = Shelf::after(list, before.map(AsRef::as_ref));
            match before {
                Some(before) if before.version == shelf.version => Arc::clone(before),
                Some(_) | None => Arc::new(shelf),
            }
        });
        Self { shelves }
    }

    /// The resources of a type.
    pub(crate) const fn shelf(&self, kind: Kind) -> &Arc<Shelf> {
        let [clusters, endpoints, listeners, routes] = &self.shelves;
        match kind {
            Kind::Cluster => clusters,
            Kind::Endpoints => endpoints,
            Kind::Listener => listeners,
            Kind::Routes => routes,
        }
    }

    /// Of all of it.
    pub(crate) fn version(&self) -> Version {
        let mut fnv = Fnv::default();
        for shelf in &self.shelves {
            fnv.add(&shelf.version.0.to_le_bytes());
        }
        Version::of(fnv)
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::discovery::v3::{
        DeltaDiscoveryResponse, DiscoveryResponse, Resource as Wrapped,
    };
    use prost::Message as _;

    use super::*;
    use crate::pb::Any;

    fn put(store: &mut Store, name: &str, content: &str) -> Arc<Resource> {
        let made = Resource::new(Kind::Routes, name, content.as_bytes(), Traits::default());
        store.put(Kind::Routes, made)
    }

    #[test]
    fn one_encoding_is_an_element_of_both_responses() {
        for len in [0, 1, 127, 128, 20_000] {
            let content = "x".repeat(len);
            let made = put(&mut Store::default(), "shop/orders", &content);
            let any = Any {
                type_url: Kind::Routes.type_url().to_owned(),
                value: content.into_bytes(),
            };
            let delta = DeltaDiscoveryResponse {
                resources: vec![Wrapped {
                    name: "shop/orders".to_owned(),
                    version: made.version().to_string(),
                    resource: Some(any.clone()),
                    ..Default::default()
                }],
                ..Default::default()
            };
            assert_eq!(DeltaDiscoveryResponse::decode(made.delta()), Ok(delta));
            let whole = DiscoveryResponse {
                resources: vec![any],
                ..Default::default()
            };
            assert_eq!(DiscoveryResponse::decode(made.whole()), Ok(whole));
            // Both are the same memory.
            assert_eq!(
                made.whole().as_ptr(),
                made.delta().slice(made.whole.start..).as_ptr()
            );
        }
    }

    #[test]
    fn equal_content_is_encoded_once_and_forgotten_with_its_last_user() {
        let mut store = Store::default();
        let first = put(&mut store, "a", "1");
        assert!(Arc::ptr_eq(&first, &put(&mut store, "a", "1")));
        let other = put(&mut store, "a", "2");
        assert!(!Arc::ptr_eq(&first, &other) && first.version() != other.version());
        assert_eq!((store.encoded(), store.len()), (2, 2));
        let of_other_traits = Traits {
            is_on_demand: true,
            has_endpoints: false,
        };
        let made = store.put(
            Kind::Routes,
            Resource::new(Kind::Routes, "a", b"1", of_other_traits),
        );
        assert!(made.is_on_demand() && !first.is_on_demand());
        drop((first, other, made));
        store.sweep(&BTreeSet::new());
        assert_eq!((store.encoded(), store.len()), (3, 0));
    }

    #[test]
    fn a_difference_is_made_once_and_says_what_changed() {
        let mut store = Store::default();
        let mut shelf = |all: &[(&str, &str)]| {
            Shelf::new(
                all.iter()
                    .map(|(name, content)| put(&mut store, name, content))
                    .collect(),
            )
        };
        let old = shelf(&[
            ("a", "1"),
            ("b", "1"),
            ("c", "1"),
            ("e", "1"),
            ("f", "1"),
            ("g", "1"),
        ]);
        let new = shelf(&[
            ("g", "1"),
            ("b", "2"),
            ("c", "1"),
            ("d", "1"),
            ("e", "1"),
            ("f", "1"),
        ]);
        let names = |list: &[Arc<Resource>]| -> Vec<String> {
            list.iter().map(|one| one.name().to_string()).collect()
        };
        let difference = new.difference(&old);
        assert_eq!(names(&difference.changed), ["b", "d"]);
        assert_eq!(names(&difference.removed), ["a"]);
        assert!(Arc::ptr_eq(&difference, &new.difference(&old)));
        let same = shelf(&[
            ("b", "2"),
            ("c", "1"),
            ("d", "1"),
            ("e", "1"),
            ("f", "1"),
            ("g", "1"),
        ]);
        assert_eq!(same.version(), new.version());
        assert!(same.difference(&new).changed.is_empty());
        assert_ne!(new.version(), old.version());
        assert_eq!(shelf(&[]).version(), Version::NONE);
    }

    #[test]
    fn a_shelf_that_is_as_it_was_stays_the_very_same() {
        let mut store = Store::default();
        let mut catalog = |route: &str, before: Option<&Catalog>| {
            let listener = store.put(
                Kind::Listener,
                Resource::new(Kind::Listener, "l", b"1", Traits::default()),
            );
            let route = put(&mut store, "r", route);
            let lists = [Vec::new(), Vec::new(), vec![listener], vec![route]];
            Catalog::new(lists, before)
        };
        let old = catalog("1", None);
        let new = catalog("2", Some(&old));
        let is_same = |kind| Arc::ptr_eq(old.shelf(kind), new.shelf(kind));
        assert!(is_same(Kind::Listener) && is_same(Kind::Cluster) && !is_same(Kind::Routes));
        assert_ne!(old.version(), new.version());
    }
}
