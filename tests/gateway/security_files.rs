//! Files that are half-written, swapped or wrong while a gateway runs.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::mesh::{
    Ca, Cluster, Gateway, Identity, Service, alert_of, empty, eventually, frames, get, h2, within,
};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

fn spec(address: std::net::SocketAddr, from: &str) -> String {
    format!(
        "
        protocol: http
        backends: [{{ endpoints: ['{address}'] }}]
        allow: [{{ listeners: [apps] }}, {{ from: [{from}] }}]
        export: {{ to: ['*'] }}"
    )
}

/// Two peers; east serves `orders` to both itself and west.
async fn east_and_west() -> (Cluster, Cluster, Service, Gateway) {
    let service = Service::http("orders").await;
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    east.route(
        "shop/orders",
        &spec(service.address, "'spiffe://west.example/*'"),
    );
    let gateway = east.start().await;
    (east, west, service, gateway)
}

/// The serial of the certificate that a gateway presents now, in hexadecimal.
async fn serial(east: &Cluster, caller: &Identity) -> String {
    let dialled = caller.dial(east.mesh, ORDERS, &[b"h2"]);
    let stream = within("a handshake", dialled).await.unwrap();
    let chain = stream.get_ref().1.peer_certificates().unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).unwrap();
    let bytes = leaf.raw_serial().iter().map(|b| format!("{b:02x}"));
    bytes.collect()
}

/// Writes into the file that is there, as `>` in a shell does.
fn write_in_place(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).unwrap();
}

fn times_said(gateway: &Gateway, text: &str) -> usize {
    let messages = gateway.messages_so_far();
    messages.iter().filter(|line| line.contains(text)).count()
}

const REFUSED: &str = "ZG0122 configuration refused in part";
const CREDENTIALS_REFUSED: &str = "certificate or bundles refused; the last good ones serve";

#[tokio::test]
async fn half_a_yaml_file_keeps_the_last_good_one_and_says_so_once() {
    let (east, _west, service, gateway) = east_and_west().await;
    let path = east.config().join("shop-orders.yaml");
    let whole = fs::read(&path).unwrap();
    for (nth, half) in [&whole[..whole.len() / 2], b"", b"kind: [", b"\xff\xfe"]
        .into_iter()
        .enumerate()
    {
        // An empty file is a file without documents: its route is gone, and that is no error.
        if half.is_empty() {
            continue;
        }
        write_in_place(&path, half);
        gateway
            .metric_becomes("zeugma_last_good_in_use", &[("kind", "config")], 1.0)
            .await;
        let findings = gateway.admin_json("/config_dump").await["findings"].clone();
        assert!(
            findings.to_string().contains("shop-orders.yaml"),
            "{findings}"
        );
        // Looking again changes nothing, and repeats nothing.
        let refused = [("what", "config"), ("result", "refused")];
        let before = gateway
            .metrics()
            .await
            .value("zeugma_reloads_total", &refused);
        gateway.signal(Signal::HUP);
        eventually("another look", async || {
            let metrics = gateway.metrics().await;
            (metrics.value("zeugma_reloads_total", &refused) > before).then_some(())
        })
        .await;
        assert_eq!(get(east.apps, ORDERS, "/").await.status, 200);
        write_in_place(&path, &whole);
        gateway
            .metric_becomes("zeugma_last_good_in_use", &[("kind", "config")], 0.0)
            .await;
        let findings = gateway.admin_json("/config_dump").await["findings"].clone();
        assert!(findings.is_null(), "{findings}");
        let said = times_said(&gateway, REFUSED);
        assert_eq!(said, nth.max(1).min(nth + 1), "{}", gateway.told());
    }
    assert!(!service.requests().is_empty());
    gateway.finish().await;
}

#[tokio::test]
async fn a_certificate_of_another_trust_domain_is_not_its_own() {
    let (east, _west, _service, gateway) = east_and_west().await;
    gateway.finish().await;
    let file = east.config().join("gateway.yaml");
    let written = fs::read_to_string(&file).unwrap();
    let other = written.replace("trustDomain: east.example", "trustDomain: west.example");
    east.write("gateway.yaml", &other);
    let output = Gateway::try_start(&east.config());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(65), "{text}");
    let why = format!(
        "this is `{}`, and the gateway's trust domain is `west.example`",
        east.gateway_id()
    );
    assert!(text.contains(&why), "{text}");
    east.write("gateway.yaml", &written);
    east.start().await.finish().await;
}

