//! One or two clusters, each a real gateway process, for the tests of the data path.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use serde_json::Value;
use tempfile::TempDir;

use crate::data_client::{self, Answer};
use crate::data_services::{WITHIN, within};
use crate::pki::{Domain, Root, Svid};
use crate::support::process::Process;

/// The host of the route `hello` in `demo`.
pub(crate) const HELLO: &str = "hello.demo.svc.clusterset.local";

/// What a gateway is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) locality: &'static str,
    /// Added to the `spec` of its MeshGateway, indented by two.
    pub(crate) spec: &'static str,
}

pub(crate) const EAST: Cluster = Cluster {
    name: "east",
    locality: "eu/eu-1/rack-a",
    spec: "",
};
pub(crate) const WEST: Cluster = Cluster {
    name: "west",
    locality: "us/us-1/rack-a",
    spec: "",
};

/// The certificates of every test: one root, a trust domain for each cluster.
pub(crate) struct Pki {
    folder: TempDir,
    domains: Vec<Domain>,
}

/// The certificates, made once.
pub(crate) fn pki() -> &'static Pki {
    static PKI: OnceLock<Pki> = OnceLock::new();
    PKI.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path()).unwrap();
        let domains = ["east.example", "west.example"].map(|name| root.domain(name).unwrap());
        for domain in &domains {
            domain.svid("/zeugma/gateway").unwrap();
        }
        Pki {
            folder,
            domains: domains.into(),
        }
    })
}

impl Pki {
    fn domain(&self, cluster: &str) -> &Domain {
        let name = format!("{cluster}.example");
        self.domains.iter().find(|one| one.name() == name).unwrap()
    }

    /// A workload's SVID; the path is unique in all tests.
    pub(crate) fn workload(&self, cluster: &str, path: &str) -> Svid {
        self.domain(cluster).svid(path).unwrap()
    }

    /// The anchor of a cluster's trust domain.
    pub(crate) fn anchor(&self, cluster: &str) -> &Path {
        &self.domain(cluster).anchor
    }

    fn gateway(&self, cluster: &str) -> (String, String) {
        let stem = format!("{cluster}.example-zeugma-gateway");
        let file = |end| self.folder.path().join("pki").join(format!("{stem}.{end}"));
        (
            fs::read_to_string(file("crt")).unwrap(),
            fs::read_to_string(file("key")).unwrap(),
        )
    }
}

/// A gateway's addresses, chosen before it runs: an own loopback address, which nobody else uses.
#[derive(Debug)]
pub(crate) struct Place {
    cluster: Cluster,
    ip: Ipv4Addr,
    pub(crate) apps: SocketAddr,
    pub(crate) mesh: SocketAddr,
    admin: SocketAddr,
    folder: TempDir,
}

