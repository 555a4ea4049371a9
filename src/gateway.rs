//! `zeugma gateway`.

use std::path::PathBuf;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use zeugma_proxy::{GatewayError, GatewayOptions, Start};

use crate::{ca, exit};

/// Run the gateway: SIGTERM drains it, SIGHUP reloads its files (they are watched anyway).
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The file or folder of its configuration.
    #[arg(long, value_name = "FILE|DIR")]
    config: PathBuf,
    /// Which MeshGateway, where several are loaded.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where this replica stands, instead of the MeshGateway's `locality`.
    #[arg(long, value_name = "REGION/ZONE/SUBZONE")]
    locality: Option<String>,
    /// Take over from the gateway of this name that runs: its listening sockets, so that nobody is
    /// turned away, while it ends what it has open. Starts as always where none runs.
    #[arg(long)]
    takeover: bool,
}

/// Runs until drained; returns the exit code.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    // The access log has standard output for itself.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_target(false)
        // Told on the same stream that cannot be written, by a macro that panics then.
        .log_internal_errors(false)
        .with_env_filter(
            EnvFilter::try_from_env("ZEUGMA_LOG").unwrap_or_else(|_unset| EnvFilter::new("info")),
        )
        .init();
    let Arguments {
        config,
        name,
        locality,
        takeover,
    } = arguments;
    let options = GatewayOptions {
        config,
        name,
        locality,
        start: if takeover {
            Start::TakeOver
        } else {
            Start::Alone
        },
    };
    match zeugma_proxy::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = match error {
                GatewayError::Config(_) | GatewayError::Credentials(_) => exit::DATA,
                GatewayError::Interface(_)
                | GatewayError::State(_)
                | GatewayError::Inherit(_)
                | GatewayError::Handover(_)
                | GatewayError::Listener { .. }
                | GatewayError::Worker(_)
                | GatewayError::System { .. } => exit::FAILED,
            };
            ca::fail(&error, code)
        }
    }
}
