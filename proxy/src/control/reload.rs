//! Files that changed are loaded anew; of a document that cannot be used the last good text serves.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::signal::unix::Signal;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use zeugma_core::line::with_causes;
use zeugma_core::snapshot::Snapshot;
use zeugma_xds::{
    Color, Findings, GatewaySettings, Good, LastGood, Loaded, NodeOptions, Refused, ResourceList,
    Sources, Unbound,
};

use super::last_good::Beginning;
use super::rest::{Next, Rest};
use super::systemd;
use crate::federation::Wanted;
use crate::identity::AskedAgent;
use crate::runtime::Shared;
use crate::tls::{Credentials, CredentialsError, DomainBundle, SvidFiles, SvidGiven, SvidSource};
use crate::watch::Watch;

/// Between two tries to bind what a gateway that serves goes on without.
const RETRY: Duration = Duration::from_secs(2);
/// Texts of the gateway's document of which it is known what cannot be bound: the one in the files and
/// its last good one, and as many before.
const UNBOUND_MAX: usize = 4;

/// The files a gateway is made from.
pub(super) struct Files {
    config: PathBuf,
    node: NodeOptions,
    svid: SvidSource,
    /// Those made last: they serve, or the control loop has them on its table.
    made: Arc<Credentials>,
    watch: Watch,
    settings: GatewaySettings,
    /// Those of the files as they were last loaded.
    latest: GatewaySettings,
    /// Of what is applied.
    good: Good,
    /// Of the files as they were last loaded: the same again is not read.
    fingerprint: Option<u128>,
    /// The listeners that could not be bound, of each text of the gateway's document.
    unbound: Vec<Unbound>,
    /// The text of it that serves.
    gateway: Option<u128>,
    /// When to bind what serves without them.
    retry: Option<Instant>,
    /// What was seen of files that are not at rest yet.
    rest: Rest,
    /// A signal asked for what is not at rest yet.
    signalled: bool,
    /// What was last said about files that are refused, so that it is said once.
    said: [Option<String>; 2],
    again: Arc<Notify>,
    reader: Reader,
}

/// The thread that reads configurations: that takes its time, and the control thread goes on
/// meanwhile. It is always the same one, so that what it allocates stands where the one before stood.
struct Reader(std::sync::mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Reader {
    fn new() -> Self {
        let (ask, asked) = std::sync::mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let thread = std::thread::Builder::new().name("config".to_owned());
        let started = thread.spawn(move || {
            while let Ok(task) = asked.recv() {
                // A panic is told by the hook, and by the answer that does not come; the next
                // configuration may be another.
                drop(std::panic::catch_unwind(std::panic::AssertUnwindSafe(task)));
            }
        });
        if let Err(error) = started {
            tracing::error!(code = "ZG0908", %error, "no thread to read configurations on: changes are not seen");
        }
        Self(ask)
    }

    /// Has the thread do this; an error if it has ended.
    async fn ask<T: Send + 'static>(
        &self,
        task: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, oneshot::error::RecvError> {
        let (answer, answered) = oneshot::channel();
        let task = move || {
            // Nobody waits any more where the process ends.
            answer.send(task()).ok();
        };
        // Where it does not run, the answer is dropped with the task.
        self.0.send(Box::new(task)).ok();
        answered.await
    }
}

/// A configuration that was loaded.
pub(crate) type Configured = (Snapshot, ResourceList, Option<LastGood>, Binding);

/// The listeners of a configuration that cannot be bound, and why.
pub(crate) type NotBound = Vec<(String, String)>;

/// What is done where a listener cannot be bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binding {
    /// The configuration is refused.
    All,
    /// It serves without: it is no change of its document.
    WhatCan,
}

