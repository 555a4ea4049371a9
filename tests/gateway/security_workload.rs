//! A gateway whose certificate, bundles and CRLs come from a SPIFFE Workload API (the rules are those of
//! `spiffe.md` by number): an agent that is late, dies, rotates, and says what it should not.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use http::Request;
use http_body_util::BodyExt as _;
use hyper::client::conn;
use rustix::process::Signal;
use rustls::AlertDescription;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;
use tokio::io::AsyncReadExt as _;
use zeugma_core::identity::TrustDomain;
use zeugma_proxy::tls::{BUNDLES_MAX, Bundles};

use crate::mesh::{
    Agent, Answer, Body, Ca, Cluster, Gateway, Identity, Said, Service, alert_of, empty,
    eventually, get, h2, within,
};
use crate::security_pki::Domain;

const ORDERS: &str = "orders.shop.svc.clusterset.local";

/// East, whose gateway asks its agent, and serves a route to west and to its own workloads.
pub(crate) struct World {
    pub(crate) east: Cluster,
    pub(crate) west: Cluster,
    pub(crate) cart: Identity,
    service: Service,
}

impl World {
    pub(crate) async fn new() -> Self {
        let service = Service::http("orders").await;
        let (mut east, mut west) = (Cluster::new("east"), Cluster::new("west"));
        east.meet(&west);
        east.route(
            "shop/orders",
            &format!(
                "
                protocol: http
                backends: [{{ endpoints: ['{}'] }}]
                allow: [{{ listeners: [apps] }}, {{ from: ['spiffe://west.example/*', 'spiffe://east.example/*'] }}]
                export: {{ to: ['*'] }}",
                service.address
            ),
        );
        east.set("workers", "1");
        east.set("admin", "'unix:admin.sock'");
        let cart = west.identity("ns/shop/sa/cart");
        let socket = at(&east.agent_socket());
        east.ask_agent(Some(&socket));
        Self {
            east,
            west,
            cart,
            service,
        }
    }

    /// An agent that says what east's files say.
    pub(crate) fn agent(&self) -> Agent {
        Agent::at(&self.east.agent_socket(), &Answer::of(&self.east))
    }

    /// Starts the gateway, and does not wait.
    pub(crate) fn spawn(&self) -> Gateway {
        self.east.write_gateway();
        self.east.spawn(Gateway::command(&self.east.config()))
    }

    pub(crate) async fn start(&self) -> Gateway {
        let gateway = self.spawn();
        gateway.message("ZG0901 gateway ready").await;
        gateway
    }

