//! Sockets and words between the gateway and a service manager, as systemd defines them.

use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::data_mesh::{HELLO, endpoints, near_route};
use crate::data_services::HttpService;
use crate::mesh::{Agent, Answer, Cluster, DEADLINE, Gateway, Said, within};

/// A gateway whose process this script of a shell prepares: `$$` is its own PID from the start.
fn prepared(east: &Cluster, script: &str) -> Command {
    let gateway = Gateway::command(&east.config());
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg(format!("{script}; exec \"$0\" \"$@\""))
        .arg(gateway.get_program())
        .args(gateway.get_args())
        .env_remove("ZEUGMA_LOG")
        .stdin(Stdio::null());
    command
}

/// A gateway that is given a socket as systemd gives it: descriptor 3, and the variables of
/// sd_listen_fds(3), of which LISTEN_PID must be the process's own.
fn given(east: &Cluster, socket: &TcpListener, name: &str) -> Command {
    let mut command = prepared(east, "exec 3<&0 0</dev/null; export LISTEN_PID=$$");
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", name)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(
            socket.try_clone().unwrap(),
        )));
    command
}

/// East with a listener `front` on this address.
fn fronted(address: &str, service: &HttpService) -> Cluster {
    let mut east = Cluster::new("east");
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let routes = near_route("hello", &[&backends]).replace("[apps]", "[front]");
    east.write("routes.yaml", &routes);
    let at = east.listen("front", "role: workloads");
    east.relisten("front", address.parse().unwrap_or(at), "role: workloads");
    east.write_gateway();
    east
}

