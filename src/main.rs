//! The `zeugma` command: reads what was typed, calls a crate, prints.

mod admin;
mod bug_report;
mod ca;
mod check;
mod completion;
mod config;
mod demo;
mod exit;
mod explain;
mod failover;
mod gateway;
mod get;
mod init;
mod levers;
mod simulate;
mod status;
mod table;
mod tap;
mod top;
mod xds;

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand};

/// Of everything, C libraries too. How it is set stands in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// An east-west gateway for service meshes: SPIFFE mTLS between clusters, its own CA, and failover
/// that is always armed.
#[derive(Debug, Parser)]
#[command(name = "zeugma", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a folder that `zeugma gateway` can run: configuration, CA, certificates
    Init(init::InitArgs),
    /// The certificate authority: root, issuers, SVIDs, bundles
    Ca(ca::CaArgs),
    #[command(flatten)]
    Demo(demo::DemoCommand),
    /// The gateway: SIGTERM drains it, SIGHUP reloads its files (they are watched anyway)
    ///
    /// Standard output is the access log, one JSON line for each connection and request. Everything
    /// else goes to standard error; ZEUGMA_LOG=debug tells more.
    Gateway(gateway::Arguments),
    /// Check, compare and lay out a configuration; print its schema or its reference
    #[command(subcommand)]
    Config(config::Command),
    /// What would happen if: a configuration under load and faults, by the gateway's own engine on a
    /// virtual clock; exit 2 where an expectation does not hold
    Simulate(simulate::SimulateArgs),
    /// Where a running gateway sends traffic now, and why
    Status(status::StatusArgs),
    /// One kind of what a running gateway knows, as a table
    Get(get::GetArgs),
    /// Whether a running gateway can do what it is configured to do: its identity, each peer from TCP
    /// to who answers; exit 2 where something fails
    Check(check::CheckArgs),
    /// What each route of a running gateway carries now: live on a terminal, else one table
    Top(top::TopArgs),
    /// What a running gateway carries, live: each request and connection as it ends; exit 2 where
    /// --count is not reached within --for, and 69 where the gateway ends
    Tap(tap::TapArgs),
    /// Drain a running gateway, as SIGTERM does: not ready, still accepting for `drain.delay`, then no
    /// new work
    Drain(levers::DrainArgs),
    /// Take traffic off a place, or let it come back
    #[command(subcommand)]
    Failover(failover::Command),
    /// Write what somebody else needs to understand a running gateway into one file, without secrets
    BugReport(bug_report::BugReportArgs),
    /// What a code such as ZG0702 means and what to do about it; with `route`, where a request would go
    /// and why
    Explain(explain::ExplainArgs),
    /// The control plane: the same documents to many gateways, Envoys and gRPC clients
    #[command(subcommand)]
    Xds(xds::Command),
    /// Completions for shells, and manual pages
    Completion(completion::CompletionArgs),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => return not_a_command(&error),
        Err(help) => {
            // Nobody is left to tell if the streams are closed.
            help.print().ok();
            return ExitCode::SUCCESS;
        }
    };
    match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Ca(args) => ca::run(args),
        Command::Demo(command) => demo::run(command),
        Command::Gateway(arguments) => gateway::run(arguments),
        Command::Config(command) => config::run(command),
        Command::Simulate(args) => simulate::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Get(args) => get::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Tap(args) => tap::run(&args),
        Command::Drain(args) => levers::drain(&args),
        Command::Failover(command) => failover::run(&command),
        Command::BugReport(args) => bug_report::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Xds(command) => xds::run(command),
        Command::Completion(args) => completion::run(&args, Cli::command()),
    }
}

/// What was typed is no command: as clap says it, with the code of that.
fn not_a_command(error: &clap::Error) -> ExitCode {
    let is_colored = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    let text = error.render();
    let text = if is_colored {
        text.ansi().to_string()
    } else {
        text.to_string()
    };
    let text = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        format!("error[ZG1001]: a command is missing\n\n{text}")
    } else {
        text.replacen("error:", "error[ZG1001]:", 1)
    };
    // Nobody is left to tell if standard error is closed.
    write!(std::io::stderr(), "{text}").ok();
    ExitCode::from(exit::USAGE)
}
