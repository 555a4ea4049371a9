//! The `zeugma` command: reads what was typed, calls a crate, prints.

mod demo;
mod exit;

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
    #[command(flatten)]
    Demo(demo::DemoCommand),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command {
        Command::Demo(command) => demo::run(command),
    }
}
