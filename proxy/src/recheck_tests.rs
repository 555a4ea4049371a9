//! The registry and the walk, on a worker without sockets.

use std::future::Future as _;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Wake;

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use tokio::sync::{mpsc, watch};
use zeugma_core::shares::Shares;
use zeugma_core::snapshot::Snapshot;
use zeugma_xds::{Loaded, NodeOptions};

use super::*;
use crate::account::AccessLog;
use crate::admission::{Admission, UnderWay};
use crate::metrics::Metrics;
use crate::resolve::Names;
use crate::runtime::{AdminSide, Phase, RENAMED_MAX};
use crate::tls::SvidFiles;

const GATEWAY: &str = "
apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    db: { address: '127.0.0.1:0', role: workloads, route: shop/db }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: db, namespace: shop }
spec:
  protocol: tcp
  port: 5432
  backends: [{ endpoints: ['127.0.0.1:1'] }]
  allow: [{ sources: ['10.0.0.0/8'] }]
";

/// A worker whose configuration lets in 10.0.0.0/8.
struct World {
    worker: Rc<Worker>,
    folder: tempfile::TempDir,
    phase: watch::Sender<Phase>,
}

fn loaded(folder: &tempfile::TempDir, yaml: &str) -> Loaded {
    let path = folder.path().join("all.yaml");
    std::fs::write(&path, yaml).unwrap();
    zeugma_xds::load(&path, &NodeOptions::default())
        .unwrap_or_else(|findings| panic!("{}", findings.to_human(zeugma_xds::Color::Plain)))
}

/// Writes a certificate of east's own CA.
fn credentials(folder: &tempfile::TempDir) -> Credentials {
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    let mut ca = CertificateParams::default();
    ca.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(5);
    ca.not_after = ca.not_before + time::Duration::hours(1);
    ca.distinguished_name.push(DnType::CommonName, "east");
    ca.serial_number = Some(SerialNumber::from_slice(&[0x11]));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.subject_alt_names = vec![uri("spiffe://east.example")];
    let mut leaf = CertificateParams::default();
    leaf.not_before = ca.not_before;
    leaf.not_after = ca.not_after;
    leaf.serial_number = Some(SerialNumber::from_slice(&[0x12]));
    leaf.subject_alt_names = vec![uri("spiffe://east.example/zeugma/gateway")];
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    leaf.use_authority_key_identifier_extension = true;
    let anchor = CertifiedIssuer::self_signed(ca, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::create_dir_all(at("bundles")).unwrap();
    std::fs::write(at("bundles/east.example.pem"), anchor.pem()).unwrap();
    std::fs::write(at("gw.pem"), leaf.signed_by(&key, &anchor).unwrap().pem()).unwrap();
    std::fs::write(at("gw.key"), key.serialize_pem()).unwrap();
    let owner_alone = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(at("gw.key"), owner_alone).unwrap();
    let files = SvidFiles {
        certificate: at("gw.pem"),
        key: at("gw.key"),
        bundles: at("bundles"),
        crls: None,
        denied: None,
        domains: Vec::new(),
        own: None,
    };
    Credentials::load(&files, 1).unwrap()
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let Loaded {
            snapshot,
            settings,
            resources,
            ..
        } = loaded(&folder, GATEWAY);
        let (phase, phase_read) = watch::channel(Phase::Serving);
        let shared = Shared {
            published: ArcSwap::from_pointee(published(1, snapshot)),
            credentials: ArcSwap::from_pointee(credentials(&folder)),
            changes: watch::channel(0).0,
            peers: Default::default(),
            federation: crate::federation::Federation::kept(&settings),
            agent: crate::identity::Agent::new(None),
            control_plane: crate::control_plane::Side::none(),
            names: ArcSwap::from_pointee(Names::default()),
            settings,
            metrics: Metrics::new(),
            log: AccessLog::start(zeugma_xds::AccessLogFormat::Json, Box::new(std::io::sink()))
                .unwrap(),
            observations: mpsc::channel(1).0,
            phase: phase_read,
            ready: AtomicBool::new(true),
            resources: ArcSwap::from_pointee(resources),
            findings: ArcSwap::from_pointee(serde_json::Value::Null),
            open: AtomicUsize::new(0),
            admission: Admission::new(1_000, 20_000),
            pulses: crate::pulse::Pulses::new(),
            windows: Arc::default(),
            admin: AdminSide::default(),
            started: std::time::Instant::now(),
            #[cfg(any(test, feature = "otlp"))]
            spans: std::sync::OnceLock::new(),
        };
        Self {
            worker: Rc::new(Worker::new(Arc::new(shared))),
            folder,
            phase,
        }
    }

    /// Publishes a configuration that lets in `sources`, and tells.
    fn lets_in(&self, sources: &str) {
        let yaml = GATEWAY.replace("10.0.0.0/8", sources);
        let shared = &self.worker.shared;
        let generation = shared.published.load().generation + 1;
        let snapshot = loaded(&self.folder, &yaml).snapshot;
        shared
            .published
            .store(Arc::new(published(generation, snapshot)));
        shared.changes.send_modify(|n| *n += 1);
    }

    /// Lists a connection from `10.x.y.z` that is not decided yet.
    fn list(&self, nth: u32) -> Listed {
        let source = std::net::Ipv4Addr::from(0x0a00_0000 + nth);
        let source = SocketAddr::from((source, 1));
        self.worker
            .registry
            .list("db".into(), source, Open::Undecided)
    }
}

