//! Configuration: YAML documents become a model, the model compiles for one gateway into xDS v3
//! resources, and those are ingested into a [`Snapshot`].
//!
//! No protobuf type leaves this crate, and it opens no socket.

mod compile;
mod error;
mod files;
mod ingest;
mod meaning;
mod meta;
mod model;
mod net;
mod pb;
mod settings;
mod yaml;

pub use error::{Code, Color, Finding, Findings, Place, Severity};
pub use meaning::{LevelMeaning, ServiceMeaning, meaning};
pub use settings::{AdminAddress, Drain, GatewaySettings, Limits, StateDir, SvidFiles};

use std::path::{Path, PathBuf};

use zeugma_core::locality::Locality;
use zeugma_core::snapshot::Snapshot;

use model::{Document, MeshGateway, Model};

/// What the command line adds to the files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeOptions {
    /// Which `MeshGateway`, where several are loaded.
    pub name: Option<String>,
    /// Where this replica stands, instead of the document's `locality`.
    pub locality: Option<String>,
}

/// What one gateway needs to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The process: files, addresses, limits.
    pub settings: GatewaySettings,
    /// What it carries.
    pub snapshot: Snapshot,
    /// Findings that refuse nothing.
    pub warnings: Findings,
    /// The files and folders to watch.
    pub files: Vec<PathBuf>,
    /// The xDS resources by type and name, for `/config_dump`.
    pub resources: serde_json::Value,
}

/// Reads the YAML file or directory `path` and makes what one gateway needs of it.
///
/// # Errors
/// Everything that is wrong, all at once; a document that cannot be read hides no other.
pub fn load(path: &Path, options: &NodeOptions) -> Result<Loaded, Findings> {
    let (model, mut findings, files) = read(path)?;
    let gateway = match choose(&model, options, path) {
        Ok(gateway) => gateway,
        Err(finding) => {
            // A gateway that could not be read has its own finding already.
            if !findings.has_errors() || options.name.is_some() {
                findings.push(finding);
            }
            findings.sort();
            return Err(findings);
        }
    };
    load_one(&model, gateway, options, findings, files)
}

fn read(path: &Path) -> Result<(Model, Findings, Vec<PathBuf>), Findings> {
    let (sources, files) = files::read(path, files::LIMITS)?;
    let (model, mut findings) = Model::read(sources);
    // A reference to a document that could not be read would be a second finding of one mistake.
    if findings.is_empty() {
        findings.extend(model::check::check(&model));
    }
    Ok((model, findings, files))
}

fn choose<'m>(
    model: &'m Model,
    options: &NodeOptions,
    path: &Path,
) -> Result<&'m Document<MeshGateway>, Finding> {
    let names = || model.gateways.iter().map(|gateway| gateway.name.as_str());
    match (&options.name, model.gateways.as_slice()) {
        (Some(name), gateways) => gateways
            .iter()
            .find(|gateway| gateway.name == *name)
            .ok_or_else(|| {
                Finding::error(
                    Code::UnknownReference,
                    format!("no MeshGateway is called `{name}`"),
                )
                .maybe_help(error::suggest(name, names()))
            }),
        (None, [only]) => Ok(only),
        (None, []) => Err(Finding::error(
            Code::UnknownReference,
            format!("no MeshGateway in {}", path.display()),
        )
        .help("add a document of `kind: MeshGateway`")),
        (None, _) => Err(
            Finding::error(Code::UnknownReference, "there are several MeshGateways").help(format!(
                "say which with `--name`: {}",
                names().collect::<Vec<_>>().join(", ")
            )),
        ),
    }
}

fn locality(gateway: &Document<MeshGateway>, options: &NodeOptions) -> Result<Locality, Finding> {
    match (&options.locality, &gateway.spec.locality) {
        (Some(text), _) => Locality::parse(text).map_err(|error| {
            Finding::error(Code::BadValue, format!("`--locality {text}`: {error}"))
        }),
        (None, Some(written)) => Ok(written.0.clone()),
        (None, None) => Err(Finding::error(Code::MissingField, "`locality` is missing")
            .help("write it here, or give `--locality` to each replica")
            .at(gateway.at_key("spec"))),
    }
}

fn load_one(
    model: &Model,
    gateway: &Document<MeshGateway>,
    options: &NodeOptions,
    mut findings: Findings,
    files: Vec<PathBuf>,
) -> Result<Loaded, Findings> {
    let node = match locality(gateway, options) {
        Ok(locality) => gateway.node(locality),
        Err(finding) => {
            findings.push(finding);
            findings.sort();
            return Err(findings);
        }
    };
    if findings.has_errors() {
        findings.sort();
        return Err(findings);
    }
    let settings = gateway.settings(&node);
    let context = compile::Context {
        model,
        gateway,
        node: &node,
    };
    let resources = compile::compile(context, &mut findings);
    findings.sort();
    match ingest::ingest(&resources, node.clone()) {
        Ok(snapshot) => Ok(Loaded {
            settings,
            snapshot,
            warnings: findings,
            files,
            resources: resources.to_json(),
        }),
        Err(errors) => {
            findings.extend(errors);
            Err(findings)
        }
    }
}

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// Errors and warnings of all gateways.
    pub findings: Findings,
    /// Each gateway that could be made, in the order of the files.
    pub gateways: Vec<Loaded>,
}

/// Does what [`load`] does for every `MeshGateway` found, or for the one of that name.
#[must_use]
pub fn check(path: &Path, options: &NodeOptions) -> Checked {
    let mut checked = Checked {
        findings: Findings::new(),
        gateways: Vec::new(),
    };
    let (model, findings, files) = match read(path) {
        Ok(read) => read,
        Err(findings) => {
            checked.findings = findings;
            return checked;
        }
    };
    let chosen: Vec<&Document<MeshGateway>> = if options.name.is_none() && model.gateways.len() > 1
    {
        model.gateways.iter().collect()
    } else {
        match choose(&model, options, path) {
            Ok(gateway) => vec![gateway],
            Err(finding) => {
                // A gateway that could not be read has its own finding already.
                if !findings.has_errors() {
                    checked.findings.push(finding);
                }
                Vec::new()
            }
        }
    };
    for gateway in chosen {
        match load_one(&model, gateway, options, Findings::new(), files.clone()) {
            Ok(_) if findings.has_errors() => {}
            Ok(loaded) => {
                checked.findings.extend(loaded.warnings.clone());
                checked.gateways.push(loaded);
            }
            // What is wrong with the model makes its compilation wrong as well.
            Err(_) if findings.has_errors() => {}
            Err(errors) => checked.findings.extend(errors),
        }
    }
    checked.findings.extend(findings);
    checked.findings.sort();
    checked
}

/// The JSON schema of the documents, for editors.
#[must_use]
pub fn schema() -> serde_json::Value {
    model::schema()
}
