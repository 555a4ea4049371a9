//! `zeugma gateway`.

use std::path::PathBuf;
use std::process::ExitCode;

use zeugma_proxy::{GatewayError, GatewayOptions, LogFormat, Logging, Start};

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
    /// How its own log on standard error looks
    #[arg(
        long,
        env = "ZEUGMA_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text"
    )]
    log_format: Form,
}

/// How a log looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Form {
    /// For people
    Text,
    /// For programs: a JSON object a line
    Json,
}

impl From<Form> for LogFormat {
    fn from(form: Form) -> Self {
        match form {
            Form::Text => Self::Text,
            Form::Json => Self::Json,
        }
    }
}

/// Runs until drained; returns the exit code.
pub(crate) fn run(arguments: Arguments) -> ExitCode {
    let Arguments {
        config,
        name,
        locality,
        takeover,
        log_format,
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
        logging: Logging::start(log_format.into()),
    };
    match zeugma_proxy::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let exit = match error {
                GatewayError::Config(_) | GatewayError::Credentials(_) => exit::DATA,
                GatewayError::Interface(_)
                | GatewayError::State(_)
                | GatewayError::Inherit(_)
                | GatewayError::Handover(_)
                | GatewayError::Listener { .. }
                | GatewayError::Worker(_)
                | GatewayError::System { .. } => exit::FAILED,
            };
            ca::fail(&error, error.code(), exit)
        }
    }
}
