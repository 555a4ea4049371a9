//! What a control plane costs: 10,000 services to 1,000 gateways over incremental xDS on loopback.
//!
//! The questions, with the numbers that would change a decision: is a change of one endpoint, which is
//! encoded once, at all gateways within 1 s of its file, all that is read and compiled for it included;
//! does a gateway cost the server under 1 MB; are 1,000 that come back at once, saying all that they
//! have, done in 10 s, with next to nothing sent? They say it in the order of the names, as `zeugma
//! gateway` does; then others come that say it in no order, as Envoy does, which has it in a hash table.
//! The gateways are a process of their own, so that what is said of the server's memory and processor
//! time is the server's; both share the machine. There is no TLS: what a handshake costs is known.
//!
//! `ZEUGMA_BENCH_SERVICES` and `ZEUGMA_BENCH_CLIENTS` make it smaller; the result of the full size is
//! written to `benches/SERVE.md`.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench: it ends where something is not as it should be"
)]

#[path = "serve/gateways.rs"]
mod gateways;
#[path = "../../benches/support/machine.rs"]
mod machine;
#[path = "../../tests/support/many.rs"]
mod many;

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpSocket};
use zeugma_xds::{Admission, Caller, Good, Plane, Server, ServerLimits, Sources, Visitor};

use self::gateways::Order;

// As in `zeugma`: what is freed goes back to the kernel.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const GATEWAY: &str = "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    mesh: { address: '0.0.0.0:15443', role: mesh }
    apps: { address: '127.0.0.1:15001', role: workloads }
";
const SERVICES: usize = 10_000;
const CLIENTS: usize = 1000;
const CHANGES: usize = 11;
/// As many as `zeugma xds serve` has on two processors.
const THREADS: usize = 2;
/// As it has too.
const BACKLOG: u32 = 4096;
const RESULT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../benches/SERVE.md");

fn main() {
    if let Ok(address) = std::env::var(gateways::ADDRESS) {
        return gateways::run(address.parse().unwrap());
    }
    let number = |name: &str, default: usize| {
        let text = std::env::var(name).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let services = number("ZEUGMA_BENCH_SERVICES", SERVICES);
    let clients = number("ZEUGMA_BENCH_CLIENTS", CLIENTS);
    let mut machine = machine::Machine::here().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let figures = runtime.block_on(run(services, clients));
    machine.ended().unwrap();
    let text = report(&machine, (services, clients), &figures);
    println!("{text}");
    if (services, clients) == (SERVICES, CLIENTS) {
        std::fs::write(RESULT, text).unwrap();
    }
}

/// What was measured.
#[derive(Debug, Default)]
struct Figures {
    first_read: Duration,
    first_told: Duration,
    resources: usize,
    told_bytes: usize,
    request_bytes: usize,
    back: Back,
    back_in_no_order: Back,
    peak_bytes: usize,
    kept_bytes: usize,
    kept_bytes_gateways: usize,
    changes: Vec<Change>,
}

/// All gateways came back.
#[derive(Debug, Default)]
struct Back {
    took: Duration,
    cpu: Duration,
    cpu_gateways: Duration,
    bytes: usize,
}

impl Back {
    fn of(gateways: &mut Gateways) -> Self {
        let pid = std::process::id();
        let used = (cpu(pid), cpu(gateways.pid()));
        let begun = Instant::now();
        gateways.say("connect");
        let [bytes] = gateways.hears("back");
        Self {
            took: begun.elapsed(),
            cpu: cpu(pid).saturating_sub(used.0),
            cpu_gateways: cpu(gateways.pid()).saturating_sub(used.1),
            bytes,
        }
    }

    fn goals(&self, what: &'static str, clients: usize) -> [Goal; 2] {
        let each = self.bytes / clients;
        [
            (
                what,
                format!("{:.1?}", self.took),
                "10 s",
                self.took < Duration::from_secs(10),
            ),
            (
                "sent to each of them",
                format!("{each} B"),
                "1000 B",
                each < 1000,
            ),
        ]
    }
}

/// One change, from the moment that its file was written.
#[derive(Debug)]
struct Change {
    read: Duration,
    made: Duration,
    told: Duration,
    cpu: Duration,
    encoded: u64,
}

impl Change {
    fn all(&self) -> Duration {
        self.read + self.made + self.told
    }
}

async fn run(services: usize, clients: usize) -> Figures {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), services);
    let mut figures = Figures::default();
    let begun = Instant::now();
    let first = read(folder.path(), None);
    figures.first_read = begun.elapsed();
    let admission = Admission {
        local: true,
        ..Default::default()
    };
    let limits = ServerLimits {
        caller_streams: clients + 1,
        ..Default::default()
    };
    let server = Server::new(first, admission, limits, "bench");
    let address = listen(&server);
    let mut gateways = Gateways::start(address, clients, Order::Names);

    let begun = Instant::now();
    [figures.resources, figures.told_bytes, figures.request_bytes] = gateways.hears("learned");
    figures.first_told = begun.elapsed();

    let pid = std::process::id();
    let before = (resident(pid), resident(gateways.pid()));
    figures.back = Back::of(&mut gateways);
    figures.peak_bytes = peak(pid).saturating_sub(before.0);
    // What is freed goes back within moments.
    tokio::time::sleep(Duration::from_secs(2)).await;
    figures.kept_bytes = resident(pid).saturating_sub(before.0) / clients.max(1);
    figures.kept_bytes_gateways =
        resident(gateways.pid()).saturating_sub(before.1) / clients.max(1);

    for nth in 1..=CHANGES {
        edit(&folder.path().join("routes-0.yaml"), nth);
        let (used, begun) = (cpu(pid), Instant::now());
        let plane = read(folder.path(), Some(&server));
        let read = begun.elapsed();
        let encoded = server.publish(plane).await;
        let made = begun.elapsed() - read;
        let [of] = gateways.hears("changed");
        assert_eq!(of, nth, "changes are told one by one");
        figures.changes.push(Change {
            read,
            made,
            told: begun.elapsed() - read - made,
            cpu: cpu(pid).saturating_sub(used),
            encoded,
        });
    }
    gateways.end();
    while server.streams() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut others = Gateways::start(address, clients, Order::None);
    let [_, _, _] = others.hears("learned");
    figures.back_in_no_order = Back::of(&mut others);
    others.end();
    figures
}

