//! Configuration: YAML documents become a model, the model compiles for one gateway into xDS v3
//! resources, and those are ingested into a [`Snapshot`].
//!
//! No protobuf type leaves this crate, and it opens no socket: the [`Server`] is given connections.

mod body;
mod bundle_url;
mod canonical;
mod catalog;
pub mod client;
mod compile;
mod control_address;
mod diff;
mod envoy;
mod error;
mod files;
mod format;
mod handover;
mod ingest;
mod meaning;
mod meta;
mod model;
mod names;
mod net;
mod packed;
mod parallel;
mod pb;
mod plane;
mod reference;
mod resource_diff;
pub mod secrets;
mod server;
mod session;
mod settings;
mod standing;
mod state;
mod sum;
mod text;
mod workload_address;
mod yaml;

pub use bundle_url::BundleUrl;
pub use compile::ResourceList;
pub use control_address::ControlAddress;
pub use diff::{Change, Difference, FieldDifference, diff};
pub use envoy::{BOOTSTRAP as ENVOY_BOOTSTRAP, EnvoyFile};
pub use error::{Code, Color, Finding, Findings, Place, Severity, suggest};
pub use files::FileLook;
pub use format::{FormatError, format, yaml_files};
pub use meaning::{LevelMeaning, MatchMeaning, ServiceMeaning, meaning};
pub use plane::Plane;
pub use resource_diff::{ResourceDifference, resource_diff};
pub use server::{Admission, Caller, Seldom, Server, ServerLimits, Visitor};
pub use session::Kind;
pub use settings::{
    AccessLogFormat, AdminAddress, BundleEndpoint, BundleProfile, ControlPlane, Drain,
    ForeignDomain, GatewaySettings, Limits, StateDir, SvidApi, SvidFiles, SvidSds, SvidSource,
    admin_socket_default,
};
pub use standing::{Refused, RefusedDocument, Serves, Unbound};
pub use state::{Good, LastGood, LastGoodError, STATE_BYTES_MAX};
pub use workload_address::WorkloadAddress;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use zeugma_core::locality::Locality;
use zeugma_core::snapshot::Snapshot;

use files::{Contents, Source};
use model::{Document, MeshGateway, Model};
use standing::{Asked, Standing, Whose};
use sum::Fnv;

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
    /// The documents that are refused while this serves; none where all had to be right.
    pub refused: Refused,
    /// Of the text of its own document.
    pub gateway: u128,
    /// [`Sources::fingerprint`] of what it was made from.
    pub fingerprint: u128,
    /// The last good text of each document.
    pub good: Good,
    /// The files and folders to watch.
    pub files: Vec<PathBuf>,
    /// The xDS resources by type and name, for `/config_dump`.
    pub resources: ResourceList,
    /// The same to be kept, for a start without the files.
    pub last_good: LastGood,
}

/// Reads the YAML file or directory `path` and makes what one gateway needs of it.
///
/// # Errors
/// Everything that is wrong, all at once; a document that cannot be read hides no other.
pub fn load(path: &Path, options: &NodeOptions) -> Result<Loaded, Findings> {
    Sources::read(path)?.load(options)
}

/// The documents of a configuration as text: read, and not understood yet.
#[derive(Debug)]
pub struct Sources {
    path: PathBuf,
    contents: Contents,
}

/// What is done about a document that is wrong.
#[derive(Debug, Clone, Copy)]
enum Wrong<'a> {
    /// Everything is refused.
    RefusesAll,
    /// It alone is refused, and its last good text serves.
    StandsAlone(&'a Good, &'a [Unbound]),
}

impl Sources {
    /// Reads the YAML file or directory `path`.
    ///
    /// # Errors
    /// Where it cannot be told what files there are, or there is more than may be. A file that cannot
    /// be read is a finding of what is made of the rest.
    pub fn read(path: &Path) -> Result<Self, Findings> {
        Ok(Self {
            path: path.to_owned(),
            contents: files::read(path, files::LIMITS)?,
        })
    }

