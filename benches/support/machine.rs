//! When, where and of which commit something is measured, for every bench that keeps its result.

use std::fmt;
use std::fs;
use std::process::Command;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Where it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    memory: String,
    /// `/proc/loadavg` when it began and when it ended: what else ran.
    load: Vec<String>,
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cpu,
            cores,
            kernel,
            memory,
            load,
        } = self;
        let load = load.join("; ");
        write!(
            f,
            "{cpu}, {cores} cores, {memory} memory, Linux {kernel}; load average before and after: \
             {load}"
        )
    }
}

impl Machine {
    /// This one, now.
    pub(crate) fn here() -> Result<Self> {
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

/// UTC, to the second.
pub(crate) fn now() -> Result<String> {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0)?;
    Ok(now.format(&Rfc3339)?)
}

/// The commit that this is built from.
pub(crate) fn commit() -> String {
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
