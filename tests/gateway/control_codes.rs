//! What an operator meets has a code: the situations that no other test brings about.

use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::mesh::{Cluster, Gateway, Service, TOKEN, empty, eventually, get, hello, within};

fn zeugma(words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
    command
        .args(words)
        .env_remove("ZEUGMA_ADMIN")
        .output()
        .unwrap()
}

/// Holds an end by this exit code to begin with this text.
#[track_caller]
fn fails(output: &Output, exit: i32, begins: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(exit), "{said}");
    assert!(said.starts_with(begins), "{begins}: {said}");
}

/// Sends this to a port and reads to the end of what comes.
async fn say(tcp: &mut TcpStream, bytes: &[u8]) -> String {
    tcp.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    within("an end", tcp.read_to_end(&mut answer)).await.ok();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn requests_that_lead_nowhere_are_told_by_code() {
    let service = Service::http("near").await;
    let mut east = Cluster::new("east");
    let narrow = east.listen("narrow", "role: workloads, sources: ['192.0.2.0/24']");
    let port = service.address.port();
    let ports = [81, 82]
        .map(|nth| format!("p{nth}: {{ port: {nth}, targetPort: {port}, protocol: http }}"));
    east.route(
        "shop/both",
        &format!(
            "
            ports: {{ {} }}
            backends: [{{ endpoints: ['127.0.0.1'] }}]
            allow: [{{ listeners: [apps] }}]",
            ports.join(", ")
        ),
    );
    let gateway = east.start().await;
    let reason = async |verdict: &str, code: &str| {
        let line = gateway.log(|line| line["verdict"] == verdict).await;
        assert_eq!(line["code"], code, "{line}");
    };
    get(east.apps, "nobody.example", "/").await;
    reason("authority-unknown", "ZG0407").await;
    get(east.apps, "both.shop.svc.clusterset.local", "/").await;
    reason("port-needed", "ZG0405").await;
    let mut tcp = TcpStream::connect(east.apps).await.unwrap();
    say(&mut tcp, b"GET / HTTP/1.0\r\n\r\n").await;
    reason("authority-missing", "ZG0406").await;
    let mut tcp = TcpStream::connect(narrow).await.unwrap();
    assert_eq!(say(&mut tcp, b"GET / HTTP/1.1\r\n\r\n").await, "");
    reason("source-refused", "ZG0703").await;
    let reply = get(east.apps, "both.shop.svc.clusterset.local:82", "/").await;
    assert_eq!(reply.status, 200);
    let line = gateway.log(|line| line["verdict"] == "completed").await;
    assert_eq!(line.get("code"), None, "{line}");
    gateway.finish().await;
}

#[tokio::test]
async fn levels_that_fail_alike_are_told_and_nothing_is_ejected() {
    let failing = async || {
        Service::handling(async |_| {
            let mut response = http::Response::new(empty());
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            response
        })
        .await
    };
    let (near, far) = (failing().await, failing().await);
    let east = Cluster::new("east");
    let error_rate = "{ over: 50%, requests: 5 }";
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends:
              - {{ name: near, endpoints: ['{}'] }}
              - {{ name: far, locality: us/us-1, endpoints: ['{}'] }}
            health: {{ passive: {{ consecutive: 1000, errorRate: {error_rate} }} }}
            retries: {{ attempts: 1, on: [503], budget: 100% }}
            allow: [{{ listeners: [apps] }}]",
            near.address, far.address
        ),
    );
    let gateway = east.start().await;
    for _ in 0..20 {
        let reply = get(east.apps, "orders.shop.svc.clusterset.local", "/").await;
        assert_eq!(reply.status, 503);
    }
    gateway
        .message("ZG0425 every level fails alike; nothing is ejected")
        .await;
    gateway.finish().await;
}

