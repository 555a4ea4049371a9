//! How a TLS session with the gateway ends that never began.

use std::io::Write as _;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::server::ServerSessionMemoryCache;
use rustls::{AlertDescription, HandshakeKind, NamedGroup, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeugma_proxy::tls::server_config;

use crate::mesh::{Ca, Cluster, Identity, Service, alert_of, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

#[tokio::test]
async fn a_request_sent_behind_a_refused_certificate_does_not_eat_the_alert() {
    let east = Cluster::new("east");
    // Of an authority of its own: north knows east, and not the other way round.
    let mut north = Cluster::of("north", Arc::new(Ca::new()));
    east.ca.write_bundle("east.example", &north.svid().bundles);
    let service = Service::http("orders").await;
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            port: 8080
            inbound: terminate
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ from: ['spiffe://east.example/*'] }}]
            export: {{ to: ['*'] }}",
            service.address
        ),
    );
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let stranger = north.identity("ns/shop/sa/cart");
    for _ in 0..5 {
        let tcp = TcpStream::connect(east.mesh).await.unwrap();
        let source = tcp.local_addr().unwrap();
        let connector = TlsConnector::from(Arc::new(stranger.client(&[b"http/1.1"])));
        let name = ServerName::try_from(ORDERS).unwrap();
        // Goes out in one piece with the certificate.
        let dialled = connector.connect_with(name, tcp, |session| {
            session.writer().write_all(&[b'x'; 48 * 1024]).unwrap();
        });
        let met = within("an alert", async {
            match dialled.await {
                Ok(mut stream) => stream.read_u8().await.map(|_| ()),
                Err(error) => Err(error),
            }
        });
        assert_eq!(
            alert_of(&met.await.unwrap_err()),
            AlertDescription::UnknownCA
        );
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], "certificate-refused", "{line}");
        assert_eq!(line["tls.alert"], "unknown_ca", "{line}");
    }
    assert_eq!(service.connections(), 0);
    gateway.sockets_fall_to(sockets).await;
    gateway.finish().await;
}

/// An endpoint that gives tickets and would take them, and knows these groups.
fn resuming(identity: &Identity, hybrid: bool) -> TlsAcceptor {
    let (ours, _) = server_config(&identity.credentials, &[]).unwrap();
    let mut kx_groups = vec![kx_group::X25519];
    if hybrid {
        kx_groups.push(kx_group::X25519MLKEM768);
    }
    let provider = CryptoProvider {
        kx_groups,
        ..default_provider()
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&ours.cert_resolver));
    config.session_storage = ServerSessionMemoryCache::new(64);
    TlsAcceptor::from(Arc::new(config))
}

#[tokio::test]
async fn an_endpoint_is_offered_the_group_it_chose_before_and_no_session() {
    const CLASSIC: NamedGroup = NamedGroup::X25519;
    const HYBRID: NamedGroup = NamedGroup::X25519MLKEM768;
    /// The share of X25519MLKEM768 (draft-ietf-tls-ecdhe-mlkem §4.1: 1216 bytes).
    const HYBRID_SHARE_BYTES: u16 = 1216;
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: shop/db");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let identity = east.identity("ns/shop/sa/db");
    east.route(
        "shop/db",
        &format!(
            "
            protocol: tcp
            port: 5432
            backends: [{{ endpoints: ['{}'], tls: mesh, spiffeIDs: ['spiffe://east.example/*'] }}]
            allow: [{{ listeners: [db] }}]",
            listener.local_addr().unwrap()
        ),
    );
    let gateway = east.start().await;
    let (old, new) = (resuming(&identity, false), resuming(&identity, true));
    let (whole, retried) = (
        HandshakeKind::Full,
        HandshakeKind::FullWithHelloRetryRequest,
    );
    for (nth, (acceptor, share, kind, group)) in [
        (&old, HYBRID, whole, CLASSIC),
        (&old, CLASSIC, whole, CLASSIC),
        (&old, CLASSIC, whole, CLASSIC),
        // It learns the hybrid group, sees that we prefer it, and asks for its share.
        (&new, CLASSIC, retried, HYBRID),
        (&new, HYBRID, whole, HYBRID),
        (&new, HYBRID, whole, HYBRID),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut header = [0; 5];
            while tcp.peek(&mut header).await.unwrap() < header.len() {}
            let hello = u16::from_be_bytes([header[3], header[4]]);
            let mut stream = acceptor.accept(tcp).await.unwrap();
            let (_, session) = stream.get_ref();
            let chosen = session.negotiated_key_exchange_group().unwrap().name();
            let seen = (
                hello > HYBRID_SHARE_BYTES,
                session.handshake_kind().unwrap(),
                chosen,
            );
            // Behind the tickets: what comes back has passed them.
            stream.write_all(b"k").await.unwrap();
            stream.shutdown().await.unwrap();
            seen
        };
        let call = async {
            let mut tcp = TcpStream::connect(db).await.unwrap();
            let mut bytes = Vec::new();
            tcp.read_to_end(&mut bytes).await.unwrap();
            bytes
        };
        let both = Box::pin(async { tokio::join!(answer, call) });
        let (seen, bytes) = within("an answer", both).await;
        assert_eq!(seen, (share == HYBRID, kind, group), "{nth}");
        assert_eq!(bytes, b"k", "{nth}");
    }
    gateway.finish().await;
}
