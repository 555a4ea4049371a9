//! Our own SVID and the bundles beside it: loaded whole, checked as a peer's would be, or refused.

use std::fs::{File, Metadata};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use rustix::process::geteuid;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use zeugma_core::identity::{SpiffeId, TrustDomain};
use zeugma_core::svid::{Certificate, Origin, Rule, Violation};

use super::bundle::{Bundle, BundleError, Bundles};
use super::cache::{ChainCache, ChainKey, Claim, Known, New};
use super::config::provider;
use super::crl::{CrlNumbers, Crls, CrlsError};
use super::denied::{DeniedError, DeniedIds};
use super::given::Given;
use super::groups::KnownGroups;
use super::pem::PemError;
use super::possession::LeafKey;
use super::verify::{Refusal, TlsPeer, Trusted, Usage, seconds, verify, verify_chain};

/// The largest certificate or key file read, in bytes.
pub const SVID_BYTES_MAX: u64 = 64 * 1024;

/// Where our SVID and the bundles are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidFiles {
    /// PEM: the leaf first, then the certificates up to but without the anchor.
    pub certificate: PathBuf,
    /// PEM: the key of the leaf, readable by its owner alone; one of root's also by a group.
    pub key: PathBuf,
    /// A folder of `<trust domain>.json` and `<trust domain>.pem`.
    pub bundles: PathBuf,
    /// A folder of `<trust domain>.pem` with CRLs.
    pub crls: Option<PathBuf>,
    /// A file of SPIFFE IDs that are refused.
    pub denied: Option<PathBuf>,
    /// Further trust domains, and where their bundles are.
    pub domains: Vec<DomainBundle>,
    /// The trust domain that our SVID must be of; any where there is none.
    pub own: Option<TrustDomain>,
}

impl SvidFiles {
    /// Whether a trust domain is one of [`domains`](Self::domains), and not our own.
    fn is_foreign(&self, domain: &TrustDomain) -> bool {
        self.own.as_ref() != Some(domain) && self.domains.iter().any(|one| one.domain == *domain)
    }
}

/// Where our SVID comes from, and what it and others are verified with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SvidSource {
    /// From files.
    Files(SvidFiles),
    /// From a Workload API.
    Given(SvidGiven),
}

/// What a Workload API gave, and what is beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvidGiven {
    /// What it gave last, if it gave anything.
    pub given: Option<Arc<Given>>,
    /// The trust domain that our SVID must be of.
    pub own: TrustDomain,
    /// Further trust domains, and where their bundles are.
    pub domains: Vec<DomainBundle>,
    /// A file of SPIFFE IDs that are refused.
    pub denied: Option<PathBuf>,
}

impl SvidSource {
    /// Further trust domains, and where their bundles are.
    #[must_use]
    pub fn domains(&self) -> &[DomainBundle] {
        match self {
            Self::Files(files) => &files.domains,
            Self::Given(given) => &given.domains,
        }
    }

    pub(crate) fn domains_mut(&mut self) -> &mut [DomainBundle] {
        match self {
            Self::Files(files) => &mut files.domains,
            Self::Given(given) => &mut given.domains,
        }
    }

    /// Whether a Workload API has given nothing yet.
    #[must_use]
    pub const fn is_awaited(&self) -> bool {
        match self {
            Self::Files(_) => false,
            Self::Given(given) => given.given.is_none(),
        }
    }
}

/// Where the bundle of one more trust domain is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainBundle {
    /// Whose it is.
    pub domain: TrustDomain,
    /// A SPIFFE bundle or PEM.
    pub file: Option<PathBuf>,
    /// Whether it is fetched too.
    pub is_fetched: bool,
    /// What was fetched last; it counts unless the file's sequence is higher.
    pub fetched: Option<Bundle>,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is missing or not readable.
    #[error("{}: cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too large.
    #[error("{}: over {max} bytes; is it the right file?", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most bytes read.
        max: u64,
    },
}

