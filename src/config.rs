//! `zeugma config`: what is wrong with a configuration, what its numbers mean, what a change of it
//! means, and how it is laid out.

mod compile;
mod diff;
mod ends;
mod fmt;

use std::io::{self, IsTerminal as _, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;
use zeugma_xds::{Checked, Color, Findings, NodeOptions, ServiceMeaning, Severity};

use crate::exit;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check a configuration and say what its numbers mean; exit 2 where something is wrong
    Check(Check),
    /// Write what an Envoy in the place of a gateway reads, and say where its bootstrap is; exit 65
    /// where the configuration is wrong
    Compile(compile::Compile),
    /// Print the JSON schema of the documents, for editors
    Schema,
    /// Print the manual of the documents, as Markdown
    Reference,
    /// Say what differs in meaning between two configurations, which resources a control plane would tell,
    /// and what would be ended; exit 2 where something differs, 65 where one of them is wrong
    Diff(diff::Diff),
    /// Lay documents out in one way; what they mean and their comments stay. Exit 65 where a file
    /// cannot be kept so, and is left as it is
    Fmt(fmt::Fmt),
}

#[derive(Debug, Args)]
pub(crate) struct Check {
    /// The YAML file, or a directory of them
    #[arg(long, value_name = "FILE|DIR")]
    config: PathBuf,
    #[command(flatten)]
    gateway: Gateway,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Human)]
    output: Output,
    /// Fail on warnings as well
    #[arg(long)]
    strict: bool,
}

/// Which gateway is meant.
#[derive(Debug, Args)]
struct Gateway {
    /// The MeshGateway that is meant; default: each one found
    #[arg(long)]
    name: Option<String>,
    /// Where the gateway stands, instead of its `locality`
    #[arg(long, value_name = "REGION/ZONE")]
    locality: Option<String>,
}

impl Gateway {
    fn options(&self) -> NodeOptions {
        NodeOptions {
            name: self.name.clone(),
            locality: self.locality.clone(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For a person
    Human,
    /// For a script
    Json,
}

/// Runs `zeugma config`.
pub(crate) fn run(command: Command) -> ExitCode {
    match try_run(command) {
        Ok(code) => code,
        // Whoever read the output, such as `head`, has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error may be closed as well; the exit code says it then.
            writeln!(io::stderr(), "error[ZG1002]: cannot print: {error}").ok();
            ExitCode::from(exit::FAILED)
        }
    }
}

fn try_run(command: Command) -> io::Result<ExitCode> {
    match command {
        Command::Check(check) => run_check(&check),
        Command::Compile(compile) => compile::run(&compile),
        Command::Schema => {
            let mut out = io::stdout().lock();
            writeln!(out, "{:#}", zeugma_xds::schema())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Reference => {
            write!(io::stdout().lock(), "{}", zeugma_xds::reference())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Diff(diff) => diff::run(&diff),
        Command::Fmt(fmt) => fmt::run(&fmt),
    }
}

fn run_check(check: &Check) -> io::Result<ExitCode> {
    let options = check.gateway.options();
    let checked = zeugma_xds::check(&check.config, &options);
    let is_bad = checked.findings.has_errors() || (check.strict && !checked.findings.is_empty());
    match check.output {
        Output::Human => print_human(&checked)?,
        Output::Json => {
            let mut out = io::stdout().lock();
            writeln!(out, "{:#}", to_json(&checked, !is_bad))?;
        }
    }
    Ok(if is_bad {
        ExitCode::from(exit::FINDINGS)
    } else {
        ExitCode::SUCCESS
    })
}

fn print_human(checked: &Checked) -> io::Result<()> {
    print_findings(&checked.findings)?;
    if checked.findings.has_errors() {
        return Ok(());
    }
    let mut out = io::stdout().lock();
    for loaded in &checked.gateways {
        let settings = &loaded.settings;
        writeln!(
            out,
            "gateway {} (cluster {}, {}): {} listener(s), {} service(s), {} peer(s)",
            settings.name,
            settings.cluster,
            settings.locality,
            loaded.snapshot.listeners.len(),
            loaded.snapshot.services.len(),
            loaded.snapshot.peers.len()
        )?;
        for service in zeugma_xds::meaning(&loaded.snapshot) {
            write!(out, "\n{service}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn print_findings(findings: &Findings) -> io::Result<()> {
    let mut err = io::stderr().lock();
    let is_colored = err.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let color = if is_colored {
        Color::Ansi
    } else {
        Color::Plain
    };
    write!(err, "{}", findings.to_human(color))?;
    let count = |severity| {
        let all = findings.iter();
        all.filter(|finding| finding.severity == severity).count()
    };
    if !findings.is_empty() {
        writeln!(
            err,
            "{} error(s), {} warning(s)",
            count(Severity::Error),
            count(Severity::Warning)
        )?;
    }
    Ok(())
}

fn to_json(checked: &Checked, is_ok: bool) -> serde_json::Value {
    let gateways: Vec<_> = checked
        .gateways
        .iter()
        .map(|loaded| {
            json!({
                "name": loaded.settings.name,
                "cluster": loaded.settings.cluster,
                "locality": loaded.settings.locality.to_string(),
                "version": &*loaded.snapshot.version,
                "services": zeugma_xds::meaning(&loaded.snapshot)
                    .iter()
                    .map(service_json)
                    .collect::<Vec<_>>(),
            })
        })
        .collect();
    json!({
        "apiVersion": "cli.zeugma.dev/v1",
        "kind": "ConfigCheck",
        "ok": is_ok,
        "findings": checked.findings.to_json(),
        "gateways": gateways,
    })
}

fn service_json(service: &ServiceMeaning) -> serde_json::Value {
    let levels: Vec<_> = service
        .levels
        .iter()
        .map(|level| {
            json!({
                "name": level.name,
                "endpoints": level.endpoints,
                "firstLeavesWithDown": level.first.0,
                "firstLeavingShare": level.first.1,
                "allLeavesWithDown": level.all,
                "takesPerSecond": level.takes,
            })
        })
        .collect();
    let rules: Vec<_> = (service.rules.iter())
        .map(|one| {
            let parts = one.parts.as_ref().map(|parts| {
                let each = parts.iter();
                each.map(|(part, share)| json!({ "part": part, "share": share }))
                    .collect::<Vec<_>>()
            });
            json!({ "match": one.wanted, "rule": one.rule, "split": parts })
        })
        .collect();
    json!({ "service": service.service, "levels": levels, "rules": rules })
}
