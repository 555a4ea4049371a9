//! `zeugma xds serve` to clients that we did not write: gRPC's own resolver, and Envoy.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::curl::{self, Version};
use crate::envoy::{Envoy, Template, Values};
use crate::folder;
use crate::grpc::EchoService;
use crate::serving::Serving;
use crate::support::peers;
use crate::support::process::{Process, READY_WITHIN};
use crate::zeugma::{ECHO, ORDERS};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/grpc_echo.py");
const CSDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/interop/csds.py");

/// How long an Envoy waits for what it has asked for, unless it is told otherwise.
const FETCH_MS: f64 = 15_000.0;

/// A control plane of one folder, without TLS.
pub(crate) struct ControlPlane {
    config: PathBuf,
    /// Where nodes connect.
    pub(crate) listens: SocketAddr,
    admin: SocketAddr,
    process: Process,
}

/// Two places, and a gateway that stands in the first.
const GATEWAY: &str = "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: { name: east-gw }
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: { files: { certificate: gw.pem, key: gw.key, bundles: bundles/ } }
  listeners: { apps: { address: '127.0.0.1:0', role: workloads } }
";

fn route(name: &str, backends: &[(&str, u16)], more: &str) -> String {
    let backends: Vec<String> = (backends.iter())
        .map(|(zone, port)| {
            format!("{{ name: {zone}, locality: eu/{zone}, endpoints: ['127.0.0.1:{port}'] }}")
        })
        .collect();
    let backends = backends.join(", ");
    format!(
        "apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: {name}, namespace: shop }}
spec:
  protocol: http
  backends: [{backends}]
  allow: [{{ listeners: [apps] }}]
{more}"
    )
}

impl ControlPlane {
    fn start(folder: &Path, routes: &[(&str, String)]) -> Result<Self> {
        let config = folder.join("config");
        fs::create_dir_all(&config)?;
        fs::write(config.join("gateway.yaml"), GATEWAY)?;
        for (name, route) in routes {
            fs::write(config.join(format!("{name}.yaml")), route)?;
        }
        Self::serve(folder, config)
    }

    /// Starts one of the documents in `config`.
    pub(crate) fn serve(folder: &Path, config: PathBuf) -> Result<Self> {
        let Serving {
            listens,
            admin,
            process,
        } = Serving::start(&config, folder)?;
        Ok(Self {
            config,
            listens,
            admin,
            process,
        })
    }

    /// Replaces a document at once.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let next = self.config.join(".next");
        fs::write(&next, text)?;
        fs::rename(next, self.config.join(format!("{name}.yaml")))?;
        Ok(())
    }

    fn nodes(&self) -> Result<Value> {
        let answer = curl::get(&format!("http://{}/api/v1/nodes", self.admin))?;
        Ok(serde_json::from_str(&answer.body)?)
    }

    fn metrics(&self) -> Result<String> {
        Ok(curl::get(&format!("http://{}/metrics", self.admin))?.body)
    }

    /// What nodes have, as gRPC's own client is told by CSDS.
    fn status(&self) -> Result<String> {
        let mut command = Command::new(peers::python()?);
        command.args([CSDS, &self.listens.to_string()]);
        let output = command.output()?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Everything that a node refused.
    pub(crate) fn rejected(&self) -> Result<Vec<String>> {
        let nodes = self.nodes()?;
        let nodes = nodes.pointer("/nodes").and_then(Value::as_array);
        let types = nodes
            .into_iter()
            .flatten()
            .filter_map(|node| node.get("types")?.as_array());
        let rejected = types
            .flatten()
            .filter_map(|one| one.pointer("/rejected/detail"));
        Ok(rejected.map(ToString::to_string).collect())
    }
}

/// A gRPC client that resolves `target` by xDS and calls over and over.
fn follow(plane: &ControlPlane, folder: &Path, target: &str) -> Result<Process> {
    let bootstrap = json!({
        "xds_servers": [{
            "server_uri": plane.listens.to_string(),
            "channel_creds": [{ "type": "insecure" }],
            "server_features": ["xds_v3"],
        }],
        "node": { "id": "east-gw/client-1", "cluster": "east" },
    });
    let mut command = Command::new(peers::python()?);
    command.args([SCRIPT, "follow", target]);
    command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string());
    Process::start("follow", &mut command, folder)
}

