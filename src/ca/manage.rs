//! `zeugma ca init`, `trust-domain`, `bundle`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::json;
use zeugma_ca::Authority;
use zeugma_ca::files::{self, Access};
use zeugma_core::identity::TrustDomain;

use super::{CaError, Output, Place, date, print, print_json};

#[derive(Debug, Args)]
pub(super) struct BundleArgs {
    /// The trust domain; not needed with --root
    #[arg(value_parser = TrustDomain::parse, required_unless_present = "root")]
    trust_domain: Option<TrustDomain>,
    /// A SPIFFE bundle (JSON), or the trust domain's anchors as PEM
    #[arg(long, default_value = "spiffe")]
    format: Format,
    /// The shared root as PEM instead, for verifiers that know no SPIFFE bundles: they accept every
    /// trust domain of this CA
    #[arg(long)]
    root: bool,
    /// Write it to a file instead of standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// SPIFFE trust bundle, a JWK Set
    Spiffe,
    /// Concatenated PEM certificates
    Pem,
}

pub(super) fn open(place: &Place) -> Result<Authority, CaError> {
    Ok(Authority::open(
        &place.dir,
        place.passphrase_file.as_deref(),
    )?)
}

pub(super) fn init(place: &Place) -> Result<ExitCode, CaError> {
    let authority = Authority::init(&place.dir, place.passphrase_file.as_deref())?;
    let dir = place.dir.display();
    let passphrase = authority.generated_passphrase();
    if place.output == Output::Json {
        return print_json(object(json!({
            "kind": "CaInit",
            "dir": place.dir,
            "generatedPassphrase": passphrase,
        })));
    }
    let mut text = format!("made a CA in {dir}; its root is {dir}/root.pem\n");
    if let Some(path) = passphrase.filter(|_| place.passphrase_file.is_none()) {
        text.push_str(&format!(
            "its keys are encrypted with the passphrase in {path}; move that file away from the keys and\n\
             name it by --passphrase-file or ZEUGMA_CA_PASSPHRASE_FILE\n",
            path = path.display()
        ));
    }
    text.push_str(&format!(
        "next: zeugma ca --dir {dir} trust-domain add east.example\n"
    ));
    print(&text)
}

pub(super) fn add_trust_domain(place: &Place, domain: &TrustDomain) -> Result<ExitCode, CaError> {
    let issuer = open(place)?.add_trust_domain(domain)?;
    let until = date(issuer.not_after());
    if place.output == Output::Json {
        return print_json(object(json!({
            "kind": "CaTrustDomain",
            "trustDomain": domain.as_str(),
            "notAfter": until,
        })));
    }
    let dir = place.dir.display();
    print(&format!(
        "made an issuer for {domain}, valid until {until}\n\
         next: zeugma ca --dir {dir} issue spiffe://{domain}/ns/shop/sa/cart --out cart\n"
    ))
}

pub(super) fn list_trust_domains(place: &Place) -> Result<ExitCode, CaError> {
    let domains = open(place)?.trust_domains()?;
    match place.output {
        Output::Json => print_json(object(json!({
            "kind": "CaTrustDomainList",
            "trustDomains": domains,
        }))),
        Output::Human => print(&domains.iter().map(|d| format!("{d}\n")).collect::<String>()),
    }
}

pub(super) fn bundle(place: &Place, args: &BundleArgs) -> Result<ExitCode, CaError> {
    let mut authority = open(place)?;
    let text = match (&args.trust_domain, args.root, args.format) {
        (_, true, _) => files::pem("CERTIFICATE", &authority.root()?),
        (Some(domain), false, Format::Spiffe) => authority.bundle(domain)?.json(),
        (Some(domain), false, Format::Pem) => authority.bundle(domain)?.pem(),
        (None, false, _) => return Err(CaError::Usage("name a trust domain, or give --root")),
    };
    match &args.out {
        Some(path) => {
            files::write_atomically(path, text.as_bytes(), Access::Public)?;
            Ok(ExitCode::SUCCESS)
        }
        None => print(&text),
    }
}

/// The members of a JSON object.
pub(super) fn object(value: serde_json::Value) -> serde_json::Map<String, serde_json::Value> {
    if let serde_json::Value::Object(members) = value {
        members
    } else {
        serde_json::Map::new()
    }
}
