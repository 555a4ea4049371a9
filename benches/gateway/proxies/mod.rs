//! The proxies that are measured, each configured for the same work.

mod envoy;
mod haproxy;
mod nginx;
mod zeugma;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::backend::Addresses;
use crate::peers::{self, Debian};
use crate::pki::{Domain, Svid};
use crate::ports::free_port;
use crate::results::Peer;

/// The core of the proxy that is measured.
pub(crate) const PROXY_CORE: &str = "0";
/// How long a proxy may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(60);
/// How long a proxy may take to end on SIGTERM before it is killed.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// What a proxy does with what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// Passes TLS on by its SNI.
    Passthrough { routes: usize, carries: Carries },
    /// Ends mTLS, passes the bytes on in the clear.
    Terminate,
    /// Ends mTLS, begins another to the backend.
    Originate,
    /// HTTP/1.1 to HTTP/1.1.
    Http1,
    /// HTTP/2 to HTTP/2.
    Http2,
    /// HTTP/2 to HTTP/1.1.
    Http2ToHttp1,
    /// HTTP/2 to HTTP/2 in mTLS, which another of its kind ends.
    Entry { exit: SocketAddr },
    /// HTTP/2 in mTLS, which it ends, to HTTP/2.
    Exit,
}

/// What stands between load generator and backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Between {
    /// One proxy.
    One(Work),
    /// Two of a kind: [`Work::Entry`], then [`Work::Exit`], `one_way` apart.
    Two { one_way: Duration },
}

impl Between {
    /// Whether proxies of a kind can do it.
    pub(crate) fn fits(self, peer: Peer) -> bool {
        match self {
            Self::One(work) => work.fits(peer),
            Self::Two { .. } => matches!(peer, Peer::Zeugma | Peer::Envoy),
        }
    }

    /// The host that is asked for: that of the last route.
    pub(crate) fn host(self) -> String {
        match self {
            Self::One(work) => host(work.routes().saturating_sub(1)),
            Self::Two { .. } => host(0),
        }
    }
}

/// What connections are for: HAProxy is to be told whether to splice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carries {
    /// Little.
    Messages,
    /// Much.
    Bulk,
}

impl Work {
    fn fits(self, peer: Peer) -> bool {
        // nginx speaks HTTP/2 to callers alone.
        !(self == Self::Http2 && peer == Peer::Nginx)
    }

    fn routes(self) -> usize {
        match self {
            Self::Passthrough { routes, .. } => routes,
            Self::Terminate
            | Self::Originate
            | Self::Http1
            | Self::Http2
            | Self::Http2ToHttp1
            | Self::Entry { .. }
            | Self::Exit => 1,
        }
    }
}

fn host(route: usize) -> String {
    format!("svc-{route}.bench.svc.clusterset.local")
}

/// What every proxy of the run is configured from.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) folder: PathBuf,
    /// The trust domain of the proxy and of the backend.
    pub(crate) east: Domain,
    /// The trust domain of the callers.
    pub(crate) west: Domain,
    /// The proxy's own certificate.
    pub(crate) gateway: Svid,
    /// That of a proxy in the callers' trust domain.
    pub(crate) entry: Svid,
    /// The backend's.
    pub(crate) service: Svid,
    pub(crate) backend: Addresses,
    /// Where the programs are.
    pub(crate) programs: BTreeMap<Peer, PathBuf>,
}

impl Site {
    fn program(&self, peer: Peer) -> Result<PathBuf> {
        let found = self.programs.get(&peer);
        found
            .cloned()
            .with_context(|| format!("no {}", peer.name()))
    }

    /// The certificate of a backend that is reached by every proxy's way of naming it.
    pub(crate) fn service_svid(east: &Domain) -> Result<Svid> {
        east.svid("/ns/bench/sa/svc", Some(&host(0)))
    }
}

/// Where the programs of these peers are; one that is missing is left out, loudly. `ours` is measured in
/// place of the program that cargo built beside this one.
pub(crate) fn programs(wanted: &[Peer], ours: Option<&Path>) -> Result<BTreeMap<Peer, PathBuf>> {
    let ours = ours.unwrap_or_else(|| Path::new(env!("CARGO_BIN_EXE_zeugma")));
    let mut found = BTreeMap::new();
    for &peer in wanted {
        let program = match peer {
            Peer::Zeugma => {
                let program = ours.canonicalize();
                Some(program.with_context(|| format!("no program at {}", ours.display()))?)
            }
            Peer::Envoy => match peers::envoy() {
                Ok(program) => Some(program),
                Err(error) => {
                    eprintln!("SKIPPED: envoy: {error:#}");
                    None
                }
            },
            Peer::Haproxy => debian("haproxy", "haproxy")?,
            Peer::Nginx => match debian("nginx", "nginx")? {
                Some(program) if !nginx::stream_module().is_file() => {
                    eprintln!(
                        "SKIPPED: nginx ({}) has no stream module; run `apt-get install \
                         libnginx-mod-stream`",
                        program.display()
                    );
                    None
                }
                found => found,
            },
        };
        if let Some(program) = program {
            found.insert(peer, program);
        }
    }
    Ok(found)
}

