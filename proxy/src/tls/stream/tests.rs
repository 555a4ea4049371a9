//! The stream against tokio-rustls, and against peers that break the rules.

mod carrier;
mod hostile;
mod memory;
mod oracle;

use std::io::{self, IoSlice};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::kx_group;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::TlsStream;
use super::connection::{Connection, Sealing};
use crate::tls::config::provider;
use carrier::Tampered;

/// Far more than any of it takes.
const DEADLINE: Duration = Duration::from_secs(10);

/// Two sides that accept each other, with TLS as the gateway has it.
struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// Wants a certificate, which the client has not.
    strict_server: Arc<ServerConfig>,
    /// Knows nobody who may vouch for the server.
    wary_client: Arc<ClientConfig>,
}

static SIDES: LazyLock<Sides> = LazyLock::new(|| {
    // The hybrid exchange costs time and tests nothing of ours.
    let provider = Arc::new(CryptoProvider {
        kx_groups: vec![kx_group::X25519],
        ..CryptoProvider::clone(provider())
    });
    // Ed25519: a signature is always as long, and so is a handshake.
    let self_signed = || {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let params = CertificateParams::new(["orders.shop".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap(), key)
    };
    let (cert, signing_key) = self_signed();
    let mut roots = RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let roots = Arc::new(roots);
    let chain: Vec<CertificateDer<'static>> = vec![cert.der().clone()];
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let server = || {
        ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
    };
    let client = |roots: RootCertStore| {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        // A handshake is to be as long as the one before.
        config.resumption = Resumption::disabled();
        Arc::new(config)
    };
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let strangers = {
        let (other, _key) = self_signed();
        let mut roots = RootCertStore::empty();
        roots.add(other.der().clone()).unwrap();
        roots
    };
    Sides {
        server: Arc::new(
            server()
                .with_no_client_auth()
                .with_single_cert(chain.clone(), key.clone_key())
                .unwrap(),
        ),
        client: client(RootCertStore::clone(&roots)),
        strict_server: Arc::new(
            server()
                .with_client_cert_verifier(verifier)
                .with_single_cert(chain, key)
                .unwrap(),
        ),
        wary_client: client(strangers),
    }
});

fn name() -> ServerName<'static> {
    ServerName::try_from("orders.shop").unwrap()
}

trait Io: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Io for T {}

/// Whose implementation a side runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    Oracle,
}

async fn accept<S: Io + 'static>(kind: Kind, carrier: S) -> io::Result<Box<dyn Io>> {
    let config = Arc::clone(&SIDES.server);
    Ok(match kind {
        Kind::Ours => TlsStream::accept(config, carrier).await.map_err(|e| e.0)?,
        Kind::Oracle => Box::new(TlsAcceptor::from(config).accept(carrier).await?),
    })
}

async fn connect<S: Io + 'static>(kind: Kind, carrier: S) -> io::Result<Box<dyn Io>> {
    let config = Arc::clone(&SIDES.client);
    Ok(match kind {
        Kind::Ours => TlsStream::connect(config, name(), carrier)
            .await
            .map_err(|e| e.0)?,
        Kind::Oracle => Box::new(TlsConnector::from(config).connect(name(), carrier).await?),
    })
}

type Ours = Box<TlsStream<DuplexStream>>;

/// Our client, whose part of the handshake has been sent.
async fn connect_whole<S: Io>(carrier: S) -> Box<TlsStream<S>> {
    let config = Arc::clone(&SIDES.client);
    let connected = TlsStream::connect(config, name(), carrier).await;
    let Ok(mut stream) = connected else {
        panic!("no session");
    };
    stream.flush().await.unwrap();
    stream
}

/// Our server and a client of tokio-rustls.
async fn with_oracle_client() -> (Ours, tokio_rustls::client::TlsStream<DuplexStream>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (ours, theirs) = tokio::join!(
        TlsStream::accept(Arc::clone(&SIDES.server), near),
        TlsConnector::from(Arc::clone(&SIDES.client)).connect(name(), far),
    );
    (ours.unwrap(), theirs.unwrap())
}

