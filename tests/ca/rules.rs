//! Every rule on what is issued, read back by a parser that had no part in writing it.

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Version};
use zeugma_ca::authority::AuthorityError;
use zeugma_ca::policy::PolicyError;
use zeugma_ca::{Authority, LeafRequest, NewIssuer, Policy, SubjectKey};
use zeugma_core::identity::{SpiffeId, TrustDomain};

use crate::support::Bench;

/// One of each certificate that an authority makes.
struct Made {
    root: CertificateDer<'static>,
    cross: CertificateDer<'static>,
    anchor: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    chain: usize,
}

const ID: &str = "spiffe://east.example/ns/shop/sa/cart";

/// Made once for all tests that only look.
fn made() -> &'static Made {
    static MADE: OnceLock<Made> = OnceLock::new();
    MADE.get_or_init(|| make_with(Policy::default(), &[]))
}

fn make_with(policy: Policy, dns_names: &[&str]) -> Made {
    let bench = Bench::new();
    let (mut authority, issuer) = authority(&bench, policy);
    let names = dns_names.iter().map(ToString::to_string).collect();
    let request = LeafRequest::new(SpiffeId::parse(ID).unwrap()).with_dns_names(names);
    let issued = authority
        .issue(&request, &SubjectKey::generate().unwrap())
        .unwrap();
    let made = Made {
        root: authority.root().unwrap(),
        cross: issuer.cross().clone(),
        anchor: issuer.anchor().clone(),
        leaf: issued.chain()[0].clone(),
        chain: issued.chain().len(),
    };
    assert_eq!(issued.chain()[1], made.cross);
    made
}

fn authority(bench: &Bench, policy: Policy) -> (Authority, NewIssuer) {
    let mut authority = Authority::init_with_policy(&bench.path("ca"), None, policy).unwrap();
    let issuer = authority.add_trust_domain(&domain("east.example")).unwrap();
    (authority, issuer)
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

impl Made {
    fn all(&self) -> [X509Certificate<'_>; 4] {
        [&self.root, &self.cross, &self.anchor, &self.leaf].map(parse)
    }

    fn authorities(&self) -> [X509Certificate<'_>; 3] {
        [&self.root, &self.cross, &self.anchor].map(parse)
    }

    fn leaf(&self) -> X509Certificate<'_> {
        parse(&self.leaf)
    }
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> X509Certificate<'a> {
    let (rest, certificate) = X509Certificate::from_der(der).unwrap();
    assert!(rest.is_empty());
    certificate
}

/// The extension with this arc of id-ce, 2.5.29 (RFC 5280 §4.2.1).
fn extension<'a>(certificate: &'a X509Certificate<'_>, arc: u64) -> Option<&'a X509Extension<'a>> {
    certificate
        .iter_extensions()
        .find(|e| e.oid.to_id_string() == format!("2.5.29.{arc}"))
}

const SKI: u64 = 14;
const KEY_USAGE: u64 = 15;
const SAN: u64 = 17;
const BASIC_CONSTRAINTS: u64 = 19;
const NAME_CONSTRAINTS: u64 = 30;
const AKI: u64 = 35;
const EKU: u64 = 37;

fn uris<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a str> {
    names(certificate)
        .into_iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect()
}

fn names<'a>(certificate: &'a X509Certificate<'_>) -> Vec<&'a GeneralName<'a>> {
    match extension(certificate, SAN).map(X509Extension::parsed_extension) {
        Some(ParsedExtension::SubjectAlternativeName(san)) => san.general_names.iter().collect(),
        _ => Vec::new(),
    }
}

fn key_id<'a>(certificate: &'a X509Certificate<'_>) -> &'a [u8] {
    match extension(certificate, SKI).unwrap().parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => id.0,
        other => panic!("{other:?}"),
    }
}

#[test]
fn xl1_xl2_a_leaf_has_exactly_one_uri_and_it_is_its_id() {
    let made = made();
    assert_eq!(uris(&made.leaf()), [ID]);
}

#[test]
fn xl3_the_id_of_a_trust_domain_is_not_issued() {
    let bench = Bench::with_ca(&["east.example"]);
    let said = bench.fails("ca issue spiffe://east.example", 65);
    assert!(
        said.starts_with("error[ZG0217]: ") && said.contains("(XL3)"),
        "{said}"
    );
    assert!(!bench.path("svid.pem").exists());
    assert!(!bench.path("svid.key").exists());
}

