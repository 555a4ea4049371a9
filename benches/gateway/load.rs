//! The load generator: a child process that sets itself up, says so, waits, does its work, tells
//! what came of it, and holds its connections until its standard input ends.

use std::io::{BufRead, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};
use tokio_rustls::TlsConnector;

use crate::backend::{BODY, DOWN, UP, head_end};
use crate::tls::{Caller, hello_config};
use crate::wire::{
    Command, Hello, Stream, at, check_bulk, check_bulk2, expect_answer, expect_end, send_bulk,
    send_bulk2,
};

/// The most that one sample may take; a proxy that answers nothing ends the run.
const SAMPLE_WITHIN: Duration = Duration::from_secs(120);

/// Connections that are opened at a time before they idle; few, so that what a proxy needs for
/// handshakes under way stays small beside what it keeps.
const IDLE_PARALLEL: u64 = 4;

/// What one load generator does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    /// The proxy.
    pub(crate) target: SocketAddr,
    /// The name that is asked for.
    pub(crate) name: String,
    /// How a connection begins.
    pub(crate) opening: Opening,
    pub(crate) job: Job,
}

/// How a connection begins.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Opening {
    /// With a ClientHello that the proxy passes on.
    Hello,
    /// With a handshake that the proxy ends.
    Tls(Caller),
    /// With the first request.
    Http,
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Job {
    /// One connection after the other, `parallel` at a time; each is answered and closed.
    Connections { count: u64, parallel: u64 },
    /// `bytes` over each of `streams` connections at once.
    Bulk { streams: u64, bytes: u64, way: Way },
    /// Connections that were used once and are then held.
    Idle { count: u64 },
    /// `count` messages of `bytes` there and back over one connection.
    PingPong { count: u64, bytes: u64 },
    /// Requests over kept-alive HTTP/1.1 connections.
    Http1 { count: u64, connections: u64 },
    /// Requests over HTTP/2 connections, `streams` at once on each.
    Http2 {
        count: u64,
        connections: u64,
        streams: u64,
    },
    /// `bytes` over one HTTP/2 stream.
    Http2Bulk { bytes: u64, way: Way },
    /// HTTP/1.1 requests at fixed times, whether or not those before them were answered in time.
    Rate {
        per_second: u64,
        count: u64,
        connections: u64,
    },
}

/// Seen from the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Way {
    Down,
    Up,
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Units of work.
    pub(crate) units: f64,
    /// From the word to start to the last answer.
    pub(crate) wall_ns: u64,
    /// The median of what single answers took, where that was measured.
    pub(crate) p50_ns: Option<u64>,
    /// All but a hundredth were faster.
    pub(crate) p99_ns: Option<u64>,
}

/// A connection that is ready for commands.
type Opened = Box<dyn Stream>;

/// Runs as the child process.
pub(crate) fn run(load: Load) -> Result<()> {
    if let Job::Rate { .. } = load.job {
        return rate(&load);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let load = Rc::new(Generator::new(load)?);
        let held = tokio::time::timeout(SAMPLE_WITHIN, load.work())
            .await
            .with_context(|| format!("not done within {SAMPLE_WITHIN:?}"))??;
        hold()?;
        drop(held);
        Ok(())
    })
}

/// Says that everything is set up, and waits for the word to start.
fn ready() -> Result<Instant> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready")?;
    stdout.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    ensure!(line == "go\n", "told {line:?}");
    Ok(Instant::now())
}

fn tell(done: &Done) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::to_string(done)?)?;
    stdout.flush()?;
    Ok(())
}

fn hold() -> Result<()> {
    std::io::stdin().lock().read_to_end(&mut Vec::new())?;
    Ok(())
}

struct Generator {
    load: Load,
    hello: Hello,
    tls: Option<Arc<ClientConfig>>,
}

