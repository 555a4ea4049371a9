//! What a person writes: the doc comments here are the manual.

mod again;
pub(crate) mod check;
pub(crate) mod defaults;
mod domain;
mod gateway;
mod inherit;
mod list;
mod peer;
mod route;
pub(crate) mod scalar;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::Deserialize;
use serde_json::{Value, json};
use zeugma_core::names::HostPattern;
use zeugma_core::snapshot::Position;

use crate::error::{Code, Finding, Findings, Place, suggest};
use crate::files::Source;
use crate::parallel;
use crate::settings::{AdminAddress, StateDir};
use crate::yaml::{self, Placed, Positions};

pub(crate) use again::Again;
pub(crate) use defaults::Port;
pub(crate) use domain::{ProfileType, TrustDomainSpec};
pub(crate) use gateway::*;
pub(crate) use inherit::MeshDefaults;
pub(crate) use peer::*;
pub(crate) use route::*;
use scalar::{Admin, FromText as _, Name, Text};

/// The version of the documents this build reads.
pub(crate) const API_VERSION: &str = "zeugma.dev/v1alpha1";
const KINDS: [&str; 5] = [
    "MeshGateway",
    "MeshPeer",
    "MeshRoute",
    "MeshDefaults",
    "TrustDomain",
];
/// The namespace of a document that names none.
const NAMESPACE_DEFAULT: &str = "default";

/// The version of the documents.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
enum ApiVersion {
    #[serde(rename = "zeugma.dev/v1alpha1")]
    V1Alpha1,
}

/// What a document is called.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Metadata {
    /// The name, unique among documents of its kind (and namespace).
    pub name: Placed<Text<Name>>,
    /// The namespace of a `MeshRoute`, default `default`; of `MeshDefaults`, default all.
    pub namespace: Option<Text<Name>>,
}

/// A `MeshGateway` document.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct GatewayDocument {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: GatewayKind,
    /// Its name; `--name` picks a gateway by it.
    metadata: Metadata,
    /// The gateway.
    spec: MeshGateway,
}

#[derive(Debug, Deserialize, JsonSchema)]
enum GatewayKind {
    MeshGateway,
}

/// A `MeshPeer` document.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct PeerDocument {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: PeerKind,
    /// Its name; routes refer to it.
    metadata: Metadata,
    /// The peer.
    spec: MeshPeer,
}

#[derive(Debug, Deserialize, JsonSchema)]
enum PeerKind {
    MeshPeer,
}

/// A `MeshRoute` document.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RouteDocument {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: RouteKind,
    /// Its name and namespace, the same in every cluster.
    metadata: Metadata,
    /// The route.
    spec: MeshRoute,
}

#[derive(Debug, Deserialize, JsonSchema)]
enum RouteKind {
    MeshRoute,
}

/// A `MeshDefaults` document.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DefaultsDocument {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: DefaultsKind,
    /// Its name, and the namespace whose routes it is for.
    metadata: Metadata,
    /// The defaults.
    spec: MeshDefaults,
}

#[derive(Debug, Deserialize, JsonSchema)]
enum DefaultsKind {
    MeshDefaults,
}

/// A `TrustDomain` document.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TrustDomainDocument {
    #[serde(rename = "apiVersion")]
    _api_version: ApiVersion,
    #[serde(rename = "kind")]
    _kind: TrustDomainKind,
    /// The trust domain, such as `acme.example`.
    metadata: Metadata,
    /// Where its bundle comes from.
    spec: TrustDomainSpec,
}

#[derive(Debug, Deserialize, JsonSchema)]
enum TrustDomainKind {
    TrustDomain,
}