    pub(crate) fn command(&self, words: &[&str]) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command.args(words).arg("--config").arg(self.east.config());
        let output = command.env_remove("ZEUGMA_ADMIN").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    pub(crate) fn get(&self, what: &str) -> Value {
        let (code, text) = self.command(&["get", what, "-o", "json"]);
        assert_eq!(code, Some(0), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Renews east's certificate a few times, each handed to the gateway by `give`, while requests come
    /// on new connections and on one that is kept: none is lost.
    pub(crate) async fn rotates_under_traffic(&self, give: impl Fn()) {
        let mut kept = open(&self.cart, self.east.mesh).await;
        ask(&mut kept).await.unwrap();
        let (stop, stopped) = tokio::sync::watch::channel(());
        let (caller, mesh) = (self.cart.clone(), self.east.mesh);
        let traffic = tokio::spawn(async move {
            let mut sent = 0;
            while !stopped.has_changed().unwrap() {
                let mut sender = open(&caller, mesh).await;
                for _ in 0..5 {
                    ask(&mut sender).await.unwrap();
                    sent += 1;
                }
            }
            sent
        });
        for _ in 0..5 {
            let next = self.east.renew();
            give();
            until_serial(&self.cart, self.east.mesh, &next).await;
            ask(&mut kept).await.unwrap();
        }
        stop.send(()).unwrap();
        let sent = within("the last request", traffic).await.unwrap();
        assert!(sent > 0);
    }

    /// The codes of what is wrong now.
    fn findings(&self) -> Vec<String> {
        let found = self.get("findings");
        let all = found["findings"].as_array().unwrap().iter();
        all.map(|one| format!("{} {} {}", one["code"], one["severity"], one["message"]))
            .collect()
    }

    /// Waits for a finding of this code with these words, or for none where there are none.
    pub(crate) async fn finds(&self, code: &str, words: &str) {
        let mut last = Vec::new();
        let what = format!("{code} {words}");
        let look = eventually(&what, async || {
            last = self.findings();
            match code {
                "" => last.is_empty().then_some(()),
                _ => last
                    .iter()
                    .any(|one| one.contains(code) && one.contains(words))
                    .then_some(()),
            }
        });
        look.await;
    }
}

/// The serial of the certificate that the gateway presents now.
pub(crate) async fn serial(caller: &Identity, to: SocketAddr) -> Option<String> {
    let stream = caller.dial(to, ORDERS, &[b"h2"]).await.ok()?;
    let chain = stream.get_ref().1.peer_certificates()?;
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    Some(
        leaf.raw_serial()
            .iter()
            .map(|octet| format!("{octet:02x}"))
            .collect(),
    )
}

pub(crate) async fn until_serial(caller: &Identity, to: SocketAddr, expected: &str) {
    eventually("that certificate", async || {
        (serial(caller, to).await? == expected).then_some(())
    })
    .await;
}

/// Whether a caller is let in: accepted, the first byte is of HTTP/2's settings.
pub(crate) async fn is_let_in(caller: &Identity, to: SocketAddr) -> Option<()> {
    let mut stream = caller.dial(to, ORDERS, &[b"h2"]).await.ok()?;
    stream.read_u8().await.ok().map(drop)
}

pub(crate) async fn until_let_in(caller: &Identity, to: SocketAddr) {
    eventually("it is let in", async || is_let_in(caller, to).await).await;
}

pub(crate) async fn until_refused(caller: &Identity, to: SocketAddr) {
    let look = async || is_let_in(caller, to).await.is_none().then_some(());
    eventually("it is refused", look).await;
}

/// The serial of the certificate in a cluster's files.
pub(crate) fn serial_of(cluster: &Cluster) -> String {
    let chain = Answer::of(cluster).svids[0].chain.clone();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain).unwrap();
    leaf.raw_serial()
        .iter()
        .map(|octet| format!("{octet:02x}"))
        .collect()
}

/// A socket as its address.
pub(crate) fn at(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

type Sender = conn::http2::SendRequest<Body>;

pub(crate) async fn open(caller: &Identity, to: SocketAddr) -> Sender {
    h2(caller.dial(to, ORDERS, &[b"h2"]).await.unwrap()).await
}

pub(crate) async fn ask(sender: &mut Sender) -> Result<(), hyper::Error> {
    let request = Request::get(format!("https://{ORDERS}/"))
        .body(empty())
        .unwrap();
    let response = within("a response", sender.send_request(request)).await?;
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.map(drop)
}

/// WE1, WA1, WA3; and what a gateway is that has no certificate yet.
#[tokio::test]
async fn a_gateway_waits_for_its_agent_and_serves_as_soon_as_it_is_given_an_svid() {
    let world = World::new().await;
    let east = &world.east;
    let gateway = world.spawn();
    let said = gateway.message("ZG0261").await;
    assert!(said.contains("No such file"), "{said}");
    gateway.message("ZG0264").await;
    assert_eq!(gateway.ready().await, 503);
    // What needs no certificate is served ...
    assert_eq!(get(east.apps, ORDERS, "/").await.status, 200);
    // ... and what needs one is refused with the alert after which another gateway is tried.
    let dialled = world.cart.dial(east.mesh, ORDERS, &[b"h2"]).await;
    let alert = alert_of(&dialled.unwrap_err());
    assert_eq!(alert, AlertDescription::InternalError);
    let line = gateway.log(|line| line["listener"] == "mesh").await;
    assert_eq!(line["verdict"], "no-identity", "{line}");
    world.finds("ZG0261", "there is no SVID yet").await;
    assert_eq!(world.get("identities")["identities"]["own"], Value::Null);
    let (code, status) = world.command(&["status"]);
    assert_eq!(code, Some(0));
    assert!(
        status.contains("identity none yet  by unix:///"),
        "{status}"
    );
    let (code, check) = world.command(&["check"]);
    assert_eq!(code, Some(2), "{check}");
    assert!(
        check.contains("(ZG1059)") && check.contains("start the agent"),
        "{check}"
    );
    let metrics = gateway.metrics().await;
    assert_eq!(
        metrics.value("zeugma_svid_expiry_timestamp_seconds", &[]),
        0.0
    );

    // There is an agent, which knows nobody like us: WE5.
    let agent = Agent::at(&east.agent_socket(), Said::Status(7, "no identity issued"));
    world.finds("ZG0261", "no identity issued").await;
    assert_eq!(gateway.ready().await, 503);
    agent.say(&Answer::of(east));
    gateway.message("ZG0901 gateway ready").await;
    gateway.message("ZG0263 the Workload API answers").await;
    assert_eq!(gateway.ready().await, 200);
    let mut sender = open(&world.cart, east.mesh).await;
    ask(&mut sender).await.unwrap();
    world.finds("", "").await;
    let (_, status) = world.command(&["status"]);
    assert!(status.contains(&east.gateway_id()), "{status}");
    let (code, check) = world.command(&["check"]);
    assert!(check.contains("last answer 2"), "{code:?} {check}");
    let metrics = gateway.metrics().await;
    assert!(metrics.value("zeugma_svid_expiry_timestamp_seconds", &[]) > 1e9);
    gateway.finish().await;
}

#[tokio::test]
async fn certificates_rotate_under_traffic_and_no_request_is_lost() {
    let world = World::new().await;
    let east = &world.east;
    let agent = world.agent();
    let gateway = world.start().await;
    world
        .rotates_under_traffic(|| agent.say(&Answer::of(east)))
        .await;
    assert_eq!(agent.asked(), 1, "one call brings them all");
    gateway.finish().await;
}

/// A new root: its anchor is told before it is used, and the old one is taken away after.
#[tokio::test]
async fn the_root_of_the_own_trust_domain_is_rotated() {
    let world = World::new().await;
    let east = &world.east;
    let new = Cluster::of("east", Arc::new(Ca::new()));
    let (first, second) = (Answer::of(east), Answer::of(&new));
    let with = |mut answer: Answer, bundles: &[&Answer]| {
        let anchors = bundles.iter().flat_map(|one| one.svids[0].bundle.clone());
        answer.svid().bundle = anchors.collect();
        answer.federated.clone_from(&first.federated);
        answer
    };
    // East's own workloads call by `apps`.
    let agent = world.agent();
    let gateway = world.start().await;
    // Whoever of east's own calls trusts both roots.
    let trusting = |cluster: &Cluster, other: &Cluster| {
        let own = TrustDomain::parse("east.example").unwrap();
        let both = [cluster, other].map(|one| {
            let bundles = Bundles::load(&one.svid().bundles).unwrap();
            let anchors = bundles.get(&own).unwrap().anchors().iter();
            anchors
                .map(|anchor| pem("CERTIFICATE", &anchor.der))
                .collect::<String>()
        });
        let folder = cluster.svid().bundles;
        fs::remove_file(folder.join("east.example.json")).unwrap();
        fs::write(folder.join("east.example.pem"), both.concat()).unwrap();
    };
    let (mut old_side, mut new_side) = (
        Cluster::of("east", Arc::clone(&east.ca)),
        Cluster::of("east", Arc::clone(&new.ca)),
    );
    trusting(&old_side, &new);
    trusting(&new_side, east);
    let old = old_side.identity("ns/shop/sa/old");
    let pay = new_side.identity("ns/shop/sa/pay");
    until_let_in(&old, east.apps).await;
    assert!(is_let_in(&pay, east.apps).await.is_none());

    agent.say(&with(first.clone(), &[&first, &second]));
    until_let_in(&pay, east.apps).await;
    let mut held = open(&old, east.apps).await;
    ask(&mut held).await.unwrap();
    agent.say(&with(second.clone(), &[&first, &second]));
    until_serial(&pay, east.apps, &serial_of(&new)).await;
    ask(&mut held).await.unwrap();
    agent.say(&with(second.clone(), &[&second]));
    until_refused(&old, east.apps).await;
    // T3: what is open is judged by it at once.
    eventually("its end", async || held.is_closed().then_some(())).await;
    gateway
        .log(|line| line["verdict"] == "anchor-removed")
        .await;
    assert!(is_let_in(&pay, east.apps).await.is_some());
    gateway.finish().await;
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

#[tokio::test]
async fn an_agent_that_is_killed_or_denies_takes_nothing_away_and_may_come_back() {
    let world = World::new().await;
    let east = &world.east;
    let agent = world.agent();
    let gateway = world.start().await;
    let mut kept = open(&world.cart, east.mesh).await;
    drop(agent);
    world.finds("ZG0261", "the last SVID stays in use").await;
    ask(&mut kept).await.unwrap();
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    assert_eq!(gateway.ready().await, 200);
    let (_, status) = world.command(&["status"]);
    assert!(status.contains("which does not answer"), "{status}");

    // Its registration is gone.
    let agent = Agent::at(&east.agent_socket(), Said::Status(7, "no identity issued"));
    world
        .finds("ZG0261", "PermissionDenied: no identity issued")
        .await;
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    let (_, check) = world.command(&["check"]);
    assert!(
        check.contains("register the gateway at its agent"),
        "{check}"
    );

    let next = east.renew();
    agent.say(&Answer::of(east));
    until_serial(&world.cart, east.mesh, &next).await;
    world.finds("", "").await;
    ask(&mut kept).await.unwrap();
    // SIGHUP has it asked at once, and takes nothing away.
    let before = agent.asked();
    gateway.signal(Signal::HUP);
    eventually("another call", async || {
        (agent.asked() > before).then_some(())
    })
    .await;
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    // A restart begins with nothing but what the agent says: nothing of it was kept.
    gateway.finish().await;
    assert_no_secret(&world);
    let gateway = world.start().await;
    until_serial(&world.cart, east.mesh, &next).await;
    gateway.finish().await;
}

/// Nothing in the state directory is the key, in any form.
fn assert_no_secret(world: &World) {
    use base64::Engine as _;
    let key = Answer::of(&world.east).svid().key.clone();
    // The private scalar is in the second half of the first 70 octets (RFC 5958, RFC 5915).
    let text = base64::engine::general_purpose::STANDARD.encode(&key);
    let state = world.east.config().join("state");
    let mut seen = 0;
    let mut folders = vec![state];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.is_file() {
                seen += 1;
                let bytes = fs::read(&path).unwrap();
                let holds = |secret: &[u8]| bytes.windows(secret.len()).any(|part| part == secret);
                assert!(!holds(&key[36..60]), "{}", path.display());
                assert!(!holds(&text.as_bytes()[48..80]), "{}", path.display());
            }
        }
    }
    assert!(seen > 0);
}

/// WA5, WA7, WA8: what is refused is refused whole, and the last good one stays.
#[tokio::test]
async fn an_answer_that_misses_something_or_is_somebody_elses_is_refused_and_told() {
    let world = World::new().await;
    let east = &world.east;
    let agent = world.agent();
    let gateway = world.start().await;
    let first = serial(&world.cart, east.mesh).await.unwrap();
    let good = Answer::of(east);
    let with = |change: &dyn Fn(&mut Answer)| {
        let mut answer = good.clone();
        change(&mut answer);
        Said::Message(answer.bytes())
    };
    let other = Answer::of(&world.west);
    let mut mixed = good.clone();
    mixed.svid().key.clone_from(&other.svids[0].key);
    let cases: Vec<(&str, Said, &str)> = vec![
        (
            "no SVID",
            with(&|answer| answer.svids.clear()),
            "there is no SVID in it",
        ),
        (
            "no key",
            with(&|answer| answer.svid().key.clear()),
            "`x509_svid_key` is missing",
        ),
        (
            "no bundle",
            with(&|answer| answer.svid().bundle.clear()),
            "`bundle` is missing",
        ),
        (
            "no chain",
            with(&|answer| answer.svid().chain.clear()),
            "`x509_svid` is missing",
        ),
        (
            "no ID",
            with(&|answer| answer.svid().id.clear()),
            "`spiffe_id` is missing",
        ),
        (
            "half a chain",
            with(&|answer| answer.svid().chain.truncate(40)),
            "`x509_svid` is not certificates in DER",
        ),
        (
            "half a key",
            with(&|answer| answer.svid().key.truncate(40)),
            "its key cannot be used",
        ),
        (
            "another's key",
            Said::from(&mixed),
            "its key is not that of its certificate",
        ),
        (
            "another's bundle",
            with(&|answer| answer.svid().bundle.clone_from(&other.svids[0].bundle)),
            "cannot be used",
        ),
        (
            "another trust domain",
            Said::from(&other),
            "the gateway's trust domain is `east.example`",
        ),
        (
            "another name",
            with(&|answer| answer.svid().id = "spiffe://east.example/other".to_owned()),
            "it is said to be `spiffe://east.example/other`",
        ),
        (
            "too many bundles",
            with(&|answer| answer.federated = many(&other)),
            "`federated_bundles` has over 1024",
        ),
    ];
    for (what, said, words) in cases {
        agent.say(said);
        world.finds("ZG0262", words).await;
        assert_eq!(
            serial(&world.cart, east.mesh).await.as_ref(),
            Some(&first),
            "{what}"
        );
        gateway
            .metric_becomes("zeugma_last_good_in_use", &[("kind", "credentials")], 1.0)
            .await;
        agent.say(&good);
        world.finds("", "").await;
        gateway
            .metric_becomes("zeugma_last_good_in_use", &[("kind", "credentials")], 0.0)
            .await;
    }
    gateway.message("ZG0262").await;
    // What is no message ends the call: garbage, and what is over 4 MiB.
    let padding = |bytes: usize| {
        let mut answer = good.clone();
        answer.crls = vec![vec![0; bytes]];
        Said::Message(answer.bytes())
    };
    for (said, words) in [
        (Said::Message(vec![0xff; 100]), "decode"),
        (padding(5 << 20), "too large"),
    ] {
        agent.say(said);
        world.finds("ZG0261", words).await;
        assert_eq!(serial(&world.cart, east.mesh).await.as_ref(), Some(&first));
        agent.say(&good);
        world.finds("", "").await;
    }
    let next = east.renew();
    agent.say(&Answer::of(east));
    until_serial(&world.cart, east.mesh, &next).await;
    gateway.finish().await;
}

/// One bundle over the limit.
fn many(other: &Answer) -> BTreeMap<String, Vec<u8>> {
    let bundle = &other.svids[0].bundle;
    // Each is checked to be of its trust domain only once there are few enough.
    (0..=BUNDLES_MAX)
        .map(|nth| (format!("d{nth}.example"), bundle.clone()))
        .collect()
}

/// SPIFFE_Workload_API.md §5.3: the first one is the default.
#[tokio::test]
async fn of_several_svids_the_first_is_the_gateways_whatever_their_hints() {
    let world = World::new().await;
    let east = &world.east;
    let first = Answer::of(east);
    let serial_of_first = serial_of(east);
    east.renew();
    let second = Answer::of(east);
    let mut both = first.clone();
    both.svids.extend(second.svids.clone());
    both.svids[0].hint = "internal";
    both.svids[1].hint = "external";
    let agent = Agent::at(&east.agent_socket(), &both);
    let gateway = world.start().await;
    until_serial(&world.cart, east.mesh, &serial_of_first).await;
    let serial_of_second = serial_of(east);
    both.svids.reverse();
    agent.say(&both);
    until_serial(&world.cart, east.mesh, &serial_of_second).await;
    gateway.finish().await;
}

/// WA4, WA9; XL4.
#[tokio::test]
async fn a_federated_bundle_lets_its_trust_domain_in_and_its_redaction_ends_what_is_open() {
    let world = World::new().await;
    let east = &world.east;
    let whole = Answer::of(east);
    let mut alone = whole.clone();
    alone.federated.clear();
    let agent = Agent::at(&east.agent_socket(), &alone);
    let gateway = world.start().await;
    assert!(is_let_in(&world.cart, east.mesh).await.is_none());
    agent.say(&whole);
    until_let_in(&world.cart, east.mesh).await;
    let mut open = open(&world.cart, east.mesh).await;
    ask(&mut open).await.unwrap();
    // One that is broken leaves that trust domain as it was, and holds up nothing else.
    let mut broken = whole.clone();
    let own = broken.svids[0].bundle.clone();
    broken.federated.insert("west.example".to_owned(), own);
    let next = east.renew();
    let renewed = Answer::of(east);
    broken.svids.clone_from(&renewed.svids);
    agent.say(&broken);
    until_serial(&world.cart, east.mesh, &next).await;
    gateway.message("ZG0203").await;
    ask(&mut open).await.unwrap();
    alone.svids.clone_from(&renewed.svids);
    agent.say(&alone);
    until_refused(&world.cart, east.mesh).await;
    eventually("its end", async || open.is_closed().then_some(())).await;
    gateway
        .log(|line| line["verdict"] == "anchor-removed")
        .await;
    gateway.finish().await;
}

/// CRLs come with the rest: R9 holds, and a list that cannot be used takes away none that could.
#[tokio::test]
async fn a_crl_of_an_answer_ends_who_is_on_it() {
    let mut world = World::new().await;
    let north = Domain::new("north.example");
    north.write_bundle(&world.east);
    world.east.route(
        "shop/stock",
        &format!(
            "
            protocol: http
            backends: [{{ endpoints: ['{}'] }}]
            hosts: [{ORDERS_TOO}]
            allow: [{{ from: ['spiffe://north.example/*'] }}]
            export: {{ to: ['*'] }}",
            world.service.address
        ),
    );
    let (bad, good) = (
        north.issue(&world.east, "bad"),
        north.issue(&world.east, "good"),
    );
    let crl = |number, serials: &[[u8; 2]]| crl_of(&north, number, serials);
    let mut answer = Answer::of(&world.east);
    let agent = Agent::at(&world.east.agent_socket(), &answer);
    let gateway = world.start().await;
    let east = &mut world.east;
    let let_in = async |who: &Identity| {
        let mut stream = who.dial(east.mesh, ORDERS_TOO, &[b"h2"]).await.ok()?;
        stream.read_u8().await.ok().map(drop)
    };
    eventually("all are let in", async || let_in(&bad.identity).await).await;
    answer.crls = vec![crl(2, &[bad.serial])];
    agent.say(&answer);
    let refused = async || let_in(&bad.identity).await.is_none().then_some(());
    eventually("it is revoked", refused).await;
    assert!(let_in(&good.identity).await.is_some());
    // An older one that has it no longer, one of nobody, and what is no list.
    let stranger = crl_of(&Domain::new("north.example"), 9, &[]);
    for (bytes, words) in [
        (crl(1, &[]), "is not newer than the one in use"),
        (stranger, "is not signed by an anchor"),
        (vec![0x30, 0], "cannot be used"),
    ] {
        answer.crls = vec![bytes];
        agent.say(&answer);
        let said = gateway.message(words).await;
        assert!(said.contains("ZG0204"), "{said}");
        assert!(let_in(&bad.identity).await.is_none(), "{words}");
        assert!(let_in(&good.identity).await.is_some(), "{words}");
    }
    // WA4: none is none.
    answer.crls.clear();
    agent.say(&answer);
    eventually("it is let in", async || let_in(&bad.identity).await).await;
    gateway.finish().await;
}

/// A CRL of a trust domain, as an agent gives it.
fn crl_of(domain: &Domain, number: u64, serials: &[[u8; 2]]) -> Vec<u8> {
    let pem = domain.crl(number, serials, time::Duration::hours(12));
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes());
    der.unwrap().to_vec()
}

