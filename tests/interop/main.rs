//! We speak what others speak: real peers on both sides of us.
//!
//! `peers_alone` shows that the peers do their part without us, so that a failure elsewhere is
//! ours.

#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "the peers of other tests are in it as well")]
mod support;

mod alike;
mod curl;
mod envoy;
mod foreign;
mod gateways;
mod grpc;
mod openssl;
mod our_ca;
mod peers_alone;
mod pki;
mod sds;
mod served;
#[path = "../support/serving.rs"]
mod serving;
mod websocket;
mod xds;
mod zeugma;

use std::fs;
use std::hash::{DefaultHasher, Hasher as _};
use std::path::{Path, PathBuf};

use anyhow::Result;

use support::process;

/// An empty folder for one test's files and logs; it stays after the test, to be looked at. Its name is the
/// beginning of the test's and a number made of all of it: the path of a socket in it is to have less than 108
/// bytes (unix(7)).
fn folder(test: &str) -> Result<PathBuf> {
    let begin: String = test.chars().take(12).collect();
    let mut hasher = DefaultHasher::new();
    hasher.write(test.as_bytes());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("interop")
        .join(format!("{begin}-{:06x}", hasher.finish() & 0xff_ffff));
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