/// A document that was read, with the way back to its text.
#[derive(Debug, Clone)]
pub(crate) struct Document<T> {
    /// The name.
    pub name: String,
    /// The namespace; the default one where none is written.
    pub namespace: String,
    /// What it says.
    pub spec: T,
    /// The line of its name, within the document.
    name_line: u32,
    source: Source,
    /// Read when they are asked for: of a document that is right, hardly ever.
    positions: OnceLock<Positions>,
    /// The host of a route that writes none.
    host_default: OnceLock<Option<HostPattern>>,
    /// What it takes from where it writes nothing, nearest first.
    inherited: Vec<Arc<Document<MeshDefaults>>>,
    /// Whether it did not serve before: of two that contradict each other, it is the one at fault.
    is_new: bool,
    /// The folder that files are named from in the snapshot; none where as the operator named them.
    named_from: Option<Arc<Path>>,
}

impl<T> Document<T> {
    /// `namespace/name`.
    pub(crate) fn id(&self) -> String {
        [self.namespace.as_str(), "/", &self.name].concat()
    }

    /// The place of the value at `path`.
    pub(crate) fn at(&self, path: &str) -> Place {
        let (source, positions, path) = self.written_in(path);
        source.place_of(positions.value(&path), &path)
    }

    /// The place of the last key of `path`.
    pub(crate) fn at_key(&self, path: &str) -> Place {
        let (source, positions, path) = self.written_in(path);
        source.place_of(positions.key(&path), &path)
    }

    /// Whether `path` is written at all.
    pub(crate) fn is_written(&self, path: &str) -> bool {
        self.positions().has(path)
    }

    /// The document that writes `path`: itself, or the nearest of those it inherits from; and the
    /// path there.
    fn written_in<'p>(&self, path: &'p str) -> (&Source, &Positions, Cow<'p, str>) {
        let own = (&self.source, self.positions());
        if self.inherited.is_empty() {
            return (own.0, own.1, path.into());
        }
        let from = self.inherited.iter();
        let mut all = std::iter::once(own).chain(from.map(|from| (&from.source, from.positions())));
        let entry = (path.strip_prefix("spec.deny[")).and_then(|rest| rest.split_once(']'));
        let number = entry.and_then(|(nth, rest)| Some((nth.parse::<usize>().ok()?, rest)));
        if let Some((mut nth, rest)) = number {
            // Entries of all of them, one after the other.
            for (source, positions) in all {
                let count = positions.count("spec.deny");
                match nth.checked_sub(count) {
                    Some(left) => nth = left,
                    None => {
                        let path = format!("spec.deny[{nth}]{rest}");
                        return (source, positions, path.into());
                    }
                }
            }
            return (own.0, own.1, path.into());
        }
        let (source, positions) = all
            .find(|(_, positions)| positions.has(path))
            .unwrap_or(own);
        (source, positions, path.into())
    }

    /// The line of the value at `path`, for a finding that speaks of a second place.
    pub(crate) fn position(&self, path: &str) -> Position {
        let place = self.at(path);
        Position {
            file: place.file,
            line: place.line,
        }
    }

    /// Where its name is written, for the snapshot.
    pub(crate) fn name_position(&self) -> Position {
        self.named(self.position_of(self.name_line))
    }

    /// Where a rule is written.
    pub(crate) fn position_of_rule<R>(&self, rule: &Placed<R>) -> Position {
        let from = usize::from(rule.of)
            .checked_sub(1)
            .and_then(|at| self.inherited.get(at));
        self.named(match from {
            Some(from) => from.position_of(rule.line),
            None => self.position_of(rule.line),
        })
    }

    fn named(&self, mut position: Position) -> Position {
        let below = (self.named_from.as_deref())
            .and_then(|folder| Path::new(&*position.file).strip_prefix(folder).ok());
        if let Some(below) = below {
            position.file = below.display().to_string().into();
        }
        position
    }

    /// A line within it as a line of its file.
    fn position_of(&self, line: u32) -> Position {
        Position {
            file: Arc::clone(&self.source.file),
            line: line.saturating_add(self.source.lines_before),
        }
    }

    /// Whether anybody asked where something is written in it, which takes as long as to read it.
    #[cfg(test)]
    pub(crate) fn is_looked_into(&self) -> bool {
        self.positions.get().is_some()
    }

    fn positions(&self) -> &Positions {
        self.positions
            .get_or_init(|| yaml::positions(&self.source).unwrap_or_default())
    }

    /// The numbers of the documents that it takes something from.
    pub(crate) fn inherited(&self) -> impl Iterator<Item = u32> {
        self.inherited.iter().map(|defaults| defaults.nth())
    }

    /// Its text.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Its file and line, to be sorted by.
    fn stands(&self) -> (Arc<str>, u32, u32) {
        let source = &self.source;
        (Arc::clone(&source.file), source.lines_before, source.nth)
    }

    fn known_by(&self, kind: Kind) -> (DocumentId, &Source) {
        let id = DocumentId::new(kind, Some(&self.namespace), &self.name);
        (id, &self.source)
    }

    /// Its number among all that were read.
    pub(crate) const fn nth(&self) -> u32 {
        self.source.nth
    }

    /// The folder that relative paths start from.
    pub(crate) fn folder(&self) -> &Path {
        &self.source.folder
    }
}

