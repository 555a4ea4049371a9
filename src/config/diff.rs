//! `zeugma config diff`: what a change of the files changes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use zeugma_xds::{Change, CheckedGateway, Difference};

use super::{Gateway, Output, print_findings};
use crate::exit;

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// The configuration as it is
    #[arg(value_name = "OLD")]
    old: PathBuf,
    /// The configuration as it shall be
    #[arg(value_name = "NEW")]
    new: PathBuf,
    #[command(flatten)]
    gateway: Gateway,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

/// A gateway that one side or both have, and what differs.
struct OfGateway {
    name: String,
    change: Change,
    differences: Vec<Difference>,
}

pub(super) fn run(diff: &Diff) -> io::Result<ExitCode> {
    let options = diff.gateway.options();
    let old = zeugma_xds::check(&diff.old, &options);
    let new = zeugma_xds::check(&diff.new, &options);
    let mut out = io::stdout().lock();
    if old.findings.has_errors() || new.findings.has_errors() {
        for checked in [&old, &new]
            .into_iter()
            .filter(|one| one.findings.has_errors())
        {
            match diff.output {
                Output::Human => print_findings(&checked.findings)?,
                Output::Json => {}
            }
        }
        if diff.output == Output::Json {
            let findings = json!({
                "old": old.findings.to_json(),
                "new": new.findings.to_json(),
            });
            writeln!(out, "{:#}", document(&json!({ "findings": findings })))?;
        }
        return Ok(ExitCode::from(exit::DATA));
    }
    let found = compare((&diff.old, &old.gateways), (&diff.new, &new.gateways));
    match diff.output {
        Output::Human => print_human(&mut out, &found)?,
        Output::Json => {
            let gateways: Vec<_> = found.iter().map(to_json).collect();
            let is_same = found.is_empty();
            let said = document(&json!({ "same": is_same, "gateways": gateways }));
            writeln!(out, "{said:#}")?;
        }
    }
    Ok(if found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::FINDINGS)
    })
}

fn compare(
    (old_path, old): (&Path, &[CheckedGateway]),
    (new_path, new): (&Path, &[CheckedGateway]),
) -> Vec<OfGateway> {
    let named = |all: &[CheckedGateway], name: &str| {
        all.iter().position(|gateway| gateway.settings.name == name)
    };
    let mut found = Vec::new();
    for gateway in old {
        let name = gateway.settings.name.clone();
        let (change, differences) = match named(new, &name).and_then(|at| new.get(at)) {
            Some(other) => {
                let found = zeugma_xds::diff((gateway, old_path), (other, new_path));
                (Change::Changed, found)
            }
            None => (Change::Removed, Vec::new()),
        };
        if change == Change::Removed || !differences.is_empty() {
            found.push(OfGateway {
                name,
                change,
                differences,
            });
        }
    }
    let is_new = |gateway: &&CheckedGateway| named(old, &gateway.settings.name).is_none();
    found.extend(new.iter().filter(is_new).map(|gateway| OfGateway {
        name: gateway.settings.name.clone(),
        change: Change::Added,
        differences: Vec::new(),
    }));
    found
}

fn print_human(out: &mut impl Write, found: &[OfGateway]) -> io::Result<()> {
    for of in found {
        match of.change {
            Change::Changed => writeln!(out, "gateway {}", of.name)?,
            Change::Added => writeln!(out, "gateway {} is new", of.name)?,
            Change::Removed => writeln!(out, "gateway {} is there no more", of.name)?,
        }
        for difference in &of.differences {
            write!(out, "{difference}")?;
        }
    }
    if found.is_empty() {
        writeln!(out, "both mean the same")?;
    }
    Ok(())
}

fn document(said: &Value) -> Value {
    let mut document = json!({
        "apiVersion": "cli.zeugma.dev/v1",
        "kind": "ConfigDiff",
    });
    if let (Some(document), Some(said)) = (document.as_object_mut(), said.as_object()) {
        document.extend(said.clone());
    }
    document
}

fn to_json(of: &OfGateway) -> Value {
    let differences: Vec<_> = (of.differences.iter())
        .map(|difference| {
            let fields: Vec<_> = (difference.fields.iter())
                .map(|field| {
                    json!({
                        "field": field.field,
                        "removed": field.removed,
                        "added": field.added,
                        "endsConnections": field.ends,
                    })
                })
                .collect();
            json!({
                "kind": difference.kind,
                "name": difference.name,
                "change": difference.change.label(),
                "fields": fields,
            })
        })
        .collect();
    json!({ "name": of.name, "change": of.change.label(), "differences": differences })
}
