//! The backend of every proxy: a child process on the load generator's core.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::pki::Svid;
use crate::tls;
use crate::wire::{Command, Stream, answer, at, check_bulk, check_bulk2, send_bulk, send_bulk2};

/// The bytes of the answer to a request.
pub(crate) const BODY: usize = 1024;

/// What begins a path that answers with as many bytes as follow.
pub(crate) const DOWN: &str = "/down/";
/// What begins a path that takes as many bytes as follow.
pub(crate) const UP: &str = "/up/";

/// Where the backend listens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Addresses {
    /// A ClientHello comes first and carries the first command.
    pub(crate) hello: SocketAddr,
    /// Commands.
    pub(crate) plain: SocketAddr,
    /// Commands in mTLS.
    pub(crate) tls: SocketAddr,
    /// HTTP/1.1.
    pub(crate) http1: SocketAddr,
    /// HTTP/2 with prior knowledge.
    pub(crate) http2: SocketAddr,
}

#[derive(Debug, Clone)]
enum Speaks {
    Hello,
    Plain,
    Tls(Arc<ServerConfig>),
    Http1,
    Http2,
}

/// Serves until standard input ends; first prints its [`Addresses`].
pub(crate) fn run(svid: &Svid) -> Result<()> {
    let tls = tls::server(svid)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let addresses = Addresses {
            hello: listen(Speaks::Hello)?,
            plain: listen(Speaks::Plain)?,
            tls: listen(Speaks::Tls(tls))?,
            http1: listen(Speaks::Http1)?,
            http2: listen(Speaks::Http2)?,
        };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{}", serde_json::to_string(&addresses)?)?;
        stdout.flush()?;
        let end = tokio::task::spawn_blocking(|| {
            let mut rest = Vec::new();
            std::io::stdin().lock().read_to_end(&mut rest)
        });
        end.await??;
        Ok(())
    })
}

fn listen(speaks: Speaks) -> Result<SocketAddr> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let listener = socket.listen(16_384)?;
    let address = listener.local_addr()?;
    tokio::spawn(accept(listener, speaks));
    Ok(address)
}

async fn accept(listener: TcpListener, speaks: Speaks) {
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                tokio::spawn(told(serve(tcp, speaks.clone())));
            }
            Err(error) => {
                eprintln!("backend: accept: {error}");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        }
    }
}

/// Whether a connection ended as those end that a proxy gives up or a load generator leaves.
fn is_reset(error: &anyhow::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof))
}

async fn serve(tcp: TcpStream, speaks: Speaks) -> Result<()> {
    tcp.set_nodelay(true)?;
    match speaks {
        Speaks::Hello => {
            let mut tcp = tcp;
            match Command::read_hello(&mut tcp).await? {
                Some(first) => commands(&mut tcp, first).await,
                None => Ok(()),
            }
        }
        Speaks::Plain => {
            let mut tcp = tcp;
            match Command::read(&mut tcp).await? {
                Some(first) => commands(&mut tcp, first).await,
                None => Ok(()),
            }
        }
        Speaks::Tls(config) => {
            let mut stream = Box::new(TlsAcceptor::from(config).accept(tcp).await?);
            ensure!(
                stream.get_ref().1.peer_certificates().is_some(),
                "a proxy without a certificate"
            );
            match Command::read(&mut stream).await? {
                Some(first) => commands(&mut stream, first).await,
                None => Ok(()),
            }
        }
        Speaks::Http1 => http1(tcp).await,
        Speaks::Http2 => http2(tcp).await,
    }
}

async fn commands(stream: &mut impl Stream, first: Command) -> Result<()> {
    let mut command = first;
    loop {
        stream.write_all(&answer()).await?;
        stream.flush().await?;
        match command {
            Command::Close => break,
            Command::Hold => {}
            Command::Down(bytes) => send_bulk(stream, bytes).await?,
            Command::Up(bytes) => {
                check_bulk(stream, bytes).await?;
                stream.write_all(&answer()).await?;
                stream.flush().await?;
            }
            Command::Echo(bytes) => return echo(stream, bytes).await,
        }
        match Command::read(stream).await? {
            Some(next) => command = next,
            None => break,
        }
    }
    stream.shutdown().await?;
    Ok(())
}

async fn echo(stream: &mut impl Stream, bytes: u64) -> Result<()> {
    let mut message = vec![0; usize::try_from(bytes)?];
    loop {
        match stream.read_exact(&mut message).await {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        stream.write_all(&message).await?;
        stream.flush().await?;
    }
}

/// Answers GETs; nothing else is asked of it.
async fn http1(mut tcp: TcpStream) -> Result<()> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: {BODY}\r\n\r\n"
    )
    .into_bytes();
    answer.extend_from_slice(at(0, BODY));
    let mut buffer = Vec::with_capacity(4096);
    loop {
        while let Some(end) = head_end(&buffer) {
            ensure!(buffer.starts_with(b"GET /"), "no GET");
            buffer.drain(..end);
            tcp.write_all(&answer).await?;
        }
        ensure!(buffer.len() < 16_384, "a long request");
        if tcp.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// Where the head of an HTTP/1.1 message ends.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .map(|at| at + 4)
}

async fn http2(tcp: TcpStream) -> Result<()> {
    let mut connection = h2::server::Builder::new()
        .max_concurrent_streams(1024)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(1 << 24)
        .handshake::<_, Bytes>(tcp)
        .await?;
    while let Some(next) = connection.accept().await {
        // How a proxy leaves a connection is its own affair; its caller checks the answers.
        let Ok((request, mut respond)) = next else {
            return Ok(());
        };
        let path = request.uri().path();
        if let Some(bytes) = path.strip_prefix(DOWN) {
            let bytes = bytes.parse()?;
            let stream = respond.send_response(head(bytes)?, false)?;
            tokio::spawn(told(send_bulk2(stream, bytes)));
        } else if let Some(bytes) = path.strip_prefix(UP) {
            let bytes = bytes.parse()?;
            tokio::spawn(told(async move {
                check_bulk2(request.into_body(), bytes).await?;
                answer2(respond)
            }));
        } else {
            ensure!(request.method() == http::Method::GET, "no GET");
            answer2(respond)?;
        }
    }
    Ok(())
}

fn answer2(mut respond: h2::server::SendResponse<Bytes>) -> Result<()> {
    respond
        .send_response(head(BODY as u64)?, false)?
        .send_data(Bytes::from_static(at(0, BODY)), true)?;
    Ok(())
}

fn head(bytes: u64) -> Result<http::Response<()>> {
    http::Response::builder()
        .header("content-type", "application/octet-stream")
        .header("content-length", bytes)
        .body(())
        .context("a response")
}

/// Says on standard error what a caller sees as an answer that is missing.
async fn told(work: impl Future<Output = Result<()>>) {
    if let Err(error) = work.await
        && !is_reset(&error)
    {
        eprintln!("backend: {error:#}");
    }
}