#[test]
fn xl2_what_is_no_spiffe_id_is_refused_as_typed_wrong() {
    let bench = Bench::with_ca(&["east.example"]);
    for (id, rule) in [
        ("https://east.example/a", "ID1"),
        ("spiffe://East.example/a", "ID2"),
        ("spiffe://east.example:80/a", "ID3"),
        ("spiffe://east.example/a?b", "ID4"),
        ("spiffe://east.example/a%2Fb", "ID5"),
        ("spiffe://east.example/a/../b", "ID6"),
        ("spiffe://east.example/a/", "ID7"),
        ("spiffe://east.example/a:b", "ID8"),
    ] {
        let said = bench.fails(&format!("ca issue {id}"), 64);
        assert!(said.contains(rule), "{id}: {said}");
    }
    let long = format!("spiffe://east.example/{}", "a".repeat(2048 - 21));
    let said = bench.fails(&format!("ca issue {long}"), 64);
    assert!(said.contains("ID9"), "{said}");
}

#[test]
fn id9_an_id_of_2048_bytes_is_issued() {
    let bench = Bench::new();
    let (mut authority, _) = authority(&bench, Policy::default());
    let id = format!("spiffe://east.example/{}", "a".repeat(2048 - 22));
    assert_eq!(id.len(), 2048);
    let request = LeafRequest::new(SpiffeId::parse(&id).unwrap());
    let issued = authority
        .issue(&request, &SubjectKey::generate().unwrap())
        .unwrap();
    assert_eq!(uris(&parse(&issued.chain()[0])), [id]);
}

#[test]
fn xl5_xl12_a_leaf_has_an_empty_subject_and_therefore_a_critical_san() {
    let made = made();
    let leaf = made.leaf();
    assert_eq!(leaf.subject().iter().count(), 0);
    assert!(extension(&leaf, SAN).unwrap().critical);
}

#[test]
fn xl6_a_leaf_says_that_it_is_no_ca() {
    let made = made();
    let leaf = made.leaf();
    let constraints = extension(&leaf, BASIC_CONSTRAINTS).unwrap();
    assert!(constraints.critical);
    // DER leaves out cA = FALSE, its default: an empty SEQUENCE (X.690 §11.5).
    assert_eq!(constraints.value, [0x30, 0x00]);
}

#[test]
fn xl7_xl8_xl9_a_leafs_key_usage_is_critical_and_digital_signature_alone() {
    let made = made();
    let leaf = made.leaf();
    let usage = extension(&leaf, KEY_USAGE).unwrap();
    assert!(usage.critical);
    // BIT STRING, 7 unused bits, bit 0 set (RFC 5280 §4.2.1.3).
    assert_eq!(usage.value, [0x03, 0x02, 0x07, 0x80]);
}

#[test]
fn xl10_xl11_a_leafs_extended_key_usage_is_server_and_client_alone() {
    let made = made();
    let leaf = made.leaf();
    // id-kp-serverAuth 1.3.6.1.5.5.7.3.1 and id-kp-clientAuth .2 (RFC 5280 §4.2.1.12).
    let kp = |last| [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, last];
    let expected = [vec![0x30, 0x14], kp(1).to_vec(), kp(2).to_vec()].concat();
    assert_eq!(extension(&leaf, EKU).unwrap().value, expected);
}

#[test]
fn xl12_a_leaf_has_dns_names_only_when_asked() {
    let made = made();
    assert_eq!(names(&made.leaf()).len(), 1);
    let made = make_with(Policy::default(), &["cart.shop.svc", "cart"]);
    let leaf = made.leaf();
    assert_eq!(uris(&leaf), [ID]);
    assert_eq!(
        names(&leaf)[1..],
        [
            &GeneralName::DNSName("cart.shop.svc"),
            &GeneralName::DNSName("cart")
        ]
    );
}

#[test]
fn xc1_xc9_authorities_have_critical_basic_constraints_with_their_path_length() {
    let made = made();
    for (certificate, path_len) in made.authorities().iter().zip([2, 0, 0]) {
        let constraints = extension(certificate, BASIC_CONSTRAINTS).unwrap();
        assert!(constraints.critical);
        // SEQUENCE { BOOLEAN TRUE, INTEGER pathLen }.
        assert_eq!(
            constraints.value,
            [0x30, 0x06, 0x01, 0x01, 0xff, 0x02, 0x01, path_len]
        );
    }
}

#[test]
fn xc2_xc6_authorities_sign_certificates_and_crls_and_nothing_else() {
    let made = made();
    for certificate in made.authorities() {
        let usage = extension(&certificate, KEY_USAGE).unwrap();
        assert!(usage.critical);
        // Bits 5 and 6, one unused (RFC 5280 §4.2.1.3); no bit 0, digitalSignature.
        assert_eq!(usage.value, [0x03, 0x02, 0x01, 0x06]);
        assert!(extension(&certificate, EKU).is_none());
    }
}

#[test]
fn xc3_an_issuer_names_its_trust_domain_and_the_root_none() {
    let made = made();
    let [root, cross, anchor] = made.authorities();
    assert!(uris(&root).is_empty());
    assert_eq!(uris(&cross), ["spiffe://east.example"]);
    assert_eq!(uris(&anchor), ["spiffe://east.example"]);
}

