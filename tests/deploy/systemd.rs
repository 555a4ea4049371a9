//! The units, by systemd's own tools, and by systemd itself where the machine lets a test have one.
//! What the gateway and a service manager say to each other, word by word, is tested in
//! `tests/gateway/control_inherit.rs`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::peers::{Debian, debian};
use crate::{ZEUGMA, folder, is_root, printed, repository, said};

const SERVICE: &str = "zeugma-gateway.service";
const TEMPLATE: &str = "zeugma-gateway@.service";
const SOCKET: &str = "zeugma-gateway.socket";

/// What `systemd.sh` says where a machine lets nobody do what it does.
const NOT_LET: i32 = 77;

/// Exposure, of 100, as `systemd-analyze security` counts it: what is left is the network, Unix
/// sockets and the host's root folder, read-only.
const EXPOSURE_MAX: &str = "15";

fn systemd(program: &str) -> Option<PathBuf> {
    match debian(program, "systemd").unwrap() {
        Debian::Found(path) => Some(path),
        Debian::Missing => None,
    }
}

fn unit(name: &str) -> String {
    fs::read_to_string(repository("deploy/systemd").join(name)).unwrap()
}

/// What a unit sets a key to, each time.
fn values(unit: &str, key: &str) -> Vec<String> {
    let lines = unit.lines().filter_map(|line| line.split_once('='));
    let of_key = lines.filter(|(name, _)| *name == key);
    of_key.map(|(_, value)| value.to_owned()).collect()
}

/// The units as they would be installed, with the program that there is here.
fn installed(test: &str) -> PathBuf {
    let folder = folder(test);
    for name in [SERVICE, TEMPLATE, SOCKET] {
        let text = unit(name).replace("/usr/bin/zeugma", ZEUGMA);
        fs::write(folder.join(name), text).unwrap();
    }
    folder
}

fn verify(analyze: &Path, units: &[PathBuf]) -> Output {
    let mut command = Command::new(analyze);
    command.args(["verify", "--man=no"]).args(units);
    command.output().unwrap()
}

#[test]
fn systemd_finds_nothing_to_say_about_the_units() {
    let Some(analyze) = systemd("systemd-analyze") else {
        return;
    };
    let folder = installed("units");
    let instance = folder.join("zeugma-gateway@a.service");
    let units = [folder.join(SERVICE), instance, folder.join(SOCKET)];
    let verified = verify(&analyze, &units);
    assert!(verified.status.success(), "{}", said(&verified));
    assert!(verified.stderr.is_empty(), "{}", said(&verified));
    // It would have said so.
    let wrong = unit(SERVICE).replace("WatchdogSec=", "WatchDogSec=");
    fs::write(folder.join("wrong.service"), wrong).unwrap();
    let verified = verify(&analyze, &[folder.join("wrong.service")]);
    assert!(
        said(&verified).contains("WatchDogSec"),
        "{}",
        said(&verified)
    );
}

#[test]
fn the_services_are_hardened() {
    let Some(analyze) = systemd("systemd-analyze") else {
        return;
    };
    let folder = installed("hardened");
    let exposed = |name: &str| {
        let mut command = Command::new(&analyze);
        command.args(["security", "--offline=true", "--no-pager"]);
        command.arg(format!("--threshold={EXPOSURE_MAX}"));
        command.arg(folder.join(name)).output().unwrap()
    };
    for name in [SERVICE, TEMPLATE] {
        let output = exposed(name);
        assert!(output.status.success(), "{}", said(&output));
    }
    let bare = "[Service]\nExecStart=/bin/true\n";
    fs::write(folder.join("bare.service"), bare).unwrap();
    assert!(!exposed("bare.service").status.success());
}

