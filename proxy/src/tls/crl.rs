//! CRLs: one file for each trust domain, each list signed by an anchor of its bundle.
//!
//! A list speaks of what its issuer issued, whatever path leads there: an issuer is a name and a
//! key, which an anchor and a certificate of another CA for it (a cross certificate) have in common.
//! Serials are compared together with the issuer, never alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateRevocationListDer, pem};
use zeugma_core::identity::{IdentityError, TrustDomain};
use zeugma_core::svid::{Certificate, CrlError, CrlFacts, Rule, Serial, Violation};

use super::bundle::{Anchor, Bundle, Bundles};
use super::config::{provider, sha256};
use super::credentials::{ReadError, read_bounded};

/// The largest file of CRLs read, in bytes: room for [`CRL_ENTRIES_MAX`] entries.
pub const CRL_BYTES_MAX: u64 = 8 << 20;
/// The most CRLs of one file.
pub const CRLS_MAX: usize = 16;
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
        source: pem::Error,
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
    /// No anchor that may sign CRLs signed it.
    #[error(
        "{}: CRL {index} is not signed by an anchor of the bundle of {domain} that has cRLSign; get a new one from its CA, or remove it",
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
    /// Who signed it.
    issuer: Authority,
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
    number: Box<[u8]>,
    digest: [u8; 32],
}

impl CrlNumbers {
    /// Adds what was loaded, and forgets issuers that no bundle trusts any more: a list of theirs is
    /// refused anyhow.
    pub(super) fn note(&mut self, crls: &Crls, bundles: &Bundles) {
        self.0.retain(|(domain, issuer), _| {
            let anchors = bundles.get(domain).map_or(&[][..], Bundle::anchors);
            anchors.iter().any(|anchor| anchor.authority == *issuer)
        });
        for (domain, lists) in &crls.0 {
            for list in lists {
                let newest = Newest {
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

    /// As text: for each issuer a line of trust domain, issuer, number and digest.
    #[must_use]
    pub fn to_text(&self) -> String {
        let lines = self.0.iter().map(|((domain, issuer), newest)| {
            let [issuer, number, digest] =
                [&issuer[..], &newest.number, &newest.digest].map(hexadecimal);
            format!("{} {issuer} {number} {digest}\n", domain.as_str())
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
            let newest = Newest { number, digest };
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
        let mut crls = Self::default();
        for path in files(folder)? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let domain = TrustDomain::parse(&name).map_err(|source| CrlsError::Name {
                path: path.clone(),
                source,
            })?;
            let Some(bundle) = bundles.get(&domain) else {
                return Err(CrlsError::NoBundle { path, domain });
            };
            let lists = load_file(&path, bundle, newest)?;
            crls.0.insert(domain, lists);
        }
        Ok(crls)
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

fn load_file(path: &Path, bundle: &Bundle, newest: &CrlNumbers) -> Result<Vec<Crl>, CrlsError> {
    let bytes = read_bounded(path, CRL_BYTES_MAX)?;
    let mut lists: Vec<Crl> = Vec::new();
    for (index, der) in CertificateRevocationListDer::pem_slice_iter(&bytes).enumerate() {
        let der = der.map_err(|source| CrlsError::Pem {
            path: path.to_owned(),
            source,
        })?;
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
        let list = verified(facts, &der, bundle).ok_or_else(|| CrlsError::Signature {
            path: path.to_owned(),
            index,
            domain: bundle.domain().clone(),
        })?;
        let before = newest.0.get(&(bundle.domain().clone(), list.issuer));
        if let Some(before) = before
            && (list.order() < order(&before.number)
                || (list.order() == order(&before.number) && list.digest != before.digest))
        {
            return Err(CrlsError::Rollback {
                path: path.to_owned(),
                index,
                number: hexadecimal(&list.number),
                before: hexadecimal(&before.number),
            });
        }
        match lists.iter_mut().find(|one| one.issuer == list.issuer) {
            Some(one) if one.order() < list.order() => *one = list,
            Some(_) => {}
            None => lists.push(list),
        }
    }
    if lists.is_empty() {
        return Err(CrlsError::Empty {
            path: path.to_owned(),
        });
    }
    Ok(lists)
}

/// The list, if an anchor of the bundle signed it.
fn verified(facts: CrlFacts<'_>, der: &[u8], bundle: &Bundle) -> Option<Crl> {
    let signer = (bundle.anchors().iter()).find(|anchor| signs(anchor, &facts))?;
    Some(Crl {
        issuer: signer.authority,
        number: facts.number,
        digest: sha256(der),
        next_update: facts.next_update,
        serials: facts.serials,
    })
}

/// Whether the anchor signed the list and may.
fn signs(anchor: &Anchor, facts: &CrlFacts<'_>) -> bool {
    let Ok(certificate) = Certificate::parse(&anchor.der) else {
        return false;
    };
    if certificate.subject() != &*facts.issuer || !certificate.signs_crls() {
        return false;
    }
    let Some((algorithm, key)) = certificate.public_key_parts() else {
        return false;
    };
    let algorithms = provider().signature_verification_algorithms.all;
    algorithms.iter().any(|one| {
        one.public_key_alg_id().as_ref() == algorithm
            && one.signature_alg_id().as_ref() == facts.algorithm
            && (one.verify_signature(key, facts.signed, &facts.signature)).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_same_after_they_were_text() {
        let domain = TrustDomain::parse("west.example").unwrap();
        let newest = |number: &[u8]| Newest {
            number: number.into(),
            digest: [0xa7; 32],
        };
        let numbers = CrlNumbers(BTreeMap::from([
            ((domain.clone(), [1; 32]), newest(&[0, 255])),
            ((domain, [2; 32]), newest(&[])),
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
}
