//! `TrustDomain`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use zeugma_core::identity::SpiffeId;

use super::scalar::Text;
use crate::bundle_url::BundleUrl;

/// A foreign trust domain, named by `metadata.name`: whose callers and gateways are verified by its
/// bundle, beside those that `svid` brings. It is not the gateway's own.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TrustDomainSpec {
    /// The file of its bundle, a SPIFFE bundle (`.json`) or PEM (`.pem`); a relative path starts from
    /// this file's folder. Required without `bundleEndpointURL`, and with `https_spiffe` for an
    /// endpoint of this trust domain, whose first answer is verified by it. It is watched; a file that
    /// cannot be used leaves the last good bundle of this trust domain in use, at the start what was
    /// fetched last, or else nobody of it is let in; no other trust domain is concerned. `svid`
    /// must bring no second bundle of it. What was fetched takes its place, unless the file has a
    /// higher `spiffe_sequence`.
    pub bundle: Option<PathBuf>,
    /// Where the trust domain serves its bundle: `https://` and a host (SPIFFE Federation, bundle
    /// endpoint). It is fetched at the start, by SIGHUP, and every `spiffe_refresh_hint`, which counts
    /// within 10 s to 24 h (5 min where there is none); after a failure within 5 min. An answer may
    /// have 1 MiB and take 30 s, five temporary redirects included. What was fetched last stays in use
    /// whatever fails, and is kept in `stateDir`; a bundle of a lower sequence, or another one of the
    /// same, is refused and told. Default: none, and `bundle` alone counts.
    #[serde(rename = "bundleEndpointURL")]
    pub bundle_endpoint_url: Option<Text<BundleUrl>>,
    /// How the endpoint is verified. Required with `bundleEndpointURL`.
    pub bundle_endpoint_profile: Option<ProfileSpec>,
}

/// How a bundle endpoint is verified. TLS 1.3, without a certificate of ours in both.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct ProfileSpec {
    /// By what. Required.
    #[serde(rename = "type")]
    pub kind: ProfileType,
    /// The SPIFFE ID that the endpoint must have. `https_spiffe` only, and required there.
    #[serde(rename = "endpointSPIFFEID")]
    pub endpoint_spiffe_id: Option<Text<SpiffeId>>,
}

/// By what a bundle endpoint is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ProfileType {
    /// The name in the URL, by the authorities that this machine trusts for the web: those of
    /// `$SSL_CERT_FILE`, else of the system.
    HttpsWeb,
    /// An SVID of `endpointSPIFFEID`, by the newest bundle of that ID's trust domain.
    HttpsSpiffe,
}