/// What a reload brought; `None` is what stays as it is.
#[derive(Debug, Default)]
pub(crate) struct Reloaded {
    pub(crate) config: Option<Configured>,
    /// Told what became of it.
    pub(crate) answer: Option<oneshot::Sender<Result<(), NotBound>>>,
    /// The configuration was loaded, and it is the one that serves.
    pub(crate) is_published: bool,
    /// The one that serves, of other files.
    pub(crate) keep: Option<LastGood>,
    pub(crate) credentials: Option<Arc<Credentials>>,
    /// Fetched once the credentials serve: they verify the endpoints.
    pub(crate) wanted: Option<Wanted>,
    /// Told what still cannot be bound of what serves.
    pub(crate) bind: Option<oneshot::Sender<NotBound>>,
    /// Asked for by a signal: the service manager waits to hear that it is done.
    pub(crate) by_signal: bool,
}

/// What a try to bind brought.
enum Bound {
    News,
    Same,
}

/// Why the files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Change,
    /// An agent gave something: no file changed.
    Given,
    Signal,
    Again,
    /// Those of the configuration were looked at before, or what is said of them is no longer so.
    Look,
}

/// Waits until then; for ever where there is no such time.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Files {
    /// Those of what the gateway starts with.
    pub(super) fn new(
        config: PathBuf,
        node: NodeOptions,
        beginning: &Beginning,
        credentials: &Arc<Credentials>,
    ) -> Self {
        let start = &beginning.loaded;
        // Where the last good ones serve in place of files that are refused, the same again is news.
        let fingerprint = (beginning.findings.is_none()).then_some(start.fingerprint);
        let settings = &start.settings;
        let svid = svid_source(settings);
        let mut watch = Watch::new();
        watch.set(watched(start.files.clone(), &svid));
        let said = refused_in_part(&start.refused);
        let mut files = Self {
            config,
            node,
            svid,
            made: Arc::clone(credentials),
            watch,
            settings: settings.clone(),
            latest: settings.clone(),
            good: start.good.clone(),
            fingerprint,
            unbound: Vec::new(),
            gateway: Some(start.gateway),
            retry: None,
            rest: Rest::default(),
            signalled: false,
            said: [said, None],
            again: Arc::default(),
            reader: Reader::new(),
        };
        files.tell_wrong(credentials.wrong());
        files
    }

    /// Has it look again at what is there, as a SIGHUP does.
    pub(super) fn again(&self) -> Arc<Notify> {
        Arc::clone(&self.again)
    }

    /// Loads whenever a file changed, a SIGHUP comes or [`again`](Self::again) is told, and tells what is
    /// new, for ever.
    pub(super) async fn watch(
        mut self,
        shared: Arc<Shared>,
        tell: mpsc::Sender<Reloaded>,
        mut hangup: Signal,
    ) {
        let again = self.again();
        loop {
            let look = match self.rest.next() {
                Next::Never => None,
                Next::At(at) | Next::ForTheRest(at) => Some(at),
            };
            // All only wait; what changed meanwhile is found by the next look.
            let woken = tokio::select! {
                () = self.watch.changed() => Woken::Change,
                () = shared.federation.changed() => Woken::Change,
                () = shared.agent.changed() => Woken::Given,
                _ = hangup.recv() => Woken::Signal,
                () = again.notified() => Woken::Again,
                () = until(look) => Woken::Look,
                () = until(self.retry) => match self.bind(&tell).await {
                    Some(Bound::News) => Woken::Look,
                    Some(Bound::Same) => continue,
                    None => return,
                },
            };
            if woken == Woken::Signal {
                systemd::reloading();
                self.signalled = true;
            }
            if matches!(woken, Woken::Signal | Woken::Again) {
                // Whoever asks wants everything tried again.
                let serves = self.gateway;
                self.unbound.retain(|one| Some(one.gateway) == serves);
                self.retry = self.retry.map(|_| Instant::now());
                self.fingerprint = None;
            }
            let svid = self.svid.clone();
            let is_given = woken == Woken::Given;
            if !is_given && !Box::pin(self.reload_config(&shared, &tell)).await {
                return;
            }
            // Before its endpoint is asked, and before something older is taken for the newest.
            let domains = self.latest.domains.clone();
            (shared.federation.remember(&shared.settings, &domains)).await;
            if woken == Woken::Signal {
                shared.federation.forget_removed().await;
                shared.agent.ask_anew();
            }
            // After it: the configuration says where they are.
            let had_none = self.made.id().is_none();
            let credentials = if woken == Woken::Look && self.svid == svid {
                None
            } else {
                self.reload_credentials(&shared).await
            };
            let is_done = !matches!(self.rest.next(), Next::At(_));
            let reloaded = Reloaded {
                wanted: Some(Wanted {
                    domains,
                    // Endpoints that only the first SVID's bundles verify were in vain so far.
                    anew: woken == Woken::Signal || (had_none && credentials.is_some()),
                }),
                credentials,
                by_signal: self.signalled && is_done,
                ..Reloaded::default()
            };
            self.signalled &= !is_done;
            if tell.send(reloaded).await.is_err() {
                return;
            }
        }
    }

    /// Binds what serves without; `None` where nobody wants it any more.
    async fn bind(&mut self, tell: &mpsc::Sender<Reloaded>) -> Option<Bound> {
        self.retry = Some(Instant::now() + RETRY);
        let (answer, answered) = oneshot::channel();
        let reloaded = Reloaded {
            bind: Some(answer),
            ..Reloaded::default()
        };
        tell.send(reloaded).await.ok()?;
        let Ok(listeners) = answered.await else {
            return Some(Bound::Same);
        };
        let serves =
            (self.unbound.iter_mut()).find(|unbound| Some(unbound.gateway) == self.gateway);
        let Some(serves) = serves.filter(|unbound| unbound.listeners != listeners) else {
            return Some(Bound::Same);
        };
        serves.listeners = listeners;
        self.unbound.retain(|unbound| !unbound.listeners.is_empty());
        // What is said of them is.
        self.fingerprint = None;
        Some(Bound::News)
    }

    /// Loads the configuration, and says whether anyone still wants it.
    async fn reload_config(&mut self, shared: &Shared, tell: &mpsc::Sender<Reloaded>) -> bool {
        while let Some(loaded) = self.load(shared).await {
            let (is_news, gateway) = (self.is_news(&loaded), loaded.gateway);
            self.fingerprint = Some(loaded.fingerprint);
            // What it carries is not these files' business where a control plane says it, nor before a
            // restart where one is to.
            let is_controlled = [&shared.settings, &loaded.settings]
                .iter()
                .any(|settings| settings.control_plane.is_some());
            let serves = is_controlled
                || shared.published.load().snapshot.version == loaded.snapshot.version;
            let (answer, answered) = oneshot::channel();
            let is_unbound = self.unbound.iter().any(|one| one.gateway == gateway);
            let binding = if is_unbound {
                Binding::WhatCan
            } else {
                Binding::All
            };
            let said = Said::of(&loaded);
            let next = (loaded.settings, loaded.files, loaded.good);
            let reloaded = if serves {
                Reloaded {
                    is_published: !is_controlled,
                    keep: is_news.then_some(loaded.last_good),
                    ..Reloaded::default()
                }
            } else {
                Reloaded {
                    config: Some((
                        loaded.snapshot,
                        loaded.resources,
                        Some(loaded.last_good),
                        binding,
                    )),
                    answer: Some(answer),
                    ..Reloaded::default()
                }
            };
            if tell.send(reloaded).await.is_err() {
                return false;
            }
            // Of a configuration that serves already nobody answers.
            if !serves && let Ok(Err(listeners)) = answered.await {
                // Each text of the gateway's document is tried once: this ends.
                self.unbound.truncate(UNBOUND_MAX - 1);
                self.unbound.insert(0, Unbound { gateway, listeners });
                continue;
            }
            self.gateway = Some(gateway);
            let due = Instant::now() + RETRY;
            self.retry = is_unbound.then(|| self.retry.map_or(due, |at| at.min(due)));
            self.take_config(next, said, !serves, shared);
            break;
        }
        true
    }

    /// Loads the files, unless they are the same as before, not at rest yet, or all of them are refused.
    async fn load(&mut self, shared: &Shared) -> Option<Loaded> {
        let (path, node) = (self.config.clone(), self.node.clone());
        let (good, before) = (self.good.clone(), self.fingerprint);
        let unbound = self.unbound.clone();
        let mut rest = std::mem::take(&mut self.rest);
        let serves = shared.published.load_full();
        let loading = self.reader.ask(move || {
            let loaded = Sources::read(&path).and_then(|sources| {
                let is_known = unbound.is_empty() && rest.next() == Next::Never;
                if is_known && before == Some(sources.fingerprint()) {
                    return Ok(None);
                }
                let cut = sources.cut(&good);
                let Some(sources) = rest.believe(sources, &cut) else {
                    return Ok(None);
                };
                if unbound.is_empty() && before == Some(sources.fingerprint()) {
                    return Ok(None);
                }
                let mut loaded = sources.renew(&node, &good, &unbound)?;
                loaded.snapshot.share(&serves.snapshot);
                Ok(Some(loaded))
            });
            (loaded, rest)
        });
        let (loaded, rest) = match loading.await {
            Ok(read) => read,
            Err(error) => {
                tracing::error!(code = "ZG0906", %error, "loading the configuration failed");
                return None;
            }
        };
        self.rest = rest;
        match loaded {
            Ok(loaded) => loaded,
            Err(findings) => {
                self.fingerprint = None;
                self.refuse_config(&findings, shared);
                None
            }
        }
    }

    /// Whether what is kept on disk is not of these very files any more.
    fn is_news(&self, loaded: &Loaded) -> bool {
        self.fingerprint != Some(loaded.fingerprint)
    }

    /// Loads certificate and bundles; `None` where they are those made last, or are refused.
    async fn reload_credentials(&mut self, shared: &Shared) -> Option<Arc<Credentials>> {
        let given = shared.agent.beside(self.svid.clone());
        let source = shared.federation.beside(given);
        if source.is_awaited() && self.made.id().is_some() {
            // What serves stays until there is something to take its place.
            return None;
        }
        let (source, renewed) = renew(Arc::clone(&self.made), source).await?;
        let error = match renewed {
            Ok(credentials) => {
                shared.agent.used(&source);
                self.tell_wrong(credentials.wrong());
                return self.news(credentials, shared);
            }
            Err(error) => error,
        };
        self.refuse_credentials(&error, shared);
        // What is beside it may have changed all the same.
        let used = (shared.agent).refused(&source, with_causes(&error))?;
        let (_, renewed) = renew(Arc::clone(&self.made), used).await?;
        self.take_new(renewed.ok()?)
    }

    /// Credentials that bring something.
    fn news(&mut self, credentials: Credentials, shared: &Shared) -> Option<Arc<Credentials>> {
        if !self.made.differs(&credentials) {
            tell_whole(&credentials, shared);
            return None;
        }
        let id = credentials.id().map(tracing::field::display);
        tracing::info!(code = "ZG0201", id, "certificate and bundles applied");
        self.take_new(credentials)
    }

    /// Those that differ are the ones made last from here on.
    fn take_new(&mut self, credentials: Credentials) -> Option<Arc<Credentials>> {
        self.made.differs(&credentials).then(|| {
            self.made = Arc::new(credentials);
            Arc::clone(&self.made)
        })
    }

    /// Takes a configuration that serves.
    fn take_config(
        &mut self,
        (settings, files, good): (GatewaySettings, Vec<PathBuf>, Good),
        said: Said,
        is_new: bool,
        shared: &Shared,
    ) {
        self.good = good;
        self.svid = svid_source(&settings);
        shared.agent.want(AskedAgent::of(&settings));
        self.watch.set(watched(files, &self.svid));
        let is_news = needs_restart(&self.latest, &settings);
        self.latest = settings;
        if is_news && needs_restart(&self.settings, &self.latest) {
            tracing::warn!(
                code = "ZG0126",
                "admin, adminToken, probes, metrics, stateDir, controlPlane, workers, limits, drain and accessLog of a MeshGateway \
                 are read at start only; restart the gateway to apply their change"
            );
        }
        tell_refused(&said.refused, shared);
        let text = refused_in_part(&said.refused);
        if text.is_some() && self.said[0] != text {
            tracing::error!(code = "ZG0122", "{}", text.as_deref().unwrap_or_default());
        }
        self.said[0] = text;
        if is_new {
            warn(&said.warnings);
        }
    }

    fn refuse_config(&mut self, findings: &Findings, shared: &Shared) {
        shared.metrics.reloaded("config", false);
        shared.findings.store(Arc::new(findings.to_json()));
        let text = describe(findings);
        if self.said[0].as_ref() != Some(&text) {
            tracing::error!(
                code = "ZG0121",
                "configuration refused; the last good one serves\n{text}"
            );
            self.said[0] = Some(text);
        }
    }

    fn refuse_credentials(&mut self, error: &CredentialsError, shared: &Shared) {
        shared.metrics.reloaded("credentials", false);
        let text = with_causes(error);
        if self.said[1].as_ref() != Some(&text) {
            tracing::error!(code = error.code(), error = %text, "certificate or bundles refused; the last good ones serve");
            self.said[1] = Some(text);
        }
    }

    /// Tells what of the credentials is refused while all else serves.
    fn tell_wrong(&mut self, wrong: &[CredentialsError]) {
        let all: Vec<String> = wrong.iter().map(|one| with_causes(one)).collect();
        let text = (!all.is_empty()).then(|| all.join("; "));
        if let Some(text) = &text
            && self.said[1].as_ref() != Some(text)
        {
            tracing::error!(
                code = wrong.first().map_or("ZG0202", CredentialsError::code),
                error = %text,
                "certificate or bundles refused; the last good ones serve in their place where there are any, and all else is applied"
            );
        }
        self.said[1] = text;
    }
}

