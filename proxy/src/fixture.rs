//! What unit tests of the shell share: a gateway without its control thread.

use std::fs;
use std::io::Write;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::internal::msgs::codec::Codec as _;
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::sync::{mpsc, watch};
use zeugma_core::fleet::Fleet;
use zeugma_core::shares::Shares;
use zeugma_core::snapshot::Snapshot;
use zeugma_core::time::Time;
use zeugma_xds::NodeOptions;

use crate::account::AccessLog;
use crate::admission::{Admission, UnderWay};
use crate::metrics::Metrics;
use crate::pulse::Pulses;
use crate::resolve::Names;
use crate::runtime::{AdminSide, Outcomes, Phase, Published, Shared};
use crate::tls::{Credentials, SvidFiles};

/// What threads share, and the ends that the control thread would hold.
pub(crate) struct Alone {
    pub(crate) shared: Arc<Shared>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) observed: mpsc::Receiver<Vec<Outcomes>>,
    pub(crate) snapshot: Arc<Snapshot>,
    lines: Lines,
    pub(crate) folder: TempDir,
}

/// The access log, in memory.
#[derive(Debug, Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut lines = self.0.lock().map_err(|_| std::io::ErrorKind::Other)?;
        lines.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Alone {
    /// A gateway of cluster east with these listeners and further documents, which has room for
    /// `observations` of its workers.
    pub(crate) fn new(listeners: &str, documents: &str, observations: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        certify(&folder, &[("gw", "spiffe://east.example/zeugma/gateway")]);
        let text = format!(
            "apiVersion: zeugma.dev/v1alpha1\nkind: MeshGateway\nmetadata: {{ name: east-gw }}\n\
             spec:\n  trustDomain: east.example\n  cluster: east\n  locality: eu/eu-1\n  \
             svid: {{ files: {{ certificate: gw.pem, key: gw.key, bundles: bundles/ }} }}\n  \
             listeners: {listeners}\n{documents}"
        );
        fs::write(folder.path().join("east.yaml"), text).unwrap();
        let node = NodeOptions {
            name: None,
            locality: None,
        };
        let loaded = match zeugma_xds::load(folder.path(), &node) {
            Ok(loaded) => loaded,
            Err(findings) => panic!("{findings}"),
        };
        let files = svid_files(&folder, "gw");
        let snapshot = Arc::new(loaded.snapshot);
        let lines = Lines::default();
        let (phase, phase_read) = watch::channel(Phase::Serving);
        let (observations, observed) = mpsc::channel(observations);
        let admission = Admission::new(loaded.settings.limits.connections, u64::MAX);
        let shared = Arc::new(Shared {
            published: ArcSwap::from_pointee(published(&snapshot, shares(&snapshot))),
            credentials: ArcSwap::from_pointee(Credentials::load(&files, 1).unwrap()),
            federation: crate::federation::Federation::kept(&loaded.settings),
            agent: crate::identity::Agent::new(None),
            control_plane: crate::control_plane::Side::none(),
            names: ArcSwap::from_pointee(Names::default()),
            settings: loaded.settings,
            metrics: Metrics::new(),
            log: AccessLog::start(zeugma_xds::AccessLogFormat::Json, Box::new(lines.clone()))
                .unwrap(),
            observations,
            phase: phase_read,
            ready: AtomicBool::new(true),
            resources: ArcSwap::from_pointee(loaded.resources),
            findings: ArcSwap::from_pointee(Value::Null),
            open: Default::default(),
            admission,
            pulses: Pulses::new(),
            windows: Arc::default(),
            admin: AdminSide::default(),
            changes: watch::channel(0).0,
            peers: Default::default(),
            started: Instant::now(),
            #[cfg(any(test, feature = "otlp"))]
            spans: std::sync::OnceLock::new(),
        });
        Self {
            shared,
            phase,
            observed,
            snapshot,
            lines,
            folder,
        }
    }

    /// Publishes the snapshot with the shares that belong to it.
    pub(crate) fn publish(&self) {
        self.publish_with(shares(&self.snapshot));
    }

    /// Publishes the snapshot with any shares.
    pub(crate) fn publish_with(&self, shares: Shares) {
        let published = published(&self.snapshot, shares);
        self.shared.published.store(Arc::new(published));
    }

    /// The access log so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.shared.log.flush();
        let text = self.lines.0.lock().unwrap().clone();
        let text = String::from_utf8(text).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Waits until `look` sees something.
    pub(crate) async fn until<T>(&self, what: &str, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let looking = async {
            loop {
                if let Some(seen) = look(self) {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let Ok(seen) = tokio::time::timeout(Duration::from_secs(20), looking).await else {
            panic!("no {what}: {:?}", self.lines());
        };
        seen
    }
}

fn shares(snapshot: &Snapshot) -> Shares {
    let mut fleet = Fleet::new();
    fleet.reconcile(snapshot, Time::ZERO);
    fleet.shares(Time::ZERO)
}

fn published(snapshot: &Arc<Snapshot>, shares: Shares) -> Published {
    Published {
        generation: 1,
        under_way: UnderWay::of(snapshot, None),
        snapshot: Arc::clone(snapshot),
        shares: Arc::new(shares),
        renamed: Arc::default(),
    }
}

/// An issuer of `east.example` and the certificates by it of these, each a name and a SPIFFE ID
/// (X.509-SVID §4).
pub(crate) fn certify(folder: &TempDir, all: &[(&str, &str)]) {
    let uri = |id: &str| SanType::URI(id.try_into().unwrap());
    let (from, to) = {
        let now = OffsetDateTime::now_utc();
        (
            now - Duration::from_secs(3600),
            now + Duration::from_secs(3600),
        )
    };
    let issuer_key = KeyPair::generate().unwrap();
    let mut issuer = CertificateParams::default();
    (issuer.not_before, issuer.not_after) = (from, to);
    issuer.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    issuer.subject_alt_names = vec![uri("spiffe://east.example")];
    let anchor = issuer.self_signed(&issuer_key).unwrap();
    let issuer = Issuer::new(issuer, issuer_key);
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("bundles")).unwrap();
    fs::write(at("bundles/east.example.pem"), anchor.pem()).unwrap();

    for (name, id) in all {
        let key = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::default();
        (leaf.not_before, leaf.not_after) = (from, to);
        leaf.subject_alt_names = vec![uri(id)];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        leaf.use_authority_key_identifier_extension = true;
        let certificate = leaf.signed_by(&key, &issuer).unwrap();
        let files = svid_files(folder, name);
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// What a peer with this key presents, outside of every trust domain.
pub(crate) fn self_signed(key: &KeyPair) -> CertificateDer<'static> {
    let params = CertificateParams::new(["a.test".to_owned()]).unwrap();
    params.self_signed(key).unwrap().der().clone()
}

/// What a peer signs a handshake with (RFC 8446 §4.4.3).
pub(crate) fn signed(scheme: SignatureScheme, signature: &[u8]) -> DigitallySignedStruct {
    let mut bytes = u16::from(scheme).to_be_bytes().to_vec();
    bytes.extend(u16::try_from(signature.len()).unwrap().to_be_bytes());
    bytes.extend(signature);
    DigitallySignedStruct::read_bytes(&bytes).unwrap()
}

/// Where [`certify`] leaves what is of one name.
pub(crate) fn svid_files(folder: &TempDir, name: &str) -> SvidFiles {
    let at = |name: &str| folder.path().join(name);
    SvidFiles {
        certificate: at(&format!("{name}.pem")),
        key: at(&format!("{name}.key")),
        bundles: at("bundles"),
        crls: None,
        denied: None,
        domains: Vec::new(),
        own: None,
    }
}
