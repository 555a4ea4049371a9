//! What a control plane gave, as a file: it serves where none answers at a start (P43).
//!
//! ```text
//! "zeugma resources 1\n" | FNV-1a of the rest | when | (kind, name, version, body) ...
//! ```
//!
//! The bodies are as they came: another version of this program reads them again.

use std::sync::Arc;

use super::holdings::Key;
use crate::fnv::Fnv;
use crate::pb::Any;
use crate::session::Kind;
use crate::session::client::{Name, Resource, references};
use crate::state::LastGoodError;
use crate::state::codec::{Corrupt, Reader, Writer};

const MAGIC: &[u8] = b"zeugma resources 1\n";

/// Resources that served, and when they came.
#[derive(Debug, Clone)]
pub struct Kept {
    at: u64,
    resources: Vec<(Kind, Name, Arc<str>, Arc<Any>)>,
}

impl Kept {
    pub(super) fn of<'a>(good: impl Iterator<Item = (&'a Key, &'a Resource)>, at: u64) -> Self {
        let of = |((kind, name), one): (&Key, &Resource)| {
            (
                *kind,
                Arc::clone(name),
                Arc::clone(&one.version),
                Arc::clone(&one.body),
            )
        };
        Self {
            at,
            resources: good.map(of).collect(),
        }
    }

    /// When they came, in seconds since 1970.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// What a file is to hold.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut to = Writer::default();
        to.number(self.at);
        to.number(self.resources.len() as u64);
        for (kind, name, version, body) in &self.resources {
            to.byte(code(*kind));
            to.text(name);
            to.text(version);
            to.number(body.value.len() as u64);
            to.raw(&body.value);
        }
        let body = to.into_bytes();
        let mut bytes = Vec::with_capacity(MAGIC.len() + size_of::<u128>() + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&Fnv::of(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }

    /// Takes what a file holds.
    ///
    /// # Errors
    /// [`LastGoodError::Damaged`], or of another version's form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LastGoodError> {
        let damaged = LastGoodError::Damaged;
        let rest = (bytes.strip_prefix(MAGIC)).ok_or_else(|| damaged("it holds no resources"))?;
        let (sum, body) = (rest.split_first_chunk()).ok_or_else(|| damaged("it ends too soon"))?;
        if Fnv::of(body) != u128::from_le_bytes(*sum) {
            return Err(damaged("its checksum is wrong"));
        }
        let mut from = Reader::new(body);
        let at = from.number()?;
        let mut resources = Vec::new();
        for _ in 0..from.number()? {
            let kind = kind(from.byte()?).ok_or(Corrupt("a kind that is not known"))?;
            let (name, version) = (from.text()?, from.text()?);
            let len = usize::try_from(from.number()?).unwrap_or(usize::MAX);
            let body = Any {
                type_url: kind.type_url(),
                value: from.bytes(len)?.to_vec(),
            };
            resources.push((kind, name, version, Arc::new(body)));
        }
        if !from.is_empty() {
            return Err(damaged("something follows"));
        }
        Ok(Self { at, resources })
    }

    /// What cannot be, and why.
    pub(super) fn unread(&self) -> impl Iterator<Item = (Kind, String, String)> {
        self.resources.iter().filter_map(|(kind, name, _, body)| {
            let why = references(*kind, name, body).err()?;
            Some((*kind, name.to_string(), why))
        })
    }

    /// All that can be decoded.
    pub(super) fn resources(&self) -> impl Iterator<Item = (Key, Resource)> {
        self.resources
            .iter()
            .filter_map(|(kind, name, version, body)| {
                let resource = Resource {
                    version: Arc::clone(version),
                    body: Arc::clone(body),
                    references: references(*kind, name, body).ok()?,
                };
                Some(((*kind, Arc::clone(name)), resource))
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
