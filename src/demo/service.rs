//! A service of the demo: holds each request for a moment, counts it, and says who it is.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::hold::Hold;
use super::journal::{Entry, Event, Verb};

/// The header by which the demo's client numbers its requests.
pub(crate) const ID_HEADER: &str = "x-demo-id";

const BODY_BYTES_MAX: usize = 1024 * 1024;
const CONNECTIONS_MAX: usize = 4096;
/// More than any run of the demo sends; what comes after is answered but no longer told apart.
const IDS_MAX: usize = 1_000_000;

/// What `zeugma demo-service` is told.
#[derive(Debug, clap::Args)]
pub(crate) struct ServiceArgs {
    /// Where it listens
    #[arg(long)]
    pub(crate) listen: SocketAddr,
    /// The name it answers with
    #[arg(long)]
    pub(crate) name: String,
    /// How long it holds each request
    #[arg(long, default_value = "50ms-200ms")]
    pub(crate) hold: Hold,
    /// A file it appends a line to for each request it receives and answers
    #[arg(long)]
    pub(crate) journal: Option<PathBuf>,
}

/// What a service says it has counted, as `/counts` answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// The service's name.
    pub(crate) service: String,
    /// GET requests with an id, each id once.
    pub(crate) gets: u64,
    /// POST requests with an id, each id once.
    pub(crate) posts: u64,
    /// Requests whose id had been seen before.
    pub(crate) repeated: u64,
    /// Requests without an id.
    pub(crate) unnumbered: u64,
    /// Requests it is holding.
    pub(crate) in_flight: u64,
}

/// What a service answers a request with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// The service's name.
    pub(crate) service: String,
    /// The request's id, where it had one.
    pub(crate) id: Option<u64>,
    /// The request's method.
    pub(crate) method: String,
    /// The request's authority.
    pub(crate) host: String,
    /// How many bytes its body had.
    pub(crate) body_bytes: usize,
    /// The caller's identity as the gateway handed it on.
    #[serde(rename = "x-forwarded-client-cert")]
    pub(crate) forwarded_client_cert: Option<String>,
}

/// Runs a service until its process ends.
///
/// # Errors
/// When the journal cannot be opened or the address cannot be bound.
pub(crate) async fn run(args: ServiceArgs) -> io::Result<()> {
    let listener = bind(args.listen).await?;
    let service = Arc::new(Service::new(args)?);
    serve(listener, service).await
}

/// A restarted service may find its predecessor's port still held by a connection's other end.
async fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let mut tries = 20;
    loop {
        match TcpListener::bind(listen).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {
                tries -= 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            bound => return bound,
        }
    }
}

async fn serve(listener: TcpListener, service: Arc<Service>) -> io::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS_MAX {
            connections.join_next().await;
        }
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        stream.set_nodelay(true).ok();
        let service = Arc::clone(&service);
        connections.spawn(async move {
            let answer = service_fn(|request| answer(Arc::clone(&service), request));
            auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), answer)
                .await
                .ok();
        });
    }
}

#[derive(Debug)]
struct Service {
    name: String,
    journal: Option<File>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    hold: Hold,
    counts: Counts,
    seen: HashMap<u64, Verb>,
}