/// What the process needs and does not get, and what it says in its place.
#[tokio::test]
async fn what_the_host_does_not_give_is_told_by_code() {
    let east = Cluster::new("east");
    east.write_gateway();
    // Not even an event loop.
    let mut few = Gateway::command_under(&["prlimit", "--nofile=5:5"], &east.config());
    fails(&few.output().unwrap(), 1, "error[ZG0908]: ");

    // Neither the socket's default place, nor systemd, nor a filter that can be read.
    east.write_gateway();
    let file = east.config().join("gateway.yaml");
    let text = fs::read_to_string(&file).unwrap();
    let text: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("  admin: "))
        .collect();
    fs::write(&file, text.join("\n")).unwrap();
    let numbers = east.config().join("state/east-gw/crl-numbers");
    let mut folders = fs::DirBuilder::new();
    folders
        .recursive(true)
        .mode(0o700)
        .create(&numbers)
        .unwrap();
    fs::create_dir(east.config().join("state/east-gw/handover.sock")).unwrap();
    let mut command = Gateway::command(&east.config());
    command
        .env("RUNTIME_DIRECTORY", "/proc/nowhere")
        .env("NOTIFY_SOCKET", "/proc/nowhere/notify")
        .env("ZEUGMA_LOG", "zeugma=loud");
    let gateway = east.spawn(command);
    for said in [
        "ZG0208 the numbers of CRLs",
        "ZG0961 no admin interface",
        "ZG0951 systemd is not told",
        "ZG0969 ZEUGMA_LOG is not understood",
        "ZG0945 no other process can take over from this one",
    ] {
        gateway.message(said).await;
    }
    gateway.finish().await;

    // A successor has nobody to ask where nothing is kept.
    if !crate::mesh::is_root_or_skipped("gateways of another user") {
        return;
    }
    let mut north = Cluster::new("north");
    north.unset("stateDir");
    let gateway = north.start_as(65534).await;
    gateway.message("ZG0931 no state directory").await;
    gateway.finish().await;
    let mut successor = Gateway::command(&north.config());
    successor.arg("--takeover").uid(65534).gid(65534);
    let output = successor.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("error[ZG0948]: --takeover needs a state directory"),
        "{said}"
    );
}

#[tokio::test]
async fn a_resolver_without_a_usable_configuration_is_told() {
    if !crate::mesh::is_root_or_skipped("a broken resolv.conf") {
        return;
    }
    let east = Cluster::new("east");
    east.route(
        "shop/orders",
        "
        protocol: http
        backends: [{ endpoints: ['orders.example:80'] }]
        allow: [{ listeners: [apps] }]",
    );
    let broken = east.config().join("resolv");
    fs::write(&broken, "nameserver nowhere\n").unwrap();
    let mount = format!(
        "mount --bind {} /etc/resolv.conf && exec \"$@\"",
        broken.display()
    );
    let gateway = (east.start_under(&["unshare", "--mount", "sh", "-c", &mount, "sh"])).await;
    gateway
        .message("ZG0602 the system's resolver configuration is not usable")
        .await;
    gateway.finish().await;
}

#[tokio::test]
async fn changes_that_need_a_restart_or_look_like_mistakes_are_told() {
    let mut east = Cluster::new("east");
    let more = east.listen("more", "role: workloads");
    let gateway = east.start().await;
    east.peer(
        "west",
        "
        cluster: west
        locality: us/us-1
        gateways: ['192.0.2.1:15443']
        spiffeIDs: ['spiffe://west.example/zeugma/gateway']
        attests: [east.example]",
    );
    gateway.message("ZG0127 configuration").await;
    east.set("drain", "{ delay: 0s, timeout: 7s }");
    east.write_gateway();
    gateway.message("ZG0126 admin, adminToken").await;
    // A successor of a configuration without a listener has no place for its socket.
    east.unlisten("more");
    east.write_gateway();
    let next = east.take_over().await;
    let said = next.message("ZG0947 these stay behind").await;
    assert!(said.contains(&more.to_string()), "{said}");
    drop(gateway);
    next.finish().await;
}