    /// The documents, if every file could be read.
    fn whole(mut self) -> Result<Self, Findings> {
        if self.contents.unread.is_empty() {
            return Ok(self);
        }
        let mut findings = Findings::new();
        for (_, finding) in self.contents.unread.drain(..) {
            findings.push(finding);
        }
        Err(findings)
    }

    /// What each file looks like, for whoever waits until it stays so.
    #[must_use]
    pub fn looks(&self) -> BTreeMap<Arc<str>, FileLook> {
        self.contents.looks()
    }

    /// The files that may have been cut off while they are written: they hold less than `good`.
    #[must_use]
    pub fn cut(&self, good: &Good) -> BTreeSet<Arc<str>> {
        self.contents.cut(good.documents(&self.path).values())
    }

    /// The same without these files, as if they could not be read.
    #[must_use]
    pub fn without(mut self, files: &BTreeSet<Arc<str>>) -> Self {
        self.contents.hold(files);
        self
    }

    /// The name of each gateway that `options` may choose, and where it keeps its state, as far as its
    /// own document says it: the others, and the rest of this one, may be wrong.
    #[must_use]
    pub fn state_dirs(&self, options: &NodeOptions) -> Vec<(String, StateDir)> {
        (self.contents.documents.iter())
            .filter(|source| source.text.contains("MeshGateway"))
            .filter_map(model::state_dir)
            .filter(|(name, _)| options.name.as_ref().is_none_or(|wanted| wanted == name))
            .collect()
    }

    /// Where the admin API of the gateway that `options` choose listens, and the file of its token, as
    /// far as its own document says it; other documents may be wrong.
    #[must_use]
    pub fn admin(&self, options: &NodeOptions) -> Option<(AdminAddress, Option<PathBuf>)> {
        let mut all = (self.contents.documents.iter())
            .filter(|source| source.text.contains("MeshGateway"))
            .filter_map(model::admin)
            .filter(|(name, ..)| options.name.as_ref().is_none_or(|wanted| wanted == name));
        match (all.next(), all.next()) {
            (Some((_, address, token)), None) => Some((address, token)),
            (Some(_), Some(_)) | (None, _) => None,
        }
    }

    /// Whether `last_good` was made of these very documents, by this very program.
    ///
    /// # Errors
    /// Where it cannot be used at all.
    pub fn made(&self, last_good: &LastGood, options: &NodeOptions) -> Result<bool, LastGoodError> {
        Ok(last_good.fingerprint(&self.path, options)? == self.fingerprint())
    }

    /// Makes what one gateway needs of the documents, all of which must be right.
    ///
    /// # Errors
    /// As [`load`].
    pub fn load(self, options: &NodeOptions) -> Result<Loaded, Findings> {
        self.whole()?.make(options, Wrong::RefusesAll)
    }

    /// Makes what one gateway needs of the documents that are right, and of the last good text of
    /// those that are not. `unbound` are listeners that could not be bound.
    ///
    /// # Errors
    /// Where not even the gateway itself is known, or not one route ever was.
    pub fn renew(
        self,
        options: &NodeOptions,
        good: &Good,
        unbound: &[Unbound],
    ) -> Result<Loaded, Findings> {
        self.make(options, Wrong::StandsAlone(good, unbound))
    }

