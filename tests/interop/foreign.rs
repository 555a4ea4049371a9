//! A gateway without route files, whose configuration comes from control planes that we did not write:
//! what they say is written by hand, in protobuf's JSON, below `foreign/`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use tokio::net::TcpSocket;

use crate::curl;
use crate::folder;
use crate::pki::{Root, Svid};
use crate::support::peers;
use crate::support::process::Process;
use crate::xds::becomes;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/foreign");

/// The path of what `unsupported.json` has in a listener ...
const TUNNELING: &str = "filter_chains[0].filters[0].typed_config(\
    envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy).tunneling_config";
/// ... and in a cluster.
const SUBSETS: &str = "lb_subset_config";

/// What stands in a file's `{{name}}`.
type Ports<'a> = &'a [(&'a str, u16)];

/// What a file of `foreign/` says with these ports.
fn resources(name: &str, ports: Ports<'_>) -> Result<String> {
    let mut text = fs::read_to_string(format!("{FOLDER}/{name}.json"))?;
    for (name, port) in ports {
        text = text.replace(&format!("{{{{{name}}}}}"), &port.to_string());
    }
    ensure!(!text.contains("{{"), "{name}: a port is missing: {text}");
    Ok(text)
}

/// Has it in a folder, at once.
fn put(folder: &Path, name: &str, ports: Ports<'_>) -> Result<()> {
    let next = folder.join(".next");
    fs::write(&next, resources(name, ports)?)?;
    fs::rename(next, folder.join(format!("{name}.json")))?;
    Ok(())
}

/// The control plane of `foreign/control_plane.py`, by gRPC's own implementation.
struct Plane {
    serves: PathBuf,
    port: u16,
    process: Process,
}

/// How it is spoken to.
#[derive(Debug, Clone, Copy)]
enum Protocol {
    /// It knows no other.
    Full,
    Delta,
}

impl Plane {
    fn start(folder: &Path, protocol: Protocol) -> Result<Self> {
        let serves = folder.join("serves");
        fs::create_dir_all(&serves)?;
        let mut command = Command::new(peers::python()?);
        command.arg(format!("{FOLDER}/control_plane.py"));
        command.arg(&serves);
        if let Protocol::Full = protocol {
            command.arg("sotw");
        }
        let process = Process::start("control-plane", &mut command, folder)?;
        let port = listening(&process)?;
        Ok(Self {
            serves,
            port,
            process,
        })
    }

    /// Serves what is in a file of `foreign/` too.
    fn serve(&self, name: &str, ports: Ports<'_>) -> Result<()> {
        put(&self.serves, name, ports)
    }

    /// Waits until a client has said this of a response.
    fn heard(&self, words: &[&str]) -> Result<String> {
        let is_it = |line: &str| words.iter().all(|word| line.contains(word));
        let what = words.join(" ");
        (self.process).wait_for(&what, |line| is_it(line).then(|| line.to_owned()))
    }
}

fn listening(process: &Process) -> Result<u16> {
    process.wait_for("its port", |line| {
        line.strip_prefix("listening ")?.trim().parse().ok()
    })
}

/// A service that ends TLS itself.
struct Service {
    port: u16,
    _process: Process,
}

impl Service {
    fn start(name: &str, svid: &Svid, folder: &Path) -> Result<Self> {
        let mut command = Command::new(peers::python()?);
        command.arg(format!("{FOLDER}/tls_service.py")).arg(name);
        command.arg(&svid.certificate).arg(&svid.key);
        let process = Process::start(name, &mut command, folder)?;
        Ok(Self {
            port: listening(&process)?,
            _process: process,
        })
    }
}

/// A gateway that has its configuration from a control plane on this port alone.
fn gateway(folder: &Path, svid: &Svid, port: u16) -> Result<Process> {
    let document = format!(
        "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: {{ name: east-gw }}
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: {{ files: {{ certificate: {}, key: {}, bundles: bundles/ }} }}
  # They are the control plane's to say; the field is required all the same.
  listeners: {{ unused: {{ address: '127.0.0.1:0', role: workloads }} }}
  controlPlane: {{ addresses: ['http://127.0.0.1:{port}'] }}
  admin: '127.0.0.1:0'
  probes: '127.0.0.1:0'
  metrics: '127.0.0.1:0'
  stateDir: state
  drain: {{ delay: 0s, timeout: 2s }}
",
        svid.certificate.display(),
        svid.key.display(),
    );
    let config = folder.join("gateway.yaml");
    fs::write(&config, document)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
    command.args(["gateway", "--config"]).arg(&config);
    Process::start("gateway", command.current_dir(folder), folder)
}

fn pki(folder: &Path) -> Result<Svid> {
    let east = Root::new(folder)?.domain("east.example")?;
    let bundles = folder.join("bundles");
    fs::create_dir_all(&bundles)?;
    fs::copy(&east.trust.anchor, bundles.join("east.example.pem"))?;
    east.svid("/gateway")
}

/// What answers at this port of the gateway's when TLS asks for a name.
fn answer(port: u16, name: &str) -> Result<String> {
    let to = format!("::127.0.0.1:{port}");
    let arguments = ["--insecure", "--connect-to", &to];
    Ok(curl::run(&arguments, &format!("https://{name}/"))?.body)
}

/// The services and the gateway's ports of a test, and the gateway's certificate.
struct World {
    folder: PathBuf,
    svid: Svid,
    orders: Service,
    carts: Service,
    apps: u16,
    tunnels: u16,
    stock: u16,
    /// The kernel gives a port that is bound to nobody else, while the gateway may listen there.
    _reserved: Vec<TcpSocket>,
}

impl World {
    fn new(test: &str) -> Result<Self> {
        let folder = folder(test)?;
        let svid = pki(&folder)?;
        let mut reserved = Vec::new();
        let [apps, tunnels, stock] = [(); 3].map(|()| reserve(&mut reserved));
        Ok(Self {
            orders: Service::start("orders", &svid, &folder)?,
            carts: Service::start("carts", &svid, &folder)?,
            apps: apps?,
            tunnels: tunnels?,
            stock: stock?,
            _reserved: reserved,
            svid,
            folder,
        })
    }

    fn passthrough(&self) -> [(&'static str, u16); 3] {
        let (orders, carts) = (self.orders.port, self.carts.port);
        [("apps", self.apps), ("orders", orders), ("carts", carts)]
    }

    fn unsupported(&self) -> [(&'static str, u16); 3] {
        let (tunnels, stock) = (self.tunnels, self.stock);
        [
            ("tunnels", tunnels),
            ("stock", stock),
            ("carts", self.carts.port),
        ]
    }

    /// Each name leads to its service, and no other one anywhere.
    fn is_led_by_name(&self) -> Result<()> {
        for (name, expected) in [
            ("orders.example", "orders orders.example"),
            ("carts.example", "carts carts.example"),
            ("eu.carts.example", "carts eu.carts.example"),
        ] {
            assert_eq!(answer(self.apps, name)?, expected);
        }
        let nowhere = answer(self.apps, "stock.example");
        assert!(nowhere.is_err(), "{nowhere:?}");
        Ok(())
    }

    /// What is good of `unsupported.json` serves, and what is not does not.
    fn has_the_good_alone(&self) -> Result<()> {
        becomes("carts any.example", || {
            Ok(answer(self.stock, "any.example").unwrap_or_default())
        })?;
        let tunnels = answer(self.tunnels, "any.example");
        assert!(tunnels.is_err(), "{tunnels:?}");
        self.is_led_by_name()
    }
}

pub(crate) fn reserve(all: &mut Vec<TcpSocket>) -> Result<u16> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let port = socket.local_addr()?.port();
    all.push(socket);
    Ok(port)
}

fn is_fed_by_files(test: &str, protocol: Protocol) -> Result<()> {
    let world = World::new(test)?;
    let plane = Plane::start(&world.folder, protocol)?;
    plane.serve("passthrough", &world.passthrough())?;
    let gateway = gateway(&world.folder, &world.svid, plane.port)?;
    gateway.wait_for_text("gateway ready")?;
    let spoken = match protocol {
        Protocol::Full => "sotw",
        Protocol::Delta => "delta",
    };
    plane.heard(&["asked Cluster", spoken])?;
    for kind in ["Cluster", "ClusterLoadAssignment", "Listener"] {
        plane.heard(&["ack", &format!(" {kind} ")])?;
    }
    world.is_led_by_name()?;
    // P29: what is not understood is refused by its path, and all else that came with it serves.
    plane.serve("unsupported", &world.unsupported())?;
    plane.heard(&["nack Listener", "`tunnels`", TUNNELING, "is not supported"])?;
    plane.heard(&["nack Cluster", "`subsets`", SUBSETS, "is not supported"])?;
    gateway.wait_for("what is refused", |line| {
        (line.contains("ZG0523") && line.contains(TUNNELING)).then_some(())
    })?;
    world.has_the_good_alone()?;
    // P38
    drop(plane);
    gateway.wait_for_text("ZG0522")?;
    world.has_the_good_alone()
}

#[test]
fn a_gateway_is_fed_by_a_server_of_grpcio_with_what_changed() -> Result<()> {
    is_fed_by_files("foreign_changes", Protocol::Delta)
}

#[test]
fn a_gateway_is_fed_by_a_server_of_grpcio_with_the_state_of_the_world() -> Result<()> {
    is_fed_by_files("foreign_state_of_the_world", Protocol::Full)
}

/// The same by a control plane of another language, which says all of it once.
#[test]
fn a_gateway_is_fed_by_the_crate_xds_server() -> Result<()> {
    let world = World::new("foreign_crate")?;
    let says = world.folder.join("says");
    fs::create_dir_all(&says)?;
    put(&says, "passthrough", &world.passthrough())?;
    put(&says, "unsupported", &world.unsupported())?;
    let packed = world.folder.join("packed");
    let mut pack = Command::new(peers::python()?);
    pack.arg(format!("{FOLDER}/control_plane.py"));
    let packing = pack.arg(&says).arg("pack").arg(&packed).output()?;
    ensure!(packing.status.success(), "{packing:?}");
    let mut command = Command::new(peers::xds_server()?);
    command.arg(&packed).arg("east-gw");
    let plane = Process::start("xds-server", &mut command, &world.folder)?;
    let port = listening(&plane)?;
    let first = gateway(&world.folder, &world.svid, port)?;
    first.wait_for_text("gateway ready")?;
    for path in [TUNNELING, SUBSETS] {
        let is_it = |line: &str| line.contains("NACK") && line.contains(path);
        plane.wait_for(path, |line| is_it(line).then_some(()))?;
    }
    world.has_the_good_alone()?;
    // P38, P43
    drop(plane);
    first.wait_for_text("ZG0522")?;
    world.has_the_good_alone()?;
    drop(first);
    let second = gateway(&world.folder, &world.svid, port)?;
    second.wait_for_text("ZG0524")?;
    second.wait_for_text("gateway ready")?;
    world.has_the_good_alone()
}
