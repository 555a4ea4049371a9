//! Handshakes with ourselves and with others, and who decides in them.

use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustls::CertificateError;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::{PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use zeugma_core::svid::Rule;

use super::*;
use crate::fixture::{certify, svid_files};
use crate::tls::{SvidFiles, Usage};

const CART: &str = "spiffe://east.example/ns/shop/sa/cart";
const DB: &str = "spiffe://east.example/ns/shop/sa/db";

/// Two of `east.example`, who know each other.
fn pair() -> [Arc<Credentials>; 2] {
    let folder = tempfile::tempdir().unwrap();
    certify(&folder, &[("cart", CART), ("db", DB)]);
    ["cart", "db"].map(|name| {
        let files = svid_files(&folder, name);
        Arc::new(Credentials::load(&files, 1).unwrap())
    })
}

fn admits(verdict: bool) -> Option<Admit> {
    Some(Box::new(move |_| verdict))
}

fn towards(credentials: &Arc<Credentials>, expected: &str) -> (Arc<ClientConfig>, PeerSlot) {
    let address = SocketAddr::from(([127, 0, 0, 1], 1));
    let expected = [IdPattern::parse(expected).unwrap()];
    upstream_config(credentials, address, &expected, &[]).unwrap()
}

fn to_anyone(credentials: &Arc<Credentials>) -> Arc<ClientConfig> {
    towards(credentials, "spiffe://east.example/*").0
}

/// Presents the chain of another, whose key it has not.
fn impostor(credentials: &Arc<Credentials>) -> Arc<ClientConfig> {
    let key = rcgen::KeyPair::generate().unwrap();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let key = default_provider().key_provider.load_private_key(key);
    let shown = CertifiedKey::new(credentials.chain().to_vec(), key.unwrap());
    let mut config = ClientConfig::clone(&to_anyone(credentials));
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown));
    Arc::new(config)
}

type Shaken = Result<Box<TlsStream<DuplexStream>>, (io::Error, DuplexStream)>;

/// A client's last flight leaves with what it says first: here it says nothing.
async fn connect(config: &Arc<ClientConfig>, near: DuplexStream) -> Shaken {
    let name = ServerName::try_from("east.test").unwrap();
    let mut stream = TlsStream::connect(Arc::clone(config), name, near).await?;
    // Who refuses us may be gone.
    stream.flush().await.ok();
    Ok(stream)
}

/// A handshake of these two: what the server has of it, and the client.
async fn meet(server: &Arc<ServerConfig>, client: &Arc<ClientConfig>) -> (Shaken, Shaken) {
    let (near, far) = tokio::io::duplex(64);
    tokio::join!(
        TlsStream::accept(Arc::clone(server), far),
        connect(client, near)
    )
}

fn error_of(shaken: Shaken) -> rustls::Error {
    let (error, _) = shaken.err().unwrap();
    let inner = error.get_ref().unwrap();
    inner.downcast_ref::<rustls::Error>().unwrap().clone()
}

fn id(slot: &PeerSlot) -> Option<&str> {
    Some(slot.peer()?.id.as_str())
}

fn general(why: &str) -> rustls::Error {
    rustls::Error::General(why.to_owned())
}

/// What rustls is told of a peer with another ID than one that is let in.
fn unexpected() -> rustls::Error {
    CertificateError::ApplicationVerificationFailure.into()
}

/// A handshake of these two, and what each side knows of the other.
async fn shake(
    (caller, upstream): (&Arc<Credentials>, &Arc<Credentials>),
    admit: bool,
    expected: &str,
) -> ((Shaken, PeerSlot), (Shaken, PeerSlot)) {
    let (near, far) = tokio::io::duplex(64);
    let (accepting, callers) = accept(upstream, &[], admits(admit), far).unwrap();
    let (config, upstreams) = towards(caller, expected);
    let (accepted, connected) = tokio::join!(accepting, connect(&config, near));
    ((accepted, callers), (connected, upstreams))
}

