//! A program that a test started: its output is kept, its end is sure.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long a program may take to become ready; far above what any takes on a busy machine.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(60);

/// A running program. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    output: Arc<Output>,
    readers: Vec<JoinHandle<()>>,
}

/// What it printed so far, standard output and standard error in the order they were read.
#[derive(Debug, Default)]
struct Output {
    state: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Lines {
    lines: Vec<String>,
    ended: usize,
}

impl Process {
    /// Starts `command`; what it prints also goes to `<folder>/<name>.log`.
    pub(crate) fn start(name: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = Arc::new(Mutex::new(File::create(&log)?));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: {command:?}"))?;
        let output = Arc::new(Output::default());
        let mut readers = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            readers.push(read(stdout, Arc::clone(&output), Arc::clone(&file)));
        }
        if let Some(stderr) = child.stderr.take() {
            readers.push(read(stderr, Arc::clone(&output), file));
        }
        Ok(Self {
            name: name.to_owned(),
            log,
            child,
            output,
            readers,
        })
    }

    /// Waits for a line, printed before or after this call, that `find` makes something of.
    ///
    /// # Errors
    /// The program ends first, or [`READY_WITHIN`] passes; both show the end of its output.
    pub(crate) fn wait_for<T>(
        &self,
        what: &str,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> Result<T> {
        let until = Instant::now() + READY_WITHIN;
        let mut seen = 0;
        let mut state = lock(&self.output.state);
        loop {
            for line in state.lines.iter().skip(seen) {
                if let Some(found) = find(line) {
                    return Ok(found);
                }
            }
            seen = state.lines.len();
            let left = until.saturating_duration_since(Instant::now());
            let why = if state.ended == self.readers.len() {
                "ended before it printed"
            } else if left.is_zero() {
                "did not print in time"
            } else {
                state = self
                    .output
                    .changed
                    .wait_timeout(state, left)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                continue;
            };
            let tail = state.lines.iter().rev().take(30).rev();
            bail!(
                "{} {why} {what}; the end of {}:\n{}",
                self.name,
                self.log.display(),
                tail.cloned().collect::<Vec<_>>().join("\n")
            );
        }
    }

    /// Waits for a line that holds `text`.
    ///
    /// # Errors
    /// As [`Process::wait_for`].
    pub(crate) fn wait_for_text(&self, text: &str) -> Result<String> {
        self.wait_for(text, |line| line.contains(text).then(|| line.to_owned()))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where the program has ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
        for reader in self.readers.drain(..) {
            reader.join().ok();
        }
    }
}

fn read(
    from: impl Read + Send + 'static,
    output: Arc<Output>,
    log: Arc<Mutex<File>>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            writeln!(lock(&log), "{line}").ok();
            lock(&output.state).lines.push(line);
            output.changed.notify_all();
        }
        lock(&output.state).ended += 1;
        output.changed.notify_all();
    })
}

/// A poisoned lock here means that another test thread failed: what it guards is still text.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
