//! nginx with one worker process; its stream module for everything but HTTP.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::{Peer, Plan, Site, Work, free_port, host, text};

/// Where Debian's libnginx-mod-stream puts it.
pub(super) fn stream_module() -> PathBuf {
    PathBuf::from("/usr/lib/nginx/modules/ngx_stream_module.so")
}

pub(super) fn plan(site: &Site, work: Work, folder: &Path) -> Result<Plan> {
    let address = free_port()?;
    let served = match work {
        Work::Http1 | Work::Http2 | Work::Http2ToHttp1 => {
            http(site, work, address.to_string(), folder)
        }
        Work::Passthrough { routes, .. } => passthrough(site, routes, address.to_string())?,
        Work::Terminate | Work::Originate => tls(site, work, address.to_string()),
        Work::Entry { .. } | Work::Exit => bail!("it does not stand between two clusters here"),
    };
    let user = if rustix::process::geteuid().is_root() {
        // Files of the run are root's then.
        "user root;\n"
    } else {
        ""
    };
    let config = format!(
        "{user}load_module {module};
daemon off;
worker_processes 1;
error_log {folder}/error.log error;
pid {folder}/nginx.pid;
events {{ worker_connections 12000; }}
{served}",
        module = stream_module().display(),
        folder = text(folder),
    );
    fs::write(folder.join("nginx.conf"), config)?;
    let arguments = ["-p", &text(folder), "-c", "nginx.conf", "-e", "stderr"];
    Ok(Plan {
        program: site.program(Peer::Nginx)?,
        arguments: arguments.map(str::to_owned).into(),
        address,
    })
}

const STREAM_LOG: &str = "log_format line '$remote_addr [$time_local] $protocol $status \
    $bytes_sent $bytes_received $session_time \"$upstream_addr\"';
  access_log /dev/null line;
  proxy_timeout 1h;";

fn passthrough(site: &Site, routes: usize, address: String) -> Result<String> {
    let (mut map, mut upstreams) = (String::new(), String::new());
    for route in 0..routes {
        writeln!(map, "    {} up-{route};", host(route))?;
        writeln!(
            upstreams,
            "  upstream up-{route} {{ server {}; }}",
            site.backend.hello
        )?;
    }
    Ok(format!(
        "stream {{
  {STREAM_LOG}
  variables_hash_max_size 2048;
  map_hash_max_size 65536;
  map_hash_bucket_size 128;
  map $ssl_preread_server_name $chosen {{
{map}  }}
{upstreams}  server {{ listen {address} backlog=4096; ssl_preread on; proxy_pass $chosen; }}
}}
"
    ))
}

fn tls(site: &Site, work: Work, address: String) -> String {
    let upstream = if work == Work::Originate {
        format!(
            "proxy_pass {};
    proxy_ssl on;
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    proxy_ssl_conf_command Groups X25519;
    proxy_ssl_certificate {};
    proxy_ssl_certificate_key {};
    proxy_ssl_trusted_certificate {};
    proxy_ssl_verify on;
    proxy_ssl_server_name on;
    proxy_ssl_name {};
    proxy_ssl_session_reuse off;",
            site.backend.tls,
            text(&site.gateway.certificate),
            text(&site.gateway.key),
            text(&site.east.anchor),
            host(0)
        )
    } else {
        format!("proxy_pass {};", site.backend.plain)
    };
    format!(
        "stream {{
  {STREAM_LOG}
  server {{
    listen {address} ssl backlog=4096;
    ssl_protocols TLSv1.3;
    ssl_ecdh_curve X25519;
    ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
    ssl_session_tickets off;
    ssl_session_cache off;
    ssl_certificate {};
    ssl_certificate_key {};
    ssl_client_certificate {};
    ssl_verify_client on;
    {upstream}
  }}
}}
",
        text(&site.gateway.certificate),
        text(&site.gateway.key),
        text(&site.west.anchor),
    )
}

fn http(site: &Site, work: Work, address: String, folder: &Path) -> String {
    let protocol = if work == Work::Http1 { "" } else { " http2" };
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("  {kind}_temp_path {}/{kind};\n", text(folder)))
        .collect();
    format!(
        "http {{
{temporary}  access_log /dev/null combined;
  keepalive_requests 100000000;
  upstream up {{ server {}; keepalive 256; keepalive_requests 100000000; }}
  server {{
    listen {address}{protocol} backlog=4096;
    location / {{
      proxy_pass http://up;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Connection '';
    }}
  }}
}}
",
        site.backend.http1
    )
}