/// R9 over a restart: a list that is too old once let in everybody, since none of before could stay.
#[tokio::test]
async fn whose_newer_crl_was_known_before_a_restart_is_not_trusted_with_an_older_one() {
    let world = World::new().await;
    let east = &world.east;
    let north = Domain::new("north.example");
    north.write_bundle(east);
    let (bad, good) = (north.issue(east, "bad"), north.issue(east, "good"));
    let mut answer = Answer::of(east);
    answer.crls = vec![crl_of(&north, 2, &[bad.serial])];
    let agent = Agent::at(&east.agent_socket(), &answer);
    let gateway = world.start().await;
    until_let_in(&good.identity, east.mesh).await;
    assert!(is_let_in(&bad.identity, east.mesh).await.is_none());
    let numbers = east.config().join("state/east-gw/crl-numbers");
    eventually("the numbers", async || numbers.is_file().then_some(())).await;
    gateway.finish().await;

    answer.crls = vec![crl_of(&north, 1, &[])];
    agent.say(&answer);
    let gateway = world.start().await;
    gateway.message("crlNumber 01 after 02").await;
    for who in [&bad, &good] {
        assert!(is_let_in(&who.identity, east.mesh).await.is_none());
    }
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    // With its trust domain the number is not forgotten.
    let next = east.renew();
    answer.svids = Answer::of(east).svids;
    answer.crls = vec![crl_of(&north, 0, &[])];
    agent.say(&answer);
    until_serial(&world.cart, east.mesh, &next).await;
    gateway.message("crlNumber 00 after 02").await;
    for who in [&bad, &good] {
        assert!(is_let_in(&who.identity, east.mesh).await.is_none());
    }
    answer.crls = vec![crl_of(&north, 3, &[bad.serial])];
    agent.say(&answer);
    until_let_in(&good.identity, east.mesh).await;
    assert!(is_let_in(&bad.identity, east.mesh).await.is_none());
    gateway.finish().await;
}