fn published(generation: u64, snapshot: Snapshot) -> Published {
    let shares = Arc::new(Shares::all_healthy(&snapshot));
    Published {
        generation,
        under_way: UnderWay::of(&snapshot, None),
        snapshot: Arc::new(snapshot),
        shares,
        renamed: Arc::default(),
    }
}

impl Entry {
    /// One that no change finds.
    pub(crate) fn unlisted() -> Rc<Self> {
        let source = SocketAddr::from(([10, 0, 0, 1], 1));
        Rc::clone(
            &Rc::<Registry>::default()
                .list("db".into(), source, Open::Bytes)
                .entry,
        )
    }

    /// Draining does not wait for it any longer.
    pub(crate) fn tell_overdue(&self) {
        self.is_overdue();
    }
}

fn decided(listed: &Listed) {
    listed.asks(Open::Bytes, Some((&"shop/db".into(), 5432)));
}

#[derive(Debug, Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether it is told to end; if not, `woken` counts when it is.
fn poll(listed: &Listed, woken: &Arc<Woken>) -> bool {
    let waker = Waker::from(Arc::clone(woken));
    let mut cut = pin!(listed.cut());
    cut.as_mut()
        .poll(&mut Context::from_waker(&waker))
        .is_ready()
}

#[tokio::test]
async fn only_those_that_end_are_woken_and_over_many_slices() {
    let world = World::new();
    // 10.0.x.x and 10.128.x.x by turns, over a dozen slices.
    let count = 12 * SLICE + 1;
    let held: Vec<(Listed, Arc<Woken>)> = (0..u32::try_from(count).unwrap())
        .map(|nth| {
            let far = if nth % 2 == 0 { 0 } else { 0x80_0000 };
            let listed = world.list(nth + far);
            decided(&listed);
            let woken = Arc::default();
            assert!(!poll(&listed, &woken));
            (listed, woken)
        })
        .collect();
    world.lets_in("10.0.0.0/9");
    walk(&world.worker).await;
    for (nth, (listed, woken)) in held.iter().enumerate() {
        let ends = nth % 2 == 1;
        assert_eq!(woken.0.load(Ordering::SeqCst), usize::from(ends), "{nth}");
        assert_eq!(poll(listed, woken), ends, "{nth}");
        if ends {
            let ending = listed.ending().unwrap();
            assert_eq!(ending.reason, Reason::NoLongerAllowed);
            assert!(ending.rule.unwrap().contains("all.yaml:"));
        }
    }
    drop(held);
    assert!(world.worker.registry.entries.borrow().is_empty());
}

