//! OpenSSL 3, strict, on every chain: an implementation that shares nothing with ours.

use crate::support::{Bench, openssl, openssl_is_missing, openssl_ok};

/// A CA with two trust domains, a leaf of each, the root and the anchors as PEM.
fn bench() -> Bench {
    let bench = Bench::with_ca(&["east.example", "west.example"]);
    bench.ok("ca bundle --root --out root.pem");
    for domain in ["east", "west"] {
        bench.ok(&format!(
            "ca issue spiffe://{domain}.example/ns/shop/sa/cart --out {domain} --dns cart.{domain}"
        ));
        bench.ok(&format!(
            "ca bundle {domain}.example --format pem --out {domain}-anchor.pem"
        ));
    }
    bench
}

const STRICT: &str = "verify -x509_strict -check_ss_sig -no-CApath -no-CAstore";

#[test]
fn a_chain_verifies_strictly_under_the_root_with_the_cross_certificate() {
    if openssl_is_missing() {
        return;
    }
    let bench = bench();
    for domain in ["east", "west"] {
        for purpose in ["sslclient", "sslserver"] {
            openssl_ok(
                &bench,
                &format!(
                    "{STRICT} -purpose {purpose} -CAfile root.pem -untrusted {domain}.pem {domain}.pem"
                ),
            );
        }
        // Without the cross certificate there is no path to the root.
        let run = openssl(&bench, &format!("{STRICT} -CAfile root.pem {domain}.pem"));
        assert_ne!(run.code, 0, "{}", run.stdout);
    }
}

#[test]
fn a_chain_verifies_strictly_under_the_self_signed_anchor_with_or_without_the_cross_certificate() {
    if openssl_is_missing() {
        return;
    }
    let bench = bench();
    for domain in ["east", "west"] {
        for more in ["", "-partial_chain"] {
            for untrusted in [String::new(), format!("-untrusted {domain}.pem")] {
                openssl_ok(
                    &bench,
                    &format!(
                        "{STRICT} {more} {untrusted} -CAfile {domain}-anchor.pem {domain}.pem"
                    ),
                );
            }
        }
    }
    // The other trust domain's anchor does not.
    let run = openssl(
        &bench,
        &format!("{STRICT} -CAfile west-anchor.pem east.pem"),
    );
    assert_ne!(run.code, 0, "{}", run.stdout);
}

#[test]
fn the_root_and_the_anchors_verify_strictly_themselves() {
    if openssl_is_missing() {
        return;
    }
    let bench = bench();
    for file in ["root.pem", "east-anchor.pem", "west-anchor.pem"] {
        openssl_ok(&bench, &format!("{STRICT} -CAfile {file} {file}"));
    }
}

#[test]
fn openssl_reads_a_leafs_key_and_with_the_passphrase_the_authoritys() {
    if openssl_is_missing() {
        return;
    }
    let bench = bench();
    let from_key = openssl_ok(&bench, "pkey -in east.key -pubout");
    let from_certificate = openssl_ok(&bench, "x509 -in east.pem -noout -pubkey");
    assert_eq!(from_key, from_certificate);
    let from_key = openssl_ok(
        &bench,
        "pkey -in ca/root.key -passin file:ca/passphrase -pubout",
    );
    let from_certificate = openssl_ok(&bench, "x509 -in root.pem -noout -pubkey");
    assert_eq!(from_key, from_certificate);
    let run = openssl(&bench, "pkey -in ca/root.key -passin pass:wrong -noout");
    assert_ne!(run.code, 0);
}