/// Every document that was loaded.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub gateways: Vec<Document<MeshGateway>>,
    pub peers: Vec<Document<MeshPeer>>,
    /// Shared with the model before this one, as far as they are the same.
    pub routes: Vec<Arc<Document<MeshRoute>>>,
    pub defaults: Vec<Arc<Document<MeshDefaults>>>,
    pub domains: Vec<Document<TrustDomainSpec>>,
    index: defaults::Index,
}

impl Model {
    /// Reads documents; a document that cannot be read is a finding and does not hide the others.
    pub(crate) fn read(sources: Vec<Source>) -> (Self, Findings) {
        let mut findings = Findings::new();
        let mut documents = Vec::with_capacity(sources.len());
        for read in parallel::map(sources, AnyDocument::read) {
            match read {
                Ok(document) => documents.push(document),
                Err(broken) => drop(findings.push(broken.1)),
            }
        }
        (Self::of(documents), findings)
    }

    /// These documents.
    pub(crate) fn of(documents: Vec<AnyDocument>) -> Self {
        let mut model = Self::default();
        // They are large and many: room that grows would be copied, and twice what they need.
        let routes = documents.iter().filter(|one| one.kind() == Kind::Route);
        model.routes.reserve_exact(routes.count());
        for document in documents {
            model.push(document);
        }
        model.inherit();
        model.index();
        model
    }

    /// Has files named from this folder in what is compiled: two servers of the same documents, each
    /// with a copy elsewhere, say the same.
    pub(crate) fn name_files_from(&mut self, folder: &Path) {
        let folder: Arc<Path> = folder.into();
        for route in &mut self.routes {
            if route.named_from.as_ref() != Some(&folder) {
                Arc::make_mut(route).named_from = Some(Arc::clone(&folder));
            }
        }
    }

    /// All of it serves, and is new no more.
    pub(crate) fn served(&mut self) {
        for route in &mut self.routes {
            if route.is_new {
                Arc::make_mut(route).is_new = false;
            }
        }
    }

    /// Gives routes what they do not write; whoever inherits already is passed over.
    fn inherit(&mut self) {
        let defaults = &self.defaults;
        let of = |namespace: &str| defaults.iter().find(|one| one.namespace == namespace);
        let mesh = of("");
        for route in &mut self.routes {
            let from: Vec<_> = of(&route.namespace).into_iter().chain(mesh).collect();
            if !route.inherited.is_empty() || from.is_empty() {
                continue;
            }
            let route = Arc::make_mut(route);
            let id = route.id();
            for (nth, from) in (1..).zip(&from) {
                let namespace = &route.namespace;
                route.spec.inherit(&from.spec, &id, namespace, nth);
            }
            route.inherited = from.into_iter().cloned().collect();
        }
    }

