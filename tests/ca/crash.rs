//! `kill -9`, a full disk, and several at once: no half certificate, no serial twice (C2, R8).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeugma_ca::{Authority, SubjectKey};

use crate::support::{Bench, Killer, Run, chain, eprint, files};

/// Everything in a folder is whole, every certificate is in the ledger, no serial is there twice.
fn check(folder: &Path, ca: &Path) {
    let ledger = ledger(ca);
    for path in files(folder) {
        let name = path.to_string_lossy().into_owned();
        if name.ends_with(".pem") {
            check_certificates(&path, &ledger);
        } else if name.ends_with(".key") {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.starts_with("-----BEGIN "), "{name}");
            assert!(text.ends_with("PRIVATE KEY-----\n"), "{name}");
        } else if name.ends_with(".json") {
            let bundle: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            assert!(bundle.is_object(), "{name}");
        }
    }
}

fn check_certificates(path: &Path, ledger: &[CertificateDer<'static>]) {
    let certificates = chain(path);
    assert!(!certificates.is_empty(), "{}", path.display());
    for der in &certificates {
        assert!(
            ledger.contains(der),
            "{} is not in the ledger",
            path.display()
        );
    }
    if certificates.len() == 2 {
        // A leaf: its key came before it.
        let key = SubjectKey::read(&path.with_extension("key")).unwrap();
        assert_eq!(public_key(&certificates[0]), key.public_key_der());
    }
}

fn public_key(der: &CertificateDer<'_>) -> Vec<u8> {
    let (_, parsed) = X509Certificate::from_der(der).unwrap();
    parsed.public_key().raw.to_vec()
}

/// What the ledger holds, having checked that it is whole.
fn ledger(ca: &Path) -> Vec<CertificateDer<'static>> {
    let authority = Authority::open(ca, None).unwrap();
    authority.verify_ledger().unwrap();
    authority.certificates().unwrap()
}

/// (certificates, distinct pairs of issuer and serial), the serials read from the DER.
fn serials(ca: &Path) -> (usize, usize) {
    let all = ledger(ca);
    let pairs: BTreeSet<(Vec<u8>, Vec<u8>)> = all
        .iter()
        .map(|der| {
            let (_, parsed) = X509Certificate::from_der(der).unwrap();
            (
                parsed.issuer().as_raw().to_vec(),
                parsed.raw_serial().to_vec(),
            )
        })
        .collect();
    (all.len(), pairs.len())
}

#[test]
fn c2_r8_killed_at_any_moment_issue_leaves_no_half_certificate_and_no_serial_twice() {
    let bench = Bench::with_ca(&["east.example"]);
    bench.ok("ca bundle east.example --out bundles.json");
    let issue = |n: usize| format!("ca issue spiffe://east.example/n/{n} --out {n}");
    bench.ok(&issue(0));
    let mut killer = Killer::new();
    for n in 1..=40 {
        let command = if n % 3 == 0 {
            "ca renew 0.pem --key 0.key".to_owned()
        } else {
            issue(n)
        };
        killer.kill(&mut bench.command(&command));
        check(bench.root(), &bench.path("ca"));
    }
    killer.report();
    // Each can be run again and is then whole.
    for n in (1..=40).filter(|n| n % 3 != 0) {
        if !bench.path(&format!("{n}.pem")).exists() {
            bench.ok(&issue(n));
        }
    }
    check(bench.root(), &bench.path("ca"));
    let (all, distinct) = serials(&bench.path("ca"));
    assert_eq!(all, distinct);
    verifies(&bench, "0.pem");
    verifies(&bench, "40.pem");
    // No temporary file is left once the command has run again.
    bench.ok("ca renew 0.pem --key 0.key");
    assert!(!bench.path(".0.pem.tmp").exists());
}

/// `zeugma ca verify` accepts a chain under the CA's own bundles.
fn verifies(bench: &Bench, file: &str) {
    std::fs::create_dir_all(bench.path("trusted")).unwrap();
    bench.ok("ca bundle east.example --out trusted/east.example.json");
    bench.ok(&format!("ca verify {file} --bundles trusted"));
}

#[test]
fn killed_at_any_moment_init_and_trust_domain_add_can_be_run_again() {
    let (mut inits, mut adds) = (Killer::new(), Killer::new());
    for _ in 0..12 {
        let bench = Bench::new();
        inits.kill(&mut bench.command("ca init"));
        let key = std::fs::read(bench.path("ca/root.key"));
        let run = bench.run("ca init");
        assert!(
            run.code == 0 || run.stderr.contains("holds a CA already"),
            "{}",
            run.stderr
        );
        // A root key that was written is the one that is used.
        if let Ok(key) = key {
            assert_eq!(std::fs::read(bench.path("ca/root.key")).unwrap(), key);
        }
        let add = "ca trust-domain add east.example";
        adds.kill(&mut bench.command(add));
        let run = bench.run(add);
        assert!(
            run.code == 0 || run.stderr.contains("serves `east.example` already"),
            "{}",
            run.stderr
        );
        bench.ok("ca issue spiffe://east.example/a --out a");
        check(bench.root(), &bench.path("ca"));
        verifies(&bench, "a.pem");
        assert_eq!(serials(&bench.path("ca")), (4, 4));
    }
    inits.report();
    adds.report();
}

