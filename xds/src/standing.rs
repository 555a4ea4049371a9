//! Each document stands for itself: which text of each serves.
//!
//! ```text
//! good ----------------------------------> it serves, and is the last good
//! cannot be read, or contradicts others -> its last good serves, where there is one
//! not there, all of its file was read ---> deleted
//! not there, its file could not be read -> its last good serves
//! ```
//!
//! A document is known by its kind and name, in whatever file it stands. Of documents that contradict
//! each other the one that changed is at fault. A document that did not change and refers to one that
//! was deleted serves without it, and is told; but what a denial names is not deleted before the denial
//! is. A route that is new or changed waits for the defaults that it would go without.

mod refused;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Code, Finding, Findings, Severity};
use crate::files::{self, Contents, Source};
use crate::model::{
    Again, AnyDocument, Document, DocumentId, Kind, Known, MeshDefaults, MeshGateway, MeshRoute,
    Model, check,
};
use crate::state::Good;
use crate::{NodeOptions, choose, locality, parallel, sum};

pub use refused::{Refused, RefusedDocument, Serves};

/// Times that refusing documents makes others wrong, before all that changed is refused.
const ROUNDS_MAX: usize = 8;

/// Listeners that could not be bound: why a gateway's document is refused though it reads well. One
/// that serves already goes on without them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unbound {
    /// [`Loaded::gateway`](crate::Loaded::gateway) of the configuration that asked for them.
    pub gateway: u128,
    /// Each listener, and why not.
    pub listeners: Vec<(String, String)>,
}

/// Whose configuration it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub path: &'a Path,
    pub whose: Whose<'a>,
    pub unbound: &'a [Unbound],
    /// What served before: what did not change is not read again.
    pub before: Option<&'a Model>,
}

/// Which gateway it is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Whose<'a> {
    /// The one that these choose.
    One(&'a NodeOptions),
    /// Every one that there is: a control plane's.
    All,
}

impl Whose<'_> {
    fn choose<'m>(
        self,
        model: &'m Model,
        path: &Path,
    ) -> Result<Option<&'m Document<MeshGateway>>, Finding> {
        match self {
            Self::One(options) => choose(model, options, path).map(Some),
            Self::All if model.gateways.is_empty() => {
                choose(model, &NodeOptions::default(), path).map(Some)
            }
            Self::All => Ok(None),
        }
    }

    /// Whether it may be the gateway of this name.
    fn may_be(self, name: &str) -> bool {
        match self {
            Self::One(options) => options.name.as_ref().is_none_or(|wanted| wanted == name),
            Self::All => true,
        }
    }
}

/// What serves.
#[derive(Debug)]
pub(crate) struct Standing {
    pub model: Model,
    pub warnings: Findings,
    pub refused: Refused,
    pub good: Good,
}

/// Decides of every document what serves.
///
/// # Errors
/// Where nothing is left that a gateway could be made of.
pub(crate) fn stand(
    contents: Contents,
    good: &Good,
    asked: Asked<'_>,
) -> Result<Standing, Findings> {
    let mut round = Round::begin(contents, good, asked);
    for nth in 0.. {
        let found = round.check(asked);
        let at_fault = round.at_fault(found, nth >= ROUNDS_MAX)?;
        if at_fault.is_empty() && round.denials.is_empty() {
            break;
        }
        round.refuse(at_fault);
        round.revive();
    }
    round.tell_unbound(asked);
    round.end()
}

/// Where a text that is checked comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The files; it did not serve before.
    New,
    /// The files; it served before.
    Same,
    /// What was kept: the one in the files is refused, or cannot be read.
    Kept,
}

#[derive(Debug)]
struct Slot {
    id: DocumentId,
    state: State,
    /// The last good text of what is new.
    before: Option<Source>,
    /// The place of what is said of it in [`Refused::documents`].
    told: Option<usize>,
}

/// Where documents may be that are in no file which could be read.
#[derive(Debug, Default)]
struct Doubted {
    files: BTreeSet<Arc<str>>,
    /// One of them held nothing before: a file that is gone may have been renamed to it.
    has_new_file: bool,
}

impl Doubted {
    fn add(&mut self, file: Arc<str>, serves: Serves) {
        self.has_new_file |= serves == Serves::Nothing;
        self.files.insert(file);
    }
}

