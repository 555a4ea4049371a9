//! A name server for a gateway of its own, which answers what the test says.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// What is answered for a name.
#[derive(Debug, Clone)]
pub(crate) enum Zone {
    /// Addresses of both families, and their TTL in seconds.
    Has(Vec<IpAddr>, u32),
    /// IPv4 addresses and their TTL in seconds, and SERVFAIL for AAAA.
    HasV4(Vec<IpAddr>, u32),
    /// NXDOMAIN (RFC 1035 §4.1.1).
    NoSuchName,
    /// SERVFAIL.
    Broken,
}

/// A name server on port 53 of a loopback address of its own; it ends when dropped.
#[derive(Debug)]
pub(crate) struct NameServer {
    zones: Arc<Mutex<BTreeMap<String, Zone>>>,
    /// A `resolv.conf` that names it alone.
    resolv: PathBuf,
    _folder: TempDir,
    _task: JoinSet<()>,
}

/// Counts name servers of this process.
static SERVERS: AtomicU8 = AtomicU8::new(1);

impl NameServer {
    /// A new one. Without root there is none: the test is skipped, and says so.
    ///
    /// # Panics
    /// Where every test is required to run.
    #[expect(
        clippy::print_stderr,
        reason = "a test that did not run must not look like one that did"
    )]
    pub(crate) async fn new() -> Option<Self> {
        const WHY: &str =
            "port 53 and a resolv.conf of a process' own need root: run the tests as root";
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("ZEUGMA_REQUIRE_PEERS").is_none(), "{WHY}");
            eprintln!("SKIPPED: {WHY}");
            return None;
        }
        let [.., high, low] = std::process::id().to_be_bytes();
        let nth = SERVERS.fetch_add(1, Ordering::Relaxed);
        let ip = Ipv4Addr::new(127, 64 | (high & 0x3f), low, nth);
        let socket = UdpSocket::bind((ip, 53)).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let resolv = folder.path().join("resolv.conf");
        fs::write(
            &resolv,
            format!("nameserver {ip}\noptions timeout:1 attempts:1\n"),
        )
        .unwrap();
        let zones = Arc::<Mutex<BTreeMap<String, Zone>>>::default();
        let known = Arc::clone(&zones);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut question = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut question).await.unwrap();
                let answer = answer(&question[..length], &known);
                // Whoever asked may be gone.
                socket.send_to(&answer, from).await.ok();
            }
        });
        Some(Self {
            zones,
            resolv,
            _folder: folder,
            _task: task,
        })
    }

    /// What `name` is from here on.
    pub(crate) fn set(&self, name: &str, zone: Zone) {
        let mut zones = self.zones.lock().unwrap_or_else(PoisonError::into_inner);
        zones.insert(name.to_owned(), zone);
    }

    /// The command under which a process asks it, for `Cluster::start_under`.
    pub(crate) fn wrapper(&self) -> [&str; 6] {
        const MOUNTED: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
        let resolv = self.resolv.to_str().unwrap();
        ["unshare", "--mount", "sh", "-c", MOUNTED, resolv]
    }
}

/// The answer to one question (RFC 1035 §4.1).
fn answer(question: &[u8], zones: &Mutex<BTreeMap<String, Zone>>) -> Vec<u8> {
    let mut labels = Vec::new();
    let mut at = 12;
    while question[at] > 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
        at = end;
    }
    let end = at + 5;
    let kind = question[at + 2];
    let zones = zones.lock().unwrap_or_else(PoisonError::into_inner);
    let (code, addresses, ttl) = match zones.get(&labels.join(".")) {
        Some(Zone::HasV4(..)) if kind == 28 => (2, Vec::new(), 0),
        Some(Zone::Has(addresses, ttl) | Zone::HasV4(addresses, ttl)) => {
            (0, addresses.clone(), *ttl)
        }
        Some(Zone::NoSuchName) | None => (3, Vec::new(), 0),
        Some(Zone::Broken) => (2, Vec::new(), 0),
    };
    let addresses: Vec<Vec<u8>> = (addresses.into_iter())
        .filter_map(|ip| match (ip, kind) {
            (IpAddr::V4(v4), 1) => Some(v4.octets().to_vec()),
            (IpAddr::V6(v6), 28) => Some(v6.octets().to_vec()),
            _ => None,
        })
        .collect();
    let count = u8::try_from(addresses.len()).unwrap();
    // An authoritative response, recursion available; one question, so many answers.
    let mut answer = [
        &question[..2],
        &[0x85, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0],
    ]
    .concat();
    answer.extend_from_slice(&question[12..end]);
    for address in addresses {
        answer.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1]);
        answer.extend_from_slice(&ttl.to_be_bytes());
        answer.extend_from_slice(&[0, u8::try_from(address.len()).unwrap()]);
        answer.extend_from_slice(&address);
    }
    answer
}