#[tokio::test]
async fn the_log_is_told_to_say_more_and_is_json_for_programs() {
    let mut east = Cluster::new("east");
    east.set("adminToken", "token");
    east.write_token();
    east.write_gateway();
    let mut command = Gateway::command(&east.config());
    command.args(["--log-format", "json"]);
    let gateway = east.spawn(command);
    let ready = gateway.message("gateway ready").await;
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(ready["code"], "ZG0901", "{ready}");
    assert_eq!(ready["level"], "INFO");
    assert_eq!(ready["name"], "east-gw");

    let ask = async |method: &str, path: &str, token: &str| {
        let mut tcp = TcpStream::connect(east.admin).await.unwrap();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        let head = format!("{head}authorization: Bearer {token}\r\ncontent-length: 0\r\n\r\n");
        say(&mut tcp, head.as_bytes()).await
    };
    for (method, token) in [("GET", "no"), ("POST", "no")] {
        let refused = ask(method, "/logging?level=trace", token).await;
        assert!(refused.starts_with("HTTP/1.1 401"), "{refused}");
    }
    // To look changes nothing, whatever is in the address.
    let read = ask("GET", "/logging?level=trace", TOKEN).await;
    assert!(read.ends_with(r#""filter":"zeugma=info,off"}"#), "{read}");
    for wrong in [
        "level=loud",
        "level",
        "a%0Ab=debug",
        "debug=info",
        "level=debug&level=9",
    ] {
        let refused = ask("POST", &format!("/logging?{wrong}"), TOKEN).await;
        assert!(refused.starts_with("HTTP/1.1 400"), "{wrong}: {refused}");
        assert!(refused.contains("(ZG0968)"), "{wrong}: {refused}");
    }
    let set = ask("POST", "/logging?level=debug", TOKEN).await;
    assert!(set.contains("zeugma=debug"), "{set}");
    let said = gateway.message("ZG0967").await;
    assert!(said.contains("zeugma=debug"), "{said}");
    // What was not told before.
    east.route(
        "shop/orders",
        "
        protocol: http
        backends: [{ endpoints: ['127.0.0.1:9'] }]
        allow: [{ listeners: [apps] }]",
    );
    gateway.message("ZG0120").await;
    get(east.apps, "orders.shop.svc.clusterset.local", "/").await;
    let debug = gateway.message("\"DEBUG\"").await;
    assert!(!debug.contains("ZG"), "{debug}");
    let set = ask("POST", "/logging?level=warn", TOKEN).await;
    assert!(set.ends_with(r#""filter":"zeugma=warn,off"}"#), "{set}");
    gateway.finish().await;
}

/// The same facts as in JSON, and nothing that a caller can have written as it was.
#[tokio::test]
async fn the_access_log_is_text_where_it_is_asked_for() {
    let service = Service::http("near").await;
    let mut east = Cluster::new("east");
    east.set("accessLog", "{ format: text }");
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ listeners: [apps], paths: ['/a', '/b/*'] }}]",
            service.address
        ),
    );
    let mut gateway = east.start().await;
    let host = "orders.shop.svc.clusterset.local";
    get(east.apps, host, "/a").await;
    let line = gateway.access_text("http.path=/a ").await;
    assert!(
        line.starts_with("time=20") && line.contains(" kind=request listener=apps "),
        "{line}"
    );
    assert!(
        line.contains(" http.status=200 ") && line.contains(" verdict=completed "),
        "{line}"
    );
    let path = "/b/\"b=c\\'%0a\u{202e}\u{9b}31m";
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {host}\r\nx-request-id: \"a=b \u{e9}\r\nconnection: close\r\n\r\n"
    );
    let mut tcp = TcpStream::connect(east.apps).await.unwrap();
    let source = tcp.local_addr().unwrap();
    say(&mut tcp, request.as_bytes()).await;
    let line = gateway.access_text(&format!("src.addr={source}")).await;
    let shown = r#" http.path="/b/\"b=c\\'%0a\u202e\u009b31m" "#;
    assert!(line.contains(shown), "{line}");
    let hostile = b"a\x1b[2J\nkind=request\x9b\xe2\x80\xae";
    let (source, _) = hello::say(east.mesh, &hello::hello(Some(hostile))).await;
    let line = gateway.access_text(&format!("src.addr={source}")).await;
    assert!(
        line.contains(" verdict=sni-malformed code=ZG0306 flags=NR "),
        "{line}"
    );
    gateway.signal(rustix::process::Signal::TERM);
    assert!(gateway.ended().await.success());
    for line in gateway.access_so_far() {
        assert!(line.starts_with("time="), "{line}");
        assert!(
            line.bytes()
                .all(|byte| byte == b' ' || byte.is_ascii_graphic()),
            "{line}"
        );
    }
}