impl Service {
    fn new(args: ServiceArgs) -> io::Result<Self> {
        let journal = args
            .journal
            .map(|path| OpenOptions::new().create(true).append(true).open(path))
            .transpose()?;
        Ok(Self {
            journal,
            state: Mutex::new(State {
                hold: args.hold,
                counts: Counts {
                    service: args.name.clone(),
                    gets: 0,
                    posts: 0,
                    repeated: 0,
                    unnumbered: 0,
                    in_flight: 0,
                },
                seen: HashMap::new(),
            }),
            name: args.name,
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request that has arrived whole, and draws how long to hold it.
    fn receive(self: &Arc<Self>, verb: Verb, id: Option<u64>) -> (Held, Duration) {
        let hold = {
            let mut state = self.state();
            state.counts.in_flight += 1;
            match id {
                None => state.counts.unnumbered += 1,
                Some(id) if state.seen.contains_key(&id) => state.counts.repeated += 1,
                Some(id) => {
                    if state.seen.len() < IDS_MAX {
                        state.seen.insert(id, verb);
                    }
                    match verb {
                        Verb::Get => state.counts.gets += 1,
                        Verb::Post => state.counts.posts += 1,
                    }
                }
            }
            state.hold.draw()
        };
        self.note(verb, id, Event::Received);
        let held = Held {
            service: Arc::clone(self),
        };
        (held, hold)
    }

    /// A line in the journal outlives the process, even one that is killed, since the write has
    /// left it.
    fn note(&self, verb: Verb, id: Option<u64>, event: Event) {
        if let (Some(mut journal), Some(id)) = (self.journal.as_ref(), id) {
            let line = format!("{}\n", Entry { verb, id, event });
            // Whoever compares the counts finds the line missing; the request is answered anyway.
            journal.write_all(line.as_bytes()).ok();
        }
    }
}

/// A request being held; counts itself out when answered or when its caller goes away.
#[derive(Debug)]
struct Held {
    service: Arc<Service>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.service.state();
        state.counts.in_flight = state.counts.in_flight.saturating_sub(1);
    }
}

async fn answer(
    service: Arc<Service>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        return Ok(text(
            &service,
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is over 1 MiB\n",
        ));
    };
    let body = body.to_bytes();
    Ok(match (&head.method, head.uri.path()) {
        (_, "/healthz") => text(&service, StatusCode::OK, "ok\n"),
        (&Method::GET, "/counts") => {
            let counts = service.state().counts.clone();
            json(&service, &counts)
        }
        (&Method::PUT, "/hold") => hold(&service, &body),
        (&Method::GET, _) => held(&service, Verb::Get, &head, body.len()).await,
        (&Method::POST, _) => held(&service, Verb::Post, &head, body.len()).await,
        _ => text(
            &service,
            StatusCode::METHOD_NOT_ALLOWED,
            "only GET and POST are counted\n",
        ),
    })
}

fn hold(service: &Service, body: &[u8]) -> Response<Full<Bytes>> {
    let wanted = std::str::from_utf8(body).unwrap_or_default().trim();
    match wanted.parse() {
        Ok(hold) => {
            service.state().hold = hold;
            text(service, StatusCode::OK, "done\n")
        }
        Err(error) => text(service, StatusCode::BAD_REQUEST, &format!("{error}\n")),
    }
}

async fn held(
    service: &Arc<Service>,
    verb: Verb,
    head: &http::request::Parts,
    body_bytes: usize,
) -> Response<Full<Bytes>> {
    let field = |name: &str| {
        let value = head.headers.get(name)?.to_str().ok()?;
        Some(value.to_owned())
    };
    let id = field(ID_HEADER).and_then(|id| id.parse().ok());
    let (_held, span) = service.receive(verb, id);
    tokio::time::sleep(span).await;
    service.note(verb, id, Event::Answered);
    let authority = head.uri.authority().map(ToString::to_string);
    let answer = Answer {
        service: service.name.clone(),
        id,
        method: head.method.to_string(),
        host: authority.or_else(|| field("host")).unwrap_or_default(),
        body_bytes,
        forwarded_client_cert: field("x-forwarded-client-cert"),
    };
    json(service, &answer)
}

fn json<T: Serialize>(service: &Service, value: &T) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(mut bytes) => {
            bytes.push(b'\n');
            respond(service, StatusCode::OK, "application/json", bytes)
        }
        Err(error) => text(
            service,
            StatusCode::INTERNAL_SERVER_ERROR,
            &format!("{error}\n"),
        ),
    }
}

