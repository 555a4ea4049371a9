//! The demo's certificates: an authority, an issuer per cluster, an SVID per gateway.

use std::path::Path;

use zeugma_ca::files::{Access, FileError, write_atomically};
use zeugma_ca::keys::KeyError;
use zeugma_ca::{Authority, AuthorityError, Bundle, LeafRequest, SubjectKey};
use zeugma_core::identity::{IdentityError, SpiffeId, TrustDomain};

use super::site::{Cluster, Gateway};

/// What goes wrong with the demo's certificates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CredentialError {
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("`{0}` is no SPIFFE name")]
    Name(String, #[source] IdentityError),
}

/// A new authority in `folder` with an issuer for each of `clusters`.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn authority(folder: &Path, clusters: &[Cluster]) -> Result<Authority, CredentialError> {
    let mut authority = Authority::init(folder, None)?;
    for cluster in clusters {
        authority.add_trust_domain(&domain(*cluster)?)?;
    }
    Ok(authority)
}

/// Gives `gateway` its key and SVID.
///
/// # Errors
/// When the SVID cannot be issued or written.
pub(crate) fn equip(authority: &mut Authority, gateway: &Gateway) -> Result<(), CredentialError> {
    let name = gateway.cluster.gateway_id();
    let id = SpiffeId::parse(&name).map_err(|error| CredentialError::Name(name, error))?;
    let key = SubjectKey::generate()?;
    let issued = authority.issue(&LeafRequest::new(id), &key)?;
    let write = |name: &str, text: &str, access| {
        write_atomically(&gateway.folder.join(name), text.as_bytes(), access)
    };
    write("gw.key", &key.pem(), Access::Secret)?;
    write("gw.pem", &issued.chain_pem(), Access::Public)?;
    Ok(())
}

/// The bundle of a cluster's trust domain.
///
/// # Errors
/// When the authority does not serve it.
pub(crate) fn bundle(
    authority: &mut Authority,
    cluster: Cluster,
) -> Result<Bundle, CredentialError> {
    Ok(authority.bundle(&domain(cluster)?)?)
}

/// Lets `gateway` trust the trust domain of `bundle`.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn trust(gateway: &Gateway, bundle: &Bundle) -> Result<(), CredentialError> {
    let name = format!("{}.json", bundle.trust_domain());
    let path = gateway.folder.join("bundles").join(name);
    write_atomically(&path, bundle.json().as_bytes(), Access::Public)?;
    Ok(())
}

fn domain(cluster: Cluster) -> Result<TrustDomain, CredentialError> {
    let name = cluster.trust_domain;
    TrustDomain::parse(name).map_err(|error| CredentialError::Name(name.to_owned(), error))
}
