//! The exit codes of every command.

/// Failed at run time.
pub(crate) const FAILED: u8 = 1;
/// Findings: a check, verification or expectation did not hold.
pub(crate) const FINDINGS: u8 = 2;
/// What was typed is not a command.
pub(crate) const USAGE: u8 = 64;
/// Bad configuration or data.
pub(crate) const DATA: u8 = 65;
/// The other side does not answer.
pub(crate) const UNAVAILABLE: u8 = 69;
/// The other side does not let us.
pub(crate) const DENIED: u8 = 77;
