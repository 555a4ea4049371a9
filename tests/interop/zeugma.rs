//! Our own gateway, as an operator starts it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::curl;
use crate::pki::{Svid, Trust};
use crate::support::process::Process;

/// The host of the route `shop/orders`.
pub(crate) const ORDERS: &str = "orders.shop.svc.clusterset.local";
/// The host of the route `shop/echo`.
pub(crate) const ECHO: &str = "echo.shop.svc.clusterset.local";

/// Where an admin API is that is asked by [`Gateway::admin`].
const SOCKET: &str = "admin.sock";

/// A cluster whose gateway is ours.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster {
    /// Its name, and the first label of its trust domain.
    pub(crate) name: &'static str,
    /// Where it stands.
    pub(crate) locality: &'static str,
}

/// The calling cluster.
pub(crate) const EAST: Cluster = Cluster {
    name: "east",
    locality: "eu/eu-1",
};
/// The called cluster.
pub(crate) const WEST: Cluster = Cluster {
    name: "west",
    locality: "us/us-1",
};

/// What a gateway is started with.
#[derive(Debug)]
pub(crate) struct Setup {
    cluster: Cluster,
    folder: PathBuf,
    documents: String,
}

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    /// Where other clusters connect.
    pub(crate) mesh: SocketAddr,
    /// Where this cluster's workloads connect.
    pub(crate) apps: SocketAddr,
    admin: PathBuf,
    process: Process,
}

