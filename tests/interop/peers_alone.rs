//! Envoy, curl and gRPC among themselves.

use std::path::Path;

use anyhow::Result;

use crate::curl::{self, Version};
use crate::envoy::{Envoy, Template, Values, identity};
use crate::folder;
use crate::grpc::{self, EchoService};
use crate::openssl::{Call, Openssl};
use crate::pki::{Domain, Root};

/// What the chain carries.
pub(crate) const HOST: &str = "orders.shop.svc.clusterset.local";
const EAST_GATEWAY: &str = "spiffe://east.example/zeugma/gateway";

/// Two clusters with Envoys for gateways and one between them.
pub(crate) struct Chain {
    /// Takes plaintext HTTP.
    pub(crate) client: Envoy,
    /// Relays by SNI.
    pub(crate) passthrough: Envoy,
    /// Ends the TLS of the first.
    pub(crate) terminate: Envoy,
}

impl Chain {
    /// Starts all three; the far end hands on to the service at `service_port`.
    pub(crate) fn start(folder: &Path, parties: &Parties, service_port: u16) -> Result<Self> {
        let mut values = parties.answering.clone();
        values.extend([
            ("sni", HOST.to_owned()),
            ("service_port", service_port.to_string()),
        ]);
        let terminate = Envoy::start("west-terminate", Template::Terminate, &values, folder)?;

        let values = Values::from([
            ("sni", HOST.to_owned()),
            ("mesh_port", terminate.address.port().to_string()),
        ]);
        let passthrough = Envoy::start("passthrough", Template::Passthrough, &values, folder)?;

        let mut values = parties.calling.clone();
        values.extend([
            ("sni", HOST.to_owned()),
            ("mesh_port", passthrough.address.port().to_string()),
            ("expected_id", parties.expected.clone()),
        ]);
        let client = Envoy::start("client", Template::Client, &values, folder)?;
        Ok(Self {
            client,
            passthrough,
            terminate,
        })
    }
}

/// Who is on the chain.
pub(crate) struct Parties {
    /// The identity of the first Envoy and whom it trusts.
    pub(crate) calling: Values,
    /// The same of the last.
    pub(crate) answering: Values,
    /// Whom the first expects to answer.
    pub(crate) expected: String,
}

impl Parties {
    /// East calls west and both trust each other.
    fn new(east: &Domain, west: &Domain) -> Result<Self> {
        let answering = west.svid("/zeugma/gateway")?;
        Ok(Self {
            calling: identity(&east.svid("/zeugma/gateway")?, &[&west.trust]),
            answering: identity(&answering, &[&east.trust]),
            expected: answering.id,
        })
    }
}

/// A service that is Envoy alone and answers `from <name>`.
pub(crate) fn backend(name: &str, folder: &Path) -> Result<Envoy> {
    let values = Values::from([("body", format!("from {name}"))]);
    Envoy::start(name, Template::Backend, &values, folder)
}

#[test]
fn envoy_accepts_every_configuration() -> Result<()> {
    let folder = folder("envoy_accepts_every_configuration")?;
    let root = Root::new(&folder)?;
    let east = root.domain("east.example")?;
    let svid = east.svid("/zeugma/gateway")?;
    let mut values = identity(&svid, &[&east.trust]);
    values.extend([
        ("sni", HOST.to_owned()),
        ("mesh_port", "15443".to_owned()),
        ("service_port", "8080".to_owned()),
        ("expected_id", svid.id),
        ("body", "hello".to_owned()),
    ]);
    for template in Template::ALL {
        template.validate(&values, &folder)?;
    }
    Ok(())
}

#[test]
fn http_passes_three_envoys_and_the_caller_is_known_at_the_end() -> Result<()> {
    let folder = folder("http_passes_three_envoys")?;
    let root = Root::new(&folder)?;
    let (east, west) = (root.domain("east.example")?, root.domain("west.example")?);
    let service = backend("west-service", &folder)?;
    let parties = Parties::new(&east, &west)?;
    let chain = Chain::start(&folder, &parties, service.address.port())?;
    for (version, spoken) in [(Version::H1, "1.1"), (Version::H2, "2")] {
        let answer = curl::get_host(chain.client.address, HOST, "/v1", version)?;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.version, spoken);
        assert_eq!(answer.body, "from west-service");
        assert_eq!(answer.header("x-saw-authority"), HOST);
        let xfcc = answer.header("x-saw-xfcc");
        assert!(xfcc.contains(&format!("URI={EAST_GATEWAY}")), "{xfcc}");
    }
    // Both versions went over TLS connections of their own, through the Envoy between.
    assert_eq!(chain.terminate.stat("ssl.handshake")?, 2);
    assert_eq!(chain.passthrough.stat("tcp.mesh.downstream_cx_total")?, 2);
    Ok(())
}

