//! The gateway as its users see it: real processes, sockets and certificates.
#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(clippy::panic, reason = "tests")]

mod data_client;
mod data_http;
mod data_mesh;
mod data_services;
#[path = "../interop/pki.rs"]
mod pki;
#[path = "../support/process.rs"]
mod process;

mod support {
    pub(crate) use crate::process;
}
