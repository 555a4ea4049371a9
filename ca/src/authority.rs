//! The authority: a folder with a root, issuers and the ledger, and what can be done with it.
//!
//! ```text
//! <folder>/                 0700
//!   ca.db                   the ledger: the truth about what exists
//!   lock                    held while the root or an issuer is made
//!   passphrase              0600, only if `init` made one
//!   root.key  root.pem
//!   issuers/<trust domain>.<key id>.{key,cross.pem,anchor.pem}
//! ```
//! A key is on disk before the ledger names it, a row is in the ledger before its certificate is in
//! a file. So a crash leaves at most a key that nothing refers to or a serial that nobody got, and
//! the same command can be run again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{PublicKeyData, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeugma_core::identity::{SpiffeId, TrustDomain};
use zeugma_core::svid::{self, Origin};

use crate::bundle::{self, Bundle};
use crate::check::{self, Finding, check};
use crate::csr::{self, CsrError};
use crate::files::{self, Access, FileError, ProcessLock};
use crate::keys::{self, KeyError, Passphrase, SigningKey, SubjectKey};
use crate::ledger::{IssuerRow, Kind, Ledger, LedgerError, Record, RootRow};
use crate::policy::{self, LeafRequest, Policy, PolicyError};
use crate::sign::{Signer, sign};
use crate::template::{Profile, Serial, Template, Validity, short};

