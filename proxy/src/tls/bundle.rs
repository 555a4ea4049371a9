//! Trust bundles: the anchors of each trust domain, never merged (B8).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, fs, io};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde::Deserialize;
use zeugma_core::identity::{IdentityError, TrustDomain};
use zeugma_core::svid::{Certificate, Origin, Rule, Violation};

use super::config::sha256;
use super::credentials::{DomainBundle, ReadError, read_bounded};
use super::crl::{Authority, authority};
use super::pem::PemError;

/// The largest bundle file read, in bytes.
pub const BUNDLE_BYTES_MAX: u64 = 1 << 20;
/// The most anchors of one bundle.
pub const ANCHORS_MAX: usize = 64;
/// The most bundles of one folder.
pub const BUNDLES_MAX: usize = 1024;

/// Why a bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The folder cannot be listed.
    #[error("{}: cannot list the folder of bundles", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder holds too many bundles.
    #[error("{}: over {BUNDLES_MAX} bundles; split the mesh or remove bundles not in use", path.display())]
    TooMany {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the folder cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file's name is not a trust domain.
    #[error("{}: the file name must be `<trust domain>.json` or `<trust domain>.pem`", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// What is wrong with the trust domain.
        #[source]
        source: IdentityError,
    },
    /// Two files are of one trust domain.
    #[error("{}: there is a second bundle of trust domain {domain}; bundles are never merged, remove one", path.display())]
    Twice {
        /// The second file.
        path: PathBuf,
        /// The trust domain.
        domain: TrustDomain,
    },
    /// The file is no JWK set.
    #[error("{}: not a SPIFFE bundle (a JWK set with `keys`)", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// An `x5c` entry is not base64.
    #[error("{}: keys[{index}].x5c[0] is not base64", path.display())]
    Base64 {
        /// The file.
        path: PathBuf,
        /// The position in `keys`.
        index: usize,
        /// Where and why.
        #[source]
        source: base64::DecodeError,
    },
    /// The file is not whole PEM.
    #[error("{}: not PEM certificates; is the file whole?", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PemError,
    },
    /// A PEM file holds no certificate.
    #[error("{}: no certificate in it; to trust nothing, use a .json bundle with empty `keys`", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// An anchor breaks a rule.
    #[error("{}: anchor {index} cannot be used; get a new bundle from its CA", path.display())]
    Anchor {
        /// The file.
        path: PathBuf,
        /// Its position, from 0.
        index: usize,
        /// The broken rule.
        #[source]
        source: Violation,
    },
    /// Too many anchors.
    #[error("{}: over {ANCHORS_MAX} anchors; remove retired ones", path.display())]
    TooManyAnchors {
        /// The file.
        path: PathBuf,
    },
}

impl BundleError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        "ZG0203"
    }
}

/// A certificate that a bundle trusts.
#[derive(Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// The SHA-256 of `der`.
    pub fingerprint: [u8; 32],
    /// Start of validity, in Unix seconds.
    pub not_before: i64,
    /// End of validity, in Unix seconds.
    pub not_after: i64,
    /// How many issuers may stand below it.
    pub path_len: Option<u32>,
    /// Whose name and key it is of.
    pub(super) authority: Authority,
}

impl Anchor {
    fn new(der: CertificateDer<'static>, domain: &TrustDomain) -> Result<Self, Violation> {
        let certificate = Certificate::parse(&der)?;
        let facts = certificate.check_anchor(domain, Origin::Presented)?;
        Ok(Self {
            authority: authority(&certificate),
            fingerprint: sha256(&der),
            not_before: facts.not_before,
            not_after: facts.not_after,
            path_len: facts.path_len,
            der,
        })
    }

    pub(super) fn check_time(&self, now: i64) -> Result<(), Violation> {
        if now < self.not_before {
            let detail = "the anchor is not valid yet; check this machine's clock";
            return Err(Violation::new(Rule::NotYetValid, detail));
        }
        if now > self.not_after {
            let late = now.saturating_sub(self.not_after);
            let detail = format!("the anchor expired {late} s ago; get a new bundle from its CA");
            return Err(Violation::new(Rule::Expired, detail));
        }
        Ok(())
    }
}

