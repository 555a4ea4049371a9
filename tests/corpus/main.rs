//! The negative corpus (`support/corpus.rs`): through the verifier, then over real TLS on loopback,
//! with the peer as client and as upstream.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

#[path = "../support/corpus.rs"]
mod corpus;
mod files;
mod mutation;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::Resumption;
use rustls::{AlertDescription, CipherSuite, HandshakeKind, NamedGroup, ProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeugma_core::identity::IdPattern;
use zeugma_core::svid::Rule;
use zeugma_proxy::tls::{
    Credentials, PeerSlot, Refusal, TlsPeer, TlsStream, Usage, client_config, server_config,
    verify_chain,
};

use corpus::{Case, GATEWAY_ID, Outcome, REFERENCE_ID, Roles, World, cases};

/// Longer than any handshake here takes, shorter than anyone waits.
const DEADLINE: Duration = Duration::from_secs(10);

struct Bench {
    world: World,
    credentials: Arc<Credentials>,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new();
        let files = world.write(folder.path());
        let credentials = Arc::new(Credentials::load(&files, 1).unwrap());
        Self {
            world,
            credentials,
            _folder: folder,
        }
    }

    fn verify(&self, chain: &[CertificateDer<'_>], usage: Usage) -> Result<TlsPeer, Refusal> {
        verify_chain(chain, self.credentials.bundles(), usage, UnixTime::now())
    }
}

#[test]
fn the_corpus_has_forty_refused_and_eight_accepted_cases_with_names_of_their_own() {
    let cases = cases(&World::new());
    let names: BTreeSet<_> = cases.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), cases.len());
    let refused = cases.iter().filter(|c| c.outcome != Outcome::Accepted);
    let refused: Vec<_> = refused.collect();
    assert!(refused.len() >= 40, "{}", refused.len());
    assert!(cases.len() - refused.len() >= 8);
}

#[test]
fn every_case_meets_its_rule_in_the_verifier_in_both_roles() {
    let bench = Bench::new();
    for case in cases(&bench.world) {
        for usage in [Usage::Client, Usage::Server] {
            let verdict = bench.verify(&case.chain, usage);
            let seen = verdict.as_ref().map(|peer| peer.id.to_string());
            let seen = seen.map_err(|refusal| (refusal.violation.rule, refusal.alert));
            let expected = match case.outcome {
                Outcome::Accepted => Ok(case.id.clone().unwrap()),
                // Only a handshake can tell.
                Outcome::Refused(Rule::NoPossession, _) => Ok(REFERENCE_ID.to_owned()),
                Outcome::Refused(rule, alert) => Err((rule, alert)),
            };
            assert_eq!(seen, expected, "{}, {usage:?}: {verdict:?}", case.name);
        }
    }
}

#[test]
fn an_accepted_peer_carries_its_path() {
    let bench = Bench::new();
    let cases = cases(&bench.world);
    let peer = |name: &str| {
        let case = cases.iter().find(|case| case.name == name).unwrap();
        bench.verify(&case.chain, Usage::Client).unwrap()
    };
    let reference = peer("reference");
    assert_eq!(reference.serials.len(), 1, "the anchor is not of the path");
    assert_eq!(reference.serials[0].to_string(), "4a010203040506070809");
    assert_eq!(reference.not_after, bench.world.now + 3600);
    let deep = peer("six issuers");
    assert_eq!(deep.serials.len(), 7);
    assert_ne!(deep.anchor, reference.anchor);
    let renewed = peer("renewed anchor");
    let bundle = "renewed.example";
    let bundle = zeugma_core::identity::TrustDomain::parse(bundle).unwrap();
    let bundle = bench.credentials.bundles().get(&bundle).unwrap();
    assert_eq!(renewed.anchor, bundle.anchors()[1].fingerprint);
}

#[tokio::test]
async fn every_case_meets_its_rule_and_alert_as_a_client_over_tls() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for case in cases(&bench.world) {
        let (ours, theirs) = timeout(
            DEADLINE,
            Box::pin(async {
                tokio::join!(
                    accept(&listener, &bench.credentials),
                    corpus::call(address, "orders.shop", &case, &bench.credentials),
                )
            }),
        )
        .await
        .unwrap_or_else(|_| panic!("{}: no end", case.name));
        check(&case, &ours, theirs);
    }
}

