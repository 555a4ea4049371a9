//! Passthrough in bulk and at rest: pipes while bytes move, copies where the kernel gives no pipes,
//! and what a connection costs that does nothing.

use std::env;
use std::net::SocketAddr;
use std::sync::LazyLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::data_mesh::{endpoints, route};
use crate::data_services::TcpService;
use crate::mesh::hello::hello;
use crate::mesh::{Cluster, Gateway, Namespace, eventually, within};

const HOST: &str = "db.demo.svc.clusterset.local";
/// What a service answers a hello with: not an alert, and so it has committed itself.
const ANSWER: u8 = 22;

/// What bulk is cut from; a prime length, so that it is never in step with any buffer.
static NOISE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut noise = vec![0; 1_048_573];
    fastrand::Rng::with_seed(1).fill(&mut noise);
    noise
});

/// A stream of bytes that tells its place: the noise, again and again, from somewhere on.
struct Bulk {
    at: usize,
    left: usize,
}

impl Bulk {
    fn new(seed: u64, left: usize) -> Self {
        let at = fastrand::Rng::with_seed(seed).usize(..NOISE.len());
        Self { at, left }
    }

    /// The next bytes, at most `most`; none at the end.
    fn next(&mut self, most: usize) -> &'static [u8] {
        let rest = &NOISE[self.at..];
        let portion = &rest[..rest.len().min(most).min(self.left)];
        self.at = (self.at + portion.len()) % NOISE.len();
        self.left -= portion.len();
        portion
    }

    /// Writes all of it in portions of many sizes, and ends.
    async fn write(mut self, to: &mut (impl AsyncWrite + Unpin)) {
        let mut random = fastrand::Rng::with_seed(self.at as u64);
        loop {
            let portion = self.next(1 << random.u32(..20));
            if portion.is_empty() {
                break;
            }
            to.write_all(portion).await.unwrap();
        }
        to.shutdown().await.unwrap();
    }

    /// Reads to the end, which has to come after just these bytes.
    async fn expect(mut self, from: &mut (impl AsyncRead + Unpin)) {
        let mut buffer = vec![0; 1 << 18];
        let mut random = fastrand::Rng::with_seed(self.at as u64);
        loop {
            let room = 1 << random.u32(8..19);
            let n = from.read(&mut buffer[..room]).await.unwrap();
            let mut read = &buffer[..n];
            if n == 0 {
                assert_eq!(self.left, 0, "it ended too early");
                return;
            }
            while !read.is_empty() {
                let expected = self.next(read.len());
                assert!(!expected.is_empty(), "more than was sent");
                assert!(
                    read.starts_with(expected),
                    "{} bytes before the end",
                    self.left
                );
                read = &read[expected.len()..];
            }
        }
    }
}

/// A service that takes hellos, and on a seed and a length moves so much both ways.
fn service() -> TcpService {
    TcpService::with(|mut tcp| async move {
        let mut first = vec![0; hello(Some(HOST.as_bytes())).len()];
        // Those that only connect to see whether it is there say nothing.
        if tcp.read_exact(&mut first).await.is_err() {
            return;
        }
        tcp.write_u8(ANSWER).await.unwrap();
        let (Ok(seed), Ok(length)) = (tcp.read_u64().await, tcp.read_u64().await) else {
            return;
        };
        let length = usize::try_from(length).unwrap();
        let (mut read, mut write) = tcp.split();
        tokio::join!(
            Bulk::new(seed, length).write(&mut write),
            Bulk::new(seed + 1, length).expect(&mut read),
        );
    })
}

/// East alone, its route passing callers' own TLS through to `service`.
fn passing(service: &TcpService) -> Cluster {
    let mut east = Cluster::new("east");
    east.set("limits", "{ connections: 5000 }");
    let backend = format!(
        "backends: [{{ tls: workload, {} }}]",
        endpoints(&[service.address()])
    );
    let lines = [
        "protocol: tcp",
        "port: 5432",
        "inbound: passthrough",
        &backend,
        "allow: [{ listeners: [apps] }]",
    ];
    east.write("routes.yaml", &route("db", &lines));
    east
}

