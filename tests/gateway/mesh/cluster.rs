//! A cluster: a folder of YAML and certificates, addresses, and the gateways started from it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::net::TcpSocket;
use zeugma_proxy::tls::SvidFiles;

use super::ca::Ca;
use super::namespace::Link;
use super::{Gateway, Identity};

/// What [`Cluster::write_token`] writes.
pub(crate) const TOKEN: &str = "0123456789abcdef";

/// A cluster of the trust domain `<name>.example` in the locality `<name>/<name>-1`.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) name: &'static str,
    pub(crate) ca: Arc<Ca>,
    /// The mesh listener, where other clusters call.
    pub(crate) mesh: SocketAddr,
    /// The apps listener, where workloads call.
    pub(crate) apps: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) probes: SocketAddr,
    pub(crate) metrics: SocketAddr,
    listeners: BTreeMap<String, String>,
    settings: BTreeMap<String, String>,
    /// What else stands in `svid.files`.
    more_files: String,
    /// What stands in `svid` in place of files.
    svid: Option<String>,
    identities: usize,
    ports: Vec<TcpSocket>,
    folder: TempDir,
}

impl Cluster {
    /// A cluster alone: its gateway's certificate, its own bundle, no routes.
    pub(crate) fn new(name: &'static str) -> Self {
        Self::of(name, Ca::shared())
    }

    /// A cluster whose certificates are of another CA.
    pub(crate) fn of(name: &'static str, ca: Arc<Ca>) -> Self {
        let mut ports = Vec::new();
        let [mesh, apps, admin, probes, metrics] = [(); 5].map(|()| reserve(&mut ports));
        let mut this = Self {
            name,
            ca,
            mesh,
            apps,
            admin,
            probes,
            metrics,
            listeners: BTreeMap::new(),
            settings: BTreeMap::new(),
            more_files: String::new(),
            svid: None,
            identities: 0,
            ports,
            folder: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(this.config()).unwrap();
        this.renew();
        this.trust(&this.trust_domain());
        this.set("drain", "{ delay: 0s, timeout: 5s }");
        this.set("workers", "2");
        this.set("stateDir", "state");
        this.set("locality", &format!("{name}/{name}-1"));
        this.listeners.insert(
            "mesh".to_owned(),
            format!("{{ address: '{mesh}', role: mesh }}"),
        );
        this.listeners.insert(
            "apps".to_owned(),
            format!("{{ address: '{apps}', role: workloads }}"),
        );
        this
    }

    pub(crate) fn trust_domain(&self) -> String {
        format!("{}.example", self.name)
    }

    /// The SPIFFE ID of its gateways.
    pub(crate) fn gateway_id(&self) -> String {
        format!("spiffe://{}/zeugma/gateway", self.trust_domain())
    }

    /// What `--config` is: YAML documents, `gw.pem`, `gw.key`, `bundles/`.
    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("config")
    }

    /// Where the gateway reads its certificate.
    pub(crate) fn svid(&self) -> SvidFiles {
        let config = self.config();
        SvidFiles {
            certificate: config.join("gw.pem"),
            key: config.join("gw.key"),
            bundles: config.join("bundles"),
            crls: None,
            denied: None,
            domains: Vec::new(),
            own: None,
        }
    }

    /// Gives the gateway a new key and certificate; returns its serial.
    pub(crate) fn renew(&self) -> String {
        let files = self.svid();
        self.ca
            .issue(&self.gateway_id(), &files.certificate, &files.key)
    }

    /// Writes the bundle of a trust domain of the cluster's CA.
    pub(crate) fn trust(&self, domain: &str) {
        self.ca.write_bundle(domain, &self.svid().bundles);
    }

    /// Makes two clusters peers of each other: bundles and `MeshPeer` documents.
    pub(crate) fn meet(&self, other: &Self) {
        for (here, there) in [(self, other), (other, self)] {
            there
                .ca
                .write_bundle(&there.trust_domain(), &here.svid().bundles);
            here.peer(
                there.name,
                &format!(
                    "
                    cluster: {name}
                    locality: {name}/{name}-1
                    gateways: ['{mesh}']
                    spiffeIDs: ['{id}']",
                    name = there.name,
                    mesh = there.mesh,
                    id = there.gateway_id(),
                ),
            );
        }
    }

