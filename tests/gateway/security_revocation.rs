//! Certificates that a CRL names and identities that a list denies, at a gateway's ports; and the
//! files that say so when they are old, foreign or broken.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use rustls::AlertDescription;
use time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::mesh::{
    Cluster, Gateway, Identity, Service, alert_of, collect, empty, eventually, h2, within,
};
use crate::security_pki::{Domain, INTERMEDIATE};

const ORDERS: &str = "orders.shop.svc.clusterset.local";
const DUE: Duration = Duration::hours(12);

/// East trusts west, and lets everybody of it call.
struct World {
    east: Cluster,
    west: Domain,
    _service: Service,
    gateway: Gateway,
}

impl World {
    async fn new(protocol: &str, service: Service, more: &str) -> Self {
        let west = Domain::new("west.example");
        let mut east = Cluster::new("east");
        west.write_bundle(&east);
        east.peer(
            "west",
            "
            cluster: west
            locality: west/west-1
            gateways: ['127.0.0.1:1']
            attests: [west.example]
            spiffeIDs: ['spiffe://west.example/zeugma/gateway']",
        );
        fs::create_dir(east.config().join("crls")).unwrap();
        fs::write(east.config().join("denied"), "").unwrap();
        east.trusting("crls: crls/, denied: denied");
        let spec = format!(
            "
            protocol: {protocol}
            {more}
            inbound: terminate
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ from: ['spiffe://west.example/*'] }}, {{ from: ['spiffe://west.example/*'], via: [west] }}]
            export: {{ to: [west] }}",
            service.address
        );
        east.route("shop/orders", &spec);
        let gateway = east.start().await;
        Self {
            east,
            west,
            _service: service,
            gateway,
        }
    }

    async fn tcp() -> Self {
        Self::new("tcp", Service::echo().await, "port: 5432").await
    }

    fn crls(&self) -> PathBuf {
        self.east.config().join("crls")
    }

    /// An open connection that has echoed.
    async fn dial(&self, who: &Identity) -> impl AsyncRead + AsyncWrite + Unpin + use<> {
        let tcp = TcpStream::connect(self.east.mesh).await.unwrap();
        let mut stream = who.dial_over(tcp, ORDERS, &[]).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        assert_eq!(within("an echo", stream.read_u8()).await.unwrap(), b'x');
        stream
    }

    /// Calls, and reads what comes back: an echo, or the alert of a refusal and its line.
    async fn call(&self, who: &Identity) -> Result<(), (AlertDescription, serde_json::Value)> {
        let tcp = TcpStream::connect(self.east.mesh).await.unwrap();
        let source = tcp.local_addr().unwrap();
        let dialled = who.dial_over(tcp, ORDERS, &[]);
        let mut stream = within("a handshake", dialled).await.unwrap();
        stream.write_all(b"x").await.ok();
        match within("an answer", stream.read_u8()).await {
            Ok(byte) => {
                assert_eq!(byte, b'x');
                Ok(())
            }
            // It was let in, and the change that came then cut it off.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset
                ) =>
            {
                let line = self.gateway.connection(source).await;
                assert!(line.get("tls.alert").is_none(), "{line}");
                Ok(())
            }
            Err(error) => Err((alert_of(&error), self.gateway.connection(source).await)),
        }
    }

    /// Calls until it is refused, and returns how.
    async fn is_refused(&self, who: &Identity) -> (AlertDescription, serde_json::Value) {
        eventually("a refusal", async || self.call(who).await.err()).await
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_in_the_handshake_by_a_rule_of_its_own() {
    let world = World::tcp().await;
    let leaf = world.west.issue(&world.east, "ns/shop/sa/leaf");
    let deep = world.west.issue_deep(&world.east, "ns/shop/sa/deep");
    let other = world.west.issue(&world.east, "ns/shop/sa/other");
    // Twice: the second time its chain is known.
    for who in [&leaf, &deep, &other, &leaf, &deep, &other] {
        world.call(&who.identity).await.unwrap();
    }
    let crl = world.west.crl(1, &[leaf.serial, INTERMEDIATE], DUE);
    world.west.write_crl(&world.crls(), &crl);
    for who in [&leaf, &deep] {
        let (alert, line) = world.is_refused(&who.identity).await;
        assert_eq!(alert, AlertDescription::CertificateRevoked);
        assert_eq!(line["verdict"], "certificate-revoked", "{line}");
        assert_eq!(line["policy.rule"], "revoked", "{line}");
        assert_eq!(line["tls.alert"], "certificate_revoked", "{line}");
    }
    world.call(&other.identity).await.unwrap();
    let labels = [("side", "downstream"), ("rule", "revoked")];
    let metrics = world.gateway.metrics().await;
    let counted = metrics.value("zeugma_certificates_refused_total", &labels);
    assert_eq!(counted, 2.0);
    world.gateway.finish().await;
}

/// RFC 5280 §6.3.3: the list of who issued the leaf counts, below an anchor too.
#[tokio::test]
async fn a_list_of_an_intermediate_counts_where_its_own_certificate_leads_to_an_anchor() {
    let world = World::tcp().await;
    let deep = world.west.issue_deep(&world.east, "ns/shop/sa/deep");
    let other = world.west.issue_deep(&world.east, "ns/shop/sa/other");
    // Of another issuer, with the same serial: it is not the one that the list names.
    let twin = world
        .west
        .issue_again(&world.east, "ns/shop/sa/twin", deep.serial);
    let mut relayed = world.dial(&deep.identity).await;
    let list = |number, serials: &[[u8; 2]]| world.west.crl_deep(number, serials, DUE);

    // By itself nobody knows whose it is.
    world
        .west
        .write_crl(&world.crls(), &list(1, &[deep.serial]));
    let said = world.gateway.message("CRL 0 is not signed by").await;
    assert!(said.contains("last good"), "{said}");
    world.call(&deep.identity).await.unwrap();
    // The intermediate of another CA of the same names.
    let stranger = Domain::new("west.example");
    let foreign = stranger.crl_deep(1, &[deep.serial], DUE) + &stranger.intermediate();
    world.west.write_crl(&world.crls(), &foreign);
    world.gateway.message("CRL 0 is not signed by").await;
    world.call(&deep.identity).await.unwrap();

    let both = list(7, &[deep.serial]) + &world.west.intermediate() + &world.west.crl(1, &[], DUE);
    world.west.write_crl(&world.crls(), &both);
    let (alert, line) = world.is_refused(&deep.identity).await;
    assert_eq!(alert, AlertDescription::CertificateRevoked);
    assert_eq!(line["verdict"], "certificate-revoked", "{line}");
    // What was open by then is ended.
    assert!(within("an end", relayed.read_u8()).await.is_err());
    world.call(&other.identity).await.unwrap();
    world.call(&twin.identity).await.unwrap();

    // R9 holds for it, over a time without its list too.
    world
        .west
        .write_crl(&world.crls(), &world.west.crl(2, &[], DUE));
    eventually("no list", async || world.call(&deep.identity).await.ok()).await;
    let older = list(6, &[]) + &world.west.intermediate();
    world.west.write_crl(&world.crls(), &older);
    world.gateway.message("crlNumber 06 after 07").await;
    world.gateway.finish().await;
}

/// A path around the anchor is no way around its CRL: while the root is trusted too, the chain with
/// the cross certificate leads there as well.
#[tokio::test]
async fn a_revoked_certificate_is_refused_on_every_path_to_an_anchor() {
    let world = World::tcp().await;
    let crossed = world.west.issue_crossed(&world.east, "ns/shop/sa/crossed");
    let direct = world.west.issue(&world.east, "ns/shop/sa/direct");
    for who in [&crossed, &direct] {
        world.call(&who.identity).await.unwrap();
    }
    let mut relayed = world.dial(&crossed.identity).await;
    world.west.write_bundle_with_root(&world.east);
    let crl = world.west.crl(1, &[crossed.serial], DUE);
    world.west.write_crl(&world.crls(), &crl);
    let (alert, line) = world.is_refused(&crossed.identity).await;
    assert_eq!(alert, AlertDescription::CertificateRevoked);
    assert_eq!(line["policy.rule"], "revoked", "{line}");
    // What was open by then is ended, however its chain was verified.
    assert!(within("an end", relayed.read_u8()).await.is_err());
    world.call(&direct.identity).await.unwrap();
}

#[tokio::test]
async fn a_denied_identity_is_refused_in_the_handshake_and_let_in_again_when_it_is_taken_off() {
    let world = World::tcp().await;
    let cart = world.west.issue(&world.east, "ns/shop/sa/cart");
    let other = world.west.issue(&world.east, "ns/pay/sa/other");
    world.call(&cart.identity).await.unwrap();
    let list = "# all of shop\n\nspiffe://west.example/ns/shop/*\n";
    world.east.write("denied", list);
    let (alert, line) = world.is_refused(&cart.identity).await;
    assert_eq!(alert, AlertDescription::AccessDenied);
    assert_eq!(line["verdict"], "identity-denied", "{line}");
    assert_eq!(line["policy.rule"], "denied-id", "{line}");
    let error = line["error"].as_str().unwrap();
    assert!(error.contains("denied:3"), "{line}");
    let told = (world.gateway)
        .admin_json(
            "/api/v1/explain?host=orders.shop.svc.clusterset.local&listener=mesh\
             &from=spiffe://west.example/ns/shop/sa/cart",
        )
        .await;
    let told = &told["explanation"];
    assert_eq!(told["reason"], "identity-denied", "{told}");
    assert!(
        told["deny_list"].as_str().unwrap().ends_with("denied:3"),
        "{told}"
    );
    // Files alone say the same, and of whom no bundle is.
    let offline = |from: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_zeugma"))
            .args([
                "explain",
                "route",
                "--offline",
                "-o",
                "json",
                "--listener",
                "mesh",
            ])
            .args([
                "--from",
                from,
                "orders.shop.svc.clusterset.local",
                "--config",
            ])
            .arg(world.east.config())
            .output()
            .unwrap();
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let told = offline("spiffe://west.example/ns/shop/sa/cart");
    assert_eq!(told["reason"], "identity-denied", "{told}");
    assert!(
        told["deny_list"].as_str().unwrap().ends_with("denied:3"),
        "{told}"
    );
    assert_eq!(told["trust"]["applied"], true, "{told}");
    let told = offline("spiffe://nobody.example/ns/shop/sa/cart");
    assert_eq!(told["reason"], "certificate-refused", "{told}");
    let told = offline("spiffe://west.example/ns/pay/sa/cart");
    assert_eq!(told["carried"], true, "{told}");
    world.call(&other.identity).await.unwrap();
    // A line that names nobody: told with file and line, and the last good list serves.
    world
        .east
        .write("denied", "spiffe://west.example/ns/pay/*\nnobody\n");
    let said = world.gateway.message("denied:2: not a SPIFFE ID").await;
    assert!(
        said.contains("ZG0205 certificate or bundles refused; the last good"),
        "{said}"
    );
    world.call(&other.identity).await.unwrap();
    world.is_refused(&cart.identity).await;
    world.east.write("denied", "");
    eventually("let in again", async || {
        world.call(&cart.identity).await.ok()
    })
    .await;
    world.gateway.finish().await;
}

#[tokio::test]
async fn an_identity_that_is_handed_on_is_denied_as_if_it_called_itself() {
    let service = Service::http("orders").await;
    let world = World::new("http", service, "port: 80").await;
    let west = world.west.issue(&world.east, "zeugma/gateway").identity;
    let dialled = west.dial(world.east.mesh, ORDERS, &[b"h2"]);
    let mut sender = h2(within("a handshake", dialled).await.unwrap()).await;
    let mut ask = async |who: &str| {
        let request = http::Request::get(format!("http://{ORDERS}/"))
            .header(
                "x-forwarded-client-cert",
                format!("URI=spiffe://west.example/{who}"),
            )
            .body(empty())
            .unwrap();
        collect(
            within("a response", sender.send_request(request))
                .await
                .unwrap(),
        )
        .await
    };
    assert_eq!(ask("ns/shop/sa/cart").await.status, 200);
    let list = "spiffe://west.example/ns/shop/sa/cart\n";
    world.east.write("denied", list);
    let denied = eventually("the list", async || {
        let reply = ask("ns/shop/sa/cart").await;
        (reply.status == 403).then_some(reply)
    })
    .await;
    let id = denied.header("x-request-id");
    let line = world.gateway.log(|line| line["request.id"] == *id).await;
    assert_eq!(line["verdict"], "identity-denied", "{line}");
    let rule = line["policy.rule"].as_str().unwrap();
    assert!(rule.ends_with("denied:1"), "{line}");
    // The gateway that hands on, and whom else it hands on, go on.
    assert_eq!(ask("ns/shop/sa/pay").await.status, 200);
    world.gateway.finish().await;
}

#[tokio::test]
async fn crls_that_are_old_foreign_or_broken_leave_the_last_good_one() {
    let world = World::tcp().await;
    let cart = world.west.issue(&world.east, "ns/shop/sa/cart");
    let pay = world.west.issue(&world.east, "ns/shop/sa/pay");
    let other = Domain::new("west.example");
    let good = world.west.crl(7, &[cart.serial], DUE);
    world.west.write_crl(&world.crls(), &good);
    world.is_refused(&cart.identity).await;
    let path = "crls/west.example.pem";
    for (bad, said) in [
        // R9: an older one would bring a revoked certificate back.
        (world.west.crl(6, &[], DUE), "crlNumber 06 after 07"),
        // The same number and other content.
        (world.west.crl(7, &[], DUE), "crlNumber 07 after 07"),
        (other.crl(8, &[], DUE), "not signed by an anchor"),
        (
            good.replace("\nMI", "\nAA"),
            "west.example.pem: CRL 0 cannot be used",
        ),
        (
            good[..good.len() / 2].to_owned(),
            "west.example.pem: not PEM",
        ),
        ("nothing\n".to_owned(), "no CRL in it"),
    ] {
        world.west.write_crl(&world.crls(), &bad);
        let line = world.gateway.message(said).await;
        assert!(
            line.contains(path)
                && line.contains("ZG0204 certificate or bundles refused; the last good"),
            "{line}"
        );
        let (alert, _) = world.call(&cart.identity).await.unwrap_err();
        assert_eq!(alert, AlertDescription::CertificateRevoked, "{said}");
        world.call(&pay.identity).await.unwrap();
        world
            .gateway
            .metric_becomes("zeugma_last_good_in_use", &[("kind", "credentials")], 1.0)
            .await;
    }
    // The next one is taken.
    let next = world.west.crl(9, &[pay.serial], DUE);
    world.west.write_crl(&world.crls(), &next);
    world.is_refused(&pay.identity).await;
    world.call(&cart.identity).await.unwrap();
    world.gateway.finish().await;
}

/// Whoever runs another trust domain must not be able to hold up what this one revokes.
#[tokio::test]
async fn a_broken_bundle_of_another_trust_domain_holds_up_no_revocation() {
    let world = World::tcp().await;
    let cart = world.west.issue(&world.east, "ns/shop/sa/cart");
    world.call(&cart.identity).await.unwrap();
    let bundles = world.crls().with_file_name("bundles");
    fs::write(bundles.join("acme.example.pem"), "half of it\n").unwrap();
    let line = world.gateway.message("acme.example.pem").await;
    assert!(line.contains("all else is applied"), "{line}");
    let list = world.west.crl(7, &[cart.serial], DUE);
    world.west.write_crl(&world.crls(), &list);
    let (alert, _) = world.is_refused(&cart.identity).await;
    assert_eq!(alert, AlertDescription::CertificateRevoked);
    // It is told for as long as it is so.
    let refused = [("kind", "credentials")];
    let in_use = "zeugma_last_good_in_use";
    world.gateway.metric_becomes(in_use, &refused, 1.0).await;
    fs::remove_file(bundles.join("acme.example.pem")).unwrap();
    world.gateway.metric_becomes(in_use, &refused, 0.0).await;
    world.gateway.finish().await;
}

/// R9: neither a restart nor a file that was away meanwhile brings an older list back.
#[tokio::test]
async fn a_crl_that_is_older_than_the_newest_ever_used_is_refused() {
    let world = World::tcp().await;
    let cart = world.west.issue(&world.east, "ns/shop/sa/cart");
    let write = |number, serials: &[[u8; 2]]| {
        let pem = world.west.crl(number, serials, DUE);
        world.west.write_crl(&world.crls(), &pem);
    };
    write(7, &[cart.serial]);
    world.is_refused(&cart.identity).await;
    fs::remove_file(world.crls().join("west.example.pem")).unwrap();
    eventually("no list", async || world.call(&cart.identity).await.ok()).await;
    write(6, &[]);
    world.gateway.message("crlNumber 06 after 07").await;
    let numbers = world.east.config().join("state/east-gw/crl-numbers");
    eventually("the numbers", async || numbers.is_file().then_some(())).await;
    world.gateway.finish().await;
    let refused = Gateway::try_start(&world.east.config());
    assert_eq!(refused.status.code(), Some(65), "{refused:?}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("crlNumber 06 after 07"), "{said}");
    let newer = world.west.crl(8, &[cart.serial], DUE);
    let folder = world.east.config().join("crls");
    world.west.write_crl(&folder, &newer);
    world.east.start().await.finish().await;
}

#[tokio::test]
async fn a_crl_past_its_time_alarms_and_a_day_later_its_trust_domain_is_refused() {
    let world = World::tcp().await;
    let cart = world.west.issue(&world.east, "ns/shop/sa/cart");
    let pay = world.west.issue(&world.east, "ns/shop/sa/pay");
    let dialled = pay.identity.dial(world.east.mesh, ORDERS, &[]);
    let mut open = within("a handshake", dialled).await.unwrap();
    let source = open.get_ref().0.local_addr().unwrap();
    open.write_all(b"x").await.unwrap();
    within("an echo", open.read_u8()).await.unwrap();
    let late = world.west.crl(1, &[cart.serial], -Duration::hours(1));
    world.west.write_crl(&world.crls(), &late);
    world.is_refused(&cart.identity).await;
    let said = world
        .gateway
        .message("ZG0207 the CRL is past its nextUpdate")
        .await;
    assert!(said.contains("west.example"), "{said}");
    let labels = [("trust_domain", "west.example")];
    world
        .gateway
        .metric_becomes("zeugma_crl_stale", &labels, 1.0)
        .await;
    world.call(&pay.identity).await.unwrap();
    open.write_all(b"x").await.unwrap();
    within("an echo", open.read_u8()).await.unwrap();
    // A day and an hour late.
    let too_late = world.west.crl(2, &[cart.serial], -Duration::hours(25));
    world.west.write_crl(&world.crls(), &too_late);
    let (alert, line) = world.is_refused(&pay.identity).await;
    assert_eq!(alert, AlertDescription::UnknownCA);
    assert_eq!(line["verdict"], "revocation-unknown", "{line}");
    assert_eq!(line["policy.rule"], "revocation-unknown", "{line}");
    // What is known to be revoked is told as that.
    let (alert, _) = world.call(&cart.identity).await.unwrap_err();
    assert_eq!(alert, AlertDescription::CertificateRevoked);
    let mut rest = Vec::new();
    within("the end", open.read_to_end(&mut rest)).await.ok();
    let line = world.gateway.connection(source).await;
    assert_eq!(line["verdict"], "revocation-unknown", "{line}");
    let fresh = world.west.crl(3, &[cart.serial], DUE);
    world.west.write_crl(&world.crls(), &fresh);
    eventually("believed again", async || {
        world.call(&pay.identity).await.ok()
    })
    .await;
    world
        .gateway
        .metric_becomes("zeugma_crl_stale", &labels, 0.0)
        .await;
    world.gateway.finish().await;
}