/// Nobody can tell whose list it is that cannot be read: one who comes with it may be revoked.
#[tokio::test]
async fn who_comes_with_a_crl_that_cannot_be_used_is_not_trusted_before_there_is_one() {
    let world = World::new().await;
    let east = &world.east;
    let agent = world.agent();
    let gateway = world.start().await;
    until_let_in(&world.cart, east.mesh).await;
    let north = Domain::new("north.example");
    north.write_bundle(east);
    let (bad, good) = (north.issue(east, "bad"), north.issue(east, "good"));
    for _ in 0..2 {
        let next = east.renew();
        let mut answer = Answer::of(east);
        answer.crls = vec![vec![0x30, 0]];
        agent.say(&answer);
        until_serial(&world.cart, east.mesh, &next).await;
        for who in [&bad, &good] {
            assert!(is_let_in(&who.identity, east.mesh).await.is_none());
        }
    }
    // Who was trusted without lists before is as it was.
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    gateway.message("ZG0204").await;
    let mut answer = Answer::of(east);
    answer.crls = vec![crl_of(&north, 1, &[bad.serial])];
    agent.say(&answer);
    until_let_in(&good.identity, east.mesh).await;
    assert!(is_let_in(&bad.identity, east.mesh).await.is_none());
    gateway.finish().await;
}

