//! A gateway whose certificate and bundles come from a secret discovery service (P49): one that is late,
//! dies, rotates, gives what cannot be used, and says what no server should.

// On threads of their own: commands block, and a caller's connection has to answer PINGs meanwhile.

use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::CertificateValidationContext;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::secret::Type;
use serde_json::Value;

use crate::mesh::secrets::{
    SecretManner, SecretServer, anchors_of, certificate_of, inline, validator,
};
use crate::mesh::{Cluster, eventually};
use crate::security_pki::Domain;
use crate::security_workload::{
    World, ask, at, is_let_in, open, serial, serial_of, until_let_in, until_refused, until_serial,
};

const EAST: &str = "east.example";
const WEST: &str = "west.example";

/// East, whose gateway asks a secret discovery service by SPIRE's names.
async fn world() -> World {
    let mut world = World::new().await;
    let address = at(&world.east.agent_socket());
    world.east.ask_secrets(&format!("address: '{address}'"));
    world
}

fn certificate(cluster: &Cluster) -> Type {
    Type::TlsCertificate(certificate_of(cluster))
}

/// Whom east trusts by its files.
fn trust(east: &Cluster) -> Type {
    let (own, west) = (anchors_of(east, EAST), anchors_of(east, WEST));
    Type::ValidationContext(validator(&[(EAST, &own), (WEST, &west)]))
}

/// A service that gives what east's files say.
fn server(world: &World, manner: SecretManner) -> SecretServer {
    let server = SecretServer::at(&world.east.agent_socket(), manner);
    server.put("default", certificate(&world.east));
    server.put("ROOTCA", trust(&world.east));
    server
}

/// P49, and what a gateway is that has no certificate yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_waits_for_its_secrets_and_serves_as_soon_as_it_has_all() {
    let world = world().await;
    let gateway = world.spawn();
    let said = gateway.message("ZG0261").await;
    assert!(
        said.contains("the SDS server fails") && said.contains("No such file"),
        "{said}"
    );
    let said = gateway.message("ZG0264").await;
    assert!(said.contains("waits for its SDS server"), "{said}");
    let server = SecretServer::at(&world.east.agent_socket(), SecretManner::Well);
    server.put("default", certificate(&world.east));
    let heard = server.heard("an ACK", |heard| heard.version == "1").await;
    assert_eq!((&*heard.name, heard.error), ("default", None));
    // The certificate alone is no identity.
    assert_eq!(gateway.ready().await, 503);
    assert!(is_let_in(&world.cart, world.east.mesh).await.is_none());
    server.put("ROOTCA", trust(&world.east));
    gateway.message("ZG0901 gateway ready").await;
    gateway.message("ZG0263 the SDS server answers").await;
    until_let_in(&world.cart, world.east.mesh).await;
    world.finds("", "").await;
    // Each secret by a stream of its own, by what changed, in the gateway's name.
    let heard = server.heard_so_far();
    assert!(heard.iter().all(|heard| heard.is_delta), "{heard:?}");
    let first = heard.iter().filter(|heard| heard.is_first);
    let mut first: Vec<_> = first
        .map(|heard| (&*heard.name, heard.node.as_deref()))
        .collect();
    first.sort_unstable();
    let node = Some("east-gw");
    assert_eq!(first, [("ROOTCA", node), ("default", node)]);
    let told = &world.get("identities")["identities"]["sds"];
    assert_eq!(told["answers"], Value::Bool(true), "{told}");
    assert_eq!(told["secrets"], serde_json::json!(["default", "ROOTCA"]));
    let (_, status) = world.command(&["status"]);
    assert!(status.contains("by unix:///"), "{status}");
    let (code, check) = world.command(&["check"]);
    assert!(check.contains("SDS server unix:///"), "{code:?} {check}");
    drop(server);
    world.finds("ZG0261", "the last SVID stays in use").await;
    let (_, status) = world.command(&["status"]);
    assert!(status.contains("which does not answer"), "{status}");
    assert!(is_let_in(&world.cart, world.east.mesh).await.is_some());
    gateway.finish().await;
}

