//! The TLS of the load generator and the backend: X25519 and AES-128-GCM alone, no resumption.
//!
//! Their own verification is as cheap as it can be and still notice a wrong answer: what they
//! spend is not measured, but keeps the proxy waiting.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rcgen::KeyPair;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group, sign};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde::{Deserialize, Serialize};

use crate::pki::{Domain, Svid};

/// The path of the SPIFFE ID that callers have.
pub(crate) const CALLER: &str = "/ns/shop/sa/caller";

/// Which certificates a caller presents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Certificates {
    /// The same in every handshake.
    Same,
    /// Another in each: no cache of verified chains helps.
    Distinct,
}

/// Which key exchange a caller offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum KeyExchange {
    /// X25519 alone.
    Classic,
    /// X25519MLKEM768 alone.
    Hybrid,
}

/// A caller.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Caller {
    pub(crate) domain: Domain,
    /// Whom it must reach.
    pub(crate) server: Svid,
    pub(crate) certificates: Certificates,
    pub(crate) key_exchange: KeyExchange,
}

impl Caller {
    /// Its configuration for `count` handshakes.
    pub(crate) fn config(&self, count: usize, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>> {
        let count = match self.certificates {
            Certificates::Same => 1,
            Certificates::Distinct => count,
        };
        let key = KeyPair::generate()?;
        let signer = sign::any_ecdsa_type(
            &PrivateKeyDer::try_from(key.serialize_der())
                .map_err(|error| anyhow::anyhow!("a key that rcgen made: {error}"))?,
        )?;
        let keys = self
            .domain
            .leaves(CALLER, &key, count)?
            .into_iter()
            .map(|leaf| Arc::new(CertifiedKey::new(vec![leaf], Arc::clone(&signer))))
            .collect();
        let server = CertificateDer::from_pem_file(&self.server.certificate)
            .context("the server's certificate")?;
        let group = match self.key_exchange {
            KeyExchange::Classic => kx_group::X25519,
            KeyExchange::Hybrid => kx_group::X25519MLKEM768,
        };
        let mut config = ClientConfig::builder_with_provider(provider(group))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TheOne(server)))
            .with_client_cert_resolver(Arc::new(Rotation {
                keys,
                next: AtomicUsize::new(0),
            }));
        config.resumption = rustls::client::Resumption::disabled();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }
}

/// A client without a certificate, whose ClientHello alone is wanted.
pub(crate) fn hello_config() -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(provider(kx_group::X25519))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TheOne(CertificateDer::from(Vec::new()))))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The backend's TLS: asks for a certificate, takes any.
pub(crate) fn server(svid: &Svid) -> Result<Arc<ServerConfig>> {
    let chain = vec![CertificateDer::from_pem_file(&svid.certificate)?];
    let key = PrivateKeyDer::from_pem_slice(&fs::read(&svid.key)?)?;
    let mut config = ServerConfig::builder_with_provider(provider(kx_group::X25519))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Anyone))
        .with_single_cert(chain, key)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

fn provider(group: &'static dyn SupportedKxGroup) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![group],
        ..default_provider()
    })
}

/// One key after the other.
#[derive(Debug)]
struct Rotation {
    keys: Vec<Arc<CertifiedKey>>,
    next: AtomicUsize,
}

impl ResolvesClientCert for Rotation {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        self.keys.get(turn % self.keys.len()).cloned()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Takes one certificate, by its bytes.
#[derive(Debug)]
struct TheOne(CertificateDer<'static>);

impl ServerCertVerifier for TheOne {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *leaf == self.0 {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("another server answered".to_owned()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}

/// Takes any certificate, but wants one.
#[derive(Debug)]
struct Anyone;

impl ClientCertVerifier for Anyone {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