/// What is to be said of a configuration.
struct Said {
    refused: Refused,
    warnings: Findings,
}

impl Said {
    fn of(loaded: &Loaded) -> Self {
        Self {
            refused: loaded.refused.clone(),
            warnings: loaded.warnings.clone(),
        }
    }
}

/// What is said of documents that are refused while all else serves.
pub(super) fn refused_in_part(refused: &Refused) -> Option<String> {
    (!refused.is_empty()).then(|| {
        format!(
            "configuration refused in part: {}; all else serves\n{}",
            refused.summary(),
            describe(refused.findings())
        )
    })
}

/// Shows which documents of what serves are refused.
pub(super) fn tell_refused(refused: &Refused, shared: &Shared) {
    shared.metrics.reloaded("config", refused.is_empty());
    shared.metrics.documents_refused(refused.documents());
    let findings = if refused.is_empty() {
        Value::Null
    } else {
        refused.to_json()
    };
    shared.findings.store(Arc::new(findings));
}

fn needs_restart(before: &GatewaySettings, now: &GatewaySettings) -> bool {
    let fixed = |s: &GatewaySettings| {
        (
            (s.admin.clone(), s.admin_token.clone()),
            s.probes,
            s.metrics,
            (s.state_dir.clone(), s.control_plane.clone()),
            (s.workers, s.access_log),
            s.limits.clone(),
            s.drain.clone(),
        )
    };
    fixed(before) != fixed(now)
}

