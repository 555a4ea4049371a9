//! What is to be known of a run beside its figures: when, where, of which commit, which programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::proxies::version;
use crate::results::{Machine, Peer, Program, Run, Settings};

impl Run {
    /// One that begins now; its repetitions and its end are yet to be told.
    pub(crate) fn begin(
        settings: Settings,
        programs: &BTreeMap<Peer, PathBuf>,
        folder: &Path,
    ) -> Result<Self> {
        let now = OffsetDateTime::now_utc().replace_nanosecond(0)?;
        Ok(Self {
            id: now.format(&Rfc3339)?,
            commit: commit(),
            machine: Machine::here()?,
            programs: programs
                .iter()
                .map(|(peer, path)| Ok((*peer, Program::of(*peer, path, folder)?)))
                .collect::<Result<_>>()?,
            settings,
        })
    }
}

/// The commit that this is built from.
fn commit() -> String {
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git")
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .args(arguments)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    // What a run before has written changes nothing that is measured.
    let changes = git(&["status", "--porcelain", "--", ":!*.md", ":!benches/*.json"]);
    match changes.as_deref() {
        Some("") => commit,
        _ => format!("{commit} with changes"),
    }
}

impl Machine {
    /// This one, now.
    fn here() -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let field = |text: &str, name: &str| -> String {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.split_once(':'))
                .map(|(_, value)| value.trim().to_owned())
                .unwrap_or_default()
        };
        Ok(Self {
            cpu: field(&cpuinfo, "model name"),
            cores: cpuinfo
                .lines()
                .filter(|line| line.starts_with("processor"))
                .count(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            memory: field(&meminfo, "MemTotal"),
            load: vec![Self::load_now()?],
        })
    }

    /// Notes how busy the machine is at the end.
    pub(crate) fn ended(&mut self) -> Result<()> {
        self.load.push(Self::load_now()?);
        Ok(())
    }

    fn load_now() -> Result<String> {
        let text = fs::read_to_string("/proc/loadavg")?;
        Ok(text.trim().to_owned())
    }
}

impl Program {
    /// What is to be said of one.
    fn of(peer: Peer, path: &Path, folder: &Path) -> Result<Self> {
        let stripped = folder.join(format!("{}.stripped", peer.name()));
        let output = Command::new("strip")
            .arg("-o")
            .arg(&stripped)
            .arg(path)
            .output();
        let stripped_bytes = match output {
            Ok(output) if output.status.success() => Some(fs::metadata(&stripped)?.len()),
            _ => None,
        };
        Ok(Self {
            version: version(peer, path)?,
            bytes: fs::metadata(path)?.len(),
            stripped_bytes,
        })
    }
}