#[tokio::test]
async fn a_first_answer_whose_crl_may_be_of_the_own_trust_domain_and_cannot_be_used_is_refused() {
    let world = World::new().await;
    let east = &world.east;
    let mut answer = Answer::of(east);
    answer.crls = vec![vec![0x30, 0]];
    let agent = Agent::at(&east.agent_socket(), &answer);
    let gateway = world.spawn();
    gateway.message("ZG0204").await;
    world.finds("ZG0262", "CRL 0 cannot be used").await;
    assert_eq!(gateway.ready().await, 503);
    agent.say(&Answer::of(east));
    gateway.message("ZG0901 gateway ready").await;
    world.finds("", "").await;
    gateway.finish().await;
}

/// What no agent says: a deny list is a file of the operator's, which is watched.
#[tokio::test]
async fn an_identity_on_the_deny_list_is_refused_whatever_the_agent_says() {
    let world = World::new().await;
    let east = &world.east;
    let gateway = east.config().join("gateway.yaml");
    let denied = east.config().join("denied");
    fs::write(&denied, "").unwrap();
    east.write_gateway();
    let agent = world.agent();
    let text = fs::read_to_string(&gateway).unwrap();
    let socket = format!("workloadApi: '{}'", at(&east.agent_socket()));
    let beside = text.replace(&socket, &format!("{socket}, denied: denied"));
    assert_ne!(beside, text);
    east.write("gateway.yaml", &beside);
    let running = east.spawn(Gateway::command(&east.config()));
    running.message("ZG0901 gateway ready").await;
    let mut open = open(&world.cart, east.mesh).await;
    ask(&mut open).await.unwrap();
    east.write("denied", "spiffe://west.example/ns/shop/sa/cart\n");
    until_refused(&world.cart, east.mesh).await;
    eventually("its end", async || open.is_closed().then_some(())).await;
    // One that is broken is told, and the last good one stays; so it does over what the agent says.
    east.write("denied", "cart\n");
    running.message("ZG0205").await;
    let next = east.renew();
    agent.say(&Answer::of(east));
    until_serial(&world.cart, east.mesh, &next).await;
    assert!(is_let_in(&world.cart, east.mesh).await.is_none());
    east.write("denied", "# nobody\n");
    until_let_in(&world.cart, east.mesh).await;
    running.finish().await;
}

