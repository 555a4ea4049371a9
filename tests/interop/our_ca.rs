//! What our CA issues, judged by others; what others issue, judged by us.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::{Value, json};

use crate::curl::{self, Version};
use crate::envoy::{Envoy, Template, identity, identity_by_bundles};
use crate::folder;
use crate::openssl::Openssl;
use crate::peers_alone::{Chain, HOST, Parties, backend};
use crate::pki::{Root, Svid, Trust};
use crate::zeugma::{EAST, ORDERS, Setup, WEST};

/// A CA of ours in a folder of its own, for east.example and west.example.
struct Ca {
    folder: PathBuf,
}

impl Ca {
    fn new(folder: &Path) -> Result<Self> {
        let ca = Self {
            folder: folder.to_owned(),
        };
        ca.run(&["init"])?;
        ca.run(&["trust-domain", "add", "east.example"])?;
        ca.run(&["trust-domain", "add", "west.example"])?;
        Ok(ca)
    }

    /// `zeugma ca ...`; what it printed.
    fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_zeugma"))
            .arg("ca")
            .args(arguments)
            .current_dir(&self.folder)
            .env_remove("ZEUGMA_CA_PASSPHRASE_FILE")
            .output()?;
        if !output.status.success() {
            bail!(
                "zeugma ca {arguments:?}: {}: {}{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn issue(&self, id: &str, name: &str) -> Result<Svid> {
        self.run(&["issue", id, "--out", name])?;
        Ok(Svid {
            id: id.to_owned(),
            certificate: self.folder.join(format!("{name}.pem")),
            key: self.folder.join(format!("{name}.key")),
        })
    }

    fn root(&self) -> Result<PathBuf> {
        self.run(&["bundle", "--root", "--out", "root.pem"])?;
        Ok(self.folder.join("root.pem"))
    }

    fn trust(&self, domain: &str) -> Result<Trust> {
        let file = format!("{domain}.pem");
        self.run(&["bundle", domain, "--format", "pem", "--out", &file])?;
        Ok(Trust {
            name: domain.to_owned(),
            anchor: self.folder.join(file),
        })
    }

    fn spiffe_bundle(&self, domain: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.run(&["bundle", domain])?)?)
    }
}

#[test]
fn openssl_verifies_every_chain_we_issue_strictly() -> Result<()> {
    let Some(openssl) = Openssl::find()? else {
        return Ok(());
    };
    let folder = folder("openssl_verifies_every_chain_we_issue")?;
    let ca = Ca::new(&folder)?;
    let (east, west, root) = (
        ca.trust("east.example")?,
        ca.trust("west.example")?,
        ca.root()?,
    );

    let issued = ca.issue("spiffe://east.example/ns/shop/sa/cart", "issued")?;
    let mut chains = vec![issued.certificate.clone()];

    ca.run(&[
        "issue",
        "spiffe://east.example/ns/shop/sa/named",
        "--dns",
        "cart.shop.svc.clusterset.local",
        "--out",
        "named",
    ])?;
    chains.push(folder.join("named.pem"));

    // A key and a request that OpenSSL made, for each kind of key that R4 allows.
    for (kind, new_key) in [
        ("p256", "ec:P-256"),
        ("p384", "ec:P-384"),
        ("rsa", "rsa:2048"),
        ("ed25519", "ed25519"),
    ] {
        let request = openssl.request(&folder, kind, new_key)?;
        let signed = folder.join(format!("{kind}.pem"));
        ca.run(&[
            "sign",
            "--csr",
            &request.display().to_string(),
            "--id",
            "spiffe://east.example/ns/shop/sa/openssl",
            "--out",
            &signed.display().to_string(),
        ])?;
        chains.push(signed);
    }

    let renewed = folder.join("renewed.pem");
    fs::copy(&issued.certificate, &renewed)?;
    ca.run(&["renew", "renewed.pem", "--key", "issued.key"])?;
    assert_ne!(fs::read(&renewed)?, fs::read(&issued.certificate)?);
    chains.push(renewed);

    for chain in &chains {
        for purpose in ["sslserver", "sslclient"] {
            // The shared root by the cross certificate; the domain's own anchor without it.
            openssl.verify(&root, chain, purpose)?;
            openssl.verify(&east.anchor, chain, purpose)?;
            assert!(
                openssl.verify(&west.anchor, chain, purpose).is_err(),
                "{}: west's anchor took east's chain",
                chain.display()
            );
        }
    }
    Ok(())
}

#[test]
fn envoys_carry_traffic_with_our_certificates_and_anchors() -> Result<()> {
    let folder = folder("envoys_carry_traffic_with_our_certificates")?;
    let ca = Ca::new(&folder)?;
    let caller = ca.issue("spiffe://east.example/zeugma/gateway", "east")?;
    let gateway = ca.issue("spiffe://west.example/zeugma/gateway", "west")?;
    let parties = Parties {
        calling: identity(&caller, &[&ca.trust("west.example")?]),
        answering: identity(&gateway, &[&ca.trust("east.example")?]),
        expected: gateway.id,
    };
    let service = backend("west-service", &folder)?;
    let chain = Chain::start(&folder, &parties, service.address.port())?;
    let answer = curl::get_host(chain.client.address, HOST, "/", Version::H2)?;
    assert_eq!(answer.body, "from west-service", "{answer:?}");
    let xfcc = answer.header("x-saw-xfcc");
    assert!(xfcc.contains(&format!("URI={}", caller.id)), "{xfcc}");
    Ok(())
}

