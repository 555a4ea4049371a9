//! The demo's processes: real ones of this same binary, each ended with the demo however it ends.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::fetch;

/// How long a process may take until it answers its probe.
const START_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a gateway may take to drain before it is killed.
const END_TIMEOUT: Duration = Duration::from_secs(4);

/// What goes wrong with the demo's processes.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProcessError {
    #[error("cannot start {name}")]
    Start {
        name: String,
        #[source]
        source: io::Error,
    },
    #[error("{name} ended by itself ({status}); the end of {}:\n{tail}", log.display())]
    Ended {
        name: String,
        status: ExitStatus,
        log: PathBuf,
        tail: String,
    },
    #[error("{name} did not get ready within 15 s; the end of {}:\n{tail}", log.display())]
    NotReady {
        name: String,
        log: PathBuf,
        tail: String,
    },
    #[error("there is no process {0}")]
    Unknown(String),
    #[error("no free port between {PORT_LEAST} and {PORT_MOST} on 127.0.0.1")]
    Ports,
    #[error("cannot become `{program}`")]
    Become {
        program: String,
        #[source]
        source: io::Error,
    },
}

/// A process to start.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// The name it has in the demo.
    pub(crate) name: String,
    /// What it does, in a few words.
    pub(crate) role: &'static str,
    /// The arguments of `zeugma`.
    pub(crate) args: Vec<String>,
    /// `GET` this at this address answers 200 once it is ready; none: it is ready when it runs.
    pub(crate) probe: Option<(SocketAddr, &'static str)>,
}

/// All processes of a demo. Dropping it kills them.
#[derive(Debug)]
pub(crate) struct Processes {
    zeugma: PathBuf,
    logs: PathBuf,
    running: Vec<Running>,
}

#[derive(Debug)]
struct Running {
    program: Program,
    pid: u32,
    child: Child,
}

impl Processes {
    /// None yet; their output is to go to files in `logs`.
    ///
    /// # Errors
    /// When the binary's own path is unknown.
    pub(crate) fn new(logs: &Path) -> io::Result<Self> {
        Ok(Self {
            zeugma: std::env::current_exe()?,
            logs: logs.to_owned(),
            running: Vec::new(),
        })
    }

    /// Where what `name` writes to its standard output goes: a gateway's access log.
    pub(crate) fn output(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.out"))
    }

    /// Where what `name` writes to its standard error goes: its log.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// The command that starts `program` by hand.
    pub(crate) fn by_hand(&self, program: &Program) -> String {
        format!("{} {}", self.zeugma.display(), program.args.join(" "))
    }

    /// Starts `program`; its process id. It has not been waited for: see [`Self::ready`].
    ///
    /// # Errors
    /// [`ProcessError::Start`].
    pub(crate) fn start(&mut self, program: Program) -> Result<u32, ProcessError> {
        let failed = |source| ProcessError::Start {
            name: program.name.clone(),
            source,
        };
        let append = |path: PathBuf| File::options().create(true).append(true).open(path);
        let output = append(self.output(&program.name)).map_err(failed)?;
        let log = append(self.log(&program.name)).map_err(failed)?;
        let child = Command::new(&self.zeugma)
            .arg("demo-child")
            .arg(std::process::id().to_string())
            .args(&program.args)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pid = child.id().unwrap_or_default();
        self.running.push(Running {
            program,
            pid,
            child,
        });
        Ok(pid)
    }

