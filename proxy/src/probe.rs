//! Active checks: one question to one endpoint, over the transport that its traffic takes.

mod grpc;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Version, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use time::OffsetDateTime;
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;
use zeugma_core::fleet::Probe;
use zeugma_core::snapshot::{ActiveKind, EndpointKey, HttpVersion};
use zeugma_core::verdict::Reason;

use crate::http::date;
use crate::http::headers::{ZEUGMA_REASON, via};
use crate::runtime::Shared;
use crate::transport::Stream;
use crate::transport::mtls::{ALPN_H2, ALPN_HTTP1};
use crate::upstream::{self, First, Upstream};

/// What a check says of itself.
const USER_AGENT: &str = "zeugma-health/1";

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finding {
    Good,
    /// Any answer but a good one in time.
    Bad,
    /// The endpoint was not asked, for a reason of our own.
    Unasked,
}

/// Why a check is not good.
#[derive(Debug)]
enum Failed {
    Ours(String),
    Theirs(String),
}

/// Asks once.
pub(crate) async fn probe(shared: Arc<Shared>, probe: Probe) -> (EndpointKey, Finding) {
    let asking = ask(&shared, &probe);
    let finding = match timeout(probe.check.timeout, Box::pin(asking)).await {
        Ok(Ok(())) => Finding::Good,
        Ok(Err(Failed::Theirs(why))) => {
            tracing::debug!(endpoint = %probe.key, %why, "active check failed");
            Finding::Bad
        }
        Ok(Err(Failed::Ours(why))) => {
            tracing::warn!(
                code = "ZG0427",
                endpoint = %probe.key, %why,
                "active check cannot be made; the endpoint's health stays as it is"
            );
            Finding::Unasked
        }
        Err(_elapsed) => {
            tracing::debug!(endpoint = %probe.key, "active check got no answer in time");
            Finding::Bad
        }
    };
    (probe.key, finding)
}

async fn ask(shared: &Arc<Shared>, probe: &Probe) -> Result<(), Failed> {
    let endpoint = &probe.endpoint;
    let through_peer = endpoint.peer.is_some();
    let alpn: &[&[u8]] = match (&probe.check.kind, endpoint.version) {
        (ActiveKind::Tcp, _) => &[],
        (ActiveKind::Grpc { .. }, _) => &[ALPN_H2],
        (ActiveKind::Http { .. }, _) if through_peer => &[ALPN_H2, ALPN_HTTP1],
        (ActiveKind::Http { .. }, HttpVersion::H2) => &[ALPN_H2],
        (ActiveKind::Http { .. }, HttpVersion::H1 | HttpVersion::Same) => &[ALPN_HTTP1],
    };
    let first = match &probe.check.kind {
        ActiveKind::Tcp => First::Anyone,
        ActiveKind::Grpc { .. } | ActiveKind::Http { .. } => First::We,
    };
    let connected = upstream::connect(shared, probe.connect, endpoint, alpn, first).await;
    let Upstream {
        mut stream, alpn, ..
    } = connected.map_err(|error| {
        let why = error.to_string();
        if error.is_ours() {
            Failed::Ours(why)
        } else {
            Failed::Theirs(why)
        }
    })?;
    let way = if through_peer { Way::Peer } else { Way::Direct };
    let (path, host) = match &probe.check.kind {
        ActiveKind::Http { path, host } => (path, host),
        ActiveKind::Grpc { service, host } => {
            return Ok(grpc::check(stream, service, host, way).await?);
        }
        ActiveKind::Tcp => {
            // The endpoint is not left with half a handshake.
            let flushed = stream.flush().await;
            return flushed.map_err(|error| Failed::Theirs(error.to_string()));
        }
    };
    let is_h2 = alpn.as_deref() == Some(ALPN_H2)
        || (alpn.is_none() && endpoint.version == HttpVersion::H2 && !through_peer);
    let version = if is_h2 {
        Version::HTTP_2
    } else {
        Version::HTTP_11
    };
    let response = exchange(stream, question(path, host, version, way)?, is_h2);
    let (status, headers) = response.await?;
    Ok(judge(way, status, &headers)?)
}

/// When the gateway behind `stream`, which speaks HTTP/2, answered by its own clock. It is asked for a
/// host that it does not have, so that nobody else answers.
pub(crate) async fn date_of(stream: Stream) -> Option<OffsetDateTime> {
    let nobody = question("/", "clock.zeugma.invalid", Version::HTTP_2, Way::Peer).ok()?;
    let (_, headers) = exchange(stream, nobody, true).await.ok()?;
    date::parse(headers.get(header::DATE)?)
}