/// Our client and a server of tokio-rustls.
async fn with_oracle_server() -> (Ours, tokio_rustls::server::TlsStream<DuplexStream>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (ours, theirs) = tokio::join!(
        connect_whole(near),
        TlsAcceptor::from(Arc::clone(&SIDES.server)).accept(far),
    );
    (ours, theirs.unwrap())
}

fn tls_error(error: &io::Error) -> &rustls::Error {
    let inner = error.get_ref().expect("an error of rustls");
    inner.downcast_ref().expect("an error of rustls")
}

#[tokio::test]
async fn close_notify_ends_one_direction_and_leaves_the_other_open() {
    let (mut ours, mut theirs) = with_oracle_client().await;
    theirs.write_all(b"question").await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut asked = String::new();
    ours.read_to_string(&mut asked).await.unwrap();
    assert_eq!(asked, "question");
    ours.write_all(b"answer").await.unwrap();
    ours.shutdown().await.unwrap();
    let mut answered = String::new();
    theirs.read_to_string(&mut answered).await.unwrap();
    assert_eq!(answered, "answer");
    let refused = ours.write_all(b"more").await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn an_end_without_close_notify_is_an_error_and_leaves_writing_open() {
    let (mut ours, theirs) = with_oracle_client().await;
    let (mut carrier, mut session) = theirs.into_inner();
    carrier.shutdown().await.unwrap();
    for _ in 0..2 {
        // RFC 8446 §6.1: the data may be truncated.
        let error = ours.read(&mut [0; 16]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
    ours.write_all(b"still").await.unwrap();
    ours.flush().await.unwrap();
    let mut wire = vec![0; 1024];
    let n = carrier.read(&mut wire).await.unwrap();
    session.read_tls(&mut &wire[..n]).unwrap();
    let state = session.process_new_packets().unwrap();
    assert_eq!(state.plaintext_bytes_to_read(), 5);
}

#[tokio::test]
async fn a_missing_client_certificate_is_told_by_an_alert_before_the_end() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let theirs = async {
        let config = Arc::clone(&SIDES.client);
        // RFC 8446 §4.4.2: a client has done its part before the server has seen it.
        let mut stream = TlsConnector::from(config)
            .connect(name(), far)
            .await
            .unwrap();
        stream.read(&mut [0; 16]).await.unwrap_err()
    };
    let accepting = TlsStream::accept(Arc::clone(&SIDES.strict_server), near);
    let (ours, theirs) = tokio::join!(accepting, theirs);
    let (error, _carrier) = ours.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(*tls_error(&error), rustls::Error::NoCertificatesPresented);
    let expected = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
    assert_eq!(*tls_error(&theirs), expected);
}

#[tokio::test]
async fn a_refused_server_certificate_is_told_by_an_alert_before_the_end() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let (ours, theirs) = tokio::join!(
        TlsStream::connect(Arc::clone(&SIDES.wary_client), name(), near),
        TlsAcceptor::from(Arc::clone(&SIDES.server)).accept(far),
    );
    let (error, _carrier) = ours.unwrap_err();
    let refused = matches!(tls_error(&error), rustls::Error::InvalidCertificate(_));
    assert!(refused, "{error}");
    let Err(theirs) = theirs else {
        panic!("the server took it for a session");
    };
    let told = matches!(tls_error(&theirs), rustls::Error::AlertReceived(_));
    assert!(told, "{theirs}");
}

#[tokio::test]
async fn the_last_flight_of_a_client_leaves_with_what_it_says_first() {
    let (near, far) = tokio::io::duplex(1 << 16);
    let accept = TlsAcceptor::from(Arc::clone(&SIDES.server)).accept(far);
    let connect = TlsStream::connect(Arc::clone(&SIDES.client), name(), Tampered::counted(near));
    let client = async {
        let mut ours = connect.await.unwrap();
        assert_eq!(ours.carrier.writes, 1, "the hello");
        ours.write_all(b"both").await.unwrap();
        assert_eq!(ours.carrier.writes, 2, "the flight and the bytes");
        ours
    };
    let server = async {
        let mut theirs = accept.await.unwrap();
        let mut read = [0; 4];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"both");
        theirs
    };
    let both = async { tokio::join!(client, server) };
    timeout(DEADLINE, Box::pin(both)).await.unwrap();
}