/// Why credentials cannot be used; every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A CRL cannot be used.
    #[error(transparent)]
    Crls(#[from] CrlsError),
    /// The deny list cannot be used.
    #[error(transparent)]
    Denied(#[from] DeniedError),
    /// The key is readable by others (C5); one of root's may be read by a group, for a gateway that
    /// is not root.
    #[error("{}: readable or writable by others (mode {mode:03o}); run `chmod 600` on it", path.display())]
    KeyMode {
        /// The key file.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
    },
    /// A file is not whole PEM.
    #[error("{}: no {what} in PEM form; is the file whole?", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why.
        #[source]
        source: PemError,
    },
    /// The key is of a kind that cannot sign a TLS 1.3 handshake.
    #[error("{}: the key cannot be used; P-256, P-384, Ed25519 or RSA from 2048 bits are supported", path.display())]
    Key {
        /// The key file.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The key is not the certificate's.
    #[error("{}: not the key of {}; replace both files together", key.display(), certificate.display())]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// A Workload API gave an SVID that cannot be used.
    #[error("{from}: the SVID that it gives is refused")]
    Given {
        /// Who gave it.
        from: String,
        /// Why.
        #[source]
        source: Unfit,
    },
    /// Our own SVID is of another trust domain than the configuration says.
    #[error("{}: this is `{id}`, and the gateway's trust domain is `{own}`; issue one of that, or mend `trustDomain`", path.display())]
    Foreign {
        /// The certificate file.
        path: PathBuf,
        /// Who it is.
        id: SpiffeId,
        /// What the configuration says.
        own: TrustDomain,
    },
    /// Our own SVID breaks a rule that every peer would hold against it.
    #[error("{}: every peer would refuse this SVID; issue a new one, or add its trust domain's bundle to {}", path.display(), bundles.display())]
    Refused {
        /// The certificate file.
        path: PathBuf,
        /// The folder of bundles.
        bundles: PathBuf,
        /// The broken rule.
        #[source]
        source: Refusal,
    },
}

impl CredentialsError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Read(_) => "ZG0206",
            Self::Bundle(error) => error.code(),
            Self::Crls(_) => "ZG0204",
            Self::Denied(_) => "ZG0205",
            Self::KeyMode { .. }
            | Self::Pem { .. }
            | Self::Key { .. }
            | Self::KeyMismatch { .. }
            | Self::Foreign { .. }
            | Self::Refused { .. } => "ZG0202",
            Self::Given { .. } => "ZG0262",
        }
    }
}

/// Why a certificate and a key make no identity.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It breaks a rule that every peer would hold against it.
    #[error("every peer would refuse it")]
    Refused(#[source] Refusal),
    /// It is of another trust domain than the configuration says.
    #[error(
        "it is `{id}`, and the gateway's trust domain is `{own}`; register the gateway in that one, or mend `trustDomain`"
    )]
    Foreign {
        /// Who it is.
        id: SpiffeId,
        /// What the configuration says.
        own: TrustDomain,
    },
    /// It is not who it is said to be.
    #[error("it is said to be `{said}`, and its certificate is of `{id}`")]
    Named {
        /// Who it is said to be.
        said: SpiffeId,
        /// Who it is.
        id: SpiffeId,
    },
    /// The key is not the certificate's.
    #[error("its key is not that of its certificate")]
    KeyMismatch,
    /// The key is of a kind that cannot sign a TLS 1.3 handshake.
    #[error(
        "its key cannot be used; P-256, P-384, Ed25519 or RSA from 2048 bits are supported, as PKCS#8"
    )]
    Key(#[source] rustls::Error),
}

/// Who we are and whom we trust: immutable, replaced as a whole under a new generation.
pub struct Credentials {
    generation: u64,
    /// None until a Workload API has given one.
    identity: Option<Identity>,
    /// What of the files is not in it.
    wrong: Vec<CredentialsError>,
    bundles: Bundles,
    crls: Crls,
    crl_numbers: CrlNumbers,
    denied: DeniedIds,
    verified: Box<ChainCache>,
    known_groups: Arc<KnownGroups>,
}

/// Who we are.
#[derive(Clone)]
struct Identity {
    own: TlsPeer,
    not_before: i64,
    chain: Vec<CertificateDer<'static>>,
    resolver: Arc<SingleCertAndKey>,
}

