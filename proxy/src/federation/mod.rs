//! Bundles of foreign trust domains, fetched where those serve them (SPIFFE_Federation.md).
//!
//! ```text
//! due (hint, SIGHUP, start) --fetch--> verified document --judge--> newer: kept, credentials reload
//!                                                             |---> the same: nothing
//!                                                             `---> older, or other content of the
//!                                                                   same sequence: refused, told
//! ```
//!
//! What was fetched last stays whatever fails, across restarts too: it is kept in the gateway's folder.

mod fetch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use zeugma_core::identity::TrustDomain;
use zeugma_core::line::{beginning, with_causes};
use zeugma_xds::{BundleEndpoint, ForeignDomain, GatewaySettings, StateDir};

use self::fetch::{FetchError, Fetched, fetch};
use crate::runtime::Shared;
use crate::state;
use crate::tls::{BUNDLE_BYTES_MAX, Bundle, SvidSource};

/// Where a bundle says nothing of it (SPIFFE_Federation.md §5.3: F10).
const REFRESH: Duration = Duration::from_secs(300);
/// No hint makes it be asked for sooner ...
const REFRESH_MIN: Duration = Duration::from_secs(10);
/// ... or later.
const REFRESH_MAX: Duration = Duration::from_secs(24 * 3600);
/// Endpoints that are asked at once.
const FETCHES_MAX: usize = 4;
/// The most characters that are told of why there is no bundle: much of it is another's text.
const WHY_MAX: usize = 1000;
/// The longest name of a file.
const FILE_BYTES_MAX: usize = 255;
/// The code of a bundle that is not fetched.
const NOT_FETCHED: &str = "ZG0251";
/// The code of a bundle that was fetched and is refused.
const REFUSED: &str = "ZG0252";

/// What was fetched, and what is wrong.
#[derive(Debug)]
pub(crate) struct Federation {
    known: Arc<Mutex<Knowledge>>,
    /// The trust domains of the configuration that serves; counts the times that all are wanted anew.
    wanted: watch::Sender<(u64, Vec<ForeignDomain>)>,
    /// Told when there is a bundle that the credentials have not.
    changed: Notify,
    /// The gateway's folder, once it is its own.
    folder: OnceLock<PathBuf>,
}

type Knowledge = BTreeMap<TrustDomain, Known>;

#[derive(Debug, Default)]
struct Known {
    bundle: Option<Bundle>,
    failing: Option<Failing>,
    /// The gateway's folder was asked for it.
    is_read: bool,
    /// There is a file of it in the gateway's folder.
    is_kept: bool,
}

/// What is to be fetched.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The trust domains of the configuration that serves.
    pub(crate) domains: Vec<ForeignDomain>,
    /// Every endpoint is asked at once.
    pub(crate) anew: bool,
}

#[derive(Debug)]
struct Failing {
    code: &'static str,
    in_a_row: u32,
    why: String,
}

impl Federation {
    /// What was kept of it in the folder of a gateway, which may not be its own yet.
    pub(crate) fn kept(settings: &GatewaySettings) -> Self {
        let domains = settings.domains.clone();
        let federation = Self {
            known: Arc::default(),
            wanted: watch::channel((0, domains)).0,
            changed: Notify::new(),
            folder: OnceLock::new(),
        };
        federation.read(settings);
        federation
    }

    /// Reads again what is kept, where a gateway before this one may have fetched meanwhile.
    pub(crate) fn read_again(&self, settings: &GatewaySettings) {
        if self.read(settings) {
            self.changed.notify_one();
        }
    }

    /// Reads what is kept, and says whether that is news.
    fn read(&self, settings: &GatewaySettings) -> bool {
        let domains: Vec<_> = fetched(&settings.domains).cloned().collect();
        let kept = read_all(&settings.state_dir, &settings.name, domains);
        let mut all = self.lock();
        let mut is_news = false;
        for (domain, bundle) in kept {
            let known = all.entry(domain).or_default();
            known.is_read = true;
            if bundle.is_some() && known.bundle != bundle {
                known.bundle = bundle;
                known.is_kept = true;
                is_news = true;
            }
        }
        is_news
    }

    /// Keeps what is fetched in this folder, which is the gateway's own.
    pub(crate) fn keep_in(&self, folder: PathBuf) {
        // Told once.
        drop(self.folder.set(folder));
    }