fn text(service: &Service, status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    respond(
        service,
        status,
        "text/plain; charset=utf-8",
        text.as_bytes().to_vec(),
    )
}

fn respond(
    service: &Service,
    status: StatusCode,
    content_type: &'static str,
    body: Vec<u8>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(content_type),
    );
    if let Ok(name) = header::HeaderValue::from_str(&service.name) {
        headers.insert("x-demo-service", name);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::fetch;
    use crate::demo::journal::Journal;

    async fn started(hold: &str, journal: Option<PathBuf>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let args = ServiceArgs {
            listen: address,
            name: "east-1".to_owned(),
            hold: hold.parse().unwrap(),
            journal,
        };
        let service = Arc::new(Service::new(args).unwrap());
        tokio::spawn(serve(listener, service));
        address
    }

    fn numbered(method: Method, id: u64) -> Request<Full<Bytes>> {
        Request::builder()
            .method(method)
            .uri("/orders")
            .header("host", "orders")
            .header(ID_HEADER, id)
            .header("x-forwarded-client-cert", "By=a;URI=b")
            .body(Full::new(Bytes::from_static(b"12345")))
            .unwrap()
    }

    #[tokio::test]
    async fn counts_each_id_once_and_says_what_it_saw() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let address = started("0ms", Some(path.clone())).await;
        for (method, id) in [
            (Method::GET, 1),
            (Method::GET, 1),
            (Method::GET, 2),
            (Method::POST, 3),
        ] {
            let (status, body) = fetch::send(address, numbered(method, id)).await.unwrap();
            assert_eq!(status, StatusCode::OK);
            let answer: Answer = serde_json::from_slice(&body).unwrap();
            assert_eq!(answer.service, "east-1");
            assert_eq!(answer.id, Some(id));
            assert_eq!(answer.body_bytes, 5);
            assert_eq!(answer.forwarded_client_cert.as_deref(), Some("By=a;URI=b"));
        }
        let counts: Counts = fetch::json(address, "/counts").await.unwrap();
        assert_eq!((counts.gets, counts.posts, counts.repeated), (2, 1, 1));
        assert_eq!(counts.in_flight, 0);
        let journal = Journal::read("east-1", &path).unwrap();
        assert_eq!(journal.received(Verb::Get, 1), 2);
        assert_eq!(journal.received(Verb::Post, 3), 1);
        assert_eq!(journal.answered(Verb::Post, 3), 1);
    }

    #[tokio::test]
    async fn holds_as_long_as_it_is_told_to() {
        let address = started("0ms", None).await;
        let put = Request::put("/hold").body(Full::from("40ms-60ms")).unwrap();
        assert_eq!(fetch::send(address, put).await.unwrap().0, StatusCode::OK);
        let before = std::time::Instant::now();
        fetch::send(address, numbered(Method::GET, 9))
            .await
            .unwrap();
        assert!(before.elapsed() >= Duration::from_millis(40));
        let put = Request::put("/hold").body(Full::from("soon")).unwrap();
        let (status, text) = fetch::send(address, put).await.unwrap();
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(String::from_utf8_lossy(&text).contains("`soon` is no span of time"));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_and_not_counted() {
        let address = started("0ms", None).await;
        let mut request = numbered(Method::POST, 1);
        *request.body_mut() = Full::from(vec![0; BODY_BYTES_MAX + 1]);
        let (status, _) = fetch::send(address, request).await.unwrap();
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        let counts: Counts = fetch::json(address, "/counts").await.unwrap();
        assert_eq!((counts.posts, counts.unnumbered), (0, 0));
    }

    #[tokio::test]
    async fn speaks_http2_without_tls_too() {
        let address = started("0ms", None).await;
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = Request::get(format!("http://{address}/orders"))
            .header(ID_HEADER, 5)
            .body(Full::<Bytes>::default())
            .unwrap();
        let response = send.send_request(request).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_2);
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let answer: Answer = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer.host, address.to_string());
    }
}
