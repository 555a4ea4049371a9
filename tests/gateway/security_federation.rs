//! Bundles that are fetched from where a trust domain serves them (SPIFFE Federation; the rules are
//! those of `spiffe.md` by number).

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::mesh::{Body, Ca, Cluster, Gateway, Identity, eventually, full};
use crate::security_pki::Domain;

const ORDERS: &str = "orders.shop.svc.clusterset.local";
const ENDPOINT: &str = "spiffe://north.example/ca";

/// What the endpoint answers for each path: a status, a `location`, a body.
type Answers = dyn Fn(&str) -> (u16, Option<String>, String) + Send + Sync;

/// A bundle endpoint; it ends when dropped.
struct Endpoint {
    address: SocketAddr,
    answers: Arc<Mutex<Arc<Answers>>>,
    asked: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Endpoint {
    /// One with this certificate, which asks its callers for none (F4).
    async fn new(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Self {
        let config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let nothing: Arc<Answers> = Arc::new(|_| (404, None, String::new()));
        let answers = Arc::new(Mutex::new(nothing));
        let asked = Arc::<AtomicUsize>::default();
        let (said, counted) = (Arc::clone(&answers), Arc::clone(&asked));
        let mut task = JoinSet::new();
        task.spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                // A caller that refuses us is gone.
                let Ok(tls) = acceptor.accept(tcp).await else {
                    continue;
                };
                let said = Arc::clone(&said.lock().unwrap_or_else(PoisonError::into_inner));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (status, location, body) = said(request.uri().path());
                    async move {
                        let mut response: Response<Body> = Response::new(full(body));
                        *response.status_mut() = status.try_into().unwrap();
                        if let Some(location) = location {
                            let location = location.parse().unwrap();
                            response.headers_mut().insert(header::LOCATION, location);
                        }
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                let builder = hyper::server::conn::http1::Builder::new();
                builder
                    .serve_connection(TokioIo::new(tls), service)
                    .await
                    .ok();
            }
        });
        Self {
            address,
            answers,
            asked,
            _task: task,
        }
    }

    /// One that has this SVID of `ca`.
    async fn spiffe(ca: &Ca, id: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
        ca.issue(id, &certificate, &key);
        let chain = CertificateDer::pem_file_iter(&certificate).unwrap();
        let chain = chain.map(Result::unwrap).collect();
        Self::new(chain, PrivateKeyDer::from_pem_file(&key).unwrap()).await
    }

    fn answer(
        &self,
        answers: impl Fn(&str) -> (u16, Option<String>, String) + Send + Sync + 'static,
    ) {
        let mut said = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *said = Arc::new(answers);
    }

