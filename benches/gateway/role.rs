//! This program again, as one of the others that a run needs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

/// This program again, in another role. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Role {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Role {
    /// Starts one on the core of this process.
    pub(crate) fn start(role: &str, what: &str) -> Result<Self> {
        Self::spawn(Command::new(std::env::current_exe()?).args([role, what]))
    }

    /// Starts one on another core.
    pub(crate) fn start_on(core: &str, role: &str, what: &str) -> Result<Self> {
        let this = std::env::current_exe()?;
        let mut taskset = Command::new("taskset");
        Self::spawn(taskset.args(["-c", core]).arg(this).args([role, what]))
    }

    fn spawn(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("the standard output")?;
        Ok(Self {
            child,
            stdin,
            stdout: BufReader::new(stdout),
        })
    }

    /// The next line that it writes.
    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(
            !line.is_empty(),
            "a program of the bench ended; standard error says why"
        );
        Ok(line.trim_end().to_owned())
    }

    /// Has it do its work, and waits for what it says of it.
    pub(crate) fn go<T: DeserializeOwned>(&mut self) -> Result<T> {
        let stdin = self.stdin.as_mut().context("the standard input")?;
        stdin.write_all(b"go\n")?;
        stdin.flush()?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    /// Waits for its end.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.stdin.take();
        let status = self.child.wait()?;
        ensure!(status.success(), "a program of the bench: {status}");
        Ok(())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