    /// Reads routes again that inherit from what is there no more, or not from what is new.
    fn disinherit(&mut self) {
        let routes = std::mem::take(&mut self.routes);
        let read = |route: Arc<Document<MeshRoute>>| match AnyDocument::read(route.source.clone()) {
            Ok(AnyDocument::Route(mut again)) => {
                Arc::make_mut(&mut again).is_new = route.is_new;
                again
            }
            // It was read before, so this is never met.
            Ok(
                AnyDocument::Gateway(_)
                | AnyDocument::Peer(_)
                | AnyDocument::Defaults(_)
                | AnyDocument::TrustDomain(_),
            )
            | Err(_) => route,
        };
        self.routes = parallel::map(routes, read);
    }

    fn push(&mut self, document: AnyDocument) {
        match document {
            AnyDocument::Gateway(gateway) => self.gateways.push(*gateway),
            AnyDocument::Peer(peer) => self.peers.push(*peer),
            AnyDocument::Route(route) => self.routes.push(route),
            AnyDocument::Defaults(defaults) => self.defaults.push(Arc::from(defaults)),
            AnyDocument::TrustDomain(domain) => self.domains.push(*domain),
        }
    }

    /// Takes out the documents of these numbers, and puts others in.
    pub(crate) fn replace(&mut self, out: &BTreeSet<u32>, others: Vec<AnyDocument>) {
        let is_sorted = self.routes.is_sorted_by_key(|route| route.stands());
        let stays = out.is_empty() && others.is_empty() && is_sorted;
        self.gateways
            .retain(|gateway| !out.contains(&gateway.nth()));
        self.peers.retain(|peer| !out.contains(&peer.nth()));
        self.routes.retain(|route| !out.contains(&route.nth()));
        self.domains.retain(|domain| !out.contains(&domain.nth()));
        let before = self.defaults.len();
        self.defaults.retain(|one| !out.contains(&one.nth()));
        let has_other_defaults = before != self.defaults.len()
            || (others.iter()).any(|other| other.kind() == Kind::Defaults);
        for document in others {
            self.push(document);
        }
        if has_other_defaults {
            self.disinherit();
        }
        self.inherit();
        // As they would stand in the files: what is refused must not change the order of the rest.
        self.gateways.sort_by_key(Document::stands);
        self.peers.sort_by_key(Document::stands);
        self.routes.sort_by_key(|route| route.stands());
        self.defaults.sort_by_key(|one| one.stands());
        self.domains.sort_by_key(Document::stands);
        if !stays {
            self.index();
        }
    }
}

impl Model {
    /// What each document is known by, and its text.
    pub(crate) fn documents(&self) -> impl Iterator<Item = (DocumentId, &Source)> {
        let gateways = self.gateways.iter().map(|one| one.known_by(Kind::Gateway));
        let peers = self.peers.iter().map(|one| one.known_by(Kind::Peer));
        let routes = self.routes.iter().map(|one| one.known_by(Kind::Route));
        let defaults = (self.defaults.iter()).map(|one| one.known_by(Kind::Defaults));
        let domains = (self.domains.iter()).map(|one| one.known_by(Kind::TrustDomain));
        gateways
            .chain(peers)
            .chain(routes)
            .chain(defaults)
            .chain(domains)
    }

    /// The texts of all documents but routes.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &Source> {
        let gateways = self.gateways.iter().map(Document::source);
        let peers = self.peers.iter().map(Document::source);
        let defaults = self.defaults.iter().map(|one| one.source());
        let domains = self.domains.iter().map(Document::source);
        gateways.chain(peers).chain(defaults).chain(domains)
    }

    /// The text of the document of this number.
    pub(crate) fn source(&self, nth: u32) -> Option<&Source> {
        let routes = self.routes.iter().map(|one| one.source());
        (self.rest().chain(routes)).find(|source| source.nth == nth)
    }
}