/// gRPC's resolver asks by state of the world for what it dials, and fails over between priorities.
#[test]
fn grpcs_own_resolver_is_served_and_fails_over_between_priorities() -> Result<()> {
    let folder = folder("grpcs_own_resolver_is_served_and_fails_over")?;
    let near = EchoService::start("near", &folder)?;
    let far = EchoService::start("far", &folder)?;
    let both = [("eu-1", near.port), ("eu-2", far.port)];
    let plane = ControlPlane::start(&folder, &[("echo", route("echo", &both, ""))])?;
    let client = follow(&plane, &folder, &format!("xds:///{ECHO}:80"))?;
    client.wait_for_text(&format!("served {}", near.port))?;
    assert_eq!(plane.rejected()?, Vec::<String>::new());
    let nodes = plane.nodes()?;
    assert_eq!(nodes.pointer("/nodes/0/protocol"), Some(&json!("sotw")));
    assert_eq!(
        nodes.pointer("/nodes/0/node"),
        Some(&json!("east-gw/client-1"))
    );
    drop(near);
    client.wait_for_text(&format!("served {}", far.port))?;
    // An endpoint more, nearer than what serves: told, and used.
    let third = EchoService::start("third", &folder)?;
    let both = [("eu-1", third.port), ("eu-2", far.port)];
    plane.write("echo", &route("echo", &both, ""))?;
    client.wait_for_text(&format!("served {}", third.port))?;
    assert_eq!(plane.rejected()?, Vec::<String>::new());
    Ok(())
}

/// P18, P19: gRPC's resolver gives up on what nobody has by its own timer of 15 s, and is told when it
/// comes.
#[test]
fn grpcs_own_resolver_is_told_of_a_service_when_there_is_one() -> Result<()> {
    let folder = folder("grpcs_own_resolver_is_told_of_a_service")?;
    let plane = ControlPlane::start(&folder, &[("orders", route("orders", &[("eu-1", 1)], ""))])?;
    let client = follow(&plane, &folder, &format!("xds:///{ECHO}:80"))?;
    let line = client.wait_for_text("failed UNAVAILABLE")?;
    assert!(line.contains("does not exist"), "{line}");
    let echo = EchoService::start("echo", &folder)?;
    plane.write("echo", &route("echo", &[("eu-1", echo.port)], ""))?;
    client.wait_for_text(&format!("served {}", echo.port))?;
    Ok(())
}

/// What a service behind Envoy answers.
fn body(envoy: &Envoy) -> Result<String> {
    let answer = curl::get_host(envoy.address, ORDERS, "/", Version::H1)?;
    Ok(format!("{} {}", answer.status, answer.body))
}

pub(crate) fn becomes(what: &str, mut look: impl FnMut() -> Result<String>) -> Result<()> {
    let until = Instant::now() + READY_WITHIN;
    loop {
        let seen = look()?;
        if seen == what {
            return Ok(());
        }
        if Instant::now() > until {
            bail!("it stays `{seen}` and does not become `{what}`");
        }
    }
}

fn service(name: &str, folder: &Path) -> Result<Envoy> {
    let values = Values::from([("body", format!("from {name}"))]);
    Envoy::start(name, Template::Backend, &values, folder)
}

/// P34: it would wait 15 s for secrets of an agent that it has not, and be ready without.
fn is_ready_at_once(envoy: &Envoy) -> Result<()> {
    let listeners = envoy.listeners()?;
    let parts = |word: &str| listeners.matches(word).count();
    assert!(parts("sds_config") > 0);
    assert_eq!(parts("\"0.001s\""), parts("sds_config"), "{listeners}");
    // How long it took all in all until it let anybody in, as it says itself.
    becomes("ready at once", || {
        Ok(match envoy.longest("server.initialization_time_ms")? {
            Some(took) if took < FETCH_MS => "ready at once".to_owned(),
            took => format!("{took:?} ms"),
        })
    })?;
    Ok(())
}

