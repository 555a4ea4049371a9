//! The Zeugma gateway: accept, peek, terminate, connect, relay, account.
//!
//! This crate touches the world and decides nothing: whether a connection may go somewhere and
//! where is asked of `zeugma-core`. It must *not* know the CA: gateway code cannot sign.

mod account;
mod admin;
mod admission;
mod capacity;
mod connection;
mod control;
mod control_plane;
mod copies;
mod documents;
pub mod explain;
mod federation;
#[cfg(test)]
mod fixture;
mod hash;
mod http;
mod identity;
mod journal;
mod listener;
mod listing;
mod logging;
mod memory;
mod metrics;
#[cfg(any(test, feature = "otlp"))]
mod otlp;
mod peek;
mod peer;
mod policy;
mod probe;
mod proxy_protocol;
mod pulse;
mod recheck;
mod relay;
mod resolve;
mod runtime;
pub mod simulation;
mod state;
mod tap;
pub mod tls;
mod transport;
mod upstream;
mod walk;
mod watch;

pub use admin::BindError;
pub use control::handover::HandoverError;
pub use control::inherit::InheritError;
pub use control::{GatewayError, GatewayOptions, Start, run};
pub use control_plane::reach_control_plane;
pub use documents::Documents;
pub use logging::{LogFormat, Logging};
pub use resolve::addresses_of;
pub use state::StateError;
pub use watch::Watch;
