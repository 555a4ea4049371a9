//! Active checks: one question to one endpoint, over the transport that its traffic takes.

use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Version, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use zeugma_core::fleet::Probe;
use zeugma_core::snapshot::{ActiveKind, EndpointKey, HttpVersion};

use crate::http::headers::add_via;
use crate::runtime::Shared;
use crate::transport::mtls::{ALPN_H2, ALPN_HTTP1};
use crate::upstream::{self, Upstream};

/// What a check says of itself.
const USER_AGENT: &str = "zeugma-health/1";

/// Asks once; `false` is any answer but a good one in time.
pub(crate) async fn probe(shared: Arc<Shared>, probe: Probe) -> (EndpointKey, bool) {
    let asking = ask(&shared, &probe);
    let good = match timeout(probe.check.timeout, Box::pin(asking)).await {
        Ok(Ok(())) => true,
        Ok(Err(why)) => {
            tracing::debug!(endpoint = %probe.key, %why, "active check failed");
            false
        }
        Err(_elapsed) => {
            tracing::debug!(endpoint = %probe.key, "active check got no answer in time");
            false
        }
    };
    (probe.key, good)
}

async fn ask(shared: &Arc<Shared>, probe: &Probe) -> Result<(), String> {
    let endpoint = &probe.endpoint;
    let through_peer = endpoint.peer.is_some();
    let alpn: &[&[u8]] = match (&probe.check.kind, endpoint.version) {
        (ActiveKind::Tcp, _) => &[],
        (ActiveKind::Http { .. }, _) if through_peer => &[ALPN_H2, ALPN_HTTP1],
        (ActiveKind::Http { .. }, HttpVersion::H2) => &[ALPN_H2],
        (ActiveKind::Http { .. }, HttpVersion::H1 | HttpVersion::Same) => &[ALPN_HTTP1],
    };
    let connected = upstream::connect(shared, probe.connect, endpoint, alpn).await;
    let Upstream { stream, alpn, .. } = connected.map_err(|error| error.to_string())?;
    let ActiveKind::Http { path, host } = &probe.check.kind else {
        return Ok(());
    };
    let is_h2 = alpn.as_deref() == Some(ALPN_H2)
        || (alpn.is_none() && endpoint.version == HttpVersion::H2 && !through_peer);
    let version = if is_h2 {
        Version::HTTP_2
    } else {
        Version::HTTP_11
    };
    let way = if through_peer { Way::Peer } else { Way::Direct };
    let io = TokioIo::new(stream);
    let request = question(path, host, version, way)?;
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
    let status = response.map_err(|error| error.to_string())?.status();
    if status.is_success() {
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
        add_via(headers, Version::HTTP_11);
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
}
