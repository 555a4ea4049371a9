//! SPIFFE mTLS: ended here with our SVID, or begun here towards an endpoint that must answer with
//! an expected one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use zeugma_core::identity::IdPattern;

use super::alert::{close_after_alert, hang_up_after_alert};
use super::{Prefixed, Stream};
use crate::tls::{
    self, Admit, Credentials, PeerSlot, Refusal, TlsPeer, TlsStream, upstream_config,
};

/// HTTP/2 (RFC 9113 §3.2).
pub(crate) const ALPN_H2: &[u8] = b"h2";
/// HTTP/1.1 (RFC 7301 §6).
pub(crate) const ALPN_HTTP1: &[u8] = b"http/1.1";
/// Bytes of a TCP service between two gateways, after a PROXY v2 header with the caller's ID.
pub(crate) const ALPN_TCP: &[u8] = b"zeugma-tcp/1";

/// A TLS session whose other end is known.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) stream: Stream,
    pub(crate) peer: Arc<TlsPeer>,
    pub(crate) alpn: Option<Vec<u8>>,
    /// The key exchange, where we were called.
    pub(crate) group: Option<&'static str>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The handshake did not end in time.
    #[error("the TLS handshake took over {0:?}")]
    Timeout(Duration),
    /// The other end's certificate breaks a rule.
    #[error("{0}")]
    Refused(Refusal),
    /// Anything else in the handshake.
    #[error("the TLS handshake failed: {0}")]
    Handshake(std::io::Error),
    /// rustls does not take our own configuration.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
    /// The SNI is not a host name.
    #[error("`{0}` is not a server name")]
    ServerName(Arc<str>),
}

/// Ends the caller's TLS with our SVID; `admit` may refuse its identity inside the handshake.
///
/// # Errors
/// As [`SessionError`]; the alert has been sent.
pub(crate) async fn terminate(
    tcp: Prefixed,
    credentials: &Arc<Credentials>,
    alpn: &[&[u8]],
    admit: Option<Admit>,
    deadline: Duration,
) -> Result<Session, SessionError> {
    let (accepting, slot) =
        tls::accept(credentials, alpn, admit, tcp).map_err(SessionError::Setup)?;
    let stream = match timeout(deadline, accepting).await {
        Err(_elapsed) => return Err(SessionError::Timeout(deadline)),
        Ok(Err((error, tcp))) => {
            // A caller may send its request behind its part of the handshake: closing before that
            // is read would reset the connection, and take the alert away.
            close_after_alert(tcp.into_tcp()).await;
            return Err(explain(error, &slot));
        }
        Ok(Ok(stream)) => stream,
    };
    let session = stream.session();
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let group = (session.negotiated_key_exchange_group()).and_then(|group| group.name().as_str());
    let peer = slot.peer().cloned().ok_or_else(unverified)?;
    Ok(Session {
        stream: Stream::Terminated(stream),
        peer,
        alpn,
        group,
    })
}

/// Begins TLS with our SVID towards an endpoint at `address` whose SPIFFE ID must be one of
/// `expected`.
///
/// # Errors
/// As [`SessionError`].
pub(crate) async fn originate(
    (tcp, address): (TcpStream, SocketAddr),
    credentials: &Arc<Credentials>,
    sni: &Arc<str>,
    expected: &[IdPattern],
    alpn: &[&[u8]],
) -> Result<Session, SessionError> {
    let name = ServerName::try_from(sni.to_string())
        .map_err(|_invalid| SessionError::ServerName(Arc::clone(sni)))?;
    let (config, slot) =
        upstream_config(credentials, address, expected, alpn).map_err(SessionError::Setup)?;
    let carrier = Prefixed::new(tcp, Vec::new());
    let connecting = TlsStream::connect(config, name, carrier);
    let stream = match connecting.await {
        Err((error, carrier)) => {
            // Another endpoint may be tried: nobody waits for this one to have read the alert.
            hang_up_after_alert(carrier.into_tcp()).await;
            return Err(explain(error, &slot));
        }
        Ok(stream) => stream,
    };
    let session = stream.session();
    let alpn = session.alpn_protocol().map(<[u8]>::to_vec);
    let peer = slot.peer().cloned().ok_or_else(unverified)?;
    Ok(Session {
        stream: Stream::Originated(stream),
        peer,
        alpn,
        group: None,
    })
}

fn explain(error: std::io::Error, slot: &PeerSlot) -> SessionError {
    match slot.refusal(&error) {
        Some(refusal) => SessionError::Refused(refusal),
        None => SessionError::Handshake(error),
    }
}

/// A handshake that ended without the verifier's verdict: refused, though it cannot happen.
fn unverified() -> SessionError {
    SessionError::Handshake(std::io::Error::other("the other end was not verified"))
}
