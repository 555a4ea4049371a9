//! An endpoint of the service: a child process, so that it can be killed as endpoints are.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;

use crate::namespace::Namespace;
use crate::process::Process;

/// What begins this program again as an endpoint, before the address to listen on.
pub(crate) const ROLE: &str = "endpoint";
/// How long it works on a request: so many are under way when it dies.
pub(crate) const WORK: Duration = Duration::from_millis(10);
/// Asked for this it answers 503 to whatever comes after.
const FAIL: &str = "/fail";
/// What it prints before its address.
const READY: &str = "listening on ";

static FAILING: AtomicBool = AtomicBool::new(false);

/// A running endpoint. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    _process: Process,
}

impl Endpoint {
    /// Starts one at a port of its own on `ip`, in a namespace if there is one.
    pub(crate) fn start(
        name: &str,
        folder: &Path,
        ip: std::net::Ipv4Addr,
        namespace: Option<&Namespace>,
    ) -> Result<Self> {
        let program = std::env::current_exe()?;
        let program = program.to_str().context("the program's path")?;
        let mut command = match namespace {
            Some(namespace) => namespace.command(program),
            None => Command::new(program),
        };
        command.args([ROLE, &format!("{ip}:0")]);
        let process = Process::start(name, &mut command, folder)?;
        let address = process.wait_for("its address", |line| {
            line.strip_prefix(READY).and_then(|text| text.parse().ok())
        })?;
        Ok(Self {
            address,
            _process: process,
        })
    }

    /// From now on it answers 503.
    pub(crate) fn fail(&self) -> Result<()> {
        let mut tcp = TcpStream::connect(self.address)?;
        write!(
            tcp,
            "GET {FAIL} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "an endpoint: {answer}");
        Ok(())
    }
}

/// Runs as the child process.
pub(crate) fn run(address: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await?;
        println!("{READY}{}", listener.local_addr()?);
        std::io::stdout().flush()?;
        loop {
            let (tcp, _) = listener.accept().await?;
            tcp.set_nodelay(true)?;
            tokio::spawn(async move {
                // How a proxy leaves a connection is its own affair.
                http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(tcp), service_fn(answer))
                    .await
                    .ok();
            });
        }
    })
}

async fn answer(
    request: http::Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    let fails = request.uri().path() == FAIL;
    // A body that breaks off ends the connection, and the caller's proxy says so.
    request.into_body().collect().await.ok();
    let mut response = http::Response::new(Full::from("done"));
    if fails {
        FAILING.store(true, Ordering::Relaxed);
        return Ok(response);
    }
    tokio::time::sleep(WORK).await;
    if FAILING.load(Ordering::Relaxed) {
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
    }
    Ok(response)
}
