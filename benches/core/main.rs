//! Counts the instructions of the core's decisions, so that a change shows however busy the
//! machine is.
//!
//! `cargo bench --bench core` runs this program under `valgrind --tool=callgrind` once for each
//! case, which counts only inside the one function that makes the call, and writes
//! `benches/CORE.json` and the table `benches/CORE.md`.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a benchmark talks to the one who runs it"
)]

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use zeugma_core::authorize::{Asking, Evidence, Verdict, authorize};
use zeugma_core::engine::{Arrival, Decision, Wants, decide};
use zeugma_core::hello::{ClientHello, HelloProgress, parse};
use zeugma_core::identity::SpiffeId;
use zeugma_core::plan::plan;
use zeugma_core::route::{Routed, route_tls};
use zeugma_core::shares::Shares;
use zeugma_core::snapshot::{Listener, ServiceIx, Snapshot};
use zeugma_xds::{NodeOptions, load};

/// Calls of each case; callgrind's count is the same at every run, so a few suffice to make the
/// first, which finds cold tables, count little.
const CALLS: u64 = 1000;
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// One thing that is counted.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    title: &'static str,
    routes: usize,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Hello,
    Route,
    Allow,
    Deny,
    Plan,
    Decide,
}

const CASES: [Case; 10] = [
    case("hello", "parse a ClientHello", 10, What::Hello),
    case("route-10", "find a route by SNI, of 10", 10, What::Route),
    case(
        "route-1000",
        "find a route by SNI, of 1,000",
        1000,
        What::Route,
    ),
    case(
        "route-10000",
        "find a route by SNI, of 10,000",
        10_000,
        What::Route,
    ),
    case(
        "allow",
        "authorize, allowed by the fourth rule",
        10,
        What::Allow,
    ),
    case(
        "deny",
        "authorize, allowed by none of four rules",
        10,
        What::Deny,
    ),
    case("plan", "plan, first of three endpoints", 10, What::Plan),
    case("decide-10", "decide, of 10 routes", 10, What::Decide),
    case("decide-1000", "decide, of 1,000 routes", 1000, What::Decide),
    case(
        "decide-10000",
        "decide, of 10,000 routes",
        10_000,
        What::Decide,
    ),
];

const fn case(name: &'static str, title: &'static str, routes: usize, what: What) -> Case {
    Case {
        name,
        title,
        routes,
        what,
    }
}

#[derive(Debug, Serialize)]
struct Counted {
    name: &'static str,
    title: &'static str,
    instructions: u64,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [role, name, config] = words.as_slice()
        && role == "count"
    {
        let case = CASES.into_iter().find(|case| case.name == name);
        return case
            .with_context(|| format!("no case {name:?}"))?
            .run(Path::new(config));
    }
    let version = match Command::new("valgrind").arg("--version").output() {
        Ok(output) => String::from_utf8(output.stdout)?.trim().to_owned(),
        Err(error) => {
            eprintln!("SKIPPED: valgrind: {error}; run `apt-get install valgrind`");
            return Ok(());
        }
    };
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("core-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let mut counted = Vec::new();
    for case in CASES {
        let config = folder.join(format!("{}.yaml", case.routes));
        if !config.exists() {
            fs::write(&config, documents(case.routes)?)?;
        }
        let instructions = case.count(&config, &folder)?;
        println!("{:15} {instructions}", case.name);
        counted.push(Counted {
            name: case.name,
            title: case.title,
            instructions,
        });
    }
    fs::remove_dir_all(&folder)?;
    write(&counted, &version)
}

fn write(counted: &[Counted], valgrind: &str) -> Result<()> {
    let mut table = format!(
        "# Instructions of the core's decisions\n\n\
         Written by `cargo bench --bench core` ({valgrind}, callgrind, the mean of {CALLS} calls, \
         allocations included); do not edit.\n\n\
         | decision | instructions |\n|---|--:|\n"
    );
    for one in counted {
        writeln!(table, "| {} | {} |", one.title, one.instructions)?;
    }
    let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
    fs::write(benches.join("CORE.md"), table)?;
    let json = serde_json::to_string_pretty(counted)?;
    fs::write(benches.join("CORE.json"), json + "\n")?;
    Ok(())
}

impl Case {
    /// Runs itself under callgrind.
    fn count(self, config: &Path, folder: &Path) -> Result<u64> {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--collect-atstart=no"])
            .arg("--toggle-collect=*counted_call*")
            .arg(format!(
                "--callgrind-out-file={}",
                folder.join(self.name).display()
            ))
            .arg(std::env::current_exe()?)
            .args(["count", self.name])
            .arg(config)
            .output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {told}", self.name);
        let total: u64 = told
            .lines()
            .find_map(|line| line.split_once("Collected :"))
            .with_context(|| format!("{}: no count in {told}", self.name))?
            .1
            .trim()
            .parse()?;
        ensure!(total > 0, "{}: nothing was counted; {told}", self.name);
        Ok(total / CALLS)
    }