/// Defaults that are refused, and nothing of theirs serves.
#[derive(Debug)]
struct Lost {
    name: String,
    /// Of whose routes; `None` where that cannot be read.
    namespace: Option<String>,
    /// They served, with a denial.
    denied: bool,
}

impl Lost {
    /// Whether a route would go without them.
    fn concerns(&self, route: &Document<MeshRoute>) -> bool {
        (self.namespace.as_ref())
            .is_none_or(|namespace| namespace.is_empty() || *namespace == route.namespace)
    }
}

struct Round {
    model: Model,
    slots: BTreeMap<u32, Slot>,
    refused: Refused,
    warnings: Findings,
    /// The last good text of what is refused and serves in no form.
    kept_aside: Vec<(DocumentId, Source)>,
    lost: Vec<Lost>,
    /// The peers that are in no file any more.
    deleted: BTreeMap<DocumentId, Source>,
    /// Those of them that a denial names which serves.
    denials: BTreeMap<DocumentId, Finding>,
    next: u32,
    had_routes: bool,
}

impl Round {
    fn begin(contents: Contents, good: &Good, asked: Asked<'_>) -> Self {
        let mut before: BTreeMap<DocumentId, Source> = good.documents(asked.path);
        let had_routes = before.keys().any(|id| id.kind == Kind::Route);
        let next = u32::try_from(contents.documents.len()).unwrap_or(u32::MAX - 1) + 1;
        let mut this = Self {
            model: Model::default(),
            slots: BTreeMap::new(),
            refused: Refused::default(),
            warnings: Findings::new(),
            kept_aside: Vec::new(),
            lost: Vec::new(),
            deleted: BTreeMap::new(),
            denials: BTreeMap::new(),
            next,
            had_routes,
        };
        let mut documents = Vec::with_capacity(contents.documents.len());
        let mut broken = Vec::new();
        let again = Again::of(asked.before, &contents.documents);
        for read in parallel::map(contents.documents, |source| again.read(source)) {
            match read {
                Ok(document) => documents.push(document),
                Err(one) => broken.push(*one),
            }
        }
        let documents = this.take(documents, &mut before);
        this.model = Model::of(documents);
        let held = |file: &Arc<str>| before.values().any(|source| source.file == *file);
        let emptied = contents.emptied.into_iter().filter(held);
        let emptied = emptied.map(|file| {
            let finding = files::emptied(&file);
            (file, finding)
        });
        let unread: Vec<_> = contents.unread.into_iter().chain(emptied).collect();
        let doubted = this.take_broken(broken, unread, &mut before);
        this.keep_rest(before, &doubted, &contents.watched, asked);
        this
    }

    /// Takes what could be read; of several documents of one name the one that served before.
    fn take(
        &mut self,
        documents: Vec<AnyDocument>,
        before: &mut BTreeMap<DocumentId, Source>,
    ) -> Vec<AnyDocument> {
        let mut best: BTreeMap<DocumentId, (u8, u32)> = BTreeMap::new();
        for document in &documents {
            let (id, source) = (document.id(), document.source());
            let rank = match before.get(&id) {
                Some(good) if good.text == source.text => 2,
                Some(good) if good.file == source.file => 1,
                Some(_) | None => 0,
            };
            let first = best.entry(id).or_insert((rank, source.nth));
            if rank > first.0 {
                *first = (rank, source.nth);
            }
        }
        let mut taken = Vec::with_capacity(documents.len());
        let mut others = Vec::new();
        for mut document in documents {
            let (id, nth) = (document.id(), document.source().nth);
            if best.get(&id).is_none_or(|(_, winner)| *winner != nth) {
                others.push((id, document));
                continue;
            }
            let good = before.remove(&id);
            let is_same = (good.as_ref()).is_some_and(|good| good.text == document.source().text);
            if !is_same {
                document.set_new();
            }
            let state = if is_same { State::Same } else { State::New };
            let slot = Slot {
                id,
                state,
                before: good.filter(|_| !is_same),
                told: None,
            };
            self.slots.insert(nth, slot);
            taken.push(document);
        }
        for (id, document) in others {
            let first = best.get(&id).map(|(_, nth)| *nth);
            let first = (taken.iter()).find(|taken| Some(taken.source().nth) == first);
            let finding = second(&document, first);
            self.tell(id.to_string(), document.source().nth, Serves::Nothing);
            self.refused.findings.push(finding);
        }
        taken
    }

