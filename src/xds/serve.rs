//! `zeugma xds serve`.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;
use zeugma_core::identity::IdPattern;
use zeugma_proxy::tls::{Credentials, SvidFiles};
use zeugma_proxy::{Documents, Logging, Watch};
use zeugma_xds::{Admission, Color, Findings, Good, Plane, Server, ServerLimits, Sources};

use super::admin;
use super::door::{Door, Doorkeeper};
use crate::gateway::Form;
use crate::{ca, exit};

/// How long clients get to go elsewhere once it drains.
const DRAIN: Duration = Duration::from_secs(10);
/// Threads that carry connections: what makes a thousand clients that come back wait is that all that they
/// have is read.
const WORKERS_MAX: usize = 4;
/// Connections that wait to be accepted, as far as `net.core.somaxconn` lets them: of more that come back
/// at once the kernel resets some.
const BACKLOG: u32 = 4096;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The YAML file or folder that is served; it is watched
    #[arg(long, value_name = "FILE|DIR")]
    config: PathBuf,
    /// Where nodes connect
    #[arg(long, value_name = "ADDRESS")]
    listen: SocketAddr,
    #[command(flatten)]
    svid: Svid,
    /// Who else may have a gateway's configuration: a SPIFFE ID, or a pattern such as
    /// `spiffe://east.example/ns/mesh/*`, of every gateway, or of one as `east-gw=spiffe://…`
    #[arg(long, value_name = "[GATEWAY=]ID")]
    allow: Vec<Allowed>,
    /// Where /ready, /metrics, /api/v1/nodes and /api/v1/findings are served: a loopback address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    admin: SocketAddr,
    /// The longest request that is read: a client that comes back says everything that it has
    #[arg(long, value_name = "BYTES", default_value_t = ServerLimits::default().request_bytes)]
    request_bytes: usize,
    /// Gateways, and places where they stand, of one caller at once: each is compiled by itself. Twice as many new ones are made
    /// for it in a minute
    #[arg(long, value_name = "COUNT", default_value_t = ServerLimits::default().caller_views)]
    caller_views: usize,
    /// How its log on standard error looks
    #[arg(
        long,
        env = "ZEUGMA_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: Form,
}

/// Its own certificate, and what clients are verified with.
#[derive(Debug, Args)]
struct Svid {
    /// Its own SVID: the certificate chain, PEM, leaf first
    #[arg(long, value_name = "FILE", required_unless_present = "plaintext", requires_all = ["key", "bundles"])]
    certificate: Option<PathBuf>,
    /// The key of that certificate, PEM
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// The folder of trust bundles: `<trust domain>.json` or `.pem`
    #[arg(long, value_name = "DIR")]
    bundles: Option<PathBuf>,
    /// The folder of CRLs: `<trust domain>.pem`
    #[arg(long, value_name = "DIR")]
    crls: Option<PathBuf>,
    /// A file of SPIFFE IDs that are refused
    #[arg(long, value_name = "FILE")]
    denied: Option<PathBuf>,
    /// Without TLS, on a loopback address: whoever is on this machine may have everything
    #[arg(long, conflicts_with_all = ["certificate", "key", "bundles", "crls", "denied"])]
    plaintext: bool,
}

impl Svid {
    fn files(&self) -> Option<SvidFiles> {
        Some(SvidFiles {
            certificate: self.certificate.clone()?,
            key: self.key.clone()?,
            bundles: self.bundles.clone()?,
            crls: self.crls.clone(),
            denied: self.denied.clone(),
            domains: Vec::new(),
            own: None,
        })
    }

    fn watched(files: &SvidFiles) -> Vec<PathBuf> {
        let more = files.crls.iter().chain(&files.denied);
        [&files.certificate, &files.key, &files.bundles]
            .into_iter()
            .chain(more)
            .cloned()
            .collect()
    }
}

/// A value of `--allow`.
#[derive(Debug, Clone)]
struct Allowed(Option<String>, IdPattern);