    /// Makes the calls that are counted, and checks what they answer.
    fn run(self, config: &Path) -> Result<()> {
        let loaded = load(config, &NodeOptions::default())
            .map_err(|findings| anyhow::anyhow!("{findings:?}"))?;
        let snapshot = &loaded.snapshot;
        let shares = Shares::all_healthy(snapshot);
        let bytes = hello(self.routes - 1)?;
        let HelloProgress::Done(parsed) = parse(&bytes) else {
            bail!("a ClientHello that rustls made is not parsed");
        };
        let world = World {
            snapshot,
            shares: &shares,
            listener: snapshot.listener("mesh").context("the mesh listener")?,
            hello: &parsed,
            bytes: &bytes,
        };
        let Routed::Terminate(service) = route_tls(snapshot, world.listener, &parsed) else {
            bail!("no route");
        };
        let known = SpiffeId::parse("spiffe://west.example/ns/shop/sa/cart")?;
        let stranger = SpiffeId::parse("spiffe://west.example/ns/other/sa/cart")?;
        for draw in 0..CALLS {
            let right = match self.what {
                What::Hello => {
                    counted_call(|| matches!(parse(black_box(world.bytes)), HelloProgress::Done(_)))
                }
                What::Route => counted_call(|| {
                    let routed = route_tls(world.snapshot, world.listener, black_box(world.hello));
                    matches!(routed, Routed::Terminate(ix) if ix == service)
                }),
                What::Allow => counted_call(|| {
                    matches!(world.ask(service, &known), Verdict::Allow { rule: 3 })
                }),
                What::Deny => {
                    counted_call(|| matches!(world.ask(service, &stranger), Verdict::Deny { .. }))
                }
                What::Plan => {
                    let own = snapshot.service(service).own.context("own backends")?;
                    let cluster = snapshot.cluster(own);
                    let of = shares.clusters.get(own.0).context("shares")?;
                    counted_call(|| plan(cluster, of, &|_| 0, black_box(draw)).next().is_some())
                }
                What::Decide => counted_call(|| world.decide(service, &known, draw)),
            };
            ensure!(right, "{}: a wrong answer", self.name);
        }
        Ok(())
    }
}

/// What callgrind counts: this function and all it calls.
#[inline(never)]
fn counted_call(call: impl FnOnce() -> bool) -> bool {
    black_box(call())
}

#[derive(Clone, Copy)]
struct World<'a> {
    snapshot: &'a Snapshot,
    shares: &'a Shares,
    listener: &'a Listener,
    hello: &'a ClientHello,
    bytes: &'a [u8],
}

impl World<'_> {
    fn ask(&self, service: ServiceIx, id: &SpiffeId) -> Verdict {
        let asking = Asking {
            listener: self.listener,
            source: HOME,
            evidence: Evidence::Verified(id),
            method: None,
            path: None,
        };
        authorize(self.snapshot, service, black_box(&asking))
    }

    /// A terminated connection's two questions: by the ClientHello, then inside.
    fn decide(&self, service: ServiceIx, id: &SpiffeId, draw: u64) -> bool {
        let ask = |wants| Arrival {
            listener: self.listener,
            source: HOME,
            evidence: Evidence::Verified(id),
            wants,
        };
        let load = |_| 0;
        let outside = ask(Wants::Hello(self.hello));
        let first = decide(self.snapshot, self.shares, black_box(&outside), &load, draw);
        let inside = ask(Wants::Inside(service));
        let second = decide(self.snapshot, self.shares, black_box(&inside), &load, draw);
        matches!(first, Decision::Terminate(ix, _) if ix == service)
            && matches!(second, Decision::Carry(_))
    }
}

fn host(route: usize) -> String {
    format!("svc-{route}.bench.svc.clusterset.local")
}

fn hello(route: usize) -> Result<Vec<u8>> {
    let roots = rustls::RootCertStore::empty();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = rustls_pki_types::ServerName::try_from(host(route))?;
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

/// A gateway with this many routes of three endpoints and four rules.
fn documents(routes: usize) -> Result<String> {
    let mut text = "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners:
    mesh: { address: '127.0.0.1:15443', role: mesh }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: west }
spec:
  cluster: west
  locality: us/us-1
  gateways: ['127.0.0.1:9']
  spiffeIDs: ['spiffe://west.example/zeugma/gateway']
"
    .to_owned();
    for route in 0..routes {
        write!(
            text,
            "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: svc-{route}, namespace: bench }}
spec:
  protocol: tcp
  port: 443
  backends: [{{ endpoints: ['127.0.0.1:7001', '127.0.0.1:7002', '127.0.0.1:7003'] }}]
  allow:
    - {{ from: ['spiffe://east.example/ns/shop/*'] }}
    - {{ from: ['spiffe://west.example/ns/bank/*'] }}
    - {{ from: ['spiffe://west.example/ns/shop/sa/till'] }}
    - {{ from: ['spiffe://west.example/ns/shop/*'] }}
  export: {{ to: [west] }}
"
        )?;
    }
    Ok(text)
}
