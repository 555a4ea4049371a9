//! TLS alerts that are sent and seen without a TLS session (RFC 8446 §6).

use std::time::Duration;

use rustls::AlertDescription;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How much of what the caller still sends is read away after an alert, so that closing does not
/// reset the connection before the alert is read.
const LINGER_BYTES_MAX: usize = 64 * 1024;
/// How long it is read away.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// How long writing an alert may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// The alerts a gateway sends before or instead of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alert {
    /// The bytes make no sense.
    DecodeError,
    /// The hello is over the limit or of a wrong type.
    IllegalParameter,
    /// The service is not for this caller.
    AccessDenied,
    /// No healthy endpoint in this cluster: the calling gateway may try elsewhere.
    InternalError,
    /// No such service.
    UnrecognizedName,
}

impl Alert {
    const fn description(self) -> u8 {
        match self {
            Self::IllegalParameter => 47,
            Self::AccessDenied => 49,
            Self::DecodeError => 50,
            Self::InternalError => 80,
            Self::UnrecognizedName => 112,
        }
    }

    /// The name in RFC 8446 §6.2.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::IllegalParameter => "illegal_parameter",
            Self::AccessDenied => "access_denied",
            Self::DecodeError => "decode_error",
            Self::InternalError => "internal_error",
            Self::UnrecognizedName => "unrecognized_name",
        }
    }

    /// The fatal alert as a plaintext record.
    pub(crate) const fn record(self) -> [u8; 7] {
        [21, 3, 3, 0, 2, 2, self.description()]
    }
}

/// The name in RFC 8446 §6.2 of an alert that the TLS library sends for a refused certificate.
pub(crate) fn name_of(alert: AlertDescription) -> Option<&'static str> {
    const NAMES: [(AlertDescription, &str); 12] = [
        (AlertDescription::BadCertificate, "bad_certificate"),
        (
            AlertDescription::UnsupportedCertificate,
            "unsupported_certificate",
        ),
        (AlertDescription::CertificateRevoked, "certificate_revoked"),
        (AlertDescription::CertificateExpired, "certificate_expired"),
        (AlertDescription::CertificateUnknown, "certificate_unknown"),
        (AlertDescription::IllegalParameter, "illegal_parameter"),
        (AlertDescription::UnknownCA, "unknown_ca"),
        (AlertDescription::AccessDenied, "access_denied"),
        (AlertDescription::DecodeError, "decode_error"),
        (AlertDescription::DecryptError, "decrypt_error"),
        (AlertDescription::InternalError, "internal_error"),
        (
            AlertDescription::CertificateRequired,
            "certificate_required",
        ),
    ];
    let found = NAMES.iter().find(|(of, _)| *of == alert);
    found.map_or_else(|| alert.as_str(), |(_, name)| Some(*name))
}

/// Whether `bytes` begin with the fatal alert by which a gateway says it has no healthy endpoint.
pub(crate) fn is_no_local_endpoint(bytes: &[u8]) -> bool {
    matches!(bytes, [21, 3, _, 0, 2, 2, 80, ..])
}

/// Sends `last` and ends the connection so that the caller can still read it.
pub(crate) async fn say_and_close(mut tcp: TcpStream, last: &[u8]) {
    let said = tokio::time::timeout(WRITE_TIMEOUT, async {
        tcp.write_all(last).await?;
        tcp.shutdown().await
    })
    .await;
    if matches!(said, Ok(Ok(()))) {
        linger(tcp).await;
    }
}

/// Ends a connection over which an alert was sent, so that the caller can still read it.
pub(crate) async fn close_after_alert(mut tcp: TcpStream) {
    if tcp.shutdown().await.is_ok() {
        linger(tcp).await;
    }
}

/// As [`close_after_alert`], but takes no time: reads away only what has come.
pub(crate) async fn hang_up_after_alert(mut tcp: TcpStream) {
    if tcp.shutdown().await.is_err() {
        return;
    }
    let mut sink = [0; 4096];
    let mut left = LINGER_BYTES_MAX;
    while left > 0 {
        match tcp.try_read(&mut sink) {
            Ok(0) | Err(_) => return,
            Ok(n) => left = left.saturating_sub(n),
        }
    }
}

/// Reads away what the caller still sends.
async fn linger(mut tcp: TcpStream) {
    let linger = async {
        let mut sink = vec![0; 4096];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match tcp.read(&mut sink).await {
                Ok(0) | Err(_) => return,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    };
    // An error or the deadline both mean the same: it may be closed.
    drop(tokio::time::timeout(LINGER_TIMEOUT, linger).await);
}
