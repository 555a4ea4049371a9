//! The trust bundles that Envoy verifies by: those beside the gateway's certificate, and those of
//! `TrustDomain` documents that are files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{TRUST, file, text, unreadable};
use crate::compile::Context;
use crate::error::{Code, Finding, Findings};
use crate::pb::{self, core, tls};
use crate::settings::{ForeignDomain, SvidFiles};

const BEGIN: &str = "-----BEGIN CERTIFICATE-----\n";
const END: &str = "-----END CERTIFICATE-----\n";
/// RFC 7468 §2.
const PEM_LINE: usize = 64;

/// Each trust domain with its own anchors, as SPIFFE has it.
pub(super) fn trust(
    context: Context<'_>,
    svid: &SvidFiles,
    domains: &[ForeignDomain],
    findings: &mut Findings,
) -> Result<tls::Secret, Findings> {
    let mut found = in_folder(&svid.bundles)?;
    for foreign in domains {
        match &foreign.bundle {
            Some(path) => {
                let name = foreign.domain.to_string();
                found.entry(name).or_default().push(path.clone());
            }
            None => drop(findings.push(fetched_alone(context, foreign))),
        }
    }
    let mut trust_domains = Vec::new();
    for (name, paths) in found {
        let path = match paths.as_slice() {
            [path] => path,
            [_, second, ..] => return Err(twice(&name, second).into()),
            [] => continue,
        };
        let Some(trust_bundle) = bundle(path)? else {
            findings.push(empty(&name, path));
            continue;
        };
        trust_domains.push(tls::spiffe_cert_validator_config::TrustDomain {
            name,
            trust_bundle: Some(trust_bundle),
            ..Default::default()
        });
    }
    if trust_domains.is_empty() {
        let nothing = format!("{}: no bundle with an anchor", svid.bundles.display());
        let finding = Finding::error(Code::Unsafe, nothing);
        let help = "Envoy verifies nobody without one: put `<trust domain>.pem` or `.json` there";
        return Err(finding.help(help).into());
    }
    Ok(secret(trust_domains))
}

fn secret(trust_domains: Vec<tls::spiffe_cert_validator_config::TrustDomain>) -> tls::Secret {
    let validator = tls::SpiffeCertValidatorConfig {
        trust_domains,
        ..Default::default()
    };
    let context = tls::CertificateValidationContext {
        custom_validator_config: Some(core::TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(pb::pack(&validator)),
        }),
        ..Default::default()
    };
    tls::Secret {
        name: TRUST.to_owned(),
        r#type: Some(tls::secret::Type::ValidationContext(context)),
    }
}

/// The bundles of a folder by trust domain, as the gateway reads it.
fn in_folder(folder: &Path) -> Result<BTreeMap<String, Vec<PathBuf>>, Findings> {
    let read = |error| unreadable(folder, &error);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        files.push(entry.map_err(read)?.path());
    }
    files.sort();
    let mut found: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files {
        let kind = path.extension().unwrap_or_default();
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        if (kind == "pem" || kind == "json") && !name.starts_with('.') {
            found.entry(name.into_owned()).or_default().push(path);
        }
    }
    Ok(found)
}

/// The anchors of a file; `None` where there are none.
fn bundle(path: &Path) -> Result<Option<core::DataSource>, Findings> {
    if path.extension().is_some_and(|kind| kind == "json") {
        return anchors(path);
    }
    let pem = fs::read(path).map_err(|error| unreadable(path, &error))?;
    let begins = BEGIN.trim_end().as_bytes();
    if pem.windows(begins.len()).any(|bytes| bytes == begins) {
        return file(path).map(Some);
    }
    let finding = Finding::error(
        Code::Unreadable,
        format!("{}: no certificate in it", path.display()),
    );
    let help = "to trust nothing, use a .json bundle with empty `keys`";
    Err(finding.help(help).into())
}

/// The anchors of a SPIFFE bundle in PEM: Envoy reads JSON only of all trust domains together.
fn anchors(path: &Path) -> Result<Option<core::DataSource>, Findings> {
    let bytes = fs::read(path).map_err(|error| unreadable(path, &error))?;
    let bundle: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| unreadable(path, &error.into()))?;
    let keys = (bundle.get("keys").and_then(serde_json::Value::as_array)).ok_or_else(|| {
        let path = path.display();
        let what = format!("{path}: not a SPIFFE bundle (a JWK set with `keys`)");
        Findings::from(Finding::error(Code::Unreadable, what))
    })?;
    let mut pem = String::new();
    // SPIFFE_Trust_Domain_and_Bundle §4.2.2: the anchor is the only certificate of its key.
    for key in keys {
        let is_of_x509 = key.get("use").is_some_and(|of| of == "x509-svid");
        let anchor = key.pointer("/x5c/0").and_then(serde_json::Value::as_str);
        if let Some(anchor) = anchor.filter(|_| is_of_x509) {
            pem.push_str(BEGIN);
            for line in anchor.as_bytes().chunks(PEM_LINE) {
                pem.push_str(&String::from_utf8_lossy(line));
                pem.push('\n');
            }
            pem.push_str(END);
        }
    }
    Ok((!pem.is_empty()).then(|| core::DataSource {
        specifier: Some(core::data_source::Specifier::InlineString(pem)),
        ..Default::default()
    }))
}

fn empty(domain: &str, path: &Path) -> Finding {
    let path = text(path);
    Finding::error(
        Code::NoEffect,
        format!("{path}: no anchor in it: Envoy lets in nobody of trust domain `{domain}`"),
    )
    .warning()
}

fn twice(domain: &str, second: &Path) -> Finding {
    let second = text(second);
    Finding::error(
        Code::Duplicate,
        format!("{second}: there is a second bundle of trust domain `{domain}`"),
    )
    .help("bundles are never merged: remove one")
}

fn fetched_alone(context: Context<'_>, foreign: &ForeignDomain) -> Finding {
    let domain = &foreign.domain;
    let finding = Finding::error(
        Code::Unused,
        format!("Envoy fetches no bundle: it lets in nobody of trust domain `{domain}`"),
    )
    .help("write its `bundle` too, a file")
    .warning();
    let mut documents = context.model.domains.iter();
    match documents.find(|document| document.name == domain.to_string()) {
        Some(document) => finding.at(document.at_key("spec.bundleEndpointURL")),
        None => finding,
    }
}