    fn make(self, options: &NodeOptions, wrong: Wrong<'_>) -> Result<Loaded, Findings> {
        let path = self.path.clone();
        // What is allocated on the way is ten times what stays, and between it. It is made on a
        // thread of its own, whose memory goes back with it; only the bytes stay, and are read
        // here.
        let made = thread::scope(|scope| {
            let compile = || self.compile(options, wrong);
            let making = thread::Builder::new().spawn_scoped(scope, compile);
            match making.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(made)) => Ok(made),
                Ok(Err(panic)) => std::panic::resume_unwind(panic),
                Err(error) => Err(error),
            }
        });
        let unmade = |message: String| Finding::error(Code::Unreadable, message);
        let made = made.unwrap_or_else(|error: io::Error| {
            Err(unmade(format!("no thread to read it on: {error}")).into())
        })?;
        // They stand where all the rest was, and would hold its memory back.
        let last_good = made.clone();
        drop(made);
        (last_good.load(&path, options)).map_err(|error| {
            unmade(format!("what was made of it is not read back: {error}")).into()
        })
    }

    fn compile(self, options: &NodeOptions, wrong: Wrong<'_>) -> Result<LastGood, Findings> {
        let fingerprint = self.fingerprint();
        // Who asks for one document after the other is the gateway itself, to which a control plane says
        // the rest.
        let is_gateway = matches!(wrong, Wrong::StandsAlone(..));
        let Self { path, mut contents } = self;
        let files = std::mem::take(&mut contents.watched);
        let standing = match wrong {
            Wrong::RefusesAll => all_right(contents, options, &path)?,
            Wrong::StandsAlone(good, unbound) => {
                let asked = Asked {
                    path: &path,
                    whose: Whose::One(options),
                    unbound,
                    before: None,
                };
                standing::stand(contents, good, asked)?
            }
        };
        let Standing {
            model,
            warnings,
            refused,
            good,
        } = standing;
        let gateway = choose(&model, options, &path)?;
        let source = gateway.source().clone();
        let domains = (model.domains.iter())
            .map(|domain| domain.source().clone())
            .collect();
        let is_controlled = is_gateway && gateway.spec.control_plane.is_some();
        let (_, snapshot, findings, resources) = if is_controlled {
            nothing_yet(&model, gateway, options, warnings)?
        } else {
            load_one(&model, gateway, options, warnings)?
        };
        drop(model);
        let made = state::Made {
            options,
            path,
            fingerprint,
            gateway: source,
            domains,
            files,
            warnings: &findings,
            refused,
            good,
            resources,
        };
        Ok(LastGood::new(made, &snapshot))
    }

    /// Of every document, where it stands, and the program that reads it: equal only for equal
    /// content.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        let mut fnv = Fnv::default();
        if let Ok(program) = std::env::current_exe().and_then(std::fs::metadata) {
            use std::os::unix::fs::MetadataExt as _;
            fnv.add(&program.size().to_le_bytes());
            fnv.add(&program.mtime().to_le_bytes());
            fnv.add(&program.mtime_nsec().to_le_bytes());
        }
        for (file, finding) in &self.contents.unread {
            fnv.add(file.as_bytes());
            fnv.add(&[0xfe]);
            fnv.add(finding.message.as_bytes());
            fnv.add(&[0xff]);
        }
        for source in &self.contents.documents {
            // No path holds this byte, and what follows it is of one length: none of them can stand for two.
            fnv.add(source.file.as_bytes());
            fnv.add(&[0xff]);
            fnv.add(&source.lines_before.to_le_bytes());
            fnv.add_all(source.text.as_bytes());
        }
        fnv.end()
    }
}

/// Everything that was read, if all of it is right.
fn all_right(contents: Contents, options: &NodeOptions, path: &Path) -> Result<Standing, Findings> {
    let (model, mut findings) = understand(contents.documents);
    if let Err(finding) = choose(&model, options, path)
        && (!findings.has_errors() || options.name.is_some())
    {
        // A gateway that could not be read has its own finding already.
        findings.push(finding);
    }
    if findings.has_errors() {
        findings.sort();
        return Err(findings);
    }
    Ok(Standing {
        good: Good::of(model.documents()),
        model,
        warnings: findings,
        refused: Refused::default(),
    })
}

