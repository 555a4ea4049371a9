//! HTTP/1.1 (RFC 9112) of our own on `httparse`: one task carries a caller's connection, the request
//! and the connection to the endpoint, so that nothing is handed from one to another.
//!
//! ```text
//! socket <- wire: buffers borrowed from the worker while bytes move -> socket
//!            |  head: what a head says, and how it is written
//!            |  framing: where a body ends, and what of it came
//!            |  sending: a body on its way out
//!          client: to an endpoint        server: of a caller
//! ```
//!
//! What can be read in two ways is refused, not guessed at: it is what smuggles requests.

mod client;
mod framing;
mod head;
mod sending;
mod server;
mod wire;

use std::io;

pub(crate) use self::client::Asked;
pub(in crate::http) use self::client::Connection;
pub(in crate::http) use self::head::{write_header, write_request_line};
pub(crate) use self::server::RequestBody;
pub(in crate::http) use self::server::Served;
pub(crate) use self::wire::Rewound;
use super::body::BodyError;

/// Why a connection cannot be used further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The other end broke a rule.
    #[error("invalid HTTP/1.1 from the other end: {0}")]
    Malformed(#[from] Malformed),
    /// It closed the connection within a message, or before one.
    #[error("the connection was closed before the message was complete")]
    Incomplete,
    /// The other end said something, or closed it, before the request was sent.
    #[error("the connection was closed or spoken on before the request was sent")]
    NotQuiet,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// What was to be sent failed.
    #[error("the body failed: {0}")]
    Body(#[source] Box<BodyError>),
    /// What was to be sent is not what its head says.
    #[error("the body is not as long as its head says")]
    Length,
}

/// A rule of HTTP/1.1 that the other end broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// The start line, or a header.
    #[error("{0}")]
    Head(httparse::Error),
    /// RFC 9112 §2.2: a line ends by CR LF.
    #[error("a line that does not end by CR LF")]
    LineEnd,
    /// More than is taken.
    #[error("a head that is too long")]
    TooLong,
    /// More than is taken.
    #[error("too many headers")]
    TooMany,
    /// The method, target or status.
    #[error("invalid start line")]
    StartLine,
    /// Longer than is taken.
    #[error("a request target that is too long")]
    TargetTooLong,
    /// RFC 9110 §8.6.
    #[error("invalid content-length")]
    ContentLength,
    /// RFC 9112 §6.1.
    #[error("invalid transfer-encoding")]
    TransferEncoding,
    /// RFC 9112 §7.1.
    #[error("invalid chunk")]
    Chunk,
    /// RFC 9112 §7.1.2.
    #[error("invalid or too many trailers")]
    Trailers,
    /// RFC 9110 §15.2.
    #[error("too many interim responses")]
    Interims,
}

#[cfg(test)]
mod tests;
