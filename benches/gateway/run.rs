//! Runs workloads: the proxies of one side by side, their samples interleaved.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::load::{Done, Job, Load, Opening};
use crate::measure::{Cpu, lifetime, pss};
use crate::pki::Domain;
use crate::proxies::{Between, Proxy, Site, Work, programs};
use crate::relay::Relay;
use crate::results::{Measured, Metric, Peer, Sample};
use crate::tls::{Caller, hello_config};
use crate::wire::{ANSWER, Command as Wire, Hello, answer};
use crate::workloads::{Begins, Measure, Workload};

/// The core of everything but the proxy.
const LOAD_CORE: &str = "1";
/// How often a sample is taken again in which a thread ended.
const RETAKES: usize = 3;
/// How long memory may settle after the last connection.
const SETTLE: Duration = Duration::from_secs(1);
/// How often each proxy is started for the samples of a workload: where its code and memory come to lie
/// changes a figure by a tenth, and is drawn at a start.
const STARTS: usize = 3;
/// Samples of idle memory and of starts: they vary less and take longer.
const SLOW_REPETITIONS: usize = 3;

/// So many samples over so many starts, none of which is without one.
fn shares(samples: usize, starts: usize) -> impl Iterator<Item = usize> {
    let of = move |nth| (samples + nth) / starts;
    (0..starts).map(of).filter(|share| *share > 0)
}

/// One that takes part. The same proxy may do so twice, to see how far two measurements of it are
/// apart.
#[derive(Debug, Clone)]
pub(crate) struct Contestant {
    pub(crate) label: String,
    pub(crate) peer: Peer,
}

/// How much is done.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) repetitions: usize,
    pub(crate) quick: bool,
}

/// The site and its backend, for as long as the run lasts.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) site: Site,
    _backend: Helper,
}

impl Bench {
    /// Makes certificates in `folder` and starts the backend.
    pub(crate) fn start(folder: &Path, wanted: &[Peer]) -> Result<Self> {
        pin_self()?;
        let pki = folder.join("pki");
        fs::create_dir_all(&pki)?;
        let east = Domain::new(&pki, "east.example")?;
        let west = Domain::new(&pki, "west.example")?;
        let service = Site::service_svid(&east)?;
        let mut backend = Helper::start("backend", &serde_json::to_string(&service)?)?;
        let site = Site {
            folder: folder.to_owned(),
            gateway: east.svid("/zeugma/gateway", None)?,
            entry: west.svid("/zeugma/gateway", None)?,
            service,
            east,
            west,
            backend: serde_json::from_str(&backend.line()?)?,
            programs: programs(wanted)?,
        };
        Ok(Self {
            site,
            _backend: backend,
        })
    }

    /// Takes all samples of a workload, for a run.
    pub(crate) fn measure(
        &self,
        run: &str,
        workload: &Workload,
        contestants: &[Contestant],
        effort: Effort,
    ) -> Result<Measured> {
        let contestants: Vec<_> = contestants
            .iter()
            .filter(|one| workload.peers.contains(&one.peer) && workload.between.fits(one.peer))
            .cloned()
            .collect();
        let mut samples: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
        match workload.measure {
            Measure::Cpu { full, quick } => {
                let job = if effort.quick { quick } else { full };
                let starts = if effort.quick { 1 } else { STARTS };
                for (nth, repetitions) in shares(effort.repetitions, starts).enumerate() {
                    let proxies = contestants
                        .iter()
                        .map(|one| Course::start(&self.site, workload.between, one))
                        .collect::<Result<Vec<_>>>()?;
                    // The first of each fills pools, caches and branch predictors, and is not kept.
                    for repetition in 0..=repetitions {
                        for turn in order(proxies.len(), nth + repetition) {
                            let sample = self
                                .cpu(workload, job, &proxies[turn])
                                .with_context(|| contestants[turn].label.clone())?;
                            if repetition > 0 {
                                let label = contestants[turn].label.clone();
                                samples.entry(label).or_default().push(sample);
                            }
                        }
                    }
                }
            }
            Measure::Idle { .. } | Measure::Start | Measure::Restart => {
                let most = if effort.quick { 1 } else { SLOW_REPETITIONS };
                for repetition in 0..effort.repetitions.min(most) {
                    for turn in order(contestants.len(), repetition) {
                        let one = &contestants[turn];
                        let sample = match workload.measure {
                            Measure::Idle { count } => self.idle(workload, count, one),
                            Measure::Cpu { .. } | Measure::Start | Measure::Restart => {
                                self.start_time(workload, one)
                            }
                        };
                        let sample = sample.with_context(|| one.label.clone())?;
                        samples.entry(one.label.clone()).or_default().push(sample);
                    }
                }
            }
        }
        Ok(Measured {
            name: workload.name.to_owned(),
            run: run.to_owned(),
            title: workload.title.to_owned(),
            goals: workload.goals.clone(),
            samples,
        })
    }