    fn serve(&self, document: String) {
        self.answer(move |_| (200, None, document.clone()));
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// The bundle of `north.example` with the anchors of these CAs.
fn document(of: &[&Ca], sequence: Option<u64>) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = Vec::new();
    for ca in of {
        ca.write_bundle("north.example", folder.path());
        let text = fs::read_to_string(folder.path().join("north.example.json")).unwrap();
        let bundle: Value = serde_json::from_str(&text).unwrap();
        keys.extend(bundle["keys"].as_array().unwrap().clone());
    }
    let mut bundle = serde_json::json!({ "keys": keys, "spiffe_refresh_hint": 60 });
    if let Some(sequence) = sequence {
        bundle["spiffe_sequence"] = sequence.into();
    }
    bundle.to_string()
}

/// Two CAs of the trust domain `north.example`, and a caller of each.
struct North {
    old: Arc<Ca>,
    new: Arc<Ca>,
    old_caller: Identity,
    new_caller: Identity,
    _clusters: [Cluster; 2],
}

impl North {
    /// They trust east.
    fn new(east: &Cluster) -> Self {
        let [(old, a), (new, b)] = [(); 2].map(|()| {
            let ca = Arc::new(Ca::new());
            let north = Cluster::of("north", Arc::clone(&ca));
            east.ca.write_bundle("east.example", &north.svid().bundles);
            (ca, north)
        });
        let (mut a, mut b) = (a, b);
        Self {
            old,
            new,
            old_caller: a.identity("ns/shop/sa/cart"),
            new_caller: b.identity("ns/shop/sa/cart"),
            _clusters: [a, b],
        }
    }
}

/// East, which exports a route to its peer north.
fn east() -> Cluster {
    let east = Cluster::new("east");
    east.route(
        "shop/orders",
        "protocol: http\nbackends: [{ endpoints: ['127.0.0.1:1'] }]\n\
         allow: [{ from: ['spiffe://north.example/*'] }]\nexport: { to: ['*'] }",
    );
    east.peer(
        "north",
        "cluster: north\nlocality: north/north-1\ngateways: ['127.0.0.1:1']\n\
         spiffeIDs: ['spiffe://north.example/zeugma/gateway']",
    );
    east
}

fn trust(east: &Cluster, spec: &str) {
    let text = format!(
        "apiVersion: zeugma.dev/v1alpha1\nkind: TrustDomain\nmetadata: {{ name: north.example }}\n\
         spec: {{ {spec} }}\n"
    );
    east.write("north.yaml", &text);
}

/// Whether a caller is let in: accepted, the first byte is of HTTP/2's settings.
async fn is_let_in(caller: &Identity, east: &Cluster) -> Option<()> {
    let mut stream = caller.dial(east.mesh, ORDERS, &[b"h2"]).await.ok()?;
    stream.read_u8().await.ok().map(drop)
}

async fn until_let_in(caller: &Identity, east: &Cluster) {
    eventually("it is let in", async || is_let_in(caller, east).await).await;
}

async fn until_refused(caller: &Identity, east: &Cluster) {
    eventually("it is refused", async || {
        is_let_in(caller, east).await.is_none().then_some(())
    })
    .await;
}

/// Has the gateway ask anew, and waits for a finding of this code with these words.
async fn look(gateway: &Gateway, code: &str, words: &str) {
    gateway.signal(Signal::HUP);
    let mut last = Value::Null;
    let what = format!("{code} {words}");
    eventually(&what, async || {
        last = gateway.admin_json("/api/v1/findings").await["findings"].clone();
        let mut all = last.as_array()?.iter();
        let is_it = |one: &Value| {
            one["code"] == code && one["message"].as_str().is_some_and(|m| m.contains(words))
        };
        all.any(is_it).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_endpoint_with_an_svid_renews_its_bundle_and_never_goes_back() {
    let mut east = east();
    let north = North::new(&east);
    let endpoint = Endpoint::spiffe(&north.old, ENDPOINT).await;
    let first = east.config().join("north.json");
    fs::write(&first, document(&[&north.old], Some(1))).unwrap();
    trust(
        &east,
        &format!(
            "bundle: north.json, bundleEndpointURL: 'https://{}/bundle', \
             bundleEndpointProfile: {{ type: https_spiffe, endpointSPIFFEID: '{ENDPOINT}' }}",
            endpoint.address
        ),
    );
    // F8: the new key is told before it is used.
    endpoint.serve(document(&[&north.old, &north.new], Some(5)));
    east.set("workers", "1");
    let gateway = east.start().await;
    gateway.message("ZG0253 bundle fetched").await;
    until_let_in(&north.new_caller, &east).await;
    until_let_in(&north.old_caller, &east).await;

    // F12: neither an older one nor another one of the same number.
    endpoint.serve(document(&[&north.old], Some(4)));
    look(&gateway, "ZG0252", "its sequence went back from 5 to 4").await;
    endpoint.serve(document(&[&north.old], Some(5)));
    look(&gateway, "ZG0252", "its sequence is 5 as before").await;
    endpoint.serve(document(&[&north.old], None));
    look(&gateway, "ZG0252", "it has no sequence").await;
    assert!(is_let_in(&north.new_caller, &east).await.is_some());
    let metrics = gateway.metrics().await;
    let labels = [("trust_domain", "north.example"), ("result", "refused")];
    assert!(metrics.value("zeugma_bundle_fetches_total", &labels) >= 3.0);

    // A restart begins with what was fetched, not with what the operator wrote at first; and an
    // endpoint that is away takes nothing from it.
    gateway.finish().await;
    endpoint.answer(|_| (503, None, String::new()));
    let gateway = east.start().await;
    assert!(is_let_in(&north.new_caller, &east).await.is_some());
    look(&gateway, "ZG0251", "answered 503").await;
    assert!(is_let_in(&north.new_caller, &east).await.is_some());

    // F9, B1: the old key is gone, and with it the certificate of the endpoint itself (F6: by the
    // newest bundle, whatever the operator's file says).
    endpoint.serve(document(&[&north.new], Some(6)));
    gateway.signal(Signal::HUP);
    until_refused(&north.old_caller, &east).await;
    assert!(is_let_in(&north.new_caller, &east).await.is_some());
    look(&gateway, "ZG0251", "is not verified").await;

    // The operator's word, newer than any that was fetched, takes its place.
    fs::write(&first, document(&[&north.old], Some(9))).unwrap();
    until_let_in(&north.old_caller, &east).await;
    until_refused(&north.new_caller, &east).await;
    endpoint.serve(document(&[&north.old, &north.new], Some(10)));
    gateway.signal(Signal::HUP);
    until_let_in(&north.new_caller, &east).await;
    assert_eq!(
        gateway.admin_json("/api/v1/findings").await["findings"],
        Value::Array(Vec::new())
    );
    gateway.finish().await;
}

#[tokio::test]
async fn only_the_spiffe_id_that_is_expected_is_believed() {
    let east = east();
    let north = North::new(&east);
    // An SVID of the same trust domain, and one of another CA.
    let other = Endpoint::spiffe(&north.old, "spiffe://north.example/other").await;
    let forged = Endpoint::spiffe(&north.new, ENDPOINT).await;
    fs::write(
        east.config().join("north.json"),
        document(&[&north.old], None),
    )
    .unwrap();
    let expect = |address: SocketAddr| {
        trust(
            &east,
            &format!(
                "bundle: north.json, bundleEndpointURL: 'https://{address}/', \
                 bundleEndpointProfile: {{ type: https_spiffe, endpointSPIFFEID: '{ENDPOINT}' }}"
            ),
        );
    };
    let both = document(&[&north.old, &north.new], Some(5));
    other.serve(both.clone());
    forged.serve(both.clone());
    expect(other.address);
    let gateway = east.start().await;
    look(&gateway, "ZG0251", "expected spiffe://north.example/ca").await;
    expect(forged.address);
    let forged_at = forged.address.to_string();
    look(&gateway, "ZG0251", &forged_at).await;
    assert!(other.asked() > 0 && forged.asked() > 0);
    assert!(is_let_in(&north.new_caller, &east).await.is_none());
    // A redirect is held to the same profile and the same ID (F7).
    let good = Endpoint::spiffe(&north.old, ENDPOINT).await;
    let to = format!("https://{forged_at}/");
    good.answer(move |_| (302, Some(to.clone()), String::new()));
    expect(good.address);
    look(
        &gateway,
        "ZG0251",
        &format!("https://{forged_at}/ is not verified"),
    )
    .await;
    assert!(is_let_in(&north.new_caller, &east).await.is_none());
    good.serve(both);
    gateway.signal(Signal::HUP);
    until_let_in(&north.new_caller, &east).await;
    gateway.finish().await;
}

/// An authority for the web, and a site's certificate by it.
struct Web {
    folder: TempDir,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Web {
    fn new(site: &str) -> Self {
        let root_key = rcgen::KeyPair::generate().unwrap();
        let mut root = rcgen::CertificateParams::default();
        root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = root.self_signed(&root_key).unwrap();
        let issuer = rcgen::Issuer::new(root, root_key);
        let key = rcgen::KeyPair::generate().unwrap();
        let leaf = rcgen::CertificateParams::new([site.to_owned()]).unwrap();
        let leaf = leaf.signed_by(&key, &issuer).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("roots.pem"), certificate.pem()).unwrap();
        Self {
            folder,
            chain: vec![leaf.der().clone()],
            key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        }
    }

    fn roots(&self) -> PathBuf {
        self.folder.path().join("roots.pem")
    }

    async fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.chain.clone(), self.key.clone_key()).await
    }
}

async fn start(east: &Cluster, roots: &Path) -> Gateway {
    let variable = format!("SSL_CERT_FILE={}", roots.display());
    east.start_under(&["env", &variable]).await
}

fn over_web(east: &Cluster, host: &str, port: u16) {
    trust(
        east,
        &format!(
            "bundleEndpointURL: 'https://{host}:{port}/bundle', \
             bundleEndpointProfile: {{ type: https_web }}"
        ),
    );
}

#[tokio::test]
async fn a_web_endpoint_needs_no_first_bundle_and_what_it_does_wrong_is_told() {
    let east = east();
    let north = North::new(&east);
    let web = Web::new("localhost");
    let endpoint = web.endpoint().await;
    let port = endpoint.address.port();
    over_web(&east, "localhost", port);
    let gateway = start(&east, &web.roots()).await;
    look(&gateway, "ZG0251", "answered 404").await;
    assert!(is_let_in(&north.new_caller, &east).await.is_none());

    let good = document(&[&north.new], Some(2));
    let served = good.clone();
    // F7: five temporary redirects, by path and by URL.
    endpoint.answer(move |path| {
        let next = |to: &str| (307, Some(to.to_owned()), String::new());
        match path {
            "/bundle" => next("/1"),
            "/1" => next(&format!("https://localhost:{port}/2")),
            "/2" => next("/3"),
            "/3" => next("/4"),
            "/4" => next("/5"),
            _ => (200, None, served.clone()),
        }
    });
    gateway.signal(Signal::HUP);
    until_let_in(&north.new_caller, &east).await;
    let labels = [("trust_domain", "north.example"), ("result", "new")];
    gateway
        .metric_becomes("zeugma_bundle_fetches_total", &labels, 1.0)
        .await;

    let plain = format!("http://localhost:{port}/bundle");
    let over = format!("{good}{}", " ".repeat(1 << 20));
    let two = document(&[&north.new, &north.old], Some(3));
    let long = format!("http://localhost/{}", "a".repeat(4000));
    for (answer, words) in [
        ((302, Some("/bundle".to_owned()), ""), "over 5 redirects"),
        ((302, Some(long), ""), "aaa ...`: "),
        ((301, Some("/other".to_owned()), ""), "answered 301"),
        ((302, None, ""), "it does not say where"),
        ((302, Some(plain), ""), "does not begin with `https://`"),
        (
            (302, Some("https://u@localhost/".to_owned()), ""),
            "no user",
        ),
        ((200, None, "[]"), "not a SPIFFE bundle"),
        ((200, None, &*over), "over 1 MiB"),
        // F12: two values for one name; which would count?
        (
            (200, None, &*two.replacen('{', "{\"keys\":[],", 1)),
            "duplicate field",
        ),
    ] {
        let (status, location, body) = (answer.0, answer.1, answer.2.to_owned());
        endpoint.answer(move |_| (status, location.clone(), body.clone()));
        look(&gateway, "ZG0251", words).await;
    }
    assert!(is_let_in(&north.new_caller, &east).await.is_some());
    // Another name than the certificate's.
    over_web(&east, "127.0.0.1", port);
    look(&gateway, "ZG0251", "is not verified").await;
    endpoint.serve(two);
    look(&gateway, "ZG0251", "is not verified").await;
    assert!(is_let_in(&north.old_caller, &east).await.is_none());
    gateway.finish().await;

    // Another authority.
    over_web(&east, "localhost", port);
    let other = Web::new("localhost");
    let gateway = start(&east, &other.roots()).await;
    look(&gateway, "ZG0251", "is not verified").await;
    assert!(
        is_let_in(&north.new_caller, &east).await.is_some(),
        "it was kept"
    );
    gateway.finish().await;
    // What was kept is damaged: there is nothing to begin with.
    let kept = east
        .config()
        .join("state/east-gw/bundle-north.example.json");
    fs::write(&kept, "{").unwrap();
    let gateway = start(&east, Path::new("/nowhere")).await;
    gateway.message("ZG0254 the bundle that was kept").await;
    assert!(is_let_in(&north.new_caller, &east).await.is_none());
    look(&gateway, "ZG0251", "/nowhere").await;
    gateway.finish().await;
}

#[tokio::test]
async fn without_its_trust_domain_what_was_fetched_counts_no_more() {
    let east = east();
    let north = North::new(&east);
    let web = Web::new("localhost");
    let endpoint = web.endpoint().await;
    endpoint.serve(document(&[&north.new], Some(2)));
    over_web(&east, "localhost", endpoint.address.port());
    let gateway = start(&east, &web.roots()).await;
    until_let_in(&north.new_caller, &east).await;
    fs::remove_file(east.config().join("north.yaml")).unwrap();
    until_refused(&north.new_caller, &east).await;
    gateway.finish().await;
}

/// A trust domain beside the others, with keys that the test holds: it can revoke.
fn revoking(east: &mut Cluster) -> (Domain, [Identity; 2], [u8; 2], PathBuf) {
    let north = Domain::new("north.example");
    north.write_bundle(east);
    let cart = north.issue(east, "ns/shop/sa/cart");
    let pay = north.issue(east, "ns/shop/sa/pay");
    fs::remove_file(east.svid().bundles.join("north.example.pem")).unwrap();
    let crls = east.config().join("crls");
    fs::create_dir(&crls).unwrap();
    east.trusting("crls: crls/");
    east.write_gateway();
    (north, [cart.identity, pay.identity], cart.serial, crls)
}

#[tokio::test]
async fn a_start_leaves_out_no_more_than_the_trust_domain_that_cannot_be_used() {
    const DUE: time::Duration = time::Duration::hours(12);
    let mut east = east();
    let (north, [cart, pay], serial, crls) = revoking(&mut east);
    let web = Web::new("localhost");
    let endpoint = web.endpoint().await;
    let port = endpoint.address.port();

    // Its list is there, and its bundle is still to be fetched.
    north.write_crl(&crls, &north.crl(7, &[serial], DUE));
    over_web(&east, "localhost", port);
    let gateway = start(&east, &web.roots()).await;
    gateway
        .message("no bundle of trust domain north.example")
        .await;
    gateway
        .metric_becomes("zeugma_last_good_in_use", &[("kind", "credentials")], 1.0)
        .await;
    endpoint.serve(north.document(1));
    gateway.signal(Signal::HUP);
    until_let_in(&pay, &east).await;
    assert!(is_let_in(&cart, &east).await.is_none());
    gateway
        .metric_becomes("zeugma_last_good_in_use", &[("kind", "credentials")], 0.0)
        .await;
    let numbers = east.config().join("state/east-gw/crl-numbers");
    eventually("the numbers", async || numbers.is_file().then_some(())).await;
    gateway.finish().await;

    // The operator's file is broken: what was fetched serves.
    endpoint.answer(|_| (503, None, String::new()));
    fs::write(east.config().join("north.json"), "{").unwrap();
    trust(
        &east,
        &format!(
            "bundle: north.json, bundleEndpointURL: 'https://localhost:{port}/bundle', \
             bundleEndpointProfile: {{ type: https_web }}"
        ),
    );
    let gateway = start(&east, &web.roots()).await;
    let said = gateway.message("north.json: not a SPIFFE bundle").await;
    assert!(said.contains("ZG0203"), "{said}");
    assert!(is_let_in(&pay, &east).await.is_some());
    assert!(is_let_in(&cart, &east).await.is_none());
    gateway.finish().await;

    // R9: an older list, at the start and after it; nobody of it is let in.
    north.write_crl(&crls, &north.crl(6, &[], DUE));
    let gateway = start(&east, &web.roots()).await;
    gateway.message("crlNumber 06 after 07").await;
    assert!(is_let_in(&pay, &east).await.is_none());
    north.write_crl(&crls, &north.crl(5, &[], DUE));
    gateway.message("crlNumber 05 after 07").await;
    assert!(is_let_in(&cart, &east).await.is_none());
    north.write_crl(&crls, &north.crl(8, &[serial], DUE));
    until_let_in(&pay, &east).await;
    assert!(is_let_in(&cart, &east).await.is_none());
    gateway.finish().await;
}

/// Has the gateway load its credentials anew.
async fn reload(gateway: &Gateway) {
    let loads = async || {
        let metrics = gateway.metrics().await;
        let of = |result| {
            metrics.value(
                "zeugma_reloads_total",
                &[("what", "credentials"), ("result", result)],
            )
        };
        ["applied", "refused"].map(of).iter().sum::<f64>()
    };
    let before = loads().await;
    gateway.signal(Signal::HUP);
    eventually("another load", async || {
        (loads().await > before).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_bundle_that_is_only_numbered_anew_closes_nothing() {
    let east = east();
    let north = North::new(&east);
    let web = Web::new("localhost");
    let endpoint = web.endpoint().await;
    endpoint.serve(document(&[&north.old, &north.new], Some(1)));
    over_web(&east, "localhost", endpoint.address.port());
    let gateway = start(&east, &web.roots()).await;
    until_let_in(&north.new_caller, &east).await;
    let applied = || {
        let said = gateway.messages_so_far();
        said.iter().filter(|line| line.contains("ZG0201")).count()
    };
    let before = applied();
    // In another order, too; as a trust domain does that takes the time for its number.
    endpoint.serve(document(&[&north.new, &north.old], Some(1_790_000_000)));
    gateway.signal(Signal::HUP);
    let labels = [("trust_domain", "north.example"), ("result", "new")];
    let fetches = "zeugma_bundle_fetches_total";
    gateway.metric_becomes(fetches, &labels, 2.0).await;
    reload(&gateway).await;
    assert_eq!(applied(), before, "{}", gateway.told());
    // Its number holds all the same.
    endpoint.serve(document(&[&north.old], Some(1_789_999_999)));
    look(&gateway, "ZG0252", "its sequence went back").await;
    gateway.finish().await;
}

#[tokio::test]
async fn of_two_bundles_of_a_trust_domain_what_is_fetched_is_not_taken() {
    let east = east();
    let north = North::new(&east);
    let web = Web::new("localhost");
    let endpoint = web.endpoint().await;
    endpoint.serve(document(&[&north.new], Some(2)));
    let bundles = east.svid().bundles;
    north.old.write_bundle("north.example", &bundles);
    let gateway = start(&east, &web.roots()).await;
    until_let_in(&north.old_caller, &east).await;
    over_web(&east, "localhost", endpoint.address.port());
    let twice = "second bundle of trust domain north.example";
    gateway.message(twice).await;
    gateway.message("ZG0253 bundle fetched").await;
    reload(&gateway).await;
    assert!(is_let_in(&north.new_caller, &east).await.is_none());
    assert!(is_let_in(&north.old_caller, &east).await.is_some());
    gateway.finish().await;
    // At the start there is none that was good before.
    let gateway = start(&east, &web.roots()).await;
    gateway.message(twice).await;
    assert!(is_let_in(&north.new_caller, &east).await.is_none());
    assert!(is_let_in(&north.old_caller, &east).await.is_none());
    fs::remove_file(bundles.join("north.example.json")).unwrap();
    until_let_in(&north.new_caller, &east).await;
    assert!(is_let_in(&north.old_caller, &east).await.is_none());
    gateway.finish().await;
}

#[tokio::test]
async fn a_trust_domain_that_comes_later_begins_with_what_was_kept_until_that_is_removed() {
    let east = east();
    let north = North::new(&east);
    let web = Web::new("localhost");
    let endpoint = web.endpoint().await;
    let port = endpoint.address.port();
    endpoint.serve(document(&[&north.new], Some(5)));
    over_web(&east, "localhost", port);
    let gateway = start(&east, &web.roots()).await;
    until_let_in(&north.new_caller, &east).await;
    let kept = east
        .config()
        .join("state/east-gw/bundle-north.example.json");
    eventually("it is kept", async || kept.is_file().then_some(())).await;
    gateway.finish().await;

    fs::remove_file(east.config().join("north.yaml")).unwrap();
    let gateway = start(&east, &web.roots()).await;
    assert!(is_let_in(&north.new_caller, &east).await.is_none());
    endpoint.serve(document(&[&north.old], Some(4)));
    over_web(&east, "localhost", port);
    look(&gateway, "ZG0252", "its sequence went back from 5 to 4").await;
    until_let_in(&north.new_caller, &east).await;
    assert!(is_let_in(&north.old_caller, &east).await.is_none());

    // The operator's word.
    fs::remove_file(&kept).unwrap();
    gateway.signal(Signal::HUP);
    gateway.message("ZG0255 what was kept of the bundle").await;
    until_let_in(&north.old_caller, &east).await;
    until_refused(&north.new_caller, &east).await;
    gateway.finish().await;
}

#[tokio::test]
async fn the_first_look_is_verified_by_the_bundle_that_came_with_it() {
    let east = east();
    let north = North::new(&east);
    let endpoint = Endpoint::spiffe(&north.old, ENDPOINT).await;
    endpoint.serve(document(&[&north.old, &north.new], Some(2)));
    let gateway = east.start().await;
    let first = document(&[&north.old], Some(1));
    fs::write(east.config().join("north.json"), first).unwrap();
    trust(
        &east,
        &format!(
            "bundle: north.json, bundleEndpointURL: 'https://{}/', \
             bundleEndpointProfile: {{ type: https_spiffe, endpointSPIFFEID: '{ENDPOINT}' }}",
            endpoint.address
        ),
    );
    gateway.message("ZG0253 bundle fetched").await;
    assert!(!gateway.told().contains("ZG0251"), "{}", gateway.told());
    until_let_in(&north.new_caller, &east).await;
    gateway.finish().await;
}
