//! Documents as a person writes them, from the file to the snapshot or the findings.
#![expect(
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    clippy::too_many_lines,
    clippy::indexing_slicing,
    reason = "tests, many of them flat tables of cases"
)]

mod defaults;
mod envoy;
mod fields;
mod findings;
mod http_rules;
mod last_good;
mod load;
#[path = "../../../tests/support/many.rs"]
mod many;
mod prules;
mod robust;
mod standing;
mod support;
