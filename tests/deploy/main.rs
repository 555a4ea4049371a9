//! What is in `deploy/`, held to what reads it: kubectl and the API's schemas, systemd, promtool,
//! and the kernel, in a pod's surroundings.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "tests fail by panicking"
)]

mod image;
mod kubernetes;
mod prometheus;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the peers of other tests are in it as well")]
mod support;
mod systemd;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ZEUGMA: &str = env!("CARGO_BIN_EXE_zeugma");

/// A file or folder of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// An empty folder for one test's files; it stays after the test, to be looked at.
fn folder(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("deploy")
        .join(test);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// Whether a test may mount, and start programs as others; says so where not.
fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        support::peers::skip("mounts and other users need root").unwrap();
    }
    is_root
}

/// What a command printed on standard output.
///
/// # Panics
/// It failed.
fn printed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that a command wrote, and how it ended.
fn said(output: &Output) -> String {
    format!(
        "{}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