/// The kinds of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Gateway,
    Peer,
    Route,
    Defaults,
    TrustDomain,
}

impl Kind {
    /// As it is written.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "MeshGateway",
            Self::Peer => "MeshPeer",
            Self::Route => "MeshRoute",
            Self::Defaults => "MeshDefaults",
            Self::TrustDomain => "TrustDomain",
        }
    }

    /// The kind that is written so.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let all = [
            Self::Gateway,
            Self::Peer,
            Self::Route,
            Self::Defaults,
            Self::TrustDomain,
        ];
        all.into_iter().find(|kind| kind.as_str() == text)
    }

    /// The namespace of a document that says this.
    fn namespace(self, written: Option<&str>) -> &str {
        match self {
            Self::Route => written.unwrap_or(NAMESPACE_DEFAULT),
            Self::Defaults => written.unwrap_or_default(),
            Self::Gateway | Self::Peer | Self::TrustDomain => "",
        }
    }
}

/// What a document is known by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct DocumentId {
    pub kind: Kind,
    /// Empty for what is of no namespace.
    pub namespace: String,
    pub name: String,
}

impl DocumentId {
    fn new(kind: Kind, namespace: Option<&str>, name: &str) -> Self {
        Self {
            kind,
            namespace: kind.namespace(namespace).to_owned(),
            name: name.to_owned(),
        }
    }

    /// What can be said of a text whose other fields may be wrong.
    pub(crate) fn of(source: &Source) -> Known {
        if let Ok(positions) = yaml::positions(source) {
            let kinds = (source.text.lines()).filter(|line| line.starts_with("kind:"));
            // Of two that run into each other nobody can tell which one it is.
            return match Self::written(&positions) {
                Some(id) if kinds.count() <= 1 => Known::Read(id),
                Some(_) | None => Known::Not,
            };
        }
        let head = Source {
            text: without_spec(&source.text),
            ..source.clone()
        };
        let positions = yaml::positions(&head).ok();
        (positions.and_then(|positions| Self::written(&positions)))
            .map_or(Known::Not, Known::Guessed)
    }

    /// What a peer of this name is known by.
    pub(crate) fn of_peer(name: &str) -> Self {
        Self::new(Kind::Peer, None, name)
    }

    fn written(positions: &Positions) -> Option<Self> {
        let kind = Kind::of(positions.top("kind")?)?;
        let name = positions.text("metadata.name")?;
        Some(Self::new(kind, positions.text("metadata.namespace"), name))
    }
}

/// What a document is known by, as far as its text can be read.
#[derive(Debug)]
pub(crate) enum Known {
    /// All of it is YAML.
    Read(DocumentId),
    /// All but its `spec` is.
    Guessed(DocumentId),
    /// Nobody can tell.
    Not,
}

/// A text without the field `spec`, in block style: where nearly all that is written stands, and
/// nearly all that can be wrong.
fn without_spec(text: &str) -> String {
    let mut is_spec = false;
    let mut rest = String::with_capacity(text.len().min(1024));
    for line in text.split_inclusive('\n') {
        if line.starts_with(|c: char| c.is_ascii_alphabetic()) {
            is_spec = line.starts_with("spec:");
        }
        if !is_spec {
            rest.push_str(line);
        }
    }
    rest
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.as_str())?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// A document of any kind.
#[derive(Debug)]
pub(crate) enum AnyDocument {
    Gateway(Box<Document<MeshGateway>>),
    Peer(Box<Document<MeshPeer>>),
    Route(Arc<Document<MeshRoute>>),
    Defaults(Box<Document<MeshDefaults>>),
    TrustDomain(Box<Document<TrustDomainSpec>>),
}

impl AnyDocument {
    const fn kind(&self) -> Kind {
        match self {
            Self::Gateway(_) => Kind::Gateway,
            Self::Peer(_) => Kind::Peer,
            Self::Route(_) => Kind::Route,
            Self::Defaults(_) => Kind::Defaults,
            Self::TrustDomain(_) => Kind::TrustDomain,
        }
    }