#[tokio::test]
async fn what_is_decided_by_the_older_configuration_while_a_change_is_published_ends() {
    let world = World::new();
    let shared = Arc::clone(&world.worker.shared);
    let woken = Arc::default();
    // It pins a configuration, the change comes and is walked, and only then it is decided.
    let pinned = shared.published.load_full();
    let listed = world.list(1);
    world.lets_in("192.0.2.0/24");
    walk(&world.worker).await;
    assert!(!poll(&listed, &woken), "nothing is known of it yet");
    decided(&listed);
    listed.settle(&shared, pinned.generation, None);
    assert!(poll(&listed, &woken));
    // One that pins what is published now is not looked at again.
    let listed = world.list(2);
    decided(&listed);
    let now = shared.published.load().generation;
    listed.settle(&shared, now, Some(shared.credentials.load().generation()));
    assert!(!poll(&listed, &woken));
    // Other credentials than those of the handshake are a change too.
    listed.settle(&shared, now, Some(0));
    assert!(poll(&listed, &woken));
}

#[tokio::test]
async fn a_walk_runs_for_each_publication_and_traffic_has_its_turn_between_slices() {
    let world = World::new();
    let held: Vec<Listed> = (0..u32::try_from(4 * SLICE).unwrap())
        .map(|nth| world.list(nth))
        .collect();
    held.iter().for_each(decided);
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            drop(tokio::task::spawn_local(run(Rc::clone(&world.worker))));
            tokio::task::yield_now().await;
            world.lets_in("192.0.2.0/24");
            // Each turn of this task is one of others' between two slices.
            let mut turns = 0;
            while held.iter().any(|listed| listed.ending().is_none()) {
                turns += 1;
                assert!(turns < 100_000, "the walk does not end");
                tokio::task::yield_now().await;
            }
            assert!(turns >= 4, "{turns}");
        })
        .await;
}

/// As many as the issue of a change must reach within a second.
const OPEN: u32 = 20_000;

/// Connections from 10.0.x.x and 10.128.x.x by turns, each waited for by a task as a relay waits;
/// what is sent back is the number of one that was told.
fn wait_for_each(
    world: &World,
    wait: fn(&Entry, &mut Context<'_>) -> Poll<()>,
) -> mpsc::UnboundedReceiver<u32> {
    let (told, ended) = mpsc::unbounded_channel();
    for nth in 0..OPEN {
        let listed = world.list(nth + if nth % 2 == 0 { 0 } else { 0x80_0000 });
        decided(&listed);
        let told = told.clone();
        drop(tokio::task::spawn_local(async move {
            std::future::poll_fn(|cx| wait(&listed, cx)).await;
            told.send(nth).unwrap();
        }));
    }
    ended
}

#[tokio::test]
async fn of_twenty_thousand_all_and_only_those_that_lost_their_right_end() {
    let world = World::new();
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            drop(tokio::task::spawn_local(run(Rc::clone(&world.worker))));
            let mut ended = wait_for_each(&world, Entry::poll_cut);
            tokio::task::yield_now().await;
            world.lets_in("10.0.0.0/9");
            let mut seen = HashSet::new();
            for _ in 0..OPEN / 2 {
                seen.insert(ended.recv().await.unwrap());
            }
            assert!(seen.iter().all(|nth| nth % 2 == 1));
            assert_eq!(seen.len(), 10_000, "each once");
            // The next change finds the others, of which none had ended.
            world.lets_in("192.0.2.0/24");
            for _ in 0..OPEN / 2 {
                seen.insert(ended.recv().await.unwrap());
            }
            assert_eq!(seen.len(), 20_000);
            assert!(world.worker.registry.entries.borrow().is_empty());
        })
        .await;
}

#[tokio::test]
async fn at_the_deadline_of_draining_all_relays_are_told_and_nothing_else_is() {
    let world = World::new();
    let local = tokio::task::LocalSet::new();
    local
        .run_until(async {
            drop(tokio::task::spawn_local(run(Rc::clone(&world.worker))));
            let request = world.list(1);
            request.asks(Open::Request(Rc::default()), None);
            let mut ended = wait_for_each(&world, Entry::poll_over);
            tokio::task::yield_now().await;
            let deadline = tokio::time::Instant::now() + Duration::from_millis(50);
            world.phase.send_replace(Phase::Draining { deadline });
            for _ in 0..OPEN {
                ended.recv().await.unwrap();
                assert!(tokio::time::Instant::now() >= deadline);
            }
            assert!(
                !poll(&request, &Arc::default()),
                "requests end by themselves"
            );
            assert_eq!(request.ending(), None);
        })
        .await;
}

