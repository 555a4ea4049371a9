//! What a gateway keeps to serve the same again without reading its files: the last good
//! configuration, compiled.
//!
//! ```text
//! "zeugma state\n" | FNV-1a of the rest | length | the text of each document | Head | snapshot
//! ```
//!
//! Head and snapshot are of one version of this program alone: another one reads the YAML, and the
//! texts where the YAML is refused. What was read back is checked like anything that comes from
//! outside.

pub(crate) mod codec;
mod good;
mod snapshot;
mod versions;

use std::path::PathBuf;
use std::sync::OnceLock;

use zeugma_core::snapshot::Snapshot;

pub use self::good::Good;
pub(crate) use self::versions::Versions;

use self::codec::{Coded, Corrupt, Read, Reader, Writer, coded};
use crate::compile::ResourceList;
use crate::error::{Finding, Findings};
use crate::files::Source;
use crate::model::Model;
use crate::settings::GatewaySettings;
use crate::standing::{Refused, RefusedDocument};
use crate::sum::{self, Fnv};
use crate::{Loaded, NodeOptions, locality};

const MAGIC: &[u8] = b"zeugma state\n";

/// The largest file that is read: ten thousand routes take 7 MB.
pub const STATE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Why what was kept cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LastGoodError {
    /// It is not a file of ours, or one that was cut off or changed.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
    /// Another version of this program wrote it.
    #[error("another version of zeugma wrote it ({0})")]
    OtherVersion(String),
    /// It was made for another `--name`, `--locality` or `--config`.
    #[error("it was made with other options: {0}")]
    OtherOptions(String),
}

impl From<Corrupt> for LastGoodError {
    fn from(Corrupt(what): Corrupt) -> Self {
        Self::Damaged(what)
    }
}

/// A configuration that was loaded, as bytes; see [`Loaded::last_good`](crate::Loaded).
#[derive(Debug, Clone)]
pub struct LastGood {
    bytes: Vec<u8>,
    /// Set where its checksum is known to be right: what was made here, and what was looked at once.
    is_whole: OnceLock<()>,
}

impl PartialEq for LastGood {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for LastGood {}

/// What stands before the snapshot.
#[derive(Debug)]
struct Head {
    made_by: String,
    name: Option<String>,
    locality: Option<String>,
    path: PathBuf,
    /// Of every file it was made from.
    fingerprint: u128,
    gateway: Source,
    domains: Vec<Source>,
    files: Vec<PathBuf>,
    warnings: Vec<Finding>,
    refused: Vec<RefusedDocument>,
    refused_for: Vec<Finding>,
    resources: ResourceList,
}

coded! {
    Head {
        made_by, name, locality, path, fingerprint, gateway, domains, files, warnings, refused, refused_for,
        resources,
    }
    Source { file, folder, lines_before, nth, text }
    ResourceList { lines }
}

/// What a state is made of beside the snapshot.
pub(crate) struct Made<'a> {
    pub(crate) options: &'a NodeOptions,
    pub(crate) path: PathBuf,
    pub(crate) fingerprint: u128,
    pub(crate) gateway: Source,
    pub(crate) domains: Vec<Source>,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) warnings: &'a Findings,
    pub(crate) refused: Refused,
    pub(crate) good: Good,
    pub(crate) resources: ResourceList,
}

