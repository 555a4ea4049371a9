//! `zeugma xds`: control planes.

mod read;

use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// What a control plane has for a gateway, asked as a gateway asks
    Get(read::Arguments),
    /// The same, and whatever changes, until it is ended
    Watch(read::Arguments),
}

pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::Get(arguments) => read::run(arguments, read::Until::Complete),
        Command::Watch(arguments) => read::run(arguments, read::Until::Ended),
    }
}
