//! What a person writes: the doc comments here are the manual.

pub(crate) mod check;
pub(crate) mod defaults;
mod gateway;
mod peer;
mod route;
pub(crate) mod scalar;

use std::path::PathBuf;
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

pub(crate) use defaults::Port;
pub(crate) use gateway::*;
pub(crate) use peer::*;
pub(crate) use route::*;
use scalar::{Admin, FromText as _, Name, Text};

/// The version of the documents this build reads.
pub(crate) const API_VERSION: &str = "zeugma.dev/v1alpha1";
const KINDS: [&str; 3] = ["MeshGateway", "MeshPeer", "MeshRoute"];
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
    /// The namespace of a `MeshRoute`. Default `default`.
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

/// A document that was read, with the way back to its text.
#[derive(Debug)]
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
}

impl<T> Document<T> {
    /// `namespace/name`.
    pub(crate) fn id(&self) -> String {
        [self.namespace.as_str(), "/", &self.name].concat()
    }

    /// The place of the value at `path`.
    pub(crate) fn at(&self, path: &str) -> Place {
        self.source.place_of(self.positions().value(path), path)
    }

    /// The place of the last key of `path`.
    pub(crate) fn at_key(&self, path: &str) -> Place {
        self.source.place_of(self.positions().key(path), path)
    }

    /// Whether `path` is written at all.
    pub(crate) fn is_written(&self, path: &str) -> bool {
        self.positions().has(path)
    }

    /// The line of the value at `path`, for a finding that speaks of a second place.
    pub(crate) fn position(&self, path: &str) -> Position {
        self.position_of(self.positions().value(path).line)
    }

    /// Where its name is written, for the snapshot.
    pub(crate) fn name_position(&self) -> Position {
        self.position_of(self.name_line)
    }

    /// A line within it as a line of its file.
    pub(crate) fn position_of(&self, line: u32) -> Position {
        Position {
            file: Arc::clone(&self.source.file),
            line: line.saturating_add(self.source.lines_before),
        }
    }

    fn positions(&self) -> &Positions {
        self.positions
            .get_or_init(|| yaml::positions(&self.source).unwrap_or_default())
    }

    /// Its text.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The folder that relative paths start from.
    pub(crate) fn folder(&self) -> &std::path::Path {
        &self.source.folder
    }
}

/// Every document that was loaded.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub gateways: Vec<Document<MeshGateway>>,
    pub peers: Vec<Document<MeshPeer>>,
    pub routes: Vec<Document<MeshRoute>>,
    index: defaults::Index,
}

impl Model {
    /// Reads documents; a document that cannot be read is a finding and does not hide the others.
    pub(crate) fn read(sources: Vec<Source>) -> (Self, Findings) {
        let mut model = Self::default();
        let mut findings = Findings::new();
        let read = parallel::map(sources, AnyDocument::read);
        // They are large and many: room that grows would be copied, and twice what they need.
        let routes = (read.iter()).filter(|read| matches!(read, Ok(AnyDocument::Route(_))));
        model.routes.reserve_exact(routes.count());
        for read in read {
            match read {
                Ok(AnyDocument::Gateway(gateway)) => model.gateways.push(*gateway),
                Ok(AnyDocument::Peer(peer)) => model.peers.push(*peer),
                Ok(AnyDocument::Route(route)) => model.routes.push(*route),
                Err(finding) => findings.push(finding),
            }
        }
        model.index();
        (model, findings)
    }
}

/// A document of any kind.
enum AnyDocument {
    Gateway(Box<Document<MeshGateway>>),
    Peer(Box<Document<MeshPeer>>),
    Route(Box<Document<MeshRoute>>),
}

impl AnyDocument {
    fn read(source: Source) -> Result<Self, Finding> {
        // Most documents are routes, and right.
        let source = match yaml::read_plain(&source) {
            Some(RouteDocument { metadata, spec, .. }) => {
                let document = wrap(metadata, spec, source, OnceLock::new());
                return Ok(Self::Route(Box::new(document)));
            }
            None => source,
        };
        let positions = yaml::positions(&source)?;
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
                let document: GatewayDocument = yaml::read(&source, &positions)?;
                let positions = OnceLock::from(positions);
                let document = wrap(document.metadata, document.spec, source, positions);
                Ok(Self::Gateway(Box::new(document)))
            }
            "MeshPeer" => {
                let document: PeerDocument = yaml::read(&source, &positions)?;
                let positions = OnceLock::from(positions);
                let document = wrap(document.metadata, document.spec, source, positions);
                Ok(Self::Peer(Box::new(document)))
            }
            "MeshRoute" => {
                let document: RouteDocument = yaml::read(&source, &positions)?;
                let positions = OnceLock::from(positions);
                let document = wrap(document.metadata, document.spec, source, positions);
                Ok(Self::Route(Box::new(document)))
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
    }
}

/// The JSON schema of one document, for editors.
pub(crate) fn schema() -> Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12());
    let one_of = vec![
        generator.subschema_for::<GatewayDocument>(),
        generator.subschema_for::<PeerDocument>(),
        generator.subschema_for::<RouteDocument>(),
    ];
    let definitions = generator.take_definitions(true);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Zeugma configuration document",
        "oneOf": one_of,
        "$defs": definitions,
    })
}