#[test]
fn xc5_there_are_no_name_constraints() {
    let made = made();
    for certificate in made.all() {
        assert!(extension(&certificate, NAME_CONSTRAINTS).is_none());
    }
}

#[test]
fn xc7_subjects_are_distinct_per_key_and_both_certificates_of_a_key_share_one() {
    let bench = Bench::new();
    let (mut authority, east) = authority(&bench, Policy::default());
    let west = authority.add_trust_domain(&domain("west.example")).unwrap();
    let root = authority.root().unwrap();
    let subject = |der: &CertificateDer<'_>| parse(der).subject().as_raw().to_vec();
    assert_eq!(subject(east.cross()), subject(east.anchor()));
    let distinct: std::collections::BTreeSet<_> =
        [&root, east.cross(), west.cross()].map(subject).into();
    assert_eq!(distinct.len(), 3);
    let named = |der: &CertificateDer<'_>| parse(der).subject().to_string();
    assert!(named(east.cross()).starts_with("CN=east.example issuer "));
    assert!(named(&root).starts_with("CN=zeugma root "));
}

#[test]
fn xc10_a_leaf_that_would_outlive_its_issuer_is_refused() {
    let bench = Bench::new();
    let policy = Policy {
        issuer_ttl: Duration::from_secs(3600),
        ..Policy::default()
    };
    let (mut authority, issuer) = authority(&bench, policy);
    let key = SubjectKey::generate().unwrap();
    let request = |seconds| {
        LeafRequest::new(SpiffeId::parse(ID).unwrap()).with_ttl(Duration::from_secs(seconds))
    };
    let error = authority.issue(&request(3601), &key).unwrap_err();
    assert!(
        matches!(error, AuthorityError::BeyondIssuer { asked: 3601, .. }),
        "{error}"
    );
    // A second may pass between the issuer and the leaf, on a busy machine more.
    let issued = authority.issue(&request(3000), &key).unwrap();
    assert!(issued.not_after() <= issuer.not_after());
}

#[test]
fn xc10_an_issuer_ends_with_its_root() {
    let bench = Bench::new();
    let policy = Policy {
        root_ttl: Duration::from_secs(3600),
        ..Policy::default()
    };
    let (authority, issuer) = authority(&bench, policy);
    let root = authority.root().unwrap();
    for certificate in [issuer.cross(), issuer.anchor()] {
        assert_eq!(
            parse(certificate).validity().not_after,
            parse(&root).validity().not_after
        );
    }
}

#[test]
fn r1_r2_certificates_are_version_3_with_long_positive_serials() {
    let made = made();
    let mut seen = std::collections::BTreeSet::new();
    for certificate in made.all() {
        assert_eq!(certificate.version(), X509Version::V3);
        let serial = certificate.raw_serial();
        assert!(serial.len() <= 20, "{serial:x?}");
        assert_eq!(serial[0] & 0x80, 0, "{serial:x?}");
        // 127 random bits begin with 40 zeros once in 2^40 runs.
        assert!(serial.len() > 11, "{serial:x?}");
        assert!(seen.insert(serial.to_vec()));
    }
}

#[test]
fn r3_c3_a_validity_begins_120_seconds_ago_and_lasts_as_asked() {
    let before = unix_now();
    let made = make_with(Policy::default(), &[]);
    let after = unix_now();
    for certificate in made.all() {
        let begins = certificate.validity().not_before.timestamp();
        assert!((before - 120..=after - 120).contains(&begins));
    }
    let leaf = made.leaf();
    let validity = leaf.validity();
    let lasts = validity.not_after.timestamp() - validity.not_before.timestamp();
    assert_eq!(lasts, 24 * 3600 + 120);
}

fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

#[test]
fn r3_dates_are_utc_time_until_2049_and_generalized_time_from_2050() {
    let made = made();
    for certificate in made.all() {
        assert!(certificate.validity().not_after.is_utctime());
    }
    let century = Policy {
        root_ttl: Duration::from_secs(100 * 365 * 24 * 3600),
        ..Policy::default()
    };
    let made = make_with(century, &[]);
    let root = parse(&made.root);
    assert!(root.validity().not_before.is_utctime());
    assert!(root.validity().not_after.is_generalizedtime());
}

#[test]
fn r4_the_root_is_p384_and_the_rest_p256() {
    let made = made();
    let sizes = made.all().map(
        |certificate| match certificate.public_key().parsed().unwrap() {
            x509_parser::public_key::PublicKey::EC(point) => point.key_size(),
            other => panic!("{other:?}"),
        },
    );
    assert_eq!(sizes, [384, 256, 256, 256]);
    // ecdsa-with-SHA384 and ecdsa-with-SHA256 (RFC 5758 §3.2).
    let signatures = made
        .all()
        .map(|certificate| certificate.signature_algorithm.algorithm.to_id_string());
    let [sha384, sha256] = ["1.2.840.10045.4.3.3", "1.2.840.10045.4.3.2"];
    assert_eq!(signatures, [sha384, sha384, sha256, sha256]);
}