impl Place {
    pub(crate) fn new(cluster: Cluster) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let nth = NEXT.fetch_add(1, Ordering::Relaxed) + 1;
        let [_, _, _, nth] = nth.to_be_bytes();
        // 127/8 is loopback throughout (RFC 1122 §3.2.1.3).
        let ip = Ipv4Addr::new(127, nth.max(1), high, low);
        let place = Self {
            cluster,
            ip,
            apps: free(ip),
            mesh: free(ip),
            admin: free(ip),
            folder: tempfile::tempdir().unwrap(),
        };
        place.write_certificates();
        place
    }

    /// An address of its own that nothing listens on.
    pub(crate) fn free(&self) -> SocketAddr {
        free(self.ip)
    }

    fn write_certificates(&self) {
        let folder = self.folder.path();
        let (certificate, key) = pki().gateway(self.cluster.name);
        fs::write(folder.join("gw.pem"), certificate).unwrap();
        let key_path = folder.join("gw.key");
        fs::write(&key_path, key).unwrap();
        fs::set_permissions(key_path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(folder.join("bundles")).unwrap();
        for domain in &pki().domains {
            let bundle = folder.join(format!("bundles/{}.pem", domain.name()));
            fs::copy(&domain.anchor, bundle).unwrap();
        }
    }

    /// Writes one more document, or another version of it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let next = self.folder.path().join(format!(".{name}.next"));
        fs::write(&next, text).unwrap();
        fs::rename(next, self.folder.path().join(name)).unwrap();
    }

    /// The MeshPeer by which another gateway knows this one.
    pub(crate) fn as_peer(&self) -> String {
        let Cluster { name, locality, .. } = self.cluster;
        let mesh = self.mesh;
        format!(
            "apiVersion: zeugma.dev/v1alpha1\nkind: MeshPeer\nmetadata: {{ name: {name} }}\nspec:\n  \
             cluster: {name}\n  locality: {locality}\n  gateways: [\"{mesh}\"]\n  \
             spiffeIDs: [\"spiffe://{name}.example/zeugma/gateway\"]\n  attests: [{name}.example]\n"
        )
    }

    /// Writes its MeshGateway; `listeners` are lines indented by four.
    pub(crate) fn write_gateway(&self, listeners: &str) {
        let Self {
            cluster:
                Cluster {
                    name,
                    locality,
                    spec,
                },
            apps,
            mesh,
            admin,
            ..
        } = self;
        let (probes, metrics) = (free(self.ip), free(self.ip));
        let spec = if spec.contains("drain") {
            (*spec).to_owned()
        } else {
            format!("{spec}  drain: {{ delay: 0s, timeout: 5s }}\n")
        };
        self.write(
            "gateway.yaml",
            &format!(
                "apiVersion: zeugma.dev/v1alpha1\nkind: MeshGateway\nmetadata: {{ name: {name}-gw }}\n\
                 spec:\n  trustDomain: {name}.example\n  cluster: {name}\n  locality: {locality}\n  \
                 svid: {{ files: {{ certificate: gw.pem, key: gw.key, bundles: bundles/ }} }}\n  \
                 listeners:\n    mesh: {{ address: \"{mesh}\", role: mesh }}\n    \
                 apps: {{ address: \"{apps}\", role: workloads, sources: [\"127.0.0.0/8\"] }}\n{listeners}  \
                 admin: \"{admin}\"\n  probes: \"{probes}\"\n  metrics: \"{metrics}\"\n  workers: 2\n{spec}"
            ),
        );
    }

    /// Starts the gateway.
    pub(crate) fn start(self) -> Gateway {
        let config = self.folder.path().to_owned();
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command.args(["gateway", "--config"]).arg(config);
        command.env("ZEUGMA_LOG", "info");
        // Its log is no part of its configuration.
        let logs = tempfile::tempdir().unwrap();
        let process = Process::start(self.cluster.name, &mut command, logs.path()).unwrap();
        process.wait_for_text("gateway ready").unwrap();
        Gateway {
            place: self,
            process: Arc::new(process),
            _logs: logs,
        }
    }
}

fn free(ip: Ipv4Addr) -> SocketAddr {
    TcpListener::bind((ip, 0)).unwrap().local_addr().unwrap()
}

/// A running gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) place: Place,
    pub(crate) process: Arc<Process>,
    _logs: TempDir,
}

impl Gateway {
    /// A cluster of its own, with these routes.
    pub(crate) fn alone(routes: &str) -> Self {
        let place = Place::new(EAST);
        place.write_gateway("");
        place.write("routes.yaml", routes);
        place.start()
    }

    /// Where workloads connect.
    pub(crate) fn apps(&self) -> SocketAddr {
        self.place.apps
    }

