//! What a gateway reads from disk: refused with the file's name, or used whole.

use std::error::Error as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use zeugma_core::identity::TrustDomain;
use zeugma_proxy::tls::{
    ANCHORS_MAX, BUNDLE_BYTES_MAX, BUNDLES_MAX, Bundle, BundleError, Bundles, Credentials,
    CredentialsError, DomainBundle, SVID_BYTES_MAX, SvidFiles,
};

use crate::corpus::{GATEWAY_ID, World, certificates_pem, der, pem};

struct Disk {
    world: World,
    files: SvidFiles,
    folder: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new();
        let files = world.write(folder.path());
        Self {
            world,
            files,
            folder,
        }
    }

    fn load(&self) -> Result<Credentials, CredentialsError> {
        Credentials::load(&self.files, 7)
    }

    /// The error's text and its causes', with the folder's name taken out.
    fn error(&self) -> String {
        let error = self.load().unwrap_err();
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text.replace(&format!("{}/", self.folder.path().display()), "")
    }

    /// Replaces one bundle and says what is wrong with it.
    fn bundle_error(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.files.bundles.join(name), content).unwrap();
        self.error()
    }

    fn write_key(&self, content: &str, mode: u32) {
        fs::write(&self.files.key, content).unwrap();
        fs::set_permissions(&self.files.key, fs::Permissions::from_mode(mode)).unwrap();
    }
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

#[test]
fn good_files_make_credentials_that_never_show_the_key() {
    let disk = Disk::new();
    let credentials = disk.load().unwrap();
    assert_eq!(credentials.id().unwrap().as_str(), GATEWAY_ID);
    assert_eq!(credentials.generation(), 7);
    assert_eq!(credentials.not_before().unwrap(), disk.world.now - 120);
    assert_eq!(credentials.not_after().unwrap(), disk.world.now + 3600);
    assert_eq!(
        credentials.own().unwrap().serials[0].to_string(),
        "4a010203040506070809"
    );
    let shown = format!("{credentials:?}");
    assert_eq!(
        shown,
        format!(
            "Credentials {{ generation: 7, id: {GATEWAY_ID:?}, not_after: {}, .. }}",
            disk.world.now + 3600
        )
    );
}

#[test]
fn a_key_that_others_may_read_or_write_is_refused() {
    let disk = Disk::new();
    let key = fs::read_to_string(&disk.files.key).unwrap();
    for mode in [0o640, 0o604, 0o620, 0o602] {
        disk.write_key(&key, mode);
        assert_eq!(
            disk.error(),
            format!(
                "gw.key: readable or writable by others (mode {mode:03o}); run `chmod 600` on it"
            )
        );
    }
    disk.write_key(&key, 0o400);
    assert!(disk.load().is_ok());
}

#[test]
fn the_key_of_another_certificate_is_refused() {
    let disk = Disk::new();
    let other = disk.world.east.key.serialize_pem();
    disk.write_key(&other, 0o600);
    assert_eq!(
        disk.error(),
        "gw.key: not the key of gw.pem; replace both files together"
    );
}

#[test]
fn half_written_and_wrong_files_are_refused_by_name() {
    let disk = Disk::new();
    let certificate = fs::read_to_string(&disk.files.certificate).unwrap();
    let half = &certificate[..certificate.len() / 2];
    fs::write(&disk.files.certificate, half).unwrap();
    assert!(
        disk.error()
            .starts_with("gw.pem: no certificate in PEM form; is the file whole?")
    );
    fs::write(&disk.files.certificate, "").unwrap();
    assert!(
        disk.error()
            .starts_with("gw.pem: no certificate in PEM form")
    );
    let large = usize::try_from(SVID_BYTES_MAX).unwrap() + 1;
    fs::write(&disk.files.certificate, vec![b'\n'; large]).unwrap();
    assert_eq!(
        disk.error(),
        "gw.pem: over 65536 bytes; is it the right file?"
    );
    fs::remove_file(&disk.files.certificate).unwrap();
    assert!(disk.error().starts_with("gw.pem: cannot be read: "));

    fs::write(&disk.files.certificate, certificate).unwrap();
    disk.write_key("no key", 0o600);
    assert!(
        disk.error()
            .starts_with("gw.key: no unencrypted private key in PEM form")
    );
    disk.write_key(&pem("PRIVATE KEY", b"0\x03abc"), 0o600);
    assert!(disk.error().starts_with("gw.key: the key cannot be used; "));
}

