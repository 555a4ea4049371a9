//! A secret discovery service that we did not write: gRPC's server with Envoy's messages, `sds.py`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;

use crate::pki::{Svid, Trust};
use crate::support::peers;
use crate::support::process::Process;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/sds.py");

/// A running one.
#[derive(Debug)]
pub(crate) struct Sds {
    /// Where it listens.
    pub(crate) socket: PathBuf,
    process: Process,
}

/// What of discovery it serves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Method {
    /// The state of the world, as SPIRE's agent does.
    Sotw,
    /// What changed.
    Delta,
}

impl Sds {
    /// Starts one that says what these files say, and says it again when they change.
    pub(crate) fn start(
        name: &str,
        folder: &Path,
        method: Method,
        (svid, trusted): (&Svid, &[&Trust]),
    ) -> Result<Self> {
        // The folder's path is too long for a socket; of one that two tests had, one's Envoy took the other's secrets.
        static STARTED: AtomicUsize = AtomicUsize::new(0);
        let nth = STARTED.fetch_add(1, Ordering::Relaxed);
        let file = format!("zeugma-{name}-{}-{nth}", std::process::id());
        let socket = std::env::temp_dir().join(file);
        let mut command = Command::new(peers::python()?);
        command
            .arg(SCRIPT)
            .arg(format!("unix:{}", socket.display()));
        command.arg(match method {
            Method::Sotw => "sotw",
            Method::Delta => "delta",
        });
        command.args([&svid.certificate, &svid.key]);
        for trust in trusted {
            command.arg(format!("{}={}", trust.name, trust.anchor.display()));
        }
        let process = Process::start(name, &mut command, folder)?;
        process.wait_for_text("listening ")?;
        Ok(Self { socket, process })
    }
}

impl Sds {
    /// Waits until a client has said this.
    pub(crate) fn heard(&self, what: &str) -> Result<String> {
        self.process.wait_for_text(what)
    }
}

impl Drop for Sds {
    fn drop(&mut self) {
        // gRPC removes it too.
        std::fs::remove_file(&self.socket).ok();
    }
}
