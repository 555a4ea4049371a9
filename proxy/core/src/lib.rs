//! The decisions of the Zeugma gateway: who is calling, where a connection may go, and which
//! endpoint answers it.
//!
//! Nothing in this crate touches the world. It must *not* know sockets, clocks, random sources,
//! files, threads, TLS stacks or configuration formats: time ([`time::Time`]) and randomness
//! (`draw`) are arguments, so that the gateway, the simulator and the tests drive the same code.

pub mod admission;
pub mod authorize;
pub mod balance;
pub mod capacity;
pub mod codes;
pub mod engine;
pub mod explain;
pub mod fleet;
pub mod health;
pub mod hello;
pub mod identity;
pub mod line;
mod listed;
pub mod locality;
pub mod mirror;
pub mod names;
pub mod outlier;
pub mod plan;
pub mod recheck;
pub mod report;
pub mod resolved;
pub mod retry;
pub mod route;
pub mod rules;
pub mod shares;
pub mod simulate;
pub mod slow;
pub mod snapshot;
pub mod svid;
mod table;
pub mod time;
pub mod verdict;

#[cfg(test)]
mod fixture;