    /// Tells what could not be read, and takes what is known of it; returns the files whose other
    /// documents may be in what could not be read.
    fn take_broken(
        &mut self,
        broken: Vec<(Source, Finding)>,
        unread: Vec<(Arc<str>, Finding)>,
        before: &mut BTreeMap<DocumentId, Source>,
    ) -> Doubted {
        let mut doubted = Doubted::default();
        let mut kept = Vec::new();
        let with_defaults: BTreeSet<Arc<str>> = (before.iter())
            .filter(|(id, _)| id.kind == Kind::Defaults)
            .map(|(_, source)| Arc::clone(&source.file))
            .collect();
        let had_defaults = |source: &Source| with_defaults.contains(&source.file);
        for (source, finding) in broken {
            self.refused.findings.push(finding);
            let is_taken = |id: &DocumentId| self.slots.values().any(|slot| slot.id == *id);
            let id = match DocumentId::of(&source) {
                Known::Read(id) => Some(id),
                // Where the rest is no YAML, what is no part of it may be.
                Known::Guessed(id) => {
                    doubted.files.insert(Arc::clone(&source.file));
                    Some(id)
                }
                Known::Not => None,
            };
            match id {
                Some(id) if !is_taken(&id) => {
                    let told = self.tell(id.to_string(), source.nth, Serves::Nothing);
                    match before.remove(&id) {
                        Some(good) => kept.extend(self.keep(id, good, Some(told))),
                        None if id.kind == Kind::Defaults => self.lose(&id, State::New),
                        None => {}
                    }
                }
                Some(id) => drop(self.tell(id.to_string(), source.nth, Serves::Nothing)),
                None => {
                    let name = format!("{}:{}", source.file, source.lines_before + 1);
                    let serves = serves_in(&source.file, before);
                    if source.text.contains(Kind::Defaults.as_str()) && !had_defaults(&source) {
                        self.lost.push(Lost {
                            name: format!("MeshDefaults at {name}"),
                            namespace: None,
                            denied: false,
                        });
                    }
                    self.tell(name, source.nth, serves);
                    doubted.add(source.file, serves);
                }
            }
        }
        for (file, finding) in unread {
            self.refused.findings.push(finding);
            let serves = serves_in(&file, before);
            self.tell(file.to_string(), 0, serves);
            doubted.add(file, serves);
        }
        self.model.replace(&BTreeSet::new(), kept);
        doubted
    }

    /// Of what is in no file any more: keeps what may be in a file that could not be read, and what
    /// the gateway cannot be without; the rest is deleted.
    fn keep_rest(
        &mut self,
        before: BTreeMap<DocumentId, Source>,
        doubted: &Doubted,
        files: &[PathBuf],
        asked: Asked<'_>,
    ) {
        let there: BTreeSet<&Path> = if doubted.has_new_file {
            files.iter().map(PathBuf::as_path).collect()
        } else {
            BTreeSet::new()
        };
        let is_doubted = |source: &Source| {
            let is_gone = || !there.contains(Path::new(&*source.file));
            doubted.files.contains(&source.file) || (doubted.has_new_file && is_gone())
        };
        let has_routes = !self.model.routes.is_empty()
            || (before.iter()).any(|(id, source)| id.kind == Kind::Route && is_doubted(source));
        // Files that were renamed and cannot be read would look like the end of every route.
        let keeps_all = !doubted.files.is_empty() && self.had_routes && !has_routes;
        let is_own = |id: &DocumentId| id.kind == Kind::Gateway && asked.whose.may_be(&id.name);
        let needs_own = asked.whose.choose(&self.model, asked.path).err();
        let mut kept = Vec::new();
        for (id, source) in before {
            if keeps_all || doubted.files.contains(&source.file) {
                kept.extend(self.keep(id, source, None));
            } else if is_doubted(&source) {
                // Nothing else that is told says so.
                let told = self.tell(id.to_string(), 0, Serves::Nothing);
                kept.extend(self.keep(id, source, Some(told)));
            } else if let Some(finding) = needs_own.as_ref().filter(|_| is_own(&id)) {
                let told = self.tell(id.to_string(), 0, Serves::Nothing);
                self.refused.findings.push(finding.clone());
                kept.extend(self.keep(id, source, Some(told)));
            } else if id.kind == Kind::Peer {
                self.deleted.insert(id, source);
            }
        }
        self.model.replace(&BTreeSet::new(), kept);
    }