impl fmt::Debug for Anchor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Anchor(")?;
        for byte in self.fingerprint {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// What one trust domain's SVIDs are verified with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    domain: TrustDomain,
    anchors: Vec<Anchor>,
    /// `anchors` as the path builder wants them, in the same order.
    trust_anchors: Vec<TrustAnchor<'static>>,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
}

impl Bundle {
    /// Reads a bundle file: a SPIFFE bundle if it ends with `.json`, else PEM certificates.
    ///
    /// # Errors
    /// Any [`BundleError`] of one file; every one names it.
    pub fn load(path: &Path, domain: TrustDomain) -> Result<Self, BundleError> {
        let bytes = read_bounded(path, BUNDLE_BYTES_MAX)?;
        if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            Self::from_json(&bytes, domain, path)
        } else {
            Self::from_pem(&bytes, domain, path)
        }
    }

    /// Reads a SPIFFE bundle that is no file; `named` stands for it in errors.
    ///
    /// # Errors
    /// Any [`BundleError`] of one file.
    pub fn parse(bytes: &[u8], domain: TrustDomain, named: &Path) -> Result<Self, BundleError> {
        Self::from_json(bytes, domain, named)
    }

    /// Makes a bundle of certificates; an empty one refuses every SVID of the trust domain (B1).
    ///
    /// # Errors
    /// The position and the rule of an anchor that cannot be used.
    pub fn new(
        domain: TrustDomain,
        anchors: Vec<CertificateDer<'static>>,
    ) -> Result<Self, (usize, Violation)> {
        let mut bundle = Self {
            domain,
            anchors: Vec::with_capacity(anchors.len()),
            trust_anchors: Vec::with_capacity(anchors.len()),
            sequence: None,
            refresh_hint: None,
        };
        for (index, der) in anchors.into_iter().enumerate() {
            let anchor =
                Anchor::new(der, &bundle.domain).map_err(|violation| (index, violation))?;
            // A copy of an anchor adds nothing but work for the path builder.
            if bundle.anchors.contains(&anchor) {
                continue;
            }
            let trust_anchor = webpki::anchor_from_trusted_cert(&anchor.der)
                .map_err(|e| (index, Violation::new(Rule::Malformed, e.to_string())))?
                .to_owned();
            bundle.trust_anchors.push(trust_anchor);
            bundle.anchors.push(anchor);
        }
        Ok(bundle)
    }

    /// Makes a bundle of anchors that `from` gave.
    ///
    /// # Errors
    /// As of a file; `from` and the trust domain stand for its name.
    pub(super) fn given(
        domain: &TrustDomain,
        anchors: &[CertificateDer<'static>],
        from: &str,
    ) -> Result<Self, BundleError> {
        let named = PathBuf::from(format!("{from} (trust domain {domain})"));
        Self::checked(domain.clone(), anchors.to_vec(), &named)
    }

    /// Whose SVIDs it verifies.
    #[must_use]
    pub const fn domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The anchors, in the order of the file.
    #[must_use]
    pub fn anchors(&self) -> &[Anchor] {
        &self.anchors
    }

    /// Whether both trust the same certificates, in whatever order.
    #[must_use]
    pub fn trusts_as(&self, other: &Self) -> bool {
        // None is there twice.
        self.domain == other.domain
            && self.anchors.len() == other.anchors.len()
            && (self.anchors.iter()).all(|anchor| other.anchors.contains(anchor))
    }

    /// `spiffe_sequence`, where the file has one (B2).
    #[must_use]
    pub const fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// `spiffe_refresh_hint`, where the file has one (B3).
    #[must_use]
    pub const fn refresh_hint(&self) -> Option<Duration> {
        self.refresh_hint
    }

    pub(super) fn trust_anchors(&self) -> &[TrustAnchor<'static>] {
        &self.trust_anchors
    }

    /// The anchor that the path builder ended at, found by address: two may be equal as names and
    /// keys and differ in validity.
    pub(super) fn anchor_of(&self, found: &TrustAnchor<'_>) -> Option<&Anchor> {
        let at = self
            .trust_anchors
            .iter()
            .position(|anchor| std::ptr::eq(anchor, found))?;
        self.anchors.get(at)
    }

    fn from_pem(bytes: &[u8], domain: TrustDomain, path: &Path) -> Result<Self, BundleError> {
        let anchors: Vec<_> = CertificateDer::pem_slice_iter(bytes)
            .collect::<Result<_, _>>()
            .map_err(|source| BundleError::Pem {
                path: path.to_owned(),
                source: source.into(),
            })?;
        if anchors.is_empty() {
            return Err(BundleError::Empty {
                path: path.to_owned(),
            });
        }
        Self::checked(domain, anchors, path)
    }

    fn from_json(bytes: &[u8], domain: TrustDomain, path: &Path) -> Result<Self, BundleError> {
        let set: JwkSet = serde_json::from_slice(bytes).map_err(|source| BundleError::Json {
            path: path.to_owned(),
            source,
        })?;
        let mut anchors = Vec::new();
        for (index, key) in set.keys.iter().enumerate() {
            let Some(text) = x509_anchor(key) else {
                continue;
            };
            let der = STANDARD
                .decode(text)
                .map_err(|source| BundleError::Base64 {
                    path: path.to_owned(),
                    index,
                    source,
                })?;
            anchors.push(CertificateDer::from(der));
        }
        let mut bundle = Self::checked(domain, anchors, path)?;
        bundle.sequence = set.spiffe_sequence;
        bundle.refresh_hint = set.spiffe_refresh_hint.map(Duration::from_secs);
        Ok(bundle)
    }

    fn checked(
        domain: TrustDomain,
        anchors: Vec<CertificateDer<'static>>,
        path: &Path,
    ) -> Result<Self, BundleError> {
        if anchors.len() > ANCHORS_MAX {
            return Err(BundleError::TooManyAnchors {
                path: path.to_owned(),
            });
        }
        Self::new(domain, anchors).map_err(|(index, source)| BundleError::Anchor {
            path: path.to_owned(),
            index,
            source,
        })
    }
}

/// The bundles we hold, one for each trust domain whose peers we accept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundles(BTreeMap<TrustDomain, Bundle>);

/// Checks the anchors of a trust domain as those of a bundle are.
///
/// # Errors
/// As of a file.
pub(crate) fn check_anchors(
    domain: &TrustDomain,
    anchors: &[CertificateDer<'static>],
) -> Result<(), BundleError> {
    Bundle::given(domain, anchors, "what was given").map(drop)
}

impl Bundles {
    /// Reads every `<trust domain>.json` and `.pem` of a folder; other files, and those whose name
    /// begins with a dot, are ignored.
    ///
    /// # Errors
    /// The first file that cannot be used: a folder is taken whole or not at all.
    pub fn load(folder: &Path) -> Result<Self, BundleError> {
        let mut bundles = Self::default();
        for path in files(folder)? {
            let domain = domain_of(&path)?;
            bundles.add(&path, domain)?;
        }
        Ok(bundles)
    }

    /// As [`load`](Self::load), with these files beside the folder's, and each trust domain for itself:
    /// where its bundle cannot be used the one of `before` stays, if it had one.
    pub(super) fn renew(
        folder: &Path,
        beside: &[DomainBundle],
        before: &Self,
    ) -> (Self, Vec<BundleError>) {
        let mut wrong = Vec::new();
        let mut found: BTreeMap<TrustDomain, Vec<PathBuf>> = BTreeMap::new();
        let mut bundles = Self::default();
        match files(folder) {
            Ok(paths) => {
                for path in paths {
                    match domain_of(&path) {
                        Ok(domain) => found.entry(domain).or_default().push(path),
                        Err(error) => wrong.push(error),
                    }
                }
            }
            Err(error) => {
                wrong.push(error);
                bundles = before.clone();
            }
        }
        for one in beside {
            match (&one.file, found.get_mut(&one.domain)) {
                (Some(path), _) => {
                    let paths = found.entry(one.domain.clone()).or_default();
                    paths.push(path.clone());
                }
                // What is fetched alone has none in the folder either.
                (None, Some(paths)) => paths.push(folder.to_owned()),
                (None, None) => {}
            }
        }
        let mut twice = Vec::new();
        for (domain, paths) in found {
            if paths.len() > 1 {
                twice.push(domain.clone());
            }
            let bundle = match paths.as_slice() {
                [.., second] if paths.len() > 1 => Err(BundleError::Twice {
                    path: second.clone(),
                    domain: domain.clone(),
                }),
                [path, ..] => Bundle::load(path, domain.clone()),
                [] => continue,
            };
            let bundle = bundle.map_err(|error| wrong.push(error)).ok();
            if let Some(bundle) = bundle.or_else(|| before.get(&domain).cloned()) {
                bundles.insert(bundle);
            }
        }
        // Of two, nobody knows which is meant: what was fetched is one of them.
        for one in beside.iter().filter(|one| !twice.contains(&one.domain)) {
            bundles.prefer_fetched(one);
        }
        (bundles, wrong)
    }

    /// Takes out the bundles of all trust domains but these.
    pub(super) fn retain(&mut self, mut is_trusted: impl FnMut(&TrustDomain) -> bool) {
        self.0.retain(|domain, _| is_trusted(domain));
    }

    /// Takes out the bundle of a trust domain: nobody of it is trusted.
    pub(super) fn remove(&mut self, domain: &TrustDomain) {
        self.0.remove(domain);
    }

    /// Reads the bundle of one more trust domain.
    ///
    /// # Errors
    /// [`BundleError::Twice`] if it has one already; a file that cannot be used.
    pub fn add(&mut self, path: &Path, domain: TrustDomain) -> Result<(), BundleError> {
        if self.get(&domain).is_some() {
            let path = path.to_owned();
            return Err(BundleError::Twice { path, domain });
        }
        let bundle = Bundle::load(path, domain)?;
        self.0.insert(bundle.domain.clone(), bundle);
        Ok(())
    }

    /// Takes the bundle of one more trust domain, if there is one by now: the newer of its file's and
    /// of what was fetched. `folder` is that of the others.
    ///
    /// # Errors
    /// As [`add`](Self::add). What was fetched counts alone then; of two bundles none does.
    pub(super) fn add_foreign(
        &mut self,
        one: &DomainBundle,
        folder: &Path,
    ) -> Result<(), BundleError> {
        let added = match &one.file {
            Some(path) => self.add(path, one.domain.clone()),
            None if self.get(&one.domain).is_some() => Err(BundleError::Twice {
                path: folder.to_owned(),
                domain: one.domain.clone(),
            }),
            None => Ok(()),
        };
        if matches!(added, Err(BundleError::Twice { .. })) {
            self.remove(&one.domain);
        } else {
            self.prefer_fetched(one);
        }
        added
    }

    /// Takes what was fetched, unless the file's sequence is higher.
    fn prefer_fetched(&mut self, one: &DomainBundle) {
        let of_file = self.get(&one.domain).and_then(Bundle::sequence);
        if let Some(fetched) = &one.fetched
            && of_file <= fetched.sequence()
        {
            self.insert(fetched.clone());
        }
    }

    /// Whether both trust the same certificates for the same trust domains.
    pub(super) fn trust_as(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && (self.0.values().zip(other.0.values())).all(|(one, other)| one.trusts_as(other))
    }

    /// Adds a bundle in place of the one its trust domain had, which is returned.
    pub fn insert(&mut self, bundle: Bundle) -> Option<Bundle> {
        self.0.insert(bundle.domain.clone(), bundle)
    }

    /// The bundle of `domain` (XL4).
    #[must_use]
    pub fn get(&self, domain: &TrustDomain) -> Option<&Bundle> {
        self.0.get(domain)
    }

    /// All of them, by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &Bundle> {
        self.0.values()
    }
}

/// The bundles of a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>, BundleError> {
    let list = |source| BundleError::Folder {
        path: folder.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(list)? {
        let path = entry.map_err(list)?.path();
        let bundle = path
            .extension()
            .is_some_and(|extension| extension == "json" || extension == "pem");
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !bundle || hidden {
            continue;
        }
        if paths.len() >= BUNDLES_MAX {
            return Err(BundleError::TooMany {
                path: folder.to_owned(),
            });
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

/// Whose bundle a file is by its name.
fn domain_of(path: &Path) -> Result<TrustDomain, BundleError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    TrustDomain::parse(&name).map_err(|source| BundleError::Name {
        path: path.to_owned(),
        source,
    })
}

/// The document of Trust_Domain_and_Bundle.md §4; what it may hold beyond this is not asked for (B7).
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<serde_json::Value>,
    spiffe_sequence: Option<u64>,
    spiffe_refresh_hint: Option<u64>,
}

/// The certificate of an element that is an X.509 anchor; `None` for what is to be ignored: another
/// or no `use`, an unknown or no `kty` (B4), no certificate (B5).
fn x509_anchor(key: &serde_json::Value) -> Option<&str> {
    let text = |name: &str| key.get(name).and_then(serde_json::Value::as_str);
    if text("use") != Some("x509-svid") || !matches!(text("kty"), Some("EC" | "RSA" | "OKP")) {
        return None;
    }
    key.get("x5c")?.get(0)?.as_str()
}