const ORDERS_TOO: &str = "stock.shop.svc.clusterset.local";

#[tokio::test]
async fn another_socket_is_taken_up_without_a_restart_and_so_are_files() {
    let mut world = World::new().await;
    let first = serial_of(&world.east);
    let agent = world.agent();
    let gateway = world.start().await;
    let mut kept = open(&world.cart, world.east.mesh).await;
    until_serial(&world.cart, world.east.mesh, &first).await;
    // To where nobody is yet: what serves stays.
    let socket = world.east.agent_socket().with_extension("two");
    let text = fs::read_to_string(world.east.config().join("gateway.yaml")).unwrap();
    let before = format!("workloadApi: '{}'", at(&world.east.agent_socket()));
    assert!(text.contains(&before));
    world.east.ask_agent(Some(&at(&socket)));
    world.east.write_gateway();
    world.finds("ZG0261", "agent.two").await;
    ask(&mut kept).await.unwrap();
    assert_eq!(serial(&world.cart, world.east.mesh).await.unwrap(), first);
    drop(agent);
    let second = world.east.renew();
    let agent = Agent::at(&socket, &Answer::of(&world.east));
    until_serial(&world.cart, world.east.mesh, &second).await;
    world.finds("", "").await;

    let third = world.east.renew();
    world.east.ask_agent(None);
    world.east.write_gateway();
    until_serial(&world.cart, world.east.mesh, &third).await;
    assert_eq!(agent.asked(), 1);
    drop(agent);
    world.finds("", "").await;
    // Both, and neither, are refused, and what served goes on.
    let good = fs::read_to_string(world.east.config().join("gateway.yaml")).unwrap();
    let both = good.replace("svid: { files:", "svid: { workloadApi: 'unix:///a', files:");
    assert_ne!(both, good);
    world.east.write("gateway.yaml", &both);
    world.finds("ZG0109", "comes from `files` already").await;
    world.east.write("gateway.yaml", &good);
    world.finds("", "").await;

    // From files to an agent that is not there: the files' certificate stays until it is.
    world.east.ask_agent(Some(&at(&socket)));
    world.east.write_gateway();
    world.finds("ZG0261", "agent.two").await;
    assert_eq!(serial(&world.cart, world.east.mesh).await.unwrap(), third);
    let fourth = world.east.renew();
    let agent = Agent::at(&socket, &Answer::of(&world.east));
    until_serial(&world.cart, world.east.mesh, &fourth).await;
    ask(&mut kept).await.unwrap();
    drop(agent);
    gateway.finish().await;
}