    /// One GET of `path` from the route `hello`, on a connection of its own.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        data_client::get(self.apps(), HELLO, path).await
    }

    /// Waits for an access-log line, written before or after this call.
    pub(crate) async fn log(
        &self,
        what: &'static str,
        is_it: impl Fn(&Value) -> bool + Send + 'static,
    ) -> Value {
        let process = Arc::clone(&self.process);
        let waiting = tokio::task::spawn_blocking(move || {
            process.wait_for(what, |line| {
                serde_json::from_str::<Value>(line)
                    .ok()
                    .filter(|line| is_it(line))
            })
        });
        waiting.await.unwrap().unwrap()
    }

    /// The access-log line of the request with this ID.
    pub(crate) async fn request(&self, id: &str) -> Value {
        let id = id.to_owned();
        self.log("the request's line", move |line| line["request.id"] == *id)
            .await
    }

    /// Waits for a line on standard error.
    pub(crate) async fn says(&self, text: &'static str) -> String {
        let process = Arc::clone(&self.process);
        let waiting = tokio::task::spawn_blocking(move || process.wait_for_text(text));
        waiting.await.unwrap().unwrap()
    }

    async fn admin(&self, path: &str) -> String {
        let answer = data_client::get(self.place.admin, "admin", path).await;
        answer.text()
    }

    /// What `/clusters` says of the cluster that workloads' traffic for a route goes to.
    pub(crate) async fn cluster(&self, route: &str) -> Value {
        let all: Value = serde_json::from_str(&self.admin("/clusters").await).unwrap();
        let clusters = all["clusters"].as_object().unwrap();
        let found = clusters
            .iter()
            .filter(|(name, _)| name.contains(route) && !name.contains("own"))
            .max_by_key(|(_, cluster)| cluster["levels"].as_array().unwrap().len());
        found
            .unwrap_or_else(|| panic!("{route} in {all}"))
            .1
            .clone()
    }

    /// Waits until `is_it` of what `/clusters` says of a route.
    pub(crate) async fn until(
        &self,
        route: &str,
        what: &str,
        is_it: impl Fn(&Value) -> bool,
    ) -> Value {
        let began = std::time::Instant::now();
        loop {
            let cluster = self.cluster(route).await;
            if is_it(&cluster) {
                return cluster;
            }
            assert!(
                began.elapsed() < WITHIN,
                "not within {WITHIN:?}: {what}; {cluster}"
            );
        }
    }

    /// The sum of a counter over all its labels that hold every text of `labels`.
    pub(crate) async fn counted(&self, metric: &str, labels: &[&str]) -> f64 {
        let text = self.admin("/metrics").await;
        text.lines()
            .filter(|line| line.starts_with(&format!("zeugma_{metric}_total")))
            .filter(|line| labels.iter().all(|label| line.contains(label)))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Waits until a counter is at least `least`.
    pub(crate) async fn until_counted(&self, metric: &str, labels: &[&str], least: f64) {
        let waiting = async { while self.counted(metric, labels).await < least {} };
        within(metric, waiting).await;
    }

    /// Asks it to drain and end.
    pub(crate) fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(self.process.pid().cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }
}

/// Two clusters that are each other's peer.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) east: Gateway,
    pub(crate) west: Gateway,
}

impl Pair {
    /// Starts both; the texts are their routes.
    pub(crate) fn new(east: &str, west: &str) -> Self {
        Self::with(Place::new(EAST), Place::new(WEST), (east, ""), (west, ""))
    }

    /// Starts both, with routes and further listeners for each.
    pub(crate) fn with(
        east: Place,
        west: Place,
        of_east: (&str, &str),
        of_west: (&str, &str),
    ) -> Self {
        east.write("peer.yaml", &west.as_peer());
        west.write("peer.yaml", &east.as_peer());
        for (place, (routes, listeners)) in [(&east, of_east), (&west, of_west)] {
            place.write_gateway(listeners);
            place.write("routes.yaml", routes);
        }
        let west = west.start();
        Self {
            east: east.start(),
            west,
        }
    }
}

/// A route's document: name, `spec` lines, each indented by two.
pub(crate) fn route(name: &str, spec: &[&str]) -> String {
    let mut text = format!(
        "---\napiVersion: zeugma.dev/v1alpha1\nkind: MeshRoute\n\
         metadata: {{ name: {name}, namespace: demo }}\nspec:\n"
    );
    for line in spec {
        text.push_str("  ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Who may call: everybody, in both roles. For a cluster that has a peer.
pub(crate) const OPEN_HTTP: &[&str] = &[
    "protocol: http",
    "allow: [{ listeners: [apps] }, { from: [\"spiffe://east.example/*\", \"spiffe://west.example/*\"] }]",
    "export: { to: [\"*\"] }",
];

/// An HTTP route that everybody may call; further lines of its `spec`.
pub(crate) fn http_route(name: &str, spec: &[&str]) -> String {
    route(name, &[OPEN_HTTP, spec].concat())
}

/// `endpoints: [...]` of addresses.
pub(crate) fn endpoints(addresses: &[SocketAddr]) -> String {
    let all: Vec<_> = addresses.iter().map(|one| format!("\"{one}\"")).collect();
    format!("endpoints: [{}]", all.join(", "))
}