    /// Writes a `MeshPeer` with these lines of `spec`.
    pub(crate) fn peer(&self, name: &str, spec: &str) {
        self.document(
            "MeshPeer",
            &format!("{{ name: {name} }}"),
            &format!("peer-{name}"),
            spec,
        );
    }

    /// Writes the `MeshRoute` `namespace/name` with these lines of `spec`.
    pub(crate) fn route(&self, reference: &str, spec: &str) {
        let (namespace, name) = reference.split_once('/').unwrap();
        let metadata = format!("{{ name: {name}, namespace: {namespace} }}");
        self.document("MeshRoute", &metadata, &format!("{namespace}-{name}"), spec);
    }

    fn document(&self, kind: &str, metadata: &str, file: &str, spec: &str) {
        let text = format!(
            "apiVersion: zeugma.dev/v1alpha1\nkind: {kind}\nmetadata: {metadata}\nspec:\n{}",
            indented(spec)
        );
        self.write(&format!("{file}.yaml"), &text);
    }

    /// Replaces a file of the configuration at once, as an editor or a deployment does.
    pub(crate) fn write(&self, file: &str, text: &str) {
        let next = self.folder.path().join("next");
        fs::write(&next, text).unwrap();
        fs::rename(&next, self.config().join(file)).unwrap();
    }

    /// Sets a field of the `MeshGateway`'s `spec`; written when the gateway starts, or by
    /// [`write_gateway`](Self::write_gateway).
    pub(crate) fn set(&mut self, field: &str, value: &str) {
        self.settings.insert(field.to_owned(), value.to_owned());
    }

    /// Adds to `svid.files`.
    pub(crate) fn trusting(&mut self, files: &str) {
        self.more_files = format!(", {files}");
    }

