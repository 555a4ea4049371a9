//! `zeugma xds`: the control plane, and what others' have.

mod admin;
mod door;
mod read;
mod serve;

use std::process::ExitCode;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Serve the documents of a folder as xDS: SIGTERM drains it, SIGHUP reads everything again
    ///
    /// A node is told what its MeshGateway carries, as seen from where it stands. Its id is the name of
    /// a MeshGateway, alone or before a `/`, or its cluster is that of one gateway. It may be that node
    /// if the MeshPeer of that cluster lists its SPIFFE ID, or --allow does.
    Serve(serve::Arguments),
    /// What a control plane has for a gateway, asked as a gateway asks
    Get(read::Arguments),
    /// The same, and whatever changes, until it is ended
    Watch(read::Arguments),
}

pub(crate) fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve(arguments) => serve::run(arguments),
        Command::Get(arguments) => read::run(&arguments, read::Until::Complete),
        Command::Watch(arguments) => read::run(&arguments, read::Until::Ended),
    }
}
