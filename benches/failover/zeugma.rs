//! Our own gateway's documents.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::gateway::{Exit, Ways};
use crate::ports::free_port;
use crate::site::{CLUSTERS, Site, zeugma};

/// The gateway that callers call.
pub(crate) fn entry(
    site: &Site,
    folder: &Path,
    listen: SocketAddr,
    ways: &Ways<'_>,
) -> Result<Command> {
    let listener = format!("apps: {{ address: '{listen}', role: workloads }}");
    let mut text = gateway(site, folder, 0, &listener)?;
    text.push_str(&decisive(ways));
    command(folder, &text)
}

/// What decides how it fails over.
pub(crate) fn decisive(ways: &Ways<'_>) -> String {
    let mut text = String::new();
    for (nth, address) in ways.remote.iter().enumerate() {
        text.push_str(&peer(CLUSTERS[nth + 1], *address));
    }
    let mut backends = String::new();
    if !ways.local.is_empty() {
        let local: Vec<_> = ways.local.iter().map(|one| format!("'{one}'")).collect();
        write!(backends, "{{ endpoints: [{}] }}, ", local.join(", ")).ok();
    }
    let peers: Vec<_> = (1..=ways.remote.len())
        .map(|nth| format!("{{ peer: {} }}", CLUSTERS[nth]))
        .collect();
    backends.push_str(&peers.join(", "));
    let order = if ways.local.is_empty() {
        "  failover: { order: [{ cluster: west }, { cluster: north }] }\n"
    } else {
        ""
    };
    text.push_str(&route(&format!(
        "  backends: [{backends}]\n  allow: [{{ listeners: [apps] }}]\n{order}"
    )));
    text
}

/// The gateway of another cluster, before its endpoint.
pub(crate) fn exit(site: &Site, folder: &Path, exit: Exit) -> Result<Command> {
    let listener = format!("mesh: {{ address: '{}', role: mesh }}", exit.listen);
    let mut text = gateway(site, folder, exit.cluster, &listener)?;
    // It is never called from here.
    text.push_str(&peer("east", SocketAddr::from(([127, 0, 0, 1], 9))));
    text.push_str(&route(&format!(
        "  backends: [{{ endpoints: ['{}'], version: h1 }}]
  allow: [{{ from: ['spiffe://east.example/*'] }}]
  export: {{ to: [east] }}
",
        exit.endpoint
    )));
    command(folder, &text)
}

fn gateway(site: &Site, folder: &Path, cluster: usize, listener: &str) -> Result<String> {
    let state = folder.join("state");
    fs::create_dir(&state)?;
    let name = CLUSTERS[cluster];
    let svid = &site.gateways[cluster];
    Ok(format!(
        "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: {{ name: {name} }}
spec:
  trustDomain: {name}.example
  cluster: {name}
  locality: {name}/{name}-1
  svid: {{ files: {{ certificate: '{}', key: '{}', bundles: '{}' }} }}
  listeners:
    {listener}
  admin: '{}'
  probes: '{}'
  metrics: '{}'
  stateDir: '{}'
",
        svid.certificate.display(),
        svid.key.display(),
        site.bundles.display(),
        free_port()?,
        free_port()?,
        free_port()?,
        state.display(),
    ))
}

fn peer(cluster: &str, gateway: SocketAddr) -> String {
    format!(
        "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: {{ name: {cluster} }}
spec:
  cluster: {cluster}
  locality: {cluster}/{cluster}-1
  gateways: ['{gateway}']
  spiffeIDs: ['spiffe://{cluster}.example/zeugma/gateway']
"
    )
}

fn route(spec: &str) -> String {
    format!(
        "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: svc, namespace: bench }}
spec:
  protocol: http
{spec}"
    )
}

fn command(folder: &Path, text: &str) -> Result<Command> {
    let config = folder.join("mesh.yaml");
    fs::write(&config, text)?;
    let mut command = Command::new(zeugma());
    command.arg("gateway").arg("--config").arg(config);
    Ok(command)
}
