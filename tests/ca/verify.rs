//! `zeugma ca verify` and `renew`: what a gateway would say.

use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeugma_ca::files::pem;

use crate::support::{Bench, Run, zeugma};

fn bench() -> Bench {
    let bench = Bench::with_ca(&["east.example", "west.example"]);
    for domain in ["east", "west"] {
        bench.ok(&format!(
            "ca issue spiffe://{domain}.example/ns/shop/sa/cart --out {domain}"
        ));
    }
    std::fs::create_dir(bench.path("bundles")).unwrap();
    bench.ok("ca bundle east.example --out bundles/east.example.json");
    bench
}

#[test]
fn a_good_chain_is_accepted_with_its_id() {
    let bench = bench();
    let said = bench.ok("ca verify east.pem --bundles bundles");
    assert!(
        said.starts_with("east.pem: ok, spiffe://east.example/ns/shop/sa/cart until "),
        "{said}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&bench.ok("ca verify east.pem -o json")).unwrap();
    assert_eq!(json["apiVersion"], "cli.zeugma.dev/v1");
    assert_eq!(json["valid"], true);
    assert_eq!(json["spiffeId"], "spiffe://east.example/ns/shop/sa/cart");
    // A PEM bundle does as well as a SPIFFE one.
    bench.ok("ca bundle west.example --format pem --out bundles/west.example.pem");
    bench.ok("ca verify west.pem");
}

#[test]
fn xl4_without_a_bundle_a_trust_domain_is_refused() {
    let bench = bench();
    let run = bench.run("ca verify west.pem");
    assert_eq!(run.code, 2);
    assert!(run.stdout.starts_with("west.pem: XL4: "), "{}", run.stdout);
    let run = bench.run("ca verify west.pem -o json");
    assert_eq!(run.code, 2);
    let json: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(json["valid"], false);
    assert_eq!(json["rule"], "XL4");
    assert_eq!(json["code"], "ZG0310");
}

#[test]
fn xc4_a_bundle_with_another_trust_domains_anchor_is_refused() {
    let bench = bench();
    bench.ok("ca bundle east.example --out bundles/west.example.json");
    let said = bench.fails("ca verify west.pem", 65);
    assert!(
        said.contains("error[ZG0203]: bundles/west.example.json"),
        "{said}"
    );
    assert!(said.contains("XC4"), "{said}");
}

#[test]
fn xc4_under_a_pooled_root_wests_issuer_cannot_mint_an_id_of_east() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("bundles")).unwrap();
    let ca = |name: Option<&str>, path_len| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.subject_alt_names = name.map(uri).into_iter().collect();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name.unwrap_or("root"));
        params.use_authority_key_identifier_extension = true;
        params
    };
    let (root, root_key) = (ca(None, 2), KeyPair::generate().unwrap());
    let anchor = root.self_signed(&root_key).unwrap();
    std::fs::write(bench.path("bundles/east.example.pem"), anchor.pem()).unwrap();
    for (issuer, said) in [
        ("spiffe://east.example", "leaf.pem: ok"),
        ("spiffe://west.example", "leaf.pem: XC4: "),
    ] {
        let (issuer, issuer_key) = (ca(Some(issuer), 0), KeyPair::generate().unwrap());
        let above = issuer
            .signed_by(&issuer_key, &Issuer::from_params(&root, &root_key))
            .unwrap();
        let signed = leaf()
            .signed_by(
                &KeyPair::generate().unwrap(),
                &Issuer::from_params(&issuer, &issuer_key),
            )
            .unwrap();
        std::fs::write(bench.path("leaf.pem"), signed.pem() + &above.pem()).unwrap();
        let run = bench.run("ca verify leaf.pem");
        assert!(run.stdout.starts_with(said), "{}{}", run.stdout, run.stderr);
    }
}

#[test]
fn xc8_xl6_a_ca_certificate_is_no_peer() {
    let bench = bench();
    let cross = bench.chain("east.pem").remove(1);
    std::fs::write(bench.path("cross.pem"), pem("CERTIFICATE", &cross)).unwrap();
    let run = bench.run("ca verify cross.pem");
    assert_eq!(run.code, 2);
    // A trust domain's own ID is found first: XL3.
    assert!(run.stdout.starts_with("cross.pem: XL3: "), "{}", run.stdout);
}

/// A CA of the test's own for `east.example`, and a leaf of it with one thing changed.
fn foreign(folder: &Path, change: impl FnOnce(&mut CertificateParams)) {
    let key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    ca.subject_alt_names = vec![uri("spiffe://east.example")];
    let anchor = ca.self_signed(&key).unwrap();
    std::fs::write(folder.join("bundles/east.example.pem"), anchor.pem()).unwrap();
    let mut leaf = leaf();
    change(&mut leaf);
    let subject = KeyPair::generate().unwrap();
    let signed = leaf
        .signed_by(&subject, &Issuer::from_params(&ca, &key))
        .unwrap();
    std::fs::write(folder.join("leaf.pem"), signed.pem()).unwrap();
}

