//! Files that changed are loaded anew; of a document that cannot be used the last good text serves.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, oneshot};
use zeugma_core::snapshot::Snapshot;
use zeugma_xds::{
    Color, Findings, GatewaySettings, Good, LastGood, Loaded, NodeOptions, Refused, ResourceList,
    Sources, Unbound,
};

use super::last_good::Beginning;
use super::systemd;
use crate::runtime::Shared;
use crate::tls::{Credentials, CredentialsError, DomainBundle, SvidFiles};
use crate::watch::Watch;

/// The files a gateway is made from.
pub(super) struct Files {
    config: PathBuf,
    node: NodeOptions,
    svid: SvidFiles,
    watch: Watch,
    settings: GatewaySettings,
    /// Those of the files as they were last loaded.
    latest: GatewaySettings,
    /// Of what is applied.
    good: Good,
    /// Of the files as they were last loaded: the same again is not read.
    fingerprint: Option<u128>,
    /// The listener that could not be bound.
    unbound: Option<Unbound>,
    /// What was last said about files that are refused, so that it is said once.
    said: [Option<String>; 2],
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
            tracing::error!(%error, "no thread to read configurations on: changes are not seen");
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
pub(super) type Configured = (Snapshot, ResourceList, LastGood);

/// A listener of a configuration that cannot be bound, and why.
pub(super) type NotBound = (String, String);

/// What a reload brought; `None` is what stays as it is.
#[derive(Debug, Default)]
pub(super) struct Reloaded {
    pub(super) config: Option<Configured>,
    /// Told what became of it.
    pub(super) answer: Option<oneshot::Sender<Result<(), NotBound>>>,
    /// The configuration was loaded, and it is the one that serves.
    pub(super) is_published: bool,
    /// The one that serves, of other files.
    pub(super) keep: Option<LastGood>,
    pub(super) credentials: Option<Credentials>,
    /// Asked for by a signal: the service manager waits to hear that it is done.
    pub(super) by_signal: bool,
}

impl Files {
    /// Those of what the gateway starts with.
    pub(super) fn new(config: PathBuf, node: NodeOptions, beginning: &Beginning) -> Self {
        let start = &beginning.loaded;
        // Where the last good ones serve in place of files that are refused, the same again is news.
        let fingerprint = (beginning.findings.is_none()).then_some(start.fingerprint);
        let settings = &start.settings;
        let svid = svid_files(settings);
        let mut watch = Watch::new();
        watch.set(watched(start.files.clone(), &svid));
        let said = refused_in_part(&start.refused);
        Self {
            config,
            node,
            svid,
            watch,
            settings: settings.clone(),
            latest: settings.clone(),
            good: start.good.clone(),
            fingerprint,
            unbound: None,
            said: [said, None],
            reader: Reader::new(),
        }
    }

    /// Loads whenever a file changed or a SIGHUP comes, and tells what is new, for ever.
    pub(super) async fn watch(
        mut self,
        shared: Arc<Shared>,
        tell: mpsc::Sender<Reloaded>,
        mut hangup: Signal,
    ) {
        loop {
            // Both only wait; what changed meanwhile is found by the next look.
            let by_signal = tokio::select! {
                () = self.watch.changed() => false,
                () = shared.federation.changed() => false,
                _ = hangup.recv() => true,
            };
            if by_signal {
                systemd::reloading();
                // Whoever asks wants everything tried again.
                self.unbound = None;
                self.fingerprint = None;
            }
            if !Box::pin(self.reload_config(&shared, &tell)).await {
                return;
            }
            if by_signal {
                // Where the configuration says by now.
                shared.federation.want_anew();
            }
            // After it: the configuration says where they are.
            let credentials = self.reload_credentials(&shared).await;
            let reloaded = Reloaded {
                credentials,
                by_signal,
                ..Reloaded::default()
            };
            if tell.send(reloaded).await.is_err() {
                return;
            }
        }
    }

    /// Loads the configuration, and says whether anyone still wants it.
    async fn reload_config(&mut self, shared: &Shared, tell: &mpsc::Sender<Reloaded>) -> bool {
        while let Some(loaded) = self.load(shared).await {
            let (is_news, gateway) = (self.is_news(&loaded), loaded.gateway);
            self.fingerprint = Some(loaded.fingerprint);
            let serves = shared.published.load().snapshot.version == loaded.snapshot.version;
            let (answer, answered) = oneshot::channel();
            let said = Said::of(&loaded);
            let next = (loaded.settings, loaded.files, loaded.good);
            let reloaded = if serves {
                Reloaded {
                    is_published: true,
                    keep: is_news.then_some(loaded.last_good),
                    ..Reloaded::default()
                }
            } else {
                Reloaded {
                    config: Some((loaded.snapshot, loaded.resources, loaded.last_good)),
                    answer: Some(answer),
                    ..Reloaded::default()
                }
            };
            if tell.send(reloaded).await.is_err() {
                return false;
            }
            // Of a configuration that serves already nobody answers.
            if !serves && let Ok(Err((listener, why))) = answered.await {
                // Each text of the gateway's document is tried once: this ends.
                self.unbound = Some(Unbound {
                    gateway,
                    listener,
                    why,
                });
                continue;
            }
            self.take_config(next, said, !serves, shared);
            break;
        }
        true
    }

