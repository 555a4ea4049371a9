//! `zeugma ca issue`, `sign`, `renew`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::json;
use zeugma_ca::files::{self, Access};
use zeugma_ca::{Issued, LeafRequest, SubjectKey};
use zeugma_core::identity::SpiffeId;

use super::manage::{object, open};
use super::{CaError, LeafArgs, Output, Place, date, parse_id, parse_ttl, print, print_json};

#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// Whose it is, such as `spiffe://east.example/ns/shop/sa/cart`
    #[arg(value_parser = parse_id)]
    spiffe_id: SpiffeId,
    #[command(flatten)]
    leaf: LeafArgs,
    /// Write PREFIX.pem and PREFIX.key
    #[arg(long, value_name = "PREFIX", default_value = "svid")]
    out: PathBuf,
    /// Where the certificate with its chain goes, instead of PREFIX.pem
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Where the key goes, instead of PREFIX.key; a key that is there already is used
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct SignArgs {
    /// The signing request, PEM or DER; `-` is standard input. Only its key is used
    #[arg(long, value_name = "FILE")]
    csr: PathBuf,
    /// Whose the certificate is
    #[arg(long, value_parser = parse_id, value_name = "SPIFFE-ID")]
    id: SpiffeId,
    #[command(flatten)]
    leaf: LeafArgs,
    /// Write the certificate with its chain to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RenewArgs {
    /// The certificate to renew; the file is replaced at once
    cert: PathBuf,
    /// Its key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// How long the new one is valid [default: as long as the old one was]
    #[arg(long, value_parser = parse_ttl)]
    ttl: Option<Duration>,
}

impl LeafArgs {
    fn request(&self, id: &SpiffeId) -> LeafRequest {
        LeafRequest::new(id.clone())
            .with_ttl(self.ttl)
            .with_dns_names(self.dns_names.clone())
    }
}

pub(super) fn issue(place: &Place, args: &IssueArgs) -> Result<ExitCode, CaError> {
    let with = |extension: &str| {
        let mut path = args.out.clone().into_os_string();
        path.push(extension);
        PathBuf::from(path)
    };
    let cert = args.cert.clone().unwrap_or_else(|| with(".pem"));
    let key_path = args.key.clone().unwrap_or_else(|| with(".key"));
    if cert.exists() {
        return Err(CaError::Taken {
            path: cert,
            hint: "renew it with `zeugma ca renew`, or choose another --out",
        });
    }
    let mut authority = open(place)?;
    // A key without a certificate is one brought along, or left by an `issue` that was cut short.
    let brought = key_path.exists();
    let key = if brought {
        SubjectKey::read(&key_path)?
    } else {
        SubjectKey::generate()?
    };
    let issued = authority.issue(&args.leaf.request(&args.spiffe_id), &key)?;
    if !brought {
        // Never over a key that another process put there meanwhile: its certificate would be left
        // with the wrong key.
        files::write_new(&key_path, key.pem().as_bytes(), Access::Secret)?;
    }
    files::write_new(&cert, issued.chain_pem().as_bytes(), Access::Public)?;
    report(
        place,
        &issued,
        args.spiffe_id.as_str(),
        &cert,
        Some(&key_path),
    )
}

pub(super) fn sign(place: &Place, args: &SignArgs) -> Result<ExitCode, CaError> {
    if let Some(path) = args.out.as_ref().filter(|path| path.exists()) {
        return Err(CaError::Taken {
            path: path.clone(),
            hint: "choose another --out",
        });
    }
    let csr = if args.csr == Path::new("-") {
        super::files::stdin()?
    } else {
        files::read(&args.csr)?
    };
    let issued = open(place)?.sign_csr(&csr, &args.leaf.request(&args.id))?;
    match &args.out {
        Some(path) => {
            files::write_new(path, issued.chain_pem().as_bytes(), Access::Public)?;
            report(place, &issued, args.id.as_str(), path, None)
        }
        None => print(&issued.chain_pem()),
    }
}

pub(super) fn renew(place: &Place, args: &RenewArgs) -> Result<ExitCode, CaError> {
    let chain = super::files::certificates(&args.cert)?;
    let Some(leaf) = chain.first() else {
        return Err(CaError::NoCertificate {
            source_name: args.cert.display().to_string(),
        });
    };
    let key = SubjectKey::read(&args.key)?;
    let issued = open(place)?.renew(leaf, &key, args.ttl)?;
    files::write_atomically(&args.cert, issued.chain_pem().as_bytes(), Access::Public)?;
    report(
        place,
        &issued,
        issued.id().as_str(),
        &args.cert,
        Some(&args.key),
    )
}

fn report(
    place: &Place,
    issued: &Issued,
    id: &str,
    cert: &Path,
    key: Option<&Path>,
) -> Result<ExitCode, CaError> {
    let until = date(issued.not_after());
    if place.output == Output::Json {
        return print_json(object(json!({
            "kind": "CaIssued",
            "spiffeId": id,
            "serial": issued.serial(),
            "notAfter": until,
            "certificate": cert,
            "key": key,
        })));
    }
    let mut text = format!("issued {id} until {until}: {}", cert.display());
    if let Some(key) = key {
        text.push_str(&format!(", key {}", key.display()));
    }
    text.push('\n');
    print(&text)
}