/// Makes credentials of a source, beside everything else; `None` where that panicked.
async fn renew(
    before: Arc<Credentials>,
    source: SvidSource,
) -> Option<(SvidSource, Result<Credentials, CredentialsError>)> {
    let renewing = tokio::task::spawn_blocking(move || {
        let renewed = before.renew(&source);
        (source, renewed)
    });
    let renewed = renewing.await.inspect_err(
        |error| tracing::error!(code = "ZG0906", %error, "loading the certificate failed"),
    );
    renewed.ok()
}

/// Counts credentials that serve: whole, if there is nothing newer that cannot be used.
pub(super) fn tell_whole(credentials: &Credentials, shared: &Shared) {
    let is_whole = credentials.wrong().is_empty() && !shared.agent.is_refused();
    shared.metrics.reloaded("credentials", is_whole);
}

fn watched(mut files: Vec<PathBuf>, svid: &SvidSource) -> Vec<PathBuf> {
    match svid {
        SvidSource::Files(svid) => {
            files.extend([
                svid.certificate.clone(),
                svid.key.clone(),
                svid.bundles.clone(),
            ]);
            files.extend(svid.crls.clone());
            files.extend(svid.denied.clone());
        }
        SvidSource::Given(svid) => files.extend(svid.denied.clone()),
    }
    files.extend(svid.domains().iter().filter_map(|one| one.file.clone()));
    files
}