/// A leaf of `east.example` that breaks no rule.
fn leaf() -> CertificateParams {
    let mut leaf = CertificateParams::default();
    leaf.subject_alt_names = vec![uri("spiffe://east.example/a")];
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    leaf.use_authority_key_identifier_extension = true;
    leaf
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

#[test]
fn each_broken_rule_is_named() {
    type Change = fn(&mut CertificateParams);
    let cases: [(&str, Change); 8] = [
        ("ok", |_| {}),
        ("XL1", |leaf| {
            leaf.subject_alt_names.push(uri("spiffe://east.example/b"))
        }),
        ("XL1", |leaf| leaf.subject_alt_names.clear()),
        ("XL2", |leaf| {
            leaf.subject_alt_names = vec![uri("spiffe://east.example/a/../b")]
        }),
        ("XL3", |leaf| {
            leaf.subject_alt_names = vec![uri("spiffe://east.example")]
        }),
        ("XL9", |leaf| {
            leaf.key_usages.push(KeyUsagePurpose::KeyCertSign)
        }),
        ("XL10", |leaf| {
            leaf.extended_key_usages.pop();
        }),
        ("expired", |leaf| {
            leaf.not_after = rcgen::date_time_ymd(2020, 1, 1)
        }),
    ];
    let bench = Bench::new();
    std::fs::create_dir(bench.path("bundles")).unwrap();
    for (rule, change) in cases {
        foreign(bench.root(), change);
        let run = bench.run("ca verify leaf.pem");
        let said = run.stdout.to_lowercase();
        assert!(
            said.starts_with(&format!("leaf.pem: {}", rule.to_lowercase())),
            "{rule}: {}{}",
            run.stdout,
            run.stderr
        );
        assert_eq!(run.code, if rule == "ok" { 0 } else { 2 }, "{rule}");
    }
}

#[test]
fn xl13_a_leaf_without_key_usage_is_refused() {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("bundles")).unwrap();
    foreign(bench.root(), |leaf| leaf.key_usages.clear());
    let run = bench.run("ca verify leaf.pem");
    assert_eq!(run.code, 2);
    assert!(
        run.stdout.contains("XL13") || run.stdout.contains("XL7"),
        "{}",
        run.stdout
    );
}

#[test]
fn what_is_no_chain_or_no_folder_of_bundles_is_bad_data() {
    let bench = bench();
    let whole = std::fs::read_to_string(bench.path("east.pem")).unwrap();
    for junk in [
        "",
        "junk",
        &whole[..whole.len() / 4],
        &whole[..whole.len() - 9],
    ] {
        std::fs::write(bench.path("junk.pem"), junk).unwrap();
        bench.fails("ca verify junk.pem", 65);
    }
    bench.fails("ca verify east.pem --bundles nowhere", 65);
}

#[test]
fn renew_gives_the_same_id_and_key_a_new_serial_and_the_old_lifetime() {
    let bench = bench();
    bench.ok("ca issue spiffe://east.example/b --out b --ttl 1h --dns b.example");
    let old = bench.chain("b.pem");
    let said = bench.ok("ca renew b.pem --key b.key");
    assert!(
        said.starts_with("issued spiffe://east.example/b until "),
        "{said}"
    );
    let new = bench.chain("b.pem");
    let parse = |chain: &'_ [rustls_pki_types::CertificateDer<'static>]| {
        let (_, parsed) = X509Certificate::from_der(&chain[0]).unwrap();
        let validity = parsed.validity();
        (
            parsed.raw_serial().to_vec(),
            parsed.public_key().raw.to_vec(),
            parsed
                .subject_alternative_name()
                .unwrap()
                .unwrap()
                .value
                .general_names
                .len(),
            validity.not_after.timestamp() - validity.not_before.timestamp(),
        )
    };
    let (old, new) = (parse(&old), parse(&new));
    assert_ne!(old.0, new.0);
    assert_eq!((&old.1, old.2), (&new.1, new.2));
    assert_eq!((old.3, new.3), (3720, 3720));
    bench.ok("ca verify b.pem");
    // With another lifetime, and for the right key only.
    bench.ok("ca renew b.pem --key b.key --ttl 2h");
    let error = bench.fails("ca renew b.pem --key east.key", 65);
    assert!(
        error.contains("the key is not that of the certificate"),
        "{error}"
    );
}

#[test]
fn renew_knows_only_certificates_of_its_own_ledger() {
    let bench = bench();
    let other = self::bench();
    for file in ["east.pem", "east.key"] {
        std::fs::copy(other.path(file), bench.path(file)).unwrap();
    }
    let error = bench.fails("ca renew east.pem --key east.key", 65);
    assert!(
        error.contains("error[ZG0218]: this certificate is not in the ledger of ca"),
        "{error}"
    );
}

#[test]
fn issue_never_overwrites_a_certificate_and_uses_a_key_that_is_there() {
    let bench = bench();
    let error = bench.fails("ca issue spiffe://east.example/z --out east", 1);
    assert!(error.contains("east.pem is there already"), "{error}");
    let key = std::fs::read(bench.path("east.key")).unwrap();
    bench.ok("ca issue spiffe://east.example/z --cert z.pem --key east.key");
    assert_eq!(std::fs::read(bench.path("east.key")).unwrap(), key);
    bench.ok("ca verify z.pem");
}

#[test]
fn what_is_typed_wrong_ends_with_64_and_help_with_0() {
    for (words, code) in [
        (&["ca"][..], 64),
        (&["ca", "issue", "--frob"], 64),
        (&["ca", "frob"], 64),
        (&["ca", "issue"], 64),
        (&["ca", "issue", "spiffe://a/b", "--ttl", "1w"], 64),
        (&["ca", "bundle"], 64),
        (&["ca", "--help"], 0),
        (&["--version"], 0),
    ] {
        let run = Run::of(zeugma().args(words));
        assert_eq!(run.code, code, "{words:?}: {}", run.stderr);
        assert_eq!(run.stderr.starts_with("error[ZG1001]: "), code == 64);
    }
}
