//! rustls configurations whose verifier remembers its verdict.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, PeerMisbehaved, RootCertStore,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use zeugma_core::identity::{IdPattern, SpiffeId};
use zeugma_core::svid::Rule;

use super::credentials::Credentials;
use super::groups::GroupsAlone;
use super::hkdf::deriving;
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
    claimed: OnceLock<Arc<TlsPeer>>,
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

    fn claim(&self, verdict: Result<Arc<TlsPeer>, Refusal>) -> Result<(), rustls::Error> {
        match verdict {
            Ok(peer) => {
                // A handshake presents one chain and is signed once: neither cell is set twice.
                drop(self.0.claimed.set(peer));
                Ok(())
            }
            Err(refusal) => {
                let error = refusal.certificate_error();
                drop(self.0.verdict.set(Err(refusal)));
                Err(error.into())
            }
        }
    }

    fn prove(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &provider().signature_verification_algorithms;
        let proof = if SCHEMES.contains(&signed.scheme) {
            verify_tls13_signature(message, certificate, signed, algorithms)
        } else {
            Err(PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme.into())
        };
        match (proof, self.0.claimed.get()) {
            (Ok(valid), Some(peer)) => {
                drop(self.0.verdict.set(Ok(Arc::clone(peer))));
                Ok(valid)
            }
            (proof, _) => {
                let detail = "the handshake is not signed with the certificate's key";
                let refusal = Refusal::new(Rule::NoPossession, detail);
                let error = proof
                    .err()
                    .unwrap_or_else(|| refusal.certificate_error().into());
                drop(self.0.verdict.set(Err(refusal)));
                Err(error)
            }
        }
    }
}

/// What we accept a connection with: a client certificate is mandatory, and nothing is resumed.
///
/// Made for each connection, since its verifier keeps the verdict in the slot: Arc clones, the ALPN
/// names, and rustls's default session cache, which is dropped at once. 3 µs in an unoptimised
/// build, beside a handshake of about 260.
///
/// # Errors
/// If there is no SVID yet, or rustls refuses our own provider.
pub fn server_config(
    credentials: &Arc<Credentials>,
    alpn: &[&[u8]],
) -> Result<(Arc<ServerConfig>, PeerSlot), rustls::Error> {
    admitting_server_config(credentials, alpn, None)
}

/// Says inside the handshake whether a caller whose chain is valid is let in.
pub(crate) type Admit = Box<dyn Fn(&SpiffeId) -> bool + Send + Sync>;

/// As [`server_config`], with a last word on whose handshake succeeds: for protocols in which a
/// refusal can be told by a TLS alert only.
pub(crate) fn admitting_server_config(
    credentials: &Arc<Credentials>,
    alpn: &[&[u8]],
    admit: Option<Admit>,
) -> Result<(Arc<ServerConfig>, PeerSlot), rustls::Error> {
    let slot = PeerSlot::default();
    let verifier = Arc::new(CallerVerifier {
        credentials: Arc::clone(credentials),
        slot: slot.clone(),
        admit,
    });
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(credentials.resolver()?);
    // T2: rustls never asks the verifier on resumption.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok((Arc::new(config), slot))
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
    client_config_towards(credentials, None, expected, alpn)
}

/// As [`client_config`], with a guess of the key exchange from what was agreed on before with the
/// same server at `address`.
pub(crate) fn client_config_towards(
    credentials: &Arc<Credentials>,
    address: Option<SocketAddr>,
    expected: &[IdPattern],
    alpn: &[&[u8]],
) -> Result<(Arc<ClientConfig>, PeerSlot), rustls::Error> {
    let slot = PeerSlot::default();
    let verifier = Arc::new(UpstreamVerifier {
        credentials: Arc::clone(credentials),
        expected: expected.to_vec(),
        slot: slot.clone(),
    });
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(credentials.resolver()?);
    // T2: rustls never asks the verifier on resumption.
    config.resumption = match address {
        Some(address) => Resumption::store(Arc::new(GroupsAlone {
            known: Arc::clone(credentials.known_groups()),
            address,
        })),
        None => Resumption::disabled(),
    };
    config.enable_early_data = false;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok((Arc::new(config), slot))
}

/// What a bundle endpoint is asked with: it must be `expected`, and hears nothing of us (F4).
///
/// # Errors
/// Only if rustls refuses our own provider.
pub(crate) fn endpoint_config(
    credentials: &Arc<Credentials>,
    expected: &SpiffeId,
) -> Result<(Arc<ClientConfig>, PeerSlot), rustls::Error> {
    let slot = PeerSlot::default();
    // An empty list accepts nobody.
    let expected = IdPattern::parse(expected.as_str()).into_iter().collect();
    let verifier = Arc::new(UpstreamVerifier {
        credentials: Arc::clone(credentials),
        expected,
        slot: slot.clone(),
    });
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    // T2: rustls never asks the verifier on resumption.
    config.resumption = Resumption::disabled();
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

/// Verifies who calls us, for one connection.
struct CallerVerifier {
    credentials: Arc<Credentials>,
    slot: PeerSlot,
    admit: Option<Admit>,
}

impl fmt::Debug for CallerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerVerifier")
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl CallerVerifier {
    fn check_admitted(&self, peer: Arc<TlsPeer>) -> Result<Arc<TlsPeer>, Refusal> {
        match &self.admit {
            Some(admit) if !admit(&peer.id) => {
                let detail = format!("{} is not allowed here", peer.id);
                Err(Refusal::new(Rule::UnexpectedId, detail))
            }
            Some(_) | None => Ok(peer),
        }
    }
}

impl ClientCertVerifier for CallerVerifier {
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
        let verdict = self
            .credentials
            .verify(end_entity, intermediates, Usage::Client, now)
            .and_then(|peer| self.check_admitted(peer));
        self.slot
            .claim(verdict)
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
        self.slot.prove(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

/// Verifies whom we called, for one connection.
#[derive(Debug)]
struct UpstreamVerifier {
    credentials: Arc<Credentials>,
    expected: Vec<IdPattern>,
    slot: PeerSlot,
}

impl UpstreamVerifier {
    fn check_expected(&self, peer: Arc<TlsPeer>) -> Result<Arc<TlsPeer>, Refusal> {
        if self
            .expected
            .iter()
            .any(|pattern| pattern.matches(&peer.id))
        {
            return Ok(peer);
        }
        let expected: Vec<_> = self.expected.iter().map(ToString::to_string).collect();
        let detail = format!(
            "the peer is {}; expected {}",
            peer.id,
            expected.join(" or ")
        );
        Err(Refusal::new(Rule::UnexpectedId, detail))
    }
}

impl ServerCertVerifier for UpstreamVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        // T6: an SVID is matched by its URI SAN, never by the DNS name it was reached under.
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self
            .credentials
            .verify(end_entity, intermediates, Usage::Server, now)
            .and_then(|peer| self.check_expected(peer));
        self.slot
            .claim(verdict)
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
        self.slot.prove(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