    fn lose(&mut self, id: &DocumentId, state: State) {
        let of_it = |one: &&Arc<Document<MeshDefaults>>| {
            one.namespace == id.namespace && one.name == id.name
        };
        let lost = self.model.defaults.iter().find(of_it);
        let denied = state != State::New && lost.is_some_and(|one| one.spec.deny.is_written());
        self.lost.push(Lost {
            name: id.to_string(),
            namespace: Some(id.namespace.clone()),
            denied,
        });
    }

    /// Has the last good text of a document serve, if this program can still read it.
    fn keep(
        &mut self,
        id: DocumentId,
        mut good: Source,
        told: Option<usize>,
    ) -> Option<AnyDocument> {
        good.nth = self.next;
        self.next = self.next.saturating_add(1);
        let nth = good.nth;
        let document = AnyDocument::read(good).ok()?;
        if let Some(told) = told.and_then(|told| self.refused.documents.get_mut(told)) {
            told.serves = Serves::LastGood;
            told.numbers.push(nth);
        }
        let slot = Slot {
            id,
            state: State::Kept,
            before: None,
            told,
        };
        self.slots.insert(nth, slot);
        Some(document)
    }

    fn tell(&mut self, name: String, nth: u32, serves: Serves) -> usize {
        let numbers = if nth == 0 { Vec::new() } else { vec![nth] };
        self.refused.documents.push(RefusedDocument {
            name,
            serves,
            numbers,
        });
        self.refused.documents.len() - 1
    }

    fn check(&self, asked: Asked<'_>) -> Findings {
        let mut found = check::check(&self.model);
        let (own, strangers) = self.strangers(asked);
        for finding in strangers.into_iter().chain(self.without_defaults()) {
            found.push(finding);
        }
        let chosen = own.map_or_else(
            || asked.whose.choose(&self.model, asked.path),
            |own| Ok(Some(own)),
        );
        match (chosen, asked.whose) {
            (Err(finding), _) => drop(found.push(finding)),
            // Each node says where it stands.
            (Ok(None), _) | (Ok(Some(_)), Whose::All) => {}
            (Ok(Some(gateway)), Whose::One(options)) => {
                if let Err(finding) = locality(gateway, options) {
                    found.push(finding);
                }
                if self.is_new(gateway) {
                    for finding in unbound(gateway, asked) {
                        found.push(finding);
                    }
                }
            }
        }
        found
    }

    fn is_new<T>(&self, document: &Document<T>) -> bool {
        let slot = self.slots.get(&document.nth());
        slot.is_some_and(|slot| slot.state == State::New)
    }

    /// Tells the listeners that a gateway which served before goes on without.
    fn tell_unbound(&mut self, asked: Asked<'_>) {
        let Ok(Some(gateway)) = asked.whose.choose(&self.model, asked.path) else {
            return;
        };
        for finding in unbound(gateway, asked) {
            self.tell_rest(finding);
        }
    }

    /// What is wrong with routes for defaults that they would go without.
    fn without_defaults(&self) -> Vec<Finding> {
        // Of a mesh that never was nothing is made without them.
        if self.lost.is_empty() || !self.had_routes {
            return Vec::new();
        }
        let without = |route: &Document<MeshRoute>| {
            let is_new = self.is_new(route);
            let mut lost = self.lost.iter();
            let lost = lost.find(|lost| (is_new || lost.denied) && lost.concerns(route))?;
            let message = format!("it would go without the {}, which is refused", lost.name);
            let finding = Finding::error(Code::Unsafe, message)
                .help("mend that, or remove it")
                .at(route.at("metadata.name"));
            Some(finding)
        };
        let routes = self.model.routes.iter();
        routes.filter_map(|route| without(route)).collect()
    }