#[test]
fn r5_what_another_key_signed_names_that_key_and_nothing_more() {
    let made = made();
    let [root, cross, anchor, leaf] = made.all();
    for (child, parent) in [(&cross, &root), (&leaf, &cross), (&leaf, &anchor)] {
        let aki = extension(child, AKI).unwrap();
        assert!(!aki.critical);
        // SEQUENCE { [0] keyIdentifier } of 20 octets: no issuer [1], no serial [2].
        let expected = [&[0x30, 0x16, 0x80, 0x14], key_id(parent)].concat();
        assert_eq!(aki.value, expected);
    }
    assert!(extension(&root, AKI).is_none());
    assert!(extension(&anchor, AKI).is_none());
}

#[test]
fn r6_authorities_have_a_key_id_and_both_certificates_of_a_key_the_same() {
    let made = made();
    for certificate in made.authorities() {
        assert!(!extension(&certificate, SKI).unwrap().critical);
        assert_eq!(key_id(&certificate).len(), 20);
    }
    let [root, cross, anchor] = made.authorities();
    assert_eq!(key_id(&cross), key_id(&anchor));
    assert_ne!(key_id(&cross), key_id(&root));
    assert_eq!(cross.public_key().raw, anchor.public_key().raw);
}

#[test]
fn r7_a_chain_is_the_leaf_and_the_cross_certificate_never_the_root() {
    let bench = Bench::with_ca(&["east.example"]);
    bench.ok(&format!("ca issue {ID} --out cart"));
    let chain = bench.chain("cart.pem");
    assert_eq!(chain.len(), 2);
    let root = &bench.chain("ca/root.pem")[0];
    assert!(!chain.contains(root));
    assert_eq!(
        parse(&chain[1]).issuer().as_raw(),
        parse(root).subject().as_raw()
    );
    let made = made();
    assert_eq!(made.chain, 2);
}

#[test]
fn r10_there_is_no_unknown_critical_extension() {
    let made = made();
    for certificate in made.all() {
        for extension in certificate.iter_extensions().filter(|e| e.critical) {
            let arc = extension.oid.to_id_string();
            assert!(
                ["2.5.29.15", "2.5.29.17", "2.5.29.19"].contains(&arc.as_str()),
                "{arc}"
            );
        }
    }
}

#[test]
fn r12_issuers_are_byte_for_byte_subjects() {
    let made = made();
    let [root, cross, anchor, leaf] = made.all();
    assert_eq!(root.issuer().as_raw(), root.subject().as_raw());
    assert_eq!(cross.issuer().as_raw(), root.subject().as_raw());
    assert_eq!(anchor.issuer().as_raw(), anchor.subject().as_raw());
    assert_eq!(leaf.issuer().as_raw(), cross.subject().as_raw());
    assert_eq!(leaf.issuer().as_raw(), anchor.subject().as_raw());
}

#[test]
fn a_lifetime_beyond_the_policy_is_refused_with_its_limits() {
    let bench = Bench::with_ca(&["east.example"]);
    let said = bench.fails(&format!("ca issue {ID} --ttl 91d"), 65);
    assert_eq!(
        said,
        "error[ZG0216]: a lifetime of 7862400 s is outside the policy's 1 s to 7776000 s; ask for one between\n"
    );
    assert!(!bench.path("svid.pem").exists());
}

#[test]
fn a_trust_domain_is_added_once_and_must_fit_a_file_name() {
    let bench = Bench::new();
    let (mut authority, _) = authority(&bench, Policy::default());
    let error = authority
        .add_trust_domain(&domain("east.example"))
        .unwrap_err();
    assert!(matches!(error, AuthorityError::DomainExists(_)), "{error}");
    authority
        .add_trust_domain(&domain(&"a".repeat(200)))
        .unwrap();
    authority.bundle(&domain(&"a".repeat(200))).unwrap();
    let error = authority
        .add_trust_domain(&domain(&"b".repeat(201)))
        .unwrap_err();
    assert!(
        matches!(
            error,
            AuthorityError::Policy(PolicyError::TrustDomainLength(201))
        ),
        "{error}"
    );
    // Names that mean something to a file system stay inside the folder.
    for odd in ["..", ".", "-rf", "..a"] {
        authority.add_trust_domain(&domain(odd)).unwrap();
    }
    assert_eq!(std::fs::read_dir(bench.root()).unwrap().count(), 1);
}
