//! Runs workloads: the proxies of one side by side, their samples interleaved.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::load::{Done, Job, Load, Opening};
use crate::measure::{Cpu, lifetime, pss};
use crate::pace::{Pace, is_steady};
use crate::pki::Domain;
use crate::proxies::{Between, PROXY_CORE, Proxy, Site, Work};
use crate::relay::Relay;
use crate::results::{Measured, Metric, Peer, Sample};
use crate::role::Role;
use crate::tls::{Caller, hello_config};
use crate::wire::{ANSWER, Command as Wire, Hello, answer};
use crate::workloads::{Begins, Measure, Workload};

/// The core of everything but the proxy.
const LOAD_CORE: &str = "1";
/// How often a sample is taken again in which a thread ended, or a start in which the core began to be
/// shared.
const RETAKES: usize = 3;
/// How long memory may settle after a start or the last connection.
const SETTLE: Duration = Duration::from_secs(1);
/// How often each proxy is started for the samples of a workload: where its code and memory come to lie
/// changes a figure by a tenth, and is drawn at a start.
const STARTS: usize = 3;
/// Samples of idle memory: they vary less and take longer.
const IDLE_REPETITIONS: usize = 3;
/// How long after a job what it has put off is done: memory goes back within a fifth of a second.
const AFTERWARDS: Duration = Duration::from_millis(200);
/// How long to wait, in a workload, for a core that is not shared.
const PATIENCE: Duration = Duration::from_secs(90);

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
    _backend: Role,
    pace: Pace,
}

/// By who took part, in the order of the rounds.
type Samples = BTreeMap<String, Vec<Sample>>;

impl Bench {
    /// Makes certificates in `folder` and starts the backend.
    pub(crate) fn start(folder: &Path, programs: BTreeMap<Peer, PathBuf>) -> Result<Self> {
        pin_self()?;
        let pki = folder.join("pki");
        fs::create_dir_all(&pki)?;
        let east = Domain::new(&pki, "east.example")?;
        let west = Domain::new(&pki, "west.example")?;
        let service = Site::service_svid(&east)?;
        let mut backend = Role::start("backend", &serde_json::to_string(&service)?)?;
        let site = Site {
            folder: folder.to_owned(),
            gateway: east.svid("/zeugma/gateway", None)?,
            entry: west.svid("/zeugma/gateway", None)?,
            service,
            east,
            west,
            backend: serde_json::from_str(&backend.line()?)?,
            programs,
        };
        Ok(Self {
            site,
            _backend: backend,
            pace: Pace::of(PROXY_CORE)?,
        })
    }

    /// Takes all samples of a workload, for a run.
    pub(crate) fn measure(
        &mut self,
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
        let (samples, uneven) = match workload.measure {
            Measure::Cpu { full, quick } => {
                let job = if effort.quick { quick } else { full };
                self.rounds(workload, job, &contestants, effort)
            }
            Measure::Idle { .. } | Measure::Start | Measure::Restart => {
                self.slow_rounds(workload, &contestants, effort)
            }
        }?;
        Ok(Measured {
            name: workload.name.to_owned(),
            run: run.to_owned(),
            title: workload.title.to_owned(),
            goals: workload.goals.clone(),
            samples,
            uneven,
        })
    }

    /// The fastest piece of work that was seen on the proxy's core, in nanoseconds.
    pub(crate) const fn fastest(&self) -> f64 {
        self.pace.fastest()
    }

    /// CPU of a job, by proxies that go on. The samples of a round are taken at one pace of the core:
    /// a round in which it changed is taken again, in all as often as there are repetitions, and then
    /// kept and counted.
    fn rounds(
        &mut self,
        workload: &Workload,
        job: Job,
        contestants: &[Contestant],
        effort: Effort,
    ) -> Result<(Samples, usize)> {
        let mut samples = Samples::new();
        let mut uneven = 0;
        let starts = if effort.quick { 1 } else { STARTS };
        let mut again = if effort.quick { 0 } else { effort.repetitions };
        for (nth, repetitions) in shares(effort.repetitions, starts).enumerate() {
            let courses = contestants
                .iter()
                .map(|one| Course::start(&self.site, workload.between, one))
                .collect::<Result<Vec<_>>>()?;
            // The first fills pools, caches and branch predictors, and is not kept.
            self.round(workload, job, contestants, &courses, nth)?;
            let mut taken = 0;
            while taken < repetitions {
                let turn = nth + 1 + taken;
                let (round, steady) = self.round(workload, job, contestants, &courses, turn)?;
                if !steady && again > 0 {
                    again -= 1;
                    continue;
                }
                taken += 1;
                uneven += usize::from(!steady);
                for (label, sample) in round {
                    samples.entry(label).or_default().push(sample);
                }
            }
        }
        Ok((samples, uneven))
    }

    /// One sample of each, and whether the pace of the core was the same all the while.
    fn round(
        &mut self,
        workload: &Workload,
        job: Job,
        contestants: &[Contestant],
        courses: &[Course],
        turn: usize,
    ) -> Result<(Vec<(String, Sample)>, bool)> {
        let mut round = Vec::new();
        let mut paces = vec![self.pace.now()?];
        for turn in order(courses.len(), turn) {
            let label = &contestants[turn].label;
            let mut sample = self
                .cpu(workload, job, &courses[turn])
                .with_context(|| label.clone())?;
            let before = paces.last().copied().unwrap_or_default();
            let after = self.pace.now()?;
            paces.push(after);
            sample.insert(Metric::PaceNs, f64::midpoint(before, after));
            round.push((label.clone(), sample));
        }
        Ok((round, is_steady(&paces)))
    }