#[tokio::test]
async fn who_listens_to_events_or_checks_beside_others_is_told() {
    let mut east = Cluster::new("east");
    east.set("admin", "'unix:admin.sock'");
    // A peer whose gateway takes no connection keeps a check busy.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    east.peer(
        "west",
        &format!(
            "
            cluster: west
            locality: us/us-1
            gateways: ['{}']
            spiffeIDs: ['spiffe://west.example/zeugma/gateway']",
            silent.local_addr().unwrap()
        ),
    );
    east.peer(
        "north",
        "
        cluster: north
        locality: us/us-2
        gateways: ['192.0.2.1:15443']
        spiffeIDs: ['spiffe://north.example/zeugma/gateway']",
    );
    east.route(
        "shop/orders",
        "
        protocol: http
        backends: [{ peer: west }]
        allow: [{ listeners: [apps] }]",
    );
    let gateway = east.start().await;
    let socket = east.config().join("admin.sock");
    let send = async |head: &str| {
        let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
        let head = format!("{head} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    let status = async |stream: &mut tokio::net::UnixStream| {
        let mut bytes = [0; 2048];
        let mut text = String::new();
        while !text.contains("\r\n\r\n") {
            let count = within("an answer", stream.read(&mut bytes)).await.unwrap();
            text.push_str(&String::from_utf8_lossy(&bytes[..count]));
            assert!(count > 0, "{text}");
        }
        text
    };
    let busy = send("POST /api/v1/check").await;
    within("the check to begin", silent.accept()).await.unwrap();
    let mut second = send("POST /api/v1/check").await;
    let refused = status(&mut second).await;
    assert!(
        refused.starts_with("HTTP/1.1 429") && refused.contains("(ZG0965)"),
        "{refused}"
    );
    drop(busy);

    let mut listening = Vec::new();
    let refused = loop {
        let mut one = send("GET /api/v1/events").await;
        let answer = status(&mut one).await;
        if !answer.starts_with("HTTP/1.1 200") {
            break answer;
        }
        listening.push(one);
        assert!(listening.len() < 100);
    };
    assert!(
        refused.starts_with("HTTP/1.1 503") && refused.contains("(ZG0971)"),
        "{refused}"
    );
    drop(listening);

    // A peer that nothing goes to is a warning, and has its code too.
    let config = east.config();
    drop(silent);
    let check = ["check", "-o", "json", "--config", config.to_str().unwrap()];
    // The one that was begun before ends by itself.
    let checked = eventually("a check", async || {
        let words = check.map(str::to_owned);
        let run = move || zeugma(&words.each_ref().map(String::as_str));
        let checked = tokio::task::spawn_blocking(run).await.unwrap();
        (checked.status.code() == Some(2)).then_some(checked)
    })
    .await;
    let document: Value = serde_json::from_slice(&checked.stdout).unwrap();
    let items = document["items"].as_array().unwrap();
    let codes: Vec<&str> = items
        .iter()
        .filter_map(|item| item["code"].as_str())
        .collect();
    assert!(
        codes.contains(&"ZG1046") && codes.contains(&"ZG1049"),
        "{document}"
    );
    gateway.finish().await;
}

#[tokio::test]
async fn commands_that_fail_begin_with_their_code() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    fails(
        &zeugma(&["frob"]),
        64,
        "error[ZG1001]: unrecognized subcommand",
    );
    fails(&zeugma(&[]), 64, "error[ZG1001]: a command is missing");
    let nobody = at("nobody.sock");
    let admin = format!("unix:{nobody}");
    fails(
        &zeugma(&["status", "--admin", &admin]),
        69,
        "error[ZG1005]: ",
    );
    fails(
        &zeugma(&["status", "--admin", "10.0.0.1:1"]),
        64,
        "error[ZG1003]: ",
    );
    fails(
        &zeugma(&["status", "--config", &at("none")]),
        65,
        "error[ZG1004]: ",
    );
    let none = at("no-token");
    let drain = ["drain", "--admin", "127.0.0.1:9", "--token-file", &none];
    fails(&zeugma(&drain), 65, "error[ZG1009]: ");
    let full = Command::new("sh")
        .args(["-c", "exec \"$0\" explain --list > /dev/full"])
        .arg(env!("CARGO_BIN_EXE_zeugma"))
        .output()
        .unwrap();
    fails(&full, 1, "error[ZG1002]: ");
    let demo = [
        "demo",
        "--scenario",
        "federation",
        "--without-west",
        "--quiet",
    ];
    fails(&zeugma(&demo), 1, "error[ZG1031]: ");

    // Something that is no gateway.
    let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = other.local_addr().unwrap().to_string();
    let asking = tokio::task::spawn_blocking(move || zeugma(&["status", "--admin", &address]));
    let (mut tcp, _) = within("the command", other.accept()).await.unwrap();
    let mut head = [0; 512];
    within("its request", tcp.read(&mut head)).await.unwrap();
    tcp.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.unwrap();
    drop(tcp);
    fails(
        &within("its end", asking).await.unwrap(),
        1,
        "error[ZG1007]: ",
    );

    // A socket of another user.
    if crate::mesh::is_root_or_skipped("a socket of another user") {
        let _listening = std::os::unix::net::UnixListener::bind(&nobody).unwrap();
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), open).unwrap();
        fs::set_permissions(&nobody, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command
            .args(["status", "--admin", &admin])
            .uid(65534)
            .gid(65534);
        fails(&command.output().unwrap(), 77, "error[ZG1006]: ");
    }
}

