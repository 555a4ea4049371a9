//! SPIFFE bundles (Trust_Domain_and_Bundle.md §4).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::support::{Bench, chain, files};

fn bundle(bench: &Bench, domain: &str) -> Value {
    serde_json::from_str(&bench.ok(&format!("ca bundle {domain}"))).unwrap()
}

#[test]
fn b1_b5_a_bundle_is_a_jwk_set_with_one_self_signed_anchor() {
    let bench = Bench::with_ca(&["east.example", "west.example"]);
    let bundle = bundle(&bench, "east.example");
    let keys = bundle["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 1);
    let key = keys[0].as_object().unwrap();
    assert_eq!(key["use"], "x509-svid");
    assert_eq!(key["kty"], "EC");
    assert_eq!(key["crv"], "P-256");
    assert!(!key.contains_key("kid"));
    let x5c = key["x5c"].as_array().unwrap();
    assert_eq!(x5c.len(), 1);
    let der = STANDARD.decode(x5c[0].as_str().unwrap()).unwrap();

    let (_, anchor) = X509Certificate::from_der(&der).unwrap();
    assert_eq!(anchor.issuer(), anchor.subject());
    let point = &anchor.public_key().subject_public_key.data;
    let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
    // SEC 1 §2.3.3: an uncompressed point is 04, x, y.
    assert_eq!(
        point[..],
        [vec![4], coordinate("x"), coordinate("y")].concat()
    );

    // The same as PEM, and as the copy in the CA's folder.
    bench.ok("ca bundle east.example --format pem --out east.pem");
    assert_eq!(bench.chain("east.pem")[0].as_ref(), der);
    let copy = files(&bench.path("ca/issuers"))
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with(".anchor.pem"))
        .unwrap();
    assert_eq!(chain(&copy)[0].as_ref(), der);
}

#[test]
fn b2_b3_a_bundle_has_a_sequence_that_stays_while_its_content_does_and_a_refresh_hint() {
    let bench = Bench::with_ca(&["east.example"]);
    let first = bundle(&bench, "east.example");
    assert_eq!(first["spiffe_sequence"], 1);
    assert_eq!(first["spiffe_refresh_hint"], 300);
    // Another trust domain and a leaf change nothing in it.
    bench.ok("ca trust-domain add west.example");
    bench.ok("ca issue spiffe://east.example/a --out a");
    assert_eq!(bundle(&bench, "east.example"), first);
}

#[test]
fn b8_the_bundles_of_two_trust_domains_share_nothing() {
    let bench = Bench::with_ca(&["east.example", "west.example"]);
    let (east, west) = (
        bundle(&bench, "east.example"),
        bundle(&bench, "west.example"),
    );
    assert_ne!(east["keys"][0]["x5c"], west["keys"][0]["x5c"]);
    let error = bench.fails("ca bundle north.example", 65);
    assert_eq!(
        error,
        "error[ZG0213]: this CA has no issuer for `north.example`; run `zeugma ca trust-domain add north.example` \
         (it serves east.example, west.example)\n"
    );
}

#[test]
fn the_shared_root_is_printed_for_verifiers_that_know_no_bundles() {
    let bench = Bench::with_ca(&["east.example"]);
    let root = std::fs::read_to_string(bench.path("ca/root.pem")).unwrap();
    assert_eq!(bench.ok("ca bundle --root"), root);
    assert_eq!(bench.ok("ca bundle east.example --format pem --root"), root);
}