/// Whom we trust, and whom not.
struct Trust {
    bundles: Bundles,
    crls: Crls,
    crl_numbers: CrlNumbers,
    denied: DeniedIds,
}

impl Trust {
    /// Each foreign trust domain for itself: what of it cannot be used is left out.
    fn load(
        files: &SvidFiles,
        newest: &CrlNumbers,
    ) -> Result<(Self, Vec<CredentialsError>), CredentialsError> {
        let mut wrong: Vec<CredentialsError> = Vec::new();
        let mut bundles = Bundles::load(&files.bundles)?;
        for one in &files.domains {
            match bundles.add_foreign(one, &files.bundles) {
                Err(error) if files.is_foreign(&one.domain) => wrong.push(error.into()),
                added => added?,
            }
        }
        let crls = match &files.crls {
            Some(folder) => {
                let is_foreign = |domain: &TrustDomain| files.is_foreign(domain);
                let (crls, refused) = Crls::begin(folder, &mut bundles, newest, is_foreign)?;
                wrong.extend(refused.into_iter().map(CredentialsError::from));
                crls
            }
            None => Crls::default(),
        };
        let denied = match &files.denied {
            Some(file) => DeniedIds::load(file)?,
            None => DeniedIds::default(),
        };
        Ok((Self::of(files, bundles, crls, denied, newest), wrong))
    }

    /// Each part for itself: what cannot be used stays as it was in `before`.
    fn renew(files: &SvidFiles, before: &Credentials) -> (Self, Vec<CredentialsError>) {
        let mut wrong: Vec<CredentialsError> = Vec::new();
        let trusted = &before.bundles;
        let (mut bundles, refused) = Bundles::renew(&files.bundles, &files.domains, trusted);
        wrong.extend(refused.into_iter().map(CredentialsError::from));
        let newest = &before.crl_numbers;
        let crls = match &files.crls {
            Some(folder) => {
                let (crls, refused) =
                    Crls::renew(folder, &mut bundles, newest, &before.crls, trusted);
                wrong.extend(refused.into_iter().map(CredentialsError::from));
                crls
            }
            None => Crls::default(),
        };
        let denied = files.denied.as_deref().map(DeniedIds::load).transpose();
        let denied = denied.map_or_else(
            |error| {
                wrong.push(error.into());
                before.denied.clone()
            },
            Option::unwrap_or_default,
        );
        (Self::of(files, bundles, crls, denied, newest), wrong)
    }

    /// What a Workload API gave, and each foreign trust domain for itself: of one that cannot be used
    /// what it was in `before` stays.
    ///
    /// # Errors
    /// What cannot be used of the own trust domain; a deny list where there is none of `before`.
    fn given(
        source: &SvidGiven,
        before: Option<&Credentials>,
        newest: &CrlNumbers,
    ) -> Result<(Self, Vec<CredentialsError>), CredentialsError> {
        let mut wrong: Vec<CredentialsError> = Vec::new();
        let mut bundles = Bundles::default();
        let trusted = |domain: &TrustDomain| before.and_then(|before| before.bundles.get(domain));
        let given = source.given.as_deref();
        if let Some(given) = given {
            let own = given.id.trust_domain();
            bundles.insert(Bundle::given(&own, &given.bundle, &given.from)?);
            for (domain, anchors) in &given.federated {
                let bundle = Bundle::given(domain, anchors, &given.from);
                let bundle = bundle.map_err(|error| wrong.push(error.into())).ok();
                if let Some(bundle) = bundle.or_else(|| trusted(domain).cloned()) {
                    bundles.insert(bundle);
                }
            }
        }
        let from = given.map_or("", |given| &given.from);
        for one in &source.domains {
            if let Err(error) = bundles.add_foreign(one, Path::new(from)) {
                wrong.push(error.into());
                if let (None, Some(kept)) = (bundles.get(&one.domain), trusted(&one.domain)) {
                    bundles.insert(kept.clone());
                }
            }
        }
        let crls = match given {
            Some(given) => {
                // Without an SVID nobody was let in yet, whatever bundles there were.
                let serving = before.filter(|before| before.identity.is_some());
                let (none, nobody) = (Crls::default(), Bundles::default());
                let kept = serving.map_or(&none, |before| &before.crls);
                let trusted = serving.map_or(&nobody, |before| &before.bundles);
                let (crls, refused) = Crls::given(given, &mut bundles, newest, kept, trusted)?;
                wrong.extend(refused.into_iter().map(CredentialsError::from));
                crls
            }
            None => Crls::default(),
        };
        let denied = source.denied.as_deref().map(DeniedIds::load).transpose();
        let denied = match (denied, before) {
            (Ok(denied), _) => denied.unwrap_or_default(),
            (Err(error), Some(before)) => {
                wrong.push(error.into());
                before.denied.clone()
            }
            (Err(error), None) => return Err(error.into()),
        };
        let mut crl_numbers = newest.clone();
        // Until there is a bundle, or one that was taken out is back, its older lists are not forgotten
        // either.
        crl_numbers.note(&crls, &bundles, |domain| {
            given.is_none_or(|given| given.federated.contains_key(domain))
                || source.domains.iter().any(|one| one.domain == *domain)
        });
        let trust = Self {
            bundles,
            crls,
            crl_numbers,
            denied,
        };
        Ok((trust, wrong))
    }

