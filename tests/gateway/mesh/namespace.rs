//! A network namespace of a test's own, with links that can be cut.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio, id};
use std::sync::atomic::{AtomicU32, Ordering};

/// A network namespace, and the links between it and the test. Dropping it removes them.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) name: String,
}

/// A link between the test and a namespace.
#[derive(Debug)]
pub(crate) struct Link {
    namespace: String,
    devices: (String, String),
    /// The test's end.
    pub(crate) near: Ipv4Addr,
    /// The namespace's end.
    pub(crate) far: Ipv4Addr,
}

/// Counts links of this process.
static LINKS: AtomicU32 = AtomicU32::new(0);

impl Namespace {
    /// A new one. Without root there is none: the test is skipped, and says so.
    ///
    /// # Panics
    /// Where every test is required to run.
    pub(crate) fn new() -> Option<Self> {
        if !is_root_or_skipped("network namespaces") {
            return None;
        }
        let nth = LINKS.fetch_add(1, Ordering::Relaxed);
        let name = format!("zeugma-{}-{nth}", id());
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Some(Self { name })
    }

    /// A command that runs inside it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Another link to it.
    pub(crate) fn link(&self) -> Link {
        let nth = LINKS.fetch_add(1, Ordering::Relaxed);
        // A /30 of 198.18.0.0/15 (RFC 2544: for tests between networks) for each link.
        let block = (id().wrapping_mul(64).wrapping_add(nth) % (1 << 15)) << 2;
        let net = u32::from(Ipv4Addr::new(198, 18, 0, 0)) | block;
        let (near, far) = (Ipv4Addr::from(net + 1), Ipv4Addr::from(net + 2));
        let (device, other) = (format!("zg{}n{nth}", id()), format!("zg{}f{nth}", id()));
        let name = &self.name;
        ip(&format!(
            "link add {device} type veth peer name {other} netns {name}"
        ));
        ip(&format!("addr add {near}/30 dev {device}"));
        ip(&format!("link set {device} up"));
        ip(&format!("-n {name} addr add {far}/30 dev {other}"));
        ip(&format!("-n {name} link set {other} up"));
        Link {
            namespace: name.clone(),
            devices: (device, other),
            near,
            far,
        }
    }
}

impl Link {
    /// Takes the namespace's end down: nothing that the test sends arrives, and it is not told.
    pub(crate) fn cut_far(&self) {
        let (namespace, far) = (&self.namespace, &self.devices.1);
        ip(&format!("-n {namespace} link set {far} down"));
    }

    /// Takes the namespace's end up again.
    pub(crate) fn mend_far(&self) {
        let (namespace, far) = (&self.namespace, &self.devices.1);
        ip(&format!("-n {namespace} link set {far} up"));
    }

    /// Takes the test's end down: nothing that the namespace sends arrives, and it is not told.
    pub(crate) fn cut_near(&self) {
        // With the device goes its route: nothing of the test may go where the next one leads.
        ip(&format!("route add blackhole {}/32", self.far));
        ip(&format!("link set {} down", self.devices.0));
    }

    /// The namespace it leads to.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // A namespace lives on, with its devices, for as long as sockets in it do.
        ip(&format!("link del {}", self.devices.0));
        // Only there where its near end was cut.
        Command::new("ip")
            .args(["route", "del", "blackhole", &format!("{}/32", self.far)])
            .stderr(Stdio::null())
            .status()
            .ok();
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Its links go with it.
        Command::new("ip")
            .args(["netns", "del", &self.name])
            .status()
            .ok();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("`ip` of iproute2");
    assert!(
        output.status.success(),
        "ip {arguments} (as root): {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether this user may do `what` of a test, which is skipped otherwise.
///
/// # Panics
/// Where every test is required to run.
#[expect(
    clippy::print_stderr,
    reason = "a test that did not run must not look like one that did"
)]
pub(crate) fn is_root_or_skipped(what: &str) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        let required = std::env::var_os("ZEUGMA_REQUIRE_PEERS").is_some();
        assert!(!required, "{what}: run the tests as root");
        eprintln!("SKIPPED: {what}, which need root: run the tests as root");
    }
    is_root
}
