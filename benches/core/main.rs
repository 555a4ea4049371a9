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

#[path = "../support/machine.rs"]
mod machine;

use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use zeugma_core::authorize::{Asking, Evidence, Verdict, authorize};
use zeugma_core::engine::{Arrival, Decision, Headers, Request, Wants, decide};
use zeugma_core::hello::{ClientHello, HelloProgress, parse};
use zeugma_core::identity::SpiffeId;
use zeugma_core::plan::plan;
use zeugma_core::route::{Routed, route_tls};
use zeugma_core::shares::Shares;
use zeugma_core::snapshot::{Listener, ServiceIx, Snapshot};
use zeugma_xds::{NodeOptions, load};

use machine::{Machine, commit, now};

/// Calls of each case; callgrind's count is all but the same at every run, so a few suffice to make
/// the first, which finds cold tables, count little.
const CALLS: u64 = 1000;
/// Times that so many calls are timed.
const SAMPLES: usize = 101;
/// The host of the one HTTP route.
const WEB: &str = "web.bench.svc.clusterset.local";
const WIDE: &str = "wide.bench.svc.clusterset.local";
const RULED: &str = "ruled.bench.svc.clusterset.local";
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// One thing that is counted.
#[derive(Debug, Clone, Copy)]
struct Case {
    name: &'static str,
    title: &'static str,
    routes: usize,
    what: What,
    /// What the count is to answer.
    question: &'static str,
    /// The count above which a decision would be another, and which.
    at_most: u64,
    otherwise: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Hello,
    Route,
    Allow,
    Deny,
    Plan,
    Decide,
    Request,
    Ruled,
    Wide,
}

const CASES: [Case; 13] = [
    Case {
        name: "hello",
        title: "parse a ClientHello",
        routes: 10,
        what: What::Hello,
        question: "is it little beside the connection that begins so?",
        at_most: 10_000,
        otherwise: "read only the SNI and ALPN, in place",
    },
    route("route-10", "find a route by SNI, of 10", 10),
    route("route-1000", "find a route by SNI, of 1,000", 1000),
    route("route-10000", "find a route by SNI, of 10,000", 10_000),
    Case {
        name: "allow",
        title: "authorize, allowed by the fourth rule",
        routes: 10,
        what: What::Allow,
        question: "can rules be tried one after the other?",
        at_most: 3000,
        otherwise: "index rules by trust domain",
    },
    Case {
        name: "deny",
        title: "authorize, allowed by none of four rules",
        routes: 10,
        what: What::Deny,
        question: "is a refusal about as cheap as a permission?",
        at_most: 4500,
        otherwise: "find the nearest rule only for the log",
    },
    Case {
        name: "plan",
        title: "plan, first of three endpoints",
        routes: 10,
        what: What::Plan,
        question: "can endpoints be drawn anew for each connection?",
        at_most: 1500,
        otherwise: "draw from a table made with the snapshot",
    },
    decision("decide-10", "decide, of 10 routes", 10),
    decision("decide-1000", "decide, of 1,000 routes", 1000),
    decision("decide-10000", "decide, of 10,000 routes", 10_000),
    Case {
        name: "request",
        title: "decide about a request by its authority, of 10,000 routes",
        routes: 10_000,
        what: What::Request,
        question: "can every request be decided anew?",
        at_most: 6000,
        otherwise: "keep the last decision of a connection",
    },
    Case {
        name: "ruled",
        title: "the same by the last of 16 rules, with a split",
        routes: 10_000,
        what: What::Ruled,
        question: "can rules be tried one after the other?",
        at_most: 8000,
        otherwise: "index matches by the first element of the path",
    },
    Case {
        name: "wide",
        title: "the same where its route has 4 levels and 100 endpoints: route, authorize, plan",
        routes: 10_000,
        what: What::Wide,
        question: "is a decision below a microsecond, and allocates nothing?",
        at_most: 9000,
        otherwise: "draw from a table made with the shares",
    },
];

const fn route(name: &'static str, title: &'static str, routes: usize) -> Case {
    Case {
        name,
        title,
        routes,
        what: What::Route,
        question: "does it stay the same, however many there are?",
        at_most: 5000,
        otherwise: "another index of names",
    }
}

const fn decision(name: &'static str, title: &'static str, routes: usize) -> Case {
    Case {
        name,
        title,
        routes,
        what: What::Decide,
        question: "are both decisions about a connection little beside its handshake?",
        at_most: 10_000,
        otherwise: "decide once for each ClientHello's name and identity",
    }
}

/// What is kept.
#[derive(Debug, Serialize)]
struct Results {
    date: String,
    commit: String,
    machine: Machine,
    valgrind: String,
    cases: Vec<Counted>,
}

