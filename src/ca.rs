//! `zeugma ca`: the certificate authority on files, and looking at certificates.

mod files;
mod inspect;
mod issue;
mod manage;
mod verify;
mod view;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use zeugma_ca::authority::AuthorityError;
use zeugma_ca::files::FileError;
use zeugma_ca::keys::KeyError;
use zeugma_core::identity::{SpiffeId, TrustDomain};
use zeugma_proxy::tls::BundleError;

use crate::exit;

/// What `zeugma ca` was told.
#[derive(Debug, Args)]
pub(crate) struct CaArgs {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Which authority, and how to answer.
#[derive(Debug, Args)]
struct Place {
    /// The CA's folder
    #[arg(long, global = true, default_value = "ca", value_name = "DIR")]
    dir: PathBuf,
    /// A file whose first line is the passphrase of the CA's keys [default: `passphrase` in the CA's folder]
    #[arg(
        long,
        global = true,
        env = "ZEUGMA_CA_PASSPHRASE_FILE",
        value_name = "FILE"
    )]
    passphrase_file: Option<PathBuf>,
    /// How to answer
    #[arg(
        short,
        long,
        global = true,
        default_value = "human",
        value_name = "FORMAT"
    )]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    Human,
    /// For scripts
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new CA: a root, and an empty ledger
    Init,
    /// Trust domains that this CA issues for
    #[command(subcommand)]
    TrustDomain(TrustDomainCommand),
    /// Issue an SVID: a certificate with its chain, and its key
    Issue(issue::IssueArgs),
    /// Issue an SVID for the key of a signing request
    Sign(issue::SignArgs),
    /// Issue an SVID again, for the same key and ID, with a new serial
    Renew(issue::RenewArgs),
    /// Verify a certificate as a gateway would, and name the rule it breaks
    Verify(verify::VerifyArgs),
    /// Show what certificates say: a file, what a TLS server presents, or standard input
    Inspect(inspect::InspectArgs),
    /// Print what verifiers of a trust domain need
    Bundle(manage::BundleArgs),
}

#[derive(Debug, Subcommand)]
enum TrustDomainCommand {
    /// Make an issuer for a trust domain
    Add {
        /// Its name, such as `east.example`
        #[arg(value_parser = TrustDomain::parse)]
        trust_domain: TrustDomain,
    },
    /// List the trust domains
    List,
}

