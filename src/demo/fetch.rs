//! One HTTP/1.1 request on a connection of its own: for probes, counts and figures.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

const ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
const TIMEOUT: Duration = Duration::from_secs(2);

/// Why a request of the demo's own got no answer it can use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("cannot connect to {0}")]
    Connect(SocketAddr, #[source] std::io::Error),
    #[error("no valid HTTP answer from {0}")]
    Http(SocketAddr, #[source] hyper::Error),
    #[error("the answer of {0} broke off or is over 8 MiB")]
    Body(SocketAddr),
    #[error("no answer from {0} within 2 s")]
    Timeout(SocketAddr),
    #[error("{0}{1} answered {2}")]
    Status(SocketAddr, String, StatusCode),
    #[error("the answer of {0}{1} is not the JSON expected")]
    Json(SocketAddr, String, #[source] serde_json::Error),
}

/// Sends `request` to `to`; the answer's status and body.
pub(crate) async fn send(
    to: SocketAddr,
    mut request: Request<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), FetchError> {
    if let Ok(host) = header::HeaderValue::from_str(&to.to_string()) {
        request.headers_mut().entry(header::HOST).or_insert(host);
    }
    let exchange = async {
        let stream = TcpStream::connect(to)
            .await
            .map_err(|error| FetchError::Connect(to, error))?;
        let (mut send, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| FetchError::Http(to, error))?;
        let answer = async {
            let response = send
                .send_request(request)
                .await
                .map_err(|error| FetchError::Http(to, error))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|_| FetchError::Body(to))?;
            Ok((status, body.to_bytes()))
        };
        tokio::pin!(answer);
        tokio::select! {
            // Both are futures of this call: whichever ends first, the other is dropped with it.
            answer = &mut answer => answer,
            ended = connection => match ended {
                Err(error) => Err(FetchError::Http(to, error)),
                Ok(()) => answer.await,
            },
        }
    };
    tokio::time::timeout(TIMEOUT, exchange)
        .await
        .unwrap_or(Err(FetchError::Timeout(to)))
}

/// The body of `GET path`, where it answers 200.
pub(crate) async fn get(to: SocketAddr, path: &str) -> Result<Bytes, FetchError> {
    let mut request = Request::new(Full::default());
    *request.uri_mut() = path.parse().unwrap_or_default();
    let (status, body) = send(to, request).await?;
    if status == StatusCode::OK {
        Ok(body)
    } else {
        Err(FetchError::Status(to, path.to_owned(), status))
    }
}

/// The JSON that `GET path` answers.
pub(crate) async fn json<T: DeserializeOwned>(to: SocketAddr, path: &str) -> Result<T, FetchError> {
    let body = get(to, path).await?;
    serde_json::from_slice(&body).map_err(|error| FetchError::Json(to, path.to_owned(), error))
}
