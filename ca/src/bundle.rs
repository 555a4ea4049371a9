//! The SPIFFE bundle of a trust domain: a JWK Set of its anchors (Trust_Domain_and_Bundle.md §4).

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::FromDer as _;
use x509_parser::prelude::X509Certificate;
use zeugma_core::identity::TrustDomain;

use crate::files;

/// How often consumers should fetch the bundle again, in seconds (B3, F10).
pub const REFRESH_HINT_SECONDS: u64 = 300;

/// What verifiers of a trust domain's SVIDs trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    trust_domain: TrustDomain,
    sequence: u64,
    anchors: Vec<CertificateDer<'static>>,
}

#[derive(Serialize)]
struct JwkSet {
    keys: Vec<Jwk>,
    spiffe_sequence: u64,
    spiffe_refresh_hint: u64,
}

// B5: no `kid`, exactly one certificate in `x5c`.
#[derive(Serialize)]
struct Jwk {
    kty: &'static str,
    #[serde(rename = "use")]
    usage: &'static str,
    crv: &'static str,
    x: String,
    y: String,
    x5c: [String; 1],
}

impl Bundle {
    pub(crate) fn new(
        trust_domain: TrustDomain,
        sequence: u64,
        anchors: Vec<CertificateDer<'static>>,
    ) -> Self {
        Self {
            trust_domain,
            sequence,
            anchors,
        }
    }

    /// Whose SVIDs it verifies.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Grows with every change of content (B2).
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The self-signed certificates of the trust domain's issuers.
    #[must_use]
    pub fn anchors(&self) -> &[CertificateDer<'static>] {
        &self.anchors
    }

    /// The SPIFFE bundle document, pretty-printed JSON with a final line feed.
    #[must_use]
    pub fn json(&self) -> String {
        let set = JwkSet {
            keys: self.anchors.iter().filter_map(jwk).collect(),
            spiffe_sequence: self.sequence,
            spiffe_refresh_hint: REFRESH_HINT_SECONDS,
        };
        // Strings and integers alone always serialize.
        let mut text = serde_json::to_string_pretty(&set).unwrap_or_default();
        text.push('\n');
        text
    }

    /// The anchors as PEM.
    #[must_use]
    pub fn pem(&self) -> String {
        self.anchors
            .iter()
            .map(|der| files::pem("CERTIFICATE", der))
            .collect()
    }
}

/// What tells one content from another: the anchors in order.
pub(crate) fn content(anchors: &[CertificateDer<'_>]) -> String {
    let mut hasher = Sha256::new();
    for anchor in anchors {
        hasher.update(Sha256::digest(anchor));
    }
    files::hex(&hasher.finalize())
}

/// RFC 7518 §6.2: an EC key as its curve and its two coordinates. Our anchors have no other keys.
fn jwk(anchor: &CertificateDer<'_>) -> Option<Jwk> {
    let (_, certificate) = X509Certificate::from_der(anchor).ok()?;
    let point = certificate.public_key().subject_public_key.data.clone();
    // SEC 1 §2.3.3: 04, x, y.
    let (tag, coordinates) = point.split_first()?;
    let crv = match (*tag, coordinates.len()) {
        (4, 64) => "P-256",
        (4, 96) => "P-384",
        _ => return None,
    };
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    Some(Jwk {
        kty: "EC",
        usage: "x509-svid",
        crv,
        x: URL_SAFE_NO_PAD.encode(x),
        y: URL_SAFE_NO_PAD.encode(y),
        x5c: [STANDARD.encode(anchor)],
    })
}