    fn of(
        files: &SvidFiles,
        bundles: Bundles,
        crls: Crls,
        denied: DeniedIds,
        newest: &CrlNumbers,
    ) -> Self {
        let mut crl_numbers = newest.clone();
        crl_numbers.note(&crls, &bundles, |domain| files.is_foreign(domain));
        Self {
            bundles,
            crls,
            crl_numbers,
            denied,
        }
    }
}

impl Identity {
    fn load(files: &SvidFiles, bundles: &Bundles) -> Result<Self, CredentialsError> {
        let chain = load_chain(&files.certificate)?;
        let key = load_key(&files.key)?;
        Self::new(chain, key, bundles, files.own.as_ref()).map_err(|unfit| match unfit {
            Unfit::Refused(source) => CredentialsError::Refused {
                path: files.certificate.clone(),
                bundles: files.bundles.clone(),
                source,
            },
            Unfit::Foreign { id, own } => CredentialsError::Foreign {
                path: files.certificate.clone(),
                id,
                own,
            },
            // Files say nothing of who it should be.
            Unfit::KeyMismatch | Unfit::Named { .. } => CredentialsError::KeyMismatch {
                key: files.key.clone(),
                certificate: files.certificate.clone(),
            },
            Unfit::Key(source) => CredentialsError::Key {
                path: files.key.clone(),
                source,
            },
        })
    }

    fn given(
        given: &Given,
        own: &TrustDomain,
        bundles: &Bundles,
    ) -> Result<Self, CredentialsError> {
        let unfit = |source| CredentialsError::Given {
            from: given.from.clone(),
            source,
        };
        let key = given.key.clone_key();
        let identity = Self::new(given.chain.clone(), key, bundles, Some(own)).map_err(unfit)?;
        if identity.own.id != given.id {
            return Err(unfit(Unfit::Named {
                said: given.id.clone(),
                id: identity.own.id,
            }));
        }
        Ok(identity)
    }

