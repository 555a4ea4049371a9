//! rustls configurations whose verifier remembers its verdict.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ResolvesServerCertUsingSni};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, PeerMisbehaved, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use zeugma_core::identity::{IdPattern, SpiffeId};
use zeugma_core::svid::Rule;

use super::cache::Known;
use super::credentials::Credentials;
use super::groups::GroupsAlone;
use super::hkdf::deriving;
use super::possession::LeafKey;
use super::verify::{Refusal, TlsPeer, Usage};

/// The schemes a peer may sign the handshake with: those of R4's keys (RFC 8446 §4.2.3).
const SCHEMES: [SignatureScheme; 6] = [
    SignatureScheme::ECDSA_NISTP256_SHA256,
    SignatureScheme::ECDSA_NISTP384_SHA384,
    SignatureScheme::ED25519,
    SignatureScheme::RSA_PSS_SHA256,
    SignatureScheme::RSA_PSS_SHA384,
    SignatureScheme::RSA_PSS_SHA512,
];

/// The cryptography of every connection: hybrid key exchange preferred, AES-128-GCM first (it is the
/// fastest on machines with AES instructions), TLS 1.3 suites only.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                deriving(cipher_suite::TLS13_AES_128_GCM_SHA256),
                deriving(cipher_suite::TLS13_AES_256_GCM_SHA384),
                deriving(cipher_suite::TLS13_CHACHA20_POLY1305_SHA256),
            ],
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
            ],
            ..default_provider()
        })
    });
    &PROVIDER
}

/// SHA-256 by the same library as everything else.
pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut digest = [0; 32];
    if let Some(suite) = cipher_suite::TLS13_AES_128_GCM_SHA256.tls13() {
        let hash = suite.common.hash_provider.hash(bytes);
        if let Ok(bytes) = hash.as_ref().try_into() {
            digest = bytes;
        }
    }
    digest
}

/// Where the verifier of one connection leaves its verdict.
#[derive(Debug, Clone, Default)]
pub struct PeerSlot(Arc<Slots>);

#[derive(Debug, Default)]
struct Slots {
    /// Whose chain is valid; a peer only once it has proved to hold the key.
    claimed: OnceLock<Known>,
    verdict: OnceLock<Result<Arc<TlsPeer>, Refusal>>,
}

impl PeerSlot {
    /// The peer; `None` until its chain is verified and it has proved to hold the key.
    #[must_use]
    pub fn peer(&self) -> Option<&Arc<TlsPeer>> {
        self.0.verdict.get()?.as_ref().ok()
    }

    /// Why the peer was refused, if it was the certificate's fault that the handshake failed with
    /// `error`; `None` for every other failure.
    #[must_use]
    pub fn refusal(&self, error: &std::io::Error) -> Option<Refusal> {
        if let Some(Err(refusal)) = self.0.verdict.get() {
            return Some(refusal.clone());
        }
        let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        let missing = matches!(error, rustls::Error::NoCertificatesPresented);
        missing.then(|| Refusal::new(Rule::NoCertificate, "no certificate presented"))
    }

    fn claim(&self, verdict: Result<Known, Refusal>) -> Result<(), rustls::Error> {
        match verdict {
            Ok(known) => self.0.claimed.set(known).map_err(|_second| again()),
            Err(refusal) => {
                let error = refusal.certificate_error();
                self.decide(Err(refusal))?;
                Err(error.into())
            }
        }
    }

    fn decide(&self, verdict: Result<Arc<TlsPeer>, Refusal>) -> Result<(), rustls::Error> {
        self.0.verdict.set(verdict).map_err(|_second| again())
    }

    fn prove(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        let claimed = self.0.claimed.get();
        let proof = match claimed.and_then(|known| known.key.as_ref()) {
            Some(key) if signed.scheme == LeafKey::SCHEME => {
                key.verify(message, signed.signature())
            }
            _ if SCHEMES.contains(&signed.scheme) => {
                verify_tls13_signature(message, certificate, signed, algorithms)
            }
            _ => Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into()),
        };
        match (proof, claimed) {
            (Ok(valid), Some(known)) => {
                self.decide(Ok(Arc::clone(&known.peer)))?;
                Ok(valid)
            }
            (proof, _) => {
                let detail = "the handshake is not signed with the certificate's key";
                let refusal = Refusal::new(Rule::NoPossession, detail);
                let error = proof
                    .err()
                    .unwrap_or_else(|| refusal.certificate_error().into());
                self.decide(Err(refusal))?;
                Err(error)
            }
        }
    }
}