async fn rotated_under_traffic(manner: SecretManner) {
    let world = world().await;
    let east = &world.east;
    let server = server(&world, manner);
    let gateway = world.start().await;
    world
        .rotates_under_traffic(|| server.put("default", certificate(east)))
        .await;
    let heard = server.heard_so_far();
    assert!(heard.iter().all(|heard| heard.error.is_none()), "{heard:?}");
    let is_delta = manner != SecretManner::Full;
    assert!(
        heard.iter().all(|heard| heard.is_delta == is_delta),
        "{heard:?}"
    );
    let first = heard.iter().filter(|heard| heard.is_first).count();
    assert_eq!(first, 2, "one connection brings them all");
    gateway.finish().await;
}

/// P49.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_under_traffic_and_no_request_is_lost() {
    rotated_under_traffic(SecretManner::Well).await;
}

/// P49, by a service such as SPIRE's agent, which knows no deltas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_by_the_state_of_the_world_too() {
    rotated_under_traffic(SecretManner::Full).await;
}

/// P49: a bad secret is NACKed and the old one stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_cannot_be_used_is_refused_with_the_reason_and_the_last_good_one_serves() {
    let world = world().await;
    let east = &world.east;
    let server = server(&world, SecretManner::Well);
    let gateway = world.start().await;
    let first = serial_of(east);
    let mut kept = open(&world.cart, east.mesh).await;
    let good = certificate_of(east);
    let foreign = certificate_of(&world.west);
    let mut other_key = good.clone();
    other_key.private_key.clone_from(&foreign.private_key);
    let mut file = good.clone();
    let path = Specifier::Filename("/etc/passwd".to_owned());
    file.private_key.as_mut().unwrap().specifier = Some(path);
    let mut no_pem = good.clone();
    no_pem.certificate_chain = inline("nothing");
    let named = rcgen::generate_simple_self_signed(vec!["orders".to_owned()]).unwrap();
    let mut nobody = good.clone();
    nobody.certificate_chain = inline(&named.cert.pem());
    nobody.private_key = inline(&named.signing_key.serialize_pem());
    let minutes = time::Duration::minutes;
    let expired = Cluster::new("east");
    Domain::new(EAST).certify(&expired, minutes(-90), minutes(-10));
    for (bad, words) in [
        (certificate(&expired), "expired"),
        (Type::TlsCertificate(foreign), "the gateway's trust domain"),
        (Type::TlsCertificate(other_key), "its key is not that of"),
        (Type::TlsCertificate(nobody), "every peer would refuse it"),
        (Type::TlsCertificate(no_pem), "has no certificate in PEM"),
        (Type::TlsCertificate(file), "private_key.filename"),
        (trust(east), "it is no `tls_certificate`"),
    ] {
        server.put("default", bad);
        let why = server.refused("default", words).await;
        assert!(why.starts_with("secret `default`: "), "{why}");
        world.finds("ZG0262", words).await;
        assert_eq!(serial(&world.cart, east.mesh).await.unwrap(), first);
        ask(&mut kept).await.unwrap();
    }
    // A bad one says nothing of the other: whom it trusts changes all the same.
    let own = anchors_of(east, EAST);
    let alone = Type::ValidationContext(validator(&[(EAST, &own)]));
    server.put("ROOTCA", alone);
    until_refused(&world.cart, east.mesh).await;
    world.finds("ZG0262", "it is no `tls_certificate`").await;
    server.put("ROOTCA", trust(east));
    until_let_in(&world.cart, east.mesh).await;
    // Whom to trust: it is said by fields that are not supported, of nobody, and by what is no context.
    let mut narrow = validator(&[(EAST, &own)]);
    narrow.verify_certificate_hash.push("00".to_owned());
    let bundles = [
        (Type::ValidationContext(narrow), "verify_certificate_hash"),
        (
            Type::ValidationContext(validator(&[])),
            "no secret has the anchors of east.example",
        ),
        (
            Type::ValidationContext(validator(&[(EAST, "nothing")])),
            "has no certificate in PEM",
        ),
        (certificate(east), "it is no `validation_context`"),
    ];
    for (bad, words) in bundles {
        server.put("ROOTCA", bad);
        server.refused("ROOTCA", words).await;
        until_let_in(&world.cart, east.mesh).await;
    }
    server.put("ROOTCA", trust(east));
    let next = east.renew();
    server.put("default", certificate(east));
    until_serial(&world.cart, east.mesh, &next).await;
    world.finds("", "").await;
    gateway.finish().await;
}