    /// Where no name was given and several gateways are there: the one that served before, if one
    /// alone did, and what is wrong with the others.
    fn strangers(&self, asked: Asked<'_>) -> (Option<&Document<MeshGateway>>, Vec<Finding>) {
        let Whose::One(options) = asked.whose else {
            return (None, Vec::new());
        };
        let all = &self.model.gateways;
        let served = |gateway: &&Document<MeshGateway>| {
            (self.slots.get(&gateway.nth()))
                .is_some_and(|slot| slot.state != State::New || slot.before.is_some())
        };
        let mut own = all.iter().filter(served);
        let (Some(own), None) = (own.next(), own.next()) else {
            return (None, Vec::new());
        };
        if options.name.is_some() || all.len() == 1 {
            return (None, Vec::new());
        }
        let others = all.iter().filter(|gateway| gateway.nth() != own.nth());
        let findings = others.map(|other| {
            let message = format!("a second MeshGateway: `{}` serves", own.name);
            let names = format!("{}, {}", own.name, other.name);
            Finding::error(Code::Duplicate, message)
                .help(format!("say which with `--name`: {names}"))
                .at(other.at("metadata.name"))
        });
        (Some(own), findings.collect())
    }

    /// The documents that are at fault for what was found, with their findings; the rest is told.
    fn at_fault(
        &mut self,
        found: Findings,
        is_last: bool,
    ) -> Result<BTreeMap<u32, Vec<Finding>>, Findings> {
        let mut at_fault: BTreeMap<u32, Vec<Finding>> = BTreeMap::new();
        let mut rest = Vec::new();
        let mut denials = BTreeMap::new();
        self.warnings = Findings::new();
        for finding in &found {
            if finding.severity == Severity::Warning {
                self.warnings.push(finding.clone());
                continue;
            }
            let document = finding.document();
            let is_new =
                |nth: &u32| (self.slots.get(nth)).is_some_and(|slot| slot.state == State::New);
            let slot = self.slots.get(&document);
            let faulty: Vec<u32> = match slot.map(|slot| slot.state) {
                // Of no document: nothing can be made without what it asks for.
                None => {
                    let mut findings = std::mem::take(&mut self.refused.findings);
                    findings.push(finding.clone());
                    findings.sort();
                    return Err(findings);
                }
                Some(State::New) if self.would_end_all(document, finding) => Vec::new(),
                Some(State::New) => vec![document],
                // One that is refused does not hold back others for what it can serve without.
                Some(State::Kept) if is_dangling(finding) => Vec::new(),
                // Neither has changed what serves: what is new beside it has.
                Some(State::Same | State::Kept) => {
                    finding.also.iter().copied().filter(is_new).collect()
                }
            };
            if slot.is_some_and(|slot| slot.state != State::New)
                && let Some(id) = self.deleted_for(finding)
            {
                denials.entry(id).or_insert_with(|| finding.clone());
                continue;
            }
            if faulty.is_empty() && is_dangling(finding) {
                rest.push(finding.clone());
            } else if faulty.is_empty() {
                at_fault.entry(document).or_default().push(finding.clone());
            }
            for nth in faulty {
                at_fault.entry(nth).or_default().push(finding.clone());
            }
        }
        self.denials = denials;
        if at_fault.is_empty() && self.denials.is_empty() {
            for finding in rest {
                self.tell_rest(finding);
            }
        } else if is_last {
            let new = self
                .slots
                .iter()
                .filter(|(_, slot)| slot.state == State::New);
            for (nth, _) in new {
                at_fault.entry(*nth).or_default();
            }
        }
        Ok(at_fault)
    }

    /// Whether a gateway that never was good would go for a reference that leads nowhere.
    fn would_end_all(&self, document: u32, finding: &Finding) -> bool {
        let slot = self.slots.get(&document);
        is_dangling(finding)
            && slot.is_some_and(|slot| slot.id.kind == Kind::Gateway && slot.before.is_none())
    }

    fn tell_rest(&mut self, finding: Finding) {
        let nth = finding.document();
        self.refused.findings.push(finding);
        let Some((name, told)) =
            (self.slots.get(&nth)).map(|slot| (slot.id.to_string(), slot.told))
        else {
            return;
        };
        let told = told.unwrap_or_else(|| self.tell(name, nth, Serves::Rest));
        if let Some(document) = self.refused.documents.get_mut(told) {
            document.serves = Serves::Rest;
        }
        if let Some(slot) = self.slots.get_mut(&nth) {
            slot.told = Some(told);
        }
    }

    /// The peer that was deleted though a denial names it.
    fn deleted_for(&self, finding: &Finding) -> Option<DocumentId> {
        let at = (finding.place.as_ref())
            .filter(|_| finding.code == Code::UnknownReference && !is_dangling(finding))?;
        let name = self.model.source(at.document)?.text_at(&at.path)?;
        let id = DocumentId::of_peer(&name);
        self.deleted.contains_key(&id).then_some(id)
    }

