//! gRPC's own implementation, through `grpc_echo.py`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::support::peers;
use crate::support::process::Process;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/grpc_echo.py");

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