#[tokio::test]
async fn each_handshake_is_decided_by_its_own_verification() {
    let [cart, db] = pair();
    // All in one task, by turns.
    let (good, back, unwelcome, strange) = tokio::join!(
        shake((&cart, &db), true, DB),
        shake((&db, &cart), true, CART),
        shake((&cart, &db), false, DB),
        shake((&db, &cart), true, DB),
    );
    let ((accepted, caller), (connected, upstream)) = good;
    assert!(accepted.is_ok() && connected.is_ok());
    assert_eq!((id(&caller), id(&upstream)), (Some(CART), Some(DB)));
    let ((accepted, caller), (connected, upstream)) = back;
    assert!(accepted.is_ok() && connected.is_ok());
    assert_eq!((id(&caller), id(&upstream)), (Some(DB), Some(CART)));
    let ((accepted, caller), (_, upstream)) = unwelcome;
    assert_eq!((id(&caller), id(&upstream)), (None, Some(DB)));
    let (error, _) = accepted.err().unwrap();
    let refusal = caller.refusal(&error).unwrap();
    assert_eq!(refusal.violation.rule, Rule::UnexpectedId);
    let ((accepted, caller), (connected, upstream)) = strange;
    assert!(accepted.is_err());
    assert_eq!((id(&caller), id(&upstream)), (None, None));
    let (error, _) = connected.err().unwrap();
    let refusal = upstream.refusal(&error).unwrap();
    assert_eq!(refusal.violation.rule, Rule::UnexpectedId);
}

#[tokio::test]
async fn a_handshake_outside_of_a_verification_lets_nobody_in() {
    let [cart, db] = pair();
    let nobody = general("nobody decides in this handshake");
    let server = caller_config(&db, &[]).unwrap();
    let (accepted, _) = meet(&server, &to_anyone(&cart)).await;
    assert_eq!(error_of(accepted), nobody);

    // Nor does one that was given up half-way decide in the next of its task.
    let (mut near, far) = tokio::io::duplex(1 << 16);
    let (accepting, slot) = accept(&db, &[], None, far).unwrap();
    let mut accepting = Box::pin(accepting);
    near.write_all(&[0x16, 3]).await.unwrap();
    let polled = accepting
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(polled, Poll::Pending));
    drop(accepting);
    let (accepted, _) = meet(&server, &to_anyone(&cart)).await;
    assert_eq!(error_of(accepted), nobody);
    assert_eq!(id(&slot), None);
    let ((accepted, caller), _) = shake((&cart, &db), true, DB).await;
    assert!(accepted.is_ok());
    assert_eq!((id(&caller), id(&slot)), (Some(CART), None));
}

#[tokio::test]
async fn a_handshake_within_that_of_another_is_decided_by_its_own() {
    let [cart, db] = pair();
    let outer = Verification::new(&db, Check::Caller(admits(false)));
    let slot = outer.slot();
    let server = caller_config(&db, &[]).unwrap();
    let client = to_anyone(&cart);
    let within = async {
        let ((accepted, caller), (connected, upstream)) = shake((&cart, &db), true, DB).await;
        assert!(accepted.is_ok() && connected.is_ok());
        assert_eq!((id(&caller), id(&upstream)), (Some(CART), Some(DB)));
        meet(&server, &client).await.0
    };
    let accepted = outer.carry(Box::pin(within)).await;
    // What comes behind it is the outer one's again.
    assert_eq!(error_of(accepted), unexpected());
    assert_eq!(id(&slot), None);
}

#[tokio::test]
async fn a_verification_decides_on_its_own_side_alone() {
    let [cart, db] = pair();
    let one_side = general("a verification is of one side of a handshake");
    let anyone = vec![IdPattern::parse("spiffe://east.example/*").unwrap()];
    let upstream = Verification::new(&db, Check::Upstream(anyone));
    let slot = upstream.slot();
    let server = caller_config(&db, &[]).unwrap();
    let client = to_anyone(&cart);
    let (accepted, _) = upstream.carry(Box::pin(meet(&server, &client))).await;
    assert_eq!(error_of(accepted), one_side);
    assert_eq!(id(&slot), None);

    let caller = Verification::new(&cart, Check::Caller(None));
    let slot = caller.slot();
    let mut client = ClientConfig::clone(&client);
    let verifier = Arc::new(Verifier::Own(caller));
    client.dangerous().set_certificate_verifier(verifier);
    let (server, _) = server_config(&db, &[]).unwrap();
    let (_, connected) = meet(&server, &Arc::new(client)).await;
    assert_eq!(error_of(connected), one_side);
    assert_eq!(id(&slot), None);
}

