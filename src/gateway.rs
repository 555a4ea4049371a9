//! `zeugma gateway`.

use std::path::PathBuf;

use zeugma_proxy::{GatewayError, GatewayOptions};

use crate::exit;

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
}

/// Runs until drained; returns the exit code.
pub(crate) fn run(arguments: Arguments) -> u8 {
    let Arguments { config, name, locality } = arguments;
    let options = GatewayOptions { config, name, locality };
    match zeugma_proxy::run(&options) {
        Ok(()) => 0,
        Err(error) => {
            crate::say_error(&error);
            match error {
                GatewayError::Config(_) | GatewayError::Credentials(_) => exit::DATA,
                GatewayError::Interface(_)
                | GatewayError::Listener { .. }
                | GatewayError::System { .. } => exit::FAILED,
            }
        }
    }
}
