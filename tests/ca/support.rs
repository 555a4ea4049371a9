//! A folder, the command, and certificates read from files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tempfile::TempDir;

/// A folder to run `zeugma` in.
pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// With a CA in `ca` that serves these trust domains: a copy of one made once, since opening
    /// keys is slow on purpose.
    pub(crate) fn with_ca(domains: &'static [&'static str]) -> Self {
        static MADE: Mutex<BTreeMap<&[&str], Bench>> = Mutex::new(BTreeMap::new());
        let mut made = MADE.lock().unwrap();
        let original = made.entry(domains).or_insert_with(|| {
            let bench = Self::new();
            bench.ok("ca init");
            for domain in domains {
                bench.ok(&format!("ca trust-domain add {domain}"));
            }
            bench
        });
        let bench = Self::new();
        copy(&original.path("ca"), &bench.path("ca"));
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn root(&self) -> &Path {
        self.folder.path()
    }

    /// The command, to be run in this folder.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = zeugma();
        command
            .args(words.split_whitespace())
            .current_dir(self.folder.path());
        command
    }

    pub(crate) fn run(&self, words: &str) -> Run {
        Run::of(&mut self.command(words))
    }

    /// Runs it and wants it to succeed.
    pub(crate) fn ok(&self, words: &str) -> String {
        let run = self.run(words);
        assert_eq!(run.code, 0, "zeugma {words}: {}", run.stderr);
        run.stdout
    }

    /// Runs it and wants this exit code.
    pub(crate) fn fails(&self, words: &str, code: i32) -> String {
        let run = self.run(words);
        assert_eq!(
            run.code, code,
            "zeugma {words}: {}{}",
            run.stdout, run.stderr
        );
        run.stderr
    }

    pub(crate) fn chain(&self, name: &str) -> Vec<CertificateDer<'static>> {
        chain(&self.path(name))
    }
}

/// Copies a folder with the permissions in it.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
    let permissions = std::fs::metadata(from).unwrap().permissions();
    std::fs::set_permissions(to, permissions).unwrap();
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(command: &mut Command) -> Self {
        let Output {
            status,
            stdout,
            stderr,
        } = command.stdin(Stdio::null()).output().unwrap();
        Self {
            code: status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&stdout).into_owned(),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }
}

/// The command, in an environment without our own variables.
pub(crate) fn zeugma() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
    command.env_remove("ZEUGMA_CA_PASSPHRASE_FILE");
    command
}

/// Every certificate of a PEM file; anything else in it is an error.
pub(crate) fn chain(path: &Path) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(path)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The files below a folder, hidden ones left out.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

/// Whether OpenSSL's command is there; says so aloud if not.
pub(crate) fn openssl_is_missing() -> bool {
    let missing = Command::new("openssl").arg("version").output().is_err();
    if missing {
        assert!(
            std::env::var_os("ZEUGMA_REQUIRE_PEERS").is_none(),
            "openssl is required and missing; run `apt-get install openssl`"
        );
        eprint("SKIPPED: openssl is missing; run `apt-get install openssl`");
    }
    missing
}

/// Says something in a test's output.
pub(crate) fn eprint(text: &str) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "{text}").ok();
}

/// `openssl` with these arguments.
pub(crate) fn openssl(bench: &Bench, words: &str) -> Run {
    let mut command = Command::new("openssl");
    command
        .args(words.split_whitespace())
        .current_dir(bench.root());
    Run::of(&mut command)
}

/// `openssl` that must succeed.
pub(crate) fn openssl_ok(bench: &Bench, words: &str) -> String {
    let run = openssl(bench, words);
    assert_eq!(run.code, 0, "openssl {words}: {}", run.stderr);
    run.stdout
}

/// A small generator with a printed seed, so that a failure can be run again.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new() -> Self {
        let seed = std::env::var("ZEUGMA_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0x5eed);
        eprint(&format!("ZEUGMA_SEED={seed}"));
        Self(seed)
    }

    /// SplitMix64 (Steele, Lea, Flood 2014), below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end.max(1)
    }
}

/// Kills commands at drawn moments, within about the time they take here and now: the window
/// shrinks when a command ends before its kill and grows when it does not.
pub(crate) struct Killer {
    draw: Draw,
    window: u64,
    kills: u32,
    cut: u32,
}

impl Killer {
    pub(crate) fn new() -> Self {
        Self {
            draw: Draw::new(),
            window: 400_000,
            kills: 0,
            cut: 0,
        }
    }

    /// Starts a command and kills it.
    pub(crate) fn kill(&mut self, command: &mut Command) {
        let delay = Duration::from_micros(self.draw.below(self.window));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Not a wait for something to happen: the moment of the kill is what is drawn.
        std::thread::park_timeout(delay);
        child.kill().unwrap();
        self.kills += 1;
        if child.wait().unwrap().success() {
            self.window = self.window * 3 / 4;
        } else {
            self.cut += 1;
            self.window = self.window * 5 / 4;
        }
    }

    /// Says how many were cut short; some were.
    pub(crate) fn report(&self) {
        let Self { kills, cut, .. } = self;
        eprint(&format!("{cut} of {kills} were cut short"));
        assert!(*cut > 0);
    }
}