/// A connection whose hello was answered: from here on bytes are relayed.
async fn greeted(gateway: SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(gateway).await.unwrap();
    tcp.write_all(&hello(Some(HOST.as_bytes()))).await.unwrap();
    let answer = within("an answer to a hello", tcp.read_u8()).await;
    assert_eq!(answer.unwrap(), ANSWER);
    tcp
}

async fn all_greeted(gateway: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut open = Vec::new();
    for _ in 0..count {
        open.push(greeted(gateway).await);
    }
    open
}

/// Asks for so many bytes both ways.
async fn ask(tcp: &mut TcpStream, seed: u64, length: usize) {
    tcp.write_u64(seed).await.unwrap();
    tcp.write_u64(length as u64).await.unwrap();
}

/// Moves so much both ways on each connection, and holds every byte to what was sent.
async fn bulk_on_each(open: Vec<TcpStream>, length: usize) {
    let mut moving = JoinSet::new();
    for (mut tcp, seed) in open.into_iter().zip((0..).step_by(2)) {
        moving.spawn(async move {
            ask(&mut tcp, seed, length).await;
            finish(tcp, seed, length).await;
        });
    }
    let all = async { while moving.join_next().await.transpose().unwrap().is_some() {} };
    tokio::time::timeout(crate::mesh::DEADLINE * 3, all)
        .await
        .unwrap();
}

async fn finish(mut tcp: TcpStream, seed: u64, length: usize) {
    let (mut read, mut write) = tcp.split();
    tokio::join!(
        Bulk::new(seed, length).expect(&mut read),
        Bulk::new(seed + 1, length).write(&mut write),
    );
}

async fn fallbacks(gateway: &Gateway, cause: &str) -> f64 {
    let metrics = gateway.metrics().await;
    metrics.value("zeugma_relay_pipe_fallbacks_total", &[("cause", cause)])
}

/// This test's own limit of open files, as high as it may be.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).unwrap();
}

#[tokio::test]
async fn bulk_goes_through_pipes_and_a_quiet_connection_has_none() {
    let service = service();
    let east = passing(&service);
    let gateway = east.start().await;
    // Standard output and error are the test's pipes.
    let own = gateway.descriptors("pipe:");
    let open = all_greeted(east.apps, 16).await;
    assert_eq!(
        gateway.descriptors("pipe:"),
        own,
        "no pipe before bytes move"
    );
    let sources: Vec<_> = open.iter().map(|tcp| tcp.local_addr().unwrap()).collect();
    let length = 6 << 20;
    bulk_on_each(open, length).await;
    let hello = hello(Some(HOST.as_bytes())).len();
    for source in sources {
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], "completed", "{line}");
        assert_eq!(line["bytes_sent"], 1 + length, "{line}");
        assert_eq!(line["bytes_recv"], hello + 16 + length, "{line}");
    }
    // Every connection has ended: what is open is idle in a worker's pool.
    let metrics = gateway.metrics().await;
    let pooled = metrics.value("zeugma_relay_pipes", &[]);
    assert!(pooled >= 1.0, "bulk was spliced");
    let pipes = u32::try_from(gateway.descriptors("pipe:") - own).unwrap();
    assert_eq!(f64::from(pipes), 2.0 * pooled);
    gateway.finish().await;
}

