//! `zeugma init`: a folder that `zeugma gateway --config` can run, CA and certificates included.

mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use zeugma_ca::authority::AuthorityError;
use zeugma_ca::files::{self, Access, FileError};
use zeugma_ca::keys::{KeyError, Passphrase};
use zeugma_ca::{Authority, LeafRequest, SubjectKey};
use zeugma_core::identity::{IdentityError, SpiffeId, TrustDomain};
use zeugma_core::locality::Locality;

use crate::{ca, exit};
use text::Cluster;

/// A gateway's first certificate lasts longer than a workload's: nothing renews it yet but a person.
const GATEWAY_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// The base port of a first cluster, and of one that joins another on the same machine.
const BASE_PORTS: [u16; 2] = [15_000, 16_000];
/// A folder of bundles or peers is one machine's experiment, not a mesh.
const PEERS_MAX: usize = 16;

/// What `zeugma init` was told.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The folder to make
    dir: PathBuf,
    /// The trust domain of this cluster's identities, such as `east.example`
    #[arg(long, value_parser = TrustDomain::parse, value_name = "TD")]
    trust_domain: TrustDomain,
    /// The cluster's name
    #[arg(long, value_parser = parse_name, value_name = "NAME")]
    cluster: String,
    /// Where it stands, `region/zone/subzone` [default: the cluster's name]
    #[arg(long, value_parser = parse_locality)]
    locality: Option<String>,
    /// An existing CA folder to take the certificates from, so that clusters share a root
    #[arg(long, value_name = "DIR")]
    ca: Option<PathBuf>,
    /// The folder of a cluster that `zeugma init` made on this machine: each learns the other's
    /// address and bundle
    #[arg(long, value_name = "DIR")]
    peer: Option<PathBuf>,
    /// The first of its ports on loopback; the mesh listener is 443 above it [default: 15000, with
    /// --peer 16000]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: Option<u16>,
    /// A file whose first line is the passphrase of the CA's keys
    #[arg(long, env = "ZEUGMA_CA_PASSPHRASE_FILE", value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

/// Why `zeugma init` failed.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("{} is there already; nothing was overwritten; choose another folder", .0.display())]
    Taken(PathBuf),
    #[error("{} was not made by `zeugma init`, or not by this version; give the folder of such a cluster", .path.display())]
    NoCluster {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("--peer is a cluster named `{0}` too; give this one another --cluster")]
    SameName(String),
    #[error("--peer has the base port {0} too; give this one another --base-port, 1000 away")]
    SamePorts(u16),
    #[error("{} has {PEERS_MAX} peers already; write the MeshPeer by hand", .0.display())]
    TooManyPeers(PathBuf),
    #[error(
        "--peer is of the trust domain `{0}` too; give its CA by --ca, so that both trust one issuer"
    )]
    SameDomain(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("cannot write to standard output")]
    Stdout(#[source] std::io::Error),
}

impl InitError {
    /// Its code in [`zeugma_core::codes`].
    const fn code(&self) -> &'static str {
        match self {
            Self::Taken(_) => "ZG0212",
            Self::NoCluster { .. } => "ZG1021",
            Self::SameName(_)
            | Self::SamePorts(_)
            | Self::TooManyPeers(_)
            | Self::SameDomain(_) => "ZG1022",
            Self::Authority(error) => error.code(),
            Self::Key(error) => error.code(),
            Self::File(error) => error.code(),
            Self::Identity(_) => "ZG0217",
            Self::Stdout(_) => "ZG1002",
        }
    }

    fn exit(&self) -> u8 {
        match self {
            Self::NoCluster { .. }
            | Self::SameName(_)
            | Self::SamePorts(_)
            | Self::SameDomain(_)
            | Self::TooManyPeers(_)
            | Self::Identity(_)
            | Self::Key(_) => exit::DATA,
            Self::Taken(_) | Self::Authority(_) | Self::File(_) | Self::Stdout(_) => exit::FAILED,
        }
    }
}

/// Makes the folder, and says what is in it and what to type next.
pub(crate) fn run(args: &InitArgs) -> ExitCode {
    match init(args) {
        Ok(code) => code,
        Err(error) => ca::fail(&error, error.code(), error.exit()),
    }
}