impl Setup {
    /// A gateway with this SVID, which trusts these domains.
    pub(crate) fn new(
        folder: &Path,
        cluster: Cluster,
        svid: &Svid,
        trusted: &[&Trust],
    ) -> Result<Self> {
        let folder = folder.join(format!("{}-gw", cluster.name));
        let bundles = folder.join("bundles");
        fs::create_dir_all(&bundles)?;
        fs::copy(&svid.certificate, folder.join("gw.pem"))?;
        fs::copy(&svid.key, folder.join("gw.key"))?;
        for trust in trusted {
            let kind = trust.anchor.extension().unwrap_or_default();
            let file = format!("{}.{}", trust.name, kind.to_string_lossy());
            fs::copy(&trust.anchor, bundles.join(file))?;
        }
        let documents = format!(
            "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: {{ name: {name}-gw }}
spec:
  trustDomain: {name}.example
  cluster: {name}
  locality: {locality}
  svid: {{ files: {{ certificate: gw.pem, key: gw.key, bundles: bundles/ }} }}
  listeners:
    mesh: {{ address: \"127.0.0.1:0\", role: mesh }}
    apps: {{ address: \"127.0.0.1:0\", role: workloads }}
  admin: \"127.0.0.1:0\"
  probes: \"127.0.0.1:0\"
  metrics: \"127.0.0.1:0\"
  stateDir: state
  drain: {{ delay: 0s, timeout: 2s }}
",
            name = cluster.name,
            locality = cluster.locality,
        );
        Ok(Self {
            cluster,
            folder,
            documents,
        })
    }

    /// Has it ask the agent at `socket` for the certificate and the bundles.
    pub(crate) fn agent(mut self, socket: &Path) -> Self {
        let files = "files: { certificate: gw.pem, key: gw.key, bundles: bundles/ }";
        let api = format!("workloadApi: 'unix://{}'", socket.display());
        self.documents = self.documents.replace(files, &api);
        self
    }

    /// Has it ask the secret discovery service at `socket` for them.
    pub(crate) fn secrets(mut self, socket: &Path) -> Self {
        let files = "files: { certificate: gw.pem, key: gw.key, bundles: bundles/ }";
        let sds = format!("sds: {{ address: 'unix://{}' }}", socket.display());
        self.documents = self.documents.replace(files, &sds);
        self
    }

    /// Another cluster, whose gateway is at `address` and must be `id`.
    pub(crate) fn peer(mut self, cluster: Cluster, address: SocketAddr, id: &str) -> Self {
        self.documents.push_str(&format!(
            "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: {{ name: {name} }}
spec:
  cluster: {name}
  locality: {locality}
  gateways: [\"{address}\"]
  spiffeIDs: [\"{id}\"]
",
            name = cluster.name,
            locality = cluster.locality,
        ));
        self
    }

    /// A cluster that only calls us: its gateway's address is never used.
    pub(crate) fn caller(self, cluster: Cluster, id: &str) -> Self {
        self.peer(cluster, SocketAddr::from(([127, 0, 0, 1], 9)), id)
    }

    /// A route of namespace `shop`; `spec` is its YAML, one field a line, not indented.
    pub(crate) fn route(mut self, name: &str, spec: &[&str]) -> Self {
        self.documents.push_str(&format!(
            "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: {name}, namespace: shop }}
spec:
"
        ));
        for field in spec {
            self.documents.push_str(&format!("  {field}\n"));
        }
        self
    }

    /// Another listener.
    pub(crate) fn listener(mut self, name: &str, spec: &str) -> Self {
        let next = format!("  listeners:\n    {name}: {spec}\n");
        self.documents = self.documents.replace("  listeners:\n", &next);
        self
    }

    /// More documents, each after a line `---`.
    pub(crate) fn documents(mut self, yaml: &str) -> Self {
        self.documents.push_str(yaml);
        self
    }

    /// Has its admin API on a socket, where [`Gateway::admin`] asks it.
    pub(crate) fn admin_socket(mut self) -> Self {
        let socket = format!("admin: 'unix:{SOCKET}'");
        self.documents = self.documents.replace("admin: \"127.0.0.1:0\"", &socket);
        self
    }

    /// Writes what an Envoy in its place reads into `folder`; where the bootstrap is.
    pub(crate) fn compile(&self, folder: &Path) -> Result<PathBuf> {
        let output = Command::new(env!("CARGO_BIN_EXE_zeugma"))
            .args(["config", "compile", "--config"])
            .arg(self.write()?)
            .arg("--out")
            .arg(folder)
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.success(),
            "zeugma config compile: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(PathBuf::from(text.trim_end()))
    }

    fn write(&self) -> Result<PathBuf> {
        let config = self.folder.join("mesh.yaml");
        fs::write(&config, &self.documents)?;
        Ok(config)
    }

    /// Starts the gateway and waits until it accepts connections.
    pub(crate) fn start(self) -> Result<Gateway> {
        let config = self.write()?;
        let process = Process::start(
            &format!("{}-gw", self.cluster.name),
            Command::new(env!("CARGO_BIN_EXE_zeugma"))
                .args(["gateway", "--config"])
                .arg(&config)
                .current_dir(&self.folder),
            &self.folder,
        )?;
        let listener = |name: &str| {
            process.wait_for(&format!("where it listens for {name}"), |line| {
                line.contains("gateway ready")
                    .then(|| listens(line, name))
                    .flatten()
            })
        };
        Ok(Gateway {
            mesh: listener("mesh")?,
            apps: listener("apps")?,
            admin: self.folder.join(SOCKET),
            process,
        })
    }
}

impl Gateway {
    /// What its admin API answers, where that is on a socket.
    pub(crate) fn admin(&self, path: &str) -> Result<String> {
        let socket = self.admin.display().to_string();
        let arguments = ["--unix-socket", socket.as_str()];
        Ok(curl::run(&arguments, &format!("http://localhost{path}"))?.body)
    }

    /// Waits until it has applied certificates so many times.
    pub(crate) fn applied(&self, times: usize) -> Result<()> {
        let mut seen = 0;
        self.process.wait_for("another certificate", |line| {
            seen += usize::from(line.contains("ZG0201"));
            (seen == times).then_some(())
        })
    }

    /// Waits for an access-log line that holds all of these texts.
    pub(crate) fn logged(&self, texts: &[&str]) -> Result<String> {
        self.process
            .wait_for(&format!("a line with {texts:?}"), |line| {
                texts
                    .iter()
                    .all(|text| line.contains(text))
                    .then(|| line.to_owned())
            })
    }
}

/// The address of a listener in `listeners=apps 127.0.0.1:4711, mesh 127.0.0.1:4712`.
pub(crate) fn listens(line: &str, name: &str) -> Option<SocketAddr> {
    let (_, listeners) = line.split_once("listeners=")?;
    listeners
        .split(", ")
        .find_map(|listener| listener.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