#[tokio::test]
async fn half_a_certificate_keeps_the_last_good_one_and_says_so_once() {
    let (east, mut west, _service, gateway) = east_and_west().await;
    let caller = west.identity("ns/shop/sa/cart");
    let first = serial(&east, &caller).await;
    let files = east.svid();
    let (certificate, key) = (
        fs::read(&files.certificate).unwrap(),
        fs::read(&files.key).unwrap(),
    );
    let other = tempfile::tempdir().unwrap();
    let (other_certificate, other_key) = (other.path().join("pem"), other.path().join("key"));
    // A good pair of its own, of another identity.
    east.ca.issue(
        "spiffe://west.example/zeugma/gateway",
        &other_certificate,
        &other_key,
    );
    let own = &files.bundles.join("east.example.json");
    let bundle = fs::read(own).unwrap();
    let cases: Vec<(&str, &Path, Vec<u8>, &[u8])> = vec![
        (
            "half a certificate",
            &files.certificate,
            certificate[..certificate.len() / 2].to_vec(),
            &certificate,
        ),
        (
            "an empty certificate",
            &files.certificate,
            Vec::new(),
            &certificate,
        ),
        (
            "half a key",
            &files.key,
            key[..key.len() / 2].to_vec(),
            &key,
        ),
        (
            "another's key",
            &files.key,
            fs::read(&other_key).unwrap(),
            &key,
        ),
        (
            "another's certificate",
            &files.certificate,
            fs::read(&other_certificate).unwrap(),
            &certificate,
        ),
        (
            "half a bundle",
            own,
            bundle[..bundle.len() / 2].to_vec(),
            &bundle,
        ),
    ];
    for (nth, (what, path, bytes, whole)) in cases.into_iter().enumerate() {
        write_in_place(path, &bytes);
        gateway
            .metric_becomes("zeugma_last_good_in_use", &[("kind", "credentials")], 1.0)
            .await;
        let refused = [("what", "credentials"), ("result", "refused")];
        let before = gateway
            .metrics()
            .await
            .value("zeugma_reloads_total", &refused);
        gateway.signal(Signal::HUP);
        eventually("another look", async || {
            let metrics = gateway.metrics().await;
            (metrics.value("zeugma_reloads_total", &refused) > before).then_some(())
        })
        .await;
        assert_eq!(serial(&east, &caller).await, first, "{what}");
        assert_eq!(
            times_said(&gateway, CREDENTIALS_REFUSED),
            nth + 1,
            "{what}: {}",
            gateway.told()
        );
        write_in_place(path, whole);
        gateway
            .metric_becomes("zeugma_last_good_in_use", &[("kind", "credentials")], 0.0)
            .await;
        assert_eq!(serial(&east, &caller).await, first, "{what}");
    }
    for code in ["ZG0202", "ZG0203"] {
        let said = format!("{code} {CREDENTIALS_REFUSED}");
        gateway.message(&said).await;
    }
    // And a good one is taken.
    let second = east.renew();
    eventually("the new certificate", async || {
        (serial(&east, &caller).await == second).then_some(())
    })
    .await;
    gateway
        .message("ZG0201 certificate and bundles applied")
        .await;
    gateway.finish().await;
}