/// What an SVID should be.
#[derive(Debug, Args)]
struct LeafArgs {
    /// How long it is valid: a number and s, m, h or d
    #[arg(long, default_value = "24h", value_parser = parse_ttl)]
    ttl: Duration,
    /// A DNS name beside the SPIFFE ID; may be given several times
    #[arg(long = "dns", value_name = "NAME")]
    dns_names: Vec<String>,
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("{} is there already; nothing was changed; {hint}", .path.display())]
    Taken { path: PathBuf, hint: &'static str },
    #[error("{source_name} holds no certificate; give a PEM or DER certificate or a SPIFFE bundle")]
    NoCertificate { source_name: String },
    #[error(transparent)]
    Bundles(#[from] BundleError),
    #[error("{source_name} holds something that is not a certificate")]
    Pem {
        source_name: String,
        #[source]
        source: zeugma_proxy::tls::PemError,
    },
    #[error("cannot read standard input")]
    Stdin(#[source] std::io::Error),
    #[error("cannot write to standard output")]
    Stdout(#[source] std::io::Error),
    #[error(transparent)]
    Inspect(#[from] inspect::ProbeError),
    #[error("{0}")]
    Usage(&'static str),
}

impl CaError {
    /// Its code in [`zeugma_core::codes`].
    const fn code(&self) -> &'static str {
        match self {
            Self::Authority(error) => error.code(),
            Self::File(error) => error.code(),
            Self::Key(error) => error.code(),
            Self::Taken { .. } => "ZG0212",
            Self::NoCertificate { .. } | Self::Pem { .. } => "ZG0227",
            Self::Bundles(error) => error.code(),
            Self::Stdin(_) => "ZG0222",
            Self::Stdout(_) => "ZG1002",
            Self::Inspect(error) => error.code(),
            Self::Usage(_) => "ZG1001",
        }
    }

    /// The exit code that says whose fault it is.
    fn exit(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::NoCertificate { .. }
            | Self::Pem { .. }
            | Self::Bundles(_)
            | Self::Authority(
                AuthorityError::Csr(_)
                | AuthorityError::Policy(_)
                | AuthorityError::BeyondIssuer { .. }
                | AuthorityError::NotOurs(_)
                | AuthorityError::OtherKey(_)
                | AuthorityError::UnknownDomain { .. }
                | AuthorityError::Missing(_)
                | AuthorityError::Key(_),
            )
            | Self::Key(_) => exit::DATA,
            Self::Authority(_)
            | Self::File(_)
            | Self::Taken { .. }
            | Self::Stdin(_)
            | Self::Stdout(_)
            | Self::Inspect(_) => exit::FAILED,
        }
    }
}

/// Does what was asked, and says what went wrong.
pub(crate) fn run(args: CaArgs) -> ExitCode {
    let CaArgs { place, command } = args;
    let outcome = match command {
        Command::Init => manage::init(&place),
        Command::TrustDomain(TrustDomainCommand::Add { trust_domain }) => {
            manage::add_trust_domain(&place, &trust_domain)
        }
        Command::TrustDomain(TrustDomainCommand::List) => manage::list_trust_domains(&place),
        Command::Issue(args) => issue::issue(&place, &args),
        Command::Sign(args) => issue::sign(&place, &args),
        Command::Renew(args) => issue::renew(&place, &args),
        Command::Verify(args) => verify::verify(&place, &args),
        Command::Inspect(args) => inspect::inspect(&place, &args),
        Command::Bundle(args) => manage::bundle(&place, &args),
    };
    outcome.unwrap_or_else(|error| fail(&error, error.code(), error.exit()))
}

/// Prints an error and the causes below it on standard error.
pub(crate) fn fail(error: &dyn std::error::Error, code: &str, exit: u8) -> ExitCode {
    let mut text = format!("error[{code}]: {error}");
    let mut cause = error.source();
    while let Some(below) = cause {
        text.push_str(&format!("\n  because: {below}"));
        cause = below.source();
    }
    // Nobody is left to tell if standard error is closed.
    writeln!(std::io::stderr(), "{text}").ok();
    ExitCode::from(exit)
}

/// Prints text on standard output.
fn print(text: &str) -> Result<ExitCode, CaError> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        // `zeugma ca inspect x | head` is no failure.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(CaError::Stdout(error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints a JSON document with the version every such document of ours has.
fn print_json(
    mut document: serde_json::Map<String, serde_json::Value>,
) -> Result<ExitCode, CaError> {
    document.insert("apiVersion".to_owned(), "cli.zeugma.dev/v1".into());
    let text = serde_json::to_string_pretty(&document).unwrap_or_default();
    print(&format!("{text}\n"))
}

/// RFC 3339 in UTC, to the second.
fn date(at: time::OffsetDateTime) -> String {
    at.replace_nanosecond(0)
        .unwrap_or(at)
        .format(&time::format_description::well_known::Rfc3339)
        .unwrap_or_else(|_| at.to_string())
}

fn parse_ttl(text: &str) -> Result<Duration, String> {
    let usage =
        || format!("`{text}` is not a lifetime; write a number and a unit: 90s, 30m, 24h, 7d");
    let at = text.len().checked_sub(1).ok_or_else(usage)?;
    let (number, unit) = text.split_at_checked(at).ok_or_else(usage)?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(usage()),
    };
    if !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(usage());
    }
    let number: u64 = number.parse().map_err(|_| usage())?;
    number
        .checked_mul(seconds)
        .map(Duration::from_secs)
        .ok_or_else(usage)
}

fn parse_id(text: &str) -> Result<SpiffeId, String> {
    SpiffeId::parse(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_a_number_and_a_unit() {
        assert_eq!(parse_ttl("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_ttl("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(parse_ttl("24h"), Ok(Duration::from_secs(86400)));
        assert_eq!(parse_ttl("7d"), Ok(Duration::from_secs(604_800)));
        for bad in [
            "",
            "5",
            "h",
            "-1h",
            "+1h",
            "1 h",
            "1w",
            "1.5h",
            "99999999999999999d",
            "1é",
        ] {
            assert!(parse_ttl(bad).is_err(), "{bad}");
        }
    }
}
