//! Requests at fixed times, whether or not those before them were answered.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

/// The host that is asked for.
pub(crate) const HOST: &str = "svc.bench.svc.clusterset.local";
/// Requests in a second.
pub(crate) const PER_SECOND: u32 = 200;
/// How long a caller waits before it gives up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(6);
/// How long requests flow before the fault: a budget of extra tries is a share of 10 s.
pub(crate) const BEFORE: Duration = Duration::from_secs(10);
/// Good answers in a row that show a mesh to be ready.
const READY: usize = 20;
/// How long a mesh may take to become so.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// What became of one request.
#[derive(Debug)]
pub(crate) struct Shot {
    /// When it was due, from the start.
    pub(crate) due: Duration,
    /// From then to its end.
    pub(crate) took: Duration,
    /// What the caller saw in place of a good answer.
    pub(crate) failure: Option<String>,
}

/// All that was sent, and when the fault came.
#[derive(Debug)]
pub(crate) struct Volley {
    pub(crate) shots: Vec<Shot>,
    /// From the start to when the fault began.
    pub(crate) fault: Duration,
}

type Client = SendRequest<Full<Bytes>>;

/// Connections that wait for the next request.
#[derive(Debug, Default)]
struct Pool(RefCell<Vec<Client>>);

/// Asks until answers are good, several times in a row.
pub(crate) fn until_ready(target: SocketAddr) -> Result<()> {
    local(async move {
        let pool = Pool::default();
        let until = Instant::now() + READY_WITHIN;
        let mut good = 0;
        while good < READY {
            match pool.request(target, &Method::GET).await {
                Ok(()) => good += 1,
                Err(error) => {
                    ensure!(Instant::now() < until, "not ready: {error:#}");
                    good = 0;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        Ok(())
    })
}

/// Sends requests until `after` the fault, which `strike` is; also returns what that leaves.
pub(crate) fn fire<T: Send + 'static>(
    target: SocketAddr,
    method: &Method,
    after: Duration,
    strike: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<(Volley, T)> {
    let method = method.clone();
    local(async move {
        let pool = Rc::new(Pool::default());
        let every = Duration::from_secs(1) / PER_SECOND;
        let start = Instant::now();
        let fault = tokio::spawn(async move {
            tokio::time::sleep(BEFORE).await;
            let began = start.elapsed();
            let left = tokio::task::spawn_blocking(strike).await??;
            Ok::<_, anyhow::Error>((began, left))
        });
        let mut under_way = JoinSet::new();
        let mut due = Duration::ZERO;
        while due < BEFORE + after {
            tokio::time::sleep_until((start + due).into()).await;
            let (pool, method) = (Rc::clone(&pool), method.clone());
            under_way.spawn_local(async move {
                let request = pool.request(target, &method);
                let failure = match tokio::time::timeout(PATIENCE, request).await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("{error:#}")),
                    Err(_) => Some(format!("no answer within {PATIENCE:?}")),
                };
                let took = start.elapsed().saturating_sub(due);
                Shot { due, took, failure }
            });
            due += every;
        }
        let mut shots = Vec::new();
        while let Some(shot) = under_way.join_next().await {
            shots.push(shot?);
        }
        shots.sort_by_key(|shot| shot.due);
        let (fault, left) = fault.await??;
        Ok((Volley { shots, fault }, left))
    })
}

impl Pool {
    /// One request, on a connection that waits or on a new one.
    async fn request(&self, target: SocketAddr, method: &Method) -> Result<()> {
        loop {
            let kept = self.take();
            let is_kept = kept.is_some();
            let mut client = match kept {
                Some(client) => client,
                None => connect(target).await?,
            };
            match client.ready().await {
                Ok(()) => {}
                Err(_closed) if is_kept => continue,
                Err(error) => return Err(error.into()),
            }
            let body = if method == Method::POST {
                Full::from("an order")
            } else {
                Full::default()
            };
            let request = http::Request::builder()
                .method(method)
                .uri("/item")
                .header("host", HOST)
                .body(body)?;
            let answer = match client.send_request(request).await {
                Ok(answer) => answer,
                // It was closed before the request left: nobody has seen that.
                Err(error) if is_kept && error.is_canceled() => continue,
                Err(error) => return Err(error.into()),
            };
            let status = answer.status();
            answer.into_body().collect().await.context("the body")?;
            self.0.borrow_mut().push(client);
            ensure!(status == http::StatusCode::OK, "status {status}");
            return Ok(());
        }
    }

    fn take(&self) -> Option<Client> {
        let mut waiting = self.0.borrow_mut();
        waiting.retain(|client| !client.is_closed());
        waiting.pop()
    }
}

async fn connect(target: SocketAddr) -> Result<Client> {
    let tcp = TcpStream::connect(target).await?;
    tcp.set_nodelay(true)?;
    let (client, connection) = handshake(TokioIo::new(tcp)).await?;
    tokio::task::spawn_local(async move {
        // The request that it carried tells how it ended.
        connection.await.ok();
    });
    Ok(client)
}

/// Runs on a runtime of this thread's own.
fn local<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| anyhow!("a runtime: {error}"))?;
    LocalSet::new().block_on(&runtime, work)
}