fn debian(program: &str, package: &str) -> Result<Option<PathBuf>> {
    // The programs of services are in sbin, which is not in everyone's PATH.
    let sbin = Path::new("/usr/sbin").join(program);
    if sbin.is_file() {
        return Ok(Some(sbin));
    }
    Ok(match peers::debian(program, package)? {
        Debian::Found(path) => Some(path),
        Debian::Missing => None,
    })
}

/// What a program says its version is.
pub(crate) fn version(peer: Peer, program: &Path) -> Result<String> {
    let argument = match peer {
        Peer::Zeugma | Peer::Envoy => "--version",
        Peer::Haproxy | Peer::Nginx => "-v",
    };
    let output = Command::new(program).arg(argument).output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or("unknown").trim();
    // Envoy begins with where it lies, which is nobody's business.
    let line = line
        .split_once("  version: ")
        .map_or(line, |(_, rest)| rest);
    Ok(line.to_owned())
}

/// A running proxy. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Proxy {
    child: Child,
    log: PathBuf,
    plan: Plan,
    /// Where the load goes.
    pub(crate) address: SocketAddr,
    /// When it was started.
    pub(crate) started: Instant,
}

/// What a proxy is to be started with.
#[derive(Debug, Clone)]
struct Plan {
    program: PathBuf,
    arguments: Vec<String>,
    address: SocketAddr,
}

impl Proxy {
    /// Starts one, with its files in a new folder `name`, and waits until it listens.
    pub(crate) fn start(site: &Site, peer: Peer, work: Work, name: &str) -> Result<Self> {
        let this = Self::spawn(site, peer, work, name)?;
        this.wait(|address| TcpStream::connect(address).is_ok())
    }

    /// Starts one and waits for nothing.
    pub(crate) fn spawn(site: &Site, peer: Peer, work: Work, name: &str) -> Result<Self> {
        let folder = site.folder.join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let plan = match peer {
            Peer::Zeugma => zeugma::plan(site, work, &folder)?,
            Peer::Envoy => envoy::plan(site, work, &folder)?,
            Peer::Haproxy => haproxy::plan(site, work, &folder)?,
            Peer::Nginx => nginx::plan(site, work, &folder)?,
        };
        Self::run(plan, &folder)
    }

    fn run(plan: Plan, folder: &Path) -> Result<Self> {
        let log = folder.join("stderr.log");
        let started = Instant::now();
        // Standard output is the access log of two of them; every proxy writes one line for each
        // connection or request, to where it costs a system call and no more.
        let child = Command::new("taskset")
            .args(["-c", PROXY_CORE])
            .arg(&plan.program)
            .args(&plan.arguments)
            .current_dir(folder)
            .env_remove("ZEUGMA_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("taskset {}", plan.program.display()))?;
        Ok(Self {
            child,
            log,
            address: plan.address,
            plan,
            started,
        })
    }

    /// Tries until `works`, which is given where the proxy listens.
    pub(crate) fn wait(mut self, works: impl Fn(SocketAddr) -> bool) -> Result<Self> {
        while !works(self.address) {
            let ended = self.child.try_wait()?;
            if ended.is_some() || self.started.elapsed() > LISTENS_WITHIN {
                let log = fs::read_to_string(&self.log).unwrap_or_default();
                let tail: Vec<_> = log.lines().rev().take(20).collect();
                bail!(
                    "a proxy does not work ({ended:?}); the end of {}, last line first:\n{}",
                    self.log.display(),
                    tail.join("\n")
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(self)
    }

    /// Ends it as a service manager does, so that it leaves its state behind, and starts it anew.
    pub(crate) fn again(mut self, site: &Site, name: &str) -> Result<Self> {
        self.terminate()?;
        Self::run(self.plan.clone(), &site.folder.join(name))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn terminate(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        // SIGTERM first: a killed nginx would leave its worker behind.
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let until = Instant::now() + ENDS_WITHIN;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > until {
                self.child.kill()?;
                self.child.wait()?;
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("a proxy does not end: {error:#}");
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