/// A handshake presents one chain and is signed once: whoever comes a second time is another, whom
/// what was found before must not let in.
fn again() -> rustls::Error {
    rustls::Error::General("a hearing decides once".to_owned())
}

/// What we accept a connection with: a client certificate is mandatory, and nothing is resumed.
///
/// Made for each connection, since its verifier keeps the verdict in the slot: a second handshake
/// with it fails.
///
/// # Errors
/// If there is no SVID yet, or rustls refuses our own provider.
pub fn server_config(
    credentials: &Arc<Credentials>,
    alpn: &[&[u8]],
) -> Result<(Arc<ServerConfig>, PeerSlot), rustls::Error> {
    let hearing = Hearing::new(credentials, Check::Caller(None));
    let slot = hearing.slot.clone();
    let config = server_of(Verifier(Some(hearing)))?;
    let config = finish_server(config, credentials, alpn)?;
    Ok((config, slot))
}

/// As [`server_config`], verified by the hearing, in which the handshake has to be carried: with a last
/// word on whose handshake succeeds, for protocols in which a refusal can be told by a TLS alert only.
///
/// # Errors
/// As [`server_config`].
pub(crate) fn caller_config(
    credentials: &Arc<Credentials>,
    alpn: &[&[u8]],
    admit: Option<Admit>,
) -> Result<(Arc<ServerConfig>, Hearing), rustls::Error> {
    static BEGUN: LazyLock<Result<ServerConfig, rustls::Error>> =
        LazyLock::new(|| server_of(Verifier(None)));
    let config = finish_server(BEGUN.clone()?, credentials, alpn)?;
    Ok((config, Hearing::new(credentials, Check::Caller(admit))))
}

fn server_of(verifier: Verifier) -> Result<ServerConfig, rustls::Error> {
    let nothing = Arc::new(ResolvesServerCertUsingSni::new());
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(nothing);
    // T2: rustls never asks the verifier on resumption.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn finish_server(
    mut config: ServerConfig,
    credentials: &Credentials,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    config.cert_resolver = credentials.resolver()?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

/// What we call an upstream with: its SPIFFE ID must match one of `expected` inside the handshake,
/// so that no byte reaches anyone else. An empty `expected` accepts nobody.
///
/// Made for each connection, as [`server_config`].
///
/// # Errors
/// If there is no SVID yet, or rustls refuses our own provider.
pub fn client_config(
    credentials: &Arc<Credentials>,
    expected: &[IdPattern],
    alpn: &[&[u8]],
) -> Result<(Arc<ClientConfig>, PeerSlot), rustls::Error> {
    let hearing = Hearing::new(credentials, Check::Upstream(expected.to_vec()));
    let slot = hearing.slot.clone();
    let mut config = client_of(Verifier(Some(hearing)))?;
    config.client_auth_cert_resolver = credentials.resolver()?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok((Arc::new(config), slot))
}

/// As [`client_config`], verified by the hearing, in which the handshake has to be carried: with a guess
/// of the key exchange from what was agreed on before with the same server at `address`.
///
/// # Errors
/// As [`client_config`].
pub(crate) fn upstream_config(
    credentials: &Arc<Credentials>,
    address: SocketAddr,
    expected: &[IdPattern],
    alpn: &[&[u8]],
) -> Result<(Arc<ClientConfig>, Hearing), rustls::Error> {
    static BEGUN: LazyLock<Result<ClientConfig, rustls::Error>> =
        LazyLock::new(|| client_of(Verifier(None)));
    let mut config = BEGUN.clone()?;
    config.client_auth_cert_resolver = credentials.resolver()?;
    config.resumption = Resumption::store(Arc::new(GroupsAlone {
        known: Arc::clone(credentials.known_groups()),
        address,
    }));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let hearing = Hearing::new(credentials, Check::Upstream(expected.to_vec()));
    Ok((Arc::new(config), hearing))
}

fn client_of(verifier: Verifier) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    // T2: rustls never asks the verifier on resumption.
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// What a bundle endpoint is asked with: it must be `expected`, and hears nothing of us (F4).
///
/// # Errors
/// Only if rustls refuses our own provider.
pub(crate) fn endpoint_config(
    credentials: &Arc<Credentials>,
    expected: &SpiffeId,
) -> Result<(Arc<ClientConfig>, PeerSlot), rustls::Error> {
    // An empty list accepts nobody.
    let expected = IdPattern::parse(expected.as_str()).into_iter().collect();
    let hearing = Hearing::new(credentials, Check::Upstream(expected));
    let slot = hearing.slot.clone();
    let mut config = client_of(Verifier(Some(hearing)))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), slot))
}