    /// Checks them as a peer would.
    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundles: &Bundles,
        domain: Option<&TrustDomain>,
    ) -> Result<Self, Unfit> {
        let now = UnixTime::now();
        let own = verify_chain(&chain, bundles, Usage::Client, now).map_err(Unfit::Refused)?;
        verify_chain(&chain, bundles, Usage::Server, now).map_err(Unfit::Refused)?;
        if let Some(domain) = domain.filter(|domain| !own.id.is_of(domain)) {
            return Err(Unfit::Foreign {
                id: own.id,
                own: domain.clone(),
            });
        }
        let not_before = chain
            .first()
            .and_then(|leaf| Certificate::parse(leaf).ok())
            .map_or(0, |leaf| leaf.not_before());
        let certified = certified(chain.clone(), key)?;
        Ok(Self {
            own,
            not_before,
            chain,
            resolver: Arc::new(certified.into()),
        })
    }

    /// Whether these bundles have the anchor of it.
    fn is_anchored(&self, bundles: &Bundles) -> bool {
        let anchors = (bundles.get(&self.own.id.trust_domain())).map_or(&[][..], Bundle::anchors);
        (anchors.iter()).any(|anchor| anchor.fingerprint == self.own.anchor)
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Unfit> {
    CertifiedKey::from_der(chain, key, provider()).map_err(|source| {
        if matches!(source, rustls::Error::InconsistentKeys(_)) {
            Unfit::KeyMismatch
        } else {
            Unfit::Key(source)
        }
    })
}

/// Checks what an SVID says by itself, before it is known which anchors it stands under: that it is one of
/// this trust domain, has not expired, and has this key. Who it is.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_svid(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    own: &TrustDomain,
) -> Result<SpiffeId, Unfit> {
    let unfit = |violation: Violation| Unfit::Refused(violation.into());
    let none = || Refusal::new(Rule::NoCertificate, "there is no certificate");
    let leaf = chain.first().ok_or_else(|| Unfit::Refused(none()))?;
    let leaf = Certificate::parse(leaf).map_err(unfit)?;
    let id = leaf.identity().map_err(unfit)?;
    if !id.is_of(own) {
        let own = own.clone();
        return Err(Unfit::Foreign { id, own });
    }
    leaf.check_leaf(Origin::Presented).map_err(unfit)?;
    leaf.check_time(seconds(UnixTime::now())).map_err(unfit)?;
    certified(chain.to_vec(), key.clone_key())?;
    Ok(id)
}

impl Credentials {
    /// Those that a gateway begins with; without an identity where a Workload API is to give it.
    /// No CRL may be older than one of `newest` (R9).
    ///
    /// # Errors
    /// As [`load`](Self::load), or as of what is given.
    pub fn begin(source: &SvidSource, newest: &CrlNumbers) -> Result<Self, CredentialsError> {
        match source {
            SvidSource::Files(files) => Self::load_after(files, 1, newest),
            SvidSource::Given(given) => Self::of_given(given, None, newest),
        }
    }

    /// Those that say whom a gateway trusts, and nothing of who it is: its key is not read.
    ///
    /// # Errors
    /// As [`begin`](Self::begin), but for what is of its own identity.
    pub fn trusting(source: &SvidSource, newest: &CrlNumbers) -> Result<Self, CredentialsError> {
        match source {
            SvidSource::Files(files) => {
                let (trust, wrong) = Trust::load(files, newest)?;
                Ok(Self::new(None, trust, 1, wrong))
            }
            SvidSource::Given(given) => Self::of_given(given, None, newest),
        }
    }

    /// Takes everything anew, under the next generation: files as [`reload`](Self::reload) does. Of
    /// what a Workload API gave, our SVID and its own trust domain's bundle are taken together or not
    /// at all; each other trust domain stands for itself.
    ///
    /// # Errors
    /// Any [`CredentialsError`] of what must be taken together: nothing is used then.
    pub fn renew(&self, source: &SvidSource) -> Result<Self, CredentialsError> {
        match source {
            SvidSource::Files(files) => self.reload(files),
            SvidSource::Given(given) => Self::of_given(given, Some(self), &self.crl_numbers),
        }
    }

    fn of_given(
        source: &SvidGiven,
        before: Option<&Self>,
        newest: &CrlNumbers,
    ) -> Result<Self, CredentialsError> {
        if let Some(given) = &source.given
            && !given.id.is_of(&source.own)
        {
            // Before its bundle, which is of that other trust domain too.
            let (id, own) = (given.id.clone(), source.own.clone());
            return Err(CredentialsError::Given {
                from: given.from.clone(),
                source: Unfit::Foreign { id, own },
            });
        }
        let (trust, wrong) = Trust::given(source, before, newest)?;
        let given = source.given.as_deref();
        let identity = given.map(|given| Identity::given(given, &source.own, &trust.bundles));
        let generation = before.map_or(1, |before| before.generation.saturating_add(1));
        Ok(Self::new(identity.transpose()?, trust, generation, wrong))
    }

