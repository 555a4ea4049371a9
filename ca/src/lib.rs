//! The Zeugma certificate authority on files: one root, one issuer per trust domain, workload
//! SVIDs, SPIFFE bundles, and a ledger of everything that was ever issued.
//!
//! ```text
//! root (P-384, 10 years, pathLen 2)                shared by all trust domains; signs only issuers
//!  └─ issuer of east.example (P-256, pathLen 0, URI spiffe://east.example), one key, two certificates:
//!       (a) cross certificate, signed by the root   sent in the chain, for those who only know the root
//!       (b) self-signed certificate, same key       the anchor in east.example's SPIFFE bundle
//! ```
//!
//! Every certificate takes one way: template, sign, re-parse our own DER and hold it to the
//! X.509-SVID rules, commit to the ledger, and only then release.
//!
//! ```
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! use zeugma_ca::{Authority, LeafRequest, SubjectKey};
//! use zeugma_core::identity::{SpiffeId, TrustDomain};
//!
//! let mut ca = Authority::init(&folder.path().join("ca"), None)?;
//! let east = TrustDomain::parse("east.example")?;
//! ca.add_trust_domain(&east)?;
//!
//! let key = SubjectKey::generate()?;
//! let id = SpiffeId::parse("spiffe://east.example/ns/shop/sa/cart")?;
//! let issued = ca.issue(&LeafRequest::new(id), &key)?;
//! assert_eq!(issued.chain().len(), 2); // the leaf and its issuer's cross certificate
//! let bundle = ca.bundle(&east)?; // for everyone who verifies east's SVIDs
//! assert_eq!(bundle.sequence(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! This crate must *not* know the gateway, xDS or any configuration format; it shares only the
//! vocabulary of `zeugma-core`.

pub mod authority;
pub mod bundle;
pub mod check;
pub mod csr;
pub mod files;
pub mod keys;
pub mod ledger;
pub mod policy;
mod sign;
mod template;

pub use authority::{Authority, AuthorityError, Issued, NewIssuer};
pub use bundle::Bundle;
pub use keys::{Passphrase, SubjectKey};
pub use policy::{LeafRequest, Policy};
