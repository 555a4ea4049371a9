//! What the control plane tells of itself, on a loopback address.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use zeugma_xds::Server;

/// Who asks at once.
const ASKING_MAX: usize = 64;
/// For the head of a request, and for all of a connection.
const HEAD: Duration = Duration::from_secs(5);
const ALL: Duration = Duration::from_secs(60);
const BACKOFF: Duration = Duration::from_millis(200);

/// Answers until it is dropped.
pub(super) async fn run(listener: TcpListener, server: Server, findings: Arc<Mutex<Value>>) {
    let room = Arc::new(Semaphore::new(ASKING_MAX));
    let mut asking = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_ended) = asking.join_next() => continue,
        };
        let (Ok((tcp, _)), Ok(place)) = (accepted, Arc::clone(&room).try_acquire_owned()) else {
            sleep(BACKOFF).await;
            continue;
        };
        let (server, findings) = (server.clone(), Arc::clone(&findings));
        drop(asking.spawn(async move {
            let answer = |request: Request<Incoming>| {
                let answered = answer(&request, &server, &findings);
                std::future::ready(Ok::<_, Infallible>(answered))
            };
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .serve_connection(TokioIo::new(tcp), service_fn(answer));
            // Who does not end in time is cut.
            timeout(ALL, connection).await.ok();
            drop(place);
        }));
    }
}

fn answer(
    request: &Request<Incoming>,
    server: &Server,
    findings: &Mutex<Value>,
) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; version=0.0.4";
    const JSON: &str = "application/json";
    // A page that a browser has open may ask by a name that leads here.
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_this_host) {
        let text = "name this host by a loopback address, or localhost\n";
        return reply(StatusCode::MISDIRECTED_REQUEST, TEXT, text.to_owned());
    }
    if request.method() != Method::GET {
        return reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, String::new());
    }
    match request.uri().path() {
        "/ready" if server.is_draining() => reply(
            StatusCode::SERVICE_UNAVAILABLE,
            TEXT,
            "draining\n".to_owned(),
        ),
        "/ready" => reply(StatusCode::OK, TEXT, "ready\n".to_owned()),
        "/livez" => reply(StatusCode::OK, TEXT, "live\n".to_owned()),
        "/metrics" => reply(StatusCode::OK, TEXT, server.metrics()),
        "/api/v1/nodes" => reply(StatusCode::OK, JSON, server.nodes().to_string()),
        "/api/v1/findings" => {
            let findings = findings.lock().unwrap_or_else(PoisonError::into_inner);
            reply(StatusCode::OK, JSON, findings.to_string())
        }
        _ => reply(StatusCode::NOT_FOUND, TEXT, "no such page\n".to_owned()),
    }
}

fn is_this_host(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((name, _port)) => name,
        None => host.split_once(':').map_or(host, |(name, _port)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn reply(status: StatusCode, media_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static(media_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, media_type);
    response
}