    /// Reads what is kept of trust domains that came after the start; `settings` are those of the start.
    /// To be done before they are wanted, lest something older be taken.
    pub(crate) async fn remember(&self, settings: &GatewaySettings, domains: &[ForeignDomain]) {
        let unread: Vec<_> = {
            let known = self.lock();
            let is_read = |domain: &&TrustDomain| known.get(domain).is_some_and(|one| one.is_read);
            let unread = fetched(domains).filter(|domain| !is_read(domain));
            unread.cloned().collect()
        };
        if unread.is_empty() {
            return;
        }
        let (dir, name) = (settings.state_dir.clone(), settings.name.clone());
        let reading = task::spawn_blocking(move || read_all(&dir, &name, unread));
        // A panic is told by the hook; they are read the next time.
        let kept = reading.await.unwrap_or_default();
        let mut all = self.lock();
        for (domain, bundle) in kept {
            let known = all.entry(domain).or_default();
            known.is_read = true;
            known.is_kept = bundle.is_some();
            known.bundle = known.bundle.take().or(bundle);
        }
    }

    /// Forgets the bundles whose files the operator has removed from the gateway's folder.
    pub(crate) async fn forget_removed(&self) {
        let Some(folder) = self.folder.get().cloned() else {
            return;
        };
        let kept: Vec<TrustDomain> = {
            let known = self.lock();
            let kept = known.iter().filter(|(_, one)| one.is_kept);
            kept.map(|(domain, _)| domain.clone()).collect()
        };
        let looking = task::spawn_blocking(move || {
            let is_gone = |domain: &TrustDomain| {
                let file = file_of(domain).map(|file| folder.join(file));
                file.is_some_and(|file| matches!(file.try_exists(), Ok(false)))
            };
            // Where the whole folder is away nobody meant this.
            let gone = kept
                .into_iter()
                .filter(|one| folder.is_dir() && is_gone(one));
            gone.collect::<Vec<_>>()
        });
        let gone = looking.await.unwrap_or_default();
        let mut all = self.lock();
        for domain in gone {
            if let Some(known) = all.get_mut(&domain) {
                known.bundle = None;
                known.is_kept = false;
                tracing::warn!(
                    code = "ZG0255", trust_domain = %domain,
                    "what was kept of the bundle is removed: what was fetched is forgotten"
                );
            }
        }
    }

    /// Takes the trust domains of a configuration that serves, once its credentials do.
    pub(crate) fn want(&self, next: Wanted) {
        self.wanted.send_if_modified(|(times, wanted)| {
            let is_new = *wanted != next.domains;
            *wanted = next.domains;
            *times += u64::from(next.anew);
            is_new || next.anew
        });
    }

    /// Waits until there is a bundle that credentials loaded before have not.
    ///
    /// # Cancel safety
    /// Safe: a permit is kept until it is taken.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The source of an identity, and what was fetched beside it.
    pub(crate) fn beside(&self, mut source: SvidSource) -> SvidSource {
        let known = self.lock();
        for one in source.domains_mut() {
            // Of a domain without an endpoint there may be what was fetched before it lost it.
            if one.is_fetched {
                one.fetched = (known.get(&one.domain)).and_then(|known| known.bundle.clone());
            }
        }
        source
    }

    /// What is wrong at present, as findings.
    pub(crate) fn findings(&self) -> Vec<Value> {
        let known = self.lock();
        let failing = known.iter().filter_map(|(domain, known)| {
            let failing = known.failing.as_ref()?;
            Some(json!({
                "code": failing.code,
                "severity": "warning",
                "message": format!(
                    "the bundle of {domain}, {} times in a row: {}; the last one stays in use",
                    failing.in_a_row, failing.why,
                ),
                "help": match failing.code {
                    REFUSED => "ask who runs that trust domain; where this is right, remove what is kept of it in stateDir and send SIGHUP",
                    _ => "look at `bundleEndpointURL` and its profile, and at the endpoint",
                },
            }))
        });
        failing.collect()
    }

