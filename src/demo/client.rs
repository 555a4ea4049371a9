//! The demo's client: sends on a fixed schedule whatever becomes of the requests before.
//!
//! A client that waits for answers sends less while things are broken and so hides it; this one
//! does not. It never tries again either: what it loses is lost.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::journal::Verb;
use super::service::{Answer, ID_HEADER};

/// What the client waits for one answer at most.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(8);
/// Requests under way at once; one more counts as lost.
const IN_FLIGHT_MAX: usize = 8192;
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Every fifth request is a POST.
const POST_EVERY: u64 = 5;

/// Where a client sends, and how often.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The gateway's listener for workloads.
    pub(crate) gateway: SocketAddr,
    /// The service's host.
    pub(crate) host: String,
    /// Requests per second.
    pub(crate) rate: u32,
    pub(crate) numbers: Numbers,
}

/// Whether requests carry their number, so that services can count each once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    Carried,
    /// For a second client, whose numbers would be taken for the first one's.
    Kept,
}

/// One request as the client saw it. Times count from the demo's start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) id: u64,
    pub(crate) verb: Verb,
    /// When it was sent.
    pub(crate) sent: Duration,
    pub(crate) end: End,
}

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It is under way.
    Pending,
    /// A service answered it with 200.
    Answered {
        at: Duration,
        service: String,
        /// The `x-forwarded-client-cert` that the service saw.
        caller: Option<String>,
    },
    /// It is lost.
    Lost { at: Duration, why: String },
}

impl Record {
    /// When it ended.
    pub(crate) fn ended(&self) -> Option<Duration> {
        match self.end {
            End::Pending => None,
            End::Answered { at, .. } | End::Lost { at, .. } => Some(at),
        }
    }

    /// The service that answered it.
    pub(crate) fn service(&self) -> Option<&str> {
        match &self.end {
            End::Answered { service, .. } => Some(service),
            End::Pending | End::Lost { .. } => None,
        }
    }

    /// How long its caller waited for the answer.
    pub(crate) fn latency(&self) -> Option<Duration> {
        match self.end {
            End::Answered { at, .. } => Some(at.saturating_sub(self.sent)),
            End::Pending | End::Lost { .. } => None,
        }
    }

    /// Whether it got no answer.
    pub(crate) fn is_lost(&self) -> bool {
        self.service().is_none()
    }
}

/// A client at work.
#[derive(Debug)]
pub(crate) struct Client {
    log: Arc<Mutex<Vec<Record>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Client {
    /// Starts sending; times count from `start`.
    pub(crate) fn start(target: Target, start: Instant) -> Self {
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(send_all(Arc::clone(&log), target, start, stopped));
        Self { log, stop, task }
    }

    /// Looks at the requests so far, in the order in which they were sent.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&[Record]) -> T) -> T {
        at(&lock(&self.log))
    }

    /// Stops sending, waits for what is under way, and hands out every request.
    pub(crate) async fn stop(self) -> Vec<Record> {
        self.stop.send_replace(true);
        // It cannot have been aborted; were it to panic, the requests it left are pending: lost.
        self.task.await.ok();
        std::mem::take(&mut *lock(&self.log))
    }
}

fn lock(log: &Mutex<Vec<Record>>) -> MutexGuard<'_, Vec<Record>> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn send_all(
    log: Arc<Mutex<Vec<Record>>>,
    target: Target,
    start: Instant,
    mut stopped: watch::Receiver<bool>,
) {
    let connections = Arc::new(Connections {
        target: target.clone(),
        idle: Mutex::new(VecDeque::new()),
    });
    let begin = tokio::time::Instant::now();
    let mut under_way = JoinSet::new();
    let mut id = 0;
    loop {
        let due = begin + Duration::from_micros(id * 1_000_000 / u64::from(target.rate.max(1)));
        tokio::select! {
            // Both wait and lose nothing when dropped.
            () = tokio::time::sleep_until(due) => {}
            _ = stopped.changed() => break,
        }
        while under_way.try_join_next().is_some() {}
        let verb = verb(id);
        let mut record = Record {
            id,
            verb,
            sent: start.elapsed(),
            end: End::Pending,
        };
        if under_way.len() < IN_FLIGHT_MAX {
            let (log, connections) = (Arc::clone(&log), Arc::clone(&connections));
            under_way.spawn(async move {
                let end = one(&connections, verb, id, start).await;
                let index = usize::try_from(id).unwrap_or(usize::MAX);
                if let Some(record) = lock(&log).get_mut(index) {
                    record.end = end;
                }
            });
        } else {
            record.end = End::Lost {
                at: record.sent,
                why: format!("{IN_FLIGHT_MAX} requests were under way already"),
            };
        }
        lock(&log).push(record);
        id += 1;
    }
    while under_way.join_next().await.is_some() {}
}

/// What the request of that number is.
fn verb(id: u64) -> Verb {
    if id % POST_EVERY == POST_EVERY - 1 {
        Verb::Post
    } else {
        Verb::Get
    }
}

async fn one(connections: &Connections, verb: Verb, id: u64, start: Instant) -> End {
    let outcome = tokio::time::timeout(TIMEOUT, connections.exchange(verb, id)).await;
    let at = start.elapsed();
    match outcome {
        Ok(Ok(answer)) => End::Answered {
            at,
            service: answer.service,
            caller: answer.forwarded_client_cert,
        },
        Ok(Err(error)) => End::Lost {
            at,
            why: error.to_string(),
        },
        Err(_) => End::Lost {
            at,
            why: "no answer within 8 s".to_owned(),
        },
    }
}