fn write(folder: &Path, services: usize) {
    std::fs::write(folder.join("gateway.yaml"), GATEWAY).unwrap();
    let documents = many::mesh(services);
    for (nth, part) in documents.chunks(1000).enumerate() {
        let file = folder.join(format!("routes-{nth}.yaml"));
        std::fs::write(file, part.join("---\n")).unwrap();
    }
}

fn edit(file: &Path, nth: usize) {
    let (from, to) = (
        format!("\"10.1.0.{nth}:8080\""),
        format!("\"10.9.0.{nth}:8080\""),
    );
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(&from));
    std::fs::write(file, text.replace(&from, &to)).unwrap();
}

/// What a control plane does once files have come to rest.
fn read(folder: &Path, server: Option<&Server>) -> Plane {
    let sources = Sources::read(folder).unwrap();
    match server {
        None => sources.plane(&Good::default()).unwrap(),
        Some(server) => sources.plane_after(&server.plane()).unwrap(),
    }
}

/// What `zeugma xds serve` has, written here again: one thread accepts, and as many as it has processors
/// carry what has come.
fn listen(server: &Server) -> SocketAddr {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_all()
        .build()
        .unwrap();
    let listener = {
        let _inside = runtime.enter();
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        socket.listen(BACKLOG).unwrap()
    };
    let address = listener.local_addr().unwrap();
    let server = server.clone();
    std::thread::spawn(move || runtime.block_on(accept(listener, server)));
    address
}

async fn accept(listener: TcpListener, server: Server) {
    loop {
        let (stream, source) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let visitor = Visitor {
            caller: Caller::Local,
            source,
            until: tokio::time::Instant::now() + Duration::from_secs(3600),
        };
        let server = server.clone();
        drop(tokio::spawn(
            async move { server.serve(stream, visitor).await },
        ));
    }
}

/// The process of the gateways.
struct Gateways {
    child: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
}

impl Gateways {
    fn start(server: SocketAddr, clients: usize, order: Order) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(gateways::ADDRESS, server.to_string())
            .env(gateways::CLIENTS, clients.to_string())
            .env(gateways::ORDER, order.name())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            say: child.stdin.take().unwrap(),
            hear: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn say(&mut self, word: &str) {
        writeln!(self.say, "{word}").unwrap();
    }