#[tokio::test]
async fn without_descriptors_for_pipes_bulk_is_copied_whole() {
    raise_open_files();
    let service = service();
    let east = passing(&service);
    let gateway = east.start().await;
    let open = all_greeted(east.apps, 300).await;
    // As many as are in use: not one more can be opened.
    let pid = Pid::from_raw(i32::try_from(gateway.pid()).unwrap());
    let used = u64::try_from(gateway.descriptors("")).unwrap();
    let none_left = Rlimit {
        current: Some(used),
        maximum: getrlimit(Resource::Nofile).maximum,
    };
    let before = prlimit(pid, Resource::Nofile, none_left).unwrap();
    bulk_on_each(open, 1 << 20).await;
    prlimit(pid, Resource::Nofile, before).unwrap();
    eventually("fallbacks", async || {
        (fallbacks(&gateway, "descriptors").await > 0.0).then_some(())
    })
    .await;
    gateway.finish().await;
}

/// Set where a test runs inside its namespace.
const INSIDE: &str = "ZEUGMA_TEST_IN_NAMESPACE";
/// `nobody`.
const NOBODY: u32 = 65534;

#[tokio::test]
async fn where_a_users_quota_of_pipes_ends_bulk_is_copied_whole() {
    const NAME: &str = "data_relay::where_a_users_quota_of_pipes_ends_bulk_is_copied_whole";
    if env::var_os(INSIDE).is_some() {
        return bulk_beyond_the_quota().await;
    }
    let Some(namespace) = Namespace::new() else {
        return;
    };
    // Its sockets buffer less than is sent, and well more than what is copied before pipes are used.
    for setting in ["net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"] {
        let setting = format!("{setting}=4096 1048576 1048576");
        let set = namespace.command("sysctl").args(["-qw", &setting]).status();
        assert!(set.unwrap().success(), "{setting}");
    }
    let this = env::current_exe().unwrap();
    let mut inside = namespace.command(this.to_str().unwrap());
    inside
        .args(["--exact", NAME, "--nocapture"])
        .env(INSIDE, "1");
    let status = tokio::task::spawn_blocking(move || inside.status()).await;
    assert!(status.unwrap().unwrap().success(), "see above");
}

/// A user without privileges has 64 pipes of 1 MiB (pipe(7), `pipe-user-pages-soft`), and two
/// workers want more when so many callers do not take what they asked for.
async fn bulk_beyond_the_quota() {
    let service = service();
    let east = passing(&service);
    let gateway = east.start_as(NOBODY).await;
    let length = 4 << 20;
    let mut open = all_greeted(east.apps, 100).await;
    for (tcp, seed) in open.iter_mut().zip((0..).step_by(2)) {
        ask(tcp, seed, length).await;
    }
    eventually("a pipe too many", async || {
        (fallbacks(&gateway, "quota").await > 0.0).then_some(())
    })
    .await;
    let pipes = gateway.metrics().await.value("zeugma_relay_pipes", &[]);
    assert!((32.0..=64.0).contains(&pipes), "{pipes}");
    let mut moving = JoinSet::new();
    for (tcp, seed) in open.into_iter().zip((0..).step_by(2)) {
        moving.spawn(finish(tcp, seed, length));
    }
    let all = async { while moving.join_next().await.transpose().unwrap().is_some() {} };
    tokio::time::timeout(crate::mesh::DEADLINE * 3, all)
        .await
        .unwrap();
    gateway.finish().await;
}

/// Its own memory, in bytes: not what it shares with other gateways of this test, which come and go.
pub(crate) fn memory(gateway: &Gateway) -> usize {
    let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", gateway.pid())).unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Anonymous:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn an_idle_connection_costs_little_memory() {
    const COUNT: usize = 1000;
    raise_open_files();
    let service = service();
    let east = passing(&service);
    let gateway = east.start().await;
    // What is allocated once, by the first of anything.
    drop(all_greeted(east.apps, 10).await);
    let before = memory(&gateway);
    let open = all_greeted(east.apps, COUNT).await;
    let each = memory(&gateway).saturating_sub(before) / COUNT;
    let most = if cfg!(debug_assertions) {
        16 * 1024
    } else {
        8 * 1024
    };
    assert!(
        each <= most,
        "{each} bytes for each of {COUNT} idle connections"
    );
    drop(open);
    gateway.finish().await;
}
