//! Where a demo plays: its folder, clusters, addresses, processes, and what one sees of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use tempfile::TempDir;

use super::client::{Client, Numbers, Record, Target};
use super::fetch::{self, FetchError};
use super::hold::Hold;
use super::journal::{Journal, Verb};
use super::narrate::{Narrator, said};
use super::process::{Ports, ProcessError, Processes, Program};
use super::run::{Run, latency};
use super::service::Counts;

/// A cluster of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) trust_domain: &'static str,
    pub(crate) locality: &'static str,
}

/// Where the client is.
pub(crate) const EAST: Cluster = Cluster {
    name: "east",
    trust_domain: "east.example",
    locality: "eu/eu-1/rack-a",
};

/// Far away.
pub(crate) const WEST: Cluster = Cluster {
    name: "west",
    trust_domain: "west.example",
    locality: "us/us-1/rack-a",
};

impl Cluster {
    /// The name of its gateway.
    pub(crate) fn gateway(&self) -> String {
        format!("{}-gw", self.name)
    }

    /// Who its gateway is.
    pub(crate) fn gateway_id(&self) -> String {
        format!("spiffe://{}/zeugma/gateway", self.trust_domain)
    }
}

/// A gateway's places.
#[derive(Debug, Clone)]
pub(crate) struct Gateway {
    pub(crate) cluster: Cluster,
    /// Its configuration, key, certificate and bundles.
    pub(crate) folder: PathBuf,
    pub(crate) mesh: SocketAddr,
    pub(crate) apps: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) probes: SocketAddr,
    pub(crate) metrics: SocketAddr,
}

impl Gateway {
    /// The path of its configuration.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.join(format!("{}.yaml", self.cluster.name))
    }
}

/// A service's places.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    pub(crate) journal: PathBuf,
}

/// What goes wrong on a site.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SiteError {
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot read the journal {}", path.display())]
    Journal {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot make a folder for the demo in {}", std::env::temp_dir().display())]
    Folder(#[source] io::Error),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{service} answered {status} to a new hold")]
    Hold { service: String, status: StatusCode },
}

/// What the person typed that every scenario heeds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    /// Requests per second.
    pub(crate) rate: u32,
    /// The round trip between the clusters.
    pub(crate) rtt: Duration,
    /// Whether the other cluster is there.
    pub(crate) west: West,
}

/// Whether the other cluster is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum West {
    Started,
    Missing,
}

/// A demo's place in the world. Dropping it ends its processes, then removes its folder.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) narrator: Narrator,
    pub(crate) conditions: Conditions,
    // Dropped in this order: a process may still write to the folder.
    pub(crate) processes: Processes,
    folder: TempDir,
    ports: Ports,
    killed: Vec<&'static str>,
    next_line: Duration,
}