#[derive(Debug, Serialize)]
struct Counted {
    name: &'static str,
    title: &'static str,
    instructions: u64,
    at_most: u64,
    /// Whether memory is asked for, where callgrind saw the calls.
    allocates: bool,
    /// The median of one call, beside whatever else the machine does.
    nanoseconds: f64,
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let [role, name, config] = words.as_slice()
        && (role == "count" || role == "time")
    {
        let case = CASES.into_iter().find(|case| case.name == name);
        let samples = if role == "time" { SAMPLES } else { 1 };
        let took = case
            .with_context(|| format!("no case {name:?}"))?
            .run(Path::new(config), samples)?;
        println!("{took}");
        return Ok(());
    }
    let version = match Command::new("valgrind").arg("--version").output() {
        Ok(output) => String::from_utf8(output.stdout)?.trim().to_owned(),
        Err(error) => {
            eprintln!("SKIPPED: valgrind: {error}; run `apt-get install valgrind`");
            return Ok(());
        }
    };
    let mut results = Results {
        date: now()?,
        commit: commit(),
        machine: Machine::here()?,
        valgrind: version,
        cases: Vec::new(),
    };
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("core-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    for case in CASES {
        let config = folder.join(format!("{}.yaml", case.routes));
        if !config.exists() {
            fs::write(&config, documents(case.routes)?)?;
        }
        let (instructions, allocates) = case.count(&config, &folder)?;
        let nanoseconds = case.time(&config)?;
        println!("{:15} {instructions} {nanoseconds:.0} ns", case.name);
        results.cases.push(Counted {
            name: case.name,
            title: case.title,
            instructions,
            at_most: case.at_most,
            allocates,
            nanoseconds,
        });
    }
    fs::remove_dir_all(&folder)?;
    results.machine.ended()?;
    results.write()
}

impl Results {
    fn write(&self) -> Result<()> {
        let benches = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches");
        fs::write(benches.join("CORE.md"), self.table()?)?;
        let json = serde_json::to_string_pretty(self)?;
        fs::write(benches.join("CORE.json"), json + "\n")?;
        Ok(())
    }

    fn table(&self) -> Result<String> {
        let mut table = format!(
            "# Instructions of the core's decisions\n\n\
             Written by `cargo bench --bench core`; do not edit.\n\n\
             - {}, commit {}\n- {}\n- {}, callgrind\n- the mean of {CALLS} calls, allocations \
             included; what the machine does beside it changes nothing, the random seed of a hash \
             table some instructions in a thousand\n- ns: the median of {SAMPLES} times {CALLS} calls, \
             without callgrind, beside whatever else the machine does\n\n\
             | decision | instructions | at most | | ns | allocates | question | otherwise |\n\
             |---|--:|--:|---|--:|---|---|---|\n",
            self.date, self.commit, self.machine, self.valgrind
        );
        for (one, case) in self.cases.iter().zip(CASES) {
            let met = if one.instructions <= one.at_most {
                "met"
            } else {
                "**missed**"
            };
            writeln!(
                table,
                "| {} | {} | {} | {met} | {:.0} | {} | {} | {} |",
                one.title,
                one.instructions,
                one.at_most,
                one.nanoseconds,
                if one.allocates { "yes" } else { "no" },
                case.question,
                case.otherwise
            )?;
        }
        Ok(table)
    }
}

