//! Keys and passphrases on disk (C5).

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::{Bench, files};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn c5_keys_are_0600_and_the_authoritys_are_encrypted() {
    let bench = Bench::with_ca(&["east.example"]);
    bench.ok("ca issue spiffe://east.example/a --out a");
    let mut keys = 0;
    for path in files(bench.root()) {
        let name = path.to_string_lossy().into_owned();
        if !name.ends_with(".key") {
            continue;
        }
        keys += 1;
        assert_eq!(mode(&path), 0o600, "{name}");
        let text = std::fs::read_to_string(&path).unwrap();
        let sealed = text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----");
        assert_eq!(sealed, !name.ends_with("/a.key"), "{name}");
    }
    assert_eq!(keys, 3);
    assert_eq!(mode(&bench.path("ca/passphrase")), 0o600);
    assert_eq!(mode(&bench.path("ca")), 0o700);
}

#[test]
fn c5_keys_that_others_may_read_are_refused() {
    let bench = Bench::with_ca(&["east.example"]);
    bench.ok("ca issue spiffe://east.example/a --out a");
    for mode in [0o640, 0o604, 0o660] {
        set_mode(&bench.path("a.key"), mode);
        let said = bench.fails("ca renew a.pem --key a.key", 65);
        assert_eq!(
            said,
            format!(
                "error[ZG0223]: a.key is readable by others (mode {mode:04o}); run `chmod 600 a.key` (C5)\n"
            )
        );
    }
    for exposed in ["ca/root.key", "ca/passphrase"] {
        set_mode(&bench.path(exposed), 0o644);
        let said = bench.run("ca trust-domain add west.example");
        assert_ne!(said.code, 0);
        assert!(said.stderr.contains("(C5)"), "{}", said.stderr);
        set_mode(&bench.path(exposed), 0o600);
    }
    bench.ok("ca trust-domain add west.example");
}

#[test]
fn a_passphrase_can_be_kept_elsewhere_and_a_wrong_or_missing_one_is_named() {
    let bench = Bench::new();
    let secret = bench.path("secret");
    std::fs::write(&secret, "correct horse battery staple\n").unwrap();
    set_mode(&secret, 0o600);
    bench.ok("ca init --passphrase-file secret");
    assert!(!bench.path("ca/passphrase").exists());
    let said = bench.fails("ca trust-domain add east.example", 1);
    assert_eq!(
        said,
        "error[ZG0214]: ca/root.key is encrypted and there is no passphrase; give --passphrase-file or set \
         ZEUGMA_CA_PASSPHRASE_FILE\n"
    );
    let run = crate::support::Run::of(
        bench
            .command("ca trust-domain add east.example")
            .env("ZEUGMA_CA_PASSPHRASE_FILE", "secret"),
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    // A bundle needs no key.
    bench.ok("ca bundle east.example");

    let wrong = bench.path("wrong");
    std::fs::write(&wrong, "tr0ub4dor\n").unwrap();
    set_mode(&wrong, 0o600);
    let said = bench.fails(
        "ca --passphrase-file wrong issue spiffe://east.example/a",
        65,
    );
    assert!(
        said.contains("error[ZG0214]: ") && said.contains("does not decrypt"),
        "{said}"
    );
    bench.ok("ca --passphrase-file secret issue spiffe://east.example/a");
}

#[test]
fn a_root_key_kept_offline_is_missed_only_when_a_trust_domain_is_added() {
    let bench = Bench::with_ca(&["east.example"]);
    std::fs::rename(bench.path("ca/root.key"), bench.path("offline.key")).unwrap();
    bench.ok("ca issue spiffe://east.example/a --out a");
    let said = bench.fails("ca trust-domain add west.example", 65);
    assert!(said.contains("cannot read ca/root.key"), "{said}");
    assert_eq!(bench.ok("ca trust-domain list"), "east.example\n");
}

#[test]
fn another_authoritys_key_is_refused() {
    let bench = Bench::with_ca(&["east.example"]);
    let other = Bench::with_ca(&[]);
    std::fs::copy(other.path("ca/root.key"), bench.path("ca/root.key")).unwrap();
    std::fs::copy(other.path("ca/passphrase"), bench.path("secret")).unwrap();
    let said = bench.fails(
        "ca --passphrase-file secret trust-domain add west.example",
        1,
    );
    assert!(
        said.contains("error[ZG0215]: ") && said.contains("is not the key the ledger names"),
        "{said}"
    );
}

#[test]
fn init_never_replaces_an_authority_or_a_root_key() {
    let bench = Bench::with_ca(&["east.example"]);
    let root = std::fs::read(bench.path("ca/root.pem")).unwrap();
    let key = std::fs::read(bench.path("ca/root.key")).unwrap();
    let said = bench.fails("ca init", 1);
    assert_eq!(
        said,
        "error[ZG0212]: ca holds a CA already; nothing was changed\n"
    );
    assert_eq!(std::fs::read(bench.path("ca/root.pem")).unwrap(), root);
    // With its ledger lost, a new one is made around the key that is left.
    for lost in ["ca.db", "ca.db-wal", "ca.db-shm"] {
        std::fs::remove_file(bench.path("ca").join(lost)).ok();
    }
    let said = bench.fails("ca issue spiffe://east.example/a", 65);
    assert_eq!(
        said,
        "error[ZG0211]: there is no CA in ca; run `zeugma ca init --dir ca`\n"
    );
    bench.ok("ca init");
    assert_eq!(std::fs::read(bench.path("ca/root.key")).unwrap(), key);
}
