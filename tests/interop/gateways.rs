//! Our gateway between real peers, in every role Envoy can take beside it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use crate::curl::{self, Version};
use crate::envoy::{Envoy, Template, Values, identity};
use crate::folder;
use crate::grpc::{self, Agent, EchoService};
use crate::openssl::{Call, Openssl};
use crate::pki::{Domain, Root, Svid};
use crate::sds::{Method, Sds};
use crate::websocket;
use crate::zeugma::{EAST, ECHO, Gateway, ORDERS, Setup, WEST};

/// The certificates of a test.
pub(crate) struct Mesh {
    pub(crate) root: Root,
    pub(crate) east: Domain,
    pub(crate) west: Domain,
    pub(crate) east_gateway: Svid,
    pub(crate) west_gateway: Svid,
}

impl Mesh {
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let root = Root::new(folder)?;
        let (east, west) = (root.domain("east.example")?, root.domain("west.example")?);
        Ok(Self {
            east_gateway: east.svid("/zeugma/gateway")?,
            west_gateway: west.svid("/zeugma/gateway")?,
            root,
            east,
            west,
        })
    }

    /// Our gateway of east, which has `hosts`' routes at west only, where `id` must answer.
    fn east(&self, folder: &Path, west: SocketAddr, id: &str, routes: &[&str]) -> Result<Gateway> {
        let mut setup = Setup::new(
            folder,
            EAST,
            &self.east_gateway,
            &[&self.east.trust, &self.west.trust],
        )?
        .peer(WEST, west, id);
        for route in routes {
            setup = setup.route(
                route,
                &[
                    "protocol: http",
                    "backends: [{ peer: west }]",
                    "allow: [{ listeners: [apps] }]",
                ],
            );
        }
        setup.start()
    }

    /// Our gateway of west, which hands each route to a service of its own.
    fn west(&self, folder: &Path, services: &[(&str, u16)]) -> Result<Gateway> {
        let trusted = [&self.east.trust, &self.west.trust];
        let setup = Setup::new(folder, WEST, &self.west_gateway, &trusted)?;
        self.west_of(setup, services)
    }

    /// As [`west`](Self::west), set up otherwise.
    fn west_of(&self, setup: Setup, services: &[(&str, u16)]) -> Result<Gateway> {
        let mut setup = setup.caller(EAST, &self.east_gateway.id);
        for (route, port) in services {
            setup = setup.route(
                route,
                &[
                    "protocol: http",
                    &format!("backends: [{{ endpoints: [\"127.0.0.1:{port}\"] }}]"),
                    "allow: [{ from: [\"spiffe://east.example/*\"] }]",
                    "export: { to: [east] }",
                ],
            );
        }
        setup.start()
    }

    /// Renews the certificate of west's gateway: the same files again, in the same folder.
    fn renew_west(&self) -> Result<()> {
        let renewed = self.west.svid("/zeugma/gateway")?;
        assert_eq!(renewed.certificate, self.west_gateway.certificate);
        Ok(())
    }

    /// An Envoy that ends TLS for `host` with `svid` and hands on to `port`.
    fn terminating(&self, folder: &Path, host: &str, svid: &Svid, port: u16) -> Result<Envoy> {
        let mut values = identity(svid, &[&self.east.trust]);
        values.extend([("sni", host.to_owned()), ("service_port", port.to_string())]);
        Envoy::start("envoy-terminate", Template::Terminate, &values, folder)
    }

    /// An Envoy that calls `host` at `to` as `svid`, where `id` must answer.
    fn calling(&self, folder: &Path, svid: &Svid, to: SocketAddr, id: &str) -> Result<Envoy> {
        let mut values = identity(svid, &[&self.west.trust]);
        values.extend([
            ("sni", ORDERS.to_owned()),
            ("mesh_port", to.port().to_string()),
            ("expected_id", id.to_owned()),
        ]);
        Envoy::start("envoy-client", Template::Client, &values, folder)
    }
}

fn service(name: &str, folder: &Path) -> Result<Envoy> {
    let values = Values::from([("body", format!("from {name}"))]);
    Envoy::start(name, Template::Backend, &values, folder)
}

