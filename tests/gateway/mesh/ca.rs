//! One CA for all tests of the process, and the identities it issues.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustls::{AlertDescription, ClientConfig};
use rustls_pki_types::ServerName;
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor, TlsConnector};
use zeugma_ca::files::{Access, write_atomically};
use zeugma_ca::{Authority, LeafRequest, SubjectKey};
use zeugma_core::identity::{IdPattern, SpiffeId, TrustDomain};
use zeugma_proxy::tls::{Credentials, SvidFiles, client_config, server_config};

/// The CA: one root, an issuer for each trust domain that was asked for.
///
/// Making one costs a passphrase hash for each key, so tests that run at the same time share one;
/// the last to end removes it.
pub(crate) struct Ca {
    authority: Mutex<(Authority, BTreeSet<String>)>,
    _folder: TempDir,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

impl Ca {
    /// The one of this process.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Ca>> = Mutex::new(Weak::new());
        // Poisoned: another test failed; what it guards is still a CA.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(ca) = shared.upgrade() {
            return ca;
        }
        let ca = Arc::new(Self::new());
        *shared = Arc::downgrade(&ca);
        ca
    }

    /// One with a root of its own.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::init(&folder.path().join("ca"), None).unwrap();
        Self {
            authority: Mutex::new((authority, BTreeSet::new())),
            _folder: folder,
        }
    }

    /// What its keys are encrypted with.
    pub(crate) fn passphrase(&self) -> String {
        let guard = self
            .authority
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        fs::read_to_string(guard.0.generated_passphrase().unwrap()).unwrap()
    }

    fn with<T>(&self, domain: &TrustDomain, act: impl FnOnce(&mut Authority) -> T) -> T {
        let mut guard = self
            .authority
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (authority, domains) = &mut *guard;
        if domains.insert(domain.as_str().to_owned()) {
            authority.add_trust_domain(domain).unwrap();
        }
        act(authority)
    }

    /// Issues a certificate over a new key: writes `certificate` and `key`, returns the serial.
    pub(crate) fn issue(&self, id: &str, certificate: &Path, key: &Path) -> String {
        let id = SpiffeId::parse(id).unwrap();
        let domain = id.trust_domain();
        let subject = SubjectKey::generate().unwrap();
        let issued = self.with(&domain, |authority| {
            authority.issue(&LeafRequest::new(id), &subject).unwrap()
        });
        write_atomically(key, subject.pem().as_bytes(), Access::Secret).unwrap();
        write_atomically(certificate, issued.chain_pem().as_bytes(), Access::Public).unwrap();
        issued.serial().to_owned()
    }

    /// Writes the bundle of a trust domain into `bundles`.
    pub(crate) fn write_bundle(&self, domain: &str, bundles: &Path) {
        let parsed = TrustDomain::parse(domain).unwrap();
        let bundle = self.with(&parsed, |authority| authority.bundle(&parsed).unwrap());
        fs::create_dir_all(bundles).unwrap();
        let path = bundles.join(format!("{domain}.json"));
        write_atomically(&path, bundle.json().as_bytes(), Access::Public).unwrap();
    }
}

/// The alert that ended a TLS session.
///
/// # Panics
/// If it ended otherwise.
pub(crate) fn alert_of(error: &std::io::Error) -> AlertDescription {
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert, but {error:?}"),
    }
}

/// Who a caller or an endpoint is, and whom it trusts.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) credentials: Arc<Credentials>,
}

impl Identity {
    pub(crate) fn load(files: &SvidFiles) -> Self {
        Self {
            credentials: Arc::new(Credentials::load(files, 1).unwrap()),
        }
    }

    /// Calls `address` with mTLS; any gateway of a known trust domain may answer.
    ///
    /// In TLS 1.3 a caller is done before its certificate is judged: a refusal of it is an error
    /// of the first read.
    pub(crate) async fn dial(
        &self,
        address: SocketAddr,
        sni: &str,
        alpn: &[&[u8]],
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(address).await?;
        self.dial_over(tcp, sni, alpn).await
    }

    /// The same over a connection that is there.
    pub(crate) async fn dial_over<S>(
        &self,
        stream: S,
        sni: &str,
        alpn: &[&[u8]],
    ) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(self.client(alpn)));
        connector.connect(name, stream).await
    }

    /// Answers the handshake of one caller, who must be of a known trust domain.
    pub(crate) fn accept(&self, tcp: TcpStream, alpn: &[&[u8]]) -> Accept<TcpStream> {
        let (config, _) = server_config(&self.credentials, alpn).unwrap();
        TlsAcceptor::from(config).accept(tcp)
    }

    /// The TLS client that presents it, once.
    pub(crate) fn client(&self, alpn: &[&[u8]]) -> ClientConfig {
        let anyone: Vec<IdPattern> = self
            .credentials
            .bundles()
            .iter()
            .map(|bundle| IdPattern::parse(&format!("spiffe://{}/*", bundle.domain())).unwrap())
            .collect();
        let (config, _) = client_config(&self.credentials, &anyone, alpn).unwrap();
        (*config).clone()
    }
}