#[tokio::test]
async fn a_configuration_decides_in_one_handshake() {
    let [cart, db] = pair();
    let again = general("a verification is of one handshake");

    let (server, caller) = server_config(&db, &[]).unwrap();
    let (accepted, _) = meet(&server, &to_anyone(&cart)).await;
    assert!(accepted.is_ok());
    assert_eq!(id(&caller), Some(CART));
    let (accepted, _) = meet(&server, &to_anyone(&db)).await;
    assert_eq!(error_of(accepted), again);
    assert_eq!(id(&caller), Some(CART));

    let (client, upstream) = towards(&cart, "spiffe://east.example/*");
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
    let refused = rustls::Error::from(CertificateError::BadSignature);
    assert_eq!(error_of(accepted), refused);
    let (accepted, _) = meet(&server, &to_anyone(&cart)).await;
    assert_eq!(error_of(accepted), again);
    assert_eq!(id(&caller), None);
}

#[tokio::test]
async fn a_chain_presented_without_its_key_is_not_kept() {
    let [cart, db] = pair();
    let (server, caller) = server_config(&db, &[]).unwrap();
    let (accepted, _) = meet(&server, &impostor(&cart)).await;
    let (error, _) = accepted.err().unwrap();
    let refusal = caller.refusal(&error).unwrap();
    assert_eq!(refusal.violation.rule, Rule::NoPossession);
    assert_eq!(db.cached_chains(), 0);

    for _ in 0..2 {
        let (server, caller) = server_config(&db, &[]).unwrap();
        let (accepted, _) = meet(&server, &to_anyone(&cart)).await;
        assert!(accepted.is_ok());
        assert_eq!(id(&caller), Some(CART));
        assert_eq!((db.cached_chains(), cart.cached_chains()), (1, 1));
    }
}

#[tokio::test]
async fn a_known_chain_is_judged_by_the_time_of_each_handshake() {
    let folder = tempfile::tempdir().unwrap();
    certify(&folder, &[("cart", CART), ("db", DB)]);
    let load = |name| Arc::new(Credentials::load(&svid_files(&folder, name), 1).unwrap());
    let (cart, db) = (load("cart"), load("db"));
    let (leaf, rest) = cart.chain().split_first().unwrap();
    let now = UnixTime::now();
    let verify = |usage, at| db.verify(leaf, rest, usage, at);
    let unknown = verify(Usage::Client, now).unwrap();
    assert_eq!(db.cached_chains(), 0, "nobody has proved a key");
    let ((accepted, _), _) = shake((&cart, &db), true, DB).await;
    assert!(accepted.is_ok());
    assert_eq!(db.cached_chains(), 1);
    let known = verify(Usage::Client, now).unwrap();
    let again = verify(Usage::Client, now).unwrap();
    assert!(
        Arc::ptr_eq(&known, &again) && !Arc::ptr_eq(&known, &unknown),
        "its signatures are not computed again"
    );
    let other = verify(Usage::Server, now).unwrap();
    assert!(!Arc::ptr_eq(&known, &other), "known in another role");
    assert_eq!((&known, &known), (&unknown, &other));
    let seconds = u64::try_from(known.not_after).unwrap();
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let last = verify(Usage::Client, at(seconds)).unwrap();
    assert!(Arc::ptr_eq(&known, &last));
    let late = verify(Usage::Client, at(seconds + 1)).unwrap_err();
    assert_eq!(late.violation.rule, Rule::Expired);

    // Other credentials begin with nothing, and ask their own deny list.
    let files = SvidFiles {
        denied: Some(folder.path().join("denied")),
        ..svid_files(&folder, "db")
    };
    std::fs::write(files.denied.as_ref().unwrap(), format!("{CART}\n")).unwrap();
    let next = Arc::new(db.reload(&files).unwrap());
    assert_eq!((next.generation(), next.cached_chains()), (2, 0));
    assert!(next.differs(&db));
    let denied = next.verify(leaf, rest, Usage::Client, now).unwrap_err();
    assert_eq!(denied.violation.rule, Rule::DeniedId);
    let ((accepted, _), _) = shake((&cart, &next), true, DB).await;
    assert!(accepted.is_err());
    assert_eq!(next.cached_chains(), 0);
}