    /// Where an agent of this cluster listens, unless a test says otherwise.
    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.folder.path().join("agent.sock")
    }

    /// Has the gateway ask the agent at this address for its certificate; files it is again for `None`.
    pub(crate) fn ask_agent(&mut self, address: Option<&str>) {
        self.svid = address.map(|address| format!("workloadApi: '{address}'"));
    }

    /// Has the gateway ask a secret discovery service by these fields for its certificate.
    pub(crate) fn ask_secrets(&mut self, fields: &str) {
        self.svid = Some(format!("sds: {{ {fields} }}"));
    }

    /// Adds a listener with these further fields; returns its address.
    pub(crate) fn listen(&mut self, name: &str, fields: &str) -> SocketAddr {
        let address = reserve(&mut self.ports);
        self.listeners.insert(
            name.to_owned(),
            format!("{{ address: '{address}', {fields} }}"),
        );
        address
    }

    /// Sets the fields of a listener that is there, its address excepted.
    pub(crate) fn relisten(&mut self, name: &str, address: SocketAddr, fields: &str) {
        self.listeners.insert(
            name.to_owned(),
            format!("{{ address: '{address}', {fields} }}"),
        );
    }

    /// Removes a listener.
    pub(crate) fn unlisten(&mut self, name: &str) {
        self.listeners.remove(name).unwrap();
    }

    /// Writes the `MeshGateway`.
    pub(crate) fn write_gateway(&self) {
        // A test of the interface sets its own.
        let admin = match self.settings.get("admin") {
            Some(_) => String::new(),
            None => format!("admin: '{}'\n", self.admin),
        };
        let more = &self.more_files;
        let files =
            format!("files: {{ certificate: gw.pem, key: gw.key, bundles: bundles/{more} }}");
        let mut spec = format!(
            "trustDomain: {domain}\ncluster: {name}\nsvid: {{ {svid} }}\n\
             {admin}probes: '{}'\nmetrics: '{}'\nlisteners:\n",
            self.probes,
            self.metrics,
            domain = self.trust_domain(),
            name = self.name,
            svid = self.svid.as_ref().unwrap_or(&files),
        );
        for (name, fields) in &self.listeners {
            writeln!(spec, "  {name}: {fields}").unwrap();
        }
        for (field, value) in &self.settings {
            writeln!(spec, "{field}: {value}").unwrap();
        }
        let metadata = format!("{{ name: {}-gw }}", self.name);
        self.document("MeshGateway", &metadata, "gateway", &spec);
    }

    /// An identity of this trust domain that trusts what the gateway trusts now, such as
    /// `ns/shop/sa/cart`.
    pub(crate) fn identity(&mut self, path: &str) -> Identity {
        self.identities += 1;
        let folder = self.folder.path().join(format!("id-{}", self.identities));
        fs::create_dir(&folder).unwrap();
        let files = SvidFiles {
            certificate: folder.join("svid.pem"),
            key: folder.join("svid.key"),
            bundles: self.svid().bundles,
            crls: None,
            denied: None,
            domains: Vec::new(),
            own: None,
        };
        let id = format!("spiffe://{}/{path}", self.trust_domain());
        self.ca.issue(&id, &files.certificate, &files.key);
        Identity::load(&files)
    }

    /// The gateway's own identity, in other hands.
    pub(crate) fn gateway_identity(&self) -> Identity {
        Identity::load(&self.svid())
    }

    /// Moves the gateway to the far end of a link, with the near end its only workload; the admin
    /// interface stays on the loopback interface there.
    pub(crate) fn move_over(&mut self, link: &Link) {
        let ip = std::net::IpAddr::V4(link.far);
        for address in [
            &mut self.mesh,
            &mut self.apps,
            &mut self.probes,
            &mut self.metrics,
        ] {
            address.set_ip(ip);
        }
        let (mesh, apps) = (self.mesh, self.apps);
        self.relisten("mesh", mesh, "role: mesh");
        let workloads = format!("role: workloads, sources: ['{}/32']", link.near);
        self.relisten("apps", apps, &workloads);
    }

    /// Starts the gateway in a network namespace and waits until it is ready.
    pub(crate) async fn start_in(&self, namespace: &str) -> Gateway {
        self.start_under(&["ip", "netns", "exec", namespace]).await
    }

    /// Writes [`TOKEN`] to the file `token` of the configuration; returns its path.
    pub(crate) fn write_token(&self) -> PathBuf {
        let path = self.config().join("token");
        fs::write(&path, TOKEN).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// Leaves a field of the `MeshGateway`'s `spec` to its default.
    pub(crate) fn unset(&mut self, field: &str) {
        self.settings.remove(field).unwrap();
    }

    /// Starts the gateway and waits until it is ready.
    pub(crate) async fn start(&self) -> Gateway {
        self.start_under(&[]).await
    }

    /// The same by a command that replaces itself by the one given to it, such as `prlimit`.
    pub(crate) async fn start_under(&self, wrapper: &[&str]) -> Gateway {
        self.write_gateway();
        self.run(Gateway::command_under(wrapper, &self.config()))
            .await
    }

    /// As [`start`](Self::start), by another user, who is given the folder.
    pub(crate) async fn start_as(&self, uid: u32) -> Gateway {
        self.write_gateway();
        give(self.folder.path(), uid);
        let mut command = Gateway::command(&self.config());
        command.uid(uid).gid(uid);
        self.run(command).await
    }

    async fn run(&self, command: Command) -> Gateway {
        Gateway::start(self.name, command, self.probes, self.metrics, self.admin).await
    }

    /// Starts a process of its gateway by this command and waits for nothing.
    pub(crate) fn spawn(&self, command: Command) -> Gateway {
        Gateway::spawn(self.name, command, [self.probes, self.metrics, self.admin])
    }

    /// Starts a process that takes over from the one that runs, and waits until it has.
    pub(crate) async fn take_over(&self) -> Gateway {
        let mut command = Gateway::command(&self.config());
        command.arg("--takeover");
        let next = self.spawn(command);
        next.message("ZG0901 gateway ready").await;
        next
    }
}

/// Gives a folder and all in it to a user.
fn give(path: &Path, uid: u32) {
    chown(path, Some(uid), Some(uid)).unwrap();
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            give(&entry.unwrap().path(), uid);
        }
    }
}

/// Reserves a free port for a process that will bind it.
///
/// The kernel gives a port that is bound to nobody else by itself, while a socket that names it and
/// also has `SO_REUSEADDR`, as a gateway's have, may bind and listen.
fn reserve(ports: &mut Vec<TcpSocket>) -> SocketAddr {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    ports.push(socket);
    address
}

/// Lines as the value of `spec`, whatever the indentation they share.
fn indented(spec: &str) -> String {
    let lines: Vec<&str> = spec
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let shared = lines
        .iter()
        .map(|line| line.len() - line.trim_start().len())
        .min()
        .unwrap_or(0);
    lines
        .iter()
        .map(|line| format!("  {}\n", &line[shared..]))
        .collect()
}
