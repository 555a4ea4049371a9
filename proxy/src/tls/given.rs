//! An SVID and the trust beside it that did not come from files: whole, and in memory alone.

use std::collections::BTreeMap;
use std::fmt;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeugma_core::identity::{SpiffeId, TrustDomain};

/// What a Workload API said last: all that counts.
#[derive(PartialEq, Eq)]
pub struct Given {
    /// Who said it: its address.
    pub from: String,
    /// Who the SVID is said to be of.
    pub id: SpiffeId,
    /// The leaf first, then the certificates up to but without the anchor.
    pub chain: Vec<CertificateDer<'static>>,
    /// The key of the leaf.
    pub key: PrivateKeyDer<'static>,
    /// The anchors of the SVID's own trust domain.
    pub bundle: Vec<CertificateDer<'static>>,
    /// The anchors of others.
    pub federated: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// CRLs, of whichever of these trust domains.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Given")
            .field("from", &self.from)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
