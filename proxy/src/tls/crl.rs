//! CRLs: one file for each trust domain, each list signed by an anchor of its bundle or by an issuer
//! below one.
//!
//! The certificate of an issuer below an anchor stands in the file with its list: what is open when
//! a list comes is judged by it at once, and no peer has to show that certificate first.
//!
//! A list speaks of what its issuer issued, whatever path leads there: an issuer is a name and a
//! key, which an anchor and a certificate of another CA for it (a cross certificate) have in common.
//! Serials are compared together with the issuer, never alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};
use zeugma_core::identity::{IdentityError, TrustDomain};
use zeugma_core::svid::{Certificate, CrlError, CrlFacts, Origin, Rule, Serial, Signed, Violation};

use super::bundle::{Bundle, Bundles};
use super::config::{provider, sha256};
use super::credentials::{ReadError, read_bounded};
use super::given::Given;
use super::pem::PemError;

/// The largest file of CRLs read, in bytes: room for [`CRL_ENTRIES_MAX`] entries.
pub const CRL_BYTES_MAX: u64 = 8 << 20;
/// The most CRLs of one file.
pub const CRLS_MAX: usize = 16;
/// The most certificates of issuers in one file.
pub const CRL_ISSUERS_MAX: usize = 16;
/// The most issuers below the anchors of a trust domain whose newest CRLs are remembered when their
/// lists are gone.
const ISSUERS_REMEMBERED_MAX: usize = 256;
/// The most entries of one CRL.
pub const CRL_ENTRIES_MAX: usize = 100_000;
/// The most files of CRLs in one folder.
pub const CRL_FILES_MAX: usize = 1024;
/// How long a CRL past its nextUpdate is honoured, in seconds; then its trust domain is refused.
pub const CRL_GRACE_SECONDS: i64 = 24 * 60 * 60;

/// Why CRLs cannot be used; every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CrlsError {
    /// The folder cannot be listed.
    #[error("{}: cannot list the folder of CRLs", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The folder holds too many files.
    #[error("{}: over {CRL_FILES_MAX} files of CRLs; remove those not in use", path.display())]
    TooManyFiles {
        /// The folder.
        path: PathBuf,
    },
    /// A file of the folder cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The file's name is not a trust domain.
    #[error("{}: the file name must be `<trust domain>.pem`", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// What is wrong with the trust domain.
        #[source]
        source: IdentityError,
    },
    /// There is no bundle to verify it with.
    #[error("{}: no bundle of trust domain {domain}; add the bundle or remove this file", path.display())]
    NoBundle {
        /// The file.
        path: PathBuf,
        /// The trust domain.
        domain: TrustDomain,
    },
    /// The file is not whole PEM.
    #[error("{}: not PEM CRLs (`X509 CRL`); is the file whole?", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: PemError,
    },
    /// The file holds no CRL.
    #[error("{}: no CRL in it; to revoke nothing, remove the file", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file holds too many CRLs.
    #[error("{}: over {CRLS_MAX} CRLs; keep the newest of each issuer", path.display())]
    TooMany {
        /// The file.
        path: PathBuf,
    },
    /// A CRL cannot be used.
    #[error("{}: CRL {index} cannot be used; get a new one from its CA", path.display())]
    Crl {
        /// The file.
        path: PathBuf,
        /// Its position, from 0.
        index: usize,
        /// What is wrong with it.
        #[source]
        source: CrlError,
    },
    /// The file holds too many certificates.
    #[error("{}: over {CRL_ISSUERS_MAX} certificates; keep those of issuers whose CRLs are here", path.display())]
    TooManyIssuers {
        /// The file.
        path: PathBuf,
    },
    /// A certificate is not one of an issuer.
    #[error("{}: certificate {index} is not one of an issuer of its trust domain", path.display())]
    Issuer {
        /// The file.
        path: PathBuf,
        /// Its position among the certificates, from 0.
        index: usize,
        /// The rule that it breaks.
        #[source]
        source: Violation,
    },
    /// Nobody who may sign CRLs signed it.
    #[error(
        "{}: CRL {index} is not signed by an anchor of the bundle of {domain} that has cRLSign, nor by an issuer below one whose certificate is in the file; add that certificate, get a new CRL from its CA, or remove it",
        path.display()
    )]
    Signature {
        /// The file.
        path: PathBuf,
        /// Its position, from 0.
        index: usize,
        /// The trust domain.
        domain: TrustDomain,
    },
    /// Nobody who may sign CRLs signed one that did not come in a file.
    #[error(
        "{}: CRL {index} is not signed by an anchor with cRLSign of a bundle beside it, nor by an issuer in the SVID's own chain; what it revokes is not known, so the CRLs of before stay, and who has none is trusted only if it was before",
        path.display()
    )]
    Unsigned {
        /// Who gave it.
        path: PathBuf,
        /// Its position, from 0.
        index: usize,
    },
    /// R9: its number does not follow the one in use.
    #[error(
        "{}: CRL {index} is not newer than the one in use: crlNumber {number} after {before}; put the newest one back",
        path.display()
    )]
    Rollback {
        /// The file.
        path: PathBuf,
        /// Its position, from 0.
        index: usize,
        /// Its number, in hexadecimal.
        number: String,
        /// The number of the one in use, in hexadecimal.
        before: String,
    },
}