    /// Waits for a line that begins so, and reads its numbers; connections have threads of their own.
    fn hears<const N: usize>(&mut self, word: &str) -> [usize; N] {
        let mut line = String::new();
        self.hear.read_line(&mut line).unwrap();
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some(word), "the gateways said `{line}`");
        std::array::from_fn(|_| words.next().unwrap().parse().unwrap())
    }

    /// Its input's end is its own.
    fn end(mut self) {
        drop(self.say);
        self.child.wait().unwrap();
    }
}

/// Bytes of memory that a process has.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Bytes of memory that a process ever had.
fn peak(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: usize = line.unwrap().trim_end_matches("kB").trim().parse().unwrap();
    kib * 1024
}

/// Processor time of a process so far.
fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let rest = stat.rsplit_once(')').unwrap().1;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // `utime` and `stime` are fields 14 and 15, of which two stand before the parenthesis; ticks of 10 ms.
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 10)
}

fn report(machine: &machine::Machine, size: (usize, usize), figures: &Figures) -> String {
    let (services, clients) = size;
    let mut changes: Vec<&Change> = figures.changes.iter().collect();
    changes.sort_by_key(|change| change.all());
    let median = changes[changes.len() / 2];
    let mut text = format!(
        "# A control plane of {services} services and {clients} gateways

Written by `cargo bench -p zeugma-xds --bench serve`; do not edit.

- {}, commit {}
- {machine}
- the gateways are one process, the server another, with two workers; both share the processors, over
  loopback and without TLS

| what | figure | goal | |
|---|--:|--:|---|
",
        machine::now().unwrap(),
        machine::commit(),
    );
    for (what, figure, goal, is_met) in goals(&changes, figures, clients.max(1)) {
        let verdict = if is_met { "met" } else { "missed" };
        // Writing into a String does not fail.
        writeln!(text, "| {what} | {figure} | {goal} | {verdict} |").ok();
    }
    text + &details(median, figures)
}

type Goal = (&'static str, String, &'static str, bool);

fn goals(changes: &[&Change], figures: &Figures, clients: usize) -> [Goal; 8] {
    let (median, worst) = (changes[changes.len() / 2], changes[changes.len() - 1]);
    let encoded = changes.iter().map(|change| change.encoded).max().unwrap();
    let second = Duration::from_secs(1);
    let [back, sent] = figures.back.goals(
        "all gateways come back at once, with what they have, as ours say it: in the names' order",
        clients,
    );
    let [back_in_no_order, sent_in_no_order] =
        (figures.back_in_no_order).goals("the same, as Envoy says it: in no order", clients);
    [
        (
            "one endpoint changed: from its file to all gateways, the median of all changes",
            format!("{:.0?}", median.all()),
            "1 s",
            median.all() < second,
        ),
        (
            "the same, the worst",
            format!("{:.0?}", worst.all()),
            "1 s",
            worst.all() < second,
        ),
        (
            "resources encoded for it: the service's endpoints for workloads, and for other clusters",
            encoded.to_string(),
            "2",
            encoded <= 2,
        ),
        (
            "the server's memory for each gateway",
            format!("{:.0} kB", figures.kept_bytes as f64 / 1e3),
            "1000 kB",
            figures.kept_bytes < 1_000_000,
        ),
        back,
        sent,
        back_in_no_order,
        sent_in_no_order,
    ]
}

fn details(median: &Change, figures: &Figures) -> String {
    format!(
        "
- At first the documents are read and checked in {:.2?}; the first gateway has all {} resources,
  {:.1} MB, after {:.2?} more.
- What a gateway says that comes back is {:.2} MB. All that came back took {:.2?} of the server's
  processor time and {:.2?} of the gateways', and in no order {:.2?} and {:.2?}.
- While they came back the server took {:.0} MB more than before. A gateway takes {:.0} kB of the gateways'
  process.
- A change: files read and checked in {:.0?}, compiled in {:.0?}, told to all in {:.0?}, with {:.2?}
  of the server's processor time (the median of {}).
",
        figures.first_read,
        figures.resources,
        figures.told_bytes as f64 / 1e6,
        figures.first_told,
        figures.request_bytes as f64 / 1e6,
        figures.back.cpu,
        figures.back.cpu_gateways,
        figures.back_in_no_order.cpu,
        figures.back_in_no_order.cpu_gateways,
        figures.peak_bytes as f64 / 1e6,
        figures.kept_bytes_gateways as f64 / 1e3,
        median.read,
        median.made,
        median.told,
        median.cpu,
        figures.changes.len(),
    )
}