/// What a web site is asked with: its name must be one that `roots` vouch for.
///
/// # Errors
/// Only if rustls refuses our own provider.
pub(crate) fn web_config(roots: Arc<RootCertStore>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not enabled".to_owned())
}

tokio::task_local! {
    /// What decides in the handshake that a task is at.
    static HEARING: Hearing;
}

/// Says inside the handshake whether a caller whose chain is valid is let in.
pub(crate) type Admit = Box<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// What decides in one handshake whether the other end is who it should be.
pub(crate) struct Hearing {
    credentials: Arc<Credentials>,
    check: Check,
    slot: PeerSlot,
}

/// What is asked besides a valid chain.
enum Check {
    /// Of who calls us.
    Caller(Option<Admit>),
    /// Of whom we called.
    Upstream(Vec<IdPattern>),
}

impl Hearing {
    fn new(credentials: &Arc<Credentials>, check: Check) -> Self {
        Self {
            credentials: Arc::clone(credentials),
            check,
            slot: PeerSlot::default(),
        }
    }

    /// Where the verdict is found.
    pub(crate) fn slot(&self) -> PeerSlot {
        self.slot.clone()
    }

    /// Decides in this handshake, whose configuration was made with it.
    ///
    /// # Cancel safety
    /// As the handshake.
    pub(crate) fn carry<F: Future>(self, handshake: F) -> impl Future<Output = F::Output> {
        HEARING.scope(self, handshake)
    }

    fn claim(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let verdict = self
            .credentials
            .know(end_entity, intermediates, usage, now)
            .and_then(|known| self.check(&known.peer).map(|()| known));
        self.slot.claim(verdict)
    }

    fn check(&self, peer: &TlsPeer) -> Result<(), Refusal> {
        let detail = match &self.check {
            Check::Caller(Some(admit)) if !admit(&peer.id) => {
                format!("{} is not allowed here", peer.id)
            }
            Check::Caller(_) => return Ok(()),
            Check::Upstream(expected) => {
                if expected.iter().any(|pattern| pattern.matches(&peer.id)) {
                    return Ok(());
                }
                let expected: Vec<_> = expected.iter().map(ToString::to_string).collect();
                let expected = expected.join(" or ");
                format!("the peer is {}; expected {expected}", peer.id)
            }
        };
        Err(Refusal::new(Rule::UnexpectedId, detail))
    }
}

/// Asks its own hearing, or that of the task: rustls has one verifier for a configuration, and to make
/// one for each connection takes about a microsecond.
struct Verifier(Option<Hearing>);

