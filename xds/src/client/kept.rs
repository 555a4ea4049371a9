//! What a control plane gave, as a file: it serves where none answers at a start (P43).
//!
//! ```text
//! "zeugma resources 2\n" | part: all that there is | part: what changed ... | part: what changed since ...
//!
//! part: length | FNV-1a of the rest | when | (kind, name, version and body, or that there is none) ...
//! ```
//!
//! Who gave it stands first in a part, as a cluster of which there is none: who does not know that finds no such
//! cluster to remove.
//!
//! What changed is added at the end, so that it costs what it is and not all that there is. A part that
//! ends too soon was being written when the process ended: it counts for nothing, and those before it are
//! what was kept. The bodies are as they came: another version of this program reads them again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::holdings::Key;
use crate::body::{Body, Patterns};
use crate::pb::Any;
use crate::session::Kind;
use crate::session::client::{Resource, references};
use crate::state::LastGoodError;
use crate::state::codec::{Corrupt, Reader, Writer};
use crate::sum::Fnv;

const MAGIC: &[u8] = b"zeugma resources 2\n";
/// How the name begins that says who gave a part.
const BY: &str = "\0by ";
/// What stands before the body of a part.
const HEAD_BYTES: usize = size_of::<u64>() + size_of::<u128>();
/// All is written anew once what was added to it is more than this part of it ...
const ADDED_PART: usize = 4;
/// ... and more than that.
const ADDED_BYTES_MIN: usize = 64 << 10;

/// Resources that served, and when they came.
#[derive(Debug, Clone)]
pub struct Kept {
    given: Given,
    resources: BTreeMap<Key, Versioned>,
}

/// When it came, in seconds since 1970, and which server gave it, as HTTP calls that; empty: nobody knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Given {
    pub(super) at: u64,
    pub(super) by: Arc<str>,
    /// Another one gave some of it: no version is kept, for each has its own, and they may look alike (P4).
    pub(super) is_of_several: bool,
}

/// What is to be written to the file.
#[derive(Debug)]
pub enum Keep {
    /// In place of all that is there.
    Whole(Kept),
    /// At its end.
    More(More),
}

/// What changed since something was kept last.
#[derive(Debug, Clone)]
pub struct More {
    given: Given,
    /// Nothing: there is no such resource any more.
    changes: BTreeMap<Key, Option<Versioned>>,
}

/// The version of a resource, and what came in it.
type Versioned = (Arc<str>, Arc<Body>);

/// What was written, as far as who says what is to be can know.
#[derive(Debug, Default)]
pub(super) struct Written {
    whole: Option<usize>,
    added: usize,
}

impl Written {
    /// This is written next; whether it is to be all that there is.
    fn is_to_be_whole(&self, more: usize) -> bool {
        let added = self.added + more;
        self.whole
            .is_none_or(|whole| added > (whole / ADDED_PART).max(ADDED_BYTES_MIN))
    }
}

impl Keep {
    /// What is to be written of what is good, of which these changed since.
    pub(super) fn of<'a>(
        written: &mut Written,
        changed: BTreeSet<Key>,
        good: impl Fn(&Key) -> Option<&'a Resource>,
        all: impl Iterator<Item = (&'a Key, &'a Resource)>,
        given: Given,
    ) -> Self {
        let changes = changed.into_iter().map(|key| {
            let good = good(&key).map(kept);
            (key, good)
        });
        let more = More {
            given,
            changes: changes.collect(),
        };
        let bytes = more.len();
        if written.is_to_be_whole(bytes) {
            let whole = Kept::of(all, more.given);
            *written = Written {
                whole: Some(whole.len()),
                added: 0,
            };
            return Self::Whole(whole);
        }
        written.added += bytes;
        Self::More(more)
    }
}

fn kept(resource: &Resource) -> Versioned {
    let version = resource.version.clone().unwrap_or_default();
    (version, Arc::clone(&resource.body))
}

/// About what a resource takes.
fn len_of((_, name): &Key, resource: Option<&Versioned>) -> usize {
    let resource = resource.map_or(0, |(version, body)| version.len() + body.len());
    name.len() + resource
}

impl More {
    fn len(&self) -> usize {
        let all = self.changes.iter();
        let bytes: usize = all.map(|(key, one)| len_of(key, one.as_ref())).sum();
        HEAD_BYTES + bytes
    }

    /// Takes what changed after this: written as one part, so that no part but the last of a file can be one
    /// that did not reach the disk whole.
    pub fn take(&mut self, later: Self) {
        self.given = later.given;
        self.changes.extend(later.changes);
    }

    /// What is to be added to a file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let changes = self.changes.iter();
        part(&self.given, changes.map(|(key, one)| (key, one.as_ref())))
    }
}

