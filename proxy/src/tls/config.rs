//! rustls configurations, and where the verdict on the other end is found.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::server::{NoServerSessionStorage, ResolvesServerCertUsingSni};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use zeugma_core::identity::{IdPattern, SpiffeId};

use super::credentials::Credentials;
use super::groups::GroupsAlone;
use super::hkdf::deriving;
use super::stream::TlsStream;
use super::verification::{Admit, Check, PeerSlot, Verification, Verifier};

#[cfg(test)]
mod tests;

/// The cryptography of every connection: hybrid key exchange preferred, AES-128-GCM first (it is
/// the fastest on machines with AES instructions), TLS 1.3 suites only.
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

/// SHA-256 by the library that signatures are computed with.
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
    let verification = Verification::new(credentials, Check::Caller(None));
    let slot = verification.slot();
    let config = server_of(Verifier::Own(verification))?;
    let config = finish_server(config, credentials, alpn)?;
    Ok((config, slot))
}

/// Answers the handshake that comes over `carrier`, as with [`server_config`]: with a last word on
/// whose handshake succeeds, for protocols in which a refusal can be told by a TLS alert only.
///
/// # Errors
/// As [`server_config`]; those of the handshake as [`TlsStream::accept`].
///
/// # Cancel safety
/// As [`TlsStream::accept`].
#[expect(
    clippy::type_complexity,
    reason = "a handshake, and where its verdict is found"
)]
pub(crate) fn accept<S: AsyncRead + AsyncWrite + Unpin>(
    credentials: &Arc<Credentials>,
    alpn: &[&[u8]],
    admit: Option<Admit>,
    carrier: S,
) -> Result<
    (
        impl Future<Output = Result<Box<TlsStream<S>>, (io::Error, S)>> + use<S>,
        PeerSlot,
    ),
    rustls::Error,
> {
    let config = caller_config(credentials, alpn)?;
    let verification = Verification::new(credentials, Check::Caller(admit));
    let slot = verification.slot();
    let accepting = verification.carry(TlsStream::accept(config, carrier));
    Ok((accepting, slot))
}

/// As [`server_config`], for a handshake that a verification carries.
fn caller_config(
    credentials: &Credentials,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, rustls::Error> {
    static BEGUN: LazyLock<Result<ServerConfig, rustls::Error>> =
        LazyLock::new(|| server_of(Verifier::OfTask));
    finish_server(BEGUN.clone()?, credentials, alpn)
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
    let (mut config, slot) = client_of(credentials, expected.to_vec())?;
    config.client_auth_cert_resolver = credentials.resolver()?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok((Arc::new(config), slot))
}

/// As [`client_config`], with a guess of the key exchange from what was agreed on before with the
/// same server at `address`.
///
/// # Errors
/// As [`client_config`].
pub(crate) fn upstream_config(
    credentials: &Arc<Credentials>,
    address: SocketAddr,
    expected: &[IdPattern],
    alpn: &[&[u8]],
) -> Result<(Arc<ClientConfig>, PeerSlot), rustls::Error> {
    let (mut config, slot) = client_of(credentials, expected.to_vec())?;
    config.client_auth_cert_resolver = credentials.resolver()?;
    config.resumption = Resumption::store(Arc::new(GroupsAlone {
        known: Arc::clone(credentials.known_groups()),
        address,
    }));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok((Arc::new(config), slot))
}

fn client_of(
    credentials: &Arc<Credentials>,
    expected: Vec<IdPattern>,
) -> Result<(ClientConfig, PeerSlot), rustls::Error> {
    // Its own verifier is put in below; the one that it begins with lets no server be one.
    static BEGUN: LazyLock<Result<ClientConfig, rustls::Error>> = LazyLock::new(|| {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::OfTask))
            .with_no_client_auth();
        // T2: rustls never asks the verifier on resumption.
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    });
    let mut config = BEGUN.clone()?;
    let verification = Verification::new(credentials, Check::Upstream(expected));
    let slot = verification.slot();
    let verifier = Arc::new(Verifier::Own(verification));
    config.dangerous().set_certificate_verifier(verifier);
    Ok((config, slot))
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
    let (mut config, slot) = client_of(credentials, expected)?;
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
