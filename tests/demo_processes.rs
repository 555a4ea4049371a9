//! The processes that `zeugma demo` is made of: real ones, of the real binary.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ZEUGMA: &str = env!("CARGO_BIN_EXE_zeugma");
const DEADLINE: Duration = Duration::from_secs(10);

/// Kills its process when dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

#[test]
fn a_child_ends_with_its_parent_even_if_that_is_killed() {
    let address = free();
    // The shell is the parent; `wait` keeps it, and a second command keeps it from becoming one.
    let script = format!(
        "{ZEUGMA} demo-child $$ demo-service --listen {address} --name east-1 & echo $!; wait; true"
    );
    let mut parent = Killed(
        Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut child = String::new();
    let output = parent.0.stdout.take().unwrap();
    BufReader::new(output).read_line(&mut child).unwrap();
    until(|| get(address, "/healthz").is_some_and(|answer| answer.ends_with("ok\n")));

    parent.0.kill().unwrap();
    parent.0.wait().unwrap();

    until(|| TcpStream::connect(address).is_err());
}

#[test]
fn a_child_whose_parent_is_gone_does_not_begin() {
    let not_mine = std::process::id() + 1;
    let output = Command::new(ZEUGMA)
        .args(["demo-child", &not_mine.to_string(), "demo-service"])
        .args(["--listen", "127.0.0.1:0", "--name", "east-1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("the process that started it is gone"),
        "{said}"
    );
}

#[test]
fn a_service_that_is_killed_leaves_its_journal_and_goes_on_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal");
    let address = free();
    let start = || {
        let child = Command::new(ZEUGMA)
            .args(["demo-service", "--name=east-1", "--hold=5s"])
            .arg(format!("--listen={address}"))
            .arg(format!("--journal={}", journal.display()))
            .spawn()
            .unwrap();
        until(|| get(address, "/healthz").is_some());
        Killed(child)
    };
    for id in ["1", "2"] {
        let service = start();
        let mut stream = TcpStream::connect(address).unwrap();
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-demo-id: {id}\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        until(|| get(address, "/counts").unwrap().contains("\"in_flight\":1"));
        drop(service);
    }
    let text = std::fs::read_to_string(&journal).unwrap();
    assert_eq!(text, "GET 1 received\nGET 2 received\n");
}

#[test]
fn a_relay_delays_what_passes_both_ways() {
    let (service, relay) = (free(), free());
    let _service = Killed(
        Command::new(ZEUGMA)
            .args(["demo-service", "--name=west-1", "--hold=0ms"])
            .arg(format!("--listen={service}"))
            .spawn()
            .unwrap(),
    );
    let _relay = Killed(
        Command::new(ZEUGMA)
            .args(["demo-relay", "--delay=40ms"])
            .arg(format!("--listen={relay}"))
            .arg(format!("--to={service}"))
            .spawn()
            .unwrap(),
    );
    until(|| get(service, "/healthz").is_some() && get(relay, "/healthz").is_some());
    let before = Instant::now();
    let answer = get(relay, "/orders").unwrap();
    assert!(before.elapsed() >= Duration::from_millis(80));
    assert!(answer.contains("\"service\":\"west-1\""), "{answer}");
}

fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// What `GET path` answers, none if nothing listens.
fn get(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

fn until(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        if Instant::now() > deadline {
            panic!("not so within {DEADLINE:?}");
        }
        std::thread::yield_now();
    }
}
