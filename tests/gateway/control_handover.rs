//! Restarts that nobody notices: one process hands its sockets to the next.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpStream, UnixStream};

use crate::data_client;
use crate::data_mesh::{Gateway, HELLO, Pair, endpoints, http_route, near_route, route};
use crate::data_services::{BANNER, HttpService, TcpService};
use crate::data_strict::{Callers, Kind, at};
use crate::mesh::{self, Cluster, Service, eventually, is_root_or_skipped, within};

/// A gateway with a route of every kind, and callers of all of them.
struct Busy {
    gateway: Gateway,
    kinds: Vec<Kind>,
    _services: (HttpService, TcpService, Service),
}

impl Busy {
    async fn start() -> Self {
        let mut east = Cluster::new("east");
        let db = east.listen("db", "role: workloads, route: demo/db");
        let hello = HttpService::start("hello");
        let tcp = TcpService::start();
        let vault = Service::mtls("vault", &east.identity("ns/demo/sa/vault")).await;
        let caller = Arc::new(east.identity("ns/demo/sa/caller"));
        let own = |address| format!("backends: [{{ {} }}]", endpoints(&[address]));
        let of_tcp = [
            "protocol: tcp",
            "port: 5432",
            "allow: [{ listeners: [db] }]",
        ];
        let of_vault = [
            "protocol: tcp",
            "port: 443",
            "inbound: passthrough",
            "allow: [{ listeners: [apps] }]",
        ];
        let workload = format!(
            "backends: [{{ tls: workload, {} }}]",
            endpoints(&[vault.address])
        );
        let routes = [
            near_route("hello", &[&own(hello.address())]),
            route("db", &[&of_tcp[..], &[&own(tcp.address())]].concat()),
            route("vault", &[&of_vault[..], &[&workload]].concat()),
        ];
        let gateway = Gateway::of(east, &routes.concat()).await;
        let apps = gateway.apps();
        let kinds = vec![
            Kind::H1(at(apps)),
            Kind::H2(at(apps)),
            Kind::Streams(at(apps)),
            Kind::Tcp(at(db)),
            Kind::Passthrough(at(apps), caller),
        ];
        Self {
            gateway,
            kinds,
            _services: (hello, tcp, vault),
        }
    }

    /// A connection to `db` that is open: its banner was read.
    async fn hold(&self) -> TcpStream {
        let Some(Kind::Tcp(db)) = self.kinds.get(3) else {
            panic!("{:?}", self.kinds);
        };
        let mut tcp = TcpStream::connect(*db.borrow()).await.unwrap();
        let mut banner = vec![0; BANNER.len()];
        within("the banner", tcp.read_exact(&mut banner))
            .await
            .unwrap();
        tcp
    }
}

/// Starts a successor that ends with this status; returns what it said.
async fn cannot_take_over(cluster: &Cluster, status: i32) -> String {
    let mut command = tokio::process::Command::from(mesh::Gateway::command(&cluster.config()));
    let output = within("its end", command.arg("--takeover").output())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(status));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// East alone with one HTTP service.
async fn quiet() -> (Gateway, HttpService) {
    let service = HttpService::start("hello");
    let backends = format!("backends: [{{ {} }}]", endpoints(&[service.address()]));
    let gateway = Gateway::alone(&near_route("hello", &[&backends])).await;
    (gateway, service)
}

