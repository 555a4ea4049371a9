//! Files that changed are loaded anew; what cannot be used leaves the last good content serving.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use zeugma_core::snapshot::Snapshot;
use zeugma_xds::{Color, Findings, GatewaySettings, LastGood, Loaded, NodeOptions, ResourceList};

use super::systemd;
use crate::runtime::Shared;
use crate::tls::{Credentials, CredentialsError, SvidFiles};
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
    /// What was last said about files that are refused, so that it is said once.
    said: [Option<String>; 2],
}

/// A configuration that was loaded.
pub(super) type Configured = (Snapshot, ResourceList, LastGood);

/// What a reload brought; `None` is what stays as it is.
#[derive(Debug, Default)]
pub(super) struct Reloaded {
    pub(super) config: Option<Configured>,
    /// The configuration was loaded, and it is the one that serves.
    pub(super) is_published: bool,
    pub(super) credentials: Option<Credentials>,
    /// Asked for by a signal: the service manager waits to hear that it is done.
    pub(super) by_signal: bool,
}

impl Files {
    pub(super) fn new(
        config: PathBuf,
        node: NodeOptions,
        files: Vec<PathBuf>,
        settings: &GatewaySettings,
    ) -> Self {
        let svid = svid_files(settings);
        let mut watch = Watch::new();
        watch.set(watched(files, &svid));
        Self {
            config,
            node,
            svid,
            watch,
            settings: settings.clone(),
            latest: settings.clone(),
            said: [None, None],
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
                _ = hangup.recv() => true,
            };
            if by_signal {
                systemd::reloading();
            }
            let mut reloaded = self.reload(&shared).await;
            reloaded.by_signal = by_signal;
            if tell.send(reloaded).await.is_err() {
                return;
            }
        }
    }

    /// Loads everything and returns what is new.
    async fn reload(&mut self, shared: &Arc<Shared>) -> Reloaded {
        let (path, node) = (self.config.clone(), self.node.clone());
        // Parsing a large configuration takes its time: the control thread goes on meanwhile.
        let loading = tokio::task::spawn_blocking(move || zeugma_xds::load(&path, &node));
        let mut reloaded = Reloaded::default();
        match loading.await {
            Ok(Ok(loaded)) => self.take_config(loaded, shared, &mut reloaded),
            Ok(Err(findings)) => self.refuse_config(&findings, shared),
            Err(error) => tracing::error!(%error, "loading the configuration failed"),
        }
        let (svid, before) = (self.svid.clone(), shared.credentials.load_full());
        let loading = tokio::task::spawn_blocking(move || before.reload(&svid)).await;
        match loading {
            Ok(Ok(credentials)) => {
                self.said[1] = None;
                if shared.credentials.load().differs(&credentials) {
                    tracing::info!(id = %credentials.id(), "certificate and bundles applied");
                    reloaded.credentials = Some(credentials);
                } else {
                    shared.metrics.reloaded("credentials", true);
                }
            }
            Ok(Err(error)) => self.refuse_credentials(&error, shared),
            Err(error) => tracing::error!(%error, "loading the certificate failed"),
        }
        reloaded
    }

    fn take_config(&mut self, loaded: Loaded, shared: &Shared, reloaded: &mut Reloaded) {
        self.said[0] = None;
        shared.metrics.reloaded("config", true);
        shared.findings.store(Arc::new(Value::Null));
        self.svid = svid_files(&loaded.settings);
        self.watch.set(watched(loaded.files.clone(), &self.svid));
        let is_news = needs_restart(&self.latest, &loaded.settings);
        self.latest = loaded.settings;
        if is_news && needs_restart(&self.settings, &self.latest) {
            tracing::warn!(
                "admin, probes, metrics, stateDir, workers, limits and drain of a MeshGateway are read at \
                 start only; restart the gateway to apply their change"
            );
        }
        if shared.published.load().snapshot.version == loaded.snapshot.version {
            reloaded.is_published = true;
            return;
        }
        warn(&loaded.warnings);
        reloaded.config = Some((loaded.snapshot, loaded.resources, loaded.last_good));
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
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn needs_restart(before: &GatewaySettings, now: &GatewaySettings) -> bool {
    let fixed = |s: &GatewaySettings| {
        (
            s.admin.clone(),
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