    /// Waits until `name` answers its probe.
    ///
    /// # Errors
    /// When it ends, or is not ready in time.
    pub(crate) async fn ready(&mut self, name: &str) -> Result<(), ProcessError> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            self.check()?;
            let running = self.find(name)?;
            let Some((address, path)) = running.program.probe else {
                return Ok(());
            };
            if fetch::get(address, path).await.is_ok() {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let log = self.log(name);
                return Err(ProcessError::NotReady {
                    name: name.to_owned(),
                    tail: tail(&log),
                    log,
                });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Kills `name` as `kill -9` does, and waits until it is gone; its process id.
    ///
    /// # Errors
    /// [`ProcessError::Unknown`].
    pub(crate) async fn kill(&mut self, name: &str) -> Result<u32, ProcessError> {
        let at = self
            .running
            .iter()
            .position(|running| running.program.name == name)
            .ok_or_else(|| ProcessError::Unknown(name.to_owned()))?;
        let mut running = self.running.remove(at);
        // Fails only where it has ended already.
        running.child.start_kill().ok();
        running.child.wait().await.ok();
        Ok(running.pid)
    }

    /// The first process that ended without being told to.
    ///
    /// # Errors
    /// [`ProcessError::Ended`].
    pub(crate) fn check(&mut self) -> Result<(), ProcessError> {
        let logs = self.logs.clone();
        for running in &mut self.running {
            if let Ok(Some(status)) = running.child.try_wait() {
                let name = running.program.name.clone();
                let log = logs.join(format!("{name}.log"));
                return Err(ProcessError::Ended {
                    name,
                    status,
                    tail: tail(&log),
                    log,
                });
            }
        }
        Ok(())
    }

    /// Name, role and process id of each that runs.
    pub(crate) fn list(&self) -> impl Iterator<Item = (&Program, u32)> {
        self.running
            .iter()
            .map(|running| (&running.program, running.pid))
    }

    /// Ends all: SIGTERM first, so that gateways drain, then SIGKILL.
    pub(crate) async fn end(&mut self) {
        for running in &self.running {
            if let Some(pid) = running.child.id().and_then(pid) {
                // Fails only where it has ended already.
                kill_process(pid, Signal::TERM).ok();
            }
        }
        let deadline = Instant::now() + END_TIMEOUT;
        for mut running in self.running.drain(..) {
            let ended = tokio::time::timeout_at(deadline, running.child.wait()).await;
            if ended.is_err() {
                running.child.start_kill().ok();
                running.child.wait().await.ok();
            }
        }
    }

    fn find(&self, name: &str) -> Result<&Running, ProcessError> {
        self.running
            .iter()
            .find(|running| running.program.name == name)
            .ok_or_else(|| ProcessError::Unknown(name.to_owned()))
    }
}

fn pid(id: u32) -> Option<Pid> {
    i32::try_from(id).ok().and_then(Pid::from_raw)
}

/// The last lines of a log, for an error message.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().rev().take(8).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}

/// What `zeugma demo-child` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct ChildArgs {
    /// The process that this one must not outlive
    parent: u32,
    /// The arguments of `zeugma`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

/// Becomes `zeugma ARGS`, to be killed by the kernel when the parent dies, however it dies.
///
/// The signal is set on this process and kept over `exec`, so what it becomes need not know.
pub(crate) fn become_child(args: &ChildArgs) -> ProcessError {
    let failed = |source| ProcessError::Become {
        program: args.args.join(" "),
        source,
    };
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)) {
        return failed(error.into());
    }
    // A parent that died before the signal was set would never be noticed.
    if getppid() != pid(args.parent) {
        return failed(io::Error::other("the process that started it is gone"));
    }
    match std::env::current_exe() {
        Ok(zeugma) => failed(std::process::Command::new(zeugma).args(&args.args).exec()),
        Err(error) => failed(error),
    }
}

const PORT_LEAST: u16 = 15_000;
/// Ports above may be taken at any time by the near end of somebody's connection.
const PORT_MOST: u16 = 32_000;

/// Free ports on 127.0.0.1, each given once.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    given: Vec<u16>,
}

impl Ports {
    /// A port that nothing listens on.
    ///
    /// # Errors
    /// [`ProcessError::Ports`].
    pub(crate) fn free(&mut self) -> Result<SocketAddr, ProcessError> {
        for _ in 0..1000 {
            let port = fastrand::u16(PORT_LEAST..=PORT_MOST);
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            if !self.given.contains(&port) && TcpListener::bind(address).is_ok() {
                self.given.push(port);
                return Ok(address);
            }
        }
        Err(ProcessError::Ports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_given_once_and_none_in_use() {
        let mut ports = Ports::default();
        let mut given: Vec<_> = (0..50).map(|_| ports.free().unwrap()).collect();
        for address in &given {
            TcpListener::bind(address).unwrap();
        }
        given.sort_unstable();
        given.dedup();
        assert_eq!(given.len(), 50);
    }
}