fn socket(cluster: &Cluster) -> PathBuf {
    cluster.config().join("state/east-gw/handover.sock")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_by_handover_lose_nothing_of_any_kind() {
    let mut busy = Busy::start().await;
    let mut callers = Callers::start(3, &busy.kinds);
    callers.go_on(3).await;
    let mut before = Vec::new();
    for _ in 0..4 {
        let next = busy.gateway.cluster.take_over().await;
        let pid = next.pid();
        next.message("ZG0941 taken over from the gateway before")
            .await;
        let old = std::mem::replace(&mut busy.gateway.process, next);
        // The listeners mesh, apps and db; admin, probes and metrics.
        old.message(&format!("ZG0942 handing over to pid {pid}: 6 sockets"))
            .await;
        callers.go_on(3).await;
        before.push(old);
    }
    assert!(callers.end().await > 75);
    for mut old in before {
        let status = old.ended().await;
        assert!(status.success(), "{status}\n{}", old.told());
        old.message("ZG0903 drained").await;
        let told = old.told();
        assert!(!is_anything_cut(&told), "something was cut:\n{told}");
        assert!(!told.contains("panicked"), "{told}");
    }
    busy.gateway.process.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peers_gateway_restarts_without_a_lost_request() {
    let service = HttpService::start("hello");
    let tcp = TcpService::start();
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let own = |address| format!("backends: [{{ {} }}]", endpoints(&[address]));
    let of_db = ["protocol: tcp", "port: 5432", "export: { to: [\"*\"] }"];
    let routes = |hello: &str, db: &str| {
        let anyone = "allow: [{ listeners: [db] }, { from: [\"spiffe://east.example/*\"] }]";
        let db = route("db", &[&of_db[..], &[anyone, db]].concat());
        [http_route("hello", &[hello]), db].concat()
    };
    let far = "backends: [{ peer: west }]";
    let near = routes(&own(service.address()), &own(tcp.address()));
    // West has no listener of this name.
    let near = near.replace("{ listeners: [db] }, ", "");
    let clusters = (east, Cluster::new("west"));
    let mut pair = Pair::of(clusters, &routes(far, far), &near).await;
    let apps = pair.east.apps();
    let kinds = [
        Kind::H1(at(apps)),
        Kind::H2(at(apps)),
        Kind::Streams(at(apps)),
        Kind::Tcp(at(db)),
    ];
    let mut callers = Callers::start(2, &kinds);
    callers.go_on(2).await;
    let mut before = Vec::new();
    for _ in 0..2 {
        let next = pair.west.cluster.take_over().await;
        before.push(std::mem::replace(&mut pair.west.process, next));
        callers.go_on(3).await;
    }
    callers.end().await;
    for mut old in before {
        assert!(old.ended().await.success(), "{}", old.told());
    }
    pair.finish().await;
}

/// Whether a log tells of something that ended with its process. A connection that came at the end, and on
/// which nothing was sent, is nobody's.
fn is_anything_cut(told: &str) -> bool {
    let is_cut = |line: &str| {
        line.contains("\"drained\"") && !line.contains("\"bytes_sent\":0,\"bytes_recv\":0")
    };
    told.lines().any(is_cut)
}

/// Restarts each of these in turn as an orchestrator does: SIGTERM, the end, a new one.
async fn roll(replicas: &mut [Gateway], callers: &mut Callers, until_seen: impl AsyncFn(&Gateway)) {
    for replica in replicas {
        replica.process.signal(Signal::TERM);
        assert!(replica.process.ended().await.success());
        let told = replica.process.told();
        assert!(!is_anything_cut(&told), "something was cut:\n{told}");
        callers.go_on(3).await;
        replica.process = replica.cluster.start().await;
        until_seen(replica).await;
        callers.go_on(3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_restart_one_by_one_behind_a_balancer_and_nothing_is_lost() {
    let hello = HttpService::start("hello");
    let tcp = TcpService::start();
    let own = |address| format!("backends: [{{ {} }}]", endpoints(&[address]));
    let of_tcp = [
        "protocol: tcp",
        "port: 5432",
        "allow: [{ listeners: [db] }]",
    ];
    let routes = [
        near_route("hello", &[&own(hello.address())]),
        route("db", &[&of_tcp[..], &[&own(tcp.address())]].concat()),
    ];
    let mut replicas = Vec::new();
    let mut dbs = Vec::new();
    for _ in 0..2 {
        let mut east = Cluster::new("east");
        east.set("drain", "{ delay: 1s, timeout: 5s }");
        dbs.push(east.listen("db", "role: workloads, route: demo/db"));
        replicas.push(Gateway::of(east, &routes.concat()).await);
    }
    let apps = tokio::sync::watch::Sender::new(replicas[0].apps());
    let db = tokio::sync::watch::Sender::new(dbs[0]);
    let (apps_now, db_now) = (apps.subscribe(), db.subscribe());
    let fronts: Vec<_> = replicas
        .iter()
        .zip(dbs)
        .map(|(replica, db)| (replica.cluster.probes, replica.apps(), db))
        .collect();
    // New connections go to the first that says that it is ready, as a balancer's do.
    let balancing = tokio::spawn(async move {
        loop {
            for (probes, to_apps, to_db) in &fronts {
                let asking = async {
                    let mut tcp = TcpStream::connect(probes).await.ok()?;
                    let request = b"GET /ready HTTP/1.0\r\n\r\n";
                    tcp.write_all(request).await.ok()?;
                    let mut answer = String::new();
                    tcp.read_to_string(&mut answer).await.ok()?;
                    answer.starts_with("HTTP/1.0 200").then_some(())
                };
                if asking.await.is_some() {
                    apps.send_replace(*to_apps);
                    db.send_replace(*to_db);
                    break;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    });
    let kinds = [
        Kind::H1(apps_now.clone()),
        Kind::H2(apps_now.clone()),
        Kind::Streams(apps_now),
        Kind::Tcp(db_now),
    ];
    let mut callers = Callers::start(2, &kinds);
    callers.go_on(2).await;
    roll(&mut replicas, &mut callers, async |_replica| {}).await;
    callers.end().await;
    balancing.abort();
    for replica in replicas {
        replica.process.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peers_replicas_restart_one_by_one_and_nothing_is_lost() {
    let hello = HttpService::start("hello");
    let tcp = TcpService::start();
    let mut east = Cluster::new("east");
    let db = east.listen("db", "role: workloads, route: demo/db");
    let [one, two] = [(); 2].map(|()| Cluster::new("west"));
    for west in [&one, &two] {
        east.meet(west);
    }
    let gateways = format!(
        "cluster: west\nlocality: west/west-1\ngateways: ['{}', '{}']\nspiffeIDs: ['{}']",
        one.mesh,
        two.mesh,
        one.gateway_id()
    );
    east.peer("west", &gateways);
    let spec = |backends: &str, allow: &str| {
        let own = ["protocol: tcp", "port: 5432", "export: { to: [\"*\"] }"];
        route("db", &[&own[..], &[allow, backends]].concat())
    };
    let own = |address| format!("backends: [{{ {} }}]", endpoints(&[address]));
    let far = "backends: [{ peer: west }]";
    let back_soon = "health: { passive: { eject: 1s } }";
    let of_east = [
        http_route("hello", &[far, back_soon]),
        spec(
            &format!("{far}\n  {back_soon}"),
            "allow: [{ listeners: [db] }]",
        ),
    ];
    let of_west = [
        http_route("hello", &[&own(hello.address())]),
        spec(
            &own(tcp.address()),
            "allow: [{ from: [\"spiffe://east.example/*\"] }]",
        ),
    ];
    let mut replicas = Vec::new();
    for west in [one, two] {
        replicas.push(Gateway::of(west, &of_west.concat()).await);
    }
    let east = Gateway::of(east, &of_east.concat()).await;
    let apps = east.apps();
    let kinds = [
        Kind::H1(at(apps)),
        Kind::H2(at(apps)),
        Kind::Streams(at(apps)),
        Kind::Tcp(at(db)),
    ];
    let mut callers = Callers::start(2, &kinds);
    callers.go_on(2).await;
    roll(&mut replicas, &mut callers, async |replica| {
        // East has put it aside while nobody listened; an orchestrator's next step is later.
        let labels = [("endpoint", &*replica.cluster.mesh.to_string())];
        east.process
            .metric_becomes("zeugma_endpoint_healthy", &labels, 2.0)
            .await;
    })
    .await;
    callers.end().await;
    east.process.finish().await;
    for replica in replicas {
        replica.process.finish().await;
    }
}

#[tokio::test]
async fn what_is_open_ends_on_the_process_that_accepted_it() {
    let mut busy = Busy::start().await;
    let mut tcp = busy.hold().await;
    let next = busy.gateway.cluster.take_over().await;
    let mut old = std::mem::replace(&mut busy.gateway.process, next);
    old.message("ZG0902 draining: no new connections").await;
    tcp.write_all(b"still here").await.unwrap();
    let mut heard = [0; 10];
    within("the echo", tcp.read_exact(&mut heard))
        .await
        .unwrap();
    drop(tcp);
    assert!(old.ended().await.success());
    let line = old.log(|line| line["dst.service"] == "demo/db").await;
    assert_eq!(line["verdict"], "completed");
    assert_eq!(busy.gateway.process.ready().await, 200);
    busy.gateway.process.finish().await;
}

#[tokio::test]
async fn probes_are_answered_all_the_while() {
    let (mut gateway, _service) = quiet().await;
    let probes = gateway.cluster.probes;
    let stop = tokio::sync::watch::Sender::new(false);
    let stopped = stop.subscribe();
    let asking = tokio::spawn(async move {
        let mut asked = 0;
        while !*stopped.borrow() {
            let answer = data_client::get(probes, "probes", "/ready").await;
            assert_eq!(answer.status, 200);
            asked += 1;
        }
        asked
    });
    for _ in 0..3 {
        let next = gateway.cluster.take_over().await;
        let mut old = std::mem::replace(&mut gateway.process, next);
        assert!(old.ended().await.success());
    }
    stop.send_replace(true);
    assert!(within("the last probe", asking).await.unwrap() > 3);
    gateway.process.finish().await;
}

#[tokio::test]
async fn an_admin_socket_goes_over_and_its_file_stays() {
    let mut east = Cluster::new("east");
    east.set("admin", "'unix:admin.sock'");
    // In place of the line that is always written.
    let path = east.config().join("admin.sock");
    let first = start_with_unix_admin(&east, &[]).await;
    let second = start_with_unix_admin(&east, &["--takeover"]).await;
    let mut first = first;
    assert!(first.ended().await.success());
    let mut admin = within("the admin socket", UnixStream::connect(&path))
        .await
        .unwrap();
    admin
        .write_all(b"GET /server_info HTTP/1.0\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    within("an answer", admin.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    second.finish().await;
    assert!(!path.exists());
}

async fn start_with_unix_admin(east: &Cluster, more: &[&str]) -> mesh::Gateway {
    east.write_gateway();
    let file = east.config().join("gateway.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    let lines = text.lines();
    let text: Vec<_> = lines
        .filter(|line| !line.contains(&format!("admin: '{}'", east.admin)))
        .collect();
    east.write("gateway.yaml", &(text.join("\n") + "\n"));
    let mut command = mesh::Gateway::command(&east.config());
    command.args(more);
    let gateway = east.spawn(command);
    gateway.message("ZG0901 gateway ready").await;
    gateway
}

#[tokio::test]
async fn taking_over_from_nobody_is_starting() {
    let east = Cluster::new("east");
    east.write_gateway();
    let gateway = east.take_over().await;
    assert_eq!(gateway.ready().await, 200);
    gateway.finish().await;
}

#[tokio::test]
async fn a_successor_with_a_broken_configuration_changes_nothing() {
    let (gateway, _service) = quiet().await;
    let config = gateway.cluster.config();
    // Not even the last good one is a reason to take over from who serves it.
    let kept = config.join("state/east-gw/last-good");
    eventually("it is kept", async || kept.is_file().then_some(())).await;
    // More files than are read: nothing can be said of any document. The last good configuration is
    // kept, and would do for a gateway that is alone.
    let more: Vec<_> = (0..10_000)
        .map(|nth| config.join(format!("{nth}.yaml")))
        .collect();
    for file in &more {
        std::fs::write(file, "").unwrap();
    }
    let said = cannot_take_over(&gateway.cluster, 65).await;
    assert!(said.contains("at most 10000 are read"), "{said}");
    for file in &more {
        std::fs::remove_file(file).unwrap();
    }
    assert!(!gateway.process.told().contains("asks for the sockets"));
    assert_eq!(gateway.get("/").await.text(), "hello");
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_successor_that_fails_with_the_sockets_in_hand_changes_nothing() {
    let (mut gateway, _service) = quiet().await;
    let open = gateway.process.sockets();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    gateway.cluster.listen("more", "role: workloads");
    gateway.cluster.relisten("more", at, "role: workloads");
    gateway.cluster.write_gateway();
    let said = cannot_take_over(&gateway.cluster, 1).await;
    assert!(
        said.contains(&format!("spec.listeners.more.address `{at}`")),
        "{said}"
    );
    gateway
        .process
        .message("ZG0942 a successor asks for the sockets")
        .await;
    gateway
        .process
        .message("ZG0943 not handed over; serving on")
        .await;
    assert_eq!(gateway.get("/").await.text(), "hello");
    // Beside those a worker may keep a connection to the endpoint that no worker had before.
    gateway.process.sockets_fall_to(open + 1).await;
    // With the same file and a free address it goes well.
    drop(taken);
    let next = gateway.cluster.take_over().await;
    let mut old = std::mem::replace(&mut gateway.process, next);
    assert!(old.ended().await.success());
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_predecessor_that_hangs_is_given_up() {
    let (gateway, _service) = quiet().await;
    gateway.process.freeze().await;
    let said = cannot_take_over(&gateway.cluster, 1).await;
    gateway.process.signal(Signal::CONT);
    let pid = gateway.process.pid();
    let expected = format!("error[ZG0949]: the handover from the gateway of pid {pid} failed");
    assert!(said.contains(&expected), "{said}");
    assert!(said.contains("no answer within 10s"), "{said}");
    assert_eq!(gateway.get("/").await.text(), "hello");
    gateway
        .process
        .message("ZG0943 not handed over; serving on")
        .await;
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_gateway_that_drains_refuses_its_successor() {
    let mut busy = Busy::start().await;
    let held = busy.hold().await;
    let process = &mut busy.gateway.process;
    process.signal(Signal::TERM);
    process.message("ZG0902 draining: no new connections").await;
    let said = cannot_take_over(&busy.gateway.cluster, 1).await;
    assert!(
        said.contains("it drains and its listeners are closed"),
        "{said}"
    );
    drop(held);
    assert!(process.ended().await.success());
}

/// Says these lines at the door and returns the first line that comes back.
async fn ask(door: &Path, lines: &[u8]) -> String {
    let mut stream = within("the door", UnixStream::connect(door)).await.unwrap();
    stream.write_all(lines).await.ok();
    let mut answer = String::new();
    let mut reader = BufReader::new(stream);
    // Its descriptors are not taken: the kernel closes them.
    let read = within("an answer", reader.read_line(&mut answer)).await;
    read.ok();
    answer
}

const OUR_HELLO: &str = "{\"hello\":{\"version\":1,\"gateway\":\"east-gw\"}}\n";

#[tokio::test]
async fn whatever_comes_to_the_door_the_gateway_serves_on() {
    let (mut gateway, _service) = quiet().await;
    let door = socket(&gateway.cluster);
    let open = gateway.process.sockets();
    let garbage: Vec<u8> = (0..=255)
        .cycle()
        .take(4096)
        .filter(|b| *b != b'\n')
        .collect();
    let long = vec![b'x'; 300 * 1024];
    let hostile: [&[u8]; 8] = [
        b"\n",
        b"{}\n",
        b"{\"hello\":{\"version\":1}}\n",
        b"{\"hello\":{\"version\":1,\"gateway\":\"east-gw\",\"more\":1}}\n",
        b"{\"yours\":{}}\n",
        b"{\"ready\":{\"adopted\":[]}}\n",
        &[&garbage, &b"\n"[..]].concat(),
        &long,
    ];
    for lines in hostile {
        assert_eq!(ask(&door, lines).await, "", "{}", lines.escape_ascii());
    }
    let version = ask(
        &door,
        b"{\"hello\":{\"version\":2,\"gateway\":\"east-gw\"}}\n",
    )
    .await;
    assert!(version.contains("it speaks version 1 of the handover, not 2"));
    let name = ask(
        &door,
        b"{\"hello\":{\"version\":1,\"gateway\":\"west-gw\"}}\n",
    )
    .await;
    assert!(name.contains("it is `east-gw`, not `west-gw`"), "{name}");
    // Gone after the offer, and after a message that is none.
    let offer = ask(&door, OUR_HELLO.as_bytes()).await;
    assert!(
        offer.starts_with("{\"offer\":{\"sockets\":[{\"role\":{\"listener\":"),
        "{offer}"
    );
    let nonsense = [OUR_HELLO, "{\"ready\":{\"adopted\":7}}\n"].concat();
    assert_eq!(ask(&door, nonsense.as_bytes()).await, offer);
    // Ready, and gone before it could hear that the sockets are its own.
    let deaf = within("the door", UnixStream::connect(&door))
        .await
        .unwrap();
    let mut deaf = deaf.into_std().unwrap();
    deaf.shutdown(std::net::Shutdown::Read).unwrap();
    std::io::Write::write_all(&mut deaf, OUR_HELLO.as_bytes()).ok();
    drop(deaf);
    let mut heard = within("the door", UnixStream::connect(&door))
        .await
        .unwrap();
    heard.write_all(OUR_HELLO.as_bytes()).await.unwrap();
    let mut first = [0; 1];
    within("an offer", heard.read_exact(&mut first))
        .await
        .unwrap();
    let mut heard = heard.into_std().unwrap();
    heard.shutdown(std::net::Shutdown::Read).unwrap();
    heard.set_nonblocking(false).unwrap();
    std::io::Write::write_all(&mut heard, b"{\"ready\":{\"adopted\":[]}}\n").unwrap();
    eventually("it is given up", async || {
        let told = gateway.process.messages_so_far();
        let given_up = told.iter().filter(|line| line.contains("not handed over"));
        (given_up.count() == hostile.len() + 6).then_some(())
    })
    .await;
    assert_eq!(gateway.get("/").await.text(), "hello");
    assert!(!gateway.process.told().contains("draining"));
    drop(heard);
    // Beside those a worker may keep a connection to the endpoint that no worker had before.
    gateway.process.sockets_fall_to(open + 1).await;
    let next = gateway.cluster.take_over().await;
    let mut old = std::mem::replace(&mut gateway.process, next);
    assert!(old.ended().await.success());
    assert_eq!(gateway.get("/").await.text(), "hello");
    gateway.process.finish().await;
}

/// A successor may take a minute to be ready: what is revoked does not wait for it, and what is
/// configured meanwhile is applied when it goes away.
#[tokio::test]
async fn a_successor_that_hangs_holds_up_no_revocation() {
    let (gateway, _service) = quiet().await;
    let (cluster, process) = (&gateway.cluster, &gateway.process);
    let reloads = async |what| {
        let labels = [("what", what), ("result", "applied")];
        process
            .metrics()
            .await
            .value("zeugma_reloads_total", &labels)
    };
    let version = async || process.admin_json("/server_info").await["config_version"].clone();
    let trusted = async || process.admin_json("/certs").await["generation"].clone();
    let (before, configured, first) = (version().await, reloads("config").await, trusted().await);
    let mut hangs = within("the door", UnixStream::connect(socket(cluster)))
        .await
        .unwrap();
    hangs.write_all(OUR_HELLO.as_bytes()).await.unwrap();
    process
        .message("ZG0942 a successor asks for the sockets")
        .await;
    let more = ["backends: [{ endpoints: ['127.0.0.1:9'] }]"];
    cluster.write("more.yaml", &near_route("more", &more));
    eventually("a configuration that is loaded", async || {
        (reloads("config").await > configured).then_some(())
    })
    .await;
    cluster.renew();
    eventually("a certificate that is used", async || {
        (trusted().await != first).then_some(())
    })
    .await;
    assert_eq!(version().await, before);
    drop(hangs);
    eventually("a configuration that is applied", async || {
        (version().await != before).then_some(())
    })
    .await;
    gateway.process.finish().await;
}

/// What had to wait counts as applied to whoever read it: it is no change any more, and a listener of
/// it that cannot be bound must not hold up all else.
#[tokio::test]
async fn a_listener_that_is_taken_while_its_configuration_waits_holds_up_nothing() {
    let (mut gateway, _service) = quiet().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let (cluster, process) = (&mut gateway.cluster, &gateway.process);
    let mut hangs = within("the door", UnixStream::connect(socket(cluster)))
        .await
        .unwrap();
    hangs.write_all(OUR_HELLO.as_bytes()).await.unwrap();
    process.message("a successor asks for the sockets").await;
    let applied = [("what", "config"), ("result", "applied")];
    let reloads = async || (process.metrics().await).value("zeugma_reloads_total", &applied);
    let before = reloads().await;
    cluster.relisten("more", address, "role: workloads");
    cluster.write_gateway();
    eventually("a configuration that is loaded", async || {
        (reloads().await > before).then_some(())
    })
    .await;
    drop(hangs);
    process
        .message("configuration refused in part: MeshGateway east-gw (rest)")
        .await;
    let findings = process.admin_json("/config_dump").await["findings"].clone();
    assert_eq!(
        findings[0]["path"], "spec.listeners.more.address",
        "{findings}"
    );
    // All else goes on, and changes.
    let more = ["backends: [{ endpoints: ['127.0.0.1:9'] }]"];
    let version = async || process.admin_json("/server_info").await["config_version"].clone();
    let first = version().await;
    cluster.write("more.yaml", &near_route("more", &more));
    eventually("a configuration that is applied", async || {
        (version().await != first).then_some(())
    })
    .await;
    let rest = [("serves", "rest")];
    let refused = "zeugma_config_documents_refused";
    process.metric_becomes(refused, &rest, 1.0).await;
    // It is tried again, without being asked.
    drop(taken);
    process.metric_becomes(refused, &rest, 0.0).await;
    TcpStream::connect(address).await.unwrap();
    gateway.process.finish().await;
}

#[tokio::test]
async fn another_user_is_not_let_in() {
    if !is_root_or_skipped("another user") {
        return;
    }
    let (gateway, _service) = quiet().await;
    let door = socket(&gateway.cluster);
    // As if somebody had opened everything on the way to it.
    let mut path = door.as_path();
    while path != Path::new("/tmp") && path != Path::new("/") {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(path, mode).unwrap();
        path = path.parent().unwrap();
    }
    let script = "import os,socket,sys\nos.setuid(65534)\n\
                  s=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\nheard=b''\n\
                  try:\n s.sendall(sys.argv[2].encode())\n heard=s.recv(1)\n\
                  except OSError: pass\nsys.exit(len(heard))\n";
    let mut python = tokio::process::Command::new("python3");
    let python = python
        .args(["-c", script])
        .arg(&door)
        .arg(OUR_HELLO)
        .stdin(Stdio::null());
    let status = within("its end", python.status()).await.unwrap();
    gateway
        .process
        .message(
            "ZG0946 a process at the handover socket is not let in error=its user is 65534, not 0",
        )
        .await;
    assert!(status.success());
    assert!(!gateway.process.told().contains("asks for the sockets"));
    gateway.process.finish().await;
}

#[tokio::test]
async fn a_request_on_a_connection_kept_through_the_drain_is_answered_and_closes_it() {
    let (mut gateway, _service) = quiet().await;
    let apps = gateway.apps();
    let mut kept = within("connecting", TcpStream::connect(apps))
        .await
        .unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {HELLO}\r\n\r\n");
    kept.write_all(request.as_bytes()).await.unwrap();
    let first = data_client::read_head(&mut kept).await.unwrap();
    assert!(!first.contains("connection: close"), "{first}");
    let mut body = [0; 5];
    kept.read_exact(&mut body).await.unwrap();
    gateway.process.signal(Signal::TERM);
    gateway
        .process
        .message("ZG0902 draining: no new connections")
        .await;
    // The caller cannot know yet: this request is on its way while the gateway drains.
    kept.write_all(request.as_bytes()).await.unwrap();
    let second = data_client::read_head(&mut kept).await.unwrap();
    assert!(second.starts_with("HTTP/1.1 200"), "{second}");
    assert!(second.contains("connection: close"), "{second}");
    let mut rest = Vec::new();
    within("the end", kept.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, b"hello");
    assert!(gateway.process.ended().await.success());
}

#[tokio::test]
async fn a_connection_that_says_nothing_through_half_of_the_drain_is_closed_in_order() {
    let (mut gateway, _service) = quiet().await;
    let mut kept = TcpStream::connect(gateway.apps()).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {HELLO}\r\n\r\n");
    kept.write_all(request.as_bytes()).await.unwrap();
    data_client::read_head(&mut kept).await.unwrap();
    gateway.process.signal(Signal::TERM);
    let mut rest = Vec::new();
    within("the end", kept.read_to_end(&mut rest))
        .await
        .unwrap();
    assert_eq!(rest, b"hello");
    assert!(gateway.process.ended().await.success());
    let line = gateway.process.connection(kept.local_addr().unwrap()).await;
    assert_eq!(line["verdict"], "completed");
}
