//! HAProxy with one thread.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Result, bail};

use super::{Carries, Peer, Plan, Site, Work, free_port, host, text};

/// TLS 1.3, X25519, AES-128-GCM, no tickets.
const BIND_TLS: &str = "ssl-min-ver TLSv1.3 curves X25519 ciphersuites TLS_AES_128_GCM_SHA256 \
                        no-tls-tickets verify required";
/// OpenSSL 3.0 offers X25519 first and sends a share for it alone.
const SERVER_TLS: &str =
    "ssl-min-ver TLSv1.3 ciphersuites TLS_AES_128_GCM_SHA256 no-ssl-reuse verify required";

pub(super) fn plan(site: &Site, work: Work, folder: &Path) -> Result<Plan> {
    let address = free_port()?;
    let mode = match work {
        Work::Entry { .. } | Work::Exit => bail!("it does not stand between two clusters here"),
        Work::Http1 | Work::Http2 | Work::Http2ToHttp1 => "mode http\n  option httplog",
        // Left to itself it splices hardly anything of what bulk there is on loopback; told to, it
        // does, at two thirds of the cost, but then each connection costs a sixth more.
        Work::Passthrough {
            carries: Carries::Bulk,
            ..
        } => "mode tcp\n  option tcplog\n  option splice-request\n  option splice-response",
        Work::Passthrough { .. } | Work::Terminate | Work::Originate => {
            "mode tcp\n  option tcplog\n  option splice-auto"
        }
    };
    let mut config = format!(
        "global
  nbthread 1
  maxconn 6000
  tune.ssl.cachesize 0
  log stdout format raw local0 info
defaults
  log global
  {mode}
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend in
"
    );
    let backend = &site.backend;
    let tls = format!(
        "ssl crt {} ca-file {} {BIND_TLS}",
        text(&site.gateway.both),
        text(&site.west.anchor)
    );
    let server = match work {
        Work::Passthrough { routes, .. } => {
            config.push_str(&passthrough(site, routes, address, folder)?);
            fs::write(folder.join("haproxy.cfg"), config)?;
            return finish(site, address);
        }
        Work::Terminate => {
            writeln!(config, "  bind {address} {tls}")?;
            backend.plain.to_string()
        }
        Work::Originate => {
            writeln!(config, "  bind {address} {tls}")?;
            format!(
                "{} ssl crt {} ca-file {} {SERVER_TLS} sni str({name}) verifyhost {name}",
                backend.tls,
                text(&site.gateway.both),
                text(&site.east.anchor),
                name = host(0)
            )
        }
        Work::Http1 => {
            writeln!(config, "  bind {address}")?;
            backend.http1.to_string()
        }
        Work::Http2 => {
            writeln!(config, "  bind {address} proto h2")?;
            format!("{} proto h2", backend.http2)
        }
        Work::Http2ToHttp1 => {
            writeln!(config, "  bind {address} proto h2")?;
            backend.http1.to_string()
        }
        Work::Entry { .. } | Work::Exit => bail!("it does not stand between two clusters here"),
    };
    write!(
        config,
        "  default_backend be\nbackend be\n  server s {server}\n"
    )?;
    fs::write(folder.join("haproxy.cfg"), config)?;
    finish(site, address)
}

/// The body of the frontend, and a backend for each route.
fn passthrough(site: &Site, routes: usize, address: SocketAddr, folder: &Path) -> Result<String> {
    let mut map = String::new();
    for route in 0..routes {
        writeln!(map, "{} be-{route}", host(route))?;
    }
    fs::write(folder.join("hosts.map"), map)?;
    let mut config = format!(
        "  bind {address}
  tcp-request inspect-delay 5s
  tcp-request content accept if {{ req.ssl_hello_type 1 }}
  use_backend %[req.ssl_sni,lower,map({}/hosts.map)]
",
        text(folder)
    );
    for route in 0..routes {
        write!(
            config,
            "backend be-{route}\n  server s {}\n",
            site.backend.hello
        )?;
    }
    Ok(config)
}

fn finish(site: &Site, address: SocketAddr) -> Result<Plan> {
    Ok(Plan {
        program: site.program(Peer::Haproxy)?,
        // Neither a master process nor the background.
        arguments: ["-db", "-f", "haproxy.cfg"].map(str::to_owned).into(),
        address,
    })
}