impl LastGood {
    /// Keeps what was made.
    pub(crate) fn new(made: Made<'_>, snapshot: &Snapshot) -> Self {
        let mut to = Writer::sharing();
        let head = Head {
            made_by: made_by(),
            name: made.options.name.clone(),
            locality: made.options.locality.clone(),
            path: made.path,
            fingerprint: made.fingerprint,
            gateway: made.gateway,
            domains: made.domains,
            files: made.files,
            warnings: made.warnings.iter().cloned().collect(),
            refused_for: made.refused.findings.iter().cloned().collect(),
            refused: made.refused.documents,
            resources: made.resources,
        };
        head.write(&mut to);
        snapshot.write(&mut to);
        let rest = to.into_bytes();
        let mut body = Writer::sharing();
        body.number(made.good.as_bytes().len() as u64);
        let mut body = body.into_bytes();
        body.extend_from_slice(made.good.as_bytes());
        body.extend_from_slice(&rest);
        drop(rest);
        let mut bytes = Vec::with_capacity(MAGIC.len() + size_of::<u128>() + body.len());
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&Fnv::of(&body).to_le_bytes());
        bytes.extend_from_slice(&body);
        Self {
            bytes,
            is_whole: OnceLock::from(()),
        }
    }

    /// Takes what a file holds.
    #[must_use]
    pub const fn from_bytes(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            is_whole: OnceLock::new(),
        }
    }

    /// What a file is to hold.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The texts in it, and what follows them: whole, of any version.
    fn parts(&self) -> Result<(&[u8], &[u8]), LastGoodError> {
        let damaged = LastGoodError::Damaged;
        let rest =
            (self.bytes.strip_prefix(MAGIC)).ok_or_else(|| damaged("it is no state file"))?;
        let (sum, body) = (rest.split_first_chunk()).ok_or_else(|| damaged("it ends too soon"))?;
        if self.is_whole.get().is_none() {
            if Fnv::of(body) != u128::from_le_bytes(*sum) {
                return Err(damaged("its checksum is wrong"));
            }
            self.is_whole.get_or_init(|| ());
        }
        let mut from = Reader::new(body);
        let len = usize::try_from(from.number()?).unwrap_or(usize::MAX);
        let texts = from.bytes(len)?;
        Ok((texts, from.rest()))
    }

    /// The last good text of each document; nothing where they are of another version's form.
    ///
    /// # Errors
    /// [`LastGoodError::Damaged`].
    pub fn good(&self) -> Result<Good, LastGoodError> {
        Ok(Good::from_bytes(self.parts()?.0))
    }

    /// What it was made with: whole, of this version, for these options and this path.
    fn open(
        &self,
        path: &std::path::Path,
        options: &NodeOptions,
    ) -> Result<(Head, Reader<'_>), LastGoodError> {
        let (_, body) = self.parts()?;
        let mut from = Reader::new(body);
        // Before all else: another version writes the rest otherwise.
        let by = String::read(&mut Reader::new(body))?;
        if by != made_by() {
            return Err(LastGoodError::OtherVersion(by));
        }
        let head = Head::read(&mut from)?;
        let others = [
            ("--name", &head.name, &options.name),
            ("--locality", &head.locality, &options.locality),
        ];
        for (what, kept, given) in others {
            if kept != given {
                let said =
                    |text: &Option<String>| text.clone().unwrap_or_else(|| "none".to_owned());
                let text = format!("{what} {}, not {}", said(kept), said(given));
                return Err(LastGoodError::OtherOptions(text));
            }
        }
        if head.path != path {
            let text = format!("--config {}, not {}", head.path.display(), path.display());
            return Err(LastGoodError::OtherOptions(text));
        }
        Ok((head, from))
    }

    /// Whether it was made from exactly these sources, by this very program.
    ///
    /// # Errors
    /// As [`LastGoodError`].
    pub(crate) fn fingerprint(
        &self,
        path: &std::path::Path,
        options: &NodeOptions,
    ) -> Result<u128, LastGoodError> {
        self.open(path, options).map(|(head, _)| head.fingerprint)
    }

    /// The configuration again.
    ///
    /// # Errors
    /// As [`LastGoodError`].
    pub fn load(
        self,
        path: &std::path::Path,
        options: &NodeOptions,
    ) -> Result<Loaded, LastGoodError> {
        let (head, mut from) = self.open(path, options)?;
        let snapshot = Snapshot::read(&mut from)?;
        if !from.is_empty() {
            return Err(LastGoodError::Damaged("something follows"));
        }
        snapshot::hold_to_its_promises(&snapshot)?;
        let gateway = sum::of(head.gateway.text.as_bytes());
        let settings = settings(head.gateway, head.domains, options)
            .filter(|settings| *settings.name == *snapshot.node.name)
            .ok_or(LastGoodError::Damaged("its MeshGateway is not one"))?;
        let findings = |list: Vec<Finding>| {
            let mut findings = Findings::new();
            for finding in list {
                findings.push(finding);
            }
            findings
        };
        Ok(Loaded {
            settings,
            snapshot,
            warnings: findings(head.warnings),
            refused: Refused {
                documents: head.refused,
                findings: findings(head.refused_for),
            },
            gateway,
            fingerprint: head.fingerprint,
            good: self.good()?,
            files: head.files,
            resources: head.resources,
            last_good: self,
        })
    }
}

/// The settings that the text of a `MeshGateway` says, and those of trust domains.
fn settings(
    gateway: Source,
    domains: Vec<Source>,
    options: &NodeOptions,
) -> Option<GatewaySettings> {
    let sources = std::iter::once(gateway).chain(domains).collect();
    let (model, findings) = Model::read(sources);
    let [gateway] = model.gateways.as_slice() else {
        return None;
    };
    let node = gateway.node(locality(gateway, options).ok()?);
    findings
        .is_empty()
        .then(|| gateway.settings(&node, &model.domains))
}

/// The same, with what is said alike in many places kept once, and together: what it was made from stood
/// between its parts. `None` where it is not read as it was written.
pub(crate) fn compact(snapshot: &Snapshot) -> Option<Snapshot> {
    let mut to = Writer::sharing();
    snapshot.write(&mut to);
    let bytes = to.into_bytes();
    let mut from = Reader::new(&bytes);
    let compact = Snapshot::read(&mut from).ok()?;
    from.is_empty().then_some(compact)
}

/// The version of this program and of the format: what is written otherwise is another format.
fn made_by() -> String {
    const FORMAT: [&str; 2] = [include_str!("codec.rs"), include_str!("snapshot.rs")];
    let format = FORMAT.map(|text| sum::of(text.as_bytes()));
    let [codec, snapshot] = format;
    format!("{} {:032x}", env!("CARGO_PKG_VERSION"), codec ^ snapshot)
}
