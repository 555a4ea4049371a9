//! The clients: our gateway, and Envoy.

use std::fs::{self, File};
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::peers;
use crate::pki::Domain;
use crate::plane::{GATEWAY, gateway};
use crate::ports::free_port;
use crate::process::READY_WITHIN;

/// How often a client is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(5);
const READ_WITHIN: Duration = Duration::from_secs(10);

/// A client of the control plane. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) version: String,
    child: Child,
    probes: SocketAddr,
}

impl Client {
    pub(crate) fn start(name: &str, folder: &Path, plane: SocketAddr) -> Result<Self> {
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        let probes = free_port()?;
        let (program, mut command) = match name {
            "zeugma" => (
                env!("CARGO_BIN_EXE_zeugma").into(),
                zeugma(&folder, plane, probes)?,
            ),
            "envoy" => (peers::envoy()?, envoy(&folder, plane, probes)?),
            other => bail!("no client is called {other}"),
        };
        let log = File::create(folder.join("log"))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self {
            version: version(&program)?,
            child: command.spawn()?,
            probes,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_ready(&self) -> bool {
        get(self.probes, "/ready").is_ok_and(|(status, _)| status == 200)
    }

    pub(crate) fn wait_ready(&self) -> Result<()> {
        let until = Instant::now() + READY_WITHIN;
        while Instant::now() < until {
            if self.is_ready() {
                return Ok(());
            }
            thread::sleep(ASK_EVERY);
        }
        bail!("not ready within {READY_WITHIN:?}")
    }

    /// The most memory that it ever had, in bytes: `VmHWM` of proc_pid_status(5).
    pub(crate) fn memory_peak(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = line.and_then(|rest| rest.split_whitespace().next());
        Ok(kilobytes.context("VmHWM")?.parse::<u64>()? * 1024)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn zeugma(folder: &Path, plane: SocketAddr, probes: SocketAddr) -> Result<Command> {
    let bundles = folder.join("bundles");
    fs::create_dir_all(&bundles)?;
    let domain = Domain::new(folder, "east.example")?;
    fs::copy(&domain.anchor, bundles.join("east.example.pem"))?;
    let svid = domain.svid("/zeugma/gateway", None)?;
    let (state, config) = (folder.join("state"), folder.join("gateway.yaml"));
    fs::create_dir_all(&state)?;
    let files = format!(
        "{{ certificate: '{}', key: '{}', bundles: '{}' }}",
        svid.certificate.display(),
        svid.key.display(),
        bundles.display(),
    );
    let more = format!(
        "  controlPlane: {{ addresses: ['http://{plane}'] }}
  admin: '{}'
  probes: '{probes}'
  metrics: '{}'
  stateDir: '{}'
",
        free_port()?,
        free_port()?,
        state.display(),
    );
    fs::write(&config, gateway(&more, &files))?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
    command.arg("gateway").arg("--config").arg(config);
    Ok(command)
}

fn envoy(folder: &Path, plane: SocketAddr, admin: SocketAddr) -> Result<Command> {
    let address = |address: SocketAddr| {
        let (ip, port) = (address.ip().to_string(), address.port());
        json!({ "socket_address": { "address": ip, "port_value": port } })
    };
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let bootstrap = json!({
        // It has no agent, and would wait 15 s for one.
        "node": {
            "id": GATEWAY,
            "cluster": "east",
            "metadata": { "zeugma.dev/secrets": "none" },
        },
        "admin": { "address": address(admin) },
        "dynamic_resources": {
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": true,
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }],
            },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [{
            "name": "xds",
            "type": "STATIC",
            "connect_timeout": "5s",
            "typed_extension_protocol_options": { options: {
                "@type": format!("type.googleapis.com/{options}"),
                "explicit_http_config": { "http2_protocol_options": {} },
            } },
            "load_assignment": {
                "cluster_name": "xds",
                "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(plane) } }] }],
            },
        }] },
    });
    let config = folder.join("envoy.json");
    fs::write(&config, serde_json::to_vec_pretty(&bootstrap)?)?;
    let mut command = Command::new(peers::envoy()?);
    // One worker for each processor, as our gateway has.
    let workers = thread::available_parallelism()?.to_string();
    command.args([
        "--concurrency",
        &workers,
        "--use-dynamic-base-id",
        "--log-level",
        "warn",
    ]);
    command.arg("--config-path").arg(config);
    Ok(command)
}

fn version(program: &Path) -> Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // Envoy begins with where it lies, which is nobody's business.
    let version = text.rsplit_once("  version: ").map(|(_, rest)| rest);
    Ok(version.unwrap_or(&text).to_owned())
}

/// The status and the body of an answer.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(READ_WITHIN))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).context("a status")?.parse()?;
    let (head, body) = answer.split_once("\r\n\r\n").context("a head")?;
    let is_chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Ok((
        status,
        if is_chunked {
            whole(body)?
        } else {
            body.to_owned()
        },
    ))
}

/// A body that came in chunks (RFC 9112 §7.1).
fn whole(mut chunks: &str) -> Result<String> {
    let mut body = String::new();
    loop {
        let (size, rest) = chunks.split_once("\r\n").context("the size of a chunk")?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(body);
        }
        body.push_str(rest.get(..size).context("a chunk")?);
        chunks = rest
            .get(size..)
            .and_then(|rest| rest.strip_prefix("\r\n"))
            .context("its end")?;
    }
}
