//! Signing requests made by OpenSSL (C1, R4).

use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::support::{Bench, openssl_is_missing, openssl_ok};

const SIGN: &str = "ca sign --csr r.csr --id spiffe://east.example/a --out signed.pem";

/// Makes `r.csr` with a new key.
fn request(bench: &Bench, words: &str) {
    openssl_ok(
        bench,
        &format!("req -new -nodes -keyout r.key -out r.csr -subj /CN=admin {words}"),
    );
}

const P256: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256";

#[test]
fn c1_of_a_request_only_the_key_is_used() {
    if openssl_is_missing() {
        return;
    }
    let bench = Bench::with_ca(&["east.example"]);
    request(
        &bench,
        &format!("{P256} -addext keyUsage=digitalSignature,keyAgreement"),
    );
    bench.ok(SIGN);
    let chain = bench.chain("signed.pem");
    let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
    assert_eq!(leaf.subject().iter().count(), 0);
    let usage = leaf.key_usage().unwrap().unwrap();
    // Bit 0, digitalSignature, alone.
    assert_eq!(usage.value.flags, 1);
    assert_eq!(
        openssl_ok(&bench, "pkey -in r.key -pubout"),
        openssl_ok(&bench, "x509 -in signed.pem -noout -pubkey")
    );
    // DER and standard output, and a name that is there is not taken.
    let said = bench.fails(SIGN, 1);
    assert!(
        said.contains("error[ZG0212]: signed.pem is there already"),
        "{said}"
    );
    openssl_ok(&bench, "req -in r.csr -outform DER -out r.der");
    let printed = bench.ok("ca sign --csr r.der --id spiffe://east.example/a");
    assert_eq!(printed.matches("BEGIN CERTIFICATE").count(), 2);
}

#[test]
fn c1_a_request_that_asks_for_more_is_refused() {
    if openssl_is_missing() {
        return;
    }
    let bench = Bench::with_ca(&["east.example", "west.example"]);
    for (extension, said) in [
        (
            "basicConstraints=critical,CA:TRUE",
            "asks for a CA certificate",
        ),
        ("keyUsage=keyCertSign", "asks for key usage"),
        ("keyUsage=digitalSignature,cRLSign", "asks for key usage"),
        (
            "extendedKeyUsage=anyExtendedKeyUsage",
            "asks for an extended key usage",
        ),
        (
            "extendedKeyUsage=clientAuth,codeSigning",
            "asks for an extended key usage",
        ),
        (
            "subjectAltName=URI:spiffe://west.example/a",
            "asks for the name",
        ),
        (
            "subjectAltName=URI:spiffe://east.example/a,URI:spiffe://east.example/b",
            "asks for the name",
        ),
        ("subjectAltName=DNS:east.example", "asks for the name"),
        ("subjectAltName=IP:127.0.0.1", "asks for the name"),
        ("subjectAltName=email:a@east.example", "asks for the name"),
    ] {
        request(&bench, &format!("{P256} -addext {extension}"));
        let error = bench.fails(SIGN, 65);
        assert!(error.contains(said), "{extension}: {error}");
        assert!(
            error.starts_with("error[ZG0221]: ") && error.contains("(C1)"),
            "{extension}: {error}"
        );
        assert!(!bench.path("signed.pem").exists());
    }
    // What it asks for and is given anyway is no reason.
    request(
        &bench,
        &format!("{P256} -addext subjectAltName=URI:spiffe://east.example/a,DNS:cart.shop"),
    );
    bench.fails(SIGN, 65);
    bench.ok(&format!("{SIGN} --dns cart.shop"));
}

#[test]
fn r4_keys_are_p256_p384_ed25519_or_rsa_of_2048_bits() {
    if openssl_is_missing() {
        return;
    }
    let bench = Bench::with_ca(&["east.example"]);
    for good in [
        P256,
        "-newkey ec -pkeyopt ec_paramgen_curve:P-384",
        "-newkey ed25519",
        "-newkey rsa:2048",
    ] {
        request(&bench, good);
        bench.ok(SIGN);
        std::fs::remove_file(bench.path("signed.pem")).unwrap();
    }
    for bad in [
        "-newkey rsa:1024",
        "-newkey ec -pkeyopt ec_paramgen_curve:P-521",
        "-newkey ec -pkeyopt ec_paramgen_curve:secp256k1",
        "-newkey ed448",
        "-newkey rsa:2048 -sha1",
        "-newkey rsa:2048 -md5",
    ] {
        request(&bench, bad);
        bench.fails(SIGN, 65);
        assert!(!bench.path("signed.pem").exists(), "{bad}");
    }
}

#[test]
fn c1_without_proof_of_possession_nothing_is_signed() {
    if openssl_is_missing() {
        return;
    }
    let bench = Bench::with_ca(&["east.example"]);
    request(&bench, P256);
    openssl_ok(&bench, "req -in r.csr -outform DER -out r.der");
    let mut der = std::fs::read(bench.path("r.der")).unwrap();
    *der.last_mut().unwrap() ^= 1;
    std::fs::write(bench.path("r.csr"), der).unwrap();
    let error = bench.fails(SIGN, 65);
    assert!(
        error.contains("error[ZG0220]: the request's own")
            && error.contains("does not prove possession"),
        "{error}"
    );
    for junk in ["", "junk", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n"] {
        std::fs::write(bench.path("r.csr"), junk).unwrap();
        let error = bench.fails(SIGN, 65);
        assert!(
            error.contains("error[ZG0219]: this is not a certificate signing request"),
            "{error}"
        );
    }
}
