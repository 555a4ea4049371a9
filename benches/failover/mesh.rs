//! One contestant's clusters, and the fault in them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result};
use http::Method;

use crate::case::{Case, Layout};
use crate::endpoint::Endpoint;
use crate::gateway::{Contestant, Exit, Ways};
use crate::load::{Volley, fire, until_ready};
use crate::namespace::{Link, Namespace};
use crate::ports::free_port;
use crate::process::Process;
use crate::site::Site;

/// What runs until it is dropped.
#[derive(Debug)]
pub(crate) struct Mesh {
    case: Case,
    /// Where callers call.
    address: SocketAddr,
    victim: Victim,
    others: Others,
}

/// What the fault takes.
#[derive(Debug)]
enum Victim {
    Answers(Endpoint),
    Endpoint(Endpoint),
    Gateway(Process),
    /// Whoever stands behind it falls silent and lives on.
    Link(Link),
}

/// What lives on. A namespace is removed after those in it have ended.
#[derive(Debug)]
struct Others {
    _gateways: Vec<Process>,
    _endpoints: Vec<Endpoint>,
    _namespace: Option<Namespace>,
}

/// Where a mesh is started.
struct Ground<'a> {
    site: &'a Site,
    contestant: Contestant,
    folder: &'a Path,
}

impl Mesh {
    /// Starts a contestant's mesh, with its files in `folder`, and waits until it answers.
    pub(crate) fn start(
        site: &Site,
        case: Case,
        contestant: Contestant,
        folder: &Path,
    ) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let namespace = match case.is_cut() {
            true => Some(Namespace::new().context("no network namespace")?),
            false => None,
        };
        let ground = Ground {
            site,
            contestant,
            folder,
        };
        let mesh = match case.layout() {
            Layout::Local { endpoints } => ground.local(case, endpoints, namespace),
            Layout::Remote => ground.remote(case, namespace),
        }?;
        until_ready(mesh.address).with_context(|| format!("see {}", folder.display()))?;
        Ok(mesh)
    }

    /// Sends requests, has it fail among them, and ends it.
    pub(crate) fn endure(self, method: &Method) -> Result<Volley> {
        let Self {
            case,
            address,
            victim,
            others,
        } = self;
        let (volley, remains) = fire(address, method, case.after(), || victim.strike())?;
        drop((remains, others));
        Ok(volley)
    }
}

impl Victim {
    /// The fault; what is left of it is to be kept until the end.
    fn strike(self) -> Result<Option<Self>> {
        // Dropped is killed.
        match self {
            Self::Answers(endpoint) => {
                endpoint.fail()?;
                Ok(Some(Self::Answers(endpoint)))
            }
            Self::Endpoint(endpoint) => {
                drop(endpoint);
                Ok(None)
            }
            Self::Gateway(process) => {
                drop(process);
                Ok(None)
            }
            Self::Link(link) => {
                link.cut_far();
                Ok(Some(Self::Link(link)))
            }
        }
    }
}

impl Ground<'_> {
    /// Local endpoints, the first of which fails, and a remote one.
    fn local(&self, case: Case, count: usize, namespace: Option<Namespace>) -> Result<Mesh> {
        let link = namespace.as_ref().map(Namespace::link);
        let ip = link.as_ref().map_or(Ipv4Addr::LOCALHOST, |link| link.far);
        let first = self.endpoint("first", ip, namespace.as_ref())?;
        let mut local = vec![first.address];
        let mut endpoints = Vec::new();
        for _ in 1..count {
            let other = self.endpoint("other", Ipv4Addr::LOCALHOST, None)?;
            local.push(other.address);
            endpoints.push(other);
        }
        let west = self.endpoint("west", Ipv4Addr::LOCALHOST, None)?;
        let listen = free_port()?;
        let exit = self.exit(1, listen, &west, None)?;
        endpoints.push(west);
        let (address, entry) = self.entry(&local, &[listen])?;
        let victim = match link {
            Some(link) => {
                endpoints.push(first);
                Victim::Link(link)
            }
            None if case == Case::Failing => Victim::Answers(first),
            None => Victim::Endpoint(first),
        };
        Ok(Mesh {
            case,
            address,
            victim,
            others: Others {
                _gateways: vec![entry, exit],
                _endpoints: endpoints,
                _namespace: namespace,
            },
        })
    }

    /// Two remote gateways, the first of which fails.
    fn remote(&self, case: Case, namespace: Option<Namespace>) -> Result<Mesh> {
        let link = namespace.as_ref().map(Namespace::link);
        let mut listen = [free_port()?, free_port()?];
        let mut near = Ipv4Addr::LOCALHOST;
        if let Some(link) = &link {
            listen[0].set_ip(link.far.into());
            near = link.near;
        }
        let west = self.endpoint("west", near, None)?;
        let north = self.endpoint("north", Ipv4Addr::LOCALHOST, None)?;
        let first = self.exit(1, listen[0], &west, namespace.as_ref())?;
        let second = self.exit(2, listen[1], &north, None)?;
        let (address, entry) = self.entry(&[], &listen)?;
        let mut gateways = vec![entry, second];
        let victim = match link {
            Some(link) => {
                gateways.push(first);
                Victim::Link(link)
            }
            None => Victim::Gateway(first),
        };
        Ok(Mesh {
            case,
            address,
            victim,
            others: Others {
                _gateways: gateways,
                _endpoints: vec![west, north],
                _namespace: namespace,
            },
        })
    }

    fn endpoint(
        &self,
        name: &str,
        ip: Ipv4Addr,
        namespace: Option<&Namespace>,
    ) -> Result<Endpoint> {
        Endpoint::start(&format!("endpoint-{name}"), self.folder, ip, namespace)
    }

    fn exit(
        &self,
        cluster: usize,
        listen: SocketAddr,
        endpoint: &Endpoint,
        namespace: Option<&Namespace>,
    ) -> Result<Process> {
        let folder = self.folder.join(format!("exit-{cluster}"));
        let exit = Exit {
            cluster,
            listen,
            endpoint: endpoint.address,
        };
        self.contestant.exit(self.site, &folder, exit, namespace)
    }

    fn entry(&self, local: &[SocketAddr], remote: &[SocketAddr]) -> Result<(SocketAddr, Process)> {
        let address = free_port()?;
        let folder = self.folder.join("entry");
        let ways = Ways { local, remote };
        let entry = self.contestant.entry(self.site, &folder, address, &ways)?;
        Ok((address, entry))
    }
}