#[test]
fn explain_prints_what_a_code_means_and_lists_all() {
    let text = |output: Output| {
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let one = text(zeugma(&["explain", "ZG0702"]));
    assert_eq!(one, text(zeugma(&["explain", "not-allowed"])));
    for part in [
        "ZG0702: no allow rule matched\n",
        "\nWhat to do: Add what is missing to `allow`",
        "\nMet in: access log (verdict not-allowed)\n",
    ] {
        assert!(one.contains(part), "{part}: {one}");
    }
    let json: Value =
        serde_json::from_str(&text(zeugma(&["explain", "zg0702", "-o", "json"]))).unwrap();
    assert_eq!(json["apiVersion"], "cli.zeugma.dev/v1");
    assert_eq!(
        (&json["kind"], &json["code"]),
        (&"Code".into(), &"ZG0702".into())
    );
    assert_eq!(json["verdict"], "not-allowed");
    let all: Value =
        serde_json::from_str(&text(zeugma(&["explain", "--list", "-o", "json"]))).unwrap();
    let all = all["codes"].as_array().unwrap();
    let list = text(zeugma(&["explain", "--list"]));
    assert_eq!(list.lines().count(), all.len() + 1);
    for entry in all {
        let code = entry["code"].as_str().unwrap();
        assert!(list.contains(code));
        assert!(text(zeugma(&["explain", code])).starts_with(code), "{code}");
    }
    let wrong = zeugma(&["explain", "ZG7002"]);
    fails(
        &wrong,
        1,
        "error[ZG1011]: there is no code `ZG7002`; did you mean ZG0702?",
    );
    fails(&zeugma(&["explain"]), 64, "error[ZG1001]: ");
}

/// Has the kernel refuse sockets of AF_NETLINK, as `RestrictAddressFamilies=` does: a filter of seccomp
/// (x86-64 and AArch64 differ in the number of `socket` alone) that answers EAFNOSUPPORT.
const NO_NETLINK: &str = "
import ctypes, os, platform, struct, sys
number = {'x86_64': 41, 'aarch64': 198}[platform.machine()]
lines = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, 16),
         (0x06, 0, 0, 0x00050000 | 97), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in lines))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]
program = Program(len(lines), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0, ctypes.get_errno()
os.execv(sys.argv[1], sys.argv[1:])
";

/// What broke: the units that are shipped refuse them, and nobody was told what that switches off.
#[tokio::test]
async fn a_sandbox_that_lets_nobody_ask_the_kernel_is_told_of_once() {
    let (east, service) = hello_of_one().await;
    let gateway = east.start_under(&["python3", "-c", NO_NETLINK]).await;
    let told = gateway.message("ZG0925").await;
    assert!(told.contains("allow AF_NETLINK"), "{told}");
    let reply = get(east.apps, "one.shop.svc.clusterset.local", "/").await;
    assert_eq!((reply.status, service.requests().len()), (200, 1));
    assert_eq!(gateway.told().matches("ZG0925").count(), 1);
    gateway.finish().await;
}

async fn hello_of_one() -> (Cluster, Service) {
    let service = Service::http("near").await;
    let east = Cluster::new("east");
    east.route(
        "shop/one",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ listeners: [apps] }}]",
            service.address
        ),
    );
    (east, service)
}
