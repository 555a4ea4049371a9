//! A peer on the wire that presents a case: as a client to any address, or as an upstream.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::default_provider;
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{AlertDescription, SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeugma_core::identity::IdPattern;
use zeugma_proxy::tls::{Credentials, client_config, server_config};

use super::{Case, GATEWAY_ID};

/// Presents `case` to the gateway at `address`, and waits for its first byte or its end.
///
/// `credentials` are the gateway's own: what it is verified with. `Err` is the alert it sent.
pub(crate) async fn call(
    address: SocketAddr,
    server_name: &str,
    case: &Case,
    credentials: &Arc<Credentials>,
) -> Result<(), AlertDescription> {
    let gateway = IdPattern::parse(GATEWAY_ID).unwrap();
    let (config, _) = client_config(credentials, &[gateway], &[]).unwrap();
    let mut config = (*config).clone();
    config.client_auth_cert_resolver = match certified_key(case) {
        Some(key) => Arc::new(SingleCertAndKey::from(key)),
        None => Arc::new(NoCertificate),
    };
    let server_name = ServerName::try_from(server_name.to_owned()).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(server_name, tcp)
        .await
        .map_err(|error| alert(&error))?;
    // In TLS 1.3 a client is done before its certificate is judged: the alert comes as data would.
    let mut byte = [0];
    match stream.read(&mut byte).await {
        Ok(_) => {
            // What it meets, the end or not, is no verdict on the certificate.
            stream.shutdown().await.ok();
            Ok(())
        }
        Err(error) => Err(alert(&error)),
    }
}

/// Accepts one connection on `listener` and presents `case` as its server.
///
/// `credentials` verify the gateway that calls. `Err` is the alert it sent.
pub(crate) async fn answer(
    listener: &TcpListener,
    case: &Case,
    credentials: &Arc<Credentials>,
) -> Result<(), AlertDescription> {
    let (config, _) = server_config(credentials, &[]).unwrap();
    let mut config = (*config).clone();
    let key = certified_key(case).expect("a server has a certificate");
    config.cert_resolver = Arc::new(SingleCertAndKey::from(key));
    let (tcp, _) = listener.accept().await.unwrap();
    let mut stream = TlsAcceptor::from(Arc::new(config))
        .accept(tcp)
        .await
        .map_err(|error| alert(&error))?;
    stream.write_all(b"k").await.unwrap();
    stream.shutdown().await.unwrap();
    Ok(())
}

fn alert(error: &std::io::Error) -> AlertDescription {
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert, but {error:?}"),
    }
}

/// What rustls presents for the case; `None`: nothing.
fn certified_key(case: &Case) -> Option<CertifiedKey> {
    if case.chain.is_empty() {
        return None;
    }
    let key: Arc<dyn SigningKey> = match &case.key {
        Some(der) => {
            let der = PrivateKeyDer::Pkcs8(der.clone().into());
            default_provider()
                .key_provider
                .load_private_key(der)
                .unwrap()
        }
        None => Arc::new(Junk),
    };
    Some(CertifiedKey::new(case.chain.clone(), key))
}

/// Offers no client certificate where one is asked for.
#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// Signs anything with bytes that are no signature.
#[derive(Debug)]
struct Junk;

impl SigningKey for Junk {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        Some(Box::new(Self))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for Junk {
    fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        Ok(vec![0x30, 6, 2, 1, 1, 2, 1, 1])
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}