/// An issuer's name and key, as one digest: all certificates of an issuer have the same.
pub(super) type Authority = [u8; 32];

/// The issuer that a CA certificate is of.
pub(super) fn authority(certificate: &Certificate<'_>) -> Authority {
    // Each is DER, which says its own length: no two pairs are the same bytes.
    sha256(&[certificate.subject(), certificate.public_key()].concat())
}

/// One list whose signature was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crl {
    /// Who signed it, and the anchor that this is or is below.
    issuer: Authority,
    anchor: Authority,
    number: Box<[u8]>,
    digest: [u8; 32],
    next_update: i64,
    serials: BTreeSet<Serial>,
}

impl Crl {
    fn order(&self) -> (usize, &[u8]) {
        order(&self.number)
    }
}

/// How crlNumbers compare: without leading zeros the longer one is greater.
fn order(number: &[u8]) -> (usize, &[u8]) {
    let from = number.iter().position(|octet| *octet != 0);
    let octets = from.and_then(|at| number.get(at..)).unwrap_or_default();
    (octets.len(), octets)
}

fn hexadecimal(octets: &[u8]) -> String {
    (octets.iter())
        .map(|octet| format!("{octet:02x}"))
        .collect()
}

fn octets(hexadecimal: &str) -> Option<Vec<u8>> {
    let digits = hexadecimal.as_bytes().chunks(2);
    digits
        .map(|pair| {
            let is_whole = pair.len() == 2 && pair.iter().all(u8::is_ascii_hexdigit);
            let pair = str::from_utf8(pair).ok().filter(|_| is_whole)?;
            u8::from_str_radix(pair, 16).ok()
        })
        .collect()
}

/// The newest CRL of each issuer that was ever used: R9 holds whatever became of its file, and over
/// a restart where these are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrlNumbers(BTreeMap<(TrustDomain, Authority), Newest>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Newest {
    /// The issuer's anchor, if it is not one itself.
    anchor: Option<Authority>,
    number: Box<[u8]>,
    digest: [u8; 32],
}

impl Newest {
    /// Whether its `issuer` is, or is below, an anchor of this bundle.
    fn is_trusted_by(&self, bundle: &Bundle, issuer: &Authority) -> bool {
        let trusted = self.anchor.unwrap_or(*issuer);
        (bundle.anchors().iter()).any(|anchor| anchor.authority == trusted)
    }
}

/// A list that is not used.
struct Unused {
    why: CrlsError,
    /// Whose it is, where that is known.
    of: Option<Vec<TrustDomain>>,
}

impl CrlNumbers {
    /// Adds what was loaded, and forgets issuers that no bundle trusts any more: a list of theirs is
    /// refused anyhow. Those of a trust domain that only waits for its bundle are not forgotten: an
    /// older list would come in with it.
    pub(super) fn note(
        &mut self,
        crls: &Crls,
        bundles: &Bundles,
        awaits: impl Fn(&TrustDomain) -> bool,
    ) {
        self.0.retain(|(domain, issuer), newest| {
            let Some(bundle) = bundles.get(domain) else {
                return awaits(domain);
            };
            newest.is_trusted_by(bundle, issuer)
        });
        for (domain, lists) in &crls.0 {
            let is_below = |newest: &Newest| newest.anchor.is_some();
            let below =
                (self.0.iter()).filter(|((of, _), newest)| of == domain && is_below(newest));
            if below.count() >= ISSUERS_REMEMBERED_MAX {
                // Issuers come and go: those whose lists are gone are forgotten at last.
                self.0
                    .retain(|(of, _), newest| of != domain || !is_below(newest));
            }
            for list in lists {
                let newest = Newest {
                    anchor: (list.anchor != list.issuer).then_some(list.anchor),
                    number: list.number.clone(),
                    digest: list.digest,
                };
                self.0.insert((domain.clone(), list.issuer), newest);
            }
        }
    }

