//! The certificate authority as its users see it: the command, its files, and what OpenSSL says of
//! them. Tests name the rule they hold (XL, XC, R, B, C).

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "tests"
)]

mod bundle;
mod crash;
mod csr;
mod init;
mod inspect;
mod keys;
mod openssl;
mod rules;
mod support;
mod verify;
