//! A script in a network and process namespace of its own, where the machine has them.

use std::ffi::OsStr;
use std::process::Command;
use std::sync::LazyLock;

/// Far above what any example takes on a busy machine.
const DEADLINE: &str = "150";

/// In its own namespaces, of which `ISOLATED` tells the script, this is process 1: the ports that the
/// script names are free, what it leaves running is seen (status 99), and it ends with it.
const INSIDE: &str = r#"
ip link set lo up || exit 98
export ISOLATED=yes
bash "$@"; status=$?
if kill -0 -- -1 2>/dev/null; then echo "it left processes running" >&2; exit 99; fi
exit "$status"
"#;

/// `bash script`, ended after a deadline.
pub(crate) fn isolated(script: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", DEADLINE]);
    if *HAS_NAMESPACES {
        command.args(UNSHARE).args(["bash", "-c", INSIDE, "bash"]);
    } else {
        command.arg("bash");
    }
    command.arg(script);
    command
}

const UNSHARE: [&str; 6] = [
    "unshare",
    "--user",
    "--map-root-user",
    "--net",
    "--pid",
    "--kill-child",
];

/// Containers and some distributions keep them from ordinary users. Then the examples share the
/// machine's ports, for which they look themselves.
static HAS_NAMESPACES: LazyLock<bool> = LazyLock::new(|| {
    Command::new(UNSHARE[0])
        .args(&UNSHARE[1..])
        .args(["sh", "-c", "ip link set lo up"])
        .output()
        .is_ok_and(|output| output.status.success())
});
