//! What a gateway process needs beside the [`Snapshot`](zeugma_core::snapshot::Snapshot).

use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use zeugma_core::identity::{IdPattern, SpiffeId, TrustDomain};
use zeugma_core::locality::Locality;

use crate::bundle_url::BundleUrl;
use crate::client::OnEmpty;
use crate::control_address::ControlAddress;
use crate::workload_address::WorkloadAddress;

/// A `MeshGateway` without its listeners, every default filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySettings {
    /// The gateway's name.
    pub name: String,
    /// The cluster it stands at the edge of.
    pub cluster: String,
    /// The trust domain of its own SVID.
    pub trust_domain: TrustDomain,
    /// Where it stands.
    pub locality: Locality,
    /// Where its own certificate comes from.
    pub svid: SvidSource,
    /// Further trust domains, and where their bundles come from.
    pub domains: Vec<ForeignDomain>,
    /// Where the admin API listens.
    pub admin: AdminAddress,
    /// The file of the token that it wants, on an address, for what changes something and for its tap.
    pub admin_token: Option<PathBuf>,
    /// Where `/ready` and `/livez` are served.
    pub probes: SocketAddr,
    /// Where `/metrics` is served.
    pub metrics: SocketAddr,
    /// Where it keeps what outlives it.
    pub state_dir: StateDir,
    /// Where what it carries comes from, if not from its files.
    pub control_plane: Option<ControlPlane>,
    /// Worker threads; `None`: one for each processor it may run on.
    pub workers: Option<usize>,
    /// Limits of the whole process.
    pub limits: Limits,
    /// How it stops.
    pub drain: Drain,
    /// How the lines of its access log look.
    pub access_log: AccessLogFormat,
}

/// A control plane, and who its servers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// Its servers, in the order in which they are asked.
    pub addresses: Vec<ControlAddress>,
    /// Who must answer there.
    pub spiffe_ids: Vec<IdPattern>,
    /// What is done about an update that would leave nothing.
    pub on_empty: OnEmpty,
}

/// How the lines of an access log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// One JSON object each.
    Json,
    /// `name=value` for each fact.
    Text,
}

/// Where a gateway's own certificate comes from, and the bundles and CRLs beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SvidSource {
    /// From files.
    Files(SvidFiles),
    /// From a SPIFFE Workload API.
    WorkloadApi(SvidApi),
    /// From a secret discovery service.
    Sds(SvidSds),
}

impl SvidSource {
    /// The files, where it is files.
    #[must_use]
    pub const fn files(&self) -> Option<&SvidFiles> {
        match self {
            Self::Files(files) => Some(files),
            Self::WorkloadApi(_) | Self::Sds(_) => None,
        }
    }

    /// The Workload API, where it is one.
    #[must_use]
    pub const fn workload_api(&self) -> Option<&WorkloadAddress> {
        match self {
            Self::Files(_) | Self::Sds(_) => None,
            Self::WorkloadApi(api) => Some(&api.address),
        }
    }

    /// The secret discovery service, where it is one.
    #[must_use]
    pub const fn sds(&self) -> Option<&SvidSds> {
        match self {
            Self::Files(_) | Self::WorkloadApi(_) => None,
            Self::Sds(sds) => Some(sds),
        }
    }

    /// The file of SPIFFE IDs that are refused, where none of the files names it.
    #[must_use]
    pub const fn denied(&self) -> Option<&PathBuf> {
        match self {
            Self::Files(_) => None,
            Self::WorkloadApi(api) => api.denied.as_ref(),
            Self::Sds(sds) => sds.denied.as_ref(),
        }
    }
}

/// The Workload API of a gateway's identity, and what no such API says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidApi {
    /// Where it is.
    pub address: WorkloadAddress,
    /// The file of SPIFFE IDs that are refused, resolved against the folder of the YAML file.
    pub denied: Option<PathBuf>,
}

/// The secret discovery service of a gateway's identity, and what no such service says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidSds {
    /// Where it is.
    pub address: WorkloadAddress,
    /// The name of the secret with the certificate and its key.
    pub svid: String,
    /// The names of those that say whom to trust.
    pub bundles: Vec<String>,
    /// The file of SPIFFE IDs that are refused, resolved against the folder of the YAML file.
    pub denied: Option<PathBuf>,
}

/// The files of a gateway's identity, resolved against the folder of the YAML file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidFiles {
    /// The certificate chain, PEM, leaf first.
    pub certificate: PathBuf,
    /// The private key, PEM.
    pub key: PathBuf,
    /// The folder of `<trust domain>.json` or `<trust domain>.pem` bundles.
    pub bundles: PathBuf,
    /// The folder of `<trust domain>.pem` CRLs.
    pub crls: Option<PathBuf>,
    /// The file of SPIFFE IDs that are refused.
    pub denied: Option<PathBuf>,
}

/// A `TrustDomain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignDomain {
    /// Whose bundle it is.
    pub domain: TrustDomain,
    /// The file of its bundle.
    pub bundle: Option<PathBuf>,
    /// Where a newer one is fetched.
    pub endpoint: Option<BundleEndpoint>,
}

/// Where a trust domain serves its bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundleEndpoint {
    /// The address.
    pub url: BundleUrl,
    /// How it is verified.
    pub profile: BundleProfile,
}

/// How a bundle endpoint is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BundleProfile {
    /// By its name, as web sites are (`https_web`).
    Web,
    /// By this SPIFFE ID (`https_spiffe`).
    Spiffe(SpiffeId),
}

/// Where the admin API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminAddress {
    /// A Unix socket, mode 0600.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
    /// The Unix socket [`admin_socket_default`], if it can be bound.
    Default,
}

/// Where the admin API listens unless something else is written: `admin.sock` in `runtime_directory`,
/// the first folder of systemd's `$RUNTIME_DIRECTORY`, else in `/run/zeugma`.
#[must_use]
pub fn admin_socket_default(runtime_directory: Option<&OsStr>) -> PathBuf {
    let first = (runtime_directory.and_then(OsStr::to_str))
        .and_then(|folders| folders.split(':').next())
        .filter(|folder| !folder.is_empty());
    PathBuf::from(first.unwrap_or("/run/zeugma")).join("admin.sock")
}

/// Where a gateway keeps what outlives it; each gateway has a folder of its name in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateDir {
    /// As written, resolved against the folder of the YAML file: it must be usable.
    Given(PathBuf),
    /// `$STATE_DIRECTORY` of the process, else `/var/lib/zeugma`.
    Default,
}

/// Limits of the whole process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Open connections.
    pub connections: usize,
    /// Connections whose handshake is under way.
    pub handshakes: usize,
    /// For the ClientHello and the whole TLS handshake.
    pub handshake_timeout: Duration,
    /// For the head of an HTTP request.
    pub header_timeout: Duration,
    /// HTTP/2 streams on one connection.
    pub streams: u32,
    /// The head of an HTTP request.
    pub header_bytes: usize,
    /// The memory above which new work is shed; `None`: 80 % of what the cgroup allows.
    pub memory_bytes: Option<u64>,
}

/// How a gateway stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drain {
    /// Not ready, but still accepting.
    pub delay: Duration,
    /// How long open work may take after that.
    pub timeout: Duration,
}