#[tokio::test]
async fn every_case_meets_its_rule_and_alert_as_an_upstream_over_tls() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for case in cases(&bench.world) {
        if case.roles == Roles::ClientOnly {
            continue;
        }
        let expected = [case.id.as_deref().unwrap_or(REFERENCE_ID)];
        let (ours, theirs) = timeout(
            DEADLINE,
            Box::pin(async {
                tokio::join!(
                    connect(address, &bench.credentials, &expected),
                    corpus::answer(&listener, &case, &bench.credentials),
                )
            }),
        )
        .await
        .unwrap_or_else(|_| panic!("{}: no end", case.name));
        check(&case, &ours, theirs);
    }
}

#[tokio::test]
async fn an_upstream_that_is_someone_else_is_denied_inside_the_handshake() {
    let bench = Bench::new();
    let cases = cases(&bench.world);
    let reference = cases.iter().find(|case| case.name == "reference").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for expected in [
        // T7: matched by segment, never by prefix.
        &["spiffe://east.example/ns/shop/sa/car"][..],
        &["spiffe://east.example/ns/shop/sa/cart/*"],
        &["spiffe://west.example/ns/shop/sa/cart", GATEWAY_ID],
        &[],
    ] {
        let (ours, theirs) = tokio::join!(
            connect(address, &bench.credentials, expected),
            corpus::answer(&listener, reference, &bench.credentials),
        );
        let refusal = ours.unwrap_err();
        assert_eq!(refusal.label(), "unexpected-id", "{refusal}");
        assert!(refusal.to_string().contains(REFERENCE_ID), "{refusal}");
        assert_eq!(theirs, Err(AlertDescription::AccessDenied));
    }
    let pattern = &["spiffe://east.example/ns/shop/*"];
    let (ours, theirs) = tokio::join!(
        connect(address, &bench.credentials, pattern),
        corpus::answer(&listener, reference, &bench.credentials),
    );
    assert_eq!(ours.unwrap().id.as_str(), REFERENCE_ID);
    assert_eq!(theirs, Ok(()));
}

#[tokio::test]
async fn a_handshake_is_tls13_hybrid_aes128_and_never_resumed() {
    let bench = Bench::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = IdPattern::parse(GATEWAY_ID).unwrap();
    // A caller that would resume if it were let.
    let sessions = Resumption::in_memory_sessions(8);
    for _ in 0..3 {
        let expected = std::slice::from_ref(&gateway);
        let (config, _) = client_config(&bench.credentials, expected, &[]).unwrap();
        let mut config = (*config).clone();
        config.resumption = sessions.clone();
        let call = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            let name = ServerName::try_from("orders.shop").unwrap();
            let connector = TlsConnector::from(Arc::new(config));
            let mut stream = connector.connect(name, tcp).await.unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).await.unwrap();
            stream
        };
        let (peer, stream) = Box::pin(timeout(DEADLINE, async {
            tokio::join!(accept(&listener, &bench.credentials), call)
        }))
        .await
        .unwrap();
        assert_eq!(peer.unwrap().id.as_str(), GATEWAY_ID);
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(connection.tls13_tickets_received(), 0);
        assert_eq!(
            connection.protocol_version(),
            Some(ProtocolVersion::TLSv1_3)
        );
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
        let group = connection.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
    }
}

