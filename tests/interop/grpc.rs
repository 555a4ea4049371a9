//! gRPC's own implementation, through `grpc_echo.py`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::pki::{Svid, Trust};
use crate::support::peers;
use crate::support::process::Process;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/grpc_echo.py");

const AGENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/workload_api.py");

/// A running echo service, HTTP/2 without TLS.
#[derive(Debug)]
pub(crate) struct EchoService {
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
    _process: Process,
}

/// How a call ended.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    /// gRPC's name of the status.
    pub(crate) code: String,
    /// The status message of a call that failed.
    #[serde(default)]
    pub(crate) details: String,
    /// The messages received.
    pub(crate) answers: Vec<String>,
    /// Initial and trailing metadata.
    pub(crate) metadata: BTreeMap<String, String>,
}

impl EchoService {
    /// Starts it and waits until it listens.
    pub(crate) fn start(name: &str, folder: &Path) -> Result<Self> {
        let process = Process::start(
            name,
            Command::new(peers::python()?).args([SCRIPT, "serve"]),
            folder,
        )?;
        let port = process.wait_for("its port", |line| {
            line.strip_prefix("listening ")?.parse().ok()
        })?;
        Ok(Self {
            port,
            _process: process,
        })
    }
}

/// A running SPIFFE Workload API.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Where it listens.
    pub(crate) socket: PathBuf,
    _process: Process,
}

impl Agent {
    /// Starts one that says what these files say, and says it again when they change.
    pub(crate) fn start(folder: &Path, svid: &Svid, trusted: &[&Trust]) -> Result<Self> {
        let socket = std::env::temp_dir().join(format!("zeugma-agent-{}", std::process::id()));
        let mut command = Command::new(peers::python()?);
        command.arg(AGENT).arg(&socket).arg(&svid.id);
        command.args([&svid.certificate, &svid.key]);
        for trust in trusted {
            command.arg(format!("{}={}", trust.name, trust.anchor.display()));
        }
        let process = Process::start("agent", &mut command, folder)?;
        process.wait_for("its word", |line| (line == "listening").then_some(()))?;
        Ok(Self {
            socket,
            _process: process,
        })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // gRPC removes it too.
        std::fs::remove_file(&self.socket).ok();
    }
}

/// Calls `method` of the service named `authority` at `target`, with one message per text.
pub(crate) fn call(
    target: SocketAddr,
    authority: &str,
    method: &str,
    texts: &[&str],
) -> Result<Outcome> {
    let output = Command::new(peers::python()?)
        .args([SCRIPT, "call", &target.to_string(), authority, method])
        .args(texts)
        .output()?;
    if !output.status.success() {
        bail!("grpc_echo.py: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