fn init(args: &InitArgs) -> Result<ExitCode, InitError> {
    let gateway_yaml = args.dir.join("gateway.yaml");
    if gateway_yaml.exists() {
        return Err(InitError::Taken(gateway_yaml));
    }
    let peer = args.peer.as_deref().map(read_cluster).transpose()?;
    let cluster = cluster(args, peer.as_ref())?;
    files::make_folder(&args.dir, Access::Public)?;

    let domain = &args.trust_domain;
    let mut authority = authority(args)?;
    issue_gateway(&mut authority, &args.dir, &cluster)?;
    let bundle = authority.bundle(domain)?.json();
    write_bundle(&args.dir, domain.as_str(), bundle.as_bytes())?;

    if let (Some(folder), Some(peer)) = (&args.peer, &peer) {
        introduce(args, folder, peer, &cluster, &bundle)?;
    }
    keep(&args.dir.join("hello.yaml"), &cluster.hello_yaml())?;
    make_token(&args.dir)?;
    write_cluster(&args.dir, &cluster)?;
    // Last, so that an `init` that was cut short can be run again.
    files::write_atomically(
        &gateway_yaml,
        cluster.gateway_yaml().as_bytes(),
        Access::Public,
    )?;
    report(args, &authority, &cluster)
}

fn cluster(args: &InitArgs, peer: Option<&Cluster>) -> Result<Cluster, InitError> {
    let [first, second] = BASE_PORTS;
    let default_port = if peer.is_some() { second } else { first };
    let base_port = args.base_port.unwrap_or(default_port);
    if let Some(peer) = peer {
        if peer.cluster == args.cluster {
            return Err(InitError::SameName(peer.cluster.clone()));
        }
        if peer.base_port == base_port {
            return Err(InitError::SamePorts(base_port));
        }
        if peer.trust_domain == args.trust_domain.as_str() && args.ca.is_none() {
            return Err(InitError::SameDomain(peer.trust_domain.clone()));
        }
    }
    Ok(Cluster {
        trust_domain: args.trust_domain.as_str().to_owned(),
        cluster: args.cluster.clone(),
        locality: args
            .locality
            .clone()
            .unwrap_or_else(|| args.cluster.clone()),
        base_port,
        peers: peer.map(Cluster::alone).into_iter().collect(),
    })
}

/// Opens the CA that was named, or makes one in the folder, and makes the trust domain's issuer.
fn authority(args: &InitArgs) -> Result<Authority, InitError> {
    let passphrase = args.passphrase_file.as_deref();
    let mut authority = match &args.ca {
        Some(folder) => Authority::open(folder, passphrase)?,
        None => {
            let folder = args.dir.join("ca");
            match Authority::init(&folder, passphrase) {
                // Left by an `init` that was cut short.
                Err(AuthorityError::Exists(_)) => Authority::open(&folder, passphrase)?,
                other => other?,
            }
        }
    };
    match authority.add_trust_domain(&args.trust_domain) {
        Ok(_) | Err(AuthorityError::DomainExists(_)) => Ok(authority),
        Err(error) => Err(error.into()),
    }
}

/// The token of the admin interface, unless one is there.
fn make_token(dir: &Path) -> Result<(), InitError> {
    let path = dir.join("admin.token");
    if path.exists() {
        return Ok(());
    }
    // 256 bits, as a passphrase of keys is.
    drop(Passphrase::generate(&path)?);
    Ok(())
}

fn issue_gateway(
    authority: &mut Authority,
    dir: &Path,
    cluster: &Cluster,
) -> Result<(), InitError> {
    let (certificate, key_path) = (dir.join("gw.pem"), dir.join("gw.key"));
    if certificate.exists() {
        return Ok(());
    }
    let key = if key_path.exists() {
        SubjectKey::read(&key_path)?
    } else {
        let key = SubjectKey::generate()?;
        files::write_atomically(&key_path, key.pem().as_bytes(), Access::Secret)?;
        key
    };
    let id = SpiffeId::parse(&cluster.gateway_id())?;
    let issued = authority.issue(&LeafRequest::new(id).with_ttl(GATEWAY_TTL), &key)?;
    files::write_atomically(&certificate, issued.chain_pem().as_bytes(), Access::Public)?;
    Ok(())
}