#[tokio::test]
async fn alpn_is_negotiated_and_a_caller_without_a_common_protocol_is_refused() {
    let bench = Bench::new();
    let gateway = [IdPattern::parse(GATEWAY_ID).unwrap()];
    for (offered, accepted, agreed) in [
        (
            &[&b"h2"[..], b"zeugma-tcp/1"][..],
            &[&b"zeugma-tcp/1"[..]][..],
            Some(&b"zeugma-tcp/1"[..]),
        ),
        (&[], &[b"h2"], None),
        (&[b"h2"], &[], None),
    ] {
        let (client, _) = client_config(&bench.credentials, &gateway, offered).unwrap();
        let (server, _) = server_config(&bench.credentials, accepted).unwrap();
        let (client, server) = in_memory(client, server).await;
        assert_eq!(client.unwrap().get_ref().1.alpn_protocol(), agreed);
        assert_eq!(server.unwrap().get_ref().1.alpn_protocol(), agreed);
    }
    let (client, _) = client_config(&bench.credentials, &gateway, &[b"h2"]).unwrap();
    let (server, slot) = server_config(&bench.credentials, &[b"http/1.1"]).unwrap();
    let (_, server) = in_memory(client, server).await;
    let error = server.unwrap_err();
    assert_eq!(slot.refusal(&error), None, "not the certificate's fault");
    assert!(slot.peer().is_none());
}

type Client = tokio_rustls::client::TlsStream<tokio::io::DuplexStream>;
type Server = tokio_rustls::server::TlsStream<tokio::io::DuplexStream>;

async fn in_memory(
    client: Arc<rustls::ClientConfig>,
    server: Arc<rustls::ServerConfig>,
) -> (std::io::Result<Client>, std::io::Result<Server>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("orders.shop").unwrap();
    Box::pin(timeout(DEADLINE, async {
        tokio::join!(
            TlsConnector::from(client).connect(name, near),
            TlsAcceptor::from(server).accept(far),
        )
    }))
    .await
    .unwrap()
}

fn check(case: &Case, ours: &Result<TlsPeer, Refusal>, theirs: Result<(), AlertDescription>) {
    match case.outcome {
        Outcome::Accepted => {
            let peer = ours
                .as_ref()
                .unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert_eq!(Some(peer.id.as_str()), case.id.as_deref(), "{}", case.name);
            assert_eq!(theirs, Ok(()), "{}", case.name);
        }
        Outcome::Refused(rule, alert) => {
            let refusal = ours.as_ref().expect_err(case.name);
            assert_eq!(refusal.violation.rule, rule, "{}: {refusal}", case.name);
            assert_eq!(refusal.label(), rule.id());
            assert_eq!(refusal.alert, alert, "{}", case.name);
            assert_eq!(theirs, Err(alert), "{}", case.name);
        }
    }
}

/// One connection as the gateway's mesh listener takes it.
async fn accept(
    listener: &TcpListener,
    credentials: &Arc<Credentials>,
) -> Result<TlsPeer, Refusal> {
    let (tcp, _) = listener.accept().await.unwrap();
    let (config, slot) = server_config(credentials, &[]).unwrap();
    match TlsStream::accept(config, tcp).await {
        Ok(mut stream) => {
            stream.write_all(b"k").await.unwrap();
            stream.shutdown().await.unwrap();
            Ok(TlsPeer::clone(slot.peer().unwrap()))
        }
        Err((error, _tcp)) => Err(refusal(&slot, &error)),
    }
}

/// One connection as the gateway originates it.
async fn connect(
    address: std::net::SocketAddr,
    credentials: &Arc<Credentials>,
    expected: &[&str],
) -> Result<TlsPeer, Refusal> {
    let expected: Vec<_> = expected
        .iter()
        .map(|id| IdPattern::parse(id).unwrap())
        .collect();
    let (config, slot) = client_config(credentials, &expected, &[]).unwrap();
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("orders.shop").unwrap();
    match TlsStream::connect(config, name, tcp).await {
        Ok(mut stream) => {
            let mut byte = [0];
            stream.read_exact(&mut byte).await.unwrap();
            Ok(TlsPeer::clone(slot.peer().unwrap()))
        }
        Err((error, _tcp)) => Err(refusal(&slot, &error)),
    }
}

fn refusal(slot: &PeerSlot, error: &std::io::Error) -> Refusal {
    assert!(slot.peer().is_none(), "a refused peer is no peer");
    let found = slot.refusal(error);
    found.unwrap_or_else(|| panic!("no refusal for {error:?}"))
}