    /// Whether no list was ever used.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As text: for each issuer a line of trust domain, issuer, number and digest, and the anchor
    /// that it is below.
    #[must_use]
    pub fn to_text(&self) -> String {
        let lines = self.0.iter().map(|((domain, issuer), newest)| {
            let [issuer, number, digest] =
                [&issuer[..], &newest.number, &newest.digest].map(hexadecimal);
            let below = newest
                .anchor
                .map_or_else(String::new, |anchor| format!(" {}", hexadecimal(&anchor)));
            format!("{} {issuer} {number} {digest}{below}\n", domain.as_str())
        });
        lines.collect()
    }

    /// From such text; `None` if it is not of this form.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let line = |line: &str| {
            let mut words = line.split(' ');
            let domain = TrustDomain::parse(words.next()?).ok()?;
            let issuer = octets(words.next()?)?.try_into().ok()?;
            let number = octets(words.next()?)?.into();
            let digest = octets(words.next()?)?.try_into().ok()?;
            let anchor = match words.next() {
                Some(anchor) => Some(octets(anchor)?.try_into().ok()?),
                None => None,
            };
            let newest = Newest {
                anchor,
                number,
                digest,
            };
            (words.next().is_none()).then_some(((domain, issuer), newest))
        };
        text.lines().map(line).collect::<Option<_>>().map(Self)
    }
}

/// The CRLs we hold, by trust domain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Crls(BTreeMap<TrustDomain, Vec<Crl>>);

impl Crls {
    /// Reads every `<trust domain>.pem` of a folder; other files, and those whose name begins with a
    /// dot, are ignored. Of several lists of one issuer the newest counts.
    ///
    /// # Errors
    /// The first file that cannot be used, or that would bring back an older list than one of `newest`
    /// (R9): a folder is taken whole or not at all.
    pub fn load(folder: &Path, bundles: &Bundles, newest: &CrlNumbers) -> Result<Self, CrlsError> {
        let mut bundles = bundles.clone();
        Self::begin(folder, &mut bundles, newest, |_| false).map(|(crls, _)| crls)
    }

