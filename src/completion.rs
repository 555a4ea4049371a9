//! `zeugma completion`: what shells and `man` need of the command itself.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Command, Subcommand};
use clap_complete::Shell;

use crate::{admin, ca, exit};

#[derive(Debug, Args)]
pub(crate) struct CompletionArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print the completions of a shell
    Shell {
        /// Which
        shell: Shell,
    },
    /// Write the manual pages, one for each command, into a folder
    Man {
        /// The folder; made if it is not there
        folder: PathBuf,
    },
}

/// Why the pages are not there.
#[derive(Debug, thiserror::Error)]
#[error("the manual pages cannot be written to {0}")]
struct ManError(String, #[source] io::Error);

/// Runs `zeugma completion` for the command that `command` describes.
pub(crate) fn run(args: &CompletionArgs, command: Command) -> ExitCode {
    match &args.what {
        What::Shell { shell } => {
            let mut command = command;
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut command, "zeugma", &mut text);
            admin::print(&String::from_utf8_lossy(&text)).unwrap_or_else(|error| error.fail())
        }
        What::Man { folder } => match write_pages(folder, command) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let error = ManError(folder.display().to_string(), error);
                ca::fail(&error, "ZG1002", exit::FAILED)
            }
        },
    }
}

fn write_pages(folder: &Path, command: Command) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