#[tokio::test]
async fn a_new_certificate_and_a_new_trust_domain_drop_nothing_that_is_open() {
    // A response whose frames the test sends; to others, an empty one.
    let (frames, streamed) = frames();
    let streamed = Mutex::new(Some(streamed));
    let service = Service::handling(move |_request| {
        let body = streamed.lock().unwrap().take().unwrap_or_else(empty);
        async move { Response::new(body) }
    })
    .await;
    let echo = Service::echo().await;
    let (east, mut west) = (Cluster::new("east"), Cluster::new("west"));
    let mut north = Cluster::of("north", Arc::new(Ca::new()));
    east.meet(&west);
    let from = "'spiffe://west.example/*', 'spiffe://north.example/*'";
    east.route("shop/orders", &spec(service.address, from));
    east.route(
        "shop/db",
        &format!(
            "
            protocol: tcp
            port: 5432
            inbound: terminate
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ from: [{from}] }}]
            export: {{ to: ['*'] }}",
            echo.address
        ),
    );
    // Known as a peer from the beginning, trusted later.
    east.peer(
        "north",
        &format!(
            "
            cluster: north
            locality: north/north-1
            gateways: ['{}']
            spiffeIDs: ['{}']",
            north.mesh,
            north.gateway_id()
        ),
    );
    let gateway = east.start().await;
    let caller = west.identity("ns/shop/sa/cart");
    let first = serial(&east, &caller).await;

    let dialled = caller.dial(east.mesh, ORDERS, &[b"h2"]);
    let mut sender = h2(within("a handshake", dialled).await.unwrap()).await;
    let request = Request::get(format!("http://{ORDERS}/"))
        .body(empty())
        .unwrap();
    let response = within("a response", sender.send_request(request))
        .await
        .unwrap();
    let mut body = response.into_body();
    let mut open = caller
        .dial(east.mesh, "db.shop.svc.clusterset.local", &[])
        .await
        .unwrap();
    open.write_all(b"before").await.unwrap();
    let mut six = [0; 6];
    within("an echo", open.read_exact(&mut six)).await.unwrap();

    // North is unknown to east, in whose bundles it is not.
    east.ca.write_bundle("east.example", &north.svid().bundles);
    let stranger = north.identity("ns/shop/sa/cart");
    let mut refused = stranger.dial(east.mesh, ORDERS, &[b"h2"]).await.unwrap();
    let error = within("an alert", refused.read_u8()).await.unwrap_err();
    assert_eq!(alert_of(&error), rustls::AlertDescription::UnknownCA);

    let second = east.renew();
    assert_ne!(first, second);
    north.ca.write_bundle("north.example", &east.svid().bundles);
    eventually("the new certificate", async || {
        (serial(&east, &caller).await == second).then_some(())
    })
    .await;
    let reached = eventually("north is trusted", async || {
        let mut sender = h2(stranger.dial(east.mesh, ORDERS, &[b"h2"]).await.ok()?).await;
        let request = Request::get(format!("http://{ORDERS}/"))
            .body(empty())
            .unwrap();
        Some(sender.send_request(request).await.ok()?.status())
    })
    .await;
    assert_eq!(reached, 200);

    // What was open goes on, both ways.
    frames.send(Bytes::from_static(b"after")).await.unwrap();
    let frame = within("a frame", body.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().unwrap(), "after");
    drop(frames);
    let rest = within("the end", body.collect()).await.unwrap();
    assert!(rest.to_bytes().is_empty());
    open.write_all(b"after!").await.unwrap();
    within("an echo", open.read_exact(&mut six)).await.unwrap();
    assert_eq!(&six, b"after!");
    open.shutdown().await.unwrap();
    within("the end", open.read_to_end(&mut Vec::new()))
        .await
        .unwrap();

    // A bundle that is taken away is no longer trusted.
    fs::remove_file(east.svid().bundles.join("north.example.json")).unwrap();
    eventually("north is not trusted", async || {
        let mut stream = stranger.dial(east.mesh, ORDERS, &[b"h2"]).await.ok()?;
        // Accepted, the first byte is of HTTP/2's settings.
        stream.read_u8().await.is_err().then_some(())
    })
    .await;
    drop(sender);
    gateway.finish().await;
}

#[tokio::test]
async fn a_change_of_the_files_is_applied_and_a_signal_looks_at_them() {
    let (east, _west, _service, gateway) = east_and_west().await;
    let other = Service::http("other").await;
    let before = gateway
        .metrics()
        .await
        .value("zeugma_config_generation", &[]);
    east.route(
        "shop/orders",
        &spec(other.address, "'spiffe://west.example/*'"),
    );
    gateway.signal(Signal::HUP);
    gateway
        .metric_becomes("zeugma_config_generation", &[], before + 1.0)
        .await;
    let reply = get(east.apps, ORDERS, "/").await;
    assert_eq!((reply.status, &*reply.text()), (200, "other"));
    // A route that is taken away is gone.
    fs::remove_file(east.config().join("shop-orders.yaml")).unwrap();
    gateway
        .metric_becomes("zeugma_config_generation", &[], before + 2.0)
        .await;
    assert_eq!(get(east.apps, ORDERS, "/").await.status, 404);
    gateway.finish().await;
}