#[test]
fn a_file_size_limit_stops_an_issue_without_a_half_file() {
    let bench = Bench::with_ca(&["east.example"]);
    let binary = env!("CARGO_BIN_EXE_zeugma");
    let (mut failed, mut succeeded) = (0, 0);
    // Blocks of 512 bytes (POSIX ulimit); past the limit a write gets EFBIG, or the process a
    // deadly SIGXFSZ if that signal is not ignored.
    for signal in ["trap '' XFSZ; ", ""] {
        for blocks in [0, 1, 2, 8, 24, 48, 64, 96, 128, 256] {
            let out = format!("{}-{blocks}", signal.len());
            let script = format!(
                "{signal}ulimit -c 0; ulimit -f {blocks}; exec {binary} ca issue spiffe://east.example/n/{blocks} --out {out}"
            );
            let run = Run::of(
                Command::new("sh")
                    .args(["-c", &script])
                    .current_dir(bench.root())
                    .env_remove("ZEUGMA_CA_PASSPHRASE_FILE"),
            );
            let released = bench.path(&format!("{out}.pem")).exists();
            // A deadly signal may still come after the release, while SQLite tidies up.
            assert!(released || run.code != 0, "{blocks}: {}", run.stderr);
            assert!(!released || run.code <= 0, "{blocks}: {}", run.stderr);
            if released {
                succeeded += 1;
            } else {
                failed += 1;
            }
            check(bench.root(), &bench.path("ca"));
            // And without the limit it is finished.
            if !released {
                bench.ok(&format!(
                    "ca issue spiffe://east.example/n/{blocks} --out {out}"
                ));
            }
        }
    }
    assert!(failed > 0 && succeeded > 0, "{failed} {succeeded}");
    let (all, distinct) = serials(&bench.path("ca"));
    assert_eq!(all, distinct);
}

/// Fills a small file system of its own, then makes room. `$1` is the command.
const FULL_DISK: &str = r#"
set -e
mkdir disk
mount -t tmpfs -o size=400k tmpfs disk
cp -a ca disk/
i=0
while [ $i -lt 200 ]; do
  "$1" ca --dir disk/ca issue spiffe://east.example/n/$i --out disk/$i >/dev/null 2>said || break
  i=$((i + 1))
done
cp -a disk full
rm -f disk/0.pem disk/0.key disk/1.pem disk/1.key disk/2.pem disk/2.key disk/3.pem disk/3.key
"$1" ca --dir disk/ca issue spiffe://east.example/n/$i --out disk/$i >/dev/null
cp -a disk after
echo $i > reached
"#;

#[test]
fn a_full_disk_stops_an_issue_without_a_half_file_and_room_mends_it() {
    let bench = Bench::with_ca(&["east.example"]);
    let allowed = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--mount",
            "mount",
            "-t",
            "tmpfs",
            "none",
        ])
        .arg(bench.root())
        .output()
        .is_ok_and(|output| output.status.success());
    if !allowed {
        eprint("SKIPPED: no mount namespaces here; a_file_size_limit covers the same paths");
        return;
    }
    let run = Run::of(
        Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                FULL_DISK,
                "sh",
            ])
            .arg(env!("CARGO_BIN_EXE_zeugma"))
            .current_dir(bench.root())
            .env_remove("ZEUGMA_CA_PASSPHRASE_FILE"),
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    let reached = std::fs::read_to_string(bench.path("reached")).unwrap();
    let reached: usize = reached.trim().parse().unwrap();
    assert!((4..200).contains(&reached), "{reached}");
    let said = std::fs::read_to_string(bench.path("said")).unwrap();
    assert!(
        said.contains("No space left on device") || said.contains("disk is full"),
        "{said}"
    );
    for moment in ["full", "after"] {
        let folder = bench.path(moment);
        check(&folder, &folder.join("ca"));
        let (all, distinct) = serials(&folder.join("ca"));
        assert_eq!(all, distinct);
    }
    let whole = |moment: &str, n: usize| -> PathBuf { bench.path(moment).join(format!("{n}.pem")) };
    assert!(!whole("full", reached).exists());
    assert!(whole("after", reached).exists());
}

#[test]
fn c6_issues_at_once_all_succeed_with_serials_of_their_own() {
    let bench = Bench::with_ca(&["east.example"]);
    std::thread::scope(|scope| {
        for n in 0..8 {
            let bench = &bench;
            scope.spawn(move || {
                for round in 0..3 {
                    bench.ok(&format!(
                        "ca issue spiffe://east.example/n/{n} --out {n}-{round}"
                    ));
                }
            });
        }
    });
    check(bench.root(), &bench.path("ca"));
    // The root, two certificates of the issuer, 24 leaves.
    assert_eq!(serials(&bench.path("ca")), (27, 27));
}

#[test]
fn several_issues_into_one_place_leave_a_certificate_with_its_key() {
    let bench = Bench::with_ca(&["east.example"]);
    for round in 0..3 {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let bench = &bench;
                scope.spawn(move || {
                    bench.run(&format!("ca issue spiffe://east.example/a --out {round}"));
                });
            }
        });
        assert!(bench.path(&format!("{round}.pem")).exists());
        check(bench.root(), &bench.path("ca"));
    }
}

#[test]
fn one_trust_domain_added_by_several_at_once_gets_one_issuer() {
    let bench = Bench::with_ca(&[]);
    let codes: Vec<i32> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| bench.run("ca trust-domain add east.example").code))
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(
        codes.iter().filter(|code| **code == 0).count(),
        1,
        "{codes:?}"
    );
    assert_eq!(serials(&bench.path("ca")), (3, 3));
}
