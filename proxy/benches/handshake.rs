//! What does a full mTLS handshake cost, both sides together and in memory, when both chains are
//! verified for the first time, and when both are known?
//!
//! Would change a decision: a known chain that saves under a fifth is not worth a cache.
//!
//! `cargo bench -p zeugma-proxy --bench handshake`; under `valgrind --tool=callgrind`, with `first` or
//! `known` as its argument, it runs these alone.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a measurement"
)]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::{ClientConnection, ServerConnection};
use rustls_pki_types::{ServerName, UnixTime};
use zeugma_core::identity::IdPattern;
use zeugma_proxy::tls::{
    Credentials, SvidFiles, Usage, client_config, server_config, verify_chain,
};

/// Pairs of credentials that never met: each begins with an empty cache.
const PAIRS: usize = 300;
/// Samples; each is the mean over the pairs of its share.
const SAMPLES: usize = 10;

struct Pair {
    client: Arc<Credentials>,
    server: Arc<Credentials>,
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn ca(serial: u8) -> CertificateParams {
    let mut ca = CertificateParams::default();
    ca.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(5);
    ca.not_after = ca.not_before + time::Duration::days(1);
    ca.distinguished_name.push(DnType::CommonName, "east");
    ca.serial_number = Some(SerialNumber::from_slice(&[serial]));
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.subject_alt_names = vec![uri("spiffe://east.example")];
    ca
}

/// P-256 throughout; presented is what our CA issues: the leaf and its issuer's cross certificate.
fn credentials(
    folder: &Path,
    issuer: &CertifiedIssuer<'static, KeyPair>,
    nth: usize,
) -> Credentials {
    let mut leaf = CertificateParams::default();
    leaf.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(2);
    leaf.not_after = leaf.not_before + time::Duration::hours(1);
    let serial = u16::try_from(nth + 1).unwrap().to_be_bytes();
    leaf.serial_number = Some(SerialNumber::from_slice(&[0x40, serial[0], serial[1]]));
    leaf.subject_alt_names = vec![uri(&format!("spiffe://east.example/ns/shop/sa/{nth}"))];
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    leaf.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.signed_by(&key, issuer).unwrap();
    let files = SvidFiles {
        certificate: folder.join("gw.pem"),
        key: folder.join("gw.key"),
        bundles: folder.join("bundles"),
        crls: None,
        denied: None,
        domains: Vec::new(),
        own: None,
    };
    let chain = format!("{}{}", certificate.pem(), issuer.pem());
    std::fs::write(&files.certificate, chain).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    let owner_alone = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(&files.key, owner_alone).unwrap();
    Credentials::load(&files, 1).unwrap()
}

fn handshake(pair: &Pair, anyone: &[IdPattern]) {
    let (client, _) = client_config(&pair.client, anyone, &[b"h2"]).unwrap();
    let (server, slot) = server_config(&pair.server, &[b"h2"]).unwrap();
    let name = ServerName::try_from("orders.shop.svc").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(server).unwrap();
    let mut bytes = Vec::with_capacity(8192);
    while client.is_handshaking() || server.is_handshaking() {
        bytes.clear();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let mut read = &bytes[..];
        while !read.is_empty() {
            server.read_tls(&mut read).unwrap();
            server.process_new_packets().unwrap();
        }
        bytes.clear();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        let mut read = &bytes[..];
        while !read.is_empty() {
            client.read_tls(&mut read).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert!(slot.peer().is_some());
}

/// The mean of each sample, sorted.
fn measure(pairs: &[Pair], mut each: impl FnMut(&Pair)) -> Vec<Duration> {
    let share = pairs.len() / SAMPLES;
    let mut means: Vec<Duration> = (pairs.chunks(share))
        .map(|chunk| {
            let began = Instant::now();
            chunk.iter().for_each(&mut each);
            began.elapsed() / u32::try_from(chunk.len()).unwrap()
        })
        .collect();
    means.sort_unstable();
    means
}

fn tell(what: &str, means: &[Duration]) {
    let median = means[means.len() / 2];
    println!(
        "{what:<44} {median:>12.2?}  ({:.2?} to {:.2?})",
        means[0],
        means[means.len() - 1]
    );
}

fn main() {
    let only = std::env::args().nth(1).unwrap_or_default();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let issuer = CertifiedIssuer::self_signed(ca(1), KeyPair::generate().unwrap()).unwrap();
    std::fs::create_dir(folder.join("bundles")).unwrap();
    std::fs::write(folder.join("bundles/east.example.pem"), issuer.pem()).unwrap();
    let pairs = if only == "first" || only == "known" {
        20
    } else {
        PAIRS
    };
    let pairs: Vec<Pair> = (0..pairs)
        .map(|nth| Pair {
            client: Arc::new(credentials(folder, &issuer, 2 * nth)),
            server: Arc::new(credentials(folder, &issuer, 2 * nth + 1)),
        })
        .collect();
    let anyone = [IdPattern::parse("spiffe://east.example/*").unwrap()];
    match only.as_str() {
        "first" => pairs.iter().for_each(|pair| handshake(pair, &anyone)),
        "known" => (0..20).for_each(|_| handshake(&pairs[0], &anyone)),
        _ => {
            let warm = Pair {
                client: Arc::new(credentials(folder, &issuer, 2 * PAIRS)),
                server: Arc::new(credentials(folder, &issuer, 2 * PAIRS + 1)),
            };
            (0..50).for_each(|_| handshake(&warm, &anyone));
            let first = measure(&pairs, |pair| handshake(pair, &anyone));
            let known = measure(&pairs, |pair| handshake(pair, &anyone));
            tell("handshake, chains seen first", &first);
            tell("handshake, chains known", &known);
            micro(&pairs);
        }
    }
}

fn micro(pairs: &[Pair]) {
    let now = UnixTime::now();
    let chain = |of: &Credentials| of.chain().to_vec();
    let chains: Vec<_> = pairs.iter().map(|pair| chain(&pair.client)).collect();
    let mut nth = 0;
    let mut next = || {
        nth += 1;
        &chains[(nth - 1) % chains.len()]
    };
    let verified = measure(pairs, |pair| {
        drop(verify_chain(next(), pair.server.bundles(), Usage::Client, now).unwrap());
    });
    let known = measure(pairs, |pair| {
        let chain = pair.client.chain();
        drop(
            pair.server
                .verify(&chain[0], &chain[1..], Usage::Client, now)
                .unwrap(),
        );
    });
    let anyone = [IdPattern::parse("spiffe://east.example/*").unwrap()];
    let server = measure(pairs, |pair| {
        drop(server_config(&pair.server, &[b"h2", b"http/1.1"]).unwrap());
    });
    let client = measure(pairs, |pair| {
        drop(client_config(&pair.client, &anyone, &[b"h2", b"http/1.1"]).unwrap());
    });
    tell("a chain verified", &verified);
    tell("a chain known", &known);
    tell("a server's configuration", &server);
    tell("a client's configuration", &client);
}