    fn lock(&self) -> MutexGuard<'_, Knowledge> {
        lock(&self.known)
    }

    /// The newest bundle of a trust domain: what was fetched, or what `trusted` is.
    fn newest(&self, domain: &TrustDomain, trusted: Option<&Bundle>) -> Option<Bundle> {
        let fetched = self.lock().get(domain).and_then(|one| one.bundle.clone());
        match (fetched, trusted) {
            (Some(fetched), Some(trusted)) if trusted.sequence() > fetched.sequence() => {
                Some(trusted.clone())
            }
            (Some(fetched), _) => Some(fetched),
            (None, trusted) => trusted.cloned(),
        }
    }

    /// Takes what came of a look; returns when the next one is due.
    fn take(
        &self,
        shared: &Shared,
        domain: &TrustDomain,
        fetched: Result<Fetched, FetchError>,
    ) -> Duration {
        let credentials = shared.credentials.load();
        let before = self.newest(domain, credentials.bundles().get(domain));
        let judged = fetched
            .map_err(|error| (NOT_FETCHED, beginning(&error.to_string(), WHY_MAX)))
            .and_then(|(bundle, document)| {
                judge(before.as_ref(), &bundle).map_err(|why| (REFUSED, why))?;
                Ok((bundle, document))
            });
        let mut all = self.lock();
        let known = all.entry(domain.clone()).or_default();
        match judged {
            Ok((bundle, document)) => {
                if let Some(failing) = known.failing.take() {
                    let times = failing.in_a_row;
                    tracing::info!(code = "ZG0253", trust_domain = %domain, times, "bundle fetched again");
                }
                let next = interval(bundle.refresh_hint());
                let is_new = known.bundle.as_ref() != Some(&bundle);
                if is_new {
                    let (sequence, anchors) = (bundle.sequence(), bundle.anchors().len());
                    tracing::info!(code = "ZG0253", trust_domain = %domain, sequence, anchors, "bundle fetched");
                    known.bundle = Some(bundle);
                    drop(all);
                    self.keep(domain, document);
                    self.changed.notify_one();
                } else {
                    drop(all);
                }
                let result = if is_new { "new" } else { "same" };
                shared.metrics.bundle_fetched(domain.as_str(), result);
                if let Ok(now) = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
                    shared.metrics.bundle_fetched_at(domain.as_str(), now);
                }
                next
            }
            Err((code, why)) => {
                let in_a_row = known.failing.as_ref().map_or(0, |before| before.in_a_row) + 1;
                let is_told = (known.failing.as_ref())
                    .is_some_and(|before| (before.code, &before.why) == (code, &why));
                if !is_told {
                    tracing::warn!(
                        code = code, trust_domain = %domain, %why,
                        "bundle not taken; the last one stays in use"
                    );
                }
                let hint = known.bundle.as_ref().and_then(Bundle::refresh_hint);
                let next = interval(hint).min(REFRESH);
                known.failing = Some(Failing {
                    code,
                    in_a_row,
                    why,
                });
                drop(all);
                let result = if code == REFUSED { "refused" } else { "failed" };
                shared.metrics.bundle_fetched(domain.as_str(), result);
                next
            }
        }
    }

    /// Writes a document to the gateway's folder, beside everything else.
    fn keep(&self, domain: &TrustDomain, document: Bytes) {
        let (Some(folder), Some(file)) = (self.folder.get(), file_of(domain)) else {
            return;
        };
        let (folder, domain) = (folder.clone(), domain.clone());
        let known = Arc::clone(&self.known);
        drop(task::spawn_blocking(move || {
            match state::write(&folder, &file, &document) {
                Ok(()) => {
                    if let Some(known) = lock(&known).get_mut(&domain) {
                        known.is_kept = true;
                    }
                }
                Err(error) => tracing::warn!(
                    code = "ZG0254",
                    path = %folder.join(&file).display(), trust_domain = %domain, %error,
                    "the bundle that was fetched cannot be kept: a restart begins with an older one"
                ),
            }
        }));
    }
}

fn lock(known: &Mutex<Knowledge>) -> MutexGuard<'_, Knowledge> {
    // Nothing that holds it can fail.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those whose bundle is fetched.
fn fetched(domains: &[ForeignDomain]) -> impl Iterator<Item = &TrustDomain> {
    let fetched = domains.iter().filter(|one| one.endpoint.is_some());
    fetched.map(|one| &one.domain)
}

/// When a bundle is asked for again (F10).
fn interval(hint: Option<Duration>) -> Duration {
    hint.unwrap_or(REFRESH).clamp(REFRESH_MIN, REFRESH_MAX)
}