impl Verifier {
    fn ask<T>(
        &self,
        question: impl FnOnce(&Hearing) -> Result<T, rustls::Error>,
    ) -> Result<T, rustls::Error> {
        if let Some(own) = &self.0 {
            return question(own);
        }
        // Outside of one nobody is verified, and nobody let in.
        let unheard = || rustls::Error::General("nobody decides in this handshake".to_owned());
        HEARING
            .try_with(question)
            .unwrap_or_else(|_none| Err(unheard()))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for Verifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Hints would tell every stranger whom we trust, and one SVID is all a caller has.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.ask(|hearing| hearing.claim(end_entity, intermediates, Usage::Client, now))
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ask(|hearing| hearing.slot.prove(message, certificate, signed))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // T6: an SVID is matched by its URI SAN, never by the DNS name it was reached under.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.ask(|hearing| hearing.claim(end_entity, intermediates, Usage::Server, now))
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.ask(|hearing| hearing.slot.prove(message, certificate, signed))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rustls::sign::{CertifiedKey, SingleCertAndKey};
    use rustls_pki_types::PrivateKeyDer;
    use tokio::io::{AsyncWriteExt as _, DuplexStream};

    use super::*;
    use crate::fixture::{Alone, certify, svid_files};
    use crate::tls::TlsStream;

    const SELF: &str = "spiffe://east.example/zeugma/gateway";

    fn credentials() -> Arc<Credentials> {
        let listeners = "{ mesh: { address: '127.0.0.1:0', role: mesh } }";
        let alone = Alone::new(listeners, "", 1);
        alone.shared.credentials.load_full()
    }

    fn admits(verdict: bool) -> Option<Admit> {
        Some(Box::new(move |_| verdict))
    }

    fn towards(
        credentials: &Arc<Credentials>,
        expected: &str,
    ) -> (Arc<ClientConfig>, Hearing, ServerName<'static>) {
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let expected = [IdPattern::parse(expected).unwrap()];
        let (config, hearing) = upstream_config(credentials, address, &expected, &[]).unwrap();
        (config, hearing, ServerName::try_from("east.test").unwrap())
    }

    type Shaken = Result<Box<TlsStream<DuplexStream>>, (io::Error, DuplexStream)>;

    /// A client's last flight leaves with what it says first: here it says nothing.
    async fn flushed(connecting: impl Future<Output = Shaken>) -> Shaken {
        let mut stream = connecting.await?;
        // Who refuses us may be gone.
        stream.flush().await.ok();
        Ok(stream)
    }

    /// Both sides of a handshake with ourselves, and what each side knows of the other.
    async fn shake(
        credentials: &Arc<Credentials>,
        admit: bool,
        expected: &str,
    ) -> ((Shaken, PeerSlot), (Shaken, PeerSlot)) {
        let (near, far) = tokio::io::duplex(64);
        let (config, caller) = caller_config(credentials, &[], admits(admit)).unwrap();
        let slots = caller.slot();
        let accepting = caller.carry(TlsStream::accept(config, far));
        let (config, upstream, name) = towards(credentials, expected);
        let slot = upstream.slot();
        let connecting = upstream.carry(TlsStream::connect(config, name, near));
        let (accepted, connected) = tokio::join!(accepting, flushed(connecting));
        ((accepted, slots), (connected, slot))
    }

    #[tokio::test]
    async fn each_handshake_is_decided_by_the_hearing_that_carries_it() {
        let credentials = credentials();
        // All in one task, by turns.
        let (good, unwelcome, strange) = tokio::join!(
            shake(&credentials, true, SELF),
            shake(&credentials, false, SELF),
            shake(&credentials, true, "spiffe://east.example/other"),
        );
        let id = |slot: &PeerSlot| slot.peer().map(|peer| peer.id.as_str().to_owned());
        let ((accepted, caller), (connected, upstream)) = good;
        assert!(accepted.is_ok() && connected.is_ok());
        assert_eq!(
            (id(&caller).as_deref(), id(&upstream).as_deref()),
            (Some(SELF), Some(SELF))
        );
        let ((accepted, caller), (_, upstream)) = unwelcome;
        let error = accepted.err().unwrap().0;
        assert_eq!(
            caller.refusal(&error).unwrap().violation.rule,
            Rule::UnexpectedId
        );
        assert_eq!((id(&caller), id(&upstream).as_deref()), (None, Some(SELF)));
        let ((accepted, caller), (connected, upstream)) = strange;
        assert!(accepted.is_err());
        let error = connected.err().unwrap().0;
        assert_eq!(
            upstream.refusal(&error).unwrap().violation.rule,
            Rule::UnexpectedId
        );
        assert_eq!((id(&caller), id(&upstream)), (None, None));
    }

    #[tokio::test]
    async fn a_handshake_outside_of_its_hearing_lets_nobody_in() {
        let credentials = credentials();
        let (near, far) = tokio::io::duplex(64);
        let (config, caller) = caller_config(&credentials, &[], None).unwrap();
        let (anyone, upstream, name) = towards(&credentials, SELF);
        let (accepted, connected) = tokio::join!(
            TlsStream::accept(config, far),
            flushed(upstream.carry(TlsStream::connect(anyone, name.clone(), near))),
        );
        assert!(accepted.is_err() && caller.slot().peer().is_none());
        drop(connected);

        let (near, far) = tokio::io::duplex(64);
        let (config, caller) = caller_config(&credentials, &[], None).unwrap();
        let (anyone, upstream, _) = towards(&credentials, SELF);
        let (accepted, connected) = tokio::join!(
            caller.carry(TlsStream::accept(config, far)),
            flushed(TlsStream::connect(anyone, name, near)),
        );
        assert!(accepted.is_err() && connected.is_err());
        assert!(upstream.slot().peer().is_none());
    }

    type Met = (Shaken, Shaken);

    /// A handshake of these two: what the server has of it, and the client.
    async fn meet(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> Met {
        let (near, far) = tokio::io::duplex(64);
        let name = ServerName::try_from("east.test").unwrap();
        tokio::join!(
            TlsStream::accept(Arc::clone(server), far),
            flushed(TlsStream::connect(Arc::clone(client), name, near)),
        )
    }

    fn error_of(shaken: Shaken) -> rustls::Error {
        let (error, _) = shaken.err().unwrap();
        let inner = error.get_ref().unwrap();
        inner.downcast_ref::<rustls::Error>().unwrap().clone()
    }

    fn to_anyone(credentials: &Arc<Credentials>) -> (Arc<ClientConfig>, PeerSlot) {
        let anyone = [IdPattern::parse("spiffe://east.example/*").unwrap()];
        client_config(credentials, &anyone, &[]).unwrap()
    }

    fn id(slot: &PeerSlot) -> Option<&str> {
        Some(slot.peer()?.id.as_str())
    }

    /// Two of `east.example`, who know each other.
    fn pair() -> [Arc<Credentials>; 2] {
        let folder = tempfile::tempdir().unwrap();
        certify(&folder, &[("cart", CART), ("db", DB)]);
        ["cart", "db"].map(|name| {
            let files = svid_files(&folder, name);
            Arc::new(Credentials::load(&files, 1).unwrap())
        })
    }

    const CART: &str = "spiffe://east.example/ns/shop/sa/cart";
    const DB: &str = "spiffe://east.example/ns/shop/sa/db";

    /// Presents the chain of another, whose key it has not.
    fn impostor(credentials: &Arc<Credentials>) -> Arc<ClientConfig> {
        let key = rcgen::KeyPair::generate().unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = default_provider().key_provider.load_private_key(key);
        let shown = CertifiedKey::new(credentials.chain().to_vec(), key.unwrap());
        let (config, _) = to_anyone(credentials);
        let mut config = ClientConfig::clone(&config);
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown));
        Arc::new(config)
    }