impl Case {
    /// Runs itself without callgrind; the nanoseconds of one call.
    fn time(self, config: &Path) -> Result<f64> {
        let output = Command::new(std::env::current_exe()?)
            .args(["time", self.name])
            .arg(config)
            .output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}: {told}", self.name);
        let took = String::from_utf8(output.stdout)?;
        took.trim().parse().context("no time")
    }

    /// Runs itself under callgrind; the instructions of one call, and whether any function that gives
    /// memory was called.
    fn count(self, config: &Path, folder: &Path) -> Result<(u64, bool)> {
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
        // Only what was called while it counted stands there.
        let profile = fs::read_to_string(folder.join(self.name))?;
        let gives = [
            "malloc",
            "calloc",
            "realloc",
            "__rust_alloc",
            "posix_memalign",
        ];
        let allocates = (profile.lines())
            .filter(|line| line.starts_with("fn=") || line.starts_with("cfn="))
            .any(|line| gives.iter().any(|name| line.contains(name)));
        Ok((total / CALLS, allocates))
    }

    /// Makes the calls that are counted, and checks what they answer; the median of what one call took in
    /// so many samples, in nanoseconds.
    fn run(self, config: &Path, samples: usize) -> Result<f64> {
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
        let apps = snapshot.listener("apps").context("the apps listener")?;
        let known = SpiffeId::parse("spiffe://west.example/ns/shop/sa/cart")?;
        let stranger = SpiffeId::parse("spiffe://west.example/ns/other/sa/cart")?;
        let mut took = Vec::with_capacity(samples);
        for _ in 0..samples {
            let began = Instant::now();
            for draw in 0..CALLS {
                let right = match self.what {
                    What::Hello => counted_call(|| {
                        matches!(parse(black_box(world.bytes)), HelloProgress::Done(_))
                    }),
                    What::Route => counted_call(|| {
                        let routed =
                            route_tls(world.snapshot, world.listener, black_box(world.hello));
                        matches!(routed, Routed::Terminate(ix) if ix == service)
                    }),
                    What::Allow => counted_call(|| {
                        matches!(world.ask(service, &known), Verdict::Allow { rule: 3 })
                    }),
                    What::Deny => counted_call(|| {
                        matches!(world.ask(service, &stranger), Verdict::Deny { .. })
                    }),
                    What::Plan => {
                        let own = snapshot.service(service).own.context("own backends")?;
                        let cluster = snapshot.cluster(own);
                        let of = shares.clusters.get(own.0).context("shares")?;
                        counted_call(|| plan(cluster, of, &|_| 0, black_box(draw)).next().is_some())
                    }
                    What::Decide => counted_call(|| world.decide(service, &known, draw)),
                    What::Request => counted_call(|| world.request(apps, WEB, draw)),
                    What::Ruled => counted_call(|| world.request(apps, RULED, draw)),
                    What::Wide => counted_call(|| world.request(apps, WIDE, draw)),
                };
                ensure!(right, "{}: a wrong answer", self.name);
            }
            took.push(began.elapsed().as_nanos() as f64 / CALLS as f64);
        }
        took.sort_by(f64::total_cmp);
        took.get(samples / 2).copied().context("no sample")
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
            sni: self.hello.sni.as_deref(),
            method: None,
            path: None,
            headers: None,
        };
        authorize(self.snapshot, service, black_box(&asking))
    }

    /// A terminated connection's two questions: by the ClientHello, then inside.
    fn decide(&self, service: ServiceIx, id: &SpiffeId, draw: u64) -> bool {
        let ask = |wants| Arrival {
            listener: self.listener,
            source: HOME,
            evidence: Evidence::Verified(id),
            sni: self.hello.sni.as_deref(),
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

    /// What a workload's plaintext request is asked.
    fn request(&self, apps: &Listener, authority: &str, draw: u64) -> bool {
        let arrival = Arrival {
            listener: apps,
            source: HOME,
            evidence: Evidence::Network,
            sni: None,
            wants: Wants::Request(Request {
                authority,
                method: "GET",
                path: "/item",
                headers: Headers::NONE,
            }),
        };
        let load = |_| 0;
        let decision = decide(self.snapshot, self.shares, black_box(&arrival), &load, draw);
        matches!(decision, Decision::Carry(_))
    }
}

/// Gives rustls the same at every run: its extensions stand in an order that it draws.
#[derive(Debug)]
struct Seven;

impl rustls::crypto::SecureRandom for Seven {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), rustls::crypto::GetRandomFailed> {
        bytes.fill(7);
        Ok(())
    }
}

fn host(route: usize) -> String {
    format!("svc-{route}.bench.svc.clusterset.local")
}

fn hello(route: usize) -> Result<Vec<u8>> {
    let roots = rustls::RootCertStore::empty();
    let provider = std::sync::Arc::new(rustls::crypto::CryptoProvider {
        secure_random: &Seven,
        ..rustls::crypto::aws_lc_rs::default_provider()
    });
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

/// A gateway with this many routes of three endpoints and four rules, and one of HTTP.
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
    apps: { address: '127.0.0.1:15080', role: workloads }
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: { name: west }
spec:
  cluster: west
  locality: us/us-1
  gateways: ['127.0.0.1:9']
  spiffeIDs: ['spiffe://west.example/zeugma/gateway']
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: web, namespace: bench }
spec:
  protocol: http
  backends: [{ endpoints: ['127.0.0.1:7001', '127.0.0.1:7002', '127.0.0.1:7003'] }]
  allow: [{ listeners: [apps] }]
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: { name: ruled, namespace: bench }
spec:
  protocol: http
  backends: [{ name: a, endpoints: ['127.0.0.1:7001'] }, { name: b, endpoints: ['127.0.0.1:7002'] }]
  allow: [{ listeners: [apps] }]
  rules:
    - { split: [{ backends: [a], weight: 9 }, { backends: [b] }] }
"
    .to_owned();
    for rule in 1..16 {
        writeln!(
            text,
            "    - {{ matches: [{{ path: {{ prefix: /item/{rule} }}, method: GET }}] }}"
        )?;
    }
    text.push_str(&wide());
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

/// A route of four levels with 25 endpoints each, whose last of four rules lets in.
fn wide() -> String {
    let mut backends = String::new();
    for (level, locality) in ["eu/eu-1", "eu/eu-2", "us/us-1", "asia/a-1"]
        .iter()
        .enumerate()
    {
        let endpoints: Vec<String> = (1..=25)
            .map(|nth| format!("'127.0.{level}.{nth}:7001'"))
            .collect();
        let endpoints = endpoints.join(", ");
        backends.push_str(&format!(
            "    - {{ name: b{level}, locality: {locality}, endpoints: [{endpoints}] }}\n"
        ));
    }
    format!(
        "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: wide, namespace: bench }}
spec:
  protocol: http
  backends:
{backends}  failover: {{ order: [{{ region: eu }}, {{ region: us }}, {{ region: asia }}] }}
  allow:
    - {{ from: ['spiffe://east.example/ns/shop/*'] }}
    - {{ from: ['spiffe://west.example/ns/bank/*'] }}
    - {{ sources: ['192.0.2.0/24'] }}
    - {{ listeners: [apps] }}
"
    )
}
