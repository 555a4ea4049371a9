//! The client of a secret discovery service (SDS): a certificate and whom to trust, as plain bytes.
//!
//! ```text
//! one stream for each secret --read--> hear --Ok--> ACK
//!   `-- every one of one connection     `---Err--> NACK with why (P49); what was there before stays
//! ```
//!
//! Each secret has a stream of its own, as an Envoy opens them: there are services that take no more than
//! one name. It opens no socket: who asks has dialled. What a secret is worth is judged by who hears it.

mod read;
mod stream;

pub use self::read::{Secret, TrustBundle};
pub use self::stream::{Asked, Ended, Heard, follow};