/// What an agent says wrong holds up no other change: here one that takes trust away.
#[tokio::test]
async fn a_trust_domain_of_a_file_comes_and_goes_while_the_agent_talks_nonsense() {
    let world = World::new().await;
    let east = &world.east;
    let north = Domain::new("north.example");
    north.write_bundle(east);
    let caller = north.issue(east, "caller").identity;
    let bundle = east.svid().bundles.join("north.example.pem");
    fs::rename(bundle, east.config().join("north.pem")).unwrap();
    let agent = world.agent();
    let gateway = world.start().await;
    agent.say(&Answer::of(&world.west));
    world.finds("ZG0262", "trust domain").await;
    let document = "apiVersion: zeugma.dev/v1alpha1\nkind: TrustDomain\n\
                    metadata: { name: north.example }\nspec: { bundle: north.pem }\n";
    east.write("north.yaml", document);
    until_let_in(&caller, east.mesh).await;
    fs::remove_file(east.config().join("north.yaml")).unwrap();
    until_refused(&caller, east.mesh).await;
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    world.finds("ZG0262", "trust domain").await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_successor_takes_over_once_its_agent_has_given_it_an_svid() {
    let world = World::new().await;
    let east = &world.east;
    let agent = world.agent();
    let mut gateway = world.start().await;
    let next = east.take_over().await;
    assert!(gateway.ended().await.success());
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    assert_eq!(agent.asked(), 2);

    // One that is given none leaves the gateway before it as it is.
    agent.say(Said::Status(7, "no identity issued"));
    let mut command = Gateway::command(&east.config());
    command.arg("--takeover");
    let mut in_vain = east.spawn(command);
    in_vain.late_message("ZG0944 not taken over").await;
    let said = in_vain.message("ZG0949").await;
    assert!(said.contains("gave no SVID in time"), "{said}");
    assert!(!in_vain.ended().await.success());
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    assert_eq!(next.ready().await, 200);
    next.finish().await;
}

/// C4: whoever issues renews at half of a life; when a fifth is left, nobody does.
#[tokio::test]
async fn a_certificate_that_nobody_renews_is_told_of_before_it_expires() {
    let world = World::new().await;
    let minutes = time::Duration::minutes;
    let domain = Domain::new("east.example");
    domain.certify(&world.east, minutes(-90), minutes(10));
    let agent = world.agent();
    let gateway = world.start().await;
    drop(agent);
    let said = gateway.message("ZG0265").await;
    assert!(said.contains("expires soon"), "{said}");
    let (_, check) = world.command(&["check"]);
    assert!(check.contains("(ZG1043)"), "{check}");
    gateway.finish().await;
}

/// By TCP on the loopback interface, which the specification allows too.
#[tokio::test]
async fn an_agent_on_a_loopback_address_is_asked_as_one_on_a_socket() {
    let mut world = World::new().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let agent = Agent::on(listener, Said::Nothing);
    world.east.ask_agent(Some(&format!("tcp://{address}")));
    let gateway = world.spawn();
    gateway.message("ZG0264").await;
    world.finds("ZG0264", "has not answered yet").await;
    agent.say(&Answer::of(&world.east));
    gateway.message("ZG0901 gateway ready").await;
    assert!(is_let_in(&world.cart, world.east.mesh).await.is_some());
    gateway.finish().await;
}