impl std::str::FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (gateway, id) = match text.split_once('=') {
            Some((gateway, id)) if !gateway.contains(':') => (Some(gateway.to_owned()), id),
            Some(_) | None => (None, text),
        };
        let id = IdPattern::parse(id).map_err(|error| error.to_string())?;
        Ok(Self(gateway, id))
    }
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the configuration is refused\n{0}")]
    Config(Text),
    #[error(transparent)]
    Credentials(#[from] zeugma_proxy::tls::CredentialsError),
    #[error("--plaintext and `--listen {0}`: without TLS it serves on a loopback address alone")]
    Plaintext(SocketAddr),
    #[error("`--admin {0}`: it is served on a loopback address alone")]
    Admin(SocketAddr),
    #[error("cannot listen at {address}")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("{what}")]
    System {
        what: &'static str,
        #[source]
        source: std::io::Error,
    },
}

/// Findings as a person reads them.
#[derive(Debug)]
struct Text(String);

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Findings> for ServeError {
    fn from(findings: Findings) -> Self {
        Self::Config(Text(findings.to_human(Color::Plain)))
    }
}

impl ServeError {
    fn code(&self) -> &'static str {
        match self {
            Self::Config(_) => "ZG0122",
            Self::Credentials(error) => error.code(),
            Self::Plaintext(_) | Self::Admin(_) => "ZG1001",
            Self::Listen { .. } | Self::System { .. } => "ZG0908",
        }
    }

    const fn exit(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Credentials(_) => exit::DATA,
            Self::Plaintext(_) | Self::Admin(_) => exit::USAGE,
            Self::Listen { .. } | Self::System { .. } => exit::FAILED,
        }
    }
}

/// Runs until drained; returns the exit code.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    drop(Logging::start(arguments.log_format.into()));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let served = match runtime {
        Ok(runtime) => runtime.block_on(Box::pin(serve(arguments))),
        Err(source) => Err(ServeError::System {
            what: "no runtime",
            source,
        }),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ca::fail(&error, error.code(), error.exit()),
    }
}

async fn serve(arguments: Arguments) -> Result<(), ServeError> {
    let Arguments {
        config,
        listen,
        svid,
        allow,
        admin: admin_address,
        request_bytes,
        caller_views,
        log_format: _,
    } = arguments;
    if svid.plaintext && !listen.ip().is_loopback() {
        return Err(ServeError::Plaintext(listen));
    }
    if !admin_address.ip().is_loopback() {
        return Err(ServeError::Admin(admin_address));
    }
    let files = svid.files();
    let credentials = (files
        .as_ref()
        .map(|files| Credentials::load(files, 1))
        .transpose())?;
    let sources = Sources::read(&config)?;
    let fingerprint = sources.fingerprint();
    let plane = sources.plane(&Good::default())?;
    let mut state = State {
        documents: Documents::new(config, plane.files().to_vec()),
        good: plane.good().clone(),
        fingerprint,
        findings: Arc::default(),
        files,
    };
    state.tell(&plane);
    let gateways = plane.gateways().collect::<Vec<_>>().join(", ");
    let admission = Admission {
        listed: allow
            .into_iter()
            .map(|Allowed(gateway, id)| (gateway, id))
            .collect(),
        local: svid.plaintext,
    };
    let limits = ServerLimits {
        request_bytes,
        caller_views,
        ..ServerLimits::default()
    };
    let identifier = concat!("zeugma/", env!("CARGO_PKG_VERSION"));
    let server = Server::new(plane, admission, limits, identifier);
    let listener = bind(listen)?;
    let admin = bind(admin_address)?;
    let address = |listener: &TcpListener, asked| listener.local_addr().unwrap_or(asked);
    let (listens, admins) = (address(&listener, listen), address(&admin, admin_address));
    let door = Door::new(credentials.map(Arc::new));
    let keeper = Doorkeeper::new(server.clone(), door.clone());
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let mut carried = (keeper.start(listener, threads.min(WORKERS_MAX))).map_err(|source| {
        ServeError::System {
            what: "no thread for connections",
            source,
        }
    })?;
    tracing::info!(code = "ZG0505", address = %listens, admin = %admins, gateways, "the control plane serves");
    let asked = tokio::spawn(admin::run(
        admin,
        server.clone(),
        Arc::clone(&state.findings),
    ));
    state.follow(&server, &door).await?;
    server.drain();
    // Who does not go is cut.
    timeout(DRAIN, carried.recv()).await.ok();
    asked.abort();
    Ok(())
}