/// Where a gateway's certificate comes from, as the TLS part names it.
pub(crate) fn svid_source(settings: &GatewaySettings) -> SvidSource {
    let own = settings.trust_domain.clone();
    let domains: Vec<_> = (settings.domains.iter())
        .map(|one| DomainBundle {
            domain: one.domain.clone(),
            file: one.bundle.clone(),
            is_fetched: one.endpoint.is_some(),
            fetched: None,
        })
        .collect();
    match &settings.svid {
        zeugma_xds::SvidSource::Files(files) => SvidSource::Files(SvidFiles {
            certificate: files.certificate.clone(),
            key: files.key.clone(),
            bundles: files.bundles.clone(),
            crls: files.crls.clone(),
            denied: files.denied.clone(),
            own: Some(own),
            domains,
        }),
        zeugma_xds::SvidSource::WorkloadApi(_) | zeugma_xds::SvidSource::Sds(_) => {
            SvidSource::Given(SvidGiven {
                given: None,
                own,
                domains,
                denied: settings.svid.denied().cloned(),
            })
        }
    }
}

/// The findings as a person reads them.
pub(super) fn describe(findings: &Findings) -> String {
    findings.to_human(Color::Plain)
}

/// Tells of warnings.
pub(super) fn warn(warnings: &Findings) {
    if warnings.iter().next().is_some() {
        tracing::warn!(code = "ZG0127", "configuration\n{}", describe(warnings));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Alone;

    /// What was made and waits for the control loop once counted for nothing: an answer that was equal to
    /// what served was dropped, and two had one generation.
    #[tokio::test]
    async fn credentials_follow_those_made_last_though_these_do_not_serve_yet() {
        let listeners = "{ apps: { address: '127.0.0.1:0', role: workloads } }";
        let (alone, other) = (Alone::new(listeners, "", 1), Alone::new(listeners, "", 1));
        let config = alone.folder.path().to_owned();
        let loaded = zeugma_xds::load(&config, &NodeOptions::default()).unwrap();
        let beginning = Beginning {
            loaded,
            findings: None,
            is_kept: true,
        };
        let serving = alone.shared.credentials.load_full();
        let mut files = Files::new(config.clone(), NodeOptions::default(), &beginning, &serving);
        let read = |alone: &Alone| {
            let bundle = alone.folder.path().join("bundles/east.example.pem");
            std::fs::read_to_string(bundle).unwrap()
        };
        let (first, second) = (read(&alone), read(&other));
        let mut generations = Vec::new();
        for anchors in [first.clone() + &second, first.clone(), first] {
            std::fs::write(config.join("bundles/east.example.pem"), anchors).unwrap();
            let made = files.reload_credentials(&alone.shared).await;
            generations.push(made.map(|made| made.generation()));
        }
        assert_eq!(generations, [Some(2), Some(3), None]);
    }
}