/// It asks us for its secrets too: that is shown, and nothing is late for it.
fn its_secrets_are_shown_and_late_for_nobody(plane: &ControlPlane) -> Result<()> {
    let nodes = plane.nodes()?;
    let types = nodes
        .pointer("/nodes/0/types")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let asked: Vec<_> = types
        .filter_map(|one| Some((one.get("type")?.as_str()?, one.get("served")?.as_bool()?)))
        .collect();
    let expected = [
        ("Cluster", true),
        ("ClusterLoadAssignment", true),
        ("Listener", true),
        ("RouteConfiguration", true),
        ("Secret", false),
    ];
    assert_eq!(asked, expected, "{nodes}");
    let metrics = plane.metrics()?;
    for late in ["behind", "unacknowledged", "rejecting"] {
        let line = format!("zeugma_xds_{late} 0");
        assert!(metrics.lines().any(|one| one == line), "{metrics}");
    }
    Ok(())
}

fn envoy_is_served(test: &str, api_type: &str) -> Result<()> {
    let folder = folder(test)?;
    let (near, far) = (service("near", &folder)?, service("far", &folder)?);
    let (near_port, far_port) = (near.address.port(), far.address.port());
    let failing =
        "  health: { passive: { consecutive: 1, on: [connect, reset, 503], eject: 300s } }\n";
    let both = [("eu-1", near_port), ("eu-2", far_port)];
    let orders = route("orders", &both, failing);
    let plane = ControlPlane::start(&folder, &[("orders", orders)])?;
    let values = Values::from([
        ("api_type", api_type.to_owned()),
        ("xds_port", plane.listens.port().to_string()),
    ]);
    let envoy = Envoy::start("envoy", Template::Ads, &values, &folder)?;
    is_ready_at_once(&envoy)?;
    becomes("200 from near", || body(&envoy))?;
    assert_eq!(plane.rejected()?, Vec::<String>::new());
    // P48.
    becomes("all taken", || {
        let status = plane.status()?;
        let is_taken =
            |line: &&str| line.starts_with("east-gw ") && line.ends_with(" SYNCED ACKED");
        // Clusters, endpoints, listeners and routes, and nothing that it does not take.
        let taken = status.lines().filter(is_taken).count();
        Ok(if (taken, status.lines().count()) == (4, 4) {
            "all taken".to_owned()
        } else {
            status
        })
    })?;
    its_secrets_are_shown_and_late_for_nobody(&plane)?;
    // P47: what is carried is said every 10 s, from when Envoy was first asked for it.
    becomes("shop/orders carried", || {
        body(&envoy)?;
        let nodes = plane.nodes()?;
        let load = nodes.pointer("/load").and_then(Value::as_array);
        let is_it = |one: &&Value| {
            one.pointer("/cluster") == Some(&json!("outbound|shop/orders:80"))
                && one.pointer("/succeeded").and_then(Value::as_u64) > Some(0)
        };
        Ok(match load.into_iter().flatten().find(is_it) {
            Some(_) => "shop/orders carried".to_owned(),
            None => nodes.to_string(),
        })
    })?;
    drop(near);
    becomes("200 from far", || body(&envoy))?;
    let third = service("third", &folder)?;
    let both = [("eu-1", third.address.port()), ("eu-2", far_port)];
    plane.write("orders", &route("orders", &both, failing))?;
    becomes("200 from third", || body(&envoy))?;
    // A service more, and one less.
    plane.write("carts", &route("carts", &[("eu-1", far_port)], ""))?;
    let carts = "carts.shop.svc.clusterset.local";
    becomes("200 from far", || {
        let answer = curl::get_host(envoy.address, carts, "/", Version::H1)?;
        Ok(format!("{} {}", answer.status, answer.body))
    })?;
    fs::remove_file(plane.config.join("carts.yaml"))?;
    becomes("404", || {
        let answer = curl::get_host(envoy.address, carts, "/", Version::H1)?;
        Ok(answer.status.to_string())
    })?;
    assert_eq!(plane.rejected()?, Vec::<String>::new());
    // P38.
    drop(plane.process);
    assert_eq!(body(&envoy)?, "200 from third");
    Ok(())
}

#[test]
fn envoy_is_served_by_what_changed() -> Result<()> {
    envoy_is_served("envoy_is_served_by_what_changed", "DELTA_GRPC")
}

#[test]
fn envoy_is_served_by_the_state_of_the_world() -> Result<()> {
    envoy_is_served("envoy_is_served_by_the_state_of_the_world", "GRPC")
}