/// GETs by both versions of HTTP reach `expected` through `entry`, and the service hears that
/// `caller` called.
fn requests_reach(entry: SocketAddr, expected: &str, caller: &str) -> Result<()> {
    for (version, spoken) in [(Version::H1, "1.1"), (Version::H2, "2")] {
        let answer = curl::get_host(entry, ORDERS, "/v1", version)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.version, spoken);
        assert_eq!(answer.body, format!("from {expected}"));
        assert_eq!(answer.header("x-saw-authority"), ORDERS);
        let xfcc = answer.header("x-saw-xfcc");
        assert!(xfcc.contains(&format!("URI={caller}")), "{xfcc}");
    }
    Ok(())
}

#[test]
fn curl_passes_both_our_gateways() -> Result<()> {
    let folder = folder("curl_passes_both_our_gateways")?;
    let mesh = Mesh::new(&folder)?;
    let orders = service("west-orders", &folder)?;
    let west = mesh.west(&folder, &[("orders", orders.address.port())])?;
    let east = mesh.east(&folder, west.mesh, &mesh.west_gateway.id, &["orders"])?;
    requests_reach(east.apps, "west-orders", &mesh.east_gateway.id)
}

/// Workload_Endpoint §6 (WE1), Workload_API §5.2 (WA3): what gRPC's own server says is taken, and
/// taken again when it changes.
#[test]
fn our_gateway_is_given_its_certificate_by_grpcs_own_server() -> Result<()> {
    let folder = folder("our_gateway_is_given_its_certificate_by_grpcs_own_server")?;
    let mesh = Mesh::new(&folder)?;
    let trusted = [&mesh.west.trust, &mesh.east.trust];
    let agent = Agent::start(&folder, &mesh.west_gateway, &trusted)?;
    let orders = service("west-orders", &folder)?;
    let setup = Setup::new(&folder, WEST, &mesh.west_gateway, &[])?.agent(&agent.socket);
    let west = mesh.west_of(setup, &[("orders", orders.address.port())])?;
    let east = mesh.east(&folder, west.mesh, &mesh.west_gateway.id, &["orders"])?;
    requests_reach(east.apps, "west-orders", &mesh.east_gateway.id)?;
    mesh.renew_west()?;
    west.applied(2)?;
    requests_reach(east.apps, "west-orders", &mesh.east_gateway.id)
}

/// P49, by a service that we did not write.
fn given_by_secrets(test: &str, method: Method) -> Result<()> {
    let folder = folder(test)?;
    let mesh = Mesh::new(&folder)?;
    let trusted = [&mesh.west.trust, &mesh.east.trust];
    let sds = Sds::start(test, &folder, method, (&mesh.west_gateway, &trusted))?;
    let orders = service("west-orders", &folder)?;
    let setup = Setup::new(&folder, WEST, &mesh.west_gateway, &[])?.secrets(&sds.socket);
    let west = mesh.west_of(setup, &[("orders", orders.address.port())])?;
    let east = mesh.east(&folder, west.mesh, &mesh.west_gateway.id, &["orders"])?;
    requests_reach(east.apps, "west-orders", &mesh.east_gateway.id)?;
    for name in ["default", "ROOTCA"] {
        sds.heard(&format!("ack {name} "))?;
    }
    mesh.renew_west()?;
    west.applied(2)?;
    requests_reach(east.apps, "west-orders", &mesh.east_gateway.id)?;
    // A key of somebody else's.
    let other = mesh.west.svid("/other")?;
    fs::copy(&other.key, &mesh.west_gateway.key)?;
    sds.heard("nack default secret `default`: its key is not that of its certificate")?;
    requests_reach(east.apps, "west-orders", &mesh.east_gateway.id)
}

#[test]
fn our_gateway_is_given_its_certificate_by_a_secret_discovery_service() -> Result<()> {
    given_by_secrets("sds-whole", Method::Sotw)
}

#[test]
fn our_gateway_is_given_its_certificate_by_one_that_tells_what_changed() -> Result<()> {
    given_by_secrets("sds-delta", Method::Delta)
}