/// What can go wrong at the authority.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The folder holds no authority.
    #[error("there is no CA in {}; run `zeugma ca init --dir {}`", .0.display(), .0.display())]
    Missing(PathBuf),
    /// The folder holds one already.
    #[error("{} holds a CA already; nothing was changed", .0.display())]
    Exists(PathBuf),
    /// The trust domain has no issuer here.
    #[error("this CA has no issuer for `{domain}`; run `zeugma ca trust-domain add {domain}`{}", serving(.known))]
    UnknownDomain {
        /// The one asked for.
        domain: TrustDomain,
        /// Those there are.
        known: Vec<String>,
    },
    /// The trust domain has an issuer here already.
    #[error("this CA serves `{0}` already; nothing was changed")]
    DomainExists(TrustDomain),
    /// There is no passphrase to open a key with.
    #[error("{} is encrypted and there is no passphrase; give --passphrase-file or set ZEUGMA_CA_PASSPHRASE_FILE", .0.display())]
    NoPassphrase(PathBuf),
    /// The key file holds another key than the ledger says.
    #[error("{} is not the key the ledger names ({key_id}); restore that file", .path.display())]
    WrongKey {
        /// The file.
        path: PathBuf,
        /// The key id the ledger has.
        key_id: String,
    },
    /// XC10: the leaf would outlive its issuer.
    #[error(
        "a lifetime of {asked} s ends after the issuer of `{domain}` ({left} s from now); ask for less (XC10)"
    )]
    BeyondIssuer {
        /// Whose issuer.
        domain: TrustDomain,
        /// What was asked for, in seconds.
        asked: u64,
        /// How long the issuer still lives, in seconds; negative if it has expired.
        left: i64,
    },
    /// A certificate to renew is not one of ours.
    #[error("this certificate is not in the ledger of {}; renew it at the CA that issued it, or `zeugma ca issue` a new one", .0.display())]
    NotOurs(PathBuf),
    /// A key is not that of the certificate.
    #[error(
        "the key is not that of the certificate of `{0}`; give the file that was issued with it"
    )]
    OtherKey(SpiffeId),
    /// A signing request.
    #[error(transparent)]
    Csr(#[from] CsrError),
    /// The policy refused.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// A file.
    #[error(transparent)]
    File(#[from] FileError),
    /// A key or passphrase.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The certificate just signed breaks a rule.
    #[error(transparent)]
    Finding(#[from] Finding),
    /// A certificate could not be encoded or signed.
    #[error("cannot sign a certificate")]
    Sign(#[source] rcgen::Error),
    /// A certificate of the ledger does not parse.
    #[error("a certificate in the ledger does not parse; restore {} from a backup", .0.display())]
    Corrupt(PathBuf),
    /// The clock or a lifetime is beyond what a date can say.
    #[error("the lifetime ends beyond what a certificate can say; check the clock")]
    Time,
    /// There is no randomness.
    #[error("the operating system gives no random numbers")]
    Random(#[source] getrandom::Error),
}

impl AuthorityError {
    /// Its code in [`zeugma_core::codes`].
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "ZG0211",
            Self::Exists(_) | Self::DomainExists(_) => "ZG0212",
            Self::UnknownDomain { .. } => "ZG0213",
            Self::NoPassphrase(_) => "ZG0214",
            Self::WrongKey { .. } | Self::OtherKey(_) => "ZG0215",
            Self::BeyondIssuer { .. } | Self::Time => "ZG0216",
            Self::NotOurs(_) => "ZG0218",
            Self::Corrupt(_) => "ZG0224",
            Self::Csr(error) => error.code(),
            Self::Policy(error) => error.code(),
            Self::File(error) => error.code(),
            Self::Key(error) => error.code(),
            Self::Ledger(error) => error.code(),
            Self::Finding(_) | Self::Sign(_) | Self::Random(_) => "ZG0226",
        }
    }
}

fn serving(domains: &[String]) -> String {
    if domains.is_empty() {
        String::new()
    } else {
        format!(" (it serves {})", domains.join(", "))
    }
}

/// A certificate with the chain to present along with it.
#[derive(Debug, Clone)]
pub struct Issued {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    serial: String,
    not_after: OffsetDateTime,
}

impl Issued {
    /// Whose it is.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf, then its issuer's cross certificate; never the root (R7).
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The chain as PEM.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        self.chain
            .iter()
            .map(|der| files::pem("CERTIFICATE", der))
            .collect()
    }

    /// The leaf's serial in hexadecimal.
    #[must_use]
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// When the leaf ends.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

/// A trust domain's issuer: one key, two certificates.
#[derive(Debug, Clone)]
pub struct NewIssuer {
    cross: CertificateDer<'static>,
    anchor: CertificateDer<'static>,
    not_after: OffsetDateTime,
}

impl NewIssuer {
    /// The certificate that the root signed; part of every chain.
    #[must_use]
    pub fn cross(&self) -> &CertificateDer<'static> {
        &self.cross
    }

    /// The certificate that the key itself signed; the anchor in the trust domain's bundle.
    #[must_use]
    pub fn anchor(&self) -> &CertificateDer<'static> {
        &self.anchor
    }

    /// When both end.
    #[must_use]
    pub fn not_after(&self) -> OffsetDateTime {
        self.not_after
    }
}

/// An authority that is open.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    ledger: Ledger,
    policy: Policy,
    passphrase_file: Option<PathBuf>,
    passphrase: Option<Passphrase>,
    issuers: BTreeMap<TrustDomain, LoadedIssuer>,
}

#[derive(Debug)]
struct LoadedIssuer {
    key: SigningKey,
    row: IssuerRow,
    not_after: i64,
}

impl Authority {
    /// Makes a new authority: its folder, root key, root certificate and ledger.
    ///
    /// Without a passphrase file one is drawn and kept as `passphrase` in the folder. An
    /// interrupted `init` is finished by running it again.
    ///
    /// # Errors
    /// [`AuthorityError::Exists`] if there is one already; else what the files, the ledger or the
    /// key say.
    pub fn init(folder: &Path, passphrase_file: Option<&Path>) -> Result<Self, AuthorityError> {
        Self::init_with_policy(folder, passphrase_file, Policy::default())
    }