/// Whether a bundle that was fetched may take the place of `before` (F12).
///
/// # Errors
/// Why not.
fn judge(before: Option<&Bundle>, next: &Bundle) -> Result<(), String> {
    let Some(before) = before else {
        return Ok(());
    };
    let is_same = before.trusts_as(next);
    match (before.sequence(), next.sequence()) {
        (Some(before), Some(next)) if next < before => {
            Err(format!("its sequence went back from {before} to {next}"))
        }
        (Some(before), Some(next)) if next == before && !is_same => Err(format!(
            "its anchors are others, and its sequence is {before} as before"
        )),
        (Some(before), None) => Err(format!(
            "it has no sequence, and the one before had {before}"
        )),
        (Some(_), Some(_)) | (None, _) => Ok(()),
    }
}

/// The name of the file that a bundle is kept in; `None` for the few that no file name holds.
fn file_of(domain: &TrustDomain) -> Option<String> {
    let file = format!("bundle-{domain}.json");
    // `.` in front and `.next` behind while it is written.
    (file.len() + 6 <= FILE_BYTES_MAX).then_some(file)
}

fn read_all(
    dir: &StateDir,
    name: &str,
    domains: Vec<TrustDomain>,
) -> Vec<(TrustDomain, Option<Bundle>)> {
    let read = |domain| (read_kept(dir, name, &domain), domain);
    let kept = domains.into_iter().map(read);
    kept.map(|(bundle, domain)| (domain, bundle)).collect()
}

fn read_kept(dir: &StateDir, name: &str, domain: &TrustDomain) -> Option<Bundle> {
    let file = file_of(domain)?;
    let path = state::folder_of(dir, name).join(&file);
    let read = state::read(dir, name, &file, BUNDLE_BYTES_MAX);
    let unused = |error: &dyn std::fmt::Display| {
        tracing::warn!(
            code = "ZG0254",
            path = %path.display(), trust_domain = %domain, error = %error,
            "the bundle that was kept is not used"
        );
    };
    let bytes = read.inspect_err(|error| unused(error)).ok()??;
    let bundle = Bundle::parse(&bytes, domain.clone(), &path);
    bundle.inspect_err(|error| unused(&with_causes(error))).ok()
}

/// Fetches what is wanted when it is due, until the gateway drains.
pub(crate) async fn run(shared: Arc<Shared>) {
    let wanted = shared.federation.wanted.subscribe();
    let look = |domain: TrustDomain, endpoint: BundleEndpoint| {
        let shared = Arc::clone(&shared);
        async move { Box::pin(fetch(&shared, &domain, &endpoint)).await }
    };
    let take = |domain: &TrustDomain, fetched| shared.federation.take(&shared, domain, fetched);
    // Both only wait; a look that is cut off has taken nothing.
    tokio::select! {
        () = keep(wanted, look, take) => {}
        _deadline = shared.draining() => {}
    }
}

/// What is under way: for which trust domain and endpoint, and what came of it.
type Look<T> = (TrustDomain, BundleEndpoint, T);