async fn ask(at: std::net::SocketAddr) -> TcpStream {
    let mut tcp = TcpStream::connect(at).await.unwrap();
    let request = format!("GET / HTTP/1.0\r\nhost: {HELLO}\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    tcp
}

async fn answered(mut tcp: TcpStream) {
    let mut answer = String::new();
    within("an answer", tcp.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
}

#[tokio::test]
async fn a_socket_of_systemd_is_served_and_outlives_the_gateway() {
    let service = HttpService::start("hello");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let east = fronted(&at.to_string(), &service);
    for _ in 0..2 {
        // Queued before anybody accepts: the socket is the manager's.
        let early = ask(at).await;
        let gateway = east.spawn(given(&east, &socket, "any"));
        gateway.message("ZG0901 gateway ready").await;
        answered(early).await;
        answered(ask(at).await).await;
        // Killed: what comes next waits for the next one.
        drop(gateway);
    }
}

#[tokio::test]
async fn a_socket_is_found_by_its_name_where_its_address_is_another() {
    let service = HttpService::start("hello");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let east = fronted("127.0.0.1:0", &service);
    let gateway = east.spawn(given(&east, &socket, "front"));
    let ready = gateway.message("ZG0901 gateway ready").await;
    assert!(ready.contains(&format!("front {at}")), "{ready}");
    answered(ask(at).await).await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_socket_that_belongs_to_no_listener_is_refused() {
    let service = HttpService::start("hello");
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = socket.local_addr().unwrap();
    let east = fronted("127.0.0.1:0", &service);
    let output = given(&east, &socket, "zeugma.socket").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected =
        format!("error[ZG0952]: sockets of systemd belong to no listener: `zeugma.socket` on {at}");
    assert!(said.contains(&expected), "{said}");
    // Not for this process: not looked at.
    let mut other = Gateway::command(&east.config());
    other.env("LISTEN_FDS", "1").env("LISTEN_PID", "1");
    let gateway = east.spawn(other);
    gateway.message("ZG0901 gateway ready").await;
    gateway.finish().await;
}

#[tokio::test]
async fn descriptors_that_are_no_listening_sockets_are_refused() {
    let service = HttpService::start("hello");
    let east = fronted("127.0.0.1:0", &service);
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    for (variable, value, expected) in [
        (
            "LISTEN_FDS",
            "2000",
            "error[ZG0952]: LISTEN_FDS=2000 is not a number of sockets",
        ),
        (
            "LISTEN_FDS",
            "-1",
            "LISTEN_FDS=-1 is not a number of sockets",
        ),
        ("LISTEN_FDS", "2", "descriptor 4 of systemd cannot be used"),
    ] {
        let mut command = given(&east, &socket, "front");
        let output = command.env(variable, value).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(expected), "{said}");
    }
}

/// What a service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn new(east: &Cluster) -> (Self, std::path::PathBuf) {
        let path = east.config().join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        (Self(socket), path)
    }

    /// The next message; the rest of a line that says when is left out.
    fn hears(&self) -> Vec<String> {
        self.hears_of(&[])
    }

    /// The same; where none comes, it says what these gateways told.
    fn hears_of(&self, gateways: &[&Gateway]) -> Vec<String> {
        let mut bytes = [0; 1024];
        let n = self.0.recv(&mut bytes).unwrap_or_else(|error| {
            let told: Vec<_> = gateways.iter().map(|gateway| gateway.told()).collect();
            panic!("no message: {error}\n{}", told.join("\n"))
        });
        let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
        let lines = text.lines().map(|line| match line.split_once('=') {
            Some(("MONOTONIC_USEC", when)) => {
                assert!(when.parse::<u64>().unwrap() > 0);
                "MONOTONIC_USEC".to_owned()
            }
            _ => line.to_owned(),
        });
        lines.collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_hears_of_ready_reloading_stopping_and_the_next_process() {
    let east = Cluster::new("east");
    east.write_gateway();
    let (manager, path) = Manager::new(&east);
    let told = |more: &[&str]| {
        let mut command = Gateway::command(&east.config());
        command.args(more).env("NOTIFY_SOCKET", &path);
        east.spawn(command)
    };
    let mut first = told(&[]);
    assert_eq!(manager.hears(), ["READY=1"]);
    first.message("ZG0901 gateway ready").await;
    first.signal(Signal::HUP);
    assert_eq!(manager.hears(), ["RELOADING=1", "MONOTONIC_USEC"]);
    assert_eq!(manager.hears(), ["READY=1"]);
    let second = told(&["--takeover"]);
    // From two processes: in either order.
    let all = [&first, &second];
    let mut both = [manager.hears_of(&all), manager.hears_of(&all)].concat();
    both.sort_unstable();
    assert_eq!(
        both,
        [format!("MAINPID={}", second.pid()), "READY=1".to_owned()]
    );
    // It says nothing of stopping: the service does not.
    assert!(first.ended().await.success());
    second.signal(Signal::TERM);
    assert_eq!(manager.hears(), ["STOPPING=1"]);
    let mut second = second;
    assert!(second.ended().await.success());
    manager
        .0
        .set_read_timeout(Some(Duration::from_millis(1)))
        .unwrap();
    assert!(manager.0.recv(&mut [0; 16]).is_err());
}

/// A SIGHUP before there is an SVID once had the manager send whoever waited for the gateway to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_hears_of_ready_once_though_a_signal_asks_for_files_before() {
    let mut east = Cluster::new("east");
    let answer = Answer::of(&east);
    let agent = Agent::at(&east.agent_socket(), Said::Nothing);
    east.ask_agent(Some(&format!("unix://{}", east.agent_socket().display())));
    east.write_gateway();
    let (manager, path) = Manager::new(&east);
    let mut command = Gateway::command(&east.config());
    command.env("NOTIFY_SOCKET", &path);
    let gateway = east.spawn(command);
    gateway.message("ZG0264").await;
    let mut heard = Vec::new();
    let applied = [("what", "config"), ("result", "applied")];
    let before = (gateway.metrics().await).value("zeugma_reloads_total", &applied);
    for nth in 0..3 {
        gateway.signal(Signal::HUP);
        while !heard.ends_with(&["RELOADING=1".to_owned(), "MONOTONIC_USEC".to_owned()]) {
            heard.extend(manager.hears());
        }
        heard.push("next".to_owned());
        if nth == 0 {
            // The files were at rest. All that the signal brought was taken before the third one is
            // seen, since one at a time waits in between.
            let after = before + 1.0;
            let metric = gateway.metric_becomes("zeugma_reloads_total", &applied, after);
            metric.await;
        }
    }
    assert!(!heard.contains(&"READY=1".to_owned()), "{heard:?}");
    agent.say(&answer);
    while manager.hears() != ["READY=1"] {}
    gateway.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_manager_hears_that_all_is_well_as_often_as_it_asks() {
    let east = Cluster::new("east");
    east.write_gateway();
    let (manager, path) = Manager::new(&east);
    // WATCHDOG_PID is the process's own, as sd_watchdog_enabled(3) has it.
    let watched = |pid: &str| {
        let mut command = prepared(&east, &format!("export WATCHDOG_PID={pid}"));
        command.env("NOTIFY_SOCKET", &path);
        command.env("WATCHDOG_USEC", "100000");
        east.spawn(command)
    };
    let gateway = watched("$$");
    let mut heard = Vec::new();
    while heard.iter().filter(|word| **word == "WATCHDOG=1").count() < 5 {
        heard.extend(manager.hears());
    }
    assert!(heard.contains(&"READY=1".to_owned()), "{heard:?}");
    let stalled = gateway.metrics().await;
    assert_eq!(stalled.value("zeugma_workers_stalled", &[]), 0.0);
    gateway.finish().await;
    while manager.hears() != ["STOPPING=1"] {}
    manager.0.set_nonblocking(true).unwrap();
    while manager.0.recv(&mut [0; 64]).is_ok() {}
    manager.0.set_nonblocking(false).unwrap();

    // Another process was meant: not a word but the usual.
    let gateway = watched("1");
    assert_eq!(manager.hears(), ["READY=1"]);
    gateway.finish().await;
    assert_eq!(manager.hears(), ["STOPPING=1"]);
}
