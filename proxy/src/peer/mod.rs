//! `zeugma-peer/1`: gateways of different clusters report to each other how what they export stands.
//!
//! ```text
//! (east) ask --mTLS, SNI peer.zeugma.internal, ALPN zeugma-peer/1--> (west) tell
//!     `--Watch-->                                                    |
//!     <-- whole report, then what changes, and a beat every 2 s -----'
//!     |
//!     `--> core fleet: weight and healthy share of west's gateway, by service
//! ```
//!
//! It is gRPC: `message` knows its bytes, and no other module does. What a report says is the core's
//! (`report`), what follows from it too (`fleet`).

pub(crate) mod ask;
mod message;
pub(crate) mod tell;

use std::time::Duration;

use tokio::sync::watch;

use self::ask::Standings;
use self::tell::{Reporting, Tidings};

/// What the threads share of health reports.
#[derive(Debug, Default)]
pub(crate) struct PeerSide {
    /// What reports are made of; sent whenever it changes.
    pub(crate) tidings: watch::Sender<Tidings>,
    /// Those that are told.
    reporting: Reporting,
    /// How things stand with those of peers.
    pub(crate) standings: Standings,
}

/// The path of the one method.
const METHOD: &str = "/zeugma.peer.v1.Health/Watch";
/// What gRPC bodies are called.
const MEDIA_TYPE: &str = "application/grpc";
/// The header or trailer that says how a call ended.
const STATUS: &str = "grpc-status";
/// How often it is said that a report still holds.
const BEAT: Duration = Duration::from_secs(2);

/// The statuses of gRPC that are said and understood.
mod status {
    pub(super) const OK: &str = "0";
    pub(super) const NOT_FOUND: &str = "5";
    pub(super) const PERMISSION_DENIED: &str = "7";
    pub(super) const RESOURCE_EXHAUSTED: &str = "8";
    pub(super) const UNIMPLEMENTED: &str = "12";
    pub(super) const UNAVAILABLE: &str = "14";
}