    /// What it is known by.
    pub(crate) fn id(&self) -> DocumentId {
        let (namespace, name) = match self {
            Self::Gateway(gateway) => (&gateway.namespace, &gateway.name),
            Self::Peer(peer) => (&peer.namespace, &peer.name),
            Self::Route(route) => (&route.namespace, &route.name),
            Self::Defaults(defaults) => (&defaults.namespace, &defaults.name),
            Self::TrustDomain(domain) => (&domain.namespace, &domain.name),
        };
        DocumentId::new(self.kind(), Some(namespace), name)
    }

    /// Its text.
    pub(crate) fn source(&self) -> &Source {
        match self {
            Self::Gateway(gateway) => &gateway.source,
            Self::Peer(peer) => &peer.source,
            Self::Route(route) => &route.source,
            Self::Defaults(defaults) => &defaults.source,
            Self::TrustDomain(domain) => &domain.source,
        }
    }

    /// The place of its name.
    pub(crate) fn name_place(&self) -> Place {
        let path = "metadata.name";
        match self {
            Self::Gateway(gateway) => gateway.at(path),
            Self::Peer(peer) => peer.at(path),
            Self::Route(route) => route.at(path),
            Self::Defaults(defaults) => defaults.at(path),
            Self::TrustDomain(domain) => domain.at(path),
        }
    }

    /// Says that it did not serve before.
    pub(crate) fn set_new(&mut self) {
        match self {
            Self::Gateway(gateway) => gateway.is_new = true,
            Self::Peer(peer) => peer.is_new = true,
            Self::Route(route) => Arc::make_mut(route).is_new = true,
            Self::Defaults(defaults) => defaults.is_new = true,
            Self::TrustDomain(domain) => domain.is_new = true,
        }
    }

    /// Reads a document; one that cannot be read is given back.
    pub(crate) fn read(source: Source) -> Result<Self, Box<(Source, Finding)>> {
        // Most documents are routes, and right.
        let source = match yaml::read_plain(&source) {
            Some(RouteDocument {
                metadata, mut spec, ..
            }) => {
                spec.shrink_to_fit();
                let document = wrap(metadata, spec, source, OnceLock::new());
                return Ok(Self::Route(Arc::new(document)));
            }
            None => source,
        };
        Self::read_strictly(&source).map_err(|finding| Box::new((source, finding)))
    }

    fn read_strictly(source: &Source) -> Result<Self, Finding> {
        let positions = yaml::positions(source)?;
        let key = |name: &str| source.place_of(positions.key(name), name);
        let value = |name: &str| source.place_of(positions.value(name), name);
        match positions.top("apiVersion") {
            Some(API_VERSION) => {}
            Some(other) => {
                return Err(Finding::error(
                    Code::NotADocument,
                    format!("`{other}` is not a version this build reads"),
                )
                .help(format!("write `apiVersion: {API_VERSION}`"))
                .at(value("apiVersion")));
            }
            None => {
                return Err(
                    Finding::error(Code::MissingField, "`apiVersion` is missing")
                        .help(format!("write `apiVersion: {API_VERSION}`"))
                        .at(key("")),
                );
            }
        }
        let kind = positions.top("kind").unwrap_or_default().to_owned();
        match kind.as_str() {
            "MeshGateway" => {
                let document: GatewayDocument = yaml::read(source, &positions)?;
                let positions = OnceLock::from(positions);
                let document = wrap(document.metadata, document.spec, source.clone(), positions);
                Ok(Self::Gateway(Box::new(document)))
            }
            "MeshPeer" => {
                let document: PeerDocument = yaml::read(source, &positions)?;
                let positions = OnceLock::from(positions);
                let document = wrap(document.metadata, document.spec, source.clone(), positions);
                Ok(Self::Peer(Box::new(document)))
            }
            "MeshRoute" => {
                let document: RouteDocument = yaml::read(source, &positions)?;
                let positions = OnceLock::from(positions);
                let document = wrap(document.metadata, document.spec, source.clone(), positions);
                Ok(Self::Route(Arc::new(document)))
            }
            "MeshDefaults" => {
                let document: DefaultsDocument = yaml::read(source, &positions)?;
                let is_of_all = document.metadata.namespace.is_none();
                let positions = OnceLock::from(positions);
                let mut document =
                    wrap(document.metadata, document.spec, source.clone(), positions);
                if is_of_all {
                    document.namespace.clear();
                }
                Ok(Self::Defaults(Box::new(document)))
            }
            "TrustDomain" => {
                let document: TrustDomainDocument = yaml::read(source, &positions)?;
                let positions = OnceLock::from(positions);
                let document = wrap(document.metadata, document.spec, source.clone(), positions);
                Ok(Self::TrustDomain(Box::new(document)))
            }
            "" => Err(Finding::error(Code::MissingField, "`kind` is missing")
                .help(format!("it is one of {}", KINDS.join(", ")))
                .at(key(""))),
            other => Err(
                Finding::error(Code::NotADocument, format!("unknown kind `{other}`"))
                    .maybe_help(suggest(other, KINDS))
                    .at(value("kind")),
            ),
        }
    }
}