    /// As [`load`](Self::load), and the trust domains that `is_foreign` each for itself: where its
    /// lists cannot be used its bundle is taken out, for nobody could tell who of it is revoked.
    ///
    /// # Errors
    /// As [`load`](Self::load), of the others.
    pub(super) fn begin(
        folder: &Path,
        bundles: &mut Bundles,
        newest: &CrlNumbers,
        is_foreign: impl Fn(&TrustDomain) -> bool,
    ) -> Result<(Self, Vec<CrlsError>), CrlsError> {
        let mut crls = Self::default();
        let mut wrong = Vec::new();
        for path in files(folder)? {
            let domain = domain_of(&path)?;
            match load_of(&path, &domain, bundles, newest) {
                Ok(lists) => drop(crls.0.insert(domain, lists)),
                Err(error) if is_foreign(&domain) => {
                    wrong.push(error);
                    bundles.remove(&domain);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((crls, wrong))
    }

    /// As [`load`](Self::load), and each trust domain for itself: where its lists cannot be used those
    /// of `before` stay. Where there were none its bundle is taken out, for nobody could tell who of it
    /// is revoked; one that was in `trusted`, without lists, stays as it was.
    pub(super) fn renew(
        folder: &Path,
        bundles: &mut Bundles,
        newest: &CrlNumbers,
        before: &Self,
        trusted: &Bundles,
    ) -> (Self, Vec<CrlsError>) {
        let mut crls = Self::default();
        let mut wrong = Vec::new();
        let paths = match files(folder) {
            Ok(paths) => paths,
            Err(error) => {
                // Who came just now may have lists there: nobody could tell who of it is revoked.
                bundles.retain(|domain| trusted.get(domain).is_some());
                return (before.clone(), vec![error]);
            }
        };
        for path in paths {
            let domain = match domain_of(&path) {
                Ok(domain) => domain,
                Err(error) => {
                    wrong.push(error);
                    continue;
                }
            };
            let lists = load_of(&path, &domain, bundles, newest);
            let lists = lists.map_err(|error| wrong.push(error)).ok();
            if bundles.get(&domain).is_none() {
                continue;
            }
            match lists.or_else(|| before.0.get(&domain).cloned()) {
                Some(lists) => drop(crls.0.insert(domain, lists)),
                None if trusted.get(&domain).is_none() => bundles.remove(&domain),
                None => {}
            }
        }
        (crls, wrong)
    }

    /// Takes those that came with an SVID: a list counts for each trust domain that has its issuer
    /// among its anchors, or in the SVID's own chain. Where one cannot be used, of whom nothing else
    /// came the lists of `before` stay: nobody could tell whose is missing. A trust domain that it may
    /// be of, was not in `trusted` and is left without a list, or without one of an issuer of `newest`,
    /// is taken out: nobody could tell who of it is revoked.
    ///
    /// # Errors
    /// That is the SVID's own trust domain.
    pub(super) fn given(
        given: &Given,
        bundles: &mut Bundles,
        newest: &CrlNumbers,
        before: &Self,
        trusted: &Bundles,
    ) -> Result<(Self, Vec<CrlsError>), CrlsError> {
        let (mut crls, unused) = Self::take_all(given, bundles, newest);
        if !unused.is_empty() {
            crls.keep(before, bundles);
        }
        let own = given.id.trust_domain();
        let mut wrong = Vec::new();
        for Unused { why, of } in unused {
            let in_doubt: Vec<TrustDomain> = (bundles.iter())
                .filter(|bundle| {
                    let domain = bundle.domain();
                    of.as_ref().is_none_or(|of| of.contains(domain))
                        && trusted.get(domain).is_none()
                        && crls.lacks_one_of(bundle, newest)
                })
                .map(|bundle| bundle.domain().clone())
                .collect();
            if in_doubt.contains(&own) {
                return Err(why);
            }
            for domain in &in_doubt {
                bundles.remove(domain);
                crls.0.remove(domain);
            }
            wrong.push(why);
        }
        Ok((crls, wrong))
    }

    /// Those that can be used, and the others.
    fn take_all(given: &Given, bundles: &Bundles, newest: &CrlNumbers) -> (Self, Vec<Unused>) {
        let mut crls = Self::default();
        let mut unused = Vec::new();
        if given.crls.is_empty() {
            return (crls, unused);
        }
        let path = Path::new(&given.from);
        let own = given.id.trust_domain();
        let below = given.chain.get(1..).unwrap_or_default();
        let signers: Vec<_> = (bundles.iter())
            .map(|bundle| {
                let below = if *bundle.domain() == own { below } else { &[] };
                // What is wrong with a chain is told of the SVID.
                let signers = signers(below, bundle, path).or_else(|_| signers(&[], bundle, path));
                (bundle.domain(), signers.unwrap_or_default())
            })
            .collect();
        for (index, der) in given.crls.iter().enumerate() {
            if let Err(error) = crls.take(der, index, &signers, newest, path) {
                unused.push(error);
            }
        }
        (crls, unused)
    }

    /// Adds a list to those of each trust domain whose `signers` signed it.
    fn take(
        &mut self,
        der: &CertificateRevocationListDer<'_>,
        index: usize,
        signers: &[(&TrustDomain, Vec<Signer<'_>>)],
        newest: &CrlNumbers,
        path: &Path,
    ) -> Result<(), Unused> {
        let facts = CrlFacts::parse(der, CRL_ENTRIES_MAX).map_err(|source| {
            let path = path.to_owned();
            Unused {
                why: CrlsError::Crl {
                    path,
                    index,
                    source,
                },
                of: None,
            }
        })?;
        let mut lists = Vec::new();
        for (domain, signers) in signers {
            let Some(signer) = signer_of(&facts, signers) else {
                continue;
            };
            let list = Crl {
                issuer: signer.authority,
                anchor: signer.anchor,
                number: facts.number.clone(),
                digest: sha256(der),
                next_update: facts.next_update,
                serials: facts.serials.clone(),
            };
            lists.push((*domain, list));
        }
        if lists.is_empty() {
            let path = path.to_owned();
            return Err(Unused {
                why: CrlsError::Unsigned { path, index },
                of: None,
            });
        }
        for (domain, list) in &lists {
            check_newest(list, domain, index, newest, path).map_err(|why| Unused {
                why,
                of: Some(lists.iter().map(|(domain, _)| (*domain).clone()).collect()),
            })?;
        }
        for (domain, list) in lists {
            add(self.0.entry(domain.clone()).or_default(), list);
        }
        Ok(())
    }

    /// Has those of `before` stay of whom nothing else came.
    fn keep(&mut self, before: &Self, bundles: &Bundles) {
        for (domain, lists) in &before.0 {
            if bundles.get(domain).is_none() {
                continue;
            }
            let kept = self.0.entry(domain.clone()).or_default();
            for list in lists {
                if kept.iter().all(|one| one.issuer != list.issuer) {
                    kept.push(list.clone());
                }
            }
        }
    }

    /// Whether a trust domain has no list, or none of an issuer whose list was used before.
    fn lacks_one_of(&self, bundle: &Bundle, newest: &CrlNumbers) -> bool {
        let lists = self.0.get(bundle.domain()).map_or(&[][..], Vec::as_slice);
        let is_missed = |((of, issuer), newest): (&(TrustDomain, Authority), &Newest)| {
            of == bundle.domain()
                && newest.is_trusted_by(bundle, issuer)
                && lists.iter().all(|list| list.issuer != *issuer)
        };
        lists.is_empty() || newest.0.iter().any(is_missed)
    }

    /// Checks the certificates of a path: the serial of each, and who issued it.
    pub(super) fn check<'p>(
        &self,
        domain: &TrustDomain,
        path: impl Iterator<Item = (&'p Serial, &'p Authority)>,
        now: i64,
    ) -> Result<(), Violation> {
        let Some(lists) = self.0.get(domain) else {
            return Ok(());
        };
        // A revocation that is known counts, however old the list.
        let is_listed = |(serial, issuer): &(&Serial, &Authority)| {
            (lists.iter()).any(|list| list.issuer == **issuer && list.serials.contains(serial))
        };
        let mut path = path;
        if let Some((serial, _)) = path.find(is_listed) {
            let detail = format!("serial {serial} is on a CRL of trust domain {domain}");
            return Err(Violation::new(Rule::Revoked, detail));
        }
        match lists.iter().map(|list| list.next_update).min() {
            Some(due) if now > due.saturating_add(CRL_GRACE_SECONDS) => {
                let late = now.saturating_sub(due);
                let detail = format!(
                    "the CRL of trust domain {domain} is {late} s past its nextUpdate; get a new one from its CA"
                );
                Err(Violation::new(Rule::RevocationUnknown, detail))
            }
            _ => Ok(()),
        }
    }

    /// When the first list of each trust domain is due to be replaced, in Unix seconds.
    pub fn due(&self) -> impl Iterator<Item = (&TrustDomain, i64)> {
        self.0.iter().filter_map(|(domain, lists)| {
            let due = lists.iter().map(|list| list.next_update).min()?;
            Some((domain, due))
        })
    }

    /// When the first list of a trust domain is due; `None` where it has none.
    pub(super) fn due_of(&self, domain: &TrustDomain) -> Option<i64> {
        self.0
            .get(domain)?
            .iter()
            .map(|list| list.next_update)
            .min()
    }
}

fn files(folder: &Path) -> Result<Vec<PathBuf>, CrlsError> {
    let list = |source| CrlsError::Folder {
        path: folder.to_owned(),
        source,
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(list)? {
        let path = entry.map_err(list)?.path();
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if name.starts_with(b".") || path.extension().is_none_or(|e| e != "pem") {
            continue;
        }
        if paths.len() >= CRL_FILES_MAX {
            return Err(CrlsError::TooManyFiles {
                path: folder.to_owned(),
            });
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

/// Whose lists a file holds by its name.
fn domain_of(path: &Path) -> Result<TrustDomain, CrlsError> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    TrustDomain::parse(&name).map_err(|source| CrlsError::Name {
        path: path.to_owned(),
        source,
    })
}

fn load_of(
    path: &Path,
    domain: &TrustDomain,
    bundles: &Bundles,
    newest: &CrlNumbers,
) -> Result<Vec<Crl>, CrlsError> {
    let Some(bundle) = bundles.get(domain) else {
        return Err(CrlsError::NoBundle {
            path: path.to_owned(),
            domain: domain.clone(),
        });
    };
    load_file(path, bundle, newest)
}

fn load_file(path: &Path, bundle: &Bundle, newest: &CrlNumbers) -> Result<Vec<Crl>, CrlsError> {
    let bytes = read_bounded(path, CRL_BYTES_MAX)?;
    let pem = |source: rustls_pki_types::pem::Error| CrlsError::Pem {
        path: path.to_owned(),
        source: source.into(),
    };
    let certificates = CertificateDer::pem_slice_iter(&bytes).take(CRL_ISSUERS_MAX + 1);
    let certificates = certificates.collect::<Result<Vec<_>, _>>().map_err(pem)?;
    let signers = signers(&certificates, bundle, path)?;
    let mut lists: Vec<Crl> = Vec::new();
    for (index, der) in CertificateRevocationListDer::pem_slice_iter(&bytes).enumerate() {
        let der = der.map_err(pem)?;
        if index >= CRLS_MAX {
            return Err(CrlsError::TooMany {
                path: path.to_owned(),
            });
        }
        let facts = CrlFacts::parse(&der, CRL_ENTRIES_MAX).map_err(|source| CrlsError::Crl {
            path: path.to_owned(),
            index,
            source,
        })?;
        let list = verified(facts, &der, &signers).ok_or_else(|| CrlsError::Signature {
            path: path.to_owned(),
            index,
            domain: bundle.domain().clone(),
        })?;
        check_newest(&list, bundle.domain(), index, newest, path)?;
        add(&mut lists, list);
    }
    if lists.is_empty() {
        return Err(CrlsError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(lists)
}

/// Holds a list against the newest one of its issuer that was ever used (R9).
fn check_newest(
    list: &Crl,
    domain: &TrustDomain,
    index: usize,
    newest: &CrlNumbers,
    path: &Path,
) -> Result<(), CrlsError> {
    match newest.0.get(&(domain.clone(), list.issuer)) {
        Some(before)
            if list.order() < order(&before.number)
                || (list.order() == order(&before.number) && list.digest != before.digest) =>
        {
            Err(CrlsError::Rollback {
                path: path.to_owned(),
                index,
                number: hexadecimal(&list.number),
                before: hexadecimal(&before.number),
            })
        }
        Some(_) | None => Ok(()),
    }
}

/// Adds a list, unless a newer one of its issuer is there.
fn add(lists: &mut Vec<Crl>, list: Crl) {
    match lists.iter_mut().find(|one| one.issuer == list.issuer) {
        Some(one) if one.order() < list.order() => *one = list,
        Some(_) => {}
        None => lists.push(list),
    }
}

/// Who may have signed a list.
struct Signer<'a> {
    certificate: Certificate<'a>,
    authority: Authority,
    /// The authority of the anchor that it is or is below.
    anchor: Authority,
    /// How many issuers may stand below it; none: any number.
    room: Option<u32>,
}

/// The anchors of a bundle, and those of `certificates` that have a path to one (RFC 5280 §6.3.3
/// (f)). Their time is not looked at: nothing below an issuer that has expired is accepted.
fn signers<'a>(
    certificates: &'a [CertificateDer<'_>],
    bundle: &'a Bundle,
    path: &Path,
) -> Result<Vec<Signer<'a>>, CrlsError> {
    if certificates.len() > CRL_ISSUERS_MAX {
        return Err(CrlsError::TooManyIssuers {
            path: path.to_owned(),
        });
    }
    let anchors = bundle.anchors().iter().filter_map(|anchor| {
        Some(Signer {
            certificate: Certificate::parse(&anchor.der).ok()?,
            authority: anchor.authority,
            anchor: anchor.authority,
            room: anchor.path_len,
        })
    });
    let mut signers: Vec<Signer<'_>> = anchors.collect();
    let mut below = Vec::new();
    for (index, der) in certificates.iter().enumerate() {
        let parsed = Certificate::parse(der).and_then(|certificate| {
            let facts = certificate.check_issuer(bundle.domain(), Origin::Presented)?;
            Ok((certificate, facts.path_len))
        });
        below.push(parsed.map_err(|source| CrlsError::Issuer {
            path: path.to_owned(),
            index,
            source,
        })?);
    }
    // In any order; each turn but the last finds the place of one.
    while let Some((at, signer)) = below
        .iter()
        .enumerate()
        .find_map(|(at, (child, path_len))| {
            let parent = signers.iter().find(|parent| {
                let signed = child.signed();
                parent.room != Some(0)
                    && parent.certificate.subject() == child.issuer()
                    && signed.is_some_and(|signed| signs(&parent.certificate, &signed))
            })?;
            let above = parent.room.map(|room| room.saturating_sub(1));
            let room = match (above, *path_len) {
                (Some(above), Some(own)) => Some(above.min(own)),
                (room, None) | (None, room) => room,
            };
            Some((at, (authority(child), parent.anchor, room)))
        })
    {
        let (certificate, _) = below.swap_remove(at);
        let (authority, anchor, room) = signer;
        signers.push(Signer {
            certificate,
            authority,
            anchor,
            room,
        });
    }
    Ok(signers)
}

/// The list, if one of `signers` signed it and may.
fn verified(facts: CrlFacts<'_>, der: &[u8], signers: &[Signer<'_>]) -> Option<Crl> {
    let signer = signer_of(&facts, signers)?;
    Some(Crl {
        issuer: signer.authority,
        anchor: signer.anchor,
        number: facts.number,
        digest: sha256(der),
        next_update: facts.next_update,
        serials: facts.serials,
    })
}

/// Who of `signers` signed a list, and may.
fn signer_of<'s, 'a>(facts: &CrlFacts<'_>, signers: &'s [Signer<'a>]) -> Option<&'s Signer<'a>> {
    signers.iter().find(|signer| {
        let certificate = &signer.certificate;
        certificate.subject() == &*facts.issuer
            && certificate.signs_crls()
            && signs(certificate, &facts.signed)
    })
}

/// Whether the certificate's key signed it.
fn signs(certificate: &Certificate<'_>, signed: &Signed<'_>) -> bool {
    let Some((algorithm, key)) = certificate.public_key_parts() else {
        return false;
    };
    let algorithms = provider().signature_verification_algorithms.all;
    algorithms.iter().any(|one| {
        one.public_key_alg_id().as_ref() == algorithm
            && one.signature_alg_id().as_ref() == signed.algorithm
            && (one.verify_signature(key, signed.bytes, &signed.signature)).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
        DistinguishedName, DnType, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType,
        SerialNumber, date_time_ymd,
    };

    use super::*;

    #[test]
    fn numbers_are_the_same_after_they_were_text() {
        let domain = TrustDomain::parse("west.example").unwrap();
        let newest = |anchor, number: &[u8]| Newest {
            anchor,
            number: number.into(),
            digest: [0xa7; 32],
        };
        let numbers = CrlNumbers(BTreeMap::from([
            ((domain.clone(), [1; 32]), newest(None, &[0, 255])),
            ((domain, [2; 32]), newest(Some([1; 32]), &[])),
        ]));
        assert_eq!(CrlNumbers::from_text(&numbers.to_text()), Some(numbers));
        let empty = CrlNumbers::default();
        assert_eq!(CrlNumbers::from_text(&empty.to_text()), Some(empty));
    }

    #[test]
    fn other_text_is_no_numbers() {
        let good = format!("west.example {} 0a {}\n", "01".repeat(32), "02".repeat(32));
        assert!(CrlNumbers::from_text(&good).is_some());
        for (from, to) in [
            ("west.example", "WEST"),
            (" 0a ", " 0 "),
            (" 0a ", " +a "),
            (" 0a ", " "),
            ("\n", " more\n"),
            ("\n", "\n\n"),
            ("0202", "02"),
            (" 0a ", " \u{e9} "),
        ] {
            let bad = good.replacen(from, to, 1);
            assert_eq!(CrlNumbers::from_text(&bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_longer_number_is_greater_and_zeros_before_it_are_nothing() {
        assert!(order(&[1, 0]) > order(&[255]));
        assert_eq!(order(&[0, 0, 7]), order(&[7]));
        assert!(order(&[0]) < order(&[1]));
    }

    fn ca(name: &str, path_len: u8, usages: &[KeyUsagePurpose]) -> CertificateParams {
        let mut ca = CertificateParams::default();
        ca.distinguished_name = DistinguishedName::new();
        ca.distinguished_name.push(DnType::CommonName, name);
        ca.subject_alt_names = vec![SanType::URI("spiffe://west.example".try_into().unwrap())];
        ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
        ca.key_usages = usages.to_vec();
        ca.use_authority_key_identifier_extension = true;
        ca
    }

    fn list(issuer: &CertifiedIssuer<'_, KeyPair>) -> String {
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2026, 1, 1),
            next_update: date_time_ymd(2026, 1, 2),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(issuer).unwrap().pem().unwrap()
    }

    #[test]
    fn an_issuer_counts_on_a_path_that_a_leaf_could_have_too() {
        const BOTH: &[KeyUsagePurpose] = &[KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = || KeyPair::generate().unwrap();
        let below = |params: CertificateParams, issuer: &CertifiedIssuer<'_, KeyPair>| {
            CertifiedIssuer::signed_by(params, key(), issuer).unwrap()
        };
        let anchor = CertifiedIssuer::self_signed(ca("anchor", 2, BOTH), key()).unwrap();
        let first = below(ca("first", 2, BOTH), &anchor);
        let second = below(ca("second", 2, BOTH), &first);
        let third = below(ca("third", 2, BOTH), &second);
        let able = below(ca("silent", 0, BOTH), &anchor);
        let same_key = KeyPair::from_pem(&able.key().serialize_pem()).unwrap();
        let silent = ca("silent", 0, &BOTH[..1]);
        let silent = CertifiedIssuer::signed_by(silent, same_key, &anchor).unwrap();
        let narrow = below(ca("narrow", 0, BOTH), &anchor);
        let under_narrow = below(ca("under", 0, BOTH), &narrow);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("west.example.pem");
        fs::write(&path, anchor.pem()).unwrap();
        let bundles = Bundles::load(folder.path()).unwrap();
        let load = |certificates: &[&str], crl: &str| {
            fs::write(&path, certificates.concat() + crl).unwrap();
            Crls::load(folder.path(), &bundles, &CrlNumbers::default())
        };
        let [one, two, three] = [&first, &second, &third].map(|issuer| issuer.pem());
        let of_two = list(&second);
        // In any order.
        load(&[&two, &one], &of_two).unwrap();
        load(&[&one, &two], &of_two).unwrap();
        load(&[&able.pem()], &list(&able)).unwrap();
        let (dumb, tight, under) = (silent.pem(), narrow.pem(), under_narrow.pem());
        for (certificates, crl) in [
            // A gap in the path.
            (&[&*two][..], &of_two),
            // RFC 5280 §4.2.1.9: longer than the anchor's pathLen, and than one below it.
            (&[&*one, &*two, &*three], &list(&third)),
            (&[&*tight, &*under], &list(&under_narrow)),
            // §6.3.3 (f): without cRLSign.
            (&[&*dumb], &list(&able)),
        ] {
            let refused = load(certificates, crl).unwrap_err();
            assert!(matches!(refused, CrlsError::Signature { .. }), "{refused}");
        }
        let refused = load(&vec![&*one; CRL_ISSUERS_MAX + 1], &of_two).unwrap_err();
        assert!(matches!(refused, CrlsError::TooManyIssuers { .. }));
        load(&[&vec![&*one; CRL_ISSUERS_MAX - 1].concat(), &two], &of_two).unwrap();
    }

    #[test]
    fn of_issuers_whose_lists_are_gone_so_many_are_remembered() {
        let domain = TrustDomain::parse("west.example").unwrap();
        let list = |nth: usize| Crl {
            issuer: sha256(&nth.to_ne_bytes()),
            anchor: [1; 32],
            number: Box::new([1]),
            digest: [0; 32],
            next_update: 0,
            serials: BTreeSet::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let usages = [KeyUsagePurpose::KeyCertSign];
        let anchor = ca("anchor", 1, &usages).self_signed(&key).unwrap();
        fs::write(folder.path().join("west.example.pem"), anchor.pem()).unwrap();
        let bundles = Bundles::load(folder.path()).unwrap();
        let trusted = bundles.get(&domain).unwrap().anchors()[0].authority;
        let mut numbers = CrlNumbers::default();
        for nth in 0..2 * ISSUERS_REMEMBERED_MAX {
            let mut one = list(nth);
            one.anchor = trusted;
            let crls = Crls(BTreeMap::from([(domain.clone(), vec![one.clone()])]));
            numbers.note(&crls, &bundles, |_| false);
            assert!(numbers.0.len() <= ISSUERS_REMEMBERED_MAX);
            assert!(numbers.0.contains_key(&(domain.clone(), one.issuer)));
        }
        assert!(numbers.0.len() > 1);
        // With its anchor an issuer is forgotten, unless its trust domain only waits for its bundle.
        numbers.note(&Crls::default(), &Bundles::default(), |of| *of == domain);
        assert!(numbers.0.len() > 1);
        numbers.note(&Crls::default(), &Bundles::default(), |_| false);
        assert!(numbers.is_empty());
    }
}
