//! Does a TLS session cost less over our stream than over tokio-rustls?
//!
//! CPU time of the thread that sends and of the thread that receives, for each byte of bulk over
//! loopback, with writes and reads of 64 and 256 KiB; the other end is the same for both. And the
//! memory of a process for each idle session, of which it holds both ends. More than tokio-rustls's
//! time, or more than 16 kB a session, would change what the gateway uses.
//!
//! `cargo bench -p zeugma-proxy --bench tls_stream`
#![expect(clippy::unwrap_used, reason = "a measurement that fails is none")]
#![expect(clippy::print_stdout, reason = "the figures")]

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::thread;

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeugma_proxy::tls::TlsStream;

const BULK_BYTES: usize = 256 << 20;
const REPETITIONS: usize = 11;
const SESSIONS: usize = 2_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ours,
    TokioRustls,
}

const KINDS: [Kind; 2] = [Kind::Ours, Kind::TokioRustls];

struct Sides {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Sides {
    /// As the gateway has it: TLS 1.3, AES-128-GCM first, no tickets.
    fn new() -> Self {
        let provider = Arc::new(CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            ..default_provider()
        });
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["orders.shop".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let versions = [&rustls::version::TLS13];
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        server.send_tls13_tickets = 0;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            server: Arc::new(server),
            client: Arc::new(client),
        }
    }
}

/// A session of either implementation.
trait Session: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Session for T {}

async fn accept(kind: Kind, sides: &Sides, tcp: TcpStream) -> Box<dyn Session> {
    tcp.set_nodelay(true).unwrap();
    let config = Arc::clone(&sides.server);
    match kind {
        Kind::Ours => TlsStream::accept(config, tcp).await.unwrap(),
        Kind::TokioRustls => Box::new(TlsAcceptor::from(config).accept(tcp).await.unwrap()),
    }
}

async fn connect(kind: Kind, sides: &Sides, tcp: TcpStream) -> Box<dyn Session> {
    tcp.set_nodelay(true).unwrap();
    let config = Arc::clone(&sides.client);
    let name = ServerName::try_from("orders.shop").unwrap();
    match kind {
        Kind::Ours => TlsStream::connect(config, name, tcp).await.unwrap(),
        Kind::TokioRustls => {
            let connecting = TlsConnector::from(config).connect(name, tcp);
            Box::new(connecting.await.unwrap())
        }
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .unwrap();
    runtime.block_on(Box::pin(work))
}

/// What this thread has run for, in nanoseconds (proc(5): the first figure).
fn cpu_ns() -> u64 {
    // The kernel brings the figure up to date when a thread gives way.
    thread::yield_now();
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// What sending and receiving bulk cost, in nanoseconds of CPU time.
fn bulk(sides: &Arc<Sides>, sender: Kind, receiver: Kind, buffer_bytes: usize) -> (u64, u64) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    let receiving = {
        let sides = Arc::clone(sides);
        thread::spawn(move || {
            block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                let (tcp, _) = listener.accept().await.unwrap();
                let mut session = accept(receiver, &sides, tcp).await;
                let mut buffer = vec![0; buffer_bytes];
                let began = cpu_ns();
                let mut left = BULK_BYTES;
                while left > 0 {
                    left -= session.read(&mut buffer).await.unwrap();
                }
                cpu_ns() - began
            })
        })
    };
    let sending = {
        let sides = Arc::clone(sides);
        thread::spawn(move || {
            block_on(async {
                let tcp = TcpStream::connect(address).await.unwrap();
                let mut session = connect(sender, &sides, tcp).await;
                let buffer = vec![7; buffer_bytes];
                let began = cpu_ns();
                for _ in 0..BULK_BYTES / buffer_bytes {
                    session.write_all(&buffer).await.unwrap();
                }
                session.flush().await.unwrap();
                let sent = cpu_ns() - began;
                session.shutdown().await.unwrap();
                sent
            })
        })
    };
    (sending.join().unwrap(), receiving.join().unwrap())
}

/// The median of `samples`, and the spread of their inner half.
fn median(mut samples: Vec<u64>) -> (f64, f64) {
    samples.sort_unstable();
    let per_byte =
        |at: usize| samples.get(at).copied().unwrap_or_default() as f64 / BULK_BYTES as f64;
    let (low, high) = (samples.len() / 4, samples.len() * 3 / 4);
    (per_byte(samples.len() / 2), per_byte(high) - per_byte(low))
}

fn measure_bulk() {
    let sides = Arc::new(Sides::new());
    println!("CPU ns for each byte: median of {REPETITIONS} (spread of the inner half)");
    // With the last, records are decrypted in the reader's own buffer.
    for buffer_bytes in [64 * 1024, 256 * 1024, 288 * 1024] {
        let mut sent = [Vec::new(), Vec::new()];
        let mut received = [Vec::new(), Vec::new()];
        // In turns, so that whatever else the machine does is in both; the first warms up.
        for repetition in 0..=REPETITIONS {
            for (kind, (sent, received)) in
                KINDS.into_iter().zip(sent.iter_mut().zip(&mut received))
            {
                let sending = bulk(&sides, kind, Kind::Ours, buffer_bytes).0;
                let receiving = bulk(&sides, Kind::Ours, kind, buffer_bytes).1;
                if repetition > 0 {
                    sent.push(sending);
                    received.push(receiving);
                }
            }
        }
        for (what, samples) in [("send", sent), ("receive", received)] {
            let [ours, theirs] = samples.map(median);
            println!(
                "{what} {:>3} KiB: ours {:.3} ({:.3}), tokio-rustls {:.3} ({:.3}), ratio {:.2}",
                buffer_bytes / 1024,
                ours.0,
                ours.1,
                theirs.0,
                theirs.1,
                ours.0 / theirs.0
            );
        }
    }
}

fn pss_bytes() -> u64 {
    let text = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap();
    line.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 1024
}

/// What each session costs this process, which holds both ends, after a few bytes went each way.
fn measure_idle(kind: Kind) {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    block_on(async {
        let sides = Sides::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut sessions = Vec::with_capacity(2 * SESSIONS + 2);
        let mut began = 0;
        for nth in 0..=SESSIONS {
            let near = TcpStream::connect(address).await.unwrap();
            let (far, _) = listener.accept().await.unwrap();
            let (mut near, mut far) =
                tokio::join!(connect(kind, &sides, near), accept(kind, &sides, far));
            for _ in 0..2 {
                near.write_all(&[1; 600]).await.unwrap();
                near.flush().await.unwrap();
                far.read_exact(&mut [0; 600]).await.unwrap();
                std::mem::swap(&mut near, &mut far);
            }
            sessions.extend([near, far]);
            // The first brings what all of them share.
            if nth == 0 {
                began = pss_bytes();
            }
        }
        let each = (pss_bytes() - began) / (2 * SESSIONS as u64);
        println!("idle session, {kind:?}: {each} bytes");
    });
}

fn main() {
    let argument = std::env::args().nth(1);
    let idle = KINDS
        .into_iter()
        .find(|kind| argument == Some(format!("idle-{kind:?}")));
    if let Some(kind) = idle {
        return measure_idle(kind);
    }
    for kind in KINDS {
        // In a process of its own: memory that others freed would be used again.
        let mut own = Command::new(std::env::current_exe().unwrap());
        assert!(
            own.arg(format!("idle-{kind:?}"))
                .status()
                .unwrap()
                .success()
        );
    }
    measure_bulk();
}