/// A part of a file.
fn part<'a>(
    given: &Given,
    resources: impl ExactSizeIterator<Item = (&'a Key, Option<&'a Versioned>)>,
) -> Vec<u8> {
    let mut to = Writer::sharing();
    to.number(given.at);
    let by = (!given.by.is_empty()).then(|| format!("{BY}{}", given.by));
    to.number((resources.len() + usize::from(by.is_some())) as u64);
    if let Some(by) = by {
        to.byte(code(Kind::Cluster));
        to.text(&by);
        to.byte(0);
    }
    for ((kind, name), resource) in resources {
        to.byte(code(*kind));
        to.text(name);
        to.byte(u8::from(resource.is_some()));
        if let Some((version, body)) = resource {
            to.text(if given.is_of_several { "" } else { version });
            let body = body.to_any();
            to.number(body.value.len() as u64);
            to.raw(&body.value);
        }
    }
    let body = to.into_bytes();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + body.len());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&Fnv::of(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The body of the next part; `None` where it ends too soon.
fn next_part<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, LastGoodError> {
    if rest.iter().all(|byte| *byte == 0) {
        // The file was made longer, and what was to be there did not reach the disk.
        return Ok(None);
    }
    let Some((len, after)) = rest.split_first_chunk() else {
        return Ok(None);
    };
    let Some((sum, after)) = after.split_first_chunk() else {
        return Ok(None);
    };
    let len = usize::try_from(u64::from_le_bytes(*len)).unwrap_or(usize::MAX);
    let Some((body, after)) = after.split_at_checked(len) else {
        return Ok(None);
    };
    if Fnv::of(body) != u128::from_le_bytes(*sum) {
        // Of the last one not all may have reached the disk.
        return if after.is_empty() {
            Ok(None)
        } else {
            Err(LastGoodError::Damaged("its checksum is wrong"))
        };
    }
    *rest = after;
    Ok(Some(body))
}

impl Kept {
    pub(super) fn of<'a>(
        good: impl Iterator<Item = (&'a Key, &'a Resource)>,
        given: Given,
    ) -> Self {
        Self {
            given,
            resources: good.map(|(key, one)| (key.clone(), kept(one))).collect(),
        }
    }

    fn len(&self) -> usize {
        let all = self.resources.iter();
        all.map(|(key, one)| len_of(key, Some(one))).sum()
    }

    pub(super) fn given(&self) -> Given {
        self.given.clone()
    }

    /// When they came, in seconds since 1970.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.given.at
    }

    /// The server that gave them, as HTTP calls it; nothing where a version before did not keep that.
    #[must_use]
    pub fn by(&self) -> Option<&str> {
        (!self.given.by.is_empty()).then_some(&*self.given.by)
    }

    /// What a file is to hold.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let resources = self.resources.iter();
        let part = part(&self.given, resources.map(|(key, one)| (key, Some(one))));
        [MAGIC, &part].concat()
    }

    /// Takes what a file holds.
    ///
    /// # Errors
    /// [`LastGoodError::Damaged`], or of another version's form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LastGoodError> {
        let damaged = LastGoodError::Damaged;
        let mut rest =
            (bytes.strip_prefix(MAGIC)).ok_or_else(|| damaged("it holds no resources"))?;
        let mut kept = Self {
            given: Given::default(),
            resources: BTreeMap::new(),
        };
        let mut patterns = BTreeMap::new();
        let first = next_part(&mut rest)?.ok_or_else(|| damaged("it ends too soon"))?;
        kept.take(first, &mut patterns)?;
        while let Some(part) = next_part(&mut rest)? {
            kept.take(part, &mut patterns)?;
        }
        Ok(kept)
    }

    /// Takes a part, in which each resource is once; packs its bodies by these patterns.
    fn take(
        &mut self,
        part: &[u8],
        patterns: &mut BTreeMap<Kind, Patterns>,
    ) -> Result<(), LastGoodError> {
        let mut came: BTreeMap<Kind, (Vec<_>, Vec<Any>)> = BTreeMap::new();
        let mut from = Reader::new(part);
        self.given = Given {
            at: from.number()?,
            ..Given::default()
        };
        for nth in 0..from.number()? {
            let kind = kind(from.byte()?).ok_or(Corrupt("a kind that is not known"))?;
            let key = (kind, from.text()?);
            if from.byte()? == 0 {
                match key.1.strip_prefix(BY) {
                    Some(by) if nth == 0 => self.given.by = by.into(),
                    Some(_) | None => drop(self.resources.remove(&key)),
                }
                continue;
            }
            let version = from.text()?;
            let len = usize::try_from(from.number()?).unwrap_or(usize::MAX);
            let body = Any {
                type_url: kind.type_url(),
                value: from.bytes(len)?.to_vec(),
            };
            let (named, bodies) = came.entry(kind).or_default();
            named.push((key, version));
            bodies.push(body);
        }
        for (kind, (named, bodies)) in came {
            let bodies = Body::pack(bodies, patterns.entry(kind).or_default());
            let all = named.into_iter().zip(bodies);
            let all = all.map(|((key, version), body)| (key, (version, Arc::new(body))));
            self.resources.extend(all);
        }
        if from.is_empty() {
            Ok(())
        } else {
            Err(LastGoodError::Damaged("something follows"))
        }
    }

    /// What cannot be, and why.
    pub(super) fn unread(&self) -> impl Iterator<Item = (Kind, String, String)> {
        self.resources
            .iter()
            .filter_map(|((kind, name), (_, body))| {
                let why = references(*kind, name, &body.to_any()).err()?;
                Some((*kind, name.to_string(), why))
            })
    }

    /// All that can be decoded.
    pub(super) fn resources(&self) -> impl Iterator<Item = (Key, Resource)> {
        self.resources.iter().filter_map(|(key, (version, body))| {
            let resource = Resource {
                version: Some(Arc::clone(version)),
                body: Arc::clone(body),
                references: references(key.0, &key.1, &body.to_any()).ok()?,
            };
            Some((key.clone(), resource))
        })
    }
}

const fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Cluster => 0,
        Kind::Endpoints => 1,
        Kind::Listener => 2,
        Kind::Routes => 3,
    }
}

fn kind(byte: u8) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| code(*kind) == byte)
}
