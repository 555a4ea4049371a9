//! What the test binaries share.

pub(crate) mod peers;
pub(crate) mod process;