    /// As [`init`](Self::init), with a root and issuers of other lifetimes.
    ///
    /// # Errors
    /// As [`init`](Self::init).
    pub fn init_with_policy(
        folder: &Path,
        passphrase_file: Option<&Path>,
        policy: Policy,
    ) -> Result<Self, AuthorityError> {
        files::make_folder(folder, Access::Secret)?;
        let _lock = ProcessLock::take(&folder.join("lock"))?;
        let ledger = Ledger::create(&folder.join("ca.db"))?;
        if ledger.root()?.is_some() {
            return Err(AuthorityError::Exists(folder.to_owned()));
        }
        let mut authority = Self::new(folder, ledger, passphrase_file).with_policy(policy);
        let beside = folder.join("passphrase");
        if passphrase_file.is_none() && !beside.exists() {
            authority.passphrase = Some(Passphrase::generate(&beside)?);
        }
        authority.make_root()?;
        Ok(authority)
    }

    /// Opens an authority. Keys are read, and the passphrase needed, only when something is signed.
    ///
    /// Without a passphrase file the folder's own `passphrase` is used if it is there.
    ///
    /// # Errors
    /// [`AuthorityError::Missing`] if there is none.
    pub fn open(folder: &Path, passphrase_file: Option<&Path>) -> Result<Self, AuthorityError> {
        let path = folder.join("ca.db");
        if !path.is_file() {
            return Err(AuthorityError::Missing(folder.to_owned()));
        }
        let ledger = Ledger::open(&path)?;
        let Some(root) = ledger.root()? else {
            return Err(AuthorityError::Missing(folder.to_owned()));
        };
        let authority = Self::new(folder, ledger, passphrase_file);
        authority.export(&folder.join("root.pem"), &root.certificate)?;
        Ok(authority)
    }

    fn new(folder: &Path, ledger: Ledger, passphrase_file: Option<&Path>) -> Self {
        Self {
            folder: folder.to_owned(),
            ledger,
            policy: Policy::default(),
            passphrase_file: passphrase_file.map(Path::to_owned),
            passphrase: None,
            issuers: BTreeMap::new(),
        }
    }

    /// The same authority under another policy.
    #[must_use]
    pub fn with_policy(self, policy: Policy) -> Self {
        Self { policy, ..self }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The passphrase file that `init` made in the folder, if it is (still) there.
    #[must_use]
    pub fn generated_passphrase(&self) -> Option<PathBuf> {
        let path = self.folder.join("passphrase");
        path.is_file().then_some(path)
    }

    /// The shared root, for verifiers that know no SPIFFE bundles.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn root(&self) -> Result<CertificateDer<'static>, AuthorityError> {
        Ok(self.root_row()?.certificate)
    }