#[test]
fn the_two_services_differ_only_in_how_they_begin() {
    let lines = |name| -> Vec<String> {
        let text = unit(name);
        let settings = text.lines().filter(|line| !line.starts_with('#'));
        settings.map(str::to_owned).collect()
    };
    let (one, template) = (lines(SERVICE), lines(TEMPLATE));
    let only = |these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .cloned()
            .collect()
    };
    assert_eq!(
        only(&one, &template),
        [
            "Description=Zeugma mesh gateway",
            "ExecStart=/usr/bin/zeugma gateway --config /etc/zeugma",
        ]
    );
    assert_eq!(
        only(&template, &one),
        [
            "Description=Zeugma mesh gateway, process %i",
            "ExecStart=/usr/bin/zeugma gateway --config /etc/zeugma --takeover",
            "RuntimeDirectoryPreserve=yes",
        ]
    );
}

#[test]
fn the_units_fit_the_configuration_that_is_shipped_with_them() {
    let folder = folder("host");
    fs::copy(
        repository("deploy/systemd/gateway.yaml"),
        folder.join("gateway.yaml"),
    )
    .unwrap();
    let mut check = Command::new(ZEUGMA);
    check
        .args(["config", "check", "--strict", "--config"])
        .arg(&folder);
    printed(&mut check);

    let config = fs::read_to_string(folder.join("gateway.yaml")).unwrap();
    let sockets = values(&unit(SOCKET), "ListenStream");
    assert_eq!(sockets.len(), 2);
    for address in sockets {
        let listens = format!("address: \"{address}\"");
        assert!(config.contains(&listens), "no listener on {address}");
    }
    for name in [SERVICE, TEMPLATE] {
        let unit = unit(name);
        assert_eq!(values(&unit, "StateDirectory"), ["zeugma"]);
        assert!(config.contains("stateDir: /var/lib/zeugma"));
        assert_eq!(values(&unit, "RuntimeDirectory"), ["zeugma"]);
        assert!(config.contains("admin: unix:/run/zeugma/admin.sock"));
        // The defaults of `drain`: 10 s and 45 s, and what threads get beyond it.
        assert!(values(&unit, "TimeoutStopSec") == ["70"]);
        // Netlink: to ask the kernel what hosts have acknowledged.
        assert_eq!(
            values(&unit, "RestrictAddressFamilies"),
            ["AF_INET AF_INET6 AF_UNIX AF_NETLINK"]
        );
        // Two for each of `limits.connections`, and 128 (see that field).
        let files: u64 = values(&unit, "LimitNOFILE")[0].parse().unwrap();
        assert!(files >= 2 * 50_000 + 128, "{files}");
    }
}

#[test]
fn systemd_itself_starts_watches_and_changes_the_gateway() {
    if systemd("systemd-sysusers").is_none() || !is_root() {
        return;
    }
    let mut script = Command::new(repository("tests/deploy/systemd.sh"));
    script.arg(ZEUGMA).arg(repository("deploy/systemd"));
    let output = script.arg(folder("systemd")).output().unwrap();
    if output.status.code() == Some(NOT_LET) {
        tell_of_a_machine_without_cgroups();
        return;
    }
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        said(&output).matches("ok: ").count(),
        6,
        "{}",
        said(&output)
    );
}

/// Not a failure even where every skip is one: nothing that could be installed would mend it.
#[expect(
    clippy::print_stderr,
    reason = "a test that did not run must not look like one that did"
)]
fn tell_of_a_machine_without_cgroups() {
    eprintln!("SKIPPED: no cgroup2, or no mounts, for a systemd of a test's own on this machine");
}

#[test]
fn the_user_can_be_made() {
    let Some(sysusers) = systemd("systemd-sysusers") else {
        return;
    };
    let root = folder("sysusers");
    fs::create_dir(root.join("etc")).unwrap();
    let mut command = Command::new(sysusers);
    command.arg("--root").arg(&root);
    printed(command.arg(repository("deploy/systemd/zeugma.sysusers")));
    let passwd = fs::read_to_string(root.join("etc/passwd")).unwrap();
    assert!(passwd.starts_with("zeugma:x:"), "{passwd}");
    for name in [SERVICE, TEMPLATE] {
        assert_eq!(values(&unit(name), "User"), ["zeugma"]);
        assert_eq!(values(&unit(name), "Group"), ["zeugma"]);
    }
}