#[tokio::test]
async fn nothing_a_gateway_tells_holds_a_secret() {
    let (east, mut west, _service, gateway) = east_and_west().await;
    let caller = west.identity("ns/shop/sa/cart");
    serial(&east, &caller).await;
    get(east.apps, ORDERS, "/").await;
    TcpStream::connect(east.mesh)
        .await
        .unwrap()
        .write_all(b"garbage")
        .await
        .unwrap();
    let key = fs::read_to_string(east.svid().key).unwrap();
    // A key that is refused is not shown either.
    write_in_place(&east.svid().key, &key.as_bytes()[..key.len() - 40]);
    gateway
        .metric_becomes("zeugma_last_good_in_use", &[("kind", "credentials")], 1.0)
        .await;
    // Nor the document in which somebody put one.
    east.write("oops.yaml", &format!("apiVersion: zeugma.dev/v1alpha1\nkind: MeshRoute\nmetadata: {{ name: a, namespace: b }}\nspec:\n  protocol: http\n  backends: []\n  secret: |\n{}", key.lines().map(|l| format!("    {l}\n")).collect::<String>()));
    gateway
        .metric_becomes("zeugma_last_good_in_use", &[("kind", "config")], 1.0)
        .await;

    let mut told = Vec::new();
    for page in [
        "/config_dump",
        "/clusters",
        "/certs",
        "/metrics",
        "/server_info",
        "/listeners",
        "/stats/prometheus",
        "/ready",
    ] {
        let reply = gateway.admin(page).await;
        assert_eq!(reply.status, 200, "{page}");
        told.push((page, reply.text()));
    }
    told.push(("what it wrote", gateway.told()));
    let lines: Vec<&str> = key
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    let base64 = lines.concat();
    for (page, text) in &told {
        assert!(!text.contains("PRIVATE KEY"), "{page}");
        assert!(!text.contains(east.ca.passphrase().trim()), "{page}");
        for at in (0..base64.len() - 16).step_by(4) {
            // The first 36 characters of such a file say what kind of key it is, no more.
            if at >= 48 {
                assert!(
                    !text.contains(&base64[at..at + 16]),
                    "{page}: {}",
                    &base64[at..at + 16]
                );
            }
        }
    }
    gateway.finish().await;
}

/// The bundle of one trust domain, where a document says it is.
#[tokio::test]
async fn a_trust_domain_that_a_document_names_is_trusted_as_long_as_it_does() {
    let service = Service::http("orders").await;
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    let mut north = Cluster::of("north", Arc::new(Ca::new()));
    east.meet(&west);
    east.route(
        "shop/orders",
        &spec(service.address, "'spiffe://north.example/*'"),
    );
    east.peer(
        "north",
        &format!(
            "
            cluster: north
            locality: north/north-1
            gateways: ['{}']
            spiffeIDs: ['{}']",
            north.mesh,
            north.gateway_id()
        ),
    );
    let gateway = east.start().await;
    east.ca.write_bundle("east.example", &north.svid().bundles);
    let stranger = north.identity("ns/shop/sa/cart");
    let is_let_in = async || {
        let mut stream = stranger.dial(east.mesh, ORDERS, &[b"h2"]).await.ok()?;
        // Accepted, the first byte is of HTTP/2's settings.
        stream.read_u8().await.ok()
    };
    assert!(is_let_in().await.is_none());
    // Beside the bundles, in a folder of its own.
    let foreign = east.config().join("foreign");
    fs::create_dir(&foreign).unwrap();
    north.ca.write_bundle("north.example", &foreign);
    let document = "apiVersion: zeugma.dev/v1alpha1\nkind: TrustDomain\n\
                    metadata: { name: north.example }\nspec: { bundle: foreign/north.example.json }\n";
    east.write("north.yaml", document);
    eventually("it is trusted", is_let_in).await;
    // The file is watched: another CA of the same trust domain.
    let bundle = foreign.join("north.example.json");
    let good = fs::read(&bundle).unwrap();
    Ca::new().write_bundle("north.example", &foreign);
    eventually("it is not trusted", async || {
        is_let_in().await.is_none().then_some(())
    })
    .await;
    fs::write(&bundle, good).unwrap();
    eventually("it is trusted again", is_let_in).await;
    // A restart knows it, too.
    gateway.finish().await;
    let gateway = east.start().await;
    assert!(is_let_in().await.is_some());
    fs::remove_file(east.config().join("north.yaml")).unwrap();
    eventually("it is not trusted any more", async || {
        is_let_in().await.is_none().then_some(())
    })
    .await;
    gateway.finish().await;
}