    /// The trust domains served, by name.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn trust_domains(&self) -> Result<Vec<String>, AuthorityError> {
        Ok(self.ledger.trust_domains()?)
    }

    /// Makes the issuer of a trust domain: one key, a certificate signed by the root and one signed
    /// by itself. Its lifetime is cut at the root's end; see [`NewIssuer::not_after`].
    ///
    /// # Errors
    /// [`AuthorityError::DomainExists`] if there is one already; the root key cannot be opened;
    /// files, ledger.
    pub fn add_trust_domain(&mut self, domain: &TrustDomain) -> Result<NewIssuer, AuthorityError> {
        self.policy.check_trust_domain(domain)?;
        let _lock = ProcessLock::take(&self.folder.join("lock"))?;
        if self.ledger.issuer(domain)?.is_some() {
            return Err(AuthorityError::DomainExists(domain.clone()));
        }
        let root = self.root_row()?;
        let root_key = self.read_key(&self.folder.join("root.key"), &root.key_id)?;
        let root_end = self.end_of(&root.certificate)?;

        let issuers = self.folder.join("issuers");
        files::make_folder(&issuers, Access::Secret)?;
        let key = SigningKey::generate_issuer()?;
        let key_id = key.id();
        let stem = format!("{domain}.{}", short(&key_id));
        let key_file = format!("{stem}.key");
        let passphrase = self.passphrase()?;
        key.write(&issuers.join(&key_file), &passphrase)?;

        let now = now()?;
        let mut validity =
            Validity::starting(now, self.policy.issuer_ttl).ok_or(AuthorityError::Time)?;
        if validity.not_after.unix_timestamp() > root_end {
            validity.not_after =
                OffsetDateTime::from_unix_timestamp(root_end).map_err(|_| AuthorityError::Time)?;
        }
        let profile = Profile::Issuer {
            domain: domain.clone(),
            key_id,
        };
        let root_signs = Signer::Above {
            key: &root_key,
            certificate: &root.certificate,
        };
        let cross = certify(profile.clone(), validity, key.pair(), root_signs)?;
        let anchor = certify(profile, validity, key.pair(), Signer::Itself(&key))?;
        let id = domain.id();
        self.ledger.add_issuer(
            domain,
            &key_file,
            [
                &cross.record(Kind::Cross, id.as_str()),
                &anchor.record(Kind::Anchor, id.as_str()),
            ],
            now.unix_timestamp(),
        )?;
        self.export(&issuers.join(format!("{stem}.cross.pem")), &cross.der)?;
        self.export(&issuers.join(format!("{stem}.anchor.pem")), &anchor.der)?;
        Ok(NewIssuer {
            cross: cross.der,
            anchor: anchor.der,
            not_after: validity.not_after,
        })
    }

    /// Issues a leaf for a key. Only the key's public half is used.
    ///
    /// # Errors
    /// The policy refuses, the trust domain is not served, the leaf would outlive its issuer, the
    /// issuer's key cannot be opened, or the ledger cannot record it. Nothing was released then.
    pub fn issue(
        &mut self,
        request: &LeafRequest,
        key: &SubjectKey,
    ) -> Result<Issued, AuthorityError> {
        let public = keys::public_key(&key.public_key_der())?;
        self.issue_for(request, &public)
    }

    /// Issues a leaf for the key of a signing request (PKCS#10, PEM or DER). Of the request only the
    /// public key and the proof of possession are used (C1).
    ///
    /// # Errors
    /// [`AuthorityError::Csr`] if it proves nothing or asks for more than it would get; else as
    /// [`issue`](Self::issue).
    pub fn sign_csr(
        &mut self,
        csr: &[u8],
        request: &LeafRequest,
    ) -> Result<Issued, AuthorityError> {
        let public = csr::public_key(csr, request)?;
        self.issue_for(request, &public)
    }

    /// Issues a leaf like one of our own, with a new serial, for the same key: the same ID and DNS
    /// names, and the same lifetime if `ttl` is none. The old one may have expired.
    ///
    /// # Errors
    /// [`AuthorityError::NotOurs`] if it is not in the ledger, [`AuthorityError::OtherKey`] if the
    /// key is not that of the certificate; else as [`issue`](Self::issue).
    pub fn renew(
        &mut self,
        old: &CertificateDer<'_>,
        key: &SubjectKey,
        ttl: Option<Duration>,
    ) -> Result<Issued, AuthorityError> {
        if !self.ledger.has_leaf(old)? {
            return Err(AuthorityError::NotOurs(self.folder.clone()));
        }
        let id = svid::check_leaf(old, Origin::Issued)
            .map_err(Finding::Rule)?
            .id;
        let (_, parsed) = X509Certificate::from_der(old)
            .map_err(|_| AuthorityError::Corrupt(self.folder.join("ca.db")))?;
        if parsed.public_key().raw != key.public_key_der() {
            return Err(AuthorityError::OtherKey(id));
        }
        let validity = parsed.validity();
        let lived = validity.not_after.timestamp() - validity.not_before.timestamp();
        let lived = Duration::from_secs(lived.unsigned_abs()).saturating_sub(policy::BACKDATE);
        let request = LeafRequest {
            id,
            ttl: ttl.unwrap_or(lived),
            dns_names: check::dns_names(&parsed)
                .into_iter()
                .map(str::to_owned)
                .collect(),
        };
        self.issue(&request, key)
    }

    fn issue_for(
        &mut self,
        request: &LeafRequest,
        public: &SubjectPublicKeyInfo,
    ) -> Result<Issued, AuthorityError> {
        self.policy.check_leaf(request)?;
        let domain = request.id.trust_domain();
        self.load_issuer(&domain)?;
        let Some(issuer) = self.issuers.get(&domain) else {
            return Err(self.unknown(domain));
        };
        let now = now()?;
        let validity = Validity::starting(now, request.ttl).ok_or(AuthorityError::Time)?;
        if validity.not_after.unix_timestamp() > issuer.not_after {
            return Err(AuthorityError::BeyondIssuer {
                domain,
                asked: request.ttl.as_secs(),
                left: issuer.not_after - now.unix_timestamp(),
            });
        }
        let profile = Profile::Leaf {
            id: request.id.clone(),
            dns_names: request.dns_names.clone(),
        };
        let signer = Signer::Above {
            key: &issuer.key,
            certificate: &issuer.row.cross,
        };
        let leaf = certify(profile, validity, public, signer)?;
        let cross = issuer.row.cross.clone();
        self.ledger.record(
            &leaf.record(Kind::Leaf, request.id.as_str()),
            now.unix_timestamp(),
        )?;
        Ok(Issued {
            id: request.id.clone(),
            serial: leaf.serial.hex(),
            not_after: validity.not_after,
            chain: vec![leaf.der, cross],
        })
    }

    /// The SPIFFE bundle of a trust domain.
    ///
    /// # Errors
    /// The trust domain is not served, or the ledger cannot be read.
    pub fn bundle(&mut self, domain: &TrustDomain) -> Result<Bundle, AuthorityError> {
        let anchors = self.ledger.anchors(domain)?;
        if anchors.is_empty() {
            return Err(self.unknown(domain.clone()));
        }
        let content = bundle::content(&anchors);
        let at = now()?.unix_timestamp();
        let sequence = self.ledger.bundle_sequence(domain, &content, at)?;
        Ok(Bundle::new(
            domain.clone(),
            sequence.unsigned_abs(),
            anchors,
        ))
    }

    /// Every certificate that was ever signed here, in order: root, issuers and leaves.
    ///
    /// # Errors
    /// The ledger cannot be read.
    pub fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        Ok(self.ledger.certificates()?)
    }

    /// Checks that the ledger is whole and its audit rows form one chain from the first (C8);
    /// gives the number of audit rows.
    ///
    /// # Errors
    /// The file is damaged, a row does not follow from the one before it, or it cannot be read.
    pub fn verify_ledger(&self) -> Result<u64, AuthorityError> {
        Ok(self.ledger.verify()?)
    }

    fn make_root(&mut self) -> Result<(), AuthorityError> {
        let path = self.folder.join("root.key");
        let passphrase = self.passphrase()?;
        // A root key that is there already is never overwritten: it is left from an interrupted
        // `init`, or all that is left of a lost ledger.
        let key = if path.exists() {
            SigningKey::read(&path, &passphrase)?
        } else {
            let key = SigningKey::generate_root()?;
            key.write(&path, &passphrase)?;
            key
        };
        let now = now()?;
        let validity = Validity::starting(now, self.policy.root_ttl).ok_or(AuthorityError::Time)?;
        let profile = Profile::Root { key_id: key.id() };
        let root = certify(profile, validity, key.pair(), Signer::Itself(&key))?;
        self.ledger
            .add_root(&root.record(Kind::Root, ""), now.unix_timestamp())?;
        self.export(&self.folder.join("root.pem"), &root.der)
    }

    fn load_issuer(&mut self, domain: &TrustDomain) -> Result<(), AuthorityError> {
        let row = self.ledger.issuer(domain)?;
        let Some(row) = row else {
            return Err(self.unknown(domain.clone()));
        };
        if self
            .issuers
            .get(domain)
            .is_some_and(|loaded| loaded.row.key_id == row.key_id)
        {
            return Ok(());
        }
        let path = self.folder.join("issuers").join(&row.key_file);
        let key = self.read_key(&path, &row.key_id)?;
        let not_after = self.end_of(&row.cross)?.min(self.end_of(&row.anchor)?);
        let loaded = LoadedIssuer {
            key,
            row,
            not_after,
        };
        self.issuers.insert(domain.clone(), loaded);
        Ok(())
    }

    fn root_row(&self) -> Result<RootRow, AuthorityError> {
        self.ledger
            .root()?
            .ok_or_else(|| AuthorityError::Missing(self.folder.clone()))
    }

    fn read_key(&mut self, path: &Path, key_id: &str) -> Result<SigningKey, AuthorityError> {
        let key = match self.passphrase() {
            Ok(passphrase) => SigningKey::read(path, &passphrase)?,
            Err(AuthorityError::NoPassphrase(_)) => {
                return Err(AuthorityError::NoPassphrase(path.to_owned()));
            }
            Err(error) => return Err(error),
        };
        if key.id() != key_id {
            return Err(AuthorityError::WrongKey {
                path: path.to_owned(),
                key_id: key_id.to_owned(),
            });
        }
        Ok(key)
    }

    fn passphrase(&mut self) -> Result<Passphrase, AuthorityError> {
        if let Some(known) = &self.passphrase {
            return Ok(known.clone());
        }
        let beside = self.folder.join("passphrase");
        let path = match &self.passphrase_file {
            Some(path) => path,
            None if beside.exists() => &beside,
            None => return Err(AuthorityError::NoPassphrase(self.folder.clone())),
        };
        let read = Passphrase::read(path)?;
        self.passphrase = Some(read.clone());
        Ok(read)
    }

    fn end_of(&self, certificate: &CertificateDer<'_>) -> Result<i64, AuthorityError> {
        X509Certificate::from_der(certificate)
            .map(|(_, parsed)| parsed.validity().not_after.timestamp())
            .map_err(|_| AuthorityError::Corrupt(self.folder.join("ca.db")))
    }

    /// Writes a copy of a certificate of the ledger for people, unless it is there.
    fn export(&self, path: &Path, certificate: &CertificateDer<'_>) -> Result<(), AuthorityError> {
        let text = files::pem("CERTIFICATE", certificate);
        if std::fs::read(path).is_ok_and(|there| there == text.as_bytes()) {
            return Ok(());
        }
        Ok(files::write_atomically(
            path,
            text.as_bytes(),
            Access::Public,
        )?)
    }

    fn unknown(&self, domain: TrustDomain) -> AuthorityError {
        AuthorityError::UnknownDomain {
            domain,
            known: self.ledger.trust_domains().unwrap_or_default(),
        }
    }
}