/// Of a trust domain that has nothing to do with the certificate, all the same: neither a start nor a new
/// connection waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bundle_of_others_that_cannot_be_used_holds_up_neither_a_start_nor_a_rotation() {
    let mut world = world().await;
    let address = at(&world.east.agent_socket());
    let names = "ROOTCA, 'spiffe://north.example'";
    let asking = format!("address: '{address}', bundles: [{names}]");
    world.east.ask_secrets(&asking);
    let server = server(&world, SecretManner::Well);
    let bad = Type::ValidationContext(validator(&[("north.example", "nothing")]));
    server.put("spiffe://north.example", bad);
    let gateway = world.start().await;
    until_let_in(&world.cart, world.east.mesh).await;
    let words = "has no certificate in PEM";
    world.finds("ZG0262", words).await;
    for _ in 0..2 {
        let next = world.east.renew();
        server.put("default", certificate(&world.east));
        until_serial(&world.cart, world.east.mesh, &next).await;
    }
    // Other secrets that come change nothing of it, and it is not said again.
    let said = gateway.messages_so_far();
    let said = said.iter().filter(|line| line.contains("ZG0262"));
    assert_eq!(said.count(), 1, "{}", gateway.told());
    let mut kept = open(&world.cart, world.east.mesh).await;
    server.behave(SecretManner::Denying);
    world.finds("ZG0261", "PermissionDenied").await;
    // Whom to trust is bad as well, from the first that the next connection brings.
    let nobody = Type::ValidationContext(validator(&[(EAST, "nothing")]));
    server.put("ROOTCA", nobody);
    let next = world.east.renew();
    server.put("default", certificate(&world.east));
    server.behave(SecretManner::Well);
    until_serial(&world.cart, world.east.mesh, &next).await;
    world.finds("ZG0262", words).await;
    ask(&mut kept).await.unwrap();
    let north = Cluster::new("north");
    server.put("ROOTCA", trust(&world.east));
    let good = Type::ValidationContext(validator(&[(
        "north.example",
        &anchors_of(&north, "north.example"),
    )]));
    server.put("spiffe://north.example", good);
    world.finds("", "").await;
    gateway.finish().await;
}

/// Both secrets are good by themselves, and the certificate is not of these anchors: nothing changes
/// until the other one has come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_and_the_anchors_that_it_stands_under_come_in_any_order() {
    let world = world().await;
    let east = &world.east;
    let server = server(&world, SecretManner::Well);
    let gateway = world.start().await;
    let first = serial_of(east);
    let new = Cluster::of("east", std::sync::Arc::new(crate::mesh::Ca::new()));
    server.put("default", certificate(&new));
    world.finds("ZG0262", "every peer would refuse").await;
    assert_eq!(
        serial(&world.cart, east.mesh).await.unwrap(),
        first,
        "its anchor is not there yet"
    );
    let (own, west) = (anchors_of(&new, EAST), anchors_of(east, WEST));
    let trusted = validator(&[(EAST, &own), (WEST, &west)]);
    server.put("ROOTCA", Type::ValidationContext(trusted));
    // The caller trusts the old anchor alone, so that it sees the end of it.
    until_refused(&world.cart, east.mesh).await;
    world.finds("", "").await;
    gateway.message("ZG0201").await;
    gateway.finish().await;
}