    /// Has peers that were deleted serve again: a denial that names one would deny nobody any more.
    fn revive(&mut self) {
        let mut revived = Vec::new();
        for (id, finding) in std::mem::take(&mut self.denials) {
            let Some(source) = self.deleted.remove(&id) else {
                continue;
            };
            let told = self.tell(id.to_string(), finding.document(), Serves::Nothing);
            self.refused.findings.push(finding);
            revived.extend(self.keep(id, source, Some(told)));
        }
        self.model.replace(&BTreeSet::new(), revived);
    }

    /// Takes documents out; the last good text of each serves, where there is one.
    fn refuse(&mut self, at_fault: BTreeMap<u32, Vec<Finding>>) {
        let mut out = BTreeSet::new();
        let mut instead = Vec::new();
        for (nth, findings) in at_fault {
            out.insert(nth);
            for finding in findings {
                self.refused.findings.push(finding);
            }
            let Some(slot) = self.slots.remove(&nth) else {
                continue;
            };
            let told = match slot.told {
                Some(told) => {
                    if let Some(told) = self.refused.documents.get_mut(told) {
                        told.serves = Serves::Nothing;
                    }
                    told
                }
                None => self.tell(slot.id.to_string(), nth, Serves::Nothing),
            };
            if let Some(before) = slot.before {
                instead.extend(self.keep(slot.id, before, Some(told)));
                continue;
            }
            if slot.id.kind == Kind::Defaults {
                self.lose(&slot.id, slot.state);
            }
            if slot.state != State::New
                && let Some(source) = self.model.source(nth)
            {
                // It may suit the others again.
                self.kept_aside.push((slot.id, source.clone()));
            }
        }
        self.model.replace(&out, instead);
    }

    fn end(self) -> Result<Standing, Findings> {
        let Self {
            model,
            mut refused,
            warnings,
            kept_aside,
            lost,
            had_routes,
            ..
        } = self;
        refused.findings.sort();
        // Of a mesh that never was, a gateway without a single route would only seem to be one; and what
        // routes inherit that is lost may be who must not call them.
        if !had_routes && !refused.is_empty() && (model.routes.is_empty() || !lost.is_empty()) {
            return Err(refused.findings);
        }
        let aside = kept_aside.iter().map(|(id, source)| (id.clone(), source));
        let good = Good::of(model.documents().chain(aside));
        Ok(Standing {
            model,
            warnings,
            refused,
            good,
        })
    }
}

/// What is wrong with a gateway's document for listeners that could not be bound.
fn unbound(gateway: &Document<MeshGateway>, asked: Asked<'_>) -> Vec<Finding> {
    let text = sum::of(gateway.source().text.as_bytes());
    let of_it = asked.unbound.iter().filter(|one| one.gateway == text);
    let finding = |(listener, why): &(String, String)| {
        let path = format!("spec.listeners.{listener}.address");
        Finding::error(Code::Unbound, why.clone())
            .help("choose another address, or end what holds it and send SIGHUP")
            .at(gateway.at(&path))
    };
    of_it.flat_map(|one| &one.listeners).map(finding).collect()
}

/// Whether a document can serve without what it asks for: what is not there is left out of it, and
/// nothing gets in by that. A denial that is left out, in whole or in part, lets somebody in.
fn is_dangling(finding: &Finding) -> bool {
    let is_denial = (finding.place.as_ref()).is_some_and(|at| at.path.starts_with("spec.deny"));
    matches!(finding.code, Code::NoEffect | Code::Unused)
        || (finding.code == Code::UnknownReference && !is_denial)
}

/// What serves of a file that cannot be read, in part or at all.
fn serves_in(file: &Arc<str>, before: &BTreeMap<DocumentId, Source>) -> Serves {
    if before.values().any(|source| source.file == *file) {
        Serves::LastGood
    } else {
        Serves::Nothing
    }
}

fn second(document: &AnyDocument, first: Option<&AnyDocument>) -> Finding {
    let id = document.id();
    let finding =
        Finding::error(Code::Duplicate, format!("a second {id}")).at(document.name_place());
    match first {
        Some(first) => {
            let at = first.name_place();
            finding.help(format!(
                "the first, which serves, is at {}:{}",
                at.file, at.line
            ))
        }
        None => finding,
    }
}