#[test]
fn envoys_read_our_spiffe_bundles() -> Result<()> {
    let folder = folder("envoys_read_our_spiffe_bundles")?;
    let ca = Ca::new(&folder)?;
    let caller = ca.issue("spiffe://east.example/zeugma/gateway", "east")?;
    let gateway = ca.issue("spiffe://west.example/zeugma/gateway", "west")?;
    let bundles = json!({
        "east.example": ca.spiffe_bundle("east.example")?,
        "west.example": ca.spiffe_bundle("west.example")?,
    });
    let mut parties = Parties {
        calling: identity_by_bundles(&caller, &bundles),
        answering: identity_by_bundles(&gateway, &bundles),
        expected: gateway.id.clone(),
    };
    let service = backend("west-service", &folder)?;
    let chain = Chain::start(&folder, &parties, service.address.port())?;
    let answer = curl::get_host(chain.client.address, HOST, "/", Version::H1)?;
    assert_eq!(answer.body, "from west-service", "{answer:?}");

    // The same with each domain's bundle under the other's name: nobody is taken.
    let swapped = json!({
        "east.example": ca.spiffe_bundle("west.example")?,
        "west.example": ca.spiffe_bundle("east.example")?,
    });
    parties.answering = identity_by_bundles(&gateway, &swapped);
    let chain = Chain::start(&folder, &parties, service.address.port())?;
    let answer = curl::get_host(chain.client.address, HOST, "/", Version::H1)?;
    assert_eq!(answer.status, 503, "{answer:?}");
    Ok(())
}

#[test]
fn we_inspect_what_an_envoy_presents_and_verify_what_others_issued() -> Result<()> {
    let folder = folder("we_inspect_what_an_envoy_presents")?;
    let root = Root::new(&folder)?;
    let (east, west) = (root.domain("east.example")?, root.domain("west.example")?);
    let gateway = west.svid("/zeugma/gateway")?;
    let ca = Ca::new(&folder)?;

    let mut values = identity(&gateway, &[&east.trust]);
    values.extend([("sni", HOST.to_owned()), ("service_port", "9".to_owned())]);
    let envoy = Envoy::start("west-terminate", Template::Terminate, &values, &folder)?;
    let shown = ca.run(&["inspect", &envoy.address.to_string(), "--sni", HOST])?;
    assert!(shown.contains(&gateway.id), "{shown}");

    let bundles = folder.join("bundles");
    fs::create_dir_all(&bundles)?;
    for trust in [&east.trust, &west.trust] {
        fs::copy(&trust.anchor, bundles.join(format!("{}.pem", trust.name)))?;
    }
    let file = gateway.certificate.display().to_string();
    ca.run(&["verify", &file])?;
    // East's anchor in west's place: the path ends nowhere (XL4).
    fs::copy(&east.trust.anchor, bundles.join("west.example.pem"))?;
    assert!(ca.run(&["verify", &file]).is_err());
    Ok(())
}

#[test]
fn curl_passes_two_gateways_with_certificates_and_bundles_of_our_ca() -> Result<()> {
    let folder = folder("curl_passes_two_gateways_with_our_ca")?;
    let ca = Ca::new(&folder)?;
    let caller = ca.issue("spiffe://east.example/zeugma/gateway", "east")?;
    let gateway = ca.issue("spiffe://west.example/zeugma/gateway", "west")?;
    let mut trusted = Vec::new();
    for domain in ["east.example", "west.example"] {
        let anchor = folder.join(format!("{domain}.json"));
        fs::write(&anchor, ca.spiffe_bundle(domain)?.to_string())?;
        trusted.push(Trust {
            name: domain.to_owned(),
            anchor,
        });
    }
    let trusted: Vec<_> = trusted.iter().collect();
    let service = backend("west-service", &folder)?;
    let west = Setup::new(&folder, WEST, &gateway, &trusted)?
        .caller(EAST, &caller.id)
        .route(
            "orders",
            &[
                "protocol: http",
                &format!("backends: [{{ endpoints: [\"{}\"] }}]", service.address),
                &format!("allow: [{{ from: [\"{}\"] }}]", caller.id),
                "export: { to: [east] }",
            ],
        )
        .start()?;
    let east = Setup::new(&folder, EAST, &caller, &trusted)?
        .peer(WEST, west.mesh, &gateway.id)
        .route(
            "orders",
            &[
                "protocol: http",
                "backends: [{ peer: west }]",
                "allow: [{ listeners: [apps] }]",
            ],
        )
        .start()?;
    let answer = curl::get_host(east.apps, ORDERS, "/", Version::H2)?;
    assert_eq!(answer.body, "from west-service", "{answer:?}");
    let xfcc = answer.header("x-saw-xfcc");
    assert!(xfcc.contains(&format!("URI={}", caller.id)), "{xfcc}");
    Ok(())
}
