//! Callers of every kind that forgive nothing: no refused or reset connection, no answer missing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::data_client::{Client, Wire};
use crate::data_mesh::HELLO;
use crate::data_services::{AnyBody, BANNER};
use crate::mesh::{Identity, collect, empty, h1, within};

/// The host of the route that is passed through.
pub(crate) const VAULT: &str = "vault.demo.svc.clusterset.local";
/// Each caller begins something in this time.
const EVERY: Duration = Duration::from_millis(5);
/// What a long call says, one by one, before it ends.
const WORDS: usize = 40;

/// Where callers connect, asked for each connection: one place, or the one that a balancer prefers.
pub(crate) type Front = watch::Receiver<SocketAddr>;

/// Always the same place.
pub(crate) fn at(address: SocketAddr) -> Front {
    watch::Sender::new(address).subscribe()
}

/// What a caller does.
#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// POSTs on one connection as long as it is kept.
    H1(Front),
    /// POSTs on one connection until a GOAWAY.
    H2(Front),
    /// One HTTP/2 stream after the other, each a conversation as of gRPC, with trailers at its end.
    Streams(Front),
    /// One connection after the other, each a conversation.
    Tcp(Front),
    /// The same with TLS of the caller's own, ended by the workload.
    Passthrough(Front, Arc<Identity>),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Self::H1(_) => "HTTP/1.1",
            Self::H2(_) => "HTTP/2",
            Self::Streams(_) => "streams",
            Self::Tcp(_) => "TCP",
            Self::Passthrough(..) => "passthrough",
        }
    }
}

/// Callers under way.
pub(crate) struct Callers {
    stop: watch::Sender<bool>,
    done: Vec<(Kind, watch::Sender<usize>)>,
    tasks: JoinSet<Result<()>>,
}

impl Callers {
    /// Starts this many of each kind.
    pub(crate) fn start(each: usize, kinds: &[Kind]) -> Self {
        let mut this = Self {
            stop: watch::Sender::new(false),
            done: Vec::new(),
            tasks: JoinSet::new(),
        };
        for kind in kinds {
            let done = watch::Sender::new(0);
            for _ in 0..each {
                let (kind, stop, done) = (kind.clone(), this.stop.subscribe(), done.clone());
                this.tasks.spawn(async move {
                    let what = kind.name();
                    call(kind, stop, done).await.context(what)
                });
            }
            this.done.push((kind.clone(), done));
        }
        this
    }

    /// Waits until each kind has done this much more.
    pub(crate) async fn go_on(&mut self, more: usize) {
        for (kind, done) in &self.done {
            let mut done = done.subscribe();
            let from = *done.borrow();
            let waiting = done.wait_for(|now| *now >= from + more);
            let what = kind.name();
            tokio::select! {
                ended = self.tasks.join_next() => panic!("a caller lost something: {}", told(ended)),
                went_on = within(what, waiting) => drop(went_on.unwrap()),
            }
        }
    }

    /// Ends them after what is under way; returns how much was done.
    pub(crate) async fn end(mut self) -> usize {
        self.stop.send_replace(true);
        while let Some(ended) = within("the callers' end", self.tasks.join_next()).await {
            ended.unwrap().unwrap();
        }
        self.done.iter().map(|(_, done)| *done.borrow()).sum()
    }
}

async fn call(kind: Kind, stop: watch::Receiver<bool>, done: watch::Sender<usize>) -> Result<()> {
    let mut kept = None;
    let mut ticks = tokio::time::interval(EVERY);
    let mut nth = 0;
    while !*stop.borrow() {
        ticks.tick().await;
        nth += 1;
        let calling = async {
            match &kind {
                Kind::H1(address) => post(address, &Wire::H1, &mut kept).await,
                Kind::H2(address) => post(address, &Wire::H2, &mut kept).await,
                Kind::Streams(address) => stream(address, &mut kept, &mut ticks).await,
                Kind::Tcp(address) => {
                    let tcp = TcpStream::connect(now(address))
                        .await
                        .context("connecting")?;
                    converse(tcp, &mut ticks).await
                }
                Kind::Passthrough(address, caller) => pass(now(address), caller, &mut ticks).await,
            }
        };
        let called = tokio::time::timeout(Duration::from_secs(20), calling).await;
        called
            .context("too slow")?
            .with_context(|| format!("call {nth}"))?;
        done.send_modify(|done| *done += 1);
    }
    Ok(())
}

fn now(address: &Front) -> SocketAddr {
    *address.borrow()
}

/// The connection that was kept, or a new one; nobody may refuse it.
async fn connected(address: &Front, wire: &Wire, kept: &mut Option<Client>) -> Result<Client> {
    match kept.take() {
        // GOAWAY: it takes no more streams. An HTTP/1.1 connection says so in its answers.
        Some(Client::H2(sender)) if sender.is_closed() => {}
        Some(client) => return Ok(client),
        None => {}
    }
    let client = Client::connect(now(address), wire).await;
    client.context("connecting")
}

