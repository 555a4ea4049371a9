//! SPIFFE mTLS: who we are, whom we trust, and the one way a peer becomes a [`TlsPeer`].
//!
//! A peer is verified in a fixed order ([`verify_chain`]); each way to fail has a rule of its own
//! ([`zeugma_core::svid::Rule`]), a TLS alert, and a counter label. Nothing here knows routes,
//! policies or configuration formats.

mod bundle;
mod cache;
mod config;
mod credentials;
mod crl;
mod denied;
mod given;
mod groups;
mod hkdf;
mod pem;
mod possession;
mod stream;
mod transcript;
mod verification;
mod verify;

pub(crate) use bundle::check_anchors;
pub use bundle::{
    ANCHORS_MAX, Anchor, BUNDLE_BYTES_MAX, BUNDLES_MAX, Bundle, BundleError, Bundles,
};
pub use cache::CACHED_CHAINS_MAX;
pub(crate) use config::{accept, endpoint_config, upstream_config, web_config};
pub use config::{client_config, server_config};
pub(crate) use credentials::check_svid;
pub use credentials::{
    Credentials, CredentialsError, DomainBundle, ReadError, SVID_BYTES_MAX, SvidFiles, SvidGiven,
    SvidSource, Unfit,
};
pub use crl::{
    CRL_BYTES_MAX, CRL_ENTRIES_MAX, CRL_FILES_MAX, CRL_GRACE_SECONDS, CRL_ISSUERS_MAX, CRLS_MAX,
    CrlNumbers, Crls, CrlsError,
};
pub use denied::{DENIED_BYTES_MAX, DENIED_MAX, DeniedError, DeniedIds};
pub use given::Given;
pub use groups::KNOWN_GROUPS_MAX;
pub use pem::PemError;
pub(crate) use stream::IN_PLACE_BYTES;
pub use stream::TlsStream;
pub(crate) use verification::Admit;
pub use verification::PeerSlot;
pub use verify::{CHAIN_BYTES_MAX, CHAIN_CERTIFICATES_MAX, Refusal, TlsPeer, Usage, verify_chain};