/// Why a request was lost.
#[derive(Debug, thiserror::Error)]
enum LostError {
    #[error("cannot connect to the gateway: {0}")]
    Connect(std::io::Error),
    #[error("the gateway broke the connection: {0}")]
    Http(hyper::Error),
    #[error("the answer broke off")]
    Body,
    #[error("status {0}{1}")]
    Status(StatusCode, String),
    #[error("the answer belongs to another request")]
    Mixed,
    #[error("the request cannot be built: {0}")]
    Request(http::Error),
}

/// Connections to the gateway, kept between requests as most clients do.
struct Connections {
    target: Target,
    idle: Mutex<VecDeque<SendRequest<Full<Bytes>>>>,
}

impl Connections {
    async fn exchange(&self, verb: Verb, id: u64) -> Result<Answer, LostError> {
        let (request, body_bytes) = self.request(verb, id)?;
        let mut sender = self.connection().await?;
        let response = sender
            .send_request(request)
            .await
            .map_err(LostError::Http)?;
        let status = response.status();
        let reason = response
            .headers()
            .get("x-zeugma-reason")
            .and_then(|value| value.to_str().ok())
            .map(|reason| format!(" {reason}"))
            .unwrap_or_default();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(|_| LostError::Body)?
            .to_bytes();
        self.keep(sender).await;
        if status != StatusCode::OK {
            return Err(LostError::Status(status, reason));
        }
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| LostError::Mixed)?;
        let expected = match self.target.numbers {
            Numbers::Carried => Some(id),
            Numbers::Kept => None,
        };
        if answer.id == expected && answer.body_bytes == body_bytes {
            Ok(answer)
        } else {
            Err(LostError::Mixed)
        }
    }

    fn request(&self, verb: Verb, id: u64) -> Result<(Request<Full<Bytes>>, usize), LostError> {
        let request = Request::builder()
            .uri(format!("/orders/{id}"))
            .header(header::HOST, &self.target.host)
            .header(header::USER_AGENT, "zeugma-demo");
        let request = match self.target.numbers {
            Numbers::Carried => request.header(ID_HEADER, id),
            Numbers::Kept => request,
        };
        let (request, body) = match verb {
            Verb::Get => (request.method("GET"), Bytes::new()),
            Verb::Post => {
                let order = format!("{{\"order\":{id}}}");
                let request = request
                    .method("POST")
                    .header(header::CONTENT_TYPE, "application/json");
                (request, Bytes::from(order))
            }
        };
        let bytes = body.len();
        let request = request.body(Full::new(body)).map_err(LostError::Request)?;
        Ok((request, bytes))
    }

    /// The connection used last, or a new one.
    async fn connection(&self) -> Result<SendRequest<Full<Bytes>>, LostError> {
        loop {
            let idle = self.idle().pop_back();
            match idle {
                Some(sender) if sender.is_ready() => return Ok(sender),
                Some(_closed) => {}
                None => break,
            }
        }
        let stream = TcpStream::connect(self.target.gateway)
            .await
            .map_err(LostError::Connect)?;
        stream.set_nodelay(true).ok();
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(LostError::Http)?;
        // Ends when its sender is dropped.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn keep(&self, mut sender: SendRequest<Full<Bytes>>) {
        if sender.ready().await.is_ok() {
            self.idle().push_back(sender);
        }
    }

    fn idle(&self) -> MutexGuard<'_, VecDeque<SendRequest<Full<Bytes>>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    fn target(gateway: SocketAddr) -> Target {
        Target {
            gateway,
            host: "orders.shop.svc.clusterset.local".to_owned(),
            rate: 400,
            numbers: Numbers::Carried,
        }
    }

    #[tokio::test]
    async fn keeps_its_schedule_while_nobody_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::start(target(listener.local_addr().unwrap()), Instant::now());
        let mut open = Vec::new();
        // Forty connections at once, none of them answered: a client that waits has one.
        while open.len() < 40 {
            open.push(listener.accept().await.unwrap().0);
        }
        drop(open);
        drop(listener);
        let records = client.stop().await;
        assert!(records.len() >= 40);
        assert!(records.iter().all(Record::is_lost));
        let posts = records.iter().filter(|r| r.verb == Verb::Post).count();
        assert_eq!(posts, records.len() / 5);
    }

    #[tokio::test]
    async fn another_requests_answer_and_another_status_are_losses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = listener.local_addr().unwrap();
        let body = r#"{"service":"east-1","id":77,"method":"GET","host":"o","body_bytes":0}"#;
        let mixed = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let refused =
            "HTTP/1.1 503 Service Unavailable\r\nx-zeugma-reason: no-healthy-endpoint\r\n\
                       content-length: 0\r\n\r\n"
                .to_owned();
        let connections = Connections {
            target: target(gateway),
            idle: Mutex::new(VecDeque::new()),
        };
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in [mixed, refused] {
                let mut head = [0; 4096];
                assert!(stream.read(&mut head).await.unwrap() > 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let error = connections.exchange(Verb::Get, 1).await.unwrap_err();
        assert_eq!(error.to_string(), "the answer belongs to another request");
        let error = connections.exchange(Verb::Get, 2).await.unwrap_err();
        let expected = "status 503 Service Unavailable no-healthy-endpoint";
        assert_eq!(error.to_string(), expected);
    }
}
