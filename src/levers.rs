//! What a gateway that runs is told to do.

use std::process::ExitCode;

use clap::Args;

use crate::admin::{self, AdminError, Target};

#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    target: Target,
    /// Without `drain.delay`: no new connections from now on
    #[arg(long)]
    now: bool,
}

/// Runs `zeugma drain`.
pub(crate) fn drain(args: &DrainArgs) -> ExitCode {
    try_drain(args).unwrap_or_else(|error| error.fail())
}

fn try_drain(args: &DrainArgs) -> Result<ExitCode, AdminError> {
    let path = if args.now {
        "/quitquitquit"
    } else {
        "/drain_listeners"
    };
    let said = args.target.admin()?.post(path)?;
    admin::print(&String::from_utf8_lossy(&said))
}