#[test]
fn grpc_passes_both_our_gateways_with_its_status_and_streams() -> Result<()> {
    let folder = folder("grpc_passes_both_our_gateways")?;
    let mesh = Mesh::new(&folder)?;
    let echo = EchoService::start("west-echo", &folder)?;
    let west = mesh.west(&folder, &[("echo", echo.port)])?;
    let east = mesh.east(&folder, west.mesh, &mesh.west_gateway.id, &["echo"])?;

    let unary = grpc::call(east.apps, ECHO, "Unary", &["hello"])?;
    assert_eq!(unary.code, "OK", "{unary:?}");
    assert_eq!(unary.answers, ["hello"]);
    let metadata = |name: &str| unary.metadata.get(name).map_or("", String::as_str);
    assert_eq!(metadata("x-end"), "reached");
    assert!(
        metadata("x-saw-xfcc").contains(&format!("URI={}", mesh.east_gateway.id)),
        "{unary:?}"
    );

    let fail = grpc::call(east.apps, ECHO, "Fail", &["no more"])?;
    assert_eq!(
        (fail.code.as_str(), fail.details.as_str()),
        ("RESOURCE_EXHAUSTED", "no more")
    );
    let chat = grpc::call(east.apps, ECHO, "Chat", &["a", "b", "c"])?;
    assert_eq!(chat.answers, ["a", "b", "c"], "{chat:?}");

    // Far over every window and buffer on the way (RFC 9113 §6.9.2: 65,535 bytes at first).
    let large = grpc::call(east.apps, ECHO, "Chat", &["2000000 x a", "2000000 x b"])?;
    assert_eq!(large.code, "OK");
    assert_eq!(
        large.answers,
        ["a".repeat(2_000_000), "b".repeat(2_000_000)]
    );
    Ok(())
}

/// gRPC's `health-checking.md`, against its own health service, through both gateways.
#[test]
fn our_checks_by_grpc_hear_what_grpcs_own_health_service_says() -> Result<()> {
    let folder = folder("our_checks_by_grpc")?;
    let mesh = Mesh::new(&folder)?;
    let echo = EchoService::start("west-echo", &folder)?;
    let west = mesh.west(&folder, &[("echo", echo.port)])?;
    let trusted = [&mesh.east.trust, &mesh.west.trust];
    let check = "{ grpc: zeugma.test.Echo, every: 100ms, up: 1, down: 1 }";
    let east = Setup::new(&folder, EAST, &mesh.east_gateway, &trusted)?
        .peer(WEST, west.mesh, &mesh.west_gateway.id)
        .route(
            "echo",
            &[
                "protocol: http",
                "backends: [{ peer: west }]",
                "allow: [{ listeners: [apps] }]",
                &format!("health: {{ active: {check} }}"),
            ],
        )
        .start()?;
    let service = SocketAddr::from(([127, 0, 0, 1], echo.port));
    assert_eq!(grpc::call(east.apps, ECHO, "Unary", &["a"])?.code, "OK");
    grpc::call(service, ECHO, "Turn", &["NOT_SERVING"])?;
    east.logged(&["ZG0423"])?;
    let refused = grpc::call(east.apps, ECHO, "Unary", &["a"])?;
    assert_eq!(refused.code, "UNAVAILABLE", "{refused:?}");
    grpc::call(service, ECHO, "Turn", &["SERVING"])?;
    for _ in 0..50 {
        if grpc::call(east.apps, ECHO, "Unary", &["a"])?.code == "OK" {
            return Ok(());
        }
    }
    anyhow::bail!("it does not come back")
}

#[test]
fn websocket_passes_both_our_gateways() -> Result<()> {
    let folder = folder("websocket_passes_both_our_gateways")?;
    let mesh = Mesh::new(&folder)?;
    let echo = websocket::EchoService::start("west-echo", &folder)?;
    let west = mesh.west(&folder, &[("echo", echo.port)])?;
    let east = mesh.east(&folder, west.mesh, &mesh.west_gateway.id, &["echo"])?;
    let outcome = websocket::call(east.apps, ECHO, &["hello", "again"])?;
    assert_eq!(outcome.answers, ["hello", "again"]);
    assert!(outcome.large);
    // RFC 6455 §7.4.1: the close handshake reached the other end and came back.
    assert_eq!(outcome.closed, 1000);
    Ok(())
}