impl Generator {
    fn new(load: Load) -> Result<Self> {
        let handshakes = match load.job {
            Job::Connections { count, .. } | Job::Idle { count } => count,
            Job::Bulk { streams, .. } => streams,
            Job::PingPong { .. }
            | Job::Http1 { .. }
            | Job::Http2 { .. }
            | Job::Http2Bulk { .. }
            | Job::Rate { .. } => 1,
        };
        let tls = match &load.opening {
            Opening::Tls(caller) => Some(caller.config(usize::try_from(handshakes)?, &[])?),
            Opening::Hello | Opening::Http => None,
        };
        Ok(Self {
            hello: Hello::new(&hello_config()?, &load.name)?,
            tls,
            load,
        })
    }

    /// Does the job; gives back what is to be held.
    async fn work(self: &Rc<Self>) -> Result<Vec<Opened>> {
        let mut held = Vec::new();
        match self.load.job {
            Job::Connections { count, parallel } => self.connections(count, parallel).await?,
            Job::Bulk {
                streams,
                bytes,
                way,
            } => self.bulk(streams, bytes, way).await?,
            Job::Idle { count } => held = self.idle(count).await?,
            Job::PingPong { count, bytes } => self.ping_pong(count, bytes).await?,
            Job::Http1 { count, connections } => self.http1(count, connections).await?,
            Job::Http2 {
                count,
                connections,
                streams,
            } => self.http2(count, connections, streams).await?,
            Job::Http2Bulk { bytes, way } => self.http2_bulk(bytes, way).await?,
            Job::Rate { .. } => bail!("a rate needs threads"),
        }
        Ok(held)
    }

    async fn tcp(&self) -> Result<TcpStream> {
        let tcp = TcpStream::connect(self.load.target).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }

    /// Connects, and has the backend do `command`.
    async fn open(&self, command: Command) -> Result<Opened> {
        let mut tcp = self.tcp().await?;
        match &self.tls {
            None => {
                tcp.write_all(&self.hello.with(command)).await?;
                expect_answer(&mut tcp).await?;
                Ok(Box::new(tcp))
            }
            Some(config) => {
                let name = ServerName::try_from(self.load.name.clone())?;
                let connector = TlsConnector::from(Arc::clone(config));
                let mut stream = Box::new(connector.connect(name, tcp).await?);
                command.send(&mut stream).await?;
                Ok(stream)
            }
        }
    }

    async fn connections(self: &Rc<Self>, count: u64, parallel: u64) -> Result<()> {
        let start = ready()?;
        let mut tasks = JoinSet::new();
        for lane in 0..parallel {
            let this = Rc::clone(self);
            tasks.spawn_local(async move {
                for _ in (lane..count).step_by(usize::try_from(parallel)?) {
                    let mut stream = this.open(Command::Close).await?;
                    expect_end(&mut stream).await?;
                }
                anyhow::Ok(())
            });
        }
        all(tasks).await?;
        tell(&Done::of(count as f64, start))
    }

    async fn bulk(self: &Rc<Self>, streams: u64, bytes: u64, way: Way) -> Result<()> {
        let mut opened = Vec::new();
        for _ in 0..streams {
            opened.push(self.open(Command::Hold).await?);
        }
        let start = ready()?;
        let mut tasks = JoinSet::new();
        for mut stream in opened {
            tasks.spawn_local(async move {
                match way {
                    Way::Down => {
                        Command::Down(bytes).send(&mut stream).await?;
                        check_bulk(&mut stream, bytes).await?;
                    }
                    Way::Up => {
                        Command::Up(bytes).send(&mut stream).await?;
                        send_bulk(&mut stream, bytes).await?;
                        expect_answer(&mut stream).await?;
                    }
                }
                anyhow::Ok(())
            });
        }
        all(tasks).await?;
        let mebibytes = (streams * bytes) as f64 / f64::from(1 << 20);
        tell(&Done::of(mebibytes, start))
    }

    async fn idle(self: &Rc<Self>, count: u64) -> Result<Vec<Opened>> {
        let start = ready()?;
        let mut lanes = JoinSet::new();
        for lane in 0..IDLE_PARALLEL {
            let this = Rc::clone(self);
            lanes.spawn_local(async move {
                let mut held = Vec::new();
                for _ in (lane..count).step_by(usize::try_from(IDLE_PARALLEL)?) {
                    held.push(this.open(Command::Hold).await?);
                }
                anyhow::Ok(held)
            });
        }
        let mut held = Vec::new();
        while let Some(lane) = lanes.join_next().await {
            held.extend(lane??);
        }
        tell(&Done::of(count as f64, start))?;
        Ok(held)
    }

