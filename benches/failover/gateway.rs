//! The gateways: whose they are, what each is given, and one that runs.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::case::{Case, Layout};
use crate::namespace::Namespace;
use crate::process::Process;
use crate::site::Site;
use crate::{envoy, zeugma};

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Contestant {
    Zeugma,
    Envoy(Settings),
}

/// How Envoy is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Settings {
    /// What our gateway does by itself, as far as there are words for it.
    Equal,
    /// What Istio writes for a service with locality failover and `outlierDetection: {}`.
    Istio,
    /// Nothing but where the endpoints are, and their priorities.
    Defaults,
}

/// Where the gateway that callers call may send them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ways<'a> {
    /// Local endpoints.
    pub(crate) local: &'a [SocketAddr],
    /// Gateways of other clusters, the preferred one first.
    pub(crate) remote: &'a [SocketAddr],
}

/// A gateway of another cluster.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    /// Which of the site's clusters it stands in.
    pub(crate) cluster: usize,
    pub(crate) listen: SocketAddr,
    pub(crate) endpoint: SocketAddr,
}

impl Contestant {
    pub(crate) const ALL: [Self; 4] = [
        Self::Zeugma,
        Self::Envoy(Settings::Equal),
        Self::Envoy(Settings::Istio),
        Self::Envoy(Settings::Defaults),
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Zeugma => "zeugma",
            Self::Envoy(Settings::Equal) => "envoy, equal",
            Self::Envoy(Settings::Istio) => "envoy, istio",
            Self::Envoy(Settings::Defaults) => "envoy, defaults",
        }
    }

    /// Starts the gateway that callers call.
    pub(crate) fn entry(
        self,
        site: &Site,
        folder: &Path,
        listen: SocketAddr,
        ways: &Ways<'_>,
    ) -> Result<Process> {
        fs::create_dir_all(folder)?;
        let mut command = match self {
            Self::Zeugma => zeugma::entry(site, folder, listen, ways)?,
            Self::Envoy(settings) => envoy::entry(site, folder, listen, ways, settings)?,
        };
        Process::start("entry", quiet(&mut command), folder)
    }

    /// Starts a gateway of another cluster, in a namespace if there is one.
    pub(crate) fn exit(
        self,
        site: &Site,
        folder: &Path,
        exit: Exit,
        namespace: Option<&Namespace>,
    ) -> Result<Process> {
        fs::create_dir_all(folder)?;
        let inner = match self {
            Self::Zeugma => zeugma::exit(site, folder, exit)?,
            Self::Envoy(_) => envoy::exit(site, folder, exit)?,
        };
        let mut command = match namespace {
            Some(namespace) => {
                let mut command = namespace.command(&inner.get_program().to_string_lossy());
                command.args(inner.get_args());
                command
            }
            None => inner,
        };
        Process::start("exit", quiet(&mut command), folder)
    }

    /// What it is given that decides how it fails over, for people.
    pub(crate) fn decisive(self, case: Case) -> Result<String> {
        // RFC 5737: addresses for documents.
        let local = [1, 2].map(|nth| SocketAddr::from(([192, 0, 2, nth], 8080)));
        let remote = [1, 2].map(|nth| SocketAddr::from(([198, 51, 100, nth], 15443)));
        let ways = match case.layout() {
            Layout::Local { endpoints } => Ways {
                local: &local[..endpoints],
                remote: &remote[..1],
            },
            Layout::Remote => Ways {
                local: &[],
                remote: &remote,
            },
        };
        match self {
            Self::Zeugma => Ok(zeugma::decisive(&ways)),
            Self::Envoy(settings) => envoy::decisive(&ways, settings),
        }
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.env_remove("ZEUGMA_LOG")
}