/// Whoever is sent rubbish keeps what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_silent_huge_or_broken_or_never_rests_costs_no_request() {
    let world = world().await;
    let east = &world.east;
    let server = server(&world, SecretManner::Well);
    let gateway = world.start().await;
    let mut kept = open(&world.cart, east.mesh).await;
    ask(&mut kept).await.unwrap();
    for (manner, code, words) in [
        (SecretManner::Rubbish, "ZG0262", "decode"),
        (SecretManner::Huge, "ZG0261", "OutOfRange"),
        (SecretManner::Denying, "ZG0261", "PermissionDenied: not you"),
    ] {
        server.behave(manner);
        world.finds(code, words).await;
        ask(&mut kept).await.unwrap();
        assert!(is_let_in(&world.cart, east.mesh).await.is_some());
        assert_eq!(gateway.ready().await, 200);
        server.behave(SecretManner::Well);
        server.put("default", certificate(east));
        server.put("ROOTCA", trust(east));
        world.finds("", "").await;
    }
    let (_, check) = world.command(&["check"]);
    assert!(check.contains("SDS server"), "{check}");
    server.behave(SecretManner::Silent);
    let next = east.renew();
    server.put("default", certificate(east));
    ask(&mut kept).await.unwrap();
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    server.behave(SecretManner::Well);
    until_serial(&world.cart, east.mesh, &next).await;
    // One that never rests is read at a pace: what is said to it says how fast.
    server.behave(SecretManner::Flapping);
    let flaps = || {
        let heard = server.heard_so_far().into_iter();
        let flaps = heard.filter(|heard| heard.name == "default" && heard.version.len() == 7);
        flaps.count()
    };
    eventually("it flaps", async || (flaps() > 0).then_some(())).await;
    let (before, began) = (flaps(), Instant::now());
    eventually("more", async || (flaps() >= before + 10).then_some(())).await;
    assert!(
        began.elapsed() >= Duration::from_millis(800),
        "{:?}",
        began.elapsed()
    );
    ask(&mut kept).await.unwrap();
    assert!(is_let_in(&world.cart, east.mesh).await.is_some());
    gateway.finish().await;
}

/// The anchors of one trust domain each, as a SPIRE agent names them.
#[tokio::test]
async fn other_secrets_and_another_service_are_taken_up_without_a_restart() {
    let mut world = world().await;
    let server = server(&world, SecretManner::Well);
    let gateway = world.start().await;
    let mut kept = open(&world.cart, world.east.mesh).await;
    let of = |anchors: &str| {
        Type::ValidationContext(CertificateValidationContext {
            trusted_ca: inline(anchors),
            ..Default::default()
        })
    };
    server.put("own", of(&anchors_of(&world.east, EAST)));
    server.put("spiffe://west.example", of(&anchors_of(&world.east, WEST)));
    let next = world.east.renew();
    server.put("gateway", certificate(&world.east));
    let address = at(&world.east.agent_socket());
    let asking = |names: &str| format!("address: '{address}', svid: gateway, bundles: [{names}]");
    world.east.ask_secrets(&asking("own"));
    world.east.write_gateway();
    until_refused(&world.cart, world.east.mesh).await;
    world
        .east
        .ask_secrets(&asking("own, 'spiffe://west.example'"));
    world.east.write_gateway();
    until_serial(&world.cart, world.east.mesh, &next).await;
    until_let_in(&world.cart, world.east.mesh).await;
    assert!(ask(&mut kept).await.is_err(), "it was ended with its trust");
    // To where nobody is: what serves stays.
    let mut kept = open(&world.cart, world.east.mesh).await;
    let elsewhere = world.east.agent_socket().with_extension("two");
    world
        .east
        .ask_secrets(&format!("address: '{}'", at(&elsewhere)));
    world.east.write_gateway();
    world.finds("ZG0261", "agent.two").await;
    ask(&mut kept).await.unwrap();
    let second = SecretServer::at(&elsewhere, SecretManner::Full);
    let last = world.east.renew();
    second.put("default", certificate(&world.east));
    second.put("ROOTCA", trust(&world.east));
    until_serial(&world.cart, world.east.mesh, &last).await;
    ask(&mut kept).await.unwrap();
    world.finds("", "").await;
    gateway.finish().await;
}