    async fn ping_pong(self: &Rc<Self>, count: u64, bytes: u64) -> Result<()> {
        let mut stream = self.open(Command::Echo(bytes)).await?;
        let start = ready()?;
        let mut times = Vec::new();
        let mut message = vec![0; usize::try_from(bytes)?];
        for turn in 0..count {
            let sent = at(turn, message.len());
            let begin = Instant::now();
            stream.write_all(sent).await?;
            stream.flush().await?;
            stream.read_exact(&mut message).await?;
            times.push(nanos(begin));
            ensure!(message == sent, "another message came back");
        }
        tell(&Done::of(count as f64, start).with(times))
    }

    async fn http1(self: &Rc<Self>, count: u64, connections: u64) -> Result<()> {
        let mut opened = Vec::new();
        for _ in 0..connections {
            let mut one = Http1::new(self.tcp().await?, &self.load.name);
            one.request().await?;
            opened.push(one);
        }
        let start = ready()?;
        let mut tasks = JoinSet::new();
        let each = count / connections;
        for mut one in opened {
            tasks.spawn_local(async move {
                for _ in 0..each {
                    one.request().await?;
                }
                anyhow::Ok(())
            });
        }
        all(tasks).await?;
        tell(&Done::of((each * connections) as f64, start))
    }

    async fn http2(self: &Rc<Self>, count: u64, connections: u64, streams: u64) -> Result<()> {
        let mut senders = Vec::new();
        for _ in 0..connections {
            senders.push(self.open2().await?);
        }
        let start = ready()?;
        let mut tasks = JoinSet::new();
        let each = count / (connections * streams);
        for sender in senders {
            for _ in 0..streams {
                let (mut sender, name) = (sender.clone(), self.load.name.clone());
                tasks.spawn_local(async move {
                    for _ in 0..each {
                        sender = request2(sender, &name).await?;
                    }
                    anyhow::Ok(())
                });
            }
        }
        all(tasks).await?;
        tell(&Done::of((each * connections * streams) as f64, start))
    }

    async fn http2_bulk(self: &Rc<Self>, bytes: u64, way: Way) -> Result<()> {
        let sender = self.open2().await?;
        let start = ready()?;
        let name = &self.load.name;
        match way {
            Way::Down => {
                let request = http::Request::get(format!("http://{name}{DOWN}{bytes}"));
                let (response, _) = sender
                    .ready()
                    .await?
                    .send_request(request.body(())?, true)?;
                check_body2(response, bytes).await?;
            }
            Way::Up => {
                let request = http::Request::post(format!("http://{name}{UP}{bytes}"));
                let (response, stream) = sender
                    .ready()
                    .await?
                    .send_request(request.body(())?, false)?;
                send_bulk2(stream, bytes).await?;
                check_body2(response, BODY as u64).await?;
            }
        }
        tell(&Done::of(bytes as f64 / f64::from(1 << 20), start))
    }

    /// An HTTP/2 connection that has answered once.
    async fn open2(&self) -> Result<h2::client::SendRequest<Bytes>> {
        let (sender, connection) = h2::client::Builder::new()
            .initial_window_size(1 << 20)
            .initial_connection_window_size(1 << 24)
            .handshake::<_, Bytes>(self.tcp().await?)
            .await?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.await {
                eprintln!("load: {error}");
            }
        });
        request2(sender, &self.load.name).await
    }
}

async fn all(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(())
}

/// One request over HTTP/2, its answer checked.
async fn request2(
    sender: h2::client::SendRequest<Bytes>,
    name: &str,
) -> Result<h2::client::SendRequest<Bytes>> {
    let mut sender = sender.ready().await?;
    let request = http::Request::get(format!("http://{name}/item")).body(())?;
    let (response, _) = sender.send_request(request, true)?;
    check_body2(response, BODY as u64).await?;
    Ok(sender)
}