    /// Reads and checks everything; the caller keeps the last good credentials if this fails.
    ///
    /// # Errors
    /// Any [`CredentialsError`], but of the trust domains of [`SvidFiles::domains`]: each of those is
    /// left out where it cannot be used, and [`wrong`](Self::wrong) tells why.
    pub fn load(files: &SvidFiles, generation: u64) -> Result<Self, CredentialsError> {
        Self::load_after(files, generation, &CrlNumbers::default())
    }

    /// Reads and checks everything anew, under the next generation. The bundle and the CRLs of each
    /// trust domain, the deny list and our own SVID stand each for itself: of what cannot be used, and
    /// of a CRL that is older than one that was used before (R9), the one before stays, and
    /// [`wrong`](Self::wrong) tells why.
    ///
    /// # Errors
    /// Any [`CredentialsError`] of our own SVID where the one before has no anchor any more: nothing is
    /// used then.
    pub fn reload(&self, files: &SvidFiles) -> Result<Self, CredentialsError> {
        let (trust, mut wrong) = Trust::renew(files, self);
        let identity = match Identity::load(files, &trust.bundles) {
            Ok(identity) => identity,
            Err(error) => match &self.identity {
                Some(identity) if identity.is_anchored(&trust.bundles) => {
                    wrong.push(error);
                    identity.clone()
                }
                Some(_) | None => return Err(error),
            },
        };
        let generation = self.generation.saturating_add(1);
        Ok(Self::new(Some(identity), trust, generation, wrong))
    }

    /// As [`load`](Self::load), and no CRL may be older than one of `newest` (R9).
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_after(
        files: &SvidFiles,
        generation: u64,
        newest: &CrlNumbers,
    ) -> Result<Self, CredentialsError> {
        let (trust, wrong) = Trust::load(files, newest)?;
        let identity = Identity::load(files, &trust.bundles)?;
        Ok(Self::new(Some(identity), trust, generation, wrong))
    }

    fn new(
        identity: Option<Identity>,
        trust: Trust,
        generation: u64,
        wrong: Vec<CredentialsError>,
    ) -> Self {
        let Trust {
            bundles,
            crls,
            crl_numbers,
            denied,
        } = trust;
        Self {
            generation,
            identity,
            wrong,
            bundles,
            crls,
            crl_numbers,
            denied,
            verified: Box::default(),
            known_groups: Arc::default(),
        }
    }

    /// What of the files could not be used, in whose place what was there before stays, if there was.
    #[must_use]
    pub fn wrong(&self) -> &[CredentialsError] {
        &self.wrong
    }

    /// Which load this is of: pools and caches are keyed by it.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// Who we are; nobody until a Workload API has said it.
    #[must_use]
    pub fn id(&self) -> Option<&SpiffeId> {
        self.own().map(|own| &own.id)
    }

    /// Start of validity of our leaf, in Unix seconds: renewal counts from it (C4).
    #[must_use]
    pub fn not_before(&self) -> Option<i64> {
        self.identity.as_ref().map(|identity| identity.not_before)
    }

    /// When the first certificate of our own path expires, in Unix seconds.
    #[must_use]
    pub fn not_after(&self) -> Option<i64> {
        self.own().map(|own| own.not_after)
    }

