//! `zeugma xds serve` of a folder, without TLS, at free ports.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use super::process::Process;

/// A control plane. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Serving {
    /// Where nodes connect.
    pub(crate) listens: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) process: Process,
}

impl Serving {
    /// Starts one of the documents in `config`; `folder` is for its log.
    pub(crate) fn start(config: &Path, folder: &Path) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command.args(["xds", "serve", "--plaintext", "--listen", "127.0.0.1:0"]);
        command
            .args(["--admin", "127.0.0.1:0", "--config"])
            .arg(config);
        let process = Process::start("xds", &mut command, folder)?;
        let line = process.wait_for_text("ZG0505")?;
        let at = |name: &str| -> Result<SocketAddr> {
            let mut words = line.split_whitespace();
            let found = words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            Ok(found.context("an address")?.parse()?)
        };
        Ok(Self {
            listens: at("address")?,
            admin: at("admin")?,
            process,
        })
    }
}