    #[tokio::test]
    async fn a_configuration_decides_in_one_handshake() {
        let [cart, db] = pair();
        let again = rustls::Error::General("a hearing decides once".to_owned());

        let (server, caller) = server_config(&db, &[]).unwrap();
        let (client, _) = to_anyone(&cart);
        let (accepted, _) = meet(&server, &client).await;
        assert!(accepted.is_ok());
        assert_eq!(id(&caller), Some(CART));
        let (client, _) = to_anyone(&db);
        let (accepted, _) = meet(&server, &client).await;
        assert_eq!(error_of(accepted), again);
        assert_eq!(id(&caller), Some(CART));

        let (client, upstream) = to_anyone(&cart);
        let (server, _) = server_config(&db, &[]).unwrap();
        let (_, connected) = meet(&server, &client).await;
        assert!(connected.is_ok());
        assert_eq!(id(&upstream), Some(DB));
        let (server, _) = server_config(&cart, &[]).unwrap();
        let (_, connected) = meet(&server, &client).await;
        assert_eq!(error_of(connected), again);

        // Nor after a refusal.
        let (server, caller) = server_config(&db, &[]).unwrap();
        let (accepted, _) = meet(&server, &impostor(&cart)).await;
        let refused = rustls::Error::from(rustls::CertificateError::BadSignature);
        assert_eq!(error_of(accepted), refused);
        let (client, _) = to_anyone(&cart);
        let (accepted, _) = meet(&server, &client).await;
        assert_eq!(error_of(accepted), again);
        assert_eq!(id(&caller), None);
    }
}