    /// What needs a new proxy for each sample.
    fn slow_rounds(
        &mut self,
        workload: &Workload,
        contestants: &[Contestant],
        effort: Effort,
    ) -> Result<(Samples, usize)> {
        let mut samples = Samples::new();
        let mut uneven = 0;
        let most = match workload.measure {
            _ if effort.quick => 1,
            Measure::Idle { .. } => IDLE_REPETITIONS,
            Measure::Cpu { .. } | Measure::Start | Measure::Restart => effort.repetitions,
        };
        let mut patience = if effort.quick {
            Duration::ZERO
        } else {
            PATIENCE
        };
        for repetition in 0..effort.repetitions.min(most) {
            for turn in order(contestants.len(), repetition) {
                let one = &contestants[turn];
                let sample = match workload.measure {
                    Measure::Idle { count } => {
                        (self.idle(workload, count, one)).map(|sample| (sample, true))
                    }
                    Measure::Cpu { .. } | Measure::Start | Measure::Restart => {
                        self.start_alone(workload, one, effort, &mut patience)
                    }
                };
                let (sample, steady) = sample.with_context(|| one.label.clone())?;
                uneven += usize::from(!steady);
                samples.entry(one.label.clone()).or_default().push(sample);
            }
        }
        Ok((samples, uneven))
    }

    /// A start on a core that is not shared, if patience allows: the goal is a time. One that began so
    /// and did not end so is taken again. Whether the pace of the core was the same all the while.
    fn start_alone(
        &mut self,
        workload: &Workload,
        one: &Contestant,
        effort: Effort,
        patience: &mut Duration,
    ) -> Result<(Sample, bool)> {
        let mut again = if effort.quick { 0 } else { RETAKES };
        loop {
            let (mut sample, [before, after]) = self.start_time(workload, one, patience)?;
            if self.pace.is_alone(before) && !self.pace.is_alone(after) && again > 0 {
                again -= 1;
                continue;
            }
            sample.insert(Metric::PaceNs, f64::midpoint(before, after));
            return Ok((sample, is_steady(&[before, after])));
        }
    }

    fn cpu(&self, workload: &Workload, job: Job, course: &Course) -> Result<Sample> {
        let pids = course.pids();
        for _ in 0..RETAKES {
            let mut load = self.load(workload, job, course.address)?;
            let before = Cpu::at_rest(&pids)?;
            let done: Done = load.go()?;
            // What the work leaves to be done a while later is of it.
            thread::sleep(AFTERWARDS);
            let after = Cpu::at_rest(&pids)?;
            load.finish()?;
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
        let mut load = self.load(workload, first, proxy.address)?;
        let _: Done = load.go()?;
        load.finish()?;
        Cpu::at_rest(&pids)?;
        thread::sleep(SETTLE);
        let before = pss(proxy.pid())?;
        let mut load = self.load(workload, Job::Idle { count }, proxy.address)?;
        let _: Done = load.go()?;
        Cpu::at_rest(&pids)?;
        thread::sleep(SETTLE);
        let after = pss(proxy.pid())?;
        load.finish()?;
        let grown = after.saturating_sub(before) as f64;
        Ok(Sample::from([
            (Metric::PssBytes, grown / count as f64),
            (Metric::PssMib, mib(after)),
        ]))
    }

    /// A start, and the pace of the core before it and after.
    fn start_time(
        &mut self,
        workload: &Workload,
        one: &Contestant,
        patience: &mut Duration,
    ) -> Result<(Sample, [f64; 2])> {
        let hello = Hello::new(&hello_config()?, &workload.between.host())?.with(Wire::Close);
        let works = |address| answers(address, &hello).unwrap_or(false);
        let spawn = || Proxy::spawn(&self.site, one.peer, workload.alone()?, &one.label);
        let (before, proxy) = if workload.measure == Measure::Restart {
            let proxy = spawn()?.wait(works)?;
            Cpu::at_rest(&[proxy.pid()])?;
            let before = self.pace.alone(patience)?;
            (before, proxy.again(&self.site, &one.label)?)
        } else {
            (self.pace.alone(patience)?, spawn()?)
        };
        let proxy = proxy.wait(works)?;
        let wall = proxy.started.elapsed();
        Cpu::at_rest(&[proxy.pid()])?;
        let after = self.pace.now()?;
        // What reads the configuration has ended by then, and what was freed went back.
        thread::sleep(SETTLE);
        let cpu = lifetime(proxy.pid())?;
        let sample = Sample::from([
            (Metric::WallMs, wall.as_secs_f64() * 1e3),
            (Metric::CpuMs, cpu as f64 / 1e6),
            (Metric::PssMib, mib(pss(proxy.pid())?)),
        ]);
        Ok((sample, [before, after]))
    }

    fn load(&self, workload: &Workload, job: Job, target: SocketAddr) -> Result<Role> {
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
        let mut role = Role::start("load", &serde_json::to_string(&load)?)?;
        let line = role.line()?;
        ensure!(line == "ready", "a load generator said {line:?}");
        Ok(role)
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

/// Who comes when: everyone once, each time another first, and every other time the other way round.
fn order(count: usize, repetition: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| {
        let turn = if repetition.is_multiple_of(2) {
            turn
        } else {
            count - 1 - turn
        };
        (turn + repetition / 2) % count
    })
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