async fn check_body2(response: h2::client::ResponseFuture, bytes: u64) -> Result<()> {
    let response = response.await?;
    ensure!(response.status() == 200, "status {}", response.status());
    check_bulk2(response.into_body(), bytes).await
}

/// A kept-alive HTTP/1.1 connection.
struct Http1 {
    tcp: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Http1 {
    fn new(tcp: TcpStream, name: &str) -> Self {
        Self {
            tcp,
            request: get(name),
            buffer: Vec::with_capacity(4096),
        }
    }

    async fn request(&mut self) -> Result<()> {
        self.tcp.write_all(&self.request).await?;
        self.buffer.clear();
        loop {
            if whole(&self.buffer)? {
                return Ok(());
            }
            let read = self.tcp.read_buf(&mut self.buffer).await?;
            ensure!(read > 0, "closed within an answer");
        }
    }
}

fn get(name: &str) -> Vec<u8> {
    format!("GET /item HTTP/1.1\r\nhost: {name}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n")
        .into_bytes()
}

/// Whether an answer is there as a whole.
///
/// # Errors
/// It is not the one that was wanted.
fn whole(bytes: &[u8]) -> Result<bool> {
    let Some(end) = head_end(bytes) else {
        ensure!(bytes.len() < 16_384, "a long head");
        return Ok(false);
    };
    let (head, body) = bytes.split_at(end);
    if body.len() < BODY {
        return Ok(false);
    }
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    ensure!(head.starts_with("http/1.1 200"), "an answer {head:?}");
    ensure!(
        head.contains(&format!("content-length: {BODY}\r\n")),
        "an answer {head:?}"
    );
    ensure!(body == at(0, BODY), "a wrong body");
    Ok(true)
}

/// Requests at fixed times: a thread for each connection, since a timer of tokio's is a millisecond
/// coarse.
fn rate(load: &Load) -> Result<()> {
    let Job::Rate {
        per_second,
        count,
        connections,
    } = load.job
    else {
        bail!("no rate");
    };
    let mut opened = Vec::new();
    for _ in 0..connections {
        let tcp = std::net::TcpStream::connect(load.target)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(SAMPLE_WITHIN))?;
        let mut one = (tcp, get(&load.name), Vec::new());
        blocking_request(&mut one)?;
        opened.push(one);
    }
    let start = ready()?;
    let every = Duration::from_nanos(1_000_000_000 / per_second);
    let threads: Vec<_> = (0..connections)
        .zip(opened)
        .map(|(lane, mut one)| {
            std::thread::spawn(move || -> Result<Vec<u64>> {
                let mut times = Vec::new();
                for turn in (lane..count).step_by(usize::try_from(connections)?) {
                    let due = start + every * u32::try_from(turn)?;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    blocking_request(&mut one)?;
                    times.push(nanos(due));
                }
                Ok(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for thread in threads {
        let lane = thread
            .join()
            .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
        times.extend(lane?);
    }
    tell(&Done::of(times.len() as f64, start).with(times))?;
    hold()
}

fn blocking_request(
    (tcp, request, buffer): &mut (std::net::TcpStream, Vec<u8>, Vec<u8>),
) -> Result<()> {
    tcp.write_all(request)?;
    buffer.clear();
    let mut part = [0; 4096];
    while !whole(buffer)? {
        let read = tcp.read(&mut part)?;
        ensure!(read > 0, "closed within an answer");
        buffer.extend_from_slice(&part[..read]);
    }
    Ok(())
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Done {
    fn of(units: f64, start: Instant) -> Self {
        Self {
            units,
            wall_ns: nanos(start),
            ..Self::default()
        }
    }

    fn with(mut self, mut times: Vec<u64>) -> Self {
        times.sort_unstable();
        self.p50_ns = times.get(times.len() / 2).copied();
        self.p99_ns = times.get(times.len() * 99 / 100).copied();
        self
    }
}