fn understand(documents: Vec<Source>) -> (Model, Findings) {
    let (model, mut findings) = Model::read(documents);
    // A reference to a document that could not be read would be a second finding of one mistake.
    if findings.is_empty() {
        findings.extend(model::check::check(&model));
    }
    (model, findings)
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
                .maybe_help(suggest(name, names()))
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

type One = (GatewaySettings, Snapshot, Findings, ResourceList);

/// A gateway that carries nothing before its control plane has said what.
fn nothing_yet(
    model: &Model,
    gateway: &Document<MeshGateway>,
    options: &NodeOptions,
    findings: Findings,
) -> Result<One, Findings> {
    let node = locality(gateway, options).map(|locality| gateway.node(locality))?;
    let settings = gateway.settings(&node, &model.domains);
    let nothing = ingest::Ingest::new(node).end()?;
    Ok((settings, nothing, findings, ResourceList::default()))
}

fn load_one(
    model: &Model,
    gateway: &Document<MeshGateway>,
    options: &NodeOptions,
    mut findings: Findings,
) -> Result<One, Findings> {
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
    let settings = gateway.settings(&node, &model.domains);
    let context = compile::Context {
        model,
        gateway,
        node: &node,
    };
    let (snapshot, resources) = handover::snapshot(context, node.clone(), &mut findings);
    findings.sort();
    match snapshot {
        Ok(snapshot) => Ok((settings, snapshot, findings, resources)),
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
    pub gateways: Vec<CheckedGateway>,
}

/// A gateway that [`check`] could make.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckedGateway {
    /// The process: files, addresses, limits.
    pub settings: GatewaySettings,
    /// What it carries.
    pub snapshot: Snapshot,
}

/// Does what [`load`] does for every `MeshGateway` found, or for the one of that name.
#[must_use]
pub fn check(path: &Path, options: &NodeOptions) -> Checked {
    let mut checked = Checked {
        findings: Findings::new(),
        gateways: Vec::new(),
    };
    let sources = match Sources::read(path).and_then(Sources::whole) {
        Ok(sources) => sources,
        Err(findings) => {
            checked.findings = findings;
            return checked;
        }
    };
    let (model, findings) = understand(sources.contents.documents);
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
        match load_one(&model, gateway, options, Findings::new()) {
            Ok(_) if findings.has_errors() => {}
            Ok((settings, snapshot, warnings, _)) => {
                checked.findings.extend(warnings);
                checked.gateways.push(CheckedGateway { settings, snapshot });
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

/// Makes the files that an Envoy in the place of one gateway reads, for the folder `folder`, and what
/// there is to warn of.
///
/// # Errors
/// As [`load`]; where the gateway's identity is not in files, or these cannot be read.
pub fn envoy_files(
    path: &Path,
    options: &NodeOptions,
    folder: &Path,
) -> Result<(Vec<EnvoyFile>, Findings), Findings> {
    let sources = Sources::read(path)?.whole()?;
    let Standing {
        model, warnings, ..
    } = all_right(sources.contents, options, path)?;
    let gateway = choose(&model, options, path)?;
    let node = gateway.node(locality(gateway, options)?);
    let settings = gateway.settings(&node, &model.domains);
    let Some(svid) = settings.svid.files() else {
        return Err(Finding::error(
            Code::Unused,
            "Envoy needs a certificate in files, and this gateway's comes from an agent",
        )
        .help("write `svid: { files: ... }`")
        .at(gateway.at_key("spec.svid"))
        .into());
    };
    let mut findings = warnings;
    for (is_written, field) in [
        (svid.crls.is_some(), "crls"),
        (svid.denied.is_some(), "denied"),
    ] {
        if is_written {
            let finding = Finding::error(
                Code::Unused,
                format!("Envoy does not know `{field}`: it lets in whom these refuse"),
            );
            let at = gateway.at_key(&format!("spec.svid.files.{field}"));
            findings.push(finding.warning().at(at));
        }
    }
    let context = compile::Context {
        model: &model,
        gateway,
        node: &node,
    };
    findings.extend(envoy::undenied(context));
    if findings.has_errors() {
        findings.sort();
        return Err(findings);
    }
    let identity = (svid, settings.domains.as_slice());
    let files = envoy::files(context, identity, folder, &mut findings)?;
    findings.sort();
    Ok((files, findings))
}

/// The JSON schema of the documents, for editors.
#[must_use]
pub fn schema() -> serde_json::Value {
    model::schema()
}

/// The manual of the documents, as Markdown.
#[must_use]
pub fn reference() -> String {
    reference::reference()
}