impl Site {
    /// A new folder, nothing running.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub(crate) fn open(narrator: Narrator, conditions: Conditions) -> Result<Self, SiteError> {
        let folder = tempfile::Builder::new()
            .prefix("zeugma-demo-")
            .tempdir()
            .map_err(SiteError::Folder)?;
        let logs = folder.path().join("logs");
        make_folder(&logs)?;
        Ok(Self {
            narrator,
            conditions,
            processes: Processes::new(&logs).map_err(SiteError::Folder)?,
            folder,
            ports: Ports::default(),
            killed: Vec::new(),
            next_line: Duration::ZERO,
        })
    }

    /// The demo's folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves the folder behind when the demo ends.
    pub(crate) fn keep_folder(&mut self) {
        self.folder.disable_cleanup(true);
    }

    /// Finds places for a cluster's gateway.
    ///
    /// # Errors
    /// When there are no free ports, or its folder cannot be made.
    pub(crate) fn gateway(&mut self, cluster: Cluster) -> Result<Gateway, SiteError> {
        let folder = self.folder().join(cluster.name);
        make_folder(&folder.join("bundles"))?;
        Ok(Gateway {
            cluster,
            folder,
            mesh: self.ports.free()?,
            apps: self.ports.free()?,
            admin: self.ports.free()?,
            probes: self.ports.free()?,
            metrics: self.ports.free()?,
        })
    }

    /// Finds a place for a service.
    ///
    /// # Errors
    /// When there is no free port.
    pub(crate) fn service(&mut self, name: &'static str) -> Result<Service, SiteError> {
        Ok(Service {
            name,
            address: self.ports.free()?,
            journal: self.folder().join("logs").join(format!("{name}.journal")),
        })
    }

    /// Starts a relay before `gateway`'s mesh listener where there is a distance to cover; the
    /// address by which the other cluster reaches the gateway.
    ///
    /// # Errors
    /// When there is no free port, or the relay does not start.
    pub(crate) fn reached_at(&mut self, gateway: &Gateway) -> Result<SocketAddr, SiteError> {
        let delay = self.conditions.rtt / 2;
        if delay.is_zero() {
            return Ok(gateway.mesh);
        }
        let listen = self.ports.free()?;
        let args = [
            "demo-relay".to_owned(),
            format!("--listen={listen}"),
            format!("--to={}", gateway.mesh),
            format!("--delay={}ms", delay.as_millis()),
        ];
        self.processes.start(Program {
            name: format!("to-{}", gateway.cluster.name),
            role: "distance",
            args: args.to_vec(),
            probe: None,
        })?;
        Ok(listen)
    }

    /// Writes a gateway's configuration.
    ///
    /// # Errors
    /// [`SiteError::Write`].
    pub(crate) fn configure(&self, gateway: &Gateway, yaml: &str) -> Result<(), SiteError> {
        let path = gateway.config();
        std::fs::write(&path, yaml).map_err(|source| SiteError::Write { path, source })
    }

    /// Starts services and waits until they answer.
    ///
    /// # Errors
    /// When one does not start.
    pub(crate) async fn start_services(&mut self, services: &[&Service]) -> Result<(), SiteError> {
        for service in services {
            self.processes.start(service_program(service))?;
        }
        for service in services {
            self.processes.ready(service.name).await?;
        }
        Ok(())
    }

    /// Starts gateways and waits until they are ready.
    ///
    /// # Errors
    /// When one does not start.
    pub(crate) async fn start_gateways(&mut self, gateways: &[&Gateway]) -> Result<(), SiteError> {
        for gateway in gateways {
            let args = [
                "gateway".to_owned(),
                format!("--config={}", gateway.config().display()),
                format!("--name={}", gateway.cluster.gateway()),
            ];
            self.processes.start(Program {
                name: gateway.cluster.gateway(),
                role: "gateway",
                args: args.to_vec(),
                probe: Some((gateway.probes, "/ready")),
            })?;
        }
        for gateway in gateways {
            self.processes.ready(&gateway.cluster.gateway()).await?;
        }
        Ok(())
    }

    /// Kills a service as `kill -9` does; how many requests it was holding, and when.
    ///
    /// # Errors
    /// When it is not there.
    pub(crate) async fn kill(&mut self, service: &Service) -> Result<Kill, SiteError> {
        let counts: Counts = fetch::json(service.address, "/counts").await?;
        let at = self.narrator.elapsed();
        let pid = self.processes.kill(service.name).await?;
        self.killed.push(service.name);
        self.narrator.tell(&format!(
            "kill -9 {pid}: {} is gone, with {} requests it was holding",
            service.name, counts.in_flight
        ));
        Ok(Kill {
            at,
            held: counts.in_flight,
        })
    }

    /// Tells a service to hold its requests longer or shorter.
    ///
    /// # Errors
    /// When it does not answer, or refuses.
    pub(crate) async fn hold(&self, service: &Service, hold: Hold) -> Result<(), SiteError> {
        let body = Full::new(Bytes::from(hold.to_string()));
        let mut request = Request::new(body);
        *request.method_mut() = http::Method::PUT;
        *request.uri_mut() = http::Uri::from_static("/hold");
        let (status, _) = fetch::send(service.address, request).await?;
        if status == StatusCode::OK {
            Ok(())
        } else {
            Err(SiteError::Hold {
                service: service.name.to_owned(),
                status,
            })
        }
    }

    /// Starts the client against a gateway.
    pub(crate) fn client(&mut self, gateway: &Gateway, host: &str) -> Client {
        let target = Target {
            gateway: gateway.apps,
            host: host.to_owned(),
            rate: self.conditions.rate,
            numbers: Numbers::Carried,
        };
        self.next_line = self.narrator.elapsed() + LINE_EVERY;
        Client::start(target, self.narrator.start())
    }

    /// Starts a second client, to compare the first with.
    pub(crate) fn second_client(&self, gateway: &Gateway, host: &str, rate: u32) -> Client {
        let target = Target {
            gateway: gateway.apps,
            host: host.to_owned(),
            rate,
            numbers: Numbers::Kept,
        };
        Client::start(target, self.narrator.start())
    }

    /// Lets the client go on for `span`, with a line a second.
    ///
    /// # Errors
    /// When a process ends by itself.
    pub(crate) async fn watch(&mut self, client: &Client, span: Duration) -> Result<(), SiteError> {
        self.watch_until(client, span, |_, _| false).await?;
        Ok(())
    }

    /// Lets the client go on until `is_done(requests, now)`, at most for `limit`; whether it was.
    ///
    /// # Errors
    /// When a process ends by itself.
    pub(crate) async fn watch_until(
        &mut self,
        client: &Client,
        limit: Duration,
        is_done: impl Fn(&[Record], Duration) -> bool,
    ) -> Result<bool, SiteError> {
        let end = self.narrator.elapsed() + limit;
        loop {
            let now = self.narrator.elapsed();
            if now >= self.next_line {
                let line = client.look(|records| second(records, now));
                self.narrator.show(&line);
                self.next_line = now + LINE_EVERY;
            }
            if client.look(|records| is_done(records, now)) {
                return Ok(true);
            }
            if now >= end {
                return Ok(false);
            }
            self.processes.check()?;
            let next = end.min(self.next_line).min(now + LOOK_EVERY);
            tokio::time::sleep(next.saturating_sub(now)).await;
        }
    }

    /// Ends the client; what it saw, and what the services `in_play` wrote down.
    ///
    /// # Errors
    /// When a journal cannot be read.
    pub(crate) async fn finish(
        &self,
        client: Client,
        in_play: &[&Service],
    ) -> Result<Run, SiteError> {
        let records = client.stop().await;
        let mut journals = Vec::new();
        let mut counts = Vec::new();
        for service in in_play {
            journals.push(journal(service)?);
            let runs = |(program, _): (&Program, u32)| program.name == service.name;
            if !self.killed.contains(&service.name) && self.processes.list().any(runs) {
                counts.push(fetch::json(service.address, "/counts").await?);
            }
        }
        Ok(Run {
            records,
            journals,
            counts,
        })
    }
}