    fn cpu(&self, workload: &Workload, job: Job, course: &Course) -> Result<Sample> {
        let pids = course.pids();
        for _ in 0..RETAKES {
            let mut helper = self.load(workload, job, course.address)?;
            let before = Cpu::at_rest(&pids)?;
            let done = helper.go()?;
            let after = Cpu::at_rest(&pids)?;
            helper.finish()?;
            Cpu::at_rest(&pids)?;
            course.check()?;
            let Some(spent) = after.since(&before) else {
                continue;
            };
            let mut sample = Sample::from([(Metric::CpuNs, spent as f64 / done.units)]);
            sample.insert(Metric::WallMs, done.wall_ns as f64 / 1e6);
            if let Job::Http2Bulk { bytes, .. } = job {
                let rate = bytes as f64 / (done.wall_ns as f64 / 1e3);
                sample.insert(Metric::StreamMbPerS, rate);
            }
            if let (Some(p50), Some(p99)) = (done.p50_ns, done.p99_ns) {
                sample.insert(Metric::P50Us, p50 as f64 / 1e3);
                sample.insert(Metric::P99Us, p99 as f64 / 1e3);
            }
            return Ok(sample);
        }
        bail!(
            "{}: a thread ended in every one of {RETAKES} samples",
            workload.name
        )
    }

    fn idle(&self, workload: &Workload, count: u64, one: &Contestant) -> Result<Sample> {
        let proxy = Proxy::start(&self.site, one.peer, workload.alone()?, &one.label)?;
        let pids = [proxy.pid()];
        // Code and arenas that the first connections need are no cost of the next thousand.
        let first = Job::Connections {
            count: 64,
            parallel: 8,
        };
        let mut helper = self.load(workload, first, proxy.address)?;
        helper.go()?;
        helper.finish()?;
        Cpu::at_rest(&pids)?;
        let before = pss(proxy.pid())?;
        let mut helper = self.load(workload, Job::Idle { count }, proxy.address)?;
        helper.go()?;
        Cpu::at_rest(&pids)?;
        thread::sleep(SETTLE);
        let after = pss(proxy.pid())?;
        helper.finish()?;
        let grown = after.saturating_sub(before) as f64;
        Ok(Sample::from([
            (Metric::PssBytes, grown / count as f64),
            (Metric::PssMib, mib(after)),
        ]))
    }

    fn start_time(&self, workload: &Workload, one: &Contestant) -> Result<Sample> {
        let hello = Hello::new(&hello_config()?, &workload.between.host())?.with(Wire::Close);
        let works = |address| answers(address, &hello).unwrap_or(false);
        let mut proxy = Proxy::spawn(&self.site, one.peer, workload.alone()?, &one.label)?;
        if workload.measure == Measure::Restart {
            proxy = proxy.wait(works)?;
            proxy = proxy.again(&self.site, &one.label)?;
        }
        let proxy = proxy.wait(works)?;
        let wall = proxy.started.elapsed();
        // What reads the configuration has ended by then.
        let cpu = lifetime(proxy.pid())?;
        Cpu::at_rest(&[proxy.pid()])?;
        Ok(Sample::from([
            (Metric::WallMs, wall.as_secs_f64() * 1e3),
            (Metric::CpuMs, cpu as f64 / 1e6),
            (Metric::PssMib, mib(pss(proxy.pid())?)),
        ]))
    }

