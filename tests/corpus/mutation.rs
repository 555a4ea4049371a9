//! Certificates with random damage: never a panic, and never accepted.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rustls_pki_types::CertificateDer;
use zeugma_proxy::tls::Usage;

use crate::Bench;
use crate::corpus::{Outcome, cases};

/// About a second, unoptimised.
const ROUNDS: usize = 20_000;

#[test]
fn damaged_certificates_neither_panic_nor_pass() {
    let seed = std::env::var("ZEUGMA_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    let bench = Bench::new();
    let cases = cases(&bench.world);
    for round in 0..ROUNDS {
        let case = &cases[random.usize(..cases.len())];
        // The leaf is on every path; damage elsewhere may hit a certificate that is not needed.
        let Some((leaf, rest)) = case.chain.split_first() else {
            continue;
        };
        let mut chain = vec![damage(leaf, &mut random)];
        chain.extend(rest.iter().cloned());
        if let Some(at) = (!rest.is_empty()).then(|| random.usize(1..=rest.len())) {
            chain[at] = damage(&chain[at], &mut random);
        }
        let changed = chain[0] != *leaf;
        let usage = if random.bool() {
            Usage::Client
        } else {
            Usage::Server
        };
        let verdict = catch_unwind(AssertUnwindSafe(|| bench.verify(&chain, usage)));
        let verdict = verdict.unwrap_or_else(|_| {
            panic!("ZEUGMA_SEED={seed}, round {round}: {} panicked", case.name)
        });
        // Damage to a refused leaf may mend it; to an accepted one it breaks the signature.
        if changed && case.outcome == Outcome::Accepted {
            assert!(
                verdict.is_err(),
                "ZEUGMA_SEED={seed}, round {round}: {} passed",
                case.name
            );
        }
    }
}

/// Flips a bit, sets, removes, inserts or repeats bytes, or cuts the end off.
fn damage(der: &CertificateDer<'_>, random: &mut fastrand::Rng) -> CertificateDer<'static> {
    let mut bytes = der.to_vec();
    for _ in 0..random.usize(1..=3) {
        if bytes.is_empty() {
            break;
        }
        let at = random.usize(..bytes.len());
        match random.u8(..6) {
            0 => bytes[at] ^= 1 << random.u8(..8),
            1 => bytes[at] = random.u8(..),
            2 => drop(bytes.remove(at)),
            3 => bytes.insert(at, random.u8(..)),
            4 => {
                let end = (at + random.usize(1..=16)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes.into()
}
