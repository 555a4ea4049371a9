//! `zeugma ca verify`: what a gateway would say to a certificate, and by which rule.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rustls_pki_types::UnixTime;
use serde_json::json;
use zeugma_proxy::tls::{Bundles, Usage, verify_chain};

use super::manage::object;
use super::{CaError, Output, Place, date, print, print_json};
use crate::exit;

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// The chain, leaf first, as a peer would present it; `-` is standard input
    file: PathBuf,
    /// A folder of bundles: `<trust domain>.json` (SPIFFE) or `<trust domain>.pem`
    #[arg(long, value_name = "DIR", default_value = "bundles")]
    bundles: PathBuf,
}

pub(super) fn verify(place: &Place, args: &VerifyArgs) -> Result<ExitCode, CaError> {
    let chain = super::files::certificates(&args.file)?;
    let bundles = Bundles::load(&args.bundles)?;
    // In both roles: a gateway's SVID calls and is called (XL10).
    let now = UnixTime::now();
    let verdict = verify_chain(&chain, &bundles, Usage::Client, now)
        .and_then(|_| verify_chain(&chain, &bundles, Usage::Server, now));
    let name = args.file.display();
    let (code, text, json) = match verdict {
        Ok(peer) => {
            let until = time::OffsetDateTime::from_unix_timestamp(peer.not_after)
                .map_or_else(|_| peer.not_after.to_string(), date);
            (
                ExitCode::SUCCESS,
                format!("{name}: ok, {} until {until}\n", peer.id),
                json!({ "valid": true, "spiffeId": peer.id.as_str(), "notAfter": until }),
            )
        }
        Err(refusal) => {
            let rule = refusal.label();
            let detail = &refusal.violation.detail;
            (
                ExitCode::from(exit::FINDINGS),
                format!("{name}: {rule}: {detail} (ZG0310)\n"),
                json!({ "valid": false, "rule": rule, "detail": detail, "code": "ZG0310" }),
            )
        }
    };
    if place.output == Output::Json {
        let mut document = object(json);
        document.insert("kind".to_owned(), "CaVerification".into());
        print_json(document)?;
    } else {
        print(&text)?;
    }
    Ok(code)
}
