//! What is to be known of a run beside its figures: when, where, of which commit, which programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::machine::{Machine, commit, now};
use crate::proxies::version;
use crate::results::{Peer, Program, Run, Settings};

impl Run {
    /// One that begins now; its repetitions and its end are yet to be told.
    pub(crate) fn begin(
        settings: Settings,
        programs: &BTreeMap<Peer, PathBuf>,
        folder: &Path,
    ) -> Result<Self> {
        Ok(Self {
            id: now()?,
            commit: commit(),
            machine: Machine::here()?,
            programs: programs
                .iter()
                .map(|(peer, path)| Ok((*peer, Program::of(*peer, path, folder)?)))
                .collect::<Result<_>>()?,
            settings,
            fastest_ns: None,
        })
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
        let here = path.strip_prefix(env!("CARGO_MANIFEST_DIR"));
        // Where else it lies says nothing to others.
        let here = here.map_or_else(
            |_| "elsewhere".to_owned(),
            |path| path.display().to_string(),
        );
        Ok(Self {
            version: version(peer, path)?,
            path: (peer == Peer::Zeugma).then_some(here),
            bytes: fs::metadata(path)?.len(),
            stripped_bytes,
        })
    }
}
