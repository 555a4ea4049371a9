//! Our own gateway: the mesh listener for TLS, the apps listener for plaintext HTTP.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;

use super::{Peer, Plan, Site, Work, free_port, text};

/// The one place where a measured gateway's configuration is made.
pub(super) fn plan(site: &Site, work: Work, folder: &Path) -> Result<Plan> {
    let bundles = folder.join("bundles");
    fs::create_dir(&bundles)?;
    // Both know each other; only one that takes requests in for the other ever calls it.
    let (own, other, svid, gateway) = match work {
        Work::Entry { exit } => ("west", "east", &site.entry, exit.to_string()),
        Work::Passthrough { .. }
        | Work::Terminate
        | Work::Originate
        | Work::Http1
        | Work::Http2
        | Work::Http2ToHttp1
        | Work::Exit => ("east", "west", &site.gateway, "127.0.0.1:9".to_owned()),
    };
    fs::copy(&svid.certificate, folder.join("gw.pem"))?;
    fs::copy(&svid.key, folder.join("gw.key"))?;
    fs::copy(&site.east.anchor, bundles.join("east.example.pem"))?;
    fs::copy(&site.west.anchor, bundles.join("west.example.pem"))?;
    let (mesh, apps) = (free_port()?, free_port()?);
    let state = folder.join("state");
    fs::create_dir(&state)?;
    let mut documents = format!(
        "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: {{ name: {own}-gw }}
spec:
  trustDomain: {own}.example
  cluster: {own}
  locality: {own}/{own}-1
  svid: {{ files: {{ certificate: gw.pem, key: gw.key, bundles: bundles/ }} }}
  listeners:
    mesh: {{ address: '{mesh}', role: mesh }}
    apps: {{ address: '{apps}', role: workloads }}
  admin: '{}'
  probes: '{}'
  metrics: '{}'
  workers: 1
  drain: {{ delay: 0s, timeout: 1s }}
  stateDir: '{}'
---
apiVersion: zeugma.dev/v1alpha1
kind: MeshPeer
metadata: {{ name: {other} }}
spec:
  cluster: {other}
  locality: {other}/{other}-1
  gateways: ['{gateway}']
  spiffeIDs: ['spiffe://{other}.example/zeugma/gateway']
  sources: ['127.0.0.1/32']
",
        free_port()?,
        free_port()?,
        free_port()?,
        text(&state),
    );
    for route in 0..work.routes() {
        write!(
            documents,
            "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: svc-{route}, namespace: bench }}
spec:
{}",
            route_spec(site, work)
        )?;
    }
    fs::write(folder.join("mesh.yaml"), documents)?;
    Ok(Plan {
        program: site.program(Peer::Zeugma)?,
        arguments: ["gateway", "--config", "mesh.yaml"]
            .map(str::to_owned)
            .into(),
        address: match work {
            Work::Passthrough { .. } | Work::Terminate | Work::Originate | Work::Exit => mesh,
            Work::Http1 | Work::Http2 | Work::Http2ToHttp1 | Work::Entry { .. } => apps,
        },
    })
}

fn route_spec(site: &Site, work: Work) -> String {
    let backend = &site.backend;
    match work {
        Work::Passthrough { .. } => format!(
            "  protocol: tcp
  port: 443
  backends: [{{ endpoints: ['{}'], tls: workload }}]
  allow: [{{ listeners: [mesh] }}]
  export: {{ to: [west] }}
  timeouts: {{ connect: 5s }}
",
            backend.hello
        ),
        Work::Terminate => format!(
            "  protocol: tcp
  port: 443
  backends: [{{ endpoints: ['{}'] }}]
  allow: [{{ from: ['spiffe://west.example/*'] }}]
  export: {{ to: [west] }}
  timeouts: {{ connect: 5s }}
",
            backend.plain
        ),
        Work::Originate => format!(
            "  protocol: tcp
  port: 443
  backends: [{{ endpoints: ['{}'], tls: mesh, spiffeIDs: ['{}'] }}]
  allow: [{{ from: ['spiffe://west.example/*'] }}]
  export: {{ to: [west] }}
  timeouts: {{ connect: 5s }}
",
            backend.tls, site.service.id
        ),
        Work::Exit => format!(
            "  protocol: http
  backends: [{{ endpoints: ['{}'], version: h2 }}]
  allow: [{{ from: ['spiffe://west.example/*'] }}]
  export: {{ to: [west] }}
  timeouts: {{ connect: 5s }}
",
            backend.http2
        ),
        Work::Entry { .. } => "  protocol: http
  backends: [{ peer: east }]
  allow: [{ listeners: [apps] }]
  timeouts: { connect: 5s }
"
        .to_owned(),
        Work::Http1 | Work::Http2 | Work::Http2ToHttp1 => {
            let (endpoint, version) = if work == Work::Http2 {
                (backend.http2, "h2")
            } else {
                (backend.http1, "h1")
            };
            format!(
                "  protocol: http
  backends: [{{ endpoints: ['{endpoint}'], version: {version} }}]
  allow: [{{ listeners: [apps] }}]
  timeouts: {{ connect: 5s }}
"
            )
        }
    }
}