#[tokio::test]
async fn the_last_flight_of_a_client_does_not_wait_where_the_server_speaks_first() {
    for shuts_down in [false, true] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let client = async {
            let config = Arc::clone(&SIDES.client);
            let mut ours = TlsStream::connect(config, name(), near).await.unwrap();
            if shuts_down {
                ours.shutdown().await.unwrap();
            }
            let mut read = [0; 4];
            ours.read_exact(&mut read).await.unwrap();
            assert_eq!(&read, b"hail");
        };
        let server = async {
            let acceptor = TlsAcceptor::from(Arc::clone(&SIDES.server));
            let mut theirs = acceptor.accept(far).await.unwrap();
            theirs.write_all(b"hail").await.unwrap();
            theirs.flush().await.unwrap();
            theirs
        };
        let both = async { tokio::join!(client, server) };
        timeout(DEADLINE, Box::pin(both)).await.unwrap();
    }
}

#[tokio::test]
async fn a_write_fails_only_while_none_of_it_has_left() {
    for (takes, written) in [(0, None), (7, Some(8))] {
        let (near, far) = tokio::io::duplex(1 << 16);
        let accept = TlsAcceptor::from(Arc::clone(&SIDES.server)).accept(far);
        let (mut ours, _theirs) = tokio::join!(connect_whole(Tampered::counted(near)), accept);
        ours.carrier.takes = takes;
        let wrote = ours.write(b"question").await;
        assert_eq!(wrote.ok(), written, "{takes}");
        let error = ours.flush().await.err();
        assert_eq!(error.is_some(), written.is_some(), "{takes}");
        let more = ours.write(b"more").await.unwrap_err();
        assert_eq!(more.kind(), io::ErrorKind::ConnectionReset, "{takes}");
    }
}

#[test]
fn a_record_without_room_is_an_error() {
    let mut connection = Connection::client(Arc::clone(&SIDES.client), name()).unwrap();
    let mut sealing = Sealing {
        slices: &[IoSlice::new(b"question")],
        limit: 8,
        gathered: &mut Vec::new(),
        ciphertext: &mut [0; 64],
        taken: 0,
        len: 0,
    };
    // Its hello is ready, and longer than that.
    let error = connection.seal(&mut [], &mut sealing).unwrap_err();
    assert_eq!(error.to_string(), "a TLS record has no room");
    assert_eq!(sealing.len, 0);
    let error = sealing.append(&[0; 65]).unwrap_err();
    assert_eq!(error.to_string(), "a TLS record has no room");
}

#[tokio::test]
async fn traffic_keys_change_in_both_directions() {
    let (mut ours, mut theirs) = with_oracle_server().await;
    let mut message = [0; 4];
    for round in 0..40_u32 {
        // Asks us for new keys as well (RFC 8446 §4.6.3).
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
        theirs.write_all(&round.to_be_bytes()).await.unwrap();
        theirs.flush().await.unwrap();
        ours.read_exact(&mut message).await.unwrap();
        assert_eq!(u32::from_be_bytes(message), round);
        ours.write_all(&message).await.unwrap();
        ours.flush().await.unwrap();
        theirs.read_exact(&mut message).await.unwrap();
        assert_eq!(u32::from_be_bytes(message), round);
    }
}

#[tokio::test]
async fn a_stream_carries_a_stream() {
    let (ours, theirs) = with_oracle_client().await;
    let (mut server, mut client) = {
        let (server, client) = tokio::join!(
            TlsStream::accept(Arc::clone(&SIDES.server), ours),
            connect_whole(theirs),
        );
        (server.unwrap(), client)
    };
    client.write_all(b"within").await.unwrap();
    client.shutdown().await.unwrap();
    let mut read = String::new();
    server.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "within");
}
