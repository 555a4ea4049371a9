//! `zeugma config diff`: what a change of the files changes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};
use zeugma_xds::{Change, CheckedGateway, Difference, ResourceDifference, resource_diff};

use super::ends::{self, Ends};
use super::{Gateway, Output, print_findings};
use crate::admin::{AdminError, Target};
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
    /// The admin interface of a gateway that runs, `unix:/path` or a loopback address: what it carries is
    /// judged by NEW
    #[arg(long, value_name = "ADDRESS")]
    admin: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
}

/// A gateway that one side or both have, and what differs.
struct OfGateway {
    name: String,
    change: Change,
    differences: Vec<Difference>,
    resources: Vec<ResourceDifference>,
}

impl OfGateway {
    fn ends(&self) -> impl Iterator<Item = String> {
        self.differences.iter().flat_map(Difference::ends)
    }
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
    let mut found = compare((&diff.old, &old.gateways), (&diff.new, &new.gateways));
    let locality = options.locality.as_deref();
    for of in &mut found {
        if of.change == Change::Changed {
            of.resources = resource_diff(&of.name, locality, (&diff.old, &diff.new));
        }
    }
    let live = match diff.admin.clone().map(|at| live(at, &new.gateways)) {
        Some(Ok(live)) => live,
        Some(Err(error)) => return Ok(error.fail()),
        None => None,
    };
    match diff.output {
        Output::Human => {
            print_human(&mut out, &found)?;
            if let Some(live) = &live {
                live.print(&mut out)?;
            }
        }
        Output::Json => {
            let gateways: Vec<_> = found.iter().map(to_json).collect();
            let is_same = found.is_empty();
            let live = live.as_ref().map(Ends::to_json);
            let said = json!({ "same": is_same, "gateways": gateways, "live": live });
            writeln!(out, "{:#}", document(&said))?;
        }
    }
    Ok(if found.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(exit::FINDINGS)
    })
}

/// What the gateway there carries, judged by its own part of NEW; none where it has none.
fn live(at: String, new: &[CheckedGateway]) -> Result<Option<Ends>, AdminError> {
    let admin = Target::at(at).admin()?;
    let name = ends::name(&admin)?;
    let gateway = new.iter().find(|gateway| gateway.settings.name == name);
    let ends = gateway.map(|gateway| ends::of(&admin, name, &gateway.snapshot));
    ends.transpose()
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
                resources: Vec::new(),
            });
        }
    }
    let is_new = |gateway: &&CheckedGateway| named(old, &gateway.settings.name).is_none();
    found.extend(new.iter().filter(is_new).map(|gateway| OfGateway {
        name: gateway.settings.name.clone(),
        change: Change::Added,
        differences: Vec::new(),
        resources: Vec::new(),
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
        if !of.resources.is_empty() {
            writeln!(out, "what a control plane would tell it")?;
        }
        for ResourceDifference { kind, name, change } in &of.resources {
            writeln!(out, "    {} {} {name}", change.sign(), kind.as_str())?;
        }
        for (nth, ended) in of.ends().enumerate() {
            if nth == 0 {
                writeln!(out, "what would be ended")?;
            }
            writeln!(out, "    {ended}")?;
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
    let resources: Vec<_> = (of.resources.iter())
        .map(|one| {
            json!({
                "type": one.kind.as_str(),
                "name": one.name,
                "change": one.change.label(),
            })
        })
        .collect();
    json!({
        "name": of.name,
        "change": of.change.label(),
        "differences": differences,
        "resources": resources,
        "ends": of.ends().collect::<Vec<_>>(),
    })
}
