//! The `zeugma` command: reads what was typed, calls a crate, prints.

mod ca;
mod config;
mod demo;
mod exit;
mod gateway;
mod init;

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
    /// Check a configuration, or print its schema
    #[command(subcommand)]
    Config(config::Command),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nobody is left to tell if the streams are closed.
            error.print().ok();
            return if error.use_stderr() {
                ExitCode::from(exit::USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match cli.command {
        Command::Init(args) => init::run(&args),
        Command::Ca(args) => ca::run(args),
        Command::Demo(command) => demo::run(command),
        Command::Gateway(arguments) => gateway::run(arguments),
        Command::Config(command) => config::run(command),
    }
}