#[test]
fn our_gateway_fails_over_to_an_envoy_gateway() -> Result<()> {
    let folder = folder("our_gateway_fails_over_to_an_envoy")?;
    let mesh = Mesh::new(&folder)?;
    let remote = service("west-orders", &folder)?;
    let port = remote.address.port();
    let envoy = mesh.terminating(&folder, ORDERS, &mesh.west_gateway, port)?;
    let local = service("east-orders", &folder)?;
    let east = Setup::new(
        &folder,
        EAST,
        &mesh.east_gateway,
        &[&mesh.east.trust, &mesh.west.trust],
    )?
    .peer(WEST, envoy.address, &mesh.west_gateway.id)
    .route(
        "orders",
        &[
            "protocol: http",
            &format!(
                "backends: [{{ endpoints: [\"{}\"] }}, {{ peer: west }}]",
                local.address
            ),
            "allow: [{ listeners: [apps] }]",
        ],
    )
    .start()?;
    let from = |who: &str| -> Result<()> {
        let answer = curl::get_host(east.apps, ORDERS, "/", Version::H1)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.body, who);
        Ok(())
    };
    from("from east-orders")?;
    drop(local);
    // The very first request after the end of the local service is answered by the other cluster.
    for _ in 0..20 {
        from("from west-orders")?;
    }
    Ok(())
}

#[test]
fn our_gateway_calls_an_envoy_gateway() -> Result<()> {
    let folder = folder("our_gateway_calls_an_envoy_gateway")?;
    let mesh = Mesh::new(&folder)?;
    let orders = service("west-orders", &folder)?;
    let port = orders.address.port();
    let envoy = mesh.terminating(&folder, ORDERS, &mesh.west_gateway, port)?;
    let east = mesh.east(&folder, envoy.address, &mesh.west_gateway.id, &["orders"])?;
    requests_reach(east.apps, "west-orders", &mesh.east_gateway.id)?;
    assert_eq!(envoy.stat("ssl.fail_verify_error")?, 0);
    Ok(())
}

#[test]
fn our_gateway_sends_nothing_to_an_envoy_it_did_not_expect() -> Result<()> {
    let folder = folder("our_gateway_sends_nothing_to_an_envoy")?;
    let mesh = Mesh::new(&folder)?;
    let orders = service("west-orders", &folder)?;
    let port = orders.address.port();
    let envoy = mesh.terminating(&folder, ORDERS, &mesh.west_gateway, port)?;
    let other = "spiffe://west.example/zeugma/other";
    let east = mesh.east(&folder, envoy.address, other, &["orders"])?;
    let answer = curl::get_host(east.apps, ORDERS, "/", Version::H1)?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(envoy.stat("http.mesh.downstream_rq_total")?, 0);
    Ok(())
}

#[test]
fn an_envoy_gateway_calls_ours() -> Result<()> {
    let folder = folder("an_envoy_gateway_calls_ours")?;
    let mesh = Mesh::new(&folder)?;
    let orders = service("west-orders", &folder)?;
    let west = mesh.west(&folder, &[("orders", orders.address.port())])?;
    let caller = &mesh.east_gateway;
    let envoy = mesh.calling(&folder, caller, west.mesh, &mesh.west_gateway.id)?;
    requests_reach(envoy.address, "west-orders", &caller.id)
}

#[test]
fn our_gateway_refuses_an_envoy_of_another_trust_domain() -> Result<()> {
    let folder = folder("our_gateway_refuses_an_envoy")?;
    let mesh = Mesh::new(&folder)?;
    let orders = service("west-orders", &folder)?;
    let west = mesh.west(&folder, &[("orders", orders.address.port())])?;
    let mallory = mesh
        .root
        .domain("mallory.example")?
        .svid("/zeugma/gateway")?;
    let envoy = mesh.calling(&folder, &mallory, west.mesh, &mesh.west_gateway.id)?;
    let answer = curl::get_host(envoy.address, ORDERS, "/", Version::H1)?;
    assert_eq!(answer.status, 503, "{answer:?}");
    west.logged(&["certificate-refused"])?;
    assert_eq!(orders.stat("http.service.downstream_rq_total")?, 0);
    Ok(())
}

#[test]
fn an_envoy_between_our_gateways_relays_by_sni() -> Result<()> {
    let folder = folder("an_envoy_between_our_gateways")?;
    let mesh = Mesh::new(&folder)?;
    let orders = service("west-orders", &folder)?;
    let west = mesh.west(&folder, &[("orders", orders.address.port())])?;
    let values = Values::from([
        ("sni", ORDERS.to_owned()),
        ("mesh_port", west.mesh.port().to_string()),
    ]);
    let between = Envoy::start("envoy-between", Template::Passthrough, &values, &folder)?;
    let east = mesh.east(&folder, between.address, &mesh.west_gateway.id, &["orders"])?;
    requests_reach(east.apps, "west-orders", &mesh.east_gateway.id)?;
    assert!(between.stat("tcp.mesh.downstream_cx_total")? > 0);
    Ok(())
}