#[test]
fn our_own_svid_is_held_to_the_rules_of_a_peer() {
    let disk = Disk::new();
    let mut spec = disk.world.leaf_of(&disk.world.east, GATEWAY_ID);
    spec.not_after = der::utc_time(disk.world.now - 60);
    let expired = spec.sign(&disk.world.east.key);
    fs::write(&disk.files.certificate, certificates_pem(&[expired])).unwrap();
    let error = disk.error();
    let advice = "gw.pem: every peer would refuse this SVID; issue a new one, or add its trust \
                  domain's bundle to bundles: expired: ";
    assert!(error.starts_with(advice), "{error}");

    let disk = Disk::new();
    fs::remove_file(disk.files.bundles.join("east.example.pem")).unwrap();
    let error = disk.error();
    assert!(
        error.ends_with(
            ": XL4: no bundle for trust domain east.example; add its bundle to accept it"
        ),
        "{error}"
    );
}

#[test]
fn a_spiffe_bundle_yields_the_anchors_it_means_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new();
    let x5c = |der: &CertificateDer<'_>| STANDARD.encode(der);
    let anchor = x5c(&world.east.anchor);
    let west = x5c(&world.west.anchor);
    // B4: other or no use, other or no kty; B5: no or empty x5c, and only x5c[0]; B7: anything else.
    let text = format!(
        r#"{{
        "keys": [
            {{"use": "jwt-svid", "kty": "EC", "kid": "a", "crv": "P-256", "x": "x", "y": "y"}},
            {{"use": "x509-svid", "kty": "unheard-of", "x5c": ["{west}"]}},
            {{"use": "x509-svid", "x5c": ["{west}"]}},
            {{"use": 1, "kty": "EC", "x5c": ["{west}"]}},
            {{"kty": "EC", "x5c": ["{west}"]}},
            {{"use": "x509-svid", "kty": "EC"}},
            {{"use": "x509-svid", "kty": "EC", "x5c": []}},
            "not an object",
            {{"use": "x509-svid", "kty": "EC", "x5c": ["{anchor}", "{west}"], "new": true}},
            {{"use": "x509-svid", "kty": "EC", "x5c": ["{anchor}"]}}
        ],
        "spiffe_sequence": 12035488590243521,
        "spiffe_refresh_hint": 2419200,
        "unknown": {{}}
    }}"#
    );
    let path = folder.path().join("east.example.json");
    fs::write(&path, text).unwrap();
    let bundle = Bundle::load(&path, domain("east.example")).unwrap();
    assert_eq!(bundle.anchors().len(), 1);
    assert_eq!(bundle.anchors()[0].der, world.east.anchor);
    assert_eq!(bundle.sequence(), Some(12_035_488_590_243_521));
    assert_eq!(bundle.refresh_hint(), Some(Duration::from_secs(2_419_200)));
}