/// Looks at what is due, [`FETCHES_MAX`] at once; `take` says when each is due again.
async fn keep<T: 'static, F>(
    mut wanted: watch::Receiver<(u64, Vec<ForeignDomain>)>,
    look: impl Fn(TrustDomain, BundleEndpoint) -> F,
    take: impl Fn(&TrustDomain, T) -> Duration,
) where
    F: Future<Output = T> + 'static,
{
    let mut due = BTreeMap::new();
    let mut under_way: BTreeMap<TrustDomain, task::Id> = BTreeMap::new();
    let mut looks: JoinSet<Look<T>> = JoinSet::new();
    let (mut times, domains) = wanted.borrow_and_update().clone();
    reconcile(&mut due, &domains, false);
    loop {
        let now = Instant::now();
        for (domain, (endpoint, at)) in &due {
            if *at <= now && looks.len() < FETCHES_MAX && !under_way.contains_key(domain) {
                let (of, endpoint) = (domain.clone(), endpoint.clone());
                let looking = look(of.clone(), endpoint.clone());
                let task = looks.spawn_local(async move { (of, endpoint, looking.await) });
                under_way.insert(domain.clone(), task.id());
            }
        }
        let waiting = due
            .iter()
            .filter(|(domain, _)| !under_way.contains_key(*domain));
        let next = waiting.map(|(_, (_, at))| *at).min();
        let next = next.filter(|_| looks.len() < FETCHES_MAX);
        // Every arm is cancel-safe: tasks of their own, a fixed moment, and state that is watched.
        tokio::select! {
            Some(ended) = looks.join_next() => {
                let (domain, endpoint, fetched) = match ended {
                    Ok(came) => came,
                    Err(panicked) => {
                        // Which is told: the others are asked, and this one in a while.
                        let is_it = |_: &TrustDomain, task: &mut task::Id| *task == panicked.id();
                        for (domain, _) in under_way.extract_if(.., is_it) {
                            if let Some((_, at)) = due.get_mut(&domain) {
                                *at = Instant::now() + REFRESH_MIN;
                            }
                        }
                        continue;
                    }
                };
                under_way.remove(&domain);
                // Of an endpoint that is not wanted any more nothing is taken.
                if let Some((wanted, at)) = due.get_mut(&domain)
                    && *wanted == endpoint
                {
                    *at = Instant::now() + take(&domain, fetched);
                }
            }
            () = until(next) => {}
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let (asked, domains) = wanted.borrow_and_update().clone();
                reconcile(&mut due, &domains, asked != times);
                times = asked;
            }
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Takes up what is wanted: new endpoints, and all where `anew`, are due now.
fn reconcile(
    due: &mut BTreeMap<TrustDomain, (BundleEndpoint, Instant)>,
    wanted: &[ForeignDomain],
    anew: bool,
) {
    let now = Instant::now();
    let before = std::mem::take(due);
    for one in wanted {
        let Some(endpoint) = &one.endpoint else {
            continue;
        };
        let known = before
            .get(&one.domain)
            .filter(|(known, _)| known == endpoint);
        let at = known.filter(|_| !anew).map_or(now, |(_, at)| *at);
        due.insert(one.domain.clone(), (endpoint.clone(), at));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn bundle(sequence: Option<u64>, anchors: &[&str]) -> Bundle {
        let keys: Vec<Value> = anchors
            .iter()
            .map(|der| json!({ "use": "x509-svid", "kty": "EC", "x5c": [der] }))
            .collect();
        let mut document = json!({ "keys": keys });
        if let Some(sequence) = sequence {
            document["spiffe_sequence"] = sequence.into();
        }
        let domain = TrustDomain::parse("acme.example").unwrap();
        let bytes = document.to_string();
        Bundle::parse(bytes.as_bytes(), domain, Path::new("acme.json")).unwrap()
    }

    fn anchor() -> String {
        use base64::Engine as _;
        let key = rcgen::KeyPair::generate().unwrap();
        let mut issuer = rcgen::CertificateParams::default();
        issuer.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        issuer.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let uri = "spiffe://acme.example".try_into().unwrap();
        issuer.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        let certificate = issuer.self_signed(&key).unwrap();
        base64::engine::general_purpose::STANDARD.encode(certificate.der())
    }

    /// Federation F12 and Trust_Domain_and_Bundle.md §4.1.2 (B2).
    #[test]
    fn a_sequence_never_goes_back_and_never_stands_for_two_contents() {
        let (one, two) = (anchor(), anchor());
        let (both, turned) = (&[&*one, &*two][..], [&*two, &*one]);
        let (one, two) = (&[&*one][..], &[&*two][..]);
        for (before, next, refused) in [
            (None, bundle(Some(1), one), None),
            (Some(bundle(Some(1), one)), bundle(Some(2), two), None),
            (Some(bundle(Some(2), one)), bundle(Some(2), one), None),
            (Some(bundle(None, one)), bundle(None, two), None),
            (Some(bundle(None, one)), bundle(Some(1), two), None),
            // In another order.
            (Some(bundle(Some(2), both)), bundle(Some(2), &turned), None),
            (
                Some(bundle(Some(2), both)),
                bundle(Some(2), one),
                Some("is 2 as before"),
            ),
            // It revokes all (B1).
            (Some(bundle(Some(1), one)), bundle(Some(2), &[]), None),
            (
                Some(bundle(Some(2), one)),
                bundle(Some(1), two),
                Some("went back from 2 to 1"),
            ),
            (
                Some(bundle(Some(2), one)),
                bundle(Some(2), two),
                Some("is 2 as before"),
            ),
            (
                Some(bundle(Some(2), one)),
                bundle(None, two),
                Some("it has no sequence"),
            ),
        ] {
            let judged = judge(before.as_ref(), &next);
            match refused {
                None => assert_eq!(judged, Ok(())),
                Some(words) => {
                    let why = judged.unwrap_err();
                    assert!(why.contains(words), "{why}");
                }
            }
        }
    }

    #[test]
    fn what_is_kept_has_a_file_name_that_there_can_be() {
        let of = |text: &str| file_of(&TrustDomain::parse(text).unwrap());
        assert_eq!(
            of("acme.example").as_deref(),
            Some("bundle-acme.example.json")
        );
        assert_eq!(of(&"a".repeat(237)).unwrap().len(), 249);
        assert_eq!(of(&"a".repeat(238)), None);
    }

    /// SPIFFE_Federation.md §5.3 (F10), within our bounds.
    #[test]
    fn a_hint_counts_within_its_bounds() {
        let of = |hint: Option<u64>| interval(hint.map(Duration::from_secs)).as_secs();
        for (hint, next) in [
            (None, 300),
            (Some(0), 10),
            (Some(60), 60),
            (Some(86_400), 86_400),
            (Some(u64::MAX), 86_400),
        ] {
            assert_eq!(of(hint), next);
        }
    }

    fn fetching(folder: &Path) -> GatewaySettings {
        let text = "apiVersion: zeugma.dev/v1alpha1\nkind: MeshGateway\nmetadata: { name: east-gw }\n\
                    spec:\n  trustDomain: east.example\n  cluster: east\n  locality: eu/eu-1\n  \
                    stateDir: state\n  \
                    svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }\n  \
                    listeners: { mesh: { address: '127.0.0.1:1', role: mesh } }\n\
                    ---\napiVersion: zeugma.dev/v1alpha1\nkind: TrustDomain\n\
                    metadata: { name: acme.example }\nspec:\n  \
                    bundleEndpointURL: 'https://acme.example/'\n  \
                    bundleEndpointProfile: { type: https_web }\n";
        std::fs::write(folder.join("east.yaml"), text).unwrap();
        let node = zeugma_xds::NodeOptions {
            name: None,
            locality: None,
        };
        zeugma_xds::load(folder, &node).unwrap().settings
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_gateway_before_it_fetched_meanwhile_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let settings = fetching(folder.path());
        let own = state::Folder::open(&settings.state_dir, &settings.name).unwrap();
        let own = own.unwrap().path("");
        let federation = Federation::kept(&settings);
        let domain = TrustDomain::parse("acme.example").unwrap();
        let is_news = async || {
            let waiting = federation.changed();
            (tokio::time::timeout(Duration::from_secs(1), waiting).await).is_ok()
        };
        let sequence = || {
            federation
                .newest(&domain, None)
                .and_then(|one| one.sequence())
        };
        for (nth, news) in [(5, true), (5, false), (6, true)] {
            let document = format!(r#"{{"keys":[],"spiffe_sequence":{nth}}}"#);
            state::write(&own, "bundle-acme.example.json", document.as_bytes()).unwrap();
            federation.read_again(&settings);
            assert_eq!(is_news().await, news);
            assert_eq!(sequence(), Some(nth));
        }
        // One that is not there any more takes nothing away.
        std::fs::remove_file(own.join("bundle-acme.example.json")).unwrap();
        federation.read_again(&settings);
        assert!(!is_news().await);
        assert_eq!(sequence(), Some(6));

        // Nor does a folder that is away: nobody meant that.
        federation.keep_in(own.clone());
        std::fs::remove_dir_all(&own).unwrap();
        federation.forget_removed().await;
        assert_eq!(sequence(), Some(6));
        std::fs::create_dir(&own).unwrap();
        federation.forget_removed().await;
        assert_eq!(sequence(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn each_is_asked_when_it_is_due_and_never_twice_at_once() {
        let local = task::LocalSet::new();
        local.run_until(asked_by_the_clock()).await;
    }

    async fn asked_by_the_clock() {
        let (want, wanted) =
            watch::channel((0, vec![one("a", "https://a/"), one("b", "https://b/")]));
        let asked = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let began = Instant::now();
        let noted = std::rc::Rc::clone(&asked);
        let look = move |domain: TrustDomain, _| {
            noted
                .borrow_mut()
                .push((domain.to_string(), began.elapsed().as_secs()));
            // Each look takes two seconds.
            tokio::time::sleep(Duration::from_secs(2))
        };
        let take = |domain: &TrustDomain, ()| match domain.as_str() {
            "a" => Duration::from_secs(60),
            _ => Duration::from_secs(3600),
        };
        let story = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            // A signal: both, though one is due soon; and again while they are under way.
            want.send_modify(|(times, _)| *times += 1);
            tokio::time::sleep(Duration::from_secs(1)).await;
            want.send_modify(|(times, _)| *times += 1);
            tokio::time::sleep(Duration::from_secs(50)).await;
        };
        tokio::select! {
            () = keep(wanted, look, take) => panic!("it ended"),
            () = story => {}
        }
        let moments = |name: &str| -> Vec<u64> {
            let asked = asked.borrow();
            let of = asked.iter().filter(|(domain, _)| domain == name);
            of.map(|(_, at)| *at).collect()
        };
        // By hand: 60 s after the end of the one before, and what was under way is not asked twice.
        assert_eq!(moments("a"), [0, 62, 100]);
        assert_eq!(moments("b"), [0, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_that_panics_is_made_again_in_a_while() {
        let local = task::LocalSet::new();
        local.run_until(asked_though_one_panics()).await;
    }

    async fn asked_though_one_panics() {
        let (_want, wanted) =
            watch::channel((0, vec![one("a", "https://a/"), one("b", "https://b/")]));
        let began = Instant::now();
        let asked = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let noted = std::rc::Rc::clone(&asked);
        let look = move |domain: TrustDomain, _| {
            let at = began.elapsed().as_secs();
            noted.borrow_mut().push((domain.to_string(), at));
            async move {
                assert!(domain.as_str() != "a" || at >= 20, "as a defect would");
                tokio::time::sleep(Duration::from_secs(15)).await;
            }
        };
        tokio::select! {
            () = keep(wanted, look, |_, ()| REFRESH_MAX) => panic!("it ended"),
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
        let asked: Vec<_> = (asked.borrow().iter())
            .map(|(domain, at)| (domain.clone(), *at))
            .collect();
        let of = |text: &str, at| (text.to_owned(), at);
        assert_eq!(asked, [of("a", 0), of("b", 0), of("a", 10), of("a", 20)]);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_endpoints_are_asked_at_once() {
        let local = task::LocalSet::new();
        local.run_until(asked_a_few_at_a_time()).await;
    }

    async fn asked_a_few_at_a_time() {
        let domains = (0..FETCHES_MAX + 2).map(|nth| one(&format!("d{nth}"), "https://a/"));
        let (_want, wanted) = watch::channel((0, domains.collect()));
        let began = Instant::now();
        let asked = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
        let noted = std::rc::Rc::clone(&asked);
        let look = move |_, _| {
            noted.borrow_mut().push(began.elapsed().as_secs());
            tokio::time::sleep(Duration::from_secs(2))
        };
        tokio::select! {
            () = keep(wanted, look, |_, ()| REFRESH_MAX) => panic!("it ended"),
            () = tokio::time::sleep(Duration::from_secs(60)) => {}
        }
        assert_eq!(*asked.borrow(), [0, 0, 0, 0, 2, 2]);
    }

    fn one(name: &str, url: &str) -> ForeignDomain {
        ForeignDomain {
            domain: TrustDomain::parse(name).unwrap(),
            bundle: None,
            endpoint: Some(BundleEndpoint {
                url: zeugma_xds::BundleUrl::parse(url).unwrap(),
                profile: zeugma_xds::BundleProfile::Web,
            }),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_new_is_due_at_once_and_the_rest_when_it_was() {
        let mut due = BTreeMap::new();
        let mut wanted = vec![one("a", "https://a/"), one("b", "https://b/")];
        reconcile(&mut due, &wanted, false);
        let later = Instant::now() + REFRESH;
        due.values_mut().for_each(|(_, at)| *at = later);
        let moments = |due: &BTreeMap<TrustDomain, (BundleEndpoint, Instant)>| {
            let left = |at: &Instant| at.duration_since(Instant::now()).as_secs();
            let all: Vec<_> = due.values().map(|(_, at)| left(at)).collect();
            all
        };
        reconcile(&mut due, &wanted, false);
        assert_eq!(moments(&due), [300, 300]);
        wanted[1] = one("b", "https://b/other");
        wanted.push(ForeignDomain {
            endpoint: None,
            ..one("c", "https://c/")
        });
        reconcile(&mut due, &wanted, false);
        assert_eq!(moments(&due), [300, 0]);
        reconcile(&mut due, &wanted, true);
        assert_eq!(moments(&due), [0, 0]);
        reconcile(&mut due, &wanted[1..], false);
        assert_eq!(moments(&due), [0]);
    }
}