/// Tells two clusters of each other: bundles, MeshPeers, and the example route if it is untouched.
fn introduce(
    args: &InitArgs,
    folder: &Path,
    peer: &Cluster,
    cluster: &Cluster,
    bundle: &str,
) -> Result<(), InitError> {
    let theirs = folder
        .join("bundles")
        .join(format!("{}.json", peer.trust_domain));
    write_bundle(&args.dir, &peer.trust_domain, &files::read(&theirs)?)?;
    let name = |cluster: &Cluster| format!("peer-{}.yaml", cluster.cluster);
    keep(&args.dir.join(name(peer)), &peer.peer_yaml())?;

    let mut knowing = peer.clone();
    if !knowing.peers.contains(&cluster.alone()) {
        if knowing.peers.len() >= PEERS_MAX {
            return Err(InitError::TooManyPeers(folder.to_owned()));
        }
        knowing.peers.push(cluster.alone());
    }
    write_bundle(folder, &cluster.trust_domain, bundle.as_bytes())?;
    keep(&folder.join(name(cluster)), &cluster.peer_yaml())?;
    let hello = folder.join("hello.yaml");
    if files::read(&hello).is_ok_and(|text| text == peer.hello_yaml().as_bytes()) {
        files::write_atomically(&hello, knowing.hello_yaml().as_bytes(), Access::Public)?;
    }
    write_cluster(folder, &knowing)
}

fn write_bundle(dir: &Path, domain: &str, bundle: &[u8]) -> Result<(), InitError> {
    let folder = dir.join("bundles");
    files::make_folder(&folder, Access::Public)?;
    let path = folder.join(format!("{domain}.json"));
    Ok(files::write_atomically(&path, bundle, Access::Public)?)
}

/// Writes a file unless another is there.
fn keep(path: &Path, text: &str) -> Result<(), InitError> {
    match files::read(path) {
        Ok(there) if there == text.as_bytes() => Ok(()),
        Ok(_) => Err(InitError::Taken(path.to_owned())),
        Err(_) => Ok(files::write_atomically(
            path,
            text.as_bytes(),
            Access::Public,
        )?),
    }
}

fn read_cluster(dir: &Path) -> Result<Cluster, InitError> {
    let path = dir.join("init.json");
    let bytes = files::read(&path)?;
    serde_json::from_slice(&bytes).map_err(|source| InitError::NoCluster { path, source })
}

fn write_cluster(dir: &Path, cluster: &Cluster) -> Result<(), InitError> {
    // Strings and integers alone always serialize.
    let mut text = serde_json::to_string_pretty(cluster).unwrap_or_default();
    text.push('\n');
    let path = dir.join("init.json");
    Ok(files::write_atomically(
        &path,
        text.as_bytes(),
        Access::Public,
    )?)
}

fn report(
    args: &InitArgs,
    authority: &Authority,
    cluster: &Cluster,
) -> Result<ExitCode, InitError> {
    use std::io::Write as _;
    let dir = args.dir.display();
    let mut text = format!(
        "made {dir}: the gateway of cluster {} ({})\n",
        cluster.cluster,
        cluster.gateway_id()
    );
    if args.ca.is_none() {
        text.push_str(&format!("  its CA is in {dir}/ca"));
        if let Some(path) = authority.generated_passphrase() {
            text.push_str(&format!(
                ", its keys encrypted with {}; move that file away from the keys",
                path.display()
            ));
        }
        text.push('\n');
    }
    for peer in &cluster.peers {
        text.push_str(&format!(
            "  it and cluster {} know each other\n",
            peer.cluster
        ));
    }
    text.push_str(&format!(
        "  try the route in {dir}/hello.yaml, then write your own\n\
         next: zeugma gateway --config {dir}\n"
    ));
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(InitError::Stdout(error))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// A DNS label: what a cluster may be called wherever its name appears, file names included.
fn parse_name(text: &str) -> Result<String, String> {
    let letters = text
        .bytes()
        .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if text.is_empty()
        || text.len() > 63
        || !letters
        || text.starts_with('-')
        || text.ends_with('-')
    {
        return Err(
            "a cluster's name is 1 to 63 of a-z, 0-9 and `-`, not at its ends; such as `east`"
                .to_owned(),
        );
    }
    Ok(text.to_owned())
}

fn parse_locality(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if let Some(bad) = text.chars().find(|c| !plain(*c)) {
        return Err(format!(
            "{bad:?} may not stand in a locality; write one like `eu/eu-1/rack-a`"
        ));
    }
    Locality::parse(text)
        .map(|locality| locality.to_string())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_name_is_a_dns_label() {
        for good in ["east", "e", "eu-1", "1"] {
            assert!(parse_name(good).is_ok(), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", "East", "-a", "a-", "a.b", "a/b", "../x", "a\"", &long] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_locality_cannot_break_out_of_its_quotes() {
        assert_eq!(parse_locality("eu/eu-1"), Ok("eu/eu-1".to_owned()));
        for bad in ["", "a//b", "a\"b", "a\nb", "a/b/c/d"] {
            assert!(parse_locality(bad).is_err(), "{bad:?}");
        }
    }
}