    fn load(&self, workload: &Workload, job: Job, target: SocketAddr) -> Result<Helper> {
        let load = Load {
            target,
            name: workload.between.host(),
            opening: match workload.begins {
                Begins::Hello => Opening::Hello,
                Begins::Http => Opening::Http,
                Begins::Tls(certificates, key_exchange) => Opening::Tls(Caller {
                    domain: self.site.west.clone(),
                    server: self.site.gateway.clone(),
                    certificates,
                    key_exchange,
                }),
            },
            job,
        };
        let mut helper = Helper::start("load", &serde_json::to_string(&load)?)?;
        let line = helper.line()?;
        ensure!(line == "ready", "a load generator said {line:?}");
        Ok(helper)
    }
}

/// What one contestant has between load generator and backend, started.
#[derive(Debug)]
struct Course {
    /// Where the load goes.
    address: SocketAddr,
    proxies: Vec<Proxy>,
    relay: Option<Relay>,
}

impl Course {
    fn start(site: &Site, between: Between, one: &Contestant) -> Result<Self> {
        let Contestant { label, peer } = one;
        let one_way = match between {
            Between::One(work) => {
                let proxy = Proxy::start(site, *peer, work, label)?;
                return Ok(Self {
                    address: proxy.address,
                    proxies: vec![proxy],
                    relay: None,
                });
            }
            Between::Two { one_way } => one_way,
        };
        let far = Proxy::start(site, *peer, Work::Exit, &format!("{label}-exit"))?;
        let relay = (!one_way.is_zero())
            .then(|| Relay::start(far.address, one_way))
            .transpose()?;
        let exit = relay.as_ref().map_or(far.address, |relay| relay.address);
        let near = Proxy::start(site, *peer, Work::Entry { exit }, label)?;
        Ok(Self {
            address: near.address,
            proxies: vec![near, far],
            relay,
        })
    }

    fn pids(&self) -> Vec<u32> {
        self.proxies.iter().map(Proxy::pid).collect()
    }

    fn check(&self) -> Result<()> {
        self.relay.as_ref().map_or(Ok(()), Relay::check)
    }
}

/// Who comes when: everyone once, each time another first.
fn order(count: usize, repetition: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| (turn + repetition) % count)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Whether a proxy passes a connection on and its answer back.
fn answers(address: SocketAddr, hello: &[u8]) -> Result<bool> {
    let mut tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(Duration::from_secs(5)))?;
    tcp.write_all(hello)?;
    let mut bytes = [0; ANSWER];
    tcp.read_exact(&mut bytes)?;
    Ok(bytes == answer())
}

/// Moves this process, and all it starts from here on, off the proxy's core.
fn pin_self() -> Result<()> {
    let output = Command::new("taskset")
        .args(["-c", "-p", LOAD_CORE])
        .arg(std::process::id().to_string())
        .output()
        .context("taskset, of Debian's util-linux")?;
    ensure!(
        output.status.success(),
        "taskset: {}; two cores are needed",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// This program again, in another role. Dropping it kills it.
#[derive(Debug)]
struct Helper {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Helper {
    fn start(role: &str, what: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([role, what])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the standard output")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(!line.is_empty(), "a helper ended; standard error says why");
        Ok(line.trim_end().to_owned())
    }

    fn go(&mut self) -> Result<Done> {
        let stdin = self.stdin.as_mut().context("the standard input")?;
        stdin.write_all(b"go\n")?;
        stdin.flush()?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn finish(mut self) -> Result<()> {
        self.stdin.take();
        let status = self.child.wait()?;
        ensure!(status.success(), "a load generator: {status}");
        Ok(())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
