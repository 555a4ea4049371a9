//! `zeugma xds get` and `watch`.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use zeugma_core::identity::TrustDomain;
use zeugma_core::locality::Locality;
use zeugma_core::snapshot::Node;
use zeugma_proxy::tls::{Credentials, SvidFiles};
use zeugma_xds::client::{Asked, Client, ClientOptions, MESSAGE_BYTES_MAX, OnEmpty, Seen, Told};
use zeugma_xds::{Color, ControlAddress, ControlPlane, Good, Kind, NodeOptions, Sources};

use crate::admin::{self, Output};
use crate::exit;
use crate::table::{Table, printable};

/// Of a control plane that does not answer, or sends nothing.
const UNAVAILABLE: &str = "ZG0522";

/// When it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// All of it is there.
    Complete,
    /// Never.
    Ended,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which resources
    what: What,
    /// The server: `https://host:port`, or `http://` with a loopback address. Default: the first of
    /// `controlPlane` in --config
    #[arg(long, value_name = "URL", value_parser = ControlAddress::parse)]
    server: Option<ControlAddress>,
    /// The configuration of the gateway that is asked for, whose certificate is shown
    #[arg(long, value_name = "FILE|DIR", required_unless_present = "server")]
    config: Option<PathBuf>,
    /// Which MeshGateway, where several are loaded; without --config, the name that is asked by
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Without --config, the cluster that is asked by
    #[arg(long, value_name = "NAME", conflicts_with = "config")]
    cluster: Option<String>,
    /// How long to wait for all of it
    #[arg(long, value_name = "SECONDS", value_parser = crate::check::seconds, default_value = "30s")]
    wait: Duration,
    /// How to answer
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// By CDS
    Clusters,
    /// By EDS, of the clusters that say so
    Endpoints,
    /// By LDS
    Listeners,
    /// By RDS, of the listeners that name them
    Routes,
}

impl What {
    const fn kind(self) -> Kind {
        match self {
            Self::Clusters => Kind::Cluster,
            Self::Endpoints => Kind::Endpoints,
            Self::Listeners => Kind::Listener,
            Self::Routes => Kind::Routes,
        }
    }
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error("{0}")]
    Config(String),
    #[error(
        "a server that is asked by https:// wants to know who asks: write `--config`, of a gateway with a certificate"
    )]
    Nobody,
    #[error("the certificate of the gateway does not come from files")]
    NoFiles,
    #[error("{0}")]
    Credentials(#[from] zeugma_proxy::tls::CredentialsError),
    #[error("{address}: {why}")]
    Unavailable { address: String, why: String },
    #[error("no event loop: {0}")]
    System(#[from] std::io::Error),
    #[error("cannot write to standard output: {0}")]
    Print(std::io::Error),
}

impl ReadError {
    fn fail(&self) -> ExitCode {
        let (code, exit) = match self {
            Self::Config(_) | Self::NoFiles => ("ZG0128", exit::DATA),
            Self::Nobody => ("ZG1001", exit::USAGE),
            Self::Credentials(error) => (error.code(), exit::DATA),
            Self::Unavailable { .. } => (UNAVAILABLE, exit::UNAVAILABLE),
            Self::System(_) => ("ZG0908", exit::FAILED),
            Self::Print(_) => ("ZG1002", exit::FAILED),
        };
        // Nobody is left to tell if standard error is closed.
        writeln!(std::io::stderr(), "error[{code}]: {self}").ok();
        ExitCode::from(exit)
    }
}

/// Runs `zeugma xds get` or `watch`.
pub(crate) fn run(arguments: &Arguments, until: Until) -> ExitCode {
    try_run(arguments, until).unwrap_or_else(|error| error.fail())
}

fn try_run(arguments: &Arguments, until: Until) -> Result<ExitCode, ReadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asking = Asking::of(arguments)?;
    runtime.block_on(asking.read(arguments, until))
}

/// Who asks whom.
struct Asking {
    node: Node,
    address: ControlAddress,
    credentials: Option<Arc<Credentials>>,
    control_plane: Option<ControlPlane>,
}

impl Asking {
    fn of(arguments: &Arguments) -> Result<Self, ReadError> {
        let Some(config) = &arguments.config else {
            let word =
                |given: &Option<String>| given.clone().unwrap_or_else(|| "zeugma".to_owned());
            let trust_domain = TrustDomain::parse("unknown");
            return Ok(Self {
                node: Node {
                    name: word(&arguments.name).into(),
                    cluster: word(&arguments.cluster).into(),
                    locality: Locality::default(),
                    trust_domain: trust_domain.map_err(|e| ReadError::Config(e.to_string()))?,
                },
                // By TLS nobody is let in who does not show who it is.
                address: (arguments.server.clone())
                    .filter(|address| matches!(address, ControlAddress::Plain(_)))
                    .ok_or(ReadError::Nobody)?,
                credentials: None,
                control_plane: None,
            });
        };
        let options = NodeOptions {
            name: arguments.name.clone(),
            locality: None,
        };
        let loaded = Sources::read(config)
            .and_then(|sources| sources.renew(&options, &Good::default(), &[]))
            .map_err(|findings| ReadError::Config(findings.to_human(Color::Plain)))?;
        let settings = loaded.settings;
        let first = settings
            .control_plane
            .as_ref()
            .and_then(|one| one.addresses.first());
        let address = arguments
            .server
            .as_ref()
            .or(first)
            .cloned()
            .ok_or_else(|| {
                ReadError::Config("there is no `controlPlane`; write `--server`".to_owned())
            })?;
        let files = settings.svid.files().ok_or(ReadError::NoFiles)?;
        let credentials = Credentials::load(
            &SvidFiles {
                certificate: files.certificate.clone(),
                key: files.key.clone(),
                bundles: files.bundles.clone(),
                crls: files.crls.clone(),
                denied: files.denied.clone(),
                own: Some(settings.trust_domain.clone()),
                domains: Vec::new(),
            },
            1,
        )?;
        Ok(Self {
            node: loaded.snapshot.node,
            address,
            credentials: Some(Arc::new(credentials)),
            control_plane: settings.control_plane,
        })
    }

