//! The `zeugma` command: reads what was typed, calls a crate, prints.

mod config;
mod exit;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

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
    /// Check a configuration, or print its schema
    #[command(subcommand)]
    Config(config::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Config(command) => config::run(command).map_err(anyhow::Error::from),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Standard error may be closed as well; the exit code says it then.
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::from(exit::FAILED)
        }
    }
}
