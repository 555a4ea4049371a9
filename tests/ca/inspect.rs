//! `zeugma ca inspect`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::Value;
use zeugma_ca::files::pem;

use crate::support::{Bench, openssl_is_missing, openssl_ok};

const ID: &str = "spiffe://east.example/ns/shop/sa/cart";

fn bench() -> Bench {
    let bench = Bench::with_ca(&["east.example"]);
    bench.ok(&format!("ca issue {ID} --out cart --dns cart.shop"));
    bench
}

fn json(bench: &Bench, words: &str) -> Value {
    serde_json::from_str(&bench.ok(&format!("ca inspect -o json {words}"))).unwrap()
}

#[test]
fn a_chain_is_shown_certificate_by_certificate() {
    let bench = bench();
    let text = bench.ok("ca inspect cart.pem");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "certificate 1 of 2: leaf");
    assert_eq!(lines[1], format!("  SPIFFE ID   {ID}"));
    assert_eq!(lines[2], "  other names cart.shop");
    assert_eq!(lines[3], "  subject     (empty)");
    assert!(
        text.contains("(ends in 23h 59m)") || text.contains("(ends in 1d 0h)"),
        "{text}"
    );
    assert!(
        text.contains("\ncertificate 2 of 2: CA, signed by another\n"),
        "{text}"
    );
    assert!(!text.contains("breaks"), "{text}");
}

#[test]
fn what_is_shown_is_what_openssl_shows() {
    if openssl_is_missing() {
        return;
    }
    let bench = bench();
    let leaf = json(&bench, "cart.pem")["certificates"][0].clone();
    let said = openssl_ok(
        &bench,
        "x509 -in cart.pem -noout -serial -fingerprint -sha256",
    );
    let value = |name: &str| {
        let line = said
            .lines()
            .find(|l| l.to_lowercase().starts_with(name))
            .unwrap();
        line.split_once('=')
            .unwrap()
            .1
            .replace(':', "")
            .to_lowercase()
    };
    let serial = leaf["serial"].as_str().unwrap();
    assert_eq!(
        serial.trim_start_matches("00"),
        value("serial").trim_start_matches("00")
    );
    assert_eq!(leaf["sha256"], value("sha256"));
    assert_eq!(leaf["key"], "ECDSA P-256");
    assert_eq!(leaf["spiffeIds"][0], ID);
    assert_eq!(leaf["violation"], Value::Null);
}

#[test]
fn der_bundles_and_standard_input_are_read_too() {
    let bench = bench();
    let chain = bench.chain("cart.pem");
    std::fs::write(bench.path("cart.der"), &chain[0]).unwrap();
    let leaf = json(&bench, "cart.pem")["certificates"][0].clone();
    assert_eq!(json(&bench, "cart.der")["certificates"][0], leaf);

    bench.ok("ca bundle east.example --out east.json");
    let anchor = &json(&bench, "east.json")["certificates"][0];
    assert_eq!(anchor["role"], "CA, self-signed");
    assert_eq!(anchor["spiffeIds"][0], "spiffe://east.example");

    let mut child = bench
        .command("ca inspect -o json -")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(pem("CERTIFICATE", &chain[0]).as_bytes())
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["certificates"][0], leaf);
}

#[test]
fn garbage_is_named() {
    let bench = bench();
    std::fs::write(bench.path("junk"), "junk").unwrap();
    let said = bench.fails("ca inspect junk", 65);
    assert_eq!(
        said,
        "error[ZG0227]: junk holds no certificate; give a PEM or DER certificate or a SPIFFE bundle\n"
    );
    let said = bench.fails("ca inspect nowhere.pem", 1);
    assert!(said.starts_with("error[ZG0222]: "), "{said}");
    // Base64 that is no certificate is shown as such.
    std::fs::write(bench.path("junk.pem"), pem("CERTIFICATE", b"junk")).unwrap();
    let said = bench.ok("ca inspect junk.pem");
    assert!(
        said.starts_with("certificate 1 of 1: not an X.509 certificate"),
        "{said}"
    );
}

/// `openssl s_server` on a free port; killed when dropped.
struct Server {
    child: Child,
    _out: BufReader<ChildStdout>,
    address: String,
}

impl Server {
    fn start(bench: &Bench, words: &str) -> Self {
        let mut child = Command::new("openssl")
            .args(
                "s_server -accept 127.0.0.1:0 -cert_chain cross.pem -cert cart.pem -key cart.key"
                    .split(' '),
            )
            .args(words.split_whitespace())
            .current_dir(bench.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        // `ACCEPT 127.0.0.1:40123`, or the end of the output if it could not start.
        while !line.starts_with("ACCEPT ") {
            line.clear();
            assert_ne!(
                out.read_line(&mut line).unwrap(),
                0,
                "s_server did not start"
            );
        }
        let address = line.trim_start_matches("ACCEPT ").trim().to_owned();
        Self {
            child,
            _out: out,
            address,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn what_a_server_presents_is_shown_also_when_it_wants_a_certificate_of_ours() {
    if openssl_is_missing() {
        return;
    }
    let bench = bench();
    let leaf = json(&bench, "cart.pem")["certificates"][0].clone();
    let cross = pem("CERTIFICATE", &bench.chain("cart.pem")[1]);
    std::fs::write(bench.path("cross.pem"), cross).unwrap();
    for more in ["", "-Verify 1 -verify_return_error"] {
        let server = Server::start(&bench, more);
        let shown = json(&bench, &server.address);
        assert_eq!(shown["certificates"][0], leaf, "{more}");
        assert_eq!(shown["certificates"].as_array().unwrap().len(), 2, "{more}");
        let text = bench.ok(&format!("ca inspect {} --sni cart.shop", server.address));
        assert!(text.contains("nothing below was verified"), "{text}");
    }
}

#[test]
fn a_port_that_is_closed_or_speaks_no_tls_is_named() {
    let bench = bench();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = std::thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"220 hello\r\n").unwrap();
    });
    let said = bench.fails(&format!("ca inspect {address}"), 1);
    assert!(
        said.contains("error[ZG0228]: ") && said.contains("presented no certificate"),
        "{said}"
    );
    server.join().unwrap();
    // The listener is gone with its thread.
    let said = bench.fails(&format!("ca inspect {address}"), 1);
    assert!(
        said.contains(&format!("cannot connect to {address}")),
        "{said}"
    );
}