async fn post(address: &Front, wire: &Wire, kept: &mut Option<Client>) -> Result<()> {
    loop {
        let mut client = connected(address, wire, kept).await?;
        let head = client.head("POST", HELLO, "/echo");
        let answer = client.send(head.body(AnyBody::text("some words"))?).await;
        let answer = match answer {
            Err(error) if never_sent(&client, &error) => continue,
            answer => answer?,
        };
        ensure!(
            answer.status.is_success(),
            "{} {}",
            answer.status,
            answer.text()
        );
        ensure!(answer.text() == "some words", "{}", answer.text());
        let closes = answer.headers.get(header::CONNECTION);
        if closes.is_none_or(|value| value != "close") {
            *kept = Some(client);
        }
        return Ok(());
    }
}

/// HTTP/2 says exactly what the server has not seen (RFC 9113 §6.8): a client sends it again.
fn never_sent(client: &Client, error: &anyhow::Error) -> bool {
    let Client::H2(_) = client else { return false };
    let Some(error) = error.downcast_ref::<hyper::Error>() else {
        return false;
    };
    let reason = std::error::Error::source(error)
        .and_then(|cause| cause.downcast_ref::<h2::Error>())
        .and_then(h2::Error::reason);
    error.is_canceled()
        || error.is_closed()
        || matches!(
            reason,
            Some(h2::Reason::REFUSED_STREAM | h2::Reason::NO_ERROR)
        )
}

async fn stream(
    address: &Front,
    kept: &mut Option<Client>,
    ticks: &mut tokio::time::Interval,
) -> Result<()> {
    loop {
        let mut client = connected(address, &Wire::H2, kept).await?;
        let (words, body) = AnyBody::channel();
        let head = client.head("POST", HELLO, "/echo");
        let request: Request<AnyBody> = head.body(body)?;
        let response = match client.begin(request).await {
            Err(error) if never_sent(&client, &error) => continue,
            response => response?,
        };
        ensure!(response.status().is_success(), "{}", response.status());
        let mut answers = response.into_body();
        for nth in 0..WORDS {
            ticks.tick().await;
            let word = Bytes::from(format!("word {nth};"));
            words
                .send(Frame::data(word.clone()))
                .await
                .context("saying")?;
            let mut heard = Vec::new();
            while heard.len() < word.len() {
                let frame = answers.frame().await.context("cut off")??;
                heard.extend_from_slice(frame.data_ref().context("not a word")?);
            }
            ensure!(heard == word, "{heard:?}");
        }
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-end", "well".parse()?);
        words
            .send(Frame::trailers(trailers))
            .await
            .context("ending")?;
        drop(words);
        let end = answers.collect().await?;
        let said = end.trailers().and_then(|trailers| trailers.get("x-end"));
        ensure!(said.is_some_and(|said| said == "well"), "no trailers");
        *kept = Some(client);
        return Ok(());
    }
}

async fn converse(mut tcp: TcpStream, ticks: &mut tokio::time::Interval) -> Result<()> {
    let mut banner = vec![0; BANNER.len()];
    tcp.read_exact(&mut banner).await.context("the banner")?;
    for _ in 0..WORDS {
        ticks.tick().await;
        tcp.write_all(b"word").await.context("saying")?;
        let mut heard = [0; 4];
        tcp.read_exact(&mut heard).await.context("hearing")?;
        ensure!(&heard == b"word");
    }
    tcp.shutdown().await?;
    let mut end = Vec::new();
    tcp.read_to_end(&mut end).await.context("the end")?;
    ensure!(
        end == format!("\n{} bytes", 4 * WORDS).as_bytes(),
        "{end:?}"
    );
    Ok(())
}

async fn pass(
    address: SocketAddr,
    caller: &Identity,
    ticks: &mut tokio::time::Interval,
) -> Result<()> {
    let tls = caller.dial(address, VAULT, &[b"http/1.1"]).await;
    let mut client = h1(tls.context("a handshake")?).await;
    for _ in 0..WORDS / 4 {
        ticks.tick().await;
        let request = Request::get("/")
            .header(header::HOST, VAULT)
            .body(empty())?;
        client.ready().await?;
        let response = client.send_request(request).await?;
        let answer = collect(response).await.text();
        ensure!(answer == "vault", "{answer}");
    }
    Ok(())
}

/// Without the stack: what matters is what was lost.
fn told(ended: Option<Result<Result<()>, tokio::task::JoinError>>) -> String {
    match ended {
        Some(Ok(Err(error))) => {
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            causes.join(": ")
        }
        ended => format!("{:?}", ended.map(|ended| ended.is_ok())),
    }
}