#[test]
fn an_entry_is_small() {
    // An idle relay has 1 KiB for everything.
    assert!(size_of::<Entry>() <= 208, "{}", size_of::<Entry>());
}

#[test]
fn what_leaves_in_peace_may_be_told_to_end_later_but_not_the_other_way() {
    let world = World::new();
    let listed = world.list(1);
    let ending = |reason| Ending {
        reason,
        rule: None,
        detail: String::new(),
    };
    let woken = Arc::default();
    listed.tell(How::Leave, ending(Reason::CertificateExpired));
    assert!(!poll(&listed, &woken));
    assert_eq!(listed.cut_off(), None, "requests may still begin");
    listed.tell(How::Cut, ending(Reason::CertificateRevoked));
    assert!(poll(&listed, &woken));
    let cut_off = listed.cut_off().unwrap();
    assert_eq!(cut_off.reason, Reason::CertificateRevoked);
    listed.tell(How::Leave, ending(Reason::CertificateExpired));
    assert_eq!(listed.ending().unwrap().reason, Reason::CertificateRevoked);
}

/// The gateway's own certificate as a caller's, out of date by `seconds`.
fn ran_out(world: &World, seconds: i64) -> Arc<TlsPeer> {
    let mut peer = world
        .worker
        .shared
        .credentials
        .load()
        .own()
        .unwrap()
        .clone();
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap();
    peer.not_after = now - seconds;
    Arc::new(peer)
}

#[tokio::test]
async fn a_certificate_that_ran_out_ends_sessions_in_peace_and_nothing_else() {
    let world = World::new();
    let fresh = world.list(1);
    fresh.asks(Open::Session, None);
    fresh.is_by(&ran_out(&world, -60));
    let session = world.list(2);
    session.asks(Open::Session, None);
    let bytes = world.list(3);
    decided(&bytes);
    let request = world.list(4);
    request.asks(Open::Request(Rc::default()), None);
    let late = ran_out(&world, 60);
    for listed in [&session, &bytes, &request] {
        listed.is_by(&late);
    }
    walk_expired(&world.worker).await;
    let leaving = session.asked_to_leave(None).await;
    assert_eq!(leaving, Leaving::InPeace);
    let ending = session.ending().unwrap();
    assert_eq!(ending.reason, Reason::CertificateExpired);
    assert_eq!(ending.reason.code(), Some("ZG0312"));
    assert_eq!(ending.rule.as_deref(), Some("expired"));
    for stays in [&fresh, &bytes, &request] {
        assert_eq!(stays.ending(), None);
    }
    // A change of the configuration does not make it worse.
    world.lets_in("10.0.0.0/9");
    walk(&world.worker).await;
    for stays in [&fresh, &bytes] {
        assert_eq!(stays.ending(), None);
    }
}

#[test]
fn names_from_before_are_found_up_to_their_limit() {
    let folder = tempfile::tempdir().unwrap();
    let snapshot = |nth: usize, address: &str| {
        let name = format!("    db-{nth}: {{ address: '{address}'");
        let yaml = GATEWAY.replace("    db: { address: '127.0.0.1:0'", &name);
        loaded(&folder, &yaml).snapshot
    };
    let at = "127.0.0.1:5432";
    let mut now = published(1, snapshot(0, at));
    for nth in 1..=RENAMED_MAX + 6 {
        let next = snapshot(nth, at);
        let renamed = now.renamed_in(&next);
        now = Published {
            renamed,
            ..published(1, next)
        };
    }
    let newest = format!("db-{}", RENAMED_MAX + 6);
    let is = |nth: usize| now.listener(&format!("db-{nth}")).map(|now| &*now.name);
    assert_eq!((is(5), is(6)), (None, Some(&*newest)));
    assert_eq!(now.renamed.len(), RENAMED_MAX);
    // Another address is another listener, and so is any with a port of its own.
    let elsewhere = now.renamed_in(&snapshot(0, "127.0.0.1:5433"));
    assert!(elsewhere.is_empty());
    let free = published(1, snapshot(1, "127.0.0.1:0"));
    assert!(free.renamed_in(&snapshot(2, "127.0.0.1:0")).is_empty());
}