#[test]
fn grpc_passes_three_envoys_with_its_status_and_streams() -> Result<()> {
    let folder = folder("grpc_passes_three_envoys")?;
    let root = Root::new(&folder)?;
    let (east, west) = (root.domain("east.example")?, root.domain("west.example")?);
    let service = EchoService::start("west-echo", &folder)?;
    let parties = Parties::new(&east, &west)?;
    let chain = Chain::start(&folder, &parties, service.port)?;
    let target = chain.client.address;

    let unary = grpc::call(target, HOST, "Unary", &["hello"])?;
    assert_eq!(unary.code, "OK", "{unary:?}");
    assert_eq!(unary.answers, ["hello"]);
    let metadata = |name: &str| unary.metadata.get(name).map_or("", String::as_str);
    assert_eq!(metadata("x-end"), "reached");
    assert!(
        metadata("x-saw-xfcc").contains(&format!("URI={EAST_GATEWAY}")),
        "{unary:?}"
    );

    let fail = grpc::call(target, HOST, "Fail", &["no more"])?;
    assert_eq!(
        (fail.code.as_str(), fail.details.as_str()),
        ("RESOURCE_EXHAUSTED", "no more")
    );

    let chat = grpc::call(target, HOST, "Chat", &["a", "b", "c"])?;
    assert_eq!(chat.answers, ["a", "b", "c"], "{chat:?}");
    Ok(())
}

#[test]
fn an_envoy_refuses_a_caller_of_another_trust_domain() -> Result<()> {
    let folder = folder("an_envoy_refuses_a_caller")?;
    let root = Root::new(&folder)?;
    let (mallory, west) = (
        root.domain("mallory.example")?,
        root.domain("west.example")?,
    );
    let east = root.domain("east.example")?;
    let service = backend("west-service", &folder)?;
    let mut parties = Parties::new(&east, &west)?;
    parties.calling = identity(&mallory.svid("/zeugma/gateway")?, &[&west.trust]);
    let chain = Chain::start(&folder, &parties, service.address.port())?;
    let answer = curl::get_host(chain.client.address, HOST, "/", Version::H1)?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(chain.terminate.stat("ssl.fail_verify_error")?, 1);
    assert_eq!(chain.terminate.stat("http.mesh.downstream_rq_total")?, 0);
    Ok(())
}

#[test]
fn an_envoy_sends_nothing_to_whom_it_did_not_expect() -> Result<()> {
    let folder = folder("an_envoy_sends_nothing")?;
    let root = Root::new(&folder)?;
    let (east, west) = (root.domain("east.example")?, root.domain("west.example")?);
    let service = backend("west-service", &folder)?;
    let mut parties = Parties::new(&east, &west)?;
    parties.expected = "spiffe://west.example/zeugma/other".to_owned();
    let chain = Chain::start(&folder, &parties, service.address.port())?;
    let answer = curl::get_host(chain.client.address, HOST, "/", Version::H1)?;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(chain.client.stat("ssl.fail_verify_san")?, 1);
    assert_eq!(chain.terminate.stat("http.mesh.downstream_rq_total")?, 0);
    Ok(())
}

#[test]
fn openssl_accepts_these_certificates_and_envoy_accepts_openssl() -> Result<()> {
    let Some(openssl) = Openssl::find()? else {
        return Ok(());
    };
    let folder = folder("openssl_accepts_these_certificates")?;
    let root = Root::new(&folder)?;
    let (east, west) = (root.domain("east.example")?, root.domain("west.example")?);
    let (caller, gateway) = (
        east.svid("/ns/shop/sa/cart")?,
        west.svid("/zeugma/gateway")?,
    );
    for purpose in ["sslclient", "sslserver"] {
        openssl.verify(&root.certificate, &gateway.certificate, purpose)?;
        openssl.verify(&west.trust.anchor, &gateway.certificate, purpose)?;
    }
    assert!(
        openssl
            .verify(&east.trust.anchor, &gateway.certificate, "sslserver")
            .is_err(),
        "another domain's anchor"
    );

    let service = backend("west-service", &folder)?;
    let mut values = identity(&gateway, &[&east.trust]);
    values.extend([
        ("sni", HOST.to_owned()),
        ("service_port", service.address.port().to_string()),
    ]);
    let terminate = Envoy::start("west-terminate", Template::Terminate, &values, &folder)?;
    let mut call = Call {
        to: terminate.address,
        sni: HOST,
        anchor: &root.certificate,
        svid: Some(&caller),
        version: "-tls1_3",
    };
    let session = openssl.get(&call, HOST, "/")?;
    assert!(
        session.output.contains("Verify return code: 0 (ok)"),
        "{session:?}"
    );
    assert!(session.output.contains("from west-service"), "{session:?}");
    assert!(session.output.contains(&caller.id), "{session:?}");

    call.svid = None;
    let session = openssl.get(&call, HOST, "/")?;
    // RFC 8446 §6: certificate_required is alert 116.
    assert!(session.errors.contains("alert number 116"), "{session:?}");

    call.version = "-tls1_2";
    let session = openssl.get(&call, HOST, "/")?;
    // protocol_version is alert 70.
    assert!(session.errors.contains("alert number 70"), "{session:?}");
    Ok(())
}
