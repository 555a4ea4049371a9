//! WebSocket by Python's `websockets`, through `ws_echo.py`.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::support::peers;
use crate::support::process::Process;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/ws_echo.py");

/// A running echo service, HTTP/1.1 without TLS.
#[derive(Debug)]
pub(crate) struct EchoService {
    /// Its port on 127.0.0.1.
    pub(crate) port: u16,
    _process: Process,
}

/// How a conversation went.
#[derive(Debug, Deserialize)]
pub(crate) struct Outcome {
    /// What came back for each text.
    pub(crate) answers: Vec<String>,
    /// Whether a binary message of 256 KiB came back as it was.
    pub(crate) large: bool,
    /// The code of the close handshake.
    pub(crate) closed: u16,
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

/// One conversation with `host` through the gateway at `entry`.
pub(crate) fn call(entry: SocketAddr, host: &str, texts: &[&str]) -> Result<Outcome> {
    let output = Command::new(peers::python()?)
        .args([SCRIPT, "call", &entry.port().to_string(), host])
        .args(texts)
        .output()?;
    if !output.status.success() {
        bail!("ws_echo.py: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