    async fn read(&self, arguments: &Arguments, until: Until) -> Result<ExitCode, ReadError> {
        let mut client = Client::reader(ClientOptions {
            node: self.node.clone(),
            servers: vec![self.address.origin()],
            on_empty: OnEmpty::Apply,
            message_bytes_max: MESSAGE_BYTES_MAX,
        });
        let kind = arguments.what.kind();
        let mut has: BTreeMap<String, Seen> = BTreeMap::new();
        let mut why = "it has not said all there is".to_owned();
        let deadline = tokio::time::Instant::now() + arguments.wait;
        loop {
            let asked = match until {
                Until::Ended => client.next(fastrand::f64).await,
                Until::Complete => {
                    let asking = client.next(fastrand::f64);
                    match tokio::time::timeout_at(deadline, asking).await {
                        Ok(asked) => asked,
                        Err(_elapsed) => {
                            let address = self.address.to_string();
                            return Err(ReadError::Unavailable { address, why });
                        }
                    }
                }
            };
            match asked {
                Asked::Dial(_) => {
                    let dialling = self.dial();
                    let dialled = match until {
                        Until::Ended => dialling.await,
                        Until::Complete => {
                            match tokio::time::timeout_at(deadline, dialling).await {
                                Ok(dialled) => dialled,
                                Err(_elapsed) => Err("it could not be reached in time".to_owned()),
                            }
                        }
                    };
                    client.dialled(dialled, fastrand::f64);
                }
                Asked::Tell(Told::Lost(_, lost)) => {
                    if until == Until::Ended {
                        let lost = printable(&lost);
                        writeln!(std::io::stderr(), "warning[{UNAVAILABLE}]: {lost}").ok();
                    }
                    why = lost;
                }
                Asked::Read(seen) => {
                    for one in seen.into_iter().filter(|one| one.kind == kind) {
                        if until == Until::Ended
                            && let Err(error) = print_one(&one, arguments.output)
                        {
                            return end_of_reader(error);
                        }
                        match one.version {
                            Some(_) => drop(has.insert(one.name.clone(), one)),
                            None => drop(has.remove(&one.name)),
                        }
                    }
                }
                Asked::Tell(_) | Asked::Publish(_) => {}
            }
            if until == Until::Complete && client.has_answered() && client.is_complete() {
                return Ok(print_all(kind, &has, arguments.output));
            }
        }
    }

    async fn dial(
        &self,
    ) -> Result<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static, String>
    {
        let ids = self
            .control_plane
            .as_ref()
            .map(|one| one.spiffe_ids.as_slice());
        let who = self.credentials.as_ref().zip(ids);
        zeugma_proxy::reach_control_plane(&self.address, who).await
    }
}

/// Whoever read the output, such as `head`, has seen enough.
fn end_of_reader(error: std::io::Error) -> Result<ExitCode, ReadError> {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        Ok(ExitCode::SUCCESS)
    } else {
        Err(ReadError::Print(error))
    }
}

fn as_json(seen: &Seen) -> Value {
    json!({
        "type": seen.kind.type_url(),
        "name": seen.name,
        "version": seen.version,
        "bytes": seen.bytes,
        "metadata": seen.metadata,
        "body": seen.body,
    })
}

fn print_all(kind: Kind, has: &BTreeMap<String, Seen>, output: Output) -> ExitCode {
    match output {
        Output::Json => {
            let all: Vec<Value> = has.values().map(as_json).collect();
            admin::print_json("Resources", json!({ "resources": all })).unwrap_or(ExitCode::SUCCESS)
        }
        Output::Human => {
            let mut table = Table::new(&["NAME", "VERSION", "BYTES"]);
            for one in has.values() {
                let version = one.version.clone().unwrap_or_default();
                table.row(vec![one.name.clone(), version, one.bytes.to_string()]);
            }
            let text = if table.is_empty() {
                format!("no {}\n", kind.as_str())
            } else {
                table.to_string()
            };
            admin::print(&text).unwrap_or(ExitCode::SUCCESS)
        }
    }
}

fn print_one(seen: &Seen, output: Output) -> std::io::Result<()> {
    let line = match output {
        Output::Json => as_json(seen).to_string(),
        Output::Human => match &seen.version {
            Some(version) => format!("{} version {version}, {} bytes", seen.name, seen.bytes),
            None => format!("{} is gone", seen.name),
        },
    };
    writeln!(std::io::stdout(), "{}", printable(&line))
}