    /// Loads the files, unless they are the same as before or all of them are refused.
    async fn load(&mut self, shared: &Shared) -> Option<Loaded> {
        let (path, node) = (self.config.clone(), self.node.clone());
        let (good, before) = (self.good.clone(), self.fingerprint);
        let unbound = self.unbound.clone();
        let serves = shared.published.load_full();
        let loading = self.reader.ask(move || {
            let sources = Sources::read(&path)?;
            let is_same = before == Some(sources.fingerprint()) && unbound.is_none();
            if is_same {
                return Ok(None);
            }
            let mut loaded = sources.renew(&node, &good, unbound.as_ref())?;
            loaded.snapshot.share(&serves.snapshot);
            Ok(Some(loaded))
        });
        match loading.await {
            Ok(Ok(loaded)) => loaded,
            Ok(Err(findings)) => {
                self.fingerprint = None;
                self.refuse_config(&findings, shared);
                None
            }
            Err(error) => {
                tracing::error!(%error, "loading the configuration failed");
                None
            }
        }
    }

    /// Whether what is kept on disk is not of these very files any more.
    fn is_news(&self, loaded: &Loaded) -> bool {
        self.fingerprint != Some(loaded.fingerprint)
    }

    /// Loads certificate and bundles; `None` where they are those that serve, or are refused.
    async fn reload_credentials(&mut self, shared: &Shared) -> Option<Credentials> {
        let svid = shared.federation.beside(self.svid.clone());
        let before = shared.credentials.load_full();
        let loading = tokio::task::spawn_blocking(move || before.reload(&svid)).await;
        match loading {
            Ok(Ok(credentials)) => {
                self.said[1] = None;
                if shared.credentials.load().differs(&credentials) {
                    tracing::info!(id = %credentials.id(), "certificate and bundles applied");
                    return Some(credentials);
                }
                shared.metrics.reloaded("credentials", true);
            }
            Ok(Err(error)) => self.refuse_credentials(&error, shared),
            Err(error) => tracing::error!(%error, "loading the certificate failed"),
        }
        None
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
        self.svid = svid_files(&settings);
        shared.federation.want(&settings.svid.domains);
        self.watch.set(watched(files, &self.svid));
        let is_news = needs_restart(&self.latest, &settings);
        self.latest = settings;
        if is_news && needs_restart(&self.settings, &self.latest) {
            tracing::warn!(
                "admin, adminToken, probes, metrics, stateDir, workers, limits and drain of a MeshGateway are read at \
                 start only; restart the gateway to apply their change"
            );
        }
        tell_refused(&said.refused, shared);
        let text = refused_in_part(&said.refused);
        if text.is_some() && self.said[0] != text {
            tracing::error!("{}", text.as_deref().unwrap_or_default());
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
            tracing::error!("configuration refused; the last good one serves\n{text}");
            self.said[0] = Some(text);
        }
    }

    fn refuse_credentials(&mut self, error: &CredentialsError, shared: &Shared) {
        shared.metrics.reloaded("credentials", false);
        let text = with_causes(error);
        if self.said[1].as_ref() != Some(&text) {
            tracing::error!(error = %text, "certificate or bundles refused; the last good ones serve");
            self.said[1] = Some(text);
        }
    }
}

/// An error and its causes in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
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
            s.state_dir.clone(),
            s.workers,
            s.limits.clone(),
            s.drain.clone(),
        )
    };
    fixed(before) != fixed(now)
}

fn watched(mut files: Vec<PathBuf>, svid: &SvidFiles) -> Vec<PathBuf> {
    files.extend([
        svid.certificate.clone(),
        svid.key.clone(),
        svid.bundles.clone(),
    ]);
    files.extend(svid.crls.clone());
    files.extend(svid.denied.clone());
    files.extend(svid.domains.iter().filter_map(|one| one.file.clone()));
    files
}

/// Where a gateway's certificate is, as the TLS part names it.
pub(super) fn svid_files(settings: &GatewaySettings) -> SvidFiles {
    SvidFiles {
        certificate: settings.svid.certificate.clone(),
        key: settings.svid.key.clone(),
        bundles: settings.svid.bundles.clone(),
        crls: settings.svid.crls.clone(),
        denied: settings.svid.denied.clone(),
        domains: (settings.svid.domains.iter())
            .map(|one| DomainBundle {
                domain: one.domain.clone(),
                file: one.bundle.clone(),
                is_fetched: one.endpoint.is_some(),
                fetched: None,
            })
            .collect(),
    }
}

/// The findings as a person reads them.
pub(super) fn describe(findings: &Findings) -> String {
    findings.to_human(Color::Plain)
}

/// Tells of warnings.
pub(super) fn warn(warnings: &Findings) {
    if warnings.iter().next().is_some() {
        tracing::warn!("configuration\n{}", describe(warnings));
    }
}