#[test]
fn what_is_no_bundle_is_refused_by_name_and_place() {
    let fresh = |name: &str, content: &str| Disk::new().bundle_error(name, content);
    let starts = |text: String, start: &str| assert!(text.starts_with(start), "{text}");
    let json = "bundles/north.example.json";
    let not = format!("{json}: not a SPIFFE bundle (a JWK set with `keys`): ");
    starts(fresh("north.example.json", r#"{"keys": ["#), &not);
    starts(fresh("north.example.json", "{}"), &not);
    starts(fresh("north.example.json", r#"{"keys": null}"#), &not);
    starts(
        fresh("north.example.json", r#"{"keys": [], "keys": []}"#),
        &not,
    );
    starts(
        fresh(
            "north.example.json",
            r#"{"keys": [], "spiffe_sequence": -1}"#,
        ),
        &not,
    );
    let key = r#"{"keys": [{}, {"use": "x509-svid", "kty": "EC", "x5c": ["*"]}]}"#;
    starts(
        fresh("north.example.json", key),
        &format!("{json}: keys[1].x5c[0] is not base64: "),
    );
    let key = r#"{"keys": [{"use": "x509-svid", "kty": "EC", "x5c": ["MANhYmM="]}]}"#;
    starts(
        fresh("north.example.json", key),
        &format!("{json}: anchor 0 cannot be used; get a new bundle from its CA: malformed: "),
    );
    starts(
        fresh("North.example.json", r#"{"keys": []}"#),
        "bundles/North.example.json: the file name must be `<trust domain>.json` or \
         `<trust domain>.pem`: the trust domain holds 'N'",
    );
    starts(
        fresh("east.example.json", r#"{"keys": []}"#),
        "bundles/east.example.pem: there is a second bundle of trust domain east.example; \
         bundles are never merged, remove one",
    );
    starts(
        fresh("north.example.pem", ""),
        "bundles/north.example.pem: no certificate in it; to trust nothing, use a .json bundle",
    );
    starts(
        fresh(
            "north.example.pem",
            "-----BEGIN CERTIFICATE-----\nMANhYmM=\n",
        ),
        "bundles/north.example.pem: not PEM certificates; is the file whole?: ",
    );
}

#[test]
fn an_anchor_of_another_trust_domain_or_that_is_no_ca_is_refused() {
    let disk = Disk::new();
    let west = certificates_pem(&[
        disk.world.east.anchor.clone(),
        disk.world.west.anchor.clone(),
    ]);
    assert_eq!(
        disk.bundle_error("east.example.pem", west),
        "bundles/east.example.pem: anchor 1 cannot be used; get a new bundle from its CA: \
         XC4: a CA certificate of west.example where one of east.example is needed"
    );
    let disk = Disk::new();
    let leaf = disk.world.leaf().sign(&disk.world.east.key);
    let error = disk.bundle_error("north.example.pem", certificates_pem(&[leaf]));
    assert!(error.contains("anchor 0 cannot be used"), "{error}");
}

#[test]
fn bundles_have_limits_of_bytes_anchors_and_number() {
    let disk = Disk::new();
    let large = usize::try_from(BUNDLE_BYTES_MAX).unwrap() + 1;
    assert_eq!(
        disk.bundle_error("north.example.pem", vec![b'\n'; large]),
        "bundles/north.example.pem: over 1048576 bytes; is it the right file?"
    );

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("east.example.pem");
    let load = |anchors: usize| {
        let anchors = vec![disk.world.east.anchor.clone(); anchors];
        fs::write(&path, certificates_pem(&anchors)).unwrap();
        Bundle::load(&path, domain("east.example"))
    };
    assert!(load(ANCHORS_MAX).is_ok());
    let error = load(ANCHORS_MAX + 1).unwrap_err();
    assert!(
        matches!(error, BundleError::TooManyAnchors { .. }),
        "{error}"
    );

    let folder = tempfile::tempdir().unwrap();
    for number in 0..BUNDLES_MAX {
        fs::write(
            folder.path().join(format!("d{number}.json")),
            r#"{"keys":[]}"#,
        )
        .unwrap();
    }
    assert_eq!(
        Bundles::load(folder.path()).unwrap().iter().count(),
        BUNDLES_MAX
    );
    fs::write(folder.path().join("one-more.json"), "").unwrap();
    let error = Bundles::load(folder.path()).unwrap_err();
    assert!(matches!(error, BundleError::TooMany { .. }), "{error}");
}

#[test]
fn other_files_beside_the_bundles_are_ignored() {
    let disk = Disk::new();
    // As Kubernetes projects a volume, and an editor leaves a copy.
    fs::create_dir(disk.files.bundles.join("..2026_11_23")).unwrap();
    fs::write(disk.files.bundles.join(".east.example.pem"), "half").unwrap();
    fs::write(disk.files.bundles.join("east.example.pem~"), "half").unwrap();
    fs::write(disk.files.bundles.join("README"), "words").unwrap();
    assert!(disk.load().is_ok());
    let error = Bundles::load(Path::new("/nonexistent/bundles")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nonexistent/bundles: cannot list the folder of bundles"
    );
}

#[test]
fn of_a_reload_each_trust_domain_stands_alone() {
    let mut disk = Disk::new();
    let denied = disk.folder.path().join("denied");
    fs::write(&denied, "spiffe://west.example/ns/shop/sa/a\n").unwrap();
    disk.files.denied = Some(denied.clone());
    let acme = disk.folder.path().join("acme.json");
    disk.files.domains = vec![DomainBundle {
        domain: domain("acme.example"),
        file: Some(acme.clone()),
        is_fetched: false,
        fetched: None,
    }];
    let no_keys = r#"{"keys":[],"spiffe_sequence":1}"#;
    fs::write(&acme, no_keys).unwrap();
    let before = disk.load().unwrap();
    assert!(before.wrong().is_empty());
    let write = |name: &str, text: &str| fs::write(disk.files.bundles.join(name), text).unwrap();
    let anchor = certificates_pem(std::slice::from_ref(&disk.world.west.anchor));
    write("west.example.pem", &anchor[..anchor.len() / 2]);
    write("deep.example.pem", "");
    write("stale.example.json", no_keys);
    write("new.example.pem", &anchor);
    write("no domain.pem", &anchor);
    fs::write(&acme, no_keys.replace('1', "2")).unwrap();
    write("pooled.example.json", no_keys);
    fs::remove_file(disk.files.bundles.join("pooled.example.pem")).unwrap();
    fs::write(&denied, "nobody at all\n").unwrap();
    fs::remove_file(disk.files.bundles.join("renewed.example.pem")).unwrap();
    let after = before.reload(&disk.files).unwrap();
    let same = |name| before.bundles().get(&domain(name)) == after.bundles().get(&domain(name));
    // Those that are broken, or of which there are two, stay; one that never was good is not there.
    for name in [
        "west.example",
        "deep.example",
        "stale.example",
        "east.example",
    ] {
        assert!(same(name), "{name}");
    }
    assert_eq!(after.bundles().get(&domain("new.example")), None);
    // All else is applied.
    let sequence = |name| after.bundles().get(&domain(name)).unwrap().sequence();
    assert_eq!(sequence("acme.example"), Some(2));
    assert_eq!(sequence("pooled.example"), Some(1));
    assert_eq!(after.bundles().get(&domain("renewed.example")), None);
    assert_eq!(before.denied(), after.denied());
    let wrong: Vec<String> = after.wrong().iter().map(ToString::to_string).collect();
    let told = |text: &str| wrong.iter().any(|one| one.contains(text));
    for text in [
        "west.example.pem",
        "deep.example.pem",
        "second bundle of trust domain stale.example",
        "new.example.pem",
        "no domain.pem",
        "denied",
    ] {
        assert!(told(text), "{text}: {wrong:?}");
    }
    assert_eq!(wrong.len(), 6, "{wrong:?}");
}

#[test]
fn a_reload_keeps_the_svid_where_the_next_one_is_broken_and_the_bundle_has_its_anchor() {
    let disk = Disk::new();
    let before = disk.load().unwrap();
    fs::write(&disk.files.certificate, "half").unwrap();
    fs::remove_file(disk.files.bundles.join("west.example.pem")).unwrap();
    let after = before.reload(&disk.files).unwrap();
    assert_eq!(after.chain(), before.chain());
    assert_eq!(after.generation(), 8);
    assert_eq!(after.bundles().get(&domain("west.example")), None);
    assert_eq!(after.wrong().len(), 1);
    // It is nobody's any more: nothing is used.
    let other = certificates_pem(std::slice::from_ref(&disk.world.renewed.anchor));
    fs::write(disk.files.bundles.join("east.example.pem"), other).unwrap();
    assert!(after.reload(&disk.files).is_ok(), "a broken bundle");
    let nobody = r#"{"keys":[]}"#;
    fs::remove_file(disk.files.bundles.join("east.example.pem")).unwrap();
    fs::write(disk.files.bundles.join("east.example.json"), nobody).unwrap();
    assert!(after.reload(&disk.files).is_err());
}

#[test]
fn at_the_start_a_foreign_trust_domain_that_cannot_be_used_is_left_out_alone() {
    let mut disk = Disk::new();
    let crls = disk.folder.path().join("crls");
    fs::create_dir(&crls).unwrap();
    fs::write(crls.join("fetched.example.pem"), "no list").unwrap();
    fs::write(crls.join("late.example.pem"), "no list").unwrap();
    disk.files.crls = Some(crls);
    let no_keys = r#"{"keys":[],"spiffe_sequence":3}"#;
    let kept = |name: &str| {
        let bundle = Bundle::parse(no_keys.as_bytes(), domain(name), Path::new("kept"));
        Some(bundle.unwrap())
    };
    let missing = || Some(disk.folder.path().join("missing.json"));
    let foreign = |name: &str, file, fetched| DomainBundle {
        domain: domain(name),
        file,
        is_fetched: true,
        fetched,
    };
    disk.files.domains = vec![
        foreign("missing.example", missing(), None),
        foreign("kept.example", missing(), kept("kept.example")),
        // In the folder, too: nobody knows which is meant.
        foreign("west.example", None, kept("west.example")),
        // Who of it is revoked is not known: with a bundle and without.
        foreign("fetched.example", None, kept("fetched.example")),
        foreign("late.example", None, None),
    ];
    let credentials = disk.load().unwrap();
    let has = |name: &str| credentials.bundles().get(&domain(name)).is_some();
    for name in ["missing", "west", "fetched", "late"] {
        assert!(!has(&format!("{name}.example")), "{name}");
    }
    assert!(has("kept.example") && has("east.example"));
    let wrong: Vec<String> = (credentials.wrong().iter())
        .map(ToString::to_string)
        .collect();
    for text in [
        "missing.json: cannot be read",
        "second bundle of trust domain west.example",
        "fetched.example.pem: no CRL in it",
        "no bundle of trust domain late.example",
    ] {
        assert!(
            wrong.iter().any(|one| one.contains(text)),
            "{text}: {wrong:?}"
        );
    }
    assert_eq!(wrong.len(), 5, "{wrong:?}");

    // Our own is not to be left out.
    disk.files.own = Some(domain("east.example"));
    disk.files.domains = vec![foreign("east.example", missing(), None)];
    assert!(
        disk.error()
            .contains("second bundle of trust domain east.example")
    );
}

#[test]
fn who_comes_while_the_crls_cannot_be_listed_is_left_out() {
    let mut disk = Disk::new();
    let crls = disk.folder.path().join("crls");
    fs::create_dir(&crls).unwrap();
    disk.files.crls = Some(crls.clone());
    let before = disk.load().unwrap();
    fs::remove_dir(&crls).unwrap();
    fs::write(
        disk.files.bundles.join("new.example.json"),
        r#"{"keys":[]}"#,
    )
    .unwrap();
    let after = before.reload(&disk.files).unwrap();
    assert_eq!(after.bundles(), before.bundles());
    assert_eq!(after.wrong().len(), 1, "{:?}", after.wrong());
    fs::create_dir(&crls).unwrap();
    let after = after.reload(&disk.files).unwrap();
    assert!(after.bundles().get(&domain("new.example")).is_some());
}

#[test]
fn a_bundle_that_is_only_numbered_anew_makes_no_other_credentials() {
    let disk = Disk::new();
    let x5c = |der: &CertificateDer<'_>| {
        let text = STANDARD.encode(der);
        format!(r#"{{"use":"x509-svid","kty":"EC","x5c":["{text}"]}}"#)
    };
    let path = disk.files.bundles.join("west.example.json");
    fs::remove_file(disk.files.bundles.join("west.example.pem")).unwrap();
    let west = x5c(&disk.world.west.anchor);
    let other = x5c(&World::new().west.anchor);
    let load = |keys: &[&str], sequence: u64| {
        let keys = keys.join(",");
        let text = format!(
            r#"{{"keys":[{keys}],"spiffe_sequence":{sequence},"spiffe_refresh_hint":{sequence}}}"#
        );
        fs::write(&path, text).unwrap();
        disk.load().unwrap()
    };
    let before = load(&[&west, &other], 1);
    assert!(!before.differs(&load(&[&other, &west], 2)));
    assert!(before.differs(&load(&[&west], 2)));
    assert!(load(&[&west], 2).differs(&before));
    assert!(load(&[&west], 2).differs(&load(&[&other], 2)));
}