/// A certificate that passed its checks and is not recorded yet.
struct Checked {
    der: CertificateDer<'static>,
    serial: Serial,
    serial_hex: String,
    issuer: String,
    validity: Validity,
}

impl Checked {
    fn record<'a>(&'a self, kind: Kind, spiffe_id: &'a str) -> Record<'a> {
        Record {
            kind,
            issuer: &self.issuer,
            serial: &self.serial_hex,
            spiffe_id,
            not_before: self.validity.not_before.unix_timestamp(),
            not_after: self.validity.not_after.unix_timestamp(),
            der: &self.der,
        }
    }
}

/// Template, sign, check.
fn certify(
    profile: Profile,
    validity: Validity,
    public: &impl PublicKeyData,
    signer: Signer<'_>,
) -> Result<Checked, AuthorityError> {
    let serial = Serial::random().map_err(AuthorityError::Random)?;
    let template = Template {
        profile,
        serial: serial.clone(),
        validity,
    };
    let der = sign(&template, public, signer).map_err(AuthorityError::Sign)?;
    let above = match signer {
        Signer::Itself(_) => None,
        Signer::Above { certificate, .. } => Some(certificate),
    };
    check(&der, &template, &public.subject_public_key_info(), above)?;
    Ok(Checked {
        der,
        serial_hex: serial.hex(),
        serial,
        issuer: signer.key_id(),
        validity,
    })
}

fn now() -> Result<OffsetDateTime, AuthorityError> {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    let seconds = i64::try_from(since.as_secs()).map_err(|_| AuthorityError::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| AuthorityError::Time)
}