fn bind(address: SocketAddr) -> Result<TcpListener, ServeError> {
    let listen = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        // As the standard library does.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| ServeError::Listen { address, source })
}

fn on(kind: SignalKind) -> Result<Signal, ServeError> {
    signal(kind).map_err(|source| ServeError::System {
        what: "signals cannot be handled",
        source,
    })
}

/// What it goes by while it serves.
struct State {
    documents: Documents,
    good: Good,
    /// Of what was read last.
    fingerprint: u128,
    findings: Arc<Mutex<Value>>,
    files: Option<SvidFiles>,
}

impl State {
    /// Follows the files until it is told to end.
    async fn follow(&mut self, server: &Server, door: &Door) -> Result<(), ServeError> {
        let mut ends = (on(SignalKind::terminate())?, on(SignalKind::interrupt())?);
        let mut again = on(SignalKind::hangup())?;
        let mut certificates = Watch::new();
        certificates.set(self.files.as_ref().map(Svid::watched).unwrap_or_default());
        loop {
            // Each arm's state is kept outside of it.
            tokio::select! {
                _ = ends.0.recv() => return Ok(()),
                _ = ends.1.recv() => return Ok(()),
                _ = again.recv() => {
                    self.documents.ask_anew();
                    self.renew(door).await;
                }
                () = certificates.changed(), if self.files.is_some() => self.renew(door).await,
                changed = self.documents.changed(&self.good) => match changed {
                    Ok(sources) => self.publish(sources, server).await,
                    Err(findings) => self.refuse(&findings),
                },
            }
        }
    }

    async fn publish(&mut self, sources: Sources, server: &Server) {
        let fingerprint = sources.fingerprint();
        if fingerprint == self.fingerprint {
            return;
        }
        self.fingerprint = fingerprint;
        let before = server.plane();
        let made = tokio::task::spawn_blocking(move || sources.plane_after(&before));
        let Ok(made) = made.await else {
            return;
        };
        match made {
            Err(findings) => self.refuse(&findings),
            Ok(plane) => {
                self.good = plane.good().clone();
                self.documents.watch(plane.files().to_vec());
                self.tell(&plane);
                let encoded = server.publish(plane).await;
                tracing::info!(code = "ZG0120", encoded, "configuration applied");
            }
        }
    }

    fn refuse(&self, findings: &Findings) {
        let text = findings.to_human(Color::Plain);
        tracing::error!(
            code = "ZG0121",
            "configuration refused; the last good one serves\n{text}"
        );
        self.show(findings.to_json());
    }

    /// Tells what is wrong with the documents of a plane that serves.
    fn tell(&self, plane: &Plane) {
        let refused = plane.refused();
        if !refused.is_empty() {
            let text = refused.findings().to_human(Color::Plain);
            tracing::error!(
                code = "ZG0508",
                "documents refused: {}; all else serves\n{text}",
                refused.summary()
            );
        }
        if plane.warnings().iter().next().is_some() {
            let text = plane.warnings().to_human(Color::Plain);
            tracing::warn!(code = "ZG0127", "configuration\n{text}");
        }
        self.show(refused.to_json());
    }

    fn show(&self, findings: Value) {
        *self.findings.lock().unwrap_or_else(PoisonError::into_inner) = findings;
    }

    /// Reads certificates anew; what cannot be used leaves the ones before.
    async fn renew(&self, door: &Door) {
        let Some((files, credentials)) = self.files.clone().zip(door.credentials()) else {
            return;
        };
        let made = tokio::task::spawn_blocking(move || credentials.reload(&files)).await;
        match made {
            Ok(Ok(credentials)) => {
                for error in credentials.wrong() {
                    tracing::error!(code = "ZG0507", %error, "certificate or bundles refused in part; the last good ones serve");
                }
                door.change(Arc::new(credentials));
            }
            Ok(Err(error)) => {
                tracing::error!(code = "ZG0507", %error, "certificate or bundles refused; the last good ones serve");
            }
            Err(_panicked) => {}
        }
    }
}