async fn exchange(
    stream: Stream,
    request: Request<Empty<Bytes>>,
    is_h2: bool,
) -> Result<(StatusCode, HeaderMap), String> {
    let io = TokioIo::new(stream);
    let response = if is_h2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(crate::http::OnThisWorker, io)
                .await
                .map_err(|error| error.to_string())?;
        tokio::select! {
            response = sender.send_request(request) => response,
            ended = connection => Err(ended.err().ok_or("the endpoint closed the connection")?),
        }
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io)
            .await
            .map_err(|error| error.to_string())?;
        tokio::select! {
            response = sender.send_request(request) => response,
            ended = connection => Err(ended.err().ok_or("the endpoint closed the connection")?),
        }
    };
    let (head, _body) = response.map_err(|error| error.to_string())?.into_parts();
    Ok((head.status, head.headers))
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self::Theirs(why)
    }
}

/// Whether an answer is good.
///
/// Behind a peer's gateway the check is a request like any other, of our gateway's identity: the far
/// side's rules may well not allow it, or not know its path. A refusal by 403, 404 or 421 is said by
/// a gateway or service that is alive, so only an answer that says that nothing is there to serve
/// counts as bad.
fn judge(way: Way, status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
    let is_good = match way {
        Way::Direct => status.is_success(),
        Way::Peer => {
            let nothing_there = Reason::NoLocalEndpoint.label();
            let says_so = headers
                .get(&ZEUGMA_REASON)
                .is_some_and(|why| why == nothing_there);
            !says_so && !status.is_server_error()
        }
    };
    if is_good {
        Ok(())
    } else {
        Err(format!("answered {status}"))
    }
}

/// How a check reaches its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Peer,
}

/// The request of a check.
fn question(
    path: &str,
    host: &str,
    version: Version,
    way: Way,
) -> Result<Request<Empty<Bytes>>, String> {
    let is_h2 = version == Version::HTTP_2;
    let mut request = Request::get(if is_h2 {
        format!("http://{host}{path}")
    } else {
        path.to_owned()
    })
    .header(header::USER_AGENT, USER_AGENT);
    if !is_h2 {
        request = request.header(header::HOST, host);
    }
    if way == Way::Peer
        && let Some(headers) = request.headers_mut()
    {
        // A check begins as HTTP/1.1, as it does where we ask the endpoint ourselves. Else the
        // peer's `version: same` endpoints would be asked by HTTP/2, only because gateways speak it.
        headers.append(header::VIA, via(Version::HTTP_11));
    }
    request
        .body(Empty::new())
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::headers::began_as_h2;

    #[test]
    fn a_check_through_a_peer_reaches_its_endpoints_by_the_version_it_has_without_one() {
        let direct = question("/healthz", "orders.shop", Version::HTTP_11, Way::Direct).unwrap();
        assert_eq!(direct.uri(), "/healthz");
        assert_eq!(direct.headers().get(header::HOST).unwrap(), "orders.shop");
        assert_eq!(began_as_h2(direct.headers()), None);

        let through = question("/healthz", "orders.shop", Version::HTTP_2, Way::Peer).unwrap();
        assert_eq!(through.uri(), "http://orders.shop/healthz");
        assert_eq!(began_as_h2(through.headers()), Some(false));
    }

    #[test]
    fn a_refusal_by_a_peer_is_a_sign_of_life_and_one_by_an_endpoint_is_not() {
        let plain = HeaderMap::new();
        let mut none_there = HeaderMap::new();
        none_there.insert(ZEUGMA_REASON, "no-local-endpoint".parse().unwrap());
        let good = |way, status, headers: &HeaderMap| {
            judge(way, StatusCode::from_u16(status).unwrap(), headers).is_ok()
        };
        for status in [200, 204] {
            assert!(good(Way::Direct, status, &plain), "{status}");
            assert!(good(Way::Peer, status, &plain), "{status}");
        }
        for status in [302, 401, 403, 404, 421] {
            assert!(!good(Way::Direct, status, &plain), "{status}");
            assert!(good(Way::Peer, status, &plain), "{status}");
        }
        for status in [500, 502, 503, 504] {
            assert!(!good(Way::Direct, status, &plain), "{status}");
            assert!(!good(Way::Peer, status, &plain), "{status}");
        }
        assert!(!good(Way::Peer, 503, &none_there));
        assert!(!good(Way::Peer, 200, &none_there));
    }
}