#[test]
fn our_gateway_relays_to_an_envoy_that_terminates_itself() -> Result<()> {
    let folder = folder("our_gateway_relays_to_an_envoy")?;
    let mesh = Mesh::new(&folder)?;
    let orders = service("west-orders", &folder)?;
    let workload = mesh.west.svid("/ns/shop/sa/orders")?;
    let sidecar = mesh.terminating(&folder, ORDERS, &workload, orders.address.port())?;
    let west = Setup::new(
        &folder,
        WEST,
        &mesh.west_gateway,
        &[&mesh.east.trust, &mesh.west.trust],
    )?
    .caller(EAST, &mesh.east_gateway.id)
    .route(
        "orders",
        &[
            "protocol: tcp",
            "port: 443",
            "inbound: passthrough",
            &format!(
                "backends: [{{ endpoints: [\"{}\"], tls: workload }}]",
                sidecar.address
            ),
            "allow: [{ listeners: [mesh] }]",
            "export: { to: [\"*\"] }",
        ],
    )
    .start()?;
    let caller = mesh.east.svid("/ns/shop/sa/cart")?;
    let envoy = mesh.calling(&folder, &caller, west.mesh, &workload.id)?;
    // The workload itself verified the caller: our gateway only relayed.
    requests_reach(envoy.address, "west-orders", &caller.id)?;

    // The same through a gateway on the caller's side that relays too.
    let east = Setup::new(
        &folder,
        EAST,
        &mesh.east_gateway,
        &[&mesh.east.trust, &mesh.west.trust],
    )?
    .peer(WEST, west.mesh, &mesh.west_gateway.id)
    .route(
        "orders",
        &[
            "protocol: tcp",
            "port: 443",
            "inbound: passthrough",
            "backends: [{ peer: west }]",
            "allow: [{ listeners: [apps] }]",
        ],
    )
    .start()?;
    let far = folder.join("far");
    fs::create_dir_all(&far)?;
    let envoy = mesh.calling(&far, &caller, east.apps, &workload.id)?;
    requests_reach(envoy.address, "west-orders", &caller.id)
}

#[test]
fn openssl_meets_our_mesh_port() -> Result<()> {
    let Some(openssl) = Openssl::find()? else {
        return Ok(());
    };
    let folder = folder("openssl_meets_our_mesh_port")?;
    let mesh = Mesh::new(&folder)?;
    let orders = service("west-orders", &folder)?;
    let west = mesh.west(&folder, &[("orders", orders.address.port())])?;
    let caller = mesh.east.svid("/ns/shop/sa/cart")?;
    let good = Call {
        to: west.mesh,
        sni: ORDERS,
        anchor: &mesh.root.certificate,
        svid: Some(&caller),
        version: "-tls1_3",
    };
    let session = openssl.get(&good, ORDERS, "/")?;
    assert!(
        session.output.contains("Verify return code: 0 (ok)"),
        "{session:?}"
    );
    assert!(session.output.contains("from west-orders"), "{session:?}");
    assert!(session.output.contains(&caller.id), "{session:?}");
    // The SNI of one service with another's authority.
    let session = openssl.get(&good, ECHO, "/")?;
    assert!(session.output.contains("HTTP/1.1 421"), "{session:?}");
    // T2: no tickets, so nothing to resume.
    assert!(
        !session.output.contains("New Session Ticket"),
        "{session:?}"
    );

    // The alerts by their numbers in RFC 8446 §6.
    let stranger = mesh
        .root
        .domain("mallory.example")?
        .svid("/ns/shop/sa/cart")?;
    let refused = [
        (
            "no certificate",
            Call { svid: None, ..good },
            "alert number 116",
            "certificate-missing",
        ),
        (
            "TLS 1.2",
            Call {
                version: "-tls1_2",
                ..good
            },
            "alert number 70",
            "handshake-failed",
        ),
        (
            "unknown SNI",
            Call {
                sni: "cart.shop.example",
                ..good
            },
            "alert number 112",
            "sni-unknown",
        ),
        (
            "a trust domain we do not know",
            Call {
                svid: Some(&stranger),
                ..good
            },
            "alert number 48",
            "certificate-refused",
        ),
    ];
    for (what, call, alert, reason) in refused {
        let session = openssl.get(&call, ORDERS, "/")?;
        assert!(session.errors.contains(alert), "{what}: {session:?}");
        west.logged(&[reason])?;
    }
    Ok(())
}