/// The name of the `MeshGateway` in `source`, and where it keeps its state: what can be said of a
/// document whose other fields may be wrong.
pub(crate) fn state_dir(source: &Source) -> Option<(String, StateDir)> {
    let positions = yaml::positions(source).ok()?;
    (positions.top("kind") == Some("MeshGateway")).then_some(())?;
    let name = positions.text("metadata.name")?.to_owned();
    let dir = (positions.text("spec.stateDir")).map_or(StateDir::Default, |written| {
        StateDir::Given(source.folder.join(written))
    });
    Some((name, dir))
}

/// The name of the `MeshGateway` in `source`, where its admin API listens, and the file of its token,
/// as [`state_dir`] reads it.
pub(crate) fn admin(source: &Source) -> Option<(String, AdminAddress, Option<PathBuf>)> {
    let positions = yaml::positions(source).ok()?;
    (positions.top("kind") == Some("MeshGateway")).then_some(())?;
    let name = positions.text("metadata.name")?.to_owned();
    let admin = match positions.text("spec.admin") {
        None => AdminAddress::Default,
        Some(written) => match Admin::from_text(written).ok()? {
            Admin::Unix(path) => AdminAddress::Unix(source.folder.join(path)),
            Admin::Tcp(address) => AdminAddress::Tcp(address),
        },
    };
    let token = (positions.text("spec.adminToken")).map(|written| source.folder.join(written));
    Some((name, admin, token))
}

fn wrap<T>(
    metadata: Metadata,
    spec: T,
    source: Source,
    positions: OnceLock<Positions>,
) -> Document<T> {
    Document {
        name_line: metadata.name.line,
        name: metadata.name.value.0.0,
        namespace: metadata
            .namespace
            .map_or_else(|| NAMESPACE_DEFAULT.to_owned(), |namespace| namespace.0.0),
        spec,
        source,
        positions,
        host_default: OnceLock::new(),
        inherited: Vec::new(),
        is_new: false,
        named_from: None,
    }
}

/// The JSON schema of one document, for editors.
pub(crate) fn schema() -> Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let one_of = vec![
        generator.subschema_for::<GatewayDocument>(),
        generator.subschema_for::<PeerDocument>(),
        generator.subschema_for::<RouteDocument>(),
        generator.subschema_for::<DefaultsDocument>(),
        generator.subschema_for::<TrustDomainDocument>(),
    ];
    let definitions = generator.take_definitions(true);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Zeugma configuration document",
        "oneOf": one_of,
        "$defs": definitions,
    })
}
