//! `TrustDomain`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

/// A foreign trust domain, named by `metadata.name`: whose callers and gateways are verified by its
/// bundle, beside those in `svid.files.bundles`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(crate) struct TrustDomainSpec {
    /// The file of its bundle, a SPIFFE bundle (`.json`) or PEM (`.pem`); a relative path starts from
    /// this file's folder. Required. It is watched; a file that cannot be used leaves the last good
    /// certificate and bundles of the gateway in use, and there must be no second bundle of this
    /// trust domain in `svid.files.bundles`.
    pub bundle: PathBuf,
}