/// What a service wrote down.
///
/// # Errors
/// [`SiteError::Journal`].
pub(crate) fn journal(service: &Service) -> Result<Journal, SiteError> {
    Journal::read(service.name, &service.journal).map_err(|source| SiteError::Journal {
        path: service.journal.clone(),
        source,
    })
}

/// A process killed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kill {
    /// When.
    pub(crate) at: Duration,
    /// How many requests it was holding.
    pub(crate) held: u64,
}

const LINE_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(50);

fn service_program(service: &Service) -> Program {
    let args = [
        "demo-service".to_owned(),
        format!("--listen={}", service.address),
        format!("--name={}", service.name),
        format!("--journal={}", service.journal.display()),
    ];
    Program {
        name: service.name.to_owned(),
        role: "service",
        args: args.to_vec(),
        probe: Some((service.address, "/healthz")),
    }
}

fn make_folder(path: &Path) -> Result<(), SiteError> {
    std::fs::create_dir_all(path).map_err(|source| SiteError::Write {
        path: path.to_owned(),
        source,
    })
}

/// One line about the requests that ended in the second before `now`.
fn second(records: &[Record], now: Duration) -> String {
    let from = now.saturating_sub(LINE_EVERY);
    let ended: Vec<_> = records
        .iter()
        .filter(|record| record.ended().is_some_and(|at| at >= from && at < now))
        .collect();
    let mut by_service: BTreeMap<&str, usize> = BTreeMap::new();
    for service in ended.iter().filter_map(|record| record.service()) {
        *by_service.entry(service).or_default() += 1;
    }
    let lost = |verb| {
        let is_one = |r: &&&Record| r.verb == verb && r.is_lost();
        ended.iter().filter(is_one).count()
    };
    let mut line = format!("{:>4}/s", ended.len());
    for (service, count) in by_service {
        write!(line, "  {service} {count}").ok();
    }
    let at = |thousandths| latency(&ended, thousandths).map_or_else(|| "-".to_owned(), said);
    write!(line, "  p50 {}  p99 {}", at(500), at(990)).ok();
    match (lost(Verb::Get), lost(Verb::Post)) {
        (0, 0) => {}
        (gets, posts) => {
            write!(line, "  lost: {gets} GET, {posts} POST").ok();
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::run::tests::ms;

    #[test]
    fn the_line_of_a_second_counts_what_ended_in_it() {
        let run = Run::of(&["east-1", "west-1"])
            .answered(Verb::Get, 800, "east-1")
            .answered(Verb::Get, 950, "east-1")
            .answered(Verb::Get, 1500, "west-1")
            .lost_one(Verb::Post, 1600, None);
        // The first ended at 900 ms, before the second.
        assert_eq!(
            second(&run.records, ms(2000)),
            "   3/s  east-1 1  west-1 1  p50 100 ms  p99 100 ms  lost: 0 GET, 1 POST"
        );
        assert_eq!(second(&[], ms(2000)), "   0/s  p50 -  p99 -");
    }
}