    /// What we present: the leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        self.identity
            .as_ref()
            .map_or(&[], |identity| &identity.chain)
    }

    /// Our own path, as a peer with our bundles sees it.
    #[must_use]
    pub fn own(&self) -> Option<&TlsPeer> {
        self.identity.as_ref().map(|identity| &identity.own)
    }

    /// Whom we trust.
    #[must_use]
    pub const fn bundles(&self) -> &Bundles {
        &self.bundles
    }

    /// Whether the other load brought anything that counts for a peer and this one has not: with the
    /// credentials pooled connections end, and how often a bundle is numbered anew is not ours to say.
    #[must_use]
    pub fn differs(&self, other: &Self) -> bool {
        self.chain() != other.chain()
            || !self.bundles.trust_as(&other.bundles)
            || self.crls != other.crls
            || self.denied != other.denied
    }

    /// What CAs have revoked.
    #[must_use]
    pub const fn crls(&self) -> &Crls {
        &self.crls
    }

    /// The newest CRLs that were used, now or before.
    #[must_use]
    pub const fn crl_numbers(&self) -> &CrlNumbers {
        &self.crl_numbers
    }

    /// Who is refused whatever certificate it shows.
    #[must_use]
    pub const fn denied(&self) -> &DeniedIds {
        &self.denied
    }

    /// How many chains were verified and are kept.
    #[must_use]
    pub fn cached_chains(&self) -> usize {
        self.verified.len()
    }

    /// Verifies what a peer presented, as [`verify_chain`] with our CRLs and deny list; signatures of
    /// a chain that is kept are not computed again. Keeps nothing: whether the peer holds its key is
    /// for a handshake to show.
    ///
    /// # Errors
    /// The first broken rule.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<Arc<TlsPeer>, Refusal> {
        let claim = self.claim(leaf, intermediates, usage, now)?;
        Ok(claim.known.peer)
    }

    /// As [`verify`](Self::verify): what is kept once its key is proved.
    pub(super) fn claim(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<Claim, Refusal> {
        let claim = self.verify_signatures(leaf, intermediates, usage, now)?;
        self.check_denied(&claim.known.peer.id)?;
        Ok(claim)
    }

    /// Keeps the chain of a peer that has proved to hold its key.
    pub(super) fn keep(&self, claim: &Claim, _proof: &HandshakeSignatureValid) {
        self.verified.keep(claim);
    }

    fn verify_signatures(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<Claim, Refusal> {
        let key = ChainKey::new(leaf, intermediates, usage);
        let from = seconds(now);
        if let Some(known) = key.and_then(|key| self.verified.get(&key, from)) {
            return Ok(Claim { known, new: None });
        }
        let trusted = Trusted {
            bundles: &self.bundles,
            crls: &self.crls,
        };
        let known = Known {
            peer: Arc::new(verify(leaf, intermediates, &trusted, usage, now)?),
            key: LeafKey::of(leaf).map(Arc::new),
        };
        let due = self.crls.due_of(&known.peer.id.trust_domain());
        let until = due.map_or(known.peer.not_after, |due| due.min(known.peer.not_after));
        let new = key.map(|key| New { key, from, until });
        Ok(Claim { known, new })
    }

    /// Checks the deny list alone.
    ///
    /// # Errors
    /// [`Rule::DeniedId`], with the file and line.
    pub fn check_denied(&self, id: &SpiffeId) -> Result<(), Refusal> {
        match self.denied.position(id) {
            None => Ok(()),
            Some(position) => {
                let detail = format!("{id} is denied by {position}");
                Err(Refusal::new(Rule::DeniedId, detail))
            }
        }
    }

    /// Whether the CRLs of a trust domain are new enough to be gone by.
    ///
    /// # Errors
    /// [`Rule::RevocationUnknown`].
    pub fn check_crls(&self, domain: &TrustDomain, now: i64) -> Result<(), Refusal> {
        Ok(self.crls.check(domain, std::iter::empty(), now)?)
    }

    /// Judges a peer that other credentials verified: everything that may have changed since, without
    /// a new handshake.
    ///
    /// # Errors
    /// The first broken rule; [`Rule::Expired`] last, since it alone is no change.
    pub fn judge(&self, peer: &TlsPeer, now: i64) -> Result<(), Refusal> {
        self.check_denied(&peer.id)?;
        let domain = peer.id.trust_domain();
        let anchors = self.bundles.get(&domain).map_or(&[][..], Bundle::anchors);
        if !anchors
            .iter()
            .any(|anchor| anchor.fingerprint == peer.anchor)
        {
            let detail = format!("the bundle of trust domain {domain} has another anchor");
            return Err(Refusal::new(Rule::UnknownIssuer, detail));
        }
        let issued = peer.serials.iter().zip(&peer.issuers);
        self.crls.check(&domain, issued, now)?;
        if now > peer.not_after {
            let late = now.saturating_sub(peer.not_after);
            let detail = format!("a certificate of {} expired {late} s ago", peer.id);
            return Err(Refusal::new(Rule::Expired, detail));
        }
        Ok(())
    }

    pub(super) const fn known_groups(&self) -> &Arc<KnownGroups> {
        &self.known_groups
    }

    /// # Errors
    /// There is no SVID yet.
    pub(super) fn resolver(&self) -> Result<Arc<SingleCertAndKey>, rustls::Error> {
        let identity = self.identity.as_ref();
        let resolver = identity.map(|identity| Arc::clone(&identity.resolver));
        resolver.ok_or_else(|| rustls::Error::General("the gateway has no SVID yet".to_owned()))
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Credentials");
        shown.field("generation", &self.generation);
        if let Some(own) = self.own() {
            shown
                .field("id", &own.id)
                .field("not_after", &own.not_after);
        }
        shown.finish_non_exhaustive()
    }
}

fn load_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
    let bytes = read_bounded(path, SVID_BYTES_MAX)?;
    let pem = |source: PemError| CredentialsError::Pem {
        path: path.to_owned(),
        what: "certificate",
        source,
    };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|error| pem(error.into()))?;
    if chain.is_empty() {
        return Err(pem(PemError::Nothing));
    }
    Ok(chain)
}

fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, CredentialsError> {
    let mut file = open(path)?;
    let found = metadata(&file, path)?;
    if !is_private(found.mode(), found.uid(), geteuid().as_raw()) {
        return Err(CredentialsError::KeyMode {
            path: path.to_owned(),
            mode: found.mode() & 0o777,
        });
    }
    let bytes = read_open(&mut file, path, SVID_BYTES_MAX)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|source| CredentialsError::Pem {
        path: path.to_owned(),
        what: "unencrypted private key",
        source: source.into(),
    })
}

/// Reads a file of at most `max` bytes.
pub(super) fn read_bounded(path: &Path, max: u64) -> Result<Vec<u8>, ReadError> {
    read_open(&mut open(path)?, path, max)
}

/// Whether no user but its owner and `us` can read or write a file.
///
/// A user who is not root reads root's files by group: so does a container whose key Kubernetes
/// mounts from a Secret (`fsGroup`), and a service whose key a package owns.
fn is_private(mode: u32, owner: u32, us: u32) -> bool {
    let others = if owner == 0 && us != 0 { 0o026 } else { 0o066 };
    mode & others == 0
}

fn open(path: &Path) -> Result<File, ReadError> {
    File::open(path).map_err(|source| ReadError::Io {
        path: path.to_owned(),
        source,
    })
}

/// Of the open file, not of the path: the two may differ by the time it is read.
fn metadata(file: &File, path: &Path) -> Result<Metadata, ReadError> {
    file.metadata().map_err(|source| ReadError::Io {
        path: path.to_owned(),
        source,
    })
}

fn read_open(file: &mut File, path: &Path, max: u64) -> Result<Vec<u8>, ReadError> {
    let mut bytes = Vec::new();
    file.take(max.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|source| ReadError::Io {
            path: path.to_owned(),
            source,
        })?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > max) {
        return Err(ReadError::TooLarge {
            path: path.to_owned(),
            max,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_roots_may_be_read_by_the_group_of_a_gateway_that_is_not_root() {
        let (root, us, other) = (0, 65532, 1000);
        for mode in [0o100_400, 0o100_600, 0o100_700] {
            for owner in [root, us, other] {
                assert!(is_private(mode, owner, us), "{mode:o} of {owner}");
            }
        }
        // As Kubernetes mounts a Secret for a pod that has `fsGroup`.
        assert!(is_private(0o100_440, root, us));
        assert!(is_private(0o100_640, root, us));
        for (mode, owner, us) in [
            (0o100_440, us, us),
            (0o100_440, other, us),
            (0o100_440, root, root),
            (0o100_444, root, us),
            (0o100_404, root, us),
            (0o100_460, root, us),
            (0o100_420, root, us),
            (0o100_402, root, us),
        ] {
            assert!(!is_private(mode, owner, us), "{mode:o} of {owner} for {us}");
        }
    }
}
